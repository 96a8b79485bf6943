/**
 * The way out: what gathers into one transport write, who gets in when, and how it ends.
 *
 * @module
 */
import { assert, assertEquals, assertGreater, assertLess, assertRejects, assertStrictEquals } from "@std/assert";
import { concat } from "@std/bytes";
import { ChannelClosedError } from "../channel.ts";
import { clock } from "../clock.ts";
import { type Command, FIN, type Frame, NOP, NOTHING, PSH, SYN } from "../frame.ts";
import { Outgoing, type OutgoingHost } from "../outgoing.ts";
import { type Connection, type Link, link } from "../transport.ts";
import { decode } from "./decode_helpers.ts";
import { pattern, turn } from "./support.ts";

const NOWHERE = { transport: "tcp", hostname: "", port: 0 } as const;

/** A transport whose writes settle when the test says so. */
class FakeLink implements Link {
  /** A copy of what each write was given. */
  readonly writes: Uint8Array[] = [];
  readonly #pending: { settle: PromiseWithResolvers<number>; given: Uint8Array }[] = [];
  readonly #given: Uint8Array[] = [];
  #begun = Promise.withResolvers<void>();
  /** Whether writes settle by themselves. */
  isOpen = false;
  readonly isGiven = true;
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

  readonly bytes = NOTHING;
  read = () => Promise.resolve(null);
  keep() {}
  closeWrite = () => Promise.resolve();
  close() {}
  spent() {}
  free() {}
  ref() {}
  unref() {}
}

function frames(bytes: Uint8Array, version: 1 | 2 = 2): string[] {
  const { lines, error, decoder } = decode([bytes], version);
  assertEquals([error, decoder.isBetweenFrames], [undefined, true]);
  return lines.map((line) => line.replace(/ at .*/, ""));
}

/** A way out over a fake transport, and what its session was told. */
function start(host: Partial<OutgoingHost> = {}) {
  const link = new FakeLink();
  const told: string[] = [];
  const outgoing: Outgoing = new Outgoing(link, 2, {
    writeOwed: () => {},
    idle: () => void told.push("idle"),
    failed: (error) => {
      told.push(`failed: ${(error as Error).message}`);
      outgoing.end();
    },
    ...host,
  });
  return { link, outgoing, told };
}

function data(outgoing: Outgoing, id: number, length: number): boolean {
  return outgoing.tryFrame(PSH, id, new Uint8Array(length), 0, length);
}

function syn(outgoing: Outgoing, id: number): boolean {
  return outgoing.tryFrame(SYN, id, NOTHING, 0, 0);
}

function waiting(id: number, length: number, command: Command = PSH): Frame {
  return { command, id, bytes: new Uint8Array(length), start: 0, end: length, isTaken: false };
}

/** Fills the buffer until data finds no room; says how many bytes it took. */
function fill(outgoing: Outgoing, id: number, length: number): number {
  let bytes = 0;
  while (data(outgoing, id, length)) bytes += 8 + length;
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
  const { link, outgoing } = start();
  assert(outgoing.tryFrame(PSH, 3, pattern(20), 5, 15));
  await turn(1);
  assertEquals(link.writes.map((bytes) => bytes.toHex()), ["02020a0003000000" + pattern(20).subarray(5, 15).toHex()]);
  link.open();
  await outgoing.flushed();
  assertEquals(link.writes.length, 1);
});

Deno.test("frames put in the same turn leave in one write, in the order in which they were put", async () => {
  const { link, outgoing } = start();
  link.open();
  assert(outgoing.tryFrame(PSH, 3, Uint8Array.of(1, 2), 0, 2));
  assert(outgoing.tryUpdate(3, 5, 65536));
  assert(outgoing.tryControl(FIN, 3));
  assert(outgoing.tryFrame(PSH, 5, Uint8Array.of(3), 0, 1));
  await outgoing.flushed();
  assertEquals(link.writes.map((bytes) => frames(bytes)), [[
    "PSH 3 length 2",
    "UPD 3 consumed 5 window 65536",
    "FIN 3",
    "PSH 5 length 1",
  ]]);
});

