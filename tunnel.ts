/**
 * TCP forwarding over one connection: {@linkcode openTunnel} listens on a port and carries each connection it accepts as
 * one stream to {@linkcode serveTunnel}, which connects it to a fixed target.
 *
 * ```ts
 * import { openTunnel, serveTunnel } from "@sluice/smux/tunnel";
 * import { assertEquals } from "@std/assert";
 *
 * const web = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, () => new Response("hello"));
 * const server = serveTunnel({ listen: { hostname: "127.0.0.1", port: 0 }, target: web.addr });
 * const client = await openTunnel({ listen: { hostname: "127.0.0.1", port: 0 }, connect: server.addr });
 *
 * const answer = await fetch(`http://127.0.0.1:${client.addr.port}/`, { headers: { connection: "close" } });
 * assertEquals(await answer.text(), "hello");
 *
 * await client.shutdown();
 * await server.shutdown();
 * await web.shutdown();
 * ```
 *
 * It is a command too:
 *
 * ```sh
 * deno run -A jsr:@sluice/smux/tunnel server --listen 127.0.0.1:9000 --target 127.0.0.1:8000
 * deno run -A jsr:@sluice/smux/tunnel client --listen 127.0.0.1:8080 --connect 127.0.0.1:9000
 * ```
 *
 * Nothing is encrypted and nobody is asked who they are: listen where only those can connect who may.
 *
 * @module
 */

import { join, serve, Session, SessionClosedError, type Stream } from "./mod.ts";

/** A host and a TCP port. */
export interface Endpoint {
  /** A name or an address; IPv6 without brackets. */
  readonly hostname: string;
  /** 1 to 65 535; where it is listened on also 0: any that is free. */
  readonly port: number;
}

/** What both ends of a tunnel can be told. */
export interface TunnelOptions {
  /** Where to wait for connections: of the tunnel's clients on a server, of those to carry on a client. */
  listen: Endpoint;
  /** Ends the tunnel at once when it aborts. */
  signal?: AbortSignal | undefined;
  /** Gets every error of a connection, none of which ends the tunnel. Default: `console.error`. */
  onError?: ((error: unknown) => void) | undefined;
}

/** Options of {@linkcode serveTunnel}. */
export interface ServeTunnelOptions extends TunnelOptions {
  /** Where each stream is connected to. */
  target: Endpoint;
  /** Is told of every connection that a client of the tunnel made. */
  onConnection?: ((from: Endpoint) => void) | undefined;
}

/** Options of {@linkcode openTunnel}. */
export interface OpenTunnelOptions extends TunnelOptions {
  /** Where the tunnel's server listens. */
  connect: Endpoint;
}

/** What a tunnel has carried so far. */
export interface TunnelStats {
  /** Connections between the tunnel's client and server: on a client 1, on a server one for each client. */
  connections: number;
  /** Connections carried: one stream for each. */
  streams: number;
}

/** One end of a tunnel, made by {@linkcode serveTunnel} or {@linkcode openTunnel}. */
export interface Tunnel extends AsyncDisposable {
  /** Where it listens. */
  readonly addr: Endpoint;
  /**
   * Fulfils when the tunnel has ended because it was told to. On a client it rejects when the connection to the server
   * was lost; on a server it never rejects. Ignoring it is safe.
   */
  readonly finished: Promise<void>;
  /** Stops listening, waits until what is carried has ended, then ends the tunnel. It never rejects. */
  shutdown(): Promise<void>;
  /** Figures as they are now. */
  stats(): TunnelStats;
}

/**
 * Starts the server's end of a tunnel: any number of clients may connect, and each stream they open is connected to the
 * target. When that cannot be reached the stream ends at once, and `onError` is told.
 *
 * @param options Where to listen, where to connect to, a signal, and who is told of what.
 * @returns The tunnel, at once.
 * @throws {RangeError} A port is out of bounds.
 * @throws {Error} It cannot listen there.
 *
 * @example
 * ```ts
 * import { serveTunnel } from "@sluice/smux/tunnel";
 * import { Session } from "@sluice/smux";
 * import { assertEquals } from "@std/assert";
 *
 * const web = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, () => new Response("hello"));
 * const server = serveTunnel({ listen: { hostname: "127.0.0.1", port: 0 }, target: web.addr });
 *
 * // Any client of smux will do, not only a tunnel's.
 * const session = Session.client(await Deno.connect(server.addr));
 * const stream = await session.openStream();
 * await stream.write(new TextEncoder().encode("GET / HTTP/1.0\r\n\r\n"));
 * const answer = await new Response(stream.readable).text();
 * assertEquals(answer.endsWith("hello"), true);
 *
 * stream.close();
 * await session.close();
 * await server.shutdown();
 * await web.shutdown();
 * ```
 */
