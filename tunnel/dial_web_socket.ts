/**
 * The third stage of a connection to a server: the WebSocket.
 *
 * @module
 */

import type { Connection } from "../mod.ts";
import { format } from "./address.ts";
import { errorText, PermanentError } from "./errors.ts";
import type { OpenTunnelOptions } from "./options.ts";
import { onAbort, withDeadline } from "./wait.ts";
import { nameOf, type WebSocketAddress } from "./web_socket_address.ts";
import { checkHeaders, openWebSocket, type WebSocketRequest } from "./web_socket_handshake.ts";

/**
 * Returns what is requested from a server; `undefined` without a WebSocket.
 *
 * @param web The address, if it is a URL.
 * @param isSecure Whether TLS is used.
 * @throws {RangeError} The options are malformed, or cannot be combined.
 */
export function parseRequest(
  { headers, tls, ca }: Pick<OpenTunnelOptions, "headers" | "tls" | "ca">,
  web: WebSocketAddress | undefined,
  isSecure: boolean | undefined,
): WebSocketRequest | undefined {
  checkHeaders("headers", headers ?? []);
  if (web === undefined) {
    if (headers === undefined || headers.length === 0) return undefined;
    throw new RangeError("headers requires connect to be ws://HOST:PORT/PATH or wss://HOST:PORT/PATH");
  }
  if (web.isSecure !== (isSecure ?? false)) {
    const received = ca === undefined ? `tls: ${tls}` : "ca";
    throw new RangeError(
      `connect must begin with ${web.isSecure ? "ws" : "wss"}:// with ${received}, received "${nameOf(web)}"`,
    );
  }
  const { endpoint, path } = web;
  const isDefaultPort = endpoint.port === (web.isSecure ? 443 : 80);
  const host = format(endpoint);
  return { host: isDefaultPort ? host.replace(/:\d+$/, "") : host, path, headers: headers ?? [] };
}

/** Whether both requests are the same. */
export function isSameRequest(one: WebSocketRequest | undefined, other: WebSocketRequest | undefined): boolean {
  return one?.host === other?.host && one?.path === other?.path &&
    one?.headers.join("\n") === other?.headers.join("\n");
}

/**
 * Opens the WebSocket of a server, if it has one. A failure closes the connection.
 *
 * @throws {PermanentError} The server refuses it, and would refuse it again.
 * @throws {Error} The connection was lost, or the server does not answer.
 */
export async function upgradeServer(
  { name, webSocket }: { name: string; webSocket: WebSocketRequest | undefined },
  connection: Connection,
  signal: AbortSignal,
): Promise<Connection> {
  if (webSocket === undefined) return connection;
  const close = () => {
    try {
      connection.close();
    } catch {
      // It is closed already.
    }
  };
  const off = onAbort(signal, close);
  try {
    return await withDeadline({ close }, openWebSocket(connection, webSocket));
  } catch (thrown) {
    close();
    // The deadline of the whole attempt may be earlier than that of the handshake.
    const isLate = signal.reason instanceof DOMException && signal.reason.name === "TimeoutError";
    if (!isLate) signal.throwIfAborted();
    const error = isLate ? signal.reason : thrown;
    const message = `Cannot connect to ${name}: ${errorText(error)}`;
    throw error instanceof PermanentError
      ? new PermanentError(message, { cause: error })
      : new Error(message, { cause: error });
  } finally {
    off();
  }
}
