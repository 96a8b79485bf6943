/**
 * Runs the command.
 *
 * @module
 */

import type { FrameEvent } from "../mod.ts";
import { parseCommand, type TunnelCommand, UsageError } from "./arguments.ts";
import { Display } from "./display.ts";
import { errorText, PermanentError } from "./errors.ts";
import { errorHint } from "./hints.ts";
import { eventLine, frameLine, listeningLine, shutdownLine, totalLine } from "./log.ts";
import { TunnelRefusedError } from "./options.ts";
import { forwardStdio } from "./stdio.ts";
import { textFor } from "./usage.ts";
import { setDeadline } from "./wait.ts";

/** The exit codes of the command. */
const EXIT = { ended: 0, failed: 1, usage: 2, refused: 3 };

/** Stdin and stdout, to forward. */
const stdio = {
  read: (p: Uint8Array) => Deno.stdin.read(p),
  write: (p: Uint8Array) => Deno.stdout.write(p),
  close: () => Deno.stdout.close(),
};

/** Formats an error as one line. */
function errorLine(error: unknown): string {
  const text = errorText(error).replaceAll(/\s*\n\s*/g, " ");
  const hint = errorHint(text);
  return hint === undefined ? text : `${text}: ${hint}`;
}

function exitCode(error: unknown): number {
  if (error instanceof UsageError || error instanceof RangeError) return EXIT.usage;
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    if (cause instanceof TunnelRefusedError || cause instanceof PermanentError) return EXIT.refused;
  }
  return EXIT.failed;
}

/** Runs the command; returns the exit code. */
export async function main(args: readonly string[]): Promise<number> {
  // A full pipe, or a terminal that is stopped or gone, must not block or end the process: only `Display` writes to it.
  let display = new Display(Deno.stdout, Deno.stderr);
  try {
    const text = textFor(args);
    if (text !== undefined) {
      display.line(text);
      return EXIT.ended;
    }
    const command = parseCommand(args);
    if ("run" in command) {
      for (const line of await command.run()) display.line(line);
      return EXIT.ended;
    }
    if (command.isPiped) display = new Display(Deno.stderr, Deno.stderr);
    await runTunnel(command, display);
    return EXIT.ended;
  } catch (error) {
    const code = exitCode(error);
    const isHinted = error instanceof UsageError && error.isHinted;
    display.error(`${errorLine(error)}${code === EXIT.usage && !isHinted ? " (try --help)" : ""}`);
    return code;
  } finally {
    await display.end();
  }
}

/** Runs a tunnel until it ends. */
async function runTunnel(
  { start, grace, isPiped, isTraced }: TunnelCommand,
  display: Display,
): Promise<void> {
  // Windows has no SIGTERM.
  const signals: Deno.Signal[] = Deno.build.os === "windows" ? ["SIGINT"] : ["SIGINT", "SIGTERM"];
  let stop = () => {};
  const cut = new AbortController();
  const unlisten = () => signals.forEach((name) => Deno.removeSignalListener(name, stop));
  try {
    const { tunnel, addrs, connect } = await start({
      onError: (error) => display.error(errorLine(error)),
      onEvent: (event) => display.line(eventLine(event)),
      onFrame: isTraced ? (frame: FrameEvent) => display.error(frameLine(frame)) : undefined,
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
      await forwardStdio(tunnel, connect, stdio, cut.signal).catch((error) => {
        throw lost ?? error;
      });
    }
    await tunnel.finished;
    if (!isPiped) display.line(totalLine(tunnel.stats()));
  } finally {
    unlisten();
  }
}
