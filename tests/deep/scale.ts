/**
 * Measures the cost of a byte and of a stream, with 1 to 10 000 streams on one connection between two processes.
 *
 * @module
 */

import { lines, stack } from "../../bench/chart.ts";
import { Session, type Stream } from "../../mod.ts";
import { conditions, machine, median, spread, table } from "../stats.ts";
import { readExactly, readSome } from "../support.ts";
import { anyText, integer, parse } from "./shared/options.ts";
import { program, progress } from "./shared/program.ts";

/** One line for the list of long tests. */
export const description =
  "Speed with 1 to 10 000 streams on a connection: [--rounds 5] [--json FILE] [--chart FILE, an SVG]";

const VERSIONS = [1, 2] as const;
const COUNTS = [1, 10, 100, 1000, 10_000];
const FIGURES = ["rate", "cost"] as const;
// The defaults allow fewer than ten thousand streams.
const LIMITS = { maxStreams: 16_384, acceptBacklog: 16_384 };

const SIZE = 16 * 1024;
/** Writes of one transfer, over all streams. */
const WRITES = 80_000;
/** Streams opened and closed to measure the cost, and the maximum number of repetitions. */
const [STREAMS, TIMES] = [40_000, 2000];

// Each KiB of data starts with its position in `source`, and each write starts one KiB after the previous one. All
// streams share these bytes, which fit in a CPU cache; lost, duplicate or misplaced data is still detected.
const BLOCK = 1024;
const PLACES = 64;
const words = Uint32Array.from({ length: (PLACES * BLOCK + SIZE) / 4 }, (_, n) => n);
const source = new Uint8Array(words.buffer);

// Quadratic growth multiplies the cost by 10 per step. Linear growth may reach 2: buffers of 10 000 streams exceed the
// CPU caches, and the garbage collector visits more live objects.
const BOUND = 2;
// Timeout of a cell, in milliseconds; a cell takes some seconds.
const PATIENCE = 60_000;

/** MB/s, or microseconds to open and close a stream. */
type Figure = typeof FIGURES[number];
type Version = typeof VERSIONS[number];

/** The measurement of one pair of processes. */
interface Cell {
  figure: Figure;
  version: Version;
  count: number;
}

