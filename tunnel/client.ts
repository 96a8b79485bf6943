/**
 * Opens the client's end of a tunnel.
 *
 * @module
 */

import { type DuplexConnection, type Session, SessionClosedError, type Stream } from "../mod.ts";
import { Activity } from "./activity.ts";
import { format, parseEndpoint, splitUdp, UDP } from "./address.ts";
import { writeAll } from "./bytes.ts";
import { wrapError } from "./errors.ts";
import { forwardAll, forwardStream } from "./forward.ts";
import { type Credentials, request, serveRequest } from "./handshake.ts";
import { Link, type LinkSettings } from "./link.ts";
import { checkFree, type Listener, listenTo } from "./listen.ts";
import { type OpenTunnelOptions, type TunnelClient, TunnelRefusedError, type TunnelStats } from "./options.ts";
import { type Changes, compareLocals, compareReverses, type Local, type Reverse } from "./places.ts";
import { encodeProxyHeader, type ProxyAddress } from "./proxy_protocol.ts";
import { checkOptions, linkSettings, type Settings } from "./settings.ts";
import { checkRuntime, dial, resetting, type Socket } from "./socket.ts";
import { speakSocks } from "./socks5.ts";
import { associate } from "./socks_udp.ts";
import { type StatusListener, StatusServer } from "./status.ts";
import { UDP_TIMEOUT } from "./udp_flow.ts";
import { forwardDatagrams, forwardToPeer } from "./udp_forward.ts";
import { dialUdp, UdpListening, UdpPeer } from "./udp_socket.ts";
import { parseAddress, proxyHeaderOf } from "./visitor.ts";
import { backoff, clampTimeout, onAbort, setDeadline, sleep } from "./wait.ts";

// Milliseconds between requests to listen. Larger: less load on a server that refuses; smaller: an earlier port.
const MAX_BIND_PAUSE = 30_000;

/**
 * Starts the client's end of a tunnel: connects to the server, then listens. The end of each direction is forwarded as
 * a half-close. A connection whose target refuses is closed at once.
 *
 * When the connection to the server is lost, forwarded connections wait until it is resumed, up to 60 seconds. With a
 * server that does not support this, and after a restart of the server, they are closed, and the client connects again.
 * New connections wait for at most `wait` milliseconds; after that the client stops listening until it has reconnected.
 *
 * @param options The address of the server, what to forward, and callbacks for errors and events.
 * @returns The tunnel, once it is connected and listens on all addresses.
 * @throws {RangeError} An option is malformed, or would open the tunnel to other machines.
 * @throws {TypeError} The runtime is not Deno.
 * @throws {TunnelRefusedError} The server refuses to listen for `reverse`.
 * @throws {Error} The client cannot listen on an address, or cannot connect to the server.
 *
 * @example A service behind a firewall, made reachable through the server
 * ```ts
 * import { openTunnel, serveTunnel } from "@sluice/smux/tunnel";
 * import { assertEquals } from "@std/assert";
 *
 * await using server = serveTunnel({ listen: "127.0.0.1:0", allowListen: ["127.0.0.1:*"] });
 * const web = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, () => new Response("from behind"));
 * await using client = await openTunnel({ connect: server.serverAddr, reverse: [`0=${web.addr.port}`] });
 *
 * const answer = await fetch(`http://${client.listenAddrs[0]}/`, { headers: { connection: "close" } });
 * assertEquals(await answer.text(), "from behind");
 * await web.shutdown();
 * ```
 */
export async function openTunnel(options: OpenTunnelOptions): Promise<TunnelClient> {
  checkRuntime();
  const client = new Client(options);
  await client.open();
  const shutdown: TunnelClient["shutdown"] = ({ timeout } = {}) => client.shutdown(timeout);
  return {
    get serverAddr() {
      return client.serverAddr;
    },
    get listenAddrs() {
      return client.listenAddrs;
    },
    get statusAddr() {
      return client.statusAddr;
    },
    finished: client.finished,
    connect: (target) => client.connect(target),
    update: (options) => client.update(options),
    shutdown,
    stats: () => client.stats(),
    [Symbol.asyncDispose]: shutdown,
  };
}

/** Writes the first bytes of a connection; closes it if that fails. */
async function writeFirst(connection: DuplexConnection, bytes: Uint8Array): Promise<void> {
  try {
    await writeAll(connection, bytes);
  } catch (error) {
    connection.close();
    throw error;
  }
}

