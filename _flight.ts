/**
 * The limit of bytes in flight of a resumable connection: what the link needs, and not all that may be kept.
 *
 * Bytes beyond that only wait in the buffers of the sockets. There they leave the caches of the processor, and a small
 * message waits behind them.
 *
 * @module
 */

import { clock } from "./_clock.ts";
import { DOUBLE } from "./_double.ts";

// Minimum of the limit, in bytes: three acknowledgements. Larger: longer queues on slow links; smaller: the carrier runs
// dry between two acknowledgements.
const MIN_FLIGHT_BYTES = 768 * 1024;
// The limit after a short round trip. Larger: more memory; smaller: on loopback each end waits for the other. See
// docs/tuning.md.
const SHORT_FLIGHT_BYTES = 2 * MIN_FLIGHT_BYTES;
// Milliseconds of a round trip for which these limits are enough: with the minimum, 390 MB/s. Larger: fast links of a few
// milliseconds have pauses; smaller: the work of the two ends counts as a long link.
const SHORT_ROUND_TRIP_MS = 2;
// Milliseconds that longer ones in a row take before the link counts as long. Larger: such a link is filled later; smaller:
// the limit grows while the functions of an end are compiled, and throughput stays lower after that. See docs/tuning.md.
const MIN_LONG_MS = 30;
// The limit of a long link is this multiple of what it carries in its shortest round trip. Larger: longer queues; smaller:
// links whose round trips vary have pauses, and a fast link is filled later.
const HEADROOM = 2;
// In one of this many round trips few bytes are in flight, which shows how long the link is. Larger: a limit that was too
// high or too low lasts longer; smaller: less throughput on a long link.
const PROBE_INTERVAL = 128;

/** The limit of one connection, which follows its carrier. */
export class FlightLimit {
  readonly #max: number;
  #limit: number;
  // The limit after the present round trip, if that is one with few bytes in flight.
  #next = DOUBLE;
  #roundTrips = 0;
  // Milliseconds of the last ones, if they were long.
  #long = DOUBLE;
  // In milliseconds, since the last round trip with few bytes in flight.
  #shortest = Infinity;
  // The round trip that is measured: the count whose acknowledgement ends it, and the time and the count at its start.
  #end = Infinity;
  #begunAt = DOUBLE;
  #base = DOUBLE;

  /** @param max Maximum of the limit in bytes. It is the limit until there is a carrier. */
  constructor(max: number) {
    this.#next = this.#long = 0;
    this.#begunAt = this.#base = 0;
    this.#max = this.#limit = max;
  }

  /** Maximum number of bytes in flight. */
  get limit(): number {
    return this.#limit;
  }

  /** The connection has a new carrier. */
  attached(): void {
    this.#end = Infinity;
    this.#roundTrips = this.#long = 0;
    this.#probe(0);
  }

  /**
   * The limit delays a write. Only such a round trip is measured, because an application that writes less does not show
   * what the link carries.
   *
   * @param end Count of the bytes that were written.
   * @param acknowledged Count of those that are acknowledged. The others are in flight.
   */
  reached(end: number, acknowledged: number): void {
    // After the limit was lowered, more than that may still be in flight.
    if (this.#end !== Infinity || end - acknowledged > this.#limit) return;
    this.#end = end;
    this.#base = acknowledged;
    this.#begunAt = clock.now();
  }

  /** The peer has acknowledged the bytes up to `count`. */
  acknowledged(count: number): void {
    if (count < this.#end) return;
    this.#end = Infinity;
    const duration = clock.now() - this.#begunAt;
    this.#shortest = Math.min(this.#shortest, duration);
    const isShort = duration <= SHORT_ROUND_TRIP_MS;
    this.#long = isShort ? 0 : this.#long + duration;
    const needed = HEADROOM * (count - this.#base) * this.#shortest / duration;
    const isLong = this.#long >= MIN_LONG_MS;
    const limit = isLong ? Math.max(needed, this.#next) : isShort ? SHORT_FLIGHT_BYTES : MIN_FLIGHT_BYTES;
    this.#next = 0;
    if (++this.#roundTrips % PROBE_INTERVAL === 0) this.#probe(limit);
    else this.#set(limit);
  }

  #probe(next: number): void {
    this.#next = next;
    this.#shortest = Infinity;
    this.#set(0);
  }

  #set(limit: number): void {
    this.#limit = Math.min(Math.max(Math.round(limit), MIN_FLIGHT_BYTES), this.#max);
  }
}
