/**
 * Compares Sluice with its peers: client and server in two processes over loopback TCP, every workload in interleaved
 * rounds, so that load on the machine affects all peers alike.
 *
 * @module
 */

import { buildGoPeers, canTie, cell, type Cores, type GoPeers } from "../../bench/peers/cell.ts";
import { chart, type Report, type Row, text } from "../../bench/peers/report.ts";
import type { Plan, Result } from "../../bench/peers/shape.ts";
import { machine } from "../stats.ts";
import { makeFolder } from "../programs.ts";
import { anyText, integer, names, parse } from "./shared/options.ts";
import { progress } from "./shared/program.ts";

/** One line for the list of long tests. */
export const description =
  "The speed of every workload, compared with bare sockets and other multiplexers: [--rounds 5] " +
  "[--only W1,W3] [--peers ours2,go2] [--json FILE] [--chart FILE] [--from FILE]";

const BARE = "bare";
const PEERS: Record<string, string> = {
  bare: "a bare Deno socket for each stream",
  ours1: "Sluice, smux version 1",
  ours2: "Sluice, smux version 2",
  floor: "the smallest program that carries streams in JavaScript, without credit, limits or errors",
  locked1: "Sluice, smux version 1, its acceptors behind a lock",
  locked2: "Sluice, smux version 2, its acceptors behind a lock",
  go1: "Go's xtaci/smux, version 1",
  go2: "Go's xtaci/smux, version 2",
  goyamux: "Go's hashicorp/yamux",
  yamux: "@libp2p/yamux 8.0.3",
  mplex: "@libp2p/mplex 12.0.32",
  yamuxjs: "yamux-js 0.2.0",
  http2: "Deno's node:http2",
  http2w: "Deno's node:http2 with windows of 16 MiB",
};
// The peers in the chart, with their labels.
const CHARTED: Record<string, string> = {
  ours1: "Sluice, v1",
  ours2: "Sluice, v2",
  go1: "Go smux, v1",
  go2: "Go smux, v2",
  goyamux: "Go yamux",
  yamux: "@libp2p/yamux",
  mplex: "@libp2p/mplex",
  yamuxjs: "yamux-js",
  http2w: "node:http2",
};
const OURS = ["ours1", "ours2"];
const LOCKED = ["locked1", "locked2"];
const ONE_CORE: Cores = { client: 0, server: 0 };
const TWO_CORES: Cores = { client: 0, server: 1 };

/** A workload: the plan of both processes, the peers that support it, and the cores. */
interface Workload extends Row {
  plan: Partial<Plan>;
  /** The peers that run it (default: all, except those behind a lock). */
  peers?: string[];
  /** The cores to which the processes are pinned. */
  cores?: Cores;
  /** Turns of each peer, by the number of rounds (default: equal). */
  turns?: (rounds: number) => number;
}

const TO_BARE = Object.fromEntries(
  Object.keys(PEERS).filter((peer) => peer !== BARE && !LOCKED.includes(peer)).map((peer) => [peer, BARE]),
);
const bulk = (streams: number, size: number, how: Partial<Plan> = {}) => ({
  unit: "MB/s" as const,
  figures: ["rate" as const],
  plan: { kind: "bulk" as const, streams, size, ...how },
  against: TO_BARE,
});
const EAGER = { eager: true };
const ALONE = [BARE, ...OURS];
/** A workload whose callers let microtasks pass between two calls. */
const spending = (name: string, size: number) =>
  [4, 8, 16, 32].map((microtasks): Workload => ({
    name: `${name}@${microtasks}`,
    what: `${name}, ${microtasks} microtasks between two calls`,
    ...bulk(1, size, { microtasks }),
    peers: ALONE,
  }));
/** A workload over web streams: with `pipeTo`, and with a reader and a writer. */
const overWebStreams = (name: string, what: string, streams: number, size: number): Workload[] => [
  { name: `${name}w`, what: `${what}, pipeTo at both ends`, ...bulk(streams, size, { web: "pipe" }), peers: ALONE },
  {
    name: `${name}l`,
    what: `${what}, getWriter() and getReader()`,
    ...bulk(streams, size, { web: "locked" }),
    peers: ALONE,
  },
];

