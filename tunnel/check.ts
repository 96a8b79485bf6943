/**
 * Checks what lies between a client and its server, step by step.
 *
 * @module
 */

import { isIP } from "node:net";
import { type Connection, Session, SessionClosedError, type Stream, StreamResetError, type Version } from "../mod.ts";
import { adviceFor, type StepKind } from "./advice.ts";
import { format, parseForward, splitUdp } from "./address.ts";
import { connectResumable } from "./carrier.ts";
import { askProxy, connectProxy } from "./dial_proxy.ts";
import { connectServer, dialServer, type DialServerOptions, secureServer, type ServerPlace } from "./dial_server.ts";
import { upgradeServer } from "./dial_web_socket.ts";
import { errorText, PermanentError, toError, wrapError } from "./errors.ts";
import { type Credentials, header, request } from "./handshake.ts";
import { type Direction, measure } from "./measure.ts";
import { type OpenTunnelOptions, TunnelRefusedError } from "./options.ts";
import { describeCertificate, describeCertificateOver } from "./peer_certificate.ts";
import { checkOptions, type Settings } from "./settings.ts";
import { addressesOf, checkRuntime, dial, type Socket } from "./socket.ts";
import type { Upstream } from "./upstream.ts";
import { checkTimeout, CONNECT_TIMEOUT, HANDSHAKE_TIMEOUT, onAbort, setDeadline, sleep, withTimeout } from "./wait.ts";

// Requests whose times have a median. Larger: more accurate; smaller: faster on slow links.
const ROUND_TRIPS = 15;

// Milliseconds in which a server with a fixed target ends a stream if it cannot connect. Larger: finds slower failures;
// smaller: an earlier result.
const REFUSAL_TIME = 1000;

// Milliseconds to end a session in order. Larger: tolerates slower links; smaller: an earlier end of a failed check.
const CLOSE_TIMEOUT = 1000;

// Milliseconds of silence after which a server ends a connection, unless it says another number.
const SERVER_TIMEOUT = 30_000;

/**
 * Options of {@linkcode checkTunnel}: those of the client that is to be checked, and `idle`.
 *
 * @example Checking a target of the server
 * ```ts
 * import { checkTunnel, type CheckTunnelOptions, serveTunnel } from "@sluice/smux/tunnel";
 * import { assertEquals } from "@std/assert";
 *
 * await using server = serveTunnel({ listen: "127.0.0.1:0", allow: ["127.0.0.1:*"] });
 * const options: CheckTunnelOptions = { connect: server.serverAddr, forward: [`8080=${server.serverAddr}`] };
 * const checks = await Array.fromAsync(checkTunnel(options));
 * assertEquals(checks.map(({ isOk }) => isOk).includes(false), false);
 * ```
 */
export interface CheckTunnelOptions extends
  Pick<
    OpenTunnelOptions,
    | "connect"
    | "headers"
    | "forward"
    | "reverse"
    | "user"
    | "secret"
    | "tls"
    | "ca"
    | "proxy"
    | "cert"
    | "key"
    | "pin"
    | "version"
    | "resume"
    | "connectTimeout"
    | "timeout"
    | "insecure"
    | "signal"
  > {
  /**
   * Milliseconds that a second connection stays silent, to see whether something on the path cuts it. An integer.
   * A server ends a silent connection itself, by its `timeout`; the check stops before that. Default: not checked.
   */
  idle?: number | undefined;
}

/**
 * The result of one step of {@linkcode checkTunnel}.
 *
 * @example Printing the steps
 * ```ts
 * import { checkTunnel, serveTunnel, type TunnelCheck } from "@sluice/smux/tunnel";
 * import { assertEquals } from "@std/assert";
 *
 * const format = ({ isOk, name, text }: TunnelCheck) => `${isOk ? "ok" : "failed"} ${name}: ${text}`;
 *
 * await using server = serveTunnel({ listen: "127.0.0.1:0", target: "127.0.0.1:1", onError() {} });
 * const lines: string[] = [];
 * for await (const check of checkTunnel({ connect: server.serverAddr, forward: ["8080"] })) lines.push(format(check));
 * assertEquals(lines.at(-1), "failed target: the server ended the stream: it cannot connect to its target");
 * ```
 */