Deno.test("frames put while a write is under way leave together in the next", async () => {
  const { link, outgoing } = start();
  assert(data(outgoing, 3, 1));
  await link.begun(1);
  for (let id = 5; id < 25; id += 2) {
    assert(data(outgoing, id, 100));
    await microtasks(10);
  }
  assertEquals(link.writes.length, 1);
  link.take();
  await link.begun(2);
  assertEquals(frames(link.writes[1]!), Array.from({ length: 10 }, (_, at) => `PSH ${5 + 2 * at} length 100`));
  link.open();
  await outgoing.flushed();
  assertEquals(link.writes.length, 2);
});

Deno.test("rule 2: a SYN and the data written right after it share one transport write", async () => {
  // `await openStream()` costs three; what stands between a program and its session may spend more.
  for (const spent of [0, 3, 10, 100]) {
    const { link, outgoing } = start();
    assert(syn(outgoing, 3));
    await microtasks(spent);
    assertEquals(link.writes.length, 0);
    assert(data(outgoing, 3, 5));
    await link.begun(1);
    assertEquals(link.frames(), ["SYN 3", "PSH 3 length 5"]);
    link.open();
    await outgoing.flushed();
  }
});

Deno.test("frames of one pass of the event loop share one write, however many microtasks are spent between them", async () => {
  using _ = stopTime();
  for (const spent of [0, 1, 4, 16, 100]) {
    const { link, outgoing } = start();
    link.open();
    for (let n = 0; n < 20; n++) {
      assert(data(outgoing, 3, 1000));
      await microtasks(spent);
    }
    await turn(1);
    assertEquals(link.writes.length, 1, `with ${spent} microtasks`);
    await outgoing.flushed();
  }
});

Deno.test("64 KiB that are coalesced leave before the pass of the event loop is over", async () => {
  const { link, outgoing } = start();
  for (let n = 0; n < 7; n++) assert(data(outgoing, 3, 9000));
  await microtasks(20);
  assertEquals(link.writes.length, 0);
  assert(data(outgoing, 3, 9000));
  await microtasks(2);
  assertEquals(link.writes.map((bytes) => bytes.length), [8 * 9008]);
  link.open();
  await outgoing.flushed();
});

Deno.test("frames that are coalesced for 0.1 ms leave before the pass of the event loop is over", async () => {
  using time = stopTime();
  const { link, outgoing } = start();
  link.open();
  for (const elapsed of [0.09, 0.02]) {
    for (let n = 0; n < 16; n++) syn(outgoing, 3);
    await microtasks(20);
    assertEquals(link.writes.length, 0);
    time.now += elapsed;
  }
  for (let n = 0; n < 16; n++) syn(outgoing, 3);
  await microtasks(3);
  assertEquals(link.frames().length, 48);
  await outgoing.flushed();
});

Deno.test("data after awaitAnswer() leaves at once, with the control frames before it; the next data is coalesced", async () => {
  const { link, outgoing } = start();
  link.open();
  outgoing.hold();
  assert(outgoing.tryUpdate(3, 5, 65536));
  outgoing.awaitAnswer();
  await microtasks(20);
  assertEquals(link.writes.length, 0);
  assert(data(outgoing, 3, 5));
  await microtasks(2);
  assertEquals(link.frames(), ["UPD 3 consumed 5 window 65536", "PSH 3 length 5"]);
  await microtasks(20);
  assert(data(outgoing, 3, 6));
  await microtasks(20);
  assertEquals(link.writes.length, 1);
  await turn(1);
  assertEquals(link.writes.length, 2);
  await outgoing.flushed();
});

Deno.test("hold() coalesces until release(), over passes of the event loop, up to 64 KiB", async () => {
  const { link, outgoing } = start();
  link.open();
  outgoing.hold();
  assert(data(outgoing, 3, 5));
  await turn();
  assertEquals(link.writes.length, 0);
  outgoing.release();
  assertEquals(link.writes.length, 1);
  await outgoing.flushed();
  outgoing.hold();
  fill(outgoing, 3, 32 * 1024);
  await link.begun(2);
  outgoing.release();
  await outgoing.flushed();
});

Deno.test("rule 2: a SYN that no data follows leaves after one pass of the event loop all the same", async () => {
  const { link, outgoing } = start();
  assert(syn(outgoing, 3));
  await turn(1);
  assertEquals(link.frames(), ["SYN 3"]);
  link.open();
  await outgoing.flushed();
});

