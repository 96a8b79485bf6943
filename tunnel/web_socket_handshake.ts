/**
 * The opening handshake of WebSockets (RFC 6455), of both ends.
 *
 * @module
 */

import { createHash } from "node:crypto";
import type { Connection, DuplexConnection } from "../mod.ts";
import { encoder, printable, writeAll } from "./bytes.ts";
import { CutError, PermanentError } from "./errors.ts";
import { type HttpHead, readHttpHead, tokensOf, valuesOf } from "./http_head.ts";
import { VERSION } from "./version.ts";
import { WebSocketConnection } from "./web_socket.ts";

const GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/** What a client requests. */
export interface WebSocketRequest {
  /** The name of the server, with the port unless it is that of the scheme. */
  host: string;
  path: string;
  /** Each `Name: value`. */
  headers: readonly string[];
}

// Headers that determine the handshake itself, or announce a body.
const OWNED = ["host", "connection", "upgrade", "content-length", "transfer-encoding", "expect", "te", "trailer"];

/**
 * Checks headers, each `Name: value`.
 *
 * @throws {RangeError} One is malformed or belongs to the handshake. The message does not contain its value, which may
 * be a secret.
 */
export function checkHeaders(name: string, headers: readonly string[]): void {
  for (const text of headers) {
    const [, header, value] = /^([^:]*)(?::[ \t]*(.*?)[ \t]*)?$/s.exec(text)!;
    const shown = printable(header!).slice(0, 40);
    if (value === undefined || !/^[!#$%&'*+.^_`|~\w-]+$/.test(header!)) {
      const received = value === undefined ? "text without a colon" : `the name "${shown}"`;
      throw new RangeError(`${name} must be "NAME: VALUE" with the name of an HTTP header, received ${received}`);
    }
    if (!/^[ -~]+$/.test(value)) {
      throw new RangeError(`${name} must have values of printable ASCII, received another value of ${shown}`);
    }
    const lower = header!.toLowerCase();
    if (!OWNED.includes(lower) && !lower.startsWith("sec-websocket-")) continue;
    throw new RangeError(`${name} must not contain a header of the handshake itself, received ${shown}`);
  }
}

/** Returns the answer to a key. */
function acceptOf(key: string): string {
  return createHash("sha1").update(key + GUID).digest("base64");
}

/** Formats where a redirect points, without the path: it may be the secret one. */
function placeOf(location: string, host: string): string {
  const url = URL.canParse(location, `http://${host}`) ? new URL(location, `http://${host}`) : undefined;
  if (url === undefined) return "an invalid address";
  return url.host === host && !/^[a-z]+:/i.test(location) ? "another path" : `${url.protocol}//${url.host}`;
}

// Statuses of 4xx after which another attempt may succeed: timeout, too early, too many requests.
const TEMPORARY = [408, 425, 429];

/** Returns the error for a response other than 101. */
function refusal(head: HttpHead, status: number, host: string): Error {
  const [, reason = ""] = /^HTTP\/1\.\d \d{3} ?(.*)$/.exec(head.first) ?? [];
  const answer = `${status} ${printable(reason).slice(0, 40)}`.trim();
  const what = `the server refused the WebSocket with status ${answer}`;
  if (status >= 300 && status < 400) {
    const [location = ""] = valuesOf(head, "location");
    return new Error(`${what}, which points to ${placeOf(location, host)}`);
  }
  const isPermanent = status >= 400 && status < 500 && !TEMPORARY.includes(status);
  const isPath = [401, 403, 404].includes(status) || (status >= 200 && status < 300);
  const message = isPath ? `${what}: the path may be wrong` : what;
  return isPermanent ? new PermanentError(message) : new Error(message);
}

/**
 * Opens a WebSocket over a connection. The caller sets the deadline.
 *
 * @throws {PermanentError} The server refuses, or does not speak WebSocket.
 * @throws {Error} The connection was lost, or the server cannot serve the request now.
 */
export async function openWebSocket(connection: Connection, request: WebSocketRequest): Promise<WebSocketConnection> {
  const { host, path, headers } = request;
  const key = btoa(String.fromCharCode(...crypto.getRandomValues(new Uint8Array(16))));
  const hasAgent = headers.some((line) => /^user-agent:/i.test(line));
  const lines = [
    `GET ${path} HTTP/1.1`,
    `Host: ${host}`,
    "Upgrade: websocket",
    "Connection: Upgrade",
    `Sec-WebSocket-Key: ${key}`,
    "Sec-WebSocket-Version: 13",
    ...hasAgent ? [] : [`User-Agent: sluice/${VERSION}`],
    ...headers,
  ];
  await writeAll(connection as DuplexConnection, encoder.encode(`${lines.join("\r\n")}\r\n\r\n`));
  const head = await readHttpHead(connection, /^(H|HT|HTT|HTTP|HTTP\/|HTTP\/1.*)$/s);
  if (head === undefined) throw new CutError("the server closed the connection instead of answering the request");
  const [, digits] = /^HTTP\/1\.1 (\d{3})(?: |$)/.exec(head.first) ?? [];
  const status = Number(digits ?? /^HTTP\/1\.\d (\d{3})/.exec(head.first)?.[1] ?? 0);
  if (status !== 101) throw refusal(head, status, host);
  const isUpgraded = digits !== undefined && tokensOf(head, "upgrade").includes("websocket") &&
    tokensOf(head, "connection").includes("upgrade") && valuesOf(head, "sec-websocket-accept").join() === acceptOf(key);
  if (!isUpgraded) throw new PermanentError("the server sent an invalid answer to the WebSocket handshake");
  const extra = ["sec-websocket-extensions", "sec-websocket-protocol"].find((name) => valuesOf(head, name).length > 0);
  if (extra !== undefined) throw new PermanentError(`the server sent ${extra}, which was not requested`);
  return new WebSocketConnection(connection, "client", head.rest.slice());
}

/** A request for a WebSocket. */
export interface Upgrade {
  path: string;
  key: string;
  /** Whether a page of a browser sent it. */
  isFromPage: boolean;
}

/** Returns what a valid request for a WebSocket asks for; `undefined` for any other request. */
export function parseUpgrade(head: HttpHead): Upgrade | undefined {
  const [, path] = /^GET (\S+) HTTP\/1\.1$/.exec(head.first) ?? [];
  const keys = valuesOf(head, "sec-websocket-key");
  const isUpgrade = path !== undefined && head.lines.every((line) => /^[!#$%&'*+.^_`|~\w-]+:/.test(line)) &&
    valuesOf(head, "host").length === 1 && tokensOf(head, "upgrade").includes("websocket") &&
    tokensOf(head, "connection").includes("upgrade") && valuesOf(head, "sec-websocket-version").join() === "13" &&
    // 16 bytes.
    keys.length === 1 && /^[A-Za-z\d+/]{22}==$/.test(keys[0]!) &&
    // A body would not be a frame.
    valuesOf(head, "transfer-encoding").length === 0 && valuesOf(head, "content-length").every((text) => text === "0");
  return isUpgrade ? { path, key: keys[0]!, isFromPage: valuesOf(head, "origin").length > 0 } : undefined;
}

/** Answers a valid request, and returns the WebSocket. */
export async function acceptWebSocket(connection: Connection, head: HttpHead, key: string) {
  const lines = [
    "HTTP/1.1 101 Switching Protocols",
    "Upgrade: websocket",
    "Connection: Upgrade",
    `Sec-WebSocket-Accept: ${acceptOf(key)}`,
  ];
  await writeAll(connection as DuplexConnection, encoder.encode(`${lines.join("\r\n")}\r\n\r\n`));
  return new WebSocketConnection(connection, "server", head.rest.slice());
}
