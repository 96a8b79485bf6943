/**
 * Keeps servers listening for the `reverse` of a client, and answers the streams that they open.
 *
 * @module
 */

import { type Session, SessionClosedError, type Stream } from "../mod.ts";
import type { Activity } from "./activity.ts";
import { format, splitUdp, UDP } from "./address.ts";
import { writeFirst } from "./bytes.ts";
import { wrapError } from "./errors.ts";
import { forwardStream } from "./forward.ts";
import { type Credentials, request, serveRequest } from "./handshake.ts";
import type { Link } from "./link.ts";
import { TunnelRefusedError } from "./options.ts";
import type { Changes, Reverse } from "./places.ts";
import { encodeProxyHeader, type ProxyAddress } from "./proxy_protocol.ts";
import { type ProxySettings, reach } from "./reverse_socks.ts";
import { dial, type Socket } from "./socket.ts";
import { forwardToPeer } from "./udp_forward.ts";
import { dialUdp, UdpPeer } from "./udp_socket.ts";
import { parseAddress } from "./visitor.ts";
import { backoff, onAbort, sleep } from "./wait.ts";

// Milliseconds between requests to listen. Larger: less load on a server that refuses; smaller: an earlier port.
const MAX_BIND_PAUSE = 30_000;

/** What a client's entries of `reverse` need from its options. */
export interface ReverseSettings {
  /** The entries, by LISTEN of the server. */
  reverse: ReadonlyMap<string, Reverse>;
  /** Of `reverseSocks`. */
  proxy: ProxySettings;
  /** What proves to a server who requests. */
  credentials: Credentials;
  /** Milliseconds to connect to a target; `undefined`: the default. */
  connectTimeout: number | undefined;
  /** Milliseconds without a datagram after which a source is forgotten. */
  udpTimeout: number;
  /** Whether the first request to listen is repeated until its address is free. */
  retry: boolean;
  /** Whether the client has several servers, so that the addresses of each are reported. */
  hasMany: boolean;
}

/** What the entries of `reverse` need from their client. */
export interface ReverseHost {
  readonly activity: Activity;
  /** Aborts when nothing new may begin. */
  readonly stopping: AbortSignal;
  /** Returns the settings in use. */
  current(): ReverseSettings;
  /** Reports the error of a task, and makes the end of the tunnel wait for the task. */
  track(task: Promise<unknown>): void;
}

/** The entries of `reverse` of a client. */
export class Reverses {
  readonly #host: ReverseHost;

  constructor(host: ReverseHost) {
    this.#host = host;
  }

  /** Forwards connections that a server accepts, until its session ends. */
  async accept(link: Link, session: Session): Promise<void> {
    try {
      for await (const stream of session) {
        // A server opens streams for `reverse` only.
        if (this.#host.current().reverse.size === 0) stream.close();
        else this.#host.track(this.#answer(link, stream).finally(() => stream.close()));
      }
    } catch {
      // The link reports the end of the session.
    }
  }

  async #answer(link: Link, stream: Stream): Promise<void> {
    const { activity } = this.#host;
    let visitor: ProxyAddress | undefined;
    let to: string | undefined;
    let listen = "";
    let isProxy = false;
    const { opened } = await serveRequest(stream, "the server", async ({ method, address, forwardedFor }) => {
      // The server asks whether this end is alive.
      if (method === "OPTIONS") return stream;
      const { reverse, connectTimeout } = this.#host.current();
      const isUdp = method === "CONNECT-UDP";
      listen = isUdp ? `${UDP}${address}` : address;
      // `CONNECT udp:53` would find the entry for datagrams.
      const isKnown = isUdp || (method === "CONNECT" && !splitUdp(address)[0]);
      const found = isKnown ? reverse.get(listen) : undefined;
      if (found === undefined) throw new TunnelRefusedError(403, "not in reverse");
      visitor = parseAddress(forwardedFor ?? "");
      to = found.target;
      isProxy = to === undefined;
      if (to === undefined) return stream;
      if (isUdp) return await dialUdp(to, stream, { connectTimeout });
      const socket = await dial(to, stream, { connectTimeout });
      const addr = found.addrs.get(link.serverAddr) ?? "";
      if (found.isProxied) await writeFirst(socket, encodeProxyHeader(visitor, parseAddress(addr)));
      return socket;
    });
    if (opened === stream && !isProxy) return;
    const { proxy, connectTimeout } = this.#host.current();
    const from = visitor === undefined ? link.serverAddr : format(visitor);
    const reached = isProxy ? await reach(stream, from, proxy, connectTimeout) : undefined;
    to = reached?.to ?? to;
    const forward = isProxy ? listen : `${listen}=${to}`;
    const route = { kind: "reverse" as const, user: undefined, forward, from, to };
    if (opened instanceof UdpPeer) {
      return await forwardToPeer(activity, stream, opened, route, () => this.#host.current().udpTimeout);
    }
    const socket = reached?.socket ?? opened as Socket;
    const [checks, before] = [{ sent: reached?.check }, { received: reached?.sent }];
    await forwardStream(activity, stream, socket, `to ${to}`, route, checks, before);
  }

  /** Requests a server to listen, until the returned stream ends. */
  async #bind({ serverAddr }: Link, session: Session, reverse: Reverse): Promise<Stream> {
    const [isUdp, address] = splitUdp(reverse.listen);
    const { credentials } = this.#host.current();
    const { stream, addr } = await request(session, isUdp ? "BIND-UDP" : "BIND", address, credentials);
    reverse.addrs.set(serverAddr, addr);
    const [before, boundAt] = [reverse.boundAt, `${addr} ${serverAddr}`];
    const hasMoved = before !== undefined && before !== boundAt;
    // With several servers each is reported.
    if ((reverse.hasFailed || hasMoved) && !this.#host.current().hasMany) {
      this.#host.activity.emit({ type: "bound", serverAddr, listenAddr: addr, to: reverse.target });
    }
    Object.assign(reverse, { boundAt, hasFailed: false });
    this.#report(reverse);
    return stream;
  }

