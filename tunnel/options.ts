/**
 * Defines the options of a tunnel, its events, its two ends and the error of a refusal.
 *
 * @module
 */

import type { FrameEvent, Stream, Version } from "../mod.ts";

/**
 * Options that both ends of a tunnel have.
 *
 * @example A log, and one switch for both ends
 * ```ts
 * import { openTunnel, serveTunnel, type TunnelOptions } from "@sluice/smux/tunnel";
 * import { assertEquals } from "@std/assert";
 * import { deadline } from "@std/async";
 *
 * const stop = new AbortController();
 * const log: string[] = [];
 * const onEvent: TunnelOptions["onEvent"] = ({ type }) => log.push(type);
 * const common: TunnelOptions = { secret: "open-sesame", signal: stop.signal, onEvent };
 * const server = serveTunnel({ ...common, listen: "127.0.0.1:0", allowListen: ["127.0.0.1:*"] });
 * const client = await openTunnel({ ...common, connect: server.serverAddr, reverse: ["0=8080"] });
 * assertEquals(log, ["connected", "listening"]);
 *
 * stop.abort();
 * await deadline(Promise.all([client.finished, server.finished]), 5000);
 * ```
 */
export interface TunnelOptions {
  /** Ends the tunnel at once when it aborts. */
  signal?: AbortSignal | undefined;
  /** What a client must send with each request: printable ASCII without spaces. Default: none is needed. */
  secret?: string | undefined;
  /** Whether plain text and missing authentication are allowed between machines. Default false. */
  insecure?: boolean | undefined;
  /**
   * Milliseconds after which a forwarded connection is cut when its receiver does not read and its unread bytes hold up
   * all others; `Infinity`: never. See `stalledStreamTimeout` of a session. Default 5000.
   */
  stalledStreamTimeout?: number | undefined;
  /** Receives every error of a connection, none of which ends the tunnel. Default: `console.error`. */
  onError?: ((error: Error) => void) | undefined;
  /** Receives everything else that belongs in a log. Default: events are dropped. */
  onEvent?: ((event: TunnelEvent) => void) | undefined;
  /** Receives every frame of smux between the two ends; see `onFrame` of a session. Default: frames are not reported. */
  onFrame?: ((frame: FrameEvent) => void) | undefined;
}

/**
 * An event of a tunnel, as `onEvent` receives it. Its `type` determines its fields:
 *
 * - `"connected"`, on a server: a client has connected.
 * - `"listening"`, on a server: it listens for a client, for an entry of its `reverse`.
 * - `"stopped"`, on a server: it has stopped listening for a client.
 * - `"reconnected"`, on a client: the connection to the server was lost, and there is a new one.
 *
 * An address is `host:port`, `[ipv6]:port` or `unix:/path`. That of a client at a Unix socket is `undefined`.
 *
 * @example A line for each event
 * ```ts
 * import { openTunnel, serveTunnel, type TunnelEvent } from "@sluice/smux/tunnel";
 * import { assertEquals } from "@std/assert";
 *
 * function format(event: TunnelEvent): string {
 *   switch (event.type) {
 *     case "connected":
 *       return "a client is here";
 *     case "listening":
 *       return `listening at ${event.listenAddr}`;
 *     case "stopped":
 *       return `not listening at ${event.listenAddr}: ${event.error?.message ?? "no longer asked for"}`;
 *     case "reconnected":
 *       return `back after ${event.downtime} ms, ${event.error.message}`;
 *   }
 * }
 *
 * const log: string[] = [];
 * const onEvent = (event: TunnelEvent) => log.push(format(event));
 * const server = serveTunnel({ listen: "127.0.0.1:0", allowListen: ["127.0.0.1:*"], onEvent });
 * const client = await openTunnel({ connect: server.serverAddr, reverse: ["0=8080"] });
 * await client.shutdown();
 * await server.shutdown();
 * const [addr] = client.listenAddrs;
 * assertEquals(log, ["a client is here", `listening at ${addr}`, `not listening at ${addr}: no longer asked for`]);
 * ```
 */
export type TunnelEvent =
  | {
    type: "connected";
    /** The address that the client connected from. */
    clientAddr: string | undefined;
  }
  | {
    type: "listening";
    /** The address that the server listens at. */
    listenAddr: string;
    /** The address of the client that connections are forwarded to. */
    clientAddr: string | undefined;
  }
  | {
    type: "stopped";
    /** The address that the server listened at. */
    listenAddr: string;
    /** The address of the client that connections were forwarded to. */
    clientAddr: string | undefined;
    /** Why the connection to the client ended; `undefined` when either end stopped the listening in order. */
    error: Error | undefined;
  }
  | {
    type: "reconnected";
    /** The address of the server, as in `serverAddr` of the tunnel. */
    serverAddr: string;
    /** Why the connection before was lost: the same object that `onError` received. */
    error: Error;
    /** Milliseconds without a connection. */
    downtime: number;
  };

