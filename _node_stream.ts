/**
 * A stream of Node, such as a `net.Socket` or a `tls.TLSSocket`, as a connection.
 *
 * @module
 */

import { deferred } from "./_deferred.ts";
import { EMPTY_BYTES } from "./frame.ts";
import type { Address, ChunkConnection, ChunkListener, Connection, NodeStream } from "./transport.ts";

/** A {@linkcode NodeStream} with the members that its public type omits. */
interface ReadWriteStream extends NodeStream {
  /** Starts `data` events again. */
  resume(): unknown;
  /** Stops `data` events. */
  pause(): unknown;
  /** Writes bytes. Calls `callback` when they are written, or with an error. */
  write(chunk: Uint8Array, callback: (error?: Error | null) => void): unknown;
  /** Whether `end` was emitted. */
  readonly readableEnded?: boolean;
  /** Whether the stream was destroyed. */
  readonly destroyed?: boolean;
  /** Whether `finish` was emitted. */
  readonly writableFinished?: boolean;
  /** Whether a stream of HTTP/2 was reset. It then emits `end` and `finish`, too. */
  readonly aborted?: boolean;
  /** The error with which the stream was destroyed. */
  readonly errored?: unknown;
}

// Maximum size of a write. Larger: a slow link (2 KB/s) makes no visible progress within the default timeout. Smaller:
// more writes.
const MAX_WRITE_BYTES = 64 * 1024;

/** Returns whether a value has the shape of a stream of Node. */
export function isNodeStream(value: object): value is ReadWriteStream {
  return ["on", "read", "write", "end", "destroy"].every((name) =>
    typeof (value as Record<string, unknown>)[name] === "function"
  );
}

/** Adapts a stream of Node; returns any other connection itself. */
export function connectionOf<C extends Connection>(connection: C | NodeStream): C | NodeConnection {
  return isNodeStream(connection) ? new NodeConnection(connection) : connection as C;
}

/** A connection over a stream of Node. */
export class NodeConnection implements ChunkConnection {
  readonly #stream: ReadWriteStream;
  // A socket no longer uses the bytes of a write when its callback runs. Another stream may still hold them, so it gets
  // copies.
  readonly #isSocket: boolean;
  #failure: unknown;
  #hasEnded: boolean;
  #hasClosed: boolean;
  // What `read` has left of a chunk.
  #rest: Uint8Array = EMPTY_BYTES;
  // The chunk that `readChunk` returns next. The stream is paused meanwhile.
  #held: Uint8Array | undefined;
  // Ends the wait of `readChunk`, while no chunk is held for it.
  #changed: PromiseWithResolvers<void> | undefined;
  #listener: ChunkListener | undefined;
  #lost: ((error: unknown) => void) | undefined;

  /**
   * Adds listeners to a stream, which the connection owns from now on.
   *
   * @throws {TypeError} `stream` is in object mode.
   */
  constructor(stream: ReadWriteStream) {
    if (stream.readableObjectMode) throw new TypeError("Cannot use a stream of Node in object mode");
    this.#stream = stream;
    this.#isSocket = typeof stream.setNoDelay === "function";
    // These events are not repeated for a stream that has already ended or was destroyed.
    const { readableEnded = false, writableFinished = true, destroyed = false, errored } = stream;
    // In Bun a socket that was destroyed before its end has ended, too.
    this.#hasEnded = readableEnded && (writableFinished || !destroyed);
    this.#hasClosed = destroyed;
    this.#failure = errored ?? undefined;
    stream.on("data", (chunk) => this.#receive(chunk));
    stream.on("end", () => {
      // Bun also emits it for a socket that is destroyed before its end.
      this.#hasEnded = !stream.destroyed;
      this.#wake();
    });
    stream.on("error", (error) => {
      this.#failure ??= error;
      this.#wake();
    });
    stream.on("close", () => {
      this.#hasClosed = true;
      this.#notifyLost();
      this.#wake();
    });
  }

  get localAddr(): Address {
    return address(this.#stream.localAddress, this.#stream.localPort);
  }

  get remoteAddr(): Address {
    return address(this.#stream.remoteAddress, this.#stream.remotePort);
  }

  listen(listener: ChunkListener): void {
    this.#listener = listener;
  }

  async readChunk(): Promise<Uint8Array | null> {
    for (;;) {
      const chunk = this.#held;
      this.#held = undefined;
      if (chunk !== undefined) return chunk;
      if (this.#failure !== undefined) throw this.#failure;
      if (this.#hasEnded) return null;
      if (this.#hasClosed) throw destroyed();
      this.#stream.resume();
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

  /** Calls `lost` when the stream is destroyed before both of its directions have ended. */
  watch(lost: (error: unknown) => void): void {
    this.#lost = lost;
    this.#notifyLost();
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

  // No event follows while a chunk is held.
  #receive(chunk: unknown): void {
    if (!(chunk instanceof Uint8Array)) {
      this.#failure ??= new TypeError(`Cannot use a stream of Node that reads a ${typeof chunk}, not bytes`);
    } else {
      const isAwaited = this.#changed !== undefined && this.#listener !== undefined;
      this.#held = isAwaited ? this.#listener!.tryReceive(chunk) : chunk;
      if (this.#held === undefined) return;
    }
    this.#stream.pause();
    this.#wake();
  }

  #notifyLost(): void {
    const { writableFinished = true, aborted = false } = this.#stream;
    const isComplete = this.#hasEnded && writableFinished && !aborted;
    if (this.#hasClosed && !isComplete) this.#lost?.(this.#failure ?? destroyed());
  }

  #wake(): void {
    this.#changed?.resolve();
    this.#changed = undefined;
  }
}

function destroyed(): Error {
  return new Error("The stream of Node was destroyed before its end");
}

function address(hostname = "", port = 0): Address {
  return { transport: "tcp", hostname, port };
}
