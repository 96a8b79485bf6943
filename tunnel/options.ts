/**
 * Defines the options, events, figures and ends of a tunnel, and the error of a refused request.
 *
 * @module
 */

import type { FrameEvent, Stream, Version } from "../mod.ts";

/**
 * Options of both ends of a tunnel.
 *
 * @example A log, and one signal for both ends
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
  /** Secret that each request must contain: non-empty printable ASCII without spaces. Default: none. */
  secret?: string | undefined;
  /** Allows plaintext or unauthenticated access from other machines. Default: `false`. */
  insecure?: boolean | undefined;
  /**
   * Milliseconds after which a forwarded connection is closed when its receiver does not read and its unread bytes
   * block all others; `Infinity`: never. See `stalledStreamTimeout` of a session. Default: 5000.
   */
  stalledStreamTimeout?: number | undefined;
  /**
   * Milliseconds without a write after which a keepalive is sent to the other end, so that it and the devices between
   * do not regard the connection as dead. An integer, or `Infinity`: never. Default: a third of `timeout`, at most
   * 10 000.
   */
  keepAliveInterval?: number | undefined;
  /**
   * Milliseconds of silence after which the other end counts as lost. If it resumes, the connection is suspended after a
   * third of it. An integer of at least `keepAliveInterval`, or `Infinity`: never, for a peer that is not resumable and
   * sends no keepalive, such as AWS's session-manager-plugin. Default: 30 000.
   */
  timeout?: number | undefined;
  /**
   * Maximum number of open streams that one connection's other end has opened: on a server the connections that one
   * client forwards to it, on a client those of `reverse` and `reverseSocks`. More are refused. Default: 8192.
   */
  maxStreams?: number | undefined;
  /**
   * Maximum number of unread bytes of all streams of one connection between client and server. The memory of this end
   * that its peer can occupy grows with it. Smaller: less memory for each client; larger: more throughput on links with
   * a long delay. Default: 16 777 216.
   */
  maxReceiveBuffer?: number | undefined;
  /**
   * LISTEN: serves the state of this end over HTTP: `/metrics` for Prometheus, `/status` in JSON, and `/healthz`, whose
   * status is 200 while a client is connected or a server listens, else 503. Default: none.
   */
  status?: string | undefined;
  /**
   * Milliseconds until connecting fails: of a client to the server, and of either end to a target. A server also limits
   * the resolving of a host name to this time. An integer, or `Infinity`: the limit of the system. Default: 10 000, and
   * 4000 of a client to the server.
   */
  connectTimeout?: number | undefined;
  /**
   * Milliseconds without a datagram in either direction after which a source of UDP is forgotten, and its stream closed.
   * The lower one of both ends counts. An integer, or `Infinity`: never. Default: 60 000.
   */
  udpTimeout?: number | undefined;
  /** Called with each error of a connection; the tunnel continues. Default: `console.error`. */
  onError?: ((error: Error) => void) | undefined;
  /** Called with each event. Default: events are dropped. */
  onEvent?: ((event: TunnelEvent) => void) | undefined;
  /** Receives every frame of smux between the two ends; see `onFrame` of a session. Default: frames are not reported. */
  onFrame?: ((frame: FrameEvent) => void) | undefined;
}

