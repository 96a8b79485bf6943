/**
 * Attacks on streams, B1 to B10: too many, refused, duplicate, invalid id, reused id, unknown id, never ended.
 *
 * @module
 */

import { assert, assertEquals, assertLessOrEqual } from "@std/assert";
import { concat, repeat } from "@std/bytes";
import { FIN, MAX_PAYLOAD_LENGTH, PSH, SYN } from "../../frame.ts";
import { DEFAULTS } from "../../options.ts";
import { LAST_ID } from "../../_session_core.ts";
import { MiB, pattern } from "../support.ts";
import { type Attacker, many } from "./attacker.ts";
import type { AttackRun, Case } from "./attack_run.ts";

const { maxStreams, acceptBacklog } = DEFAULTS;

/** A SYN with an invalid id, which must end the session. */
function misnumbered(name: string, attack: string, id: (run: AttackRun) => number): Case {
  return {
    id: "B5",
    name,
    attack,
    expected: "a ProtocolError, closed within 100 ms; the victim's own streams receive nothing",
    async run(run) {
      const attacker = await run.attack();
      const own = await run.victim.open();
      await attacker.until(() => attacker.counts[SYN] === 1, "the victim's own stream");
      await attacker.bytes(attacker.frame(SYN, id(run)));
      await run.closes(attacker, "ProtocolError");
      assertEquals(attacker.heard(own).bytes, 0);
    },
  };
}

/** Opens a million streams and ends each at once; returns the number of streams. */
function resets(run: AttackRun, attacker: Attacker): Promise<number> {
  const frames = concat([attacker.frame(SYN, 0), attacker.frame(FIN, 0)]);
  const make = (first: number, count: number) => many(count, run.id(1 + first), frames);
  return run.flood(attacker, run.count(5000, 1_000_000), make, { frames: 2, goesOn: true });
}

/** Frames for unknown streams. */
function unknown(name: string, attack: string, make: (attacker: Attacker, id: number) => Uint8Array): Case {
  return {
    id: "B8",
    name,
    attack,
    expected: "dropped, not counted as unread, not answered; heap + 8 MiB at most; the canary echoes",
    // More than half of this is used by the sessions of the bystander.
    memory: 16,
    async run(run) {
      const attacker = await run.attack();
      const own = run.role === "server" ? LAST_ID - 1 : LAST_ID;
      const before = await run.victim.state();
      const bytes = concat([run.id(5), own, 0].map((id) => make(attacker, id)));
      const batch = repeat(bytes, Math.max(1, Math.floor(65536 / bytes.length)));
      const pieces = batch.length / bytes.length * 3;
      await run.flood(attacker, run.count(2, 256) * pieces, () => batch, { batch: pieces, goesOn: true });
      const { last, peakHeap } = await run.victim.state();
      assertEquals(last!.bytesUnread, 0);
      assertEquals(last!.streams, 1);
      if (run.isFull) assertLessOrEqual(peakHeap - before.heap, 8 * MiB);
      // The echo of the canary, and in version 2 its UPD.
      assert(last!.framesSent - before.last!.framesSent <= 2, `${last!.framesSent - before.last!.framesSent} frames`);
    },
  };
}

