/**
 * The sending half of a stream: writes in turn, the credit that they spend, and the FIN behind them.
 *
 * @module
 */

import { deferred } from "./_deferred.ts";
import { Gate } from "./_gate.ts";
import { notBytes } from "./_receive_half.ts";
import { PendingFrame } from "./_writer.ts";
import { ChannelClosedError, type Sender } from "./channel.ts";
import { clock, excuse, TIMER_LAG_MS } from "./_clock.ts";
import { StreamClosedError } from "./errors.ts";
import { type Command, EMPTY_BYTES, ProtocolError, PSH, SYN } from "./frame.ts";
import { SendWindow } from "./_window.ts";

/** Makes the error of a stream that failed; for a write it gets the number of bytes encoded, 0 as well. */
export type Failure = (bytesWritten?: number) => Error;

/** Where the half puts its frames. */
export interface FrameOutput {
  /** Encodes a frame if there is room. */
  tryFrame(command: Command, id: number, bytes: Uint8Array, start: number, end: number): boolean;
  /** Returns a handle for frames that wait for room. */
  openSender(): Sender<PendingFrame>;
  /** Waits until a frame is encoded. */
  send(frame: PendingFrame, sender: Sender<PendingFrame>, signal: AbortSignal | undefined): Promise<void>;
}

/** What the half needs from its stream. */
export interface SendHost {
  /** Id on the wire. */
  readonly id: number;
  /** Most bytes in one frame. */
  readonly maxFrameSize: number;
  /** Milliseconds that a write waits for credit after the peer's FIN. */
  readonly timeout: number;
  /** Position of the frame that is being received, for errors. */
  readonly frameOffset: number;
  /** The way out. */
  readonly output: FrameOutput;
  /** Whether the stream was closed here. */
  readonly isClosed: boolean;
  /** Whether the peer's FIN has arrived. */
  readonly isEndedByPeer: boolean;
  /** Makes the error of an operation, once the stream has failed. */
  readonly failure: Failure | undefined;
  /** A FIN is due. */
  queueFin(): void;
  /** Writing has failed for good. */
  report(): void;
}

/** How writing ends, where that is not in order. */
export interface EndOptions {
  /** Something that the application has written is lost, so that no FIN may leave. */
  isCut?: boolean;
  /** The FIN leaves even when writes have failed. */
  isAborted?: boolean;
}

/**
 * What may still be sent:
 *
 * - `open`: data;
 * - `closing`: data written before `closeWrite()`, then FIN;
 * - `ending`: the same without waiting for credit, because the session ends in order;
 * - `cut`: nothing, because the session's end has cut a write, which would look whole behind a FIN;
 * - `failed`: FIN, if writing is aborted: the peer broke a rule of credit;
 * - `finished`: nothing, FIN is encoded.
 */
type State = "open" | "closing" | "ending" | "cut" | "failed" | "finished";

/** What writes of one stream wait for. Most streams never need it. */
class Waiting {
  /** The queue for the lock of writing; made, as what follows, when first needed, since thousands of writes may wait. */
  queue: Gate | undefined = undefined;
  /** Credit; made anew when the write that waits for it is given up. */
  credit: Gate | undefined = undefined;
  /** When credit was first missed, after the peer's end. */
  starvedFrom: number | undefined = undefined;
  /** The handle of frames that wait for room. */
  sender: Sender<PendingFrame> | undefined = undefined;
  /** The signal of the write under way, if it is ended by `abortWrite`. */
  abortable: AbortSignal | undefined = undefined;
  /** Settles when a FIN that found no room is encoded, or cannot be any more. */
  finQueued: PromiseWithResolvers<void> | undefined = undefined;

  /** Ends the waits for credit and for room. */
  close(): void {
    this.credit?.close();
    this.sender?.close();
  }
}

/** The sending half of one stream. */
export class SendHalf {
  /** Chunks that wait in `writable`, not yet written. */
  queued = 0;
  readonly #stream: SendHost;
  // Only in version 2.
  readonly #window: SendWindow | undefined;
  #state: State = "open";
  // Makes the error of a write, after a failure of this half or the session's end in order.
  #refusal: (() => Error) | undefined;
  // Whether the lock of writing is held.
  #isWriting = false;
  #waiting: Waiting | undefined;
  #closing: Promise<void> | undefined;

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

  /** Whether a write is under way. */
  get isWriting(): boolean {
    return this.#isWriting;
  }

