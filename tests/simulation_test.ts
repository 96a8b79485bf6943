/**
 * A few seeds of the simulation; `deno task deep simulate` runs as many as there is time for.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { report, simulate } from "./simulation/simulate.ts";

Deno.test("simulation: 300 seeds of two sessions over a connection that splits, delays, breaks and corrupts", async () => {
  let bytes = 0;
  let faults = 0;
  for (let seed = 0; seed < 300; seed++) {
    const outcome = await simulate(seed);
    if (outcome.failures.length > 0) throw new Error(report(outcome));
    bytes += outcome.bytes;
    faults += outcome.faults.length;
  }
  // A simulation in which nothing happens would find nothing.
  assert(bytes > 100_000 && faults > 30, `${bytes} bytes, ${faults} faults`);
});

Deno.test("simulation: the same seed gives the same run", async () => {
  for (let seed = 1000; seed < 1020; seed++) {
    const [one, other] = [await simulate(seed), await simulate(seed)];
    assertEquals(other.trace, one.trace);
    assertEquals(other.hash, one.hash);
  }
});
