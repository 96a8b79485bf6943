/**
 * The errors of a session and its streams. `ProtocolError` is in the frame module.
 *
 * @module
 */

/**
 * Rejects an operation on a session that is closing or has ended, or on one of its streams.
 *
 * `cause` is the reason of the end; it is absent when the session ended cleanly.
 *
 * @example Opening a stream on a closed session
 * ```ts
 * import { Session, SessionClosedError } from "@sluice/smux";
 * import { assertRejects } from "@std/assert";
 *
 * const { readable, writable } = new TransformStream<Uint8Array, Uint8Array>();
 * const session = Session.client({ readable, writable });
 * await session.close();
 * await assertRejects(() => session.openStream(), SessionClosedError);
 * ```
 */
export class SessionClosedError extends Error {
  /** Number of bytes of a rejected write that had been encoded. Absent on errors of other operations. */
  declare bytesWritten?: number;

  /**
   * Creates the error.
   *
   * @param message What could not be done.
   * @param options The cause, unless the session ended cleanly.
   */
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "SessionClosedError";
  }
}

/**
 * Rejects an operation on a stream after its local `close()`, or a write after its local `closeWrite()`.
 *
 * @example Writing after closeWrite()
 * ```ts
 * import { Session, StreamClosedError } from "@sluice/smux";
 * import { assertRejects } from "@std/assert";
 *
 * const { readable, writable } = new TransformStream<Uint8Array, Uint8Array>();
 * const session = Session.client({ readable, writable });
 * const stream = await session.openStream();
 * await stream.closeWrite();
 * await assertRejects(() => stream.write(new Uint8Array(1)), StreamClosedError);
 * session.abort();
 * ```
 */
export class StreamClosedError extends Error {
  /** Number of bytes of a rejected write that had been encoded. Absent on errors of other operations. */
  declare bytesWritten?: number;

  /**
   * Creates the error.
   *
   * @param message What could not be done.
   */
  constructor(message: string) {
    super(message);
    this.name = "StreamClosedError";
  }
}

/**
 * A WebSocket failed to open, or was closed with any other code than 1000, the normal one, or 1005, none at all.
 *
 * `cause` is the error that the runtime reported, where it reported one.
 *
 * @example A server that is not there
 * ```ts
 * import { connectWebSocket, WebSocketClosedError } from "@sluice/smux/websocket";
 * import { assertEquals, assertRejects } from "@std/assert";
 *
 * const error = await assertRejects(() => connectWebSocket("ws://127.0.0.1:9/"), WebSocketClosedError);
 * assertEquals(error.code, 1006); // the connection ended without a code
 * ```
 */
export class WebSocketClosedError extends Error {
  /**
   * The code of RFC 6455, section 7.4. 1001: the other end aborted its session, or went away. 1006: the connection failed or
   * was cut. 1009: too much was unread. A page sends 4001 and 4009 instead.
   */
  readonly code: number;
  /** What the end that closed it had to say. */
  readonly reason: string;

  /**
   * Says with which code it was closed.
   *
   * @param code The code.
   * @param reason The reason.
   * @param options The cause, where there is one.
   */
  constructor(code: number, reason: string, options?: ErrorOptions) {
    super(`The WebSocket was closed with code ${code}${reason && `: ${reason}`}`, options);
    this.name = "WebSocketClosedError";
    this.code = code;
    this.reason = reason;
  }
}
