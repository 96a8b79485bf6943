/**
 * Simulates a link with delay: `link.ts PORT DELAY RATE` prints a port, and forwards its connections to PORT.
 *
 * Each direction carries RATE bytes per second and delays them by DELAY milliseconds. When the queue is full, the link
 * stops reading until bytes have left, so that the sender's socket fills up as it does before a real link. The link
 * drops no data, because TCP's recovery is not measured.
 *
 * @module
 */

import { endWithInput } from "../../measured.ts";

// Size of one read: less than a timer's resolution at 1 Gbit/s.
const LARGEST_READ = 64 * 1024;
// Timers have a resolution of 1 ms and are LATENESS ms late on average: compensate, so that errors cancel out.
const LATENESS = 1.2;
const TOLERANCE = 1;

/** Bytes that arrived together: their end position, counted from the first byte, and the time to forward them. */
interface Packet {
  end: number;
  due: number;
}

/** Wakes the other loop of a direction. */
class Bell {
  #waiting = Promise.withResolvers<void>();

  ring(): void {
    this.#waiting.resolve();
  }

  async wait(): Promise<void> {
    await this.#waiting.promise;
    this.#waiting = Promise.withResolvers();
  }
}

/** One direction of a connection. */
class Direction {
  readonly #from: Deno.TcpConn;
  readonly #to: Deno.TcpConn;
  readonly #delay: number;
  readonly #perByte: number;
  // Bytes in flight, from position #left to #arrived.
  readonly #ring: Uint8Array<ArrayBuffer>;
  readonly #packets: Packet[] = [];
  #arrived = 0;
  #left = 0;
  #hasEnded = false;
  readonly #news = new Bell();
  readonly #room = new Bell();

  constructor(from: Deno.TcpConn, to: Deno.TcpConn, delay: number, rate: number) {
    this.#from = from;
    this.#to = to;
    this.#delay = delay;
    this.#perByte = 1000 / rate;
    // The bytes on the wire, plus one bandwidth-delay product: the usual size of a router's queue.
    this.#ring = new Uint8Array(Math.max(LARGEST_READ, Math.ceil(rate / 1000 * 3 * delay)));
  }

  async run(): Promise<void> {
    await Promise.all([this.#read(), this.#forward()]);
  }

  async #read(): Promise<void> {
    const size = this.#ring.length;
    for (let idleFrom = 0;;) {
      while (this.#arrived - this.#left === size) await this.#room.wait();
      const start = this.#arrived % size;
      const most = Math.min(LARGEST_READ, size - start, size - (this.#arrived - this.#left));
      const count = await this.#from.read(this.#ring.subarray(start, start + most));
      if (count === null) break;
      idleFrom = Math.max(idleFrom, performance.now()) + count * this.#perByte;
      this.#packets.push({ end: this.#arrived += count, due: idleFrom + this.#delay });
      this.#news.ring();
    }
    this.#hasEnded = true;
    this.#news.ring();
  }

  async #forward(): Promise<void> {
    const size = this.#ring.length;
    for (;;) {
      const packet = this.#packets[0];
      if (packet === undefined) {
        if (this.#hasEnded) return await this.#to.closeWrite();
        await this.#news.wait();
        continue;
      }
      const now = performance.now();
      const wait = packet.due - now;
      if (wait > TOLERANCE) {
        await new Promise((resolve) => setTimeout(resolve, Math.max(1, Math.round(wait - LATENESS))));
        continue;
      }
      let end = packet.end;
      while (this.#packets[0] !== undefined && this.#packets[0].due <= now + TOLERANCE) {
        end = this.#packets.shift()!.end;
      }
      while (this.#left < end) {
        const start = this.#left % size;
        this.#left += await this.#to.write(this.#ring.subarray(start, Math.min(size, start + end - this.#left)));
        this.#room.ring();
      }
    }
  }
}

const [port = NaN, delay = NaN, rate = NaN] = Deno.args.map(Number);
if (!(port > 0 && delay >= 0 && rate > 0)) {
  throw new TypeError(`expected link.ts PORT DELAY RATE, received ${Deno.args}`);
}
endWithInput();
const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
console.log(listener.addr.port);
for await (const near of listener) {
  const far = await Deno.connect({ hostname: "127.0.0.1", port });
  near.setNoDelay();
  far.setNoDelay();
  Promise.all([new Direction(near, far, delay, rate).run(), new Direction(far, near, delay, rate).run()])
    // One side broke the connection: close the other side too.
    .catch(() => {})
    .finally(() => {
      near.close();
      far.close();
    });
}
