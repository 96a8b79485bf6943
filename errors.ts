/**
 * The errors of a session and its streams, beside `ProtocolError` of the frame module.
 *
 * @module
 */

/**
 * The session has ended, so nothing can be done on it or its streams.
 *
 * `cause` says why; it is absent when the session ended cleanly.
 *
 * @example Too late
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
  /** Of a write that this error refused or cut: how many of its bytes are on their way. Absent on other operations. */
  declare bytesWritten?: number;

  /**
   * Says what could not be done.
   *
   * @param message What could not be done.
   * @param options The cause, where the end was not clean.
   */
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "SessionClosedError";
  }
}

/**
 * The stream was used after its own `close()`, or written to after its own `closeWrite()`.
 *
 * @example Writing after one's own end
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
  /** Of a write that this error refused or cut: how many of its bytes are on their way. Absent on other operations. */
  declare bytesWritten?: number;

  /**
   * Says what could not be done.
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
  /** The code of RFC 6455, section 7.4. 1006: the connection failed or was cut. 1009: too much was unread. */
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
