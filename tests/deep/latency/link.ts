/**
 * A long link, as a process of its own: `link.ts PORT DELAY RATE` prints a port, and what is sent there arrives at PORT.
 *
 * In each direction a byte leaves RATE bytes a second after those before it, at the earliest, and arrives DELAY
 * milliseconds later. When more has gathered than a router would hold, nothing more is read until some has left, so the
 * sender's socket fills up as it would before a real link. Nothing is lost: how TCP recovers is not what is measured.
 *
 * @module
 */

import { endWithInput } from "../../measured.ts";

// One read: half a millisecond of 1 Gbit/s, less than a timer can tell.
const LARGEST_READ = 64 * 1024;
// Timers know whole milliseconds, and come about so many late; so bytes come as much too early as too late.
const LATENESS = 1.2;
const TOLERANCE = 1;

/** Bytes that arrived together: where they end, counted from the first of all, and when they are due. */
interface Packet {
  end: number;
  due: number;
}

/** Wakes the other side of a direction. */
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

/** One direction. */
class Direction {
  readonly #from: Deno.TcpConn;
  readonly #to: Deno.TcpConn;
  readonly #delay: number;
  readonly #perByte: number;
  // What is under way lies here, from #left to #arrived.
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
    // What is on the wire, and before it what fits one round trip: the usual measure of a router's queue.
    this.#ring = new Uint8Array(Math.max(LARGEST_READ, Math.ceil(rate / 1000 * 3 * delay)));
  }

  async run(): Promise<void> {
    await Promise.all([this.#take(), this.#give()]);
  }

  async #take(): Promise<void> {
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

  async #give(): Promise<void> {
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
if (!(port > 0 && delay >= 0 && rate > 0)) throw new TypeError(`link.ts PORT DELAY RATE, not ${Deno.args}`);
endWithInput();
const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
console.log(listener.addr.port);
for await (const near of listener) {
  const far = await Deno.connect({ hostname: "127.0.0.1", port });
  near.setNoDelay();
  far.setNoDelay();
  Promise.all([new Direction(near, far, delay, rate).run(), new Direction(far, near, delay, rate).run()])
    // One side broke the connection: so does the link.
    .catch(() => {})
    .finally(() => {
      near.close();
      far.close();
    });
}
