/**
 * Serves the protocols of a proxy at one address: SOCKS 4, 4a and 5, and HTTP. The first byte decides.
 *
 * @module
 */

import type { DuplexConnection } from "../mod.ts";
import { readExactly } from "./bytes.ts";
import { errorText, UnusedError } from "./errors.ts";
import { type Served, speakHttp } from "./http_proxy.ts";
import { speakSocks4 } from "./socks4.ts";
import { type ProxyOptions, speakSocks } from "./socks5.ts";
import { withDeadline } from "./wait.ts";

/** A connection whose first byte was read already, and is read again. */
class Begun implements DuplexConnection {
  readonly #connection: DuplexConnection;
  #first: number | undefined;

  constructor(connection: DuplexConnection, first: number) {
    this.#connection = connection;
    this.#first = first;
  }

  async read(p: Uint8Array): Promise<number | null> {
    if (this.#first === undefined || p.length === 0) return await this.#connection.read(p);
    p[0] = this.#first;
    this.#first = undefined;
    return 1;
  }

  write(p: Uint8Array): Promise<number> {
    return this.#connection.write(p);
  }

  closeWrite(): Promise<void> {
    return this.#connection.closeWrite();
  }

  close(): void {
    this.#connection.close();
  }
}

async function readFirst(client: DuplexConnection): Promise<number> {
  try {
    const [first] = await withDeadline(client, readExactly(client, 1));
    return first!;
  } catch (error) {
    throw new UnusedError(errorText(error), { cause: error });
  }
}

/** Reads the target of a client, connects to it, and replies as the client's protocol does. */
export async function speakProxy<T extends DuplexConnection, U = never>(
  client: DuplexConnection,
  connect: (target: string) => Promise<T>,
  options: ProxyOptions<U> = {},
): Promise<Served<T | U>> {
  const { auth } = options;
  const first = await readFirst(client);
  const begun = new Begun(client, first);
  if (first === 5) return { connected: await speakSocks(begun, connect, options) };
  if (first === 4) return { connected: await speakSocks4(begun, connect, auth) };
  // Methods of HTTP: a capital letter.
  if (first >= 65 && first <= 90) return await speakHttp(begun, connect, auth);
  const received = first === 22 ? "TLS: the proxy itself does not use it" : `a first byte of ${first}`;
  throw new Error(`expected SOCKS 4, SOCKS 5 or HTTP, received ${received}`);
}
