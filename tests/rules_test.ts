/** The fifteen rules of the design where smux leaves room, each by its number. */

import {
  assert,
  assertEquals,
  assertGreater,
  assertInstanceOf,
  assertLess,
  assertRejects,
  assertStrictEquals,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { concat } from "@std/bytes";
import { clock } from "../clock.ts";
import { FIN, NOP, PSH, SYN, UPD, type Version } from "../frame.ts";
import {
  type ClientSessionOptions,
  ProtocolError,
  type ServerSessionOptions,
  Session,
  SessionClosedError,
  type Stream,
  StreamClosedError,
} from "../mod.ts";
import { FIRST_ID } from "../_session_core.ts";
import {
  bytes,
  frame,
  ManualClock,
  type MemoryConnection,
  memoryPair,
  pattern,
  RawPeer,
  readAll,
  readExactly,
  readText,
  sessionPair,
  text,
  turn,
} from "./support.ts";

/** A session, and a raw peer at the other end of its connection. */
function withPeer(
  role: "client" | "server",
  version: Version,
  options: ClientSessionOptions & ServerSessionOptions = {},
  capacity?: number,
): { session: Session; peer: RawPeer; connection: MemoryConnection } {
  const [connection, far] = memoryPair(capacity);
  const session = role === "client"
    ? Session.client(connection, { version, ...options } as ClientSessionOptions)
    : Session.server(connection, { version, ...options });
  return { session, peer: new RawPeer(far, version), connection };
}

/** How a promise stands once everything that can happen has. */
async function state(promise: Promise<unknown>): Promise<"pending" | "fulfilled" | "rejected"> {
  let found: "pending" | "fulfilled" | "rejected" = "pending";
  promise.then(() => found = "fulfilled", () => found = "rejected");
  await turn();
  return found;
}

// 1

Deno.test("rule 1: a client opens 3, 5, 7 and a server 2, 4, 6", async () => {
  for (const [role, ids] of [["client", [3, 5, 7]], ["server", [2, 4, 6]]] as const) {
    const { session, peer } = withPeer(role, 2);
    const streams = [await session.openStream(), await session.openStream(), await session.openStream()];
    assertEquals(streams.map((stream) => stream.id), [...ids]);
    for (const id of ids) assertEquals((await peer.nextOf(SYN)).id, id);
    session.abort();
  }
});

Deno.test("rule 1: used-up ids reject openStream for good, and all else goes on", async () => {
  FIRST_ID.client = 2 ** 32 - 3;
  const { session, peer } = withPeer("client", 1);
  FIRST_ID.client = 3;
  const [first, last] = [await session.openStream(), await session.openStream()];
  assertEquals([first.id, last.id], [2 ** 32 - 3, 2 ** 32 - 1]);
  await assertRejects(() => session.openStream(), RangeError, "every stream id has been used");
  await assertRejects(() => session.openStream(), RangeError);
  assertEquals((await peer.nextOf(SYN)).id, 2 ** 32 - 3);
  assertEquals((await peer.nextOf(SYN)).id, 2 ** 32 - 1);
  await peer.send(PSH, 2 ** 32 - 1, bytes("still here"));
  assertEquals(await readText(last), "still here");
  await peer.send(SYN, 2);
  assertEquals((await session.acceptStream()).id, 2);
  session.abort();
});

for (const [role, id] of [["client", 0], ["client", 5], ["server", 0], ["server", 4]] as const) {
  Deno.test(`rule 1: a SYN with id ${id} ends a ${role}'s session and asks about roles`, async () => {
    const { session, peer } = withPeer(role, 2);
    await peer.send(SYN, id);
    const error = await assertRejects(() => session.closed, ProtocolError, "same role");
    assertEquals(error.received, `${id}`);
    assertEquals(session.stats().accepted, 0);
  });
}

Deno.test("rule 1: frames for unknown streams are dropped, uncharged, never answered", async () => {
  for (const role of ["client", "server"] as const) {
    const { session, peer } = withPeer(role, 2, { keepAliveInterval: Infinity });
    for (const id of [0, 1, 2, 3, 8, 9, 4_000_000_001]) {
      await peer.send(PSH, id, pattern(1000));
      await peer.send(FIN, id);
      await peer.update(id, 77, 100);
    }
    await peer.send(NOP, 4711);
    const id = role === "client" ? 2 : 3;
    await peer.send(SYN, id);
    const stream = await session.acceptStream();
    assertEquals(session.stats().bytesUnread, 0);
    await stream.write(bytes("x"));
    const answered = [];
    for (let frame = await peer.next(); frame!.command !== PSH; frame = await peer.next()) {
      answered.push(frame!.command);
    }
    assertEquals(answered, role === "client" ? [NOP] : []);
    session.abort();
  }
});

Deno.test("rule 1: a SYN for a stream in the table is ignored", async () => {
  const { session, peer } = withPeer("server", 1);
  await peer.send(SYN, 3);
  await peer.send(PSH, 3, bytes("a"));
  for (let i = 0; i < 1000; i++) await peer.send(SYN, 3);
  await peer.send(PSH, 3, bytes("b"));
  await peer.send(FIN, 3);
  const stream = await session.acceptStream();
  assertEquals(text(await readAll(stream)), "ab");
  assertEquals(session.stats().accepted, 1);
  assertEquals(session.incoming.tryReceive(), { state: "empty" });
  session.abort();
});

Deno.test("rule 1: an open that is given up before its SYN could leave leaves nothing behind but a used id", async () => {
  const { session, peer } = withPeer("client", 2, {}, 100);
  const first = await session.openStream();
  const writing = [first, await session.openStream()].map((stream) => stream.write(pattern(250_000)).catch(() => {}));
  await turn();
  const aborting = new AbortController();
  const opening = [session.openStream({ signal: aborting.signal }), session.openStream()];
  const failed = assertRejects(() => opening[0]!, Error, "enough");
  await turn();
  assertEquals(session.stats().streams, 4);
  aborting.abort(new Error("enough"));
  await failed;
  assertEquals(session.stats().streams, 3);
  assertEquals(session.stats().creditGranted, 3 * 262_144);
  const ids = [];
  while (ids.length < 3) ids.push((await peer.nextOf(SYN)).id);
  assertEquals(ids, [3, 5, 9]);
  assertEquals((await opening[1]!).id, 9);
  session.abort();
  await Promise.all(writing);
});

Deno.test("rule 1: an open that waits for room when the session ends rejects", async () => {
  const { session } = withPeer("client", 1, {}, 100);
  const stream = await session.openStream();
  const writing = stream.write(pattern(1 << 20)).catch(() => {});
  const opening = assertRejects(() => session.openStream(), SessionClosedError);
  const reason = new Error("enough");
  session.abort(reason);
  assertStrictEquals((await opening).cause, reason);
  await writing;
});

// 2

Deno.test("rule 2: a stream is in the table before its SYN can leave", async () => {
  const [near, far] = memoryPair();
  const peer = new RawPeer(far, 2);
  let answer = Promise.resolve();
  const session = Session.client({
    read: (p) => near.read(p),
    close: () => near.close(),
    async write(p) {
      // The answer is under way before the write of the SYN has even returned.
      if (p.length >= 8) answer = peer.send(PSH, 3, bytes("at once"));
      await answer;
      return await near.write(p);
    },
  });
  const stream = await session.openStream();
  assertEquals(await readText(stream), "at once");
  session.abort();
});

Deno.test("rule 2: the SYN leaves in the same turn of the event loop, and data written right away leaves with it", async () => {
  for (const data of [false, true]) {
    const [near] = memoryPair();
    const writes: Uint8Array[] = [];
    const session = Session.client({
      read: (p) => near.read(p),
      close: () => near.close(),
      write: (p) => Promise.resolve(writes.push(p.slice())).then(() => p.length),
    }, { version: 1 });
    await turn();
    assertEquals(writes.splice(0).length, 1, "the first NOP has left");
    const opened = (async () => {
      const stream = await session.openStream();
      if (data) await stream.write(bytes("hello"));
    })();
    await opened;
    await turn(1);
    const expected = data ? concat([frame(1, SYN, 3), frame(1, PSH, 3, bytes("hello"))]) : frame(1, SYN, 3);
    assertEquals(writes, [expected]);
    session.abort();
  }
});

// 3

for (const version of [1, 2] as const) {
  Deno.test(`rule 3: FIN never overtakes its own stream's data, version ${version}`, async () => {
    const { session, peer } = withPeer("client", version, { maxFrameSize: 1000 }, 2000);
    const stream = await session.openStream();
    const parts = [pattern(100_000, 1), pattern(1, 2), pattern(70_000, 3), pattern(85_000, 4)];
    const writes = parts.map((part) => stream.write(part));
    const ended = stream.closeWrite();
    const received = [];
    for (let frame = await peer.next(); frame!.command !== FIN; frame = await peer.next()) {
      if (frame!.command === PSH) received.push(frame!.data);
    }
    assertEquals(concat(received), concat(parts));
    assertEquals(await Promise.all(writes), parts.map((part) => part.length));
    await ended;
    session.abort();
  });
}

Deno.test("rule 3: what was taken leaves before the FIN of close()", async () => {
  const { session, peer } = withPeer("client", 1, {}, 1000);
  const stream = await session.openStream();
  const taken = stream.tryWrite(pattern(200_000));
  assertEquals(taken, 200_000);
  stream.close();
  const received = [];
  for (let frame = await peer.next(); frame!.command !== FIN; frame = await peer.next()) {
    if (frame!.command === PSH) received.push(frame!.data);
  }
  assertEquals(concat(received), pattern(200_000));
  session.abort();
});

for (const end of ["an error", "FIN", "close() of the session", "abort()"] as const) {
  Deno.test(`rule 3: data received before ${end} stays readable`, async () => {
    const { session, peer, connection } = withPeer("server", 2);
    await peer.send(SYN, 3);
    await peer.send(PSH, 3, bytes("kept"));
    const stream = await session.acceptStream();
    await turn();
    if (end === "an error") connection.reset();
    else if (end === "FIN") await peer.send(FIN, 3);
    else if (end === "abort()") session.abort();
    else {
      const closing = session.close();
      peer.connection.close();
      await closing;
    }
    await turn();
    assertEquals(await readText(stream), "kept");
    if (end === "FIN") assertEquals(await readText(stream), "(end)");
    else await assertRejects(() => readText(stream), SessionClosedError);
    session.abort();
  });
}

// 4

Deno.test("rule 4: without the peer's FIN, read rejects once the buffer is drained, however the session ends", async () => {
  const ends: Record<string, (at: ReturnType<typeof withPeer>) => unknown> = {
    "the transport's end": ({ peer }) => peer.connection.closeWrite!(),
    "a reset": ({ connection }) => connection.reset(),
    "a cut frame": ({ peer }) => peer.bytes("0202ff").then(() => peer.connection.closeWrite!()),
    "abort": ({ session }) => session.abort(),
    "close": ({ session, peer }) => Promise.all([session.close(), peer.connection.closeWrite!()]),
  };
  for (const [name, end] of Object.entries(ends)) {
    const all = withPeer("server", 2);
    await all.peer.send(SYN, 3);
    await all.peer.send(PSH, 3, bytes("abc"));
    const stream = await all.session.acceptStream();
    assertEquals(await readText(stream), "abc", name);
    const pending = assertRejects(() => readText(stream), SessionClosedError, undefined, name);
    await end(all);
    await pending;
    await assertRejects(() => readText(stream), SessionClosedError, undefined, name);
    all.session.abort();
  }
});

// 5

Deno.test("rule 5: a stream leaves the table when the later of the two FINs passes", async () => {
  const { session, peer } = withPeer("server", 2);
  await peer.send(SYN, 3);
  await peer.send(SYN, 5);
  const [one, two] = [await session.acceptStream(), await session.acceptStream()];
  await one.closeWrite();
  assertEquals(session.stats().streams, 2);
  await peer.send(FIN, 3);
  await one.closed;
  assertEquals(session.stats().streams, 1);
  await peer.send(FIN, 5);
  assertEquals(await readText(two), "(end)");
  assertEquals(session.stats().streams, 1);
  await two.closeWrite();
  assertEquals(session.stats().streams, 0);
  await two.closed;
  session.abort();
});

Deno.test("rule 5: a stream has left the table before its own FIN can reach the wire, and its id may come again", async () => {
  const [near, far] = memoryPair();
  const peer = new RawPeer(far, 1);
  let streamsAtFin = -1;
  const session: Session = Session.server({
    read: (p) => near.read(p),
    close: () => near.close(),
    write(p) {
      if (p[1] === FIN) streamsAtFin = session.stats().streams;
      return near.write(p);
    },
  }, { version: 1 });
  for (let life = 0; life < 50; life++) {
    await peer.send(SYN, 3);
    await peer.send(PSH, 3, bytes(`life ${life}`));
    const stream = await session.acceptStream();
    assertEquals(await readText(stream), `life ${life}`);
    stream.close();
    await peer.nextOf(FIN);
    assertEquals(streamsAtFin, 0);
    await peer.send(PSH, 3, bytes("late"));
  }
  assertEquals(session.stats().bytesUnread, 0);
  session.abort();
});

Deno.test("rule 5: after both FINs unread bytes stay, charged to the session, until read or closed", async () => {
  const { session, peer } = withPeer("server", 1);
  for (const id of [3, 5]) {
    await peer.send(SYN, id);
    await peer.send(PSH, id, pattern(1000, id));
    await peer.send(FIN, id);
  }
  const [one, two] = [await session.acceptStream(), await session.acceptStream()];
  await Promise.all([one.closeWrite(), two.closeWrite(), one.closed, two.closed]);
  assertEquals(session.stats().streams, 0);
  assertEquals(session.stats().bytesUnread, 2000);
  assertEquals(await readAll(one), pattern(1000, 3));
  assertEquals(session.stats().bytesUnread, 1000);
  two.close();
  assertEquals(session.stats().bytesUnread, 0);
  await assertRejects(() => readText(two), StreamClosedError);
  session.abort();
});

// 6

Deno.test("rule 6: half-close works both ways", async () => {
  const { client, server } = sessionPair();
  const [opened, accepted] = await Promise.all([client.openStream(), server.acceptStream()]);
  await opened.closeWrite();
  assertEquals(await readText(accepted), "(end)");
  await accepted.write(bytes("answer"));
  assertEquals(await readText(opened), "answer");
  await accepted.closeWrite();
  assertEquals(await readText(opened), "(end)");
  await Promise.all([client.close(), server.close()]);
});

Deno.test("rule 6: a v2 writer without credit for the timeout after the peer's FIN rejects, each UPD starts it anew", async () => {
  using clock = new ManualClock();
  const { session, peer } = withPeer("client", 2, { timeout: 1000, keepAliveInterval: 900 }, 1 << 20);
  const stream = await session.openStream();
  const alive = async (milliseconds: number) => {
    for (let passed = 0; passed < milliseconds; passed += 100) {
      await peer.send(NOP, 0);
      await clock.advance(100);
    }
  };
  const writing = stream.write(pattern(300_000));
  // One that begins then has its own time, though it is behind those that have waited as long as the first.
  const late = writing.catch(() => stream.write(pattern(1)));
  const lateFailed = assertRejects(() => late, DOMException, "no credit for 1000 ms");
  const failed = assertRejects(() => writing, DOMException, "no credit for 1000 ms");
  const behind = [1, 2].map((length) => stream.write(pattern(length)));
  const allFailed = behind.map((write) => assertRejects(() => write, DOMException, "no credit for 1000 ms"));
  await alive(3000);
  assertEquals(await state(writing), "pending", "while the peer may still read, it waits");
  await peer.send(FIN, 3);
  await alive(900);
  await peer.update(3, 1000, 262_144);
  await alive(900);
  await peer.update(3, 1000, 262_144);
  assertEquals(await state(writing), "pending", "the first UPD moved the limit");
  await alive(100);
  const error = await failed;
  assertEquals(error.name, "TimeoutError");
  assertEquals((error as DOMException & { bytesWritten: number }).bytesWritten, 262_144 + 1000);
  await clock.advance(0);
  await Promise.all(allFailed);
  await alive(900);
  assertEquals(await state(late), "pending");
  await alive(200);
  await lateFailed;
  await peer.update(3, 2000, 262_144);
  assertEquals(await stream.write(pattern(1000)), 1000, "credit that comes after all can be used");
  assertEquals(await state(session.closed), "pending");
  session.abort();
});

Deno.test("rule 6: after a freeze the peer has as long again to give credit after its FIN", async () => {
  using clock = new ManualClock();
  for (const isGiven of [true, false]) {
    const { session, peer } = withPeer("client", 2, { timeout: 1000, keepAliveInterval: 900 }, 1 << 20);
    const stream = await session.openStream();
    const writing = stream.write(pattern(300_000));
    const behind = stream.write(pattern(1));
    const failed = [writing, behind].map((write) => assertRejects(() => write, DOMException, "no credit"));
    for (const failure of failed) failure.catch(() => {});
    await clock.advance(10);
    await peer.send(FIN, 3);
    await clock.advance(10);
    clock.freeze(40_000);
    await clock.advance(10);
    await peer.send(NOP, 0);
    await clock.advance(980);
    assertEquals([await state(writing), await state(behind)], ["pending", "pending"]);
    if (isGiven) {
      await peer.update(3, 262_144, 262_144);
      assertEquals([await writing, await behind], [300_000, 1]);
    } else {
      await peer.send(NOP, 0);
      await clock.advance(20);
      await Promise.all(failed);
    }
    assertEquals(await state(session.closed), "pending");
    session.abort();
  }
});

// 7

Deno.test("rule 7: a protocol error ends the session at once and is the cause of every error", async () => {
  const { session, peer, connection } = withPeer("client", 2);
  const stream = await session.openStream();
  const other = await session.openStream();
  const pending = {
    read: stream.read(new Uint8Array(1)),
    write: stream.write(pattern(1 << 20)),
    closed: stream.closed,
    accept: session.acceptStream(),
    receive: session.incoming.receive(),
    iteration: session[Symbol.asyncIterator]().next(),
  };
  const failed = Object.entries(pending).map(async ([name, promise]) => {
    const error = await assertRejects(() => promise, SessionClosedError, undefined, name);
    return error.cause;
  });
  await turn();
  await peer.bytes("0209000000000000");
  const reason = await assertRejects(() => session.closed, ProtocolError);
  for (const cause of await Promise.all(failed)) assertStrictEquals(cause, reason);
  assert(connection.isClosed);
  const later = [
    () => session.openStream(),
    () => session.acceptStream(),
    () => stream.read(new Uint8Array(1)),
    () => other.write(new Uint8Array(1)),
    () => other.closeWrite(),
    () => other.closed,
  ];
  for (const operation of later) {
    assertStrictEquals((await assertRejects<SessionClosedError>(operation, SessionClosedError)).cause, reason);
  }
  assertThrows(() => other.tryRead(new Uint8Array(1)), SessionClosedError);
  assertThrows(() => other.tryWrite(new Uint8Array(1)), SessionClosedError);
  await session.close();
});

Deno.test("rule 7: a transport error ends the session in the same way", async () => {
  const { session, connection } = withPeer("client", 2);
  const stream = await session.openStream();
  const reading = assertRejects(() => stream.read(new Uint8Array(1)), SessionClosedError);
  const reset = new Error("reset");
  connection.reset(reset);
  assertStrictEquals((await reading).cause, reset);
  assertStrictEquals(await assertRejects(() => session.closed, Error), reset);
});

Deno.test("rule 7: a header is judged before anything else happens", async () => {
  for (const [wrong, name] of [["01000400", "SYN"], ["01010800", "FIN"], ["01030100", "NOP"]] as const) {
    const { session, peer } = withPeer("server", 1);
    await peer.send(SYN, 3);
    const stream = await session.acceptStream();
    const reading = assertRejects(() => stream.read(new Uint8Array(1)), SessionClosedError);
    await peer.bytes(wrong, name === "SYN" ? "05000000" : "03000000");
    await assertRejects(() => session.closed, ProtocolError, `length 0 on ${name}`);
    await reading;
    assertEquals(session.stats().accepted, 1);
  }
});

// 8

Deno.test("rule 8: a peer silent for the timeout ends the session, and the error names the remedy", async () => {
  using clock = new ManualClock();
  for (const said of [false, true]) {
    const { session, peer } = withPeer("client", 2, { timeout: 1000, keepAliveInterval: 500 });
    if (said) await peer.send(NOP, 0);
    await clock.advance(990);
    assertEquals(await state(session.closed), "pending");
    await clock.advance(20);
    const error = await assertRejects(() => session.closed, DOMException, "silent for 1000 ms");
    assertEquals(error.name, "TimeoutError");
    assertEquals(error.message.includes("version 1"), !said);
    assert(error.message.includes("if it sends no keepalive, raise `timeout` or set it to Infinity"), error.message);
  }
  assertEquals(clock.pending, 0);
});

Deno.test("rule 8: payload bytes are life, bytes of an unfinished header are not", async () => {
  using clock = new ManualClock();
  for (const [start, isLife] of [["0202ffff03000000", true], ["", false]] as const) {
    const { session, peer } = withPeer("server", 2, { timeout: 1000, keepAliveInterval: 500 });
    await peer.bytes("0200000003000000", start);
    for (let i = 0; i < 7; i++) {
      await clock.advance(300);
      await peer.bytes(isLife ? "02" : "02030000000000".slice(i * 2, i * 2 + 2)).catch(() => {});
    }
    assertEquals(await state(session.closed), isLife ? "pending" : "rejected");
    session.abort();
  }
});

Deno.test("rule 8: a NOP goes out after the interval without sending, ahead of data, and is never answered", async () => {
  using clock = new ManualClock();
  const { session, peer } = withPeer("server", 1, { timeout: Infinity, keepAliveInterval: 500 });
  await clock.advance(499);
  assertEquals(session.stats().framesSent, 0);
  await clock.advance(1);
  assertEquals((await peer.next())!.command, NOP);
  await peer.send(NOP, 0);
  await peer.send(NOP, 9);
  await clock.advance(300);
  assertEquals(session.stats().framesSent, 1);
  const stream = await session.openStream();
  await turn();
  await clock.advance(499);
  assertEquals(session.stats().framesSent, 2, "a SYN is sending, too");
  await clock.advance(1);
  assertEquals(session.stats().framesSent, 3);
  assertEquals((await peer.next())!.command, SYN);
  assertEquals((await peer.next())!.command, NOP);
  stream.close();
  session.abort();
  assertEquals(clock.pending, 0);
});

Deno.test("rule 8: keepAliveInterval Infinity sends no NOP but the client's first", async () => {
  using clock = new ManualClock();
  const { session } = withPeer("client", 2, { timeout: Infinity, keepAliveInterval: Infinity });
  await clock.advance(1_000_000);
  assertEquals(session.stats().framesSent, 1);
  session.abort();
});

Deno.test("rule 8: an auto server sends nothing before the first frame, and its openStream waits for it", async () => {
  using clock = new ManualClock();
  for (const version of [1, 2] as const) {
    const [near, far] = memoryPair();
    const session = Session.server(near, { keepAliveInterval: 100, timeout: 10_000 });
    const opening = session.openStream();
    const aborted = new AbortController();
    const given = assertRejects(() => session.openStream({ signal: aborted.signal }), Error, "enough");
    await clock.advance(1000);
    assertEquals(session.version, undefined);
    assertEquals(session.stats().framesSent, 0);
    aborted.abort(new Error("enough"));
    await given;
    const peer = new RawPeer(far, version);
    await peer.send(NOP, 0);
    assertEquals((await opening).id, 2);
    assertEquals(session.version, version);
    assertEquals((await peer.nextOf(SYN)).id, 2);
    session.abort();
  }
});

Deno.test("rule 8: an auto server that is closed or cut before the first frame rejects who waits to open", async () => {
  for (const end of ["close", "abort"] as const) {
    const [near, far] = memoryPair();
    const session = Session.server(near);
    const opening = assertRejects(() => session.openStream(), SessionClosedError);
    if (end === "close") far.close();
    session[end]();
    await opening;
    await session.close();
  }
});

Deno.test("rule 8: a client sends one NOP at once", async () => {
  const { session, peer } = withPeer("client", 2);
  const { command, id } = (await peer.next())!;
  assertEquals([command, id], [NOP, 0]);
  session.abort();
});

Deno.test("rule 8: while we hold reading back, silence does not count", async () => {
  using clock = new ManualClock();
  const { session, peer } = withPeer("server", 1, { timeout: 1000, keepAliveInterval: 500, maxReceiveBuffer: 1000 });
  await peer.send(SYN, 3);
  await peer.send(PSH, 3, pattern(1000));
  const stream = await session.acceptStream();
  await clock.advance(5000);
  assert(session.stats().readPaused);
  assertEquals(await state(session.closed), "pending");
  await stream.read(new Uint8Array(1000));
  await clock.advance(900);
  assertEquals(await state(session.closed), "pending", "the time that was held back is not held against the peer");
  await clock.advance(200);
  await assertRejects(() => session.closed, DOMException, "silent");
});

/** A session that holds reading back, and its stream to write to. */
async function makePaused(version: Version, options: ClientSessionOptions, capacity: number) {
  const made = withPeer("server", version, { maxReceiveBuffer: 1000, ...options }, capacity);
  await made.peer.send(SYN, 3);
  await made.peer.send(PSH, 3, pattern(1000));
  const stream = await made.session.acceptStream();
  await turn();
  assert(made.session.stats().readPaused);
  return { ...made, stream };
}

Deno.test("rule 8: a peer that is heard but does not read keeps its session, and gets all of it later", async () => {
  using clock = new ManualClock();
  for (const version of [1, 2] as const) {
    const { session, peer } = withPeer("client", version, { timeout: 1000, keepAliveInterval: 300 }, 1000);
    const stream = await session.openStream();
    if (version === 2) await peer.update(stream.id, 0, 1 << 21);
    await turn();
    const writing = stream.write(pattern(1 << 20));
    writing.catch(() => {});
    for (let passed = 0; passed < 10_000; passed += 500) {
      await clock.advance(500);
      assertEquals(await state(session.closed), "pending", `${passed + 500} ms later`);
      await peer.send(NOP, 0);
    }
    assertEquals(await state(writing), "pending");
    let read = 0;
    for (const all = pattern(1 << 20); read < all.length;) {
      const { data } = await peer.nextOf(PSH);
      assertEquals(data, all.subarray(read, read + data.length));
      read += data.length;
    }
    assertEquals(await writing, 1 << 20);
    session.abort();
  }
  assertEquals(clock.pending, 0);
});

Deno.test("rule 8: a silent peer that does not read ends the session after the timeout", async () => {
  using clock = new ManualClock();
  for (const version of [1, 2] as const) {
    const { session, peer } = withPeer("client", version, { timeout: 1000, keepAliveInterval: 300 }, 1000);
    const stream = await session.openStream();
    const writing = assertRejects(() => stream.write(pattern(1 << 20)), SessionClosedError);
    await clock.advance(900);
    await peer.send(NOP, 0);
    await clock.advance(990);
    assertEquals(await state(session.closed), "pending");
    await clock.advance(20);
    await assertRejects(() => session.closed, DOMException, "silent for 1000 ms");
    await writing;
  }
});

Deno.test("rule 8: while we hold reading back, a transport write without progress for the timeout ends the session", async () => {
  using clock = new ManualClock();
  for (const version of [1, 2] as const) {
    const { session, peer, stream } = await makePaused(version, { timeout: 1000, keepAliveInterval: 500 }, 1000);
    const writing = assertRejects(() => stream.write(pattern(1 << 20)), SessionClosedError);
    const p = new Uint8Array(100);
    for (let i = 0; i < 30; i++) {
      await clock.advance(100);
      if (i < 15) await peer.connection.read(p);
      if (i === 22) assertEquals(await state(session.closed), "pending", "some bytes left until lately");
    }
    await assertRejects(() => session.closed, DOMException, "no progress for 1000 ms");
    await writing;
  }
});

Deno.test("rule 8: a write that made no progress for long does not end the session as soon as reading is held back", async () => {
  using clock = new ManualClock();
  const options = { timeout: 1000, keepAliveInterval: 500, maxReceiveBuffer: 1000 };
  const { session, peer } = withPeer("server", 1, options, 2000);
  await peer.send(SYN, 3);
  const stream = await session.acceptStream();
  const writing = assertRejects(() => stream.write(pattern(1 << 20)), SessionClosedError);
  for (let passed = 0; passed < 3000; passed += 500) {
    await clock.advance(500);
    await peer.send(NOP, 0);
  }
  await peer.send(PSH, 3, pattern(1000));
  await clock.advance(990);
  assert(session.stats().readPaused);
  assertEquals(await state(session.closed), "pending");
  await clock.advance(20);
  await assertRejects(() => session.closed, DOMException, "no progress for 1000 ms");
  await writing;
});

Deno.test("rule 8: two sessions that hold each other back end after the timeout", async () => {
  using clock = new ManualClock();
  const limits = { timeout: 1000, keepAliveInterval: 300, maxReceiveBuffer: 1000 };
  const { client, server } = sessionPair({ version: 1, capacity: 1000, ...limits });
  const [opened, accepted] = await Promise.all([client.openStream(), server.acceptStream()]);
  const writing = [opened, accepted].map((stream) => stream.write(pattern(1 << 20)).catch(() => {}));
  await turn(100);
  assertEquals([client.stats().readPaused, server.stats().readPaused], [true, true]);
  await clock.advance(900);
  assertEquals([await state(client.closed), await state(server.closed)], ["pending", "pending"]);
  await clock.advance(200);
  const ends = await Promise.allSettled([client.closed, server.closed]);
  const reasons = ends.map((end) => end.status === "rejected" ? `${end.reason}` : end.status);
  assert(reasons.some((reason) => reason.includes("no progress for 1000 ms")), `${reasons}`);
  await Promise.all(writing);
  assertEquals(clock.pending, 0);
});

Deno.test("rule 8: after a freeze the peer has as long again to be heard, at most the timeout, and a dead one is found", async () => {
  using clock = new ManualClock();
  for (const [keepAliveInterval, frozen, left] of [[500, 40_000, 1000], [Infinity, 1040, 700], [1000, 1040, 700]]) {
    const { session, peer } = withPeer("server", 1, { timeout: 1000, keepAliveInterval: keepAliveInterval! });
    for (const isHeard of [true, true, false]) {
      await clock.advance(10);
      clock.freeze(frozen!);
      await clock.advance(left! - 10);
      assertEquals(await state(session.closed), "pending", `after ${frozen} ms, of which nothing is read yet`);
      if (isHeard) await peer.send(NOP, 0);
    }
    await clock.advance(1010 - left!);
    await assertRejects(() => session.closed, DOMException, "silent for 1000 ms");
  }
  assertEquals(clock.pending, 0);
});

Deno.test("rule 8: a second freeze soon after the first does not end the session either", async () => {
  using clock = new ManualClock();
  for (const isHeard of [true, false]) {
    for (const between of [50, 5000]) {
      const { session, peer } = withPeer("server", 1);
      await clock.advance(10);
      clock.freeze(35_000);
      await clock.advance(10);
      if (isHeard) await peer.send(NOP, 0);
      await clock.advance(between);
      clock.freeze(35_000);
      await clock.advance(5000);
      assertEquals(await state(session.closed), "pending", `${between} ms between them, heard: ${isHeard}`);
      await peer.send(NOP, 0);
      await clock.advance(29_000);
      assertEquals(await state(session.closed), "pending");
      await clock.advance(1100);
      await assertRejects(() => session.closed, DOMException, "silent");
    }
  }
});

Deno.test("rule 8: after a freeze a write that was under way has as long again to make progress", async () => {
  using clock = new ManualClock();
  const { session, stream } = await makePaused(1, { timeout: 1000, keepAliveInterval: 500 }, 1000);
  const writing = assertRejects(() => stream.write(pattern(1 << 20)), SessionClosedError);
  await clock.advance(300);
  clock.freeze(40_000);
  await clock.advance(990);
  assertEquals(await state(session.closed), "pending");
  await clock.advance(20);
  await assertRejects(() => session.closed, DOMException, "no progress for 1000 ms");
  await writing;
});

Deno.test("rule 8: a process that is always late still gives a silent peer up", async () => {
  using clock = new ManualClock();
  const { session } = withPeer("server", 2, { timeout: 1000, keepAliveInterval: 900 });
  const ended = assertRejects(() => session.closed, DOMException, "silent for 1000 ms");
  for (let passed = 0; passed < 3000; passed += 230) {
    clock.freeze(230);
    await clock.advance(0);
  }
  await ended;
});

// 9

Deno.test("rule 9: consumed beyond what was sent fails that stream's writes, and nothing else", async () => {
  const { session, peer } = withPeer("client", 2);
  const [one, two] = [await session.openStream(), await session.openStream()];
  await one.write(bytes("abc"));
  await peer.update(3, 4, 1000);
  await turn();
  await assertRejects(() => one.write(bytes("d")), ProtocolError, "UPD for bytes that were sent");
  assertThrows(() => one.tryWrite(bytes("d")), ProtocolError);
  await peer.send(PSH, 3, bytes("still read"));
  assertEquals(await readText(one), "still read");
  assertEquals(await two.write(bytes("fine")), 4);
  session.abort();
});

Deno.test("rule 9: consumed going back is ignored, and a window above 2^31-1 is clamped", async () => {
  const { session, peer } = withPeer("client", 2, {}, 4 << 20);
  const stream = await session.openStream();
  await stream.write(pattern(262_144));
  assertEquals(stream.tryWrite(bytes("x")), 0);
  await peer.update(3, 200_000, 62_144 + 10);
  await turn();
  assertEquals(stream.tryWrite(pattern(100)), 10);
  await peer.update(3, 100, 4_000_000_000);
  await turn();
  assertEquals(stream.tryWrite(bytes("x")), 0, "an old UPD moves nothing");
  await peer.update(3, 200_000, 2 ** 32 - 1);
  await turn();
  assertEquals(stream.tryWrite(pattern(50_000)), 50_000);
  session.abort();
});

Deno.test("rule 9: a window of zero lets nothing out until it opens; close() and abort release the writer", async () => {
  for (const release of ["UPD", "close", "signal"] as const) {
    const { session, peer } = withPeer("client", 2, {}, 1 << 20);
    const stream = await session.openStream();
    await peer.update(3, 0, 0);
    await turn();
    const aborting = new AbortController();
    const writing = stream.write(pattern(100), { signal: aborting.signal });
    assertEquals(await state(writing), "pending");
    assertEquals(session.stats().framesSent, 2);
    if (release === "UPD") {
      await peer.update(3, 0, 100);
      assertEquals(await writing, 100);
    } else if (release === "close") {
      stream.close();
      const error = await assertRejects(() => writing, StreamClosedError);
      assertEquals(error.bytesWritten, 0);
    } else {
      aborting.abort(new Error("enough"));
      await assertRejects(() => writing, Error, "enough");
    }
    session.abort();
  }
});

Deno.test("rule 9: a peer that overruns its credit by more than 1 MiB loses that stream, the session lives", async () => {
  const { session, peer } = withPeer("server", 2, {}, 1 << 22);
  await peer.send(SYN, 3);
  await peer.send(SYN, 5);
  const [hog, other] = [await session.acceptStream(), await session.acceptStream()];
  const most = 262_144 + 1024 * 1024;
  for (let sent = 0; sent < most; sent += 65_536) await peer.send(PSH, 3, pattern(65_535));
  await peer.send(PSH, 3, pattern(most - 20 * 65_535));
  await turn();
  assertEquals(session.stats().bytesUnread, most, "the slack that Go needs is granted");
  const reason = assertRejects(() => hog.closed, ProtocolError, "credit");
  await peer.send(PSH, 3, bytes("x"));
  await reason;
  assertEquals(session.stats().bytesUnread, 0);
  await assertRejects(() => hog.read(new Uint8Array(1)), ProtocolError);
  await assertRejects(() => hog.write(new Uint8Array(1)), ProtocolError);
  assertEquals((await peer.nextOf(FIN)).id, 3);
  assertEquals(session.stats().streams, 1);
  await peer.send(PSH, 5, bytes("alive"));
  assertEquals(await readText(other), "alive");
  session.abort();
});

Deno.test("rule 9: what comes in one read with the frame that overruns credit is not lost", async () => {
  const { session, peer } = withPeer("server", 2, {}, 1 << 22);
  await peer.send(SYN, 3);
  await peer.send(SYN, 5);
  const [hog, other] = [await session.acceptStream(), await session.acceptStream()];
  const [most, last] = [262_144 + 1024 * 1024, 40_000];
  for (let left = most - last; left > 0; left -= 50_000) await peer.send(PSH, 3, pattern(Math.min(left, 50_000)));
  await turn();
  assertEquals(session.stats().bytesUnread, most - last);
  // The stream keeps a view of the buffer that is being decoded when it is cut.
  await peer.bytes(concat([
    frame(2, PSH, 3, pattern(last)),
    frame(2, PSH, 3, bytes("x")),
    frame(2, PSH, 5, bytes("innocent")),
  ]));
  await assertRejects(() => hog.closed, ProtocolError, "credit");
  assertEquals(await readText(other), "innocent");
  assertEquals(await state(session.closed), "pending");
  session.abort();
});

// 10

Deno.test("rule 10: a window below 262144 is told at once, after our SYN and on accepting", async () => {
  const { session, peer } = withPeer("server", 2, { maxStreamBuffer: 1000 });
  await peer.send(SYN, 3);
  const told = await peer.next();
  assertEquals([told!.command, told!.id, told!.consumed, told!.window], [UPD, 3, 0, 1000]);
  const stream = await session.openStream();
  assertEquals((await peer.next())!.command, SYN);
  const mine = await peer.next();
  assertEquals([mine!.command, mine!.id, mine!.window], [UPD, stream.id, 1000]);
  session.abort();

  const usual = withPeer("server", 2);
  await usual.peer.send(SYN, 3);
  await usual.session.acceptStream();
  await turn();
  assertEquals(usual.session.stats().framesSent, 0);
  usual.session.abort();
});

Deno.test("rule 10: an update on the first read, then when half the window or 1 MiB has been read", async () => {
  const { session, peer } = withPeer("server", 2, { maxStreamBuffer: 100 });
  await peer.send(SYN, 3);
  const stream = await session.acceptStream();
  assertEquals((await peer.nextOf(UPD)).consumed, 0);
  await peer.send(PSH, 3, pattern(100));
  await stream.read(new Uint8Array(1));
  assertEquals((await peer.nextOf(UPD)).consumed, 1);
  await stream.read(new Uint8Array(49));
  await stream.read(new Uint8Array(1));
  const update = await peer.nextOf(UPD);
  assertEquals([update.consumed, update.window], [51, 100]);
  session.abort();
});

Deno.test("rule 10: no update after the peer's FIN or our close", async () => {
  const { session, peer } = withPeer("server", 2, { maxStreamBuffer: 100, keepAliveInterval: Infinity });
  for (const id of [3, 5]) {
    await peer.send(SYN, id);
    await peer.send(PSH, id, pattern(100));
  }
  await peer.send(FIN, 3);
  const [one, two] = [await session.acceptStream(), await session.acceptStream()];
  await turn();
  const before = session.stats().framesSent;
  assertEquals(before, 2);
  await readAll(one);
  two.close();
  await turn();
  assertEquals(session.stats().framesSent, before + 1, "only the FIN of close()");
  session.abort();
});

Deno.test("rule 10: over a slow link the window grows to what the link needs, and is given back at the end", async () => {
  using clock = new ManualClock();
  // A peer with endless data, 50 ms away there and back: it sends what it may, and hears what we say 50 ms later.
  const { session, peer } = withPeer("server", 2, { timeout: Infinity, keepAliveInterval: Infinity }, 64 << 20);
  await peer.send(SYN, 3);
  const stream = await session.acceptStream();
  let told = 262_144;
  const windows: number[] = [];
  const listening = (async () => {
    for (let frame = await peer.next(); frame !== null; frame = await peer.next()) {
      if (frame.command !== UPD) continue;
      told = frame.consumed + frame.window;
      windows.push(frame.window);
    }
  })();
  const p = new Uint8Array(1 << 20);
  for (let trip = 0, sent = 0, limit = told; trip < 20; trip++, limit = told) {
    while (sent < limit) {
      const count = Math.min(limit - sent, 65_535);
      await peer.send(PSH, 3, p.subarray(0, count));
      sent += count;
      await turn(1);
      while (stream.tryRead(p)! > 0);
    }
    await clock.advance(50);
  }
  assert(windows[0] === 262_144, "it starts small");
  assert(Math.max(...windows) > 2 << 20, `it grew to ${Math.max(...windows)} only`);
  assert(Math.max(...windows) <= 8 << 20);
  stream.close();
  assertEquals(session.stats().creditGranted, 0);
  session.abort();
  await listening;
});

Deno.test("rule 10: 31 unread streams cannot stop the others", async () => {
  const { client, server } = sessionPair({ version: 2, capacity: 1 << 20 });
  const hogs = [];
  for (let i = 0; i < 31; i++) {
    const [opened] = await Promise.all([client.openStream(), server.acceptStream()]);
    const writing = opened.write(pattern(1 << 20));
    writing.catch(() => {});
    hogs.push(opened);
  }
  await turn(20);
  const [opened, accepted] = await Promise.all([client.openStream(), server.acceptStream()]);
  const data = pattern(12 << 20);
  const writing = opened.write(data).then(() => opened.closeWrite());
  assertEquals(await readAll(accepted), data);
  await writing;
  assert(!server.stats().readPaused);
  client.abort();
  server.abort();
});

// 11

Deno.test("rule 11: at maxReceiveBuffer the transport is not read, what was read is parsed, and writing goes on", async () => {
  const { session, peer } = withPeer("server", 1, { maxReceiveBuffer: 10_000 }, 1 << 20);
  await peer.bytes(
    ...[3, 5].map((id) => frame(1, SYN, id)),
    frame(1, PSH, 3, pattern(12_000)),
    frame(1, PSH, 5, bytes("in the same read")),
  );
  const [hog, other] = [await session.acceptStream(), await session.acceptStream()];
  await turn();
  assert(session.stats().readPaused);
  assertEquals(await readText(other), "in the same read");
  await peer.send(PSH, 5, bytes("not read yet"));
  const reading = readText(other);
  assertEquals(await state(reading), "pending");
  await hog.write(bytes("out"));
  assertEquals((await peer.nextOf(PSH)).data, bytes("out"));
  hog.close();
  assertEquals(await reading, "not read yet");
  assertEquals(session.stats().readPaused, false);
  session.abort();
});

Deno.test("rule 11: what is held for unread bytes is no more than twice their number and two buffers", async () => {
  // A view and a chunk in front of it cost so much beside the buffer, measured with a hundred thousand of each.
  const beside = 532;
  // From frames that are copied to those of which a buffer holds two, and from the smallest buffers to the largest.
  for (const length of [3000, 4095, 4096, 4352, 4608, 6000, 8000, 31_000, 32_768, 33_000, 60_000]) {
    const reads = Math.ceil(8 * 1024 * 1024 / length);
    // One small frame, and one that may be worth a view; what comes together has been sent together.
    const part = concat([frame(1, PSH, 3, bytes("x")), frame(1, PSH, 3, pattern(length))]);
    const given = new Map<ArrayBufferLike, number>();
    let left = reads;
    let rest = frame(1, SYN, 3);
    const { promise: open, resolve: end } = Promise.withResolvers<null>();
    const session = Session.server({
      read(p) {
        given.set(p.buffer, p.length);
        if (rest.length === 0 && left-- > 0) rest = part;
        if (rest.length === 0) return open;
        const count = Math.min(p.length, rest.length);
        p.set(rest.subarray(0, count));
        rest = rest.subarray(count);
        return Promise.resolve(count);
      },
      write: (p) => Promise.resolve(p.length),
      close: () => end(null),
    }, { version: 1, maxReceiveBuffer: 64 << 20, keepAliveInterval: Infinity });
    const unread = reads * (1 + length);
    while (session.stats().bytesUnread < unread) await turn();
    // Those that were not kept have gone back to where they came from.
    const kept = [...given].filter(([buffer]) => buffer.byteLength > 0);
    const views = kept.length - 1;
    const held = kept.reduce((sum, [, size]) => sum + size, 0) + (unread - views * (length + 1)) + views * beside;
    assert(held <= 2 * unread + 2 * 63 * 1024, `${held} bytes for ${unread} unread ones in frames of ${length}`);
    session.abort();
    await session.closed.catch(() => {});
  }
});

Deno.test("rule 11: reading resumes below the limit", async () => {
  const { session, peer } = withPeer("server", 1, { maxReceiveBuffer: 1000 });
  await peer.send(SYN, 3);
  await peer.send(PSH, 3, pattern(1000));
  const stream = await session.acceptStream();
  await turn();
  assert(session.stats().readPaused);
  await peer.send(SYN, 5);
  assertEquals(session.incoming.tryReceive().state, "empty");
  await stream.read(new Uint8Array(1));
  assertEquals((await session.acceptStream()).id, 5);
  session.abort();
});

Deno.test("rule 11: stalledStreamTimeout cuts the stream that holds most and is not read", async () => {
  using clock = new ManualClock();
  const options = { maxReceiveBuffer: 100_000, stalledStreamTimeout: 500, timeout: Infinity };
  const { session, peer } = withPeer("server", 1, options, 1 << 20);
  for (const [id, count] of [[3, 30_000], [5, 20_000], [7, 50_000]] as const) {
    await peer.send(SYN, id);
    await peer.send(PSH, id, pattern(count));
  }
  const [, , read] = [await session.acceptStream(), await session.acceptStream(), await session.acceptStream()];
  await turn();
  assert(session.stats().readPaused);
  await read.read(new Uint8Array(100));
  await peer.send(PSH, 7, pattern(200));
  await clock.advance(499);
  assertEquals(session.stats().streams, 3);
  await clock.advance(110);
  assertEquals(session.stats().streams, 2);
  assertEquals((await peer.nextOf(FIN)).id, 3, "the largest is read, so the next largest is cut");
  assertEquals(session.stats().readPaused, false);
  session.abort();
});

Deno.test("rule 11: after a freeze the application has as long again to read a stalled stream", async () => {
  using clock = new ManualClock();
  const options = { maxReceiveBuffer: 1000, stalledStreamTimeout: 500, timeout: Infinity };
  const { session, peer } = withPeer("server", 1, options, 1 << 20);
  await peer.send(SYN, 3);
  await peer.send(PSH, 3, pattern(1000));
  const stream = await session.acceptStream();
  await clock.advance(10);
  assert(session.stats().readPaused);
  clock.freeze(40_000);
  await clock.advance(450);
  assertEquals(session.stats().streams, 1, "the application could not read while the process stood still");
  await clock.advance(160);
  await assertRejects(() => stream.closed, DOMException, "Stream 3 stalled");
  session.abort();
});

Deno.test("rule 11: a stream that is alone and read, however slowly, is not cut, and nothing is when the pressure goes", async () => {
  using clock = new ManualClock();
  const options = { maxReceiveBuffer: 1000, stalledStreamTimeout: 500, timeout: Infinity };
  const { session, peer } = withPeer("server", 1, options, 1 << 20);
  await peer.send(SYN, 3);
  await peer.send(PSH, 3, pattern(1000));
  const stream = await session.acceptStream();
  await turn();
  for (let i = 0; i < 20; i++) {
    assert(session.stats().readPaused);
    await clock.advance(200);
    await stream.read(new Uint8Array(1));
    await peer.send(PSH, 3, bytes("x"));
    await turn();
  }
  await stream.read(new Uint8Array(900));
  await clock.advance(5000);
  assertEquals(session.stats().streams, 1);
  session.abort();
  assertEquals(clock.pending, 0);
});

Deno.test("rule 11: a stalled stream that has ended both ways is cut like any other", async () => {
  using clock = new ManualClock();
  const options = { maxReceiveBuffer: 1000, stalledStreamTimeout: 500, timeout: Infinity };
  const { session, peer } = withPeer("server", 1, options, 1 << 20);
  let hog: Stream | undefined;
  for (const [id, length] of [[3, 100], [5, 900]] as const) {
    await peer.send(SYN, id);
    await peer.send(PSH, id, pattern(length));
    await peer.send(FIN, id);
    const stream = await session.acceptStream();
    await Promise.all([stream.closeWrite(), stream.closed]);
    if (id === 3) assertEquals(await readText(stream), text(pattern(100)));
    else hog = stream;
  }
  assertEquals(session.stats().streams, 0);
  await peer.send(SYN, 7);
  await peer.send(PSH, 7, pattern(100));
  const last = await session.acceptStream();
  await turn();
  assert(session.stats().readPaused);
  await clock.advance(600);
  assertEquals(session.stats().bytesUnread, 100, "the larger one was cut");
  assert(!session.stats().readPaused);
  assertEquals((await last.read(new Uint8Array(200)))!, 100);
  // Its FIN came long ago, but what was before that is gone.
  await assertRejects(() => hog!.read(new Uint8Array(1)), DOMException, "Stream 5 stalled");
  await assertRejects(() => readText(hog!), DOMException, "Stream 5 stalled");
  session.abort();
});

Deno.test("rule 11: in version 1 all stalled streams of some size are cut at once, since the others would refill the buffer", async () => {
  using clock = new ManualClock();
  const options = { maxReceiveBuffer: 1000, stalledStreamTimeout: 500, timeout: Infinity };
  const { session, peer } = withPeer("server", 1, options, 1 << 20);
  // One read of the transport brings them all, so that more is held than one stream's share.
  const frames = [3, 5, 7].flatMap((id) => [frame(1, SYN, id), frame(1, PSH, id, pattern(400 + id))]);
  await peer.bytes(...frames);
  const streams = [await session.acceptStream(), await session.acceptStream(), await session.acceptStream()];
  await turn();
  const cut = streams.map((stream) => assertRejects(() => stream.closed, DOMException, `Stream ${stream.id} stalled`));
  await clock.advance(499);
  assertEquals(session.stats().streams, 3);
  await clock.advance(101);
  await Promise.all(cut);
  assertEquals([session.stats().streams, session.stats().bytesUnread], [0, 0]);
  const error = await assertRejects(() => readText(streams[0]!), DOMException);
  assertEquals(error.name, "TimeoutError");
  assertStringIncludes(error.message, "0 bytes were read in 500 ms (stalledStreamTimeout) while it held 403 of");
  session.abort();
});

Deno.test("rule 11: in version 2 stalled streams are cut, largest first, until half of the buffer is free", async () => {
  using clock = new ManualClock();
  const options = { maxReceiveBuffer: 80_000, stalledStreamTimeout: 500, timeout: Infinity };
  const { session, peer } = withPeer("server", 2, options, 1 << 20);
  const sizes = [9000, 13_000, 8000, 12_000, 10_000, 11_000, 7500];
  for (const [n, size] of sizes.entries()) {
    await peer.send(SYN, 3 + 2 * n);
    await peer.send(PSH, 3 + 2 * n, pattern(size));
  }
  await turn();
  assertEquals(session.stats().readPaused, false, "less than an eighth is free, and that is enough");
  await clock.advance(600);
  const ended: number[] = [];
  while (ended.length < 3) ended.push((await peer.nextOf(FIN)).id);
  assertEquals(ended, [5, 9, 13]);
  assertEquals([session.stats().streams, session.stats().bytesUnread], [4, 34_500]);
  session.abort();
});

Deno.test("rule 11: while the buffer fills again at once, streams are watched half as long before the next cut", async () => {
  using clock = new ManualClock();
  const options = { maxReceiveBuffer: 10_000, stalledStreamTimeout: 1600, timeout: Infinity };
  for (const version of [1, 2] as const) {
    const { session, peer } = withPeer("server", version, options, 1 << 20);
    const fill = async (first: number) => {
      for (let n = 0; n < 50; n++) {
        await peer.send(SYN, first + 2 * n);
        await peer.send(PSH, first + 2 * n, pattern(2000));
      }
      await turn();
      assert(session.stats().readPaused);
    };
    const cut = () => session.stats().accepted - session.stats().streams;
    const isCutAfter = async (milliseconds: number) => {
      const before = cut();
      await clock.advance(milliseconds - 1);
      assertEquals(cut(), before, `version ${version}, before ${milliseconds} ms`);
      await clock.advance(1);
      assertGreater(cut(), before, `version ${version}, after ${milliseconds} ms`);
    };
    await fill(3);
    // What waits in the connection fills the buffer again each time.
    for (const milliseconds of [1600, 800, 400, 200, 100, 100]) await isCutAfter(milliseconds);
    // After a quiet time the watch is as long as at first.
    await clock.advance(10_000);
    await fill(203);
    await isCutAfter(1600);
    session.abort();
  }
});

Deno.test("rule 11: a stream that is read slower than 16 KiB a second is cut where other streams wait", async () => {
  using clock = new ManualClock();
  const options = { maxReceiveBuffer: 200_000, stalledStreamTimeout: 1000, timeout: Infinity };
  for (const [rate, isCut] of [[16 * 1024 - 100, true], [16 * 1024 + 100, false]] as const) {
    const { session, peer } = withPeer("server", 1, options, 1 << 20);
    for (const id of [3, 5]) await peer.send(SYN, id);
    const [slow] = [await session.acceptStream(), await session.acceptStream()];
    const pour = async () => {
      for (;;) await peer.send(PSH, 3, pattern(10_000));
    };
    pour().catch(() => {});
    await turn();
    assert(session.stats().readPaused);
    await clock.advance(500);
    await slow.read(new Uint8Array(rate));
    await clock.advance(600);
    assertEquals(session.stats().streams, isCut ? 1 : 2, `${rate} bytes a second`);
    session.abort();
  }
});

Deno.test("rule 10: while half of the buffer is unread a stream that holds its share gets an UPD that revokes its credit", async () => {
  const { session, peer } = withPeer("server", 2, { maxReceiveBuffer: 1 << 20 }, 1 << 21);
  for (const id of [3, 5, 7]) {
    await peer.send(SYN, id);
    for (let n = 0; n < 8; n++) await peer.send(PSH, id, pattern(25_000));
  }
  // The third passes half of the buffer with its 13th piece, and a share is 2 KiB then.
  const revoked = await peer.nextOf(UPD);
  assertEquals([revoked.id, revoked.consumed, revoked.window], [7, 0, 125_000]);
  // What was on its way is taken, and a stream that is opened now starts small.
  await peer.send(SYN, 9);
  const small = await peer.nextOf(UPD);
  assertEquals([small.id, small.consumed, small.window], [9, 0, Math.floor((1_048_576 - 600_000) / 256)]);
  await peer.send(PSH, 9, pattern(100));
  const streams = [];
  for (let n = 0; n < 4; n++) streams.push(await session.acceptStream());
  // It is read, so it has credit again.
  assertEquals(await streams[3]!.read(new Uint8Array(100)), 100);
  const credit = await peer.nextOf(UPD);
  assertEquals([credit.id, credit.consumed], [9, 100]);
  // Once there is room, a stream that is read has its first window again.
  for (const stream of streams.slice(0, 3)) await readExactly(stream, 200_000);
  await peer.send(PSH, 9, pattern(100));
  await streams[3]!.read(new Uint8Array(100));
  for (let update = credit; update.id !== 9 || update.window < 262_144;) update = await peer.nextOf(UPD);
  session.abort();
});

Deno.test("rule 10: 300 streams that are never read leave room for those that are", async () => {
  const { client, server } = sessionPair({ maxReceiveBuffer: 4 << 20, timeout: Infinity, keepAliveInterval: Infinity });
  const work: Promise<unknown>[] = [];
  const pour = async (stream: Stream) => {
    for (const p = new Uint8Array(32 * 1024);;) await stream.write(p);
  };
  const answer = async (stream: Stream) => {
    if (await readText(stream) === "pour") await pour(stream);
    else await stream.write(bytes("echo"));
  };
  const accept = async () => {
    for await (const stream of client) work.push(answer(stream).catch(() => {}));
  };
  work.push(accept());
  const ask = async (stream: Stream, word: string) => {
    await stream.write(bytes(word));
    return word === "pour" ? "" : await readText(stream);
  };
  const early = await server.openStream();
  let most = 0;
  for (let n = 0; n < 300; n++) {
    await ask(await server.openStream(), "pour");
    await turn();
    most = Math.max(most, server.stats().bytesUnread);
    assertEquals(server.stats().readPaused, false, `with ${n} stalled streams`);
    if (n % 50 === 0) assertEquals(await ask(await server.openStream(), "echo"), "echo");
  }
  assertEquals(await ask(early, "echo"), "echo");
  assertGreater(most, 3 << 20);
  assertLess(most, 4 << 20);
  client.abort();
  server.abort();
  await Promise.allSettled(work);
});

// 12

Deno.test("rule 12: beyond maxStreams and beyond the backlog a SYN is refused with FIN", async () => {
  for (const options of [{ maxStreams: 2 }, { acceptBacklog: 2 }]) {
    const { session, peer } = withPeer("server", 2, options);
    for (const id of [3, 5, 7, 9]) await peer.send(SYN, id);
    assertEquals((await peer.nextOf(FIN)).id, 7);
    assertEquals((await peer.nextOf(FIN)).id, 9);
    await peer.send(PSH, 7, bytes("dropped"));
    const { streams, refused, accepted, pendingAccept } = session.stats();
    assertEquals({ streams, refused, accepted, pendingAccept }, {
      streams: 2,
      refused: 2,
      accepted: 2,
      pendingAccept: 2,
    });
    const stream = await session.acceptStream();
    assertEquals(stream.id, 3);
    stream.close();
    await peer.send(SYN, 11);
    await turn();
    assertEquals(session.stats().refused, 2, "there is room again");
    assertEquals(session.stats().bytesUnread, 0);
    session.abort();
  }
});

Deno.test("rule 12: to its opener, a refused stream ended at once, empty", async () => {
  const { client, server } = sessionPair({ server: { acceptBacklog: 1 } });
  const streams = [await client.openStream(), await client.openStream()];
  assertEquals(await streams[1]!.read(new Uint8Array(1)), null);
  await Promise.all([client.close(), server.close()]);
});

Deno.test("rule 12: a peer that opens streams without end and never reads is not read any more", async () => {
  const { session, peer } = withPeer("server", 1, { maxStreams: 1 }, 64 * 1024);
  let sent = 0;
  const flood = (async () => {
    for (let id = 3; id < 2_000_001; id += 2) {
      await peer.send(SYN, id);
      sent++;
    }
  })();
  const flooded = flood.catch(() => {});
  while (!session.stats().readPaused) await turn();
  await turn(50);
  const { refused, bytesUnsent } = session.stats();
  // What fits into the two buffers, then 1024 more, then what the last read held.
  assert(refused < 2 * 320 * 1024 / 8 + 1024 + 64 * 1024 / 8, `${refused} refusals are kept`);
  assert(bytesUnsent < 1024 * 1024);
  assert(sent < 1_000_000);
  // Once they are read they leave, and it goes on.
  const before = session.stats().refused;
  while (session.stats().refused === before) await peer.next();
  session.abort();
  await flooded;
});

/** A session of whose control frames none has room any more: its peer does not read, and updates fell due until then. */
async function withFullBuffers() {
  const options = { maxStreamBuffer: 1000, maxFrameSize: 65_535 };
  const all = withPeer("server", 2, options, 256);
  const { session, peer } = all;
  const streams: Stream[] = [];
  for (let id = 3; id < 3 + 2 * 50; id += 2) {
    await peer.send(SYN, id);
    streams.push(await session.acceptStream());
  }
  const [noisy, ...others] = streams;
  const writing = Array.from({ length: 10 }, (_, i) => noisy!.write(pattern(60_000, i)).catch(() => {}));
  await turn();
  await peer.update(3, 0, 2 ** 31 - 1);
  let consumed = 0;
  for (let before = -1; before < session.stats().framesSent;) {
    before = session.stats().framesSent;
    const sent = peer.send(PSH, 3, pattern(1000));
    for (let count = 0; count < 1000;) count += (await noisy!.read(new Uint8Array(1000)))!;
    consumed += 1000;
    await sent;
  }
  return { ...all, noisy: noisy!, others, consumed, writing };
}

Deno.test("rule 12: of updates that find no room only the newest is kept", async () => {
  const { session, peer, noisy, consumed, writing } = await withFullBuffers();
  const { framesSent, bytesUnsent } = session.stats();
  assert(bytesUnsent < 700_000, `${bytesUnsent} bytes are kept`);
  for (let i = 0; i < 1000; i++) {
    const sent = peer.send(PSH, 3, pattern(1000));
    for (let count = 0; count < 1000;) count += (await noisy.read(new Uint8Array(1000)))!;
    await sent;
  }
  assertEquals(session.stats().framesSent, framesSent, "nothing was encoded meanwhile");
  const total = consumed + 1_000_000;
  const seen: number[] = [];
  while ((seen.at(-1) ?? 0) < total - 1000) seen.push((await peer.nextOf(UPD)).consumed);
  assert(seen.at(-2)! <= consumed, "those of the last thousand reads but one were never sent");
  session.abort();
  await Promise.all(writing);
});

Deno.test("rule 12: the FIN of close() waits as state while nothing has room, once for each stream, and goes ahead of data", async () => {
  const { session, peer, others, writing } = await withFullBuffers();
  for (const stream of others) stream.close();
  for (const stream of others) stream.close();
  assertEquals(session.stats().streams, 50, "they leave the table before their FIN can reach the wire, not sooner");
  const ended: number[] = [];
  const order: number[] = [];
  while (ended.length < 49) {
    const frame = (await peer.next())!;
    order.push(frame.command);
    if (frame.command === FIN) ended.push(frame.id);
  }
  assertEquals(ended.toSorted((a, b) => a - b), others.map((stream) => stream.id));
  assertEquals(session.stats().streams, 1);
  assert(
    order.lastIndexOf(PSH) < order.indexOf(FIN),
    "data that was taken before leaves before, data that waits does not",
  );
  session.abort();
  await Promise.all(writing);
});

Deno.test("rule 12: while refusals wait for room the streams that exist go on", async () => {
  const { session, peer, noisy, consumed, writing } = await withFullBuffers();
  session.incoming.close();
  for (let id = 1001; id < 1001 + 2 * 500; id += 2) await peer.send(SYN, id);
  await peer.send(PSH, 3, bytes("still"));
  assertEquals(await readText(noisy), "still");
  assertEquals(session.stats().refused, 500);
  assert(!session.stats().readPaused);
  assert(consumed > 0);
  const refused = new Set<number>();
  while (refused.size < 500) refused.add((await peer.nextOf(FIN)).id);
  session.abort();
  await Promise.all(writing);
});

// 13

for (const version of [1, 2] as const) {
  Deno.test(`rule 13: a stream that writes megabytes gives way to others that wait, version ${version}`, async () => {
    const { session, peer } = withPeer("client", version, { maxFrameSize: 1000 }, 4096);
    const [bulk, small] = [await session.openStream(), await session.openStream()];
    await peer.nextOf(SYN);
    await peer.nextOf(SYN);
    if (version === 2) { for (const id of [3, 5]) await peer.update(id, 0, 2 ** 31 - 1); }
    await turn();
    const writing = bulk.write(pattern(4 << 20)).catch(() => {});
    await turn();
    const others = Array.from({ length: 10 }, (_, i) => small.write(pattern(10, i)));
    await turn();
    let bulkFrames = 0;
    let smallFrames = 0;
    while (smallFrames < 10) {
      const { id } = await peer.nextOf(PSH);
      if (id === small.id) smallFrames++;
      else bulkFrames++;
    }
    // Two buffers were full before the small stream came; from then on they take turns.
    assert(bulkFrames < 2 * 240 + 20, `${bulkFrames} frames went first`);
    await Promise.all(others);
    session.abort();
    await writing;
  });
}

Deno.test("rule 13: a hundred equal writers progress alike", async () => {
  const { session, peer } = withPeer("client", 1, {}, 64 * 1024);
  const streams = await Promise.all(Array.from({ length: 100 }, () => session.openStream()));
  const writing = streams.map((stream) => stream.write(pattern(1 << 20)).catch(() => {}));
  const bytesOf = new Map<number, number>();
  for (let received = 0; received < 40 << 20;) {
    const { id, data } = await peer.nextOf(PSH);
    bytesOf.set(id, (bytesOf.get(id) ?? 0) + data.length);
    received += data.length;
  }
  const shares = streams.map((stream) => bytesOf.get(stream.id) ?? 0);
  const sum = shares.reduce((a, b) => a + b);
  const jain = sum ** 2 / (shares.length * shares.reduce((a, b) => a + b ** 2, 0));
  assert(jain >= 0.95, `Jain's index is ${jain.toFixed(3)}`);
  session.abort();
  await Promise.all(writing);
});

// 14

Deno.test("rule 14: close() sends what was taken and what waits for room, then FIN on every stream, then the end", async () => {
  const { session, peer } = withPeer("client", 1, {}, 4096);
  const [one, two] = [await session.openStream(), await session.openStream()];
  const data = pattern(1 << 20);
  const writing = one.write(data);
  await turn();
  const closing = session.close();
  assertStrictEquals(session.close(), closing);
  await assertRejects(() => session.openStream(), SessionClosedError);
  await assertRejects(() => two.write(bytes("x")), SessionClosedError);
  await assertRejects(() => session.acceptStream(), SessionClosedError);
  const received = [];
  const ended = [];
  for (let frame = await peer.next(); frame !== null; frame = await peer.next()) {
    if (frame.command === PSH) received.push(frame.data);
    if (frame.command === FIN) ended.push(frame.id);
  }
  assertEquals(concat(received), data);
  assertEquals(ended.sort(), [3, 5]);
  assertEquals(await writing, data.length);
  assertEquals(await state(closing), "pending", "the peer has not ended its half");
  await peer.connection.closeWrite!();
  await closing;
  await session.closed;
});

Deno.test("rule 14: a SYN is refused while closing, and late data is read and dropped until the peer's end", async () => {
  const { session, peer } = withPeer("server", 1, { maxReceiveBuffer: 1000 });
  await peer.send(SYN, 3);
  await session.acceptStream();
  const closing = session.close();
  assertEquals((await peer.nextOf(FIN)).id, 3);
  await peer.send(SYN, 5);
  for (let i = 0; i < 100; i++) await peer.send(PSH, 3, pattern(10_000));
  assertEquals(await state(closing), "pending");
  await peer.connection.closeWrite!();
  await closing;
  assertEquals(session.stats().accepted, 1);
});

Deno.test("rule 14: a stream whose late data was dropped never reads as whole, one that only ended does", async () => {
  const { session, peer } = withPeer("server", 1);
  for (const id of [3, 5]) {
    await peer.send(SYN, id);
    await peer.send(PSH, id, bytes("first"));
  }
  const [cut, whole] = [await session.acceptStream(), await session.acceptStream()];
  const closing = session.close();
  await peer.nextOf(FIN);
  await peer.nextOf(FIN);
  assertEquals(await peer.next(), null, "our half has ended");
  await peer.send(PSH, 3, bytes("late"));
  await peer.send(FIN, 3);
  await peer.send(FIN, 5);
  await turn();
  assertEquals(await readText(cut), "first");
  await assertRejects(() => readText(cut), SessionClosedError);
  await assertRejects(() => cut.closed, SessionClosedError);
  assertEquals(text(await readAll(whole)), "first");
  await peer.connection.closeWrite!();
  await closing;
  await session.closed;
});

Deno.test("rule 14: after one quiet second it closes although the peer does not", async () => {
  using clock = new ManualClock();
  const { session, peer, connection } = withPeer("client", 1);
  const closing = session.close();
  await clock.advance(900);
  await peer.send(NOP, 0);
  await clock.advance(900);
  assertEquals(connection.isClosed, false);
  await clock.advance(1300);
  assert(connection.isClosed);
  await closing;
  await session.closed;
  assertEquals(clock.pending, 0);
});

Deno.test("rule 14: after a freeze close() does not take a peer for quiet whose bytes were not read yet", async () => {
  using clock = new ManualClock();
  for (const [frozen, left] of [[40_000, 1000], [1090, 1000], [500, 600]] as const) {
    const { session, peer, connection } = withPeer("client", 1);
    const closing = session.close({ timeout: 60_000 });
    await turn();
    clock.freeze(frozen);
    await clock.advance(left - 10);
    assertEquals(connection.isClosed, false, `${left - 10} ms after ${frozen} ms`);
    await peer.send(NOP, 0);
    await clock.advance(1000);
    assertEquals(connection.isClosed, false, "a byte came");
    await clock.advance(1010);
    assert(connection.isClosed);
    await closing;
  }
  assertEquals(clock.pending, 0);
});

Deno.test("rule 14: a freeze does not use up the timeout of close(), and the peer has as long again to end its streams", async () => {
  using clock = new ManualClock();
  for (const frozen of [40_000, 140]) {
    for (const isAnswered of [true, false]) {
      const { session, peer } = withPeer("client", 1);
      const stream = await session.openStream();
      await stream.closeWrite();
      const closing = session.close({ drain: true, timeout: 100 });
      await turn();
      clock.freeze(frozen);
      await clock.advance(90);
      assertEquals(await state(session.closed), "pending", `the answer is not read yet, 90 ms after ${frozen} ms`);
      if (isAnswered) {
        await peer.send(FIN, 3);
        await turn();
        await peer.connection.closeWrite!();
        await session.closed;
      } else {
        await clock.advance(10);
        await assertRejects(() => session.closed, DOMException, "did not close within 100 ms");
      }
      await closing;
    }
  }
  assertEquals(clock.pending, 0);
});

Deno.test("rule 14: a process that is always late still ends close() after its timeout, however much the peer sends", async () => {
  using clock = new ManualClock();
  const { session, peer } = withPeer("client", 1);
  await session.openStream();
  const closing = session.close({ drain: true, timeout: 1000 });
  for (let passed = 0; passed < 5000; passed += 230) {
    clock.freeze(230);
    await clock.advance(0);
    await peer.send(NOP, 0).catch(() => {});
  }
  assertEquals(await state(closing), "fulfilled");
  await assertRejects(() => session.closed, DOMException, "did not close within 1000 ms");
});

Deno.test("rule 14: a stream with a rejected write gets no FIN, so that its peer's read rejects", async () => {
  const { client, server } = sessionPair({ version: 2 });
  const [cut, whole] = [await client.openStream(), await client.openStream()];
  const [farCut, farWhole] = [await server.acceptStream(), await server.acceptStream()];
  const writing = cut.write(pattern(300_000));
  const queued = cut.write(pattern(10));
  const failures = Promise.all([
    assertRejects(() => writing, SessionClosedError),
    assertRejects(() => queued, SessionClosedError),
  ]);
  await whole.write(bytes("all of it"));
  await turn();
  await client.close();
  const [first, second] = await failures;
  assertEquals([first.bytesWritten, second.bytesWritten], [262_144, 0]);
  assertEquals(text(await readAll(farWhole)), "all of it");
  let count = 0;
  const failure = await assertRejects(async () => {
    for (let read; (read = await farCut.read(new Uint8Array(65_536))) !== null;) count += read;
  }, SessionClosedError);
  assertEquals(count, 262_144);
  assertEquals(failure.cause, undefined, "the end of the session was clean, that of the stream was not");
  await server.closed;
});

Deno.test("rule 14: drain waits until no stream is open, and streams work meanwhile", async () => {
  const { client, server } = sessionPair();
  const [opened, accepted] = await Promise.all([client.openStream(), server.acceptStream()]);
  const closing = client.close({ drain: true });
  await assertRejects(() => client.openStream(), SessionClosedError);
  await opened.write(bytes("still"));
  assertEquals(await readText(accepted), "still");
  await accepted.closeWrite();
  assertEquals(await readText(opened), "(end)");
  assertEquals(await state(closing), "pending");
  await opened.closeWrite();
  await closing;
  await Promise.all([client.closed, server.closed]);
});

Deno.test("rule 14: past its timeout it aborts, and still never rejects", async () => {
  using clock = new ManualClock();
  for (const options of [{ timeout: 100 }, { timeout: 100, drain: true }]) {
    const { session, connection } = withPeer("client", 1, {}, 100);
    const stream = await session.openStream();
    const writing = assertRejects(() => stream.write(pattern(1 << 20)), SessionClosedError);
    await turn();
    const closing = session.close(options);
    await clock.advance(99);
    assertEquals(await state(closing), "pending");
    await clock.advance(1);
    await closing;
    const error = await assertRejects(() => session.closed, DOMException, "did not close within 100 ms");
    assertEquals(error.name, "TimeoutError");
    await writing;
    assert(connection.isClosed);
  }
  assertEquals(clock.pending, 0);
});

Deno.test("rule 14: close() over TCP loses nothing, though the peer has written what nobody reads", async () => {
  for (let round = 0; round < 20; round++) {
    using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const [near, far] = await Promise.all([Deno.connect({ port: listener.addr.port }), listener.accept()]);
    const client = Session.client(near, { version: 1 });
    const server = Session.server(far);
    const [opened, accepted] = await Promise.all([client.openStream(), server.acceptStream()]);
    const unread = accepted.write(pattern(300_000)).catch(() => {});
    await opened.write(pattern(1 << 20));
    const [received] = await Promise.all([readAll(accepted), client.close()]);
    assertEquals(received.length, 1 << 20);
    await unread;
    await Promise.all([client.closed, server.close()]);
  }
});

// 15

Deno.test("rule 15: a hang-up that resets the connection is clean while no stream is open, and only then", async () => {
  class ConnectionReset extends Error {
    override name = "ConnectionReset";
  }
  for (const isOpen of [false, true]) {
    const { session, peer, connection } = withPeer("server", 1);
    await peer.send(SYN, 3);
    const stream = await session.acceptStream();
    if (!isOpen) stream.close();
    await turn();
    const looping = (async () => {
      for await (const _ of session);
    })();
    connection.reset(new ConnectionReset());
    if (isOpen) {
      await assertRejects(() => looping, SessionClosedError);
      await assertRejects(() => session.closed, ConnectionReset);
    } else {
      await looping;
      await session.closed;
    }
  }
  const unheard = withPeer("client", 1);
  unheard.connection.reset(new ConnectionReset());
  const never = "from a peer never heard of it is no hang-up";
  await assertRejects(() => unheard.session.closed, ConnectionReset, undefined, never);

  const { session, peer, connection } = withPeer("server", 1, {}, 1000);
  await peer.bytes(frame(1, SYN, 3), frame(1, FIN, 3));
  const stream = await session.acceptStream();
  await stream.write(pattern(100_000));
  await Promise.all([stream.closeWrite(), stream.closed]);
  await turn();
  assertEquals(session.stats().streams, 0);
  connection.reset(new ConnectionReset());
  await assertRejects(() => session.closed, ConnectionReset, undefined, "what was written has not left");
});

Deno.test("rule 15: the transport's end between two frames is clean: closed fulfils and iteration ends", async () => {
  const { session, peer } = withPeer("server", 2);
  await peer.send(SYN, 3);
  const seen: number[] = [];
  const looping = (async () => {
    for await (const stream of session) seen.push(stream.id);
  })();
  await turn();
  await peer.connection.closeWrite!();
  await looping;
  await session.closed;
  assertEquals(seen, [3]);
  const error = await assertRejects(() => session.acceptStream(), SessionClosedError);
  assertEquals(error.cause, undefined);
});

Deno.test("rule 15: an end within a frame is unclean: closed and iteration reject with the reason", async () => {
  for (const [cut, missing] of [["0203", "6 more bytes of a header"], ["0202050003000000ff", "4 more bytes of PSH"]]) {
    const { session, peer } = withPeer("server", 2);
    await peer.send(SYN, 3);
    const looping = (async () => {
      for await (const _ of session);
    })();
    const failed = assertRejects(() => looping, SessionClosedError);
    await peer.bytes(cut!);
    await peer.connection.closeWrite!();
    const reason = await assertRejects(() => session.closed, ProtocolError, missing);
    assertStrictEquals((await failed).cause, reason);
  }
});

Deno.test("rule 15: what abort() was given is what closed rejects with", async () => {
  const { session } = withPeer("client", 2);
  const reason = { code: 7 };
  session.abort(reason);
  session.abort("too late");
  assertStrictEquals(await session.closed.catch((error) => error), reason);

  const other = withPeer("client", 2).session;
  other.abort();
  const error = await assertRejects(() => other.closed, DOMException);
  assertEquals(error.name, "AbortError");
  assertInstanceOf((await assertRejects(() => other.openStream(), SessionClosedError)).cause, DOMException);
});

Deno.test("rule 15: the end of a session with hundreds of streams lets others run before all of them know", async () => {
  // Stopped, so that no loop gives way by itself, however busy the machine is.
  using _ = new ManualClock();
  const { session, peer } = withPeer("server", 2, {}, 1 << 20);
  const streams: Stream[] = [];
  for (let id = 3; streams.length < 400; id += 2) {
    await peer.send(SYN, id);
    streams.push(await session.acceptStream());
  }
  let told = 0;
  const tell = (operation: Promise<unknown>) =>
    assertRejects(() => operation.finally(() => told++), SessionClosedError);
  const all = [
    ...streams.slice(0, 100).map((stream) => tell(stream.read(new Uint8Array(1)))),
    ...streams.slice(100, 200).map((stream) => tell(stream.closed)),
    // The first of these fill all there is to be filled, one waits for credit, and the others for room.
    ...streams.slice(200, 399).map((stream) => tell(stream.write(pattern(1 << 19)))),
  ];
  // Closed after the end and before it was told of it, as others may do meanwhile.
  const last = streams[399]!;
  all.push(tell(last.closed));
  const ways: (() => void)[] = [];
  clock.giveWay = () => new Promise<void>((resolve) => ways.push(resolve));
  await turn();
  assertEquals([told, ways.length], [0, 0]);
  session.abort();
  last.close();
  await assertRejects(() => streams[0]!.write(bytes("x")), SessionClosedError);
  await assertRejects(() => streams[0]!.closed, SessionClosedError);
  let most = 0;
  let times = 0;
  for (let before = 0;; before = told) {
    await turn();
    most = Math.max(most, told - before);
    if (ways.length === 0) break;
    assertEquals([await state(session.closed), ways.length], ["pending", 1]);
    times++;
    ways.pop()!();
  }
  assertEquals(told, 400);
  // Those that waited for room come first, 64 at a time, and then the others.
  assert(most < 2 * 64 && times >= 5, `${most} at a time, and others had ${times} turns`);
  await Promise.all(all);
  await assertRejects(() => session.closed, DOMException, "aborted");
});

Deno.test("rule 15: breaking out of for await leaves the session open", async () => {
  const { session, peer } = withPeer("server", 1);
  await peer.send(SYN, 3);
  await peer.send(SYN, 5);
  for await (const stream of session) {
    assertEquals(stream.id, 3);
    break;
  }
  assertEquals((await session.acceptStream()).id, 5);
  assertStringIncludes(await state(session.closed), "pending");
  session.abort();
});
