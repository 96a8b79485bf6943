/**
 * Credit, rules 9 and 10 of docs/design.md: what may be sent, what is granted, and when an update is due.
 *
 * @module
 */
import { assert, assertEquals, assertGreater, assertGreaterOrEqual } from "@std/assert";
import { clock } from "../_clock.ts";
import {
  INITIAL_WINDOW,
  MAX_WINDOW,
  MIN_FIRST_UPDATE_BYTES,
  MIN_WINDOW,
  ReceiveWindow,
  SendWindow,
  WindowPool,
} from "../_window.ts";
import { KiB, MiB, stopTime, withFakeTime } from "./support.ts";

// The clock stands still: a window shrinks when it seems to have been in a queue.
Deno.test.beforeEach(stopTime);

const ROUND_TRIP = 10;

/** A receive window with its updates, counted without wrapping; asserts that no limit decreases. */
class Inbound {
  readonly window: ReceiveWindow;
  received = 0;
  consumed = 0;
  limit: number;
  /** The window in the last update. */
  advertised: number;
  updates = 0;
  readonly #pool: WindowPool;

  constructor(pool: WindowPool, onShrunk?: () => void) {
    this.#pool = pool;
    this.window = new ReceiveWindow(pool, onShrunk && { onShrunk });
    this.limit = this.advertised = pool.first;
  }

  arrive(count: number): void {
    this.#pool.now = clock.now();
    this.window.arrived(count);
    this.received += count;
  }

  /** The peer uses its whole credit; its next byte follows the update after this many milliseconds. */
  measure(time: { now: number }, elapsed: number): void {
    this.arriveAll();
    while (!this.read(this.received - this.consumed));
    time.now += elapsed;
    this.arrive(1);
  }

  /** Bytes on their way arrive only after this many milliseconds, and the next byte follows directly. */
  queue(time: { now: number }, milliseconds: number): void {
    const { limit, updates } = this;
    while (this.updates === updates && limit - this.received > 1) this.read(Math.ceil((limit - this.received) / 2));
    time.now += milliseconds;
    this.arrive(limit - this.received);
    this.arrive(1);
    this.read(this.received - this.consumed);
  }

  /** Reads up to this count without time passing. */
  skipTo(consumed: number): void {
    while (this.consumed < consumed) this.read(Math.min(consumed - this.consumed, 2 ** 30));
    while (this.limit < consumed + this.advertised) this.read(1);
  }

  /** The peer uses its whole credit. */
  arriveAll(): void {
    this.arrive(this.limit - this.received);
  }

  /** Reads `count` bytes, which arrive now if they have not yet; returns whether an update was due, and sends it. */
  read(count: number): boolean {
    this.consumed += count;
    if (this.received < this.consumed) this.arrive(this.consumed - this.received);
    const due = this.window.read(count, this.received - this.consumed);
    if (due) {
      this.advertised = this.window.advertise();
      assertGreaterOrEqual(this.consumed + this.advertised, this.limit, "a limit decreased");
      this.limit = this.consumed + this.advertised;
      this.updates++;
    }
    assertEquals(this.window.consumed, this.consumed % 2 ** 32);
    return due;
  }

  /** One round trip: all bytes that the credit allows arrive and are read at once. */
  lap(time: { now: number }, elapsed = ROUND_TRIP): void {
    time.now += elapsed;
    for (let left = this.limit - this.received; left > 0; left -= 32 * KiB) this.read(Math.min(left, 32 * KiB));
  }

  /** Reads at full speed until the window has this size. */
  growTo(size: number, time: { now: number }): void {
    for (let laps = 0; this.advertised < size; laps++) {
      assert(laps < 100, `the window stayed at ${this.advertised}`);
      this.lap(time);
    }
    assertEquals(this.advertised, size);
  }
}

/** A window in a pool of its own. */
function inboundOf(largest: number, room: number) {
  const pool = new WindowPool(largest, room);
  return { pool, inbound: new Inbound(pool) };
}

/** A window of a stream whose peer has read all `sent` bytes and grants `window` more. */
function sendWindowAt(sent: number, window: number): SendWindow {
  const credit = new SendWindow();
  for (let at = 0; at < sent;) {
    const count = Math.min(credit.credit, sent - at);
    credit.spend(count);
    at += count;
    assertEquals(credit.update(at % 2 ** 32, MAX_WINDOW), "moved");
  }
  credit.update(sent % 2 ** 32, window);
  return credit;
}

Deno.test("rule 9: a stream may send 262144 bytes before the first update", () => {
  const window = new SendWindow();
  assertEquals([window.credit, INITIAL_WINDOW], [262_144, 262_144]);
  window.spend(262_143);
  assertEquals(window.credit, 1);
  window.spend(1);
  assertEquals(window.credit, 0);
});

