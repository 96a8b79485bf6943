/**
 * The sending half of a stream: writes in the order of the calls, the credit that they need, and the FIN after them.
 *
 * @module
 */

import { deferred } from "./_deferred.ts";
import { invalidSignal } from "./_describe.ts";
import { Gate } from "./_gate.ts";
import { notBytes, shrunk } from "./_receive_half.ts";
import { PendingFrame } from "./_writer.ts";
import { ChannelClosedError, type Sender } from "./channel.ts";
import { clock, excuse, TIMER_LAG_MS } from "./_clock.ts";
import { StreamClosedError } from "./errors.ts";
import { type Command, EMPTY_BYTES, ProtocolError, PSH, SYN } from "./frame.ts";
import { SendWindow } from "./_window.ts";

/**
 * Creates the error of a failed stream, or returns the reason of its abort. A write passes the number of its encoded
 * bytes, also if it is 0.
 */
export type Failure = (bytesWritten?: number) => unknown;

/** Output for the frames of the half. */
export interface FrameOutput {
  /** Encodes a frame if there is room. */
  tryFrame(command: Command, id: number, bytes: Uint8Array, start: number, end: number): boolean;
  /** Writes frames that have waited long enough. */
  flushOverdue(): void;
  /** Returns a handle for frames that wait for room. */
  openSender(): Sender<PendingFrame>;
  /** Waits until a frame is encoded or, at the end of the session, taken back. */
  enqueue(frame: PendingFrame, sender: Sender<PendingFrame>, signal: AbortSignal | undefined): Promise<void>;
  /** Waits until a frame is encoded; rejects when it is not. */
  send(frame: PendingFrame, sender: Sender<PendingFrame>, signal: AbortSignal | undefined): Promise<void>;
}

/** What the half needs from its stream. */
export interface SendHost {
  /** Id on the wire. */
  readonly id: number;
  /** Maximum payload of one frame, in bytes. */
  readonly maxFrameSize: number;
  /** Milliseconds that a write waits for credit after the peer's FIN. */
  readonly timeout: number;
  /** The connection: whether it waits for another one below, and how often that was replaced. */
  readonly link: { readonly isSuspended: boolean; readonly resumptions: number };
  /** Position of the frame that is being received, for errors. */
  readonly frameOffset: number;
  /** Encodes the frames. */
  readonly output: FrameOutput;
  /** Whether the stream was closed by `close()`. */
  readonly isClosed: boolean;
  /** Whether the stream was aborted by `abort()`. */
  readonly isAborted: boolean;
  /** Whether the peer's FIN has arrived. */
  readonly isEndedByPeer: boolean;
  /** Creates the error of an operation, after the stream has failed. */
  readonly failure: Failure | undefined;
  /** Returns a function that also notes that the application has received the error. */
  reported<T>(failure: (bytesWritten?: number) => T): (bytesWritten?: number) => T;
  /** Queues a FIN. */
  queueFin(): void;
  /** Called when writing has failed for good. */
  report(): void;
}

/** How writing ends. */
export interface EndOptions {
  /** Whether `writable` passes on no further chunk. */
  isLast?: boolean;
  /** Whether FIN is sent even if writes have failed. */
  isAborted?: boolean;
}

/**
 * State of the half, by what may still be sent:
 *
 * - `open`: data;
 * - `closing`: data written before `closeWrite()`, also to `writable`, then FIN;
 * - `ending`: the same without waiting for credit, because the session is closing;
 * - `cut`: nothing, because the end of the session has cut a write, which a FIN would make look complete;
 * - `failed`: only FIN, if writing is aborted: the peer has violated the rules of credit;
 * - `finished`: nothing, because FIN is encoded.
 */
type State = "open" | "closing" | "ending" | "cut" | "failed" | "finished";

/**
 * The waits of the writes of one stream. Created, like its fields, on first use, because thousands of writes may wait.
 */
