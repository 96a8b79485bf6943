/**
 * A WebSocket in the shape of a connection.
 *
 * @module
 */

import { unbounded } from "./channel.ts";
import { clock } from "./_clock.ts";
import { deferred } from "./_deferred.ts";
import { WebSocketClosedError } from "./errors.ts";
import { HEADER_LENGTH, MAX_PAYLOAD_LENGTH, ProtocolError } from "./frame.ts";
import { Gate } from "./_gate.ts";
import type { Address, Connection, PushedConnection, PushListener } from "./transport.ts";

/**
 * A WebSocket, by shape: the one of browsers, Deno, Node 22, Bun and workerd, and that of `npm:ws`.
 *
 * @example Sockets that another server has accepted
 * ```ts
 * import { serve } from "@sluice/smux";
 * import { connectWebSocket, type WebSocketLike, WebSocketListener } from "@sluice/smux/websocket";
 * import { assertEquals } from "@std/assert";
 *
 * const sockets = new WebSocketListener();
 * await using _streams = serve(sockets, (stream) => stream.readable.pipeTo(stream.writable));
 *
 * // As with npm:ws: server.on("connection", onConnection)
 * const onConnection = (socket: WebSocketLike) => sockets.add(socket);
 * const server = Deno.serve({ port: 0, onListen() {} }, (request) => {
 *   const { socket, response } = Deno.upgradeWebSocket(request);
 *   onConnection(socket);
 *   return response;
 * });
 *
 * const session = await connectWebSocket(`ws://localhost:${server.addr.port}`);
 * const stream = await session.openStream();
 * await stream.write(new Uint8Array(3));
 * assertEquals(await stream.read(new Uint8Array(8)), 3);
 * stream.close();
 * await session.close();
 * await server.shutdown();
 * ```
 */
export interface WebSocketLike {
  /** Set to `"arraybuffer"`. */
  binaryType: string;
  /** 0 connecting, 1 open, 2 closing, 3 closed. */
  readonly readyState: number;
  /** Bytes that `send` has queued. Where it is missing, as in workerd, writes never wait. */
  readonly bufferedAmount?: number;
  /** Sends a message. */
  send(data: Uint8Array<ArrayBuffer>): unknown;
  /** Starts to close. */
  close(code?: number, reason?: string): unknown;
  /** Listens to events: `open`, `message`, `error`, `close`. */
  addEventListener(type: string, listener: (event: object) => void): unknown;
  /** Stops reading from the network, where a socket can: that of `npm:ws`. */
  pause?(): unknown;
  /** Reads from the network again. */
  resume?(): unknown;
}

/**
 * Options of {@linkcode webSocketConnection}.
 *
 * @example A page that receives little
 * ```ts
 * import { Session } from "@sluice/smux";
 * import { upgradeWebSocket, webSocketConnection, type WebSocketOptions } from "@sluice/smux/websocket";
 * import { assertEquals } from "@std/assert";
 *
 * const server = Deno.serve({ port: 0, onListen() {} }, (request) => upgradeWebSocket(request, () => {}));
 * const options: WebSocketOptions = { maxReceiveBuffer: 1024 * 1024 };
 * const socket = new WebSocket(`ws://localhost:${server.addr.port}`);
 * const session = Session.client(webSocketConnection(socket, options), options);
 * const stream = await session.openStream();
 * assertEquals(await stream.read(new Uint8Array(1)), null); // the server ends each stream at once
 * await session.close();
 * await server.shutdown();
 * ```
 */
export interface WebSocketOptions {
  /**
   * Bytes of messages that may wait to be read. A WebSocket cannot be asked to wait, so when more arrive it is closed with
   * code 1009, or 4009 where the runtime does not allow that. Default 16 MiB. Pass a session's `maxReceiveBuffer`: the
   * session holds as much again. Less than 64 KiB counts as 64 KiB, so that any frame fits.
   */
  maxReceiveBuffer?: number | undefined;
  /** Where the other end is, if that is known. */
  remoteAddr?: Address | undefined;
}

