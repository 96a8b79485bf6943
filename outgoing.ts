/**
 * The way out of a session: one buffer that fills, one that leaves, and a rendezvous behind them.
 *
 * While one write of the transport is under way, frames gather in the next buffer. A frame that fits is encoded into it
 * at once; one that does not waits in a channel of capacity 0 until the buffers change. So no payload is copied twice,
 * order is first come first served, and what is held is two buffers, however many streams write.
 *
 * @module
 */

import { bounded, type Receiver, type Sender } from "./channel.ts";
import { clock, excuse, type Pass } from "./clock.ts";
import {
  type Command,
  encodeHeader,
  encodeUpdate,
  type Frame,
  HEADER_LENGTH,
  MAX_PAYLOAD_LENGTH,
  NOTHING,
  UPDATE_LENGTH,
  type Version,
} from "./frame.ts";
import { type Link, release } from "./transport.ts";
import { Turn } from "./turn.ts";

// What a session that carries little costs; a fuller buffer doubles.
const SMALLEST_BUFFER = 16 * 1024;
// From here on frames wait: large enough that a socket write costs little beside its bytes, and such that the last frame
// let in, of the default size, ends at about 256 KiB.
const FULL = 224 * 1024;
// Control frames are let in up to here: wherever data ended, 16 KiB are left for them.
const FULL_FOR_CONTROL = FULL + HEADER_LENGTH + MAX_PAYLOAD_LENGTH + 16 * 1024;
// Frames of one pass of the event loop are coalesced, up to this many bytes. Larger: fewer writes of the transport; smaller:
// the peer begins earlier to read.
const COALESCED = 64 * 1024;
// Frames coalesced for this many milliseconds leave before the pass is over, so that the peer starts on them while more are
// encoded. It is ten times the cost of a socket write. Larger: the two ends work in turns instead of side by side; smaller:
// more writes. The clock is read every FRAMES_PER_LOOK frames, since reading it costs a tenth of encoding a small frame.
const LONGEST_COALESCING = 0.1;
const FRAMES_PER_LOOK = 16;

/** What the way out needs from its session. */
export interface OutgoingHost {
  /** There is room: encode the control frames that are owed. */
  writeOwed(): void;
  /** All has been written, for now. */
  idle(): void;
  /** The transport failed. */
  failed(error: unknown): void;
}

/** The filling buffer, the channel of frames that wait for room in it, and the loop that writes to the transport. */
export class Outgoing {
  readonly #link: Link;
  readonly #host: OutgoingHost;
  /** The turn of its loop. */
  readonly turn = new Turn();
  readonly #waiting: Receiver<Frame>;
  /** Frames that wait for room; each stream that has some clones this handle, and closes it to take them back. */
  readonly sender: Sender<Frame>;
  /** Of every frame; set before the first one. */
  version: Version;
  #filling: Uint8Array = NOTHING;
  #used = 0;
  // Bytes of data among those, and among what leaves.
  #data = 0;
  #leavingData = 0;
  #spare: Uint8Array | undefined;
  #leaving = 0;
  // The pass of the event loop that is awaited with frames to send, and whether a flush is queued before that.
  #coalescing: Pass | undefined;
  #isFlushing = false;
  // Frames given to the transport, and when, by the clock, the first one after them was encoded.
  #framesSent = 0;
  #coalescedFrom = 0;
  #isHeld = false;
  #awaitsAnswer = false;
  #running: Promise<void> | undefined;
  #isBusy = false;
  #ended = false;
  #frames = 0;
  #bytes = 0;
  #begunAt = 0;
  #progressAt = 0;

  /**
   * @param link Where the bytes go.
   * @param version Version of the session's frames.
   * @param host Who is asked for control frames and told of failure.
   */
  constructor(link: Link, version: Version, host: OutgoingHost) {
    this.#link = link;
    this.version = version;
    this.#host = host;
    const { sender, receiver } = bounded<Frame>(0);
    this.sender = sender;
    this.#waiting = receiver;
    this.#begunAt = clock.now();
  }

  /** Frames encoded so far. */
  get frames(): number {
    return this.#frames;
  }

  /** Bytes the transport took so far. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Bytes encoded that the transport has not taken. */
  get unsent(): number {
    return this.#used + this.#leaving;
  }

