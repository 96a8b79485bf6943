/** The server's end of a tunnel: rules, secret, reverse forwards and shutdown. */

import {
  assert,
  assertEquals,
  assertGreater,
  assertInstanceOf,
  assertMatch,
  assertRejects,
  assertThrows,
} from "@std/assert";
import net from "node:net";
import { ProtocolError, Session, SessionClosedError } from "../mod.ts";
import { openTunnel, serveTunnel, TunnelRefusedError } from "../tunnel.ts";
import { WRONG_SECRET_DELAY } from "../tunnel/handshake.ts";
import { bytes, certificates, isRefused, readAll, text, writeAll } from "./support.ts";
import {
  at,
  changeDelays,
  dial,
  fetchFiles,
  FREE,
  isEnded,
  makeEcho,
  makeLog,
  makePair,
  makeTunnel,
  nowhere,
  parse,
  portOf,
  say,
  serveFiles,
  SIZES,
} from "./tunnel_support.ts";

Deno.test("Tunnel.shutdown() of a server waits for open connections, then its clients end with an error", async () => {
  const target = makeEcho();
  const { client, server } = await makeTunnel(target.addr);
  const connection = await dial(client.listenAddrs[0]!);
  assertEquals(await say(connection, "before"), "before");
  let isFinished = false;
  const finished = server.shutdown().then(() => isFinished = true);
  assertEquals(await isRefused(() => dial(server.serverAddr)), true);
  assertEquals(await say(connection, "after"), "after");
  assertEquals(isFinished, false);
  connection.close();
  await finished;
  await assertRejects(
    () => client.finished,
    Error,
    `The connection to ${server.serverAddr} was lost: closed by the server`,
  );
  assertEquals(await isRefused(() => dial(client.listenAddrs[0]!)), true);
  assertEquals(await client.shutdown(), undefined);
  await target.close();
});

Deno.test("tunnel: a lost server ends the client with an error, and its connections at once", async () => {
  const controller = new AbortController();
  const target = makeEcho();
  const server = serveTunnel({ listen: FREE, target: target.addr, signal: controller.signal });
  const { options, errors } = makeLog();
  const client = await openTunnel({ connect: server.serverAddr, forward: [FREE], reconnect: false, ...options });
  const connection = await dial(client.listenAddrs[0]!);
  assertEquals(await say(connection, "before"), "before");
  controller.abort();
  await assertRejects(() => client.finished, Error, `The connection to ${server.serverAddr} was lost: `);
  assertEquals(await isEnded(connection), true);
  connection.close();
  assertEquals(await isRefused(() => dial(client.listenAddrs[0]!)), true);
  await Promise.all([server.finished, client.shutdown(), target.close()]);
  assertEquals(errors, [], "connections of a lost session are not reported one by one");
});

Deno.test("serveTunnel() reports a client that does not speak smux, and continues", async () => {
  const target = makeEcho();
  const { options, errors, until } = makeLog();
  const { client, server, shutdown } = await makeTunnel(target.addr, options);
  using stranger = await dial(server.serverAddr);
  await writeAll(stranger, bytes("GET / HTTP/1.1\r\n\r\n"));
  await until(new RegExp(`^A client's connection from ${at(stranger.localAddr)} failed: `));
  assertInstanceOf(errors[0]!.cause, ProtocolError);
  using connection = await dial(client.listenAddrs[0]!);
  assertEquals(await say(connection, "still here"), "still here");
  connection.close();
  await shutdown();
  await target.close();
  assertEquals(errors.length, 1);
});

for (const isSecure of [false, true]) {
  const name = `serveTunnel() ${isSecure ? "with TLS " : ""}does not report a connection that is reset or ended`;
  Deno.test(`${name} before its first byte`, async () => {
    const { ca, cert, key } = await certificates();
    const log = makeLog();
    await using server = serveTunnel({ listen: FREE, allow: [], ...isSecure ? { cert, key } : {}, ...log.options });
    for (const end of ["resetAndDestroy", "end"] as const) {
      const before = log.disconnected.length;
      const socket = net.connect(portOf(server.serverAddr), "127.0.0.1");
      await new Promise((resolve) => socket.once("connect", resolve));
      // The server accepts the client after the socket.
      await (await openTunnel({ connect: server.serverAddr, ...isSecure ? { ca } : {} })).shutdown();
      socket[end]();
      await log.until("disconnected", before + 2);
    }
    assertEquals(log.messages(), []);
  });
}

