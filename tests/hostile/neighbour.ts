/**
 * Another session of the victim's, which moves data while the victim is attacked.
 *
 * @module
 */

import { setTimeout as delay } from "node:timers/promises";
import type { Version } from "../../frame.ts";
import type { Role } from "./victim.ts";

/** Whom it dials, and how. */
export interface Way {
  port: number;
  version: Version;
  /** What the victim is. */
  role: Role;
}

/** One that has data echoed all the while, on a thread of its own. */
export class Neighbour implements Disposable {
  readonly #worker = new Worker(new URL("carrier.ts", import.meta.url), { type: "module" });
  readonly #waiting: PromiseWithResolvers<number>[] = [];

  /** Begins at once. */
  constructor(way: Way) {
    this.#worker.onmessage = ({ data }: MessageEvent<number | string>) => {
      const { resolve, reject } = this.#waiting.shift()!;
      if (typeof data === "number") resolve(data);
      else reject(new Error(data));
    };
    this.#worker.postMessage(way);
  }

  /** Bytes of its data that come back in a millisecond, over so many milliseconds. */
  async rate(milliseconds: number): Promise<number> {
    const [from, began] = [await this.#echoed(), performance.now()];
    await delay(milliseconds);
    return (await this.#echoed() - from) / (performance.now() - began);
  }

  #echoed(): Promise<number> {
    const answer = Promise.withResolvers<number>();
    this.#waiting.push(answer);
    this.#worker.postMessage(null);
    return answer.promise;
  }

  [Symbol.dispose](): void {
    this.#worker.terminate();
  }
}
