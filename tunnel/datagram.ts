/**
 * Encodes datagrams into the bytes of a stream, each preceded by its length, and decodes them.
 *
 * @module
 */

/** Maximum bytes of a datagram: what fits into an IPv4 packet behind its header and that of UDP. */
export const MAX_DATAGRAM = 65_507;

// Bytes of the length, little-endian.
const HEADER = 2;

// Bytes of a buffer that has not received more at once. Larger: fewer reads; smaller: less memory for each source.
const BUFFER = 4096;

/** Encodes a datagram of at most MAX_DATAGRAM bytes. */
export function encodeDatagram(datagram: Uint8Array): Uint8Array {
  const encoded = new Uint8Array(HEADER + datagram.length);
  encoded[0] = datagram.length & 255;
  encoded[1] = datagram.length >> 8;
  encoded.set(datagram, HEADER);
  return encoded;
}

/** Decodes the datagrams of a stream. */
export class DatagramReader {
  readonly #from: { read(p: Uint8Array): Promise<number | null> };
  #buffer = new Uint8Array(BUFFER);
  /** The received bytes that were not returned: those from `start` to before `end`. */
  #start = 0;
  #end = 0;

  /** @param from The stream, behind the head of the request. */
  constructor(from: { read(p: Uint8Array): Promise<number | null> }) {
    this.#from = from;
  }

  /**
   * Reads a datagram; `null` after the last one. It is valid until the next call.
   *
   * @throws {Error} The stream has a length above MAX_DATAGRAM, or ends within a datagram.
   */
  async read(): Promise<Uint8Array | null> {
    if (!await this.#fill(HEADER)) return null;
    const length = this.#buffer[this.#start]! + 256 * this.#buffer[this.#start + 1]!;
    if (length > MAX_DATAGRAM) {
      throw new Error(`the length of a datagram must be at most ${MAX_DATAGRAM}, received ${length}`);
    }
    await this.#fill(HEADER + length);
    const datagram = this.#buffer.subarray(this.#start + HEADER, this.#start + HEADER + length);
    this.#start += HEADER + length;
    return datagram;
  }

  /** Receives until there are `count` bytes; returns `false` at the end of the stream before the first of them. */
  async #fill(count: number): Promise<boolean> {
    while (this.#end - this.#start < count) {
      this.#makeRoom(count);
      const received = await this.#from.read(this.#buffer.subarray(this.#end));
      if (received === null) {
        if (this.#end === this.#start) return false;
        throw new Error(`the stream ended within a datagram, after ${this.#end - this.#start} of its bytes`);
      }
      this.#end += received;
    }
    return true;
  }

  /** Moves what is unread to the front, into a buffer that grows with what was received, not with what is announced. */
  #makeRoom(count: number): void {
    const unread = this.#end - this.#start;
    if (this.#start > 0) {
      const isOversized = this.#buffer.length > BUFFER && Math.max(unread, count) <= BUFFER;
      const buffer = isOversized ? new Uint8Array(BUFFER) : this.#buffer;
      buffer.set(this.#buffer.subarray(this.#start, this.#end));
      this.#buffer = buffer;
      [this.#start, this.#end] = [0, unread];
    }
    if (this.#end < this.#buffer.length) return;
    const larger = new Uint8Array(2 * this.#buffer.length);
    larger.set(this.#buffer);
    this.#buffer = larger;
  }
}