export interface TunnelCheck {
  /** What was checked, such as `TLS` or `forward 8080=localhost:80`. */
  name: string;
  /** Whether it succeeded. */
  isOk: boolean;
  /** What was found, or the message of the error. */
  text: string;
  /** Milliseconds. */
  duration: number;
  /** Why it failed. */
  error: Error | undefined;
  /** What to do about the failure. */
  advice: string | undefined;
}

/**
 * Checks, in this order: the name of the server, the connection to it (with a proxy: its name, the connection to it,
 * and whether it connects to the server), the certificate of the server, what protocol answers, and the
 * secret; each entry of `forward` (the server really connects) and of `reverse` (it really listens, and the client
 * connects to the target), all closed again; the time of a round trip, and the throughput in both directions. It stops
 * at the first failure.
 *
 * The throughput is that of one stream of random bytes between client and server, through TLS, the resumable connection
 * and smux, for at most 2 seconds or 64 MB in each direction. It is not that of a target.
 *
 * Each of several servers in `connect` is checked in turn, until its first failure; each `name` then begins with the
 * address of the server and a colon.
 *
 * A server with a fixed target serves no requests: list its addresses as `forward: ["8080"]`. Without `forward`,
 * `reverse` and `secret` one request, `OPTIONS *`, is sent to such a target.
 *
 * @param options What to check.
 * @returns An iterator over the results. Leaving the loop closes the connection.
 * @throws {RangeError} An option is malformed, or would open the tunnel to other machines.
 * @throws {TypeError} The runtime is not Deno.
 * @throws The reason of the signal, when it aborts during the iteration.
 *
 * @example Why a client is refused
 * ```ts
 * import { checkTunnel, serveTunnel } from "@sluice/smux/tunnel";
 * import { assertEquals } from "@std/assert";
 *
 * await using server = serveTunnel({ listen: "127.0.0.1:0", allow: ["db.local:5432"], onError() {} });
 * const checks = await Array.fromAsync(checkTunnel({ connect: server.serverAddr, forward: ["8080=localhost:80"] }));
 * const { name, isOk, advice } = checks.at(-1)!;
 * assertEquals({ name, isOk }, { name: "forward 8080=localhost:80", isOk: false });
 * assertEquals(advice, "Start the server with this target in --allow, or in the rules of the user.");
 * ```
 */
export function checkTunnel(options: CheckTunnelOptions): AsyncGenerator<TunnelCheck, void> {
  checkRuntime();
  const { servers } = checkOptions(options);
  const checks = [options.connect].flat().map((connect) => new Check({ ...options, connect }));
  return checks.length === 1 ? checks[0]!.run() : runEach(servers, checks);
}

/** Runs each check; a result names its server. */
async function* runEach(servers: readonly ServerPlace[], checks: readonly Check[]): AsyncGenerator<TunnelCheck, void> {
  for (const [n, check] of checks.entries()) {
    for await (const result of check.run()) yield { ...result, name: `${servers[n]!.name}: ${result.name}` };
  }
}

/** One step: its kind, its name, and what it does; returns what it found, or nothing to report. */
type Step = [kind: StepKind, name: string, run: () => Promise<string>];

/** A check that is running. */
class Check {
  readonly #options: CheckTunnelOptions;
  readonly #settings: Settings;
  readonly #stop = new AbortController();
  #addresses: string[] | undefined;
  /** The connection of the last step, until a session has it. */
  #connection: Connection | undefined;
  #isResumable = false;
  #session: Session | undefined;
  /** Why the server has refused the secret. */
  #refusal: TunnelRefusedError | undefined;
  /** Whether the server serves requests of tunnels. */
  #isTunnel = false;
  /** Milliseconds after which the server ends a silent connection. */
  #serverTimeout = SERVER_TIMEOUT;

