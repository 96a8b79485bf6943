/**
 * Tunnels: any number of forwarded connections over one. {@linkcode openTunnel} connects to {@linkcode serveTunnel},
 * and each connection that either end accepts for the other is one stream between them.
 *
 * ```ts
 * import { openTunnel, serveTunnel } from "@sluice/smux/tunnel";
 * import { assertEquals } from "@std/assert";
 *
 * const web = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, () => new Response("hello"));
 * const server = serveTunnel({ listen: "127.0.0.1:0", allow: ["127.0.0.1:*"] });
 * const client = await openTunnel({ connect: server.addr, forward: [`127.0.0.1:0=127.0.0.1:${web.addr.port}`] });
 *
 * const answer = await fetch(`http://${client.addrs[0]}/`, { headers: { connection: "close" } });
 * assertEquals(await answer.text(), "hello");
 *
 * await client.shutdown();
 * await server.shutdown();
 * await web.shutdown();
 * ```
 *
 * It is a command too, `deno install -g -A -n sluice jsr:@sluice/smux/tunnel`:
 *
 * ```sh
 * sluice server --listen 127.0.0.1:9000 --allow localhost:80
 * sluice client --connect 127.0.0.1:9000 --forward 8080=localhost:80
 * ```
 *
 * What a client can ask for, as often as it likes and all at once:
 *
 * - `forward`, as `ssh -L`: it listens here, the server connects there.
 * - `reverse`, as `ssh -R`: the server listens there, it connects here.
 * - `socks`, as `ssh -D`: it listens here, and who connects says by SOCKS 5 where to.
 * - {@linkcode TunnelClient.connect}: a stream to a target, without a port here.
 *
 * The server does what {@linkcode ServeTunnelOptions} allow and refuses the rest with a {@linkcode TunnelRefusedError}.
 *
 * Where to listen (AT) and where to connect (TO) is written `host:port`, `[ipv6]:port`, `unix:/path` (printable ASCII
 * without spaces), or `port` for `127.0.0.1:port`. Where one listens port 0 is any that is free.
 *
 * On the wire a forwarded connection is a stream that opens with an HTTP `CONNECT host:port` and its answer. To listen
 * for a client the server is sent `BIND host:port`, which holds as long as that stream is open. A server with a fixed
 * target expects neither, and so serves any client of smux as it is.
 *
 * @module
 */

import { connections, join, serve, Session, SessionClosedError, type Stream } from "./mod.ts";
import { checkExposed, checkTls, format, parseForward, parsePlace, parseRule, type Rule } from "./tunnel/address.ts";
import { encoder } from "./tunnel/bytes.ts";
import { describe, failure } from "./tunnel/failure.ts";
import { ask, checkSecret, grant, isEqual } from "./tunnel/handshake.ts";
import {
  type OpenTunnelOptions,
  type ServeTunnelOptions,
  type Tunnel,
  type TunnelClient,
  type TunnelOptions,
  TunnelRefusedError,
  type TunnelStats,
} from "./tunnel/options.ts";
import { dial, Listening, listenOn, type Socket } from "./tunnel/socket.ts";
import { speakSocks } from "./tunnel/socks5.ts";
import { backoff, follow, LONGEST_BACKOFF, patience, pause, setDeadline } from "./tunnel/wait.ts";

export {
  type OpenTunnelOptions,
  type ServeTunnelOptions,
  type Tunnel,
  type TunnelClient,
  type TunnelOptions,
  TunnelRefusedError,
  type TunnelStats,
} from "./tunnel/options.ts";

