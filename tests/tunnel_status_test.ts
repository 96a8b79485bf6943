/** The status of a tunnel over HTTP: its pages, the health of both ends, and who may read them. */

import { assert, assertEquals, assertGreater, assertMatch, assertThrows } from "@std/assert";
import config from "../deno.json" with { type: "json" };
import { Session } from "../mod.ts";
import { openTunnel, serveTunnel, type Tunnel } from "../tunnel.ts";
import { Activity } from "../tunnel/activity.ts";
import { formatMetrics } from "../tunnel/metrics.ts";
import { StatusServer } from "../tunnel/status.ts";
import { VERSION } from "../tunnel/version.ts";
import { hasPrograms, makeFolder, run } from "./programs.ts";
import { bytes, isRefused, listenAgain, readAll, tcpPair, text, writeAll } from "./support.ts";
import {
  at,
  dial,
  eventually,
  FREE,
  hasIpv6,
  isEnded,
  makeEcho,
  makeLog,
  makePair,
  portOf,
  promptly,
  say,
} from "./tunnel_support.ts";

/** Requests a page, with a connection of its own. */
async function get(tunnel: Tunnel, path: string, init: RequestInit = {}) {
  const response = await fetch(`http://${tunnel.statusAddr}${path}`, { ...init, headers: { connection: "close" } });
  return { status: response.status, headers: response.headers, body: await response.text() };
}

/** Sends the head of a request as it is, and returns the answer. */
async function ask(tunnel: Tunnel, head: string): Promise<string> {
  using connection = await dial(tunnel.statusAddr!);
  await writeAll(connection, bytes(head.replaceAll("\n", "\r\n")));
  return text(await readAll(connection));
}

/** Returns the value of each sample, by its name and labels. */
function samples(metrics: string): Record<string, number> {
  const lines = metrics.trimEnd().split("\n").filter((line) => !line.startsWith("#"));
  return Object.fromEntries(lines.map((line) => {
    const at = line.lastIndexOf(" ");
    return [line.slice(0, at), Number(line.slice(at + 1))];
  }));
}

/** Starts both ends with a status, and forwards one open and one ended connection. */
async function makeBusy() {
  const echo = makeEcho();
  const pair = await makePair({ allow: [echo.addr, "*:1"], allowListen: ["127.0.0.1:*"], status: FREE }, {
    forward: [`${FREE}=${echo.addr}`],
    socks: [FREE],
    reverse: [`${FREE}=${echo.addr}`],
    status: FREE,
  });
  const { client, logs } = pair;
  const ended = await dial(client.listenAddrs[0]!);
  assertEquals(await say(ended, "hello"), "hello");
  ended.close();
  await Promise.all([logs.client.until("finished"), logs.server.until("finished")]);
  const connection = await dial(client.listenAddrs[2]!);
  assertEquals(await say(connection, "abc"), "abc");
  const dispose = async () => {
    connection.close();
    await pair[Symbol.asyncDispose]();
    await echo.close();
  };
  return { ...pair, echo, [Symbol.asyncDispose]: dispose };
}

Deno.test("status: /metrics has the streams and bytes of each forward, while they are open too", async () => {
  await using busy = await makeBusy();
  const { client, server, echo } = busy;
  const { status, headers, body } = await get(client, "/metrics");
  assertEquals([status, headers.get("content-type")], [200, "text/plain; version=0.0.4; charset=utf-8"]);
  const here = samples(body);
  const forward = `{kind="forward",forward="${FREE}=${echo.addr}"}`;
  const reverse = `{kind="reverse",forward="${FREE}=${echo.addr}"}`;
  assertEquals(here[`sluice_streams_total${forward}`], 1);
  assertEquals(here[`sluice_open_streams${forward}`], 0);
  assertEquals(here[`sluice_stream_sent_bytes_total${forward}`], 5);
  assertEquals(here[`sluice_open_streams${reverse}`], 1);
  assertEquals(here[`sluice_stream_received_bytes_total${reverse}`], 3);
  assertEquals(here[`sluice_info{version="${VERSION}",end="client"}`], 1);
  assertEquals([here.sluice_ready, here.sluice_open_sessions, here.sluice_sessions_total], [1, 1, 1]);
  assertEquals(here.sluice_reconnects_total, 0);
  assertGreater(here.sluice_sent_bytes_total!, 8);
  assertGreater(here.sluice_start_time_seconds! * 1000, Date.now() - 60_000);

  const there = samples((await get(server, "/metrics")).body);
  assertEquals(there[`sluice_streams_total{kind="connect",forward="${echo.addr}"}`], 1);
  assertEquals(there[`sluice_open_streams{kind="reverse",forward="${FREE}"}`], 1);
});

