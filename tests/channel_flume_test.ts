/**
 * The checks of Rust's flume, applied to this channel: the flavours array (bounded), list (unbounded) and zero
 * (rendezvous), iteration, tasks and streams.
 *
 * @module
 */
import {
  assert,
  assertEquals,
  assertFalse,
  assertInstanceOf,
  assertLess,
  assertRejects,
  assertStrictEquals,
  assertThrows,
} from "@std/assert";
import {
  bounded,
  Channel,
  ChannelClosedError,
  type DropOptions,
  type Receiver,
  select,
  type Sender,
  unbounded,
} from "../channel.ts";
import { assertTimeout } from "./errors.ts";

type Ends<T> = { sender: Sender<T>; receiver: Receiver<T> };

const flavours: { name: string; capacity: number; make: <T>(options?: DropOptions<T>) => Ends<T> }[] = [
  { name: "array of 1", capacity: 1, make: (options) => bounded(1, options) },
  { name: "array of 7", capacity: 7, make: (options) => bounded(7, options) },
  { name: "list", capacity: Infinity, make: (options) => unbounded(options) },
  { name: "zero", capacity: 0, make: (options) => bounded(0, options) },
];

const limited = flavours.filter(({ capacity }) => capacity !== Infinity);

/** Defines a test for each flavour. */
function each(
  what: string,
  test: (flavour: { make: <T>(options?: DropOptions<T>) => Ends<T>; capacity: number }) => void | Promise<void>,
  which = flavours,
): void {
  for (const flavour of which) Deno.test(`flume, ${flavour.name}: ${what}`, () => test(flavour));
}

async function unsent(sent: Promise<void>): Promise<unknown> {
  const error = await assertRejects(() => sent, ChannelClosedError);
  assert("value" in error);
  return error.value;
}

/** Generates pseudo-random numbers, the same for the same seed. */
function* random(seed: number): Generator<number, never> {
  for (;;) {
    seed = Math.imul(seed ^ (seed >>> 15), 0x2c1b3c6d) + 0x9e3779b9 | 0;
    yield (seed ^ (seed >>> 13)) >>> 0;
  }
}

/** Yields to other tasks, a random number of times. */
async function dawdle(numbers: Generator<number, never>): Promise<void> {
  for (let turns = numbers.next().value % 4; turns > 0; turns--) await undefined;
}

each("a sent value is received once, and the channel is empty afterwards", async ({ make }) => {
  const { sender, receiver } = make<number>();
  const sent = sender.send(7);
  assertEquals(await receiver.receive(), 7);
  await sent;
  const received = receiver.receive();
  assert(sender.trySend(8));
  assertEquals(await received, 8);
  assertEquals(receiver.tryReceive(), { state: "empty" });
});

each("capacity is the requested one at both ends", ({ make, capacity }) => {
  const { sender, receiver } = make<number>();
  assertEquals([sender.capacity, receiver.capacity], [capacity, capacity]);
});

each("size, isEmpty and isFull follow the number of buffered values", async ({ make, capacity }) => {
  const { sender, receiver } = make<number>();
  const expect = (size: number) => {
    for (const end of [sender, receiver]) {
      assertEquals([end.size, end.isEmpty, end.isFull], [size, size === 0, size === capacity]);
    }
  };
  expect(0);
  const room = Math.min(capacity, 100);
  for (let n = 1; n <= room; n++) {
    assert(sender.trySend(n));
    expect(n);
  }
  assertEquals(sender.trySend(0), capacity === Infinity);
  if (capacity === Infinity) assertEquals(receiver.drain().length, 101);
  else {
    const waiting = sender.send(room + 1);
    expect(room);
    for (let n = 1; n <= room + 1; n++) assertEquals(receiver.tryReceive(), { state: "ok", value: n });
    await waiting;
  }
  expect(0);
});

