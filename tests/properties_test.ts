/**
 * Properties for all inputs: the codec compared with a plain parser, credit with unbounded integers, the table of
 * streams with a `Map`.
 *
 * `PROPERTY_RUNS` is the number of inputs for each; a failure prints the seed and the smallest input that fails.
 *
 * @module
 */
import { assert, assertEquals, assertInstanceOf, assertStrictEquals } from "@std/assert";
import { concat } from "@std/bytes";
import fc from "fast-check";
import {
  type Command,
  EMPTY_BYTES,
  FIN,
  FrameDecoder,
  MAX_PAYLOAD_LENGTH,
  NOP,
  ProtocolError,
  PSH,
  SYN,
  UPD,
  type Version,
} from "../frame.ts";
import { type Entry, Table } from "../_table.ts";
import { INITIAL_WINDOW, MAX_WINDOW, MIN_WINDOW, ReceiveWindow, SendWindow, WindowPool } from "../_window.ts";
import { decode, recorder } from "./decode_helpers.ts";
import { collector, frame, pattern, type RawFrame, updateFrame, withFakeTime } from "./support.ts";

const numRuns = Number(Deno.env.get("PROPERTY_RUNS") ?? 200);

/** Checks a property with many inputs. */
function check<Ts extends [unknown, ...unknown[]]>(property: fc.IProperty<Ts>): void {
  fc.assert(property, { numRuns });
}

// The wire.

const version = fc.constantFrom<Version[]>(1, 2);
const uint32 = fc.oneof(fc.nat(10), fc.integer({ min: 2 ** 32 - 10, max: 2 ** 32 - 1 }), fc.nat(2 ** 32 - 1));
const payload = fc.oneof(
  { arbitrary: fc.uint8Array({ maxLength: 40 }), weight: 20 },
  { arbitrary: fc.integer({ min: 0, max: MAX_PAYLOAD_LENGTH }).map((length) => pattern(length, length)), weight: 1 },
);

const EMPTY = { data: EMPTY_BYTES, consumed: 0, window: 0 };
const bareFrame = fc.tuple(fc.constantFrom<Command[]>(SYN, FIN, NOP), uint32)
  .map(([command, id]): RawFrame => ({ ...EMPTY, command, id }));
const dataFrame = fc.tuple(uint32, payload)
  .map(([id, data]): RawFrame => ({ ...EMPTY, command: PSH, id, data }));
const creditFrame = fc.tuple(uint32, uint32, uint32)
  .map(([id, consumed, window]): RawFrame => ({ ...EMPTY, command: UPD, id, consumed, window }));

/** A frame that a peer of this version may send. */
function frameOf(version: Version): fc.Arbitrary<RawFrame> {
  return version === 1 ? fc.oneof(bareFrame, dataFrame) : fc.oneof(bareFrame, dataFrame, creditFrame);
}

function encode(version: Version, { command, id, data, consumed, window }: RawFrame): Uint8Array {
  return command === UPD ? updateFrame(id, consumed, window) : frame(version, command, id, data);
}

const session = version.chain((version) =>
  fc.record({ version: fc.constant(version), frames: fc.array(frameOf(version), { maxLength: 12 }) })
);

/** Valid frames, which invalid bytes may follow. */
const input = session.chain(({ version, frames }) => {
  const whole = concat(frames.map((frame) => encode(version, frame)));
  return fc.record({
    version: fc.constantFrom(version, undefined),
    bytes: fc.oneof(
      fc.constant(whole),
      fc.nat(whole.length).map((length) => whole.slice(0, length)),
      fc.uint8Array({ maxLength: 40 }).map((bytes) => concat([whole, bytes])),
      // Headers with at most one invalid field.
      fc.tuple(fc.nat(3), fc.nat(6), fc.nat(12), uint32, fc.uint8Array({ maxLength: 20 })).map(
        ([version, command, length, id, rest]) =>
          concat([whole, Uint8Array.of(version, command, length, 0), little(id), rest, whole]),
      ),
      // One byte replaced.
      fc.tuple(fc.nat(Math.max(0, whole.length - 1)), fc.nat(255)).map(([at, byte]) => {
        const bytes = whole.slice();
        bytes.fill(byte, at, at + 1);
        return bytes;
      }),
    ),
  });
});

