/**
 * The wire: the encoding of headers, the checks of the decoder, and its independence of how the bytes were cut.
 *
 * @module
 */
import { assert, assertEquals, assertInstanceOf, assertMatch, assertThrows } from "@std/assert";
import { concat } from "@std/bytes";
import {
  type Command,
  encodeHeader,
  encodeUpdate,
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
import { chunkings, decode, oneByOne, recorder } from "./decode_helpers.ts";
import { frame, pattern } from "./support.ts";

const hex = (text: string) => Uint8Array.fromHex(text.replaceAll(" ", ""));

// Headers as Go's smux writes them.
const HEADERS: [version: Version, command: Command, length: number, id: number, header: string, line: string][] = [
  [1, SYN, 0, 3, "01 00 0000 03000000", "SYN 3"],
  [1, FIN, 0, 3, "01 01 0000 03000000", "FIN 3"],
  [1, PSH, 5, 3, "01 02 0500 03000000", "PSH 3 length 5"],
  [1, NOP, 0, 0, "01 03 0000 00000000", "NOP 0"],
  [1, SYN, 0, 0xfffffffe, "01 00 0000 feffffff", "SYN 4294967294"],
  [1, PSH, 32768, 3, "01 02 0080 03000000", "PSH 3 length 32768"],
  [1, PSH, 65535, 3, "01 02 ffff 03000000", "PSH 3 length 65535"],
  [2, SYN, 0, 5, "02 00 0000 05000000", "SYN 5"],
  [2, FIN, 0, 0x01020304, "02 01 0000 04030201", "FIN 16909060"],
  [2, PSH, 258, 0xffffffff, "02 02 0201 ffffffff", "PSH 4294967295 length 258"],
  [2, NOP, 0, 77, "02 03 0000 4d000000", "NOP 77"],
  [2, UPD, 8, 3, "02 04 0800 03000000", ""],
];

Deno.test("a header consists of version, command, length and id, little-endian", () => {
  for (const [version, command, length, id, header] of HEADERS) {
    const bytes = new Uint8Array(8);
    assertEquals(encodeHeader(bytes, 0, version, command, length, id), 8);
    assertEquals(bytes.toHex(), header.replaceAll(" ", ""));
  }
});

Deno.test("FrameDecoder decodes an encoded header", () => {
  for (const [version, , , , header, line] of HEADERS) {
    const colon = line.startsWith("PSH") ? ": " : "";
    assertEquals(decode([hex(header)], version).lines, line === "" ? [] : [`${line} at 0${colon}`]);
  }
});

Deno.test("a UPD consists of a header and two 32-bit numbers", () => {
  const updates: [id: number, consumed: number, window: number, bytes: string][] = [
    [3, 5, 65536, "02 04 0800 03000000 05000000 00000100"],
    [3, 196605, 65536, "02 04 0800 03000000 fdff0200 00000100"],
    [3, 4294967288, 32, "02 04 0800 03000000 f8ffffff 20000000"],
    [0xfffffffe, 0, 4294967295, "02 04 0800 feffffff 00000000 ffffffff"],
  ];
  for (const [id, consumed, window, expected] of updates) {
    const bytes = new Uint8Array(16);
    assertEquals(encodeUpdate(bytes, 0, id, consumed, window), 16);
    assertEquals(bytes.toHex(), expected.replaceAll(" ", ""));
    assertEquals(decode([bytes], 2).lines, [`UPD ${id} consumed ${consumed} window ${window} at 0`]);
  }
});

Deno.test("encodeHeader() and encodeUpdate() write at the offset, return the end and change no other byte", () => {
  const bytes = new Uint8Array(30).fill(0xaa);
  assertEquals(encodeHeader(bytes, 3, 1, PSH, 1, 7), 11);
  assertEquals(bytes.toHex(), "aaaaaa" + "0102010007000000" + "aa".repeat(19));
  assertEquals(encodeUpdate(bytes, 12, 7, 1, 2), 28);
  assertEquals(bytes.subarray(11).toHex(), "aa" + "02040800070000000100000002000000" + "aaaa");
});

// The frames before the invalid one, with payloads that look like headers.
const BEFORE: Record<Version, Uint8Array> = {
  1: concat([frame(1, SYN, 3), frame(1, PSH, 3, hex("01ff000003000000")), frame(1, PSH, 3), frame(1, FIN, 3)]),
  2: concat([frame(2, SYN, 3), frame(2, PSH, 3, hex("0102")), hex("02040800 03000000 02040c00 ffffffff")]),
};

interface Broken {
  version: Version;
  header: string;
  expected: string;
  received: string;
}

const RULES: Record<string, Broken[]> = {
  "a version other than the session's": [
    { version: 1, header: "02 03 0000 00000000", expected: "version 1", received: "2" },
    { version: 2, header: "01 03 0000 00000000", expected: "version 2", received: "1" },
    { version: 1, header: "00 03 0000 00000000", expected: "version 1", received: "0" },
    { version: 2, header: "03 00 0000 03000000", expected: "version 2", received: "3" },
    { version: 2, header: "ff ff ffff ffffffff", expected: "version 2", received: "255" },
  ],
  "an unknown command": [
    { version: 1, header: "01 05 0000 03000000", expected: "a command from 0 to 3 in version 1", received: "5" },
    { version: 1, header: "01 ff 0000 03000000", expected: "a command from 0 to 3 in version 1", received: "255" },
    { version: 2, header: "02 05 0000 03000000", expected: "a command from 0 to 4", received: "5" },
    { version: 2, header: "02 80 0800 03000000", expected: "a command from 0 to 4", received: "128" },
  ],
  "a UPD in version 1": [
    { version: 1, header: "01 04 0800 03000000", expected: "a command from 0 to 3 in version 1", received: "4" },
    { version: 1, header: "01 04 0000 03000000", expected: "a command from 0 to 3 in version 1", received: "4" },
  ],
  "a UPD whose length is not 8": [0, 4, 7, 9, 12, 0x0108, 0x0800, 65535].map((length) => ({
    version: 2,
    header: frame(2, UPD, 3).fill(length, 2, 3).fill(length >>> 8, 3, 4).toHex(),
    expected: "length 8 on UPD",
    received: `length ${length}`,
  })),
  "a SYN, FIN or NOP whose length is not 0": ([1, 2] as const).flatMap((version) =>
    ([[SYN, "SYN"], [FIN, "FIN"], [NOP, "NOP"]] as const).flatMap(([command, name]) =>
      [1, 4, 8, 256, 65535].map((length) => ({
        version,
        header: frame(version, command, 7).fill(length, 2, 3).fill(length >>> 8, 3, 4).toHex(),
        expected: `length 0 on ${name}`,
        received: `length ${length}`,
      }))
    )
  ),
};

for (const [rule, list] of Object.entries(RULES)) {
  Deno.test(`FrameDecoder: ${rule} is a ProtocolError with offset, expected and received value`, () => {
    for (const { version, header, expected, received } of list) {
      const before = BEFORE[version];
      const whole = decode([before], version);
      assertEquals(whole.error, undefined);
      // Bytes after the header must have no effect.
      const bytes = concat([before, hex(header), hex("01000000 03000000 09")]);
      for (const chunks of chunkings(bytes)) {
        const { lines, error, decoder } = decode(chunks, version);
        assertInstanceOf(error, ProtocolError);
        assertEquals([error.offset, error.expected, error.received], [before.length, expected, received]);
        assertEquals(
          error.message,
          `Not valid smux at byte ${before.length}: expected ${expected}, received ${received}`,
        );
        assertEquals(lines, whole.lines, "a part of the invalid frame was passed to the sink");
        assertEquals(decoder.frames, whole.decoder.frames);
      }
    }
  });
}

Deno.test("FrameDecoder: a header is checked once it is complete, without its payload", () => {
  for (const { version, header } of Object.values(RULES).flat()) {
    const bytes = hex(header);
    assertEquals(decode(oneByOne(bytes.subarray(0, 7)), version).error, undefined);
    assertInstanceOf(decode(oneByOne(bytes), version).error, ProtocolError);
  }
});

Deno.test("FrameDecoder: the error names the first wrong field: version, then command, then length", () => {
  assertEquals(decode([hex("02 05 0100 03000000")], 1).error?.expected, "version 1");
  assertEquals(decode([hex("01 05 0100 03000000")], 1).error?.expected, "a command from 0 to 3 in version 1");
  assertEquals(decode([hex("01 04 0900 03000000")], 1).error?.expected, "a command from 0 to 3 in version 1");
});

Deno.test("FrameDecoder: bytes that are not smux are rejected at the first byte", () => {
  const { error, lines, decoder } = decode([new TextEncoder().encode("GET / HTTP/1.1\r\n")]);
  assertEquals(error?.message, "Not valid smux at byte 0: expected version 1 or 2, received 71");
  assertEquals([lines, decoder.version, decoder.frames], [[], undefined, 0]);
});

Deno.test("FrameDecoder: a first frame of an unknown version is a ProtocolError", () => {
  for (const version of [0, 3, 4, 128, 255]) {
    for (const chunks of chunkings(Uint8Array.of(version, NOP, 0, 0, 0, 0, 0, 0))) {
      const { error, lines, decoder } = decode(chunks);
      assertEquals(error?.message, `Not valid smux at byte 0: expected version 1 or 2, received ${version}`);
      assertEquals([lines, decoder.version, decoder.frames], [[], undefined, 0]);
    }
  }
});

Deno.test("ProtocolError has its own name and an optional cause", () => {
  const cause = new Error("why");
  const error = new ProtocolError(1234, "one thing", "another", { cause });
  assertInstanceOf(error, Error);
  assertEquals([error.name, error.cause], ["ProtocolError", cause]);
  assertEquals(error.message, "Not valid smux at byte 1234: expected one thing, received another");
  assertEquals("cause" in new ProtocolError(0, "", ""), false);
});

Deno.test("FrameDecoder: without a version the first frame fixes it", () => {
  for (const version of [1, 2] as const) {
    const other = version === 1 ? 2 : 1;
    const bytes = concat([frame(version, NOP, 0), frame(version, SYN, 3), frame(other, FIN, 3)]);
    for (const chunks of chunkings(bytes)) {
      const { lines, error, decoder } = decode(chunks);
      assertEquals(lines, [`version ${version}`, "NOP 0 at 0", "SYN 3 at 8"]);
      assertEquals(decoder.version, version);
      assertEquals(error?.message, `Not valid smux at byte 16: expected version ${version}, received ${other}`);
    }
  }
});

Deno.test("FrameDecoder: the version is undefined until the first header is complete", () => {
  const { decoder, lines } = decode(oneByOne(frame(2, SYN, 3).subarray(0, 7)));
  assertEquals([decoder.version, lines], [undefined, []]);
  assertEquals(new FrameDecoder(2).version, 2);
});

Deno.test("FrameDecoder: a version passed to the constructor is not reported to the sink", () => {
  assertEquals(decode([frame(2, NOP, 0)], 2).lines, ["NOP 0 at 0"]);
});

Deno.test("FrameDecoder: an invalid first frame does not fix the version", () => {
  for (const header of ["01 05 0000 03000000", "01 04 0800 03000000", "02 00 0400 03000000", "02 04 0700 03000000"]) {
    for (const chunks of chunkings(hex(header))) {
      const { lines, error, decoder } = decode(chunks);
      assertInstanceOf(error, ProtocolError);
      assertEquals([lines, decoder.version], [[], undefined]);
    }
  }
});

Deno.test("FrameDecoder: a PSH without data reports its header only, and the next frame is decoded", () => {
  const bytes = concat([frame(1, PSH, 3), frame(1, PSH, 3, hex("61")), frame(1, PSH, 9), frame(1, FIN, 3)]);
  for (const chunks of chunkings(bytes)) {
    const { lines, error, decoder } = decode(chunks, 1);
    assertEquals(error, undefined);
    assertEquals(lines, ["PSH 3 length 0 at 0: ", "PSH 3 length 1 at 8: 61", "PSH 9 length 0 at 17: ", "FIN 3 at 25"]);
    assert(decoder.isBetweenFrames);
  }
});

Deno.test("FrameDecoder: a PSH of 65535 bytes is decoded from pieces of any size", () => {
  const data = pattern(MAX_PAYLOAD_LENGTH);
  const bytes = concat([frame(2, PSH, 3, data), frame(2, FIN, 3)]);
  for (const size of [bytes.length, 8, 9, 1000, 4096, 65535, 65542, 65543, 65544]) {
    const chunks: Uint8Array[] = [];
    for (let at = 0; at < bytes.length; at += size) chunks.push(bytes.subarray(at, at + size));
    const { lines, error } = decode(chunks, 2);
    assertEquals(error, undefined);
    assert(lines[0] === `PSH 3 length 65535 at 0: ${data.toHex()}`, `in pieces of ${size}`);
    assertEquals(lines.slice(1), ["FIN 3 at 65543"]);
  }
});

Deno.test("FrameDecoder: data is a view of the input, not a copy", () => {
  const bytes = concat([frame(2, PSH, 3, hex("616263")), frame(2, PSH, 5, hex("64"))]);
  const seen: [boolean, number, number][] = [];
  const decoder = new FrameDecoder(2);
  decoder.push(bytes, {
    ...recorder(decoder, []),
    data: (given, start, end) => void seen.push([given === bytes, start, end]),
  });
  assertEquals(seen, [[true, 8, 11], [true, 19, 20]]);
});

Deno.test("FrameDecoder: progress counts each payload byte, and a header once it is complete", () => {
  const bytes = concat([frame(2, SYN, 3), frame(2, PSH, 3, hex("616263")), hex("02040800 03000000 01000000 02000000")]);
  const decoder = new FrameDecoder(2);
  const seen = [decoder.progress];
  for (const byte of oneByOne(bytes)) {
    decoder.push(byte, recorder(decoder, []));
    seen.push(decoder.progress);
  }
  const header = (start: number) => [...Array<number>(7).fill(start), start + 8];
  assertEquals(seen, [
    ...[0, ...header(0)],
    ...[...header(8), 17, 18, 19],
    ...[...header(19), 28, 29, 30, 31, 32, 33, 34, 35],
  ]);
});

Deno.test("FrameDecoder: missing names the part of the current frame that has not arrived", () => {
  const bytes = concat([frame(2, PSH, 3, hex("6162636465")), hex("02040800 03000000 01000000 02000000")]);
  const decoder = new FrameDecoder(2);
  const seen: (string | undefined)[] = [];
  for (const byte of oneByOne(bytes)) {
    decoder.push(byte, recorder(decoder, []));
    seen.push(decoder.isBetweenFrames ? undefined : decoder.missing);
  }
  const missing = [...seen.entries()].map(([at, text]) => {
    if (text !== undefined) assertMatch(text, /^\d+ more bytes? of (a header|PSH payload|UPD payload)$/);
    return text === undefined ? `${at + 1}: nothing` : `${at + 1}: ${text.replace("bytes", "byte")}`;
  });
  const countdown = (from: number, most: number, what: string) =>
    Array.from({ length: most }, (_, at) => `${from + at}: ${most - at} more byte of ${what}`);
  assertEquals(missing, [
    ...countdown(1, 7, "a header"),
    ...countdown(8, 5, "PSH payload"),
    "13: nothing",
    ...countdown(14, 7, "a header"),
    ...countdown(21, 8, "UPD payload"),
    "29: nothing",
  ]);
});

Deno.test("FrameDecoder: frameOffset is the start of the last frame, complete or not", () => {
  const bytes = concat([frame(2, SYN, 3), frame(2, PSH, 3, hex("616263")), hex("02040800 03000000 01000000 02000000")]);
  const decoder = new FrameDecoder(2);
  const seen: number[] = [];
  for (const byte of oneByOne(bytes)) {
    decoder.push(byte, recorder(decoder, []));
    seen.push(decoder.frameOffset);
  }
  const of = (offset: number, length: number) => Array<number>(length).fill(offset);
  assertEquals(seen, [...of(0, 8), ...of(8, 11), ...of(19, 16)]);
  // The same with pieces longer than a header.
  for (let at = 0; at < bytes.length; at++) {
    const { decoder } = decode([bytes.subarray(0, at + 1)], 2);
    assertEquals(decoder.frameOffset, seen[at]);
  }
});

Deno.test("FrameDecoder: a new decoder is between frames, with all counters 0", () => {
  const decoder = new FrameDecoder();
  assertEquals([decoder.isBetweenFrames, decoder.frames, decoder.progress], [true, 0, 0]);
  decoder.push(new Uint8Array(0), recorder(decoder, []));
  assertEquals([decoder.isBetweenFrames, decoder.frames, decoder.progress], [true, 0, 0]);
});

Deno.test("FrameDecoder: frames counts each complete header, also while its payload is incomplete", () => {
  const bytes = concat([frame(1, SYN, 3), frame(1, PSH, 3, hex("61")), frame(1, PSH, 3), frame(1, NOP, 0)]);
  const decoder = new FrameDecoder(1);
  const completedAt: number[] = [];
  for (const [at, byte] of oneByOne(bytes).entries()) {
    decoder.push(byte, recorder(decoder, []));
    if (decoder.frames > completedAt.length) completedAt.push(at + 1);
  }
  assertEquals(completedAt, [8, 16, 25, 33]);
});

Deno.test("FrameDecoder: an error of the sink passes through, and frameOffset is its frame", () => {
  const decoder = new FrameDecoder(1);
  const sink = recorder(decoder, []);
  sink.fin = (id) => {
    throw new RangeError(`stream ${id} at ${decoder.frameOffset}`);
  };
  const bytes = concat([frame(1, PSH, 3, hex("616263")), frame(1, FIN, 3)]);
  assertThrows(() => decoder.push(bytes, sink), RangeError, "stream 3 at 11");
});

Deno.test("FrameDecoder: offsets count beyond 2^32", () => {
  const decoder = new FrameDecoder(1);
  let bytes = 0;
  const sink = {
    ...recorder(decoder, []),
    psh() {},
    data: (_: Uint8Array, start: number, end: number) => {
      bytes += end - start;
    },
  };
  const one = frame(1, PSH, 3, new Uint8Array(MAX_PAYLOAD_LENGTH));
  const count = Math.ceil(2 ** 32 / one.length) + 1;
  for (let sent = 0; sent < count; sent++) decoder.push(one, sink);
  const lines: string[] = [];
  decoder.push(frame(1, FIN, 3), recorder(decoder, lines));
  assertEquals(lines, [`FIN 3 at ${count * one.length}`]);
  assertEquals([decoder.progress, decoder.frames, bytes], [
    count * one.length + 8,
    count + 1,
    count * MAX_PAYLOAD_LENGTH,
  ]);
});

Deno.test("FrameDecoder decodes the same frames for every way of cutting the bytes", () => {
  const bytes = concat([BEFORE[2], frame(2, NOP, 9), frame(2, PSH, 5, pattern(20)), frame(2, FIN, 5)]);
  const expected = [
    "version 2",
    "SYN 3 at 0",
    "PSH 3 length 2 at 8: 0102",
    `UPD 3 consumed ${0x000c0402} window ${0xffffffff} at 18`,
    "NOP 9 at 34",
    `PSH 5 length 20 at 42: ${pattern(20).toHex()}`,
    "FIN 5 at 70",
  ];
  for (const chunks of chunkings(bytes)) assertEquals(decode(chunks).lines, expected);
  // Two chunkings at once, so that a header or payload is cut into three pieces.
  for (let first = 0; first <= bytes.length; first++) {
    for (let second = first; second <= bytes.length; second++) {
      const chunks = [bytes.subarray(0, first), bytes.subarray(first, second), bytes.subarray(second)];
      assertEquals(decode(chunks).lines, expected);
    }
  }
});
