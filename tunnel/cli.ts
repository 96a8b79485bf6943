/**
 * Runs the command.
 *
 * @module
 */

import type { FrameEvent } from "../mod.ts";
import { parseCommand, type TunnelCommand } from "./arguments.ts";
import { ConfigError } from "./config.ts";
import { Display } from "./display.ts";
import { errorText, isCut, PermanentError, wrapError } from "./errors.ts";
import { errorHint } from "./hints.ts";
import {
  errorEntry,
  eventEntry,
  formatEntry,
  frameEntry,
  isPrinted,
  listeningEntry,
  type LogEntry,
  type LogFormat,
  pinEntry,
  pipedEntry,
  shutdownEntry,
  statusEntry,
  totalEntry,
} from "./log.ts";
import { TunnelRefusedError } from "./options.ts";
import { forwardStdio, type StdioFigures } from "./stdio.ts";
import { textFor } from "./usage.ts";
import { UsageError } from "./values.ts";
import { setDeadline } from "./wait.ts";

/** The exit codes of the command. */
const EXIT = { ended: 0, failed: 1, usage: 2, refused: 3 };

const UNWRITABLE = "cannot write to stdout";

/** Returns a function that throws an error with more than the message of the system. */
function failing(what: string): (error: unknown) => never {
  return (error) => {
    throw wrapError(what, error);
  };
}

/** Stdin and stdout, to forward. */
const stdio = {
  read: (p: Uint8Array) => Deno.stdin.read(p).catch(failing("cannot read stdin")),
  write: (p: Uint8Array) => Deno.stdout.write(p).catch(failing(UNWRITABLE)),
  close: () => Deno.stdout.close(),
};

/** Formats an error as one line. */
function errorLine(error: unknown): string {
  const text = errorText(error).replaceAll(/\s*\n\s*/g, " ");
  const hint = errorHint(text);
  return hint === undefined ? text : `${text}: ${hint}`;
}

function exitCode(error: unknown): number {
  if (error instanceof UsageError || error instanceof RangeError || error instanceof ConfigError) return EXIT.usage;
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    if (cause instanceof TunnelRefusedError || cause instanceof PermanentError) return EXIT.refused;
  }
  return EXIT.failed;
}

/** Runs the command; returns the exit code. */
export async function main(args: readonly string[]): Promise<number> {
  // A full pipe, or a terminal that is stopped or gone, must not block or end the process: only `Display` writes to it.
  let display = new Display(Deno.stdout, Deno.stderr);
  let format: LogFormat | undefined;
  try {
    const text = textFor(args);
    if (text !== undefined) {
      display.line(text);
      return await printed(display);
    }
    const command = parseCommand(args);
    if ("run" in command) {
      for await (const line of await command.run()) display.line(line);
      return await printed(display);
    }
    format = command.log;
    if (command.isPiped) display = new Display(Deno.stderr, Deno.stderr);
    await runTunnel(command, display);
    return EXIT.ended;
  } catch (error) {
    const code = exitCode(error);
    // Both may be one file: the error follows what it is about.
    await display.flush();
    if (error instanceof ConfigError) {
      for (const line of error.mistakes) display.error(formatEntry(errorEntry(line), format, new Date()));
      return code;
    }
    const isHinted = error instanceof UsageError && error.isHinted;
    const line = `${errorLine(error)}${code === EXIT.usage && !isHinted ? " (try --help)" : ""}`;
    display.error(formatEntry(errorEntry(line), format, new Date()));
    return code;
  } finally {
    await display.end();
  }
}

/** Waits until the lines of a command that only prints are written; returns the exit code. */
async function printed(display: Display): Promise<number> {
  await display.flush();
  // A reader such as `head` may have had enough.
  if (display.failure === undefined || isCut(display.failure)) return EXIT.ended;
  throw wrapError(UNWRITABLE, display.failure);
}

/** Runs a tunnel until it ends. */
async function runTunnel(
  { start, grace, isPiped, isTraced, log: format }: TunnelCommand,
  display: Display,
): Promise<void> {
  const log = (entry: LogEntry) => display.line(formatEntry(entry, format, new Date()));
  const logError = (entry: LogEntry) => display.error(formatEntry(entry, format, new Date()));
  // Windows has no SIGTERM.
  const signals: Deno.Signal[] = Deno.build.os === "windows" ? ["SIGINT"] : ["SIGINT", "SIGTERM"];
  let stop = () => {};
  const cut = new AbortController();
  // ssh ends its ProxyCommand by SIGHUP: the server must not wait for the client to resume.
  const hangUp = () => cut.abort(new Error("hung up"));
  const unlisten = () => signals.forEach((name) => Deno.removeSignalListener(name, stop));
  try {
    const { tunnel, addrs, targets, connect, pipedTo } = await start({
      onError: (error) => logError(errorEntry(errorLine(error))),
      onEvent: (event) => void (isPrinted(event, format) && log(eventEntry(event))),
      onFrame: isTraced ? (frame: FrameEvent) => logError(frameEntry(frame)) : undefined,
    }, {
      log,
      error: (error) => logError(errorEntry(errorLine(error))),
      hasTargets: format !== undefined,
    });
    stop = () => {
      // The next signal ends the process.
      unlisten();
      log(shutdownEntry(grace));
      tunnel.shutdown({ timeout: grace });
      if (isPiped) setDeadline(() => cut.abort(new Error(`stdout was not read within ${grace / 1000} seconds`)), grace);
    };
    for (const name of signals) Deno.addSignalListener(name, stop);
    if (isPiped && Deno.build.os !== "windows") Deno.addSignalListener("SIGHUP", hangUp);
    addrs.forEach((addr, n) => log(listeningEntry(addr, format && targets[n])));
    if (tunnel.pin !== undefined) log(pinEntry(tunnel.pin));
    if (tunnel.statusAddr !== undefined) log(statusEntry(tunnel.statusAddr));
    display.live(() => tunnel.stats());
    if (connect !== undefined) {
      // After a lost connection stdout still receives what arrived before.
      let lost: unknown;
      tunnel.finished.catch((error) => lost = error);
      const ended = (figures: StdioFigures) => {
        if (format !== undefined) log(pipedEntry({ ...figures, user: undefined, from: "stdin", to: pipedTo }));
      };
      await forwardStdio(tunnel, connect, stdio, cut.signal, ended).catch((error) => {
        throw lost ?? error;
      });
    }
    await tunnel.finished;
    if (!isPiped) log(totalEntry(tunnel.stats()));
  } finally {
    unlisten();
    if (isPiped && Deno.build.os !== "windows") Deno.removeSignalListener("SIGHUP", hangUp);
  }
}