/**
 * Starts the server's end of a tunnel: any number of clients may connect. When a target cannot be reached the stream ends
 * at once, and `onError` is told.
 *
 * @param options Where to listen, where to connect to, who may, and who is told of what.
 * @returns The tunnel, at once.
 * @throws {RangeError} An option is not what it must be, or would open the tunnel to strangers.
 * @throws {Error} It cannot listen there.
 *
 * @example One target, for any client of smux
 * ```ts
 * import { serveTunnel } from "@sluice/smux/tunnel";
 * import { Session } from "@sluice/smux";
 * import { assertStringIncludes } from "@std/assert";
 * import { toText } from "@std/streams";
 *
 * const web = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, () => new Response("hello"));
 * const server = serveTunnel({ listen: "127.0.0.1:0", target: `127.0.0.1:${web.addr.port}` });
 *
 * // Any client of smux will do, not only a tunnel's.
 * const { hostname, port } = new URL(`http://${server.addr}`);
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
export function serveTunnel(options: ServeTunnelOptions): Tunnel {
  const { listen, target, secret, cert, key, signal } = options;
  const rules: Record<string, Rule[]> = {
    CONNECT: (options.allow ?? []).map((entry) => parseRule("allow", entry)),
    BIND: (options.allowListen ?? []).map((entry) => parseRule("allowListen", entry)),
  };
  if ((cert === undefined) !== (key === undefined)) throw new RangeError("cert and key go together");
  if (cert !== undefined) checkTls("listen", listen);
  checkSecret(secret);
  if (target !== undefined) {
    parsePlace("target", target, 1);
    const isIdle = secret !== undefined || Object.values(rules).some(({ length }) => length > 0);
    if (isIdle) {
      throw new RangeError("With a target nobody is asked for anything: leave out secret, allow and allowListen");
    }
  }
  if (cert === undefined || secret === undefined) checkExposed("listen", listen, options.insecure);
  const ledger = new Ledger(options);
  // The one ends everything at once, the other what is not forwarded yet.
  const cut = new AbortController();
  const stopping = new AbortController();

  async function answer(stream: Stream, session: Session): Promise<void> {
    if (target !== undefined) return await carry(ledger, stream, await dial(target, stream), `to ${target}`);
    const { at, opened } = await grant(stream, format(session.remoteAddr), async ({ method, at, proof }) => {
      if (secret !== undefined && !await isEqual(proof, `Bearer ${secret}`)) {
        await pause(WRONG_SECRET_DELAY, stopping.signal);
        throw new TunnelRefusedError(407, "wrong secret");
      }
      if (rules[method] === undefined) throw new TunnelRefusedError(405, "neither CONNECT nor BIND");
      const place = parsePlace(method, at, method === "BIND" ? 0 : 1);
      if (!rules[method].some((rule) => rule(place))) throw new TunnelRefusedError(403, "not allowed");
      return method === "BIND" ? listenOn(at) : await dial(at, stream);
    });
    if (opened instanceof Listening) await listenFor(session, stream, at, opened);
    else await carry(ledger, stream, opened, `to ${at}`);
  }

  /** Accepts connections for a client, until it ends the stream that asked for that. */
  async function listenFor(session: Session, stream: Stream, asked: string, listening: Listening): Promise<void> {
    const ended = new AbortController();
    const unfollow = follow(stopping.signal, () => ended.abort());
    const where = `${listening.addr} for ${format(session.remoteAddr)}`;
    ledger.note(`listening on ${where}`);
    const open = async () => (await ask(session, "CONNECT", asked)).stream;
    const listened = forwardAll(ledger, listening, open, ended.signal);
    // Nothing comes on it but its end.
    await Promise.race([stream.read(new Uint8Array(1)).catch(() => {}), listened]);
    ended.abort();
    unfollow();
    stream.close();
    const { forwarded } = await listened;
    ledger.note(`no longer listening on ${where}`);
    await forwarded;
  }

  const listening = listenOn(listen, cert === undefined ? undefined : { cert, key: key! });
  const server = serve(listening, (stream, session) => answer(stream, session).catch(ledger.tell), {
    signal: cut.signal,
    stalledStreamTimeout: options.stalledStreamTimeout,
    onError: (error) => ledger.tell(failure("A client's connection failed", error)),
    onSession: (session) => {
      ledger.add(session);
      ledger.note(`connection from ${format(session.remoteAddr)}`);
    },
  });
  const unfollow = follow(signal, (reason) => {
    stopping.abort(reason);
    cut.abort(reason);
    ledger.cut();
  });
  const finished = server.finished.finally(unfollow);
  async function shutdown({ timeout = Infinity }: { timeout?: number | undefined } = {}): Promise<void> {
    stopping.abort();
    ledger.cutAfter(patience(timeout), finished);
    await server.shutdown({ timeout: patience(timeout) });
    await finished;
  }
  const { addr } = listening;
  return { addr, addrs: [], finished, shutdown, stats: () => ledger.stats(), [Symbol.asyncDispose]: shutdown };
}

