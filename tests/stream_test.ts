/** What a stream promises to who reads and writes it. */

import { assert, assertEquals, assertLess, assertRejects, assertStrictEquals, assertThrows } from "@std/assert";
import { concat } from "@std/bytes";
import { mergeReadableStreams, TextLineStream, toText } from "@std/streams";
import { FIN, PSH, SYN, UPD } from "../frame.ts";
import { ProtocolError, Session, SessionClosedError, StreamClosedError } from "../mod.ts";
import { collectGarbage } from "./garbage.ts";
import {
  bytes,
  MemoryConnection,
  memoryPair,
  MiB,
  pattern,
  RawPeer,
  readAll,
  readText,
  sessionPair,
  text,
  turn,
} from "./support.ts";

/** Both ends of a stream between two sessions, with all of it ended when the test is over. */
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

/** A stream the raw peer has opened on a server's session. */
async function rawStream(version: 1 | 2 = 1, capacity?: number) {
  const [connection, remote] = memoryPair(capacity);
  const session = Session.server(connection, { version });
  const peer = new RawPeer(remote, version);
  await peer.send(SYN, 3);
  const stream = await session.acceptStream();
  return { session, peer, stream, connection, [Symbol.dispose]: () => session.abort() };
}

/** A stream whose peer reads only when it is told to, so that writes wait for room. */
async function stuckStream(version: 1 | 2 = 1) {
  const [connection, remote] = memoryPair(1000);
  const session = Session.client(connection, { version });
  const peer = new RawPeer(remote, version);
  const stream = await session.openStream();
  return {
    session,
    peer,
    stream,
    async receiveAll(): Promise<Uint8Array> {
      const parts = [];
      for (let frame = await peer.next(); frame!.command !== FIN; frame = await peer.next()) parts.push(frame!.data);
      return concat(parts);
    },
    [Symbol.dispose]: () => session.abort(),
  };
}

// read and tryRead

const STATES: Record<string, (all: Awaited<ReturnType<typeof streamPair>>) => unknown> = {
  "nothing has arrived": () => {},
  "another read waits": ({ near }) => void near.read(new Uint8Array(1)).catch(() => {}),
  "bytes are unread": ({ far }) => far.write(bytes("unread")),
  "the peer has ended it": ({ far }) => far.closeWrite(),
  "it was closed": ({ near }) => near.close(),
  "its session is lost": ({ client }) => client.abort(),
};
for (const [state, bring] of Object.entries(STATES)) {
  Deno.test(`read: an empty array resolves to 0 at once when ${state}`, async () => {
    using all = await streamPair();
    await bring(all);
    await turn();
    assertEquals(await Promise.race([all.near.read(new Uint8Array(0)), "later"]), 0);
  });
}

Deno.test("read: gives what has arrived, over the borders of frames", async () => {
  using all = await rawStream();
  for (const part of ["a", "bc", "def"]) await all.peer.send(PSH, 3, bytes(part));
  await turn();
  assertEquals(await readText(all.stream, 4), "abcd");
  assertEquals(await readText(all.stream), "ef");
});

Deno.test("read: one that waits is filled by all frames that came together", async () => {
  using all = await rawStream();
  const reading = readText(all.stream);
  await turn();
  const frames = new Uint8Array(30);
  for (let i = 0; i < 3; i++) frames.set([1, PSH, 2, 0, 3, 0, 0, 0, 65 + i, 97 + i], i * 10);
  await all.peer.bytes(frames);
  assertEquals(await reading, "AaBbCc");
});

Deno.test("read: concurrent reads are served in the order of the calls", async () => {
  using all = await rawStream();
  const reads = [readText(all.stream, 2), readText(all.stream, 3), readText(all.stream, 1), readText(all.stream)];
  await all.peer.send(PSH, 3, bytes("abcdef"));
  await all.peer.send(FIN, 3);
  assertEquals(await Promise.all(reads), ["ab", "cde", "f", "(end)"]);
});

