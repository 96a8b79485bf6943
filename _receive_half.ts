/**
 * The receiving half of a stream: its unread bytes, its waiting read, and the credit of the peer.
 *
 * @module
 */

import { ChunkQueue, copy } from "./_chunks.ts";
import { describeType, invalidSignal } from "./_describe.ts";
import { DOUBLE } from "./_double.ts";
import { Gate } from "./_gate.ts";
import { StreamClosedError } from "./errors.ts";
import { EMPTY_BYTES, ProtocolError } from "./frame.ts";
import type { ReadBuffer } from "./transport.ts";
import { onAbort } from "./_wait.ts";
import { ReceiveWindow, type WindowPool } from "./_window.ts";

/**
 * Bytes by which a peer may exceed its credit: concurrent writers on one stream of Go's smux do. Larger: a hostile peer
 * can store more; smaller: such streams are cut.
 */
export const CREDIT_TOLERANCE = 1024 * 1024;
// Size of the buffer of `readLarge`. Larger: more copying for small chunks; smaller: more chunks.
const MAX_PULL_BYTES = 64 * 1024;
// In place of that buffer until bytes arrive: thousands of idle streams may wait.
const LARGE_BYTES = new Uint8Array(0);

/** What the half needs from its stream. */
export interface ReceiveHost {
  /** Id on the wire. */
  readonly id: number;
  /** Number of the session's last batch of finished reads with this stream; 0 after the stream reads again. */
  readonly batch: number;
  /** State shared by the receive windows of the session. */
  readonly windows: WindowPool;
  /** Position of the frame that is being received, for errors. */
  readonly frameOffset: number;
  /** Creates the error of an operation, after the stream has failed. */
  readonly failure: (() => unknown) | undefined;
  /** Queues a UPD. */
  queueUpdate(): void;
  /** Cancels a queued UPD. */
  dropUpdate(): void;
  /** Ends both directions with this error. */
  cut(failure: () => Error): void;
  /** Requests a call of `finishRead` after everything that has arrived is decoded. */
  finishReadLater(): void;
  /** Called when a read waits. */
  readWaits(): void;
  /** Called when `count` received bytes were read or dropped. */
  refund(count: number): void;
}

/**
 * Settles a waiting read. A failed read resolves with a rejected promise, so that only one function is stored for it.
 */
type Resolve = (count: number | null | Promise<never>) => void;

// One executor for the promises of all waiting reads. A closure for each slows down small frames.
let parked: Resolve;
const park = (resolve: Resolve): void => {
  parked = resolve;
};

/**
 * State of the half:
 *
 * - `open`: received data is kept for readers;
 * - `discarding`: `readable` was cancelled; received data is dropped, and counts as read;
 * - `failed`: the session has ended; data received before stays readable;
 * - `cut`: the stream was aborted or cut and its unread data dropped; a FIN does not count as a clean end;
 * - `closed`: the stream was closed by `close()`.
 */
type State = "open" | "discarding" | "failed" | "cut" | "closed";

/** The receiving half of one stream. */
export class ReceiveHalf {
  readonly #stream: ReceiveHost;
  // In version 2.
  readonly #window: ReceiveWindow | undefined;
  #state: State = "open";
  #isEndedByPeer = false;
  #consumed = DOUBLE;
  // Created when data arrives that no read waits for.
  #chunks: ChunkQueue | undefined;
  // The waiting read: its buffer, the number of bytes in it, and the functions that settle it and remove its listener.
  #into: Uint8Array | undefined;
  #filled = 0;
  #resolve: Resolve | undefined;
  #unlisten: (() => void) | undefined;
  #isFinishing = false;
  // The lock of reading: whether it is held, and its queue, created when a read first waits for another.
  #isReading = false;
  #readQueue: Gate | undefined;
  // The buffer of `readLarge` or `readLent`, from the arrival of bytes to its return.
  #large: Uint8Array | undefined;
  #lend: () => Uint8Array = newLarge;