/**
 * An event of a tunnel, the argument of `onEvent`. Its `type` determines its fields:
 *
 * - `"connected"`, on a server: a client has connected.
 * - `"disconnected"`, on a server: the connection to a client has ended. One that is lost ends when it can no more be
 *   resumed.
 * - `"listening"`, on a server: it listens for an entry of a client's `reverse` or `reverseSocks`.
 * - `"stopped"`, on a server: it has stopped listening for a client.
 * - `"suspended"`, on a client: the connection to the server was lost, and is being resumed.
 * - `"resumed"`, on a client: forwarded connections continue where they were.
 * - `"reconnected"`, on a client: it has a new connection to the server after the previous one was lost. Forwarded
 *   connections of the previous one have ended.
 * - `"unresumable"`, on a client, once: the server does not support resuming.
 * - `"reached"`, on a client with several servers: it has connected to one of them for the first time.
 * - `"switched"`, on a client with several servers: new connections use this server from now on.
 * - `"bound"`, on a client with several servers: one of them listens for an entry of `reverse`. With one server: it
 *   listens for an entry after a failure, or at another address, or another server does.
 * - `"finished"`: a forwarded connection has ended.
 *
 * An address is `host:port`, `[ipv6]:port` or `unix:/path`, and one that is listened on for datagrams begins with `udp:`.
 * A source of datagrams counts as a forwarded connection. The address of a client at a Unix socket is `undefined`.
 *
 * @example A line for each event
 * ```ts
 * import { openTunnel, serveTunnel, type TunnelEvent } from "@sluice/smux/tunnel";
 * import { assertEquals } from "@std/assert";
 *
 * function format(event: TunnelEvent): string {
 *   switch (event.type) {
 *     case "connected":
 *       return "client connected";
 *     case "disconnected":
 *       return `client disconnected: ${event.error?.message ?? "closed"}`;
 *     case "listening":
 *       return `listening on ${event.listenAddr}`;
 *     case "stopped":
 *       return `stopped listening on ${event.listenAddr}: ${event.error?.message ?? "closed"}`;
 *     case "suspended":
 *       return event.error.message;
 *     case "resumed":
 *     case "reconnected":
 *       return `${event.type} after ${event.downtime} ms`;
 *     case "unresumable":
 *       return `${event.serverAddr} does not resume`;
 *     case "reached":
 *       return `connected to ${event.serverAddr}`;
 *     case "switched":
 *       return `new connections use ${event.serverAddr}`;
 *     case "bound":
 *       return `listening on ${event.listenAddr} at ${event.serverAddr}`;
 *     case "finished":
 *       return `${event.from} to ${event.to}: ${event.sent + event.received} bytes, ${event.error?.message ?? "closed"}`;
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
 * assertEquals(log.slice(0, 2), ["client connected", `listening on ${addr}`]);
 * // These two are in any order.
 * assertEquals(log.slice(2).sort(), ["client disconnected: closed", `stopped listening on ${addr}: closed`]);
 * ```
 */
