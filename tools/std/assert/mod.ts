/**
 * Stand-in for `@std/assert` where JSR cannot be reached: the functions this repository uses, nothing more.
 *
 * One difference: `assertEquals` follows `node:util`, so it tells 0 from -0.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import { isDeepStrictEqual } from "node:util";

/** A class, whatever its constructor takes. */
type Class<T> = abstract new (...args: never) => T;

/** An array or anything like one, but not a string. */
export type ArrayLikeArg<T> = ArrayLike<T> & object;

/** What every failed assertion throws. */
export class AssertionError extends Error {
  override name = "AssertionError";
}

const show = (value: unknown): string => Deno.inspect(value, { depth: 8, sorted: true, trailingComma: true });

function check(ok: boolean, what: () => string, msg?: string): asserts ok {
  if (!ok) throw new AssertionError(what() + (msg ? `: ${msg}` : "."));
}

function equal(a: unknown, b: unknown): boolean {
  const bytes = a instanceof Uint8Array && b instanceof Uint8Array && a.constructor === b.constructor;
  return bytes ? Buffer.compare(a, b) === 0 : isDeepStrictEqual(a, b); // the first is quick even for megabytes
}

/** Where two byte arrays part, since printing them whole would not help. */
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

/** Asserts that a value is neither null nor undefined. */
export function assertExists<T>(actual: T, msg?: string): asserts actual is NonNullable<T> {
  check(actual !== undefined && actual !== null, () => `Expected a value, got ${show(actual)}`, msg);
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

/** Asserts that an array contains every one of some values, compared deeply. */
export function assertArrayIncludes<T>(actual: ArrayLikeArg<T>, expected: ArrayLikeArg<T>, msg?: string): void {
  const missing = Array.from(expected).filter((item) => !Array.from(actual).some((other) => equal(item, other)));
  check(missing.length === 0, () => `Expected ${show(actual)} to include ${show(missing)}`, msg);
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

/** Asserts that two numbers are close; without a tolerance, to a ten-millionth of the expected one. */
export function assertAlmostEquals(actual: number, expected: number, tolerance?: number, msg?: string): void {
  const bound = tolerance ?? (Number.isFinite(expected) ? Math.abs(expected * 1e-7) : 1e-7);
  const close = Object.is(actual, expected) || Math.abs(expected - actual) <= bound;
  check(close, () => `Expected ${actual} to be within ${bound} of ${expected}`, msg);
}

/** What `assertThrows` and `assertRejects` may be told after the function. */
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

/** Asserts that a function throws, and returns what it threw. */
export function assertThrows(fn: () => unknown, msg?: string): unknown;
/** Asserts that a function throws such an error, and returns it. */
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

/** Asserts that a function returns a promise that rejects, and resolves with the reason. */
export function assertRejects(fn: () => PromiseLike<unknown>, msg?: string): Promise<unknown>;
/** Asserts that a function returns a promise that rejects with such an error, and resolves with it. */
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
  } catch { // told below, like a function that returned no promise
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

/** Fails. */
export function fail(msg?: string): never {
  throw new AssertionError(`Failed assertion${msg ? `: ${msg}` : "."}`);
}

/** Marks code that must never run. */
export function unreachable(msg?: string): never {
  throw new AssertionError(`Unreachable${msg ? `: ${msg}` : "."}`);
}