export function serveTunnel(options: ServeTunnelOptions): Tunnel {
  const { listen, target, signal, onError = console.error, onConnection } = options;
  checkPort("target", target, 1);
  const counts = { connections: 0, streams: 0 };

  async function forward(stream: Stream): Promise<void> {
    counts.streams++;
    // A client that is gone waits for no target.
    const ended = new AbortController();
    stream.closed.catch((error) => ended.abort(error));
    try {
      using connection = await connectTo(target, ended.signal);
      await carry(stream, connection, `The connection to ${format(target)}`);
    } catch (error) {
      if (!(error instanceof SessionClosedError)) onError(error);
    }
  }

  const listener = listenOn(listen);
  const accept = async () => {
    const connection = await listener.accept();
    counts.connections++;
    try {
      onConnection?.(connection.remoteAddr);
    } catch (error) {
      console.error(error);
    }
    return connection;
  };
  const { finished, shutdown } = serve({ accept, close: () => listener.close() }, forward, {
    signal,
    onError: (error) => onError(failure("A client's connection failed", error)),
  });
  return { addr: listener.addr, finished, shutdown, stats: () => ({ ...counts }), [Symbol.asyncDispose]: shutdown };
}

/**
 * Starts the client's end of a tunnel: it connects to the server, then listens, and carries each connection it accepts
 * as a stream of that one connection. Each direction's end is carried too.
 *
 * @param options Where to listen, where the server is, a signal, and who is told of errors.
 * @returns The tunnel, when it is connected and listens.
 * @throws {RangeError} A port is out of bounds.
 * @throws {Error} It cannot listen there, or the server cannot be reached.
 *
 * @example
 * ```ts
 * import { openTunnel, serveTunnel } from "@sluice/smux/tunnel";
 * import { assertEquals } from "@std/assert";
 *
 * const listen = { hostname: "127.0.0.1", port: 0 };
 * const clock = Deno.listen(listen);
 * await using server = serveTunnel({ listen, target: { hostname: "127.0.0.1", port: clock.addr.port } });
 * await using client = await openTunnel({ listen, connect: server.addr });
 *
 * // Whoever connects to the client speaks with the target.
 * const [connection, answering] = await Promise.all([Deno.connect(client.addr), clock.accept()]);
 * await answering.write(new TextEncoder().encode("noon"));
 * answering.close();
 * assertEquals(await new Response(connection.readable).text(), "noon");
 * clock.close();
 * ```
 */
export async function openTunnel(options: OpenTunnelOptions): Promise<Tunnel> {
  const { listen, connect, signal, onError = console.error } = options;
  checkPort("connect", connect, 1);
  checkPort("listen", listen, 0);
  using connecting = new DisposableStack();
  const connection = connecting.use(await connectTo(connect, signal));
  const listener = listenOn(listen);
  connecting.move();
  const session = Session.client(connection);

  const carrying = new Set<Promise<void>>();
  let streams = 0;
  let isEnding = false;

  function tell(error: unknown): void {
    try {
      onError(error);
    } catch (thrown) {
      console.error(thrown);
    }
  }

  async function forward(accepted: Deno.TcpConn): Promise<void> {
    using local = accepted;
    try {
      const stream = await session.openStream();
      streams++;
      await carry(stream, local, `The connection from ${format(local.remoteAddr)}`);
    } catch (error) {
      if (!(error instanceof SessionClosedError)) tell(error);
    }
  }

  async function accept(): Promise<void> {
    for (;;) {
      try {
        const carried = forward(await listener.accept());
        carrying.add(carried);
        carried.finally(() => carrying.delete(carried));
      } catch (error) {
        if (error instanceof Deno.errors.BadResource || error instanceof Deno.errors.Interrupted) return;
        tell(failure("A connection was lost before it was accepted", error));
        // Too many open files, say, last: to try again at once would only keep the processor busy.
        if (!isReset(error)) await new Promise((resume) => setTimeout(resume, ACCEPT_PAUSE));
      }
    }
  }

  async function run(): Promise<void> {
    const accepting = accept();
    try {
      await session.closed;
      if (!isEnding) throw new Error("the server ended it");
    } catch (error) {
      const lost = failure(`The connection to ${format(connect)} was lost`, error);
      if (!isEnding) throw lost;
      if (!signal?.aborted) tell(lost);
    } finally {
      stop();
      await accepting;
      await Promise.all(carrying);
      signal?.removeEventListener("abort", abort);
    }
  }

  function stop(): void {
    // The listener may be closed already; this does not mind.
    listener[Symbol.dispose]();
  }

  function abort(): void {
    isEnding = true;
    stop();
    session.abort(signal!.reason);
  }

  function shutdown(): Promise<void> {
    isEnding = true;
    stop();
    session.close({ drain: true });
    return finished.catch(() => {});
  }

  // The server has nothing to open a stream for: each is refused.
  session.incoming.close();
  const finished = run();
  finished.catch(() => {});
  signal?.addEventListener("abort", abort);
  if (signal?.aborted) abort();

  const stats = () => ({ connections: 1, streams });
  return { addr: listener.addr, finished, shutdown, stats, [Symbol.asyncDispose]: shutdown };
}

