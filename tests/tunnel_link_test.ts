/** The connection of a tunnel's client to its server: retries, resumption, and what happens meanwhile. */

import {
  assertEquals,
  assertGreater,
  assertGreaterOrEqual,
  assertInstanceOf,
  assertLessOrEqual,
  assertMatch,
  assertRejects,
} from "@std/assert";
import { join, serve } from "../mod.ts";
import { openTunnel, serveTunnel, TunnelRefusedError } from "../tunnel.ts";
import { MAX_CUT_STARTS } from "../tunnel/link.ts";
import { backoff } from "../tunnel/wait.ts";
import { freePort, listenAgain, LOOPBACK, readAll, text, writeAll } from "./support.ts";
import {
  askSocks,
  at,
  dial,
  FREE,
  holdTimers,
  IPV4,
  isEnded,
  makeEcho,
  makeLog,
  makeProxy,
  makeTarget,
  nowhere,
  portOf,
  promptly,
  say,
  socksRequest,
} from "./tunnel_support.ts";

const TLS = new URL("./fixtures/tls/", import.meta.url);
const readTls = (name: string) => Deno.readTextFileSync(new URL(name, TLS));

/** Whether connections to an address are refused, instead of being accepted and closed. */
async function refuses(addr: string): Promise<boolean> {
  try {
    (await dial(addr)).close();
    return false;
  } catch (error) {
    // Reset: the listener was closed before it accepted the connection.
    if (error instanceof Deno.errors.ConnectionReset) return false;
    assertInstanceOf(error, Deno.errors.ConnectionRefused);
    return true;
  }
}

/** Starts an echo, a server that allows it, a proxy to the server, and a client behind the proxy. */
async function makeProxied(options: { version?: 1 | 2; wait?: number; resume?: boolean; reconnect?: boolean } = {}) {
  const echo = makeEcho();
  const logs = { server: makeLog(), client: makeLog() };
  const server = serveTunnel({
    listen: FREE,
    allow: ["127.0.0.1:*"],
    allowListen: ["127.0.0.1:*"],
    ...logs.server.options,
  });
  const proxy = makeProxy(server.serverAddr);
  const client = await openTunnel({
    connect: proxy.addr,
    forward: [`${FREE}=${echo.addr}`],
    socks: [FREE],
    reverse: [`${FREE}=${echo.addr}`],
    ...logs.client.options,
    ...options,
  });
  const dispose = async () => {
    await client.shutdown({ timeout: 1000 });
    await server.shutdown({ timeout: 1000 });
    await proxy.stop();
    await echo.close();
  };
  return { echo, server, proxy, client, logs, [Symbol.asyncDispose]: dispose };
}

/** Replaces `Deno.connect` until it is disposed of. */
function replaceConnect(replaced: (connect: () => Promise<Deno.TcpConn>) => Promise<Deno.TcpConn>): Disposable {
  const { connect } = Deno;
  const replacement = (options: Deno.ConnectOptions) => replaced(() => connect(options));
  Deno.connect = replacement as typeof connect;
  return { [Symbol.dispose]: () => void (Deno.connect = connect) };
}

/** Starts a listener that cuts the first connections at their first byte, and joins the others with the server. */
function makeCutting(serverAddr: string, count: number) {
  const listener = Deno.listen(LOOPBACK);
  const accepted: Deno.TcpConn[] = [];
  const forwarding = (async () => {
    for await (const near of listener) {
      accepted.push(near);
      if (accepted.length <= count) {
        await near.read(new Uint8Array(1));
        near.close();
      } else {
        join(near, await dial(serverAddr.replace("ws://", ""))).catch(() => {});
      }
    }
  })();
  const dispose = async () => {
    listener.close();
    await forwarding.catch(() => {});
  };
  return { addr: at(listener.addr), accepted, [Symbol.asyncDispose]: dispose };
}

