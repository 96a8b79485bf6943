/** The wire format of resumable connections: hellos, replies and records, in pieces of any size; and the replay buffer. */

import { assert, assertEquals, assertThrows } from "@std/assert";
import { concat } from "@std/bytes";
import fc from "fast-check";
import { ReplayBuffer } from "../_replay.ts";
import {
  ACCEPTED,
  DATA_HEADER_LENGTH,
  decodeHello,
  decodeReply,
  encodeAcknowledgement,
  encodeDataHeader,
  encodeHello,
  encodeReply,
  isSameToken,
  MAX_RECORD_BYTES,
  RecordDecoder,
  UNKNOWN,
} from "../_resume_frame.ts";
import { ProtocolError } from "../frame.ts";
import { MiB, pattern } from "./support.ts";

const TOKEN = Uint8Array.from({ length: 16 }, (_, n) => n + 1);

/** Collects what a decoder reports. */
function collector() {
  const events: (string | number)[] = [];
  return {
    events,
    acknowledged: (count: number) => void events.push(count),
    probed: () => void events.push("probe"),
    ended: () => void events.push("end"),
    closedByPeer: () => void events.push("close"),
  };
}

/** Encodes a data record. */
function data(bytes: Uint8Array): Uint8Array {
  const record = new Uint8Array(5 + bytes.length);
  encodeDataHeader(record, 0, bytes.length);
  record.set(bytes, 5);
  return record;
}

Deno.test("encodeHello() and encodeReply() return the bytes of docs/resume.md", () => {
  assertEquals(
    encodeHello({ token: TOKEN, received: 0x0102030405 }).toHex(),
    "d5726573756d6501" + "0102030405060708090a0b0c0d0e0f10" + "0504030201000000",
  );
  assertEquals(
    encodeReply(UNKNOWN, { token: new Uint8Array(16), received: 0 }).toHex(),
    "d5726573756d6501" + "02" + "00".repeat(24),
  );
  assertEquals(encodeAcknowledgement(2 ** 53 - 1).toHex(), "01" + "ffffffffffff1f00");
  assertEquals(data(Uint8Array.of(9, 8)).toHex(), "00" + "02000000" + "0908");
});

Deno.test("decodeHello() and decodeReply() return what was encoded", () => {
  fc.assert(fc.property(fc.uint8Array({ minLength: 16, maxLength: 16 }), fc.maxSafeNat(), (token, received) => {
    assertEquals(decodeHello(encodeHello({ token, received })), { token, received });
    assertEquals(decodeReply(encodeReply(ACCEPTED, { token, received })), { status: ACCEPTED, token, received });
  }));
});

Deno.test("decodeHello() throws for another magic or version, and decodeReply() for another status or count", () => {
  for (let at = 0; at < 8; at++) {
    const bytes = encodeHello({ token: TOKEN, received: 0 });
    bytes[at]! ^= 1;
    assertThrows(() => decodeHello(bytes), ProtocolError, `byte ${bytes[at]! ^ 1} of the magic`);
  }
  const status = encodeReply(ACCEPTED, { token: TOKEN, received: 0 });
  status[8] = 4;
  assertThrows(() => decodeReply(status), ProtocolError, "a status below 4");
  const count = encodeHello({ token: TOKEN, received: 0 });
  count[30] = 0x20;
  assertThrows(() => decodeHello(count), ProtocolError, "a count below 2^53");
});

Deno.test("isSameToken() compares every byte", () => {
  assertEquals(isSameToken(TOKEN, TOKEN.slice()), true);
  for (let at = 0; at < TOKEN.length; at++) {
    const other = TOKEN.slice();
    other[at]! ^= 128;
    assertEquals([isSameToken(TOKEN, other), isSameToken(other, TOKEN)], [false, false], `byte ${at}`);
  }
});

Deno.test("RecordDecoder.decode() finds the records in reads of any size, and moves the payload to the start", () => {
  const payloads = [pattern(1), pattern(70_000), pattern(13)];
  const wire = concat([
    data(payloads[0]!),
    Uint8Array.of(2, 3),
    data(payloads[1]!),
    encodeAcknowledgement(77),
    data(payloads[2]!),
    Uint8Array.of(4, 5),
  ]);
  for (const size of [1, 2, 5, 9, 1000, 65_536, wire.length]) {
    const sink = collector();
    const decoder = new RecordDecoder(sink);
    const received: Uint8Array[] = [];
    for (let at = 0; at < wire.length; at += size) {
      const p = wire.slice(at, at + size);
      received.push(p.slice(0, decoder.decode(p, p.length)));
    }
    assertEquals(concat(received), concat(payloads));
    assertEquals(sink.events, ["probe", 77, "end", "close"]);
  }
});

