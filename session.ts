/**
 * One connection that carries many streams: the read loop, the table of streams, accepting, keepalive and the end.
 *
 * @module
 */

import { deferred } from "./_deferred.ts";
import { FloodGuard } from "./_flood.ts";
import { FrameWriter, PendingFrame } from "./_writer.ts";
import { bounded, Channel, ChannelClosedError, type Receiver, type Sender } from "./channel.ts";
import { clock, excuse, LATE, type Pass, type Timer } from "./clock.ts";
import { SessionClosedError } from "./errors.ts";
import { FrameDecoder, type FrameSink, NOP, NOTHING, ProtocolError, SYN, type Version } from "./frame.ts";
import {
  type ClientSessionOptions,
  duration,
  resolveOptions,
  type ServerSessionOptions,
  type SessionCloseOptions,
  type Settings,
} from "./options.ts";
import { type Stream, StreamCore, type StreamHost } from "./stream.ts";
import { Table } from "./table.ts";
import { type Address, type Link, link, type Transport } from "./transport.ts";
import { Turn } from "./turn.ts";
import { WindowPool } from "./window.ts";

/**
 * Figures of one session at one moment; see {@linkcode Session.stats}.
 *
 * @example A stream that nobody reads
 * ```ts
 * import { Session, type SessionStats } from "@sluice/smux";
 * import { assertEquals } from "@std/assert";
 *
 * const listener = Deno.listen({ port: 0 });
 * await using client = Session.client(await Deno.connect({ port: listener.addr.port }));
 * await using server = Session.server(await listener.accept());
 * await (await client.openStream()).write(new Uint8Array(1000));
 * await (await client.openStream()).write(new Uint8Array(1));
 *
 * const [_unread, read] = [await server.acceptStream(), await server.acceptStream()];
 * await read.read(new Uint8Array(1)); // this came last, so all is here
 * const { streams, accepted, bytesUnread, readPaused }: SessionStats = server.stats();
 * assertEquals({ streams, accepted, bytesUnread, readPaused }, {
 *   streams: 2,
 *   accepted: 2,
 *   bytesUnread: 1000,
 *   readPaused: false,
 * });
 * listener.close();
 * ```
 */
export interface SessionStats {
  /** Streams open now, of both sides. */
  streams: number;
  /** Streams opened here, ever. */
  opened: number;
  /** Streams opened by the peer and let in, ever. */
  accepted: number;
  /** Streams opened by the peer and refused, ever. */
  refused: number;
  /** Streams let in that nobody has taken from `incoming` yet; with a channel of the caller's, all it holds. */
  pendingAccept: number;
  /** Bytes the transport took, headers included. */
  bytesSent: number;
  /** Bytes the transport gave, headers included. */
  bytesReceived: number;
  /** Frames encoded. */
  framesSent: number;
  /** Frames decoded. */
  framesReceived: number;
  /** Bytes of data received and not yet read. */
  bytesUnread: number;
  /** Bytes in the session's buffer that the transport has not taken yet, headers included. */
  bytesUnsent: number;
  /** Windows of all open streams together, in version 2: what the peer may send without being read. */
  creditGranted: number;
  /** Whether the transport is not being read, because too much is unread or too many refusals wait to be sent. */
  readPaused: boolean;
}

// In version 2 streams have stalled for good when less than this part of the receive buffer is free: the windows of those
// that are read are then 8 KiB, and shrink further. In version 1 a full buffer is the only sign.
const TIGHT = 8;
// A stream that is read more slowly than this, in bytes per second, holds up the others as one that is not read at all.
// Larger: the others wait less; smaller: fewer slow readers are cut.
const SLOWEST_READ = 16 * 1024;
// Streams that were opened together may have ten times the buffer on its way, of which each cut frees one. The time of
// watching is halved for the next cut, at most this often: from 5000 ms to 313.
const MOST_HALVINGS = 4;
// Refusals that may wait for room; while there are more, the peer that causes them is not read.
const MOST_REFUSALS = 1024;
// After a read of this many bytes it is made sure that others get a turn: a smaller one has emptied the transport, so
// that the next one waits.
const LARGE_READ = 4096;
// When a session ends others have a turn after telling so many who wait: what they do about it is done in the same turn,
// and for ten thousand streams that are piped on that is half a second.
const TOLD_AT_ONCE = 64;
// How long after our end a quiet peer is taken to have nothing more under way: Go's closes only by keepalive.
const QUIET_BEFORE_CLOSE = 1000;
// How long an idle session keeps the buffers of its busy time.
const TRIM_DELAY = 1000;
// A timer fires at least this often in the shortest wait: how late it is shows how long the process stood still.
const LOOKS = 3;
// What Deno calls the errors of a connection that the other side has reset.
const RESETS = ["ConnectionReset", "ConnectionAborted", "BrokenPipe"];
const LAST_ID = 2 ** 32 - 1;
/** The first stream id of each role, as in Go. Nobody changes them but a test that cannot open two thousand million streams. */
export const FIRST_ID: { client: number; server: number } = { client: 3, server: 2 };

/** Has every stream of a session that `stalledStreamTimeout` cuts reported, with its error. */
export let reportStalled: (session: Session, report: (stream: Stream, error: Error) => void) => void;

