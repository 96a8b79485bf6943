/**
 * Received bytes of one stream that are not read yet, in order.
 *
 * Bytes are kept as a view of the buffer they came in where that wastes little memory, and copied otherwise.
 *
 * @module
 */

import { Channel } from "./channel.ts";
import { EMPTY_BYTES } from "./frame.ts";
import { ReadBuffer } from "./transport.ts";

// Fewer bytes than this are always copied.
const MIN_VIEW_BYTES = 4096;
// Bytes of memory that a view and a small chunk in front of it take beside the buffer, rounded up.
const VIEW_COST_BYTES = 1024;
// Copied payloads are merged into chunks of these sizes.
const MIN_MERGED_BYTES = 64;
const MAX_MERGED_BYTES = 16 * 1024;
// Below this length a loop copies faster than a view is made.
const COPY_BY_LOOP_BYTES = 32;
// Chunks are limited by their bytes (credit, the session's budget), never by their number.
const UNLIMITED = 2 ** 31 - 1;

/** Bytes, and the buffer to release when they were read; small ones have none. */
interface Chunk {
  readonly bytes: Uint8Array;
  readonly buffer: ReadBuffer | undefined;
}

/** A queue of bytes. Any reader can consume them, in pieces of its own. */
export class ChunkQueue {
  #length = 0;
  // The chunk that is being read, whole chunks behind it, and the chunk that is being filled.
  #first: Chunk | undefined;
  #position = 0;
  #chunks: Channel<Chunk> | undefined;
  #merged: Uint8Array = EMPTY_BYTES;
  #mergedLength = 0;

  /** Bytes in the queue. */
  get length(): number {
    return this.#length;
  }

  /**
   * Adds bytes of a read.
   *
   * @param buffer What they came in.
   * @param start Position of the first byte.
   * @param end Position after the last byte.
   * @param isCopied Whether to copy them in any case, so that the buffer can be read into again.
   */
  push(buffer: ReadBuffer, start: number, end: number, isCopied: boolean): void {
    const { bytes } = buffer;
    const length = end - start;
    this.#length += length;
    // A view keeps its whole buffer: at most twice the bytes it counts.
    if (!isCopied && length >= MIN_VIEW_BYTES && length * 2 >= bytes.buffer.byteLength + VIEW_COST_BYTES) {
      this.#pushMerged();
      buffer.retain();
      this.#pushChunk({ bytes: bytes.subarray(start, end), buffer });
    } else {
      this.#merge(bytes, start, end);
    }
  }

  /** Moves bytes into `p`, and returns their number. */
  read(p: Uint8Array): number {
    let count = 0;
    while (count < p.length && this.#next()) {
      const { bytes } = this.#first!;
      const stop = Math.min(bytes.length, this.#position + p.length - count);
      copy(bytes, this.#position, stop, p, count);
      count += stop - this.#position;
      this.#position = stop;
      if (stop < bytes.length) break;
      this.#dropFirst();
    }
    this.#length -= count;
    return count;
  }

  /** Removes the first chunk and returns it, in a buffer that belongs to the caller; `undefined` when the queue is empty. */
  shift(): Uint8Array | undefined {
    if (!this.#next()) return undefined;
    const { bytes, buffer } = this.#first!;
    const rest = this.#position === 0 ? bytes : bytes.subarray(this.#position);
    this.#length -= rest.length;
    if (rest.length * 2 > rest.buffer.byteLength && (buffer === undefined || buffer.giveAway())) {
      this.#first = undefined;
      return rest;
    }
    const copied = rest.slice();
    this.#dropFirst();
    return copied;
  }

  /** Drops all bytes, and returns their number. */
  clear(): number {
    const count = this.#length;
    while (this.#next()) this.#dropFirst();
    this.#length = 0;
    return count;
  }

  #next(): boolean {
    if (this.#first !== undefined) return true;
    if (this.#length === 0) return false;
    this.#position = 0;
    const next = this.#chunks?.tryReceive();
    if (next?.state === "ok") {
      this.#first = next.value;
    } else {
      if (this.#mergedLength === 0) return false;
      this.#first = this.#takeMerged();
    }
    return true;
  }

  #dropFirst(): void {
    this.#first!.buffer?.release();
    this.#first = undefined;
  }

  #merge(bytes: Uint8Array, start: number, end: number): void {
    while (start < end) {
      const room = this.#merged.length - this.#mergedLength;
      if (room === 0) {
        this.#makeRoom(end - start);
        continue;
      }
      const stop = Math.min(end, start + room);
      copy(bytes, start, stop, this.#merged, this.#mergedLength);
      this.#mergedLength += stop - start;
      start = stop;
    }
  }

  #makeRoom(length: number): void {
    const { length: size } = this.#merged;
    if (size === 0) {
      this.#merged = new Uint8Array(Math.max(MIN_MERGED_BYTES, length));
    } else if (size >= MAX_MERGED_BYTES) {
      this.#pushMerged();
      this.#merged = new Uint8Array(Math.max(MAX_MERGED_BYTES, length));
    } else {
      const larger = new Uint8Array(Math.max(Math.min(size * 2, MAX_MERGED_BYTES), size + length));
      larger.set(this.#merged);
      this.#merged = larger;
    }
  }

  #pushMerged(): void {
    if (this.#mergedLength > 0) this.#pushChunk(this.#takeMerged());
  }

  #takeMerged(): Chunk {
    const merged = this.#merged;
    const bytes = this.#mergedLength === merged.length ? merged : merged.subarray(0, this.#mergedLength);
    this.#merged = EMPTY_BYTES;
    this.#mergedLength = 0;
    return { bytes, buffer: merged.length >= MIN_VIEW_BYTES ? new ReadBuffer(merged) : undefined };
  }

  #pushChunk(chunk: Chunk): void {
    (this.#chunks ??= new Channel({ capacity: UNLIMITED })).trySend(chunk);
  }
}

/** Copies bytes, from `start` to before `end` of `source`, to position `at` of `target`. */
export function copy(source: Uint8Array, start: number, end: number, target: Uint8Array, at: number): void {
  if (end - start >= COPY_BY_LOOP_BYTES) target.set(source.subarray(start, end), at);
  else while (start < end) target[at++] = source[start++]!;
}
