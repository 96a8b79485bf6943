/**
 * Runs one attack: starts a victim, its attackers and a well-behaved peer, and measures the victim meanwhile.
 *
 * @module
 */

import { assert, assertEquals, assertLess } from "@std/assert";
import { delay } from "@std/async";
import { setImmediate } from "node:timers/promises";
import type { SessionOptions } from "../../mod.ts";
import { NOP, PSH, SYN, type Version } from "../../frame.ts";
import { DEFAULTS } from "../../options.ts";
import { percentile } from "../stats.ts";
import { ManualClock, MiB, WRITE_BUFFER } from "../support.ts";
import { Attacker, PATIENCE } from "./attacker.ts";
import { Bystander, type Errand, visit } from "./bystander.ts";
import { Neighbour } from "./neighbour.ts";
import { type App, LocalVictim, type Role, startVictim, type State, type Victim } from "./victim.ts";

/** One attack. */
export interface Case {
  /** Id of the attack: A framing, B streams, C flow control, D writing and liveness. */
  id: string;
  name: string;
  /** What the peer does. */
  attack: string;
  /** The expected outcome. */
  expected: string;
  versions?: readonly Version[];
  roles?: readonly Role[];
  /** What the victim does with streams other than the first (default: echo). */
  app?: App;
  session?: (isFull: boolean) => SessionOptions;
  /** The id of the first stream that the victim opens. */
  firstId?: (role: Role) => number;
  /** Whether the case needs time to pass: `timeout` is then `TIMEOUT` and `keepAliveInterval` half of it. */
  timed?: boolean;
  /** Whether the victim's event loop keeps running during the attack (default: true). */
  isAwake?: boolean;
  /** Maximum growth of the victim's resident memory in MiB (default: 64). */
  memory?: number;
  /** Maximum CPU time for one frame of the flood, in microseconds. */
  perFrame?: number;
  /** Maximum duration of an echo on a fresh connection (p99), in milliseconds (default: 50). */
  freshWithin?: number;
  run(run: AttackRun): Promise<void>;
}

/** The measurements of a run. */
export interface Figures {
  /** Milliseconds from the attack to the end of the connection. */
  closed?: number;
  /** Frames of the flood, and the victim's CPU time for each in microseconds. */
  frames?: number;
  perFrame?: number;
  /** Durations of echoes during the attack, on fresh connections and on the canary, in milliseconds. */
  fresh: number[];
  canary: number[];
  /** Throughput of another session during the flood, as a fraction of half its throughput without the flood. */
  share?: number;
  /** Peak growth of resident memory and of the heap, and growth of the heap after the end and a collection, in MiB. */
  growth?: number;
  heap?: number;
  left?: number;
  /** Longest delay of the victim's timers, in milliseconds. */
  gap?: number;
}

/** The victim's `timeout` in a timed case, in milliseconds. */
export const TIMEOUT = 2000;

/** Maximum of unsent bytes: two write buffers. */
export const ON_THE_WAY = 2 * WRITE_BUFFER;

/** The victim's `maxReceiveBuffer`: the default in the full run, smaller (faster) in the everyday run. */
export const receiveBuffer = (isFull: boolean) => isFull ? DEFAULTS.maxReceiveBuffer : 2 * MiB;

// Bounds of the full run, in milliseconds and MiB. SAMPLES is the number of echoes needed for a percentile.
const CLOSED_WITHIN = 100;
const SOCKETS_CLOSED_WITHIN = 1000;
const FRESH_WITHIN = 50;
// The state of a listening socket in /proc/net/tcp.
const LISTENS = "0A";
const GROWTH = 64;
const LEFT = 16;
const GIVEN_BACK_WITHIN = 5000;
const BETWEEN_VISITS = 20;
// Interval during floods. Smaller: more samples; but the memory of these sessions counts as the attack's.
const BETWEEN_MANY = 2;
const SAMPLES = 100;
// Larger: a longer run; smaller: the young generation still grows during the attack, by up to 12 MiB.
const WARM_UPS = 800;
const MOST_GOING_ON = 2000;
// Minimum of `Figures.share`, and the duration of each of its two measurements in milliseconds.
const SHARE = 0.5;
const MEASURED = 400;

