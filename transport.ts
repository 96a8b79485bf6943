/**
 * Transports of a session, and the interface to which each is adapted.
 *
 * @module
 */

import { WebSocketClosedError } from "./errors.ts";

/**
 * Address of one end of a connection, in the shape of `Deno.Addr`.
 *
 * @example Formatting an address
 * ```ts
 * import { type Address, Session } from "@sluice/smux";
 * import { assertEquals } from "@std/assert";
 *
 * function show(address: Address): string {
 *   if (address.transport === "vsock") return `${address.cid}:${address.port}`;
 *   return "path" in address ? address.path : `${address.hostname}:${address.port}`;
 * }
 * assertEquals(show({ transport: "unix", path: "/run/web" }), "/run/web");
 *
 * const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
 * const session = Session.client(await Deno.connect({ port: listener.addr.port }));
 * assertEquals(show(session.remoteAddr), `127.0.0.1:${listener.addr.port}`);
 * session.abort();
 * listener.close();
 * ```
 */
export type Address =
  | { transport: "tcp" | "udp"; hostname: string; port: number }
  | { transport: "unix" | "unixpacket"; path: string }
  | { transport: "vsock"; cid: number; port: number };

/**
 * A byte connection in the shape of `Deno.Conn`. `Deno.TcpConn`, `Deno.TlsConn`, `Deno.UnixConn` and a
 * {@linkcode Stream} of another session have it.
 *
 * @example Counting the bytes written
 * ```ts
 * import { type Connection, Session } from "@sluice/smux";
 * import { assertEquals } from "@std/assert";
 *
 * let written = 0;
 * const counted = (inner: Connection): Connection => ({
 *   read: (p) => inner.read(p),
 *   async write(p) {
 *     const count = await inner.write(p);
 *     written += count;
 *     return count;
 *   },
 *   close: () => inner.close(),
 *   closeWrite: async () => await inner.closeWrite?.(),
 * });
 *
 * const listener = Deno.listen({ port: 0 });
 * const session = Session.client(counted(await Deno.connect({ port: listener.addr.port })));
 * await using _server = Session.server(await listener.accept());
 * await (await session.openStream()).write(new Uint8Array(1000));
 * await session.close();
 * assertEquals(written, session.stats().bytesSent);
 * listener.close();
 * ```
 */
export interface Connection {
  /**
   * Reads up to `p.length` bytes into `p`, and returns their number, or `null` at the end. It must not access `p` after
   * the promise has settled.
   */
  read(p: Uint8Array): Promise<number | null>;
  /**
   * Writes bytes from the start of `p`, and returns their number, which may be less than `p.length`. It must not change
   * `p`, nor access it after the promise has settled.
   */
  write(p: Uint8Array): Promise<number>;
  /** Closes the connection at once. */
  close(): void;
  /** Ends the writing direction; reading goes on. Without it a closing session cannot half-close the connection. */
  closeWrite?(): Promise<void>;
  /** The local address. */
  readonly localAddr?: Address | undefined;
  /** The remote address. */
  readonly remoteAddr?: Address | undefined;
  /** Whether the connection waits for another one below. The timers of the session pause meanwhile. */
  readonly isSuspended?: boolean;
  /** How often the connection below was replaced. Each time the session counts its peer as heard. */
  readonly resumptions?: number;
  /** Sets TCP_NODELAY. The session turns it on, because it coalesces frames itself. */
  setNoDelay?(on?: boolean): void;
  /** Makes the open connection keep the process alive. */
  ref?(): void;
  /** Lets the process exit while the connection is open. */
  unref?(): void;
}

