/**
 * One situation: starts programs, and keeps what they print with the time since the start, for a report.
 *
 * @module
 */

import { deadline } from "@std/async";
import { readdir, readlink } from "node:fs/promises";
import { kill, lines } from "../../programs.ts";
import { freePort } from "../../support.ts";

const ROOT = new URL("../../../", import.meta.url).pathname;
const TUNNEL = `${ROOT}tunnel.ts`;

// Milliseconds for a program to print a line or to end, unless a situation has a limit of its own.
const LIMIT = 20_000;
// Lines of a program in the transcript. Larger: longer reports; smaller: the reason of a failure may be missing.
const MAX_LINES = 60;

/** A situation that can be run. */
export interface Situation {
  name: string;
  /** Runs it; returns what was measured, and rejects if the tunnel did not behave as expected. */
  run(scene: Scene): Promise<string>;
}

/** The tunnel did not behave as expected. */
export class Broken extends Error {}

/** Returns a free port that no other situation has. */
export const port = (): number => freePort();

/** Where and how a program runs. */
export interface Place {
  /** Command prefix that enters the namespace of the program. */
  at?: readonly string[] | undefined;
  env?: Record<string, string>;
  cwd?: string;
  /** Maximum number of its lines in the transcript. */
  most?: number;
  /** The name of the machine that it runs on. */
  machine?: string;
  /** The command as a user would type it. */
  typed?: string;
}

/** A running program. */
export class Program {
  readonly child: Deno.ChildProcess;
  /** The lines so far, with the time in milliseconds at which each was printed. */
  readonly printed: { at: number; text: string }[] = [];
  readonly #ended: Promise<{ code: number; at: number }>;
  readonly #name: string;
  #changed = Promise.withResolvers<void>();
  #hasEnded = false;

  /** @param onLine Called with each line. */
  constructor(name: string, child: Deno.ChildProcess, onLine: (text: string, count: number) => void) {
    this.#name = name;
    this.child = child;
    const follow = async (stream: ReadableStream<Uint8Array<ArrayBuffer>>) => {
      for await (const text of lines(stream)) {
        this.printed.push({ at: performance.now(), text });
        onLine(text, this.printed.length);
        this.#wake();
      }
    };
    const following = Promise.all([follow(child.stdout), follow(child.stderr)]);
    this.#ended = child.status.then(async ({ code }) => {
      const at = performance.now();
      await following;
      this.#hasEnded = true;
      this.#wake();
      return { code, at };
    });
  }

  /** Waits for a line, after the first `skipped` lines; returns the match and when it was printed. */
  async until(what: RegExp, { limit = LIMIT, skipped = 0 } = {}): Promise<{ match: RegExpExecArray; at: number }> {
    const search = async () => {
      for (;;) {
        for (const { at, text } of this.printed.slice(skipped)) {
          const match = what.exec(text);
          if (match !== null) return { match, at };
        }
        if (this.#hasEnded) throw new Broken(`${this.#name} ended without printing ${what}`);
        await this.#changed.promise;
      }
    };
    return await within(limit, `${this.#name} to print ${what}`, search());
  }

  /** Waits for the end; returns the exit code and the time. */
  async ended(limit = LIMIT): Promise<{ code: number; at: number }> {
    return await within(limit, `${this.#name} to end`, this.#ended);
  }

  /** Sends a signal; returns the time. */
  kill(signal: Deno.Signal = "SIGKILL"): number {
    kill(this.child, signal);
    return performance.now();
  }

  /** Memory of the process in MB. */
  async memory(): Promise<number> {
    const status = await Deno.readTextFile(`/proc/${this.child.pid}/status`);
    return Number(/^VmRSS:\s+(\d+) kB/m.exec(status)![1]) * 1024 / 1e6;
  }

  /** Number of sockets of the process. */
  async sockets(): Promise<number> {
    const folder = `/proc/${this.child.pid}/fd`;
    const links = (await readdir(folder)).map((name) => readlink(`${folder}/${name}`).catch(() => ""));
    return (await Promise.all(links)).filter((link) => link.startsWith("socket:")).length;
  }

  #wake(): void {
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }
}

/** Waits for a promise; rejects after a limit in milliseconds. */
export async function within<T>(limit: number, what: string, promise: Promise<T>): Promise<T> {
  return await deadline(promise, limit).catch((error) => {
    if (!(error instanceof DOMException)) throw error;
    throw new Broken(`waited ${seconds(limit)} for ${what}`);
  });
}

/** Formats milliseconds as seconds. */
export function seconds(time: number): string {
  return `${(time / 1000).toFixed(time < 10_000 ? 2 : 1)} s`;
}

/** Throws unless a condition holds. */
export function check(condition: boolean, why: string): asserts condition {
  if (!condition) throw new Broken(why);
}

/** The programs and the transcript of a situation. */
export class Scene implements AsyncDisposable {
  /** What is disposed at the end, in reverse order. */
  readonly stack = new AsyncDisposableStack();
  readonly transcript: string[] = [];
  readonly #began = performance.now();
  #isOver = false;

  /** Adds a line to the transcript. */
  note(text: string): void {
    if (this.#isOver) return;
    const time = ((performance.now() - this.#began) / 1000).toFixed(2).padStart(8);
    this.transcript.push(`${time}  ${text}`);
  }

  /** Starts the command of the tunnel, as `sluice`. */
  sluice(name: string, args: string[], place?: Place): Program {
    this.note(`${place?.machine ?? ""}$ sluice ${args.map(quote).join(" ")}`);
    return this.#start(name, [Deno.execPath(), "run", "--no-config", "-A", TUNNEL, ...args], place);
  }

  /** Starts any program. */
  start(name: string, command: string[], place?: Place): Program {
    this.note(`${place?.machine ?? ""}$ ${place?.typed ?? command.map(quote).join(" ")}`);
    return this.#start(name, command, place);
  }

  /** Starts a command line of the shell. */
  shell(name: string, line: string, place?: Place): Program {
    return this.start(name, ["sh", "-c", line], { ...place, typed: line });
  }

  /** Starts a script of this folder. */
  script(name: string, file: string, args: string[], place?: Place): Program {
    const path = `${import.meta.dirname}/${file}`;
    this.note(`${place?.machine ?? ""}$ deno run ${path.slice(ROOT.length)} ${args.join(" ")}`);
    return this.#start(name, [Deno.execPath(), "run", "-A", path, ...args], place);
  }

  #start(name: string, command: string[], { at = [], env = {}, cwd, most = MAX_LINES }: Place = {}): Program {
    const [program, ...args] = [...at, ...command];
    const child = new Deno.Command(program!, {
      args,
      env: { NO_COLOR: "1", ...env },
      ...cwd === undefined ? {} : { cwd },
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    const started = new Program(name, child, (text, count) => {
      if (count <= most) this.note(`${name}: ${text}`);
      else if (count === most + 1) this.note(`${name}: (more lines)`);
    });
    this.stack.defer(async () => {
      this.#isOver = true;
      started.kill();
      await started.ended();
    });
    return started;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isOver = true;
    await this.stack.disposeAsync();
  }
}

/** Quotes an argument for a shell. */
function quote(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", String.raw`'\''`)}'`;
}
