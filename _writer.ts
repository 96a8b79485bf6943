/**
 * The write loop of a session, with two buffers: one that is being filled, and one that is being written.
 *
 * During a transport write, frames are encoded into the other buffer if they fit. A frame that does not fit waits in a
 * channel of capacity 0 until the buffers are swapped. So each payload is copied once, frames are sent first in, first
 * out, and memory is limited to two buffers for any number of streams.
 *
 * @module
 */

import { COALESCE_BYTES, Coalescer } from "./_coalesce.ts";
import { DOUBLE } from "./_double.ts";
import { MIN_BUFFER_BYTES, WriteBuffer } from "./_write_buffer.ts";
import { bounded, ChannelClosedError, type Receiver, type Sender } from "./channel.ts";
import { clock, excuse } from "./_clock.ts";
import { type Command, EMPTY_BYTES, FIN, HEADER_LENGTH, MAX_PAYLOAD_LENGTH, NOP, type Version } from "./frame.ts";
import { complement } from "./_reset.ts";
import type { FrameTrace } from "./_trace.ts";
import { checkCount, type Link, MESSAGE_BYTES, type PushedConnection } from "./transport.ts";
import { TimeSlice } from "./_timeslice.ts";

/**
 * Length of the filling buffer from which on data waits. The last frame of the default size ends at about 256 KiB.
 * Larger: fewer writes; smaller: less memory and less delay for other streams.
 */
export const HIGH_WATER_MARK = 224 * 1024;
/** Length from which on control frames wait: at least 16 KiB after the last data. */
export const CONTROL_HIGH_WATER_MARK: number = HIGH_WATER_MARK + HEADER_LENGTH + MAX_PAYLOAD_LENGTH + 16 * 1024;

// Shared, because one error for each of thousands of waiting frames takes as much memory as their streams.
const ENDED = new ChannelClosedError("The frame was not sent: the session has ended");

/** A frame that waits for room. */
export class PendingFrame {
  /** The command. */
  readonly command: Command;
  /** Id of the stream. */
  readonly id: number;
  /** The array that contains the payload. */
  readonly bytes: Uint8Array;
  /** Position of the first byte of the payload. */
  readonly start: number;
  /** Position after the last byte of the payload. */
  readonly end: number;
  /** Whether the frame is encoded. */
  isEncoded = false;

  /** Creates a frame whose payload is `bytes` from `start` to before `end`. */
  constructor(command: Command, id: number, bytes: Uint8Array, start: number, end: number) {
    this.command = command;
    this.id = id;
    this.bytes = bytes;
    this.start = start;
    this.end = end;
  }
}

/** A stream whose control frames may have to wait for room. */
export interface ControlSource {
  /** Id of the stream. */
  readonly id: number;
  /** Whether the stream is in the writer's queue. Set by the writer only. */
  isQueued: boolean;
  /** Whether a UPD is due. Reset by the writer. */
  isUpdateDue: boolean;
  /** Whether a FIN is due. Reset by the writer. */
  isFinDue: boolean;
  /** Whether the signal that aborts the stream is due, and a FIN if none was encoded. Reset by the writer. */
  isResetDue: boolean;
  /** Whether the FIN is encoded. */
  readonly isFinEncoded: boolean;
  /** Bytes consumed for the UPD, modulo 2^32. */
  readonly consumed: number;
  /** Moves the limit of the window, and returns the window for the UPD. */
  advertise(): number;
  /** Called when the FIN is encoded. */
  finEncoded(): void;
  /** Called when the signal that aborts the stream is encoded, and the FIN. */
  resetEncoded(): void;
}

/** What the writer needs from its session. */
export interface WriterHost {
  /** Called when refusals that waited for room were encoded. */
  refusalsEncoded(): void;
  /** Called when all encoded frames were written. */
  writerIdle(): void;
  /** Called when a write of the transport failed. */
  writerFailed(error: unknown): void;
}

