/**
 * The public class of a session: one connection that carries many streams.
 *
 * @module
 */

import { type Role, SessionCore } from "./_session_core.ts";
import { ChannelClosedError, type Receiver } from "./channel.ts";
import type { Version } from "./frame.ts";
import {
  type ClientSessionOptions,
  closeIncoming,
  duration,
  resolveOptions,
  type ServerSessionOptions,
  type SessionCloseOptions,
} from "./options.ts";
import type { AbortOptions, Stream, StreamCore } from "./stream.ts";
import type { Address, Transport } from "./transport.ts";

/**
 * Counts of one session at one moment, returned by {@linkcode Session.stats}.
 *
 * @example Bytes of an unread stream
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
 * await read.read(new Uint8Array(1)); // sent last, so everything has arrived
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
  /** Number of open streams, opened by either side. */
  streams: number;
  /** Total number of streams opened by this end. */
  opened: number;
  /** Total number of streams opened by the peer and accepted. */
  accepted: number;
  /** Total number of streams opened by the peer and refused. */
  refused: number;
  /** Number of streams that wait in `incoming`; with a channel of the caller, everything it holds. */
  pendingAccept: number;
  /** Total bytes written to the transport, headers included. */
  bytesSent: number;
  /** Total bytes read from the transport, headers included. */
  bytesReceived: number;
  /** Total number of encoded frames. */
  framesSent: number;
  /** Total number of decoded frames. */
  framesReceived: number;
  /** Bytes of data received and not yet read. */
  bytesUnread: number;
  /** Bytes encoded and not yet written to the transport, headers included. */
  bytesUnsent: number;
  /**
   * Sum of the windows of all open streams in version 2, in bytes: what the peer may send before the application reads.
   */
  creditGranted: number;
  /** Whether reading the transport is paused, because too much is unread or too many refusals wait to be sent. */
  readPaused: boolean;
  /**
   * Whether the transport waits for another connection below, as a connection of `@sluice/smux/resume` does. The timers
   * of the session pause meanwhile.
   */
  suspended: boolean;
}

/** Sets the callback for streams that `stalledStreamTimeout` cuts. */
export let reportStalled: (session: Session, report: (stream: Stream, error: Error) => void) => void;

/** Whether the session has ended, or is ending in order. */
export let isEnding: (session: Session) => boolean;

/** Sets the id of the next stream that a session opens. For tests, which cannot open 2^31 streams. */
export let setNextId: (session: Session, id: number) => void;

