/** Turns: who goes on and on lets others run, and only then. */

import { assert, assertEquals, assertLess, assertStrictEquals } from "@std/assert";
import { clock } from "../_clock.ts";
import { TimeSlice } from "../_timeslice.ts";
import { LOOPBACK, memoryPair } from "./support.ts";

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

Deno.test("TimeSlice: sockets are looked at each time way is given, however busy the machine is", async () => {
  const spin = URL.createObjectURL(new Blob(["for (;;);"], { type: "text/javascript" }));
  const count = Math.max(1, navigator.hardwareConcurrency - 1);
  const others = Array.from({ length: count }, () => new Worker(spin, { type: "module" }));
  try {
    using listener = Deno.listen(LOOPBACK);
    const turns: number[] = [];
    for (let n = 0; n < 50; n++) {
      let isDone = false;
      const meeting = Promise.all([listener.accept(), Deno.connect({ ...LOOPBACK, port: listener.addr.port })]);
      meeting.then(() => isDone = true);
      turns[n] = 0;
      for (; !isDone; turns[n]!++) {
        for (const ends = performance.now() + 1; performance.now() < ends;);
        await clock.yieldToEventLoop();
      }
      for (const connection of await meeting) connection.close();
    }
    assertLess(Math.max(...turns), 3, `Turns until two had met: ${turns}`);
  } finally {
    for (const other of others) other.terminate();
    URL.revokeObjectURL(spin);
  }
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
