/** UDP ASSOCIATE of SOCKS 5. */

import { assertEquals, assertMatch } from "@std/assert";
import { concat } from "@std/bytes";
import fc from "fast-check";
import { decodeSocksDatagram, encodeSocksDatagram, MAX_TARGETS } from "../tunnel/socks_udp.ts";
import { bytes, listenAgain, pattern, readSome, text, writeAll } from "./support.ts";
import {
  askSocks,
  dial,
  eventually,
  FREE,
  hasIpv6,
  HELLO,
  IPV4,
  makeEcho,
  makePair,
  portOf,
  promptly,
  socksRequest,
} from "./tunnel_support.ts";
import { bind, makeUdpTarget, type TestSocket } from "./udp_support.ts";

const named = (name: string) => [name.length, ...bytes(name)];
const portBytes = (port: number) => [port >> 8, port & 255];

/** Builds a datagram of a SOCKS client. */
const wrap = (kind: number, address: readonly number[], port: number, payload: Uint8Array, fragment = 0) =>
  concat([new Uint8Array([0, 0, fragment, kind, ...address, ...portBytes(port)]), payload]);

/** Requests UDP ASSOCIATE; returns the connection and the address for datagrams. */
async function associate(addr: string): Promise<Disposable & { connection: Deno.TcpConn; relay: string }> {
  const connection = await dial(addr);
  await writeAll(connection, concat([HELLO, socksRequest(3, 1, [0, 0, 0, 0], 0)]));
  assertEquals(Array.from(await readSome(connection, 6)), [5, 0, 5, 0, 0, 1]);
  const [a, b, c, d, high, low] = await readSome(connection, 6);
  const relay = `${[a, b, c, d].join(".")}:${high! * 256 + low!}`;
  return { connection, relay, [Symbol.dispose]: () => connection[Symbol.dispose]() };
}

/** Sends a datagram and receives the next, again and again if one is lost. */
async function exchange(socket: TestSocket, sent: Uint8Array, relay: string): Promise<Uint8Array> {
  const receiving = socket.receive();
  await socket.send(sent, relay);
  const timer = setInterval(() => socket.send(sent, relay), 1000);
  const { data, from } = await promptly(receiving).finally(() => clearInterval(timer));
  assertEquals(from, relay);
  return data;
}

const ANY = { allow: ["udp:127.0.0.1:*", "udp:localhost:*", "udp:[::1]:*"] };

Deno.test("tunnel: SOCKS forwards datagrams to addresses and names, each answered with its target in front", async () => {
  await using echo = makeUdpTarget();
  await using other = makeUdpTarget((data) => bytes(text(data).toUpperCase()));
  await using pair = await makePair(ANY, { socks: [FREE] });
  using client = await associate(pair.client.listenAddrs[0]!);
  assertMatch(client.relay, /^127\.0\.0\.1:\d+$/);
  using socket = bind();
  const ports = [portOf(echo.addr), portOf(other.addr)] as const;
  const cases: [kind: number, address: number[], port: number, sent: Uint8Array, answer: Uint8Array][] = [
    [1, IPV4, ports[0], bytes("abc"), bytes("abc")],
    [1, IPV4, ports[1], bytes("abc"), bytes("ABC")],
    [3, named("localhost"), ports[0], bytes("name"), bytes("name")],
    [1, IPV4, ports[0], new Uint8Array(0), new Uint8Array(0)],
    [1, IPV4, ports[0], pattern(60_000), pattern(60_000)],
  ];
  for (const [kind, address, port, sent, answer] of cases) {
    const received = await exchange(socket, wrap(kind, address, port, sent), client.relay);
    assertEquals(received, wrap(kind, address, port, answer));
  }
  const { client: tunnel, logs } = pair;
  client.connection.close();
  await promptly(logs.client.until("finished", 3));
  const [finished] = logs.client.finished.filter(({ to }) => to === echo.addr);
  const { kind, from, sent, received, error } = finished!;
  assertEquals({ kind, from, sent, received, error } as unknown, {
    kind: "socks",
    from: socket.addr,
    sent: 60_003,
    received: 60_003,
    error: undefined,
  });
  assertEquals([tunnel.stats().open, tunnel.stats().dropped, logs.client.messages()], [0, 0, []]);
});

Deno.test(
  "tunnel: SOCKS forwards datagrams to IPv6 addresses, and serves IPv6 clients",
  { ignore: !hasIpv6() },
  async () => {
    await using echo = makeUdpTarget(undefined, "::1");
    await using pair = await makePair(ANY, { socks: ["[::1]:0"] });
    using connection = await dial(pair.client.listenAddrs[0]!);
    await writeAll(connection, concat([HELLO, socksRequest(3, 4, new Array(16).fill(0), 0)]));
    const localhost = [...new Array<number>(15).fill(0), 1];
    assertEquals(Array.from(await readSome(connection, 22)), [5, 0, 5, 0, 0, 4, ...localhost]);
    const [high, low] = await readSome(connection, 2);
    using socket = bind("::1");
    const sent = wrap(4, localhost, portOf(echo.addr), bytes("six"));
    assertEquals(await exchange(socket, sent, `[::1]:${high! * 256 + low!}`), sent);
  },
);

