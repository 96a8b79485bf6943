/** UDP through the tunnel: forward and reverse, rules, bounds, and the ends of sources. */

import { assert, assertEquals, assertMatch, assertNotEquals, assertRejects, assertThrows } from "@std/assert";
import { type Session, type Stream, StreamResetError } from "../mod.ts";
import { checkTunnel, hashSecret, openTunnel, serveTunnel, TunnelRefusedError, type TunnelRequest } from "../tunnel.ts";
import { Activity } from "../tunnel/activity.ts";
import { encodeDatagram } from "../tunnel/datagram.ts";
import { request } from "../tunnel/handshake.ts";
import { eventEntry } from "../tunnel/log.ts";
import { resolver } from "../tunnel/resolve.ts";
import { Flow, MAX_QUEUE, MAX_QUEUE_BYTES } from "../tunnel/udp_flow.ts";
import { Flows, MAX_SOURCES } from "../tunnel/udp_flows.ts";
import { hasPrograms, run, watch } from "./programs.ts";
import { bytes, freePort, listenAgain, pattern, readSome, text, turn, writeAll } from "./support.ts";
import {
  dial,
  eventually,
  FREE,
  hasIpv6,
  makeEcho,
  makeLog,
  makePair,
  makeProxy,
  nowhere,
  openAtSession,
  portOf,
  promptly,
  readHead,
  say,
} from "./tunnel_support.ts";
import { answerDns, ask, bind, makeUdpTarget, type TestSocket } from "./udp_support.ts";

const ANY = { allow: ["udp:127.0.0.1:*", "udp:localhost:*"], allowListen: ["udp:127.0.0.1:*"] };

/** Returns the text of the next datagram, without late answers to what `ask` has sent again. */
async function word(socket: TestSocket, asked: string): Promise<string> {
  for (;;) {
    const received = text((await promptly(socket.receive())).data);
    if (received !== asked) return received;
  }
}

for (const version of [1, 2] as const) {
  Deno.test(`tunnel: UDP is forwarded in both directions, of 0 to 65507 bytes, in smux ${version}`, async () => {
    await using echo = makeUdpTarget();
    const place = `udp:${FREE}=${echo.addr}`;
    await using pair = await makePair(ANY, { forward: [place], reverse: [place], version });
    for (const addr of pair.client.listenAddrs) {
      assertMatch(addr, /^udp:127\.0\.0\.1:\d+$/);
      using socket = bind();
      for (const size of [1, 0, 1472, 4094, 65_507, 3]) {
        const sent = pattern(size, size + 1);
        assertEquals(await promptly(ask(socket, sent, addr)), sent, `${addr}, ${size} bytes`);
      }
    }
    await pair.client.shutdown();
    assertEquals([pair.logs.client.messages(), pair.logs.server.messages()], [[], []]);
    for (const { stats } of [pair.client, pair.server]) {
      const { streams, open, dropped } = stats();
      assertEquals({ streams, open, dropped }, { streams: 2, open: 0, dropped: 0 });
    }
  });
}

Deno.test("tunnel: UDP over IPv6, from and to", { ignore: !hasIpv6() }, async () => {
  await using echo = makeUdpTarget(undefined, "::1");
  await using pair = await makePair({ allow: ["udp:[::1]:*"], allowListen: ["udp:[::1]:*"] }, {
    forward: [`udp:[::1]:0=${echo.addr}`],
    reverse: [`udp:[::1]:0=${echo.addr}`],
  });
  for (const addr of pair.client.listenAddrs) {
    using socket = bind("::1");
    assertEquals(await promptly(ask(socket, bytes("six"), addr)), bytes("six"));
  }
});

Deno.test("tunnel: answers of UDP go to their sources, in order, from the address that was contacted", async () => {
  await using echo = makeUdpTarget();
  await using pair = await makePair(ANY, { forward: [`udp:${FREE}=${echo.addr}`] });
  const [addr] = pair.client.listenAddrs;
  using one = bind();
  using other = bind();
  const sources = [one, other].map((socket, n) => ({ socket, name: `source ${n}` }));
  const received = sources.map(() => [] as string[]);
  for (let n = 0; n < 20; n++) {
    await Promise.all(sources.map(({ socket, name }) => socket.send(bytes(`${name}: ${n}`), addr!)));
    for (const [at, { socket }] of sources.entries()) {
      const { data, from } = await promptly(socket.receive());
      assertEquals(`udp:${from}`, addr);
      received[at]!.push(text(data));
    }
  }
  const expected = sources.map(({ name }) => Array.from({ length: 20 }, (_, n) => `${name}: ${n}`));
  assertEquals(received, expected);
  assertEquals(echo.sources.length, 2);
});

Deno.test("tunnel: UDP to a target accepts nothing from other addresses", async () => {
  await using echo = makeUdpTarget();
  await using pair = await makePair(ANY, { forward: [`udp:${FREE}=${echo.addr}`] });
  using socket = bind();
  await promptly(ask(socket, bytes("first"), pair.client.listenAddrs[0]!));
  using stranger = bind();
  // The port that the server sends from.
  for (let n = 0; n < 3; n++) await stranger.send(bytes("injected"), echo.sources[0]!);
  await socket.send(bytes("second"), pair.client.listenAddrs[0]!);
  assertEquals(await word(socket, "first"), "second");
});

