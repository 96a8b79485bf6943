/**
 * The core of a session: the table of streams, the effect of each frame, opening, closing and the end.
 *
 * `FrameReader` reads and decodes, `FrameWriter` encodes and writes, `Deadlines` has the timer.
 *
 * @module
 */

import { Acceptor, type AcceptorHost } from "./_acceptor.ts";
import { type DeadlineHost, Deadlines } from "./_deadlines.ts";
import { deferred } from "./_deferred.ts";
import { invalidSignal } from "./_describe.ts";
import { FloodGuard } from "./_flood.ts";
import { Gate } from "./_gate.ts";
import { FrameReader, type ReaderHost } from "./_reader.ts";
import { ResetDetector } from "./_reset.ts";
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

/**
 * Refusals that may wait for room; beyond this number reading pauses. Larger: more memory for a hostile peer; smaller:
 * pauses for an honest one.
 */
export const MAX_WAITING_REFUSALS = 1024;
// At the end of a session the process yields after notifying this many streams, because the application reacts to each
// notification at once. Larger: the event loop is blocked longer; smaller: the end takes longer.
const NOTIFY_BATCH = 64;
/** The last id of a stream. */
export const LAST_ID = 2 ** 32 - 1;

/** The role of this end. The client opens streams with odd ids, the server with even ids. */
export type Role = "client" | "server";

/**
 * Phase of the session:
 *
 * - `open`: streams are opened and accepted;
 * - `closing`: no new streams; open ones may finish, and written data is sent;
 * - `lingering`: everything was sent; the session waits for the peer's end;
 * - `ended`: nothing is sent or received.
 */
type Phase = "open" | "closing" | "lingering" | "ended";

