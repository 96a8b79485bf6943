/** TLS and Unix sockets of a tunnel. */

import { assert, assertEquals, assertMatch, assertRejects, assertStrictEquals, assertThrows } from "@std/assert";
import { openTunnel, serveTunnel } from "../tunnel.ts";
import { eventLine } from "../tunnel/log.ts";
import { HANDSHAKE_TIMEOUT } from "../tunnel/wait.ts";
import { makeFolder } from "./programs.ts";
import { certificates, LOOPBACK } from "./support.ts";
import {
  at,
  changeDelays,
  dial,
  fetchFiles,
  FREE,
  makeEcho,
  makeLog,
  makeTarget,
  portOf,
  promptly,
  say,
  serveFiles,
} from "./tunnel_support.ts";

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
  await log.until(/^A client's connection failed: /);
  await web.shutdown();
});

Deno.test("serveTunnel() with TLS reports a client without TLS, and continues", async () => {
  const { ca, cert, key } = await certificates();
  await using echo = makeEcho();
  const log = makeLog();
  await using server = serveTunnel({ listen: FREE, allow: [echo.addr], cert, key, ...log.options });
  await assertRejects(() => openTunnel({ connect: server.serverAddr }), Error, "expects TLS");
  await log.until(/^A client's connection failed: /);
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
  await log.until(/^A client's connection failed: /);
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
  const opening = openTunnel({ connect: at(listener.addr), tls: true, forward: [FREE] });
  const { message } = await assertRejects(() => opening, Error);
  assertMatch(message, new RegExp(`^Cannot connect to .*: handshake timed out after ${HANDSHAKE_TIMEOUT} ms$`));
  (await accepting).close();
  listener.close();
});
