/**
 * The core of a channel: its buffer, its waiting sends and receives, and its end.
 *
 * @module
 */

import { describeValue } from "./_describe.ts";
import {
  invalidTimeout,
  Queue,
  type QueueNode,
  rejectBeforeWait,
  type SelectCase,
  WaitLimit,
  type WaitOptions,
} from "./_wait.ts";

/**
 * Rejects an operation on a closed channel or through a closed handle.
 *
 * @example Recovering the unsent value
 * ```ts
 * import { Channel, ChannelClosedError } from "@sluice/smux/channel";
 * import { assertEquals, assertRejects } from "@std/assert";
 *
 * const channel = new Channel<string>();
 * channel.close();
 * const error = await assertRejects(() => channel.send("letter"), ChannelClosedError);
 * assertEquals(error.value, "letter");
 * ```
 */
export class ChannelClosedError extends Error {
  /** The value that was not sent. Only errors of a send have this property. */
  declare readonly value?: unknown;

  /**
   * Creates the error.
   *
   * @param message What could not be done.
   * @param value The value that was not sent. If it is left out, the error has no property `value`.
   */
  constructor(message: string, ...value: [value?: unknown]) {
    super(message);
    this.name = "ChannelClosedError";
    if (value.length === 1) this.value = value[0];
  }
}

/**
 * Result of {@linkcode Channel.tryReceive}: a value, an empty channel, or a closed and drained one.
 *
 * @typeParam T The type of the channel's values.
 *
 * @example Receiving from an empty channel
 * ```ts
 * import { Channel, type ChannelReceiveResult } from "@sluice/smux/channel";
 * import { assertEquals } from "@std/assert";
 *
 * const result: ChannelReceiveResult<number> = new Channel<number>().tryReceive();
 * assertEquals(result, { state: "empty" });
 * ```
 */
export type ChannelReceiveResult<T> = { state: "ok"; value: T } | { state: "empty" } | { state: "closed" };

const DONE: Promise<void> = Promise.resolve();
const EMPTY: { readonly state: "empty" } = Object.freeze({ state: "empty" });
const CLOSED: { readonly state: "closed" } = Object.freeze({ state: "closed" });
const NO_RING: never[] = [];

/** A ring of at most this length is never shrunk. */
const SMALL_RING = 32;

type CloseReason = [] | [reason: unknown];
type SendOutcome = { done: false; value?: undefined } | { done: true; value?: undefined };
type ReceiveOutcome<T> = { done: false; value: T } | { done: true; value?: undefined };

/** How a wait resolves: with a value, and at a clean end. Without `end` a clean end rejects. */
interface ResultShape<T, R> {
  value(value: T): R;
  end: (() => R) | undefined;
}
const SEND_RESULT = { value: (): void => {}, end: undefined };
export const VALUE_RESULT = { value: <T>(value: T): T => value, end: undefined };
const ARRAY_RESULT = { value: <T>(value: T): T[] => [value], end: () => [] };
const ITERATOR_RESULT = {
  value: <T>(value: T): IteratorResult<T, undefined> => ({ done: false, value }),
  end: (): IteratorResult<never, undefined> => ({ done: true, value: undefined }),
};
const SELECT_RESULT = {
  value: <T>(value: T): ReceiveOutcome<T> => ({ done: false, value }),
  end: (): ReceiveOutcome<never> => ({ done: true }),
};

/** How a receive ends without a value. A clean end rejects only if the shape has no `end`. */
type EndReason = { isClean: boolean; error: unknown };

/**
 * The state of a handle or an iterator, each of which can be closed separately. A receiver is the parent of its
 * iterators.
 */
export class Handle {
  isOpen = true;
  /** Number of pending waits, so that closing stops searching the queue after the last of them. */
  waiterCount = 0;

  /** @param closesOnError Whether the first error closes the handle, as it ends an iteration. */
  constructor(readonly parent?: Handle, readonly closesOnError = false) {}

  get isLive(): boolean {
    return this.isOpen && (this.parent === undefined || this.parent.isOpen);
  }

  countWaiters(change: 1 | -1): void {
    this.waiterCount += change;
    this.parent?.countWaiters(change);
  }

