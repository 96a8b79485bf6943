/**
 * Detects and cuts stalled streams: streams whose unread bytes leave the other streams of the session without room.
 *
 * @module
 */

import { Deadline } from "./_deadlines.ts";
import { clock, TIMER_LAG_MS } from "./_clock.ts";
import type { Version } from "./frame.ts";
import type { StreamCore } from "./stream.ts";
import { Table } from "./_table.ts";
import type { WindowPool } from "./_window.ts";

// In version 2 the streams are watched while less than 1/TIGHT_PART of the receive buffer is free: with 16 MiB the
// other streams then have windows of 8 KiB or less. In version 1 they are watched while the buffer is full. Larger:
// other streams are slowed down more; smaller: streams are cut earlier.
const TIGHT_PART = 8;
// Bytes per second. A stream that is read more slowly counts as stalled where other streams wait.
// Larger: other streams wait less; smaller: fewer slow readers are cut.
const MIN_READ_RATE = 16 * 1024;
// Data in flight may fill the buffer again after each cut, so each watch in a row is half as long as the last, up to
// this many times: with 5000 ms down to 313. Larger: other streams wait less; smaller: more time for readers.
const MAX_HALVINGS = 4;

/** Watches the streams of one session, and cuts those that stall. */
export class StalledStreams {
  /** Called for each stream that is cut, with its error. */
  onCut: ((stream: StreamCore, error: Error) => void) | undefined;
  readonly #timeout: number;
  readonly #capacity: number;
  readonly #windows: WindowPool;
  readonly #open: Table<StreamCore>;
  // Streams that were removed from the session with unread bytes.
  readonly #left = new Table<StreamCore>();
  // The watched streams, with their consumed bytes at the start of the watch, and the deadline of the watch.
  #watched: Map<StreamCore, number> | undefined;
  readonly #watch = new Deadline(0, 0);
  // Number of cuts in a row, and the time of the last one.
  #cuts = 0;
  #cutAt = -Infinity;

  /**
   * @param timeout Milliseconds after which an unread stream counts as stalled.
   * @param capacity Maximum number of unread bytes of the session.
   * @param windows Counts the unread bytes.
   * @param open The streams of the session.
   */
  constructor(timeout: number, capacity: number, windows: WindowPool, open: Table<StreamCore>) {
    this.#timeout = timeout;
    this.#capacity = capacity;
    this.#windows = windows;
    this.#open = open;
  }

  /** Called when a stream is removed from the session. It may have unread bytes. */
  leave(stream: StreamCore): void {
    if (stream.unread > 0) this.#left.add(stream);
  }

  /** Called when bytes of a stream were read. */
  read(stream: StreamCore): void {
    if (stream.unread === 0 && this.#left.size > 0) this.#left.delete(stream);
  }

  /** Starts a watch if room is tight. Returns when to check, by the clock. */
  watch(version: Version | undefined): number {
    if (this.#watched !== undefined || !this.#isTight(version)) return Infinity;
    this.#watched = new Map();
    for (const stream of this.#left.values()) this.#watched.set(stream, stream.receiving.consumed);
    for (const stream of this.#open.values()) this.#watched.set(stream, stream.receiving.consumed);
    const now = clock.now();
    if (now > this.#cutAt + this.#timeout) this.#cuts = 0;
    this.#watch.since = now;
    // Shorter each time while the buffer fills again at once.
    this.#watch.limit = Math.ceil(this.#timeout / 2 ** Math.min(this.#cuts, MAX_HALVINGS));
    return this.#watch.at;
  }

  /** Cuts the stalled streams, if the watch is over. Returns when to check again. */
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

  /** Excludes time in which the process was blocked. */
  excuse(late: number, now: number): void {
    this.#watch.excuse(late, now);
  }

  /** Releases all streams, at the end of the session. */
  end(): void {
    for (const stream of this.#left.values()) this.#left.delete(stream);
    this.#watched = undefined;
  }

  /** Whether unread bytes leave the other streams without room (version 1) or with very small windows (version 2). */
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
    // A stream may be read slowly if no other stream waits for it.
    const isAlone = this.#open.values().every((stream) => slow.has(stream));
    const stalled = Array.from(slow).filter((stream) => !isAlone || read(stream) === 0);
    stalled.sort((a, b) => b.unread - a.unread);
    // Streams that hold less than this hold less than half of the buffer together.
    const share = this.#capacity / 2 / stalled.length;
    // In version 2 the remaining stalled streams have no credit. In version 1 they would fill the freed room again.
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
