/**
 * The two programs everyone writes: a server of sessions, and two connections joined into one.
 *
 * @module
 */

import { adapt } from "./_adapt.ts";
import { deferred } from "./_deferred.ts";
import { Channel } from "./channel.ts";
import { clock } from "./_clock.ts";
import { SessionClosedError } from "./errors.ts";
import { duration, resolveOptions, type ServerSessionOptions } from "./options.ts";
import { reportStalled, Session } from "./session.ts";
import { type AbortOptions, coreOf, Stream } from "./stream.ts";
import { closeQuietly, type Connection, type Transport } from "./transport.ts";

/**
 * Where connections come from: what `Deno.listen` and `Deno.listenTls` return, by shape.
 *
 * @example Turning callers away
 * ```ts
 * import { type Listener, serve } from "@sluice/smux";
 * import { assertEquals } from "@std/assert";
 *
 * const banned = new Set(["127.0.0.1"]);
 * const inner = Deno.listen({ hostname: "127.0.0.1", port: 0 });
 * const listener: Listener<Deno.TcpConn> = {
 *   async accept() {
 *     for (;;) {
 *       const connection = await inner.accept();
 *       if (!banned.has(connection.remoteAddr.hostname)) return connection;
 *       connection.close();
 *     }
 *   },
 *   close: () => inner.close(),
 * };
 *
 * await using _server = serve(listener, (stream) => stream.readable.pipeTo(stream.writable));
 * using stranger = await Deno.connect({ port: inner.addr.port });
 * assertEquals(await stranger.read(new Uint8Array(1)), null);
 * ```
 */
export interface Listener<Accepted extends Transport = Transport> {
  /**
   * The next connection. Rejecting with an error named "BadResource" or "Interrupted", as Deno's do, says that it was
   * closed; after any other it is asked again.
   */
  accept(): Promise<Accepted>;
  /** Ends listening; an `accept` that waits rejects. */
  close(): void;
}

// What accept throws when the listener was closed, and when only one connection was lost before it was accepted.
const LISTENER_CLOSED = ["BadResource", "Interrupted"];
const CONNECTION_LOST = ["NotConnected", "ConnectionReset", "ConnectionAborted"];
// Other failures, such as too many open files, last: to try again at once would only keep the processor busy.
const MIN_PAUSE_MS = 5;
const MAX_PAUSE_MS = 1000;

/**
 * Options of {@linkcode connections}.
 *
 * @example A loop that ends with a signal
 * ```ts
 * import { connections, type ConnectionsOptions } from "@sluice/smux";
 * import { assertEquals } from "@std/assert";
 *
 * const stop = new AbortController();
 * const errors: unknown[] = [];
 * const options: ConnectionsOptions = { signal: stop.signal, onError: (error) => errors.push(error) };
 *
 * const listener = Deno.listen({ port: 0 });
 * const peers = [await Deno.connect({ port: listener.addr.port }), await Deno.connect({ port: listener.addr.port })];
 * let accepted = 0;
 * for await (using _connection of connections(listener, options)) {
 *   if (++accepted === peers.length) stop.abort();
 * }
 * assertEquals([accepted, errors], [2, []]);
 * for (const peer of peers) peer.close();
 * ```
 */
export interface ConnectionsOptions {
  /** Closes the listener when it aborts, and so ends the loop. */
  signal?: AbortSignal | undefined;
  /** Gets every error of accepting, none of which ends the loop. Default: `console.error`. */
  onError?: ((error: unknown) => void) | undefined;
}

/**
 * Accepts connections until the listener is closed, which leaving the loop does too.
 *
 * Deno's own loop over a listener ends when a peer resets its connection before it was accepted. Here that is reported to
 * `onError`, and so is a failure that may last, such as too many open files, after which it pauses for 5 ms to 1 s.
 *
 * @param listener Where connections come from.
 * @param options A signal, and a callback for errors.
 * @returns The connections, one by one.
 *
 * @example One connection, and no more
 * ```ts
 * import { connections } from "@sluice/smux";
 * import { assertEquals } from "@std/assert";
 *
 * const listener = Deno.listen({ port: 0 });
 * using peer = await Deno.connect({ port: listener.addr.port });
 * for await (using connection of connections(listener)) {
 *   assertEquals(connection.remoteAddr.port, peer.localAddr.port);
 *   break;
 * }
 * ```
 */
