/**
 * A growing buffer of encoded frames.
 *
 * @module
 */

import {
  type Command,
  EMPTY_BYTES,
  encodeHeader,
  encodeUpdate,
  HEADER_LENGTH,
  UPDATE_LENGTH,
  type Version,
} from "./frame.ts";
import { freeBuffer } from "./transport.ts";

/**
 * Initial size of a buffer, which doubles when it is full. Larger: more memory per idle session; smaller: more copying.
 */
export const MIN_BUFFER_BYTES = 16 * 1024;

// Maximum size of a rest that is moved to the start of the buffer. Larger: more copying; smaller: less room while a part
// was dropped.
const MAX_MOVED_BYTES = 64 * 1024;

/** A buffer of encoded frames. */
export class WriteBuffer {
  #memory: Uint8Array = EMPTY_BYTES;
  readonly #headroom: number;
  // Position of the first encoded byte, and after the last.
  #start: number;
  #end: number;
  #dataLength = 0;
  #frames = 0;

  /** @param headroom Number of bytes that stay free before the first frame. */
  constructor(headroom: number) {
    this.#start = this.#end = this.#headroom = headroom;
  }

  /** Number of encoded bytes. */
  get length(): number {
    return this.#end - this.#start;
  }

  /** Number of bytes of payload among them. */
  get dataLength(): number {
    return this.#dataLength;
  }

  /** Number of encoded frames without the UPDs, which leave with the answers of the readers that caused them. */
  get frames(): number {
    return this.#frames;
  }

  /** Position after the last encoded byte: `length`, what was dropped before it, and the headroom. */
  get used(): number {
    return this.#end;
  }

  /** Allocated memory in bytes. */
  get capacity(): number {
    return this.#memory.length;
  }

  /** The memory, from the headroom on. Its bytes up to `used` are valid until the next change. */
  get memory(): Uint8Array {
    return this.#memory;
  }

  /** The encoded bytes, as a view that is valid until the next change. */
  get bytes(): Uint8Array {
    return this.#memory.subarray(this.#start, this.#end);
  }

  /** Encodes a frame whose payload is `bytes` from `start` to before `end`. */
  addFrame(version: Version, command: Command, id: number, bytes: Uint8Array, start: number, end: number): void {
    const length = end - start;
    this.#reserve(HEADER_LENGTH + length);
    const at = encodeHeader(this.#memory, this.#end, version, command, length, id);
    if (length > 0) this.#memory.set(start === 0 && end === bytes.length ? bytes : bytes.subarray(start, end), at);
    this.#end = at + length;
    this.#dataLength += length;
    this.#frames++;
  }

  /** Encodes a UPD. */
  addUpdate(id: number, consumed: number, window: number): void {
    this.#reserve(HEADER_LENGTH + UPDATE_LENGTH);
    this.#end = encodeUpdate(this.#memory, this.#end, id, consumed, window);
  }

  /** Drops `count` bytes from the start. A frame that is cut counts as one. */
  drop(count: number): void {
    this.#start += count;
    const { length } = this;
    if (length === 0) return this.clear();
    this.#dataLength = Math.min(this.#dataLength, length);
    this.#frames = 1;
    if (length >= MAX_MOVED_BYTES) return;
    this.#memory.copyWithin(this.#headroom, this.#start, this.#end);
    this.#start = this.#headroom;
    this.#end = this.#headroom + length;
  }

  /** Adds the frames of another buffer. */
  append(other: WriteBuffer): void {
    this.#reserve(other.length);
    this.#memory.set(other.bytes, this.#end);
    this.#end += other.length;
    this.#dataLength += other.dataLength;
    this.#frames += other.frames;
  }

  /** Drops the encoded frames, and keeps the memory. */
  clear(): void {
    this.#start = this.#end = this.#headroom;
    this.#dataLength = this.#frames = 0;
  }

  /** Gives the memory away in exchange for `memory`, which has the same size. What `length` counts stays until `clear`. */
  exchange(memory: Uint8Array): void {
    this.#memory = memory;
  }

  /** Drops the encoded frames, and frees the memory. */
  free(): void {
    this.clear();
    freeBuffer(this.#memory);
    this.#memory = EMPTY_BYTES;
  }

  #reserve(length: number): void {
    const needed = this.#end + length;
    if (needed <= this.#memory.length) return;
    let size = Math.max(this.#memory.length, MIN_BUFFER_BYTES);
    while (size < needed) size *= 2;
    const larger = new Uint8Array(size);
    larger.set(this.#memory.subarray(0, this.#end));
    freeBuffer(this.#memory);
    this.#memory = larger;
  }
}
