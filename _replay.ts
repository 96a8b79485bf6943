/**
 * Buffer of written bytes that the peer has not acknowledged, encoded as records.
 *
 * Records are encoded once, into pages that never move, so that a pending write of the carrier stays valid. A page is
 * reused when all of its records are acknowledged.
 *
 * @module
 */

import { DOUBLE } from "./_double.ts";
import { FlightLimit } from "./_flight.ts";
import { DATA_HEADER_LENGTH, encodeDataHeader, END } from "./_resume_frame.ts";
import { freeBuffer } from "./transport.ts";

// Size of the pages. The first size is for connections with little traffic, and such a page is not kept for reuse.
// Larger: more memory per connection; smaller: more writes. Of the second size: larger: more unused memory; smaller:
// more writes.
const SMALL_PAGE_BYTES = 2048;
const LARGE_PAGE_BYTES = 256 * 1024;
// Bytes of pages kept for reuse beyond those of a full buffer, which small records leave partly unused. Larger: more
// memory after a burst; smaller: more allocations.
const EXTRA_SPARE_BYTES = 2 * 1024 * 1024;

/** A part of the buffer. It has at least one record. */
interface Page {
  readonly bytes: Uint8Array;
  /** Position of the first record that may be sent again. */
  first: number;
  /** Count before that record. */
  start: number;
  /** Counts after it and after each later one. Not decoded from `bytes`, which a carrier may have changed. */
  readonly ends: number[];
  /** Position after the last record. */
  used: number;
}

/** Keeps what was written until it is acknowledged. */
export class ReplayBuffer {
  /** Maximum number of bytes that are not acknowledged. */
  readonly capacity: number;
  readonly #flight: FlightLimit;
  #pages: Page[] = [];
  #spare: Uint8Array[] = [];
  #spareBytes = 0;
  // Counts of bytes; the end of writing counts as one.
  #acknowledged = DOUBLE;
  #appended = DOUBLE;
  #sent = DOUBLE;
  #highestSent = DOUBLE;
  // The count at the last call of `trim`.
  #trimmedAt = DOUBLE;
  // The page and the position after the last byte returned by `next`.
  #page = 0;
  #position = 0;

  /** @param capacity Maximum number of bytes that are not acknowledged. */
  constructor(capacity: number) {
    this.#acknowledged = this.#appended = 0;
    this.#sent = this.#highestSent = 0;
    this.#trimmedAt = 0;
    this.capacity = capacity;
    this.#flight = new FlightLimit(capacity);
  }

  /** Count of the bytes that were appended, plus 1 after `appendEnd`. */
  get appended(): number {
    return this.#appended;
  }

  /** Count of those that were passed to the current carrier. */
  get sent(): number {
    return this.#sent;
  }

  /** Count of those that the peer has acknowledged. */
  get acknowledged(): number {
    return this.#acknowledged;
  }

  /** Number of bytes that may be appended now. */
  get room(): number {
    return this.#flight.limit - (this.#appended - this.#acknowledged);
  }

  /** There is too little room for a write. */
  exhausted(): void {
    this.#flight.reached(this.#appended, this.#acknowledged);
  }

