/**
 * Credit, in version 2: how much a stream may still send, and how much it lets its peer send.
 *
 * Both ends count the bytes of a stream modulo 2^32. A UPD says how many the peer has read and how many more it accepts
 * beyond them, so the highest offset that may be sent, the limit, is their sum.
 *
 * @module
 */

import { clock } from "./_clock.ts";

/** Bytes a stream may send before it has heard from its peer: every smux 2 peer starts from this figure. */
export const INITIAL_WINDOW = 262_144;

/** Largest window, in bytes: Go computes with signed integers, so a larger one would look negative. */
export const MAX_WINDOW = 2 ** 31 - 1;

// However large a window, an update is sent this often at least, in bytes, so that a sender never waits for one.
const MAX_UPDATE_INTERVAL_BYTES = 1024 * 1024;

// If the sender waits for credit during this part of a round trip at least, the window is what limits it. Larger: windows
// stay too small; smaller: they grow by chance.
const MIN_WAITED_PART = 1 / 4;
// Such a window grows to this many times what the link carries in a round trip. Larger: more of it stands in queues; smaller:
// the link has pauses.
const HEADROOM = 1.25;
// But at most by this factor in a round trip: bytes that a buffer held back come in faster than the link carries them.
const MAX_GROWTH = 8;
// By this factor once it had to shrink: a link that brings bytes in bursts looks like one that the window limits.
const MAX_CAREFUL_GROWTH = 1.1;
// A round trip this much longer than the shortest, in milliseconds, in which the sender did not wait for credit, means that
// its bytes stand in a queue, behind which those of all other streams wait. Larger: more latency under load; smaller: links
// with jitter lose throughput.
const MAX_QUEUE_DELAY_MS = 30;
// The window shrinks to what such a round trip should have carried, by a factor between these for each, and not below this
// many bytes: at 10 Mbit/s they take 26 ms.
const MIN_SHRINK_FACTOR = 0.25;
const MAX_SHRINK_FACTOR = 0.7;
const MIN_WINDOW = 32 * 1024;

// When all room for growth is taken, a stream that has received nothing for this long, in milliseconds, gives its own back.
const IDLE_MS = 1000;

// Once half of the receive buffer is unread, one stream may hold at most this fraction of the rest. Larger: fewer updates;
// smaller: more stalled streams fit in. 256: 32 KiB at first, and 386 stalled streams leave an eighth of the buffer free.
const SCARCE_SHARE = 1 / 256;
// Never less than this, in bytes, so that a stream that is read goes on: the head of an HTTP message fits.
const MIN_SHARE = 1024;

