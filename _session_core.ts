/**
 * The engine of a session: the table of streams, what each frame does, opening, closing and the end.
 *
 * Reading and decoding is the matter of `FrameReader`, encoding and writing that of `FrameWriter`; time is the matter of
 * `Deadlines`.
 *
 * @module
 */

import { Acceptor, type AcceptorHost } from "./_acceptor.ts";
import { type DeadlineHost, Deadlines } from "./_deadlines.ts";
import { deferred } from "./_deferred.ts";
import { FloodGuard } from "./_flood.ts";
import { Gate } from "./_gate.ts";
import { FrameReader, type ReaderHost } from "./_reader.ts";
import { StalledStreams } from "./_stalled.ts";
import { FrameWriter, type WriterHost } from "./_writer.ts";
import { ChannelClosedError } from "./channel.ts";
import { SessionClosedError } from "./errors.ts";
import { type FrameDecoder, NOP, ProtocolError, type Version } from "./frame.ts";
import type { Settings } from "./options.ts";
import { StreamCore, type StreamHost } from "./stream.ts";
import { Table } from "./_table.ts";
import { FrameTrace } from "./_trace.ts";
import { adapt } from "./_adapt.ts";
import { isReset, type Link, type Transport } from "./transport.ts";
import { WindowPool } from "./_window.ts";

// Refusals that may wait for room; while there are more, the peer that causes them is not read.
const MAX_WAITING_REFUSALS = 1024;
// When a session ends the process yields after this many streams with waiting operations: what the application does about
// one is done in the same step, and for ten thousand streams that are piped on that is half a second.
const NOTIFY_BATCH = 64;
const LAST_ID = 2 ** 32 - 1;

/** The role of this end: the client's streams have odd ids. */
export type Role = "client" | "server";

/**
 * Where the session is:
 *
 * - `open`: streams are opened and accepted;
 * - `closing`: no more of them; what is open may finish, and what was written leaves;
 * - `lingering`: everything of ours has left, and the peer's end is awaited;
 * - `ended`: nothing moves any more.
 */
type Phase = "open" | "closing" | "lingering" | "ended";

/** One session, as its streams, its reader, its writer and its deadlines see it. */
export class SessionCore implements AcceptorHost, DeadlineHost, ReaderHost, StreamHost, WriterHost {
  readonly settings: Settings;
  readonly windows: WindowPool;
  readonly flood = new FloodGuard();
  readonly streams = new Table<StreamCore>();
  readonly writer: FrameWriter;
  readonly reader: FrameReader;
  readonly acceptor: Acceptor;
  /** Only where stalled streams are cut. */
  readonly stalled: StalledStreams | undefined;
  readonly deadlines: Deadlines;
  /** Streams opened here, ever. */
  opened = 0;
  /** Id of the next stream that is opened here. */
  nextId: number;
  readonly #role: Role;
  #phase: Phase = "open";
  // The stream whose data is being decoded.
  #current: StreamCore | undefined;
  // Each is made when first needed.
  #versionKnown: Gate | undefined;
  #drained: Gate | undefined;
  #closing: Promise<void> | undefined;
  readonly #closed = deferred<void>();
  // What ended it, if that was no clean end.
  #failure: { error: unknown } | undefined;

  /** Starts the session. */
  constructor(transport: Transport, settings: Settings, role: Role) {
    const { version, maxStreamBuffer, maxReceiveBuffer, stalledStreamTimeout, onFrame } = settings;
    this.settings = settings;
    this.#role = role;
    // As in Go.
    this.nextId = role === "client" ? 3 : 2;
    const adapted = adapt(transport);
    this.windows = new WindowPool(maxStreamBuffer, Math.floor(maxReceiveBuffer / 2), maxReceiveBuffer);
    const trace = onFrame && new FrameTrace(this, onFrame, adapted.remoteAddr, (error) => this.end(error));
    this.writer = new FrameWriter(adapted, version === "auto" ? 2 : version, this, trace);
    const expected = version === "auto" ? undefined : version;
    this.reader = new FrameReader(adapted, expected, this, this.writer, this.flood, trace);
    this.acceptor = new Acceptor(settings, this);
    if (stalledStreamTimeout !== Infinity) {
      this.stalled = new StalledStreams(stalledStreamTimeout, maxReceiveBuffer, this.windows, this.streams);
    }
    this.deadlines = new Deadlines(settings, this, this.writer);
    this.#closed.promise.catch(() => {});
    // An "auto" server learns the version from it without waiting; Go ignores it.
    if (role === "client") this.writer.tryControl(NOP, 0);
    this.deadlines.schedule();
    this.reader.run();
    adapted.failed?.catch((error) => this.transportFailed(error));
  }

