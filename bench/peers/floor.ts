/**
 * The smallest multiplexer in JavaScript, a lower bound for the cost of streams over a connection. It speaks smux 1
 * without credit, limits, fairness, error handling or a clean end.
 *
 * @module
 */

import type { Line, Peer, Pipe } from "./shape.ts";

const [SYN, FIN, PSH] = [0, 1, 2];
const HEADER = 8;
// The fastest sizes.
const FULL = 224 * 1024;
const READ = 64 * 1024;
const MOST_PAYLOAD = 32 * 1024;
const EMPTY_BYTES = new Uint8Array(0);

class FloorPipe implements Pipe {
  readonly #line: FloorLine;
  readonly id: number;
  readonly #unread: Uint8Array[] = [];
  #into: Uint8Array | undefined;
  #filled = 0;
  #resolve!: (count: number | null) => void;
  #isOver = false;

  constructor(line: FloorLine, id: number) {
    this.#line = line;
    this.id = id;
  }

  read(p: Uint8Array): Promise<number | null> {
    const [first] = this.#unread;
    if (first !== undefined) {
      const count = Math.min(first.length, p.length);
      p.set(first.subarray(0, count));
      if (count < first.length) this.#unread[0] = first.subarray(count);
      else this.#unread.shift();
      return Promise.resolve(count);
    }
    if (this.#isOver) return Promise.resolve(null);
    this.#into = p;
    this.#filled = 0;
    return new Promise((resolve) => this.#resolve = resolve);
  }

  async write(p: Uint8Array): Promise<number> {
    const part = p.subarray(0, MOST_PAYLOAD);
    while (!this.#line.put(PSH, this.id, part)) await this.#line.room();
    return part.length;
  }

  tryWrite(p: Uint8Array): number {
    const part = p.subarray(0, MOST_PAYLOAD);
    return this.#line.put(PSH, this.id, part) ? part.length : 0;
  }

  async closeWrite(): Promise<void> {
    while (!this.#line.put(FIN, this.id, EMPTY_BYTES)) await this.#line.room();
  }

  close(): void {
    this.closeWrite();
    this.#line.pipes.delete(this.id);
  }

  receive(bytes: Uint8Array, start: number, end: number): void {
    if (this.#into !== undefined) {
      const stop = Math.min(end, start + this.#into.length - this.#filled);
      this.#into.set(bytes.subarray(start, stop), this.#filled);
      if (this.#filled === 0) this.#line.settling.push(this);
      this.#filled += stop - start;
      start = stop;
    }
    if (start < end) this.#unread.push(bytes.slice(start, end));
  }

  finish(): void {
    this.#isOver = true;
    if (this.#into !== undefined && this.#filled === 0) this.#resolve(null);
  }

  settle(): void {
    this.#into = undefined;
    this.#resolve(this.#filled);
  }
}

class FloorLine implements Line {
  readonly pipes = new Map<number, FloorPipe>();
  readonly settling: FloorPipe[] = [];
  readonly #conn: Deno.TcpConn;
  readonly #accept: ((pipe: FloorPipe) => void) | undefined;
  #nextId = 3;
  #filling = new Uint8Array(FULL + HEADER + MOST_PAYLOAD);
  #leaving = new Uint8Array(FULL + HEADER + MOST_PAYLOAD);
  #used = 0;
  #isWriting = false;
  #waiting: (() => void)[] = [];

  constructor(conn: Deno.TcpConn, accept?: (pipe: FloorPipe) => void) {
    this.#conn = conn;
    this.#accept = accept;
    conn.setNoDelay();
    this.#read().catch(() => {});
  }

  open(): Promise<Pipe> {
    const pipe = new FloorPipe(this, this.#nextId);
    this.#nextId += 2;
    this.pipes.set(pipe.id, pipe);
    this.put(SYN, pipe.id, EMPTY_BYTES);
    return Promise.resolve(pipe);
  }

  put(command: number, id: number, payload: Uint8Array): boolean {
    if (this.#used > FULL) return false;
    const [bytes, at, { length }] = [this.#filling, this.#used, payload];
    bytes[at] = 1;
    bytes[at + 1] = command;
    bytes[at + 2] = length;
    bytes[at + 3] = length >>> 8;
    bytes[at + 4] = id;
    bytes[at + 5] = id >>> 8;
    bytes[at + 6] = id >>> 16;
    bytes[at + 7] = id >>> 24;
    bytes.set(payload, at + HEADER);
    this.#used = at + HEADER + length;
    if (!this.#isWriting) this.#write();
    return true;
  }

  room(): Promise<void> {
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  async #write(): Promise<void> {
    this.#isWriting = true;
    await null;
    try {
      while (this.#used > 0) {
        const [bytes, length] = [this.#filling, this.#used];
        this.#filling = this.#leaving;
        this.#leaving = bytes;
        this.#used = 0;
        for (const resolve of this.#waiting.splice(0)) resolve();
        for (let at = 0; at < length;) at += await this.#conn.write(bytes.subarray(at, length));
      }
    } catch {
      // The measurement detects missing data.
    }
    this.#isWriting = false;
  }

  async #read(): Promise<void> {
    const bytes = new Uint8Array(READ + HEADER + MOST_PAYLOAD);
    let held = 0;
    for (;;) {
      const count = await this.#conn.read(bytes.subarray(held, held + READ));
      if (count === null) return;
      const end = held + count;
      let at = 0;
      while (end - at >= HEADER) {
        const next = at + HEADER + (bytes[at + 2]! | bytes[at + 3]! << 8);
        if (next > end) break;
        const id = bytes[at + 4]! | bytes[at + 5]! << 8 | bytes[at + 6]! << 16 | bytes[at + 7]! << 24;
        if (bytes[at + 1] === PSH) {
          this.pipes.get(id)?.receive(bytes, at + HEADER, next);
        } else if (bytes[at + 1] === FIN) {
          this.pipes.get(id)?.finish();
        } else {
          const pipe = new FloorPipe(this, id);
          this.pipes.set(id, pipe);
          this.#accept!(pipe);
        }
        at = next;
      }
      for (const pipe of this.settling) pipe.settle();
      this.settling.length = 0;
      held = end - at;
      bytes.copyWithin(0, at, end);
    }
  }
}

/** The floor. */
export const floor: Peer = {
  streamIsConnection: false,
  connect: async (port) => new FloorLine(await Deno.connect({ hostname: "127.0.0.1", port })),
  serve(handle) {
    const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    (async () => {
      for await (const conn of listener) new FloorLine(conn, handle);
    })();
    return listener.addr.port;
  },
};
