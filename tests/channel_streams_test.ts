/**
 * Web streams and iterations of a channel: rows 35 to 39 of docs/channel.md.
 *
 * @module
 */

import {
  assert,
  assertEquals,
  assertFalse,
  assertGreaterOrEqual,
  assertInstanceOf,
  assertRejects,
  assertStrictEquals,
} from "@std/assert";
import { bounded, Channel, ChannelClosedError, unbounded } from "../channel.ts";
import { assertEnded, assertUnsent, filled, REASON, stateOf } from "./channel_support.ts";
import { reasonOf } from "./errors.ts";
import { microtasks } from "./support.ts";

Deno.test("row 35: Channel.toReadableStream() consumes no value without a read, and cancel() consumes none", async () => {
  const channel = filled(4, 1, 2, 3, 4);
  const reader = channel.toReadableStream().getReader();
  await microtasks();
  assertEquals(channel.size, 4);
  assertEquals(await reader.read(), { done: false, value: 1 });
  await microtasks();
  assertEquals(channel.size, 3);
  await reader.cancel();
  assertEquals(channel.drain(), [2, 3, 4]);
});

Deno.test("row 35: a readable stream delivers a value sent just before cancel() and does not consume one sent just after", async () => {
  const { sender, receiver } = bounded<number>(2);
  const reader = receiver.toReadableStream().getReader();
  const first = reader.read();
  await microtasks();
  assert(sender.trySend(1));
  const second = reader.read();
  await microtasks();
  const cancelled = reader.cancel();
  assert(sender.trySend(2));
  await cancelled;
  assertEquals(await first, { done: false, value: 1 });
  assertEquals<unknown>(await second, { done: true, value: undefined });
  assertEquals(receiver.drain(), [2]);

  const value = bounded<number>(2);
  const other = value.receiver.toReadableStream().getReader();
  const read = other.read();
  await microtasks();
  value.sender.trySend(3);
  await other.cancel(); // in the same tick in which the value was received
  assertEquals(await read, { done: false, value: 3 });
});

Deno.test("row 36: cancel() of a Receiver's stream closes only the stream's handle, that of a Channel's stream closes the channel", async () => {
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
  await microtasks();
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
    await microtasks();
    await emptyReader.cancel(...reason);
    assertEquals<unknown>(await read, { done: true, value: undefined });
    assert(empty.closed);
  }
});

Deno.test("row 36: a Receiver's stream closes its own handle when it ends or fails", async () => {
  for (const reason of [[], [REASON]] as const) {
    for (const waiting of [true, false]) {
      const { sender, receiver } = bounded<number>(1);
      const reader = receiver.toReadableStream().getReader();
      receiver.close();
      assertEquals(sender.receiverCount, 1);
      const read = waiting ? reader.read() : undefined;
      await microtasks();
      sender.close(...reason);
      const result = read ?? reader.read();
      if (reason[0] === REASON) assertStrictEquals(await reasonOf(result), REASON);
      else assertEquals<unknown>(await result, { done: true, value: undefined });
      assertEquals(sender.receiverCount, 0);
      await reader.cancel().catch((error: unknown) => assertStrictEquals(error, REASON));
    }
  }
});

Deno.test("row 37: Channel.toWritableStream() applies backpressure, and abort() closes the channel with its error", async () => {
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
  await microtasks();
  const aborted = writer.abort(REASON); // also rejects the write that waits
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

Deno.test("row 37: Sender.toWritableStream() closes only its own handle, and a write without receivers rejects with its value", async () => {
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

Deno.test("row 37: Sender.toWritableStream() closes its own handle when a write fails", async () => {
  const { sender, receiver } = bounded<number>(1);
  const piped = ReadableStream.from([1, 2, 3]).pipeTo(sender.toWritableStream());
  assertEquals(await receiver.receive(), 1);
  receiver.close();
  await assertRejects(() => piped, ChannelClosedError);
  const weak = sender.downgrade();
  sender.close();
  assertEquals([sender.senderCount, weak.upgrade()], [0, undefined]);
});

Deno.test("row 37: chunks queued behind a failed write reject with its error, which has only the value of that write", async () => {
  const channel = new Channel<string>();
  const { sender, receiver } = bounded<string>(0);
  const ends = [[channel.toWritableStream(), channel], [sender.toWritableStream(), receiver]] as const;
  for (const [writable, end] of ends) {
    const writer = writable.getWriter();
    const writes = ["a", "b", "c"].map((chunk) => reasonOf(writer.write(chunk)));
    writer.closed.catch(() => {});
    await microtasks();
    end.close();
    const [error, ...behind] = await Promise.all(writes);
    assertInstanceOf(error, ChannelClosedError);
    assertEquals(error.value, "a");
    for (const other of behind) assertStrictEquals(other, error);
  }
});

Deno.test("row 38: break in a for await loop leaves the channel open and loses no value", async () => {
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

Deno.test("row 38: return() of a waiting iterator consumes no value, and throw() rejects with its argument", async () => {
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

  // ReadableStream.from() calls return() in the same way.
  const stream = ReadableStream.from(channel).getReader();
  const read = stream.read();
  await microtasks();
  await stream.cancel();
  await read;
  channel.trySend(3);
  assertEquals(channel.size, 1);
});

Deno.test("row 39: two iterations of one channel share 1000 values, none missing, each in order", async () => {
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