function little(value: number): Uint8Array {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setUint32(0, value, true);
  return bytes;
}

const places = fc.array(fc.nat(), { maxLength: 30 });

/** Cuts bytes at these places, modulo its length. */
function cut(bytes: Uint8Array, places: number[]): Uint8Array[] {
  const ends = [...places.map((place) => place % (bytes.length + 1)).sort((a, b) => a - b), bytes.length];
  return ends.map((end, at) => bytes.subarray(ends[at - 1] ?? 0, end));
}

/** Parses complete bytes plainly: the lines that `decode` records, and the offset of the first invalid frame. */
function plainly(bytes: Uint8Array, version: number | undefined): { lines: string[]; brokenAt: number | undefined } {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const lines: string[] = [];
  for (let at = 0; at + 8 <= bytes.length;) {
    const [first, command, length, id] = [
      bytes[at]!,
      bytes[at + 1]!,
      view.getUint16(at + 2, true),
      view.getUint32(at + 4, true),
    ];
    const isVersion = version === undefined ? first === 1 || first === 2 : first === version;
    const isCommand = command <= (first === 1 ? NOP : UPD);
    const isLength = command === PSH || length === (command === UPD ? 8 : 0);
    if (!isVersion || !isCommand || !isLength) return { lines, brokenAt: at };
    if (version === undefined) lines.push(`version ${version = first}`);
    if (command === SYN) lines.push(`SYN ${id} at ${at}`);
    if (command === FIN) lines.push(`FIN ${id} at ${at}`);
    if (command === NOP) lines.push(`NOP ${id} at ${at}`);
    if (command === PSH) {
      lines.push(`PSH ${id} length ${length} at ${at}: ${bytes.subarray(at + 8, at + 8 + length).toHex()}`);
    }
    if (command === UPD && at + 16 <= bytes.length) {
      lines.push(`UPD ${id} consumed ${view.getUint32(at + 8, true)} window ${view.getUint32(at + 12, true)} at ${at}`);
    }
    at += 8 + length;
  }
  return { lines, brokenAt: undefined };
}

Deno.test("FrameDecoder: frames that were encoded and cut anywhere decode to the same frames", () => {
  check(fc.property(session, places, ({ version, frames }, places) => {
    const found: RawFrame[] = [];
    const sink = collector(found);
    const decoder = new FrameDecoder(version);
    for (const chunk of cut(concat(frames.map((frame) => encode(version, frame))), places)) decoder.push(chunk, sink);
    assertEquals(found, frames);
    assert(decoder.isBetweenFrames);
  }));
});

Deno.test("FrameDecoder: frames and error do not depend on where the bytes are cut", () => {
  check(fc.property(input, places, ({ bytes, version }, places) => {
    const whole = decode([bytes], version);
    const parts = decode(cut(bytes, places), version);
    assertEquals(parts.lines, whole.lines);
    assertEquals(parts.error?.message, whole.error?.message);
    assertEquals(parts.decoder.frames, whole.decoder.frames);
    if (whole.error !== undefined) return;
    const state = ({ decoder }: typeof whole) => [decoder.progress, decoder.isBetweenFrames, decoder.missing];
    assertEquals(state(parts), state(whole));
  }));
});

Deno.test("FrameDecoder: frames and error are those of a plain parser", () => {
  check(fc.property(input, ({ bytes, version }) => {
    const { lines, brokenAt } = plainly(bytes, version);
    const found = decode([bytes], version);
    assertEquals(found.error?.offset, brokenAt);
    assertEquals(found.lines, lines);
  }));
});

const isFrame = (line: string) => !line.startsWith("version");