Deno.test("read: an aborted one has moved nothing, and the next one gets what comes", async () => {
  using all = await rawStream();
  const aborting = [new AbortController(), new AbortController()];
  const reads = aborting.map(({ signal }) => all.stream.read(new Uint8Array(8), { signal }));
  const third = readText(all.stream);
  const failed = reads.map((read, i) => assertRejects(() => read, Error, `reason ${i}`));
  aborting[1]!.abort(new Error("reason 1"));
  aborting[0]!.abort(new Error("reason 0"));
  await Promise.all(failed);
  await all.peer.send(PSH, 3, bytes("value"));
  assertEquals(await third, "value");
  await assertRejects(() => all.stream.read(new Uint8Array(1), { signal: AbortSignal.abort(new Error("before")) }));
});

Deno.test("read: an abort after its bytes have come is too late", async () => {
  using all = await rawStream();
  const aborting = new AbortController();
  const p = new Uint8Array(8);
  const reading = all.stream.read(p, { signal: aborting.signal });
  await all.peer.send(PSH, 3, bytes("abc"));
  await turn();
  aborting.abort();
  assertEquals(await reading, 3);
  assertEquals(text(p.subarray(0, 3)), "abc");
});

Deno.test("tryRead: at once what there is, 0 for nothing, null for the end", async () => {
  using all = await rawStream();
  const p = new Uint8Array(4);
  assertThrows(() => all.stream.tryRead(new Uint8Array(0)), RangeError, "at least 1 byte");
  assertEquals(all.stream.tryRead(p), 0);
  await all.peer.send(PSH, 3, bytes("abcdef"));
  await turn();
  assertEquals(all.stream.tryRead(p), 4);
  assertEquals(all.stream.tryRead(p), 2);
  const reading = all.stream.read(p);
  await turn();
  assertEquals(all.stream.tryRead(new Uint8Array(4)), 0, "another read waits");
  await all.peer.send(FIN, 3);
  assertEquals(await reading, null);
  assertEquals(all.stream.tryRead(p), null);
});

Deno.test("read and write: only a Uint8Array will do", async () => {
  using all = await streamPair();
  const wrong = "text" as unknown as Uint8Array;
  await assertRejects(() => all.near.read(wrong), TypeError, "Uint8Array");
  await assertRejects(() => all.near.write(wrong), TypeError, "Uint8Array");
  assertThrows(() => all.near.tryRead(wrong), TypeError);
  assertThrows(() => all.near.tryWrite(wrong), TypeError);
});

Deno.test("read: data after the peer's FIN is dropped, a second FIN ignored", async () => {
  using all = await rawStream();
  await all.peer.send(PSH, 3, bytes("whole"));
  await all.peer.send(FIN, 3);
  await all.peer.send(PSH, 3, bytes("late"));
  await all.peer.send(FIN, 3);
  assertEquals(text(await readAll(all.stream)), "whole");
  await turn();
  assertEquals(await readText(all.stream), "(end)");
  assertEquals(all.session.stats().bytesUnread, 0);
});

Deno.test("read: a million unread frames of one byte take less than 2 MB", async () => {
  using all = await rawStream(1, 1 << 20);
  const frames = new Uint8Array(9 * 1000);
  for (let i = 0; i < 1000; i++) frames.set([1, PSH, 1, 0, 3, 0, 0, 0, i & 255], i * 9);
  const used = async () => {
    for (let n = 0; n < 3; n++) {
      collectGarbage();
      await turn();
    }
    const { heapUsed, external } = Deno.memoryUsage();
    return heapUsed + external;
  };
  const before = await used();
  for (let i = 0; i < 1000; i++) await all.peer.bytes(frames);
  while (all.session.stats().bytesUnread < 1_000_000) await turn(1);
  // Twice what they count, and what the test itself leaves. An array for each would be some 300 MB.
  assertLess(await used() - before, 2_000_000);
  const expected = Uint8Array.from({ length: 1000 }, (_, i) => i & 255);
  const p = new Uint8Array(1000);
  for (let i = 0; i < 1000; i++) {
    assertEquals(await all.stream.read(p), 1000);
    assertEquals(p, expected);
  }
});

