/**
 * A queue that makes a stream of pushed chunks readable.
 *
 * @module
 */

// Above this many unread bytes the source is paused.
const HIGH_WATER_MARK = 256 * 1024;

/** The received chunks of a stream, for one reader. */
export class Inbox {
  readonly #chunks: Uint8Array[] = [];
  readonly #pause: () => void;
  readonly #resume: () => void;
  /** Bytes of the first chunk that are read. */
  #at = 0;
  #size = 0;
  #paused = false;
  #over: { error?: unknown } | undefined;
  #wake: (() => void) | undefined;

  constructor(pause: () => void, resume: () => void) {
    this.#pause = pause;
    this.#resume = resume;
  }

  /** Appends a chunk, which must not be modified afterwards. */
  push(chunk: Uint8Array): void {
    this.#chunks.push(chunk);
    this.#size += chunk.length;
    if (this.#size > HIGH_WATER_MARK && !this.#paused) {
      this.#paused = true;
      this.#pause();
    }
    this.#wake?.();
  }

  /** Ends the stream, with an error if one is passed. */
  end(over: { error?: unknown } = {}): void {
    this.#over ??= over;
    this.#wake?.();
  }

  /** Implements `Pipe.read`. */
  async read(p: Uint8Array): Promise<number | null> {
    while (this.#size === 0) {
      if (this.#over !== undefined) {
        if ("error" in this.#over) throw this.#over.error;
        return null;
      }
      await new Promise<void>((resolve) => this.#wake = resolve);
      this.#wake = undefined;
    }
    let count = 0;
    while (count < p.length && this.#chunks.length > 0) {
      const chunk = this.#chunks[0]!;
      const part = chunk.subarray(this.#at, this.#at + p.length - count);
      p.set(part, count);
      count += part.length;
      this.#at += part.length;
      if (this.#at === chunk.length) {
        this.#chunks.shift();
        this.#at = 0;
      }
    }
    this.#size -= count;
    if (this.#size === 0 && this.#paused) {
      this.#paused = false;
      this.#resume();
    }
    return count;
  }
}
