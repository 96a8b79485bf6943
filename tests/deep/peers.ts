/**
 * Sluice beside its peers: client and server in two processes over TCP on the loopback, every workload in rounds in
 * which each peer has its turn, so that a busy machine is busy for all.
 *
 * @module
 */

import { deadline } from "@std/async";
import type { Plan, Result } from "../../bench/peers/shape.ts";

/** What it does. */
export const description =
  "The speed of every workload beside a bare socket and Go's smux: [--rounds 5] [--only W1,W3] [--json FILE]";

const GO_PATH = "/usr/share/gocode";
const BENCH = new URL("../../bench/peers/", import.meta.url).pathname;
const YARDSTICK = "bare";
const PEERS = [YARDSTICK, "ours1", "ours2", "go1", "go2"];
const OURS = ["ours1", "ours2"];
// A cell takes about a second; the bound is for one that hangs, in milliseconds.
const BOUND = 20_000;

type Figure = "rate" | "p50" | "p99" | "resident" | "heap";

/** A workload: what both processes do, which figures they give, and which peers can do it. */
interface Workload {
  name: string;
  what: string;
  plan: Partial<Plan>;
  figures: Figure[];
  peers?: string[];
}

const bulk = (streams: number, size: number, eager = false): Partial<Plan> => ({ kind: "bulk", streams, size, eager });

const WORKLOADS: Workload[] = [
  { name: "W1", what: "1 stream, 64 KiB writes", plan: bulk(1, 65536), figures: ["rate"] },
  { name: "W2", what: "100 streams, 64 KiB writes", plan: bulk(100, 65536), figures: ["rate"] },
  { name: "W3", what: "1 stream, 1 KiB writes", plan: bulk(1, 1024), figures: ["rate"] },
  { name: "W3t", what: "the same, tryWrite first", plan: bulk(1, 1024, true), figures: ["rate"], peers: OURS },
  { name: "W4", what: "100 streams, 1 KiB writes", plan: bulk(100, 1024), figures: ["rate"] },
  { name: "W4t", what: "the same, tryWrite first", plan: bulk(100, 1024, true), figures: ["rate"], peers: OURS },
  { name: "W5", what: "ping-pong 64 B", plan: { kind: "echo" }, figures: ["p50", "p99"] },
  { name: "W6s", what: "open, 64 B echo, close: one by one", plan: { kind: "churn" }, figures: ["rate"] },
  { name: "W6c", what: "the same, 100 in flight", plan: { kind: "churn", streams: 100 }, figures: ["rate"] },
  {
    name: "W7",
    what: "one of 10 000 idle streams",
    plan: { kind: "streams", streams: 10_000 },
    figures: ["resident", "heap"],
  },
  {
    name: "W8",
    what: "200 × 10 streams, 16 KiB echo",
    plan: { kind: "echo", connections: 200, streams: 10, size: 16384, messages: 8 },
    figures: ["rate"],
  },
  {
    name: "W9",
    what: "one of 1000 idle sessions",
    plan: { kind: "sessions", connections: 1000 },
    figures: ["resident", "heap"],
  },
];

const DEFAULTS: Plan = {
  kind: "bulk",
  connections: 1,
  streams: 1,
  size: 64,
  eager: false,
  messages: 0,
  warm: 250,
  time: 600,
  port: 0,
};

