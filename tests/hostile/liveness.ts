/**
 * Attacks on writing and liveness, D1 to D12: peers that never read, stay silent, close at any point, or always have
 * more to send.
 *
 * @module
 */

import { assert, assertEquals, assertGreater, assertGreaterOrEqual, assertLess, assertLessOrEqual } from "@std/assert";
import { concat } from "@std/bytes";
import { FIN, NOP, PSH, SYN } from "../../frame.ts";
import { INITIAL_WINDOW, MAX_WINDOW } from "../../_window.ts";
import { DEFAULTS } from "../../options.ts";
import { percentile } from "../stats.ts";
import { MiB, pattern, READ_BUFFER, WRITE_BUFFER } from "../support.ts";
import { type Attacker, many, PIECE, soon } from "./attacker.ts";
import { type AttackRun, type Case, ON_THE_WAY, receiveBuffer, TIMEOUT } from "./attack_run.ts";

// Most bytes decoded without yielding; with empty frames, that takes a few milliseconds.
const MOST_IN_A_TURN = 2 * MiB;

/**
 * Opens `count` streams and sends one initial window on each, to be echoed; settles when everything was sent or the
 * connection has ended.
 */
async function burden(run: AttackRun, attacker: Attacker, count: number, first = 1): Promise<void> {
  for (let n = 0; n < count && !attacker.isEnded; n++) {
    const id = run.id(first + n);
    await attacker.bytes(attacker.frame(SYN, id));
    for (let sent = 0; sent < INITIAL_WINDOW; sent += PIECE) {
      await attacker.bytes(attacker.frame(PSH, id, pattern(PIECE, id + sent)));
    }
  }
}

/** Sends data to be echoed without reading the echoes, until the victim stops reading. */
async function stall(run: AttackRun, attacker: Attacker, count: number) {
  attacker.hold();
  const burdening = burden(run, attacker, count);
  const { last } = await run.reached(({ last }) => last!.readPaused);
  return { burdening, last };
}