/** The cases. */
export const streams: readonly Case[] = [
  {
    id: "B1",
    name: "syn-flood",
    attack: "a million SYNs",
    expected: "8192 streams at most, the rest refused with FIN; memory + 128 MiB at most; the canary echoes",
    memory: 128,
    async run(run) {
      const attacker = await run.attack();
      const sent = await run.flood(
        attacker,
        run.count(10_000, 1_000_000),
        (first, count) => many(count, run.id(1 + first), attacker.frame(SYN, 0)),
        { goesOn: true },
      );
      const { last } = await run.victim.state();
      assert(last!.streams <= maxStreams, `${last!.streams} streams`);
      assertEquals(last!.accepted + last!.refused, 1 + sent);
      await attacker.until(() => attacker.counts[FIN] === last!.refused, "a FIN for each refused stream");
    },
  },
  {
    id: "B1",
    name: "streams-full",
    attack: "a million SYNs, each with data, no faster than the application accepts",
    expected: "exactly 8192 streams, the rest refused with FIN; memory + 128 MiB at most; the canary echoes",
    memory: 128,
    async run(run) {
      const attacker = await run.attack();
      const count = run.count(10_000, 1_000_000);
      const batch = acceptBacklog / 2;
      for (let sent = 0; sent < count; sent += batch) {
        await attacker.bytes(many(batch, run.id(1 + sent), concat(run.opening(attacker, 0, pattern(8)))));
        await run.echoes(attacker);
      }
      const { last } = await run.victim.state();
      assertEquals(last!.streams, maxStreams);
      assertEquals(attacker.counts[FIN], last!.refused);
    },
  },
  {
    id: "B2",
    name: "rapid-reset",
    attack: "a million SYNs, each with its FIN, at an application that accepts",
    expected: "every stream is answered with FIN and leaves the table; memory + 64 MiB at most; the canary echoes",
    async run(run) {
      const attacker = await run.attack();
      const sent = await resets(run, attacker);
      await attacker.until(() => attacker.counts[FIN] === sent, "a FIN for each");
      const { last } = await run.reached(({ last }) => last!.streams === 1);
      run.notes.push(`${last!.accepted} accepted, ${last!.refused} refused`);
    },
  },
  {
    id: "B2",
    name: "rapid-reset-refused",
    attack: "a million SYNs, each with its FIN, at an application that does not accept",
    expected: "1024 streams pending, the rest refused with FIN, at 5 µs each at most; the canary echoes",
    app: "ignore",
    perFrame: 5,
    async run(run) {
      const attacker = await run.attack();
      const sent = await resets(run, attacker);
      const { last } = await run.victim.state();
      assertEquals(last!.pendingAccept, acceptBacklog);
      assertEquals(last!.refused, sent - acceptBacklog);
      await attacker.until(() => attacker.counts[FIN] === sent - acceptBacklog, "a FIN for each refused stream");
    },
  },
  {
    id: "B3",
    name: "backlog-full",
    attack: "twice acceptBacklog streams, each with data, at an application that does not accept",
    expected: "half of the streams refused, their data dropped; reading continues; the canary echoes",
    app: "ignore",
    async run(run) {
      const attacker = await run.attack();
      const data = pattern(64);
      for (let n = 1; n <= 2 * acceptBacklog; n++) await attacker.bytes(...run.opening(attacker, run.id(n), data));
      await run.echoes(attacker);
      const { last } = await run.victim.state();
      assertEquals(last!.pendingAccept, acceptBacklog);
      assertEquals(last!.refused, acceptBacklog);
      assertEquals(last!.bytesUnread, acceptBacklog * data.length);
      assertEquals(attacker.counts[FIN], acceptBacklog);
    },
  },
  {
    id: "B4",
    name: "dup-syn",
    attack: "a thousand SYNs for an open stream",
    expected: "ignored: accepted once, echoed once",
    async run(run) {
      const attacker = await run.attack();
      await attacker.bytes(repeat(attacker.frame(SYN, run.id(0)), 1000));
      await run.echoes(attacker);
      const heard = attacker.heard(run.id(0));
      assertEquals([heard.bytes, heard.fins], [64, 0]);
      const { last } = await run.victim.state();
      assertEquals([last!.accepted, last!.refused], [1, 0]);
    },
  },
  misnumbered("wrong-parity", "a SYN for a stream that the victim itself has opened", (run) => run.id(0) ^ 1),
  misnumbered("wrong-parity-unused", "a SYN with an id that the victim has yet to use", (run) => run.id(100) ^ 1),
  misnumbered("sid-zero", "a SYN with id 0", () => 0),
  {
    id: "B5",
    name: "sid-max",
    attack: "a stream with the largest id",
    expected: "accepted and echoed like any other stream",
    async run(run) {
      const attacker = await run.attack();
      const id = run.role === "server" ? LAST_ID : LAST_ID - 1;
      const heard = attacker.heard(id, true);
      await attacker.bytes(...run.opening(attacker, id, pattern(100)), attacker.frame(FIN, id));
      await attacker.echoed(heard, pattern(100));
    },
  },
  {
    id: "B6",
    name: "sid-reuse",
    attack: "50 streams with the same id, each SYN right after the victim's FIN for the previous stream",
    expected: "no stream receives data of the previous one; no frame arrives after a FIN",
    async run(run) {
      const attacker = await run.attack();
      const id = run.id(1);
      const heard = attacker.heard(id, true);
      for (let life = 1; life <= run.count(50, 5000); life++) {
        heard.data = [];
        const data = pattern(500, life);
        await attacker.bytes(...run.opening(attacker, id, data), attacker.frame(FIN, id));
        await attacker.echoed(heard, data, `the end of echo ${life}`);
        assertEquals(heard.late, 0, `frames after FIN ${life}`);
        heard.fins = 0;
      }
      await run.echoes(attacker);
    },
  },
  {
    id: "B7",
    name: "sid-exhaustion",
    attack: "a victim that has two stream ids left",
    expected: "both ids are used, then opening rejects with a RangeError; ids do not wrap; other streams continue",
    firstId: (role) => role === "client" ? LAST_ID - 2 : LAST_ID - 3,
    async run(run) {
      const attacker = await run.attack();
      const ids = [await run.victim.open(), await run.victim.open()];
      assertEquals(ids, run.role === "client" ? [LAST_ID - 2, LAST_ID] : [LAST_ID - 3, LAST_ID - 1]);
      for (let n = 0; n < 3; n++) {
        const outcome = await run.victim.open().catch((error) => `${error}`);
        assert(
          typeof outcome === "string" && outcome.includes("RangeError"),
          `Expected a RangeError, received ${outcome}`,
        );
      }
      for (const id of ids) {
        const heard = attacker.heard(id, true);
        await attacker.bytes(attacker.frame(PSH, id, pattern(10)));
        await attacker.until(() => heard.bytes === 10, "the echoes on the last streams");
      }
      await attacker.bytes(...run.opening(attacker, run.id(1), pattern(10)), attacker.frame(FIN, run.id(1)));
      await attacker.until(() => attacker.counts[FIN] === 1, "the FIN of a stream opened afterwards");
      await run.echoes(attacker);
      assertEquals(attacker.counts[SYN], 2);
    },
  },
  unknown(
    "psh-unknown",
    "PSHs with 1 KiB for streams never opened",
    (attacker, id) => attacker.frame(PSH, id, pattern(1024)),
  ),
  unknown(
    "garbage-65535",
    "PSHs with 65 535 bytes for streams never opened",
    (attacker, id) => attacker.frame(PSH, id, pattern(MAX_PAYLOAD_LENGTH)),
  ),
  unknown("fin-unknown", "FINs for streams never opened", (attacker, id) => attacker.frame(FIN, id)),
  {
    ...unknown(
      "upd-unknown",
      "UPDs for streams never opened",
      (attacker, id) => attacker.update(id, 0x7fffffff, 0xffffffff),
    ),
    versions: [2],
  },
  {
    id: "B9",
    name: "psh-after-fin",
    attack: "data and UPDs for a half-closed stream, after the peer's FIN",
    expected: "dropped, not counted as unread; the canary and other sessions echo",
    app: "hold",
    async run(run) {
      const attacker = await run.attack();
      const id = run.id(1);
      await attacker.bytes(attacker.frame(SYN, id), attacker.frame(FIN, id));
      const data = attacker.frame(PSH, id, pattern(MAX_PAYLOAD_LENGTH));
      const bytes = run.version === 2 ? concat([data, attacker.update(id, 0, 1)]) : data;
      await run.flood(attacker, run.count(100, 1000), () => bytes, { batch: 1, goesOn: true });
      const { last } = await run.victim.state();
      assertEquals([last!.bytesUnread, last!.streams], [0, 2]);
    },
  },
  {
    id: "B9",
    name: "double-fin",
    attack: "a thousand FINs for one stream, before and after the victim's FIN",
    expected: "all but the first ignored; answered once; the canary echoes",
    async run(run) {
      const attacker = await run.attack();
      const id = run.id(1);
      const heard = attacker.heard(id, true);
      await attacker.bytes(...run.opening(attacker, id, pattern(10)), repeat(attacker.frame(FIN, id), 500));
      await attacker.until(() => heard.fins > 0, "the end of the echo");
      await attacker.bytes(repeat(attacker.frame(FIN, id), 500));
      await run.echoes(attacker);
      assertEquals([heard.bytes, heard.fins, heard.late], [10, 1, 0]);
    },
  },
  {
    id: "B10",
    name: "never-fin",
    attack: "streams that the victim closes and the peer never ends",
    expected: "each leaves the table at once; later data for it is dropped",
    app: "close",
    async run(run) {
      const attacker = await run.attack();
      const count = run.count(2000, 200_000);
      for (let n = 1; n <= count; n += 1000) {
        await attacker.bytes(many(1000, run.id(n), attacker.frame(SYN, 0)));
        await attacker.until(() => attacker.counts[FIN] === n + 999, "the FIN of each");
        await attacker.bytes(many(1000, run.id(n), attacker.frame(PSH, 0, pattern(10))));
      }
      await run.echoes(attacker);
      const { last } = await run.victim.state();
      assertEquals([last!.streams, last!.accepted, last!.bytesUnread], [1, 1 + count, 0]);
    },
  },
];
