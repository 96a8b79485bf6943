/** The client's end of a tunnel: options, shutdown and reconnecting. */

import {
  assert,
  assertEquals,
  assertGreater,
  assertInstanceOf,
  assertMatch,
  assertRejects,
  assertStrictEquals,
  assertThrows,
} from "@std/assert";
import { ProtocolError } from "../mod.ts";
import { openTunnel, serveTunnel, type TunnelEvent, TunnelRefusedError } from "../tunnel.ts";
import { bytes, isRefused, listenAgain, LOOPBACK, readAll, text, writeAll } from "./support.ts";
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
  makeTarget,
  makeTunnel,
  nowhere,
  openAtSession,
  parse,
  promptly,
  readHead,
  say,
  serveFiles,
} from "./tunnel_support.ts";

Deno.test("tunnel: serverAddr and listenAddrs contain the addresses with their ports", async () => {
  const { client, server, shutdown } = await makeTunnel(nowhere());
  assertMatch(server.serverAddr, /^127\.0\.0\.1:[1-9]\d*$/);
  assertEquals(server.listenAddrs, []);
  assertEquals(client.serverAddr, server.serverAddr);
  assertEquals(client.listenAddrs.length, 1);
  assertMatch(client.listenAddrs[0]!, /^127\.0\.0\.1:[1-9]\d*$/);
  await shutdown();
});

Deno.test("TunnelClient.connect() rejects after shutdown() because the tunnel has ended, not for want of a connection", async () => {
  const { client, shutdown } = await makeTunnel(nowhere());
  await client.shutdown();
  await assertRejects(() => client.connect("1"), Error, "Cannot open a stream: the tunnel has ended");
  await shutdown();
});

Deno.test("TunnelClient.listenAddrs lists forward, then socks, then reverse", async () => {
  const [one, two, three, four] = [nowhere(), nowhere(), nowhere(), nowhere()];
  const asked = { reverse: [`${four}=1`], socks: [three], forward: [`${one}=1`, two] };
  await using pair = await makePair({ allowListen: ["*:*"] }, asked);
  assertEquals(pair.client.listenAddrs, [one, two, three, four]);
});

Deno.test("serveTunnel() serves two clients at the same time", async () => {
  const web = serveFiles();
  const { client, server, shutdown } = await makeTunnel(at(web.addr));
  const second = await openTunnel({ connect: server.serverAddr, forward: [FREE] });
  await Promise.all([
    fetchFiles(client.listenAddrs[0]!, [1, 10_000]),
    fetchFiles(second.listenAddrs[0]!, [2, 20_000, 3]),
  ]);
  await second.shutdown();
  await fetchFiles(client.listenAddrs[0]!, [4]);
  await shutdown();
  const { connections, streams } = server.stats();
  assertEquals({ connections, streams }, { connections: 2, streams: 6 });
  await web.shutdown();
});

Deno.test("TunnelClient.shutdown() stops listening, waits for open connections, and fulfils finished", async () => {
  const target = makeEcho();
  const { client, server } = await makeTunnel(target.addr);
  const connection = await dial(client.listenAddrs[0]!);
  assertEquals(await say(connection, "before"), "before");
  let isFinished = false;
  const finished = client.shutdown().then(() => isFinished = true);
  assertEquals(await isRefused(() => dial(client.listenAddrs[0]!)), true);
  assertEquals(await say(connection, "after"), "after");
  assertEquals(isFinished, false);
  await connection.closeWrite();
  assertEquals(await connection.read(new Uint8Array(1)), null);
  connection.close();
  await finished;
  await client.finished;
  await server.shutdown();
  await target.close();
});

Deno.test("Tunnel.shutdown() closes open connections after the timeout, at either end", async () => {
  await using echo = makeEcho();
  for (const end of ["client", "server"] as const) {
    await using pair = await makePair({ target: echo.addr }, { forward: [FREE] });
    using connection = await dial(pair.client.listenAddrs[0]!);
    assertEquals(await say(connection, "before"), "before");
    const began = performance.now();
    await pair[end].shutdown({ timeout: 50 });
    assertGreater(performance.now() - began, 45);
    await pair[end].finished;
    assertEquals(await isEnded(connection), true);
  }
});

