/**
 * What a session runs over, and the one shape in which the session sees it.
 *
 * @module
 */

import { WebSocketClosedError } from "./errors.ts";

/**
 * Where one end of a connection is: what Deno's connections report, by shape.
 *
 * @example Telling the kinds apart
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
 * A byte connection as Deno has them: `Deno.TcpConn`, `Deno.TlsConn`, `Deno.UnixConn` and a {@linkcode Stream} of
 * another session are such.
 *
 * @example Counting what passes
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
   * Reads at most `p.length` bytes into `p`, and returns their number, or `null` at the end. It must not touch `p` after
   * it has settled.
   */
  read(p: Uint8Array): Promise<number | null>;
  /** Writes the first bytes of `p`, and returns their number, which may be less than `p.length`. The same applies to `p`. */
  write(p: Uint8Array): Promise<number>;
  /** Closes the connection at once. */
  close(): void;
  /** Ends writing; reading goes on. */
  closeWrite?(): Promise<void>;
  /** Where this end is. */
  readonly localAddr?: Address;
  /** Where the other end is. */
  readonly remoteAddr?: Address;
  /** Rejects when the connection has failed for good although it is not read, where it can find out. */
  readonly failed?: Promise<never>;
  /** Turns off waiting for more data before a segment is sent. */
  setNoDelay?(on?: boolean): void;
  /** Keeps the process alive while the connection is open. */
  ref?(): void;
  /** Lets the process end while the connection is open. */
  unref?(): void;
}

/**
 * A `stream.Duplex` of Node by shape: a `net.Socket`, a `tls.TLSSocket`, or any other of bytes. It may still be connecting.
 * Its `read` and `write` are used, too, but are not listed, because they differ from those of a {@linkcode Connection}.
 *
 * @example A client in Node, or in Deno on Node's modules
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
  /** Bytes that can be read at once. */
  readonly readableLength: number;
  /** Ends writing, and calls `callback` when everything is written or cannot be. */
  end(callback: (error?: Error | null) => void): unknown;
  /** Closes the stream at once. */
  destroy(): unknown;
  /** Listens to `readable`, `end`, `error` and `close`. */
  on(event: string, listener: (error: unknown) => void): unknown;
  /** Turns off waiting for more data before a segment is sent. */
  setNoDelay?(on?: boolean): unknown;
  /** Keeps the process alive while the connection is open. */
  ref?(): unknown;
  /** Lets the process end while the connection is open. */
  unref?(): unknown;
  /** Whether values other than bytes are read: such a stream is refused. */
  readonly readableObjectMode?: boolean;
  /** The host of this end. */
  readonly localAddress?: string | undefined;
  /** The port of this end. */
  readonly localPort?: number | undefined;
  /** The host of the other end. */
  readonly remoteAddress?: string | undefined;
  /** The port of the other end. */
  readonly remotePort?: number | undefined;
}

/**
 * What a session can run over: a {@linkcode Connection}, or a pair of web streams such as those of an open
 * `WebSocketStream`, a child process (`{ readable: child.stdout, writable: child.stdin }`) or a WebTransport stream.
 * The transport must keep bytes whole and in order; where one write ends does not matter.
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
    // No more of either than is used: to a compiler that knows a browser's streams and Node's, neither is the other.
    readonly readable: {
      getReader(): {
        read(): Promise<{ done: boolean; value?: Uint8Array | string | undefined }>;
        cancel(): Promise<unknown>;
        readonly closed: Promise<unknown>;
      };
    };
    readonly writable: {
      getWriter(): {
        write(chunk: Uint8Array<ArrayBuffer>): Promise<unknown>;
        close(): Promise<unknown>;
        abort(): Promise<unknown>;
        readonly closed: Promise<unknown>;
      };
    };
  };

/** A transport as the session sees it: as few steps between a session and its connection as can be. */
export interface Link {
  /**
   * Waits for the next bytes, puts them at the start of `buffer` and returns their number; `null` at the end.
   *
   * @param last The number that the previous read returned: the size of the buffer follows the traffic.
   * @param isShared Whether those bytes served several readers.
   */
  read(last: number, isShared: boolean): Promise<number | null>;
  /** The buffer of the last `read`. Its bytes stay as they are until the next one, and while it is retained. */
  readonly buffer: ReadBuffer;
  /** Writes the first of `bytes`, and returns their number. The bytes are free again when it settles. */
  write(bytes: Uint8Array): Promise<number>;
  /** Ends writing; reading goes on. */
  closeWrite(): Promise<void>;
  /** Gives the transport up, at once and without an error. */
  close(): void;
  /** Nothing more is read: releases the buffer. */
  free(): void;
  readonly localAddr: Address;
  readonly remoteAddr: Address;
  /** As that of a connection. */
  readonly failed: Promise<never> | undefined;
  ref(): void;
  unref(): void;
}

/**
 * Gives the memory of a buffer back, which is of no use after that. To a collector a buffer is a hundred bytes on its
 * heap: left to it, sessions that come and go have gathered 64 MiB of buffers before it looks.
 */
export function freeBuffer(bytes: Uint8Array): void {
  // Not every runtime of today can do it; and what is shared or gone already has no length.
  if (bytes.length > 0 && "transfer" in bytes.buffer) bytes.buffer.transfer(0);
}

/** The bytes of one read. References are held by the link until its next read, and by each chunk that is a view. */
export class ReadBuffer {
  /** All of the buffer. */
  readonly bytes: Uint8Array;
  readonly #isOwned: boolean;
  #references = 1;

  /**
   * @param bytes The memory.
   * @param isOwned Whether it is ours, to be freed or given away; what a web stream delivers is not.
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

  /** Removes a reference. The last one frees the memory, so that the bytes must not be used afterwards. */
  release(): void {
    if (--this.#references === 0 && this.#isOwned) freeBuffer(this.bytes);
  }

  /** Hands the memory over to the holder of the only reference; returns whether that was possible. */
  giveAway(): boolean {
    return this.#isOwned && this.#references === 1;
  }
}

// What a failure is called when the other side has hung up: by Deno's names and Node's codes, and of a WebSocket.
const RESETS = ["ConnectionReset", "ConnectionAborted", "BrokenPipe", "ECONNRESET", "ECONNABORTED", "EPIPE"];

/** Whether the other side has hung up. */
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
    // A `close` that returns a promise fits the type of one that returns nothing.
    if (closing instanceof Promise) closing.catch(() => {});
  } catch {
    // It was closed already.
  }
}
