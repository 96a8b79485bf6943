/** A client with several servers: which one new connections use, and what remains when one is lost. */

import { assert, assertEquals, assertInstanceOf, assertMatch, assertRejects, assertStringIncludes } from "@std/assert";
import {
  checkTunnel,
  openTunnel,
  type OpenTunnelOptions,
  serveTunnel,
  type ServeTunnelOptions,
  type TunnelClient,
  TunnelRefusedError,
} from "../tunnel.ts";
import { loadConfig } from "../tunnel/config.ts";
import { makeFolder, watch } from "./programs.ts";
import { bytes, listenAgain, LOOPBACK, pattern, readAll, sha256, text } from "./support.ts";
import {
  at,
  changeDelays,
  dial,
  fetchFiles,
  FREE,
  isEnded,
  makeEcho,
  makeLog,
  makeProxy,
  makeTarget,
  nowhere,
  promptly,
  say,
  serveFiles,
} from "./tunnel_support.ts";
import { ask, bind, makeUdpTarget } from "./udp_support.ts";

const SCRIPT = new URL("../tunnel.ts", import.meta.url).href;

/** Starts a target that answers each connection with a name. */
const makeNamed = (name: string) => makeTarget(async (connection) => void await connection.write(bytes(name)));

/** Reads what a target sends by itself. */
async function nameAt(addr: string): Promise<string> {
  using connection = await dial(addr);
  return text(await readAll(connection));
}

const quiet = { onError() {}, onEvent() {} };

/** Starts a server whose fixed target is named, behind a proxy that can be stopped. */
function makeServer(name: string, options: Partial<ServeTunnelOptions> = {}) {
  const target = makeNamed(name);
  const fixed = options.allow ?? options.allowListen ?? options.users ? {} : { target: target.addr };
  const server = serveTunnel({ listen: FREE, ...fixed, ...quiet, ...options });
  const proxy = makeProxy(server.serverAddr);
  const dispose = async () => {
    await proxy.stop();
    await server.shutdown({ timeout: 1 });
    await target.close();
  };
  return { server, proxy, addr: proxy.addr, [Symbol.asyncDispose]: dispose };
}

/** Opens a client, with a log. */
async function open(connect: readonly string[], options: Omit<OpenTunnelOptions, "connect"> = {}) {
  const log = makeLog();
  const client = await openTunnel({ connect, ...log.options, ...options });
  const switched = (to: string, times = 1) => untilEvent(log, "switched", to, times);
  const reached = (to: string, times = 1) => untilEvent(log, "reached", to, times);
  return { client, log, switched, reached, [Symbol.asyncDispose]: () => client.shutdown({ timeout: 1 }) };
}

/** Waits for events that name a server. */
async function untilEvent(log: ReturnType<typeof makeLog>, type: "switched" | "reached", to: string, times: number) {
  const count = () => log.events.filter((event) => event.type === type && event.serverAddr === to).length;
  for (let seen = 1; count() < times; seen++) await promptly(log.until(type, seen));
}

Deno.test("openTunnel() with several servers forwards datagrams over the one in use, and each listens for reverse", async () => {
  await using echo = makeUdpTarget();
  const rules = { allow: ["udp:127.0.0.1:*"], allowListen: ["udp:127.0.0.1:*"] };
  await using a = makeServer("a", rules);
  await using b = makeServer("b", rules);
  const entry = `udp:${FREE}=${echo.addr}`;
  await using opened = await open([a.addr, b.addr], { forward: [entry], reverse: [entry], resume: false });
  const { client, log, switched } = opened;
  const bound = log.events.flatMap((event) => event.type === "bound" ? [event] : []);
  assertEquals(bound.map(({ serverAddr }) => serverAddr).sort(), [a.addr, b.addr].sort());
  using socket = bind();
  for (const { listenAddr } of bound) {
    assertMatch(listenAddr, /^udp:127\.0\.0\.1:[1-9]/);
    assertEquals(text(await promptly(ask(socket, bytes(listenAddr), listenAddr))), listenAddr);
  }
  const [addr] = client.listenAddrs;
  assertEquals(text(await promptly(ask(socket, bytes("first"), addr!))), "first");
  await a.proxy.stop();
  await switched(b.addr);
  assertEquals(text(await promptly(ask(socket, bytes("second"), addr!))), "second");
  assertEquals(client.listenAddrs[0], addr);
});

