/**
 * Connects to a target through a proxy.
 *
 * @module
 */

import type { DuplexConnection } from "../mod.ts";
import { format, parseEndpoint } from "./address.ts";
import { PermanentError, wrapError } from "./errors.ts";
import { connectByHttp } from "./http_connect.ts";
import { checkRuntime, dial } from "./socket.ts";
import { connectBySocks } from "./socks_client.ts";
import { parseUpstream, type Upstream } from "./upstream.ts";
import { checkTimeout, CONNECT_TIMEOUT, onAbort, withTimeout } from "./wait.ts";

// Milliseconds that a proxy may take to answer, with a `connectTimeout` of Infinity. Larger: reaches targets that answer
// later; smaller: a proxy that is silent is reported earlier.
const MAX_ANSWER_TIME = 120_000;

/** A target behind a proxy. */
interface Target {
  hostname: string;
  port: number;
}

/** The first step: connects to a proxy. */
export async function connectProxy(
  { name, endpoint }: Upstream,
  signal: AbortSignal,
  options: { connectTimeout: number; addresses?: readonly string[] | undefined },
): Promise<Deno.TcpConn> {
  try {
    return await dial(format(endpoint), signal, options) as Deno.TcpConn;
  } catch (error) {
    signal.throwIfAborted();
    const cause = error instanceof Error ? error.cause ?? error : error;
    throw wrapError(`Cannot connect to the proxy ${name}`, cause);
  }
}

/** The second step: requests a proxy to connect. A failure closes the socket. */
export async function askProxy(
  { kind, name, credentials }: Upstream,
  socket: Deno.TcpConn,
  target: Target,
  signal: AbortSignal,
  connectTimeout: number,
): Promise<void> {
  const ask = async (signal: AbortSignal) => {
    const off = onAbort(signal, () => socket[Symbol.dispose]());
    try {
      if (kind === "http") await connectByHttp(socket, format(target), credentials);
      else await connectBySocks(socket, target, credentials);
    } finally {
      off();
    }
  };
  try {
    await withTimeout("waiting for its answer", Math.min(connectTimeout, MAX_ANSWER_TIME), signal, ask);
  } catch (error) {
    socket[Symbol.dispose]();
    signal.throwIfAborted();
    const { message } = wrapError(`Cannot connect to ${format(target)} through ${name}`, error);
    throw error instanceof PermanentError
      ? new PermanentError(message, { cause: error })
      : new Error(message, { cause: error });
  }
}

/** Connects to a target through a proxy. */
export async function dialUpstream(
  upstream: Upstream,
  target: Target,
  signal: AbortSignal,
  options: { connectTimeout: number; addresses?: readonly string[] | undefined },
): Promise<Deno.TcpConn> {
  const socket = await connectProxy(upstream, signal, options);
  await askProxy(upstream, socket, target, signal, options.connectTimeout);
  return socket;
}

/**
 * Connects to a target through an HTTP proxy, by `CONNECT`, or through a SOCKS 5 proxy. The proxy resolves the name of
 * the target. The connection is a `Deno.TcpConn` without a byte of the target read from it, so it can be passed to
 * `Session.client`, and with `as Deno.TcpConn` to `Deno.startTls`.
 *
 * The environment is not read: see `proxy` of {@linkcode OpenTunnelOptions} for what the URL may be.
 *
 * @param proxy The URL of the proxy: `http://user:password@host:port`, or `socks5://` with the same parts.
 * @param target The host and the port to connect to.
 * @param options `signal` ends the attempt. `connectTimeout`: milliseconds to connect to the proxy, and again for its
 * answer; default: 10 000.
 * @returns The connection.
 * @throws {RangeError} The URL, the target or `connectTimeout` is malformed. Messages do not contain the user and the
 * password.
 * @throws {TypeError} The runtime is not Deno.
 * @throws {Error} The proxy cannot be reached, or does not connect.
 * @throws The reason of the signal, when it aborts.
 *
 * @example A session through a proxy
 * ```ts
 * import { join, serve, Session } from "@sluice/smux";
 * import { dialThroughProxy } from "@sluice/smux/tunnel";
 * import { assertEquals } from "@std/assert";
 * import { toText } from "@std/streams";
 *
 * const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
 * const server = serve(listener, async (stream) => {
 *   await stream.write(new TextEncoder().encode("hello"));
 * });
 *
 * // The least proxy: it reads a head, which comes in one piece here, answers, and copies in both directions.
 * const proxy = Deno.listen({ hostname: "127.0.0.1", port: 0 });
 * const proxying = (async () => {
 *   const client = await proxy.accept();
 *   const head = new Uint8Array(1024);
 *   const count = await client.read(head);
 *   const [, port] = /^CONNECT 127\.0\.0\.1:(\d+) /.exec(new TextDecoder().decode(head.subarray(0, count!)))!;
 *   const target = await Deno.connect({ hostname: "127.0.0.1", port: Number(port) });
 *   await client.write(new TextEncoder().encode("HTTP/1.1 200 OK\r\n\r\n"));
 *   await join(client, target);
 * })();
 *
 * const socket = await dialThroughProxy(`http://127.0.0.1:${proxy.addr.port}`, listener.addr);
 * const session = Session.client(socket);
 * const stream = await session.openStream();
 * assertEquals(await toText(stream.readable), "hello");
 * await session.close();
 * await proxying;
 * proxy.close();
 * await server.shutdown();
 * ```
 */
export async function dialThroughProxy(
  proxy: string | URL,
  target: { hostname: string; port: number },
  options: { signal?: AbortSignal | undefined; connectTimeout?: number | undefined } = {},
): Promise<DuplexConnection> {
  checkRuntime();
  const { signal = new AbortController().signal, connectTimeout = CONNECT_TIMEOUT } = options;
  const upstream = parseUpstream("proxy", proxy);
  const { hostname, port } = parseEndpoint("target", format({ hostname: target.hostname, port: target.port }), 1);
  checkTimeout("connectTimeout", connectTimeout);
  return await dialUpstream(upstream, { hostname: hostname!, port: port! }, signal, { connectTimeout });
}
