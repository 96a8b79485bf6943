/**
 * Accepts connections of proxies that begin with a header of the PROXY protocol.
 *
 * @module
 */

import { Channel, connections, type Listener } from "../mod.ts";
import { formatPeer, parseEndpoint, UNNAMED } from "./address.ts";
import { type Networks, parseNetworks } from "./cidr.ts";
import { RefusalError, wrapError } from "./errors.ts";
import type { ServeTunnelOptions } from "./options.ts";
import { readProxyHeader } from "./proxy_protocol.ts";
import type { Listening, Socket } from "./socket.ts";
import { withDeadline } from "./wait.ts";
import { withoutScheme } from "./web_socket_address.ts";

/**
 * Checks the addresses of proxies.
 *
 * @returns `undefined` if connections have no headers.
 * @throws {RangeError} An entry is malformed, or the options cannot be combined.
 */
export function checkProxies(
  { acceptProxy = [], listen, cert }: Pick<ServeTunnelOptions, "acceptProxy" | "listen" | "cert">,
): Networks | undefined {
  if (acceptProxy.length === 0) return undefined;
  const isProxy = parseNetworks("acceptProxy", acceptProxy);
  if (parseEndpoint("listen", withoutScheme("listen", listen), 0).path !== undefined) {
    throw new RangeError(`acceptProxy requires listen to be HOST:PORT, received "${listen}"`);
  }
  // Deno starts TLS with the first byte of a connection, which is the first of the header.
  if (cert !== undefined) throw new RangeError("acceptProxy cannot be combined with cert: TLS must end at the proxy");
  return isProxy;
}

/** Accepts connections; those of proxies have the address that their header contains. */
export class ProxyListener implements Listener<Socket> {
  /** Fulfils when it has stopped and no header is being read. */
  readonly ended: Promise<void>;
  readonly #isProxy: Networks;
  readonly #report: (error: Error) => void;
  readonly #stopping = new AbortController();
  readonly #ready = new Channel<Socket>();
  readonly #pending = new Map<Socket, Promise<void>>();

  constructor(listening: Listening, isProxy: Networks, report: (error: Error) => void) {
    this.#isProxy = isProxy;
    this.#report = report;
    this.ended = this.#run(listening);
  }

  async accept(): Promise<Socket> {
    try {
      return await this.#ready.receive();
    } catch {
      throw new Deno.errors.BadResource("Listener has been closed");
    }
  }

  close(): void {
    this.#stopping.abort();
    this.#ready.close();
    for (const socket of this.#pending.keys()) socket[Symbol.dispose]();
  }

  async #run(listening: Listening): Promise<void> {
    const { signal } = this.#stopping;
    const onError = (error: unknown) => this.#report(wrapError("Cannot accept a connection", error));
    for await (const socket of connections(listening, { signal, onError })) {
      const prepared = this.#prepare(socket);
      this.#pending.set(socket, prepared);
      prepared.finally(() => this.#pending.delete(socket));
    }
    await Promise.all(this.#pending.values());
  }

  /** Reads the header of a connection, and passes the connection on. Never rejects. */
  async #prepare(socket: Socket): Promise<void> {
    const peer = socket.remoteAddr as Deno.NetAddr;
    try {
      if (this.#isProxy(peer.hostname)) {
        const address = await withDeadline(socket, readProxyHeader(socket));
        // A property of this socket, before the getter of all: the session must still see a socket of Deno.
        if (address) Object.defineProperty(socket, "remoteAddr", { value: { transport: "tcp", ...address } });
      }
      await this.#ready.send(socket);
    } catch (error) {
      socket[Symbol.dispose]();
      if (this.#stopping.signal.aborted) return;
      this.#report(new RefusalError(400, `Refused a connection from ${formatPeer(peer) ?? UNNAMED}`, error));
    }
  }
}