for (const version of [1, 2] as const) {
  Deno.test(`openTunnel() with several servers uses the first that is up, smux ${version}`, async () => {
    await using a = makeServer("a");
    await using b = makeServer("b");
    await using opened = await open([a.addr, b.addr], { forward: [FREE], version });
    const { client, log, switched, reached } = opened;
    await reached(a.addr);
    await reached(b.addr);
    await switched(a.addr);
    const [local] = client.listenAddrs as [string];
    assertEquals([client.serverAddr, await nameAt(local)], [a.addr, "a"]);

    await a.proxy.stop();
    await switched(b.addr);
    assertEquals([client.serverAddr, await nameAt(local)], [b.addr, "b"]);
    assertEquals(client.servers, [{ addr: a.addr, isUp: false }, { addr: b.addr, isUp: true }]);

    await a.proxy.start();
    await switched(a.addr, 2);
    assertEquals(await nameAt(local), "a");
    const switches = log.events.filter(({ type }) => type === "switched");
    assertEquals(switches.at(-1), { type: "switched", serverAddr: a.addr, formerAddr: b.addr });
    await client.shutdown();
  });
}

Deno.test("openTunnel() with several servers leaves open connections where they are", async () => {
  await using echo = makeEcho();
  await using other = makeEcho();
  await using a = makeServer("a", { allow: ["127.0.0.1:*"] });
  await using b = makeServer("b", { allow: ["127.0.0.1:*"] });
  await using opened = await open([a.addr, b.addr]);
  const { client, switched, reached } = opened;
  await reached(b.addr);
  await switched(a.addr);
  await a.proxy.stop();
  await switched(b.addr);
  using stream = await client.connect(echo.addr);
  assertEquals(await say(stream, "at b"), "at b");
  await a.proxy.start();
  await switched(a.addr, 2);
  using next = await client.connect(other.addr);
  assertEquals([await say(next, "at a"), await say(stream, "still")], ["at a", "still"]);
  assertEquals([a.server.stats().open, b.server.stats().open], [1, 1]);
});

Deno.test("openTunnel() with several servers fails over while files are downloaded, none of which is damaged", async () => {
  const web = serveFiles();
  const size = 4_000_000;
  const allow = [at(web.addr)];
  await using a = makeServer("a", { allow });
  await using b = makeServer("b", { allow });
  await using opened = await open([a.addr, b.addr], { forward: [`0=${at(web.addr)}`] });
  const { client, switched, reached } = opened;
  await reached(b.addr);
  await switched(a.addr);
  const [local] = client.listenAddrs as [string];
  // One that is in its middle when its server is lost, and continues when that is back.
  const response = await fetch(`http://${local}/${size}`, { headers: { connection: "close" } });
  const reader = response.body!.getReader();
  const chunks = [(await reader.read()).value!];
  await a.proxy.stop();
  await switched(b.addr);
  await promptly(fetchFiles(local, [1, 100_000, 1_000_000]));
  await a.proxy.start();
  for (let next = await reader.read(); !next.done; next = await reader.read()) chunks.push(next.value);
  const file = new Uint8Array(await new Blob(chunks).arrayBuffer());
  assertEquals([file.length, await sha256(file)], [size, await sha256(pattern(size, size))]);
  await client.shutdown();
  await web.shutdown();
});

