/**
 * A WebSocket as a connection.
 *
 * @module
 */

import { unbounded } from "./channel.ts";
import { clock } from "./_clock.ts";
import { DOUBLE } from "./_double.ts";
import { deferred } from "./_deferred.ts";
import { describeValue } from "./_describe.ts";
import { WebSocketClosedError } from "./errors.ts";
import { HEADER_LENGTH, MAX_PAYLOAD_LENGTH, ProtocolError } from "./frame.ts";
import { Gate } from "./_gate.ts";
import {
  type Address,
  type Connection,
  freeBuffer,
  MESSAGE_BYTES,
  type PushedConnection,
  type PushListener,
} from "./transport.ts";

/**
 * A WebSocket of any runtime, by shape: that of browsers, Deno, Node 22, Bun and workerd, and that of `npm:ws`.
 *
 * @example Sockets accepted by another server
 * ```ts
 * import { serve } from "@sluice/smux";
 * import { connectWebSocket, type WebSocketLike, WebSocketListener } from "@sluice/smux/websocket";
 * import { assertEquals } from "@std/assert";
 *
 * const sockets = new WebSocketListener();
 * await using _streams = serve(sockets, (stream) => stream.readable.pipeTo(stream.writable));
 *
 * // With npm:ws: new WebSocketServer({ port: 9000, maxPayload: 1024 * 1024 }).on("connection", onConnection)
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
  /** The type of received binary messages. The connection sets it to `"arraybuffer"`. */
  binaryType: string;
  /** 0: connecting; 1: open; 2: closing; 3: closed. */
  readonly readyState: number;
  /** Bytes queued by `send` and not yet sent. Without it (workerd, for example) writes never wait. */
  readonly bufferedAmount?: number;
  /** Queues a binary message. */
  send(data: Uint8Array<ArrayBuffer>): unknown;
  /** Starts the closing handshake. Queued messages are sent first. */
  close(code?: number, reason?: string): unknown;
  /** Adds a listener for `open`, `message`, `error` or `close`. */
  addEventListener(type: string, listener: (event: object) => void): unknown;
  /** Pauses reading from the network. Only sockets of `npm:ws` have it. */
  pause?(): unknown;
  /** Resumes reading from the network. */
  resume?(): unknown;
}

/**
 * Options of {@linkcode webSocketConnection}.
 *
 * @example At most 1 MiB of unread messages
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
   * Maximum bytes of unread messages; a message counts as 256 bytes more than it has. A WebSocket has no backpressure
   * in the receiving direction, so one that exceeds the limit is closed with code 1009, or 4009 if the runtime rejects
   * 1009. Default: 16 MiB. Pass the `maxReceiveBuffer` of the session, which holds up to as much again. The minimum is
   * one frame of the maximum size, about 64 KiB; smaller values count as that.
   */
  maxReceiveBuffer?: number | undefined;
  /** The address of the peer. */
  remoteAddr?: Address | undefined;
}

// Writes wait while more than this is queued in the socket. Larger: the socket is never idle; smaller: less delay for
// the next small frame.
const MAX_QUEUED_BYTES = 512 * 1024;
// While more than this is unread, the session reads without yielding. Larger: other sessions wait less; smaller: less
// memory.
const BEHIND_BYTES = 1024 * 1024;
// A longer message is divided, because the session decodes each at once. Larger: the event loop is blocked longer;
// smaller: more copying. Peers that send each frame as a message stay below.
const MAX_PART_BYTES = 128 * 1024;
// Added to the size of each unread message, so that tiny messages are limited, too.
const MESSAGE_OVERHEAD_BYTES = 256;
// A peer may send a frame of the maximum size in one message.
const MIN_RECEIVE_BUFFER = HEADER_LENGTH + MAX_PAYLOAD_LENGTH + MESSAGE_OVERHEAD_BYTES;
// No event reports that `bufferedAmount` has decreased, so it is polled: in each pass of the event loop at first,
// then at growing intervals.
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
// Added to a code that the runtime rejects: browsers and clients in Deno may send only 1000 and 3000 to 4999.
const PRIVATE_CODES = 3000;

/**
 * Returns the limit of unread bytes.
 *
 * @throws {RangeError} `maxReceiveBuffer` is out of bounds.
 */
export function resolveReceiveBuffer({ maxReceiveBuffer = DEFAULT_RECEIVE_BUFFER }: WebSocketOptions): number {
  if (maxReceiveBuffer > 0) return Math.max(maxReceiveBuffer, MIN_RECEIVE_BUFFER);
  throw new RangeError(`maxReceiveBuffer must be a number above 0, received ${describeValue(maxReceiveBuffer)}`);
}

