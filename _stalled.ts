/**
 * Streams that are not read, while what they hold leaves the other streams of their session without room.
 *
 * @module
 */

import { Deadline } from "./_deadlines.ts";
import { clock, TIMER_LAG_MS } from "./_clock.ts";
import type { Version } from "./frame.ts";
import type { StreamCore } from "./stream.ts";
import { Table } from "./_table.ts";
import type { WindowPool } from "./_window.ts";

// In version 2 streams have stalled for good when less than this part of the receive buffer is free: the windows of those
// that are read are then 8 KiB, and shrink further. In version 1 a full buffer is the only sign.
const TIGHT_PART = 8;
// A stream that is read more slowly than this, in bytes per second, counts as stalled, too.
// Larger: other streams wait less; smaller: fewer slow readers are cut.
const MIN_READ_RATE = 16 * 1024;
// Streams that were opened together may have ten times the buffer on its way, of which each cut frees one. The time of
// watching is halved for the next cut, at most this often: from 5000 ms to 313.
const MAX_HALVINGS = 4;

/** Watches the streams of one session, and cuts those that stall. */
export class StalledStreams {
  /** Called for each stream that is cut, with its error. */
  onCut: ((stream: StreamCore, error: Error) => void) | undefined;
  readonly #timeout: number;
  readonly #capacity: number;
  readonly #windows: WindowPool;
  readonly #open: Table<StreamCore>;
  // Streams that have left the session with bytes unread.
  readonly #left = new Table<StreamCore>();
  // What had been read of each when watching began, and how long it lasts.
  #watched: Map<StreamCore, number> | undefined;
  readonly #watch = new Deadline(0, 0);
  // How often in a row streams were cut, and when the last time was.
  #cuts = 0;
  #cutAt = -Infinity;

  /**
   * @param timeout Milliseconds that a stream may go without being read.
   * @param capacity Bytes that the session may hold unread.
   * @param windows Counts those bytes.
   * @param open The streams of the session.
   */
  constructor(timeout: number, capacity: number, windows: WindowPool, open: Table<StreamCore>) {
    this.#timeout = timeout;
    this.#capacity = capacity;
    this.#windows = windows;
    this.#open = open;
  }

  /** A stream leaves the session, perhaps with bytes unread. */
  leave(stream: StreamCore): void {
    if (stream.unread > 0) this.#left.add(stream);
  }

  /** Bytes of a stream were read. */
  read(stream: StreamCore): void {
    if (stream.unread === 0 && this.#left.size > 0) this.#left.delete(stream);
  }

  /** Begins to watch if room is tight; returns when to check, by the clock. */
  watch(version: Version | undefined): number {
    if (this.#watched !== undefined || !this.#isTight(version)) return Infinity;
    this.#watched = new Map();
    for (const stream of this.#left.values()) this.#watched.set(stream, stream.receiving.consumed);
    for (const stream of this.#open.values()) this.#watched.set(stream, stream.receiving.consumed);
    const now = clock.now();
    if (now > this.#cutAt + this.#timeout) this.#cuts = 0;
    this.#watch.since = now;
    // Less each time, while what is on its way fills the buffer again at once.
    this.#watch.limit = Math.ceil(this.#timeout / 2 ** Math.min(this.#cuts, MAX_HALVINGS));
    return this.#watch.at;
  }

  /** Cuts the streams that stalled, if it is time; returns when to check again. */
  check(now: number, version: Version | undefined): number {
    const watched = this.#watched;
    if (watched === undefined) return Infinity;
    if (this.#windows.unread < this.#capacity / 2) {
      this.#watched = undefined;
      return Infinity;
    }
    if (now < this.#watch.at) return this.#watch.at;
    if (!this.#isTight(version)) return now + TIMER_LAG_MS;
    this.#watched = undefined;
    const { unread } = this.#windows;
    this.#cut(watched, version);
    if (this.#windows.unread < unread) {
      this.#cuts++;
      this.#cutAt = now;
    }
    return this.watch(version);
  }

  /** The process stood still. */
  excuse(late: number, now: number): void {
    this.#watch.excuse(late, now);
  }

  /** Forgets everything. */
  end(): void {
    for (const stream of this.#left.values()) this.#left.delete(stream);
    this.#watched = undefined;
  }

  /** Whether unread bytes leave streams that are read without room (version 1) or with very small windows (version 2). */
  #isTight(version: Version | undefined): boolean {
    const room = version === 2 ? this.#capacity / TIGHT_PART : 0;
    return this.#windows.unread >= this.#capacity - room;
  }

  #cut(watched: Map<StreamCore, number>, version: Version | undefined): void {
    const { limit } = this.#watch;
    const { unread } = this.#windows;
    const read = (stream: StreamCore) => stream.receiving.consumed - watched.get(stream)!;
    const isSlow = (stream: StreamCore) => stream.unread > 0 && read(stream) * 1000 < MIN_READ_RATE * limit;
    const slow = new Set(watched.keys().filter(isSlow));
    // A slow reader may be slow while no other stream has to wait for it.
    const isAlone = this.#open.values().every((stream) => slow.has(stream));
    const stalled = Array.from(slow).filter((stream) => !isAlone || read(stream) === 0);
    stalled.sort((a, b) => b.unread - a.unread);
    // All that hold less than this hold less than half of the buffer together.
    const share = this.#capacity / 2 / stalled.length;
    // Those that are spared have no credit in version 2. In version 1 they would fill what was freed.
    const isGentle = version === 2 && this.#cuts === 0;
    for (const stream of stalled) {
      if (stream.unread < share || (isGentle && this.#windows.unread <= this.#capacity / 2)) break;
      const message = `Stream ${stream.id} stalled: ${read(stream)} bytes were read in ${limit} ms ` +
        `(stalledStreamTimeout) while it held ${stream.unread} of the session's ${unread} unread bytes`;
      const failure = () => new DOMException(message, "TimeoutError");
      stream.cut(failure);
      this.onCut?.(stream, failure());
    }
  }
}
