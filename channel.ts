/**
 * Channels: values handed from any number of tasks to any number of tasks, each value to exactly one, in order.
 *
 * {@linkcode Channel} does all that `@std/async`'s `Channel` does, under the same names, and adds what that one lacks:
 * a `signal` and a `timeout` on every wait, `receiveMany` and `drain`, split ends that are counted
 * ({@linkcode bounded}, {@linkcode unbounded}), {@linkcode select} over several channels, `onDrop` for values that can
 * no longer be received, a `WritableStream` in, and a `ReadableStream` out that reads nothing ahead. A program written
 * for that class runs with this one when its import line is changed.
 *
 * What holds everywhere:
 *
 * - A value changes hands in one synchronous step. An abort or a timeout either comes before it, and the value has not
 *   moved, or after it, and the operation has succeeded. Nothing is both rejected and delivered, and nothing is lost: a
 *   value that cannot be sent comes back in {@linkcode ChannelClosedError}, one that can no longer be received goes to
 *   `onDrop`.
 * - First come, first served, for values, for waiting senders and for waiting receivers. `trySend` does not overtake.
 * - Closing lets what is buffered be received; waiting senders get their values back.
 * - `undefined` is a value like any other. A thenable is one too, but a promise of it adopts its state: `receive()` of
 *   a `Channel<Promise<X>>` resolves with the `X`. Iteration, `tryReceive`, `receiveMany`, `drain`, `select` and the
 *   stream return the thenable itself, and so does a channel of `{ value: thenable }`.
 * - Handles are closed by `close()` or `using`, never by garbage collection.
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
  toWritableStream,
  VALUE_RESULT,
} from "./_channel_core.ts";
import type { SelectCase, WaitOptions } from "./_wait.ts";

export { ChannelClosedError, type ChannelReceiveResult } from "./_channel_core.ts";
export type { SelectCase, WaitOptions } from "./_wait.ts";
export { select, type SelectCases, type SelectOptions, type SelectResult, trySelect } from "./select.ts";

/**
 * What is done with values that can no longer be received.
 *
 * @typeParam T The channel's values.
 *
 * @example Closing what is thrown away
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
   * Called once for each buffered value, in order, when the last `Receiver` is closed. Its first error is thrown by
   * that `close()`, after the call for the last value.
   *
   * An unsplit {@linkcode Channel} keeps its buffer receivable as long as it is held, so it never drops a value.
   */
  onDrop?(value: T): void;
}

/**
 * Options of the {@linkcode Channel} constructor.
 *
 * @typeParam T The channel's values.
 *
 * @example Room for four
 * ```ts
 * import { Channel, type ChannelOptions } from "@sluice/smux/channel";
 * import { assertEquals } from "@std/assert";
 *
 * const options: ChannelOptions<string> = { capacity: 4 };
 * assertEquals(new Channel<string>(options).capacity, 4);
 * ```
 */
export interface ChannelOptions<T = unknown> extends DropOptions<T> {
  /** How many values are buffered at most, an integer. 0 makes every send wait for its receive. Default 0. */
  capacity?: number | undefined;
}

/**
 * Options of a send: what can end its wait.
 *
 * @example At once or not at all
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
 * Options of a receive: what can end its wait.
 *
 * @example Given up before it began
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
 * A queue between tasks: any number may send, any number may receive, and each value goes to exactly one.
 *
 * One object does both sides. Where the two sides have different owners, and each should notice the end of the other,
 * use {@linkcode bounded} or {@linkcode unbounded}.
 *
 * @typeParam T The values. `undefined` is allowed; of a thenable, see the module's text.
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
 * @example Not waiting for ever
 * ```ts
 * import { Channel } from "@sluice/smux/channel";
 * import { assertEquals, assertRejects } from "@std/assert";
 *
 * const channel = new Channel<number>({ capacity: 1 });
 * await assertRejects(() => channel.receive({ timeout: 10 }), DOMException, "10 ms");
 * channel.trySend(7); // the receive that gave up does not steal it
 * assertEquals(await channel.receive(), 7);
 * ```
 */