/** A connection over a WebSocket. */
export class WebSocketConnection implements Connection, PushedConnection {
  readonly remoteAddr?: Address;
  readonly #socket: WebSocketLike;
  readonly #maxReceiveBuffer: number;
  // Whether the bytes of a message may change after `send`, as the standard allows.
  readonly #isCopying: boolean;
  readonly #messages = unbounded<Uint8Array>();
  // The unread part of the last message that `read` returned in part.
  #rest: Uint8Array | undefined;
  #isReading = false;
  #readQueue: Gate | undefined;
  // Whether `readChunk` waits, and no message was passed to it.
  #isAwaited = false;
  // Bytes of unread messages, overhead included.
  #queued = 0;
  #received = DOUBLE;
  #isPaused = false;
  // The code with which this end has closed the socket.
  #closedWith: number | undefined;
  #failure: Error | undefined;
  #lastError: unknown;
  readonly #opened = deferred<void>();
  // Resolves at the end of the socket, or of the session if there is one: a session first reads what has arrived.
  readonly #closed = deferred<void>();
  #listener: PushListener | undefined;
  #hasClosed = false;
  // Ends the pause of a waiting write.
  #wake: (() => void) | undefined;

  /**
   * Adds listeners to an open or connecting socket, which the connection owns from now on.
   *
   * @throws {TypeError} `socket` is closing or closed, or is not a WebSocket.
   * @throws {RangeError} `maxReceiveBuffer` is out of bounds.
   */
  constructor(socket: WebSocketLike, options: WebSocketOptions) {
    const maxReceiveBuffer = resolveReceiveBuffer(options);
    if (!(socket?.readyState <= OPEN)) {
      const received = `received ${socket?.readyState}`;
      throw new TypeError(
        `Cannot use a WebSocket that is not open or connecting: expected readyState 0 or 1, ${received}`,
      );
    }
    this.#received = 0;
    this.#isCopying = isCopying(socket);
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

  /** Resolves when the socket opens; rejects when it is closed first. */
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
    // Concurrent reads run one after the other, because each continues with the rest of the last message.
    if (this.#isReading) await (this.#readQueue ??= new Gate()).wait();
    this.#isReading = true;
    try {
      const message = this.#rest ?? await this.readChunk();
      if (message === null) return null;
      // `set` throws if the array was transferred meanwhile. The message is then left to the next read.
      this.#rest = message;
      const count = Math.min(p.length, message.length);
      p.set(message.subarray(0, count));
      this.#rest = count < message.length ? message.subarray(count) : undefined;
      return count;
    } finally {
      this.#isReading = this.#readQueue?.notifyOne() ?? false;
    }
  }

  /** Returns the next message, or what `read` has left of one. No `read` may be pending. */
  async readChunk(): Promise<Uint8Array | null> {
    const held = this.tryReadChunk();
    if (held !== undefined) return held;
    this.#isAwaited = true;
    try {
      return this.#dequeued(await this.#messages.receiver.receive());
    } catch {
      if (this.#failure !== undefined) throw this.#failure;
      return null;
    }
  }

  tryReadChunk(): Uint8Array | undefined {
    const rest = this.#rest;
    this.#rest = undefined;
    if (rest !== undefined) return rest;
    const next = this.#messages.receiver.tryReceive();
    return next.state === "ok" ? this.#dequeued(next.value) : undefined;
  }

  async write(p: Uint8Array): Promise<number> {
    await this.drained();
    return this.#send(p);
  }

  tryWrite(p: Uint8Array): number {
    let count = 0;
    while (count < p.length && this.#isOpen && !this.#isFull) count += this.#send(count > 0 ? p.subarray(count) : p);
    return count;
  }

  async drained(): Promise<void> {
    if (this.#socket.readyState === CONNECTING) await this.#opened.promise;
    if (this.#isFull) await this.#waitForRoom();
    // A closing socket drops messages.
    if (this.#isOpen) return;
    await this.#closed.promise;
    throw this.#failure ?? new WebSocketClosedError(NORMAL, "");
  }

  /** Sends what was written and closes both directions: a WebSocket has no half-close. */
  async closeWrite(): Promise<void> {
    if (this.#socket.readyState === CONNECTING) await this.#opened.promise;
    this.#close(NORMAL);
    await this.#closed.promise;
  }

  /** Without `closeWrite` before, the session was aborted or has failed: the other end must not take that for a clean end. */
  close(): void {
    this.#close(GOING_AWAY, "aborted");
    this.#messages.receiver.close();
    this.#closed.resolve();
  }

  #dequeued(message: Uint8Array): Uint8Array {
    this.#queued -= message.length + MESSAGE_OVERHEAD_BYTES;
    if (this.#queued < this.#maxReceiveBuffer / 2) this.#resume();
    return message;
  }

  get #isOpen(): boolean {
    return this.#socket.readyState === OPEN && this.#failure === undefined;
  }

  get #isFull(): boolean {
    return (this.#socket.bufferedAmount ?? 0) > MAX_QUEUED_BYTES && this.#socket.readyState === OPEN &&
      this.#closedWith === undefined;
  }

  /** Sends one message from the start of `p`, and returns its length. */
  #send(p: Uint8Array): number {
    const part = (p.length > MESSAGE_BYTES ? p.subarray(0, MESSAGE_BYTES) : p) as Uint8Array<ArrayBuffer>;
    this.#socket.send(this.#isCopying ? part : new Uint8Array(part));
    return part.length;
  }

  async #waitForRoom(): Promise<void> {
    const since = clock.now();
    while (this.#isFull) {
      const waited = clock.now() - since;
      if (waited < BUSY_WAIT_MS) await new Promise<void>((resolve) => void clock.pass(resolve));
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
    // Deno ignores `close` on a server's socket that is not open yet, so it is repeated.
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
    // Copies a Uint8Array, also a Buffer of Node, whose `slice` returns a view. An ArrayBuffer belongs to the connection.
    let chunk: Uint8Array | undefined = new Uint8Array(data);
    this.#received += chunk.length;
    if (chunk.length === 0) return;
    if (
      this.#isAwaited && this.#listener !== undefined &&
      chunk.length <= Math.min(MAX_PART_BYTES, this.#maxReceiveBuffer)
    ) {
      chunk = this.#listener.tryReceive(chunk);
    }
    if (chunk !== undefined) this.#hold(chunk);
  }

  #hold(chunk: Uint8Array): void {
    this.#isAwaited = false;
    const cost = chunk.length + MESSAGE_OVERHEAD_BYTES;
    if (this.#queued + cost > this.#maxReceiveBuffer) {
      const message = `More than ${this.#maxReceiveBuffer} bytes arrived before they were read`;
      this.#fail(new WebSocketClosedError(TOO_BIG, message), TOO_BIG, "maxReceiveBuffer exceeded");
      return this.#listener?.overflowed(this.#failure!);
    }
    if (chunk.length <= MAX_PART_BYTES) this.#enqueue(chunk);
    else this.#divide(chunk);
    if (this.isBehind) this.#listener?.fellBehind();
    if (this.#socket.pause !== undefined && !this.#isPaused && this.#queued >= this.#maxReceiveBuffer / 2) {
      this.#isPaused = true;
      this.#socket.pause();
    }
  }

  #enqueue(chunk: Uint8Array): void {
    this.#queued += chunk.length + MESSAGE_OVERHEAD_BYTES;
    this.#messages.sender.trySend(chunk);
  }

  /** Enqueues copies of the parts, because the session frees each separately. */
  #divide(chunk: Uint8Array): void {
    for (let at = 0; at < chunk.length; at += MAX_PART_BYTES) this.#enqueue(chunk.slice(at, at + MAX_PART_BYTES));
    freeBuffer(chunk);
  }

  #resume(): void {
    if (!this.#isPaused) return;
    this.#isPaused = false;
    this.#socket.resume?.();
  }

  /** Ends the connection with an error, and closes the socket with a code and a reason. */
  #fail(error: Error, code: number, reason: string): void {
    this.#failure = error;
    this.#close(code, reason);
    this.#endMessages();
  }

  // A failed write ends the session. So that the session first reads what arrived before, writes wait until it ends.
  #endMessages(): void {
    this.#messages.sender.close();
    if (this.#listener === undefined) this.#closed.resolve();
  }

  #failed({ error, message }: { error?: unknown; message?: string }): void {
    this.#lastError = error ?? (message ? new Error(message) : undefined);
    // The close event has the code, but not every runtime emits it after an error: wait two passes for it.
    clock.pass(() => clock.pass(() => this.#end(ABNORMAL, "")));
  }

  #end(code: number, reason: string): void {
    if (this.#hasClosed) return;
    this.#hasClosed = true;
    const isOwnEnd = this.#closedWith !== undefined &&
      (code === this.#closedWith || code === NORMAL || code === NO_STATUS || code === ABNORMAL || code === 0);
    if (code !== NORMAL && code !== NO_STATUS && !isOwnEnd) {
      const cause = this.#lastError;
      // Deno reports 0 instead of 1006.
      this.#failure ??= new WebSocketClosedError(code || ABNORMAL, reason, cause === undefined ? undefined : { cause });
    }
    this.#opened.reject(this.#failure ?? new WebSocketClosedError(code, reason));
    this.#wake?.();
    this.#endMessages();
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
    // A paused socket does not receive the close frame of the peer.
    this.#resume();
  }
}

/**
 * Whether `send` copies its bytes before it returns. The sockets of npm:ws (which can pause, and may be the global one)
 * and of workerd (which lacks `bufferedAmount`) do not. That of Node, by undici, copies, but reads the length again to
 * reduce `bufferedAmount`: with an array that was detached meanwhile it would stay too large for ever.
 */
function isCopying(socket: WebSocketLike): boolean {
  const { WebSocket, process } = globalThis as {
    WebSocket?: new (url: string) => object;
    process?: { versions?: { undici?: string } };
  };
  return WebSocket !== undefined && socket instanceof WebSocket && socket.bufferedAmount !== undefined &&
    socket.pause === undefined && process?.versions?.undici === undefined;
}