Deno.test("read: large and small frames in turn stay in order, when read late", async () => {
  using all = await rawStream(1, 1 << 20);
  const parts = [10, 65_535, 1, 40_000, 20_000, 33_000, 5, 65_535, 65_535, 100].map((length, i) => pattern(length, i));
  for (const part of parts) await all.peer.send(PSH, 3, part);
  await all.peer.send(FIN, 3);
  await turn(10);
  assertEquals(await readAll(all.stream), concat(parts));
});

// write and tryWrite

Deno.test("write: empty gives 0 and sends nothing", async () => {
  using all = await rawStream();
  assertEquals(await all.stream.write(new Uint8Array(0)), 0);
  await turn();
  assertEquals(all.session.stats().framesSent, 0);
});

Deno.test("write: when it has fulfilled the array is the caller's again", async () => {
  using all = await streamPair({ capacity: 100 });
  const p = bytes("first");
  await all.near.write(p);
  p.set(bytes("other"));
  assertEquals(await readText(all.far), "first");
});

for (const version of [1, 2] as const) {
  Deno.test(`write: concurrent writes leave whole, in the order of the calls, version ${version}`, async () => {
    using all = await streamPair({ version, capacity: 1000, maxFrameSize: 777 });
    const parts = Array.from({ length: 20 }, (_, i) => pattern(50_000 + i, i));
    const writes = parts.map((part) => all.near.write(part));
    const ended = all.near.closeWrite();
    assertEquals(await readAll(all.far), concat(parts));
    assertEquals(await Promise.all(writes), parts.map((part) => part.length));
    await ended;
  });
}

Deno.test("write: frames are of maxFrameSize, the last shorter", async () => {
  const [connection, remote] = memoryPair();
  const session = Session.client(connection, { version: 1, maxFrameSize: 16 });
  const peer = new RawPeer(remote, 1);
  const stream = await session.openStream();
  await stream.write(pattern(40));
  const lengths = [];
  for (let i = 0; i < 3; i++) lengths.push((await peer.nextOf(PSH)).data.length);
  assertEquals(lengths, [16, 16, 8]);
  session.abort();
});

Deno.test("write: an aborted one fulfils with what was taken, rejects if that was nothing", async () => {
  using all = await stuckStream();
  const aborting = [new AbortController(), new AbortController(), new AbortController()];
  const [first, second, third] = aborting.map(({ signal }, i) => all.stream.write(pattern(1 << 20, i), { signal }));
  await turn();
  const failed = [second, third].map((write, i) => assertRejects(() => write!, Error, `reason ${i + 1}`));
  aborting[2]!.abort(new Error("reason 2"));
  aborting[1]!.abort(new Error("reason 1"));
  await Promise.all(failed);
  aborting[0]!.abort(new Error("reason 0"));
  const taken = (await first)!;
  assert(taken > 0 && taken < 1 << 20, `${taken} taken`);
  const ended = all.stream.closeWrite();
  assertEquals(await all.receiveAll(), pattern(1 << 20, 0).subarray(0, taken), "not one byte more, not one less");
  await ended;
});

Deno.test("write: close() cuts it, and bytesWritten says what was taken", async () => {
  using all = await stuckStream();
  const [first, second] = [all.stream.write(pattern(1 << 20)), all.stream.write(pattern(10))];
  const failed = Promise.all([
    assertRejects(() => first, StreamClosedError),
    assertRejects(() => second, StreamClosedError),
  ]);
  await turn();
  all.stream.close();
  const [cut, queued] = await failed;
  assertEquals(queued.bytesWritten, 0);
  assert(cut.bytesWritten! > 0);
  assertEquals((await all.receiveAll()).length, cut.bytesWritten);
});

Deno.test("write: the session's end cuts it, with the reason as cause", async () => {
  using all = await stuckStream(2);
  const writing = all.stream.write(pattern(1 << 20));
  await turn();
  const reason = new Error("enough");
  all.session.abort(reason);
  const error = await assertRejects(() => writing, SessionClosedError);
  assertStrictEquals(error.cause, reason);
  assert(error.bytesWritten! > 0);
});

