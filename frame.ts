/**
 * The wire of smux, versions 1 and 2: headers of eight bytes, little-endian, and what may follow them.
 *
 * | bytes | what |
 * |---|---|
 * | 0 | version, 1 or 2, the same in every frame of a session |
 * | 1 | command: SYN 0, FIN 1, PSH 2, NOP 3, UPD 4 (version 2 only) |
 * | 2–3 | length of the payload in bytes, the header not counted |
 * | 4–7 | id of the stream |
 *
 * Only PSH (data) and UPD (8 bytes: consumed, window) carry a payload. This module does no input or output and knows
 * nothing of streams.
 *
 * @module
 */

/** Opens a stream; no payload, no reply. */
export const SYN = 0;
/** Ends the sender's half of a stream; no payload. */
export const FIN = 1;
/** Carries data of a stream. */
export const PSH = 2;
/** Keeps the session alive; no payload, any id, never answered. */
export const NOP = 3;
/** Gives credit back to the sender of a stream, in version 2: how much was read, and how much more may be sent. */
export const UPD = 4;

/** One of the five commands. */
export type Command = typeof SYN | typeof FIN | typeof PSH | typeof NOP | typeof UPD;

/**
 * The versions of smux: 2 adds credit for each stream. Peers agree on one beforehand; nothing is negotiated.
 *
 * @example What a client says first
 * ```ts
 * import { Session, type Version } from "@sluice/smux";
 * import { assert } from "@std/assert";
 * import { concat, equals } from "@std/bytes";
 *
 * async function firstFrame(version: Version): Promise<Uint8Array> {
 *   const { readable, writable } = new TransformStream<Uint8Array, Uint8Array>();
 *   const session = Session.client({ readable: new ReadableStream(), writable }, { version });
 *   const { value } = await readable.getReader().read();
 *   session.abort();
 *   return value!;
 * }
 *
 * // A NOP of either version differs in its first byte: by that a server learns the version of its client.
 * assert(equals(await firstFrame(1), concat([Uint8Array.of(1, 3), new Uint8Array(6)])));
 * assert(equals(await firstFrame(2), concat([Uint8Array.of(2, 3), new Uint8Array(6)])));
 * ```
 */
export type Version = 1 | 2;

/** Bytes of a header. */
export const HEADER_LENGTH = 8;
/** Bytes of a UPD payload. */
export const UPDATE_LENGTH = 8;
/** Most bytes one frame carries, since its length field has 16 bits. */
export const MAX_PAYLOAD_LENGTH = 65535;

/** The payload of a frame that has none. */
export const EMPTY_BYTES: Uint8Array = new Uint8Array(0);

/** The names of the commands. */
export const COMMAND_NAMES = ["SYN", "FIN", "PSH", "NOP", "UPD"] as const;

/** The name of a command. */
export type CommandName = typeof COMMAND_NAMES[number];

/**
 * What arrived is not smux, or breaks a rule of it.
 *
 * It ends the whole session, unless it was caused by the credit of one stream.
 *
 * @example Telling a peer that speaks something else
 * ```ts
 * import { ProtocolError, Session } from "@sluice/smux";
 * import { assertEquals, assertRejects } from "@std/assert";
 *
 * const { readable, writable } = new TransformStream<Uint8Array, Uint8Array>();
 * const session = Session.server({ readable, writable: new WritableStream() });
 * const writer = writable.getWriter();
 * writer.write(new TextEncoder().encode("GET / HTTP/1.1\r\n")).catch(() => {});
 *
 * const error = await assertRejects(() => session.closed, ProtocolError);
 * assertEquals(error.offset, 0);
 * assertEquals(error.received, "71");
 * ```
 */
export class ProtocolError extends Error {
  /** Position of the offending frame's first byte, counted in bytes from the start of the session. */
  readonly offset: number;
  /** What smux allows there. */
  readonly expected: string;
  /** What was there. */
  readonly received: string;

  /**
   * Says where, what was expected and what came.
   *
   * @param offset Position of the offending frame's first byte in what was received.
   * @param expected What smux allows there.
   * @param received What was there.
   * @param options The cause, where there is one.
   */
  constructor(offset: number, expected: string, received: string, options?: ErrorOptions) {
    super(`Not valid smux at byte ${offset}: expected ${expected}, received ${received}`, options);
    this.name = "ProtocolError";
    this.offset = offset;
    this.expected = expected;
    this.received = received;
  }
}

