/**
 * The write loop: what leaves in one write of the transport, in which order frames find room, and how it ends.
 *
 * @module
 */
import { assert, assertEquals, assertGreater, assertLess, assertRejects, assertStrictEquals } from "@std/assert";
import { concat } from "@std/bytes";
import { type ControlSource, FrameWriter, HIGH_WATER_MARK, PendingFrame, type WriterHost } from "../_writer.ts";
import { ChannelClosedError } from "../channel.ts";
import { clock } from "../_clock.ts";
import { type Command, EMPTY_BYTES, FIN, NOP, PSH, SYN } from "../frame.ts";

import { adapt } from "../_adapt.ts";
import { type Connection, type Link, ReadBuffer } from "../transport.ts";
import { decode } from "./decode_helpers.ts";
import { pattern, turn } from "./support.ts";

const NOWHERE = { transport: "tcp", hostname: "", port: 0 } as const;

/** A transport whose writes settle when the test says so. */
class FakeLink implements Link {
  readonly failed = undefined;
  /** A copy of what each write was given. */
  readonly writes: Uint8Array[] = [];
  readonly #pending: { settle: PromiseWithResolvers<number>; given: Uint8Array }[] = [];
  readonly #given: Uint8Array[] = [];
  #begun = Promise.withResolvers<void>();
  /** Whether writes settle by themselves. */
  isOpen = false;
  readonly localAddr = NOWHERE;
  readonly remoteAddr = NOWHERE;

  write(bytes: Uint8Array): Promise<number> {
    this.writes.push(bytes.slice());
    this.#given.push(bytes);
    this.#begun.resolve();
    this.#begun = Promise.withResolvers();
    if (this.isOpen) return Promise.resolve(bytes.length);
    const settle = Promise.withResolvers<number>();
    this.#pending.push({ settle, given: bytes });
    return settle.promise;
  }

  /** Bytes of memory behind all that was given to be written. */
  get held(): number {
    return new Set(this.#given.map(({ buffer }) => buffer)).values().reduce(
      (sum, { byteLength }) => sum + byteLength,
      0,
    );
  }

  /** Waits until so many writes have begun. */
  async begun(count: number): Promise<void> {
    while (this.writes.length < count) await this.#begun.promise;
  }

  /** The transport takes the first byte of the write under way, and must be given the others again. */
  takeOne(): void {
    this.#pending.shift()!.settle.resolve(1);
  }