/** The most in one message. Larger: less cost for each byte; smaller: others get their turn earlier. It is one read of a session. */
const MAX_MESSAGE_BYTES = 63 * 1024;
// Writes wait while more than this is queued. Larger: the socket never idles; smaller: less delay for the next small frame.
const MAX_QUEUED_BYTES = 512 * 1024;
// Reading does not pause while more than this is held, and reads as much at once. Larger: other sessions wait less;
// smaller: fewer messages are held.
const BEHIND_BYTES = 1024 * 1024;
// What a message costs beside its bytes, so that many tiny ones are bounded, too.
const MESSAGE_OVERHEAD_BYTES = 256;
// Any smux peer may send its longest frame in one message.
const MIN_RECEIVE_BUFFER = HEADER_LENGTH + MAX_PAYLOAD_LENGTH + MESSAGE_OVERHEAD_BYTES;
// No event reports that the queue has become shorter. It is looked at after each turn of the event loop at first, then less
// and less often.
const BUSY_WAIT_MS = 4;
const MAX_PAUSE_MS = 16;
const DEFAULT_RECEIVE_BUFFER = 16 * 1024 * 1024;

const [CONNECTING, OPEN] = [0, 1];
const NORMAL = 1000;
const GOING_AWAY = 1001;
const UNSUPPORTED = 1003;
const NO_STATUS = 1005;
const ABNORMAL = 1006;
const TOO_BIG = 1009;
// A page and Deno may send 1000 and 3000 to 4999 only.
const PRIVATE_CODES = 3000;

/**
 * Returns the bound of the messages that wait to be read.
 *
 * @throws {RangeError} It is out of bounds.
 */
export function resolveReceiveBuffer({ maxReceiveBuffer = DEFAULT_RECEIVE_BUFFER }: WebSocketOptions): number {
  if (maxReceiveBuffer > 0) return Math.max(maxReceiveBuffer, MIN_RECEIVE_BUFFER);
  throw new RangeError(`maxReceiveBuffer must be a number above 0, received ${maxReceiveBuffer}`);
}

/** A connection over a WebSocket. */
export class WebSocketConnection implements Connection, PushedConnection {
  readonly remoteAddr?: Address;
  readonly #socket: WebSocketLike;
  readonly #maxReceiveBuffer: number;
  // Whether `send` has copied its bytes when it returns, as the standard demands. The socket of npm:ws, which can pause,
  // does not, also where it is the global one, nor does that of workerd, which lacks `bufferedAmount`.
  readonly #isCopying: boolean;
  readonly #messages = unbounded<Uint8Array>();
  // The unread part of the message that `read` has begun.
  #rest: Uint8Array | undefined;
  #isReading = false;
  #readQueue: Gate | undefined;
  // Bytes that wait to be read, and the overhead of their messages.
  #queued = 0;
  #received = 0;
  #isPaused = false;
  // The code with which this end has closed the socket.
  #closedWith: number | undefined;
  #failure: Error | undefined;
  #lastError: unknown;
  readonly #opened = deferred<void>();
  readonly #closed = deferred<void>();
  #listener: PushListener | undefined;
  #hasClosed = false;
  // Ends the pause of a write.
  #wake: (() => void) | undefined;