Deno.test("serveTunnel() at a WebSocket path does not report a connection that is reset before its first byte", async () => {
  const log = makeLog();
  await using server = serveTunnel({ listen: `ws://${FREE}/sesame`, allow: [], ...log.options });
  const visit = async () => await (await openTunnel({ connect: `${server.serverAddr}/sesame` })).shutdown();
  const socket = net.connect(portOf(server.serverAddr.slice("ws://".length)), "127.0.0.1");
  await new Promise((resolve) => socket.once("connect", resolve));
  // The server accepts the client after the socket, and sees the reset before the next client.
  await visit();
  socket.resetAndDestroy();
  await visit();
  assertEquals(log.messages(), []);
});

Deno.test("serveTunnel() reports a connection that is reset after its first byte", async () => {
  const log = makeLog();
  await using server = serveTunnel({ listen: FREE, target: "1", ...log.options });
  const socket = net.connect(portOf(server.serverAddr), "127.0.0.1");
  socket.write("\x02");
  await log.until("connected");
  socket.resetAndDestroy();
  await log.until(/^A client's connection from \S+ failed: connection reset by peer$/);
});

Deno.test("serveTunnel() stops connecting to a target when the client is lost", async () => {
  const { connect } = net;
  const { options, errors } = makeLog();
  const target = nowhere();
  const server = serveTunnel({ listen: FREE, target, ...options });
  const session = Session.client(await dial(server.serverAddr));
  const connecting = Promise.withResolvers<void>();
  // A target that neither accepts nor refuses.
  const connectNever = () => {
    connecting.resolve();
    return new net.Socket();
  };
  try {
    net.connect = connectNever;
    await session.openStream();
    await connecting.promise;
    session.abort();
    await server.shutdown();
  } finally {
    net.connect = connect;
  }
  assertEquals(errors, []);
});

Deno.test("tunnel: a target that is not allowed closes the local connection and is reported at both ends", async () => {
  await using echo = makeEcho();
  const forbidden = nowhere();
  const asked = { forward: [`0=${forbidden}`, `0=${echo.addr}`] };
  await using pair = await makePair({ allow: [echo.addr] }, asked);
  const { client, logs } = pair;
  assert(await isRefused(() => dial(client.listenAddrs[0]!)));
  await Promise.all([logs.client.until(/not allowed/), logs.server.until(/not allowed/)]);
  for (const log of [logs.client, logs.server]) {
    assertEquals(log.errors.length, 1);
    assert(log.messages()[0]!.includes(forbidden), log.messages()[0]);
  }
  using connection = await dial(client.listenAddrs[1]!);
  assertEquals(await say(connection, "still here"), "still here");
  connection.close();
});

/** Returns the status of a server's refusal: 403 not allowed, 502 allowed but unreachable. */
async function statusOf(allow: string[], target: string): Promise<number> {
  await using pair = await makePair({ allow });
  return (await assertRejects(() => pair.client.connect(target), TunnelRefusedError)).status;
}

Deno.test("serveTunnel() compares the host and the port of a target with allow, with wildcards", async () => {
  const dead = nowhere();
  const port = portOf(dead);
  const other = port === 1 ? 2 : 1;
  const cases: [rule: string, target: string, isAllowed: boolean][] = [
    [dead, dead, true],
    [`${port}`, dead, true],
    [dead, `${port}`, true],
    [dead, `127.0.0.1:${other}`, false],
    [dead, `localhost:${port}`, true],
    ["[::ffff:127.0.0.1]:*", `localhost:${port}`, true],
    ["127.0.0.2:*", `localhost:${port}`, false],
    [dead, `127.0.0.2:${port}`, false],
    [`*:${port}`, dead, true],
    [`*:${port}`, `localhost:${port}`, true],
    [`*:${port}`, `127.0.0.1:${other}`, false],
    ["127.0.0.1:*", dead, true],
    ["127.0.0.1:*", `localhost:${port}`, true],
    [`127.0.0.0/8:${port}`, dead, true],
    [`127.0.0.1:${port}-65535`, dead, true],
    [`127.0.0.1:1-${port - 1}`, dead, false],
    ["*:*", dead, true],
    ["*:*", `[::1]:${port}`, true],
    ["*:*", "unix:/nowhere/at/all", false],
    ["LocalHost:*", `localhost:${port}`, true],
    [`localhost:${port}`, `LOCALHOST:${port}`, true],
    [`[::1]:${port}`, `[0:0:0:0:0:0:0:1]:${port}`, true],
    [`[0:0:0:0:0:0:0:1]:${port}`, `[::1]:${port}`, true],
    ["[::1]:*", `[0::0:1]:${port}`, true],
    [`[::1]:${port}`, `[::2]:${port}`, false],
    [`[::1]:${port}`, dead, false],
    ["unix:/nowhere/at/all", "unix:/nowhere/at/all", true],
    ["unix:/nowhere/at/all", "unix:/nowhere/at", false],
    ["unix:/nowhere/at/all", dead, false],
  ];
  for (const [rule, target, isAllowed] of cases) {
    assertEquals({ rule, target, status: await statusOf([rule], target) }, {
      rule,
      target,
      status: isAllowed ? 502 : 403,
    });
  }
  assertEquals(await statusOf([], dead), 403);
  assertEquals(await statusOf(["127.0.0.3:1", dead], dead), 502, "one matching rule is enough");
});

Deno.test("serveTunnel() closes listeners and connections of clients that are lost after a request", async () => {
  await using echo = makeEcho();
  const log = makeLog();
  const place = nowhere();
  await using server = serveTunnel({ listen: FREE, allow: ["*:*"], allowListen: ["*:*"], ...log.options });
  for (const request of [`BIND ${place} HTTP/1.1\r\n\r\n`, `CONNECT ${echo.addr} HTTP/1.1\r\n\r\n`]) {
    for (let n = 0; n < 10; n++) {
      const session = Session.client(await dial(server.serverAddr));
      const stream = await session.openStream();
      await writeAll(stream, bytes(request));
      session.abort();
    }
  }
  await server.shutdown();
  assertEquals(await isRefused(() => dial(place)), true);
});

Deno.test("serveTunnel() accepts the right secret, and refuses a wrong or missing one after a second", async () => {
  await using echo = makeEcho();
  await using pair = await makePair({ allow: [echo.addr], secret: "open-sesame" }, { secret: "open-sesame" });
  const { server, client, logs } = pair;
  for (const [secret, why] of [["open-Sesame", "wrong secret"], [undefined, "a secret is required"]] as const) {
    const began = performance.now();
    const opening = openTunnel({ connect: server.serverAddr, secret, socks: [FREE] });
    const error = await assertRejects(() => opening, TunnelRefusedError, why);
    assertGreater(performance.now() - began, 950);
    assertEquals(error.status, 407);
  }
  assertEquals(logs.server.errors.length, 2, "one error for each refusal");
  for (const message of logs.server.messages()) {
    assertMatch(message, /secret/);
    assert(!message.includes("esame"), "the log contains a secret");
  }
  const connection = await client.connect(echo.addr);
  assertEquals(await say(connection, "hello"), "hello");
  connection.close();
});

Deno.test("serveTunnel() does not listen for a client with a wrong or missing secret", async () => {
  const log = makeLog();
  await using server = serveTunnel({ listen: FREE, allowListen: ["*:*"], secret: "right", ...log.options });
  for (const secret of ["wrong", undefined]) {
    const opening = openTunnel({ connect: server.serverAddr, reverse: ["0=1"], secret });
    assertEquals((await assertRejects(() => opening, TunnelRefusedError)).status, 407);
  }
  assertEquals(log.typesOf(), ["connected", "connected"]);
  const client = await openTunnel({ connect: server.serverAddr, reverse: ["0=1"], secret: "right", onError() {} });
  assertEquals(await isRefused(() => dial(client.listenAddrs[0]!)), true);
  await client.shutdown();
});

Deno.test("Tunnel.shutdown() of a server ends the delay after a wrong secret", async () => {
  using _delays = changeDelays((delay) => delay === WRONG_SECRET_DELAY ? 1_000_000 : delay);
  const log = makeLog();
  const server = serveTunnel({ listen: FREE, allow: ["*:*"], secret: "right", ...log.options });
  const refused = assertRejects(() => openTunnel({ connect: server.serverAddr, secret: "wrong" }));
  await log.until("connected");
  await server.shutdown({ timeout: 50 });
  await refused;
});

Deno.test("openTunnel() and serveTunnel() throw for an exposed address without TLS and a secret", async () => {
  const { cert, key } = await certificates();
  const everywhere = ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "example.com:0"];
  for (const listen of everywhere) {
    for (const some of [{}, { secret: "x" }, { cert, key }]) {
      assertThrows(() => serveTunnel({ listen, allow: ["*:*"], ...some }), RangeError, "insecure");
    }
    assertThrows(() => serveTunnel({ listen, target: "1" }), RangeError, "insecure");
    await assertRejects(() => openTunnel({ connect: "1", forward: [`${listen}=1`] }), RangeError, "insecure");
    await assertRejects(() => openTunnel({ connect: "1", forward: [listen] }), RangeError, "insecure");
    await assertRejects(() => openTunnel({ connect: "1", socks: [listen] }), RangeError, "insecure");
  }
  await using safe = serveTunnel({ listen: "0.0.0.0:0", allow: ["*:*"], secret: "x", cert, key });
  assertMatch(safe.serverAddr, /^0\.0\.0\.0:[1-9]/);
  for (const listen of ["localhost:0", "127.1.2.3:0"]) {
    await using server = serveTunnel({ listen, allow: ["*:*"] });
    assertMatch(server.serverAddr, /^127\./);
  }
});

