/** Rules 9 and 10 of docs/design.md: credit received from the peer, and credit sent to it. */

import { assert, assertEquals, assertGreater, assertLess, assertRejects, assertThrows } from "@std/assert";
import { concat } from "@std/bytes";
import { FIN, MAX_PAYLOAD_LENGTH, PSH, SYN, UPD } from "../frame.ts";
import { ProtocolError, type Stream, StreamClosedError } from "../mod.ts";
import { CREDIT_TOLERANCE } from "../_receive_half.ts";
import { INITIAL_WINDOW } from "../_window.ts";
import {
  bytes,
  frame,
  ManualClock,
  pattern,
  readAll,
  readExactly,
  readText,
  sessionPair,
  state,
  turn,
  withPeer,
} from "./support.ts";

Deno.test("rule 9: a UPD that consumes more than was sent fails the writes of its stream only", async () => {
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

Deno.test("rule 9: a UPD that consumes less than before is ignored, and a window above 2^31-1 is clamped", async () => {
  const { session, peer } = withPeer("client", 2, {}, 4 << 20);
  const stream = await session.openStream();
  await stream.write(pattern(INITIAL_WINDOW));
  assertEquals(stream.tryWrite(bytes("x")), 0);
  await peer.update(3, 200_000, INITIAL_WINDOW - 200_000 + 10);
  await turn();
  assertEquals(stream.tryWrite(pattern(100)), 10);
  await peer.update(3, 100, 4_000_000_000);
  await turn();
  assertEquals(stream.tryWrite(bytes("x")), 0, "the old UPD has no effect");
  await peer.update(3, 200_000, 2 ** 32 - 1);
  await turn();
  assertEquals(stream.tryWrite(pattern(50_000)), 50_000);
  session.abort();
});

Deno.test("rule 9: with a window of 0 a write waits for a UPD, close() or its signal", async () => {
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

Deno.test("rule 9: a stream whose peer exceeds its credit by more than 1 MiB is cut, and the session continues", async () => {
  const { session, peer } = withPeer("server", 2, {}, 1 << 22);
  await peer.send(SYN, 3);
  await peer.send(SYN, 5);
  const [hog, other] = [await session.acceptStream(), await session.acceptStream()];
  const most = INITIAL_WINDOW + 1024 * 1024;
  const whole = Math.floor(most / MAX_PAYLOAD_LENGTH);
  for (let n = 0; n < whole; n++) await peer.send(PSH, 3, pattern(MAX_PAYLOAD_LENGTH));
  await peer.send(PSH, 3, pattern(most % MAX_PAYLOAD_LENGTH));
  await turn();
  assertEquals(session.stats().bytesUnread, most, "1 MiB beyond the credit is accepted");
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

Deno.test("rule 9: frames in the same read as the frame that exceeds the credit are delivered", async () => {
  const { session, peer } = withPeer("server", 2, {}, 1 << 22);
  await peer.send(SYN, 3);
  await peer.send(SYN, 5);
  const [hog, other] = [await session.acceptStream(), await session.acceptStream()];
  const [most, last] = [INITIAL_WINDOW + CREDIT_TOLERANCE, 40_000];
  for (let left = most - last; left > 0; left -= 50_000) await peer.send(PSH, 3, pattern(Math.min(left, 50_000)));
  await turn();
  assertEquals(session.stats().bytesUnread, most - last);
  // When it is cut, the stream holds a view of the buffer that is being decoded.
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

Deno.test("rule 10: a window below 262144 is sent at once after the SYN and on accepting", async () => {
  const { session, peer } = withPeer("server", 2, { maxStreamBuffer: 1000 });
  await peer.send(SYN, 3);
  const granted = await peer.next();
  assertEquals([granted!.command, granted!.id, granted!.consumed, granted!.window], [UPD, 3, 0, 1000]);
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

Deno.test("rule 10: a UPD is sent on the first read, then when half of the window or 1 MiB has been read", async () => {
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

Deno.test("rule 10: no UPD is sent after the peer's FIN or after close()", async () => {
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

Deno.test("rule 10: over a slow link the window grows to the bandwidth-delay product, and its credit is released at the end", async () => {
  using clock = new ManualClock();
  // A peer with endless data and a round trip of 50 ms: it sends what its credit allows.
  const { session, peer } = withPeer("server", 2, { timeout: Infinity, keepAliveInterval: Infinity }, 64 << 20);
  await peer.send(SYN, 3);
  const stream = await session.acceptStream();
  let granted = INITIAL_WINDOW;
  const windows: number[] = [];
  const listening = (async () => {
    for (let frame = await peer.next(); frame !== null; frame = await peer.next()) {
      if (frame.command !== UPD) continue;
      granted = frame.consumed + frame.window;
      windows.push(frame.window);
    }
  })();
  const p = new Uint8Array(1 << 20);
  for (let trip = 0, sent = 0, limit = granted; trip < 20; trip++, limit = granted) {
    while (sent < limit) {
      const count = Math.min(limit - sent, MAX_PAYLOAD_LENGTH);
      await peer.send(PSH, 3, p.subarray(0, count));
      sent += count;
      await turn(1);
      while (stream.tryRead(p)! > 0);
    }
    await clock.advance(50);
  }
  assert(windows[0] === INITIAL_WINDOW, "the first window");
  assert(Math.max(...windows) > 2 << 20, `the largest window is ${Math.max(...windows)}`);
  assert(Math.max(...windows) <= 8 << 20);
  stream.close();
  assertEquals(session.stats().creditGranted, 0);
  session.abort();
  await listening;
});

Deno.test("rule 10: 31 unread streams do not stop the other streams", async () => {
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

Deno.test("rule 10: while half of the buffer is unread, a UPD revokes the credit of a stream that holds its share", async () => {
  const { session, peer } = withPeer("server", 2, { maxReceiveBuffer: 1 << 20 }, 1 << 21);
  for (const id of [3, 5, 7]) {
    await peer.send(SYN, id);
    for (let n = 0; n < 8; n++) await peer.send(PSH, id, pattern(25_000));
  }
  // The 13th piece of the third stream passes half of the buffer; a share is 2 KiB then.
  const revoked = await peer.nextOf(UPD);
  assertEquals([revoked.id, revoked.consumed, revoked.window], [7, 0, 125_000]);
  // Data on its way is accepted, and a new stream starts with a small window.
  await peer.send(SYN, 9);
  const small = await peer.nextOf(UPD);
  assertEquals([small.id, small.consumed, small.window], [9, 0, Math.floor((1_048_576 - 600_000) / 256)]);
  await peer.send(PSH, 9, pattern(100));
  const streams = [];
  for (let n = 0; n < 4; n++) streams.push(await session.acceptStream());
  // Reading restores credit.
  assertEquals(await streams[3]!.read(new Uint8Array(100)), 100);
  const credit = await peer.nextOf(UPD);
  assertEquals([credit.id, credit.consumed], [9, 100]);
  // Once there is room, reading restores the first window.
  for (const stream of streams.slice(0, 3)) await readExactly(stream, 200_000);
  await peer.send(PSH, 9, pattern(100));
  await streams[3]!.read(new Uint8Array(100));
  for (let update = credit; update.id !== 9 || update.window < INITIAL_WINDOW;) update = await peer.nextOf(UPD);
  session.abort();
});

Deno.test("rule 10: 300 streams that are never read leave room for streams that are read", async () => {
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
    assertEquals(server.stats().readPaused, false, `with ${n} unread streams`);
    if (n % 50 === 0) assertEquals(await ask(await server.openStream(), "echo"), "echo");
  }
  assertEquals(await ask(early, "echo"), "echo");
  assertGreater(most, 3 << 20);
  assertLess(most, 4 << 20);
  client.abort();
  server.abort();
  await Promise.allSettled(work);
});
