/**
 * Measures Sluice over a slow link with a long queue: the delay of an echo during an upload on the same session, and
 * the use of the link. The kernel shapes the link in a network namespace; client and server are two processes, and the
 * cells run in interleaved rounds.
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

/** One line for the list of long tests. */
export const description = "An echo during an upload, on a link of 10 Mbit/s with a queue of 400 ms, as root: " +
  "[--rounds 5] [--only bare,ours2] [--link lo|veth] [--json FILE]";

const QUEUE = ["tbf", "rate", "10mbit", "burst", "100k", "latency", "400ms"];
const SIZE = 100;
// Milliseconds of warm-up, in which TCP finds the rate of the link, and of measurement.
const WARM = 3000;
const TIME = 7000;
// Minimum ratio of the rate to a bare socket's, and maximum ratio of the echo's duration.
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

/** The result of a cell in one round. */
interface Outcome extends AnyOutcome {
  /** Duration of an echo in milliseconds: median and 95th percentile. */
  echo?: number;
  slow?: number;
}

/** Runs the cells; rejects if bytes are wrong or a cell hangs. */
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
    console.log(`Skipped, not passed: ${error instanceof Error ? error.message.trim() : error}`);
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

/** Returns TCP's congestion control, which determines how far TCP fills the queue. */
async function congestionControl(): Promise<string> {
  return (await Deno.readTextFile("/proc/sys/net/ipv4/tcp_congestion_control")).trim();
}

async function measure(cell: Cell, kind: typeof KINDS[number], go?: string): Promise<Outcome> {
  // Each cell has a link of its own: the kernel caches metrics of earlier connections.
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
  if (echoes.length === 0) throw new Error(`no echo was requested after ${WARM} ms`);
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

Median of the rounds, with minimum and maximum in brackets. MB/s: over ${TIME / 1000} s, from ${
    WARM / 1000
  } s after the first byte; every byte
was checked. echo: median round trip of ${SIZE} bytes in that time, on another stream of the session (bare: on another
socket). of bare: ratio to bare sockets in the same round.`;
}

function verdicts(cells: Cell[], outcomes: Outcomes<Outcome>): string[] {
  return cells.filter(({ beside }) => beside !== undefined).flatMap(({ name, beside }) => [
    `${name}: echo at most that of ${beside}: ${
      verdict(ratios(outcomes, name, beside, ofEcho), (ratio) => ratio <= NO_HIGHER, fixed(2))
    }`,
    `${name}: rate at least ${ENOUGH} of ${beside}: ${
      verdict(ratios(outcomes, name, beside, ofRate), (ratio) => ratio >= ENOUGH, fixed(3))
    }`,
  ]);
}
