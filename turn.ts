/**
 * Turns: what goes on and on lets others run now and then.
 *
 * Deno settles a socket's read or write that need not wait without looking at anything else, so that a connection with
 * always more to read, or always room to write, keeps the whole process to itself: others wait for most of a second
 * beside a bare socket that is written to in a loop.
 *
 * @module
 */

import { clock, type Pass, type Timer } from "./clock.ts";

// While nothing waits others have a turn every so many milliseconds. A new session needs several for its first echo: 13 to
// 22 ms (p99) beside a stream that is written without end, where turns of 3 ms make it 30 to 45. Giving way costs 0.05.
const LONGEST_TURN = 2;

// Way is given by the process, not by a session: with many, one does it for all.
let giving: Promise<unknown> | undefined;

/** The turn of one loop: it begins anew when the loop is known to wait, and when it gave way. */
export class Turn {
  #began = 0;
  #hasSettled = false;
  #looking: Pass | undefined;
  #resume: (() => void) | undefined;
  #timer: Timer | undefined;
  #others: Promise<unknown> | undefined;

  /** It begins now. */
  begin(now: number): void {
    this.#began = now;
  }

  /** Whether others have waited long enough. */
  isLong(now: number): boolean {
    if (this.#began > now) this.#began = now;
    return now - this.#began >= LONGEST_TURN;
  }

  /**
   * Notices, while the loop awaits an operation, that it waits: it has not settled when the event loop has come round.
   * A new turn then begins when it settles.
   */
  watch(operation: Promise<unknown>): void {
    this.#hasSettled = false;
    operation.then(this.#settled, this.#settled);
    this.#looking ??= clock.pass(this.#look);
  }

  /** Lets others look at their sockets, in the shortest time that does; gives the time. */
  async giveWay(): Promise<number> {
    await (this.#others = giving ??= clock.giveWay());
    giving = this.#others = undefined;
    return this.#began = clock.now();
  }

  /** Lets others run for so long, which whoever sends more than we can read must wait as well; gives the time. */
  async rest(milliseconds = 1): Promise<number> {
    await new Promise<void>((resolve) => {
      this.#resume = resolve;
      this.#timer = clock.rest(resolve, milliseconds);
    });
    return this.#began = clock.now();
  }

  /** Ends it: nobody is waited for any more, and nothing is left under way when this settles, if it takes any time. */
  end(): Promise<unknown> | undefined {
    clock.clearTimer(this.#timer);
    clock.clearPass(this.#looking);
    this.#resume?.();
    return this.#others;
  }

  readonly #settled = (): void => {
    this.#hasSettled = true;
  };

  readonly #look = (): void => {
    this.#looking = undefined;
    // That is whenever it is asked for next.
    if (!this.#hasSettled) this.#began = Infinity;
  };
}