Deno.test("rule 9: the limit is consumed + window, and each update replaces it", () => {
  const window = new SendWindow();
  window.spend(100);
  assertEquals(window.update(40, 64), "moved");
  assertEquals(window.credit, 4);
  window.spend(4);
  assertEquals(window.update(104, 1000), "moved");
  assertEquals(window.credit, 1000);
});

Deno.test("rule 9: SendWindow.update() returns whether the limit moved", () => {
  const window = new SendWindow();
  window.spend(1000);
  assertEquals(window.update(0, INITIAL_WINDOW), "unchanged");
  assertEquals(window.update(500, INITIAL_WINDOW - 500), "unchanged");
  assertEquals(window.update(500, INITIAL_WINDOW), "moved");
  assertEquals(window.update(500, INITIAL_WINDOW), "unchanged");
});

Deno.test("rule 9: a window below the bytes on their way leaves no credit until they were read", () => {
  const window = new SendWindow();
  window.spend(1000);
  assertEquals(window.update(0, 10), "moved");
  assertEquals(window.credit, 0);
  assertEquals(window.update(0, 0), "moved");
  assertEquals(window.credit, 0);
  assertEquals(window.update(1000, 10), "moved");
  assertEquals(window.credit, 10);
});

Deno.test("rule 9: counters wrap at 2^32", () => {
  for (const sent of [2 ** 32 - 8, 2 ** 32 - 1, 2 ** 32, 2 ** 32 + 1, 2 ** 33 - 3, 5 * 2 ** 32 + 7]) {
    const window = sendWindowAt(sent, 16);
    assertEquals(window.credit, 16);
    window.spend(10);
    assertEquals(window.credit, 6);
    assertEquals(window.update((sent + 9) % 2 ** 32, 16), "moved");
    assertEquals(window.credit, 15);
    window.spend(15);
    assertEquals(window.credit, 0);
    assertEquals(window.update((sent + 25) % 2 ** 32, 16), "moved");
    assertEquals(window.credit, 16);
  }
});

Deno.test("rule 9: the credit is right for limits on both sides of 2^32", () => {
  const window = sendWindowAt(2 ** 32 - 20, 20);
  assertEquals(window.credit, 20);
  window.spend(20);
  assertEquals(window.update(2 ** 32 - 4, 8), "moved");
  assertEquals(window.credit, 4);
  assertEquals(window.update(0, 8), "moved");
  assertEquals(window.credit, 8);
});

Deno.test("rule 9: a window above 2^31-1 counts as 2^31-1", () => {
  for (const size of [2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1]) {
    const window = new SendWindow();
    assertEquals(window.update(0, size), "moved");
    assertEquals(window.credit, 2 ** 31 - 1);
    window.spend(2 ** 31 - 1);
    assertEquals(window.credit, 0);
    assertEquals(window.update(2 ** 31 - 1, size), "moved");
    assertEquals(window.credit, 2 ** 31 - 1);
  }
  const window = new SendWindow();
  window.update(0, 2 ** 31 - 2);
  assertEquals(window.credit, 2 ** 31 - 2);
});

Deno.test("rule 9: a consumed count above what was sent is invalid and changes nothing", () => {
  for (const sent of [0, 5, 2 ** 32 - 3]) {
    const window = sendWindowAt(sent, 100);
    window.spend(10);
    assertEquals(window.update((sent + 11) % 2 ** 32, 1000), "invalid");
    assertEquals(window.update((sent + 10 + 2 ** 31) % 2 ** 32, 1000), "invalid");
    assertEquals(window.credit, 90);
    assertEquals(window.update((sent + 10) % 2 ** 32, 1000), "moved");
    assertEquals(window.credit, 1000);
  }
});

Deno.test("rule 9: an update with a lower consumed count is ignored, its window too", () => {
  for (const sent of [1000, 2 ** 32 + 3]) {
    const window = sendWindowAt(sent, 100);
    assertEquals(window.update((sent - 1) % 2 ** 32, 5000), "unchanged");
    assertEquals(window.update((sent - 900) % 2 ** 32, 0), "unchanged");
    assertEquals(window.credit, 100);
  }
});

Deno.test("rule 10: the first window is 262144 bytes, or the largest window if that is less", () => {
  for (const [largest, first] of [[8 * MiB, 262_144], [262_144, 262_144], [262_143, 262_143], [1, 1]] as const) {
    const pool = new WindowPool(largest, 8 * MiB);
    const window = new ReceiveWindow(pool);
    assertEquals([pool.first, window.advertise(), pool.granted], [first, first, first]);
  }
});

