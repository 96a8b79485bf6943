/**
 * Connects to the server of a tunnel, stage by stage.
 *
 * @module
 */

import type { Connection } from "../mod.ts";
import { checkExposed, checkTls, type Endpoint, format, parseEndpoint } from "./address.ts";
import { dialUpstream } from "./dial_proxy.ts";
import { PermanentError } from "./errors.ts";
import type { OpenTunnelOptions } from "./options.ts";
import { parsePin } from "./pin.ts";
import { RefusableConnection } from "./refusal.ts";
import { dial, secure, type Socket } from "./socket.ts";
import { isSameRequest, parseRequest, upgradeServer } from "./dial_web_socket.ts";
import { checkKeyPair, type ClientTls, secureByNode } from "./tls.ts";
import { checkUpstream, isSameUpstream, parseProxy, type Upstream } from "./upstream.ts";
import { nameOf, parseWebSocketUrl, withoutScheme } from "./web_socket_address.ts";
import type { WebSocketRequest } from "./web_socket_handshake.ts";

/** The options that determine how the server is reached. */
export type ServerOptions = Pick<
  OpenTunnelOptions,
  "connect" | "headers" | "tls" | "ca" | "cert" | "key" | "pin" | "secret" | "insecure" | "proxy"
>;

/** Where a server is, and how it is reached. */
export interface ServerPlace {
  /** The address of the server, for errors and events. */
  name: string;
  endpoint: Endpoint;
  /** How the server is verified, and what it is shown; `undefined`: without TLS. */
  tls: ClientTls | undefined;
  /** The proxy that connects to the server; `undefined`: a direct connection. */
  upstream: Upstream | undefined;
  /** `undefined`: without a WebSocket. */
  webSocket: WebSocketRequest | undefined;
}

/** What every attempt has in common. */
export interface DialServerOptions {
  /** Milliseconds. */
  connectTimeout: number;
  /** The addresses of the server, or of the proxy before it, where they are known already. */
  addresses?: readonly string[] | undefined;
}

/**
 * Checks and parses the options of a connection to a server.
 *
 * @throws {RangeError} They are malformed, or would send a secret in plain text to another machine.
 */
export function parseServerPlace(options: ServerOptions & { connect: string }): ServerPlace {
  const web = parseWebSocketUrl("connect", options.connect, 1);
  const connect = withoutScheme("connect", options.connect);
  const { secret, ca, cert, key, pin, insecure, proxy } = options;
  const { tls = web?.isSecure || [ca, cert, pin].some((option) => option !== undefined) } = options;
  const endpoint = parseEndpoint("connect", connect, 1);
  const webSocket = parseRequest(options, web, tls);
  if (tls) checkTls("connect", connect);
  if (ca !== undefined && !ca.includes("-----BEGIN CERTIFICATE-----")) {
    throw new RangeError('ca must be certificates in PEM, received text without "-----BEGIN CERTIFICATE-----"');
  }
  if ((cert === undefined) !== (key === undefined)) {
    throw new RangeError(`cert and key must be set together, received only ${cert === undefined ? "key" : "cert"}`);
  }
  if (cert !== undefined) checkKeyPair(cert, key!);
  const verified = { ca, cert, key, pin: pin === undefined ? undefined : parsePin("pin", pin) };
  if (!tls && (cert ?? pin) !== undefined) {
    throw new RangeError(`${pin === undefined ? "cert" : "pin"} requires TLS, received tls: false`);
  }
  if (secret !== undefined && !tls) checkExposed("connect", connect, insecure);
  const upstream = parseProxy(typeof proxy === "function" ? proxy(format(endpoint)) : proxy);
  if (upstream !== undefined) checkUpstream(upstream, endpoint, secret !== undefined && !tls && !insecure);
  return {
    name: web === undefined ? format(endpoint) : nameOf(web),
    endpoint,
    tls: tls ? verified : undefined,
    upstream,
    webSocket,
  };
}

/** Whether both places are reached by the same kind of connection to the same server. */
export function isSamePlace(one: ServerPlace, other: ServerPlace): boolean {
  const shown = ({ tls }: ServerPlace) => tls === undefined ? undefined : JSON.stringify([tls.cert, tls.key, tls.pin]);
  return one.name === other.name && shown(one) === shown(other) && isSameUpstream(one.upstream, other.upstream) &&
    isSameRequest(one.webSocket, other.webSocket);
}

/** The first stage: opens a socket, through a proxy if there is one. */
export async function connectServer(
  { endpoint, upstream }: ServerPlace,
  signal: AbortSignal,
  options: DialServerOptions,
): Promise<Socket> {
  // A proxy requires a host.
  const { hostname, port } = endpoint;
  if (upstream !== undefined) {
    return await dialUpstream(upstream, { hostname: hostname!, port: port! }, signal, options);
  }
  return await dial(format(endpoint), signal, options);
}

/** The second stage: starts TLS. A failure closes the socket. */
export async function secureServer(
  { name, endpoint, tls, webSocket }: ServerPlace,
  socket: Socket,
  signal: AbortSignal,
): Promise<Connection> {
  // TLS requires a host.
  const hostname = endpoint.hostname!;
  const { ca, cert, pin } = tls!;
  const secured = (cert ?? pin) === undefined
    ? await secure(socket as Deno.TcpConn, hostname, ca === undefined ? [] : [ca], signal, webSocket && ["http/1.1"])
    : await secureByNode(socket, hostname, tls!, signal);
  // The handshake of a WebSocket reports a refusal itself.
  return webSocket === undefined ? new RefusableConnection(secured, name) : secured;
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
    const isPermanent = error instanceof Deno.errors.InvalidData || error instanceof PermanentError;
    throw isPermanent ? new PermanentError(message, { cause: error }) : new Error(message, { cause: error });
  }
}