Deno.test("openTunnel() with several servers refuses connections once all were away for wait, until one is back", async () => {
  await using a = makeServer("a");
  await using b = makeServer("b");
  await using opened = await open([a.addr, b.addr], { forward: [FREE], wait: 200 });
  const { client, log, reached } = opened;
  await reached(a.addr);
  await reached(b.addr);
  await using alone = await open([a.addr], { forward: [FREE], wait: 200 });
  const [local] = client.listenAddrs as [string];
  await a.proxy.stop();
  await log.until("suspended");
  await alone.log.until("suspended");
  // By then the first has been away for longer than `wait`.
  await promptly(untilRefused(alone.client.listenAddrs[0]!));
  assertEquals(await nameAt(local), "b");
  await b.proxy.stop();
  await log.until("suspended", 2);
  await promptly(untilRefused(local));
  await b.proxy.start();
  await promptly(log.until("resumed"));
  assertEquals(await nameAt(local), "b");
});

/** Waits until nothing listens at an address, whose connections are closed after a wait. */
async function untilRefused(addr: string): Promise<void> {
  for (;;) {
    try {
      using connection = await dial(addr);
      await isEnded(connection);
    } catch {
      return;
    }
  }
}

Deno.test("openTunnel() with several servers lets a connection wait until one of them is up", async () => {
  await using a = makeServer("a");
  await using b = makeServer("b");
  await using opened = await open([a.addr, b.addr], { forward: [FREE] });
  const { client, log, reached } = opened;
  await reached(a.addr);
  await reached(b.addr);
  await Promise.all([a.proxy.stop(), b.proxy.stop()]);
  await promptly(log.until("suspended", 2));
  const waiting = nameAt(client.listenAddrs[0]!);
  await b.proxy.start();
  assertEquals(await promptly(waiting), "b");
});

Deno.test("openTunnel() with several servers leaves out one that refuses the secret, and rejects if all do", async () => {
  await using echo = makeEcho();
  await using a = makeServer("a", { allow: [echo.addr], secret: "another" });
  await using b = makeServer("b", { allow: [echo.addr], secret: "sesame" });
  for (const retry of [false, true]) {
    await using opened = await open([a.addr, b.addr], { secret: "sesame", retry });
    const { client, log, switched } = opened;
    await switched(b.addr);
    await promptly(log.until(new RegExp(`^Cannot use ${a.addr}: .*secret`)));
    (await client.connect(echo.addr)).close();
    assertEquals(client.servers, [{ addr: a.addr, isUp: false }, { addr: b.addr, isUp: true }]);
    // It is tried again by an update.
    await a.server.update({ listen: a.server.serverAddr, allow: [echo.addr], secret: "sesame" });
    await client.update({ connect: [a.addr, b.addr], secret: "sesame", retry });
    await switched(a.addr);
    await a.server.update({ listen: a.server.serverAddr, allow: [echo.addr], secret: "another" });
  }
  const log = makeLog();
  const connect = [a.addr, b.addr];
  const opening = openTunnel({ connect, secret: "third", retry: true, ...log.options });
  const error = await assertRejects(() => promptly(opening), Error, "Cannot connect to any of 2 servers: ");
  assertInstanceOf(error.cause, TunnelRefusedError);
  assertEquals(log.errors.length, 2);
});

