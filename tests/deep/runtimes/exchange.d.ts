import type { Session, Stream } from "../../../mod.ts";

/** Answers a stream, after its end, with the hash of its data and with the data. */
export function answer(stream: Stream): Promise<void>;

/** Exchanges this number of streams, closes the session, and returns the number as text. */
export function exchangeAll(session: Session, count: number): Promise<string>;
