/**
 * A few seeds of the simulation; `deno task deep simulate` runs seeds for a given time.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { CARRIER_FAULTS } from "./simulation/carriers_plan.ts";
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

Deno.test("simulation: two sessions keep all invariants in 100 seeds, over a resumable connection whose carriers die", async () => {
  let bytes = 0;
  const faults = new Set<string>();
  for (let seed = 0; seed < 100; seed++) {
    const outcome = await simulate(seed, undefined, true);
    if (outcome.failures.length > 0) throw new Error(report(outcome));
    bytes += outcome.bytes;
    for (const fault of outcome.faults) faults.add(fault);
  }
  assert(bytes > 100_000, `${bytes} bytes`);
  for (const fault of CARRIER_FAULTS) assert(faults.has(fault), `${fault} did not occur`);
});

Deno.test("simulation: a seed produces the same trace each time", async () => {
  for (let seed = 1000; seed < 1020; seed++) {
    for (const isOverCarriers of [false, true]) {
      const one = await simulate(seed, undefined, isOverCarriers);
      const other = await simulate(seed, undefined, isOverCarriers);
      assertEquals(other.trace, one.trace);
      assertEquals(other.hash, one.hash);
    }
  }
});