Deno.test("openTunnel() with several servers has reverse listened for at each, and again after a restart", async () => {
  await using named = makeNamed("behind");
  await using a = makeServer("a", { allowListen: ["127.0.0.1:*"] });
  const b = { listen: FREE, allowListen: ["127.0.0.1:*"], ...quiet };
  const stop = new AbortController();
  const first = serveTunnel({ ...b, signal: stop.signal });
  const { serverAddr } = first;
  await using opened = await open([a.addr, serverAddr], { reverse: [`0=${named.addr}`] });
  const { client, log } = opened;
  await promptly(log.until("bound", 2));
  const bound = () => log.events.filter((event) => event.type === "bound");
  assertEquals(bound().map(({ serverAddr }) => serverAddr).sort(), [a.addr, serverAddr].sort());
  for (const { listenAddr, to } of bound()) assertEquals([await nameAt(listenAddr), to], ["behind", named.addr]);
  const atA = bound().find(({ serverAddr }) => serverAddr === a.addr)!.listenAddr;
  assertEquals(client.listenAddrs, [atA]);

  stop.abort();
  await first.finished;
  await using _second = await listenAgain(() => serveTunnel({ ...b, listen: serverAddr }));
  await promptly(log.until("bound", 3));
  assertEquals(bound()[2]!.serverAddr, serverAddr);
  assertEquals([await nameAt(bound()[2]!.listenAddr), await nameAt(atA)], ["behind", "behind"]);
  // While the preferred one is away, the list has the address at the other.
  await a.proxy.stop();
  await promptly(log.until("suspended"));
  assertEquals(client.listenAddrs, [bound()[2]!.listenAddr]);
});

Deno.test("openTunnel() with several servers is not delayed by one that accepts and is silent", async () => {
  await using b = makeServer("b");
  const silent = Deno.listen(LOOPBACK);
  const accepted: Deno.Conn[] = [];
  const accepting = (async () => {
    for await (const connection of silent) accepted.push(connection);
  })();
  for (const retry of [false, true]) {
    const opening = open([at(silent.addr), b.addr], { forward: [FREE], connectTimeout: 60_000, retry });
    await using opened = await promptly(opening);
    assertEquals(await promptly(nameAt(opened.client.listenAddrs[0]!)), "b");
    // It ends at once, too.
    await promptly(opened.client.shutdown());
  }
  silent.close();
  await accepting;
  for (const connection of accepted) connection.close();
});

Deno.test("openTunnel() with several servers waits a moment for those before the first that has answered", async () => {
  await using a = makeServer("a");
  await using b = makeServer("b");
  const late = Deno.listen(LOOPBACK);
  // It accepts only when the other has answered.
  const reached = Promise.withResolvers<void>();
  const accepting = (async () => {
    await reached.promise;
    const [accepted, dialled] = [await late.accept(), await dial(a.server.serverAddr)];
    late.close();
    const copying = [accepted.readable.pipeTo(dialled.writable), dialled.readable.pipeTo(accepted.writable)];
    await Promise.allSettled(copying);
  })();
  const onEvent: OpenTunnelOptions["onEvent"] = ({ type }) => type === "reached" && reached.resolve();
  using _delays = changeDelays((delay) => delay === 250 ? 60_000 : delay);
  const client = await promptly(openTunnel({ connect: [at(late.addr), b.addr], onEvent, reconnect: false }));
  assertEquals(client.serverAddr, at(late.addr));
  await client.shutdown();
  await accepting;
});

Deno.test("openTunnel() with several servers uses one that refuses to listen for forward", async () => {
  await using named = makeNamed("named");
  await using a = makeServer("a", { allow: [named.addr] });
  await using b = makeServer("b", { allow: [named.addr], allowListen: ["127.0.0.1:*"] });
  await using opened = await open([a.addr, b.addr], { forward: [`0=${named.addr}`], reverse: [`0=${named.addr}`] });
  const { client, log } = opened;
  await promptly(log.until(new RegExp(`^Cannot use ${a.addr}: .*not allowed$`)));
  await promptly(log.until(new RegExp(`^Reverse forward \\S+ at ${a.addr} failed: `)));
  assertEquals(client.servers.map(({ isUp }) => isUp), [true, true]);
  assertEquals(client.serverAddr, a.addr);
  assertEquals(await Promise.all(client.listenAddrs.map(nameAt)), ["named", "named"]);
  assertEquals([a, b].map(({ server }) => server.stats().streams), [1, 1]);
});

