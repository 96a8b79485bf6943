/**
 * TCP connections over sockets of `node:net`, which can be reset; those of Deno cannot. See
 * docs/decisions/008-sockets-of-node-for-forwarded-connections.md.
 *
 * @module
 */

import net from "node:net";
import type { DuplexConnection } from "../mod.ts";
import { hasFree } from "./descriptors.ts";
import { onAbort } from "./wait.ts";

// Descriptors that stay free, to accept and close further connections. Larger: fewer connections are forwarded; smaller:
// a file that is opened at the same time may take the last one.
const SPARE = 2;

// Milliseconds until listening is tried again without free descriptors. Larger: later recovery; smaller: more load.
const LIMIT_PAUSE = 100;

/** Where to connect to or to listen. */
interface Endpoint {
  hostname: string;
  port: number;
}

/** Properties of a connection. */
interface Properties {
  localAddr?: Deno.NetAddr | undefined;
  remoteAddr?: Deno.NetAddr | undefined;
  /** Default: 0. */
  readAhead?: number;
}

/** A TCP connection, or another one that a socket of `node:net` stands for. */
export class TcpSocket implements DuplexConnection {
  readonly localAddr: Deno.NetAddr;
  readonly remoteAddr: Deno.NetAddr;
  readonly #socket: net.Socket;
  /** Received chunks; the first is what `read` has left of it. While there are more than `readAhead`, none is received. */
  readonly #chunks: Uint8Array[] = [];
  /** Bytes of the chunks. */
  #received = 0;
  readonly #readAhead: number;
  #hasEnded = false;
  #hasClosed = false;
  #failure: Error | undefined;
  #changed: PromiseWithResolvers<void> | undefined;

