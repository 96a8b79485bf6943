/**
 * Checks options that are lists.
 *
 * @module
 */

import { typeName } from "./errors.ts";

/**
 * Throws a `RangeError` for an option that is not a list. Each character of a text would count as an entry: a port of
 * "80" as the ports 8 and 0.
 */
export function checkLists<Options extends object>(options: Options, names: readonly (keyof Options & string)[]): void {
  for (const name of names) {
    const value = options[name];
    if (value === undefined || Array.isArray(value)) continue;
    throw new RangeError(`${name} must be a list of texts, received ${typeName(value)}`);
  }
}