each("sameChannel() is true for the handles of one channel only, and the counts follow clones", ({ make }) => {
  const one = make<number>();
  const two = make<number>();
  for (const end of [one.sender, one.receiver]) {
    for (const mine of [one.sender, one.receiver]) assert(end.sameChannel(mine));
    for (const other of [two.sender, two.receiver]) assertFalse(end.sameChannel(other));
  }
  {
    using sender = one.sender.clone();
    using receiver = one.receiver.clone();
    assert(sender.sameChannel(receiver));
    assertEquals([receiver.senderCount, sender.receiverCount, sender.senderCount, receiver.receiverCount], [
      2,
      2,
      2,
      2,
    ]);
  }
  assertEquals([one.receiver.senderCount, one.sender.receiverCount], [1, 1]);
});

each(
  "trySend() returns false when full, true when a receive waits, and false when the receivers have closed",
  async ({ make, capacity }) => {
    const { sender, receiver } = make<number>();
    if (capacity !== Infinity) {
      for (let n = 0; n < capacity; n++) assert(sender.trySend(n));
      assertFalse(sender.trySend(-1));
      assertEquals(receiver.drain().length, capacity);
    }
    const received = receiver.receive();
    assert(sender.trySend(9));
    assertEquals(await received, 9);
    receiver.close();
    assertFalse(sender.trySend(10));
  },
);

each("tryReceive() returns empty, then the value, then closed only when drained", ({ make, capacity }) => {
  const { sender, receiver } = make<number>();
  assertEquals(receiver.tryReceive(), { state: "empty" });
  if (capacity > 0) sender.trySend(7);
  sender.close();
  if (capacity > 0) assertEquals(receiver.tryReceive(), { state: "ok", value: 7 });
  assertEquals(receiver.tryReceive(), { state: "closed" });
});

each(
  "receive({ timeout }) times out, resolves with a value sent in time, and rejects when the senders close",
  async ({ make }) => {
    const { sender, receiver } = make<number>();
    await assertTimeout(receiver.receive({ timeout: 1 }));
    const received = receiver.receive({ timeout: 60_000 });
    assert(sender.trySend(7));
    assertEquals(await received, 7);
    const ended = receiver.receive({ timeout: 60_000 });
    sender.close();
    await assertRejects(() => ended, ChannelClosedError);
  },
);

each(
  "send({ timeout }) times out when full, resolves when there is room in time, and rejects when the receivers close",
  async ({ make, capacity }) => {
    const { sender, receiver } = make<number>();
    if (capacity === Infinity) return await sender.send(1, { timeout: 1 }); // always has room
    for (let n = 0; n < capacity; n++) sender.trySend(n);
    await assertTimeout(sender.send(100, { timeout: 1 }));
    const sent = sender.send(101, { timeout: 60_000 });
    assertEquals(receiver.drain(), [...Array(capacity).keys(), 101]);
    await sent;
    for (let n = 0; n < capacity; n++) sender.trySend(n);
    const failed = sender.send(102, { timeout: 60_000 });
    receiver.close();
    assertEquals(await unsent(failed), 102);
  },
);

each(
  "receive() after the senders closed resolves with the buffered values, then rejects",
  async ({ make, capacity }) => {
    const { sender, receiver } = make<number>();
    const count = Math.min(capacity, 5);
    for (let n = 0; n < count; n++) sender.trySend(n);
    sender.close();
    for (let n = 0; n < count; n++) assertEquals(await receiver.receive(), n);
    await assertRejects(() => receiver.receive(), ChannelClosedError);
  },
);

each("closing the receiver rejects all waiting sends with their values", async ({ make, capacity }) => {
  const { sender, receiver } = make<number>();
  if (capacity === Infinity) {
    receiver.close();
    return assertEquals(await unsent(sender.send(1)), 1);
  }
  for (let n = 0; n < capacity; n++) sender.trySend(n);
  const waiting = [1, 2, 3].map((n) => sender.send(n));
  receiver.close();
  assertEquals(await Promise.all(waiting.map(unsent)), [1, 2, 3]);
});

each("closing the sender rejects all waiting receives", async ({ make }) => {
  const { sender, receiver } = make<number>();
  const handles = [receiver, receiver.clone(), receiver.clone()];
  const waiting = handles.map((handle) => handle.receive());
  sender.close();
  for (const wait of waiting) assertInstanceOf(await wait.catch((error: unknown) => error), ChannelClosedError);
});

