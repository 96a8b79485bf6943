/**
 * Channels: queues between any number of sending and receiving tasks. Each value goes to exactly one receiver, in
 * order.
 *
 * {@linkcode Channel} has the interface of `Channel` of `@std/async`; a program written for that class runs with this
 * one after its import line is changed. It adds:
 *
 * - a `signal` and a `timeout` on every operation that waits;
 * - `receiveMany` and `drain`;
 * - separate sending and receiving handles that are counted: {@linkcode bounded}, {@linkcode unbounded};
 * - {@linkcode select} over several channels;
 * - `onDrop` for values that can no longer be received;
 * - a `WritableStream` into the channel, and a `ReadableStream` out of it that reads nothing ahead.
 *
 * Guarantees:
 *
 * - A value is transferred in one synchronous step. If an abort or a timeout comes before that step, the value has not
 *   moved; after it, the operation has succeeded. No value is both rejected and delivered, and none is lost: an unsent
 *   value is in {@linkcode ChannelClosedError}, and a value that can no longer be received is passed to `onDrop`. The
 *   exceptions are a cancelled read and chunks queued behind a failed write: see `toReadableStream` and
 *   `toWritableStream`.
 * - Values, waiting senders and waiting receivers are first in, first out. `trySend` does not overtake waiting senders.
 * - After a close, buffered values can still be received; waiting sends reject with their values.
 * - `undefined` is a value like any other. A thenable is a value, too, but a promise of it adopts its state:
 *   `receive()` of a `Channel<Promise<X>>` resolves with the `X`. Iteration, `tryReceive`, `receiveMany`, `drain`,
 *   `select` and the readable stream return the thenable itself. So does `receive()` if the thenable is wrapped: `{
 *   value: thenable }`.
 * - Only `close()` and `using` close a handle, never garbage collection.
 *
 * @example Three workers, one queue
 * ```ts
 * import { bounded } from "@sluice/smux/channel";
 * import { assertEquals } from "@std/assert";
 *
 * const { sender, receiver } = bounded<number>(16);
 * const squares: number[] = [];
 *
 * async function work(jobs: typeof receiver) {
 *   using mine = jobs;
 *   for await (const n of mine) squares.push(n * n);
 * }
 * const workers = [work(receiver.clone()), work(receiver.clone()), work(receiver)];
 *
 * for (let n = 1; n <= 4; n++) await sender.send(n);
 * sender.close();
 * await Promise.all(workers);
 * assertEquals(squares.sort((a, b) => a - b), [1, 4, 9, 16]);
 * ```
 *
 * @module
 */

import {
  ChannelClosedError,
  ChannelIterator,
  type ChannelReceiveResult,
  Core,
  Handle,
  type HandleCore,
  type ReceiverCore,
  type SenderCore,
  toWritableStream,
  VALUE_RESULT,
} from "./_channel_core.ts";
import { describeValue } from "./_describe.ts";
import type { SelectCase, WaitOptions } from "./_wait.ts";

export { ChannelClosedError, type ChannelReceiveResult } from "./_channel_core.ts";
export type { SelectCase, WaitOptions } from "./_wait.ts";
export { select, type SelectCases, type SelectOptions, type SelectResult, trySelect } from "./select.ts";

/**
 * Options for values that can no longer be received.
 *
 * @typeParam T The type of the channel's values.
 *
 * @example Closing dropped values
 * ```ts
 * import { bounded, type DropOptions } from "@sluice/smux/channel";
 * import { assertEquals } from "@std/assert";
 *
 * const closed: string[] = [];
 * const options: DropOptions<string> = { onDrop: (name) => closed.push(name) };
 * const { sender, receiver } = bounded<string>(2, options);
 * sender.trySend("a");
 * sender.trySend("b");
 * receiver.close();
 * assertEquals(closed, ["a", "b"]);
 * ```
 */
