/**
 * One logical stream: its two halves, its received bytes, and its credit in version 2.
 *
 * {@linkcode Stream} is what users hold; {@linkcode StreamCore} is the same stream as its session sees it. What a
 * stream needs from its session is {@linkcode StreamHost}.
 *
 * @module
 */

import { ChunkQueue, copy } from "./_chunks.ts";
import { type ControlSource, PendingFrame } from "./_writer.ts";
import { Channel, ChannelClosedError, type Sender } from "./channel.ts";
import { clock, excuse, LATE } from "./clock.ts";
import { type Command, NOTHING, ProtocolError, PSH, type Version } from "./frame.ts";
import type { Address, Link, ReadBuffer } from "./transport.ts";
import { ReceiveWindow, type ReceiveWindowHost, SendWindow, type WindowPool } from "./window.ts";

/**
 * Options of {@linkcode Stream.read} and {@linkcode Stream.write}.
 *
 * @example A read that gives up
 * ```ts
 * import { Session, type StreamOperationOptions } from "@sluice/smux";
 * import { assertEquals, assertRejects } from "@std/assert";
 *
 * const listener = Deno.listen({ port: 0 });
 * await using client = Session.client(await Deno.connect({ port: listener.addr.port }));
 * await using server = Session.server(await listener.accept());
 * const [asking, answering] = await Promise.all([client.openStream(), server.acceptStream()]);
 *
 * const p = new Uint8Array(16);
 * const patience: StreamOperationOptions = { signal: AbortSignal.timeout(10) };
 * const error = await assertRejects(() => asking.read(p, patience), DOMException);
 * assertEquals(error.name, "TimeoutError");
 *
 * await answering.write(new Uint8Array(7));
 * assertEquals(await asking.read(p), 7); // nothing is lost to the read that gave up
 * listener.close();
 * ```
 */
export interface StreamOperationOptions {
  /** Gives up waiting. What has moved already is never taken back: then the operation fulfils with its count. */
  signal?: AbortSignal | undefined;
}

/**
 * The session has ended, so nothing can be done on it or its streams.
 *
 * `cause` says why; it is absent when the session ended cleanly.
 *
 * @example Too late
 * ```ts
 * import { Session, SessionClosedError } from "@sluice/smux";
 * import { assertRejects } from "@std/assert";
 *
 * const { readable, writable } = new TransformStream<Uint8Array, Uint8Array>();
 * const session = Session.client({ readable, writable });
 * await session.close();
 * await assertRejects(() => session.openStream(), SessionClosedError);
 * ```
 */
export class SessionClosedError extends Error {
  /** Of a write that this error refused or cut: how many of its bytes are on their way. Absent on other operations. */
  declare bytesWritten?: number;

  /**
   * Says what could not be done.
   *
   * @param message What could not be done.
   * @param options The cause, where the end was not clean.
   */
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "SessionClosedError";
  }
}

/**
 * The stream was used after its own `close()`, or written to after its own `closeWrite()`.
 *
 * @example Writing after one's own end
 * ```ts
 * import { Session, StreamClosedError } from "@sluice/smux";
 * import { assertRejects } from "@std/assert";
 *
 * const { readable, writable } = new TransformStream<Uint8Array, Uint8Array>();
 * const session = Session.client({ readable, writable });
 * const stream = await session.openStream();
 * await stream.closeWrite();
 * await assertRejects(() => stream.write(new Uint8Array(1)), StreamClosedError);
 * session.abort();
 * ```
 */
export class StreamClosedError extends Error {
  /** Of a write that this error refused or cut: how many of its bytes are on their way. Absent on other operations. */
  declare bytesWritten?: number;

  /**
   * Says what could not be done.
   *
   * @param message What could not be done.
   */
  constructor(message: string) {
    super(message);
    this.name = "StreamClosedError";
  }
}

/** What a stream needs from its session. */
export interface StreamHost {
  /** Most bytes in one frame. */
  readonly maxFrameSize: number;
  /** Milliseconds a writer waits for credit after the peer's FIN. */
  readonly timeout: number;
  /** What the receive windows share. */
  readonly windows: WindowPool;
  /** Where the two ends are. */
  readonly link: Pick<Link, "localAddr" | "remoteAddr">;
  /** Position of the frame being received, for errors. */
  readonly decoder: { readonly frameOffset: number };
  /** The way out. */
  readonly outgoing: {
    /** Version of the session. */
    readonly version: Version;
    /** Encodes a frame if there is room. */
    tryFrame(command: Command, id: number, bytes: Uint8Array, start: number, end: number): boolean;
    /** Returns a handle for frames that wait for room. */
    openSender(): Sender<PendingFrame>;
    /** Waits until a frame is encoded. */
    send(frame: PendingFrame, sender: Sender<PendingFrame>, signal: AbortSignal | undefined): Promise<void>;
    /** Encodes the control frames that are due, now or when there is room. */
    queueControl(source: ControlSource): void;
  };
  /** Bytes that were received have been read or dropped; what the stream still has is in its `unread`. */
  release(stream: StreamCore, count: number): void;
  /** Call `settle` of this stream when all that has arrived is decoded. */
  settleLater(stream: StreamCore): void;
  /** A read of this stream waits. */
  waits(stream: StreamCore): void;
  /** The stream has left: its id may come again. */
  forget(stream: StreamCore): void;
}

// If more came at once, a pull of `readable` waits with one buffer for all of it; otherwise for a chunk of the size that
// comes. It is more than a frame of the usual size.
const LARGE_BATCH = 40 * 1024;
const LARGEST_PULL = 64 * 1024;
// By how much a peer may overrun its credit: in Go, concurrent writers on one stream do.
const OVERRUN = 1024 * 1024;

