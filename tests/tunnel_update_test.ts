/** New options of running tunnels: `update` of both ends. */

import { assertEquals, assertInstanceOf, assertMatch, assertNotEquals, assertRejects } from "@std/assert";
import { hashSecret, openTunnel, serveTunnel, type TunnelClient, TunnelRefusedError } from "../tunnel.ts";
import { makeCertificate } from "../tunnel/certificate.ts";
import { compareLocals } from "../tunnel/places.ts";
import { checkOptions } from "../tunnel/settings.ts";
import { freePort, readAll, readSome, text } from "./support.ts";
import {
  at,
  dial,
  eventually,
  FREE,
  makeEcho,
  makeLog,
  makePair,
  makeProxy,
  makeTarget,
  nowhere,
  openAtSession,
  portOf,
  promptly,
  say,
} from "./tunnel_support.ts";

/** Starts a target that answers each connection with its name. */
const makeNamed = (name: string) =>
  makeTarget(async (connection) => {
    await connection.write(new TextEncoder().encode(name));
  });

/** Reads the name of the target that an address leads to. */
async function nameAt(addr: string): Promise<string> {
  using connection = await dial(addr);
  return text(await readAll(connection));
}

/** Whether nothing listens at an address. */
async function isFree(addr: string): Promise<boolean> {
  return await dial(addr).then((connection) => connection.close(), () => true) ?? false;
}

/** Requests a target; returns the status of the response. */
async function statusOf(client: TunnelClient, target: string): Promise<number> {
  try {
    (await client.connect(target)).close();
    return 200;
  } catch (error) {
    assertInstanceOf(error, TunnelRefusedError);
    return error.status;
  }
}

const quiet = { onError() {}, onEvent() {} };

Deno.test("TunnelServer.update() applies allow to new requests, and open connections continue", async () => {
  await using echo = makeEcho();
  await using named = makeNamed("named");
  const options = { listen: FREE, ...quiet };
  await using server = serveTunnel({ ...options, allow: [echo.addr] });
  await using client = await openTunnel({ connect: server.serverAddr, ...quiet });
  using stream = await client.connect(echo.addr);
  assertEquals(await say(stream, "before"), "before");
  const { serverAddr } = server;
  await server.update({ ...options, allow: [named.addr] });
  assertEquals(server.serverAddr, serverAddr);
  assertEquals(await statusOf(client, echo.addr), 403);
  using other = await client.connect(named.addr);
  assertEquals(text(await readAll(other)), "named");
  assertEquals(await say(stream, "after"), "after");
});

Deno.test("TunnelServer.update() replaces the target and the secret for new requests", async () => {
  await using one = makeNamed("one");
  await using two = makeNamed("two");
  await using server = serveTunnel({ listen: FREE, target: one.addr, ...quiet });
  await using client = await openTunnel({ connect: server.serverAddr, forward: [FREE], ...quiet });
  const [addr] = client.listenAddrs as [string];
  assertEquals(await nameAt(addr), "one");
  await server.update({ listen: FREE, target: two.addr });
  assertEquals(await nameAt(addr!), "two");
  await server.update({ listen: FREE, allow: [one.addr], secret: "sesame" });
  assertEquals(await statusOf(client, one.addr), 407);
  await client.update({ connect: server.serverAddr, forward: [`${addr}=${one.addr}`], secret: "sesame" });
  assertEquals(client.listenAddrs, [addr]);
  assertEquals(await nameAt(addr!), "one");
});

