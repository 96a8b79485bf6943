/**
 * Checks the limits of the sessions of a tunnel.
 *
 * @module
 */

import { show } from "./errors.ts";
import type { TunnelOptions } from "./options.ts";
import { checkTimeout } from "./wait.ts";

/** Limits of a connection between client and server. */
export interface Limits {
  /** Options of its session. */
  session: Pick<TunnelOptions, "keepAliveInterval" | "timeout" | "maxStreams" | "maxReceiveBuffer">;
  /** Milliseconds of silence after which a resumable connection is suspended; `undefined`: the default. */
  silence: number | undefined;
}

// The bound of a session.
const MAX_NUMBER = 2 ** 31 - 1;

function checkInteger(name: string, value: number | undefined): void {
  if (value === undefined || (Number.isInteger(value) && value >= 1 && value <= MAX_NUMBER)) return;
  throw new RangeError(`${name} must be an integer from 1 to ${MAX_NUMBER}, received ${show(value)}`);
}

/**
 * Returns the limits that options contain; a missing one is `undefined`.
 *
 * @throws {RangeError} A limit is out of bounds, so that no session would start with it.
 */
export function limitsOf({ keepAliveInterval, timeout, maxStreams, maxReceiveBuffer }: TunnelOptions): Limits {
  checkTimeout("keepAliveInterval", keepAliveInterval);
  checkTimeout("timeout", timeout);
  checkInteger("maxStreams", maxStreams);
  checkInteger("maxReceiveBuffer", maxReceiveBuffer);
  const interval = keepAliveInterval ?? Infinity;
  // The default of a session.
  const silent = timeout ?? 30_000;
  if (interval !== Infinity && silent < interval) {
    throw new RangeError(`timeout must be at least keepAliveInterval, ${interval}, received ${silent}`);
  }
  // A peer that resumes answers probes: it is never silent. The connection must be suspended before its session ends.
  const silence = timeout === undefined || timeout === Infinity ? undefined : Math.max(1, Math.floor(timeout / 3));
  return { session: { keepAliveInterval, timeout, maxStreams, maxReceiveBuffer }, silence };
}