class Waiting {
  /** The queue of the lock of writing. */
  queue: Gate | undefined = undefined;
  /** The wait for credit. Replaced when the write that waits for it is aborted. */
  credit: Gate | undefined = undefined;
  /** When credit was first missing after the peer's FIN. */
  starvedFrom: number | undefined = undefined;
  /** The handle of frames that wait for room. */
  sender: Sender<PendingFrame> | undefined = undefined;
  /** The signal of the pending write, if `abortWrite` aborts it. */
  abortable: AbortSignal | undefined = undefined;
  /** Resolves when `closeWrite` need not wait for chunks of `writable` any more. */
  chunksPassed: PromiseWithResolvers<void> | undefined = undefined;
  /** Settles when a FIN that found no room is encoded or dropped. */
  finQueued: PromiseWithResolvers<void> | undefined = undefined;

  /** Ends the waits for credit and for room. */
  close(): void {
    this.credit?.close();
    this.sender?.close();
  }
}

/** The sending half of one stream. */
export class SendHalf {
  /** Number of chunks in the queue of `writable`, and of those that it refused after its `close`. */
  queued = 0;
  readonly #stream: SendHost;
  // In version 2.
  readonly #window: SendWindow | undefined;
  #state: State = "open";
  // Creates the error of a write, after a failure of this half or a graceful close of the session.
  #refusal: (() => Error) | undefined;
  // Whether the lock of writing is held.
  #isWriting = false;
  #waiting: Waiting | undefined;
  #closing: Promise<void> | undefined;
  // Number of chunks that were in the queue of `writable` when `closeWrite` was called, and still are.
  #due = 0;
  // Whether such a chunk came after a graceful close of the session, so that no FIN may be sent.
  #isCut = false;

  /**
   * @param stream The stream.
   * @param needsCredit Whether the peer grants credit, as in version 2.
   */
  constructor(stream: SendHost, needsCredit: boolean) {
    this.#stream = stream;
    this.#window = needsCredit ? new SendWindow() : undefined;
  }

  /** Whether FIN is encoded. */
  get isFinished(): boolean {
    return this.#state === "finished";
  }

  /** Whether a write is pending. */
  get isWriting(): boolean {
    return this.#isWriting;
  }

