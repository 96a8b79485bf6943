/** Turns: who goes on and on lets others run, and only then. */

import { assert, assertEquals, assertStrictEquals } from "@std/assert";
import { clock } from "../clock.ts";
import { Turn } from "../turn.ts";
import { memoryPair, stopTime } from "./support.ts";

Deno.test.beforeEach(stopTime);

/** Counts how often way is given, while `run` does something. */
async function countGiven(run: () => Promise<void>): Promise<number> {
  const { giveWay } = clock;
  let times = 0;
  clock.giveWay = () => {
    times++;
    return giveWay();
  };
  try {
    await run();
  } finally {
    clock.giveWay = giveWay;
  }
  return times;
}

Deno.test("Turn: an operation that waits begins a new one, one that settles at once does not", async () => {
  const turn = new Turn();
  const now = clock.now();
  turn.begin(now);
  assertEquals([turn.isLong(now + 1.9), turn.isLong(now + 2)], [false, true]);
  for (const make of [() => Promise.resolve(), () => Promise.reject(new Error("on purpose"))]) {
    turn.watch(make());
    await pass();
    assertEquals(turn.isLong(now + 9), true);
  }
  turn.watch(Promise.withResolvers<void>().promise);
  await pass();
  assertEquals([turn.isLong(now + 20), turn.isLong(now + 21.9), turn.isLong(now + 22)], [false, false, true]);
});

Deno.test("Turn: way is given once for all who give it together", async () => {
  const turns = [new Turn(), new Turn()];
  const before = clock.now();
  for (const turn of turns) turn.begin(before - 100);
  assert(turns.every((turn) => turn.isLong(before)));
  assertEquals(await countGiven(async () => void await Promise.all(turns.map((turn) => turn.giveWay()))), 1);
  assertEquals(turns.map((turn) => turn.isLong(before)), [false, false]);
});

Deno.test("clock.giveWay() lets the 61 tasks pass after which Deno polls its sockets, and few more", async () => {
  let passes = 0;
  let isGiven = false;
  const counting = (async () => {
    for (; !isGiven; passes++) await pass();
  })();
  await clock.giveWay();
  isGiven = true;
  await counting;
  assert(passes >= 61 && passes < 80, `${passes} passes of the event loop`);
});

Deno.test("Turn: way is given in a browser, with a digest where one can be made", async () => {
  const { setImmediate } = globalThis;
  Reflect.deleteProperty(globalThis, "setImmediate");
  const { clock } = await import("../clock.ts?browser").finally(() => Object.assign(globalThis, { setImmediate }));
  assert(await clock.giveWay() instanceof ArrayBuffer);
  Object.defineProperty(crypto, "subtle", { value: undefined, configurable: true });
  try {
    assertEquals(await clock.giveWay(), undefined);
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
    const { clock } = await import("../clock.ts?runtime");
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

Deno.test("Turn: a rest is a timer, and begins a new turn", async () => {
  const turn = new Turn();
  turn.begin(clock.now() - 100);
  const now = await turn.rest();
  assertEquals([turn.isLong(now + 1.9), turn.isLong(now + 2)], [false, true]);
});

Deno.test("Turn: its end ends a rest at once, and tells of way that is being given", async () => {
  const turn = new Turn();
  const resting = turn.rest();
  assertEquals(turn.end(), undefined);
  await resting;
  const giving = turn.giveWay();
  const others = turn.end();
  assert(others !== undefined);
  await Promise.all([giving, others]);
});

const { giveWay, rest } = clock;

Deno.test("memoryPair() shortens rests in the test that calls it", () => {
  memoryPair();
  assert(clock.giveWay !== giveWay && clock.rest !== rest);
});

Deno.test("memoryPair() leaves the clock of the next test alone", () => {
  assertStrictEquals(clock.giveWay, giveWay);
  assertStrictEquals(clock.rest, rest);
});

/** Waits until the event loop has come round. */
function pass(): Promise<void> {
  return new Promise((resolve) => void clock.pass(resolve));
}