  /** The version in use; `undefined` until an "auto" server has seen the first frame. */
  get version(): Version | undefined {
    return this.decoder.version;
  }

  /** Fulfils after a clean end, rejects with what ended the session otherwise. */
  get closed(): Promise<void> {
    return this.#closed.promise;
  }

  // What streams need.

  get link(): Link {
    return this.reader.link;
  }

  get decoder(): FrameDecoder {
    return this.reader.decoder;
  }

  get maxFrameSize(): number {
    return this.settings.maxFrameSize;
  }

  get timeout(): number {
    return this.settings.timeout;
  }

  refund(stream: StreamCore, count: number): void {
    this.windows.unread -= count;
    this.stalled?.read(stream);
    this.reader.wake();
  }

  finishReadLater(stream: StreamCore): void {
    this.reader.finishReadLater(stream);
  }

  readWaits(stream: StreamCore): void {
    this.reader.readWaits(stream);
  }

  remove(stream: StreamCore): void {
    if (!stream.isEndedByPeer) this.flood.expectLateData();
    this.#forget(stream);
  }

  #forget(stream: StreamCore): void {
    // The id may already have been reused.
    if (!this.streams.delete(stream)) return;
    if (this.#isRemote(stream.id)) this.acceptor.remove();
    this.stalled?.leave(stream);
    if (this.streams.size === 0) this.#drained?.notifyOne();
  }

  // Opening.

  /** Opens a stream; see `Session.openStream`. */
  async open(signal: AbortSignal | undefined): Promise<StreamCore> {
    signal?.throwIfAborted();
    if (this.version === undefined && this.#phase === "open") await this.#waitForVersion(signal);
    if (this.#phase !== "open") throw this.closedError("Cannot open a stream on a closed session");
    if (this.nextId > LAST_ID) throw new RangeError("Cannot open a stream: every stream id has been used");
    const stream = new StreamCore(this, this.nextId);
    this.nextId += 2;
    // Before the SYN can leave, or the answer of a quick peer would find no stream.
    this.streams.add(stream);
    const waiting = stream.sending.open(signal);
    if (waiting !== undefined) await this.#waitToOpen(stream, waiting);
    this.opened++;
    stream.announce();
    return stream;
  }

  async #waitForVersion(signal: AbortSignal | undefined): Promise<void> {
    try {
      await (this.#versionKnown ??= new Gate()).wait({ signal });
    } catch (error) {
      if (!(error instanceof ChannelClosedError)) throw error;
    }
  }

  async #waitToOpen(stream: StreamCore, waiting: Promise<void>): Promise<void> {
    try {
      await waiting;
    } catch (error) {
      this.#drop(stream, "The stream was never opened");
      if (!(error instanceof ChannelClosedError)) throw error;
      throw this.closedError("Cannot open a stream on a closed session");
    }
  }

  /** Removes a stream that never came to life. The peer may have sent something, which will not be read. */
  #drop(stream: StreamCore, message: string): void {
    stream.fail(() => this.closedError(message));
    stream.receiving.discard();
    this.#forget(stream);
  }

  // Frames that arrive.

  #isRemote(id: number): boolean {
    return (id % 2 === 0) === (this.#role === "client");
  }

  begin(version: Version): void {
    this.writer.version = version;
    this.#versionKnown?.notifyAll();
  }