Deno.test("FrameDecoder: any bytes decode to frames or a ProtocolError, and progress never decreases", () => {
  const anything = fc.oneof(
    input,
    fc.record({ version: fc.constant(undefined), bytes: fc.uint8Array({ maxLength: 200 }) }),
  );
  check(fc.property(anything, places, ({ bytes, version }, places) => {
    const decoder = new FrameDecoder(version);
    const lines: string[] = [];
    const sink = recorder(decoder, lines);
    let pushed = 0;
    let progress = 0;
    for (const chunk of cut(bytes, places)) {
      try {
        decoder.push(chunk, sink);
      } catch (error) {
        assertInstanceOf(error, ProtocolError);
        assert(error.offset >= progress && error.offset < pushed + chunk.length);
        return;
      }
      pushed += chunk.length;
      assert(decoder.progress >= progress && decoder.progress <= pushed, `progress ${decoder.progress}`);
      // Each byte counts, except those of an incomplete header.
      assert(pushed - decoder.progress < 8);
      if (decoder.isBetweenFrames) assertEquals(decoder.progress, pushed);
      progress = decoder.progress;
    }
    assert(decoder.frames - lines.filter(isFrame).length <= 1, "a frame was lost");
  }));
});

// Credit.

const mod32 = (value: bigint) => Number(BigInt.asUintN(32, value));
const smallest = (a: bigint, b: bigint) => a < b ? a : b;

const window = fc.oneof(
  fc.nat(10),
  fc.nat(300_000),
  fc.integer({ min: MAX_WINDOW - 3, max: MAX_WINDOW + 3 }),
  fc.nat(2 ** 32 - 1),
);
// The bytes sent before the test: none, or almost a multiple of 2^32.
const beginning = fc.oneof(
  fc.constant(0n),
  fc.tuple(fc.bigInt(1n, 3n), fc.oneof(fc.bigInt(0n, 5n), fc.bigInt(0n, 4_000_000n))).map(([n, d]) => (n << 32n) - d),
);
// A part of the possible amount, in thousandths.
const share = fc.oneof(fc.constant(0), fc.constant(1000), fc.nat(1000));

const part = (of: bigint, share: number) => of * BigInt(share) / 1000n;

const sendStep = fc.oneof(
  fc.record({ kind: fc.constant("spend" as const), share, window }),
  fc.record({ kind: fc.constantFrom("read", "decrease", "above sent"), share, window }),
);

Deno.test("SendWindow: credit equals a model with unbounded integers", () => {
  check(fc.property(beginning, fc.array(sendStep, { minLength: 1, maxLength: 60, size: "max" }), (beginning, steps) => {
    const credit = new SendWindow();
    let sent = 0n;
    let consumed = 0n;
    let window = BigInt(INITIAL_WINDOW);
    while (sent < beginning) {
      const count = smallest(beginning - sent, 1n << 30n);
      credit.spend(Number(count));
      consumed = sent += count;
      window = 1000n;
      credit.update(mod32(consumed), 1000);
    }
    for (const step of steps) {
      const left = consumed + window - sent;
      assertEquals(BigInt(credit.credit), left > 0n ? left : 0n);
      if (step.kind === "spend") {
        const count = part(BigInt(credit.credit), step.share);
        credit.spend(Number(count));
        sent += count;
        continue;
      }
      // A decrease by 2^31 or more counts as an increase; no peer reaches it by counting.
      const back = (1n << 31n) - 2n - (sent - consumed);
      if (step.kind === "decrease" && back < 0n) continue;
      const reported = step.kind === "read"
        ? consumed + part(sent - consumed, step.share)
        : step.kind === "decrease"
        ? consumed - 1n - part(back, step.share)
        : sent + 1n + part((1n << 31n) - 1n, step.share);
      const size = smallest(BigInt(step.window), BigInt(MAX_WINDOW));
      const change = credit.update(mod32(reported), step.window);
      if (step.kind === "read") {
        assertEquals(change, reported + size !== consumed + window ? "moved" : "unchanged");
        [consumed, window] = [reported, size];
      } else {
        assertEquals(change, step.kind === "decrease" ? "unchanged" : "invalid");
      }
    }
  }));
});

/** The receiving end of a stream, counted without wrapping. */
class Inbound {
  readonly window: ReceiveWindow;
  received = 0n;
  consumed = 0n;
  limit: bigint;
  isOpen = true;

