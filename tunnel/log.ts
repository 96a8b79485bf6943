/**
 * Formats the lines that the command prints.
 *
 * @module
 */

import type { FrameEvent } from "../mod.ts";
import { formatPeer, UNNAMED } from "./address.ts";
import { errorText } from "./errors.ts";
import type { TunnelEvent, TunnelStats } from "./options.ts";

function count(number: number, noun: string): string {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

/** Formats a duration in milliseconds. */
function seconds(milliseconds: number): string {
  return `${(milliseconds / 1000).toFixed(1)} s`;
}

/** Formats an event. */
export function eventLine(event: TunnelEvent): string {
  switch (event.type) {
    case "connected":
      return `connection from ${event.clientAddr ?? UNNAMED}`;
    case "listening":
      return `${listeningLine(event.listenAddr)} for ${event.clientAddr ?? UNNAMED}`;
    case "stopped":
      return `stopped ${listeningLine(event.listenAddr)} for ${event.clientAddr ?? UNNAMED}`;
    case "suspended":
      return errorText(event.error);
    case "resumed":
      return `resumed the connection to ${event.serverAddr} after ${seconds(event.downtime)}`;
    case "reconnected":
      return `reconnected to ${event.serverAddr} after ${seconds(event.downtime)}`;
    case "unresumable":
      return `${event.serverAddr} does not resume: forwarded connections end when the connection to it is lost`;
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

/** Formats the line for the first Ctrl-C; `grace` is in milliseconds. */
export function shutdownLine(grace: number): string {
  return `shutting down within ${count(grace / 1000, "second")}; press Ctrl-C again to exit at once`;
}

/** Formats the totals, the last line. */
export function totalLine({ streams, connections }: TunnelStats): string {
  return `forwarded ${count(streams, "stream")} over ${count(connections, "connection")}`;
}
