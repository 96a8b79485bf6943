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
 * Rejects an operation on a stream after its local `close()`, or `abort()` without a reason, or a write after its local
 * `closeWrite()`.
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
 * Rejects an operation on a stream that the peer has aborted, by {@linkcode Stream.abort} or because an error ended it.
 *
 * Data received before stays readable. Only Sluice reports it: other peers of smux can only end a stream.
 *
 * @example Telling a failed answer from a complete one
 * ```ts
 * import { serve, Session, StreamResetError } from "@sluice/smux";
 * import { assertRejects } from "@std/assert";
 * import { toText } from "@std/streams";
 *
 * const listener = Deno.listen({ port: 0 });
 * await using _server = serve(listener, async (stream) => {
 *   await stream.write(new TextEncoder().encode("half of the ans"));
 *   stream.abort(new Error("the disk failed"));
 * });
 *
 * await using session = Session.client(await Deno.connect({ port: listener.addr.port }));
 * const stream = await session.openStream();
 * await assertRejects(() => toText(stream.readable), StreamResetError);
 * ```
 */
export class StreamResetError extends Error {
  /** Number of bytes of a rejected write that had been encoded. Absent on errors of other operations. */
  declare bytesWritten?: number;

  /**
   * Creates the error.
   *
   * @param message What could not be done.
   */
  constructor(message: string) {
    super(message);
    this.name = "StreamResetError";
  }
}

/**
 * Rejects `closed` of a session, and a connect, when the WebSocket failed to open or was closed with another code than
 * 1000 (normal) and 1005 (no code).
 *
 * `cause` is the error that the runtime reported; it is absent if there was none.
 *
 * @example An unreachable server
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
   * The close code of RFC 6455, section 7.4.1. 1001: the peer aborted its session, or went away. 1006: the connection
   * failed or was cut. 1009: more than `maxReceiveBuffer` was unread. Browsers send 4001 and 4009 instead.
   */
  readonly code: number;
  /** The reason from the close frame; "" if it had none. */
  readonly reason: string;

  /**
   * Creates the error.
   *
   * @param code The close code.
   * @param reason The reason; "" for none.
   * @param options The error that the runtime reported, as `cause`.
   */
  constructor(code: number, reason: string, options?: ErrorOptions) {
    super(`The WebSocket was closed with code ${code}${reason && `: ${reason}`}`, options);
    this.name = "WebSocketClosedError";
    this.code = code;
    this.reason = reason;
  }
}

/**
 * Rejects `closed` of a resumable connection that could not be resumed, and every pending operation on it.
 *
 * `cause` is the error of the last attempt to connect, or of the lost connection; it is absent if there was none.
 *
 * @example Giving up after 100 ms
 * ```ts
 * import { resumable, ResumptionError } from "@sluice/smux/resume";
 * import { assertInstanceOf, assertRejects } from "@std/assert";
 *
 * const connection = resumable(() => Deno.connect({ hostname: "127.0.0.1", port: 9 }), { resumeTimeout: 100 });
 * const error = await assertRejects(() => connection.read(new Uint8Array(1)), ResumptionError);
 * assertInstanceOf(error.cause, Deno.errors.ConnectionRefused);
 * ```
 */
export class ResumptionError extends Error {
  /**
   * Creates the error.
   *
   * @param message What could not be done.
   * @param options The cause.
   */
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "ResumptionError";
  }
}
