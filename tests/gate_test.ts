/**
 * Gate: each wait ends by its notification, signal, timeout or close, and an abort loses no notification.
 *
 * @module
 */

import { assertEquals, assertRejects, assertStrictEquals } from "@std/assert";
import { Gate } from "../_gate.ts";
import { ChannelClosedError } from "../channel.ts";
import { REASON, stateOf } from "./channel_support.ts";
import { assertTimeout, reasonOf } from "./errors.ts";
import { countListeners, ManualClock, microtasks } from "./support.ts";

Deno.test("Gate.notifyOne() passes a lock on, so that one task at a time holds it", async () => {
  const queue = new Gate();
  let isLocked = false;
  let [inside, most, finished] = [0, 0, 0];
  await Promise.all(Array.from({ length: 50 }, async (_, n) => {
    for (let round = 0; round < 20; round++) {
      if (isLocked) await queue.wait();
      isLocked = true;
      most = Math.max(most, ++inside);
      await microtasks((n + round) % 3);
      inside--;
      isLocked = queue.notifyOne();
    }
    finished++;
  }));
  assertEquals([most, finished, isLocked], [1, 50, false]);
});

Deno.test("Gate.notifyOne() resolves the oldest wait, and is dropped without one", async () => {
  const gate = new Gate();
  assertEquals(gate.notifyOne(), false);
  const waits = [gate.wait(), gate.wait()];
  assertEquals(await Promise.all(waits.map(stateOf)), ["pending", "pending"]);
  assertEquals(gate.notifyOne(), true);
  assertEquals(await Promise.all(waits.map(stateOf)), ["resolved", "pending"]);
  gate.notifyOne();
  await waits[1];
});

Deno.test("Gate.notifyAll() resolves all present waits, and no later one", async () => {
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

Deno.test("Gate.wait() rejects with the reason of an abort, and the notification goes to the next wait", async () => {
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
