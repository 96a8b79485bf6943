/** SOCKS 5 of a tunnel's client. */

import { assert, assertEquals, assertInstanceOf, assertMatch, assertRejects, assertStrictEquals } from "@std/assert";
import { concat } from "@std/bytes";
import fc from "fast-check";
import { TunnelRefusedError } from "../tunnel.ts";
import { parseEndpoint } from "../tunnel/address.ts";
import { speakSocks } from "../tunnel/socks5.ts";
import { bytes, memoryPair, pattern, readAll, readSome, text, writeAll } from "./support.ts";
import {
  askSocks,
  dial,
  FREE,
  hasIpv6,
  HELLO,
  IPV4,
  isEnded,
  makeEcho,
  makePair,
  nowhere,
  portOf,
  promptly,
  readHead,
  say,
  serveFiles,
  socksRequest,
} from "./tunnel_support.ts";

const named = (name: string) => [name.length, ...bytes(name)];

Deno.test("tunnel: SOCKS connects to an IPv4 address and to a name", async () => {
  await using echo = makeEcho();
  const port = portOf(echo.addr);
  await using pair = await makePair({ allow: [echo.addr, "localhost:*"] }, { socks: [FREE] });
  for (const [kind, address] of [[1, IPV4], [3, named("localhost")], [3, named("127.0.0.1")]] as const) {
    using connection = await dial(pair.client.listenAddrs[0]!);
    assertEquals(await askSocks(connection, socksRequest(1, kind, address, port)), 0);
    assertEquals(await say(connection, "hello"), "hello");
    await connection.closeWrite();
    assertEquals(await connection.read(new Uint8Array(1)), null);
  }
  assertEquals(pair.logs.client.messages(), []);
});

Deno.test("tunnel: SOCKS connects to an IPv6 address", { ignore: !hasIpv6() }, async () => {
  const web = serveFiles({ hostname: "::1", port: 0 });
  await using pair = await makePair({ allow: ["[::1]:*"] }, { socks: [FREE] });
  using connection = await dial(pair.client.listenAddrs[0]!);
  const address = [...new Array<number>(15).fill(0), 1];
  assertEquals(await askSocks(connection, socksRequest(1, 4, address, web.addr.port)), 0);
  await writeAll(connection, bytes("GET /5 HTTP/1.0\r\n\r\n"));
  assertMatch(text(await readHead(connection)), /^HTTP\/1\.\d 200 /);
  assertEquals(await readAll(connection), pattern(5, 5));
  await web.shutdown();
});