Deno.test("tunnel: the same port is forwarded for TCP and for UDP, and update() compares them apart", async () => {
  await using tcp = makeEcho();
  await using udp = makeUdpTarget();
  await using shout = makeUdpTarget((data) => bytes(text(data).toUpperCase()));
  const server = serveTunnel({ listen: FREE, allow: ["127.0.0.1:*", "udp:127.0.0.1:*"] });
  const port = freePort();
  const [entry, changed] = [udp, shout].map(({ addr }) => `udp:${port}=${addr}`);
  const options = { connect: server.serverAddr, onEvent() {} };
  const client = await openTunnel({ ...options, forward: [entry!, `${port}=${tcp.addr}`] });
  assertEquals(client.listenAddrs, [`udp:127.0.0.1:${port}`, `127.0.0.1:${port}`]);
  using socket = bind();
  using connection = await dial(client.listenAddrs[1]!);
  assertEquals(await say(connection, "stays"), "stays");
  assertEquals(text(await promptly(ask(socket, bytes("abc"), client.listenAddrs[0]!))), "abc");

  // A new target is that of new sources.
  await client.update({ ...options, forward: [changed!, `${port}=${tcp.addr}`] });
  using later = bind();
  assertEquals(text(await promptly(ask(later, bytes("abc"), client.listenAddrs[0]!, bytes("ABC")))), "ABC");
  assertEquals(text(await promptly(ask(socket, bytes("def"), client.listenAddrs[0]!))), "def");
  assertEquals(await say(connection, "stays"), "stays");

  await client.update({ ...options, forward: [`${port}=${tcp.addr}`] });
  assertEquals(await say(connection, "stays"), "stays");
  using successor = await listenAgain(() => bind("127.0.0.1", port));
  assertEquals(successor.addr, `127.0.0.1:${port}`);
  connection.close();
  await client.shutdown();
  await server.shutdown();
});

Deno.test("TunnelClient.update() passes a UDP port on, to an entry that listens at all addresses, and for reverse", async () => {
  await using echo = makeUdpTarget();
  const server = serveTunnel({ listen: FREE, allow: ["udp:127.0.0.1:*"], allowListen: ["udp:*:*"] });
  const [port, other] = [freePort(), freePort()];
  const options = { connect: server.serverAddr, insecure: true, onEvent() {} };
  const client = await openTunnel({
    ...options,
    forward: [`udp:${port}=${echo.addr}`],
    reverse: [`udp:${other}=${echo.addr}`],
  });
  await client.update({
    ...options,
    forward: [`udp:0.0.0.0:${port}=${echo.addr}`],
    reverse: [`udp:0.0.0.0:${other}=${echo.addr}`],
  });
  using socket = bind();
  for (const place of [port, other]) {
    assertEquals(text(await promptly(ask(socket, bytes("abc"), `127.0.0.1:${place}`))), "abc");
  }
  await client.shutdown();
  await server.shutdown();
});

Deno.test("openTunnel() rejects UDP without a target, with ,proxy, with a Unix socket, and open to other machines", async () => {
  const cases: [options: { forward?: string[]; reverse?: string[]; udpTimeout?: number }, message: string][] = [
    [{ forward: ["udp:53"] }, "forward with udp: must be udp:LISTEN=TARGET"],
    [{ forward: ["udp:53=8.8.8.8:53,proxy"] }, "forward with udp: must be udp:LISTEN=TARGET"],
    [{ forward: ["udp:unix:/a=8.8.8.8:53"] }, "forward with udp: must be udp:LISTEN=TARGET"],
    [{ reverse: ["udp:53=unix:/a"] }, "reverse with udp: must be udp:LISTEN=TARGET"],
    [{ forward: ["udp:53=udp:8.8.8.8:53"] }, "forward must be HOST:PORT"],
    [{ forward: ["udp:0.0.0.0:53=8.8.8.8:53"] }, "forward must be a loopback address"],
    [{ reverse: ["udp:53=h:53", "udp:53=g:53"] }, "each LISTEN only once, received udp:53 twice"],
    [{ udpTimeout: 0 }, "udpTimeout must be an integer from 1"],
  ];
  for (const [options, message] of cases) {
    await assertRejects(() => openTunnel({ connect: nowhere(), ...options }), RangeError, message);
  }
  assertThrows(
    () => serveTunnel({ listen: FREE, target: nowhere(), udpTimeout: -1 }),
    RangeError,
    "udpTimeout must be",
  );
});

Deno.test("openTunnel() rejects when a UDP port is in use, on the client or on the server", async () => {
  using occupied = bind();
  const server = serveTunnel({ listen: FREE, ...ANY, onError() {} });
  const options = { connect: server.serverAddr };
  const place = `udp:${occupied.addr}=127.0.0.1:9`;
  await assertRejects(() => openTunnel({ ...options, forward: [place] }), Error, `${occupied.addr}: address in use`);
  const reverse = () => openTunnel({ ...options, reverse: [place] });
  await assertRejects(reverse, TunnelRefusedError, `Cannot listen on udp:${occupied.addr}: address in use`.slice(1));
  await server.shutdown();
});

