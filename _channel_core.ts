/**
 * What every face of a channel shares: its buffer, the sends and receives that wait, and its end.
 *
 * @module
 */

import { Limit, type Place, Queue, refusal, type SelectCase, timeoutProblem, type WaitOptions } from "./_wait.ts";

/**
 * An operation met a closed channel, or a handle that was given up.
 *
 * @example Getting the value back
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
   * Makes the error.
   *
   * @param message What could not be done.
   * @param value The value that was not sent; left out, the error has no such property.
   */
  constructor(message: string, ...value: [value?: unknown]) {
    super(message);
    this.name = "ChannelClosedError";
    if (value.length === 1) this.value = value[0];
  }
}

/**
 * What {@linkcode Channel.tryReceive} found: a value, nothing for now, or nothing for ever.
 *
 * @typeParam T The channel's values.
 *
 * @example Nothing there yet
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

/** A ring at most this long is not worth shrinking. */
const SMALL_RING = 32;

type Reason = [] | [reason: unknown];
type Sent = { done: false; value?: undefined } | { done: true; value?: undefined };
type Received<T> = { done: false; value: T } | { done: true; value?: undefined };

/** What a wait resolves with: for a value, and at a clean end, where without `end` it rejects. */
interface Form<T, R> {
  value(value: T): R;
  end: (() => R) | undefined;
}
const SENT = { value: (): void => {}, end: undefined };
export const PLAIN = { value: <T>(value: T): T => value, end: undefined };
const MANY = { value: <T>(value: T): T[] => [value], end: () => [] };
const STEP = {
  value: <T>(value: T): IteratorResult<T, undefined> => ({ done: false, value }),
  end: (): IteratorResult<never, undefined> => ({ done: true, value: undefined }),
};
const CASE = {
  value: <T>(value: T): Received<T> => ({ done: false, value }),
  end: (): Received<never> => ({ done: true }),
};

/** How a receive ends for which nothing will come any more; a clean end is an error only to those without a form for it. */
type Ending = { clean: boolean; error: unknown };

/** One holder of a channel's end, which may be closed while the channel goes on. */
export class Handle {
  open = true;
  /** Waits under way; while there are none, closing need not look for them. */
  parked = 0;

  constructor(readonly parent?: Handle, readonly endsOnError = false) {}

  get live(): boolean {
    return this.open && (this.parent === undefined || this.parent.open);
  }

  count(change: 1 | -1): void {
    this.parked += change;
    this.parent?.count(change);
  }

  /** Those of a queue who wait through this handle. */
  waiters<T>(queue: Queue<Waiter<T>>): Waiter<T>[] {
    const found: Waiter<T>[] = [];
    for (let waiter = queue.first; waiter !== undefined && found.length < this.parked; waiter = waiter.after) {
      if (waiter.handle === this || waiter.handle?.parent === this) found.push(waiter);
    }
    return found;
  }
}

/**
 * A send or a receive that waits. It is of no class but its own, and its fields are plain: deriving it, or making them
 * private, makes every wait a tenth slower, and nobody outside this module sees it.
 */
class Waiter<T> implements Place<Waiter<T>> {
  queue: Queue<Waiter<T>> | undefined = undefined;
  before: Waiter<T> | undefined = undefined;
  after: Waiter<T> | undefined = undefined;
  readonly form: Form<T, unknown>;
  readonly resolve: (outcome: unknown) => void;
  readonly reject: (reason: unknown) => void;
  readonly limit: Limit | undefined;

  constructor(
    queue: Queue<Waiter<T>>,
    readonly handle: Handle | undefined,
    /** What a send has to give. */
    readonly value: T | undefined,
    form: Form<T, unknown>,
    resolve: (outcome: unknown) => void,
    reject: (reason: unknown) => void,
    options?: WaitOptions,
  ) {
    this.form = form;
    this.resolve = resolve;
    this.reject = reject;
    this.limit = options && new Limit(options, this);
    queue.add(this);
    handle?.count(1);
  }

