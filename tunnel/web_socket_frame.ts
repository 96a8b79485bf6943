/**
 * Encodes and decodes the frames of WebSockets (RFC 6455).
 *
 * @module
 */

/** The opcodes of frames. */
export const CONTINUATION = 0;
export const TEXT = 1;
export const BINARY = 2;
export const CLOSE = 8;
export const PING = 9;
export const PONG = 10;

/** The codes of close frames. */
export const NORMAL = 1000;
export const GOING_AWAY = 1001;
export const PROTOCOL_VIOLATION = 1002;
export const UNSUPPORTED = 1003;
/** Stands for a close frame without a code. It is never sent. */
export const NO_STATUS = 1005;
/** Stands for an end without a close frame. It is never sent. */
export const ABNORMAL = 1006;
export const TOO_BIG = 1009;

/** Bytes of the longest header. */
export const MAX_HEADER = 14;

const MASK_LENGTH = 4;
const FINAL = 0x80;
const RESERVED = 0x70;
const OPCODE = 0x0f;
const MASKED = 0x80;
// The greatest length of a control frame, and of any frame with a header of two bytes.
const MAX_SHORT = 125;
const MAX_MEDIUM = 0xffff;
const [MEDIUM, LONG] = [126, 127];

/** Applies a mask in place; `phase` is the number of bytes of the payload before `bytes`. */
export function applyMask(bytes: Uint8Array, key: Uint8Array, phase = 0): void {
  let at = 0;
  const { length } = bytes;
  for (; at < length && (bytes.byteOffset + at) % 4 !== 0; at++) bytes[at]! ^= key[(phase + at) & 3]!;
  const count = (length - at) >> 2;
  if (count > 0) {
    const words = new Uint32Array(bytes.buffer, bytes.byteOffset + at, count);
    // The key from here on, in the order of bytes of this machine.
    const turned = new Uint8Array(4);
    for (let n = 0; n < 4; n++) turned[n] = key[(phase + at + n) & 3]!;
    const [word] = new Uint32Array(turned.buffer);
    for (let n = 0; n < count; n++) words[n]! ^= word!;
    at += count * 4;
  }
  for (; at < length; at++) bytes[at]! ^= key[(phase + at) & 3]!;
}

/**
 * Encodes a final frame.
 *
 * @param target The buffer, with at least `MAX_HEADER` bytes more than the payload.
 * @param isMasked Whether the payload is masked, with a random key.
 * @returns The length of the frame.
 */
export function encodeFrame(target: Uint8Array, opcode: number, payload: Uint8Array, isMasked: boolean): number {
  const { length } = payload;
  const mask = isMasked ? MASKED : 0;
  target[0] = FINAL | opcode;
  let at = 2;
  if (length <= MAX_SHORT) {
    target[1] = mask | length;
  } else if (length <= MAX_MEDIUM) {
    target[1] = mask | MEDIUM;
    target[at++] = length >> 8;
    target[at++] = length & 255;
  } else {
    target[1] = mask | LONG;
    new DataView(target.buffer, target.byteOffset).setBigUint64(at, BigInt(length));
    at += 8;
  }
  if (!isMasked) {
    target.set(payload, at);
    return at + length;
  }
  const key = target.subarray(at, at + MASK_LENGTH);
  crypto.getRandomValues(key as Uint8Array<ArrayBuffer>);
  at += MASK_LENGTH;
  target.set(payload, at);
  applyMask(target.subarray(at, at + length), key);
  return at + length;
}

/** Encodes a close frame without its header. */
export function encodeClose(code: number, reason = ""): Uint8Array {
  if (code === NO_STATUS) return new Uint8Array();
  return new Uint8Array([code >> 8, code & 255, ...new TextEncoder().encode(reason).subarray(0, MAX_SHORT - 2)]);
}

/** The end of the frames of a peer. */
export interface End {
  code: number;
  reason: string;
}

const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Whether a peer may send this code. */
function isCode(code: number): boolean {
  return (code >= 1000 && code <= 1014 && ![1004, NO_STATUS, ABNORMAL].includes(code)) ||
    (code >= 3000 && code <= 4999);
}

/** A frame that this end does not accept. */
class FrameError extends Error {
  readonly code: number;

  constructor(expected: string, received: string, code = PROTOCOL_VIOLATION) {
    super(`expected ${expected}, received ${received}`);
    this.code = code;
  }
}

function hex(byte: number): string {
  return `0x${byte.toString(16).padStart(2, "0")}`;
}

/**
 * Decodes the frames of a peer. The payloads of binary messages are one sequence of bytes: no message is held. At most a
 * header and the payload of one control frame are kept between two calls.
 */
export class FrameDecoder {
  /** The close frame of the peer, after which nothing is decoded. */
  closed: End | undefined;
  /** Why a frame is not accepted, after which nothing is decoded. */
  failed: End | undefined;
  /** The payload of the last ping that is not answered. */
  ping: Uint8Array | undefined;
  readonly #isMasked: boolean;
  readonly #header = new Uint8Array(MAX_HEADER);
  /** Bytes of the header so far, and of the whole header as far as it is known. */
  #headerLength = 0;
  #headerEnd = 2;
  #opcode = CONTINUATION;
  #isFinal = true;
  /** Bytes of the payload that are missing; `undefined` in a header. */
  #missing: number | undefined;
  /** Bytes of the payload so far, modulo 4. */
  #phase = 0;
  /** The payload of a control frame. */
  readonly #control = new Uint8Array(MAX_SHORT);
  #controlLength = 0;
  /** Whether a message has begun, and its last frame has not. */
  #isFragmented = false;