/** One run of a case. */
export class AttackRun implements AsyncDisposable {
  readonly role: Role;
  readonly version: Version;
  /** Whether this is the full run: full counts, and the victim in a process of its own. */
  readonly isFull: boolean;
  readonly figures: Figures = { fresh: [], canary: [] };
  /** Additional results, for the report. */
  readonly notes: string[] = [];
  readonly #case: Case;
  readonly #clock: ManualClock | undefined;
  readonly #attackers = new Set<Attacker>();
  #victim: Victim | undefined;
  // The flood to repeat in #measureShare().
  #flood: ((first: number) => Uint8Array) | undefined;

  private constructor(which: Case, role: Role, version: Version, isFull: boolean) {
    this.#case = which;
    this.role = role;
    this.version = version;
    this.isFull = isFull;
    // The everyday run uses a manual clock; the process of the full run uses real time.
    if (which.timed === true && !isFull) this.#clock = new ManualClock();
  }

  /** Runs a case and checks its expectations and those of every case; rejects if one fails. */
  static async run(which: Case, role: Role, version: Version, isFull: boolean): Promise<void> {
    const { failure } = await AttackRun.try(which, role, version, isFull);
    if (failure !== undefined) throw failure;
  }

  /** Runs a case as {@linkcode AttackRun.run} does, but returns the failure, together with the measurements. */
  static async try(
    which: Case,
    role: Role,
    version: Version,
    isFull: boolean,
  ): Promise<{ failure: unknown; figures: Figures; notes: string[] }> {
    const run = new AttackRun(which, role, version, isFull);
    let failure: unknown;
    try {
      await using _ = run;
      await run.#run();
    } catch (error) {
      failure = error;
    }
    return { failure, figures: run.figures, notes: run.notes };
  }

  async #run(): Promise<void> {
    const { role, version, isFull } = this;
    const { app = "echo", timed, session, firstId, isAwake = true, run } = this.#case;
    const life = timed === true ? { timeout: TIMEOUT, keepAliveInterval: TIMEOUT / 2 } : {};
    const options = { role, version, app, session: { ...life, ...session?.(isFull) }, firstId: firstId?.(role) };
    this.#victim = isFull ? await startVictim(options) : new LocalVictim(options);
    // Warm up: one-time allocations must not count as growth.
    for (let n = 0; n < (isFull ? WARM_UPS : 1); n++) await this.fresh();
    this.figures.fresh.length = 0;
    await this.victim.mark();
    const before = await this.victim.state();
    const passerBy = isFull && isAwake ? new Bystander(this.#errand, BETWEEN_VISITS) : undefined;
    await run(this);
    await passerBy?.end();
    this.figures.fresh.push(...passerBy?.visits ?? []);
    await this.fresh();
    await this.#judge(before);
    if (this.#flood !== undefined && isFull) await this.#measureShare(this.#flood, role);
  }

  /** The attacked process or object. */
  get victim(): Victim {
    return this.#victim!;
  }

  async #judge(before: State): Promise<void> {
    const { figures } = this;
    for (const attacker of this.#attackers) attacker.close();
    const after = await this.reached(({ open, tasks, otherTasks, last }) =>
      open + tasks + otherTasks === 0 && !last?.streams
    );
    assertEquals(after.unhandled, 0, "Unhandled rejections");
    if (this.#clock !== undefined) assertEquals(this.#clock.pending, 0, "Timers still set after the end");
    figures.growth = (after.peakRss - before.rss) / MiB;
    figures.heap = (after.peakHeap - before.heap) / MiB;
    figures.gap = after.gap;
    if (!this.isFull) return;
    for (const ends = performance.now() + SOCKETS_CLOSED_WITHIN; this.#sockets() > 0; await delay(10)) {
      assert(performance.now() < ends, `${this.#sockets()} sockets still open`);
    }
    // Memory outside the heap is freed some time after the collection.
    for (const ends = performance.now() + GIVEN_BACK_WITHIN; performance.now() < ends; await delay(100)) {
      await this.victim.mark();
      figures.left = ((await this.victim.state()).heap - before.heap) / MiB;
      if (figures.left <= LEFT) break;
    }
    const { memory = GROWTH, perFrame = Infinity, freshWithin = FRESH_WITHIN } = this.#case;
    const bounds: [string, number, number][] = [
      ["MiB of growth", figures.growth, memory],
      ["MiB of heap left after the end", figures.left!, LEFT],
      ["µs a frame", figures.perFrame ?? 0, perFrame],
      ["ms to a fresh echo (p99)", percentile(figures.fresh, 0.99), freshWithin],
    ];
    const broken = bounds.filter(([, value, bound]) => value > bound);
    const messages = broken.map(([what, value, bound]) => `${what}: ${value.toFixed(2)}, bound ${bound}`);
    assert(broken.length === 0, messages.join("; "));
  }

  /** Repeats the flood, and measures the throughput of another session meanwhile. */
  async #measureShare(make: (first: number) => Uint8Array, role: Role): Promise<void> {
    using neighbour = new Neighbour({ port: this.victim.freshPort, version: this.version, role });
    await neighbour.rate(MEASURED);
    const attacker = await this.attack();
    const rateBeside = async (send: (bytes: Uint8Array) => Promise<void>) => {
      let isOver = false;
      const flooding = (async () => {
        for (let round = 0; !isOver; round++) {
          await send(make(round));
          await setImmediate();
        }
      })();
      const rate = await neighbour.rate(MEASURED);
      isOver = true;
      await flooding;
      return rate;
    };
    // The flood is encoded in both measurements, because encoding it uses CPU time too.
    const alone = await rateBeside(() => Promise.resolve());
    const beside = await rateBeside((bytes) => attacker.bytes(bytes));
    const share = this.figures.share = beside / (alone / 2);
    assert(share >= SHARE, `Fraction of its fair share left to another session: ${share.toFixed(2)}, bound ${SHARE}`);
  }

  /** Number of sockets the victim holds, in any state but listening; 0 on systems other than Linux. */
  #sockets(): number {
    if (Deno.build.os !== "linux") return 0;
    const lines = Deno.readTextFileSync("/proc/net/tcp").split("\n").map((line) => line.trim().split(/ +/));
    const ports = [this.victim.port, this.victim.freshPort];
    const isOf = (address = "") => ports.includes(Number.parseInt(address.split(":")[1]!, 16));
    return lines.filter(([, local, , state, , , , , , inode]) => isOf(local) && state !== LISTENS && inode !== "0")
      .length;
  }

