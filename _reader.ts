/**
 * The read loop of a session: it reads the transport, has what came decoded, and finishes the reads that it fills.
 *
 * @module
 */

import type { FloodGuard } from "./_flood.ts";
import { Gate } from "./_gate.ts";
import type { FrameWriter } from "./_writer.ts";
import { clock, type Pass } from "./_clock.ts";
import { FrameDecoder, type FrameSink, type Version } from "./frame.ts";
import type { StreamCore } from "./stream.ts";
import type { Link } from "./transport.ts";
import { TimeSlice } from "./_timeslice.ts";

// After a read of at least this many bytes it is made sure that the process yields: a smaller one has emptied the transport,
// so that the next one waits.
const LARGE_READ_BYTES = 4096;

/** What the reader needs from its session. */
export interface ReaderHost extends FrameSink {
  /** Whether the session has ended. */
  readonly hasEnded: boolean;
  /** Whether the transport must not be read, because too much is unread or too many refusals wait. */
  readonly mustPause: boolean;
  /** Whole frames have arrived, or a part of a payload: the peer lives. */
  heard(now: number): void;
  /** Hands the streams that arrived to the acceptors, and returns whether all have found a place or were refused. */
  handOver(): boolean;
  /** The process has yielded since `handOver` returned `false`, so the acceptors have run. */
  acceptorsHadTurn(): void;
  /** What came in one read is decoded. */
  readDone(): void;
  /** The transport has ended. */
  transportEnded(): void;
  /** The transport failed. */
  transportFailed(error: unknown): void;
  /** What came cannot be decoded. */
  decodingFailed(error: unknown): void;
}

/** Reads and decodes. */
export class FrameReader {
  /** What turns bytes into frames. */
  readonly decoder: FrameDecoder;
  /** The time slice of its loop. */
  readonly slice = new TimeSlice();
  /** Where the bytes come from. */
  readonly link: Link;
  readonly #host: ReaderHost;
  readonly #sink: FrameSink;
  readonly #writer: FrameWriter;
  readonly #flood: FloodGuard;
  #bytesReceived = 0;
  #isPaused = false;
  #resumed: Gate | undefined;
  // Position after the last byte that was decoded.
  #decodedTo = 0;
  // Whether a stream waits until the acceptors have run.
  #isBlocked = false;
  // Streams with a read to finish when everything that has arrived is decoded.
  #finishing: StreamCore[] = [];
  // Which batch of finished reads was the last, how many streams of it do not read again yet, the pass of the event loop
  // after which they are not waited for any more, and what goes on then.
  #batch = 0;
  #serving = 0;
  #pass: Pass | undefined;
  #goOn: (() => void) | undefined;

  /**
   * @param link Where the bytes come from.
   * @param version The version of every frame; `undefined` for that of the first.
   * @param host The session.
   * @param writer Coalesces the answers of the readers.
   * @param flood Counts what the peer costs.
   * @param sink Where the frames go; default: the session.
   */
  constructor(
    link: Link,
    version: Version | undefined,
    host: ReaderHost,
    writer: FrameWriter,
    flood: FloodGuard,
    sink: FrameSink = host,
  ) {
    this.link = link;
    this.decoder = new FrameDecoder(version);
    this.#host = host;
    this.#sink = sink;
    this.#writer = writer;
    this.#flood = flood;
  }

  /** Bytes that the transport delivered. */
  get bytesReceived(): number {
    return this.#bytesReceived;
  }

  /** Whether the transport is not being read. */
  get isPaused(): boolean {
    return this.#isPaused;
  }

  /** `finishRead` of this stream is called when everything that has arrived is decoded. */
  finishReadLater(stream: StreamCore): void {
    this.#finishing.push(stream);
  }

