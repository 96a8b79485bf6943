/** `Stream.abort()` and `StreamResetError`: the signal on the wire, both ends of it, and what passes it on. */

import { assert, assertEquals, assertInstanceOf, assertRejects, assertStrictEquals } from "@std/assert";
import { concat } from "@std/bytes";
import { type Command, FIN, NOP, PSH, SYN, UPD } from "../frame.ts";
import { join, Session, SessionClosedError, type Stream, StreamClosedError, StreamResetError } from "../mod.ts";
import { complement, ResetDetector } from "../_reset.ts";
import { coreOf } from "../stream.ts";
import {
  bytes,
  frame,
  KiB,
  ManualClock,
  memoryPair,
  MiB,
  RawPeer,
  readAll,
  readSome,
  readText,
  sessionPair,
  state,
  tcpPair,
  turn,
  withPeer,
} from "./support.ts";

const VERSIONS = [1, 2] as const;
const REASON = new Error("the disk is full");

/** Both ends of a stream between two sessions, which are aborted when disposed. */
async function streamPair(options: Parameters<typeof sessionPair>[0] = {}) {
  const { client, server, connections } = sessionPair(options);
  const [near, far] = await Promise.all([client.openStream(), server.acceptStream()]);
  return {
    near,
    far,
    client,
    server,
    connections,
    [Symbol.dispose]() {
      client.abort();
      server.abort();
    },
  };
}

/** A stream of a client whose peer reads only on request. */
async function toPeer(version: 1 | 2, capacity?: number) {
  const [connection, remote] = memoryPair(capacity);
  const session = Session.client(connection, { version });
  const peer = new RawPeer(remote, version);
  const stream = await session.openStream();
  assertEquals((await peer.next())!.command, NOP);
  return { session, peer, stream, [Symbol.dispose]: () => session.abort() };
}

/** A stream that a raw peer opened on a server's session. */
async function fromPeer(version: 1 | 2) {
  const all = withPeer("server", version);
  await all.peer.send(SYN, 3);
  const stream = await all.session.acceptStream();
  return { ...all, stream, [Symbol.dispose]: () => all.session.abort() };
}

/** Sends the signal for a stream. */
async function reset(peer: RawPeer, id: number): Promise<void> {
  await peer.send(NOP, id);
  await peer.send(NOP, complement(id));
}

/** Writes until no room or credit is left; the last write stays pending. */
async function fill(stream: Stream): Promise<{ writing: Promise<number> }> {
  for (;;) {
    const writing = stream.write(new Uint8Array(64 * KiB));
    writing.catch(() => {});
    if (await state(writing) === "pending") return { writing };
  }
}

/** Frames of one stream, to send in one write. */
class RawSignal {
  readonly pair: Uint8Array;
  readonly fin: Uint8Array;
  readonly data: (text: string) => Uint8Array;

  constructor(version: 1 | 2, id: number) {
    this.pair = concat([frame(version, NOP, id), frame(version, NOP, complement(id))]);
    this.fin = frame(version, FIN, id);
    this.data = (text) => frame(version, PSH, id, bytes(text));
  }
}

/** The next frames of a peer, as `[command, id]`; data by its length. */
async function frames(peer: RawPeer, count: number): Promise<[Command, number][]> {
  const seen: [Command, number][] = [];
  while (seen.length < count) {
    const frame = await peer.next();
    assert(frame !== null);
    seen.push([frame.command, frame.command === PSH ? frame.data.length : frame.id]);
  }
  return seen;
}

const COMPLEMENT = 4294967292;

// The signal

Deno.test("ResetDetector recognizes two adjacent NOPs with complementary ids, and nothing else", () => {
  const cases: [nops: [id: number, position: number][], found: (number | undefined)[]][] = [
    [[[3, 1], [COMPLEMENT, 2]], [undefined, 3]],
    [[[COMPLEMENT, 1], [3, 2]], [undefined, COMPLEMENT]],
    [[[3, 1], [COMPLEMENT, 3]], [undefined, undefined]],
    [[[3, 1], [5, 2], [COMPLEMENT, 3]], [undefined, undefined, undefined]],
    [[[3, 1], [3, 2], [COMPLEMENT, 3]], [undefined, undefined, 3]],
    // The second NOP of a signal begins no other.
    [[[3, 1], [COMPLEMENT, 2], [3, 3], [COMPLEMENT, 4]], [undefined, 3, undefined, 3]],
    [[[0, 1], [0, 2], [77, 3]], [undefined, undefined, undefined]],
    [[[2 ** 31, 1], [2 ** 31 - 1, 2]], [undefined, 2 ** 31]],
  ];
  for (const [nops, found] of cases) {
    const resets = new ResetDetector();
    assertEquals(nops.map(([id, position]) => resets.nop(id, position)), found);
  }
});

