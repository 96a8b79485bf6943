/**
 * The channel's outcomes: each row of the contract's table is a test that bears the row's sentence.
 *
 * n = buffered, Ws/Wr = waiting senders/receivers, CCE = `ChannelClosedError`.
 *
 * @module
 */
import {
  assert,
  assertEquals,
  assertFalse,
  assertGreaterOrEqual,
  assertInstanceOf,
  assertLess,
  assertLessOrEqual,
  assertRejects,
  assertStrictEquals,
  assertThrows,
} from "@std/assert";
import { bounded, Channel, ChannelClosedError, type Receiver, select, trySelect, unbounded } from "../channel.ts";
import { clock, type Timer } from "../clock.ts";
import { assertTimeout, reasonOf } from "./failures.ts";
import { collectGarbage } from "./garbage.ts";
import { countListeners, hops, NO_SIGNAL } from "./support.ts";

const REASON = new Error("the reason");

/** Whether a promise is settled by now, and how. */
async function stateOf(promise: Promise<unknown>): Promise<"pending" | "resolved" | "rejected"> {
  let state: "pending" | "resolved" | "rejected" = "pending";
  promise.then(() => state = "resolved", () => state = "rejected");
  await hops();
  return state;
}

/** Resolves when nothing holds these any more. */
async function untilCollected(...refs: WeakRef<object>[]): Promise<void> {
  for (let tries = 0; refs.some((ref) => ref.deref() !== undefined); tries++) {
    assertLess(tries, 100, "something still holds them");
    await new Promise((resolve) => setTimeout(resolve)); // a WeakRef holds what it gave until the turn is over
    collectGarbage();
  }
}

/** The promise rejects with a CCE that carries this value. */
async function assertUnsent(promise: Promise<unknown>, value: unknown): Promise<void> {
  const reason = await reasonOf(promise);
  assertInstanceOf(reason, ChannelClosedError);
  assert("value" in reason);
  assertStrictEquals(reason.value, value);
}

/** The promise rejects with a CCE without a value. */
async function assertEnded(promise: Promise<unknown>): Promise<void> {
  const reason = await reasonOf(promise);
  assertInstanceOf(reason, ChannelClosedError);
  assertEquals(reason.name, "ChannelClosedError");
  assertFalse("value" in reason);
}

/** A channel with values in it. */
function filled<T>(capacity: number, ...values: T[]): Channel<T> {
  const channel = new Channel<T>({ capacity });
  for (const value of values) assert(channel.trySend(value));
  return channel;
}

/** Nobody waits to receive (a value sent would stay) and nobody waits to send. */
function assertNobodyWaits(...channels: Channel<number>[]): void {
  for (const channel of channels) {
    assertEquals(channel.tryReceive(), { state: "empty" });
    const before = channel.size;
    assertEquals(channel.trySend(-1), channel.capacity > 0);
    assertEquals(channel.size, channel.capacity > 0 ? before + 1 : 0);
    if (channel.capacity > 0) assertEquals(channel.drain(), [-1]);
  }
}

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
    await hops();
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

Deno.test("row 17: Wr=1 - abort its signal - rejects signal.reason itself; the next send is buffered, not lost", async () => {
  const channel = new Channel<string>({ capacity: 1 });
  const controller = new AbortController();
  const received = channel.receive({ signal: controller.signal });
  controller.abort(REASON);
  const sent = channel.send("a");
  assertEquals(channel.size, 1);
  assertStrictEquals(await reasonOf(received), REASON);
  await sent;
  assertEquals(channel.drain(), ["a"]);
});

Deno.test("row 18: Wr=[r1 with signal, r2] - abort r1, then send v - r2=v: no wake-up is lost", async () => {
  for (const position of [0, 1, 2]) {
    const channel = new Channel<string>();
    const controller = new AbortController();
    const waits = [0, 1, 2].map((i) => channel.receive(i === position ? { signal: controller.signal } : {}));
    controller.abort(REASON);
    assert(channel.trySend("v"));
    assert(channel.trySend("w"));
    assertFalse(channel.trySend("x"));
    const [aborted] = waits.splice(position, 1);
    assertStrictEquals(await reasonOf(aborted!), REASON);
    assertEquals(await Promise.all(waits), ["v", "w"]);
  }
});

Deno.test("row 19: Ws=[v1 with signal, v2], full - abort v1, receive twice - v1 never delivered; v2 admitted", async () => {
  for (const capacity of [0, 1]) {
    const channel = new Channel<string>({ capacity });
    if (capacity === 1) channel.trySend("v0");
    const controller = new AbortController();
    const v1 = channel.send("v1", { signal: controller.signal });
    const v2 = channel.send("v2");
    controller.abort(REASON);
    assertStrictEquals(await reasonOf(v1), REASON);
    if (capacity === 1) assertEquals(await channel.receive(), "v0");
    assertEquals(await channel.receive(), "v2");
    await v2;
    assertEquals(channel.tryReceive(), { state: "empty" });
  }
});

