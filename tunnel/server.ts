/**
 * Serves the server's end of a tunnel.
 *
 * @module
 */

import { type Connection, type Listener, serve, type Server, type Session, type Stream } from "../mod.ts";
import { resumableListener } from "../resume.ts";
import { Access } from "./access.ts";
import type { Route } from "./accounting.ts";
import { Activity } from "./activity.ts";
import { checkExposed, checkTls, formatPeer, parseEndpoint, UDP, UNNAMED } from "./address.ts";
import { Entrance } from "./entrance.ts";
import { show, toError, wrapError } from "./errors.ts";
import { forwardAll, forwardStream } from "./forward.ts";
import { checkSecret, type Request, request, serveRequest } from "./handshake.ts";
import { certifiedUser } from "./identity.ts";
import { limitsOf } from "./limits.ts";
import { checkLists } from "./lists.ts";
import type { AnyListening } from "./listen.ts";
import { type Direction, serveMeasure } from "./measure.ts";
import { type ServeTunnelOptions, TunnelRefusedError, type TunnelServer, type TunnelStats } from "./options.ts";
import { pinOfPem } from "./pin.ts";
import { Ports } from "./ports.ts";
import { checkProxies } from "./proxy_listener.ts";
import { checkClientCa } from "./tls_listener.ts";
import { checkRuntime, dial, Listening, resetting, type Socket } from "./socket.ts";
import { Returning } from "./returning.ts";
import { checkStatus, StatusServer } from "./status.ts";
import { UDP_TIMEOUT } from "./udp_flow.ts";
import { forwardDatagrams, forwardToPeer } from "./udp_forward.ts";
import { dialUdp, UdpListening, UdpPeer } from "./udp_socket.ts";
import { VERSION } from "./version.ts";
import { visitorHeader, visitorLine } from "./visitor.ts";
import { checkTimeout, clampTimeout, onAbort } from "./wait.ts";
import { checkWeb } from "./web_listener.ts";
import { withoutScheme } from "./web_socket_address.ts";

/**
 * Starts the server's end of a tunnel, for any number of clients. When the server cannot connect to a target, the
 * stream ends at once and `onError` is called with the error.
 *
 * @param options The address to listen on, what clients may request, and callbacks for errors and events.
 * @returns The tunnel, which listens already.
 * @throws {RangeError} An option is malformed, or would open the tunnel to other machines.
 * @throws {TypeError} The runtime is not Deno.
 * @throws {Error} The server cannot listen on the address.
 *
 * @example One target, for any smux client
 * ```ts
 * import { serveTunnel } from "@sluice/smux/tunnel";
 * import { Session } from "@sluice/smux";
 * import { assertStringIncludes } from "@std/assert";
 * import { toText } from "@std/streams";
 *
 * const web = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, () => new Response("hello"));
 * const server = serveTunnel({ listen: "127.0.0.1:0", target: `127.0.0.1:${web.addr.port}` });
 *
 * // A session without a tunnel is enough for a client.
 * const { hostname, port } = new URL(`http://${server.serverAddr}`);
 * const session = Session.client(await Deno.connect({ hostname, port: Number(port) }));
 * const stream = await session.openStream();
 * await stream.write(new TextEncoder().encode("GET / HTTP/1.0\r\n\r\n"));
 * assertStringIncludes(await toText(stream.readable), "hello");
 *
 * stream.close();
 * await session.close();
 * await server.shutdown();
 * await web.shutdown();
 * ```
 */
export function serveTunnel(options: ServeTunnelOptions): TunnelServer {
  checkRuntime();
  const server = new ServerEnd(options);
  const shutdown: TunnelServer["shutdown"] = ({ timeout } = {}) => server.shutdown(timeout);
  return {
    get serverAddr() {
      return server.addr;
    },
    listenAddrs: [],
    get pin() {
      return server.pin;
    },
    get statusAddr() {
      return server.statusAddr;
    },
    finished: server.finished,
    update: (options) => server.update(options),
    shutdown,
    stats: () => server.stats(),
    [Symbol.asyncDispose]: shutdown,
  };
}

