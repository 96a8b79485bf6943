/**
 * Where an attack takes place: a victim, its attackers, others who must not suffer, and what is measured meanwhile.
 *
 * @module
 */

import { assert, assertEquals, assertLess } from "@std/assert";
import { delay } from "@std/async";
import { setImmediate } from "node:timers/promises";
import type { SessionOptions } from "../../mod.ts";
import { NOP, PSH, SYN, type Version } from "../../frame.ts";
import { percentile } from "../stats.ts";
import { ManualClock, MiB, WRITE_BUFFER } from "../support.ts";
import { Attacker, PATIENCE } from "./attacker.ts";
import { Bystander, type Errand, visit } from "./bystander.ts";
import { Neighbour } from "./neighbour.ts";
import { type App, LocalVictim, type Role, startVictim, type State, type Victim } from "./victim.ts";

/** One attack. */
export interface Case {
  /** Its number in the list of attacks: A framing, B streams, C flow control, D writing and life. */
  id: string;
  name: string;
  /** What the peer does. */
  attack: string;
  /** What must come of it. */
  expected: string;
  versions?: readonly Version[];
  roles?: readonly Role[];
  /** What the victim does with streams other than the first; by default it echoes them too. */
  app?: App;
  session?: (isFull: boolean) => SessionOptions;
  /** The first id of streams that the victim opens. */
  firstId?: (role: Role) => number;
  /** Time must pass in it: the victim's timeout is `TIMEOUT` and its interval half of that. */
  timed?: boolean;
  /** Whether the victim's process can serve others all the while; so it is, unless told. */
  isAwake?: boolean;
  /** Most MiB by which the victim's process may grow, 64 unless told. */
  memory?: number;
  /** Most microseconds of the processor for one frame of the flood. */
  perFrame?: number;
  /** Most milliseconds of a fresh echo (p99), 50 unless told. */
  freshWithin?: number;
  run(run: AttackRun): Promise<void>;
}

/** What was measured. */
export interface Figures {
  /** Milliseconds from the attack to the end of the connection. */
  closed?: number;
  /** Frames of the flood, and microseconds of the victim's processor for each. */
  frames?: number;
  perFrame?: number;
  /** Milliseconds of the echoes on other connections, and of those on the canary, while the attack went on. */
  fresh: number[];
  canary: number[];
  /** What data of another session's came through beside the flood, as a part of half of what comes when none is sent. */
  share?: number;
  /** MiB by which the resident memory and the heap grew at most, and the heap after all had ended and a collection. */
  growth?: number;
  heap?: number;
  left?: number;
  /** Milliseconds the victim's timers had to wait, at most. */
  gap?: number;
}

/** Milliseconds of silence that a victim bears in a timed case. */
export const TIMEOUT = 2000;

/** Two buffers of the way out. */
export const ON_THE_WAY = 2 * WRITE_BUFFER;

/** A limit of unread bytes: the default in the deep run, less where it only costs time. */
export const receiveBuffer = (isFull: boolean) => isFull ? 16 * MiB : 2 * MiB;

// Bounds of the full run, in milliseconds, MiB, and samples without which there is no percentile.
const CLOSED_WITHIN = 100;
const SOCKETS_CLOSED_WITHIN = 1000;
const FRESH_WITHIN = 50;
// The state of a socket that listens, in what Linux tells of them.
const LISTENS = "0A";
const GROWTH = 64;
const LEFT = 16;
const GIVEN_BACK_WITHIN = 5000;
const BETWEEN_VISITS = 20;
// During floods there are more visits, but no flood of them: what they leave behind would count as the attacker's.
const BETWEEN_MANY = 2;
const SAMPLES = 100;
const WARM_UPS = 200;
const MOST_GOING_ON = 2000;
// Of what is fair for another session beside a flood, and how long each is measured, in milliseconds.
const SHARE = 0.5;
const MEASURED = 400;

/** One run of a case. */
export class AttackRun implements AsyncDisposable {
  readonly role: Role;
  readonly version: Version;
  /** Whether the counts are those of the deep run. */
  readonly isFull: boolean;
  readonly figures: Figures = { fresh: [], canary: [] };
  /** What else is worth telling. */
  readonly notes: string[] = [];
  readonly #case: Case;
  readonly #clock: ManualClock | undefined;
  readonly #attackers = new Set<Attacker>();
  #victim: Victim | undefined;
  // The flood that went on, to be made once more.
  #flood: ((first: number) => Uint8Array) | undefined;

