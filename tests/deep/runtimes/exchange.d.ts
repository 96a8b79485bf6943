import type { Session, Stream } from "../../../mod.ts";

/** Answers a stream, after its end, with the hash of its data and with the data. */
export function answer(stream: Stream): Promise<void>;

/** Sends every stream over a session, closes it, and returns how many came back whole. */
export function exchangeAll(session: Session): Promise<string>;
