/**
 * `Promise.withResolvers` for runtimes without it, such as Node 20.
 *
 * @module
 */

/** Returns a new promise and the functions that settle it. */
export function deferred<T>(): PromiseWithResolvers<T> {
  let resolve!: PromiseWithResolvers<T>["resolve"];
  let reject!: PromiseWithResolvers<T>["reject"];
  const promise = new Promise<T>((...settle) => [resolve, reject] = settle);
  return { promise, resolve, reject };
}
