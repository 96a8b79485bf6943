/**
 * Conformance with the `Channel` of `@std/async`: one suite over this class and, where JSR is reachable, over that of
 * std. A program that runs with one runs with the other.
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
import * as ours from "../channel.ts";
import { reasonOf } from "./errors.ts";

/** An implementation under test: the exports that this module and std have in common. */
type Implementation = Pick<typeof ours, "Channel" | "ChannelClosedError">;

// Not literals in an import, because the stand-in of `@std/async` has no channel. Older versions export it as unstable.
const [stable, unstable] = ["@std/async/channel", "@std/async/unstable-channel"];
const theirs: Implementation | undefined = await import(stable!).catch(() => import(unstable!)).catch(() => undefined);

const REASON = new Error("the reason");

for (const [name, implementation] of [["ours", ours], ["std's", theirs]] as const) {
  const test = (what: string, fn: (implementation: Implementation) => void | Promise<void>) =>
    Deno.test({
      name: `std conformance, ${name}: ${what}${implementation ? "" : " (skipped: JSR is not reachable)"}`,
      ignore: implementation === undefined,
      fn: () => fn(implementation!),
    });

  test("the constructor accepts no options, empty options or a capacity, and throws RangeError for an invalid one", ({ Channel }) => {
    assertEquals([new Channel().capacity, new Channel({}).capacity, new Channel({ capacity: 5 }).capacity], [0, 0, 5]);
    for (const capacity of [-1, 0.5, NaN, Infinity]) assertThrows(() => new Channel({ capacity }), RangeError);
  });

  test("values keep their order in the buffer, across its wrap and from waiting sends", async ({ Channel }) => {
    const channel = new Channel<number>({ capacity: 3 });
    const received: number[] = [];
    const sends: Promise<void>[] = [];
    for (let n = 0; n < 40; n++) {
      sends.push(channel.send(n));
      if (n % 3 > 0) received.push(await channel.receive());
    }
    while (received.length < 40) received.push(await channel.receive());
    await Promise.all(sends);
    assertEquals(received, [...Array(40).keys()]);
  });

  test("size counts buffered values and not waiting sends", async ({ Channel }) => {
    const channel = new Channel<string>({ capacity: 2 });
    const sends = ["a", "b", "c"].map((value) => channel.send(value));
    assertEquals(channel.size, 2);
    assertEquals(channel.tryReceive(), { state: "ok", value: "a" });
    assertEquals(channel.size, 2);
    await Promise.all(sends);
    const rendezvous = new Channel<string>();
    const sent = rendezvous.send("a");
    assertEquals(rendezvous.size, 0);
    assertEquals(rendezvous.tryReceive(), { state: "ok", value: "a" });
    await sent;
  });

  test("trySend() returns whether the value was sent, and tryReceive() returns shared results without a value", ({ Channel }) => {
    const channel = new Channel<undefined>({ capacity: 1 });
    assertStrictEquals(channel.tryReceive(), channel.tryReceive());
    assertEquals(channel.tryReceive(), { state: "empty" });
    assert(channel.trySend(undefined));
    assertFalse(channel.trySend(undefined));
    channel.close();
    assertFalse(channel.trySend(undefined));
    assertEquals(channel.tryReceive(), { state: "ok", value: undefined });
    assertEquals(channel.tryReceive(), { state: "closed" });
    assertStrictEquals(channel.tryReceive(), channel.tryReceive());
  });

  test("ChannelClosedError has a value from send() and none from receive()", async ({ Channel, ChannelClosedError }) => {
    const channel = new Channel<object>();
    const value = {};
    const waiting = channel.send(value);
    channel.close();
    for (const sent of [() => waiting, () => channel.send(value)]) {
      const error = await assertRejects(sent, ChannelClosedError);
      assertStrictEquals(error.value, value);
      assertEquals(error.name, "ChannelClosedError");
      assertEquals(error.message, "Cannot send to a closed channel");
      assertEquals(Object.keys(error).includes("value"), true);
    }
    const error = await assertRejects(() => channel.receive(), ChannelClosedError);
    assertFalse("value" in error);
    assertEquals(error.message, "Cannot receive from a closed channel");
    assertStrictEquals(await reasonOf(channel.receive()), error); // the same error each time
  });

  test("ChannelClosedError can be constructed with and without a value", ({ ChannelClosedError }) => {
    const bare = new ChannelClosedError("bare");
    assertInstanceOf(bare, Error);
    assertEquals([bare.name, bare.message, "value" in bare], ["ChannelClosedError", "bare", false]);
    const loaded = new ChannelClosedError("loaded", undefined);
    assertEquals(["value" in loaded, loaded.value], [true, undefined]);
  });

  test("close(reason) keeps the buffer and rejects receives with the first reason", async ({ Channel, ChannelClosedError }) => {
    const channel = new Channel<number>({ capacity: 1 });
    await channel.send(1);
    const waiting = channel.send(2);
    channel.close(REASON);
    channel.close(new Error("later"));
    assert(channel.closed);
    assertEquals((await assertRejects(() => waiting, ChannelClosedError)).value, 2);
    assertEquals(await channel.receive(), 1);
    assertStrictEquals(await reasonOf(channel.receive()), REASON);
    const explicit = new Channel<number>();
    const received = explicit.receive();
    explicit.close(undefined);
    assertStrictEquals(await reasonOf(received), undefined);
  });

  test("an abort rejects waits with the signal's reason and does not affect an operation possible at once", async ({ Channel }) => {
    const channel = new Channel<number>({ capacity: 1 });
    const controller = new AbortController();
    const { signal } = controller;
    const first = channel.receive({ signal });
    const second = channel.receive();
    const third = channel.receive({ signal });
    controller.abort(REASON);
    assertStrictEquals(await reasonOf(first), REASON);
    assertStrictEquals(await reasonOf(third), REASON);
    await channel.send(1);
    assertEquals(await second, 1);
    await channel.send(2, { signal });
    assertStrictEquals(await reasonOf(channel.send(3, { signal })), REASON);
    assertEquals(await channel.receive({ signal }), 2);
    assertStrictEquals(await reasonOf(channel.receive({ signal })), REASON);
    assertFalse(channel.closed);
  });

  test("iteration ends after close(), or fails once with the reason of the close", async ({ Channel }) => {
    const channel = new Channel<number>({ capacity: 2 });
    const producing = (async () => {
      for (let n = 0; n < 10; n++) await channel.send(n);
      channel.close();
    })();
    assertEquals(await Array.fromAsync(channel), [...Array(10).keys()]);
    await producing;
    const failing = new Channel<number>({ capacity: 1 });
    await failing.send(1);
    failing.close(REASON);
    const iterator = failing[Symbol.asyncIterator]();
    assertEquals(await iterator.next(), { done: false, value: 1 });
    assertStrictEquals(await reasonOf(iterator.next()), REASON);
    assertEquals(await iterator.next(), { done: true, value: undefined });
  });

  test("break in a for await loop leaves the channel open with its values", async ({ Channel }) => {
    const channel = new Channel<number>({ capacity: 3 });
    for (const n of [1, 2, 3]) channel.trySend(n);
    for await (const n of channel) if (n === 1) break;
    assertEquals([channel.closed, channel.size], [false, 2]);
  });

  test("the readable stream delivers the values and ends like the channel, and cancel() closes the channel", async ({ Channel, ChannelClosedError }) => {
    const channel = new Channel<number>({ capacity: 2 });
    for (const n of [1, 2]) channel.trySend(n);
    channel.close();
    assertEquals(await Array.fromAsync(channel.toReadableStream()), [1, 2]);
    const failing = new Channel<number>({ capacity: 1 });
    failing.close(REASON);
    assertStrictEquals(await reasonOf(Array.fromAsync(failing.toReadableStream())), REASON);
    const cancelled = new Channel<number>();
    await cancelled.toReadableStream().cancel(REASON);
    assertStrictEquals(await reasonOf(cancelled.receive()), REASON);
    const left = new Channel<number>();
    await left.toReadableStream().cancel();
    await assertRejects(() => left.receive(), ChannelClosedError);
  });

  test("using and await using close the channel", async ({ Channel }) => {
    const channels = [new Channel(), new Channel()];
    {
      using one = channels[0]!;
      await using two = channels[1]!;
      assertEquals([one.closed, two.closed], [false, false]);
    }
    assertEquals(channels.map((channel) => channel.closed), [true, true]);
  });
}