  /** Gives the place up, if it is still held. */
  leave(): void {
    this.limit?.stop();
    if (this.queue === undefined) return;
    this.queue.remove(this);
    this.handle?.count(-1);
  }

  /** The value has changed hands. */
  settle(value: T): void {
    this.leave();
    this.resolve(this.form.value(value));
  }

  fail(reason: unknown): void {
    this.leave();
    this.reject(reason);
  }

  /** Nothing will come any more. */
  end({ clean, error }: Ending): void {
    if (!clean || this.form.end === undefined) return this.fail(error);
    this.leave();
    this.resolve(this.form.end());
  }
}

/** Makes a waiter; the form and the callback agree on what a value becomes. */
function park<T, R>(
  queue: Queue<Waiter<T>>,
  handle: Handle | undefined,
  value: T | undefined,
  form: Form<T, R>,
  resolve: (outcome: R) => void,
  reject: (reason: unknown) => void,
  options?: WaitOptions,
): Waiter<T> {
  return new Waiter(queue, handle, value, form, resolve as (outcome: unknown) => void, reject, options);
}

function wait<T, R>(
  queue: Queue<Waiter<T>>,
  handle: Handle | undefined,
  value: T | undefined,
  form: Form<T, R>,
  options: WaitOptions | undefined,
): Promise<R> {
  return refusal(options) ?? new Promise<R>((resolve, reject) => {
    park(queue, handle, value, form, resolve, reject, options);
  });
}

/**
 * The channel behind every face of it.
 *
 * Receivers wait only while there is no value, senders only while there is no room. State is whole before any promise is
 * settled or any callback called, since either may call back in.
 */
