import { assertEquals } from "@std/assert";
import { FlightLimit } from "../_flight.ts";
import { KiB, ManualClock, MiB } from "./support.ts";

const MIN = 768 * KiB;
const MAX = 4 * MiB;

/** A limit and its bytes, which the peer acknowledges after `roundTrip` milliseconds. */
class Link {
  readonly flight = new FlightLimit(MAX);
  readonly #clock: ManualClock;
  #count = 0;

  constructor(clock: ManualClock) {
    this.#clock = clock;
    this.flight.attached();
  }

  /** Sends as much as the limit allows, and returns the limit after the round trip. */
  roundTrip(milliseconds: number): number {
    const base = this.#count;
    this.#count += this.flight.limit;
    this.flight.reached(this.#count, base);
    this.#clock.freeze(milliseconds / 2);
    this.flight.reached(this.#count + 1, base + 1);
    this.flight.acknowledged(this.#count - 1);
    this.#clock.freeze(milliseconds / 2);
    this.flight.acknowledged(this.#count);
    return this.flight.limit;
  }

  /** The limits after as many round trips. */
  roundTrips(count: number, milliseconds = 50): number[] {
    return Array.from({ length: count }, () => this.roundTrip(milliseconds));
  }
}

Deno.test("the limit of bytes in flight is 768 KiB, and 1536 KiB after a short round trip", () => {
  using clock = new ManualClock();
  const link = new Link(clock);
  assertEquals(link.flight.limit, MIN);
  for (const milliseconds of [2, 1, 0, 0.5, 2]) assertEquals(link.roundTrip(milliseconds), 2 * MIN);
  assertEquals([link.roundTrip(2.1), link.roundTrip(1)], [MIN, 2 * MIN]);
});

Deno.test("the limit of bytes in flight stays at 768 KiB until long round trips in a row took 30 ms", () => {
  using clock = new ManualClock();
  const link = new Link(clock);
  assertEquals(link.roundTrips(14, 2.1), Array(14).fill(MIN));
  assertEquals(link.roundTrip(2), 2 * MIN);
  assertEquals(link.roundTrips(14, 2.1), Array(14).fill(MIN));
  // Twice what the link carries in 2 ms.
  assertEquals(link.roundTrip(2.1), Math.round(2 * MIN * 2 / 2.1));
});

Deno.test("the limit of bytes in flight doubles in each round trip of a long link, up to the maximum", () => {
  using clock = new ManualClock();
  const link = new Link(clock);
  assertEquals(link.roundTrips(4), [2 * MIN, 4 * MIN, MAX, MAX]);
});

Deno.test("the limit of bytes in flight is twice what a link carries in its shortest round trip, if bytes queue", () => {
  using clock = new ManualClock();
  const link = new Link(clock);
  // 40 MB/s and 30 ms: 1 200 000 bytes.
  const roundTrip = () => link.roundTrip(Math.max(30, link.flight.limit / 40_000));
  assertEquals(Array.from({ length: 4 }, roundTrip), [1_572_864, 2_400_000, 2_400_000, 2_400_000]);
});

Deno.test("the limit of bytes in flight shrinks with the rate, and when an end has become faster", () => {
  using clock = new ManualClock();
  const link = new Link(clock);
  link.roundTrips(3);
  assertEquals([link.roundTrip(200), link.roundTrip(3), link.roundTrip(1)], [2 * MiB, MAX, 2 * MIN]);
});

Deno.test("the limit of bytes in flight stays while the application writes less", () => {
  using clock = new ManualClock();
  const link = new Link(clock);
  link.roundTrip(50);
  clock.freeze(10);
  link.flight.acknowledged(100 * MiB);
  assertEquals(link.flight.limit, 2 * MIN);
});

Deno.test("one in 128 round trips has 768 KiB in flight, so that a longer route is seen", () => {
  using clock = new ManualClock();
  const link = new Link(clock);
  // 20 MB/s: the shortest round trip needs 2 MB.
  const roundTrip = (shortest: number) => link.roundTrip(Math.max(shortest, link.flight.limit / 20_000));
  for (let n = 1; n < 128; n++) roundTrip(50);
  assertEquals(link.flight.limit, 2_000_000);
  assertEquals(roundTrip(50), MIN);
  // What was in flight before does not show how long the route is.
  link.flight.reached(1000 * MiB, 998 * MiB);
  clock.freeze(100);
  link.flight.acknowledged(1000 * MiB);
  assertEquals(link.flight.limit, MIN);
  assertEquals([roundTrip(75), roundTrip(75)], [2_000_000, 3_000_000]);
});

Deno.test("the limit of bytes in flight is 768 KiB again on the next carrier", () => {
  using clock = new ManualClock();
  const link = new Link(clock);
  link.roundTrips(3);
  link.flight.reached(100 * MiB, 98 * MiB);
  link.flight.attached();
  clock.freeze(50);
  link.flight.acknowledged(100 * MiB);
  assertEquals([link.flight.limit, ...link.roundTrips(2, 20)], [MIN, MIN, 2 * MIN]);
});

Deno.test("a maximum below 768 KiB is the limit of bytes in flight", () => {
  using _clock = new ManualClock();
  const flight = new FlightLimit(100_000);
  flight.attached();
  assertEquals(flight.limit, 100_000);
});
