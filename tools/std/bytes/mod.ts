/**
 * Stand-in for `@std/bytes` when JSR is not reachable: only the exports that this repository uses.
 *
 * @module
 */
import { Buffer } from "node:buffer";

/** Concatenates arrays of bytes into a new array. */
export function concat(buffers: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const whole = new Uint8Array(buffers.reduce((length, buffer) => length + buffer.length, 0));
  let offset = 0;
  for (const buffer of buffers) {
    whole.set(buffer, offset);
    offset += buffer.length;
  }
  return whole;
}

/** Whether two arrays have the same bytes. */
export function equals(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}

/** Returns the index of the first `needle` in `source`, or -1. */
export function indexOfNeedle(source: Uint8Array, needle: Uint8Array): number {
  return Buffer.from(source.buffer, source.byteOffset, source.byteLength).indexOf(needle);
}

/** Repeats the bytes of `source` `count` times, in a new array. */
export function repeat(source: Uint8Array, count: number): Uint8Array<ArrayBuffer> {
  return concat(new Array<Uint8Array>(count).fill(source));
}
