/** Rules 11, 12 and 13 of docs/design.md: limits of what is held for a peer, and fairness between streams. */

import { assert, assertEquals, assertGreater, assertRejects, assertStringIncludes } from "@std/assert";
import { concat } from "@std/bytes";
import { FIN, HEADER_LENGTH, MAX_PAYLOAD_LENGTH, PSH, SYN, UPD } from "../frame.ts";
import { Session, type Stream } from "../mod.ts";
import { MAX_WINDOW } from "../_window.ts";
import { MAX_WAITING_REFUSALS } from "../_session_core.ts";
import { MIN_VIEW_BYTES } from "../_chunks.ts";
import { MAX_READ_BYTES } from "../_adapt.ts";
import { DEFAULTS } from "../options.ts";
import { untilCollected } from "./channel_support.ts";
import {
  bytes,
  frame,
  ManualClock,
  pattern,
  readAll,
  readText,
  sessionPair,
  state,
  text,
  turn,
  withPeer,
  WRITE_BUFFER,
} from "./support.ts";

Deno.test("rule 11: at maxReceiveBuffer reading stops, what was read is decoded, and writing continues", async () => {
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

Deno.test("rule 11: memory held for unread bytes is at most twice their number and two buffers", async () => {
  // Heap for a view and the chunk before it, in bytes, without the buffer: an average over 100 000 of each.
  const beside = 532;
  // From frames that are copied to frames of half a buffer, and from the smallest buffer to the largest.
  const lengths = [3000, MIN_VIEW_BYTES - 1, MIN_VIEW_BYTES, 4352, 4608, 6000, 8000];
  for (const length of [...lengths, 31_000, DEFAULTS.maxFrameSize, 33_000, 60_000]) {
    const reads = Math.ceil(8 * 1024 * 1024 / length);
    // A small frame and a frame that may be kept as a view, always sent together.
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
    // Buffers that were not kept have been transferred, so their length is 0.
    const kept = [...given].filter(([buffer]) => buffer.byteLength > 0);
    const views = kept.length - 1;
    const held = kept.reduce((sum, [, size]) => sum + size, 0) + (unread - views * (length + 1)) + views * beside;
    assert(
      held <= 2 * unread + 2 * MAX_READ_BYTES,
      `${held} bytes held for ${unread} unread bytes in frames of ${length}`,
    );
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

Deno.test("rule 11: stalledStreamTimeout cuts the largest stream that is not read", async () => {
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
  assertEquals((await peer.nextOf(FIN)).id, 3, "stream 7 is the largest but was read");
  assertEquals(session.stats().readPaused, false);
  session.abort();
});

Deno.test("rule 11: a session with stalledStreamTimeout holds no stream that has ended and was read", async () => {
  const { session, peer } = withPeer("server", 1, { stalledStreamTimeout: 500 }, 1 << 20);
  await peer.send(SYN, 3);
  await peer.send(PSH, 3, pattern(100));
  await peer.send(FIN, 3);
  const held: WeakRef<object>[] = [];
  await (async () => {
    const stream = await session.acceptStream();
    held.push(new WeakRef(stream));
    await turn();
    await stream.closeWrite();
    assertEquals([session.stats().streams, session.stats().bytesUnread], [0, 100]);
    assertEquals(await readAll(stream), pattern(100));
  })();
  // The last stream with data is held until there is another one.
  await peer.send(SYN, 5);
  await peer.send(PSH, 5, pattern(1));
  await turn();
  await untilCollected(...held);
  session.abort();
});

Deno.test("rule 11: a freeze extends the time to read a stalled stream", async () => {
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
  assertEquals(session.stats().streams, 1, "the application had no time to read during the freeze");
  await clock.advance(160);
  await assertRejects(() => stream.closed, DOMException, "Stream 3 stalled");
  session.abort();
});

Deno.test("rule 11: a single stream that is read slowly is not cut, nor is any stream below the limit", async () => {
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

Deno.test("rule 11: a stalled stream with both FINs is cut as well", async () => {
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
  assertEquals(session.stats().bytesUnread, 100, "the larger stream was cut");
  assert(!session.stats().readPaused);
  assertEquals((await last.read(new Uint8Array(200)))!, 100);
  // Its FIN arrived, but the data before it was dropped.
  await assertRejects(() => hog!.read(new Uint8Array(1)), DOMException, "Stream 5 stalled");
  await assertRejects(() => readText(hog!), DOMException, "Stream 5 stalled");
  session.abort();
});

Deno.test("rule 11: in version 1 all large stalled streams are cut at once, since the rest would refill the buffer", async () => {
  using clock = new ManualClock();
  const options = { maxReceiveBuffer: 1000, stalledStreamTimeout: 500, timeout: Infinity };
  const { session, peer } = withPeer("server", 1, options, 1 << 20);
  // One read of the transport brings all data, so that more is held than the share of a stream.
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
  assertEquals(session.stats().readPaused, false, "more than half but less than seven eighths is free");
  await clock.advance(600);
  const ended: number[] = [];
  while (ended.length < 3) ended.push((await peer.nextOf(FIN)).id);
  assertEquals(ended, [5, 9, 13]);
  assertEquals([session.stats().streams, session.stats().bytesUnread], [4, 34_500]);
  session.abort();
});

Deno.test("rule 11: while the buffer refills at once, the stall timeout halves before each next cut", async () => {
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
    // Data that waits in the connection refills the buffer each time.
    for (const milliseconds of [1600, 800, 400, 200, 100, 100]) await isCutAfter(milliseconds);
    // After a quiet time the first timeout applies again.
    await clock.advance(10_000);
    await fill(203);
    await isCutAfter(1600);
    session.abort();
  }
});

Deno.test("rule 11: a stream read at less than 16 KiB per second is cut where other streams wait", async () => {
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
    assertEquals(session.stats().streams, isCut ? 1 : 2, `${rate} bytes per second`);
    session.abort();
  }
});

Deno.test("rule 12: a SYN beyond maxStreams or beyond acceptBacklog is refused with FIN", async () => {
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

Deno.test("rule 12: a refused stream ends without data for its opener", async () => {
  const { client, server } = sessionPair({ server: { acceptBacklog: 1 } });
  const streams = [await client.openStream(), await client.openStream()];
  assertEquals(await streams[1]!.read(new Uint8Array(1)), null);
  await Promise.all([client.close(), server.close()]);
});

Deno.test("rule 12: reading stops for a peer that opens streams without end and never reads", async () => {
  const capacity = 64 * 1024;
  const { session, peer } = withPeer("server", 1, { maxStreams: 1 }, capacity);
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
  // At most: the refusals in two buffers, those that wait, and those of the last read.
  assert(
    refused < (2 * WRITE_BUFFER + capacity) / HEADER_LENGTH + MAX_WAITING_REFUSALS,
    `${refused} refusals are held`,
  );
  assert(bytesUnsent < 1024 * 1024);
  assert(sent < 1_000_000);
  // Once the peer reads, the refusals leave and reading resumes.
  const before = session.stats().refused;
  while (session.stats().refused === before) await peer.next();
  session.abort();
  await flooded;
});

/** A session with full buffers: its peer does not read, and updates fell due until no control frame had room. */
async function withFullBuffers() {
  const options = { maxStreamBuffer: 1000, maxFrameSize: MAX_PAYLOAD_LENGTH };
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
  await peer.update(3, 0, MAX_WINDOW);
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

Deno.test("rule 12: of the updates without room only the newest is kept", async () => {
  const { session, peer, noisy, consumed, writing } = await withFullBuffers();
  const { framesSent, bytesUnsent } = session.stats();
  assert(bytesUnsent < 700_000, `${bytesUnsent} bytes are held`);
  for (let i = 0; i < 1000; i++) {
    const sent = peer.send(PSH, 3, pattern(1000));
    for (let count = 0; count < 1000;) count += (await noisy.read(new Uint8Array(1000)))!;
    await sent;
  }
  assertEquals(session.stats().framesSent, framesSent, "no frame was encoded while the buffers were full");
  const total = consumed + 1_000_000;
  const seen: number[] = [];
  while ((seen.at(-1) ?? 0) < total - 1000) seen.push((await peer.nextOf(UPD)).consumed);
  assert(seen.at(-2)! <= consumed, "of the updates of the last 1000 reads only the newest was sent");
  session.abort();
  await Promise.all(writing);
});

Deno.test("rule 12: while buffers are full the FIN of close() waits as state, once per stream, and leaves before waiting data", async () => {
  const { session, peer, others, writing } = await withFullBuffers();
  for (const stream of others) stream.close();
  for (const stream of others) stream.close();
  assertEquals(session.stats().streams, 50, "streams leave the table when their FIN is encoded");
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
    "encoded data leaves before the FINs, waiting data after them",
  );
  session.abort();
  await Promise.all(writing);
});

Deno.test("rule 12: open streams continue while refusals wait for room", async () => {
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

for (const version of [1, 2] as const) {
  Deno.test(`rule 13: a stream that writes megabytes alternates with other waiting streams, version ${version}`, async () => {
    const { session, peer } = withPeer("client", version, { maxFrameSize: 1000 }, 4096);
    const [bulk, small] = [await session.openStream(), await session.openStream()];
    await peer.nextOf(SYN);
    await peer.nextOf(SYN);
    if (version === 2) { for (const id of [3, 5]) await peer.update(id, 0, MAX_WINDOW); }
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
    // Two buffers were full before the small stream started; from then on the streams alternate.
    assert(bulkFrames < 2 * 240 + 20, `${bulkFrames} frames of the large stream left before the small one`);
    await Promise.all(others);
    session.abort();
    await writing;
  });
}

Deno.test("rule 13: 100 equal writers progress at the same rate", async () => {
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
