/**
 * What a stream that pushes its chunks needs to be read.
 *
 * @module
 */

// Beyond so many bytes unread the source is told to pause.
const ENOUGH = 256 * 1024;

/** Where a stream puts what arrives, for one reader. */
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

  /** Takes a chunk, which stays as it is. */
  push(chunk: Uint8Array): void {
    this.#chunks.push(chunk);
    this.#size += chunk.length;
    if (this.#size > ENOUGH && !this.#paused) {
      this.#paused = true;
      this.#pause();
    }
    this.#wake?.();
  }

  /** Nothing comes any more, or nothing good. */
  end(over: { error?: unknown } = {}): void {
    this.#over ??= over;
    this.#wake?.();
  }

  /** As `Pipe.read`. */
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