/** Runs the test; rejects if a byte is wrong, or if a step is worse than linear. */
export async function run(args: string[]): Promise<void> {
  if (args[0] === "--ask") return await ask(JSON.parse(args[1]!));
  if (args[0] === "--answer") return await answer(Number(args[1]), args[2] === "1" ? 1 : 2);
  const { rounds, json, chart } = parse(args, { rounds: integer(5, 1), json: anyText, chart: anyText });

  // Cells that are compared run one after another, because the speed of a machine changes over time.
  const columns = FIGURES.flatMap((figure) => VERSIONS.map((version) => ({ figure, version })));
  const cells = columns.flatMap((column) => COUNTS.map((count): Cell => ({ ...column, count })));
  const results = cells.map((cell) => ({ ...cell, values: [] as number[] }));
  for (let round = 1; round <= rounds; round++) {
    for (const [n, { values, ...cell }] of results.entries()) {
      progress(`round ${round} of ${rounds}, ${n + 1} of ${results.length}: ${JSON.stringify(cell)}`);
      values.push(await measure(cell));
    }
  }
  progress();

  const where = machine();
  const measured = conditions(where, rounds);
  const values = (figure: Figure, version: Version, count: number) =>
    results.find((cell) => cell.figure === figure && cell.version === version && cell.count === count)!.values;
  const medians = (figure: Figure, version: Version) => COUNTS.map((count) => median(values(figure, version, count)));

  console.log(`${measured}\n`);
  const heading = ["MB/s", "µs"].flatMap((unit) => VERSIONS.map((version) => `v${version}, ${unit}`));
  console.log(table([
    ["streams", ...heading],
    ...COUNTS.map((count) => [
      `${count}`,
      ...columns.map(({ figure, version }) => spread(values(figure, version, count))),
    ]),
  ]));
  const steps = COUNTS.slice(1).map((count, n) => ({
    name: `${COUNTS[n]} to ${count}`,
    factors: columns.map(({ figure, version }) => {
      const before = values(figure, version, COUNTS[n]!);
      return median(values(figure, version, count).map((value, round) => value / before[round]!));
    }),
  }));
  console.log(`\nThe factor of each step, median of the rounds:\n`);
  console.log(table([
    ["streams", ...heading],
    ...steps.map(({ name, factors }) => [name, ...factors.map((factor) => `× ${factor.toFixed(2)}`)]),
  ]));

  if (json !== undefined) await Deno.writeTextFile(json, JSON.stringify({ machine: where, rounds, results }) + "\n");
  if (chart !== undefined) {
    const draw = (figure: Figure, title: string, y: string, log: "x" | "both") =>
      lines({
        title,
        subtitle: `${measured}, medians`,
        x: "streams on one connection",
        y,
        xs: COUNTS,
        series: VERSIONS.map((version) => ({ name: `smux ${version}`, values: medians(figure, version) })),
        log,
      });
    const rate = draw("rate", "Throughput, all streams together", "MB/s", "x");
    const cost = draw("cost", "Opening all streams, then closing them", "µs a stream", "both");
    await Deno.writeTextFile(chart, stack(rate, cost));
  }

  const growths = steps.flatMap(({ name, factors }) =>
    columns.map(({ figure, version }, n) => ({
      growth: figure === "rate" ? 1 / factors[n]! : factors[n]!,
      text: `a ${figure === "rate" ? "byte" : "stream"} of v${version} from ${name} streams`,
    }))
  ).sort((a, b) => b.growth - a.growth);
  const described = growths.map(({ growth, text }) => `${text} × ${growth.toFixed(2)}`);
  const worse = growths.filter(({ growth }) => growth > BOUND).length;
  if (worse > 0) throw new Error(`Worse than linear, × ${BOUND} at most: ${described.slice(0, worse).join("; ")}`);
  console.log(`\nNo step is worse than linear. Largest growth: ${described[0]}; bound: × ${BOUND}.`);
}

/** Runs a cell in two fresh processes. */
async function measure(cell: Cell): Promise<number> {
  const limit = AbortSignal.timeout(PATIENCE);
  const child = new Deno.Command(Deno.execPath(), {
    args: program("scale", "--ask", JSON.stringify(cell)),
    stdin: "null",
    stderr: "inherit",
    signal: limit,
  });
  const { success, stdout } = await child.output();
  const value = Number(new TextDecoder().decode(stdout));
  if (success && value > 0) return value;
  throw new Error(`${JSON.stringify(cell)} ${limit.aborted ? `took over ${PATIENCE} ms` : "failed"}`);
}

/** The client: measures a cell and prints the result. */
async function ask({ figure, version, count }: Cell): Promise<void> {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const child = new Deno.Command(Deno.execPath(), {
    args: program("scale", "--answer", `${listener.addr.port}`, `${version}`),
    stdin: "null",
    stdout: "null",
  }).spawn();
  const session = Session.client(await listener.accept(), { version });
  try {
    const control = await session.openStream();
    console.log(await (figure === "rate" ? rate(session, control, count) : cost(session, control, count)));
    await control.closeWrite();
    await session.close();
  } finally {
    // Wait for the server: it may print the cause of a failure.
    session.abort();
    await child.status;
  }
  const { code } = await child.status;
  if (code !== 0) throw new Error(`The server ended with code ${code}`);
}

/** Returns the MB/s measured by the server. */
async function rate(session: Session, control: Stream, count: number): Promise<number> {
  const streams = await openAll(session, control, count, WRITES / count);
  await Promise.all(streams.map(send));
  const [bytes, speed] = new Float64Array((await readExactly(control, 16)).buffer);
  if (bytes !== WRITES * SIZE) throw new Error(`${bytes} of ${WRITES * SIZE} bytes arrived`);
  return speed!;
}

