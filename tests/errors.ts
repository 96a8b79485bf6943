/**
 * Errors as text, expected rejections, and unhandled rejections.
 *
 * @module
 */

import { assertEquals, assertInstanceOf } from "@std/assert";

/** An error with its causes, in one line. */
export function explain(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const cause = error.cause === undefined ? "" : ` <- ${explain(error.cause)}`;
  return `${error.name}: ${error.message.split("\n")[0]}${cause}`;
}

/** Calls `report` for each unhandled rejection until disposed, and keeps it from ending the process. */
export function onUnhandled(report: (reason: unknown) => void): Disposable {
  const listener = (event: PromiseRejectionEvent) => {
    event.preventDefault();
    report(event.reason);
  };
  globalThis.addEventListener("unhandledrejection", listener);
  return { [Symbol.dispose]: () => globalThis.removeEventListener("unhandledrejection", listener) };
}

/** The reason of a rejected promise. */
export async function reasonOf(promise: Promise<unknown>): Promise<unknown> {
  const [result] = await Promise.allSettled([promise]);
  assertEquals(result.status, "rejected");
  return (result as PromiseRejectedResult).reason;
}

/** Asserts that the promise rejects with a TimeoutError. */
export async function assertTimeout(promise: Promise<unknown>): Promise<void> {
  const reason = await reasonOf(promise);
  assertInstanceOf(reason, DOMException);
  assertEquals(reason.name, "TimeoutError");
}
