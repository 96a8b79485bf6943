/**
 * Starts programs for tests and measurements, and creates folders for their files.
 *
 * @module
 */

import { TextLineStream } from "@std/streams";
import { existsSync } from "node:fs";
import { LONG, within } from "./within.ts";

/** Returns the path of the first of these programs that is installed. */
export function findProgram(...names: string[]): string | undefined {
  const folders = (Deno.env.get("PATH") ?? "").split(":").concat("/usr/sbin");
  return names.flatMap((name) => folders.map((folder) => `${folder}/${name}`)).find((path) => existsSync(path));
}

/** Whether all of these programs are installed. */
export function hasPrograms(...names: string[]): boolean {
  return names.every((name) => findProgram(name) !== undefined);
}

/** Runs a program to its end, and returns its output; rejects if its exit code is not 0. */
export async function run(
  name: string,
  args: string[],
  { input, ...options }: { input?: Uint8Array; env?: Record<string, string>; cwd?: string | URL } = {},
): Promise<Uint8Array<ArrayBuffer>> {
  const child = new Deno.Command(name, { args, ...options, stdin: "piped", stdout: "piped", stderr: "piped" }).spawn();
  const writing = new Blob(input === undefined ? [] : [input.slice()]).stream().pipeTo(child.stdin);
  const [{ code, stdout, stderr }] = await Promise.all([child.output(), writing.catch(() => {})]);
  const output = () => [stderr, stdout].map((bytes) => new TextDecoder().decode(bytes)).join("");
  if (code !== 0) throw new Error(`${name} ${args.join(" ")} exited with code ${code}: ${output()}`);
  return stdout;
}

/** Runs this Deno in the repository, and returns its output. */
export async function deno(...args: string[]): Promise<string> {
  const options = { cwd: new URL("../", import.meta.url), env: { NO_COLOR: "1" } };
  return new TextDecoder().decode(await run(Deno.execPath(), args, options));
}

/** Splits the output of a process into lines. */
export function lines(output: ReadableStream<Uint8Array<ArrayBuffer>>): ReadableStream<string> {
  return output.pipeThrough(new TextDecoderStream()).pipeThrough(new TextLineStream());
}

/** Kills a process that may have exited already. */
export function kill(child: Deno.ChildProcess, signal: Deno.Signal = "SIGKILL"): void {
  try {
    child.kill(signal);
  } catch {
    // It has exited.
  }
}

/** The output of a child process so far, and its end. */
export interface Watched extends AsyncDisposable {
  child: Deno.ChildProcess;
  /** The output so far. */
  printed: { stdout: string; stderr: string };
  /** Waits until the output matches; rejects if the process exits before, or after a minute. */
  until(what: RegExp, name?: "stdout" | "stderr"): Promise<RegExpExecArray>;
  /** Waits until the process has exited; rejects after a minute. */
  ended(): Promise<{ code: number; signal: Deno.Signal | null; stdout: string; stderr: string }>;
  /** Kills the process unless it has exited, and waits for its end. */
  end(signal?: Deno.Signal): ReturnType<Watched["ended"]>;
}

/** Collects the output of a child process; disposing kills the process. `limit` replaces the minute of each wait. */
export function watch(child: Deno.ChildProcess, limit = LONG): Watched {
  const printed = { stdout: "", stderr: "" };
  let seen = Promise.withResolvers<void>();
  const listen = async (name: "stdout" | "stderr") => {
    for await (const chunk of child[name].pipeThrough(new TextDecoderStream())) {
      printed[name] += chunk;
      seen.resolve();
      seen = Promise.withResolvers();
    }
  };
  const printing = Promise.all([listen("stdout"), listen("stderr")]);
  const output = () => `${printed.stdout}${printed.stderr}`;
  const find = async (what: RegExp, name: "stdout" | "stderr") => {
    for (let hasEnded = false;;) {
      const found = what.exec(printed[name]);
      if (found !== null) return found;
      if (hasEnded) throw new Error(`The process exited without printing ${what}: ${output()}`);
      await Promise.race([seen.promise, printing.then(() => hasEnded = true)]);
    }
  };
  const until = (what: RegExp, name: "stdout" | "stderr" = "stdout") =>
    within(limit, find(what, name), () => `The process has not printed ${what} after ${limit} ms, but: ${output()}`);
  const ended = async () => {
    const ending = Promise.all([child.status, printing]);
    const report = () => `The process has not exited after ${limit} ms, and has printed: ${output()}`;
    const [{ code, signal }] = await within(limit, ending, report);
    return { code, signal, ...printed };
  };
  const end = (signal?: Deno.Signal) => {
    kill(child, signal);
    return ended();
  };
  return { child, printed, until, ended, end, [Symbol.asyncDispose]: async () => void await end() };
}

