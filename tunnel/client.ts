/**
 * Opens the client's end of a tunnel.
 *
 * @module
 */

import { Session, SessionClosedError, type Stream } from "../mod.ts";
import { Activity } from "./activity.ts";
import { checkExposed, checkTls, format, parseEndpoint, parseForward } from "./address.ts";
import { wrapError } from "./errors.ts";
import { forwardAll, forwardStream } from "./forward.ts";
import { checkSecret, request, serveRequest } from "./handshake.ts";
import { type OpenTunnelOptions, type TunnelClient, TunnelRefusedError, type TunnelStats } from "./options.ts";
import { checkRuntime, dial, listenToForward, resetting, type Socket } from "./socket.ts";
import { speakSocks } from "./socks5.ts";
import { backoff, clampTimeout, MAX_BACKOFF, onAbort, sleep } from "./wait.ts";

// Milliseconds. The default of `serve`.
const STALLED_STREAM_TIMEOUT = 5000;

/**
 * Starts the client's end of a tunnel: connects to the server, then listens. The end of each direction is forwarded as
 * a half-close, a fault as a reset. A connection whose target refuses is reset at once. When the connection to the
 * server is lost, all forwarded connections are reset, and so are new ones until the client has reconnected.
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
}

/** The checked options of a client, with defaults. */
interface Settings {
  tls: { caCerts: string[] } | undefined;
  locals: Local[];
  /** TARGET of the client by LISTEN of the server, in the order of the options. */
  reverse: Map<string, string>;
}

function checkOptions(options: OpenTunnelOptions): Settings {
  const { connect, secret, ca, tls = ca !== undefined, insecure } = options;
  checkSecret(secret);
  if (tls) checkTls("connect", connect);
  if (ca !== undefined && !ca.includes("-----BEGIN CERTIFICATE-----")) {
    throw new RangeError('ca must be certificates in PEM, received text without "-----BEGIN CERTIFICATE-----"');
  }
  if (secret !== undefined && !tls) checkExposed("connect", connect, insecure);
  const locals = [
    ...(options.forward ?? []).map((text) => ({ ...parseForward("forward", text), isSocks: false })),
    ...(options.socks ?? []).map((listen) => ({ listen, target: undefined, isSocks: true })),
  ];
  for (const { listen, isSocks } of locals) checkExposed(isSocks ? "socks" : "forward", listen, insecure);
  const reverse = new Map<string, string>();
  for (const text of options.reverse ?? []) {
    const { listen, target } = parseForward("reverse", text);
    if (target === undefined) throw new RangeError(`reverse must be LISTEN=TARGET, received "${text}"`);
    if (reverse.has(listen)) {
      throw new RangeError(`reverse must contain each LISTEN only once, received ${listen} twice`);
    }
    reverse.set(listen, target);
  }
  return { tls: tls ? { caCerts: ca === undefined ? [] : [ca] } : undefined, locals, reverse };
}

/** The client's end of a tunnel. */
class Client {
  readonly serverAddr: string;
  readonly listenAddrs: string[] = [];
  readonly #options: OpenTunnelOptions;
  readonly #settings: Settings;
  readonly #activity: Activity;
  readonly #finished = Promise.withResolvers<void>();
  /** Aborts when nothing new may begin. */
  readonly #stopping = new AbortController();
  /** Aborts when local connections that have no stream yet must be closed. */
  readonly #ending = new AbortController();
  /** Tasks that the end of the tunnel waits for. */
  readonly #tasks = new Set<Promise<unknown>>();
  /** Streams of BIND requests; the server listens until they end. */
  readonly #bound = new Set<Stream>();
  /** Removes the listener of the signal. */
  readonly #off: () => void;
  #session: Session | undefined;