  /** The transport has taken all of the write under way, whose bytes must still be what they were. */
  take(): void {
    const { settle, given } = this.#pending.shift()!;
    assertEquals(this.#pending, [], "two writes were under way at once");
    assertEquals(given, this.writes.at(-1), "bytes were changed while they left");
    settle.resolve(given.length);
  }

  /** Lets the write under way and all that follow pass. */
  open(): void {
    this.isOpen = true;
    if (this.#pending.length > 0) this.take();
  }

  /** The write under way fails. */
  fail(error: Error): void {
    this.#pending.shift()!.settle.reject(error);
  }

  /** What was written, frame by frame, without positions and data: `PSH 3 length 5`. */
  frames(version: 1 | 2 = 2): string[] {
    return frames(concat(this.writes), version);
  }

  readonly buffer = new ReadBuffer(EMPTY_BYTES);
  read = () => Promise.resolve(null);
  closeWrite = () => Promise.resolve();
  close() {}
  free() {}
  ref() {}
  unref() {}
}

function frames(bytes: Uint8Array, version: 1 | 2 = 2): string[] {
  const { lines, error, decoder } = decode([bytes], version);
  assertEquals([error, decoder.isBetweenFrames], [undefined, true]);
  return lines.map((line) => line.replace(/ at .*/, ""));
}

/** A writer over a fake transport, and what its session was told. */
function start(host: Partial<WriterHost> = {}) {
  const link = new FakeLink();
  const told: string[] = [];
  const writer: FrameWriter = new FrameWriter(link, 2, {
    refusalsEncoded: () => void told.push("refused"),
    writerIdle: () => void told.push("idle"),
    writerFailed: (error) => {
      told.push(`failed: ${(error as Error).message}`);
      writer.end();
    },
    ...host,
  });
  return { link, writer, told };
}

function data(writer: FrameWriter, id: number, length: number): boolean {
  return writer.tryFrame(PSH, id, new Uint8Array(length), 0, length);
}

function syn(writer: FrameWriter, id: number): boolean {
  return writer.tryFrame(SYN, id, EMPTY_BYTES, 0, 0);
}

function waiting(id: number, length: number, command: Command = PSH): PendingFrame {
  return new PendingFrame(command, id, new Uint8Array(length), 0, length);
}

/** A stream whose control frames are due. */
function source(id: number, due: { update?: boolean; fin?: boolean }, encoded: string[] = []): ControlSource {
  return {
    id,
    isQueued: false,
    isUpdateDue: due.update ?? false,
    isFinDue: due.fin ?? false,
    consumed: 5,
    advertise: () => 65536,
    finEncoded: () => void encoded.push(`FIN ${id}`),
  };
}

/** Fills the buffer until data finds no room; says how many bytes it took. */
function fill(writer: FrameWriter, id: number, length: number): number {
  let bytes = 0;
  while (data(writer, id, length)) bytes += 8 + length;
  return bytes;
}

/** Time that passes only when the test says so. */
function stopTime() {
  const { now } = clock;
  const time = { now: now(), [Symbol.dispose]: () => void (clock.now = now) };
  clock.now = () => time.now;
  return time;
}

/** Lets so many microtasks pass, and nothing else: no timer fires, nothing arrives. */
async function microtasks(count: number): Promise<void> {
  while (count-- > 0) await null;
}

Deno.test("a frame on an idle session leaves after one pass of the event loop", async () => {
  const { link, writer } = start();
  assert(writer.tryFrame(PSH, 3, pattern(20), 5, 15));
  await turn(1);
  assertEquals(link.writes.map((bytes) => bytes.toHex()), ["02020a0003000000" + pattern(20).subarray(5, 15).toHex()]);
  link.open();
  await writer.flushed();
  assertEquals(link.writes.length, 1);
});

Deno.test("frames put in the same turn leave in one write, in the order in which they were put", async () => {
  const { link, writer } = start();
  link.open();
  assert(writer.tryFrame(PSH, 3, Uint8Array.of(1, 2), 0, 2));
  assert(writer.tryUpdate(3, 5, 65536));
  assert(writer.tryControl(FIN, 3));
  assert(writer.tryFrame(PSH, 5, Uint8Array.of(3), 0, 1));
  await writer.flushed();
  assertEquals(link.writes.map((bytes) => frames(bytes)), [[
    "PSH 3 length 2",
    "UPD 3 consumed 5 window 65536",
    "FIN 3",
    "PSH 5 length 1",
  ]]);
});

Deno.test("frames put while a write is under way leave together in the next", async () => {
  const { link, writer } = start();
  assert(data(writer, 3, 1));
  await link.begun(1);
  for (let id = 5; id < 25; id += 2) {
    assert(data(writer, id, 100));
    await microtasks(10);
  }
  assertEquals(link.writes.length, 1);
  link.take();
  await link.begun(2);
  assertEquals(frames(link.writes[1]!), Array.from({ length: 10 }, (_, at) => `PSH ${5 + 2 * at} length 100`));
  link.open();
  await writer.flushed();
  assertEquals(link.writes.length, 2);
});

Deno.test("rule 2: a SYN and the data written right after it share one transport write", async () => {
  // `await openStream()` costs three; what stands between a program and its session may spend more.
  for (const spent of [0, 3, 10, 100]) {
    const { link, writer } = start();
    assert(syn(writer, 3));
    await microtasks(spent);
    assertEquals(link.writes.length, 0);
    assert(data(writer, 3, 5));
    await link.begun(1);
    assertEquals(link.frames(), ["SYN 3", "PSH 3 length 5"]);
    link.open();
    await writer.flushed();
  }
});

Deno.test("frames of one pass of the event loop share one write, however many microtasks are spent between them", async () => {
  using _ = stopTime();
  for (const spent of [0, 1, 4, 16, 100]) {
    const { link, writer } = start();
    link.open();
    for (let n = 0; n < 20; n++) {
      assert(data(writer, 3, 1000));
      await microtasks(spent);
    }
    await turn(1);
    assertEquals(link.writes.length, 1, `with ${spent} microtasks`);
    await writer.flushed();
  }
});

Deno.test("64 KiB that are coalesced leave before the pass of the event loop is over", async () => {
  const { link, writer } = start();
  for (let n = 0; n < 7; n++) assert(data(writer, 3, 9000));
  await microtasks(20);
  assertEquals(link.writes.length, 0);
  assert(data(writer, 3, 9000));
  await microtasks(2);
  assertEquals(link.writes.map((bytes) => bytes.length), [8 * 9008]);
  link.open();
  await writer.flushed();
});

Deno.test("frames that are coalesced for 0.1 ms leave before the pass of the event loop is over", async () => {
  using time = stopTime();
  const { link, writer } = start();
  link.open();
  for (const elapsed of [0.09, 0.02]) {
    for (let n = 0; n < 16; n++) syn(writer, 3);
    await microtasks(20);
    assertEquals(link.writes.length, 0);
    time.now += elapsed;
  }
  for (let n = 0; n < 16; n++) syn(writer, 3);
  await microtasks(3);
  assertEquals(link.frames().length, 48);
  await writer.flushed();
});

Deno.test("data after awaitAnswer() leaves at once, with the control frames before it; the next data is coalesced", async () => {
  const { link, writer } = start();
  link.open();
  writer.hold();
  assert(writer.tryUpdate(3, 5, 65536));
  writer.awaitAnswer();
  await microtasks(20);
  assertEquals(link.writes.length, 0);
  assert(data(writer, 3, 5));
  await microtasks(2);
  assertEquals(link.frames(), ["UPD 3 consumed 5 window 65536", "PSH 3 length 5"]);
  await microtasks(20);
  assert(data(writer, 3, 6));
  await microtasks(20);
  assertEquals(link.writes.length, 1);
  await turn(1);
  assertEquals(link.writes.length, 2);
  await writer.flushed();
});

Deno.test("hold() coalesces until release(), over passes of the event loop, up to 64 KiB", async () => {
  const { link, writer } = start();
  link.open();
  writer.hold();
  assert(data(writer, 3, 5));
  await turn();
  assertEquals(link.writes.length, 0);
  writer.release();
  assertEquals(link.writes.length, 1);
  await writer.flushed();
  writer.hold();
  fill(writer, 3, 32 * 1024);
  await link.begun(2);
  writer.release();
  await writer.flushed();
});

Deno.test("rule 2: a SYN that no data follows leaves after one pass of the event loop all the same", async () => {
  const { link, writer } = start();
  assert(syn(writer, 3));
  await turn(1);
  assertEquals(link.frames(), ["SYN 3"]);
  link.open();
  await writer.flushed();
});

Deno.test("rule 2: a SYN put while a write is under way leaves with the next one", async () => {
  const { link, writer } = start();
  assert(data(writer, 3, 1));
  await link.begun(1);
  assert(syn(writer, 5));
  assert(data(writer, 5, 2));
  link.open();
  await writer.flushed();
  assertEquals(link.writes.map((bytes) => frames(bytes)), [["PSH 3 length 1"], ["SYN 5", "PSH 5 length 2"]]);
});

Deno.test("every frame carries the version, which may be set before the first one", async () => {
  const { link, writer } = start();
  writer.version = 1;
  link.open();
  assert(syn(writer, 3) && data(writer, 3, 1) && writer.tryControl(NOP, 0));
  await writer.flushed();
  assertEquals(link.frames(1), ["SYN 3", "PSH 3 length 1", "NOP 0"]);
});

Deno.test("data finds room up to the high-water mark; the last frame may go beyond", async () => {
  const { link, writer } = start();
  assert(data(writer, 3, 1));
  await link.begun(1);
  assertEquals(fill(writer, 3, 32 * 1024 - 8), HIGH_WATER_MARK);
  assertEquals([data(writer, 5, 0), syn(writer, 5)], [false, false]);
  link.take();
  await link.begun(2);
  assertEquals(link.writes[1]!.length, HIGH_WATER_MARK);

  // One byte short of it, the longest frame is still let in.
  for (const length of [65535, 65535, 65535, 32738]) assert(data(writer, 3, length));
  assertEquals(fill(writer, 3, 65535), 65543);
  link.open();
  await writer.flushed();
  assertEquals(link.writes[2]!.length, HIGH_WATER_MARK - 1 + 65543);
});

Deno.test("a frame that finds no room waits, and its sender goes on when a buffer has taken it", async () => {
  const { link, writer } = start();
  fill(writer, 3, 32 * 1024);
  await link.begun(1);
  fill(writer, 3, 32 * 1024);
  let isTaken = false;
  const sending = writer.openSender().send(waiting(5, 100)).then(() => isTaken = true);
  await microtasks(50);
  assertEquals(isTaken, false);
  link.take();
  await sending;
  // It was copied into the third buffer as the second began to leave: it need not have left.
  assertEquals([link.writes.length, writer.unsent], [2, link.writes[1]!.length + 108]);
  link.open();
  await writer.flushed();
  assertEquals(frames(link.writes[2]!), ["PSH 5 length 100"]);
});

Deno.test("frames that wait are taken in the order in which they came, before any that comes later", async () => {
  const { link, writer } = start();
  fill(writer, 3, 32 * 1024);
  await link.begun(1);
  fill(writer, 3, 32 * 1024);
  const handles = [5, 7, 9].map((id) => ({ id, sender: writer.openSender() }));
  const sent = handles.flatMap(({ id, sender }) => [
    sender.send(waiting(id, 10)),
    sender.send(waiting(id, 11)),
  ]);
  link.take();
  await Promise.all(sent);
  assert(data(writer, 11, 1));
  link.open();
  await writer.flushed();
  assertEquals(frames(link.writes[2]!), [
    "PSH 5 length 10",
    "PSH 5 length 11",
    "PSH 7 length 10",
    "PSH 7 length 11",
    "PSH 9 length 10",
    "PSH 9 length 11",
    "PSH 11 length 1",
  ]);
});

/** Writes frames as a stream does: into the buffer while there is room, else it waits for its turn; each time it gives way. */
async function writeFrames(writer: FrameWriter, id: number, count: number): Promise<void> {
  const length = 32 * 1024;
  const sender = writer.openSender();
  while (count-- > 0) {
    if (data(writer, id, length)) await null;
    else await writer.send(waiting(id, length), sender);
  }
  sender.close();
}

/** The ids of the frames written, in their order. */
const idsOf = (lines: string[]) => lines.map((line) => Number(line.split(" ")[1]));

Deno.test("rule 13: streams that write megabytes take turns, frame by frame", async () => {
  const { link, writer } = start();
  link.open();
  const ids = [3, 5, 7, 9, 11];
  await Promise.all(ids.map((id) => writeFrames(writer, id, 40)));
  await writer.flushed();
  assertEquals(idsOf(link.frames()), Array.from({ length: 40 }, () => ids).flat());
});

Deno.test("rule 13: streams that join one that has filled every buffer get their turns from then on", async () => {
  const { link, writer } = start();
  const first = writeFrames(writer, 3, 60);
  await link.begun(1);
  await microtasks(50);
  const ahead = writer.frames;
  const others = [5, 7, 9].map((id) => writeFrames(writer, id, 40));
  for (let writes = 1; writes < 20; writes++) {
    await link.begun(writes);
    await microtasks(50);
    link.take();
  }
  link.open();
  await Promise.all([first, ...others]);
  await writer.flushed();
  // One frame of the first stream was waiting before the others came.
  const order = idsOf(link.frames()).slice(ahead + 1);
  for (let at = 0; at < 4 * 30; at += 4) assertEquals(order.slice(at, at + 4).sort(), [3, 5, 7, 9], `at ${at}`);
});

Deno.test("rule 13: one small frame waits for what was put before it, and for nothing else", async () => {
  const { link, writer } = start();
  const bulk = writeFrames(writer, 3, 100);
  await link.begun(1);
  await microtasks(50);
  const ahead = writer.frames;
  const small = writer.openSender().send(waiting(5, 1));
  link.open();
  await Promise.all([bulk, small]);
  await writer.flushed();
  // Ahead of it are the frames in the two buffers, and the one that waited.
  assertEquals(idsOf(link.frames()).indexOf(5), ahead + 1);
});

Deno.test("rule 12: when data finds no room, 16 KiB of control frames do, but not any number", async () => {
  // Full to the byte, and overfull by as much as can be.
  for (const lengths of [Array<number>(7).fill(32 * 1024 - 8), [65535, 65535, 65535, 32738, 65535]]) {
    const { link, writer } = start();
    assert(data(writer, 3, 1));
    await link.begun(1);
    for (const length of lengths) assert(data(writer, 3, length));
    assertEquals([data(writer, 5, 1), syn(writer, 5)], [false, false]);
    assert(writer.tryControl(FIN, 7));
    let updates = 0;
    while (writer.tryUpdate(3, updates, 1)) updates++;
    assert(updates >= 1023 && updates < 10_000, `${updates} updates found room`);
    assertEquals([writer.tryControl(NOP, 0), data(writer, 5, 1)], [false, false]);
    link.take();
    await link.begun(2);
    assert(writer.tryControl(NOP, 0));
    link.open();
    await writer.flushed();
    assertEquals(link.frames().filter((line) => line.startsWith("UPD 3")).length, updates);
    assertEquals(link.frames().at(-1), "NOP 0");
  }
});

Deno.test("rule 12: control frames that found no room go first at the next change of buffers, before frames that wait", async () => {
  const { link, writer, told } = start();
  const encoded: string[] = [];
  assert(data(writer, 3, 1));
  await link.begun(1);
  fill(writer, 3, 32 * 1024);
  while (writer.tryControl(NOP, 0));
  const sources = [
    source(7, { fin: true }, encoded),
    source(9, { update: true }, encoded),
    source(11, { update: true, fin: true }, encoded),
  ];
  for (const source of sources) writer.queueControl(source);
  // The same again: it is queued once.
  writer.queueControl(sources[0]!);
  writer.refuse(13);
  writer.refuse(15);
  const sending = writer.openSender().send(waiting(5, 10));
  assertEquals([encoded, writer.waitingRefusals, sources.map(({ isQueued }) => isQueued)], [[], 2, [true, true, true]]);
  link.take();
  await sending;
  assertEquals([encoded, writer.waitingRefusals, told], [["FIN 7", "FIN 11"], 0, ["refused"]]);
  assertEquals(
    sources.map(({ isQueued, isUpdateDue, isFinDue }) => isQueued || isUpdateDue || isFinDue),
    [false, false, false],
  );
  link.open();
  await writer.flushed();
  assertEquals(frames(link.writes[2]!), [
    "FIN 7",
    "UPD 9 consumed 5 window 65536",
    "UPD 11 consumed 5 window 65536",
    "FIN 11",
    "FIN 13",
    "FIN 15",
    "PSH 5 length 10",
  ]);
});

Deno.test("queueControl() encodes what is due at once when there is room, and nothing after the end", async () => {
  const { link, writer } = start();
  link.open();
  const encoded: string[] = [];
  writer.queueControl(source(7, { update: true, fin: true }, encoded));
  assertEquals(encoded, ["FIN 7"]);
  await writer.flushed();
  assertEquals(link.frames(), ["UPD 7 consumed 5 window 65536", "FIN 7"]);
  writer.end();
  writer.queueControl(source(9, { fin: true }, encoded));
  assertEquals([encoded, writer.unsent], [["FIN 7"], 0]);
});

Deno.test("more frames wait than one buffer holds: they leave in several writes, all of them, in order", async () => {
  const { link, writer } = start();
  assert(data(writer, 3, 1));
  await link.begun(1);
  fill(writer, 3, 32 * 1024);
  const sent = Array.from({ length: 30 }, (_, at) => writer.openSender().send(waiting(5 + 2 * at, 32 * 1024)));
  link.open();
  await Promise.all(sent);
  await writer.flushed();
  for (const write of link.writes) assertLess(write.length, 256 * 1024);
  assertEquals(
    link.frames().slice(-30),
    Array.from({ length: 30 }, (_, at) => `PSH ${5 + 2 * at} length 32768`),
  );
});

Deno.test("flushed waits for what was put and what waited, and for nothing when there is nothing", async () => {
  const { link, writer } = start();
  await writer.flushed();
  assertEquals(link.writes, []);
  assert(data(writer, 3, 1));
  let isFlushed = false;
  const flushed = writer.flushed().then(() => isFlushed = true);
  // It begins the write itself, without waiting for the turn that a SYN would leave.
  assertEquals(link.writes.length, 1);
  assert(data(writer, 3, 2));
  link.take();
  await link.begun(2);
  await microtasks(20);
  assertEquals(isFlushed, false);
  link.take();
  await flushed;
  assertEquals([writer.unsent, writer.bytes], [0, 19]);
});

Deno.test("flushed waits for what the session puts when it is told that all has been written", async () => {
  let owed = 3;
  const { link, writer } = start({ writerIdle: () => void (owed-- > 0 && writer.tryControl(NOP, owed)) });
  link.open();
  assert(data(writer, 3, 1));
  await writer.flushed();
  assertEquals(link.frames(), ["PSH 3 length 1", "NOP 2", "NOP 1", "NOP 0"]);
});

Deno.test("the session is told when all has been written, and only then", async () => {
  const { link, writer, told } = start();
  assert(data(writer, 3, 1));
  await link.begun(1);
  assert(data(writer, 3, 2));
  link.take();
  await link.begun(2);
  await microtasks(20);
  assertEquals(told, []);
  link.take();
  await writer.flushed();
  assertEquals(told, ["idle"]);
});

Deno.test("frames, bytes and unsent say what was put and what left", async () => {
  const { link, writer } = start();
  const figures = () => [writer.frames, writer.bytes, writer.unsent];
  assertEquals(figures(), [0, 0, 0]);
  writer.tryFrame(PSH, 3, pattern(10), 2, 7);
  writer.tryUpdate(3, 1, 1);
  assertEquals(figures(), [2, 0, 29]);
  await link.begun(1);
  writer.tryControl(FIN, 3);
  assertEquals(figures(), [3, 0, 37]);
  link.take();
  await link.begun(2);
  assertEquals(figures(), [3, 29, 8]);
  link.take();
  await writer.flushed();
  assertEquals(figures(), [3, 37, 0]);
});

Deno.test("the clock shows when a write began and since when it has made no progress", async () => {
  using time = stopTime();
  time.now = 1000;
  const { link, writer } = start();
  assertEquals([writer.begunAt, writer.stalledSince], [1000, undefined]);
  time.now = 1010;
  writer.tryControl(NOP, 0);
  assertEquals(writer.stalledSince, undefined);
  await link.begun(1);
  time.now = 1020;
  assertEquals([writer.begunAt, writer.stalledSince], [1010, 1010]);
  link.takeOne();
  await link.begun(2);
  time.now = 1030;
  assertEquals([writer.begunAt, writer.stalledSince], [1010, 1020]);
  writer.tryControl(NOP, 0);
  link.take();
  await link.begun(3);
  assertEquals([writer.begunAt, writer.stalledSince], [1030, 1030]);
  link.take();
  await writer.flushed();
  assertEquals([writer.begunAt, writer.stalledSince], [1030, undefined]);
});

Deno.test("a transport that takes a few bytes at a time gets all of them, in order, and each counts as progress", async () => {
  const parts: Uint8Array[] = [];
  let sizes = [1, 7, 8, 0, 3, 100];
  const stalls = new Set<number | undefined>();
  const { now } = clock;
  let time = 0;
  clock.now = () => ++time;
  try {
    const connection: Connection = {
      read: () => Promise.resolve(null),
      write: (p) => {
        stalls.add(writer.stalledSince);
        const count = Math.min(p.length, sizes[0]!);
        sizes = [...sizes.slice(1), sizes[0]!];
        parts.push(p.slice(0, count));
        return Promise.resolve(count);
      },
      close: () => {},
    };
    const writer = new FrameWriter(adapt(connection), 2, {
      refusalsEncoded() {},
      writerIdle() {},
      writerFailed: (error) => assert(!error),
    });
    for (let id = 3; id < 23; id += 2) writer.tryFrame(PSH, id, pattern(50, id), 0, 50);
    await writer.flushed();
    const { lines } = decode([concat(parts)], 2);
    assertEquals(
      lines,
      Array.from(
        { length: 10 },
        (_, at) => `PSH ${3 + 2 * at} length 50 at ${58 * at}: ${pattern(50, 3 + 2 * at).toHex()}`,
      ),
    );
    assertEquals([writer.bytes, parts.length > 10], [580, true]);
    // Each write but those after one that took nothing finds that there was progress since the one before.
    assertEquals(stalls.size, parts.filter(({ length }) => length > 0).length);
  } finally {
    clock.now = now;
  }
});

Deno.test("a transport that fails is told once, and a send rejects when its handle is closed", async () => {
  const { link, writer, told } = start();
  fill(writer, 3, 32 * 1024);
  await link.begun(1);
  fill(writer, 3, 32 * 1024);
  const sender = writer.openSender();
  const sending = assertRejects(() => sender.send(waiting(5, 10)), ChannelClosedError);
  const flushed = writer.flushed();
  link.fail(new Error("broken"));
  await flushed;
  sender.close();
  await sending;
  await microtasks(20);
  assertEquals([told, link.writes.length, writer.bytes], [["failed: broken"], 1, 0]);
  assertEquals([data(writer, 3, 1), writer.tryControl(FIN, 3), writer.tryUpdate(3, 0, 0)], [false, false, false]);
  assertEquals([writer.unsent, writer.stalledSince], [0, undefined]);
});

Deno.test("a transport whose write throws at once has failed just the same", async () => {
  const { link, writer, told } = start();
  link.write = () => {
    throw new Error("broken at once");
  };
  assert(data(writer, 3, 1));
  await writer.flushed();
  assertEquals(told, ["failed: broken at once"]);
});

Deno.test("when something else fails, so may the write under way, and nobody need hear of that", async () => {
  const failure = new Error("the host failed");
  const { link, writer, told } = start({
    refusalsEncoded: () => {
      throw failure;
    },
  });
  while (writer.tryControl(NOP, 0));
  writer.refuse(5);
  await link.begun(1);
  await microtasks(20);
  assertEquals(told, ["failed: the host failed"]);
  // Unhandled it would fail this test.
  link.fail(new Error("broken"));
  await turn();
});

Deno.test("a transport that fails after the end is told to nobody", async () => {
  const { link, writer, told } = start();
  assert(data(writer, 3, 1));
  await link.begun(1);
  writer.end();
  link.fail(new Error("broken"));
  await microtasks(20);
  assertEquals(told, []);
});

Deno.test("the end takes nothing more and writes nothing more, and a send rejects when its handle is closed", async () => {
  const { link, writer, told } = start();
  fill(writer, 3, 32 * 1024);
  await link.begun(1);
  fill(writer, 3, 32 * 1024);
  const sender = writer.openSender();
  const other = writer.openSender();
  const rejected: number[] = [];
  const sending = [waiting(5, 1), waiting(7, 0, SYN), waiting(9, 2)].map((frame, at) =>
    assertRejects(() => (at === 1 ? other : sender).send(frame), ChannelClosedError).then(() => rejected.push(frame.id))
  );
  writer.end();
  await microtasks(20);
  assertEquals(rejected, []);
  sender.close();
  await microtasks(20);
  assertEquals(rejected, [5, 9]);
  other.close();
  await Promise.all(sending);
  assertEquals([data(writer, 3, 1), syn(writer, 5)], [false, false]);
  assertEquals([writer.tryControl(FIN, 3), writer.tryUpdate(3, 0, 0)], [false, false]);
  link.take();
  await writer.flushed();
  await microtasks(20);
  assertEquals([link.writes.length, told], [1, []]);
});

Deno.test("after the end dismiss() makes send() reject for as many frames as it says, and leaves them unmarked", async () => {
  const { link, writer } = start();
  fill(writer, 3, 32 * 1024);
  await link.begun(1);
  fill(writer, 3, 32 * 1024);
  const frames = [waiting(5, 1), waiting(7, 0, SYN), waiting(9, 2)];
  const rejected: number[] = [];
  const sending = frames.map((frame) =>
    assertRejects(() => writer.send(frame, writer.openSender()), ChannelClosedError, "the session has ended")
      .then(() => rejected.push(frame.id))
  );
  writer.end();
  assertEquals(writer.dismiss(2), true);
  await microtasks(20);
  assertEquals(rejected, [5, 7]);
  assertEquals(writer.dismiss(2), false);
  await Promise.all(sending);
  assertEquals([rejected, frames.map(({ isEncoded }) => isEncoded)], [[5, 7, 9], [false, false, false]]);
  link.take();
});

Deno.test("what was put in the turn in which the end comes does not leave", async () => {
  const { link, writer } = start();
  assert(data(writer, 3, 1));
  writer.end();
  await microtasks(20);
  assertEquals([link.writes.length, writer.unsent], [0, 0]);
});

Deno.test("a sender that gives up takes its frame back, and those behind it move up", async () => {
  const { link, writer } = start();
  assert(data(writer, 3, 1));
  await link.begun(1);
  fill(writer, 3, 32 * 1024);
  const controller = new AbortController();
  const reason = new Error("enough");
  const givingUp = writer.send(waiting(5, 10), writer.openSender(), controller.signal);
  const staying = writer.openSender().send(waiting(7, 10));
  controller.abort(reason);
  assertStrictEquals(await assertRejects(() => givingUp), reason);
  link.open();
  await staying;
  await writer.flushed();
  assertEquals(frames(link.writes[2]!), ["PSH 7 length 10"]);
});

Deno.test("an idle session gives back the buffers of its busy time, and can be busy again", async () => {
  const { link, writer } = start();
  assertEquals(writer.isLarge, false);
  for (let times = 0; times < 2; times++) {
    link.isOpen = false;
    fill(writer, 3, 32 * 1024);
    await link.begun(1 + 4 * times);
    fill(writer, 3, 32 * 1024);
    assertEquals(writer.isLarge, true);
    const { unsent } = writer;
    // Nothing is given back that is in use.
    writer.trim();
    assertEquals([writer.unsent, writer.isLarge], [unsent, true]);
    link.open();
    await writer.flushed();
    assertEquals(writer.isLarge, true);
    writer.trim();
    assertEquals(writer.isLarge, false);
    assert(data(writer, 5, 10));
    await writer.flushed();
    assertEquals([writer.isLarge, link.frames().at(-1)], [false, "PSH 5 length 10"]);
    assert(data(writer, 5, 20_000));
    await writer.flushed();
    assertEquals([writer.isLarge, link.frames().at(-1)], [true, "PSH 5 length 20000"]);
    writer.trim();
  }
});

Deno.test("a large buffer that lies behind a small one is given back too", async () => {
  const { link, writer } = start();
  assert(data(writer, 3, 1));
  await link.begun(1);
  fill(writer, 3, 32 * 1024);
  link.open();
  await writer.flushed();
  assertEquals(writer.isLarge, true);
  writer.trim();
  assertEquals([writer.isLarge, link.held], [false, 0]);
});

Deno.test("nothing that was put is lost when buffers are given back before it began to leave", async () => {
  const { link, writer } = start();
  link.open();
  fill(writer, 3, 32 * 1024);
  const { unsent } = writer;
  writer.trim();
  await writer.flushed();
  assertEquals([link.writes.map(({ length }) => length), writer.bytes], [[unsent], unsent]);
});

Deno.test("the end gives the buffers back as well", async () => {
  const { link, writer } = start();
  fill(writer, 3, 32 * 1024);
  await link.begun(1);
  fill(writer, 3, 32 * 1024);
  writer.end();
  assertEquals(writer.isLarge, false);
  // But for the one from which a write is still under way, whatever becomes of it.
  assertGreater(link.held, 0);
  link.take();
  await microtasks(20);
  assertEquals([writer.unsent, link.held], [0, 0]);
});

Deno.test("a long write that settles after the end lets nobody have a turn: there is nothing to go on with", async () => {
  const { link, writer } = start();
  const { now, yieldToEventLoop } = clock;
  let given = 0;
  clock.yieldToEventLoop = () => {
    given++;
    return yieldToEventLoop();
  };
  try {
    fill(writer, 3, 32 * 1024);
    await link.begun(1);
    writer.end();
    clock.now = () => now() + 1000;
    link.take();
    await microtasks(20);
    assertEquals(given, 0);
  } finally {
    Object.assign(clock, { now, yieldToEventLoop });
  }
});

Deno.test("a write that fails after the end gives its buffer back", async () => {
  const { link, writer } = start();
  fill(writer, 3, 32 * 1024);
  await link.begun(1);
  writer.end();
  link.fail(new Error("broken"));
  await microtasks(20);
  assertEquals(link.held, 0);
});