/**
 * Starts the client's end of a tunnel: it connects to the server, then listens. Each direction's end is forwarded too, and
 * a connection whose target refuses is closed at once. When the connection to the server is lost, what it carried is
 * closed, and so is what comes until there is a new one.
 *
 * @param options Where the server is, what to forward, and who is told of what.
 * @returns The tunnel, when it is connected and everything listens.
 * @throws {RangeError} An option is not what it must be, or would open the tunnel to strangers.
 * @throws {TunnelRefusedError} The server does not listen for `reverse`.
 * @throws {Error} It cannot listen there, or the server cannot be reached.
 *
 * @example What only this machine can reach is reached through the server
 * ```ts
 * import { openTunnel, serveTunnel } from "@sluice/smux/tunnel";
 * import { assertEquals } from "@std/assert";
 *
 * await using server = serveTunnel({ listen: "127.0.0.1:0", allowListen: ["127.0.0.1:*"] });
 * const web = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, () => new Response("from behind"));
 * await using client = await openTunnel({ connect: server.addr, reverse: [`0=${web.addr.port}`] });
 *
 * const answer = await fetch(`http://${client.addrs[0]}/`, { headers: { connection: "close" } });
 * assertEquals(await answer.text(), "from behind");
 * await web.shutdown();
 * ```
 */
