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