Deno.test("row 20: any - signal already aborted - succeeds if it can at once, else rejects with the reason (as std)", async () => {
  const signal = AbortSignal.abort(REASON);
  const channel = new Channel<number>({ capacity: 1 });
  assertStrictEquals(await reasonOf(channel.receive({ signal })), REASON);
  assertStrictEquals(await reasonOf(channel.receiveMany(1, { signal })), REASON);
  assertStrictEquals(await reasonOf(select({ a: channel.receiveCase() }, { signal })), REASON);
  await channel.send(1, { signal });
  assertStrictEquals(await reasonOf(channel.send(2, { signal })), REASON);
  assertEquals(await channel.receive({ signal }), 1);
  await channel.send(3, { signal });
  assertEquals(await channel.receiveMany(2, { signal }), [3]);
  await channel.send(4);
  assertEquals(await select({ a: channel.receiveCase() }, { signal }), { key: "a", done: false, value: 4 });
  assertNobodyWaits(channel);
  channel.close();
  await assertEnded(channel.receive({ signal }));
  await assertUnsent(channel.send(5, { signal }), 5);
});

Deno.test("row 21: a parked operation settles - listeners on its signal - none left (10k operations on one signal: no growth)", async () => {
  const controller = new AbortController();
  const { signal } = controller;
  const listeners = countListeners(signal);
  const channel = new Channel<number>();
  for (let i = 0; i < 10_000; i++) {
    const received = channel.receive({ signal });
    assertEquals(listeners(), 1);
    channel.trySend(i);
    assertEquals(listeners(), 0);
    assertEquals(await received, i);
  }
  const parked = Array.from({ length: 10_000 }, () => channel.receive({ signal }));
  assertEquals(listeners(), 1); // all behind one: a signal's list is searched for each change
  for (let i = 0; i < 10_000; i++) channel.trySend(i);
  assertEquals(listeners(), 0);
  assertEquals(await Promise.all(parked), parked.map((_, i) => i));

  const sent = channel.send(1, { signal });
  const many = new Channel<number>().receiveMany(1, { signal });
  const selected = select({ a: new Channel<number>().receiveCase(), b: channel.sendCase(2) }, { signal });
  assertEquals(listeners(), 1);
  assertEquals(channel.drain(), [1, 2]);
  await sent;
  assertEquals((await selected).key, "b");
  assertEquals(listeners(), 1);
  controller.abort(REASON);
  assertEquals(listeners(), 0);
  assertStrictEquals(await reasonOf(many), REASON);

  const closing = new AbortController();
  const left = countListeners(closing.signal);
  const ended = channel.receive({ signal: closing.signal });
  channel.close();
  assertEquals(left(), 0);
  await assertEnded(ended);
});

Deno.test("row 21: waits on a few signals by turns - each signal has one listener, however many wait", async () => {
  const controllers = Array.from({ length: 6 }, () => new AbortController());
  const counts = controllers.map(({ signal }) => countListeners(signal));
  const channel = new Channel<number>();
  const waits = Array.from({ length: 600 }, (_, i) => channel.receive({ signal: controllers[i % 6]!.signal }));
  assertEquals(counts.map((count) => count()), [1, 1, 1, 1, 1, 1]);
  for (let i = 0; i < 600; i++) channel.trySend(i);
  assertEquals(counts.map((count) => count()), [0, 0, 0, 0, 0, 0]);
  assertEquals(await Promise.all(waits), waits.map((_, i) => i));
});

Deno.test("row 21: a parked operation settles - neither its signal nor its value is held on to", async () => {
  const channel = new Channel<object>({ capacity: 4 });
  const held: WeakRef<object>[] = [];
  for (const handOver of [true, false]) {
    await (async () => {
      const { signal } = new AbortController();
      const value = {};
      held.push(new WeakRef(signal), new WeakRef(value));
      const received = handOver ? channel.receive({ signal }) : undefined;
      channel.trySend(value);
      assertStrictEquals(await (received ?? channel.receive({ signal })), value);
    })();
  }
  await untilCollected(...held);
});

Deno.test("row 21: waits on many signals by turns - each signal ends its own and no other", async () => {
  const channel = new Channel<number>();
  const controllers = Array.from({ length: 40 }, () => new AbortController());
  const counts = controllers.map(({ signal }) => countListeners(signal));
  const waits: Promise<number>[][] = controllers.map(() => []);
  for (let round = 0; round < 3; round++) {
    controllers.forEach(({ signal }, i) => waits[i]!.push(channel.receive({ signal })));
  }
  controllers.forEach((controller, i) => i % 2 === 0 && controller.abort(i));
  for (const [i, three] of waits.entries()) {
    for (const wait of three) {
      if (i % 2 === 0) assertEquals(await reasonOf(wait), i);
      else assertEquals(await stateOf(wait), "pending");
    }
  }
  for (let value = 0; value < 60; value++) assert(channel.trySend(value));
  assertFalse(channel.trySend(60));
  const odd = waits.filter((_, i) => i % 2 === 1);
  assertEquals(await Promise.all(odd.map((three) => three[0])), odd.map((_, i) => i));
  assertEquals(await Promise.all(odd.map((three) => three[2])), odd.map((_, i) => 40 + i));
  assertEquals(counts.map((count) => count()), counts.map(() => 0));
});