export async function openTunnel(options: OpenTunnelOptions): Promise<TunnelClient> {
  const { connect: server, secret, ca, tls = ca !== undefined, version, signal, reconnect = true } = options;
  const { stalledStreamTimeout = STALLED_STREAM_TIMEOUT } = options;
  const where = format(parsePlace("connect", server, 1));
  checkSecret(secret);
  if (tls) checkTls("connect", server);
  if (ca !== undefined && !ca.includes("-----BEGIN CERTIFICATE-----")) {
    throw new RangeError("ca must be certificates in PEM, which begin with -----BEGIN CERTIFICATE-----");
  }
  if (secret !== undefined && !tls) checkExposed("connect", server, options.insecure);
  const local = [
    ...(options.forward ?? []).map((text) => ({ ...parseForward("forward", text), isSocks: false })),
    ...(options.socks ?? []).map((at) => ({ at, to: undefined, isSocks: true })),
  ];
  for (const { at, isSocks } of local) checkExposed(isSocks ? "socks" : "forward", at, options.insecure);
  const reverse = (options.reverse ?? []).map((text) => parseForward("reverse", text));
  const targets = new Map(reverse.map(({ at, to }) => [at, to]));
  if (targets.size < reverse.length) throw new RangeError("Two of reverse listen at the same place");
  if (reverse.some(({ to }) => to === undefined)) throw new RangeError("reverse must be AT=TO");

  const ledger = new Ledger(options);
  const stopping = new AbortController();
  const cut = new AbortController();
  const working = new Set<Promise<unknown>>();
  const bound = new Set<Stream>();
  const addrs: string[] = [];
  let session: Session | undefined;

  function work(task: Promise<unknown>): void {
    working.add(task);
    task.catch(ledger.tell).finally(() => working.delete(task));
  }

  async function start(): Promise<Session> {
    const socket = await dial(server, stopping.signal, tls ? { caCerts: ca === undefined ? [] : [ca] } : undefined);
    const started = Session.client(socket, { version, stalledStreamTimeout });
    ledger.add(started);
    // A server has nothing else to open a stream for: each is refused.
    if (reverse.length === 0) started.incoming.close();
    else work(accept(started));
    return started;
  }

  /** Connects what comes by way of the server's listening. */
  async function accept(on: Session): Promise<void> {
    const answer = async (stream: Stream) => {
      const { at, opened } = await grant(stream, "the server", async ({ method, at }) => {
        const to = method === "CONNECT" ? targets.get(at) : undefined;
        if (to === undefined) throw new TunnelRefusedError(403, "not asked for");
        return await dial(to, stream);
      });
      await carry(ledger, stream, opened, `to ${targets.get(at)}`);
    };
    try {
      for await (const stream of on) work(answer(stream).finally(() => stream.close()));
    } catch {
      // The end of the session is told elsewhere.
    }
  }

  async function bind(on: Session, n: number): Promise<Stream> {
    const { stream, addr } = await ask(on, "BIND", reverse[n]!.at, secret);
    addrs[local.length + n] = addr;
    bound.add(stream);
    if (stopping.signal.aborted) stream.close();
    return stream;
  }

  /** Has the server listen as long as the session lives. */
  async function keepBound(on: Session, n: number, stream?: Stream): Promise<void> {
    for (const waits = backoff(); !stopping.signal.aborted;) {
      try {
        stream ??= await bind(on, n);
        // Nothing comes on it but its end.
        await stream.read(new Uint8Array(1));
        throw new Error("the server ended it");
      } catch (error) {
        stream?.close();
        if (stream !== undefined) bound.delete(stream);
        stream = undefined;
        if (stopping.signal.aborted || error instanceof SessionClosedError) return;
        ledger.tell(failure(`The server does not listen on ${reverse[n]!.at}`, error));
      }
      await pause(waits.next().value, stopping.signal);
    }
  }

  async function connect(target?: string): Promise<Stream> {
    if (session === undefined) throw new Error(`There is no connection to ${where} now`);
    if (target === undefined) return await session.openStream();
    parsePlace("target", target, 1);
    return (await ask(session, "CONNECT", target, secret)).stream;
  }

  async function startAgain(waits: ReturnType<typeof backoff>): Promise<Session | undefined> {
    while (!stopping.signal.aborted) {
      await pause(waits.next().value, stopping.signal);
      try {
        return await start();
      } catch (error) {
        if (!stopping.signal.aborted) ledger.tell(error);
      }
    }
    return undefined;
  }

  async function run(): Promise<void> {
    let waits = backoff();
    while (session !== undefined) {
      const began = performance.now();
      // It may have been told to end before there was a session.
      if (signal?.aborted) session.abort(signal.reason);
      else if (stopping.signal.aborted) session.close({ drain: true });
      const why = await session.closed.then(() => undefined, (error: unknown) => error);
      session = undefined;
      const lost = failure(`The connection to ${where} was lost`, why ?? "the server ended it");
      if (stopping.signal.aborted) {
        if (why !== undefined && !signal?.aborted) ledger.tell(lost);
        return;
      }
      if (!reconnect) throw lost;
      ledger.tell(lost);
      if (performance.now() - began > LONGEST_BACKOFF) waits = backoff();
      const again = session = await startAgain(waits);
      if (again === undefined) return;
      ledger.note(`connected to ${where} again`);
      reverse.forEach((_, n) => work(keepBound(again, n)));
    }
  }

  function shutdown({ timeout = Infinity }: { timeout?: number | undefined } = {}): Promise<void> {
    stopping.abort();
    for (const stream of bound) stream.close();
    session?.close({ drain: true, timeout: patience(timeout) });
    ledger.cutAfter(patience(timeout), finished);
    return finished.catch(() => {});
  }

  const unfollow = follow(signal, (reason) => {
    stopping.abort(reason);
    session?.abort(reason);
    ledger.cut();
  });
  const end = async () => {
    stopping.abort();
    cut.abort();
    unfollow();
    while (working.size > 0) await Promise.allSettled(working);
  };
  try {
    session = await start();
    for (const { at, to, isSocks } of local) {
      const listening = listenOn(at);
      addrs.push(listening.addr);
      const open = (from: Socket) => isSocks ? speakSocks(from, connect) : connect(to);
      work(forwardAll(ledger, listening, open, stopping.signal, cut.signal).then(({ forwarded }) => forwarded));
    }
    const started = session;
    const streams = [];
    for (const n of reverse.keys()) streams.push(await bind(started, n));
    streams.forEach((stream, n) => work(keepBound(started, n, stream)));
  } catch (error) {
    session?.abort(error);
    await end();
    throw error;
  }
  const finished = run().finally(end);
  finished.catch(() => {});
  return {
    addr: where,
    addrs,
    finished,
    connect,
    shutdown,
    stats: () => ledger.stats(),
    [Symbol.asyncDispose]: shutdown,
  };
}

