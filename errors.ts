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
