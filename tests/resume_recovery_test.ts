/** Resumable connections whose carriers are lost at an awkward moment: while dialling, greeting, waiting or closing. */

import { assert, assertEquals, assertLess, assertRejects } from "@std/assert";
import { concat } from "@std/bytes";
import { clock } from "../_clock.ts";
import {
  ACCEPTED,
  decodeReply,
  encodeAcknowledgement,
  encodeHello,
  encodeReply,
  HELLO_LENGTH,
  NO_TOKEN,
  REPLY_LENGTH,
  RESUMED,
  type Status,
} from "../_resume_frame.ts";
import type { Connection, Listener } from "../mod.ts";
import { resumable, type ResumableConnection, resumableListener, type ResumableOptions } from "../resume.ts";
import { KEEP, type KeepingConnection, type Kept } from "../transport.ts";
import {
  KiB,
  ManualClock,
  type MemoryConnection,
  memoryPair,
  MiB,
  pattern,
  readExactly,
  readSome,
  state,
  turn,
  writeAll,
} from "./support.ts";

const TOKEN = new Uint8Array(16).fill(7);
const PROBE = Uint8Array.of(2);
const PROBE_REPLY = Uint8Array.of(3);
const END = Uint8Array.of(4);
const CLOSE = Uint8Array.of(5);

const record = (bytes: Uint8Array) =>
  concat([Uint8Array.of(0), new Uint8Array(Uint32Array.of(bytes.length).buffer), bytes]);

/** Reads a hello, and answers it. Returns the count of the hello. */
async function answer(far: Connection, status: Status, received = 0): Promise<number> {
  const hello = await readExactly(far, HELLO_LENGTH);
  await writeAll(far, encodeReply(status, { token: TOKEN, received }));
  return hello[24]!;
}

/** A client, connected to an end that speaks the format by hand. `next` is the far end of the next carrier. */
async function connect(options: ResumableOptions = {}, capacity?: number) {
  const waiting: MemoryConnection[] = [];
  let dialled = Promise.withResolvers<MemoryConnection>();
  const next = async () => {
    const far = await dialled.promise;
    dialled = Promise.withResolvers();
    return far;
  };
  const client = resumable(() => {
    const [near, far] = memoryPair(capacity);
    waiting.push(near);
    dialled.resolve(far);
    return Promise.resolve(near);
  }, options);
  const far = await next();
  await answer(far, ACCEPTED);
  while (client.state !== "connected") await turn();
  return { client, far, next, carriers: waiting };
}

/** A listener of memory connections, and a function that dials it. */
function listen(): {
  listener: Listener<Connection>;
  dial: (wrap?: (far: Connection) => Connection) => MemoryConnection;
} {
  const waiting: Connection[] = [];
  let accepting: PromiseWithResolvers<Connection> | undefined;
  const listener = resumableListener({
    accept() {
      const first = waiting.shift();
      if (first !== undefined) return Promise.resolve(first);
      accepting = Promise.withResolvers();
      return accepting.promise;
    },
    close() {},
  });
  const dial = (wrap = (far: Connection) => far) => {
    const [near, far] = memoryPair();
    if (accepting === undefined) waiting.push(wrap(far));
    else accepting.resolve(wrap(far));
    accepting = undefined;
    return near;
  };
  return { listener, dial };
}

async function greet(near: Connection, token = NO_TOKEN, received = 0) {
  await writeAll(near, encodeHello({ token, received }));
  return decodeReply(await readExactly(near, REPLY_LENGTH));
}

Deno.test("an acknowledgement that waits for a pending write does not make the timer fire again and again", async () => {
  using time = new ManualClock();
  const { setTimer } = clock;
  let timers = 0;
  clock.setTimer = (run, delay) => {
    if (++timers > 1000) throw new Error("too many timers");
    return setTimer(run, delay);
  };
  const { client, far } = await connect({}, 64);
  // The peer does not read, so the write stays pending.
  client.write(pattern(1000)).catch(() => {});
  await writeAll(far, record(pattern(10)));
  assertEquals(await readExactly(client, 10), pattern(10));
  timers = 0;
  await time.advance(2000);
  assertLess(timers, 10);
  client.close();
  await time.advance(2000);
});

Deno.test("ResumableConnection.read() returns 0 for an empty buffer, also while suspended", async () => {
  const client = resumable(() => new Promise<never>(() => {}));
  const reading = client.read(new Uint8Array());
  assertEquals(await state(reading), "fulfilled");
  assertEquals(await reading, 0);
  client.close();
});