for (const version of VERSIONS) {
  Deno.test(`Stream.abort(): version ${version}: sends the data already encoded, the signal, then FIN`, async () => {
    using all = await toPeer(version);
    await all.stream.write(bytes("half"));
    all.stream.abort(REASON);
    const signal: [Command, number][] = [[NOP, 3], [NOP, COMPLEMENT], [FIN, 3]];
    assertEquals(await frames(all.peer, 5), [[SYN, 3], [PSH, 4], ...signal]);
    assertEquals(all.session.stats().streams, 0);
  });

  Deno.test(`Stream.abort(): version ${version}: sends no second FIN after closeWrite()`, async () => {
    using all = await toPeer(version);
    await all.stream.write(bytes("whole"));
    await all.stream.closeWrite();
    all.stream.abort(REASON);
    const signal: [Command, number][] = [[NOP, 3], [NOP, COMPLEMENT]];
    assertEquals(await frames(all.peer, 5), [[SYN, 3], [PSH, 5], [FIN, 3], ...signal]);
    assertEquals(all.session.stats().streams, 0);
    const next = await all.session.openStream();
    assertEquals(await frames(all.peer, 1), [[SYN, next.id]]);
  });

  Deno.test(`Stream.abort(): version ${version}: without room for control frames, FIN and signal follow in order`, async () => {
    using all = await toPeer(version, 1000);
    const ended = await all.session.openStream();
    const others = await Promise.all(Array.from({ length: 12_000 }, () => all.session.openStream()));
    await fill(others[0]!);
    // Their FINs fill the reserved room.
    for (const other of others) other.close();
    const before = all.session.stats().bytesUnsent;
    const closing = ended.closeWrite();
    for (const stream of [ended, all.stream]) stream.abort(REASON);
    assertEquals(all.session.stats().bytesUnsent, before);
    await assertRejects(() => closing, Error, REASON.message);

    const seen: string[] = [];
    for (let isDone = false; !isDone;) {
      const { command, id } = (await all.peer.next())!;
      const isOfBoth = [3, 5, complement(3), complement(5)].includes(id);
      if (command !== SYN && (isOfBoth || (seen.length > 0 && command === NOP))) seen.push(`${command} ${id}`);
      isDone = command === FIN && id === 3;
    }
    assertEquals(seen, [
      ...[`${FIN} 5`, `${NOP} 5`, `${NOP} ${complement(5)}`],
      ...[`${NOP} 3`, `${NOP} ${complement(3)}`, `${FIN} 3`],
    ]);
    while (all.session.stats().streams > 0) await all.peer.next();
  });

  // The aborting end

  Deno.test(`Stream.abort(): version ${version}: reads, writes, closeWrite() and closed reject with the reason`, async () => {
    using all = await toPeer(version, 1000);
    const { stream } = all;
    const { writing } = await fill(stream);
    const reading = stream.read(new Uint8Array(1));
    const closing = stream.closeWrite();
    stream.abort(REASON);
    stream.abort(new Error("a second reason"));
    for (const operation of [writing, reading, closing, stream.closed]) {
      assertStrictEquals(await operation.catch((error: unknown) => error), REASON);
    }
    assertStrictEquals(await stream.read(new Uint8Array(1)).catch((error) => error), REASON);
    await assertRejects(() => stream.write(bytes("x")), StreamClosedError);
    assertEquals("bytesWritten" in REASON, false);
    assertEquals(all.session.stats().streams, 0);
  });

  Deno.test(`Stream.abort(): version ${version}: unread bytes are dropped, and their room is free`, async () => {
    using all = await streamPair({ version });
    await all.far.write(new Uint8Array(1000));
    await turn();
    assertEquals(all.client.stats().bytesUnread, 1000);
    all.near.abort(REASON);
    assertEquals(all.client.stats().bytesUnread, 0);
    assertStrictEquals(await all.near.read(new Uint8Array(1)).catch((error) => error), REASON);
    assertStrictEquals(await all.near.write(bytes("x")).catch((error) => error), REASON);
    assertStrictEquals(await all.near.closed.catch((error) => error), REASON);
  });

  // The peer

  Deno.test(`Stream.read(): version ${version}: after abort() of the peer returns what had arrived, then rejects`, async () => {
    using all = await streamPair({ version });
    await all.near.write(bytes("some"));
    await all.near.write(bytes(" more"));
    all.near.abort(REASON);
    await turn();
    assertEquals(await readText(all.far, 3), "som");
    assertEquals(await readText(all.far), "e more");
    for (let n = 0; n < 2; n++) {
      const error = await assertRejects(() => all.far.read(new Uint8Array(1)), StreamResetError);
      assertEquals("bytesWritten" in error, false);
    }
    await assertRejects(() => all.far.closed, StreamResetError);
  });

  Deno.test(`Stream.read(): version ${version}: a waiting read receives the bytes before the signal, the next rejects`, async () => {
    using all = await fromPeer(version);
    const reads = [readText(all.stream), readText(all.stream)];
    const failed = assertRejects(() => reads[1]!, StreamResetError);
    const signal = new RawSignal(version, 3);
    await all.peer.bytes(signal.data("abc"), signal.pair, signal.fin);
    assertEquals(await reads[0], "abc");
    await failed;
    assertEquals([all.session.stats().streams, all.session.stats().bytesUnread], [0, 0]);
  });

  Deno.test(`Stream.write(): version ${version}: pending and later writes reject at once after abort() of the peer`, async () => {
    using all = await toPeer(version, 1000);
    const { writing } = await fill(all.stream);
    await reset(all.peer, 3);
    const error = await assertRejects(() => writing, StreamResetError);
    assert(error.bytesWritten! >= 0 && error.bytesWritten! < 64 * KiB);
    const later = await assertRejects(() => all.stream.write(bytes("x")), StreamResetError);
    assertEquals(later.bytesWritten, 0);
    await assertRejects(() => all.stream.closeWrite(), StreamResetError);
    assertEquals(all.session.stats().streams, 0);
  });

  Deno.test(`Stream.abort(): version ${version}: a direction that ended before is read to its end, the other rejects`, async () => {
    using all = await streamPair({ version });
    await all.near.write(bytes("a whole request"));
    await all.near.closeWrite();
    all.near.abort(REASON);
    await turn();
    assertEquals(await readText(all.far), "a whole request");
    assertEquals(await all.far.read(new Uint8Array(1)), null);
    await assertRejects(() => all.far.write(bytes("an answer")), StreamResetError);
    await assertRejects(() => all.far.closed, StreamResetError);
    assertEquals([all.client.stats().streams, all.server.stats().streams], [0, 0]);
  });

  Deno.test(`Stream.readable, writable: version ${version}: fail with the reset of the peer, and with the local reason`, async () => {
    using all = await streamPair({ version });
    await all.near.write(bytes("some"));
    const reader = all.far.readable.getReader();
    const writer = all.far.writable.getWriter();
    const local = [all.near.readable.getReader(), all.near.writable.getWriter()];
    all.near.abort(REASON);
    for (const { closed } of local) assertStrictEquals(await closed.catch((error) => error), REASON);
    await turn();
    assertEquals((await reader.read()).value, bytes("some"));
    await assertRejects(() => reader.read(), StreamResetError);
    await assertRejects(() => reader.closed, StreamResetError);
    await assertRejects(() => writer.closed, StreamResetError);
  });

  Deno.test(`Stream.abort(): version ${version}: a stream that was not accepted yet yields its bytes, then rejects`, async () => {
    const { client, server } = sessionPair({ version });
    const near = await client.openStream();
    await near.write(bytes("early"));
    near.abort(REASON);
    await turn();
    const far = await server.acceptStream();
    assertEquals(await readText(far), "early");
    await assertRejects(() => far.read(new Uint8Array(1)), StreamResetError);
    assertEquals(server.stats().streams, 0);
    client.abort();
    server.abort();
  });

  Deno.test(`rule 5: version ${version}: an aborted stream counts as open until its error was received or it is closed`, async () => {
    for (const notice of ["read", "close"] as const) {
      const { client, server } = sessionPair({ version, server: { maxStreams: 1 } });
      const near = await client.openStream();
      const far = await server.acceptStream();
      near.abort(REASON);
      await turn();
      assertEquals(server.stats().streams, 1);
      // Refused: its handler would run beside the first.
      const second = await client.openStream();
      assertEquals(await second.read(new Uint8Array(1)), null);
      if (notice === "read") await assertRejects(() => far.read(new Uint8Array(1)), StreamResetError);
      else far.close();
      assertEquals(server.stats().streams, 0);
      client.abort();
      server.abort();
    }
  });

  // What has no effect

  Deno.test(`version ${version}: half a signal, a divided one, and one for another stream have no effect`, async () => {
    using all = await fromPeer(version);
    const { stream, peer } = all;
    await peer.send(NOP, 3);
    await peer.send(PSH, 3, bytes("a"));
    await peer.send(NOP, COMPLEMENT);
    await peer.send(NOP, 3);
    await peer.send(NOP, 0);
    await peer.send(NOP, COMPLEMENT);
    for (const id of [0, 1, 2, 5, 2 ** 32 - 1]) await reset(peer, id);
    await peer.send(PSH, 3, bytes("b"));
    await peer.send(FIN, 3);
    assertEquals(await readAll(stream), bytes("ab"));
    assertEquals(await stream.write(bytes("c")), 1);
  });

  Deno.test(`version ${version}: a signal for a stream that was closed or has ended has no effect`, async () => {
    using all = await fromPeer(version);
    const { stream, peer, session } = all;
    await peer.send(SYN, 5);
    const second = await session.acceptStream();
    stream.close();
    await second.closeWrite();
    await peer.send(PSH, 5, bytes("all"));
    await peer.send(FIN, 5);
    for (const id of [3, 5]) await reset(peer, id);
    assertEquals(await readText(second), "all");
    assertEquals(await readText(second), "(end)");
    await second.closed;
    await stream.closed;
    // A new stream with the id of a closed one.
    await peer.send(SYN, 3);
    const third = await session.acceptStream();
    await peer.send(PSH, 3, bytes("new"));
    assertEquals(await readText(third), "new");
  });

  Deno.test(`Stream.abort(): version ${version}: after both directions have ended sends nothing and leaves closed resolved`, async () => {
    using all = await streamPair({ version });
    await Promise.all([all.near, all.far].map((stream) => stream.write(bytes("all"))));
    await Promise.all([all.near.closeWrite(), all.far.closeWrite()]);
    await turn();
    const { framesSent, streams } = all.client.stats();
    assertEquals(streams, 0);
    all.near.abort(REASON);
    // First read here: it would be the same promise later.
    await all.near.closed;
    await turn();
    assertEquals(all.client.stats().framesSent, framesSent);
    assertStrictEquals(await all.near.read(new Uint8Array(1)).catch((error) => error), REASON);
    assertEquals(await readText(all.far), "all");
  });

  Deno.test(`Stream.abort(): version ${version}: close() before keeps its effect, close() after changes only the errors`, async () => {
    using all = await streamPair({ version });
    all.near.close();
    all.near.abort(REASON);
    await all.near.closed;
    assertEquals(await all.far.read(new Uint8Array(1)), null);
    all.far.abort(REASON);
    all.far.close();
    await assertRejects(() => all.far.read(new Uint8Array(1)), StreamClosedError);
    assertStrictEquals(await all.far.closed.catch((error) => error), REASON);
  });

  // The session

  Deno.test(`Stream.abort(): version ${version}: a session that closes gracefully sends the signal`, async () => {
    using all = await streamPair({ version });
    await all.near.write(bytes("half"));
    all.near.abort(REASON);
    await all.client.close();
    assertEquals(await readText(all.far), "half");
    await assertRejects(() => all.far.read(new Uint8Array(1)), StreamResetError);
  });

  Deno.test(`Stream.abort(): version ${version}: the other streams of the session go on`, async () => {
    using all = await streamPair({ version });
    const [other, accepted] = await Promise.all([all.client.openStream(), all.server.acceptStream()]);
    const received = readAll(accepted);
    for (let n = 0; n < 10; n++) {
      await other.write(new Uint8Array(10 * KiB));
      const [one] = await Promise.all([all.client.openStream(), all.server.acceptStream()]);
      one.abort(REASON);
    }
    await other.closeWrite();
    assertEquals((await received).length, 100 * KiB);
  });

  // What passes it on

  Deno.test(`join(): version ${version}: a connection that fails aborts the stream, whose peer reads what came before`, async () => {
    const { client, server } = sessionPair({ version });
    const [near, far] = await Promise.all([client.openStream(), server.acceptStream()]);
    const [a, origin] = memoryPair();
    const joined = assertRejects(() => join(far, a), Error, REASON.message);
    await origin.write(bytes("half of it"));
    assertEquals(await readText(near), "half of it");
    origin.reset(REASON);
    await joined;
    await assertRejects(() => near.read(new Uint8Array(1)), StreamResetError);
    await assertRejects(() => near.write(bytes("x")), StreamResetError);
    for (const session of [client, server]) session.abort();
  });

  Deno.test(`join(): version ${version}: a stream that the peer aborts rejects the call and aborts the other stream`, async () => {
    const [one, two] = [sessionPair({ version }), sessionPair({ version })];
    const [near, a] = await Promise.all([one.client.openStream(), one.server.acceptStream()]);
    const [b, far] = await Promise.all([two.client.openStream(), two.server.acceptStream()]);
    const joined = assertRejects(() => join(a, b), StreamResetError);
    await near.write(bytes("half"));
    assertEquals(await readText(far), "half");
    near.abort(REASON);
    assertEquals("bytesWritten" in await joined, false);
    await assertRejects(() => far.read(new Uint8Array(1)), StreamResetError);
    const sessions = [one.client, one.server, two.client, two.server];
    assertEquals(sessions.map((session) => session.stats().streams), [0, 0, 0, 0]);
    for (const session of sessions) session.abort();
  });

  Deno.test(`join(): version ${version}: a reset after a clean end does not lose data of the direction that ended`, async () => {
    const { client, server } = sessionPair({ version });
    const [near, far] = await Promise.all([client.openStream(), server.acceptStream()]);
    // The other side reads only later, so that most of the request waits in the join.
    const [a, origin] = memoryPair(1000);
    const joined = assertRejects(() => join(far, a), StreamResetError);
    const request = new Uint8Array(200 * KiB).fill(7);
    await near.write(request);
    await near.closeWrite();
    near.abort(REASON);
    await turn(10);
    assertEquals(a.isClosed, false);
    assertEquals(await readAll(origin), request);
    await joined;
    for (const session of [client, server]) session.abort();
  });
}

