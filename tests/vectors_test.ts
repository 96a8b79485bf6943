/**
 * Transcripts of real peers: each decodes to the frames it lists and encodes to the same bytes, and a session receives
 * what was sent to Go's smux.
 *
 * @module
 */
import { assert, assertEquals, assertInstanceOf, assertRejects, assertStrictEquals } from "@std/assert";
import { concat } from "@std/bytes";
import { type Command, encodeHeader, FIN, ProtocolError, PSH, SYN, UPD, type Version } from "../frame.ts";
import { Session, SessionClosedError } from "../mod.ts";
import { MAX_WINDOW, ReceiveWindow, SendWindow, WindowPool } from "../_window.ts";
import { chunkings, decode } from "./decode_helpers.ts";
import { collector, frame, memoryPair, pattern, type RawFrame, RawPeer, updateFrame } from "./support.ts";
import json from "./vectors/smux-vectors.json" with { type: "json" };

interface VectorFrame {
  order: number;
  offset: number;
  ver: number;
  cmd: number;
  len: number;
  sid: number;
  dataHex?: string;
  consumed?: number;
  window?: number;
  hex: string;
}

/** What Go's session did: accepted ids, the next accept, two reads of stream 3, and a write of one byte to it. */
interface Observed {
  acceptedIds: number[];
  acceptThen: string;
  read3: { n?: number; err?: string | null; data?: string; blocked?: boolean }[];
  write3: { n?: number; err?: string | null; blocked?: boolean }[];
}

interface Vector {
  name: string;
  version: Version;
  direction: string;
  kind: string;
  hex: string;
  /** Bytes after the frames, also in `hex`: they exceed the length in the last header. */
  trailingHex?: string;
  frames: VectorFrame[];
  expect?: Record<string, string>;
  observed?: Record<string, Observed>;
}

const VECTORS = json as Vector[];
const GO = "go-1.5.57";
const hex = (text: string) => Uint8Array.fromHex(text);
const isMalformed = ({ expect }: Vector) => expect?.[GO]?.startsWith("protocol error") ?? false;

/** The vectors of one kind; asserts their number. */
function vectors(count: number, wanted: (vector: Vector) => boolean): Vector[] {
  const found = VECTORS.filter(wanted);
  assertEquals(found.length, count);
  return found;
}

/** A frame as `decode` records it. */
function line({ cmd, sid, len, dataHex = "", consumed, window, offset }: VectorFrame): string {
  switch (cmd) {
    case PSH:
      return `PSH ${sid} length ${len} at ${offset}: ${dataHex}`;
    case UPD:
      return `UPD ${sid} consumed ${consumed} window ${window} at ${offset}`;
    default:
      return `${["SYN", "FIN", "", "NOP"][cmd]} ${sid} at ${offset}`;
  }
}

/** Encodes a frame from its fields, valid or not. */
function encode(version: number, cmd: number, length: number, sid: number, payload: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(8 + payload.length);
  encodeHeader(bytes, 0, version as Version, cmd as Command, length, sid);
  bytes.set(payload, 8);
  return bytes;
}

Deno.test("vectors: there are 65 with 155 frames, and their two records of protocol errors in Go agree", () => {
  assertEquals([VECTORS.length, VECTORS.flatMap(({ frames }) => frames).length], [65, 155]);
  for (const vector of VECTORS) {
    assertEquals(isMalformed(vector), vector.observed?.[GO]?.acceptThen === "invalid protocol", vector.name);
  }
});

Deno.test("vectors: each valid one decodes to the frames it lists, for every way of cutting it", () => {
  for (const vector of vectors(51, (vector) => !isMalformed(vector))) {
    const expected = vector.frames.map(line);
    for (const chunks of chunkings(hex(vector.hex))) {
      const { lines, error, decoder } = decode(chunks, vector.version);
      assertEquals([error, lines, decoder.isBetweenFrames], [undefined, expected, true], vector.name);
      assertEquals(decoder.frames, vector.frames.length);
    }
  }
});

Deno.test("vectors: each valid one fixes the version of a decoder without one", () => {
  for (const vector of vectors(49, (vector) => !isMalformed(vector) && vector.frames.length > 0)) {
    const { lines } = decode([hex(vector.hex)]);
    assertEquals(lines, [`version ${vector.version}`, ...vector.frames.map(line)], vector.name);
  }
});