/** Runs it; rejects when one of our own cells fails. */
export async function run(args: string[]): Promise<void> {
  const option = (name: string) => args.includes(name) ? args[args.indexOf(name) + 1] : undefined;
  const rounds = Number(option("--rounds") ?? 5);
  if (!(Number.isInteger(rounds) && rounds >= 1)) {
    throw new RangeError(`--rounds must be an integer of at least 1, received ${option("--rounds")}`);
  }
  const only = option("--only")?.split(",");
  const unknown = only?.find((name) => !WORKLOADS.some((workload) => workload.name === name));
  if (unknown !== undefined) throw new RangeError(`--only must name workloads, received ${unknown}`);
  const chosen = WORKLOADS.filter(({ name }) => only?.includes(name) ?? true);

  const folder = await Deno.makeTempDir({ prefix: "sluice-peers-" });
  const interrupted = () => {
    // The processes end with their standard input.
    Deno.removeSync(folder, { recursive: true });
    Deno.exit(1);
  };
  for (const signal of ["SIGINT", "SIGTERM"] as const) Deno.addSignalListener(signal, interrupted);
  try {
    const go = await build(folder);
    if (go === undefined) {
      console.log("Without Go's columns: apt-get install golang-go golang-github-xtaci-smux-dev");
    }
    const peers = PEERS.filter((peer) => go !== undefined || !peer.startsWith("go"));
    const results = await measure(chosen, peers, rounds, go);
    const machine = `Deno ${Deno.version.deno}, ${Deno.build.os}, ${navigator.hardwareConcurrency} cores`;
    console.log(`${machine}, ${rounds} round${rounds === 1 ? "" : "s"}\n\n${table(results, chosen, peers)}`);
    const file = option("--json");
    if (file !== undefined) {
      await Deno.writeTextFile(file, JSON.stringify({ machine, rounds, results: Object.fromEntries(results) }));
    }
    const failed = Array.from(results.values(), (byPeer) => OURS.flatMap((peer) => byPeer[peer] ?? [])).flat()
      .find(({ error }) => error !== undefined);
    if (failed !== undefined) throw new Error(`A cell of ours failed: ${failed.error}`);
  } finally {
    for (const signal of ["SIGINT", "SIGTERM"] as const) Deno.removeSignalListener(signal, interrupted);
    await Deno.remove(folder, { recursive: true });
  }
}

/** What every peer gave for a workload, one of each round. */
type Results = Map<string, Record<string, Result[]>>;

async function measure(chosen: Workload[], peers: string[], rounds: number, go?: string): Promise<Results> {
  const results: Results = new Map();
  for (const workload of chosen) {
    const able = peers.filter((peer) => peer === YARDSTICK || (workload.peers?.includes(peer) ?? true));
    const byPeer: Record<string, Result[]> = Object.fromEntries(able.map((peer) => [peer, []]));
    results.set(workload.name, byPeer);
    for (let round = 0; round < rounds; round++) {
      for (let n = 0; n < able.length; n++) {
        const peer = able[(round + n) % able.length]!;
        if (Deno.stderr.isTerminal()) {
          Deno.stderr.writeSync(new TextEncoder().encode(`\r${workload.name} round ${round + 1}: ${peer}\x1b[K`));
        }
        const plan = { ...DEFAULTS, ...workload.plan };
        // What cannot be taken at once is no way of the bare socket.
        if (peer === YARDSTICK) plan.eager = false;
        byPeer[peer]!.push(await cell(peer, plan, go));
      }
    }
  }
  if (Deno.stderr.isTerminal()) Deno.stderr.writeSync(new TextEncoder().encode("\r\x1b[K"));
  return results;
}

/** Runs one cell in two processes; whatever goes wrong is its result. */
async function cell(peer: string, plan: Plan, go?: string): Promise<Result> {
  const processes: Process[] = [];
  const start = (role: "client" | "server", plan: Plan) => {
    const process = new Process(role, peer, plan, go);
    processes.push(process);
    return process;
  };
  const work = async (): Promise<Result> => {
    const server = start("server", plan);
    const port = Number(await server.line());
    const client = start("client", { ...plan, port });
    if (plan.kind !== "bulk") return JSON.parse(await client.line());
    const both = [server.result(), client.result()] as const;
    // A side that fails may leave the other waiting.
    const [received, sent] = await Promise.all(both);
    if (received.bytes !== sent.bytes) throw new Error(`lost data: ${received.bytes} of ${sent.bytes} bytes arrived`);
    return received;
  };
  try {
    const result = await deadline(work(), BOUND);
    if (result.error !== undefined) throw new Error(result.error);
    return result;
  } catch (error) {
    const hangs = error instanceof DOMException && error.name === "TimeoutError";
    return { error: hangs ? "hangs" : error instanceof Error ? error.message : `${error}` };
  } finally {
    for (const process of processes) await process.end();
  }
}

/** One end of a cell. */
class Process {
  readonly #child: Deno.ChildProcess;
  readonly #lines: ReadableStreamDefaultReader<string>;
  #rest = "";