Deno.test("a stream that is cut for using too much credit is aborted at the peer", async () => {
  using all = await fromPeer(2);
  const failed = assertRejects(() => all.stream.closed, Error, "credit");
  for (let n = 0; n < 40; n++) await all.peer.send(PSH, 3, new Uint8Array(64 * KiB - 1));
  await failed;
  assertEquals((await all.peer.nextOf(NOP)).id, 3);
  assertEquals(await frames(all.peer, 2), [[NOP, COMPLEMENT], [FIN, 3]]);
});

Deno.test("Stream.abort(): the default reason is a StreamClosedError", async () => {
  using all = await streamPair();
  all.near.abort();
  assertInstanceOf(await all.near.closed.catch((error) => error), StreamClosedError);
  await assertRejects(() => all.near.read(new Uint8Array(1)), StreamClosedError, "was aborted");
});

Deno.test("Stream.abort(): a reason that is not an error is passed on as it is", async () => {
  for (const reason of [null, 0, "gone"]) {
    using all = await streamPair();
    const { writing } = await fill(all.near);
    all.near.abort(reason);
    for (const operation of [writing, all.near.read(new Uint8Array(1)), all.near.write(bytes("x")), all.near.closed]) {
      assertStrictEquals(await operation.then(() => "fulfilled", (error) => error), reason);
    }
  }
});

