/**
 * One end of a WebSocket over TCP that sends any frame, also an invalid one.
 *
 * @module
 */

import { concat } from "@std/bytes";
import { createHash } from "node:crypto";
import { bytes, LOOPBACK, readExactly, writeAll } from "./support.ts";

/** Opcodes of RFC 6455, section 5.2. */
export const OPCODE = { continuation: 0, text: 1, binary: 2, close: 8, ping: 9, pong: 10 } as const;

const ACCEPT_SUFFIX = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/** Fields of a sent frame that differ from a complete frame. */
export interface FrameFields {
  /** Whether this is the last frame of its message. Default: true. */
  isFinal?: boolean;
  /** Length in the header. Default: that of the payload. */
  length?: number;
}

/** One end of a WebSocket. */
export class RawWebSocket {
  readonly connection: Deno.Conn;
  // A client masks its frames.
  readonly #isClient: boolean;

  private constructor(connection: Deno.Conn, isClient: boolean) {
    this.connection = connection;
    this.#isClient = isClient;
  }

  /** Connects to a server. */
  static async connect(port: number, path: string): Promise<RawWebSocket> {
    const connection = await Deno.connect({ ...LOOPBACK, port });
    const request = [
      `GET ${path} HTTP/1.1`,
      "host: localhost",
      "connection: upgrade",
      "upgrade: websocket",
      "sec-websocket-version: 13",
      "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
    ];
    await writeAll(connection, bytes(`${request.join("\r\n")}\r\n\r\n`));
    const head = await readHead(connection);
    if (!head.startsWith("HTTP/1.1 101 ")) throw new Error(`Expected status 101, received ${head.split("\r\n")[0]}`);
    return new RawWebSocket(connection, true);
  }

  /** Accepts a client whose request was read as `head`. */
  static async accept(connection: Deno.Conn, head: string): Promise<RawWebSocket> {
    const [, key] = /sec-websocket-key: (\S+)/i.exec(head)!;
    const accept = createHash("sha1").update(`${key}${ACCEPT_SUFFIX}`).digest("base64");
    const response = [
      "HTTP/1.1 101 Switching Protocols",
      "connection: upgrade",
      "upgrade: websocket",
      `sec-websocket-accept: ${accept}`,
    ];
    await writeAll(connection, bytes(`${response.join("\r\n")}\r\n\r\n`));
    return new RawWebSocket(connection, false);
  }

  /** Encodes a frame. */
  encode(opcode: number, payload: Uint8Array = new Uint8Array(0), fields: FrameFields = {}): Uint8Array<ArrayBuffer> {
    const { isFinal = true, length = payload.length } = fields;
    const header = new DataView(new ArrayBuffer(14));
    header.setUint8(0, opcode | (isFinal ? 0x80 : 0));
    const mask = this.#isClient ? 0x80 : 0;
    let at = 2;
    if (length < 126) {
      header.setUint8(1, length | mask);
    } else if (length < 65_536) {
      header.setUint8(1, 126 | mask);
      header.setUint16(2, length);
      at = 4;
    } else {
      header.setUint8(1, 127 | mask);
      header.setBigUint64(2, BigInt(length));
      at = 10;
    }
    // A mask of zeros leaves the payload as it is.
    return concat([new Uint8Array(header.buffer, 0, at + (this.#isClient ? 4 : 0)), payload]);
  }

  /** Sends a frame. */
  async send(opcode: number, payload?: Uint8Array, fields?: FrameFields): Promise<void> {
    await writeAll(this.connection, this.encode(opcode, payload, fields));
  }

  /** Sends a close frame: without a code, with a code, or with a code and a reason. */
  async sendClose(code?: number, reason = ""): Promise<void> {
    await this.send(
      OPCODE.close,
      code === undefined ? undefined : concat([Uint8Array.of(code >> 8, code), bytes(reason)]),
    );
  }

  /** Returns the next frame; rejects at the end of the connection. */
  async next(): Promise<{ opcode: number; payload: Uint8Array }> {
    const [first, second] = await readExactly(this.connection, 2) as unknown as [number, number];
    let length = second & 0x7f;
    if (length === 126) length = new DataView((await readExactly(this.connection, 2)).buffer).getUint16(0);
    else if (length === 127) {
      length = Number(new DataView((await readExactly(this.connection, 8)).buffer).getBigUint64(0));
    }
    const mask = (second & 0x80) === 0 ? new Uint8Array(4) : await readExactly(this.connection, 4);
    const payload = await readExactly(this.connection, length);
    return { opcode: first & 0x0f, payload: payload.map((byte, at) => byte ^ mask[at % 4]!) };
  }

  /** Reads until the close frame, and returns its code; rejects if the connection ends before. */
  async nextClose(): Promise<number | undefined> {
    for (;;) {
      const { opcode, payload } = await this.next();
      if (opcode === OPCODE.close) return payload.length < 2 ? undefined : payload[0]! << 8 | payload[1]!;
    }
  }
}

/** Reads the head of a request or response, one byte at a time, so that no later byte is lost. */
export async function readHead(connection: Deno.Conn): Promise<string> {
  const head: number[] = [];
  const p = new Uint8Array(1);
  while (!String.fromCharCode(...head.slice(-4)).endsWith("\r\n\r\n")) {
    if (await connection.read(p) === null) throw new Error("The connection ended before the end of the head");
    head.push(p[0]!);
  }
  return String.fromCharCode(...head);
}
