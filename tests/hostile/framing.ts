/**
 * Attacks on framing, A1 to A10: invalid headers, incomplete frames, and frames split at any position.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import { concat } from "@std/bytes";
import {
  FIN,
  HEADER_LENGTH,
  MAX_PAYLOAD_LENGTH,
  NOP,
  PSH,
  SYN,
  UPD,
  UPDATE_LENGTH,
  type Version,
} from "../../frame.ts";
import { pattern } from "../support.ts";
import { type AttackRun, type Case, TIMEOUT } from "./attack_run.ts";

/** Encodes a header without validating its fields. */
function header(version: number, command: number, length: number, id: number): Uint8Array {
  const bytes = new Uint8Array(HEADER_LENGTH);
  const view = new DataView(bytes.buffer);
  bytes[0] = version;
  bytes[1] = command;
  view.setUint16(2, length, true);
  view.setUint32(4, id, true);
  return bytes;
}

/** An attack that must end the session with a `ProtocolError`, and must not open a stream. */
function fatal(
  id: string,
  name: string,
  attack: string,
  make: (run: AttackRun) => Uint8Array,
  versions?: Version[],
): Case {
  return {
    id,
    name,
    attack,
    expected: "a ProtocolError, closed within 100 ms, no stream accepted; other sessions continue",
    ...(versions === undefined ? {} : { versions }),
    async run(run) {
      const attacker = await run.attack();
      // The SYN after the invalid bytes must not be decoded.
      await attacker.bytes(make(run), attacker.frame(SYN, run.id(9)));
      await run.closes(attacker, "ProtocolError");
      const { last } = await run.victim.state();
      assertEquals(last!.accepted, 1);
    },
  };
}

const SPLIT = 5;