Deno.test("TunnelServer.update() ends the connections of removed users only, and verifies changed secrets", async () => {
  await using echo = makeEcho();
  await using other = makeEcho();
  const [first, second] = [await hashSecret("first"), await hashSecret("second")];
  const allow = ["127.0.0.1:*"];
  const [alice, bob] = [{ name: "alice", secret: first, allow }, { name: "bob", secret: first, allow }];
  const log = makeLog();
  await using server = serveTunnel({ listen: FREE, users: [alice, bob], ...log.options });
  const open = (user: string) => openTunnel({ connect: server.serverAddr, user, secret: "first", ...quiet });
  await using a = await open("alice");
  await using b = await open("bob");
  using streamA = await a.connect(echo.addr);
  using streamB = await b.connect(other.addr);
  assertEquals([await say(streamA, "a"), await say(streamB, "b")], ["a", "b"]);

  await server.update({ listen: FREE, users: [{ ...alice, secret: second }] });
  await promptly(log.until(/the user was removed/));
  await assertRejects(() => promptly(streamB.read(new Uint8Array(1))));
  assertEquals(await say(streamA, "still"), "still");
  assertEquals(await statusOf(a, echo.addr), 407);
  await a.update({ connect: server.serverAddr, user: "alice", secret: "second" });
  streamA.close();
  using again = await a.connect(echo.addr);
  assertEquals(await say(again, "again"), "again");
});

Deno.test("TunnelServer.update() from users to a secret ends the connections and the reverse ports of the users", async () => {
  await using echo = makeEcho();
  const secret = await hashSecret("first");
  const users = [{ name: "alice", secret, allow: [echo.addr], allowListen: ["127.0.0.1:*"] }];
  const log = makeLog();
  await using server = serveTunnel({ listen: FREE, users, ...log.options });
  const client = { connect: server.serverAddr, user: "alice", secret: "first", reverse: [`0=${echo.addr}`] };
  await using alice = await openTunnel({ ...client, resume: false, reconnect: false, ...quiet });
  using stream = await alice.connect(echo.addr);
  assertEquals(await say(stream, "before"), "before");

  await server.update({ listen: FREE, secret: "shared", allow: [echo.addr] });
  await assertRejects(() => promptly(stream.read(new Uint8Array(1))));
  await promptly(log.until("stopped"));
  assertEquals(await isFree(alice.listenAddrs[0]!), true);
});

Deno.test("TunnelServer.update() counts what a user holds against the new limits", async () => {
  await using echo = makeEcho();
  const secret = await hashSecret("first");
  const user = { name: "alice", secret, allow: [echo.addr] };
  await using server = serveTunnel({ listen: FREE, users: [{ ...user, maxStreams: 9 }], ...quiet });
  await using client = await openTunnel({ connect: server.serverAddr, user: "alice", secret: "first", ...quiet });
  using _stream = await client.connect(echo.addr);
  await server.update({ listen: FREE, users: [{ ...user, maxStreams: 1 }] });
  assertEquals(await statusOf(client, echo.addr), 429);
});

Deno.test("TunnelServer.update() stops listening where allowListen does not allow it, and open connections continue", async () => {
  await using echo = makeEcho();
  await using pair = await makePair({ allowListen: ["127.0.0.1:*"] }, { reverse: [`0=${echo.addr}`] });
  const [addr] = pair.client.listenAddrs;
  using open = await dial(addr!);
  assertEquals(await say(open, "before"), "before");
  await pair.server.update({ listen: FREE, allowListen: [`127.0.0.1:${portOf(addr!)}`] });
  assertEquals(await say(open, "allowed"), "allowed");
  assertEquals(await isFree(addr!), false);
  await pair.server.update({ listen: FREE, allowListen: ["!*:*"] });
  await promptly(pair.logs.server.until("stopped"));
  assertEquals(await isFree(addr!), true);
  assertEquals(await say(open, "after"), "after");
});

Deno.test("TunnelServer.update() listens at another address, and clients stay connected", async () => {
  await using echo = makeEcho();
  await using pair = await makePair({ allow: [echo.addr] });
  const { server, client } = pair;
  using stream = await client.connect(echo.addr);
  const old = server.serverAddr;
  const port = freePort();
  await server.update({ listen: `127.0.0.1:${port}`, allow: [echo.addr] });
  assertEquals(server.serverAddr, `127.0.0.1:${port}`);
  assertEquals(await isFree(old), true);
  await using other = await openTunnel({ connect: server.serverAddr, ...quiet });
  for (const end of [other, client]) (await end.connect(echo.addr)).close();
  assertEquals(await say(stream, "hello"), "hello");
});

