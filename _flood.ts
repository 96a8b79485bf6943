/**
 * Limits the work that a peer can cause without transferring data. Frames without effect have a cost; when the budget
 * is used up, reading from the peer pauses. docs/tuning.md has what was measured.
 *
 * @module
 */

import { HEADER_LENGTH } from "./frame.ts";
import { INITIAL_WINDOW } from "./_window.ts";

/**
 * Total cost before a pause. A frame without effect costs 1: NOP, UPD, FIN of an unknown stream, empty data, SYN of an
 * open stream. Larger: more work for a flooding peer; smaller: pauses for honest peers, which cause such frames, too:
 * each stream that was closed here first leaves a FIN.
 */
export const FLOOD_BUDGET = 8192;
/**
 * Cost of a refused stream. Also of a frame of data for an unknown or ended stream, and once more for every
 * BYTES_PER_COST bytes of it.
 */
export const REFUSAL_COST = 128;
const BYTES_PER_COST = 8192;
/**
 * Cost of a stream that the peer opened and ended without data, or aborted. Larger: slows down peers with many short streams;
 * smaller: less time for the acceptors, so that more of such streams are refused.
 */
export const EMPTY_STREAM_COST = 64;
// Bytes without cost for a stream that was closed here before the peer's FIN, because they may be in flight; and for
// all streams together.
const LATE_DATA_BYTES = INITIAL_WINDOW;
const MAX_LATE_DATA_BYTES = 256 * LATE_DATA_BYTES;
/**
 * The first pause. Larger: less throughput for a peer with many refused streams; smaller: less than a fair share for
 * other sessions.
 */
export const PAUSE_MS = 4;
/**
 * A first pause up to this long shows that other sessions had little to do. Otherwise a second pause follows, of at
 * most MAX_PAUSE_MS.
 */
export const SHORT_PAUSE_MS = 6;
/** Maximum of the second pause in milliseconds. */
export const MAX_PAUSE_MS = 50;

/** Counts the cost of one peer. */
export class FloodGuard {
  #cost = 0;
  #lateData = 0;

  /** Counts a frame without effect. */
  uselessFrame(): void {
    this.#cost++;
  }

  /** Counts a refused stream. */
  refusedStream(): void {
    this.#cost += REFUSAL_COST;
  }

  /** Counts a stream that the peer opened and ended without data. */
  emptyStream(): void {
    this.#cost += EMPTY_STREAM_COST;
  }

  /** Counts a stream that the peer aborted: its handler may go on for some time, although it left the table. */
  abortedStream(): void {
    this.#cost += EMPTY_STREAM_COST;
  }

  /** Counts data for a stream that has ended. */
  unwantedData(length: number): void {
    this.#cost += REFUSAL_COST * (1 + Math.floor(length / BYTES_PER_COST));
  }

  /** Counts data for an unknown stream, unless it may have been in flight when a stream was closed here. */
  lateData(length: number): void {
    if (this.#lateData > length) this.#lateData -= length + HEADER_LENGTH;
    else this.unwantedData(length);
  }

  /** Allows for data in flight to a stream that was closed here before the peer's FIN. */
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
   * @returns Milliseconds for which reading must pause.
   */
  startPause(): number {
    this.#cost = 0;
    return PAUSE_MS;
  }

  /**
   * Computes a second pause: twice the time that the frames of the peer delayed other sessions.
   *
   * @param elapsed Milliseconds that the first pause took; more than PAUSE_MS if other sessions had work.
   * @returns Milliseconds for which reading must pause again, or 0.
   */
  furtherPause(elapsed: number): number {
    return elapsed > SHORT_PAUSE_MS ? Math.min(2 * elapsed, MAX_PAUSE_MS) : 0;
  }
}