/** How a read that waits is settled. */
type Resolve = (count: number | null) => void;
type Reject = (reason: unknown) => void;

/** Makes the error of a stream that failed; for a write it gets the number of bytes taken, 0 as well. */
type Failure = (bytesWritten?: number) => Error;

// One executor for the promises of all reads that wait: a closure for each would cost a tenth of a small frame.
let parkedResolve: Resolve;
let parkedReject: Reject;
const park = (resolve: Resolve, reject: Reject): void => {
  parkedResolve = resolve;
  parkedReject = reject;
};

/** A promise with what settles it; Node 20 has no `Promise.withResolvers`. */
export function deferred<T>(): PromiseWithResolvers<T> {
  let resolve!: PromiseWithResolvers<T>["resolve"];
  let reject!: PromiseWithResolvers<T>["reject"];
  const promise = new Promise<T>((...settle) => [resolve, reject] = settle);
  return { promise, resolve, reject };
}

/** One stream as its session sees it. */
export class StreamCore implements ReceiveWindowHost, ControlSource {
  /** Id on the wire. */
  readonly id: number;
  /** Whether the peer opened it. */
  readonly isRemote: boolean;
  /** The same stream as users hold it. */
  readonly stream: Stream;
  /** Chunks that wait in `writable`, not yet written. */
  queued = 0;
  /** Bytes the application has taken, ever. */
  taken = 0;
  /** Whether the peer ever sent data. */
  hasData = false;
  isQueued = false;
  isUpdateDue = false;
  isFinDue = false;
  /** The session's batch of settled reads in which this stream was last, until it reads again. */
  batch = 0;
  /** Another one of the session's table. */
  neighbour: StreamCore | undefined = undefined;
  readonly #host: StreamHost;

  // What was received and not read. Most streams have nothing: a read waits.
  #chunks: ChunkQueue | undefined;
  // The read that waits: what it fills, how far it has, how it is settled, and how it stops listening to its signal.
  #into: Uint8Array | undefined;
  #filled = 0;
  #resolve: Resolve | undefined;
  #reject: Reject | undefined;
  #unlisten: (() => void) | undefined;
  #isReading = false;
  #readTurns: Channel<void> | undefined;
  #isSettling = false;
  #isDiscarding = false;
  #peerFinished = false;
  readonly #receiveWindow: ReceiveWindow | undefined;

  // Sending.
  readonly #sendWindow: SendWindow | undefined;
  #isWriting = false;
  #writeTurns: Channel<void> | undefined;
  #credit: Channel<void> | undefined;
  // When credit was first missed, after the peer's end, by a write that waits for it.
  #starvedFrom: number | undefined;
  #sender: Sender<PendingFrame> | undefined;
  // The signal of the write under way, if it is ended by `abortWrite`.
  #abortable: AbortSignal | undefined;
  #closingWrite: Promise<void> | undefined;
  // Settles when a FIN that found no room is encoded, or cannot be any more.
  #finQueued: PromiseWithResolvers<void> | undefined;
  #finished = false;
  #wasCut = false;

  #isClosed = false;
  #isDone = false;
  // Make the error of an operation: each gets its own, with the stack of who called.
  #failure: Failure | undefined;
  #writeFailure: (() => Error) | undefined;
  #ending: (() => Error) | undefined;
  #closed: PromiseWithResolvers<void> | undefined;
  // Most streams have none.
  #watchers: Set<() => void> | undefined;

  /**
   * @param host The session.
   * @param id Id on the wire.
   * @param isRemote Whether the peer opened it.
   */
  constructor(host: StreamHost, id: number, isRemote: boolean) {
    this.#host = host;
    this.id = id;
    this.isRemote = isRemote;
    if (host.outgoing.version === 2) {
      this.#sendWindow = new SendWindow();
      this.#receiveWindow = new ReceiveWindow(host.windows, this);
    }
    this.stream = makeStream(this);
  }

  /** Bytes received and not read, charged to the session. */
  get unread(): number {
    return this.#chunks === undefined ? 0 : this.#chunks.length;
  }

  /** Where the two ends are. */
  get link(): Pick<Link, "localAddr" | "remoteAddr"> {
    return this.#host.link;
  }

  /** Whether the peer has ended it, so that it can send no more. */
  get isEndedByPeer(): boolean {
    return this.#peerFinished;
  }

  /** Whether all that the peer sent has arrived, its end included, and none of it was dropped. */
  get isWhole(): boolean {
    return this.#peerFinished && !this.#isClosed && !this.#isDiscarding;
  }

