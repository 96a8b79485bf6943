/** Rules 1, 2, 3 and 5 of docs/design.md: ids of streams, and the order of table entries and frames. */

import { assertEquals, assertRejects, assertStrictEquals } from "@std/assert";
import { concat } from "@std/bytes";
import { FIN, NOP, PSH, SYN } from "../frame.ts";
import { ProtocolError, Session, SessionClosedError, StreamClosedError } from "../mod.ts";
import { setNextId } from "../session.ts";
import { INITIAL_WINDOW } from "../_window.ts";
import { bytes, frame, memoryPair, pattern, RawPeer, readAll, readText, text, turn, withPeer } from "./support.ts";

Deno.test("rule 1: a client opens streams 3, 5, 7 and a server 2, 4, 6", async () => {
  for (const [role, ids] of [["client", [3, 5, 7]], ["server", [2, 4, 6]]] as const) {
    const { session, peer } = withPeer(role, 2);
    const streams = [await session.openStream(), await session.openStream(), await session.openStream()];
    assertEquals(streams.map((stream) => stream.id), [...ids]);
    for (const id of ids) assertEquals((await peer.nextOf(SYN)).id, id);
    session.abort();
  }
});

Deno.test("rule 1: openStream() rejects after the last id, and the session continues", async () => {
  const { session, peer } = withPeer("client", 1);
  setNextId(session, 2 ** 32 - 3);
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
  Deno.test(`rule 1: a SYN with id ${id} ends the session of a ${role}, and the error asks about roles`, async () => {
    const { session, peer } = withPeer(role, 2);
    await peer.send(SYN, id);
    const error = await assertRejects(() => session.closed, ProtocolError, "same role");
    assertEquals(error.received, `${id}`);
    assertEquals(session.stats().accepted, 0);
  });
}

Deno.test("rule 1: frames for unknown streams are dropped, do not count as unread, and are not answered", async () => {
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

Deno.test("rule 1: an open aborted before its SYN was encoded sends nothing and uses up its id", async () => {
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
  assertEquals(session.stats().creditGranted, 3 * INITIAL_WINDOW);
  const ids = [];
  while (ids.length < 3) ids.push((await peer.nextOf(SYN)).id);
  assertEquals(ids, [3, 5, 9]);
  assertEquals((await opening[1]!).id, 9);
  session.abort();
  await Promise.all(writing);
});

Deno.test("rule 1: an open that waits for room rejects when the session ends", async () => {
  const { session } = withPeer("client", 1, {}, 100);
  const stream = await session.openStream();
  const writing = stream.write(pattern(1 << 20)).catch(() => {});
  const opening = assertRejects(() => session.openStream(), SessionClosedError);
  const reason = new Error("enough");
  session.abort(reason);
  assertStrictEquals((await opening).cause, reason);
  await writing;
});

Deno.test("rule 2: a stream is in the table before its SYN can leave", async () => {
  const [near, far] = memoryPair();
  const peer = new RawPeer(far, 2);
  let answer = Promise.resolve();
  const session = Session.client({
    read: (p) => near.read(p),
    close: () => near.close(),
    async write(p) {
      // The answer is sent before the write of the SYN returns.
      if (p.length >= 8) answer = peer.send(PSH, 3, bytes("at once"));
      await answer;
      return await near.write(p);
    },
  });
  const stream = await session.openStream();
  assertEquals(await readText(stream), "at once");
  session.abort();
});

Deno.test("rule 2: the SYN leaves after one pass of the event loop, together with data written directly after openStream()", async () => {
  for (const data of [false, true]) {
    const [near] = memoryPair();
    const writes: Uint8Array[] = [];
    const session = Session.client({
      read: (p) => near.read(p),
      close: () => near.close(),
      write: (p) => Promise.resolve(writes.push(p.slice())).then(() => p.length),
    }, { version: 1 });
    await turn();
    assertEquals(writes.splice(0).length, 1, "the client's first NOP");
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

Deno.test("rule 3: encoded data leaves before the FIN of close()", async () => {
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

Deno.test("rule 5: a stream leaves the table with the later of its two FINs", async () => {
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

Deno.test("rule 5: a stream leaves the table before its FIN reaches the wire, so the peer can reuse its id", async () => {
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

Deno.test("rule 5: after both FINs unread bytes count against the session until they are read or the stream is closed", async () => {
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