Deno.test("openTunnel() and serveTunnel() listen on 0.0.0.0 with insecure", async () => {
  await using echo = makeEcho();
  const asked = { forward: [`0.0.0.0:0=${echo.addr}`], socks: ["0.0.0.0:0"], insecure: true };
  await using server = serveTunnel({ listen: "0.0.0.0:0", allow: [echo.addr], insecure: true });
  await using client = await openTunnel({ connect: `127.0.0.1:${portOf(server.serverAddr)}`, ...asked });
  for (const addr of client.listenAddrs) assertMatch(addr, /^0\.0\.0\.0:[1-9]/);
  using connection = await dial(`127.0.0.1:${portOf(client.listenAddrs[0]!)}`);
  assertEquals(await say(connection, "hello"), "hello");
  connection.close();
});

Deno.test("openTunnel() throws for a secret to another machine without TLS", async () => {
  for (const connect of ["192.0.2.1:1", "[2001:db8::1]:1", "example.com:1"]) {
    await assertRejects(() => openTunnel({ connect, secret: "x" }), RangeError, "insecure");
  }
});

Deno.test("openTunnel() forwards each entry of reverse to its own target", async () => {
  const web = serveFiles();
  await using echo = makeEcho();
  const place = nowhere();
  const reverse = [`0=${web.addr.port}`, `${place}=${echo.addr}`];
  await using pair = await makePair({ allowListen: ["127.0.0.1:*"] }, { reverse });
  const { client, server, logs } = pair;
  assertMatch(client.listenAddrs[0]!, /^127\.0\.0\.1:[1-9]\d*$/);
  assertEquals(client.listenAddrs[1], place);
  await fetchFiles(client.listenAddrs[0]!, SIZES);
  using connection = await dial(place);
  await writeAll(connection, bytes("half-closed"));
  await connection.closeWrite();
  assertEquals(text(await readAll(connection)), "half-closed");
  await client.shutdown();
  await server.shutdown();
  assertEquals(client.stats().streams, SIZES.length + 1);
  assertEquals([...logs.client.messages(), ...logs.server.messages()], []);
  await web.shutdown();
});

