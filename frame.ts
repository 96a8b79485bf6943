/**
 * Frames of smux, versions 1 and 2: encoding and incremental decoding. A header has eight bytes, little-endian:
 *
 * | bytes | field |
 * |---|---|
 * | 0 | version, 1 or 2, the same in every frame of a session |
 * | 1 | command: SYN 0, FIN 1, PSH 2, NOP 3, UPD 4 (version 2 only) |
 * | 2–3 | length of the payload in bytes, the header not counted |
 * | 4–7 | id of the stream |
 *
 * Only PSH (data) and UPD (8 bytes: consumed, window) have a payload. This module does no I/O.
 *
 * @module
 */

import { DOUBLE } from "./_double.ts";

/** Opens a stream; no payload, no reply. */
export const SYN = 0;
/** Ends the sender's half of a stream; no payload. */
export const FIN = 1;
/** Carries data of a stream. */
export const PSH = 2;
/** Keeps the session alive; no payload, any id, never answered. */
export const NOP = 3;
/** Grants credit to the sender of a stream, in version 2: bytes consumed, and the window beyond them. */
export const UPD = 4;

/** A command of a frame. */
export type Command = typeof SYN | typeof FIN | typeof PSH | typeof NOP | typeof UPD;

/**
 * Version of smux. Version 2 adds credit for each stream. The version is not negotiated: both peers must use the same.
 *
 * @example The first frame of a client
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
 * // A NOP, whose first byte is the version: an "auto" server adopts it.
 * assert(equals(await firstFrame(1), concat([Uint8Array.of(1, 3), new Uint8Array(6)])));
 * assert(equals(await firstFrame(2), concat([Uint8Array.of(2, 3), new Uint8Array(6)])));
 * ```
 */
export type Version = 1 | 2;

/** Length of a header in bytes. */
export const HEADER_LENGTH = 8;
/** Length of a UPD payload in bytes. */
export const UPDATE_LENGTH = 8;
/** Maximum length of a payload in bytes: the length field has 16 bits. */
export const MAX_PAYLOAD_LENGTH = 65535;

/** The payload of a frame without one. */
export const EMPTY_BYTES: Uint8Array = new Uint8Array(0);

/** The names of the commands. */
export const COMMAND_NAMES: readonly CommandName[] = ["SYN", "FIN", "PSH", "NOP", "UPD"];

/**
 * The name of a command, as `onFrame` reports it.
 *
 * @example Counting frames by command
 * ```ts
 * import { type CommandName, Session } from "@sluice/smux";
 * import { assertEquals } from "@std/assert";
 *
 * const counts: Record<CommandName, number> = { SYN: 0, FIN: 0, PSH: 0, NOP: 0, UPD: 0 };
 * const { writable } = new TransformStream<Uint8Array, Uint8Array>();
 * const session = Session.client({ readable: new ReadableStream(), writable }, {
 *   onFrame: ({ command }) => counts[command]++,
 * });
 * await session.openStream();
 * await session.openStream();
 * assertEquals(counts, { SYN: 2, FIN: 0, PSH: 0, NOP: 1, UPD: 0 });
 * session.abort();
 * ```
 */
export type CommandName = "SYN" | "FIN" | "PSH" | "NOP" | "UPD";

/**
 * Reports received bytes that are not smux or violate the protocol, or that of a resumable connection.
 *
 * It ends the session. A violation of credit ends only its stream.
 *
 * @example Recognizing a peer that does not speak smux
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
  /** Position of the first byte of the invalid frame, counted in bytes from the start of the session. */
  readonly offset: number;
  /** What the protocol allows at that position, in words. */
  readonly expected: string;
  /** What was received instead, in words. */
  readonly received: string;

  /**
   * Creates the error.
   *
   * @param offset Position of the first byte of the invalid frame, from the start of the session.
   * @param expected What the protocol allows at that position.
   * @param received What was received instead.
   * @param options The cause, if any, and the protocol that the message names, by default "smux".
   */
  constructor(offset: number, expected: string, received: string, options?: ErrorOptions & { protocol?: string }) {
    const protocol = options?.protocol ?? "smux";
    super(`Not valid ${protocol} at byte ${offset}: expected ${expected}, received ${received}`, options);
    this.name = "ProtocolError";
    this.offset = offset;
    this.expected = expected;
    this.received = received;
  }
}