/** The client's end of a tunnel. */
class Client {
  #options: OpenTunnelOptions;
  #settings: Settings;
  readonly #activity: Activity;
  #link: Link;
  /** The link, and former ones whose connections have not ended. */
  readonly #links = new Set<Link>();
  readonly #finished = Promise.withResolvers<void>();
  /** Aborts when nothing new may begin. */
  readonly #stopping = new AbortController();
  /** Aborts when local connections that have no stream yet must be closed. */
  readonly #ending = new AbortController();
  /** Aborts when the server cannot be reached, so that the client stops listening. */
  #unavailable = new AbortController();
  /** Tasks that the end of the tunnel waits for. */
  readonly #tasks = new Set<Promise<unknown>>();
  /** Settles when the last update has ended. */
  #updated: Promise<unknown> = Promise.resolve();
  /** Removes the listener of the signal. */
  readonly #off: () => void;
  #status: StatusServer | undefined;
  #isOpen = false;

  constructor(options: OpenTunnelOptions) {
    this.#options = { ...options };
    this.#settings = checkOptions(options);
    this.#activity = new Activity(options);
    this.#link = this.#makeLink(linkSettings(options, this.#settings));
    this.finished.catch(() => {});
    this.#off = onAbort(options.signal, (reason) => {
      this.#stopping.abort(reason);
      this.#activity.abortIf(() => true, reason);
      this.#activity.cut();
    });
  }

  /** The address of the server. */
  get serverAddr(): string {
    return this.#link.serverAddr;
  }

  /** The addresses that are listened on so far. */
  get listenAddrs(): string[] {
    return this.#listeners().map(({ address }) => address);
  }

  #makeLink(settings: LinkSettings): Link {
    const link: Link = new Link(settings, this.#activity, {
      started: (session) => {
        this.#track(this.#accept(session));
        if (this.#isOpen && link === this.#link) this.#keepAllBound(link, session);
      },
      unavailable: () => link === this.#link && this.#unavailable.abort(),
      available: async () => {
        if (link === this.#link) await this.#available();
      },
    }, this.#stopping.signal);
    return link;
  }

  /** Listens again after the server could not be reached. */
  async #available(): Promise<void> {
    this.#unavailable = new AbortController();
    // Those for datagrams were not closed.
    const closed = this.#settings.locals.filter(({ listening }) => !(listening instanceof UdpListening));
    await Promise.all(closed.map((local) => this.#listenAgain(local)));
  }

  get finished(): Promise<void> {
    return this.#finished.promise;
  }

  stats(): TunnelStats {
    return this.#activity.stats();
  }

  /** Connects and listens. When it rejects, everything that it opened is closed. */
  async open(): Promise<void> {
    try {
      this.#status = this.#serveStatus(this.#options.status);
      // Before the server is there, which may take long: an address may be in use.
      for (const { listen } of this.#settings.locals) await checkFree(listen);
      const bound = await this.#connectAndBind();
      for (const local of this.#settings.locals) this.#listen(local, await listenTo(local.listen));
      this.#isOpen = true;
      this.#keepAllBound(this.#link, this.#link.session!, bound);
    } catch (error) {
      this.#link.session?.abort(error);
      await this.#end();
      throw error;
    }
    this.#follow(this.#link);
  }

  /** Keeps a link connected. The end of the current one is that of the tunnel. */
  #follow(link: Link): void {
    this.#links.add(link);
    const running = link.run();
    this.#track(running.catch(() => {}));
    running.finally(async () => {
      this.#links.delete(link);
      if (link === this.#link) await this.#end();
    }).then(() => link === this.#link && this.#finished.resolve(), this.#finished.reject);
  }

  /** Connects, and requests the server to listen; with `retry`, again when the connection is lost meanwhile. */
  async #connectAndBind(): Promise<Stream[]> {
    for (;;) {
      await this.#link.open();
      const session = this.#link.session!;
      try {
        const bound: Stream[] = [];
        for (const reverse of this.#settings.reverse.values()) bound.push(await this.#bindFirst(session, reverse));
        return bound;
      } catch (error) {
        if (!this.#options.retry || !(error instanceof SessionClosedError)) throw error;
        this.#activity.report(wrapError(`The connection to ${this.serverAddr} was lost`, error));
      }
    }
  }

  get statusAddr(): string | undefined {
    return this.#status?.addr;
  }

  #serveStatus(status: string | undefined): StatusServer | undefined {
    if (status === undefined) return undefined;
    return new StatusServer(status, this.#activity, {
      end: "client",
      isReady: () => this.#link.session !== undefined && !this.#link.isSuspended,
      listeners: () => this.#listeners(),
    });
  }

  /** Returns the addresses that are listened on so far, and where they lead. */
  #listeners(): StatusListener[] {
    const { locals, reverse } = this.#settings;
    return [...locals, ...reverse.values()].flatMap(({ addr, target }) =>
      addr === undefined ? [] : [{ address: addr, to: target }]
    );
  }

  async connect(target?: string): Promise<Stream> {
    try {
      return await this.#connect(target);
    } catch (error) {
      this.#activity.countRefusal(error);
      throw error;
    }
  }

  /** What proves to the server who requests. */
  get #credentials(): Credentials {
    const { secret, user } = this.#options;
    return { secret, user };
  }

  /** Milliseconds without a datagram after which a source is forgotten. */
  readonly #udpTimeout = () => this.#options.udpTimeout ?? UDP_TIMEOUT;

  async #connect(target?: string, method: "CONNECT" | "CONNECT-UDP" = "CONNECT"): Promise<Stream> {
    if (target !== undefined) parseEndpoint("target", target, 1);
    const session = await this.#ready();
    if (target === undefined) return await session.openStream();
    return (await request(session, method, target, this.#credentials)).stream;
  }

  /** Waits until the server can be reached. */
  async #ready(): Promise<Session> {
    for (;;) {
      const link = this.#link;
      try {
        return await link.ready();
      } catch (error) {
        if (link === this.#link) throw error;
      }
    }
  }

  /** Applies new options, after those of earlier calls. */
  update(options: OpenTunnelOptions): Promise<void> {
    const updating = this.#updated.then(() => this.#update({ ...options }));
    this.#updated = updating.catch(() => {});
    return updating;
  }

  async #update(options: OpenTunnelOptions): Promise<void> {
    if (this.#stopping.signal.aborted) throw new Error("Cannot update the tunnel: it has ended");
    const wanted = checkOptions(options);
    const locals = compareLocals(this.#settings.locals, wanted.locals);
    const reverses = compareReverses(this.#settings.reverse.values(), wanted.reverse.values());
    const hasNewStatus = options.status !== this.#options.status;
    const opened = new Map<Local, Listener>();
    const bound = new Map<Reverse, Stream>();
    const { session } = this.#link;
    let status: StatusServer | undefined;
    let link: Link | undefined;
    try {
      for (const { place, mustWait } of locals.added) {
        if (!mustWait) opened.set(place, await listenTo(place.listen));
      }
      if (hasNewStatus) status = this.#serveStatus(options.status);
      const settings = linkSettings(options, wanted);
      if (!this.#link.accepts(settings)) link = await this.#connectAnew(settings);
      else if (this.#link.isUp) await this.#bindAll(session!, reverses, bound);
      if (link === undefined) this.#link.configure(settings);
    } catch (error) {
      for (const opening of [...opened.values(), ...bound.values()]) opening.close();
      await status?.close();
      throw error;
    }
    const old = this.#status;
    if (hasNewStatus) this.#status = status;
    this.#options = options;
    this.#settings = {
      server: wanted.server,
      limits: wanted.limits,
      locals: locals.next,
      reverse: new Map(reverses.next.map((reverse) => [reverse.listen, reverse])),
    };
    // Those of a session that was lost meanwhile have ended.
    if (session !== this.#link.session) bound.clear();
    this.#changeReverses(reverses, bound, link);
    await this.#changeLocals(locals, opened);
    if (link !== undefined && this.#unavailable.signal.aborted) await this.#available();
    if (hasNewStatus) await old?.close();
  }

  /** Connects with settings that need another connection. */
  async #connectAnew(settings: LinkSettings): Promise<Link> {
    // One attempt only: the present connection stays unless it succeeds.
    const link = this.#makeLink({ ...settings, retry: false });
    try {
      await link.open();
    } catch (error) {
      link.end();
      throw error;
    }
    link.configure(settings);
    return link;
  }

  /** Requests the server to listen for new entries of `reverse`; those that must wait are left to `#keepBound`. */
  async #bindAll(session: Session, { added }: Changes<Reverse>, bound: Map<Reverse, Stream>): Promise<void> {
    for (const { place, mustWait } of added) if (!mustWait) bound.set(place, await this.#bind(session, place));
  }

  /** Stops what was removed, and keeps the server listening for new entries; with a new link, for all. */
  #changeReverses(
    { kept, added, removed }: Changes<Reverse>,
    bound: ReadonlyMap<Reverse, Stream>,
    link: Link | undefined,
  ): void {
    for (const place of removed) place.removed.abort();
    for (const [{ target, isProxied }, place] of kept) Object.assign(place, { target, isProxied });
    if (link === undefined) {
      const { session } = this.#link;
      // Without a session, the next one listens for all.
      if (session === undefined) return;
      for (const { place } of added) this.#track(this.#keepBound(this.#link, session, place, bound.get(place)));
      return;
    }
    const former = this.#link;
    this.#link = link;
    this.#follow(link);
    former.retire();
    this.#keepAllBound(link, link.session!);
  }

  /** Stops what was removed, and listens at new addresses. */
  async #changeLocals(
    { kept, added, removed }: Changes<Local>,
    opened: ReadonlyMap<Local, Listener>,
  ): Promise<void> {
    for (const place of removed) place.removed.abort();
    for (const [{ listen, target, isSocks, isProxied, route }, place] of kept) {
      Object.assign(place, { listen, target, isSocks, isProxied });
      Object.assign(place.route, route);
    }
    for (const [local, listening] of opened) this.#listen(local, listening);
    const waiting = added.filter(({ mustWait }) => mustWait);
    if (waiting.length > 0) await Promise.all(removed.map(({ listening }) => listening?.closed));
    for (const { place } of waiting) {
      await this.#listenAgain(place);
    }
  }

  shutdown(timeout = Infinity): Promise<void> {
    this.#stopping.abort();
    for (const link of this.#links) this.#close(link, timeout);
    this.#activity.cutAfter(clampTimeout(timeout), this.finished);
    return this.finished.catch(() => {});
  }

  #close(link: Link, timeout: number): void {
    const { session } = link;
    const end = () => {
      if (link.isSuspended) session?.abort();
    };
    // The timers of a suspended session do not run, and it cannot end in order.
    if (this.stats().open === 0) end();
    else if (timeout !== Infinity) this.finished.catch(() => {}).then(setDeadline(end, clampTimeout(timeout)));
    session?.close({ drain: true, timeout: clampTimeout(timeout) });
  }

  /** Reports the error of a task, and makes the end of the tunnel wait for the task. */
  #track(task: Promise<unknown>): void {
    this.#tasks.add(task);
    task.catch(this.#activity.report).finally(() => this.#tasks.delete(task));
  }

  async #end(): Promise<void> {
    this.#stopping.abort();
    this.#ending.abort();
    for (const link of [this.#link, ...this.#links]) link.end();
    this.#off();
    await this.#updated;
    while (this.#tasks.size > 0) await Promise.allSettled(this.#tasks);
    await this.#status?.close();
  }

  /** Forwards connections that are accepted at an address to the server. */
  #listen(local: Local, listening: Listener): void {
    local.addr = listening.addr;
    local.listening = listening;
    if (listening instanceof UdpListening) return this.#listenUdp(local, listening);
    const open = async (from: Socket) => {
      const { target, isSocks, isProxied } = local;
      let to = target;
      const stream = isSocks
        ? await speakSocks(from, (asked) => this.#connect(to = asked), () => this.#associate(local, from))
        : await this.#connect(target).catch(resetting(from));
      if (stream === undefined) return undefined;
      if (isProxied) await writeFirst(stream, proxyHeaderOf(from));
      return { stream, to };
    };
    const signal = AbortSignal.any([this.#stopping.signal, this.#unavailable.signal, local.removed.signal]);
    const all = forwardAll(this.#activity, listening, open, local.route, signal, this.#ending.signal);
    this.#track(all.then(({ forwarded }) => forwarded));
  }

  /** Forwards datagrams to the server. Without a connection to it they are dropped, but the address stays. */
  #listenUdp(local: Local, listening: UdpListening): void {
    const { route, removed } = local;
    const open = async () => {
      const { target } = local;
      return { stream: await this.#connect(target, "CONNECT-UDP"), to: target };
    };
    const signal = AbortSignal.any([this.#stopping.signal, removed.signal]);
    this.#track(
      forwardDatagrams(this.#activity, listening, { open, route, signal, timeout: this.#udpTimeout }),
    );
  }

  /** Forwards the datagrams of a SOCKS client until its connection ends. */
  #associate({ route }: Local, from: Socket): Promise<void> {
    const connect = (target: string) => this.#connect(target, "CONNECT-UDP");
    const { signal } = this.#stopping;
    return associate(this.#activity, from, { connect, route, signal, timeout: this.#udpTimeout });
  }

  /** Listens at an address, where the client may have listened before; if that fails, again and again. */
  async #listenAgain(local: Local, delays = backoff(MAX_BIND_PAUSE)): Promise<void> {
    const signal = AbortSignal.any([this.#unavailable.signal, this.#stopping.signal, local.removed.signal]);
    try {
      const listening = await listenTo(local.addr ?? local.listen);
      if (signal.aborted) listening.close();
      else this.#listen(local, listening);
    } catch (error) {
      this.#activity.report(error);
      const again = () => signal.aborted ? undefined : this.#listenAgain(local, delays);
      this.#track(sleep(delays.next().value, signal).then(again));
    }
  }

  /** Forwards connections that the server accepts. */
  async #accept(session: Session): Promise<void> {
    try {
      for await (const stream of session) {
        // A server opens streams for `reverse` only.
        if (this.#settings.reverse.size === 0) stream.close();
        else this.#track(this.#answer(stream).finally(() => stream.close()));
      }
    } catch {
      // The link reports the end of the session.
    }
  }

  async #answer(stream: Stream): Promise<void> {
    let visitor: ProxyAddress | undefined;
    let [listen, to] = ["", ""];
    const { opened } = await serveRequest(stream, "the server", async ({ method, address, forwardedFor }) => {
      // The server asks whether this end is alive.
      if (method === "OPTIONS") return stream;
      const isUdp = method === "CONNECT-UDP";
      listen = isUdp ? `${UDP}${address}` : address;
      const found = isUdp || method === "CONNECT" ? this.#settings.reverse.get(listen) : undefined;
      if (found === undefined) throw new TunnelRefusedError(403, "not in reverse");
      visitor = parseAddress(forwardedFor ?? "");
      to = found.target;
      const { connectTimeout } = this.#options;
      if (isUdp) return await dialUdp(to, stream, { connectTimeout });
      const socket = await dial(to, stream, { connectTimeout });
      if (found.isProxied) await writeFirst(socket, encodeProxyHeader(visitor, parseAddress(found.addr ?? "")));
      return socket;
    });
    if (opened === stream) return;
    const from = visitor === undefined ? this.serverAddr : format(visitor);
    const route = { kind: "reverse" as const, user: undefined, forward: `${listen}=${to}`, from, to };
    if (opened instanceof UdpPeer) return await forwardToPeer(this.#activity, stream, opened, route, this.#udpTimeout);
    await forwardStream(this.#activity, stream, opened as Socket, `to ${to}`, route);
  }

  /** Requests the server to listen, until the returned stream ends. */
  async #bind(session: Session, reverse: Reverse): Promise<Stream> {
    const [isUdp, address] = splitUdp(reverse.listen);
    const { stream, addr } = await request(session, isUdp ? "BIND-UDP" : "BIND", address, this.#credentials);
    reverse.addr = addr;
    return stream;
  }

  /** Requests the server to listen for the first time; with `retry`, until its address is free. */
  async #bindFirst(session: Session, reverse: Reverse): Promise<Stream> {
    for (const delays = backoff(MAX_BIND_PAUSE);;) {
      try {
        return await this.#bind(session, reverse);
      } catch (error) {
        const mayBecomeFree = error instanceof TunnelRefusedError && error.status >= 500;
        if (!this.#options.retry || !mayBecomeFree || this.#stopping.signal.aborted) throw error;
        this.#activity.report(error);
      }
      await sleep(delays.next().value, this.#stopping.signal);
    }
  }

  #keepAllBound(link: Link, session: Session, streams: readonly Stream[] = []): void {
    [...this.#settings.reverse.values()].forEach((reverse, n) =>
      this.#track(this.#keepBound(link, session, reverse, streams[n]))
    );
  }

  /** Keeps the server listening until the session ends, or the entry or the link is not used any more. */
  async #keepBound(link: Link, session: Session, reverse: Reverse, stream?: Stream): Promise<void> {
    const signal = AbortSignal.any([link.stopping, reverse.removed.signal]);
    // The server listens until the stream ends.
    const off = onAbort(signal, () => stream?.close());
    for (const delays = backoff(MAX_BIND_PAUSE); !signal.aborted;) {
      try {
        stream ??= await this.#bind(session, reverse);
        if (signal.aborted) break;
        // The server sends nothing more on the stream: the read waits for its end.
        await stream.read(new Uint8Array(1));
        throw new Error("closed by the server");
      } catch (error) {
        stream?.close();
        stream = undefined;
        if (signal.aborted || error instanceof SessionClosedError) break;
        this.#activity.report(wrapError(`Reverse forward ${reverse.listen} failed`, error));
      }
      await sleep(delays.next().value, signal);
    }
    stream?.close();
    off();
  }
}
