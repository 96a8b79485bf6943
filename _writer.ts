/**
 * The write loop of a session: one buffer that fills, one that leaves, and a rendezvous behind them.
 *
 * While one write of the transport is under way, frames gather in the next buffer. A frame that fits is encoded into it
 * at once; one that does not waits in a channel of capacity 0 until the buffers change. So no payload is copied twice,
 * order is first come first served, and what is held is two buffers, however many streams write.
 *
 * @module
 */

import { COALESCE_BYTES, Coalescer } from "./_coalesce.ts";
import { MIN_BUFFER_BYTES, WriteBuffer } from "./_write_buffer.ts";
import { bounded, ChannelClosedError, type Receiver, type Sender } from "./channel.ts";
import { clock, excuse } from "./_clock.ts";
import { type Command, EMPTY_BYTES, FIN, HEADER_LENGTH, MAX_PAYLOAD_LENGTH, type Version } from "./frame.ts";
import type { FrameTrace } from "./_trace.ts";
import type { Link } from "./transport.ts";
import { TimeSlice } from "./_timeslice.ts";

/**
 * From this length on data waits. Large enough that a write of the transport costs little beside its bytes; the last frame
 * let in, of the default size, ends at about 256 KiB.
 */
export const HIGH_WATER_MARK = 224 * 1024;
/** Control frames find room up to this length: wherever data ended, 16 KiB are left for them. */
export const CONTROL_HIGH_WATER_MARK: number = HIGH_WATER_MARK + HEADER_LENGTH + MAX_PAYLOAD_LENGTH + 16 * 1024;

// Shared, because an error for each of thousands of waiting frames would cost as much as their streams.
const ENDED = new ChannelClosedError("The frame was not sent: the session has ended");

/** A frame that waits for room. */
export class PendingFrame {
  /** The command. */
  readonly command: Command;
  /** Id of the stream. */
  readonly id: number;
  /** Where the payload is. */
  readonly bytes: Uint8Array;
  /** Position of its first byte. */
  readonly start: number;
  /** Position after its last byte. */
  readonly end: number;
  /** Set in the step that encodes it. */
  isEncoded = false;

  /** A frame whose payload is `bytes` from `start` to before `end`. */
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
  /** Whether it waits in the writer's queue; only the writer sets it. */
  isQueued: boolean;
  /** Whether a UPD is due; the writer resets it. */
  isUpdateDue: boolean;
  /** Whether a FIN is due; the writer resets it. */
  isFinDue: boolean;
  /** What the UPD says: bytes consumed, modulo 2^32. */
  readonly consumed: number;
  /** Moves the limit of the window, and returns the window for the UPD. */
  advertise(): number;
  /** The FIN is encoded. */
  finEncoded(): void;
}

/** What the writer needs from its session. */
export interface WriterHost {
  /** Refusals that waited for room were encoded. */
  refusalsEncoded(): void;
  /** Everything was written, for now. */
  writerIdle(): void;
  /** The transport failed. */
  writerFailed(error: unknown): void;
}

/** Encodes frames and writes them to the transport. */
export class FrameWriter {
  /** The time slice of its loop. */
  readonly slice = new TimeSlice();
  /** Of every frame; set before the first one. */
  version: Version;
  readonly #link: Link;
  readonly #host: WriterHost;
  readonly #trace: FrameTrace | undefined;
  readonly #coalescer: Coalescer;
  // Frames that wait for room; each stream that has some clones the sender, and closes its clone to take them back.
  readonly #sender: Sender<PendingFrame>;
  readonly #waiting: Receiver<PendingFrame>;
  // Streams whose control frames, and ids of refused streams whose FINs, found no room.
  #queued: ControlSource[] = [];
  #refused: number[] = [];
  #filling = new WriteBuffer();
  #leaving = new WriteBuffer();
  #running: Promise<void> | undefined;
  #isWriting = false;
  #isBusy = false;
  #ended = false;
  #frames = 0;
  #bytes = 0;
  #begunAt = clock.now();
  #progressAt = 0;

