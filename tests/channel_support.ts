/**
 * Helpers for the tests of docs/channel.md's rows.
 *
 * @module
 */

import { assert, assertEquals, assertFalse, assertInstanceOf, assertLess, assertStrictEquals } from "@std/assert";
import { Channel, ChannelClosedError } from "../channel.ts";
import { reasonOf } from "./errors.ts";
import { collectGarbage } from "./garbage.ts";
import { microtasks } from "./support.ts";

/** The reason of an abort or a close. */
export const REASON = new Error("the reason");

/** Returns the state of a promise after pending microtasks. */
export async function stateOf(promise: Promise<unknown>): Promise<"pending" | "resolved" | "rejected"> {
  let state: "pending" | "resolved" | "rejected" = "pending";
  promise.then(() => state = "resolved", () => state = "rejected");
  await microtasks();
  return state;
}

/** Resolves when all of these objects are collected. */
export async function untilCollected(...refs: WeakRef<object>[]): Promise<void> {
  for (let tries = 0; refs.some((ref) => ref.deref() !== undefined); tries++) {
    assertLess(tries, 100, "objects are still referenced");
    await new Promise((resolve) => setTimeout(resolve)); // deref() keeps its target alive until the end of the tick
    collectGarbage();
  }
}

/** Asserts that the promise rejects with a `ChannelClosedError` with this `value`. */
export async function assertUnsent(promise: Promise<unknown>, value: unknown): Promise<void> {
  const reason = await reasonOf(promise);
  assertInstanceOf(reason, ChannelClosedError);
  assert("value" in reason);
  assertStrictEquals(reason.value, value);
}

/** Asserts that the promise rejects with a `ChannelClosedError` without `value`. */
export async function assertEnded(promise: Promise<unknown>): Promise<void> {
  const reason = await reasonOf(promise);
  assertInstanceOf(reason, ChannelClosedError);
  assertEquals(reason.name, "ChannelClosedError");
  assertFalse("value" in reason);
}

/** Creates a channel with values in its buffer. */
export function filled<T>(capacity: number, ...values: T[]): Channel<T> {
  const channel = new Channel<T>({ capacity });
  for (const value of values) assert(channel.trySend(value));
  return channel;
}

/** Asserts that the channels are empty and that no operation waits; a waiting receive would consume the value sent. */
export function assertNoWaits(...channels: Channel<number>[]): void {
  for (const channel of channels) {
    assertEquals(channel.tryReceive(), { state: "empty" });
    const before = channel.size;
    assertEquals(channel.trySend(-1), channel.capacity > 0);
    assertEquals(channel.size, channel.capacity > 0 ? before + 1 : 0);
    if (channel.capacity > 0) assertEquals(channel.drain(), [-1]);
  }
}

/** Shuffles the items, into the same order in every run. */
export function shuffle(items: unknown[]): void {
  for (let i = items.length - 1, random = 1; i > 0; i--) {
    random = Math.imul(random, 48271) >>> 1;
    const j = random % (i + 1);
    [items[i], items[j]] = [items[j], items[i]];
  }
}