/**
 * A `stream.Duplex` of Node, by shape: a `net.Socket`, a `tls.TLSSocket` or any other duplex stream of bytes. It may
 * still be connecting.
 *
 * The stream must also have `read`, and the session calls `write`, `pause` and `resume`. This type omits them, because
 * the signatures of `read` and `write` differ from those of a {@linkcode Connection}.
 *
 * A stream created with `emitClose: false` does not report a `destroy()` without an error. Its session ends at the next
 * write, at the latest after `keepAliveInterval`. An "auto" server that has received nothing ends after `timeout`.
 *
 * @example A client over a socket of Node
 * ```ts
 * import { type NodeStream, serve, Session } from "@sluice/smux";
 * import { assertEquals } from "@std/assert";
 * import { connect } from "node:net";
 *
 * const listener = Deno.listen({ port: 0 });
 * await using _server = serve(listener, (stream) => stream.readable.pipeTo(stream.writable));
 *
 * const socket: NodeStream = connect(listener.addr.port);
 * const session = Session.client(socket);
 * const stream = await session.openStream();
 * await stream.write(new Uint8Array(5));
 * assertEquals(await stream.read(new Uint8Array(8)), 5);
 * stream.close();
 * await session.close();
 * ```
 */
export interface NodeStream {
  /** Number of buffered bytes. */
  readonly readableLength: number;
  /** Ends the writing direction. Calls `callback` when everything is written, or with an error. */
  end(callback: (error?: Error | null) => void): unknown;
  /** Closes the stream at once. */
  destroy(): unknown;
  /** Adds a listener for `data`, `end`, `error` or `close`. */
  on(event: string, listener: (error: unknown) => void): unknown;
  /** Sets TCP_NODELAY. The session turns it on, because it coalesces frames itself. */
  setNoDelay?(on?: boolean): unknown;
  /** Makes the open connection keep the process alive. */
  ref?(): unknown;
  /** Lets the process exit while the connection is open. */
  unref?(): unknown;
  /** Whether `read` returns values other than bytes. A session refuses such a stream with a `TypeError`. */
  readonly readableObjectMode?: boolean;
  /** The local host. */
  readonly localAddress?: string | undefined;
  /** The local port. */
  readonly localPort?: number | undefined;
  /** The remote host. */
  readonly remoteAddress?: string | undefined;
  /** The remote port. */
  readonly remotePort?: number | undefined;
}

/**
 * The transport of a session: a {@linkcode Connection}, a {@linkcode NodeStream}, or a pair of web streams such as
 * those of an open `WebSocketStream`, a child process (`{ readable: child.stdout, writable: child.stdin }`) or a
 * WebTransport stream.
 *
 * The transport must deliver all bytes, in order. It need not keep the boundaries of writes.
 *
 * @example Both ends in one process, without a network
 * ```ts
 * import { Session, type Transport } from "@sluice/smux";
 * import { assertEquals } from "@std/assert";
 * import { toText } from "@std/streams";
 *
 * const there = new TransformStream<Uint8Array, Uint8Array>();
 * const back = new TransformStream<Uint8Array, Uint8Array>();
 * const near: Transport = { readable: back.readable, writable: there.writable };
 * const far: Transport = { readable: there.readable, writable: back.writable };
 *
 * const [client, server] = [Session.client(near), Session.server(far)];
 * const [asking, answering] = await Promise.all([client.openStream(), server.acceptStream()]);
 * await answering.write(new TextEncoder().encode("no port was needed"));
 * await answering.closeWrite();
 * assertEquals(await toText(asking.readable), "no port was needed");
 * await client.close();
 * ```
 */
export type Transport =
  | Connection
  | NodeStream
  | {
    // Only the members in use, because the types of web streams differ between browsers and Node.
    readonly readable: {
      getReader(): {
        read(): Promise<{ done: boolean; value?: Uint8Array | string | undefined }>;
        cancel(reason?: unknown): Promise<unknown>;
        readonly closed: Promise<unknown>;
      };
    };
    readonly writable: {
      getWriter(): {
        write(chunk: Uint8Array<ArrayBuffer>): Promise<unknown>;
        close(): Promise<unknown>;
        abort(reason?: unknown): Promise<unknown>;
        readonly closed: Promise<unknown>;
      };
    };
  };

