/**
 * What every wait of a channel shares: its place in a queue, and the signal and the timeout that can end it.
 *
 * @module
 */

import { clock, MAX_DELAY_MS, type Timer } from "./_clock.ts";

/**
 * What can end a wait early. An operation that is possible at once succeeds, whatever the options.
 *
 * @example A wait that gives up
 * ```ts
 * import { Channel, type WaitOptions } from "@sluice/smux/channel";
 * import { assertRejects } from "@std/assert";
 *
 * const patience: WaitOptions = { timeout: 5 };
 * await assertRejects(() => new Channel<string>().receive(patience), DOMException, "5 ms");
 * ```
 */
export interface WaitOptions {
  /** Ends the wait: it rejects with the signal's `reason`. Listened to only while waiting. */
  signal?: AbortSignal | undefined;
  /**
   * The longest wait in milliseconds: 0 to 2 147 483 647, or `Infinity` for no limit. A wait that outlasts it rejects
   * with a `DOMException` named `"TimeoutError"`; 0 means "at once or not at all". Default `Infinity`.
   */
  timeout?: number | undefined;
}

/**
 * One operation that {@linkcode select} can wait for, made by `receiveCase()` or `sendCase(value)`. A case holds no
 * place in any queue until a select waits for it, and may be used again. Its two members are for select alone.
 *
 * @typeParam Outcome What happened: `done` is true if the channel was closed instead.
 *
 * @example One case in a loop
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
  /** Does the operation if that is possible at once. */
  attempt(): Outcome | undefined;
  /** Waits for the operation; calls `resolve` once, unless `leave` is called before that. */
  park(resolve: (outcome: Outcome) => void): { leave(): void };
}

/** The error for a timeout that no timer can hold. */
export function invalidTimeout(timeout: number | undefined): RangeError | undefined {
  if (timeout === undefined || timeout === Infinity) return undefined;
  if (typeof timeout === "number" && timeout >= 0 && timeout <= MAX_DELAY_MS) return undefined;
  return new RangeError(`Cannot wait: timeout must be 0 to ${MAX_DELAY_MS} ms or Infinity, received ${timeout}`);
}

/** The rejection of a wait whose signal has aborted or whose timeout is 0. */
export function rejectBeforeWait(options: WaitOptions | undefined): Promise<never> | undefined {
  if (options?.signal?.aborted) return Promise.reject(options.signal.reason);
  return options?.timeout === 0 ? Promise.reject(timeoutError(0)) : undefined;
}

function timeoutError(timeout: number): DOMException {
  return new DOMException(`Gave up waiting after ${timeout} ms`, "TimeoutError");
}

/** A member of a {@linkcode Queue}. */
export interface QueueNode<P extends QueueNode<P>> {
  queue: Queue<P> | undefined;
  previous: P | undefined;
  next: P | undefined;
}

/** A doubly linked list of waiters, oldest first, linked through the waiters themselves: each can leave in O(1). */
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

/** What a signal or a timeout can end; its `fail` must call {@linkcode WaitLimit.stop}. */
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

/** A separate function, so that the constructor allocates no closure context without a timeout. */
function setTimer(wait: Cancellable, timeout: number): Timer {
  return clock.setTimer(() => wait.fail(timeoutError(timeout)), timeout);
}

/** The waits of one signal, behind one listener: a signal searches all its listeners for each it adds or removes. */
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

/** The recent signals. A map of all of them makes the first wait on a signal much slower. */
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