Deno.test("write: each that the session's end cuts has its own bytesWritten, and no other operation has one", async () => {
  using all = await stuckStream(2);
  const { session, stream } = all;
  const others = [await session.openStream(), await session.openStream(), await session.openStream()];
  const waiting = [stream.read(new Uint8Array(1)), stream.closed, session.acceptStream()];
  const writings = [stream.write(pattern(MiB))];
  await turn();
  for (const other of others) writings.push(other.write(pattern(MiB)));
  await turn();
  waiting.push(others[2]!.closeWrite());
  const cut = Promise.all(writings.map((writing) => assertRejects(() => writing, SessionClosedError)));
  const failed = Promise.all(waiting.map((operation) => assertRejects(() => operation, SessionClosedError)));
  session.abort();

  const errors = await cut;
  const [first, second, ...rest] = errors.map((error) => error.bytesWritten!);
  assert(first! > 0 && second! > 0 && first !== second, `${first}, ${second}`);
  assertEquals(rest, [0, 0]);
  const refused = await assertRejects(() => stream.write(pattern(1)), SessionClosedError);
  const tried = assertThrows(() => stream.tryWrite(pattern(1)), SessionClosedError);
  assertEquals([refused.bytesWritten, tried.bytesWritten, errors[0]!.bytesWritten], [0, 0, first]);

  const later = [
    () => stream.read(new Uint8Array(1)),
    () => others[0]!.closed,
    () => others[1]!.closeWrite(),
    () => session.openStream(),
    () => session.acceptStream(),
  ];
  const withoutCount = await failed;
  for (const operation of later) {
    withoutCount.push(await assertRejects<SessionClosedError>(operation, SessionClosedError));
  }
  withoutCount.push(assertThrows(() => stream.tryRead(new Uint8Array(1)), SessionClosedError));
  assertEquals(withoutCount.map((error) => "bytesWritten" in error), withoutCount.map(() => false));
});

Deno.test("write: refused after close() or closeWrite() it has moved 0 bytes, and the error of a read has no count", async () => {
  for (const end of ["close", "closeWrite"] as const) {
    using all = await streamPair();
    await all.near[end]();
    const refused = await assertRejects(() => all.near.write(pattern(1)), StreamClosedError);
    const tried = assertThrows(() => all.near.tryWrite(pattern(1)), StreamClosedError);
    assertEquals([refused.bytesWritten, tried.bytesWritten], [0, 0]);
    if (end === "closeWrite") continue;
    const reading = await assertRejects(() => all.near.read(new Uint8Array(1)), StreamClosedError);
    assertEquals("bytesWritten" in reading, false);
  }
});

Deno.test("write: the reason of a signal or of an abort gets no bytesWritten", async () => {
  using all = await stuckStream(2);
  const aborting = new AbortController();
  const writing = all.stream.write(pattern(MiB));
  const queued = all.stream.write(pattern(1), { signal: aborting.signal });
  const reasons = [new Error("of the signal"), new Error("of the abort")] as const;
  const failed = assertRejects(() => queued);
  await turn();
  aborting.abort(reasons[0]);
  assertStrictEquals(await failed, reasons[0]);
  const cut = assertRejects(() => writing, SessionClosedError);
  all.session.abort(reasons[1]);
  assertStrictEquals((await cut).cause, reasons[1]);
  assertEquals(reasons.map((reason) => "bytesWritten" in reason), [false, false]);
});

Deno.test("tryWrite: takes what there is room and credit for, 0 while a write waits", async () => {
  using all = await streamPair({ version: 2, capacity: 1000 });
  const taken = all.near.tryWrite(pattern(1 << 20));
  assert(taken > 0 && taken <= 262_144);
  const writing = all.near.write(pattern(1 << 20).subarray(taken));
  assertEquals(all.near.tryWrite(bytes("x")), 0);
  const ended = all.near.closeWrite();
  assertEquals(await readAll(all.far), pattern(1 << 20));
  await writing;
  await ended;
});

