/**
 * Abort and timeout of a wait: rows 17 to 23 of docs/channel.md.
 *
 * @module
 */

import { assert, assertEquals, assertFalse, assertRejects, assertStrictEquals } from "@std/assert";
import { bounded, Channel, select } from "../channel.ts";
import { clock, type Timer } from "../_clock.ts";
import {
  assertEnded,
  assertNoWaits,
  assertUnsent,
  filled,
  REASON,
  stateOf,
  untilCollected,
} from "./channel_support.ts";
import { assertTimeout, reasonOf } from "./errors.ts";
import { countListeners, NO_SIGNAL } from "./support.ts";

Deno.test("row 17: Channel.receive() rejects with signal.reason when aborted, and the next value sent is buffered", async () => {
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

Deno.test("row 18: after an abort a value goes to the first receive that still waits", async () => {
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

Deno.test("row 19: the value of an aborted send is never delivered, and the next waiting send is admitted", async () => {
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

Deno.test("row 20: with an aborted signal an operation succeeds if possible at once, otherwise it rejects with the reason", async () => {
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
  assertNoWaits(channel);
  channel.close();
  await assertEnded(channel.receive({ signal }));
  await assertUnsent(channel.send(5, { signal }), 5);
});

Deno.test("row 21: settled waits leave no listener on their signal, after 10 000 operations on one signal", async () => {
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
  assertEquals(listeners(), 1); // one listener for all: adding or removing one searches the signal's list
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

Deno.test("row 21: 600 waits that use six signals in turn add one listener to each signal", async () => {
  const controllers = Array.from({ length: 6 }, () => new AbortController());
  const counts = controllers.map(({ signal }) => countListeners(signal));
  const channel = new Channel<number>();
  const waits = Array.from({ length: 600 }, (_, i) => channel.receive({ signal: controllers[i % 6]!.signal }));
  assertEquals(counts.map((count) => count()), [1, 1, 1, 1, 1, 1]);
  for (let i = 0; i < 600; i++) channel.trySend(i);
  assertEquals(counts.map((count) => count()), [0, 0, 0, 0, 0, 0]);
  assertEquals(await Promise.all(waits), waits.map((_, i) => i));
});

Deno.test("row 21: the end of a wait whose signal was forgotten adds no second listener to the signal in its place", async () => {
  const channel = new Channel<number>();
  const controllers = Array.from({ length: 9 }, () => new AbortController()); // one more than are remembered
  const counts = controllers.map(({ signal }) => countListeners(signal));
  const waits = controllers.map(({ signal }) => channel.receive({ signal }));
  assert(channel.trySend(0)); // ends the wait of the first signal
  waits.push(channel.receive({ signal: controllers[8]!.signal }));
  assertEquals(counts.map((count) => count()), [0, 1, 1, 1, 1, 1, 1, 1, 1]);
  for (let i = 1; i < waits.length; i++) assert(channel.trySend(i));
  assertEquals(await Promise.all(waits), waits.map((_, i) => i));
});

Deno.test("row 21: neither a settled wait nor its channel holds its signal or its value", async () => {
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
  // Used here, so that it is not collected itself before.
  assertEquals(channel.size, 0);
});

Deno.test("row 21: each of 40 signals, used in turn, ends its own waits and no other", async () => {
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

Deno.test("row 22: Channel.receive({ timeout }) rejects with a TimeoutError, consumes no later value and leaves no timer", async () => {
  const timers = new Map<unknown, () => void>(); // by delay, which is also the timer's handle
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

    // With a signal and a timeout, the first to end the wait removes the other.
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

Deno.test("row 23: an invalid timeout rejects with RangeError, Infinity is no limit, and 0 rejects with a TimeoutError instead of waiting", async () => {
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
  assertNoWaits(channel);
  for (const timeout of [Infinity, 2_147_483_647]) {
    const received = channel.receive({ timeout });
    channel.trySend(1);
    assertEquals(await received, 1);
  }
});

Deno.test("channel: a signal that is not an AbortSignal rejects each operation that would wait, which leaves nothing behind", async () => {
  const channel = new Channel<number>();
  const options = { signal: 1 as unknown as AbortSignal };
  for (
    const operation of [
      () => channel.send(1, options),
      () => channel.receive(options),
      () => channel.receiveMany(1, options),
      () => select({ a: channel.receiveCase() }, options),
    ]
  ) {
    await assertRejects(operation, TypeError, "signal must be an AbortSignal, received number");
    assertNoWaits(channel);
  }
});

Deno.test("channel: null as the signal counts as no signal in each waiting operation", async () => {
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