  /**
   * @param link Where the bytes go.
   * @param version Version of the session's frames.
   * @param host The session.
   * @param trace Reports what is encoded, where that is wanted.
   */
  constructor(link: Link, version: Version, host: WriterHost, trace?: FrameTrace) {
    this.#link = link;
    this.version = version;
    this.#host = host;
    this.#trace = trace;
    this.#coalescer = new Coalescer(() => this.#flush());
    const { sender, receiver } = bounded<PendingFrame>(0);
    this.#sender = sender;
    this.#waiting = receiver;
  }

  /** Frames encoded so far. */
  get frames(): number {
    return this.#frames;
  }

  /** Bytes the transport took so far. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Bytes encoded that are not written. */
  get unsent(): number {
    return this.#filling.length + this.#leaving.length;
  }

  /** Whether data of streams is among that. */
  get hasUnsentData(): boolean {
    return this.#filling.dataLength + this.#leaving.dataLength > 0;
  }

  /** Refusals that wait for room. */
  get waitingRefusals(): number {
    return this.#refused.length;
  }

  /** When the last write of the transport began, by the clock. */
  get begunAt(): number {
    return this.#begunAt;
  }

  /** Since when the write under way has made no progress, by the clock; `undefined` when none is. */
  get stalledSince(): number | undefined {
    return this.#isWriting ? this.#progressAt : undefined;
  }

  /** Moves the start of the time without progress, as the function of the same name does. */
  excuse(late: number, now: number): void {
    this.#progressAt = excuse(this.#progressAt, late, now);
  }

