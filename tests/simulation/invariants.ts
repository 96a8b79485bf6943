/**
 * Invariants of a run: of the frames on the wire, and of the bytes that the users of a stream write and read.
 *
 * Frames are parsed here without the package's code, so that an error in it cannot hide itself.
 *
 * @module
 */

import { concat, equals } from "@std/bytes";
import { Random } from "./random.ts";
import type { Fault, Watch } from "./wire.ts";

/** The two ends. */
export type SideName = "client" | "server";

/** Returns the other end. */
export const other = (side: SideName): SideName => side === "client" ? "server" : "client";

// Every stream carries a part of this. The period is prime, so that a misplaced piece of a common size differs.
const PERIOD = 65_521;
const CONTENT = (() => {
  const random = new Random(1);
  const period = Uint8Array.from({ length: PERIOD }, () => random.below(256));
  const content = new Uint8Array(3 * PERIOD);
  for (let at = 0; at < content.length; at += PERIOD) content.set(period, at);
  return content;
})();

/** Most bytes that one call of `Half.content` can return. */
export const MOST_CONTENT = 2 * PERIOD;

/** One direction of one stream, as seen by its users. */
export class Half {
  readonly #key: number;
  /** The side that writes. */
  readonly side: SideName;
  /** The name in the trace. */
  readonly name: string;
  /** Bytes that were certainly written, and the most that may have been. */
  taken = 0;
  most = 0;
  received = 0;
  /** Whether the writer, or the writer's session, ended this direction. */
  isEnding = false;
  /** Whether the session's close interrupted a write that had begun before: then no FIN is sent. */
  wasCut = false;
  /** Whether the writing user has finished, with or without an error. */
  isDone = false;
  /** Whether one of several concurrent writes timed out after some of its bytes. */
  hasGap = false;
  /** Whether the writing user closed the whole stream. */
  isClosed = false;
  /** Whether it aborted the stream before. */
  isAborted = false;
  /** Whether the reader saw the end. */
  hasEnded = false;

  constructor(id: number, side: SideName) {
    this.#key = (id * 2 + (side === "client" ? 1 : 0)) * 7919;
    this.side = side;
    this.name = `${side} ${id}`;
  }

  /** Returns the `length` bytes at offset `at`; callers must not modify them. */
  content(at: number, length: number): Uint8Array {
    const start = (at + this.#key) % PERIOD;
    return CONTENT.subarray(start, start + length);
  }

  /** Whether `bytes` are the next ones to be received. */
  isNext(bytes: Uint8Array): boolean {
    return equals(bytes, this.content(this.received, bytes.length));
  }
}

/** One stream, as seen by both of its users. */
export class StreamRecord {
  readonly id: number;
  readonly client: Half;
  readonly server: Half;
  /** Whether the opener and the acceptor have received the stream. */
  isOpened = false;
  isAccepted = false;

  constructor(id: number) {
    this.id = id;
    this.client = new Half(id, "client");
    this.server = new Half(id, "server");
  }

  /** The side that opened it. */
  get opener(): SideName {
    return this.id % 2 === 1 ? "client" : "server";
  }
}

/** A frame on the wire. */
interface SeenFrame {
  version: number;
  command: number;
  length: number;
  id: number;
  /** Position of its first byte. */
  start: number;
  consumed: number;
  window: number;
}

// Copies of the constants of frame.ts and _window.ts, because frames are parsed without the package's code.
const SYN = 0, FIN = 1, PSH = 2, NOP = 3, UPD = 4;
const INITIAL_WINDOW = 262_144;
const HEADER = 8;
// Larger than any window of a plan.
const FORGED_WINDOW = 2 ** 31 - 1;
/** At most this many bytes in flight count as idle. */
export const FEW = 64;

/** Cuts bytes into frames. */
class Frames {
  #held: number[] = [];
  #skip = 0;
  #at = 0;
  readonly #onFrame: (frame: SeenFrame) => void;

  constructor(onFrame: (frame: SeenFrame) => void) {
    this.#onFrame = onFrame;
  }

  /** Whether the position is between two frames. */
  get isBetween(): boolean {
    return this.#skip === 0 && this.#held.length === 0;
  }

