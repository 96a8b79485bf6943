/**
 * The deadlines of a session: when each expires, and how a freeze of the process extends it.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { Deadline, type DeadlineHost, Deadlines } from "../_deadlines.ts";
import { FrameWriter } from "../_writer.ts";
import { clock } from "../_clock.ts";
import { adapt } from "../_adapt.ts";
import { ManualClock } from "./support.ts";

/** Deadlines with an idle writer, and the events that they reported, each with its time in milliseconds. */
function start(settings: { keepAliveInterval?: number; timeout?: number }, host: Partial<DeadlineHost> = {}) {
  const time = new ManualClock();
  const started = clock.now();
  const events: string[] = [];
  const report = (name: string) => void events.push(`${name} ${clock.now() - started}`);
  const connection = {
    read: () => new Promise<never>(() => {}),
    write: (p: Uint8Array) => Promise.resolve(p.length),
    close() {},
  };
  const writer = new FrameWriter(adapt(connection), 2, { refusalsEncoded() {}, writerIdle() {}, writerFailed() {} });
  const all: DeadlineHost = {
    get silentSince() {
      return deadlines.silence.since;
    },
    isSuspended: false,
    resumptions: 0,
    isLingering: false,
    bytesReceived: 0,
    keepAlive: () => report("keepalive"),
    silenceExpired: () => report("silence"),
    closeExpired: (limit) => report(`close after ${limit} at`),
    lingerExpired: () => report("linger"),
    checkStalled: () => Infinity,
    excuse: (late) => report(`late by ${late} at`),
  };
  const { keepAliveInterval = Infinity, timeout = Infinity } = settings;
  const merged = Object.defineProperties(all, Object.getOwnPropertyDescriptors(host));
  const deadlines = new Deadlines({ keepAliveInterval, timeout }, merged, writer);
  deadlines.schedule();
  return { time, deadlines, events, host: merged as { -readonly [Name in keyof DeadlineHost]: DeadlineHost[Name] } };
}

Deno.test("Deadline.at is the start plus the limit", () => {
  assertEquals(new Deadline(1000, 50).at, 1050);
});

Deno.test("Deadline.excuse() leaves the whole limit after a freeze, once in a wait", () => {
  const deadline = new Deadline(1000, 50);
  deadline.excuse(500, 1550);
  assertEquals(deadline.at, 1600);
  // A second freeze without a sign of life: the remaining time stays the same.
  deadline.excuse(500, 2090);
  assertEquals(deadline.at, 2100);
  deadline.since = 2095;
  deadline.excuse(500, 2600);
  assertEquals(deadline.at, 2650);
});

Deno.test("Deadline.excuse() never moves a start into the future", () => {
  const deadline = new Deadline(1000, 50);
  deadline.excuse(500, 1010);
  assertEquals(deadline.since, 1010);
});

Deno.test("Deadlines report silence after the timeout, counted from the last sign of life", async () => {
  const { time, deadlines, events } = start({ timeout: 300 });
  using _ = time;
  await time.advance(250);
  deadlines.silence.since = clock.now();
  await time.advance(299);
  assertEquals(events, []);
  await time.advance(1);
  assertEquals(events, ["silence 550"]);
  assertEquals(time.pending, 0);
});

Deno.test("Deadlines report a keepalive after each interval without a write", async () => {
  const { time, deadlines, events } = start({ keepAliveInterval: 100 });
  using _ = time;
  await time.advance(99);
  assertEquals(events, []);
  await time.advance(1);
  assertEquals(events, ["keepalive 100"]);
  // No write followed: the next check comes after half an interval at the earliest.
  await time.advance(50);
  assertEquals(events, ["keepalive 100", "keepalive 150"]);
  deadlines.end();
  assertEquals(time.pending, 0);
});

Deno.test("Deadlines report a close that exceeds its timeout", async () => {
  const { time, deadlines, events } = start({ timeout: 10_000 });
  using _ = time;
  await time.advance(100);
  deadlines.startClose(40);
  await time.advance(39);
  assertEquals(events, []);
  await time.advance(1);
  assertEquals(events, ["close after 40 at 140"]);
});

Deno.test("Deadlines report the end of lingering after one second without a byte", async () => {
  const { time, deadlines, events, host } = start({});
  using _ = time;
  host.isLingering = true;
  deadlines.startLinger();
  await time.advance(900);
  host.bytesReceived = 5;
  await time.advance(1099);
  assertEquals(events, []);
  await time.advance(1);
  assertEquals(events, ["linger 2000"]);
});

Deno.test("Deadlines extend the timeout once after a freeze", async () => {
  const { time, events } = start({ timeout: 300 });
  using _ = time;
  time.freeze(1000);
  await time.advance(0);
  // The timer was due after a third of the timeout.
  assertEquals(events, ["late by 900 at 1000"]);
  await time.advance(299);
  assertEquals(events.length, 1);
  await time.advance(1);
  assertEquals(events.at(-1), "silence 1300");
});

Deno.test("Deadlines set no timer after end()", async () => {
  const { time, deadlines, events } = start({ timeout: 300, keepAliveInterval: 100 });
  using _ = time;
  deadlines.end();
  assertEquals(time.pending, 0);
  deadlines.schedule();
  deadlines.arm(clock.now());
  assertEquals(time.pending, 0);
  await time.advance(1000);
  assertEquals(events, []);
});