Deno.test("Stream[Symbol.asyncDispose]() resolves after abort(), and rejects after abort() of the peer", async () => {
  using all = await streamPair();
  all.near.abort(REASON);
  await all.near[Symbol.asyncDispose]();
  await turn();
  await assertRejects(() => all.far[Symbol.asyncDispose](), StreamResetError);
});

const FAILED_OPERATIONS: Record<string, (stream: Stream) => Promise<unknown>> = {
  "read()": (stream) => stream.read(new Uint8Array(1)),
  "write()": (stream) => stream.write(new Uint8Array(1)),
  "closeWrite()": (stream) => stream.closeWrite(),
  "a read of readable": (stream) => stream.readable.getReader().read(),
  "a write of writable": (stream) => stream.writable.getWriter().write(new Uint8Array(1)),
};
for (const [name, operate] of Object.entries(FAILED_OPERATIONS)) {
  Deno.test(`Stream: await using after ${name} has failed: the error of the block is that error`, async () => {
    for (const isSession of [false, true]) {
      using all = await streamPair();
      const block = async () => {
        await using stream = all.near;
        if (isSession) all.client.abort(REASON);
        else all.far.abort();
        await turn();
        await operate(stream);
      };
      await assertRejects(block, isSession ? SessionClosedError : StreamResetError);
    }
  });
}