  private constructor(which: Case, role: Role, version: Version, isFull: boolean) {
    this.#case = which;
    this.role = role;
    this.version = version;
    this.isFull = isFull;
    // In the everyday run time passes when it is told to; a process of its own has its own.
    if (which.timed === true && !isFull) this.#clock = new ManualClock();
  }

  /** Runs a case, and judges it by what holds for every one as well. */
  static async run(which: Case, role: Role, version: Version, isFull: boolean): Promise<void> {
    const { failure } = await AttackRun.try(which, role, version, isFull);
    if (failure !== undefined) throw failure;
  }

  /** The same, with what was measured whether it held or not. */
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
    // What is only made the first time is no growth.
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

  /** Whom it is all about. */
  get victim(): Victim {
    return this.#victim!;
  }

  async #judge(before: State): Promise<void> {
    const { figures } = this;
    for (const attacker of this.#attackers) attacker.close();
    const after = await this.reached(({ open, tasks, otherTasks, last }) =>
      open + tasks + otherTasks === 0 && !last?.streams
    );
    assertEquals(after.unhandled, 0, "Rejections that nobody handled");
    if (this.#clock !== undefined) assertEquals(this.#clock.pending, 0, "Timers that are still set");
    figures.growth = (after.peakRss - before.rss) / MiB;
    figures.heap = (after.peakHeap - before.heap) / MiB;
    figures.gap = after.gap;
    if (!this.isFull) return;
    for (const ends = performance.now() + SOCKETS_CLOSED_WITHIN; this.#sockets() > 0; await delay(10)) {
      assert(performance.now() < ends, `${this.#sockets()} sockets are left`);
    }
    // Memory outside the heap is given back some time after it was collected.
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
    const tell = broken.map(([what, value, bound]) => `${what}: ${value.toFixed(2)}, bound ${bound}`);
    assert(broken.length === 0, tell.join("; "));
  }

  /** Once more the flood, and beside it another session that moves data. */
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
    // The work of making a flood, which takes a processor as well, is done in both cases.
    const alone = await rateBeside(() => Promise.resolve());
    const beside = await rateBeside((bytes) => attacker.bytes(bytes));
    const share = this.figures.share = beside / (alone / 2);
    assert(share >= SHARE, `Part of its fair share that another session had: ${share.toFixed(2)}, bound ${SHARE}`);
  }