export interface DropOptions<T = unknown> {
  /**
   * Called once for each buffered value, in order, when the last {@linkcode Receiver} is closed. That `close()` throws
   * the first error of these calls, after the last one.
   *
   * A {@linkcode Channel} keeps its buffer receivable after `close()`, so it never drops a value.
   */
  onDrop?(value: T): void;
}

/**
 * Options of the {@linkcode Channel} constructor.
 *
 * @typeParam T The type of the channel's values.
 *
 * @example A channel with a buffer
 * ```ts
 * import { Channel, type ChannelOptions } from "@sluice/smux/channel";
 * import { assertEquals } from "@std/assert";
 *
 * const options: ChannelOptions<string> = { capacity: 4 };
 * assertEquals(new Channel<string>(options).capacity, 4);
 * ```
 */
export interface ChannelOptions<T = unknown> extends DropOptions<T> {
  /**
   * Maximum number of buffered values, an integer of at least 0. With 0 every send waits for its receive. Default 0.
   */
  capacity?: number | undefined;
}

/**
 * Options of a send: a signal and a timeout.
 *
 * @example Sending without waiting
 * ```ts
 * import { Channel, type ChannelSendOptions } from "@sluice/smux/channel";
 * import { assertRejects } from "@std/assert";
 *
 * const options: ChannelSendOptions = { timeout: 0 };
 * await assertRejects(() => new Channel<number>().send(1, options), DOMException, "0 ms");
 * ```
 */
export type ChannelSendOptions = WaitOptions;

/**
 * Options of a receive: a signal and a timeout.
 *
 * @example A receive with an aborted signal
 * ```ts
 * import { Channel, type ChannelReceiveOptions } from "@sluice/smux/channel";
 * import { assertRejects } from "@std/assert";
 *
 * const options: ChannelReceiveOptions = { signal: AbortSignal.abort(new Error("not today")) };
 * await assertRejects(() => new Channel<number>().receive(options), Error, "not today");
 * ```
 */
export type ChannelReceiveOptions = WaitOptions;

/**
 * A queue between any number of sending and receiving tasks. Each value goes to exactly one receiver.
 *
 * One object is both ends. If the ends have different owners, and each must notice that the other is closed, use
 * {@linkcode bounded} or {@linkcode unbounded}.
 *
 * @typeParam T The type of the values. `undefined` is allowed; for thenables see the documentation of the module.
 *
 * @example Sending and receiving
 * ```ts
 * import { Channel } from "@sluice/smux/channel";
 * import { assertEquals } from "@std/assert";
 *
 * const channel = new Channel<string>({ capacity: 2 });
 * await channel.send("a");
 * await channel.send("b");
 * channel.close();
 * assertEquals(await Array.fromAsync(channel), ["a", "b"]);
 * ```
 *
 * @example A rendezvous
 * ```ts
 * import { Channel } from "@sluice/smux/channel";
 * import { assertEquals } from "@std/assert";
 *
 * const channel = new Channel<number>();
 * const sent = channel.send(1); // waits: there is no buffer
 * assertEquals(channel.tryReceive(), { state: "ok", value: 1 });
 * await sent;
 * ```
 *
 * @example Receiving with a time limit
 * ```ts
 * import { Channel } from "@sluice/smux/channel";
 * import { assertEquals, assertRejects } from "@std/assert";
 *
 * const channel = new Channel<number>({ capacity: 1 });
 * await assertRejects(() => channel.receive({ timeout: 10 }), DOMException, "10 ms");
 * channel.trySend(7); // not consumed by the receive that timed out
 * assertEquals(await channel.receive(), 7);
 * ```
 */
export class Channel<T> implements AsyncIterable<T>, Disposable, AsyncDisposable {
  readonly #core: Core<T>;

  /**
   * Creates a channel.
   *
   * @param options The capacity, by default 0.
   * @throws {RangeError} `capacity` is not an integer of at least 0.
   */
  constructor(options: ChannelOptions<T> = {}) {
    const { capacity = 0 } = options;
    this.#core = new Core(checkCapacity(capacity, ""), options);
  }

