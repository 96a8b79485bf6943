/**
 * A proxy between two ends whose connection must be lost again and again.
 *
 * @module
 */

import { setImmediate } from "node:timers/promises";
import { LOOPBACK, writeAll } from "../../support.ts";

/** What happens to a connection. */
export type Fault = "cut" | "hang";

const CHUNK = 64 * 1024;

/** A proxy whose connections all fail at an interval. */
export class CuttingProxy implements Disposable {
  readonly #listener = Deno.listen(LOOPBACK);
  readonly #open = new Set<Deno.TcpConn[]>();
  readonly #timer: ReturnType<typeof setInterval>;
  #isHanging = new WeakSet<Deno.TcpConn[]>();

  /**
   * @param target A port of this machine.
   * @param milliseconds The interval.
   * @param fault Whether connections are closed, or hang for one interval before.
   */
  constructor(target: number, milliseconds: number, fault: Fault = "cut") {
    this.#accept(target);
    this.#timer = setInterval(() => {
      for (const pair of this.#open) {
        if (fault === "hang" && !this.#isHanging.has(pair)) this.#isHanging.add(pair);
        else this.#close(pair);
      }
    }, milliseconds);
  }

  get port(): number {
    return this.#listener.addr.port;
  }

  async #accept(target: number): Promise<void> {
    try {
      for await (const near of this.#listener) {
        const pair = [near, await Deno.connect({ ...LOOPBACK, port: target })];
        this.#open.add(pair);
        this.#copy(pair, 0);
        this.#copy(pair, 1);
      }
    } catch (error) {
      if (!(error instanceof Deno.errors.BadResource)) throw error;
    }
  }

  async #copy(pair: Deno.TcpConn[], from: number): Promise<void> {
    const p = new Uint8Array(CHUNK);
    try {
      for (let count; (count = await pair[from]!.read(p)) !== null;) {
        if (this.#isHanging.has(pair)) return;
        await writeAll(pair[1 - from]!, p.subarray(0, count));
        // Writes that never block would starve the timer.
        await setImmediate();
      }
    } catch {
      // Cut.
    }
    this.#close(pair);
  }

  #close(pair: Deno.TcpConn[]): void {
    if (!this.#open.delete(pair)) return;
    for (const connection of pair) connection.close();
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
    this.#listener.close();
    for (const pair of this.#open) this.#close(pair);
  }
}