/**
 * Encodes a header.
 *
 * @param target The buffer, with at least eight bytes from `at` on.
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
 * Encodes a UPD frame, sixteen bytes.
 *
 * @param target The buffer.
 * @param at Position in `target`.
 * @param id Id of the stream.
 * @param consumed Bytes of the stream that were read since it was opened, modulo 2^32.
 * @param window Bytes that the peer may send beyond `consumed`.
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

/** Callbacks of a {@linkcode FrameDecoder}, called in the order of the frames. */
export interface FrameSink {
  /** The first header of a decoder without a version, which adopts this one. */
  begin(version: Version): void;
  /** SYN: the peer opens stream `id`. */
  syn(id: number): void;
  /** FIN: the peer ends its direction of stream `id`. */
  fin(id: number): void;
  /** Header of PSH: `length` bytes of stream `id` follow, in one or more calls of `data`. */
  psh(id: number, length: number): void;
  /** The next bytes of that payload: `bytes` from `start` to before `end`, at least one byte. */
  data(bytes: Uint8Array, start: number, end: number): void;
  /** NOP: a keepalive. */
  nop(id: number): void;
  /** UPD: the peer has read `consumed` bytes of stream `id` and accepts `window` bytes beyond them. */
  upd(id: number, consumed: number, window: number): void;
}

/**
 * Decodes frames from bytes that arrive in any pieces. Data is passed on as it arrives; only an incomplete header or
 * UPD payload is buffered.
 */
export class FrameDecoder {
  #version: Version | undefined;
  // An incomplete header or UPD payload.
  readonly #scratch = new Uint8Array(HEADER_LENGTH);
  #held = 0;
  #offset = DOUBLE;
  #frames = 0;
  #frameOffset = DOUBLE;
  #command: Command = NOP;
  #id = 0;
  #remaining = 0;
  #isInterrupted = false;

  /**
   * @param version The version that every frame must have. Default: that of the first frame.
   */
  constructor(version?: Version) {
    this.#version = version;
    this.#offset = this.#frameOffset = 0;
  }

  /** The version; `undefined` until the first header if none was passed to the constructor. */
  get version(): Version | undefined {
    return this.#version;
  }

  /** Number of complete headers. */
  get frames(): number {
    return this.#frames;
  }

  /** Position of the last frame, complete or not, in bytes from the start. */
  get frameOffset(): number {
    return this.#remaining === 0 && this.#held > 0 ? this.#offset - this.#held : this.#frameOffset;
  }

  /** Bytes decoded, without those of an incomplete header. An increase is a sign of life. */
  get progress(): number {
    return this.#remaining > 0 ? this.#offset : this.#offset - this.#held;
  }

  /** Whether the decoded bytes end with a complete frame. */
  get isBetweenFrames(): boolean {
    return this.#remaining === 0 && this.#held === 0;
  }

  /** The missing bytes of the incomplete frame, in words. */
  get missing(): string {
    const [count, whole] = this.#remaining === 0
      ? [HEADER_LENGTH - this.#held, "a header"]
      : [this.#remaining, `${COMMAND_NAMES[this.#command]} payload`];
    return `${count} more ${count === 1 ? "byte" : "bytes"} of ${whole}`;
  }

  /**
   * Decodes the next bytes and calls the sink for what they contain. The decoder must not be used after an error.
   *
   * @param bytes The received bytes. The decoder keeps no reference.
   * @param sink Called synchronously.
   * @param end Position in `bytes` after the last byte.
   * @param at Position in `bytes` of the first byte.
   * @returns The position reached: `end`, or less after a call of `interrupt`.
   * @throws {ProtocolError} A header is invalid. The sink was not called for its frame.
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

  /** Makes the running `push` return after the current frame. Called by the sink. */
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
