/**
 * The receiving half of a stream: bytes that arrived, the read that waits for more, and the credit of the peer.
 *
 * @module
 */

import { ChunkQueue, copy } from "./_chunks.ts";
import { Gate } from "./_gate.ts";
import { StreamClosedError } from "./errors.ts";
import { EMPTY_BYTES, ProtocolError } from "./frame.ts";
import type { ReadBuffer } from "./transport.ts";
import { ReceiveWindow, type WindowPool } from "./_window.ts";

// By how much a peer may overrun its credit, in bytes: in Go, concurrent writers on one stream do.
const CREDIT_TOLERANCE = 1024 * 1024;
// The buffer that `readLarge` waits with.
const MAX_PULL_BYTES = 64 * 1024;

/** What the half needs from its stream. */
export interface ReceiveHost {
  /** Id on the wire. */
  readonly id: number;
  /** The session's batch of finished reads in which this stream was last; 0 since it reads again. */
  readonly batch: number;
  /** What the receive windows of the session share. */
  readonly windows: WindowPool;
  /** Position of the frame that is being received, for errors. */
  readonly frameOffset: number;
  /** Makes the error of an operation, once the stream has failed. */
  readonly failure: (() => Error) | undefined;
  /** A UPD is due. */
  queueUpdate(): void;
  /** No UPD is due any more. */
  dropUpdate(): void;
  /** Ends the stream both ways, for this reason. */
  cut(failure: () => Error): void;
  /** `finishRead` is to be called when everything that has arrived is decoded. */
  finishReadLater(): void;
  /** A read waits again. */
  readWaits(): void;
  /** Bytes that were received have been read or dropped. */
  refund(count: number): void;
}

/** How a read that waits is settled: with a rejected promise where it fails, so that only one function is kept for it. */
type Resolve = (count: number | null | Promise<never>) => void;

// One executor for the promises of all reads that wait: a closure for each would cost a tenth of a small frame.
let parked: Resolve;
const park = (resolve: Resolve): void => {
  parked = resolve;
};

/**
 * What happens to data that arrives:
 *
 * - `open`: it is kept for readers;
 * - `discarding`: it is dropped as if it had been read, because `readable` was cancelled;
 * - `failed`: the session has ended; what arrived before stays readable;
 * - `cut`: the stream was ended and its unread data dropped, so that a FIN does not count as a clean end;
 * - `closed`: the stream was closed here.
 */
type State = "open" | "discarding" | "failed" | "cut" | "closed";

/** The receiving half of one stream. */
export class ReceiveHalf {
  readonly #stream: ReceiveHost;
  // Only in version 2.
  readonly #window: ReceiveWindow | undefined;
  #state: State = "open";
  #isEndedByPeer = false;
  #consumed = 0;
  // Most streams have none: a read waits.
  #chunks: ChunkQueue | undefined;
  // The read that waits: its buffer, the bytes in it, how it is settled, and how it stops listening to its signal.
  #into: Uint8Array | undefined;
  #filled = 0;
  #resolve: Resolve | undefined;
  #unlisten: (() => void) | undefined;
  #isFinishing = false;
  // The lock of reading: held, and the queue for it, made when a read first waits for another.
  #isReading = false;
  #readQueue: Gate | undefined;

  /**
   * @param stream The stream.
   * @param hasCredit Whether the peer needs credit, as in version 2.
   */
  constructor(stream: ReceiveHost, hasCredit: boolean) {
    this.#stream = stream;
    this.#window = hasCredit ? new ReceiveWindow(stream.windows, this) : undefined;
  }

  /** Bytes received and not read. */
  get unread(): number {
    return this.#chunks === undefined ? 0 : this.#chunks.length;
  }

  /** Bytes the application has read or dropped, ever. */
  get consumed(): number {
    return this.#consumed;
  }

  /** Whether the peer ever sent data. */
  get hasData(): boolean {
    return this.#consumed > 0 || this.#filled > 0 || this.unread > 0;
  }

  /** Whether the peer's FIN has arrived. */
  get isEndedByPeer(): boolean {
    return this.#isEndedByPeer;
  }

  /** Whether everything that the peer sent has arrived, its FIN included, and nothing of it was dropped. */
  get isWhole(): boolean {
    return this.#isEndedByPeer && (this.#state === "open" || this.#state === "failed");
  }

  /** Whether a read is under way. */
  get isReading(): boolean {
    return this.#isReading;
  }