  /** Reports each address of an entry once, if the client has several servers. */
  #report({ addrs, reported, target }: Reverse): void {
    if (!this.#host.current().hasMany) return reported.clear();
    for (const [serverAddr, listenAddr] of addrs) {
      if (reported.get(serverAddr) === listenAddr) continue;
      reported.set(serverAddr, listenAddr);
      this.#host.activity.emit({ type: "bound", serverAddr, listenAddr, to: target });
    }
  }

  /** Requests a server to listen for all entries for the first time; with `retry`, until each address is free. */
  async bindFirst(link: Link, bound: Map<Reverse, Stream>): Promise<void> {
    const session = link.session!;
    for (const reverse of this.#host.current().reverse.values()) {
      bound.set(reverse, await this.#bindOneFirst(link, session, reverse));
    }
  }

  async #bindOneFirst(link: Link, session: Session, reverse: Reverse): Promise<Stream> {
    for (const delays = backoff(MAX_BIND_PAUSE);;) {
      try {
        return await this.#bind(link, session, reverse);
      } catch (error) {
        const { activity, stopping } = this.#host;
        const mayBecomeFree = error instanceof TunnelRefusedError && error.status >= 500 && error.status !== 501;
        if (!this.#host.current().retry || !mayBecomeFree || stopping.aborted) throw error;
        activity.report(error);
      }
      await sleep(delays.next().value, this.#host.stopping);
    }
  }

  /** Requests a server to listen for new entries; those that must wait are left to `keepAdded`. */
  async bindAdded(link: Link, { added }: Changes<Reverse>, bound: Map<Reverse, Stream>): Promise<void> {
    const session = link.session!;
    for (const { place, mustWait } of added) if (!mustWait) bound.set(place, await this.#bind(link, session, place));
  }

  /** Stops listening for what was removed, and replaces the targets of what stays, at these servers. */
  change({ kept, removed }: Changes<Reverse>, servers: readonly string[]): void {
    for (const place of removed) place.removed.abort();
    for (const [{ target, isProxied }, place] of kept) {
      Object.assign(place, { target, isProxied });
      for (const addrs of [place.addrs, place.reported]) {
        for (const server of [...addrs.keys()]) if (!servers.includes(server)) addrs.delete(server);
      }
    }
    for (const place of this.#host.current().reverse.values()) this.#report(place);
  }

  /** Keeps a server listening for new entries. */
  keepAdded(
    link: Link,
    session: Session,
    { added }: Changes<Reverse>,
    bound: ReadonlyMap<Reverse, Stream> = new Map(),
  ): void {
    for (const { place } of added) this.#host.track(this.#keepBound(link, session, place, bound.get(place)));
  }

  /** Keeps a server listening for all entries; `bound` has those that it listens for already. */
  keepAllBound(link: Link, session: Session, bound: ReadonlyMap<Reverse, Stream> = new Map()): void {
    for (const reverse of this.#host.current().reverse.values()) {
      this.#host.track(this.#keepBound(link, session, reverse, bound.get(reverse)));
    }
  }

  /** Keeps a server listening until the session ends, or the entry or the link is not used any more. */
  async #keepBound(link: Link, session: Session, reverse: Reverse, stream?: Stream): Promise<void> {
    const signal = AbortSignal.any([link.stopping, reverse.removed.signal]);
    // The server listens until the stream ends.
    const off = onAbort(signal, () => stream?.close());
    for (const delays = backoff(MAX_BIND_PAUSE); !signal.aborted;) {
      try {
        stream ??= await this.#bind(link, session, reverse);
        if (signal.aborted) break;
        // The server sends nothing more on the stream: the read waits for its end.
        await stream.read(new Uint8Array(1));
        throw new Error("closed by the server");
      } catch (error) {
        stream?.close();
        stream = undefined;
        if (signal.aborted || error instanceof SessionClosedError) break;
        const at = this.#host.current().hasMany ? ` at ${link.serverAddr}` : "";
        reverse.hasFailed = true;
        this.#host.activity.report(wrapError(`Reverse forward ${reverse.listen}${at} failed`, error));
      }
      await sleep(delays.next().value, signal);
    }
    stream?.close();
    off();
  }
}