  /** Whether data of streams is among that. */
  get hasUnsentData(): boolean {
    return this.#data + this.#leavingData > 0;
  }

  /** When, by the clock, the last transport write began. */
  get begunAt(): number {
    return this.#begunAt;
  }

  /** Since when, by the clock, the transport write under way has made no progress; `undefined` when none is. */
  get stalledSince(): number | undefined {
    return this.#leaving > 0 ? this.#progressAt : undefined;
  }

  /** Moves the start of the time without progress, as the function of the same name does. */
  excuse(late: number, now: number): void {
    this.#progressAt = excuse(this.#progressAt, late, now);
  }

  /** Encodes a frame if there is room, and says whether there was. */
  tryFrame(command: Command, id: number, bytes: Uint8Array, start: number, end: number): boolean {
    // While there is room nobody waits for it, so nobody is overtaken here.
    if (this.#used >= FULL || this.#ended) return false;
    this.#encode(command, id, bytes, start, end);
    if (this.#awaitsAnswer && end > start) this.#answer();
    else this.#schedule();
    return true;
  }

  /** Encodes a frame without payload that nobody waits for, in the room kept for such, and says whether there was any. */
  tryControl(command: Command, id: number): boolean {
    if (this.#used >= FULL_FOR_CONTROL || this.#ended) return false;
    this.#encode(command, id, NOTHING, 0, 0);
    this.#schedule();
    return true;
  }

  /** The same for a UPD. */
  tryUpdate(id: number, consumed: number, window: number): boolean {
    if (this.#used >= FULL_FOR_CONTROL || this.#ended) return false;
    this.#reserve(HEADER_LENGTH + UPDATE_LENGTH);
    this.#used = encodeUpdate(this.#filling, this.#used, id, consumed, window);
    this.#frames++;
    this.#schedule();
    return true;
  }

  /** Coalesces frames until `release`: the session knows better when its readers have answered. */
  hold(): void {
    this.#isHeld = true;
  }

  /** Ends what `hold` began. The next data leaves at once: it answers the one read that was served. */
  awaitAnswer(): void {
    this.#isHeld = false;
    this.#awaitsAnswer = true;
    if (this.#used > 0) this.#schedule();
  }

  /** Sends what was coalesced since `hold`. */
  release(): void {
    this.#isHeld = false;
    if (!this.#isFlushing) this.#flush();
  }

  /** Settles when all that was encoded, and every frame that waited, has been taken by the transport or the end came. */
  async flushed(): Promise<void> {
    while (!this.#ended && (this.#running !== undefined || this.#used > 0)) {
      this.#flush();
      await this.#running;
    }
  }

  /** Ends it: nothing more is taken or written. */
  end(): void {
    this.#ended = true;
    clock.clearPass(this.#coalescing);
    this.#free();
    this.#used = 0;
  }

  /** After the end: so many frames wait no more, though they were not taken; says whether there may be others. */
  dismiss(count: number): boolean {
    // Each could be rejected, but the session's end is the error to be told of.
    for (let n = 0; n < count; n++) {
      if (this.#waiting.tryReceive().state !== "ok") {
        this.#waiting.close();
        this.sender.close();
        return false;
      }
    }
    return true;
  }

  /** Whether buffers larger than an idle session needs are held. */
  get isLarge(): boolean {
    return this.#filling.length > SMALLEST_BUFFER || this.#spare !== undefined;
  }

  /** Gives back what an idle session does not need. */
  trim(): void {
    if (this.unsent === 0) this.#free();
  }

  #free(): void {
    release(this.#filling);
    this.#filling = NOTHING;
    if (this.#spare !== undefined) release(this.#spare);
    this.#spare = undefined;
  }

  #encode(command: Command, id: number, bytes: Uint8Array, start: number, end: number): void {
    const length = end - start;
    this.#reserve(HEADER_LENGTH + length);
    const at = encodeHeader(this.#filling, this.#used, this.version, command, length, id);
    if (length > 0) this.#filling.set(start === 0 && end === bytes.length ? bytes : bytes.subarray(start, end), at);
    this.#used = at + length;
    this.#data += length;
    this.#frames++;
  }

  #reserve(length: number): void {
    const needed = this.#used + length;
    if (needed <= this.#filling.length) return;
    let size = Math.max(this.#filling.length, SMALLEST_BUFFER);
    while (size < needed) size *= 2;
    const larger = new Uint8Array(size);
    larger.set(this.#filling.subarray(0, this.#used));
    release(this.#filling);
    this.#filling = larger;
  }

  // What is encoded in one pass of the event loop leaves together, however the callers write their loops.
  #schedule(): void {
    if (this.#running !== undefined || this.#isFlushing) return;
    if (this.#used >= COALESCED || this.#isOverdue()) {
      this.#isFlushing = true;
      queueMicrotask(this.#flush);
    } else if (!this.#isHeld) {
      this.#coalescing ??= clock.pass(this.#passed);
    }
  }

  #isOverdue(): boolean {
    const count = this.#frames - this.#framesSent;
    if (count === 1) this.#coalescedFrom = clock.now();
    return count % FRAMES_PER_LOOK === 0 && clock.now() - this.#coalescedFrom >= LONGEST_COALESCING;
  }

  #answer(): void {
    this.#awaitsAnswer = false;
    if (this.#running !== undefined || this.#isFlushing) return;
    this.#isFlushing = true;
    queueMicrotask(this.#flush);
  }

  readonly #passed = (): void => {
    this.#coalescing = undefined;
    this.#flush();
  };

  readonly #flush = (): void => {
    this.#isFlushing = false;
    if (this.#used > 0 && !this.#ended) this.#running ??= this.#run();
  };

  async #run(): Promise<void> {
    const { turn } = this;
    let bytes = this.#filling;
    let writing: Promise<number> | undefined;
    if (!this.#isBusy) turn.begin(clock.now());
    try {
      do {
        bytes = this.#filling;
        const length = this.#used;
        this.#leaving = length;
        this.#leavingData = this.#data;
        this.#framesSent = this.#frames;
        this.#begunAt = this.#progressAt = clock.now();
        // Before the write, in which the transport may call back in: what is written then goes into the next buffer.
        this.#filling = this.#spare ?? NOTHING;
        this.#spare = undefined;
        this.#used = this.#data = 0;
        writing = this.#link.write(bytes.subarray(0, length));
        this.#refill();
        if (length >= COALESCED) turn.watch(writing);
        // A write may take less than it was given, and two under way at once would interleave.
        let at = 0;
        for (;;) {
          const count = await writing;
          if (!(count >= 0 && count <= length - at)) {
            throw new TypeError(`A transport's write must give 0 to ${length - at} bytes as taken, received ${count}`);
          }
          at += count;
          if (at === length) break;
          if (count > 0) this.#progressAt = clock.now();
          // One that says so at once would be asked for ever, and nothing else would run.
          else if (!this.#ended) await turn.rest();
          if (this.#ended) break;
          writing = this.#link.write(bytes.subarray(at, length));
        }
        this.#leaving = this.#leavingData = 0;
        this.#bytes += at;
        if (this.#ended) break;
        this.#spare = bytes;
        if (length >= COALESCED && turn.isLong(clock.now())) await turn.giveWay();
      } while (this.#used >= COALESCED);
    } catch (error) {
      // If something else failed the write is under way still, and may fail too.
      writing?.catch(() => {});
      this.#leaving = 0;
      if (!this.#ended) this.#host.failed(error);
    }
    this.#running = undefined;
    if (this.#ended) return release(bytes);
    if (this.#filling.length === 0 && this.#spare !== undefined) {
      this.#filling = this.#spare;
      this.#spare = undefined;
    }
    this.#isBusy = this.#used > 0;
    if (this.#isBusy) this.#schedule();
    else this.#host.idle();
  }

  // Control frames first: they unblock the peer, and what waits here has waited for its turn anyway.
  #refill(): void {
    this.#host.writeOwed();
    while (this.#used < FULL) {
      const next = this.#waiting.tryReceive();
      if (next.state !== "ok") return;
      const { command, id, bytes, start, end } = next.value;
      this.#encode(command, id, bytes, start, end);
      next.value.isTaken = true;
      next.value.taken?.();
    }
  }
}