Deno.test("TunnelServer.update() listens at all addresses instead of one with the same port", async () => {
  await using echo = makeEcho();
  await using pair = await makePair({ allow: [echo.addr] });
  const port = portOf(pair.server.serverAddr);
  await pair.server.update({ listen: `0.0.0.0:${port}`, allow: [echo.addr], insecure: true });
  assertEquals(pair.server.serverAddr, `0.0.0.0:${port}`);
  await using other = await openTunnel({ connect: `127.0.0.1:${port}`, ...quiet });
  (await other.connect(echo.addr)).close();
});

Deno.test("TunnelServer.update() resolves when it listens, at an address that was in use for a moment", async () => {
  await using echo = makeEcho();
  const log = makeLog();
  const options = { allow: [echo.addr], insecure: true, ...log.options };
  await using server = serveTunnel({ ...options, listen: FREE });
  const port = portOf(server.serverAddr);
  // While another address of this machine is in use, all of them cannot be listened on.
  const holder = Deno.listen({ hostname: "127.0.0.2", port });
  const updated = server.update({ ...options, listen: `0.0.0.0:${port}` });
  await eventually(() => isFree(`127.0.0.1:${port}`));
  holder.close();
  await updated;
  await using client = await openTunnel({ connect: `127.0.0.1:${port}`, ...quiet });
  (await client.connect(echo.addr)).close();
  assertEquals(log.errors, []);
});

for (const version of [1, 2] as const) {
  Deno.test(`TunnelServer.update() uses a new certificate for new clients, and old ones resume, version ${version}`, async () => {
    await using echo = makeEcho();
    const [first, second] = [await makeCertificate(["127.0.0.1"]), await makeCertificate(["127.0.0.1"])];
    const options = { listen: FREE, allow: [echo.addr] };
    await using server = serveTunnel({ ...options, cert: first.cert, key: first.key, ...quiet });
    await using proxy = makeProxy(server.serverAddr);
    const log = makeLog();
    const ca = first.cert + second.cert;
    await using client = await openTunnel({ connect: proxy.addr, ca, version, ...log.options });
    using stream = await client.connect(echo.addr);
    assertEquals(await say(stream, "before"), "before");

    await server.update({ ...options, cert: second.cert, key: second.key });
    assertEquals(await say(stream, "after"), "after");
    const connect = server.serverAddr;
    await assertRejects(() => openTunnel({ connect, ca: first.cert, ...quiet }), Error, "invalid peer certificate");
    await using other = await openTunnel({ connect, ca: second.cert, version, ...quiet });
    (await other.connect(echo.addr)).close();
    proxy.cut();
    await promptly(log.until("resumed"));
    assertEquals(await say(stream, "resumed"), "resumed");
  });
}

