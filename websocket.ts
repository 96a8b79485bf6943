/**
 * Sessions over WebSockets, for browsers, for Deno Deploy and for proxies that pass only HTTP.
 *
 * ```ts
 * import { connectWebSocket, upgradeWebSocket } from "@sluice/smux/websocket";
 * import { assertEquals } from "@std/assert";
 * import { toText } from "@std/streams";
 *
 * // An echo server.
 * const server = Deno.serve({ port: 0, onListen() {} }, (request) =>
 *   upgradeWebSocket(request, (stream) => stream.readable.pipeTo(stream.writable)));
 *
 * // A client; a page runs the same code.
 * const session = await connectWebSocket(`ws://localhost:${server.addr.port}`);
 * const stream = await session.openStream();
 * await stream.write(new TextEncoder().encode("hello"));
 * await stream.closeWrite();
 * assertEquals(await toText(stream.readable), "hello");
 *
 * await session.close();
 * await server.shutdown();
 * ```
 *
 * - {@linkcode connectWebSocket} connects to a server and returns a session.
 * - {@linkcode upgradeWebSocket} upgrades a request to a WebSocket and serves a session on it.
 * - {@linkcode WebSocketListener} passes upgraded requests to `serve`, for servers that shut down gracefully.
 * - {@linkcode webSocketConnection} adapts an open or connecting WebSocket to a transport.
 *
 * A WebSocket has no backpressure in the receiving direction. In version 2 the windows of the streams limit what a peer
 * sends. In version 1 the session ends with code 1009 when more than twice `maxReceiveBuffer` bytes are unread, because a
 * stream is not read or because the application reads more slowly than the peer sends.
 *
 * The runtime assembles a message before the session receives it, so the size of one message has the limit of the
 * runtime:
 *
 * - `npm:ws`: `maxPayload`, 100 MiB by default; set it to 1 MiB. Its own limits end a flood of pings or of fragments.
 * - Deno: 64 MiB for a frame, and no limit for a message of several frames (fragments). Deno holds such a message until
 *   it is complete or the peer closes its connection, also after `timeout` has ended the session.
 *
 * @module
 */

import { onAbort } from "./_wait.ts";
import { Channel } from "./channel.ts";
import { clock } from "./_clock.ts";
import { deferred } from "./_deferred.ts";
import { WebSocketClosedError } from "./errors.ts";
import { type ClientSessionOptions, closeIncoming, DEFAULTS, resolveOptions } from "./options.ts";
import { checkServing, type Listener, serve, type ServeOptions } from "./serve.ts";
import { Session } from "./session.ts";
import type { Stream } from "./stream.ts";
import type { Address, Connection } from "./transport.ts";
import { resolveReceiveBuffer, WebSocketConnection, type WebSocketLike, type WebSocketOptions } from "./_web_socket.ts";

export { WebSocketClosedError, type WebSocketLike, type WebSocketOptions };

/**
 * Adapts an open or connecting WebSocket, of a client or a server, to a connection.
 *
 * Call it in the same tick in which the socket was created or accepted: earlier messages are lost. The connection owns
 * the socket and closes it at the end.
 *
 * @param socket The WebSocket.
 * @param options The limit of unread bytes, and the address of the peer.
 * @returns The connection, for `Session.client` or `Session.server`. It has no half-close: `closeWrite` sends what was
 * written and closes the socket.
 * @throws {TypeError} `socket` is closing or closed, or is not a WebSocket.
 * @throws {RangeError} `maxReceiveBuffer` is out of bounds.
 *
 * @example A socket with a subprotocol
 * ```ts
 * import { Session } from "@sluice/smux";
 * import { upgradeWebSocket, webSocketConnection } from "@sluice/smux/websocket";
 * import { assertEquals } from "@std/assert";
 *
 * const server = Deno.serve({ port: 0, onListen() {} }, (request) => upgradeWebSocket(request, () => {}));
 * const socket = new WebSocket(`ws://localhost:${server.addr.port}`, "smux");
 * const session = Session.client(webSocketConnection(socket));
 * const stream = await session.openStream();
 * assertEquals(await stream.read(new Uint8Array(1)), null); // the server ends each stream at once
 * await session.close();
 * await server.shutdown();
 * ```
 */
