/**
 * Runs the seeded simulation for many seeds: two whole sessions, their users and the connection between them, in
 * virtual time. With `--carriers` the sessions run over a resumable connection, and the connections below it die.
 *
 * @module
 */

import { report, simulate } from "../simulation/simulate.ts";
import { flag, integer, parse } from "./shared/options.ts";

/** One line for the list of long tests. */
export const description =
  "Two sessions with seeded random events in virtual time: [--carriers] [--seeds 10000] [--from 0] [--seed N] [--twice] [--fail-fast]";

// Length of the trace: with `--seed`, every event; otherwise the last ones.
const WHOLE_TRACE = 1_000_000;
const SHORT_TRACE = 60;

/** Runs the seeds; rejects if one fails, or if its second run differs. */
export async function run(args: string[]): Promise<void> {
  const { carriers, seeds, from, seed: only, twice, "fail-fast": failsFast } = parse(args, {
    carriers: flag,
    seeds: integer(10_000, 1),
    from: integer(0, 0),
    seed: integer(undefined, 0),
    twice: flag,
    "fail-fast": flag,
  });
  if (only !== undefined) {
    const outcome = await simulate(only, WHOLE_TRACE, carriers);
    console.log(report(outcome));
    if (outcome.failures.length > 0) throw new Error(`Seed ${only} failed`);
    console.log(`seed ${only}: no failure; trace ${outcome.hash}`);
    return;
  }

  const started = performance.now();
  const faults = new Map<string, number>();
  const failed: number[] = [];
  let done = 0, milliseconds = 0, steps = 0, streams = 0, bytes = 0;
  for (let seed = from; seed < from + seeds; seed++) {
    const outcome = await simulate(seed, SHORT_TRACE, carriers);
    const again = twice ? await simulate(seed, SHORT_TRACE, carriers) : outcome;
    if (again.hash !== outcome.hash) outcome.failures.push("The second run differs from the first");
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
    `simulate${carriers ? " --carriers" : ""}: ${done} seeds from ${from}${twice ? ", each twice" : ""}, ${
      seconds.toFixed(1)
    } s, ` +
      `${(done / seconds).toFixed(0)} seeds a second, ${(milliseconds / 3_600_000).toFixed(1)} virtual hours, ` +
      `${steps} steps, ${streams} streams, ${bytes} bytes read`,
  );
  console.log(`  faults: ${kinds || "none"}`);
  console.log(`  failures: ${failed.length}${failed.length > 0 ? `, seeds ${failed.join(", ")}` : ""}`);
  if (failed.length > 0) throw new Error(`${failed.length} of ${done} seeds failed`);
}
