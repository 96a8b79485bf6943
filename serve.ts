/**
 * A server of sessions, and a proxy between two connections.
 *
 * @module
 */

import { adapt } from "./_adapt.ts";
import { deferred } from "./_deferred.ts";
import { checkFunction, checkListener } from "./_describe.ts";
import { connectionOf, isNodeStream, NodeConnection } from "./_node_stream.ts";
import type { ReceiveHalf } from "./_receive_half.ts";
import { onAbort } from "./_wait.ts";
import { Channel } from "./channel.ts";
import { clock, setTimerRef } from "./_clock.ts";
import { SessionClosedError } from "./errors.ts";
import { DEFAULTS, duration, resolveOptions, type ServerSessionOptions } from "./options.ts";
import { isEnding, reportStalled, Session } from "./session.ts";
import { type AbortOptions, coreOf, Stream } from "./stream.ts";
import {
  checkCount,
  type ChunkConnection,
  closeQuietly,
  type Connection,
  type NodeStream,
  type Transport,
} from "./transport.ts";

/**
 * A source of connections, in the shape of `Deno.Listener`: `Deno.listen` and `Deno.listenTls` return one.
 *
 * @example Closing connections from banned addresses
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
 * using client = await Deno.connect({ port: inner.addr.port });
 * assertEquals(await client.read(new Uint8Array(1)), null);
 * ```
 */
export interface Listener<Accepted extends Transport = Transport> {
  /**
   * Waits for the next connection. An error named "BadResource" or "Interrupted", as Deno throws, means that the
   * listener was closed; after any other error `accept` is called again.
   */
  accept(): Promise<Accepted>;
  /** Stops listening; a pending `accept` rejects. */
  close(): void;
}

// Names of the errors of `accept` when the listener was closed.
const LISTENER_CLOSED = ["BadResource", "Interrupted"];
/** Names of the errors of `accept` when a connection was lost before it was accepted. */
export const CONNECTION_LOST = ["NotConnected", "ConnectionReset", "ConnectionAborted"];
// Pause after other errors, which may last (too many open files). Smaller: busy waiting; larger: later recovery.
const MIN_PAUSE_MS = 5;
const MAX_PAUSE_MS = 1000;

/**
 * Returns the pause before `accept` is called again after an error; `undefined` when the listener was closed.
 *
 * @param error What `accept` threw.
 * @param last The pause before this call of it in milliseconds.
 */
export function pauseAfter(error: unknown, last: number): number | undefined {
  const name = error instanceof Error ? error.name : "";
  if (LISTENER_CLOSED.includes(name)) return undefined;
  return CONNECTION_LOST.includes(name) ? 0 : Math.min(Math.max(last * 2, MIN_PAUSE_MS), MAX_PAUSE_MS);
}

/**
 * Options of {@linkcode connections}.
 *
 * @example Ending the loop with a signal
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
  /** Closes the listener and ends the loop when it aborts. */
  signal?: AbortSignal | undefined;
  /** Called with each error of `accept`. The loop goes on. Default: `console.error`. */
  onError?: ((error: unknown) => void) | undefined;
}

/**
 * Accepts connections until the listener is closed. Leaving the loop closes the listener.
 *
 * Deno's own iteration over a listener rejects when a peer resets its connection before it is accepted. This one passes
 * the error to `onError` and continues. After an error that may last, such as too many open files, it pauses for 5 ms
 * to 1 s.
 *
 * @param listener The source of the connections.
 * @param options A signal, and a callback for errors.
 * @returns An iterator over the connections.
 * @throws {TypeError} The listener lacks `accept` or `close`: the first step of the iteration rejects.
 *
 * @example Accepting one connection
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
  checkListener(listener, "accept");
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
        const next = pauseAfter(error, pause);
        if (stopped.closed || next === undefined) return;
        report(onError, error);
        if (next > 0) await stopped.receive({ timeout: pause = next }).catch(() => {});
        continue;
      }
      if (stopped.closed) return drop(connection, onError);
      pause = 0;
      yield connection;
    }
  } finally {
    stop();
    signal?.removeEventListener("abort", stop);
  }
}

/** Calls `onError`. An async function is assignable to its type, too: what it rejects with is logged. */
function report(onError: (error: unknown) => void, error: unknown): void {
  const reporting: unknown = onError(error);
  if (reporting instanceof Promise) reporting.catch((thrown) => console.error(thrown));
}

/** Closes a connection that was accepted too late. */
function drop(connection: Transport, onError: (error: unknown) => void): void {
  try {
    adapt(connection).close();
  } catch (error) {
    // `adapt` throws for a value that is not a transport.
    report(onError, error);
  }
}

