/**
 * Opens the client's end of a tunnel.
 *
 * @module
 */

import { type DuplexConnection, type Session, SessionClosedError, type Stream } from "../mod.ts";
import { Activity } from "./activity.ts";
import { checkExposed, checkTls, format, parseEndpoint, parseForward } from "./address.ts";
import { writeAll } from "./bytes.ts";
import { wrapError } from "./errors.ts";
import { forwardAll, forwardStream } from "./forward.ts";
import { checkSecret, type Credentials, request, serveRequest } from "./handshake.ts";
import { type Limits, limitsOf } from "./limits.ts";
import { Link } from "./link.ts";
import { type OpenTunnelOptions, type TunnelClient, TunnelRefusedError, type TunnelStats } from "./options.ts";
import { encodeProxyHeader, type ProxyAddress } from "./proxy_protocol.ts";
import { checkRuntime, dial, listenOn, listenToForward, resetting, type Socket } from "./socket.ts";
import { speakSocks } from "./socks5.ts";
import { checkStatus, type StatusListener, StatusServer } from "./status.ts";
import { checkName } from "./users.ts";
import { parseAddress, proxyHeaderOf } from "./visitor.ts";
import { backoff, checkTimeout, clampTimeout, onAbort, setDeadline, sleep } from "./wait.ts";

// Milliseconds between requests to listen. Larger: less load on a server that refuses; smaller: an earlier port.
const MAX_BIND_PAUSE = 30_000;

// Milliseconds. Larger: new connections survive a longer outage; smaller: they fail earlier.
const WAIT = 30_000;

/**
 * Starts the client's end of a tunnel: connects to the server, then listens. The end of each direction is forwarded as
 * a half-close, a fault as a reset. A connection whose target refuses is reset at once.
 *
 * When the connection to the server is lost, forwarded connections wait until it is resumed, up to 60 seconds. With a
 * server that does not support this, and after a restart of the server, they are reset, and the client connects again.
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
    serverAddr: client.serverAddr,
    listenAddrs: client.listenAddrs,
    statusAddr: client.statusAddr,
    finished: client.finished,
    connect: (target) => client.connect(target),
    shutdown,
    stats: () => client.stats(),
    [Symbol.asyncDispose]: shutdown,
  };
}

/** An address that the client listens on. */
interface Local {
  listen: string;
  /** `undefined`: the fixed target of the server, or that of each SOCKS 5 request. */
  target: string | undefined;
  isSocks: boolean;
  /** Whether the target expects a header of the PROXY protocol. */
  isProxied: boolean;
}

/** The target of an entry of `reverse`. */
interface ReverseTarget {
  target: string;
  isProxied: boolean;
}

/** The checked options of a client, with defaults. */
export interface Settings {
  certificates: { caCerts: string[] } | undefined;
  locals: Local[];
  /** TARGET of the client by LISTEN of the server, in the order of the options. */
  reverse: Map<string, ReverseTarget>;
  limits: Limits;
}

