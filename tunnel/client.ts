/**
 * Opens the end of a tunnel that connects to a server.
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
import { dial, listenOn, type Socket } from "./socket.ts";
import { speakSocks } from "./socks5.ts";
import { backoff, clampTimeout, MAX_BACKOFF, onAbort, sleep } from "./wait.ts";

// As `serve` has it by default.
const STALLED_STREAM_TIMEOUT = 5000;

/**
 * Starts the client's end of a tunnel: it connects to the server, then listens. The end of each direction is forwarded as
 * a half-close, and a connection whose target refuses is closed at once. When the connection to the server is lost, what it
 * carried is closed, and so are new connections until there is a new one.
 *
 * @param options The address of the server, what to forward, and callbacks for errors and events.
 * @returns The tunnel, when it is connected and everything listens.
 * @throws {RangeError} An option is out of bounds, or would open the tunnel to other machines.
 * @throws {TunnelRefusedError} The server does not listen for `reverse`.
 * @throws {Error} It cannot listen there, or the server cannot be reached.
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

/** What a client listens at, and the target: the fixed one of the server, or the one that SOCKS 5 names. */
interface Local {
  listen: string;
  target: string | undefined;
  isSocks: boolean;
}

/** Options of a client, checked and with their defaults. */
interface Settings {
  tls: { caCerts: string[] } | undefined;
  locals: Local[];
  /** By each LISTEN of the server, in their order, the TARGET here. */
  reverse: Map<string, string>;
}

function checkOptions(options: OpenTunnelOptions): Settings {
  const { connect, secret, ca, tls = ca !== undefined, insecure } = options;
  checkSecret(secret);
  if (tls) checkTls("connect", connect);
  if (ca !== undefined && !ca.includes("-----BEGIN CERTIFICATE-----")) {
    throw new RangeError("ca must be certificates in PEM, which begin with -----BEGIN CERTIFICATE-----");
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
      throw new RangeError(`reverse must not listen at the same place twice, received ${listen}`);
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
  /** Aborts when nothing new is to begin. */
  readonly #stopping = new AbortController();
  /** Aborts when local connections that have no stream yet are to be closed. */
  readonly #ending = new AbortController();
  /** What has to settle before the tunnel has ended. */
  readonly #tasks = new Set<Promise<unknown>>();
  /** Streams as long as which the server listens. */
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

  /** Connects and listens; when it rejects, nothing is left. */
  async open(): Promise<void> {
    try {
      const session = this.#session = await this.#start();
      for (const local of this.#settings.locals) this.#listen(local);
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
    if (this.#session === undefined) throw new Error(`There is no connection to ${this.serverAddr} now`);
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

  /** Reports the error of a task; the tunnel does not end before the task has settled. */
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
    // A server opens streams for `reverse` only: without it each is refused.
    if (reverse.size === 0) session.incoming.close();
    else this.#track(this.#accept(session));
    return session;
  }

  /** Forwards what is accepted here. */
  #listen({ listen, target, isSocks }: Local): void {
    const listening = listenOn(listen);
    this.listenAddrs.push(listening.addr);
    const connect = (to?: string) => this.connect(to);
    const open = (from: Socket) => isSocks ? speakSocks(from, connect) : connect(target);
    const all = forwardAll(this.#activity, listening, open, this.#stopping.signal, this.#ending.signal);
    this.#track(all.then(({ forwarded }) => forwarded));
  }

  /** Forwards what the server accepts. */
  async #accept(session: Session): Promise<void> {
    try {
      for await (const stream of session) this.#track(this.#answer(stream).finally(() => stream.close()));
    } catch {
      // The end of the session is reported elsewhere.
    }
  }

  async #answer(stream: Stream): Promise<void> {
    const { reverse } = this.#settings;
    const { address, opened } = await serveRequest(stream, "the server", async ({ method, address }) => {
      const target = method === "CONNECT" ? reverse.get(address) : undefined;
      if (target === undefined) throw new TunnelRefusedError(403, "not asked for");
      return await dial(target, stream);
    });
    await forwardStream(this.#activity, stream, opened, `to ${reverse.get(address)}`);
  }

  /** Lets the server listen; it does so until the stream ends. */
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

  /** Lets the server listen until the session ends. */
  async #keepBound(session: Session, listen: string, stream?: Stream): Promise<void> {
    const { signal } = this.#stopping;
    for (const delays = backoff(); !signal.aborted;) {
      try {
        stream ??= await this.#bind(session, listen);
        // Nothing comes on it but its end.
        await stream.read(new Uint8Array(1));
        throw new Error("the server ended it");
      } catch (error) {
        stream?.close();
        if (stream !== undefined) this.#bound.delete(stream);
        stream = undefined;
        if (signal.aborted || error instanceof SessionClosedError) return;
        this.#activity.report(wrapError(`The server does not listen on ${listen}`, error));
      }
      await sleep(delays.next().value, signal);
    }
  }

  /** Waits for the end of each session in turn, and connects again. */
  async #run(): Promise<void> {
    const { signal, reconnect = true } = this.#options;
    let delays = backoff();
    while (this.#session !== undefined) {
      const began = performance.now();
      const reason = await this.#sessionEnd(this.#session);
      this.#session = undefined;
      const ended = performance.now();
      const lost = wrapError(`The connection to ${this.serverAddr} was lost`, reason ?? "the server ended it");
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

  /** Waits until a session has ended; returns why, unless it ended in order. */
  #sessionEnd(session: Session): Promise<unknown> {
    const { signal } = this.#options;
    // The tunnel may have been ended before there was a session.
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
