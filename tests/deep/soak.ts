/**
 * Runs all kinds of traffic at once for a long time, to find small leaks.
 *
 * Both ends are in one process and use TCP. At intervals, all tasks finish and pause; then the heap is collected and
 * measured, so that every sample sees the same state.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { deadline, delay } from "@std/async";
import { equals } from "@std/bytes";
import { clock, type Timer } from "../../_clock.ts";
import { serve, Session, SessionClosedError, type Stream, StreamClosedError } from "../../mod.ts";
import { BROWSER_NAMES } from "../browsers.ts";
import { onUnhandled } from "../errors.ts";
import { usedMemory } from "../measured.ts";
import { mutate, type Random, random } from "../fuzz/mutate.ts";
import { frame, MiB, pattern, readAll, readExactly, writeAll } from "../support.ts";
import { anyText, flag, integer, oneOf, parse, positive } from "./shared/options.ts";
import { program } from "./shared/program.ts";
import { soakTab } from "./soak/tab.ts";

/** One line for the list of long tests. */
export const description =
  "All kinds of traffic at once, with checks for leaks: [--minutes 10] [--seed 1], or in a tab: --page chromium [--rate 20]";

// Maximum drift of the heap over the run, by a linear fit of the samples.
const DRIFT = MiB;
// Samples of a short run, for the linear fit; a long run takes one per minute.
const FEWEST_SAMPLES = 12;
// Timeout of a task, in milliseconds; the longest tasks have some thousand reads.
const LONGEST_TASK = 60_000;
// Fraction of the samples to ignore: compilation changes the heap at first.
const WARM_UP = 0.25;

// Maximum reads of a slow reader, which need some seconds.
const MOST_READS = 5000;

const source = pattern(4 * MiB);
const VERSIONS = [1, 2] as const;
const ECHO = 1;
const SINK = 2;
const SOURCE = 3;

interface Sample {
  minutes: number;
  heap: number;
}

/** Runs the test in a child process; rejects if something leaks or fails. */
export async function run(args: string[]): Promise<void> {
  const options = { minutes: positive(10), seed: integer(1), inside: flag, page: anyText, rate: integer(20, 1) };
  const { minutes, seed, inside, page, rate } = parse(args, options);
  if (page !== undefined) return await soakTab(oneOf(BROWSER_NAMES).read(page, "--page")[0]!, minutes, rate);
  if (inside) {
    try {
      return await soak(minutes, seed);
    } catch (error) {
      // Exit here: an unhandled rejection would only be counted, and the open sessions would keep the process alive.
      console.error(error);
      Deno.exit(1);
    }
  }
  const { code } = await new Deno.Command(Deno.execPath(), {
    args: program("soak", "--inside", `--minutes=${minutes}`, `--seed=${seed}`),
    stdin: "null",
  }).spawn().status;
  if (code !== 0) {
    throw new Error(`soak ended with code ${code}; again: deno task deep soak --minutes=${minutes} --seed=${seed}`);
  }
}

async function soak(minutes: number, seed: number): Promise<void> {
  const timers = countTimers();
  const unhandled: unknown[] = [];
  using _ = onUnhandled((reason) => unhandled.push(reason));
  const before = resources();
  const place = new Place(seed);
  await place.open();

  const samples: Sample[] = [];
  const started = performance.now();
  const elapsed = () => (performance.now() - started) / 60_000;
  const every = Math.min(1, minutes / FEWEST_SAMPLES);
  for (let round = 1; elapsed() < minutes; round++) {
    await place.work(() => elapsed() >= Math.min(minutes, round * every));
    await place.check();
    const { rss, heapUsed: heap } = await usedMemory();
    samples.push({ minutes: elapsed(), heap });
    console.log(
      `${elapsed().toFixed(1)} min: heap ${(heap / MiB).toFixed(2)} MiB, resident ${(rss / MiB).toFixed(0)} MiB, ` +
        `${resources()} resources, ${timers.size} timers, ${unhandled.length} unhandled; ${place.summary}`,
    );
  }
  await place.close();

  const steady = samples.slice(Math.floor(samples.length * WARM_UP));
  const drift = slope(steady) * (steady.at(-1)!.minutes - steady[0]!.minutes);
  const left = resources() - before;
  console.log(
    `soak: seed ${seed}, ${elapsed().toFixed(1)} minutes, ${place.summary}; after the warm-up the heap drifted by ` +
      `${
        (drift / MiB).toFixed(2)
      } MiB over ${steady.length} samples; ${left} resources and ${timers.size} timers left, ` +
      `${unhandled.length} unhandled rejections`,
  );
  assertEquals(unhandled, [], "unhandled rejections");
  assertEquals([left, timers.size], [0, 0], "leaked resources and timers");
  assert(Math.abs(drift) <= DRIFT, `the heap drifted by ${(drift / MiB).toFixed(2)} MiB`);
}

