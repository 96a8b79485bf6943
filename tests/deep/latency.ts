/**
 * Sluice over a long link: client, link and server are three processes, and the cells take turns in every round, so that
 * a busy machine is busy for all. What a link is here stands in `latency/link.ts`.
 *
 * @module
 */

import { deadline } from "@std/async";
import { conditions, machine, median, spread, table as markdown } from "../figures.ts";
import { buildGo, hasGoPackage, MEASURED } from "../go.ts";
import { makeFolder, Process } from "../programs.ts";
import type { Plan, Result, Role } from "./latency/end.ts";
import { anyText, integer, parse } from "./shared/options.ts";
import { progress } from "./shared/program.ts";

/** What it does. */
export const description =
  "The speed over 50 ms and 1 Gbit/s beside a bare socket and Go's smux: [--rounds 5] [--json FILE]";

const ROUND_TRIP = 50;
const BITS_PER_SECOND = 1e9;
const ENOUGH = 0.9;
const HERE = `${import.meta.dirname}/latency/`;
// TCP is at full speed after a round trip here, since the link loses nothing; windows need some more to grow.
const WARM = 2000;
const TIME = 3000;
// The bound is for a cell that hangs, in milliseconds.
const BOUND = 30_000;
const PINGS = 20;
const BUSY = 100;
const UNREAD = 31;
const FIRST_WINDOW = 262_144;

/** What is measured, and beside what. */
interface Cell {
  name: string;
  peer: string;
  plan: Partial<Plan>;
  /** Whether the ends are joined directly. */
  isNear?: boolean;
  /** The cell whose rate this one's is compared with. */
  beside?: string;
  /** Whether that ratio must be {@linkcode ENOUGH}. */
  isPromised?: boolean;
}

const FORTH = "bare socket, client sends";
const BACK = "bare socket, server sends";
const MANY = `ours v2, ${BUSY} streams`;
const MANY_NEAR = `no link: ours v2, ${BUSY} streams`;
const GO_2 = "Go's v2, 1 stream";
const OPPOSITE: Partial<Plan> = { sender: "server" };
const beside = `beside ${UNREAD} unread ones`;

