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

// Once half of the receive buffer is unread, one stream may hold at most this fraction of the rest. Larger: fewer updates;
// smaller: more stalled streams fit in. 256: 32 KiB at first, and 386 stalled streams leave an eighth of the buffer free.
const SCARCE_SHARE = 1 / 256;
// Never less than this, in bytes, so that a stream that is read goes on: the head of an HTTP message fits.
const SMALLEST_SHARE = 1024;

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
  /** Bytes received and not yet read, of all streams. */
  unread = 0;
  /** The window of a stream while room is not scarce, in bytes, before it grows. */
  readonly first: number;
  /** The largest window of one stream, in bytes. */
  readonly largest: number;
  /** The shortest round trip seen, in milliseconds; 0 before there was one that the clock could tell from none. */
  roundTrip = 0;
  readonly #capacity: number;
  #left: number;
  #granted = 0;

  /**
   * @param largest The largest window of one stream, in bytes.
   * @param growth Bytes by which all windows together may exceed the first window of each.
   * @param capacity Bytes that may be unread in all; `Infinity` if room is never scarce.
   */
  constructor(largest: number, growth: number, capacity = Infinity) {
    this.largest = largest;
    this.first = Math.min(FIRST_WINDOW, largest);
    this.#capacity = capacity;
    this.#left = growth;
  }

  /**
   * The most that one stream may hold, in bytes. No limit until half of the capacity is unread. Beyond that a fraction of
   * what is left, so that streams that are not read cannot take the room of those that are.
   */
  get share(): number {
    const left = this.#capacity - this.unread;
    if (left > this.#capacity / 2 || left === Infinity) return LARGEST_WINDOW;
    return Math.min(this.first, Math.max(SMALLEST_SHARE, Math.floor(left * SCARCE_SHARE)));
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
  // The offset up to which the peer may send, and the highest it ever was: data may be on its way up to that.
  #limit: number;
  #highest: number;
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
    this.#window = pool.first;
    this.#limit = this.#size;
    this.#highest = FIRST_WINDOW;
    pool.open();
  }

  /** Bytes that may be unread at once by right: what the peer may have sent, its first guess included. */
  get allowed(): number {
    return Math.max(FIRST_WINDOW, this.#window, (this.#highest - this.consumed) | 0);
  }

  /** Whether it is smaller than what every peer starts from. */
  get isSmall(): boolean {
    return this.#size < FIRST_WINDOW;
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
   * Takes back the credit of a stream that holds more than its share while room is scarce. The limit goes back to what has
   * arrived; what is on its way up to the old one is still accepted.
   *
   * @param unread Bytes that are unread.
   * @returns Whether an update is due.
   */
  revoke(unread: number): boolean {
    if (!this.#open || unread < this.#pool.share || ((this.#limit - this.#received) | 0) <= 0) return false;
    this.#limit = this.#received;
    // The answer to an update that is taken back measures nothing.
    this.#probeAt = undefined;
    return true;
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
    const isLow = ((this.#limit - this.consumed) | 0) <= this.#size / 2;
    if (this.#hasReported && !isLow && since < Math.min(this.#window / 2, LONGEST_SILENCE)) return false;
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
    if (((limit - this.#highest) | 0) > 0) this.#highest = limit;
    return (limit - this.consumed) >>> 0;
  }

  /** Gives the window up: no update will follow. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#probeAt = undefined;
    this.#pool.close(this.#window);
  }

  /** The window, as far as there is room for it. */
  get #size(): number {
    return Math.min(this.#window, this.#pool.share);
  }

  // A limit once advertised goes back only by `revoke`.
  #nextLimit(): number {
    const limit = (this.consumed + this.#size) >>> 0;
    return ((limit - this.#limit) | 0) > 0 ? limit : this.#limit;
  }

  #adapt(unread: number): void {
    const { first, largest, roundTrip, share } = this.#pool;
    if (unread >= this.#window / 2 || share < this.#window) {
      // The application does not hurry to read, or others need the room: back to the first window, as far as the limit has
      // not been promised already.
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