Deno.test(
  "rule 10: the peer may have 262144 bytes unread, or the window if that is more",
  withFakeTime((time) => {
    assertEquals(new ReceiveWindow(new WindowPool(1, 0)).allowed, 262_144);
    const { inbound } = inboundOf(1 * MiB, 4 * MiB);
    assertEquals(inbound.window.allowed, 262_144);
    inbound.growTo(1 * MiB, time);
    assertEquals(inbound.window.allowed, 1 * MiB);
  }),
);

Deno.test("rule 10: an update is due after 4 KiB, then for each half window read", () => {
  for (const first of [MIN_FIRST_UPDATE_BYTES, 200_000]) {
    const { inbound } = inboundOf(INITIAL_WINDOW, 0);
    assertEquals(inbound.read(first), true);
    assertEquals(inbound.limit, first + INITIAL_WINDOW);
    for (let times = 1; times <= 3; times++) {
      assertEquals(inbound.read(INITIAL_WINDOW / 2 - 1), false);
      assertEquals(inbound.read(1), true);
      assertEquals(inbound.limit, first + times * INITIAL_WINDOW / 2 + INITIAL_WINDOW);
    }
  }
});

Deno.test("rule 10: the first update waits for 4 KiB only if the peer assumes the same window", () => {
  const { inbound } = inboundOf(INITIAL_WINDOW, 0);
  assertEquals(inbound.read(1), false);
  assertEquals(inbound.read(MIN_FIRST_UPDATE_BYTES - 2), false);
  assertEquals(inbound.read(1), true);
  assertEquals(inbound.limit, MIN_FIRST_UPDATE_BYTES + INITIAL_WINDOW);
  for (const window of [INITIAL_WINDOW - 1, 1]) {
    assertEquals(inboundOf(window, 0).inbound.read(1), true, `a window of ${window} bytes`);
  }
});

Deno.test("rule 10: the first update is due on the first read if earlier streams learnt a larger window", () => {
  const pool = new WindowPool(MiB, MiB);
  pool.learnt = MiB;
  const window = new ReceiveWindow(pool);
  window.arrived(1);
  assertEquals([window.read(1, 0), window.advertise()], [true, MiB]);
});

Deno.test("rule 10: with a window of 1 byte an update is due for each byte read", () => {
  const { inbound } = inboundOf(1, 0);
  for (let count = 1; count <= 20; count++) {
    assertEquals(inbound.read(1), true);
    assertEquals([inbound.updates, inbound.advertised], [count, 1]);
  }
});

Deno.test("rule 10: with a window of 3 bytes an update is due for each second byte read", () => {
  const { inbound } = inboundOf(3, 0);
  assertEquals([1, 1, 1, 1, 1].map((count) => inbound.read(count)), [true, false, true, false, true]);
  assertEquals([inbound.limit, inbound.advertised], [8, 3]);
});

Deno.test(
  "rule 10: with a window of 8 MiB an update is due for each MiB read",
  withFakeTime((time) => {
    const { inbound } = inboundOf(8 * MiB, 8 * MiB);
    inbound.growTo(8 * MiB, time);
    while (!inbound.read(32 * KiB));
    for (let times = 0; times < 3; times++) {
      assertEquals(inbound.read(1 * MiB - 1), false);
      assertEquals(inbound.read(1), true);
      assertEquals(inbound.advertised, 8 * MiB);
    }
  }),
);

Deno.test(
  "rule 10: an update is due when the count of read bytes reaches 2^32",
  withFakeTime(() => {
    const { inbound } = inboundOf(64 * KiB, 0);
    inbound.read(32 * KiB);
    while (inbound.consumed < 2 ** 32 - 32 * KiB) assertEquals(inbound.read(32 * KiB), true);
    // Go sends no update here: to Go a count of 0 means that none is due.
    assertEquals(inbound.read(32 * KiB), true);
    assertEquals([inbound.window.consumed, inbound.advertised], [0, 64 * KiB]);
    assertEquals(inbound.read(32 * KiB - 1), false);
    assertEquals(inbound.read(1), true);
    assertEquals([inbound.window.consumed, inbound.advertised], [32 * KiB, 64 * KiB]);
  }),
);

Deno.test("rule 10: after close() no update is due, and read bytes are still counted", () => {
  const { inbound } = inboundOf(1000, 0);
  inbound.read(1);
  inbound.window.close();
  assertEquals(inbound.read(999), false);
  assertEquals(inbound.window.consumed, 1000);
  const { inbound: never } = inboundOf(1000, 0);
  never.window.close();
  assertEquals(never.read(1000), false);
});

Deno.test(
  "rule 10: the round trip is measured from an update to the first byte beyond the previous limit",
  withFakeTime((time) => {
    const { pool, inbound } = inboundOf(4 * MiB, 4 * MiB);
    inbound.read(MIN_FIRST_UPDATE_BYTES);
    time.now += 30;
    inbound.arrive(INITIAL_WINDOW - MIN_FIRST_UPDATE_BYTES);
    assertEquals(pool.roundTrip, 0, "the last byte within the old limit is no measurement");
    time.now += 20;
    inbound.arrive(1);
    assertEquals(pool.roundTrip, 50);
    time.now += 7;
    inbound.arrive(1);
    assertEquals(pool.roundTrip, 50, "an update is measured once");
  }),
);