Deno.test("RecordDecoder.decode() throws for an unknown type and for a length out of bounds", () => {
  for (
    const [bytes, message] of [
      [Uint8Array.of(6), "a record of type 0 to 5"],
      [Uint8Array.of(0, 0, 0, 0, 0), "a record of 1 to"],
      [Uint8Array.of(0, ...lengthOf(MAX_RECORD_BYTES + 1)), "a record of 1 to"],
      [Uint8Array.of(0, 255, 255, 255, 255), "4294967295"],
    ] as const
  ) {
    assertThrows(() => new RecordDecoder(collector()).decode(bytes, bytes.length), ProtocolError, message);
  }
  const most = Uint8Array.of(0, ...lengthOf(MAX_RECORD_BYTES));
  assertEquals(new RecordDecoder(collector()).decode(most, 5), 0);
});

function lengthOf(value: number): Uint8Array {
  return new Uint8Array(Uint32Array.of(value).buffer);
}

Deno.test("ReplayBuffer returns every byte after the count of a rewind, whatever was acknowledged before", () => {
  const all = pattern(2_000_000, 7);
  const steps = fc.array(
    fc.oneof(
      fc.record({ step: fc.constant("append" as const), size: fc.integer({ min: 1, max: 60_000 }) }),
      fc.record({ step: fc.constant("adopt" as const), size: fc.integer({ min: 1, max: 60_000 }) }),
      fc.record({ step: fc.constant("send" as const), size: fc.integer({ min: 1, max: 3 }) }),
      fc.record({ step: fc.constant("acknowledge" as const), size: fc.nat(100) }),
      fc.record({ step: fc.constant("rewind" as const), size: fc.nat(100) }),
    ),
    { maxLength: 30 },
  );
  fc.assert(
    fc.property(steps, fc.boolean(), (steps, isEnded) => {
      const replay = new ReplayBuffer(100_000);
      let sink = collector();
      let decoder = new RecordDecoder(sink);
      // What the peer has received, and its count.
      const received: Uint8Array[] = [];
      let count = 0;
      const send = () => {
        const wire = replay.next()?.slice();
        if (wire === undefined) return false;
        const length = decoder.decode(wire, wire.length);
        received.push(wire.slice(0, length));
        count += length;
        return true;
      };
      let appended = 0;
      for (const { step, size } of steps) {
        if (step === "append") appended += replay.append(all.subarray(appended, appended + size));
        else if (step === "adopt") appended += adopt(replay, all.subarray(appended, appended + size));
        else if (step === "send") { for (let n = 0; n < size; n++) send(); }
        else {
          // The peer has received up to `count`, and says so, now or a part of it.
          const at = replay.acknowledged + Math.floor((count - replay.acknowledged) * size / 100);
          if (step === "acknowledge") assert(replay.acknowledge(at));
          else {
            // The carrier has lost what came after `at`.
            const kept = concat(received).slice(0, at);
            received.length = 0;
            received.push(kept);
            count = at;
            sink = collector();
            decoder = new RecordDecoder(sink);
            assert(replay.rewind(at));
          }
        }
      }
      if (isEnded) replay.appendEnd();
      while (send());
      assertEquals(concat(received), all.slice(0, appended));
      assertEquals(sink.events, isEnded ? ["end"] : []);
      assertEquals(replay.appended, appended + (isEnded ? 1 : 0));
      assert(replay.acknowledge(replay.appended));
      assertEquals(replay.room, 100_000);
    }),
    { numRuns: 300 },
  );
});

/** Hands memory over to the buffer, if it takes it. Returns the number of bytes of its payload. */
function adopt(replay: ReplayBuffer, payload: Uint8Array): number {
  const end = DATA_HEADER_LENGTH + payload.length;
  const memory = new Uint8Array(end + 100);
  memory.set(payload, DATA_HEADER_LENGTH);
  const isAdopted = replay.adopt(memory, end);
  // What was refused still belongs to the caller.
  if (!isAdopted) memory.fill(0);
  return isAdopted ? payload.length : 0;
}