  /** Returns the waiters of a queue that belong to this handle or to one of its iterators. */
  waitersIn<T>(queue: Queue<Waiter<T>>): Waiter<T>[] {
    const found: Waiter<T>[] = [];
    for (let waiter = queue.first; waiter !== undefined && found.length < this.waiterCount; waiter = waiter.next) {
      if (waiter.handle === this || waiter.handle?.parent === this) found.push(waiter);
    }
    return found;
  }
}

/**
 * A waiting send or receive. No inheritance and no private fields: both make each wait slower.
 */
class Waiter<T> implements QueueNode<Waiter<T>> {
  queue: Queue<Waiter<T>> | undefined = undefined;
  previous: Waiter<T> | undefined = undefined;
  next: Waiter<T> | undefined = undefined;
  readonly shape: ResultShape<T, unknown>;
  readonly resolve: (outcome: unknown) => void;
  readonly reject: (reason: unknown) => void;
  readonly limit: WaitLimit | undefined;

  constructor(
    queue: Queue<Waiter<T>>,
    readonly handle: Handle | undefined,
    /** The value to send; `undefined` for a receive. */
    readonly value: T | undefined,
    shape: ResultShape<T, unknown>,
    resolve: (outcome: unknown) => void,
    reject: (reason: unknown) => void,
    options?: WaitOptions,
  ) {
    this.shape = shape;
    this.resolve = resolve;
    this.reject = reject;
    this.limit = options && new WaitLimit(options, this);
    queue.add(this);
    handle?.countWaiters(1);
  }

  /** Leaves the queue, if it has not left already. */
  leave(): void {
    this.limit?.stop();
    if (this.queue === undefined) return;
    this.queue.remove(this);
    this.handle?.countWaiters(-1);
  }

  /** Ends the wait with the value sent or received. */
  succeed(value: T): void {
    this.leave();
    this.resolve(this.shape.value(value));
  }

  fail(reason: unknown): void {
    this.leave();
    this.reject(reason);
  }

  /** Ends a receive without a value. */
  end({ isClean, error }: EndReason): void {
    if (!isClean || this.shape.end === undefined) return this.fail(error);
    this.leave();
    this.resolve(this.shape.end());
  }
}

/** Adds a waiter to a queue. The type of the shape's results is that of the callback's argument. */
function park<T, R>(
  queue: Queue<Waiter<T>>,
  handle: Handle | undefined,
  value: T | undefined,
  shape: ResultShape<T, R>,
  resolve: (outcome: R) => void,
  reject: (reason: unknown) => void,
  options?: WaitOptions,
): Waiter<T> {
  return new Waiter(queue, handle, value, shape, resolve as (outcome: unknown) => void, reject, options);
}

function wait<T, R>(
  queue: Queue<Waiter<T>>,
  handle: Handle | undefined,
  value: T | undefined,
  shape: ResultShape<T, R>,
  options: WaitOptions | undefined,
): Promise<R> {
  return rejectBeforeWait(options) ?? new Promise<R>((resolve, reject) => {
    park(queue, handle, value, shape, resolve, reject, options);
  });
}

/**
 * The state and the operations of one channel.
 *
 * Receivers wait only while there is no value, senders only while there is no room. The state is consistent before a
 * promise settles or a callback runs, because both may call the channel.
 */
export class Core<T> {
  readonly capacity: number;
  readonly senders: Queue<Waiter<T>> = new Queue();
  readonly receivers: Queue<Waiter<T>> = new Queue();
  size = 0;
  closed = false;
  senderCount = 1;
  receiverCount = 1;
  /** The first reason passed to a close, which may be that of one of several senders. */
  #reason: { error: unknown } | undefined = undefined;
  #ring: (T | undefined)[] = NO_RING;
  #head = 0;
  readonly #onDrop: ((value: T) => void) | undefined;
  #receiversGone: AbortController | undefined = undefined;
  #closedError: ChannelClosedError | undefined = undefined;

  constructor(capacity: number, drop: { onDrop?(value: T): void } | undefined) {
    this.capacity = capacity;
    this.#onDrop = drop?.onDrop?.bind(drop);
  }

