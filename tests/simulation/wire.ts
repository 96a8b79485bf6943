/**
 * The connection between two sessions: it splits and delays bytes as real connections do, and can fail or corrupt them.
 *
 * @module
 */

import { concat } from "@std/bytes";
import type { Transport } from "../../mod.ts";
import { PipedConnection } from "../support.ts";
import type { Random } from "./random.ts";
import type { Scheduler } from "./scheduler.ts";

// Larger than a read of a session.
const LARGEST_CHUNK = 100_000;

/** The properties of one direction. */
export interface Travel {
  /** Delay of every byte, in milliseconds. */
  readonly latency: number;
  /** Largest additional delay, in milliseconds; the order is kept. */
  readonly jitter: number;
  /** Bytes per millisecond. */
  readonly rate: number;
  /** Most bytes that one read returns, and one write consumes. */
  readonly mostRead: number;
  readonly mostWrite: number;
  /** Most bytes in flight. */
  readonly capacity: number;
  /** Positions at which the direction pauses. */
  readonly pauses: { at: number; milliseconds: number }[];
}

/** A fault, at a byte of one direction. */
export interface Fault {
  readonly kind: "end" | "reset" | "stall" | "flip" | "duplicate" | "drop";
  readonly at: number;
  /** Number of bytes affected, for kinds that affect several. */
  readonly length: number;
}

/** Observes the bytes of one direction. */
export interface Watch {
  /** A session wrote these bytes; returns the bytes to send, which include a forged frame if one is due. */
  sent(bytes: Uint8Array): Uint8Array;
  /** The other session reads again: it has processed all bytes delivered so far. */
  asked(): void;
  /** The other session received these bytes. */
  delivered(bytes: Uint8Array): void;
  /** The fault occurred. */
  broke(fault: Fault): void;
}

/** Creates an error like those of Deno's connections, which are identified by name. */
export function broken(name: string, message: string): Error {
  return Object.assign(new Error(message), { name });
}

interface Waiting {
  resolve(count: number | null): void;
  reject(error: Error): void;
  p: Uint8Array;
}

/** One direction. */
export class Pipe {
  readonly #scheduler: Scheduler;
  readonly #random: Random;
  readonly #travel: Travel;
  readonly #fault: Fault | undefined;
  readonly #watch: Watch;
  /** Breaks both directions; set by {@linkcode connect}. */
  breakBoth: (how: "end" | "reset") => void = () => {};
  readonly #flying: Uint8Array[] = [];
  readonly #arrived: Uint8Array[] = [];
  #held = 0;
  #sent = 0;
  #pauses = 0;
  #lastArrival = 0;
  #isStalled = false;
  #isCut = false;
  #isEnding = false;
  #isEnded = false;
  #isDeaf = false;
  #error: Error | undefined;
  #reader: Waiting | undefined;
  #writer: Waiting | undefined;

  constructor(scheduler: Scheduler, random: Random, travel: Travel, fault: Fault | undefined, watch: Watch) {
    this.#scheduler = scheduler;
    this.#random = random;
    this.#travel = travel;
    this.#fault = fault;
    this.#watch = watch;
  }

  /** Whether the bytes in flight arrive later than the linger time of a closing peer. */
  get isHeldUp(): boolean {
    return this.#lastArrival > this.#scheduler.now + 500;
  }

  /** Skips the remaining pauses. */
  hurry(): void {
    this.#pauses = this.#travel.pauses.length;
  }

  /** Whether bytes have arrived that are unread. */
  get hasUnread(): boolean {
    return this.#arrived.length > 0;
  }