export async function* connections<Accepted extends Transport>(
  listener: Listener<Accepted>,
  options: ConnectionsOptions = {},
): AsyncIterableIterator<Accepted> {
  const { signal, onError = console.error } = options;
  const stopped = new Channel<void>();

  function stop(): void {
    if (stopped.closed) return;
    stopped.close();
    closeQuietly(listener);
  }

  signal?.addEventListener("abort", stop);
  if (signal?.aborted) stop();
  let pause = 0;
  try {
    while (!stopped.closed) {
      let connection;
      try {
        connection = await listener.accept();
      } catch (error) {
        const name = error instanceof Error ? error.name : "";
        if (stopped.closed || LISTENER_CLOSED.includes(name)) return;
        onError(error);
        if (CONNECTION_LOST.includes(name)) continue;
        pause = Math.min(Math.max(pause * 2, MIN_PAUSE_MS), MAX_PAUSE_MS);
        await stopped.receive({ timeout: pause }).catch(() => {});
        continue;
      }
      if (stopped.closed) return adapt(connection).close();
      pause = 0;
      yield connection;
    }
  } finally {
    stop();
    signal?.removeEventListener("abort", stop);
  }
}

// Longer than the pauses of a healthy network (a lost packet that is sent again, a phone that changes cells: up to 3 s).
// Shorter than clients wait for an answer, and much shorter than the 30 s after which the peer, which cannot write
// meanwhile, gives the connection up.
const STALLED_STREAM_TIMEOUT_MS = 5000;

/**
 * Options of {@linkcode serve}: those of every session, and three more. Streams go to the handler, so no `incoming`.
 *
 * @example Limits, and a log
 * ```ts
 * import { serve, type ServeOptions, Session } from "@sluice/smux";
 * import { assertEquals } from "@std/assert";
 *
 * const log: string[] = [];
 * const options: ServeOptions = {
 *   maxStreams: 100,
 *   timeout: 60_000,
 *   onSession: () => log.push("a session began"),
 *   onError: (error) => log.push(`${error}`),
 * };
 *
 * const listener = Deno.listen({ port: 0 });
 * const server = serve(listener, () => Promise.reject(new Error("not today")), options);
 * await using session = Session.client(await Deno.connect({ port: listener.addr.port }));
 * const stream = await session.openStream();
 * assertEquals(await stream.read(new Uint8Array(1)), null); // its handler failed
 * await server.shutdown();
 * assertEquals(log, ["a session began", "Error: not today"]);
 * ```
 */
export interface ServeOptions extends Omit<ServerSessionOptions, "incoming"> {
  /**
   * As for a session, but finite by default, since the peers are strangers: 5000. `onError` gets the error when the
   * handler does not settle with it at once.
   */
  stalledStreamTimeout?: number | undefined;
  /** Ends the server at once when it aborts: the listener is closed and every session aborted with its reason. */
  signal?: AbortSignal | undefined;
  /** Gets every error of a connection, a session or a handler. Default: `console.error`. */
  onError?: ((error: unknown) => void) | undefined;
  /** Called with every session when it begins. Default: none. */
  onSession?: ((session: Session) => void) | undefined;
}

/**
 * A server made by {@linkcode serve}.
 *
 * @example Waiting for open streams, with a limit
 * ```ts
 * import { serve, type Server, Session, SessionClosedError } from "@sluice/smux";
 * import { assertEquals, assertRejects } from "@std/assert";
 * import { deadline } from "@std/async";
 *
 * const errors: unknown[] = [];
 * const listener = Deno.listen({ port: 0 });
 * const server: Server = serve(listener, async (stream) => {
 *   await stream.write(new TextEncoder().encode("hello"));
 *   await stream.read(new Uint8Array(1));
 * }, { onError: (error) => errors.push(error) });
 *
 * await using session = Session.client(await Deno.connect({ port: listener.addr.port }));
 * const stream = await session.openStream();
 * const p = new Uint8Array(16);
 * assertEquals(await stream.read(p), 5);
 * await deadline(server.shutdown({ timeout: 50 }), 5000); // the client says nothing: after 50 ms it is dropped
 * assertEquals(errors.map((error) => (error as Error).name), ["TimeoutError"]);
 * await assertRejects(() => stream.read(p), SessionClosedError);
 * ```
 */