Deno.test("TunnelClient.shutdown() fulfils and reports the error when the session fails meanwhile", async () => {
  const listener = Deno.listen(LOOPBACK);
  const { options, messages } = makeLog();
  const [client, server] = await Promise.all([
    openTunnel({ connect: at(listener.addr), forward: [FREE], resume: false, ...options }),
    listener.accept(),
  ]);
  const connection = await dial(client.listenAddrs[0]!);
  await writeAll(connection, bytes("hello"));
  for (let received = ""; !received.includes("hello");) {
    const p = new Uint8Array(100);
    received += text(p.subarray(0, (await server.read(p))!));
  }
  const finished = client.shutdown();
  await writeAll(server, bytes("not an smux frame"));
  await finished;
  await client.finished;
  assertEquals(messages().length, 1);
  assertMatch(messages()[0]!, /^The connection to .+ was lost: /);
  for (const open of [connection, server, listener]) open.close();
});

Deno.test("TunnelClient.finished rejects when the server does not speak smux, with a ProtocolError as cause", async () => {
  const web = makeTarget((connection) => writeAll(connection, bytes("220 mail.example.com ESMTP\r\n")));
  const client = await openTunnel({ connect: web.addr, forward: [FREE], reconnect: false, resume: false });
  const error = await assertRejects(() => client.finished, Error, "was lost");
  assertInstanceOf(error.cause, ProtocolError);
  await web.close();
});

Deno.test("openTunnel() without reverse refuses streams that the server opens", async () => {
  const { opening, session } = await openAtSession({ forward: [FREE] });
  const client = await opening;
  const stream = await session.openStream();
  assertEquals(await stream.read(new Uint8Array(1)), null);
  stream.close();
  await client.shutdown();
  await session.closed;
});

Deno.test("openTunnel() connects only to targets of reverse, and refuses other requests of the server", async () => {
  await using echo = makeEcho();
  const { options, until } = makeLog();
  const { opening, session } = await openAtSession({ reverse: [`7=${echo.addr}`], ...options });
  const asked = await session.acceptStream();
  assertMatch(text(await readHead(asked)), /^BIND 7 HTTP\/1\.1\r\n/);
  await writeAll(asked, bytes("HTTP/1.1 200 OK\r\nAddress: 127.0.0.1:7\r\n\r\n"));
  const client = await opening;
  assertEquals(client.listenAddrs, ["127.0.0.1:7"]);
  const bad = await session.openStream();
  await writeAll(bad, bytes(`CONNECT ${echo.addr} HTTP/1.1\r\n\r\n`));
  assert(!text(await readAll(bad)).startsWith("HTTP/1.1 200 "));
  await until(/not in reverse/);
  const good = await session.openStream();
  await writeAll(good, bytes("CONNECT 7 HTTP/1.1\r\n\r\n"));
  assertMatch(text(await readHead(good)), /^HTTP\/1\.1 200 /);
  assertEquals(await say(good, "hello"), "hello");
  for (const stream of [bad, good, asked]) stream.close();
  await client.shutdown();
  await session.closed;
});

Deno.test("openTunnel() does not connect over TCP to the target of a reverse entry for UDP", async () => {
  const { opening, session } = await openAtSession({ reverse: [`udp:7=${nowhere()}`], onError() {} });
  const asked = await session.acceptStream();
  await readHead(asked);
  await writeAll(asked, bytes("HTTP/1.1 200 OK\r\nAddress: udp:127.0.0.1:7\r\n\r\n"));
  const client = await opening;
  const stream = await session.openStream();
  await writeAll(stream, bytes("CONNECT udp:7 HTTP/1.1\r\n\r\n"));
  assertMatch(text(await readHead(stream)), /^HTTP\/1\.1 403 not in reverse\r\n/);
  for (const open of [stream, asked]) open.close();
  await client.shutdown();
  await session.closed;
});

Deno.test("tunnel: the signal closes either end and its connections, and finished fulfils", async () => {
  const controller = new AbortController();
  const target = makeEcho();
  const { options, errors } = makeLog();
  const { client, server } = await makeTunnel(target.addr, { signal: controller.signal, ...options });
  const connection = await dial(client.listenAddrs[0]!);
  assertEquals(await say(connection, "before"), "before");
  controller.abort();
  await Promise.all([client.finished, server.finished]);
  assertEquals(await isEnded(connection), true);
  connection.close();
  assertEquals(await isRefused(() => dial(client.listenAddrs[0]!)), true);
  assertEquals(await isRefused(() => dial(server.serverAddr)), true);
  await target.close();
  assertEquals(errors, []);
});