// Rules.

Deno.test("serveTunnel() allows UDP only by rules for UDP, and TCP only by others", async () => {
  await using udp = makeUdpTarget();
  await using tcp = makeEcho();
  await using pair = await makePair({
    allow: [tcp.addr, `udp:${udp.addr}`],
    allowListen: ["127.0.0.1:*"],
  });
  const session = await sessionOf(pair.server.serverAddr);
  const statusOf = async (method: TunnelRequest["method"], address: string) =>
    await request(session.session, method, address).then(({ stream }) => {
      stream.close();
      return 200;
    }, (error) => error.status);
  assertEquals(await statusOf("CONNECT", tcp.addr), 200);
  assertEquals(await statusOf("CONNECT-UDP", udp.addr), 200);
  assertEquals(await statusOf("CONNECT", udp.addr), 403);
  assertEquals(await statusOf("CONNECT-UDP", tcp.addr), 403);
  assertEquals(await statusOf("BIND", FREE), 200);
  assertEquals(await statusOf("BIND-UDP", FREE), 403);
  assertEquals(await statusOf("CONNECT-UDP", "unix:/a"), 400);
  assertEquals(await statusOf("CONNECT-UDP", "127.0.0.1:0"), 400);
  await session.close();
});

/** Opens a session to a server of tunnels. */
async function sessionOf(addr: string): Promise<{ session: Session; close: () => Promise<void> }> {
  const { Session } = await import("../mod.ts");
  const session = Session.client(await dial(addr));
  return { session, close: () => session.close() };
}

Deno.test("serveTunnel() checks what a name of UDP is resolved to, and sends to what it has checked", async () => {
  await using echo = makeUdpTarget();
  const { lookup } = resolver;
  const table: Record<string, string[][]> = {
    "rebinding.test": [["127.0.0.1"], ["169.254.169.254"]],
    "evil.test": [["169.254.169.254"]],
    "both.test": [["192.0.2.1", "::1", "127.0.0.1"]],
  };
  resolver.lookup = (name) => Promise.resolve(table[name]!.length > 1 ? table[name]!.shift()! : table[name]![0]!);
  try {
    const port = portOf(echo.addr);
    const names = ["rebinding.test", "evil.test", "both.test"];
    await using pair = await makePair(
      { allow: ["udp:*:*", "udp:127.0.0.1:*", "!udp:192.0.2.0/24:*", "!udp:[::1]:*"] },
      {
        forward: names.map((name) => `udp:${FREE}=${name}:${port}`),
      },
    );
    const [rebinding, evil, both] = pair.client.listenAddrs;
    using socket = bind();
    assertEquals(text(await promptly(ask(socket, bytes("first"), rebinding!))), "first");
    assertEquals(text(await promptly(ask(socket, bytes("IPv4"), both!))), "IPv4");
    using other = bind();
    await other.send(bytes("second"), rebinding!);
    await promptly(pair.logs.client.until(/refused CONNECT-UDP rebinding\.test:\d+: not allowed/));
    await other.send(bytes("third"), evil!);
    await promptly(pair.logs.client.until(/refused CONNECT-UDP evil\.test:\d+: not allowed/));
    assertEquals(pair.client.stats().refused, { 403: 2 });
    assertEquals(pair.client.stats().dropped, 2);
  } finally {
    resolver.lookup = lookup;
  }
});

Deno.test("authorize is asked about CONNECT-UDP and BIND-UDP", async () => {
  await using echo = makeUdpTarget();
  const asked: string[] = [];
  const authorize = ({ method, target }: TunnelRequest) => asked.push(`${method} ${target}`) > 0;
  await using pair = await makePair({ ...ANY, authorize }, {
    forward: [`udp:${FREE}=${echo.addr}`],
    reverse: [`udp:${FREE}=${echo.addr}`],
  });
  using socket = bind();
  await promptly(ask(socket, bytes("a"), pair.client.listenAddrs[0]!));
  assertEquals(asked, [`BIND-UDP ${FREE}`, `CONNECT-UDP ${echo.addr}`]);
});

Deno.test("maxStreams of a user limits sources of UDP, of forward and of reverse; maxPorts limits ports", async () => {
  await using echo = makeUdpTarget();
  const secret = await hashSecret("open-sesame");
  const user = { name: "alice", secret, ...ANY, maxStreams: 1, maxPorts: 1 };
  const place = `udp:${FREE}=${echo.addr}`;
  const asked = { user: "alice", secret: "open-sesame" };
  for (const options of [{ forward: [place] }, { reverse: [place] }]) {
    await using pair = await makePair({ users: [user] }, { ...asked, ...options });
    using one = bind();
    using other = bind();
    await promptly(ask(one, bytes("a"), pair.client.listenAddrs[0]!));
    await other.send(bytes("b"), pair.client.listenAddrs[0]!);
    await promptly(pair.logs.server.until(/expected at most 1 streams at the same time/));
    assertEquals(text(await promptly(ask(one, bytes("c"), pair.client.listenAddrs[0]!))), "c");
  }
  const two = () =>
    makePair({ users: [user], onError() {} }, { ...asked, reverse: [place, `udp:127.0.0.1:${freePort()}=h:1`] });
  await assertRejects(two, TunnelRefusedError, "expected at most 1 ports at the same time");
});