  /** Copies bytes from the start of `p` as one record, and returns their number: 0 when the buffer is full. */
  append(p: Uint8Array): number {
    const wanted = Math.min(p.length, this.room);
    if (wanted <= 0) return 0;
    const page = this.#pageFor(wanted + DATA_HEADER_LENGTH);
    const count = Math.min(wanted, page.bytes.length - page.used - DATA_HEADER_LENGTH);
    encodeDataHeader(page.bytes, page.used, count);
    page.bytes.set(count === p.length ? p : p.subarray(0, count), page.used + DATA_HEADER_LENGTH);
    page.used += DATA_HEADER_LENGTH + count;
    page.ends.push(this.#appended += count);
    return count;
  }

  /** Whether memory with a payload up to `end` can become a page: a page that is mostly empty would be kept, too. */
  canAdopt(memory: Uint8Array, end: number): boolean {
    return end - DATA_HEADER_LENGTH <= this.capacity && end * 2 >= memory.length;
  }

  /** Appends a payload without a copy: its memory, with room for the header at the start. Returns `false` without room. */
  adopt(memory: Uint8Array, end: number): boolean {
    const count = end - DATA_HEADER_LENGTH;
    if (count > this.room) return false;
    encodeDataHeader(memory, 0, count);
    const start = this.#appended;
    this.#pages.push({ bytes: memory, first: 0, start, ends: [this.#appended += count], used: end });
    return true;
  }

  /** Returns memory of a page that was freed, or new memory. */
  takeMemory(size: number): Uint8Array {
    return this.#takeSpare(({ length }) => length === size) ?? new Uint8Array(size);
  }

  /** Appends the end of writing. */
  appendEnd(): void {
    const page = this.#pageFor(1);
    page.bytes[page.used++] = END;
    page.ends.push(++this.#appended);
  }

  /** Returns the next encoded bytes to send, valid until they are acknowledged; `undefined` if all were returned. */
  next(): Uint8Array | undefined {
    if (this.#position === this.#pages[this.#page]?.used && this.#page + 1 < this.#pages.length) {
      this.#page++;
      this.#position = 0;
    }
    const page = this.#pages[this.#page];
    if (page === undefined || this.#position === page.used) return undefined;
    const bytes = page.bytes.subarray(this.#position, page.used);
    this.#position = page.used;
    this.#sent = page.ends.at(-1)!;
    this.#highestSent = Math.max(this.#highestSent, this.#sent);
    return bytes;
  }

  /** Frees what the peer has acknowledged. Returns `false` if `count` is more than was sent. */
  acknowledge(count: number): boolean {
    if (count > this.#highestSent) return false;
    // A late acknowledgement counts less than the hello of the resumption did.
    if (count <= this.#acknowledged) return true;
    this.#acknowledged = count;
    this.#flight.acknowledged(count);
    let freed = 0;
    while (freed < this.#pages.length && this.#pages[freed]!.ends.at(-1)! <= count) freed++;
    for (const { bytes } of this.#pages.splice(0, freed)) {
      const isSmall = bytes.length <= SMALL_PAGE_BYTES;
      if (isSmall || this.#spareBytes + bytes.length > this.capacity + EXTRA_SPARE_BYTES) continue;
      this.#spare.push(bytes);
      this.#spareBytes += bytes.length;
    }
    if (this.#page < freed) this.#position = 0;
    this.#page = Math.max(0, this.#page - freed);
    return true;
  }

  /** Continues after the bytes that the peer has received. Returns `false` if that is impossible. */
  rewind(count: number): boolean {
    if (count < this.#acknowledged || !this.acknowledge(count)) return false;
    this.#flight.attached();
    this.#sent = count;
    // Pages whose records are all acknowledged were freed.
    this.#page = this.#position = 0;
    const [page] = this.#pages;
    if (page === undefined) return true;
    const { ends } = page;
    let [received, start] = [0, page.start];
    while (ends[received]! <= count) start = ends[received++]!;
    page.first += start - page.start + received * DATA_HEADER_LENGTH;
    ends.splice(0, received);
    if (count > start) {
      // The header of the rest of a record replaces payload that was received.
      page.first += count - start;
      encodeDataHeader(page.bytes, page.first, ends[0]! - count);
    }
    page.start = count;
    this.#position = page.first;
    return true;
  }

  /**
   * Frees the memory that is kept for reuse, if nothing was appended since the last call. No write of the carrier may be
   * pending. Returns whether it was freed.
   */
  trim(): boolean {
    const isIdle = this.#appended === this.#trimmedAt;
    this.#trimmedAt = this.#appended;
    if (!isIdle) return false;
    this.#spare.forEach(freeBuffer);
    this.release();
    return true;
  }

  /** Releases the memory that is kept for reuse. A write of the carrier may be pending, so it is not freed here. */
  release(): void {
    this.#spare = [];
    this.#spareBytes = 0;
  }

  #pageFor(length: number): Page {
    const last = this.#pages.at(-1);
    // A record in one piece needs fewer writes than one that fills the last page first.
    if (last !== undefined && last.bytes.length - last.used >= Math.min(length, LARGE_PAGE_BYTES)) return last;
    const size = length > SMALL_PAGE_BYTES ? LARGE_PAGE_BYTES : SMALL_PAGE_BYTES;
    const bytes = this.#takeSpare(({ length }) => length >= size) ?? new Uint8Array(size);
    const page: Page = { bytes, first: 0, start: this.#appended, ends: [], used: 0 };
    this.#pages.push(page);
    return page;
  }

  #takeSpare(isSuitable: (bytes: Uint8Array) => boolean): Uint8Array | undefined {
    // The page that was freed last is the most likely to be in the cache of the processor.
    const at = this.#spare.findLastIndex(isSuitable);
    if (at < 0) return undefined;
    const [bytes] = this.#spare.splice(at, 1);
    this.#spareBytes -= bytes!.length;
    return bytes;
  }
}
