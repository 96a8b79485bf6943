/**
 * What a session runs over, and the one shape in which the session sees it.
 *
 * @module
 */

import { EMPTY_BYTES, ProtocolError } from "./frame.ts";

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
  /** Turns off waiting for more data before a segment is sent. */
  setNoDelay?(on?: boolean): void;
  /** Keeps the process alive while the connection is open. */
  ref?(): void;
  /** Lets the process end while the connection is open. */
  unref?(): void;
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
  ref(): void;
  unref(): void;
}

const NO_ADDRESS: Address = { transport: "tcp", hostname: "", port: 0 };

// A session that carries little costs little; 64 KiB is where a loopback socket stops gaining from larger reads. One less,
// so that a frame of 32 KiB, the usual size, is more than half of it: then it can be kept as it is.
const MIN_READ_BYTES = 8 * 1024;
const MAX_READ_BYTES = 63 * 1024;
/**
 * The largest read after a full one that served several readers: fewer frames are cut in two. A single reader keeps the
 * smaller limit, because bytes beyond its own buffer are copied twice. Larger: faster with 100 streams, but the allocator
 * then maps and unmaps the buffer each time it changes.
 */
export const MAX_SHARED_READ_BYTES = 127 * 1024;
// At 2 KB/s this still passes within the default timeout of 30 s.
const MAX_STREAM_WRITE_BYTES = 64 * 1024;

/**
 * Brings a transport into the shape the session sees.
 *
 * @throws {TypeError} It is none of the kinds a session can run over.
 */
export function adapt(transport: Transport): Link {
  if (typeof transport === "object" && transport !== null) {
    if ("read" in transport && "write" in transport && typeof transport.read === "function") {
      return new ConnectionLink(transport);
    }
    if ("readable" in transport && "writable" in transport) return new StreamsLink(transport);
  }
  throw new TypeError("A transport has read, write and close, or readable and writable streams");
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

/** Whether the other side has reset the connection, by the names that Deno has for that error. */
export function isReset(error: unknown): boolean {
  return error instanceof Error && ["ConnectionReset", "ConnectionAborted", "BrokenPipe"].includes(error.name);
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

/** A link over `read` and `write`. */
class ConnectionLink implements Link {
  readonly #connection: Connection;
  buffer: ReadBuffer = new ReadBuffer(EMPTY_BYTES);
  #size = MIN_READ_BYTES;

  constructor(connection: Connection) {
    this.#connection = connection;
    try {
      // Frames are gathered here already; a small one must not wait for the peer's acknowledgement.
      connection.setNoDelay?.(true);
    } catch {
      // A connection that is dead already says so when it is read.
    }
  }

  get localAddr(): Address {
    return this.#connection.localAddr ?? NO_ADDRESS;
  }

  get remoteAddr(): Address {
    return this.#connection.remoteAddr ?? NO_ADDRESS;
  }

  read(last: number, isShared: boolean): Promise<number | null> {
    if (last === this.#size) this.#size = Math.min(last * 2, isShared ? MAX_SHARED_READ_BYTES : MAX_READ_BYTES);
    // The transport was emptied: the next read may wait for a long time, with its buffer.
    else if (this.#size > MAX_READ_BYTES) this.#size = MAX_READ_BYTES;
    else if (last < this.#size / 4) this.#size = Math.max(this.#size / 2, MIN_READ_BYTES);
    if (this.buffer.bytes.length !== this.#size || this.buffer.isRetained) {
      this.buffer.release();
      this.buffer = new ReadBuffer(new Uint8Array(this.#size));
    }
    return this.#connection.read(this.buffer.bytes);
  }

  write(bytes: Uint8Array): Promise<number> {
    return this.#connection.write(bytes);
  }

  async closeWrite(): Promise<void> {
    await this.#connection.closeWrite?.();
  }

  close(): void {
    closeQuietly(this.#connection);
  }

  free(): void {
    this.buffer.release();
    this.buffer = new ReadBuffer(EMPTY_BYTES);
  }

  ref(): void {
    this.#connection.ref?.();
  }

  unref(): void {
    this.#connection.unref?.();
  }
}

type Streams = Exclude<Transport, Connection>;

/** A link over web streams. */
class StreamsLink implements Link {
  readonly #reader: ReturnType<Streams["readable"]["getReader"]>;
  readonly #writer: ReturnType<Streams["writable"]["getWriter"]>;
  buffer: ReadBuffer = new ReadBuffer(EMPTY_BYTES, false);
  // What is left of a chunk. It may be as large as its sender likes, a WebSocket message say, and is read in parts.
  #rest: Uint8Array = EMPTY_BYTES;
  #received = 0;
  readonly localAddr = NO_ADDRESS;
  readonly remoteAddr = NO_ADDRESS;

  constructor(transport: Streams) {
    this.#reader = transport.readable.getReader();
    this.#writer = transport.writable.getWriter();
    // `read` and `write` report the end; these two would be unhandled rejections.
    this.#reader.closed.catch(() => {});
    this.#writer.closed.catch(() => {});
  }

  async read(): Promise<number | null> {
    if (this.#rest.length === 0) {
      const { done, value } = await this.#reader.read();
      if (done) return null;
      if (!(value instanceof Uint8Array)) {
        throw new ProtocolError(this.#received, "bytes", `a chunk of type ${typeof value}`);
      }
      this.#received += value.length;
      this.#rest = value;
    }
    const bytes = this.#rest.subarray(0, MAX_READ_BYTES);
    this.#rest = this.#rest.subarray(MAX_READ_BYTES);
    this.buffer = new ReadBuffer(bytes, false);
    return bytes.length;
  }

  async write(bytes: Uint8Array): Promise<number> {
    // A sink may keep its chunk after the write has settled, so it gets a copy. A large one would hide progress.
    const part = bytes.slice(0, MAX_STREAM_WRITE_BYTES);
    await this.#writer.write(part);
    return part.length;
  }

  async closeWrite(): Promise<void> {
    await this.#writer.close();
  }

  close(): void {
    this.#reader.cancel().catch(() => {});
    // Aborting a writer that was closed does nothing.
    this.#writer.abort().catch(() => {});
  }

  free(): void {}

  ref(): void {}

  unref(): void {}
}