Deno.test("backoff() doubles its delays up to the maximum, and shortens each by a random part of its half", () => {
  const longest = [100, 200, 400, 800, 1000, 1000];
  const clients = Array.from({ length: 100 }, () => {
    const delays = backoff(1000);
    return longest.map(() => delays.next().value);
  });
  for (const [n, most] of longest.entries()) {
    const delays = clients.map((client) => client[n]!);
    for (const delay of delays) {
      assertLessOrEqual(delay, most);
      assertGreaterOrEqual(delay, most / 2);
    }
    assertGreater(new Set(delays).size, 50); // clients that were lost at once do not come back at once
  }
});

Deno.test("openTunnel() without retry connects although its first connections are cut in the handshake", async () => {
  const [cert, key, ca] = [readTls("localhost.pem"), readTls("localhost.key"), readTls("ca.pem")];
  await using echo = makeEcho();
  const ways = [["tcp", "", {}], ["tls", "", { cert, key }], ["WebSocket", "ws://", {}]] as const;
  for (const [name, scheme, served] of ways) {
    const listen = `${scheme}${FREE}`;
    await using server = serveTunnel({ listen, allow: [echo.addr], onError() {}, ...served });
    await using cutting = makeCutting(server.serverAddr, 2);
    const connect = `${scheme}${cutting.addr}`;
    const log = makeLog();
    const client = await openTunnel({ connect, reconnect: false, ...name === "tls" && { ca }, ...log.options });
    const stream = await client.connect(echo.addr);
    assertEquals(await say(stream, name), name);
    stream.close();
    await client.shutdown();
    assertGreater(cutting.accepted.length, 2);
  }
});

Deno.test("openTunnel() without retry rejects if each of its first connections is cut in the handshake", async () => {
  const [always, web] = [makeCutting("", Infinity), makeCutting("", Infinity)];
  await using _always = always;
  await using _web = web;
  const options = { socks: [FREE], onError() {} };
  const open = (connect: string) => promptly(openTunnel({ connect, ...options }));
  await assertRejects(() => open(always.addr), Error, "was lost");
  await assertRejects(() => open(`ws://${web.addr}`), Error, "closed the connection");
  assertEquals(web.accepted.length, 1 + MAX_CUT_STARTS);
  // Only a connection that was cut is made again, not one that is refused.
  const port = freePort();
  const log = makeLog();
  await assertRejects(() => openTunnel({ connect: `${port}`, socks: [FREE], ...log.options }), Error, "refused");
  assertEquals(log.errors, []);
});

Deno.test("openTunnel() resumes although its first hello was cut, which looks like a server without resuming", async () => {
  // With an entry of `forward` the client sends a request first.
  for (const [version, forward] of [[1, []], [2, [FREE]], [2, [`${FREE}=${FREE.replace(":0", ":1")}`]]] as const) {
    await using echo = makeEcho();
    await using server = serveTunnel({ listen: FREE, allow: [echo.addr], onError() {} });
    await using cutting = makeCutting(server.serverAddr, 1);
    const log = makeLog();
    const client = await openTunnel({ connect: cutting.addr, version, forward, ...log.options });
    const stream = await client.connect(echo.addr);
    assertEquals(await say(stream, "before"), "before");
    cutting.accepted.at(-1)!.close();
    assertEquals(await say(stream, "after"), "after");
    assertEquals(log.typesOf(), ["suspended", "resumed"]);
    stream.close();
    await client.shutdown();
  }
});

Deno.test("openTunnel() with retry connects once the server is there", async () => {
  const port = freePort();
  const log = makeLog();
  const opening = openTunnel({ connect: `${port}`, socks: [FREE], retry: true, ...log.options });
  await log.until(/^Cannot connect to /);
  const server = serveTunnel({ listen: `${port}`, allow: ["127.0.0.1:*"] });
  const client = await promptly(opening);
  assertEquals(client.listenAddrs.length, 1);
  await client.shutdown();
  await server.shutdown();
});

