/** What a tunnel counts and reports of each forwarded connection, and of refused requests. */

import { assert, assertEquals, assertGreaterOrEqual, assertInstanceOf, assertRejects } from "@std/assert";
import * as net from "node:net";
import { Session, SessionClosedError } from "../mod.ts";
import { hashSecret, openTunnel, serveTunnel, TunnelRefusedError } from "../tunnel.ts";
import { Accounting, MAX_SUMS } from "../tunnel/accounting.ts";
import { Activity } from "../tunnel/activity.ts";
import { RefusalError } from "../tunnel/errors.ts";
import { bytes, listenAgain, readAll, tcpPair, writeAll } from "./support.ts";
import {
  askSocks,
  at,
  dial,
  type FinishedEvent,
  FREE,
  IPV4,
  isEnded,
  makeEcho,
  makeLog,
  makePair,
  makeTarget,
  nowhere,
  portOf,
  promptly,
  say,
  socksRequest,
} from "./tunnel_support.ts";

/** Sends 3 bytes, ends its direction, and returns the address that it sent from. */
async function visit(connection: Deno.TcpConn): Promise<string> {
  await writeAll(connection, bytes("abc"));
  await connection.closeWrite();
  await readAll(connection);
  const address = at(connection.localAddr as Deno.NetAddr);
  connection.close();
  return address;
}

/** Answers each connection with 5 bytes after its end. */
const makeAnswering = () =>
  makeTarget(async (connection) => {
    await readAll(connection);
    await writeAll(connection, bytes("hello"));
    await connection.closeWrite();
  });

/** Checks the fields that depend on the time, and returns the others. */
function timeless({ duration, ...rest }: FinishedEvent): Omit<FinishedEvent, "duration"> {
  assert(Number.isInteger(duration) && duration >= 0, `${duration}`);
  return rest;
}

const common = { type: "finished", user: undefined, error: undefined } as const;

Deno.test("tunnel: both ends report a connection of forward, of socks and of reverse with its addresses and bytes", async () => {
  await using target = makeAnswering();
  await using pair = await makePair({ allow: [target.addr], allowListen: ["127.0.0.1:*"] }, {
    forward: [`${FREE}=${target.addr}`],
    socks: [FREE],
    reverse: [`${FREE}=${target.addr}`],
  });
  const { client, logs } = pair;
  const [forward, socks, reverse] = client.listenAddrs;
  const peer = logs.server.events[0];
  assert(peer?.type === "connected");

  const first = await visit(await dial(forward!));
  const connection = await dial(socks!);
  assertEquals(await askSocks(connection, socksRequest(1, 1, IPV4, portOf(target.addr))), 0);
  const second = await visit(connection);
  const third = await visit(await dial(reverse!));
  await Promise.all([logs.client.until("finished", 3), logs.server.until("finished", 3)]);

  const [up, down] = [{ sent: 3, received: 5 }, { sent: 5, received: 3 }];
  assertEquals(logs.client.finished.map(timeless), [
    { ...common, ...up, kind: "forward", from: first, to: target.addr },
    { ...common, ...up, kind: "socks", from: second, to: target.addr },
    { ...common, ...down, kind: "reverse", from: third, to: target.addr },
  ]);
  assertEquals(logs.server.finished.map(timeless), [
    { ...common, ...down, kind: "connect", from: peer.clientAddr, to: target.addr },
    { ...common, ...down, kind: "connect", from: peer.clientAddr, to: target.addr },
    { ...common, ...up, kind: "reverse", from: third, to: peer.clientAddr },
  ]);
});

Deno.test("tunnel: the head of a request of an HTTP proxy counts as sent at both ends", async () => {
  await using target = makeAnswering();
  await using pair = await makePair({ allow: [target.addr], allowListen: ["127.0.0.1:*"] }, {
    http: [FREE],
    reverseSocks: [FREE],
    allow: [target.addr],
  });
  const { client, logs } = pair;
  const forwarded = `GET / HTTP/1.1\r\nHost: ${target.addr}\r\nConnection: close\r\n\r\n`.length;
  for (const [n, addr] of client.listenAddrs.entries()) {
    using connection = await dial(addr);
    await writeAll(connection, bytes(`GET http://${target.addr}/ HTTP/1.1\r\n\r\n`));
    await connection.closeWrite();
    assertEquals((await readAll(connection)).length, 5);
    await Promise.all([logs.client.until("finished", n + 1), logs.server.until("finished", n + 1)]);
  }
  const sums = (all: FinishedEvent[]) => all.map(({ kind, sent, received }) => ({ kind, sent, received }));
  assertEquals(sums(logs.client.finished), [
    { kind: "http", sent: forwarded, received: 5 },
    { kind: "reverse", sent: 5, received: forwarded },
  ]);
  assertEquals(sums(logs.server.finished).at(0), { kind: "connect", sent: 5, received: forwarded });
});