  constructor(pool: WindowPool, beginning: bigint) {
    this.window = new ReceiveWindow(pool);
    this.limit = BigInt(this.window.advertise());
    while (this.consumed < beginning) {
      const count = smallest(beginning - this.consumed, 1n << 30n);
      this.arrive(count);
      this.read(count);
    }
  }

  get unread(): bigint {
    return this.received - this.consumed;
  }

  arrive(count: bigint): void {
    this.received += count;
    this.window.arrived(Number(count));
  }

  /** Reads `count` bytes; returns the window of the update if one was due. */
  read(count: bigint): number | undefined {
    this.consumed += count;
    const isDue = this.window.read(Number(count), Number(this.unread));
    assertEquals(this.window.consumed, mod32(this.consumed));
    if (!isDue) return undefined;
    assert(this.isOpen, "an update was due after close()");
    const advertised = this.window.advertise();
    const limit = this.consumed + BigInt(advertised);
    assert(limit >= this.limit, `the limit decreased from ${this.limit} to ${limit}`);
    this.limit = limit;
    return advertised;
  }

  close(): void {
    this.isOpen = false;
    this.window.close();
  }
}

const largest = fc.oneof(
  fc.integer({ min: 1, max: 10 }),
  fc.nat(400_000).map((size) => size + 1),
  fc.constant(8 << 20),
);
const receiveStep = fc.record({
  stream: fc.nat(3),
  kind: fc.constantFrom("arrive", "arrive", "read", "read", "lap", "lap", "time", "close"),
  share,
  time: fc.nat(40),
});

Deno.test("ReceiveWindow: limits never decrease, updates have at least the smallest window, growth stays within the pool", () => {
  check(
    fc.property(
      largest,
      fc.nat(4 << 20),
      fc.array(beginning, { minLength: 1, maxLength: 4 }),
      fc.array(receiveStep, { maxLength: 120, size: "max" }),
      (largest, room, beginnings, steps) => {
        withFakeTime((time) => {
          const pool = new WindowPool(largest, room);
          // No measurement makes a window smaller than the minimum, or than the largest window if that is less.
          const least = Math.min(MIN_WINDOW, largest);
          const streams = beginnings.map((beginning) => new Inbound(pool, beginning));
          for (const { stream: index, kind, share, time: elapsed } of steps) {
            const stream = streams[index % streams.length]!;
            if (kind === "time") time.now += elapsed;
            if (kind === "close") stream.close();
            if (kind === "arrive" && stream.isOpen) stream.arrive(part(stream.limit - stream.received, share));
            if (kind === "lap" && stream.isOpen) {
              // A round trip in which the peer uses its whole credit, and all bytes are read at once.
              time.now += elapsed;
              for (let left = stream.limit - stream.received, chunk = left / 8n + 1n; left > 0n; left -= chunk) {
                stream.arrive(smallest(left, chunk));
                stream.read(smallest(stream.unread, chunk));
              }
            }
            if (kind === "read" && stream.unread > 0n) {
              const advertised = stream.read(part(stream.unread - 1n, share) + 1n);
              assert(
                advertised === undefined || advertised >= least,
                "the window of an update is below the smallest window",
              );
              assert(
                advertised === undefined || advertised <= largest,
                "the window of an update is above the largest window",
              );
            }
            if (stream.isOpen) {
              // Credit beyond the bytes that were read.
              assert(
                (stream.limit - stream.consumed) * 2n >= BigInt(least),
                "less than half of the smallest window is left",
              );
            }
            const open = streams.filter(({ isOpen }) => isOpen).length;
            const credit = streams.reduce(
              (sum, { isOpen, limit, consumed }) => sum + (isOpen ? limit - consumed : 0n),
              0n,
            );
            const { granted } = pool;
            assert(granted >= credit, `granted ${granted}, credit ${credit}`);
            assert(granted >= open * least && granted <= open * pool.first + room, `granted ${granted}`);
          }
          for (const stream of streams) stream.close();
          assertEquals(
            [pool.granted, pool.resize(pool.first, pool.first + room + 1)],
            [0, pool.first + room],
            "the pool did not get all growth back",
          );
        });
      },
    ),
  );
});