Deno.test('row 22: n=0 - receive({timeout:10}) - DOMException "TimeoutError"; a later value is not stolen; no timer left behind', async () => {
  const timers = new Map<unknown, () => void>(); // by delay, which is the timer itself too
  const { setTimer, clearTimer } = clock;
  clock.setTimer = (run, delay) => {
    timers.set(delay, run);
    return delay as unknown as Timer;
  };
  clock.clearTimer = (timer) => void timers.delete(timer);
  try {
    const channel = new Channel<number>({ capacity: 1 });
    const late = channel.receive({ timeout: 10 });
    const patient = channel.receive({ timeout: 11 });
    assertEquals([...timers.keys()], [10, 11]);
    timers.get(10)!();
    assertEquals([...timers.keys()], [11]);
    await assertTimeout(late);
    channel.trySend(1);
    assertEquals(timers.size, 0);
    assertEquals(await patient, 1);
    channel.trySend(2);
    assertEquals(channel.size, 1);
    const sent = channel.send(3, { timeout: 12 });
    timers.get(12)!();
    await assertTimeout(sent);
    assertEquals(timers.size, 0);
    const forever = channel.send(4, { timeout: Infinity });
    assertEquals(timers.size, 0);
    assertEquals(channel.drain(), [2, 4]);
    await forever;
    const many = channel.receiveMany(2, { timeout: 13 });
    timers.get(13)!();
    await assertTimeout(many);
    assertEquals(timers.size, 0);

    // With both limits, the one that comes first takes the other with it.
    const controller = new AbortController();
    const listeners = countListeners(controller.signal);
    const first = channel.receive({ signal: controller.signal, timeout: 14 });
    const second = channel.receive({ signal: controller.signal, timeout: 15 });
    timers.get(14)!();
    assertEquals([timers.size, listeners()], [1, 1]);
    controller.abort(REASON);
    assertEquals([timers.size, listeners()], [0, 0]);
    await assertTimeout(first);
    assertStrictEquals(await reasonOf(second), REASON);
  } finally {
    Object.assign(clock, { setTimer, clearTimer });
  }
  await assertTimeout(new Channel<number>().receive({ timeout: 10 }));
});

