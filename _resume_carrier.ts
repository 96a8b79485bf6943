/**
 * The connection below a resumable one, and the functions for its hello and reply.
 *
 * @module
 */

import { clock, type Timer } from "./_clock.ts";
import { ResumptionError } from "./errors.ts";
import { RecordDecoder, type RecordSink } from "./_resume_frame.ts";
import { checkCount, closeQuietly, type Connection } from "./transport.ts";

/** A connection below, and the records that are due on it. */
export class Carrier {
  readonly connection: Connection;
  readonly decoder: RecordDecoder;
  isReading = false;
  isWriting = false;
  isAcknowledgementDue = false;
  isProbeDue = false;
  isProbeReplyDue = false;
  isCloseDue = false;
  isOpen = true;
  /** Closes a carrier whose last record is not sent, or not received, in time. */
  closing: Timer | undefined;

  constructor(connection: Connection, sink: RecordSink, hasEnded: boolean, repeated: number) {
    this.connection = connection;
    this.decoder = new RecordDecoder(sink, hasEnded, repeated);
  }

  close(): void {
    this.isOpen = false;
    clock.clearTimer(this.closing);
    closeQuietly(this.connection);
  }
}

/** Writes all of `bytes`. */
export async function writeAll(connection: Connection, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length;) {
    const rest = bytes.subarray(at);
    const count = checkCount(await connection.write(rest), rest.length);
    // A connection that keeps returning 0 would block the event loop, and the timers that give it up.
    if (count === 0) await clock.yieldToEventLoop();
    at += count;
  }
}

/** Fills `bytes` from `at` on. Rejects with `message` when the connection ends before. */
export async function readRest(connection: Connection, bytes: Uint8Array, at: number, message: string): Promise<void> {
  while (at < bytes.length) {
    const count = await connection.read(bytes.subarray(at));
    if (count === null) throw new ResumptionError(message);
    if (count === 0) await clock.yieldToEventLoop();
    at += count;
  }
}