  /**
   * Sends a value; waits for room in the buffer or, at capacity 0, for a receive.
   *
   * @param value The value.
   * @param options A signal and a timeout.
   * @returns A promise that resolves once the value is buffered or received.
   * @throws {ChannelClosedError} The channel is or gets closed. Its property `value` is the unsent value.
   * @throws {RangeError} `timeout` is negative, NaN, or finite and above 2 147 483 647.
   * @throws {DOMException} "TimeoutError": the timeout expired.
   * @throws The reason of the signal, when it aborts.
   */
  send(value: T, options?: ChannelSendOptions): Promise<void> {
    return this.#core.send(value, options);
  }

  /**
   * Sends a value if that is possible without waiting and without overtaking a waiting send.
   *
   * @param value The value.
   * @returns `true` if it was sent; `false` if the channel is full or closed, and the caller keeps the value.
   */
  trySend(value: T): boolean {
    return this.#core.trySend(value);
  }

  /**
   * Creates a case of a {@linkcode select} that sends a value.
   *
   * @param value The value to send if this case is chosen.
   * @returns The case.
   */
  sendCase(value: T): SelectCase<{ done: false; value?: undefined } | { done: true; value?: undefined }> {
    return this.#core.sendCase(value);
  }

  /**
   * Receives the oldest value; waits while the channel is empty.
   *
   * @param options A signal and a timeout.
   * @returns A promise of the value.
   * @throws {ChannelClosedError} The channel is closed without a reason and drained.
   * @throws The reason of the close, if it had one, after the last value.
   * @throws {RangeError} `timeout` is negative, NaN, or finite and above 2 147 483 647.
   * @throws {DOMException} "TimeoutError": the timeout expired.
   * @throws The reason of the signal, when it aborts.
   */
  receive(options?: ChannelReceiveOptions): Promise<T> {
    return this.#core.receive<T>(VALUE_RESULT, options);
  }

  /**
   * Receives the oldest value, without waiting.
   *
   * @returns State `"ok"` with the value, `"empty"` if no value is available now, or `"closed"` if no value will come.
   */
  tryReceive(): ChannelReceiveResult<T> {
    return this.#core.tryReceive();
  }

  /**
   * Receives up to `max` values; waits for the first one while the channel is empty.
   *
   * @param max Maximum number of values: an integer of at least 1, or `Infinity`.
   * @param options A signal and a timeout.
   * @returns A promise of the oldest values: at least one, or an empty array at the end of a closed channel.
   * @throws {RangeError} `max` is neither an integer of at least 1 nor `Infinity`, or `timeout` is out of range.
   * @throws {DOMException} "TimeoutError": the timeout expired.
   * @throws The reason of the signal, when it aborts.
   * @throws The reason of the close, if it had one, after the last value.
   */
  receiveMany(max: number, options?: ChannelReceiveOptions): Promise<T[]> {
    return this.#core.receiveMany(max, options);
  }

  /**
   * Receives all present values without waiting: the buffered ones, and those of waiting sends, which resolve.
   *
   * @returns The values, oldest first.
   */
  drain(): T[] {
    return this.#core.dequeueMany(Infinity);
  }

  /**
   * Creates a case of a {@linkcode select} that receives a value.
   *
   * @returns The case.
   */
  receiveCase(): SelectCase<{ done: false; value: T } | { done: true; value?: undefined }> {
    return this.#core.receiveCase();
  }

  /**
   * Closes the channel. Waiting sends reject with their values. Buffered values can still be received; after the last
   * one receives reject and iterations end. Closing again has no effect.
   *
   * @param reason If passed, even as `undefined`: the error of receives, iterations and streams after the last value.
   */
  close(...reason: [] | [reason: unknown]): void {
    this.#core.close(reason);
  }