Deno.test("Stream: await using after Session.close() has cut a write: the error of the block is that of the write", async () => {
  const [connection, remote] = memoryPair(1000);
  const client = Session.client(connection, { version: 1 });
  const block = async () => {
    await using stream = await client.openStream();
    const written = stream.write(new Uint8Array(MiB));
    written.catch(() => {});
    void client.close({ timeout: 1000 });
    await turn();
    await stream.write(new Uint8Array(1));
  };
  const ended = assertRejects(block, SessionClosedError);
  await turn(20);
  remote.reset();
  await ended;
});

Deno.test("Stream.abort(): the end of the session keeps the errors of an aborted stream", async () => {
  using all = await streamPair();
  all.near.abort(REASON);
  await turn();
  all.client.abort(new Error("later"));
  all.server.abort(new Error("later"));
  assertStrictEquals(await all.near.read(new Uint8Array(1)).catch((error) => error), REASON);
  await assertRejects(() => all.far.read(new Uint8Array(1)), StreamResetError);
  const [opened] = [all.client.openStream()];
  await assertRejects(() => opened, SessionClosedError);
});

Deno.test("Stream.abort(): a stalled reader of an aborted stream does not keep the room of its bytes", async () => {
  using clock = new ManualClock();
  const { client, server } = sessionPair({
    version: 1,
    server: { maxReceiveBuffer: 1_000_000, stalledStreamTimeout: 1000 },
  });
  const near = await client.openStream();
  const far = await server.acceptStream();
  await near.write(new Uint8Array(990_000));
  near.abort(REASON);
  await turn(10);
  const other = await client.openStream();
  await other.write(new Uint8Array(50_000));
  await clock.advance(3000);
  assertEquals([server.stats().bytesUnread, server.stats().streams], [50_000, 1]);
  await assertRejects(() => far.read(new Uint8Array(1)), StreamResetError);
  client.abort();
  server.abort();
});