export type TunnelEvent =
  | {
    type: "connected";
    /** The address that the client connected from. */
    clientAddr: string | undefined;
    /** The name in the client's certificate; absent without `clientCa`. */
    user?: string;
  }
  | {
    type: "disconnected";
    /** The address that the client connected from, as in its event `"connected"`. */
    clientAddr: string | undefined;
    /** The name that the client has authenticated with; `undefined` for a client without a name. */
    user: string | undefined;
    /** Milliseconds since its event `"connected"`. */
    duration: number;
    /** Why the connection was lost; `undefined` when either end has closed it. */
    error: Error | undefined;
  }
  | {
    type: "listening";
    /** The address that the server listens on. */
    listenAddr: string;
    /** The address of the client that connections are forwarded to. */
    clientAddr: string | undefined;
  }
  | {
    type: "stopped";
    /** The address that the server listened on. */
    listenAddr: string;
    /** The address of the client that connections were forwarded to. */
    clientAddr: string | undefined;
    /** Why the connection to the client ended; `undefined` when either end stopped listening by `shutdown` or `update`. */
    error: Error | undefined;
  }
  | {
    type: "suspended";
    /** The address of the server, as in `serverAddr` of the tunnel. */
    serverAddr: string;
    /** Why the connection was lost. */
    error: Error;
  }
  | {
    type: "resumed";
    /** The address of the server, as in `serverAddr` of the tunnel. */
    serverAddr: string;
    /** Milliseconds without a connection. */
    downtime: number;
  }
  | {
    type: "unresumable";
    /** The address of the server, as in `serverAddr` of the tunnel. */
    serverAddr: string;
  }
  | {
    type: "reconnected";
    /** The address of the server, as in `serverAddr` of the tunnel. */
    serverAddr: string;
    /** Why the previous connection was lost: the same object that `onError` received. */
    error: Error;
    /** Milliseconds without a connection. */
    downtime: number;
  }
  | {
    type: "reached";
    /** The address of the server. */
    serverAddr: string;
  }
  | {
    type: "switched";
    /** The address of the server of new connections, as in `serverAddr` of the tunnel. */
    serverAddr: string;
    /** The address of the server before; `undefined` for the first. */
    formerAddr: string | undefined;
  }
  | {
    type: "bound";
    /** The address of the server that listens. */
    serverAddr: string;
    /** The address that it listens on. */
    listenAddr: string;
    /** The target of the entry; `undefined` for one of `reverseSocks`. */
    to: string | undefined;
  }
  | {
    type: "finished";
    /**
     * What forwarded the connection. On a client: an entry of `forward`, `socks`, `http`, `reverse` or `reverseSocks`
     * (as `"reverse"`). On a server: a CONNECT request, the fixed `target`, or listening for the `reverse` or
     * `reverseSocks` of a client.
     */
    kind: "forward" | "socks" | "http" | "reverse" | "connect" | "target";
    /** The name that the client has authenticated with; `undefined` on a client, and for a client without a name. */
    user: string | undefined;
    /** The address of the connection's origin: of the visitor at a listening end, of the peer at the other end. */
    from: string | undefined;
    /**
     * The target, at an end that connects or has requested it. On a server, for `"reverse"`: the address of the client.
     * `undefined` if only the peer knows it.
     */
    to: string | undefined;
    /** Bytes of the connection sent to the peer. */
    sent: number;
    /** Bytes of the connection received from the peer. */
    received: number;
    /** Milliseconds from its begin to its end. */
    duration: number;
    /** Why the connection failed; `undefined` when both directions have ended. */
    error: Error | undefined;
    /** Of UDP only: whether it has ended because no datagram had arrived for `udpTimeout`. */
    isIdle?: boolean;
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
 *   allow: ["db.local:5432", "*:443", "!10.0.0.0/8:*"], // a database, and HTTPS on any host outside of this network
 *   allowListen: ["127.0.0.1:*"], // reachable from this machine only
 * };
 * await using server = serveTunnel(options);
 * assertMatch(server.serverAddr, /^127\.0\.0\.1:\d+$/);
 *
 * // An address that other machines can reach requires TLS and a secret, or users.
 * assertThrows(() => serveTunnel({ ...options, listen: "0.0.0.0:0" }), RangeError, "TLS and a secret");
 * ```
 */
export interface ServeTunnelOptions extends TunnelOptions {
  /**
   * LISTEN: the address to accept clients on. With `ws://HOST:PORT/PATH` or, with `cert`, `wss://HOST:PORT/PATH` clients
   * connect with WebSockets. Other paths are answered with status 404, so a path acts as an additional secret.
   */
  listen: string;
  /** TARGET of every stream. Default: each stream requests its target, which `allow` must contain. */
  target?: string | undefined;
  /**
   * Each TARGET that clients may request: `host:port`, where
   *
   * - the host is a name, which is compared as requested; an address or a network such as `10.0.0.0/8` or `[fd00::/8]`,
   *   which is compared with the address that the requested name was resolved to; or `*`, any host;
   * - the port is a number, a range such as `8000-8010`, or `*`, any port.
   *
   * An entry that begins with `!` denies. The last entry that matches decides, and without one the request is refused.
   * `*` does not allow link-local addresses, nor this machine when it is requested by a name other than `localhost`:
   * an entry of their own must allow these. The server connects to an address that is allowed, and to no other.
   *
   * With `udp:` in front, after `!`, an entry is about datagrams, and about nothing else: `udp:*:53`. Default: `[]`.
   */
  allow?: readonly string[] | undefined;
  /** Each LISTEN that clients may request, written as in `allow`. Default: `[]`. */
  allowListen?: readonly string[] | undefined;
  /**
   * IP addresses and networks (`10.0.0.0/8`) of proxies. Each of their connections must begin with a header of the
   * PROXY protocol, version 1 or 2, whose address becomes that of the client. Connections of other addresses must not
   * have a header. Cannot be combined with `cert`. Default: `[]`.
   */
  acceptProxy?: readonly string[] | undefined;
  /**
   * The users of the server, each with a secret and rules of its own. Cannot be combined with `secret`, `allow` and
   * `allowListen`. Default: none.
   */
  users?: readonly TunnelUser[] | undefined;
  /**
   * Called with each request that the rules allow; returns whether it is allowed. It may throw a
   * {@linkcode TunnelRefusedError}, whose status and message the client receives. Any other error refuses the request
   * and is passed to `onError`. Default: all are allowed.
   */
  authorize?: ((request: TunnelRequest) => boolean | Promise<boolean>) | undefined;
  /** The certificate chain of the server, in PEM. Clients must then connect with TLS. */
  cert?: string | undefined;
  /** The certificate's private key, in PEM. */
  key?: string | undefined;
  /**
   * CA certificates, in PEM. Each client must then show a certificate for clients that one of them has signed, directly
   * or through certificates that the client sends. Its name is that of the user in events, figures, the log and
   * `authorize`: the common name of the subject; without one, the first alternative name that is a DNS name or an
   * e-mail address. With `users` it must be that of one of them, whose rules and limits apply without a secret. Requires
   * `cert` and `key`. Default: clients show no certificate.
   */
  clientCa?: string | undefined;
  /**
   * `http://HOST:PORT`: a web server for requests that are not WebSockets at the path of `listen`. It receives them, and
   * all that follows on their connections, unchanged. Requires a `listen` of `ws://` or `wss://`. Default: none.
   */
  backend?: string | undefined;
}

