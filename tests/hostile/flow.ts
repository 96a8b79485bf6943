/**
 * Attacks on flow control, C1 to C10: unread data, false credit, and floods of tiny frames.
 *
 * @module
 */

import { assertAlmostEquals, assertEquals, assertLess, assertLessOrEqual } from "@std/assert";
import { concat, repeat } from "@std/bytes";
import { FIN, NOP, PSH, SYN } from "../../frame.ts";
import { INITIAL_WINDOW, MAX_WINDOW } from "../../_window.ts";
import { CREDIT_TOLERANCE } from "../../_receive_half.ts";
import { percentile } from "../stats.ts";
import { MiB, pattern, READ_BUFFER } from "../support.ts";
import { type Attacker, PIECE } from "./attacker.ts";
import { type AttackRun, type Case, ON_THE_WAY, receiveBuffer } from "./attack_run.ts";

/** An attack with UPDs on one stream, after which the canary must echo. */
function update(
  id: string,
  name: string,
  attack: string,
  expected: string,
  play: (run: AttackRun, attacker: Attacker, id: number) => Promise<void>,
): Case {
  return {
    id,
    name,
    attack,
    expected,
    versions: [2],
    async run(run) {
      const attacker = await run.attack();
      await play(run, attacker, run.id(1));
      await run.echoes(attacker);
    },
  };
}

/** A flood of equal frames, on an open stream or on stream 0. */
function flood(id: string, name: string, attack: string, make: (attacker: Attacker, id: number) => Uint8Array): Case {
  return {
    id,
    name,
    attack,
    expected: "2 µs each at most; nothing queued; other sessions echo within 50 ms meanwhile",
    perFrame: 2,
    app: "hold",
    async run(run) {
      const attacker = await run.attack();
      const piece = make(attacker, run.id(1));
      const batch = Math.floor(READ_BUFFER / piece.length);
      const bytes = repeat(piece, batch);
      const first = concat([attacker.frame(SYN, run.id(1)), bytes]);
      const next = (at: number) => at === 0 ? first : bytes;
      await run.flood(attacker, run.count(5000, 1_000_000), next, { batch, goesOn: true });
      const { last } = await run.victim.state();
      assertEquals(last!.bytesUnread, 0);
      assertEquals(last!.streams, 2);
    },
  };
}