// Larger: other streams wait longer, until the peer's timeout of 30 s ends the session. Smaller: cuts streams during
// pauses of a healthy network (retransmission, change of a mobile cell: up to 3 s).
const STALLED_STREAM_TIMEOUT_MS = 5000;

/**
 * Options of {@linkcode serve}: those of a server session without `incoming`, a signal, and callbacks.
 *
 * @example Setting limits and logging
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
   * As in {@linkcode SessionOptions}, but with a default of 5000, because peers of a server are not trusted. The error
   * is passed to `onError`, unless the handler rejects with it at once.
   */
  stalledStreamTimeout?: number | undefined;
  /** Ends the server at once when it aborts: closes the listener and aborts every session with the signal's reason. */
  signal?: AbortSignal | undefined;
  /** Called with each error of accepting, of a session or of a callback. Default: `console.error`. */
  onError?: ((error: unknown) => void) | undefined;
  /** Called with each session when it starts. An error that it throws or rejects with is passed to `onError`. */
  onSession?: ((session: Session) => unknown) | undefined;
}

/**
 * A running server, returned by {@linkcode serve}.
 *
 * @example Shutting down with a timeout
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
 * await deadline(server.shutdown({ timeout: 50 }), 5000); // the stream stays open: aborted after 50 ms
 * assertEquals(errors.map((error) => (error as Error).name), ["TimeoutError"]);
 * await assertRejects(() => stream.read(p), SessionClosedError);
 * ```
 */
export interface Server extends AsyncDisposable {
  /** Resolves when the listener is closed, every session has ended and every callback has settled. It never rejects. */
  readonly finished: Promise<void>;
  /**
   * Stops accepting connections and streams, waits until no stream is open, and closes the sessions.
   *
   * @param options Milliseconds after which open sessions are aborted; only those of the first call count. Default: the
   * `timeout` of the sessions.
   * @returns The promise {@linkcode Server.finished}.
   * @throws {RangeError} `timeout` is out of bounds.
   */
  shutdown(options?: { timeout?: number | undefined }): Promise<void>;
}

/**
 * Accepts connections, starts a server session on each, and calls `handler` for each stream that a peer opens.
 *
 * When the handler resolves, the stream ends as by {@linkcode Stream.closeWrite} and is closed; when it rejects, the
 * stream is closed at once. The peer reads both as an end of complete data, unless the handler has called
 * {@linkcode Stream.abort}. Errors of accepting, of a session or of a callback are passed to `onError` and do not end
 * the server.
 *
 * @param listener The source of the connections. The server closes it.
 * @param handler Called with each stream and its session.
 * @param options Limits and timeouts of the sessions, a signal, and callbacks.
 * @returns The running server.
 * @throws {RangeError} An option is out of bounds.
 * @throws {TypeError} `handler` is not a function, `options` has `incoming`, or the listener lacks `accept` or `close`.
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
  const sessionOptions = checkServing(handler, options);
  checkListener(listener, "serve");
  const server = new StreamServer(handler, options, sessionOptions);
  const finished = server.run(listener);
  const shutdown = (options: { timeout?: number | undefined } = {}) => server.shutdown(options);
  return { finished, shutdown, [Symbol.asyncDispose]: shutdown };
}

/**
 * Checks the handler and the options of a server, and returns the options of its sessions.
 *
 * @throws {RangeError} An option is out of bounds.
 * @throws {TypeError} `handler` is not a function, or `options` has `incoming`.
 */
export function checkServing(handler: unknown, options: ServeOptions): ServerSessionOptions {
  checkFunction("handler", handler);
  if ((options as ServerSessionOptions).incoming !== undefined) {
    throw new TypeError("incoming cannot be used with serve: every stream is passed to the handler");
  }
  const { signal: _, onError: __, onSession: ___, ...rest } = options;
  const { stalledStreamTimeout = STALLED_STREAM_TIMEOUT_MS } = rest;
  const sessionOptions = { ...rest, stalledStreamTimeout };
  resolveOptions(sessionOptions, "server");
  return sessionOptions;
}

/** The sessions and handlers of one listener. */
class StreamServer {
  readonly #handler: (stream: Stream, session: Session) => void | Promise<void>;
  readonly #onError: (error: unknown) => void;
  readonly #onSession: ((session: Session) => unknown) | undefined;
  readonly #signal: AbortSignal | undefined;
  readonly #sessionOptions: ServerSessionOptions;
  readonly #sessions = new Set<Session>();
  readonly #stopping = new AbortController();
  #finished: Promise<void> = Promise.resolve();

