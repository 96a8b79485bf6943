/**
 * Whether the runtime polls its sockets each time way is given, while all other cores are busy.
 *
 * @module
 */

import { assertLess } from "@std/assert";
import { clock } from "../../_clock.ts";
import { LOOPBACK } from "../support.ts";
import { integer, parse } from "./shared/options.ts";

/** What it does. */
export const description = "Gives way on a busy machine until two sockets have met: [--rounds 50]";

// Milliseconds of work between two times that way is given.
const WORK = 1;
// Way is given this many times until two sockets have met, at most.
const MOST = 2;

/** Runs it; rejects when two sockets met later. */
export async function run(args: string[]): Promise<void> {
  const { rounds } = parse(args, { rounds: integer(50, 1) });
  const spin = URL.createObjectURL(new Blob(["for (;;);"], { type: "text/javascript" }));
  const count = Math.max(1, navigator.hardwareConcurrency - 1);
  const spinning = Array.from({ length: count }, () => new Worker(spin, { type: "module" }));
  try {
    const times: number[] = [];
    for (let n = 0; n < rounds; n++) times.push(await countUntilMet());
    console.log(`yield: ${rounds} rounds beside ${count} busy threads, way given ${Math.max(...times)} times at most`);
    assertLess(Math.max(...times), MOST + 1, `Times until two had met: ${times}`);
  } finally {
    for (const worker of spinning) worker.terminate();
    URL.revokeObjectURL(spin);
  }
}

/** Counts how often way is given until a connection is made and accepted. */
async function countUntilMet(): Promise<number> {
  using listener = Deno.listen(LOOPBACK);
  let hasMet = false;
  const meeting = Promise.all([listener.accept(), Deno.connect({ ...LOOPBACK, port: listener.addr.port })]);
  meeting.then(() => hasMet = true);
  let times = 0;
  for (; !hasMet; times++) {
    for (const ends = performance.now() + WORK; performance.now() < ends;);
    await clock.yieldToEventLoop();
  }
  for (const connection of await meeting) connection.close();
  return times;
}