Deno.test("tunnel: a signal that is aborted already starts neither end", async () => {
  const reason = new Error("too late");
  const signal = AbortSignal.abort(reason);
  const opening = openTunnel({ connect: nowhere(), forward: [FREE], signal });
  assertStrictEquals(await opening.catch((error) => error), reason);
  const server = serveTunnel({ listen: FREE, target: "1", signal });
  await server.finished;
  assertEquals(await isRefused(() => dial(server.serverAddr)), true);
});

const failures: Record<string, (message: string) => void> = {
  "throw": (message) => {
    throw new Error(message);
  },
  "reject with": (message) => Promise.reject(new Error(message)),
};
for (const [how, fail] of Object.entries(failures)) {
  Deno.test(`tunnel: errors that callbacks ${how} are logged, and the tunnel continues`, async () => {
    const { error } = console;
    const printed: string[] = [];
    console.error = (error: unknown) => void printed.push(String(error));
    try {
      const target = nowhere();
      const onEvent = ({ type }: TunnelEvent) => type === "connected" ? fail("from onEvent") : undefined;
      const onError = () => fail("from onError");
      await using server = serveTunnel({ listen: FREE, target, onEvent, onError });
      await using client = await openTunnel({ connect: server.serverAddr, forward: [FREE], onError });
      for (const _ of [1, 2]) {
        assert(await isRefused(() => dial(client.listenAddrs[0]!)));
      }
    } finally {
      console.error = error;
    }
    assertEquals(printed, ["Error: from onEvent", "Error: from onError", "Error: from onError"]);
  });
}

Deno.test("tunnel: a signal has no listeners after shutdown or a failed start", async () => {
  const { signal } = new AbortController();
  const listening: unknown[] = [];
  const { addEventListener, removeEventListener } = signal;
  signal.addEventListener = (...args: Parameters<typeof addEventListener>) => {
    listening.push(args[1]);
    addEventListener.apply(signal, args);
  };
  signal.removeEventListener = (...args: Parameters<typeof removeEventListener>) => {
    const index = listening.indexOf(args[1]);
    if (index >= 0) listening.splice(index, 1);
    removeEventListener.apply(signal, args);
  };
  const { shutdown } = await makeTunnel(nowhere(), { signal });
  assertGreater(listening.length, 1);
  await shutdown();
  assertEquals(listening, []);
  await assertRejects(() => openTunnel({ connect: nowhere(), signal }));
  assertEquals(listening, []);
});

Deno.test("openTunnel() and serveTunnel() throw a RangeError for malformed options", async () => {
  const places = [
    "",
    ":0",
    "localhost",
    "a b:1",
    "::1:1",
    "[::g]:1",
    "256.0.0.1:1",
    "a:65536",
    "a:x",
    "-1",
    "unix:",
    "1.5",
  ];
  for (const place of places) {
    assertThrows(() => serveTunnel({ listen: place, target: "1" }), RangeError, "listen ");
    assertThrows(() => serveTunnel({ listen: FREE, target: place }), RangeError, "target ");
    assertThrows(() => serveTunnel({ listen: FREE, allow: [place] }), RangeError, "allow ");
    assertThrows(() => serveTunnel({ listen: FREE, allowListen: [place] }), RangeError, "allowListen ");
    await assertRejects(() => openTunnel({ connect: place }), RangeError, "connect ");
    await assertRejects(() => openTunnel({ connect: "1", forward: [place] }), RangeError, "forward ");
    await assertRejects(() => openTunnel({ connect: "1", forward: [`0=${place}`] }), RangeError, "forward ");
    await assertRejects(() => openTunnel({ connect: "1", reverse: [`0=${place}`] }), RangeError, "reverse ");
    await assertRejects(() => openTunnel({ connect: "1", socks: [place] }), RangeError, "socks ");
  }
  assertThrows(() => serveTunnel({ listen: FREE, target: "127.0.0.1:0" }), RangeError, "a port from 1 to 65535");
  assertThrows(() => serveTunnel({ listen: FREE, allow: ["*"] }), RangeError, "allow ");
  await assertRejects(() => openTunnel({ connect: FREE }), RangeError, "a port from 1 to 65535");
  await assertRejects(() => openTunnel({ connect: "1", forward: ["0=0"] }), RangeError, "a port from 1 to 65535");
  await assertRejects(() => openTunnel({ connect: "1", reverse: ["0"] }), RangeError, "LISTEN=TARGET");
  await assertRejects(() => openTunnel({ connect: "1", forward: ["0"], ca: "x" }), RangeError, "ca must be");
  await assertRejects(() => openTunnel({ connect: "1", reverse: ["0=1", "0=2"] }), RangeError, "only once");
  assertThrows(() => serveTunnel({ listen: FREE, target: "1", cert: "x" }), RangeError, "cert and key");
  assertThrows(() => serveTunnel({ listen: FREE, target: "1", key: "x" }), RangeError, "cert and key");
  assertThrows(() => serveTunnel({ listen: FREE, target: "1", cert: "x", key: "y" }), RangeError, "cert and key");
  assertThrows(() => serveTunnel({ listen: FREE, target: "1", allow: ["*:*"] }), RangeError, "combined");
  assertThrows(() => serveTunnel({ listen: FREE, target: "1", allowListen: ["*:*"] }), RangeError, "combined");
});

