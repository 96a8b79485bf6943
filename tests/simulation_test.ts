/**
 * A few seeds of the simulation; `deno task deep simulate` runs seeds for a given time.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { report, simulate } from "./simulation/simulate.ts";

Deno.test("simulation: two sessions keep all invariants in 300 seeds, over a connection that splits, delays, breaks and corrupts", async () => {
  let bytes = 0;
  let faults = 0;
  for (let seed = 0; seed < 300; seed++) {
    const outcome = await simulate(seed);
    if (outcome.failures.length > 0) throw new Error(report(outcome));
    bytes += outcome.bytes;
    faults += outcome.faults.length;
  }
  // Guards against runs without traffic or faults.
  assert(bytes > 100_000 && faults > 30, `${bytes} bytes, ${faults} faults`);
});

Deno.test("simulation: a seed produces the same trace each time", async () => {
  for (let seed = 1000; seed < 1020; seed++) {
    const [one, other] = [await simulate(seed), await simulate(seed)];
    assertEquals(other.trace, one.trace);
    assertEquals(other.hash, one.hash);
  }
});
