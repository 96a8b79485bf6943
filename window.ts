/**
 * Credit, in version 2: how much a stream may still send, and how much it lets its peer send.
 *
 * Both ends count the bytes of a stream modulo 2^32. A UPD says how many the peer has read and how many more it takes
 * beyond them, so the highest offset that may be sent, the limit, is their sum.
 *
 * @module
 */

import { clock } from "./clock.ts";

/** Bytes a stream may send before it has heard from its peer: every smux 2 peer starts from this figure. */
export const FIRST_WINDOW = 262_144;

/** Largest window, in bytes: Go computes with signed integers, so a larger one would look negative. */
export const LARGEST_WINDOW = 2 ** 31 - 1;

// However large a window, an update is sent this often at least, in bytes, so that a sender never waits for one.
const LONGEST_SILENCE = 1024 * 1024;

/** How much a stream may still send. */
export class SendWindow {
  #sent = 0;
  #consumed = 0;
  #window = FIRST_WINDOW;

  /** Bytes that may be sent now. */
  get credit(): number {
    return Math.max(0, this.#window - ((this.#sent - this.#consumed) >>> 0));
  }

  /** Counts bytes sent. */
  spend(count: number): void {
    this.#sent = (this.#sent + count) >>> 0;
  }

  /**
   * Takes what a UPD says; one that goes back is ignored.
   *
   * @returns Whether the limit moved; `undefined` when the peer claims to have read what was never sent.
   */
  update(consumed: number, window: number): boolean | undefined {
    if (((this.#sent - consumed) | 0) < 0) return undefined;
    if (((consumed - this.#consumed) | 0) < 0) return false;
    window = Math.min(window, LARGEST_WINDOW);
    const moved = ((consumed + window) >>> 0) !== ((this.#consumed + this.#window) >>> 0);
    this.#consumed = consumed;
    this.#window = window;
    return moved;
  }
}

/** What the receive windows of one session share. */
export class WindowPool {
  /** The window each stream always has, in bytes. */
  readonly first: number;
  /** The largest window of one stream, in bytes. */
  readonly largest: number;
  /** The shortest round trip seen, in milliseconds; 0 before there was one that the clock could tell from none. */
  roundTrip = 0;
  #left: number;
  #granted = 0;

  /**
   * @param largest The largest window of one stream, in bytes.
   * @param room Bytes by which all windows together may exceed the first window of each.
   */
  constructor(largest: number, room: number) {
    this.largest = largest;
    this.first = Math.min(FIRST_WINDOW, largest);
    this.#left = room;
  }

  /** Bytes of all windows together. */
  get granted(): number {
    return this.#granted;
  }

  /** A stream got its first window. */
  open(): void {
    this.#granted += this.first;
  }

  /** A stream gives up all of its window. */
  close(window: number): void {
    this.#granted -= window;
    this.#left += window - this.first;
  }

  /** Takes up to `wanted` bytes, or gives back a negative number of them; says how many. */
  take(wanted: number): number {
    const taken = Math.min(wanted, this.#left);
    this.#left -= taken;
    this.#granted += taken;
    return taken;
  }
}

/** How much a stream lets its peer send. */
export class ReceiveWindow {
  readonly #pool: WindowPool;
  /** Bytes read since the stream was opened, modulo 2^32. */
  consumed = 0;
  #received = 0;
  #limit: number;
  #window: number;
  // Bytes read when an update last fell due, and whether one ever did.
  #reported = 0;
  #hasReported = false;
  // When, and at how many bytes read, the present measure of speed began.
  #lapAt: number | undefined;
  #lapConsumed = 0;
  // When the update was sent whose answer is awaited, and the limit before it.
  #probeAt: number | undefined;
  #probeLimit = 0;
  #open = true;

  /** @param pool What the session's windows share. */
  constructor(pool: WindowPool) {
    this.#pool = pool;
    this.#limit = this.#window = pool.first;
    pool.open();
  }

  /** Bytes that may be unread at once by right: what the peer may have sent, its first guess included. */
  get allowed(): number {
    return Math.max(FIRST_WINDOW, this.#window);
  }

  /** Counts bytes that arrived. */
  arrived(count: number): void {
    this.#received = (this.#received + count) >>> 0;
    if (this.#probeAt === undefined || ((this.#received - this.#probeLimit) | 0) <= 0) return;
    // The first byte beyond the old limit answers the update that moved it: smux has no other round trip to measure.
    const elapsed = clock.now() - this.#probeAt;
    this.#probeAt = undefined;
    const least = this.#pool.roundTrip;
    if (elapsed > 0 && (least === 0 || elapsed < least)) this.#pool.roundTrip = elapsed;
  }

  /**
   * Counts bytes the application read.
   *
   * @param count How many.
   * @param unread Bytes that are still unread.
   * @returns Whether an update is due.
   */
  read(count: number, unread: number): boolean {
    this.consumed = (this.consumed + count) >>> 0;
    if (!this.#open) return false;
    const since = (this.consumed - this.#reported) >>> 0;
    if (this.#hasReported && since < Math.min(this.#window / 2, LONGEST_SILENCE)) return false;
    const first = !this.#hasReported;
    this.#hasReported = true;
    this.#reported = this.consumed;
    this.#adapt(unread);
    return first || this.#nextLimit() !== this.#limit;
  }

  /** Moves the limit, and gives the window that the update must name beside `consumed`. */
  advertise(): number {
    const limit = this.#nextLimit();
    if (limit !== this.#limit && this.#probeAt === undefined) {
      this.#probeAt = clock.now();
      this.#probeLimit = this.#limit;
    }
    this.#limit = limit;
    return (limit - this.consumed) >>> 0;
  }

  /** Gives the window up: no update will follow. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#probeAt = undefined;
    this.#pool.close(this.#window);
  }

  // A limit once advertised never goes back.
  #nextLimit(): number {
    const limit = (this.consumed + this.#window) >>> 0;
    return ((limit - this.#limit) | 0) > 0 ? limit : this.#limit;
  }

  #adapt(unread: number): void {
    const { first, largest, roundTrip } = this.#pool;
    if (unread >= this.#window / 2) {
      // Nobody hurries to read: back to the first window, as far as the limit has not been promised already.
      const promised = (this.#limit - this.consumed) | 0;
      this.#window += this.#pool.take(Math.max(first, promised) - this.#window);
      return;
    }
    const now = clock.now();
    const read = (this.consumed - this.#lapConsumed) >>> 0;
    if (this.#lapAt !== undefined && read < this.#window) return;
    // A whole window within two round trips: the window is what holds the sender back. Data that comes in bursts, one a
    // round trip, is seen only at its end, when more than a window may have been read: so the time is that of a window.
    if (this.#lapAt !== undefined && (now - this.#lapAt) * this.#window < 2 * roundTrip * read) {
      this.#window += this.#pool.take(Math.min(this.#window * 2, largest) - this.#window);
    }
    this.#lapAt = now;
    this.#lapConsumed = this.consumed;
  }
}