/**
 * A user of a server, an element of `users`.
 *
 * @example Two users with different rules
 * ```ts
 * import { hashSecret, openTunnel, serveTunnel, TunnelRefusedError, type TunnelUser } from "@sluice/smux/tunnel";
 * import { assertEquals, assertRejects } from "@std/assert";
 *
 * const web = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, () => new Response("hello"));
 * const target = `127.0.0.1:${web.addr.port}`;
 * const users: TunnelUser[] = [
 *   { name: "alice", secret: await hashSecret("open-sesame"), allow: ["127.0.0.1:*"], maxStreams: 100 },
 *   { name: "bob", secret: await hashSecret("let-me-in"), allowListen: ["127.0.0.1:8000-8010"], maxPorts: 1 },
 * ];
 * await using server = serveTunnel({ listen: "127.0.0.1:0", users, onError() {} });
 *
 * await using alice = await openTunnel({ connect: server.serverAddr, user: "alice", secret: "open-sesame" });
 * (await alice.connect(target)).close();
 * await using bob = await openTunnel({ connect: server.serverAddr, user: "bob", secret: "let-me-in" });
 * const error = await assertRejects(() => bob.connect(target), TunnelRefusedError);
 * assertEquals(error.status, 403);
 * await web.shutdown();
 * ```
 */
export interface TunnelUser {
  /** 1 to 64 printable ASCII characters without space or colon. */
  name: string;
  /** The hash of the secret, as {@linkcode hashSecret} returns it. Optional with `clientCa`, which makes it unused. */
  secret?: string | undefined;
  /** As in {@linkcode ServeTunnelOptions}. Default: `[]`. */
  allow?: readonly string[] | undefined;
  /** As in {@linkcode ServeTunnelOptions}. Default: `[]`. */
  allowListen?: readonly string[] | undefined;
  /** Maximum number of open forwarded connections, of all clients with this name. Default: unlimited. */
  maxStreams?: number | undefined;
  /** Maximum number of addresses that the server listens on, for all clients with this name. Default: unlimited. */
  maxPorts?: number | undefined;
}