Deno.test("TunnelClient.shutdown() with several servers does not wait for one that is lost and has no connection", async () => {
  await using echo = makeEcho();
  const options = { allow: [echo.addr], allowListen: ["127.0.0.1:*"] };
  await using a = makeServer("a", options);
  await using b = makeServer("b", options);
  const places = { forward: [`0=${echo.addr}`], reverse: [`0=${echo.addr}`] };
  await using opened = await open([a.addr, b.addr], places);
  const { client, log } = opened;
  await promptly(log.until("bound", 2));
  await a.proxy.stop();
  await log.until("suspended");
  const connection = await dial(client.listenAddrs[0]!);
  assertEquals(await say(connection, "hello"), "hello");
  const ending = client.shutdown();
  assertEquals(await say(connection, "still"), "still");
  connection.close();
  await promptly(ending);
});

/** Starts a proxy that can stop forwarding without closing a connection. */
function makeFreezer(to: string) {
  const listener = Deno.listen(LOOPBACK);
  const open: Deno.TcpConn[] = [];
  let isFrozen = false;
  const copy = async (from: Deno.TcpConn, into: Deno.TcpConn) => {
    const p = new Uint8Array(65536);
    for (let n = await from.read(p); n !== null; n = await from.read(p)) {
      if (!isFrozen) await into.write(p.slice(0, n));
    }
  };
  const running = (async () => {
    for await (const accepted of listener) {
      const dialled = await dial(to);
      open.push(accepted, dialled);
      for (const copying of [copy(accepted, dialled), copy(dialled, accepted)]) copying.catch(() => {});
    }
  })();
  const dispose = async () => {
    listener.close();
    await running;
    for (const connection of open) connection.close();
  };
  return { addr: at(listener.addr), freeze: () => isFrozen = true, [Symbol.asyncDispose]: dispose };
}

Deno.test("TunnelClient.connect() asks the next server when the first is silent, before it has answered", async () => {
  await using echo = makeEcho();
  await using a = makeServer("a", { allow: [echo.addr] });
  await using b = makeServer("b", { allow: [echo.addr] });
  await using freezer = makeFreezer(a.server.serverAddr);
  await using opened = await open([freezer.addr, b.addr], { timeout: 900, keepAliveInterval: 300 });
  const { client, reached, switched } = opened;
  await reached(b.addr);
  await switched(freezer.addr);
  freezer.freeze();
  using stream = await promptly(client.connect(echo.addr));
  assertEquals(await say(stream, "at b"), "at b");
  assertEquals([a.server.stats().streams, b.server.stats().streams], [0, 1]);
});

Deno.test("TunnelClient.connect() with several servers returns the refusal of a target, and does not ask the next", async () => {
  await using echo = makeEcho();
  await using a = makeServer("a", { allow: ["127.0.0.1:1"] });
  await using b = makeServer("b", { allow: [echo.addr] });
  await using opened = await open([a.addr, b.addr]);
  await opened.reached(b.addr);
  await opened.switched(a.addr);
  await assertRejects(() => opened.client.connect(echo.addr), TunnelRefusedError);
  assertEquals(b.server.stats().streams, 0);
});

