/** Rule 8 of docs/design.md: silence of the peer, keepalive, and writes that make no progress. */

import { assert, assertEquals, assertRejects } from "@std/assert";
import { NOP, PSH, SYN, type Version } from "../frame.ts";
import { type ClientSessionOptions, Session, SessionClosedError } from "../mod.ts";
import { DEFAULTS } from "../options.ts";
import { TIMER_LAG_MS } from "../_clock.ts";
import { ManualClock, memoryPair, pattern, RawPeer, sessionPair, state, turn, withPeer } from "./support.ts";

Deno.test("rule 8: a peer silent for the timeout ends the session, and the error names the remedy", async () => {
  using clock = new ManualClock();
  for (const hasSent of [false, true]) {
    const { session, peer } = withPeer("client", 2, { timeout: 1000, keepAliveInterval: 500 });
    if (hasSent) await peer.send(NOP, 0);
    await clock.advance(990);
    assertEquals(await state(session.closed), "pending");
    await clock.advance(20);
    const error = await assertRejects(() => session.closed, DOMException, "silent for 1000 ms");
    assertEquals(error.name, "TimeoutError");
    assertEquals(error.message.includes("version 1"), !hasSent);
    assert(error.message.includes("if it sends no keepalive, raise `timeout` or set it to Infinity"), error.message);
  }
  assertEquals(clock.pending, 0);
});

Deno.test("rule 8: a resumption of the connection counts as a sign of life", async () => {
  using clock = new ManualClock();
  const [near] = memoryPair();
  let resumptions = 0;
  const connection = Object.defineProperty(near, "resumptions", { get: () => resumptions });
  const session = Session.server(connection, { timeout: 1000, keepAliveInterval: Infinity });
  for (; resumptions < 10; resumptions++) await clock.advance(600);
  assertEquals(await state(session.closed), "pending");
  await clock.advance(1400);
  await assertRejects(() => session.closed, DOMException, "silent for 1000 ms");
});

Deno.test("rule 8: neither silence nor a graceful close times out while the connection is suspended", async () => {
  using clock = new ManualClock();
  for (const isClosing of [false, true]) {
    const [near] = memoryPair();
    let isSuspended = false;
    const connection = Object.defineProperty(near, "isSuspended", { get: () => isSuspended });
    const session = Session.server(connection, { timeout: 1000, keepAliveInterval: Infinity });
    await clock.advance(500);
    isSuspended = true;
    if (isClosing) session.close();
    assertEquals(session.stats().suspended, true);
    await clock.advance(60_000);
    assertEquals(await state(session.closed), "pending");
    isSuspended = false;
    await clock.advance(1010);
    assertEquals(await state(session.closed), isClosing ? "fulfilled" : "rejected");
  }
});