/** Checks the options of a client, and fills in the defaults. */
export function checkOptions(options: OpenTunnelOptions): Settings {
  const { connect, user, secret, ca, tls = ca !== undefined, insecure } = options;
  checkSecret(secret);
  checkStatus(options.status, insecure);
  if (user !== undefined) checkName("user", user);
  if (user !== undefined && secret === undefined) throw new RangeError("user requires secret, received only user");
  checkTimeout("connectTimeout", options.connectTimeout);
  if (tls) checkTls("connect", connect);
  if (ca !== undefined && !ca.includes("-----BEGIN CERTIFICATE-----")) {
    throw new RangeError('ca must be certificates in PEM, received text without "-----BEGIN CERTIFICATE-----"');
  }
  if (secret !== undefined && !tls) checkExposed("connect", connect, insecure);
  const locals = [
    ...(options.forward ?? []).map((text) => ({ ...parseForward("forward", text), isSocks: false })),
    ...(options.socks ?? []).map((listen) => ({ listen, target: undefined, isSocks: true, isProxied: false })),
  ];
  for (const { listen, isSocks } of locals) checkExposed(isSocks ? "socks" : "forward", listen, insecure);
  const reverse = new Map<string, ReverseTarget>();
  for (const text of options.reverse ?? []) {
    const { listen, target, isProxied } = parseForward("reverse", text);
    if (target === undefined) throw new RangeError(`reverse must be LISTEN=TARGET, received "${text}"`);
    if (reverse.has(listen)) {
      throw new RangeError(`reverse must contain each LISTEN only once, received ${listen} twice`);
    }
    reverse.set(listen, { target, isProxied });
  }
  const certificates = tls ? { caCerts: ca === undefined ? [] : [ca] } : undefined;
  return { certificates, locals, reverse, limits: limitsOf(options) };
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
  readonly serverAddr: string;
  readonly listenAddrs: string[] = [];
  readonly #options: OpenTunnelOptions;
  readonly #settings: Settings;
  readonly #activity: Activity;
  readonly #link: Link;
  readonly #finished = Promise.withResolvers<void>();
  /** Aborts when nothing new may begin. */
  readonly #stopping = new AbortController();
  /** Aborts when local connections that have no stream yet must be closed. */
  readonly #ending = new AbortController();
  /** Aborts when the server cannot be reached, so that the client stops listening. */
  #unavailable = new AbortController();
  /** Tasks that the end of the tunnel waits for. */
  readonly #tasks = new Set<Promise<unknown>>();
  /** Streams of BIND requests; the server listens until they end. */
  readonly #bound = new Set<Stream>();
  /** Removes the listener of the signal. */
  readonly #off: () => void;
  #status: StatusServer | undefined;
  #isOpen = false;

  constructor(options: OpenTunnelOptions) {
    this.serverAddr = format(parseEndpoint("connect", options.connect, 1));
    this.#options = { ...options };
    this.#settings = checkOptions(options);
    this.#activity = new Activity(options);
    const { locals, certificates, reverse, limits } = this.#settings;
    const { wait = WAIT, secret } = options;
    const requests = locals.some(({ target, isSocks }) => target !== undefined || isSocks) || reverse.size > 0;
    const settings = {
      ...options,
      serverAddr: this.serverAddr,
      certificates,
      isChecked: requests || secret !== undefined,
      wait: wait === Infinity ? wait : clampTimeout(wait),
      limits,
    };
    this.#link = new Link(settings, this.#activity, {
      started: (session) => this.#started(session),
      unavailable: () => this.#unavailable.abort(),
      available: async () => {
        this.#unavailable = new AbortController();
        await Promise.all(this.#settings.locals.map((local, n) => this.#listenAgain(local, this.listenAddrs[n]!)));
      },
    }, this.#stopping.signal);
    this.finished.catch(() => {});
    this.#off = onAbort(options.signal, (reason) => {
      this.#stopping.abort(reason);
      this.#link.session?.abort(reason);
      this.#activity.cut();
    });
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
      this.#serveStatus();
      // Before the server is there, which may take long: an address may be in use.
      for (const { listen } of this.#settings.locals) listenOn(listen).close();
      const bound = await this.#connectAndBind();
      for (const [n, local] of this.#settings.locals.entries()) {
        this.listenAddrs[n] = await this.#listen(local, local.listen);
      }
      this.#isOpen = true;
      this.#keepAllBound(this.#link.session!, bound);
    } catch (error) {
      this.#link.session?.abort(error);
      await this.#end();
      throw error;
    }
    this.#link.run().finally(() => this.#end()).then(this.#finished.resolve, this.#finished.reject);
  }

  /** Connects, and requests the server to listen; with `retry`, again when the connection is lost meanwhile. */
  async #connectAndBind(): Promise<Stream[]> {
    for (;;) {
      await this.#link.open();
      const session = this.#link.session!;
      try {
        const bound: Stream[] = [];
        for (const listen of this.#settings.reverse.keys()) bound.push(await this.#bindFirst(session, listen));
        return bound;
      } catch (error) {
        if (!this.#options.retry || !(error instanceof SessionClosedError)) throw error;
        this.#bound.clear();
        this.#activity.report(wrapError(`The connection to ${this.serverAddr} was lost`, error));
      }
    }
  }

  get statusAddr(): string | undefined {
    return this.#status?.addr;
  }

  #serveStatus(): void {
    const { status } = this.#options;
    if (status === undefined) return;
    this.#status = new StatusServer(status, this.#activity, {
      end: "client",
      isReady: () => this.#link.session !== undefined && !this.#link.isSuspended,
      listeners: () => this.#listeners(),
    });
  }

  /** Returns the addresses that are listened on so far, and where they lead. */
  #listeners(): StatusListener[] {
    const { locals, reverse } = this.#settings;
    const targets = [...locals.map(({ target }) => target), ...Array.from(reverse.values(), ({ target }) => target)];
    return this.listenAddrs.map((address, n) => ({ address, to: targets[n] }));
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

  async #connect(target?: string): Promise<Stream> {
    if (target !== undefined) parseEndpoint("target", target, 1);
    const session = await this.#link.ready();
    if (target === undefined) return await session.openStream();
    return (await request(session, "CONNECT", target, this.#credentials)).stream;
  }

  shutdown(timeout = Infinity): Promise<void> {
    this.#stopping.abort();
    for (const stream of this.#bound) stream.close();
    const { session } = this.#link;
    const end = () => {
      if (this.#link.isSuspended) session?.abort();
    };
    // The timers of a suspended session do not run, and it cannot end in order.
    if (this.stats().open === 0) end();
    else if (timeout !== Infinity) this.finished.catch(() => {}).then(setDeadline(end, clampTimeout(timeout)));
    session?.close({ drain: true, timeout: clampTimeout(timeout) });
    this.#activity.cutAfter(clampTimeout(timeout), this.finished);
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
    this.#link.end();
    this.#off();
    while (this.#tasks.size > 0) await Promise.allSettled(this.#tasks);
    await this.#status?.close();
  }

  #started(session: Session): void {
    // A server opens streams for `reverse` only. Without `reverse`, refuse each.
    if (this.#settings.reverse.size === 0) session.incoming.close();
    else this.#track(this.#accept(session));
    if (this.#isOpen) this.#keepAllBound(session);
  }

  /** Listens at an address, and forwards accepted connections to the server; returns the address with its port. */
  async #listen({ target, isSocks, isProxied, listen: named }: Local, listen: string): Promise<string> {
    const listening = await listenToForward(listen);
    const open = async (from: Socket) => {
      let to = target;
      const stream = isSocks
        ? await speakSocks(from, (asked) => this.#connect(to = asked))
        : await this.#connect(target).catch(resetting(from));
      if (isProxied) await writeFirst(stream, proxyHeaderOf(from));
      return { stream, to };
    };
    const kind = isSocks ? "socks" as const : "forward" as const;
    const route = { kind, user: undefined, forward: target === undefined ? named : `${named}=${target}` };
    const signal = AbortSignal.any([this.#stopping.signal, this.#unavailable.signal]);
    const all = forwardAll(this.#activity, listening, open, route, signal, this.#ending.signal);
    this.#track(all.then(({ forwarded }) => forwarded));
    return listening.addr;
  }

  /** Listens again at an address that the client has listened at before; if that fails, again and again. */
  async #listenAgain(local: Local, listen: string, delays = backoff(MAX_BIND_PAUSE)): Promise<void> {
    const signal = AbortSignal.any([this.#unavailable.signal, this.#stopping.signal]);
    try {
      await this.#listen(local, listen);
    } catch (error) {
      this.#activity.report(error);
      const again = () => signal.aborted ? undefined : this.#listenAgain(local, listen, delays);
      this.#track(sleep(delays.next().value, signal).then(again));
    }
  }

  /** Forwards connections that the server accepts. */
  async #accept(session: Session): Promise<void> {
    try {
      for await (const stream of session) this.#track(this.#answer(stream).finally(() => stream.close()));
    } catch {
      // The link reports the end of the session.
    }
  }

  async #answer(stream: Stream): Promise<void> {
    const { reverse } = this.#settings;
    let visitor: ProxyAddress | undefined;
    const { address, opened } = await serveRequest(stream, "the server", async ({ method, address, forwardedFor }) => {
      // The server asks whether this end is alive.
      if (method === "OPTIONS") return stream;
      const found = method === "CONNECT" ? reverse.get(address) : undefined;
      if (found === undefined) throw new TunnelRefusedError(403, "not in reverse");
      visitor = parseAddress(forwardedFor ?? "");
      const socket = await dial(found.target, stream, { connectTimeout: this.#options.connectTimeout });
      if (found.isProxied) await writeFirst(socket, encodeProxyHeader(visitor, this.#addressAt(address)));
      return socket;
    });
    if (opened === stream) return;
    const to = reverse.get(address)?.target;
    const from = visitor === undefined ? this.serverAddr : format(visitor);
    const route = { kind: "reverse" as const, user: undefined, forward: `${address}=${to}`, from, to };
    await forwardStream(this.#activity, stream, opened as Socket, `to ${to}`, route);
  }

  /** Returns the address where the server listens for an entry of `reverse`; `undefined` if it is no IP address. */
  #addressAt(listen: string): ProxyAddress | undefined {
    const { locals, reverse } = this.#settings;
    return parseAddress(this.listenAddrs[locals.length + [...reverse.keys()].indexOf(listen)] ?? "");
  }

  /** Requests the server to listen, until the returned stream ends. */
  async #bind(session: Session, listen: string): Promise<Stream> {
    const { stream, addr } = await request(session, "BIND", listen, this.#credentials);
    const { locals, reverse } = this.#settings;
    this.listenAddrs[locals.length + [...reverse.keys()].indexOf(listen)] = addr;
    this.#bound.add(stream);
    if (this.#stopping.signal.aborted) stream.close();
    return stream;
  }

  /** Requests the server to listen for the first time; with `retry`, until its address is free. */
  async #bindFirst(session: Session, listen: string): Promise<Stream> {
    for (const delays = backoff(MAX_BIND_PAUSE);;) {
      try {
        return await this.#bind(session, listen);
      } catch (error) {
        const mayBecomeFree = error instanceof TunnelRefusedError && error.status >= 500;
        if (!this.#options.retry || !mayBecomeFree || this.#stopping.signal.aborted) throw error;
        this.#activity.report(error);
      }
      await sleep(delays.next().value, this.#stopping.signal);
    }
  }

  #keepAllBound(session: Session, streams: readonly Stream[] = []): void {
    [...this.#settings.reverse.keys()].forEach((listen, n) =>
      this.#track(this.#keepBound(session, listen, streams[n]))
    );
  }

  /** Keeps the server listening until the session ends. */
  async #keepBound(session: Session, listen: string, stream?: Stream): Promise<void> {
    const { signal } = this.#stopping;
    for (const delays = backoff(MAX_BIND_PAUSE); !signal.aborted;) {
      try {
        stream ??= await this.#bind(session, listen);
        // The server sends nothing more on the stream: the read waits for its end.
        await stream.read(new Uint8Array(1));
        throw new Error("closed by the server");
      } catch (error) {
        stream?.close();
        if (stream !== undefined) this.#bound.delete(stream);
        stream = undefined;
        if (signal.aborted || error instanceof SessionClosedError) return;
        this.#activity.report(wrapError(`Reverse forward ${listen} failed`, error));
      }
      await sleep(delays.next().value, signal);
    }
  }
}
