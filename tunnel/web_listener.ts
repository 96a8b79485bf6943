/**
 * Accepts the WebSockets of clients at one path, and leaves all other requests to another server.
 *
 * @module
 */

import { Channel, type Connection, connections, type DuplexConnection, join, type Listener } from "../mod.ts";
import { formatPeer, UNNAMED } from "./address.ts";
import { encoder, writeAll } from "./bytes.ts";
import { RefusalError, wrapError } from "./errors.ts";
import { HandshakeLimit } from "./handshake_limit.ts";
import { HeadError, type HttpHead, readHttpHead } from "./http_head.ts";
import type { ServeTunnelOptions } from "./options.ts";
import { dial, type Socket } from "./socket.ts";
import { isEqual } from "./users.ts";
import { setDeadline, withDeadline } from "./wait.ts";
import { nameOf, parseBackend, parseWebSocketUrl } from "./web_socket_address.ts";
import { acceptWebSocket, parseUpgrade } from "./web_socket_handshake.ts";

// Milliseconds in which a refused peer ends its connection, after which it is closed. Larger: slow peers still read the
// response; smaller: less memory.
const LINGER = 1000;

/** What requests a server accepts. */
export interface WebOptions {
  /** The path of WebSockets, with its query. */
  path: string;
  /** HOST:PORT that all other requests are forwarded to. */
  backend: string | undefined;
  /** Milliseconds to connect to it. */
  connectTimeout: number | undefined;
}

/**
 * Checks how clients reach a server.
 *
 * @returns `undefined` if they do not use WebSockets.
 * @throws {RangeError} An option is malformed, or they cannot be combined.
 */
export function checkWeb(
  { listen, cert, backend, connectTimeout }: Pick<ServeTunnelOptions, "listen" | "cert" | "backend" | "connectTimeout">,
): WebOptions | undefined {
  const web = parseWebSocketUrl("listen", listen, 0);
  if (web === undefined) {
    if (backend === undefined) return undefined;
    throw new RangeError(
      `backend requires listen to be ws://HOST:PORT/PATH or wss://HOST:PORT/PATH, received "${listen}"`,
    );
  }
  if (web.isSecure && cert === undefined) {
    throw new RangeError(
      `listen requires cert and key with wss://, received only "${
        nameOf(web)
      }"; behind a proxy that ends TLS use ws://`,
    );
  }
  if (!web.isSecure && cert !== undefined) {
    throw new RangeError(`listen must begin with wss:// when cert and key are set, received "${nameOf(web)}"`);
  }
  return {
    path: web.path,
    backend: backend === undefined ? undefined : parseBackend("backend", backend),
    connectTimeout,
  };
}

/** Accepts connections, and passes those on that become WebSockets. */
export class WebListener implements Listener<Connection> {
  /** Fulfils when it has stopped and no request is being served, those of the backend included. */
  readonly ended: Promise<void>;
  #options: WebOptions;
  readonly #report: (error: unknown) => void;
  /** Aborts when forwarded requests must end. */
  readonly #cutting: AbortSignal;
  readonly #stopping = new AbortController();
  readonly #ready = new Channel<Connection>();
  /** The connections whose request is not complete. */
  readonly #pending: HandshakeLimit;
  /** The connections that a response is sent on. */
  readonly #lingering = new Set<Socket>();
  readonly #serving = new Set<Promise<void>>();

  constructor(listener: Listener<Socket>, options: WebOptions, report: (error: unknown) => void, cutting: AbortSignal) {
    this.#options = options;
    this.#report = report;
    this.#cutting = cutting;
    this.#pending = new HandshakeLimit(report);
    this.ended = this.#run(listener);
  }

  async accept(): Promise<Connection> {
    try {
      return await this.#ready.receive();
    } catch {
      throw new Deno.errors.BadResource("Listener has been closed");
    }
  }

