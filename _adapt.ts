/**
 * Adapts each kind of transport to the interface of the session.
 *
 * @module
 */

import { describeType } from "./_describe.ts";
import { DOUBLE } from "./_double.ts";
import { EMPTY_BYTES, ProtocolError } from "./frame.ts";
import { isNodeStream, NodeConnection } from "./_node_stream.ts";
import {
  type Address,
  type ChunkConnection,
  closeQuietly,
  type Connection,
  KEEP,
  type KeepingConnection,
  type Kept,
  type Link,
  MAX_SOCKET_WRITE_BYTES,
  type NodeStream,
  type PushedConnection,
  type PushListener,
  ReadBuffer,
  type Transport,
} from "./transport.ts";

const NO_ADDRESS: Address = { transport: "tcp", hostname: "", port: 0 };

// Minimum size of a read. Larger: more memory per idle session.
const MIN_READ_BYTES = 8 * 1024;
/**
 * Maximum size of a read for a single reader. Larger: no faster on loopback. Below 64 KiB, so that a frame of the
 * default 32 KiB is more than half of the buffer and can be kept as a view.
 */
export const MAX_READ_BYTES = 63 * 1024;
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
 * @throws {TypeError} `transport` is not a connection, a pair of web streams or a stream of Node.
 */
export function adapt(transport: Transport): Link {
  if (typeof transport === "object" && transport !== null) {
    if (isNodeStream(transport)) return new ChunkLink(new NodeConnection(transport));
    if (isConnection(transport)) {
      if ("readChunk" in transport) return new ChunkLink(transport as ChunkConnection);
      return KEEP in transport ? new KeepingLink(transport as KeepingConnection) : new ConnectionLink(transport);
    }
    if (isStreams(transport)) return new StreamsLink(transport);
  }
  throw new TypeError(
    "Cannot use transport: expected read, write and close, or readable and writable streams, or a stream of Node, " +
      `received ${describeType(transport)}`,
  );
}

function isConnection(transport: Transport): transport is Connection {
  return ["read", "write", "close"].every((name) => typeof (transport as never)[name] === "function");
}

function isStreams(transport: Transport): transport is Streams {
  const { readable, writable } = transport as Partial<Record<"readable" | "writable", object | null>>;
  return typeof readable === "object" && readable !== null && "getReader" in readable &&
    typeof writable === "object" && writable !== null && "getWriter" in writable;
}

/** Link over a {@linkcode Connection}. */
class ConnectionLink implements Link {
  readonly #connection: Connection;
  readonly pushed = undefined;
  readonly headroom: number = 0;
  buffer: ReadBuffer = new ReadBuffer(EMPTY_BYTES);
  #size = MIN_READ_BYTES;
  #wasShort = false;

  constructor(connection: Connection) {
    this.#connection = connection;
    try {
      // The writer coalesces frames; a small one must not wait for the peer's acknowledgement, too.
      connection.setNoDelay?.(true);
    } catch {
      // A dead connection fails its first read.
    }
  }

  get isSuspended(): boolean {
    return this.#connection.isSuspended ?? false;
  }

  get resumptions(): number {
    return this.#connection.resumptions ?? 0;
  }

  get localAddr(): Address {
    return this.#connection.localAddr ?? NO_ADDRESS;
  }

  get remoteAddr(): Address {
    return this.#connection.remoteAddr ?? NO_ADDRESS;
  }