/**
 * Options of {@linkcode serveTunnel}.
 *
 * @example What clients may request
 * ```ts
 * import { serveTunnel, type ServeTunnelOptions } from "@sluice/smux/tunnel";
 * import { assertMatch, assertThrows } from "@std/assert";
 *
 * const options: ServeTunnelOptions = {
 *   listen: "127.0.0.1:0",
 *   allow: ["db.local:5432", "*:443"], // one database, and HTTPS anywhere
 *   allowListen: ["127.0.0.1:*"], // where only this machine can connect
 * };
 * await using server = serveTunnel(options);
 * assertMatch(server.serverAddr, /^127\.0\.0\.1:\d+$/);
 *
 * // Where other machines can connect, TLS and a secret are required.
 * assertThrows(() => serveTunnel({ ...options, listen: "0.0.0.0:0" }), RangeError, "TLS and a secret");
 * ```
 */
export interface ServeTunnelOptions extends TunnelOptions {
  /** LISTEN: where to accept clients. */
  listen: string;
  /** TARGET of every stream. Without it each stream names its target, which `allow` must contain. */
  target?: string | undefined;
  /**
   * Each TARGET that clients may request. `*` stands for any host or any port, as in `*:443`. A host name is compared as
   * requested, before it is resolved. Default: none.
   */
  allow?: readonly string[] | undefined;
  /** Each LISTEN that clients may request, with the same wildcards. Default: none. */
  allowListen?: readonly string[] | undefined;
  /** The certificate chain of the server, in PEM. With it clients connect by TLS. */
  cert?: string | undefined;
  /** The certificate's private key, in PEM. */
  key?: string | undefined;
}

/**
 * Options of {@linkcode openTunnel}.
 *
 * @example A port for one service, and one for all
 * ```ts
 * import { openTunnel, type OpenTunnelOptions, serveTunnel } from "@sluice/smux/tunnel";
 * import { assertEquals, assertNotEquals } from "@std/assert";
 *
 * const web = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, () => new Response("hello"));
 * const server = serveTunnel({ listen: "127.0.0.1:0", allow: ["127.0.0.1:*"] });
 * const options: OpenTunnelOptions = {
 *   connect: server.serverAddr,
 *   forward: [`0=${web.addr.port}`], // any free port here leads to that service there
 *   socks: ["0"], // and another is for programs that speak SOCKS 5
 * };
 * const client = await openTunnel(options);
 * const [forwarded, socks] = client.listenAddrs;
 * assertNotEquals(forwarded, socks);
 * const answer = await fetch(`http://${forwarded}/`, { headers: { connection: "close" } });
 * assertEquals(await answer.text(), "hello");
 * for (const end of [client, server, web]) await end.shutdown();
 * ```
 */
export interface OpenTunnelOptions extends TunnelOptions {
  /** TARGET: where the server accepts clients. */
  connect: string;
  /** `LISTEN=TARGET`: the client listens, the server connects. `LISTEN` alone for a server with a fixed target. */
  forward?: readonly string[] | undefined;
  /** `LISTEN=TARGET`: the server listens, the client connects. */
  reverse?: readonly string[] | undefined;
  /** LISTEN: the client accepts SOCKS 5 there, and the server connects to the target that each request names. */
  socks?: readonly string[] | undefined;
  /** Whether to connect by TLS. Default: whether `ca` is given. */
  tls?: boolean | undefined;
  /** Certificates of authorities to trust besides the system's, in PEM. */
  ca?: string | undefined;
  /** The version of smux to speak. Default 2. */
  version?: Version | undefined;
  /** Whether to connect again, after 0.05 to 30 seconds, when the connection is lost. Default true. */
  reconnect?: boolean | undefined;
}

/**
 * Figures of one end of a tunnel.
 *
 * @example The bytes of a request
 * ```ts
 * import { openTunnel, serveTunnel, type TunnelStats } from "@sluice/smux/tunnel";
 * import { assertEquals, assertGreater } from "@std/assert";
 *
 * const web = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, () => new Response("x".repeat(10_000)));
 * const server = serveTunnel({ listen: "127.0.0.1:0", allow: ["127.0.0.1:*"] });
 * const client = await openTunnel({ connect: server.serverAddr, forward: [`0=${web.addr.port}`] });
 * const answer = await fetch(`http://${client.listenAddrs[0]}/`, { headers: { connection: "close" } });
 * assertEquals((await answer.text()).length, 10_000);
 *
 * for (const end of [client, server, web]) await end.shutdown();
 * const { connections, streams, open, received }: TunnelStats = client.stats();
 * assertEquals({ connections, streams, open }, { connections: 1, streams: 1, open: 0 });
 * assertGreater(received, 10_000);
 * ```
 */
export interface TunnelStats {
  /** Number of connections between client and server, so far. */
  connections: number;
  /** Number of connections forwarded, so far. */
  streams: number;
  /** Number of connections that are forwarded now. */
  open: number;
  /** Bytes sent to the other end, headers of smux included. */
  sent: number;
  /** Bytes received from the other end, headers of smux included. */
  received: number;
}