export function webSocketConnection(socket: WebSocketLike, options: WebSocketOptions = {}): Connection {
  return new WebSocketConnection(socket, options);
}

/**
 * Options of {@linkcode connectWebSocket}: the options of a client's session, subprotocols and a signal.
 *
 * @example Giving up after 200 ms
 * ```ts
 * import { connectWebSocket, type ConnectWebSocketOptions } from "@sluice/smux/websocket";
 * import { assertRejects } from "@std/assert";
 *
 * const silent = Deno.listen({ port: 0 }); // accepts connections and never answers
 * const options: ConnectWebSocketOptions = { signal: AbortSignal.timeout(200) };
 * await assertRejects(() => connectWebSocket(`ws://localhost:${silent.addr.port}`, options), DOMException);
 * silent.close();
 * ```
 */
export interface ConnectWebSocketOptions extends ClientSessionOptions {
  /** Subprotocols offered to the server, as in `new WebSocket(url, protocols)`. Default: none. */
  protocols?: string | string[] | undefined;
  /** Aborts connecting. It has no effect on the open session. */
  signal?: AbortSignal | undefined;
}

/**
 * Connects to a WebSocket server and starts the client side of a session.
 *
 * @param url The address of the server, `ws:` or `wss:`.
 * @param options Limits and timeouts of the session, subprotocols and a signal.
 * @returns The session. The socket is open.
 * @throws {WebSocketClosedError} The server is unreachable or refused the WebSocket. The code is 1006; in Deno the
 * message of `cause` has the status of the response.
 * @throws {DOMException} "TimeoutError": the socket did not open within `timeout` milliseconds. "SyntaxError": `url` is
 * invalid.
 * @throws {RangeError} An option is out of bounds.
 * @throws {TypeError} The runtime has no global `WebSocket` (Node 20, for example).
 * @throws The reason of the signal, when it aborts.
 *
 * @example Reading a greeting of the server
 * ```ts
 * import { connectWebSocket, upgradeWebSocket } from "@sluice/smux/websocket";
 * import { assertEquals } from "@std/assert";
 *
 * const server = Deno.serve({ port: 0, onListen() {} }, (request) =>
 *   upgradeWebSocket(request, async (stream) => void await stream.write(new TextEncoder().encode("hello"))));
 *
 * await using session = await connectWebSocket(`ws://localhost:${server.addr.port}`, { maxStreams: 100 });
 * const stream = await session.openStream();
 * assertEquals(await new Response(stream.readable).text(), "hello");
 * await server.shutdown();
 * ```
 */
export async function connectWebSocket(url: string | URL, options: ConnectWebSocketOptions = {}): Promise<Session> {
  const { protocols = [], signal, ...sessionOptions } = options;
  let connection;
  try {
    connection = await connect(url, protocols, signal, sessionOptions);
  } catch (error) {
    closeIncoming(sessionOptions);
    throw error;
  }
  return Session.client(connection, sessionOptions);
}

async function connect(
  url: string | URL,
  protocols: string | string[],
  signal: AbortSignal | undefined,
  sessionOptions: ClientSessionOptions,
): Promise<Connection> {
  const { maxReceiveBuffer, timeout } = resolveOptions(sessionOptions, "client");
  signal?.throwIfAborted();
  const { WebSocket } = globalThis as {
    WebSocket?: new (url: string | URL, protocols: string | string[]) => WebSocketLike;
  };
  if (WebSocket === undefined) {
    throw new TypeError("Cannot connect without a global WebSocket: pass a socket of npm:ws to webSocketConnection");
  }
  const connection = new WebSocketConnection(new WebSocket(url, protocols), { maxReceiveBuffer });
  const stop = deferred<never>();
  const expired = () =>
    stop.reject(new DOMException(`The WebSocket did not open within ${timeout} ms`, "TimeoutError"));
  const unlisten = signal && onAbort(signal, stop.reject);
  const timer = timeout === Infinity ? undefined : clock.setTimer(expired, timeout);
  try {
    await Promise.race([connection.opened, stop.promise]);
  } catch (error) {
    connection.close();
    throw error;
  } finally {
    clock.clearTimer(timer);
    unlisten?.();
  }
  return connection;
}

