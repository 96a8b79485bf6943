/**
 * Handles, `receiveMany` and `drain`: rows 26 to 34 of docs/channel.md.
 *
 * @module
 */

import {
  assert,
  assertEquals,
  assertFalse,
  assertInstanceOf,
  assertRejects,
  assertStrictEquals,
  assertThrows,
} from "@std/assert";
import { bounded, Channel, ChannelClosedError, select, trySelect, unbounded } from "../channel.ts";
import { assertEnded, assertUnsent, filled, REASON, stateOf, untilCollected } from "./channel_support.ts";
import { reasonOf } from "./errors.ts";
import { microtasks } from "./support.ts";

Deno.test("row 26: a Sender collected as garbage without close() still counts as open", async () => {
  const { sender, receiver } = bounded<number>(1);
  const handle = (() => {
    using _ = sender;
    return new WeakRef(sender.clone());
  })();
  await untilCollected(handle);
  await microtasks();
  assertEquals(receiver.senderCount, 1);
  assertEquals(receiver.tryReceive(), { state: "empty" });
});

Deno.test("row 27: Sender.close() rejects the sends of its own handle, and the channel stays open for the other sender", async () => {
  const { sender, receiver } = bounded<string>(1);
  const other = sender.clone();
  assertEquals([sender.senderCount, other.senderCount, receiver.senderCount], [2, 2, 2]);
  sender.trySend("a");
  const mine = sender.send("b");
  const yours = other.send("c");
  sender.close();
  sender.close();
  assertEquals(receiver.senderCount, 1);
  await assertUnsent(mine, "b");
  await assertUnsent(sender.send("d"), "d");
  assertFalse(sender.trySend("e"));
  assertEquals(trySelect({ a: sender.sendCase("f") }), { key: "a", done: true });
  assertEquals(await stateOf(yours), "pending");
  assertEquals(receiver.drain(), ["a", "c"]);
  await yours;
  assert(other.trySend("g"));
  assertEquals(await receiver.receive(), "g");
});

Deno.test("row 28: when the last Sender closes, receives fail with the first reason that was passed", async () => {
  const reasons = [[], [REASON], [new Error("second")]] as const;
  for (const [first, second, expected] of [[1, 0, REASON], [0, 1, REASON], [1, 2, REASON]] as const) {
    const { sender, receiver } = bounded<number>(1);
    const other = sender.clone();
    sender.close(...reasons[first]);
    assert(other.trySend(1));
    assertEquals(receiver.tryReceive(), { state: "ok", value: 1 });
    assertEquals(receiver.tryReceive(), { state: "empty" });
    const received = receiver.receive();
    other.close(...reasons[second]);
    assertStrictEquals(await reasonOf(received), expected);
    assertEquals(receiver.tryReceive(), { state: "closed" });
    assertEquals(receiver.senderCount, 0);
  }
});

Deno.test("row 29: closing the last Receiver rejects waiting sends, drops the buffer through onDrop and aborts Sender.signal once", async () => {
  const events: unknown[] = [];
  const { sender, receiver } = bounded<string>(3, { onDrop: (value) => events.push(value) });
  const { signal } = sender;
  assertStrictEquals(sender.clone().signal, signal);
  signal.addEventListener("abort", () => events.push("signal"));
  for (const value of ["a", "b", "c"]) sender.trySend(value);
  const sent = sender.send("x");
  const other = receiver.clone();
  receiver.close();
  assertEquals(events, []);
  assertEquals(sender.receiverCount, 1);
  other.close();
  other.close();
  assertEquals(events, ["a", "b", "c", "signal"]);
  await assertUnsent(sent, "x");
  assertEquals([sender.receiverCount, sender.size], [0, 0]);
  assertInstanceOf(signal.reason, ChannelClosedError);
  assertFalse(sender.trySend("y"));
  await assertUnsent(sender.send("y"), "y");
  assertEquals(events.length, 4);

  const late = bounded<string>(1);
  late.receiver.close();
  assert(late.sender.signal.aborted);
  assertInstanceOf(late.sender.signal.reason, ChannelClosedError);
});

Deno.test("row 29: closing the last Receiver after the last Sender drops all buffered values before it throws the first error of onDrop", () => {
  const dropped: number[] = [];
  const { sender, receiver } = unbounded<number>({
    onDrop(value) {
      dropped.push(value);
      if (value < 3) throw new Error(`no ${value}`);
    },
  });
  for (let value = 0; value < 5; value++) sender.trySend(value);
  const { signal } = sender;
  sender.close();
  assertEquals(receiver.tryReceive(), { state: "ok", value: 0 });
  assertThrows(() => receiver.close(), Error, "no 1");
  assertEquals(dropped, [1, 2, 3, 4]);
  assert(signal.aborted);
  receiver.close();
  assertEquals(dropped.length, 4);
});