Deno.test("vectors: each valid one encodes to the same bytes after decoding", () => {
  for (const vector of vectors(51, (vector) => !isMalformed(vector))) {
    const frames: RawFrame[] = [];
    const { decoder } = decode([], vector.version);
    decoder.push(hex(vector.hex), collector(frames));
    const again = frames.map(({ command, id, data, consumed, window }) =>
      command === UPD ? updateFrame(id, consumed, window) : frame(vector.version, command, id, data)
    );
    assertEquals(again.map((bytes) => bytes.toHex()), vector.frames.map(({ hex }) => hex), vector.name);
    assertEquals(concat(again).toHex(), vector.hex, vector.name);
  }
});

Deno.test("vectors: each listed frame, malformed or not, encodes from its fields to its bytes", () => {
  for (const vector of VECTORS) {
    for (const { ver, cmd, len, sid, dataHex = "", consumed, window, hex: whole } of vector.frames) {
      const payload = consumed === undefined ? hex(dataHex) : updateFrame(sid, consumed, window!).subarray(8);
      assertEquals(encode(ver, cmd, len, sid, payload).toHex(), whole, vector.name);
    }
    const { trailingHex = "" } = vector;
    assertEquals(vector.frames.map(({ hex }) => hex).join("") + trailingHex, vector.hex, vector.name);
  }
});

// The first invalid field of each malformed vector; bytes after its first frame have no effect.
const BROKEN: Record<string, [expected: string, received: string]> = {
  "bad-version-0": ["version 1", "0"],
  "v2-frame-on-v1-session": ["version 1", "2"],
  "v1-frame-on-v2-session": ["version 2", "1"],
  "unknown-cmd-5-v1": ["a command from 0 to 3 in version 1", "5"],
  "unknown-cmd-5-v2": ["a command from 0 to 4", "5"],
  "unknown-cmd-255": ["a command from 0 to 3 in version 1", "255"],
  "upd-on-v1": ["a command from 0 to 3 in version 1", "4"],
  "upd-len-4-then-4-bytes": ["length 8 on UPD", "length 4"],
  "upd-len-0-then-8-bytes": ["length 8 on UPD", "length 0"],
  "upd-len-12": ["length 8 on UPD", "length 12"],
  "nop-len-4": ["length 0 on NOP", "length 4"],
  "syn-len-4": ["length 0 on SYN", "length 4"],
  "syn-len-8-payload-is-a-NOP": ["length 0 on SYN", "length 8"],
  "fin-len-8-payload-is-a-NOP": ["length 0 on FIN", "length 8"],
};

Deno.test("vectors: each one that is a protocol error in Go is rejected at its first byte, for every way of cutting it", () => {
  const malformed = vectors(14, isMalformed);
  assertEquals(malformed.map(({ name }) => name), Object.keys(BROKEN));
  for (const vector of malformed) {
    for (const chunks of chunkings(hex(vector.hex))) {
      const { lines, error, decoder } = decode(chunks, vector.version);
      assertInstanceOf(error, ProtocolError, vector.name);
      assertEquals([error.offset, error.expected, error.received], [0, ...BROKEN[vector.name]!], vector.name);
      assertEquals([lines, decoder.frames], [[], 0], vector.name);
    }
  }
});

/** A server's session with stream 3, opened by the peer. */
async function server(version: Version, options: { maxStreamBuffer?: number } = {}) {
  const [near, far] = memoryPair();
  const session = Session.server(near, { version, ...options });
  const peer = new RawPeer(far, version);
  await peer.send(SYN, 3);
  return { session, peer, stream: await session.acceptStream() };
}

const NO_FRAME = { command: FIN, id: 0, data: new Uint8Array(0), consumed: 0, window: 0 };

/** The outcome: a protocol error, or the state of stream 3 in a session that continues. */
type Outcome = "protocol error" | { read: "waits" | "ends"; write: "resolves" | "fails" };

/** The outcome in Go. */
function outcomeOf({ acceptThen, read3, write3 }: Observed): Outcome | "other" {
  if (acceptThen === "invalid protocol") return "protocol error";
  const [read, write] = [read3[0]!, write3[0]!];
  if (!read.blocked || write.blocked) return "other";
  return { read: "waits", write: write.err === "peer consumed more than sent" ? "fails" : "resolves" };
}

