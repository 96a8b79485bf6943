/**
 * Sessions over WebSockets: in browsers, on Deno Deploy and in other runtimes that have no other transport, and through
 * proxies that let nothing else pass.
 *
 * ```ts
 * import { connectWebSocket, upgradeWebSocket } from "@sluice/smux/websocket";
 * import { assertEquals } from "@std/assert";
 * import { toText } from "@std/streams";
 *
 * // The server echoes every stream.
 * const server = Deno.serve({ port: 0, onListen() {} }, (request) =>
 *   upgradeWebSocket(request, (stream) => stream.readable.pipeTo(stream.writable)));
 *
 * // The client may be a page.
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
 * - {@linkcode connectWebSocket} connects, and returns a session.
 * - {@linkcode upgradeWebSocket} answers a request with a WebSocket and serves the session on it.
 * - {@linkcode WebSocketListener} is for servers that end in order: it makes connections of requests for `serve`.
 * - {@linkcode webSocketConnection} makes a transport of any WebSocket.
 *
 * A WebSocket cannot be asked to wait. In version 2 the windows of the streams bound what a peer sends; in version 1 a stream
 * that is not read ends the session when more than twice `maxReceiveBuffer` has arrived.
 *
 * @module
 */

import { Channel } from "./channel.ts";
import { clock } from "./_clock.ts";
import { deferred } from "./_deferred.ts";
import { WebSocketClosedError } from "./errors.ts";
import { type ClientSessionOptions, DEFAULTS, resolveOptions } from "./options.ts";
import { checkServeOptions, type Listener, serve, type ServeOptions } from "./serve.ts";
import { Session } from "./session.ts";
import type { Stream } from "./stream.ts";
import type { Address, Connection } from "./transport.ts";
import { resolveReceiveBuffer, WebSocketConnection, type WebSocketLike, type WebSocketOptions } from "./_web_socket.ts";

export { WebSocketClosedError, type WebSocketLike, type WebSocketOptions };

/**
 * Makes a connection of a WebSocket, of either end, that is open or connecting.
 *
 * Do so before anything waits, since messages that arrive earlier are lost. The socket belongs to the connection.
 *
 * @param socket The WebSocket.
 * @param options A bound, and the address of the peer.
 * @returns The connection, for `Session.client` or `Session.server`. It has no half-close: `closeWrite` closes the socket
 * behind what was written.
 * @throws {TypeError} The socket is closing or closed, or no WebSocket.
 * @throws {RangeError} `maxReceiveBuffer` is out of bounds.
 *
 * @example A socket that the program has made
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
 * Options of {@linkcode connectWebSocket}: those of a client's session, and two more.
 *
 * @example Giving up after a second
 * ```ts
 * import { connectWebSocket, type ConnectWebSocketOptions } from "@sluice/smux/websocket";
 * import { assertRejects } from "@std/assert";
 *
 * const silent = Deno.listen({ port: 0 }); // accepts connections, and answers nothing
 * const options: ConnectWebSocketOptions = { keepAliveInterval: 100, timeout: 200 };
 * await assertRejects(() => connectWebSocket(`ws://localhost:${silent.addr.port}`, options), DOMException, "200 ms");
 * silent.close();
 * ```
 */
export interface ConnectWebSocketOptions extends ClientSessionOptions {
  /** Subprotocols to offer, as in `new WebSocket(url, protocols)`. Default: none. */
  protocols?: string | string[] | undefined;
  /** Gives up connecting. It has no effect on the session. */
  signal?: AbortSignal | undefined;
}

