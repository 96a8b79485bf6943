/**
 * Sets deadlines, sleeps, and listens for aborts.
 *
 * @module
 */

import * as timers from "node:timers";
import type { DuplexConnection } from "../mod.ts";
import { show } from "./errors.ts";

/**
 * Milliseconds for each step of a handshake. Larger: tolerates slower peers; smaller: silent peers occupy less memory.
 */
export const HANDSHAKE_TIMEOUT = 10_000;

/**
 * Default of `connectTimeout`, in milliseconds. Larger: reaches targets that answer late; smaller: a target that does
 * not answer is reported earlier.
 */
export const CONNECT_TIMEOUT = 10_000;

/** Waits for a step of a handshake; closes the connection when it exceeds the timeout. */
export async function withDeadline<T>(connection: Pick<DuplexConnection, "close">, step: Promise<T>): Promise<T> {
  let isLate = false;
  const clear = setDeadline(() => {
    isLate = true;
    try {
      connection.close();
    } catch {
      // It is closed already.
    }
  }, HANDSHAKE_TIMEOUT);
  try {
    return await step;
  } catch (error) {
    throw isLate ? new Error(`handshake timed out after ${HANDSHAKE_TIMEOUT} ms`, { cause: error }) : error;
  } finally {
    clear();
  }
}

/** The longest delay of a timer, in milliseconds. */
export const MAX_TIMEOUT = 2 ** 31 - 1;

// Milliseconds.
const MIN_BACKOFF = 100;

/**
 * Yields exponential delays in milliseconds, with jitter so that clients do not reconnect at the same time.
 *
 * @param max The longest delay.
 */
export function* backoff(max: number): Generator<number, never> {
  for (let longest = MIN_BACKOFF;; longest = Math.min(longest * 2, max)) yield longest * (0.5 + Math.random() / 2);
}

/** Returns the nearest timeout that a session accepts, in milliseconds. */
export function clampTimeout(timeout: number): number {
  return timeout === Infinity ? timeout : Math.min(Math.max(1, Math.ceil(timeout) || 1), MAX_TIMEOUT);
}

// Milliseconds. When a timer is later than this, the event loop was blocked, and could not read from peers either.
const LATE = 100;

/** Throws a `RangeError` for a timeout that no timer can wait for, or that is less than `least`. */
export function checkTimeout(name: string, timeout: number | undefined, least = 1): void {
  const isValid = Number.isInteger(timeout) && timeout! >= least && timeout! <= MAX_TIMEOUT;
  if (isValid || timeout === undefined || timeout === Infinity) return;
  throw new RangeError(
    `${name} must be an integer from ${least} to ${MAX_TIMEOUT} or Infinity, received ${show(timeout)}`,
  );
}

/**
 * Calls `run` once, after `delay` milliseconds. If the event loop was blocked when the timer was due, waits again,
 * once, for as long as the timer was late, at most `delay`.
 *
 * @returns A function that clears the timer.
 */
export function setDeadline(run: () => void, delay: number): () => void {
  return startDeadline(run, delay, globalThis);
}

/** The functions for timers of the runtime, or those of Node. */
interface Timers<T> {
  setTimeout(run: () => void, delay: number): T;
  clearTimeout(timer: T): void;
}

function startDeadline<T>(run: () => void, delay: number, of: Timers<T>): () => void {
  const due = performance.now() + delay;
  let timer = of.setTimeout(() => {
    const late = performance.now() - due;
    if (late <= LATE) return run();
    timer = of.setTimeout(run, Math.min(late, delay));
  }, delay);
  return () => of.clearTimeout(timer);
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

/** Calls `abort` on abort, at once if the signal is aborted already; returns a function that removes the listener. */
export function onAbort(signal: AbortSignal | undefined, abort: (reason: unknown) => void): () => void {
  const aborted = () => abort(signal!.reason);
  signal?.addEventListener("abort", aborted);
  if (signal?.aborted) aborted();
  return () => signal?.removeEventListener("abort", aborted);
}

/**
 * Runs a task with a signal that aborts with an error after `timeout` milliseconds, or with the reason of another
 * signal.
 */
export async function withTimeout<T>(
  what: string,
  timeout: number,
  by: AbortSignal,
  run: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const limit = new AbortController();
  const off = onAbort(by, (reason) => limit.abort(reason));
  const expire = () => limit.abort(new Error(`${what} timed out after ${timeout} ms`));
  // With Node's timers, because tests of the handshake replace the others.
  const clear = timeout === Infinity ? () => {} : startDeadline(expire, timeout, timers);
  try {
    return await run(limit.signal);
  } catch (error) {
    limit.signal.throwIfAborted();
    throw error;
  } finally {
    off();
    clear();
  }
}