// Outcomes that differ here from Go's.
const OURS: Record<string, Outcome> = {
  "syn-id-0": "protocol error",
  "syn-wrong-parity": "protocol error",
  // Go returns data after it has reported the end.
  "psh-after-fin": { read: "ends", write: "resolves" },
  // Go treats a window of 2^31 or more as negative.
  "upd-window-2^32-1": { read: "waits", write: "resolves" },
};

for (const vector of VECTORS.filter(({ observed }) => observed !== undefined)) {
  const { name, version, observed } = vector;
  const outcome = OURS[name] ?? outcomeOf(observed![GO]!);
  if (outcome === "protocol error") {
    Deno.test(`vectors: ${name} ends a session with a protocol error`, async () => {
      const { session, peer, stream } = await server(version);
      const reading = stream.read(new Uint8Array(20));
      await peer.bytes(hex(vector.hex), frame(version, SYN, 11));

      const error = await assertRejects(() => session.closed, ProtocolError);
      assertEquals(error.offset, 8);
      if (name in BROKEN) assertEquals([error.expected, error.received], BROKEN[name]);
      else assert(error.message.includes("do both ends have the same role?"), error.message);
      for (
        const operation of [
          () => reading,
          () => stream.write(Uint8Array.of(1)),
          () => session.acceptStream(),
          () => session.openStream(),
        ]
      ) {
        assertStrictEquals((await assertRejects(operation, SessionClosedError)).cause, error);
      }
      assertEquals(session.stats().accepted, 1);
      assertEquals(await peer.next(), null);
    });
    continue;
  }
  Deno.test(`vectors: ${name} leaves a session open, and stream 3 in the expected state`, async () => {
    assert(outcome !== "other", "an outcome of Go without a counterpart");
    const { session, peer, stream } = await server(version);
    const p = new Uint8Array(20);
    const reading = stream.read(p);
    await peer.bytes(hex(vector.hex), frame(version, SYN, 11));

    // Once the SYN after the vector is accepted, the whole vector has been decoded.
    assertEquals((await session.acceptStream()).id, 11);
    assertEquals(session.incoming.tryReceive(), { state: "empty" });
    assertEquals(session.stats().bytesUnread, 0);
    const writing = stream.write(Uint8Array.of(0x61));
    if (outcome.write === "fails") {
      assertEquals((await assertRejects(() => writing, ProtocolError)).offset, 8);
      await session.openStream();
      assertEquals(await peer.next(), { ...NO_FRAME, command: SYN, id: 2 });
    } else {
      assertEquals(await writing, 1);
      assertEquals(await peer.next(), { ...NO_FRAME, command: PSH, id: 3, data: Uint8Array.of(0x61) });
    }
    if (outcome.read === "ends") {
      assertEquals([await reading, await stream.read(p)], [null, null]);
    } else {
      await peer.send(PSH, 3, pattern(7));
      assertEquals([await reading, p.subarray(0, 7)], [7, pattern(7)]);
    }
    session.abort();
  });
}

const find = (name: string, kind: string) => {
  const found = VECTORS.find((vector) => vector.name === name && vector.kind === kind);
  assert(found !== undefined, `no vector ${name}`);
  return found;
};

Deno.test("vectors: v2-counter-wrap-sender fails the writes of its stream in a client that sent nothing", async () => {
  const [near, far] = memoryPair();
  const client = Session.client(near, { version: 2 });
  const peer = new RawPeer(far, 2);
  const stream = await client.openStream();
  assertEquals(stream.id, 3);
  const reading = stream.read(new Uint8Array(1));
  await peer.bytes(hex(find("v2-counter-wrap-sender", "injected").hex), frame(2, PSH, 3, pattern(1)));
  assertEquals(await reading, 1);

  // The first UPD has a lower count and is ignored; the second reports 4 bytes that were never sent.
  const error = await assertRejects(() => stream.write(Uint8Array.of(1)), ProtocolError);
  assertEquals(error.offset, 16);
  assertEquals(await (await client.openStream()).write(Uint8Array.of(1)), 1);
  client.abort();
});