  constructor(role: string, peer: string, plan: Plan, go?: string) {
    const json = JSON.stringify(plan);
    const [command, args] = peer.startsWith("go")
      ? [go!, [role, peer.slice(2), json]]
      : [Deno.execPath(), ["run", "-A", "--v8-flags=--expose-gc", `${BENCH}end.ts`, role, peer, json]];
    this.#child = new Deno.Command(command, { args, stdin: "piped", stdout: "piped", stderr: "inherit" }).spawn();
    this.#lines = this.#child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  }

  /** The next line it prints. */
  async line(): Promise<string> {
    for (;;) {
      const end = this.#rest.indexOf("\n");
      if (end >= 0) {
        const line = this.#rest.slice(0, end);
        this.#rest = this.#rest.slice(end + 1);
        return line;
      }
      const { done, value } = await this.#lines.read();
      if (done) throw new Error(`it ended with code ${(await this.#child.status).code}`);
      this.#rest += value;
    }
  }

  async result(): Promise<Result> {
    const result: Result = JSON.parse(await this.line());
    if (result.error !== undefined) throw new Error(result.error);
    return result;
  }

  async end(): Promise<void> {
    try {
      this.#child.kill("SIGKILL");
    } catch {
      // It has ended by itself.
    }
    await this.#child.stdin.close().catch(() => {});
    await this.#lines.cancel().catch(() => {});
    await this.#child.status;
  }
}

/** Builds the Go peer in `folder`; `undefined` without Go or its smux. */
async function build(folder: string): Promise<string | undefined> {
  const go = `${folder}/peer`;
  try {
    await Deno.stat(`${GO_PATH}/src/github.com/xtaci/smux/mux.go`);
    const { success, stderr } = await new Deno.Command("go", {
      args: ["build", "-o", go, `${BENCH}peer.go`],
      env: { GO111MODULE: "off", GOFLAGS: "", GOPATH: GO_PATH, GOCACHE: `${folder}/cache` },
      stdin: "null",
      stdout: "null",
      stderr: "piped",
    }).output();
    if (!success) throw new Error(`go build: ${new TextDecoder().decode(stderr)}`);
    return go;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}

function table(results: Results, chosen: Workload[], peers: string[]): string {
  const others = peers.filter((peer) => peer !== YARDSTICK);
  const rows = [["", "workload", "figure", YARDSTICK, ...others]];
  for (const { name, what, figures } of chosen) {
    const byPeer = results.get(name)!;
    const yardstick = byPeer[YARDSTICK]!;
    for (const figure of figures) {
      const inBytes = figure === "resident" || figure === "heap";
      const absolute = show(yardstick, (result) => result[figure], (value) => unit(figure, value, name));
      rows.push([
        name,
        what,
        inBytes ? `${figure}, each` : figure === "rate" ? "ratio" : `${figure}, ratio`,
        absolute,
        ...others.map((peer) =>
          show(
            byPeer[peer] ?? [],
            (result, round) => inBytes ? result[figure] : result[figure]! / yardstick[round]![figure]!,
            (value) => inBytes ? unit(figure, value, name) : value.toFixed(value < 10 ? 2 : 1),
          )
        ),
      ]);
    }
  }
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  const lines = rows.map((row) => `| ${row.map((text, column) => text.padEnd(widths[column]!)).join(" | ")} |`);
  lines.splice(1, 0, `| ${widths.map((width) => "-".repeat(width)).join(" | ")} |`);
  return `${lines.join("\n")}

${YARDSTICK}: the median of its figure. The others: the median of the ratio to ${YARDSTICK} in the same round, or of the bytes.
In brackets the least and the most. ratio: more is better; of latencies and bytes, less.`;
}

/** The median of what rounds gave, and least to most; or what went wrong in one. */
function show(results: Result[], value: (result: Result, round: number) => number | undefined, text: Format): string {
  if (results.length === 0) return "";
  const failed = results.filter(({ error }) => error !== undefined);
  if (failed.length > 0) return `${failed[0]!.error} (${failed.length} of ${results.length} rounds)`;
  const values = results.map((result, round) => value(result, round) ?? NaN).sort((a, b) => a - b);
  if (values.some(Number.isNaN)) return "nothing to compare with";
  const median = (values[(values.length - 1) >> 1]! + values[values.length >> 1]!) / 2;
  if (values.length === 1) return text(median);
  return `${text(median)} (${text(values[0]!)}–${text(values.at(-1)!)})`;
}

type Format = (value: number) => string;

function unit(figure: Figure, value: number, workload: string): string {
  if (figure === "p50" || figure === "p99") return `${(value * 1000).toFixed(0)} µs`;
  if (figure !== "rate") return `${(value / 1024).toFixed(2)} KiB`;
  return /^W[1-4]/.test(workload) ? `${(value / 1e6).toFixed(0)} MB/s` : `${value.toFixed(0)}/s`;
}