Deno.test("status: /metrics has no address of a visitor and no target that only a wildcard allows", async () => {
  await using busy = await makeBusy();
  const { client, server } = busy;
  await using other = makeEcho();
  await using wild = await makePair({ allow: ["*:*"], status: FREE }, {
    socks: [FREE],
    forward: [`${FREE}=${other.addr}`],
  });
  using connection = await dial(wild.client.listenAddrs[0]!);
  assertEquals(await say(connection, "hello"), "hello");
  const names = Object.keys(samples((await get(wild.server, "/metrics")).body));
  assert(names.includes('sluice_open_streams{kind="connect",forward="*"}'), names.join("\n"));
  assertEquals(names.filter((name) => name.includes(other.addr)), []);
  const session = JSON.parse((await get(server, "/status")).body).sessions[0].address;
  for (const end of [client, server]) {
    const { body } = await get(end, "/metrics");
    assertEquals(body.includes(session), false);
    assertEquals(/(from|visitor|address)=/.test(body), false);
  }
});

Deno.test("status: /metrics counts refused requests by status", async () => {
  await using pair = await makePair({ allow: ["127.0.0.1:1"], status: FREE });
  await pair.client.connect("127.0.0.1:2").catch(() => {});
  await pair.logs.server.until(/not allowed/);
  assertEquals(samples((await get(pair.server, "/metrics")).body)['sluice_refused_total{status="403"}'], 1);
});

Deno.test("status: /metrics and /status have the user of a client", async () => {
  const activity = new Activity({});
  const [a, b] = await tcpPair();
  const [client, server] = [Session.client(a), Session.server(b)];
  activity.add(server);
  activity.setUser(server, "alice");
  const route = { kind: "connect", user: activity.userOf(server), forward: "web:80", from: "x", to: "web:80" } as const;
  activity.begin(route).countSent(7);
  const status = new StatusServer(FREE, activity, { end: "server", isReady: () => true, listeners: () => [] });
  const tunnel = { statusAddr: status.addr } as Tunnel;
  const labels = '{kind="connect",forward="web:80",user="alice"}';
  assertEquals(samples((await get(tunnel, "/metrics")).body)[`sluice_stream_sent_bytes_total${labels}`], 7);
  const { sessions, forwards } = JSON.parse((await get(tunnel, "/status")).body);
  assertEquals([sessions[0].user, forwards[0].user], ["alice", "alice"]);
  await status.close();
  await client.close();
  await server.closed;
});

Deno.test("status: promtool accepts /metrics of both ends", { ignore: !hasPrograms("promtool") }, async () => {
  await using busy = await makeBusy();
  for (const end of [busy.client, busy.server]) {
    const { body } = await get(end, "/metrics");
    assertEquals(text(await run("promtool", ["check", "metrics"], { input: bytes(body) })), "");
  }
});

Deno.test("formatMetrics() escapes label values, and omits labels without a value and metrics without samples", () => {
  const metric = { name: "sluice_x", help: "A gauge.", type: "gauge" } as const;
  const labels = { user: 'a"b\\c\nd', forward: undefined };
  assertEquals(
    formatMetrics([{ ...metric, samples: [] }, { ...metric, samples: [{ labels, value: 1.5 }, { value: 2 }] }]),
    '# HELP sluice_x A gauge.\n# TYPE sluice_x gauge\nsluice_x{user="a\\"b\\\\c\\nd"} 1.5\nsluice_x 2\n',
  );
});