Deno.test("rule 8: payload bytes count as a sign of life, bytes of an incomplete header do not", async () => {
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

Deno.test("rule 8: a NOP is sent after the interval without a write, before waiting data, and a NOP is never answered", async () => {
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
  assertEquals(session.stats().framesSent, 2, "a SYN counts as a write");
  await clock.advance(1);
  assertEquals(session.stats().framesSent, 3);
  assertEquals((await peer.next())!.command, SYN);
  assertEquals((await peer.next())!.command, NOP);
  stream.close();
  session.abort();
  assertEquals(clock.pending, 0);
});

Deno.test("rule 8: a NOP is sent after the interval without a write, at whatever time between two NOPs that write was", async () => {
  using clock = new ManualClock();
  const { session } = withPeer("client", 1, { timeout: Infinity, keepAliveInterval: 500 });
  await clock.advance(40);
  await session.openStream();
  await clock.advance(499);
  assertEquals(session.stats().framesSent, 2);
  await clock.advance(1);
  assertEquals(session.stats().framesSent, 3);
  session.abort();
});

Deno.test("rule 8: with keepAliveInterval Infinity the only NOP is the client's first", async () => {
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
    const rejected = assertRejects(() => session.openStream({ signal: aborted.signal }), Error, "enough");
    await clock.advance(1000);
    assertEquals(session.version, undefined);
    assertEquals(session.stats().framesSent, 0);
    aborted.abort(new Error("enough"));
    await rejected;
    const peer = new RawPeer(far, version);
    await peer.send(NOP, 0);
    assertEquals((await opening).id, 2);
    assertEquals(session.version, version);
    assertEquals((await peer.nextOf(SYN)).id, 2);
    session.abort();
  }
});

Deno.test("rule 8: openStream() of an auto server rejects when the session ends before the first frame", async () => {
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

Deno.test("rule 8: silence does not count while reading is paused", async () => {
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
  assertEquals(await state(session.closed), "pending", "the time of the pause does not count");
  await clock.advance(200);
  await assertRejects(() => session.closed, DOMException, "silent");
});

/** A session with reading paused, and its stream. */
async function makePaused(version: Version, options: ClientSessionOptions, capacity: number) {
  const made = withPeer("server", version, { maxReceiveBuffer: 1000, ...options }, capacity);
  await made.peer.send(SYN, 3);
  await made.peer.send(PSH, 3, pattern(1000));
  const stream = await made.session.acceptStream();
  await turn();
  assert(made.session.stats().readPaused);
  return { ...made, stream };
}

Deno.test("rule 8: a peer that sends but does not read keeps its session, and later receives all data", async () => {
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

Deno.test("rule 8: while reading is paused, a transport write without progress for the timeout ends the session", async () => {
  using clock = new ManualClock();
  for (const version of [1, 2] as const) {
    const { session, peer, stream } = await makePaused(version, { timeout: 1000, keepAliveInterval: 500 }, 1000);
    const writing = assertRejects(() => stream.write(pattern(1 << 20)), SessionClosedError);
    const p = new Uint8Array(100);
    for (let i = 0; i < 30; i++) {
      await clock.advance(100);
      if (i < 15) await peer.connection.read(p);
      if (i === 22) assertEquals(await state(session.closed), "pending", "the last progress is recent");
    }
    await assertRejects(() => session.closed, DOMException, "no progress for 1000 ms");
    await writing;
  }
});

Deno.test("rule 8: after a write without progress, a pause of reading starts the timeout anew", async () => {
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

Deno.test("rule 8: two sessions that do not read each other end after the timeout", async () => {
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

Deno.test("rule 8: a freeze extends the wait for a sign of life by at most the timeout, and a dead peer is found", async () => {
  using clock = new ManualClock();
  for (const [keepAliveInterval, frozen, left] of [[500, 40_000, 1000], [Infinity, 1040, 700], [1000, 1040, 700]]) {
    const { session, peer } = withPeer("server", 1, { timeout: 1000, keepAliveInterval: keepAliveInterval! });
    for (const isHeard of [true, true, false]) {
      await clock.advance(10);
      clock.freeze(frozen!);
      await clock.advance(left! - 10);
      assertEquals(await state(session.closed), "pending", `after a freeze of ${frozen} ms, before any read`);
      if (isHeard) await peer.send(NOP, 0);
    }
    await clock.advance(1010 - left!);
    await assertRejects(() => session.closed, DOMException, "silent for 1000 ms");
  }
  assertEquals(clock.pending, 0);
});

Deno.test("rule 8: a second freeze soon after the first does not end the session", async () => {
  using clock = new ManualClock();
  for (const isHeard of [true, false]) {
    for (const between of [50, 5000]) {
      const { session, peer } = withPeer("server", 1);
      await clock.advance(10);
      clock.freeze(DEFAULTS.timeout + 5000);
      await clock.advance(10);
      if (isHeard) await peer.send(NOP, 0);
      await clock.advance(between);
      clock.freeze(DEFAULTS.timeout + 5000);
      await clock.advance(5000);
      assertEquals(await state(session.closed), "pending", `${between} ms between freezes, heard: ${isHeard}`);
      await peer.send(NOP, 0);
      await clock.advance(DEFAULTS.timeout - 1000);
      assertEquals(await state(session.closed), "pending");
      await clock.advance(1000 + TIMER_LAG_MS);
      await assertRejects(() => session.closed, DOMException, "silent");
    }
  }
});

Deno.test("rule 8: a freeze extends the time for a pending write to make progress", async () => {
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

Deno.test("rule 8: a process that is always late still ends the session of a silent peer", async () => {
  using clock = new ManualClock();
  const { session } = withPeer("server", 2, { timeout: 1000, keepAliveInterval: 900 });
  const ended = assertRejects(() => session.closed, DOMException, "silent for 1000 ms");
  for (let passed = 0; passed < 3000; passed += 230) {
    clock.freeze(230);
    await clock.advance(0);
  }
  await ended;
});