Deno.test("TunnelClient.update() adds, reorders and removes servers, and connections at those that stay continue", async () => {
  await using echo = makeEcho();
  const allow = ["127.0.0.1:*"];
  const allowListen = allow;
  await using named = makeNamed("behind");
  const atA = makeLog();
  await using a = makeServer("a", { allow, allowListen, ...atA.options });
  await using b = makeServer("b", { allow, allowListen });
  await using opened = await open([a.addr], {});
  const { client, log, switched, reached } = opened;
  using stream = await client.connect(echo.addr);
  assertEquals(await say(stream, "one"), "one");
  const reverse = [`0=${named.addr}`];
  await client.update({ connect: [a.addr, b.addr], reverse });
  await reached(b.addr);
  await promptly(log.until("bound", 2));
  assertEquals(client.serverAddr, a.addr);
  const ports = log.events.flatMap((event) => event.type === "bound" ? [event.listenAddr] : []);
  assertEquals(await Promise.all(ports.map(nameAt)), ["behind", "behind"]);

  await client.update({ connect: [b.addr, a.addr], reverse });
  await switched(b.addr);
  assertEquals([client.serverAddr, await say(stream, "two")], [b.addr, "two"]);
  assertEquals(await Promise.all(ports.map(nameAt)), ["behind", "behind"]);
  assertEquals(log.events.filter(({ type }) => type === "bound").length, 2);

  await client.update({ connect: b.addr, reverse });
  assertEquals(client.servers, [{ addr: b.addr, isUp: true }]);
  assertEquals(await say(stream, "three"), "three");
  stream.close();
  for (let n = 1; !atA.finished.some(({ kind }) => kind === "connect"); n++) await promptly(atA.until("finished", n));
  // None of the new ones can be reached: nothing changes.
  const change = client.update({ connect: [nowhere(), nowhere()], reverse });
  await assertRejects(() => promptly(change), Error, "Cannot connect to any of 2 servers");
  assertEquals([client.serverAddr, log.errors.length], [b.addr, 2]);
  // All are new.
  await client.update({ connect: [a.addr, nowhere()], reverse });
  assertEquals(client.serverAddr, a.addr);
});

Deno.test("openTunnel() with several servers connects to those that come later, and rejects if none is there", async () => {
  const [here, there] = [nowhere(), nowhere()];
  const log = makeLog();
  const opening = openTunnel({ connect: [here, there], ...log.options });
  await assertRejects(() => promptly(opening), Error, "Cannot connect to any of 2 servers: ");
  assertEquals(log.errors.length, 2);

  await using named = makeNamed("named");
  const options = { target: named.addr, ...quiet };
  await using second = serveTunnel({ ...options, listen: there });
  for (const retry of [false, true]) {
    await using opened = await open([here, there], { forward: [FREE], retry });
    assertEquals(opened.client.serverAddr, second.serverAddr);
    await using first = await listenAgain(() => serveTunnel({ ...options, listen: here }));
    await opened.switched(here);
    assertEquals(await nameAt(opened.client.listenAddrs[0]!), "named");
    await opened.client.shutdown();
    await first.shutdown();
  }
});

Deno.test("openTunnel() with several servers and without reconnect ends when the last is lost", async () => {
  const servers = [1, 2].map(() => serveTunnel({ listen: FREE, target: nowhere(), ...quiet }));
  const connect = servers.map(({ serverAddr }) => serverAddr);
  await using opened = await open(connect, { reconnect: false, resume: false });
  const { client, log, reached, switched } = opened;
  for (const addr of connect) await reached(addr);
  await servers[0]!.shutdown();
  await switched(connect[1]!);
  await promptly(log.until(/was lost/));
  await servers[1]!.shutdown();
  await assertRejects(() => promptly(client.finished), Error, `The connection to ${connect[1]} was lost`);
});

Deno.test("openTunnel() rejects an empty list of servers, and one that is listed twice", async () => {
  const cases: [connect: string[], message: string][] = [
    [[], "connect must contain at least one server, received []"],
    [["localhost:1", "1", "127.0.0.1:1"], "connect must contain each server only once, received 127.0.0.1:1 twice"],
    [["1", "nowhere"], 'connect must be HOST:PORT, [IPV6]:PORT, PORT or unix:PATH, received "nowhere"'],
  ];
  for (const [connect, message] of cases) {
    await assertRejects(() => openTunnel({ connect }), RangeError, message);
  }
});