/**
 * Writes a header.
 *
 * @param target Where to, with at least eight bytes from `at` on.
 * @param at Position in `target`.
 * @param version Version of the session.
 * @param command The command.
 * @param length Bytes of payload that will follow, 0 to 65535.
 * @param id Id of the stream.
 * @returns The position after the header.
 */
export function encodeHeader(
  target: Uint8Array,
  at: number,
  version: Version,
  command: Command,
  length: number,
  id: number,
): number {
  target[at] = version;
  target[at + 1] = command;
  target[at + 2] = length;
  target[at + 3] = length >>> 8;
  return encodeUint32(target, at + 4, id);
}

/**
 * Writes a whole UPD frame, sixteen bytes.
 *
 * @param target Where to.
 * @param at Position in `target`.
 * @param id Id of the stream.
 * @param consumed Bytes of the stream the receiver has read since it was opened, modulo 2^32.
 * @param window Bytes the peer may have under way beyond `consumed`.
 * @returns The position after the frame.
 */
export function encodeUpdate(target: Uint8Array, at: number, id: number, consumed: number, window: number): number {
  at = encodeHeader(target, at, 2, UPD, UPDATE_LENGTH, id);
  return encodeUint32(target, encodeUint32(target, at, consumed), window);
}

function encodeUint32(target: Uint8Array, at: number, value: number): number {
  target[at] = value;
  target[at + 1] = value >>> 8;
  target[at + 2] = value >>> 16;
  target[at + 3] = value >>> 24;
  return at + 4;
}

function decodeUint32(source: Uint8Array, at: number): number {
  return (source[at]! | source[at + 1]! << 8 | source[at + 2]! << 16 | source[at + 3]! << 24) >>> 0;
}

/** What a {@linkcode FrameDecoder} found, in the order in which it stood on the wire. */
export interface FrameSink {
  /** The first frame has come and fixes the version, where none was given. */
  begin(version: Version): void;
  /** The peer opened stream `id`. */
  syn(id: number): void;
  /** The peer ended its half of stream `id`. */
  fin(id: number): void;
  /** Data of stream `id` begins: `length` bytes, handed over by one or more calls of `data`. */
  psh(id: number, length: number): void;
  /** The next data of the frame that `psh` announced: `bytes` from `start` to before `end`, at least one byte. */
  data(bytes: Uint8Array, start: number, end: number): void;
  /** The peer shows that it lives. */
  nop(id: number): void;
  /** The peer has read `consumed` bytes of stream `id` and accepts `window` beyond them. */
  upd(id: number, consumed: number, window: number): void;
}

/**
 * Turns bytes into frames. However the bytes are cut, the frames are the same; only data comes in the pieces in which
 * it arrived, so that nothing but a header or a UPD is ever held here.
 */
export class FrameDecoder {
  #version: Version | undefined;
  // Bytes of a header or of a UPD payload of which the rest has not come yet.
  readonly #scratch = new Uint8Array(HEADER_LENGTH);
  #held = 0;
  #offset = 0;
  #frames = 0;
  #frameOffset = 0;
  #command: Command = NOP;
  #id = 0;
  #remaining = 0;
  #isInterrupted = false;

  /**
   * @param version The version every frame must have; without it, the first frame's.
   */
  constructor(version?: Version) {
    this.#version = version;
  }

  /** The version in force, `undefined` before the first header where none was given. */
  get version(): Version | undefined {
    return this.#version;
  }

  /** Headers completed so far. */
  get frames(): number {
    return this.#frames;
  }

  /** Position, in bytes from the start, of the frame that began last, whole or not. */
  get frameOffset(): number {
    return this.#remaining === 0 && this.#held > 0 ? this.#offset - this.#held : this.#frameOffset;
  }

  /** Bytes decoded, without those of an unfinished header: they show that a peer makes progress. */
  get progress(): number {
    return this.#remaining > 0 ? this.#offset : this.#offset - this.#held;
  }

