/**
 * A stream as a socket of Node, for what expects a `net.Socket`: `http.request`, `http.Agent`, an HTTP server, and
 * packages such as `pg`, `postgres`, `ws` and `undici`.
 *
 * @module
 */
import { Duplex } from "node:stream";
import { clearTimeout, setTimeout } from "node:timers";
import type { Address, Stream } from "@sluice/smux";

/**
 * A stream with the members of a `net.Socket` in use. As there, the socket ends when its peer has ended, and `timeout`
 * is emitted when nothing was read or written for the time of `setTimeout`. Destroying it closes the stream.
 *
 * @example
 * ```ts ignore
 * const agent = new Agent({ keepAlive: true }); // of node:http
 * agent.createConnection = () => new StreamSocket(session.openStream());
 * const pool = new Pool({ stream: () => new StreamSocket(session.openStream()) }); // of pg
 * web.emit("connection", new StreamSocket(stream)); // an HTTP server
 * ```
 */
export class StreamSocket extends Duplex {
  /** True until the stream is open; then `connect` is emitted. */
  connecting = true;
  /** The time of `setTimeout`. */
  timeout = 0;
  readonly #opening: Promise<Stream>;
  #stream: Stream | undefined;
  #reader: ReadableStreamDefaultReader<Uint8Array> | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;

  /** @param stream The stream, which may still be opening. */
  constructor(stream: Stream | Promise<Stream>) {
    super({ allowHalfOpen: false });
    this.#opening = Promise.resolve(stream);
    // Reported by `_construct`, which is called later.
    this.#opening.catch(() => {});
  }

  override async _construct(callback: (error?: Error) => void): Promise<void> {
    try {
      this.#stream = await this.#opening;
    } catch (error) {
      return callback(error as Error);
    } finally {
      this.connecting = false;
    }
    this.#reader = this.#stream.readable.getReader();
    callback();
    if (!this.destroyed) this.emit("connect");
  }

  override async _read(): Promise<void> {
    try {
      const { done, value } = await this.#reader!.read();
      this.#timer?.refresh();
      this.push(done ? null : value);
    } catch (error) {
      this.destroy(error as Error);
    }
  }

  override _write(chunk: Uint8Array, _encoding: string, callback: (error?: Error) => void): void {
    this.#timer?.refresh();
    this.#stream!.write(chunk).then(() => callback(), callback);
  }

  override _final(callback: (error?: Error) => void): void {
    this.#stream!.closeWrite().then(() => callback(), callback);
  }

  override _destroy(error: Error | null, callback: (error: Error | null) => void): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#stream?.close();
    callback(error);
  }

  /** Does not connect, because the stream does; only emits `connect` later, if it was emitted before. */
  connect(): this {
    if (!this.connecting) queueMicrotask(() => this.emit("connect"));
    return this;
  }

  /** Emits `timeout` after this many milliseconds without data; 0 is never. */
  setTimeout(delay: number, callback?: () => void): this {
    clearTimeout(this.#timer);
    this.timeout = delay;
    this.#timer = delay > 0 && !this.destroyed ? setTimeout(() => this.emit("timeout"), delay).unref() : undefined;
    if (callback !== undefined && delay > 0) this.once("timeout", callback);
    else if (callback !== undefined) this.off("timeout", callback);
    return this;
  }

  /** Has no effect: the session coalesces writes, and sends keepalives. */
  setNoDelay(): this {
    return this;
  }

  /** Has no effect: the session coalesces writes, and sends keepalives. */
  setKeepAlive(): this {
    return this;
  }

  /** Has no effect: use `ref` of the session. */
  ref(): this {
    return this;
  }

  /** Has no effect: use `unref` of the session. */
  unref(): this {
    return this;
  }

  /** The state, as a `net.Socket` names it. */
  get readyState(): "opening" | "open" | "readOnly" | "writeOnly" | "closed" {
    if (this.connecting) return "opening";
    if (this.readable) return this.writable ? "open" : "readOnly";
    return this.writable ? "writeOnly" : "closed";
  }

  /** The host at the other end of the session's connection. */
  get remoteAddress(): string | undefined {
    return hostAndPort(this.#stream?.remoteAddr)?.hostname;
  }

  /** The port at the other end of the session's connection. */
  get remotePort(): number | undefined {
    return hostAndPort(this.#stream?.remoteAddr)?.port;
  }

  /** The host at this end of the session's connection. */
  get localAddress(): string | undefined {
    return hostAndPort(this.#stream?.localAddr)?.hostname;
  }

  /** The port at this end of the session's connection. */
  get localPort(): number | undefined {
    return hostAndPort(this.#stream?.localAddr)?.port;
  }
}

/** Returns an address that has a host, if the transport has addresses. */
function hostAndPort(address: Address | undefined) {
  return address !== undefined && "hostname" in address && address.hostname !== "" ? address : undefined;
}