/** The cases. */
export const liveness: readonly Case[] = [
  {
    id: "D1",
    name: "slow-read",
    attack: "256 MiB to be echoed, by a peer that never reads",
    expected: "bytes held are bounded by maxReceiveBuffer and the buffers; other sessions continue",
    session: (isFull) => ({ maxReceiveBuffer: receiveBuffer(isFull) }),
    async run(run) {
      const attacker = await run.attack();
      const { burdening, last } = await stall(run, attacker, run.count(128, 1024));
      const held = last!.bytesReceived - last!.bytesSent;
      // Each echo loop holds one more buffer.
      const most = receiveBuffer(run.isFull) + ON_THE_WAY + 2 * READ_BUFFER + (last!.streams + 1) * READ_BUFFER;
      assertLessOrEqual(held, most);
      assertLessOrEqual(last!.bytesUnread, receiveBuffer(run.isFull) + READ_BUFFER);
      assertLessOrEqual(last!.bytesUnsent, ON_THE_WAY);
      run.notes.push(`${(attacker.written / MiB).toFixed(1)} MiB accepted, ${(held / MiB).toFixed(1)} held`);
      await run.fresh();
      attacker.close();
      await burdening;
    },
  },
  {
    id: "D2",
    name: "slow-read-syn",
    attack: "a million times SYN, data and FIN, from a peer that never reads",
    expected: "reading stops at 1024 pending refusals; closed when the write stalls; memory + 64 MiB at most",
    timed: true,
    async run(run) {
      const attacker = await run.attack();
      attacker.hold();
      const frames = concat([attacker.frame(SYN, 0), attacker.frame(PSH, 0, pattern(16)), attacker.frame(FIN, 0)]);
      const attack = (async () => {
        for (let sent = 0; sent < 1_000_000 && !attacker.isEnded; sent += 1024) {
          await attacker.bytes(many(1024, run.id(1 + sent), frames));
        }
      })();
      const { last } = await run.reached(({ last, ends }) => last!.readPaused || ends.length > 0);
      assert(last!.readPaused, "The victim did not stop reading");
      run.notes.push(`${last!.refused} refused, ${last!.accepted} accepted`);
      await run.fresh();
      await run.pass(TIMEOUT * 1.5);
      const { ends } = await run.over();
      assert(ends.at(-1)!.includes("made no progress"), ends.at(-1));
      attacker.resume();
      await attack;
      await attacker.gone("the stalled write");
    },
  },
  {
    id: "D3",
    name: "both-write",
    attack: "8 MiB to be echoed, by a peer that reads only after its last write",
    expected: "every byte arrives: reading never waits for a write",
    async run(run) {
      const attacker = await run.attack();
      const count = run.count(8, 32);
      for (let n = 1; n <= count; n++) attacker.heard(run.id(n));
      attacker.hold();
      await burden(run, attacker, count);
      attacker.resume();
      for (let n = 1; n <= count; n++) {
        const heard = attacker.heard(run.id(n));
        await attacker.until(() => heard.bytes === INITIAL_WINDOW, `the echo of stream ${run.id(n)}`);
      }
      await run.echoes(attacker);
    },
  },
  {
    id: "D4",
    name: "write-stall",
    attack: "a full socket, from a peer that keeps sending",
    expected:
      "closed when nothing was read and no write made progress for the timeout; every writer rejects; close() settles",
    timed: true,
    async run(run) {
      const attacker = await run.attack();
      const { burdening } = await stall(run, attacker, 128);
      await run.pass(TIMEOUT / 2);
      await run.lives();
      await run.pass(TIMEOUT);
      const { ends } = await run.over();
      assert(ends.at(-1)!.includes("made no progress"), ends.at(-1));
      assertLess(await run.victim.shut(), 100);
      attacker.resume();
      await burdening;
    },
  },
  {
    id: "D4",
    name: "nops-unread",
    attack: "NOPs for five timeouts, from a peer that reads nothing of a stream written without end",
    expected: "the session stays open with two buffers of unsent data; the stream resumes when the peer reads",
    timed: true,
    app: "pour",
    async run(run) {
      const attacker = await run.attack();
      const id = run.id(1);
      const heard = attacker.heard(id);
      attacker.hold();
      await attacker.bytes(attacker.frame(SYN, id));
      if (run.version === 2) await attacker.bytes(attacker.update(id, 0, MAX_WINDOW));
      await run.reached(({ last }) => last!.bytesUnsent > WRITE_BUFFER / 2);
      for (let n = 0; n < 6; n++) {
        await run.pass(TIMEOUT * (run.isFull ? 0.6 : 0.9));
        await run.nop(attacker);
        await run.taken(attacker);
        await run.lives();
      }
      const { last } = await run.victim.state();
      assertLessOrEqual(last!.bytesUnsent, 2 * WRITE_BUFFER);
      const { bytes } = heard;
      attacker.resume();
      await attacker.until(() => heard.bytes > bytes + MiB, "more data");
    },
  },
  {
    id: "D4",
    name: "close-while-stalled",
    attack: "a full socket during a graceful close of the victim",
    expected: "close() settles within its timeout",
    timed: true,
    async run(run) {
      const attacker = await run.attack();
      const { burdening } = await stall(run, attacker, 128);
      const shutting = run.victim.shut();
      await run.pass(TIMEOUT * 1.5);
      await soon(shutting, "close()");
      await run.over();
      attacker.resume();
      await burdening;
    },
  },
  {
    id: "D5",
    name: "false-death",
    attack: "a stream that fills maxReceiveBuffer and is not read for five timeouts",
    expected: "no timeout while the victim itself does not read; the session continues once it reads",
    versions: [1],
    timed: true,
    app: "hold",
    session: (isFull) => ({ maxReceiveBuffer: receiveBuffer(isFull) }),
    async run(run) {
      const attacker = await run.attack();
      const id = run.id(1);
      await attacker.bytes(attacker.frame(SYN, id));
      const pouring = attacker.pour(id, receiveBuffer(run.isFull) + PIECE);
      await run.reached(({ last }) => last!.readPaused);
      for (let n = 0; n < 5; n++) await run.pass(TIMEOUT);
      await run.lives();
      await run.victim.drop(id);
      await pouring;
      await run.echoes(attacker);
    },
  },
  {
    id: "D6",
    name: "silent",
    attack: "silence",
    expected: "closed after the timeout and within twice the timeout; no timer left",
    timed: true,
    async run(run) {
      const attacker = await run.attack();
      await run.timesOut(attacker);
    },
  },
  {
    id: "D6",
    name: "silent-from-the-start",
    attack: "a connection without a single byte",
    expected: "closed after the timeout and within twice the timeout; no timer left",
    timed: true,
    async run(run) {
      const attacker = await run.dial();
      await run.reached(({ open }) => open === 1);
      await run.timesOut(attacker);
    },
  },
  {
    id: "D7",
    name: "blocked-loop",
    attack: "none: the victim's event loop is blocked for 2.5 timeouts, while the peer's NOPs wait in the socket",
    expected: "no timeout",
    timed: true,
    isAwake: false,
    async run(run) {
      const attacker = await run.attack();
      const frozen = run.freeze(TIMEOUT * 2.5);
      await run.nop(attacker);
      await frozen;
      await run.echoes(attacker);
      await run.pass(TIMEOUT * 0.9);
      await run.lives();
      await run.echoes(attacker);
    },
  },
  {
    id: "D7",
    name: "nop-under-load",
    attack: "a peer that sends no data while the victim writes to a stream without end",
    expected: "NOPs keep the session alive; the victim closes it when the peer is silent",
    timed: true,
    app: "pour",
    async run(run) {
      const attacker = await run.attack();
      const id = run.id(1);
      const heard = attacker.heard(id);
      let slowest = 0;
      await attacker.bytes(attacker.frame(SYN, id));
      for (let n = 0; n < 8; n++) {
        // More credit than the victim can use until the next UPD.
        if (run.version === 2) await attacker.bytes(attacker.update(id, heard.bytes, MAX_WINDOW));
        const { bytes } = heard;
        await attacker.until(() => heard.bytes > bytes + MiB, "more data");
        const said = performance.now();
        await run.nop(attacker);
        await run.taken(attacker);
        slowest = Math.max(slowest, performance.now() - said);
        // In real time a loaded machine is late: larger margin below the timeout.
        await run.pass(TIMEOUT * (run.isFull ? 0.6 : 0.9));
        await run.lives();
      }
      run.notes.push(`a NOP was read within ${slowest.toFixed(1)} ms`);
      await run.pass(TIMEOUT);
      await run.closes(attacker, "TimeoutError");
    },
  },
  {
    id: "D8",
    name: "fin-order",
    attack: "100 000 short streams to be echoed, each FIN right after the data",
    expected: "each stream receives all its bytes, then FIN, then no frame",
    async run(run) {
      const attacker = await run.attack();
      const data = pattern(100);
      const frames = concat([attacker.frame(SYN, 0), attacker.frame(PSH, 0, data), attacker.frame(FIN, 0)]);
      const batch = 500;
      for (let first = 1; first < run.count(500, 100_000); first += batch) {
        const heard = Array.from({ length: batch }, (_, n) => attacker.heard(run.id(first + n)));
        await attacker.bytes(many(batch, run.id(first), frames));
        await attacker.until(() => heard.every(({ fins }) => fins === 1), "the end of every echo");
        await run.echoes(attacker);
        for (const { bytes, late } of heard) assertEquals([bytes, late], [data.length, 0]);
        for (let n = 0; n < batch; n++) attacker.forget(run.id(first + n));
      }
    },
  },
  {
    id: "D9",
    name: "close-with-unread",
    attack: "300 KB, FIN and the end of the connection at once, 10 000 times",
    expected: "the application reads all of it, and the FIN",
    app: "sink",
    async run(run) {
      const times = run.count(5, 10_000);
      for (let n = 1; n <= times; n++) {
        const attacker = await run.attack();
        const id = run.id(1);
        // In version 2 this exceeds the window, but stays below the limit at which the stream is cut.
        const pieces = Array.from({ length: 10 }, () => attacker.frame(PSH, id, pattern(30_000)));
        await attacker.bytes(attacker.frame(SYN, id), ...pieces, attacker.frame(FIN, id));
        await attacker.end();
        await attacker.gone(`time ${n}`);
        run.forget(attacker);
      }
      const { sunk, whole } = await run.over();
      assertEquals([sunk, whole], [times * 300_000, times]);
    },
  },
  {
    id: "D9",
    name: "close-flushes",
    attack: "a peer that starts to read after the victim has written 200 KB and closed",
    expected: "all bytes arrive, then FIN, then the end of the connection",
    async run(run) {
      for (let n = 0; n < run.count(5, 1000); n++) {
        const attacker = await run.attack();
        const own = run.role === "client" ? 3 : 2;
        const heard = attacker.heard(own);
        attacker.hold();
        const said = run.victim.say(200_000);
        await run.reached(({ last }) => last!.opened === 1);
        attacker.resume();
        await attacker.until(() => heard.fins === 1, "the FIN");
        assertEquals(heard.bytes, 200_000);
        await attacker.end();
        await soon(said, "close()");
        await attacker.gone("after close()");
        run.forget(attacker);
      }
    },
  },
  {
    id: "D10",
    name: "starvation",
    attack: "100 streams that the victim writes to without end",
    expected: "equal throughput (Jain's index above 0.95); the canary echoes within 20 ms",
    app: "pour",
    async run(run) {
      const attacker = await run.attack();
      const heard = Array.from({ length: 100 }, (_, n) => attacker.heard(run.id(1 + n)));
      for (let n = 1; n <= heard.length; n++) {
        await attacker.bytes(attacker.frame(SYN, run.id(n)));
        if (run.version === 2) await attacker.bytes(attacker.update(run.id(n), 0, MAX_WINDOW));
      }
      // The first streams have the socket buffers to themselves: measure only once all streams carry data.
      await attacker.until(() => heard.every(({ bytes }) => bytes > 0), "data of every stream");
      const before = heard.map(({ bytes }) => bytes);
      const shares = () => heard.map(({ bytes }, n) => bytes - before[n]!);
      const sum = (values: number[]) => values.reduce((sum, value) => sum + value, 0);
      const total = run.count(64, 8192) * MiB;
      while (sum(shares()) < total) await run.echoes(attacker);
      const jain = sum(shares()) ** 2 / (heard.length * sum(shares().map((share) => share ** 2)));
      run.notes.push(`Jain's index ${jain.toFixed(4)}`);
      assertGreater(jain, 0.95);
      if (run.isFull) assertLess(percentile(run.figures.canary, 0.99), 20);
    },
  },
  {
    id: "D11",
    name: "concurrent-close",
    attack: "every order of closing a stream and a session, with every operation pending, and a peer that disconnects",
    expected: "every operation settles: fulfilled, StreamClosedError or SessionClosedError",
    async run(run) {
      const acts = ["stream.close", "stream.closeWrite", "session.close", "abort"];
      for (let round = 0; round < run.count(1, 20); round++) {
        for (const order of permutations(acts)) {
          // Without abort, the peer ends the session.
          for (const some of [order, order.filter((act) => act !== "abort")]) {
            const attacker = await run.attack();
            const colliding = run.victim.collide(some);
            // End the connection only once the stream is open, so that this end collides with the acts.
            await Promise.race([attacker.ended, attacker.until(() => attacker.counts[SYN]! > 0, "the stream")]);
            await attacker.end();
            for (const outcome of await soon(colliding, `the operations pending at ${some}`)) {
              const isKnown = ["fulfilled", "StreamClosedError", "SessionClosedError"].includes(outcome);
              assert(isKnown, `${outcome} after ${some}`);
            }
            await attacker.gone(`${some}`);
            run.forget(attacker);
          }
        }
      }
    },
  },
  ...(["connection", "streams"] as const).map((kind): Case => ({
    id: "D12",
    name: `capture-${kind}`,
    attack: `empty frames over a transport (${kind}) whose reads never block`,
    expected: "the victim yields at least every 2 MiB, and within 50 ms",
    async run(run) {
      const bytes = run.count(16, 512) * MiB;
      const { turns, gap } = await run.victim.capture(kind, bytes);
      run.notes.push(`${turns} turns of the event loop, at most ${gap.toFixed(1)} ms apart`);
      assertGreaterOrEqual(turns, bytes / MOST_IN_A_TURN, `Turns of the event loop in ${bytes} bytes: ${turns}`);
      if (run.isFull) assertLess(gap, 50, `ms between two turns of the event loop: ${gap.toFixed(1)}`);
    },
  })),
  {
    id: "D12",
    name: "capture-socket",
    attack: "NOPs over a socket whose reads never block",
    expected: "a fresh session echoes within 50 ms",
    async run(run) {
      const attacker = await run.attack();
      const bytes = many(8192, 0, attacker.frame(NOP, 0), 0);
      await run.flood(attacker, run.count(10_000, 8_000_000), () => bytes, { batch: 8192, goesOn: true });
    },
  },
  {
    id: "D12",
    name: "hundred-at-once",
    attack:
      "a hundred peers that do not read: floods of SYN with data and FIN, of SYN and FIN, of one-byte PSHs, of NOPs",
    expected: "memory + 64 MiB for each peer at most; a fresh session echoes within 250 ms",
    memory: 100 * 64,
    freshWithin: 250,
    async run(run) {
      const attackers: Attacker[] = [];
      while (attackers.length < 100) attackers.push(await run.attack());
      for (const attacker of attackers) attacker.hold();
      const [one] = attackers;
      const [syn, fin, nop] = ([SYN, FIN, NOP] as const).map((command) => one!.frame(command, 0));
      const floods = [concat([syn!, one!.frame(PSH, 0, pattern(16)), fin!]), concat([syn!, fin!])];
      const data = many(1024, run.id(0), one!.frame(PSH, 0, pattern(1)), 0);
      const nops = many(1024, 0, nop!, 0);
      const rounds = run.count(2, 200);
      await run.besides(async (visits) => {
        for (let round = 0; round < rounds || (run.isFull && visits.length < 100); round++) {
          const batches = [...floods.map((frames) => many(256, run.id(1 + round * 256), frames)), data, nops];
          // Not awaited: the victim may have stopped reading this connection.
          attackers.forEach((attacker, n) => attacker.bytes(batches[n % batches.length]!));
          await run.victim.state();
        }
      });
      assertEquals((await run.victim.state()).open, attackers.length);
    },
  },
  {
    id: "D12",
    name: "hang-up-with-many",
    attack: "8192 streams with pending reads, then the end of the connection",
    expected: "every call settles; the event loop is blocked for 100 ms at most",
    memory: 128,
    async run(run) {
      const attacker = await run.attack();
      const batch = 512;
      for (let first = 1; first < DEFAULTS.maxStreams; first += batch) {
        await attacker.bytes(many(batch, run.id(first), attacker.frame(SYN, 0)));
        await run.echoes(attacker);
      }
      assertEquals((await run.victim.state()).last!.streams, DEFAULTS.maxStreams);
      await run.victim.mark();
      attacker.close();
      const { gap } = await run.over();
      run.notes.push(`event loop blocked for ${gap.toFixed(1)} ms`);
      if (run.isFull) assertLess(gap, 100, `ms of a blocked event loop: ${gap.toFixed(1)}`);
    },
  },
];

function permutations<T>(items: readonly T[]): T[][] {
  if (items.length === 0) return [[]];
  return items.flatMap((item, n) => permutations(items.toSpliced(n, 1)).map((rest) => [item, ...rest]));
}