  read(p: Uint8Array): Promise<number | null> {
    this.#watch.asked();
    return this.#wait(p, (waiting) => {
      this.#reader = waiting;
      this.#give();
    });
  }

  write(p: Uint8Array): Promise<number> {
    return this.#wait(p, (waiting) => {
      this.#writer = waiting;
      this.#take();
    }) as Promise<number>;
  }

  /** Drops everything that is written from now on, without a sign of it. */
  stall(): void {
    this.#isStalled = true;
  }

  /** Ends the direction after the bytes written so far. */
  end(): void {
    if (this.#isEnding) return;
    this.#isEnding = true;
    if (!this.#isStalled) this.#arrive(() => this.#finish());
  }

  /** Closes the reading end; bytes that still arrive reset the connection. */
  deafen(): void {
    this.#isDeaf = true;
    this.#reader?.reject(broken("Interrupted", "The connection was closed here"));
    this.#reader = undefined;
    this.#arrived.length = 0;
    this.#give();
  }

  /** Closes the writing end. */
  silence(): void {
    this.#writer?.reject(broken("BadResource", "The connection was closed here"));
    this.#writer = undefined;
    this.end();
  }

  /** Resets the direction; unread bytes are lost. */
  fail(): void {
    if (this.#error !== undefined) return;
    this.#error = broken("ConnectionReset", "Connection reset by peer");
    this.#flying.length = this.#arrived.length = 0;
    this.#reader?.reject(this.#error);
    this.#writer?.reject(this.#error);
    this.#reader = this.#writer = undefined;
  }

  #wait(p: Uint8Array, begin: (waiting: Waiting) => void): Promise<number | null> {
    const { promise, resolve, reject } = Promise.withResolvers<number | null>();
    begin({ p, resolve, reject });
    return promise;
  }

  #finish(): void {
    this.#isEnded = true;
    this.#give();
  }

  // Completes a waiting read with the bytes that have arrived.
  #give(): void {
    const { p, resolve, reject } = this.#reader ?? {};
    if (p === undefined) return;
    const first = this.#arrived[0];
    if (this.#error === undefined && first === undefined && !this.#isEnded) return;
    this.#reader = undefined;
    if (this.#error !== undefined) return reject!(this.#error);
    if (first === undefined) return resolve!(null);
    const count = Math.min(p.length, first.length, this.#random.skewed(this.#travel.mostRead));
    const bytes = first.subarray(0, count);
    p.set(bytes);
    if (count === first.length) this.#arrived.shift();
    else this.#arrived[0] = first.subarray(count);
    this.#held -= count;
    this.#watch.delivered(bytes);
    resolve!(count);
    this.#take();
  }

  // Completes a waiting write with as many bytes as the capacity allows.
  #take(): void {
    const { p, resolve, reject } = this.#writer ?? {};
    if (p === undefined) return;
    const { capacity, mostWrite, rate } = this.#travel;
    if (this.#error !== undefined || this.#isEnding) {
      this.#writer = undefined;
      return reject!(this.#error ?? broken("BrokenPipe", "Broken pipe"));
    }
    if (this.#held >= capacity) return;
    this.#writer = undefined;
    const count = Math.min(p.length, capacity - this.#held, this.#random.skewed(mostWrite));
    this.#held += count;
    this.#carry(p.slice(0, count));
    // A socket may complete a write late, when the peer may have answered already.
    const delay = rate === Infinity ? this.#random.pick([0, 0, 0, 1, 5]) : Math.ceil(count / rate);
    if (delay === 0 && this.#random.oneIn(2)) return resolve!(count);
    this.#scheduler.after(delay, () => this.#error === undefined ? resolve!(count) : reject!(this.#error));
  }

  #carry(bytes: Uint8Array): void {
    const start = this.#sent;
    this.#sent += bytes.length;
    let seen: Uint8Array = this.#watch.sent(bytes);
    if (this.#isStalled || this.#isCut) return;
    this.#held += seen.length - bytes.length;
    const fault = this.#fault;
    if (fault === undefined || fault.at < start || fault.at >= this.#sent) return this.#fly(seen);

    this.#watch.broke(fault);
    const at = fault.at - start;
    const stop = Math.min(seen.length, at + fault.length);
    const before = seen.length;
    switch (fault.kind) {
      case "flip":
        seen = seen.slice();
        seen[at]! ^= 1 << this.#random.below(8);
        return this.#fly(seen);
      case "duplicate":
        this.#held += stop - at;
        return this.#fly(concat([seen.subarray(0, stop), seen.subarray(at)]));
      case "drop":
        this.#held -= stop - at;
        return this.#fly(concat([seen.subarray(0, at), seen.subarray(stop)]));
      case "stall":
        this.#fly(seen.subarray(0, at));
        this.#isStalled = true;
        return;
      default:
        this.#held -= before - at;
        this.#isCut = true;
        this.#fly(seen.subarray(0, at));
        this.#arrive(() => this.breakBoth(fault.kind === "end" ? "end" : "reset"));
    }
  }

  #fly(bytes: Uint8Array): void {
    if (bytes.length === 0) return;
    this.#flying.push(bytes);
    this.#arrive(() => {
      const next = this.#flying.shift();
      if (next === undefined) return;
      // Data for a closed socket makes the kernel reset the connection.
      if (this.#isDeaf) return this.breakBoth("reset");
      this.#arrived.push(next);
      this.#give();
    }, bytes.length);
  }

  #arrive(run: () => void, length = 0): void {
    const { latency, jitter, rate } = this.#travel;
    const pause = this.#travel.pauses[this.#pauses];
    let at = Math.max(this.#lastArrival, this.#scheduler.now + latency + this.#random.between(0, jitter));
    if (pause !== undefined && this.#sent > pause.at) {
      this.#pauses++;
      at += pause.milliseconds;
    }
    if (rate !== Infinity) at += Math.ceil(length / rate);
    this.#lastArrival = at;
    this.#arrivals.push(run);
    // Arrivals due at the same time must keep their order: each event delivers the oldest.
    this.#scheduler.after(at - this.#scheduler.now, () => this.#arrivals.shift()!());
  }

  readonly #arrivals: (() => void)[] = [];
}

/** One end of the connection. */
export class WireEnd extends PipedConnection<Pipe> {
  close(): void {
    if (this.isClosed) throw broken("BadResource", "Bad resource ID");
    this.isClosed = true;
    // A kernel resets a connection that is closed with unread bytes.
    const isReset = this.inbound.hasUnread;
    this.inbound.deafen();
    this.outbound.silence();
    if (isReset) {
      this.outbound.fail();
      this.inbound.fail();
    }
  }
}

/** Joins two pipes into a connection. */
export function connect(there: Pipe, back: Pipe): [WireEnd, WireEnd] {
  there.breakBoth = back.breakBoth = (how) => {
    for (const pipe of [there, back]) {
      if (how === "end") pipe.end();
      else pipe.fail();
    }
  };
  return [new WireEnd(back, there), new WireEnd(there, back)];
}

/** Wraps an end as a pair of web streams, which do not read ahead and close it when both have ended or it failed. */
export function asStreams(end: WireEnd): Transport {
  let left = 2;
  const close = () => {
    if (!end.isClosed) end.close();
  };
  const halfEnded = () => {
    if (--left === 0) close();
  };
  const broke = (error: unknown) => {
    close();
    throw error;
  };
  return {
    readable: new ReadableStream<Uint8Array>({
      async pull(controller) {
        const p = new Uint8Array(LARGEST_CHUNK);
        const count = await end.read(p).catch(broke);
        if (count !== null) return controller.enqueue(p.subarray(0, count));
        controller.close();
        halfEnded();
      },
      cancel: close,
    }, { highWaterMark: 0 }),
    writable: new WritableStream<Uint8Array>({
      // Aborting the stream itself waits for the pending write.
      start: ({ signal }) => signal.addEventListener("abort", close),
      async write(chunk) {
        for (let at = 0; at < chunk.length;) at += await end.write(chunk.subarray(at)).catch(broke);
      },
      async close() {
        await end.closeWrite();
        halfEnded();
      },
    }),
  };
}