Deno.test("Stream.abort() works over TCP, with megabytes under way in both directions", async () => {
  const [a, b] = await tcpPair();
  const client = Session.client(a);
  const server = Session.server(b);
  const [near, far] = await Promise.all([client.openStream(), server.acceptStream()]);
  const writes = [near, far].map((stream) =>
    stream.write(new Uint8Array(20 * MiB)).then(() => "fulfilled", (error) => error)
  );
  assertEquals((await readSome(far, MiB)).length, MiB);
  near.abort(REASON);
  assertStrictEquals(await writes[0], REASON);
  assertInstanceOf(await writes[1], StreamResetError);
  await assertRejects(() => readAll(far), StreamResetError);
  await client.close();
  await server.closed;
});

Deno.test("rule 12: an aborted stream whose update found no room leaves the queue of control frames", async () => {
  // A window below the first one of the protocol, so that an update is due for each stream.
  const { session, peer } = withPeer("server", 2, { maxStreamBuffer: 4 * KiB }, 1000);
  await peer.send(SYN, 3);
  await fill(await session.acceptStream());
  const queued: Stream[] = [];
  for (let id = 5; queued.length < 3; id += 2) {
    await peer.send(SYN, id);
    const stream = await session.acceptStream();
    if (coreOf(stream).isQueued) queued.push(stream);
  }
  const [first, aborted, last] = queued.map(coreOf);
  await reset(peer, aborted!.id);
  await assertRejects(() => aborted!.stream.read(new Uint8Array(1)), StreamResetError);
  assertEquals([first!.isQueued, aborted!.isQueued, last!.isQueued], [true, false, true]);
  const updated: number[] = [];
  while (updated.at(-1) !== last!.id) updated.push((await peer.nextOf(UPD)).id);
  assertEquals(updated.slice(-2), [first!.id, last!.id]);
  session.abort();
});