  /**
   * Whether the channel was closed. Buffered values may be left.
   *
   * @returns `true` after `close()`.
   */
  get closed(): boolean {
    return this.#core.closed;
  }

  /**
   * The number of buffered values. Those of waiting senders do not count.
   *
   * @returns 0 to `capacity`.
   */
  get size(): number {
    return this.#core.size;
  }

  /**
   * The maximum number of buffered values.
   *
   * @returns The capacity that was passed to the constructor.
   */
  get capacity(): number {
    return this.#core.capacity;
  }

  /**
   * Iterates over received values until the channel is closed and drained; rejects with the reason of the close, if it
   * had one. Leaving the loop keeps the channel open. Concurrent iterations share the values.
   *
   * @returns An iterator.
   */
  [Symbol.asyncIterator](): AsyncIterableIterator<T> {
    return new ChannelIterator(this.#core);
  }

  /**
   * Returns a readable stream of the channel's values. It receives a value only for a read, and shares the values with
   * other receivers.
   *
   * A read that `releaseLock()` interrupts still receives its value, for the next reader of the stream; a cancel loses
   * that value. Cancelling closes the channel, with the cancel's reason unless it is `undefined`. Buffered values stay
   * receivable.
   *
   * @returns A stream that ends or fails as an iteration does.
   *
   * @example Joining all values to one text
   * ```ts
   * import { Channel } from "@sluice/smux/channel";
   * import { assertEquals } from "@std/assert";
   * import { toText } from "@std/streams";
   *
   * const words = new Channel<string>({ capacity: 8 });
   * const text = toText(words.toReadableStream());
   * for (const word of ["to", "be", "or"]) await words.send(`${word} `);
   * words.close();
   * assertEquals(await text, "to be or ");
   * ```
   */
  toReadableStream(): ReadableStream<T> {
    return this.#core.toReadableStream();
  }

  /**
   * Returns a writable stream whose chunks are sent to the channel. Closing it closes the channel; aborting it closes
   * the channel with the reason of the abort.
   *
   * Chunks that are queued behind a failed write reject with the error of that write, as those of any `WritableStream`.
   * Its `value` is the chunk of that write; the queued ones are not returned. Await each write to keep them.
   *
   * @returns A stream whose writes resolve and reject as sends do.
   *
   * @example Distributing lines to two workers
   * ```ts
   * import { Channel } from "@sluice/smux/channel";
   * import { assertEquals } from "@std/assert";
   * import { TextLineStream } from "@std/streams";
   *
   * const lines = new Channel<string>({ capacity: 8 });
   * const text = ReadableStream.from(["first\nsec", "ond\nthi", "rd\n"]);
   * const piped = text.pipeThrough(new TextLineStream()).pipeTo(lines.toWritableStream());
   *
   * const work = async () => (await Array.fromAsync(lines)).length;
   * const [some, others] = await Promise.all([work(), work()]);
   * assertEquals(some + others, 3);
   * await piped;
   * ```
   */
  toWritableStream(): WritableStream<T> {
    return toWritableStream(this);
  }

  /** Closes the channel, for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }

  /**
   * Closes the channel, for `await using`.
   *
   * @returns A resolved promise.
   */
  [Symbol.asyncDispose](): Promise<void> {
    this.close();
    return Promise.resolve();
  }
}

let newSender: <T>(core: SenderCore<T>) => Sender<T>;
let newReceiver: <T>(core: ReceiverCore<T>) => Receiver<T>;
let newWeakSender: <T>(core: SenderCore<T>) => WeakSender<T>;

/**
 * Base class of {@linkcode Sender} and {@linkcode Receiver}, with the size and the counts of their channel.
 *
 * @typeParam T The type of the channel's values.
 *
 * @example Reading size and counts from either end
 * ```ts
 * import { bounded, type ChannelHandle } from "@sluice/smux/channel";
 * import { assertEquals } from "@std/assert";
 *
 * const { sender, receiver } = bounded<string>(2);
 * const describe = ({ size, capacity, receiverCount }: ChannelHandle<string>) =>
 *   `${size} of ${capacity}, ${receiverCount} receiving`;
 *
 * sender.trySend("a");
 * using other = receiver.clone();
 * assertEquals(describe(sender), "1 of 2, 2 receiving");
 * assertEquals(describe(other), describe(sender));
 * assertEquals(other.sameChannel(sender), true);
 * ```
 */
export class ChannelHandle<T> {
  readonly #core: HandleCore;