const ACCEPT_PAUSE = 100;

/** Whether accepting failed because of the one connection that was to be accepted. */
function isReset(error: unknown): boolean {
  const { NotConnected, ConnectionReset, ConnectionAborted } = Deno.errors;
  return [NotConnected, ConnectionReset, ConnectionAborted].some((kind) => error instanceof kind);
}

/** Joins a stream to a connection; if that breaks, says whose it was. */
async function carry(stream: Stream, connection: Deno.TcpConn, name: string): Promise<void> {
  try {
    // What arrives in pieces was sent in pieces, and waits for nothing.
    connection.setNoDelay(true);
    await join(stream, connection);
  } catch (error) {
    stream.close();
    throw error instanceof SessionClosedError ? error : failure(`${name} broke`, error);
  }
}

function listenOn(endpoint: Endpoint): Deno.TcpListener {
  checkPort("listen", endpoint, 0);
  const { hostname, port } = endpoint;
  try {
    return Deno.listen({ hostname, port });
  } catch (error) {
    throw failure(`Cannot listen on ${format(endpoint)}`, error);
  }
}

async function connectTo(endpoint: Endpoint, signal: AbortSignal | undefined): Promise<Deno.TcpConn> {
  const { hostname, port } = endpoint;
  try {
    return await Deno.connect(signal === undefined ? { hostname, port } : { hostname, port, signal });
  } catch (error) {
    signal?.throwIfAborted();
    throw failure(`Cannot connect to ${format(endpoint)}`, error);
  }
}

function checkPort(name: string, { port }: Endpoint, least: number): void {
  if (Number.isInteger(port) && port >= least && port <= 65535) return;
  throw new RangeError(`${name}.port must be an integer from ${least} to 65535, received ${port}`);
}

function format({ hostname, port }: Endpoint): string {
  return hostname.includes(":") ? `[${hostname}]:${port}` : `${hostname}:${port}`;
}

/** An error that says what failed, and after a colon why. */
function failure(what: string, cause: unknown): Error {
  return new Error(`${what}: ${describe(cause)}`, { cause });
}

/** An error in words that can stand behind a colon. */
function describe(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  // Every system has words of its own for it.
  if (error instanceof Deno.errors.AddrInUse) return "address in use";
  const message = error.message.replace(/ \(os error \d+\)$/, "");
  return /^[A-Z][a-z ]/.test(message) ? message[0]!.toLowerCase() + message.slice(1) : message;
}

// The command.

const HELP = `\
Carries TCP connections to a server elsewhere, all of them over one connection.

Usage:
  tunnel server --listen HOST:PORT --target HOST:PORT
  tunnel client --listen HOST:PORT --connect HOST:PORT

  server   waits for clients at --listen; connects what they carry to --target
  client   waits for connections at --listen; carries them over one connection
           to the server at --connect

Options:
  --listen HOST:PORT    where to listen; port 0 is any that is free
  --target HOST:PORT    where the server connects to
  --connect HOST:PORT   where the client finds the server
  --help                show this

Examples:
  tunnel server --listen 127.0.0.1:9000 --target 127.0.0.1:8000
  tunnel client --listen 127.0.0.1:8080 --connect 127.0.0.1:9000
  tunnel client --listen [::1]:8080 --connect example.com:9000

Nothing is encrypted and nobody is asked who they are.
Ctrl-C stops listening, waits for what is open, and ends; twice ends at once.`;

