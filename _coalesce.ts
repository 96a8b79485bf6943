/**
 * When encoded frames leave: together, with those of the same pass of the event loop, however callers write their loops.
 *
 * @module
 */

import type { WriteBuffer } from "./_write_buffer.ts";
import { clock, type Pass } from "./_clock.ts";

/** Frames of one pass of the event loop are coalesced up to this many bytes. Larger: fewer writes; smaller: the peer starts earlier. */
export const COALESCE_BYTES = 64 * 1024;

// Frames coalesced for this long leave before the pass is over, so that the peer starts on them while more are encoded.
// Larger: the two ends work in turns instead of side by side; smaller: more writes. The clock is read once in
// FRAMES_PER_LOOK frames, since reading it costs a tenth of encoding a small one.
const MAX_COALESCING_MS = 0.1;
const FRAMES_PER_LOOK = 16;

/** Decides when to flush. */
export class Coalescer {
  readonly #flush: () => void;
  #pass: Pass | undefined;
  #isQueued = false;
  #isHeld = false;
  #awaitsAnswer = false;
  // When the first frame of those that are coalesced was encoded, by the clock.
  #startedAt = 0;

  /**
   * @param flush Writes what is encoded, if anything is.
   */
  constructor(flush: () => void) {
    this.#flush = flush;
  }

  /** Plans the flush of a buffer in which a frame was just encoded. */
  schedule(buffer: WriteBuffer): void {
    if (this.#isQueued) return;
    if (buffer.length >= COALESCE_BYTES || this.#isOverdue(buffer.frames)) this.#queue();
    else if (!this.#isHeld) this.#pass ??= clock.pass(this.#passed);
  }

  /** The same for a frame of data, which may be an answer. */
  scheduleData(buffer: WriteBuffer, isWriting: boolean): void {
    const isAnswer = this.#awaitsAnswer;
    this.#awaitsAnswer = false;
    if (isWriting) return;
    if (isAnswer && !this.#isQueued) this.#queue();
    else this.schedule(buffer);
  }

  /** Coalesces frames until `release` or `awaitAnswer`: the session knows better when its readers have answered. */
  hold(): void {
    this.#isHeld = true;
  }

  /** Ends what `hold` began. The next data leaves at once: it answers the one read that was served. */
  awaitAnswer(): void {
    this.#isHeld = false;
    this.#awaitsAnswer = true;
  }

  /** Ends what `hold` began, and flushes. */
  release(): void {
    this.#isHeld = false;
    if (!this.#isQueued) this.#run();
  }

  /** Plans nothing any more. */
  end(): void {
    clock.clearPass(this.#pass);
  }

  #queue(): void {
    this.#isQueued = true;
    queueMicrotask(this.#run);
  }

  #isOverdue(frames: number): boolean {
    if (frames === 1) this.#startedAt = clock.now();
    return frames % FRAMES_PER_LOOK === 0 && clock.now() - this.#startedAt >= MAX_COALESCING_MS;
  }

  readonly #run = (): void => {
    this.#isQueued = false;
    this.#flush();
  };

  readonly #passed = (): void => {
    this.#pass = undefined;
    this.#run();
  };
}