Deno.test("status: /status has the version, the sessions, the listeners and the figures of stats()", async () => {
  await using busy = await makeBusy();
  const { client, server, echo } = busy;
  const { headers, body } = await get(server, "/status");
  assertEquals(headers.get("content-type"), "application/json");
  const { uptime, sessions, sent, received, forwards, ...rest } = JSON.parse(body);
  assert(Number.isInteger(uptime) && uptime >= 0 && uptime < 60, `${uptime}`);
  const [session] = sessions;
  assertEquals(sessions.length, 1);
  assertMatch(session.address, /^127\.0\.0\.1:\d+$/);
  assertMatch(session.since, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/);
  assertEquals(session.streams, 2);
  assertEquals([session.sent, session.received], [sent, received]);
  const counts = { connections: 1, reconnects: 0, streams: 2, open: 1, dropped: 0, refused: {} };
  const listener = { address: client.listenAddrs[2], to: session.address };
  assertEquals(rest, {
    ...{ version: VERSION, end: "server", ready: true, ...counts },
    listeners: [{ address: server.serverAddr }, listener],
  });
  assertEquals(forwards.map(({ kind, streams }: { kind: string; streams: number }) => [kind, streams]), [
    ["connect", 1],
    ["reverse", 1],
  ]);

  const here = JSON.parse((await get(client, "/status")).body);
  assertEquals(here.sessions[0].address, server.serverAddr);
  assertEquals(here.listeners, [
    { address: client.listenAddrs[0], to: echo.addr },
    { address: client.listenAddrs[1] },
    { address: client.listenAddrs[2], to: echo.addr },
  ]);
});

Deno.test("status: /status of a server loses a listener when its client has gone", async () => {
  await using server = serveTunnel({ listen: FREE, allowListen: ["*:*"], status: FREE });
  const client = await openTunnel({ connect: server.serverAddr, reverse: ["0=1"] });
  assertEquals(JSON.parse((await get(server, "/status")).body).listeners.length, 2);
  await client.shutdown();
  await eventually(async () => {
    const { listeners, sessions } = JSON.parse((await get(server, "/status")).body);
    return listeners.length === 1 && sessions.length === 0;
  });
});

Deno.test("status: /healthz of a client is 200 while it is connected, 503 while it is not", async () => {
  const [serving, options] = [new AbortController(), { target: "1", onError() {} }];
  const first = serveTunnel({ listen: FREE, ...options, signal: serving.signal });
  const log = makeLog();
  await using client = await openTunnel({ connect: first.serverAddr, status: FREE, ...log.options });
  const health = async () => {
    const { status, body } = await get(client, "/healthz");
    return [status, body];
  };
  assertEquals(await health(), [200, "ok\n"]);
  serving.abort();
  await first.finished;
  await log.until(/was lost/);
  assertEquals(await health(), [503, "not connected\n"]);
  await using _second = await listenAgain(() => serveTunnel({ listen: first.serverAddr, ...options }));
  await promptly(log.until("reconnected"));
  assertEquals(await health(), [200, "ok\n"]);
});

Deno.test("status: /healthz of a server is 200 while it listens, 503 while it shuts down", async () => {
  await using echo = makeEcho();
  const server = serveTunnel({ listen: FREE, target: echo.addr, status: FREE });
  const client = await openTunnel({ connect: server.serverAddr, forward: [FREE] });
  using connection = await dial(client.listenAddrs[0]!);
  assertEquals(await say(connection, "hello"), "hello");
  assertEquals((await get(server, "/healthz")).status, 200);
  const finished = server.shutdown();
  assertEquals((await get(server, "/healthz")).body, "not listening\n");
  connection.close();
  await client.shutdown();
  await finished;
  assertEquals(await isRefused(() => dial(server.statusAddr!)), true);
});

Deno.test("status: only GET and HEAD of its three pages are answered", async () => {
  await using server = serveTunnel({ listen: FREE, target: "1", status: FREE });
  for (const path of ["/", "/metrics/", "/status?x", "/healthz%20", "/../status"]) {
    const isPage = path.includes("?") || path.includes("..");
    assertEquals((await get(server, path)).status, isPage ? 200 : 404, path);
  }
  for (const method of ["POST", "PUT", "DELETE", "OPTIONS"]) {
    const { status, headers } = await get(server, "/status", { method });
    assertEquals([status, headers.get("allow")], [405, "GET, HEAD"]);
    assertEquals((await get(server, "/", { method })).status, 404);
  }
  for (const path of ["/metrics", "/status", "/healthz"]) {
    const [head, page] = [await get(server, path, { method: "HEAD" }), await get(server, path)];
    assertEquals([head.status, head.body], [200, ""]);
    for (const name of ["content-type", "cache-control"]) assertEquals(head.headers.get(name), page.headers.get(name));
    assertEquals(page.headers.get("cache-control"), "no-store");
  }
});

