/**
 * A WebSocket as a connection, over any connection. See docs/decisions/014-own-websocket-framing.md.
 *
 * @module
 */

import type { Address, Connection, DuplexConnection } from "../mod.ts";
import { WebSocketClosedError } from "../websocket.ts";
import { printable, writeAll } from "./bytes.ts";
import { errorText } from "./errors.ts";
import { setDeadline } from "./wait.ts";
import {
  ABNORMAL,
  BINARY,
  CLOSE,
  encodeClose,
  encodeFrame,
  type End,
  FrameDecoder,
  GOING_AWAY,
  MAX_HEADER,
  NO_STATUS,
  NORMAL,
  PONG,
} from "./web_socket_frame.ts";

// Maximum size of a sent message, in bytes. Larger: lower cost per byte, but from 64 KiB on Deno reads each message with
// a system call of its own; smaller: proxies hold less of it.
const MAX_MESSAGE = 63 * 1024;

// Milliseconds in which the answer to a close frame is written. Larger: tolerates a slower peer; smaller: an earlier end.
const CLOSE_TIMEOUT = 1000;

/** An open WebSocket of a client or a server. A read that does not happen pauses the peer, as with any connection. */
export class WebSocketConnection implements DuplexConnection {
  readonly #inner: Connection;
  readonly #isClient: boolean;
  readonly #decoder: FrameDecoder;
  /** Bytes that were read together with the handshake. */
  #first: Uint8Array | undefined;
  #frame = new Uint8Array(0);
  /** Settles when the frame that is being written is complete; `undefined` if none is. */
  #writing: Promise<void> | undefined;
  /** The newest pong and the close frame that wait for that. */
  #pong: Uint8Array | undefined;
  #closing: End | undefined;
  #isControlling = false;
  #controlled: Promise<void> = Promise.resolve();
  #isClosed = false;
  /** The code that this end has closed with; nothing is written after it. */
  #closedWith: number | undefined;
  #failure: Error | undefined;
  #writeFailure: Error | undefined;
  #hasEnded = false;

  /**
   * @param inner The connection below, after the handshake.
   * @param first Bytes that were read together with it.
   */
  constructor(inner: Connection, role: "client" | "server", first: Uint8Array) {
    this.#inner = inner;
    this.#isClient = role === "client";
    this.#decoder = new FrameDecoder(role === "server");
    if (first.length > 0) this.#first = first;
  }

  get localAddr(): Address | undefined {
    return this.#inner.localAddr;
  }

  get remoteAddr(): Address | undefined {
    return this.#inner.remoteAddr;
  }

