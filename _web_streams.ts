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
  let controller: ReadableByteStreamController;
  let isPulling = false;
  let wasAskedAgain = false;
  let isCancelled = false;
  // Bytes since the last wait.
  let came = 0;

  // It may be asked while it waits, and does not wait itself, so that it is called for every read.
  function pull(): void {
    wasAskedAgain = isPulling;
    if (isPulling) return;
    const view = controller.byobRequest?.view;
    if (view) return fill(view);
    try {
      const chunk = half.tryReadChunk();
      if (chunk !== undefined) return give(chunk);
    } catch (error) {
      return controller.error(error);
    }
    isPulling = true;
    const isLarge = came > LARGE_BATCH_BYTES;
    came = 0;
    // Behind another read it is served as one.
    if (isLarge || half.isReading) half.readLarge().then(give).catch(fail);
    else half.whenReady(ready);
  }

  // It is called in the middle of the session's own work.
  const ready = () => queueMicrotask(resume);

  function resume(): void {
    isPulling = false;
    if (!isCancelled) pull();
  }

  function give(chunk: Uint8Array | null): void {
    isPulling = false;
    if (isCancelled) return;
    if (chunk === null) return end();
    came += chunk.length;
    controller.enqueue(chunk as Uint8Array<ArrayBuffer>);
  }

  function fill(view: ArrayBufferView): void {
    const p = new Uint8Array(view.buffer as ArrayBuffer, view.byteOffset, view.byteLength);
    isPulling = true;
    half.read(p, undefined).then((count) => {
      isPulling = false;
      if (isCancelled || count === 0) return;
      if (count === null) return end();
      // Perhaps asked again by a reader without a buffer that took over, which a response would not reach.
      if (wasAskedAgain) controller.enqueue(p.slice(0, count));
      else controller.byobRequest!.respond(count);
    }).catch(fail);
  }

  function fail(error: unknown): void {
    isPulling = false;
    controller.error(error);
  }

  function end(): void {
    controller.close();
    // A request must be answered even at the end.
    controller.byobRequest?.respond(0);
  }

  return new ReadableStream({
    type: "bytes",
    start(given) {
      controller = given;
      // An idle reader is to see in `closed` that nothing will come. An error drops what the stream has in its queue.
      stream.watch(() => {
        if (isPulling || controller.desiredSize !== 0) return;
        const error = half.error;
        if (error !== undefined) controller.error(error);
      });
    },
    pull,
    cancel() {
      isCancelled = true;
      half.discard();
    },
  }, { highWaterMark: 0 });
}

/** Makes a stream of what is sent. */
export function makeWritable(stream: Watched, half: SendHalf): WritableStream<Uint8Array> {
  const abort = () => half.closeWrite({ isAborted: true });

  async function finish(writing: Promise<number>, length: number, signal: AbortSignal): Promise<void> {
    try {
      if (await writing < length) throw signal.reason;
    } catch (error) {
      // Nothing more will be written, and nothing else would end it.
      abort();
      throw error;
    }
  }

  return new WritableStream({
    start(controller) {
      const { signal } = controller;
      signal.addEventListener("abort", () => half.abortWrite(signal));
      // A pipe that has nothing to write would not notice.
      stream.watch(() => {
        const error = half.error;
        if (error === undefined) return;
        controller.error(error);
        abort();
      });
    },
    write(chunk, controller) {
      half.queued--;
      const written = half.write(chunk, controller.signal, true);
      // A promise costs more than a small chunk.
      return typeof written === "number" ? undefined : finish(written, chunk.length, controller.signal);
    },
    close: () => half.closeWrite(),
    abort,
  }, {
    highWaterMark: 1,
    size() {
      half.queued++;
      return 1;
    },
  });
}
