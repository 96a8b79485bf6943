/**
 * Measures Sluice over a link with delay: client, link and server are three processes, and the cells run in interleaved
 * rounds. `latency/link.ts` simulates the link.
 *
 * @module
 */

import { INITIAL_WINDOW } from "../../_window.ts";
import { conditions, fixed, machine, median, spread, table as markdown } from "../stats.ts";
import { makeFolder } from "../programs.ts";
import type { Plan } from "./shared/end.ts";
import {
  buildGoEnd,
  type Cell as AnyCell,
  failures,
  inRounds,
  type Outcome as AnyOutcome,
  type Outcomes,
  possible,
  rateBetween,
  ratios,
  runEnds,
  startDeno,
  throwOurs,
  verdict,
} from "./shared/ends.ts";
import { anyText, integer, parse } from "./shared/options.ts";

/** One line for the list of long tests. */
export const description =
  "The speed over 50 ms and 1 Gbit/s, compared with a bare socket and Go's smux: [--rounds 5] [--json FILE]";

const ROUND_TRIP = 50;
const BITS_PER_SECOND = 1e9;
const ENOUGH = 0.9;
// Warm-up and measurement in milliseconds. TCP needs one round trip, since the link drops no data; windows need more.
const WARM = 2000;
const TIME = 3000;
// Over the first FIRST milliseconds, one stream must reach this ratio to a bare socket's rate.
const FIRST = 5000;
const FIRST_ENOUGH = 0.93;
// Milliseconds within which a stream must reach ENOUGH of a bare socket's rate: the first stream, and a later one.
const FIRST_START = 350;
const NEXT_START = 3 * ROUND_TRIP;
// Time for measuring round trips, in milliseconds.
const ECHO_TIME = 1200;
const BUSY = 100;
const UNREAD = 31;

/** A configuration to measure, and its bounds. */
interface Cell extends AnyCell {
  /** Whether the ends are connected without a link. */
  isNear?: boolean;
  /** Whether its ratio must be at least {@linkcode ENOUGH}. */
  isPromised?: boolean;
  /** Whether its rate over {@linkcode FIRST} must be at least {@linkcode FIRST_ENOUGH} of a bare socket's. */
  startsWell?: boolean;
  /** Milliseconds within which it must reach {@linkcode ENOUGH} of a bare socket's rate. */
  startsWithin?: number;
}

const FORTH = "bare socket, client sends";
const BACK = "bare socket, server sends";
const MANY = `ours v2, ${BUSY} streams`;
const MANY_NEAR = `no link: ours v2, ${BUSY} streams`;
const GO_2 = "Go's v2, 1 stream";
const OPPOSITE: Partial<Plan> = { sender: "server" };
const ONE_STREAM = { isPromised: true, startsWell: true, startsWithin: FIRST_START };
const beside = `beside ${UNREAD} unread ones`;

const CELLS: Cell[] = [
  { name: FORTH, peer: "bare", plan: {} },
  { name: "ours v2, 1 stream", peer: "ours2", plan: {}, beside: FORTH, ...ONE_STREAM },
  { name: "ours v1, 1 stream", peer: "ours1", plan: {}, beside: FORTH },
  { name: GO_2, peer: "go2", plan: {}, beside: FORTH },
  { name: "Go's v1, 1 stream", peer: "go1", plan: {}, beside: FORTH },
  { name: BACK, peer: "bare", plan: OPPOSITE },
  { name: "ours v2, 1 stream, server sends", peer: "ours2", plan: OPPOSITE, beside: BACK, ...ONE_STREAM },
  {
    name: "ours v2, 1 stream after one that ended",
    peer: "ours2",
    plan: { ahead: "ends" },
    beside: FORTH,
    startsWithin: NEXT_START,
  },
  { name: "ours v2, 1 stream after one that idles", peer: "ours2", plan: { ahead: "idles" }, beside: FORTH },
  { name: MANY, peer: "ours2", plan: { streams: BUSY }, beside: FORTH },
  {
    name: `${MANY}, ${beside}`,
    peer: "ours2",
    plan: { streams: BUSY, unread: UNREAD },
    beside: MANY,
    isPromised: true,
  },
  { name: MANY_NEAR, peer: "ours2", plan: { streams: BUSY }, isNear: true },
  {
    name: `${MANY_NEAR}, ${beside}`,
    peer: "ours2",
    plan: { streams: BUSY, unread: UNREAD },
    isNear: true,
    beside: MANY_NEAR,
    isPromised: true,
  },
];