Deno.test("openTunnel() with retry reports equal failures once", async () => {
  const log = makeLog();
  const third = Promise.withResolvers<void>();
  let attempts = 0;
  // The reply of a server that is busy begins with this byte.
  const busy = makeTarget(async (connection) => {
    if (++attempts === 3) third.resolve();
    await writeAll(connection, new Uint8Array([0xd5]));
  });
  const stop = new AbortController();
  const opening = openTunnel({ connect: busy.addr, socks: [FREE], retry: true, signal: stop.signal, ...log.options });
  await promptly(third.promise);
  stop.abort(new Error("enough"));
  await assertRejects(() => promptly(opening), Error, "enough");
  assertEquals(log.messages(), [`${busy.addr} does not accept the connection: too many are waiting`]);
  await busy.close();
});

Deno.test("openTunnel() with retry rejects at once for an address in use, before the server is there", async () => {
  using taken = Deno.listen(LOOPBACK);
  const opening = openTunnel({ connect: `${freePort()}`, socks: [at(taken.addr)], retry: true, onError() {} });
  await assertRejects(() => promptly(opening), Error, "address in use");
});

Deno.test("openTunnel() with retry ends by its signal while the server is not there", async () => {
  const log = makeLog();
  const stop = new AbortController();
  const options = { connect: `${freePort()}`, socks: [FREE], retry: true, signal: stop.signal };
  const opening = openTunnel({ ...options, ...log.options });
  await log.until(/^Cannot connect to /);
  stop.abort(new Error("enough"));
  await assertRejects(() => promptly(opening), Error, "enough");
});

Deno.test("openTunnel() with retry waits for a reverse address that is in use", async () => {
  const log = makeLog();
  const taken = Deno.listen(LOOPBACK);
  await using server = serveTunnel({ listen: FREE, allowListen: ["127.0.0.1:*"], onError() {} });
  const reverse = [`${at(taken.addr)}=1`];
  const opening = openTunnel({ connect: server.serverAddr, reverse, retry: true, ...log.options });
  await log.until(/address in use/);
  taken.close();
  await using client = await promptly(opening);
  assertEquals(client.listenAddrs, [at(taken.addr)]);
});

Deno.test("openTunnel() rejects at once, with retry too, when the server refuses the secret", async () => {
  await using server = serveTunnel({ listen: FREE, allow: ["127.0.0.1:*"], secret: "right", onError() {} });
  for (const secret of ["wrong", undefined]) {
    for (const asked of [{ socks: [FREE] }, { forward: [`${FREE}=127.0.0.1:1`] }, { reverse: [`${FREE}=1`] }]) {
      const log = makeLog();
      const opening = openTunnel({ connect: server.serverAddr, secret, retry: true, ...asked, ...log.options });
      const error = await assertRejects(() => promptly(opening), TunnelRefusedError);
      assertEquals(error.status, 407);
      assertEquals(log.messages(), []);
    }
  }
});

Deno.test("openTunnel() names the protocol of a server that does not speak smux", async () => {
  const cases: [RegExp, Uint8Array | "tls"][] = [
    [/ expects TLS: use tls, or ca for its certificate$/, "tls"],
    [
      / does not speak smux: its answer begins with "HTTP\/1\.1"$/,
      new TextEncoder().encode("HTTP/1.1 400 Bad\r\n\r\n"),
    ],
    [/ does not speak smux: its answer begins with "SSH-2\.0-"$/, new TextEncoder().encode("SSH-2.0-Server\r\n")],
    [/ does not speak smux: its answer begins with "\?"$/, new Uint8Array([0])],
  ];
  for (const [message, answer] of cases) {
    const server = answer === "tls"
      ? serveTunnel({
        listen: FREE,
        target: "1",
        cert: readTls("localhost.pem"),
        key: readTls("localhost.key"),
        onError() {},
      })
      : undefined;
    const target = makeTarget(async (connection) => {
      if (answer !== "tls") await writeAll(connection, answer);
      await connection.read(new Uint8Array(100));
    });
    const opening = openTunnel({ connect: server?.serverAddr ?? target.addr, forward: [FREE], retry: true });
    assertMatch((await assertRejects(() => promptly(opening), Error)).message, message);
    await server?.shutdown();
    await target.close();
  }
});