  trySend(value: T, handle?: Handle): boolean {
    if (this.closed || handle?.isLive === false) return false;
    const receiver = this.receivers.first;
    if (receiver !== undefined) {
      receiver.succeed(value);
      return true;
    }
    if (this.size >= this.capacity) return false;
    this.#push(value);
    return true;
  }

  send(value: T, options: WaitOptions | undefined, handle?: Handle): Promise<void> {
    const invalid = invalidTimeout(options?.timeout);
    if (invalid !== undefined) return Promise.reject(invalid);
    if (this.trySend(value, handle)) return DONE;
    if (this.closed || handle?.isLive === false) return Promise.reject(unsentError(value, handle));
    return wait(this.senders, handle, value, SEND_RESULT, options);
  }

  sendCase(value: T, handle?: Handle): SelectCase<SendOutcome> {
    return new SendCase(this, value, handle);
  }

  /** Whether there is a value for {@linkcode Core.dequeue}. */
  get hasValue(): boolean {
    return this.size > 0 || this.senders.first !== undefined;
  }

  dequeue(): T {
    const sender = this.senders.first;
    if (sender === undefined) return this.#shift();
    const sent = sender.value as T;
    if (this.size === 0) {
      sender.succeed(sent);
      return sent;
    }
    const value = this.#shift();
    this.#push(sent);
    sender.succeed(sent);
    return value;
  }

  dequeueMany(max: number, handle?: Handle): T[] {
    const values: T[] = [];
    if (handle?.isLive === false) return values;
    while (values.length < max && this.hasValue) values.push(this.dequeue());
    return values;
  }

  tryReceive(handle?: Handle): ChannelReceiveResult<T> {
    if (handle?.isLive === false) return CLOSED;
    if (this.hasValue) return { state: "ok", value: this.dequeue() };
    return this.closed ? CLOSED : EMPTY;
  }

  receive<R>(shape: ResultShape<T, R>, options: WaitOptions | undefined, handle?: Handle): Promise<R> {
    const invalid = invalidTimeout(options?.timeout);
    if (invalid !== undefined) return Promise.reject(invalid);
    if (handle?.isLive !== false) {
      if (this.hasValue) return Promise.resolve(shape.value(this.dequeue())) as Promise<R>;
      if (!this.closed) return wait(this.receivers, handle, undefined, shape, options);
    }
    const { isClean, error } = this.#endReason(handle);
    return isClean && shape.end !== undefined ? Promise.resolve(shape.end()) as Promise<R> : Promise.reject(error);
  }

  receiveMany(max: number, options: WaitOptions | undefined, handle?: Handle): Promise<T[]> {
    if (max !== Infinity && !(Number.isInteger(max) && max >= 1)) {
      return Promise.reject(
        new RangeError(`Cannot receive: max must be an integer >= 1 or Infinity, received ${describeValue(max)}`),
      );
    }
    const invalid = invalidTimeout(options?.timeout);
    if (invalid !== undefined) return Promise.reject(invalid);
    const values = this.dequeueMany(max, handle);
    return values.length > 0 ? Promise.resolve(values) : this.receive<T[]>(ARRAY_RESULT, options, handle);
  }

  receiveCase(handle?: Handle): SelectCase<ReceiveOutcome<T>> {
    return new ReceiveCase(this, handle);
  }

  /**
   * Returns a stream that closes its handle when it ends. Without a handle, cancelling the stream closes the channel.
   */
  toReadableStream(handle?: Handle): ReadableStream<T> {
    let over = false;
    const giveUp = () => {
      over = true;
      if (handle !== undefined) this.closeReceiver(handle);
    };
    return new ReadableStream<T>({
      pull: (controller) => {
        const result = this.tryReceive(handle);
        if (result.state === "ok") return controller.enqueue(result.value);
        return new Promise((resolve, reject) => {
          // Enqueued in the step that dequeues the value: a cancel between the two would lose it.
          const deliver = (step: IteratorResult<T, undefined>) => {
            if (!step.done) controller.enqueue(step.value);
            else {
              if (!over) controller.close();
              giveUp();
            }
            resolve();
          };
          const fail = (reason: unknown) => {
            giveUp();
            reject(reason);
          };
          const waiter = park<T, IteratorResult<T, undefined>>(
            this.receivers,
            handle,
            undefined,
            ITERATOR_RESULT,
            deliver,
            fail,
          );
          if (result.state === "closed") this.#endReceive(waiter);
        });
      },
      cancel: (reason) => {
        giveUp();
        if (handle === undefined) this.close(reason === undefined ? [] : [reason]);
      },
    }, { highWaterMark: 0 });
  }

