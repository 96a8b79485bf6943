/**
 * Sending, receiving and closing: rows 1 to 16, 24 and 25 of docs/channel.md.
 *
 * @module
 */

import { assert, assertEquals, assertFalse, assertStrictEquals, assertThrows } from "@std/assert";
import { bounded, Channel, ChannelClosedError, unbounded } from "../channel.ts";
import { assertEnded, assertUnsent, filled, REASON, stateOf } from "./channel_support.ts";
import { reasonOf } from "./errors.ts";
import { microtasks } from "./support.ts";

Deno.test("row 1: Channel and bounded() throw RangeError for capacity -1, 1.5, NaN, Infinity and null, and bounded() names unbounded", () => {
  for (const capacity of [-1, 1.5, NaN, Infinity, null as never]) {
    assertThrows(() => new Channel({ capacity }), RangeError, String(capacity));
    const error = assertThrows(() => bounded(capacity), RangeError, String(capacity));
    assert(error.message.includes("unbounded"), error.message);
  }
  assertEquals(new Channel().capacity, 0);
  assertEquals(new Channel({ capacity: undefined }).capacity, 0);
  assertEquals(new Channel({ capacity: 3 }).capacity, 3);
  assertEquals(bounded(0).sender.capacity, 0);
  assertEquals(unbounded().receiver.capacity, Infinity);
});

Deno.test("row 2: Channel.send() resolves at once while the buffer has room", async () => {
  const channel = filled(2, "a");
  await channel.send("b");
  assertEquals(channel.size, 2);
  assertEquals(channel.drain(), ["a", "b"]);
});

Deno.test("row 3: on a full channel send() waits and trySend() returns false", async () => {
  const channel = filled(2, "a", "b");
  const sent = channel.send("c");
  assertEquals(await stateOf(sent), "pending");
  assertEquals(channel.size, 2);
  assertFalse(channel.trySend("d"));
  assertEquals(channel.drain(), ["a", "b", "c"]);
  await sent;
});

Deno.test("row 4: on a rendezvous without a receive trySend() returns false and send() waits", async () => {
  const channel = new Channel<string>();
  assertFalse(channel.trySend("lost?"));
  const sent = channel.send("a");
  assertEquals(await stateOf(sent), "pending");
  assertEquals(channel.size, 0);
  assertEquals(await channel.receive(), "a");
  await sent;
  assertEquals(channel.tryReceive(), { state: "empty" });
});

Deno.test("row 5: on a rendezvous trySend() passes its value to a waiting receive", async () => {
  const channel = new Channel<string>();
  const received = channel.receive();
  assert(channel.trySend("a"));
  assertFalse(channel.trySend("b"));
  assertEquals(await received, "a");
});

Deno.test("row 6: on a rendezvous tryReceive() returns the value of a waiting send, which resolves", async () => {
  const channel = new Channel<string>();
  const sent = channel.send("a");
  assertEquals(channel.tryReceive(), { state: "ok", value: "a" });
  assertEquals(channel.tryReceive(), { state: "empty" });
  assertEquals(await sent, undefined);
});

Deno.test("row 7: waiting receives resolve in the order of their calls", async () => {
  for (const capacity of [0, 1]) {
    const channel = new Channel<string>({ capacity });
    const r1 = channel.receive();
    const r2 = channel.receive();
    await channel.send("a");
    await channel.send("b");
    assertEquals([await r1, await r2], ["a", "b"]);
  }
});

Deno.test("row 8: Channel.send() passes its value to a waiting receive without buffering it", async () => {
  const channel = new Channel<string>({ capacity: 4 });
  const received = channel.receive();
  const sent = channel.send("a");
  assertEquals(channel.size, 0);
  await sent;
  assertEquals(await received, "a");
});

Deno.test("row 9: on a full channel receive() resolves with the oldest value and admits only the first waiting send", async () => {
  const channel = filled(1, "a");
  const b = channel.send("b");
  const c = channel.send("c");
  assertEquals(await channel.receive(), "a");
  assertEquals(channel.size, 1);
  assertEquals([await stateOf(b), await stateOf(c)], ["resolved", "pending"]);
  assertEquals(channel.drain(), ["b", "c"]);
  await c;
});

Deno.test("row 10: Channel.trySend() returns false while a send waits", async () => {
  const channel = filled(1, "a");
  const b = channel.send("b");
  assertFalse(channel.trySend("c"));
  assertEquals(channel.drain(), ["a", "b"]);
  await b;
});

Deno.test("row 11: a channel delivers undefined, null and NaN unchanged", async () => {
  for (const value of [undefined, null, NaN]) {
    const channel = new Channel<unknown>({ capacity: 1 });
    await channel.send(value);
    assertEquals(channel.tryReceive(), { state: "ok", value });
    const received = channel.receive();
    await channel.send(value);
    assertStrictEquals(await received, value);
    const sent = channel.send(value);
    assertEquals(await channel.receiveMany(2), [value]);
    await sent;
    await channel.send(value);
    channel.close();
    assertEquals(await Array.fromAsync(channel), [value]);
  }
});