each("one sender and one receiver: 100 000 values arrive in order", async ({ make }) => {
  const count = 100_000;
  const { sender, receiver } = make<number>();
  const producing = (async () => {
    using mine = sender;
    for (let n = 0; n < count; n++) await mine.send(n);
  })();
  let expected = 0;
  for await (const n of receiver) if (n !== expected++) throw new Error(`received ${n}, expected ${expected - 1}`);
  assertEquals(expected, count);
  await producing;
});

each("four senders and four receivers: each value arrives once", async ({ make }) => {
  const count = 5_000;
  const { sender, receiver } = make<number>();
  const seen = new Uint8Array(count);
  const producing = [0, 1, 2, 3].map(async () => {
    using mine = sender.clone();
    for (let n = 0; n < count; n++) await mine.send(n);
  });
  sender.close();
  const consuming = [0, 1, 2, 3].map(async () => {
    using mine = receiver.clone();
    for await (const n of mine) seen[n]!++;
  });
  receiver.close();
  await Promise.all([...producing, ...consuming]);
  assert(seen.every((times) => times === 4));
});

each(
  "four senders and four receivers with signals, tries and selects: no value is lost or received twice",
  async ({ make }) => {
    const { sender, receiver } = make<string>();
    const delivered: string[] = [];
    const [given, kept]: [string[], string[]] = [[], []];
    const producing = [1, 2, 3, 4].map(async (producer) => {
      const numbers = random(producer);
      using mine = sender.clone();
      for (let n = 0; n < 500; n++) {
        const value = `${producer}/${n}`;
        const controller = new AbortController();
        const how = numbers.next().value % 4;
        const sent = how === 0
          ? Promise.resolve(mine.trySend(value))
          : how === 1
          ? mine.send(value).then(() => true)
          : how === 2
          ? mine.send(value, { signal: controller.signal }).then(() => true, () => false)
          : select({ out: mine.sendCase(value) }, { signal: controller.signal }).then((r) => !r.done, () => false);
        await dawdle(numbers);
        controller.abort();
        (await sent ? given : kept).push(value);
      }
    });
    sender.close();
    const consuming = [5, 6, 7, 8].map(async (consumer) => {
      const numbers = random(consumer);
      using mine = receiver.clone();
      for (;;) {
        const controller = new AbortController();
        const { signal } = controller;
        const how = numbers.next().value % 4;
        const taken: Promise<string[] | undefined> = how === 0
          ? Promise.resolve(mine.tryReceive()).then((r) => r.state === "ok" ? [r.value] : [])
          : how === 1
          ? mine.receive({ signal }).then((value) => [value])
          : how === 2
          ? mine.receiveMany(3, { signal }).then((values) => values.length > 0 ? values : undefined)
          : select({ in: mine.receiveCase() }, { signal }).then((r) => r.done ? undefined : [r.value]);
        taken.catch(() => {});
        await dawdle(numbers);
        controller.abort();
        const values = await taken.catch((error: unknown) => {
          if (error === signal.reason) return [];
          assertInstanceOf(error, ChannelClosedError);
          return undefined;
        });
        if (values === undefined) return;
        delivered.push(...values);
      }
    });
    await Promise.all([...producing, ...consuming]);
    assertEquals(given.length + kept.length, 2000);
    assertEquals(receiver.drain(), []);
    assertEquals(delivered.toSorted(), given.toSorted());
  },
);

each("a thousand channels carry one value each, with the sender or the receiver first", async ({ make }) => {
  const numbers = random(1);
  await Promise.all(Array.from({ length: 1000 }, async (_, n) => {
    const { sender, receiver } = make<number>();
    const send = async () => {
      await dawdle(numbers);
      using mine = sender;
      await mine.send(n);
    };
    const receive = async () => {
      await dawdle(numbers);
      using mine = receiver;
      return await mine.receive();
    };
    const [, received] = await Promise.all([send(), receive()]);
    assertEquals(received, n);
  }));
});