  /**
   * @param socket A connected socket with `allowHalfOpen`, which is paused.
   * @param properties The addresses of a socket that does not know them, and bytes to receive ahead of `read`.
   */
  constructor(socket: net.Socket, { localAddr, remoteAddr, readAhead = 0 }: Properties = {}) {
    this.#socket = socket;
    this.#readAhead = readAhead;
    this.localAddr = localAddr ??
      { transport: "tcp", hostname: socket.localAddress ?? "", port: socket.localPort ?? 0 };
    this.remoteAddr = remoteAddr ??
      { transport: "tcp", hostname: socket.remoteAddress ?? "", port: socket.remotePort ?? 0 };
    socket.on("data", (chunk) => {
      this.#chunks.push(chunk as unknown as Uint8Array);
      this.#received += chunk.length;
      if (this.#received > this.#readAhead) socket.pause();
      this.#wake();
    });
    socket.pause();
    socket.on("end", () => {
      this.#hasEnded = true;
      this.#wake();
    });
    socket.on("error", (error) => {
      this.#failure ??= translate(error);
      this.#wake();
    });
    socket.on("close", () => {
      this.#hasClosed = true;
      this.#wake();
    });
  }

  /** Waits for bytes. Returns `false` at the end. */
  async #hasBytes(): Promise<boolean> {
    while (this.#received === 0) {
      if (this.#failure !== undefined) throw this.#failure;
      if (this.#hasEnded) return false;
      if (this.#hasClosed || this.#socket.destroyed) throw new Deno.errors.BadResource("The connection is closed");
      this.#socket.resume();
      await (this.#changed ??= Promise.withResolvers()).promise;
    }
    return true;
  }

  /** Returns bytes in the buffer that they were received in, so that waiting needs none; `null` at the end. */
  async readReceived(): Promise<Uint8Array | null> {
    if (!await this.#hasBytes()) return null;
    const chunk = this.#chunks.shift()!;
    this.#consume(chunk.length);
    return chunk;
  }

  async read(p: Uint8Array): Promise<number | null> {
    if (p.length === 0) return 0;
    if (!await this.#hasBytes()) return null;
    let count = 0;
    while (count < p.length && this.#chunks.length > 0) {
      const [chunk] = this.#chunks;
      const part = chunk!.subarray(0, p.length - count);
      p.set(part, count);
      count += part.length;
      if (part.length < chunk!.length) this.#chunks[0] = chunk!.subarray(part.length);
      else this.#chunks.shift();
    }
    this.#consume(count);
    return count;
  }

  #consume(count: number): void {
    this.#received -= count;
    if (this.#received < this.#readAhead / 2) this.#socket.resume();
  }

  /** Writes all bytes. */
  write(p: Uint8Array): Promise<number> {
    const { promise, resolve, reject } = Promise.withResolvers<number>();
    this.#socket.write(p, (error) => error ? reject(this.#failure ?? translate(error)) : resolve(p.length));
    return promise;
  }

  closeWrite(): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#socket.end((error?: Error | null) => error ? reject(this.#failure ?? translate(error)) : resolve());
    return promise;
  }

  /** Closes the connection. Closing again has no effect. */
  close(): void {
    this.#socket.destroy();
  }

  /** Closes the connection with RST: the peer's reads reject instead of ending, and what is unsent is dropped. */
  reset(): void {
    if (!this.#socket.destroyed) this.#socket.resetAndDestroy();
  }

  setNoDelay(on: boolean): void {
    this.#socket.setNoDelay(on);
  }

  setKeepAlive(on: boolean): void {
    this.#socket.setKeepAlive(on);
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #wake(): void {
    this.#changed?.resolve();
    this.#changed = undefined;
  }
}

/** Connects; rejects with the reason of the signal when it aborts. */
export async function connectTcp({ hostname, port, signal }: Endpoint & { signal: AbortSignal }): Promise<TcpSocket> {
  signal.throwIfAborted();
  // `node:net` would not report it.
  if (!hasFree(1)) throw new Error("too many open files");
  const socket = net.connect({ host: hostname, port, allowHalfOpen: true });
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  socket.once("connect", () => resolve());
  socket.on("error", (error) => reject(translate(error)));
  const off = onAbort(signal, reject);
  try {
    await promise;
    return new TcpSocket(socket);
  } catch (error) {
    socket.destroy();
    throw error;
  } finally {
    off();
  }
}

/** A listener for TCP connections, in the shape of `Deno.Listener`. */
export class TcpListener {
  readonly addr: Deno.NetAddr;
  readonly #backlog: number;
  #server: net.Server;
  #accepted: net.Socket[] = [];
  #failures: Error[] = [];
  #isClosed = false;
  #changed = Promise.withResolvers<void>();
  /** Listens again, once descriptors are free. */
  #timer: ReturnType<typeof setTimeout> | undefined;

  /** @param server A server that listens, from `openServer`. */
  constructor(server: net.Server, backlog: number) {
    const { address, port } = server.address() as net.AddressInfo;
    this.addr = { transport: "tcp", hostname: address, port };
    this.#backlog = backlog;
    this.#server = server;
    this.#attach(server);
  }

  async accept(): Promise<TcpSocket> {
    for (;;) {
      const failure = this.#failures.shift();
      if (failure !== undefined) throw failure;
      const socket = this.#accepted.shift();
      if (socket?.remoteAddress !== undefined) return new TcpSocket(socket);
      if (socket !== undefined) {
        socket.destroy();
        throw new Deno.errors.NotConnected("The connection was reset before it was accepted");
      }
      if (this.#isClosed) throw new Deno.errors.BadResource("The listener is closed");
      await this.#changed.promise;
    }
  }

  close(): void {
    this.#isClosed = true;
    clearTimeout(this.#timer);
    this.#server.close();
    for (const socket of this.#accepted) socket.destroy();
    this.#accepted = [];
    this.#wake();
  }

  #attach(server: net.Server): void {
    server.on("connection", (socket) => {
      // A connection may arrive while the server closes.
      if (this.#isClosed) return void socket.destroy();
      this.#accepted.push(socket);
      if (server === this.#server && !hasFree(SPARE)) this.#pause();
      this.#wake();
    });
    server.on("error", (error) => {
      this.#failures.push(translate(error));
      this.#wake();
    });
  }

  /**
   * Stops listening until descriptors are free. Without one `node:net` would stop accepting for good without an error,
   * and further connections would wait in the kernel.
   */
  #pause(): void {
    if (this.#timer !== undefined) return;
    this.#failures.push(new Error("too many open files"));
    // Connections that have a descriptor already are still accepted.
    this.#timer = setTimeout(() => {
      this.#server.close();
      this.#resume();
    }, LIMIT_PAUSE);
  }

  readonly #resume = async (): Promise<void> => {
    try {
      if (!hasFree(SPARE)) throw new Error("too many open files");
      const { hostname, port } = this.addr;
      this.#server = await openServer({ hostname, port, backlog: this.#backlog });
      this.#timer = undefined;
      if (this.#isClosed) this.#server.close();
      else this.#attach(this.#server);
    } catch {
      if (!this.#isClosed) this.#timer = setTimeout(this.#resume, LIMIT_PAUSE);
    }
  };

  #wake(): void {
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }
}

/** Listens on a TCP port. */
export async function listenTcp(endpoint: Endpoint & { backlog: number }): Promise<TcpListener> {
  return new TcpListener(await openServer(endpoint), endpoint.backlog);
}

async function openServer({ hostname, port, backlog }: Endpoint & { backlog: number }): Promise<net.Server> {
  const server = net.createServer({ allowHalfOpen: true, pauseOnConnect: true });
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const fail = (error: Error) => reject(translate(error));
  server.once("error", fail);
  server.listen({ host: hostname, port, backlog }, resolve);
  await promise;
  server.off("error", fail);
  return server;
}

/** The names of the errors of Deno, and their messages. One has no class of its own. */
const ERRORS: { [code: string]: [name: keyof typeof Deno.errors | undefined, message: string] } = {
  EACCES: ["PermissionDenied", "Permission denied"],
  EADDRINUSE: ["AddrInUse", "Address already in use"],
  EADDRNOTAVAIL: ["AddrNotAvailable", "Cannot assign requested address"],
  ECONNABORTED: ["ConnectionAborted", "Connection aborted"],
  ECONNREFUSED: ["ConnectionRefused", "Connection refused"],
  ECONNRESET: ["ConnectionReset", "Connection reset by peer"],
  EHOSTUNREACH: [undefined, "No route to host"],
  ENETUNREACH: ["NetworkUnreachable", "Network is unreachable"],
  EPIPE: ["BrokenPipe", "Broken pipe"],
  ETIMEDOUT: ["TimedOut", "Connection timed out"],
};

/** Returns the error of Deno for one of Node, or the error itself. */
export function translate(error: Error): Error {
  if ((error as NodeJS.ErrnoException).code === "EMFILE") return new Error("Too many open files", { cause: error });
  const [name, message] = ERRORS[(error as NodeJS.ErrnoException).code ?? ""] ?? [];
  if (message === undefined) return error;
  return name === undefined ? new Error(message, { cause: error }) : new Deno.errors[name](message, { cause: error });
}