Deno.test("ResumableConnection.close() after closeWrite() goes on until the peer has received everything", async () => {
  using _clock = new ManualClock();
  const { client, far, next } = await connect();
  await client.write(pattern(100));
  const closing = client.closeWrite();
  const reading = client.read(new Uint8Array(1));
  reading.catch(() => {});
  client.close();
  await assertRejects(() => client.read(new Uint8Array(1)), Error, "closed connection");
  await assertRejects(() => client.write(new Uint8Array(1)), Error, "closed connection");
  assertEquals(await readExactly(far, 106), concat([record(pattern(100)), END]));
  // None of it is acknowledged.
  far.close();
  const second = await next();
  assertEquals(await answer(second, RESUMED, 40), 0);
  assertEquals(await readExactly(second, 66), concat([record(pattern(100).subarray(40)), END]));
  // What the peer still sends is dropped.
  await writeAll(second, record(pattern(1000)));
  await turn();
  assertEquals(await state(closing), "pending");
  await writeAll(second, encodeAcknowledgement(101));
  await closing;
  await client.closed;
  assertEquals((await readExactly(second, 1))[0], CLOSE[0]);
  await assertRejects(() => reading, Error, "closed connection");
});

Deno.test("ResumableConnection.close() after closeWrite() gives up after resumeTimeout, also while the peer is connected", async () => {
  using time = new ManualClock();
  const { client, far } = await connect({ resumeTimeout: 5000, silence: 60_000 });
  client.closeWrite().catch(() => {});
  client.close();
  await time.advance(4900);
  assertEquals(client.state, "connected");
  await time.advance(200);
  assertEquals(client.state, "ended");
  assertEquals(await readExactly(far, 1), END);
  assertEquals(time.pending, 0);
});

Deno.test("a freeze of the process does not count for resumeTimeout, neither while suspended nor after close()", async () => {
  using time = new ManualClock();
  for (const [isSuspended, isClosed] of [[true, false], [true, true], [false, true]]) {
    const { client, far } = await connect({ resumeTimeout: 60_000, silence: 600_000 });
    if (isClosed) client.closeWrite().catch(() => {});
    else client.read(new Uint8Array(1)).catch(() => {});
    if (isClosed) client.close();
    if (isSuspended) far.close();
    await turn();
    await time.advance(30_000);
    time.freeze(3_600_000);
    await time.advance(15_000);
    assertEquals(client.state, isSuspended ? "suspended" : "connected");
    await time.advance(60_000);
    assertEquals(client.state, "ended");
  }
});

Deno.test("ResumableConnection.close() during a write completes its record, and sends the close after it", async () => {
  using time = new ManualClock();
  for (const isRead of [true, false]) {
    const { client, far, carriers } = await connect({}, 64);
    client.write(pattern(1000)).catch(() => {});
    await turn();
    client.close();
    assertEquals(client.state, "ended");
    if (isRead) {
      assertEquals(await readExactly(far, 1006), concat([record(pattern(1000)), CLOSE]));
    } else {
      await time.advance(900);
      assertEquals(carriers[0]!.isClosed, false);
      await time.advance(200);
    }
    await turn();
    assert(carriers[0]!.isClosed);
  }
  assertEquals(time.pending, 0);
});

Deno.test("ResumableConnection.close() while a reply arrives ends the connection for good, at every moment", async () => {
  for (let hops = 0; hops < 16; hops++) {
    using _clock = new ManualClock();
    const states: string[] = [];
    const { client, far, next } = await connect({ onChange: (state) => states.push(state) });
    const reading = client.read(new Uint8Array(1));
    reading.catch(() => {});
    far.close();
    await answer(await next(), RESUMED);
    for (let hop = 0; hop < hops; hop++) await null;
    client.close();
    for (let n = 0; n < 5; n++) await turn();
    assertEquals({ hops, last: states.at(-1), state: client.state }, { hops, last: "ended", state: "ended" });
  }
});

Deno.test("a close of the peer is received although the carrier can no longer be written", async () => {
  using time = new ManualClock();
  for (const isClosed of [true, false]) {
    const { client, far, carriers } = await connect();
    carriers[0]!.write = () => Promise.reject(new Error("broken pipe"));
    await client.write(pattern(10));
    if (isClosed) await writeAll(far, CLOSE);
    await time.advance(200);
    assertEquals(client.state, isClosed ? "ended" : "suspended");
    if (isClosed) await assertRejects(() => client.closed, Error, "The peer has closed the connection");
    client.close();
    await turn();
  }
  assertEquals(time.pending, 0);
});

