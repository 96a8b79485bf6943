/**
 * Sets deadlines, pauses, and follows signals.
 *
 * @module
 */

import type { DuplexConnection } from "../mod.ts";

// Whoever takes so many milliseconds to say or hear something is not waited for any more.
const HEAD_TIMEOUT = 10_000;

/** Waits for what must be said soon; closes the connection if it is not. */
export async function withDeadline<T>(connection: DuplexConnection, saying: Promise<T>): Promise<T> {
  let isLate = false;
  const clear = setDeadline(() => {
    isLate = true;
    connection.close();
  }, HEAD_TIMEOUT);
  try {
    return await saying;
  } catch (error) {
    throw isLate ? new Error(`it kept us waiting for ${HEAD_TIMEOUT} ms`, { cause: error }) : error;
  } finally {
    clear();
  }
}

const MIN_BACKOFF = 100;
export const MAX_BACKOFF = 30_000;

/** Milliseconds to wait before each try: up to twice as many each time, and not the same for all who wait. */
export function* backoff(): Generator<number, never> {
  for (let longest = MIN_BACKOFF;; longest = Math.min(longest * 2, MAX_BACKOFF)) {
    yield longest * (0.5 + Math.random() / 2);
  }
}

/** The milliseconds that a session can wait which are nearest to these. */
export function clampTimeout(timeout: number): number {
  return timeout === Infinity ? timeout : Math.min(Math.max(1, Math.ceil(timeout) || 1), 2 ** 31 - 1);
}

// A timer that fires this many milliseconds late was held up by the process, and so was what peers sent meanwhile.
const LATE = 100;

/**
 * Calls `run` once, after `delay` milliseconds in which the process did not stand still: a timer that is late is set
 * again, once, for as long as it was late, at most `delay`.
 *
 * @returns Clears the timer.
 */
export function setDeadline(run: () => void, delay: number): () => void {
  const due = performance.now() + delay;
  let timer = setTimeout(() => {
    const late = performance.now() - due;
    if (late <= LATE) return run();
    timer = setTimeout(run, Math.min(late, delay));
  }, delay);
  return () => clearTimeout(timer);
}

/** Lets time pass, until the signal. */
export async function sleep(milliseconds: number, signal: AbortSignal): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, milliseconds);
  const off = onAbort(signal, () => resolve());
  await promise;
  clearTimeout(timer);
  off();
}

/** Calls `abort` when the signal aborts, or did before; gives what takes that back. */
export function onAbort(signal: AbortSignal | undefined, abort: (reason: unknown) => void): () => void {
  const aborted = () => abort(signal!.reason);
  signal?.addEventListener("abort", aborted);
  if (signal?.aborted) aborted();
  return () => signal?.removeEventListener("abort", aborted);
}