/** For short workloads, which vary more. */
const twice = (rounds: number) => 2 * rounds;

const accepting = (acceptors: number): Workload => ({
  name: `W0/${acceptors}`,
  what: `100 000 streams, ${acceptors} acceptor${acceptors === 1 ? "" : "s"}`,
  figures: ["rate"],
  plan: { kind: "accept", streams: 256, messages: 100_000, acceptors },
  peers: [...OURS, ...LOCKED],
  against: { ours1: "locked1", ours2: "locked2" },
  turns: twice,
});

// Pinned to a core, a process competes with its own JIT compiler at first: a longer run keeps that out of p99.
const pingPong = (name: string, where: string, cores?: Cores): Workload => ({
  name,
  what: `ping-pong 64 B${where}`,
  figures: ["p50", "p99"],
  plan: { kind: "echo", warm: 100, time: cores === undefined ? 250 : 4000 },
  against: TO_BARE,
  ...cores && { cores },
});

/** A workload that measures memory, in two rounds at most, because memory hardly varies between rounds. */
const memory = (name: string, what: string, plan: Partial<Plan>): Workload => ({
  name,
  what,
  figures: ["resident", "heap"],
  plan,
  against: TO_BARE,
  turns: (rounds) => Math.min(rounds, 2),
});

const WORKLOADS: Workload[] = [
  ...[1, 8, 64].map(accepting),
  { name: "W1", what: "1 stream, 64 KiB writes", ...bulk(1, 65536), isCharted: true },
  ...spending("W1", 65536),
  ...overWebStreams("W1", "1 stream, 64 KiB chunks", 1, 65536),
  { name: "W2", what: "100 streams, 64 KiB writes", ...bulk(100, 65536), isCharted: true },
  ...overWebStreams("W2", "100 streams, 64 KiB chunks", 100, 65536),
  { name: "W3", what: "1 stream, 1 KiB writes", ...bulk(1, 1024), isCharted: true },
  { name: "W3t", what: "1 stream, 1 KiB, tryWrite first", ...bulk(1, 1024, EAGER), peers: ALONE },
  ...spending("W3", 1024),
  ...overWebStreams("W3", "1 stream, 1 KiB chunks", 1, 1024),
  { name: "W4", what: "100 streams, 1 KiB writes", ...bulk(100, 1024), isCharted: true },
  { name: "W4t", what: "100 streams, 1 KiB, tryWrite first", ...bulk(100, 1024, EAGER), peers: ALONE },
  ...overWebStreams("W4", "100 streams, 1 KiB chunks", 100, 1024),
  ...[1, 100].map((streams): Workload => ({
    name: `W10/${streams}`,
    what: `a download through two joins, ${streams} connection${streams === 1 ? "" : "s"}`,
    ...bulk(streams, 65536, { kind: "join" }),
    peers: ALONE,
  })),
  // The scheduler wakes a waiting process on the other's core or on an idle one, at random for each pair of processes,
  // and that dominates the round trip: measure both placements too.
  pingPong("W5", ""),
  pingPong("W5/1", ", both processes on one core", ONE_CORE),
  pingPong("W5/2", ", each process on a core of its own", TWO_CORES),
  {
    name: "W6s",
    what: "open, 64 B echo, close: one by one",
    figures: ["rate"],
    plan: { kind: "churn" },
    against: TO_BARE,
    isCharted: true,
  },
  {
    name: "W6c",
    what: "open, echo, close: 100 in flight",
    figures: ["rate"],
    plan: { kind: "churn", streams: 100 },
    against: TO_BARE,
    isCharted: true,
  },
  memory("W7", "one of 10 000 idle streams", { kind: "streams", streams: 10_000 }),
  {
    name: "W8",
    what: "200 × 10 streams, 16 KiB echo",
    figures: ["rate"],
    plan: { kind: "echo", connections: 200, streams: 10, size: 16384, messages: 24 },
    against: TO_BARE,
    isCharted: true,
  },
  memory("W9", "one of 1000 idle sessions", { kind: "sessions", connections: 1000 }),
];

