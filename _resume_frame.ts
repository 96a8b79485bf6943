/**
 * Wire format of resumable connections: the hello, the reply, and the records after them. See `docs/resume.md`.
 *
 * @module
 */

import { DOUBLE } from "./_double.ts";
import { EMPTY_BYTES, ProtocolError } from "./frame.ts";

/** First byte of a hello. Differs from smux (1 and 2), TLS (22) and HTTP (a letter). */
export const FIRST_BYTE = 0xd5;
// The magic, and the version of the format.
const MAGIC = Uint8Array.of(FIRST_BYTE, ...new TextEncoder().encode("resume"), 1);
/** Length of a token in bytes: a secret of 128 bits. */
export const TOKEN_LENGTH = 16;
/** The token of a hello for a new connection. */
export const NO_TOKEN: Uint8Array = new Uint8Array(TOKEN_LENGTH);
/** Length of a hello in bytes: magic and version, token, count. */
export const HELLO_LENGTH: number = MAGIC.length + TOKEN_LENGTH + 8;
/** Length of a reply in bytes: magic and version, status, token, count. */
export const REPLY_LENGTH: number = HELLO_LENGTH + 1;

/** Status of a reply: the connection is new. */
export const ACCEPTED = 0;
/** Status of a reply: the connection continues. */
export const RESUMED = 1;
/** Status of a reply: the token is not known. */
export const UNKNOWN = 2;
/** Status of a reply: the server accepts no new connection now. */
export const BUSY = 3;
/** Status of a reply. */
export type Status = typeof ACCEPTED | typeof RESUMED | typeof UNKNOWN | typeof BUSY;

/** Types of records. */
export const [DATA, ACKNOWLEDGEMENT, PROBE, PROBE_REPLY, END, CLOSE] = [0, 1, 2, 3, 4, 5] as const;
/** Length of the header of a data record: type and length. */
export const DATA_HEADER_LENGTH = 5;
/** Length of an acknowledgement: type and count. */
export const ACKNOWLEDGEMENT_LENGTH = 9;
/** Maximum payload of a data record in bytes. */
export const MAX_RECORD_BYTES = 1024 * 1024;

const MAX_COUNT_HIGH = 2 ** 21;
const STATUSES = 4;

/** What a hello and a reply say: which connection, and what their sender has received of it. */
export interface Greeting {
  /** The token; zeros in the hello for a new connection. */
  readonly token: Uint8Array;
  /** Number of bytes received, plus 1 after the end of writing. */
  readonly received: number;
}

/** Encodes a hello. */
export function encodeHello({ token, received }: Greeting): Uint8Array {
  const bytes = new Uint8Array(HELLO_LENGTH);
  bytes.set(MAGIC);
  bytes.set(token, MAGIC.length);
  encodeCount(bytes, MAGIC.length + TOKEN_LENGTH, received);
  return bytes;
}

/**
 * Decodes a hello.
 *
 * @throws {ProtocolError} The bytes are not a hello of this version.
 */
export function decodeHello(bytes: Uint8Array): Greeting {
  checkMagic(bytes);
  return decodeGreeting(bytes, MAGIC.length);
}

/** Encodes a reply. */
export function encodeReply(status: Status, { token, received }: Greeting): Uint8Array {
  const bytes = new Uint8Array(REPLY_LENGTH);
  bytes.set(MAGIC);
  bytes[MAGIC.length] = status;
  bytes.set(token, MAGIC.length + 1);
  encodeCount(bytes, MAGIC.length + 1 + TOKEN_LENGTH, received);
  return bytes;
}

/**
 * Decodes a reply.
 *
 * @throws {ProtocolError} The bytes are not a reply of this version.
 */
export function decodeReply(bytes: Uint8Array): Greeting & { status: Status } {
  checkMagic(bytes);
  const status = bytes[MAGIC.length]!;
  if (status >= STATUSES) throw invalid(MAGIC.length, `a status below ${STATUSES}`, `${status}`);
  return { status: status as Status, ...decodeGreeting(bytes, MAGIC.length + 1) };
}

/** Returns the error for bytes that violate the format. */
export function invalid(offset: number, expected: string, received: string): ProtocolError {
  return new ProtocolError(offset, expected, received, { protocol: "resume protocol" });
}

function checkMagic(bytes: Uint8Array): void {
  for (let at = 0; at < MAGIC.length; at++) {
    if (bytes[at] !== MAGIC[at]) throw invalid(at, `byte ${MAGIC[at]} of the magic`, `${bytes[at]}`);
  }
}

function decodeGreeting(bytes: Uint8Array, at: number): Greeting {
  return { token: bytes.slice(at, at + TOKEN_LENGTH), received: decodeCount(bytes, at + TOKEN_LENGTH) };
}

/** Encodes the header of a data record at `at`. */
export function encodeDataHeader(bytes: Uint8Array, at: number, length: number): void {
  bytes[at] = DATA;
  encodeUint32(bytes, at + 1, length);
}

/** Encodes an acknowledgement. */
export function encodeAcknowledgement(count: number): Uint8Array {
  const bytes = new Uint8Array(ACKNOWLEDGEMENT_LENGTH);
  bytes[0] = ACKNOWLEDGEMENT;
  encodeCount(bytes, 1, count);
  return bytes;
}

function encodeUint32(bytes: Uint8Array, at: number, value: number): void {
  for (let n = 0; n < 4; n++, value >>>= 8) bytes[at + n] = value;
}