/** Throws a `RangeError` for options that are malformed, or cannot be combined. */
export function checkOptions(options: ServeTunnelOptions): void {
  const { listen, target, secret, users, cert, key, clientCa, allow = [], allowListen = [], authorize } = options;
  checkLists(options, ["allow", "allowListen", "acceptProxy"]);
  if ((cert === undefined) !== (key === undefined)) {
    throw new RangeError(`cert and key must be set together, received only ${cert === undefined ? "key" : "cert"}`);
  }
  const at = withoutScheme("listen", listen);
  parseEndpoint("listen", at, 0);
  if (cert !== undefined) checkTls("listen", at);
  checkWeb(options);
  checkClientCa(options);
  checkProxies(options);
  checkSecret(secret);
  checkStatus(options.status, options.insecure);
  checkTimeout("connectTimeout", options.connectTimeout);
  checkTimeout("udpTimeout", options.udpTimeout);
  limitsOf(options);
  const hasRules = allow.length > 0 || allowListen.length > 0;
  if (users !== undefined && (secret !== undefined || hasRules)) {
    throw new RangeError("users cannot be combined with secret, allow or allowListen: each user has its own");
  }
  if (target !== undefined) {
    parseEndpoint("target", target, 1);
    if (secret !== undefined || hasRules) {
      throw new RangeError("target cannot be combined with secret, allow or allowListen");
    }
    if (users !== undefined || authorize !== undefined) {
      throw new RangeError("target cannot be combined with users or authorize");
    }
  }
  if (cert === undefined || (secret ?? users ?? clientCa) === undefined) checkExposed("listen", at, options.insecure);
  // Checks the users and the rules.
  new Access(options, () => {});
}

/** Returns the entries of `allow`, as they were written. */
function namesOf({ allow = [], users = [] }: ServeTunnelOptions): Set<string> {
  return new Set([allow, ...users.map(({ allow = [] }) => allow)].flat());
}

/** Whether a request was refused by the rules. */
function isForbidden(error: unknown): boolean {
  return error instanceof TunnelRefusedError && error.status === 403;
}

/** Options of sessions, which a running server keeps. */
const FIXED = ["stalledStreamTimeout", "keepAliveInterval", "timeout", "maxStreams", "maxReceiveBuffer"] as const;

/** Where the clients of a server come from. */
export interface ServerEntrance extends Listener<Connection> {
  /** The address, for messages. */
  readonly addr: string;
  /** Settles after `close`, when no handshake is in progress. */
  readonly ended: Promise<unknown>;
  /** Whether it is not an address of this process, which may then be unable to listen at any. */
  readonly isHandler?: boolean;
  /** Accepts new connections with other options. */
  replace(options: ServeTunnelOptions): Promise<void>;
}

/** The server's end of a tunnel. */
export class ServerEnd {
  readonly finished: Promise<void>;
  #options: ServeTunnelOptions;
  readonly #access: Access;
  readonly #ports = new Ports();
  readonly #returning = new Returning();
  /** Sessions whose throughput is being measured. */
  readonly #measuring = new WeakSet<Session>();
  /** Errors of sessions, which were reported with the addresses of the clients. */
  readonly #reported = new WeakSet<Error>();
  /** Headers of the response to OPTIONS. */
  readonly #about: string;
  /** The entries of `allow`, as they were written. */
  #named: ReadonlySet<string>;
  readonly #activity: Activity;
  readonly #entrance: ServerEntrance;
  readonly #server: Server;
  /** Aborts when nothing new may begin. */
  readonly #stopping = new AbortController();
  #status: StatusServer | undefined;
  /** Settles when the last update has ended. */
  #updated: Promise<unknown> = Promise.resolve();