  /** Whether the bytes decoded so far end with a whole frame. */
  get isBetweenFrames(): boolean {
    return this.#remaining === 0 && this.#held === 0;
  }

  /** What must still come before the frame under way is whole, in words. */
  get missing(): string {
    const [count, whole] = this.#remaining === 0
      ? [HEADER_LENGTH - this.#held, "a header"]
      : [this.#remaining, `${COMMAND_NAMES[this.#command]} payload`];
    return `${count} more ${count === 1 ? "byte" : "bytes"} of ${whole}`;
  }

  /**
   * Decodes the next bytes and hands over what they complete. An error leaves the decoder useless.
   *
   * @param bytes What arrived; not kept.
   * @param sink Gets what was found, during the call.
   * @param end Position in `bytes` after the last byte.
   * @param at Position in `bytes` of the first byte.
   * @returns The position reached: `end`, or less when the sink called `interrupt`.
   * @throws {ProtocolError} A header breaks a rule: nothing of its frame has been handed over.
   */
  push(bytes: Uint8Array, sink: FrameSink, end: number = bytes.length, at = 0): number {
    const start = this.#offset - at;
    this.#isInterrupted = false;
    while (at < end && !this.#isInterrupted) {
      if (this.#remaining > 0) {
        at = this.#payload(bytes, at, end, sink);
        this.#offset = start + at;
        continue;
      }
      let source = bytes;
      let header = at;
      if (this.#held > 0 || end - at < HEADER_LENGTH) {
        at = this.#hold(bytes, at, Math.min(end, at + HEADER_LENGTH - this.#held));
        this.#offset = start + at;
        if (this.#held < HEADER_LENGTH) return at;
        this.#held = 0;
        source = this.#scratch;
        header = 0;
      } else {
        at += HEADER_LENGTH;
        this.#offset = start + at;
      }
      this.#frameOffset = start + at - HEADER_LENGTH;
      this.#header(source, header, sink);
    }
    return at;
  }

  /** Makes the `push` under way return after the frame that the sink is being handed. */
  interrupt(): void {
    this.#isInterrupted = true;
  }

  #header(source: Uint8Array, at: number, sink: FrameSink): void {
    const version = source[at]!;
    const command = source[at + 1]!;
    const length = source[at + 2]! | source[at + 3]! << 8;
    if (this.#version === undefined) {
      if (version !== 1 && version !== 2) this.#fail("version 1 or 2", `${version}`);
    } else if (version !== this.#version) {
      this.#fail(`version ${this.#version}`, `${version}`);
    }
    if (command > UPD || (command === UPD && version === 1)) {
      this.#fail(version === 1 ? "a command from 0 to 3 in version 1" : "a command from 0 to 4", `${command}`);
    }
    if (command !== PSH) {
      const expected = command === UPD ? UPDATE_LENGTH : 0;
      if (length !== expected) this.#fail(`length ${expected} on ${COMMAND_NAMES[command]}`, `length ${length}`);
    }
    if (this.#version === undefined) {
      this.#version = version as Version;
      sink.begin(this.#version);
    }
    const id = decodeUint32(source, at + 4);
    this.#frames++;
    switch (command) {
      case SYN:
        return sink.syn(id);
      case FIN:
        return sink.fin(id);
      case NOP:
        return sink.nop(id);
      default:
        this.#command = command as Command;
        this.#id = id;
        this.#remaining = length;
        if (command === PSH) sink.psh(id, length);
    }
  }

  #payload(bytes: Uint8Array, at: number, end: number, sink: FrameSink): number {
    const stop = Math.min(end, at + this.#remaining);
    this.#remaining -= stop - at;
    if (this.#command === PSH) {
      sink.data(bytes, at, stop);
    } else {
      this.#hold(bytes, at, stop);
      if (this.#remaining === 0) {
        this.#held = 0;
        sink.upd(this.#id, decodeUint32(this.#scratch, 0), decodeUint32(this.#scratch, 4));
      }
    }
    return stop;
  }

  #hold(bytes: Uint8Array, at: number, stop: number): number {
    while (at < stop) this.#scratch[this.#held++] = bytes[at++]!;
    return at;
  }

  #fail(expected: string, received: string): never {
    throw new ProtocolError(this.#frameOffset, expected, received);
  }
}