export interface Server extends AsyncDisposable {
  /** Fulfils when nothing is accepted any more and every session has ended and every handler settled. It never rejects. */
  readonly finished: Promise<void>;
  /**
   * Stops accepting, waits until no stream is open, closes the sessions; when the handlers have settled `finished`
   * fulfils.
   *
   * @param options Milliseconds after which sessions that are still open are aborted. Default: the sessions' `timeout`.
   * @throws {RangeError} The timeout is out of bounds.
   */
  shutdown(options?: { timeout?: number | undefined }): Promise<void>;
}

/**
 * Accepts connections, makes a server's session of each, and calls `handler` for every stream that its peer opens.
 *
 * When the handler settles the stream is ended, in order if it fulfilled. A peer that vanishes, a handler that throws
 * and a listener that hiccups are reported to `onError`; none of them ends the server.
 *
 * @param listener Where connections come from; the server closes it.
 * @param handler What to do with a stream.
 * @param options Limits and times of the sessions, a signal, and callbacks.
 * @returns The server, at once.
 * @throws {RangeError} An option is out of bounds.
 * @throws {TypeError} An `incoming` was given, or the listener has no `accept` and `close`.
 *
 * @example An echo server
 * ```ts
 * import { serve, Session } from "@sluice/smux";
 * import { assertEquals } from "@std/assert";
 * import { toText } from "@std/streams";
 *
 * const listener = Deno.listen({ port: 0 });
 * await using _server = serve(listener, (stream) => stream.readable.pipeTo(stream.writable));
 *
 * await using session = Session.client(await Deno.connect({ port: listener.addr.port }));
 * const stream = await session.openStream();
 * await stream.write(new TextEncoder().encode("hello"));
 * await stream.closeWrite();
 * assertEquals(await toText(stream.readable), "hello");
 * ```
 */
export function serve(
  listener: Listener,
  handler: (stream: Stream, session: Session) => void | Promise<void>,
  options: ServeOptions = {},
): Server {
  if ((options as ServerSessionOptions).incoming !== undefined) {
    throw new TypeError("serve gives every stream to its handler: it takes no incoming");
  }
  if (typeof listener?.accept !== "function" || typeof listener.close !== "function") {
    throw new TypeError("Cannot serve: expected a listener with accept and close");
  }
  const server = new StreamServer(handler, options);
  const finished = server.run(listener);
  const shutdown = (options: { timeout?: number | undefined } = {}) => server.shutdown(options);
  return { finished, shutdown, [Symbol.asyncDispose]: shutdown };
}

/** What `serve` runs: the sessions of one listener. */
class StreamServer {
  readonly #handler: (stream: Stream, session: Session) => void | Promise<void>;
  readonly #onError: (error: unknown) => void;
  readonly #onSession: ((session: Session) => void) | undefined;
  readonly #signal: AbortSignal | undefined;
  readonly #sessionOptions: ServerSessionOptions;
  readonly #sessions = new Set<Session>();
  readonly #stopping = new AbortController();
  #finished: Promise<void> = Promise.resolve();