each("each value is received, returned or dropped, exactly once", async ({ make, capacity }) => {
  const numbers = random(2);
  for (let round = 0; round < 50; round++) {
    const [received, returned, dropped]: [number[], number[], number[]] = [[], [], []];
    const { sender, receiver } = make<number>({ onDrop: (value) => dropped.push(value) });
    const count = numbers.next().value % 30;
    const stop = numbers.next().value % 20;
    const sends = Array.from({ length: count }, (_, n) => sender.send(n).catch((error) => returned.push(error.value)));
    for (let n = 0; n < stop && n < count; n++) received.push(await receiver.receive());
    receiver.close();
    await Promise.all(sends);
    assertEquals([...received, ...dropped, ...returned], [...Array(count).keys()]);
    assertEquals(dropped.length, Math.min(capacity, Math.max(0, count - stop)));
  }
});

each("tryReceive() after a send of any task finds a value", async ({ make, capacity }) => {
  const { sender, receiver } = make<number>();
  if (capacity === 0) {
    // On a rendezvous a send resolves when its value is received, and not before.
    for (let n = 0; n < 1000; n++) {
      const sent = sender.send(n);
      assertEquals(receiver.tryReceive(), { state: "ok", value: n });
      await sent;
    }
    return;
  }
  let present = 0;
  await Promise.all(Array.from({ length: 4 }, async (_, task) => {
    const numbers = random(task + 10);
    for (let n = 0; n < 1000; n++) {
      await sender.send(task);
      present++;
      await dawdle(numbers);
      // Each task sends before it tries to receive, so a value must be present.
      assertEquals(receiver.tryReceive().state, "ok");
      present--;
      await dawdle(numbers);
    }
  }));
  assertEquals([present, receiver.size], [0, 0]);
});

each("a thousand channels, each sent through the one before, are all received", async ({ make }) => {
  type Link = { receiver: Receiver<Link> };
  const { sender: first, receiver: start } = make<Link>();
  const producing = (async () => {
    let sender = first;
    for (let n = 0; n < 1000; n++) {
      const next = make<Link>();
      await sender.send({ receiver: next.receiver });
      sender.close();
      sender = next.sender;
    }
    sender.close();
  })();
  let receiver = start;
  let count = 0;
  for (;; count++) {
    const link = await receiver.receive().catch((error: unknown) => assertInstanceOf(error, ChannelClosedError));
    receiver.close();
    if (!link) break;
    receiver = link.receiver;
  }
  assertEquals(count, 1000);
  await producing;
});

each("a token passes a ring of 32 channels 1000 times, and all of them close", async ({ make }) => {
  const ring = Array.from({ length: 32 }, () => make<number>());
  const tasks = ring.map(async ({ receiver }, i) => {
    using next = ring[(i + 1) % 32]!.sender;
    if (i === 0) await next.send(0);
    for await (const token of receiver) {
      if (token === 1000 * 32) return;
      await next.send(token + 1);
    }
  });
  await Promise.all(tasks);
  assertEquals(ring.map(({ receiver }) => receiver.senderCount), ring.map(() => 0));
});

each("250 waiting receives resolve in the order of their calls", async ({ make }) => {
  const { sender, receiver } = make<number>();
  const order: number[] = [];
  const waiting = Array.from({ length: 250 }, async (_, i) => {
    using mine = receiver.clone();
    assertEquals(await mine.receive(), i);
    order.push(i);
  });
  for (let i = 0; i < 250; i++) assert(sender.trySend(i));
  await Promise.all(waiting);
  assertEquals(order, [...Array(250).keys()]);
});

each("a timed-out receive consumes no value, which goes to the next receive", async ({ make }) => {
  const { sender, receiver } = make<number>();
  const timedOut = [1, 2, 3].map((timeout) => receiver.receive({ timeout }));
  const patient = receiver.receive();
  for (const wait of timedOut) await assertTimeout(wait);
  assert(sender.trySend(1));
  assertEquals(await patient, 1);
  assertEquals(receiver.tryReceive(), { state: "empty" });
});