Deno.test("TunnelServer.update() rejects and changes nothing for malformed options, or an address in use", async () => {
  await using echo = makeEcho();
  const made = await makeCertificate(["127.0.0.1"]);
  const other = await makeCertificate(["127.0.0.1"]);
  const options = { listen: FREE, allow: [echo.addr], stalledStreamTimeout: 4000 };
  await using server = serveTunnel({ ...options, ...quiet });
  await using client = await openTunnel({ connect: server.serverAddr, ...quiet });
  using used = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { serverAddr } = server;
  const status = FREE;
  const cases: [changed: object, message: RegExp][] = [
    [{ allow: ["x"] }, /^allow must be HOST:PORT/],
    [{ listen: "x" }, /^listen must be HOST:PORT/],
    [{ listen: "0.0.0.0:0" }, /^listen must be a loopback address/],
    [{ users: [] }, /^users cannot be combined/],
    [{ cert: made.cert }, /^cert and key must be set together/],
    [{ cert: made.cert, key: other.key, status }, /^cert and key must be a certificate/],
    [{ cert: "x", key: "y", listen: at({ hostname: "127.0.0.1", port: freePort() }) }, /^cert and key must be/],
    [
      { stalledStreamTimeout: 3000 },
      /^stalledStreamTimeout of a server cannot be changed while it runs, expected 4000, received 3000/,
    ],
    [{ timeout: 5000 }, /^timeout of a server cannot be changed while it runs, expected its default, received 5000/],
    [{ listen: at(used.addr), status }, /^Cannot listen on .*: address in use/],
    [{ status: at(used.addr), listen: `127.0.0.1:${freePort()}` }, /^Cannot listen on .*: address in use/],
    [{ acceptProxy: ["x"] }, /^acceptProxy must/],
  ];
  for (const [changed, message] of cases) {
    assertMatch((await assertRejects(() => server.update({ ...options, ...changed }), Error)).message, message);
    assertEquals([server.serverAddr, server.statusAddr], [serverAddr, undefined]);
    (await client.connect(echo.addr)).close();
  }
});

Deno.test("TunnelClient.update() changes targets, adds and removes addresses, and open connections continue", async () => {
  await using one = makeNamed("one");
  await using two = makeNamed("two");
  await using echo = makeEcho();
  await using pair = await makePair({ allow: ["127.0.0.1:*"] }, {
    forward: [`0=${one.addr}`, `0=${echo.addr}`],
    socks: [FREE],
  });
  const { server, client } = pair;
  const [first, second, socks] = client.listenAddrs as [string, string, string];
  using open = await dial(second);
  assertEquals(await say(open, "before"), "before");
  const added = `127.0.0.1:${freePort()}`;
  // The port of SOCKS becomes that of a forward, a forward's becomes SOCKS.
  const forward = [`${socks}=${one.addr}`, `${added}=${two.addr}`];
  await client.update({ connect: server.serverAddr, forward, socks: [first] });
  assertEquals(client.listenAddrs, [socks, added, first]);
  assertEquals([await nameAt(socks), await nameAt(added)], ["one", "two"]);
  assertEquals([await isFree(second), await isFree(first)], [true, false]);
  assertEquals(await say(open, "after"), "after");
  await client.update({ connect: server.serverAddr, forward: [`${socks}=${two.addr}`] });
  assertEquals(client.listenAddrs, [socks]);
  assertEquals(await nameAt(socks), "two");
  assertEquals([await isFree(added), await isFree(first)], [true, true]);
});

Deno.test("compareLocals() keeps the listener of an address whose target changes, and closes what overlaps first", () => {
  const localsOf = (forward: string[], socks: string[] = []) => checkOptions({ connect: "1", forward, socks }).locals;
  const old = localsOf(["8080=a:1", "8081=b:1", "8082=c:1"]);
  for (const local of old) local.addr = `127.0.0.1:${local.listen}`;
  const wanted = localsOf(["127.0.0.1:8081=z:1"], ["8080", "8083"]);
  const { next, added, removed } = compareLocals(old, wanted);
  assertEquals(next.map((local) => old.indexOf(local)), [1, 0, -1]);
  assertEquals(added.map(({ place, mustWait }) => [place.listen, mustWait]), [["8083", false]]);
  assertEquals(removed, [old[2]]);
  const all = checkOptions({ connect: "1", forward: ["0.0.0.0:8082=c:1"], insecure: true }).locals;
  assertEquals(compareLocals(old, all).added.map(({ mustWait }) => mustWait), [true]);
});

Deno.test("TunnelClient.update() leaves its old server when the last connection has ended", async () => {
  await using echo = makeEcho();
  await using other = serveTunnel({ listen: FREE, allow: [echo.addr], ...quiet });
  const { opening, session } = await openAtSession({ ...quiet });
  await using client = await opening;
  const [stream, accepted] = await Promise.all([client.connect(), session.acceptStream()]);
  await client.update({ connect: other.serverAddr, resume: false });
  await accepted.write(new Uint8Array(5));
  assertEquals((await readSome(stream, 5)).length, 5);
  stream.close();
  accepted.close();
  await promptly(session.closed);
  assertEquals(await statusOf(client, echo.addr), 200);
});