type Command =
  | { name: "help" }
  | { name: "server"; listen: Endpoint; target: Endpoint }
  | { name: "client"; listen: Endpoint; connect: Endpoint };

/** What is wrong with a command line, in one sentence. */
class UsageError extends Error {}

function parseCommand(args: readonly string[]): Command {
  if (args.includes("--help") || args.includes("-h")) return { name: "help" };
  const [name, ...rest] = args;
  switch (name) {
    case "server": {
      const { listen, target } = parseOptions(rest, ["listen", "target"]);
      return { name, listen: parseEndpoint("listen", listen, 0), target: parseEndpoint("target", target, 1) };
    }
    case "client": {
      const { listen, connect } = parseOptions(rest, ["listen", "connect"]);
      return { name, listen: parseEndpoint("listen", listen, 0), connect: parseEndpoint("connect", connect, 1) };
    }
    case undefined:
      throw new UsageError("say server or client");
    default:
      throw new UsageError(`say server or client, not "${name}"`);
  }
}

/** The values of options that must all be there, as `--name value` or `--name=value`. */
function parseOptions<Name extends string>(args: readonly string[], names: readonly Name[]): Record<Name, string> {
  const values: Partial<Record<string, string>> = {};
  for (let at = 0; at < args.length; at++) {
    const [, given, attached] = /^--([^=]+)(?:=(.*))?$/s.exec(args[at]!) ?? [];
    if (given === undefined) throw new UsageError(`unexpected argument "${args[at]}"`);
    const name = names.find((name) => name === given);
    if (name === undefined) throw new UsageError(`unknown option --${given}`);
    if (values[name] !== undefined) throw new UsageError(`--${name} was given twice`);
    const value = attached ?? args[++at];
    if (!value || (attached === undefined && value.startsWith("--"))) throw new UsageError(`--${name} needs a value`);
    values[name] = value;
  }
  for (const name of names) if (values[name] === undefined) throw new UsageError(`--${name} is missing`);
  return values as Record<Name, string>;
}

function parseEndpoint(option: string, text: string, leastPort: number): Endpoint {
  const [, ipv6, name, digits] = /^(?:\[([\da-f:.]+)\]|([\w.-]+)):(\d+)$/i.exec(text) ?? [];
  if (digits === undefined || !URL.canParse(`http://${ipv6 === undefined ? name : `[${ipv6}]`}/`)) {
    throw new UsageError(`--${option} must be HOST:PORT or [IPV6]:PORT, not "${text}"`);
  }
  const port = Number(digits);
  if (port < leastPort || port > 65535) {
    throw new UsageError(`--${option} needs a port from ${leastPort} to 65535, not ${digits}`);
  }
  return { hostname: (ipv6 ?? name)!, port };
}

function count(number: number, noun: string): string {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

/** Runs the command; gives the exit code. */
async function main(args: readonly string[]): Promise<number> {
  let command: Command;
  try {
    command = parseCommand(args);
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    console.error(`${error.message} (try --help)`);
    return 2;
  }
  if (command.name === "help") {
    console.log(HELP);
    return 0;
  }

  const onError = (error: unknown) => console.error(describe(error));
  const onConnection = (from: Endpoint) => console.log(`connection from ${format(from)}`);
  // Windows knows no other.
  const signals: Deno.Signal[] = Deno.build.os === "windows" ? ["SIGINT"] : ["SIGINT", "SIGTERM"];
  let shutdown = () => {};
  const stop = () => {
    // The next one ends the process.
    for (const name of signals) Deno.removeSignalListener(name, stop);
    shutdown();
  };
  try {
    const tunnel = command.name === "server"
      ? serveTunnel({ ...command, onConnection, onError })
      : await openTunnel({ ...command, onError });
    shutdown = () => {
      console.log("shutting down; Ctrl-C ends it at once");
      tunnel.shutdown();
    };
    for (const name of signals) Deno.addSignalListener(name, stop);
    console.log(`listening on ${format(tunnel.addr)}`);
    await tunnel.finished.finally(() => {
      const { connections, streams } = tunnel.stats();
      console.log(`carried ${count(streams, "stream")} over ${count(connections, "connection")}`);
    });
    return 0;
  } catch (error) {
    onError(error);
    return 1;
  } finally {
    for (const name of signals) Deno.removeSignalListener(name, stop);
  }
}

if (import.meta.main) Deno.exitCode = await main(Deno.args);
