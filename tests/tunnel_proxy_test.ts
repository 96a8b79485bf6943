/** The PROXY protocol: headers of both versions, proxies in front of a server, and targets that expect a header. */

import { assert, assertEquals, assertMatch, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import { concat } from "@std/bytes";
import { type DuplexConnection, Session } from "../mod.ts";
import { openTunnel, serveTunnel } from "../tunnel.ts";
import { parseForward } from "../tunnel/address.ts";
import { parseNetworks } from "../tunnel/cidr.ts";
import { encodeProxyHeader, MAX_REST, readProxyHeader } from "../tunnel/proxy_protocol.ts";
import { parseAddress } from "../tunnel/visitor.ts";
import { findProgram, hasPrograms, makeFolder, run, watch } from "./programs.ts";
import { bytes, freePort, isRefused, LOOPBACK, readAll, text, writeAll } from "./support.ts";
import {
  answerOptions,
  at,
  changeDelays,
  dial,
  exceedHandshakes,
  FREE,
  hasIpv6,
  isEnded,
  makeEcho,
  makeLog,
  makePair,
  openAtSession,
  promptly,
  readHead,
  say,
} from "./tunnel_support.ts";

/** A connection that reads these bytes in chunks, then its end. */
function source(content: Uint8Array, chunk = content.length): DuplexConnection & { rest(): Uint8Array } {
  let at = 0;
  return {
    read(p) {
      const part = content.subarray(at, at + Math.min(chunk, p.length));
      at += part.length;
      p.set(part);
      return Promise.resolve(part.length === 0 ? null : part.length);
    },
    write: (p) => Promise.resolve(p.length),
    closeWrite: () => Promise.resolve(),
    close() {},
    rest: () => content.subarray(at),
  };
}

const SIGNATURE = "0d0a0d0a000d0a515549540a";
const hex = (digits: string) => Uint8Array.fromHex(digits.replaceAll(" ", ""));
/** Encodes a header of version 2, from its command and family and the bytes after its length. */
const binary = (start: string, rest = "") => {
  const length = hex(rest).length.toString(16).padStart(4, "0");
  return hex(`${SIGNATURE} ${start} ${length} ${rest}`);
};

const IPV4_ADDRESSES = "c0000201 c6336402 1f40 01bb";
const IPV6_ADDRESSES = "20010db8 00000000 00000000 00000001 20010db8 00000000 00000000 00000002 1f40 01bb";
const MAPPED_ADDRESSES = "00000000 00000000 0000ffff c0000201 00000000 00000000 0000ffff c0000202 1f40 01bb";
const [ipv4, ipv6] = [{ hostname: "192.0.2.1", port: 8000 }, { hostname: "2001:db8::1", port: 8000 }];

const accepted: [what: string, header: Uint8Array, address: { hostname: string; port: number } | undefined][] = [
  ["version 2, TCP over IPv4", binary("2111", IPV4_ADDRESSES), ipv4],
  ["version 2, TCP over IPv6", binary("2121", IPV6_ADDRESSES), ipv6],
  ["version 2, IPv4 as IPv6", binary("2121", MAPPED_ADDRESSES), ipv4],
  ["version 2, with extensions", binary("2111", `${IPV4_ADDRESSES} 04 0003 000000`), ipv4],
  ["version 2, with the most extensions", binary("2111", IPV4_ADDRESSES + "00".repeat(MAX_REST - 12)), ipv4],
  ["version 2, LOCAL", binary("2000"), undefined],
  ["version 2, LOCAL with addresses", binary("2011", IPV4_ADDRESSES), undefined],
  ["version 2, without a family", binary("2100"), undefined],
  ["version 2, Unix sockets", binary("2131", "00".repeat(216)), undefined],
  ["version 1, TCP4", bytes("PROXY TCP4 192.0.2.1 198.51.100.2 8000 443\r\n"), ipv4],
  ["version 1, TCP6", bytes("PROXY TCP6 2001:db8::1 2001:db8::2 8000 443\r\n"), ipv6],
  ["version 1, IPv4 as TCP6", bytes("PROXY TCP6 ::ffff:192.0.2.1 ::ffff:192.0.2.2 8000 443\r\n"), ipv4],
  ["version 1, UNKNOWN", bytes("PROXY UNKNOWN\r\n"), undefined],
  ["version 1, UNKNOWN with addresses", bytes(`PROXY UNKNOWN ${"f".repeat(91)}\r\n`), undefined],
];
for (const [what, header, address] of accepted) {
  Deno.test(`readProxyHeader() reads ${what}, and nothing after it`, async () => {
    for (const chunk of [1, 5, 10_000]) {
      const from = source(concat([header, bytes("after")]), chunk);
      assertEquals(await readProxyHeader(from), address);
      assertEquals(text(from.rest()), "after");
    }
  });
}

const ended = "connection closed during handshake";
const refused: [what: string, header: Uint8Array, message: string][] = [
  ["nothing", bytes(""), "expected a PROXY protocol header, received the end of the connection"],
  ["another protocol", bytes("GET / HTTP/1.1\r\n\r\n"), 'expected a PROXY protocol header, received "G'],
  ["a first byte that differs", bytes("\0"), 'expected a PROXY protocol header, received "?"'],
  ["a signature that differs at its end", hex("0d0a0d0a000d0a515549540b"), "expected a PROXY protocol header"],
  ["a part of a signature", hex("0d0a0d0a00"), "received the end of the connection"],
  ["version 2 without a length", hex(`${SIGNATURE} 2111 00`), ended],
  ["version 2 with a truncated address", hex(`${SIGNATURE} 2111 000c c0000201`), ended],
  [
    "version 2 with too few bytes for IPv4",
    binary("2111", "c0000201"),
    "expected 12 bytes of PROXY protocol addresses, received 4",
  ],
  [
    "version 2 with too few bytes for IPv6",
    binary("2121", IPV4_ADDRESSES),
    "expected 36 bytes of PROXY protocol addresses, received 12",
  ],
  [
    "version 2 beyond the maximum",
    binary("2111", "00".repeat(MAX_REST + 1)),
    `PROXY protocol header exceeds ${MAX_REST} bytes, received 4097`,
  ],
  [
    "version 3",
    binary("3111", IPV4_ADDRESSES),
    "unsupported PROXY protocol command 0x31, expected 0x20 (LOCAL) or 0x21 (PROXY)",
  ],
  ["an unknown command", binary("2211", IPV4_ADDRESSES), "unsupported PROXY protocol command 0x22"],
  ["an unknown family", binary("2141", IPV4_ADDRESSES), "unsupported PROXY protocol family 0x41"],
  [
    "UDP",
    binary("2112", IPV4_ADDRESSES),
    "unsupported PROXY protocol family 0x12, expected 0x11 (TCP4) or 0x21 (TCP6)",
  ],
  ["a line without an end", bytes(`PROXY UNKNOWN ${"f".repeat(94)}`), "PROXY protocol line exceeds 107 bytes"],
  ["a line that ends early", bytes("PROXY TCP4 192.0.2.1"), ended],
  ...[
    "PROXY TCP4 192.0.2.1 198.51.100.2 8000",
    "PROXY TCP4 192.0.2.1 198.51.100.2 8000 443 1",
    "PROXY TCP4 2001:db8::1 2001:db8::2 8000 443",
    "PROXY TCP6 192.0.2.1 198.51.100.2 8000 443",
    "PROXY TCP4 192.0.2.256 198.51.100.2 8000 443",
    "PROXY TCP4 192.0.2.1 198.51.100.2 65536 443",
    "PROXY TCP4 192.0.2.1 198.51.100.2 08000 443",
    "PROXY TCP4  192.0.2.1 198.51.100.2 8000 443",
    "PROXY UDP4 192.0.2.1 198.51.100.2 8000 443",
    "PROXY unknown",
  ].map((line) => [`"${line}"`, bytes(`${line}\r\n`), `expected a PROXY protocol line, received "${line}"`] as const),
].map(([what, header, message]) => [what, header, message] as [string, Uint8Array, string]);
for (const [what, header, message] of refused) {
  Deno.test(`readProxyHeader() rejects ${what}`, async () => {
    for (const chunk of [1, 10_000]) await assertRejects(() => readProxyHeader(source(header, chunk)), Error, message);
  });
}

Deno.test("readProxyHeader() rejects a byte of another protocol without waiting for more", async () => {
  const from = { ...source(bytes("")), read: (p: Uint8Array) => (p.set([1]), Promise.resolve(1)) };
  await assertRejects(() => readProxyHeader(from), Error, "expected a PROXY protocol header");
});

Deno.test("encodeProxyHeader() encodes what readProxyHeader() reads", async () => {
  for (
    const [source_, destination, digits] of [
      [ipv4, { hostname: "198.51.100.2", port: 443 }, `2111 000c ${IPV4_ADDRESSES}`],
      [ipv6, { hostname: "2001:db8::2", port: 443 }, `2121 0024 ${IPV6_ADDRESSES}`],
      [ipv4, undefined, "2111 000c c0000201 00000000 1f40 0000"],
      [ipv4, { hostname: "::", port: 443 }, "2111 000c c0000201 00000000 1f40 01bb"],
      [ipv4, { hostname: "web.example", port: 443 }, "2111 000c c0000201 00000000 1f40 01bb"],
      [undefined, ipv4, "2100 0000"],
    ] as const
  ) {
    const header = encodeProxyHeader(source_, destination);
    assertEquals(header.toHex(), hex(`${SIGNATURE} ${digits}`).toHex());
    assertEquals(await readProxyHeader(source(header)), source_);
  }
  for (const hostname of ["::", "::1", "1::", "1::8", "1:2:3:4:5:6:7:8", "fe80::1:2:3:4"]) {
    assertEquals(await readProxyHeader(source(encodeProxyHeader({ hostname, port: 1 }))), { hostname, port: 1 });
  }
  const mapped = encodeProxyHeader({ hostname: "::ffff:192.0.2.1", port: 8000 });
  assertEquals(await readProxyHeader(source(mapped)), ipv4);
  assertEquals(encodeProxyHeader({ hostname: "fe80::1%eth0", port: 1 }), encodeProxyHeader(undefined));
});

Deno.test("parseNetworks() matches addresses and networks of both versions, mapped ones too", () => {
  const isIn = parseNetworks("acceptProxy", ["10.0.0.0/8", "192.0.2.1", "2001:db8::/32", "::1", "198.51.100.128/25"]);
  for (const hostname of ["10.0.0.0", "10.255.255.255", "192.0.2.1", "2001:db8:ffff::1", "::1", "198.51.100.128"]) {
    assertEquals(isIn(hostname), true, hostname);
  }
  for (const hostname of ["::ffff:10.1.2.3", "::FFFF:192.0.2.1"]) assertEquals(isIn(hostname), true, hostname);
  for (
    const hostname of ["11.0.0.0", "192.0.2.2", "2001:db9::1", "::2", "198.51.100.127", "::ffff:11.0.0.0", "host", ""]
  ) {
    assertEquals(isIn(hostname), false, hostname);
  }
  const all = parseNetworks("acceptProxy", ["0.0.0.0/0", "::/0"]);
  assertEquals([all("1.2.3.4"), all("1::2")], [true, true]);
  const single = parseNetworks("acceptProxy", ["192.0.2.1/32", "2001:db8::1/128"]);
  const hostnames = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"];
  assertEquals(hostnames.map(single), [true, false, true, false]);
});

Deno.test("parseNetworks() throws for a malformed entry", () => {
  for (
    const entry of ["", "host", "10.0.0.0/33", "10.0.0.0/", "10.0.0/8", "::/129", "10.0.0.0/-1", "10.0.0.0/8/8", "/8"]
  ) {
    const message = `acceptProxy must be an IP address or ADDRESS/BITS, received "${entry}"`;
    assertThrows(() => parseNetworks("acceptProxy", [entry]), RangeError, message);
  }
});

Deno.test("parseForward() accepts ,proxy after LISTEN=TARGET and after LISTEN", () => {
  const parsed = (text: string) => Object.values(parseForward("forward", text)).slice(0, 3);
  assertEquals(parsed("8080=web:80,proxy"), ["8080", "web:80", true]);
  assertEquals(parsed("8080,proxy"), ["8080", undefined, true]);
  assertEquals(parsed("8080=web:80"), ["8080", "web:80", false]);
  for (const text of ["8080=web:80,prox", "8080,proxy=web:80", ",proxy", "8080=web:80,proxy,proxy"]) {
    assertThrows(() => parseForward("forward", text), RangeError, "forward must be");
  }
});

Deno.test("parseAddress() returns an IP address and a port, and undefined for other text", () => {
  assertEquals(parseAddress("192.0.2.1:8000"), ipv4);
  assertEquals(parseAddress("[2001:db8::1]:8000"), ipv6);
  for (
    const text of ["", "192.0.2.1", "web:80", "[192.0.2.1]:80", "1.2.3:80", "1.2.3.4:65536", "1::2:80", "1.2.3.4:80 x"]
  ) {
    assertEquals(parseAddress(text), undefined, text);
  }
});

/** Starts a server behind proxies at loopback addresses, with the echo as its target. */
function makeProxied(acceptProxy = ["127.0.0.0/8"]) {
  const echo = makeEcho();
  const log = makeLog();
  const server = serveTunnel({ listen: FREE, target: echo.addr, acceptProxy, ...log.options });
  const dispose = async () => {
    await server.shutdown();
    await echo.close();
  };
  return { server, log, [Symbol.asyncDispose]: dispose };
}

Deno.test("serveTunnel() with acceptProxy reports the address of the header as that of the client", async () => {
  await using proxied = makeProxied();
  const { server, log } = proxied;
  const headers = [binary("2111", IPV4_ADDRESSES), bytes("PROXY TCP6 2001:db8::1 2001:db8::2 8000 443\r\n")];
  for (const version of [1, 2] as const) {
    for (const header of headers) {
      const connection = await dial(server.serverAddr);
      await writeAll(connection, header);
      const session = Session.client(connection, { version });
      const stream = await session.openStream();
      assertEquals(await say(stream, "hello"), "hello");
      stream.close();
      await session.close();
      await session.closed;
    }
  }
  await log.until("finished", 4);
  const addresses = ["192.0.2.1:8000", "[2001:db8::1]:8000"];
  const expected = [...addresses, ...addresses];
  assertEquals(log.events.map((event) => event.type === "connected" && event.clientAddr), expected);
  assertEquals(log.finished.map(({ from }) => from), expected);
  assertEquals(log.errors, []);
});

Deno.test("serveTunnel() with acceptProxy reports the proxy's own address for LOCAL and UNKNOWN", async () => {
  await using proxied = makeProxied();
  const { server, log } = proxied;
  for (const header of [binary("2000"), binary("2100"), bytes("PROXY UNKNOWN\r\n")]) {
    const connection = await dial(server.serverAddr);
    const own = at(connection.localAddr as Deno.NetAddr);
    await writeAll(connection, header);
    const session = Session.client(connection);
    const stream = await session.openStream();
    assertEquals(await say(stream, "hello"), "hello");
    const connected = log.events.at(-1);
    assertEquals(connected?.type === "connected" && connected.clientAddr, own);
    await session.close();
    await session.closed;
  }
});

Deno.test("serveTunnel() with acceptProxy refuses a connection of a proxy without a valid header, and counts it", async () => {
  await using proxied = makeProxied();
  const { server, log } = proxied;
  for (const [n, header] of [bytes("\x02\0\0\0\x03\0\0\0"), binary("2211"), bytes("PROXY nonsense\r\n")].entries()) {
    using connection = await dial(server.serverAddr);
    await writeAll(connection, header);
    assertEquals(await promptly(isEnded(connection)), true);
    await log.until(/^Refused a connection from 127\.0\.0\.1:\d+: .*PROXY protocol/, n + 1);
  }
  assertEquals(server.stats().refused, { 400: 3 });
  assertEquals(log.events, []);
});

Deno.test("serveTunnel() with acceptProxy serves others while a proxy has sent no header or half of one", async () => {
  await using proxied = makeProxied();
  const { server, log } = proxied;
  using _silent = await dial(server.serverAddr);
  using half = await dial(server.serverAddr);
  await writeAll(half, bytes("PROXY TCP4 "));
  const connection = await dial(server.serverAddr);
  await writeAll(connection, binary("2111", IPV4_ADDRESSES));
  const session = Session.client(connection);
  const stream = await session.openStream();
  assertEquals(await promptly(say(stream, "hello")), "hello");
  assertEquals(log.errors, []);
  await session.close();
  await session.closed;
});

Deno.test("serveTunnel() with acceptProxy refuses a connection whose header is not complete after 10 seconds", async () => {
  using _delays = changeDelays((delay) => delay === 10_000 ? 10 : delay);
  await using proxied = makeProxied();
  const { server, log } = proxied;
  for (const [n, part] of ["", "PROXY TCP4 ", "\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c"].entries()) {
    using connection = await dial(server.serverAddr);
    await writeAll(connection, bytes(part));
    assertEquals(await promptly(isEnded(connection)), true);
    await log.until(/^Refused a connection from \S+: handshake timed out after 10000 ms$/, n + 1);
  }
});

Deno.test("serveTunnel() with acceptProxy: one handshake more than 512 ends the oldest, and no session", async () => {
  await using proxied = makeProxied();
  const { server, log } = proxied;
  const open = async (connection: Deno.TcpConn) => {
    await writeAll(connection, binary("2111", IPV4_ADDRESSES));
    return Session.client(connection);
  };
  const check = async (session: Session) => {
    await using stream = await session.openStream();
    assertEquals(await promptly(say(stream, "hello")), "hello");
  };
  const before = await open(await dial(server.serverAddr));
  await check(before);
  const connections = await exceedHandshakes(server.serverAddr, log);
  const newest = await open(connections.pop()!);
  await check(newest);
  await check(before);
  for (const session of [before, newest]) {
    await session.close();
    await session.closed;
  }
  for (const connection of connections) connection.close();
});

Deno.test("serveTunnel() with acceptProxy treats a header from another address as garbage", async () => {
  await using proxied = makeProxied(["192.0.2.0/24"]);
  const { server, log } = proxied;
  using connection = await dial(server.serverAddr);
  await writeAll(connection, binary("2111", IPV4_ADDRESSES));
  assertEquals(await promptly(isEnded(connection)), true);
  await log.until(/^A client's connection from \S+ failed: not valid smux/i);
  const [event] = log.events;
  assertEquals(event?.type === "connected" && event.clientAddr, at(connection.localAddr as Deno.NetAddr));
  // Without a header it is a client like any other.
  const session = Session.client(await dial(server.serverAddr));
  const stream = await session.openStream();
  assertEquals(await say(stream, "hello"), "hello");
  await session.close();
});

Deno.test("serveTunnel() with acceptProxy ends by shutdown and signal while a header is incomplete", async () => {
  for (const how of ["shutdown", "signal"]) {
    const stop = new AbortController();
    const log = makeLog();
    const options = { listen: FREE, target: "1", acceptProxy: ["127.0.0.1"], signal: stop.signal };
    const server = serveTunnel({ ...options, ...log.options });
    using connection = await dial(server.serverAddr);
    await writeAll(connection, bytes("PROXY"));
    // The server has accepted the first once it has refused the second.
    using other = await dial(server.serverAddr);
    await writeAll(other, bytes("x"));
    await log.until(/^Refused a connection/);
    if (how === "signal") stop.abort();
    else server.shutdown();
    await promptly(server.finished);
    assertEquals(await isEnded(connection), true);
    assertEquals(await isRefused(() => dial(server.serverAddr)), true);
    assertEquals(log.errors.length, 1);
  }
});

Deno.test("serveTunnel() throws for acceptProxy that is malformed, or with a Unix socket or a certificate", () => {
  const options = { listen: FREE, target: "1" };
  const proxied = (acceptProxy: string[], more = {}) => () => serveTunnel({ ...options, acceptProxy, ...more });
  assertThrows(proxied(["host"]), RangeError, 'acceptProxy must be an IP address or ADDRESS/BITS, received "host"');
  const unix = { listen: "unix:/nowhere/socket" };
  assertThrows(proxied(["::1"], unix), RangeError, "acceptProxy requires listen to be HOST:PORT");
  assertThrows(proxied(["::1"], { cert: "x", key: "y" }), RangeError, "acceptProxy cannot be combined with cert");
});

/** A target that expects a header of version 2, and answers with the address in it. */
function makeExpecting(where: { hostname: string; port: number } = LOOPBACK) {
  const listener = Deno.listen(where);
  const answering = (async () => {
    for await (const connection of listener) {
      using answered = connection;
      const address = await readProxyHeader(answered);
      await writeAll(answered, bytes(address === undefined ? "unknown" : at(address)));
    }
  })();
  const dispose = async () => {
    listener.close();
    await answering;
  };
  return { addr: at(listener.addr), [Symbol.asyncDispose]: dispose };
}

Deno.test("openTunnel() with ,proxy sends the address of the visitor to the target, of reverse and of forward", async () => {
  for (const version of [1, 2] as const) {
    await using target = makeExpecting();
    await using pair = await makePair({ allow: [target.addr], allowListen: ["*:*"], insecure: true }, {
      forward: [`${FREE}=${target.addr},proxy`],
      reverse: [`${FREE}=${target.addr},proxy`, ...hasIpv6() ? [`[::1]:0=${target.addr},proxy`] : []],
      version,
    });
    const { client, logs } = pair;
    for (const [n, addr] of client.listenAddrs.entries()) {
      using visitor = await dial(addr);
      assertEquals(text(await readAll(visitor)), at(visitor.localAddr as Deno.NetAddr));
      visitor.close();
      await logs.client.until("finished", n + 1);
      assertEquals(logs.client.finished[n]!.from, at(visitor.localAddr as Deno.NetAddr));
    }
  }
});

Deno.test("openTunnel() with ,proxy sends the address of a visitor to the fixed target of a server", async () => {
  await using target = makeExpecting();
  await using pair = await makePair({ target: target.addr }, { forward: [`${FREE},proxy`] });
  using visitor = await dial(pair.client.listenAddrs[0]!);
  assertEquals(text(await readAll(visitor)), at(visitor.localAddr as Deno.NetAddr));
});

Deno.test("openTunnel() with ,proxy sends a header without an address for a visitor at a Unix socket", async () => {
  await using folder = await makeFolder("proxy");
  const path = (name: string) => `${folder.path}/${name}`;
  await using target = makeExpecting();
  await using _pair = await makePair(
    { allow: [target.addr], allowListen: [`unix:${path("reverse")}`] },
    {
      forward: [`unix:${path("forward")}=${target.addr},proxy`],
      reverse: [`unix:${path("reverse")}=${target.addr},proxy`],
    },
  );
  for (const name of ["forward", "reverse"]) {
    using visitor = await Deno.connect({ transport: "unix", path: path(name) });
    assertEquals(text(await readAll(visitor)), "unknown");
  }
});

Deno.test("openTunnel() names the server as the origin when Forwarded-For is absent or malformed", async () => {
  await using echo = makeEcho();
  for (const line of ["", "Forwarded-For: web.example:80\r\n", "Forwarded-For: 1.2.3.4\r\n"]) {
    const log = makeLog();
    const { opening, session } = await openAtSession({ reverse: [`9=${echo.addr}`], ...log.options });
    const bound = await session.acceptStream();
    assertMatch(text(await readHead(bound)), /^BIND 9 /);
    await writeAll(bound, bytes("HTTP/1.1 200 OK\r\nAddress: 127.0.0.1:9\r\n\r\n"));
    const client = await opening;
    const stream = await session.openStream();
    await writeAll(stream, bytes(`CONNECT 9 HTTP/1.1\r\n${line}\r\n`));
    assertMatch(text(await readHead(stream)), /^HTTP\/1\.1 200 /);
    assertEquals(await say(stream, "hello"), "hello");
    stream.close();
    await log.until("finished");
    assertEquals(log.finished[0]!.from, client.serverAddr);
    await client.shutdown();
    await session.closed;
  }
});

Deno.test("serveTunnel() sends Forwarded-For with the CONNECT of a reverse forward only", async () => {
  const log = makeLog();
  await using server = serveTunnel({ listen: FREE, allow: ["*:*"], allowListen: ["*:*"], ...log.options });
  const session = Session.client(await dial(server.serverAddr));
  const bound = await session.openStream();
  await writeAll(bound, bytes("BIND 127.0.0.1:0 HTTP/1.1\r\n\r\n"));
  const [, addr] = /^Address: (\S+)\r$/m.exec(text(await readHead(bound)))!;
  using visitor = await dial(addr!);
  const stream = await session.acceptStream();
  const head = text(await readHead(stream));
  assertStringIncludes(head, `\r\nForwarded-For: ${at(visitor.localAddr as Deno.NetAddr)}\r\n`);
  visitor.close();
  await session.close();
  await session.closed;

  const listener = Deno.listen(LOOPBACK);
  const opening = openTunnel({
    connect: at(listener.addr),
    forward: [`${FREE}=web:80`],
    reconnect: false,
    resume: false,
  });
  const peer = Session.server(await listener.accept());
  listener.close();
  await answerOptions(peer);
  const client = await opening;
  client.finished.catch(() => {});
  const local = await dial(client.listenAddrs[0]!);
  const asked = await peer.acceptStream();
  assertEquals(/forwarded/i.test(text(await readHead(asked))), false);
  await writeAll(asked, bytes("HTTP/1.1 200 OK\r\n\r\n"));
  asked.close();
  assertEquals(await isEnded(local), true);
  local.close();
  await client.shutdown();
  await peer.close();
});

/** Starts HAProxy with a configuration, and waits until it listens. */
async function startHaproxy(config: string) {
  const folder = await makeFolder("haproxy");
  const file = `${folder.path}/haproxy.cfg`;
  const defaults = "defaults\n  timeout connect 5s\n  timeout client 20s\n  timeout server 20s\n";
  await Deno.writeTextFile(file, `${defaults}${config}`);
  // With -W the program reports when its worker listens.
  const args = ["-W", "-db", "-f", file];
  const watched = watch(
    new Deno.Command(findProgram("haproxy")!, { args, stdin: "null", stdout: "piped", stderr: "piped" }).spawn(),
  );
  await watched.until(/Loading success/, "stderr");
  const dispose = async () => {
    await watched.end("SIGTERM");
    await folder[Symbol.asyncDispose]();
  };
  return { [Symbol.asyncDispose]: dispose };
}

const haproxy = { ignore: !hasPrograms("haproxy") };

Deno.test(
  "tunnel and haproxy: a server behind send-proxy and send-proxy-v2 sees the addresses of clients",
  haproxy,
  async () => {
    await using proxied = makeProxied();
    const { server, log } = proxied;
    const ports = [freePort(), freePort()];
    const listens = ["send-proxy", "send-proxy-v2"].map((option, n) =>
      `listen l${n}\n  mode tcp\n  bind 127.0.0.1:${ports[n]}\n  server s ${server.serverAddr} ${option}\n`
    );
    await using _haproxy = await startHaproxy(listens.join(""));
    for (const port of ports) {
      const connection = await dial(`127.0.0.1:${port}`);
      const session = Session.client(connection);
      const stream = await session.openStream();
      assertEquals(await say(stream, "hello"), "hello");
      const own = at(connection.localAddr as Deno.NetAddr);
      assert(log.events.some((event) => event.type === "connected" && event.clientAddr === own), own);
      await session.close();
      await session.closed;
    }
  },
);

Deno.test("tunnel, haproxy and curl: a target with accept-proxy sees the address of the visitor", {
  ignore: !hasPrograms("haproxy", "curl"),
}, async () => {
  const port = freePort();
  const answer = 'http-request return status 200 content-type text/plain lf-string "%[src]:%[src_port]"';
  const config = `frontend f\n  mode http\n  bind 127.0.0.1:${port} accept-proxy\n  ${answer}\n`;
  await using _haproxy = await startHaproxy(config);
  await using pair = await makePair({ allow: [`127.0.0.1:${port}`], allowListen: ["127.0.0.1:*"] }, {
    forward: [`${FREE}=127.0.0.1:${port},proxy`],
    reverse: [`${FREE}=127.0.0.1:${port},proxy`],
  });
  for (const addr of pair.client.listenAddrs) {
    const local = freePort();
    const output = await run("curl", ["-sSf", "--local-port", `${local}`, `http://${addr}/`]);
    assertEquals(text(output), `127.0.0.1:${local}`);
  }
});