Deno.test("TunnelClient.update() keeps the free ports of entries with port 0, each with its target", async () => {
  await using one = makeNamed("one");
  await using two = makeNamed("two");
  const forward = [`0=${one.addr}`, `0=${two.addr}`];
  await using pair = await makePair({ allow: ["127.0.0.1:*"] }, { forward });
  const [first, second] = pair.client.listenAddrs as [string, string];
  await pair.client.update({ connect: pair.server.serverAddr, forward: forward.toReversed() });
  assertEquals(pair.client.listenAddrs, [second, first]);
  assertEquals([await nameAt(first), await nameAt(second)], ["one", "two"]);
});

Deno.test("TunnelClient.update() listens at all addresses instead of one with the same port", async () => {
  await using one = makeNamed("one");
  await using pair = await makePair({ allow: ["127.0.0.1:*"] }, { forward: [`0=${one.addr}`] });
  const port = portOf(pair.client.listenAddrs[0]!);
  const forward = [`0.0.0.0:${port}=${one.addr}`];
  await pair.client.update({ connect: pair.server.serverAddr, forward, insecure: true });
  assertEquals(pair.client.listenAddrs, [`0.0.0.0:${port}`]);
  assertEquals(await nameAt(`127.0.0.1:${port}`), "one");
});

for (const version of [1, 2] as const) {
  Deno.test(`TunnelClient.update() adds, changes and removes reverse, version ${version}`, async () => {
    await using one = makeNamed("one");
    await using two = makeNamed("two");
    await using echo = makeEcho();
    await using pair = await makePair({ allowListen: ["127.0.0.1:*"] }, { reverse: [`0=${echo.addr}`], version });
    const { server, client, logs } = pair;
    const connect = server.serverAddr;
    const [first] = client.listenAddrs as [string];
    using open = await dial(first);
    assertEquals(await say(open, "before"), "before");
    await client.update({ connect, version, reverse: [`0=${one.addr}`, `127.0.0.1:0=${two.addr}`] });
    const [kept, added] = client.listenAddrs as [string, string];
    assertEquals(kept, first);
    assertNotEquals(added, first);
    assertEquals([await nameAt(kept), await nameAt(added)], ["one", "two"]);
    await client.update({ connect, version, reverse: [`127.0.0.1:0=${one.addr}`] });
    await promptly(logs.server.until("stopped"));
    assertEquals([await isFree(kept), await nameAt(added)], [true, "one"]);
    assertEquals(await say(open, "after"), "after");
    await client.update({ connect, version });
    await promptly(logs.server.until("stopped", 2));
    assertEquals([await isFree(added), client.listenAddrs], [true, []]);
  });

  Deno.test(`TunnelClient.update() connects to another server, and open connections continue, version ${version}`, async () => {
    await using named = makeNamed("named");
    await using echo = makeEcho();
    const listened = makeLog();
    const rules = { listen: FREE, allow: ["127.0.0.1:*"], allowListen: ["127.0.0.1:*"] };
    await using one = serveTunnel({ ...rules, ...quiet });
    await using two = serveTunnel({ ...rules, ...listened.options });
    const log = makeLog();
    const common = { forward: [`0=${echo.addr}`], reverse: [`0=${named.addr}`], version, ...log.options };
    await using client = await openTunnel({ connect: one.serverAddr, ...common });
    const [forward, reverse] = client.listenAddrs as [string, string];
    using open = await dial(forward);
    assertEquals(await say(open, "before"), "before");
    await client.update({ ...common, connect: two.serverAddr });
    assertEquals([client.serverAddr, client.listenAddrs[0]], [two.serverAddr, forward]);
    assertEquals(await say(open, "after"), "after");
    await promptly(listened.until("listening"));
    await eventually(() => client.listenAddrs[1] !== reverse);
    assertEquals(await nameAt(client.listenAddrs[1]!), "named");
    open.close();
    // The first server is left when its last connection has ended.
    await promptly(one.shutdown());
    using next = await dial(forward);
    assertEquals(await say(next, "next"), "next");
    assertEquals(log.messages(), []);
  });
}