  /** Takes over an open or connecting socket. */
  constructor(socket: WebSocketLike, options: WebSocketOptions) {
    const maxReceiveBuffer = resolveReceiveBuffer(options);
    if (!(socket?.readyState <= OPEN)) {
      throw new TypeError("Cannot use a WebSocket that is not open or connecting");
    }
    const { WebSocket } = globalThis as { WebSocket?: new (url: string) => object };
    this.#isCopying = WebSocket !== undefined && socket instanceof WebSocket && socket.bufferedAmount !== undefined &&
      socket.pause === undefined;
    this.#socket = socket;
    this.#maxReceiveBuffer = maxReceiveBuffer;
    if (options.remoteAddr !== undefined) this.remoteAddr = options.remoteAddr;
    this.#opened.promise.catch(() => {});
    socket.binaryType = "arraybuffer";
    socket.addEventListener("open", () => this.#open());
    socket.addEventListener("message", ({ data }: { data?: unknown }) => this.#receive(data));
    socket.addEventListener("error", (event: { error?: unknown; message?: string }) => this.#failed(event));
    socket.addEventListener(
      "close",
      ({ code = ABNORMAL, reason = "" }: { code?: number; reason?: string }) => this.#end(code, reason),
    );
    if (socket.readyState === OPEN) this.#opened.resolve();
  }

  /** Settles when the socket is open, rejects when it never will be. */
  get opened(): Promise<void> {
    return this.#opened.promise;
  }

  get isBehind(): boolean {
    return this.#queued > BEHIND_BYTES;
  }

  listen(listener: PushListener): void {
    this.#listener = listener;
  }

  async read(p: Uint8Array): Promise<number | null> {
    // One at a time: the rest of a message is for the next read.
    if (this.#isReading) await (this.#readQueue ??= new Gate()).wait();
    this.#isReading = true;
    try {
      const message = this.#rest ?? await this.readChunk();
      if (message === null) return null;
      const count = Math.min(p.length, message.length);
      p.set(message.subarray(0, count));
      this.#rest = count < message.length ? message.subarray(count) : undefined;
      return count;
    } finally {
      this.#isReading = this.#readQueue?.notifyOne() ?? false;
    }
  }

  /** Not together with `read`. */
  async readChunk(): Promise<Uint8Array | null> {
    const first = await this.#receiveMessage();
    if (first === null) return null;
    const messages = [first];
    let length = first.length;
    // Several at once: each read takes the session more microtasks than Deno needs for a message.
    while (this.isBehind && length < BEHIND_BYTES) {
      const next = this.#messages.receiver.tryReceive();
      if (next.state !== "ok") break;
      messages.push(next.value);
      length += next.value.length;
    }
    this.#queued -= length + messages.length * MESSAGE_OVERHEAD_BYTES;
    if (this.#queued < this.#maxReceiveBuffer / 2) this.#resume();
    return messages.length === 1 ? first : concatenate(messages, length);
  }

  async write(p: Uint8Array): Promise<number> {
    if (this.#socket.readyState === CONNECTING) await this.#opened.promise;
    if (this.#isFull) await this.#drained();
    if (this.#failure !== undefined) throw this.#failure;
    // The socket drops what is sent from then on.
    if (this.#socket.readyState > OPEN) {
      await this.#closed.promise;
      throw this.#failure ?? new WebSocketClosedError(NORMAL, "");
    }
    const part = p.subarray(0, MAX_MESSAGE_BYTES) as Uint8Array<ArrayBuffer>;
    this.#socket.send(this.#isCopying ? part : part.slice());
    return part.length;
  }

  /** A WebSocket cannot end one direction: this closes it behind what was written. */
  async closeWrite(): Promise<void> {
    if (this.#socket.readyState === CONNECTING) await this.#opened.promise;
    this.#close(NORMAL);
    await this.#closed.promise;
  }

  /** Without `closeWrite` before, the session was aborted or has failed: the other end must not take that for a clean end. */
  close(): void {
    this.#close(GOING_AWAY, "aborted");
    this.#messages.receiver.close();
  }

  async #receiveMessage(): Promise<Uint8Array | null> {
    const { receiver } = this.#messages;
    const received = receiver.tryReceive();
    if (received.state === "ok") return received.value;
    try {
      return await receiver.receive();
    } catch {
      if (this.#failure !== undefined) throw this.#failure;
      return null;
    }
  }

  get #isFull(): boolean {
    return (this.#socket.bufferedAmount ?? 0) > MAX_QUEUED_BYTES && this.#socket.readyState === OPEN &&
      this.#closedWith === undefined;
  }

  async #drained(): Promise<void> {
    const since = clock.now();
    while (this.#isFull) {
      const waited = clock.now() - since;
      if (waited < BUSY_WAIT_MS) await clock.yieldToEventLoop();
      else await this.#pause(Math.min(waited / 4, MAX_PAUSE_MS));
    }
  }

  async #pause(milliseconds: number): Promise<void> {
    const { promise, resolve } = deferred<void>();
    this.#wake = resolve;
    const timer = clock.sleep(resolve, milliseconds);
    await promise;
    clock.clearTimer(timer);
  }

  #open(): void {
    // Deno opens a server's socket that was closed before, and the client sees no close.
    if (this.#closedWith !== undefined) this.#socket.close(this.#closedWith);
    this.#opened.resolve();
  }

  #receive(data: unknown): void {
    if (this.#failure !== undefined || this.#closedWith !== undefined || this.#hasClosed) return;
    if (!(data instanceof ArrayBuffer || data instanceof Uint8Array)) {
      const received = typeof data === "string" ? "text" : Object.prototype.toString.call(data);
      this.#fail(
        new ProtocolError(this.#received, "a binary message", received),
        UNSUPPORTED,
        "expected binary messages",
      );
      return;
    }
    const chunk = data instanceof Uint8Array ? data : new Uint8Array(data);
    this.#received += chunk.length;
    if (chunk.length === 0) return;
    const cost = chunk.length + MESSAGE_OVERHEAD_BYTES;
    if (this.#queued + cost > this.#maxReceiveBuffer) {
      const message = `More than ${this.#maxReceiveBuffer} bytes arrived before they were read`;
      this.#fail(new WebSocketClosedError(TOO_BIG, message), TOO_BIG, "maxReceiveBuffer exceeded");
      return this.#listener?.overflowed(this.#failure!);
    }
    this.#queued += cost;
    this.#messages.sender.trySend(chunk);
    if (this.isBehind) this.#listener?.fellBehind();
    if (this.#socket.pause !== undefined && !this.#isPaused && this.#queued >= this.#maxReceiveBuffer / 2) {
      this.#isPaused = true;
      this.#socket.pause();
    }
  }

  #resume(): void {
    if (!this.#isPaused) return;
    this.#isPaused = false;
    this.#socket.resume?.();
  }

  /** Fails here, and closes the socket for it. */
  #fail(error: Error, code: number, reason: string): void {
    this.#failure = error;
    this.#close(code, reason);
    this.#messages.sender.close();
  }

  #failed({ error, message }: { error?: unknown; message?: string }): void {
    this.#lastError = error ?? (message ? new Error(message) : undefined);
    // The code comes with `close`, which follows; not all runtimes send it after each error.
    clock.pass(() => clock.pass(() => this.#end(ABNORMAL, "")));
  }

  #end(code: number, reason: string): void {
    if (this.#hasClosed) return;
    this.#hasClosed = true;
    const isOwnEnd = this.#closedWith !== undefined &&
      (code === this.#closedWith || code === NORMAL || code === NO_STATUS || code === ABNORMAL || code === 0);
    if (code !== NORMAL && code !== NO_STATUS && !isOwnEnd) {
      const cause = this.#lastError;
      // Deno reports 0 where the standard has 1006.
      this.#failure ??= new WebSocketClosedError(code || ABNORMAL, reason, cause === undefined ? undefined : { cause });
    }
    this.#opened.reject(this.#failure ?? new WebSocketClosedError(code, reason));
    this.#closed.resolve();
    this.#wake?.();
    this.#messages.sender.close();
  }

  #close(code: number, reason = ""): void {
    if (this.#closedWith !== undefined) return;
    this.#closedWith = code;
    this.#wake?.();
    try {
      this.#socket.close(code, reason);
    } catch {
      this.#closedWith = PRIVATE_CODES + code;
      this.#socket.close(this.#closedWith, reason);
    }
    // While it is paused, it does not read the close frame of the other end.
    this.#resume();
  }
}

function concatenate(messages: Uint8Array[], length: number): Uint8Array {
  const all = new Uint8Array(length);
  let at = 0;
  for (const message of messages) {
    all.set(message, at);
    at += message.length;
  }
  return all;
}