Deno.test("resumable() pauses between carriers that are lost at once, and begins anew after one that has worked", async () => {
  using time = new ManualClock();
  let dials = 0;
  let bytes = 0;
  const client = resumable(async () => {
    const [near, far] = memoryPair();
    (async () => {
      await answer(far, dials++ === 0 ? ACCEPTED : RESUMED);
      if (bytes-- > 0) await writeAll(far, record(Uint8Array.of(1)));
      far.close();
    })();
    return await Promise.resolve(near);
  });
  const reading = client.read(new Uint8Array(1));
  await time.advance(3000);
  // The first two at once, then after 100, 200, 400, 800 and 1600 ms, or half of that.
  assert(dials >= 6 && dials <= 9, `${dials} dials`);
  bytes = 1;
  await time.advance(5000);
  assertEquals(await reading, 1);
  const before = dials;
  client.read(new Uint8Array(1)).catch(() => {});
  await time.advance(1000);
  assert(dials >= before + 3, `${dials - before} dials`);
  // Each of these delivers a byte, so the pause does not grow.
  bytes = 100;
  const middle = dials;
  (async () => {
    while (await client.read(new Uint8Array(1)) !== null);
  })().catch(() => {});
  // The pause that has begun may be as long as the ones that are counted.
  client.retry();
  await time.advance(2000);
  assert(dials >= middle + 15 && dials <= middle + 45, `${dials - middle} dials`);
  client.close();
});

Deno.test("resumable() keeps no timer when onChange closes a connection that would pause before it dials", async () => {
  using time = new ManualClock();
  let suspensions = 0;
  const onChange = (state: string) => {
    if (state === "suspended" && ++suspensions === 2) client.close();
  };
  const { client, far, next } = await connect({ onChange });
  const reading = client.read(new Uint8Array(1));
  far.close();
  const second = await next();
  await answer(second, RESUMED);
  second.close();
  await assertRejects(() => reading, Error, "closed connection");
  await turn();
  assertEquals([client.state, suspensions, time.pending], ["ended", 2, 0]);
});

Deno.test("resumable() sets no timer for an infinite silence, which would expire at once", async () => {
  using _clock = new ManualClock();
  const { setTimer } = clock;
  const delays: number[] = [];
  clock.setTimer = (run, delay) => {
    delays.push(delay);
    return setTimer(run, delay);
  };
  const { client } = await connect({ silence: Infinity });
  assertEquals([client.state, delays.filter((delay) => delay === Infinity)], ["connected", []]);
  client.close();
});

Deno.test("ResumableConnection.unref() applies to the timers of a suspension, of an attempt and of a pause", async () => {
  using time = new ManualClock();
  const { setTimer } = clock;
  const refs = new Map<unknown, boolean>();
  clock.setTimer = (run, delay) => {
    const id = setTimer(run, delay);
    const timer = { unref: () => refs.set(timer, false), ref: () => refs.set(timer, true), id };
    refs.set(timer, true);
    return timer as unknown as typeof id;
  };
  const { clearTimer } = clock;
  clock.clearTimer = (timer) => {
    refs.delete(timer);
    clearTimer((timer as unknown as { id: typeof timer } | undefined)?.id);
  };
  const isRef = () => [...new Set(refs.values())];
  let refuse: (() => void) | undefined;
  const client = resumable(() => new Promise((_, reject) => refuse = () => reject(new Error("down"))));
  await turn();
  assertEquals([refs.size, isRef()], [2, [true]]);
  client.unref!();
  assertEquals([refs.size, isRef()], [2, [false]]);
  refuse!();
  await time.advance(0);
  assertEquals([refs.size, isRef()], [2, [false]]);
  client.ref!();
  assertEquals([refs.size, isRef()], [2, [true]]);
  client.close();
});

Deno.test("resumable() sends a close when its signal aborts", async () => {
  using _clock = new ManualClock();
  const stop = new AbortController();
  const { client, far } = await connect({ signal: stop.signal });
  stop.abort(new Error("enough"));
  assertEquals(await readExactly(far, 1), CLOSE);
  await assertRejects(() => client.closed, Error, "enough");
});

Deno.test("ResumableConnection.retry() gives a pending dial up, as time does, and closes its late connection", async () => {
  using time = new ManualClock();
  const dials: { signal: AbortSignal; resolve: (connection: Connection) => void }[] = [];
  const client = resumable(({ signal }) => {
    const { promise, resolve } = Promise.withResolvers<Connection>();
    dials.push({ signal, resolve });
    return promise;
  });
  await time.advance(0);
  client.retry();
  await time.advance(0);
  assertEquals(dials.length, 2);
  await time.advance(9900);
  assertEquals([dials.length, dials[1]!.signal.aborted], [2, false]);
  await time.advance(300);
  assertEquals([dials.length, dials[1]!.signal.aborted], [3, true]);
  const pairs = [memoryPair(), memoryPair()];
  dials[0]!.resolve(pairs[0]![0]);
  dials[2]!.resolve(pairs[1]![0]);
  await answer(pairs[1]![1], ACCEPTED);
  await time.advance(0);
  assertEquals(client.state, "connected");
  assertEquals(pairs.map(([near]) => near.isClosed), [true, false]);
  client.close();
  await time.advance(0);
  assertEquals(time.pending, 0);
});