  /** Why nothing more can be written, for good; `undefined` while it can, and after `closeWrite`. */
  get error(): Error | undefined {
    if (this.#stream.isClosed) return new StreamClosedError("Cannot write to a closed stream");
    return this.#stream.failure?.() ?? this.#refusal?.();
  }

  // What the session does.

  /** Takes in a UPD. */
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
    this.#refusal = refusal;
    waiting?.credit?.close();
    this.#stream.report();
  }

  /** The peer has ended its half: a write that waits for credit must now do so against the clock. */
  peerEnded(): void {
    this.#waiting?.credit?.notifyOne();
  }

  /** FIN is encoded, behind all data. */
  finish(): void {
    this.#state = "finished";
    this.#waiting?.finQueued?.resolve();
    this.#waiting?.sender?.close();
  }

  /** The session ends in order: writes that wait for room go on, those that wait for credit do not, then FIN leaves. */
  async end(failure: () => Error): Promise<void> {
    this.#refusal ??= failure;
    if (this.#state === "open" || this.#state === "closing") this.#state = "ending";
    this.#waiting?.credit?.close();
    const wasOpen = this.#closing === undefined;
    const closing = this.closeWrite({ isCut: this.queued > 0 });
    if (wasOpen) this.#stream.report();
    try {
      await closing;
    } catch {
      // Without a FIN the peer learns that not all was sent.
    }
  }

  /** Settles what waits, after the stream has failed or was closed. */
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
   * Writes, and returns a number instead of a promise where all of `p` finds room at once.
   *
   * @param isListened The caller listens to the signal and calls `abortWrite`: a listener for each write costs much more.
   */
  write(p: Uint8Array, signal: AbortSignal | undefined, isListened = false): Promise<number> | number {
    if (!(p instanceof Uint8Array)) return Promise.reject(notBytes("written"));
    const refusal = this.#refuse();
    if (refusal !== undefined) return Promise.reject(refusal);
    if (p.length === 0) return 0;
    if (signal?.aborted) return Promise.reject(signal.reason);
    if (this.#isWriting) return this.#writeInTurn(p, signal, isListened);
    const count = this.#encode(p, 0);
    if (count === p.length) return count;
    this.#isWriting = true;
    return this.#writeRest(p, count, signal, isListened, this.#begun);
  }

  /** Writes what can be encoded at once; see `Stream.tryWrite`. */
  tryWrite(p: Uint8Array): number {
    if (!(p instanceof Uint8Array)) throw notBytes("written");
    const refusal = this.#refuse();
    if (refusal !== undefined) throw refusal;
    return this.#isWriting ? 0 : this.#encode(p, 0);
  }

  /** Ends the write under way if it was given this signal, which has aborted, and does not listen to it. */
  abortWrite(signal: AbortSignal): void {
    const waiting = this.#waiting;
    if (waiting === undefined || waiting.abortable !== signal) return;
    waiting.close();
    waiting.sender = waiting.credit = undefined;
  }

  /** Ends writing; see `Stream.closeWrite`. */
  closeWrite(options: EndOptions = {}): Promise<void> {
    let closing = this.#closing;
    if (closing !== undefined) return closing;
    if (this.#stream.isClosed) return Promise.resolve();
    const { failure } = this.#stream;
    if (failure !== undefined) closing = Promise.reject(failure());
    else closing = this.#closing = this.#closeInTurn(options);
    // Later writes and `closed` report it too, so a caller need not await it.
    closing.catch(() => {});
    return closing;
  }

  /** Why no write may begin. */
  #refuse(): Error | undefined {
    const isClosing = this.#closing !== undefined && this.#refusal === undefined;
    return this.#makeError(0, isClosing || this.#stream.isClosed);
  }

  /** The error of a write of which this many bytes were encoded; `undefined` if nothing prevents writing. */
  #makeError(bytesWritten: number, isClosed: boolean): Error | undefined {
    const error = isClosed
      ? new StreamClosedError("Cannot write to a closed stream")
      : this.#stream.failure?.(bytesWritten) ?? this.#refusal?.();
    return error && Object.assign(error, { bytesWritten });
  }

  /** Bytes that may go into the next frame. */
  #allowance(wanted: number): number {
    const { maxFrameSize } = this.#stream;
    if (wanted > maxFrameSize) wanted = maxFrameSize;
    return this.#window === undefined ? wanted : Math.min(wanted, this.#window.credit);
  }

