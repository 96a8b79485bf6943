/**
 * The seeded simulation, for as many seeds as there is time for: two whole sessions, their users and the connection
 * between them, in virtual time.
 *
 * @module
 */

import { report, simulate } from "../simulation/simulate.ts";
import { flag, integer, parse } from "./shared/options.ts";

/** What it does. */
export const description =
  "Two sessions under seeded chance, in virtual time: [--seeds 10000] [--from 0] [--seed N] [--twice] [--fail-fast]";

// A seed that is looked at alone shows all that happened.
const WHOLE_TRACE = 1_000_000;
const SHORT_TRACE = 60;

/** Runs it; rejects when a seed failed, or was not the same the second time. */
export async function run(args: string[]): Promise<void> {
  const { seeds, from, seed: only, twice, "fail-fast": failsFast } = parse(args, {
    seeds: integer(10_000, 1),
    from: integer(0, 0),
    seed: integer(undefined, 0),
    twice: flag,
    "fail-fast": flag,
  });
  if (only !== undefined) {
    const outcome = await simulate(only, WHOLE_TRACE);
    console.log(report(outcome));
    if (outcome.failures.length > 0) throw new Error(`Seed ${only} failed`);
    console.log(`seed ${only}: nothing was wrong; trace ${outcome.hash}`);
    return;
  }

  const started = performance.now();
  const faults = new Map<string, number>();
  const failed: number[] = [];
  let done = 0, milliseconds = 0, steps = 0, streams = 0, bytes = 0;
  for (let seed = from; seed < from + seeds; seed++) {
    const outcome = await simulate(seed, SHORT_TRACE);
    const again = twice ? await simulate(seed, SHORT_TRACE) : outcome;
    if (again.hash !== outcome.hash) outcome.failures.push("The second run was another one");
    done++;
    milliseconds += outcome.milliseconds;
    steps += outcome.steps;
    streams += outcome.streams;
    bytes += outcome.bytes;
    for (const fault of outcome.faults) faults.set(fault, (faults.get(fault) ?? 0) + 1);
    if (outcome.failures.length === 0) continue;
    failed.push(seed);
    console.log(report(outcome));
    if (failsFast) break;
  }

  const seconds = (performance.now() - started) / 1000;
  const kinds = Array.from(faults, ([kind, count]) => `${kind} ${count}`).sort().join(", ");
  console.log(
    `simulate: ${done} seeds from ${from}${twice ? ", each twice" : ""}, ${seconds.toFixed(1)} s, ` +
      `${(done / seconds).toFixed(0)} seeds a second, ${(milliseconds / 3_600_000).toFixed(1)} virtual hours, ` +
      `${steps} steps, ${streams} streams, ${bytes} bytes read`,
  );
  console.log(`  faults: ${kinds || "none"}`);
  console.log(`  failures: ${failed.length}${failed.length > 0 ? `, seeds ${failed.join(", ")}` : ""}`);
  if (failed.length > 0) throw new Error(`${failed.length} of ${done} seeds failed`);
}
