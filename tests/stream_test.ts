/** Streams: reads, writes, the ends, web streams, and the properties of a connection. */

import { assert, assertEquals, assertLess, assertRejects, assertStrictEquals, assertThrows } from "@std/assert";
import { concat } from "@std/bytes";
import { mergeReadableStreams, TextLineStream, toText } from "@std/streams";
import { FIN, MAX_PAYLOAD_LENGTH, PSH, SYN, UPD } from "../frame.ts";
import { ProtocolError, Session, SessionClosedError, StreamClosedError } from "../mod.ts";
import { INITIAL_WINDOW } from "../_window.ts";
import { collectGarbage } from "./garbage.ts";
import {
  bytes,
  MemoryConnection,
  memoryPair,
  MiB,
  NO_SIGNAL,
  pattern,
  RawPeer,
  readAll,
  readText,
  sessionPair,
  state,
  text,
  turn,
} from "./support.ts";

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

/** A stream that a raw peer opened on a server's session. */
async function rawStream(version: 1 | 2 = 1, capacity?: number) {
  const [connection, remote] = memoryPair(capacity);
  const session = Session.server(connection, { version });
  const peer = new RawPeer(remote, version);
  await peer.send(SYN, 3);
  const stream = await session.acceptStream();
  return { session, peer, stream, connection, [Symbol.dispose]: () => session.abort() };
}

/** A stream whose peer reads only on request, so that writes wait for room. */
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
  "no byte has arrived": () => {},
  "another read waits": ({ near }) => void near.read(new Uint8Array(1)).catch(() => {}),
  "bytes are unread": ({ far }) => far.write(bytes("unread")),
  "the peer has sent FIN": ({ far }) => far.closeWrite(),
  "the stream was closed": ({ near }) => near.close(),
  "the session has ended": ({ client }) => client.abort(),
};
for (const [state, bring] of Object.entries(STATES)) {
  Deno.test(`Stream.read(): an empty array resolves to 0 at once when ${state}`, async () => {
    using all = await streamPair();
    await bring(all);
    await turn();
    assertEquals(await Promise.race([all.near.read(new Uint8Array(0)), "later"]), 0);
  });
}

Deno.test("Stream.read() returns all bytes that have arrived, across frames", async () => {
  using all = await rawStream();
  for (const part of ["a", "bc", "def"]) await all.peer.send(PSH, 3, bytes(part));
  await turn();
  assertEquals(await readText(all.stream, 4), "abcd");
  assertEquals(await readText(all.stream), "ef");
});

Deno.test("Stream.read(): a waiting read is filled by all frames that arrive together", async () => {
  using all = await rawStream();
  const reading = readText(all.stream);
  await turn();
  const frames = new Uint8Array(30);
  for (let i = 0; i < 3; i++) frames.set([1, PSH, 2, 0, 3, 0, 0, 0, 65 + i, 97 + i], i * 10);
  await all.peer.bytes(frames);
  assertEquals(await reading, "AaBbCc");
});

Deno.test("Stream.read(): concurrent reads are served in the order of the calls", async () => {
  using all = await rawStream();
  const reads = [readText(all.stream, 2), readText(all.stream, 3), readText(all.stream, 1), readText(all.stream)];
  await all.peer.send(PSH, 3, bytes("abcdef"));
  await all.peer.send(FIN, 3);
  assertEquals(await Promise.all(reads), ["ab", "cde", "f", "(end)"]);
});