Deno.test("TunnelServer.update() stops listening for UDP that is not allowed any more", async () => {
  await using echo = makeUdpTarget();
  await using pair = await makePair({ allowListen: ["udp:127.0.0.1:*", "127.0.0.1:*"] }, {
    reverse: [`udp:${FREE}=${echo.addr}`],
  });
  const [addr] = pair.client.listenAddrs;
  using socket = bind();
  await promptly(ask(socket, bytes("a"), addr!));
  await pair.server.update({ listen: pair.server.serverAddr, allowListen: ["127.0.0.1:*"] });
  await promptly(pair.logs.server.until("stopped"));
  using successor = await listenAgain(() => bind("127.0.0.1", portOf(addr!.slice("udp:".length))));
  assertNotEquals(successor.addr, "");
});

Deno.test("openTunnel() reports that a server does not support UDP", async () => {
  for (const response of ["405 expected CONNECT or BIND, received X", '400 expected an HTTP request, received "X"']) {
    const log = makeLog();
    const { opening, session } = await openAtSession({ forward: [`udp:${FREE}=h:53`], ...log.options });
    const client = await opening;
    using socket = bind();
    await socket.send(bytes("a"), client.listenAddrs[0]!);
    const stream = await session.acceptStream();
    assertMatch(text(await readHead(stream)), /^CONNECT-UDP h:53 HTTP\/1\.1\r\nHost: h:53\r\n\r\n$/);
    await writeAll(stream, bytes(`HTTP/1.1 ${response}\r\n\r\n`));
    await promptly(log.until(/^The peer refused CONNECT-UDP h:53: it does not support UDP$/));
    await client.shutdown();
    await session.close();
  }
});

// The ends of sources.

for (const kind of ["forward", "reverse"] as const) {
  Deno.test(`a source of UDP of ${kind} ends after udpTimeout, as idle, and its next datagram begins another one`, async () => {
    await using echo = makeUdpTarget();
    // The other end would forget the source at the same time, and either could be the first.
    const [ofClient, ofServer] = kind === "forward" ? [500, Infinity] : [Infinity, 500];
    const asked = { [kind]: [`udp:${FREE}=${echo.addr}`], udpTimeout: ofClient };
    await using pair = await makePair({ ...ANY, udpTimeout: ofServer }, asked);
    const listening = kind === "forward" ? pair.logs.client : pair.logs.server;
    using socket = bind();
    for (const [n, sent] of ["abc", "four"].entries()) {
      await promptly(ask(socket, bytes(sent), pair.client.listenAddrs[0]!));
      for (const log of Object.values(pair.logs)) await promptly(log.until("finished", n + 1));
      const { sent: count, received, from, error, isIdle } = listening.finished[n]!;
      const expected = { count: n + 3, received: n + 3, from: socket.addr, error: undefined, isIdle: true };
      assertEquals<unknown>({ count, received, from, error, isIdle }, expected);
    }
    assertEquals(echo.sources.length, 2);
    assertEquals([pair.client, pair.server].map((end) => [end.stats().open, end.stats().dropped]), [[0, 0], [0, 0]]);
  });
}

Deno.test("a server ends a stream of UDP that its client keeps although no datagram passes", async () => {
  await using echo = makeUdpTarget();
  await using pair = await makePair({ ...ANY, udpTimeout: 50 }, {
    forward: [`udp:${FREE}=${echo.addr}`],
    udpTimeout: Infinity,
  });
  using socket = bind();
  await promptly(ask(socket, bytes("abc"), pair.client.listenAddrs[0]!));
  await promptly(pair.logs.client.until("finished"));
  await promptly(pair.logs.server.until("finished"));
  assertEquals([pair.logs.server, pair.logs.client].map(({ finished }) => finished[0]!.isIdle), [true, false]);
});

Deno.test("a thousand sources of UDP are served at the same time, and then forgotten", async () => {
  await using echo = makeUdpTarget();
  await using pair = await makePair({ ...ANY, udpTimeout: 1500 }, {
    forward: [`udp:${FREE}=${echo.addr}`],
    udpTimeout: 1500,
  });
  const { client, server } = pair;
  const sockets = Array.from({ length: 1000 }, () => bind());
  // In groups: the kernel drops what exceeds the buffer of the target.
  for (let at = 0; at < sockets.length; at += 50) {
    await Promise.all(
      sockets.slice(at, at + 50).map(async (socket, n) => {
        assertEquals(await ask(socket, bytes(`${at + n}`), client.listenAddrs[0]!), bytes(`${at + n}`));
      }),
    );
  }
  await eventually(() => client.stats().open === 0 && server.stats().open === 0);
  assert(client.stats().streams >= 1000, `${client.stats().streams}`);
  for (const socket of sockets) socket[Symbol.dispose]();
});

