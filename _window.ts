/**
 * Flow control of version 2: the send window and the receive window of a stream.
 *
 * Both ends count the bytes of a stream modulo 2^32. A UPD has the number of bytes consumed and the window beyond them;
 * their sum is the limit, the offset up to which the peer may send.
 *
 * @module
 */

import { clock } from "./_clock.ts";

/** Bytes that a stream may send before the first UPD. Fixed by the protocol. */
export const INITIAL_WINDOW = 262_144;

/** Maximum window in bytes. Go computes with signed 32-bit integers, to which a larger one is negative. */
export const MAX_WINDOW = 2 ** 31 - 1;

// Bytes read after which an update is sent, however large the window. Larger: the sender may wait for an update;
// smaller: more updates.
const MAX_UPDATE_INTERVAL_BYTES = 1024 * 1024;
/**
 * Bytes read before the first update, if the window is the one that the peer assumes anyway. Larger: the round trip is
 * measured later; smaller: a stream of one short message costs an update. See docs/tuning.md.
 */
export const MIN_FIRST_UPDATE_BYTES = 4096;

// If the sender waits for credit during at least this part of a round trip, the window limits it. Larger: windows stay
// too small; smaller: they grow by chance.
const MIN_WAITED_PART = 1 / 4;
// Such a window grows to this multiple of what the link carries in a round trip. Larger: more bytes in queues; smaller:
// the link has pauses.
const HEADROOM = 1.25;
// Maximum growth in a round trip, because bytes released by a buffer arrive faster than the link carries them. Larger:
// windows overshoot; smaller: a fast link is filled later.
const MAX_GROWTH = 8;
// The same after a window had to shrink: a link that delivers in bursts looks like one that the window limits. Larger:
// more bytes in queues; smaller: slow recovery.
const MAX_CAREFUL_GROWTH = 1.1;
// Milliseconds. If a round trip exceeds the shortest one by more, and the sender did not wait for credit, its bytes are
// queued on the link and delay all streams. Larger: more latency under load; smaller: links with jitter lose
// throughput.
const MAX_QUEUE_DELAY_MS = 30;
// The window then shrinks to what such a round trip should carry, by a factor between these. Larger: the queue drains
// more slowly; smaller: less throughput after one late byte.
const MIN_SHRINK_FACTOR = 0.25;
const MAX_SHRINK_FACTOR = 0.7;
/**
 * Minimum of a shrinking window in bytes. Larger: more latency on slow links (26 ms at 10 Mbit/s); smaller: less
 * throughput.
 */
export const MIN_WINDOW = 32 * 1024;

// Milliseconds without received data after which a stream returns its growth, if all room for growth is in use. Larger:
// other streams grow later; smaller: bursts lose their window.
const IDLE_MS = 1000;

// Once half of the receive buffer is unread, one stream may hold at most this fraction of the rest. Larger: fewer
// updates; smaller: more stalled streams fit in. With 1/256 of 8 MiB: 32 KiB, and 386 stalled streams leave an eighth
// of the buffer.
const SCARCE_SHARE = 1 / 256;
// Minimum of that share in bytes. Larger: fewer stalled streams fit in; smaller: a stream that is read gets too little
// for the head of an HTTP message.
const MIN_SHARE = 1024;

// Counts of bytes modulo 2^32 are kept as signed integers, because V8 treats those alike on both sides of 2^31.

/** The send window of a stream: what it may send. */
export class SendWindow {
  #sent = 0;
  #consumed = 0;
  #window = INITIAL_WINDOW;

