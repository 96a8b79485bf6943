/** Mutex and Gate: each wait ends in order, and nothing is lost when one is aborted. */

import { assertEquals, assertRejects, assertStrictEquals } from "@std/assert";
import { Gate, Mutex } from "../_lock.ts";
import { ChannelClosedError } from "../channel.ts";
import { REASON, stateOf } from "./channel_support.ts";
import { assertTimeout, reasonOf } from "./failures.ts";
import { countListeners, hops, ManualClock, NO_SIGNAL } from "./support.ts";

Deno.test("Mutex.tryAcquire() locks only when unlocked", () => {
  const mutex = new Mutex();
  assertEquals(mutex.isLocked, false);
  assertEquals([mutex.tryAcquire(), mutex.isLocked], [true, true]);
  assertEquals([mutex.tryAcquire(), mutex.isLocked], [false, true]);
  mutex.release();
  assertEquals([mutex.isLocked, mutex.tryAcquire()], [false, true]);
});

Deno.test("Mutex.acquire() locks in the same step when unlocked", async () => {
  const mutex = new Mutex();
  const acquired = mutex.acquire({ signal: AbortSignal.abort(REASON) });
  assertEquals(mutex.isLocked, true);
  await acquired;
});

Deno.test("Mutex.release() passes the lock to the waits in the order of their calls", async () => {
  const mutex = new Mutex();
  await mutex.acquire();
  const order: number[] = [];
  for (let n = 1; n <= 3; n++) mutex.acquire(NO_SIGNAL).then(() => order.push(n));
  for (let n = 1; n <= 3; n++) {
    await hops();
    assertEquals(order.length, n - 1);
    mutex.release();
    // Before the wait has even settled: nothing can lock in between.
    assertEquals([mutex.isLocked, mutex.tryAcquire()], [true, false]);
  }
  await hops();
  assertEquals(order, [1, 2, 3]);
  mutex.release();
  assertEquals(mutex.isLocked, false);
});

Deno.test("Mutex.acquire() rejects with the reason when aborted, and the lock goes to the next wait", async () => {
  const mutex = new Mutex();
  await mutex.acquire();
  const controller = new AbortController();
  const listeners = countListeners(controller.signal);
  const aborted = mutex.acquire({ signal: controller.signal });
  const next = mutex.acquire();
  controller.abort(REASON);
  assertStrictEquals(await reasonOf(aborted), REASON);
  assertEquals([listeners(), await stateOf(next), mutex.isLocked], [0, "pending", true]);
  mutex.release();
  await next;
  assertEquals(mutex.isLocked, true);
});

Deno.test("Mutex.release() unlocks when the only wait was aborted", async () => {
  const mutex = new Mutex();
  await mutex.acquire();
  const controller = new AbortController();
  const aborted = mutex.acquire({ signal: controller.signal });
  controller.abort(REASON);
  assertStrictEquals(await reasonOf(aborted), REASON);
  mutex.release();
  assertEquals([mutex.isLocked, mutex.tryAcquire()], [false, true]);
});

Deno.test("Mutex.acquire() resolves when the abort comes after the release that passed the lock on", async () => {
  const mutex = new Mutex();
  await mutex.acquire();
  const controller = new AbortController();
  const acquired = mutex.acquire({ signal: controller.signal });
  mutex.release();
  controller.abort(REASON);
  await acquired;
  assertEquals(mutex.isLocked, true);
  mutex.release();
  assertEquals(mutex.isLocked, false);
});

Deno.test("Mutex.acquire() rejects with a TimeoutError after its timeout, and the lock stays with its holder", async () => {
  using time = new ManualClock();
  const mutex = new Mutex();
  await mutex.acquire({ timeout: 0 });
  await assertTimeout(mutex.acquire({ timeout: 0 }));
  const late = mutex.acquire({ timeout: 10 });
  await time.advance(9);
  assertEquals(await stateOf(late), "pending");
  const rejected = assertTimeout(late);
  await time.advance(1);
  await rejected;
  assertEquals([time.pending, mutex.isLocked], [0, true]);
  mutex.release();
  assertEquals(mutex.isLocked, false);
});

Deno.test("Mutex keeps tasks out of each other's steps, however they wait", async () => {
  const mutex = new Mutex();
  let [inside, most, finished] = [0, 0, 0];
  await Promise.all(Array.from({ length: 50 }, async (_, n) => {
    for (let round = 0; round < 20; round++) {
      if (!mutex.tryAcquire()) await mutex.acquire();
      most = Math.max(most, ++inside);
      await hops((n + round) % 3);
      inside--;
      mutex.release();
    }
    finished++;
  }));
  assertEquals([most, finished, mutex.isLocked], [1, 50, false]);
});

Deno.test("Gate.notifyOne() lets the oldest wait through, and is lost without one", async () => {
  const gate = new Gate();
  gate.notifyOne();
  const waits = [gate.wait(), gate.wait()];
  assertEquals(await Promise.all(waits.map(stateOf)), ["pending", "pending"]);
  gate.notifyOne();
  assertEquals(await Promise.all(waits.map(stateOf)), ["resolved", "pending"]);
  gate.notifyOne();
  await waits[1];
});

Deno.test("Gate.notifyAll() lets all present waits through, and no later one", async () => {
  const gate = new Gate();
  gate.notifyAll();
  const waits = [gate.wait(), gate.wait(), gate.wait()];
  const later = waits[0]!.then(() => gate.wait());
  gate.notifyAll();
  await Promise.all(waits);
  assertEquals(await stateOf(later), "pending");
  gate.notifyAll();
  await later;
});

Deno.test("Gate.wait() rejects with the reason when aborted, and the notification goes to the next wait", async () => {
  const gate = new Gate();
  const controller = new AbortController();
  const listeners = countListeners(controller.signal);
  const aborted = gate.wait({ signal: controller.signal });
  const next = gate.wait();
  controller.abort(REASON);
  assertStrictEquals(await reasonOf(aborted), REASON);
  assertEquals(listeners(), 0);
  gate.notifyOne();
  await next;
});

Deno.test("Gate.wait() resolves when the abort comes after the notification", async () => {
  const gate = new Gate();
  const controller = new AbortController();
  const wait = gate.wait({ signal: controller.signal });
  gate.notifyOne();
  controller.abort(REASON);
  await wait;
});

Deno.test("Gate.wait() rejects with a TimeoutError after its timeout", async () => {
  using time = new ManualClock();
  const gate = new Gate();
  const late = assertTimeout(gate.wait({ timeout: 10 }));
  const other = gate.wait({ timeout: 20 });
  await time.advance(10);
  await late;
  gate.notifyOne();
  await other;
  assertEquals(time.pending, 0);
});

Deno.test("Gate.close() rejects present and later waits", async () => {
  const gate = new Gate();
  const rejected = [gate.wait(), gate.wait({ timeout: 1000 })].map((wait) =>
    assertRejects(() => wait, ChannelClosedError)
  );
  gate.close();
  gate.close();
  await Promise.all(rejected);
  await assertRejects(() => gate.wait(), ChannelClosedError);
  gate.notifyOne();
  gate.notifyAll();
  await assertRejects(() => gate.wait(), ChannelClosedError);
});
