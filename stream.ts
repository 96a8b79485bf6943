/**
 * One logical stream: the public {@linkcode Stream}, and the {@linkcode StreamCore} that joins its two halves for the
 * session. {@linkcode StreamHost} is what a stream needs from its session.
 *
 * @module
 */

import { deferred } from "./_deferred.ts";
import { StreamClosedError, StreamResetError } from "./errors.ts";
import { ReceiveHalf, type ReceiveHost } from "./_receive_half.ts";
import { type Failure, type FrameOutput, SendHalf, type SendHost } from "./_send_half.ts";
import { makeReadable, makeWritable } from "./_web_streams.ts";
import type { ControlSource } from "./_writer.ts";
import type { Version } from "./frame.ts";
import type { Address, Link, ReadBuffer } from "./transport.ts";
import type { WindowPool } from "./_window.ts";

/**
 * Options of operations that can be aborted: {@linkcode Stream.read}, {@linkcode Stream.write},
 * {@linkcode Session.openStream}, {@linkcode Session.acceptStream} and {@linkcode join}.
 *
 * @example A read with a time limit
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
 * const options: AbortOptions = { signal: AbortSignal.timeout(10) };
 * const error = await assertRejects(() => asking.read(p, options), DOMException);
 * assertEquals(error.name, "TimeoutError");
 *
 * await answering.write(new Uint8Array(7));
 * assertEquals(await asking.read(p), 7); // the aborted read has consumed nothing
 * listener.close();
 * ```
 */
export interface AbortOptions {
  /**
   * Aborts the operation, which then rejects with the signal's `reason`. A read or a write that has already transferred
   * bytes resolves with their number instead.
   */
  signal?: AbortSignal | undefined;
}

/** What a stream needs from its session. */
export interface StreamHost {
  /** Maximum payload of one frame, in bytes. */
  readonly maxFrameSize: number;
  /** Milliseconds that a write waits for credit after the peer's FIN. */
  readonly timeout: number;
  /** State shared by the receive windows of the session. */
  readonly windows: WindowPool;
  /** The connection: its addresses, whether it waits for another one below, and how often that was replaced. */
  readonly link: Pick<Link, "localAddr" | "remoteAddr" | "isSuspended" | "resumptions">;
  /** Position of the frame that is being received, for errors. */
  readonly decoder: { readonly frameOffset: number };
  /** Encodes the stream's frames. */
  readonly writer: FrameOutput & {
    /** Version of the session. */
    readonly version: Version;
    /** Encodes the control frames that are due, now or when there is room. */
    queueControl(source: ControlSource): void;
    /** Called when the stream leaves the session: nothing of it waits for room any more. */
    dequeueControl(source: ControlSource): void;
  };
  /** Called when `count` received bytes were read or dropped. `stream.unread` does not include them any more. */
  refund(stream: StreamCore, count: number): void;
  /** Requests a call of the stream's `finishRead` after everything that has arrived is decoded. */
  finishReadLater(stream: StreamCore): void;
  /** Called when a read of the stream waits. */
  readWaits(stream: StreamCore): void;
  /** Removes the stream from the session. The peer may reuse its id. */
  remove(stream: StreamCore): void;
}

/** One stream, as its session uses it. */
export class StreamCore implements ControlSource, ReceiveHost, SendHost {
  /** Id on the wire. */
  readonly id: number;
  /** The public object of this stream. */
  readonly stream: Stream;
  /** The receiving half. */
  readonly receiving: ReceiveHalf;
  /** The sending half. */
  readonly sending: SendHalf;
  isQueued = false;
  isUpdateDue = false;
  isFinDue = false;
  isResetDue = false;
  isAborted = false;
  /** Whether the application has received the error that ended the stream, or has passed it to `abort`. */
  isReported = false;
  /** Number of the session's last batch of finished reads with this stream; 0 after the stream reads again. */
  batch = 0;
  nextInBucket: StreamCore | undefined = undefined;
  readonly #host: StreamHost;
  #isClosed = false;
  // Whether `closed` resolves: both directions ended, or `close()` was called, before any failure.
  #isDone = false;
  // Creates the error of an operation, after the stream has failed.
  #failure: Failure | undefined;
  // Whether that is because the peer has aborted the stream.
  #isReset = false;
  #closed: PromiseWithResolvers<void> | undefined;
  // Created on first use.
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

