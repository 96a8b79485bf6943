/**
 * What goes wrong: errors in words, rejections that are expected, and those that nobody handles.
 *
 * @module
 */

import { assertEquals, assertInstanceOf } from "@std/assert";

/** An error and what it came of, in one line. */
export function explain(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const cause = error.cause === undefined ? "" : ` <- ${explain(error.cause)}`;
  return `${error.name}: ${error.message.split("\n")[0]}${cause}`;
}

/** Until it is disposed of, rejections that nobody handles are told, and do not end the process. */
export function onUnhandled(tell: (reason: unknown) => void): Disposable {
  const listener = (event: PromiseRejectionEvent) => {
    event.preventDefault();
    tell(event.reason);
  };
  globalThis.addEventListener("unhandledrejection", listener);
  return { [Symbol.dispose]: () => globalThis.removeEventListener("unhandledrejection", listener) };
}

/** What a promise rejects with. */
export async function reasonOf(promise: Promise<unknown>): Promise<unknown> {
  const [result] = await Promise.allSettled([promise]);
  assertEquals(result.status, "rejected");
  return (result as PromiseRejectedResult).reason;
}

/** The promise rejects since it took too long. */
export async function assertTimeout(promise: Promise<unknown>): Promise<void> {
  const reason = await reasonOf(promise);
  assertInstanceOf(reason, DOMException);
  assertEquals(reason.name, "TimeoutError");
}