  constructor(options: CheckTunnelOptions) {
    this.#options = { ...options };
    this.#settings = checkOptions(options);
    checkTimeout("idle", options.idle);
  }

  /** Runs each step until one fails. */
  async *run(): AsyncGenerator<TunnelCheck, void> {
    const off = onAbort(this.#options.signal, (reason) => {
      this.#stop.abort(reason);
      this.#session?.abort(reason);
    });
    try {
      for (const step of this.#steps()) {
        const result = await this.#try(step);
        yield result;
        if (!result.isOk) return;
      }
    } finally {
      off();
      this.#stop.abort();
      this.#connection?.close();
      await this.#session?.close({ timeout: CLOSE_TIMEOUT }).catch(() => {});
    }
  }

  /** Yields the steps; which ones follow depends on what the steps before have found. */
  *#steps(): Generator<Step> {
    const { endpoint: { hostname: serverName, path }, tls, upstream, webSocket } = this.#server;
    const hostname = upstream?.endpoint.hostname ?? serverName;
    const { forward = [], reverse = [], secret, resume = true, idle } = this.#options;
    if (hostname !== undefined && isIP(hostname) === 0) {
      yield [upstream ? "proxy" : "name", "name", () => this.#resolve()];
    }
    yield [upstream ? "proxy" : "connection", path === undefined ? "TCP" : "socket", () => this.#dial()];
    if (upstream !== undefined) yield ["proxy", "proxy", () => this.#askProxy(upstream)];
    if (tls !== undefined) yield ["TLS", "TLS", () => this.#secure()];
    if (webSocket !== undefined) yield ["WebSocket", "WebSocket", () => this.#upgrade()];
    if (resume) yield ["protocol", "protocol", () => this.#greet()];
    const fixed = forward.filter((text) => parseForward("forward", text).target === undefined);
    if (forward.length > 0 && fixed.length === forward.length && reverse.length === 0 && secret === undefined) {
      yield ["fixed", "target", () => this.#checkFixed()];
      return;
    }
    yield ["smux", "smux", () => this.#ask()];
    if (!this.#isTunnel) return;
    yield ["secret", "secret", () => this.#checkSecret()];
    for (const text of forward) {
      const { target, isUdp } = parseForward("forward", text);
      if (target !== undefined) yield ["forward", `forward ${text}`, () => this.#checkForward(target, isUdp)];
    }
    for (const text of reverse) {
      const { listen, target, isUdp } = parseForward("reverse", text);
      yield ["reverse", `reverse ${text}`, () => this.#checkReverse(listen)];
      // Whether a target receives datagrams cannot be known.
      if (!isUdp) yield ["target", `target ${target}`, () => this.#checkTarget(target!)];
    }
    yield ["measure", "round trip", () => this.#measureRoundTrip()];
    yield ["measure", "download", () => this.#measure("download")];
    yield ["measure", "upload", () => this.#measure("upload")];
    if (idle !== undefined) yield ["idle", "idle", () => this.#idle(idle)];
  }

  async #try([kind, name, run]: Step): Promise<TunnelCheck> {
    const began = performance.now();
    const took = () => performance.now() - began;
    try {
      this.#stop.signal.throwIfAborted();
      const text = await run();
      return { name, isOk: true, text, duration: took(), error: undefined, advice: undefined };
    } catch (thrown) {
      this.#options.signal?.throwIfAborted();
      const error = toError(thrown instanceof SessionClosedError ? thrown.cause ?? thrown : thrown);
      const text = errorText(error);
      return { name, isOk: false, text, duration: took(), error, advice: adviceFor(kind, text) };
    }
  }

  get #credentials(): Credentials {
    const { secret, user } = this.#options;
    return { secret, user };
  }

  get #server(): ServerPlace {
    return this.#settings.servers[0]!;
  }

  get #dialOptions(): DialServerOptions {
    return { connectTimeout: this.#options.connectTimeout ?? CONNECT_TIMEOUT, addresses: this.#addresses };
  }

  async #resolve(): Promise<string> {
    const { signal } = this.#stop;
    const { hostname } = (this.#server.upstream ?? this.#server).endpoint as { hostname: string };
    const find = (signal: AbortSignal) => addressesOf(hostname, signal);
    this.#addresses = await withTimeout("resolving", this.#dialOptions.connectTimeout, signal, find).catch(
      (error) => {
        throw wrapError(`Cannot resolve ${hostname}`, error);
      },
    );
    return `${hostname} is ${this.#addresses.join(", ")}`;
  }

  /** Connects to the server, or to the proxy before it. */
  async #connect(): Promise<Socket> {
    const { upstream } = this.#server;
    if (upstream !== undefined) return await connectProxy(upstream, this.#stop.signal, this.#dialOptions);
    return await connectServer(this.#server, this.#stop.signal, this.#dialOptions);
  }

  async #askProxy(upstream: Upstream): Promise<string> {
    const socket = this.#connection as Deno.TcpConn;
    // A failure closes it.
    this.#connection = undefined;
    const { hostname, port } = this.#server.endpoint;
    const target = { hostname: hostname!, port: port! };
    await askProxy(upstream, socket, target, this.#stop.signal, this.#dialOptions.connectTimeout);
    this.#connection = socket;
    return `${upstream.name} connects to ${this.#server.name}`;
  }

  /** Opens a connection like that of the steps before. */
  async #open(): Promise<Connection> {
    return await dialServer(this.#server, this.#stop.signal, this.#dialOptions);
  }

  async #dial(): Promise<string> {
    const socket = await this.#connect();
    this.#connection = socket;
    return `connected to ${
      "path" in socket.remoteAddr ? this.#server.name : format(socket.remoteAddr as Deno.NetAddr)
    }`;
  }

  async #secure(): Promise<string> {
    const hostname = this.#server.endpoint.hostname!;
    const socket = this.#connection as Deno.TcpConn;
    // A failed handshake closes it.
    this.#connection = undefined;
    const { hostname: address, port } = socket.remoteAddr;
    const describe = () =>
      this.#server.upstream === undefined
        ? describeCertificate(address, port, hostname, this.#server.tls)
        : this.#describeOver(hostname);
    try {
      this.#connection = await secureServer(this.#server, socket, this.#stop.signal);
    } catch (error) {
      const found = await describe();
      if (found === undefined) throw new PermanentError(`no handshake: ${errorText(error)}`, { cause: error });
      throw new PermanentError(`a certificate ${found} is not trusted: ${errorText(error)}`, { cause: error });
    }
    return `a trusted certificate ${await describe() ?? ""}`.trim();
  }

  /** Describes the certificate that the server shows over a connection through the proxy. */
  async #describeOver(hostname: string): Promise<string | undefined> {
    try {
      const socket = await connectServer(this.#server, this.#stop.signal, this.#dialOptions);
      return await describeCertificateOver(socket as Deno.TcpConn, hostname, this.#server.tls);
    } catch {
      // The connection of the step before has the error, if it lasts.
      return undefined;
    }
  }

  async #upgrade(): Promise<string> {
    const connection = this.#connection!;
    // A failed handshake closes it.
    this.#connection = undefined;
    this.#connection = await upgradeServer(this.#server, connection, this.#stop.signal);
    return "the server accepts it at this path";
  }

  /** Finds out whether the server resumes connections, or what else answers. */
  async #greet(): Promise<string> {
    const first = this.#connection!;
    let next: Connection | undefined = first;
    const open = async () => {
      const connection = next ?? await this.#open();
      next = undefined;
      return connection;
    };
    this.#connection = undefined;
    const lost = (error: unknown) => this.#session?.abort(wrapError("The connection was lost", error));
    const carrier = await connectResumable(this.#server.name, open, {
      signal: this.#stop.signal,
      silence: this.#settings.limits.silence,
      onSuspended: lost,
      onResumed() {},
    });
    this.#isResumable = carrier !== undefined;
    this.#connection = carrier?.connection ?? await this.#open();
    return this.#isResumable
      ? "Sluice answers; lost connections are resumed"
      : "no answer to Sluice's hello; lost connections are not resumed";
  }

  get #version(): Version {
    return this.#options.version ?? 2;
  }

  /** Starts a session on the connection of the steps before. */
  #start(version: Version): Session {
    const connection = this.#connection!;
    this.#connection = undefined;
    return Session.client(connection, { ...this.#settings.limits.session, version });
  }

  /** Starts a session, and requests an answer. */
  async #ask(): Promise<string> {
    const version = this.#version;
    this.#session = this.#start(version);
    try {
      return await this.#answer(this.#session, version);
    } catch (error) {
      const other = version === 1 ? 2 : 1;
      if (this.#isResumable || !(error instanceof SessionClosedError) || !await this.#answers(other)) throw error;
      throw new Error(`smux ${version} is not answered, but smux ${other} is`, { cause: error });
    }
  }

  /** Whether the server answers in a version of smux. */
  async #answers(version: Version): Promise<boolean> {
    const session = Session.client(await this.#open(), { ...this.#settings.limits.session, version });
    try {
      await this.#answer(session, version);
      return true;
    } catch {
      return false;
    } finally {
      session.abort();
    }
  }

  /** Requests an answer; returns what has answered. */
  async #answer(session: Session, version: Version): Promise<string> {
    const timeout = Math.min(HANDSHAKE_TIMEOUT, this.#options.timeout ?? Infinity);
    const clear = setDeadline(() => session.abort(new Error(`no answer for ${timeout} ms`)), timeout);
    let server = "";
    try {
      const { stream, headers } = await request(session, "OPTIONS", "*", this.#credentials);
      stream.close();
      server = header(headers, "server");
      this.#serverTimeout = Number(header(headers, "timeout")) || SERVER_TIMEOUT;
    } catch (error) {
      if (error instanceof SessionClosedError) throw error;
      // Anything else, also the end of the stream, comes from a program behind the server.
      if (error instanceof TunnelRefusedError && [403, 407, 429].includes(error.status)) this.#refusal = error;
    } finally {
      clear();
    }
    this.#isTunnel = server.startsWith("sluice/") || this.#refusal !== undefined;
    if (this.#isTunnel) return `version ${version}${server === "" ? "" : `, ${server.replace("/", " ")}`}`;
    const { forward = [], reverse = [], secret } = this.#options;
    const answer = `smux ${version} answers, but not as a server of tunnels`;
    if (forward.length + reverse.length > 0 || secret !== undefined) throw new Error(answer);
    return `version ${version}, but not as a server of tunnels: it may have a fixed --target`;
  }

  async #checkSecret(): Promise<string> {
    if (this.#refusal !== undefined) throw this.#refusal;
    const { secret, user } = this.#options;
    if (secret === undefined) return await Promise.resolve("none is required");
    return user === undefined ? "accepted" : `accepted, of ${user}`;
  }

  async #checkForward(target: string, isUdp: boolean): Promise<string> {
    const { stream } = await request(this.#session!, isUdp ? "CONNECT-UDP" : "CONNECT", target, this.#credentials);
    stream.close();
    return isUdp ? "allowed; whether datagrams arrive is unknown" : `allowed; the server reaches ${target}`;
  }

  async #checkReverse(listen: string): Promise<string> {
    const [isUdp, address] = splitUdp(listen);
    const { stream, addr } = await request(this.#session!, isUdp ? "BIND-UDP" : "BIND", address, this.#credentials);
    await stopListening(stream);
    return `allowed; the server can listen on ${addr}`;
  }

  async #checkTarget(target: string): Promise<string> {
    const socket = await dial(target, this.#stop.signal, { connectTimeout: this.#dialOptions.connectTimeout });
    socket[Symbol.dispose]();
    return `this client reaches ${target}`;
  }

  /** Opens a stream to the fixed target of a server, which ends it if it cannot connect. */
  async #checkFixed(): Promise<string> {
    this.#session = this.#start(this.#version);
    const stream = await this.#session.openStream();
    const read = stream.read(new Uint8Array(1));
    const late = new AbortController();
    const waited = sleep(REFUSAL_TIME, late.signal).then(() => undefined);
    // A server of this package aborts the stream, others end it.
    const reset = (error: unknown) => error instanceof StreamResetError ? null : Promise.reject(error);
    const count = await Promise.race([read, waited]).catch(reset).finally(() => late.abort());
    read.catch(() => {});
    stream.close();
    if (count === null) throw new Error("the server ended the stream: it cannot connect to its target");
    return count === undefined ? `the server kept a stream open for ${REFUSAL_TIME / 1000} s` : "the target answers";
  }

  async #measureRoundTrip(): Promise<string> {
    const times: number[] = [];
    for (let n = 0; n < ROUND_TRIPS; n++) {
      const began = performance.now();
      const { stream } = await request(this.#session!, "OPTIONS", "*", this.#credentials);
      times.push(performance.now() - began);
      stream.close();
    }
    times.sort((a, b) => a - b);
    const [least, median, most] = [times[0]!, times[ROUND_TRIPS >> 1]!, times.at(-1)!].map((time) => time.toFixed(1));
    return `${median} ms, the median of ${ROUND_TRIPS} requests (${least} to ${most} ms)`;
  }

  async #measure(direction: Direction): Promise<string> {
    try {
      const { bytes, duration } = await measure(this.#session!, direction, this.#credentials);
      const [megabytes, seconds] = [bytes / 1e6, duration / 1000].map((value) => value.toPrecision(3));
      return `${(bytes / 1000 / duration).toPrecision(3)} MB/s, one stream: ${megabytes} MB in ${seconds} s`;
    } catch (error) {
      if (error instanceof TunnelRefusedError) return `not measured: ${errorText(error)}`;
      throw error;
    }
  }

  /** Leaves a connection silent in both directions, and then requests an answer over it. */
  async #idle(idle: number): Promise<string> {
    // The server ends a connection that is silent for longer, as a device between would.
    const most = Math.min(idle, this.#serverTimeout - 1000);
    const limit = most < idle
      ? `; the server itself ends silent connections after ${this.#serverTimeout / 1000} s`
      : "";
    const version = this.#version;
    const session = Session.client(await this.#open(), { version, keepAliveInterval: Infinity, timeout: Infinity });
    const off = onAbort(this.#stop.signal, (reason) => session.abort(reason));
    const began = performance.now();
    const seconds = () => Math.round((performance.now() - began) / 1000);
    const ended = new AbortController();
    const closed = session.closed.catch(() => {}).finally(() => ended.abort());
    try {
      await sleep(most, ended.signal);
      if (ended.signal.aborted) throw new Error(`the connection was cut after ${seconds()} s without data`);
      await this.#answer(session, version).catch((error) => {
        throw wrapError(`the connection was cut silently within ${seconds()} s without data`, error);
      });
      return `a connection survives ${seconds()} s without data${limit}`;
    } finally {
      off();
      await session.close({ timeout: CLOSE_TIMEOUT }).catch(() => {});
      await closed;
    }
  }
}

/** Ends the request that a server listens for, and waits until it has stopped. */
async function stopListening(stream: Stream): Promise<void> {
  await stream.closeWrite();
  // The server ends the stream when it does not listen any more.
  await stream.read(new Uint8Array(1));
  stream.close();
}
