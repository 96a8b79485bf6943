/** Time slices: a loop that never blocks yields to the event loop, and no other loop does. */

import { assert, assertEquals, assertStrictEquals } from "@std/assert";
import { clock } from "../_clock.ts";
import { MAX_SLICE_MS, TimeSlice } from "../_timeslice.ts";
import { memoryPair, stopTime } from "./support.ts";

Deno.test.beforeEach(stopTime);

const ALMOST_MS = MAX_SLICE_MS - 0.1;

/** Counts how often the event loop is yielded to while `run` executes. */
async function countYields(run: () => Promise<void>): Promise<number> {
  const { yieldToEventLoop } = clock;
  let times = 0;
  clock.yieldToEventLoop = () => {
    times++;
    return yieldToEventLoop();
  };
  try {
    await run();
  } finally {
    clock.yieldToEventLoop = yieldToEventLoop;
  }
  return times;
}

Deno.test("TimeSlice.observe() starts a new slice after an operation that waits, not after one that settles at once", async () => {
  const slice = new TimeSlice();
  const now = clock.now();
  slice.start(now);
  assertEquals([slice.isExpired(now + ALMOST_MS), slice.isExpired(now + MAX_SLICE_MS)], [false, true]);
  for (const make of [() => Promise.resolve(), () => Promise.reject(new Error("on purpose"))]) {
    slice.observe(make());
    await pass();
    assertEquals(slice.isExpired(now + 9), true);
  }
  slice.observe(Promise.withResolvers<void>().promise);
  await pass();
  // The first call starts the new slice.
  const times = [0, ALMOST_MS, MAX_SLICE_MS].map((elapsed) => now + 20 + elapsed);
  assertEquals(times.map((time) => slice.isExpired(time)), [false, false, true]);
});

Deno.test("TimeSlice.hasLasted() is true 2 ms after the first call in one pass of the event loop, and starts anew in the next", async () => {
  const slice = new TimeSlice();
  const now = clock.now();
  for (let n = 0; n < 3; n++) {
    const begun = now + 100 * n;
    assertEquals([0, ALMOST_MS, MAX_SLICE_MS, 50].map((elapsed) => slice.hasLasted(begun + elapsed)), [
      false,
      false,
      true,
      true,
    ]);
    assertEquals(slice.isWatched, true);
    await pass();
    assertEquals(slice.isWatched, false);
  }
});

Deno.test("TimeSlice.yieldToEventLoop() yields once for concurrent calls", async () => {
  const slices = [new TimeSlice(), new TimeSlice()];
  const before = clock.now();
  for (const slice of slices) slice.start(before - 100);
  assert(slices.every((slice) => slice.isExpired(before)));
  assertEquals(
    await countYields(async () => void await Promise.all(slices.map((slice) => slice.yieldToEventLoop()))),
    1,
  );
  assertEquals(slices.map((slice) => slice.isExpired(before)), [false, false]);
});

Deno.test("TimeSlice.yieldToEventLoop() resumes in order, and yields again after 2 ms of resumed loops", async () => {
  const { now } = clock;
  const order: number[] = [];
  let worked = 0;
  clock.now = () => now() + worked;
  const loop = async (n: number) => {
    await new TimeSlice().yieldToEventLoop();
    order.push(n);
    worked += MAX_SLICE_MS / 2;
  };
  assertEquals(await countYields(async () => void await Promise.all([1, 2, 3, 4, 5].map(loop))), 3);
  assertEquals(order, [1, 2, 3, 4, 5]);
});

Deno.test("clock.yieldToEventLoop() lasts for the 61 tasks after which Deno polls its sockets, and for few more", async () => {
  let passes = 0;
  let hasYielded = false;
  const counting = (async () => {
    for (; !hasYielded; passes++) await pass();
  })();
  await clock.yieldToEventLoop();
  hasYielded = true;
  await counting;
  assert(passes >= 61 && passes < 80, `${passes} passes of the event loop`);
});

Deno.test("clock.yieldToEventLoop() without setImmediate uses a digest, or resolves at once without crypto.subtle", async () => {
  const { setImmediate } = globalThis;
  Reflect.deleteProperty(globalThis, "setImmediate");
  const { clock } = await import("../_clock.ts?browser").finally(() => Object.assign(globalThis, { setImmediate }));
  assert(await clock.yieldToEventLoop() instanceof ArrayBuffer);
  Object.defineProperty(crypto, "subtle", { value: undefined, configurable: true });
  try {
    assertEquals(await clock.yieldToEventLoop(), undefined);
  } finally {
    // The property of the prototype is visible again.
    Reflect.deleteProperty(crypto, "subtle");
  }
});

Deno.test("clock.pass() without setImmediate calls back in order, except for cancelled calls", async () => {
  const { setImmediate, MessageChannel } = globalThis;
  Reflect.deleteProperty(globalThis, "setImmediate");
  // Ports of a MessageChannel would outlive the test: tests/browser_test.ts covers them.
  Reflect.deleteProperty(globalThis, "MessageChannel");
  try {
    const { clock } = await import("../_clock.ts?runtime");
    const seen: string[] = [];
    clock.pass(() => seen.push("first"));
    clock.clearPass(clock.pass(() => seen.push("cancelled")));
    clock.clearPass(undefined);
    await new Promise<void>((resolve) => void clock.pass(resolve));
    assertEquals(seen, ["first"]);
    await Promise.resolve();
    await new Promise<void>((resolve) => void clock.pass(resolve));
  } finally {
    Object.assign(globalThis, { setImmediate, MessageChannel });
  }
});

Deno.test("TimeSlice.sleep() waits for a timer and starts a new slice", async () => {
  const slice = new TimeSlice();
  slice.start(clock.now() - 100);
  const now = await slice.sleep();
  assertEquals([slice.isExpired(now + ALMOST_MS), slice.isExpired(now + MAX_SLICE_MS)], [false, true]);
});

Deno.test("TimeSlice.end() ends a sleep at once, and returns the promise of a pending yield", async () => {
  const slice = new TimeSlice();
  const sleeping = slice.sleep();
  assertEquals(slice.end(), undefined);
  await sleeping;
  const yielding = slice.yieldToEventLoop();
  const pending = slice.end();
  assert(pending !== undefined);
  await Promise.all([yielding, pending]);
});

const { yieldToEventLoop, sleep } = clock;

Deno.test("memoryPair() shortens yields and sleeps in the test that calls it", () => {
  memoryPair();
  assert(clock.yieldToEventLoop !== yieldToEventLoop && clock.sleep !== sleep);
});

Deno.test("memoryPair() leaves the clock of the next test unchanged", () => {
  assertStrictEquals(clock.yieldToEventLoop, yieldToEventLoop);
  assertStrictEquals(clock.sleep, sleep);
});

/** Waits for one pass of the event loop. */
function pass(): Promise<void> {
  return new Promise((resolve) => void clock.pass(resolve));
}