/** Encodes frames and writes them to the transport. */
export class FrameWriter {
  /** The time slice of the write loop. */
  readonly slice = new TimeSlice();
  /** The version of every frame. Set before the first frame. */
  version: Version;
  readonly #link: Link;
  readonly #host: WriterHost;
  readonly #trace: FrameTrace | undefined;
  readonly #coalescer: Coalescer;
  // The channel of frames that wait for room. A stream clones the sender, and closes its clone to withdraw its frames.
  readonly #sender: Sender<PendingFrame>;
  readonly #waiting: Receiver<PendingFrame>;
  // Streams whose control frames found no room, and ids of refused streams whose FINs found none.
  readonly #queued = new Set<ControlSource>();
  #refused: number[] = [];
  #filling: WriteBuffer;
  #leaving: WriteBuffer;
  #running: Promise<void> | undefined;
  #isWriting = false;
  #isBusy = false;
  #ended = false;
  #frames = 0;
  #bytes = DOUBLE;
  #begunAt = clock.now();
  #progressAt = 0;

  /**
   * @param link The transport.
   * @param version Version of the frames.
   * @param host The session.
   * @param trace Reports what is encoded, where that is wanted.
   */
  constructor(link: Link, version: Version, host: WriterHost, trace?: FrameTrace) {
    this.#bytes = 0;
    this.#link = link;
    this.version = version;
    this.#host = host;
    this.#trace = trace;
    this.#filling = new WriteBuffer(link.headroom);
    this.#leaving = new WriteBuffer(link.headroom);
    this.#coalescer = new Coalescer(() => this.#flush());
    const { sender, receiver } = bounded<PendingFrame>(0);
    this.#sender = sender;
    this.#waiting = receiver;
  }

  /** Total number of encoded frames. */
  get frames(): number {
    return this.#frames;
  }

  /** Total bytes written to the transport. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Number of encoded bytes that are not written yet. */
  get unsent(): number {
    return this.#filling.length + this.#leaving.length;
  }

  /** Whether these include data of streams. */
  get hasUnsentData(): boolean {
    return this.#filling.dataLength + this.#leaving.dataLength > 0;
  }

  /** Number of refusals that wait for room. */
  get waitingRefusals(): number {
    return this.#refused.length;
  }

  /** When the last transport write began, by the clock. */
  get begunAt(): number {
    return this.#begunAt;
  }

  /** When the pending transport write last made progress, by the clock; `undefined` without a pending write. */
  get stalledSince(): number | undefined {
    return this.#isWriting ? this.#progressAt : undefined;
  }

  /** Excludes `late` milliseconds from the time without progress, because the process was blocked. */
  excuse(late: number, now: number): void {
    this.#progressAt = excuse(this.#progressAt, late, now);
  }