  /** Consumes bytes up to the end of a frame, and returns their number. */
  take(bytes: Uint8Array, from: number): number {
    let at = from;
    do {
      if (this.#skip > 0) {
        const count = Math.min(this.#skip, bytes.length - at);
        this.#skip -= count;
        at += count;
        this.#at += count;
      } else {
        this.#held.push(bytes[at++]!);
        this.#at++;
        this.#complete();
      }
    } while (at < bytes.length && !this.isBetween);
    return at - from;
  }

  #complete(): void {
    const held = this.#held;
    if (held.length < HEADER || (held[1] === UPD && held.length < 2 * HEADER)) return;
    const uint32 = (at: number) =>
      held[at]! + held[at + 1]! * 2 ** 8 + held[at + 2]! * 2 ** 16 + held[at + 3]! * 2 ** 24;
    const isUpdate = held[1] === UPD;
    const length = held[2]! + held[3]! * 256;
    this.#skip = isUpdate ? 0 : length;
    this.#held = [];
    this.#onFrame({
      version: held[0]!,
      command: held[1]!,
      length,
      id: uint32(4),
      start: this.#at - held.length,
      consumed: isUpdate ? uint32(8) : 0,
      window: isUpdate ? uint32(12) : 0,
    });
  }
}

/** One direction of a stream on the wire, with the credit for it that the other direction carries. */
interface Flow {
  hasSyn: boolean;
  hasFin: boolean;
  sent: number;
  /** The highest offset allowed by an update on the wire, and by an update that has reached the sender. */
  promised: number | undefined;
  allowed: number | undefined;
  consumed: number;
  /** From this position of the sender's bytes on, `allowed` is the limit, not the initial window. */
  strictFrom: number;
  wasLate: boolean;
  /** From this position on the side may send no UPD: its user closed the stream, or the peer's FIN arrived. */
  noUpdateFrom: number;
}

/** The state and the callbacks that the rules need. */
export interface Observed {
  /** Bytes that the session has encoded so far: the position of its next frame. */
  encoded(side: SideName): number;
  /** The session's limit of unread bytes. */
  maxReceiveBuffer(side: SideName): number;
  /** Reports a violation. */
  fail(message: string): void;
  /** Reports a fault or a forged frame. */
  fault(kind: string): void;
  /** Called when a forged frame has arrived completely. */
  forged(): void;
}

/** A forged frame between two frames of a session. */
export interface Forgery {
  readonly kind:
    | "again SYN"
    | "unknown stream"
    | "old UPD"
    | "bad version"
    | "bad command"
    | "SYN with payload"
    | "FIN with payload"
    | "wrong parity"
    | "UPD in version 1";
  readonly side: SideName;
  /** Inserted after this many bytes, at the next suitable end of a frame. */
  readonly at: number;
}

/** The forgeries that a session must ignore; every other one must end it. */
export const HARMLESS = ["again SYN", "unknown stream", "old UPD"] as const satisfies Forgery["kind"][];

/** Checks the bytes that two sessions send to each other. */
export class WireRules {
  readonly #observed: Observed;
  readonly #version: number;
  readonly #flows = { client: new Map<number, Flow>(), server: new Map<number, Flow>() };
  readonly #lastId = { client: 1, server: 0 };
  /** Bytes that each side has written to the connection. */
  readonly sent = { client: 0, server: 0 };
  /** Bytes that each side has read from it. */
  readonly delivered = { client: 0, server: 0 };
  /** Whether no byte was changed; the rules do not apply to a corrupted session. */
  isWhole = true;
  forgery: Forgery | undefined;
  #forgedId = 0;
  #forgedFrom: SideName | undefined;
  #forgedEnd = Infinity;
  // Whether the last frame of a side may be the first half of the signal that aborts a stream.
  readonly #isInSignal = { client: false, server: false };

  constructor(observed: Observed, version: number, forgery: Forgery | undefined) {
    this.#observed = observed;
    this.#version = version;
    this.forgery = forgery;
  }

  /** Id of a stream with a repeated SYN, which may have opened it a second time. */
  get forgedId(): number {
    return this.#forgedId;
  }

  /** Whether all sent bytes have arrived, except keepalives. */
  get isQuiet(): boolean {
    const { sent, delivered } = this;
    return !this.isWhole || (sent.server - delivered.client <= FEW && sent.client - delivered.server <= FEW);
  }