/** A process that prints lines; disposing kills it. */
export class Process implements AsyncDisposable {
  readonly #child: Deno.ChildProcess;
  readonly #lines: ReadableStreamDefaultReader<string>;
  readonly #stderr: Promise<string>;
  #printed = "";

  constructor([command, ...args]: string[]) {
    this.#child = new Deno.Command(command!, {
      args,
      env: { NO_COLOR: "1" },
      stdin: "piped",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    this.#lines = lines(this.#child.stdout).getReader();
    this.#stderr = new Response(this.#child.stderr).text();
  }

  /** Reads the next line; rejects after a minute, or with the process's error output if it has exited. */
  line(): Promise<string> {
    return within(LONG, this.#next(), () => `The process has printed no line for ${LONG} ms, but: ${this.#printed}`);
  }

  async #next(): Promise<string> {
    const { done, value } = await this.#lines.read();
    if (!done) {
      this.#printed += `${value}\n`;
      return value;
    }
    const { code } = await this.#child.status;
    const [line] = (await this.#stderr).trim().split("\n");
    throw new Error(`process exited with code ${code}${line && `: ${line}`}`);
  }

  /** Reads the next line as JSON, however long a measurement takes; rejects with its `error`, if it has one. */
  async result<Result extends { error?: string }>(): Promise<Result> {
    const result: Result = JSON.parse(await this.#next());
    if (result.error !== undefined) throw new Error(result.error);
    return result;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    kill(this.#child);
    await this.#child.stdin.close().catch(() => {});
    await this.#lines.cancel().catch(() => {});
    await this.#stderr.catch(() => {});
    await this.#child.status;
  }
}

/** Creates a temporary folder; disposing, SIGINT and SIGTERM remove it. */
export async function makeFolder(name: string): Promise<AsyncDisposable & { path: string }> {
  const path = await Deno.makeTempDir({ prefix: `sluice-${name}-` });
  const interrupted = () => {
    Deno.removeSync(path, { recursive: true });
    Deno.exit(1);
  };
  const signals = ["SIGINT", "SIGTERM"] as const;
  for (const signal of signals) Deno.addSignalListener(signal, interrupted);
  const dispose = async () => {
    for (const signal of signals) Deno.removeSignalListener(signal, interrupted);
    await Deno.remove(path, { recursive: true });
  };
  return { path, [Symbol.asyncDispose]: dispose };
}

/** Writes the keys of an SSH server and its user into a folder, and a configuration named `config`. */
export async function prepareSsh(folder: string): Promise<void> {
  for (const key of ["host", "user"]) {
    const args = ["-q", "-t", "ed25519", "-N", "", "-f", `${folder}/${key}`];
    const { success, stderr } = await new Deno.Command("ssh-keygen", { args }).output();
    if (!success) throw new Error(`ssh-keygen: ${new TextDecoder().decode(stderr)}`);
  }
  await Deno.mkdir("/run/sshd", { recursive: true, mode: 0o755 });
  const config = [`HostKey ${folder}/host`, `AuthorizedKeysFile ${folder}/user.pub`, "StrictModes no", "UsePAM no"];
  await Deno.writeTextFile(`${folder}/config`, [...config, "PermitRootLogin prohibit-password", ""].join("\n"));
}
