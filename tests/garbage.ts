/**
 * Garbage collection on demand.
 *
 * @module
 */

import * as v8 from "node:v8";
import * as vm from "node:vm";

/** Collects garbage. A `WeakRef` keeps what it returned until the next tick. */
export function collectGarbage(): void {
  v8.setFlagsFromString("--expose-gc");
  vm.runInNewContext("gc")();
}