  /** Encodes a frame if there is room. Returns whether it did. */
  tryFrame(command: Command, id: number, bytes: Uint8Array, start: number, end: number): boolean {
    // While there is room no frame waits for it, so none is overtaken here.
    if (this.#filling.used >= HIGH_WATER_MARK || this.#ended) return false;
    this.#encode(command, id, bytes, start, end);
    const isWriting = this.#running !== undefined;
    if (end > start) this.#coalescer.scheduleData(this.#filling, isWriting);
    else if (!isWriting) this.#coalescer.schedule(this.#filling);
    return true;
  }

  /** Encodes a frame without payload, also in the room reserved for control frames. Returns `false` without room. */
  tryControl(command: Command, id: number): boolean {
    if (this.#filling.used >= CONTROL_HIGH_WATER_MARK || this.#ended) return false;
    this.#encode(command, id, EMPTY_BYTES, 0, 0);
    this.#schedule();
    return true;
  }

  /** Encodes a UPD, also in the room reserved for control frames. Returns `false` without room. */
  tryUpdate(id: number, consumed: number, window: number): boolean {
    if (this.#filling.used >= CONTROL_HIGH_WATER_MARK || this.#ended) return false;
    this.#filling.addUpdate(id, consumed, window);
    this.#frames++;
    this.#trace?.sentUpdate(id, consumed, window);
    this.#schedule();
    return true;
  }

  /** Encodes the due control frames of a stream, now or when there is room. */
  queueControl(source: ControlSource): void {
    if (source.isQueued || this.#ended || this.#encodeControl(source)) return;
    source.isQueued = true;
    this.#queued.add(source);
  }

  /** Removes a stream that has left the session from the queue. No control frame of it is due. */
  dequeueControl(source: ControlSource): void {
    if (!source.isQueued) return;
    source.isQueued = false;
    this.#queued.delete(source);
  }

  /** Encodes the FIN that refuses a stream, now or when there is room. */
  refuse(id: number): void {
    if (this.#refused.length > 0 || !this.tryControl(FIN, id)) this.#refused.push(id);
  }

  /** Returns a handle for waiting frames of one stream. Closing it withdraws the frames that still wait. */
  openSender(): Sender<PendingFrame> {
    return this.#sender.clone();
  }

  /**
   * Waits until a frame is encoded. Thousands of writes may wait, so that this is not an async function.
   *
   * @param frame The frame, for which there was no room.
   * @param sender The stream's handle.
   * @param signal Aborts the wait; then the frame is not encoded.
   * @returns Resolves when the frame was encoded or, at the end of the session or without its bytes, taken back: see its
   * `isEncoded`.
   * @throws {ChannelClosedError} The handle was closed: the frame is not encoded.
   */
  enqueue(frame: PendingFrame, sender: Sender<PendingFrame>, signal?: AbortSignal): Promise<void> {
    return sender.send(frame, signal && { signal });
  }

  /**
   * Does the same, and rejects also when the session has ended.
   *
   * @throws {ChannelClosedError} The handle was closed or the session has ended: the frame is not encoded.
   */
  async send(frame: PendingFrame, sender: Sender<PendingFrame>, signal?: AbortSignal): Promise<void> {
    await this.enqueue(frame, sender, signal);
    if (!frame.isEncoded) throw ENDED;
  }

  /**
   * Writes frames that have waited long enough. It is the last step of a call of the application, because the transport
   * may call the session in its write.
   */
  flushOverdue(): void {
    this.#coalescer.flushOverdue();
  }

  /** Suspends flushes until `release` or `awaitAnswer`, while readers answer what they were served. */
  hold(): void {
    this.#coalescer.hold();
  }

  /** Ends `hold`. The next data leaves at once, because it answers the only read that was served. */
  awaitAnswer(): void {
    this.#coalescer.awaitAnswer();
    if (this.#filling.length > 0) this.#schedule();
  }

  /** Ends `hold` and flushes. */
  release(): void {
    this.#coalescer.release();
  }

  /** Resolves when all encoded and all waiting frames are written, or the session has ended. */
  async flushed(): Promise<void> {
    while (!this.#ended && (this.#running !== undefined || this.#filling.length > 0)) {
      this.#flush();
      await this.#running;
    }
  }

  /** Stops encoding and writing. Waiting frames are withdrawn by `dismiss`. */
  end(): void {
    this.#ended = true;
    this.#coalescer.end();
    this.#filling.free();
    this.#queued.clear();
    this.#refused = [];
    // A pending transport write still needs its memory.
    if (!this.#isWriting) this.#leaving.free();
  }

  /** Rejects `send` for up to `count` waiting frames, after `end`. Returns whether more may be waiting. */
  dismiss(count: number): boolean {
    for (let n = 0; n < count; n++) {
      if (this.#waiting.tryReceive().state !== "ok") {
        this.#waiting.close();
        this.#sender.close();
        return false;
      }
    }
    return true;
  }

  /** Whether the buffers are larger than an idle session needs. */
  get isLarge(): boolean {
    return this.#filling.capacity > MIN_BUFFER_BYTES || (!this.#isWriting && this.#leaving.capacity > 0);
  }

  /** Frees the memory of the buffers, if nothing is unsent. */
  trim(): void {
    if (this.unsent > 0) return;
    this.#filling.free();
    this.#leaving.free();
  }

  /** Encodes the signal that aborts a stream, and its FIN, also in the reserved room. Returns `false` without room. */
  #tryReset(source: ControlSource): boolean {
    if (this.#filling.length >= CONTROL_HIGH_WATER_MARK || this.#ended) return false;
    const { id, isFinDue, isFinEncoded } = source;
    // A FIN that was due before the abort ends complete data, so it comes first.
    if (isFinDue) this.#encode(FIN, id, EMPTY_BYTES, 0, 0);
    this.#encode(NOP, id, EMPTY_BYTES, 0, 0);
    this.#encode(NOP, complement(id), EMPTY_BYTES, 0, 0);
    if (!isFinDue && !isFinEncoded) this.#encode(FIN, id, EMPTY_BYTES, 0, 0);
    this.#schedule();
    return true;
  }

  #encode(command: Command, id: number, bytes: Uint8Array, start: number, end: number): void {
    this.#filling.addFrame(this.version, command, id, bytes, start, end);
    this.#frames++;
    this.#trace?.sent(command, id, end - start);
  }

  #schedule(): void {
    if (this.#running === undefined) this.#coalescer.schedule(this.#filling);
  }

  #flush(): void {
    if (this.#filling.length === 0 || this.#ended || this.#isWriting) return;
    const { pushed } = this.#link;
    if (pushed === undefined) this.#running ??= this.#run();
    else if (this.#running === undefined) this.#writeNow(pushed);
  }

  // To a transport that copies what it writes. 64 KiB or more leave in messages of full size, and the rest with the next
  // frames, or with the pass of the event loop.
  #writeNow(pushed: PushedConnection): void {
    const now = this.#begunAt = this.#progressAt = clock.now();
    // First, because the transport may call the session: its frames then go into the other buffer.
    this.#swap();
    const leaving = this.#leaving;
    const { bytes } = leaving;
    const { length } = bytes;
    const wanted = length < COALESCE_BYTES ? length : length - length % MESSAGE_BYTES;
    this.#isWriting = true;
    let count = 0;
    try {
      count = pushed.tryWrite(wanted < length ? bytes.subarray(0, wanted) : bytes);
    } catch (error) {
      if (!this.#ended) this.#host.writerFailed(error);
    }
    this.#isWriting = false;
    if (this.#ended) return leaving.free();
    this.#bytes += count;
    leaving.drop(count);
    if (this.#filling.length > 0) {
      leaving.append(this.#filling);
      this.#filling.clear();
    }
    this.#swap();
    this.#refill();
    const isLong = length >= COALESCE_BYTES && this.slice.hasLasted(now);
    if (count < wanted || isLong) this.#running = this.#waitForRoom(pushed, isLong);
    else if (this.#filling.length > 0) this.#schedule();
    else this.#host.writerIdle();
  }

  /** Waits until the transport writes again, after a yield if the loop has not blocked. */
  async #waitForRoom(pushed: PushedConnection, isLong: boolean): Promise<void> {
    this.#isWriting = true;
    try {
      if (isLong) await this.slice.yieldToEventLoop();
      await pushed.drained();
    } catch (error) {
      if (!this.#ended) this.#host.writerFailed(error);
    }
    this.#isWriting = false;
    this.#running = undefined;
    if (this.#ended) this.#leaving.free();
    else this.#flush();
  }

  async #run(): Promise<void> {
    const { slice } = this;
    let writing: Promise<number> | undefined;
    // `undefined`: a write has taken time since. Reading the clock takes a hundredth of a round trip.
    let now: number | undefined = clock.now();
    if (!this.#isBusy) slice.start(now);
    try {
      do {
        // Before the write, because the transport may call the session in it: frames then go into the other buffer.
        this.#swap();
        const { bytes } = this.#leaving;
        const { length } = bytes;
        this.#isWriting = true;
        this.#begunAt = this.#progressAt = now ?? clock.now();
        now = undefined;
        // A connection without types may return a number.
        writing = Promise.resolve(length < COALESCE_BYTES ? this.#link.write(bytes) : this.#writeLarge(bytes));
        this.#refill();
        if (length >= COALESCE_BYTES) slice.observe(writing);
        let count = checkCount(await writing, length);
        if (count < length) count = await this.#writeRest(bytes, count);
        this.#isWriting = false;
        this.#leaving.clear();
        this.#bytes += count;
        if (this.#ended) break;
        if (length >= COALESCE_BYTES) {
          now = clock.now();
          if (slice.isExpired(now)) now = await slice.yieldToEventLoop();
        }
      } while (this.#filling.length >= COALESCE_BYTES);
    } catch (error) {
      // If something else failed, the transport write is still pending, and may reject, too.
      writing?.catch(() => {});
      if (!this.#ended) this.#host.writerFailed(error);
    }
    this.#isWriting = false;
    this.#running = undefined;
    if (this.#ended) return this.#leaving.free();
    // Reuses the memory, so that a session with little traffic needs only one buffer.
    if (this.#filling.capacity === 0) this.#swap();
    this.#isBusy = this.#filling.length > 0;
    if (this.#isBusy) this.#schedule();
    else this.#host.writerIdle();
  }

  /** Writes the leaving buffer, and hands its memory over if the transport wants to keep it. */
  #writeLarge(bytes: Uint8Array): Promise<number> {
    const leaving = this.#leaving;
    const kept = this.#link.keep?.(leaving.memory, leaving.used);
    if (kept === undefined) return this.#link.write(bytes);
    leaving.exchange(kept.replacement);
    return kept.writing;
  }

  /** Writes the rest after a partial write, from `at` on. Never two writes at once, because they would interleave. */
  async #writeRest(bytes: Uint8Array, at: number): Promise<number> {
    for (let count = at; !this.#ended; at += count) {
      if (count > 0) this.#progressAt = clock.now();
      // A transport that keeps returning 0 synchronously would block the event loop.
      else await this.slice.sleep();
      if (this.#ended || at === bytes.length) break;
      count = checkCount(await this.#link.write(bytes.subarray(at)), bytes.length - at);
    }
    return at;
  }

  #swap(): void {
    const filling = this.#filling;
    this.#filling = this.#leaving;
    this.#leaving = filling;
  }

  // Control frames first, because they unblock the peer.
  #refill(): void {
    this.#encodeQueued();
    while (this.#filling.used < HIGH_WATER_MARK) {
      const next = this.#waiting.tryReceive();
      if (next.state !== "ok") return;
      const frame = next.value;
      // The application has transferred or resized the array of its write: only that write may fail.
      if (frame.end > frame.bytes.length) continue;
      this.#encode(frame.command, frame.id, frame.bytes, frame.start, frame.end);
      frame.isEncoded = true;
    }
  }

  #encodeQueued(): void {
    if (this.#queued.size > 0) {
      const queued = Array.from(this.#queued);
      this.#queued.clear();
      for (const source of queued) {
        source.isQueued = false;
        this.queueControl(source);
      }
    }
    let sent = 0;
    while (sent < this.#refused.length && this.tryControl(FIN, this.#refused[sent]!)) sent++;
    if (sent > 0) {
      this.#refused.splice(0, sent);
      this.#host.refusalsEncoded();
    }
  }

  #encodeControl(source: ControlSource): boolean {
    if (source.isUpdateDue) {
      const { consumed } = source;
      if (!this.tryUpdate(source.id, consumed, source.advertise())) return false;
      source.isUpdateDue = false;
    }
    if (source.isResetDue) {
      if (!this.#tryReset(source)) return false;
      source.isResetDue = source.isFinDue = false;
      source.resetEncoded();
    } else if (source.isFinDue) {
      if (!this.tryControl(FIN, source.id)) return false;
      source.isFinDue = false;
      source.finEncoded();
    }
    return true;
  }
}