Deno.test("rule 2: a SYN put while a write is under way leaves with the next one", async () => {
  const { link, outgoing } = start();
  assert(data(outgoing, 3, 1));
  await link.begun(1);
  assert(syn(outgoing, 5));
  assert(data(outgoing, 5, 2));
  link.open();
  await outgoing.flushed();
  assertEquals(link.writes.map((bytes) => frames(bytes)), [["PSH 3 length 1"], ["SYN 5", "PSH 5 length 2"]]);
});

Deno.test("every frame carries the version, which may be set before the first one", async () => {
  const { link, outgoing } = start();
  outgoing.version = 1;
  link.open();
  assert(syn(outgoing, 3) && data(outgoing, 3, 1) && outgoing.tryControl(NOP, 0));
  await outgoing.flushed();
  assertEquals(link.frames(1), ["SYN 3", "PSH 3 length 1", "NOP 0"]);
});

Deno.test("data finds room until 224 KiB have gathered; what was let in last may go beyond", async () => {
  const { link, outgoing } = start();
  assert(data(outgoing, 3, 1));
  await link.begun(1);
  assertEquals(fill(outgoing, 3, 32 * 1024 - 8), 224 * 1024);
  assertEquals([data(outgoing, 5, 0), syn(outgoing, 5)], [false, false]);
  link.take();
  await link.begun(2);
  assertEquals(link.writes[1]!.length, 224 * 1024);

  // One byte short of it, the longest frame is still let in.
  for (const length of [65535, 65535, 65535, 32738]) assert(data(outgoing, 3, length));
  assertEquals(fill(outgoing, 3, 65535), 65543);
  link.open();
  await outgoing.flushed();
  assertEquals(link.writes[2]!.length, 224 * 1024 - 1 + 65543);
});

Deno.test("a frame that finds no room waits, and its sender goes on when a buffer has taken it", async () => {
  const { link, outgoing } = start();
  fill(outgoing, 3, 32 * 1024);
  await link.begun(1);
  fill(outgoing, 3, 32 * 1024);
  let isTaken = false;
  const sending = outgoing.sender.send(waiting(5, 100)).then(() => isTaken = true);
  await microtasks(50);
  assertEquals(isTaken, false);
  link.take();
  await sending;
  // It was copied into the third buffer as the second began to leave: it need not have left.
  assertEquals([link.writes.length, outgoing.unsent], [2, link.writes[1]!.length + 108]);
  link.open();
  await outgoing.flushed();
  assertEquals(frames(link.writes[2]!), ["PSH 5 length 100"]);
});

Deno.test("a frame that waits says that it is taken in the very step that encodes it, and only if it is", async () => {
  const { link, outgoing } = start();
  fill(outgoing, 3, 32 * 1024);
  await link.begun(1);
  fill(outgoing, 3, 32 * 1024);
  const taken: string[] = [];
  const before = outgoing.frames;
  const controller = new AbortController();
  const note = (name: string) => () => void taken.push(`${name}: ${outgoing.frames - before}`);
  const one = outgoing.sender.send({ ...waiting(5, 0, FIN), taken: note("one") });
  const two = outgoing.sender.send({ ...waiting(7, 0, FIN), taken: note("two") }, { signal: controller.signal });
  const three = outgoing.sender.send({ ...waiting(9, 0, FIN), taken: note("three") });
  await microtasks(20);
  assertEquals(taken, []);
  controller.abort(new Error("enough"));
  await assertRejects(() => two, Error, "enough");
  link.open();
  await Promise.all([one, three]);
  await outgoing.flushed();
  assertEquals(taken, ["one: 1", "three: 2"]);
});