Deno.test("Activity.report() reports refusals because of too many open files once a minute, and counts each", () => {
  const reported: string[] = [];
  const activity = new Activity({ onError: (error) => reported.push((error as Error).message) });
  const limit = new Error("Too many open files (os error 24)");
  const refusals = [
    new RefusalError(502, "Refused CONNECT a:1 from b:2", limit),
    new TunnelRefusedError(502, "the peer refused CONNECT a:1: too many open files"),
    new RefusalError(502, "Refused CONNECT c:3 from b:2", limit),
  ];
  const report = () =>
    [...refusals, new RefusalError(403, "Refused CONNECT a:1 from b:2", "no")].forEach(activity.report);
  report();
  const [full, denied] = ["Refused CONNECT a:1 from b:2: too many open files", "Refused CONNECT a:1 from b:2: no"];
  assertEquals(reported, [full, denied]);
  const { now } = performance;
  try {
    performance.now = () => now.call(performance) + 60_000;
    report();
  } finally {
    performance.now = now;
  }
  assertEquals(reported, [full, denied, full, denied]);
  assertEquals(activity.stats().refused, { 403: 2, 502: 6 });
});

Deno.test("serveTunnel() reports a client that has left, with its user, and why its connection has failed", async () => {
  const secret = await hashSecret("open-sesame");
  const users = [{ name: "alice", secret }, { name: "bob", secret }];
  const log = makeLog();
  const listen = { listen: FREE, ...log.options };
  await using server = serveTunnel({ ...listen, users });
  for (const [n, user] of ["alice", "bob"].entries()) {
    const client = await openTunnel({
      connect: server.serverAddr,
      user,
      secret: "open-sesame",
      reconnect: false,
      onError() {},
    });
    assertEquals(log.disconnected.length, n);
    if (user === "alice") await client.shutdown();
    else await server.update({ ...listen, listen: server.serverAddr, users: users.slice(0, 1) });
    await log.until("disconnected", n + 1);
    client.finished.catch(() => {});
    await client.shutdown();
    const { duration, error, ...rest } = log.disconnected[n]!;
    const connected = log.events[n];
    assert(connected?.type === "connected" && Number.isInteger(duration) && duration >= 0);
    assertEquals(rest, { type: "disconnected", clientAddr: connected.clientAddr, user });
    assertEquals(error?.message, user === "alice" ? undefined : "The user was removed, or must show a certificate");
  }
});

Deno.test("serveTunnel() with a fixed target reports its connections, for a client of each version", async () => {
  for (const version of [1, 2] as const) {
    await using target = makeAnswering();
    await using pair = await makePair({ target: target.addr }, { forward: [FREE], version });
    const { client, logs } = pair;
    const from = await visit(await dial(client.listenAddrs[0]!));
    await Promise.all([logs.client.until("finished"), logs.server.until("finished")]);
    assertEquals(logs.client.finished.map(timeless), [
      { ...common, kind: "forward", from, to: undefined, sent: 3, received: 5 },
    ]);
    const [{ kind, to, sent, received }] = logs.server.finished as [FinishedEvent];
    assertEquals({ kind, to, sent, received }, { kind: "target", to: target.addr, sent: 5, received: 3 });
  }
});

Deno.test("tunnel: a connection that is reset, or whose session is lost, is reported with the error and its bytes", async () => {
  await using echo = makeEcho();
  const serving = new AbortController();
  await using pair = await makePair({ target: echo.addr, signal: serving.signal }, { forward: [FREE], onError() {} });
  const { client, logs } = pair;
  client.finished.catch(() => {});
  const socket = net.connect(portOf(client.listenAddrs[0]!), "127.0.0.1");
  socket.write("abc");
  socket.once("data", () => socket.resetAndDestroy());
  await logs.client.until("finished");
  const [reset] = logs.client.finished;
  assertInstanceOf(reset?.error, Deno.errors.ConnectionReset);
  assertEquals([reset.sent, reset.received], [3, 3]);

  const connection = await dial(client.listenAddrs[0]!);
  assertEquals(await say(connection, "hello"), "hello");
  serving.abort();
  await logs.client.until("finished", 2);
  const lost = logs.client.finished[1];
  assertInstanceOf(lost?.error, SessionClosedError);
  assertEquals([lost.sent, lost.received], [5, 5]);
  assertEquals(await isEnded(connection), true);
  connection.close();
  assertEquals(client.stats().open, 0);
});

Deno.test("tunnel: a connection is reported once it has ended, with the time that it was open", async () => {
  await using echo = makeEcho();
  await using pair = await makePair({ target: echo.addr }, { forward: [FREE] });
  const { client, logs } = pair;
  const connection = await dial(client.listenAddrs[0]!);
  const began = performance.now();
  assertEquals(await say(connection, "hello"), "hello");
  while (performance.now() - began < 20) assertEquals(await say(connection, "hello"), "hello");
  assertEquals(logs.client.finished, []);
  connection.close();
  await logs.client.until("finished");
  assertGreaterOrEqual(logs.client.finished[0]!.duration, 19);
});