/** A connection that receives chunks, which are read without a copy. */
export interface ChunkConnection extends Omit<Connection, "read"> {
  /** Returns the next chunk, or `null` at the end. The connection does not access the chunk afterwards. */
  readChunk(): Promise<Uint8Array | null>;
  /** Sets the listener, which may read a chunk in the event that brings it. */
  listen?(listener: ChunkListener): void;
}

/** Notified of received chunks. */
export interface ChunkListener {
  /**
   * Called with a chunk that has arrived while `readChunk` waits for one. Reads as much of it as needs no wait.
   *
   * @returns The chunk for `readChunk`: the whole, a copy of the rest, or an empty one that only ends its wait;
   * `undefined` if it must go on waiting.
   */
  tryReceive(chunk: Uint8Array): Uint8Array | undefined;
}

/**
 * Maximum size of one write of a connection. On loopback TCP sends 64 KiB at once, and a congestion control that paces
 * (BBR) no more than two of these before it waits for a timer. Larger: such waits; smaller: more system calls. See
 * docs/tuning.md.
 */
export const MAX_SOCKET_WRITE_BYTES: number = 120 * 1024;

/**
 * Maximum size of a sent message. Larger: lower cost per byte, but from 64 KiB on Deno reads each message with a system
 * call of its own; smaller: the event loop is blocked for less time.
 */
export const MESSAGE_BYTES: number = 63 * 1024;

/** A connection without backpressure, such as a WebSocket. It holds the chunks that arrive before they are read. */
export interface PushedConnection extends Omit<ChunkConnection, "listen"> {
  /** Returns the next chunk if one is held, otherwise `undefined`. Each chunk is a whole buffer, which may be freed. */
  tryReadChunk(): Uint8Array | undefined;
  /** Whether the session must read without yielding, because too many bytes are unread. */
  readonly isBehind: boolean;
  /** Sets the listener, which is called while the connection is not read, too. */
  listen(listener: PushListener): void;
  /** Writes bytes without waiting, and returns their number: less than `p.length` if `drained` must be awaited first. */
  tryWrite(p: Uint8Array): number;
  /** Waits until `tryWrite` can write. Rejects when the connection has ended. */
  drained(): Promise<void>;
}

/** Notified of received chunks, and of unread bytes, by a pushed connection. */
export interface PushListener extends ChunkListener {
  /** Called when `isBehind` has become true. */
  fellBehind(): void;
  /** Called when the unread bytes exceed the limit of the connection, which has failed with `error`. */
  overflowed(error: Error): void;
}

/** Name of the method of a {@linkcode KeepingConnection}. */
export const KEEP: unique symbol = Symbol("keep");

/** A connection that keeps what was written, in the memory of the writer. */
export interface KeepingConnection extends Connection {
  /** Number of bytes that must be free at the start of the memory. */
  readonly headroom: number;
  /**
   * Does the same as `write`, and keeps the memory.
   *
   * @param memory The memory. The connection owns it until `writing` resolves with less than all bytes.
   * @param end Position after the last byte to write. The first is after the headroom.
   * @returns The result, with other memory of the same size; `undefined` if the bytes must be written with `write`.
   */
  [KEEP](memory: Uint8Array, end: number): Kept | undefined;
}

/** The result of a write that keeps the memory. */
export interface Kept {
  /** Number of written bytes. If it is less than all, the memory is not kept, and `write` writes the rest. */
  readonly writing: Promise<number>;
  /** Memory in exchange. */
  readonly replacement: Uint8Array;
}