Deno.test("frames that wait are taken in the order in which they came, before any that comes later", async () => {
  const { link, outgoing } = start();
  fill(outgoing, 3, 32 * 1024);
  await link.begun(1);
  fill(outgoing, 3, 32 * 1024);
  const handles = [5, 7, 9].map((id) => ({ id, sender: outgoing.sender.clone() }));
  const sent = handles.flatMap(({ id, sender }) => [sender.send(waiting(id, 10)), sender.send(waiting(id, 11))]);
  link.take();
  await Promise.all(sent);
  assert(data(outgoing, 11, 1));
  link.open();
  await outgoing.flushed();
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
async function writeFrames(outgoing: Outgoing, id: number, count: number): Promise<void> {
  const length = 32 * 1024;
  const sender = outgoing.sender.clone();
  while (count-- > 0) {
    if (data(outgoing, id, length)) await null;
    else await sender.send(waiting(id, length));
  }
  sender.close();
}

/** The ids of the frames written, in their order. */
const idsOf = (lines: string[]) => lines.map((line) => Number(line.split(" ")[1]));

Deno.test("rule 13: streams that write megabytes take turns, frame by frame", async () => {
  const { link, outgoing } = start();
  link.open();
  const ids = [3, 5, 7, 9, 11];
  await Promise.all(ids.map((id) => writeFrames(outgoing, id, 40)));
  await outgoing.flushed();
  assertEquals(idsOf(link.frames()), Array.from({ length: 40 }, () => ids).flat());
});

Deno.test("rule 13: streams that join one that has filled every buffer get their turns from then on", async () => {
  const { link, outgoing } = start();
  const first = writeFrames(outgoing, 3, 60);
  await link.begun(1);
  await microtasks(50);
  const ahead = outgoing.frames;
  const others = [5, 7, 9].map((id) => writeFrames(outgoing, id, 40));
  for (let writes = 1; writes < 20; writes++) {
    await link.begun(writes);
    await microtasks(50);
    link.take();
  }
  link.open();
  await Promise.all([first, ...others]);
  await outgoing.flushed();
  // One frame of the first stream was waiting before the others came.
  const order = idsOf(link.frames()).slice(ahead + 1);
  for (let at = 0; at < 4 * 30; at += 4) assertEquals(order.slice(at, at + 4).sort(), [3, 5, 7, 9], `at ${at}`);
});

Deno.test("rule 13: one small frame waits for what was put before it, and for nothing else", async () => {
  const { link, outgoing } = start();
  const bulk = writeFrames(outgoing, 3, 100);
  await link.begun(1);
  await microtasks(50);
  const ahead = outgoing.frames;
  const small = outgoing.sender.send(waiting(5, 1));
  link.open();
  await Promise.all([bulk, small]);
  await outgoing.flushed();
  // Ahead of it are the frames in the two buffers, and the one that waited.
  assertEquals(idsOf(link.frames()).indexOf(5), ahead + 1);
});

Deno.test("rule 12: when data finds no room, 16 KiB of control frames do, but not any number", async () => {
  // Full to the byte, and overfull by as much as can be.
  for (const lengths of [Array<number>(7).fill(32 * 1024 - 8), [65535, 65535, 65535, 32738, 65535]]) {
    const { link, outgoing } = start();
    assert(data(outgoing, 3, 1));
    await link.begun(1);
    for (const length of lengths) assert(data(outgoing, 3, length));
    assertEquals([data(outgoing, 5, 1), syn(outgoing, 5)], [false, false]);
    assert(outgoing.tryControl(FIN, 7));
    let updates = 0;
    while (outgoing.tryUpdate(3, updates, 1)) updates++;
    assert(updates >= 1023 && updates < 10_000, `${updates} updates found room`);
    assertEquals([outgoing.tryControl(NOP, 0), data(outgoing, 5, 1)], [false, false]);
    link.take();
    await link.begun(2);
    assert(outgoing.tryControl(NOP, 0));
    link.open();
    await outgoing.flushed();
    assertEquals(link.frames().filter((line) => line.startsWith("UPD 3")).length, updates);
    assertEquals(link.frames().at(-1), "NOP 0");
  }
});

Deno.test("rule 12: at each change of buffers owed control frames go first, then frames that wait", async () => {
  let owed: number[] = [];
  const { link, outgoing } = start({
    writeOwed: () => {
      while (owed.length > 0 && outgoing.tryControl(FIN, owed[0]!)) owed.shift();
    },
  });
  assert(data(outgoing, 3, 1));
  await link.begun(1);
  fill(outgoing, 3, 32 * 1024);
  const sending = outgoing.sender.send(waiting(5, 10));
  owed = [7, 9];
  link.take();
  await sending;
  link.open();
  await outgoing.flushed();
  assertEquals(frames(link.writes[2]!), ["FIN 7", "FIN 9", "PSH 5 length 10"]);
});

Deno.test("more frames wait than one buffer holds: they leave in several writes, all of them, in order", async () => {
  const { link, outgoing } = start();
  assert(data(outgoing, 3, 1));
  await link.begun(1);
  fill(outgoing, 3, 32 * 1024);
  const sent = Array.from({ length: 30 }, (_, at) => outgoing.sender.send(waiting(5 + 2 * at, 32 * 1024)));
  link.open();
  await Promise.all(sent);
  await outgoing.flushed();
  for (const write of link.writes) assertLess(write.length, 256 * 1024);
  assertEquals(
    link.frames().slice(-30),
    Array.from({ length: 30 }, (_, at) => `PSH ${5 + 2 * at} length 32768`),
  );
});

Deno.test("flushed waits for what was put and what waited, and for nothing when there is nothing", async () => {
  const { link, outgoing } = start();
  await outgoing.flushed();
  assertEquals(link.writes, []);
  assert(data(outgoing, 3, 1));
  let isFlushed = false;
  const flushed = outgoing.flushed().then(() => isFlushed = true);
  // It begins the write itself, without waiting for the turn that a SYN would leave.
  assertEquals(link.writes.length, 1);
  assert(data(outgoing, 3, 2));
  link.take();
  await link.begun(2);
  await microtasks(20);
  assertEquals(isFlushed, false);
  link.take();
  await flushed;
  assertEquals([outgoing.unsent, outgoing.bytes], [0, 19]);
});

Deno.test("flushed waits for what the session puts when it is told that all has been written", async () => {
  let owed = 3;
  const { link, outgoing } = start({ idle: () => void (owed-- > 0 && outgoing.tryControl(NOP, owed)) });
  link.open();
  assert(data(outgoing, 3, 1));
  await outgoing.flushed();
  assertEquals(link.frames(), ["PSH 3 length 1", "NOP 2", "NOP 1", "NOP 0"]);
});

Deno.test("the session is told when all has been written, and only then", async () => {
  const { link, outgoing, told } = start();
  assert(data(outgoing, 3, 1));
  await link.begun(1);
  assert(data(outgoing, 3, 2));
  link.take();
  await link.begun(2);
  await microtasks(20);
  assertEquals(told, []);
  link.take();
  await outgoing.flushed();
  assertEquals(told, ["idle"]);
});

Deno.test("frames, bytes and unsent say what was put and what left", async () => {
  const { link, outgoing } = start();
  const figures = () => [outgoing.frames, outgoing.bytes, outgoing.unsent];
  assertEquals(figures(), [0, 0, 0]);
  outgoing.tryFrame(PSH, 3, pattern(10), 2, 7);
  outgoing.tryUpdate(3, 1, 1);
  assertEquals(figures(), [2, 0, 29]);
  await link.begun(1);
  outgoing.tryControl(FIN, 3);
  assertEquals(figures(), [3, 0, 37]);
  link.take();
  await link.begun(2);
  assertEquals(figures(), [3, 29, 8]);
  link.take();
  await outgoing.flushed();
  assertEquals(figures(), [3, 37, 0]);
});

Deno.test("the clock shows when a write began and since when it has made no progress", async () => {
  using time = stopTime();
  time.now = 1000;
  const { link, outgoing } = start();
  assertEquals([outgoing.begunAt, outgoing.stalledSince], [1000, undefined]);
  time.now = 1010;
  outgoing.tryControl(NOP, 0);
  assertEquals(outgoing.stalledSince, undefined);
  await link.begun(1);
  time.now = 1020;
  assertEquals([outgoing.begunAt, outgoing.stalledSince], [1010, 1010]);
  link.takeOne();
  await link.begun(2);
  time.now = 1030;
  assertEquals([outgoing.begunAt, outgoing.stalledSince], [1010, 1020]);
  outgoing.tryControl(NOP, 0);
  link.take();
  await link.begun(3);
  assertEquals([outgoing.begunAt, outgoing.stalledSince], [1030, 1030]);
  link.take();
  await outgoing.flushed();
  assertEquals([outgoing.begunAt, outgoing.stalledSince], [1030, undefined]);
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
        stalls.add(outgoing.stalledSince);
        const count = Math.min(p.length, sizes[0]!);
        sizes = [...sizes.slice(1), sizes[0]!];
        parts.push(p.slice(0, count));
        return Promise.resolve(count);
      },
      close: () => {},
    };
    const outgoing = new Outgoing(link(connection), 2, {
      writeOwed() {},
      idle() {},
      failed: (error) => assert(!error),
    });
    for (let id = 3; id < 23; id += 2) outgoing.tryFrame(PSH, id, pattern(50, id), 0, 50);
    await outgoing.flushed();
    const { lines } = decode([concat(parts)], 2);
    assertEquals(
      lines,
      Array.from(
        { length: 10 },
        (_, at) => `PSH ${3 + 2 * at} length 50 at ${58 * at}: ${pattern(50, 3 + 2 * at).toHex()}`,
      ),
    );
    assertEquals([outgoing.bytes, parts.length > 10], [580, true]);
    // Each write but those after one that took nothing finds that there was progress since the one before.
    assertEquals(stalls.size, parts.filter(({ length }) => length > 0).length);
  } finally {
    clock.now = now;
  }
});

