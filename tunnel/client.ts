/**
 * Opens the client's end of a tunnel.
 *
 * @module
 */

import { SessionClosedError, type Stream } from "../mod.ts";
import { Activity } from "./activity.ts";
import { parseEndpoint } from "./address.ts";
import { writeFirst } from "./bytes.ts";
import { wrapError } from "./errors.ts";
import { forwardAll, refusedFrom } from "./forward.ts";
import { type Credentials, request } from "./handshake.ts";
import type { Link } from "./link.ts";
import { type AnyListening, checkFree, listenAgain, listenTo } from "./listen.ts";
import type { OpenTunnelOptions, TunnelClient, TunnelServerState, TunnelStats } from "./options.ts";
import { type Changes, compareLocals, compareReverses, type Local, type Reverse } from "./places.ts";
import { speakProxy } from "./proxy_entry.ts";
import { type ReverseHost, Reverses } from "./reverses.ts";
import { Servers } from "./servers.ts";
import { checkOptions, linkSettings, type Settings } from "./settings.ts";
import { checkRuntime, resetting, type Socket } from "./socket.ts";
import { associate } from "./socks_udp.ts";
import { type StatusListener, StatusServer } from "./status.ts";
import { UDP_TIMEOUT } from "./udp_flow.ts";
import { forwardDatagrams } from "./udp_forward.ts";
import { UdpListening } from "./udp_socket.ts";
import { proxyHeaderOf } from "./visitor.ts";
import { backoff, clampTimeout, onAbort, sleep } from "./wait.ts";

// Milliseconds between attempts to listen. Larger: less load; smaller: an earlier port.
const MAX_LISTEN_PAUSE = 30_000;

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
 * @throws {TunnelRefusedError} The server does not accept the secret, or refuses to listen for `reverse`. With several
 * servers it is the `cause` of an `Error`.
 * @throws {Error} The client cannot listen on an address, or cannot connect to the server.
 * @throws The reason of the signal, when it aborts before the tunnel is open.
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
    get servers() {
      return client.servers;
    },
    finished: client.finished,
    connect: (target) => client.connect(target),
    update: (options) => client.update(options),
    shutdown,
    stats: () => client.stats(),
    [Symbol.asyncDispose]: shutdown,
  };
}

/** The client's end of a tunnel. */
class Client {
  #options: OpenTunnelOptions;
  #settings: Settings;
  readonly #activity: Activity;
  readonly #reverses: Reverses;
  readonly #servers: Servers;
  /** What each server listens for already, until its link is used. */
  readonly #bound = new Map<Link, Map<Reverse, Stream>>();
  readonly #finished = Promise.withResolvers<void>();
  /** Aborts when nothing new may begin. */
  readonly #stopping = new AbortController();
  /** Aborts when local connections that have no stream yet must be closed. */
  readonly #ending = new AbortController();
  /** Aborts when no server can be reached, so that the client stops listening. */
  #unavailable = new AbortController();
  /** Tasks that the end of the tunnel waits for. */
  readonly #tasks = new Set<Promise<unknown>>();
  /** Settles when the last update has ended. */
  #updated: Promise<unknown> = Promise.resolve();
  /** Removes the listener of the signal. */
  readonly #off: () => void;
  #status: StatusServer | undefined;

