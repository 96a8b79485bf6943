/**
 * Waits of channel operations: their queue, and the signal and the timeout that can end them.
 *
 * @module
 */

import { clock, MAX_DELAY_MS, type Timer } from "./_clock.ts";
import { describeValue, invalidSignal } from "./_describe.ts";

/**
 * Options of an operation that may wait. An operation that need not wait succeeds, even if the signal has aborted or
 * the timeout is 0.
 *
 * @example Limiting a wait
 * ```ts
 * import { Channel, type WaitOptions } from "@sluice/smux/channel";
 * import { assertRejects } from "@std/assert";
 *
 * const options: WaitOptions = { timeout: 5 };
 * await assertRejects(() => new Channel<string>().receive(options), DOMException, "5 ms");
 * ```
 */
export interface WaitOptions {
  /** Aborts the wait, which then rejects with the signal's `reason`. A listener is registered only during the wait. */
  signal?: AbortSignal | undefined;
  /**
   * Maximum wait in milliseconds, 0 to 2 147 483 647, or `Infinity` for no limit. A longer wait rejects with a
   * `DOMException` named "TimeoutError". With 0 the operation never waits. Default `Infinity`.
   */
  timeout?: number | undefined;
}

/**
 * One operation for {@linkcode select}, created by `receiveCase()` or `sendCase(value)`. It does not queue until a
 * select waits for it, and may be used again. Its members are called by `select` only.
 *
 * @typeParam Outcome The outcome; `done` is `true` if the channel is closed.
 *
 * @example Using one case in a loop
 * ```ts
 * import { Channel, select, type SelectCase } from "@sluice/smux/channel";
 * import { assertEquals } from "@std/assert";
 *
 * const numbers = new Channel<number>({ capacity: 2 });
 * numbers.trySend(1);
 * numbers.trySend(2);
 * numbers.close();
 * const next: SelectCase<{ done: false; value: number } | { done: true; value?: undefined }> = numbers.receiveCase();
 *
 * let sum = 0;
 * for (let r = await select({ next }); !r.done; r = await select({ next })) sum += r.value;
 * assertEquals(sum, 3);
 * ```
 */
export interface SelectCase<Outcome extends object> {
  /** Performs the operation if that is possible without waiting; otherwise returns `undefined`. */
  attempt(): Outcome | undefined;
  /** Queues the operation. Calls `resolve` once with the outcome, unless `leave` is called before. */
  park(resolve: (outcome: Outcome) => void): { leave(): void };
}

/** Returns the error for a `timeout` that is negative, NaN or above 2^31 - 1; `undefined` for a valid one. */
export function invalidTimeout(timeout: number | undefined): RangeError | undefined {
  if (timeout === undefined || timeout === Infinity) return undefined;
  if (typeof timeout === "number" && timeout >= 0 && timeout <= MAX_DELAY_MS) return undefined;
  return new RangeError(
    `Cannot wait: timeout must be 0 to ${MAX_DELAY_MS} ms or Infinity, received ${describeValue(timeout)}`,
  );
}

/** Returns a rejection if the signal is invalid or has aborted, or the timeout is 0; otherwise `undefined`. */
export function rejectBeforeWait(options: WaitOptions | undefined): Promise<never> | undefined {
  const invalid = invalidSignal(options?.signal);
  if (invalid !== undefined) return Promise.reject(invalid);
  if (options?.signal?.aborted) return Promise.reject(options.signal.reason);
  return options?.timeout === 0 ? Promise.reject(timeoutError(0)) : undefined;
}

function timeoutError(timeout: number): DOMException {
  return new DOMException(`The channel operation timed out after ${timeout} ms`, "TimeoutError");
}

/** A member of a {@linkcode Queue}. */
export interface QueueNode<P extends QueueNode<P>> {
  queue: Queue<P> | undefined;
  previous: P | undefined;
  next: P | undefined;
}

/** A doubly linked list of waiters, oldest first. The waiters are its nodes, so each can be removed in O(1). */
export class Queue<P extends QueueNode<P>> {
  first: P | undefined = undefined;
  last: P | undefined = undefined;

  add(node: P): void {
    node.queue = this;
    node.previous = this.last;
    if (this.last === undefined) this.first = node;
    else this.last.next = node;
    this.last = node;
  }

  remove(node: P): void {
    if (node.previous === undefined) this.first = node.next;
    else node.previous.next = node.next;
    if (node.next === undefined) this.last = node.previous;
    else node.next.previous = node.previous;
    node.queue = node.previous = node.next = undefined;
  }
}

/** A wait that a signal or a timeout can end. Its `fail` must call {@linkcode WaitLimit.stop}. */
interface Cancellable {
  fail(reason: unknown): void;
}

/** The signal and the timeout of one pending wait. */
export class WaitLimit implements QueueNode<WaitLimit> {
  queue: Queue<WaitLimit> | undefined = undefined;
  previous: WaitLimit | undefined = undefined;
  next: WaitLimit | undefined = undefined;
  readonly wait: Cancellable;
  readonly #timer: Timer | undefined;

  constructor({ signal, timeout = Infinity }: WaitOptions, wait: Cancellable) {
    this.wait = wait;
    // `null` counts as no signal, as for `Channel` of `@std/async`.
    if (signal) watchSignal(signal).add(this);
    if (timeout !== Infinity) this.#timer = setTimer(wait, timeout);
  }

  stop(): void {
    this.queue?.remove(this);
    if (this.#timer !== undefined) clock.clearTimer(this.#timer);
  }
}

/** Starts a timer. A separate function, so that the constructor allocates no closure context without a timeout. */
function setTimer(wait: Cancellable, timeout: number): Timer {
  return clock.setTimer(() => wait.fail(timeoutError(timeout)), timeout);
}

/**
 * The waits with one signal, which share a listener: adding or removing a listener searches all listeners of a signal.
 */
class SignalWatch extends Queue<WaitLimit> {
  readonly signal: AbortSignal;
  readonly #slot: number;

  constructor(signal: AbortSignal, slot: number) {
    super();
    this.signal = signal;
    this.#slot = slot;
  }

  override add(limit: WaitLimit): void {
    if (this.first === undefined) this.signal.addEventListener("abort", this);
    super.add(limit);
  }

  override remove(limit: WaitLimit): void {
    super.remove(limit);
    if (this.first !== undefined) return;
    this.signal.removeEventListener("abort", this);
    if (watches[this.#slot] === this) watches[this.#slot] = undefined;
  }

  handleEvent(): void {
    for (let limit; (limit = this.first) !== undefined;) limit.wait.fail(this.signal.reason);
  }
}

/** Cache of the most recent signals. A map of all signals makes the first wait with a signal much slower. */
const watches: (SignalWatch | undefined)[] = new Array(8).fill(undefined);
let oldest = 0;

function watchSignal(signal: AbortSignal): SignalWatch {
  for (let i = 0; i < watches.length; i++) {
    const watch = watches[i];
    if (watch !== undefined && watch.signal === signal) return watch;
  }
  const watch = new SignalWatch(signal, oldest);
  watches[oldest] = watch;
  oldest = (oldest + 1) % watches.length;
  return watch;
}

/**
 * Calls `abort` when the signal aborts later; returns a function that prevents that. The uses of one signal share a
 * listener: Node 20 warns of more than 10. `abort` must not throw.
 */
export function onAbort(signal: AbortSignal, abort: (reason: unknown) => void): () => void {
  const limit = new WaitLimit({ signal }, {
    fail(reason) {
      limit.stop();
      abort(reason);
    },
  });
  return () => limit.stop();
}