  /** @param isMasked Whether the payloads of the peer must be masked: those of a client are. */
  constructor(isMasked: boolean) {
    this.#isMasked = isMasked;
  }

  /** Decodes received bytes in place: the payloads of messages are moved to the start. Returns their length. */
  decode(bytes: Uint8Array): number {
    let length = 0;
    try {
      for (let at = 0; at < bytes.length && this.closed === undefined && this.failed === undefined;) {
        if (this.#missing === undefined) {
          at = this.#readHeader(bytes, at);
          continue;
        }
        const count = Math.min(this.#missing, bytes.length - at);
        const part = this.#readPayload(bytes, at, count, length);
        length += part;
        at += count;
        this.#missing -= count;
        if (this.#missing === 0) this.#endFrame();
      }
    } catch (error) {
      if (!(error instanceof FrameError)) throw error;
      this.failed = { code: error.code, reason: error.message };
    }
    return length;
  }

  /** Reads bytes of a header, and returns the position after them. */
  #readHeader(bytes: Uint8Array, at: number): number {
    while (at < bytes.length && this.#headerLength < this.#headerEnd) {
      this.#header[this.#headerLength++] = bytes[at++]!;
      if (this.#headerLength === 1) this.#checkFirst();
      else if (this.#headerLength === 2) this.#checkSecond();
    }
    if (this.#headerLength < this.#headerEnd) return at;
    this.#missing = this.#readLength();
    this.#headerLength = this.#phase = this.#controlLength = 0;
    if (this.#missing === 0) this.#endFrame();
    return at;
  }

  #checkFirst(): void {
    const first = this.#header[0]!;
    this.#opcode = first & OPCODE;
    this.#isFinal = (first & FINAL) !== 0;
    if ((first & RESERVED) !== 0) throw new FrameError("a frame without reserved bits", `first byte ${hex(first)}`);
    if (this.#opcode === TEXT) throw new FrameError("binary messages", "text", UNSUPPORTED);
    if (this.#opcode >= CLOSE) {
      if (this.#opcode > PONG) throw new FrameError("a known opcode", `${this.#opcode}`);
      if (!this.#isFinal) throw new FrameError("a whole control frame", "a fragment");
    } else if (this.#opcode === BINARY) {
      if (this.#isFragmented) throw new FrameError("the rest of a message", "another message");
    } else if (this.#opcode === CONTINUATION) {
      if (!this.#isFragmented) throw new FrameError("the start of a message", "a continuation");
    } else {
      throw new FrameError("a known opcode", `${this.#opcode}`);
    }
  }

  #checkSecond(): void {
    const second = this.#header[1]!;
    const isMasked = (second & MASKED) !== 0;
    if (isMasked !== this.#isMasked) {
      const [expected, received] = this.#isMasked ? ["a masked", "an unmasked"] : ["an unmasked", "a masked"];
      throw new FrameError(`${expected} frame`, `${received} one`);
    }
    const short = second & ~MASKED;
    if (short > MAX_SHORT && this.#opcode >= CLOSE) {
      throw new FrameError(`a control frame of at most ${MAX_SHORT} bytes`, "a longer one");
    }
    this.#headerEnd = 2 + (short === LONG ? 8 : short === MEDIUM ? 2 : 0) + (isMasked ? MASK_LENGTH : 0);
  }

  #readLength(): number {
    const short = this.#header[1]! & ~MASKED;
    if (short <= MAX_SHORT) return short;
    const view = new DataView(this.#header.buffer);
    if (short === MEDIUM) return view.getUint16(2);
    const length = view.getBigUint64(2);
    if (length >> 63n !== 0n) throw new FrameError("a length below 2 ** 63", `${length}`);
    // Bytes are counted in a number.
    if (length > Number.MAX_SAFE_INTEGER) throw new FrameError("a length below 2 ** 53", `${length}`, TOO_BIG);
    return Number(length);
  }

  /** Reads a part of a payload; returns the number of its bytes that belong to a message, now at `to`. */
  #readPayload(bytes: Uint8Array, at: number, count: number, to: number): number {
    const isControl = this.#opcode >= CLOSE;
    let part: Uint8Array;
    if (isControl) {
      part = this.#control.subarray(this.#controlLength, this.#controlLength + count);
      part.set(bytes.subarray(at, at + count));
      this.#controlLength += count;
    } else {
      if (at !== to) bytes.copyWithin(to, at, at + count);
      part = bytes.subarray(to, to + count);
    }
    if (this.#isMasked) applyMask(part, this.#header.subarray(this.#headerEnd - MASK_LENGTH), this.#phase);
    this.#phase = (this.#phase + count) & 3;
    return isControl ? 0 : count;
  }

  #endFrame(): void {
    this.#missing = undefined;
    this.#headerEnd = 2;
    const payload = this.#control.subarray(0, this.#controlLength);
    if (this.#opcode < CLOSE) this.#isFragmented = !this.#isFinal;
    else if (this.#opcode === PING) this.ping = payload.slice();
    else if (this.#opcode === CLOSE) this.closed = this.#readClose(payload);
  }

  #readClose(payload: Uint8Array): End {
    if (this.#isFragmented) throw new FrameError("the rest of a message", "a close frame");
    if (payload.length === 0) return { code: NO_STATUS, reason: "" };
    if (payload.length === 1) throw new FrameError("a close frame with a code", "one byte");
    const code = payload[0]! << 8 | payload[1]!;
    if (!isCode(code)) throw new FrameError("a valid close code", `${code}`);
    try {
      return { code, reason: decoder.decode(payload.subarray(2)) };
    } catch {
      throw new FrameError("a close reason in UTF-8", "other bytes");
    }
  }
}