  /**
   * Calls `run` now, and each time when reading or writing has failed for good or the stream was closed here.
   *
   * @returns What stops that.
   */
  watch(run: () => void): () => void {
    (this.#watchers ??= new Set()).add(run);
    run();
    return () => void this.#watchers!.delete(run);
  }

  #report(): void {
    if (this.#watchers !== undefined) { for (const run of this.#watchers) run(); }
  }

  /** Why nothing more can be written, for good; `undefined` while it can, and after `closeWrite`. */
  get writeError(): Error | undefined {
    if (this.#isClosed) return new StreamClosedError("Cannot write to a closed stream");
    if (this.#failure !== undefined) return this.#failure();
    return this.#finished && this.#ending === undefined ? undefined : (this.#writeFailure ?? this.#ending)?.();
  }

  /** Why nothing more can be read, for good; `undefined` while something is unread, and after the peer's end. */
  get readError(): Error | undefined {
    if (this.#isClosed) return new StreamClosedError("Cannot read from a closed stream");
    return this.#peerFinished || this.unread > 0 ? undefined : this.#failure?.();
  }

  onShrunk(): void {
    this.isUpdateDue = true;
    this.#pay();
  }

  // What the session does to a stream.

  /** Tells the peer the first window, where it is smaller than what every peer starts from. */
  announce(): void {
    if (!this.#receiveWindow?.isSmall) return;
    // Whoever accepted it may have closed it at once.
    if (this.#isClosed || this.#failure !== undefined) return;
    this.isUpdateDue = true;
    this.#pay();
  }

  /** Takes data that arrived: the bytes of `buffer` from `start` to before `end`. */
  receive(buffer: ReadBuffer, start: number, end: number): void {
    if (this.#peerFinished || this.#isClosed || this.#failure !== undefined) return;
    const window = this.#receiveWindow;
    window?.arrived(end - start);
    if (this.#isDiscarding) return this.#credited(end - start);
    const into = this.#into;
    if (into !== undefined && this.#filled < into.length) {
      const stop = Math.min(end, start + into.length - this.#filled);
      copy(buffer.bytes, start, stop, into, this.#filled);
      this.#filled += stop - start;
      this.#settleLater();
      if (stop === end) return;
      start = stop;
    } else if (into === NOTHING) {
      this.#settleLater();
    }
    const length = end - start;
    const unread = this.unread + length;
    if (window !== undefined && unread > window.allowed + OVERRUN) {
      const { frameOffset } = this.#host.decoder;
      const received = `${unread} unread bytes on stream ${this.id}`;
      const failure = () =>
        new ProtocolError(frameOffset, `at most ${window.allowed} bytes of credit to be used`, received);
      return this.cut(failure);
    }
    // A chunk that `readable` waits for is copied, so that the buffer of the transport stays in use.
    (this.#chunks ??= new ChunkQueue()).push(buffer, start, end, into === NOTHING);
    this.#host.windows.unread += length;
    if (window?.revoke(unread)) {
      this.isUpdateDue = true;
      this.#pay();
    }
  }

  /** Takes the peer's FIN. */
  receiveFin(): void {
    if (this.#peerFinished || this.#failure !== undefined) return;
    this.#peerFinished = true;
    this.isUpdateDue = false;
    this.#receiveWindow?.close();
    // A writer that waits for credit must now do so against the clock.
    this.#credit?.trySend();
    if (this.#into !== undefined) this.#settleLater();
    if (this.#finished) this.#leave();
  }

  /** Takes a UPD. */
  update(consumed: number, window: number): void {
    const moved = this.#sendWindow!.update(consumed, window);
    if (moved) {
      this.#starvedFrom = undefined;
      this.#credit?.trySend();
    }
    if (moved !== undefined || this.#writeFailure !== undefined) return;
    const { frameOffset } = this.#host.decoder;
    const received = `${consumed} on stream ${this.id}`;
    this.#writeFailure = () => new ProtocolError(frameOffset, "a UPD for bytes that were sent", received);
    this.#credit?.close();
    this.#report();
  }

  /** Settles the read that waits, if it can be. */
  settle(): void {
    this.#isSettling = false;
    if (this.#into === undefined) return;
    const filled = this.#filled;
    if (filled > 0) {
      const resolve = this.#endRead();
      this.#credited(filled);
      resolve(filled);
    } else if (this.#into === NOTHING && this.unread > 0) {
      this.#endRead()(0);
    } else if (this.#peerFinished) {
      this.#endRead()(null);
    } else if (this.#failure !== undefined) {
      const reject = this.#reject!;
      this.#endRead();
      reject(this.#failure());
    }
  }

  get consumed(): number {
    return this.#receiveWindow!.consumed;
  }

  advertise(): number {
    return this.#receiveWindow!.advertise();
  }

  /** The session ends in order: writes that wait for room go, those that wait for credit do not, then FIN. */
  async endWriting(failure: () => Error): Promise<void> {
    this.#ending = failure;
    this.#credit?.close();
    const wasOpen = this.#closingWrite === undefined;
    const closing = this.closeWrite({ isCut: this.queued > 0 });
    if (wasOpen) this.#report();
    try {
      await closing;
    } catch {
      // Without a FIN the peer learns that not all was sent.
    }
  }

  /**
   * The session has ended: what arrived stays readable, all else fails. What waits hears of it by `tell`.
   *
   * @returns Whether it is the first failure.
   */
  fail(failure: Failure): boolean {
    if (this.#failure !== undefined) return false;
    this.#failure = failure;
    this.isUpdateDue = this.isFinDue = false;
    this.#receiveWindow?.close();
    return true;
  }

  /**
   * Settles what waits on a stream that has failed.
   *
   * @returns Whether anything did.
   */
  tell(): boolean {
    const isAwaited = this.#isReading || this.#isWriting || this.#closed !== undefined || this.#watchers !== undefined;
    this.#credit?.close();
    this.#sender?.close();
    this.#finQueued?.resolve();
    this.settle();
    if (!this.#isDone) this.#closed?.reject(this.#failure!());
    this.#report();
    return isAwaited;
  }

  /** Ends both ways, with a FIN and for this reason; the session lives. */
  cut(failure: () => Error): void {
    if (this.#failure !== undefined || this.#isClosed) return;
    this.#drop();
    // Its end may be here, but what stood before it is gone: it must not seem whole.
    this.#peerFinished = this.#isDone = false;
    this.fail(failure);
    this.tell();
    if (this.#finished) return this.#leave();
    this.isFinDue = true;
    this.#pay();
  }

  // What users do to a stream, through `Stream`.

  read(p: Uint8Array, signal: AbortSignal | undefined): Promise<number | null> {
    if (!(p instanceof Uint8Array)) return Promise.reject(notBytes("read into"));
    if (p.length === 0) return Promise.resolve(0);
    if (signal?.aborted) return Promise.reject(signal.reason);
    if (this.#isReading) return this.#readInTurn(p, signal);
    let count;
    try {
      count = this.#poll(p);
    } catch (error) {
      return Promise.reject(error);
    }
    return count === 0 ? this.#park(p, signal) : Promise.resolve(count);
  }

  /** Whether a read is under way. */
  get isReading(): boolean {
    return this.#isReading;
  }

  /** Waits for the next chunk with one buffer for all that comes at once; `null` after the peer's end. */
  async takeLarge(): Promise<Uint8Array | null> {
    const p = new Uint8Array(LARGEST_PULL);
    const count = await this.read(p, undefined);
    if (count === null) return null;
    return count * 2 > p.length ? p.subarray(0, count) : p.slice(0, count);
  }

  /** Calls `ready` when `tryTake` need not wait. */
  whenReady(ready: () => void): void {
    this.#wait(NOTHING, ready, ready);
  }

  /**
   * Takes what has come as a chunk, whose buffer is then the caller's.
   *
   * @returns The chunk; `null` after the peer's end; `undefined` while there is nothing.
   */
  tryTake(): Uint8Array | null | undefined {
    if (this.#isReading) return undefined;
    if (this.#isClosed) throw new StreamClosedError("Cannot read from a closed stream");
    const chunk = this.#chunks?.shift();
    if (chunk === undefined) {
      if (this.#peerFinished) return null;
      if (this.#failure !== undefined) throw this.#failure();
      return undefined;
    }
    this.#host.release(this, chunk.length);
    this.#credited(chunk.length);
    return chunk;
  }

  tryRead(p: Uint8Array): number | null {
    if (!(p instanceof Uint8Array)) throw notBytes("read into");
    if (p.length === 0) throw new RangeError("tryRead needs room for at least 1 byte, received an empty array");
    return this.#isReading ? 0 : this.#poll(p);
  }

  write(p: Uint8Array, signal: AbortSignal | undefined): Promise<number> {
    const written = this.writeNow(p, signal);
    return typeof written === "number" ? Promise.resolve(written) : written;
  }

  /**
   * Writes without a promise where all of `p` finds room at once.
   *
   * @param isListened The caller listens to the signal and calls `abortWrite`: a listener for each write costs much more.
   */
  writeNow(p: Uint8Array, signal: AbortSignal | undefined, isListened = false): Promise<number> | number {
    if (!(p instanceof Uint8Array)) return Promise.reject(notBytes("written"));
    const refusal = this.#refusal();
    if (refusal !== undefined) return Promise.reject(refusal);
    if (p.length === 0) return 0;
    if (signal?.aborted) return Promise.reject(signal.reason);
    if (this.#isWriting) return this.#writeInTurn(p, signal, isListened);
    const count = this.#put(p, 0);
    if (count === p.length) return count;
    this.#isWriting = true;
    return this.#writeRest(p, count, signal, isListened, this.#begun);
  }

  /** Ends the write under way if it was given this signal, which has aborted, and does not listen to it. */
  abortWrite(signal: AbortSignal): void {
    if (this.#abortable !== signal) return;
    this.#sender?.close();
    this.#credit?.close();
    this.#sender = this.#credit = undefined;
  }

  tryWrite(p: Uint8Array): number {
    if (!(p instanceof Uint8Array)) throw notBytes("written");
    const refusal = this.#refusal();
    if (refusal !== undefined) throw refusal;
    return this.#isWriting ? 0 : this.#put(p, 0);
  }

  /**
   * Ends writing.
   *
   * @param options For an end that is not in order: `isCut` says that something is lost that the application has written,
   * so that no FIN may leave; `isAborted` that FIN leaves even when writes have failed.
   */
  closeWrite(options: { isCut?: boolean; isAborted?: boolean } = {}): Promise<void> {
    let closing = this.#closingWrite;
    if (closing !== undefined) return closing;
    if (this.#isClosed) return Promise.resolve();
    if (this.#failure !== undefined) closing = Promise.reject(this.#failure());
    else closing = this.#closingWrite = this.#closeWriteInTurn(options);
    // Later writes and `closed` tell of it too; a caller who does not await this one has chosen not to know.
    closing.catch(() => {});
    return closing;
  }

  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#drop();
    this.#receiveWindow?.close();
    this.isUpdateDue = false;
    if (this.#into !== undefined) {
      const reject = this.#reject!;
      this.#endRead();
      reject(new StreamClosedError("Cannot read from a closed stream"));
    }
    this.#credit?.close();
    this.#sender?.close();
    this.#done();
    if (this.#failure === undefined) {
      if (this.#finished) {
        this.#leave();
      } else {
        this.isFinDue = true;
        this.#pay();
      }
    }
    this.#report();
  }

  get closed(): Promise<void> {
    if (this.#closed === undefined) {
      this.#closed = deferred();
      this.#closed.promise.catch(() => {});
      if (this.#isDone) this.#closed.resolve();
      else if (this.#failure !== undefined) this.#closed.reject(this.#failure());
    }
    return this.#closed.promise;
  }

  /** Drops what is unread and what will arrive, as if it had been read. */
  discard(): void {
    this.#isDiscarding = true;
    if (this.#filled > 0) this.settle();
    if (this.#into !== undefined) this.#endRead()(0);
    this.#credited(this.#drop());
  }

  // Reading.

  /** Bytes now, `null` at the end, 0 if it must wait. */
  #poll(p: Uint8Array): number | null {
    if (this.#isClosed) throw new StreamClosedError("Cannot read from a closed stream");
    const count = this.#chunks === undefined ? 0 : this.#chunks.read(p);
    if (count > 0) {
      this.#host.release(this, count);
      this.#credited(count);
      return count;
    }
    if (this.#peerFinished) return null;
    if (this.#failure !== undefined) throw this.#failure();
    return 0;
  }

  #wait(p: Uint8Array, resolve: Resolve, reject: Reject): void {
    this.#isReading = true;
    this.#into = p;
    this.#filled = 0;
    this.#resolve = resolve;
    this.#reject = reject;
    if (this.batch !== 0) this.#host.waits(this);
  }

  #park(p: Uint8Array, signal: AbortSignal | undefined): Promise<number | null> {
    const promise = new Promise<number | null>(park);
    this.#wait(p, parkedResolve, parkedReject);
    // As `null`, too, it is none.
    if (signal) {
      const reject = parkedReject;
      const abort = () => {
        // What came with the rest of its batch is not taken back.
        if (this.#filled > 0) return this.settle();
        this.#endRead();
        reject(signal.reason);
      };
      signal.addEventListener("abort", abort);
      this.#unlisten = () => signal.removeEventListener("abort", abort);
    }
    return promise;
  }

  async #readInTurn(p: Uint8Array, signal: AbortSignal | undefined): Promise<number | null> {
    await (this.#readTurns ??= new Channel()).receive({ signal });
    let count: number | null = 0;
    try {
      signal?.throwIfAborted();
      count = this.#poll(p);
    } catch (error) {
      this.#passRead();
      throw error;
    }
    if (count === 0) return this.#park(p, signal);
    this.#passRead();
    return count;
  }

  #endRead(): Resolve {
    const resolve = this.#resolve!;
    this.#into = this.#resolve = this.#reject = undefined;
    if (this.#unlisten !== undefined) {
      this.#unlisten();
      this.#unlisten = undefined;
    }
    this.#passRead();
    return resolve;
  }

  #passRead(): void {
    this.#isReading = this.#readTurns?.trySend() ?? false;
  }

  #settleLater(): void {
    if (this.#isSettling) return;
    this.#isSettling = true;
    this.#host.settleLater(this);
  }

  /** Counts bytes the application has taken, and tells the peer where that is due. */
  #credited(count: number): void {
    this.taken += count;
    if (count === 0 || !this.#receiveWindow?.read(count, this.unread)) return;
    this.isUpdateDue = true;
    this.#pay();
  }

  /** Drops what is unread, gives its budget back, and says how much it was. */
  #drop(): number {
    const count = this.#chunks?.clear() ?? 0;
    if (count > 0) this.#host.release(this, count);
    return count;
  }

  // Writing.

  /** Why no write may begin. */
  #refusal(): Error | undefined {
    const isEnded = this.#isClosed || (this.#closingWrite !== undefined && this.#ending === undefined);
    return this.#makeWriteError(0, isEnded);
  }

  /** The error of a write of which this many bytes were taken; `undefined` if nothing prevents writing. */
  #makeWriteError(bytesWritten: number, isEnded = this.#isClosed): Error | undefined {
    const error = isEnded
      ? new StreamClosedError("Cannot write to a closed stream")
      : this.#failure?.(bytesWritten) ?? (this.#writeFailure ?? this.#ending)?.();
    return error && Object.assign(error, { bytesWritten });
  }

  /** Bytes that may go into the next frame. */
  #allowance(wanted: number): number {
    const { maxFrameSize } = this.#host;
    if (wanted > maxFrameSize) wanted = maxFrameSize;
    return this.#sendWindow === undefined ? wanted : Math.min(wanted, this.#sendWindow.credit);
  }

  /** Encodes what can go at once, from `at` on, and says up to where that was. */
  #put(p: Uint8Array, at: number): number {
    while (at < p.length) {
      const count = this.#allowance(p.length - at);
      if (count === 0 || !this.#host.outgoing.tryFrame(PSH, this.id, p, at, at + count)) break;
      this.#sendWindow?.spend(count);
      at += count;
    }
    return at;
  }

  async #writeInTurn(p: Uint8Array, signal: AbortSignal | undefined, isListened: boolean): Promise<number> {
    const begun = this.#begun;
    await (this.#writeTurns ??= new Channel()).receive({ signal });
    return this.#writeRest(p, 0, signal, isListened, begun);
  }

  /** When a write begins, if that may matter: only after the peer's end there is a limit to its wait for credit. */
  get #begun(): number {
    return this.#peerFinished ? clock.now() : 0;
  }

  /** Writes from `at` on, one frame a turn; the write's turn is held, and passed on at the end. */
  async #writeRest(
    p: Uint8Array,
    at: number,
    signal: AbortSignal | undefined,
    isListened: boolean,
    begun: number,
  ): Promise<number> {
    const limit = isListened ? undefined : signal;
    if (isListened) this.#abortable = signal;
    try {
      while (at < p.length && !this.#cannotSend) {
        signal?.throwIfAborted();
        const count = this.#allowance(p.length - at);
        if (count === 0) {
          if (this.#ending !== undefined) break;
          await this.#waitForCredit(limit, begun);
          continue;
        }
        await this.#send(p, at, at + count, limit);
        this.#sendWindow?.spend(count);
        at += count;
      }
      if (at === p.length) return at;
    } catch (error) {
      const isAborted = signal?.aborted &&
        (Object.is(error, signal.reason) || (isListened && error instanceof ChannelClosedError));
      if (isAborted && at > 0) return at;
      if (isAborted) throw signal.reason;
      // Whatever closed the channel that was waited on says below why; what is left is a wait that took too long.
      if (!(error instanceof ChannelClosedError)) {
        const message = `The peer gave no credit for ${this.#host.timeout} ms after its end`;
        throw Object.assign(new DOMException(message, "TimeoutError"), { bytesWritten: at });
      }
    } finally {
      // Nothing may follow a write that the session's end cut, not even FIN: the peer would take it for whole.
      if (at < p.length && this.#ending !== undefined) this.#wasCut = true;
      this.#abortable = undefined;
      this.#passWrite();
    }
    throw this.#makeWriteError(at);
  }

  get #cannotSend(): boolean {
    return this.#isClosed || this.#wasCut || this.#failure !== undefined || this.#writeFailure !== undefined;
  }

  async #waitForCredit(signal: AbortSignal | undefined, begun: number): Promise<void> {
    const credit = this.#credit ??= new Channel();
    if (!this.#peerFinished) return await credit.receive({ signal });
    // After its FIN a peer may be gone for good, and smux has no way to tell. Who waited behind another has waited too.
    const { timeout } = this.#host;
    let now = clock.now();
    let since = this.#starvedFrom ??= now;
    for (let isExcused = false;; isExcused = true) {
      const due = Math.max(now, Math.max(begun, since) + timeout);
      try {
        return await credit.receive({ signal, timeout: due - now });
      } catch (error) {
        now = clock.now();
        const isLate = now - due > LATE && !isExcused;
        if (!isLate || signal?.aborted || error instanceof ChannelClosedError) throw error;
        // Credit came with this very turn.
        if (this.#starvedFrom === undefined) return;
        since = this.#starvedFrom = excuse(Math.max(begun, since), now - due, now, timeout);
      }
    }
  }

  /** Encodes a frame of data, or waits until there is room for it. */
  #send(p: Uint8Array, start: number, end: number, signal: AbortSignal | undefined): Promise<void> | undefined {
    const { outgoing } = this.#host;
    if (outgoing.tryFrame(PSH, this.id, p, start, end)) return undefined;
    return outgoing.send(new PendingFrame(PSH, this.id, p, start, end), this.#sender ??= outgoing.openSender(), signal);
  }

  async #closeWriteInTurn({ isCut, isAborted }: { isCut?: boolean; isAborted?: boolean }): Promise<void> {
    if (this.#isWriting) await (this.#writeTurns ??= new Channel()).receive();
    this.#isWriting = true;
    if (isCut) this.#wasCut = true;
    try {
      if (this.#failure !== undefined) throw this.#failure();
      if (this.#writeFailure !== undefined && !isAborted) throw this.#writeFailure();
      if (this.#wasCut) throw this.#ending!();
      if (this.#isClosed) return;
      this.isFinDue = true;
      this.#pay();
      if (this.isFinDue) await (this.#finQueued = deferred()).promise;
      if (!this.#finished) throw this.#failure!();
    } catch (error) {
      if (this.#isClosed) return;
      throw error;
    } finally {
      this.#passWrite();
    }
  }

  #passWrite(): void {
    this.#isWriting = this.#writeTurns?.trySend() ?? false;
  }

  /** Our FIN is in the buffer, behind all our data. */
  finEncoded(): void {
    this.#finished = true;
    this.#finQueued?.resolve();
    this.#sender?.close();
    if (this.#peerFinished || this.#isClosed || this.#failure !== undefined) this.#leave();
  }

  #leave(): void {
    this.#host.forget(this);
    this.#done();
  }

  #done(): void {
    // Of a failure `tell` tells, which may be still to come.
    if (this.#failure !== undefined) return;
    this.#isDone = true;
    this.#closed?.resolve();
  }

  #pay(): void {
    this.#host.outgoing.queueControl(this);
  }
}

let makeStream: (core: StreamCore) => Stream;

/** The stream as its session sees it. */
export let coreOf: (stream: Stream) => StreamCore;

/**
 * One of the many byte streams of a {@linkcode Session}.
 *
 * It is read and written as a `Deno.Conn` is, and can go wherever one goes: `read` and `write` for speed, `readable`
 * and `writable` for what speaks web streams, `tryRead` and `tryWrite` for what must not wait. The two directions end
 * on their own: {@linkcode Stream.closeWrite} ends ours, and `null` from {@linkcode Stream.read} is the peer's end.
 *
 * smux cannot say why a stream ended: refusal, `close()` in the middle and an abort all reach the peer as the same
 * end. A protocol that must know that all has arrived carries its own length.
 *
 * A stream stays open until it has ended both ways, is closed, or its session ends. Dropping every reference to it does
 * not close it, and does not stop a pipe.
 *
 * @example From one end to the other
 * ```ts
 * import { Session } from "@sluice/smux";
 * import { assertEquals } from "@std/assert";
 * import { toText } from "@std/streams";
 *
 * const listener = Deno.listen({ port: 0 });
 * const client = Session.client(await Deno.connect({ port: listener.addr.port }));
 * const server = Session.server(await listener.accept());
 *
 * const stream = await client.openStream();
 * await stream.write(new TextEncoder().encode("hello"));
 * await stream.closeWrite();
 *
 * const accepted = await server.acceptStream();
 * assertEquals(await toText(accepted.readable), "hello");
 *
 * await client.close();
 * await server.closed;
 * listener.close();
 * ```
 */
export class Stream {
  readonly #core: StreamCore;
  #readable: ReadableStream<Uint8Array<ArrayBuffer>> | undefined;
  #writable: WritableStream<Uint8Array> | undefined;

  static {
    makeStream = (core) => new Stream(core);
    coreOf = (stream) => stream.#core;
  }

  private constructor(core: StreamCore) {
    this.#core = core;
  }

  /** The stream's id on the wire: odd when the client opened it, even when the server did. */
  get id(): number {
    return this.#core.id;
  }

  /** Where this end of the connection is. */
  get localAddr(): Address {
    return this.#core.link.localAddr;
  }

  /** Where the other end of the connection is. */
  get remoteAddr(): Address {
    return this.#core.link.remoteAddr;
  }

  /**
   * Reads what has arrived, or waits until something has. Reads at the same time are served in the order of the calls.
   *
   * `p` belongs to the stream until the promise settles. What arrived before the session ended stays readable.
   *
   * @param p Where the bytes go.
   * @param options A signal to give up with.
   * @returns How many bytes, at most `p.length`; `null` after the peer's end, and only then. 0 for an empty `p`, at once.
   * @throws {SessionClosedError} The session ended before the peer ended this stream.
   * @throws {StreamClosedError} The stream was closed here.
   * @throws {ProtocolError} The peer sent more than it had credit for.
   *
   * @example Up to a mark
   * ```ts
   * import { Session } from "@sluice/smux";
   * import { assertEquals } from "@std/assert";
   * import { concat, indexOfNeedle } from "@std/bytes";
   *
   * const listener = Deno.listen({ port: 0 });
   * await using client = Session.client(await Deno.connect({ port: listener.addr.port }));
   * await using server = Session.server(await listener.accept());
   * const [from, to] = await Promise.all([client.openStream(), server.acceptStream()]);
   * for (const part of ["HTTP/1.1 200 OK\r", "\n\r\nhello"]) await to.write(new TextEncoder().encode(part));
   *
   * // What one write sent may come in several reads, and what several did in one.
   * const mark = new TextEncoder().encode("\r\n\r\n");
   * let head = new Uint8Array(0);
   * for (const p = new Uint8Array(1024); indexOfNeedle(head, mark) === -1;) {
   *   const count = await from.read(p);
   *   if (count === null) throw new Error("It ended too soon");
   *   head = concat([head, p.subarray(0, count)]);
   * }
   * assertEquals(indexOfNeedle(head, mark), "HTTP/1.1 200 OK".length);
   * listener.close();
   * ```
   */
  read(p: Uint8Array, options?: StreamOperationOptions): Promise<number | null> {
    return this.#core.read(p, options?.signal);
  }

  /**
   * Reads what has arrived, at once.
   *
   * @param p Where the bytes go, at least one.
   * @returns How many bytes; 0 when there are none now or another read waits; `null` after the peer's end.
   * @throws {RangeError} `p` is empty.
   * @throws As {@linkcode Stream.read} rejects.
   */
  tryRead(p: Uint8Array): number | null {
    return this.#core.tryRead(p);
  }

  /**
   * Writes all of `p`. Writes at the same time leave whole, in the order of the calls.
   *
   * It fulfils when the bytes are in the session's buffer, on their way but not yet delivered; until then `p` belongs
   * to the stream. Nothing is sent for an empty `p`.
   *
   * @param p What to write.
   * @param options A signal to give up with.
   * @returns `p.length`, or fewer if the signal aborted when some bytes had been taken.
   * @throws {SessionClosedError} The session ended; `bytesWritten` says how many bytes were taken before.
   * @throws {StreamClosedError} The stream, or its writing half, was closed here.
   * @throws {ProtocolError} The peer acknowledged more than was sent.
   * @throws {DOMException} "TimeoutError": in version 2, the peer has ended its half and gave no credit for
   * the session's `timeout`.
   *
   * @example Writes at the same time
   * ```ts
   * import { Session } from "@sluice/smux";
   * import { assert } from "@std/assert";
   * import { concat, equals } from "@std/bytes";
   * import { toArrayBuffer } from "@std/streams";
   *
   * const listener = Deno.listen({ port: 0 });
   * await using client = Session.client(await Deno.connect({ port: listener.addr.port }));
   * await using server = Session.server(await listener.accept());
   * const [from, to] = await Promise.all([client.openStream(), server.acceptStream()]);
   *
   * const parts = [1, 2, 3].map((n) => new Uint8Array(100_000).fill(n));
   * const written = Promise.all([...parts.map((part) => from.write(part)), from.closeWrite()]);
   * const received = new Uint8Array(await toArrayBuffer(to.readable));
   * assert(equals(received, concat(parts))); // none is mixed with another
   * await written;
   * listener.close();
   * ```
   */
  write(p: Uint8Array, options?: StreamOperationOptions): Promise<number> {
    return this.#core.write(p, options?.signal);
  }

  /**
   * Writes as much of `p` as can be taken at once.
   *
   * @param p What to write.
   * @returns How many bytes were taken; 0 when it would have to wait, or another write does.
   * @throws As {@linkcode Stream.write} rejects.
   *
   * @example Leaving out what a slow peer cannot take
   * ```ts
   * import { Session } from "@sluice/smux";
   * import { assertEquals, assertGreater } from "@std/assert";
   *
   * const session = Session.client({ readable: new ReadableStream(), writable: new WritableStream() });
   * const stream = await session.openStream();
   * const sample = new Uint8Array(1000);
   * let taken = 0;
   * for (let n = 0; n < 10_000; n++) {
   *   if (stream.tryWrite(sample) < sample.length) break; // what was taken of it will leave
   *   taken++;
   * }
   * assertGreater(taken, 0);
   * assertEquals(stream.tryWrite(sample), 0);
   * session.abort();
   * ```
   */
  tryWrite(p: Uint8Array): number {
    return this.#core.tryWrite(p);
  }

  /**
   * What arrives, as a stream of bytes that reads nothing ahead. Cancelling it drops what is unread and what still
   * arrives; writing goes on. When the session is lost, it fails after what is unread has been read.
   *
   * @example Lines of two streams at once
   * ```ts
   * import { serve, Session } from "@sluice/smux";
   * import { assertEquals } from "@std/assert";
   * import { mergeReadableStreams, TextLineStream } from "@std/streams";
   *
   * const listener = Deno.listen({ port: 0 });
   * const server = serve(listener, async (stream) => {
   *   await stream.write(new TextEncoder().encode(`${stream.id}: one\n${stream.id}: two\n`));
   * });
   *
   * await using session = Session.client(await Deno.connect({ port: listener.addr.port }));
   * const logs = [await session.openStream(), await session.openStream()].map(({ readable }) =>
   *   readable.pipeThrough(new TextDecoderStream()).pipeThrough(new TextLineStream())
   * );
   * const lines = await Array.fromAsync(mergeReadableStreams(...logs));
   * assertEquals(lines.sort(), ["3: one", "3: two", "5: one", "5: two"]);
   * await session.close();
   * await server.shutdown();
   * ```
   */
  get readable(): ReadableStream<Uint8Array<ArrayBuffer>> {
    return this.#readable ??= makeReadable(this.#core);
  }

  /**
   * What is sent, as a stream. Closing it is {@linkcode Stream.closeWrite}; so is aborting it, after what was written, and
   * so is a chunk that cannot be written. When the session is lost or the stream is closed, it fails at once, so that a
   * pipe into it ends although its source is idle.
   *
   * @example Sending what another stream gives
   * ```ts
   * import { Session } from "@sluice/smux";
   * import { assertEquals } from "@std/assert";
   * import { toText } from "@std/streams";
   *
   * const listener = Deno.listen({ port: 0 });
   * await using client = Session.client(await Deno.connect({ port: listener.addr.port }));
   * await using server = Session.server(await listener.accept());
   * const [from, to] = await Promise.all([client.openStream(), server.acceptStream()]);
   *
   * const verses = ReadableStream.from(["half a league, ", "half a league"]);
   * const sent = verses.pipeThrough(new TextEncoderStream()).pipeTo(from.writable);
   * assertEquals(await toText(to.readable), "half a league, half a league");
   * await sent;
   * listener.close();
   * ```
   */
  get writable(): WritableStream<Uint8Array> {
    return this.#writable ??= makeWritable(this.#core);
  }

  /**
   * Ends writing: writes that wait are finished, then the peer is told. Reading goes on.
   *
   * @returns Fulfils when the end is in the session's buffer; the same promise each time.
   * @throws {SessionClosedError} The session ended before.
   */
  closeWrite(): Promise<void> {
    return this.#core.closeWrite();
  }

  /**
   * Ends both directions at once: what waits rejects, what is unread is dropped, what was taken still leaves, and the
   * peer is told unless it was. Closing again does nothing.
   */
  close(): void {
    this.#core.close();
  }

  /**
   * Fulfils when the stream has ended both ways or was closed here; rejects with the error that ended it otherwise.
   * Ignoring it is safe.
   */
  get closed(): Promise<void> {
    return this.#core.closed;
  }

  /** Does nothing: the connection is shared. See {@linkcode Session.ref}. */
  ref(): void {}

  /** Does nothing: the connection is shared. See {@linkcode Session.unref}. */
  unref(): void {}

  /** Closes the stream. */
  [Symbol.dispose](): void {
    this.close();
  }

  /** Ends writing in order, then closes the stream. */
  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.closeWrite();
    } finally {
      this.close();
    }
  }
}

function makeReadable(core: StreamCore): ReadableStream<Uint8Array<ArrayBuffer>> {
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
      const chunk = core.tryTake();
      if (chunk !== undefined) return give(chunk);
    } catch (error) {
      return controller.error(error);
    }
    isPulling = true;
    const isLarge = came > LARGE_BATCH;
    came = 0;
    // Behind another read it is served as one.
    if (isLarge || core.isReading) core.takeLarge().then(give).catch(fail);
    else core.whenReady(ready);
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
    core.read(p, undefined).then((count) => {
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
      core.watch(() => {
        if (isPulling || controller.desiredSize !== 0) return;
        const error = core.readError;
        if (error !== undefined) controller.error(error);
      });
    },
    pull,
    cancel() {
      isCancelled = true;
      core.discard();
    },
  }, { highWaterMark: 0 });
}

function makeWritable(core: StreamCore): WritableStream<Uint8Array> {
  const abort = () => core.closeWrite({ isAborted: true });

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
      signal.addEventListener("abort", () => core.abortWrite(signal));
      // A pipe that has nothing to write would not notice.
      core.watch(() => {
        const error = core.writeError;
        if (error === undefined) return;
        controller.error(error);
        abort();
      });
    },
    write(chunk, controller) {
      core.queued--;
      const written = core.writeNow(chunk, controller.signal, true);
      // A promise costs more than a small chunk.
      return typeof written === "number" ? undefined : finish(written, chunk.length, controller.signal);
    },
    close: () => core.closeWrite(),
    abort,
  }, {
    highWaterMark: 1,
    size() {
      core.queued++;
      return 1;
    },
  });
}

function notBytes(what: string): TypeError {
  return new TypeError(`Only a Uint8Array can be ${what}`);
}
