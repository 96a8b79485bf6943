/**
 * What both ends do with their streams, and what they note about it.
 *
 * @module
 */

/** What the first byte of a stream asks the server to do with it. */
export const NOT_READ = 1;
export const READ = 2;
export const WRITE_MUCH = 3;
export const WRITE = 4;
export const RECORDS = 5;

/** Bytes that are written to a stream that is not read, unless something stops the writer. */
export const MUCH = 1_000_000_000;
const CHUNK = 64 * 1024;
const RECORD = 1024;
const RECORD_EVERY_MS = 10;

/** What one end has seen of a session. */
export class Tally {
  /** Bytes written to the stream that is not read. */
  written = 0;
  /** Bytes received on the stream beside it. */
  received = 0;
  /** The longest time without any of them, in milliseconds. */
  gap = 0;
  /** The highest `bufferedAmount`. */
  queued = 0;
  /** Records sent and received. */
  recordsSent = 0;
  recordsReceived = 0;
  /** What was wrong with them. */
  wrong = "";
  /** How the session ended, and the open stream. */
  ended = "";
  streamEnded = "";
  #receivedAt = performance.now();

  /** Notes the highest `bufferedAmount` of this socket: it grows in `send` only. */
  watch(socket) {
    const send = socket.send.bind(socket);
    socket.send = (data) => {
      send(data);
      this.queued = Math.max(this.queued, socket.bufferedAmount);
    };
  }

  /** Notes the end of this session. */
  async awaitEnd(session) {
    this.ended = await session.closed.then(() => "closed without an error", (error) => `${error}`);
  }

  /** Notes that bytes were received. */
  receive(count) {
    const now = performance.now();
    this.gap = Math.max(this.gap, now - this.#receivedAt);
    this.#receivedAt = now;
    this.received += count;
  }

  /** The fields for JSON, with the time since the last byte. */
  toJSON() {
    const sinceLast = this.ended === "" ? performance.now() - this.#receivedAt : 0;
    return { ...this, gap: Math.max(this.gap, sinceLast) };
  }

  /** Writes to a stream that is not read. */
  async writeMuch(stream) {
    for (const p = new Uint8Array(CHUNK); this.written < MUCH; this.written += p.length) await stream.write(p);
  }

  /** Reads a stream to its end. */
  async read(stream) {
    const p = new Uint8Array(CHUNK);
    this.#receivedAt = performance.now();
    for (let count; (count = await stream.read(p)) !== null;) this.receive(count);
  }

  /** Sends a numbered record at intervals. */
  async sendRecords(stream) {
    const p = new DataView(new ArrayBuffer(RECORD));
    for (;;) {
      p.setUint32(0, this.recordsSent);
      await stream.write(new Uint8Array(p.buffer));
      this.recordsSent++;
      await new Promise((resolve) => setTimeout(resolve, RECORD_EVERY_MS));
    }
  }

  /** Receives records, and checks their numbers. */
  async receiveRecords(stream) {
    const p = new Uint8Array(RECORD);
    for (;; this.recordsReceived++) {
      for (let at = 0; at < RECORD;) {
        const count = await stream.read(p.subarray(at));
        if (count === null) return this.streamEnded = "the stream ended in order";
        at += count;
      }
      const number = new DataView(p.buffer).getUint32(0);
      if (number !== this.recordsReceived) this.wrong ||= `record ${number} in place of ${this.recordsReceived}`;
    }
  }

  /** Notes how an open stream failed. */
  fail(error) {
    this.streamEnded ||= `${error}`;
  }
}

/** Writes to a stream until it fails. */
export async function writeOn(stream) {
  for (const p = new Uint8Array(CHUNK);;) await stream.write(p);
}
