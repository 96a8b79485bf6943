/**
 * Runs the command.
 *
 * @module
 */

import { type FrameEvent, join, type Stream } from "../mod.ts";
import { CountedConnection, type FinishedEvent } from "./accounting.ts";
import { HELP, parseCommand, UsageError } from "./arguments.ts";
import { Display } from "./display.ts";
import { toError } from "./errors.ts";
import {
  errorEntry,
  eventEntry,
  formatEntry,
  frameEntry,
  listeningEntry,
  type LogEntry,
  type LogFormat,
  pipedEntry,
  shutdownEntry,
  statusEntry,
  totalEntry,
} from "./log.ts";
import type { Tunnel } from "./options.ts";
import { setDeadline } from "./wait.ts";

// Milliseconds to send the final FIN after an error. Larger: tolerates a slower server; smaller: earlier exit.
const PIPE_TIMEOUT = 1000;

/** The figures of stdin and stdout as a forwarded connection. */
type PipeFigures = Pick<FinishedEvent, "sent" | "received" | "duration" | "error">;

/** Joins stdin and stdout with a stream, reports the end, then shuts the tunnel down. */
async function pipe(
  tunnel: Tunnel,
  connect: () => Promise<Stream>,
  cut: AbortSignal,
  ended: (figures: PipeFigures) => void,
): Promise<void> {
  const { stdin, stdout } = Deno;
  let [sent, received, began] = [0, 0, 0];
  let failed: Error | undefined;
  const read = (p: Uint8Array) => stdin.read(p);
  const write = (p: Uint8Array) => stdout.write(p);
  const closeWrite = () => Promise.resolve(stdout.close());
  const counter = {
    countSent: (bytes: number) => void (sent += bytes),
    countReceived: (bytes: number) => void (received += bytes),
  };
  try {
    const stream = await connect();
    began = performance.now();
    await join(stream, new CountedConnection({ read, write, closeWrite, close() {} }, counter), { signal: cut });
  } catch (error) {
    failed = toError(error);
    tunnel.shutdown({ timeout: PIPE_TIMEOUT });
    throw error;
  } finally {
    // A refused target is an error and no connection.
    const duration = Math.round(performance.now() - began);
    if (began > 0) ended({ sent, received, duration, error: failed });
  }
  // Without a timeout: the last bytes may still be in transit.
  tunnel.shutdown();
}

/** Runs the command; returns the exit code. */
export async function main(args: readonly string[]): Promise<number> {
  if (args.includes("--help") || args.includes("-h")) {
    console.log(HELP);
    return 0;
  }
  let display = new Display(Deno.stdout);
  let format: LogFormat | undefined;
  const log = (entry: LogEntry, out?: typeof Deno.stdout) => display.line(formatEntry(entry, format, new Date()), out);
  const onError = (error: unknown) => log(errorEntry(error), Deno.stderr);
  const onFrame = (frame: FrameEvent) => log(frameEntry(frame), Deno.stderr);
  // Windows has no SIGTERM.
  const signals: Deno.Signal[] = Deno.build.os === "windows" ? ["SIGINT"] : ["SIGINT", "SIGTERM"];
  let stop = () => {};
  const cut = new AbortController();
  const unlisten = () => signals.forEach((name) => Deno.removeSignalListener(name, stop));
  try {
    const command = parseCommand(args);
    const { start, grace, isPiped, isTraced } = command;
    format = command.log;
    if (isPiped) display = new Display(Deno.stderr);
    const { tunnel, addrs, targets, connect, pipedTo } = await start({
      onError,
      // Without a format, the log has only what concerns the tunnel itself.
      onEvent: (event) => void (event.type === "finished" && format === undefined || log(eventEntry(event))),
      onFrame: isTraced ? onFrame : undefined,
    });
    stop = () => {
      // The next signal ends the process.
      unlisten();
      log(shutdownEntry(grace));
      tunnel.shutdown({ timeout: grace });
      if (isPiped) setDeadline(() => cut.abort(new Error(`stdout was not read within ${grace / 1000} seconds`)), grace);
    };
    for (const name of signals) Deno.addSignalListener(name, stop);
    addrs.forEach((addr, n) => log(listeningEntry(addr, format && targets[n])));
    if (tunnel.statusAddr !== undefined) log(statusEntry(tunnel.statusAddr));
    display.live(() => tunnel.stats());
    if (connect !== undefined) {
      // After a lost connection stdout still receives what arrived before.
      let lost: unknown;
      tunnel.finished.catch((error) => lost = error);
      const ended = (figures: PipeFigures) => {
        if (format !== undefined) log(pipedEntry({ ...figures, user: undefined, from: "stdin", to: pipedTo }));
      };
      await pipe(tunnel, connect, cut.signal, ended).catch((error) => {
        throw lost ?? error;
      });
    }
    await tunnel.finished;
    if (!isPiped) log(totalEntry(tunnel.stats()));
    return 0;
  } catch (error) {
    const isUsage = error instanceof UsageError || error instanceof RangeError;
    onError(isUsage ? `${error.message} (try --help)` : error);
    return isUsage ? 2 : 1;
  } finally {
    display.end();
    unlisten();
  }
}
