/**
 * Connects and listens, over TCP, TLS and Unix sockets.
 *
 * @module
 */

import { setTimeout as delay } from "node:timers/promises";
import type { Stream } from "../mod.ts";
import { format, parseEndpoint } from "./address.ts";
import { descriptorLimit, isLimitError, reserve } from "./descriptors.ts";
import { errorText, isCut, KEY_PAIR, wrapError } from "./errors.ts";
import { resolve } from "./resolve.ts";
import { connectTcp, listenTcp, TcpListener, TcpSocket } from "./tcp.ts";
import { closeUnix, identify, listenUnix } from "./unix.ts";
import { CONNECT_TIMEOUT, onAbort, sleep, withDeadline, withTimeout } from "./wait.ts";

export type Socket = TcpSocket | Deno.TcpConn | Deno.TlsConn | Deno.UnixConn;

/** Resets a connection that can be reset, and closes any other. Closing again has no effect. */
export function reset(socket: Socket): void {
  if (socket instanceof TcpSocket) socket.reset();
  else socket[Symbol.dispose]();
}

// Milliseconds until a refused connection is reset. Larger: its peer has returned from connecting, also on a busy
// machine; smaller: it learns of the refusal earlier.
const REFUSAL_DELAY = 20;

/**
 * Returns a function that resets a connection and throws the error that it is called with. A reset that arrives while
 * the peer still connects would look like a server that is not there, and programs that retry only that would loop.
 */
export function resetting(socket: Socket): (error: unknown) => Promise<never> {
  return async (error) => {
    await delay(REFUSAL_DELAY);
    reset(socket);
    throw error;
  };
}

/** Throws a `TypeError` in a runtime without the network functions of Deno. */
export function checkRuntime(): void {
  const { Deno } = globalThis as { Deno?: { listen?: unknown } };
  if (Deno?.listen === undefined) throw new TypeError("Cannot run a tunnel in this runtime: it has no Deno.listen");
}

/** Asks the kernel to detect a peer that has vanished while the connection is idle. */
function keepAlive<T extends Socket>(socket: T): T {
  try {
    if ("setKeepAlive" in socket) socket.setKeepAlive(true);
  } catch {
    // The connection is lost already, which its first read reports.
  }
  return socket;
}

// Milliseconds between reports that the process has too many open files. Larger: a shorter log; smaller: a later report
// follows a new cause earlier.
const LIMIT_REPORT_INTERVAL = 60_000;

// Milliseconds until accepting is tried again without a descriptor in reserve. Larger: later recovery; smaller: more load.
const LIMIT_PAUSE = 100;

/**
 * A listener with its address as text; `close` removes a Unix socket's file. When the process has too many open files,
 * connections are accepted and closed, by means of a descriptor in reserve.
 */
export class Listening {
  readonly addr: string;
  readonly #listener: TcpListener | Deno.Listener<Socket & Deno.Conn>;
  /** The path of a Unix socket. */
  readonly #path: string | undefined;
  /** Identifies the file of a Unix socket. */
  readonly #file: string | undefined;
  /** The last `accept`: the socket stays open until it settles. */
  #accepting: Promise<unknown> = Promise.resolve();
  readonly #closing = new AbortController();
  #isClosed = false;
  /** When too many open files were reported last. */
  #reportedAt = -Infinity;

  constructor(listener: TcpListener | Deno.Listener<Socket & Deno.Conn>) {
    this.#listener = listener;
    reserve.add();
    this.addr = format(listener.addr as { path?: string });
    if (!this.addr.startsWith("unix:")) return;
    this.#path = this.addr.slice("unix:".length);
    this.#file = identify(this.#path);
  }