Deno.test("ResumableConnection.retry() in onChange dials at once, where there would be a pause", async () => {
  using time = new ManualClock();
  let suspensions = 0;
  const onChange = (state: string) => {
    if (state === "suspended" && ++suspensions === 2) client.retry();
  };
  const { client, far, next } = await connect({ onChange });
  const reading = client.read(new Uint8Array(1));
  far.close();
  const second = await next();
  await answer(second, RESUMED);
  second.close();
  const third = await next();
  await answer(third, RESUMED);
  await turn();
  assertEquals([client.state, suspensions], ["connected", 2]);
  // Without it there is a pause.
  third.close();
  const fourth = next();
  await turn();
  assertEquals([client.state, await state(fourth)], ["suspended", "pending"]);
  await time.advance(100);
  assertEquals(await state(fourth), "fulfilled");
  client.close();
  await assertRejects(() => reading);
});

Deno.test("ResumableConnection.read() rejects after close(), also with bytes that were received before", async () => {
  using time = new ManualClock();
  for (const isEnded of [false, true]) {
    const { client, far } = await connect({ silence: 1000 });
    // The connection reads ahead for the reply to its probe.
    await time.advance(550);
    await writeAll(far, isEnded ? concat([record(pattern(10)), END, CLOSE]) : record(pattern(10)));
    await turn();
    assertEquals(client.state, isEnded ? "ended" : "connected");
    assertEquals(await readExactly(client, 4), pattern(10).subarray(0, 4));
    client.close();
    const error = await assertRejects(
      () => client.read(new Uint8Array(1)),
      Error,
      "Cannot read from a closed connection",
    );
    assertEquals(error.name, "BadResource");
  }
});

Deno.test("resumableListener() answers hellos after an error of accept() without another call of its own", async () => {
  using time = new ManualClock();
  const waiting: (() => Promise<Connection>)[] = [];
  let accepting: PromiseWithResolvers<void> | undefined;
  const listener = resumableListener({
    async accept() {
      while (waiting.length === 0) await (accepting = Promise.withResolvers<void>()).promise;
      return await waiting.shift()!();
    },
    close() {},
  });
  const arrive = (...results: (() => Promise<Connection>)[]) => {
    waiting.push(...results);
    accepting?.resolve();
  };
  const fail = (name: string) => () => Promise.reject(Object.assign(new Error("on purpose"), { name }));
  const [[first, far], [second, secondFar]] = [memoryPair(), memoryPair()];
  const accepted = listener.accept();
  arrive(() => Promise.resolve(far));
  const { token } = await greet(first);
  const server = await accepted as ResumableConnection;
  first.close();
  // One that may last is followed by a pause.
  arrive(...Array(2000).fill(fail("ConnectionReset")), fail("Error"), () => Promise.resolve(secondFar));
  const greeting = greet(second, token);
  await turn();
  assertEquals(await state(greeting), "pending");
  await time.advance(5);
  assertEquals([(await greeting).status, server.state], [RESUMED, "connected"]);
  // Of the errors one is kept.
  await assertRejects(() => listener.accept(), Error, "on purpose");
  const next = listener.accept();
  assertEquals(await state(next), "pending");
  arrive(fail("Interrupted"));
  await assertRejects(() => next, Error, "on purpose");
  await assertRejects(() => listener.accept(), Error, "on purpose");
  assertEquals(await state(server.closed), "pending");
  server.close();
  listener.close();
});

Deno.test("resumableListener().close() ends its pause after an error of accept()", async () => {
  using time = new ManualClock();
  const listener = resumableListener({ accept: () => Promise.reject(new Error("too many open files")), close() {} });
  await assertRejects(() => listener.accept(), Error, "too many");
  const accepting = listener.accept();
  listener.close();
  await assertRejects(() => accepting, Error, "too many");
  assertEquals(time.pending, 0);
});

Deno.test("resumableListener() passes a connection on whose read throws, or that lacks one", async () => {
  const broken = {
    read: () => {
      throw new Error("on purpose");
    },
    write: () => Promise.resolve(0),
    close() {},
  };
  const waiting = [broken, {} as Connection];
  const listener = resumableListener({
    accept: () => waiting.length > 0 ? Promise.resolve(waiting.shift()!) : new Promise<never>(() => {}),
    close() {},
  });
  for (const message of ["on purpose", "read is not a function"]) {
    const connection = await listener.accept();
    await assertRejects(() => connection.read(new Uint8Array(1)), Error, message);
  }
  listener.close();
});

Deno.test("resumable() leaves the event loop free while a carrier writes or reads nothing of the hello, and gives it up", async () => {
  for (const method of ["write", "read"] as const) {
    using time = new ManualClock();
    let [calls, dials] = [0, 0];
    const nothing = () => {
      if (calls++ > 100_000) throw new Error("the event loop was blocked");
      return Promise.resolve(0);
    };
    const client = resumable(() => {
      const [near] = memoryPair();
      if (dials++ === 0) near[method] = nothing;
      return Promise.resolve(near);
    }, { silence: 1000 });
    await time.advance(1150);
    assertEquals([client.state, dials], ["suspended", 2]);
    assertLess(calls, 100_000);
    // The end of the loop.
    calls = 100_000;
    client.close();
    await turn();
  }
});