/**
 * Connects to a WebSocket server, and starts the client's side of a session.
 *
 * @param url The address, `ws:` or `wss:`.
 * @param options Limits and times of the session, subprotocols, and a signal.
 * @returns The session, once the socket is open.
 * @throws {WebSocketClosedError} The server cannot be reached, or refuses.
 * @throws {DOMException} A "TimeoutError" when the socket is not open after `timeout` milliseconds; a "SyntaxError" for a url
 * that is none.
 * @throws {RangeError} An option is out of bounds.
 * @throws {TypeError} The runtime has no `WebSocket`, as Node 20.
 *
 * @example Reading what a server has to say
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
  const { maxReceiveBuffer, timeout } = resolveOptions(sessionOptions, "client");
  signal?.throwIfAborted();
  const { WebSocket } = globalThis as {
    WebSocket?: new (url: string | URL, protocols: string | string[]) => WebSocketLike;
  };
  if (WebSocket === undefined) {
    throw new TypeError("This runtime has no WebSocket: pass one of npm:ws to webSocketConnection");
  }
  const connection = new WebSocketConnection(new WebSocket(url, protocols), { maxReceiveBuffer });
  const stop = deferred<never>();
  const abort = () => stop.reject(signal!.reason);
  const expired = () =>
    stop.reject(new DOMException(`The WebSocket did not open within ${timeout} ms`, "TimeoutError"));
  signal?.addEventListener("abort", abort);
  const timer = timeout === Infinity ? undefined : clock.setTimer(expired, timeout);
  try {
    await Promise.race([connection.opened, stop.promise]);
  } catch (error) {
    connection.close();
    throw error;
  } finally {
    clock.clearTimer(timer);
    signal?.removeEventListener("abort", abort);
  }
  return Session.client(connection, sessionOptions);
}

/** What Deno and workerd have to answer a request with a WebSocket. */
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
 * Makes connections of requests that ask for a WebSocket, for {@linkcode serve}: with it a server ends in order.
 *
 * @example A server that can be shut down
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
   * Makes one.
   *
   * @param options Options of each connection.
   * @throws {RangeError} `maxReceiveBuffer` is out of bounds.
   */
  constructor(options: WebSocketOptions = {}) {
    resolveReceiveBuffer(options);
    this.#options = options;
  }

  /**
   * Answers a request for a WebSocket, in Deno and in workerd.
   *
   * @param request The request.
   * @param info What `Deno.serve` passes to a handler, so that sessions know the address of their peer.
   * @returns The response: 101; 426 to a request that does not ask for a WebSocket, 400 to one that asks wrongly; 503 when
   * the listener is closed, or 1024 connections wait to be accepted.
   * @throws {TypeError} The runtime cannot do this.
   */
  upgrade(request: Request, info: { remoteAddr?: Address } = {}): Response {
    if (!isUpgrade(request)) return upgradeRequired();
    if (this.#connections.closed || this.#connections.size >= BACKLOG) return new Response(null, { status: 503 });
    // Once it is upgraded, Deno has forgotten the request.
    const { remoteAddr } = info;
    const upgraded = upgrade(request);
    if (upgraded instanceof Response) return upgraded;
    this.add(upgraded.socket, remoteAddr && { remoteAddr });
    return upgraded.response;
  }

  /**
   * Adds a socket that a server of another kind has accepted, such as `npm:ws`.
   *
   * @param socket The socket, open or connecting.
   * @param info The address of its peer.
   * @throws {TypeError} The socket is closing or closed.
   */
  add(socket: WebSocketLike, info: { remoteAddr?: Address } = {}): void {
    const connection = new WebSocketConnection(socket, { ...this.#options, remoteAddr: info.remoteAddr });
    if (!this.#connections.trySend(connection)) connection.close();
  }

  /** The next connection. Rejects with an error named "Interrupted" when the listener is closed. */
  async accept(): Promise<Connection> {
    try {
      return await this.#connections.receive();
    } catch (cause) {
      throw interrupted({ cause });
    }
  }

  /** Ends listening: connections that wait are closed, later requests get 503. */
  close(): void {
    this.#connections.close();
    for (const connection of this.#connections.drain()) connection.close();
  }
}

// As many as a session's `acceptBacklog`: connections are accepted at once, so that only a busy process has any waiting.
const BACKLOG = 1024;

/** What a listener rejects with when there are no more connections. */
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

// Deno's default. Not less, because unlike a session Deno also counts time in which this process was blocked.
const DENO_IDLE_TIMEOUT_SECONDS = 30;

/**
 * Answers the request; without a socket where the request is malformed. Deno closes the socket of a client that does not
 * answer a ping within `idleTimeout` seconds; 0 is never.
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
    "This runtime cannot answer a request with a WebSocket: pass its socket to WebSocketListener.add",
  );
}

/**
 * Answers a request for a WebSocket, and serves the session on it as `serve` does: all that a program on Deno Deploy needs.
 *
 * To end in order, with `shutdown`, use {@linkcode WebSocketListener} and `serve`.
 *
 * @param request The request.
 * @param handler What to do with each stream that the client opens.
 * @param options Limits and times of the session, a signal, and callbacks.
 * @returns The response: 101; 426 to a request that does not ask for a WebSocket, 400 to one that asks wrongly.
 * @throws {RangeError} An option is out of bounds.
 * @throws {TypeError} An `incoming` was given, or the runtime cannot do this.
 *
 * @example A server of streams beside pages
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
  // Before the upgrade, which cannot be taken back.
  const { maxReceiveBuffer, timeout = DEFAULTS.timeout } = checkServeOptions(options);
  // A client that is silent for less than `timeout` must not be cut by Deno.
  const idleTimeout = timeout === Infinity ? 0 : Math.max(DENO_IDLE_TIMEOUT_SECONDS, Math.ceil(timeout / 1000));
  const upgraded = upgrade(request, { idleTimeout });
  if (upgraded instanceof Response) return upgraded;
  const connections: Connection[] = [new WebSocketConnection(upgraded.socket, { maxReceiveBuffer })];
  const accept = async () => {
    const connection = connections.pop();
    if (connection === undefined) throw interrupted();
    return await connection;
  };
  // Where `signal` is aborted already, nothing accepts it.
  serve({ accept, close: () => connections.pop()?.close() }, handler, options);
  return upgraded.response;
}
