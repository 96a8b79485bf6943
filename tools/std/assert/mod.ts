/**
 * Stand-in for `@std/assert` when JSR is not reachable: only the exports that this repository uses.
 *
 * `assertEquals` is stricter than the original, never laxer: 0 differs from -0, and an object of any class but
 * `Object`, `Array` and `Uint8Array` equals only itself.
 *
 * @module
 */

/** A class with any constructor. */
type Class<T> = abstract new (...args: never) => T;

/** Thrown by every assertion that fails. */
class AssertionError extends Error {
  override name = "AssertionError";
}

const show = (value: unknown): string => Deno.inspect(value, { depth: 8, sorted: true, trailingComma: true });

function check(ok: boolean, what: () => string, msg?: string): asserts ok {
  if (!ok) throw new AssertionError(what() + (msg ? `: ${msg}` : "."));
}

function equal(a: unknown, b: unknown): boolean {
  if (Object.is(a, b)) return true;
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return false;
  const prototype = Object.getPrototypeOf(a);
  if (prototype !== Object.getPrototypeOf(b)) return false;
  if (a instanceof Uint8Array && b instanceof Uint8Array) {
    return a.length === b.length && a.every((byte, i) => byte === b[i]);
  }
  if (![Object.prototype, Array.prototype, null].includes(prototype)) return false;
  const keys = Reflect.ownKeys(a); // those of an array include its length
  return keys.length === Reflect.ownKeys(b).length &&
    keys.every((key) => Object.hasOwn(b, key) && equal(Reflect.get(a, key), Reflect.get(b, key)));
}

/** Describes the first difference of two byte arrays, which may be too long to print. */
function difference(a: unknown, b: unknown): string {
  if (!(a instanceof Uint8Array && b instanceof Uint8Array)) return "";
  const at = a.findIndex((byte, i) => byte !== b[i]);
  return `\n(${a.length} and ${b.length} bytes, first difference at ${at < 0 ? a.length : at})`;
}

/** Asserts that a value is truthy. */
export function assert(expr: unknown, msg = ""): asserts expr {
  if (!expr) throw new AssertionError(msg);
}

/** Asserts that a value is falsy. */
export function assertFalse(expr: unknown, msg = ""): asserts expr is false | 0 | 0n | "" | null | undefined {
  if (expr) throw new AssertionError(msg);
}

/** Asserts that two values are deeply equal. */
export function assertEquals<T>(actual: T, expected: T, msg?: string): void {
  check(
    equal(actual, expected),
    () => `Values are not equal\n  actual: ${show(actual)}\nexpected: ${show(expected)}${difference(actual, expected)}`,
    msg,
  );
}

/** Asserts that two values are not deeply equal. */
export function assertNotEquals<T>(actual: T, expected: T, msg?: string): void {
  check(!equal(actual, expected), () => `Expected a value other than ${show(expected)}`, msg);
}

/** Asserts that two values are the same, by `Object.is`. */
export function assertStrictEquals<T>(actual: unknown, expected: T, msg?: string): asserts actual is T {
  check(Object.is(actual, expected), () => `Not the same\n  actual: ${show(actual)}\nexpected: ${show(expected)}`, msg);
}

/** Asserts that a value is an instance of a class. */
export function assertInstanceOf<T>(actual: unknown, expectedType: Class<T>, msg?: string): asserts actual is T {
  check(actual instanceof expectedType, () => `Expected an instance of ${expectedType.name}, got ${show(actual)}`, msg);
}

/** Asserts that a string matches a regular expression. */
export function assertMatch(actual: string, expected: RegExp, msg?: string): void {
  check(expected.test(actual), () => `Expected ${show(actual)} to match ${expected}`, msg);
}

/** Asserts that a string contains another. */
export function assertStringIncludes(actual: string, expected: string, msg?: string): void {
  check(actual.includes(expected), () => `Expected ${show(actual)} to include ${show(expected)}`, msg);
}

