/**
 * Serves the server's end of a tunnel as a handler of requests.
 *
 * @module
 */

import type { Address, Connection } from "../mod.ts";
import { WebSocketListener } from "../websocket.ts";
import type { ServeTunnelOptions, Tunnel } from "./options.ts";
import { ServerEnd, type ServerEntrance } from "./server.ts";

/**
 * Options of {@linkcode tunnelHandler}: those of a server, without where it listens.
 *
 * @example Forward and SOCKS 5 to any host with HTTPS
 * ```ts
 * import { tunnelHandler, type TunnelHandlerOptions } from "@sluice/smux/tunnel";
 * import { assertThrows } from "@std/assert";
 *
 * const options: TunnelHandlerOptions = { secret: "open-sesame", allow: ["*:443"] };
 * const tunnel = tunnelHandler(options);
 * await tunnel.shutdown();
 *
 * assertThrows(() => tunnelHandler({ allow: ["*:443"] }), RangeError, "secret or users");
 * ```
 */
export interface TunnelHandlerOptions
  extends Omit<ServeTunnelOptions, "listen" | "cert" | "key" | "acceptProxy" | "backend" | "status"> {}

/**
 * The server's end of a tunnel as a handler, as {@linkcode tunnelHandler} returns it.
 *
 * @example A module for `deno serve`
 * ```ts
 * import { type TunnelHandler, tunnelHandler } from "@sluice/smux/tunnel";
 * import { assertEquals } from "@std/assert";
 *
 * const tunnel: TunnelHandler = tunnelHandler({ secret: "open-sesame", allow: ["*:443"] });
 * // export default tunnel;
 *
 * const response = tunnel.fetch(new Request("http://localhost/"));
 * assertEquals(response.status, 426); // not a request for a WebSocket
 * await tunnel.shutdown();
 * ```
 */
export interface TunnelHandler extends Pick<Tunnel, "finished" | "shutdown" | "stats">, AsyncDisposable {
  /**
   * Upgrades a request to a WebSocket, and serves the client.
   *
   * @param request The request. Its path, query and origin are not checked.
   * @param info The address of the client: the second argument that `Deno.serve` passes to its handler.
   * @returns The response. Status 101: upgraded. 426: the request is not one for a WebSocket. 400: the handshake is
   * malformed. 503: the tunnel has been shut down, or too many clients wait.
   */
  fetch(request: Request, info?: { remoteAddr?: Address }): Response;
  /**
   * Replaces the options, all of them, as `update` of {@linkcode TunnelServer} does.
   *
   * @param options As of {@linkcode tunnelHandler}.
   * @throws {RangeError} An option is malformed, or cannot be changed.
   * @throws {Error} The tunnel has ended.
   */
  update(options: TunnelHandlerOptions): Promise<void>;
}

/** Accepts the WebSockets of requests. */
class HandlerEntrance implements ServerEntrance {
  readonly sockets: WebSocketListener;
  readonly addr = "a handler";
  readonly isHandler = true;
  readonly ended = Promise.resolve();

  constructor({ maxReceiveBuffer }: TunnelHandlerOptions) {
    this.sockets = new WebSocketListener({ maxReceiveBuffer });
  }

  accept(): Promise<Connection> {
    return this.sockets.accept();
  }

  close(): void {
    this.sockets.close();
  }

  replace(): Promise<void> {
    return Promise.resolve();
  }
}

/** Checks the options that concern the clients, and adds an address that is not listened on. */
function complete(options: TunnelHandlerOptions): ServeTunnelOptions {
  const { secret, users, insecure = false } = options;
  if (secret === undefined && users === undefined && !insecure) {
    throw new RangeError("secret or users must be set, because other machines reach a handler, or insecure");
  }
  return { ...options, listen: "127.0.0.1:0", cert: undefined, key: undefined, acceptProxy: [], backend: undefined };
}

/**
 * Returns the server's end of a tunnel as a handler of requests, to mount in any `Deno.serve`. Clients connect to it with
 * `ws://` or `wss://`. It does not listen by itself, so it also runs where a process may not listen. Without
 * `allowListen` a `reverse` is refused with status 501.
 *
 * @param options What clients may request, and callbacks for errors and events.
 * @returns The handler.
 * @throws {RangeError} An option is malformed, or neither a secret nor users are set.
 *
 * @example Pages and a tunnel from one server
 * ```ts
 * import { openTunnel, tunnelHandler } from "@sluice/smux/tunnel";
 * import { assertEquals } from "@std/assert";
 *
 * const tunnel = tunnelHandler({ secret: "open-sesame", allow: ["localhost:*"] });
 * const web = Deno.serve({ port: 0, onListen() {} }, (request, info) => {
 *   const { pathname } = new URL(request.url);
 *   return pathname === "/wire" ? tunnel.fetch(request, info) : new Response("a page");
 * });
 *
 * const { port } = web.addr;
 * const client = await openTunnel({
 *   connect: `ws://localhost:${port}/wire`,
 *   secret: "open-sesame",
 *   forward: [`0=localhost:${port}`],
 * });
 * const page = await fetch(`http://${client.listenAddrs[0]}/`, { headers: { connection: "close" } });
 * assertEquals(await page.text(), "a page");
 * for (const end of [client, tunnel, web]) await end.shutdown();
 * ```
 */
export function tunnelHandler(options: TunnelHandlerOptions): TunnelHandler {
  const completed = complete(options);
  const entrance = new HandlerEntrance(options);
  const server = new ServerEnd(completed, entrance);
  const shutdown: TunnelHandler["shutdown"] = ({ timeout } = {}) => server.shutdown(timeout);
  return {
    fetch: (request, info = {}) => entrance.sockets.upgrade(request, info),
    finished: server.finished,
    // Rejects, as `update` of a server does.
    update: async (options) => await server.update(complete(options)),
    shutdown,
    stats: () => server.stats(),
    [Symbol.asyncDispose]: shutdown,
  };
}
