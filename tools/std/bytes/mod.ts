/**
 * Stand-in for `@std/bytes` where JSR cannot be reached: the functions this repository uses, nothing more.
 *
 * @module
 */
import { Buffer } from "node:buffer";

/** All the arrays' bytes, one after another, in a new array. */
export function concat(buffers: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const whole = new Uint8Array(buffers.reduce((length, buffer) => length + buffer.length, 0));
  let offset = 0;
  for (const buffer of buffers) {
    whole.set(buffer, offset);
    offset += buffer.length;
  }
  return whole;
}

/** Whether two arrays hold the same bytes. */
export function equals(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}

/** Where `needle` first occurs in `source` from `start` on (negative: from the end), or -1. */
export function indexOfNeedle(source: Uint8Array, needle: Uint8Array, start = 0): number {
  if (needle.length === 0) return -1;
  return Buffer.from(source.buffer, source.byteOffset, source.byteLength).indexOf(needle, start);
}

/** Whether `source` begins with `prefix`. */
export function startsWith(source: Uint8Array, prefix: Uint8Array): boolean {
  return equals(source.subarray(0, prefix.length), prefix);
}

/** Whether `source` ends with `suffix`. */
export function endsWith(source: Uint8Array, suffix: Uint8Array): boolean {
  return equals(source.subarray(Math.max(0, source.length - suffix.length)), suffix);
}

/** Copies into `dst` at `offset` what fits of `src`; returns how many bytes that was. */
export function copy(src: Uint8Array, dst: Uint8Array, offset = 0): number {
  const at = Math.max(0, Math.min(offset, dst.length));
  const fitting = src.subarray(0, dst.length - at);
  dst.set(fitting, at);
  return fitting.length;
}

/** `count` times the bytes of `source`, in a new array. */
export function repeat(source: Uint8Array, count: number): Uint8Array<ArrayBuffer> {
  if (!Number.isInteger(count) || count < 0) throw new RangeError(`repeat: ${count} is not a count`);
  return concat(Array.from({ length: count }, () => source));
}