Deno.test("shutdown() ends sources of UDP at once, also while the connection to the server is suspended", async () => {
  await using echo = makeUdpTarget();
  const server = serveTunnel({ listen: FREE, ...ANY, onError() {}, onEvent() {} });
  await using proxy = makeProxy(server.serverAddr);
  const log = makeLog();
  const client = await openTunnel({ connect: proxy.addr, forward: [`udp:${FREE}=${echo.addr}`], ...log.options });
  using socket = bind();
  await promptly(ask(socket, bytes("abc"), client.listenAddrs[0]!));
  await proxy.stop();
  await log.until("suspended");
  await promptly(client.shutdown());
  assertEquals(log.finished.map(({ isIdle, error }) => ({ isIdle, error })), [{ isIdle: false, error: undefined }]);
  await server.shutdown({ timeout: 1 });
});

Deno.test("a source of UDP survives a lost connection to the server: what waited arrives, the newest of it", async () => {
  await using echo = makeUdpTarget();
  const server = serveTunnel({ listen: FREE, ...ANY, onError() {}, onEvent() {} });
  await using proxy = makeProxy(server.serverAddr);
  const log = makeLog();
  const client = await openTunnel({ connect: proxy.addr, forward: [`udp:${FREE}=${echo.addr}`], ...log.options });
  using socket = bind();
  await promptly(ask(socket, bytes("before"), client.listenAddrs[0]!));
  await proxy.stop();
  await log.until("suspended");
  await socket.send(bytes("during"), client.listenAddrs[0]!);
  await proxy.start();
  await log.until("resumed");
  assertEquals(await word(socket, "before"), "during");
  assertEquals(text(await promptly(ask(socket, bytes("after"), client.listenAddrs[0]!))), "after");
  assertEquals(echo.sources.length, 1);
  assertEquals(log.finished, []);
  await client.shutdown();
  await server.shutdown();
});

// Malformed streams.

Deno.test("serveTunnel() aborts a stream with a datagram that is too long or cut, and reports it", async () => {
  await using echo = makeUdpTarget();
  await using pair = await makePair(ANY);
  const { session, close } = await sessionOf(pair.server.serverAddr);
  const cases: [sent: Uint8Array, message: RegExp][] = [
    [new Uint8Array([0xff, 0xff]), /length of a datagram must be at most 65507, received 65535/],
    [new Uint8Array([3, 0, 1]), /ended within a datagram, after 3 of its bytes/],
    [new Uint8Array([3]), /ended within a datagram, after 1 of its bytes/],
  ];
  for (const [sent, message] of cases) {
    const { stream } = await request(session, "CONNECT-UDP", echo.addr);
    await writeAll(stream, encodeDatagram(bytes("abc")));
    assertEquals(await promptly(readSome(stream, 5)), encodeDatagram(bytes("abc")));
    await writeAll(stream, sent);
    if (sent[0] !== 0xff) await stream.closeWrite();
    await assertRejects(() => stream.read(new Uint8Array(1)), StreamResetError);
    await promptly(pair.logs.server.until(message));
    stream.close();
  }
  assertEquals(pair.logs.server.finished.map(({ received }) => received), [3, 3, 3]);
  await eventually(() => pair.server.stats().open === 0);
  await close();
});

// A flow whose stream has no room.

/** A stream that accepts nothing until it is opened, and records what was written. */
function makeBlocked() {
  const open = Promise.withResolvers<void>();
  const written: Uint8Array[] = [];
  const ended = Promise.withResolvers<null>();
  const stream = {
    async write(p: Uint8Array) {
      await open.promise;
      written.push(p.slice());
      return p.length;
    },
    read: () => ended.promise,
    close() {
      open.reject(new Error("closed"));
      ended.resolve(null);
    },
    abort() {},
  };
  open.promise.catch(() => {});
  return { stream: stream as unknown as Stream, written, open: () => open.resolve() };
}

const ROUTE = { kind: "forward", user: undefined, forward: "udp:1=2", from: "a", to: "b" } as const;

Deno.test("Flow drops the oldest datagrams when the stream has no room: the newest arrive", async () => {
  const activity = new Activity({});
  const flow = new Flow(activity);
  const { stream, written, open } = makeBlocked();
  const running = flow.run(stream, () => Promise.resolve(true), "of a", ROUTE);
  const count = 10 * MAX_QUEUE;
  for (let n = 0; n < count; n++) {
    flow.push(new Uint8Array([n & 255, n >> 8]));
    // The first one is being written.
    if (n === 0) await Promise.resolve();
  }
  assert(activity.datagrams.queued <= 2 * MAX_QUEUE, `${activity.datagrams.queued}`);
  open();
  await eventually(() => activity.datagrams.queued === 0);
  const numbers = written.map((p) => p[2]! + 256 * p[3]!);
  assertEquals(numbers.slice(1), Array.from({ length: MAX_QUEUE }, (_, n) => count - MAX_QUEUE + n));
  assertEquals(activity.stats().dropped, count - numbers.length);
  flow.end();
  await running;
  assertEquals(activity.stats().open, 0);
});

Deno.test("Flow limits the bytes that wait, and drops a datagram that is too long", () => {
  const activity = new Activity({});
  const flow = new Flow(activity);
  flow.push(new Uint8Array(65_508));
  assertEquals(activity.datagrams, { dropped: 1, queued: 0 });
  for (let n = 0; n < 50; n++) flow.push(new Uint8Array(65_507));
  assertEquals(activity.datagrams.queued, 65_507 * Math.floor(MAX_QUEUE_BYTES / 65_507));
  flow.end();
  assertEquals(activity.datagrams, { dropped: 51, queued: 0 });
  flow.push(new Uint8Array(1));
  assertEquals(activity.datagrams, { dropped: 52, queued: 0 });
});

