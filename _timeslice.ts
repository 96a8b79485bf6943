/**
 * Cooperative yielding for loops whose reads or writes never block.
 *
 * Deno settles a read or a write of a socket that need not wait without polling other sockets. A loop with always more to
 * read, or always room to write, would keep the process to itself for most of a second.
 *
 * @module
 */

import { clock, type Pass, type Timer } from "./_clock.ts";

// A loop that never blocks yields after this long. Larger: fewer yields; smaller: other connections are served earlier.
const MAX_SLICE_MS = 2;

// The yield under way: the process yields once for all loops that do so together.
let yielding: Promise<unknown> | undefined;

/** The time slice of one loop. It starts anew when the loop has blocked, and after each yield. */
export class TimeSlice {
  #startedAt = 0;
  #hasSettled = false;
  #pass: Pass | undefined;
  #resume: (() => void) | undefined;
  #timer: Timer | undefined;
  #yielding: Promise<unknown> | undefined;

  /** Starts the slice. */
  start(now: number): void {
    this.#startedAt = now;
  }

  /** Whether it is time to yield. */
  isExpired(now: number): boolean {
    if (this.#startedAt > now) this.#startedAt = now;
    return now - this.#startedAt >= MAX_SLICE_MS;
  }

  /**
   * Observes an operation that the loop awaits. If it is still pending after one pass of the event loop, the loop has
   * blocked, and the next call of `isExpired` starts a new slice.
   */
  observe(operation: Promise<unknown>): void {
    this.#hasSettled = false;
    operation.then(this.#settled, this.#settled);
    this.#pass ??= clock.pass(this.#passed);
  }

  /** Yields until the runtime has polled its sockets; returns the time. */
  async yieldToEventLoop(): Promise<number> {
    await (this.#yielding = yielding ??= clock.yieldToEventLoop());
    yielding = this.#yielding = undefined;
    return this.#startedAt = clock.now();
  }

  /** Pauses the loop; returns the time. */
  async sleep(milliseconds = 1): Promise<number> {
    await new Promise<void>((resolve) => {
      this.#resume = resolve;
      this.#timer = clock.sleep(resolve, milliseconds);
    });
    return this.#startedAt = clock.now();
  }

  /** Ends a pause at once. Returns the yield under way, if there is any: it cannot be taken back. */
  end(): Promise<unknown> | undefined {
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
    // `isExpired` replaces it by the time of its call.
    if (!this.#hasSettled) this.#startedAt = Infinity;
  };
}