  /** Encodes a frame if there is room, and returns whether there was. */
  tryFrame(command: Command, id: number, bytes: Uint8Array, start: number, end: number): boolean {
    // While there is room no frame waits for it, so none is overtaken here.
    if (this.#filling.length >= HIGH_WATER_MARK || this.#ended) return false;
    this.#encode(command, id, bytes, start, end);
    const isWriting = this.#running !== undefined;
    if (end > start) this.#coalescer.scheduleData(this.#filling, isWriting);
    else if (!isWriting) this.#coalescer.schedule(this.#filling);
    return true;
  }

  /** Encodes a frame without payload in the room kept for control frames, if there is any, and returns whether there was. */
  tryControl(command: Command, id: number): boolean {
    if (this.#filling.length >= CONTROL_HIGH_WATER_MARK || this.#ended) return false;
    this.#encode(command, id, EMPTY_BYTES, 0, 0);
    this.#schedule();
    return true;
  }

  /** Encodes a UPD in the same way. */
  tryUpdate(id: number, consumed: number, window: number): boolean {
    if (this.#filling.length >= CONTROL_HIGH_WATER_MARK || this.#ended) return false;
    this.#filling.addUpdate(id, consumed, window);
    this.#frames++;
    this.#trace?.sentUpdate(id, consumed, window);
    this.#schedule();
    return true;
  }

  /** Encodes the control frames that are due on a stream, now or when there is room. */
  queueControl(source: ControlSource): void {
    if (source.isQueued || this.#ended || this.#encodeControl(source)) return;
    source.isQueued = true;
    this.#queued.push(source);
  }

  /** Encodes the FIN that refuses a stream, now or when there is room. */
  refuse(id: number): void {
    if (this.#refused.length > 0 || !this.tryControl(FIN, id)) this.#refused.push(id);
  }

  /** Returns a handle for the frames of one stream that wait for room. Closing it takes back those that still wait. */
  openSender(): Sender<PendingFrame> {
    return this.#sender.clone();
  }

  /**
   * Waits until a frame is encoded.
   *
   * @param frame The frame, for which there was no room.
   * @param sender The stream's handle.
   * @param signal Gives up the wait; then the frame is not encoded.
   * @throws {ChannelClosedError} The handle was closed or the session has ended: the frame is not encoded.
   */
  send(frame: PendingFrame, sender: Sender<PendingFrame>, signal?: AbortSignal): Promise<void> {
    // Not an async function, which takes 250 bytes more for each of thousands of writes that may wait.
    return sender.send(frame, signal && { signal }).then(() => {
      if (!frame.isEncoded) throw ENDED;
    });
  }

  /** Coalesces frames until `release`: the session knows better when its readers have answered. */
  hold(): void {
    this.#coalescer.hold();
  }

  /** Ends what `hold` began. The next data leaves at once: it answers the one read that was served. */
  awaitAnswer(): void {
    this.#coalescer.awaitAnswer();
    if (this.#filling.length > 0) this.#schedule();
  }

  /** Sends what was coalesced since `hold`. */
  release(): void {
    this.#coalescer.release();
  }

  /** Settles when all that was encoded, and every frame that waited, was written, or the end came. */
  async flushed(): Promise<void> {
    while (!this.#ended && (this.#running !== undefined || this.#filling.length > 0)) {
      this.#flush();
      await this.#running;
    }
  }

  /** Ends it: nothing more is encoded or written. Frames that wait go on waiting until `dismiss`. */
  end(): void {
    this.#ended = true;
    this.#coalescer.end();
    this.#filling.free();
    this.#queued = [];
    this.#refused = [];
    // A write under way still needs its memory.
    if (!this.#isWriting) this.#leaving.free();
  }

  /** After the end: `send` rejects for at most `count` frames. Returns whether there may be others. */
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

  /** Whether it holds more memory than an idle session needs. */
  get isLarge(): boolean {
    return this.#filling.capacity > MIN_BUFFER_BYTES || (!this.#isWriting && this.#leaving.capacity > 0);
  }

  /** Frees the memory that an idle session does not need. */
  trim(): void {
    if (this.unsent > 0) return;
    this.#filling.free();
    this.#leaving.free();
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
    if (this.#filling.length > 0 && !this.#ended) this.#running ??= this.#run();
  }

  async #run(): Promise<void> {
    const { slice } = this;
    let writing: Promise<number> | undefined;
    if (!this.#isBusy) slice.start(clock.now());
    try {
      do {
        // Before the write, in which the transport may call back in: what is encoded then goes into the next buffer.
        this.#swap();
        const { bytes } = this.#leaving;
        const { length } = bytes;
        this.#isWriting = true;
        this.#begunAt = this.#progressAt = clock.now();
        writing = this.#link.write(bytes);
        this.#refill();
        if (length >= COALESCE_BYTES) slice.observe(writing);
        let count = checkCount(await writing, length);
        if (count < length) count = await this.#writeRest(bytes, count);
        this.#isWriting = false;
        this.#leaving.clear();
        this.#bytes += count;
        if (this.#ended) break;
        if (length >= COALESCE_BYTES && slice.isExpired(clock.now())) await slice.yieldToEventLoop();
      } while (this.#filling.length >= COALESCE_BYTES);
    } catch (error) {
      // If something else failed the write is under way still, and may fail too.
      writing?.catch(() => {});
      if (!this.#ended) this.#host.writerFailed(error);
    }
    this.#isWriting = false;
    this.#running = undefined;
    if (this.#ended) return this.#leaving.free();
    // One buffer is enough for a session with little traffic.
    if (this.#filling.capacity === 0) this.#swap();
    this.#isBusy = this.#filling.length > 0;
    if (this.#isBusy) this.#schedule();
    else this.#host.writerIdle();
  }

  /** Writes what a partial write left, from `at` on: two writes under way at once would interleave. */
  async #writeRest(bytes: Uint8Array, at: number): Promise<number> {
    for (let count = at; !this.#ended; at += count) {
      if (count > 0) this.#progressAt = clock.now();
      // A transport that keeps taking nothing at once would keep the process to itself.
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

  // Control frames first: they unblock the peer, and frames that wait have waited for their turn anyway.
  #refill(): void {
    this.#encodeQueued();
    while (this.#filling.length < HIGH_WATER_MARK) {
      const next = this.#waiting.tryReceive();
      if (next.state !== "ok") return;
      const frame = next.value;
      this.#encode(frame.command, frame.id, frame.bytes, frame.start, frame.end);
      frame.isEncoded = true;
    }
  }

  #encodeQueued(): void {
    const queued = this.#queued;
    if (queued.length > 0) {
      this.#queued = [];
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
    if (source.isFinDue) {
      if (!this.tryControl(FIN, source.id)) return false;
      source.isFinDue = false;
      source.finEncoded();
    }
    return true;
  }
}

/** Checks what a write of the transport returned. */
function checkCount(count: number, limit: number): number {
  if (count >= 0 && count <= limit) return count;
  throw new TypeError(`A transport's write must give 0 to ${limit} bytes as taken, received ${count}`);
}