  async read(p: Uint8Array): Promise<number | null> {
    if (p.length === 0) return 0;
    for (;;) {
      if (this.#hasEnded) return null;
      if (this.#failure !== undefined) throw this.#failure;
      const { closed, failed } = this.#decoder;
      // After the bytes before it.
      if (closed !== undefined) {
        await this.#ended(closed);
      } else if (failed !== undefined) {
        await this.#fail(failed);
      } else {
        const count = await this.#receive(p);
        if (count > 0) return count;
      }
    }
  }

  /** Writes one message from the start of `p`, and returns its length. */
  async write(p: Uint8Array): Promise<number> {
    if (p.length === 0) return 0;
    while (this.#writing !== undefined) await this.#writing;
    const failure = this.#failure ?? this.#writeFailure;
    if (failure !== undefined) throw failure;
    if (this.#closedWith !== undefined) throw new WebSocketClosedError(NORMAL, "");
    const part = p.length > MAX_MESSAGE ? p.subarray(0, MAX_MESSAGE) : p;
    await this.#send(BINARY, part);
    return part.length;
  }

  /** Ends the writing direction with a close frame, after what was written. */
  async closeWrite(): Promise<void> {
    this.#closing ??= { code: NORMAL, reason: "" };
    await this.#sendControls();
    const failure = this.#failure ?? this.#writeFailure;
    if (failure !== undefined) throw failure;
  }

  /** Closes the connection at once. Without `closeWrite` before, the peer must not take that for a clean end. */
  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    // Only between two frames: it must be sent now or never.
    if (this.#writing === undefined) {
      this.#closing ??= { code: GOING_AWAY, reason: "aborted" };
      this.#sendControls();
    }
    this.#failure ??= new Deno.errors.BadResource("The connection is closed");
    this.#inner.close();
  }

  setNoDelay(on?: boolean): void {
    this.#inner.setNoDelay?.(on);
  }

  ref(): void {
    this.#inner.ref?.();
  }

  unref(): void {
    this.#inner.unref?.();
  }

  /** Reads bytes from below, and decodes them; returns the number of bytes of messages among them. */
  async #receive(p: Uint8Array): Promise<number> {
    const count = await this.#receiveRaw(p);
    if (count === null) {
      this.#failure ??= new WebSocketClosedError(ABNORMAL, "connection ended without a close frame");
      return 0;
    }
    const length = this.#decoder.decode(count < p.length ? p.subarray(0, count) : p);
    if (this.#decoder.ping !== undefined) {
      this.#pong = this.#decoder.ping;
      this.#decoder.ping = undefined;
      // Not awaited: a peer that does not read must not keep this end from reading.
      this.#sendControls();
    }
    return length;
  }

  async #receiveRaw(p: Uint8Array): Promise<number | null> {
    if (this.#first === undefined) {
      try {
        return await this.#inner.read(p);
      } catch (error) {
        this.#failure ??= lost(error);
        throw this.#failure;
      }
    }
    const count = Math.min(p.length, this.#first.length);
    p.set(this.#first.subarray(0, count));
    this.#first = count < this.#first.length ? this.#first.subarray(count) : undefined;
    return count;
  }

  /** Answers the close frame of the peer. */
  async #ended({ code, reason }: End): Promise<void> {
    const isClean = code === NORMAL || code === NO_STATUS || code === this.#closedWith;
    await this.#sendLast({ code, reason: "" });
    if (isClean) this.#hasEnded = true;
    else this.#failure ??= new WebSocketClosedError(code, printable(reason));
  }

  /** Ends the connection because of an invalid frame. */
  async #fail(failed: End): Promise<void> {
    await this.#sendLast(failed);
    this.#failure ??= new WebSocketClosedError(failed.code, failed.reason);
  }

  /** Sends a close frame, if that is possible soon and this end has sent none. */
  async #sendLast(end: End): Promise<void> {
    this.#closing ??= end;
    const late = Promise.withResolvers<void>();
    const clear = setDeadline(late.resolve, CLOSE_TIMEOUT);
    await Promise.race([this.#sendControls(), late.promise]);
    clear();
  }

  /** Sends the control frames that wait, once the frame that is being written is complete. Never rejects. */
  #sendControls(): Promise<void> {
    if (!this.#isControlling) {
      this.#isControlling = true;
      this.#controlled = this.#control();
    }
    return this.#controlled;
  }

  async #control(): Promise<void> {
    try {
      for (;;) {
        while (this.#writing !== undefined) await this.#writing;
        const next = this.#nextControl();
        if (next === undefined) return;
        await this.#send(...next);
      }
    } catch {
      // The next write rejects.
    } finally {
      this.#isControlling = false;
    }
  }

  /** Returns the next control frame to send. */
  #nextControl(): [opcode: number, payload: Uint8Array] | undefined {
    if (this.#closedWith !== undefined || this.#writeFailure !== undefined) return undefined;
    const [pong, closing] = [this.#pong, this.#closing];
    this.#pong = undefined;
    if (pong !== undefined && !this.#isClosed) return [PONG, pong];
    if (closing === undefined) return undefined;
    this.#closedWith = closing.code;
    return [CLOSE, encodeClose(closing.code, closing.reason)];
  }

  /** Sends a frame. A failure lasts, because a part of the frame may have been sent. */
  async #send(opcode: number, payload: Uint8Array): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#writing = promise;
    try {
      if (this.#frame.length < payload.length + MAX_HEADER) this.#frame = new Uint8Array(payload.length + MAX_HEADER);
      const length = encodeFrame(this.#frame, opcode, payload, this.#isClient);
      await writeAll(this.#inner as DuplexConnection, this.#frame.subarray(0, length));
    } catch (error) {
      this.#writeFailure ??= lost(error);
      throw this.#writeFailure;
    } finally {
      this.#writing = undefined;
      resolve();
    }
  }
}

/** Returns the error of a connection below that was lost. */
function lost(error: unknown): Error {
  return new WebSocketClosedError(ABNORMAL, errorText(error), { cause: error });
}