/** The functions of Deno and workerd that upgrade a request. */
interface Runtime {
  Deno?: {
    upgradeWebSocket?(
      request: Request,
      options: { idleTimeout?: number },
    ): { socket: WebSocketLike; response: Response };
  };
  WebSocketPair?: new () => { 0: unknown; 1: WebSocketLike & { accept(): void } };
}

/**
 * Upgrades requests to WebSockets and passes the connections to {@linkcode serve}, whose `shutdown` ends the sessions
 * gracefully.
 *
 * @example A server that shuts down gracefully
 * ```ts
 * import { serve } from "@sluice/smux";
 * import { connectWebSocket, WebSocketListener } from "@sluice/smux/websocket";
 * import { assertEquals } from "@std/assert";
 *
 * const sockets = new WebSocketListener();
 * const streams = serve(sockets, (stream) => stream.readable.pipeTo(stream.writable));
 * const http = Deno.serve({ port: 0, onListen() {} }, (request, info) => sockets.upgrade(request, info));
 *
 * const session = await connectWebSocket(`ws://localhost:${http.addr.port}`);
 * await streams.shutdown(); // waits for open streams, then closes each session
 * await session.closed;
 * assertEquals(session.stats().streams, 0);
 * await http.shutdown();
 * ```
 */
export class WebSocketListener implements Listener {
  readonly #options: WebSocketOptions;
  readonly #connections = new Channel<Connection>({ capacity: BACKLOG });

  /**
   * Creates a listener without connections.
   *
   * @param options Options of each connection.
   * @throws {RangeError} `maxReceiveBuffer` is out of bounds.
   */
  constructor(options: WebSocketOptions = {}) {
    resolveReceiveBuffer(options);
    this.#options = options;
  }

