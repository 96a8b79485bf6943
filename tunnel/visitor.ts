/**
 * The address of the visitor of a forwarded connection, as the end that accepts it passes it to the other.
 *
 * @module
 */

import { isIP } from "node:net";
import { format } from "./address.ts";
import { unmapped } from "./cidr.ts";
import { encodeProxyHeader, type ProxyAddress } from "./proxy_protocol.ts";
import type { Socket } from "./socket.ts";

/** Returns an address of a socket; `undefined` for that of a Unix socket. */
function addressOf(address: Deno.Addr): ProxyAddress | undefined {
  return "hostname" in address ? { hostname: unmapped(address.hostname), port: address.port } : undefined;
}

/** Formats the address of a visitor as a line of a head; empty for a visitor at a Unix socket. */
export function visitorHeader(socket: Socket): string {
  const visitor = addressOf(socket.remoteAddr);
  return visitor === undefined ? "" : visitorLine(visitor);
}

/** Formats an address as that line. */
export function visitorLine(visitor: ProxyAddress): string {
  return `Forwarded-For: ${format(visitor)}\r\n`;
}

/** Parses an IP address and a port; `undefined` for any other text. */
export function parseAddress(text: string): ProxyAddress | undefined {
  const [, ipv6, ipv4, port] = /^(?:\[([\da-f:.]+)\]|([\d.]+)):(\d{1,5})$/i.exec(text) ?? [];
  const hostname = ipv6 ?? ipv4 ?? "";
  if (isIP(hostname) !== (ipv6 === undefined ? 4 : 6) || Number(port) > 65535) return undefined;
  return { hostname, port: Number(port) };
}

/** Encodes the PROXY protocol header of a visitor's socket. */
export function proxyHeaderOf(socket: Socket): Uint8Array {
  return encodeProxyHeader(addressOf(socket.remoteAddr), addressOf(socket.localAddr));
}