const DEFAULTS: Plan = {
  echo: 0,
  sender: "client",
  streams: 1,
  unread: 0,
  time: Math.max(WARM + TIME, FIRST),
  hostname: "127.0.0.1",
  port: 0,
};

/** The result of a cell in one round. */
interface Outcome extends AnyOutcome {
  /** Bytes per second over {@linkcode FIRST}. */
  first?: number;
  /** Milliseconds until the rate over one round trip reached {@linkcode ENOUGH} of the cell's rate. */
  start?: number;
  /** Each new maximum of the rate over one round trip: its time in milliseconds, and the bytes per second. */
  climb?: [number, number][];
}

/** Runs the cells; rejects if bytes are wrong or a cell of Sluice hangs. */
export async function run(args: string[]): Promise<void> {
  const { rounds, json } = parse(args, { rounds: integer(5, 1), json: anyText });
  await using folder = await makeFolder("latency");
  const go = await buildGoEnd(folder.path);
  const cells = possible(CELLS, go);
  const trips: number[] = [];
  const outcomes: Outcomes<Outcome> = await inRounds(
    cells,
    rounds,
    (cell) => measure(cell, go),
    async () => void trips.push(...await roundTrips()),
  );
  const where = machine();
  console.log(conditions(where, rounds));
  console.log(
    `The link: nominally ${ROUND_TRIP} ms and 1 Gbit/s, measured round trip of one byte ${spread(trips, fixed(1))} ms`,
  );
  console.log(`\n${table(cells, outcomes)}\n`);
  for (const line of verdicts(cells, outcomes, median(trips))) console.log(line);
  if (json !== undefined) {
    const results = Object.fromEntries(outcomes);
    await Deno.writeTextFile(json, JSON.stringify({ machine: where, rounds, roundTrips: trips, results }));
  }
  throwOurs(cells, outcomes);
}

async function link(port: number, processes: AsyncDisposableStack): Promise<number> {
  const script = `${import.meta.dirname}/latency/link.ts`;
  return Number(await startDeno(processes, [], script, port, ROUND_TRIP / 2, BITS_PER_SECOND / 8).line());
}

async function roundTrips(): Promise<number[]> {
  const plan = { ...DEFAULTS, echo: 1, streams: 0, time: ECHO_TIME };
  const { client } = await runEnds({ name: "round trip", peer: "bare", plan }, plan, { link });
  return client.echoes!.map(([, time]) => time);
}

async function measure(cell: Cell, go?: string): Promise<Outcome> {
  const plan = { ...DEFAULTS, ...cell.plan };
  const ends = await runEnds(cell, plan, { go, ...(cell.isNear ? {} : { link }) });
  const receiver = plan.sender === "client" ? ends.server : ends.client;
  // Too few unread bytes: the cell did not measure throughput beside stalled streams.
  if (receiver.unread !== undefined && receiver.unread < plan.unread * INITIAL_WINDOW) {
    throw new Error(`expected at least ${plan.unread * INITIAL_WINDOW} unread bytes, received ${receiver.unread}`);
  }
  const samples = receiver.samples!;
  const rate = rateBetween(samples, WARM, WARM + TIME);
  const climb = climbOf(samples);
  const start = timeTo(ENOUGH * rate, climb);
  return { rate, first: rateBetween(samples, 0, FIRST), ...(start === Infinity ? {} : { start }), climb };
}

function climbOf(samples: [number, number][]): [number, number][] {
  const climb: [number, number][] = [];
  let from = 0;
  let best = 0;
  for (const [time, bytes] of samples) {
    // A small window sends one burst per round trip: a shorter interval would measure the burst only.
    while (from + 1 < samples.length && samples[from + 1]![0] <= time - ROUND_TRIP) from++;
    const [timeBefore, bytesBefore] = samples[from]!;
    if (time < ROUND_TRIP) continue;
    const rate = (bytes - bytesBefore) / (time - timeBefore) * 1000;
    if (rate <= best) continue;
    best = rate;
    climb.push([time, rate]);
  }
  return climb;
}

