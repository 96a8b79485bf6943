/**
 * Sets deadlines, sleeps, and listens to signals.
 *
 * @module
 */

import type { DuplexConnection } from "../mod.ts";

// Milliseconds for a request, and for its response to be written. Larger: slower peers; smaller: silent ones hold less.
const HANDSHAKE_TIMEOUT = 10_000;

/** Waits for a step of a handshake; closes the connection when it takes too long. */
export async function withDeadline<T>(connection: DuplexConnection, step: Promise<T>): Promise<T> {
  let isLate = false;
  const clear = setDeadline(() => {
    isLate = true;
    connection.close();
  }, HANDSHAKE_TIMEOUT);
  try {
    return await step;
  } catch (error) {
    throw isLate ? new Error(`handshake timed out after ${HANDSHAKE_TIMEOUT} ms`, { cause: error }) : error;
  } finally {
    clear();
  }
}

const MIN_BACKOFF = 100;
export const MAX_BACKOFF = 30_000;

/** Milliseconds before each attempt, at most twice those before; at random, so that clients do not come all at once. */
export function* backoff(): Generator<number, never> {
  for (let longest = MIN_BACKOFF;; longest = Math.min(longest * 2, MAX_BACKOFF)) {
    yield longest * (0.5 + Math.random() / 2);
  }
}

/** The timeout nearest to this one that a session accepts, in milliseconds. */
export function clampTimeout(timeout: number): number {
  return timeout === Infinity ? timeout : Math.min(Math.max(1, Math.ceil(timeout) || 1), 2 ** 31 - 1);
}

// Milliseconds. A timer that fires later than this was held up by the process, and so were bytes that peers had sent.
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

/** Waits until the time has passed or the signal aborts. */
export async function sleep(milliseconds: number, signal: AbortSignal): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, milliseconds);
  const off = onAbort(signal, () => resolve());
  await promise;
  clearTimeout(timer);
  off();
}

/** Calls `abort` when the signal aborts, at once when it did before; returns a function that removes the listener. */
export function onAbort(signal: AbortSignal | undefined, abort: (reason: unknown) => void): () => void {
  const aborted = () => abort(signal!.reason);
  signal?.addEventListener("abort", aborted);
  if (signal?.aborted) aborted();
  return () => signal?.removeEventListener("abort", aborted);
}