Deno.test("a carrier whose read keeps returning 0 leaves the event loop free, whether the application reads or not", async () => {
  for (const isRead of [true, false]) {
    using _clock = new ManualClock();
    const { client, carriers } = await connect({ maxUnacknowledged: 65_536 }, MiB);
    let calls = 0;
    carriers[0]!.read = () => {
      if (calls++ > 100_000) throw new Error("the event loop was blocked");
      return Promise.resolve(0);
    };
    const waiting = isRead ? [client.read(new Uint8Array(1))] : [0, 1].map(() => client.write(pattern(65_536)));
    waiting.forEach((each) => each.catch(() => {}));
    await turn();
    assertEquals(client.state, "connected");
    assert(calls > 0 && calls < 100_000, `${calls} calls`);
    client.close();
    await Promise.allSettled(waiting);
    calls = 200_000;
    await turn();
  }
});

Deno.test("a carrier whose write returns no valid count is lost, and its bytes are sent again", async () => {
  for (const count of [-1, 1e9, NaN]) {
    using time = new ManualClock();
    const { client, far, next, carriers } = await connect();
    carriers[0]!.write = () => Promise.resolve(count);
    await client.write(pattern(10));
    await time.advance(100);
    assertEquals([client.state, carriers[0]!.isClosed], ["suspended", true]);
    far.close();
    const second = await next();
    await answer(second, RESUMED);
    assertEquals(await readExactly(second, 15), record(pattern(10)));
    client.close();
  }
});

Deno.test("ResumableConnection.close() while it greets closes the carrier, and the connection stays ended", async () => {
  using time = new ManualClock();
  const [near, far] = memoryPair();
  const client = resumable(() => Promise.resolve(near));
  await readExactly(far, HELLO_LENGTH);
  client.close();
  await turn();
  assert(near.isClosed);
  await writeAll(far, encodeReply(ACCEPTED, { token: TOKEN, received: 0 })).catch(() => {});
  await turn();
  assertEquals([client.state, client.resumptions], ["ended", 0]);
  assertEquals(time.pending, 0);
});

Deno.test("resumableListener() keeps a new connection whose reply may have been received although its write failed", async () => {
  const { listener, dial } = listen();
  const accepting = listener.accept();
  const states: string[] = [];
  const failing = (far: Connection): Connection => ({
    read: (p) => far.read(p),
    write: async (p) => {
      await writeAll(far, p);
      throw new Error("cut");
    },
    close: () => {
      states.push("closed");
      far.close();
    },
  });
  const { token, status } = await greet(dial(failing));
  assertEquals(status, ACCEPTED);
  const server = await accepting as ResumableConnection;
  assertEquals([server.state, ...states], ["suspended", "closed"]);
  const second = dial();
  assertEquals((await greet(second, token)).status, RESUMED);
  await writeAll(second, record(pattern(10)));
  assertEquals(await readExactly(server, 10), pattern(10));
  server.close();
  listener.close();
});

Deno.test("resumableListener() lets a resumption continue although the write of the first reply ends after it", async () => {
  const { listener, dial } = listen();
  const accepting = listener.accept();
  const gate = Promise.withResolvers<void>();
  const slow = (far: Connection): Connection => ({
    read: (p) => far.read(p),
    write: async (p) => {
      await writeAll(far, p);
      await gate.promise;
      return p.length;
    },
    close: () => far.close(),
  });
  const { token } = await greet(dial(slow));
  const second = dial();
  assertEquals((await greet(second, token)).status, RESUMED);
  await writeAll(second, record(pattern(10)));
  gate.resolve();
  const server = await accepting;
  assertEquals(await readExactly(server, 10), pattern(10));
  await writeAll(second, record(pattern(20)));
  assertEquals(await readExactly(server, 20), pattern(20));
  server.close();
  listener.close();
});

Deno.test("resumableListener() closes a hello that is older than the last acknowledgement, and keeps the carrier", async () => {
  const { listener, dial } = listen();
  const accepting = listener.accept();
  const first = dial();
  const { token } = await greet(first);
  const server = await accepting as ResumableConnection;
  await server.write(pattern(100));
  assertEquals(await readExactly(first, 105), record(pattern(100)));
  await writeAll(first, concat([encodeAcknowledgement(100), record(pattern(10))]));
  assertEquals(await readExactly(server, 10), pattern(10));
  // An attempt that was given up, and delivered late.
  const late = dial();
  await writeAll(late, encodeHello({ token, received: 60 }));
  assertEquals(await late.read(new Uint8Array(1)), null);
  assertEquals(server.state, "connected");
  await writeAll(first, record(pattern(20)));
  assertEquals(await readExactly(server, 20), pattern(20));
  server.close();
  listener.close();
});

