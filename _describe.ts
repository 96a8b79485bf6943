/**
 * Values in the messages of errors, and checks of arguments.
 *
 * @module
 */

/** Returns a text for a value that is out of bounds; a string is in quotes, so that it does not look like a number. */
export function describeValue(value: unknown): string {
  if (typeof value === "string") return JSON.stringify(value);
  return typeof value === "object" ? describeType(value) : String(value);
}

/** Returns the class of an object, or the type of any other value, which may be secret or long itself. */
export function describeType(value: unknown): string {
  if (value === null || typeof value !== "object") return value === null ? "null" : typeof value;
  return Object.getPrototypeOf(value)?.constructor?.name || "object";
}

/** Returns the error for a signal that is not an `AbortSignal`; `undefined` for a valid one. `null` counts as no signal. */
export function invalidSignal(signal: { throwIfAborted?: unknown } | null | undefined): TypeError | undefined {
  if (signal === undefined || signal === null || typeof signal.throwIfAborted === "function") return undefined;
  return new TypeError(`signal must be an AbortSignal, received ${describeType(signal)}`);
}

/**
 * Checks that a value is a function, which a later call would report without its name.
 *
 * @throws {TypeError} It is not a function.
 */
export function checkFunction(name: string, value: unknown): void {
  if (typeof value === "function") return;
  throw new TypeError(`${name} must be a function, received ${describeType(value)}`);
}

/**
 * Checks that a value is a listener. Without this, a promise of one would be an endless series of errors of `accept`.
 *
 * @throws {TypeError} It lacks `accept` or `close`.
 */
export function checkListener(value: { accept?: unknown; close?: unknown }, action: string): void {
  if (typeof value?.accept === "function" && typeof value.close === "function") return;
  throw new TypeError(`Cannot ${action}: expected a listener with accept and close, received ${describeType(value)}`);
}