/** How much a stream may still send. */
export class SendWindow {
  #sent = 0;
  #consumed = 0;
  #window = INITIAL_WINDOW;

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
   * @returns Whether it moved the limit; `"invalid"` when the peer claims to have read what was never sent.
   */
  update(consumed: number, window: number): "moved" | "unchanged" | "invalid" {
    if (((this.#sent - consumed) | 0) < 0) return "invalid";
    if (((consumed - this.#consumed) | 0) < 0) return "unchanged";
    window = Math.min(window, MAX_WINDOW);
    const isMoved = ((consumed + window) >>> 0) !== ((this.#consumed + this.#window) >>> 0);
    this.#consumed = consumed;
    this.#window = window;
    return isMoved ? "moved" : "unchanged";
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
  /** The shortest round trip in which a sender waited for credit, in milliseconds; 0 before there was one. */
  roundTrip = 0;
  /** The window that the link needs, in bytes, as the stream that measured it last found: a new stream starts with it. */
  learnt: number;
  readonly #capacity: number;
  #left: number;
  #granted = 0;
  // Those that have grown, and how many bytes had arrived when room was last looked for. Few sessions have any.
  #grown: Map<ReceiveWindow, number> | undefined;
  #lookedAt = -Infinity;

  /**
   * @param largest The largest window of one stream, in bytes.
   * @param growth Bytes by which all windows together may exceed the first window of each.
   * @param capacity Bytes that may be unread in all; `Infinity` if room is never scarce.
   */
  constructor(largest: number, growth: number, capacity = Infinity) {
    this.largest = largest;
    this.first = this.learnt = Math.min(INITIAL_WINDOW, largest);
    this.#capacity = capacity;
    this.#left = growth;
  }

  /**
   * The most that one stream may hold, in bytes. No limit until half of the capacity is unread. Beyond that a fraction of
   * what is left, so that streams that are not read cannot take the room of those that are.
   */
  get share(): number {
    const left = this.#capacity - this.unread;
    if (left > this.#capacity / 2 || left === Infinity) return MAX_WINDOW;
    return Math.min(this.first, Math.max(MIN_SHARE, Math.floor(left * SCARCE_SHARE)));
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
    this.#left += this.#growth(window);
  }

  /** Changes a window of this size to the `wanted` one, as far as there is room for growth, and returns its new size. */
  resize(window: number, wanted: number): number {
    const growth = Math.min(this.#growth(wanted) - this.#growth(window), this.#left);
    this.#left -= growth;
    const size = wanted > this.first ? Math.max(window, this.first) + growth : wanted;
    this.#granted += size - window;
    return size;
  }

  /** Notes whether a window has grown beyond the first. */
  note(window: ReceiveWindow, size: number): void {
    if (size <= this.first) this.#grown?.delete(window);
    else if (!this.#grown?.has(window)) (this.#grown ??= new Map()).set(window, -1);
  }

  /** All room for growth is taken: takes that of idle streams back, which could otherwise keep it for ever. */
  reclaim(): void {
    const now = clock.now();
    if (now - this.#lookedAt < IDLE_MS) return;
    this.#lookedAt = now;
    for (const [window, seen] of this.#grown ?? []) {
      if (window.received === seen) window.giveBack();
      else this.#grown!.set(window, window.received);
    }
  }

  // Bytes of a window that are rationed.
  #growth(window: number): number {
    return Math.max(0, window - this.first);
  }
}

/** What a window needs from its stream. */
export interface ReceiveWindowHost {
  /** The peer must be sent an update because other streams need the room. */
  onShrunk(): void;
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
  // What the pool counts, and the size that updates renew: less while a window shrinks, until what it promised is used.
  #window: number;
  #renewed: number;
  // Bytes read when an update last fell due, if one ever did.
  #reported: number | undefined;
  // When the update was sent whose answer is awaited, the limit before it, and since when the sender waits there.
  #probeSentAt: number | undefined;
  #probeLimit = 0;
  #waitsSince: number | undefined;
  // When the last answer came, or the first byte, and how many bytes had arrived by then.
  #answeredAt: number | undefined;
  #answeredBytes = 0;
  #growth = MAX_GROWTH;
  #open = true;
  readonly #host: ReceiveWindowHost | undefined;

  /**
   * @param pool What the session's windows share.
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

  /** Bytes that may be unread at once by right: what the peer may have sent, its first guess included. */
  get allowed(): number {
    return Math.max(INITIAL_WINDOW, this.#window, (this.#highest - this.consumed) | 0);
  }

  /** Whether it is smaller than what every peer starts from. */
  get isSmall(): boolean {
    return this.#size < INITIAL_WINDOW;
  }

  /** Bytes that have arrived, modulo 2^32. */
  get received(): number {
    return this.#received;
  }

  /** Counts bytes that arrived. */
  arrived(count: number): void {
    this.#received = (this.#received + count) >>> 0;
    this.#answeredAt ??= clock.now();
    if (this.#probeSentAt === undefined) return;
    const beyond = (this.#received - this.#probeLimit) | 0;
    // A sender that is out of credit ends a frame where its credit ends.
    if (beyond === 0) this.#waitsSince = clock.now();
    if (beyond > 0) this.#answered(this.#probeSentAt, clock.now());
  }

  // The first byte beyond the old limit answers the update that moved it: smux has no other round trip to measure. It is
  // one only if the sender had stopped there.
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

  /** Falls back to the first window. The limit goes back, too, as by `revoke`. */
  giveBack(): void {
    this.#limit = this.#received;
    this.#probeSentAt = undefined;
    this.#renewed = this.#pool.first;
    this.#resize(this.#renewed);
    this.#host?.onShrunk();
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
    this.#probeSentAt = undefined;
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
    const isFirst = this.#reported === undefined;
    const since = (this.consumed - (this.#reported ?? 0)) >>> 0;
    const isLow = ((this.#limit - this.consumed) | 0) <= this.#size / 2;
    if (!isFirst && !isLow && since < Math.min(this.#renewed / 2, MAX_UPDATE_INTERVAL_BYTES)) return false;
    this.#reported = this.consumed;
    this.#fallBack(unread);
    return isFirst || this.#nextLimit() !== this.#limit;
  }

  /** Moves the limit, and gives the window that the update must name beside `consumed`. */
  advertise(): number {
    const limit = this.#nextLimit();
    if (limit !== this.#limit && this.#probeSentAt === undefined) {
      this.#probeSentAt = clock.now();
      this.#probeLimit = this.#limit;
      this.#waitsSince = this.#received === this.#limit ? this.#probeSentAt : undefined;
    }
    this.#limit = limit;
    if (((limit - this.#highest) | 0) > 0) this.#highest = limit;
    return (limit - this.consumed) >>> 0;
  }

  /** Gives the window up: no update will follow. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#probeSentAt = undefined;
    this.#pool.note(this, 0);
    this.#pool.close(this.#window);
  }

  /** The window, as far as there is room for it. */
  get #size(): number {
    return Math.min(this.#renewed, this.#pool.share);
  }

  // A limit once advertised goes back only by `revoke` and `giveBack`.
  #nextLimit(): number {
    const limit = (this.consumed + this.#size) >>> 0;
    return ((limit - this.#limit) | 0) > 0 ? limit : this.#limit;
  }

  #fallBack(unread: number): void {
    const { first, share } = this.#pool;
    // The application does not hurry to read, or others need the room.
    if (unread >= this.#renewed / 2 || share < this.#renewed) this.#renewed = Math.min(this.#renewed, first);
    const promised = (this.#limit - this.consumed) | 0;
    if (this.#renewed < this.#window) this.#resize(Math.min(this.#window, Math.max(this.#renewed, promised)));
  }
}