/**
 * Carries many independent streams over one connection, with the protocol smux.
 *
 * Either side may open streams at any time, and any number of tasks may accept those of the peer at once. A session
 * ends by {@linkcode Session.close}, by {@linkcode Session.abort}, by the end of its transport, or by an error of the
 * transport or the protocol.
 *
 * @example A client and a server in one process
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
    isEnding = (session) => session.#core.isEnding;
    setNextId = (session, id) => session.#core.nextId = id;
  }

  /**
   * Starts the client side of a session over a transport.
   *
   * @param transport A connection or a pair of web streams. The session owns it and closes it at the end.
   * @param options Version, limits and timeouts.
   * @returns The session, without waiting for the peer.
   * @throws {RangeError} An option is out of bounds.
   * @throws {TypeError} `transport` is not a transport, or options cannot be combined.
   *
   * @example Reconnecting when the connection is lost
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
   *   } catch { // the first caller to fail reconnects
   *     if (session === current) session = retry(connect, { minTimeout: 100 });
   *     return await (await session).openStream();
   *   }
   * }
   *
   * (await session).abort(); // as if the connection were lost
   * const streams = await Promise.all([open(), open()]);
   * await streams[1]!.write(new Uint8Array(5));
   * assertEquals(await streams[1]!.read(new Uint8Array(8)), 5);
   * assertEquals((await session).stats().opened, 2);
   * await (await session).close();
   * ```
   */
  static client(transport: Transport, options: ClientSessionOptions = {}): Session {
    return new Session(start(transport, options, "client"));
  }

  /**
   * Starts the server side of a session over a transport.
   *
   * @param transport A connection or a pair of web streams. The session owns it and closes it at the end.
   * @param options Version, limits and timeouts.
   * @returns The session, without waiting for the peer.
   * @throws {RangeError} An option is out of bounds.
   * @throws {TypeError} `transport` is not a transport, or options cannot be combined.
   */
  static server(transport: Transport, options: ServerSessionOptions = {}): Session {
    return new Session(start(transport, options, "server"));
  }

  private constructor(core: SessionCore) {
    this.#core = core;
  }

  /** The version of smux in use; `undefined` until an "auto" server has received the first frame. */
  get version(): Version | undefined {
    return this.#core.version;
  }

  /** The local address of the connection; hostname "" and port 0 if the transport has none. */
  get localAddr(): Address {
    return this.#core.link.localAddr;
  }

  /** The remote address of the connection; hostname "" and port 0 if the transport has none. */
  get remoteAddr(): Address {
    return this.#core.link.remoteAddr;
  }

  /**
   * The channel of streams opened by the peer. Any number of tasks may receive from it at once; each stream goes to
   * exactly one.
   *
   * @throws {TypeError} The session was created with the option `incoming`.
   */
  get incoming(): Receiver<Stream> {
    const { incoming } = this.#core.acceptor;
    if (incoming !== undefined) return incoming;
    throw new TypeError("Cannot accept from this session: its streams go to the channel in options.incoming");
  }

  /**
   * Resolves when the session has ended cleanly, and rejects with the error that ended it otherwise. It may be ignored:
   * a rejection is never reported as unhandled.
   */
  get closed(): Promise<void> {
    return this.#core.closed;
  }

  /**
   * Opens a stream. Data that is written directly after it resolves leaves in the same transport write.
   *
   * It waits only for room in the write buffer and, on an "auto" server, for the first frame of the client.
   *
   * @param options A signal that aborts the wait.
   * @returns The stream. Whether the peer accepts it is unknown: smux has no reply, and a refused stream ends at once.
   * @throws {SessionClosedError} The session is closing or has ended.
   * @throws {RangeError} Every stream id has been used; no further stream can be opened.
   * @throws The reason of the signal, when it aborts.
   */
  async openStream(options?: AbortOptions): Promise<Stream> {
    const opening = this.#core.open(options?.signal);
    return (opening instanceof Promise ? await opening : opening).stream;
  }

  /**
   * Accepts the next stream that the peer opened; waits until the peer opens one. It is `incoming.receive()` with a
   * `SessionClosedError` at the end.
   *
   * @param options A signal that aborts the wait.
   * @returns The stream.
   * @throws {SessionClosedError} The session is closing or has ended, and every stream that had arrived was accepted.
   * @throws {TypeError} The session was created with the option `incoming`: receive from that channel.
   * @throws The reason of the signal, when it aborts.
   *
   * @example Accepting with a time limit
   * ```ts
   * import { Session } from "@sluice/smux";
   * import { assertEquals, assertRejects } from "@std/assert";
   * import { deadline } from "@std/async";
   *
   * const listener = Deno.listen({ port: 0 });
   * await using client = Session.client(await Deno.connect({ port: listener.addr.port }));
   * await using server = Session.server(await listener.accept());
   *
   * // A signal withdraws the call: the next stream goes to another acceptor.
   * await assertRejects(() => server.acceptStream({ signal: AbortSignal.timeout(10) }), DOMException);
   *
   * // deadline() leaves the call pending, so it suits a program that then ends the session.
   * const opened = await client.openStream();
   * const accepted = await deadline(server.acceptStream(), 5000);
   * assertEquals(accepted.id, opened.id);
   * listener.close();
   * ```
   */
  async acceptStream(options?: AbortOptions): Promise<Stream> {
    try {
      return await this.incoming.receive(options && { signal: options.signal });
    } catch (error) {
      if (!(error instanceof ChannelClosedError)) throw error;
      throw this.#core.closedError("Cannot accept a stream on a closed session");
    }
  }

  /**
   * Iterates over the streams that the peer opens. The iteration ends when the session is closed or ends cleanly, and
   * rejects with a {@linkcode SessionClosedError} when it ends with an error. Leaving the loop keeps the session open.
   */
  [Symbol.asyncIterator](): AsyncIterableIterator<Stream> {
    return this.incoming[Symbol.asyncIterator]();
  }

  /**
   * Closes the session gracefully:
   *
   * 1. `openStream` rejects, and new streams of the peer are refused. With `drain`, it waits until no stream is open.
   * 2. New writes reject. Data already written is sent.
   * 3. Each stream whose writes were all sent ends with FIN.
   * 4. The connection closes when the peer has closed it or has sent nothing for a second.
   *
   * Received data stays readable. Later calls return the promise of the first and ignore their options.
   *
   * @param options Whether to wait for open streams, and a timeout after which the session is aborted.
   * @returns A promise that resolves when the session has ended, cleanly or not. It never rejects.
   * @throws {RangeError} `timeout` is out of bounds.
   *
   * @example Written data arrives
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
   * Ends the session at once. Unsent data is lost; received data stays readable.
   *
   * @param reason What `closed` rejects with, and the `cause` of later errors. Default: a `DOMException` "AbortError".
   */
  abort(reason: unknown = new DOMException("The session was aborted", "AbortError")): void {
    this.#core.end(reason);
  }

  /** Returns the current counts. */
  stats(): SessionStats {
    const { streams, opened, acceptor, reader, writer, windows, decoder, link } = this.#core;
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
      suspended: link.isSuspended,
    };
  }

  /** Makes the open session keep the process alive, which is the default. */
  ref(): void {
    this.#core.link.ref();
    this.#core.deadlines.setRef(true);
  }

  /** Lets the process exit while the session is open, if the transport has `unref`; web streams do not. */
  unref(): void {
    this.#core.link.unref();
    this.#core.deadlines.setRef(false);
  }

  /** Closes the session gracefully, for `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

function start(transport: Transport, options: ServerSessionOptions, role: Role): SessionCore {
  try {
    return new SessionCore(transport, resolveOptions(options, role), role);
  } catch (error) {
    closeIncoming(options);
    throw error;
  }
}