/**
 * A request of a client, the argument of `authorize`.
 *
 * @example Requests by the hour
 * ```ts
 * import { openTunnel, serveTunnel, TunnelRefusedError, type TunnelRequest } from "@sluice/smux/tunnel";
 * import { assertRejects } from "@std/assert";
 *
 * let isOpen = false;
 * const requests: TunnelRequest[] = [];
 * await using server = serveTunnel({
 *   listen: "127.0.0.1:0",
 *   allow: ["*:*"],
 *   authorize(request) {
 *     requests.push(request);
 *     if (!isOpen) throw new TunnelRefusedError(403, "closed until tomorrow");
 *     return true;
 *   },
 *   onError() {},
 * });
 * await using client = await openTunnel({ connect: server.serverAddr });
 * await assertRejects(() => client.connect("localhost:80"), TunnelRefusedError, "closed until tomorrow");
 * ```
 */
export interface TunnelRequest {
  /** The name of the user; `undefined` on a server without `users` and `clientCa`. */
  user: string | undefined;
  /** `"CONNECT"` to connect to a target, `"BIND"` to listen; the same for datagrams. */
  method: "CONNECT" | "BIND" | "CONNECT-UDP" | "BIND-UDP";
  /** TARGET or LISTEN, as requested. */
  target: string;
  /** The address of the client; `undefined` at a Unix socket. */
  remoteAddr: string | undefined;
}

