import type { Session, Stream } from "../../../mod.ts";
import type { WebSocketLike } from "../../../websocket.ts";

export const NOT_READ: 1;
export const READ: 2;
export const WRITE_MUCH: 3;
export const WRITE: 4;
export const RECORDS: 5;
export const MUCH: number;

/** What one end has seen of a session. */
export class Tally {
  written: number;
  received: number;
  gap: number;
  queued: number;
  recordsSent: number;
  recordsReceived: number;
  wrong: string;
  ended: string;
  streamEnded: string;
  watch(socket: WebSocketLike): void;
  awaitEnd(session: Session): Promise<void>;
  receive(count: number): void;
  writeMuch(stream: Stream): Promise<void>;
  read(stream: Stream): Promise<void>;
  sendRecords(stream: Stream): Promise<void>;
  receiveRecords(stream: Stream): Promise<void>;
  fail(error: unknown): void;
}

/** Writes to a stream until it fails. */
export function writeOn(stream: Stream): Promise<void>;