  /**
   * Upgrades a request, in Deno and workerd, and queues its connection for `accept`.
   *
   * @param request The request.
   * @param info The address of the peer: the second argument that `Deno.serve` passes to its handler.
   * @returns The response for the client. Status 101: upgraded. 426: the request has no `upgrade: websocket`. 400: the
   * handshake is malformed. 503: the listener is closed, or 1024 connections wait to be accepted.
   * @throws {TypeError} The runtime cannot upgrade a request: use `add`.
   */
  upgrade(request: Request, info: { remoteAddr?: Address } = {}): Response {
    if (!isUpgrade(request)) return upgradeRequired();
    if (this.#connections.closed || this.#connections.size >= BACKLOG) return new Response(null, { status: 503 });
    // Read before the upgrade, after which Deno has no address for the request.
    const { remoteAddr } = info;
    const upgraded = upgrade(request);
    if (upgraded instanceof Response) return upgraded;
    this.add(upgraded.socket, remoteAddr && { remoteAddr });
    return upgraded.response;
  }

  /**
   * Queues a socket that another server accepted, for example one of `npm:ws`. A closed or full listener closes the
   * socket.
   *
   * @param socket The socket, open or connecting.
   * @param info The address of the peer. Not the second argument of the handler of `Deno.serve`, which has no address
   * after the upgrade: read `remoteAddr` of it before, and pass `{ remoteAddr }`.
   * @throws {TypeError} `socket` is closing or closed, or is not a WebSocket.
   */
  add(socket: WebSocketLike, info: { remoteAddr?: Address } = {}): void {
    const connection = new WebSocketConnection(socket, { ...this.#options, remoteAddr: info.remoteAddr });
    if (!this.#connections.trySend(connection)) connection.close();
  }

  /** Returns the next connection. Rejects with an error named "Interrupted" when the listener is closed. */
  async accept(): Promise<Connection> {
    try {
      return await this.#connections.receive();
    } catch (cause) {
      throw interrupted({ cause });
    }
  }

  /** Closes the listener and the connections that wait to be accepted. Later requests get status 503. */
  close(): void {
    this.#connections.close();
    for (const connection of this.#connections.drain()) connection.close();
  }
}

// Equals the default `acceptBacklog`. `serve` accepts at once, so connections wait only while the event loop is
// blocked.
const BACKLOG = 1024;

/** Returns the error of `accept` on a closed listener. */
function interrupted(options?: ErrorOptions): Error {
  return Object.assign(new Error("The listener was closed", options), { name: "Interrupted" });
}

function isUpgrade(request: Request): boolean {
  return request.headers.get("upgrade")?.toLowerCase() === "websocket";
}

function upgradeRequired(): Response {
  return new Response("Expected a WebSocket", {
    status: 426,
    headers: { connection: "upgrade", upgrade: "websocket" },
  });
}

// The default of Deno. Not less, because unlike a session Deno also counts time in which this process was blocked.
const DENO_IDLE_TIMEOUT_SECONDS = 30;

/**
 * Upgrades a request; returns a response with status 400 if the handshake is malformed. Deno closes the socket of a
 * client that does not answer a ping within `idleTimeout` seconds; 0: never.
 */
function upgrade(
  request: Request,
  options: { idleTimeout?: number } = {},
): { socket: WebSocketLike; response: Response } | Response {
  const { Deno, WebSocketPair } = globalThis as Runtime;
  if (Deno?.upgradeWebSocket !== undefined) {
    try {
      return Deno.upgradeWebSocket(request, options);
    } catch (error) {
      return new Response(`${(error as Error).message}`, { status: 400 });
    }
  }
  if (WebSocketPair !== undefined) {
    const { 0: webSocket, 1: socket } = new WebSocketPair();
    socket.accept();
    return { socket, response: new Response(null, { status: 101, webSocket } as ResponseInit) };
  }
  throw new TypeError(
    "Cannot upgrade a request in this runtime: pass the socket of its WebSocket server to WebSocketListener.add",
  );
}

/**
 * Upgrades a request, in Deno and workerd, and serves a session on the WebSocket as `serve` does.
 *
 * For a graceful `shutdown`, use {@linkcode WebSocketListener} with `serve`.
 *
 * @param request The request.
 * @param handler Called with each stream that the client opens; see `serve`.
 * @param options Limits and timeouts of the session, a signal and callbacks.
 * @returns The response for the client. Status 101: upgraded. 426: the request has no `upgrade: websocket`. 400: the
 * handshake is malformed.
 * @throws {RangeError} An option is out of bounds.
 * @throws {TypeError} `handler` is not a function, `options.incoming` is set, or the runtime cannot upgrade a request.
 *
 * @example Pages and streams from one server
 * ```ts
 * import { connectWebSocket, upgradeWebSocket } from "@sluice/smux/websocket";
 * import { assertEquals } from "@std/assert";
 *
 * const server = Deno.serve({ port: 0, onListen() {} }, (request) => {
 *   if (new URL(request.url).pathname !== "/streams") return new Response("a page");
 *   return upgradeWebSocket(request, (stream) => stream.readable.pipeTo(stream.writable));
 * });
 *
 * const page = await fetch(`http://localhost:${server.addr.port}/`);
 * assertEquals(await page.text(), "a page");
 * const session = await connectWebSocket(`ws://localhost:${server.addr.port}/streams`);
 * await session.close();
 * await server.shutdown();
 * ```
 */
export function upgradeWebSocket(
  request: Request,
  handler: (stream: Stream, session: Session) => void | Promise<void>,
  options: ServeOptions = {},
): Response {
  if (!isUpgrade(request)) return upgradeRequired();
  // Checked before the upgrade, which cannot be undone.
  const { maxReceiveBuffer, timeout = DEFAULTS.timeout } = checkServing(handler, options);
  // Deno must not close the socket of a client that is silent for less than `timeout`.
  const idleTimeout = timeout === Infinity ? 0 : Math.max(DENO_IDLE_TIMEOUT_SECONDS, Math.ceil(timeout / 1000));
  const upgraded = upgrade(request, { idleTimeout });
  if (upgraded instanceof Response) return upgraded;
  const connections: Connection[] = [new WebSocketConnection(upgraded.socket, { maxReceiveBuffer })];
  const accept = async () => {
    const connection = connections.pop();
    if (connection === undefined) throw interrupted();
    return await connection;
  };
  // With a signal that is already aborted, `serve` closes the listener without accepting.
  serve({ accept, close: () => connections.pop()?.close() }, handler, options);
  return upgraded.response;
}
