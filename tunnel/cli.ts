/**
 * Runs the command.
 *
 * @module
 */

import { type FrameEvent, join, type Stream } from "../mod.ts";
import { HELP, parseCommand, UsageError } from "./arguments.ts";
import { Display } from "./display.ts";
import { errorText } from "./errors.ts";
import { eventLine, frameLine, listeningLine, shutdownLine, totalLine } from "./log.ts";
import type { Tunnel } from "./options.ts";
import { hashEntry } from "./users.ts";
import { setDeadline } from "./wait.ts";

// Milliseconds to send the final FIN after an error. Larger: tolerates a slower server; smaller: earlier exit.
const PIPE_TIMEOUT = 1000;

/** Joins stdin and stdout with a stream, then shuts the tunnel down. */
async function pipe(tunnel: Tunnel, connect: () => Promise<Stream>, cut: AbortSignal): Promise<void> {
  const { stdin, stdout } = Deno;
  const read = (p: Uint8Array) => stdin.read(p);
  const write = (p: Uint8Array) => stdout.write(p);
  const closeWrite = () => Promise.resolve(stdout.close());
  try {
    await join(await connect(), { read, write, closeWrite, close() {} }, { signal: cut });
  } catch (error) {
    tunnel.shutdown({ timeout: PIPE_TIMEOUT });
    throw error;
  }
  // Without a timeout: the last bytes may still be in transit.
  tunnel.shutdown();
}

/** Prints the entry of a user whose secret is read from stdin; returns the exit code. */
async function printHash(args: readonly string[]): Promise<number> {
  try {
    if (args.length !== 1) throw new UsageError(`expected "hash NAME", received ${args.length} arguments`);
    console.log(await hashEntry(args[0]!, (await new Response(Deno.stdin.readable).text()).trim()));
    return 0;
  } catch (error) {
    console.error(errorText(error));
    return 2;
  }
}

/** Runs the command; returns the exit code. */
export async function main(args: readonly string[]): Promise<number> {
  if (args.includes("--help") || args.includes("-h")) {
    console.log(HELP);
    return 0;
  }
  if (args[0] === "hash") return await printHash(args.slice(1));
  let display = new Display(Deno.stdout);
  const onError = (error: unknown) => display.line(errorText(error), Deno.stderr);
  const onFrame = (frame: FrameEvent) => display.line(frameLine(frame), Deno.stderr);
  // Windows has no SIGTERM.
  const signals: Deno.Signal[] = Deno.build.os === "windows" ? ["SIGINT"] : ["SIGINT", "SIGTERM"];
  let stop = () => {};
  const cut = new AbortController();
  const unlisten = () => signals.forEach((name) => Deno.removeSignalListener(name, stop));
  try {
    const { start, grace, isPiped, isTraced } = parseCommand(args);
    if (isPiped) display = new Display(Deno.stderr);
    const { tunnel, addrs, connect } = await start({
      onError,
      onEvent: (event) => display.line(eventLine(event)),
      onFrame: isTraced ? onFrame : undefined,
    });
    stop = () => {
      // The next signal ends the process.
      unlisten();
      display.line(shutdownLine(grace));
      tunnel.shutdown({ timeout: grace });
      if (isPiped) setDeadline(() => cut.abort(new Error(`stdout was not read within ${grace / 1000} seconds`)), grace);
    };
    for (const name of signals) Deno.addSignalListener(name, stop);
    for (const addr of addrs) display.line(listeningLine(addr));
    display.live(() => tunnel.stats());
    if (connect !== undefined) {
      // After a lost connection stdout still receives what arrived before.
      let lost: unknown;
      tunnel.finished.catch((error) => lost = error);
      await pipe(tunnel, connect, cut.signal).catch((error) => {
        throw lost ?? error;
      });
    }
    await tunnel.finished;
    if (!isPiped) display.line(totalLine(tunnel.stats()));
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
