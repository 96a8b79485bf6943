/**
 * Time, through one object that a test can replace.
 *
 * Nothing that a session is made of reads the time or sets a timer in another way, so a whole one can be simulated.
 *
 * @module
 */

/** What {@linkcode Clock.setTimer} returns: a number in browsers, an object in Deno and Node. */
export type Timer = ReturnType<typeof setTimeout>;

/** The longest delay, in milliseconds, that the timers of JavaScript can hold: a longer one fires at once. */
export const MAX_DELAY = 2_147_483_647;

/** What the package asks of time. */
export interface Clock {
  /** Milliseconds on a clock that never goes back. */
  now(): number;
  /** Calls `run` once, `delay` milliseconds from now. */
  setTimer(run: () => void, delay: number): Timer;
  /** Takes a timer back; one that has fired or was taken back is ignored. */
  clearTimer(timer: Timer | undefined): void;
  /** Settles when the runtime has looked at its sockets. */
  giveWay(): Promise<unknown>;
  /** Calls `run` when the runtime has looked at everything, after so many milliseconds; `clearTimer` takes that back. */
  rest(run: () => void, milliseconds: number): Timer | undefined;
}

// Deno loads these when they are first named, and runs microtasks as it does: in the middle of whatever names them.
void [setTimeout, clearTimeout];

const EMPTY = new Uint8Array();

/** The clock in use. */
export const clock: Clock = {
  now: () => performance.now(),
  setTimer: (run, delay) => setTimeout(run, delay),
  clearTimer: (timer) => clearTimeout(timer),
  // Deno looks at sockets only while nothing of its own is ready. A digest is made on another thread, which is the
  // shortest wait there is: 0.1 ms, where a timer takes more than 1. A browser's page without TLS cannot make any.
  giveWay: () => crypto.subtle?.digest("SHA-1", EMPTY) ?? new Promise<void>((resolve) => setTimeout(resolve, 0)),
  rest: (run, milliseconds) => setTimeout(run, milliseconds),
};
