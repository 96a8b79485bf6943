/** The cost to a peer of each frame without effect, and the pause that follows. */

import { assertEquals } from "@std/assert";
import { FloodGuard } from "../_flood.ts";
import { HEADER_LENGTH } from "../frame.ts";
import { KiB, MiB } from "./support.ts";

/** How many calls use up the budget. */
function times(act: (flood: FloodGuard) => void): number {
  const flood = new FloodGuard();
  let count = 0;
  for (; !flood.isExhausted; count++) act(flood);
  return count;
}

const prices: [what: string, count: number, act: (flood: FloodGuard) => void][] = [
  ["8192 useless frames", 8192, (flood) => flood.uselessFrame()],
  ["128 empty streams", 128, (flood) => flood.emptyStream()],
  ["128 aborted streams", 128, (flood) => flood.abortedStream()],
  ["64 refused streams", 64, (flood) => flood.refusedStream()],
  ["64 small frames of unwanted data", 64, (flood) => flood.unwantedData(8 * KiB - 1)],
  ["32 frames of 8 KiB of unwanted data", 32, (flood) => flood.unwantedData(8 * KiB)],
  ["8 frames of 64 KiB of unwanted data", 8, (flood) => flood.unwantedData(64 * KiB - 1)],
  ["64 small frames of unexpected late data", 64, (flood) => flood.lateData(0)],
];

for (const [what, count, act] of prices) {
  Deno.test(`FloodGuard: ${what} use up the budget`, () => assertEquals(times(act), count));
}

Deno.test("FloodGuard: each stream closed locally allows 256 KiB of late data without cost, headers included", () => {
  const flood = new FloodGuard();
  flood.expectLateData();
  flood.expectLateData();
  const frame = 1000 + HEADER_LENGTH;
  let bytes = 0;
  for (; !flood.isExhausted; bytes += frame) flood.lateData(1000);
  // After that, 64 frames use up the budget.
  assertEquals(bytes - 64 * frame, Math.floor(512 * KiB / frame) * frame);
});

Deno.test("FloodGuard: late data is without cost up to 64 MiB, for any number of closed streams", () => {
  const flood = new FloodGuard();
  for (let n = 0; n < 10_000; n++) flood.expectLateData();
  let bytes = 0;
  for (; !flood.isExhausted; bytes += 64 * KiB) flood.lateData(64 * KiB - HEADER_LENGTH);
  // The last eight frames had a cost.
  assertEquals(Math.floor(bytes / MiB), 64);
});

Deno.test("FloodGuard: a pause renews the budget, and a second pause follows one that took longer than 6 ms", () => {
  const flood = new FloodGuard();
  for (let n = 0; n < 8192; n++) flood.uselessFrame();
  assertEquals([flood.isExhausted, flood.startPause(), flood.isExhausted], [true, 4, false]);
  assertEquals([4, 6, 7, 25, 1000].map((elapsed) => flood.furtherPause(elapsed)), [0, 0, 14, 50, 50]);
});
