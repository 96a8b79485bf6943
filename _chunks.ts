/**
 * Queue of the unread bytes of one stream.
 *
 * Bytes are kept as a view of the read buffer if they cover most of it, and copied otherwise.
 *
 * @module
 */

import { Channel } from "./channel.ts";
import { EMPTY_BYTES } from "./frame.ts";
import { ReadBuffer } from "./transport.ts";

/** Minimum length of a view. Larger: more copying; smaller: more memory per byte. */
export const MIN_VIEW_BYTES = 4096;
// Upper bound for the memory of a view and of a small chunk before it, beside the buffer.
const VIEW_COST_BYTES = 1024;
// Copied payloads are merged into chunks of these sizes. Larger: more unused memory; smaller: more chunks.
const MIN_MERGED_BYTES = 64;
const MAX_MERGED_BYTES = 16 * 1024;
// Below this length a loop is faster than `set` with a subarray.
const COPY_BY_LOOP_BYTES = 32;
// Memory that the chunks which are being read by all streams of a session may keep for nothing: what was read of a chunk,
// once that is most of it. Larger: more memory; smaller: more copying.
const MAX_WASTED_BYTES = 1024 * 1024;
// Chunks are limited by their bytes (credit, maxReceiveBuffer), not by their number.
const UNLIMITED = 2 ** 31 - 1;

/** Unread bytes, and the buffer to release after they were read; `undefined` for small chunks. */
interface Chunk {
  readonly bytes: Uint8Array;
  readonly buffer: ReadBuffer | undefined;
}

/** State shared by the queues of a session. */
export interface ChunkPool {
  /** Bytes of memory of chunks that are mostly read. */
  wasted: number;
}

/** A queue of bytes, read in pieces of any size. */
export class ChunkQueue {
  readonly #pool: ChunkPool;
  // Its part of `wasted`.
  #wasted = 0;
  #length = 0;
  // The chunk that is being read, complete chunks after it, and the chunk that is being filled.
  #first: Chunk | undefined;
  #position = 0;
  #chunks: Channel<Chunk> | undefined;
  #merged: Uint8Array = EMPTY_BYTES;
  #mergedLength = 0;

  /** @param pool State shared by the queues of the session. */
  constructor(pool: ChunkPool = { wasted: 0 }) {
    this.#pool = pool;
  }

  /** Number of bytes in the queue. */
  get length(): number {
    return this.#length;
  }

  /**
   * Adds received bytes.
   *
   * @param buffer The buffer of the read.
   * @param start Position of the first byte.
   * @param end Position after the last byte.
   * @param isCopied Whether to copy in any case, so that the buffer can be reused for the next read.
   */
  push(buffer: ReadBuffer, start: number, end: number, isCopied: boolean): void {
    const { bytes } = buffer;
    const length = end - start;
    this.#length += length;
    // A view keeps its whole buffer in memory, so it must cover at least half of it.
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
    if (this.#length > 0) this.#limitWaste();
    return count;
  }

  /** Removes and returns the first chunk, in a buffer that the caller owns; `undefined` if the queue is empty. */
  shift(): Uint8Array | undefined {
    if (!this.#next()) return undefined;
    const { bytes, buffer } = this.#first!;
    const rest = this.#position === 0 ? bytes : bytes.subarray(this.#position);
    this.#length -= rest.length;
    if (rest.length * 2 > rest.buffer.byteLength && (buffer === undefined || buffer.giveAway())) {
      this.#first = undefined;
      this.#waste(0);
      return rest;
    }
    // Not `slice`, which returns a view if the transport delivers a Buffer of Node.
    const copied = new Uint8Array(rest);
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
    this.#waste(0);
  }

  /** Copies the rest of a chunk of which most was read, if the rests of all queues keep too much memory. */
  #limitWaste(): void {
    const rest = this.#first === undefined ? this.#length : this.#first.bytes.length - this.#position;
    const { byteLength } = (this.#first === undefined ? this.#merged : this.#first.bytes).buffer;
    this.#waste(rest * 2 < byteLength ? byteLength - rest : 0);
    if (this.#wasted === 0 || this.#pool.wasted <= MAX_WASTED_BYTES || !this.#next()) return;
    const copied = new Uint8Array(this.#first!.bytes.subarray(this.#position));
    this.#dropFirst();
    this.#first = makeChunk(copied, copied);
    this.#position = 0;
  }

  #waste(count: number): void {
    this.#pool.wasted += count - this.#wasted;
    this.#wasted = count;
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
    return makeChunk(bytes, merged);
  }

  #pushChunk(chunk: Chunk): void {
    (this.#chunks ??= new Channel({ capacity: UNLIMITED })).trySend(chunk);
  }
}

function makeChunk(bytes: Uint8Array, memory: Uint8Array): Chunk {
  return { bytes, buffer: memory.length >= MIN_VIEW_BYTES ? new ReadBuffer(memory) : undefined };
}

/** Copies `source` from `start` to before `end` to position `at` of `target`. */
export function copy(source: Uint8Array, start: number, end: number, target: Uint8Array, at: number): void {
  if (end - start >= COPY_BY_LOOP_BYTES) target.set(source.subarray(start, end), at);
  else while (start < end) target[at++] = source[start++]!;
}