  /** Encodes what finds room and credit at once, from `at` on, and returns the position after it. */
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
    await this.#lockQueue.wait({ signal });
    return this.#writeRest(p, 0, signal, isListened, begun);
  }

  /** When a write begins, if that may matter: only after the peer's end its wait for credit has a limit. */
  get #begun(): number {
    return this.#stream.isEndedByPeer ? clock.now() : 0;
  }

  /** Writes from `at` on, one frame a turn, with the lock held; unlocks at the end. */
  async #writeRest(
    p: Uint8Array,
    at: number,
    signal: AbortSignal | undefined,
    isListened: boolean,
    begun: number,
  ): Promise<number> {
    const waiting = this.#waiting ??= new Waiting();
    const limit = isListened ? undefined : signal;
    if (isListened) waiting.abortable = signal;
    try {
      while (at < p.length && this.#maySend) {
        signal?.throwIfAborted();
        const count = this.#allowance(p.length - at);
        if (count === 0) {
          if (this.#state === "ending") break;
          await this.#waitForCredit(waiting, limit, begun);
          continue;
        }
        await this.#send(waiting, p, at, at + count, limit);
        this.#window?.spend(count);
        at += count;
      }
      if (at === p.length) return at;
    } catch (error) {
      const isAborted = signal?.aborted &&
        (Object.is(error, signal.reason) || (isListened && error instanceof ChannelClosedError));
      if (isAborted && at > 0) return at;
      if (isAborted) throw signal.reason;
      // A closed channel is explained below; anything else is the timeout of credit.
      if (!(error instanceof ChannelClosedError)) {
        const message = `The peer gave no credit for ${this.#stream.timeout} ms after its end`;
        throw Object.assign(new DOMException(message, "TimeoutError"), { bytesWritten: at });
      }
    } finally {
      if (at < p.length && this.#state === "ending") this.#state = "cut";
      waiting.abortable = undefined;
      this.#unlock();
    }
    throw this.#makeError(at, this.#stream.isClosed);
  }

  get #maySend(): boolean {
    return this.#state !== "cut" && this.#state !== "failed" && !this.#stream.isClosed &&
      this.#stream.failure === undefined;
  }

  async #waitForCredit(waiting: Waiting, signal: AbortSignal | undefined, begun: number): Promise<void> {
    const credit = waiting.credit ??= new Gate();
    if (!this.#stream.isEndedByPeer) return await credit.wait({ signal });
    // After its FIN a peer may be gone for good, and smux has no way to say so. A write that waited behind another has waited too.
    const { timeout } = this.#stream;
    let now = clock.now();
    let since = waiting.starvedFrom ??= now;
    for (let isExcused = false;; isExcused = true) {
      const due = Math.max(now, Math.max(begun, since) + timeout);
      try {
        return await credit.wait({ signal, timeout: due - now });
      } catch (error) {
        now = clock.now();
        const isLate = now - due > TIMER_LAG_MS && !isExcused;
        if (!isLate || signal?.aborted || error instanceof ChannelClosedError) throw error;
        // Credit came in this very step.
        if (waiting.starvedFrom === undefined) return;
        since = waiting.starvedFrom = excuse(Math.max(begun, since), now - due, now, timeout);
      }
    }
  }

  /** Encodes a frame of data, or waits until there is room for it. */
  #send(
    waiting: Waiting,
    p: Uint8Array,
    start: number,
    end: number,
    signal: AbortSignal | undefined,
  ): Promise<void> | undefined {
    const { output, id } = this.#stream;
    if (output.tryFrame(PSH, id, p, start, end)) return undefined;
    waiting.sender ??= output.openSender();
    return output.send(new PendingFrame(PSH, id, p, start, end), waiting.sender, signal);
  }

  async #closeInTurn({ isCut, isAborted }: EndOptions): Promise<void> {
    if (this.#state === "open") this.#state = "closing";
    if (this.#isWriting) await this.#lockQueue.wait();
    this.#isWriting = true;
    if (isCut) this.#state = "cut";
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

  get #lockQueue(): Gate {
    const waiting = this.#waiting ??= new Waiting();
    return waiting.queue ??= new Gate();
  }

  // Passes the lock on to the next write, if one waits.
  #unlock(): void {
    this.#isWriting = this.#waiting?.queue?.notifyOne() ?? false;
  }
}