export class Channel<T> implements AsyncIterable<T>, Disposable, AsyncDisposable {
  readonly #core: Core<T>;

  /**
   * Makes a channel.
   *
   * @param options Its capacity, 0 if left out.
   * @throws {RangeError} `capacity` is not an integer of at least 0.
   */
  constructor(options: ChannelOptions<T> = {}) {
    this.#core = new Core(checkCapacity(options.capacity ?? 0, ""), options);
  }

  /**
   * Sends a value, waiting for room or, at capacity 0, for the receive that takes it.
   *
   * @param value The value.
   * @param options What can end the wait early.
   * @returns A promise that resolves once the value is buffered or received.
   * @throws {ChannelClosedError} The channel is or gets closed; `value` is in it.
   * @throws {RangeError} `timeout` is negative, NaN, or finite and above 2 147 483 647.
   * @throws {DOMException} A "TimeoutError" when the timeout passes; the signal's reason when it aborts.
   */
  send(value: T, options?: ChannelSendOptions): Promise<void> {
    return this.#core.send(value, options);
  }

  /**
   * Sends a value if that is possible without waiting and without overtaking.
   *
   * @param value The value.
   * @returns Whether it was sent; if not, the channel is full or closed and the value is still the caller's.
   */
  trySend(value: T): boolean {
    return this.#core.trySend(value);
  }

  /**
   * A send as a case of a {@linkcode select}.
   *
   * @param value The value to send if this case is the one.
   * @returns The case.
   */
  sendCase(value: T): SelectCase<{ done: false; value?: undefined } | { done: true; value?: undefined }> {
    return this.#core.sendCase(value);
  }

  /**
   * Receives the oldest value; waits while the channel is empty.
   *
   * @param options What can end the wait early.
   * @returns A promise of the value.
   * @throws {ChannelClosedError} The channel is closed and drained. If it was closed with a reason, that is thrown.
   * @throws {RangeError} `timeout` is negative, NaN, or finite and above 2 147 483 647.
   * @throws {DOMException} A "TimeoutError" when the timeout passes; the signal's reason when it aborts.
   */
  receive(options?: ChannelReceiveOptions): Promise<T> {
    return this.#core.receive<T>(VALUE_RESULT, options);
  }

  /**
   * Receives the oldest value if there is one.
   *
   * @returns The value, `"empty"` while there is no value, or `"closed"` when there will be no more.
   */
  tryReceive(): ChannelReceiveResult<T> {
    return this.#core.tryReceive();
  }

  /**
   * Receives up to `max` values; waits for one while the channel is empty.
   *
   * @param max How many values at most: an integer of at least 1, or `Infinity`.
   * @param options What can end the wait early.
   * @returns A promise of the oldest values: at least one, or an empty array at the end of a closed channel.
   * @throws {RangeError} `max` is neither an integer of at least 1 nor `Infinity`, or `timeout` is out of range.
   * @throws {DOMException} A "TimeoutError" when the timeout passes; the signal's reason when it aborts.
   *   If the channel was closed with a reason, that is thrown once it is drained.
   */
  receiveMany(max: number, options?: ChannelReceiveOptions): Promise<T[]> {
    return this.#core.receiveMany(max, options);
  }

  /**
   * Receives all values that are there: the buffered ones and those of waiting senders, whose sends resolve.
   *
   * @returns The values, oldest first.
   */
  drain(): T[] {
    return this.#core.dequeueMany(Infinity);
  }

  /**
   * A receive as a case of a {@linkcode select}.
   *
   * @returns The case.
   */
  receiveCase(): SelectCase<{ done: false; value: T } | { done: true; value?: undefined }> {
    return this.#core.receiveCase();
  }

  /**
   * Closes the channel. Waiting sends reject with their values. Buffered values can still be received; after the last
   * one receives reject and iterations end. Closing again does nothing.
   *
   * @param reason If given, even as `undefined`: what receives, iterations and streams fail with after the last value.
   */
  close(...reason: [] | [reason: unknown]): void {
    this.#core.close(reason);
  }

