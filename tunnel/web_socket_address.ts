/**
 * Parses the addresses of WebSocket servers, whose paths act as secrets.
 *
 * @module
 */

import { type Endpoint, format, parseEndpoint, withoutPath } from "./address.ts";

/** A parsed `ws://HOST:PORT/PATH` or `wss://HOST:PORT/PATH`. */
export interface WebSocketAddress {
  /** Whether it is `wss://`. */
  isSecure: boolean;
  endpoint: Endpoint;
  /** The path with its query; without one in the URL, `/`. */
  path: string;
}

/** Whether an address is a URL of a WebSocket, valid or not. */
export function isWebSocketUrl(text: string): boolean {
  return /^wss?:/i.test(text);
}

/**
 * Parses an address if it is a URL of a WebSocket.
 *
 * @returns `undefined` if it is another address.
 * @throws {RangeError} The URL is malformed. The message does not contain its path.
 */
export function parseWebSocketUrl(name: string, text: string, leastPort: number): WebSocketAddress | undefined {
  if (!isWebSocketUrl(text)) return undefined;
  // A host of digits would be an IPv4 address, but a port is meant.
  const [, scheme, host, port, path] =
    /^(wss?):\/\/(\[[\da-f:.]+\]|(?!\d+(?:[:/]|$))[\w.-]+)(?::(\d+))?(\/[!"$-~]*)?$/i.exec(text) ?? [];
  if (host === undefined || !URL.canParse(`http://${host}/`)) {
    throw new RangeError(
      `${name} must be ws://HOST:PORT/PATH or wss://HOST:PORT/PATH, received "${withoutPath(text)}"`,
    );
  }
  const isSecure = scheme!.toLowerCase() === "wss";
  const endpoint = parseEndpoint(name, `${host}:${port ?? (isSecure ? 443 : 80)}`, leastPort);
  return { isSecure, endpoint, path: path ?? "/" };
}

/** Formats an address for errors and events: without its path. */
export function nameOf({ isSecure, endpoint }: Pick<WebSocketAddress, "isSecure" | "endpoint">): string {
  return `${isSecure ? "wss" : "ws"}://${format(endpoint)}`;
}

/** Returns the HOST:PORT of a URL of a WebSocket, and any other address unchanged. */
export function withoutScheme(name: string, text: string): string {
  const parsed = parseWebSocketUrl(name, text, 0);
  return parsed === undefined ? text : format(parsed.endpoint);
}

/**
 * Parses the URL of a web server behind a server.
 *
 * @returns HOST:PORT.
 * @throws {RangeError} It is malformed.
 */
export function parseBackend(name: string, text: string): string {
  const [, authority] = /^http:\/\/([^/?#@]+)\/?$/i.exec(text) ?? [];
  const hasPort = authority !== undefined && /:\d+$/.test(authority);
  try {
    // A host of digits would be an IPv4 address, but a port is meant.
    if (authority === undefined || /^\d+$/.test(authority)) throw new RangeError("not a host");
    return format(parseEndpoint(name, hasPort ? authority : `${authority}:80`, 1));
  } catch (cause) {
    throw new RangeError(`${name} must be http://HOST:PORT, received "${withoutPath(text)}"`, { cause });
  }
}