Deno.test("status: a client reports each of its servers", async () => {
  await using a = makeServer("a");
  await using b = makeServer("b");
  await using opened = await open([a.addr, b.addr], { status: FREE });
  const { client, log, reached } = opened;
  await reached(a.addr);
  await reached(b.addr);
  const get = async (path: string) => {
    const response = await fetch(`http://${client.statusAddr}${path}`, { headers: { connection: "close" } });
    return await response.text();
  };
  await a.proxy.stop();
  await log.until("suspended");
  const { servers, ready } = JSON.parse(await get("/status"));
  assertEquals([servers, ready], [[{ addr: a.addr, isUp: false }, { addr: b.addr, isUp: true }], true]);
  const metrics = await get("/metrics");
  assertStringIncludes(metrics, `sluice_server_up{server="${a.addr}"} 0\nsluice_server_up{server="${b.addr}"} 1\n`);
  await b.proxy.stop();
  await log.until("suspended", 2);
  assertEquals(await get("/healthz"), "not connected\n");
});

/** Requests an echo again and again until stopped; returns the number of echoes. */
async function keepAsking(client: TunnelClient, target: string, kills: () => number, isDone: () => boolean) {
  let echoes = 0;
  while (!isDone()) {
    const before = kills();
    // Never rejects: another server is asked while one is away.
    const stream = await client.connect(target);
    try {
      assertEquals(await say(stream, "hello"), "hello");
      echoes++;
    } catch (error) {
      assert(kills() > before, `an echo failed without a killed server: ${error}`);
    } finally {
      stream.close();
    }
  }
  return echoes;
}

for (const resume of [true, false]) {
  const title = `with three servers, ${resume ? "with" : "without"} resume`;
  Deno.test(`openTunnel() ${title}, loses only connections of the killed one under a rolling restart`, async () => {
    const echo = Deno.listen(LOOPBACK);
    const echoing = (async () => {
      for await (const connection of echo) connection.readable.pipeTo(connection.writable).catch(() => {});
    })();
    const target = at(echo.addr);
    const start = (listen: string) => {
      const stop = new AbortController();
      const server = serveTunnel({ listen, allow: [target], signal: stop.signal, ...quiet });
      return { server, stop };
    };
    const running = [1, 2, 3].map(() => start(FREE));
    const connect = running.map(({ server }) => server.serverAddr);
    await using opened = await open(connect, { resume });
    const { client, reached, log } = opened;
    for (const addr of connect) await reached(addr);
    let [kills, isDone] = [0, false];
    const asking = Promise.all([1, 2, 3].map(() => keepAsking(client, target, () => kills, () => isDone)));
    const all = async () => {
      for (let round = 0; round < 2; round++) {
        for (const [n, addr] of connect.entries()) {
          const { stop, server } = running[n]!;
          kills++;
          if (round === 0) stop.abort(new Error("killed"));
          else server.shutdown({ timeout: 1000 });
          await server.finished;
          const before = log.events.filter(({ type }) => type === "reconnected").length;
          running[n] = await listenAgain(() => start(addr));
          await promptly(log.until("reconnected", before + 1));
        }
      }
    };
    await all().finally(() => isDone = true);
    const echoes = await asking;
    assert(echoes.every((count) => count > 10), `${echoes}`);
    await client.shutdown();
    await Promise.all(running.map(({ server }) => server.shutdown()));
    echo.close();
    await echoing;
  });
}

Deno.test("checkTunnel() checks each of several servers, and names it", async () => {
  await using a = makeServer("a", { allow: ["127.0.0.1:*"], secret: "another" });
  await using b = makeServer("b", { allow: ["127.0.0.1:*"], secret: "sesame" });
  const connect = [a.addr, b.addr];
  const checks = await Array.fromAsync(checkTunnel({ connect, secret: "sesame" }));
  const failed = checks.filter(({ isOk }) => !isOk).map(({ name }) => name);
  assertEquals(failed, [`${a.addr}: secret`]);
  assertEquals(checks.at(-1)!.name, `${b.addr}: upload`);
});

