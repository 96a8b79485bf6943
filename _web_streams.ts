/**
 * A stream's halves as web streams.
 *
 * @module
 */

import type { ReceiveHalf } from "./_receive_half.ts";
import type { SendHalf } from "./_send_half.ts";

// If more bytes than this came at once, a pull waits with one buffer for all of them, otherwise for a chunk of the size that
// comes. It is more than a frame of the usual size.
const LARGE_BATCH_BYTES = 40 * 1024;

/** What both need from the stream. */
interface Watched {
  /** Calls `run` now, and each time when reading or writing has failed for good or the stream was closed here. */
  watch(run: () => void): void;
}

/** Makes a stream of what arrives. It reads nothing ahead. */
export function makeReadable(stream: Watched, half: ReceiveHalf): ReadableStream<Uint8Array<ArrayBuffer>> {
  return new ReadableStream(new ReadableSource(stream, half), { highWaterMark: 0 });
}

/** Makes a stream of what is sent. */
export function makeWritable(stream: Watched, half: SendHalf): WritableStream<Uint8Array> {
  return new WritableStream(new WritableSink(stream, half), {
    highWaterMark: 1,
    size() {
      half.queued++;
      return 1;
    },
  });
}

/** What `readable` reads from. */
class ReadableSource implements UnderlyingByteSource {
  readonly type = "bytes";
  readonly #stream: Watched;
  readonly #half: ReceiveHalf;
  #controller!: ReadableByteStreamController;
  #isPulling = false;
  #wasAskedAgain = false;
  #isCancelled = false;
  // Bytes since the last wait.
  #received = 0;

  constructor(stream: Watched, half: ReceiveHalf) {
    this.#stream = stream;
    this.#half = half;
  }

  start(controller: ReadableByteStreamController): void {
    this.#controller = controller;
    // An idle reader is to see in `closed` that nothing will come. An error drops what the stream has in its queue.
    this.#stream.watch(() => {
      if (this.#isPulling || controller.desiredSize !== 0) return;
      const { error } = this.#half;
      if (error !== undefined) controller.error(error);
    });
  }

  // It may be called while it waits, and does not wait itself, so that it is called for every read.
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
    // Behind another read it is served as one.
    if (isLarge || half.isReading) half.readLarge().then(this.#enqueue).catch(this.#fail);
    else half.whenReady(this.#ready);
  }

  cancel(): void {
    this.#isCancelled = true;
    this.#half.discard();
  }

  // It is called in the middle of the session's own work.
  readonly #ready = (): void => queueMicrotask(this.#resume);

  readonly #resume = (): void => {
    this.#isPulling = false;
    if (!this.#isCancelled) this.pull();
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
      // Perhaps asked again by a reader without a buffer that took over, which a response would not reach.
      if (this.#wasAskedAgain) this.#controller.enqueue(p.slice(0, count));
      else this.#controller.byobRequest!.respond(count);
    }).catch(this.#fail);
  }

  readonly #fail = (error: unknown): void => {
    this.#isPulling = false;
    this.#controller.error(error);
  };

  #end(): void {
    this.#controller.close();
    // A request must be answered even at the end.
    this.#controller.byobRequest?.respond(0);
  }
}

/** What `writable` writes to. */
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
    // A pipe that has nothing to write would not notice.
    this.#stream.watch(() => {
      const { error } = this.#half;
      if (error === undefined) return;
      controller.error(error);
      this.abort();
    });
  }

  // A promise costs more than a small chunk.
  write(chunk: Uint8Array, controller: WritableStreamDefaultController): Promise<void> | undefined {
    this.#half.queued--;
    const written = this.#half.write(chunk, controller.signal, true);
    return typeof written === "number" ? undefined : this.#finish(written, chunk.length, controller.signal);
  }

  close(): Promise<void> {
    return this.#half.closeWrite();
  }

  abort(): Promise<void> {
    return this.#half.closeWrite({ isAborted: true });
  }

  async #finish(writing: Promise<number>, length: number, signal: AbortSignal): Promise<void> {
    try {
      if (await writing < length) throw signal.reason;
    } catch (error) {
      // Nothing more will be written, and nothing else would end it.
      this.abort();
      throw error;
    }
  }
}
