/**
 * Formats the lines that the command prints.
 *
 * @module
 */

import type { FrameEvent } from "../mod.ts";
import type { FinishedEvent } from "./accounting.ts";
import { formatPeer, UNNAMED } from "./address.ts";
import { errorText } from "./errors.ts";
import type { TunnelEvent, TunnelStats } from "./options.ts";

/** A format of the log for files and programs: lines with a time, or a JSON object on each line. */
export type LogFormat = "text" | "json";

/** One line of the log: its text, and the same as fields. */
export interface LogEntry {
  text: string;
  type: string;
  [field: string]: unknown;
}

function count(number: number, noun: string): string {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

/** Formats an entry; without a format, its text alone. */
export function formatEntry({ text, ...fields }: LogEntry, format: LogFormat | undefined, now: Date): string {
  const time = now.toISOString();
  switch (format) {
    case "json":
      return JSON.stringify({ time, ...fields });
    case "text":
      // Whole seconds leave more of the line; and one entry is one line.
      return `${time.replace(/\.\d+/, "")} ${text.replaceAll(/\s*\n\s*/g, " ")}`;
    case undefined:
      return text;
  }
}

/** Makes an entry of an error. */
export function errorEntry(error: unknown): LogEntry {
  const text = errorText(error);
  return { text, type: "error", message: text };
}

/** Makes an entry of an event. */
export function eventEntry(event: TunnelEvent): LogEntry {
  const text = eventLine(event);
  const error = "error" in event && event.error !== undefined ? errorText(event.error) : undefined;
  if (event.type !== "finished") return { text, ...event, error };
  const { isIdle, ...fields } = event;
  return { text, ...fields, outcome: error !== undefined ? "failed" : isIdle ? "idle" : "closed", error };
}

/** Formats a number of bytes. */
function size(bytes: number): string {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  // From 999.5 on, three digits would round to 1000.
  for (; bytes >= (unit === 0 ? 1000 : 999.5) && unit < units.length - 1; unit++) bytes /= 1000;
  return `${unit > 0 && bytes < 9.95 ? bytes.toFixed(1) : bytes.toFixed(0)}${units[unit]}`;
}

/** Formats milliseconds. */
function time(duration: number): string {
  if (duration < 1000) return `${duration}ms`;
  if (duration < 9950) return `${(duration / 1000).toFixed(1)}s`;
  const seconds = Math.round(duration / 1000);
  if (seconds < 60) return `${seconds}s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 60 ? `${minutes}m${seconds % 60}s` : `${Math.floor(minutes / 60)}h${minutes % 60}m`;
}

/** Formats the end of a forwarded connection; the bytes are those sent to and received from the peer. */
function finishedLine(event: Omit<FinishedEvent, "type" | "kind">): string {
  const { user, from = UNNAMED, to = "the server", sent, received, duration, error, isIdle } = event;
  const outcome = error !== undefined ? `failed: ${errorText(error)}` : isIdle ? "idle" : "closed";
  const origin = user === undefined ? from : `${user}@${from}`;
  return `${origin} > ${to} ${size(sent)}/${size(received)} ${time(duration)} ${outcome}`;
}

/** Formats the end of the connection of a client. */
function disconnectedLine(event: Extract<TunnelEvent, { type: "disconnected" }>): string {
  const { clientAddr = UNNAMED, user, duration, error } = event;
  const origin = user === undefined ? clientAddr : `${user}@${clientAddr}`;
  const outcome = error === undefined ? "" : `: ${errorText(error)}`;
  return `the connection from ${origin} ended after ${time(duration)}${outcome}`;
}

/** Whether an event is printed without a format: only what concerns the tunnel itself. */
export function isPrinted({ type }: TunnelEvent, format: LogFormat | undefined): boolean {
  return format !== undefined || (type !== "finished" && type !== "disconnected");
}

/** Makes an entry of the end of the connection that stdin and stdout were. */
export function pipedEntry(event: Omit<FinishedEvent, "type" | "kind">): LogEntry {
  return { ...eventEntry({ ...event, type: "finished", kind: "connect" }), kind: "stdio" };
}

/** Formats an event. */
export function eventLine(event: TunnelEvent): string {
  switch (event.type) {
    case "connected":
      return `connection from ${event.user === undefined ? "" : `${event.user}@`}${event.clientAddr ?? UNNAMED}`;
    case "disconnected":
      return disconnectedLine(event);
    case "listening":
      return `${listeningLine(event.listenAddr)} for ${event.clientAddr ?? UNNAMED}`;
    case "stopped":
      return `stopped ${listeningLine(event.listenAddr)} for ${event.clientAddr ?? UNNAMED}`;
    case "suspended":
      return errorText(event.error);
    case "resumed":
      return `resumed the connection to ${event.serverAddr} after ${time(event.downtime)}`;
    case "reconnected":
      return `reconnected to ${event.serverAddr} after ${time(event.downtime)}`;
    case "unresumable":
      return `${event.serverAddr} does not resume: forwarded connections end when the connection to it is lost`;
    case "reached":
      return `connected to ${event.serverAddr}`;
    case "switched":
      return `new connections use ${event.serverAddr}`;
    case "bound":
      return `${listeningLine(event.listenAddr)} at ${event.serverAddr}`;
    case "finished":
      return finishedLine(event);
  }
}

/** Formats a frame. */
export function frameLine({ direction, command, id, length, consumed, window, remoteAddr }: FrameEvent): string {
  const peer = formatPeer(remoteAddr) ?? UNNAMED;
  const content = command === "PSH" ? `, ${count(length, "byte")}` : "";
  const credit = command === "UPD" ? `, ${consumed} consumed, window ${window}` : "";
  return `${direction === "sent" ? "to" : "from"} ${peer}: ${command} ${id}${content}${credit}`;
}

/** Formats an address that the tunnel listens on. */
export function listeningLine(addr: string): string {
  return `listening on ${addr}`;
}

/** Makes an entry of an address that the tunnel listens on; `to` is where its connections lead. */
export function listeningEntry(listenAddr: string, to: string | undefined): LogEntry {
  const text = to === undefined ? listeningLine(listenAddr) : `${listeningLine(listenAddr)}, leads to ${to}`;
  return { text, type: "listening", listenAddr, to };
}

/** Makes an entry of an address that a changed configuration file does not contain any more. */
export function stoppedEntry(listenAddr: string): LogEntry {
  return { text: `stopped ${listeningLine(listenAddr)}`, type: "stopped", listenAddr };
}

/** Makes an entry of a configuration file that was applied. */
export function reloadedEntry(file: string): LogEntry {
  return { text: `reloaded ${file}`, type: "reloaded", file };
}

/** Makes an entry of a configuration file that was not applied, after its errors. */
export function notReloadedEntry(file: string): LogEntry {
  return { text: `did not reload ${file}: nothing has changed`, type: "rejected", file };
}

/** Makes an entry of the pin of the server's certificate. */
export function pinEntry(pin: string): LogEntry {
  return { text: `certificate pin ${pin}`, type: "pin", pin };
}

/** Makes an entry of the address of the status. */
export function statusEntry(statusAddr: string): LogEntry {
  const text = statusAddr.startsWith("unix:") ? `status at ${statusAddr}` : `status at http://${statusAddr}/status`;
  return { text, type: "status", statusAddr };
}

/** Makes an entry of a frame. */
export function frameEntry(event: FrameEvent): LogEntry {
  const { direction, command, id, length, consumed, window, remoteAddr } = event;
  const peer = formatPeer(remoteAddr);
  return { text: frameLine(event), type: "frame", direction, command, id, length, consumed, window, peer };
}

/** Makes an entry of the first Ctrl-C; `grace` is in milliseconds. */
export function shutdownEntry(grace: number): LogEntry {
  return { text: shutdownLine(grace), type: "shutdown", grace };
}

/** Makes an entry of the totals. */
export function totalEntry(stats: TunnelStats): LogEntry {
  return { text: totalLine(stats), type: "total", ...stats };
}

/** Formats the line for the first Ctrl-C; `grace` is in milliseconds. */
export function shutdownLine(grace: number): string {
  return `shutting down within ${count(grace / 1000, "second")}; press Ctrl-C again to exit at once`;
}

/** Formats the totals, the last line. */
export function totalLine({ streams, connections }: Pick<TunnelStats, "streams" | "connections">): string {
  return `forwarded ${count(streams, "stream")} over ${count(connections, "connection")}`;
}
