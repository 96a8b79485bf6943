/**
 * The run of a seed without sessions: both ends of a resumable connection write, read and end their direction by
 * themselves, so one direction may go on long after the other has ended.
 *
 * @module
 */

import { KEEP } from "../../transport.ts";
import { pattern, writeAll } from "../support.ts";
import { Carriers } from "./carriers.ts";
import type { CarriersPlan } from "./carriers_plan.ts";
import { other, type SideName } from "./invariants.ts";
import type { Plan } from "./plan.ts";
import type { Random } from "./random.ts";
import type { Scheduler } from "./scheduler.ts";
import type { Watch } from "./wire.ts";

const SIDES = ["client", "server"] as const;
// In virtual milliseconds, above the duration of any run.
const LONGEST = 3_600_000;
// Bytes of one direction. Larger: slower; smaller: fewer records that wait for an acknowledgement.
const MOST_BYTES = 300_000;
// Longest pause of an end between two operations, in milliseconds.
const LONGEST_PAUSE = 3000;

/** What the run needs from the simulation. */
export interface BytesWorld {
  readonly plan: Plan & { readonly carriers: CarriersPlan };
  readonly random: Random;
  readonly scheduler: Scheduler;
  trace(line: string): void;
  fail(message: string): void;
  fault(kind: string): void;
}

/** Runs the exchange to its end. Returns the number of bytes that were read. */
export async function exchangeBytes(world: BytesWorld): Promise<number> {
  const { plan, random, scheduler, trace, fail } = world;
  // Without frames, only the bytes are checked.
  const watch = (): Watch => ({ sent: (bytes) => bytes, asked() {}, delivered() {}, broke() {} });
  const carriers = new Carriers({ ...world, rules: { watch } });
  const most = Math.min(plan.mostBytes, MOST_BYTES);
  const pause = async () => {
    if (random.oneIn(4)) await scheduler.sleep(random.skewed(random.oneIn(5) ? LONGEST_PAUSE : 50));
  };
  // As a session does with what it writes at once. Returns `false` if the connection does not take the memory.
  const writeKept = async (side: SideName, part: Uint8Array): Promise<boolean> => {
    const transport = carriers.transports[side];
    const end = transport.headroom + part.length;
    // Few sizes, so that memory is used again.
    const memory = new Uint8Array(2 ** Math.ceil(Math.log2(end)));
    memory.set(part, transport.headroom);
    const kept = transport[KEEP](memory, end);
    if (kept === undefined) return false;
    // The replacement belongs to this end, which may write into it at once.
    kept.replacement.fill(0xee);
    const count = await kept.writing;
    await writeAll(transport, memory.subarray(transport.headroom + count, end));
    return true;
  };
  const write = async (side: SideName) => {
    const bytes = pattern(random.oneIn(6) ? 1 : random.skewed(most), random.below(1000) + 1);
    for (let at = 0; at < bytes.length;) {
      await pause();
      const part = bytes.subarray(at, at + random.skewed(plan.mostPiece));
      if (!random.oneIn(3) || !await writeKept(side, part)) await writeAll(carriers.transports[side], part);
      at += part.length;
    }
    await pause();
    trace(`${side} ends writing after ${bytes.length}`);
    try {
      await carriers.transports[side].closeWrite();
      trace(`${side} has ended writing`);
    } catch (error) {
      // The last acknowledgement may get lost when the peer has closed. Whether the end was read is checked below.
      trace(`${side} has not seen the end of its writing: ${error}`);
    }
  };
  let received = 0;
  const read = async (side: SideName) => {
    const p = new Uint8Array(plan.mostPiece);
    for (;;) {
      await pause();
      const count = await carriers.transports[side].read(p.subarray(0, random.skewed(p.length)));
      if (count === null) break;
      received += count;
    }
    trace(`${side} has read the end`);
  };
  let left = 0;
  for (const side of SIDES) {
    left++;
    Promise.all([write(side), read(side)])
      .catch((error) => fail(`The ${side} failed: ${error instanceof Error ? error.stack : error}`))
      .finally(() => {
        left--;
        carriers.transports[side].close();
      });
  }
  const isDone = await scheduler.run(() => left === 0, scheduler.now + LONGEST);
  if (!isDone) fail("An end never settled");
  for (const side of SIDES) {
    if (!carriers.wasEndRead(side)) fail(`The ${other(side)} did not read the end of the ${side}`);
  }
  const isClosed = () => scheduler.timers === 0 && carriers.isClosed();
  await scheduler.run(isClosed, scheduler.now + LONGEST);
  carriers.end();
  if (!await scheduler.run(isClosed, scheduler.now + LONGEST)) {
    fail(`${scheduler.timers} timers are left, or a carrier is open`);
  }
  return received;
}