  /** Creates the watch of one direction. */
  watch(side: SideName): Watch {
    const outbound = new Frames((frame) => this.#sent(side, frame));
    const inbound = new Frames((frame) => this.#delivered(side, frame));
    let news: (() => void)[] = [];
    this.#news[side] = (run) => news.push(run);
    return {
      sent: (bytes) => {
        this.sent[side] += bytes.length;
        if (!this.isWhole) return bytes;
        for (let at = 0; at < bytes.length;) {
          at += outbound.take(bytes, at);
          if (!outbound.isBetween || !this.#isDue(side)) continue;
          const frame = this.#forge(side);
          if (frame === undefined) continue;
          this.#forgedFrom = side;
          this.#forgedEnd = this.sent[side] - bytes.length + at + frame.length;
          bytes = concat([bytes.subarray(0, at), frame, bytes.subarray(at)]);
          return this.#rest(outbound, bytes, at + frame.length);
        }
        return bytes;
      },
      asked: () => {
        const due = news;
        news = [];
        for (const run of due) run();
      },
      delivered: (bytes) => {
        const before = this.delivered[other(side)];
        this.delivered[other(side)] += bytes.length;
        if (!this.isWhole) return;
        const forged = this.#forgedFrom === side ? this.#forgedEnd : Infinity;
        if (before < forged && before + bytes.length >= forged) this.#observed.forged();
        for (let at = 0; at < bytes.length;) at += inbound.take(bytes, at);
      },
      broke: ({ kind }: Fault) => {
        if (kind === "flip" || kind === "duplicate" || kind === "drop") this.isWhole = false;
        this.#observed.fault(kind);
      },
    };
  }

  readonly #news: { [Side in SideName]: (run: () => void) => void } = { client: () => {}, server: () => {} };

  #rest(outbound: Frames, bytes: Uint8Array, from: number): Uint8Array {
    for (let at = from; at < bytes.length;) at += outbound.take(bytes, at);
    return bytes;
  }

  /** Records that the user of a side closed a stream: frames encoded from here on may not include its UPD. */
  closed(side: SideName, id: number): void {
    const flow = this.#flow(side, id);
    flow.noUpdateFrom = Math.min(flow.noUpdateFrom, this.#observed.encoded(side));
  }

  #flow(side: SideName, id: number): Flow {
    let flow = this.#flows[side].get(id);
    if (flow === undefined) {
      flow = {
        hasSyn: false,
        hasFin: false,
        sent: 0,
        promised: undefined,
        allowed: undefined,
        consumed: 0,
        strictFrom: Infinity,
        wasLate: false,
        noUpdateFrom: Infinity,
      };
      this.#flows[side].set(id, flow);
    }
    return flow;
  }

  // Checks a frame that a session sent.
  #sent(side: SideName, frame: SeenFrame): void {
    const { command, id, length } = frame;
    this.#isInSignal[side] = command === NOP && id !== 0 && !this.#isInSignal[side];
    const fail = (what: string) =>
      this.#observed.fail(`The ${side} sent command ${command} of length ${length} on stream ${id}: ${what}`);
    if (frame.version !== this.#version && this.#version !== 0) fail(`version ${frame.version}`);
    if (command > UPD || (command === UPD && frame.version === 1)) fail("unknown command");
    if (command !== PSH && length !== (command === UPD ? HEADER : 0)) fail("wrong length");
    // A repeated SYN after close() opens the stream a second time, which these rules do not model.
    if (command === NOP || id === this.#forgedId) return;
    const flow = this.#flow(side, id);
    const isOwn = id % 2 === (side === "client" ? 1 : 0);
    if (command === SYN) {
      if (!isOwn) fail("an id of the other side");
      if (id <= this.#lastId[side]) fail("ids must rise");
      this.#lastId[side] = id;
      flow.hasSyn = true;
      return;
    }
    if (isOwn ? !flow.hasSyn : !this.#flow(other(side), id).hasSyn) fail("no SYN before it");
    if (command === UPD) return this.#sentUpdate(side, frame, fail);
    if (flow.hasFin) fail("a FIN before it");
    if (command === FIN) {
      flow.hasFin = true;
      return;
    }
    flow.sent += length;
    if (frame.version !== 2) return;
    const { allowed = INITIAL_WINDOW } = flow;
    if (flow.sent <= allowed) return;
    // One frame may have been waiting since before the update that lowered the initial window.
    const isLate = frame.start >= flow.strictFrom;
    if (flow.sent > INITIAL_WINDOW || (isLate && flow.wasLate)) fail(`${flow.sent} bytes sent, ${allowed} allowed`);
    flow.wasLate ||= isLate;
  }

  #sentUpdate(side: SideName, { id, consumed, window, start }: SeenFrame, fail: (what: string) => void): void {
    const flow = this.#flow(other(side), id);
    const limit = consumed + window;
    if (consumed < flow.consumed) fail(`consumed decreases from ${flow.consumed} to ${consumed}`);
    if (consumed > flow.sent) fail(`${consumed} bytes consumed, ${flow.sent} sent`);
    if (limit < (flow.promised ?? 0)) {
      // Allowed only when the receive buffer is scarce; all sent bytes may be unread.
      let unread = 0;
      for (const { sent, consumed } of this.#flows[other(side)].values()) unread += sent - consumed;
      const isScarce = unread * 2 >= this.#observed.maxReceiveBuffer(side);
      if (!isScarce) fail(`the limit decreases from ${flow.promised} to ${limit} with ${unread} bytes unread`);
    }
    if (start >= this.#flow(side, id).noUpdateFrom) fail("UPD after close() or after the peer's FIN");
    flow.promised = limit;
    flow.consumed = consumed;
  }

  // A frame that the other session received. It takes effect when that session reads again, so has processed it.
  #delivered(from: SideName, { command, id, consumed, window }: SeenFrame): void {
    const to = other(from);
    if (command !== UPD && command !== FIN) return;
    const flow = this.#flow(to, id);
    if (command === UPD && window === FORGED_WINDOW) return;
    if (command === UPD) flow.allowed = Math.max(flow.allowed ?? 0, consumed + window);
    this.#news[from](() => {
      const encoded = this.#observed.encoded(to);
      if (command === FIN) flow.noUpdateFrom = Math.min(flow.noUpdateFrom, encoded);
      else flow.strictFrom = Math.min(flow.strictFrom, encoded);
    });
  }

  // Forgeries.

  #isDue(side: SideName): boolean {
    return this.forgery?.side === side && this.sent[side] >= this.forgery.at && !this.#isInSignal[side];
  }

  #forge(side: SideName): Uint8Array | undefined {
    const { kind } = this.forgery!;
    const own = this.#flows[side];
    const version = this.#version;
    const make = (bytes: number[]) => {
      this.forgery = undefined;
      this.#observed.fault(kind);
      return Uint8Array.from(bytes);
    };
    const header = (command: number, length: number, id: number, as = version) => [
      as,
      command,
      length & 255,
      length >>> 8,
      id & 255,
      id >>> 8 & 255,
      id >>> 16 & 255,
      id >>> 24,
    ];
    const fresh = side === "client" ? 0x7fff_0001 : 0x7fff_0000;
    switch (kind) {
      case "again SYN":
        for (const [id, flow] of own) {
          // Only a stream that must still be open at the peer: neither side has sent FIN.
          if (!flow.hasSyn || flow.hasFin || this.#flow(other(side), id).hasFin) continue;
          this.#forgedId = id;
          return make(header(SYN, 0, id));
        }
        return undefined;
      case "unknown stream":
        return make([...header(PSH, 3, fresh), 1, 2, 3, ...header(FIN, 0, fresh), ...header(NOP, 0, fresh)]);
      case "old UPD":
        for (const [id, flow] of this.#flows[other(side)]) {
          if (version !== 2 || flow.consumed === 0 || flow.hasFin) continue;
          return make([...header(UPD, HEADER, id), 0, 0, 0, 0, 255, 255, 255, 127]);
        }
        return undefined;
      case "bad version":
        return make(header(NOP, 0, 0, 3));
      case "bad command":
        return make(header(5, 0, 0));
      case "SYN with payload":
        return make([...header(SYN, 5, fresh), 1, 2, 3, 4, 5]);
      case "FIN with payload":
        return make([...header(FIN, 2, fresh), 1, 2]);
      case "wrong parity":
        return make(header(SYN, 0, fresh ^ 1));
      case "UPD in version 1":
        return version === 1 ? make([...header(UPD, HEADER, fresh), 0, 0, 0, 0, 0, 0, 0, 0]) : undefined;
    }
  }
}