Deno.test(
  "rule 10: the pool keeps the shortest round trip of all streams",
  withFakeTime((time) => {
    const pool = new WindowPool(4 * MiB, 4 * MiB);
    for (const [elapsed, least] of [[50, 50], [12, 12], [70, 12], [11, 11]] as const) {
      const inbound = new Inbound(pool);
      inbound.measure(time, elapsed);
      assertEquals(pool.roundTrip, least);
    }
  }),
);

Deno.test("rule 10: a round trip is measured across 2^32", () => {
  for (const distance of [-1000, -1, 0, 1, 1000]) {
    withFakeTime((time) => {
      const { pool, inbound } = inboundOf(64 * KiB, 0);
      inbound.skipTo(2 ** 32 + distance - 64 * KiB);
      assertEquals([pool.roundTrip, inbound.limit], [0, 2 ** 32 + distance]);
      inbound.read(32 * KiB);
      for (let times = 0; times < 4; times++) {
        inbound.arrive(8 * KiB);
        assertEquals(pool.roundTrip, 0);
      }
      time.now += 9;
      inbound.arrive(2000);
      assertEquals(pool.roundTrip, 9);
    })();
  }
});

Deno.test(
  "rule 10: an update that does not move the limit starts no measurement",
  withFakeTime((time) => {
    const { pool, inbound } = inboundOf(4 * MiB, 4 * MiB);
    assertEquals(inbound.window.advertise(), INITIAL_WINDOW);
    time.now += 100;
    inbound.measure(time, ROUND_TRIP);
    assertEquals(pool.roundTrip, ROUND_TRIP);
  }),
);

Deno.test(
  "rule 10: a closed window measures nothing",
  withFakeTime((time) => {
    const { pool, inbound } = inboundOf(4 * MiB, 4 * MiB);
    inbound.read(1);
    inbound.window.close();
    time.now += 5;
    inbound.arrive(300_000);
    assertEquals(pool.roundTrip, 0);
  }),
);

/** Bytes arrive up to the limit within `busy` ms of the first update; the next byte follows after `elapsed` ms. */
function answered(shortest: number, busy: number, elapsed: number, window: (inbound: Inbound) => void = () => {}) {
  return withFakeTime((time) => {
    const { pool, inbound } = inboundOf(8 * MiB, 8 * MiB);
    pool.roundTrip = shortest;
    inbound.read(INITIAL_WINDOW - 200_000);
    time.now += busy;
    inbound.arrive(200_000);
    time.now += elapsed - busy;
    inbound.arrive(1);
    inbound.read(inbound.received - inbound.consumed);
    window(inbound);
  });
}

Deno.test("rule 10: a window grows to 1.25 times what the link carries in a round trip in which the sender waited", () => {
  // 262145 bytes arrived in `busy` of 100 milliseconds.
  for (const [busy, size] of [[50, 655_362], [75, 436_908], [74, 442_812], [76, 262_144], [100, 262_144]] as const) {
    answered(100, busy, 100, ({ advertised }) => assertEquals(advertised, size, `${busy} ms`))();
  }
});

Deno.test("rule 10: a window grows by a factor of 8 at most in a round trip", () => {
  for (const busy of [0, 1]) answered(0, busy, 50, ({ advertised }) => assertEquals(advertised, 8 * INITIAL_WINDOW))();
});

Deno.test(
  "rule 10: a window does not grow when the sender does not wait for credit",
  withFakeTime((time) => {
    const { pool, inbound } = inboundOf(8 * MiB, 8 * MiB);
    inbound.read(INITIAL_WINDOW - 200_000);
    inbound.arrive(199_999);
    time.now += 50;
    // The bytes before and after the limit arrive together.
    inbound.arrive(2);
    inbound.read(inbound.received - inbound.consumed);
    assertEquals([inbound.advertised, pool.roundTrip], [INITIAL_WINDOW, 0]);
  }),
);

Deno.test(
  "rule 10: a window does not grow when the application reads slowly, even with a short round trip",
  withFakeTime((time) => {
    const { pool, inbound } = inboundOf(8 * MiB, 8 * MiB);
    pool.roundTrip = ROUND_TRIP;
    for (let times = 0; times < 20; times++) {
      inbound.arriveAll();
      time.now += 1000;
      while (!inbound.read(8 * KiB));
      time.now += ROUND_TRIP;
    }
    assertEquals([inbound.advertised, pool.granted], [INITIAL_WINDOW, INITIAL_WINDOW]);
  }),
);