Deno.test("row 12: after close() buffered values are received, then receive() rejects with ChannelClosedError without value", async () => {
  const channel = filled(3, 1, 2, 3);
  channel.close();
  assert(channel.closed);
  assertEquals([await channel.receive(), await channel.receive(), await channel.receive()], [1, 2, 3]);
  await assertEnded(channel.receive());
  assertEquals(channel.tryReceive(), { state: "closed" });
  assertEquals(await channel.receiveMany(1), []);
  assertEquals(channel.drain(), []);
});

Deno.test("row 13: Channel.close() rejects waiting receives and ends iterations, streams and receiveMany()", async () => {
  const channel = new Channel<number>();
  const first = channel.receive();
  const second = channel.receive();
  const iterated = Array.fromAsync(channel);
  const next = channel[Symbol.asyncIterator]().next();
  const many = channel.receiveMany(2);
  const read = channel.toReadableStream().getReader().read();
  channel.close();
  await assertEnded(first);
  await assertEnded(second);
  assertEquals(await iterated, []);
  assertEquals(await next, { done: true, value: undefined });
  assertEquals(await many, []);
  assertEquals<unknown>(await read, { done: true, value: undefined });
});

Deno.test("row 14: after close(reason) buffered values are received, then receive(), iterations and streams fail with the reason", async () => {
  const use: ((channel: Channel<number>, values: unknown[]) => Promise<unknown>)[] = [
    async (channel, values) => {
      for (;;) values.push(await channel.receive());
    },
    async (channel, values) => {
      for await (const value of channel) values.push(value);
    },
    async (channel, values) => {
      for await (const value of channel.toReadableStream()) values.push(value);
    },
    async (channel, values) => {
      for (;;) values.push(...await channel.receiveMany(1));
    },
  ];
  for (const receive of use) {
    for (const reason of [REASON, new ChannelClosedError("given as the reason"), null]) {
      const channel = filled(2, 1, 2);
      channel.close(reason);
      const values: unknown[] = [];
      assertStrictEquals(await reasonOf(receive(channel, values)), reason);
      assertEquals(values, [1, 2]);
    }
    // The same for a receive that already waits.
    const channel = new Channel<number>();
    const failed = reasonOf(receive(channel, []));
    await microtasks();
    channel.close(REASON);
    assertStrictEquals(await failed, REASON);
  }
});

Deno.test("row 14: an iteration fails once with the reason of the close and is then done", async () => {
  const channel = new Channel<number>();
  const iterator = channel[Symbol.asyncIterator]();
  const first = iterator.next();
  const second = iterator.next();
  channel.close(REASON);
  assertStrictEquals(await reasonOf(first), REASON);
  assertEquals<unknown>(await second, { done: true, value: undefined });
  assertEquals(await iterator.next(), { done: true, value: undefined });
  assertStrictEquals(await reasonOf(channel[Symbol.asyncIterator]().next()), REASON);
});

Deno.test("row 15: Channel.close() rejects each waiting send with ChannelClosedError and its own value", async () => {
  for (const reason of [[], [REASON]] as const) {
    const channel = new Channel<object>();
    const [x, y] = [{}, {}];
    const sentX = channel.send(x);
    const sentY = channel.send(y);
    channel.close(...reason);
    await assertUnsent(sentX, x);
    await assertUnsent(sentY, y);
  }
  const channel = new Channel<undefined>();
  const sent = channel.send(undefined);
  channel.close();
  await assertUnsent(sent, undefined);
});

Deno.test("row 16: Channel.close() and dispose have no effect on a closed channel, and the first reason stays", async () => {
  const failing = new Channel<number>();
  failing.close(REASON);
  failing.close(new Error("too late"));
  failing.close();
  failing[Symbol.dispose]();
  await failing[Symbol.asyncDispose]();
  assertStrictEquals(await reasonOf(failing.receive()), REASON);

  const ending = new Channel<number>();
  ending.close();
  ending.close(REASON);
  await assertEnded(ending.receive());

  using disposed = new Channel<number>();
  {
    using again = disposed;
    assertFalse(again.closed);
  }
  assert(disposed.closed);
  let awaited: Channel<number>;
  {
    await using channel = new Channel<number>();
    awaited = channel;
    assertFalse(awaited.closed);
  }
  assert(awaited.closed);
});

Deno.test("row 24: Channel.trySend() returns false when the channel is closed", () => {
  const channel = new Channel<number>({ capacity: 1 });
  channel.close();
  assertFalse(channel.trySend(1));
  assertEquals(channel.size, 0);
  assertEquals(channel.tryReceive(), { state: "closed" });
});

Deno.test("row 25: Channel.receive() rejects with undefined after close(undefined)", async () => {
  const channel = filled(1, 1);
  channel.close(undefined);
  assertEquals(await channel.receive(), 1);
  assertStrictEquals(await reasonOf(channel.receive()), undefined);
  assertStrictEquals(await reasonOf(Array.fromAsync(channel)), undefined);
  const { sender, receiver } = bounded<number>(1);
  sender.close(undefined);
  assertStrictEquals(await reasonOf(receiver.receive()), undefined);
});
