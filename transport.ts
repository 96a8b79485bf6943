/**
 * Transports of a session, and the interface to which each is adapted.
 *
 * @module
 */

import { EMPTY_BYTES, ProtocolError } from "./frame.ts";

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
   * Writes bytes from the start of `p`, and returns their number, which may be less than `p.length`. It must not access
   * `p` after the promise has settled.
   */
  write(p: Uint8Array): Promise<number>;
  /** Closes the connection at once. */
  close(): void;
  /** Ends the writing direction; reading goes on. Without it a closing session cannot half-close the connection. */
  closeWrite?(): Promise<void>;
  /** The local address. */
  readonly localAddr?: Address;
  /** The remote address. */
  readonly remoteAddr?: Address;
  /** Sets TCP_NODELAY. The session turns it on, because it coalesces frames itself. */
  setNoDelay?(on?: boolean): void;
  /** Makes the open connection keep the process alive. */
  ref?(): void;
  /** Lets the process exit while the connection is open. */
  unref?(): void;
}

/**
 * What a session runs over: a {@linkcode Connection}, or a pair of web streams such as those of an open
 * `WebSocketStream`, a child process (`{ readable: child.stdout, writable: child.stdin }`) or a WebTransport stream.
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
  | {
    // Only the members in use, because the types of web streams differ between browsers and Node.
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

/** A transport as the session uses it. */
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
  /** Writes bytes from the start of `bytes`, and returns their number. `bytes` may be reused when it has settled. */
  write(bytes: Uint8Array): Promise<number>;
  /** Ends the writing direction; reading goes on. */
  closeWrite(): Promise<void>;
  /** Closes the transport at once. It never throws. */
  close(): void;
  /** Releases the buffer, after the last read. */
  free(): void;
  readonly localAddr: Address;
  readonly remoteAddr: Address;
  ref(): void;
  unref(): void;
}

const NO_ADDRESS: Address = { transport: "tcp", hostname: "", port: 0 };

// Larger minimum: more memory per idle session. Larger maximum: no faster on loopback. Below 64 KiB, so that a frame of
// the default 32 KiB is more than half of the buffer and can be kept as a view.
const MIN_READ_BYTES = 8 * 1024;
const MAX_READ_BYTES = 63 * 1024;
/**
 * The limit after a full read that served several readers. A single reader keeps the smaller limit, because bytes
 * beyond its own buffer are copied twice. Larger: fewer split frames with 100 streams, but the allocator then maps and
 * unmaps the buffer each time its size changes.
 */
export const MAX_SHARED_READ_BYTES = 127 * 1024;
// Larger: a slow link (2 KB/s) makes no visible progress within the default timeout. Smaller: more writes.
const MAX_STREAM_WRITE_BYTES = 64 * 1024;

/**
 * Adapts a transport to the interface of the session.
 *
 * @throws {TypeError} `transport` is neither a connection nor a pair of web streams.
 */
export function adapt(transport: Transport): Link {
  if (typeof transport === "object" && transport !== null) {
    if ("read" in transport && "write" in transport && typeof transport.read === "function") {
      return new ConnectionLink(transport);
    }
    if ("readable" in transport && "writable" in transport) return new StreamsLink(transport);
  }
  throw new TypeError("Cannot use transport: expected read, write and close, or readable and writable");
}

/**
 * Frees the memory of a buffer, which must not be used afterwards. The garbage collector sees only the small object of
 * a buffer, so unreferenced buffers accumulate before a collection.
 */
export function freeBuffer(bytes: Uint8Array): void {
  // Node 20 has no `transfer`. A buffer that was transferred already has no length.
  if (bytes.length > 0 && "transfer" in bytes.buffer) bytes.buffer.transfer(0);
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

/** Returns whether the error means that the peer has reset the connection, by the names of Deno's errors. */
export function isReset(error: unknown): boolean {
  return error instanceof Error && ["ConnectionReset", "ConnectionAborted", "BrokenPipe"].includes(error.name);
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

/** Link over a {@linkcode Connection}. */
class ConnectionLink implements Link {
  readonly #connection: Connection;
  buffer: ReadBuffer = new ReadBuffer(EMPTY_BYTES);
  #size = MIN_READ_BYTES;

  constructor(connection: Connection) {
    this.#connection = connection;
    try {
      // The writer coalesces frames; a small one must not wait for the peer's acknowledgement, too.
      connection.setNoDelay?.(true);
    } catch {
      // A dead connection fails its first read.
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
    // A short read has emptied the transport: the next read may wait long and hold its buffer.
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

/** Link over a pair of web streams. */
class StreamsLink implements Link {
  readonly #reader: ReturnType<Streams["readable"]["getReader"]>;
  readonly #writer: ReturnType<Streams["writable"]["getWriter"]>;
  buffer: ReadBuffer = new ReadBuffer(EMPTY_BYTES, false);
  // The unread part of a chunk. Chunks have no maximum size (a WebSocket message, for example), so they are read in
  // parts.
  #rest: Uint8Array = EMPTY_BYTES;
  #received = 0;
  readonly localAddr = NO_ADDRESS;
  readonly remoteAddr = NO_ADDRESS;

  constructor(transport: Streams) {
    this.#reader = transport.readable.getReader();
    this.#writer = transport.writable.getWriter();
    // `read` and `write` report failures. Without these handlers the rejections would be unhandled.
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
    // A copy, because a sink may keep its chunk after the write has settled. Limited, because a large one hides
    // progress.
    const part = bytes.slice(0, MAX_STREAM_WRITE_BYTES);
    await this.#writer.write(part);
    return part.length;
  }

  async closeWrite(): Promise<void> {
    await this.#writer.close();
  }

  close(): void {
    this.#reader.cancel().catch(() => {});
    // Has no effect on a closed writer.
    this.#writer.abort().catch(() => {});
  }

  free(): void {}

  ref(): void {}

  unref(): void {}
}
