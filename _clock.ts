/**
 * Time, through one object that a test can replace.
 *
 * Nothing that a session is made of reads the time or sets a timer in another way, so a whole one can be simulated.
 *
 * @module
 */

/** What {@linkcode Clock.setTimer} returns: a number in browsers, an object in Deno and Node. */
export type Timer = ReturnType<typeof setTimeout>;

/** What {@linkcode Clock.pass} returns. */
export type Pass = object;

/** The longest delay, in milliseconds, that the timers of JavaScript can hold: a longer one fires at once. */
export const MAX_DELAY_MS = 2_147_483_647;

/** A timer that fires this late was held up by the process: it stood still, or was too busy to look at its sockets. */
export const TIMER_LAG_MS = 100;

/** What the package asks of time. */
export interface Clock {
  /** Milliseconds on a clock that never goes back. */
  now(): number;
  /** Calls `run` once, `delay` milliseconds from now. */
  setTimer(run: () => void, delay: number): Timer;
  /** Takes a timer back; one that has fired or was taken back is ignored. */
  clearTimer(timer: Timer | undefined): void;
  /** Calls `run` after one pass of the event loop: when every microtask of now has run, and all that they queue. */
  pass(run: () => void): Pass;
  /** Takes a pass back; one that has come is ignored. */
  clearPass(pass: Pass | undefined): void;
  /** Resolves when the runtime has polled its sockets. */
  yieldToEventLoop(): Promise<unknown>;
  /** Calls `run` after a pause; `clearTimer` takes that back. Apart from `setTimer`, so that a test can shorten pauses. */
  sleep(run: () => void, milliseconds: number): Timer | undefined;
}

// Deno loads these when they are first named, and runs microtasks as it does: in the middle of whatever names them.
void [setTimeout, clearTimeout];
const { setImmediate, clearImmediate } = globalThis as {
  setImmediate?: (run: () => void) => Pass;
  clearImmediate?: (pass: Pass) => void;
};

// Deno looks at its sockets when it has nothing to do, and after 61 tasks, as the runtime below it does by default: this
// many, and a few for what is found. Larger: giving way costs more; smaller: sockets are not looked at. Measured by
// bench/clock_bench.ts: 0.05 ms, a timer takes 2.3; two sockets meet in 1.2 ms beside a busy loop, by single passes in 59.
// Waiting for another thread does not help when that is done before Deno has nothing to do: with one other busy thread, where
// two can run, sockets were then not looked at for up to 4000 turns of a millisecond, where these take one.
const MACROTASKS_PER_YIELD = 64;

const EMPTY = new Uint8Array();

// What waits for the next pass where setImmediate is missing, and what brings that.
let passing: Set<{ run: () => void }> = new Set();
let bring: (() => void) | undefined;

function waitForPass(run: () => void): Pass {
  bring ??= makeBring();
  const pass = { run };
  if (passing.add(pass).size === 1) bring();
  return pass;
}

function bringPass(): void {
  const passes = passing;
  passing = new Set();
  for (const { run } of passes) run();
}

// A timer takes a browser 4 ms; a message to oneself comes with the next pass.
function makeBring(): () => void {
  if (globalThis.MessageChannel === undefined) return () => void setTimeout(bringPass, 0);
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = bringPass;
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

// Lets so many tasks of the runtime pass.
function passTasks(next: (run: () => void) => unknown): Promise<void> {
  return new Promise((resolve) => {
    let left = MACROTASKS_PER_YIELD;
    const task = () => void (left-- > 0 ? next(task) : resolve());
    task();
  });
}

// A browser looks at everything between two tasks. A timer takes it 4 ms; a page without TLS has nothing shorter.
function leave(): Promise<unknown> {
  return crypto.subtle?.digest("SHA-1", EMPTY) ?? new Promise<void>((resolve) => setTimeout(resolve, 0));
}

/**
 * Moves the start of a wait, so that the time in which the process stood still does not count as waiting.
 *
 * At least `late` milliseconds, or the whole `limit` if that is less, are then left of the wait: a peer may have answered
 * long ago, and its answer is only now read. Without `limit` no more is left than was before.
 *
 * @param since When the wait began.
 * @param late By how much a timer that ran meanwhile was late.
 * @param now The time.
 * @param limit How long the wait may last.
 */
export function excuse(since: number, late: number, now: number, limit: number = Infinity): number {
  return Math.min(now, Math.max(since, now - limit) + late);
}