  /** Returns `small` in the everyday run, `full` in the full run. */
  count(small: number, full: number): number {
    return this.isFull ? full : small;
  }

  /** The id of the attacker's stream `n`; 0 is the canary. */
  id(n: number): number {
    return (this.role === "server" ? 3 : 2) + 2 * n;
  }

  /** Opens a hostile connection and sends nothing. */
  async dial(): Promise<Attacker> {
    const attacker = await Attacker.dial(this.victim.port, this.version, this.id(0));
    this.#attackers.add(attacker);
    return attacker;
  }

  /** Opens a hostile connection and waits for the first echo on its canary. */
  async attack(): Promise<Attacker> {
    const attacker = await this.dial();
    await attacker.start();
    return attacker;
  }

  /** Closes an attacker's connection and drops the attacker. */
  forget(attacker: Attacker): void {
    attacker.close();
    this.#attackers.delete(attacker);
  }

  /** Opens a fresh connection, which must echo; returns the milliseconds from dialling to the echo. */
  async fresh(): Promise<number> {
    const took = await visit(this.#errand);
    this.figures.fresh.push(took);
    return took;
  }

  get #errand(): Errand {
    return { port: this.victim.freshPort, version: this.version, id: this.id(0) };
  }

  /** Waits until the victim's state satisfies `isSo`. */
  async reached(isSo: (state: State) => boolean): Promise<State> {
    const started = performance.now();
    for (;;) {
      const state = await this.victim.state();
      if (isSo(state)) return state;
      if (performance.now() - started > PATIENCE) {
        throw new Error(`The victim did not reach ${isSo}, its state is ${JSON.stringify(state)}`);
      }
      await (this.isFull ? delay(2) : setImmediate());
    }
  }

  /** Waits until every attacked session has ended and every call on it has settled. */
  over(): Promise<State> {
    return this.reached(({ open, tasks }) => open === 0 && tasks === 0);
  }

  /** Asserts that exactly one attacked session is open. */
  async lives(message?: string): Promise<void> {
    assertEquals((await this.victim.state()).open, 1, message);
  }

  /** Stays silent: the session must be open after 0.9 timeouts, and must end before 1.5 timeouts. */
  async timesOut(attacker: Attacker): Promise<void> {
    await this.pass(TIMEOUT * 0.9);
    await this.fresh();
    await this.lives();
    await this.pass(TIMEOUT * 0.6);
    await this.closes(attacker, "TimeoutError");
  }

