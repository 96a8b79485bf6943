/**
 * One logical stream: what users hold, and the same stream as its session sees it.
 *
 * {@linkcode Stream} is what users hold; {@linkcode StreamCore} joins its two halves for the session. What a stream
 * needs from its session is {@linkcode StreamHost}.
 *
 * @module
 */

import { deferred } from "./_deferred.ts";
import { ReceiveHalf, type ReceiveHost } from "./_receive_half.ts";
import { type Failure, type FrameOutput, SendHalf, type SendHost } from "./_send_half.ts";
import { makeReadable, makeWritable } from "./_web_streams.ts";
import type { ControlSource } from "./_writer.ts";
import type { Version } from "./frame.ts";
import type { Address, Link, ReadBuffer } from "./transport.ts";
import type { WindowPool } from "./_window.ts";

/**
 * Options of what may have to wait: {@linkcode Stream.read}, {@linkcode Stream.write}, `Session.openStream`,
 * `Session.acceptStream` and `join`.
 *
 * @example A read that gives up
 * ```ts
 * import { Session, type AbortOptions } from "@sluice/smux";
 * import { assertEquals, assertRejects } from "@std/assert";
 *
 * const listener = Deno.listen({ port: 0 });
 * await using client = Session.client(await Deno.connect({ port: listener.addr.port }));
 * await using server = Session.server(await listener.accept());
 * const [asking, answering] = await Promise.all([client.openStream(), server.acceptStream()]);
 *
 * const p = new Uint8Array(16);
 * const patience: AbortOptions = { signal: AbortSignal.timeout(10) };
 * const error = await assertRejects(() => asking.read(p, patience), DOMException);
 * assertEquals(error.name, "TimeoutError");
 *
 * await answering.write(new Uint8Array(7));
 * assertEquals(await asking.read(p), 7); // nothing is lost to the read that gave up
 * listener.close();
 * ```
 */
export interface AbortOptions {
  /**
   * Gives up waiting: the operation rejects with the signal's `reason`. A read or a write that has moved bytes already
   * fulfils with their number instead.
   */
  signal?: AbortSignal | undefined;
}

/** What a stream needs from its session. */
export interface StreamHost {
  /** Most bytes in one frame. */
  readonly maxFrameSize: number;
  /** Milliseconds that a write waits for credit after the peer's FIN. */
  readonly timeout: number;
  /** What the receive windows share. */
  readonly windows: WindowPool;
  /** Where the two ends are. */
  readonly link: Pick<Link, "localAddr" | "remoteAddr">;
  /** Position of the frame that is being received, for errors. */
  readonly decoder: { readonly frameOffset: number };
  /** The way out. */
  readonly writer: FrameOutput & {
    /** Version of the session. */
    readonly version: Version;
    /** Encodes the control frames that are due, now or when there is room. */
    queueControl(source: ControlSource): void;
  };
  /** Bytes that were received have been read or dropped; what the stream still has is in its `unread`. */
  refund(stream: StreamCore, count: number): void;
  /** `finishRead` of this stream is to be called when everything that has arrived is decoded. */
  finishReadLater(stream: StreamCore): void;
  /** A read of this stream waits. */
  readWaits(stream: StreamCore): void;
  /** The stream has left: its id may come again. */
  remove(stream: StreamCore): void;
}

/** One stream as its session sees it. */
export class StreamCore implements ControlSource, ReceiveHost, SendHost {
  /** Id on the wire. */
  readonly id: number;
  /** The same stream as users hold it. */
  readonly stream: Stream;
  /** What arrives. */
  readonly receiving: ReceiveHalf;
  /** What is sent. */
  readonly sending: SendHalf;
  isQueued = false;
  isUpdateDue = false;
  isFinDue = false;
  /** The session's batch of finished reads in which this stream was last; 0 since it reads again. */
  batch = 0;
  readonly #host: StreamHost;
  #isClosed = false;
  // Whether `closed` fulfils: it ended both ways or was closed here, before any failure.
  #isDone = false;
  // Makes the error of an operation: each gets its own, with the stack of the caller.
  #failure: Failure | undefined;
  #closed: PromiseWithResolvers<void> | undefined;
  // Most streams have none.
  #watchers: Set<() => void> | undefined;

  /**
   * @param host The session.
   * @param id Id on the wire.
   */
  constructor(host: StreamHost, id: number) {
    this.#host = host;
    this.id = id;
    const hasCredit = host.writer.version === 2;
    this.sending = new SendHalf(this, hasCredit);
    this.receiving = new ReceiveHalf(this, hasCredit);
    this.stream = makeStream(this);
  }

  // What the halves need.

  get maxFrameSize(): number {
    return this.#host.maxFrameSize;
  }

  get timeout(): number {
    return this.#host.timeout;
  }

  get windows(): WindowPool {
    return this.#host.windows;
  }

  get frameOffset(): number {
    return this.#host.decoder.frameOffset;
  }