Deno.test("rule 10: a window shrinks when the bytes on their way took 30 ms longer than the shortest round trip", () => {
  const cases = [[40, 262_144], [41, 183_500], [80, 131_072], [1000, 65_536], [30_000, 65_536]] as const;
  for (const [busy, size] of cases) {
    answered(ROUND_TRIP, busy, busy, (inbound) => {
      // The previous limit holds; the smaller window applies to the next update.
      inbound.arriveAll();
      while (!inbound.read(8 * KiB));
      assertEquals(inbound.advertised, size, `${busy} ms`);
    })();
  }
});

Deno.test("rule 10: a window shrinks to 32 KiB at the least, or to the largest window if that is less", () => {
  for (const largest of [8 * MiB, 10_000]) {
    withFakeTime((time) => {
      const { pool, inbound } = inboundOf(largest, 8 * MiB);
      pool.roundTrip = ROUND_TRIP;
      for (let times = 0; times < 30; times++) inbound.queue(time, 500);
      const least = Math.min(largest, 32 * KiB);
      assertEquals([inbound.advertised, pool.granted], [least, least]);
      assertEquals(inbound.window.allowed, INITIAL_WINDOW, "data on its way is accepted");
    })();
  }
});

Deno.test(
  "rule 10: a window that shrank grows back to its first size without a queue, in an exhausted pool",
  withFakeTime((time) => {
    const pool = new WindowPool(8 * MiB, 1 * MiB);
    const [inbound, other] = [new Inbound(pool), new Inbound(pool)];
    pool.roundTrip = ROUND_TRIP;
    for (let times = 0; times < 30; times++) inbound.queue(time, 500);
    inbound.read(inbound.received - inbound.consumed);
    other.growTo(INITIAL_WINDOW + 1 * MiB, time);
    for (let laps = 0; laps < 60; laps++) inbound.lap(time);
    assertEquals([inbound.advertised, pool.granted], [INITIAL_WINDOW, 2 * INITIAL_WINDOW + 1 * MiB]);
  }),
);

Deno.test(
  "rule 10: a sender that does not wait for credit does not measure a queue",
  withFakeTime((time) => {
    const { pool, inbound } = inboundOf(8 * MiB, 8 * MiB);
    pool.roundTrip = ROUND_TRIP;
    // Messages of 1001 bytes: no message ends at the limit.
    for (let times = 0; times < 3000; times++) {
      time.now += ROUND_TRIP;
      inbound.read(1001);
    }
    assertEquals([inbound.advertised, pool.roundTrip], [INITIAL_WINDOW, ROUND_TRIP]);
  }),
);

Deno.test(
  "rule 10: a new stream starts with the size last measured, as far as the pool allows",
  withFakeTime((time) => {
    const pool = new WindowPool(2 * MiB, 3 * MiB);
    const first = new Inbound(pool);
    first.growTo(2 * MiB, time);
    const [second, third] = [new Inbound(pool), new Inbound(pool)];
    for (const inbound of [second, third]) inbound.read(1);
    // The first window has 2 MiB - INITIAL_WINDOW of the 3 MiB.
    assertEquals([second.advertised, third.advertised], [1 * MiB + 2 * INITIAL_WINDOW, INITIAL_WINDOW]);
    assertEquals(second.window.isSmall, false);
    for (const { window } of [first, second, third]) window.close();
    assertEquals(pool.granted, 0);
  }),
);

Deno.test(
  "rule 10: a new stream starts with the first window after others had to shrink, and after they grow again",
  withFakeTime((time) => {
    const pool = new WindowPool(2 * MiB, 3 * MiB);
    pool.roundTrip = ROUND_TRIP;
    const slow = new Inbound(pool);
    for (let times = 0; times < 30; times++) slow.queue(time, 500);
    assertEquals(slow.advertised, MIN_WINDOW);
    const sizes = () => {
      const next = new ReceiveWindow(pool);
      return [next.isSmall, next.advertise()];
    };
    assertEquals(sizes(), [false, INITIAL_WINDOW]);
    for (let laps = 0; laps < 10; laps++) slow.lap(time);
    assertEquals([slow.advertised > MIN_WINDOW, slow.advertised < INITIAL_WINDOW], [true, true]);
    assertEquals(sizes(), [false, INITIAL_WINDOW]);
  }),
);

Deno.test(
  "rule 10: a window does not grow when the round trip is too short to be measured",
  withFakeTime((time) => {
    const { pool, inbound } = inboundOf(8 * MiB, 8 * MiB);
    for (let laps = 0; laps < 10; laps++) inbound.lap(time, 0);
    assertEquals([inbound.advertised, pool.roundTrip], [INITIAL_WINDOW, 0]);
  }),
);