  /** Not for direct use: {@linkcode bounded} and {@linkcode unbounded} return handles. */
  protected constructor(core: HandleCore) {
    this.#core = core;
  }

  /**
   * The number of buffered values. Those of waiting senders do not count.
   *
   * @returns 0 to `capacity`.
   */
  get size(): number {
    return this.#core.size;
  }

  /**
   * The maximum number of buffered values.
   *
   * @returns The capacity; `Infinity` when unbounded.
   */
  get capacity(): number {
    return this.#core.capacity;
  }

  /**
   * Whether the buffer is empty.
   *
   * @returns Always `true` at capacity 0.
   */
  get isEmpty(): boolean {
    return this.#core.size === 0;
  }

  /**
   * Whether the buffer is full.
   *
   * @returns Always `true` at capacity 0, and always `false` when unbounded.
   */
  get isFull(): boolean {
    return this.#core.size >= this.#core.capacity;
  }

  /**
   * The number of open senders, clones included.
   *
   * @returns 0 after the last one was closed.
   */
  get senderCount(): number {
    return this.#core.senderCount;
  }

  /**
   * The number of open receivers, clones included.
   *
   * @returns 0 after the last one was closed.
   */
  get receiverCount(): number {
    return this.#core.receiverCount;
  }

  /**
   * Returns whether another handle belongs to the same channel.
   *
   * @param other A sender or a receiver.
   * @returns `true` if both belong to one channel.
   */
  sameChannel(other: ChannelHandle<T>): boolean {
    return this.#core === other.#core;
  }
}

/**
 * A sending handle of a channel, closed by `close()` or `using`. Closing the last one closes the channel; buffered
 * values can still be received.
 *
 * A handle that is never closed keeps the channel open, even if it is garbage-collected. See {@linkcode ChannelHandle}
 * for size and counts.
 *
 * @typeParam T The type of the channel's values.
 *
 * @example Two producers
 * ```ts
 * import { bounded, type Sender } from "@sluice/smux/channel";
 * import { assertEquals } from "@std/assert";
 *
 * const { sender, receiver } = bounded<string>(1);
 *
 * async function produce(name: string, out: Sender<string>) {
 *   using mine = out;
 *   await mine.send(`${name} 1`);
 *   await mine.send(`${name} 2`);
 * }
 * const producers = [produce("a", sender.clone()), produce("b", sender)];
 *
 * const all = await Array.fromAsync(receiver); // ends when both have closed their handles
 * assertEquals(all.sort(), ["a 1", "a 2", "b 1", "b 2"]);
 * await Promise.all(producers);
 * ```
 */
export class Sender<in T> extends ChannelHandle<T> implements Disposable {
  // Also in the base class, whose private field is not accessible here: an accessor would add a call to each operation.
  readonly #core: SenderCore<T>;
  readonly #handle = new Handle();

  static {
    newSender = (core) => new Sender(core);
  }

  private constructor(core: SenderCore<T>) {
    super(core);
    this.#core = core;
  }

  /**
   * Sends a value; waits for room in the buffer or, at capacity 0, for a receive.
   *
   * @param value The value.
   * @param options A signal and a timeout.
   * @returns A promise that resolves once the value is buffered or received.
   * @throws {ChannelClosedError} This handle is or gets closed, or no receiver is left. Its property `value` is the
   *   unsent value.
   * @throws {RangeError} `timeout` is negative, NaN, or finite and above 2 147 483 647.
   * @throws {DOMException} "TimeoutError": the timeout expired.
   * @throws The reason of the signal, when it aborts.
   */
  send(value: T, options?: ChannelSendOptions): Promise<void> {
    return this.#core.send(value, options, this.#handle);
  }

