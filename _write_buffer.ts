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

/** A buffer of encoded frames. */
export class WriteBuffer {
  #memory: Uint8Array = EMPTY_BYTES;
  #length = 0;
  #dataLength = 0;
  #frames = 0;

  /** Number of encoded bytes. */
  get length(): number {
    return this.#length;
  }

  /** Number of bytes of payload among them. */
  get dataLength(): number {
    return this.#dataLength;
  }

  /** Number of encoded frames. */
  get frames(): number {
    return this.#frames;
  }

  /** Allocated memory in bytes. */
  get capacity(): number {
    return this.#memory.length;
  }

  /** The encoded bytes, as a view that is valid until the next change. */
  get bytes(): Uint8Array {
    return this.#memory.subarray(0, this.#length);
  }

  /** Encodes a frame whose payload is `bytes` from `start` to before `end`. */
  addFrame(version: Version, command: Command, id: number, bytes: Uint8Array, start: number, end: number): void {
    const length = end - start;
    this.#reserve(HEADER_LENGTH + length);
    const at = encodeHeader(this.#memory, this.#length, version, command, length, id);
    if (length > 0) this.#memory.set(start === 0 && end === bytes.length ? bytes : bytes.subarray(start, end), at);
    this.#length = at + length;
    this.#dataLength += length;
    this.#frames++;
  }

  /** Encodes a UPD. */
  addUpdate(id: number, consumed: number, window: number): void {
    this.#reserve(HEADER_LENGTH + UPDATE_LENGTH);
    this.#length = encodeUpdate(this.#memory, this.#length, id, consumed, window);
    this.#frames++;
  }

  /** Drops the encoded frames, and keeps the memory. */
  clear(): void {
    this.#length = this.#dataLength = this.#frames = 0;
  }

  /** Drops the encoded frames, and frees the memory. */
  free(): void {
    this.clear();
    freeBuffer(this.#memory);
    this.#memory = EMPTY_BYTES;
  }

  #reserve(length: number): void {
    const needed = this.#length + length;
    if (needed <= this.#memory.length) return;
    let size = Math.max(this.#memory.length, MIN_BUFFER_BYTES);
    while (size < needed) size *= 2;
    const larger = new Uint8Array(size);
    larger.set(this.bytes);
    freeBuffer(this.#memory);
    this.#memory = larger;
  }
}