  /** @param entrance Where clients come from. Default: the address of the options. */
  constructor(options: ServeTunnelOptions, entrance?: ServerEntrance) {
    checkOptions(options);
    const { session, silence } = limitsOf(options);
    this.#about = `Server: sluice/${VERSION}\r\nTimeout: ${session.timeout ?? 30_000}\r\n`;
    this.#options = { ...options };
    this.#named = namesOf(options);
    this.#activity = new Activity(options);
    this.#access = new Access(options, this.#activity.report);
    this.#entrance = entrance ?? new Entrance(options, this.#activity.report);
    try {
      this.#status = this.#serveStatus(options.status);
    } catch (error) {
      this.#entrance.close();
      throw error;
    }
    const cut = new AbortController();
    const listener = resumableListener(this.#entrance, { silence });
    this.#server = serve(listener, (stream, session) => this.#handle(stream, session), {
      signal: cut.signal,
      ...session,
      stalledStreamTimeout: options.stalledStreamTimeout,
      onFrame: this.#activity.frame,
      onError: (error) => {
        const isReported = error instanceof Error && this.#reported.has(error);
        if (!isReported) this.#activity.report(wrapError("A client's connection failed", error));
      },
      onSession: (session) => this.#begin(session, cut.signal),
    });
    const off = onAbort(options.signal, (reason) => {
      this.#stopping.abort(reason);
      cut.abort(reason);
      this.#activity.cut();
    });
    this.finished = this.#server.finished.finally(async () => {
      off();
      await this.#updated;
      await this.#entrance.ended;
      await this.#status?.close();
    });
  }

  /** Counts and reports a client that has connected, and reports its end. */
  #begin(session: Session, cut: AbortSignal): void {
    const began = performance.now();
    // A connection that is resumed may come from another address then.
    const clientAddr = formatPeer(session.remoteAddr);
    const user = certifiedUser(session.remoteAddr);
    this.#activity.add(session);
    this.#activity.setUser(session, user);
    this.#activity.emit({ type: "connected", clientAddr, ...user === undefined ? {} : { user } });
    // Before the server reports the error without the address.
    session.closed.catch((error) => {
      if (cut.aborted || !(error instanceof Error)) return;
      this.#reported.add(error);
      this.#activity.report(wrapError(`A client's connection from ${clientAddr ?? UNNAMED} failed`, error));
    });
    session.closed.then(() => undefined, toError).then((error) => {
      const duration = Math.round(performance.now() - began);
      this.#activity.emit({
        type: "disconnected",
        clientAddr,
        user: this.#access.userOf(session) ?? user,
        duration,
        error,
      });
    });
  }

  /** The address that accepts clients. */
  get addr(): string {
    return this.#entrance.addr;
  }

  get statusAddr(): string | undefined {
    return this.#status?.addr;
  }

  get pin(): string | undefined {
    const { cert } = this.#options;
    return cert === undefined ? undefined : pinOfPem(cert);
  }

  #serveStatus(listen: string | undefined): StatusServer | undefined {
    if (listen === undefined) return undefined;
    return new StatusServer(listen, this.#activity, {
      end: "server",
      isReady: () => !this.#stopping.signal.aborted,
      listeners: () => [
        { address: this.addr, to: this.#options.target },
        ...this.#activity.listening().map(({ listenAddr, clientAddr }) => ({ address: listenAddr, to: clientAddr })),
      ],
    });
  }

  stats(): TunnelStats {
    return this.#activity.stats();
  }

  /** Applies new options, after those of earlier calls. */
  update(options: ServeTunnelOptions): Promise<void> {
    const updating = this.#updated.then(() => this.#update({ ...options }));
    this.#updated = updating.catch(() => {});
    return updating;
  }

  async #update(options: ServeTunnelOptions): Promise<void> {
    if (this.#stopping.signal.aborted) throw new Error("Cannot update the tunnel: it has ended");
    checkOptions(options);
    for (const name of FIXED) {
      const [present, wanted] = [this.#options[name], options[name]];
      if (wanted === present) continue;
      const [before, after] = [present, wanted].map((value) => value === undefined ? "its default" : show(value));
      throw new RangeError(
        `${name} of a server cannot be changed while it runs, expected ${before}, received ${after}`,
      );
    }
    const { status } = options;
    const old = this.#status;
    const isSameStatus = status === this.#options.status;
    const next = isSameStatus ? old : this.#serveStatus(status);
    try {
      await this.#entrance.replace(options);
    } catch (error) {
      if (!isSameStatus) await next?.close();
      throw error;
    }
    this.#access.update(options);
    this.#named = namesOf(options);
    this.#options = options;
    this.#status = next;
    const removed = new Error("The user was removed, or must show a certificate");
    this.#activity.abortIf((session) => this.#access.isRemoved(session), removed);
    this.#ports.releaseUnless((permit, addr) => this.#access.mayKeep(permit, addr));
    if (!isSameStatus) await old?.close();
  }

  async shutdown(timeout = Infinity): Promise<void> {
    this.#stopping.abort();
    this.#activity.cutAfter(clampTimeout(timeout), this.finished);
    await this.#server.shutdown({ timeout: clampTimeout(timeout) });
    await this.finished;
  }

  async #handle(stream: Stream, session: Session): Promise<void> {
    try {
      const { target, connectTimeout } = this.#options;
      if (target !== undefined) {
        const socket = await dial(target, stream, { connectTimeout }).catch((error) => {
          // As if the stream had requested it.
          this.#activity.refuse(502);
          throw error;
        });
        await this.#forward(session, stream, socket, { kind: "target", forward: target, to: target });
      } else {
        await this.#answer(stream, session);
      }
    } catch (error) {
      // Without a response to a request, a target that refuses would look like one with an empty answer.
      if (this.#options.target !== undefined) stream.abort(error);
      this.#activity.report(error);
    }
  }

  async #forward(
    session: Session,
    stream: Stream,
    socket: Socket,
    route: Pick<Route, "kind" | "forward" | "to">,
  ): Promise<void> {
    const [user, from] = [this.#activity.userOf(session), formatPeer(session.remoteAddr)];
    await forwardStream(this.#activity, stream, socket, `to ${route.to}`, { ...route, user, from });
  }

  /** Serves the request that a stream begins with. */
  async #answer(stream: Stream, session: Session): Promise<void> {
    const peer = formatPeer(session.remoteAddr) ?? UNNAMED;
    const open = (request: Request) => this.#open(request, stream, session);
    const { method, address, opened } = await serveRequest(stream, peer, open, this.#about);
    if (opened instanceof Listening || opened instanceof UdpListening) {
      await this.#listenFor(session, stream, address, opened);
    } else if (opened === stream) {
      if (method === "MEASURE") await serveMeasure(stream, address as Direction);
      else stream.close();
    } else if (opened instanceof UdpPeer) {
      const [user, from] = [this.#activity.userOf(session), formatPeer(session.remoteAddr)];
      const forward = this.#named.has(`${UDP}${address}`) ? `${UDP}${address}` : `${UDP}*`;
      const route = { kind: "connect" as const, forward, to: address, user, from };
      await forwardToPeer(this.#activity, stream, opened, route, this.#udpTimeout);
    } else {
      // A target that only a wildcard allows has no sums of its own.
      const forward = this.#named.has(address) ? address : "*";
      await this.#forward(session, stream, opened as Socket, { kind: "connect", forward, to: address });
    }
  }

  /** Connects or listens for a request, if it is allowed; returns the stream if it only proves the secret. */
  async #open(request: Request, stream: Stream, session: Session): Promise<AnyListening | Socket | Stream | UdpPeer> {
    const { signal } = this.#stopping;
    const permit = await this.#access.check(request, session, signal, stream).catch((error) => {
      throw request.method.startsWith("BIND") && this.#neverListens && isForbidden(error)
        ? new TunnelRefusedError(501, "this server cannot listen: it is a handler without allowListen")
        : error;
    });
    this.#activity.setUser(session, this.#access.userOf(session));
    if (permit === undefined) {
      if (request.method === "MEASURE") this.#measure(session, stream);
      else this.#returning.note(request.client, this.#access.accountOf(session)!, session);
      return stream;
    }
    const { account, method, addresses } = permit;
    if (method === "CONNECT" || method === "CONNECT-UDP") {
      await account.streams.takeFor(() => Promise.resolve(stream));
      const { connectTimeout } = this.#options;
      if (method === "CONNECT-UDP") return await dialUdp(request.address, stream, { addresses, connectTimeout });
      return await dial(request.address, stream, { addresses, connectTimeout });
    }
    const listening = await this.#ports.listen(permit, session, stream, signal);
    try {
      this.#access.checkListening(permit, listening.addr);
    } catch (error) {
      listening.close();
      throw error;
    }
    return listening;
  }

  /** Milliseconds without a datagram after which a source is forgotten. */
  readonly #udpTimeout = () => this.#options.udpTimeout ?? UDP_TIMEOUT;

  /** Whether no client may make this process listen, which it may be unable to. */
  get #neverListens(): boolean {
    const { allowListen = [], users = [] } = this.#options;
    const rules = [...allowListen, ...users.flatMap(({ allowListen = [] }) => allowListen)];
    return this.#entrance.isHandler === true && rules.length === 0;
  }

  /** Counts a measurement until its stream has ended: each takes all that the link has. */
  #measure(session: Session, stream: Stream): void {
    if (this.#measuring.has(session)) throw new TunnelRefusedError(429, "another measurement is running");
    this.#measuring.add(session);
    const ended = () => void this.#measuring.delete(session);
    stream.closed.then(ended, ended);
  }

  /** Accepts connections for a client, until the stream of its request ends. */
  async #listenFor(session: Session, stream: Stream, address: string, listening: AnyListening): Promise<void> {
    const ended = new AbortController();
    const off = onAbort(this.#stopping.signal, () => ended.abort());
    const where = { listenAddr: listening.addr, clientAddr: formatPeer(session.remoteAddr) };
    this.#activity.emit({ type: "listening", ...where });
    const streams = this.#access.accountOf(session)!.streams;
    const ask = (method: "CONNECT" | "CONNECT-UDP", header: string) =>
      streams.takeFor(async () => (await request(session, method, address, {}, header)).stream);
    const route = { kind: "reverse" as const, user: this.#activity.userOf(session), forward: address };
    const listened = listening instanceof UdpListening
      ? forwardDatagrams(this.#activity, listening, {
        open: async (from) => ({ stream: await ask("CONNECT-UDP", visitorLine(from)), to: where.clientAddr }),
        route: { ...route, forward: `${UDP}${address}` },
        signal: ended.signal,
        timeout: this.#udpTimeout,
      }).then(() => ({ forwarded: undefined }))
      : forwardAll(
        this.#activity,
        listening,
        async (from) => {
          const stream = await ask("CONNECT", visitorHeader(from)).catch(resetting(from));
          return { stream, to: where.clientAddr };
        },
        route,
        ended.signal,
      );
    // The client sends nothing more on the stream: the read waits for its end.
    const reading = stream.read(new Uint8Array(1)).then(() => undefined, toError);
    const error = await Promise.race([reading, listened.then(() => undefined)]);
    ended.abort();
    off();
    stream.close();
    const { forwarded } = await listened;
    this.#activity.emit({ type: "stopped", ...where, error });
    await forwarded;
  }
}