  /**
   * Accepts a connection. One that was reset before is skipped. Rejects once a minute while the process has too many
   * open files; call it again then.
   */
  async accept(): Promise<Socket> {
    for (;;) {
      const accepting = this.#listener.accept();
      this.#accepting = accepting;
      try {
        const socket = await accepting;
        // Without a descriptor in reserve, the next connection would wait in the kernel.
        if (this.#listener instanceof TcpListener || reserve.hold()) return keepAlive(socket);
        socket[Symbol.dispose]();
      } catch (error) {
        // A port scan: the connection was reset before it was accepted, and has no address to report.
        if (isCut(error)) continue;
        if (!isLimitError(error)) throw error;
        // It stops listening until descriptors are free.
        const isPaused = this.#listener instanceof TcpListener;
        // On an empty queue too: whether a connection is lost is known only when one was accepted.
        if (!isPaused && reserve.release()) continue;
        if (!isPaused) await sleep(LIMIT_PAUSE, this.#closing.signal);
      }
      this.#reportLimit();
    }
  }

  #reportLimit(): void {
    const now = performance.now();
    const isDue = now - this.#reportedAt >= LIMIT_REPORT_INTERVAL;
    // It reads a file, which needs a descriptor.
    if (isDue) reserve.release();
    const limit = isDue ? descriptorLimit() : undefined;
    reserve.hold();
    if (!isDue) return;
    this.#reportedAt = now;
    const most = limit === undefined ? "" : `, the limit is ${limit}`;
    throw new Error(`No more connections to ${this.addr}: too many open files${most}`);
  }

  /** Settles when the address is free again, after `close`. */
  get closed(): Promise<void> {
    return this.#accepting.then(() => {}, () => {});
  }

  /** Stops listening. Closing again has no effect. */
  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#closing.abort();
    reserve.remove();
    if (this.#path === undefined) this.#listener.close();
    else closeUnix(this.#listener, this.#path, this.#file, this.#accepting);
  }
}

// Connections that the kernel queues until they are accepted: the maximum of Linux. Smaller: a burst fills the queue,
// and dropped connection attempts are retried after a second.
const BACKLOG = 4096;

export function listenOn(at: string, tls?: { cert: string; key: string }): Listening {
  const { path, hostname, port } = parseEndpoint("listen", at, 0);
  try {
    if (path !== undefined) return new Listening(listenUnix(path));
    const options = { hostname, port, tcpBacklog: BACKLOG };
    return new Listening(tls ? Deno.listenTls({ ...options, ...tls }) : Deno.listen(options));
  } catch (error) {
    // Deno has no class for this error.
    if (/KeyMismatch/.test(String(error))) {
      throw new RangeError(`${KEY_PAIR}, received the key of another certificate`, { cause: error });
    }
    if (error instanceof Deno.errors.InvalidData) {
      throw new RangeError(`${KEY_PAIR}: ${errorText(error)}`, { cause: error });
    }
    throw wrapError(`Cannot listen on ${format({ path, hostname, port })}`, error);
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

/** How to connect to a target. */
interface DialOptions {
  /** Milliseconds until connecting fails. Default: 10 000. */
  connectTimeout?: number | undefined;
  /** The only addresses to connect to. Default: those of the host. */
  addresses?: readonly string[] | undefined;
}

/** Connects to a target; rejects when the stream that requests it fails first, or the signal aborts. */
export async function dial(to: string, by: Stream | AbortSignal, options: DialOptions = {}): Promise<Socket> {
  const { path, hostname, port } = parseEndpoint("target", to, 1);
  const { connectTimeout = CONNECT_TIMEOUT, addresses } = options;
  const gone = new AbortController();
  if (!(by instanceof AbortSignal)) by.closed.catch((error) => gone.abort(error));
  const signal = by instanceof AbortSignal ? by : gone.signal;
  try {
    signal.throwIfAborted();
    if (path !== undefined) return await Deno.connect({ transport: "unix", path });
    const connectBy = <T extends Deno.TcpConn | TcpSocket>(connect: Connect<T>) =>
      withTimeout("connecting", connectTimeout, signal, async (signal) => {
        return await connectFirst(addresses ?? await addressesOf(hostname, signal), port, signal, connect);
      });
    // A connection to forward can be reset.
    if (!(by instanceof AbortSignal)) return await connectBy(connectTcp);
    return await connectBy<Deno.TcpConn>(Deno.connect);
  } catch (error) {
    signal.throwIfAborted();
    throw wrapError(`Cannot connect to ${format({ path, hostname, port })}`, error);
  }
}

/** Returns the addresses of a host; the host itself in a process that may connect to some hosts only. */
export async function addressesOf(hostname: string, signal: AbortSignal): Promise<string[]> {
  return Deno.permissions.querySync({ name: "net" }).state === "granted" ? await resolve(hostname, signal) : [hostname];
}

// Milliseconds until the next address is tried too. Larger: an address that does not answer delays more; smaller: more
// connections that are not used.
const NEXT_ADDRESS_DELAY = 250;

/** Connects to one address. */
type Connect<T> = (options: { hostname: string; port: number; signal: AbortSignal }) => Promise<T>;

/** Connects to the address that answers first; each is tried when the one before has failed or is late. */
async function connectFirst<T extends Deno.TcpConn | TcpSocket>(
  addresses: readonly string[],
  port: number,
  signal: AbortSignal,
  connect: Connect<T>,
): Promise<T> {
  if (addresses.length === 1) return keepAlive(await connect({ hostname: addresses[0]!, port, signal }));
  const settled = new AbortController();
  const attempts: Promise<T>[] = [];
  let connection: T | undefined;
  try {
    for (const [n, hostname] of addresses.entries()) {
      signal.throwIfAborted();
      attempts.push(connect({ hostname, port, signal: AbortSignal.any([signal, settled.signal]) }));
      const isLast = n === addresses.length - 1;
      const some = Promise.any(attempts);
      connection = isLast ? await some : await Promise.race([
        some.catch(() => undefined),
        sleep(NEXT_ADDRESS_DELAY, settled.signal).then(() => undefined),
      ]);
      if (connection !== undefined) break;
    }
    return keepAlive(connection!);
  } catch (error) {
    signal.throwIfAborted();
    throw error instanceof AggregateError ? summary(error) : error;
  } finally {
    settled.abort();
    for (const attempt of attempts) attempt.then((other) => other !== connection && other[Symbol.dispose](), () => {});
  }
}

/** Returns the only error of all attempts, or one with their different messages. */
function summary({ errors }: AggregateError): unknown {
  if (errors.length === 1) return errors[0];
  const messages = new Set(errors.map(errorText));
  return new AggregateError(errors, [...messages].join(", "));
}

/** Starts TLS on a connection; closes it if that fails. */
export async function secure(
  connection: Deno.TcpConn,
  hostname: string,
  caCerts: string[],
  signal: AbortSignal,
  alpnProtocols?: string[],
): Promise<Deno.TlsConn> {
  const secured = await Deno.startTls(connection, { hostname, caCerts, ...alpnProtocols && { alpnProtocols } });
  const off = onAbort(signal, () => secured[Symbol.dispose]());
  // Without a deadline the handshake with a silent server never settles.
  await withDeadline(secured, secured.handshake()).catch((error) => {
    secured[Symbol.dispose]();
    throw error;
  }).finally(off);
  return secured;
}