  /**
   * @param stream The stream.
   * @param hasCredit Whether the peer needs credit, as in version 2.
   */
  constructor(stream: ReceiveHost, hasCredit: boolean) {
    this.#consumed = 0;
    this.#stream = stream;
    this.#window = hasCredit ? new ReceiveWindow(stream.windows, this) : undefined;
  }

  /** Number of bytes received and not read. */
  get unread(): number {
    return this.#chunks === undefined ? 0 : this.#chunks.length;
  }

  /** Total bytes that the application has read or dropped. */
  get consumed(): number {
    return this.#consumed;
  }

  /** Whether the peer has sent data. */
  get hasData(): boolean {
    return this.#consumed > 0 || this.#filled > 0 || this.unread > 0;
  }

  /** Whether the peer's FIN has arrived. */
  get isEndedByPeer(): boolean {
    return this.#isEndedByPeer;
  }

  /** Whether everything that the peer sent, including its FIN, has arrived, and nothing of it was dropped. */
  get isWhole(): boolean {
    return this.#isEndedByPeer && (this.#state === "open" || this.#state === "failed");
  }

  /** Whether a read is pending. */
  get isReading(): boolean {
    return this.#isReading;
  }

  /** The error of all further reads; `undefined` while bytes are unread, and after the peer's FIN. */
  get error(): unknown {
    if (this.#state === "closed") return new StreamClosedError("Cannot read from a closed stream");
    return this.#hasEnded || this.unread > 0 ? undefined : this.#stream.failure?.();
  }

  /** The receive window, in version 2. */
  get window(): ReceiveWindow {
    return this.#window!;
  }

  /** Whether the first window is smaller than the peer assumes. */
  get hasSmallWindow(): boolean {
    return this.#window !== undefined && this.#window.isSmall;
  }

  /** Called when the window was reduced because other streams need the room. */
  onShrunk(): void {
    this.#stream.queueUpdate();
  }

  // Receiving.

  /** Receives data: the bytes of `buffer` from `start` to before `end`. */
  receive(buffer: ReadBuffer, start: number, end: number): void {
    // Data for a closed stream counts as consumed, so that `hasData` is true.
    if (this.#state === "closed") this.#consumed += end - start;
    if (this.#isEndedByPeer || this.#state === "closed" || this.#stream.failure !== undefined) return;
    const window = this.#window;
    window?.arrived(end - start);
    if (this.#state === "discarding") return this.#consume(end - start);
    if (this.#into === LARGE_BYTES) this.#into = this.#allocate();
    const into = this.#into;
    if (into !== undefined && this.#filled < into.length) {
      const stop = Math.min(end, start + into.length - this.#filled);
      copy(buffer.bytes, start, stop, into, this.#filled);
      this.#filled += stop - start;
      this.#finishLater();
      if (stop === end) return;
      start = stop;
    } else if (into !== undefined && into.length === 0) {
      this.#finishLater();
    }
    const length = end - start;
    const unread = this.unread + length;
    if (window !== undefined && unread > window.allowed + CREDIT_TOLERANCE) return this.#overrun(window, unread);
    // A chunk that `readable` waits for is copied, so that the read buffer can be reused.
    (this.#chunks ??= new ChunkQueue(this.#stream.windows)).push(buffer, start, end, into === EMPTY_BYTES);
    this.#stream.windows.unread += length;
    if (window?.revoke(unread)) this.#stream.queueUpdate();
  }

  #overrun(window: ReceiveWindow, unread: number): void {
    const { frameOffset, id } = this.#stream;
    const expected = `at most ${window.allowed} bytes of credit to be used`;
    this.#stream.cut(() => new ProtocolError(frameOffset, expected, `${unread} unread bytes on stream ${id}`));
  }

  /** Receives the peer's FIN. Returns `false` if it has no effect. */
  receiveFin(): boolean {
    if (this.#isEndedByPeer || this.#stream.failure !== undefined) return false;
    this.#isEndedByPeer = true;
    this.#closeWindow();
    if (this.#into !== undefined) this.#finishLater();
    return true;
  }

  /** Settles the waiting read, if there is data, an end or a failure for it. */
  finishRead(): void {
    this.#isFinishing = false;
    if (this.#into === undefined) return;
    const filled = this.#filled;
    if (filled > 0) {
      const resolve = this.#endRead();
      this.#consume(filled);
      resolve(filled);
    } else if (this.#into === EMPTY_BYTES && this.unread > 0) {
      this.#endRead()(0);
    } else if (this.#into.length === 0 && this.unread > 0) {
      this.#rejectRead(shrunk("read"));
    } else if (this.#hasEnded) {
      this.#endRead()(null);
    } else if (this.#stream.failure !== undefined) {
      this.#rejectRead(this.#stream.failure());
    }
  }

  // Ends.

  /** The session has ended. Received data stays readable. */
  fail(): void {
    if (this.#state === "open") this.#state = "failed";
    this.#closeWindow();
  }

  /** Drops unread and later data. Unread data was lost, so a FIN must not read as a clean end. */
  cut(): void {
    this.#drop();
    this.#state = "cut";
    this.#closeWindow();
  }

  /** Closes the half: drops unread data and rejects the waiting read. */
  close(): void {
    this.#state = "closed";
    this.#drop();
    this.#closeWindow();
    if (this.#into !== undefined) this.#rejectRead(new StreamClosedError("Cannot read from a closed stream"));
  }

  /** Drops unread and later data, which counts as read. */
  discard(): void {
    if (this.#state === "open") this.#state = "discarding";
    if (this.#into !== undefined) this.#endRead()(0);
    this.#consume(this.#drop());
  }

  // Reading.

  /** Implements `Stream.read`. */
  read(p: Uint8Array, signal: AbortSignal | undefined): Promise<number | null> {
    if (!(p instanceof Uint8Array)) return Promise.reject(notBytes(p));
    return p.length === 0 ? Promise.resolve(0) : this.#read(p, signal);
  }

  #read(p: Uint8Array, signal: AbortSignal | undefined): Promise<number | null> {
    const invalid = invalidSignal(signal);
    if (invalid !== undefined) return Promise.reject(invalid);
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

  /** Implements `Stream.tryRead`. */
  tryRead(p: Uint8Array): number | null {
    if (!(p instanceof Uint8Array)) throw notBytes(p);
    if (p.length === 0) throw new RangeError("tryRead needs an array of at least 1 byte, received an empty one");
    return this.#isReading ? 0 : this.#poll(p);
  }

  /** Reads up to MAX_PULL_BYTES; waits if nothing is unread. Returns `null` after the peer's FIN. */
  async readLarge(): Promise<Uint8Array | null> {
    const p = await this.readLent(newLarge);
    return p === null || p.length * 2 > MAX_PULL_BYTES ? p : p.slice();
  }

  /**
   * Reads into a buffer that `lend` returns when bytes have arrived, so that a read that waits needs none. Returns the
   * part with the bytes; `null` after the peer's FIN.
   */
  async readLent(lend: () => Uint8Array): Promise<Uint8Array | null> {
    this.#lend = lend;
    const count = await this.#read(LARGE_BYTES, undefined);
    const p = this.#large ?? EMPTY_BYTES;
    this.#large = undefined;
    return count === null ? null : p.subarray(0, count);
  }

  #allocate(): Uint8Array {
    return this.#large = this.#lend();
  }

  /** Calls `ready` once, when `tryReadChunk` will return a chunk, return `null` or throw. */
  whenReady(ready: () => void): void {
    this.#wait(EMPTY_BYTES, ready);
  }

  /**
   * Removes and returns the next chunk. The caller owns its buffer.
   *
   * @returns The chunk; `null` after the peer's FIN; `undefined` while nothing is unread.
   */
  tryReadChunk(): Uint8Array | null | undefined {
    if (this.#isReading) return undefined;
    if (this.#state === "closed") throw new StreamClosedError("Cannot read from a closed stream");
    const chunk = this.#chunks?.shift();
    if (chunk === undefined) return this.#atEnd() ? null : undefined;
    this.#stream.refund(chunk.length);
    this.#consume(chunk.length);
    return chunk;
  }

  get #hasEnded(): boolean {
    return this.#isEndedByPeer && this.#state !== "cut";
  }

  /** Returns whether the stream has ended. Throws if it has failed. */
  #atEnd(): boolean {
    if (this.#hasEnded) return true;
    const { failure } = this.#stream;
    if (failure !== undefined) throw failure();
    return false;
  }

  /** Reads without waiting. Returns the number of bytes, `null` at the end, or 0 if the caller must wait. */
  #poll(p: Uint8Array): number | null {
    if (this.#state === "closed") throw new StreamClosedError("Cannot read from a closed stream");
    if (p === LARGE_BYTES && this.unread > 0) p = this.#allocate();
    const count = this.#chunks === undefined ? 0 : this.#chunks.read(p);
    if (count === 0) return this.#atEnd() ? null : 0;
    this.#stream.refund(count);
    this.#consume(count);
    return count;
  }

  #wait(p: Uint8Array, resolve: Resolve): void {
    this.#isReading = true;
    this.#into = p;
    this.#filled = 0;
    this.#resolve = resolve;
    if (this.#stream.batch !== 0) this.#stream.readWaits();
  }

  #park(p: Uint8Array, signal: AbortSignal | undefined): Promise<number | null> {
    const promise = new Promise<number | null>(park);
    this.#wait(p, parked);
    // `null` counts as no signal.
    if (signal) this.#unlisten = onAbort(signal, (reason) => this.#rejectRead(reason));
    return promise;
  }

  async #readInTurn(p: Uint8Array, signal: AbortSignal | undefined): Promise<number | null> {
    await (this.#readQueue ??= new Gate()).wait({ signal });
    let count: number | null = 0;
    try {
      signal?.throwIfAborted();
      if (p.length === 0 && p !== LARGE_BYTES) throw shrunk("read");
      count = this.#poll(p);
    } catch (error) {
      this.#unlock();
      throw error;
    }
    if (count === 0) return this.#park(p, signal);
    this.#unlock();
    return count;
  }

  #rejectRead(reason: unknown): void {
    const isChunkAwaited = this.#into === EMPTY_BYTES;
    this.#endRead()(isChunkAwaited ? 0 : Promise.reject(reason));
  }

  #endRead(): Resolve {
    const resolve = this.#resolve!;
    this.#into = this.#resolve = undefined;
    if (this.#unlisten !== undefined) {
      this.#unlisten();
      this.#unlisten = undefined;
    }
    this.#unlock();
    return resolve;
  }

  // Passes the lock on to the next waiting read, if any.
  #unlock(): void {
    this.#isReading = this.#readQueue?.notifyOne() ?? false;
  }

  #finishLater(): void {
    if (this.#isFinishing) return;
    this.#isFinishing = true;
    this.#stream.finishReadLater();
  }

  /** Counts bytes that the application has read or dropped, and queues a UPD when one is due. */
  #consume(count: number): void {
    this.#consumed += count;
    if (count > 0 && this.#window?.read(count, this.unread)) this.#stream.queueUpdate();
  }

  /** Drops unread bytes, and returns their number. */
  #drop(): number {
    const count = this.#chunks?.clear() ?? 0;
    if (count > 0) this.#stream.refund(count);
    return count;
  }

  #closeWindow(): void {
    this.#stream.dropUpdate();
    this.#window?.close();
  }
}

function newLarge(): Uint8Array {
  return new Uint8Array(MAX_PULL_BYTES);
}

/** Returns the error for an argument that is not a `Uint8Array`. */
export function notBytes(value: unknown): TypeError {
  return new TypeError(`Expected a Uint8Array, received ${describeType(value)}`);
}

/** Returns the error for an array that was transferred, or resized to fewer bytes, while an operation had it. */
export function shrunk(operation: "read" | "write"): TypeError {
  return new TypeError(`Cannot ${operation}: the array was transferred or resized before the ${operation} ended`);
}