Deno.test("openTunnel() rejects with 403 and closes everything when a reverse forward is not allowed", async () => {
  const [allowed, other] = [nowhere(), nowhere()];
  const log = makeLog();
  const local = nowhere();
  await using server = serveTunnel({ listen: FREE, allow: ["*:*"], allowListen: [allowed], ...log.options });
  const opening = openTunnel({ connect: server.serverAddr, forward: [local], reverse: [`${allowed}=1`, `${other}=1`] });
  const error = await assertRejects(() => opening, TunnelRefusedError, "not allowed");
  assertEquals(error.status, 403);
  assertEquals(log.messages().filter((line) => line.includes("not allowed")).length, 1);
  await log.until("stopped");
  for (const addr of [local, allowed, other]) assertEquals(await isRefused(() => dial(addr)), true);
});

Deno.test("openTunnel() rejects with 502 when the server cannot listen for a reverse forward", async () => {
  await using server = serveTunnel({ listen: FREE, allowListen: ["*:*"], onError() {} });
  const opening = openTunnel({ connect: server.serverAddr, reverse: [`${server.serverAddr}=1`] });
  const error = await assertRejects(() => opening, TunnelRefusedError, "address in use");
  assertEquals(error.status, 502);
});

Deno.test("serveTunnel() stops listening for a client that shuts down or is lost", async () => {
  const place = nowhere();
  const log = makeLog();
  await using server = serveTunnel({ listen: FREE, allowListen: ["*:*"], ...log.options });
  for (const end of ["shutdown", "signal"]) {
    const controller = new AbortController();
    const { signal } = controller;
    const client = await openTunnel({ connect: server.serverAddr, reverse: [`${place}=1`], signal });
    if (end === "signal") controller.abort();
    else await client.shutdown();
    await client.finished;
    await log.until("stopped", end === "signal" ? 2 : 1);
    const stopped = log.events.at(-1);
    assert(stopped?.type === "stopped");
    assertEquals(stopped.listenAddr, place);
    assertEquals(stopped.error instanceof SessionClosedError, end === "signal", `${stopped.error}`);
    assertEquals(await isRefused(() => dial(place)), true);
    Deno.listen(parse(place)).close();
  }
});

