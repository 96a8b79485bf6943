/**
 * Cooperative yielding for loops whose reads or writes never block.
 *
 * Deno completes I/O that is ready without polling other sockets, so a loop that always has more to read, or room to
 * write, would keep the event loop to itself.
 *
 * @module
 */

import { clock, type Pass, type Timer } from "./_clock.ts";

/**
 * A loop that never blocks yields after this long, and the runtime polls its sockets after this long, however many loops
 * yield. Larger: fewer yields; smaller: other connections are served earlier.
 */
export const MAX_SLICE_MS = 2;

// The functions that resume the loops that have yielded, in order.
const yielded: (() => void)[] = [];
let isResuming = false;

// One by one: a hundred loops that resume together would keep the event loop for a hundred slices.
async function resumeLoops(): Promise<void> {
  isResuming = true;
  while (yielded.length > 0) {
    await clock.yieldToEventLoop();
    const polledAt = clock.now();
    do {
      yielded.shift()!();
      if (yielded.length === 0) break;
      await new Promise<void>((resolve) => void clock.pass(resolve));
    } while (clock.now() - polledAt < MAX_SLICE_MS);
  }
  isResuming = false;
}

/** The time slice of one loop. A new slice starts when the loop has blocked, and after each yield. */
export class TimeSlice {
  #startedAt = 0;
  #hasSettled = false;
  #pass: Pass | undefined;
  #resume: (() => void) | undefined;
  #timer: Timer | undefined;
  #yielding: Promise<void> | undefined;

  /** Starts the slice. */
  start(now: number): void {
    this.#startedAt = now;
  }

  /** Returns whether the loop must yield. */
  isExpired(now: number): boolean {
    if (this.#startedAt > now) this.#startedAt = now;
    return now - this.#startedAt >= MAX_SLICE_MS;
  }

  /**
   * Observes an operation that the loop awaits. If it is pending after one pass of the event loop, the loop has
   * blocked, and the next call of `isExpired` starts a new slice.
   */
  observe(operation: Promise<unknown>): void {
    operation.then(this.#settled, this.#settled);
    this.watch();
  }

  /** Starts a new slice after the next pass of the event loop, for a loop whose operations never wait. */
  watch(): void {
    this.#hasSettled = false;
    this.#pass ??= clock.pass(this.#passed);
  }

  /**
   * Does the same, and returns whether the loop must yield: the event loop has not passed since an earlier call in this
   * slice.
   */
  hasLasted(now: number): boolean {
    if (this.#pass === undefined) this.#startedAt = now;
    this.watch();
    return this.isExpired(now);
  }

  /** Whether the event loop has not passed since `watch`. */
  get isWatched(): boolean {
    return this.#pass !== undefined;
  }

  /** Yields until the loops that yielded before have run and the runtime has polled its sockets. Returns the time. */
  async yieldToEventLoop(): Promise<number> {
    this.#yielding = new Promise<void>((resolve) => void yielded.push(resolve));
    if (!isResuming) void resumeLoops();
    await this.#yielding;
    this.#yielding = undefined;
    return this.#startedAt = clock.now();
  }

  /** Pauses the loop. Returns the time. */
  async sleep(milliseconds = 1): Promise<number> {
    await new Promise<void>((resolve) => {
      this.#resume = resolve;
      this.#timer = clock.sleep(resolve, milliseconds);
    });
    return this.#startedAt = clock.now();
  }

  /** Ends a pause at once. Returns the pending yield, if any, because a yield cannot be cancelled. */
  end(): Promise<void> | undefined {
    clock.clearTimer(this.#timer);
    clock.clearPass(this.#pass);
    this.#resume?.();
    return this.#yielding;
  }

  readonly #settled = (): void => {
    this.#hasSettled = true;
  };

  readonly #passed = (): void => {
    this.#pass = undefined;
    // `isExpired` replaces this by the time of its call.
    if (!this.#hasSettled) this.#startedAt = Infinity;
  };
}