Deno.test("a transport that fails is told once, and frames that wait learn that they were not taken", async () => {
  const { link, outgoing, told } = start();
  fill(outgoing, 3, 32 * 1024);
  await link.begun(1);
  fill(outgoing, 3, 32 * 1024);
  const frame = waiting(5, 10);
  const sending = outgoing.sender.send(frame);
  const flushed = outgoing.flushed();
  link.fail(new Error("broken"));
  await flushed;
  outgoing.dismiss(Infinity);
  await sending;
  assertEquals(frame.isTaken, false);
  await microtasks(20);
  assertEquals([told, link.writes.length, outgoing.bytes], [["failed: broken"], 1, 0]);
  assertEquals([data(outgoing, 3, 1), outgoing.tryControl(FIN, 3), outgoing.tryUpdate(3, 0, 0)], [false, false, false]);
  assertEquals([outgoing.unsent, outgoing.stalledSince], [0, undefined]);
});

Deno.test("a transport whose write throws at once has failed just the same", async () => {
  const { link, outgoing, told } = start();
  link.write = () => {
    throw new Error("broken at once");
  };
  assert(data(outgoing, 3, 1));
  await outgoing.flushed();
  assertEquals(told, ["failed: broken at once"]);
});

Deno.test("when something else fails, so may the write under way, and nobody need hear of that", async () => {
  const failure = new Error("the host failed");
  const { link, outgoing, told } = start({
    writeOwed: () => {
      throw failure;
    },
  });
  assert(data(outgoing, 3, 1));
  await link.begun(1);
  await microtasks(20);
  assertEquals(told, ["failed: the host failed"]);
  // Unhandled it would fail this test.
  link.fail(new Error("broken"));
  await turn();
});