each("the value of a timed-out send is not delivered, and the next send is admitted", async ({ make, capacity }) => {
  const { sender, receiver } = make<number>();
  for (let n = 0; n < capacity; n++) sender.trySend(n);
  const timedOut = sender.send(100, { timeout: 1 });
  const patient = sender.send(101);
  await assertTimeout(timedOut);
  assertEquals(receiver.drain(), [...Array(capacity).keys(), 101]);
  await patient;
}, limited);

each(
  "iteration ends when the senders close, and drain() returns the present values",
  async ({ make, capacity }) => {
    const { sender, receiver } = make<number>();
    const sends = Promise.all([0, 1, 2].map((n) => sender.send(n)));
    assertEquals(receiver.drain(), [0, 1, 2]);
    assertEquals(receiver.drain(), []);
    await sends;
    const iterated = Array.fromAsync(receiver);
    for (let n = 0; n < 3; n++) await sender.send(n);
    sender.close();
    assertEquals(await iterated, [0, 1, 2]);
    assertEquals(await Array.fromAsync(receiver), []);
    assertEquals(receiver.capacity, capacity);
  },
);

each("return() of a waiting iterator leaves the value to the next receive", async ({ make }) => {
  const { sender, receiver } = make<number>();
  const iterator = receiver[Symbol.asyncIterator]();
  const next = iterator.next();
  const other = receiver.receive();
  await iterator.return!();
  assert(sender.trySend(1));
  assertEquals(await other, 1);
  assertEquals(await next, { done: true, value: undefined });
});

each(
  "an aborted send leaves no value behind and does not delay the next",
  async ({ make, capacity }) => {
    const { sender, receiver } = make<number>();
    for (let n = 0; n < capacity; n++) sender.trySend(n);
    const controllers = Array.from({ length: 10 }, () => new AbortController());
    const sends = controllers.map(({ signal }, n) => sender.send(100 + n, { signal }));
    controllers.forEach((controller, n) => n % 2 === 0 && controller.abort(n));
    const results = await Promise.all([Promise.allSettled(sends), receiver.receiveMany(1000)]);
    assertEquals(results[0].map((r) => r.status), sends.map((_, n) => n % 2 === 0 ? "rejected" : "fulfilled"));
    assertEquals(results[1], [...Array(capacity).keys(), 101, 103, 105, 107, 109]);
  },
  limited,
);

each("web streams carry all values, in order", async ({ make }) => {
  const { sender, receiver } = make<number>();
  const piped = ReadableStream.from(Array(1000).keys()).pipeTo(sender.toWritableStream());
  sender.close();
  const stream = receiver.toReadableStream();
  receiver.close();
  assertEquals(await Array.fromAsync(stream), [...Array(1000).keys()]);
  await piped;
});

each("several readable streams of one channel share its values", async ({ make }) => {
  const { sender, receiver } = make<number>();
  const streams = [1, 2, 3, 4, 5].map(() => Array.fromAsync(receiver.toReadableStream()));
  receiver.close();
  for (let n = 0; n < 1000; n++) await sender.send(n);
  sender.close();
  const values = await Promise.all(streams);
  assertEquals(values.flat().sort((a, b) => a - b), [...Array(1000).keys()]);
  for (const mine of values) {
    assertEquals(mine, mine.toSorted((a, b) => a - b));
    assertLess(mine.length, 1000); // all of them waited, so none received all values
  }
});

each("a cancelled or aborted web stream closes its own handle and no other", async ({ make }) => {
  const { sender, receiver } = make<number>();
  const reason = new Error("enough");
  await receiver.toReadableStream().cancel();
  await sender.toWritableStream().abort(reason);
  assertEquals([receiver.senderCount, receiver.receiverCount], [1, 1]);
  const received = receiver.receive();
  assert(sender.trySend(1));
  assertEquals(await received, 1);
  sender.close();
  assertStrictEquals(await receiver.receive().catch((error: unknown) => error), reason);
});

Deno.test("flume: clone() of a closed handle throws, and await on a channel or receiver consumes no value", async () => {
  const { sender, receiver } = bounded<number>(1);
  sender.close();
  assertThrows(() => sender.clone(), ChannelClosedError);
  const channel = new Channel<number>();
  assertStrictEquals(await channel, channel);
  assertStrictEquals(await receiver, receiver);
});
