/** TLS and Unix sockets of a tunnel. */

import {
  assert,
  assertEquals,
  assertInstanceOf,
  assertMatch,
  assertRejects,
  assertStrictEquals,
  assertThrows,
} from "@std/assert";
import net from "node:net";
import { openTunnel, serveTunnel, TunnelRefusedError } from "../tunnel.ts";
import { errorText } from "../tunnel/errors.ts";
import { eventLine } from "../tunnel/log.ts";
import { resolver } from "../tunnel/resolve.ts";
import { dial as dialTarget } from "../tunnel/socket.ts";
import { translate } from "../tunnel/tcp.ts";
import { HANDSHAKE_TIMEOUT } from "../tunnel/wait.ts";
import { makeFolder } from "./programs.ts";
import { certificates, LOOPBACK } from "./support.ts";
import {
  at,
  changeDelays,
  dial,
  fetchFiles,
  FREE,
  isEnded,
  makeEcho,
  makeLog,
  makeTarget,
  parse,
  portOf,
  promptly,
  say,
  serveFiles,
} from "./tunnel_support.ts";

Deno.test("translate() names an unreachable host or network in words, and keeps an unknown error", () => {
  const fail = (code: string) => Object.assign(new Error(`connect ${code} 10.9.9.9:80`), { code });
  assertEquals(errorText(translate(fail("EHOSTUNREACH"))), "no route to host");
  const error = translate(fail("ENETUNREACH"));
  assertInstanceOf(error, Deno.errors.NetworkUnreachable);
  assertEquals(errorText(error), "network is unreachable");
  assertEquals(errorText(new Error("Content-Length must be one value")), "Content-Length must be one value");
  assertEquals(errorText(new Error("A listener has failed")), "a listener has failed");
  const other = fail("EIO");
  assertStrictEquals(translate(other), other);
});

/** Lists the names in a folder. */
function namesIn(folder: string): string[] {
  return Array.from(Deno.readDirSync(folder), ({ name }) => name).sort();
}