  /** Number of bytes that may be sent now. */
  get credit(): number {
    return Math.max(0, this.#window - ((this.#sent - this.#consumed) >>> 0));
  }

  /** Counts bytes sent. */
  spend(count: number): void {
    this.#sent = (this.#sent + count) | 0;
  }

  /**
   * Applies a UPD. One whose `consumed` goes back is ignored.
   *
   * @returns Whether the limit moved; `"invalid"` if `consumed` is more than was sent.
   */
  update(consumed: number, window: number): "moved" | "unchanged" | "invalid" {
    if (((this.#sent - consumed) | 0) < 0) return "invalid";
    if (((consumed - this.#consumed) | 0) < 0) return "unchanged";
    window = Math.min(window, MAX_WINDOW);
    const isMoved = ((consumed + window) | 0) !== ((this.#consumed + this.#window) | 0);
    this.#consumed = consumed | 0;
    this.#window = window;
    return isMoved ? "moved" : "unchanged";
  }
}

/** State shared by the receive windows of one session. */
export class WindowPool {
  /** Bytes received and not read, of all streams. */
  unread = 0;
  /** Bytes of memory that received chunks keep although they were read. */
  wasted = 0;
  /**
   * When the bytes that are decoded were read, by the clock. Reading the clock for each stream takes a tenth of the time
   * of a short one.
   */
  now = 0;
  /** The initial window of a stream in bytes. */
  readonly first: number;
  /** The maximum window of one stream in bytes. */
  readonly largest: number;
  /** The shortest round trip in which a sender waited for credit, in milliseconds; 0 before the first one. */
  roundTrip = 0;
  #learnt: number;
  readonly #capacity: number;
  #left: number;
  #granted = 0;
  // Windows that have grown, with their received bytes at the last search for room. Created on first use.
  #grown: Map<ReceiveWindow, number> | undefined;
  #lookedAt = -Infinity;

  /**
   * @param largest The maximum window of one stream in bytes.
   * @param growth Bytes by which all windows together may exceed their initial windows.
   * @param capacity Maximum number of unread bytes; `Infinity` if room is never scarce.
   */
  constructor(largest: number, growth: number, capacity = Infinity) {
    this.largest = largest;
    this.first = this.#learnt = Math.min(INITIAL_WINDOW, largest);
    this.#capacity = capacity;
    this.#left = growth;
  }

  /**
   * Maximum number of unread bytes of one stream. There is no limit until half of the capacity is unread. Beyond that
   * it is a fraction of the rest, so that unread streams leave room for the others.
   */
  get share(): number {
    const left = this.#capacity - this.unread;
    if (left > this.#capacity / 2 || left === Infinity) return MAX_WINDOW;
    return Math.min(this.first, Math.max(MIN_SHARE, Math.floor(left * SCARCE_SHARE)));
  }

  /**
   * The window that a new stream starts with, in bytes: what the link needs by the last measurement of any stream, and
   * not less than the first window. A Go peer reads no credit while its receive buffer is full, so that many streams
   * with less could wait for each other: see docs/protocol.md, "What a receiver accepts".
   */
  get learnt(): number {
    return this.#learnt;
  }

  set learnt(window: number) {
    this.#learnt = Math.max(this.first, window);
  }

  /** Sum of all windows in bytes. */
  get granted(): number {
    return this.#granted;
  }

  /** Adds the initial window of a stream. */
  open(): void {
    this.#granted += this.first;
  }

  /** Removes the window of a stream. */
  close(window: number): void {
    this.#granted -= window;
    this.#left += this.#growth(window);
  }

  /** Resizes a window to `wanted` bytes, or less if there is not enough room for growth. Returns the new size. */
  resize(window: number, wanted: number): number {
    const growth = Math.min(this.#growth(wanted) - this.#growth(window), this.#left);
    this.#left -= growth;
    const size = wanted > this.first ? Math.max(window, this.first) + growth : wanted;
    this.#granted += size - window;
    return size;
  }

  /** Notes whether a window is larger than the initial one. */
  note(window: ReceiveWindow, size: number): void {
    if (size <= this.first) this.#grown?.delete(window);
    else if (!this.#grown?.has(window)) (this.#grown ??= new Map()).set(window, -1);
  }

  /** Reclaims the growth of idle streams, when all room for growth is in use. */
  reclaim(): void {
    const now = clock.now();
    if (now - this.#lookedAt < IDLE_MS) return;
    this.#lookedAt = now;
    for (const [window, seen] of this.#grown ?? []) {
      if (window.received === seen) window.giveBack();
      else this.#grown!.set(window, window.received);
    }
  }

  // Bytes beyond the initial window, which count against the room for growth.
  #growth(window: number): number {
    return Math.max(0, window - this.first);
  }
}

/** What a window needs from its stream. */
export interface ReceiveWindowHost {
  /** Sends an update, because other streams need the room. */
  onShrunk(): void;
}

/** The receive window of a stream: what the peer may send. */
export class ReceiveWindow {
  readonly #pool: WindowPool;
  #consumed = 0;
  #received = 0;
  // The limit, and the highest it ever was: data up to the latter may be in flight.
  #limit: number;
  #highest: number;
  // The size that the pool counts, and the size that updates grant, which is less while a window shrinks.
  #window: number;
  #renewed: number;
  // Bytes read when an update was last due; `undefined` before the first one.
  #reported: number | undefined;
  // The probe of the round trip: when its update was sent, the limit before it, and when the sender reached that limit.
  #probeSentAt: number | undefined;
  #probeLimit = 0;
  #waitsSince: number | undefined;
  // When the last probe was answered (at first: when the first byte arrived), and the number of bytes received by then.
  #answeredAt: number | undefined;
  #answeredBytes = 0;
  #growth = MAX_GROWTH;
  #open = true;
  readonly #host: ReceiveWindowHost | undefined;

  /**
   * @param pool State shared by the windows of the session.
   * @param host The stream.
   */
  constructor(pool: WindowPool, host?: ReceiveWindowHost) {
    this.#pool = pool;
    this.#host = host;
    this.#window = this.#renewed = pool.first;
    pool.open();
    this.#resize(pool.learnt);
    this.#renewed = this.#window;
    this.#limit = Math.min(this.#size, INITIAL_WINDOW);
    this.#highest = INITIAL_WINDOW;
  }

  /** Maximum number of unread bytes that the peer is entitled to send, including the window before the first UPD. */
  get allowed(): number {
    return Math.max(INITIAL_WINDOW, this.#window, (this.#highest - this.#consumed) | 0);
  }

  /** Whether the window is smaller than the peer assumes before the first UPD. */
  get isSmall(): boolean {
    return this.#size < INITIAL_WINDOW;
  }

  /** Bytes read since the stream was opened, modulo 2^32. */
  get consumed(): number {
    return this.#consumed >>> 0;
  }

  /** Bytes received, modulo 2^32. */
  get received(): number {
    return this.#received >>> 0;
  }

  /** Counts received bytes. */
  arrived(count: number): void {
    this.#received = (this.#received + count) | 0;
    const { now } = this.#pool;
    this.#answeredAt ??= now;
    if (this.#probeSentAt === undefined) return;
    const beyond = (this.#received - this.#probeLimit) | 0;
    // A sender without credit has ended its last frame at the limit.
    if (beyond === 0) this.#waitsSince = now;
    if (beyond > 0) this.#answered(this.#probeSentAt, now);
  }

  // The first byte beyond the old limit answers the update that moved it: smux has no other way to measure a round
  // trip. It counts only if the sender had stopped at the limit.
  #answered(probedAt: number, now: number): void {
    const pool = this.#pool;
    const bytes = (this.#received - this.#answeredBytes) >>> 0;
    const elapsed = now - this.#answeredAt!;
    const roundTrip = now - probedAt;
    const waitsFrom = this.#waitsSince;
    this.#probeSentAt = this.#waitsSince = undefined;
    this.#answeredAt = now;
    this.#answeredBytes = this.#received;
    if (waitsFrom === undefined || !(roundTrip > 0)) return;
    const waited = now - waitsFrom;
    if (waited >= roundTrip * MIN_WAITED_PART) {
      if (pool.roundTrip === 0 || roundTrip < pool.roundTrip) pool.roundTrip = roundTrip;
      const carried = bytes / (elapsed - waited) * roundTrip;
      const wanted = Math.floor(Math.min(carried * HEADROOM, this.#renewed * this.#growth, pool.largest));
      if (wanted <= this.#renewed) return;
      if (wanted > this.#window) this.#resize(wanted);
      pool.learnt = this.#renewed = Math.min(wanted, this.#window);
    } else if (roundTrip > pool.roundTrip + MAX_QUEUE_DELAY_MS) {
      const minimum = Math.min(MIN_WINDOW, pool.first);
      const wanted = (pool.roundTrip + MAX_QUEUE_DELAY_MS) / roundTrip;
      const factor = Math.min(MAX_SHRINK_FACTOR, Math.max(MIN_SHRINK_FACTOR, wanted));
      pool.learnt = this.#renewed = Math.max(minimum, Math.floor(this.#renewed * factor));
      this.#growth = MAX_CAREFUL_GROWTH;
    }
  }

  #resize(window: number): void {
    this.#window = this.#pool.resize(this.#window, window);
    this.#pool.note(this, this.#window);
    if (this.#window < window) this.#pool.reclaim();
  }

  /** Shrinks to the initial window. Moves the limit back, as `revoke` does. */
  giveBack(): void {
    this.#limit = this.#received;
    this.#probeSentAt = undefined;
    this.#renewed = this.#pool.first;
    this.#resize(this.#renewed);
    this.#host?.onShrunk();
  }

  /**
   * Revokes the credit of a stream that holds more than its share while room is scarce. Moves the limit back to what
   * was received; data in flight up to the old limit is still accepted.
   *
   * @param unread Number of unread bytes.
   * @returns Whether an update is due.
   */
  revoke(unread: number): boolean {
    if (!this.#open || unread < this.#pool.share || ((this.#limit - this.#received) | 0) <= 0) return false;
    this.#limit = this.#received;
    // The answer to a revoked update is no measure of the round trip.
    this.#probeSentAt = undefined;
    return true;
  }

  /**
   * Counts bytes that the application has read.
   *
   * @param count Number of bytes.
   * @param unread Number of bytes that are still unread.
   * @returns Whether an update is due.
   */
  read(count: number, unread: number): boolean {
    this.#consumed = (this.#consumed + count) | 0;
    if (!this.#open) return false;
    const isFirst = this.#reported === undefined;
    const isAssumed = isFirst && this.#size === INITIAL_WINDOW && this.#limit === INITIAL_WINDOW;
    if (isAssumed && this.#consumed < MIN_FIRST_UPDATE_BYTES) return false;
    const since = (this.#consumed - (this.#reported ?? 0)) >>> 0;
    const isLow = ((this.#limit - this.#consumed) | 0) <= this.#size / 2;
    if (!isFirst && !isLow && since < Math.min(this.#renewed / 2, MAX_UPDATE_INTERVAL_BYTES)) return false;
    this.#reported = this.#consumed;
    this.#fallBack(unread);
    return isFirst || this.#nextLimit() !== this.#limit;
  }

  /** Moves the limit, and returns the window for the update, which the caller sends with `consumed`. */
  advertise(): number {
    const limit = this.#nextLimit();
    if (limit !== this.#limit && this.#probeSentAt === undefined) {
      this.#probeSentAt = clock.now();
      this.#probeLimit = this.#limit;
      this.#waitsSince = this.#received === this.#limit ? this.#probeSentAt : undefined;
    }
    this.#limit = limit;
    if (((limit - this.#highest) | 0) > 0) this.#highest = limit;
    return (limit - this.#consumed) >>> 0;
  }

  /** Releases the window. No update is due after it. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#probeSentAt = undefined;
    this.#pool.note(this, 0);
    this.#pool.close(this.#window);
  }

  /** The window that the next update grants: less while room is scarce. */
  get #size(): number {
    return Math.min(this.#renewed, this.#pool.share);
  }

  // An advertised limit moves back only in `revoke` and `giveBack`.
  #nextLimit(): number {
    const limit = (this.#consumed + this.#size) | 0;
    return ((limit - this.#limit) | 0) > 0 ? limit : this.#limit;
  }

  #fallBack(unread: number): void {
    const { first, share } = this.#pool;
    // The application reads slowly, or other streams need the room: shrink to the initial window.
    if (unread >= this.#renewed / 2 || share < this.#renewed) this.#renewed = Math.min(this.#renewed, first);
    const promised = (this.#limit - this.#consumed) | 0;
    if (this.#renewed < this.#window) this.#resize(Math.min(this.#window, Math.max(this.#renewed, promised)));
  }
}
