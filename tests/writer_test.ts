/**
 * The write loop: what one write of the transport contains, the order in which frames are encoded, and the end.
 *
 * @module
 */
import { assert, assertEquals, assertGreater, assertLess, assertRejects, assertStrictEquals } from "@std/assert";
import { concat } from "@std/bytes";
import { type ControlSource, FrameWriter, HIGH_WATER_MARK, PendingFrame, type WriterHost } from "../_writer.ts";
import { ChannelClosedError } from "../channel.ts";
import { clock } from "../_clock.ts";
import { type Command, EMPTY_BYTES, FIN, HEADER_LENGTH, MAX_PAYLOAD_LENGTH, NOP, PSH, SYN } from "../frame.ts";

import { adapt } from "../_adapt.ts";
import { type Connection, type Link, ReadBuffer } from "../transport.ts";
import { MIN_BUFFER_BYTES, WriteBuffer } from "../_write_buffer.ts";
import { decode } from "./decode_helpers.ts";
import { pattern, turn } from "./support.ts";

const NO_ADDRESS = { transport: "tcp", hostname: "", port: 0 } as const;

/** A transport whose writes settle when the test calls a method. */
class FakeLink implements Link {
  readonly pushed = undefined;
  readonly headroom: number = 0;
  readonly isSuspended = false;
  readonly resumptions = 0;
  /** A copy of the bytes of each write. */
  readonly writes: Uint8Array[] = [];
  readonly #pending: { settle: PromiseWithResolvers<number>; p: Uint8Array }[] = [];
  readonly #arrays: Uint8Array[] = [];
  #begun = Promise.withResolvers<void>();
  /** True if writes settle at once. */
  isOpen = false;
  readonly localAddr = NO_ADDRESS;
  readonly remoteAddr = NO_ADDRESS;

  write(bytes: Uint8Array): Promise<number> {
    this.writes.push(bytes.slice());
    this.#arrays.push(bytes);
    this.#begun.resolve();
    this.#begun = Promise.withResolvers();
    if (this.isOpen) return Promise.resolve(bytes.length);
    const settle = Promise.withResolvers<number>();
    this.#pending.push({ settle, p: bytes });
    return settle.promise;
  }

  /** Bytes of memory behind all arrays passed to `write()`. */
  get held(): number {
    return new Set(this.#arrays.map(({ buffer }) => buffer)).values().reduce(
      (sum, { byteLength }) => sum + byteLength,
      0,
    );
  }

  /** Waits until this many writes have begun. */
  async begun(count: number): Promise<void> {
    while (this.writes.length < count) await this.#begun.promise;
  }

  /** Resolves the pending write with 1: the writer must write the rest again. */
  takeOne(): void {
    this.#pending.shift()!.settle.resolve(1);
  }

