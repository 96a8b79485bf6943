/**
 * Others, who want to be served while the victim is attacked.
 *
 * @module
 */

import { Attacker } from "./attacker.ts";
import type { Version } from "../../frame.ts";

/** Whom it dials, and how. */
export interface Errand {
  port: number;
  version: Version;
  id: number;
}

/** Dials once, has a few bytes echoed, hangs up; gives the milliseconds that took. */
export async function visit({ port, version, id }: Errand): Promise<number> {
  const started = performance.now();
  const peer = await Attacker.dial(port, version, id);
  try {
    await peer.start();
    return performance.now() - started;
  } finally {
    peer.close();
    await peer.ended;
  }
}

/** One that visits over and over, on a thread of its own: an attacker that is busy would make the victim seem slow. */
export class Bystander {
  readonly #worker = new Worker(new URL("visitor.ts", import.meta.url), { type: "module" });
  readonly #answer = Promise.withResolvers<void>();
  /** Milliseconds of each visit so far. */
  readonly visits: number[] = [];

  /** Begins to visit, with so many milliseconds between two visits. */
  constructor(errand: Errand, pause = 0) {
    this.#worker.onmessage = ({ data }: MessageEvent<number | string | null>) => {
      if (typeof data === "number") this.visits.push(data);
      else if (data === null) this.#answer.resolve();
      else this.#answer.reject(new Error(data));
    };
    this.#answer.promise.catch(() => {});
    this.#worker.postMessage([errand, pause]);
  }

  /** Ends the visits; rejects when one has failed. */
  async end(): Promise<void> {
    this.#worker.postMessage(null);
    await this.#answer.promise;
    this.#worker.terminate();
  }
}