Deno.test("loadConfig() accepts a text or a list as connect", async () => {
  await using folder = await makeFolder("servers");
  const file = `${folder.path}/sluice.json`;
  const load = async (connect: unknown) => {
    await Deno.writeTextFile(file, JSON.stringify({ client: { connect, forward: ["8080=80"] } }));
    const { config, mistakes } = loadConfig(file);
    return config?.client?.connect ?? mistakes.map((mistake) => mistake.replace(/^.*?:\d+:\d+: /, ""));
  };
  assertEquals(await load("localhost:1"), "localhost:1");
  assertEquals(await load(["localhost:1", "2"]), ["localhost:1", "2"]);
  assertEquals(await load(["localhost:1", 2]), ["client.connect[1] must be a text, received 2"]);
  assertEquals(await load(["1", "1"]), [
    "client.connect must contain each server only once, received 127.0.0.1:1 twice",
  ]);
});

/** Starts the command in a process of its own. */
const start = (...args: string[]) =>
  watch(
    new Deno.Command(Deno.execPath(), {
      args: ["run", "--no-config", "--no-prompt", "-A", SCRIPT, ...args],
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
      env: { NO_COLOR: "1" },
    }).spawn(),
  );

async function startServer(listen = "0") {
  const server = start("server", "--listen", listen, "--allow", "127.0.0.1:*", "--allow-listen", "127.0.0.1:*");
  const [, addr] = await server.until(/^listening on (\S+)$/m);
  return { ...server, addr: addr! };
}

for (const isFile of [false, true]) {
  const title = isFile ? "a configuration file" : "--connect repeated";
  Deno.test(`tunnel command: several servers, by ${title}`, async () => {
    await using named = makeNamed("named");
    await using folder = await makeFolder("servers");
    await using a = await startServer();
    await using b = await startServer();
    const asked = { connect: [a.addr, b.addr], forward: [`0=${named.addr}`], reverse: [`0=${named.addr}`] };
    const file = `${folder.path}/sluice.json`;
    await Deno.writeTextFile(file, JSON.stringify({ client: asked }));
    const options = Object.entries(asked).flatMap(([name, values]) => values.flatMap((value) => [`--${name}`, value]));
    await using client = start(...isFile ? ["client", "--config", file] : ["client", ...options]);
    const [, local] = await client.until(/^listening on (\S+)$/m);
    await client.until(new RegExp(`^new connections use ${a.addr}$`, "m"));
    for (const { addr } of [a, b]) {
      const [, listenAddr] = await client.until(new RegExp(`^listening on (\\S+) at ${addr}$`, "m"));
      assertEquals(await nameAt(listenAddr!), "named");
    }
    a.child.kill("SIGKILL");
    await client.until(new RegExp(`^new connections use ${b.addr}$`, "m"));
    assertEquals(await nameAt(local!), "named");
    client.child.kill("SIGTERM");
    const { code, stdout } = await client.ended();
    assertEquals(code, 0);
    assertMatch(stdout, /^forwarded 3 streams over 2 connections$/m);
  });
}

Deno.test("tunnel command: exits when none of several servers can be reached with --no-retry, and checks each", async () => {
  await using server = await startServer();
  const [here, there] = [nowhere(), nowhere()];
  await using client = start("client", "--connect", here, "--connect", there, "--forward", "0=80", "--no-retry");
  const { code, stderr } = await client.ended();
  assertEquals(code, 1);
  for (const addr of [here, there]) assertMatch(stderr, new RegExp(`^cannot connect to ${addr}: `, "m"));
  assertMatch(stderr, /^cannot connect to any of 2 servers: /m);

  await using check = start("check", "--connect", here, "--connect", server.addr);
  const checked = await check.ended();
  assertEquals(checked.code, 1);
  assertStringIncludes(checked.stdout, `${here}: TCP`);
  assertStringIncludes(checked.stdout, `${server.addr}: upload`);
  assertMatch(checked.stderr, new RegExp(`^check failed: ${here}: TCP$`, "m"));
});