  get output(): FrameOutput {
    return this.#host.writer;
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  get isEndedByPeer(): boolean {
    return this.receiving.isEndedByPeer;
  }

  get failure(): Failure | undefined {
    return this.#failure;
  }

  queueUpdate(): void {
    this.isUpdateDue = true;
    this.#host.writer.queueControl(this);
  }

  dropUpdate(): void {
    this.isUpdateDue = false;
  }

  queueFin(): void {
    this.isFinDue = true;
    this.#host.writer.queueControl(this);
  }

  finishReadLater(): void {
    this.#host.finishReadLater(this);
  }

  readWaits(): void {
    this.#host.readWaits(this);
  }

  refund(count: number): void {
    this.#host.refund(this, count);
  }

  report(): void {
    if (this.#watchers !== undefined) { for (const run of this.#watchers) run(); }
  }

  // What the writer needs.

  get consumed(): number {
    return this.receiving.window.consumed;
  }

  advertise(): number {
    return this.receiving.window.advertise();
  }

  finEncoded(): void {
    this.sending.finish();
    if (this.isEndedByPeer || this.#isClosed || this.#failure !== undefined) this.#leave();
  }

  // What the session does to a stream.

  /** Where the two ends are. */
  get link(): Pick<Link, "localAddr" | "remoteAddr"> {
    return this.#host.link;
  }

  /** Bytes received and not read, charged to the session. */
  get unread(): number {
    return this.receiving.unread;
  }

  /** Sends the peer the first window, where it is smaller than what every peer starts from. */
  announce(): void {
    // An acceptor may have closed it at once.
    if (this.receiving.hasSmallWindow && !this.#isClosed && this.#failure === undefined) this.queueUpdate();
  }

  /** Takes in data that arrived: the bytes of `buffer` from `start` to before `end`. */
  receive(buffer: ReadBuffer, start: number, end: number): void {
    this.receiving.receive(buffer, start, end);
  }

  /** Takes in the peer's FIN. */
  receiveFin(): void {
    if (!this.receiving.receiveFin()) return;
    this.sending.peerEnded();
    if (this.sending.isFinished) this.#leave();
  }

  /**
   * The session has ended: what arrived stays readable, all else fails. What waits is settled by `notifyWaiters`.
   *
   * @returns Whether it is the first failure.
   */
  fail(failure: Failure): boolean {
    if (this.#failure !== undefined) return false;
    this.#failure = failure;
    this.isFinDue = false;
    this.receiving.fail();
    return true;
  }

  /**
   * Settles what waits on a stream that has failed.
   *
   * @returns Whether anything did.
   */
  notifyWaiters(): boolean {
    const isAwaited = this.receiving.isReading || this.sending.isWriting || this.#closed !== undefined ||
      this.#watchers !== undefined;
    this.sending.releaseWaiters();
    this.receiving.finishRead();
    if (!this.#isDone) this.#closed?.reject(this.#failure!());
    this.report();
    return isAwaited;
  }

  /** Ends both ways, with a FIN and for this reason; the session lives. */
  cut(failure: () => Error): void {
    if (this.#failure !== undefined || this.#isClosed) return;
    this.receiving.cut();
    this.#isDone = false;
    this.fail(failure);
    this.notifyWaiters();
    if (this.sending.isFinished) this.#leave();
    else this.queueFin();
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

  // What users do to a stream, beside reading and writing.

  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.receiving.close();
    this.sending.releaseWaiters();
    this.#done();
    if (this.#failure === undefined) {
      if (this.sending.isFinished) this.#leave();
      else this.queueFin();
    }
    this.report();
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

  #leave(): void {
    this.#host.remove(this);
    this.#done();
  }

  #done(): void {
    // Failures are reported by `notifyWaiters`.
    if (this.#failure !== undefined) return;
    this.#isDone = true;
    this.#closed?.resolve();
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
   * @param options A signal that gives up the wait.
   * @returns The number of bytes, at most `p.length`; `null` after the peer's end, and only then. 0 for an empty `p`, at once.
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
  read(p: Uint8Array, options?: AbortOptions): Promise<number | null> {
    return this.#core.receiving.read(p, options?.signal);
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
    return this.#core.receiving.tryRead(p);
  }

  /**
   * Writes all of `p`. Writes at the same time leave whole, in the order of the calls.
   *
   * It fulfils when the bytes are in the session's buffer, on their way but not yet delivered; until then `p` belongs
   * to the stream. Nothing is sent for an empty `p`.
   *
   * @param p What to write.
   * @param options A signal that gives up the wait.
   * @returns `p.length`, or less if the signal aborted after some bytes were encoded.
   * @throws {SessionClosedError} The session ended; `bytesWritten` is the number of bytes that were encoded before.
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
  write(p: Uint8Array, options?: AbortOptions): Promise<number> {
    const written = this.#core.sending.write(p, options?.signal);
    return typeof written === "number" ? Promise.resolve(written) : written;
  }

  /**
   * Writes the bytes of `p` for which there is room and credit, at once.
   *
   * @param p What to write.
   * @returns The number of bytes; 0 when it would have to wait, or another write waits.
   * @throws As {@linkcode Stream.write} rejects.
   *
   * @example Leaving out samples while the peer is slow
   * ```ts
   * import { Session } from "@sluice/smux";
   * import { assertEquals, assertGreater } from "@std/assert";
   *
   * const session = Session.client({ readable: new ReadableStream(), writable: new WritableStream() });
   * const stream = await session.openStream();
   * const sample = new Uint8Array(1000);
   * let written = 0;
   * for (let n = 0; n < 10_000; n++) {
   *   if (stream.tryWrite(sample) < sample.length) break; // the part that was written will leave
   *   written++;
   * }
   * assertGreater(written, 0);
   * assertEquals(stream.tryWrite(sample), 0);
   * session.abort();
   * ```
   */
  tryWrite(p: Uint8Array): number {
    return this.#core.sending.tryWrite(p);
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
    return this.#readable ??= makeReadable(this.#core, this.#core.receiving);
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
    return this.#writable ??= makeWritable(this.#core, this.#core.sending);
  }

  /**
   * Ends writing: writes that wait are finished, then FIN is sent. Reading goes on.
   *
   * @returns Fulfils when the end is in the session's buffer; the same promise each time.
   * @throws {SessionClosedError} The session ended before.
   */
  closeWrite(): Promise<void> {
    return this.#core.sending.closeWrite();
  }

  /**
   * Ends both directions at once: reads and writes that wait reject, unread bytes are dropped, bytes that were encoded are
   * still sent, and FIN follows unless it was sent before. Closing again does nothing.
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
