/** Limits how long a test waits, by timers of Node, which the tests do not replace. */

import * as timers from "node:timers";

/** Milliseconds. A test that waits for what never comes fails, instead of keeping all others from being reported. */
export const LONG = 60_000;

/** Waits for a promise; rejects after `delay` milliseconds, with the message that `report` returns then. */
export async function within<T>(delay: number, promise: Promise<T>, report: () => string): Promise<T> {
  const late = Promise.withResolvers<never>();
  const timer = timers.setTimeout(() => late.reject(new Error(report())), delay);
  return await Promise.race([promise, late.promise]).finally(() => timers.clearTimeout(timer));
}
