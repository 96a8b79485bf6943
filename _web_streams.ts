/**
 * Web streams over the halves of a stream.
 *
 * @module
 */

import type { ReceiveHalf } from "./_receive_half.ts";
import type { SendHalf } from "./_send_half.ts";

// After more bytes than this at once, a pull waits with one large buffer; otherwise for a chunk of the size that
// arrives. Above the default frame size. Larger: more chunks under load; smaller: more memory for single frames.
const LARGE_BATCH_BYTES = 40 * 1024;

/** What both web streams need from the stream. */
interface Watched {
  /** Calls `run` now, and again each time when reading or writing has failed for good or the stream was closed here. */
  watch(run: () => void): void;
}

/** Creates a readable stream of the received data. It reads nothing ahead. */
export function makeReadable(stream: Watched, half: ReceiveHalf): ReadableStream<Uint8Array<ArrayBuffer>> {
  return new ReadableSource(stream, half).readable;
}

/** Creates a writable stream of the data to send. */
export function makeWritable(stream: Watched, half: SendHalf): WritableStream<Uint8Array> {
  return new WritableStream(new WritableSink(stream, half), {
    highWaterMark: 1,
    size() {
      half.queued++;
      return 1;
    },
  });
}

/** The source of `readable`. */
class ReadableSource implements UnderlyingByteSource {
  readonly type = "bytes";
  readonly readable: ReadableStream<Uint8Array<ArrayBuffer>>;
  readonly #stream: Watched;
  readonly #half: ReceiveHalf;
  #controller!: ReadableByteStreamController;
  #isPulling = false;
  #wasAskedAgain = false;
  #isCancelled = false;
  // Bytes enqueued since the last wait.
  #received = 0;

  constructor(stream: Watched, half: ReceiveHalf) {
    this.#stream = stream;
    this.#half = half;
    this.readable = new ReadableStream(this, { highWaterMark: 0 });
  }

  start(controller: ReadableByteStreamController): void {
    this.#controller = controller;
    this.#stream.watch(this.#report);
  }

  // Returns no promise, so that the stream calls it for every read, also while an earlier pull waits.
  pull(): void {
    this.#wasAskedAgain = this.#isPulling;
    if (this.#isPulling) return;
    const view = this.#controller.byobRequest?.view;
    if (view) return this.#fill(view);
    const half = this.#half;
    try {
      const chunk = half.tryReadChunk();
      if (chunk !== undefined) return this.#enqueue(chunk);
    } catch (error) {
      return this.#controller.error(error);
    }
    this.#isPulling = true;
    const isLarge = this.#received > LARGE_BATCH_BYTES;
    this.#received = 0;
    // Behind another read the pull must queue as a read.
    if (isLarge || half.isReading) half.readLarge().then(this.#enqueue).catch(this.#fail);
    else half.whenReady(this.#ready);
  }

  cancel(): void {
    this.#isCancelled = true;
    this.#half.discard();
  }

  // Called in the middle of a step of the session, so application code must run later.
  readonly #ready = (): void => queueMicrotask(this.#resume);

  readonly #resume = (): void => {
    this.#isPulling = false;
    if (this.#isCancelled) return;
    // After `releaseLock` no read waits here, so the data stays for `Stream.read`.
    if (this.readable.locked) this.pull();
    else this.#report();
  };

  // Reports a failure to an idle reader through `closed`. Only with an empty queue, because an error drops the queue.
  readonly #report = (): void => {
    if (this.#isPulling || this.#controller.desiredSize !== 0) return;
    const { error } = this.#half;
    if (error !== undefined) this.#controller.error(error);
  };

  readonly #enqueue = (chunk: Uint8Array | null): void => {
    this.#isPulling = false;
    if (this.#isCancelled) return;
    if (chunk === null) return this.#end();
    this.#received += chunk.length;
    this.#controller.enqueue(chunk as Uint8Array<ArrayBuffer>);
  };

  #fill(view: ArrayBufferView): void {
    const p = new Uint8Array(view.buffer as ArrayBuffer, view.byteOffset, view.byteLength);
    this.#isPulling = true;
    this.#half.read(p, undefined).then((count) => {
      this.#isPulling = false;
      if (this.#isCancelled || count === 0) return;
      if (count === null) return this.#end();
      // A reader without a buffer may have replaced the first one, and a response would not reach it.
      if (this.#wasAskedAgain) this.#enqueueFirst(p.slice(0, count));
      else this.#controller.byobRequest!.respond(count);
    }).catch(this.#fail);
  }

  /** Enqueues bytes behind those of a released request, whose delivery may call `pull`: later bytes come after both. */
  #enqueueFirst(chunk: Uint8Array<ArrayBuffer>): void {
    this.#isPulling = true;
    this.#wasAskedAgain = false;
    this.#controller.enqueue(chunk);
    this.#isPulling = false;
    if (this.#wasAskedAgain) this.pull();
  }

  readonly #fail = (error: unknown): void => {
    this.#isPulling = false;
    this.#controller.error(error);
  };

  #end(): void {
    this.#controller.close();
    // A pending request must be answered at the end, too.
    this.#controller.byobRequest?.respond(0);
  }
}

/** The sink of `writable`. */
class WritableSink implements UnderlyingSink<Uint8Array> {
  readonly #stream: Watched;
  readonly #half: SendHalf;

  constructor(stream: Watched, half: SendHalf) {
    this.#stream = stream;
    this.#half = half;
  }

  start(controller: WritableStreamDefaultController): void {
    const { signal } = controller;
    signal.addEventListener("abort", () => this.#half.abortWrite(signal));
    // Reports a failure to a pipe that has nothing to write.
    this.#stream.watch(() => {
      const { error } = this.#half;
      if (error === undefined) return;
      controller.error(error);
      this.abort();
    });
  }

  // Returns no promise if the chunk was encoded at once: a promise costs more than a small chunk.
  write(chunk: Uint8Array, controller: WritableStreamDefaultController): Promise<void> | undefined {
    this.#half.queued--;
    const written = this.#half.write(chunk, controller.signal, true);
    return typeof written === "number" ? undefined : this.#finish(written, chunk, controller.signal);
  }

  close(): Promise<void> {
    return this.#half.closeWrite({ isLast: true });
  }

  abort(): Promise<void> {
    return this.#half.closeWrite({ isLast: true, isAborted: true });
  }

  async #finish(writing: Promise<number>, chunk: Uint8Array, signal: AbortSignal): Promise<void> {
    try {
      // The write of a chunk that has no length rejects.
      if (await writing < chunk.length) throw signal.reason;
    } catch (error) {
      // No further chunk will be written, so end the writing direction here.
      this.abort();
      throw error;
    }
  }
}