Deno.test(
  "rule 10: a window grows up to the largest window",
  withFakeTime((time) => {
    const { pool, inbound } = inboundOf(1_000_000, 100 * MiB);
    const sizes = new Set<number>();
    for (let laps = 0; laps < 20; laps++) {
      inbound.lap(time);
      sizes.add(inbound.advertised);
    }
    assertEquals([...sizes].at(-1), 1_000_000);
    assert([...sizes].every((size, n, all) => n === 0 || size > all[n - 1]!), "the window decreased");
    assertEquals(pool.granted, 1_000_000);
  }),
);

Deno.test(
  "rule 10: a window with half of its bytes unread shrinks to its advertised credit as it is read",
  withFakeTime((time) => {
    const { pool, inbound } = inboundOf(2 * MiB, 4 * MiB);
    inbound.growTo(2 * MiB, time);
    while (!inbound.read(32 * KiB));
    // One byte less than half of the window is unread.
    inbound.arrive(2 * MiB - 1);
    assertEquals(inbound.read(1 * MiB), true);
    assertEquals([inbound.advertised, pool.granted], [2 * MiB, 2 * MiB]);
    // Half is unread: the credit beyond the read bytes stays, but is not renewed.
    inbound.arrive(1 * MiB + 1);
    assertEquals(inbound.read(1 * MiB), false);
    assertEquals(pool.granted, 1 * MiB);
  }),
);

Deno.test(
  "rule 10: a window that stays half unread shrinks to the first window",
  withFakeTime((time) => {
    const { pool, inbound } = inboundOf(2 * MiB, 4 * MiB);
    inbound.growTo(2 * MiB, time);
    inbound.arriveAll();
    const { limit, updates } = inbound;
    while (inbound.consumed + INITIAL_WINDOW < limit) inbound.read(32 * KiB);
    assertEquals([inbound.limit, inbound.updates], [limit, updates], "more credit than was advertised");
    for (let times = 0; times < 50; times++) {
      inbound.read(32 * KiB);
      inbound.arriveAll();
      assertGreaterOrEqual(inbound.limit - inbound.consumed, INITIAL_WINDOW / 2);
    }
    assertEquals([inbound.advertised, pool.granted], [INITIAL_WINDOW, INITIAL_WINDOW]);
  }),
);

Deno.test(
  "rule 10: a window that shrank grows again when it is read at full speed",
  withFakeTime((time) => {
    const { pool, inbound } = inboundOf(2 * MiB, 4 * MiB);
    inbound.growTo(2 * MiB, time);
    inbound.arriveAll();
    while (pool.granted > INITIAL_WINDOW) inbound.read(32 * KiB);
    while (inbound.received > inbound.consumed) inbound.read(1);
    inbound.growTo(2 * MiB, time);
    assertEquals(pool.granted, 2 * MiB);
  }),
);

Deno.test("rule 10: a window grows across 2^32", () => {
  for (const start of [100_000, 300_000, 1 * MiB, 3 * MiB]) {
    withFakeTime((time) => {
      const { inbound } = inboundOf(2 * MiB, 4 * MiB);
      inbound.skipTo(2 ** 32 - start);
      inbound.growTo(2 * MiB, time);
    })();
  }
});

Deno.test("rule 10: a window shrinks across 2^32, and the pool counts its advertised credit", () => {
  for (const start of [100_000, 1 * MiB, 1.9 * MiB]) {
    withFakeTime((time) => {
      const { pool, inbound } = inboundOf(2 * MiB, 4 * MiB);
      inbound.skipTo(2 ** 32 - 10 * MiB);
      inbound.growTo(2 * MiB, time);
      while (inbound.consumed < 2 ** 32 - start) inbound.read(32 * KiB);
      inbound.arriveAll();
      while (pool.granted > INITIAL_WINDOW) {
        inbound.read(32 * KiB);
        assertGreaterOrEqual(pool.granted, inbound.limit - inbound.consumed);
      }
    })();
  }
});

Deno.test(
  "rule 10: all windows together grow by no more than the room of the pool",
  withFakeTime((time) => {
    const pool = new WindowPool(8 * MiB, 300_000);
    const [one, two] = [new Inbound(pool), new Inbound(pool)] as const;
    one.growTo(INITIAL_WINDOW + 300_000, time);
    // Each stream has its first window, in an exhausted pool too.
    const three = new Inbound(pool);
    for (let laps = 0; laps < 20; laps++) for (const inbound of [two, three]) inbound.lap(time);
    const windows = [one, two, three].map(({ advertised }) => advertised);
    assertEquals(windows, [INITIAL_WINDOW + 300_000, INITIAL_WINDOW, INITIAL_WINDOW]);
    assertEquals(pool.granted, 3 * INITIAL_WINDOW + 300_000);
  }),
);