/** A transport in the shape that the session uses. */
export interface Link {
  /**
   * Waits for the next bytes, writes them to the start of `buffer` and returns their number; `null` at the end.
   *
   * @param last The number that the previous read returned. The buffer grows and shrinks with it.
   * @param isShared Whether those bytes served several readers.
   */
  read(last: number, isShared: boolean): Promise<number | null>;
  /** The buffer of the last `read`. Its bytes do not change until the next `read`, nor while it is retained. */
  readonly buffer: ReadBuffer;
  /** Does the same without waiting, for a pushed connection. Returns 0 if it holds no bytes. */
  tryRead?(): number;
  /** Sets the listener of a connection that receives chunks. */
  listen?(listener: PushListener): void;
  /** Makes a chunk that the listener reads the bytes of the last `read`. Returns its length. */
  hold?(chunk: Uint8Array): number;
  /** Writes bytes from the start of `bytes`, and returns their number. `bytes` may be reused when it has settled. */
  write(bytes: Uint8Array): Promise<number>;
  /** Number of bytes that must be free before those of `keep`. */
  readonly headroom: number;
  /** Writes the bytes of `memory` after the headroom and before `end`, and keeps the memory; `undefined`: use `write`. */
  keep?(memory: Uint8Array, end: number): Kept | undefined;
  /** Ends the writing direction; reading goes on. */
  closeWrite(): Promise<void>;
  /** Closes the transport at once. It never throws. */
  close(): void;
  /** Releases the buffer, after the last read. */
  free(): void;
  readonly localAddr: Address;
  readonly remoteAddr: Address;
  /** The connection, if it has no backpressure. */
  readonly pushed: PushedConnection | undefined;
  /** Whether the transport waits for another connection below. */
  readonly isSuspended: boolean;
  /** How often the connection below was replaced. */
  readonly resumptions: number;
  ref(): void;
  unref(): void;
}

// Smaller buffers are left to the garbage collector. Larger: more garbage; smaller: more work per small message.
const MIN_FREED_BYTES = 4096;

/**
 * Frees the memory of a buffer, which must not be used afterwards. The garbage collector sees only the small object of
 * a buffer, so unreferenced buffers accumulate before a collection.
 */
export function freeBuffer(bytes: Uint8Array): void {
  // Node 20 has no `transfer`. A buffer that was transferred already has no length.
  if (bytes.length >= MIN_FREED_BYTES && "transfer" in bytes.buffer) bytes.buffer.transfer(0);
}

/** The buffer of one read, with a count of references: one of the link until its next read, one of each view in use. */
export class ReadBuffer {
  /** The whole buffer. */
  readonly bytes: Uint8Array;
  readonly #isOwned: boolean;
  #references = 1;

  /**
   * @param bytes The memory.
   * @param isOwned Whether it may be freed or handed to the application; a chunk of a web stream may not.
   */
  constructor(bytes: Uint8Array, isOwned = true) {
    this.bytes = bytes;
    this.#isOwned = isOwned;
  }

  /** Whether there is more than one reference. */
  get isRetained(): boolean {
    return this.#references > 1;
  }

  /** Adds a reference. */
  retain(): void {
    this.#references++;
  }

  /** Removes a reference. Removing the last one frees the memory: do not use the bytes afterwards. */
  release(): void {
    if (--this.#references === 0 && this.#isOwned) freeBuffer(this.bytes);
  }

  /** Returns whether the holder of the only reference may keep the memory. */
  giveAway(): boolean {
    return this.#isOwned && this.#references === 1;
  }
}

/** Checks the result of a transport write. */
export function checkCount(count: number, limit: number): number {
  if (count >= 0 && count <= limit) return count;
  throw new TypeError(`Transport write must return 0 to ${limit}, received ${count}`);
}

// Deno's names and Node's codes of the failures of a connection whose peer has hung up.
const RESETS = ["ConnectionReset", "ConnectionAborted", "BrokenPipe", "ECONNRESET", "ECONNABORTED", "EPIPE"];

/** Returns whether the error means that the peer has hung up. */
export function isReset(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  const { code } = error as { code?: unknown };
  if (error instanceof WebSocketClosedError) return code === 1000;
  return RESETS.includes(error.name) || RESETS.includes(`${code}`);
}

/** Closes a connection or a listener that may be closed already. */
export function closeQuietly(open: { close(): void }): void {
  try {
    const closing: unknown = open.close();
    // An async `close` is assignable to the type, too.
    if (closing instanceof Promise) closing.catch(() => {});
  } catch {
    // Closed already.
  }
}