/** One session, as its streams, its reader, its writer and its deadlines use it. */
export class SessionCore implements AcceptorHost, DeadlineHost, ReaderHost, StreamHost, WriterHost {
  readonly settings: Settings;
  readonly windows: WindowPool;
  readonly flood = new FloodGuard();
  readonly streams = new Table<StreamCore>();
  readonly writer: FrameWriter;
  readonly reader: FrameReader;
  readonly acceptor: Acceptor;
  /** `undefined` if `stalledStreamTimeout` is `Infinity`. */
  readonly stalled: StalledStreams | undefined;
  readonly deadlines: Deadlines;
  /** Total number of streams opened by this end. */
  opened = 0;
  /** Id of the next stream that this end opens. */
  nextId: number;
  readonly #role: Role;
  readonly #resets = new ResetDetector();
  #phase: Phase = "open";
  // The stream whose data is being decoded.
  #current: StreamCore | undefined;
  // Created on first use.
  #versionKnown: Gate | undefined;
  #drained: Gate | undefined;
  #closing: Promise<void> | undefined;
  readonly #closed = deferred<void>();
  // The error that ended the session, unless it ended cleanly.
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
    const trace = onFrame && new FrameTrace(this, onFrame, adapted, (error) => this.end(error));
    this.writer = new FrameWriter(adapted, version === "auto" ? 2 : version, this, trace);
    const expected = version === "auto" ? undefined : version;
    this.reader = new FrameReader(adapted, expected, this, this.writer, trace);
    this.acceptor = new Acceptor(settings, this);
    if (stalledStreamTimeout !== Infinity) {
      this.stalled = new StalledStreams(stalledStreamTimeout, maxReceiveBuffer, this.windows, this.streams);
    }
    this.deadlines = new Deadlines(settings, this, this.writer);
    this.#closed.promise.catch(() => {});
    // Lets an "auto" server learn the version at once. Go ignores it.
    if (role === "client") this.writer.tryControl(NOP, 0);
    this.deadlines.schedule();
    this.reader.run();
  }

  /** The version in use; `undefined` until an "auto" server has received the first frame. */
  get version(): Version | undefined {
    return this.decoder.version;
  }

  /** Resolves after a clean end; rejects with the error that ended the session otherwise. */
  get closed(): Promise<void> {
    return this.#closed.promise;
  }

  // Called by streams.

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
    if (this.#forget(stream) && !stream.isEndedByPeer) this.flood.expectLateData();
  }

  /** Returns `false` if the stream was not in the table. */
  #forget(stream: StreamCore): boolean {
    // The id may already have been reused.
    if (!this.streams.delete(stream)) return false;
    if (this.#isRemote(stream.id)) this.acceptor.remove();
    this.stalled?.leave(stream);
    if (this.streams.size === 0) this.#drained?.notifyOne();
    return true;
  }

  // Opening.

  /** Implements `Session.openStream`. Returns no promise if it need not wait: a promise costs more than a SYN. */
  open(signal: AbortSignal | undefined): StreamCore | Promise<StreamCore> {
    const invalid = invalidSignal(signal);
    if (invalid !== undefined) throw invalid;
    signal?.throwIfAborted();
    return this.version === undefined && this.#phase === "open" ? this.#openLater(signal) : this.#open(signal);
  }

  async #openLater(signal: AbortSignal | undefined): Promise<StreamCore> {
    await this.#waitForVersion(signal);
    return this.#open(signal);
  }

  #open(signal: AbortSignal | undefined): StreamCore | Promise<StreamCore> {
    if (this.#phase !== "open") throw this.closedError("Cannot open a stream on a closed session");
    if (this.nextId > LAST_ID) throw new RangeError("Cannot open a stream: every stream id has been used");
    const stream = new StreamCore(this, this.nextId);
    this.nextId += 2;
    // Before the SYN can leave: the answer of a fast peer must find the stream.
    this.streams.add(stream);
    const waiting = stream.sending.open(signal);
    return waiting === undefined ? this.#announce(stream) : this.#waitToOpen(stream, waiting);
  }

  /** The SYN is encoded. */
  #announce(stream: StreamCore): StreamCore {
    this.opened++;
    stream.announce();
    this.writer.flushOverdue();
    return stream;
  }

  async #waitForVersion(signal: AbortSignal | undefined): Promise<void> {
    try {
      await (this.#versionKnown ??= new Gate()).wait({ signal });
    } catch (error) {
      if (!(error instanceof ChannelClosedError)) throw error;
    }
  }

  async #waitToOpen(stream: StreamCore, waiting: Promise<void>): Promise<StreamCore> {
    try {
      await waiting;
      return this.#announce(stream);
    } catch (error) {
      this.#drop(stream, "The stream was not opened");
      if (!(error instanceof ChannelClosedError)) throw error;
      throw this.closedError("Cannot open a stream on a closed session");
    }
  }

  /** Removes a stream that was not opened or accepted, and drops its received data. */
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
    if (stream === undefined || stream.isEndedByPeer || stream.failure !== undefined) this.flood.uselessFrame();
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
    // While lingering, data is dropped. The stream fails, so that a later FIN does not make it look complete.
    if (this.#phase !== "lingering") return stream.receive(this.link.buffer, start, end);
    const isFirst = stream.fail(() => this.closedError("Data arrived after the session was closed"));
    if (isFirst) stream.notifyWaiters();
  }

  nop(id: number): void {
    this.flood.uselessFrame();
    const aborted = this.#resets.nop(id, this.decoder.frames);
    if (aborted !== undefined && this.streams.get(aborted)?.receiveReset()) this.flood.abortedStream();
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
    // After the half-close nothing can be sent.
    if (this.#phase === "open" || this.#phase === "closing") this.writer.refuse(id);
  }

  refusalsEncoded(): void {
    this.reader.wake();
  }

  // Reading and writing.

  get hasEnded(): boolean {
    return this.#phase === "ended";
  }

  /** Whether the session has ended, or is ending in order. */
  get isEnding(): boolean {
    return this.#phase !== "open";
  }

  get mustPause(): boolean {
    if (this.#phase === "lingering") return false;
    return this.windows.unread >= this.settings.maxReceiveBuffer || this.writer.waitingRefusals > MAX_WAITING_REFUSALS;
  }

  get isSuspended(): boolean {
    return this.link.isSuspended;
  }

  get resumptions(): number {
    return this.link.resumptions;
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
    // A peer that closes its socket while FINs of this end are unread in it resets the connection; Go's peers do so
    // when they hang up. With no open stream and no unsent data a reset loses nothing, so it counts as a clean end.
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

  // A peer that sends is alive, even if it reads nothing: what is held for it is bounded. While reading is paused, the
  // progress of writes is the only sign of life: without it two sessions that block each other would never end.
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
      return this.#timeOut(`A transport write made no progress for ${timeout} ms`);
    }
    const remedy = "if it sends no keepalive, raise `timeout` or set it to Infinity";
    const hint = this.bytesReceived === 0
      ? "; no byte was ever received: the peer may speak version 1, which is Go's default"
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

  // Closing.

  /** Implements `Session.close`. */
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
      // Keep reading: closing a socket that holds unread bytes resets the connection, and the peer loses unread data.
      this.#phase = "lingering";
      this.writer.end();
      this.reader.wake();
      this.link.closeWrite().catch(() => {});
      this.deadlines.startLinger();
    } catch {
      // The session ended first, and closed the gate.
    }
  }

  /** Ends the session at once, with an error. */
  end(error: unknown): void {
    this.#end({ error });
  }

  /** Ends the session: cleanly, or with a failure. */
  #end(failure?: { error: unknown }): void {
    if (this.hasEnded) return;
    // Errors after a complete graceful close are ignored.
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

  // Waiters share errors, because an error with its stack is as large as a waiting stream, and thousands may wait.
  // Writes do not share with other operations, because their errors have the property `bytesWritten`.
  #makeErrors(): (bytesWritten?: number) => Error {
    let shared: SessionClosedError | undefined;
    let sharedByWrites: SessionClosedError | undefined;
    const own = () => this.closedError("The session ended before the stream did");
    return (bytesWritten) => {
      if (bytesWritten === undefined) return shared ??= own();
      return bytesWritten > 0 ? own() : sharedByWrites ??= own();
    };
  }

  /** Settles the pending operations of these streams, the frames that wait for room, and `closed`. */
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

  /** Returns the error of an operation on a session that is closing or has ended. */
  closedError(message: string): SessionClosedError {
    return new SessionClosedError(message, this.#failure && { cause: this.#failure.error });
  }
}