// What is said inside a stream.

// What it costs to try a secret, in milliseconds.
const WRONG_SECRET_DELAY = 1000;

// Connections.

// As `serve` has it by default.
const STALLED_STREAM_TIMEOUT = 5000;

/**
 * Forwards every connection that is accepted to what `open` gives for it, until the signal; settles when there will be no
 * more, with what settles when all have ended, at the latest when those still to be opened are cut.
 */
async function forwardAll(
  ledger: Ledger,
  listening: Listening,
  open: (from: Socket) => Promise<Stream>,
  signal: AbortSignal,
  cut?: AbortSignal,
): Promise<{ forwarded: Promise<unknown> }> {
  const forwarding = new Set<Promise<void>>();
  const forward = async (accepted: Socket) => {
    using socket = accepted;
    const unfollow = follow(cut, () => socket[Symbol.dispose]());
    const stream = await open(socket).finally(unfollow);
    await carry(ledger, stream, socket, `from ${format(socket.remoteAddr)}`);
  };
  const onError = (error: unknown) => ledger.tell(failure("A connection was lost before it was accepted", error));
  for await (const socket of connections(listening, { signal, onError })) {
    const forwarded = forward(socket).catch((error) => void (cut?.aborted || ledger.tell(error)));
    forwarding.add(forwarded);
    forwarded.finally(() => forwarding.delete(forwarded));
  }
  return { forwarded: Promise.all(forwarding) };
}

/** Joins a stream and a socket; if that breaks, says whose they were. */
async function carry(ledger: Ledger, stream: Stream, socket: Socket, name: string): Promise<void> {
  ledger.begin();
  try {
    // What arrives in pieces was sent in pieces, and waits for nothing.
    if ("setNoDelay" in socket) socket.setNoDelay(true);
    await join(stream, socket, { signal: ledger.cutting });
  } catch (error) {
    stream.close();
    throw error instanceof SessionClosedError ? error : failure(`The connection ${name} broke`, error);
  } finally {
    socket[Symbol.dispose]();
    ledger.end();
  }
}

/** What is counted, and who is told of what. */
class Ledger {
  readonly tell: (error: unknown) => void;
  readonly note: (line: string) => void;
  readonly #sessions = new Set<Session>();
  readonly #cutting = new AbortController();
  /** Aborts when what is carried is to end at once. */
  readonly cutting = this.#cutting.signal;
  #isLimited = false;
  readonly #stats = { connections: 0, streams: 0, open: 0, sent: 0, received: 0 };

  constructor({ onError = console.error, onEvent = () => {} }: TunnelOptions) {
    const guard = (run: () => void) => {
      try {
        run();
      } catch (thrown) {
        console.error(thrown);
      }
    };
    // What a lost session takes with it is not told one by one.
    this.tell = (error) => error instanceof SessionClosedError || guard(() => onError(error));
    this.note = (line) => guard(() => onEvent(line));
  }

  add(session: Session): void {
    this.#stats.connections++;
    this.#sessions.add(session);
    const ended = () => {
      this.#sum(this.#stats, session);
      this.#sessions.delete(session);
    };
    session.closed.then(ended, ended);
  }

  begin(): void {
    this.#stats.streams++;
    this.#stats.open++;
  }

  end(): void {
    this.#stats.open--;
  }

  /** Ends what is carried. */
  cut(): void {
    this.#cutting.abort(new SessionClosedError("The tunnel has ended"));
  }