  /**
   * Whether the channel has been closed; values may be left in it.
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
   * The largest number of buffered values.
   *
   * @returns The capacity given to the constructor.
   */
  get capacity(): number {
    return this.#core.capacity;
  }

  /**
   * Receives until the channel is closed and drained; if it was closed with a reason, fails with that. Breaking out of
   * the loop leaves the channel open. Several loops share the values.
   *
   * @returns An iterator.
   */
  [Symbol.asyncIterator](): AsyncIterableIterator<T> {
    return new ChannelIterator(this.#core);
  }

  /**
   * The channel as a stream. It receives a value only for a read, and shares the values with other receivers. A read
   * that `releaseLock()` cuts off still receives its value, for the stream's next reader; a cancel loses that value.
   * Cancelling closes the channel, with the cancel's reason unless that is `undefined`; buffered values stay
   * receivable.
   *
   * @returns A stream that ends, or fails, as an iteration does.
   *
   * @example All that is sent, as one text
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
   * A stream into the channel; each chunk is sent when there is room. Closing it closes the channel, aborting it closes
   * the channel with the reason.
   *
   * @returns A stream whose writes resolve as sends do.
   *
   * @example Lines for two workers
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
   * @returns A promise that is resolved.
   */
  [Symbol.asyncDispose](): Promise<void> {
    this.close();
    return Promise.resolve();
  }
}

let newSender: <T>(core: Core<T>) => Sender<T>;
let newReceiver: <T>(core: Core<T>) => Receiver<T>;
let newWeakSender: <T>(core: Core<T>) => WeakSender<T>;

/**
 * What a {@linkcode Sender} and a {@linkcode Receiver} have in common: a view of their channel's size and counts.
 *
 * @typeParam T The channel's values.
 *
 * @example Size and counts from either side
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
  readonly #core: Core<T>;

  /** Handles are made in pairs, by {@linkcode bounded} and {@linkcode unbounded}. */
  protected constructor(core: Core<T>) {
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
   * The largest number of buffered values.
   *
   * @returns The capacity, `Infinity` when unbounded.
   */
  get capacity(): number {
    return this.#core.capacity;
  }

  /**
   * Whether nothing is buffered.
   *
   * @returns Always `true` at capacity 0.
   */
  get isEmpty(): boolean {
    return this.#core.size === 0;
  }

  /**
   * Whether the buffer has no room.
   *
   * @returns Always `true` at capacity 0, never when unbounded.
   */
  get isFull(): boolean {
    return this.#core.size >= this.#core.capacity;
  }

  /**
   * The number of open senders, clones included.
   *
   * @returns 0 once the last is closed.
   */
  get senderCount(): number {
    return this.#core.senderCount;
  }

  /**
   * The number of open receivers, clones included.
   *
   * @returns 0 once the last is closed.
   */
  get receiverCount(): number {
    return this.#core.receiverCount;
  }

  /**
   * Whether another handle belongs to the same channel.
   *
   * @param other A sender or a receiver.
   * @returns `true` if it does.
   */
  sameChannel(other: ChannelHandle<T>): boolean {
    return this.#core === other.#core;
  }
}

/**
 * A sending handle of a channel, closed by `close()` or `using`. Closing the last one closes the channel; buffered
 * values can still be received.
 *
 * A handle that is never closed keeps the channel open, collected as garbage or not. See {@linkcode ChannelHandle} for
 * size and counts.
 *
 * @typeParam T The channel's values.
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
export class Sender<T> extends ChannelHandle<T> implements Disposable {
  // Again, because a private field of the base class is out of reach here: an accessor would be a call per operation.
  readonly #core: Core<T>;
  readonly #handle = new Handle();

  static {
    newSender = (core) => new Sender(core);
  }

  private constructor(core: Core<T>) {
    super(core);
    this.#core = core;
  }

  /**
   * Sends a value, waiting for room or, at capacity 0, for the receive that takes it.
   *
   * @param value The value.
   * @param options What can end the wait early.
   * @returns A promise that resolves once the value is buffered or received.
   * @throws {ChannelClosedError} This handle is or gets closed, or no receiver is left; `value` is in it.
   * @throws {RangeError} `timeout` is negative, NaN, or finite and above 2 147 483 647.
   * @throws {DOMException} A "TimeoutError" when the timeout passes; the signal's reason when it aborts.
   */
  send(value: T, options?: ChannelSendOptions): Promise<void> {
    return this.#core.send(value, options, this.#handle);
  }