  close(reason: CloseReason): void {
    if (this.closed) return;
    this.#recordReason(reason);
    this.closed = true;
    this.#rejectSenders();
    for (let receiver; (receiver = this.receivers.first) !== undefined;) this.#endReceive(receiver);
  }

  closeSender(handle: Handle, reason: CloseReason): void {
    if (!handle.isOpen) return;
    handle.isOpen = false;
    this.#recordReason(reason);
    for (const sender of handle.waitersIn(this.senders)) sender.fail(unsentError(sender.value, handle));
    if (--this.senderCount === 0) this.close([]);
  }

  closeReceiver(handle: Handle): void {
    if (!handle.isOpen) return;
    this.closeHandle(handle);
    if (--this.receiverCount > 0) return;
    this.closed = true;
    this.#rejectSenders();
    const dropped = this.dequeueMany(Infinity);
    const onDrop = this.#onDrop;
    let failure: { error: unknown } | undefined;
    if (onDrop !== undefined) {
      for (const value of dropped) {
        try {
          onDrop(value);
        } catch (error) {
          failure ??= { error };
        }
      }
    }
    this.#receiversGone?.abort(noReceiverError());
    if (failure !== undefined) throw failure.error;
  }

  closeHandle(handle: Handle): void {
    handle.isOpen = false;
    for (const receiver of handle.waitersIn(this.receivers)) this.#endReceive(receiver);
  }

  get signal(): AbortSignal {
    this.#receiversGone ??= new AbortController();
    if (this.receiverCount === 0) this.#receiversGone.abort(noReceiverError());
    return this.#receiversGone.signal;
  }

  #recordReason(reason: CloseReason): void {
    if (reason.length === 1) this.#reason ??= { error: reason[0] };
  }

  #rejectSenders(): void {
    for (let sender; (sender = this.senders.first) !== undefined;) sender.fail(unsentError(sender.value));
  }

  #endReceive(receiver: Waiter<T>): void {
    receiver.end(this.#endReason(receiver.handle));
  }

  #endReason(handle: Handle | undefined): EndReason {
    if (handle?.isLive === false) {
      return { isClean: true, error: new ChannelClosedError("Cannot receive through a closed receiver") };
    }
    if (this.#reason !== undefined) {
      // An iteration fails once and is then done.
      if (handle?.closesOnError) handle.isOpen = false;
      return { isClean: false, error: this.#reason.error };
    }
    this.#closedError ??= new ChannelClosedError("Cannot receive from a closed channel");
    return { isClean: true, error: this.#closedError };
  }

  #push(value: T): void {
    if (this.size === this.#ring.length) this.#resize(Math.max(4, this.size * 2));
    this.#ring[(this.#head + this.size) & (this.#ring.length - 1)] = value;
    this.size++;
  }

  #shift(): T {
    const value = this.#ring[this.#head] as T;
    this.#ring[this.#head] = undefined;
    this.#head = (this.#head + 1) & (this.#ring.length - 1);
    this.size--;
    if (this.size * 4 <= this.#ring.length && this.#ring.length > SMALL_RING) this.#resize(this.#ring.length / 2);
    return value;
  }

  /** Moves the values to a ring of another length, a power of two. */
  #resize(length: number): void {
    const ring = new Array<T | undefined>(length).fill(undefined);
    for (let i = 0; i < this.size; i++) ring[i] = this.#ring[(this.#head + i) & (this.#ring.length - 1)];
    this.#ring = ring;
    this.#head = 0;
  }
}

// TypeScript compares methods in both directions, so only `in` and `out` make the handles that hold these types safe.

/** The members of {@linkcode Core} for any handle, which do not depend on the type of the values. */
export interface HandleCore extends Pick<Core<unknown>, "capacity" | "size" | "senderCount" | "receiverCount"> {}