  /** Waits until the victim has read every byte written on this connection, which must be the latest one. */
  async taken(attacker: Attacker): Promise<void> {
    await this.reached(({ last }) => last?.bytesReceived === attacker.written);
  }

  /** Lets time pass. */
  async pass(milliseconds: number): Promise<void> {
    await (this.#clock?.advance(milliseconds) ?? delay(milliseconds));
  }

  /** Blocks the victim's event loop. */
  async freeze(milliseconds: number): Promise<void> {
    if (this.#clock === undefined) return await this.victim.block(milliseconds);
    this.#clock.freeze(milliseconds);
    await this.#clock.advance(0);
  }

  /** Waits until the victim closes the connection, within the bound, and its session has ended with error `name`. */
  async closes(attacker: Attacker, name: string): Promise<void> {
    const started = performance.now();
    await attacker.gone(name);
    const took = performance.now() - started;
    this.figures.closed = Math.max(this.figures.closed ?? 0, took);
    // Only in the full run: the everyday run shares the machine with other tests.
    if (this.isFull) assertLess(took, CLOSED_WITHIN, `ms until the connection was closed: ${took.toFixed(1)}`);
    const { ends } = await this.over();
    assert(ends.at(-1)!.startsWith(name), `Expected the session to end with ${name}, it ended with ${ends.at(-1)}`);
  }

  /**
   * Sends a flood of `count` pieces while a bystander visits, and measures the CPU time for a piece. With `goesOn`, the
   * flood continues in whole batches until there are enough visits for a percentile. Returns the number of pieces sent.
   */
  async flood(
    attacker: Attacker,
    count: number,
    make: (first: number, count: number) => Uint8Array,
    options: { frames?: number; batch?: number; goesOn?: boolean } = {},
  ): Promise<number> {
    const { frames = 1, batch = 8192, goesOn = false } = options;
    if (goesOn) this.#flood = (round) => make(round * batch, batch);
    const before = await this.victim.state();
    const ends = performance.now() + MOST_GOING_ON;
    let sent = 0;
    let after = before;
    await this.besides(async (visits) => {
      const goes = () => goesOn && this.isFull && visits.length < SAMPLES && performance.now() < ends;
      while ((sent < count || goes()) && !attacker.isEnded) {
        const size = goesOn ? batch : Math.min(batch, count - sent);
        await attacker.bytes(make(sent, size));
        sent += size;
        // Writes that never block would starve the reading side of this process.
        await setImmediate();
      }
      await this.echoes(attacker);
      after = await this.victim.state();
    });
    this.figures.frames = sent * frames;
    this.figures.perFrame = (after.cpu - before.cpu) / sent;
    return sent;
  }

  /** Calls `run` while a bystander visits in a loop; `run` receives the durations of the finished visits. */
  async besides(run: (visits: readonly number[]) => Promise<void>): Promise<void> {
    const bystander = this.isFull ? new Bystander(this.#errand, BETWEEN_MANY) : undefined;
    if (bystander === undefined) await this.fresh();
    await run(bystander?.visits ?? []);
    await bystander?.end();
    this.figures.fresh.push(...bystander?.visits ?? []);
  }

  /** Waits for an echo on the canary; returns its duration in milliseconds. */
  async echoes(attacker: Attacker): Promise<number> {
    const took = await attacker.echo();
    this.figures.canary.push(took);
    return took;
  }

  /** The frames that open a stream and carry its data: SYN and PSH. */
  opening(attacker: Attacker, id: number, data: Uint8Array): Uint8Array[] {
    return [attacker.frame(SYN, id), attacker.frame(PSH, id, data)];
  }

  /** Sends a NOP. */
  nop(attacker: Attacker): Promise<void> {
    return attacker.bytes(attacker.frame(NOP, 0));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const attacker of this.#attackers) {
      attacker.close();
      await attacker.ended;
    }
    await this.#victim?.[Symbol.asyncDispose]();
    this.#clock?.[Symbol.dispose]();
  }
}

/** The roles and versions that a case runs with. */
export function ways(which: Case): { role: Role; version: Version }[] {
  const { roles = ["server", "client"], versions = [1, 2] } = which;
  return roles.flatMap((role) => versions.map((version) => ({ role, version })));
}