/** Returns the time at which the rate was reached, or `Infinity`. */
function timeTo(rate: number, climb: [number, number][]): number {
  return climb.find(([, reached]) => reached >= rate)?.[0] ?? Infinity;
}

/** Returns the name of the bare socket's cell on the same link. */
function bareOf({ peer, plan, isNear }: Cell): string | undefined {
  if (peer === "bare" || isNear) return undefined;
  return plan.sender === "server" ? BACK : FORTH;
}

const ofRate = ({ rate }: Outcome) => rate;
const ofFirst = ({ first }: Outcome) => first;

/** Returns the milliseconds to {@linkcode ENOUGH} of a bare socket's rate, for each round that has both. */
function starts(cell: Cell, outcomes: Outcomes<Outcome>): number[] {
  const bare = outcomes.get(bareOf(cell) ?? "") ?? [];
  return outcomes.get(cell.name)!.flatMap(({ climb }, round) => {
    const rate = bare[round]?.rate;
    return climb === undefined || rate === undefined ? [] : [timeTo(ENOUGH * rate, climb)];
  });
}

function table(cells: Cell[], outcomes: Outcomes<Outcome>): string {
  const rows = [[
    "",
    "MB/s",
    "ratio",
    "to",
    "ms to 90 %",
    `MB/s of ${FIRST / 1000} s`,
    "of bare",
    "ms to 90 % of bare",
  ]];
  for (const cell of cells) {
    const { name, beside } = cell;
    const given = outcomes.get(name)!;
    const all = (figure: "rate" | "first" | "start") => given.flatMap((outcome) => outcome[figure] ?? []);
    rows.push([
      name,
      failures(given) ?? spread(all("rate").map((rate) => rate / 1e6), fixed(1)),
      spread(ratios(outcomes, name, beside, ofRate), fixed(2)),
      beside ?? "",
      spread(all("start"), fixed(0)),
      spread(all("first").map((rate) => rate / 1e6), fixed(1)),
      spread(ratios(outcomes, name, bareOf(cell), ofFirst), fixed(3)),
      spread(starts(cell, outcomes), whole),
    ]);
  }
  return `${markdown(rows)}

Median, with minimum and maximum in brackets. MB/s: over ${TIME / 1000} s, from ${
    WARM / 1000
  } s after the first byte; every byte was
checked. ratio: in the same round. ms to 90 %: until the rate over ${ROUND_TRIP} ms reached 90 % of the MB/s.
MB/s of ${
    FIRST / 1000
  } s: from the first byte. of bare: ratio to the bare socket with the same sender, in the same round.
ms to 90 % of bare: the same for that socket's MB/s. Times start at the first byte of the stream.`;
}

function verdicts(cells: Cell[], outcomes: Outcomes<Outcome>, roundTrip: number): string[] {
  const lines = cells.flatMap((cell) => {
    const { name, beside, isPromised, startsWell, startsWithin } = cell;
    const results: string[] = [];
    if (isPromised) {
      const result = verdict(ratios(outcomes, name, beside, ofRate), (ratio) => ratio >= ENOUGH, share);
      results.push(`${name}: at least ${ENOUGH} of ${beside}: ${result}`);
    }
    const bare = bareOf(cell);
    if (startsWell) {
      const result = verdict(ratios(outcomes, name, bare, ofFirst), (ratio) => ratio >= FIRST_ENOUGH, share);
      results.push(`${name}: at least ${FIRST_ENOUGH} of ${bare} over the first ${FIRST / 1000} s: ${result}`);
    }
    if (startsWithin !== undefined) {
      const result = verdict(starts(cell, outcomes), (time) => time <= startsWithin, whole);
      results.push(`${name}: at ${ENOUGH} of ${bare} within ${startsWithin} ms: ${result}`);
    }
    return results;
  });
  const go = (outcomes.get(GO_2) ?? []).flatMap(({ rate }) =>
    rate === undefined ? [] : [rate * roundTrip / 1000 / 1024]
  );
  if (go.length > 0) lines.push(`${GO_2}: ${spread(go, fixed(0))} KiB per round trip, of a window of 64 KiB`);
  return lines;
}

const share = fixed(3);
const whole = (time: number) => time === Infinity ? "never" : time.toFixed(0);