/**
 * Options of {@linkcode openTunnel}.
 *
 * @example A port for one service, and a SOCKS 5 port for all
 * ```ts
 * import { openTunnel, type OpenTunnelOptions, serveTunnel } from "@sluice/smux/tunnel";
 * import { assertEquals, assertNotEquals } from "@std/assert";
 *
 * const web = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, () => new Response("hello"));
 * const server = serveTunnel({ listen: "127.0.0.1:0", allow: ["127.0.0.1:*"] });
 * const options: OpenTunnelOptions = {
 *   connect: server.serverAddr,
 *   forward: [`0=${web.addr.port}`], // a free port of the client, forwarded to that service
 *   socks: ["0"], // a free port for SOCKS 5 clients
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
  /**
   * TARGET: the address of the server; or `ws://HOST:PORT/PATH` or `wss://HOST:PORT/PATH` to connect with a WebSocket, the
   * latter with TLS; the port may be absent, and the path does not appear in errors and events. Or the addresses of
   * several servers in the order of preference: the client is then connected to each, a new connection uses the first
   * that is up, and `reverse` is listened for at all of them. The other options are common to all. A server that refuses
   * the client is reported and left out; without an answer from any, or if all refuse, `openTunnel` rejects with the
   * error of one as its `cause`.
   */
  connect: string | readonly string[];
  /**
   * `LISTEN=TARGET`: the client listens, the server connects. `LISTEN` alone for a server with a fixed target. With
   * `,proxy` at the end, each connection to the target begins with a header of the PROXY protocol, version 2.
   * `udp:LISTEN=TARGET` forwards datagrams.
   */
  forward?: readonly string[] | undefined;
  /** `LISTEN=TARGET`: the server listens, the client connects. With `,proxy` and `udp:` as in `forward`. */
  reverse?: readonly string[] | undefined;
  /**
   * LISTEN: the client accepts the protocols of a proxy, the server connects to the target of each request. They are
   * SOCKS 5, 4 and 4a, and HTTP: `CONNECT`, and requests with an absolute `http://` URI. The first byte decides. With
   * UDP ASSOCIATE of SOCKS 5 the server sends datagrams. On an address that other machines can reach, `insecure` is
   * required, also with `proxyAuth`, because passwords and data are sent in plaintext. Default: `[]`.
   */
  socks?: readonly string[] | undefined;
  /** LISTEN: as `socks`, for HTTP above all. The same LISTEN in both is one listener, of `socks`. Default: `[]`. */
  http?: readonly string[] | undefined;
  /**
   * LISTEN: the server accepts the protocols of `socks`, except UDP ASSOCIATE, and the client connects to the target of
   * each request. The server's `allowListen` must contain LISTEN. Requires `allow`. Default: `[]`.
   */
  reverseSocks?: readonly string[] | undefined;
  /**
   * Each TARGET that may be requested at `reverseSocks`, written as in `allow` of {@linkcode ServeTunnelOptions}, without
   * `udp:`. The client connects to an address that is allowed, and to no other. Default: none.
   */
  allow?: readonly string[] | undefined;
  /**
   * `user:password`, which each connection to `socks`, `http` and `reverseSocks` must prove: each of 1 to 255 printable
   * ASCII characters, the user without space and colon. SOCKS 4 has no password and is then refused. Default: none.
   */
  proxyAuth?: string | undefined;
  /** The name of the user that `secret` belongs to, on a server with `users`. Default: none. */
  user?: string | undefined;
  /** Whether to connect with TLS. Default: `true` if `ca`, `cert` or `pin` is set, or `connect` begins with `wss://`. */
  tls?: boolean | undefined;
  /** CA certificates to trust besides the system's, in PEM. */
  ca?: string | undefined;
  /**
   * The URL of a proxy that connects to the server: `http://user:password@host:port`, which is asked by `CONNECT`, or
   * `socks5://user:password@host:port`, with user and password percent-encoded, or without. Default ports: 80 and 1080.
   * The proxy resolves the name of the server. `socks5h` is the same as `socks5`; `none`: a direct connection. A function
   * returns the proxy of each server, or `undefined` for a direct connection; it is called with `host:port` or
   * `unix:/path`. The variables of the environment are used by the command only. Default: `none`.
   */
  proxy?: string | ((server: string) => string | undefined) | undefined;
  /** The certificate chain to show to a server with `clientCa`, in PEM. Requires `key`. Default: none. */
  cert?: string | undefined;
  /** The certificate's private key, in PEM. */
  key?: string | undefined;
  /**
   * The SHA-256 hash of the public key (SubjectPublicKeyInfo) of the server's certificate, as `pin` of a
   * {@linkcode TunnelServer} is written: `sha256:` and base64. Hex is accepted, too. The server must have this key;
   * whether its certificate is trusted, valid and for this host is not verified then, except if `ca` is set, too.
   * Default: none.
   */
  pin?: string | undefined;
  /**
   * Headers of the request for the WebSocket, each `NAME: VALUE` in printable ASCII, except those of the handshake itself.
   * Requires a `connect` of `ws://` or `wss://`. Default: `[]`.
   */
  headers?: readonly string[] | undefined;
  /** The version of smux. Default: 2. */
  version?: Version | undefined;
  /**
   * Whether to retry the first connection until it succeeds, and a reverse forward until its address is free. Errors
   * that would happen again still reject: a wrong secret, a request that is not allowed, a certificate that is not
   * trusted, a server that speaks another protocol. Without it only a connection that is cut in the handshake is made
   * again, up to three times, after 0.05 to 0.4 s. Default: `false`.
   */
  retry?: boolean | undefined;
  /** Whether to reconnect, after 0.05 to 2 seconds, when the connection is lost. Default: `true`. */
  reconnect?: boolean | undefined;
  /**
   * Whether forwarded connections survive the loss of the connection to the server. A server that does not support it
   * is recognized by one or two connections, which it closes. Default: `true`.
   */
  resume?: boolean | undefined;
  /**
   * Milliseconds that a new connection waits while the server cannot be reached. After that the addresses of `forward`,
   * `socks` and `http` refuse connections until it can be reached again. An integer, or `Infinity`: no limit. Default:
   * 30 000.
   */
  wait?: number | undefined;
}

