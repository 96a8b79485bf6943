/**
 * What a session runs over, and the one shape in which the session sees it.
 *
 * @module
 */

import { ProtocolError } from "./frame.ts";

/** Where one end of a connection is: what Deno's connections report, by shape. */
export type Address =
  | { transport: "tcp" | "udp"; hostname: string; port: number }
  | { transport: "unix" | "unixpacket"; path: string }
  | { transport: "vsock"; cid: number; port: number };

/**
 * A byte connection as Deno has them: `Deno.TcpConn`, `Deno.TlsConn`, `Deno.UnixConn` and a {@linkcode Stream} of
 * another session are such.
 */
export interface Connection {
  /** Reads at most `p.length` bytes into `p`; gives how many, or `null` at the end. */
  read(p: Uint8Array): Promise<number | null>;
  /** Writes from `p`; gives how many bytes were taken, which may be fewer than there are. */
  write(p: Uint8Array): Promise<number>;
  /** Gives the connection up. */
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
 */
export type Transport =
  | Connection
  | { readonly readable: ReadableStream<Uint8Array | string>; readonly writable: WritableStream<Uint8Array> };

/** A transport as the session sees it. */
export interface Link {
  /** The next bytes, at least one; `null` at the end. They stay as they are until the next call. */
  read(): Promise<Uint8Array | null>;
  /** Leaves the bytes of the last `read` to the caller for good. */
  keep(): void;
  /** Writes all of `bytes`, and tells each time that some left. They are free again when it settles. */
  write(bytes: Uint8Array, progress: () => void): Promise<void>;
  /** Ends writing; reading goes on. */
  closeWrite(): Promise<void>;
  /** Gives the transport up, at once and without an error. */
  close(): void;
  readonly localAddr: Address;
  readonly remoteAddr: Address;
  ref(): void;
  unref(): void;
}

const NOWHERE: Address = { transport: "tcp", hostname: "", port: 0 };

// A session that carries little costs little; 64 KiB is where a loopback socket stops gaining from larger reads.
const SMALLEST_READ = 16 * 1024;
const LARGEST_READ = 64 * 1024;

/**
 * Brings a transport into the shape the session sees.
 *
 * @throws {TypeError} It is none of the kinds a session can run over.
 */
export function link(transport: Transport): Link {
  if (typeof transport === "object" && transport !== null) {
    if ("read" in transport && "write" in transport && typeof transport.read === "function") {
      return new ConnectionLink(transport);
    }
    if ("readable" in transport && "writable" in transport) return new StreamsLink(transport);
  }
  throw new TypeError("A transport has read, write and close, or readable and writable streams");
}

/** A link over `read` and `write`. */
class ConnectionLink implements Link {
  readonly #connection: Connection;
  #buffer: Uint8Array | undefined;
  #size = SMALLEST_READ;

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
    return this.#connection.localAddr ?? NOWHERE;
  }

  get remoteAddr(): Address {
    return this.#connection.remoteAddr ?? NOWHERE;
  }

  async read(): Promise<Uint8Array | null> {
    if (this.#buffer?.length !== this.#size) this.#buffer = new Uint8Array(this.#size);
    const buffer = this.#buffer!;
    for (;;) {
      const count = await this.#connection.read(buffer);
      if (count === null) return null;
      if (count === 0) continue;
      if (count === buffer.length) this.#size = Math.min(buffer.length * 2, LARGEST_READ);
      else if (count < buffer.length / 4) this.#size = Math.max(buffer.length / 2, SMALLEST_READ);
      return count === buffer.length ? buffer : buffer.subarray(0, count);
    }
  }

  keep(): void {
    this.#buffer = undefined;
  }

  async write(bytes: Uint8Array, progress: () => void): Promise<void> {
    // A write may take less than it was given, and two under way at once would interleave.
    for (let at = 0; at < bytes.length;) {
      const count = await this.#connection.write(at === 0 ? bytes : bytes.subarray(at));
      if (count > 0) progress();
      at += count;
    }
  }

  async closeWrite(): Promise<void> {
    await this.#connection.closeWrite?.();
  }

  close(): void {
    try {
      this.#connection.close();
    } catch {
      // It was closed by somebody else already.
    }
  }

  ref(): void {
    this.#connection.ref?.();
  }

  unref(): void {
    this.#connection.unref?.();
  }
}

/** A link over web streams. */
class StreamsLink implements Link {
  readonly #reader: ReadableStreamDefaultReader<Uint8Array | string>;
  readonly #writer: WritableStreamDefaultWriter<Uint8Array>;
  #received = 0;
  readonly localAddr = NOWHERE;
  readonly remoteAddr = NOWHERE;

  constructor(transport: Exclude<Transport, Connection>) {
    this.#reader = transport.readable.getReader();
    this.#writer = transport.writable.getWriter();
    // Whether it ended is learnt from read and write; these two would otherwise be rejections nobody handles.
    this.#reader.closed.catch(() => {});
    this.#writer.closed.catch(() => {});
  }

  async read(): Promise<Uint8Array | null> {
    for (;;) {
      const { done, value } = await this.#reader.read();
      if (done) return null;
      if (!(value instanceof Uint8Array)) {
        throw new ProtocolError(this.#received, "bytes", `a chunk of type ${typeof value}`);
      }
      this.#received += value.length;
      if (value.length > 0) return value;
    }
  }

  keep(): void {}

  async write(bytes: Uint8Array, progress: () => void): Promise<void> {
    // A sink may hold on to its chunk for longer than the write takes, so it gets one of its own.
    await this.#writer.write(bytes.slice());
    progress();
  }

  async closeWrite(): Promise<void> {
    await this.#writer.close();
  }

  close(): void {
    this.#reader.cancel().catch(() => {});
    // A writer that was closed before takes no harm from this.
    this.#writer.abort().catch(() => {});
  }

  ref(): void {}

  unref(): void {}
}