  read(last: number, isShared: boolean): Promise<number | null> {
    const isShort = last < this.#size / 4;
    if (last === this.#size) this.#size = Math.min(last * 2, isShared ? MAX_SHARED_READ_BYTES : MAX_READ_BYTES);
    // Not after one short read, because a batch of frames may end with one, and a new buffer costs as much as a read.
    else if (isShort && this.#wasShort) this.#size = Math.max(this.#size / 2, MIN_READ_BYTES);
    this.#wasShort = isShort;
    if (this.buffer.bytes.length !== this.#size || this.buffer.isRetained) {
      this.buffer.release();
      this.buffer = new ReadBuffer(new Uint8Array(this.#size));
    }
    return this.#connection.read(this.buffer.bytes);
  }

  write(bytes: Uint8Array): Promise<number> {
    const isLarge = bytes.length > MAX_SOCKET_WRITE_BYTES;
    return this.#connection.write(isLarge ? bytes.subarray(0, MAX_SOCKET_WRITE_BYTES) : bytes);
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

/** Link over a {@linkcode KeepingConnection}. */
class KeepingLink extends ConnectionLink {
  readonly #connection: KeepingConnection;
  override readonly headroom: number;

  constructor(connection: KeepingConnection) {
    super(connection);
    this.#connection = connection;
    this.headroom = connection.headroom;
  }

  keep(memory: Uint8Array, end: number): Kept | undefined {
    return this.#connection[KEEP](memory, end);
  }
}

type Streams = Exclude<Transport, Connection | NodeStream>;

/** Link over a {@linkcode ChunkConnection}. */
class ChunkLink implements Link {
  readonly pushed: PushedConnection | undefined;
  readonly headroom = 0;
  buffer: ReadBuffer = new ReadBuffer(EMPTY_BYTES, false);
  readonly #connection: ChunkConnection | PushedConnection;

  constructor(connection: ChunkConnection | PushedConnection) {
    this.#connection = connection;
    this.pushed = "isBehind" in connection ? connection as PushedConnection : undefined;
    connection.setNoDelay?.(true);
  }

  get isSuspended(): boolean {
    return this.#connection.isSuspended ?? false;
  }

  get resumptions(): number {
    return this.#connection.resumptions ?? 0;
  }

  get localAddr(): Address {
    return this.#connection.localAddr ?? NO_ADDRESS;
  }

  get remoteAddr(): Address {
    return this.#connection.remoteAddr ?? NO_ADDRESS;
  }

  async read(): Promise<number | null> {
    const bytes = await this.#connection.readChunk();
    return bytes === null ? null : this.hold(bytes);
  }

  tryRead(): number {
    const bytes = this.pushed?.tryReadChunk();
    return bytes === undefined ? 0 : this.hold(bytes);
  }

  listen(listener: PushListener): void {
    this.#connection.listen?.(listener);
  }

  // The chunks of other connections may be parts of a larger array.
  hold(bytes: Uint8Array): number {
    this.buffer.release();
    this.buffer = new ReadBuffer(bytes, this.pushed !== undefined);
    return bytes.length;
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
    this.hold(EMPTY_BYTES);
  }

  ref(): void {
    this.#connection.ref?.();
  }

  unref(): void {
    this.#connection.unref?.();
  }
}

/** Link over a pair of web streams. */
class StreamsLink implements Link {
  readonly #reader: ReturnType<Streams["readable"]["getReader"]>;
  readonly #writer: ReturnType<Streams["writable"]["getWriter"]>;
  buffer: ReadBuffer = new ReadBuffer(EMPTY_BYTES, false);
  // The unread part of a chunk. Chunks have no maximum size (a WebSocket message, for example), so they are read in
  // parts.
  #rest: Uint8Array = EMPTY_BYTES;
  #received = DOUBLE;
  readonly localAddr = NO_ADDRESS;
  readonly remoteAddr = NO_ADDRESS;
  readonly pushed = undefined;
  readonly headroom = 0;
  readonly isSuspended = false;
  readonly resumptions = 0;

  constructor(transport: Streams) {
    this.#received = 0;
    this.#reader = transport.readable.getReader();
    try {
      this.#writer = transport.writable.getWriter();
    } catch (error) {
      (this.#reader as Partial<ReadableStreamDefaultReader>).releaseLock?.();
      throw error;
    }
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
    // The other end of a TransformStream would reject with `undefined` otherwise.
    const reason = new DOMException("The session has ended", "AbortError");
    this.#reader.cancel(reason).catch(() => {});
    // Has no effect on a closed writer.
    this.#writer.abort(reason).catch(() => {});
  }

  free(): void {}

  ref(): void {}

  unref(): void {}
}