Deno.test("TunnelClient.update() connects anew for another version or TLS of the same server", async () => {
  await using echo = makeEcho();
  const { cert, key } = await makeCertificate(["127.0.0.1"]);
  await using pair = await makePair({ allow: [echo.addr], allowListen: ["127.0.0.1:*"] }, {
    forward: [`0=${echo.addr}`],
    reverse: [`127.0.0.1:${freePort()}=${echo.addr}`],
  });
  const { server, client, logs } = pair;
  const [forward, reverse] = client.listenAddrs as [string, string];
  const options = { forward: [`${forward}=${echo.addr}`], reverse: [`${reverse}=${echo.addr}`] };
  await client.update({ connect: server.serverAddr, version: 1, ...options });
  await promptly(logs.server.until("listening", 2));
  for (const addr of [forward, reverse]) {
    using connection = await dial(addr);
    assertEquals(await say(connection, addr), addr);
  }
  await server.update({ listen: FREE, allow: [echo.addr], allowListen: ["127.0.0.1:*"], cert, key });
  await client.update({ connect: server.serverAddr, ca: cert, ...options });
  await promptly(logs.server.until("listening", 3));
  for (const addr of [forward, reverse]) {
    using connection = await dial(addr);
    assertEquals(await say(connection, addr), addr);
  }
  assertEquals(logs.server.events.filter(({ type }) => type === "connected").length, 3);
});

Deno.test("TunnelClient.update() rejects and changes nothing for malformed options, addresses in use and refusals", async () => {
  await using echo = makeEcho();
  await using pair = await makePair(
    { allow: [echo.addr], allowListen: ["!127.0.0.1:1"] },
    {
      forward: [`0=${echo.addr}`],
    },
  );
  const { server, client } = pair;
  const connect = server.serverAddr;
  const { listenAddrs } = client;
  const forward = [`${listenAddrs[0]}=${echo.addr}`];
  using used = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const free = `127.0.0.1:${freePort()}`;
  const cases: [changed: object, message: RegExp][] = [
    [{ forward: ["x"] }, /^forward must be HOST:PORT/],
    [{ connect: "x" }, /^connect must be HOST:PORT/],
    [{ reverse: ["1"] }, /^reverse must be LISTEN=TARGET/],
    [{ forward: [`${free}=${echo.addr}`, `${at(used.addr)}=${echo.addr}`] }, /^Cannot listen on .*: address in use/],
    [{ forward: [`${free}=${echo.addr}`], status: at(used.addr) }, /^Cannot listen on .*: address in use/],
    [{ forward: [`${free}=${echo.addr}`], status: FREE, connect: nowhere() }, /^Cannot connect to .*refused/],
    [{ forward: [`${free}=${echo.addr}`], reverse: [`1=${echo.addr}`] }, /refused BIND 1: not allowed/],
    [{ forward: [`${free}=${echo.addr}`], tls: true }, /^Cannot connect to /],
  ];
  for (const [changed, message] of cases) {
    const error = await assertRejects(() => client.update({ connect, forward, ...changed }), Error);
    assertMatch(error.message, message);
    assertEquals([client.serverAddr, client.listenAddrs, client.statusAddr], [connect, listenAddrs, undefined]);
    assertEquals(await isFree(free), true);
    using connection = await dial(listenAddrs[0]!);
    assertEquals(await say(connection, "hello"), "hello");
  }
});

