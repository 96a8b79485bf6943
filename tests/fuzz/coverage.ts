/**
 * The block coverage of the library's modules, as V8 reports it.
 *
 * @module
 */

import { Session } from "node:inspector/promises";

interface Range {
  startOffset: number;
  endOffset: number;
  count: number;
}

interface Script {
  url: string;
  functions: { ranges: Range[] }[];
}

const ROOT = new URL("../../", import.meta.url).href;

/** Records for each character of the modules, as V8 compiles them, whether it ran. */
export class Coverage implements Disposable {
  readonly #session = new Session();
  readonly #modules = new Map<string, { ran: Uint8Array; known: Uint8Array }>();

  private constructor() {
    this.#session.connect();
  }

  /** Starts the coverage of V8. */
  static async start(): Promise<Coverage> {
    const coverage = new Coverage();
    await coverage.#session.post("Profiler.enable");
    await coverage.#session.post("Profiler.startPreciseCoverage", { callCount: true, detailed: true });
    return coverage;
  }

  /** Adds the code that ran since the last call; returns the number of characters that ran for the first time. */
  async take(): Promise<number> {
    const { result } = await this.#session.post("Profiler.takePreciseCoverage") as unknown as { result: Script[] };
    let added = 0;
    for (const { url, functions } of result) {
      if (!url.startsWith(ROOT) || url.slice(ROOT.length).includes("/")) continue;
      added += this.#add(url, functions.flatMap(({ ranges }) => ranges));
    }
    return added;
  }

  /** Copies the record, for {@linkcode Coverage.restore}. */
  snapshot(): [string, Uint8Array][] {
    return Array.from(this.#modules, ([url, { ran }]) => [url, ran.slice()]);
  }

  /** Resets the record to a snapshot. */
  restore(snapshot: [string, Uint8Array][]): void {
    const before = new Map(snapshot);
    for (const [url, { ran }] of this.#modules) {
      ran.fill(0);
      ran.set(before.get(url) ?? []);
    }
  }

  /** The share of each module that ran, of the functions that V8 reported. */
  get shares(): { module: string; share: number }[] {
    const count = (flags: Uint8Array) => flags.reduce((sum, flag) => sum + flag, 0);
    return Array.from(this.#modules, ([url, { ran, known }]) => ({
      module: url.slice(ROOT.length),
      share: count(ran) / count(known),
    })).sort((a, b) => a.module < b.module ? -1 : 1);
  }

  [Symbol.dispose](): void {
    this.#session.disconnect();
  }

  #add(url: string, ranges: Range[]): number {
    // An inner range overrides the range around it.
    ranges.sort((a, b) => a.startOffset - b.startOffset || b.endOffset - a.endOffset);
    const length = Math.max(...ranges.map(({ endOffset }) => endOffset));
    const now = new Uint8Array(length);
    const { ran, known } = this.#module(url, length);
    for (const { startOffset, endOffset, count } of ranges) {
      now.fill(count > 0 ? 1 : 0, startOffset, endOffset);
      known.fill(1, startOffset, endOffset);
    }
    let added = 0;
    for (let at = 0; at < length; at++) {
      if (now[at] === 0 || ran[at] === 1) continue;
      ran[at] = 1;
      added++;
    }
    return added;
  }

  #module(url: string, length: number): { ran: Uint8Array; known: Uint8Array } {
    const module = this.#modules.get(url);
    if (module !== undefined && module.ran.length >= length) return module;
    const larger = { ran: new Uint8Array(length), known: new Uint8Array(length) };
    larger.ran.set(module?.ran ?? []);
    larger.known.set(module?.known ?? []);
    this.#modules.set(url, larger);
    return larger;
  }
}
