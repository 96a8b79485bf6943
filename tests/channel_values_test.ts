/**
 * Sending, receiving and closing: rows 1 to 16, 24 and 25 of docs/channel.md.
 *
 * Each test is named after its row: n = buffered, Ws/Wr = waiting senders/receivers, CCE = `ChannelClosedError`.
 *
 * @module
 */

import { assert, assertEquals, assertFalse, assertStrictEquals, assertThrows } from "@std/assert";
import { bounded, Channel, ChannelClosedError, unbounded } from "../channel.ts";
import { assertEnded, assertUnsent, filled, REASON, stateOf } from "./channel_support.ts";
import { reasonOf } from "./errors.ts";
import { microtasks } from "./support.ts";

Deno.test("row 1: construct with capacity -1, 1.5, NaN, Infinity (as std) - RangeError; the same from `bounded`: say `unbounded`", () => {
  for (const capacity of [-1, 1.5, NaN, Infinity]) {
    assertThrows(() => new Channel({ capacity }), RangeError, String(capacity));
    const error = assertThrows(() => bounded(capacity), RangeError, String(capacity));
    assert(error.message.includes("unbounded"), error.message);
  }
  assertEquals(new Channel().capacity, 0);
  assertEquals(new Channel({ capacity: 3 }).capacity, 3);
  assertEquals(bounded(0).sender.capacity, 0);
  assertEquals(unbounded().receiver.capacity, Infinity);
});

Deno.test("row 2: cap 2, n=1, Wr=0 - send - resolves, n=2", async () => {
  const channel = filled(2, "a");
  await channel.send("b");
  assertEquals(channel.size, 2);
  assertEquals(channel.drain(), ["a", "b"]);
});

Deno.test("row 3: cap 2, n=2 - send / trySend - pending, size stays 2 / false, nothing stored", async () => {
  const channel = filled(2, "a", "b");
  const sent = channel.send("c");
  assertEquals(await stateOf(sent), "pending");
  assertEquals(channel.size, 2);
  assertFalse(channel.trySend("d"));
  assertEquals(channel.drain(), ["a", "b", "c"]);
  await sent;
});

Deno.test("row 4: cap 0, Wr=0 - trySend / send - false / pending until a receive takes it, size 0", async () => {
  const channel = new Channel<string>();
  assertFalse(channel.trySend("lost?"));
  const sent = channel.send("a");
  assertEquals(await stateOf(sent), "pending");
  assertEquals(channel.size, 0);
  assertEquals(await channel.receive(), "a");
  await sent;
  assertEquals(channel.tryReceive(), { state: "empty" });
});

Deno.test("row 5: cap 0, Wr=1 - trySend - true, that receiver gets it", async () => {
  const channel = new Channel<string>();
  const received = channel.receive();
  assert(channel.trySend("a"));
  assertFalse(channel.trySend("b"));
  assertEquals(await received, "a");
});

Deno.test("row 6: cap 0, Ws=1 - tryReceive - ok, that send resolves", async () => {
  const channel = new Channel<string>();
  const sent = channel.send("a");
  assertEquals(channel.tryReceive(), { state: "ok", value: "a" });
  assertEquals(channel.tryReceive(), { state: "empty" });
  assertEquals(await sent, undefined);
});

Deno.test("row 7: Wr=[r1,r2] - send a, send b - r1=a, r2=b", async () => {
  for (const capacity of [0, 1]) {
    const channel = new Channel<string>({ capacity });
    const r1 = channel.receive();
    const r2 = channel.receive();
    await channel.send("a");
    await channel.send("b");
    assertEquals([await r1, await r2], ["a", "b"]);
  }
});

Deno.test("row 8: Wr=1, cap 4 - send - direct hand-off, size stays 0", async () => {
  const channel = new Channel<string>({ capacity: 4 });
  const received = channel.receive();
  const sent = channel.send("a");
  assertEquals(channel.size, 0);
  await sent;
  assertEquals(await received, "a");
});

Deno.test("row 9: cap 1, n=1, Ws=[b,c] - receive - buffered a; b enters and its send resolves; c waits", async () => {
  const channel = filled(1, "a");
  const b = channel.send("b");
  const c = channel.send("c");
  assertEquals(await channel.receive(), "a");
  assertEquals(channel.size, 1);
  assertEquals([await stateOf(b), await stateOf(c)], ["resolved", "pending"]);
  assertEquals(channel.drain(), ["b", "c"]);
  await c;
});

Deno.test("row 10: cap 1, n=1, Ws=1 - trySend - false: cannot overtake", async () => {
  const channel = filled(1, "a");
  const b = channel.send("b");
  assertFalse(channel.trySend("c"));
  assertEquals(channel.drain(), ["a", "b"]);
  await b;
});

Deno.test('row 11: n=0 - send undefined, null, NaN - delivered unchanged, tryReceive "ok"', async () => {
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

Deno.test("row 12: n=3 - close() - three receives succeed, the fourth rejects CCE without value", async () => {
  const channel = filled(3, 1, 2, 3);
  channel.close();
  assert(channel.closed);
  assertEquals([await channel.receive(), await channel.receive(), await channel.receive()], [1, 2, 3]);
  await assertEnded(channel.receive());
  assertEquals(channel.tryReceive(), { state: "closed" });
  assertEquals(await channel.receiveMany(1), []);
  assertEquals(channel.drain(), []);
});

Deno.test("row 13: n=0, Wr=2 - close() - both reject CCE; iterations end; receiveMany gives []", async () => {
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

Deno.test("row 14: n=2 - close(reason) - two values, then receive / iteration / stream fail with reason itself", async () => {
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
    // The same for those who wait already.
    const channel = new Channel<number>();
    const failed = reasonOf(receive(channel, []));
    await microtasks();
    channel.close(REASON);
    assertStrictEquals(await failed, REASON);
  }
});

Deno.test("row 14: an iteration fails once and is over then, as a generator's", async () => {
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

Deno.test("row 15: Ws=[x,y] - close() or close(reason) - both reject CCE carrying their own value", async () => {
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

Deno.test("row 16: closed - close() again, dispose - nothing; the first reason stays", async () => {
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

Deno.test("row 24: closed - trySend - false, the value stays with the caller (as std)", () => {
  const channel = new Channel<number>({ capacity: 1 });
  channel.close();
  assertFalse(channel.trySend(1));
  assertEquals(channel.size, 0);
  assertEquals(channel.tryReceive(), { state: "closed" });
});

Deno.test("row 25: close(undefined) - receive - a reason was given: rejects undefined (as std)", async () => {
  const channel = filled(1, 1);
  channel.close(undefined);
  assertEquals(await channel.receive(), 1);
  assertStrictEquals(await reasonOf(channel.receive()), undefined);
  assertStrictEquals(await reasonOf(Array.fromAsync(channel)), undefined);
  const { sender, receiver } = bounded<number>(1);
  sender.close(undefined);
  assertStrictEquals(await reasonOf(receiver.receive()), undefined);
});
