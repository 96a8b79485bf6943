/**
 * Shows a log, and on a terminal a status line below it.
 *
 * @module
 */

import type { TunnelStats } from "./options.ts";
import { Output, type Sink } from "./output.ts";
import { setDeadline } from "./wait.ts";

// Milliseconds to wait for the lines before the last error, and for the last lines. Larger: tolerates a slower reader;
// smaller: earlier exit when the output is not read.
const FLUSH_TIMEOUT = 1000;

/** An output of the process. */
export interface Terminal extends Sink {
  /** Whether it is a terminal. */
  isTerminal(): boolean;
}

/** A log, and on a terminal a status line below it. */
export class Display {
  readonly #out: Output;
  readonly #errors: Output;
  readonly #isTerminal: boolean;
  #timer: ReturnType<typeof setInterval> | undefined;

  constructor(out: Terminal, errors: Terminal) {
    this.#isTerminal = out.isTerminal();
    this.#out = new Output(out);
    // One order for the lines of a terminal, or its status would be between them.
    const isShared = out === errors || (this.#isTerminal && errors.isTerminal());
    this.#errors = isShared ? this.#out : new Output(errors);
  }

  line(text: string): void {
    this.#out.line(text);
  }

  /** Why lines could not be written; `undefined` if all were. */
  get failure(): unknown {
    return this.#out.failure;
  }

  /** Shows a line on stderr. */
  error(text: string): void {
    this.#errors.line(text);
  }

  live(stats: () => TunnelStats): void {
    if (!this.#isTerminal) return;
    let before = { ...stats(), time: performance.now() };
    this.#timer = setInterval(() => {
      const now = { ...stats(), time: performance.now() };
      const rate = (bytes: number) => `${(bytes / 1000 / (now.time - before.time)).toFixed(1)} MB/s`;
      const [up, down] = [rate(now.sent - before.sent), rate(now.received - before.received)];
      before = now;
      this.#out.status(`${now.open} open, ${now.streams} total; sending ${up}, receiving ${down}`);
    }, 500);
  }

  /** Clears the status line, and waits for the last lines. */
  async end(): Promise<void> {
    clearInterval(this.#timer);
    this.#out.status("");
    await this.flush();
  }

  /** Waits until the lines before are written, but not long. */
  async flush(): Promise<void> {
    const { promise: late, resolve } = Promise.withResolvers<void>();
    const clear = setDeadline(resolve, FLUSH_TIMEOUT);
    await Promise.race([late, Promise.all([this.#out.flush(), this.#errors.flush()])]);
    clear();
  }
}