/**
 * A server of a client, an element of `servers`.
 *
 * @example The servers that can be reached
 * ```ts
 * import { openTunnel, serveTunnel, type TunnelServerState } from "@sluice/smux/tunnel";
 * import { assertEquals } from "@std/assert";
 *
 * const names = (servers: readonly TunnelServerState[]) => servers.filter(({ isUp }) => isUp).map(({ addr }) => addr);
 *
 * await using server = serveTunnel({ listen: "127.0.0.1:0", target: "127.0.0.1:80" });
 * await using client = await openTunnel({ connect: [server.serverAddr, "127.0.0.1:1"], onError() {} });
 * assertEquals(names(client.servers), [server.serverAddr]);
 * ```
 */
export interface TunnelServerState {
  /** Its address, as in `connect`, with the host. */
  addr: string;
  /** Whether the client is connected to it. */
  isUp: boolean;
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
  /** Total number of connections between client and server. */
  connections: number;
  /** Total number of connections after the first, on a client: one for each event `"reconnected"`. On a server: 0. */
  reconnects: number;
  /** Total number of forwarded connections. */
  streams: number;
  /** Number of forwarded connections that are open. */
  open: number;
  /** Bytes sent to the peer, including smux headers. */
  sent: number;
  /** Bytes received from the peer, including smux headers. */
  received: number;
  /** Total number of datagrams of UDP that this end has dropped: too many waited, or they could not be sent. */
  dropped: number;
  /**
   * Total number of requests that this end or its peer has refused, by HTTP status, such as `{ 403: 2 }`; see the
   * `status` of {@linkcode TunnelRefusedError}. Unusual statuses count as `other`.
   */
  refused: { readonly [status: string]: number };
}

/**
 * One end of a tunnel, as {@linkcode serveTunnel} and {@linkcode openTunnel} return it.
 *
 * @example Shutdown with a timeout for open connections
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
  /**
   * The address that the server accepts clients on: on a client the value of `connect`, with the host. With several
   * servers it is the one of new connections, or of the last ones while none can be reached.
   */
  readonly serverAddr: string;
  /**
   * The addresses that accept connections to forward: on a client one for each entry of `forward`, `socks`, `http`,
   * `reverse` and `reverseSocks`, in that order. With several servers the address for an entry of the last two is that
   * at `serverAddr`, or else at the first server that has listened for it. The list of a server is empty: an address that
   * it listens on for a client is in the client's list.
   */
  readonly listenAddrs: readonly string[];
  /** The address of `status`; `undefined` without this option. */
  readonly statusAddr: string | undefined;
  /**
   * Fulfils when the tunnel has ended, by `shutdown` or the signal. Rejects only when a client with `reconnect: false`
   * loses the connection to the server. Ignoring it is safe.
   */
  readonly finished: Promise<void>;
  /**
   * Stops listening, waits until forwarded connections have ended, then ends the tunnel. Never rejects.
   *
   * @param options `timeout`: milliseconds after which forwarded connections are closed; only that of the first call
   * counts. Default: `Infinity`.
   */
  shutdown(options?: { timeout?: number | undefined }): Promise<void>;
  /** Returns the current figures. */
  stats(): TunnelStats;
}

/**
 * The server's end of a tunnel, as {@linkcode serveTunnel} returns it.
 *
 * @example A target that is allowed while the server runs
 * ```ts
 * import { openTunnel, serveTunnel, TunnelRefusedError, type TunnelServer } from "@sluice/smux/tunnel";
 * import { assertRejects } from "@std/assert";
 *
 * const web = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, () => new Response("hello"));
 * const target = `127.0.0.1:${web.addr.port}`;
 * await using server: TunnelServer = serveTunnel({ listen: "127.0.0.1:0", allow: ["localhost:80"], onError() {} });
 * await using client = await openTunnel({ connect: server.serverAddr });
 * await assertRejects(() => client.connect(target), TunnelRefusedError);
 *
 * await server.update({ listen: server.serverAddr, allow: ["localhost:80", target] });
 * (await client.connect(target)).close();
 * await web.shutdown();
 * ```
 */