/**
 * One end of a tunnel, made by {@linkcode serveTunnel} or {@linkcode openTunnel}.
 *
 * @example Ending both ends, with what is open cut after a while
 * ```ts
 * import { openTunnel, serveTunnel, type Tunnel } from "@sluice/smux/tunnel";
 * import { assertEquals } from "@std/assert";
 * import { deadline } from "@std/async";
 *
 * const echo = Deno.listen({ hostname: "127.0.0.1", port: 0 });
 * const quiet = { onError() {} };
 * const server = serveTunnel({ ...quiet, listen: "127.0.0.1:0", target: `127.0.0.1:${echo.addr.port}` });
 * const client = await openTunnel({ ...quiet, connect: server.serverAddr });
 * await client.connect(); // a connection that never ends
 * using _accepted = await echo.accept();
 *
 * const ends: Tunnel[] = [client, server];
 * await deadline(Promise.all(ends.map((end) => end.shutdown({ timeout: 50 }))), 5000);
 * assertEquals(ends.map((end) => end.stats().open), [0, 0]);
 * echo.close();
 * ```
 */
export interface Tunnel extends AsyncDisposable {
  /** The address at which the server accepts its clients: where it listens, or what `connect` says, with its host. */
  readonly serverAddr: string;
  /**
   * The addresses at which connections to forward are accepted: on a client one for each of `forward`, `socks` and
   * `reverse`, in that order. A server has an empty list: what it listens at for a client is in the list of that client.
   */
  readonly listenAddrs: readonly string[];
  /**
   * Fulfils when the tunnel has ended, by `shutdown` or the signal. Rejects only on a client that does not reconnect, when
   * the connection to the server was lost. Ignoring it is safe.
   */
  readonly finished: Promise<void>;
  /**
   * Stops listening, waits until forwarded connections have ended, then ends the tunnel. It never rejects.
   *
   * @param options Milliseconds after which forwarded connections are cut; the first call decides. Default `Infinity`.
   */
  shutdown(options?: { timeout?: number | undefined }): Promise<void>;
  /** Returns the figures as they are now. */
  stats(): TunnelStats;
}

/**
 * The client's end of a tunnel, made by {@linkcode openTunnel}.
 *
 * @example A stream to a target, without listening
 * ```ts
 * import { openTunnel, serveTunnel, type TunnelClient } from "@sluice/smux/tunnel";
 * import { assertStringIncludes } from "@std/assert";
 * import { toText } from "@std/streams";
 *
 * const web = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, () => new Response("hello"));
 * const server = serveTunnel({ listen: "127.0.0.1:0", allow: ["127.0.0.1:*"] });
 * const client: TunnelClient = await openTunnel({ connect: server.serverAddr });
 *
 * const stream = await client.connect(`127.0.0.1:${web.addr.port}`);
 * await stream.write(new TextEncoder().encode("GET / HTTP/1.0\r\n\r\n"));
 * assertStringIncludes(await toText(stream.readable), "hello");
 * stream.close();
 * for (const end of [client, server, web]) await end.shutdown();
 * ```
 */
export interface TunnelClient extends Tunnel {
  /**
   * Opens a stream to a target that the server connects to, as `forward` does for each connection.
   *
   * @param target TARGET; without it, the fixed target of the server.
   * @returns A stream, joined to the target.
   * @throws {RangeError} The target is not an address.
   * @throws {TunnelRefusedError} The server does not allow the target, or cannot connect to it.
   * @throws {Error} The client has no connection to the server now.
   */
  connect(target?: string): Promise<Stream>;
}

/**
 * The other end of the tunnel refuses a request.
 *
 * @example A target that is not allowed
 * ```ts
 * import { openTunnel, serveTunnel, TunnelRefusedError } from "@sluice/smux/tunnel";
 * import { assertEquals, assertRejects } from "@std/assert";
 *
 * const refusals: unknown[] = [];
 * await using server = serveTunnel({
 *   listen: "127.0.0.1:0",
 *   allow: ["localhost:80"],
 *   onError: (error) => refusals.push(error),
 * });
 * await using client = await openTunnel({ connect: server.serverAddr });
 *
 * const error = await assertRejects(() => client.connect("localhost:22"), TunnelRefusedError, "not allowed");
 * assertEquals(error.status, 403);
 * assertEquals(refusals.length, 1); // the server reports it too
 * ```
 */
export class TunnelRefusedError extends Error {
  /** Its name. */
  override readonly name = "TunnelRefusedError";
  /** The HTTP status: 403 not allowed, 407 wrong secret, 502 cannot connect or listen, others a malformed request. */
  readonly status: number;

  /**
   * Makes one.
   *
   * @param status The HTTP status.
   * @param message What was refused, and why.
   */
  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}