const transferStep = fc.record({
  kind: fc.constantFrom("send", "deliver", "read", "update", "time"),
  share,
});

Deno.test("SendWindow and ReceiveWindow: a transfer always completes, also with windows of 1 byte", () => {
  const size = fc.oneof(fc.integer({ min: 1, max: 3 }), fc.integer({ min: 1, max: MAX_PAYLOAD_LENGTH }));
  check(
    fc.property(
      largest.chain((largest) =>
        fc.record({ largest: fc.constant(largest), total: fc.nat(Math.min(largest * 200, 20 << 20)) })
      ),
      fc.record({ beginning, room: fc.nat(4 << 20), frame: size, chunk: size }),
      fc.array(transferStep, { maxLength: 100, size: "max" }),
      ({ largest, total }, { beginning, room, frame, chunk }, steps) => {
        withFakeTime((time) => {
          const out = new SendWindow();
          const inbound = new Inbound(new WindowPool(largest, room), beginning);
          let sent = 0n;
          while (sent < beginning) {
            const count = smallest(beginning - sent, 1n << 30n);
            out.spend(Number(count));
            sent += count;
            out.update(mod32(sent), MAX_WINDOW);
          }
          // A new stream sends its window if that is below the peer's default; an old stream has sent it before.
          const updates: [consumed: number, window: number][] = [];
          if (beginning > 0n) out.update(mod32(sent), Number(inbound.limit - sent));
          else if (largest < INITIAL_WINDOW) updates.push([0, largest]);
          const end = sent + BigInt(total);
          // At most 2000 frames and reads, to bound the run.
          const most = BigInt(Math.max(frame, Math.ceil(total / 2000)));
          const piece = BigInt(Math.max(chunk, Math.ceil(total / 2000)));

          const act = {
            send() {
              const count = smallest(smallest(BigInt(out.credit), most), end - sent);
              out.spend(Number(count));
              sent += count;
              const granted = inbound.limit > BigInt(INITIAL_WINDOW) ? inbound.limit : BigInt(INITIAL_WINDOW);
              assert(sent <= granted, "more was sent than was granted");
              return count > 0n;
            },
            deliver(share = 1000) {
              const count = part(sent - inbound.received, share);
              inbound.arrive(count);
              return count > 0n;
            },
            read() {
              const count = smallest(inbound.unread, piece);
              const window = count > 0n ? inbound.read(count) : undefined;
              if (window !== undefined) updates.push([inbound.window.consumed, window]);
              return count > 0n;
            },
            update() {
              const update = updates.shift();
              if (update === undefined) return false;
              assert(out.update(...update) !== undefined, "more was read than was sent");
              return true;
            },
            time() {
              time.now += 7;
              return false;
            },
          };
          for (const { kind, share } of steps) act[kind](share);
          for (let isMoving = true; isMoving;) {
            isMoving = [act.send(), act.deliver(), act.read(), act.update()].includes(true);
            act.time();
          }
          assertEquals(inbound.consumed, end, "the transfer stopped before the end");
        });
      },
    ),
  );
});

// The table of streams.

Deno.test("Table has the entries of a Map after any additions and deletions", () => {
  check(fc.property(fc.array(fc.tuple(fc.boolean(), uint32), { maxLength: 200 }), (steps) => {
    interface Thing extends Entry<Thing> {}
    const table = new Table<Thing>();
    const model = new Map<number, Thing>();
    for (const [isAdded, id] of steps) {
      const known = model.get(id);
      if (isAdded && known === undefined) {
        const thing = { id, nextInBucket: undefined };
        table.add(thing);
        model.set(id, thing);
      } else if (!isAdded && known !== undefined) {
        assert(table.delete(known));
        assert(!table.delete(known));
        model.delete(id);
      }
      assertStrictEquals(table.get(id), model.get(id));
      assertEquals(table.size, model.size);
    }
    for (const [id, thing] of model) assertStrictEquals(table.get(id), thing);
    assertEquals(table.values().map(({ id }) => id), [...model.keys()].sort((a, b) => a - b));
  }));
});
