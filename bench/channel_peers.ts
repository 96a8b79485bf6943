/**
 * The measured peers: this channel, that of std where JSR is reachable, those of npm, and the platform's streams.
 *
 * @module
 */

import { Channel, select } from "../channel.ts";
import type { Peer } from "./channel_scenarios.ts";

/** The part of this class that std has, too. */
type ChannelClass = new (options: { capacity: number }) => Omit<Channel<number>, "receiveCase" | "sendCase">;

/** The peer of this class or of std's. */
function channel<C extends InstanceType<ChannelClass>>(Class: new (options: { capacity: number }) => C) {
  return {
    open: (capacity) => new Class({ capacity }),
    send: (queue, value) => queue.send(value),
    receive: (queue) => queue.receive(),
    read: (value) => value,
    close: (queue) => queue.close(),
    values: (queue) => queue,
    trySend: (queue, value) => queue.trySend(value),
    tryReceive(queue) {
      const result = queue.tryReceive();
      return result.state === "ok" ? result.value : undefined;
    },
    receiveUntil: (queue, signal) => queue.receive({ signal }),
  } satisfies Peer<C>;
}

function ours() {
  return {
    ...channel<Channel<number>>(Channel),
    select: (a, b, c) => select({ a: a.receiveCase(), b: b.receiveCase(), c: c.receiveCase() }),
    readSelected: (selected) => selected.value ?? NaN,
  } satisfies Peer<Channel<number>, number, { value?: number | undefined }>;
}

async function std() {
  const specifier = "@std/async/channel"; // not a literal in the import: the stand-in of `@std/async` has no channel
  const { Channel }: { Channel: ChannelClass } = await import(specifier);
  return channel(Channel);
}

async function asyncChannel() {
  const { Channel } = await import("npm:async-channel@0.2.0");
  return {
    open: (capacity) => new Channel<number>(capacity),
    send: (queue, value) => queue.push(value),
    receive: (queue) => queue.get(),
    read: (value) => value,
    close: (queue) => queue.close(),
    values: (queue) => queue,
  } satisfies Peer<InstanceType<typeof Channel<number>>>;
}

async function thing() {
  const { Channel, select } = await import("npm:@thi.ng/csp@3.2.44");
  return {
    // Its smallest capacity is 1, but write() resolves when the value is received, as on a rendezvous.
    open: (capacity) => new Channel<number>(Math.max(capacity, 1)),
    send: (queue, value) => queue.write(value),
    receive: (queue) => queue.read(),
    read: (value) => value ?? NaN,
    close: (queue) => queue.close(),
    values: (queue) => queue,
    trySend: (queue, value) => queue.offer(value),
    tryReceive: (queue) => queue.poll(),
    select: (a, b, c) => select(a, b, c),
    readSelected: ([value]) => value ?? NaN,
  } satisfies Peer<
    InstanceType<typeof Channel<number>>,
    number | undefined,
    [number | undefined, InstanceType<typeof Channel<number>>]
  >;
}

async function queueable() {
  const { Channel } = await import("npm:queueable@5.3.2");
  return {
    // Without a limit, because at the limit it drops the oldest value; push() resolves when the value is received.
    open: () => new Channel<number>(),
    send: (queue, value) => queue.push(value),
    receive: (queue) => queue.next(),
    read: ({ value }) => value,
    close: (queue) => queue.push(NaN, true), // its close() discards the buffer
    values: (queue) => queue,
  } satisfies Peer<InstanceType<typeof Channel<number>>, IteratorResult<number>>;
}

async function effect() {
  const { Effect, Queue, Stream } = await import("npm:effect@4.1.0");
  type Ended = import("npm:effect@4.1.0").Cause.Done;
  type NumberQueue = import("npm:effect@4.1.0").Queue.Queue<number, Ended>;
  return {
    open: (capacity) => Effect.runSync(Queue.bounded<number, Ended>(capacity)),
    send: (queue, value) => Effect.runPromise(Queue.offer(queue, value)),
    receive: (queue) => Effect.runPromise(Queue.take(queue)),
    read: (value) => value,
    close: (queue) => Queue.endUnsafe(queue),
    values: (queue) => Stream.toAsyncIterable(Stream.fromQueue(queue)),
    trySend: (queue, value) => Queue.offerUnsafe(queue, value),
    tryReceive(queue) {
      const exit = Queue.takeUnsafe(queue);
      return exit?._tag === "Success" ? exit.value : undefined;
    },
    receiveUntil: (queue, signal) => Effect.runPromise(Queue.take(queue), { signal }),
    select: (a, b, c) => Effect.runPromise(Effect.raceAllFirst([Queue.take(a), Queue.take(b), Queue.take(c)])),
    readSelected: (value) => value,
    // One fiber sends faster to an iteration than a promise for each value, and slower to single receives.
    sendAll: (queue, count) =>
      Effect.runPromise(Effect.gen(function* () {
        for (let value = 1; value <= count; value++) yield* Queue.offer(queue, value);
      })),
  } satisfies Peer<NumberQueue, number, number>;
}

/** The two ends of a TransformStream; the reader is made on demand, because an iteration locks the stream itself. */
interface Ends {
  readable: ReadableStream<number>;
  writer: WritableStreamDefaultWriter<number>;
  reader?: ReadableStreamDefaultReader<number>;
}

function transformStream() {
  return {
    open(capacity) {
      const { readable, writable } = new TransformStream<number, number>({}, {}, { highWaterMark: capacity });
      return { readable, writer: writable.getWriter() };
    },
    send: (ends, value) => ends.writer.write(value),
    receive: (ends) => (ends.reader ??= ends.readable.getReader()).read(),
    read: ({ value }) => value ?? NaN,
    close: ({ writer }) => writer.close(),
    values: ({ readable }) => readable,
  } satisfies Peer<Ends, ReadableStreamReadResult<number>>;
}

/** Creates each peer; rejects for one that is not available. */
export const peers: Readonly<Record<string, () => Peer<unknown, unknown> | Promise<Peer<unknown, unknown>>>> = {
  "ours": ours,
  "@std/async": std,
  "async-channel": asyncChannel,
  "@thi.ng/csp": thing,
  "queueable": queueable,
  "effect": effect,
  "TransformStream": transformStream,
};
