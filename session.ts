/**
 * One connection that carries many streams: what its users hold.
 *
 * @module
 */

import { SessionCore } from "./_session_core.ts";
import { ChannelClosedError, type Receiver } from "./channel.ts";
import type { Version } from "./frame.ts";
import {
  type ClientSessionOptions,
  duration,
  resolveOptions,
  type ServerSessionOptions,
  type SessionCloseOptions,
} from "./options.ts";
import type { AbortOptions, Stream, StreamCore } from "./stream.ts";
import type { Address, Transport } from "./transport.ts";

/**
 * Figures of one session at one moment; see {@linkcode Session.stats}.
 *
 * @example A stream that is not read
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
  /** Accepted streams that wait in `incoming`; with a channel of the caller's, all that it holds. */
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
  /** Bytes in the session's buffers that are not written to the transport, headers included. */
  bytesUnsent: number;
  /** Windows of all open streams together, in version 2: what the peer may send without being read. */
  creditGranted: number;
  /** Whether the transport is not being read, because too much is unread or too many refusals wait to be sent. */
  readPaused: boolean;
}

/** Has every stream of a session that `stalledStreamTimeout` cuts reported, with its error. */
export let reportStalled: (session: Session, report: (stream: Stream, error: Error) => void) => void;

/** Sets the id of the next stream that a session opens: for tests, which cannot open two thousand million of them. */
export let setNextId: (session: Session, id: number) => void;

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
  readonly #core: SessionCore;

  static {
    reportStalled = (session, report) => {
      const { stalled } = session.#core;
      const onCut = ({ stream }: StreamCore, error: Error) => report(stream, error);
      if (stalled !== undefined) stalled.onCut = onCut;
    };
    setNextId = (session, id) => session.#core.nextId = id;
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
   *   } catch { // the first caller that notices connects again
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
    return new Session(new SessionCore(transport, resolveOptions(options, "client"), "client"));
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
    return new Session(new SessionCore(transport, resolveOptions(options, "server"), "server"));
  }

  private constructor(core: SessionCore) {
    this.#core = core;
  }

  /** The version of smux in use; `undefined` until an "auto" server has seen the first frame. */
  get version(): Version | undefined {
    return this.#core.version;
  }

  /** Where this end of the connection is; hostname "" and port 0 if the transport does not say. */
  get localAddr(): Address {
    return this.#core.link.localAddr;
  }

  /** Where the other end of the connection is; hostname "" and port 0 if the transport does not say. */
  get remoteAddr(): Address {
    return this.#core.link.remoteAddr;
  }

  /**
   * The channel of the streams that the peer opened. Any number of tasks may receive from it at once: each stream goes
   * to exactly one.
   *
   * @throws {TypeError} The streams go to a channel of the caller's.
   */
  get incoming(): Receiver<Stream> {
    const { incoming } = this.#core.acceptor;
    if (incoming !== undefined) return incoming;
    throw new TypeError("The streams of this session go to the channel that options.incoming names: receive there");
  }

  /** Fulfils after a clean end, rejects with what ended the session otherwise. Ignoring it is safe. */
  get closed(): Promise<void> {
    return this.#core.closed;
  }

  /**
   * Opens a stream. It can be written to at once: data written right after shares its transport write.
   *
   * It waits only for room in the buffer and, on an "auto" server, for the first frame.
   *
   * @param options A signal that gives up the wait.
   * @returns The stream. Whether the peer accepts it is not known: smux has no reply.
   * @throws {SessionClosedError} The session is closing or has ended.
   * @throws {RangeError} Every id has been used: for good, while all else goes on.
   */
  async openStream(options?: AbortOptions): Promise<Stream> {
    const { stream } = await this.#core.open(options?.signal);
    return stream;
  }

  /**
   * Takes the next stream that the peer opened, or waits for one: `incoming.receive()`, but for the error at the end.
   *
   * @param options A signal that gives up the wait.
   * @returns The stream.
   * @throws {SessionClosedError} The session was closed or has ended, and every stream that had arrived was accepted.
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
   * // A signal ends the wait: the next stream goes to another acceptor.
   * await assertRejects(() => server.acceptStream({ signal: AbortSignal.timeout(10) }), DOMException);
   *
   * // A deadline leaves it waiting, which is as good where the session is given up too.
   * const opened = await client.openStream();
   * const accepted = await deadline(server.acceptStream(), 5000);
   * assertEquals(accepted.id, opened.id);
   * listener.close();
   * ```
   */
  async acceptStream(options?: AbortOptions): Promise<Stream> {
    try {
      return await this.incoming.receive({ signal: options?.signal });
    } catch (error) {
      if (!(error instanceof ChannelClosedError)) throw error;
      throw this.#core.closedError("Cannot accept a stream on a closed session");
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
    const timeout = duration("timeout", options.timeout ?? this.#core.timeout);
    return this.#core.close(options.drain ?? false, timeout);
  }

  /**
   * Ends the session at once: what has not left is lost. What had arrived stays readable.
   *
   * @param reason What `closed` rejects with, and the `cause` of all errors that follow. Default: an "AbortError".
   */
  abort(reason: unknown = new DOMException("The session was aborted", "AbortError")): void {
    this.#core.end(reason);
  }

  /** Figures as they are now. */
  stats(): SessionStats {
    const { streams, opened, acceptor, reader, writer, windows, decoder } = this.#core;
    return {
      streams: streams.size,
      opened,
      accepted: acceptor.accepted,
      refused: acceptor.refused,
      pendingAccept: acceptor.pending,
      bytesSent: writer.bytes,
      bytesReceived: reader.bytesReceived,
      framesSent: writer.frames,
      framesReceived: decoder.frames,
      bytesUnread: windows.unread,
      bytesUnsent: writer.unsent,
      creditGranted: windows.granted,
      readPaused: reader.isPaused,
    };
  }

  /** Keeps the process alive while the session is open, as it does from the start. */
  ref(): void {
    this.#core.link.ref();
    this.#core.deadlines.setRef(true);
  }

  /** Lets the process end while the session is open, where the transport can: web streams cannot. */
  unref(): void {
    this.#core.link.unref();
    this.#core.deadlines.setRef(false);
  }

  /** Closes the session in order. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