Deno.test("vectors: v2-counter-wrap-sender moves the credit of counters in the state of Go's, with the same frames", () => {
  const window = new SendWindow();
  for (let sent = 0; sent < 0xfffffff8;) {
    const count = Math.min(window.credit, 0xfffffff8 - sent);
    window.spend(count);
    sent += count;
    assertEquals(window.update(sent, sent < 0xfffffff8 ? MAX_WINDOW : 16), "moved");
  }
  const updates = [...find("v2-counter-wrap-sender", "injected").frames];
  const sent: number[] = [];
  for (let left = 24; left > 0;) {
    const count = Math.min(left, window.credit);
    if (count > 0) {
      window.spend(count);
      sent.push(count);
      left -= count;
    } else {
      const { consumed, window: size } = updates.shift()!;
      assertEquals(window.update(consumed!, size!), "moved");
    }
  }
  assertEquals(sent, find("v2-counter-wrap-sender", "transcript").frames.map(({ len }) => len));
  assertEquals(updates, []);
});

Deno.test("vectors: v2-counter-wrap-receiver has the updates of counters in the state of Go's", () => {
  const window = new ReceiveWindow(new WindowPool(32, 0));
  for (let read = 0; read < 0xffffffe8;) {
    const count = Math.min(2 ** 20 * 8, 0xffffffe8 - read);
    window.arrived(count);
    if (window.read(count, 0)) window.advertise();
    read += count;
  }
  window.arrived(64);
  const updates: string[] = [];
  for (let unread = 56; unread >= 8; unread -= 8) {
    if (window.read(8, unread)) updates.push(updateFrame(3, window.consumed, window.advertise()).toHex());
  }
  assertEquals(updates, find("v2-counter-wrap-receiver", "transcript").frames.map(({ hex }) => hex));
});

Deno.test("vectors: v2-counter-wrap-receiver is read completely by a server, with updates at the same distances", async () => {
  const { session, peer, stream } = await server(2, { maxStreamBuffer: 32 });
  const vector = find("v2-counter-wrap-receiver", "injected");
  await peer.bytes(hex(vector.hex), frame(2, SYN, 11));
  await session.acceptStream();
  const parts: Uint8Array[] = [];
  for (let count = 0; count < 7; count++) {
    const p = new Uint8Array(8);
    assertEquals(await stream.read(p), 8);
    parts.push(p);
  }
  assertEquals(concat(parts).toHex(), vector.frames[0]!.dataHex!.slice(0, 112));
  // Two for the first windows of both streams, one for the first read, then one for each 16 bytes.
  const updates = [];
  for (let count = 0; count < 6; count++) {
    const { id, consumed, window } = await peer.nextOf(UPD);
    updates.push([id, consumed, window]);
  }
  assertEquals(updates, [[3, 0, 32], [11, 0, 32], [3, 8, 32], [3, 24, 32], [3, 40, 32], [3, 56, 32]]);
  session.abort();
});

Deno.test("vectors: upd-sequence-maxstreambuffer64-v2 is answered with the same updates by a server that reads as Go did", async () => {
  const { session, peer, stream } = await server(2, { maxStreamBuffer: 64 });
  const directions = VECTORS.filter(({ name }) => name === "upd-sequence-maxstreambuffer64-v2");
  const sent = directions.find(({ direction }) => direction === "client->server")!.frames;
  const answers = directions.find(({ direction }) => direction === "server->client")!.frames;
  const p = new Uint8Array(100);
  const total = { expected: 0, read: 0 };
  for (const { cmd, len, hex } of sent.slice(1)) {
    if (cmd !== PSH) continue;
    await peer.bytes(hex);
    total.expected += len;
    // Go read 4 and 12 bytes of the first frame, then 10 at a time, never across the end of a frame.
    const size = total.read === 0 ? 4 : 10;
    while (total.read < total.expected) {
      const most = total.read === 4 ? 100 : size;
      total.read += (await stream.read(p.subarray(0, Math.min(most, total.expected - total.read))))!;
    }
  }
  assertEquals(total.read, 216);
  await stream.closeWrite();
  const received: RawFrame[] = [];
  while (received.at(-1)?.command !== FIN) received.push((await peer.next())!);
  const bytes = received.map(({ command, id, consumed, window }) =>
    (command === UPD ? updateFrame(id, consumed, window) : frame(2, command, id)).toHex()
  );
  // An update with the first window comes before those of Go, since the window is below the default of all peers.
  assertEquals(bytes, [updateFrame(3, 0, 64).toHex(), ...answers.map(({ hex }) => hex)]);
  session.abort();
});
