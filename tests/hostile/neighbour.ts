/**
 * A second session of the victim, which carries data while the first one is attacked.
 *
 * @module
 */

import { setTimeout as delay } from "node:timers/promises";
import type { Version } from "../../frame.ts";
import type { Role } from "./victim.ts";

/** The port to connect to, and the version and role of the session. */
export interface Way {
  port: number;
  version: Version;
  /** The victim's role. */
  role: Role;
}

/** Has data echoed without end by the victim. Runs in a worker, so that the flood does not delay it. */
export class Neighbour implements Disposable {
  readonly #worker = new Worker(new URL("carrier.ts", import.meta.url), { type: "module" });
  readonly #waiting: PromiseWithResolvers<number>[] = [];

  /** Starts at once. */
  constructor(way: Way) {
    this.#worker.onmessage = ({ data }: MessageEvent<number | string>) => {
      const { resolve, reject } = this.#waiting.shift()!;
      if (typeof data === "number") resolve(data);
      else reject(new Error(data));
    };
    this.#worker.postMessage(way);
  }

  /** Measures the echoed bytes per millisecond, over this many milliseconds. */
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
