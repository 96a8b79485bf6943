import type { Session, Stream } from "../../../mod.ts";

/** Answers a stream, after its end, with the hash of its data and with the data. */
export function answer(stream: Stream): Promise<void>;

/** Exchanges all streams over a session, closes it, and returns their number. */
export function exchangeAll(session: Session): Promise<string>;