Deno.test("openTunnel() and serveTunnel() name an address in use, and a server that refuses connections", async () => {
  const target = nowhere();
  await using server = serveTunnel({ listen: FREE, target });
  const inUse = `Cannot listen on ${server.serverAddr}: address in use`;
  assertEquals(assertThrows(() => serveTunnel({ listen: server.serverAddr, target }), Error).message, inUse);
  const opening = openTunnel({ connect: server.serverAddr, forward: [FREE, server.serverAddr] });
  assertEquals((await assertRejects(() => opening, Error)).message, inUse);
  const lost = `Cannot connect to ${target}: connection refused`;
  const missing = openTunnel({ connect: target, forward: [FREE] });
  assertEquals((await assertRejects(() => missing, Error)).message, lost);
});

Deno.test("TunnelClient.connect() resolves with a stream to the target, or rejects with a status", async () => {
  await using echo = makeEcho();
  const dead = nowhere();
  await using pair = await makePair({ allow: [echo.addr, dead] });
  const { client } = pair;
  const connection = await client.connect(echo.addr);
  assertEquals(await say(connection, "hello"), "hello");
  await connection.closeWrite();
  assertEquals(await connection.read(new Uint8Array(1)), null);
  connection.close();
  const refused = await assertRejects(() => client.connect("127.0.0.1:1"), TunnelRefusedError, "not allowed");
  assertEquals(refused.status, 403);
  const failed = await assertRejects(() => client.connect(dead), TunnelRefusedError, "connection refused");
  assertEquals(failed.status, 502);
  await assertRejects(() => client.connect("localhost"), RangeError);
  await assertRejects(() => client.connect("127.0.0.1:0"), RangeError);
});

Deno.test("TunnelClient.connect() without a target opens a stream to the target of the server", async () => {
  await using echo = makeEcho();
  await using pair = await makePair({ target: echo.addr });
  const connection = await pair.client.connect();
  assertEquals(await say(connection, "hello"), "hello");
  connection.close();
});

Deno.test("Tunnel.shutdown() accepts 0, fractional, NaN and negative timeouts", async () => {
  for (const timeout of [0, 1.5, NaN, -1]) {
    await using echo = makeEcho();
    await using server = serveTunnel({ listen: FREE, target: echo.addr, onError() {} });
    const client = await openTunnel({ connect: server.serverAddr, forward: [FREE], onError() {} });
    using connection = await dial(client.listenAddrs[0]!);
    assertEquals(await say(connection, "hello"), "hello");
    await promptly(client.shutdown({ timeout }));
    assertEquals(await isEnded(connection), true);
  }
});

