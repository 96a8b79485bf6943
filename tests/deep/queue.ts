/**
 * Sluice over a slow link with a long queue: what an upload costs an echo beside it on the same session, and how much of
 * the link it uses. The link is the kernel's, in a network namespace; client and server are two processes, and the cells
 * take turns in every round.
 *
 * @module
 */

import { conditions, fixed, machine, median, percentile, spread, table as markdown } from "../stats.ts";
import { makeFolder } from "../programs.ts";
import { KINDS, makeLink } from "./queue/namespaces.ts";
import type { Plan } from "./shared/end.ts";
import {
  buildGoEnd,
  type Cell,
  failures,
  inRounds,
  type Outcome as AnyOutcome,
  type Outcomes,
  possible,
  rateBetween,
  ratios,
  runEnds,
  throwOurs,
  verdict,
} from "./shared/ends.ts";
import { anyText, integer, names, oneOf, parse } from "./shared/options.ts";

const KEYS = ["bare", "ours2", "ours1", "go2", "bareDown", "ours2Down"] as const;

/** What it does. */
export const description = "An echo beside an upload, on a link of 10 Mbit/s with a queue of 400 ms, as root: " +
  "[--rounds 5] [--only bare,ours2] [--link lo|veth] [--json FILE]";

const QUEUE = ["tbf", "rate", "10mbit", "burst", "100k", "latency", "400ms"];
const SIZE = 100;
// Milliseconds: TCP has found the rate of the link, and what is measured after it.
const WARM = 3000;
const TIME = 7000;
// What must be kept of the rate of a bare socket, and by what an echo beside it may be exceeded.
const ENOUGH = 0.95;
const NO_HIGHER = 1;

const UP = "bare sockets, upload";
const DOWN = "bare sockets, download";
const DOWNLOAD: Partial<Plan> = { sender: "server" };

const CELLS: Record<typeof KEYS[number], Cell> = {
  bare: { name: UP, peer: "bare", plan: {} },
  ours2: { name: "ours v2, upload", peer: "ours2", plan: {}, beside: UP },
  ours1: { name: "ours v1, upload", peer: "ours1", plan: {}, beside: UP },
  go2: { name: "Go's v2 to ours, upload", peer: "go2", server: "ours2", plan: {}, beside: UP },
  bareDown: { name: DOWN, peer: "bare", plan: DOWNLOAD },
  ours2Down: { name: "ours v2, download", peer: "ours2", plan: DOWNLOAD, beside: DOWN },
};

/** What a cell gave in one round. */
interface Outcome extends AnyOutcome {
  /** Milliseconds of the echo in the middle, and of the one that 95 % do not exceed. */
  echo?: number;
  slow?: number;
}

/** Runs it; rejects when bytes were wrong or a cell hangs. */
export async function run(args: string[]): Promise<void> {
  const { rounds, only, link: [kind = KINDS[0]], json } = parse(args, {
    rounds: integer(5, 1),
    only: names(KEYS),
    link: oneOf(KINDS),
    json: anyText,
  });
  try {
    await using _ = await makeLink(kind, "client", QUEUE);
  } catch (error) {
    console.log(`Skipped, which is not passed: ${error instanceof Error ? error.message.trim() : error}`);
    return;
  }
  await using folder = await makeFolder("queue");
  const go = only.includes("go2") ? await buildGoEnd(folder.path) : undefined;
  const cells = possible(only.map((key) => CELLS[key]), go);
  const outcomes: Outcomes<Outcome> = await inRounds(cells, rounds, (cell) => measure(cell, kind, go));
  const where = machine();
  const tcp = await congestionControl();
  console.log(conditions(where, rounds));
  console.log(`The link: ${kind}, ${QUEUE.join(" ")}; TCP with ${tcp}`);
  console.log(`\n${table(cells, outcomes)}\n`);
  for (const line of verdicts(cells, outcomes)) console.log(line);
  if (json !== undefined) {
    const results = Object.fromEntries(outcomes);
    await Deno.writeTextFile(json, JSON.stringify({ machine: where, rounds, link: kind, tcp, results }));
  }
  throwOurs(cells, outcomes);
}

/** What TCP finds the rate of a link with: how many of its bytes stand in a queue depends on that. */
async function congestionControl(): Promise<string> {
  return (await Deno.readTextFile("/proc/sys/net/ipv4/tcp_congestion_control")).trim();
}

async function measure(cell: Cell, kind: typeof KINDS[number], go?: string): Promise<Outcome> {
  // Each cell has a link of its own: the kernel remembers what a connection was like.
  await using link = await makeLink(kind, cell.plan.sender ?? "client", QUEUE);
  const plan: Plan = {
    echo: SIZE,
    sender: "client",
    streams: 1,
    unread: 0,
    time: WARM + TIME,
    hostname: link.hostname,
    port: 0,
    ...cell.plan,
  };
  const { client, server } = await runEnds(cell, plan, { go, at: link.at });
  const rate = rateBetween((plan.sender === "client" ? server : client).samples!, WARM, WARM + TIME);
  const echoes = client.echoes!.filter(([at]) => at >= WARM).map(([, time]) => time);
  if (echoes.length === 0) throw new Error(`no echo was asked for after ${WARM} ms`);
  return { rate, echo: median(echoes), slow: percentile(echoes, 0.95) };
}

const ofRate = ({ rate }: Outcome) => rate;
const ofEcho = ({ echo }: Outcome) => echo;

function table(cells: Cell[], outcomes: Outcomes<Outcome>): string {
  const rows = [["", "MB/s", "of bare", "echo, ms", "of bare", "p95, ms"]];
  for (const { name, beside } of cells) {
    const given = outcomes.get(name)!;
    const all = (figure: "rate" | "echo" | "slow") => given.flatMap((outcome) => outcome[figure] ?? []);
    rows.push([
      name,
      failures(given) ?? spread(all("rate").map((rate) => rate / 1e6), fixed(3)),
      spread(ratios(outcomes, name, beside, ofRate), fixed(3)),
      spread(all("echo"), fixed(1)),
      spread(ratios(outcomes, name, beside, ofEcho), fixed(2)),
      spread(all("slow"), fixed(1)),
    ]);
  }
  return `${markdown(rows)}

The median of the rounds, in brackets the least and the most. MB/s: over ${TIME / 1000} s, from ${
    WARM / 1000
  } s after the first byte; every byte
was compared. echo: the median of ${SIZE} bytes to the other end and back in that time, on another stream of the same session;
of bare sockets, on another socket. of bare: in the same round.`;
}

function verdicts(cells: Cell[], outcomes: Outcomes<Outcome>): string[] {
  return cells.filter(({ beside }) => beside !== undefined).flatMap(({ name, beside }) => [
    `${name}: the echo no higher than of ${beside}: ${
      verdict(ratios(outcomes, name, beside, ofEcho), (ratio) => ratio <= NO_HIGHER, fixed(2))
    }`,
    `${name}: at least ${ENOUGH} of the rate of ${beside}: ${
      verdict(ratios(outcomes, name, beside, ofRate), (ratio) => ratio >= ENOUGH, fixed(3))
    }`,
  ]);
}