  /** Ends what is carried after so many milliseconds, unless all has ended before; the first call decides. */
  cutAfter(timeout: number, finished: Promise<void>): void {
    const isFirst = !this.#isLimited;
    this.#isLimited = true;
    if (!isFirst || timeout === Infinity) return;
    finished.catch(() => {}).then(setDeadline(() => this.cut(), timeout));
  }

  stats(): TunnelStats {
    const stats = { ...this.#stats };
    for (const session of this.#sessions) this.#sum(stats, session);
    return stats;
  }

  #sum(stats: TunnelStats, session: Session): void {
    const { bytesSent, bytesReceived } = session.stats();
    stats.sent += bytesSent;
    stats.received += bytesReceived;
  }
}

// The command.

const HELP = `\
Forwards connections over one, as ssh -L, -R and -D do.

  sluice server --listen AT --target TO | --allow TO ... --allow-listen AT ...
  sluice client --connect TO --forward AT=TO ... --reverse AT=TO ... --socks AT

AT and TO are HOST:PORT, [IPV6]:PORT, unix:PATH, or PORT of 127.0.0.1.

  --target TO         connect every stream there, for any client of smux
  --allow TO          let clients connect there; * is any host or any port
  --allow-listen AT   let clients listen there
  --forward AT=TO     listen here, connect there; AT - is stdin and stdout;
                      without =TO, for a server with --target
  --reverse AT=TO     listen there, connect here
  --socks AT          listen here for SOCKS 5, connect where that says
  --cert, --key FILE  the server's certificate, for TLS
  --tls, --ca FILE    connect by TLS; trust the authorities in FILE as well
  --secret FILE       what a client must show; default: $SLUICE_SECRET
  --smux 1|2          the version that a client speaks; default 2
  --grace SECONDS     how long Ctrl-C waits for what is open; default 30
  --stall SECONDS     cut a connection whose receiver has stalled this long
                      and holds up all others; default 5, 0 is never
  --insecure          let others connect without TLS and a secret
  --once              do not connect again when the connection is lost

  sluice server --listen 9000 --allow db.local:5432 --allow '*:443'
  sluice client --connect 9000 --forward 5432=db.local:5432 --socks 1080
  ssh -o ProxyCommand='sluice client --connect 9000 --forward -=%h:%p' HOST`;

/** What is wrong with a command line, in one sentence. */
class UsageError extends Error {}

// What each option of either command takes.
const FLAGS: Record<string, Record<string, "one" | "many" | "none" | "file">> = {
  server: { listen: "one", target: "one", allow: "many", "allow-listen": "many", cert: "file", key: "file" },
  client: {
    connect: "one",
    forward: "many",
    reverse: "many",
    socks: "many",
    tls: "none",
    ca: "file",
    smux: "one",
    once: "none",
  },
};
for (const flags of Object.values(FLAGS)) {
  Object.assign(flags, { secret: "file", grace: "one", stall: "one", insecure: "none" });
}

/** The options of a command line, `--name value` or `--name=value`, by name. */
function parseFlags(role: string, args: readonly string[]): Record<string, string[]> {
  const values: Record<string, string[]> = {};
  for (let at = 0; at < args.length; at++) {
    const [, name, attached] = /^--([^=]+)(?:=(.*))?$/s.exec(args[at]!) ?? [];
    if (name === undefined) throw new UsageError(`unexpected argument "${args[at]}"`);
    const flags = FLAGS[role]!;
    if (!Object.hasOwn(flags, name)) throw new UsageError(`unknown option --${name}`);
    const kind = flags[name];
    let value: string | undefined = "yes";
    if (kind !== "none") value = attached ?? args[++at];
    else if (attached !== undefined) throw new UsageError(`--${name} takes no value`);
    if (!value || (attached === undefined && value.startsWith("--"))) throw new UsageError(`--${name} needs a value`);
    if (values[name] !== undefined && kind !== "many") throw new UsageError(`--${name} was given twice`);
    try {
      (values[name] ??= []).push(kind === "file" ? Deno.readTextFileSync(value).trim() : value);
    } catch (error) {
      throw new UsageError(`--${name} cannot be read: ${describe(error)}`);
    }
  }
  return values;
}

/** What a command line asks for: a tunnel, milliseconds of grace, and what stdin and stdout are forwarded to. */
interface Command {
  start(reports: TunnelOptions): Tunnel | Promise<Tunnel>;
  grace: number;
  piped: { to: string | undefined } | undefined;
}

/** What the environment has, where this process may look. */
function secretOfEnvironment(): string | undefined {
  const { state } = Deno.permissions.querySync({ name: "env", variable: "SLUICE_SECRET" });
  return state === "granted" ? Deno.env.get("SLUICE_SECRET") || undefined : undefined;
}

function parseCommand([role, ...rest]: readonly string[]): Command {
  if (role === undefined || !Object.hasOwn(FLAGS, role)) {
    throw new UsageError(`say server or client${role === undefined ? "" : `, received "${role}"`}`);
  }
  const flags = parseFlags(role, rest);
  const one = (name: string) => flags[name]?.[0];
  const milliseconds = (name: string, fallback: string) => {
    const seconds = one(name) ?? fallback;
    if (!/^\d{1,6}$/.test(seconds)) throw new UsageError(`--${name} must be whole seconds, received "${seconds}"`);
    return Number(seconds) * 1000;
  };
  const grace = milliseconds("grace", "30");
  const stalledStreamTimeout = milliseconds("stall", "5") || Infinity;
  const needed = role === "server" ? "listen" : "connect";
  if (one(needed) === undefined) throw new UsageError(`--${needed} is missing`);
  // A target asks for none, whatever the environment has.
  const secret = one("secret") ?? (one("target") === undefined ? secretOfEnvironment() : undefined);
  const common = { secret, insecure: one("insecure") !== undefined, stalledStreamTimeout };
  if (role === "server") {
    const { allow, "allow-listen": allowListen } = flags;
    const [listen, target, cert, key] = ["listen", "target", "cert", "key"].map(one);
    if (!(target ?? allow ?? allowListen)) throw new UsageError("say --target, --allow or --allow-listen");
    const options = { ...common, listen: listen!, target, allow, allowListen, cert, key };
    return { grace, piped: undefined, start: (reports) => serveTunnel({ ...options, ...reports }) };
  }
  const [connect, ca, smux = "2"] = ["connect", "ca", "smux"].map(one);
  if (smux !== "1" && smux !== "2") throw new UsageError(`--smux must be 1 or 2, received "${smux}"`);
  const isPiped = (text: string) => /^-(=|$)/.test(text);
  const [pipe, ...more] = flags.forward?.filter(isPiped) ?? [];
  if (more.length > 0) throw new UsageError("stdin and stdout can be forwarded only once");
  const piped = pipe === undefined ? undefined : parseForward("forward", pipe.replace("-", "0"));
  const forward = flags.forward?.filter((text) => !isPiped(text));
  const { reverse, socks } = flags;
  if (!(flags.forward ?? reverse ?? socks)) throw new UsageError("say --forward, --reverse or --socks");
  const how = { tls: one("tls") !== undefined || ca !== undefined, version: smux === "1" ? 1 as const : 2 as const };
  const reconnect = piped === undefined && one("once") === undefined;
  const options = { ...common, ...how, connect: connect!, ca, forward, reverse, socks, reconnect };
  return { grace, piped, start: (reports) => openTunnel({ ...options, ...reports }) };
}

/** Lines of a log, and on a terminal one below them that tells how it goes. */
class Display {
  readonly #out: typeof Deno.stdout;
  #live = "";
  #timer: ReturnType<typeof setInterval> | undefined;