  /**
   * Sends a value if that is possible without waiting and without overtaking a waiting send.
   *
   * @param value The value.
   * @returns `true` if it was sent; `false` if the channel is full or closed, and the caller keeps the value.
   */
  trySend(value: T): boolean {
    return this.#core.trySend(value, this.#handle);
  }

  /**
   * Creates a case of a {@linkcode select} that sends a value.
   *
   * @param value The value to send if this case is chosen.
   * @returns The case.
   */
  sendCase(value: T): SelectCase<{ done: false; value?: undefined } | { done: true; value?: undefined }> {
    return this.#core.sendCase(value, this.#handle);
  }

  /**
   * Returns a writable stream whose chunks are sent to the channel. It has a handle of its own: closing the stream
   * closes that handle; aborting it closes the handle with the reason of the abort.
   *
   * Chunks that are queued behind a failed write reject with the error of that write, as those of any `WritableStream`.
   * Its `value` is the chunk of that write; the queued ones are not returned. Await each write to keep them.
   *
   * @returns A stream whose writes resolve and reject as sends do.
   * @throws {ChannelClosedError} This handle is closed.
   */
  toWritableStream(): WritableStream<T> {
    return toWritableStream(this.clone());
  }

  /**
   * Creates another sender of the same channel.
   *
   * @returns A handle that must be closed, too.
   * @throws {ChannelClosedError} This handle is closed.
   */
  clone(): Sender<T> {
    if (!this.#handle.isOpen) throw new ChannelClosedError("Cannot clone a closed sender");
    this.#core.senderCount++;
    return newSender(this.#core);
  }

  /**
   * Creates a weak sender, which does not keep the channel open.
   *
   * @returns The weak sender.
   */
  downgrade(): WeakSender<T> {
    return newWeakSender(this.#core);
  }

  /**
   * Closes this handle: its waiting sends reject with their values. Closing the last one closes the channel. Closing
   * again has no effect.
   *
   * @param reason If passed, even as `undefined`: the error of receives after the last value, once all senders are
   *   closed. Of several reasons the first one counts.
   */
  close(...reason: [] | [reason: unknown]): void {
    this.#core.closeSender(this.#handle, reason);
  }

  /**
   * A signal that aborts, with a {@linkcode ChannelClosedError}, when the last receiver is closed.
   *
   * @returns The same signal for all senders of the channel.
   */
  get signal(): AbortSignal {
    return this.#core.signal;
  }

  /** Closes this handle, for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }
}

/**
 * A sending handle that does not keep its channel open. It must be upgraded to send.
 *
 * @typeParam T The type of the channel's values.
 *
 * @example Sending only while another sender is open
 * ```ts
 * import { unbounded } from "@sluice/smux/channel";
 * import { assertEquals } from "@std/assert";
 *
 * const { sender, receiver } = unbounded<string>();
 * const weak = sender.downgrade();
 * {
 *   using mine = weak.upgrade();
 *   mine?.trySend("still there");
 * }
 * sender.close();
 * assertEquals(weak.upgrade(), undefined);
 * assertEquals(await Array.fromAsync(receiver), ["still there"]);
 * ```
 */
export class WeakSender<in T> {
  readonly #core: SenderCore<T>;

  static {
    newWeakSender = (core) => new WeakSender(core);
  }

  private constructor(core: SenderCore<T>) {
    this.#core = core;
  }

  /**
   * Creates a sender of the same channel, unless all senders are closed.
   *
   * @returns A sender that must be closed, too, or `undefined`.
   */
  upgrade(): Sender<T> | undefined {
    if (this.#core.senderCount === 0) return undefined;
    this.#core.senderCount++;
    return newSender(this.#core);
  }
}

/**
 * A receiving handle of a channel, closed by `close()` or `using`. Closing the last one rejects waiting sends with
 * their values, passes buffered values to `onDrop` and aborts {@linkcode Sender.signal}.
 *
 * A handle that is never closed keeps the channel open, even if it is garbage-collected. See {@linkcode ChannelHandle}
 * for size and counts.
 *
 * @typeParam T The type of the channel's values.
 *
 * @example Closing before everything was received
 * ```ts
 * import { bounded } from "@sluice/smux/channel";
 * import { assertEquals } from "@std/assert";
 *
 * const dropped: number[] = [];
 * const { sender, receiver } = bounded<number>(8, { onDrop: (n) => dropped.push(n) });
 * for (let n = 1; n <= 4; n++) sender.trySend(n);
 *
 * assertEquals(await receiver.receiveMany(2), [1, 2]);
 * receiver.close();
 * assertEquals(dropped, [3, 4]);
 * assertEquals(sender.signal.aborted, true);
 * assertEquals(sender.trySend(5), false);
 * ```
 */
export class Receiver<out T> extends ChannelHandle<T> implements AsyncIterable<T>, Disposable {
  readonly #core: ReceiverCore<T>;
  readonly #handle = new Handle();

  static {
    newReceiver = (core) => new Receiver(core);
  }

  private constructor(core: ReceiverCore<T>) {
    super(core);
    this.#core = core;
  }

  /**
   * Receives the oldest value; waits while the channel is empty.
   *
   * @param options A signal and a timeout.
   * @returns A promise of the value.
   * @throws {ChannelClosedError} This handle is or gets closed, or all senders are closed and the buffer is drained.
   * @throws The reason of a sender's close, if there was one, after the last value.
   * @throws {RangeError} `timeout` is negative, NaN, or finite and above 2 147 483 647.
   * @throws {DOMException} "TimeoutError": the timeout expired.
   * @throws The reason of the signal, when it aborts.
   */
  receive(options?: ChannelReceiveOptions): Promise<T> {
    return this.#core.receive<T>(VALUE_RESULT, options, this.#handle);
  }

  /**
   * Receives the oldest value, without waiting.
   *
   * @returns State `"ok"` with the value, `"empty"` if no value is available now, or `"closed"` if no value will come.
   */
  tryReceive(): ChannelReceiveResult<T> {
    return this.#core.tryReceive(this.#handle);
  }

  /**
   * Receives up to `max` values; waits for the first one while the channel is empty.
   *
   * @param max Maximum number of values: an integer of at least 1, or `Infinity`.
   * @param options A signal and a timeout.
   * @returns A promise of the oldest values: at least one, or an empty array at the end.
   * @throws {RangeError} `max` is neither an integer of at least 1 nor `Infinity`, or `timeout` is out of range.
   * @throws {DOMException} "TimeoutError": the timeout expired.
   * @throws The reason of the signal, when it aborts.
   * @throws The reason of a sender's close, if there was one, after the last value.
   */
  receiveMany(max: number, options?: ChannelReceiveOptions): Promise<T[]> {
    return this.#core.receiveMany(max, options, this.#handle);
  }

  /**
   * Receives all present values without waiting: the buffered ones, and those of waiting sends, which resolve.
   *
   * @returns The values, oldest first; an empty array if this handle is closed.
   */
  drain(): T[] {
    return this.#core.dequeueMany(Infinity, this.#handle);
  }

  /**
   * Creates a case of a {@linkcode select} that receives a value.
   *
   * @returns The case.
   */
  receiveCase(): SelectCase<{ done: false; value: T } | { done: true; value?: undefined }> {
    return this.#core.receiveCase(this.#handle);
  }

  /**
   * Iterates over received values until all senders are closed and the buffer is drained, or until this handle is
   * closed; rejects with the reason of a sender's close, if there was one. Leaving the loop keeps the handle open.
   * Concurrent iterations share the values.
   *
   * @returns An iterator.
   */
  [Symbol.asyncIterator](): AsyncIterableIterator<T> {
    return new ChannelIterator(this.#core, this.#handle);
  }

  /**
   * Returns a readable stream of the channel's values. It has a handle of its own, which is closed when the stream
   * ends, fails or is cancelled. It receives a value only for a read, and shares the values with other receivers.
   *
   * A read that `releaseLock()` interrupts still receives its value, for the next reader of the stream; a cancel loses
   * that value.
   *
   * @returns A stream that ends or fails as an iteration does.
   * @throws {ChannelClosedError} This handle is closed.
   */
  toReadableStream(): ReadableStream<T> {
    return this.#core.toReadableStream(this.clone().#handle);
  }

  /**
   * Creates another receiver of the same channel.
   *
   * @returns A handle that must be closed, too.
   * @throws {ChannelClosedError} This handle is closed.
   */
  clone(): Receiver<T> {
    if (!this.#handle.isOpen) throw new ChannelClosedError("Cannot clone a closed receiver");
    this.#core.receiverCount++;
    return newReceiver(this.#core);
  }

  /**
   * Closes this handle: its waiting receives reject and its iterations end. Closing the last one rejects waiting sends,
   * drops the buffered values and aborts {@linkcode Sender.signal}. Closing again has no effect.
   *
   * @throws The first error thrown by `onDrop`.
   */
  close(): void {
    this.#core.closeReceiver(this.#handle);
  }

  /** Closes this handle, for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }
}

/**
 * Creates a channel of limited capacity, as two handles.
 *
 * @param capacity Maximum number of buffered values, an integer of at least 0. With 0 every send waits for its receive.
 * @param options A callback for values that can no longer be received.
 * @returns The first sender and the first receiver; each can be cloned.
 * @throws {RangeError} `capacity` is not an integer of at least 0.
 * @typeParam T The type of the values.
 *
 * @example A channel with one place
 * ```ts
 * import { bounded } from "@sluice/smux/channel";
 * import { assertEquals } from "@std/assert";
 *
 * const { sender, receiver } = bounded<number>(1);
 * assertEquals([sender.trySend(1), sender.trySend(2)], [true, false]);
 * sender.close();
 * assertEquals(await Array.fromAsync(receiver), [1]);
 * ```
 */
export function bounded<T>(capacity: number, options?: DropOptions<T>): { sender: Sender<T>; receiver: Receiver<T> } {
  return createHandles(checkCapacity(capacity, " (unbounded() has no limit)"), options);
}

/**
 * Creates a channel without a capacity limit, as two handles. Sends never wait, so memory is the only limit.
 *
 * @param options A callback for values that can no longer be received.
 * @returns The first sender and the first receiver; each can be cloned.
 * @typeParam T The type of the values.
 *
 * @example Buffering any number of values
 * ```ts
 * import { unbounded } from "@sluice/smux/channel";
 * import { assertEquals } from "@std/assert";
 *
 * const { sender, receiver } = unbounded<number>();
 * for (let n = 1; n <= 1000; n++) sender.trySend(n);
 * assertEquals(receiver.size, 1000);
 * assertEquals(receiver.drain().length, 1000);
 * ```
 */
export function unbounded<T>(options?: DropOptions<T>): { sender: Sender<T>; receiver: Receiver<T> } {
  return createHandles(Infinity, options);
}

function createHandles<T>(
  capacity: number,
  options: DropOptions<T> | undefined,
): { sender: Sender<T>; receiver: Receiver<T> } {
  const core = new Core(capacity, options);
  return { sender: newSender(core), receiver: newReceiver(core) };
}

function checkCapacity(capacity: number, instead: string): number {
  if (!Number.isInteger(capacity) || capacity < 0) {
    throw new RangeError(
      `Cannot create a channel: capacity must be an integer >= 0${instead}, received ${describeValue(capacity)}`,
    );
  }
  return capacity;
}
