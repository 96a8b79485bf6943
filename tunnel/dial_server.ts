/**
 * Connects to the server of a tunnel, stage by stage.
 *
 * @module
 */

import type { Connection } from "../mod.ts";
import { checkExposed, checkTls, type Endpoint, format, parseEndpoint } from "./address.ts";
import { PermanentError } from "./errors.ts";
import type { OpenTunnelOptions } from "./options.ts";
import { dial, secure, type Socket } from "./socket.ts";
import { isSameRequest, parseRequest, upgradeServer } from "./dial_web_socket.ts";
import { nameOf, parseWebSocketUrl, withoutScheme } from "./web_socket_address.ts";
import type { WebSocketRequest } from "./web_socket_handshake.ts";

/** The options that determine how the server is reached. */
export type ServerOptions = Pick<OpenTunnelOptions, "connect" | "headers" | "tls" | "ca" | "secret" | "insecure">;

/** Where a server is, and how it is reached. */
export interface ServerPlace {
  /** The address of the server, for errors and events. */
  name: string;
  endpoint: Endpoint;
  /** The certificates to trust besides the system's; `undefined`: without TLS. */
  tls: { caCerts: string[] } | undefined;
  /** `undefined`: without a WebSocket. */
  webSocket: WebSocketRequest | undefined;
}

/** What every attempt has in common. */
export interface DialServerOptions {
  /** Milliseconds. */
  connectTimeout: number;
  /** The addresses of the server, where they are known already. */
  addresses?: readonly string[] | undefined;
}

/**
 * Checks and parses the options of a connection to a server.
 *
 * @throws {RangeError} They are malformed, or would send a secret in plain text to another machine.
 */
export function parseServerPlace(options: ServerOptions): ServerPlace {
  const web = parseWebSocketUrl("connect", options.connect, 1);
  const connect = withoutScheme("connect", options.connect);
  const { secret, ca, tls = ca !== undefined || web?.isSecure, insecure } = options;
  const endpoint = parseEndpoint("connect", connect, 1);
  const webSocket = parseRequest(options, web, tls);
  if (tls) checkTls("connect", connect);
  if (ca !== undefined && !ca.includes("-----BEGIN CERTIFICATE-----")) {
    throw new RangeError('ca must be certificates in PEM, received text without "-----BEGIN CERTIFICATE-----"');
  }
  if (secret !== undefined && !tls) checkExposed("connect", connect, insecure);
  return {
    name: web === undefined ? format(endpoint) : nameOf(web),
    endpoint,
    tls: tls ? { caCerts: ca === undefined ? [] : [ca] } : undefined,
    webSocket,
  };
}

/** Whether both places are reached by the same kind of connection to the same server. */
export function isSamePlace(one: ServerPlace, other: ServerPlace): boolean {
  return one.name === other.name && (one.tls === undefined) === (other.tls === undefined) &&
    isSameRequest(one.webSocket, other.webSocket);
}

/** The first stage: opens a socket. */
export async function connectServer(
  { endpoint }: ServerPlace,
  signal: AbortSignal,
  options: DialServerOptions,
): Promise<Socket> {
  return await dial(format(endpoint), signal, options);
}

/** The second stage: starts TLS. A failure closes the socket. */
export async function secureServer(
  { endpoint, tls, webSocket }: ServerPlace,
  socket: Socket,
  signal: AbortSignal,
): Promise<Deno.TlsConn> {
  // TLS requires a host.
  return await secure(socket as Deno.TcpConn, endpoint.hostname!, tls!.caCerts, signal, webSocket && ["http/1.1"]);
}

/**
 * Connects to a server, through all stages.
 *
 * @throws {PermanentError} The certificate is not trusted, or the server does not use TLS, or refuses the WebSocket.
 * @throws {Error} The server cannot be reached.
 */
export async function dialServer(
  place: ServerPlace,
  signal: AbortSignal,
  options: DialServerOptions,
): Promise<Connection> {
  return await upgradeServer(place, await dialSecurely(place, signal, options), signal);
}

/** The first stages, without a WebSocket. */
async function dialSecurely(
  place: ServerPlace,
  signal: AbortSignal,
  options: DialServerOptions,
): Promise<Connection> {
  const socket = await connectServer(place, signal, options);
  if (place.tls === undefined) return socket;
  try {
    return await secureServer(place, socket, signal);
  } catch (error) {
    signal.throwIfAborted();
    const message = `Cannot connect to ${place.name}: ${error instanceof Error ? error.message : error}`;
    // A certificate that is not trusted, or a server without TLS.
    const isPermanent = error instanceof Deno.errors.InvalidData;
    throw isPermanent ? new PermanentError(message, { cause: error }) : new Error(message, { cause: error });
  }
}
