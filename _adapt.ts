/**
 * Brings every kind of transport into the shape that a session sees.
 *
 * @module
 */

import { EMPTY_BYTES, ProtocolError } from "./frame.ts";
import { isNodeStream, NodeConnection } from "./_node_stream.ts";
import {
  type Address,
  closeQuietly,
  type Connection,
  type Link,
  type NodeStream,
  ReadBuffer,
  type Transport,
} from "./transport.ts";

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
    if (isNodeStream(transport)) return new ConnectionLink(new NodeConnection(transport));
    if ("read" in transport && "write" in transport && typeof transport.read === "function" && "close" in transport) {
      return new ConnectionLink(transport);
    }
    if (hasReader(transport)) return new StreamsLink(transport);
  }
  throw new TypeError(
    "Cannot use transport: expected read, write and close, or readable and writable streams, or a stream of Node",
  );
}

function hasReader(transport: object): transport is Streams {
  const { readable, writable } = transport as { readable?: object; writable?: object };
  return typeof readable === "object" && "getReader" in readable && typeof writable === "object" &&
    "getWriter" in writable;
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

  get failed(): Promise<never> | undefined {
    return this.#connection.failed;
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

type Streams = Exclude<Transport, Connection | NodeStream>;

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
  readonly failed = undefined;

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