Deno.test("tunnel: SOCKS accepts a request byte by byte, and in one write with data", async () => {
  await using echo = makeEcho();
  await using pair = await makePair({ allow: [echo.addr] }, { socks: [FREE] });
  const all = concat([HELLO, socksRequest(1, 1, IPV4, portOf(echo.addr)), bytes("hello")]);
  for (const size of [1, all.length]) {
    using connection = await dial(pair.client.listenAddrs[0]!);
    connection.setNoDelay(true);
    for (let at = 0; at < all.length; at += size) await writeAll(connection, all.subarray(at, at + size));
    assertEquals(Array.from(await readSome(connection, 12)), [5, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    assertEquals(text(await readSome(connection, 5)), "hello");
  }
});

Deno.test("tunnel: SOCKS replies with a code and reports each refused request, and continues", async () => {
  await using echo = makeEcho();
  const [dead, forbidden] = [nowhere(), nowhere()];
  await using pair = await makePair({ allow: [echo.addr, dead] }, { socks: [FREE] });
  const { client, logs } = pair;
  const cases: [what: string, request: Uint8Array, code: number][] = [
    ["not allowed", socksRequest(1, 1, IPV4, portOf(forbidden)), 2],
    ["connection refused", socksRequest(1, 1, IPV4, portOf(dead)), 5],
    ["BIND", socksRequest(2, 1, IPV4, portOf(echo.addr)), 7],
    ["an unknown command", socksRequest(4, 3, named("localhost"), portOf(echo.addr)), 7],
    ["unknown address type", socksRequest(1, 2, [], portOf(echo.addr)), 8],
    ["malformed name", socksRequest(1, 3, named("a b"), portOf(echo.addr)), 8],
    ["empty name", socksRequest(1, 3, named(""), portOf(echo.addr)), 8],
    ["port 0", socksRequest(1, 1, IPV4, 0), 8],
  ];
  for (const [index, [what, request, code]] of cases.entries()) {
    using connection = await dial(client.listenAddrs[0]!);
    assertEquals({ what, code: await askSocks(connection, request) }, { what, code });
    assertEquals(await isEnded(connection), true);
    await logs.client.until(/./, index + 1);
  }
  assertEquals(logs.client.errors.length, cases.length);
  using connection = await dial(client.listenAddrs[0]!);
  assertEquals(await askSocks(connection, socksRequest(1, 1, IPV4, portOf(echo.addr))), 0);
  assertEquals(await say(connection, "still here"), "still here");
  connection.close();
});

Deno.test('tunnel: SOCKS closes and reports a client of another protocol or without "no authentication"', async () => {
  await using echo = makeEcho();
  await using pair = await makePair({ allow: [echo.addr] }, { socks: [FREE] });
  const { client, logs } = pair;
  const [password, cut] = [new Uint8Array([5, 1, 2]), new Uint8Array([5, 3, 0])];
  const tls = new Uint8Array([22, 3, 1, 2, 0, 1]);
  for (const [index, sent] of [bytes("get / HTTP/1.1\r\n\r\n"), tls, password, cut].entries()) {
    using connection = await dial(client.listenAddrs[0]!);
    await writeAll(connection, sent);
    if (sent === cut) await connection.closeWrite();
    if (sent === password) assertEquals(Array.from(await readSome(connection, 2)), [5, 255]);
    assertEquals(await isEnded(connection), true);
    await logs.client.until(/./, index + 1);
  }
  assertEquals(logs.client.errors.length, 4);
  assertEquals(logs.server.errors, []);
  using connection = await dial(client.listenAddrs[0]!);
  assertEquals(await askSocks(connection, socksRequest(1, 1, IPV4, portOf(echo.addr))), 0);
  assertEquals(await say(connection, "still here"), "still here");
  connection.close();
});

Deno.test("openTunnel() ends by signal or timeout although a SOCKS client has not sent its request", async () => {
  for (const how of ["signal", "timeout"]) {
    const controller = new AbortController();
    await using pair = await makePair({ allow: ["*:*"] }, { socks: [FREE], signal: controller.signal });
    using connection = await dial(pair.client.listenAddrs[0]!);
    await writeAll(connection, HELLO);
    assertEquals(Array.from(await readSome(connection, 2)), [5, 0]);
    if (how === "signal") controller.abort();
    else pair.client.shutdown({ timeout: 50 });
    await promptly(pair.client.finished);
    assertEquals(await isEnded(connection), true);
  }
});

// In memory.

const numRuns = Number(Deno.env.get("PROPERTY_RUNS") ?? 200);
const TARGET_10_80 = [5, 1, 0, 1, 10, 0, 0, 1, 0, 80];
const SUCCEEDED = [5, 0, 0, 1, 0, 0, 0, 0, 0, 0];
const ACCEPTED = [5, 0];

/** Builds a reply. */
const reply = (code: number) => SUCCEEDED.with(1, code);

/** Runs speakSocks() for a client in memory that sends chunks and then ends. */
async function speak(chunks: Uint8Array[], failure?: Error) {
  const [near, far] = memoryPair();
  const targets: string[] = [];
  const connected = { close() {} };
  const speaking = speakSocks(near, (target) => {
    targets.push(target);
    return failure === undefined ? Promise.resolve(connected) : Promise.reject(failure);
  }).then((result) => void assertStrictEquals(result, connected), (error: unknown) => error);
  for (const chunk of chunks) await writeAll(far, chunk);
  await far.closeWrite();
  const error = await speaking;
  await near.closeWrite();
  return { targets, error, received: Array.from(await readAll(far)), unread: Array.from(await readAll(near)) };
}

/** Runs speakSocks() for a client that sends a greeting and a request. */
const speakRequest = (request: number[], failure?: Error) => speak([HELLO, new Uint8Array(request)], failure);

/** Returns the message of an error. */
function messageOf(error: unknown): string {
  assertInstanceOf(error, Error);
  return error.message;
}

Deno.test("speakSocks() rejects without connecting when the greeting or the request is incomplete", async () => {
  const requests = [
    TARGET_10_80,
    [5, 1, 0, 3, ...named("example.com"), 0, 80],
    [5, 1, 0, 4, ...new Array<number>(16).fill(1), 0, 80],
    [5, 2, 0, 1, 10, 0, 0, 1, 0, 80],
  ];
  for (const request of requests) {
    const whole = [5, 2, 0, 2, ...request];
    for (let length = 0; length < whole.length; length++) {
      const { targets, error, received } = await speak([new Uint8Array(whole.slice(0, length))]);
      assertEquals({ length, targets, message: messageOf(error) }, {
        length,
        targets: [],
        message: "connection closed during handshake",
      });
      assertEquals(received, length < 4 ? [] : ACCEPTED);
    }
  }
});

Deno.test("speakSocks() rejects any version but 5, in the greeting and in the request", async () => {
  for (const version of [0, 4, 6, 71, 255]) {
    const greeting = await speak([new Uint8Array([version, 1, 0, ...TARGET_10_80])]);
    assertEquals(messageOf(greeting.error), `unsupported SOCKS version ${version}, expected 5`);
    assertEquals([greeting.targets, greeting.received], [[], []]);
    const request = await speakRequest(TARGET_10_80.with(0, version));
    assertEquals(messageOf(request.error), `unsupported SOCKS version ${version}, expected 5`);
    assertEquals([request.targets, request.received], [[], ACCEPTED]);
  }
});

Deno.test('speakSocks() replies 255 to a client that does not offer "no authentication"', async () => {
  for (const methods of [[], [1], [2, 255], Array.from({ length: 255 }, (_, n) => n + 1)]) {
    const { targets, error, received } = await speak([new Uint8Array([5, methods.length, ...methods])]);
    assertEquals(messageOf(error), 'SOCKS client does not offer "no authentication"');
    assertEquals([targets, received], [[], [5, 255]]);
  }
});

Deno.test('speakSocks() accepts "no authentication" at any position among the methods', async () => {
  for (const methods of [[0], [2, 0], [0, 1, 2], Array.from({ length: 255 }, (_, n) => 254 - n)]) {
    const { targets, received } = await speak([new Uint8Array([5, methods.length, ...methods, ...TARGET_10_80])]);
    assertEquals([targets, received], [["10.0.0.1:80"], [...ACCEPTED, ...SUCCEEDED]]);
  }
});

Deno.test("speakSocks() replies 7 to every command but CONNECT", async () => {
  for (const command of [0, 2, 3, 255]) {
    const { targets, error, received } = await speakRequest(TARGET_10_80.with(1, command));
    assertEquals(messageOf(error), `unsupported SOCKS command ${command}, expected 1 (CONNECT)`);
    assertEquals([targets, received], [[], [...ACCEPTED, ...reply(7)]]);
  }
});

const ADDRESSES: [what: string, address: number[], target: string | undefined][] = [
  ["an IPv4 address", [1, 127, 0, 0, 1, 0, 80], "127.0.0.1:80"],
  ["the largest IPv4 address and port", [1, 255, 255, 255, 255, 255, 255], "255.255.255.255:65535"],
  ["a name", [3, ...named("example.com"), 1, 187], "example.com:443"],
  ["a name of 255 bytes", [3, ...named("a".repeat(255)), 0, 1], `${"a".repeat(255)}:1`],
  ["an IPv4 address as a name", [3, ...named("10.0.0.1"), 0, 80], "10.0.0.1:80"],
  ["an IPv6 address as a name", [3, ...named("::1"), 0, 80], "[::1]:80"],
  [
    "an IPv6 address",
    [4, 0x20, 1, 0xd, 0xb8, ...new Array<number>(11).fill(0), 0xff, 0, 80],
    "[2001:0db8:0000:0000:0000:0000:0000:00ff]:80",
  ],
  ["port 0", [1, 127, 0, 0, 1, 0, 0], undefined],
  ["an empty name", [3, 0, 0, 80], undefined],
  ["a name with a space", [3, ...named("a b"), 0, 80], undefined],
  ["a name with a port", [3, ...named("a:1"), 0, 80], undefined],
  ["a Unix socket as a name", [3, ...named("unix:/run/a"), 0, 80], undefined],
  ["a name of invalid punycode", [3, ...named("xn--"), 0, 80], undefined],
  ["a name with a line break", [3, ...named("a\r\nb"), 0, 80], undefined],
  ["a name with a byte above 127", [3, 1, 0xe4, 0, 80], undefined],
  ["address type 0", [0, 0, 80], undefined],
  ["address type 2", [2, 0, 80], undefined],
  ["address type 255", [255, 0, 80], undefined],
];
for (const [what, address, target] of ADDRESSES) {
  Deno.test(`speakSocks() ${target === undefined ? "replies 8 to" : "connects to"} ${what}`, async () => {
    const { targets, error, received } = await speakRequest([5, 1, 0, ...address]);
    assertEquals(targets, target === undefined ? [] : [target]);
    assertEquals(received, [...ACCEPTED, ...reply(target === undefined ? 8 : 0)]);
    if (target === undefined) assertMatch(messageOf(error), /^SOCKS target [ -~]+$/);
    else assertEquals(error, undefined);
  });
}

Deno.test("speakSocks() replies 2 for status 403 and 5 for other failures, and rejects with the failure", async () => {
  const cases: [failure: Error, code: number][] = [
    [new TunnelRefusedError(403, "not allowed"), 2],
    [new TunnelRefusedError(407, "wrong secret"), 5],
    [new TunnelRefusedError(502, "connection refused"), 5],
    [new Error("no connection"), 5],
  ];
  for (const [failure, code] of cases) {
    const { error, received } = await speakRequest(TARGET_10_80, failure);
    assertStrictEquals(error, failure);
    assertEquals(received, [...ACCEPTED, ...reply(code)]);
  }
});

Deno.test("speakSocks() rejects with the failure to connect when the client is lost before the reply", async () => {
  const [near, far] = memoryPair();
  const failure = new TunnelRefusedError(403, "not allowed");
  const speaking = speakSocks(near, () => {
    far.reset();
    return Promise.reject(failure);
  });
  await writeAll(far, new Uint8Array([...HELLO, ...TARGET_10_80]));
  assertStrictEquals(await speaking.catch((error: unknown) => error), failure);
});

Deno.test("speakSocks() closes the connection when the client is lost before the reply", async () => {
  const [near, far] = memoryPair();
  let closed = 0;
  const speaking = speakSocks(near, () => {
    far.reset(new Error("gone"));
    return Promise.resolve({ close: () => void closed++ });
  });
  await writeAll(far, new Uint8Array([...HELLO, ...TARGET_10_80]));
  await assertRejects(() => speaking, Error, "gone");
  assertEquals(closed, 1);
});

/** Splits bytes into chunks. */
function chunked(all: Uint8Array, cuts: number[]): Uint8Array[] {
  const ends = [...cuts.map((cut) => cut % (all.length + 1)), all.length].sort((a, b) => a - b);
  return ends.map((end, n) => all.slice(ends[n - 1] ?? 0, end)).filter(({ length }) => length > 0);
}

const cuts = fc.array(fc.nat(), { maxLength: 6 });
const octet = fc.nat(255);

Deno.test("speakSocks() reads a request in arbitrary chunks, and no byte after it", async () => {
  // Exclude names that begin with xn--: some are invalid.
  const hostname = fc.stringMatching(/^[a-wyz][a-z0-9-]{0,20}$/);
  await fc.assert(
    fc.asyncProperty(
      hostname,
      fc.integer({ min: 1, max: 65535 }),
      fc.uint8Array(),
      cuts,
      async (name, port, rest, cuts) => {
        const request = [5, 1, 0, 3, ...named(name), port >> 8, port & 255];
        const { targets, unread } = await speak(chunked(new Uint8Array([...HELLO, ...request, ...rest]), cuts));
        assertEquals([targets, unread], [[`${name}:${port}`], Array.from(rest)]);
      },
    ),
    { numRuns },
  );
});

Deno.test("speakSocks() rejects with an error or connects to one address, for arbitrary bytes", async () => {
  const request = fc.tuple(octet, octet, octet, fc.uint8Array({ maxLength: 30 }))
    .map(([command, type, length, rest]) => [...HELLO, 5, command % 3, 0, type % 6, length % 12, ...rest]);
  const input = fc.oneof(fc.uint8Array({ maxLength: 40 }), request.map((bytes) => new Uint8Array(bytes)));
  await fc.assert(
    fc.asyncProperty(input, cuts, async (input, cuts) => {
      const { targets, error, received } = await speak(chunked(input, cuts));
      if (error === undefined) {
        assertEquals(received, [...ACCEPTED, ...SUCCEEDED]);
        assertEquals(targets.length, 1);
        parseEndpoint("target", targets[0]!, 1);
      } else {
        assertMatch(messageOf(error), /^[ -~]+$/);
        assertEquals(targets, []);
        assert([0, 2, 12].includes(received.length), `${received}`);
      }
    }),
    { numRuns },
  );
});