Deno.test("row 30: Receiver.close() ends the waits of its own handle, consumes no value and does not affect the other receiver", async () => {
  const { sender, receiver } = bounded<number>(2);
  const other = receiver.clone();
  const waiting = receiver.receive();
  const many = receiver.receiveMany(2);
  const iterated = Array.fromAsync(receiver);
  const selected = select({ a: receiver.receiveCase(), b: receiver.receiveCase() });
  const theirs = other.receive();
  receiver.close();
  await assertEnded(waiting);
  assertEquals(await many, []);
  assertEquals(await iterated, []);
  assertEquals((await selected).done, true);
  await assertEnded(receiver.receive());
  assertEquals(receiver.tryReceive(), { state: "closed" });
  assertEquals(receiver.drain(), []);
  assertEquals(await Array.fromAsync(receiver), []);
  assertEquals(await stateOf(theirs), "pending");
  for (const value of [1, 2, 3]) assert(sender.trySend(value));
  assertEquals(await theirs, 1);
  assertEquals(other.drain(), [2, 3]);
});

Deno.test("row 31: clone() and the web streams of a closed handle throw ChannelClosedError", () => {
  const { sender, receiver } = bounded<number>(1);
  const { sender: openSender, receiver: openReceiver } = { sender: sender.clone(), receiver: receiver.clone() };
  sender.close();
  receiver.close();
  assertThrows(() => sender.clone(), ChannelClosedError);
  assertThrows(() => receiver.clone(), ChannelClosedError);
  assertThrows(() => sender.toWritableStream(), ChannelClosedError);
  assertThrows(() => receiver.toReadableStream(), ChannelClosedError);
  assertEquals([openSender.senderCount, openReceiver.receiverCount], [1, 1]);
});

Deno.test("row 32: a WeakSender does not keep the channel open, and upgrade() returns undefined after the last Sender closed", async () => {
  const { sender, receiver } = bounded<number>(2);
  const weak = sender.downgrade();
  assertEquals(receiver.senderCount, 1);
  {
    using strong = weak.upgrade();
    assert(strong !== undefined);
    assert(strong.trySend(1));
    assert(strong.sameChannel(receiver));
    assertEquals(receiver.senderCount, 2);
  }
  sender.close();
  assertEquals(weak.upgrade(), undefined);
  assertEquals(receiver.senderCount, 0);
  assertEquals(await Array.fromAsync(receiver), [1]);
});

Deno.test("row 33: Channel.receiveMany() resolves with up to max buffered values without waiting, or rejects with RangeError", async () => {
  const channel = filled(5, 1, 2, 3, 4, 5);
  assertEquals(await channel.receiveMany(3), [1, 2, 3]);
  for (const value of [6, 7, 8]) channel.trySend(value);
  assertEquals(await channel.receiveMany(10), [4, 5, 6, 7, 8]);
  channel.trySend(9);
  for (const max of [0, -1, 1.5, NaN, -Infinity]) {
    await assertRejects(() => channel.receiveMany(max), RangeError, String(max));
  }
  assertEquals(await channel.receiveMany(Infinity), [9]);
  const waiting = channel.receiveMany(2);
  for (const value of [10, 11]) channel.trySend(value);
  assertEquals(await waiting, [10]);
  assertEquals(channel.drain(), [11]);
});

Deno.test("row 34: receiveMany() and drain() include the values of waiting sends, which resolve", async () => {
  for (const take of [(c: Channel<string>) => c.receiveMany(4), (c: Channel<string>) => c.drain()]) {
    const channel = filled(2, "a", "b");
    const sent = [channel.send("c"), channel.send("d")];
    assertEquals(await take(channel), ["a", "b", "c", "d"]);
    assertEquals(await Promise.all(sent), [undefined, undefined]);
    assertEquals(channel.size, 0);
  }
  const rendezvous = new Channel<string>();
  const sent = [rendezvous.send("a"), rendezvous.send("b"), rendezvous.send("c")];
  assertEquals(await rendezvous.receiveMany(2), ["a", "b"]);
  assertEquals(rendezvous.drain(), ["c"]);
  await Promise.all(sent);
});

Deno.test("channel: onDrop is called with its options object as this", () => {
  class Bin {
    readonly dropped: number[] = [];
    onDrop(value: number): void {
      this.dropped.push(value);
    }
  }
  const bin = new Bin();
  const { sender, receiver } = bounded<number>(1, bin);
  sender.trySend(7);
  receiver.close();
  assertEquals(bin.dropped, [7]);
});