Deno.test(
  "rule 10: growth of a stream returns to the pool when its window closes or shrinks",
  withFakeTime((time) => {
    const pool = new WindowPool(8 * MiB, INITIAL_WINDOW);
    const [one, two, three] = [new Inbound(pool), new Inbound(pool), new Inbound(pool)] as const;
    one.growTo(2 * INITIAL_WINDOW, time);
    for (let laps = 0; laps < 20; laps++) two.lap(time);
    assertEquals(two.advertised, INITIAL_WINDOW);

    one.window.close();
    assertEquals(pool.granted, 2 * INITIAL_WINDOW);
    two.growTo(2 * INITIAL_WINDOW, time);
    assertEquals(pool.granted, 3 * INITIAL_WINDOW);

    two.arriveAll();
    while (pool.granted > 2 * INITIAL_WINDOW) two.read(32 * KiB);
    three.growTo(2 * INITIAL_WINDOW, time);
    assertEquals(pool.granted, 3 * INITIAL_WINDOW);
  }),
);

Deno.test(
  "rule 10: growth of a stream idle for a second returns to the pool when another stream needs it",
  withFakeTime((time) => {
    const pool = new WindowPool(2 * MiB, 3 * MiB);
    const shrunk: string[] = [];
    const make = (name: string) => new Inbound(pool, () => void shrunk.push(name));
    const [idle, busy] = [make("idle"), make("busy")];
    idle.growTo(2 * MiB, time);
    const left = 3 * MiB - (2 * MiB - INITIAL_WINDOW);
    for (let laps = 0; laps < 20; laps++) busy.lap(time);
    assertEquals([busy.advertised, shrunk], [INITIAL_WINDOW + left, []]);
    const promised = idle.limit - idle.consumed;
    assertEquals(idle.received, idle.consumed);
    while (shrunk.length === 0) {
      busy.lap(time);
      assert(time.now < 10_000, "the growth was not returned");
    }
    assertEquals(shrunk, ["idle"]);
    assertEquals(idle.window.advertise(), INITIAL_WINDOW, "the limit decreases");
    assertGreaterOrEqual(idle.window.allowed, promised, "data on its way is accepted");
    busy.growTo(2 * MiB, time);
    assertEquals(pool.granted, 2 * MiB + INITIAL_WINDOW);
    for (const { window } of [idle, busy]) window.close();
    assertEquals(pool.granted, 0);
  }),
);

Deno.test(
  "rule 10: close() returns a window to the pool once",
  withFakeTime((time) => {
    const pool = new WindowPool(1 * MiB, 1 * MiB);
    const [one, two] = [new Inbound(pool), new Inbound(pool)] as const;
    one.growTo(1 * MiB, time);
    assertEquals(pool.granted, 1 * MiB + INITIAL_WINDOW);
    one.window.close();
    one.window.close();
    assertEquals(pool.granted, INITIAL_WINDOW);
    two.window.close();
    assertEquals(pool.granted, 0);
    // With too much returned, these windows could grow by more than the room of the pool.
    const [three, four] = [new Inbound(pool), new Inbound(pool)] as const;
    three.growTo(1 * MiB, time);
    for (let laps = 0; laps < 20; laps++) four.lap(time);
    assertEquals([four.advertised, pool.granted], [2 * INITIAL_WINDOW, 2 * INITIAL_WINDOW + 1 * MiB]);
  }),
);

Deno.test(
  "rule 10: a limit never decreases, in any order of reads",
  withFakeTime((time) => {
    const pool = new WindowPool(4 * MiB, 3 * MiB);
    const all = [new Inbound(pool), new Inbound(pool), new Inbound(pool)];
    // Read quickly, slowly, and with a backlog in turn; Inbound compares each limit with the previous one.
    for (let times = 0; times < 600; times++) {
      const inbound = all[times % 3]!;
      if (times % 200 < 100) {
        while (inbound.received > inbound.consumed) inbound.read(1 * KiB);
        inbound.lap(time, times % 100 < 80 ? ROUND_TRIP : 50);
      } else {
        inbound.arriveAll();
        inbound.read(32 * KiB);
      }
      const { granted } = pool;
      assert(granted >= 3 * MIN_WINDOW && granted <= 3 * INITIAL_WINDOW + 3 * MiB, `granted ${granted}`);
    }
    for (const inbound of all) assertGreater(inbound.updates, 20);
  }),
);

