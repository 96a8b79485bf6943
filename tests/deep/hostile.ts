/**
 * Runs every attack with full counts, against a victim in a child process, and measures its memory and CPU time.
 *
 * @module
 */

import { explain } from "../errors.ts";
import { machine, percentile } from "../stats.ts";
import { AttackRun, type Figures, ways } from "../hostile/attack_run.ts";
import { CASES } from "../hostile/table.ts";
import type { Role } from "../hostile/victim.ts";
import { anyText, flag, names, parse } from "./shared/options.ts";

/** One line for the list of long tests. */
export const description =
  "Every attack on both roles and versions, with its cost: [--only A1,B1] [--json FILE] [--list]";

/** The result of one case, one line of the report. */
interface Result {
  id: string;
  name: string;
  role: Role;
  version: number;
  /** "held", or the failure. */
  outcome: string;
  hasHeld: boolean;
  seconds: number;
  figures: Figures;
  notes: string[];
}

/** Runs the cases; exits with code 1 if one fails. */
export async function run(args: string[]): Promise<void> {
  const { only, json, list } = parse(args, {
    only: names([...new Set(CASES.flatMap(({ id, name }) => [id, name]))]),
    json: anyText,
    list: flag,
  });
  const cases = CASES.filter(({ id, name }) => only.includes(id) || only.includes(name));
  if (list) {
    for (const { id, name, attack, expected } of cases) console.log(`${id} ${name}: ${attack}; ${expected}`);
    return;
  }

  console.log("case                          against    growth  left  µs/frame  fresh p99  outcome");
  const results: Result[] = [];
  for (const which of cases) {
    for (const { role, version } of ways(which)) {
      const started = performance.now();
      const { failure, figures, notes } = await AttackRun.try(which, role, version, true);
      const hasHeld = failure === undefined;
      const result: Result = {
        id: which.id,
        name: which.name,
        role,
        version,
        outcome: hasHeld ? "held" : `BROKEN: ${explain(failure)}`,
        hasHeld,
        seconds: (performance.now() - started) / 1000,
        figures,
        notes,
      };
      results.push(result);
      console.log(line(result));
    }
  }
  const broken = results.filter(({ hasHeld }) => !hasHeld).length;
  console.log(`${results.length} cases, ${results.length - broken} held, ${broken} broken`);
  if (json !== undefined) await Deno.writeTextFile(json, JSON.stringify({ machine: machine(), results }) + "\n");
  if (broken > 0) Deno.exit(1);
}

function line({ id, name, role, version, outcome, seconds, figures, notes }: Result): string {
  const { growth, left, perFrame, fresh, closed, canary, gap, share } = figures;
  const number = (value: number | undefined, digits: number, unit = "") =>
    value === undefined ? "-" : `${value.toFixed(digits)}${unit}`;
  const extra = [...notes];
  if (closed !== undefined) extra.push(`closed in ${closed.toFixed(1)} ms`);
  if (canary.length > 0) extra.push(`canary ${percentile(canary, 0.99).toFixed(1)} ms`);
  if (share !== undefined) extra.push(`another session at ${share.toFixed(2)} of its fair share`);
  return [
    `${id} ${name}`.padEnd(28),
    `${role} v${version}`,
    number(growth, 1).padStart(7),
    number(left, 1).padStart(5),
    number(perFrame, 2).padStart(9),
    (fresh.length === 0 ? "-" : percentile(fresh, 0.99).toFixed(1)).padStart(10),
    number(gap, 1).padStart(5),
    `${outcome}, ${seconds.toFixed(1)} s${extra.map((text) => `; ${text}`).join("")}`,
  ].join("  ");
}