Deno.test("a transport that fails after the end is told to nobody", async () => {
  const { link, outgoing, told } = start();
  assert(data(outgoing, 3, 1));
  await link.begun(1);
  outgoing.end();
  link.fail(new Error("broken"));
  await microtasks(20);
  assertEquals(told, []);
});

Deno.test("the end takes nothing more and writes nothing more, and frames that wait learn that they were not taken", async () => {
  const { link, outgoing, told } = start();
  fill(outgoing, 3, 32 * 1024);
  await link.begun(1);
  fill(outgoing, 3, 32 * 1024);
  const sender = outgoing.sender.clone();
  const list = [waiting(5, 1), waiting(7, 0, SYN), waiting(9, 2)];
  const sending = list.map((frame, at) => (at === 1 ? outgoing.sender : sender).send(frame));
  outgoing.end();
  assertEquals(outgoing.dismiss(2), true);
  await Promise.all(sending.slice(0, 2));
  assertEquals(await Promise.race([sending[2], Promise.resolve("waiting")]), "waiting");
  assertEquals(outgoing.dismiss(2), false);
  await Promise.all(sending);
  assertEquals(list.map(({ isTaken }) => isTaken), [false, false, false]);
  await assertRejects(() => sender.send(waiting(5, 1)), ChannelClosedError);
  assertEquals([data(outgoing, 3, 1), syn(outgoing, 5)], [false, false]);
  assertEquals([outgoing.tryControl(FIN, 3), outgoing.tryUpdate(3, 0, 0)], [false, false]);
  link.take();
  await outgoing.flushed();
  await microtasks(20);
  assertEquals([link.writes.length, told], [1, []]);
});