  /** A read of this stream waits again. */
  readWaits(stream: StreamCore): void {
    if (stream.batch !== this.#batch) return;
    stream.batch = 0;
    if (this.#goOn === undefined) return;
    if (--this.#serving === 0) queueMicrotask(this.#resume);
  }

  /** Reads again, if there is no reason to pause any more. */
  wake(): void {
    if (this.#isPaused && !this.#host.mustPause) this.#resumed?.notifyOne();
  }

  /** Ends it: what is awaited is not awaited any more. */
  end(): void {
    this.#resumed?.close();
    clock.clearPass(this.#pass);
    this.#resume();
  }

  /** Reads until the end. */
  async run(): Promise<void> {
    const { link, slice } = this;
    const host = this.#host;
    let count: number | null = 0;
    let isShared = false;
    let isReading = false;
    let now = clock.now();
    slice.start(now);
    try {
      while (!host.hasEnded) {
        if (host.mustPause) now = await this.#pause();
        isReading = true;
        const reading = link.read(count, isShared);
        // A small read has emptied the transport, so that the next one waits; only now and then is that made sure of.
        const isWatched = count >= LARGE_READ_BYTES || slice.isExpired(now);
        const isServing = this.#serving > 1 || (this.#serving > 0 && count >= LARGE_READ_BYTES);
        if (isWatched || isServing) slice.observe(reading);
        if (isServing) await this.#served();
        else if (this.#serving > 0) this.#writer.awaitAnswer();
        count = await reading;
        if (host.hasEnded) return;
        if (count === null) return host.transportEnded();
        const { bytes } = link.buffer;
        if (!(count >= 0 && count <= bytes.length)) {
          throw new TypeError(`A transport's read must give 0 to ${bytes.length} bytes or null, received ${count}`);
        }
        isReading = false;
        now = clock.now();
        this.#bytesReceived += count;
        this.#batch++;
        this.#serving = 0;
        this.#decode(bytes, 0, count, now);
        if (this.#isBlocked || this.#decodedTo < count) now = await this.#decodeRest(bytes, count, now);
        if (host.hasEnded) return;
        // Noted before the readers are waited for, which resets the number.
        isShared = this.#serving > 1;
        host.readDone();
        const isLong = isWatched && slice.isExpired(now);
        if (isLong || this.#flood.isExhausted) now = await this.#yield(now);
      }
    } catch (error) {
      if (isReading) host.transportFailed(error);
      else host.decodingFailed(error);
    } finally {
      link.free();
    }
  }

  /** Waits until what is unread and what is to be refused has become less; returns the time. */
  async #pause(): Promise<number> {
    if (this.#serving > 0) await this.#served();
    this.#isPaused = true;
    while (this.#host.mustPause && !this.#host.hasEnded) await (this.#resumed ??= new Gate()).wait();
    this.#isPaused = false;
    const now = clock.now();
    // The peer could not be heard while the transport was not read.
    this.#host.heard(now);
    this.slice.start(now);
    return now;
  }

  /** Decodes what arrived, finishes the reads that it fills, and hands over the streams that the peer opened. */
  #decode(bytes: Uint8Array, start: number, end: number, now: number): void {
    const before = this.decoder.progress;
    try {
      this.#decodedTo = this.decoder.push(bytes, this.#sink, end, start);
    } finally {
      this.#finishReads();
      this.#isBlocked = !this.#host.handOver();
    }
    // Bytes of an unfinished header are no sign of life: any program can send those for ever.
    if (this.decoder.progress > before) this.#host.heard(now);
  }

  // One read may bring more streams than the acceptors' channel has places for, and no acceptor runs while it is decoded.
  async #decodeRest(bytes: Uint8Array, end: number, now: number): Promise<number> {
    while (this.#isBlocked || this.#decodedTo < end) {
      if (this.#isBlocked) {
        now = await this.slice.yieldToEventLoop();
        if (this.#host.hasEnded) break;
        this.#host.acceptorsHadTurn();
      }
      this.#decode(bytes, this.#decodedTo, end, now);
      if (this.#host.hasEnded) break;
    }
    return now;
  }

  #finishReads(): void {
    const finishing = this.#finishing;
    if (finishing.length === 0) return;
    this.#serving += finishing.length;
    this.#writer.hold();
    for (const stream of finishing) {
      stream.batch = this.#batch;
      stream.receiving.finishRead();
    }
    finishing.length = 0;
  }

  // The next read of the transport begins when every reader that was served reads again, or else after one pass of the
  // event loop: then the bytes of this one were used while they are in the cache, those of the next one are copied once
  // and not twice, and all answers leave together.
  async #served(): Promise<void> {
    // A pass that is awaited already will do: it comes after every microtask, and so after the readers have run.
    this.#pass ??= clock.pass(this.#passed);
    await new Promise<void>((resolve) => this.#goOn = resolve);
    this.#serving = 0;
  }

  readonly #passed = (): void => {
    this.#pass = undefined;
    this.#resume();
  };

  readonly #resume = (): void => {
    const goOn = this.#goOn;
    if (goOn === undefined) return;
    this.#goOn = undefined;
    this.#writer.release();
    goOn();
  };

  /** Yields, and makes a peer that floods wait; returns the time. */
  async #yield(now: number): Promise<number> {
    const flood = this.#flood;
    // What the readers answer does not wait for that.
    if (this.#serving > 0) await this.#served();
    if (this.#host.hasEnded) return now;
    if (!flood.isExhausted) return await this.slice.yieldToEventLoop();
    const since = now;
    now = await this.slice.sleep(flood.startPause());
    const more = flood.furtherPause(now - since);
    return more > 0 && !this.#host.hasEnded ? await this.slice.sleep(more) : now;
  }
}
