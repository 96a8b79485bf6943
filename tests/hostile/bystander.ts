/**
 * Well-behaved peers that use the victim while it is attacked.
 *
 * @module
 */

import { Attacker } from "./attacker.ts";
import type { Version } from "../../frame.ts";

/** The port to connect to, the version of the session, and the id of its stream. */
export interface Errand {
  port: number;
  version: Version;
  id: number;
}

/** Connects, has a few bytes echoed and closes the connection; returns the milliseconds from dialling to the echo. */
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

/** Visits in a loop. Runs in a worker, because a busy attacker on the same thread would add to the measured times. */
export class Bystander {
  readonly #worker = new Worker(new URL("visitor.ts", import.meta.url), { type: "module" });
  readonly #answer = Promise.withResolvers<void>();
  /** Duration of each finished visit, in milliseconds. */
  readonly visits: number[] = [];

  /** Starts to visit, with `pause` milliseconds between two visits. */
  constructor(errand: Errand, pause = 0) {
    this.#worker.onmessage = ({ data }: MessageEvent<number | string | null>) => {
      if (typeof data === "number") this.visits.push(data);
      else if (data === null) this.#answer.resolve();
      else this.#answer.reject(new Error(data));
    };
    this.#answer.promise.catch(() => {});
    this.#worker.postMessage([errand, pause]);
  }

  /** Ends the visits; rejects if one failed. */
  async end(): Promise<void> {
    this.#worker.postMessage(null);
    await this.#answer.promise;
    this.#worker.terminate();
  }
}