  close(): void {
    this.#stopping.abort();
    this.#ready.close();
    this.#pending.close();
    for (const socket of this.#lingering) socket[Symbol.dispose]();
  }

  /** Replaces the options, for new requests. */
  configure(options: WebOptions): void {
    this.#options = options;
  }

  async #run(listener: Listener<Socket>): Promise<void> {
    const { signal } = this.#stopping;
    const onError = (error: unknown) => this.#report(wrapError("Cannot accept a connection", error));
    for await (const socket of connections(listener, { signal, onError })) {
      this.#pending.add(socket);
      const served = this.#serve(socket);
      this.#serving.add(served);
      served.finally(() => this.#serving.delete(served));
    }
    await Promise.all(this.#serving);
  }

  /** Serves the first request of a connection. Never rejects. */
  async #serve(socket: Socket): Promise<void> {
    try {
      const head = await withDeadline(socket, readHttpHead(socket, /^[A-Z]+( |$)/));
      // A load balancer checks whether this end listens.
      if (head === undefined) return socket[Symbol.dispose]();
      const key = this.#keyOf(head);
      if (key !== undefined) {
        const accepted = await withDeadline(socket, acceptWebSocket(socket, head, key));
        this.#pending.remove(socket);
        return await this.#ready.send(accepted);
      }
      this.#pending.remove(socket);
      if (this.#options.backend === undefined) throw new HeadError(404, "another path, or not a WebSocket");
      await this.#forward(socket, head, this.#options.backend).catch(this.#report);
    } catch (error) {
      this.#lingering.add(socket);
      await this.#refuse(socket, error).finally(() => this.#lingering.delete(socket));
    } finally {
      this.#pending.remove(socket);
    }
  }

  /** Returns the key of a request that becomes a WebSocket; `undefined` for any other request. */
  #keyOf(head: HttpHead): string | undefined {
    const upgrade = parseUpgrade(head);
    if (upgrade === undefined || !isEqual(upgrade.path, this.#options.path)) return undefined;
    // Any page in a browser can open a WebSocket to this machine. Only one that knows the path may.
    return upgrade.isFromPage && this.#options.path === "/" ? undefined : upgrade.key;
  }

  /** Reports a connection that is refused, and responds if it has sent a request. */
  async #refuse(socket: Socket, error: unknown): Promise<void> {
    const wasPending = this.#pending.remove(socket);
    const status = error instanceof HeadError ? error.status : 400;
    // Otherwise it was closed at the limit.
    const isOwn = wasPending || error instanceof HeadError;
    if (!this.#stopping.signal.aborted && isOwn) {
      const peer = formatPeer(socket.remoteAddr) ?? UNNAMED;
      this.#report(new RefusalError(status, `Refused a connection from ${peer}`, error));
    }
    if (error instanceof HeadError) await respond(socket, status);
    socket[Symbol.dispose]();
  }

  /** Joins a connection with the backend, beginning with the request that was read. */
  async #forward(socket: Socket, { raw }: HttpHead, backend: string): Promise<void> {
    let target: Socket | undefined;
    try {
      try {
        const { connectTimeout } = this.#options;
        target = await dial(backend, this.#cutting, { connectTimeout });
        await writeAll(target, raw);
      } catch (error) {
        if (this.#cutting.aborted) return;
        await respond(socket, 502);
        throw wrapError(`Cannot forward a request to the backend ${backend}`, error);
      }
      for (const side of [socket, target]) if ("setNoDelay" in side) side.setNoDelay(true);
      // An end that fails is closed by its peer: neither is a fault of the tunnel.
      await join(socket as DuplexConnection, target, { signal: this.#cutting }).catch(() => {});
    } finally {
      target?.[Symbol.dispose]();
      socket[Symbol.dispose]();
    }
  }
}

const REASONS: Record<number, string> = {
  400: "Bad Request",
  404: "Not Found",
  431: "Request Header Fields Too Large",
  502: "Bad Gateway",
};

/** Sends a response, and waits until the peer has had time to read it. Never rejects. */
async function respond(socket: Socket, status: number): Promise<void> {
  const clear = setDeadline(() => socket[Symbol.dispose](), LINGER);
  try {
    const lines = [`HTTP/1.1 ${status} ${REASONS[status]}`, "content-length: 0", "connection: close"];
    await writeAll(socket, encoder.encode(`${lines.join("\r\n")}\r\n\r\n`));
    await socket.closeWrite();
    // Unread bytes at the close would reset the connection, and the response could be lost.
    const rest = new Uint8Array(1024);
    while (await socket.read(rest) !== null);
  } catch {
    // The peer is gone, or late.
  } finally {
    clear();
  }
}