Deno.test("openTunnel() serves forwarded connections over a server that does not resume, and reports that once", async () => {
  const log = makeLog();
  const listener = Deno.listen(LOOPBACK);
  const server = serve(listener, (stream) => stream.readable.pipeTo(stream.writable), { onError() {} });
  const client = await openTunnel({ connect: at(listener.addr), forward: [FREE], ...log.options });
  const connection = await dial(client.listenAddrs[0]!);
  assertEquals(await say(connection, "hello"), "hello");
  connection.close();
  assertEquals(log.typesOf(), ["unresumable"]);
  await client.shutdown();
  await server.shutdown();
});

for (const version of [1, 2] as const) {
  Deno.test(`tunnel: version ${version}: connections of each kind continue after the connection below is cut`, async () => {
    await using all = await makeProxied({ version });
    const { client, proxy, logs, echo } = all;
    const [forward, socks, reverse] = client.listenAddrs as [string, string, string];
    for (const addr of [forward, socks, reverse]) {
      using connection = await dial(addr);
      if (addr === socks) {
        assertEquals(await askSocks(connection, socksRequest(1, 1, IPV4, portOf(echo.addr))), 0);
      }
      assertEquals(await say(connection, "before"), "before");
      proxy.cut();
      assertEquals(await promptly(say(connection, "after")), "after");
    }
    assertEquals(logs.client.messages(), []);
    assertEquals(logs.client.typesOf(), Array.from({ length: 3 }, () => ["suspended", "resumed"]).flat());
  });
}

Deno.test("tunnel: a connection that begins while the server cannot be reached waits for it", async () => {
  await using all = await makeProxied();
  const { client, proxy, logs } = all;
  await proxy.stop();
  await logs.client.until("suspended");
  using connection = await dial(client.listenAddrs[0]!);
  await writeAll(connection, new TextEncoder().encode("typed"));
  await proxy.start();
  const p = new Uint8Array(16);
  assertEquals(text(p.subarray(0, (await promptly(connection.read(p)))!)), "typed");
});

Deno.test("tunnel: local addresses refuse connections once the server was away for wait, until it is back", async () => {
  for (const resume of [true, false]) {
    await using all = await makeProxied({ wait: 50, resume });
    const { client, proxy, logs } = all;
    const [forward] = client.listenAddrs as [string];
    assertEquals(await refuses(forward), false);
    await proxy.stop();
    await logs.client.until(resume ? "suspended" : /was lost/);
    // A connection that waits ends when the time is over, and the client has stopped listening by then.
    using waiting = await dial(forward);
    assertEquals(await promptly(isEnded(waiting)), true);
    assertEquals(await refuses(forward), true);
    await proxy.start();
    await logs.client.until(resume ? "resumed" : "reconnected");
    using connection = await dial(forward);
    assertEquals(await promptly(say(connection, "again")), "again");
    assertEquals(client.listenAddrs[0], forward);
  }
});

Deno.test("TunnelClient.connect() rejects after wait when the server cannot be reached", async () => {
  await using all = await makeProxied({ wait: 50 });
  const { client, proxy, logs, echo } = all;
  await proxy.stop();
  await logs.client.until("suspended");
  const began = performance.now();
  await assertRejects(() => client.connect(echo.addr), Error, "Cannot open a stream: not connected to");
  assertGreater(performance.now() - began, 45);
});

Deno.test("openTunnel() without resume ends forwarded connections when the connection is lost", async () => {
  await using all = await makeProxied({ resume: false });
  const { client, proxy, logs } = all;
  using connection = await dial(client.listenAddrs[0]!);
  assertEquals(await say(connection, "before"), "before");
  proxy.cut();
  assertEquals(await promptly(isEnded(connection)), true);
  await logs.client.until("reconnected");
  assertEquals(logs.client.typesOf(), ["reconnected"]);
});