/**
 * Many independent streams over one connection, in the protocol smux.
 *
 * Either side may open streams at any time, and any number of tasks may accept those of the peer at once. A session
 * ends by {@linkcode Session.close}, by {@linkcode Session.abort}, by the end of its transport or by any error of it.
 *
 * @example There and back
 * ```ts
 * import { Session } from "@sluice/smux";
 * import { assert } from "@std/assert";
 * import { equals } from "@std/bytes";
 *
 * const listener = Deno.listen({ port: 0 });
 * const [near, far] = await Promise.all([Deno.connect({ port: listener.addr.port }), listener.accept()]);
 * await using client = Session.client(near);
 * await using server = Session.server(far);
 *
 * const [opened, accepted] = await Promise.all([client.openStream(), server.acceptStream()]);
 * const ping = new TextEncoder().encode("ping");
 * await opened.write(ping);
 *
 * const p = new Uint8Array(16);
 * const count = await accepted.read(p);
 * assert(equals(p.subarray(0, count ?? 0), ping));
 * listener.close();
 * ```
 */
export class Session implements AsyncDisposable, AsyncIterable<Stream> {
  readonly #settings: Settings;
  readonly #link: Link;
  readonly #decoder: FrameDecoder;
  readonly #writer: FrameWriter;
  readonly #windows: WindowPool;
  readonly #host: StreamHost;
  readonly #sink: FrameSink;

  readonly #streams = new Table<StreamCore>();
  #current: StreamCore | undefined;
  #decodedTo = 0;
  #nextId: number;
  readonly #parity: number;
  #remoteStreams = 0;
  readonly #accepting: Sender<Stream>;
  readonly #incoming: Receiver<Stream> | undefined;
  // A SYN for which the full channel has no place before the acceptors have had a turn; and whether they had one since.
  #unplaced: number | undefined;
  #hadTurn = false;

  #settling: StreamCore[] = [];
  // Which batch of settled reads was the last, how many streams of it do not read again yet, the pass of the event loop
  // after which they are not waited for any more, and what goes on then.
  #batch = 0;
  #reading = 0;
  #serving: Pass | undefined;
  #resume: (() => void) | undefined;
  // Each is made when first somebody waits.
  #versionKnown: Channel<void> | undefined;
  #mayRead: Channel<void> | undefined;
  #empty: Channel<void> | undefined;

  #heardAt: number;
  #timer: Timer | undefined;
  #timerAt = Infinity;
  // What three waits were moved to when the process had stood still; one that began since then has another start.
  #heardMovedTo = -1;
  #stalledMovedTo = -1;
  #closingMovedTo = -1;
  #isRef = true;
  // The graceful close: when it began, how long it may take, and since when, at what count, no byte has come.
  #closingFrom = 0;
  #closeTimeout = Infinity;
  #quietFrom = 0;
  #quietBytes = 0;
  // Streams that have left the table with bytes unread; and what had been read of each when reading stopped.
  readonly #holding = new Table<StreamCore>();
  #stalledFrom: Map<StreamCore, number> | undefined;
  #stalledAt = 0;
  // How often in a row streams were cut, and when the last time was.
  #cuts = 0;
  #cutAt = -Infinity;

  #isPaused = false;
  #isClosing = false;
  #isDropping = false;
  #ended: { error?: unknown } | undefined;
  #closing: Promise<void> | undefined;
  readonly #turn = new Turn();
  readonly #closed = deferred<void>();
  #onStalled: ((stream: Stream, error: Error) => void) | undefined;

  #opened = 0;
  #accepted = 0;
  #refused = 0;
  readonly #flood = new FloodGuard();
  #bytesReceived = 0;

  static {
    reportStalled = (session, report) => session.#onStalled = report;
  }

  /**
   * Starts the client's side of a session.
   *
   * @param transport A connection, or a pair of web streams; it belongs to the session from here on.
   * @param options Limits and times.
   * @returns The session, at once: nothing is waited for.
   * @throws {RangeError} An option is out of bounds.
   * @throws {TypeError} The transport is none, or options do not go together.
   *
   * @example Connecting again when the connection is lost
   * ```ts
   * import { serve, Session, type Stream } from "@sluice/smux";
   * import { assertEquals } from "@std/assert";
   * import { retry } from "@std/async";
   *
   * const listener = Deno.listen({ port: 0 });
   * await using _server = serve(listener, (stream) => stream.readable.pipeTo(stream.writable), { onError() {} });
   * const connect = async () => Session.client(await Deno.connect({ port: listener.addr.port }));
   *
   * let session = connect();
   * async function open(): Promise<Stream> {
   *   const current = session;
   *   try {
   *     return await (await current).openStream();
   *   } catch { // of all who notice, the first connects again
   *     if (session === current) session = retry(connect, { minTimeout: 100 });
   *     return await (await session).openStream();
   *   }
   * }
   *
   * (await session).abort(); // as if the network went away
   * const streams = await Promise.all([open(), open()]);
   * await streams[1]!.write(new Uint8Array(5));
   * assertEquals(await streams[1]!.read(new Uint8Array(8)), 5);
   * assertEquals((await session).stats().opened, 2);
   * await (await session).close();
   * ```
   */
  static client(transport: Transport, options: ClientSessionOptions = {}): Session {
    return new Session(transport, resolveOptions(options, "client"), 1);
  }

