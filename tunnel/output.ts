/**
 * Writes lines without blocking the process, whether or not they are read.
 *
 * @module
 */

import { encoder } from "./bytes.ts";

/**
 * Characters that may wait for the end of a write. Larger: longer bursts of lines survive; smaller: less memory while
 * the output is not read.
 */
export const MAX_WAITING = 2 ** 20;

/** Where lines are written, such as `Deno.stdout`. */
export interface Sink {
  /** Writes bytes, and resolves with their number. It stays pending while a pipe is full. */
  write(p: Uint8Array): Promise<number>;
}

/**
 * Lines, and a status below them. One write is pending at a time. Deno runs it in a thread of its own, which alone waits
 * when the output is not read. Lines without room and lines whose write failed are dropped and counted.
 */
export class Output {
  readonly #sink: Sink;
  #waiting = "";
  /** Lines in `#waiting`, including those that a report in it counts. */
  #lines = 0;
  /** Lines that were dropped and are not reported yet. */
  #dropped = 0;
  #status = "";
  /** The status on the screen. */
  #shown = "";
  #writing: Promise<void> | undefined;
  #failure: unknown;

  constructor(sink: Sink) {
    this.#sink = sink;
  }

  /** Why the first write that failed has failed; `undefined` if none has. */
  get failure(): unknown {
    return this.#failure;
  }

  /** Queues a line. */
  line(text: string): void {
    if (this.#waiting.length + text.length > MAX_WAITING) {
      this.#dropped++;
    } else {
      this.#reportDropped();
      this.#waiting += `${text}\n`;
      this.#lines++;
    }
    this.#writing ??= this.#run();
  }

  /** Replaces the status; an empty one is cleared. */
  status(text: string): void {
    this.#status = text;
    this.#writing ??= this.#run();
  }

  /** Resolves when all lines are written, or have failed. */
  async flush(): Promise<void> {
    await this.#writing;
  }

  /** Queues a line with the number of dropped lines, where they are missing. */
  #reportDropped(): void {
    if (this.#dropped === 0) return;
    const lines = this.#dropped === 1 ? "1 line was" : `${this.#dropped} lines were`;
    this.#waiting += `${lines} dropped: the output was not read\n`;
    this.#lines += this.#dropped;
    this.#dropped = 0;
  }

  async #run(): Promise<void> {
    // The lines of one step share a write.
    await Promise.resolve();
    for (;;) {
      this.#reportDropped();
      if (this.#waiting === "" && this.#status === this.#shown) break;
      const text = `${this.#shown === "" ? "" : "\r\x1b[K"}${this.#waiting}${this.#status}`;
      const lines = this.#lines;
      this.#shown = this.#status;
      this.#waiting = "";
      this.#lines = 0;
      try {
        await this.#write(encoder.encode(text));
      } catch (error) {
        // The terminal is gone, or the reader has exited, as `tee` does after the same Ctrl-C. A later line tries again.
        this.#failure ??= error;
        this.#dropped += lines;
        this.#shown = "";
        break;
      }
    }
    this.#writing = undefined;
  }

  async #write(p: Uint8Array): Promise<void> {
    for (let at = 0; at < p.length;) at += await this.#sink.write(p.subarray(at));
  }
}