Deno.test("TunnelClient.shutdown() ends at once while the connection is suspended, if nothing is open", async () => {
  await using all = await makeProxied();
  await all.proxy.stop();
  await all.logs.client.until("suspended");
  await promptly(all.client.shutdown());
});

Deno.test("TunnelClient.shutdown() ends after its timeout while the connection is suspended", async () => {
  await using all = await makeProxied();
  using connection = await dial(all.client.listenAddrs[0]!);
  assertEquals(await say(connection, "before"), "before");
  await all.proxy.stop();
  await all.logs.client.until("suspended");
  await promptly(all.client.shutdown({ timeout: 50 }));
  assertEquals(await promptly(isEnded(connection)), true);
});

Deno.test("TunnelClient.shutdown() ends after its timeout when the connection is lost meanwhile", async () => {
  await using all = await makeProxied();
  using connection = await dial(all.client.listenAddrs[0]!);
  assertEquals(await say(connection, "before"), "before");
  const ending = all.client.shutdown({ timeout: 500 });
  await all.proxy.stop();
  await promptly(ending);
  assertEquals(await promptly(isEnded(connection)), true);
  assertMatch(
    all.logs.client.messages().at(-1)!,
    /^The connection to .+ was lost: the session did not close within 500 ms$/,
  );
});

Deno.test("TunnelClient.shutdown() ends at once when the server is gone, if nothing is open", async () => {
  // So that it does not end by one of the timeouts.
  using _timers = holdTimers(1000);
  for (const isNoticed of [true, false]) {
    const ending = new AbortController();
    const server = serveTunnel({ listen: FREE, allow: ["127.0.0.1:*"], signal: ending.signal, ...makeLog().options });
    const proxy = makeProxy(server.serverAddr);
    const log = makeLog();
    const client = await openTunnel({ connect: proxy.addr, forward: [`${FREE}=${nowhere()}`], ...log.options });
    if (isNoticed) {
      await proxy.stop();
      await log.until("suspended");
    }
    const finished = client.shutdown();
    await proxy.stop();
    await promptly(finished);
    ending.abort();
    await server.finished;
  }
});

Deno.test("TunnelClient.shutdown() ends soon when the server falls silent meanwhile, if nothing is open", async () => {
  await using all = await makeProxied();
  // It accepts connections and does not answer.
  using silent = Deno.listen(LOOPBACK);
  const { connect } = Deno;
  using _connect = replaceConnect(() => connect({ ...LOOPBACK, port: silent.addr.port }));
  const ending = all.client.shutdown();
  await all.proxy.stop();
  await promptly(ending);
});

for (const isBefore of [true, false]) {
  const when = isBefore ? "before" : "after";
  Deno.test(`TunnelClient.shutdown() waits for a stream while the connection is lost, from ${when} the call`, async () => {
    await using all = await makeProxied();
    const { client, echo, proxy, logs } = all;
    const stream = await client.connect(echo.addr);
    assertEquals(await say(stream, "before"), "before");
    if (isBefore) {
      await proxy.stop();
      await logs.client.until("suspended");
    }
    const refused = Promise.withResolvers<void>();
    using _connect = replaceConnect((connect) =>
      connect().catch((error) => {
        refused.resolve();
        throw error;
      })
    );
    const ending = client.shutdown();
    await proxy.stop();
    await promptly(refused.promise);
    proxy.start();
    assertEquals(await promptly(say(stream, "after")), "after");
    stream.close();
    await promptly(ending);
    assertEquals(logs.client.messages(), []);
    assertEquals(logs.client.typesOf(), isBefore ? ["suspended", "resumed"] : []);
  });

  Deno.test(`TunnelClient.shutdown() sends the last bytes of a closed stream over a connection cut ${when} the call`, async () => {
    const received = Promise.withResolvers<number>();
    await using target = makeTarget(async (connection) => received.resolve((await readAll(connection)).length));
    await using all = await makeProxied();
    const { client, proxy, logs } = all;
    const stream = await client.connect(target.addr);
    await writeAll(stream, new Uint8Array(200_000));
    stream.close();
    if (isBefore) {
      proxy.cut();
      await logs.client.until("suspended");
    }
    const ending = client.shutdown();
    proxy.cut();
    await promptly(ending);
    assertEquals(await promptly(received.promise), 200_000);
  });
}