const DEFAULTS: Plan = {
  kind: "bulk",
  connections: 1,
  streams: 1,
  size: 64,
  eager: false,
  microtasks: 0,
  messages: 0,
  acceptors: 1,
  warm: 250,
  time: 600,
  port: 0,
};

/** Runs the comparison; rejects if a cell of Sluice fails. */
export async function run(args: string[]): Promise<void> {
  const { rounds, only, peers, json, chart: picture, from } = parse(args, {
    rounds: integer(5, 1),
    only: names(WORKLOADS.map(({ name }) => name)),
    peers: names(Object.keys(PEERS)),
    json: anyText,
    chart: anyText,
    from: anyText,
  });
  const chosen = WORKLOADS.filter(({ name }) => only.includes(name));
  const report: Report = from === undefined
    ? await measureAll(chosen, peers, rounds)
    : JSON.parse(await Deno.readTextFile(from));
  const shown = Object.fromEntries(
    Object.entries(PEERS).filter(([peer]) => [...peers, BARE, ...LOCKED].includes(peer)),
  );
  console.log(text(report, chosen, shown));
  if (json !== undefined) await Deno.writeTextFile(json, JSON.stringify(report));
  if (picture !== undefined) await Deno.writeTextFile(picture, chart(report, chosen, CHARTED));

  for (const [workload, byPeer] of Object.entries(report.results)) {
    for (const peer of [...OURS, ...LOCKED]) {
      const failed = byPeer[peer]?.find(({ error }) => error !== undefined);
      if (failed !== undefined) throw new Error(`A cell of Sluice failed: ${workload}, ${peer}: ${failed.error}`);
    }
  }
}

/** Builds the Go peers in a temporary folder and measures all workloads that can run here. */
async function measureAll(chosen: Workload[], peers: string[], rounds: number): Promise<Report> {
  await using folder = await makeFolder("peers");
  const go = await buildGoPeers(folder.path);
  const missing = go?.missing ?? ["go", "its packages"];
  if (missing.length > 0) console.error(`Skipping Go's peers: missing ${missing.join(", ")}`);
  const there = peers.filter((peer) => !peer.startsWith("go") || go?.names.includes(peer));
  const isTied = await canTie();
  if (!isTied) console.error("Skipping workloads pinned to cores: needs taskset and two cores");
  const workloads = chosen.filter(({ cores }) => cores === undefined || isTied);
  return { machine: machine(), rounds, results: await measure(workloads, there, rounds, go) };
}

async function measure(
  chosen: Workload[],
  peers: string[],
  rounds: number,
  go: GoPeers | undefined,
): Promise<Report["results"]> {
  const results: Report["results"] = {};
  for (const workload of chosen) {
    const { name, against } = workload;
    const wanted = new Set([...peers, ...peers.flatMap((peer) => against[peer] ?? [])]);
    const able = (workload.peers ?? Object.keys(TO_BARE).concat(BARE)).filter((peer) => wanted.has(peer));
    const byPeer: Record<string, Result[]> = Object.fromEntries(able.map((peer) => [peer, []]));
    if (able.length > 0) results[name] = byPeer;
    const turns = workload.turns?.(rounds) ?? rounds;
    for (let turn = 0; turn < turns; turn++) {
      for (let n = 0; n < able.length; n++) {
        const peer = able[(turn + n) % able.length]!;
        const mine = byPeer[peer]!;
        // Skip a peer that failed before: it may hang again. Sluice always runs.
        if (mine.at(-1)?.error !== undefined && !OURS.includes(peer)) continue;
        progress(`${name} turn ${turn + 1} of ${turns}: ${peer}`);
        const plan = { ...DEFAULTS, ...workload.plan };
        // A bare socket has no tryWrite().
        if (peer === BARE) plan.eager = false;
        mine.push(await cell(peer, plan, workload.cores, go));
      }
    }
  }
  progress();
  return results;
}