Deno.test("an acknowledgement is sent after half of maxUnacknowledged, so that a peer with the same option need not wait", async () => {
  using _clock = new ManualClock();
  const { client, far } = await connect({ maxUnacknowledged: 65_536 });
  const sending = writeAll(far, record(pattern(40_000)));
  await readExactly(client, 40_000);
  await sending;
  const received = await readExactly(far, 9);
  assertEquals(received[0], 1);
  assert(new DataView(received.buffer).getUint32(1, true) >= 32_768);
  client.close();
});

Deno.test("an acknowledgement is sent after 256 KiB, whether reads fill their memory or not", async () => {
  using _clock = new ManualClock();
  // The peer has sent everything that it may: it must not wait for the delay.
  for (const size of [1000, 64 * KiB, 256 * KiB + 5, MiB]) {
    const { client, far } = await connect({}, MiB);
    await writeAll(far, record(pattern(256 * KiB)));
    const p = new Uint8Array(size);
    for (let read = 0; read < 256 * KiB;) read += (await client.read(p.subarray(0, 256 * KiB + 5 - read)))!;
    assertEquals(await readExactly(far, 9), encodeAcknowledgement(256 * KiB));
    client.close();
  }
});

Deno.test("a write that waits for room receives acknowledgements although the application reads only once", async () => {
  using _clock = new ManualClock();
  const { client, far } = await connect({ maxUnacknowledged: 65_536 });
  const p = new Uint8Array(100);
  const reading = client.read(p);
  await Promise.all([client.write(pattern(65_536)), readExactly(far, 65_541)]);
  const writing = client.write(pattern(10));
  await writeAll(far, record(pattern(10)));
  assertEquals(await reading, 10);
  await writeAll(far, encodeAcknowledgement(65_536));
  assertEquals(await writing, 10);
  client.close();
});

for (const isProbed of [false, true]) {
  const peer = isProbed ? "whose peer sends the probes" : "that sends the probes";
  Deno.test(`a resumable connection ${peer} frees the memory of its replay buffer when it is idle`, async () => {
    using time = new ManualClock();
    const [near, far] = memoryPair(MiB);
    const written = new Set<ArrayBufferLike>();
    const client = resumable(() =>
      Promise.resolve({
        read: (p: Uint8Array) => near.read(p),
        write: (p: Uint8Array) => {
          written.add(p.buffer);
          return near.write(p);
        },
        close: () => near.close(),
      }), { silence: 1000 });
    await answer(far, ACCEPTED);
    await Promise.all([writeAll(client, pattern(300_000)), readSome(far, 300_000)]);
    const reading = client.read(new Uint8Array(1));
    await writeAll(far, encodeAcknowledgement(300_000));
    const kept = () => [...written].map(({ byteLength }) => byteLength).filter((length) => length > 1000);
    assert(kept().length > 0);
    for (let n = 0; n < 3; n++) {
      await time.advance(350);
      // Its own first probe leaves after 500 ms.
      await writeAll(far, isProbed ? PROBE : n === 1 ? PROBE_REPLY : new Uint8Array());
    }
    assertEquals([kept(), client.state], [[], "connected"]);
    client.close();
    await assertRejects(() => reading);
  });
}

Deno.test("a suspended connection frees the memory that it keeps for reuse", async () => {
  using time = new ManualClock();
  const { client, far, carriers } = await connect({ silence: 1000 }, MiB);
  const written = new Set<ArrayBufferLike>();
  const [carrier] = carriers;
  const write = carrier!.write.bind(carrier);
  carrier!.write = (p) => {
    written.add(p.buffer);
    return write(p);
  };
  await Promise.all([writeAll(client, pattern(300_000)), readSome(far, 300_000)]);
  const reading = client.read(new Uint8Array(1));
  await writeAll(far, encodeAcknowledgement(300_000));
  await turn();
  const kept = () => [...written].map(({ byteLength }) => byteLength).filter((length) => length > 1000);
  assert(kept().length > 0);
  carrier!.reset();
  await time.advance(1250);
  assertEquals([kept(), client.state], [[], "suspended"]);
  client.close();
  await assertRejects(() => reading);
});

