/** Rules 11, 12 and 13 of the design: limits of what is held for a peer, and fairness between streams. */

import { assert, assertEquals, assertGreater, assertRejects, assertStringIncludes } from "@std/assert";
import { concat } from "@std/bytes";
import { FIN, PSH, SYN, UPD } from "../frame.ts";
import { Session, type Stream } from "../mod.ts";
import { bytes, frame, ManualClock, pattern, readText, sessionPair, state, text, turn, withPeer } from "./support.ts";

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
