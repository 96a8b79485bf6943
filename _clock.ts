/**
 * Time source and timers, in one object that a test can replace.
 *
 * All modules of the library use it, so a whole session can run in simulated time.
 *
 * @module
 */

/** Handle of a timer: a number in browsers, an object in Deno and Node. */
export type Timer = ReturnType<typeof setTimeout>;

/** Handle of a pass of the event loop. */
export type Pass = object;

/** Maximum delay of a JavaScript timer in milliseconds. A longer delay fires at once. */
export const MAX_DELAY_MS = 2_147_483_647;

/** A timer that is late by more than this shows that the process was suspended or its event loop blocked. */
export const TIMER_LAG_MS = 100;

/** Time source and timers. */
export interface Clock {
  /** Returns monotonic time in milliseconds. */
  now(): number;
  /** Calls `run` once, after `delay` milliseconds. */
  setTimer(run: () => void, delay: number): Timer;
  /** Cancels a timer. Has no effect on one that has fired or was cancelled. */
  clearTimer(timer: Timer | undefined): void;
  /** Calls `run` after one pass of the event loop, when no microtask is left. */
  pass(run: () => void): Pass;
  /** Cancels the call of `pass`. Has no effect after it. */
  clearPass(pass: Pass | undefined): void;
  /** Resolves when the runtime has polled its sockets. */
  yieldToEventLoop(): Promise<unknown>;
  /**
   * Calls `run` after `milliseconds`. `clearTimer` cancels it. Separate from `setTimer`, so that tests can shorten it.
   */
  sleep(run: () => void, milliseconds: number): Timer | undefined;
}

// Deno loads these lazily on first access, and runs microtasks meanwhile, in the middle of the accessing code. So
// access them now.
void [setTimeout, clearTimeout];
const { setImmediate, clearImmediate } = globalThis as {
  setImmediate?: (run: () => void) => Pass;
  clearImmediate?: (pass: Pass) => void;
};

// Tokio polls I/O when it is idle and after every 61 tasks, so 64 tasks include a poll. Larger: a yield costs more;
// smaller: sockets may not be polled. See docs/tuning.md.
const MACROTASKS_PER_YIELD = 64;

const EMPTY = new Uint8Array();

// Callbacks for the next pass in runtimes without setImmediate, and the function that starts that pass.
let passing: Set<{ run: () => void }> = new Set();
let requestPass: (() => void) | undefined;

function waitForPass(run: () => void): Pass {
  requestPass ??= createRequest();
  const pass = { run };
  if (passing.add(pass).size === 1) requestPass();
  return pass;
}

function runPasses(): void {
  const passes = passing;
  passing = new Set();
  for (const { run } of passes) run();
}

// Browsers delay a timer by 4 ms. A message of a MessageChannel arrives in the next pass.
function createRequest(): () => void {
  if (globalThis.MessageChannel === undefined) return () => void setTimeout(runPasses, 0);
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = runPasses;
  return () => port2.postMessage(undefined);
}

/** The clock in use. */
export const clock: Clock = {
  now: () => performance.now(),
  setTimer: (run, delay) => setTimeout(run, delay),
  clearTimer: (timer) => clearTimeout(timer),
  pass: setImmediate === undefined ? waitForPass : (run) => setImmediate(run),
  clearPass(pass) {
    if (pass === undefined) return;
    if (setImmediate === undefined) passing.delete(pass as { run: () => void });
    else clearImmediate!(pass);
  },
  yieldToEventLoop: () => setImmediate === undefined ? leave() : passTasks(setImmediate),
  sleep: (run, milliseconds) => setTimeout(run, milliseconds),
};

// Resolves after MACROTASKS_PER_YIELD tasks of the runtime.
function passTasks(next: (run: () => void) => unknown): Promise<void> {
  return new Promise((resolve) => {
    let left = MACROTASKS_PER_YIELD;
    const task = () => void (left-- > 0 ? next(task) : resolve());
    task();
  });
}

// A browser handles all events between two tasks. A digest is faster than a timer (4 ms), but needs a secure context.
function leave(): Promise<unknown> {
  return crypto.subtle?.digest("SHA-1", EMPTY) ?? new Promise<void>((resolve) => setTimeout(resolve, 0));
}

/**
 * Moves the start of a wait, so that time in which the process was blocked does not count.
 *
 * At least `late` milliseconds, or the whole `limit` if that is less, then remain: input that arrived meanwhile is
 * still to be read. Without `limit` the remaining time does not grow.
 *
 * @param since The start of the wait.
 * @param late Milliseconds by which a timer of that wait was late.
 * @param now The current time.
 * @param limit Maximum duration of the wait in milliseconds.
 * @returns The new start of the wait, at most `now`.
 */
export function excuse(since: number, late: number, now: number, limit: number = Infinity): number {
  return Math.min(now, Math.max(since, now - limit) + late);
}

/** Lets the process exit while the timer is set, or not any more, in runtimes with `unref`. */
export function setTimerRef(timer: Timer | undefined, isRef: boolean): void {
  const { ref, unref } = (timer ?? {}) as { ref?: () => void; unref?: () => void };
  if (isRef) ref?.call(timer);
  else unref?.call(timer);
}