/** The cases. */
export const framing: readonly Case[] = [
  fatal("A1", "bad-version", "a header of version 0", () => header(0, NOP, 0, 0)),
  fatal(
    "A1",
    "other-version",
    "a header of the other version",
    ({ version }) => header(3 - version, NOP, 0, 0),
  ),
  fatal("A1", "bad-version-255", "a header of version 255", () => header(255, NOP, 0, 0)),
  {
    id: "A1",
    name: "bad-first-byte",
    attack: "version 0 in the first byte of the connection",
    expected: "a ProtocolError, closed within 100 ms",
    async run(run) {
      const attacker = await run.dial();
      await attacker.bytes(header(0, NOP, 0, 0));
      await run.closes(attacker, "ProtocolError");
    },
  },
  fatal(
    "A2",
    "unknown-cmd-5",
    "command 5, and a length of 65 535 without the payload",
    (run) => header(run.version, 5, MAX_PAYLOAD_LENGTH, run.id(0)),
  ),
  fatal("A2", "unknown-cmd-255", "command 255", ({ version }) => header(version, 255, 0, 0)),
  fatal("A3", "upd-in-v1", "a UPD in version 1", (run) => header(1, UPD, UPDATE_LENGTH, run.id(0)), [1]),
  fatal(
    "A4",
    "syn-payload",
    "a SYN with 5 bytes of data",
    (run) => concat([header(run.version, SYN, 5, run.id(1)), pattern(5)]),
  ),
  fatal(
    "A4",
    "fin-payload",
    "a FIN with 5 bytes of data",
    (run) => concat([header(run.version, FIN, 5, run.id(0)), pattern(5)]),
  ),
  fatal(
    "A4",
    "nop-payload",
    "a NOP with 65 535 bytes of data",
    (run) => concat([header(run.version, NOP, MAX_PAYLOAD_LENGTH, 0), pattern(MAX_PAYLOAD_LENGTH)]),
  ),
  ...[0, 4, 12].map((length) =>
    fatal(
      "A5",
      `upd-len-${length}`,
      `a UPD of ${length} bytes`,
      (run) => concat([header(2, UPD, length, run.id(0)), new Uint8Array(length)]),
      [2],
    )
  ),
  {
    id: "A6",
    name: "withhold-payload",
    attack: "a PSH header with length 65 535, 10 bytes of payload, then silence",
    expected: "closed after the timeout and within twice the timeout; other sessions echo at once",
    timed: true,
    async run(run) {
      const attacker = await run.attack();
      await attacker.bytes(header(run.version, PSH, MAX_PAYLOAD_LENGTH, run.id(0)), pattern(10));
      await run.taken(attacker);
      await run.timesOut(attacker);
    },
  },
  {
    id: "A7",
    name: "trunc-header",
    attack: "1 to 7 bytes of a header, then the end of the connection",
    expected: "a ProtocolError; every call settles",
    async run(run) {
      for (let length = 1; length < HEADER_LENGTH; length++) {
        const attacker = await run.attack();
        await attacker.bytes(attacker.frame(NOP, 0).subarray(0, length));
        await attacker.end();
        await run.closes(attacker, "ProtocolError");
      }
    },
  },
  {
    id: "A7",
    name: "trunc-payload",
    attack: "half a payload, then the end of the connection",
    expected: "a ProtocolError; every call settles",
    async run(run) {
      const attacker = await run.attack();
      await attacker.bytes(attacker.frame(PSH, run.id(0), pattern(1000)).subarray(0, 500));
      await attacker.end();
      await run.closes(attacker, "ProtocolError");
    },
  },
  {
    id: "A7",
    name: "rst-abort",
    attack: "a reset with streams open, 200 times",
    expected: "every session ends, every call settles, no resource leaks",
    async run(run) {
      for (let n = 0; n < run.count(5, 200); n++) {
        const attacker = await run.dial();
        attacker.hold();
        const data = pattern(1000);
        await attacker.bytes(...run.opening(attacker, run.id(0), data), ...run.opening(attacker, run.id(1), data));
        await run.reached(({ last }) => last?.accepted === 2 && last.bytesSent >= 2000);
        // Received but unread bytes make the kernel reset the connection.
        attacker.close();
        await run.over();
      }
    },
  },
  {
    id: "A8",
    name: "byte-at-a-time",
    attack: "a stream of 64 bytes, each byte of its frames in a write of its own",
    expected: "an exact echo",
    async run(run) {
      const attacker = await run.attack();
      const data = pattern(64);
      const all = concat([...run.opening(attacker, run.id(1), data), attacker.frame(FIN, run.id(1))]);
      const heard = attacker.heard(run.id(1), true);
      for (let at = 0; at < all.length; at++) {
        await attacker.bytes(all.subarray(at, at + 1));
        await run.taken(attacker);
      }
      await attacker.echoed(heard, data);
    },
  },
  {
    id: "A8",
    name: "coalesced",
    attack: "1000 frames in one write",
    expected: "an exact echo",
    async run(run) {
      const attacker = await run.attack();
      const data = pattern(16 * 998);
      const heard = attacker.heard(run.id(1), true);
      const pieces = Array.from(
        { length: 998 },
        (_, n) => attacker.frame(PSH, run.id(1), data.subarray(n * 16, n * 16 + 16)),
      );
      await attacker.bytes(attacker.frame(SYN, run.id(1)), ...pieces, attacker.frame(FIN, run.id(1)));
      await attacker.echoed(heard, data);
    },
  },
  {
    id: "A8",
    name: "all-splits",
    attack: "SYN, PSH and FIN split in two at every byte",
    expected: "an exact echo for every split",
    async run(run) {
      const attacker = await run.attack();
      const data = pattern(SPLIT);
      for (let cut = 1; cut < 3 * HEADER_LENGTH + SPLIT; cut++) {
        const id = run.id(cut);
        const heard = attacker.heard(id, true);
        const all = concat([...run.opening(attacker, id, data), attacker.frame(FIN, id)]);
        await attacker.bytes(all.subarray(0, cut));
        await run.taken(attacker);
        await attacker.bytes(all.subarray(cut));
        await attacker.echoed(heard, data, `the end of the echo split at ${cut}`);
      }
    },
  },
  {
    id: "A9",
    name: "random-bytes",
    attack: "64 KiB of noise, then the end of the connection, 300 times",
    expected: "every session ends, every call settles",
    async run(run) {
      for (let seed = 1; seed <= run.count(10, 300); seed++) {
        const attacker = await run.attack();
        await attacker.bytes(pattern(65536, seed * 7919));
        await attacker.end();
        await attacker.gone(`seed ${seed}`);
      }
    },
  },
  {
    id: "A9",
    name: "bit-flips",
    attack: "a valid exchange with one bit flipped, then the end of the connection, 300 times",
    expected: "every session ends, every call settles",
    async run(run) {
      for (let seed = 0; seed < run.count(20, 300); seed++) {
        const attacker = await run.dial();
        const all = concat([
          ...run.opening(attacker, run.id(0), pattern(100)),
          attacker.frame(NOP, 0),
          ...run.opening(attacker, run.id(1), pattern(100)),
          attacker.frame(FIN, run.id(0)),
        ]);
        const bit = seed * 1009 % (all.length * 8);
        all[bit >> 3]! ^= 1 << (bit & 7);
        await attacker.bytes(all);
        await attacker.end();
        await attacker.gone(`bit ${bit}`);
      }
    },
  },
  {
    id: "A10",
    name: "slowloris",
    attack: "a header, one byte per tenth of the timeout",
    expected: "closed within twice the timeout: bytes of an incomplete header do not keep the session alive",
    timed: true,
    async run(run) {
      const attacker = await run.attack();
      const bytes = attacker.frame(NOP, 0);
      const started = attacker.received;
      for (let n = 0; n < 7; n++) {
        await attacker.bytes(bytes.subarray(n, n + 1));
        await run.taken(attacker);
        await run.pass(TIMEOUT / 10);
      }
      await run.lives(`after ${attacker.received - started} bytes`);
      await run.pass(TIMEOUT * 0.8);
      await run.closes(attacker, "TimeoutError");
    },
  },
];