/** The members of {@linkcode Core} for a sender. */
export interface SenderCore<in T>
  extends HandleCore, Pick<Core<T>, "send" | "trySend" | "sendCase" | "closeSender" | "signal"> {}

/** The members of {@linkcode Core} for a receiver. */
export interface ReceiverCore<out T> extends
  HandleCore,
  Pick<
    Core<T>,
    | "receive"
    | "tryReceive"
    | "receiveMany"
    | "dequeueMany"
    | "receiveCase"
    | "toReadableStream"
    | "closeReceiver"
    | "closeHandle"
  > {}

/** A case of a select that sends. */
class SendCase<T> implements SelectCase<SendOutcome> {
  readonly #core: Core<T>;
  readonly #value: T;
  readonly #handle: Handle | undefined;

  constructor(core: Core<T>, value: T, handle: Handle | undefined) {
    this.#core = core;
    this.#value = value;
    this.#handle = handle;
  }

  attempt(): SendOutcome | undefined {
    if (this.#core.trySend(this.#value, this.#handle)) return { done: false };
    return this.#core.closed || this.#handle?.isLive === false ? { done: true } : undefined;
  }

  park(resolve: (outcome: SendOutcome) => void): Waiter<T> {
    return new Waiter(
      this.#core.senders,
      this.#handle,
      this.#value,
      SEND_RESULT,
      () => resolve({ done: false }),
      () => resolve({ done: true }),
    );
  }
}

/** A case of a select that receives. */
class ReceiveCase<T> implements SelectCase<ReceiveOutcome<T>> {
  readonly #core: Core<T>;
  readonly #handle: Handle | undefined;

  constructor(core: Core<T>, handle: Handle | undefined) {
    this.#core = core;
    this.#handle = handle;
  }

  attempt(): ReceiveOutcome<T> | undefined {
    const core = this.#core;
    if (this.#handle?.isLive === false) return { done: true };
    if (core.hasValue) return { done: false, value: core.dequeue() };
    return core.closed ? { done: true } : undefined;
  }

  park(resolve: (outcome: ReceiveOutcome<T>) => void): Waiter<T> {
    return park<T, ReceiveOutcome<T>>(
      this.#core.receivers,
      this.#handle,
      undefined,
      SELECT_RESULT,
      resolve,
      () => resolve({ done: true }),
    );
  }
}

export class ChannelIterator<T> implements AsyncIterableIterator<T, undefined> {
  readonly #core: ReceiverCore<T>;
  readonly #handle: Handle;

  constructor(core: ReceiverCore<T>, parent?: Handle) {
    this.#core = core;
    this.#handle = new Handle(parent, true);
  }

  next(): Promise<IteratorResult<T, undefined>> {
    return this.#core.receive<IteratorResult<T, undefined>>(ITERATOR_RESULT, undefined, this.#handle);
  }

  return(): Promise<IteratorResult<T, undefined>> {
    this.#core.closeHandle(this.#handle);
    return Promise.resolve(ITERATOR_RESULT.end());
  }

  throw(error: unknown): Promise<IteratorResult<T, undefined>> {
    this.#core.closeHandle(this.#handle);
    return Promise.reject(error);
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}

export function toWritableStream<T>(
  end: { send(value: T, options: WaitOptions): Promise<void>; close(...reason: CloseReason): void },
): WritableStream<T> {
  return new WritableStream<T>({
    // A writable stream calls `abort` only after its pending write, so the write must listen to the signal.
    write: async (value, { signal }) => {
      try {
        await end.send(value, { signal });
      } catch (error) {
        // After a failed write the stream calls neither `close` nor `abort`. After an abort it calls `abort`.
        if (!signal.aborted) end.close();
        throw error;
      }
    },
    close: () => end.close(),
    abort: (reason) => end.close(reason),
  });
}

function unsentError(value: unknown, handle?: Handle): ChannelClosedError {
  const what = handle?.isLive === false ? "through a closed sender" : "to a closed channel";
  return new ChannelClosedError(`Cannot send ${what}`, value);
}

function noReceiverError(): ChannelClosedError {
  return new ChannelClosedError("Cannot send to a channel without receivers");
}
