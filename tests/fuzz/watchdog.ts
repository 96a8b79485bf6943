/**
 * Ends the process when an input loops for ever without awaiting anything, and says which input it was.
 *
 * @module
 */

import { workerData } from "node:worker_threads";
import { delay } from "@std/async";
import { keepFailure, TARGETS } from "./corpus.ts";

/** What the watchdog is given. */
export interface Watched {
  /** The number of the input that runs, its length, the index of its target, and its bytes. */
  shared: SharedArrayBuffer;
  /** Milliseconds that one input may take. */
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
