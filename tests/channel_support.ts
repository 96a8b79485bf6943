/**
 * What the tests of the channel's rows share.
 *
 * @module
 */

import { assert, assertEquals, assertFalse, assertInstanceOf, assertLess, assertStrictEquals } from "@std/assert";
import { Channel, ChannelClosedError } from "../channel.ts";
import { reasonOf } from "./errors.ts";
import { collectGarbage } from "./garbage.ts";
import { microtasks } from "./support.ts";

/** Why a signal aborts or a channel closes. */
export const REASON = new Error("the reason");

/** Whether a promise is settled by now, and how. */
export async function stateOf(promise: Promise<unknown>): Promise<"pending" | "resolved" | "rejected"> {
  let state: "pending" | "resolved" | "rejected" = "pending";
  promise.then(() => state = "resolved", () => state = "rejected");
  await microtasks();
  return state;
}

/** Resolves when nothing holds these any more. */
export async function untilCollected(...refs: WeakRef<object>[]): Promise<void> {
  for (let tries = 0; refs.some((ref) => ref.deref() !== undefined); tries++) {
    assertLess(tries, 100, "something still holds them");
    await new Promise((resolve) => setTimeout(resolve)); // a WeakRef holds what it gave until the turn is over
    collectGarbage();
  }
}

/** The promise rejects with a CCE that carries this value. */
export async function assertUnsent(promise: Promise<unknown>, value: unknown): Promise<void> {
  const reason = await reasonOf(promise);
  assertInstanceOf(reason, ChannelClosedError);
  assert("value" in reason);
  assertStrictEquals(reason.value, value);
}

/** The promise rejects with a CCE without a value. */
export async function assertEnded(promise: Promise<unknown>): Promise<void> {
  const reason = await reasonOf(promise);
  assertInstanceOf(reason, ChannelClosedError);
  assertEquals(reason.name, "ChannelClosedError");
  assertFalse("value" in reason);
}

/** A channel with values in it. */
export function filled<T>(capacity: number, ...values: T[]): Channel<T> {
  const channel = new Channel<T>({ capacity });
  for (const value of values) assert(channel.trySend(value));
  return channel;
}

/** The channels are empty, with no receiver waiting (a value sent would stay) and no sender. */
export function assertNobodyWaits(...channels: Channel<number>[]): void {
  for (const channel of channels) {
    assertEquals(channel.tryReceive(), { state: "empty" });
    const before = channel.size;
    assertEquals(channel.trySend(-1), channel.capacity > 0);
    assertEquals(channel.size, channel.capacity > 0 ? before + 1 : 0);
    if (channel.capacity > 0) assertEquals(channel.drain(), [-1]);
  }
}

/** Puts the items into a random order, the same in every run. */
export function shuffle(items: unknown[]): void {
  for (let i = items.length - 1, random = 1; i > 0; i--) {
    random = Math.imul(random, 48271) >>> 1;
    const j = random % (i + 1);
    [items[i], items[j]] = [items[j], items[i]];
  }
}