  constructor(
    handler: (stream: Stream, session: Session) => void | Promise<void>,
    { signal, onError = console.error, onSession }: ServeOptions,
    sessionOptions: ServerSessionOptions,
  ) {
    this.#handler = handler;
    this.#onError = onError;
    this.#onSession = onSession;
    this.#signal = signal;
    this.#sessionOptions = sessionOptions;
  }

  /** Accepts until the server is stopped. The promise resolves when every session has ended. */
  run(listener: Listener): Promise<void> {
    this.#signal?.addEventListener("abort", this.#abort);
    if (this.#signal?.aborted) this.#abort();
    return this.#finished = this.#accept(listener);
  }

  /** Stops accepting, and closes every session gracefully. */
  shutdown(options: { timeout?: number | undefined }): Promise<void> {
    const timeout = duration("timeout", options.timeout ?? this.#sessionOptions.timeout ?? DEFAULTS.timeout);
    this.#stopping.abort();
    for (const session of this.#sessions) session.close({ timeout, drain: true });
    this.#abortSuspended(timeout);
    return this.#finished;
  }

  /** Aborts sessions that are still suspended after `timeout` milliseconds, because their own timers do not run. */
  async #abortSuspended(timeout: number): Promise<void> {
    if (timeout === Infinity || this.#sessions.size === 0) return;
    const timer = clock.setTimer(() => {
      const error = new DOMException(`The session did not close within ${timeout} ms`, "TimeoutError");
      for (const session of this.#sessions) if (session.stats().suspended) session.abort(error);
    }, timeout);
    // A connection that is suspended keeps the process alive itself.
    setTimerRef(timer, false);
    await this.#finished;
    clock.clearTimer(timer);
  }

  readonly #abort = (): void => {
    this.#stopping.abort();
    for (const session of this.#sessions) session.abort(this.#signal!.reason);
  };

  readonly #report = (error: unknown): void => {
    try {
      report(this.#onError, error);
    } catch (thrown) {
      console.error(thrown);
    }
  };

  async #accept(listener: Listener): Promise<void> {
    const { signal } = this.#stopping;
    const running = new Set<Promise<void>>();
    for await (const connection of connections(listener, { signal, onError: this.#report })) {
      // The server may have been stopped after the connection was accepted.
      if (signal.aborted) {
        drop(connection, this.#report);
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
      // A handler that is using the stream rejects with the same error, which `#handle` reports.
      await clock.yieldToEventLoop();
      if (handling.has(stream)) this.#report(error);
    });
    const begun = this.#begin(session);
    try {
      for await (const stream of session) {
        const handled = this.#handle(stream, session);
        handling.set(stream, handled);
        handled.finally(() => handling.delete(stream));
      }
    } catch {
      // `closed` rejects with the cause.
    }
    await session.closed.catch((error) => {
      if (!this.#signal?.aborted) this.#report(error);
    });
    await Promise.all([begun, ...handling.values()]);
    this.#sessions.delete(session);
  }

  async #begin(session: Session): Promise<void> {
    try {
      await this.#onSession?.(session);
    } catch (error) {
      this.#reportFrom(session, error);
    }
  }

  async #handle(stream: Stream, session: Session): Promise<void> {
    try {
      await this.#handler(stream, session);
      await stream[Symbol.asyncDispose]();
    } catch (error) {
      stream.close();
      this.#reportFrom(session, error);
    }
  }

  /** Reports an error of a callback. The end of its session is reported once, by `#serveSession`. */
  #reportFrom(session: Session, error: unknown): void {
    if (!(error instanceof SessionClosedError && isEnding(session))) this.#report(error);
  }
}

/**
 * A connection whose directions end independently: `Deno.TcpConn`, `Deno.TlsConn`, `Deno.UnixConn` or a
 * {@linkcode Stream}.
 *
 * @example Writing one function for sockets and streams
 * ```ts
 * import { type DuplexConnection, serve, Session } from "@sluice/smux";
 * import { assert } from "@std/assert";
 * import { concat, equals } from "@std/bytes";
 *
 * async function readAll(connection: DuplexConnection): Promise<Uint8Array> {
 *   await connection.closeWrite(); // this end sends nothing
 *   const parts: Uint8Array[] = [];
 *   const p = new Uint8Array(1024);
 *   for (let count; (count = await connection.read(p)) !== null;) parts.push(p.slice(0, count));
 *   connection.close();
 *   return concat(parts);
 * }
 *
 * const data = new Uint8Array(3000).fill(7);
 * const listener = Deno.listen({ port: 0 });
 * await using _server = serve(listener, async (stream) => void await stream.write(data));
 * await using session = Session.client(await Deno.connect({ port: listener.addr.port }));
 * assert(equals(await readAll(await session.openStream()), data));
 * ```
 */
export interface DuplexConnection extends Connection {
  /** Ends the writing direction; reading goes on. */
  closeWrite(): Promise<void>;
}

/**
 * Result of {@linkcode join}: the number of bytes copied in each direction.
 *
 * @example Recording the bytes of each connection
 * ```ts
 * import { join, type JoinResult, serve, Session } from "@sluice/smux";
 * import { assertEquals } from "@std/assert";
 * import { toText } from "@std/streams";
 *
 * const results: JoinResult[] = [];
 * const web = Deno.serve({ port: 0, onListen() {} }, () => new Response("hello"));
 * const listener = Deno.listen({ port: 0 });
 * const server = serve(listener, async (stream) => {
 *   results.push(await join(stream, await Deno.connect({ port: web.addr.port })));
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
 * assertEquals(results, [{ sent: request.length, received: answer.length }]);
 * await web.shutdown();
 * ```
 */
export interface JoinResult {
  /** Bytes copied from the first connection to the second. */
  sent: number;
  /** Bytes copied from the second connection to the first. */
  received: number;
}

// The buffer of a direction from a connection doubles when a read fills it. Larger: fewer reads and writes; smaller: less
// memory.
const MIN_COPY_BYTES = 8 * 1024;
const MAX_COPY_BYTES = 64 * 1024;
// Buffers of MAX_COPY_BYTES that are kept for the next reads from streams. Larger: fewer allocations while many streams
// are busy; smaller: less memory after that.
const MAX_SPARE_BUFFERS = 16;

/**
 * Copies between two connections in both directions until both have ended, and closes them. The end of one direction is
 * passed on while the other goes on. When one connection fails, so does the join: it closes both, and a
 * {@linkcode Stream} by {@linkcode Stream.abort}, so that the failure does not look like an end to its peer.
 *
 * Two `pipeTo` calls do not do this: at its end, a pipe into the `writable` of a Deno connection closes both
 * directions, so a peer that ends its direction first does not receive the answer.
 *
 * When a {@linkcode Stream} fails or is closed, or a stream of Node is destroyed, the join rejects at once, even while a
 * write to the other connection waits. If everything up to the peer's end had already arrived on a {@linkcode Stream},
 * it is copied first.
 *
 * To end a join, for example after a time without data, abort its signal: that the application has closed a connection
 * of Deno is noticed only by the next read or write.
 *
 * A socket of Node must have `allowHalfOpen`: without it, Node ends both directions at the end of the first.
 *
 * @param a The first connection. Both are closed when the promise settles.
 * @param b The second connection.
 * @param options A signal that aborts the join.
 * @returns The number of bytes copied in each direction.
 * @throws The first error of either connection, or the reason of the signal. {@linkcode StreamResetError}: the peer of
 *   a stream has aborted it.
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
  a: DuplexConnection | NodeStream,
  b: DuplexConnection | NodeStream,
  options: AbortOptions = {},
): Promise<JoinResult> {
  let connections: [DuplexConnection, DuplexConnection];
  try {
    connections = [connectionOf(a), connectionOf(b)];
  } catch (error) {
    for (const side of [a, b]) {
      if (side instanceof Stream) side.abort(error);
      if (isNodeStream(side)) side.destroy();
      else closeQuietly(side as DuplexConnection);
    }
    throw error;
  }
  return await joinConnections(...connections, options);
}

async function joinConnections(
  a: DuplexConnection,
  b: DuplexConnection,
  options: AbortOptions,
): Promise<JoinResult> {
  const { signal } = options;
  const { promise, resolve, reject } = deferred<JoinResult>();
  const unlisten = signal && onAbort(signal, reject);
  if (signal?.aborted) reject(signal.reason);

  let first: { error: unknown } | undefined;
  const fail = (error: unknown) => reject((first ??= { error }).error);
  /**
   * Fails the join, because `side` cannot be written. If everything from `side` has arrived, waits for `rest` first.
   */
  async function lose(side: DuplexConnection, rest: Promise<number>, error: unknown): Promise<void> {
    const core = side instanceof Stream ? coreOf(side) : undefined;
    // Not the error of the write, whose `bytesWritten` counts an internal buffer.
    first ??= { error: core?.sending.error ?? error };
    if (core?.receiving.isWhole) await rest.catch(() => {});
    fail(error);
  }
  let hasSettled = false;
  const isOver = () => hasSettled;
  const there = copy(a, b, isOver, fail, (error) => lose(b, back, error));
  const back = copy(b, a, isOver, fail, (error) => lose(a, there, error));
  // A pending write does not notice that the other side has failed.
  const stopWatching = [
    watch(a, (error) => lose(a, there, error)),
    watch(b, (error) => lose(b, back, error)),
  ];
  try {
    Promise.all([there, back]).then(([sent, received]) => resolve({ sent, received }), () => {});
    return await promise;
  } catch (error) {
    // So that the peer of a stream does not take a part of the data for all of it.
    for (const connection of [a, b]) if (connection instanceof Stream) connection.abort(error);
    throw error;
  } finally {
    hasSettled = true;
    unlisten?.();
    for (const stop of stopWatching) stop();
    for (const connection of [a, b]) closeQuietly(connection);
  }
}

/** Calls `lost` when a stream, also of Node, fails. Other connections report a failure only to a read or a write. */
function watch(connection: DuplexConnection, lost: (error: unknown) => void): () => void {
  if (connection instanceof NodeConnection) connection.watch(lost);
  if (!(connection instanceof Stream)) return () => {};
  const core = coreOf(connection);
  return core.watch(() => {
    const error = core.sending.error;
    if (error !== undefined) lost(error);
  });
}

/** What a direction of a join reads. */
interface Source {
  /** Returns bytes, or `null` at the end. */
  read(): Promise<Uint8Array | null>;
  /** Takes back what `read` has returned. */
  release?(chunk: Uint8Array): void;
}

function sourceOf(from: DuplexConnection): Source {
  if (from instanceof Stream) return new StreamSource(from);
  const { readChunk } = from as Partial<ChunkConnection>;
  return typeof readChunk === "function" ? { read: () => readChunk.call(from) } : new BufferSource(from);
}

// Shared by all joins: most streams wait, and hold no buffer meanwhile.
const spares: Uint8Array[] = [];
const lend = (): Uint8Array => spares.pop() ?? new Uint8Array(MAX_COPY_BYTES);

class StreamSource implements Source {
  readonly #half: ReceiveHalf;

  constructor(stream: Stream) {
    this.#half = coreOf(stream).receiving;
  }

  read(): Promise<Uint8Array | null> {
    return this.#half.readLent(lend);
  }

  release({ buffer }: Uint8Array): void {
    // Not the empty one.
    const isLent = buffer.byteLength === MAX_COPY_BYTES;
    if (isLent && spares.length < MAX_SPARE_BUFFERS) spares.push(new Uint8Array(buffer));
  }
}

class BufferSource implements Source {
  readonly #from: DuplexConnection;
  #p: Uint8Array = new Uint8Array(MIN_COPY_BYTES);
  #count = 0;

  constructor(from: DuplexConnection) {
    this.#from = from;
  }

  async read(): Promise<Uint8Array | null> {
    const { length } = this.#p;
    if (this.#count === length && length < MAX_COPY_BYTES) this.#p = new Uint8Array(length * 2);
    const p = this.#p;
    const count = await this.#from.read(p);
    if (count === null) return null;
    if (!(count >= 0 && count <= p.length)) {
      throw new TypeError(`Transport read must return 0 to ${p.length} or null, received ${count}`);
    }
    this.#count = count;
    return p.subarray(0, count);
  }
}

/**
 * Copies from `from` to `to`, its end included, until `isOver` returns `true`. Before it rejects, it calls the callback
 * of the side that failed.
 */
async function copy(
  from: DuplexConnection,
  to: DuplexConnection,
  isOver: () => boolean,
  unreadable: (error: unknown) => void,
  unwritable: (error: unknown) => void,
): Promise<number> {
  let failed = unreadable;
  try {
    let total = 0;
    const source = sourceOf(from);
    for (;;) {
      failed = unreadable;
      const chunk = await source.read();
      // A connection need not fail after it was closed.
      if (isOver()) return total;
      failed = unwritable;
      if (chunk === null) break;
      const { length } = chunk;
      // A connection that keeps returning 0 at once would block the event loop.
      if (length === 0) await clock.yieldToEventLoop();
      for (let at = 0; at < length;) {
        const written = checkCount(await to.write(at === 0 ? chunk : chunk.subarray(at)), length - at);
        if (isOver()) return total;
        if (written === 0) await clock.yieldToEventLoop();
        at += written;
      }
      total += length;
      source.release?.(chunk);
    }
    await to.closeWrite();
    return total;
  } catch (error) {
    failed(error);
    throw error;
  }
}
