/**
 * The read loop of a session: reads the transport, decodes frames, and settles the reads of streams.
 *
 * @module
 */

import { DOUBLE } from "./_double.ts";
import type { FloodGuard } from "./_flood.ts";
import { deferred } from "./_deferred.ts";
import { Gate } from "./_gate.ts";
import type { FrameWriter } from "./_writer.ts";
import { clock, type Pass } from "./_clock.ts";
import { EMPTY_BYTES, FrameDecoder, type FrameSink, type Version } from "./frame.ts";
import type { StreamCore } from "./stream.ts";
import type { Link, PushListener } from "./transport.ts";
import type { WindowPool } from "./_window.ts";
import { TimeSlice } from "./_timeslice.ts";

// A read of fewer bytes has emptied the transport, so the next one blocks, and the loop need not check whether to
// yield. Larger: a transport of small reads may keep the event loop; smaller: more checks.
const LARGE_READ_BYTES = 4096;

// Bytes of a pushed connection that are decoded in one step. Larger: readers wait longer; smaller: the connection holds
// more.
const MAX_STEP_BYTES = 1024 * 1024;

/** What the reader needs from its session. */
export interface ReaderHost extends FrameSink {
  /** Counts the cost of the peer's frames. */
  readonly flood: FloodGuard;
  /** The receive windows, which measure round trips. */
  readonly windows: WindowPool;
  /** Whether the session has ended. */
  readonly hasEnded: boolean;
  /** Whether reading must pause, because too much is unread or too many refusals wait. */
  readonly mustPause: boolean;
  /** Notes a sign of life: a complete header or a byte of a payload was received. */
  heard(now: number): void;
  /**
   * Sends new streams to the acceptors. Returns `false` if the acceptors must run first, before the rest is sent or
   * refused, or more is decoded.
   */
  handOver(): boolean;
  /** The process has yielded since `handOver` returned `false`, so the acceptors have run. */
  acceptorsHadTurn(): void;
  /** All bytes of a read were decoded. */
  readDone(): void;
  /** The transport has ended. */
  transportEnded(): void;
  /** A read of the transport failed. */
  transportFailed(error: unknown): void;
  /** Received bytes are not valid. */
  decodingFailed(error: unknown): void;
}

/** Reads the transport and decodes frames. */
export class FrameReader implements PushListener {
  /** The decoder of the session. */
  readonly decoder: FrameDecoder;
  /** The time slice of the read loop. */
  readonly slice = new TimeSlice();
  /** The transport. */
  readonly link: Link;
  readonly #host: ReaderHost;
  readonly #sink: FrameSink;
  readonly #writer: FrameWriter;
  #bytesReceived = DOUBLE;
  #isPaused = false;
  #resumed: Gate | undefined;
  // Position after the last decoded byte.
  #decodedTo = 0;
  // Whether a new stream waits until the acceptors have run.
  #isBlocked = false;
  // Streams whose read must be settled after everything that has arrived is decoded.
  #finishing: StreamCore[] = [];
  // Number of the last batch of settled reads, and how many of its streams do not read again yet.
  #batch = 0;
  #serving = 0;
  // The pass of the event loop after which the loop stops waiting for them, and the function that resumes the loop.
  #pass: Pass | undefined;
  #goOn: (() => void) | undefined;
  // Whether the loop waits for nothing but the next bytes.
  #isIdle = false;
  // Ends a yield early.
  #hurried: PromiseWithResolvers<void> | undefined;

  /**
   * @param link The transport.
   * @param version The version of every frame; `undefined` for that of the first frame.
   * @param host The session.
   * @param writer Coalesces the answers of the readers.
   * @param sink Receives the frames; default: the session.
   */
  constructor(
    link: Link,
    version: Version | undefined,
    host: ReaderHost,
    writer: FrameWriter,
    sink: FrameSink = host,
  ) {
    this.#bytesReceived = 0;
    this.link = link;
    this.decoder = new FrameDecoder(version);
    this.#host = host;
    this.#sink = sink;
    this.#writer = writer;
    link.listen?.(this);
  }

  /** Total bytes read from the transport. */
  get bytesReceived(): number {
    return this.#bytesReceived;
  }

  /** Whether reading is paused. */
  get isPaused(): boolean {
    return this.#isPaused;
  }

  /** Schedules a call of the stream's `finishRead` after everything that has arrived is decoded. */
  finishReadLater(stream: StreamCore): void {
    this.#finishing.push(stream);
  }