Deno.test("rule 10: WindowPool.share has no limit until half of the capacity is unread, then falls to 1 KiB", () => {
  const pool = new WindowPool(8 * MiB, 8 * MiB, 16 * MiB);
  const shares = [0, 8 * MiB - 1, 8 * MiB, 12 * MiB, 14 * MiB, 16 * MiB - 1, 17 * MiB].map((unread) => {
    pool.unread = unread;
    return pool.share;
  });
  assertEquals(shares, [MAX_WINDOW, MAX_WINDOW, 32 * KiB, 16 * KiB, 8 * KiB, 1 * KiB, 1 * KiB]);
  // A share is at most the first window.
  const small = new WindowPool(100, 100, 200);
  small.unread = 200;
  assertEquals(small.share, 100);
});

Deno.test("rule 10: a stream opened while room is scarce starts with its share, and has the first window once there is room", () => {
  const pool = new WindowPool(8 * MiB, 8 * MiB, 16 * MiB);
  assertEquals(new ReceiveWindow(pool).isSmall, false);
  pool.unread = 12 * MiB;
  const window = new ReceiveWindow(pool);
  assertEquals([window.isSmall, window.advertise()], [true, 16 * KiB]);
  window.arrived(16 * KiB);
  assertEquals([window.read(100, 16 * KiB - 100), window.advertise()], [true, 16 * KiB]);
  pool.unread = 0;
  assertEquals([window.read(100, 16 * KiB - 200), window.advertise()], [true, INITIAL_WINDOW]);
});

Deno.test("rule 10: a stream that holds its share while room is scarce loses its credit, and regains it by reading", () => {
  const pool = new WindowPool(8 * MiB, 8 * MiB, 16 * MiB);
  const window = new ReceiveWindow(pool);
  window.arrived(100_000);
  assertEquals(window.revoke(100_000), false, "room is not scarce");
  pool.unread = 12 * MiB;
  assertEquals(window.revoke(16 * KiB - 1), false, "less than the share");
  assertEquals(window.revoke(100_000), true);
  assertEquals(window.advertise(), 100_000, "the limit is what has arrived");
  assertEquals(window.revoke(100_000), false, "no credit is left to revoke");
  // Data on its way, up to the old limit, is accepted.
  window.arrived(INITIAL_WINDOW - 100_000);
  assertEquals(window.allowed, INITIAL_WINDOW);
  assertEquals(window.revoke(INITIAL_WINDOW), false);
  // Credit returns when less than half of a share is unread, up to one share.
  assertEquals(window.read(INITIAL_WINDOW - 8 * KiB - 1, 8 * KiB + 1), true, "an update is due on the first read");
  assertEquals(window.advertise(), 16 * KiB);
  assertEquals(window.read(1, 8 * KiB), false);
  assertEquals(window.read(8 * KiB, 0), true);
  assertEquals(window.advertise(), 16 * KiB);
});

Deno.test("rule 10: credit that was revoked before the first update returns with the first read", () => {
  const pool = new WindowPool(8 * MiB, 8 * MiB, 16 * MiB);
  const window = new ReceiveWindow(pool);
  pool.unread = 16 * MiB;
  window.arrived(1024);
  assertEquals(window.revoke(1024), true);
  assertEquals(window.advertise(), 1024);
  pool.unread = 0;
  assertEquals([window.read(1024, 0), window.advertise()], [true, INITIAL_WINDOW]);
});

Deno.test("rule 10: a stream with revoked credit has an update due once all its bytes are read", () => {
  for (const unread of [8 * MiB, 12 * MiB, 15 * MiB, 16 * MiB]) {
    const pool = new WindowPool(8 * MiB, 8 * MiB, 16 * MiB);
    const window = new ReceiveWindow(pool);
    window.arrived(MIN_FIRST_UPDATE_BYTES);
    assertEquals(window.read(MIN_FIRST_UPDATE_BYTES, 0), true);
    window.advertise();
    pool.unread = unread;
    for (let total = 0; total < 1 * MiB;) {
      const credit = 50_000;
      window.arrived(credit);
      const isRevoked = window.revoke(credit);
      let isDue = false;
      for (let left = credit; left > 0; left -= 1000) isDue = window.read(1000, left - 1000) || isDue;
      if (isRevoked) assert(isDue, `no update after ${total + credit} bytes with ${unread} unread`);
      if (isDue) assertGreaterOrEqual(window.advertise(), 512);
      total += credit;
    }
  }
});

Deno.test(
  "rule 10: revoking a window larger than its share still accepts the data on its way",
  withFakeTime((time) => {
    const pool = new WindowPool(4 * MiB, 8 * MiB, 16 * MiB);
    const inbound = new Inbound(pool);
    inbound.growTo(4 * MiB, time);
    const granted = inbound.limit - inbound.consumed;
    inbound.arrive(1 * MiB);
    pool.unread = 9 * MiB;
    const unread = inbound.received - inbound.consumed;
    assertEquals(inbound.window.revoke(unread), true);
    assertEquals(inbound.window.advertise(), unread);
    assertGreaterOrEqual(inbound.window.allowed, granted);
  }),
);
