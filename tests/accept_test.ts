/**
 * Accepting: the channel of streams that the peer opened, with any number of receivers.
 *
 * @module
 */

import {
  assert,
  assertEquals,
  assertInstanceOf,
  assertRejects,
  assertStrictEquals,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { FIN, NOP, PSH, SYN } from "../frame.ts";
import {
  bounded,
  Channel,
  ChannelClosedError,
  select,
  type ServerSessionOptions,
  Session,
  SessionClosedError,
  type Stream,
} from "../mod.ts";
import { clock } from "../_clock.ts";
import { DEFAULTS } from "../options.ts";
import { frame, memoryPair, RawPeer, readAll, sessionPair, tcpPair, turn, writeAll } from "./support.ts";

const ids = (first: number, count: number) => Array.from({ length: count }, (_, n) => first + 2 * n);
const ascending = (numbers: Iterable<number>) => Array.from(numbers).sort((a, b) => a - b);

/** A server's session, and a raw peer. */
function serverWithPeer(options: ServerSessionOptions = {}) {
  const [near, far] = memoryPair();
  const session = Session.server(far, { version: 2, ...options });
  return { session, peer: new RawPeer(near, 2), near };
}

/** Writes a number and returns the answer. */
async function exchange(stream: Stream, number: number): Promise<number> {
  await stream.write(new Uint8Array(Uint32Array.of(number).buffer));
  await stream.closeWrite();
  const answer = await readAll(stream);
  return new Uint32Array(answer.buffer)[0]!;
}

/** Reads a number, answers with its complement, and returns the number. */
async function serve(stream: Stream): Promise<number> {
  const [number] = new Uint32Array((await readAll(stream)).buffer);
  await stream.write(new Uint8Array(Uint32Array.of(~number!).buffer));
  await stream.closeWrite();
  return number!;
}

for (const version of [1, 2] as const) {
  Deno.test(`accepting: each of 10 000 streams in version ${version} reaches exactly one of 64 acceptors`, async () => {
    const COUNT = 10_000;
    const [near, far] = await tcpPair();
    const client = Session.client(near, { version });
    const server = Session.server(far, { version, acceptBacklog: COUNT, maxStreams: COUNT });

    // Each acceptor accepts until the session ends, and waits for the event loop after each stream.
    const accepted = Array.from({ length: 64 }, async () => {
      const mine: number[] = [];
      for (;;) {
        try {
          const stream = await server.acceptStream();
          mine.push(stream.id);
          await turn(1);
        } catch (error) {
          assertInstanceOf(error, SessionClosedError);
          assertEquals(error.cause, undefined);
          return mine;
        }
      }
    });
    const opened: number[] = [];
    for (let n = 0; n < COUNT; n++) opened.push((await client.openStream()).id);
    await client.close();

    const shares = await Promise.all(accepted);
    assertEquals(opened, ids(3, COUNT));
    assertEquals(ascending(shares.flat()), opened);
    assert(shares.every((share) => share.length > 0), "an acceptor received no stream");
    assertEquals([server.stats().accepted, server.stats().refused], [COUNT, 0]);
    await server.closed;
  });
}

Deno.test("accepting: default limits refuse none of 10 000 short streams while acceptors keep up", async () => {
  const COUNT = 10_000;
  const { client, server } = sessionPair();
  const seen: number[] = [];
  const acceptors = Array.from({ length: 64 }, async () => {
    for await (const stream of server) seen.push(await serve(stream));
  });
  let next = 0;
  const openers = Array.from({ length: 100 }, async () => {
    for (let number; (number = next++) < COUNT;) {
      using stream = await client.openStream();
      assertEquals(~(await exchange(stream, number)) >>> 0, number);
    }
  });
  await Promise.all(openers);
  await client.close();
  await Promise.all(acceptors);
  assertEquals(ascending(seen), Array.from({ length: COUNT }, (_, n) => n));
  const { accepted, refused, streams, pendingAccept } = server.stats();
  assertEquals({ accepted, refused, streams, pendingAccept }, {
    accepted: COUNT,
    refused: 0,
    streams: 0,
    pendingAccept: 0,
  });
});

Deno.test("accepting: select() waits for streams and jobs in one loop, until both channels are closed", async () => {
  const { client, server } = sessionPair();
  const jobs = new Channel<string>();
  const done: string[] = [];
  const loop = (async () => {
    let streams: typeof server.incoming | undefined = server.incoming;
    let open: typeof jobs | undefined = jobs;
    while (streams !== undefined || open !== undefined) {
      const event = await select({ stream: streams?.receiveCase(), job: open?.receiveCase() });
      if (event.key === "stream") {
        if (event.done) streams = undefined;
        else done.push(`stream ${event.value.id}`);
      } else {
        if (event.done) open = undefined;
        else done.push(`job ${event.value}`);
      }
    }
  })();
  for (let n = 1; n <= 3; n++) {
    await client.openStream();
    // The send resolves when the loop receives again.
    await jobs.send(`${n}`);
  }
  await client.close();
  jobs.close();
  await loop;
  assertEquals(done.toSorted(), ["job 1", "job 2", "job 3", "stream 3", "stream 5", "stream 7"]);
});

Deno.test("accepting: a select() that receives a job leaves the stream to the next acceptor", async () => {
  const { client, server } = sessionPair();
  const jobs = new Channel<string>({ capacity: 1 });
  jobs.trySend("now");
  const { id } = await client.openStream();
  await turn();
  const event = await select({ job: jobs.receiveCase(), stream: server.incoming.receiveCase() }, { biased: true });
  assertEquals(event.key, "job");
  assertEquals((await server.acceptStream()).id, id);
  await client.close();
});

/** Workers that receive streams from one channel, and the numbers that they served. */
function pool(workers: number, capacity: number) {
  const { sender, receiver } = bounded<Stream>(capacity);
  const served: number[][] = Array.from({ length: workers }, () => []);
  const finished = Promise.all(served.map(async (mine) => {
    for await (const stream of receiver) {
      try {
        mine.push(await serve(stream));
      } catch (error) {
        // The session of this stream ended; the pool continues.
        assertInstanceOf(error, SessionClosedError);
      }
    }
  }));
  return { sender, receiver, served, finished };
}

Deno.test("accepting: 8 workers serve each of 10 000 streams of 20 sessions once, through one channel", async () => {
  const SESSIONS = 20, STREAMS = 500, AT_ONCE = 25;
  const { sender, served, finished } = pool(8, SESSIONS * AT_ONCE);
  const pairs = Array.from({ length: SESSIONS }, (_, n) => {
    const version = n % 2 === 0 ? 1 : 2;
    return sessionPair({ version, server: { incoming: sender.clone() } });
  });
  sender.close();
  assertEquals(sender.senderCount, SESSIONS);

  await Promise.all(pairs.map(async ({ client, server }, session) => {
    let next = 0;
    await Promise.all(Array.from({ length: AT_ONCE }, async () => {
      for (let n; (n = next++) < STREAMS;) {
        const number = session * STREAMS + n;
        using stream = await client.openStream();
        assertEquals(~(await exchange(stream, number)) >>> 0, number);
      }
    }));
    await client.close();
    await server.closed;
  }));

  // All senders are closed, so the loops of the workers end.
  await finished;
  assertEquals(sender.senderCount, 0);
  assertEquals(ascending(served.flat()), Array.from({ length: SESSIONS * STREAMS }, (_, n) => n));
  assert(served.every((mine) => mine.length > 0), "a worker received no stream");
  for (const { server } of pairs) assertEquals([server.stats().accepted, server.stats().refused], [STREAMS, 0]);
});

Deno.test("accepting: a session that ends uncleanly closes its sender, and the pool continues with the others", async () => {
  const { sender, served, finished } = pool(2, 8);
  const [lost, kept] = [1, 2].map(() => sessionPair({ server: { incoming: sender.clone() } }));
  sender.close();
  const half = await lost!.client.openStream();
  await half.write(new Uint8Array(4));
  const whole = await kept!.client.openStream();
  assertEquals(~(await exchange(whole, 7)) >>> 0, 7);

  const reason = new Error("Connection reset by peer");
  lost!.connections[0].reset(reason);
  assertStrictEquals(await assertRejects(() => lost!.server.closed), reason);
  assertEquals(sender.senderCount, 1);

  const next = await kept!.client.openStream();
  assertEquals(~(await exchange(next, 8)) >>> 0, 8);
  await kept!.client.close();
  await finished;
  assertEquals(served.flat().toSorted(), [7, 8]);
});

Deno.test("accepting: with the caller's channel, incoming, iteration and acceptStream() are a TypeError", async () => {
  const { sender, receiver } = bounded<Stream>(1);
  const { client, server } = sessionPair({ server: { incoming: sender } });
  assertThrows(() => server.incoming, TypeError, "options.incoming");
  assertThrows(() => server[Symbol.asyncIterator](), TypeError);
  await assertRejects(() => server.acceptStream(), TypeError);
  await client.openStream();
  assertEquals((await receiver.receive()).id, 3);
  await client.close();
  assert(await assertRejects(() => receiver.receive()) instanceof ChannelClosedError);
});

Deno.test("accepting: incoming together with acceptBacklog is a TypeError", () => {
  const { sender } = bounded<Stream>(1);
  for (const start of [Session.client, Session.server]) {
    const [near] = memoryPair();
    const error = assertThrows(() => start(near, { incoming: sender, acceptBacklog: 1 }), TypeError);
    assertStringIncludes(error.message, "acceptBacklog");
    assertStringIncludes(error.message, "incoming");
    assertEquals(near.isClosed, false);
  }
});

Deno.test("accepting: a session that cannot start closes its clone of the caller's channel, and leaves the transport alone", async () => {
  const transport = { readable: new ReadableStream<Uint8Array>(), writable: new WritableStream<Uint8Array>() };
  const invalid = [{ maxFrameSize: 0 }, { acceptBacklog: 1 }, { version: 3 as 1 }, { onFrame: 1 as never }];
  for (const start of [Session.client, Session.server]) {
    const { sender, receiver } = bounded<Stream>(1);
    for (const options of invalid) assertThrows(() => start(transport, { incoming: sender.clone(), ...options }));
    for (const wrong of [{}, null]) assertThrows(() => start(wrong as never, { incoming: sender.clone() }), TypeError);
    assertEquals(receiver.senderCount, 1);
    sender.close();
    await assertRejects(() => receiver.receive(), ChannelClosedError);
    assertThrows(() => start(transport, null as never), TypeError);
  }
  assertEquals([transport.readable.locked, transport.writable.locked], [false, false]);
});

Deno.test("accepting: an incoming that is not a Sender is a TypeError", () => {
  const { receiver } = bounded<Stream>(1);
  for (const incoming of [receiver, new Channel<Stream>(), {}, null, 5]) {
    const [near] = memoryPair();
    assertThrows(() => Session.server(near, { incoming } as unknown as ServerSessionOptions), TypeError, "incoming");
  }
});

Deno.test("accepting: a stream is refused when the caller's channel is full or has no receiver", async () => {
  const { sender, receiver } = bounded<Stream>(1);
  const { session, peer } = serverWithPeer({ incoming: sender });
  for (const id of [3, 5]) await peer.send(SYN, id);
  assertEquals((await peer.nextOf(FIN)).id, 5);
  assertEquals(session.stats().pendingAccept, 1);
  receiver.drain();
  receiver.close();
  await peer.send(SYN, 7);
  assertEquals((await peer.nextOf(FIN)).id, 7);
  const { accepted, refused } = session.stats();
  assertEquals({ accepted, refused }, { accepted: 1, refused: 2 });
  session.abort();
});

/** Opens streams in one transport write, each with a byte of data; returns the ids of those that were answered. */
async function burst(count: number, peer: RawPeer): Promise<Set<number>> {
  const frames = ids(3, count).flatMap((id) => [frame(2, SYN, id), frame(2, PSH, id, Uint8Array.of(1))]);
  const sending = peer.bytes(...frames);
  const answered = new Set<number>();
  const ended = new Set<number>();
  while (answered.size + ended.size < count) {
    const { command, id } = (await peer.next())!;
    if (command === PSH) answered.add(id);
    else if (command === FIN && !answered.has(id)) ended.add(id);
  }
  await sending;
  return answered;
}

/** Reads a byte of a stream, sends it back and closes the stream. */
async function answer(stream: Stream): Promise<void> {
  const p = new Uint8Array(1);
  await stream.read(p);
  await stream.write(p);
  stream.close();
}

for (const acceptors of [1, 8]) {
  Deno.test(`accepting: none of 3000 streams opened at once is refused while ${acceptors} acceptors only accept`, async () => {
    for (const acceptBacklog of [1, 16, DEFAULTS.acceptBacklog]) {
      const { session, peer } = serverWithPeer({ acceptBacklog });
      const accept = async () => {
        for await (const stream of session) answer(stream);
      };
      const accepting = Promise.all(Array.from({ length: acceptors }, accept));
      assertEquals((await burst(3000, peer)).size, 3000, `acceptBacklog ${acceptBacklog}`);
      assertEquals(session.stats().refused, 0);
      session.abort();
      await accepting.catch(() => {});
    }
  });
}

Deno.test("accepting: a pool that only accepts receives all of 1000 streams opened at once, with a channel of any capacity", async () => {
  for (const capacity of [0, 1, 100]) {
    const { sender, receiver } = bounded<Stream>(capacity);
    const { session, peer } = serverWithPeer({ incoming: sender });
    const accept = async () => {
      for await (const stream of receiver.clone()) answer(stream);
    };
    const accepting = [accept(), accept()];
    receiver.close();
    assertEquals((await burst(1000, peer)).size, 1000, `capacity ${capacity}`);
    session.abort();
    await Promise.allSettled(accepting);
  }
});

Deno.test("accepting: the process yields after 256 new streams of one read, although the channel has room", async () => {
  const { yieldToEventLoop } = clock;
  for (const [count, expected] of [[255, 0], [256, 1], [512, 2]] as const) {
    const { session, peer } = serverWithPeer({});
    let yields = 0;
    clock.yieldToEventLoop = () => {
      yields++;
      return yieldToEventLoop();
    };
    try {
      await peer.bytes(...ids(3, count).map((id) => frame(2, SYN, id)));
      while (session.stats().pendingAccept < count) await turn();
      await turn();
      session.abort();
      await session.closed.catch(() => {});
      assertEquals(yields, expected, `${count} streams`);
    } finally {
      clock.yieldToEventLoop = yieldToEventLoop;
    }
  }
});

Deno.test("accepting: a full channel without a receiver costs one yield, then streams are refused at once", async () => {
  const { session, peer } = serverWithPeer({ acceptBacklog: 10 });
  const { yieldToEventLoop } = clock;
  let yields = 0;
  clock.yieldToEventLoop = () => {
    yields++;
    return yieldToEventLoop();
  };
  try {
    const answering = burst(1010, peer);
    while (session.stats().refused < 1000) await turn();
    assertEquals([session.stats().pendingAccept, yields], [10, 1]);
    // After a place is freed, a stream fills it, and the next stream waits for the event loop once again.
    const accept = async () => {
      for await (const stream of session) answer(stream);
    };
    const accepting = accept();
    assertEquals((await answering).size, 10);
    session.abort();
    await accepting.catch(() => {});
  } finally {
    clock.yieldToEventLoop = yieldToEventLoop;
  }
});

Deno.test("accepting: frames after a SYN that waits for its acceptor keep their order on each stream", async () => {
  const { session, peer } = serverWithPeer({ acceptBacklog: 1 });
  const parts = ids(3, 4).flatMap((id) => [
    frame(2, SYN, id),
    frame(2, PSH, 3, Uint8Array.of(id)),
    frame(2, PSH, id, new Uint8Array(5000).fill(id)),
  ]);
  const accepted: Stream[] = [];
  const accept = async () => {
    for await (const stream of session) {
      accepted.push(stream);
      // A read between two parts of a batch must not pass on the buffer that is still being decoded.
      if (stream.id === 3) await stream.read(new Uint8Array(2));
    }
  };
  const accepting = accept();
  await peer.bytes(...parts, frame(2, FIN, 3));
  while (accepted.length < 4) await turn();
  const first = await readAll(accepted[0]!);
  assertEquals(first.length, 4 + 5000 - 2);
  assertEquals(Array.from(first.subarray(-3)), [5, 7, 9]);
  for (const stream of accepted.slice(1)) {
    const p = new Uint8Array(6000);
    assertEquals(await stream.read(p), 5000);
    assert(p.subarray(0, 5000).every((byte) => byte === stream.id));
  }
  session.abort();
  await accepting.catch(() => {});
});

Deno.test("accepting: a client accepts a stream that its server opens", async () => {
  const { client, server } = sessionPair();
  const opened = await server.openStream();
  assertEquals(opened.id, 2);
  const accepted = await client.acceptStream();
  assertEquals(accepted.id, 2);
  await opened.write(Uint8Array.of(1, 2, 3));
  await opened.closeWrite();
  assertEquals(await readAll(accepted), Uint8Array.of(1, 2, 3));
  await client.close();
});

Deno.test("accepting: an aborted acceptStream() rejects with the signal's reason and leaves the stream in the channel", async () => {
  const { client, server } = sessionPair();
  const controller = new AbortController();
  const waiting = [server.acceptStream({ signal: controller.signal }), server.acceptStream()];
  const reason = new Error("Aborted");
  controller.abort(reason);
  assertStrictEquals(await assertRejects(() => waiting[0]!), reason);
  const first = await client.openStream();
  assertEquals((await waiting[1]!).id, first.id);

  // An aborted signal does not prevent receiving a stream that is present.
  const second = await client.openStream();
  await turn();
  assertEquals((await server.acceptStream({ signal: controller.signal })).id, second.id);
  assertStrictEquals(await assertRejects(() => server.acceptStream({ signal: controller.signal })), reason);
  await client.close();
});

Deno.test("accepting: concurrent loops share the streams", async () => {
  const { client, server } = sessionPair();
  const shares: number[][] = [[], [], []];
  const loops = shares.map(async (mine, n) => {
    for await (const stream of n === 0 ? server : server.incoming) {
      mine.push(stream.id);
      await turn();
    }
  });
  for (let n = 0; n < 30; n++) await client.openStream();
  await client.close();
  await Promise.all(loops);
  assertEquals(ascending(shares.flat()), ids(3, 30));
  assert(shares.every((mine) => mine.length > 0));
});

Deno.test("accepting: breaking out of a loop leaves the session open, and the next loop receives later streams", async () => {
  const { client, server } = sessionPair();
  for (let n = 0; n < 3; n++) await client.openStream();
  const seen: number[] = [];
  for await (const stream of server) {
    seen.push(stream.id);
    if (seen.length === 2) break;
  }
  const stream = await client.openStream();
  for await (const { id } of server) {
    seen.push(id);
    if (id === stream.id) break;
  }
  assertEquals(seen, [3, 5, 7, 9]);
  await client.close();
});

Deno.test("accepting: after a clean end a loop yields the streams that had arrived, then ends", async () => {
  for (const end of ["local", "remote"] as const) {
    const { client, server } = sessionPair();
    for (let n = 0; n < 3; n++) await client.openStream();
    await turn();
    const ended = end === "local" ? server.close() : client.close();
    await server.closed;
    const seen: number[] = [];
    for await (const stream of server) seen.push(stream.id);
    assertEquals(seen, [3, 5, 7]);
    assertEquals(await Array.fromAsync(server), []);
    const error = await assertRejects(() => server.acceptStream(), SessionClosedError);
    assertEquals(error.cause, undefined);
    await ended;
  }
});

Deno.test("accepting: after an unclean end a loop yields the streams that had arrived, then rejects with the reason as cause", async () => {
  const { session, peer, near } = serverWithPeer();
  for (const id of [3, 5, 7]) await peer.send(SYN, id);
  await peer.send(PSH, 5, Uint8Array.of(1, 2, 3));
  await turn();
  const reason = new Error("Connection reset by peer");
  near.reset(reason);
  await assertRejects(() => session.closed);

  const seen: Stream[] = [];
  const error = await assertRejects(async () => {
    for await (const stream of session) seen.push(stream);
  }, SessionClosedError);
  assertStrictEquals(error.cause, reason);
  assertEquals(seen.map((stream) => stream.id), [3, 5, 7]);
  assertEquals(await seen[1]!.read(new Uint8Array(10)), 3);

  // Later calls reject in the same way.
  assertStrictEquals((await assertRejects(() => session.acceptStream(), SessionClosedError)).cause, reason);
  await assertRejects(() => Array.fromAsync(session.incoming), SessionClosedError);
});

Deno.test("accepting: all pending accepts reject with the reason as cause when the session is aborted", async () => {
  const { session } = serverWithPeer();
  const waiting = [
    session.acceptStream(),
    session.incoming.receive(),
    Array.fromAsync(session),
    Array.fromAsync(session.incoming.toReadableStream()),
  ].map((wait) => assertRejects(() => wait, SessionClosedError));
  const reason = new Error("Enough");
  session.abort(reason);
  for (const error of await Promise.all(waiting)) assertStrictEquals(error.cause, reason);
});

Deno.test("accepting: streams beyond the backlog are refused with FIN, and the session continues", async () => {
  const { session, peer } = serverWithPeer({ acceptBacklog: 2 });
  for (const id of [3, 5, 7, 9]) await peer.send(SYN, id);
  for (const id of [7, 9]) {
    const refusal = await peer.next();
    assertEquals([refusal?.command, refusal?.id], [FIN, id]);
  }
  // Data for a refused stream is dropped, and its FIN is not answered.
  await peer.send(PSH, 7, Uint8Array.of(1));
  await peer.send(FIN, 7);
  await peer.send(NOP, 0);
  await turn();
  const { accepted, refused, pendingAccept, streams, bytesUnread, framesSent } = session.stats();
  assertEquals({ accepted, refused, pendingAccept, streams, bytesUnread, framesSent }, {
    accepted: 2,
    refused: 2,
    pendingAccept: 2,
    streams: 2,
    bytesUnread: 0,
    framesSent: 2,
  });

  // The next stream uses the freed place, with the id of a refused stream too.
  assertEquals((await session.acceptStream()).id, 3);
  await peer.send(SYN, 7);
  await peer.send(PSH, 7, Uint8Array.of(2));
  assertEquals((await session.acceptStream()).id, 5);
  const again = await session.acceptStream();
  assertEquals(again.id, 7);
  const p = new Uint8Array(2);
  assertEquals([await again.read(p), p[0]], [1, 2]);
  session.abort();
});

Deno.test("accepting: a refused stream has ended for its opener, whose writes are dropped", async () => {
  const { client, server } = sessionPair({ server: { acceptBacklog: 1 } });
  await client.openStream();
  const refused = await client.openStream();
  assertEquals(await refused.read(new Uint8Array(1)), null);
  assertEquals(await refused.write(Uint8Array.of(1)), 1);
  await refused.closeWrite();
  await refused.closed;
  assertEquals(server.stats().refused, 1);
  await (await server.acceptStream()).write(Uint8Array.of(1));
  await client.close();
  await server.closed;
});

Deno.test("accepting: a stream that its peer ended before it was accepted is accepted with its data", async () => {
  const { session, peer } = serverWithPeer();
  await peer.send(SYN, 3);
  await peer.send(PSH, 3, Uint8Array.of(1, 2));
  await peer.send(FIN, 3);
  await turn();
  const stream = await session.acceptStream();
  assertEquals(await readAll(stream), Uint8Array.of(1, 2));
  session.abort();
});

Deno.test("accepting: incoming as a readable stream yields each stream, reads none ahead, and ends with the session", async () => {
  const { client, server } = sessionPair();
  for (let n = 0; n < 4; n++) await client.openStream();
  const reader = server.incoming.toReadableStream().getReader();
  assertEquals((await reader.read()).value?.id, 3);
  await reader.cancel();
  // Nothing was read ahead, so the other streams are still in the channel.
  assertEquals((await server.acceptStream()).id, 5);
  const rest: number[] = [];
  const piped = server.incoming.toReadableStream().pipeTo(
    new WritableStream({ write: (stream) => void rest.push(stream.id) }),
  );
  await client.close();
  await piped;
  assertEquals(rest, [7, 9]);
});

Deno.test("accepting: closing incoming closes the streams in it and refuses later ones, and the session continues", async () => {
  const { client, server } = sessionPair();
  const first = await client.openStream();
  await writeAll(first, Uint8Array.of(1, 2, 3));
  await turn();
  assertEquals(server.stats().bytesUnread, 3);
  server.incoming.close();
  assertEquals(await first.read(new Uint8Array(1)), null);
  assertEquals([server.stats().bytesUnread, server.stats().streams], [0, 0]);
  const second = await client.openStream();
  assertEquals(await second.read(new Uint8Array(1)), null);
  assertEquals(server.stats().refused, 1);
  assertEquals((await server.openStream()).id, 2);
  await client.close();
  await server.closed;
});