  /** Called when a read of the stream waits again. */
  readWaits(stream: StreamCore): void {
    if (stream.batch !== this.#batch) return;
    stream.batch = 0;
    if (this.#serving === 0 || (this.#goOn === undefined && !this.#isIdle)) return;
    if (--this.#serving === 0 && this.#goOn !== undefined) queueMicrotask(this.#resume);
  }

  /** Resumes reading, if it need not pause any more. */
  wake(): void {
    if (this.#isPaused && !this.#host.mustPause) this.#resumed?.notifyOne();
  }

  /** Ends the pauses and waits of the loop, at the end of the session. */
  end(): void {
    this.#resumed?.close();
    clock.clearPass(this.#pass);
    this.#resume();
  }

  // The bytes are decoded in the event that brings them, without a promise, unless the loop has to wait.
  tryReceive(chunk: Uint8Array): Uint8Array | undefined {
    const { slice } = this;
    const now = clock.now();
    const isExpired = slice.isExpired(now);
    if (!this.#isIdle || this.#serving > 0 || (isExpired && slice.isWatched)) return chunk;
    if (isExpired || chunk.length >= LARGE_READ_BYTES) slice.watch();
    // Until it is certain that the loop has nothing to do.
    this.#isIdle = false;
    this.#startBatch();
    this.#bytesReceived += this.link.hold!(chunk);
    try {
      this.#decode(chunk, 0, chunk.length, now);
    } catch (error) {
      this.#host.decodingFailed(error);
      return undefined;
    }
    this.#host.readDone();
    if (this.#decodedTo < chunk.length) {
      // The rest is a batch of its own, and counted with it.
      this.#bytesReceived -= chunk.length - this.#decodedTo;
      this.#writer.release();
      return new Uint8Array(chunk.subarray(this.#decodedTo));
    }
    const mustWait = this.#isBlocked || this.#serving > 1 || this.#host.mustPause || this.#host.flood.isExhausted;
    if (mustWait) return EMPTY_BYTES;
    if (this.#serving > 0) this.#writer.awaitAnswer();
    this.#isIdle = true;
    return undefined;
  }

  fellBehind(): void {
    this.#resume();
    this.#hurried?.resolve();
  }

  overflowed(error: Error): void {
    this.#host.transportFailed(error);
  }

  get #isBehind(): boolean {
    return this.link.pushed !== undefined && this.link.pushed.isBehind;
  }

  /** Reads until the transport or the session ends. */
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
        // A connection without types may return a number or `null`.
        const reading = Promise.resolve(link.read(count, isShared));
        // After a small read the next one probably blocks, so it is observed only once in a time slice.
        const isWatched = count >= LARGE_READ_BYTES || slice.isExpired(now);
        // What a transport holds that receives without being read must not grow while this waits.
        const isServing = !this.#isBehind && (this.#serving > 1 || (this.#serving > 0 && count >= LARGE_READ_BYTES));
        if (isWatched || isServing) slice.observe(reading);
        if (isServing) await this.#served();
        else if (this.#serving > 0) this.#writer.awaitAnswer();
        this.#isIdle = true;
        count = await reading;
        this.#isIdle = false;
        if (host.hasEnded) return;
        if (count === null) return host.transportEnded();
        if (!(count >= 0 && count <= link.buffer.bytes.length)) {
          throw new TypeError(`Transport read must return 0 to ${link.buffer.bytes.length} or null, received ${count}`);
        }
        isReading = false;
        now = clock.now();
        if (count > 0) this.#startBatch();
        let received = 0;
        do {
          const { bytes } = link.buffer;
          this.#bytesReceived += count;
          received += count;
          if (this.#isBlocked) this.#decodedTo = 0;
          else this.#decode(bytes, 0, count, now);
          if (this.#isBlocked || this.#decodedTo < count) now = await this.#decodeRest(bytes, count, now);
          if (host.hasEnded) return;
          // A message costs Deno fewer microtasks than a read costs this loop, so several are decoded in one step.
        } while (this.#isBehind && received < MAX_STEP_BYTES && !host.mustPause && (count = link.tryRead!()) > 0);
        count = received;
        // Before the wait for the readers, which resets `#serving`.
        isShared = this.#serving > 1;
        host.readDone();
        const isLong = isWatched && !this.#isBehind && slice.isExpired(now);
        if (isLong || host.flood.isExhausted) now = await this.#yield(now);
      }
    } catch (error) {
      if (isReading) host.transportFailed(error);
      else host.decodingFailed(error);
    } finally {
      link.free();
    }
  }

  #startBatch(): void {
    this.#batch++;
    this.#serving = 0;
  }

  /** Waits until reading need not pause any more. Returns the time. */
  async #pause(): Promise<number> {
    if (this.#serving > 0) await this.#served();
    this.#isPaused = true;
    while (this.#host.mustPause && !this.#host.hasEnded) await (this.#resumed ??= new Gate()).wait();
    this.#isPaused = false;
    const now = clock.now();
    // The pause does not count as silence of the peer.
    this.#host.heard(now);
    this.slice.start(now);
    return now;
  }

  /** Decodes received bytes, settles the reads that they fill, and passes on the streams that the peer opened. */
  #decode(bytes: Uint8Array, start: number, end: number, now: number): void {
    const before = this.decoder.progress;
    this.#host.windows.now = now;
    try {
      this.#decodedTo = this.decoder.push(bytes, this.#sink, end, start);
    } finally {
      this.#finishReads();
      this.#isBlocked = !this.#host.handOver();
    }
    // Bytes of an incomplete header do not count as a sign of life: any program can send them, slowly and without end.
    if (this.decoder.progress > before) this.#host.heard(now);
  }

  // One read may contain thousands of SYNs, and no acceptor runs while it is decoded.
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

  // Waits until every reader that was served reads again, but at most one pass of the event loop. Then the next bytes
  // are copied directly into the waiting reads, and the answers of all readers leave together.
  async #served(): Promise<void> {
    // A pass that was requested before is late enough: it comes after all microtasks, so after the readers have run.
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

  /** Yields, until much has arrived: Deno delivers the messages of a WebSocket in microtasks, before any other task. */
  async #yieldUnlessBehind(): Promise<number> {
    const yielding = this.slice.yieldToEventLoop();
    if (this.link.pushed === undefined) return await yielding;
    this.#hurried = deferred<void>();
    await Promise.race([yielding, this.#hurried.promise]);
    this.#hurried = undefined;
    return clock.now();
  }

  /** Yields, or pauses reading from a flooding peer. Returns the time. */
  async #yield(now: number): Promise<number> {
    const { flood } = this.#host;
    // First, so that the answers of the readers do not wait for the pause.
    if (this.#serving > 0) await this.#served();
    if (this.#host.hasEnded) return now;
    if (!flood.isExhausted) return await this.#yieldUnlessBehind();
    const since = now;
    now = await this.slice.sleep(flood.startPause());
    const more = flood.furtherPause(now - since);
    return more > 0 && !this.#host.hasEnded ? await this.slice.sleep(more) : now;
  }
}
