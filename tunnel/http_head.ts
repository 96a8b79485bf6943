/**
 * Reads the head of an HTTP message from a connection that then speaks another protocol.
 *
 * @module
 */

import type { Connection } from "../mod.ts";

/** Maximum bytes of a head. Larger: more cookies; smaller: less memory that each peer can occupy. */
const MAX_HEAD = 8192;

// Bytes. Larger: fewer reads; smaller: less memory.
const FIRST_READ = 1024;

const END = new Uint8Array([13, 10, 13, 10]);

/** The head of a request or a response. */
export interface HttpHead {
  /** The first line. */
  first: string;
  /** The other lines. */
  lines: readonly string[];
  /** All bytes that were read. */
  raw: Uint8Array;
  /** Those of them that follow the head. */
  rest: Uint8Array;
}

/** A head that is not accepted. */
export class HeadError extends Error {
  /** The HTTP status of the response. */
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

/** Returns the position after the head; `undefined` if it is not complete. */
function endOf(bytes: Uint8Array, from: number): number | undefined {
  for (let at = bytes.indexOf(END[0]!, from); at >= 0; at = bytes.indexOf(END[0]!, at + 1)) {
    if (END.every((byte, n) => bytes[at + n] === byte)) return at + END.length;
  }
  return undefined;
}

/** Decodes bytes as characters of one byte each. */
function decode(bytes: Uint8Array): string {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return text;
}

/**
 * Reads a head, and the bytes that arrive together with it.
 *
 * @param start Matches the text that a valid head begins with, and each beginning of that: other protocols are
 * recognized early.
 * @returns `undefined` if the connection ends without a byte.
 * @throws {HeadError} It is too long, or another protocol.
 */
export async function readHttpHead(from: Connection, start: RegExp): Promise<HttpHead | undefined> {
  let buffer = new Uint8Array(FIRST_READ);
  for (let length = 0;;) {
    if (length === buffer.length) {
      if (length >= MAX_HEAD) throw new HeadError(431, `HTTP header exceeds ${MAX_HEAD} bytes`);
      const larger = new Uint8Array(length * 2);
      larger.set(buffer);
      buffer = larger;
    }
    const count = await from.read(buffer.subarray(length));
    if (count === null && length === 0) return undefined;
    if (count === null) throw new HeadError(400, "connection closed during handshake");
    const seen = Math.max(0, length - END.length + 1);
    length += count;
    const raw = buffer.subarray(0, length);
    const begin = decode(raw.subarray(0, 16));
    if (!start.test(begin)) {
      throw new HeadError(400, `expected HTTP, received "${begin.slice(0, 8).replaceAll(/[^ -~]/g, "?")}"`);
    }
    const end = endOf(raw, seen);
    if (end === undefined) continue;
    const [first, ...lines] = decode(raw.subarray(0, end - END.length)).split("\r\n");
    return { first: first!, lines, raw, rest: raw.subarray(end) };
  }
}

/** Returns all values of a header, in the order of its lines. */
export function valuesOf({ lines }: HttpHead, name: string): string[] {
  return lines.filter((line) => line.toLowerCase().startsWith(`${name}:`))
    .map((line) => line.slice(name.length + 1).replace(/^[ \t]+|[ \t]+$/g, ""));
}

/** Returns the elements of the lists in a header, in lower case. */
export function tokensOf(head: HttpHead, name: string): string[] {
  return valuesOf(head, name).flatMap((value) => value.split(",")).map((token) => token.trim().toLowerCase());
}