Deno.test("update() replaces the status of either end", async () => {
  await using pair = await makePair({ allow: [] });
  const { server, client } = pair;
  await server.update({ listen: FREE, status: FREE });
  await client.update({ connect: server.serverAddr, status: FREE });
  const before = [server.statusAddr!, client.statusAddr!];
  for (const addr of before) assertEquals(await (await fetch(`http://${addr}/healthz`)).text(), "ok\n");
  await server.update({ listen: FREE });
  await client.update({ connect: server.serverAddr });
  assertEquals([server.statusAddr, client.statusAddr], [undefined, undefined]);
  for (const addr of before) assertEquals(await isFree(addr), true);
});

Deno.test("update() applies calls one after the other, and rejects after shutdown", async () => {
  await using one = makeNamed("one");
  await using two = makeNamed("two");
  await using pair = await makePair({ allow: ["127.0.0.1:*"] }, { forward: [`0=${one.addr}`] });
  const { server, client } = pair;
  const connect = server.serverAddr;
  const [addr] = client.listenAddrs;
  const { cert, key } = await makeCertificate(["127.0.0.1"]);
  const allow = ["127.0.0.1:*"];
  await Promise.all([
    ...[one, two, one, two].map((target) => client.update({ connect, forward: [`${addr}=${target.addr}`] })),
    server.update({ listen: FREE, cert, key, allow }),
    server.update({ listen: FREE, allow }),
  ]);
  assertEquals(await nameAt(addr!), "two");
  await using plain = await openTunnel({ connect, ...quiet });
  (await plain.connect(one.addr)).close();
  await plain.shutdown();
  await client.shutdown();
  await server.shutdown();
  await assertRejects(() => client.update({ connect }), Error, "it has ended");
  await assertRejects(() => server.update({ listen: FREE }), Error, "it has ended");
});

Deno.test("TunnelClient.shutdown() ends an update that waits for a server, and what the update has opened", async () => {
  await using pair = await makePair({ allow: [] });
  using silent = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const listen = `127.0.0.1:${freePort()}`;
  const updating = pair.client.update({ connect: at(silent.addr), forward: [`${listen}=127.0.0.1:1`] });
  using _accepted = await silent.accept();
  const rejected = assertRejects(() => updating);
  await promptly(pair.client.shutdown());
  await rejected;
  assertEquals(await isFree(listen), true);
});

Deno.test("TunnelClient.update() to a server that can be reached listens again after an outage", async () => {
  await using echo = makeEcho();
  const make = () => serveTunnel({ listen: FREE, allow: [echo.addr], ...quiet });
  await using other = make();
  const first = make();
  const options = { forward: [`0=${echo.addr}`], wait: 1, ...quiet };
  await using client = await openTunnel({ connect: first.serverAddr, ...options });
  const [addr] = client.listenAddrs;
  await first.shutdown();
  await eventually(() => isFree(addr!));
  await client.update({ connect: other.serverAddr, ...options });
  using connection = await dial(client.listenAddrs[0]!);
  assertEquals([client.listenAddrs[0], await say(connection, "hello")], [addr, "hello"]);
});

Deno.test("openTunnel() with one server emits bound when a refused reverse port is listened on again, and not before", async () => {
  await using named = makeNamed("named");
  const allowListen = ["127.0.0.1:*"];
  const options = { listen: FREE, ...quiet };
  await using server = serveTunnel({ ...options, allowListen });
  const place = nowhere();
  const log = makeLog();
  const reverse = [`${place}=${named.addr}`];
  await using client = await openTunnel({ connect: server.serverAddr, reverse, ...log.options });
  assertEquals(log.typesOf(), []);
  await server.update({ ...options, allowListen: [] });
  await promptly(log.until(/^Reverse forward .* failed: .*not allowed/));
  await server.update({ ...options, allowListen });
  await promptly(log.until("bound"));
  assertEquals(log.events, [{ type: "bound", serverAddr: server.serverAddr, listenAddr: place, to: named.addr }]);
  assertEquals([await nameAt(place), client.listenAddrs], ["named", [place]]);
});