Deno.test("tunnel: SOCKS drops and counts malformed datagrams, at every byte, and those of fragments; and continues", async () => {
  await using echo = makeUdpTarget();
  await using pair = await makePair(ANY, { socks: [FREE] });
  using client = await associate(pair.client.listenAddrs[0]!);
  using socket = bind();
  const port = portOf(echo.addr);
  const good = wrap(1, IPV4, port, bytes("good"));
  const bad = [
    ...Array.from({ length: 10 }, (_, end) => wrap(1, IPV4, port, new Uint8Array(0)).subarray(0, end)),
    ...Array.from(
      { length: 15 },
      (_, end) => wrap(3, named("localhost"), port, new Uint8Array(0)).subarray(0, end + 1),
    ),
    ...Array.from({ length: 21 }, (_, end) => wrap(4, new Array(16).fill(0), port, new Uint8Array(0)).subarray(0, end)),
    wrap(1, IPV4, port, bytes("fragment"), 1),
    wrap(1, IPV4, port, bytes("last fragment"), 0x81),
    wrap(0, IPV4, port, bytes("type 0")),
    wrap(2, IPV4, port, bytes("type 2")),
    wrap(1, IPV4, 0, bytes("port 0")),
    wrap(3, named(""), port, bytes("no name")),
    wrap(3, named("a b"), port, bytes("malformed name")),
    wrap(3, [255, ...bytes("short")], port, bytes("")),
  ];
  for (const [n, datagram] of bad.entries()) {
    await socket.send(datagram, client.relay);
    // One by one: the kernel would drop some of a burst.
    await eventually(() => pair.client.stats().dropped === n + 1);
  }
  assertEquals(await exchange(socket, good, client.relay), good);
  assertEquals(echo.sources.length, 1);
});

Deno.test("tunnel: SOCKS accepts datagrams of the address that was first to send only, and ends with its connection", async () => {
  await using echo = makeUdpTarget();
  await using pair = await makePair(ANY, { socks: [FREE] });
  const client = await associate(pair.client.listenAddrs[0]!);
  using socket = bind();
  using stranger = bind();
  using foreign = bind("127.0.0.2");
  const datagram = wrap(1, IPV4, portOf(echo.addr), bytes("abc"));
  // It has another IP address than the client.
  await foreign.send(datagram, client.relay);
  await eventually(() => pair.client.stats().dropped === 1);
  assertEquals(await exchange(socket, datagram, client.relay), datagram);
  await stranger.send(datagram, client.relay);
  await eventually(() => pair.client.stats().dropped === 2);
  assertEquals(echo.sources.length, 1);
  client.connection.close();
  await promptly(pair.logs.client.until("finished"));
  using successor = await listenAgain(() => bind("127.0.0.1", portOf(client.relay)));
  assertEquals(successor.addr, client.relay);
  assertEquals(pair.client.stats().open, 0);
});

Deno.test("tunnel: SOCKS refuses targets of UDP that are not allowed, and serves the others", async () => {
  await using echo = makeUdpTarget();
  await using tcp = makeEcho();
  await using pair = await makePair({ allow: [`udp:${echo.addr}`, tcp.addr] }, { socks: [FREE] });
  using client = await associate(pair.client.listenAddrs[0]!);
  using socket = bind();
  await socket.send(wrap(1, IPV4, portOf(tcp.addr), bytes("abc")), client.relay);
  await promptly(pair.logs.client.until(/refused CONNECT-UDP 127\.0\.0\.1:\d+: not allowed/));
  const good = wrap(1, IPV4, portOf(echo.addr), bytes("good"));
  assertEquals(await exchange(socket, good, client.relay), good);
  // A stream for connections still works.
  using connection = await dial(pair.client.listenAddrs[0]!);
  assertEquals(await askSocks(connection, socksRequest(1, 1, IPV4, portOf(tcp.addr))), 0);
});

Deno.test("tunnel: SOCKS keeps a bounded number of targets of one client", async () => {
  await using pair = await makePair({ allow: ["udp:127.0.0.0/8:*"] }, { socks: [FREE] });
  using client = await associate(pair.client.listenAddrs[0]!);
  using socket = bind();
  const count = MAX_TARGETS + 44;
  for (let n = 0; n < count; n++) {
    const before = pair.client.stats().streams;
    const datagram = wrap(1, [127, 1, n >> 8, n & 255], 9, bytes("x"));
    await socket.send(datagram, client.relay);
    await eventually(() => pair.client.stats().streams === before + 1);
  }
  assertEquals(pair.client.stats().open, MAX_TARGETS);
  await eventually(() => pair.server.stats().open === MAX_TARGETS);
});