Deno.test("v2: a stream of many windows arrives whole through windows of 1 byte and more", async () => {
  for (const maxStreamBuffer of [1, 2, 7, 1000]) {
    using all = await streamPair({ version: 2, maxStreamBuffer, maxReceiveBuffer: 1 << 20 });
    const data = pattern(Math.min(maxStreamBuffer * 200 + 262_144, 300_000));
    const writing = all.near.write(data).then(() => all.near.closeWrite());
    assertEquals(await readAll(all.far), data);
    await writing;
  }
});

// The ends

Deno.test("closeWrite: later writes reject, reading goes on, the same promise each time", async () => {
  using all = await streamPair();
  const ended = all.near.closeWrite();
  assertStrictEquals(all.near.closeWrite(), ended);
  await ended;
  await assertRejects(() => all.near.write(bytes("x")), StreamClosedError, "Cannot write to a closed stream");
  assertThrows(() => all.near.tryWrite(bytes("x")), StreamClosedError);
  await all.far.write(bytes("still"));
  assertEquals(await readText(all.near), "still");
});

Deno.test("close: pending reads reject, later ones too, closing again does nothing", async () => {
  using all = await streamPair();
  const reads = [readText(all.near), readText(all.near)];
  const failed = reads.map((read) => assertRejects(() => read, StreamClosedError, "Cannot read from a closed stream"));
  all.near.close();
  all.near.close();
  await Promise.all(failed);
  await assertRejects(() => readText(all.near), StreamClosedError);
  await assertRejects(() => all.near.write(bytes("x")), StreamClosedError);
  await all.near.closeWrite();
  await all.near.closed;
  assertEquals(await readText(all.far), "(end)");
  assertEquals(all.client.stats().streams, 0);
});

Deno.test("close: one FIN, however the stream is ended", async () => {
  using all = await rawStream();
  await all.stream.closeWrite();
  all.stream.close();
  all.stream[Symbol.dispose]();
  await all.peer.nextOf(FIN);
  await all.peer.send(SYN, 5);
  const next = await all.session.acceptStream();
  await next.write(bytes("x"));
  assertEquals((await all.peer.next())!.command, PSH, "no second FIN came first");
});

Deno.test("closed: fulfils when both ways have ended, rejects with the session's error", async () => {
  using all = await streamPair();
  const [near, far] = [all.near.closed, all.far.closed];
  await all.near.closeWrite();
  await all.far.closeWrite();
  await Promise.all([near, far]);
  await all.near.closed;

  const other = await all.client.openStream();
  const early = assertRejects(() => other.closed, SessionClosedError);
  const reason = new Error("enough");
  all.client.abort(reason);
  assertStrictEquals((await early).cause, reason);
  assertStrictEquals((await assertRejects(() => other.closed, SessionClosedError)).cause, reason);
  other.close();
  await assertRejects(() => other.closed, SessionClosedError);
});

Deno.test("using closes, await using ends writing first", async () => {
  using all = await streamPair();
  {
    using stream = all.near;
    await stream.write(bytes("a"));
  }
  await assertRejects(() => readText(all.near), StreamClosedError);
  assertEquals(text(await readAll(all.far)), "a");

  const [near, far] = await Promise.all([all.client.openStream(), all.server.acceptStream()]);
  {
    await using stream = near;
    stream.write(bytes("b"));
  }
  assertEquals(text(await readAll(far)), "b");
  await assertRejects(() => readText(near), StreamClosedError);
});

Deno.test("a stream that nobody waits for ends without an unhandled rejection", async () => {
  const all = await streamPair();
  all.near.closeWrite();
  all.far.closed;
  const open = await all.client.openStream();
  open.closed;
  all.client.abort(new Error("enough"));
  open.closeWrite();
  all.server.abort();
  await turn(5);
  assertEquals(all.client.stats().streams, 0);
});