Deno.test("Tunnel.stats() counts refused requests by status, at both ends", async () => {
  const dead = nowhere();
  await using pair = await makePair({ allow: [dead] }, { forward: [`${FREE}=127.0.0.1:1`] });
  const { client, server, logs } = pair;
  await assertRejects(() => client.connect(dead), TunnelRefusedError);
  await assertRejects(() => client.connect("127.0.0.1:2"), TunnelRefusedError);
  using connection = await dial(client.listenAddrs[0]!);
  assertEquals(await isEnded(connection), true);
  await Promise.all([logs.client.until(/not allowed/), logs.server.until(/not allowed/, 2)]);
  const refused = { 403: 2, 502: 1 };
  assertEquals(client.stats().refused, refused);
  assertEquals(server.stats().refused, refused);
  assertEquals(client.stats().streams, 0);
});

Deno.test("Tunnel.stats() counts connections that the fixed target of a server refuses as 502", async () => {
  await using pair = await makePair({ target: nowhere() }, { forward: [FREE] });
  using connection = await dial(pair.client.listenAddrs[0]!);
  assertEquals(await isEnded(connection), true);
  await pair.logs.server.until(/connection refused/);
  assertEquals(pair.server.stats().refused, { 502: 1 });
});

Deno.test("Tunnel.stats() counts a refused entry of reverse, after a reconnect", async () => {
  const serving = new AbortController();
  const first = serveTunnel({ listen: FREE, allowListen: ["*:*"], signal: serving.signal, onError() {} });
  const log = makeLog();
  await using client = await openTunnel({ connect: first.serverAddr, reverse: ["0=1"], ...log.options });
  serving.abort();
  await first.finished;
  await using _second = await listenAgain(() =>
    serveTunnel({ listen: first.serverAddr, allow: ["*:1"], onError() {} })
  );
  await promptly(log.until(/^Reverse forward 0 failed: .*not allowed/));
  assert(client.stats().refused[403]! >= 1);
});

Deno.test("Tunnel.stats() counts reconnects of a client", async () => {
  const serving = new AbortController();
  await using echo = makeEcho();
  const options = { target: echo.addr, onError() {} };
  const first = serveTunnel({ listen: FREE, ...options, signal: serving.signal });
  const log = makeLog();
  await using client = await openTunnel({ connect: first.serverAddr, ...log.options });
  assertEquals(client.stats().reconnects, 0);
  serving.abort();
  await first.finished;
  await using _second = await listenAgain(() => serveTunnel({ listen: first.serverAddr, ...options }));
  await promptly(log.until("reconnected"));
  assertEquals(client.stats().reconnects, 1);
});

Deno.test("Accounting.sums() has one entry for each user and forward, and one for all others beyond MAX_SUMS", () => {
  const accounting = new Accounting();
  const begin = (forward: string, user?: string) =>
    accounting.begin({ kind: "reverse", user, forward, from: "192.0.2.1:5", to: undefined }, () => {});
  for (let n = 0; n < MAX_SUMS; n++) begin(`${n}`);
  const last = begin("9999", "alice");
  begin("8888", "bob");
  last.countSent(10);
  last.countReceived(20);
  last.end(new Error("lost"));
  begin("0").countSent(1);
  const { sums } = accounting;
  assertEquals(sums.length, MAX_SUMS + 1);
  const empty = { kind: "reverse", user: undefined, failed: 0, sent: 0, received: 0 } as const;
  assertEquals(sums[0], { ...empty, forward: "0", streams: 2, open: 2, sent: 1 });
  assertEquals(sums.at(-1), { ...empty, forward: "other", streams: 2, open: 1, failed: 1, sent: 10, received: 20 });
});

Deno.test("Accounting.refuse() counts statuses that a peer has made up as one", () => {
  const accounting = new Accounting();
  for (const status of [403, 403, 299, 999, 418]) accounting.refuse(status);
  assertEquals(accounting.refused, { 403: 2, other: 3 });
});

Deno.test("Activity.setUser() names the user of a session in its figures, until it ends", async () => {
  const activity = new Activity({});
  const [a, b] = await tcpPair();
  const [client, server] = [Session.client(a), Session.server(b)];
  activity.add(server);
  assertEquals(activity.userOf(server), undefined);
  activity.setUser(server, "alice");
  assertEquals(activity.userOf(server), "alice");
  const [session] = activity.sessions();
  assertEquals([session!.user, session!.address], ["alice", at(a.localAddr as Deno.NetAddr)]);
  await client.close();
  await server.closed;
  await Promise.resolve();
  assertEquals(activity.sessions(), []);
  activity.setUser(server, "bob");
  assertEquals(activity.userOf(server), undefined);
});
