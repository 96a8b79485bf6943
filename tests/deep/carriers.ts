/**
 * Sends programs through the tunnel over every carrier and by every entry, then again while the connection to the server
 * is cut at an interval.
 *
 * @module
 */

import { assert } from "@std/assert";
import { hasPostgres } from "../postgres.ts";
import { hasPrograms } from "../programs.ts";
import { integer, names, oneOf, parse } from "./shared/options.ts";
import { type Effort, PROGRAMS, startTargets } from "./carriers/targets.ts";
import { CARRIERS, ENTRIES, startTunnel, type Tunnel } from "./carriers/ways.ts";

/** One line for the list of long tests. */
export const description = "curl, ssh, psql and redis over every carrier and by every entry of the tunnel: " +
  `[--carriers ${CARRIERS.join(",")}] [--entries ${ENTRIES.join(",")}] [--programs ${PROGRAMS.join(",")}] ` +
  "[--smux 1|2] [--cut 1000, milliseconds; 0: only without cuts]";

const NEEDED = ["curl", "ssh", "sshd", "psql", "redis-server", "redis-cli", "socat", "tinyproxy", "microsocks"];
const WHOLE: Effort = { steps: 5, pause: 0 };
// Longer than two intervals of the cuts.
const CUT: Effort = { steps: 25, pause: 100 };

/** Runs every cell; rejects if one is broken. */
export async function run(args: string[]): Promise<void> {
  const { carriers, entries, programs, smux, cut } = parse(args, {
    carriers: names(CARRIERS),
    entries: names(ENTRIES),
    programs: names(PROGRAMS),
    smux: oneOf(["1", "2"]),
    cut: integer(1000, 0),
  });
  if (!hasPrograms(...NEEDED) || !hasPostgres || Deno.uid() !== 0) {
    return console.log(`skipped: needs root, postgresql and ${NEEDED.join(", ")}`);
  }
  await using started = new AsyncDisposableStack();
  const targets = await startTargets(started);
  const counts = { cells: 0, broken: 0 };
  for (const interval of cut === 0 ? [0] : [0, cut]) {
    for (const version of smux) {
      for (const carrier of carriers) {
        await using resources = new AsyncDisposableStack();
        const tunnel = await startTunnel(resources, carrier, targets, version, interval);
        for (const entry of entries) {
          for (const program of programs) {
            const job = async (resources: AsyncDisposableStack) => {
              const access = await tunnel.access(entry, program, resources);
              await targets[program].run(access, interval === 0 ? WHOLE : CUT);
            };
            const isHeld = await runCell(tunnel, job, [
              interval === 0 ? "whole" : `cut every ${interval} ms`,
              `v${version}`,
              carrier,
              entry,
              program,
            ]);
            counts.cells++;
            if (!isHeld) counts.broken++;
          }
        }
      }
    }
  }
  console.log(`${counts.cells} cells, ${counts.cells - counts.broken} held, ${counts.broken} broken`);
  assert(counts.broken === 0);
}

/** Runs one cell, prints its line, and returns whether it held. */
async function runCell(
  tunnel: Tunnel,
  job: (resources: AsyncDisposableStack) => Promise<void>,
  name: string[],
): Promise<boolean> {
  await using resources = new AsyncDisposableStack();
  const since = performance.now();
  const took = () => `${((performance.now() - since) / 1000).toFixed(1)} s`;
  try {
    await job(resources);
    console.log(`${name.join(", ")}: held, ${took()}`);
    return true;
  } catch (error) {
    console.log(`${name.join(", ")}: broken after ${took()}: ${(error as Error).message}\n${tunnel.output()}`);
    return false;
  }
}
