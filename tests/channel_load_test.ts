/**
 * A channel under load: rows 49 to 53 of docs/channel.md.
 *
 * @module
 */

import {
  assert,
  assertEquals,
  assertFalse,
  assertGreaterOrEqual,
  assertLess,
  assertLessOrEqual,
  assertStrictEquals,
} from "@std/assert";
import { bounded, Channel, type Receiver, unbounded } from "../channel.ts";
import { assertUnsent, REASON, shuffle } from "./channel_support.ts";
import { collectGarbage } from "./garbage.ts";

Deno.test("row 49: the buffer of a channel shrinks after 1 000 000 values were received", () => {
  const heap = () => {
    collectGarbage();
    return Deno.memoryUsage().heapUsed;
  };
  const { sender, receiver } = unbounded<number>();
  const count = 1_000_000;
  const queue = () => {
    for (let value = 0; value < count; value++) sender.trySend(value);
  };
  const drain = (values: number) => {
    for (let n = 0; n < values; n++) receiver.tryReceive();
  };
  // Warm up: compiled code is on the heap, too.
  queue();
  drain(count);
  const empty = heap();
  queue();
  const full = heap();
  assertEquals(receiver.size, count);
  drain(count - 1);
  const drained = heap();
  assertEquals(receiver.tryReceive(), { state: "ok", value: count - 1 });
  assertLessOrEqual((full - empty) / count, 10); // bytes per value: a small integer is stored in its slot
  assertGreaterOrEqual((full - empty) / count, 4); // the heap did grow
  assertLess(drained - empty, 200_000);
});

Deno.test("row 50: 20 000 receives aborted in random order reject, with one listener per signal and no wait left", async () => {
  const channel = new Channel<number>();
  for (const signals of [20_000, 1]) {
    const controllers = Array.from({ length: signals }, () => new AbortController());
    let [added, removed] = [0, 0];
    for (const { signal } of controllers) {
      const { addEventListener, removeEventListener } = signal;
      signal.addEventListener = (...args: Parameters<typeof addEventListener>) => {
        added++;
        addEventListener.apply(signal, args);
      };
      signal.removeEventListener = (...args: Parameters<typeof removeEventListener>) => {
        removed++;
        removeEventListener.apply(signal, args);
      };
    }
    const settled = Promise.allSettled(
      Array.from({ length: 20_000 }, (_, i) => channel.receive({ signal: controllers[i % signals]!.signal })),
    );
    shuffle(controllers);
    for (const controller of controllers) controller.abort(REASON);
    assert((await settled).every((result) => result.status === "rejected" && result.reason === REASON));
    assertEquals([added, removed], [signals, signals]);
    assertFalse(channel.trySend(1));
  }
});

Deno.test("row 51: a channel stays consistent when onDrop, an abort listener or a getter named then calls it", async () => {
  // A listener of the same signal sends to the receive that is about to be aborted, before or after it is.
  for (const first of [true, false]) {
    const channel = new Channel<number>({ capacity: 4 });
    const controller = new AbortController();
    const { signal } = controller;
    const callBack = () => {
      channel.trySend(1);
      channel.trySend(2);
    };
    if (first) signal.addEventListener("abort", callBack);
    const received = channel.receive({ signal });
    const second = channel.receive({ signal });
    if (!first) signal.addEventListener("abort", callBack);
    controller.abort(REASON);
    const results = await Promise.allSettled([received, second]);
    const got = results.flatMap((r) => r.status === "fulfilled" ? [r.value] : []);
    assertEquals([...got, ...channel.drain()], [1, 2]);
  }

  const events: unknown[] = [];
  const { sender, receiver } = bounded<number>(2, {
    onDrop(value) {
      events.push(value, sender.trySend(9), sender.size, receiver.tryReceive().state, sender.receiverCount);
      receiver.close();
      sender.close();
    },
  });
  sender.signal.addEventListener("abort", () => {
    receiver.close();
    events.push("signal", sender.senderCount);
  });
  sender.trySend(1);
  sender.trySend(2);
  const waiting = sender.send(3);
  receiver.close();
  assertEquals(events, [1, false, 0, "closed", 0, 2, false, 0, "closed", 0, "signal", 0]);
  await assertUnsent(waiting, 3);

  // Resolving a promise reads `then` of its value at once, so a getter runs in the middle of a send.
  const channel = new Channel<unknown>({ capacity: 2 });
  const seen: unknown[] = [];
  const curious = {
    get then() {
      seen.push(channel.size, channel.tryReceive().state, channel.trySend("nested"));
      return undefined;
    },
  };
  const received = channel.receive();
  const next = channel.receive();
  assert(channel.trySend(curious));
  assertStrictEquals(await received, curious);
  assertEquals(await next, "nested");
  assertEquals(seen.slice(0, 3), [0, "empty", true]);
});

Deno.test("row 52: 4 senders and 4 receivers move 100 000 values, each once and in order per sender", async () => {
  const each = 25_000;
  const { sender, receiver } = bounded<[from: number, value: number]>(3);
  const sending = [0, 1, 2, 3].map(async (from) => {
    using mine = sender.clone();
    for (let value = 0; value < each; value++) await mine.send([from, value]);
  });
  sender.close();
  const seen = [0, 1, 2, 3].map(() => new Uint8Array(each));
  const receiving = [0, 1, 2, 3].map(async () => {
    using mine = receiver.clone();
    const last = [-1, -1, -1, -1];
    for await (const [from, value] of mine) {
      if (value <= last[from]!) throw new Error(`${value} of ${from} after ${last[from]}`);
      last[from] = value;
      seen[from]![value]!++;
    }
  });
  receiver.close();
  await Promise.all([...sending, ...receiving]);
  assert(seen.every((counts) => counts.every((count) => count === 1)));
  assertEquals([sender.senderCount, receiver.receiverCount, receiver.size], [0, 0, 0]);
});

Deno.test("row 53: a ring of 32 channels, 1000 channels sent through a channel and 250 waiting receivers complete", async () => {
  const ring = Array.from({ length: 32 }, () => new Channel<number>());
  const nodes = ring.map(async (channel, i) => {
    const next = ring[(i + 1) % 32]!;
    for (let lap = 0; lap < 100; lap++) {
      if (i === 0) {
        await next.send(lap * 100);
        assertEquals(await channel.receive(), lap * 100 + 31);
      } else await next.send(await channel.receive() + 1);
    }
  });
  await Promise.all(nodes);

  const outer = new Channel<Receiver<number>>();
  const inners = (async () => {
    for (let i = 0; i < 1000; i++) {
      const { sender, receiver } = bounded<number>(1);
      await sender.send(i);
      sender.close();
      await outer.send(receiver);
    }
    outer.close();
  })();
  let expected = 0;
  for await (using inner of outer) assertEquals(await Array.fromAsync(inner), [expected++]);
  assertEquals(expected, 1000);
  await inners;

  const { sender, receiver } = bounded<number>(0);
  const waiting = Array.from({ length: 250 }, () => receiver.clone().receive());
  for (let i = 0; i < 250; i++) await sender.send(i);
  assertEquals(await Promise.all(waiting), waiting.map((_, i) => i));
});