Deno.test("close: while closeWrite waits for its turn, one FIN leaves and both are done", async () => {
  using all = await stuckStream();
  const writing = assertRejects(() => all.stream.write(pattern(1 << 20)), StreamClosedError);
  await turn();
  const ended = all.stream.closeWrite();
  all.stream.close();
  await writing;
  await ended;
  await all.receiveAll();
  await all.peer.send(SYN, 2);
  const next = await all.session.acceptStream();
  await next.write(bytes("x"));
  assertEquals((await all.peer.next())!.command, PSH, "no second FIN came first");
});

Deno.test("close: while the FIN of closeWrite waits for room, or has just found it, one FIN leaves", async () => {
  for (const when of ["while it waits", "afterwards"]) {
    using all = await stuckStream();
    const other = await all.session.openStream();
    const writing = other.write(pattern(1 << 20)).then(() => other.closeWrite());
    await turn();
    const ended = all.stream.closeWrite();
    await turn();
    if (when === "while it waits") all.stream.close();
    const fins = [];
    while (fins.at(-1) !== other.id) {
      fins.push((await all.peer.nextOf(FIN)).id);
      all.stream.close();
    }
    assertEquals(fins, [all.stream.id, other.id]);
    await Promise.all([ended, writing]);
  }
});

Deno.test("closeWrite: rejects when the session ends while it waits, and when the peer lied about what it read", async () => {
  using all = await stuckStream();
  const writing = all.stream.write(pattern(1 << 20)).catch(() => {});
  const ended = assertRejects(() => all.stream.closeWrite(), SessionClosedError);
  all.session.abort();
  await Promise.all([writing, ended]);

  using lied = await stuckStream(2);
  await lied.peer.update(3, 100, 100);
  await turn();
  await assertRejects(() => lied.stream.closeWrite(), ProtocolError, "UPD");
});

Deno.test("write: an aborted signal rejects before anything moves", async () => {
  using all = await rawStream();
  const signal = AbortSignal.abort(new Error("before"));
  await assertRejects(() => all.stream.write(bytes("x"), { signal }), Error, "before");
  assertEquals(all.session.stats().framesSent, 0);
});

// Web streams

Deno.test("readable: gives what arrives and ends with the peer's FIN", async () => {
  using all = await streamPair();
  const lines = all.far.readable.pipeThrough(new TextDecoderStream()).pipeThrough(new TextLineStream());
  await all.near.write(bytes("one\ntwo\nthr"));
  await all.near.write(bytes("ee"));
  await all.near.closeWrite();
  assertEquals(await Array.fromAsync(lines), ["one", "two", "three"]);
});

Deno.test("readable: of several streams, merged", async () => {
  using all = await streamPair();
  const pairs = [[all.near, all.far] as const];
  pairs.push(await Promise.all([all.client.openStream(), all.server.acceptStream()]));
  const merged = toText(mergeReadableStreams(...pairs.map(([, far]) => far.readable)));
  for (const [near] of pairs) {
    await near.write(bytes("x"));
    await near.closeWrite();
  }
  assertEquals(await merged, "xx");
});

Deno.test("readable: reads nothing ahead", async () => {
  using all = await rawStream();
  const readable = all.stream.readable;
  assertStrictEquals(all.stream.readable, readable);
  await all.peer.send(PSH, 3, bytes("abc"));
  await turn();
  assertEquals(all.session.stats().bytesUnread, 3);
  assertEquals(await readText(all.stream), "abc", "read() beside it loses nothing");
});

Deno.test("readable: a reader of its own buffer gets bytes in place, and the end", async () => {
  using all = await rawStream();
  const reader = all.stream.readable.getReader({ mode: "byob" });
  await all.peer.send(PSH, 3, bytes("abcdef"));
  const first = await reader.read(new Uint8Array(4));
  assertEquals(text(first.value!), "abcd");
  const second = await reader.read(new Uint8Array(first.value!.buffer));
  assertEquals(text(second.value!), "ef");
  await all.peer.send(FIN, 3);
  const last = await reader.read(new Uint8Array(4));
  assert(last.done);
});