Deno.test("Flow limits what all sources of one end of a tunnel have waiting", () => {
  const activity = new Activity({});
  // More than have room for one each.
  const flows = Array.from({ length: 600 }, () => new Flow(activity));
  for (let n = 0; n < 2; n++) for (const flow of flows) flow.push(new Uint8Array(65_507));
  assert(activity.datagrams.queued <= 32 * 2 ** 20, `${activity.datagrams.queued}`);
  assert(activity.datagrams.queued > 31 * 2 ** 20, `${activity.datagrams.queued}`);
  for (const flow of flows) flow.end();
  assertEquals(activity.datagrams.queued, 0);
});

Deno.test("a peer that does not read costs a bounded number of datagrams, and the newest arrive", async () => {
  const log = makeLog();
  const { opening, session } = await openAtSession({ forward: [`udp:${FREE}=h:53`], ...log.options });
  const client = await opening;
  using socket = bind();
  await socket.send(bytes("first"), client.listenAddrs[0]!);
  const stream = await session.acceptStream();
  await readHead(stream);
  await writeAll(stream, bytes("HTTP/1.1 200 OK\r\n\r\n"));
  assertEquals(await readSome(stream, 7), encodeDatagram(bytes("first")));
  // More than the window of the stream.
  const datagram = new Uint8Array(32_768);
  let sent = 0;
  while (client.stats().dropped < 100) {
    datagram[0] = sent & 255;
    datagram[1] = sent++ >> 8;
    await socket.send(datagram, client.listenAddrs[0]!);
    // A send may resolve without a turn of the event loop, in which the client receives.
    await turn(1);
  }
  const numbers: number[] = [];
  await socket.send(bytes("last"), client.listenAddrs[0]!);
  for (;;) {
    const [low, high] = await promptly(readSome(stream, 2));
    const received = await promptly(readSome(stream, low! + 256 * high!));
    if (received.length === 4) break;
    numbers.push(received[0]! + 256 * received[1]!);
  }
  // The queue has the newest, but for what the kernel has lost; what was dropped is in the middle.
  assertEquals(numbers, [...numbers].sort((a, b) => a - b));
  assert(numbers.at(-1)! >= sent - MAX_QUEUE, `${numbers.at(-1)} of ${sent}`);
  assert(numbers.length < sent - 90, `${numbers.length} of ${sent}`);
  await client.shutdown();
  await session.close();
});

// Bounds of sources.

/** Makes sources whose streams are never answered. */
function makeFlows(activity: Activity, max: number, opened: string[], isRefused = false) {
  return new Flows(activity, {
    max,
    timeout: () => 60_000,
    open: (key) => {
      opened.push(key);
      if (isRefused) return Promise.reject(new TunnelRefusedError(429, `refused ${key}`));
      return Promise.resolve({ stream: makeBlocked().stream, route: { ...ROUTE, from: key } });
    },
    deliver: () => Promise.resolve(true),
  });
}

Deno.test("Flows closes the source that was idle for longest for a new one", async () => {
  const activity = new Activity({ onEvent() {} });
  const opened: string[] = [];
  const flows = makeFlows(activity, 3, opened);
  for (const key of ["a", "b", "c", "a", "d", "a", "b"]) {
    flows.push(key, bytes("x"));
    await new Promise((resolve) => setTimeout(resolve, 0));
  }
  // d replaced b, and b then replaced c.
  assertEquals(opened, ["a", "b", "c", "d", "b"]);
  assertEquals([flows.size, activity.stats().open], [3, 3]);
  await flows.close();
  assertEquals([flows.size, activity.stats().open], [0, 0]);
});

Deno.test("Flows has at most MAX_SOURCES of forged sources, and opens a bounded number at a time", async () => {
  const activity = new Activity({ onEvent() {} });
  const opened: string[] = [];
  const flows = makeFlows(activity, MAX_SOURCES, opened);
  for (let n = 0; n < 20_000; n++) flows.push(`${n}`, bytes("x"));
  assertEquals(opened.length, 1024);
  for (let n = 0; n < 20_000; n++) {
    if (n % 100 === 0) await new Promise((resolve) => setTimeout(resolve, 0));
    flows.push(`${n}`, bytes("x"));
  }
  assertEquals(flows.size, MAX_SOURCES);
  assert(activity.stats().open <= MAX_SOURCES, `${activity.stats().open}`);
  await flows.close();
  assertEquals(activity.stats().open, 0);
});

Deno.test("Flows does not try a refused source again at once, and reports few refusals but counts all", async () => {
  const errors: Error[] = [];
  const activity = new Activity({ onError: (error) => errors.push(error) });
  const opened: string[] = [];
  const flows = makeFlows(activity, 10, opened, true);
  for (let n = 0; n < 5; n++) {
    for (const key of ["a", "b"]) flows.push(key, bytes("x"));
    await new Promise((resolve) => setTimeout(resolve, 0));
  }
  assertEquals(opened, ["a", "b"]);
  assertEquals(errors.map(({ message }) => message), ["refused a"]);
  assertEquals(activity.stats().refused, { 429: 2 });
  assertEquals(activity.stats().dropped, 10);
  await flows.close();
});