Deno.test("openTunnel() reconnects when the server was restarted, and forwarded connections end", async () => {
  const echo = makeEcho();
  const log = makeLog();
  const options = { listen: `127.0.0.1:${freePort()}`, allow: ["127.0.0.1:*"], onError() {} };
  const stop = new AbortController();
  const first = serveTunnel({ ...options, signal: stop.signal });
  const client = await openTunnel({ connect: options.listen, forward: [`${FREE}=${echo.addr}`], ...log.options });
  const connection = await dial(client.listenAddrs[0]!);
  assertEquals(await say(connection, "before"), "before");
  stop.abort();
  await first.finished;
  const second = await listenAgain(() => serveTunnel(options));
  assertEquals(await promptly(isEnded(connection)), true);
  await promptly(log.until("reconnected"));
  assertInstanceOf(log.errors[0], Error);
  using again = await dial(client.listenAddrs[0]!);
  assertEquals(await promptly(say(again, "after")), "after");
  again.close();
  connection.close();
  await client.shutdown();
  await second.shutdown();
  await echo.close();
});

Deno.test("openTunnel() reconnects after a restart with a downtime that begins when the connection was lost", async () => {
  const log = makeLog();
  const options = { listen: `127.0.0.1:${freePort()}`, target: "1", onError() {} };
  const stop = new AbortController();
  const first = serveTunnel({ ...options, signal: stop.signal });
  const proxy = makeProxy(options.listen);
  const client = await openTunnel({ connect: proxy.addr, forward: [FREE], wait: 500, ...log.options });
  await proxy.stop();
  await log.until("suspended");
  const began = performance.now();
  // It waits for the server, and ends when `wait` is over.
  using waiting = await dial(client.listenAddrs[0]!);
  assertEquals(await promptly(isEnded(waiting)), true);
  const least = performance.now() - began;
  stop.abort();
  await first.finished;
  const second = await listenAgain(() => serveTunnel(options));
  proxy.start();
  await promptly(log.until("reconnected"));
  const [downtime] = log.events.flatMap((event) => event.type === "reconnected" ? [event.downtime] : []);
  assertGreater(downtime!, least - 1);
  assertEquals(Number.isInteger(downtime), true);
  await client.shutdown();
  await second.shutdown();
  await proxy.stop();
});

Deno.test("openTunnel() does not report that a server does not resume before that server has answered", async () => {
  const listener = Deno.listen(LOOPBACK);
  const accepting = (async () => {
    // As a process without free descriptors does.
    for await (const connection of listener) connection.close();
  })();
  const log = makeLog();
  const stop = new AbortController();
  const options = { connect: at(listener.addr), socks: [FREE], retry: true, signal: stop.signal };
  const opening = openTunnel({ ...options, ...log.options });
  await promptly(log.until(/^The connection to \S+ was lost: /));
  stop.abort(new Error("enough"));
  await assertRejects(() => promptly(opening), Error, "enough");
  assertEquals(log.typesOf(), []);
  listener.close();
  await accepting;
});

Deno.test("openTunnel() without resume reports a server that accepts connections and does not answer", async () => {
  using listener = Deno.listen(LOOPBACK);
  const log = makeLog();
  const stop = new AbortController();
  const options = { connect: at(listener.addr), socks: [FREE], resume: false, retry: true, timeout: 100 };
  const opening = openTunnel({ ...options, signal: stop.signal, ...log.options });
  await promptly(log.until(/ accepts connections, but does not answer: the peer was silent for 100 ms/));
  stop.abort(new Error("enough"));
  await assertRejects(() => promptly(opening), Error, "enough");
});