async function send(stream: Stream, n: number, { length }: Stream[]): Promise<void> {
  for (let write = 0; write < WRITES / length; write++) {
    const start = (n + write) % PLACES * BLOCK;
    await stream.write(source.subarray(start, start + SIZE));
  }
  await stream.closeWrite();
}

/** Returns the microseconds per stream to open all and to close all, including the server's side. */
async function cost(session: Session, control: Stream, count: number): Promise<number> {
  const times = Math.min(STREAMS / count, TIMES);
  let started = 0;
  for (let n = -Math.ceil(times / 4); n < times; n++) { // the first quarter is the warm-up
    if (n === 0) started = performance.now();
    for (const stream of await openAll(session, control, count, 0)) stream.close();
    await readExactly(control, 16);
  }
  return (performance.now() - started) * 1000 / (times * count);
}

/** Opens `count` streams, announces `writes` for each, and waits until the server has accepted all. */
async function openAll(session: Session, control: Stream, count: number, writes: number): Promise<Stream[]> {
  await control.write(new Uint8Array(new Uint32Array([count, writes]).buffer));
  const streams: Stream[] = [];
  for (let n = 0; n < count; n++) streams.push(await session.openStream());
  await readExactly(control, 1);
  return streams;
}

/** The server: for each request on the first stream, accepts and reads the streams, and sends the result back. */
async function answer(port: number, version: Version): Promise<void> {
  const session = Session.server(await Deno.connect({ hostname: "127.0.0.1", port }), { version, ...LIMITS });
  const control = await session.acceptStream();
  for (let request; (request = await readSome(control, 8)).length > 0;) {
    const [count, writes] = new Uint32Array(request.buffer);
    const streams: Stream[] = [];
    while (streams.length < count!) streams.push(await session.acceptStream());
    const drain = new Drain(count! * writes! * SIZE);
    const done = Promise.all(streams.map((stream, n) => drain.read(stream, n)));
    await control.write(new Uint8Array(1));
    await done;
    await control.write(new Uint8Array(drain.report().buffer));
  }
  await control.closeWrite();
  await session.closed;
}

/** Counts and checks the bytes received on all streams of a transfer. */
class Drain {
  readonly #total: number;
  #bytes = 0;
  #ended = NaN;
  #started: { at: number; bytes: number } | undefined;

  constructor(total: number) {
    this.#total = total;
  }

  async read(stream: Stream, n: number): Promise<void> {
    const p = new Uint8Array(this.#total === 0 ? 1 : SIZE);
    for (let position = 0;;) {
      const count = await stream.read(p);
      if (count === null) break;
      for (let at = (BLOCK - position % BLOCK) % BLOCK; at + 4 <= count; at += BLOCK) {
        const from = position + at;
        const place = (n + Math.floor(from / SIZE)) % PLACES * BLOCK + from % SIZE;
        const word = p[at]! | p[at + 1]! << 8 | p[at + 2]! << 16 | p[at + 3]! << 24;
        if (word !== place / 4) throw new Error(`Wrong data at ${from} of stream ${n}`);
      }
      position += count;
      this.#bytes += count;
      // Measure from the end of the warm-up to the last byte: ending the streams is not part of the rate.
      if (this.#bytes >= this.#total / 4) this.#started ??= { at: performance.now(), bytes: this.#bytes };
      if (this.#bytes === this.#total) this.#ended = performance.now();
    }
    stream.close();
  }

  /** Returns the bytes received and the MB/s. */
  report(): Float64Array<ArrayBuffer> {
    const { at, bytes } = this.#started ?? { at: NaN, bytes: 0 };
    return new Float64Array([this.#bytes, (this.#bytes - bytes) / (this.#ended - at) / 1000]);
  }
}
