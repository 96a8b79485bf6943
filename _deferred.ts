/**
 * A promise with the functions that settle it; Node 20 has no `Promise.withResolvers`.
 *
 * @module
 */

/** Returns a new promise and what settles it. */
export function deferred<T>(): PromiseWithResolvers<T> {
  let resolve!: PromiseWithResolvers<T>["resolve"];
  let reject!: PromiseWithResolvers<T>["reject"];
  const promise = new Promise<T>((...settle) => [resolve, reject] = settle);
  return { promise, resolve, reject };
}