/** The cases. */
export const flow: readonly Case[] = [
  {
    id: "C1",
    name: "unread-hol",
    attack: "version 1: data without end for a stream that the application does not read",
    expected: "reading stops at maxReceiveBuffer plus one read buffer, and resumes when the stream is closed",
    versions: [1],
    app: "hold",
    session: (isFull) => ({ maxReceiveBuffer: receiveBuffer(isFull) }),
    async run(run) {
      const attacker = await run.attack();
      await attacker.bytes(attacker.frame(SYN, run.id(1)));
      const most = receiveBuffer(run.isFull);
      const pouring = attacker.pour(run.id(1), most + 32 * MiB);
      const { last } = await run.reached(({ last }) => last!.readPaused);
      assertLessOrEqual(last!.bytesUnread, most + READ_BUFFER);
      run.notes.push(`${(attacker.written / MiB).toFixed(1)} MiB accepted`);
      const dropped = performance.now();
      await run.victim.drop(run.id(1));
      await run.reached(({ last }) => !last!.readPaused);
      const took = performance.now() - dropped;
      run.notes.push(`reading resumed after ${took.toFixed(1)} ms`);
      if (run.isFull) assertLess(took, 10);
      await pouring;
      await run.echoes(attacker);
      assertEquals((await run.victim.state()).last!.bytesUnread, 0);
    },
  },
  {
    id: "C2",
    name: "stalled-streams",
    attack: "version 2: a whole window on each of 15 streams that the application does not read",
    expected: "the canary echoes within 20 ms",
    versions: [2],
    app: "hold",
    async run(run) {
      const attacker = await run.attack();
      for (let n = 1; n <= 15; n++) {
        await attacker.bytes(attacker.frame(SYN, run.id(n)));
        await attacker.pour(run.id(n), INITIAL_WINDOW);
      }
      for (let n = 0; n < run.count(20, 1000); n++) await run.echoes(attacker);
      const { last } = await run.victim.state();
      assertEquals([last!.bytesUnread, last!.readPaused], [15 * INITIAL_WINDOW, false]);
      const canary = percentile(run.figures.canary, 0.99);
      assertLess(canary, run.count(1000, 20), `ms to the canary's echo (p99): ${canary}`);
    },
  },
  {
    id: "C3",
    name: "window-overrun",
    attack: "version 2: 16 MiB beyond the window, on a stream that the application does not read",
    expected: "the stream is cut with FIN at its window plus 1 MiB, the rest dropped; the canary echoes",
    versions: [2],
    app: "hold",
    async run(run) {
      const attacker = await run.attack();
      const id = run.id(1);
      const heard = attacker.heard(id);
      await attacker.bytes(attacker.frame(SYN, id));
      await attacker.pour(id, INITIAL_WINDOW + CREDIT_TOLERANCE);
      await run.echoes(attacker);
      assertEquals((await run.victim.state()).last!.bytesUnread, INITIAL_WINDOW + CREDIT_TOLERANCE);
      assertEquals(heard.fins, 0);
      await attacker.pour(id, 16 * MiB);
      await run.echoes(attacker);
      assertEquals(heard.fins, 1);
      assertEquals((await run.victim.state()).last!.bytesUnread, 0);
    },
  },
  ...[0x7fffffff, 0xffffffff].map((consumed) =>
    update(
      "C4",
      consumed === 0xffffffff ? "upd-consumed-max" : "upd-consumed-overflow",
      `a UPD with consumed ${consumed} on a stream that has sent 0 or 10 bytes`,
      "writes fail if consumed exceeds the bytes sent; a lower consumed is ignored; the canary echoes",
      async (run, attacker, id) => {
        const heard = attacker.heard(id);
        await attacker.bytes(...run.opening(attacker, id, pattern(10)));
        await attacker.until(() => heard.bytes === 10, "the first echo");
        await attacker.bytes(attacker.update(id, consumed, MiB), attacker.frame(PSH, id, pattern(10)));
        await run.echoes(attacker);
        // A value behind the current one modulo 2^32 is a decrease, and is ignored.
        const isBehind = ((10 - consumed) | 0) > 0;
        await run.reached(({ tasks }) => tasks === (isBehind ? 3 : 2));
        if (isBehind) await attacker.until(() => heard.bytes === 20, "the second echo");
        assertEquals(heard.bytes, isBehind ? 20 : 10);
      },
    )
  ),
  update(
    "C4",
    "upd-regress",
    "UPDs with decreasing consumed",
    "ignored: no more than the window in flight; the canary echoes",
    async (run, attacker, id) => {
      const heard = attacker.heard(id);
      const window = 100_000;
      await attacker.bytes(attacker.frame(SYN, id), attacker.update(id, 0, window));
      await attacker.bytes(attacker.frame(PSH, id, pattern(60_000)), attacker.frame(PSH, id, pattern(60_000)));
      await attacker.until(() => heard.bytes === window, "a whole window");
      await attacker.bytes(attacker.update(id, 50_000, 50_000));
      for (let consumed = 49_999; consumed > 0; consumed -= 1000) {
        await attacker.bytes(attacker.update(id, consumed, MAX_WINDOW));
      }
      await run.echoes(attacker);
      assertEquals(heard.bytes, window);
      await attacker.bytes(attacker.update(id, 100_000, 20_000));
      await attacker.until(() => heard.bytes === 120_000, "the rest");
    },
  ),
  {
    id: "C5",
    name: "upd-window-zero",
    attack: "version 2: a window of 0 for a stream that the victim writes to without end",
    expected: "nothing is sent; the writer waits, and rejects within 10 ms when its stream or session ends",
    versions: [2],
    app: "pour",
    async run(run) {
      const attacker = await run.attack();
      const ids = [run.id(1), run.id(2)] as const;
      for (const id of ids) {
        attacker.heard(id);
        await attacker.bytes(concat([attacker.frame(SYN, id), attacker.update(id, 0, 0)]));
      }
      await run.echoes(attacker);
      // The accept loop, the canary, and one waiting writer on each of the two streams.
      const { last } = await run.reached(({ tasks }) => tasks === 4);
      assertEquals(ids.map((id) => attacker.heard(id).bytes), [0, 0]);
      assertEquals(last!.bytesUnsent, 0);
      for (const end of [() => run.victim.drop(ids[0]), () => attacker.close()]) {
        const { tasks: before } = await run.victim.state();
        const started = performance.now();
        await end();
        await run.reached(({ tasks }) => tasks < before);
        const took = performance.now() - started;
        run.notes.push(`writer settled within ${took.toFixed(1)} ms`);
        if (run.isFull) assertLess(took, 10, `ms until the writer settled: ${took.toFixed(1)}`);
      }
    },
  },
  ...[0xffffffff, 0x80000000].map((window) =>
    update(
      "C6",
      `upd-window-${window.toString(16)}`,
      `a window of ${window}, then data to be echoed while the peer does not read`,
      "clamped; unsent bytes stay bounded; every byte arrives once the peer reads",
      async (run, attacker, id) => {
        const heard = attacker.heard(id);
        const total = run.count(4, 32) * MiB;
        await attacker.bytes(attacker.frame(SYN, id), attacker.update(id, 0, window));
        attacker.hold();
        // One initial window for each stream: the victim's UPDs are not read meanwhile.
        const several = Array.from({ length: total / INITIAL_WINDOW }, (_, n) => run.id(2 + n));
        for (const other of several) {
          await attacker.bytes(attacker.frame(SYN, other), attacker.update(other, 0, window));
          attacker.heard(other);
        }
        const pouring = (async () => {
          for (const other of several) await attacker.pour(other, INITIAL_WINDOW);
        })();
        const { last } = await run.reached(({ last }) => last!.bytesReceived >= MiB);
        assertLessOrEqual(last!.bytesUnsent, ON_THE_WAY);
        attacker.resume();
        await pouring;
        await attacker.until(
          () => several.every((other) => attacker.heard(other).bytes === INITIAL_WINDOW),
          "every echo",
        );
        await attacker.bytes(attacker.frame(PSH, id, pattern(100)));
        await attacker.until(() => heard.bytes === 100, "the echo");
      },
    )
  ),
  {
    ...flood(
      "C7",
      "upd-flood",
      "a million UPDs without effect, on an open stream",
      (attacker, id) => attacker.update(id, 0, INITIAL_WINDOW),
    ),
    versions: [2],
  },
  {
    ...flood(
      "C7",
      "upd-flood-moving",
      "a million UPDs, each of which changes the limit",
      (attacker, id) => concat([attacker.update(id, 0, 1000), attacker.update(id, 0, 2000)]),
    ),
    versions: [2],
    perFrame: 4,
    expected: "2 µs each at most, 4 µs a pair; other sessions echo within 50 ms meanwhile",
  },
  {
    id: "C8",
    name: "counters-wrap",
    attack: "version 2: more than 4 GiB on one stream each way (8 MiB with small counts)",
    expected: "every byte arrives, UPDs count modulo 2^32",
    versions: [2],
    async run(run) {
      const attacker = await run.attack();
      const id = run.id(1);
      const heard = attacker.heard(id);
      const total = run.count(8 * MiB, 2 ** 32 + 8 * MiB);
      const piece = attacker.frame(PSH, id, pattern(PIECE));
      await attacker.bytes(attacker.frame(SYN, id));
      let sent = 0;
      let granted = 0;
      while (sent < total) {
        // Honest flow control: stay within the victim's window, and grant credit for received bytes.
        const window = heard.updates === 0 ? INITIAL_WINDOW : heard.window;
        const room = window - ((sent - heard.consumed) >>> 0);
        const count = Math.min(Math.floor(room / PIECE), 8, (total - sent) / PIECE);
        if (heard.bytes - granted >= INITIAL_WINDOW / 2) {
          granted = heard.bytes;
          await attacker.bytes(attacker.update(id, granted >>> 0, INITIAL_WINDOW));
        } else if (count > 0) {
          sent += count * PIECE;
          await attacker.bytes(repeat(piece, count));
        } else {
          const { updates, bytes } = heard;
          await attacker.until(() => heard.updates > updates || heard.bytes > bytes, `credit after ${sent} bytes`);
        }
      }
      while (heard.bytes < total) {
        granted = heard.bytes;
        await attacker.bytes(attacker.update(id, granted >>> 0, INITIAL_WINDOW));
        await attacker.until(() => heard.bytes > granted, `an echo after ${granted} bytes`);
      }
      assertEquals(heard.bytes, total);
      assertAlmostEquals((total - heard.consumed) >>> 0, 0, 8 * MiB);
      await run.echoes(attacker);
    },
  },
  {
    id: "C9",
    name: "psh1-unread",
    attack: "five million PSHs of one byte that the application does not read (within the window in version 2)",
    expected: "every byte is counted as unread; memory + 64 MiB at most; the canary echoes",
    app: "hold",
    async run(run) {
      const attacker = await run.attack();
      const total = run.count(20_000, 5_000_000);
      // In version 2 each stream carries one window, so that none is overrun.
      const share = run.version === 1 ? total : INITIAL_WINDOW;
      for (let sent = 0, n = 1; sent < total; sent += share, n++) {
        await attacker.bytes(attacker.frame(SYN, run.id(n)));
        const batch = repeat(attacker.frame(PSH, run.id(n), pattern(1)), 8192);
        const count = Math.min(share, total - sent);
        await run.flood(attacker, count, (_, size) => batch.subarray(0, size * 9));
      }
      const { last } = await run.victim.state();
      assertEquals(last!.bytesUnread, total);
    },
  },
  {
    id: "C10",
    name: "psh1-flood",
    attack: "a million PSHs of one byte to be echoed",
    expected: "every byte is echoed; other sessions echo within 50 ms meanwhile; the canary echoes",
    async run(run) {
      const attacker = await run.attack();
      const id = run.id(1);
      const heard = attacker.heard(id);
      await attacker.bytes(attacker.frame(SYN, id));
      if (run.version === 2) await attacker.bytes(attacker.update(id, 0, MAX_WINDOW));
      const batch = repeat(attacker.frame(PSH, id, pattern(1)), 8192);
      const count = run.count(20_000, 1_000_000);
      await run.flood(attacker, count, (_, size) => batch.subarray(0, size * 9));
      await attacker.bytes(attacker.frame(FIN, id));
      await attacker.until(() => heard.fins === 1, "the end of the echo");
      assertEquals(heard.bytes, count);
    },
  },
  flood(
    "C10",
    "psh0-flood",
    "a million PSHs without data, on an open stream",
    (attacker, id) => attacker.frame(PSH, id),
  ),
  flood("C10", "nop-flood", "a million NOPs", (attacker) => attacker.frame(NOP, 0)),
];
