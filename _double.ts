/**
 * How to declare a field that counts bytes.
 *
 * V8 keeps a field as a 32-bit integer for as long as it has held nothing else. When a count of bytes reaches 2^31, the
 * objects of its class change their shape, and all compiled functions that use one are dropped at once, in the middle
 * of a transfer. A field that began as another number is a double from the start. See docs/tuning.md.
 *
 * @module
 */

/** The first value of a field that will hold a count beyond 2^31, or a fraction. The constructor then sets it to 0. */
export const DOUBLE: number = NaN;