Deno.test("openTunnel() reconnects, and forward and reverse work again", async () => {
  await using echo = makeEcho();
  const web = serveFiles();
  const controller = new AbortController();
  const place = nowhere();
  const options = { allow: [echo.addr], allowListen: [place] };
  const first = serveTunnel({ listen: FREE, signal: controller.signal, ...options });
  const log = makeLog();
  const asked = { forward: [`0=${echo.addr}`], reverse: [`${place}=${at(web.addr)}`], wait: 500 };
  const client = await openTunnel({ connect: first.serverAddr, ...asked, ...log.options });
  using before = await dial(client.listenAddrs[0]!);
  assertEquals(await say(before, "before"), "before");
  await fetchFiles(place, [1000]);
  controller.abort();
  assertEquals(await isEnded(before), true);
  await first.finished;
  await log.until(/^The connection to .+ was lost: /);
  assertEquals(await isRefused(() => dial(client.listenAddrs[0]!)), true);
  await log.until(/^Cannot open a stream: not connected to .+$/);
  await assertRejects(() => client.connect(echo.addr), Error, "Cannot open a stream: not connected to ");
  await log.until(/^Cannot connect to .+: connection refused$/);

  const serverLog = makeLog();
  await using second = await listenAgain(() =>
    serveTunnel({ listen: first.serverAddr, ...options, ...serverLog.options })
  );
  await log.until("reconnected");
  const [event] = log.events;
  assert(event?.type === "reconnected");
  assertEquals(event.serverAddr, second.serverAddr);
  assertStrictEquals(event.error, log.errors.find(({ message }) => message.includes("was lost")));
  assertGreater(event.downtime, 0);
  using after = await dial(client.listenAddrs[0]!);
  assertEquals(await say(after, "after"), "after");
  after.close();
  await serverLog.until("listening");
  await fetchFiles(place, [1000]);
  await client.shutdown();
  await client.finished;
  assertEquals(client.stats().connections, 2);
  await web.shutdown();
});

Deno.test("TunnelClient.connect() works once the event reconnected was emitted", async () => {
  await using echo = makeEcho();
  const controller = new AbortController();
  const { signal } = controller;
  const first = serveTunnel({ listen: FREE, target: echo.addr, signal });
  const again = Promise.withResolvers<string>();
  const onEvent = () => {
    const answered = client.connect().then(async (connection) => {
      const answer = await say(connection, "hello");
      connection.close();
      return answer;
    });
    again.resolve(answered);
  };
  const client = await openTunnel({ connect: first.serverAddr, onEvent, onError() {} });
  controller.abort();
  await first.finished;
  await using _second = await listenAgain(() => serveTunnel({ listen: first.serverAddr, target: echo.addr }));
  try {
    assertEquals(await again.promise, "hello");
  } finally {
    await client.shutdown();
  }
});

Deno.test("TunnelClient.listenAddrs contains the new port of a reverse forward after reconnecting", async () => {
  await using echo = makeEcho();
  const controller = new AbortController();
  const first = serveTunnel({ listen: FREE, allowListen: ["127.0.0.1:*"], signal: controller.signal });
  const log = makeLog();
  const client = await openTunnel({ connect: first.serverAddr, reverse: [`0=${echo.addr}`], ...log.options });
  const before = client.listenAddrs[0]!;
  // Occupy the port, so that the server uses another.
  controller.abort();
  await first.finished;
  using _taken = await listenAgain(() => Deno.listen(parse(before)));
  const serverLog = makeLog();
  const options = { listen: first.serverAddr, allowListen: ["127.0.0.1:*"], ...serverLog.options };
  await using _second = await listenAgain(() => serveTunnel(options));
  await serverLog.until("listening");
  const event = serverLog.events.find(({ type }) => type === "listening");
  assert(event?.type === "listening");
  const now = event.listenAddr;
  using connection = await dial(now);
  // The client forwards the answer, so it has updated listenAddrs before.
  assertEquals(await say(connection, "hello"), "hello");
  assertEquals(client.listenAddrs, [now]);
  connection.close();
  await client.shutdown();
});

Deno.test("openTunnel() ends at once by shutdown or signal while it waits to reconnect", async () => {
  for (const how of ["shutdown", "signal"]) {
    const [serving, opening] = [new AbortController(), new AbortController()];
    const server = serveTunnel({ listen: FREE, allowListen: ["*:*"], signal: serving.signal });
    const log = makeLog();
    const asked = { forward: [FREE], socks: [FREE], reverse: ["0=1"], signal: opening.signal };
    const client = await openTunnel({ connect: server.serverAddr, ...asked, ...log.options });
    // Without the abort the delay would be 1000 seconds.
    using _delays = changeDelays((delay) => delay > 40 ? 1_000_000 : delay);
    serving.abort();
    await log.until(/was lost: /);
    if (how === "signal") opening.abort();
    else await client.shutdown();
    await client.finished;
    assertEquals(log.events, []);
    assertEquals(await isRefused(() => dial(client.listenAddrs[0]!)), true);
    await server.finished;
  }
});