Deno.test("Stream.read(): an aborted read consumes nothing, and the next read receives the data", async () => {
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

Deno.test("Stream.read(): an abort after the data has arrived has no effect", async () => {
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

for (const end of ["", ", then FIN"]) {
  Deno.test(`Stream.read(): an array that is transferred during the wait rejects its read, and data${end} is left to the next`, async () => {
    using all = await streamPair();
    const { near, far } = all;
    const arrays = [new Uint8Array(8), new Uint8Array(8)];
    const taken = arrays.map((p) => near.read(p));
    const reading = near.read(new Uint8Array(8));
    for (const { buffer } of arrays) buffer.transfer();
    await far.write(bytes("data"));
    if (end) await far.closeWrite();
    assertEquals(await Promise.all(taken.map(state)), ["rejected", "rejected"]);
    for (const read of taken) await assertRejects(() => read, TypeError, "transferred");
    assertEquals(await reading, 4);
  });
}

Deno.test("Stream.tryRead() returns the count of bytes that have arrived, 0 without data, null at the end", async () => {
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

Deno.test("Stream.read() and write(): a TypeError for a value that is not a Uint8Array", async () => {
  using all = await streamPair();
  const wrong = "text" as unknown as Uint8Array;
  await assertRejects(() => all.near.read(wrong), TypeError, "Uint8Array");
  await assertRejects(() => all.near.write(wrong), TypeError, "Uint8Array");
  assertThrows(() => all.near.tryRead(wrong), TypeError);
  assertThrows(() => all.near.tryWrite(wrong), TypeError);
});

Deno.test("Stream.read(), write() and openStream(): a TypeError for a signal that is not an AbortSignal, which consumes no byte", async () => {
  using all = await streamPair();
  const message = "signal must be an AbortSignal, received";
  for (const signal of [1, "text", {}, new EventTarget()]) {
    const options = { signal: signal as AbortSignal };
    await assertRejects(() => all.near.read(new Uint8Array(4), options), TypeError, message);
    for (const p of [bytes("x"), new Uint8Array(MiB)]) {
      await assertRejects(() => all.near.write(p, options), TypeError, message);
    }
    await assertRejects(() => all.client.openStream(options), TypeError, message);
    await assertRejects(() => all.client.acceptStream(options), TypeError, message);
  }
  await all.far.write(bytes("abc"));
  assertEquals(await all.near.read(new Uint8Array(4), NO_SIGNAL), 3);
  assertEquals(all.client.stats().streams, 1);
});

Deno.test("Stream.read(): data after the peer's FIN is dropped, and a second FIN is ignored", async () => {
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

Deno.test("Stream.read(): 1 000 000 unread frames of one byte use less than 2 MB", async () => {
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
  // Twice the counted bytes, and the memory of the test itself.
  assertLess(await used() - before, 2_000_000);
  const expected = Uint8Array.from({ length: 1000 }, (_, i) => i & 255);
  const p = new Uint8Array(1000);
  for (let i = 0; i < 1000; i++) {
    assertEquals(await all.stream.read(p), 1000);
    assertEquals(p, expected);
  }
});

Deno.test("Stream.read(): large and small frames are read in order after all have arrived", async () => {
  using all = await rawStream(1, 1 << 20);
  const parts = [10, MAX_PAYLOAD_LENGTH, 1, 40_000, 20_000, 33_000, 5, MAX_PAYLOAD_LENGTH, MAX_PAYLOAD_LENGTH, 100].map(
    (length, i) => pattern(length, i),
  );
  for (const part of parts) await all.peer.send(PSH, 3, part);
  await all.peer.send(FIN, 3);
  await turn(10);
  assertEquals(await readAll(all.stream), concat(parts));
});

// write and tryWrite

Deno.test("Stream.write(): an empty array resolves to 0 and sends nothing", async () => {
  using all = await rawStream();
  assertEquals(await all.stream.write(new Uint8Array(0)), 0);
  await turn();
  assertEquals(all.session.stats().framesSent, 0);
});

Deno.test("Stream.write(): the caller may change the array after the write resolves", async () => {
  using all = await streamPair({ capacity: 100 });
  const p = bytes("first");
  await all.near.write(p);
  p.set(bytes("other"));
  assertEquals(await readText(all.far), "first");
});

for (const version of [1, 2] as const) {
  Deno.test(`Stream.write(): concurrent writes are sent one after the other, in the order of the calls, in version ${version}`, async () => {
    using all = await streamPair({ version, capacity: 1000, maxFrameSize: 777 });
    const parts = Array.from({ length: 20 }, (_, i) => pattern(50_000 + i, i));
    const writes = parts.map((part) => all.near.write(part));
    const ended = all.near.closeWrite();
    assertEquals(await readAll(all.far), concat(parts));
    assertEquals(await Promise.all(writes), parts.map((part) => part.length));
    await ended;
  });
}

Deno.test("Stream.write(): frames have maxFrameSize bytes, the last one fewer", async () => {
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

Deno.test("Stream.write(): an aborted write resolves with the count of encoded bytes, or rejects if it is 0", async () => {
  using all = await stuckStream();
  const aborting = [new AbortController(), new AbortController(), new AbortController()];
  const [first, second, third] = aborting.map(({ signal }, i) => all.stream.write(pattern(1 << 20, i), { signal }));
  await turn();
  const failed = [second, third].map((write, i) => assertRejects(() => write!, Error, `reason ${i + 1}`));
  aborting[2]!.abort(new Error("reason 2"));
  aborting[1]!.abort(new Error("reason 1"));
  await Promise.all(failed);
  aborting[0]!.abort(new Error("reason 0"));
  const written = (await first)!;
  assert(written > 0 && written < 1 << 20, `${written} bytes written`);
  const ended = all.stream.closeWrite();
  assertEquals(await all.receiveAll(), pattern(1 << 20, 0).subarray(0, written), "exactly the counted bytes are sent");
  await ended;
});

Deno.test("Stream.write(): close() rejects a pending write, and bytesWritten counts the encoded bytes", async () => {
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

Deno.test("Stream.write(): the end of the session rejects a pending write, with the reason as cause", async () => {
  using all = await stuckStream(2);
  const writing = all.stream.write(pattern(1 << 20));
  await turn();
  const reason = new Error("enough");
  all.session.abort(reason);
  const error = await assertRejects(() => writing, SessionClosedError);
  assertStrictEquals(error.cause, reason);
  assert(error.bytesWritten! > 0);
});

Deno.test("Stream.write(): each write that the end of the session rejects has its own bytesWritten, other operations have none", async () => {
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

Deno.test("Stream.write(): after close() or closeWrite() a write rejects with bytesWritten 0, and a read without it", async () => {
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

Deno.test("Stream.write(): the reason of a signal or of an abort receives no bytesWritten", async () => {
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

const TAKEN: Record<string, (p: Uint8Array<ArrayBuffer>) => void> = {
  transferred: ({ buffer }) => void buffer.transfer(),
  "resized to nothing": ({ buffer }) => buffer.resize(0),
  "resized to fewer bytes": ({ buffer }) => buffer.resize(MiB / 2 - 1),
};
for (const [name, take] of Object.entries(TAKEN)) {
  Deno.test(`Stream.write(): an array that is ${name} during the wait rejects only its own write`, async () => {
    using all = await stuckStream();
    const { session, stream } = all;
    const p = new Uint8Array(new ArrayBuffer(MiB, { maxByteLength: MiB })).fill(1);
    const queued = new Uint8Array(new ArrayBuffer(MiB, { maxByteLength: MiB })).fill(2);
    const other = await session.openStream();
    const writing = [p, queued, bytes("next")].map((array) => stream.write(array));
    for (const array of [p, queued]) take(array);

    const finished = all.receiveAll();
    const [first, second] = await Promise.all(
      writing.slice(0, 2).map((write) => assertRejects(() => write, TypeError, "resized")),
    ) as { bytesWritten?: number }[];
    assertEquals([second!.bytesWritten, await writing[2]], [0, 4]);
    await other.write(bytes("!"));
    await stream.closeWrite();
    assertEquals(await finished, concat([new Uint8Array(first!.bytesWritten!).fill(1), bytes("next!")]));
  });
}

Deno.test("Stream.write(): an array that grows during the wait is sent in the length that it had", async () => {
  using all = await stuckStream();
  const p = new Uint8Array(new ArrayBuffer(MiB, { maxByteLength: 2 * MiB })).fill(1);
  const writing = all.stream.write(p);
  p.buffer.resize(2 * MiB);
  const finished = all.receiveAll();
  assertEquals(await writing, MiB);
  await all.stream.closeWrite();
  assertEquals((await finished).length, MiB);
});

Deno.test("Stream.tryWrite() encodes as much as room and credit allow, and returns 0 while a write waits", async () => {
  using all = await streamPair({ version: 2, capacity: 1000 });
  const written = all.near.tryWrite(pattern(1 << 20));
  assert(written > 0 && written <= INITIAL_WINDOW);
  const writing = all.near.write(pattern(1 << 20).subarray(written));
  assertEquals(all.near.tryWrite(bytes("x")), 0);
  const ended = all.near.closeWrite();
  assertEquals(await readAll(all.far), pattern(1 << 20));
  await writing;
  await ended;
});

Deno.test("Stream.write(): in version 2 data arrives unchanged through windows of 1 to 1000 bytes", async () => {
  for (const maxStreamBuffer of [1, 2, 7, 1000]) {
    using all = await streamPair({ version: 2, maxStreamBuffer, maxReceiveBuffer: 1 << 20 });
    const data = pattern(Math.min(maxStreamBuffer * 200 + INITIAL_WINDOW, 300_000));
    const writing = all.near.write(data).then(() => all.near.closeWrite());
    assertEquals(await readAll(all.far), data);
    await writing;
  }
});

// Ends

Deno.test("Stream.closeWrite(): later writes reject, reads continue, and each call returns the same promise", async () => {
  using all = await streamPair();
  const ended = all.near.closeWrite();
  assertStrictEquals(all.near.closeWrite(), ended);
  await ended;
  await assertRejects(() => all.near.write(bytes("x")), StreamClosedError, "Cannot write to a closed stream");
  assertThrows(() => all.near.tryWrite(bytes("x")), StreamClosedError);
  await all.far.write(bytes("still"));
  assertEquals(await readText(all.near), "still");
});

Deno.test("Stream.close(): pending and later reads reject, and a second call has no effect", async () => {
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

Deno.test("Stream.close(): a stream sends one FIN, after any combination of closeWrite(), close() and disposal", async () => {
  using all = await rawStream();
  await all.stream.closeWrite();
  all.stream.close();
  all.stream[Symbol.dispose]();
  await all.peer.nextOf(FIN);
  await all.peer.send(SYN, 5);
  const next = await all.session.acceptStream();
  await next.write(bytes("x"));
  assertEquals((await all.peer.next())!.command, PSH, "no second FIN was sent");
});

Deno.test("Stream.closed fulfils after both FINs, rejects with the error of the session", async () => {
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

Deno.test("Stream: using closes it, await using ends its writing first", async () => {
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

Deno.test("Stream: promises without a handler cause no unhandled rejection", async () => {
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

Deno.test("Stream.close(): during a closeWrite() behind a pending write, one FIN is sent and both calls end", async () => {
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
  assertEquals((await all.peer.next())!.command, PSH, "no second FIN was sent");
});

Deno.test("Stream.close(): before or after the waiting FIN of closeWrite() is encoded, one FIN is sent", async () => {
  for (const when of ["before", "after"]) {
    using all = await stuckStream();
    const other = await all.session.openStream();
    const writing = other.write(pattern(1 << 20)).then(() => other.closeWrite());
    await turn();
    const ended = all.stream.closeWrite();
    await turn();
    if (when === "before") all.stream.close();
    const fins = [];
    while (fins.at(-1) !== other.id) {
      fins.push((await all.peer.nextOf(FIN)).id);
      all.stream.close();
    }
    assertEquals(fins, [all.stream.id, other.id]);
    await Promise.all([ended, writing]);
  }
});

Deno.test("Stream.closeWrite() rejects when the session ends during the wait, and after a UPD for bytes that were not sent", async () => {
  using all = await stuckStream();
  const writing = all.stream.write(pattern(1 << 20)).catch(() => {});
  const ended = assertRejects(() => all.stream.closeWrite(), SessionClosedError);
  all.session.abort();
  await Promise.all([writing, ended]);

  using invalid = await stuckStream(2);
  await invalid.peer.update(3, 100, 100);
  await turn();
  await assertRejects(() => invalid.stream.closeWrite(), ProtocolError, "UPD");
});

Deno.test("Stream.write(): an aborted signal rejects before any byte is encoded", async () => {
  using all = await rawStream();
  const signal = AbortSignal.abort(new Error("before"));
  await assertRejects(() => all.stream.write(bytes("x"), { signal }), Error, "before");
  assertEquals(all.session.stats().framesSent, 0);
});

// Web streams

Deno.test("Stream.readable yields the received bytes and ends with the peer's FIN", async () => {
  using all = await streamPair();
  const lines = all.far.readable.pipeThrough(new TextDecoderStream()).pipeThrough(new TextLineStream());
  await all.near.write(bytes("one\ntwo\nthr"));
  await all.near.write(bytes("ee"));
  await all.near.closeWrite();
  assertEquals(await Array.fromAsync(lines), ["one", "two", "three"]);
});

Deno.test("Stream.readable: several streams can be merged", async () => {
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

Deno.test("Stream.readable reads no byte before a reader asks for it", async () => {
  using all = await rawStream();
  const readable = all.stream.readable;
  assertStrictEquals(all.stream.readable, readable);
  await all.peer.send(PSH, 3, bytes("abc"));
  await turn();
  assertEquals(all.session.stats().bytesUnread, 3);
  assertEquals(await readText(all.stream), "abc", "read() still returns all bytes");
});

Deno.test("Stream.readable: a BYOB reader receives bytes in place, and the end", async () => {
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

Deno.test("Stream.readable: a BYOB reader receives the end after a default reader released its lock", async () => {
  using all = await rawStream();
  const first = all.stream.readable.getReader();
  const released = assertRejects(() => first.read(), TypeError);
  await turn();
  first.releaseLock();
  await released;
  const reader = all.stream.readable.getReader({ mode: "byob" });
  const reading = reader.read(new Uint8Array(4));
  await turn();
  await all.peer.send(FIN, 3);
  assert((await reading).done);
});

Deno.test("Stream.readable: cancel() drops unread and later bytes, returns their credit, and writing continues", async () => {
  using all = await streamPair({ version: 2 });
  const writing = all.near.write(pattern(2 << 20));
  await turn();
  await all.far.readable.cancel();
  assertEquals(await writing, 2 << 20, "the peer's write is not blocked");
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

Deno.test("Stream.readable errors with the error of the session", async () => {
  using all = await streamPair();
  const reading = all.far.readable.getReader().read();
  const failed = assertRejects(() => reading, SessionClosedError);
  all.connections[0].reset();
  await failed;
});

Deno.test("Stream.writable writes chunks one after the other, and its end calls closeWrite()", async () => {
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

Deno.test("Stream.writable: abort() ends writing with a FIN after the encoded bytes", async () => {
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

Deno.test("Stream.readable and writable: pipeTo() echoes a stream", async () => {
  using all = await streamPair();
  const echo = all.far.readable.pipeTo(all.far.writable);
  const data = pattern(3 << 20);
  const writing = all.near.write(data).then(() => all.near.closeWrite());
  assertEquals(new Uint8Array(await new Response(all.near.readable).arrayBuffer()), data);
  await Promise.all([writing, echo]);
});

// Connection

Deno.test("Stream has the addresses of its connection, and ref() and unref() have no effect", async () => {
  using all = await streamPair();
  assertEquals(all.near.localAddr, { transport: "tcp", hostname: "", port: 0 });
  assertEquals(all.far.remoteAddr, all.server.remoteAddr);
  all.near.unref();
  all.near.ref();
  await all.near.write(bytes("x"));
  assertEquals(await readText(all.far), "x");
});

Deno.test("Stream.read(): a UPD is sent after the application has read", async () => {
  using all = await rawStream(2, 1 << 20);
  await all.peer.send(PSH, 3, pattern(60_000));
  await turn();
  assertEquals(all.session.stats().framesSent, 0);
  await all.stream.read(new Uint8Array(5000));
  const update = await all.peer.nextOf(UPD);
  assertEquals([update.consumed, update.window], [5000, INITIAL_WINDOW]);
});

Deno.test("MemoryConnection.close() throws when it is called twice", () => {
  const [near] = memoryPair();
  near.close();
  assertThrows(() => near.close(), Error, "Closed twice");
  assert(near instanceof MemoryConnection);
});
