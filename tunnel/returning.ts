/**
 * Recognizes a client that connects again, so that what its former connection holds at the server is free at once.
 *
 * A client names itself with a random id and counts its connections: `Client: ID N` in its first request. When its
 * former connection was lost, the server may still regard that one as open, because it was stopped itself, or because
 * the network dropped the end.
 *
 * @module
 */

import { Buffer } from "node:buffer";
import { randomBytes } from "node:crypto";
import type { Session } from "../mod.ts";
import type { Account } from "./access.ts";

const ID_LENGTH = 16;
const IDENTITY = /^([\w-]{22}) (\d{1,15})$/;

/** The name of a client, and the number of its connections so far. */
export class Identity {
  readonly #id = Buffer.from(randomBytes(ID_LENGTH)).toString("base64url");
  #connections = 0;

  /** Returns the line of a head for the next connection. */
  next(): string {
    return `Client: ${this.#id} ${++this.#connections}\r\n`;
  }
}

/** The current session of a client. */
interface Known {
  session: Session;
  account: Account;
  /** Its number among the connections of the client. */
  number: number;
}

/** The sessions of a server's clients that have named themselves. */
export class Returning {
  /** By the id of the client. */
  readonly #known = new Map<string, Known>();
  /** Sessions with an id: each has one, so that the sessions limit the ids. */
  readonly #named = new WeakSet<Session>();

  /**
   * Notes a session, and ends the former one of the same client.
   *
   * @param identity The value of `Client`. Without one, or if it is malformed, nothing is noted.
   * @param account The account of the session: the former session of another account stays.
   */
  note(identity: string | undefined, account: Account, session: Session): void {
    const [, id, digits] = IDENTITY.exec(identity ?? "") ?? [];
    if (id === undefined || this.#named.has(session)) return;
    const number = Number(digits);
    const former = this.#known.get(id);
    // Requests of lost connections may be served after those of the current one.
    if (former !== undefined && (former.account !== account || former.number >= number)) return;
    this.#named.add(session);
    this.#known.set(id, { session, account, number });
    const ended = () => void (this.#known.get(id)?.session === session && this.#known.delete(id));
    session.closed.then(ended, ended);
    former?.session.abort(new Error("The client has connected again"));
  }
}
