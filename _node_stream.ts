/**
 * A stream of Node, such as a `net.Socket` or a `tls.TLSSocket`, in the shape of a connection.
 *
 * @module
 */

import { deferred } from "./_deferred.ts";
import { EMPTY_BYTES } from "./frame.ts";
import type { Address, ChunkConnection, NodeStream } from "./transport.ts";

/** What is used of a stream, besides what its type lists. */
interface ReadWriteStream extends NodeStream {
  /** Returns the next bytes, at most `size`; `null` when there are none now. */
  read(size?: number): unknown;
  /** Writes bytes, and calls `callback` when they are written or cannot be. */
  write(chunk: Uint8Array, callback: (error?: Error | null) => void): unknown;
  /** Whether `end` was emitted. */
  readonly readableEnded?: boolean;
  /** Whether the stream was destroyed. */
  readonly destroyed?: boolean;
  /** The error with which the stream was destroyed. */
  readonly errored?: unknown;
}

// A larger write would hide from a session that it makes progress.
const MAX_WRITE_BYTES = 64 * 1024;

/** Whether a value has the shape of a stream of Node. */
export function isNodeStream(value: object): value is ReadWriteStream {
  return ["on", "read", "write", "end", "destroy"].every((name) =>
    typeof (value as Record<string, unknown>)[name] === "function"
  );
}

/** A connection over a stream of Node. */
export class NodeConnection implements ChunkConnection {
  readonly #stream: ReadWriteStream;
  // Only a socket has finished with the bytes of a write when its callback runs; another stream may pass them on.
  readonly #isSocket: boolean;
  #failure: unknown;
  #hasEnded: boolean;
  #hasClosed: boolean;
  // What `read` has left of a chunk.
  #rest: Uint8Array = EMPTY_BYTES;
  #changed: PromiseWithResolvers<void> | undefined;

  /**
   * Takes over a stream.
   *
   * @throws {TypeError} It is one of values other than bytes.
   */
  constructor(stream: ReadWriteStream) {
    if (stream.readableObjectMode) throw new TypeError("Cannot use a stream of Node in object mode");
    this.#stream = stream;
    this.#isSocket = typeof stream.setNoDelay === "function";
    // Events that were emitted before are not emitted again.
    const { readableEnded = false, destroyed = false, errored } = stream;
    this.#hasEnded = readableEnded;
    this.#hasClosed = destroyed;
    this.#failure = errored ?? undefined;
    stream.on("readable", () => this.#wake());
    stream.on("end", () => {
      this.#hasEnded = true;
      this.#wake();
    });
    stream.on("error", (error) => {
      this.#failure ??= error;
      this.#wake();
    });
    stream.on("close", () => {
      this.#hasClosed = true;
      this.#wake();
    });
  }

  get localAddr(): Address {
    return address(this.#stream.localAddress, this.#stream.localPort);
  }

  get remoteAddr(): Address {
    return address(this.#stream.remoteAddress, this.#stream.remotePort);
  }

  async readChunk(): Promise<Uint8Array | null> {
    for (;;) {
      const chunk = this.#stream.read();
      if (chunk instanceof Uint8Array) return chunk;
      if (chunk !== null) throw new TypeError(`Cannot use a stream of Node that reads a ${typeof chunk}, not bytes`);
      if (this.#failure !== undefined) throw this.#failure;
      if (this.#hasEnded) return null;
      if (this.#hasClosed) throw new Error("The stream of Node was destroyed before its end");
      await (this.#changed = deferred()).promise;
    }
  }

  /** Reads into a buffer, for a reader that has its own. */
  async read(p: Uint8Array): Promise<number | null> {
    if (this.#rest.length === 0) {
      const chunk = await this.readChunk();
      if (chunk === null) return null;
      this.#rest = chunk;
    }
    const part = this.#rest.subarray(0, p.length);
    this.#rest = this.#rest.subarray(part.length);
    p.set(part);
    return part.length;
  }

  write(p: Uint8Array): Promise<number> {
    const { promise, resolve, reject } = deferred<number>();
    const part = this.#isSocket ? p.subarray(0, MAX_WRITE_BYTES) : p.slice(0, MAX_WRITE_BYTES);
    this.#stream.write(part, (error) => error ? reject(error) : resolve(part.length));
    return promise;
  }

  closeWrite(): Promise<void> {
    const { promise, resolve, reject } = deferred<void>();
    this.#stream.end((error) => error ? reject(error) : resolve());
    return promise;
  }

  close(): void {
    this.#stream.destroy();
  }

  setNoDelay(on: boolean): void {
    this.#stream.setNoDelay?.(on);
  }

  ref(): void {
    this.#stream.ref?.();
  }

  unref(): void {
    this.#stream.unref?.();
  }

  #wake(): void {
    this.#changed?.resolve();
    this.#changed = undefined;
  }
}

function address(hostname = "", port = 0): Address {
  return { transport: "tcp", hostname, port };
}