export interface TunnelServer extends Tunnel {
  /** The pin of the server's certificate, a value for `pin` of clients; `undefined` without TLS. */
  readonly pin: string | undefined;
  /**
   * Replaces the options, all of them: one that is absent has its default. New connections and requests are subject to
   * the new options. Open connections continue, except those of a user who has been removed from `users`, which end. An
   * address that `allowListen` does not contain any more is not listened on any more.
   *
   * A new `listen` is listened on before the old one is closed. With another `cert`, `key`, `clientCa`, `acceptProxy` or
   * scheme at the same address, connections are refused for a moment. Clients stay connected, also if the path changes,
   * except those without a certificate when `clientCa` is new.
   *
   * Calls are applied one after the other. When one rejects, nothing has changed.
   *
   * @param options As of {@linkcode serveTunnel}. `signal`, `onError`, `onEvent` and `onFrame` are ignored: those of the
   * start stay.
   * @throws {RangeError} An option is malformed, or one of the sessions differs: `stalledStreamTimeout`, `keepAliveInterval`,
   * `timeout`, `maxStreams` or `maxReceiveBuffer`.
   * @throws {Error} The server cannot listen on an address, or the tunnel has ended.
   */
  update(options: ServeTunnelOptions): Promise<void>;
}

/**
 * The client's end of a tunnel, as {@linkcode openTunnel} returns it.
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
  /** The servers, in the order of `connect`. One that has refused the client is not up. */
  readonly servers: readonly TunnelServerState[];
  /**
   * Opens a stream to a target that the server connects to, as `forward` does for each connection.
   *
   * @param target TARGET. Default: the fixed target of the server.
   * @returns A stream, joined to the target.
   * @throws {RangeError} The target is malformed.
   * @throws {TunnelRefusedError} The server does not allow the target, or cannot connect to it.
   * @throws {Error} The server could not be reached for `wait` milliseconds, or the tunnel has ended.
   */
  connect(target?: string): Promise<Stream>;
  /**
   * Replaces the options, all of them: one that is absent has its default. An entry of `forward`, `socks`, `http`,
   * `reverse` or `reverseSocks` that stays is not interrupted, also if only its target changes. An address that is not
   * in the options any more is not listened on any more. Open connections continue.
   *
   * With another `connect`, `headers`, `tls`, `cert`, `key`, `pin`, `proxy`, `user` or `version` the client connects
   * anew before it leaves the old connection, which ends with its last forwarded connection. `timeout` and the other
   * limits apply to the next connection to a server. Of several servers, those that stay are not interrupted. If none
   * stays, one of the new ones must be reached; else they are connected to afterwards, and failures are reported.
   *
   * Calls are applied one after the other. When one rejects, nothing has changed.
   *
   * @param options As of {@linkcode openTunnel}. `signal`, `onError`, `onEvent` and `onFrame` are ignored: those of the
   * start stay.
   * @throws {RangeError} An option is malformed.
   * @throws {TunnelRefusedError} The new server does not accept the secret.
   * @throws {Error} The client cannot listen on an address, or cannot connect to the new server, or the tunnel has ended.
   */
  update(options: OpenTunnelOptions): Promise<void>;
}

/**
 * The peer refuses a request to connect or to listen.
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
  /**
   * The HTTP status: 403 not allowed, 407 wrong or missing secret, 429 limit of the user reached, 500 `authorize` failed,
   * 501 the server never listens, 502 cannot connect or listen, other 4xx malformed request.
   */
  readonly status: number;

  /**
   * Makes an error.
   *
   * @param status The HTTP status.
   * @param message The refused request and the reason.
   */
  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}