const CELLS: Cell[] = [
  { name: FORTH, peer: "bare", plan: {} },
  { name: "ours v2, 1 stream", peer: "ours2", plan: {}, beside: FORTH, isPromised: true },
  { name: "ours v1, 1 stream", peer: "ours1", plan: {}, beside: FORTH },
  { name: GO_2, peer: "go2", plan: {}, beside: FORTH },
  { name: "Go's v1, 1 stream", peer: "go1", plan: {}, beside: FORTH },
  { name: BACK, peer: "bare", plan: OPPOSITE },
  { name: "ours v2, 1 stream, server sends", peer: "ours2", plan: OPPOSITE, beside: BACK, isPromised: true },
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

const DEFAULTS: Plan = { pings: 0, sender: "client", streams: 1, unread: 0, time: WARM + TIME, port: 0 };

/** What a cell gave in one round. */
interface Outcome {
  /** Bytes a second, once warm. */
  rate?: number;
  /** Milliseconds until a round trip's worth came at {@linkcode ENOUGH} of that rate. */
  start?: number;
  error?: string;
}

/** Runs it; rejects when bytes were wrong or one of our own cells hangs. */
export async function run(args: string[]): Promise<void> {
  const { rounds, json } = parse(args, { rounds: integer(5, 1), json: anyText });
  await using folder = await makeFolder("latency");
  const go = hasGoPackage("github.com/xtaci/smux")
    ? await buildGo(folder.path, [`${HERE}peer.go`, MEASURED])
    : undefined;
  if (go === undefined) {
    console.log("Without Go's rows: apt-get install golang-go golang-github-xtaci-smux-dev");
  }
  const cells = CELLS.filter(({ peer }) => go !== undefined || !peer.startsWith("go"));
  const outcomes = new Map<string, Outcome[]>(cells.map(({ name }) => [name, []]));
  const trips: number[] = [];
  for (let round = 0; round < rounds; round++) {
    progress(`round ${round + 1}: round trip`);
    trips.push(...await roundTrips());
    for (let n = 0; n < cells.length; n++) {
      const cell = cells[(round + n) % cells.length]!;
      progress(`round ${round + 1}: ${cell.name}`);
      outcomes.get(cell.name)!.push(await measure(cell, go));
    }
  }
  progress();
  const where = machine();
  console.log(conditions(where, rounds));
  console.log(`The link: ${ROUND_TRIP} ms and 1 Gbit/s asked for, round trip of one byte ${range(trips, 1)} ms`);
  console.log(`\n${table(cells, outcomes)}\n`);
  for (const line of verdicts(cells, outcomes, median(trips))) console.log(line);
  if (json !== undefined) {
    const results = Object.fromEntries(outcomes);
    await Deno.writeTextFile(json, JSON.stringify({ machine: where, rounds, roundTrips: trips, results }));
  }
  for (const { name, peer } of cells) {
    const failed = outcomes.get(name)!.find(({ error }) => error !== undefined);
    if (failed !== undefined && !peer.startsWith("go")) throw new Error(`${name}: ${failed.error}`);
  }
}

/** Runs a plan, and gives what the client and the server said. */
async function runEnds(peer: string, plan: Plan, isNear: boolean, go?: string): Promise<Record<Role, Result>> {
  await using processes = new AsyncDisposableStack();
  const start = (command: string, ...args: string[]) => processes.use(new Process([command, ...args]));
  const deno = (script: string, ...args: unknown[]) =>
    start(Deno.execPath(), "run", "-A", `${HERE}${script}`, ...args.map(String));
  const end = (role: Role, plan: Plan) =>
    peer.startsWith("go")
      ? start(go!, role, peer.slice(2), JSON.stringify(plan))
      : deno("end.ts", role, peer, JSON.stringify(plan));
  const work = async () => {
    const server = end("server", plan);
    let port = Number(await server.line());
    if (!isNear) port = Number(await deno("link.ts", port, ROUND_TRIP / 2, BITS_PER_SECOND / 8).line());
    const client = end("client", { ...plan, port });
    // The end that fails may leave the other waiting.
    const said = (process: Process) => plan.pings > 0 && process === server ? {} : process.result<Result>();
    const [fromClient, fromServer] = await Promise.all([said(client), said(server)]);
    return { client: fromClient, server: fromServer };
  };
  return await deadline(work(), BOUND);
}

async function roundTrips(): Promise<number[]> {
  const { client } = await runEnds("bare", { ...DEFAULTS, pings: PINGS }, false);
  return client.trips!;
}

/** Runs one cell; whatever goes wrong is its outcome. */
async function measure(cell: Cell, go?: string): Promise<Outcome> {
  const plan = { ...DEFAULTS, ...cell.plan };
  try {
    const said = await runEnds(cell.peer, plan, cell.isNear ?? false, go);
    const [sender, receiver] = plan.sender === "client" ? [said.client, said.server] : [said.server, said.client];
    if (sender.bytes !== receiver.bytes) {
      throw new Error(`lost data: ${receiver.bytes} of ${sender.bytes} bytes arrived`);
    }
    // Without them there was nothing to keep its throughput beside.
    if (receiver.unread !== undefined && receiver.unread < plan.unread * FIRST_WINDOW) {
      throw new Error(`only ${receiver.unread} bytes were unread`);
    }
    return rates(receiver.samples!);
  } catch (error) {
    const hangs = error instanceof DOMException && error.name === "TimeoutError";
    return { error: hangs ? "hangs" : error instanceof Error ? error.message : `${error}` };
  }
}

function rates(samples: [number, number][]): Outcome {
  const warm = samples.find(([time]) => time >= WARM);
  const last = samples.at(-1)!;
  if (warm === undefined || last[0] < WARM + TIME) throw new Error(`it ended after ${last[0].toFixed(0)} ms`);
  const rate = (last[1] - warm[1]) / (last[0] - warm[0]) * 1000;
  let from = 0;
  for (const [time, bytes] of samples) {
    // Data comes in one burst a round trip while the window is small: less would see the burst only.
    while (from + 1 < samples.length && samples[from + 1]![0] <= time - ROUND_TRIP) from++;
    const [timeBefore, bytesBefore] = samples[from]!;
    if (time < ROUND_TRIP) continue;
    if ((bytes - bytesBefore) / (time - timeBefore) * 1000 >= ENOUGH * rate) return { rate, start: time };
  }
  return { rate };
}

type Outcomes = Map<string, Outcome[]>;

/** The ratio to the cell it stands beside, of each round in which both gave a rate. */
function ratios({ name, beside }: Cell, outcomes: Outcomes): number[] {
  const others = outcomes.get(beside ?? "") ?? [];
  return outcomes.get(name)!.flatMap(({ rate }, round) => {
    const other = others[round]?.rate;
    return rate === undefined || other === undefined ? [] : [rate / other];
  });
}

function table(cells: Cell[], outcomes: Outcomes): string {
  const rows = [["", "MB/s", "ratio", "to", "ms to 90 %"]];
  for (const cell of cells) {
    const given = outcomes.get(cell.name)!;
    const failed = given.filter(({ error }) => error !== undefined);
    const all = (figure: "rate" | "start") => given.flatMap((outcome) => outcome[figure] ?? []);
    rows.push([
      cell.name,
      failed.length > 0
        ? `${failed[0]!.error} (${failed.length} of ${given.length} rounds)`
        : range(all("rate").map((rate) => rate / 1e6), 1),
      range(ratios(cell, outcomes), 2),
      cell.beside ?? "",
      range(all("start"), 0),
    ]);
  }
  return `${markdown(rows)}

The median, in brackets the least and the most. MB/s: over ${TIME / 1000} s, from ${
    WARM / 1000
  } s after the first byte; every byte was
compared. ratio: in the same round. ms to 90 %: from the first byte until the last ${ROUND_TRIP} ms had brought 90 % of the MB/s.`;
}

function verdicts(cells: Cell[], outcomes: Outcomes, roundTrip: number): string[] {
  const lines = cells.filter(({ isPromised }) => isPromised).map((cell) => {
    const values = ratios(cell, outcomes);
    const verdict = values.length === 0 ? "not measured" : median(values) >= ENOUGH ? "yes" : "no";
    return `${cell.name}: at least ${ENOUGH} of ${cell.beside}: ${verdict}`;
  });
  const go = (outcomes.get(GO_2) ?? []).flatMap(({ rate }) =>
    rate === undefined ? [] : [rate * roundTrip / 1000 / 1024]
  );
  if (go.length > 0) lines.push(`${GO_2}: ${range(go, 0)} KiB per round trip, of a window of 64 KiB`);
  return lines;
}

/** As {@linkcode spread}, with so many digits. */
const range = (values: number[], digits: number) => spread(values, (value) => value.toFixed(digits));