  constructor(out: typeof Deno.stdout) {
    this.#out = out;
  }

  line(text: string, out = this.#out): void {
    const clear = this.#live === "" ? "" : "\r\x1b[K";
    try {
      out.writeSync(encoder.encode(`${clear}${text}\n`));
      this.#out.writeSync(encoder.encode(this.#live));
    } catch {
      // Who read it has gone, as `tee` has after the same Ctrl-C.
    }
  }

  live(stats: () => TunnelStats): void {
    if (!this.#out.isTerminal()) return;
    let before = { ...stats(), time: performance.now() };
    this.#timer = setInterval(() => {
      const now = { ...stats(), time: performance.now() };
      const rate = (bytes: number) => `${(bytes / 1000 / (now.time - before.time)).toFixed(1)} MB/s`;
      const [up, down] = [rate(now.sent - before.sent), rate(now.received - before.received)];
      before = now;
      this.#live = `${now.open} open, ${now.streams} so far; sending ${up}, receiving ${down}`;
      this.#out.writeSync(encoder.encode(`\r\x1b[K${this.#live}`));
    }, 500);
  }

  end(): void {
    clearInterval(this.#timer);
    if (this.#live !== "") this.#out.writeSync(encoder.encode("\r\x1b[K"));
    this.#live = "";
  }
}

function count(number: number, noun: string): string {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

// Nothing is open any more; it is for saying so to the server.
const PIPE_TIMEOUT = 1000;

/** Joins stdin and stdout with a target, and then ends the tunnel. */
async function pipe(tunnel: TunnelClient, target: string | undefined, cut: AbortSignal): Promise<void> {
  const { stdin, stdout } = Deno;
  const read = (p: Uint8Array) => stdin.read(p);
  const write = (p: Uint8Array) => stdout.write(p);
  const closeWrite = () => Promise.resolve(stdout.close());
  try {
    await join(await tunnel.connect(target), { read, write, closeWrite, close() {} }, { signal: cut });
  } catch (error) {
    tunnel.shutdown({ timeout: PIPE_TIMEOUT });
    throw error;
  }
  // What was written last may still be on its way.
  tunnel.shutdown();
}

/** Runs the command; gives the exit code. */
async function main(args: readonly string[]): Promise<number> {
  if (args.includes("--help") || args.includes("-h")) {
    console.log(HELP);
    return 0;
  }
  let display = new Display(Deno.stdout);
  const onError = (error: unknown) => display.line(describe(error), Deno.stderr);
  // On Windows nothing sends the other.
  const signals: Deno.Signal[] = Deno.build.os === "windows" ? ["SIGINT"] : ["SIGINT", "SIGTERM"];
  let stop = () => {};
  const cut = new AbortController();
  const unlisten = () => signals.forEach((name) => Deno.removeSignalListener(name, stop));
  try {
    const { start, grace, piped } = parseCommand(args);
    if (piped !== undefined) display = new Display(Deno.stderr);
    const tunnel = await start({ onError, onEvent: (line) => display.line(line) });
    stop = () => {
      // The next one ends the process.
      unlisten();
      display.line(`shutting down within ${count(grace / 1000, "second")}; Ctrl-C ends it at once`);
      tunnel.shutdown({ timeout: grace });
      if (piped !== undefined) setDeadline(() => cut.abort(new Error("stdout was not read in time")), grace);
    };
    for (const name of signals) Deno.addSignalListener(name, stop);
    for (const addr of args[0] === "server" ? [tunnel.addr] : tunnel.addrs) display.line(`listening on ${addr}`);
    display.live(() => tunnel.stats());
    if (piped !== undefined) {
      // When the connection is lost, stdout still gets what had arrived whole.
      let lost: unknown;
      tunnel.finished.catch((error) => lost = error);
      await pipe(tunnel as TunnelClient, piped.to, cut.signal).catch((error) => {
        throw lost ?? error;
      });
    }
    await tunnel.finished;
    const { connections, streams } = tunnel.stats();
    if (piped === undefined) {
      display.line(`carried ${count(streams, "stream")} over ${count(connections, "connection")}`);
    }
    return 0;
  } catch (error) {
    const isUsage = error instanceof UsageError || error instanceof RangeError;
    onError(isUsage ? `${error.message} (try --help)` : error);
    return isUsage ? 2 : 1;
  } finally {
    display.end();
    unlisten();
  }
}

// A read of stdin that still waits must not keep the process.
if (import.meta.main) Deno.exit(await main(Deno.args));