export class Core<T> {
  readonly capacity: number;
  readonly senders: Queue<Waiter<T>> = new Queue();
  readonly receivers: Queue<Waiter<T>> = new Queue();
  size = 0;
  closed = false;
  senderCount = 1;
  receiverCount = 1;
  /** Why it was or will be closed, if anyone said. */
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
    if (this.closed || handle?.live === false) return false;
    const receiving = this.receivers.first;
    if (receiving !== undefined) {
      receiving.settle(value);
      return true;
    }
    if (this.size >= this.capacity) return false;
    this.#push(value);
    return true;
  }

  send(value: T, options: WaitOptions | undefined, handle?: Handle): Promise<void> {
    const problem = timeoutProblem(options?.timeout);
    if (problem !== undefined) return Promise.reject(problem);
    if (this.trySend(value, handle)) return DONE;
    if (this.closed || handle?.live === false) return Promise.reject(unsent(value, handle));
    return wait(this.senders, handle, value, SENT, options);
  }

  sendCase(value: T, handle?: Handle): SelectCase<Sent> {
    return new Sending(this, value, handle);
  }

  /** Whether there is a value for {@linkcode Core.take}. */
  get ready(): boolean {
    return this.size > 0 || this.senders.first !== undefined;
  }

  take(): T {
    const sending = this.senders.first;
    if (sending === undefined) return this.#shift();
    const sent = sending.value as T;
    if (this.size === 0) {
      sending.settle(sent);
      return sent;
    }
    const value = this.#shift();
    this.#push(sent);
    sending.settle(sent);
    return value;
  }

  takeMany(max: number, handle?: Handle): T[] {
    const values: T[] = [];
    if (handle?.live === false) return values;
    while (values.length < max && this.ready) values.push(this.take());
    return values;
  }

  tryReceive(handle?: Handle): ChannelReceiveResult<T> {
    if (handle?.live === false) return CLOSED;
    if (this.ready) return { state: "ok", value: this.take() };
    return this.closed ? CLOSED : EMPTY;
  }

  receive<R>(form: Form<T, R>, options: WaitOptions | undefined, handle?: Handle): Promise<R> {
    const problem = timeoutProblem(options?.timeout);
    if (problem !== undefined) return Promise.reject(problem);
    if (handle?.live !== false) {
      if (this.ready) return Promise.resolve(form.value(this.take())) as Promise<R>;
      if (!this.closed) return wait(this.receivers, handle, undefined, form, options);
    }
    const { clean, error } = this.#ending(handle);
    return clean && form.end !== undefined ? Promise.resolve(form.end()) as Promise<R> : Promise.reject(error);
  }

  receiveMany(max: number, options: WaitOptions | undefined, handle?: Handle): Promise<T[]> {
    if (max !== Infinity && !(Number.isInteger(max) && max >= 1)) {
      return Promise.reject(new RangeError(`Cannot receive: max must be an integer >= 1 or Infinity, received ${max}`));
    }
    const problem = timeoutProblem(options?.timeout);
    if (problem !== undefined) return Promise.reject(problem);
    const values = this.takeMany(max, handle);
    return values.length > 0 ? Promise.resolve(values) : this.receive<T[]>(MANY, options, handle);
  }

  receiveCase(handle?: Handle): SelectCase<Received<T>> {
    return new Receiving(this, handle);
  }

  /** A stream that gives its handle up when it is over; without a handle, it closes the channel when it is cancelled. */
  readable(handle?: Handle): ReadableStream<T> {
    let over = false;
    const leave = () => {
      over = true;
      if (handle !== undefined) this.closeReceiver(handle);
    };
    return new ReadableStream<T>({
      pull: (controller) => {
        const result = this.tryReceive(handle);
        if (result.state === "ok") return controller.enqueue(result.value);
        return new Promise((resolve, reject) => {
          // Enqueued in the step that takes it from the channel: between the two, a cancel would lose it.
          const take = (step: IteratorResult<T, undefined>) => {
            if (!step.done) controller.enqueue(step.value);
            else {
              if (!over) controller.close();
              leave();
            }
            resolve();
          };
          const fail = (reason: unknown) => {
            leave();
            reject(reason);
          };
          const waiter = park<T, IteratorResult<T, undefined>>(this.receivers, handle, undefined, STEP, take, fail);
          if (result.state === "closed") this.#end(waiter);
        });
      },
      cancel: (reason) => {
        leave();
        if (handle === undefined) this.close(reason === undefined ? [] : [reason]);
      },
    }, { highWaterMark: 0 });
  }

  close(reason: Reason): void {
    if (this.closed) return;
    this.#giveReason(reason);
    this.closed = true;
    this.#rejectSenders();
    for (let receiving; (receiving = this.receivers.first) !== undefined;) this.#end(receiving);
  }

  closeSender(handle: Handle, reason: Reason): void {
    if (!handle.open) return;
    handle.open = false;
    this.#giveReason(reason);
    for (const sending of handle.waiters(this.senders)) sending.fail(unsent(sending.value, handle));
    if (--this.senderCount === 0) this.close([]);
  }

  closeReceiver(handle: Handle): void {
    if (!handle.open) return;
    this.closeHandle(handle);
    if (--this.receiverCount > 0) return;
    this.closed = true;
    this.#rejectSenders();
    const dropped = this.takeMany(Infinity);
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
    this.#receiversGone?.abort(noReceiver());
    if (failure !== undefined) throw failure.error;
  }

  closeHandle(handle: Handle): void {
    handle.open = false;
    for (const receiving of handle.waiters(this.receivers)) this.#end(receiving);
  }

  get signal(): AbortSignal {
    this.#receiversGone ??= new AbortController();
    if (this.receiverCount === 0) this.#receiversGone.abort(noReceiver());
    return this.#receiversGone.signal;
  }

  #giveReason(reason: Reason): void {
    if (reason.length === 1) this.#reason ??= { error: reason[0] };
  }

  #rejectSenders(): void {
    for (let sending; (sending = this.senders.first) !== undefined;) sending.fail(unsent(sending.value));
  }

  #end(receiving: Waiter<T>): void {
    receiving.end(this.#ending(receiving.handle));
  }

  #ending(handle: Handle | undefined): Ending {
    if (handle?.live === false) {
      return { clean: true, error: new ChannelClosedError("Cannot receive through a closed receiver") };
    }
    if (this.#reason !== undefined) {
      // An iteration fails once and is over then.
      if (handle?.endsOnError) handle.open = false;
      return { clean: false, error: this.#reason.error };
    }
    this.#closedError ??= new ChannelClosedError("Cannot receive from a closed channel");
    return { clean: true, error: this.#closedError };
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

/** A send as a case of a select. */
class Sending<T> implements SelectCase<Sent> {
  readonly #core: Core<T>;
  readonly #value: T;
  readonly #handle: Handle | undefined;

  constructor(core: Core<T>, value: T, handle: Handle | undefined) {
    this.#core = core;
    this.#value = value;
    this.#handle = handle;
  }

  attempt(): Sent | undefined {
    if (this.#core.trySend(this.#value, this.#handle)) return { done: false };
    return this.#core.closed || this.#handle?.live === false ? { done: true } : undefined;
  }

  park(settle: (outcome: Sent) => void): Waiter<T> {
    return new Waiter(
      this.#core.senders,
      this.#handle,
      this.#value,
      SENT,
      () => settle({ done: false }),
      () => settle({ done: true }),
    );
  }
}

/** A receive as a case of a select. */
class Receiving<T> implements SelectCase<Received<T>> {
  readonly #core: Core<T>;
  readonly #handle: Handle | undefined;

  constructor(core: Core<T>, handle: Handle | undefined) {
    this.#core = core;
    this.#handle = handle;
  }

  attempt(): Received<T> | undefined {
    const core = this.#core;
    if (this.#handle?.live === false) return { done: true };
    if (core.ready) return { done: false, value: core.take() };
    return core.closed ? { done: true } : undefined;
  }

  park(settle: (outcome: Received<T>) => void): Waiter<T> {
    return park<T, Received<T>>(
      this.#core.receivers,
      this.#handle,
      undefined,
      CASE,
      settle,
      () => settle({ done: true }),
    );
  }
}

export class Values<T> implements AsyncIterableIterator<T, undefined> {
  readonly #core: Core<T>;
  readonly #handle: Handle;

  constructor(core: Core<T>, parent?: Handle) {
    this.#core = core;
    this.#handle = new Handle(parent, true);
  }

  next(): Promise<IteratorResult<T, undefined>> {
    return this.#core.receive<IteratorResult<T, undefined>>(STEP, undefined, this.#handle);
  }

  return(): Promise<IteratorResult<T, undefined>> {
    this.#core.closeHandle(this.#handle);
    return Promise.resolve(STEP.end());
  }

  throw(error: unknown): Promise<IteratorResult<T, undefined>> {
    this.#core.closeHandle(this.#handle);
    return Promise.reject(error);
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}

export function writable<T>(
  end: { send(value: T, options: WaitOptions): Promise<void>; close(...reason: Reason): void },
): WritableStream<T> {
  return new WritableStream<T>({
    // A stream settles its write before it aborts, so the write must hear of the abort itself.
    write: async (value, { signal }) => {
      try {
        await end.send(value, { signal });
      } catch (error) {
        // A stream that fails calls nothing below any more; one that is aborted does, with the reason.
        if (!signal.aborted) end.close();
        throw error;
      }
    },
    close: () => end.close(),
    abort: (reason) => end.close(reason),
  });
}

function unsent(value: unknown, handle?: Handle): ChannelClosedError {
  const what = handle?.live === false ? "through a closed sender" : "to a closed channel";
  return new ChannelClosedError(`Cannot send ${what}`, value);
}

function noReceiver(): ChannelClosedError {
  return new ChannelClosedError("Cannot send to a channel without receivers");
}
