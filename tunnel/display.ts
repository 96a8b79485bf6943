/**
 * Shows a log, and on a terminal a status line below it.
 *
 * @module
 */

import { encoder } from "./bytes.ts";
import type { TunnelStats } from "./options.ts";

/** A log, and on a terminal a status line below it. */
export class Display {
  readonly #out: typeof Deno.stdout;
  #live = "";
  #timer: ReturnType<typeof setInterval> | undefined;

  constructor(out: typeof Deno.stdout) {
    this.#out = out;
  }

  line(text: string, out = this.#out): void {
    const clear = this.#live === "" ? "" : "\r\x1b[K";
    try {
      out.writeSync(encoder.encode(`${clear}${text}\n`));
      this.#out.writeSync(encoder.encode(this.#live));
    } catch {
      // The reader has exited, as `tee` does after the same Ctrl-C.
    }
  }

  live(stats: () => TunnelStats): void {
    if (!this.#out.isTerminal()) return;
    let before = { ...stats(), time: performance.now() };
    this.#timer = setInterval(() => {
      const now = { ...stats(), time: performance.now() };
      const rate = (bytes: number) => `${(bytes / 1000 / (now.time - before.time)).toFixed(1)} MB/s`;
      const [up, down] = [rate(now.sent - before.sent), rate(now.received - before.received)];
      before = now;
      this.#live = `${now.open} open, ${now.streams} total; sending ${up}, receiving ${down}`;
      this.#out.writeSync(encoder.encode(`\r\x1b[K${this.#live}`));
    }, 500);
  }

  end(): void {
    clearInterval(this.#timer);
    if (this.#live !== "") this.#out.writeSync(encoder.encode("\r\x1b[K"));
    this.#live = "";
  }
}