  constructor(options: OpenTunnelOptions) {
    this.serverAddr = format(parseEndpoint("connect", options.connect, 1));
    this.#options = { ...options };
    this.#settings = checkOptions(options);
    this.#activity = new Activity(options);
    this.finished.catch(() => {});
    this.#off = onAbort(options.signal, (reason) => {
      this.#stopping.abort(reason);
      this.#session?.abort(reason);
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
      const session = this.#session = await this.#start();
      for (const local of this.#settings.locals) await this.#listen(local);
      const streams: Stream[] = [];
      for (const listen of this.#settings.reverse.keys()) streams.push(await this.#bind(session, listen));
      this.#keepAllBound(session, streams);
    } catch (error) {
      this.#session?.abort(error);
      await this.#end();
      throw error;
    }
    this.#run().finally(() => this.#end()).then(this.#finished.resolve, this.#finished.reject);
  }

  async connect(target?: string): Promise<Stream> {
    if (this.#session === undefined) throw new Error(`Cannot open a stream: not connected to ${this.serverAddr}`);
    if (target === undefined) return await this.#session.openStream();
    parseEndpoint("target", target, 1);
    return (await request(this.#session, "CONNECT", target, this.#options.secret)).stream;
  }

  shutdown(timeout = Infinity): Promise<void> {
    this.#stopping.abort();
    for (const stream of this.#bound) stream.close();
    this.#session?.close({ drain: true, timeout: clampTimeout(timeout) });
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
    this.#off();
    while (this.#tasks.size > 0) await Promise.allSettled(this.#tasks);
  }

  async #start(): Promise<Session> {
    const { connect, version, stalledStreamTimeout = STALLED_STREAM_TIMEOUT } = this.#options;
    const { tls, reverse } = this.#settings;
    const connection = await dial(connect, this.#stopping.signal, tls);
    const session = Session.client(connection, { version, stalledStreamTimeout, onFrame: this.#activity.frame });
    this.#activity.add(session);
    // A server opens streams for `reverse` only. Without `reverse`, refuse each.
    if (reverse.size === 0) session.incoming.close();
    else this.#track(this.#accept(session));
    return session;
  }

  /** Listens, and forwards accepted connections to the server. */
  async #listen({ listen, target, isSocks }: Local): Promise<void> {
    const listening = await listenToForward(listen);
    this.listenAddrs.push(listening.addr);
    const connect = (to?: string) => this.connect(to);
    const open = (from: Socket) => isSocks ? speakSocks(from, connect) : connect(target).catch(resetting(from));
    const all = forwardAll(this.#activity, listening, open, this.#stopping.signal, this.#ending.signal);
    this.#track(all.then(({ forwarded }) => forwarded));
  }

  /** Forwards connections that the server accepts. */
  async #accept(session: Session): Promise<void> {
    try {
      for await (const stream of session) this.#track(this.#answer(stream).finally(() => stream.close()));
    } catch {
      // `#run` reports the end of the session.
    }
  }

  async #answer(stream: Stream): Promise<void> {
    const { reverse } = this.#settings;
    const { address, opened } = await serveRequest(stream, "the server", async ({ method, address }) => {
      const target = method === "CONNECT" ? reverse.get(address) : undefined;
      if (target === undefined) throw new TunnelRefusedError(403, "not in reverse");
      return await dial(target, stream);
    });
    await forwardStream(this.#activity, stream, opened, `to ${reverse.get(address)}`);
  }

  /** Requests the server to listen, until the returned stream ends. */
  async #bind(session: Session, listen: string): Promise<Stream> {
    const { stream, addr } = await request(session, "BIND", listen, this.#options.secret);
    const { locals, reverse } = this.#settings;
    this.listenAddrs[locals.length + [...reverse.keys()].indexOf(listen)] = addr;
    this.#bound.add(stream);
    if (this.#stopping.signal.aborted) stream.close();
    return stream;
  }

  #keepAllBound(session: Session, streams: readonly Stream[] = []): void {
    [...this.#settings.reverse.keys()].forEach((listen, n) =>
      this.#track(this.#keepBound(session, listen, streams[n]))
    );
  }

  /** Keeps the server listening until the session ends. */
  async #keepBound(session: Session, listen: string, stream?: Stream): Promise<void> {
    const { signal } = this.#stopping;
    for (const delays = backoff(); !signal.aborted;) {
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

  /** Waits for the end of each session, and reconnects. */
  async #run(): Promise<void> {
    const { signal, reconnect = true } = this.#options;
    let delays = backoff();
    while (this.#session !== undefined) {
      const began = performance.now();
      const reason = await this.#sessionEnd(this.#session);
      this.#session = undefined;
      const ended = performance.now();
      const lost = wrapError(`The connection to ${this.serverAddr} was lost`, reason ?? "closed by the server");
      if (this.#stopping.signal.aborted) {
        if (reason !== undefined && !signal?.aborted) this.#activity.report(lost);
        return;
      }
      if (!reconnect) throw lost;
      this.#activity.report(lost);
      if (ended - began > MAX_BACKOFF) delays = backoff();
      const session = this.#session = await this.#startAgain(delays);
      if (session === undefined) return;
      const downtime = performance.now() - ended;
      this.#activity.emit({ type: "reconnected", serverAddr: this.serverAddr, error: lost, downtime });
      this.#keepAllBound(session);
    }
  }

  /** Waits until a session has ended; returns the reason, `undefined` after a clean close. */
  #sessionEnd(session: Session): Promise<unknown> {
    const { signal } = this.#options;
    // The tunnel may have been shut down while the session was being opened.
    if (signal?.aborted) session.abort(signal.reason);
    else if (this.#stopping.signal.aborted) session.close({ drain: true });
    return session.closed.then(() => undefined, (error: unknown) => error);
  }

  async #startAgain(delays: ReturnType<typeof backoff>): Promise<Session | undefined> {
    const { signal } = this.#stopping;
    while (!signal.aborted) {
      await sleep(delays.next().value, signal);
      try {
        return await this.#start();
      } catch (error) {
        if (!signal.aborted) this.#activity.report(error);
      }
    }
    return undefined;
  }
}