  /** How many sockets the victim holds, whatever became of their connections; 0 where that cannot be seen. */
  #sockets(): number {
    if (Deno.build.os !== "linux") return 0;
    const lines = Deno.readTextFileSync("/proc/net/tcp").split("\n").map((line) => line.trim().split(/ +/));
    const ports = [this.victim.port, this.victim.freshPort];
    const isOf = (address = "") => ports.includes(Number.parseInt(address.split(":")[1]!, 16));
    return lines.filter(([, local, , state, , , , , , inode]) => isOf(local) && state !== LISTENS && inode !== "0")
      .length;
  }

  /** One number for each kind of run: the everyday one and the deep one. */
  count(small: number, full: number): number {
    return this.isFull ? full : small;
  }

  /** The id of the n-th stream of the attacker, the canary being the first. */
  id(n: number): number {
    return (this.role === "server" ? 3 : 2) + 2 * n;
  }

  /** A hostile connection on which nothing has been sent. */
  async dial(): Promise<Attacker> {
    const attacker = await Attacker.dial(this.victim.port, this.version, this.id(0));
    this.#attackers.add(attacker);
    return attacker;
  }

  /** A hostile connection with a canary that has echoed. */
  async attack(): Promise<Attacker> {
    const attacker = await this.dial();
    await attacker.start();
    return attacker;
  }

  /** Hangs up an attacker that has done its work. */
  forget(attacker: Attacker): void {
    attacker.close();
    this.#attackers.delete(attacker);
  }

  /** Another connection, which must echo; gives the milliseconds from dialling on. */
  async fresh(): Promise<number> {
    const took = await visit(this.#errand);
    this.figures.fresh.push(took);
    return took;
  }

  get #errand(): Errand {
    return { port: this.victim.freshPort, version: this.version, id: this.id(0) };
  }

  /** Waits until the victim is so. */
  async reached(isSo: (state: State) => boolean): Promise<State> {
    const started = performance.now();
    for (;;) {
      const state = await this.victim.state();
      if (isSo(state)) return state;
      if (performance.now() - started > PATIENCE) {
        throw new Error(`The victim never came to be as expected: ${isSo}, ${JSON.stringify(state)}`);
      }
      await (this.isFull ? delay(2) : setImmediate());
    }
  }

  /** Waits until every attacked session has ended, and everything that waited on one. */
  over(): Promise<State> {
    return this.reached(({ open, tasks }) => open === 0 && tasks === 0);
  }

  /** The one session that is attacked goes on. */
  async lives(message?: string): Promise<void> {
    assertEquals((await this.victim.state()).open, 1, message);
  }

  /** From now on nothing is heard: the session goes on for nine tenths of the timeout, and ends before 1.5 of it. */
  async timesOut(attacker: Attacker): Promise<void> {
    await this.pass(TIMEOUT * 0.9);
    await this.fresh();
    await this.lives();
    await this.pass(TIMEOUT * 0.6);
    await this.closes(attacker, "TimeoutError");
  }

  /** Waits until the victim has read all that was sent on this connection, the last that was dialled. */
  async taken(attacker: Attacker): Promise<void> {
    await this.reached(({ last }) => last?.bytesReceived === attacker.written);
  }

  /** Lets time pass for the victim. */
  async pass(milliseconds: number): Promise<void> {
    await (this.#clock?.advance(milliseconds) ?? delay(milliseconds));
  }

  /** Lets time pass in which the victim's process does nothing. */
  async freeze(milliseconds: number): Promise<void> {
    if (this.#clock === undefined) return await this.victim.block(milliseconds);
    this.#clock.freeze(milliseconds);
    await this.#clock.advance(0);
  }

  /** The victim ends the connection, soon, and everything that waited on it. */
  async closes(attacker: Attacker, name: string): Promise<void> {
    const started = performance.now();
    await attacker.gone(name);
    const took = performance.now() - started;
    this.figures.closed = Math.max(this.figures.closed ?? 0, took);
    // A machine busy with other tests may be late; the bound is the deep run's.
    if (this.isFull) assertLess(took, CLOSED_WITHIN, `ms until the connection was closed: ${took.toFixed(1)}`);
    const { ends } = await this.over();
    assert(ends.at(-1)!.startsWith(name), `The session ended with ${ends.at(-1)}, not with ${name}`);
  }

  /**
   * Sends a flood of `count` pieces, others echoing all the while, and counts what a piece costs. One that `goesOn` does
   * so, in whole batches, until there are enough echoes of others for a percentile. Gives how many were sent.
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
        // Writes that settle at once would keep this process, not the victim's, from attending to the others.
        await setImmediate();
      }
      await this.echoes(attacker);
      after = await this.victim.state();
    });
    this.figures.frames = sent * frames;
    this.figures.perFrame = (after.cpu - before.cpu) / sent;
    return sent;
  }

  /** Does something while others visit over and over; it is given how long each visit took so far. */
  async besides(run: (visits: readonly number[]) => Promise<void>): Promise<void> {
    const bystander = this.isFull ? new Bystander(this.#errand, BETWEEN_MANY) : undefined;
    if (bystander === undefined) await this.fresh();
    await run(bystander?.visits ?? []);
    await bystander?.end();
    this.figures.fresh.push(...bystander?.visits ?? []);
  }

  /** The canary echoes. */
  async echoes(attacker: Attacker): Promise<number> {
    const took = await attacker.echo();
    this.figures.canary.push(took);
    return took;
  }

  /** A stream in one piece: SYN and data. */
  opening(attacker: Attacker, id: number, data: Uint8Array): Uint8Array[] {
    return [attacker.frame(SYN, id), attacker.frame(PSH, id, data)];
  }

  /** A sign of life. */
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

/** The ways in which a case runs. */
export function ways(which: Case): { role: Role; version: Version }[] {
  const { roles = ["server", "client"], versions = [1, 2] } = which;
  return roles.flatMap((role) => versions.map((version) => ({ role, version })));
}