Deno.test("a UDP port stays while the server cannot be reached for longer than wait, and serves again after that", async () => {
  await using echo = makeUdpTarget();
  const server = serveTunnel({ listen: FREE, ...ANY, onError() {}, onEvent() {} });
  await using proxy = makeProxy(server.serverAddr);
  const log = makeLog();
  const client = await openTunnel({
    connect: proxy.addr,
    forward: [`udp:${FREE}=${echo.addr}`],
    resume: false,
    wait: 50,
    ...log.options,
  });
  const [addr] = client.listenAddrs;
  using socket = bind();
  await promptly(ask(socket, bytes("before"), addr!));
  await proxy.stop();
  await promptly(log.until("finished"));
  await socket.send(bytes("lost"), addr!);
  await promptly(log.until(/cannot be reached|was lost|refused/i));
  await eventually(() => client.stats().dropped > 0);
  await proxy.start();
  await promptly(log.until("reconnected"));
  assertEquals(text(await promptly(ask(socket, bytes("after"), addr!))), "after");
  assertEquals([...client.listenAddrs], [addr!]);
  assertEquals(log.messages().filter((message) => /listen/.test(message)), []);
  await client.shutdown();
  await server.shutdown();
});

Deno.test("a UDP port at all addresses answers sources of IPv4 and IPv6", { ignore: !hasIpv6() }, async () => {
  await using echo = makeUdpTarget();
  await using pair = await makePair(ANY, { forward: [`udp:[::]:0=${echo.addr}`], insecure: true });
  const port = portOf(pair.client.listenAddrs[0]!.slice("udp:".length));
  for (const host of ["127.0.0.1", "::1"]) {
    using socket = bind(host);
    assertEquals(
      await promptly(ask(socket, bytes(host), host === "::1" ? `[::1]:${port}` : `${host}:${port}`)),
      bytes(host),
    );
  }
});

Deno.test("Flows ends the sources that are idle for too long, and no other", async () => {
  const { setTimeout } = globalThis;
  let [time, sweep] = [0, () => {}];
  performance.now = () => time;
  const hold = (run: () => void) => {
    sweep = run;
    return 0;
  };
  Object.assign(globalThis, { setTimeout: hold });
  try {
    const opened: string[] = [];
    const flows = makeFlows(new Activity({ onEvent() {} }), 3, opened);
    for (const key of ["a", "b", "c"]) {
      flows.push(key, bytes("x"));
      time += 1000;
    }
    time = 61_000; // a minute after the datagram of b
    sweep();
    assertEquals(flows.size, 1);
    for (const key of ["c", "a"]) flows.push(key, bytes("x"));
    assertEquals(opened, ["a", "b", "c", "a"]);
    await flows.close();
  } finally {
    Reflect.deleteProperty(performance, "now"); // that of the prototype is visible again
    globalThis.setTimeout = setTimeout;
  }
});

Deno.test("Flows does not close a source that only receives, for a new one or as idle", async () => {
  const activity = new Activity({ onEvent() {} });
  const opened: string[] = [];
  const arriving = new Map<string, (datagram: Uint8Array) => void>();
  const delivered: string[] = [];
  const flows = new Flows(activity, {
    max: 2,
    timeout: () => 60_000,
    open: (key) => {
      opened.push(key);
      const { stream } = makeBlocked();
      let wake = Promise.withResolvers<Uint8Array>();
      arriving.set(key, (datagram) => wake.resolve(encodeDatagram(datagram)));
      const ended = stream.read(new Uint8Array(1));
      const read = async (p: Uint8Array) => {
        const found = await Promise.race([wake.promise, ended]);
        if (found === null || typeof found === "number") return null;
        wake = Promise.withResolvers();
        p.set(found);
        return found.length;
      };
      return Promise.resolve({ stream: Object.assign(stream, { read }), route: { ...ROUTE, from: key } });
    },
    deliver: (key) => {
      delivered.push(key);
      return Promise.resolve(true);
    },
  });
  for (const key of ["a", "b"]) flows.push(key, bytes("x"));
  await eventually(() => activity.stats().open === 2);
  arriving.get("a")!(bytes("answer"));
  await eventually(() => delivered.length === 1);
  flows.push("c", bytes("x"));
  await eventually(() => opened.length === 3);
  flows.push("a", bytes("x"));
  assertEquals([opened, flows.size], [["a", "b", "c"], 2]);
  await flows.close();
});

Deno.test("tunnel: the server listens on the same port for TCP and for UDP of one client", async () => {
  await using tcp = makeEcho();
  await using udp = makeUdpTarget();
  const port = freePort();
  await using pair = await makePair({ allowListen: ["127.0.0.1:*", "udp:127.0.0.1:*"] }, {
    reverse: [`udp:${port}=${udp.addr}`, `${port}=${tcp.addr}`],
  });
  assertEquals(pair.client.listenAddrs, [`udp:127.0.0.1:${port}`, `127.0.0.1:${port}`]);
  using socket = bind();
  assertEquals(text(await promptly(ask(socket, bytes("abc"), `127.0.0.1:${port}`))), "abc");
  using connection = await dial(`127.0.0.1:${port}`);
  assertEquals(await say(connection, "hello"), "hello");
  connection.close();
});