  constructor(options: OpenTunnelOptions) {
    this.#options = { ...options };
    this.#settings = checkOptions(options);
    this.#activity = new Activity(options);
    this.#reverses = new Reverses(this.#reverseHost());
    this.#servers = this.#makeServers();
    this.finished.catch(() => {});
    this.#off = onAbort(options.signal, (reason) => {
      this.#stopping.abort(reason);
      this.#activity.abortIf(() => true, reason);
      this.#activity.cut();
    });
  }

  /** The address of the server of new connections. */
  get serverAddr(): string {
    return this.#servers.serverAddr;
  }

  get servers(): TunnelServerState[] {
    return this.#servers.states;
  }

  /** The addresses that are listened on so far. */
  get listenAddrs(): string[] {
    return this.#listeners().map(({ address }) => address);
  }

  #makeServers(): Servers {
    const settings = this.#settings.servers.map((server) => linkSettings(this.#options, this.#settings, server));
    return new Servers(settings, {
      activity: this.#activity,
      stopping: this.#stopping.signal,
      started: (link, session) => {
        this.#track(this.#reverses.accept(link, session));
        if (this.#servers.hasJoined(link)) this.#reverses.keepAllBound(link, session);
      },
      joined: (link) => {
        const bound = this.#bound.get(link);
        this.#bound.delete(link);
        for (const [{ removed }, stream] of bound ?? []) if (removed.signal.aborted) stream.close();
        this.#reverses.keepAllBound(link, link.session!, bound);
      },
      unavailable: () => this.#unavailable.abort(),
      available: () => this.#available(),
      ended: async (error) => {
        await this.#end();
        if (error === undefined) this.#finished.resolve();
        else this.#finished.reject(error);
      },
      track: (task) => this.#track(task),
    });
  }

  #reverseHost(): ReverseHost {
    return {
      activity: this.#activity,
      stopping: this.#stopping.signal,
      track: (task) => this.#track(task),
      current: () => {
        const { retry = false, connectTimeout } = this.#options;
        const { reverse, proxy, servers } = this.#settings;
        const [credentials, udpTimeout] = [this.#credentials, this.#udpTimeout()];
        return { reverse, proxy, credentials, retry, connectTimeout, udpTimeout, hasMany: servers.length > 1 };
      },
    };
  }

  /** Listens again after the server could not be reached. */
  async #available(): Promise<void> {
    if (!this.#unavailable.signal.aborted) return;
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
      const { links } = this.#servers;
      const starts = await this.#servers.connect(links, links.length > 1, (link) => this.#connectAndBind(link));
      for (const local of this.#settings.locals) this.#listen(local, await listenTo(local.listen));
      this.#servers.use(links, linkSettings(this.#options, this.#settings, this.#settings.servers[0]!), starts);
    } catch (error) {
      // Before the sessions end, so that no other server is tried.
      this.#stopping.abort();
      this.#servers.forEach(({ session }) => session?.abort(error));
      await this.#end();
      throw error;
    }
  }

  /** Connects, and requests the server to listen; with `retry`, again when the connection is lost meanwhile. */
  async #connectAndBind(link: Link): Promise<void> {
    for (;;) {
      const bound = new Map<Reverse, Stream>();
      this.#bound.set(link, bound);
      await link.open();
      try {
        return await this.#reverses.bindFirst(link, bound);
      } catch (error) {
        if (!this.#options.retry || !(error instanceof SessionClosedError)) throw error;
        this.#activity.report(wrapError(`The connection to ${link.serverAddr} was lost`, error));
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
      isReady: () => this.#servers.up !== undefined,
      servers: () => this.servers,
      listeners: () => this.#listeners(),
    });
  }

  /** Returns the addresses that are listened on so far, and where they lead. */
  #listeners(): StatusListener[] {
    const { locals, reverse, servers } = this.#settings;
    const names = [this.serverAddr, ...servers.map(({ name }) => name)];
    const bound = [...reverse.values()].map(({ addrs, target }) => ({
      addr: names.map((name) => addrs.get(name)).find((addr) => addr !== undefined),
      target,
    }));
    return [...locals, ...bound].flatMap(({ addr, target }) =>
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
    return await this.#servers.open(async (session) => {
      if (target === undefined) return await session.openStream();
      return (await request(session, method, target, this.#credentials)).stream;
    });
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
    const opened = new Map<Local, AnyListening>();
    const bound = new Map<Reverse, Stream>();
    let status: StatusServer | undefined;
    const plan = this.#servers.plan(wanted.servers.map((server) => linkSettings(options, wanted, server)));
    const up = plan.links.find((link) => link.isUp && this.#servers.hasJoined(link));
    const session = up?.session;
    try {
      for (const { place, mustWait } of locals.added) {
        if (!mustWait) opened.set(place, await listenTo(place.listen));
      }
      if (hasNewStatus) status = this.#serveStatus(options.status);
      await this.#servers.prepare(plan);
      if (up !== undefined) await this.#reverses.bindAdded(up, reverses, bound);
    } catch (error) {
      for (const opening of [...opened.values(), ...bound.values()]) opening.close();
      await status?.close();
      throw error;
    }
    const old = this.#status;
    if (hasNewStatus) this.#status = status;
    this.#options = options;
    this.#settings = {
      servers: wanted.servers,
      limits: wanted.limits,
      locals: locals.next,
      proxy: wanted.proxy,
      reverse: new Map(reverses.next.map((reverse) => [reverse.listen, reverse])),
    };
    // Those of a session that was lost meanwhile have ended.
    if (session !== up?.session) bound.clear();
    this.#reverses.change(reverses, wanted.servers.map(({ name }) => name));
    for (const link of plan.links) {
      // Without a session, the next one listens for all.
      if (link.session === undefined || !this.#servers.hasJoined(link)) continue;
      this.#reverses.keepAdded(link, link.session, reverses, link === up ? bound : undefined);
    }
    this.#servers.use(plan.links, plan.settings[0]!, this.#servers.complete(plan));
    await this.#changeLocals(locals, opened);
    if (this.#servers.up !== undefined) await this.#available();
    if (hasNewStatus) await old?.close();
  }

  /** Stops what was removed, and listens at new addresses. */
  async #changeLocals(
    { kept, added, removed }: Changes<Local>,
    opened: ReadonlyMap<Local, AnyListening>,
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
    const limit = clampTimeout(timeout);
    this.#stopping.abort();
    this.#servers.forEach(({ session }) => session?.close({ drain: true, timeout: limit }));
    this.#activity.cutAfter(limit, this.finished);
    return this.finished.catch(() => {});
  }

  /** Reports the error of a task, and makes the end of the tunnel wait for the task. */
  #track(task: Promise<unknown>): void {
    this.#tasks.add(task);
    task.catch(this.#activity.report).finally(() => this.#tasks.delete(task));
  }

  async #end(): Promise<void> {
    this.#stopping.abort();
    this.#ending.abort();
    this.#servers.forEach((link) => link.end());
    this.#off();
    await this.#updated;
    while (this.#tasks.size > 0) await Promise.allSettled(this.#tasks);
    await this.#status?.close();
  }

  /** Forwards connections that are accepted at an address to the server. */
  #listen(local: Local, listening: AnyListening): void {
    local.addr = listening.addr;
    local.listening = listening;
    if (listening instanceof UdpListening) return this.#listenUdp(local, listening);
    const open = async (from: Socket) => {
      const { target, isSocks, isProxied } = local;
      if (isSocks) {
        let to = target;
        const connect = (asked: string) => this.#connect(to = asked);
        const { auth } = this.#settings.proxy;
        const associate = () => this.#associate(local, from);
        const { connected, sent, check } = await speakProxy(from, connect, { auth, associate }).catch((error) => {
          // That of a request names its target.
          throw to === undefined ? refusedFrom(from, error) : error;
        });
        if (connected === undefined) return undefined;
        return { stream: connected, to, checks: { received: check }, before: { sent } };
      }
      const stream = await this.#connect(target).catch(resetting(from));
      if (isProxied) await writeFirst(stream, proxyHeaderOf(from));
      return { stream, to: target };
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
  async #listenAgain(local: Local, delays = backoff(MAX_LISTEN_PAUSE)): Promise<void> {
    const signal = AbortSignal.any([this.#unavailable.signal, this.#stopping.signal, local.removed.signal]);
    try {
      const listening = await listenAgain(() => listenTo(local.addr ?? local.listen), signal);
      if (signal.aborted) listening.close();
      else this.#listen(local, listening);
    } catch (error) {
      this.#activity.report(error);
      const again = () => signal.aborted ? undefined : this.#listenAgain(local, delays);
      this.#track(sleep(delays.next().value, signal).then(again));
    }
  }
}
