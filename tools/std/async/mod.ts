/**
 * Stand-in for `@std/async` where JSR cannot be reached: the functions this repository uses, nothing more.
 *
 * @module
 */

const longestTimer = 2 ** 31 - 1;

/** Options of {@linkcode delay}. */
export interface DelayOptions {
  /** Ends the wait early, with the signal's reason. */
  signal?: AbortSignal;
  /** Whether the wait keeps the process alive; default true. */
  persistent?: boolean;
}

/** Resolves after some milliseconds. */
export function delay(ms: number, options: DelayOptions = {}): Promise<void> {
  const { signal, persistent = true } = options;
  if (signal?.aborted) return Promise.reject(signal.reason);
  return new Promise((resolve, reject) => {
    const abort = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", abort);
      resolve();
    }, Math.min(ms, longestTimer));
    signal?.addEventListener("abort", abort, { once: true });
    if (!persistent) Deno.unrefTimer(timer);
  });
}

/** Settles as the promise does, or rejects with the signal's reason if that comes first. */
export function abortable<T>(p: Promise<T>, signal: AbortSignal): Promise<T>;
/** Yields what the iterable yields, and throws the signal's reason once it is aborted. */
export function abortable<T>(p: AsyncIterable<T>, signal: AbortSignal): AsyncGenerator<T>;
export function abortable<T>(
  p: Promise<T> | AsyncIterable<T>,
  signal: AbortSignal,
): Promise<T> | AsyncGenerator<T> {
  return p instanceof Promise ? abortablePromise(p, signal) : abortableIterable(p, signal);
}

async function abortablePromise<T>(p: Promise<T>, signal: AbortSignal): Promise<T> {
  signal.throwIfAborted();
  const aborted = Promise.withResolvers<never>();
  const abort = () => aborted.reject(signal.reason);
  signal.addEventListener("abort", abort, { once: true });
  try {
    return await Promise.race([aborted.promise, p]);
  } finally {
    signal.removeEventListener("abort", abort);
  }
}

async function* abortableIterable<T>(iterable: AsyncIterable<T>, signal: AbortSignal): AsyncGenerator<T> {
  const iterator = iterable[Symbol.asyncIterator]();
  while (true) {
    const { done, value } = await abortablePromise(iterator.next(), signal);
    if (done) return;
    yield value;
  }
}

/** Options of {@linkcode deadline}. */
export interface DeadlineOptions {
  /** Ends the wait early, with the signal's reason. */
  signal?: AbortSignal;
}

/** Settles as the promise does, or rejects with a `DOMException` "TimeoutError" after some milliseconds. */
export async function deadline<T>(p: Promise<T>, ms: number, options: DeadlineOptions = {}): Promise<T> {
  if (!Number.isFinite(ms)) throw new TypeError(`deadline: ${ms} is not a finite number of milliseconds`);
  const timeout = new AbortController();
  const expire = () => timeout.abort(new DOMException("Signal timed out.", "TimeoutError"));
  const timer = setTimeout(expire, Math.min(ms, longestTimer));
  const signals = options.signal ? [timeout.signal, options.signal] : [timeout.signal];
  try {
    return await abortable(p, AbortSignal.any(signals));
  } finally {
    clearTimeout(timer);
  }
}

/** What {@linkcode retry} throws after the last attempt; its `cause` is that attempt's error. */
export class RetryError extends Error {
  override name = "RetryError";

  constructor(cause: unknown, attempts: number) {
    super(`Retrying exceeded the maxAttempts (${attempts}).`, { cause });
  }
}

/** Options of {@linkcode retry}; times in milliseconds. */
export interface RetryOptions {
  /** How much longer each wait is than the one before it; default 2. */
  multiplier?: number;
  /** The longest wait; default 60 000. */
  maxTimeout?: number;
  /** How often to try; default 5. */
  maxAttempts?: number;
  /** The first wait; default 1000. */
  minTimeout?: number;
  /** How much of each wait is random, 0 to 1; default 1. */
  jitter?: number;
  /** Whether an error is worth another attempt; default always. */
  isRetriable?: (err: unknown) => boolean;
}

/** Calls a function until it succeeds. */
export async function retry<T>(fn: (() => Promise<T>) | (() => T), options: RetryOptions = {}): Promise<T> {
  const { multiplier = 2, maxTimeout = 60_000, maxAttempts = 5, minTimeout = 1000, jitter = 1 } = options;
  if (minTimeout > maxTimeout) throw new RangeError(`retry: minTimeout ${minTimeout} > maxTimeout ${maxTimeout}`);
  for (let attempt = 1;; attempt++) {
    try {
      return await fn();
    } catch (error) {
      if (options.isRetriable?.(error) === false) throw error;
      if (attempt >= maxAttempts) throw new RetryError(error, maxAttempts);
    }
    await delay(Math.min(maxTimeout, minTimeout * multiplier ** (attempt - 1)) * (1 - jitter * Math.random()));
  }
}

/**
 * Maps values with at most `poolLimit` calls at a time; results come in the order of the values. After an error no new
 * call begins, those under way finish, and iteration ends with an `AggregateError`.
 */
export function pooledMap<T, R>(
  poolLimit: number,
  array: Iterable<T> | AsyncIterable<T>,
  iteratorFn: (data: T) => Promise<R>,
): AsyncIterableIterator<R> {
  const errors = new Set<unknown>();
  const results = new ReadableStream<Promise<R>>({
    async start(controller) {
      const running = new Set<Promise<unknown>>();
      try {
        for await (const item of array) {
          const result = Promise.resolve(item).then(iteratorFn);
          const call: Promise<unknown> = result.then(() => running.delete(call));
          call.catch((error) => errors.add(error)); // it stays in the set: the next race fails
          running.add(call);
          controller.enqueue(result);
          if (running.size >= poolLimit) await Promise.race(running);
        }
      } catch (error) {
        errors.add(error); // one of the calls', or the iterable's own
      }
      await Promise.allSettled(running);
      controller.close();
    },
  });
  return (async function* () {
    for await (const result of results) {
      const [settled] = await Promise.allSettled([result]);
      if (settled.status === "fulfilled") yield settled.value;
    }
    if (errors.size === 0) return;
    throw new AggregateError(errors, "Cannot complete the mapping as an error was thrown from an item");
  })();
}
