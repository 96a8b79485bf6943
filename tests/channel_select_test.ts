/**
 * `select` and `trySelect`: rows 40 to 48 of docs/channel.md.
 *
 * @module
 */

import { assert, assertEquals, assertGreaterOrEqual, assertRejects, assertStrictEquals } from "@std/assert";
import { bounded, Channel, select, trySelect } from "../channel.ts";
import { assertNoWaits, filled, REASON, stateOf } from "./channel_support.ts";
import { assertTimeout, reasonOf } from "./errors.ts";

Deno.test("row 40: select() chooses each of two ready cases at least 40 % of the time, and with biased always the first", async () => {
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

Deno.test("row 41: select() completes the first case that becomes ready and ends its other waits in the same step", async () => {
  const [a, b, c] = [new Channel<number>({ capacity: 1 }), new Channel<number>(), new Channel<number>()];
  const selected = select({ a: a.receiveCase(), b: b.receiveCase(), out: c.sendCase(9) });
  assert(b.trySend(1));
  assertNoWaits(a, b, c);
  assertEquals(await selected, { key: "b", done: false, value: 1 });

  const sending = select({ a: a.receiveCase(), b: b.receiveCase(), out: c.sendCase(9) });
  assertEquals(c.tryReceive(), { state: "ok", value: 9 });
  assertNoWaits(a, b, c);
  assertEquals(await sending, { key: "out", done: false });
});

Deno.test("row 41: select() waits for each of its cases, in whatever order it tried them", async () => {
  const channels = Array.from({ length: 4 }, () => new Channel<number>());
  for (let round = 0; round < 200; round++) {
    const selected = select(Object.fromEntries(channels.map((channel, i) => [`${i}`, channel.receiveCase()])));
    const i = round % channels.length;
    assert(channels[i]!.trySend(round));
    assertEquals<unknown>(await selected, { key: `${i}`, done: false, value: round });
  }
});

Deno.test("row 42: select() rejects on abort and on timeout without receiving or sending", async () => {
  const [a, b] = [new Channel<number>({ capacity: 1 }), new Channel<number>()];
  const controller = new AbortController();
  const aborted = select({ a: a.receiveCase(), b: b.sendCase(1) }, { signal: controller.signal });
  controller.abort(REASON);
  assertNoWaits(a, b);
  assertStrictEquals(await reasonOf(aborted), REASON);
  await assertTimeout(select({ a: a.receiveCase(), b: b.sendCase(1) }, { timeout: 1 }));
  assertNoWaits(a, b);
});

Deno.test("row 43: select() resolves with done: true for a closed channel or handle, also while it waits", async () => {
  const channel = filled(1, 1);
  channel.close(REASON);
  assertEquals(await select({ in: channel.receiveCase() }), { key: "in", done: false, value: 1 });
  assertEquals(await select({ in: channel.receiveCase() }), { key: "in", done: true });
  assertEquals(await select({ out: channel.sendCase(1) }), { key: "out", done: true });

  // The same when the channel or its own handle closes while the select waits.
  const { sender, receiver } = bounded<number>(0);
  const others = new Channel<number>();
  const receives = [
    select({ in: receiver.clone().receiveCase(), other: others.receiveCase() }),
    select({ in: receiver.receiveCase(), other: others.receiveCase() }),
  ];
  receiver.close();
  sender.close(REASON);
  for (const r of receives) assertEquals(await r, { key: "in", done: true });
  assertNoWaits(others);

  const full = bounded<number>(0);
  const mine = select({ out: full.sender.sendCase(1), other: others.receiveCase() });
  const yours = select({ out: full.sender.clone().sendCase(2), other: others.receiveCase() });
  full.sender.close();
  assertEquals(await mine, { key: "out", done: true });
  assertEquals(await stateOf(yours), "pending");
  full.receiver.close();
  assertEquals(await yours, { key: "out", done: true });
  assertNoWaits(others);
});

Deno.test("row 44: select() with a send and a receive on one rendezvous channel does not match itself", async () => {
  const channel = new Channel<number>();
  const selected = select({ out: channel.sendCase(1), in: channel.receiveCase() });
  assertEquals(await stateOf(selected), "pending");
  assertEquals(channel.size, 0);
  assert(channel.trySend(2));
  assertEquals(await selected, { key: "in", done: false, value: 2 });
  assertNoWaits(channel);

  const again = select({ in: channel.receiveCase(), out: channel.sendCase(1) });
  assertEquals(channel.drain(), [1]);
  assertEquals(await again, { key: "out", done: false });
  const closed = select({ in: channel.receiveCase(), out: channel.sendCase(1) });
  channel.close();
  assertEquals((await closed).done, true);
});

Deno.test("row 45: a sending and a receiving select() on a rendezvous channel complete with one value", async () => {
  const channel = new Channel<number>();
  const [idle, other] = [new Channel<number>(), new Channel<number>()];
  for (const senderFirst of [true, false]) {
    const send = () => select({ out: channel.sendCase(1), idle: idle.receiveCase() });
    const receive = () => select({ in: channel.receiveCase(), idle: other.sendCase(2) });
    const first = senderFirst ? send() : receive();
    const second = senderFirst ? receive() : send();
    const results = senderFirst ? [await first, await second] : [await second, await first];
    assertEquals<unknown>(results, [{ key: "out", done: false }, { key: "in", done: false, value: 1 }]);
    assertNoWaits(channel, idle, other);
  }
});

Deno.test("row 45: two selects with a send and a receive on one channel each match the other and not themselves", async () => {
  const channel = new Channel<string>();
  const both = (value: string) => select({ out: channel.sendCase(value), in: channel.receiveCase() });
  const results = await Promise.all([both("a"), both("b")]);
  const sent = results.findIndex((r) => r.key === "out");
  assertEquals<unknown>(results[sent], { key: "out", done: false });
  assertEquals<unknown>(results[1 - sent], { key: "in", done: false, value: "ab"[sent] });
  assertEquals(channel.tryReceive(), { state: "empty" });
});

Deno.test("row 46: select() ignores undefined cases and rejects with TypeError when no case, signal or timeout is left", async () => {
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

Deno.test("row 47: trySelect() returns undefined and leaves no wait when no case is ready", () => {
  const [a, b] = [new Channel<number>({ capacity: 1 }), new Channel<number>()];
  assertEquals(trySelect({ a: a.receiveCase(), b: b.sendCase(1) }), undefined);
  assertNoWaits(a, b);
  a.trySend(1);
  assertEquals(trySelect({ a: a.receiveCase(), b: b.sendCase(1) }), { key: "a", done: false, value: 1 });
});

Deno.test("row 48: select() with timeout 0 rejects with a TimeoutError and leaves no wait when no case is ready", async () => {
  const [a, b] = [new Channel<number>({ capacity: 1 }), new Channel<number>()];
  const selected = select({ a: a.receiveCase(), b: b.sendCase(1) }, { timeout: 0 });
  assertNoWaits(a, b);
  await assertTimeout(selected);
  a.trySend(1);
  assertEquals(await select({ a: a.receiveCase(), b: b.sendCase(1) }, { timeout: 0 }), {
    key: "a",
    done: false,
    value: 1,
  });
});