Deno.test("checkTunnel() checks UDP as far as the server knows, and says when it is not allowed", async () => {
  await using echo = makeUdpTarget();
  await using pair = await makePair(ANY);
  const connect = pair.server.serverAddr;
  const place = `udp:${FREE}=${echo.addr}`;
  const checks = await Array.fromAsync(checkTunnel({ connect, forward: [place], reverse: [place] }));
  const found = checks.filter(({ name }) => name.includes("udp")).map(({ name, isOk, text }) => ({ name, isOk, text }));
  assertEquals(found[0], {
    name: `forward ${place}`,
    isOk: true,
    text: "allowed; whether datagrams arrive is unknown",
  });
  assertMatch(found[1]!.text, /^allowed; the server can listen on udp:127\.0\.0\.1:\d+$/);
  assertEquals(checks.filter(({ isOk }) => !isOk), []);
  const refused = await Array.fromAsync(checkTunnel({ connect, forward: ["udp:0=192.0.2.1:53"] }));
  assertMatch(refused.at(-1)!.text, /refused CONNECT-UDP 192\.0\.2\.1:53: not allowed/);
});

Deno.test("the log and the metrics name a source of UDP, its outcome and what was dropped", async () => {
  await using echo = makeUdpTarget();
  const place = `udp:${FREE}=${echo.addr}`;
  await using pair = await makePair(ANY, { forward: [place, `udp:${FREE}=192.0.2.1:9`], udpTimeout: 50, status: FREE });
  using socket = bind();
  await promptly(ask(socket, bytes("abc"), pair.client.listenAddrs[0]!));
  await promptly(pair.logs.client.until("finished"));
  await socket.send(bytes("refused"), pair.client.listenAddrs[1]!);
  await promptly(pair.logs.client.until(/not allowed/));
  const entry = eventEntry({ ...pair.logs.client.finished[0]!, duration: 60 });
  assertEquals(entry.text, `${socket.addr} > ${echo.addr} 3B/3B 60ms idle`);
  assertEquals([entry.outcome, "isIdle" in entry], ["idle", false]);
  const metrics = await (await fetch(`http://${pair.client.statusAddr}/metrics`)).text();
  assertMatch(metrics, /^sluice_datagrams_dropped_total 1$/m);
  const labels = `kind="forward",forward="${place}"`;
  assert(metrics.includes(`sluice_streams_total{${labels}} 1\n`), metrics);
});

// Programs.

/** Starts the command in a process without the configuration of this package, and its flag for `Deno.listenDatagram`. */
async function startCommand(args: string[], places: number): Promise<AsyncDisposable & { addrs: string[] }> {
  const script = new URL("../tunnel.ts", import.meta.url).href;
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-config", "--no-prompt", "--allow-net", script, ...args],
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
    env: { NO_COLOR: "1" },
  }).spawn();
  const watched = watch(child);
  const [printed] = await watched.until(new RegExp(`^(listening on \\S+\n){${places}}`, "m"));
  const addrs = printed.trimEnd().split("\n").map((line) => line.slice("listening on ".length));
  return { addrs, [Symbol.asyncDispose]: () => watched[Symbol.asyncDispose]() };
}

Deno.test("tunnel command: dig asks through --forward and --reverse", { ignore: !hasPrograms("dig") }, async () => {
  await using dns = makeUdpTarget(answerDns);
  const rules = ["--allow", `udp:${dns.addr}`, "--allow-listen", "udp:127.0.0.1:*"];
  await using server = await startCommand(["server", "--listen", "0", ...rules], 1);
  const place = `udp:0=${dns.addr}`;
  const args = ["--connect", server.addrs[0]!, "--forward", place, "--reverse", place, "--udp-timeout", "5"];
  await using client = await startCommand(["client", ...args], 2);
  for (const addr of client.addrs) {
    const port = `${portOf(addr.slice("udp:".length))}`;
    const output = await run("dig", ["@127.0.0.1", "-p", port, "+short", "+tries=5", "+time=2", "example.test", "A"]);
    assertEquals(text(output), "192.0.2.53\n", addr);
  }
});

Deno.test("tunnel command: UDP requires network access to the address it sends from", async () => {
  const script = new URL("../tunnel.ts", import.meta.url).href;
  const child = new Deno.Command(Deno.execPath(), {
    args: [
      "run",
      "--no-config",
      "--no-prompt",
      "--allow-net=127.0.0.1",
      script,
      "server",
      "--listen",
      "0",
      "--allow",
      "udp:*:*",
    ],
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
    env: { NO_COLOR: "1" },
  }).spawn();
  await using server = watch(child);
  const [, addr] = await server.until(/^listening on (\S+)\n/m);
  const session = await sessionOf(addr!);
  const asking = () => request(session.session, "CONNECT-UDP", "192.0.2.1:9");
  await assertRejects(asking, TunnelRefusedError, 'requires net access to "0.0.0.0:0"');
  // The process goes on.
  (await request(session.session, "CONNECT-UDP", "127.0.0.1:9")).stream.close();
  await session.close();
});