Deno.test("openTunnel() connects with TLS if ca trusts the server's certificate, and rejects otherwise", async () => {
  const { ca, cert, key } = await certificates();
  await using echo = makeEcho();
  const web = serveFiles();
  const log = makeLog();
  await using server = serveTunnel({
    listen: FREE,
    allow: ["127.0.0.1:*"],
    allowListen: ["127.0.0.1:*"],
    secret: "x",
    cert,
    key,
    ...log.options,
  });
  const connect = `localhost:${portOf(server.serverAddr)}`;
  for (const place of [server.serverAddr, connect]) {
    const asked = { forward: [`0=${echo.addr}`], reverse: [`0=${at(web.addr)}`] };
    await using client = await openTunnel({ connect: place, ca, secret: "x", reconnect: false, ...asked });
    using connection = await dial(client.listenAddrs[0]!);
    assertEquals(await say(connection, "hello"), "hello");
    connection.close();
    await fetchFiles(client.listenAddrs[1]!, [1, 100_000]);
  }
  // The system does not trust the certificate.
  const error = await assertRejects(
    () => openTunnel({ connect: server.serverAddr, tls: true }),
    Error,
    "Cannot connect to ",
  );
  assertMatch(error.message, /certificate/i);
  await log.until(/^A client's connection from \S+ failed: /);
  await web.shutdown();
});

Deno.test("serveTunnel() with TLS reports a client without TLS, and continues", async () => {
  const { ca, cert, key } = await certificates();
  await using echo = makeEcho();
  const log = makeLog();
  await using server = serveTunnel({ listen: FREE, allow: [echo.addr], cert, key, ...log.options });
  await assertRejects(() => openTunnel({ connect: server.serverAddr }), Error, "expects TLS");
  await log.until(/^A client's connection from \S+ failed: /);
  await using client = await openTunnel({ connect: server.serverAddr, ca });
  const connection = await client.connect(echo.addr);
  assertEquals(await say(connection, "still here"), "still here");
  connection.close();
});

Deno.test("openTunnel() with TLS rejects at a server without TLS", async () => {
  const { ca } = await certificates();
  const log = makeLog();
  await using server = serveTunnel({ listen: FREE, target: "1", ...log.options });
  await assertRejects(() => openTunnel({ connect: server.serverAddr, ca }), Error, "Cannot connect to ");
  await log.until(/^A client's connection from \S+ failed: /);
});

Deno.test("openTunnel() rejects with the signal's reason during a TLS handshake", async () => {
  const asked = Promise.withResolvers<void>();
  const mayEnd = Promise.withResolvers<void>();
  await using silent = makeTarget(async (connection) => {
    await connection.read(new Uint8Array(1000));
    asked.resolve();
    await mayEnd.promise;
  });
  const { ca } = await certificates();
  const controller = new AbortController();
  const reason = new Error("aborted by the test");
  const opening = openTunnel({ connect: silent.addr, ca, signal: controller.signal }).catch((error) => error);
  try {
    await asked.promise;
    controller.abort(reason);
    assertStrictEquals(await promptly(opening), reason);
  } finally {
    mayEnd.resolve();
    await opening;
  }
});

Deno.test("openTunnel() and serveTunnel() throw for TLS on a Unix socket", async () => {
  const { cert, key, ca } = await certificates();
  const place = "unix:/nowhere/at/all";
  assertThrows(() => serveTunnel({ listen: place, allow: ["*:*"], cert, key }), RangeError, "TLS");
  await assertRejects(() => openTunnel({ connect: place, ca }), RangeError, "TLS");
  await assertRejects(() => openTunnel({ connect: place, tls: true }), RangeError, "TLS");
});

Deno.test("tunnel: Unix sockets work as every LISTEN and TARGET, and shutdown removes their files", async () => {
  await using folder = await makeFolder("tunnel");
  const place = (name: string) => `unix:${folder.path}/${name}`;
  const listener = Deno.listen({ transport: "unix", path: `${folder.path}/target` });
  const answering = (async () => {
    for await (const connection of listener) await connection.readable.pipeTo(connection.writable);
  })();
  const log = makeLog();
  const options = { listen: place("server"), allow: [place("target")], allowListen: [place("reverse")] };
  const server = serveTunnel({ ...options, ...log.options });
  const client = await openTunnel({
    connect: place("server"),
    forward: [`${place("forward")}=${place("target")}`],
    socks: [place("socks")],
    reverse: [`${place("reverse")}=${place("target")}`],
    ...log.options,
  });
  assertEquals(server.serverAddr, place("server"));
  assertEquals(client.serverAddr, place("server"));
  assertEquals(client.listenAddrs, ["forward", "socks", "reverse"].map(place));
  assertEquals(namesIn(folder.path), ["forward", "reverse", "server", "socks", "target"]);
  for (const name of ["forward", "reverse"]) {
    using connection = await Deno.connect({ transport: "unix", path: `${folder.path}/${name}` });
    assertEquals(await say(connection, "hello"), "hello");
    await connection.closeWrite();
    assertEquals(await connection.read(new Uint8Array(1)), null);
  }
  await client.shutdown();
  await log.until("stopped");
  assertEquals(namesIn(folder.path), ["server", "target"]);
  await server.shutdown();
  assertEquals(namesIn(folder.path), ["target"]);
  listener.close();
  await answering;
  assertEquals(log.errors, []);
  for (const event of log.events) assert(!/undefined|null/.test(eventLine(event)), eventLine(event));
  assertEquals(log.events, [
    { type: "connected", clientAddr: undefined },
    { type: "listening", listenAddr: place("reverse"), clientAddr: undefined },
    { type: "stopped", listenAddr: place("reverse"), clientAddr: undefined, error: undefined },
  ]);
  assertEquals(log.events.map(eventLine), [
    "connection from a local process",
    `listening on ${place("reverse")} for a local process`,
    `stopped listening on ${place("reverse")} for a local process`,
  ]);
});

Deno.test("serveTunnel() throws for a Unix socket in use, and does not remove it", async () => {
  await using folder = await makeFolder("tunnel");
  const listen = `unix:${folder.path}/socket`;
  await using echo = makeEcho();
  await using _server = serveTunnel({ listen, target: echo.addr });
  assertThrows(() => serveTunnel({ listen, target: "1" }), Error, `Cannot listen on ${listen}: address in use`);
  await using client = await openTunnel({ connect: listen });
  const connection = await client.connect();
  assertEquals(await say(connection, "still here"), "still here");
  connection.close();
});

Deno.test("openTunnel() rejects when the TLS handshake times out", async () => {
  using _delays = changeDelays((delay) => delay === HANDSHAKE_TIMEOUT ? 0 : delay);
  const listener = Deno.listen(LOOPBACK);
  const accepting = listener.accept();
  const opening = openTunnel({ connect: at(listener.addr), tls: true, resume: false, forward: [FREE] });
  const { message } = await assertRejects(() => opening, Error);
  assertMatch(message, new RegExp(`^Cannot connect to .*: handshake timed out after ${HANDSHAKE_TIMEOUT} ms$`));
  (await accepting).close();
  listener.close();
});

/** Replaces Deno.connect, for each host, until disposed of; returns the hosts that were connected to. */
function replaceConnect(connectTo: (hostname: string, signal: AbortSignal) => Promise<Deno.TcpConn>) {
  const { connect } = Deno;
  const hosts: string[] = [];
  const replaced = ({ hostname, signal }: Deno.ConnectOptions) => {
    hosts.push(hostname!);
    return connectTo(hostname!, signal!);
  };
  Deno.connect = replaced as typeof connect;
  return { hosts, [Symbol.dispose]: () => void (Deno.connect = connect) };
}

/** Connects to a host that neither accepts nor refuses. */
const neverConnect = (signal: AbortSignal) =>
  new Promise<never>((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));

const { lookup } = resolver;

/** Resolves every name to these addresses until disposed of. */
function resolveTo(...addresses: string[]): Disposable {
  resolver.lookup = () => Promise.resolve(addresses);
  return { [Symbol.dispose]: () => void (resolver.lookup = lookup) };
}

Deno.test("dial() rejects after connectTimeout when the target does not answer, and ends the attempt", async () => {
  const signals: AbortSignal[] = [];
  using _connect = replaceConnect((_, signal) => {
    signals.push(signal);
    return neverConnect(signal);
  });
  using _names = resolveTo("192.0.2.1", "192.0.2.2");
  const { signal } = new AbortController();
  for (const target of ["192.0.2.1:80", "both.test:80"]) {
    const message = `Cannot connect to ${target}: connecting timed out after 20 ms`;
    await assertRejects(() => promptly(dialTarget(target, signal, { connectTimeout: 20 })), Error, message);
  }
  assert(signals.every(({ aborted }) => aborted));
});

Deno.test("dial() rejects after connectTimeout when a name is not resolved", async () => {
  resolver.lookup = () => new Promise(() => {});
  try {
    const dialling = dialTarget("slow.test:80", new AbortController().signal, { connectTimeout: 20 });
    await assertRejects(() => promptly(dialling), Error, "Cannot connect to slow.test:80: connecting timed out");
  } finally {
    resolver.lookup = lookup;
  }
});

Deno.test("dial() connects to the next address when one refuses or does not answer, and closes what is late", async () => {
  await using echo = makeEcho();
  const { connect } = Deno;
  const late = Promise.withResolvers<Deno.TcpConn>();
  using connects = replaceConnect(async (hostname, signal) => {
    if (hostname === "192.0.2.1") throw new Deno.errors.ConnectionRefused("Connection refused");
    if (hostname === "192.0.2.2") return await late.promise;
    return await connect({ ...parse(echo.addr), signal });
  });
  using _names = resolveTo("192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4");
  const connection = await promptly(dialTarget("all.test:80", new AbortController().signal));
  assertEquals(await say(connection, "hello"), "hello");
  assertEquals(connects.hosts, ["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
  connection.close();
  // The sanitizer for resources detects it if it stays open.
  late.resolve(await connect(parse(echo.addr)));
});

Deno.test("dial() rejects with the errors of all addresses", async () => {
  using _connect = replaceConnect((hostname) =>
    Promise.reject(new Error(hostname === "192.0.2.3" ? "network is unreachable" : "Connection refused (os error 111)"))
  );
  using _names = resolveTo("192.0.2.1", "192.0.2.2", "192.0.2.3");
  const dialling = dialTarget("all.test:80", new AbortController().signal);
  const message = "Cannot connect to all.test:80: connection refused, network is unreachable";
  const { cause } = await assertRejects(() => dialling, Error, message);
  assertInstanceOf(cause, AggregateError);
});

Deno.test("serveTunnel() and openTunnel() respond 502 after connectTimeout, for forward, reverse and a fixed target", async () => {
  const { connect } = Deno;
  const target = "192.0.2.1:80";
  const connectTimeout = 50;
  // Connections to forward are made by `node:net`.
  const { connect: connectNode } = net;
  net.connect = (() => new net.Socket()) as typeof connectNode;
  using _connect = { [Symbol.dispose]: () => void (net.connect = connectNode) };
  const logs = { server: makeLog(), client: makeLog() };
  await using server = serveTunnel({
    listen: FREE,
    allow: [target],
    allowListen: ["*:*"],
    connectTimeout,
    ...logs.server.options,
  });
  await using fixed = serveTunnel({ listen: FREE, target, connectTimeout, ...logs.server.options });
  const asked = { reverse: [`0=${target}`], connectTimeout, ...logs.client.options };
  await using client = await openTunnel({ connect: server.serverAddr, ...asked });
  const error = await assertRejects(
    () => promptly(client.connect(target)),
    TunnelRefusedError,
    "timed out after 50 ms",
  );
  assertEquals(error.status, 502);
  using visitor = await connect(parse(client.listenAddrs[0]!));
  assertEquals(await promptly(isEnded(visitor)), true);
  await logs.client.until(/connecting timed out after 50 ms/);
  await using plain = await openTunnel({ connect: fixed.serverAddr });
  const stream = await plain.connect();
  assertEquals(await promptly(isEnded(stream)), true);
  stream.close();
  await logs.server.until(/connecting timed out after 50 ms/, 2);
});

Deno.test("openTunnel() and serveTunnel() throw for a connectTimeout that no timer can wait for", async () => {
  for (const connectTimeout of [0, -1, 1.5, NaN, 2 ** 31]) {
    const message = `connectTimeout must be an integer from 1 to 2147483647 or Infinity, received ${connectTimeout}`;
    assertThrows(() => serveTunnel({ listen: FREE, target: "1", connectTimeout }), RangeError, message);
    await assertRejects(() => openTunnel({ connect: "1", connectTimeout }), RangeError, message);
  }
  await using _server = serveTunnel({ listen: FREE, target: "1", connectTimeout: Infinity });
});

/** Leaves the file of a Unix socket behind, as a process does that is killed. */
function leaveSocket(path: string): void {
  const listener = Deno.listen({ transport: "unix", path: `${path}.bound` });
  Deno.renameSync(`${path}.bound`, path);
  listener.close(); // removes the file only at its own path
  assert(Deno.lstatSync(path).isSocket);
}

Deno.test("tunnel: a Unix socket on which no process listens is replaced, as every LISTEN", async () => {
  await using folder = await makeFolder("tunnel");
  await using echo = makeEcho();
  const names = ["forward", "reverse", "server", "socks"];
  for (const name of names) leaveSocket(`${folder.path}/${name}`);
  const [forward, reverse, listen, socks] = names.map((name) => `unix:${folder.path}/${name}`);
  const server = serveTunnel({ listen: listen!, allow: [echo.addr], allowListen: [reverse!] });
  const asked = { forward: [`${forward}=${echo.addr}`], reverse: [`${reverse}=${echo.addr}`], socks: [socks!] };
  const client = await openTunnel({ connect: listen!, ...asked });
  for (const name of ["forward", "reverse"]) {
    using connection = await Deno.connect({ transport: "unix", path: `${folder.path}/${name}` });
    assertEquals(await say(connection, "hello"), "hello");
    connection.close();
  }
  await client.shutdown();
  await server.shutdown();
  assertEquals(namesIn(folder.path), []);
});

Deno.test("serveTunnel() does not replace a file that is not a socket, nor the socket of another program", async () => {
  await using folder = await makeFolder("tunnel");
  const path = `${folder.path}/file`;
  await Deno.writeTextFile(path, "content");
  assertThrows(() => serveTunnel({ listen: `unix:${path}`, target: "1" }), Error, "address in use");
  assertEquals(await Deno.readTextFile(path), "content");
  const other = `${folder.path}/other`;
  const listener = Deno.listen({ transport: "unix", path: other });
  assertThrows(() => serveTunnel({ listen: `unix:${other}`, target: "1" }), Error, "address in use");
  (await listener.accept()).close(); // that of the check
  using _connection = await Deno.connect({ transport: "unix", path: other });
  (await listener.accept()).close();
  listener.close();
});

Deno.test("Tunnel.shutdown() of a server does not remove the Unix socket of its successor", async () => {
  await using folder = await makeFolder("tunnel");
  const path = `${folder.path}/socket`;
  const server = serveTunnel({ listen: `unix:${path}`, target: "1" });
  await Deno.remove(path);
  const successor = Deno.listen({ transport: "unix", path });
  // The time distinguishes it from a predecessor with the same inode; both are made within a millisecond here.
  await Deno.utime(path, new Date(0), new Date(0));
  await server.shutdown();
  assertEquals(namesIn(folder.path), ["socket"]);
  using _connection = await Deno.connect({ transport: "unix", path });
  (await successor.accept()).close();
  successor.close();
});

/** Returns the kernel's timers of established TCP connections, by the ports of both ends; 2 is keepalive. */
async function readTimers(): Promise<Record<string, number>> {
  const text = await Deno.readTextFile("/proc/net/tcp");
  const rows = text.split("\n").map((row) => row.trim().split(/\s+/));
  const port = (address: string) => parseInt(address.split(":")[1]!, 16);
  const established = rows.filter(([, , , state]) => state === "01");
  return Object.fromEntries(
    established.map(([, local, remote, , , timer]) => [`${port(local!)}-${port(remote!)}`, Number(timer!.slice(0, 2))]),
  );
}

Deno.test("tunnel: the kernel probes every idle TCP connection", { ignore: Deno.build.os !== "linux" }, async () => {
  await using echo = makeEcho();
  await using server = serveTunnel({ listen: FREE, allow: [echo.addr], allowListen: ["*:*"] });
  const asked = { forward: [`0=${echo.addr}`], reverse: [`0=${echo.addr}`] };
  await using client = await openTunnel({ connect: server.serverAddr, ...asked });
  for (const addr of client.listenAddrs) {
    using connection = await dial(addr);
    assertEquals(await say(connection, "hello"), "hello");
    const own = connection.localAddr.port;
    const [at, to, near] = [addr, echo.addr, server.serverAddr].map(portOf);
    const timers = await readTimers();
    const ends = Object.keys(timers).filter((ends) => ends === `${at}-${own}` || ends.endsWith(`-${to}`));
    assertEquals(ends.map((ends) => timers[ends]), [2, 2], `${addr}: the visitor and the target`);
    const carrier = Object.keys(timers).filter((ends) => ends.split("-").includes(`${near}`));
    assertEquals(carrier.length, 2, "both ends of the connection between client and server");
    connection.close();
  }
});