Deno.test("ResumableConnection.write() waits for all but the last 64 KiB, and takes 64 KiB while bytes wait", async () => {
  using _clock = new ManualClock();
  const { client, far } = await connect({}, 1000);
  const sent = pattern(200_000);
  const first = client.write(sent);
  // The carrier holds 1000 more, and the header is 5 long.
  await readExactly(far, 200_000 - 65_536 - 1000);
  await turn();
  assertEquals(await state(first), "pending");
  await readExactly(far, 1005);
  assertEquals(await first, 200_000);
  const second = client.write(sent);
  await turn();
  assertEquals(await state(second), "pending");
  await readExactly(far, 65_536);
  assertEquals(await second, 65_536);
  client.close();
  // What was written is sent before the close.
  const rest = await readExactly(far, 65_542);
  assertEquals(rest, concat([record(sent.subarray(0, 65_536)), CLOSE]));
});

Deno.test("ResumableConnection.write() passes what a session writes at once to a fast carrier in one piece", async () => {
  using _clock = new ManualClock();
  const { client, far } = await connect({}, MiB);
  const sent = pattern(230_000);
  for (let n = 0; n < 3; n++) {
    assertEquals(await client.write(sent), 230_000);
    assertEquals(await readExactly(far, 230_005), record(sent));
    await writeAll(far, encodeAcknowledgement(230_000 * (n + 1)));
  }
  client.close();
});

Deno.test("resumableListener() does not read the old carrier any more while it writes the reply to a resumption", async () => {
  const { listener, dial } = listen();
  const first = dial();
  const accepting = listener.accept();
  const { token } = await greet(first);
  const server = await accepting;
  const reading = readExactly(server, 6);
  const gate = Promise.withResolvers<void>();
  const second = dial((far) => ({
    read: (p) => far.read(p),
    write: async (p) => {
      await gate.promise;
      return await far.write(p);
    },
    close: () => far.close(),
  }));
  await writeAll(second, encodeHello({ token, received: 0 }));
  await turn();
  // The reply counts none of these bytes, so the client sends them again.
  const bytes = pattern(3, 1);
  await writeAll(first, record(bytes)).catch(() => {});
  await turn();
  gate.resolve();
  const { status, received } = decodeReply(await readExactly(second, REPLY_LENGTH));
  assertEquals([status, received], [RESUMED, 0]);
  await writeAll(second, record(bytes));
  await writeAll(second, record(pattern(3, 2)));
  assertEquals(await reading, concat([bytes, pattern(3, 2)]));
  server.close();
  listener.close();
});

/** Hands memory with this payload over, as a session does with what it writes. */
function keep(client: ResumableConnection, payload: Uint8Array): { kept: Kept | undefined; memory: Uint8Array } {
  const connection = client as ResumableConnection & KeepingConnection;
  const end = connection.headroom + payload.length;
  const memory = new Uint8Array(end);
  memory.set(payload, connection.headroom);
  return { kept: connection[KEEP](memory, end), memory };
}

Deno.test("a session's memory is sent, kept without a copy, and sent again from there after a resumption", async () => {
  using _clock = new ManualClock();
  const { client, far, next, carriers } = await connect({}, MiB);
  const sent = pattern(200_000);
  const { kept, memory } = keep(client, sent);
  assertEquals(await kept!.writing, 200_000);
  assertEquals([kept!.replacement.length, kept!.replacement.buffer === memory.buffer], [memory.length, false]);
  assertEquals(await readExactly(far, 200_005), record(sent));
  const reading = client.read(new Uint8Array(1));
  carriers[0]!.reset();
  const second = await next();
  await answer(second, RESUMED, 150_000);
  assertEquals(await readExactly(second, 50_005), record(sent.subarray(150_000)));
  assertEquals(memory.subarray(150_000), record(sent.subarray(150_000)));
  client.close();
  await assertRejects(() => reading);
});

Deno.test("a session's memory waits for room, and for a carrier, and is not taken while bytes wait", async () => {
  using _clock = new ManualClock();
  const { client, far, next, carriers } = await connect({ maxUnacknowledged: 300_000 }, MiB);
  const [one, two, three] = [pattern(200_000, 1), pattern(200_000, 2), pattern(200_000, 3)];
  assertEquals(keep(client, pattern(300_001)).kept, undefined);
  assertEquals(await keep(client, one).kept!.writing, 200_000);
  const waiting = keep(client, two).kept!.writing;
  assertEquals(await readExactly(far, 200_005), record(one));
  assertEquals(await state(waiting), "pending");
  await writeAll(far, encodeAcknowledgement(200_000));
  assertEquals(await waiting, 200_000);
  carriers[0]!.reset();
  while (client.state === "connected") await turn();
  // What a lost carrier was written is written, so it does not count as waiting.
  const suspended = keep(client, three.subarray(0, 100_000)).kept!.writing;
  assertEquals([keep(client, three).kept, await state(suspended)], [undefined, "pending"]);
  const second = await next();
  await answer(second, RESUMED, 200_000);
  assertEquals(await suspended, 100_000);
  assertEquals(await readExactly(second, 300_010), concat([record(two), record(three.subarray(0, 100_000))]));
  client.close();
});

