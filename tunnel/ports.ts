/**
 * Holds the addresses that a server listens on for its clients, and passes those of silent clients on.
 *
 * @module
 */

import type { Session, Stream } from "../mod.ts";
import type { Account, Permit } from "./access.ts";
import { format, parseEndpoint, splitUdp, UDP } from "./address.ts";
import { wrapError } from "./errors.ts";
import { request } from "./handshake.ts";
import { type AnyListening, listenTo } from "./listen.ts";
import { sleep } from "./wait.ts";

/**
 * Milliseconds in which a client must send something when another one requests its address. Larger: a client that was
 * started again waits for longer; smaller: a client on a slow network loses its address.
 */
export const PROBE_TIMEOUT = 4000;

/** An address that the server listens on for a client. */
interface Holder {
  listening: AnyListening;
  permit: Permit;
  account: Account;
  session: Session;
  /** Stops listening, and counts the address no more. */
  release: () => void;
}

/** The addresses that a server listens on for its clients. */
export class Ports {
  readonly #holders = new Set<Holder>();
  /** Those that were released, until their addresses are free. */
  readonly #closing = new Set<AnyListening>();
  /** Whether a session is silent, while that is being found out. */
  readonly #probes = new Map<Session, Promise<boolean>>();

  /**
   * Listens for a client until the stream of its request ends. An address of a client with the same account that is
   * silent is taken over, and the session of that client ends.
   *
   * @param signal Ends the wait for a silent client.
   */
  async listen(permit: Permit, session: Session, stream: Stream, signal: AbortSignal): Promise<AnyListening> {
    const { account, method, endpoint: { path, port }, addresses } = permit;
    // A host name may have several addresses; the first is the preferred one.
    const place = path === undefined ? format({ hostname: addresses[0]!, port }) : format({ path });
    const addr = method === "BIND-UDP" ? `${UDP}${place}` : place;
    await this.#vacate(addr, account, session, signal);
    const free = account.ports.take();
    let listening: AnyListening;
    try {
      listening = await listenTo(addr);
    } catch (error) {
      free();
      throw error;
    }
    const holder = { listening, permit, account, session, release };
    const [holders, closing] = [this.#holders, this.#closing];
    function release(): void {
      if (!holders.delete(holder)) return;
      free();
      closing.add(listening);
      listening.close();
      listening.closed.finally(() => closing.delete(listening));
    }
    holders.add(holder);
    stream.closed.then(release, release);
    return listening;
  }

  /** Stops listening at addresses that are not allowed any more. Accepted connections stay. */
  releaseUnless(isAllowed: (permit: Permit, addr: string) => boolean): void {
    for (const { permit, listening, release } of [...this.#holders]) {
      if (!isAllowed(permit, listening.addr)) release();
    }
  }

  /**
   * Takes an address over from silent clients of the account.
   *
   * @throws {Error} A client that is not silent, or of another account, holds it.
   */
  async #vacate(addr: string, account: Account, session: Session, signal: AbortSignal): Promise<void> {
    for (const { addr: other, closed } of this.#closing) if (overlaps(other, addr)) await closed;
    for (let holder; (holder = this.#find(addr)) !== undefined;) {
      const isOwn = holder.session === session;
      const mayTake = !isOwn && holder.account === account && await this.#isSilent(holder.session, signal);
      signal.throwIfAborted();
      // It may have been released meanwhile.
      if (!this.#holders.has(holder)) continue;
      if (!mayTake) throw wrapError(`Cannot listen on ${addr}`, new Deno.errors.AddrInUse("Address already in use"));
      holder.release();
      await holder.listening.closed;
      holder.session.abort(new Error(`The client was silent, and another one listens on ${addr} now`));
    }
  }

  #find(addr: string): Holder | undefined {
    return [...this.#holders].find(({ listening }) => overlaps(listening.addr, addr));
  }

  #isSilent(session: Session, signal: AbortSignal): Promise<boolean> {
    const known = this.#probes.get(session);
    if (known !== undefined) return known;
    const probing = isSilent(session, signal).finally(() => this.#probes.delete(session));
    this.#probes.set(session, probing);
    return probing;
  }
}

/** Whether two addresses cannot be listened on at the same time. */
export function overlaps(one: string, other: string): boolean {
  if (one === other) return !/:0$/.test(one) || one.startsWith("unix:");
  const [[isUdp, first], [isOtherUdp, second]] = [splitUdp(one), splitUdp(other)];
  if (isUdp !== isOtherUdp) return false;
  const [a, b] = [first, second].map((addr) => parseEndpoint("listen", addr, 0));
  if (a!.path !== undefined || b!.path !== undefined || a!.port !== b!.port || a!.port === 0) return false;
  const isAll = (hostname: string) => hostname === "0.0.0.0" || hostname === "::";
  return a!.hostname.includes(":") === b!.hostname.includes(":") && (isAll(a!.hostname) || isAll(b!.hostname));
}

/** Whether a client sends nothing within PROBE_TIMEOUT, although it is asked to. */
async function isSilent(session: Session, signal: AbortSignal): Promise<boolean> {
  const { bytesReceived } = session.stats();
  const answered = new AbortController();
  // Any response is a sign of life, also a refusal.
  const probing = request(session, "OPTIONS", "*").then(({ stream }) => stream.close(), () => {});
  probing.finally(() => answered.abort());
  await sleep(PROBE_TIMEOUT, AbortSignal.any([answered.signal, signal]));
  const { bytesReceived: now, readPaused } = session.stats();
  // Bytes of a client that is not read wait in the kernel.
  return now === bytesReceived && !readPaused;
}