  /** The error of all further writes; `undefined` while writing is possible, and after `closeWrite`. */
  get error(): unknown {
    if (this.#stream.isClosed) return new StreamClosedError("Cannot write to a closed stream");
    const { failure } = this.#stream;
    return failure !== undefined ? failure() : this.#refusal?.();
  }

  // Called by the session.

  /** Receives a UPD. */
  update(consumed: number, window: number): void {
    const change = this.#window!.update(consumed, window);
    const waiting = this.#waiting;
    if (change === "moved" && waiting !== undefined) {
      waiting.starvedFrom = undefined;
      waiting.credit?.notifyOne();
    }
    if (change !== "invalid") return;
    if (this.#state !== "open" && this.#state !== "closing" && this.#state !== "ending") return;
    const { frameOffset, id } = this.#stream;
    this.#state = "failed";
    const refusal = () =>
      new ProtocolError(frameOffset, "a UPD for bytes that were sent", `${consumed} on stream ${id}`);
    this.#refusal = this.#stream.reported(refusal);
    waiting?.credit?.close();
    this.#stream.report();
  }

  /** Called after the peer's FIN: from now on a write that waits for credit has a timeout. */
  peerEnded(): void {
    this.#waiting?.credit?.notifyOne();
  }

  /** Called when FIN is encoded, after all data. */
  finish(): void {
    this.#state = "finished";
    this.#waiting?.finQueued?.resolve();
    this.#waiting?.sender?.close();
  }

  /**
   * Ends writing for a graceful close: writes that wait for room finish, those that wait for credit reject, then FIN.
   */
  async end(failure: () => Error): Promise<void> {
    this.#refusal ??= this.#stream.reported(failure);
    if (this.#state === "open" || this.#state === "closing") this.#state = "ending";
    this.#waiting?.credit?.close();
    const wasOpen = this.#closing === undefined;
    try {
      // `writable` passes on the next chunk, which is refused, or its end, whatever `queued` counts.
      await this.closeWrite();
    } catch {
      // No FIN, so that the peer's read rejects instead of ending.
    }
    // An end that waits behind the last chunk comes first, and succeeds.
    if (wasOpen) clock.pass(() => this.#stream.report());
  }

  /** Settles pending operations, after the stream has failed or was closed. */
  releaseWaiters(): void {
    this.#waiting?.close();
    if (this.#stream.failure !== undefined) this.#waiting?.finQueued?.resolve();
  }

  // Writing.

  /**
   * Encodes SYN, or waits until there is room for it.
   *
   * @throws {ChannelClosedError} The session has ended.
   */
  open(signal: AbortSignal | undefined): Promise<void> | undefined {
    const { output, id } = this.#stream;
    if (output.tryFrame(SYN, id, EMPTY_BYTES, 0, 0)) return undefined;
    // The lock is held, so that no FIN overtakes the SYN.
    this.#isWriting = true;
    const waiting = this.#waiting = new Waiting();
    waiting.sender = output.openSender();
    return output.send(new PendingFrame(SYN, id, EMPTY_BYTES, 0, 0), waiting.sender, signal)
      .finally(() => this.#unlock());
  }

  /**
   * Implements `Stream.write`. Returns a number instead of a promise if all of `p` is encoded at once.
   *
   * @param isListened Whether the caller is `writable`, which listens to the signal and calls `abortWrite`. A listener
   *   per write is slower.
   */
  write(p: Uint8Array, signal: AbortSignal | undefined, isListened = false): Promise<number> | number {
    if (!(p instanceof Uint8Array)) return Promise.reject(notBytes(p));
    const wasDue = isListened && this.#passDue();
    const refusal = this.#refuse(wasDue) ?? invalidSignal(signal);
    if (wasDue && this.#state === "ending") this.#isCut = true;
    if (refusal !== undefined) return Promise.reject(refusal);
    if (p.length === 0) return 0;
    if (signal?.aborted) return Promise.reject(signal.reason);
    if (this.#isWriting) return this.#writeInTurn(p, signal, isListened);
    const count = this.#encode(p, 0);
    if (count === p.length) {
      this.#stream.output.flushOverdue();
      return count;
    }
    this.#isWriting = true;
    return this.#writeRest(p, p.length, count, signal, isListened, this.#begun);
  }

  /** Implements `Stream.tryWrite`. */
  tryWrite(p: Uint8Array): number {
    if (!(p instanceof Uint8Array)) throw notBytes(p);
    const refusal = this.#refuse();
    if (refusal !== undefined) throw refusal;
    if (this.#isWriting) return 0;
    const count = this.#encode(p, 0);
    this.#stream.output.flushOverdue();
    return count;
  }

  /** Aborts the pending write, if it was called with this signal and `isListened`. */
  abortWrite(signal: AbortSignal): void {
    const waiting = this.#waiting;
    if (waiting === undefined || waiting.abortable !== signal) return;
    waiting.close();
    waiting.sender = waiting.credit = undefined;
  }

  /** Implements `Stream.closeWrite`. */
  closeWrite({ isLast = false, isAborted = false }: EndOptions = {}): Promise<void> {
    if (isLast) {
      this.#due = 0;
      this.#waiting?.chunksPassed?.resolve();
    }
    let closing = this.#closing;
    if (closing !== undefined) return closing;
    if (this.#stream.isClosed) return Promise.resolve();
    const { failure } = this.#stream;
    if (failure !== undefined) {
      closing = Promise.reject(failure());
    } else {
      if (!isLast) this.#due = this.queued;
      closing = this.#closing = this.#closeInTurn(isAborted);
    }
    // The caller need not await the promise: later writes and `closed` report the error, too.
    closing.catch(() => {});
    return closing;
  }

  /** Returns whether the next chunk of `writable` was queued before `closeWrite`, and removes it from those due. */
  #passDue(): boolean {
    if (this.#due === 0) return false;
    if (--this.#due === 0) this.#waiting?.chunksPassed?.resolve();
    return true;
  }

  /** Returns the error of a new write; `undefined` if writing is possible, which it is for a chunk that was due. */
  #refuse(wasDue = false): unknown {
    const isClosing = this.#closing !== undefined && this.#refusal === undefined && !wasDue;
    return this.#makeError(0, isClosing || this.#stream.isClosed);
  }

  /** Returns the error of a write with `bytesWritten` encoded bytes; `undefined` if writing is possible. */
  #makeError(bytesWritten: number, isClosed: boolean): unknown {
    const { failure, isAborted } = this.#stream;
    // The reason of an abort belongs to the caller.
    if (isAborted && !isClosed) return failure!();
    const error = isClosed
      ? new StreamClosedError("Cannot write to a closed stream")
      : failure !== undefined
      ? failure(bytesWritten)
      : this.#refusal?.();
    return error === undefined ? undefined : Object.assign(error as Error, { bytesWritten });
  }

  /** Returns the number of bytes for the next frame, 0 without credit. */
  #allowance(wanted: number): number {
    const { maxFrameSize } = this.#stream;
    if (wanted > maxFrameSize) wanted = maxFrameSize;
    return this.#window === undefined ? wanted : Math.min(wanted, this.#window.credit);
  }

  /** Encodes bytes from `at` on while there is room and credit. Returns the position after the last encoded byte. */
  #encode(p: Uint8Array, at: number): number {
    const { output, id } = this.#stream;
    while (at < p.length) {
      const count = this.#allowance(p.length - at);
      if (count === 0 || !output.tryFrame(PSH, id, p, at, at + count)) break;
      this.#window?.spend(count);
      at += count;
    }
    return at;
  }

  async #writeInTurn(p: Uint8Array, signal: AbortSignal | undefined, isListened: boolean): Promise<number> {
    const begun = this.#begun;
    const { length } = p;
    await this.#lockQueue.wait({ signal });
    return this.#writeRest(p, length, 0, signal, isListened, begun);
  }

  /** The start of a write, or 0 before the peer's FIN, when the wait for credit has no timeout. */
  get #begun(): number {
    return this.#stream.isEndedByPeer ? clock.now() : 0;
  }

  /** Writes from `at` to before `length`, frame by frame, with the lock held. Releases the lock at the end. */
  async #writeRest(
    p: Uint8Array,
    length: number,
    at: number,
    signal: AbortSignal | undefined,
    isListened: boolean,
    begun: number,
  ): Promise<number> {
    const { output, id } = this.#stream;
    const waiting = this.#waiting ??= new Waiting();
    const limit = isListened ? undefined : signal;
    if (isListened) waiting.abortable = signal;
    try {
      // A transferred array has no length.
      while (at < length && length <= p.length && this.#maySend) {
        signal?.throwIfAborted();
        const count = this.#allowance(length - at);
        if (count === 0) {
          if (this.#state === "ending") break;
          await this.#waitForCredit(waiting, limit, begun);
          continue;
        }
        if (output.tryFrame(PSH, id, p, at, at + count)) {
          // Other writes may run before the next frame.
          await undefined;
        } else {
          const frame = new PendingFrame(PSH, id, p, at, at + count);
          await output.enqueue(frame, waiting.sender ??= output.openSender(), limit);
          // The session has ended or the array has shrunk, which is reported below.
          if (!frame.isEncoded) break;
        }
        this.#window?.spend(count);
        at += count;
      }
      if (at === length) return at;
    } catch (error) {
      const isAborted = signal?.aborted &&
        (Object.is(error, signal.reason) || (isListened && error instanceof ChannelClosedError));
      if (isAborted && at > 0) return at;
      if (isAborted) throw signal.reason;
      // The reason for a closed channel is thrown below. Anything else is the credit timeout.
      if (!(error instanceof ChannelClosedError)) {
        const message = `The peer granted no credit for ${this.#stream.timeout} ms after its FIN`;
        throw Object.assign(new DOMException(message, "TimeoutError"), { bytesWritten: at });
      }
    } finally {
      if (at < length && this.#state === "ending") this.#state = "cut";
      waiting.abortable = undefined;
      this.#unlock();
    }
    const error = this.#makeError(at, this.#stream.isClosed);
    throw error === undefined ? Object.assign(shrunk("write"), { bytesWritten: at }) : error;
  }

  get #maySend(): boolean {
    return this.#state !== "cut" && this.#state !== "failed" && !this.#stream.isClosed &&
      this.#stream.failure === undefined;
  }

  async #waitForCredit(waiting: Waiting, signal: AbortSignal | undefined, begun: number): Promise<void> {
    const credit = waiting.credit ??= new Gate();
    if (!this.#stream.isEndedByPeer) return await credit.wait({ signal });
    // After its FIN the peer may have closed the stream for good, which smux cannot report. Time in the queue behind
    // another write counts.
    const { timeout, link } = this.#stream;
    let now = clock.now();
    let since = waiting.starvedFrom ??= now;
    for (let isExcused = false;;) {
      const { resumptions } = link;
      const due = Math.max(now, Math.max(begun, since) + timeout);
      try {
        return await credit.wait({ signal, timeout: due - now });
      } catch (error) {
        now = clock.now();
        const isLate = now - due > TIMER_LAG_MS && !isExcused;
        // Without a connection below no credit can arrive, and a new one is a sign of life.
        const wasSuspended = link.isSuspended || link.resumptions !== resumptions;
        const isOver = !isLate && !wasSuspended;
        if (isOver || signal?.aborted || error instanceof ChannelClosedError) throw error;
        // Credit arrived in the same step.
        if (waiting.starvedFrom === undefined) return;
        since = waiting.starvedFrom = wasSuspended ? now : excuse(Math.max(begun, since), now - due, now, timeout);
        isExcused = !wasSuspended;
      }
    }
  }

  async #closeInTurn(isAborted: boolean): Promise<void> {
    if (this.#state === "open") this.#state = "closing";
    // If writing fails meanwhile, `writable` drops its chunks and aborts.
    if (this.#due > 0 && !this.#isCut) await this.#waitForChunks();
    if (this.#isWriting) await this.#lockQueue.wait();
    this.#isWriting = true;
    if (this.#isCut) this.#state = "cut";
    const stream = this.#stream;
    try {
      if (stream.failure !== undefined) throw stream.failure();
      if (this.#state === "cut" || (this.#state === "failed" && !isAborted)) throw this.#refusal!();
      if (stream.isClosed) return;
      stream.queueFin();
      if (!this.isFinished) await this.#waitForFin();
      if (!this.isFinished) throw stream.failure!();
    } catch (error) {
      if (!stream.isClosed) throw error;
    } finally {
      this.#unlock();
    }
  }

  #waitForFin(): Promise<void> {
    const waiting = this.#waiting ??= new Waiting();
    return (waiting.finQueued = deferred()).promise;
  }

  #waitForChunks(): Promise<void> {
    const waiting = this.#waiting ??= new Waiting();
    return (waiting.chunksPassed = deferred()).promise;
  }

  get #lockQueue(): Gate {
    const waiting = this.#waiting ??= new Waiting();
    return waiting.queue ??= new Gate();
  }

  // Passes the lock on to the next waiting write, if any.
  #unlock(): void {
    this.#isWriting = this.#waiting?.queue?.notifyOne() ?? false;
  }
}
