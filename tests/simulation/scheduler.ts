/**
 * Virtual time: events due at the same time run in an order that the seed decides.
 *
 * @module
 */

import { setImmediate } from "node:timers/promises";
import { clock, type Timer } from "../../_clock.ts";
import type { Random } from "./random.ts";

// Above the number of events of any run: more show a timer that is set again and again.
const MOST_STEPS = 2_000_000;

interface Event {
  at: number;
  rank: number;
  order: number;
  isTimer: boolean;
  run: (() => void) | undefined;
}

/** The only source of events, and the package's clock until it is disposed. */
export class Scheduler implements Disposable {
  readonly #random: Random;
  readonly #real = { ...clock };
  // A heap: the parent of the event at n is at (n - 1) >> 1, and is due no later.
  readonly #heap: Event[] = [];
  #order = 0;
  #timers = 0;
  /** Number of events run. */
  steps = 0;
  /** Virtual time in milliseconds. */
  now = 1000;

  /** @param random Decides the order of events. */
  constructor(random: Random) {
    this.#random = random;
    clock.now = () => this.now;
    clock.setTimer = (run, delay) => this.#add(run, delay, true) as unknown as Timer;
    clock.clearTimer = (timer) => this.#cancel(timer as unknown as Event | undefined);
    clock.pass = (run) => this.#add(run, 0, false);
    clock.clearPass = (pass) => this.#cancel(pass as Event | undefined);
    // Settles without an event: the package shares one pending yield among sessions, which must not outlive a run.
    clock.yieldToEventLoop = () => Promise.resolve();
    clock.sleep = (run, milliseconds) => clock.setTimer(run, milliseconds);
  }

  /** Number of timers that the package has set. */
  get timers(): number {
    return this.#timers;
  }

  /** Calls `run` after `delay` milliseconds. */
  after(delay: number, run: () => void): void {
    this.#add(run, delay, false);
  }

  /** Resolves after `delay` milliseconds. */
  sleep(delay: number): Promise<void> {
    return new Promise((resolve) => this.after(delay, resolve));
  }

  /** Advances the time without running events: those due meanwhile run late. */
  freeze(milliseconds: number): void {
    this.now += milliseconds;
  }

  /**
   * Runs events until `isDone` returns `true`, no event is left, or too many have run.
   *
   * @param isDone Called before each event.
   * @param until The time after which no event runs.
   * @returns Whether `isDone` returned `true`.
   */
  async run(isDone: () => boolean, until: number): Promise<boolean> {
    for (;;) {
      const next = this.#heap[0];
      // Every reaction is a microtask, and setImmediate() resolves after all of them. An event due at the same time may
      // also run while reactions are pending: after a number of microtasks that the seed decides.
      if (next === undefined || next.at > this.now || this.#random.oneIn(2)) await setImmediate();
      else for (let hops = this.#random.below(20); hops > 0; hops--) await null;
      if (isDone()) return true;
      const event = this.#heap[0];
      if (event === undefined || event.at > until || this.steps > MOST_STEPS) return false;
      this.#shift();
      if (event.run === undefined) continue;
      this.now = Math.max(this.now, event.at);
      this.steps++;
      const { run } = event;
      event.run = undefined;
      if (event.isTimer) this.#timers--;
      run();
    }
  }

  [Symbol.dispose](): void {
    Object.assign(clock, this.#real);
  }

  #add(run: () => void, delay: number, isTimer: boolean): Event {
    const event = { at: this.now + delay, rank: this.#random.below(2 ** 30), order: this.#order++, isTimer, run };
    if (isTimer) this.#timers++;
    const heap = this.#heap;
    let at = heap.length;
    heap.push(event);
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (isBefore(heap[parent]!, event)) break;
      heap[at] = heap[parent]!;
      at = parent;
    }
    heap[at] = event;
    return event;
  }

  #cancel(event: Event | undefined): void {
    if (event?.run === undefined) return;
    event.run = undefined;
    if (event.isTimer) this.#timers--;
  }

  #shift(): void {
    const heap = this.#heap;
    const last = heap.pop()!;
    if (heap.length === 0) return;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && isBefore(heap[child + 1]!, heap[child]!)) child++;
      if (isBefore(last, heap[child]!)) break;
      heap[at] = heap[child]!;
      at = child;
    }
    heap[at] = last;
  }
}

function isBefore(one: Event, other: Event): boolean {
  if (one.at !== other.at) return one.at < other.at;
  return one.rank === other.rank ? one.order < other.order : one.rank < other.rank;
}