Deno.test("row 23: timeout negative, NaN, or finite above 2 147 483 647 - any - RangeError; Infinity = none; 0 = succeeds if it can at once, else TimeoutError", async () => {
  for (const timeout of [-1, NaN, 2_147_483_648, -Infinity, "10" as unknown as number]) {
    const channel = filled(2, 1);
    const { sender, receiver } = bounded<number>(1);
    for (
      const refused of [
        () => channel.send(2, { timeout }),
        () => channel.receive({ timeout }),
        () => channel.receiveMany(1, { timeout }),
        () => select({ a: channel.receiveCase() }, { timeout }),
        () => sender.send(2, { timeout }),
        () => receiver.receive({ timeout }),
      ]
    ) await assertRejects(refused, RangeError, String(timeout));
    assertEquals(channel.drain(), [1]); // nothing was sent or received
    assertEquals(sender.size, 0);
  }
  const channel = new Channel<number>({ capacity: 1 });
  await assertTimeout(channel.receive({ timeout: 0 }));
  await assertTimeout(channel.receiveMany(1, { timeout: 0 }));
  await channel.send(1, { timeout: 0 });
  await assertTimeout(channel.send(2, { timeout: 0 }));
  assertEquals(await channel.receive({ timeout: 0 }), 1);
  assertNobodyWaits(channel);
  for (const timeout of [Infinity, 2_147_483_647]) {
    const received = channel.receive({ timeout });
    channel.trySend(1);
    assertEquals(await received, 1);
  }
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

Deno.test("row 26: last handle collected without close - nothing happens: handles are given up by close() or `using`; documented", async () => {
  const { sender, receiver } = bounded<number>(1);
  const handle = (() => {
    using _ = sender;
    return new WeakRef(sender.clone());
  })();
  await untilCollected(handle);
  await hops();
  assertEquals(receiver.senderCount, 1);
  assertEquals(receiver.tryReceive(), { state: "empty" });
});

Deno.test("row 27: two senders - one closes - open, senderCount 1; the closed handle's send rejects CCE(value)", async () => {
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

Deno.test("row 28: two senders close, one with a reason - last close - the first reason given stands", async () => {
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

Deno.test("row 29: Ws=[x], n=cap - last receiver closes - x rejects CCE(x); buffer dropped in order through onDrop; sender.signal aborts, once", async () => {
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

Deno.test("row 29: the last sender first, then the last receiver - what is left goes to onDrop, and what onDrop throws comes out last", () => {
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

Deno.test("row 30: two receivers, one waiting - that handle closes - its wait rejects CCE; the other unaffected; nothing consumed", async () => {
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

Deno.test("row 31: clone of a closed handle - clone() - throws CCE", () => {
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

Deno.test("row 32: weak only - receivers - see the end: weak does not hold the channel open; upgrade() undefined", async () => {
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

Deno.test("row 33: n=5 - receiveMany(3) / (10) / (0) - 3 oldest / 5 without waiting / RangeError", async () => {
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

Deno.test("row 34: cap 2, n=2, Ws=[c,d] - receiveMany(4) / drain() - [a,b,c,d], both sends resolve", async () => {
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

Deno.test("row 35: n=4 - toReadableStream(), nothing read - size still 4 (highWaterMark 0); cancel loses nothing already counted", async () => {
  const channel = filled(4, 1, 2, 3, 4);
  const reader = channel.toReadableStream().getReader();
  await hops();
  assertEquals(channel.size, 4);
  assertEquals(await reader.read(), { done: false, value: 1 });
  await hops();
  assertEquals(channel.size, 3);
  await reader.cancel();
  assertEquals(channel.drain(), [2, 3, 4]);
});

Deno.test("row 35: a value that comes just before the cancel is read, one that comes just after it is not taken", async () => {
  const { sender, receiver } = bounded<number>(2);
  const reader = receiver.toReadableStream().getReader();
  const first = reader.read();
  await hops();
  assert(sender.trySend(1));
  const second = reader.read();
  await hops();
  const cancelled = reader.cancel();
  assert(sender.trySend(2));
  await cancelled;
  assertEquals(await first, { done: false, value: 1 });
  assertEquals<unknown>(await second, { done: true, value: undefined });
  assertEquals(receiver.drain(), [2]);

  const value = bounded<number>(2);
  const other = value.receiver.toReadableStream().getReader();
  const read = other.read();
  await hops();
  value.sender.trySend(3);
  await other.cancel(); // in the very turn in which the value changed hands
  assertEquals(await read, { done: false, value: 3 });
});

Deno.test("row 36: Receiver.toReadableStream().cancel() - others - go on; only the stream's own clone closes. Channel.toReadableStream().cancel(r) closes the channel, with r unless undefined (as std); buffered values stay receivable", async () => {
  const { sender, receiver } = bounded<number>(2);
  const stream = receiver.toReadableStream();
  assertEquals(sender.receiverCount, 2);
  const waiting = receiver.receive();
  await stream.cancel(REASON);
  assertEquals(sender.receiverCount, 1);
  assert(sender.trySend(1));
  assertEquals(await waiting, 1);

  const second = receiver.toReadableStream();
  receiver.close();
  assertEquals(sender.receiverCount, 1);
  assert(sender.trySend(2));
  const reader = second.getReader();
  assertEquals(await reader.read(), { done: false, value: 2 });
  const pending = reader.read();
  await hops();
  await reader.cancel();
  assertEquals<unknown>(await pending, { done: true, value: undefined });
  assertEquals(sender.receiverCount, 0);
  assertFalse(sender.trySend(3));

  for (const reason of [[], [undefined], [REASON]]) {
    const channel = filled(1, 1);
    await channel.toReadableStream().cancel(...reason);
    assert(channel.closed);
    assertEquals(await channel.receive(), 1);
    if (reason[0] === REASON) assertStrictEquals(await reasonOf(channel.receive()), REASON);
    else await assertEnded(channel.receive());

    const empty = new Channel<number>();
    const emptyReader = empty.toReadableStream().getReader();
    const read = emptyReader.read();
    await hops();
    await emptyReader.cancel(...reason);
    assertEquals<unknown>(await read, { done: true, value: undefined });
    assert(empty.closed);
  }
});

Deno.test("row 36: a stream that ends or fails gives its handle up too", async () => {
  for (const reason of [[], [REASON]] as const) {
    for (const waiting of [true, false]) {
      const { sender, receiver } = bounded<number>(1);
      const reader = receiver.toReadableStream().getReader();
      receiver.close();
      assertEquals(sender.receiverCount, 1);
      const read = waiting ? reader.read() : undefined;
      await hops();
      sender.close(...reason);
      const result = read ?? reader.read();
      if (reason[0] === REASON) assertStrictEquals(await reasonOf(result), REASON);
      else assertEquals<unknown>(await result, { done: true, value: undefined });
      assertEquals(sender.receiverCount, 0);
      await reader.cancel().catch((error: unknown) => assertStrictEquals(error, REASON));
    }
  }
});

Deno.test("row 37: cap 1 - toWritableStream(), two writes - second `ready` waits for a receive; abort(e) closes with e", async () => {
  const channel = new Channel<number>({ capacity: 1 });
  const writer = channel.toWritableStream().getWriter();
  await writer.ready;
  const first = writer.write(1);
  await writer.ready;
  await first;
  const second = writer.write(2);
  assertEquals(await stateOf(writer.ready), "pending");
  assertEquals(await channel.receive(), 1);
  await writer.ready;
  await second;
  assertEquals(channel.size, 1);
  const third = writer.write(3);
  await hops();
  const aborted = writer.abort(REASON); // heard of by the write that waits
  assertStrictEquals(await reasonOf(third), REASON);
  await aborted;
  assert(channel.closed);
  assertEquals(await channel.receive(), 2);
  assertStrictEquals(await reasonOf(channel.receive()), REASON);
  await assertRejects(() => writer.closed);

  const ending = new Channel<number>({ capacity: 1 });
  const ender = ending.toWritableStream().getWriter();
  await ender.write(1);
  await ender.close();
  assertEquals(await Array.fromAsync(ending), [1]);
});

Deno.test("row 37: Sender.toWritableStream() - its own clone closes, and a write without receivers fails with the value", async () => {
  const { sender, receiver } = bounded<number>(1);
  const writer = sender.toWritableStream().getWriter();
  assertEquals(receiver.senderCount, 2);
  await writer.write(1);
  await writer.close();
  assertEquals(receiver.senderCount, 1);
  assertEquals(receiver.tryReceive(), { state: "ok", value: 1 });
  const failing = sender.toWritableStream();
  sender.close();
  await failing.abort(REASON);
  assertStrictEquals(await reasonOf(receiver.receive()), REASON);

  const gone = bounded<number>(1);
  const late = gone.sender.toWritableStream().getWriter();
  gone.receiver.close();
  await assertUnsent(late.write(7), 7);
  await assertRejects(() => late.closed, ChannelClosedError);

  const piped = new Channel<number>();
  const pipe = ReadableStream.from([1, 2, 3]).pipeTo(piped.toWritableStream());
  assertEquals(await Array.fromAsync(piped.toReadableStream()), [1, 2, 3]);
  await pipe;
});

Deno.test("row 37: Sender.toWritableStream() - a stream that fails gives its clone up", async () => {
  const { sender, receiver } = bounded<number>(1);
  const piped = ReadableStream.from([1, 2, 3]).pipeTo(sender.toWritableStream());
  assertEquals(await receiver.receive(), 1);
  receiver.close();
  await assertRejects(() => piped, ChannelClosedError);
  const weak = sender.downgrade();
  sender.close();
  assertEquals([sender.senderCount, weak.upgrade()], [0, undefined]);
});

Deno.test("row 38: for await, break - after - channel open, nothing lost", async () => {
  const channel = filled(4, 1, 2, 3, 4);
  for await (const value of channel) if (value === 2) break;
  assertFalse(channel.closed);
  assertEquals(channel.drain(), [3, 4]);

  const { sender, receiver } = unbounded<number>();
  for (const value of [1, 2, 3]) sender.trySend(value);
  for await (const _ of receiver) break;
  assertEquals(receiver.receiverCount, 1);
  assertEquals(receiver.drain(), [2, 3]);
});

Deno.test("row 38: an iterator given up while it waits takes nothing; throw() is handed back", async () => {
  const channel = new Channel<number>({ capacity: 2 });
  const iterator = channel[Symbol.asyncIterator]();
  assertStrictEquals(iterator[Symbol.asyncIterator](), iterator);
  const pending = iterator.next();
  const other = channel.receive();
  assertEquals(await iterator.return!(), { done: true, value: undefined });
  assertEquals<unknown>(await pending, { done: true, value: undefined });
  assert(channel.trySend(1));
  assertEquals(await other, 1);
  assert(channel.trySend(2));
  assertEquals(await iterator.next(), { done: true, value: undefined });
  const thrown = channel[Symbol.asyncIterator]();
  assertStrictEquals(await reasonOf(thrown.throw!(REASON)), REASON);
  assertEquals(await thrown.next(), { done: true, value: undefined });
  assertEquals(channel.drain(), [2]);

  // The library of streams gives an iterator up in just this way.
  const stream = ReadableStream.from(channel).getReader();
  const read = stream.read();
  await hops();
  await stream.cancel();
  await read;
  channel.trySend(3);
  assertEquals(channel.size, 1);
});

Deno.test("row 39: two loops on one channel - 1000 sends - disjoint, together complete, each in order", async () => {
  const channel = new Channel<number>({ capacity: 3 });
  const loops = [0, 1].map(() => Array.fromAsync(channel));
  for (let value = 0; value < 1000; value++) await channel.send(value);
  channel.close();
  const [first, second] = await Promise.all(loops) as [number[], number[]];
  for (const values of [first, second]) {
    assertEquals(values, values.toSorted((a, b) => a - b));
    assertGreaterOrEqual(values.length, 1);
  }
  assertEquals([...first, ...second].sort((a, b) => a - b), Array.from({ length: 1000 }, (_, i) => i));
});

Deno.test("row 40: select, two ready - 10 000 rounds - each >= 40 %; biased: always the first", async () => {
  const a = filled(1, 0);
  const b = filled(1, 0);
  const never = new Channel<number>();
  const counts = { never: 0, a: 0, b: 0 };
  for (let round = 0; round < 10_000; round++) {
    // A third case that is never ready must not favour its neighbour.
    const r = await select({ never: never.receiveCase(), a: a.receiveCase(), b: b.receiveCase() });
    counts[r.key]++;
    (r.key === "a" ? a : b).trySend(0);
  }
  assertEquals(counts.a + counts.b, 10_000);
  assertGreaterOrEqual(counts.a, 4000);
  assertGreaterOrEqual(counts.b, 4000);
  for (let round = 0; round < 1000; round++) {
    assertEquals(await select({ a: a.receiveCase(), b: b.receiveCase() }, { biased: true }), {
      key: "a",
      done: false,
      value: 0,
    });
    a.trySend(0);
    assertEquals(trySelect({ b: b.receiveCase(), a: a.receiveCase() }, { biased: true })?.key, "b");
    b.trySend(0);
  }
});

Deno.test("row 41: select, none ready, one sends later - that case; the other channels' waiters are gone at once", async () => {
  const [a, b, c] = [new Channel<number>({ capacity: 1 }), new Channel<number>(), new Channel<number>()];
  const selected = select({ a: a.receiveCase(), b: b.receiveCase(), out: c.sendCase(9) });
  assert(b.trySend(1));
  assertNobodyWaits(a, b, c);
  assertEquals(await selected, { key: "b", done: false, value: 1 });

  const sending = select({ a: a.receiveCase(), b: b.receiveCase(), out: c.sendCase(9) });
  assertEquals(c.tryReceive(), { state: "ok", value: 9 });
  assertNobodyWaits(a, b, c);
  assertEquals(await sending, { key: "out", done: false });
});

Deno.test("row 42: select - abort / timeout - rejects; nothing consumed or sent anywhere", async () => {
  const [a, b] = [new Channel<number>({ capacity: 1 }), new Channel<number>()];
  const controller = new AbortController();
  const aborted = select({ a: a.receiveCase(), b: b.sendCase(1) }, { signal: controller.signal });
  controller.abort(REASON);
  assertNobodyWaits(a, b);
  assertStrictEquals(await reasonOf(aborted), REASON);
  await assertTimeout(select({ a: a.receiveCase(), b: b.sendCase(1) }, { timeout: 1 }));
  assertNobodyWaits(a, b);
});

Deno.test("row 43: select on closed and drained / send on closed - ready with { key, done: true }", async () => {
  const channel = filled(1, 1);
  channel.close(REASON);
  assertEquals(await select({ in: channel.receiveCase() }), { key: "in", done: false, value: 1 });
  assertEquals(await select({ in: channel.receiveCase() }), { key: "in", done: true });
  assertEquals(await select({ out: channel.sendCase(1) }), { key: "out", done: true });

  // The same for one that waits while the channel, or its own handle, is closed.
  const { sender, receiver } = bounded<number>(0);
  const others = new Channel<number>();
  const receives = [
    select({ in: receiver.clone().receiveCase(), other: others.receiveCase() }),
    select({ in: receiver.receiveCase(), other: others.receiveCase() }),
  ];
  receiver.close();
  sender.close(REASON);
  for (const r of receives) assertEquals(await r, { key: "in", done: true });
  assertNobodyWaits(others);

  const full = bounded<number>(0);
  const mine = select({ out: full.sender.sendCase(1), other: others.receiveCase() });
  const yours = select({ out: full.sender.clone().sendCase(2), other: others.receiveCase() });
  full.sender.close();
  assertEquals(await mine, { key: "out", done: true });
  assertEquals(await stateOf(yours), "pending");
  full.receiver.close();
  assertEquals(await yours, { key: "out", done: true });
  assertNobodyWaits(others);
});

Deno.test("row 44: select with send and receive on one cap-0 channel, alone - no match with itself", async () => {
  const channel = new Channel<number>();
  const selected = select({ out: channel.sendCase(1), in: channel.receiveCase() });
  assertEquals(await stateOf(selected), "pending");
  assertEquals(channel.size, 0);
  assert(channel.trySend(2));
  assertEquals(await selected, { key: "in", done: false, value: 2 });
  assertNobodyWaits(channel);

  const again = select({ in: channel.receiveCase(), out: channel.sendCase(1) });
  assertEquals(channel.drain(), [1]);
  assertEquals(await again, { key: "out", done: false });
  const closed = select({ in: channel.receiveCase(), out: channel.sendCase(1) });
  channel.close();
  assertEquals((await closed).done, true);
});

Deno.test("row 45: two selects, send against receive, cap 0 - both complete with one value", async () => {
  const channel = new Channel<number>();
  const [idle, other] = [new Channel<number>(), new Channel<number>()];
  for (const senderFirst of [true, false]) {
    const send = () => select({ out: channel.sendCase(1), idle: idle.receiveCase() });
    const receive = () => select({ in: channel.receiveCase(), idle: other.sendCase(2) });
    const first = senderFirst ? send() : receive();
    const second = senderFirst ? receive() : send();
    const results = senderFirst ? [await first, await second] : [await second, await first];
    assertEquals<unknown>(results, [{ key: "out", done: false }, { key: "in", done: false, value: 1 }]);
    assertNobodyWaits(channel, idle, other);
  }
});

Deno.test("row 45: two selects that both send and receive on one channel meet, and neither meets itself", async () => {
  const channel = new Channel<string>();
  const both = (value: string) => select({ out: channel.sendCase(value), in: channel.receiveCase() });
  const results = await Promise.all([both("a"), both("b")]);
  const sent = results.findIndex((r) => r.key === "out");
  assertEquals<unknown>(results[sent], { key: "out", done: false });
  assertEquals<unknown>(results[1 - sent], { key: "in", done: false, value: "ab"[sent] });
  assertEquals(channel.tryReceive(), { state: "empty" });
});

Deno.test("row 46: `{ a: undefined }` beside another case - select - ignored; all undefined without timeout or signal: TypeError", async () => {
  const channel = filled(1, 1);
  const on = Math.random() < 2;
  const cases = { a: on ? undefined : channel.sendCase(0), b: channel.receiveCase() };
  assertEquals(await select(cases), { key: "b", done: false, value: 1 });
  const waiting = select(cases);
  channel.trySend(2);
  assertEquals(await waiting, { key: "b", done: false, value: 2 });
  await assertRejects(() => select({ a: undefined }), TypeError);
  await assertRejects(() => select({}), TypeError);
  await assertRejects(() => select({ a: undefined }, { timeout: Infinity }), TypeError);
  await assertTimeout(select({ a: undefined }, { timeout: 1 }));
  const controller = new AbortController();
  const aborted = select({}, { signal: controller.signal });
  controller.abort(REASON);
  assertStrictEquals(await reasonOf(aborted), REASON);
  assertEquals(trySelect({ a: undefined }), undefined);
});

Deno.test("row 47: trySelect, none ready - undefined, no waiter left", () => {
  const [a, b] = [new Channel<number>({ capacity: 1 }), new Channel<number>()];
  assertEquals(trySelect({ a: a.receiveCase(), b: b.sendCase(1) }), undefined);
  assertNobodyWaits(a, b);
  a.trySend(1);
  assertEquals(trySelect({ a: a.receiveCase(), b: b.sendCase(1) }), { key: "a", done: false, value: 1 });
});

Deno.test("row 48: select with timeout 0, none ready - TimeoutError, no waiter left", async () => {
  const [a, b] = [new Channel<number>({ capacity: 1 }), new Channel<number>()];
  const selected = select({ a: a.receiveCase(), b: b.sendCase(1) }, { timeout: 0 });
  assertNobodyWaits(a, b);
  await assertTimeout(selected);
  a.trySend(1);
  assertEquals(await select({ a: a.receiveCase(), b: b.sendCase(1) }, { timeout: 0 }), {
    key: "a",
    done: false,
    value: 1,
  });
});

Deno.test("row 49: 1M queued, then drained - memory - the ring shrinks back", () => {
  const heap = () => {
    collectGarbage();
    return Deno.memoryUsage().heapUsed;
  };
  const { sender, receiver } = unbounded<number>();
  const count = 1_000_000;
  const queue = () => {
    for (let value = 0; value < count; value++) sender.trySend(value);
  };
  const drain = (values: number) => {
    for (let n = 0; n < values; n++) receiver.tryReceive();
  };
  // What the engine compiles on the way is on the heap, too: so it goes this way once before.
  queue();
  drain(count);
  const empty = heap();
  queue();
  const full = heap();
  assertEquals(receiver.size, count);
  drain(count - 1);
  const drained = heap();
  assertEquals(receiver.tryReceive(), { state: "ok", value: count - 1 });
  assertLessOrEqual((full - empty) / count, 10); // bytes per small integer, which is in the slot itself
  assertGreaterOrEqual((full - empty) / count, 4); // so it was measured
  assertLess(drained - empty, 200_000);
});

Deno.test("row 50: 20 000 waiters aborted in random order - time - linear", async () => {
  /** How long it takes, in milliseconds, to abort waits on so many signals. */
  const measure = async (signals: number, wait: (signal: AbortSignal) => Promise<unknown>) => {
    const controllers = Array.from({ length: signals }, () => new AbortController());
    const settled = Promise.allSettled(
      Array.from({ length: 20_000 }, (_, i) => wait(controllers[i % signals]!.signal)),
    );
    for (let i = signals - 1, random = 1; i > 0; i--) {
      random = Math.imul(random, 48271) >>> 1;
      const j = random % (i + 1);
      [controllers[i], controllers[j]] = [controllers[j]!, controllers[i]!];
    }
    const start = performance.now();
    for (const controller of controllers) controller.abort(REASON);
    const took = performance.now() - start;
    assert((await settled).every((result) => result.status === "rejected" && result.reason === REASON));
    return took;
  };
  const channel = new Channel<number>();
  const received = (signal: AbortSignal) => channel.receive({ signal });
  /** The least that a wait for a signal can do. */
  const bare = (signal: AbortSignal) =>
    new Promise((_, reject) => {
      const abort = () => {
        signal.removeEventListener("abort", abort);
        reject(signal.reason);
      };
      signal.addEventListener("abort", abort);
    });
  let [least, own, shared] = [Infinity, Infinity, Infinity];
  // The best of some runs, in turn, so that a collection or a busy machine does not tell.
  for (let run = 0; run < 4; run++) {
    least = Math.min(least, await measure(20_000, bare));
    own = Math.min(own, await measure(20_000, received));
    shared = Math.min(shared, await measure(1, received));
  }
  assertFalse(channel.trySend(1));
  // Searching for each waiter would cost ten times the least, and a listener for each on one signal a hundred times.
  assertLess(own, 5 * least);
  assertLess(shared, 5 * least);
});

Deno.test("row 51: onDrop or an abort listener calls back in - queue - consistent, nothing twice", async () => {
  // An earlier listener of the same signal sends to the very receiver that is about to be aborted.
  for (const first of [true, false]) {
    const channel = new Channel<number>({ capacity: 4 });
    const controller = new AbortController();
    const { signal } = controller;
    const callBack = () => {
      channel.trySend(1);
      channel.trySend(2);
    };
    if (first) signal.addEventListener("abort", callBack);
    const received = channel.receive({ signal });
    const second = channel.receive({ signal });
    if (!first) signal.addEventListener("abort", callBack);
    controller.abort(REASON);
    const results = await Promise.allSettled([received, second]);
    const got = results.flatMap((r) => r.status === "fulfilled" ? [r.value] : []);
    assertEquals([...got, ...channel.drain()], [1, 2]);
  }

  const events: unknown[] = [];
  const { sender, receiver } = bounded<number>(2, {
    onDrop(value) {
      events.push(value, sender.trySend(9), sender.size, receiver.tryReceive().state, sender.receiverCount);
      receiver.close();
      sender.close();
    },
  });
  sender.signal.addEventListener("abort", () => {
    receiver.close();
    events.push("signal", sender.senderCount);
  });
  sender.trySend(1);
  sender.trySend(2);
  const waiting = sender.send(3);
  receiver.close();
  assertEquals(events, [1, false, 0, "closed", 0, 2, false, 0, "closed", 0, "signal", 0]);
  await assertUnsent(waiting, 3);

  // A promise looks up `then` of what it is resolved with, at once: the value's owner is called in the middle of a send.
  const channel = new Channel<unknown>({ capacity: 2 });
  const seen: unknown[] = [];
  const curious = {
    get then() {
      seen.push(channel.size, channel.tryReceive().state, channel.trySend("nested"));
      return undefined;
    },
  };
  const received = channel.receive();
  const next = channel.receive();
  assert(channel.trySend(curious));
  assertStrictEquals(await received, curious);
  assertEquals(await next, "nested");
  assertEquals(seen.slice(0, 3), [0, "empty", true]);
});

Deno.test("row 52: 4 senders, 4 receivers, cap 3, 25k each - each value exactly once; per sender in order at each receiver", async () => {
  const each = 25_000;
  const { sender, receiver } = bounded<[from: number, value: number]>(3);
  const sending = [0, 1, 2, 3].map(async (from) => {
    using mine = sender.clone();
    for (let value = 0; value < each; value++) await mine.send([from, value]);
  });
  sender.close();
  const seen = [0, 1, 2, 3].map(() => new Uint8Array(each));
  const receiving = [0, 1, 2, 3].map(async () => {
    using mine = receiver.clone();
    const last = [-1, -1, -1, -1];
    for await (const [from, value] of mine) {
      if (value <= last[from]!) throw new Error(`${value} of ${from} after ${last[from]}`);
      last[from] = value;
      seen[from]![value]!++;
    }
  });
  receiver.close();
  await Promise.all([...sending, ...receiving]);
  assert(seen.every((counts) => counts.every((count) => count === 1)));
  assertEquals([sender.senderCount, receiver.receiverCount, receiver.size], [0, 0, 0]);
});

Deno.test("row 53: ring of 32 channels; channels sent through channels x1000; 250 waiting receivers - all complete", async () => {
  const ring = Array.from({ length: 32 }, () => new Channel<number>());
  const nodes = ring.map(async (channel, i) => {
    const next = ring[(i + 1) % 32]!;
    for (let lap = 0; lap < 100; lap++) {
      if (i === 0) {
        await next.send(lap * 100);
        assertEquals(await channel.receive(), lap * 100 + 31);
      } else await next.send(await channel.receive() + 1);
    }
  });
  await Promise.all(nodes);

  const outer = new Channel<Receiver<number>>();
  const inners = (async () => {
    for (let i = 0; i < 1000; i++) {
      const { sender, receiver } = bounded<number>(1);
      await sender.send(i);
      sender.close();
      await outer.send(receiver);
    }
    outer.close();
  })();
  let expected = 0;
  for await (using inner of outer) assertEquals(await Array.fromAsync(inner), [expected++]);
  assertEquals(expected, 1000);
  await inners;

  const { sender, receiver } = bounded<number>(0);
  const waiting = Array.from({ length: 250 }, () => receiver.clone().receive());
  for (let i = 0; i < 250; i++) await sender.send(i);
  assertEquals(await Promise.all(waiting), waiting.map((_, i) => i));
});

Deno.test("null for a signal is none, on every wait", async () => {
  const channel = new Channel<number>();
  const sent = channel.send(1, NO_SIGNAL);
  assertEquals(await channel.receive(NO_SIGNAL), 1);
  await sent;
  const waits = [
    channel.receive(NO_SIGNAL),
    channel.receiveMany(1, NO_SIGNAL),
    select({ a: channel.receiveCase() }, NO_SIGNAL),
  ];
  for (let value = 1; value <= 3; value++) await channel.send(value);
  const [one, many, chosen] = await Promise.all(waits);
  assertEquals([one, many, (chosen as { value: number }).value], [1, [2], 3]);
  await assertRejects(() => select({}, NO_SIGNAL), TypeError, "Cannot select");
});

Deno.test("onDrop belongs to its options: a class's may use them", () => {
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