Deno.test("what was put in the turn in which the end comes does not leave", async () => {
  const { link, outgoing } = start();
  assert(data(outgoing, 3, 1));
  outgoing.end();
  await microtasks(20);
  assertEquals([link.writes.length, outgoing.unsent], [0, 0]);
});

Deno.test("a sender that gives up takes its frame back, and those behind it move up", async () => {
  const { link, outgoing } = start();
  assert(data(outgoing, 3, 1));
  await link.begun(1);
  fill(outgoing, 3, 32 * 1024);
  const controller = new AbortController();
  const reason = new Error("enough");
  const givingUp = outgoing.sender.send(waiting(5, 10), { signal: controller.signal });
  const staying = outgoing.sender.send(waiting(7, 10));
  controller.abort(reason);
  assertStrictEquals(await assertRejects(() => givingUp), reason);
  link.open();
  await staying;
  await outgoing.flushed();
  assertEquals(frames(link.writes[2]!), ["PSH 7 length 10"]);
});

Deno.test("an idle session gives back the buffers of its busy time, and can be busy again", async () => {
  const { link, outgoing } = start();
  assertEquals(outgoing.isLarge, false);
  for (let times = 0; times < 2; times++) {
    link.isOpen = false;
    fill(outgoing, 3, 32 * 1024);
    await link.begun(1 + 4 * times);
    fill(outgoing, 3, 32 * 1024);
    assertEquals(outgoing.isLarge, true);
    const { unsent } = outgoing;
    // Nothing is given back that is in use.
    outgoing.trim();
    assertEquals([outgoing.unsent, outgoing.isLarge], [unsent, true]);
    link.open();
    await outgoing.flushed();
    assertEquals(outgoing.isLarge, true);
    outgoing.trim();
    assertEquals(outgoing.isLarge, false);
    assert(data(outgoing, 5, 10));
    await outgoing.flushed();
    assertEquals([outgoing.isLarge, link.frames().at(-1)], [false, "PSH 5 length 10"]);
    assert(data(outgoing, 5, 20_000));
    await outgoing.flushed();
    assertEquals([outgoing.isLarge, link.frames().at(-1)], [true, "PSH 5 length 20000"]);
    outgoing.trim();
  }
});

Deno.test("a large buffer that lies behind a small one is given back too", async () => {
  const { link, outgoing } = start();
  assert(data(outgoing, 3, 1));
  await link.begun(1);
  fill(outgoing, 3, 32 * 1024);
  link.open();
  await outgoing.flushed();
  assertEquals(outgoing.isLarge, true);
  outgoing.trim();
  assertEquals([outgoing.isLarge, link.held], [false, 0]);
});

Deno.test("nothing that was put is lost when buffers are given back before it began to leave", async () => {
  const { link, outgoing } = start();
  link.open();
  fill(outgoing, 3, 32 * 1024);
  const { unsent } = outgoing;
  outgoing.trim();
  await outgoing.flushed();
  assertEquals([link.writes.map(({ length }) => length), outgoing.bytes], [[unsent], unsent]);
});

Deno.test("the end gives the buffers back as well", async () => {
  const { link, outgoing } = start();
  fill(outgoing, 3, 32 * 1024);
  await link.begun(1);
  fill(outgoing, 3, 32 * 1024);
  outgoing.end();
  assertEquals(outgoing.isLarge, false);
  // But for the one from which a write is still under way, whatever becomes of it.
  assertGreater(link.held, 0);
  link.take();
  await microtasks(20);
  assertEquals([outgoing.unsent, link.held], [0, 0]);
});

Deno.test("a long write that settles after the end lets nobody have a turn: there is nothing to go on with", async () => {
  const { link, outgoing } = start();
  const { now, giveWay } = clock;
  let given = 0;
  clock.giveWay = () => {
    given++;
    return giveWay();
  };
  try {
    fill(outgoing, 3, 32 * 1024);
    await link.begun(1);
    outgoing.end();
    clock.now = () => now() + 1000;
    link.take();
    await microtasks(20);
    assertEquals(given, 0);
  } finally {
    Object.assign(clock, { now, giveWay });
  }
});

Deno.test("a write that fails after the end gives its buffer back", async () => {
  const { link, outgoing } = start();
  fill(outgoing, 3, 32 * 1024);
  await link.begun(1);
  outgoing.end();
  link.fail(new Error("broken"));
  await microtasks(20);
  assertEquals(link.held, 0);
});