  /**
   * Starts the server's side of a session.
   *
   * @param transport A connection, or a pair of web streams; it belongs to the session from here on.
   * @param options Limits and times.
   * @returns The session, at once: nothing is waited for.
   * @throws {RangeError} An option is out of bounds.
   * @throws {TypeError} The transport is none, or options do not go together.
   */
  static server(transport: Transport, options: ServerSessionOptions = {}): Session {
    return new Session(transport, resolveOptions(options, "server"), 0);
  }

  private constructor(transport: Transport, settings: Settings, parity: 0 | 1) {
    const { version } = settings;
    this.#settings = settings;
    this.#parity = parity;
    this.#nextId = parity === 1 ? FIRST_ID.client : FIRST_ID.server;
    this.#link = link(transport);
    this.#decoder = new FrameDecoder(version === "auto" ? undefined : version);
    const { maxStreamBuffer, maxReceiveBuffer } = settings;
    this.#windows = new WindowPool(maxStreamBuffer, Math.floor(maxReceiveBuffer / 2), maxReceiveBuffer);
    this.#writer = new FrameWriter(this.#link, version === "auto" ? 2 : version, {
      refusalsEncoded: () => this.#mayReadAgain(),
      writerIdle: () => this.#idle(),
      writerFailed: (error) => this.#transportFailed(error),
    });
    if (settings.incoming !== undefined) {
      this.#accepting = settings.incoming;
    } else {
      const { sender, receiver } = bounded<Stream>(settings.acceptBacklog, { onDrop: (stream) => stream.close() });
      this.#accepting = sender;
      this.#incoming = receiver;
    }
    this.#closed.promise.catch(() => {});
    this.#host = this.#makeHost();
    this.#sink = this.#makeSink();
    this.#heardAt = clock.now();
    // An "auto" server learns the version from it without waiting; Go ignores it.
    if (parity === 1) this.#writer.tryControl(NOP, 0);
    this.#schedule();
    this.#readLoop();
  }

  /** The version of smux in use; `undefined` until an "auto" server has seen the first frame. */
  get version(): Version | undefined {
    return this.#decoder.version;
  }

  /** Where this end of the connection is; hostname "" and port 0 if the transport does not say. */
  get localAddr(): Address {
    return this.#link.localAddr;
  }

  /** Where the other end of the connection is; hostname "" and port 0 if the transport does not say. */
  get remoteAddr(): Address {
    return this.#link.remoteAddr;
  }

  /**
   * The channel of the streams that the peer opened. Any number of tasks may receive from it at once: each stream goes
   * to exactly one.
   *
   * @throws {TypeError} The streams go to a channel of the caller's.
   */
  get incoming(): Receiver<Stream> {
    if (this.#incoming !== undefined) return this.#incoming;
    throw new TypeError("The streams of this session go to the channel that options.incoming names: receive there");
  }

  /** Fulfils after a clean end, rejects with what ended the session otherwise. Ignoring it is safe. */
  get closed(): Promise<void> {
    return this.#closed.promise;
  }

  /**
   * Opens a stream. It can be written to at once: data written right after shares its transport write.
   *
   * It waits only for room in the buffer and, on an "auto" server, for the first frame.
   *
   * @param options A signal to give up with.
   * @returns The stream. Whether the peer accepts it is not known: smux has no reply.
   * @throws {SessionClosedError} The session is closing or has ended.
   * @throws {RangeError} Every id has been used: for good, while all else goes on.
   */
  async openStream(options?: { signal?: AbortSignal | undefined }): Promise<Stream> {
    const signal = options?.signal;
    signal?.throwIfAborted();
    if (this.version === undefined && !this.#isClosing && this.#ended === undefined) {
      try {
        await (this.#versionKnown ??= new Channel()).receive({ signal });
      } catch (error) {
        if (!(error instanceof ChannelClosedError)) throw error;
      }
    }
    if (this.#isClosing || this.#ended !== undefined) {
      throw this.#closedError("Cannot open a stream on a closed session");
    }
    if (this.#nextId > LAST_ID) throw new RangeError("Cannot open a stream: every stream id has been used");
    const core = new StreamCore(this.#host, this.#nextId);
    this.#nextId += 2;
    // Before the SYN can leave, or the answer of a quick peer would find nobody.
    this.#streams.add(core);
    if (!this.#writer.tryFrame(SYN, core.id, NOTHING, 0, 0)) await this.#waitToOpen(core, signal);
    this.#opened++;
    core.announce();
    return core.stream;
  }

  /**
   * Takes the next stream that the peer opened, or waits for one: `incoming.receive()`, but for the error at the end.
   *
   * @param options A signal to give up with.
   * @returns The stream.
   * @throws {SessionClosedError} The session was closed or has ended, and every stream that had arrived was taken.
   * @throws {TypeError} The session was given a channel of the caller's: accept from that.
   *
   * @example Not waiting for ever
   * ```ts
   * import { Session } from "@sluice/smux";
   * import { assertEquals, assertRejects } from "@std/assert";
   * import { deadline } from "@std/async";
   *
   * const listener = Deno.listen({ port: 0 });
   * await using client = Session.client(await Deno.connect({ port: listener.addr.port }));
   * await using server = Session.server(await listener.accept());
   *
   * // A signal takes the accept back: the next stream goes to somebody who still waits.
   * await assertRejects(() => server.acceptStream({ signal: AbortSignal.timeout(10) }), DOMException);
   *
   * // A deadline leaves it waiting, which is as good where the session is given up too.
   * const opened = await client.openStream();
   * const accepted = await deadline(server.acceptStream(), 5000);
   * assertEquals(accepted.id, opened.id);
   * listener.close();
   * ```
   */
  async acceptStream(options?: { signal?: AbortSignal | undefined }): Promise<Stream> {
    try {
      return await this.incoming.receive({ signal: options?.signal });
    } catch (error) {
      if (!(error instanceof ChannelClosedError)) throw error;
      throw this.#closedError("Cannot accept a stream on a closed session");
    }
  }

  /**
   * The streams that the peer opens, until the session is closed or has ended; when it ended with an error the iteration
   * rejects. Breaking out of a loop leaves the session open.
   */
  [Symbol.asyncIterator](): AsyncIterableIterator<Stream> {
    return this.incoming[Symbol.asyncIterator]();
  }

  /**
   * Ends the session in order. New opens and streams of the peer are refused; with `drain` it waits until no stream is
   * open; then writes are refused, what was written leaves, every stream whose writes all left is ended, and in the end
   * the connection is, at once if the peer does so too, else when it has been quiet for a second. What had arrived stays
   * readable. Of several calls the options of the first count.
   *
   * @param options Whether to wait for the streams, and for how long.
   * @returns Fulfils when the session has ended, in order or not; it never rejects. The same promise each time.
   * @throws {RangeError} The timeout is out of bounds.
   *
   * @example What was written arrives
   * ```ts
   * import { Session } from "@sluice/smux";
   * import { assertEquals } from "@std/assert";
   * import { deadline } from "@std/async";
   * import { toText } from "@std/streams";
   *
   * const listener = Deno.listen({ port: 0 });
   * const client = Session.client(await Deno.connect({ port: listener.addr.port }));
   * const server = Session.server(await listener.accept());
   *
   * const stream = await client.openStream();
   * await stream.write(new TextEncoder().encode("to the last byte"));
   * await client.close();
   *
   * await deadline(server.closed, 5000);
   * const accepted = await server.acceptStream();
   * assertEquals(await toText(accepted.readable), "to the last byte");
   * listener.close();
   * ```
   */
  close(options: SessionCloseOptions = {}): Promise<void> {
    const timeout = duration("timeout", options.timeout ?? this.#settings.timeout);
    if (this.#closing === undefined) {
      this.#closing = this.#closed.promise.catch(() => {});
      if (this.#ended === undefined) this.#closeInOrder(options.drain ?? false, timeout);
    }
    return this.#closing;
  }

  /**
   * Ends the session at once: what has not left is lost. What had arrived stays readable.
   *
   * @param reason What `closed` rejects with, and the `cause` of all errors that follow. Default: an "AbortError".
   */
  abort(reason: unknown = new DOMException("The session was aborted", "AbortError")): void {
    this.#end({ error: reason });
  }

  /** Figures as they are now. */
  stats(): SessionStats {
    return {
      streams: this.#streams.size,
      opened: this.#opened,
      accepted: this.#accepted,
      refused: this.#refused,
      pendingAccept: this.#accepting.size,
      bytesSent: this.#writer.bytes,
      bytesReceived: this.#bytesReceived,
      framesSent: this.#writer.frames,
      framesReceived: this.#decoder.frames,
      bytesUnread: this.#windows.unread,
      bytesUnsent: this.#writer.unsent,
      creditGranted: this.#windows.granted,
      readPaused: this.#isPaused,
    };
  }

  /** Keeps the process alive while the session is open, as it does from the start. */
  ref(): void {
    this.#isRef = true;
    this.#link.ref();
    this.#rearm();
  }

  /** Lets the process end while the session is open, where the transport can: web streams cannot. */
  unref(): void {
    this.#isRef = false;
    this.#link.unref();
    this.#rearm();
  }

  /** Closes the session in order. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  // Without getters: each literal that has one gets a shape of its own, which holds the session until a full collection.
  #makeHost(): StreamHost {
    return {
      link: this.#link,
      decoder: this.#decoder,
      maxFrameSize: this.#settings.maxFrameSize,
      timeout: this.#settings.timeout,
      windows: this.#windows,
      writer: this.#writer,
      refund: (stream, count) => this.#refund(stream, count),
      finishReadLater: (stream) => this.#settling.push(stream),
      readWaits: (stream) => {
        if (stream.batch !== this.#batch) return;
        stream.batch = 0;
        if (this.#resume === undefined) return;
        if (--this.#reading === 0) queueMicrotask(this.#goOn);
      },
      remove: (stream) => {
        if (!stream.isEndedByPeer) this.#flood.expectLateData();
        this.#remove(stream);
      },
    };
  }

  // Opening and forgetting streams.

  async #waitToOpen(core: StreamCore, signal: AbortSignal | undefined): Promise<void> {
    try {
      await this.#writer.send(new PendingFrame(SYN, core.id, NOTHING, 0, 0), undefined, signal);
    } catch (error) {
      core.fail(() => this.#closedError("The stream was never opened"));
      // A peer that guessed the id may have sent something, which nobody will read.
      core.receiving.discard();
      this.#remove(core);
      if (!(error instanceof ChannelClosedError)) throw error;
      throw this.#closedError("Cannot open a stream on a closed session");
    }
  }

  #remove(core: StreamCore): void {
    // Another life of the same id may be in the table by now.
    if (!this.#streams.delete(core)) return;
    if (this.#isRemote(core.id)) this.#remoteStreams--;
    if (core.unread > 0 && this.#settings.stalledStreamTimeout !== Infinity) this.#holding.add(core);
    if (this.#streams.size === 0) this.#empty?.trySend();
  }

  // Frames.

  #makeSink(): FrameSink {
    return {
      begin: (version) => this.#begin(version),
      syn: (id) => this.#syn(id),
      fin: (id) => {
        const core = this.#streams.get(id);
        if (core?.isEndedByPeer !== false) this.#flood.uselessFrame();
        else if (this.#isRemote(id) && !core.receiving.hasData) this.#flood.emptyStream();
        core?.receiveFin();
      },
      psh: (id, length) => {
        const core = this.#current = this.#streams.get(id);
        if (core === undefined) this.#flood.lateData(length);
        else if (core.isEndedByPeer) this.#flood.unwantedData(length);
        else if (length === 0) this.#flood.uselessFrame();
      },
      data: (_bytes, start, end) => {
        if (this.#current === undefined) return;
        // A stream of which data was dropped must not seem whole, even if its FIN still comes.
        if (this.#isDropping) {
          if (this.#current.fail(() => this.#closedError("Data came after the session was closed"))) {
            this.#current.notifyWaiters();
          }
          return;
        }
        this.#current.receive(this.#link.buffer, start, end);
      },
      nop: () => this.#flood.uselessFrame(),
      upd: (id, consumed, window) => {
        this.#flood.uselessFrame();
        this.#streams.get(id)?.sending.update(consumed, window);
      },
    };
  }

  #isRemote(id: number): boolean {
    return id % 2 !== this.#parity;
  }

  #syn(id: number): void {
    if (id === 0 || !this.#isRemote(id)) {
      const own = this.#parity === 1 ? "even" : "odd";
      const expected = `an ${own} stream id other than 0 on SYN (do both ends have the same role?)`;
      throw new ProtocolError(this.#decoder.frameOffset, expected, `${id}`);
    }
    if (this.#streams.get(id) !== undefined) return this.#flood.uselessFrame();
    if (this.#isClosing || this.#remoteStreams >= this.#settings.maxStreams) return this.#refuse(id);
    if (this.#place(id)) return;
    if (this.#hadTurn) return this.#refuse(id);
    // One read may bring more SYNs than the channel holds, and no acceptor runs while it is decoded.
    this.#unplaced = id;
    this.#decoder.interrupt();
  }

  /** Hands a stream of the peer to the acceptors; says whether their channel had a place for it. */
  #place(id: number): boolean {
    const accepting = this.#accepting;
    // Checked before a stream is made of it, so that a flood of refused SYNs allocates nothing.
    if (accepting.isFull && accepting.capacity > 0) return false;
    const core = new StreamCore(this.#host, id);
    // In the table before it is handed over: a web stream's reader runs in that step, and may close the stream or all.
    this.#streams.add(core);
    this.#remoteStreams++;
    if (!accepting.trySend(core.stream)) {
      core.fail(() => this.#closedError("The stream was refused"));
      this.#remove(core);
      return false;
    }
    this.#hadTurn = false;
    this.#accepted++;
    core.announce();
    return true;
  }

  #refuse(id: number): void {
    this.#refused++;
    this.#flood.refusedStream();
    // Our half has ended: the peer will see that it gets no answer.
    if (!this.#isDropping) this.#writer.refuse(id);
  }

  // Reading.

  async #readLoop(): Promise<void> {
    const link = this.#link;
    let count: number | null = 0;
    let isReading = false;
    let isShared = false;
    let now = clock.now();
    const turn = this.#turn;
    turn.begin(now);
    try {
      while (this.#ended === undefined) {
        if (this.#mustPause()) {
          if (this.#reading > 0) await this.#served();
          await this.#pause();
          now = clock.now();
          turn.begin(now);
        }
        isReading = true;
        const reading = link.read(count, isShared);
        // A small read has emptied the transport, so that the next one waits; only now and then is that made sure of.
        const isWatched = count >= LARGE_READ || turn.isLong(now);
        const isServing = this.#reading > 1 || (this.#reading > 0 && count >= LARGE_READ);
        if (isWatched || isServing) turn.watch(reading);
        if (isServing) await this.#served();
        else if (this.#reading > 0) this.#writer.awaitAnswer();
        count = await reading;
        if (this.#ended !== undefined) return;
        if (count === null) return this.#transportEnded();
        const { bytes } = link.buffer;
        if (!(count >= 0 && count <= bytes.length)) {
          throw new TypeError(`A transport's read must give 0 to ${bytes.length} bytes or null, received ${count}`);
        }
        isReading = false;
        now = clock.now();
        this.#bytesReceived += count;
        this.#batch++;
        this.#reading = 0;
        this.#decode(bytes, 0, count, now);
        while (this.#unplaced !== undefined) {
          now = await turn.giveWay();
          if (this.#ended !== undefined) return;
          this.#decode(bytes, this.#decodedTo, count, now);
        }
        if (this.#ended !== undefined) return;
        // Noted before the readers are waited for, which resets the number.
        isShared = this.#reading > 1;
        this.#watchStalled();
        const isFlood = this.#flood.isExhausted;
        const isLong = isWatched && turn.isLong(now);
        // What the readers answer does not wait for that.
        if ((isFlood || isLong) && this.#reading > 0) await this.#served();
        if (this.#ended !== undefined) return;
        if (isFlood) {
          const began = now;
          now = await turn.rest(this.#flood.startPause());
          const more = this.#flood.furtherPause(now - began);
          if (more > 0 && this.#ended === undefined) now = await turn.rest(more);
        } else if (isLong) {
          now = await turn.giveWay();
        }
      }
    } catch (error) {
      if (isReading) this.#transportFailed(error);
      else this.#end({ error });
    } finally {
      link.free();
    }
  }

  /** Decodes what arrived and settles the reads that it fills. */
  #decode(bytes: Uint8Array, start: number, end: number, now: number): void {
    const before = this.#decoder.progress;
    const unplaced = this.#unplaced;
    this.#unplaced = undefined;
    try {
      if (unplaced !== undefined) {
        this.#hadTurn = true;
        this.#syn(unplaced);
      }
      this.#decodedTo = this.#decoder.push(bytes, this.#sink, end, start);
    } finally {
      const settling = this.#settling;
      if (settling.length > 0) {
        this.#reading += settling.length;
        this.#writer.hold();
        for (const core of settling) {
          core.batch = this.#batch;
          core.receiving.finishRead();
        }
        settling.length = 0;
      }
    }
    // Bytes of an unfinished header are no sign of life: anybody can send those for ever.
    if (this.#decoder.progress > before) this.#heardAt = now;
  }

  // The next read of the transport begins when every reader that was served reads again, or else after one pass of the
  // event loop: then the bytes of this one were used while they are in the cache, those of the next one are copied once
  // and not twice, and all answers leave together.
  async #served(): Promise<void> {
    // A pass that is awaited already will do: it comes after every microtask, and so after the readers have run.
    this.#serving ??= clock.pass(this.#passed);
    await new Promise<void>((resolve) => this.#resume = resolve);
    this.#reading = 0;
  }

  readonly #passed = (): void => {
    this.#serving = undefined;
    this.#goOn();
  };

  readonly #goOn = (): void => {
    const resume = this.#resume;
    if (resume === undefined) return;
    this.#resume = undefined;
    this.#writer.release();
    resume();
  };

  #begin(version: Version): void {
    this.#writer.version = version;
    while (this.#versionKnown?.trySend());
  }

  #mustPause(): boolean {
    if (this.#isDropping) return false;
    return this.#windows.unread >= this.#settings.maxReceiveBuffer || this.#writer.waitingRefusals > MOST_REFUSALS;
  }

  async #pause(): Promise<void> {
    this.#isPaused = true;
    while (this.#mustPause() && this.#ended === undefined) {
      await (this.#mayRead ??= new Channel()).receive();
    }
    this.#isPaused = false;
    // The peer could not be heard while we did not listen.
    this.#heardAt = clock.now();
  }

  #mayReadAgain(): void {
    if (this.#isPaused && !this.#mustPause()) this.#mayRead?.trySend();
  }

  #refund(stream: StreamCore, count: number): void {
    this.#windows.unread -= count;
    if (stream.unread === 0 && this.#holding.size > 0) this.#holding.delete(stream);
    this.#mayReadAgain();
  }

  #transportEnded(): void {
    const decoder = this.#decoder;
    if (decoder.isBetweenFrames) return this.#end({});
    this.#end({ error: new ProtocolError(decoder.frameOffset, decoder.missing, "the end of the connection") });
  }

  #transportFailed(error: unknown): void {
    // A peer that closes its socket with our last FINs unread in it resets the connection: Go's does so whenever it
    // hangs up. When no stream is open and no data unsent nothing is lost by that: it is as clean as any hanging up.
    const isHangUp = RESETS.includes(error instanceof Error ? error.name : "") && this.#bytesReceived > 0 &&
      this.#streams.size === 0 && !this.#writer.hasUnsentData && this.#decoder.isBetweenFrames;
    this.#end(isHangUp ? {} : { error });
  }

  // Stalled streams.

  /** Whether unread bytes leave streams that are read without room (version 1) or with very small windows (version 2). */
  #isTight(): boolean {
    const { maxReceiveBuffer } = this.#settings;
    const room = this.version === 2 ? maxReceiveBuffer / TIGHT : 0;
    return this.#windows.unread >= maxReceiveBuffer - room;
  }

  #watchStalled(): void {
    if (this.#stalledFrom !== undefined || this.#settings.stalledStreamTimeout === Infinity || !this.#isTight()) return;
    this.#stalledFrom = new Map();
    for (const core of this.#holding.values()) this.#stalledFrom.set(core, core.receiving.consumed);
    for (const core of this.#streams.values()) this.#stalledFrom.set(core, core.receiving.consumed);
    this.#stalledAt = clock.now();
    if (this.#stalledAt > this.#cutAt + this.#settings.stalledStreamTimeout) this.#cuts = 0;
    this.#arm(this.#stalledAt + this.#stallPatience());
  }

  /** Milliseconds that streams are watched: less each time, while what is on its way fills the buffer again at once. */
  #stallPatience(): number {
    return Math.ceil(this.#settings.stalledStreamTimeout / 2 ** Math.min(this.#cuts, MOST_HALVINGS));
  }

  /** Cuts the streams that stalled, if it is time; returns when to look again. */
  #checkStalled(now: number): number {
    const { maxReceiveBuffer } = this.#settings;
    const watched = this.#stalledFrom;
    if (watched === undefined) return Infinity;
    if (this.#windows.unread < maxReceiveBuffer / 2) {
      this.#stalledFrom = undefined;
      return Infinity;
    }
    const patience = this.#stallPatience();
    const due = this.#stalledAt + patience;
    if (now < due) return due;
    if (!this.#isTight()) return now + LATE;
    this.#stalledFrom = undefined;
    const read = (core: StreamCore) => core.receiving.consumed - watched.get(core)!;
    const isSlow = (core: StreamCore) => core.unread > 0 && read(core) * 1000 < SLOWEST_READ * patience;
    const slow = new Set(watched.keys().filter(isSlow));
    // A slow reader may be slow while no other stream has to wait for it.
    const isAlone = this.#streams.values().every((core) => slow.has(core));
    const stalled = Array.from(slow).filter((core) => !isAlone || read(core) === 0).sort((a, b) => b.unread - a.unread);
    // All that hold less than this hold less than half of the buffer together.
    const share = maxReceiveBuffer / 2 / stalled.length;
    // Those that are spared have no credit in version 2. In version 1 they would fill what was freed.
    const isGentle = this.version === 2 && this.#cuts === 0;
    const { unread } = this.#windows;
    for (const core of stalled) {
      if (core.unread < share || (isGentle && this.#windows.unread <= maxReceiveBuffer / 2)) break;
      const message = `Stream ${core.id} stalled: ${read(core)} bytes were read in ${patience} ms ` +
        `(stalledStreamTimeout) while it held ${core.unread} of the session's ${unread} unread bytes`;
      const failure = () => new DOMException(message, "TimeoutError");
      core.cut(failure);
      this.#onStalled?.(core.stream, failure());
    }
    if (this.#windows.unread < unread) {
      this.#cuts++;
      this.#cutAt = now;
    }
    this.#watchStalled();
    return this.#stalledFrom === undefined ? Infinity : this.#stalledAt + this.#stallPatience();
  }

  // Time. One timer serves all: each time it fires, it is set to when something may next be due, and what begins later
  // than that is due later.

  readonly #tick = (): void => {
    const now = clock.now();
    const late = now - this.#timerAt;
    this.#timerAt = Infinity;
    const { keepAliveInterval, timeout } = this.#settings;

    // While a write is under way its bytes will be the sign of life, and nothing could overtake them.
    if (now >= this.#writer.begunAt + keepAliveInterval && this.#writer.stalledSince === undefined) {
      if (this.version !== undefined) this.#writer.tryControl(NOP, 0);
    }
    if (this.#writer.isLarge && now >= this.#writer.begunAt + TRIM_DELAY) this.#writer.trim();

    if (late > LATE) this.#excuse(late, now);
    if (now >= this.#silentSince() + timeout) return this.#end({ error: this.#silence() });
    if (now >= this.#closingFrom + this.#closeTimeout) {
      const message = `The session did not close within ${this.#closeTimeout} ms`;
      return this.#end({ error: new DOMException(message, "TimeoutError") });
    }
    if (this.#isQuiet(now)) return this.#end({});
    this.#arm(this.#checkStalled(now));
    this.#schedule();
  };

  // The process stood still: that time does not count as waiting, and what came meanwhile is still to be read. The peer
  // gets as long again, but only once in a wait: a process that is always late must come to an end with it, too.
  #excuse(late: number, now: number): void {
    const { timeout } = this.#settings;
    const move = (since: number, movedTo: number, limit: number) =>
      excuse(since, late, now, since === movedTo ? Infinity : limit);
    this.#heardAt = this.#heardMovedTo = move(this.#heardAt, this.#heardMovedTo, timeout);
    this.#stalledAt = this.#stalledMovedTo = move(this.#stalledAt, this.#stalledMovedTo, this.#stallPatience());
    this.#closingFrom = this.#closingMovedTo = move(this.#closingFrom, this.#closingMovedTo, this.#closeTimeout);
    // Bytes may wait in the socket. The timeout of close() bounds this.
    this.#quietFrom = now;
    this.#writer.excuse(late, now);
  }

  #schedule(): void {
    const now = clock.now();
    const { keepAliveInterval, timeout } = this.#settings;
    const { begunAt, isLarge } = this.#writer;
    // A NOP that is due but cannot go yet is no reason to look again at once.
    const nop = Math.max(begunAt, now - keepAliveInterval / 2) + keepAliveInterval;
    const quiet = this.#isDropping ? QUIET_BEFORE_CLOSE : Infinity;
    const look = now + Math.min(timeout, this.#closeTimeout, quiet) / LOOKS;
    this.#arm(Math.min(nop, this.#silentSince() + timeout, look));
    this.#arm(Math.min(this.#closingFrom + this.#closeTimeout, this.#quietFrom + quiet));
    if (isLarge) this.#arm(now + TRIM_DELAY);
  }

  // When the peer last gave a sign of life. A peer that is heard lives, even if it reads nothing: what waits for it here
  // is bounded. While we hold reading back it cannot be heard, and the only sign is what it takes: two sessions that hold
  // each other back would otherwise never find out that the other is gone.
  #silentSince(): number {
    if (this.#isDropping) return Infinity;
    if (!this.#isPaused) return this.#heardAt;
    return Math.max(this.#heardAt, this.#writer.stalledSince ?? Infinity);
  }

  #silence(): DOMException {
    const { timeout } = this.#settings;
    if (this.#isPaused) {
      return new DOMException(`A write of the transport made no progress for ${timeout} ms`, "TimeoutError");
    }
    const remedy = "if it sends no keepalive, raise `timeout` or set it to Infinity";
    const hint = this.#bytesReceived === 0
      ? "; not one byte ever came: the peer may speak version 1, which is Go's default"
      : "";
    return new DOMException(`The peer was silent for ${timeout} ms: ${remedy}${hint}`, "TimeoutError");
  }

  #idle(): void {
    if (this.#writer.isLarge) this.#arm(clock.now() + TRIM_DELAY);
  }

  #arm(at: number): void {
    if (at >= this.#timerAt || this.#ended !== undefined) return;
    clock.clearTimer(this.#timer);
    this.#timerAt = at;
    this.#timer = clock.setTimer(this.#tick, Math.max(0, at - clock.now()));
    if (!this.#isRef) letGo(this.#timer);
  }

  #rearm(): void {
    const at = this.#timerAt;
    this.#timerAt = Infinity;
    this.#arm(at);
  }

  // The end.

  async #closeInOrder(drain: boolean, timeout: number): Promise<void> {
    this.#isClosing = true;
    this.#accepting.close();
    this.#versionKnown?.close();
    this.#closingFrom = clock.now();
    this.#closeTimeout = timeout;
    this.#schedule();
    try {
      while (drain && this.#streams.size > 0) await (this.#empty ??= new Channel()).receive();
      const failure = () => this.#closedError("Cannot write to a stream of a closed session");
      await Promise.all(this.#streams.values().map((core) => core.sending.end(failure)));
      await this.#writer.flushed();
      if (this.#ended !== undefined) return;
      // A socket closed while it holds unread bytes is reset, and the peer loses what it had not read: so read on.
      this.#isDropping = true;
      this.#writer.end();
      this.#mayReadAgain();
      this.#link.closeWrite().catch(() => {});
      this.#quietFrom = clock.now();
      this.#quietBytes = this.#bytesReceived;
      this.#schedule();
    } catch {
      // The end came first, and closed the channel that was waited on.
    }
  }

  /** Whether everything of ours has left and no byte has come for a while since. */
  #isQuiet(now: number): boolean {
    if (!this.#isDropping || now < this.#quietFrom + QUIET_BEFORE_CLOSE) return false;
    if (this.#bytesReceived === this.#quietBytes) return true;
    this.#quietFrom = now;
    this.#quietBytes = this.#bytesReceived;
    return false;
  }

  /** The one end, in whatever way it comes: with an error it is unclean. */
  #end(end: { error?: unknown }): void {
    if (this.#ended !== undefined) return;
    // When all of ours has left in order, what happens to the connection after that is nobody's loss.
    this.#ended = this.#isDropping ? {} : end;
    const isClean = !("error" in this.#ended);
    clock.clearTimer(this.#timer);
    if (isClean || this.#incoming === undefined) this.#accepting.close();
    else this.#accepting.close(this.#closedError("The session has ended"));
    this.#writer.end();
    // Waiters share errors: one is, with its stack, as large as a waiting stream, and thousands may wait. A write has its
    // count stamped on its error, so writes never share with other operations.
    let shared: SessionClosedError | undefined;
    let sharedByWrites: SessionClosedError | undefined;
    const own = () => this.#closedError("The session ended before the stream did");
    const failure = (bytesWritten?: number) => {
      if (bytesWritten === undefined) return shared ??= own();
      return bytesWritten > 0 ? own() : sharedByWrites ??= own();
    };
    const cores = this.#streams.values();
    for (const core of cores) {
      core.fail(failure);
      this.#streams.delete(core);
    }
    for (const core of this.#holding.values()) this.#holding.delete(core);
    this.#stalledFrom = undefined;
    for (const channel of [this.#mayRead, this.#versionKnown, this.#empty]) channel?.close();
    clock.clearPass(this.#serving);
    this.#goOn();
    this.#link.close();
    this.#tell(cores);
  }

  /** Settles what waits for room, for one of these streams, or for the end. */
  async #tell(cores: StreamCore[]): Promise<void> {
    const turns = [this.#turn.end(), this.#writer.turn.end()];
    while (this.#writer.dismiss(TOLD_AT_ONCE)) await this.#turn.giveWay();
    let told = 0;
    for (const core of cores) if (core.notifyWaiters() && ++told % TOLD_AT_ONCE === 0) await this.#turn.giveWay();
    for (const others of turns) if (others !== undefined) await others;
    const end = this.#ended!;
    if ("error" in end) this.#closed.reject(end.error);
    else this.#closed.resolve();
  }

  #closedError(message: string): SessionClosedError {
    const ended = this.#ended;
    return new SessionClosedError(
      message,
      ended !== undefined && "error" in ended ? { cause: ended.error } : undefined,
    );
  }
}

/** Lets the process end although the timer is set, where the runtime knows how to. */
function letGo(timer: Timer): void {
  (timer as { unref?: () => void }).unref?.();
}