  syn(id: number): void {
    if (id === 0 || !this.#isRemote(id)) {
      const own = this.#role === "client" ? "even" : "odd";
      const expected = `an ${own} stream id other than 0 on SYN (do both ends have the same role?)`;
      throw new ProtocolError(this.decoder.frameOffset, expected, `${id}`);
    }
    if (this.streams.get(id) !== undefined) return this.flood.uselessFrame();
    if (this.#phase !== "open" || this.acceptor.isFull) return this.#refuse(id);
    const stream = new StreamCore(this, id);
    this.streams.add(stream);
    if (!this.acceptor.add(stream)) this.decoder.interrupt();
  }

  fin(id: number): void {
    const stream = this.streams.get(id);
    if (stream?.isEndedByPeer !== false) this.flood.uselessFrame();
    else if (this.#isRemote(id) && !stream.receiving.hasData) this.flood.emptyStream();
    stream?.receiveFin();
  }

  psh(id: number, length: number): void {
    const stream = this.#current = this.streams.get(id);
    if (stream === undefined) this.flood.lateData(length);
    else if (stream.isEndedByPeer) this.flood.unwantedData(length);
    else if (length === 0) this.flood.uselessFrame();
  }

  data(_bytes: Uint8Array, start: number, end: number): void {
    const stream = this.#current;
    if (stream === undefined) return;
    // A stream of which data was dropped must not seem whole, even if its FIN still comes.
    if (this.#phase !== "lingering") return stream.receive(this.link.buffer, start, end);
    const isFirst = stream.fail(() => this.closedError("Data came after the session was closed"));
    if (isFirst) stream.notifyWaiters();
  }

  nop(): void {
    this.flood.uselessFrame();
  }

  upd(id: number, consumed: number, window: number): void {
    this.flood.uselessFrame();
    this.streams.get(id)?.sending.update(consumed, window);
  }

  // Accepting and refusing.

  handOver(): boolean {
    return this.acceptor.handOver();
  }

  acceptorsHadTurn(): void {
    this.acceptor.hadTurn();
  }

  accepted(stream: StreamCore): void {
    stream.announce();
  }

  refuseArrived(stream: StreamCore): void {
    this.#drop(stream, "The stream was refused");
    this.#refuse(stream.id);
  }

  #refuse(id: number): void {
    this.acceptor.refuse();
    this.flood.refusedStream();
    // After our own end the peer gets no answer anyway.
    if (this.#phase === "open" || this.#phase === "closing") this.writer.refuse(id);
  }

  refusalsEncoded(): void {
    this.reader.wake();
  }

  // Reading and writing.

  get hasEnded(): boolean {
    return this.#phase === "ended";
  }

  get mustPause(): boolean {
    if (this.#phase === "lingering") return false;
    return this.windows.unread >= this.settings.maxReceiveBuffer || this.writer.waitingRefusals > MAX_WAITING_REFUSALS;
  }

  heard(now: number): void {
    this.deadlines.silence.since = now;
  }

  readDone(): void {
    if (this.stalled !== undefined) this.deadlines.arm(this.stalled.watch(this.version));
  }

  transportEnded(): void {
    const { decoder } = this;
    if (decoder.isBetweenFrames) return this.#end();
    this.end(new ProtocolError(decoder.frameOffset, decoder.missing, "the end of the connection"));
  }

  transportFailed(error: unknown): void {
    // A peer that closes its socket with our last FINs unread in it resets the connection: Go's does so whenever it
    // hangs up. With no open stream and no unsent data a reset loses nothing, and counts as a clean end.
    const isHangUp = isReset(error) && this.bytesReceived > 0 && this.streams.size === 0 &&
      !this.writer.hasUnsentData && this.decoder.isBetweenFrames;
    if (isHangUp) this.#end();
    else this.end(error);
  }

  decodingFailed(error: unknown): void {
    this.end(error);
  }

  writerFailed(error: unknown): void {
    this.transportFailed(error);
  }

  writerIdle(): void {
    this.deadlines.startTrim();
  }

  // Deadlines.

  // A peer that is heard lives, even if it reads nothing: what waits for it here is bounded. While reading is paused it
  // cannot be heard, and the progress of writes is the only sign: two sessions that hold each other back would otherwise
  // never notice that the peer is gone.
  get silentSince(): number {
    if (this.#phase === "lingering") return Infinity;
    const { since } = this.deadlines.silence;
    return this.reader.isPaused ? Math.max(since, this.writer.stalledSince ?? Infinity) : since;
  }

  get isLingering(): boolean {
    return this.#phase === "lingering";
  }

  get bytesReceived(): number {
    return this.reader.bytesReceived;
  }

  keepAlive(): void {
    if (this.version !== undefined) this.writer.tryControl(NOP, 0);
  }

  silenceExpired(): void {
    const { timeout } = this.settings;
    if (this.reader.isPaused) {
      return this.#timeOut(`A write of the transport made no progress for ${timeout} ms`);
    }
    const remedy = "if it sends no keepalive, raise `timeout` or set it to Infinity";
    const hint = this.bytesReceived === 0
      ? "; not one byte ever came: the peer may speak version 1, which is Go's default"
      : "";
    this.#timeOut(`The peer was silent for ${timeout} ms: ${remedy}${hint}`);
  }

  closeExpired(limit: number): void {
    this.#timeOut(`The session did not close within ${limit} ms`);
  }

  lingerExpired(): void {
    this.#end();
  }

  #timeOut(message: string): void {
    this.end(new DOMException(message, "TimeoutError"));
  }

  checkStalled(now: number): number {
    return this.stalled === undefined ? Infinity : this.stalled.check(now, this.version);
  }

  excuse(late: number, now: number): void {
    this.stalled?.excuse(late, now);
  }

  // The end.

  /** Closes in order; see `Session.close`. */
  close(drain: boolean, timeout: number): Promise<void> {
    if (this.#closing === undefined) {
      this.#closing = this.#closed.promise.catch(() => {});
      if (!this.hasEnded) this.#closeInOrder(drain, timeout);
    }
    return this.#closing;
  }

  async #closeInOrder(drain: boolean, timeout: number): Promise<void> {
    this.#phase = "closing";
    this.acceptor.close();
    this.#versionKnown?.close();
    this.deadlines.startClose(timeout);
    try {
      while (drain && this.streams.size > 0) await (this.#drained ??= new Gate()).wait();
      const failure = () => this.closedError("Cannot write to a stream of a closed session");
      await Promise.all(this.streams.values().map((stream) => stream.sending.end(failure)));
      await this.writer.flushed();
      if (this.hasEnded) return;
      // A socket closed while it holds unread bytes is reset, and the peer loses what it had not read: so read on.
      this.#phase = "lingering";
      this.writer.end();
      this.reader.wake();
      this.link.closeWrite().catch(() => {});
      this.deadlines.startLinger();
    } catch {
      // The end came first, and closed the gate that was waited at.
    }
  }

  /** Ends at once, with an error. */
  end(error: unknown): void {
    this.#end({ error });
  }

  /** The one end, in whatever way it comes: with a failure it is unclean. */
  #end(failure?: { error: unknown }): void {
    if (this.hasEnded) return;
    // After everything of ours has left in order, errors of the connection are ignored.
    if (this.#phase !== "lingering") this.#failure = failure;
    this.#phase = "ended";
    this.deadlines.end();
    this.acceptor.close(this.#failure && this.closedError("The session has ended"));
    this.writer.end();
    const makeError = this.#makeErrors();
    const streams = this.streams.values();
    for (const stream of streams) {
      stream.fail(makeError);
      this.streams.delete(stream);
    }
    this.stalled?.end();
    this.#versionKnown?.close();
    this.#drained?.close();
    this.reader.end();
    this.link.close();
    this.#notify(streams);
  }

  // Waiters share errors: one is, with its stack, as large as a waiting stream, and thousands may wait. A write has its
  // count stamped on its error, so writes never share with other operations.
  #makeErrors(): (bytesWritten?: number) => Error {
    let shared: SessionClosedError | undefined;
    let sharedByWrites: SessionClosedError | undefined;
    const own = () => this.closedError("The session ended before the stream did");
    return (bytesWritten) => {
      if (bytesWritten === undefined) return shared ??= own();
      return bytesWritten > 0 ? own() : sharedByWrites ??= own();
    };
  }

  /** Settles what waits for room, for one of these streams, or for the end. */
  async #notify(streams: StreamCore[]): Promise<void> {
    const { slice } = this.reader;
    const pending = [slice.end(), this.writer.slice.end()];
    while (this.writer.dismiss(NOTIFY_BATCH)) await slice.yieldToEventLoop();
    let notified = 0;
    for (const stream of streams) {
      if (stream.notifyWaiters() && ++notified % NOTIFY_BATCH === 0) await slice.yieldToEventLoop();
    }
    for (const others of pending) if (others !== undefined) await others;
    if (this.#failure === undefined) this.#closed.resolve();
    else this.#closed.reject(this.#failure.error);
  }

  /** The error of an operation on a session that is closing or has ended. */
  closedError(message: string): SessionClosedError {
    return new SessionClosedError(message, this.#failure && { cause: this.#failure.error });
  }
}
