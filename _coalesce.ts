/**
 * Decides when encoded frames are written: the frames of one pass of the event loop leave together, whatever the number
 * of microtasks between two calls of the application.
 *
 * @module
 */

import type { WriteBuffer } from "./_write_buffer.ts";
import { clock, type Pass } from "./_clock.ts";

/** Maximum number of bytes to coalesce. Larger: fewer writes; smaller: the peer starts earlier. */
export const COALESCE_BYTES = 64 * 1024;

// Maximum time to coalesce: a write takes a tenth of it. Larger: the two ends work in turns instead of in parallel;
// smaller: more writes. See docs/tuning.md.
const MAX_COALESCING_MS = 0.06;
// The clock is read once in this many frames. Larger: later flushes; smaller: reading the clock slows down small
// frames.
const FRAMES_PER_LOOK = 8;

/** Decides when to flush. */
export class Coalescer {
  readonly #flush: () => void;
  #pass: Pass | undefined;
  #isQueued = false;
  #isHeld = false;
  #awaitsAnswer = false;
  // Whether frames have been coalesced for the maximum time.
  #isOverdue = false;
  // When the first of the coalesced frames other than UPD was encoded.
  #startedAt = 0;

  /**
   * @param flush Writes the encoded frames, if there are any.
   */
  constructor(flush: () => void) {
    this.#flush = flush;
  }

  /** Schedules the flush of a buffer, after a frame was encoded into it. */
  schedule(buffer: WriteBuffer): void {
    if (this.#isQueued) return;
    this.#isOverdue = this.#hasLasted(buffer.frames);
    if (buffer.length >= COALESCE_BYTES || this.#isOverdue) this.#queue();
    else if (!this.#isHeld) this.#pass ??= clock.pass(this.#passed);
  }

  /** Schedules the flush after a frame of data, which leaves at once if it answers a read. */
  scheduleData(buffer: WriteBuffer, isWriting: boolean): void {
    const isAnswer = this.#awaitsAnswer;
    this.#awaitsAnswer = false;
    if (isWriting) return;
    if (isAnswer && !this.#isQueued) this.#queue();
    else this.schedule(buffer);
  }

  /** Flushes now, if the last `schedule` found that frames have been coalesced for the maximum time. */
  flushOverdue(): void {
    if (this.#isOverdue) this.#run();
  }

  /** Suspends flushes until `release` or `awaitAnswer`, while readers answer what they were served. */
  hold(): void {
    this.#isHeld = true;
  }

  /** Ends `hold`. The next data leaves at once, because it answers the only read that was served. */
  awaitAnswer(): void {
    this.#isHeld = false;
    this.#awaitsAnswer = true;
  }

  /** Ends `hold` and flushes. */
  release(): void {
    this.#isHeld = false;
    if (!this.#isQueued) this.#run();
  }

  /** Cancels the scheduled flush, at the end of the session. */
  end(): void {
    clock.clearPass(this.#pass);
  }

  #queue(): void {
    this.#isQueued = true;
    queueMicrotask(this.#run);
  }

  #hasLasted(frames: number): boolean {
    if (frames === 1) this.#startedAt = clock.now();
    return frames > 0 && frames % FRAMES_PER_LOOK === 0 && clock.now() - this.#startedAt >= MAX_COALESCING_MS;
  }

  readonly #run = (): void => {
    this.#isQueued = this.#isOverdue = false;
    this.#flush();
  };

  readonly #passed = (): void => {
    this.#pass = undefined;
    this.#run();
  };
}
