/** Turns: who goes on and on lets others run, and only then. */

import { assert, assertEquals, assertStrictEquals } from "@std/assert";
import { clock } from "../_clock.ts";
import { TimeSlice } from "../_timeslice.ts";
import { memoryPair, stopTime } from "./support.ts";

Deno.test.beforeEach(stopTime);

/** Counts how often way is given, while `run` does something. */
async function countGiven(run: () => Promise<void>): Promise<number> {
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

Deno.test("TimeSlice: an operation that waits begins a new one, one that settles at once does not", async () => {
  const turn = new TimeSlice();
  const now = clock.now();
  turn.start(now);
  assertEquals([turn.isExpired(now + 1.9), turn.isExpired(now + 2)], [false, true]);
  for (const make of [() => Promise.resolve(), () => Promise.reject(new Error("on purpose"))]) {
    turn.observe(make());
    await pass();
    assertEquals(turn.isExpired(now + 9), true);
  }
  turn.observe(Promise.withResolvers<void>().promise);
  await pass();
  assertEquals([turn.isExpired(now + 20), turn.isExpired(now + 21.9), turn.isExpired(now + 22)], [false, false, true]);
});

Deno.test("TimeSlice: way is given once for all who give it together", async () => {
  const turns = [new TimeSlice(), new TimeSlice()];
  const before = clock.now();
  for (const turn of turns) turn.start(before - 100);
  assert(turns.every((turn) => turn.isExpired(before)));
  assertEquals(await countGiven(async () => void await Promise.all(turns.map((turn) => turn.yieldToEventLoop()))), 1);
  assertEquals(turns.map((turn) => turn.isExpired(before)), [false, false]);
});

Deno.test("clock.yieldToEventLoop() lets the 61 tasks pass after which Deno polls its sockets, and few more", async () => {
  let passes = 0;
  let isGiven = false;
  const counting = (async () => {
    for (; !isGiven; passes++) await pass();
  })();
  await clock.yieldToEventLoop();
  isGiven = true;
  await counting;
  assert(passes >= 61 && passes < 80, `${passes} passes of the event loop`);
});

Deno.test("TimeSlice: way is given in a browser, with a digest where one can be made", async () => {
  const { setImmediate } = globalThis;
  Reflect.deleteProperty(globalThis, "setImmediate");
  const { clock } = await import("../_clock.ts?browser").finally(() => Object.assign(globalThis, { setImmediate }));
  assert(await clock.yieldToEventLoop() instanceof ArrayBuffer);
  Object.defineProperty(crypto, "subtle", { value: undefined, configurable: true });
  try {
    assertEquals(await clock.yieldToEventLoop(), undefined);
  } finally {
    // The one of its prototype is seen again.
    Reflect.deleteProperty(crypto, "subtle");
  }
});

Deno.test("clock.pass() calls back in order where setImmediate is missing, and not what was taken back", async () => {
  const { setImmediate, MessageChannel } = globalThis;
  Reflect.deleteProperty(globalThis, "setImmediate");
  // Its ports would outlive the test: the test of the browser has them.
  Reflect.deleteProperty(globalThis, "MessageChannel");
  try {
    const { clock } = await import("../_clock.ts?runtime");
    const seen: string[] = [];
    clock.pass(() => seen.push("first"));
    clock.clearPass(clock.pass(() => seen.push("taken back")));
    clock.clearPass(undefined);
    await new Promise<void>((resolve) => void clock.pass(resolve));
    assertEquals(seen, ["first"]);
    await Promise.resolve();
    await new Promise<void>((resolve) => void clock.pass(resolve));
  } finally {
    Object.assign(globalThis, { setImmediate, MessageChannel });
  }
});

Deno.test("TimeSlice: a sleep is a timer, and begins a new turn", async () => {
  const turn = new TimeSlice();
  turn.start(clock.now() - 100);
  const now = await turn.sleep();
  assertEquals([turn.isExpired(now + 1.9), turn.isExpired(now + 2)], [false, true]);
});

Deno.test("TimeSlice: its end ends a sleep at once, and tells of way that is being given", async () => {
  const turn = new TimeSlice();
  const resting = turn.sleep();
  assertEquals(turn.end(), undefined);
  await resting;
  const giving = turn.yieldToEventLoop();
  const others = turn.end();
  assert(others !== undefined);
  await Promise.all([giving, others]);
});

const { yieldToEventLoop, sleep } = clock;

Deno.test("memoryPair() shortens rests in the test that calls it", () => {
  memoryPair();
  assert(clock.yieldToEventLoop !== yieldToEventLoop && clock.sleep !== sleep);
});

Deno.test("memoryPair() leaves the clock of the next test alone", () => {
  assertStrictEquals(clock.yieldToEventLoop, yieldToEventLoop);
  assertStrictEquals(clock.sleep, sleep);
});

/** Waits until the event loop has come round. */
function pass(): Promise<void> {
  return new Promise((resolve) => void clock.pass(resolve));
}
