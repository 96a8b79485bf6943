/**
 * Programs that tests and measurements start, and where they put their files.
 *
 * @module
 */

import { TextLineStream } from "@std/streams";
import { existsSync } from "node:fs";

/** Where the first of these programs is that there is. */
export function findProgram(...names: string[]): string | undefined {
  const folders = (Deno.env.get("PATH") ?? "").split(":").concat("/usr/sbin");
  return names.flatMap((name) => folders.map((folder) => `${folder}/${name}`)).find((path) => existsSync(path));
}

/** Whether all of these programs are there. */
export function hasPrograms(...names: string[]): boolean {
  return names.every((name) => findProgram(name) !== undefined);
}

/** Runs a program to its end, which must be a good one, and gives what it printed. */
export async function run(
  name: string,
  args: string[],
  { input, ...options }: { input?: Uint8Array; env?: Record<string, string>; cwd?: string | URL } = {},
): Promise<Uint8Array<ArrayBuffer>> {
  const child = new Deno.Command(name, { args, ...options, stdin: "piped", stdout: "piped", stderr: "piped" }).spawn();
  const writing = new Blob(input === undefined ? [] : [input.slice()]).stream().pipeTo(child.stdin);
  const [{ code, stdout, stderr }] = await Promise.all([child.output(), writing.catch(() => {})]);
  const complaint = () => [stderr, stdout].map((bytes) => new TextDecoder().decode(bytes)).join("");
  if (code !== 0) throw new Error(`${name} ${args.join(" ")} ended with code ${code}: ${complaint()}`);
  return stdout;
}

/** What a run of this Deno in the repository prints. */
export async function deno(...args: string[]): Promise<string> {
  const options = { cwd: new URL("../", import.meta.url), env: { NO_COLOR: "1" } };
  return new TextDecoder().decode(await run(Deno.execPath(), args, options));
}

/** The lines that a process prints. */
export function lines(output: ReadableStream<Uint8Array<ArrayBuffer>>): ReadableStream<string> {
  return output.pipeThrough(new TextDecoderStream()).pipeThrough(new TextLineStream());
}

/** Kills a process that may have ended by itself. */
export function kill(child: Deno.ChildProcess, signal: Deno.Signal = "SIGKILL"): void {
  try {
    child.kill(signal);
  } catch {
    // It has ended.
  }
}

/** What a child prints, as it does, and how it ends. */
export interface Watched extends AsyncDisposable {
  child: Deno.ChildProcess;
  /** What it has printed. */
  printed: { stdout: string; stderr: string };
  /** Waits until it has printed something. */
  until(what: RegExp, name?: "stdout" | "stderr"): Promise<RegExpExecArray>;
  /** Waits until it has ended. */
  ended(): Promise<{ code: number; signal: Deno.Signal | null; stdout: string; stderr: string }>;
  /** Ends it, if it has not ended by itself. */
  end(signal?: Deno.Signal): ReturnType<Watched["ended"]>;
}

/** Reads all that a child prints; disposing of this kills it. */
export function watch(child: Deno.ChildProcess): Watched {
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
  const until = async (what: RegExp, name: "stdout" | "stderr" = "stdout") => {
    for (let hasEnded = false;;) {
      const found = what.exec(printed[name]);
      if (found !== null) return found;
      if (hasEnded) throw new Error(`It ended without ${what}: ${printed.stdout}${printed.stderr}`);
      await Promise.race([seen.promise, printing.then(() => hasEnded = true)]);
    }
  };
  const ended = async () => {
    const { code, signal } = await child.status;
    await printing;
    return { code, signal, ...printed };
  };
  const end = (signal?: Deno.Signal) => {
    kill(child, signal);
    return ended();
  };
  return { child, printed, until, ended, end, [Symbol.asyncDispose]: async () => void await end() };
}

/** A process that says in lines what it has to say, and does not outlive this. */
export class Process implements AsyncDisposable {
  readonly #child: Deno.ChildProcess;
  readonly #lines: ReadableStreamDefaultReader<string>;
  readonly #complaint: Promise<string>;

  constructor([command, ...args]: string[]) {
    this.#child = new Deno.Command(command!, {
      args,
      env: { NO_COLOR: "1" },
      stdin: "piped",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    this.#lines = lines(this.#child.stdout).getReader();
    this.#complaint = new Response(this.#child.stderr).text();
  }

  /** The next line it prints. */
  async line(): Promise<string> {
    const { done, value } = await this.#lines.read();
    if (!done) return value;
    const { code } = await this.#child.status;
    const [complaint] = (await this.#complaint).trim().split("\n");
    throw new Error(`it ended with code ${code}${complaint && `: ${complaint}`}`);
  }

  /** The next line as JSON; rejects with the error that it tells of. */
  async result<Result extends { error?: string }>(): Promise<Result> {
    const result: Result = JSON.parse(await this.line());
    if (result.error !== undefined) throw new Error(result.error);
    return result;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    kill(this.#child);
    await this.#child.stdin.close().catch(() => {});
    await this.#lines.cancel().catch(() => {});
    await this.#complaint.catch(() => {});
    await this.#child.status;
  }
}

/** A folder that is gone afterwards, and when this process is interrupted. */
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

/** Puts into a folder what an SSH server and its user need: keys, and a configuration named `config`. */
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