/** A server, sessions with it, and the tasks on these sessions. */
class Place {
  readonly #random: Random;
  readonly #listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  readonly #server = serve(this.#listener, answer, { maxStreams: 64, onError: (error) => void this.#judge(error) });
  readonly #sessions: Session[] = [];
  readonly #counts = new Map<string, number>();
  #bytes = 0;
  #problem: unknown;

  constructor(seed: number) {
    this.#random = random(seed);
  }

  /** Opens the long-lived sessions. */
  async open(): Promise<void> {
    for (const version of VERSIONS) this.#sessions.push(Session.client(await this.#connect(), { version }));
  }

  /** The number of finished tasks, and of bytes compared. */
  get summary(): string {
    const counts = Array.from(this.#counts, ([name, count]) => `${count} ${name}`);
    return `${counts.join(", ")}, ${(this.#bytes / 2 ** 30).toFixed(2)} GiB`;
  }

  /** Runs all tasks concurrently, each in a loop, until `isOver` returns true. */
  async work(isOver: () => boolean): Promise<void> {
    const again = async (name: string, task: () => Promise<void>) => {
      do {
        await deadline(task(), LONGEST_TASK).catch((error) => {
          throw error?.name === "TimeoutError" ? new Error(`"${name}" hangs`, { cause: error }) : error;
        });
        this.#counts.set(name, (this.#counts.get(name) ?? 0) + 1);
      } while (!isOver() && this.#problem === undefined);
    };
    const tasks: Promise<void>[] = [
      again("hostile peers", () => this.#hostile()),
      again("sessions", () => this.#session()),
      again("refusals", () => this.#refusal()),
    ];
    for (const session of this.#sessions) {
      const on = (name: string, task: (stream: Stream) => Promise<void>) =>
        again(name, async () => await task(await session.openStream()));
      tasks.push(
        on("echoes", (stream) => this.#echo(stream, 8)),
        on("echoes", (stream) => this.#echo(stream, 8)),
        on("short streams", (stream) => this.#echo(stream, 1, 100)),
        on("uploads", (stream) => this.#upload(stream)),
        on("slow downloads", (stream) => this.#download(stream)),
        on("half-closed", (stream) => this.#halfClose(stream)),
        on("aborts", (stream) => this.#abort(stream)),
      );
    }
    await Promise.all(tasks);
  }

  /** Asserts that the sessions are idle. */
  async check(): Promise<void> {
    if (this.#problem !== undefined) throw this.#problem;
    for (const session of this.#sessions) {
      // Data for an aborted stream may still be in flight.
      for (let n = 0; n < 50 && session.stats().bytesUnread + session.stats().streams > 0; n++) await delay(20);
      const { streams, bytesUnread } = session.stats();
      assertEquals({ streams, bytesUnread }, { streams: 0, bytesUnread: 0 });
    }
  }

  async close(): Promise<void> {
    for (const session of this.#sessions) {
      await session.close();
      await session.closed;
    }
    await this.#server.shutdown();
  }

  #connect(): Promise<Deno.TcpConn> {
    return Deno.connect({ hostname: "127.0.0.1", port: (this.#listener.addr as Deno.NetAddr).port });
  }

  /** Records an error of the server, except those that disconnecting or invalid peers cause. */
  #judge(error: unknown): void {
    if (!(error instanceof Error) || error.name === "AssertionError" || error instanceof TypeError) {
      this.#problem ??= error;
    }
  }

  /** Echoes messages on one stream. */
  async #echo(stream: Stream, messages: number, most = 100_000): Promise<void> {
    await stream.write(Uint8Array.of(ECHO));
    for (let n = 0; n < messages; n++) {
      const p = this.#part(1 + this.#random(most));
      const [, q] = await Promise.all([stream.write(p), readExactly(stream, p.length)]);
      this.#compare(q, p);
    }
    stream.close();
  }

  async #upload(stream: Stream): Promise<void> {
    await stream.write(Uint8Array.of(SINK));
    const p = this.#part(this.#random(source.length));
    await stream.write(p);
    await stream.closeWrite();
    const [count] = new Float64Array((await readExactly(stream, 8)).buffer);
    assertEquals([count, await stream.read(new Uint8Array(1))], [p.length, null]);
    this.#bytes += p.length;
  }

  /** Downloads up to 1 MiB, with late and small reads. */
  async #download(stream: Stream): Promise<void> {
    const length = this.#random(MiB);
    await stream.write(Uint8Array.of(SOURCE, ...new Uint8Array(new Uint32Array([length]).buffer)));
    await stream.closeWrite();
    const p = new Uint8Array(1 + Math.ceil(length / MOST_READS) + this.#random(20_000));
    let at = 0;
    for (;;) {
      if (this.#random(10) === 0) await delay(this.#random(5));
      const count = await stream.read(p);
      if (count === null) break;
      this.#compare(p.subarray(0, count), source.subarray(at, at += count));
    }
    assertEquals(at, length);
  }

  async #halfClose(stream: Stream): Promise<void> {
    const p = this.#part(this.#random(200_000));
    const write = async () => {
      await stream.write(Uint8Array.of(ECHO));
      await stream.write(p);
      await stream.closeWrite();
    };
    const [, q] = await Promise.all([write(), readAll(stream)]);
    this.#compare(q, p);
    await stream.closed;
  }

  /** Aborts reads and writes, or closes their stream, at a random time. */
  async #abort(stream: Stream): Promise<void> {
    const controller = new AbortController();
    const { signal } = controller;
    const reason = new Error("aborted on purpose");
    // Echo less than the initial window: a closed stream grants no credit, so a longer echo would wait for its timeout.
    const [op, most] = this.#random(2) === 0 ? [ECHO, 200_000] : [SINK, MiB];
    await stream.write(Uint8Array.of(op));
    const work = Promise.allSettled([
      stream.read(new Uint8Array(100), { signal }),
      stream.write(this.#part(most), { signal }),
      stream.write(this.#part(1000), { signal }),
    ]);
    await delay(this.#random(4));
    if (this.#random(2) === 0) controller.abort(reason);
    stream.close();
    for (const result of await work) {
      if (result.status === "fulfilled" || result.reason === reason) continue;
      if (!(result.reason instanceof StreamClosedError)) throw result.reason;
    }
  }

  /** Opens a session in a random version, and ends it by close() or abort(). */
  async #session(): Promise<void> {
    const session = Session.client(await this.#connect(), { version: VERSIONS[this.#random(2)]! });
    const streams = await Promise.all(Array.from({ length: 1 + this.#random(20) }, () => session.openStream()));
    await Promise.all(streams.map((stream) => this.#echo(stream, 1, 5000)));
    if (this.#random(3) > 0) return await session.close();
    const stream = await session.openStream();
    const waiting = stream.read(new Uint8Array(1)).catch((error) => this.#expectEnd(error));
    session.abort();
    await waiting;
    await session.closed.catch(() => {});
  }

  /** Opens more streams than `maxStreams`: refused streams end at once, without data. */
  async #refusal(): Promise<void> {
    const session = Session.client(await this.#connect(), { version: VERSIONS[this.#random(2)]! });
    const streams = await Promise.all(Array.from({ length: 80 }, () => session.openStream()));
    const ends = streams.map((stream, n) => n < 64 ? this.#echo(stream, 1, 50) : stream.read(new Uint8Array(1)));
    assertEquals((await Promise.all(ends)).filter((end) => end === null).length, 16);
    for (const stream of streams) stream.close();
    await session.close();
  }

  /** A peer that sends valid frames, then mutated ones. */
  async #hostile(): Promise<void> {
    const conn = await this.#connect();
    const version = VERSIONS[this.#random(2)]!;
    try {
      await writeAll(conn, frame(version, 0, 3));
      await writeAll(conn, frame(version, 2, 3, Uint8Array.of(ECHO, 1, 2, 3)));
      for (let n = this.#random(5); n > 0; n--) {
        const p = this.#part(1 + this.#random(40));
        await writeAll(conn, mutate(frame(version, 2, 3 + this.#random(4), p), p, this.#random));
      }
      await conn.closeWrite();
      while (await conn.read(new Uint8Array(4096)) !== null);
    } catch (error) {
      // The server resets the connection, as it must; after that closeWrite() fails too.
      const { ConnectionReset, BrokenPipe, NotConnected } = Deno.errors;
      if (![ConnectionReset, BrokenPipe, NotConnected].some((kind) => error instanceof kind)) throw error;
    } finally {
      conn.close();
    }
  }

  #expectEnd(error: unknown): void {
    if (!(error instanceof SessionClosedError)) throw error;
  }

  #part(length: number): Uint8Array<ArrayBuffer> {
    const at = this.#random(source.length - length + 1);
    return source.subarray(at, at + length);
  }

  #compare(actual: Uint8Array, expected: Uint8Array): void {
    assert(
      equals(actual, expected),
      `Received ${actual.length} bytes that differ from the ${expected.length} bytes sent`,
    );
    this.#bytes += actual.length;
  }
}

/** The server's handler of a stream. */
async function answer(stream: Stream): Promise<void> {
  const op = new Uint8Array(1);
  if (await stream.read(op) === null) return;
  const p = new Uint8Array(64 * 1024);
  if (op[0] === SOURCE) {
    const [length] = new Uint32Array((await readExactly(stream, 4)).buffer);
    await stream.write(source.subarray(0, length));
    return await stream.closeWrite();
  }
  let total = 0;
  for (let count = await stream.read(p); count !== null; count = await stream.read(p)) {
    total += count;
    if (op[0] === ECHO) await stream.write(p.subarray(0, count));
  }
  if (op[0] === SINK) await stream.write(new Uint8Array(new Float64Array([total]).buffer));
  await stream.closeWrite();
}

/** Replaces the clock's timers; returns the set of pending ones. */
function countTimers(): Set<Timer> {
  const timers = new Set<Timer>();
  const { setTimer, clearTimer } = clock;
  clock.setTimer = (run, milliseconds) => {
    const timer = setTimer(() => {
      timers.delete(timer);
      run();
    }, milliseconds);
    timers.add(timer);
    return timer;
  };
  clock.clearTimer = (timer) => {
    if (timer !== undefined) timers.delete(timer);
    clearTimer(timer);
  };
  return timers;
}

/** Returns the number of entries in the runtime's resource table. */
function resources(): number {
  const { internal } = Deno as unknown as { internal: symbol };
  const { core } = (Deno as unknown as Record<symbol, { core: { resources(): Record<string, string> } }>)[internal]!;
  return Object.keys(core.resources()).length;
}

/** Returns the slope in bytes per minute, by least squares. */
function slope(samples: Sample[]): number {
  const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const [x, y] = [mean(samples.map(({ minutes }) => minutes)), mean(samples.map(({ heap }) => heap))];
  const above = samples.reduce((sum, { minutes, heap }) => sum + (minutes - x) * (heap - y), 0);
  const below = samples.reduce((sum, { minutes }) => sum + (minutes - x) ** 2, 0);
  return below === 0 ? 0 : above / below;
}