Deno.test("ReplayBuffer.adopt() takes no more than the capacity, and canAdopt() nothing larger or mostly empty", () => {
  const replay = new ReplayBuffer(100_000);
  assertEquals([adopt(replay, pattern(60_000)), adopt(replay, pattern(60_000)), replay.room], [60_000, 0, 40_000]);
  const adopted = replay.next()!;
  assert(replay.acknowledge(20_000));
  assertEquals(adopt(replay, pattern(60_000)), 60_000);
  assertEquals(replay.room, 0);
  // Memory of an acknowledged page is used again, and never that of a page in use.
  const size = adopted.buffer.byteLength;
  assert(replay.takeMemory(size).buffer !== adopted.buffer);
  assert(replay.acknowledge(60_000));
  assert(replay.takeMemory(size).buffer === adopted.buffer);
  assert(replay.takeMemory(size).buffer !== adopted.buffer);
  const memory = new Uint8Array(200_000);
  assertEquals([99_999, 100_005, 100_006].map((end) => replay.canAdopt(memory, end)), [false, true, false]);
});

Deno.test("ReplayBuffer keeps memory for reuse up to its capacity and 2 MiB", () => {
  const replay = new ReplayBuffer(MiB);
  const used = new Set<ArrayBufferLike>();
  for (let n = 0; n < 8; n++) {
    assertEquals(adopt(replay, pattern(MiB / 2)), MiB / 2);
    used.add(replay.next()!.buffer);
    assert(replay.acknowledge(replay.appended));
  }
  const [first] = used;
  const reused = Array.from({ length: 8 }, () => used.has(replay.takeMemory(first!.byteLength).buffer));
  // The headers make a sixth one too large.
  assertEquals(reused, [true, true, true, true, true, false, false, false]);
});

Deno.test("ReplayBuffer keeps no page of a connection with little traffic, and after trim() no other that was not used since", () => {
  const replay = new ReplayBuffer(MiB);
  const write = (length: number) => {
    replay.append(pattern(length));
    const page = replay.next()!.buffer;
    assert(replay.acknowledge(replay.appended));
    return page;
  };
  const isKept = (page: ArrayBufferLike) => replay.takeMemory(page.byteLength).buffer === page;
  assertEquals([isKept(write(100)), isKept(write(10_000))], [false, true]);
  const page = write(10_000);
  replay.trim();
  assert(page.byteLength > 0, "it was used since the last call");
  replay.trim();
  assertEquals(page.byteLength, 0);
});

Deno.test("ReplayBuffer refuses counts that go back in a rewind or beyond what was sent", () => {
  const replay = new ReplayBuffer(100_000);
  replay.append(pattern(1000));
  assertEquals(replay.acknowledge(1), false, "nothing was sent");
  replay.next();
  assertEquals(replay.acknowledge(1001), false);
  assertEquals(replay.acknowledge(500), true);
  assertEquals(replay.acknowledge(499), true, "a late acknowledgement has no effect");
  assertEquals([replay.rewind(499), replay.rewind(1001), replay.rewind(500)], [false, false, true]);
});

Deno.test("ReplayBuffer.rewind() finds the record although the carrier has changed the bytes", () => {
  const replay = new ReplayBuffer(100_000);
  for (let n = 0; n < 3; n++) replay.append(pattern(100));
  replay.next()!.fill(0);
  assert(replay.rewind(150));
  const rest = replay.next()!;
  assertEquals([rest.length, rest.subarray(0, DATA_HEADER_LENGTH).toHex()], [5 + 50 + 5 + 100, "0032000000"]);
});

Deno.test("ReplayBuffer.append() appends up to the capacity, and more after an acknowledgement", () => {
  const replay = new ReplayBuffer(100_000);
  let appended = 0;
  for (let count; (count = replay.append(pattern(60_000))) > 0;) appended += count;
  assertEquals([appended, replay.room], [100_000, 0]);
  while (replay.next());
  assert(replay.acknowledge(30_000));
  assertEquals(replay.append(pattern(60_000)), 30_000);
});