  /** Why nothing more can be read, for good; `undefined` while something is unread, and after the peer's end. */
  get error(): Error | undefined {
    if (this.#state === "closed") return new StreamClosedError("Cannot read from a closed stream");
    return this.#hasEnded || this.unread > 0 ? undefined : this.#stream.failure?.();
  }

  /** What the window has to say in a UPD. */
  get window(): ReceiveWindow {
    return this.#window!;
  }

  /** Whether the first window is smaller than what every peer starts from. */
  get hasSmallWindow(): boolean {
    return this.#window !== undefined && this.#window.isSmall;
  }

  /** The window was made smaller because other streams need the room. */
  onShrunk(): void {
    this.#stream.queueUpdate();
  }

  // What arrives.

  /** Takes in data that arrived: the bytes of `buffer` from `start` to before `end`. */
  receive(buffer: ReadBuffer, start: number, end: number): void {
    // Data for a closed stream counts as dropped, so that the stream does not look as if it had been empty.
    if (this.#state === "closed") this.#consumed += end - start;
    if (this.#isEndedByPeer || this.#state === "closed" || this.#stream.failure !== undefined) return;
    const window = this.#window;
    window?.arrived(end - start);
    if (this.#state === "discarding") return this.#consume(end - start);
    const into = this.#into;
    if (into !== undefined && this.#filled < into.length) {
      const stop = Math.min(end, start + into.length - this.#filled);
      copy(buffer.bytes, start, stop, into, this.#filled);
      this.#filled += stop - start;
      this.#finishLater();
      if (stop === end) return;
      start = stop;
    } else if (into === EMPTY_BYTES) {
      this.#finishLater();
    }
    const length = end - start;
    const unread = this.unread + length;
    if (window !== undefined && unread > window.allowed + CREDIT_TOLERANCE) return this.#overrun(window, unread);
    // A chunk that `readable` waits for is copied, so that the buffer of the transport stays in use.
    (this.#chunks ??= new ChunkQueue()).push(buffer, start, end, into === EMPTY_BYTES);
    this.#stream.windows.unread += length;
    if (window?.revoke(unread)) this.#stream.queueUpdate();
  }

  #overrun(window: ReceiveWindow, unread: number): void {
    const { frameOffset, id } = this.#stream;
    const expected = `at most ${window.allowed} bytes of credit to be used`;
    this.#stream.cut(() => new ProtocolError(frameOffset, expected, `${unread} unread bytes on stream ${id}`));
  }

  /** Takes in the peer's FIN; returns whether it counts. */
  receiveFin(): boolean {
    if (this.#isEndedByPeer || this.#stream.failure !== undefined) return false;
    this.#isEndedByPeer = true;
    this.#closeWindow();
    if (this.#into !== undefined) this.#finishLater();
    return true;
  }

  /** Settles the read that waits, if it can be. */
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
    } else if (this.#hasEnded) {
      this.#endRead()(null);
    } else if (this.#stream.failure !== undefined) {
      this.#rejectRead(this.#stream.failure());
    }
  }

  // Ends.

  /** The session has ended: what arrived stays readable. */
  fail(): void {
    if (this.#state === "open") this.#state = "failed";
    this.#closeWindow();
  }

  /** Drops what is unread, and what will arrive: it must not look like a whole stream. */
  cut(): void {
    this.#drop();
    this.#state = "cut";
    this.#closeWindow();
  }

  /** The stream was closed here. */
  close(): void {
    this.#state = "closed";
    this.#drop();
    this.#closeWindow();
    if (this.#into !== undefined) this.#rejectRead(new StreamClosedError("Cannot read from a closed stream"));
  }

  /** Drops what is unread and what will arrive, as if it had been read. */
  discard(): void {
    if (this.#state === "open") this.#state = "discarding";
    if (this.#into !== undefined) this.#endRead()(0);
    this.#consume(this.#drop());
  }

  // Reading.

  /** Reads what has arrived, or waits; see `Stream.read`. */
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

  /** Reads what has arrived, at once; see `Stream.tryRead`. */
  tryRead(p: Uint8Array): number | null {
    if (!(p instanceof Uint8Array)) throw notBytes("read into");
    if (p.length === 0) throw new RangeError("tryRead needs room for at least 1 byte, received an empty array");
    return this.#isReading ? 0 : this.#poll(p);
  }

  /** Waits for the next chunk with one buffer for all that comes at once; `null` after the peer's end. */
  async readLarge(): Promise<Uint8Array | null> {
    const p = new Uint8Array(MAX_PULL_BYTES);
    const count = await this.read(p, undefined);
    if (count === null) return null;
    return count * 2 > p.length ? p.subarray(0, count) : p.slice(0, count);
  }

  /** Calls `ready` when `tryReadChunk` need not wait. */
  whenReady(ready: () => void): void {
    this.#wait(EMPTY_BYTES, ready);
  }

  /**
   * Removes the next chunk, whose buffer is then the caller's.
   *
   * @returns The chunk; `null` after the peer's end; `undefined` while nothing is unread.
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

  /** Whether the stream has ended; throws if it has failed. */
  #atEnd(): boolean {
    if (this.#hasEnded) return true;
    const { failure } = this.#stream;
    if (failure !== undefined) throw failure();
    return false;
  }

  /** Bytes now, `null` at the end, 0 if it must wait. */
  #poll(p: Uint8Array): number | null {
    if (this.#state === "closed") throw new StreamClosedError("Cannot read from a closed stream");
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
    if (signal) {
      const abort = () => this.#rejectRead(signal.reason);
      signal.addEventListener("abort", abort);
      const unlisten = () => signal.removeEventListener("abort", abort);
      this.#unlisten = unlisten;
    }
    return promise;
  }

  async #readInTurn(p: Uint8Array, signal: AbortSignal | undefined): Promise<number | null> {
    await (this.#readQueue ??= new Gate()).wait({ signal });
    let count: number | null = 0;
    try {
      signal?.throwIfAborted();
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

  // Passes the lock on to the next read, if one waits.
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

  /** Drops what is unread, and returns its length. */
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

/** The error for an argument that is no `Uint8Array`. */
export function notBytes(what: string): TypeError {
  return new TypeError(`Only a Uint8Array can be ${what}`);
}
