/**
 * Sluice over a long link: client, link and server are three processes, and the cells take turns in every round. What a
 * link is here stands in `latency/link.ts`.
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

/** What it does. */
export const description =
  "The speed over 50 ms and 1 Gbit/s beside a bare socket and Go's smux: [--rounds 5] [--json FILE]";

const ROUND_TRIP = 50;
const BITS_PER_SECOND = 1e9;
const ENOUGH = 0.9;
// TCP is at full speed after a round trip here, since the link loses nothing; windows need some more to grow.
const WARM = 2000;
const TIME = 3000;
// For this time from the first byte on, in milliseconds, one stream must keep this much of a bare socket's rate.
const FIRST = 5000;
const FIRST_ENOUGH = 0.93;
// Within these milliseconds a stream must be at ENOUGH of a bare socket's rate: the first, and one after another.
const FIRST_START = 350;
const NEXT_START = 3 * ROUND_TRIP;
// Some round trips are measured in this time.
const ECHO_TIME = 1200;
const BUSY = 100;
const UNREAD = 31;

/** What is measured, and beside what. */
interface Cell extends AnyCell {
  /** Whether the ends are joined directly. */
  isNear?: boolean;
  /** Whether its ratio must be {@linkcode ENOUGH}. */
  isPromised?: boolean;
  /** Whether its rate in the time {@linkcode FIRST} must be {@linkcode FIRST_ENOUGH} of a bare socket's. */
  startsWell?: boolean;
  /** The milliseconds within which it must be at {@linkcode ENOUGH} of a bare socket's rate. */
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

/** What a cell gave in one round. */
interface Outcome extends AnyOutcome {
  /** Bytes a second in the time {@linkcode FIRST}. */
  first?: number;
  /** Milliseconds until a round trip's worth came at {@linkcode ENOUGH} of its rate. */
  start?: number;
  /** Milliseconds until a round trip's worth came faster than any before, and its bytes a second. */
  climb?: [number, number][];
}

/** Runs it; rejects when bytes were wrong or one of our own cells hangs. */
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
    `The link: ${ROUND_TRIP} ms and 1 Gbit/s asked for, round trip of one byte ${spread(trips, fixed(1))} ms`,
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
  // Without them there was nothing to keep its throughput beside.
  if (receiver.unread !== undefined && receiver.unread < plan.unread * INITIAL_WINDOW) {
    throw new Error(`only ${receiver.unread} bytes were unread`);
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
    // Data comes in one burst a round trip while the window is small: less would see the burst only.
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

/** When the rate was reached; `Infinity` if it never was. */
function timeTo(rate: number, climb: [number, number][]): number {
  return climb.find(([, reached]) => reached >= rate)?.[0] ?? Infinity;
}

/** The cell of a bare socket on the same link. */
function bareOf({ peer, plan, isNear }: Cell): string | undefined {
  if (peer === "bare" || isNear) return undefined;
  return plan.sender === "server" ? BACK : FORTH;
}

const ofRate = ({ rate }: Outcome) => rate;
const ofFirst = ({ first }: Outcome) => first;

/** Milliseconds to {@linkcode ENOUGH} of a bare socket's rate, of each round in which there is one. */
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

The median, in brackets the least and the most. MB/s: over ${TIME / 1000} s, from ${
    WARM / 1000
  } s after the first byte; every byte was
compared. ratio: in the same round. ms to 90 %: from the first byte until the last ${ROUND_TRIP} ms had brought 90 % of the MB/s.
MB/s of ${
    FIRST / 1000
  } s: from the first byte. of bare: to the bare socket whose same end sends, in the same round. ms to 90 % of bare: as ms to
90 %, but of that socket's MB/s. A stream after another: from its own first byte; the other was at full speed before.`;
}

function verdicts(cells: Cell[], outcomes: Outcomes<Outcome>, roundTrip: number): string[] {
  const lines = cells.flatMap((cell) => {
    const { name, beside, isPromised, startsWell, startsWithin } = cell;
    const said: string[] = [];
    if (isPromised) {
      const result = verdict(ratios(outcomes, name, beside, ofRate), (ratio) => ratio >= ENOUGH, share);
      said.push(`${name}: at least ${ENOUGH} of ${beside}: ${result}`);
    }
    const bare = bareOf(cell);
    if (startsWell) {
      const result = verdict(ratios(outcomes, name, bare, ofFirst), (ratio) => ratio >= FIRST_ENOUGH, share);
      said.push(`${name}: at least ${FIRST_ENOUGH} of ${bare} over the first ${FIRST / 1000} s: ${result}`);
    }
    if (startsWithin !== undefined) {
      const result = verdict(starts(cell, outcomes), (time) => time <= startsWithin, whole);
      said.push(`${name}: at ${ENOUGH} of ${bare} within ${startsWithin} ms: ${result}`);
    }
    return said;
  });
  const go = (outcomes.get(GO_2) ?? []).flatMap(({ rate }) =>
    rate === undefined ? [] : [rate * roundTrip / 1000 / 1024]
  );
  if (go.length > 0) lines.push(`${GO_2}: ${spread(go, fixed(0))} KiB per round trip, of a window of 64 KiB`);
  return lines;
}

const share = fixed(3);
const whole = (time: number) => time === Infinity ? "never" : time.toFixed(0);