  /**
   * Sends a value if that is possible without waiting and without overtaking.
   *
   * @param value The value.
   * @returns Whether it was sent; if not, the value is still the caller's.
   */
  trySend(value: T): boolean {
    return this.#core.trySend(value, this.#handle);
  }

  /**
   * A send as a case of a {@linkcode select}.
   *
   * @param value The value to send if this case is the one.
   * @returns The case.
   */
  sendCase(value: T): SelectCase<{ done: false; value?: undefined } | { done: true; value?: undefined }> {
    return this.#core.sendCase(value, this.#handle);
  }

  /**
   * A stream into the channel, through a handle of its own: closing it closes that handle, aborting it closes it with
   * the reason.
   *
   * @returns A stream whose writes resolve as sends do.
   * @throws {ChannelClosedError} This handle is closed.
   */
  toWritableStream(): WritableStream<T> {
    return toWritableStream(this.clone());
  }

  /**
   * Another handle on the same channel.
   *
   * @returns A handle to be closed on its own.
   * @throws {ChannelClosedError} This handle is closed.
   */
  clone(): Sender<T> {
    if (!this.#handle.isOpen) throw new ChannelClosedError("Cannot clone a closed sender");
    this.#core.senderCount++;
    return newSender(this.#core);
  }

  /**
   * A handle that does not hold the channel open.
   *
   * @returns The weak handle.
   */
  downgrade(): WeakSender<T> {
    return newWeakSender(this.#core);
  }

  /**
   * Closes this handle: its waiting sends reject with their values. Closing the last one closes the channel. Closing
   * again does nothing.
   *
   * @param reason If given, even as `undefined`: what receives fail with after the last value, once all senders are
   *   closed. Of several reasons the first stands.
   */
  close(...reason: [] | [reason: unknown]): void {
    this.#core.closeSender(this.#handle, reason);
  }

  /**
   * Reports that no receiver is left.
   *
   * @returns A signal that aborts, with a {@linkcode ChannelClosedError}, when the last receiver is closed.
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
 * A handle on a channel's sending side that does not keep the channel open, for an owner that may send but whose end is
 * not waited for.
 *
 * @typeParam T The channel's values.
 *
 * @example An end that keeps nothing open
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
export class WeakSender<T> {
  readonly #core: Core<T>;

  static {
    newWeakSender = (core) => new WeakSender(core);
  }

  private constructor(core: Core<T>) {
    this.#core = core;
  }

  /**
   * A sender of the same channel, to be closed on its own.
   *
   * @returns The sender, or `undefined` when all senders are closed.
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
 * A handle that is never closed keeps the channel open, collected as garbage or not. See {@linkcode ChannelHandle} for
 * size and counts.
 *
 * @typeParam T The channel's values.
 *
 * @example Leaving early
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
export class Receiver<T> extends ChannelHandle<T> implements AsyncIterable<T>, Disposable {
  readonly #core: Core<T>;
  readonly #handle = new Handle();

  static {
    newReceiver = (core) => new Receiver(core);
  }

  private constructor(core: Core<T>) {
    super(core);
    this.#core = core;
  }

  /**
   * Receives the oldest value; waits while the channel is empty.
   *
   * @param options What can end the wait early.
   * @returns A promise of the value.
   * @throws {ChannelClosedError} This handle is or gets closed, or all senders are and the buffer is drained; if a
   *   sender gave a reason, that is thrown.
   * @throws {RangeError} `timeout` is negative, NaN, or finite and above 2 147 483 647.
   * @throws {DOMException} A "TimeoutError" when the timeout passes; the signal's reason when it aborts.
   */
  receive(options?: ChannelReceiveOptions): Promise<T> {
    return this.#core.receive<T>(VALUE_RESULT, options, this.#handle);
  }

  /**
   * Receives the oldest value if there is one.
   *
   * @returns The value, `"empty"` while there is no value, or `"closed"` when there will be no more.
   */
  tryReceive(): ChannelReceiveResult<T> {
    return this.#core.tryReceive(this.#handle);
  }

  /**
   * Receives up to `max` values; waits for one while the channel is empty.
   *
   * @param max How many values at most: an integer of at least 1, or `Infinity`.
   * @param options What can end the wait early.
   * @returns A promise of the oldest values: at least one, or an empty array at the end.
   * @throws {RangeError} `max` is neither an integer of at least 1 nor `Infinity`, or `timeout` is out of range.
   * @throws {DOMException} A "TimeoutError" when the timeout passes; the signal's reason when it aborts.
   *   If a sender closed with a reason, that is thrown once the buffer is drained.
   */
  receiveMany(max: number, options?: ChannelReceiveOptions): Promise<T[]> {
    return this.#core.receiveMany(max, options, this.#handle);
  }

  /**
   * Receives all values that are there: the buffered ones and those of waiting senders, whose sends resolve.
   *
   * @returns The values, oldest first; an empty array if this handle is closed.
   */
  drain(): T[] {
    return this.#core.dequeueMany(Infinity, this.#handle);
  }

  /**
   * A receive as a case of a {@linkcode select}.
   *
   * @returns The case.
   */
  receiveCase(): SelectCase<{ done: false; value: T } | { done: true; value?: undefined }> {
    return this.#core.receiveCase(this.#handle);
  }

  /**
   * Receives until all senders are closed and the buffer is drained, or this handle is closed; if a sender gave a
   * reason, fails with that. Breaking out of the loop leaves the handle open. Several loops share the values.
   *
   * @returns An iterator.
   */
  [Symbol.asyncIterator](): AsyncIterableIterator<T> {
    return new ChannelIterator(this.#core, this.#handle);
  }

  /**
   * The channel as a stream, through a handle of its own, which is closed when the stream ends, fails or is cancelled.
   * It receives a value only for a read, and shares the values with other receivers. A read that `releaseLock()` cuts
   * off still receives its value, for the stream's next reader; a cancel loses that value.
   *
   * @returns A stream that ends, or fails, as an iteration does.
   * @throws {ChannelClosedError} This handle is closed.
   */
  toReadableStream(): ReadableStream<T> {
    return this.#core.toReadableStream(this.clone().#handle);
  }

  /**
   * Another handle on the same channel.
   *
   * @returns A handle to be closed on its own.
   * @throws {ChannelClosedError} This handle is closed.
   */
  clone(): Receiver<T> {
    if (!this.#handle.isOpen) throw new ChannelClosedError("Cannot clone a closed receiver");
    this.#core.receiverCount++;
    return newReceiver(this.#core);
  }

  /**
   * Closes this handle: its waiting receives reject and its iterations end. Closing the last one rejects waiting sends,
   * drops the buffered values and aborts {@linkcode Sender.signal}. Closing again does nothing.
   *
   * @throws The first error of `onDrop`.
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
 * Makes a channel of limited capacity, as two handles.
 *
 * @param capacity How many values are buffered at most: an integer of at least 0. 0 makes every send wait for its
 *   receive.
 * @param options What is done with values that can no longer be received.
 * @returns The first sender and the first receiver; each can be cloned.
 * @throws {RangeError} `capacity` is not an integer of at least 0.
 * @typeParam T The values.
 *
 * @example Room for one
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
 * Makes a channel without a capacity limit, as two handles. Sends never wait, so memory is the only limit.
 *
 * @param options What is done with values that can no longer be received.
 * @returns The first sender and the first receiver; each can be cloned.
 * @typeParam T The values.
 *
 * @example Room for all
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
    throw new RangeError(`Cannot create a channel: capacity must be an integer >= 0${instead}, received ${capacity}`);
  }
  return capacity;
}