  /** Resolves the pending write with its full length, after a check that its bytes did not change. */
  take(): void {
    const { settle, p } = this.#pending.shift()!;
    assertEquals(this.#pending, [], "two writes were pending at once");
    assertEquals(p, this.writes.at(-1), "bytes changed during the write");
    settle.resolve(p.length);
  }

  /** Resolves the pending write and each later one. */
  open(): void {
    this.isOpen = true;
    if (this.#pending.length > 0) this.take();
  }

  /** Rejects the pending write. */
  fail(error: Error): void {
    this.#pending.shift()!.settle.reject(error);
  }

  /** The written frames, without offsets and data: `PSH 3 length 5`. */
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

/** A transport that keeps the memory of large writes. */
class FakeKeepingLink extends FakeLink {
  override readonly headroom = 5;
  /** The memory of each write, and a copy of it. */
  readonly kept: { memory: Uint8Array; copy: Uint8Array; length: number }[] = [];
  readonly settled = Promise.withResolvers<void>();

  keep(memory: Uint8Array, end: number) {
    const length = end - this.headroom;
    this.kept.push({ memory, copy: memory.slice(), length });
    return { writing: this.settled.promise.then(() => length), replacement: new Uint8Array(memory.length) };
  }
}

function frames(bytes: Uint8Array, version: 1 | 2 = 2): string[] {
  const { lines, error, decoder } = decode([bytes], version);
  assertEquals([error, decoder.isBetweenFrames], [undefined, true]);
  return lines.map((line) => line.replace(/ at .*/, ""));
}

/** A writer over a fake transport, with the calls that its host received. */
function start<L extends FakeLink = FakeLink>(host: Partial<WriterHost> = {}, link: L = new FakeLink() as L) {
  const events: string[] = [];
  const writer: FrameWriter = new FrameWriter(link, 2, {
    refusalsEncoded: () => void events.push("refused"),
    writerIdle: () => void events.push("idle"),
    writerFailed: (error) => {
      events.push(`failed: ${(error as Error).message}`);
      writer.end();
    },
    ...host,
  });
  return { link, writer, events };
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
function source(
  id: number,
  due: { update?: boolean; fin?: boolean; reset?: boolean; isFinEncoded?: boolean },
  encoded: string[] = [],
): ControlSource {
  return {
    id,
    isQueued: false,
    isUpdateDue: due.update ?? false,
    isFinDue: due.fin ?? false,
    isResetDue: due.reset ?? false,
    isFinEncoded: due.isFinEncoded ?? false,
    consumed: 5,
    advertise: () => 65536,
    finEncoded: () => void encoded.push(`FIN ${id}`),
    resetEncoded: () => void encoded.push(`reset ${id}`),
  };
}

/** Adds data frames until one finds no room; returns the number of bytes added, headers included. */
function fill(writer: FrameWriter, id: number, length: number): number {
  let bytes = 0;
  while (data(writer, id, length)) bytes += HEADER_LENGTH + length;
  return bytes;
}

// Lengths of the data of frames that fill a buffer exactly to the mark, and of frames that leave one byte below it.
const toTheMark = Array<number>(7).fill(HIGH_WATER_MARK / 7 - HEADER_LENGTH);
const longestFrame = HEADER_LENGTH + MAX_PAYLOAD_LENGTH;
const oneBelowTheMark = [
  ...Array<number>(3).fill(MAX_PAYLOAD_LENGTH),
  HIGH_WATER_MARK - 1 - 3 * longestFrame - HEADER_LENGTH,
];

/** Replaces the clock with one that the test advances. */
function stopTime() {
  const { now } = clock;
  const time = { now: now(), [Symbol.dispose]: () => void (clock.now = now) };
  clock.now = () => time.now;
  return time;
}

/** Lets this many microtasks run; timers and I/O do not. */
async function microtasks(count: number): Promise<void> {
  while (count-- > 0) await null;
}

Deno.test("FrameWriter: a frame on an idle session is written after one pass of the event loop", async () => {
  const { link, writer } = start();
  assert(writer.tryFrame(PSH, 3, pattern(20), 5, 15));
  await turn(1);
  assertEquals(link.writes.map((bytes) => bytes.toHex()), ["02020a0003000000" + pattern(20).subarray(5, 15).toHex()]);
  link.open();
  await writer.flushed();
  assertEquals(link.writes.length, 1);
});

Deno.test("FrameWriter: frames encoded in the same turn leave in one write, in order", async () => {
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

Deno.test("FrameWriter: frames encoded during a write leave together in the next one", async () => {
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
  // `await openStream()` takes three microtasks; code between the caller and the session may add more.
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

Deno.test("FrameWriter: frames of one pass of the event loop share one write, whatever number of microtasks runs between them", async () => {
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

Deno.test("FrameWriter: 64 KiB of coalesced frames leave before the pass of the event loop ends", async () => {
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

Deno.test("FrameWriter: frames coalesced for 0.06 ms leave before the pass of the event loop ends", async () => {
  using time = stopTime();
  const { link, writer } = start();
  link.open();
  for (const elapsed of [0.05, 0.02]) {
    for (let n = 0; n < 8; n++) syn(writer, 3);
    await microtasks(20);
    assertEquals(link.writes.length, 0);
    time.now += elapsed;
  }
  for (let n = 0; n < 8; n++) syn(writer, 3);
  await microtasks(3);
  assertEquals(link.frames().length, 24);
  await writer.flushed();
});

Deno.test("FrameWriter.flushOverdue() writes frames coalesced for 0.06 ms at once, and no others", async () => {
  using time = stopTime();
  const { link, writer } = start();
  link.open();
  const write = (count: number) => {
    for (let n = 0; n < count; n++) syn(writer, 3);
    writer.flushOverdue();
    return link.frames().length;
  };
  assertEquals([write(1), write(7)], [0, 0]);
  time.now += 0.07;
  assertEquals([write(7), write(1)], [0, 16], "the clock is read once in 8 frames");
  assertEquals(write(1), 16);
  await writer.flushed();
  assertEquals(link.frames().length, 17);
});

Deno.test("FrameWriter: a UPD does not begin the 0.06 ms, because the answer of its reader may come later", async () => {
  using time = stopTime();
  const { link, writer } = start();
  link.open();
  writer.hold();
  const write = (count: number) => {
    for (let n = 0; n < count; n++) {
      assert(writer.tryUpdate(3, n, 65536));
      assert(data(writer, 3, 1));
    }
    writer.flushOverdue();
    return link.writes.length;
  };
  for (let n = 0; n < 8; n++) assert(writer.tryUpdate(3, n, 65536));
  writer.flushOverdue();
  time.now += 0.07;
  assertEquals(write(8), 0);
  time.now += 0.07;
  assertEquals(write(8), 1);
  await writer.flushed();
});

Deno.test("FrameWriter: data after awaitAnswer() leaves at once with the control frames before it; the next data is coalesced", async () => {
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

Deno.test("FrameWriter.hold() coalesces until release(), over passes of the event loop, up to 64 KiB", async () => {
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

Deno.test("rule 2: a SYN without data after it leaves after one pass of the event loop", async () => {
  const { link, writer } = start();
  assert(syn(writer, 3));
  await turn(1);
  assertEquals(link.frames(), ["SYN 3"]);
  link.open();
  await writer.flushed();
});

Deno.test("rule 2: a SYN encoded during a write leaves with the next write", async () => {
  const { link, writer } = start();
  assert(data(writer, 3, 1));
  await link.begun(1);
  assert(syn(writer, 5));
  assert(data(writer, 5, 2));
  link.open();
  await writer.flushed();
  assertEquals(link.writes.map((bytes) => frames(bytes)), [["PSH 3 length 1"], ["SYN 5", "PSH 5 length 2"]]);
});

Deno.test("FrameWriter: frames carry the writer's version, which can be set before the first frame", async () => {
  const { link, writer } = start();
  writer.version = 1;
  link.open();
  assert(syn(writer, 3) && data(writer, 3, 1) && writer.tryControl(NOP, 0));
  await writer.flushed();
  assertEquals(link.frames(1), ["SYN 3", "PSH 3 length 1", "NOP 0"]);
});

Deno.test("FrameWriter: data is encoded up to the high-water mark; the last frame may exceed it", async () => {
  const { link, writer } = start();
  assert(data(writer, 3, 1));
  await link.begun(1);
  assertEquals(fill(writer, 3, toTheMark[0]!), HIGH_WATER_MARK);
  assertEquals([data(writer, 5, 0), syn(writer, 5)], [false, false]);
  link.take();
  await link.begun(2);
  assertEquals(link.writes[1]!.length, HIGH_WATER_MARK);

  // One byte below the mark, the longest frame still finds room.
  for (const length of oneBelowTheMark) assert(data(writer, 3, length));
  assertEquals(fill(writer, 3, MAX_PAYLOAD_LENGTH), longestFrame);
  link.open();
  await writer.flushed();
  assertEquals(link.writes[2]!.length, HIGH_WATER_MARK - 1 + longestFrame);
});

Deno.test("FrameWriter: a frame without room waits, and its send resolves when the frame is encoded", async () => {
  const { link, writer } = start();
  fill(writer, 3, 32 * 1024);
  await link.begun(1);
  fill(writer, 3, 32 * 1024);
  let isSent = false;
  const sending = writer.openSender().send(waiting(5, 100)).then(() => isSent = true);
  await microtasks(50);
  assertEquals(isSent, false);
  link.take();
  await sending;
  // It was encoded into the third buffer when the second began to leave; it may still be unsent.
  assertEquals([link.writes.length, writer.unsent], [2, link.writes[1]!.length + HEADER_LENGTH + 100]);
  link.open();
  await writer.flushed();
  assertEquals(frames(link.writes[2]!), ["PSH 5 length 100"]);
});

Deno.test("FrameWriter: waiting frames are encoded in their order of arrival, before any later frame", async () => {
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

/** Writes frames as a stream does: into the buffer if there is room, else through the queue; yields after each. */
async function writeFrames(writer: FrameWriter, id: number, count: number): Promise<void> {
  const length = 32 * 1024;
  const sender = writer.openSender();
  while (count-- > 0) {
    if (data(writer, id, length)) await null;
    else await writer.send(waiting(id, length), sender);
  }
  sender.close();
}

/** The stream ids of the written frames, in order. */
const idsOf = (lines: string[]) => lines.map((line) => Number(line.split(" ")[1]));

Deno.test("rule 13: streams that write megabytes alternate frame by frame", async () => {
  const { link, writer } = start();
  link.open();
  const ids = [3, 5, 7, 9, 11];
  await Promise.all(ids.map((id) => writeFrames(writer, id, 40)));
  await writer.flushed();
  assertEquals(idsOf(link.frames()), Array.from({ length: 40 }, () => ids).flat());
});

Deno.test("rule 13: streams that start while another fills every buffer alternate with it from then on", async () => {
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
  // One frame of the first stream was waiting before the other streams started.
  const order = idsOf(link.frames()).slice(ahead + 1);
  for (let at = 0; at < 4 * 30; at += 4) assertEquals(order.slice(at, at + 4).sort(), [3, 5, 7, 9], `at ${at}`);
});

Deno.test("rule 13: a small frame waits only for the frames before it", async () => {
  const { link, writer } = start();
  const bulk = writeFrames(writer, 3, 100);
  await link.begun(1);
  await microtasks(50);
  const ahead = writer.frames;
  const small = writer.openSender().send(waiting(5, 1));
  link.open();
  await Promise.all([bulk, small]);
  await writer.flushed();
  // Before it: the frames in the two buffers, and the one that waited.
  assertEquals(idsOf(link.frames()).indexOf(5), ahead + 1);
});

Deno.test("rule 12: at least 16 KiB of control frames find room when data does not, up to a limit", async () => {
  // Exactly full, and over the mark by the largest possible amount.
  for (const lengths of [toTheMark, [...oneBelowTheMark, MAX_PAYLOAD_LENGTH]]) {
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

Deno.test("rule 12: control frames without room are encoded first when the buffers change, before waiting frames", async () => {
  const { link, writer, events } = start();
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
  // A source that is queued already is not queued again.
  writer.queueControl(sources[0]!);
  writer.refuse(13);
  writer.refuse(15);
  const sending = writer.openSender().send(waiting(5, 10));
  assertEquals([encoded, writer.waitingRefusals, sources.map(({ isQueued }) => isQueued)], [[], 2, [true, true, true]]);
  link.take();
  await sending;
  assertEquals([encoded, writer.waitingRefusals, events], [["FIN 7", "FIN 11"], 0, ["refused"]]);
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

Deno.test("FrameWriter.queueControl() encodes due frames at once if there is room, and none after end()", async () => {
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

Deno.test("FrameWriter.dequeueControl() removes a stream from the queue of control frames, and no other", async () => {
  const { link, writer } = start();
  const encoded: string[] = [];
  assert(data(writer, 3, 1));
  await link.begun(1);
  fill(writer, 3, 32 * 1024);
  while (writer.tryControl(NOP, 0));
  const sources = [7, 9, 11].map((id) => source(id, { fin: true }, encoded));
  for (const source of sources) writer.queueControl(source);
  writer.dequeueControl(sources[1]!);
  assertEquals(sources.map(({ isQueued }) => isQueued), [true, false, true]);
  writer.dequeueControl(sources[1]!); // not queued: no effect
  link.open();
  await writer.flushed();
  assertEquals(encoded, ["FIN 7", "FIN 11"]);
});

Deno.test("FrameWriter.queueControl() encodes a reset as two adjacent NOPs, with FIN where it is due or missing", async () => {
  const { link, writer } = start();
  const encoded: string[] = [];
  assert(data(writer, 3, 1));
  await link.begun(1);
  fill(writer, 3, 32 * 1024);
  while (writer.tryControl(NOP, 0));
  const sources = [
    source(7, { reset: true }, encoded),
    source(9, { reset: true, fin: true }, encoded),
    source(11, { reset: true, isFinEncoded: true }, encoded),
  ];
  for (const source of sources) writer.queueControl(source);
  assertEquals([encoded, sources.map(({ isQueued }) => isQueued)], [[], [true, true, true]]);
  link.open();
  await writer.flushed();
  assertEquals(encoded, ["reset 7", "reset 9", "reset 11"]);
  assertEquals(sources.map(({ isQueued, isResetDue, isFinDue }) => isQueued || isResetDue || isFinDue), [
    false,
    false,
    false,
  ]);
  assertEquals(frames(link.writes[2]!).slice(0, 8), [
    ...["NOP 7", "NOP 4294967288", "FIN 7"],
    ...["FIN 9", "NOP 9", "NOP 4294967286"],
    ...["NOP 11", "NOP 4294967284"],
  ]);
  writer.end();
  writer.queueControl(source(13, { reset: true }, encoded));
  assertEquals(encoded.length, 3);
});

Deno.test("FrameWriter: waiting frames that exceed one buffer leave in several writes, complete and in order", async () => {
  const { link, writer } = start();
  assert(data(writer, 3, 1));
  await link.begun(1);
  fill(writer, 3, 32 * 1024);
  const sent = Array.from({ length: 30 }, (_, at) => writer.openSender().send(waiting(5 + 2 * at, 32 * 1024)));
  link.open();
  await Promise.all(sent);
  await writer.flushed();
  for (const write of link.writes) assertLess(write.length, HIGH_WATER_MARK + 32 * 1024);
  assertEquals(
    link.frames().slice(-30),
    Array.from({ length: 30 }, (_, at) => `PSH ${5 + 2 * at} length 32768`),
  );
});

Deno.test("FrameWriter.flushed() resolves after encoded and waiting frames are written, at once if there are none", async () => {
  const { link, writer } = start();
  await writer.flushed();
  assertEquals(link.writes, []);
  assert(data(writer, 3, 1));
  let isFlushed = false;
  const flushed = writer.flushed().then(() => isFlushed = true);
  // flushed() begins the write itself, without the pass of the event loop that a SYN waits for.
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

Deno.test("FrameWriter.flushed() waits for frames that writerIdle() adds", async () => {
  let owed = 3;
  const { link, writer } = start({ writerIdle: () => void (owed-- > 0 && writer.tryControl(NOP, owed)) });
  link.open();
  assert(data(writer, 3, 1));
  await writer.flushed();
  assertEquals(link.frames(), ["PSH 3 length 1", "NOP 2", "NOP 1", "NOP 0"]);
});

Deno.test("FrameWriter calls writerIdle() once, after everything was written", async () => {
  const { link, writer, events } = start();
  assert(data(writer, 3, 1));
  await link.begun(1);
  assert(data(writer, 3, 2));
  link.take();
  await link.begun(2);
  await microtasks(20);
  assertEquals(events, []);
  link.take();
  await writer.flushed();
  assertEquals(events, ["idle"]);
});

Deno.test("FrameWriter: frames, bytes and unsent count encoded frames, written bytes and unwritten bytes", async () => {
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

Deno.test("FrameWriter: begunAt is when a write began, stalledSince when it last made progress", async () => {
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

Deno.test("FrameWriter: a transport that writes a few bytes at a time gets all bytes in order, and each write counts as progress", async () => {
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
    // Each write sees a new value of stalledSince, except after a write of 0 bytes.
    assertEquals(stalls.size, parts.filter(({ length }) => length > 0).length);
  } finally {
    clock.now = now;
  }
});

Deno.test("FrameWriter: a failed write is reported once, and a send rejects when its sender is closed", async () => {
  const { link, writer, events } = start();
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
  assertEquals([events, link.writes.length, writer.bytes], [["failed: broken"], 1, 0]);
  assertEquals([data(writer, 3, 1), writer.tryControl(FIN, 3), writer.tryUpdate(3, 0, 0)], [false, false, false]);
  assertEquals([writer.unsent, writer.stalledSince], [0, undefined]);
});

Deno.test("FrameWriter: a write that throws synchronously is reported as a failure", async () => {
  const { link, writer, events } = start();
  link.write = () => {
    throw new Error("broken at once");
  };
  assert(data(writer, 3, 1));
  await writer.flushed();
  assertEquals(events, ["failed: broken at once"]);
});

Deno.test("FrameWriter: a pending write that fails after a failure of the host leaves no unhandled rejection", async () => {
  const failure = new Error("the host failed");
  const { link, writer, events } = start({
    refusalsEncoded: () => {
      throw failure;
    },
  });
  while (writer.tryControl(NOP, 0));
  writer.refuse(5);
  await link.begun(1);
  await microtasks(20);
  assertEquals(events, ["failed: the host failed"]);
  // An unhandled rejection would fail this test.
  link.fail(new Error("broken"));
  await turn();
});

Deno.test("FrameWriter: a write that fails after end() is not reported", async () => {
  const { link, writer, events } = start();
  assert(data(writer, 3, 1));
  await link.begun(1);
  writer.end();
  link.fail(new Error("broken"));
  await microtasks(20);
  assertEquals(events, []);
});

Deno.test("FrameWriter.end() stops encoding and writing, and a send rejects when its sender is closed", async () => {
  const { link, writer, events } = start();
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
  assertEquals([link.writes.length, events], [1, []]);
});

Deno.test("FrameWriter.dismiss(n) after end() rejects the sends of n frames and leaves the frames not encoded", async () => {
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

Deno.test("FrameWriter: a frame encoded in the same turn as end() is not written", async () => {
  const { link, writer } = start();
  assert(data(writer, 3, 1));
  writer.end();
  await microtasks(20);
  assertEquals([link.writes.length, writer.unsent], [0, 0]);
});

Deno.test("FrameWriter: an aborted send rejects with the reason, and the frames behind it are encoded", async () => {
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

Deno.test("FrameWriter.trim() frees the buffers of an idle session, which grow again with traffic", async () => {
  const { link, writer } = start();
  assertEquals(writer.isLarge, false);
  for (let times = 0; times < 2; times++) {
    link.isOpen = false;
    fill(writer, 3, 32 * 1024);
    await link.begun(1 + 4 * times);
    fill(writer, 3, 32 * 1024);
    assertEquals(writer.isLarge, true);
    const { unsent } = writer;
    // Buffers in use are not freed.
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
    assert(data(writer, 5, MIN_BUFFER_BYTES));
    await writer.flushed();
    assertEquals([writer.isLarge, link.frames().at(-1)], [true, `PSH 5 length ${MIN_BUFFER_BYTES}`]);
    writer.trim();
  }
});

Deno.test("FrameWriter.trim() frees a large buffer behind a small one", async () => {
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

Deno.test("FrameWriter.trim() before a write begins loses no frame", async () => {
  const { link, writer } = start();
  link.open();
  fill(writer, 3, 32 * 1024);
  const { unsent } = writer;
  writer.trim();
  await writer.flushed();
  assertEquals([link.writes.map(({ length }) => length), writer.bytes], [[unsent], unsent]);
});

Deno.test("FrameWriter: the memory of a large write belongs to a transport that keeps it", async () => {
  const { link, writer } = start({}, new FakeKeepingLink());
  const encoded = fill(writer, 3, 32 * 1024);
  await turn();
  const [first] = link.kept;
  assertEquals([link.kept.length, first!.length, writer.unsent], [1, encoded, encoded]);
  // Frames of later writes go elsewhere, and so does what was waiting.
  fill(writer, 5, 32 * 1024);
  link.settled.resolve();
  await writer.flushed();
  assertEquals([link.kept.length, writer.unsent, writer.bytes], [2, 0, link.kept[0]!.length + link.kept[1]!.length]);
  assertEquals(new Set(link.kept.map(({ memory }) => memory.buffer)).size, 2);
  for (const { memory, copy, length } of link.kept) {
    assertEquals(memory, copy, "the memory changed");
    assertEquals(memory.subarray(0, 5), new Uint8Array(5), "the headroom is not free");
    assert(frames(memory.subarray(5, 5 + length)).every((frame) => /^PSH [35] length 32768$/.test(frame)));
  }
  // A small write is copied by the transport.
  link.open();
  assert(data(writer, 7, 10));
  await writer.flushed();
  assertEquals([link.kept.length, link.frames()], [2, ["PSH 7 length 10"]]);
});

Deno.test("FrameWriter.end() and trim() do not free memory that the transport keeps", async () => {
  for (const isSettledFirst of [false, true]) {
    const { link, writer } = start({}, new FakeKeepingLink());
    fill(writer, 3, 32 * 1024);
    await turn();
    if (!isSettledFirst) writer.end();
    link.settled.resolve();
    await turn();
    if (isSettledFirst) writer.trim();
    writer.end();
    assertEquals(link.kept.length, 1);
    for (const { memory, copy } of link.kept) assertEquals(memory, copy);
  }
});

Deno.test("FrameWriter.end() frees the buffers", async () => {
  const { link, writer } = start();
  fill(writer, 3, 32 * 1024);
  await link.begun(1);
  fill(writer, 3, 32 * 1024);
  writer.end();
  assertEquals(writer.isLarge, false);
  // Except for the one of the pending write.
  assertGreater(link.held, 0);
  link.take();
  await microtasks(20);
  assertEquals([writer.unsent, link.held], [0, 0]);
});

Deno.test("FrameWriter: a long write that settles after end() does not yield to the event loop", async () => {
  const { link, writer } = start();
  const { now, yieldToEventLoop } = clock;
  let yields = 0;
  clock.yieldToEventLoop = () => {
    yields++;
    return yieldToEventLoop();
  };
  try {
    fill(writer, 3, 32 * 1024);
    await link.begun(1);
    writer.end();
    clock.now = () => now() + 1000;
    link.take();
    await microtasks(20);
    assertEquals(yields, 0);
  } finally {
    Object.assign(clock, { now, yieldToEventLoop });
  }
});

Deno.test("FrameWriter: a write that fails after end() frees its buffer", async () => {
  const { link, writer } = start();
  fill(writer, 3, 32 * 1024);
  await link.begun(1);
  writer.end();
  link.fail(new Error("broken"));
  await microtasks(20);
  assertEquals(link.held, 0);
});

Deno.test("WriteBuffer: append() adds the counts of the other buffer, and drop() leaves no more data than bytes", () => {
  const [first, second] = [new WriteBuffer(4), new WriteBuffer(4)];
  first.addFrame(1, NOP, 0, EMPTY_BYTES, 0, 0);
  second.addFrame(1, PSH, 3, pattern(100), 0, 100);
  second.addFrame(1, FIN, 3, EMPTY_BYTES, 0, 0);
  first.append(second);
  const all = 3 * HEADER_LENGTH + 100;
  assertEquals([first.length, first.dataLength, first.frames], [all, 100, 3]);
  // All but the FIN and ten bytes.
  first.drop(all - HEADER_LENGTH - 10);
  assertEquals([first.length, first.dataLength, first.frames], [HEADER_LENGTH + 10, HEADER_LENGTH + 10, 1]);
  first.drop(first.length);
  assertEquals([first.length, first.dataLength, first.frames, first.used], [0, 0, 0, 4]);
});