for (const [link, milliseconds, then] of [["fast", 3, 768 * KiB], ["long", 50, 1536 * KiB]] as const) {
  Deno.test(`writes wait with 768 KiB unacknowledged, and on a ${link} link with ${then / KiB} later`, async () => {
    using clock = new ManualClock();
    const { client, far } = await connect({}, 8 * MiB);
    const roundTrip = async (count: number, size: number) => {
      await writeAll(client, pattern(size));
      const waiting = client.write(pattern(1));
      assertEquals(await state(waiting), "pending");
      clock.freeze(milliseconds);
      await writeAll(far, encodeAcknowledgement(count));
      assertEquals(await waiting, 1);
    };
    await roundTrip(768 * KiB, 768 * KiB);
    await roundTrip(768 * KiB + then, then - 1);
    client.close();
  });
}

Deno.test("a session's memory waits for several acknowledgements that come soon, and is kept without a copy", async () => {
  using clock = new ManualClock();
  const { client, far } = await connect({ maxUnacknowledged: 700_000 }, MiB);
  const [one, two] = [pattern(400_000, 1), pattern(400_000, 2)];
  assertEquals(await keep(client, one).kept!.writing, 400_000);
  const { writing } = keep(client, two).kept!;
  await writeAll(far, encodeAcknowledgement(50_000));
  await clock.advance(4);
  assertEquals(await state(writing), "pending");
  await writeAll(far, encodeAcknowledgement(100_000));
  assertEquals(await writing, 400_000);
  assertEquals(await readExactly(far, 800_010), concat([record(one), record(two)]));
  client.close();
});

for (
  const [why, max, count, milliseconds] of [
    ["the peer is slow", 700_000, 400_000, 5],
    ["too little is in flight for the next acknowledgement", 300_000, 200_000, 0],
  ] as const
) {
  Deno.test(`a session's memory is not kept if ${why}: a part of it is copied`, async () => {
    using clock = new ManualClock();
    const { client, far } = await connect({ maxUnacknowledged: max }, MiB);
    const [one, two] = [pattern(count, 1), pattern(count, 2)];
    assertEquals(await keep(client, one).kept!.writing, count);
    const { kept, memory } = keep(client, two);
    clock.freeze(milliseconds);
    await writeAll(far, encodeAcknowledgement(50_000));
    const room = max - count + 50_000;
    const copied = await kept!.writing;
    // The page of a copy may end before the room does.
    assertEquals(copied, Math.min(room, 256 * KiB - 5));
    // It belongs to the session again, which writes the rest.
    memory.fill(0);
    assertEquals(await readExactly(far, count + copied + 10), concat([record(one), record(two.subarray(0, copied))]));
    client.close();
  });
}

Deno.test("a session's memory does not wait for an acknowledgement that the peer sends only after its delay", async () => {
  using _clock = new ManualClock();
  const { client, far } = await connect({ maxUnacknowledged: 200_000 }, MiB);
  const [one, two] = [pattern(99_000, 1), pattern(150_000, 2)];
  assertEquals(await keep(client, one).kept!.writing, 99_000);
  const { writing } = keep(client, two).kept!;
  await turn();
  assertEquals([await state(writing), await writing], ["fulfilled", 101_000]);
  assertEquals(await readExactly(far, 200_010), concat([record(one), record(two.subarray(0, 101_000))]));
  client.close();
});

Deno.test("a session's memory is kept for reuse after its acknowledgement, until the connection ends", async () => {
  using _clock = new ManualClock();
  for (const hasEnded of [false, true]) {
    const { client, far } = await connect({}, MiB);
    const { kept, memory } = keep(client, pattern(80_000));
    await kept!.writing;
    await readExactly(far, 80_005);
    const reading = client.read(new Uint8Array(1));
    await writeAll(far, encodeAcknowledgement(80_000));
    await turn();
    if (hasEnded) client.close();
    const next = keep(client, pattern(80_000)).kept!;
    assertEquals(next.replacement.buffer === memory.buffer, !hasEnded);
    await next.writing.catch(() => {});
    client.close();
    await assertRejects(() => reading);
  }
});

Deno.test("a session's memory is refused after the end of writing, also when it waited for room", async () => {
  using _clock = new ManualClock();
  const { client, far } = await connect({ maxUnacknowledged: 100_000 }, MiB);
  assertEquals(await keep(client, pattern(80_000)).kept!.writing, 80_000);
  const waiting = keep(client, pattern(80_000)).kept!.writing;
  const closing = client.closeWrite();
  await readExactly(far, 80_006);
  await writeAll(far, encodeAcknowledgement(80_001));
  await closing;
  await assertRejects(() => waiting, Error, "Cannot write to a closed connection");
  await assertRejects(() => keep(client, pattern(80_000)).kept!.writing, Error, "Cannot write to a closed connection");
  client.close();
});