function decodeUint32(bytes: Uint8Array, at: number): number {
  return (bytes[at]! | bytes[at + 1]! << 8 | bytes[at + 2]! << 16 | bytes[at + 3]! << 24) >>> 0;
}

function encodeCount(bytes: Uint8Array, at: number, count: number): void {
  encodeUint32(bytes, at, count % 2 ** 32);
  encodeUint32(bytes, at + 4, Math.floor(count / 2 ** 32));
}

// A connection carries fewer than 2^53 bytes, so numbers are exact.
function decodeCount(bytes: Uint8Array, at: number): number {
  const high = decodeUint32(bytes, at + 4);
  if (high >= MAX_COUNT_HIGH) throw invalid(at, "a count below 2^53", `${high} * 2^32`);
  return high * 2 ** 32 + decodeUint32(bytes, at);
}

/** Receives decoded records. */
export interface RecordSink {
  /** An acknowledgement. */
  acknowledged(count: number): void;
  /** A probe, which must be answered. */
  probed(): void;
  /** The end of writing. */
  ended(): void;
  /** The peer has closed the connection. */
  closedByPeer(): void;
}

/** Decodes the records of one carrier, in place. */
export class RecordDecoder {
  /** Number of bytes of payload, the next ones, that an earlier carrier has delivered. They are dropped. */
  repeated: number;
  readonly #sink: RecordSink;
  // The start of a header that is cut between two reads.
  #held: Uint8Array = EMPTY_BYTES;
  // Bytes of the payload that are still to come.
  #remaining = 0;
  #offset = DOUBLE;
  #hasEnded: boolean;

  /**
   * @param sink Receives every record but data.
   * @param hasEnded Whether the end of writing was received by an earlier carrier.
   * @param repeated Number of bytes of payload at the start that an earlier carrier has delivered.
   */
  constructor(sink: RecordSink, hasEnded = false, repeated = 0) {
    this.#offset = 0;
    this.#sink = sink;
    this.#hasEnded = hasEnded;
    this.repeated = repeated;
  }

  /**
   * Decodes `count` bytes at the start of `p`, and moves the new payload among them to the start of `p`.
   *
   * @returns Number of bytes of new payload.
   * @throws {ProtocolError} The bytes are not records.
   */
  decode(p: Uint8Array, count: number): number {
    let payload = 0;
    for (let at = 0; at < count;) {
      if (this.#remaining > 0) {
        const length = Math.min(this.#remaining, count - at);
        if (at > payload) p.copyWithin(payload, at, at + length);
        this.#remaining -= length;
        payload += length;
        at += length;
      } else {
        at = this.#readHeader(p, at, count);
      }
    }
    this.#offset += count;
    const repeated = Math.min(payload, this.repeated);
    this.repeated -= repeated;
    if (repeated > 0) p.copyWithin(0, repeated, payload);
    return payload - repeated;
  }

  /** Decodes the header of a record, or keeps the part that has arrived. Returns the position after it. */
  #readHeader(p: Uint8Array, at: number, end: number): number {
    const held = this.#held;
    const type = held.length > 0 ? held[0]! : p[at]!;
    if (type > CLOSE) throw invalid(this.#offset, "a record of type 0 to 5", `${type}`);
    const length = type === DATA ? DATA_HEADER_LENGTH : type === ACKNOWLEDGEMENT ? ACKNOWLEDGEMENT_LENGTH : 1;
    const stop = Math.min(end, at + length - held.length);
    if (stop - at === length) {
      this.#record(type, p, at);
      return stop;
    }
    const header = Uint8Array.of(...held, ...p.subarray(at, stop));
    const isWhole = header.length === length;
    this.#held = isWhole ? EMPTY_BYTES : header;
    if (isWhole) this.#record(type, header, 0);
    return stop;
  }

  #record(type: number, header: Uint8Array, at: number): void {
    if (this.#hasEnded && (type === DATA || type === END)) {
      throw invalid(this.#offset, "no data after the end of writing", `a record of type ${type}`);
    }
    if (type === DATA) {
      const size = decodeUint32(header, at + 1);
      if (size === 0 || size > MAX_RECORD_BYTES) {
        throw invalid(this.#offset, `a record of 1 to ${MAX_RECORD_BYTES} bytes`, `${size}`);
      }
      this.#remaining = size;
    } else if (type === ACKNOWLEDGEMENT) {
      this.#sink.acknowledged(decodeCount(header, at + 1));
    } else if (type === PROBE) {
      this.#sink.probed();
    } else if (type === END) {
      this.#hasEnded = true;
      this.#sink.ended();
    } else if (type === CLOSE) {
      this.#sink.closedByPeer();
    }
  }
}

/** The records without a payload. */
export const PROBE_RECORD: Uint8Array = Uint8Array.of(PROBE);
/** Answers a probe. */
export const PROBE_REPLY_RECORD: Uint8Array = Uint8Array.of(PROBE_REPLY);
/** Closes the connection. */
export const CLOSE_RECORD: Uint8Array = Uint8Array.of(CLOSE);

/** Compares two tokens in constant time. */
export function isSameToken(one: Uint8Array, other: Uint8Array): boolean {
  let difference = one.length ^ other.length;
  for (let at = 0; at < TOKEN_LENGTH; at++) difference |= one[at]! ^ other[at]!;
  return difference === 0;
}
