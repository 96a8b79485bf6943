/**
 * Kills the process when an input runs too long without yielding, and prints the command that runs it again.
 *
 * @module
 */

import { workerData } from "node:worker_threads";
import { delay } from "@std/async";
import { keepFailure, TARGETS } from "./corpus.ts";

/** The data of the watchdog's worker. */
export interface Watched {
  /** The number of the running input, its length, the index of its target, and its bytes. */
  shared: SharedArrayBuffer;
  /** Time limit of one input, in milliseconds. */
  patience: number;
}

const { shared, patience }: Watched = workerData;
const head = new Int32Array(shared, 0, 3);
for (let before = 0;;) {
  await delay(patience);
  const now = Atomics.load(head, 0);
  if (now === before && now > 0) {
    const target = Object.keys(TARGETS)[head[2]!]!;
    const command = keepFailure(target, new Uint8Array(shared, 12, head[1]).slice());
    console.error(`${target}: FAILED: an input took longer than ${patience} ms\n  again: ${command}`);
    Deno.kill(Deno.pid, "SIGKILL");
  }
  before = now;
}
