/**
 * The demonstration, `deno task demo [FILES]`: serves a folder of files over HTTP, fetches them through a tunnel with
 * 100 requests in flight, and checks every byte.
 *
 * There are four processes: this one fetches, one serves the files, and two are the ends of the tunnel, with one TCP
 * connection between them. Every request has a connection of its own, and so a stream of its own.
 *
 * @module
 */
import { serveTunnel, type TunnelEvent, type TunnelStats } from "@sluice/smux/tunnel";
import { createHash } from "node:crypto";

const SMALLEST = 5;
const LARGEST = 20_000_000;
const IN_FLIGHT = 100;

/** A served file. */
interface File {
  name: string;
  size: number;
  /** SHA-256 of the file on disk, in hexadecimal. */
  hash: string;
}

/** A child process that listens. */
interface Listening {
  port: number;
  /** Terminates the process; resolves with its output. */
  end(): Promise<string>;
}

/** Writes files of 5 bytes to 20 MB, the same each time, and hashes them as they are on disk. */
async function makeFiles(count: number, folder: string, signal: AbortSignal): Promise<File[]> {
  const sizes = Array.from({ length: count }, (_, n) => {
    // Sizes grow exponentially; small and large files alternate.
    const rank = n % 2 === 0 ? n / 2 : count - (n + 1) / 2;
    return Math.round(SMALLEST * (LARGEST / SMALLEST) ** (rank / (count - 1)));
  });
  const progress = new Progress("making files", sum(sizes));
  const words = new Uint32Array(Math.ceil(LARGEST / 4));
  const files: File[] = [];
  for (const [n, size] of sizes.entries()) {
    signal.throwIfAborted();
    const name = `${n}.bin`;
    fillRandomly(words.subarray(0, Math.ceil(size / 4)), n + 1);
    await Deno.writeFile(`${folder}/${name}`, new Uint8Array(words.buffer, 0, size));
    const onDisk = await Deno.readFile(`${folder}/${name}`);
    files.push({ name, size, hash: createHash("sha256").update(onDisk).digest("hex") });
    progress.add(size);
  }
  progress.end();
  return files;
}

/** Fills words with random numbers of a seed, by xorshift. */
function fillRandomly(words: Uint32Array, seed: number): void {
  let state = seed;
  for (let at = 0; at < words.length; at++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    words[at] = state;
  }
}

/** Serves the files, in a process of its own. */
function serveFiles(folder: string): void {
  const onListen = ({ hostname, port }: Deno.NetAddr) => console.log(`listening on ${hostname}:${port}`);
  Deno.serve({ hostname: "127.0.0.1", port: 0, onListen }, async (request) => {
    const file = await Deno.open(folder + new URL(request.url).pathname);
    return new Response(file.readable);
  });
}

/** Runs the tunnel's server, in a process of its own; prints its events, and its statistics at the end. */
function serveTarget(target: string): void {
  const server = serveTunnel({ listen: "0", target, onEvent: (event) => console.log(JSON.stringify(event)) });
  console.log(`listening on ${server.serverAddr}`);
  if (Deno.build.os === "windows") return;
  Deno.addSignalListener("SIGTERM", async () => {
    await server.shutdown();
    console.log(JSON.stringify(server.stats()));
    Deno.exit();
  });
}

/** Starts `deno run -A`, and waits until the process listens; shows its error output until `signal` aborts. */
async function start(signal: AbortSignal, script: string, ...args: string[]): Promise<Listening> {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", new URL(script, import.meta.url).href, ...args],
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const forwardingErrors = (async () => {
    for await (const bytes of child.stderr) if (!signal.aborted) Deno.stderr.writeSync(bytes);
  })();
  const listening = Promise.withResolvers<number>();
  let printed = "";
  const reading = (async () => {
    for await (const text of child.stdout.pipeThrough(new TextDecoderStream())) {
      printed += text;
      const port = /^listening on .*:(\d+)$/m.exec(printed)?.[1];
      if (port !== undefined) listening.resolve(Number(port));
    }
    listening.reject(new Error(`${script} ${args[0]} exited before it listened`));
  })();
  const port = await listening.promise;
  const end = async () => {
    try {
      child.kill("SIGTERM");
    } catch {
      // The process has exited already.
    }
    await Promise.all([reading, forwardingErrors, child.status]);
    return printed;
  };
  return { port, end };
}

/** Fetches all files and checks them; resolves with the bytes per second. */
async function fetchAll(what: string, files: File[], port: number, signal: AbortSignal): Promise<number> {
  const total = sum(files.map((file) => file.size));
  const progress = new Progress(what, total);
  using client = Deno.createHttpClient({ poolMaxIdlePerHost: 0 });
  const failures: unknown[] = [];

  async function fetchOne(file: File): Promise<void> {
    const response = await fetch(`http://127.0.0.1:${port}/${file.name}`, { client, signal });
    if (!response.ok) throw new Error(`${file.name}: HTTP status ${response.status}`);
    const hash = createHash("sha256");
    for await (const chunk of response.body!) {
      hash.update(chunk);
      progress.add(chunk.length);
    }
    if (hash.digest("hex") !== file.hash) {
      throw new Error(`${file.name}: SHA-256 differs from that of the file on disk`);
    }
  }

  // All workers share one iterator.
  const waiting = files.values();
  const workers = Array.from({ length: IN_FLIGHT }, async () => {
    for (const file of waiting) await fetchOne(file).catch((error) => failures.push(error));
  });
  await Promise.all(workers);
  const seconds = progress.end();
  signal.throwIfAborted();
  if (failures.length > 0) throw new Error(`${failures.length} of ${files.length} files failed: ${failures[0]}`);
  return total / seconds;
}