Deno.test("shutdown() of a client ends SOCKS associations, with and without a datagram", async () => {
  await using echo = makeUdpTarget();
  await using pair = await makePair(ANY, { socks: [FREE] });
  using idle = await associate(pair.client.listenAddrs[0]!);
  using busy = await associate(pair.client.listenAddrs[0]!);
  using socket = bind();
  const datagram = wrap(1, IPV4, portOf(echo.addr), bytes("abc"));
  assertEquals(await exchange(socket, datagram, busy.relay), datagram);
  await promptly(pair.client.shutdown());
  for (const { connection } of [idle, busy]) assertEquals(await connection.read(new Uint8Array(1)), null);
});

/** Begins with a user and a password; returns the reply to them. */
async function login(connection: Deno.TcpConn, password: string): Promise<number> {
  await writeAll(connection, new Uint8Array([5, 1, 2, 1, ...named("user"), ...named(password)]));
  const [, method, , reply] = await readSome(connection, 4);
  assertEquals(method, 2);
  return reply!;
}

Deno.test("tunnel: SOCKS serves UDP ASSOCIATE after the password only, also at an address of http", async () => {
  await using echo = makeUdpTarget();
  await using pair = await makePair(ANY, { http: [FREE], proxyAuth: "user:password" });
  const [addr] = pair.client.listenAddrs;
  using refused = await dial(addr!);
  assertEquals(await login(refused, "wrong"), 1);
  await writeAll(refused, socksRequest(3, 1, [0, 0, 0, 0], 0)).catch(() => {});
  assertEquals(await refused.read(new Uint8Array(1)).catch(() => null), null);

  using connection = await dial(addr!);
  assertEquals(await login(connection, "password"), 0);
  await writeAll(connection, socksRequest(3, 1, [0, 0, 0, 0], 0));
  assertEquals(Array.from(await readSome(connection, 8)), [5, 0, 0, 1, ...IPV4]);
  const [high, low] = await readSome(connection, 2);
  using socket = bind();
  const sent = wrap(1, IPV4, portOf(echo.addr), bytes("abc"));
  assertEquals(await exchange(socket, sent, `127.0.0.1:${high! * 256 + low!}`), sent);
  connection.close();
  await promptly(pair.logs.client.until("finished"));
  assertEquals(pair.logs.client.finished.map(({ kind }) => kind), ["http"]);
});

Deno.test("tunnel: reverseSocks refuses UDP ASSOCIATE", async () => {
  await using pair = await makePair({ allowListen: ["127.0.0.1:*"] }, { reverseSocks: [FREE], allow: ["*:*"] });
  using connection = await dial(pair.client.listenAddrs[0]!);
  assertEquals(await promptly(askSocks(connection, socksRequest(3, 1, [0, 0, 0, 0], 0))), 7);
  await promptly(pair.logs.client.until(/unsupported SOCKS command 3/));
});

Deno.test("tunnel: SOCKS refuses UDP ASSOCIATE at a Unix socket", async () => {
  const folder = await Deno.makeTempDir();
  const path = `${folder}/socks`;
  await using pair = await makePair(ANY, { socks: [`unix:${path}`] });
  using connection = await Deno.connect({ transport: "unix", path });
  assertEquals(await askSocks(connection, socksRequest(3, 1, [0, 0, 0, 0], 0)), 7);
  await promptly(pair.logs.client.until(/UDP ASSOCIATE requires a client that has connected over TCP/));
  await pair.client.shutdown();
  await Deno.remove(folder, { recursive: true });
});

Deno.test("decodeSocksDatagram() reads what encodeSocksDatagram() wrote, and never throws", () => {
  const host = fc.oneof(fc.ipV4(), fc.ipV6().map((text) => new URL(`http://[${text}]/`).hostname), fc.domain());
  fc.assert(fc.property(host, fc.integer({ min: 1, max: 65535 }), fc.uint8Array(), (host, port, payload) => {
    // Mapped addresses are read as IPv4.
    fc.pre(!host.startsWith("[::ffff:"));
    const decoded = decodeSocksDatagram(encodeSocksDatagram(`${host}:${port}`, payload));
    assertEquals(decoded, { target: `${host}:${port}`, payload });
  }));
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), (datagram) => {
      const rest = datagram.slice();
      if (rest.length > 3) [rest[2], rest[3]] = [0, [1, 3, 4][rest[3]! % 3]!];
      decodeSocksDatagram(datagram);
      decodeSocksDatagram(rest);
    }),
    { numRuns: 2000 },
  );
});
