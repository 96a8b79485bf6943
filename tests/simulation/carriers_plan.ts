/**
 * The plan of the carriers of a seed: how each of the first attempts to dial fails, and when.
 *
 * @module
 */

import { other, type SideName } from "./invariants.ts";
import type { Random } from "./random.ts";

/** What happens to a carrier. */
export const CARRIER_FAULTS = [
  // The dial fails, or takes long.
  "dial refused",
  "dial hangs",
  // The server answers the hello so.
  "busy",
  // Both ends notice, after the bytes before.
  "carrier reset",
  "carrier end",
  // Bytes of both directions, or of one, get lost without a sign.
  "carrier hangs",
  "direction hangs",
  // Only these ends notice; what is in flight still arrives.
  "lost at client",
  "lost at server",
  "lost at both",
] as const;

/** The fault of one carrier. */
export interface CarrierFault {
  readonly kind: typeof CARRIER_FAULTS[number];
  /** The sender of the bytes that are counted. */
  readonly side: SideName;
  /** The fault occurs at this byte. */
  readonly at: number;
  /** Milliseconds after which it occurs, if the byte is not sent earlier. */
  readonly after: number;
  /** Whether an end sees the end of the connection instead of an error. */
  readonly isEnd: boolean;
  /** Whether the close of the end that notices does not reach the other one. */
  readonly isSilent: boolean;
  /** Milliseconds that every byte takes longer than on other carriers, so that bytes of an old carrier arrive late. */
  readonly delay: number;
}

/** The decisions of a seed about its carriers. */
export interface CarriersPlan {
  /** The options of both ends. */
  readonly silence: number;
  readonly resumeTimeout: number;
  readonly maxUnacknowledged: number;
  /** The faults of the first dials, in order. Later carriers are sound. */
  readonly faults: CarrierFault[];
  /** When the network fails as a whole, in milliseconds after the start, and for how long. */
  readonly outage: { readonly after: number; readonly milliseconds: number; readonly hangs: boolean } | undefined;
  /** Whether both ends exchange bytes without sessions. */
  readonly isBytes: boolean;
  /** Most milliseconds from the close of a carrier until its pending operations settle. */
  readonly mostLinger: number;
}

// In milliseconds. The timeout is above every outage, so that each transfer completes.
const RESUME_TIMEOUT = 300_000;
const LEAST_UNACKNOWLEDGED = 64 * 1024;
// Length of a hello and of a reply.
const GREETING = 33;

/**
 * Decides on the carriers.
 *
 * @param mostBytes Most bytes of one direction of a stream.
 * @param timeout The timeout of the sessions.
 */
export function planCarriers(random: Random, mostBytes: number, timeout: number): CarriersPlan {
  const silence = random.pick(timeout >= 40_000 ? [1000, 2000, 10_000] : [1000, 2000]);
  const faults = Array.from({ length: random.pick([1, 2, 3, 6, 12]) }, (): CarrierFault => {
    const side = random.pick(["client", "server"] as const);
    const kind = random.pick(CARRIER_FAULTS);
    return {
      kind,
      side: random.oneIn(2) ? side : other(side),
      // Within the greeting, within the first records, or anywhere.
      at: random.pick([random.below(GREETING), GREETING + random.below(60), random.skewed(mostBytes)]),
      after: random.oneIn(2) ? random.skewed(200) : random.skewed(10_000),
      isEnd: random.oneIn(3),
      isSilent: random.oneIn(2),
      // A carrier that does not die must be fast enough.
      delay: kind.startsWith("dial") ? 0 : random.pick([0, 0, 100, 400]),
    };
  });
  return {
    silence,
    resumeTimeout: RESUME_TIMEOUT,
    maxUnacknowledged: random.pick([LEAST_UNACKNOWLEDGED, LEAST_UNACKNOWLEDGED, 4 * 1024 * 1024]),
    faults,
    outage: random.oneIn(4)
      ? { after: random.skewed(3000), milliseconds: random.skewed(80_000), hangs: random.oneIn(2) }
      : undefined,
    isBytes: random.oneIn(4),
    mostLinger: random.pick([0, 0, 20, 500]),
  };
}