  // Called by the halves.

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

  /** Whether the peer has ended its direction, or aborted the stream: no more data is in flight. */
  get isEndedByPeer(): boolean {
    return this.#isReset || this.receiving.isEndedByPeer;
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

  reported<T>(failure: (bytesWritten?: number) => T): (bytesWritten?: number) => T {
    return (bytesWritten) => {
      this.isReported = true;
      return failure(bytesWritten);
    };
  }

  report(): void {
    if (this.#watchers !== undefined) { for (const run of this.#watchers) run(); }
  }

  // Called by the writer.

  get consumed(): number {
    return this.receiving.window.consumed;
  }

  advertise(): number {
    return this.receiving.window.advertise();
  }

  get isFinEncoded(): boolean {
    return this.sending.isFinished;
  }

  finEncoded(): void {
    this.sending.finish();
    if (this.isEndedByPeer || this.#isClosed || this.#failure !== undefined) this.#leave();
  }

  resetEncoded(): void {
    this.sending.finish();
    this.#leave();
  }

  // Called by the session.

  /** The addresses of the connection. */
  get link(): StreamHost["link"] {
    return this.#host.link;
  }

  /** Bytes received and not read, which count against the session's limit. */
  get unread(): number {
    return this.receiving.unread;
  }

  /** Sends a UPD with the first window, if that is smaller than the peer assumes. */
  announce(): void {
    // An acceptor may already have closed the stream.
    if (this.receiving.hasSmallWindow && !this.#isClosed && this.#failure === undefined) this.queueUpdate();
  }

  /** Receives data: the bytes of `buffer` from `start` to before `end`. */
  receive(buffer: ReadBuffer, start: number, end: number): void {
    this.receiving.receive(buffer, start, end);
  }

  /** Receives the peer's FIN. */
  receiveFin(): void {
    if (!this.receiving.receiveFin()) return;
    this.sending.peerEnded();
    if (this.sending.isFinished) this.#leave();
  }

  /**
   * Receives the signal that the peer has aborted the stream: received data stays readable, everything else rejects.
   *
   * The stream stays in the table, and counts against `maxStreams`, until the application has received an error or
   * calls `close()`: otherwise a peer could open and abort streams faster than their handlers notice.
   *
   * @returns `false` if it has no effect.
   */
  receiveReset(): boolean {
    if (this.#isClosed || this.#failure !== undefined) return false;
    this.#isReset = true;
    this.fail(() => {
      this.#leave();
      return new StreamResetError("The peer aborted the stream");
    });
    if (this.sending.isFinished) this.#leave();
    this.notifyWaiters();
    return true;
  }

  /**
   * Fails the stream: received data stays readable, everything else rejects. `notifyWaiters` settles pending
   * operations.
   *
   * @returns `false` if the stream had failed before.
   */
  fail(failure: Failure): boolean {
    if (this.#failure !== undefined) return false;
    this.#failure = this.reported(failure);
    this.isFinDue = false;
    this.receiving.fail();
    return true;
  }

  /**
   * Settles the pending operations of a stream that has failed.
   *
   * @returns Whether there were any.
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

  /** Ends both directions with an error, drops unread data, and aborts the stream at the peer. The session goes on. */
  cut(failure: Failure): void {
    if (this.#isReset) {
      // Only unread data is left.
      this.receiving.cut();
      this.#leave();
    }
    if (this.#failure !== undefined || this.#isClosed) return;
    const { isFinDue } = this;
    const isOver = this.#isDone;
    this.receiving.cut();
    this.#isDone = false;
    this.fail(failure);
    this.notifyWaiters();
    // At the peer, too, both directions have ended.
    if (isOver) return;
    this.isFinDue = isFinDue;
    this.isResetDue = true;
    this.#host.writer.queueControl(this);
  }

  /**
   * Calls `run` now, and again each time when reading or writing has failed for good or the stream was closed here.
   *
   * @returns A function that stops the calls.
   */
  watch(run: () => void): () => void {
    (this.#watchers ??= new Set()).add(run);
    run();
    return () => void this.#watchers!.delete(run);
  }

  // Called by `Stream`.

  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.receiving.close();
    this.sending.releaseWaiters();
    this.#done();
    if (this.#failure === undefined) {
      if (this.sending.isFinished) this.#leave();
      else this.queueFin();
    } else if (this.#isReset) {
      this.#leave();
    }
    this.report();
    this.#host.writer.flushOverdue();
  }

  abort(reason: unknown): void {
    if (this.#failure !== undefined || this.#isClosed) return;
    const isDone = this.#isDone;
    this.isAborted = this.isReported = true;
    this.cut(() => reason);
    this.#isDone = isDone;
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
    // While the peer reads nothing, the queue would grow with each stream that it opens and aborts.
    this.#host.writer.dequeueControl(this);
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

/** Returns the core of a stream. */
export let coreOf: (stream: Stream) => StreamCore;

/**
 * A bidirectional byte stream of a {@linkcode Session}, with the shape of a `Deno.Conn`.
 *
 * `read` and `write` are fastest, `readable` and `writable` are web streams, `tryRead` and `tryWrite` never wait. The
 * two directions end independently: {@linkcode Stream.closeWrite} ends the local one, and {@linkcode Stream.read}
 * returns `null` after the peer has ended the other.
 *
 * {@linkcode Stream.abort} reports a failure to the peer, if that is Sluice, too. smux itself cannot report why a
 * stream ended: a refusal, `close()` in the middle and an aborted pipe all look like a normal end to the peer. With
 * other peers a protocol that must recognize a complete message has to send its length.
 *
 * A stream stays open until both directions have ended, it is closed, or its session ends. Garbage collection does not
 * close it.
 *
 * @example Sending a text
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

  /** The stream id on the wire: odd for a stream that the client opened, even for one that the server opened. */
  get id(): number {
    return this.#core.id;
  }

  /** The local address of the session's connection. */
  get localAddr(): Address {
    return this.#core.link.localAddr;
  }

  /** The remote address of the session's connection. */
  get remoteAddr(): Address {
    return this.#core.link.remoteAddr;
  }

  /**
   * Reads received bytes into `p`; waits if there are none. Concurrent reads are served in the order of the calls.
   *
   * Do not access `p` until the promise has settled. Bytes received before the session ended can still be read.
   *
   * @param p The buffer to read into.
   * @param options A signal that aborts the wait.
   * @returns The number of bytes, from 1 to `p.length`; `null` only after the peer has ended its direction; 0 if `p` is
   *   empty, or if {@linkcode Stream.readable} was cancelled during the read.
   * @throws {SessionClosedError} The session ended before the peer ended this stream.
   * @throws {StreamClosedError} The stream was closed by {@linkcode Stream.close}.
   * @throws {StreamResetError} The peer aborted the stream, and everything that had arrived was read.
   * @throws {ProtocolError} The peer sent more than its credit allowed.
   * @throws {DOMException} "TimeoutError": the stream was cut by `stalledStreamTimeout`.
   * @throws {TypeError} `p` is not a `Uint8Array`, or was transferred during the wait, or resized to nothing. No byte is
   *   lost.
   * @throws The reason of the signal, when it aborts, or of {@linkcode Stream.abort}.
   *
   * @example Reading up to a delimiter
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
   * // Reads do not keep the boundaries of writes.
   * const delimiter = new TextEncoder().encode("\r\n\r\n");
   * let head = new Uint8Array(0);
   * for (const p = new Uint8Array(1024); indexOfNeedle(head, delimiter) === -1;) {
   *   const count = await from.read(p);
   *   if (count === null) throw new Error("The stream ended before the delimiter");
   *   head = concat([head, p.subarray(0, count)]);
   * }
   * assertEquals(indexOfNeedle(head, delimiter), "HTTP/1.1 200 OK".length);
   * listener.close();
   * ```
   */
  read(p: Uint8Array, options?: AbortOptions): Promise<number | null> {
    return this.#core.receiving.read(p, options?.signal);
  }

  /**
   * Reads received bytes into `p` without waiting.
   *
   * @param p The buffer to read into, not empty.
   * @returns The number of bytes; 0 if there are none now or another read waits; `null` after the peer has ended its
   *   direction.
   * @throws {RangeError} `p` is empty.
   * @throws The errors of {@linkcode Stream.read}, except the reason of a signal.
   */
  tryRead(p: Uint8Array): number | null {
    return this.#core.receiving.tryRead(p);
  }

  /**
   * Writes all of `p`. Concurrent writes are sent in the order of the calls and are not interleaved.
   *
   * It resolves when the bytes are in the session's write buffer, not when they are delivered. Do not change `p` until
   * then. An empty `p` sends nothing.
   *
   * Errors, except that of a `p` of a wrong type and the reason of a signal or of {@linkcode Stream.abort}, have a
   * property `bytesWritten`: the number of bytes of `p` that had been encoded.
   *
   * @param p The bytes to write.
   * @param options A signal that aborts the wait.
   * @returns `p.length`, or less if the signal aborted after some bytes were encoded.
   * @throws {SessionClosedError} The session is closing or has ended.
   * @throws {StreamClosedError} {@linkcode Stream.close} or {@linkcode Stream.closeWrite} was called before.
   * @throws {StreamResetError} The peer aborted the stream.
   * @throws {ProtocolError} The peer acknowledged more than was sent, or sent more than its credit allowed.
   * @throws {DOMException} "TimeoutError": the peer has ended its direction and granted no credit for the session's
   *   `timeout` (version 2), or the stream was cut by `stalledStreamTimeout`.
   * @throws {TypeError} `p` is not a `Uint8Array`, or was transferred or resized to fewer bytes during the wait.
   * @throws The reason of the signal, when it aborts before a byte was encoded, or of {@linkcode Stream.abort}.
   *
   * @example Concurrent writes
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
   * assert(equals(received, concat(parts))); // not interleaved
   * await written;
   * listener.close();
   * ```
   */
  write(p: Uint8Array, options?: AbortOptions): Promise<number> {
    const written = this.#core.sending.write(p, options?.signal);
    return typeof written === "number" ? Promise.resolve(written) : written;
  }

  /**
   * Writes the bytes at the start of `p` for which there is room and credit, without waiting.
   *
   * @param p The bytes to write.
   * @returns The number of bytes written; 0 if there is no room or credit, or another write waits.
   * @throws The errors of {@linkcode Stream.write}, except the reason of a signal.
   *
   * @example Dropping samples while the peer is slow
   * ```ts
   * import { Session } from "@sluice/smux";
   * import { assertEquals, assertGreater } from "@std/assert";
   *
   * const session = Session.client({ readable: new ReadableStream(), writable: new WritableStream() });
   * const stream = await session.openStream();
   * const sample = new Uint8Array(1000);
   * let written = 0;
   * for (let n = 0; n < 10_000; n++) {
   *   if (stream.tryWrite(sample) < sample.length) break; // a part of the sample may have been written
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
   * The received data as a readable byte stream, created on first use. It reads nothing ahead. But a pending read into
   * a buffer of the reader, or under load, consumes the next bytes even after `releaseLock`: the next reader gets them.
   *
   * Cancelling it drops unread and later data; writing goes on. When the session is lost or the peer aborts the stream,
   * it fails after the received data was read.
   *
   * @example Reading lines of two streams at once
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
   * The data to send as a writable stream, created on first use.
   *
   * Closing it calls {@linkcode Stream.closeWrite}. Aborting it, or a chunk that cannot be written, sends FIN after the
   * data already encoded. When the session is lost or the stream is closed or aborted, at either end, it fails at once,
   * so that a pipe into it ends even if its source is idle.
   *
   * @example Piping a readable stream
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
   * Ends the writing direction: pending writes finish, and the chunks in the queue of {@linkcode Stream.writable} are
   * sent, then FIN. Reading goes on.
   *
   * @returns A promise that resolves when FIN is in the session's write buffer. Later calls return the same promise.
   * @throws {SessionClosedError} The session ended before FIN was encoded.
   * @throws {StreamResetError} The peer aborted the stream before FIN was encoded.
   * @throws {ProtocolError} The peer acknowledged more than was sent, or sent more than its credit allowed.
   * @throws {DOMException} "TimeoutError": the stream was cut by `stalledStreamTimeout`.
   * @throws The reason of {@linkcode Stream.abort}.
   */
  closeWrite(): Promise<void> {
    return this.#core.sending.closeWrite();
  }

  /**
   * Closes both directions at once. Pending reads and writes reject with a {@linkcode StreamClosedError}, and unread
   * bytes are dropped. Encoded bytes are still sent, then FIN unless it was sent before. Closing again has no effect.
   */
  close(): void {
    this.#core.close();
  }

  /**
   * Aborts both directions at once, so that the peer does not take what it has received for complete.
   *
   * Pending and later reads and writes reject with `reason`, and unread bytes are dropped. Encoded bytes are still
   * sent. If the peer is Sluice, its reads reject with a {@linkcode StreamResetError} after these bytes, and its writes
   * at once. To any other peer it looks like {@linkcode Stream.close}. A direction that has ended before with
   * {@linkcode Stream.closeWrite} stays complete. Aborting a stream that has failed or was closed has no effect.
   *
   * @param reason What reads, writes and `closed` reject with. Default: a {@linkcode StreamClosedError}.
   *
   * @example Aborting an upload
   * ```ts
   * import { Session, StreamResetError } from "@sluice/smux";
   * import { assertEquals, assertRejects } from "@std/assert";
   *
   * const listener = Deno.listen({ port: 0 });
   * await using client = Session.client(await Deno.connect({ port: listener.addr.port }));
   * await using server = Session.server(await listener.accept());
   * const [upload, received] = await Promise.all([client.openStream(), server.acceptStream()]);
   *
   * await upload.write(new Uint8Array(1000));
   * upload.abort(new Error("the file has changed"));
   * await assertRejects(() => upload.write(new Uint8Array(1000)), Error, "the file has changed");
   *
   * const p = new Uint8Array(4096);
   * assertEquals(await received.read(p), 1000);
   * await assertRejects(() => received.read(p), StreamResetError); // not null
   * listener.close();
   * ```
   */
  abort(reason: unknown = new StreamClosedError("The stream was aborted")): void {
    this.#core.abort(reason);
  }

  /**
   * Resolves when both directions have ended or {@linkcode Stream.close} was called, and rejects with the error that
   * ended the stream otherwise: a {@linkcode StreamResetError} if the peer aborted it. It may be ignored: a rejection
   * is never reported as unhandled.
   */
  get closed(): Promise<void> {
    return this.#core.closed;
  }

  /** Has no effect, because streams share their connection. See {@linkcode Session.ref}. */
  ref(): void {}

  /** Has no effect, because streams share their connection. See {@linkcode Session.unref}. */
  unref(): void {}

  /** Closes the stream, for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }

  /**
   * Ends the writing direction with {@linkcode Stream.closeWrite}, then closes the stream, for `await using`.
   *
   * It rejects as `closeWrite` does, unless another operation of the stream has rejected with that error before, or
   * {@linkcode Stream.abort} was called.
   */
  async [Symbol.asyncDispose](): Promise<void> {
    const { isReported } = this.#core;
    try {
      await this.closeWrite();
    } catch (error) {
      // A second error would hide the first in a `SuppressedError`.
      if (!isReported) throw error;
    } finally {
      this.close();
    }
  }
}
