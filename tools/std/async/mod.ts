/**
 * Stand-in for `@std/async` when JSR is not reachable: only the exports and options that this repository uses.
 *
 * @module
 */

/** Resolves after a delay in milliseconds. */
export function delay(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Settles like the promise, or rejects with a `DOMException` named "TimeoutError" after a time in milliseconds. */
export async function deadline<T>(p: Promise<T>, ms: number): Promise<T> {
  const signal = AbortSignal.timeout(ms);
  const expired = Promise.withResolvers<never>();
  const expire = () => expired.reject(signal.reason);
  signal.addEventListener("abort", expire);
  try {
    return await Promise.race([p, expired.promise]);
  } finally {
    signal.removeEventListener("abort", expire); // without a listener the timeout does not keep the process alive
  }
}

/** Thrown by {@linkcode retry} after the last attempt; its `cause` is the error of that attempt. */
class RetryError extends Error {
  override name = "RetryError";
}

/** Calls a function until it succeeds, at most 5 times, with a random delay between two calls. */
export async function retry<T>(
  fn: (() => Promise<T>) | (() => T),
  /** Limit of the first delay in milliseconds; it doubles with each attempt, up to a minute. */
  { minTimeout = 1000 }: { minTimeout?: number } = {},
): Promise<T> {
  for (let attempt = 1;; attempt++) {
    try {
      return await fn();
    } catch (cause) {
      if (attempt === 5) throw new RetryError("Failed after 5 attempts", { cause });
    }
    await delay(Math.random() * Math.min(60_000, minTimeout * 2 ** (attempt - 1)));
  }
}

/**
 * Maps values with at most `poolLimit` concurrent calls; yields results in the order of the values. After an error no
 * new call begins, pending ones finish, and the iteration throws an `AggregateError`.
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
          call.catch(() => {}); // it stays in the set: the next race fails
          running.add(call);
          controller.enqueue(result);
          if (running.size >= poolLimit) await Promise.race(running);
        }
      } catch (error) {
        errors.add(error); // of a call, or of the iterable
      }
      controller.close();
    },
  });
  return (async function* () {
    for await (const result of results) {
      const [settled] = await Promise.allSettled([result]);
      if (settled.status === "fulfilled") yield settled.value;
      else errors.add(settled.reason);
    }
    if (errors.size > 0) throw new AggregateError(errors, "Some calls failed");
  })();
}
