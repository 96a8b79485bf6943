/**
 * Checks the user and the password of those that connect to a proxy of the client.
 *
 * @module
 */

import { WRONG_SECRET_DELAY } from "./handshake.ts";
import { isEqual } from "./users.ts";
import { sleep } from "./wait.ts";

// RFC 1929 has one byte for the length of each. A colon separates them.
const CREDENTIALS = /^([!-9;-~]{1,255}):([ -~]{1,255})$/;

// A delay is never cut short.
const NEVER = new AbortController().signal;

/** The user and the password that a proxy requires. */
export class ProxyAuth {
  readonly #credentials: string;

  /**
   * @param credentials `user:password`.
   * @throws {RangeError} They are malformed.
   */
  constructor(credentials: string) {
    if (!CREDENTIALS.test(credentials)) {
      // The received text contains a password: it stays out of the log.
      throw new RangeError(
        "proxyAuth must be USER:PASSWORD, each of 1 to 255 printable ASCII characters, received another text",
      );
    }
    this.#credentials = credentials;
  }

  /** Whether these are the user and the password; wrong ones are answered after a delay. */
  async accepts(user: string, password: string): Promise<boolean> {
    const isRight = isEqual(`${user}:${password}`, this.#credentials);
    // Of a connection that is closed meanwhile, the next read or write fails.
    if (!isRight) await sleep(WRONG_SECRET_DELAY, NEVER);
    return isRight;
  }

  /** Whether the value of a `Proxy-Authorization` header has the user and the password. */
  async acceptsBasic(authorization: string): Promise<boolean> {
    const [, encoded = ""] = /^Basic +([A-Za-z0-9+/]+=*)$/i.exec(authorization) ?? [];
    let text = "";
    try {
      text = atob(encoded);
    } catch {
      // Malformed: as a wrong password.
    }
    const at = text.indexOf(":");
    return await this.accepts(at < 0 ? "" : text.slice(0, at), text.slice(at + 1));
  }
}