Deno.test("Tunnel.shutdown() of a server stops listening for clients, and waits for open connections", async () => {
  await using echo = makeEcho();
  await using pair = await makePair({ allowListen: ["*:*"] }, { reverse: [`0=${echo.addr}`] });
  const { client, server } = pair;
  using connection = await dial(client.listenAddrs[0]!);
  assertEquals(await say(connection, "before"), "before");
  const finished = server.shutdown();
  assertEquals(await isRefused(() => dial(client.listenAddrs[0]!)), true);
  assertEquals(await say(connection, "after"), "after");
  connection.close();
  await finished;
});

Deno.test("TunnelClient.shutdown() stops reverse forwards, and waits for their connections", async () => {
  await using echo = makeEcho();
  await using pair = await makePair({ allowListen: ["*:*"] }, { reverse: [`0=${echo.addr}`] });
  const { client, logs } = pair;
  using connection = await dial(client.listenAddrs[0]!);
  assertEquals(await say(connection, "before"), "before");
  const finished = client.shutdown();
  await logs.server.until("stopped");
  assertEquals(await isRefused(() => dial(client.listenAddrs[0]!)), true);
  assertEquals(await say(connection, "after"), "after");
  connection.close();
  await finished;
});

Deno.test("tunnel: a refusing target of a reverse forward is reported, and later connections work", async () => {
  const target = nowhere();
  await using pair = await makePair({ allowListen: ["*:*"] }, { reverse: [`0=${target}`] });
  const { client, logs } = pair;
  for (const times of [1, 2]) {
    using connection = await dial(client.listenAddrs[0]!);
    assertEquals(await isEnded(connection), true);
    await logs.client.until(/connection refused/, times);
    await logs.server.until(/./, times);
  }
  assert(logs.client.messages()[0]!.includes(target), logs.client.messages()[0]);
  const web = serveFiles(parse(target));
  await fetchFiles(client.listenAddrs[0]!, [5]);
  await web.shutdown();
});
