/**
 * Connects and listens, over TCP, TLS and Unix sockets.
 *
 * @module
 */

import type { Stream } from "../mod.ts";
import { format, parseEndpoint } from "./address.ts";
import { errorText, wrapError } from "./errors.ts";
import { connectTcp, listenTcp, type TcpListener, TcpSocket } from "./tcp.ts";
import { onAbort, withDeadline } from "./wait.ts";

export type Socket = TcpSocket | Deno.TcpConn | Deno.TlsConn | Deno.UnixConn;

/** Resets a connection that can be reset, and closes any other. Closing again has no effect. */
export function reset(socket: Socket): void {
  if (socket instanceof TcpSocket) socket.reset();
  else socket[Symbol.dispose]();
}

/** Returns a function that resets a connection and throws the error that it is called with. */
export function resetting(socket: Socket): (error: unknown) => never {
  return (error) => {
    reset(socket);
    throw error;
  };
}

/** Throws a `TypeError` in a runtime without the network functions of Deno. */
export function checkRuntime(): void {
  const { Deno } = globalThis as { Deno?: { listen?: unknown } };
  if (Deno?.listen === undefined) throw new TypeError("Cannot run a tunnel in this runtime: it has no Deno.listen");
}

/** A listener with its address as text; `close` removes a Unix socket's file. */
export class Listening {
  readonly addr: string;
  readonly #listener: TcpListener | Deno.Listener<Socket & Deno.Conn>;

  constructor(listener: TcpListener | Deno.Listener<Socket & Deno.Conn>) {
    this.#listener = listener;
    this.addr = format(listener.addr as { path?: string });
  }

  accept(): Promise<Socket> {
    return this.#listener.accept();
  }

  close(): void {
    this.#listener.close();
    if (this.addr.startsWith("unix:")) Deno.removeSync(this.addr.slice("unix:".length));
  }
}

// Connections that the kernel queues until they are accepted: the maximum of Linux. Smaller: a burst fills the queue,
// and dropped connection attempts are retried after a second.
const BACKLOG = 4096;

export function listenOn(at: string, tls?: { cert: string; key: string }): Listening {
  const { path, hostname, port } = parseEndpoint("listen", at, 0);
  try {
    if (path !== undefined) return new Listening(Deno.listen({ transport: "unix", path }));
    const options = { hostname, port, tcpBacklog: BACKLOG };
    return new Listening(tls ? Deno.listenTls({ ...options, ...tls }) : Deno.listen(options));
  } catch (error) {
    if (!(error instanceof Deno.errors.InvalidData)) {
      throw wrapError(`Cannot listen on ${format({ path, hostname, port })}`, error);
    }
    throw new RangeError(`cert and key must be a certificate and its private key in PEM: ${errorText(error)}`, {
      cause: error,
    });
  }
}

/** Listens for connections to forward; those over TCP can be reset. */
export async function listenToForward(at: string): Promise<Listening> {
  const { path, hostname, port } = parseEndpoint("listen", at, 0);
  if (path !== undefined) return listenOn(at);
  try {
    return new Listening(await listenTcp({ hostname, port, backlog: BACKLOG }));
  } catch (error) {
    throw wrapError(`Cannot listen on ${format({ hostname, port })}`, error);
  }
}

/** Connects to a target; rejects when the stream that requests it fails first, or the signal aborts. */
export async function dial(to: string, by: Stream | AbortSignal, tls?: { caCerts: string[] }): Promise<Socket> {
  const { path, hostname, port } = parseEndpoint("target", to, 1);
  const gone = new AbortController();
  if (!(by instanceof AbortSignal)) by.closed.catch((error) => gone.abort(error));
  const signal = by instanceof AbortSignal ? by : gone.signal;
  try {
    signal.throwIfAborted();
    if (path !== undefined) return await Deno.connect({ transport: "unix", path });
    // A connection to forward can be reset.
    if (!(by instanceof AbortSignal)) return await connectTcp({ hostname, port, signal });
    const connection = await Deno.connect({ hostname, port, signal });
    if (tls === undefined) return connection;
    const secured = await Deno.startTls(connection, { hostname, ...tls });
    const off = onAbort(signal, () => secured[Symbol.dispose]());
    // Without a deadline the handshake with a silent server never settles.
    await withDeadline(secured, secured.handshake()).catch((error) => {
      secured[Symbol.dispose]();
      throw error;
    }).finally(off);
    return secured;
  } catch (error) {
    signal.throwIfAborted();
    throw wrapError(`Cannot connect to ${format({ path, hostname, port })}`, error);
  }
}