/** Shows progress: a bar on a terminal, otherwise a line for each quarter. */
class Progress {
  readonly #what: string;
  readonly #total: number;
  readonly #isTerminal = Deno.stdout.isTerminal();
  readonly #begun = performance.now();
  #done = 0;
  #shown = 0;

  constructor(what: string, total: number) {
    this.#what = what;
    this.#total = total;
    if (this.#isTerminal) this.#draw();
  }

  add(count: number): void {
    this.#done += count;
    if (this.#isTerminal) {
      if (performance.now() - this.#shown > 50) this.#draw();
    } else {
      const quarter = Math.floor(4 * this.#done / this.#total);
      if (quarter > this.#shown && quarter < 4) console.log(`${this.#what}: ${quarter * 25} %`);
      this.#shown = quarter;
    }
  }

  /** Shows the end; returns the duration in seconds. */
  end(): number {
    const seconds = (performance.now() - this.#begun) / 1000;
    if (this.#isTerminal) {
      this.#draw();
      write("\n");
    } else {
      console.log(`${this.#what}: ${megabytes(this.#done)} in ${seconds.toFixed(1)} s`);
    }
    return seconds;
  }

  #draw(): void {
    this.#shown = performance.now();
    const seconds = (this.#shown - this.#begun) / 1000;
    const part = Math.min(1, this.#done / this.#total);
    const bar = "█".repeat(Math.round(part * 25)).padEnd(25, "░");
    const percent = `${Math.floor(part * 100)}`.padStart(3);
    write(`\r${this.#what.padEnd(20)}${bar} ${percent} %  ${megabytes(this.#done)} in ${seconds.toFixed(1)} s  `);
  }
}

function write(text: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(text));
}

function megabytes(bytes: number): string {
  return `${Math.round(bytes / 1e6)} MB`;
}

function sum(numbers: number[]): number {
  return numbers.reduce((sum, number) => sum + number, 0);
}

/** Runs the demonstration, and removes its files and processes at the end. */
async function main(count: number, signal: AbortSignal): Promise<void> {
  await using cleanup = new AsyncDisposableStack();
  const folder = await Deno.makeTempDir({ prefix: "sluice-demo-" });
  cleanup.defer(() => Deno.remove(folder, { recursive: true }));
  const startHere = async (script: string, ...args: string[]) => {
    signal.throwIfAborted();
    const process = await start(signal, script, ...args);
    cleanup.defer(async () => void await process.end());
    return process;
  };
  console.log(`${count} files over HTTP, ${IN_FLIGHT} requests in flight, one TCP connection\n`);

  const files = await makeFiles(count, folder, signal);
  const web = await startHere("demo.ts", "serve-files", folder);
  const server = await startHere("demo.ts", "serve-tunnel", `${web.port}`);
  const client = await startHere("../tunnel.ts", "client", "--forward", "0", "--connect", `${server.port}`);

  const tunnelled = await fetchAll("through the tunnel", files, client.port, signal);
  await client.end();
  const printed = await server.end();
  const direct = await fetchAll("directly", files, web.port, signal);

  // The server printed an event for each client, and its statistics at the end.
  const reports: (TunnelEvent | TunnelStats)[] = printed.match(/^\{.*\}$/gm)?.map((line) => JSON.parse(line)) ?? [];
  const connections = reports.filter((report) => "type" in report && report.type === "connected").length;
  const streams = reports.find((report) => "streams" in report)?.streams ?? "an unknown number";
  const bytes = sum(files.map((file) => file.size));
  console.log(`
files        ${files.length}, of ${SMALLEST} bytes to 20 MB; every SHA-256 is that of the file on disk
bytes        ${bytes.toLocaleString("en")}
streams      ${streams}, counted by the tunnel's server
connections  ${connections} between the two ends of the tunnel, counted by its server
speed        ${megabytes(tunnelled)}/s through the tunnel, ${megabytes(direct)}/s directly: ratio ${
    (tunnelled / direct).toFixed(2)
  }`);
  if (connections !== 1) {
    throw new Error(`expected 1 connection between the tunnel's client and server, counted ${connections}`);
  }
}

const [what = "400", argument = ""] = Deno.args;
if (what === "serve-files") {
  serveFiles(argument);
} else if (what === "serve-tunnel") {
  serveTarget(argument);
} else if (!/^([2-9]|[1-9]\d+)$/.test(what)) {
  console.error("usage: deno task demo [FILES], a number of at least 2");
  Deno.exitCode = 2;
} else {
  const interrupted = new AbortController();
  const interrupt = () => interrupted.abort();
  const signals: Deno.Signal[] = Deno.build.os === "windows" ? ["SIGINT"] : ["SIGINT", "SIGTERM"];
  for (const signal of signals) Deno.addSignalListener(signal, interrupt);
  try {
    await main(Number(what), interrupted.signal);
  } catch (error) {
    const message = interrupted.signal.aborted ? "interrupted" : error instanceof Error ? error.message : String(error);
    console.error(`\n${message}`);
    Deno.exitCode = interrupted.signal.aborted ? 130 : 1;
  } finally {
    for (const signal of signals) Deno.removeSignalListener(signal, interrupt);
  }
}