Deno.test("readable: a reader of its own buffer that takes over from one without gets the end", async () => {
  using all = await rawStream();
  const first = all.stream.readable.getReader();
  const given = assertRejects(() => first.read(), TypeError);
  await turn();
  first.releaseLock();
  await given;
  const reader = all.stream.readable.getReader({ mode: "byob" });
  const reading = reader.read(new Uint8Array(4));
  await turn();
  await all.peer.send(FIN, 3);
  assert((await reading).done);
});

Deno.test("readable: cancelling drops what is unread and what comes, with credit, and writing goes on", async () => {
  using all = await streamPair({ version: 2 });
  const writing = all.near.write(pattern(2 << 20));
  await turn();
  await all.far.readable.cancel();
  assertEquals(await writing, 2 << 20, "the peer is not stuck");
  await turn();
  assertEquals(all.server.stats().bytesUnread, 0);
  await all.far.write(bytes("still"));
  assertEquals(await readText(all.near), "still");

  const [near, far] = await Promise.all([all.client.openStream(), all.server.acceptStream()]);
  const reader = far.readable.getReader();
  const waiting = reader.read();
  await turn();
  await reader.cancel();
  assert((await waiting).done);
  assertEquals(await near.write(pattern(1 << 20)), 1 << 20);
});

Deno.test("readable: fails with the session's error", async () => {
  using all = await streamPair();
  const reading = all.far.readable.getReader().read();
  const failed = assertRejects(() => reading, SessionClosedError);
  all.connections[0].reset();
  await failed;
});

Deno.test("writable: writes, closes as closeWrite, and one chunk waits for the one before", async () => {
  using all = await streamPair({ capacity: 100 });
  assertStrictEquals(all.near.writable, all.near.writable);
  const source = new ReadableStream<Uint8Array>({
    pull(controller) {
      controller.enqueue(pattern(100_000));
      controller.close();
    },
  });
  const piped = source.pipeTo(all.near.writable);
  assertEquals(await readAll(all.far), pattern(100_000));
  await piped;
  await assertRejects(() => all.near.write(bytes("x")), StreamClosedError);
});

Deno.test("writable: aborting ends writing with a FIN after what was taken", async () => {
  using all = await stuckStream();
  const writer = all.stream.writable.getWriter();
  writer.closed.catch(() => {});
  const writing = writer.write(pattern(1 << 20)).catch(() => {});
  await turn();
  const aborted = writer.abort(new Error("enough"));
  const received = await all.receiveAll();
  await Promise.all([aborted, writing]);
  assert(received.length > 0 && received.length < 1 << 20);
  assertEquals(received, pattern(1 << 20).subarray(0, received.length));
  await all.peer.send(PSH, 3, bytes("ok"));
  assertEquals(await readText(all.stream), "ok");
});

Deno.test("web streams both ways between two streams: an echo by pipeTo", async () => {
  using all = await streamPair();
  const echo = all.far.readable.pipeTo(all.far.writable);
  const data = pattern(3 << 20);
  const writing = all.near.write(data).then(() => all.near.closeWrite());
  assertEquals(new Uint8Array(await new Response(all.near.readable).arrayBuffer()), data);
  await Promise.all([writing, echo]);
});

// As a connection

Deno.test("a stream has the addresses of its connection, and ref and unref that do nothing", async () => {
  using all = await streamPair();
  assertEquals(all.near.localAddr, { transport: "tcp", hostname: "", port: 0 });
  assertEquals(all.far.remoteAddr, all.server.remoteAddr);
  all.near.unref();
  all.near.ref();
  await all.near.write(bytes("x"));
  assertEquals(await readText(all.far), "x");
});

Deno.test("credit goes back only when the application has read", async () => {
  using all = await rawStream(2, 1 << 20);
  await all.peer.send(PSH, 3, pattern(60_000));
  await turn();
  assertEquals(all.session.stats().framesSent, 0);
  await all.stream.read(new Uint8Array(10));
  const update = await all.peer.nextOf(UPD);
  assertEquals([update.consumed, update.window], [10, 262_144]);
});

Deno.test("a connection in memory that is closed twice would say so", () => {
  const [near] = memoryPair();
  near.close();
  assertThrows(() => near.close(), Error, "Closed twice");
  assert(near instanceof MemoryConnection);
});