  constructor(handler: (stream: Stream, session: Session) => void | Promise<void>, options: ServeOptions) {
    const { signal, onError = console.error, onSession, ...rest } = options;
    const { stalledStreamTimeout = STALLED_STREAM_TIMEOUT_MS } = rest;
    this.#handler = handler;
    this.#onError = onError;
    this.#onSession = onSession;
    this.#signal = signal;
    this.#sessionOptions = { ...rest, stalledStreamTimeout };
    resolveOptions(this.#sessionOptions, "server");
  }

  /** Serves until it is stopped and every session has ended. */
  run(listener: Listener): Promise<void> {
    this.#signal?.addEventListener("abort", this.#abort);
    if (this.#signal?.aborted) this.#abort();
    return this.#finished = this.#accept(listener);
  }

  /** Stops accepting, and closes every session in order. */
  shutdown(options: { timeout?: number | undefined }): Promise<void> {
    if (options.timeout !== undefined) duration("timeout", options.timeout);
    this.#stopping.abort();
    for (const session of this.#sessions) session.close({ ...options, drain: true });
    return this.#finished;
  }

  readonly #abort = (): void => {
    this.#stopping.abort();
    for (const session of this.#sessions) session.abort(this.#signal!.reason);
  };

  readonly #report = (error: unknown): void => {
    try {
      this.#onError(error);
    } catch (thrown) {
      console.error(thrown);
    }
  };

  async #accept(listener: Listener): Promise<void> {
    const { signal } = this.#stopping;
    const running = new Set<Promise<void>>();
    for await (const connection of connections(listener, { signal, onError: this.#report })) {
      // The server may have been stopped since this was accepted.
      if (signal.aborted) {
        adapt(connection).close();
        break;
      }
      const ran = this.#serveSession(connection).catch(this.#report);
      running.add(ran);
      ran.finally(() => running.delete(ran));
    }
    await Promise.all(running);
    this.#signal?.removeEventListener("abort", this.#abort);
  }

  async #serveSession(connection: Transport): Promise<void> {
    const session = Session.server(connection, this.#sessionOptions);
    this.#sessions.add(session);
    const handling = new Map<Stream, Promise<void>>();
    reportStalled(session, async (stream, error) => {
      // A handler that uses the stream rejects with the same error.
      await clock.yieldToEventLoop();
      if (handling.has(stream)) this.#report(error);
    });
    try {
      this.#onSession?.(session);
    } catch (error) {
      this.#report(error);
    }
    try {
      for await (const stream of session) {
        const handled = this.#handle(stream, session);
        handling.set(stream, handled);
        handled.finally(() => handling.delete(stream));
      }
      await session.closed;
    } catch (error) {
      if (!this.#signal?.aborted) this.#report(error instanceof SessionClosedError ? error.cause ?? error : error);
    }
    await Promise.all(handling.values());
    this.#sessions.delete(session);
  }

  async #handle(stream: Stream, session: Session): Promise<void> {
    try {
      await this.#handler(stream, session);
      await stream[Symbol.asyncDispose]();
    } catch (error) {
      stream.close();
      // The end of its session is reported once, by the session.
      if (!(error instanceof SessionClosedError)) this.#report(error);
    }
  }
}

/**
 * A connection of which each direction ends on its own: `Deno.TcpConn`, `Deno.TlsConn`, `Deno.UnixConn`, a {@linkcode Stream}.
 *
 * @example One function for sockets and streams
 * ```ts
 * import { type DuplexConnection, serve, Session } from "@sluice/smux";
 * import { assert } from "@std/assert";
 * import { concat, equals } from "@std/bytes";
 *
 * async function hear(connection: DuplexConnection): Promise<Uint8Array> {
 *   await connection.closeWrite(); // there is nothing to say from here
 *   const parts: Uint8Array[] = [];
 *   const p = new Uint8Array(1024);
 *   for (let count; (count = await connection.read(p)) !== null;) parts.push(p.slice(0, count));
 *   connection.close();
 *   return concat(parts);
 * }
 *
 * const speech = new Uint8Array(3000).fill(7);
 * const listener = Deno.listen({ port: 0 });
 * await using _server = serve(listener, async (stream) => void await stream.write(speech));
 * await using session = Session.client(await Deno.connect({ port: listener.addr.port }));
 * assert(equals(await hear(await session.openStream()), speech));
 * ```
 */
export interface DuplexConnection extends Connection {
  /** Ends writing; reading goes on. */
  closeWrite(): Promise<void>;
}

/**
 * What {@linkcode join} carried, in bytes.
 *
 * @example Keeping account
 * ```ts
 * import { join, type JoinResult, serve, Session } from "@sluice/smux";
 * import { assertEquals } from "@std/assert";
 * import { toText } from "@std/streams";
 *
 * const bills: JoinResult[] = [];
 * const web = Deno.serve({ port: 0, onListen() {} }, () => new Response("hello"));
 * const listener = Deno.listen({ port: 0 });
 * const server = serve(listener, async (stream) => {
 *   bills.push(await join(stream, await Deno.connect({ port: web.addr.port })));
 * });
 *
 * const session = Session.client(await Deno.connect({ port: listener.addr.port }));
 * await using stream = await session.openStream();
 * const request = new TextEncoder().encode("GET / HTTP/1.0\r\n\r\n");
 * await stream.write(request);
 * await stream.closeWrite();
 * const answer = await toText(stream.readable);
 * await session.close();
 * await server.shutdown();
 * assertEquals(bills, [{ sent: request.length, received: answer.length }]);
 * await web.shutdown();
 * ```
 */
export interface JoinResult {
  /** From the first to the second. */
  sent: number;
  /** From the second to the first. */
  received: number;
}

// A buffer of a direction that carries little, and of one that carries much.
const MIN_COPY_BYTES = 8 * 1024;
const MAX_COPY_BYTES = 64 * 1024;

/**
 * Joins two connections: what arrives at one leaves by the other, both ways, each way's end included.
 *
 * Two `pipeTo` are not this. Piping into the `writable` of one of Deno's connections closes all of it at the end, so
 * that a peer which had finished speaking first would never hear the answer.
 *
 * When a {@linkcode Stream} is lost, cut or closed the join fails at once, even while a write to the other side waits.
 * Only what its peer had sent whole, up to its end, goes on to the other side first, with that end.
 *
 * @param a One connection. When the promise settles, both are closed.
 * @param b The other.
 * @param options A signal to end it with.
 * @returns How much was carried, when both ways have ended.
 * @throws What failed first, or the reason of the signal.
 *
 * @example Forwarding every stream to a local service
 * ```ts
 * import { join, serve, Session } from "@sluice/smux";
 * import { assertStringIncludes } from "@std/assert";
 * import { toText } from "@std/streams";
 *
 * const web = Deno.serve({ port: 0, onListen() {} }, () => new Response("hello"));
 * const listener = Deno.listen({ port: 0 });
 * const server = serve(listener, async (stream) => {
 *   await join(stream, await Deno.connect({ port: web.addr.port }));
 * });
 *
 * const session = Session.client(await Deno.connect({ port: listener.addr.port }));
 * const stream = await session.openStream();
 * await stream.write(new TextEncoder().encode("GET / HTTP/1.0\r\n\r\n"));
 * assertStringIncludes(await toText(stream.readable), "hello");
 *
 * stream.close();
 * await session.close();
 * await server.shutdown();
 * await web.shutdown();
 * ```
 */
export async function join(
  a: DuplexConnection,
  b: DuplexConnection,
  options: AbortOptions = {},
): Promise<JoinResult> {
  const { signal } = options;
  const { promise, resolve, reject } = deferred<JoinResult>();
  const abort = () => reject(signal!.reason);
  signal?.addEventListener("abort", abort);
  if (signal?.aborted) abort();

  let first: { error: unknown } | undefined;
  const fail = (error: unknown) => reject((first ??= { error }).error);
  /** Nothing more can be written to `side`: the join fails as soon as `rest` has passed on what its peer sent whole. */
  async function lose(side: DuplexConnection, rest: Promise<number>, error: unknown): Promise<void> {
    const core = side instanceof Stream ? coreOf(side) : undefined;
    // The count of a write is that of a piece which the caller does not know.
    first ??= { error: core?.sending.error ?? error };
    if (core?.receiving.isWhole) await rest.catch(() => {});
    fail(error);
  }
  const there = copy(a, b, fail, (error) => lose(b, back, error));
  const back = copy(b, a, fail, (error) => lose(a, there, error));
  // A write that is stuck would not notice that the other side is lost.
  const stopWatching = [
    watch(a, (error) => lose(a, there, error)),
    watch(b, (error) => lose(b, back, error)),
  ];
  try {
    Promise.all([there, back]).then(([sent, received]) => resolve({ sent, received }), () => {});
    return await promise;
  } finally {
    signal?.removeEventListener("abort", abort);
    for (const stop of stopWatching) stop();
    for (const connection of [a, b]) closeQuietly(connection);
  }
}

/** Calls `lost` when a stream is lost; other connections report that only to a read or a write. */
function watch(connection: DuplexConnection, lost: (error: Error) => void): () => void {
  if (!(connection instanceof Stream)) return () => {};
  const core = coreOf(connection);
  return core.watch(() => {
    const error = core.sending.error;
    if (error !== undefined) lost(error);
  });
}

/** Copies all that `from` sends, its end included. Before it rejects it reports which side failed. */
async function copy(
  from: DuplexConnection,
  to: DuplexConnection,
  unreadable: (error: unknown) => void,
  unwritable: (error: unknown) => void,
): Promise<number> {
  let failed = unreadable;
  try {
    let total = 0;
    let p = new Uint8Array(MIN_COPY_BYTES);
    for (;;) {
      failed = unreadable;
      const count = await from.read(p);
      failed = unwritable;
      if (count === null) break;
      for (let at = 0; at < count;) at += await to.write(p.subarray(at, count));
      total += count;
      if (count === p.length && count < MAX_COPY_BYTES) p = new Uint8Array(count * 2);
    }
    await to.closeWrite();
    return total;
  } catch (error) {
    failed(error);
    throw error;
  }
}