/** Asserts that `actual > expected`. */
export function assertGreater<T>(actual: T, expected: T, msg?: string): void {
  check(actual > expected, () => `Expected ${show(actual)} > ${show(expected)}`, msg);
}

/** Asserts that `actual >= expected`. */
export function assertGreaterOrEqual<T>(actual: T, expected: T, msg?: string): void {
  check(actual >= expected, () => `Expected ${show(actual)} >= ${show(expected)}`, msg);
}

/** Asserts that `actual < expected`. */
export function assertLess<T>(actual: T, expected: T, msg?: string): void {
  check(actual < expected, () => `Expected ${show(actual)} < ${show(expected)}`, msg);
}

/** Asserts that `actual <= expected`. */
export function assertLessOrEqual<T>(actual: T, expected: T, msg?: string): void {
  check(actual <= expected, () => `Expected ${show(actual)} <= ${show(expected)}`, msg);
}

/** Asserts that two numbers are close; default tolerance: a ten-millionth of the expected one. */
export function assertAlmostEquals(actual: number, expected: number, tolerance?: number, msg?: string): void {
  const bound = tolerance ?? Math.abs(expected * 1e-7);
  const close = Math.abs(expected - actual) <= bound;
  check(close, () => `Expected ${actual} to be within ${bound} of ${expected}`, msg);
}

/** The arguments of `assertThrows` and `assertRejects` after the function. */
type ErrorArguments<E> = [ErrorClass?: Class<E> | string, msgIncludesOrMsg?: string, msg?: string];

function checkError<E>(error: unknown, [ErrorClass, msgIncludes = "", msg]: ErrorArguments<E>): void {
  if (typeof ErrorClass !== "function") return;
  check(error instanceof Error, () => `Expected an Error, got ${show(error)}`, msg);
  check(error instanceof ErrorClass, () => `Expected ${ErrorClass.name}, got ${error.name}: ${error.message}`, msg);
  check(
    error.message.includes(msgIncludes),
    () => `Expected an error message with ${show(msgIncludes)}, got ${show(error.message)}`,
    msg,
  );
}

const messageOf = <E>([first, , msg]: ErrorArguments<E>) => typeof first === "string" ? first : msg;

/** Asserts that a function throws; returns the error. */
export function assertThrows(fn: () => unknown, msg?: string): unknown;
/** Asserts that a function throws an error of a class, with a message that contains a text; returns the error. */
export function assertThrows<E extends Error = Error>(
  fn: () => unknown,
  ErrorClass: Class<E>,
  msgIncludes?: string,
  msg?: string,
): E;
export function assertThrows<E extends Error = Error>(fn: () => unknown, ...args: ErrorArguments<E>): unknown {
  try {
    fn();
  } catch (error) {
    checkError(error, args);
    return error;
  }
  check(false, () => "Expected function to throw", messageOf(args));
}

/** Asserts that a function returns a promise that rejects; resolves with the error. */
export function assertRejects(fn: () => PromiseLike<unknown>, msg?: string): Promise<unknown>;
/** Asserts that it rejects with an error of a class, with a message that contains a text; resolves with the error. */
export function assertRejects<E extends Error = Error>(
  fn: () => PromiseLike<unknown>,
  ErrorClass: Class<E>,
  msgIncludes?: string,
  msg?: string,
): Promise<E>;
export async function assertRejects<E extends Error = Error>(
  fn: () => PromiseLike<unknown>,
  ...args: ErrorArguments<E>
): Promise<unknown> {
  let promise: PromiseLike<unknown> | undefined;
  try {
    promise = fn();
  } catch { // fails below, like a function that returned no promise
  }
  check(typeof promise?.then === "function", () => "Function throws when expected to reject", messageOf(args));
  try {
    await promise;
  } catch (error) {
    checkError(error, args);
    return error;
  }
  check(false, () => "Expected function to reject", messageOf(args));
}
