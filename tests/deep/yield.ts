/**
 * Checks that every yield to the event loop polls sockets, while all other cores are busy.
 *
 * @module
 */

import { assertLess } from "@std/assert";
import { clock } from "../../_clock.ts";
import { LOOPBACK } from "../support.ts";
import { integer, parse } from "./shared/options.ts";

/** One line for the list of long tests. */
export const description = "Yields on a busy machine until a connection is accepted: [--rounds 50]";

// Milliseconds of work between two yields.
const WORK = 1;
// Maximum number of yields until the connection is accepted.
const MOST = 2;

/** Runs the rounds; rejects if a connection needs more than {@linkcode MOST} yields. */
export async function run(args: string[]): Promise<void> {
  const { rounds } = parse(args, { rounds: integer(50, 1) });
  const spin = URL.createObjectURL(new Blob(["for (;;);"], { type: "text/javascript" }));
  const count = Math.max(1, navigator.hardwareConcurrency - 1);
  const spinning = Array.from({ length: count }, () => new Worker(spin, { type: "module" }));
  try {
    const times: number[] = [];
    for (let n = 0; n < rounds; n++) times.push(await countUntilAccepted());
    console.log(`yield: ${rounds} rounds beside ${count} busy threads, ${Math.max(...times)} yields at most`);
    assertLess(Math.max(...times), MOST + 1, `Yields until the connection was accepted: ${times}`);
  } finally {
    for (const worker of spinning) worker.terminate();
    URL.revokeObjectURL(spin);
  }
}

/** Counts the yields until a connection is accepted. */
async function countUntilAccepted(): Promise<number> {
  using listener = Deno.listen(LOOPBACK);
  let isAccepted = false;
  const meeting = Promise.all([listener.accept(), Deno.connect({ ...LOOPBACK, port: listener.addr.port })]);
  meeting.then(() => isAccepted = true);
  let times = 0;
  for (; !isAccepted; times++) {
    for (const ends = performance.now() + WORK; performance.now() < ends;);
    await clock.yieldToEventLoop();
  }
  for (const connection of await meeting) connection.close();
  return times;
}