Deno.test("status: a loopback address answers only requests whose host is an IP address or localhost", async () => {
  await using server = serveTunnel({ listen: FREE, target: "1", status: FREE });
  const status = async (host: string) => {
    const answer = await ask(server, `GET /status HTTP/1.1\n${host}Connection: close\n\n`);
    return Number(/^HTTP\/1\.1 (\d+) /.exec(answer)?.[1]);
  };
  for (const host of ["127.0.0.1", "localhost", "LOCALHOST:80", "[::1]:9100", "192.0.2.1"]) {
    assertEquals(await status(`Host: ${host}\n`), 200, host);
  }
  for (const host of ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example:9100"]) {
    assertEquals(await status(`Host: ${host}\n`), 403, host);
  }
  const old = await ask(server, "GET /healthz HTTP/1.0\n\n");
  assertMatch(old, /^HTTP\/1\.0 200 /);
});

Deno.test("status: an address that other machines can reach requires insecure, at both ends", async () => {
  const message = 'status must be a loopback address, received "0.0.0.0:0": ' +
    "accepting connections from other machines requires insecure";
  const options = { listen: FREE, target: "1", status: "0.0.0.0:0" };
  assertThrows(() => serveTunnel(options), RangeError, message);
  const error = await openTunnel({ connect: "127.0.0.1:1", status: "0.0.0.0:0" }).catch((error) => error);
  assert(error instanceof RangeError);
  assertEquals(error.message, message);
  await using server = serveTunnel({ ...options, insecure: true });
  const [, port] = server.statusAddr!.split(":");
  using connection = await dial(`127.0.0.1:${port}`);
  await writeAll(connection, bytes("GET /healthz HTTP/1.1\r\nHost: scraped.example\r\nConnection: close\r\n\r\n"));
  assertMatch(text(await readAll(connection)), /^HTTP\/1\.1 200 /);
});

Deno.test("status: a malformed address and one in use are errors, and nothing is left listening", async () => {
  assertThrows(
    () => serveTunnel({ listen: FREE, target: "1", status: "nonsense" }),
    RangeError,
    'status must be HOST:PORT, [IPV6]:PORT, PORT or unix:PATH, received "nonsense"',
  );
  using taken = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const status = at(taken.addr);
  const message = `Cannot listen on ${status}: address in use`;
  assertThrows(() => serveTunnel({ listen: FREE, target: "1", status }), Error, message);
  await using server = serveTunnel({ listen: FREE, target: "1" });
  const error = await openTunnel({ connect: server.serverAddr, status }).catch((error) => error);
  assertEquals(error.message, message);
  assertEquals(server.statusAddr, undefined);
});

Deno.test("status: ends with the tunnel although a connection is idle or has sent half a request", async () => {
  const server = serveTunnel({ listen: FREE, target: "1", status: FREE });
  const idle = await dial(server.statusAddr!);
  await writeAll(idle, bytes("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"));
  await idle.read(new Uint8Array(1024));
  const half = await dial(server.statusAddr!);
  await writeAll(half, bytes("GET /healthz HTTP/1.1\r\nHost:"));
  await promptly(server.shutdown());
  for (const connection of [idle, half]) {
    assertEquals(await promptly(isEnded(connection)), true);
    connection.close();
  }
});

Deno.test("status: is served at Unix sockets", async () => {
  await using folder = await makeFolder("status");
  const path = `${folder.path}/status`;
  const server = serveTunnel({ listen: FREE, target: "1", status: `unix:${path}` });
  assertEquals(server.statusAddr, `unix:${path}`);
  const connection = await Deno.connect({ transport: "unix", path });
  await writeAll(connection, bytes("GET /healthz HTTP/1.1\r\nHost: any.example\r\nConnection: close\r\n\r\n"));
  assertMatch(text(await readAll(connection)), /^HTTP\/1\.1 200 /);
  connection.close();
  await server.shutdown();
  assertEquals(Array.from(Deno.readDirSync(folder.path)), []);
});

Deno.test("status: is served at IPv6 addresses", { ignore: !hasIpv6() }, async () => {
  await using other = serveTunnel({ listen: FREE, target: "1", status: "[::1]:0" });
  assertMatch(other.statusAddr!, /^\[::1\]:\d+$/);
  assertGreater(portOf(other.statusAddr!), 0);
  assertEquals((await get(other, "/healthz")).status, 200);
});

Deno.test("VERSION is that of deno.json", () => {
  assertEquals(VERSION, config.version);
});
