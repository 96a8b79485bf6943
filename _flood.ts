/**
 * What a peer may cost without moving data: frames that change nothing have a price, and a peer that has used up its budget
 * is not read for a while.
 *
 * @module
 */

import { HEADER_LENGTH } from "./frame.ts";
import { INITIAL_WINDOW } from "./_window.ts";

// The price of a frame that changes nothing is 1: a NOP or a UPD, of which few are ever needed, the FIN of an unknown stream
// (each stream that was closed here first leaves one behind), empty data, a SYN that comes again.
const FLOOD_BUDGET = 8192;
// The price of a refused stream; of a frame of data for a stream that is unknown or has ended, and again for every
// BYTES_PER_COST bytes in it.
const REFUSAL_COST = 128;
const BYTES_PER_COST = 8192;
// The price of a stream that its peer opened and ended without a byte of data: while the acceptors keep up, none of a
// million such streams is refused.
const EMPTY_STREAM_COST = 64;
// Bytes that may be on their way, free of charge, to a stream that was closed here before its peer ended it; and to all.
const LATE_DATA_BYTES = INITIAL_WINDOW;
const MAX_LATE_DATA_BYTES = 256 * LATE_DATA_BYTES;
// Milliseconds that a peer is not read for; 64 streams that are refused among others that come and go take 2. Beside a
// million resets another session had 0.24 to 1 of its fair share with 1, and 1.2 to 2.6 with 4.
const PAUSE_MS = 4;
// Up to this many milliseconds other sessions had little to do meanwhile. The longest second pause.
const SHORT_PAUSE_MS = 6;
const MAX_PAUSE_MS = 50;

/** Counts what one peer costs. */
export class FloodGuard {
  #cost = 0;
  #lateData = 0;

  /** Counts a frame that changes nothing. */
  uselessFrame(): void {
    this.#cost++;
  }

  /** Counts a stream that is refused. */
  refusedStream(): void {
    this.#cost += REFUSAL_COST;
  }

  /** Counts a stream that its peer opened and ended without data. */
  emptyStream(): void {
    this.#cost += EMPTY_STREAM_COST;
  }

  /** Counts data for a stream that has ended. */
  unwantedData(length: number): void {
    this.#cost += REFUSAL_COST * (1 + Math.floor(length / BYTES_PER_COST));
  }

  /** Counts data for a stream that is unknown: it may have been on its way when the stream was closed here. */
  lateData(length: number): void {
    if (this.#lateData > length) this.#lateData -= length + HEADER_LENGTH;
    else this.unwantedData(length);
  }

  /** Allows for data on its way to a stream that was closed here before its peer ended it. */
  expectLateData(): void {
    this.#lateData = Math.min(this.#lateData + LATE_DATA_BYTES, MAX_LATE_DATA_BYTES);
  }

  /** Whether the budget is used up. */
  get isExhausted(): boolean {
    return this.#cost >= FLOOD_BUDGET;
  }

  /**
   * Starts a new budget.
   *
   * @returns Milliseconds for which the peer is not to be read.
   */
  startPause(): number {
    this.#cost = 0;
    return PAUSE_MS;
  }

  /**
   * Returns what a peer still has to wait for: twice as long as the other sessions, which had to wait for its frames.
   *
   * @param elapsed Milliseconds that the pause took: more when other sessions had much to do.
   * @returns Milliseconds for which the peer is not to be read after it, or 0.
   */
  furtherPause(elapsed: number): number {
    return elapsed > SHORT_PAUSE_MS ? Math.min(2 * elapsed, MAX_PAUSE_MS) : 0;
  }
}
