/**
 * Follows the body of an HTTP request to its end.
 *
 * @module
 */

/** How long a body is: its bytes, or chunks that say so themselves. */
export type BodyLength = number | "chunked";

// Bytes of a line between chunks, its extensions included, and of all trailers. Larger: longer trailers; smaller: less
// work for a body that is malformed.
const MAX_LINES = 8192;

/** What comes next in a body. */
type Part = "size" | "data" | "end of data" | "trailer" | "nothing";

/**
 * Follows the body of the only request of a connection. What follows the body would be another request: it may be for
 * another host, and it may contain the password of the proxy, so it must not be forwarded.
 */
export class RequestBody {
  readonly #isChunked: boolean;
  #part: Part;
  /** Bytes of data until the part ends. */
  #left = 0;
  /** The current line. */
  #line = "";
  /** Bytes of lines since the last data. */
  #lineBytes = 0;

  constructor(length: BodyLength) {
    this.#isChunked = length === "chunked";
    this.#part = length === "chunked" ? "size" : length === 0 ? "nothing" : "data";
    if (length !== "chunked") this.#left = length;
  }

  /**
   * Follows the next bytes of the client.
   *
   * @throws {Error} They are malformed, or do not belong to the body.
   */
  push(p: Uint8Array): void {
    for (let at = 0; at < p.length;) {
      if (this.#part === "data") {
        const count = Math.min(this.#left, p.length - at);
        this.#left -= count;
        at += count;
        if (this.#left === 0) this.#part = this.#isChunked ? "end of data" : "nothing";
      } else {
        this.#pushByte(p[at++]!);
      }
    }
  }

  #pushByte(byte: number): void {
    if (this.#part === "nothing") {
      // Old clients end a body with an empty line.
      if (byte === 13 || byte === 10) return;
      throw new Error("expected one request for each connection, received another");
    }
    if (++this.#lineBytes > MAX_LINES) throw new Error(`lines of a chunked body exceed ${MAX_LINES} bytes`);
    this.#line += String.fromCharCode(byte);
    if (byte !== 10) return;
    const line = this.#line;
    this.#line = "";
    if (!line.endsWith("\r\n")) throw new Error("expected CRLF in a chunked body, received LF");
    this.#endLine(line.slice(0, -2));
  }

  #endLine(line: string): void {
    if (this.#part === "trailer") {
      if (line === "") this.#part = "nothing";
    } else if (this.#part === "end of data") {
      if (line !== "") throw new Error("expected the end of a chunk, received more bytes");
      this.#part = "size";
    } else {
      const [, digits] = /^([\da-f]{1,12})[ \t]*(?:;[^\r\n]*)?$/i.exec(line) ?? [];
      if (digits === undefined) throw new Error("expected the size of a chunk, received another line");
      this.#left = parseInt(digits, 16);
      this.#part = this.#left === 0 ? "trailer" : "data";
      if (this.#left > 0) this.#lineBytes = 0;
    }
  }
}
