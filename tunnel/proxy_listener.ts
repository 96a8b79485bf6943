/**
 * Accepts connections of proxies that begin with a header of the PROXY protocol.
 *
 * @module
 */

import { formatPeer, parseEndpoint, UNNAMED } from "./address.ts";
import { type Networks, parseNetworks } from "./cidr.ts";
import { RefusalError } from "./errors.ts";
import type { ServeTunnelOptions } from "./options.ts";
import { PreparedListener } from "./prepared_listener.ts";
import { readProxyHeader } from "./proxy_protocol.ts";
import type { Listening, Socket } from "./socket.ts";
import { withDeadline } from "./wait.ts";
import { withoutScheme } from "./web_socket_address.ts";

/**
 * Checks the addresses of proxies.
 *
 * @returns `undefined` if connections have no headers.
 * @throws {RangeError} An entry is malformed, or the options cannot be combined.
 */
export function checkProxies(
  { acceptProxy = [], listen, cert }: Pick<ServeTunnelOptions, "acceptProxy" | "listen" | "cert">,
): Networks | undefined {
  if (acceptProxy.length === 0) return undefined;
  const isProxy = parseNetworks("acceptProxy", acceptProxy);
  if (parseEndpoint("listen", withoutScheme("listen", listen), 0).path !== undefined) {
    throw new RangeError(`acceptProxy requires listen to be HOST:PORT, received "${listen}"`);
  }
  // Deno starts TLS with the first byte of a connection, which is the first of the header.
  if (cert !== undefined) throw new RangeError("acceptProxy cannot be combined with cert: TLS must end at the proxy");
  return isProxy;
}

/**
 * Accepts connections; those of proxies have the address that their header contains.
 *
 * @param report Called with the error of each connection that is refused.
 */
export function listenBehindProxies(
  listening: Listening,
  isProxy: Networks,
  report: (error: Error) => void,
): PreparedListener {
  return new PreparedListener(listening, (socket) => readAddress(socket, isProxy), report);
}

async function readAddress(socket: Socket, isProxy: Networks): Promise<Socket> {
  const peer = socket.remoteAddr as Deno.NetAddr;
  try {
    if (isProxy(peer.hostname)) {
      const address = await withDeadline(socket, readProxyHeader(socket));
      // A property of this socket, before the getter of all: the session must still see a socket of Deno.
      if (address) Object.defineProperty(socket, "remoteAddr", { value: { transport: "tcp", ...address } });
    }
    return socket;
  } catch (error) {
    throw new RefusalError(400, `Refused a connection from ${formatPeer(peer) ?? UNNAMED}`, error);
  }
}
