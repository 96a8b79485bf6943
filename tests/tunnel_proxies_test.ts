/** The proxies of a tunnel's client: SOCKS 4, 4a and 5, passwords and HTTP at one port, and `reverseSocks`. */

import { assert, assertEquals, assertInstanceOf, assertMatch, assertRejects, assertThrows } from "@std/assert";
import fc from "fast-check";
import { openTunnel, type OpenTunnelOptions, serveTunnel, TunnelRefusedError } from "../tunnel.ts";
import { parseEndpoint } from "../tunnel/address.ts";
import { makeCertificate } from "../tunnel/certificate.ts";
import { loadConfig } from "../tunnel/config.ts";
import { RequestBody } from "../tunnel/http_body.ts";
import { readHttpHead } from "../tunnel/http_head.ts";
import { parseRequest } from "../tunnel/http_proxy.ts";
import { ProxyAuth } from "../tunnel/proxy_auth.ts";
import { speakProxy } from "../tunnel/proxy_entry.ts";
import { resolver } from "../tunnel/resolve.ts";
import { HANDSHAKE_TIMEOUT } from "../tunnel/wait.ts";
import { hasPrograms, makeFolder, watch } from "./programs.ts";
import { bytes, memoryPair, pattern, readAll, readSome, sha256, text, writeAll } from "./support.ts";
import {
  at,
  changeDelays,
  dial,
  FREE,
  IPV4,
  isEnded,
  makeEcho,
  makePair,
  nowhere,
  portOf,
  promptly,
  readHead,
  say,
  socksRequest,
} from "./tunnel_support.ts";

const numRuns = Number(Deno.env.get("PROPERTY_RUNS") ?? 200);
const AUTH = "alice:open sesame";
const WRONG_DELAY = 1000;
const named = (name: string) => [name.length, ...bytes(name)];
const zero = (name: string) => [...bytes(name), 0];
const basic = (credentials: string) => `Proxy-Authorization: Basic ${btoa(credentials)}\r\n`;

/** Whole greetings of each protocol, without a password and with one. */
const GREETINGS: [what: string, bytes: Uint8Array, auth?: string][] = [
  ["SOCKS 4", new Uint8Array([4, 1, 0, 80, 10, 0, 0, 1, ...zero("me")])],
  ["SOCKS 4a", new Uint8Array([4, 1, 0, 80, 0, 0, 0, 7, ...zero("me"), ...zero("a.test")])],
  ["SOCKS 5", new Uint8Array([5, 1, 0, 5, 1, 0, 3, ...named("a.test"), 0, 80])],
  [
    "SOCKS 5 with a password",
    new Uint8Array([5, 2, 0, 2, 1, ...named("alice"), ...named("open sesame"), 5, 1, 0, 1, 10, 0, 0, 1, 0, 80]),
    AUTH,
  ],
  ["CONNECT", bytes(`CONNECT a.test:80 HTTP/1.1\r\nHost: a.test:80\r\n${basic(AUTH)}\r\n`), AUTH],
  ["GET", bytes("GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nAccept: */*\r\n\r\n")],
];

/** Runs speakProxy() for a client in memory that sends these bytes; a target in memory collects what it receives. */
async function speak(sent: Uint8Array, { auth, failure, isOpen = false }: {
  auth?: string | undefined;
  failure?: Error;
  /** Whether the client does not end its direction. */
  isOpen?: boolean;
} = {}) {
  const [near, far] = memoryPair();
  const [connected, origin] = memoryPair();
  const targets: string[] = [];
  const connect = (target: string) => {
    targets.push(target);
    return failure === undefined ? Promise.resolve(connected) : Promise.reject(failure);
  };
  const speaking = speakProxy(near, connect, { auth: auth === undefined ? undefined : new ProxyAuth(auth) });
  const settled = speaking.then(() => undefined, (error: unknown) => error);
  await writeAll(far, sent);
  if (!isOpen) await far.closeWrite();
  const error = await settled;
  await near.closeWrite().catch(() => {});
  await connected.closeWrite().catch(() => {});
  const received = await readAll(far).catch(() => new Uint8Array());
  return { targets, error, received, forwarded: text(await readAll(origin)) };
}

/** Returns the message of an error. */
function messageOf(error: unknown): string {
  assertInstanceOf(error, Error);
  return error.message;
}

for (const [what, whole, auth] of GREETINGS) {
  Deno.test(`speakProxy() rejects without connecting when ${what} ends early`, async () => {
    for (let length = 0; length < whole.length; length++) {
      const { targets, error, forwarded } = await speak(whole.slice(0, length), { auth });
      assertEquals({ length, targets, forwarded, message: messageOf(error) }, {
        length,
        targets: [],
        forwarded: "",
        message: "connection closed during handshake",
      });
    }
    const { targets, error } = await speak(whole, { auth });
    assertEquals([targets.length, error], [1, undefined]);
  });

  Deno.test(`speakProxy() closes the connection at the deadline when ${what} stops early`, async () => {
    using _delays = changeDelays((delay) => delay === HANDSHAKE_TIMEOUT ? 0 : delay);
    for (let length = 0; length < whole.length; length++) {
      const { targets, error, forwarded } = await speak(whole.slice(0, length), { auth, isOpen: true });
      assertEquals({ length, targets, forwarded, message: messageOf(error) }, {
        length,
        targets: [],
        forwarded: "",
        message: `handshake timed out after ${HANDSHAKE_TIMEOUT} ms`,
      });
    }
  });
}

Deno.test("speakProxy() rejects a first byte of any other protocol", async () => {
  for (const first of [0, 3, 6, 10, 22, 32, 64, 91, 97, 255]) {
    const { error, targets, received } = await speak(new Uint8Array([first, 1, 0]));
    assertMatch(messageOf(error), /^expected SOCKS 4, SOCKS 5 or HTTP, received [ -~]+$/);
    assertEquals([targets.length, received.length], [0, 0]);
  }
});

const SOCKS4: [what: string, request: number[], target: string | undefined][] = [
  ["an address", [1, 0, 80, 10, 0, 0, 1, ...zero("")], "10.0.0.1:80"],
  ["an address and a user", [1, 1, 187, 255, 255, 255, 255, ...zero("me")], "255.255.255.255:443"],
  ["a name", [1, 0, 80, 0, 0, 0, 1, ...zero("me"), ...zero("a.test")], "a.test:80"],
  ["an IPv6 address as a name", [1, 0, 80, 0, 0, 0, 255, ...zero(""), ...zero("::1")], "[::1]:80"],
  ["0.0.0.0, which announces no name", [1, 0, 80, 0, 0, 0, 0, ...zero("")], "0.0.0.0:80"],
  ["BIND", [2, 0, 80, 10, 0, 0, 1, ...zero("")], undefined],
  ["port 0", [1, 0, 0, 10, 0, 0, 1, ...zero("")], undefined],
  ["an empty name", [1, 0, 80, 0, 0, 0, 1, ...zero(""), ...zero("")], undefined],
  ["the name of a path", [1, 0, 80, 0, 0, 0, 1, ...zero(""), ...zero("unix")], undefined],
  ["a user of 256 bytes", [1, 0, 80, 10, 0, 0, 1, ...zero("a".repeat(256))], undefined],
  ["a name of 256 bytes", [1, 0, 80, 0, 0, 0, 1, ...zero(""), ...zero("a".repeat(256))], undefined],
];
for (const [what, request, target] of SOCKS4) {
  Deno.test(`speakProxy() ${target === undefined ? "rejects" : "connects"} by SOCKS 4: ${what}`, async () => {
    const { targets, error, received } = await speak(new Uint8Array([4, ...request]));
    assertEquals(targets, target === undefined ? [] : [target]);
    assertEquals(Array.from(received), [0, target === undefined ? 91 : 90, 0, 0, 0, 0, 0, 0]);
    assertEquals(error === undefined, target !== undefined);
  });
}

Deno.test("speakProxy() with a password rejects SOCKS 4, and SOCKS 5 without a password or with a wrong one", async () => {
  using _delays = changeDelays((delay) => delay === WRONG_DELAY ? 0 : delay);
  const ask = (user: string, password: string) =>
    new Uint8Array([5, 1, 2, 1, ...named(user), ...named(password), 5, 1, 0, 1, 10, 0, 0, 1, 0, 80]);
  const succeeded = [5, 2, 1, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0];
  const cases: [sent: Uint8Array, received: number[]][] = [
    [ask("alice", "open sesame"), succeeded],
    [ask("alice", "open sesam"), [5, 2, 1, 1]],
    [ask("alice", "open sesame "), [5, 2, 1, 1]],
    [ask("bob", "open sesame"), [5, 2, 1, 1]],
    [ask("", ""), [5, 2, 1, 1]],
    [new Uint8Array([5, 1, 2, 2, ...named("alice"), ...named("open sesame")]), [5, 2]],
    [new Uint8Array([5, 1, 0, 5, 1, 0, 1, 10, 0, 0, 1, 0, 80]), [5, 255]],
    [new Uint8Array([4, 1, 0, 80, 10, 0, 0, 1, 0]), [0, 91, 0, 0, 0, 0, 0, 0]],
  ];
  for (const [n, [sent, expected]] of cases.entries()) {
    const { targets, received } = await speak(sent, { auth: AUTH });
    assertEquals({ n, received: Array.from(received), count: targets.length }, {
      n,
      received: expected,
      count: n === 0 ? 1 : 0,
    });
  }
});

Deno.test("speakProxy() delays the reply to a wrong password, of SOCKS and of HTTP", async () => {
  const delays: number[] = [];
  using _delays = changeDelays((delay) => {
    delays.push(delay);
    return delay === WRONG_DELAY ? 0 : delay;
  });
  await speak(bytes(`CONNECT a:1 HTTP/1.1\r\n${basic("alice:x")}\r\n`), { auth: AUTH });
  await speak(new Uint8Array([5, 1, 2, 1, ...named("alice"), ...named("x")]), { auth: AUTH });
  assertEquals(delays.filter((delay) => delay === WRONG_DELAY).length, 2);
  // A browser asks without a password first.
  await speak(bytes("CONNECT a:1 HTTP/1.1\r\n\r\n"), { auth: AUTH });
  await speak(bytes(`CONNECT a:1 HTTP/1.1\r\n${basic(AUTH)}\r\n`), { auth: AUTH });
  assertEquals(delays.filter((delay) => delay === WRONG_DELAY).length, 2);
});

Deno.test("speakProxy() replies 407 to HTTP without the password, and forwards no Proxy-Authorization", async () => {
  using _delays = changeDelays((delay) => delay === WRONG_DELAY ? 0 : delay);
  const wrong = [
    "",
    basic("alice:x"),
    basic("alice"),
    "Proxy-Authorization: Basic %\r\n",
    "Proxy-Authorization: Bearer x\r\n",
  ];
  for (const line of wrong) {
    const { targets, received } = await speak(bytes(`GET http://a/ HTTP/1.1\r\n${line}\r\n`), { auth: AUTH });
    assertMatch(text(received), /^HTTP\/1\.1 407 .*\r\nProxy-Authenticate: Basic realm="proxy"\r\n/);
    assertEquals(targets, []);
  }
  const { forwarded } = await speak(bytes(`GET http://a/ HTTP/1.1\r\n${basic(AUTH)}\r\n`), { auth: AUTH });
  assertEquals(forwarded, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
});

Deno.test("speakProxy() forwards the bytes of a head unchanged that are not ASCII", async () => {
  const head = bytes("GET http://a/ HTTP/1.1\r\nX: ?\r\n\r\n");
  head[head.indexOf(63)] = 0xe9;
  const { forwarded } = await speak(head);
  // One byte that is not valid UTF-8.
  assertEquals(forwarded, "GET / HTTP/1.1\r\nHost: a\r\nX: \ufffd\r\nConnection: close\r\n\r\n");
});

Deno.test("speakProxy() accepts a password with colons, and Basic in upper and lower case", async () => {
  const auth = "alice:open:sesame:";
  for (const scheme of ["Basic", "basic", "BASIC "]) {
    const header = `Proxy-Authorization: ${scheme} ${btoa(auth)}\r\n`;
    const { targets } = await speak(bytes(`CONNECT a:1 HTTP/1.1\r\n${header}\r\n`), { auth });
    assertEquals(targets, ["a:1"]);
  }
});

Deno.test("speakProxy() replies with a status and a text to a refused HTTP request", async () => {
  const cases: [status: number, failure: Error][] = [
    [403, new TunnelRefusedError(403, "not allowed")],
    [502, new TunnelRefusedError(407, "wrong secret")],
    [502, new TunnelRefusedError(502, "cannot connect: connection refused")],
    [502, new Error("no connection")],
    [504, new TunnelRefusedError(502, "cannot connect: connecting timed out after 10 ms")],
  ];
  for (const method of ["CONNECT a.test:80", "GET http://a.test/"]) {
    for (const [status, failure] of cases) {
      const { error, received, forwarded } = await speak(bytes(`${method} HTTP/1.1\r\n\r\n`), { failure });
      assertEquals(error, failure);
      const [head, body] = text(received).split("\r\n\r\n") as [string, string];
      assertMatch(head, new RegExp(`^HTTP/1\\.1 ${status} [\\s\\S]*\\r\\nConnection: close$`));
      assertEquals([body, forwarded], [`${failure.message}\n`, ""]);
      assertMatch(head, new RegExp(`\\r\\nContent-Length: ${body.length}\\r\\n`));
    }
  }
  const wordy = await speak(bytes("GET http://a/ HTTP/1.1\r\n\r\n"), { failure: new Error("x".repeat(5000)) });
  assertEquals(text(wordy.received).split("\r\n\r\n")[1], `${"x".repeat(1000)}\n`);
  const long = await speak(bytes(`GET http://a/ HTTP/1.1\r\nA: ${"x".repeat(9000)}\r\n\r\n`));
  assertMatch(text(long.received), /^HTTP\/1\.1 431 /);
  const lines = await speak(bytes("GET http://a/ HTTP/1.1\nHost: a\n\n"), { isOpen: true });
  assertMatch(text(lines.received), /^HTTP\/1\.1 400 /);
});

for (const [what, whole, auth] of GREETINGS) {
  Deno.test(`speakProxy() closes the connection to the target when the answer to ${what} cannot be written`, async () => {
    const [near, far] = memoryPair();
    const [connected] = memoryPair();
    const gone = () => Promise.reject(new Error("gone"));
    const connect = () => {
      // CONNECT and SOCKS answer the client; other requests are written to the target.
      (what === "GET" ? connected : near).write = gone;
      return Promise.resolve(connected);
    };
    await writeAll(far, whole);
    const options = { auth: auth === undefined ? undefined : new ProxyAuth(auth) };
    await assertRejects(() => speakProxy(near, connect, options), Error, "gone");
    assertEquals(connected.isClosed, true);
  });
}

const REWRITTEN: [head: string, target: string, forwarded: string][] = [
  ["GET http://a.test HTTP/1.1", "a.test:80", "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"],
  [
    "GET HTTP://a:8080/x?y=http://b/ HTTP/1.0",
    "a:8080",
    "GET /x?y=http://b/ HTTP/1.0\r\nHost: a:8080\r\nConnection: close\r\n\r\n",
  ],
  ["GET http://[::1]:81?q HTTP/1.1", "[::1]:81", "GET /?q HTTP/1.1\r\nHost: [::1]:81\r\nConnection: close\r\n\r\n"],
  ["OPTIONS http://a HTTP/1.1", "a:80", "OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"],
  [
    "POST http://a/ HTTP/1.1\r\nHost: b\r\nhost: c\r\nConnection: x-Own, keep-alive\r\nX-Own: 1\r\nX-Other: 2\r\n" +
    "Keep-Alive: 5\r\nProxy-Connection: keep-alive\r\nTE: trailers\r\nUpgrade: h2c\r\nContent-Length: 3\r\nTrailer: a",
    "a:80",
    "POST / HTTP/1.1\r\nHost: a\r\nX-Other: 2\r\nContent-Length: 3\r\nTrailer: a\r\nConnection: close\r\n\r\n",
  ],
];
for (const [head, target, forwarded] of REWRITTEN) {
  Deno.test(`parseRequest() rewrites ${JSON.stringify(head.slice(0, 60))}`, () => {
    const parsed = parseRequest(head);
    assertEquals([parsed.target, parsed.forwarded!.head], [target, forwarded]);
  });
}

const get = (...headers: string[]) => ["POST http://a/ HTTP/1.1", ...headers].join("\r\n");
const MALFORMED = [
  "",
  "GET / HTTP/1.1",
  "GET * HTTP/1.1",
  "OPTIONS * HTTP/1.1",
  "GET a.test/ HTTP/1.1",
  "GET https://a/ HTTP/1.1",
  "GET ftp://a/ HTTP/1.1",
  "GET unix:///run/a HTTP/1.1",
  "GET http:///x HTTP/1.1",
  "GET http://unix/ HTTP/1.1",
  "GET http://unix:80/ HTTP/1.1",
  "GET http://a:0/ HTTP/1.1",
  "GET http://a:65536/ HTTP/1.1",
  "GET http://a:b/ HTTP/1.1",
  "GET http://u:p@a/ HTTP/1.1",
  "GET http://a/#b HTTP/1.1",
  "GET http://::1/ HTTP/1.1",
  "GET http://a%00/ HTTP/1.1",
  `GET http://${"a".repeat(256)}/ HTTP/1.1`,
  "GET http://a/ b HTTP/1.1",
  "GET  http://a/ HTTP/1.1",
  "GET http://a/ HTTP/2.0",
  "GET http://a/",
  "PRI * HTTP/2.0",
  "CONNECT a HTTP/1.1",
  "CONNECT a:0 HTTP/1.1",
  "CONNECT a:99999 HTTP/1.1",
  "CONNECT http://a:80/ HTTP/1.1",
  "CONNECT unix:80 HTTP/1.1",
  "CONNECT u@a:80 HTTP/1.1",
  "CONNECT a:80/ HTTP/1.1",
  get("A b: c"),
  get("A : b"),
  get("A"),
  get(": b"),
  get(" a: b"),
  get("A: b", " folded"),
  get("A: b\rc: d"),
  get("A: \0"),
  get("Content-Length: 1", "Transfer-Encoding: chunked"),
  get("Content-Length: 1", "Content-Length: 2"),
  get("Content-Length: 1", "Content-Length: 1"),
  get("Content-Length: +1"),
  get("Content-Length: 1, 1"),
  get("Content-Length: "),
  get("Transfer-Encoding: gzip"),
  get("Transfer-Encoding: chunked, gzip"),
  get("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
  get("Transfer-Encoding: \x0bchunked"),
  get("Connection: content-length", "Content-Length: 1"),
  get("Connection: close, Transfer-Encoding", "Transfer-Encoding: chunked"),
  "POST http://a/ HTTP/1.0\r\nTransfer-Encoding: chunked",
];
Deno.test("parseRequest() rejects a malformed head with status 400", () => {
  for (const head of MALFORMED) {
    const error = assertThrows(() => parseRequest(head), TunnelRefusedError, undefined, head);
    assertEquals([error.status, /^[ -~]+$/.test(error.message)], [400, true], head);
  }
});

Deno.test("parseRequest() rejects a head, or returns one target and a head that means the same to any server", () => {
  const name = fc.constantFrom("Host", "Connection", "X", "TE", "Content-Length", "Transfer-Encoding", "Keep-Alive");
  const value = fc.constantFrom("a", "1", "chunked", "x, close", "keep-alive", " 7 ", "", "gzip, chunked", "\x80");
  const raw = fc.string({ unit: "binary", maxLength: 12 });
  const line = fc.oneof(
    { weight: 8, arbitrary: fc.tuple(name, value).map(([name, value]) => `${name}: ${value}`) },
    raw,
  );
  const uri = fc.oneof(fc.webUrl({ validSchemes: ["http"], withQueryParameters: true }), raw, fc.constant("a:1"));
  const method = fc.constantFrom("GET", "POST", "CONNECT", "OPTIONS");
  let accepted = 0;
  fc.assert(
    fc.property(method, uri, fc.array(line, { maxLength: 5 }), (method, uri, lines) => {
      const head = [`${method} ${uri} HTTP/1.1`, ...lines].join("\r\n");
      let parsed;
      try {
        parsed = parseRequest(head);
      } catch (error) {
        assertInstanceOf(error, TunnelRefusedError);
        assertEquals(error.status, 400);
        return;
      }
      accepted++;
      assertEquals(parseEndpoint("target", parsed.target, 1).path, undefined);
      if (parsed.forwarded === undefined) return;
      const { head: forwarded, body } = parsed.forwarded;
      assert(forwarded.endsWith("\r\n\r\n"));
      const [first, ...rest] = forwarded.slice(0, -4).split("\r\n");
      assertMatch(first!, /^[A-Z]+ (\/[!-~\x80-\xff]*|\*) HTTP\/1\.1$/);
      const names = rest.map((line) => /^[^:\s]+(?=:)/.exec(line)![0].toLowerCase());
      for (const [name, count] of [["host", 1], ["connection", 1], ["te", 0], ["keep-alive", 0]] as const) {
        assertEquals(names.filter((other) => other === name).length, count, forwarded);
      }
      assertEquals(names.includes("transfer-encoding"), body === "chunked");
      assert(!names.includes("transfer-encoding") || !names.includes("content-length"));
      assert(names.includes("content-length") || body === "chunked" || body === 0);
    }),
    { numRuns: numRuns * 10 },
  );
  assert(accepted > 0);
});

Deno.test("readHttpHead() finds the end of a head that arrives in two pieces, cut at every byte", async () => {
  const all = bytes("GET / HTTP/1.1\r\nHost: a\r\n\r\nrest");
  for (let cut = 1; cut < all.length; cut++) {
    const [near, far] = memoryPair();
    for (const piece of [all.subarray(0, cut), all.subarray(cut)]) await writeAll(near, piece);
    near.close();
    const { first, lines, rest } = (await readHttpHead(far, /^G/))!;
    assertEquals([first, ...lines], ["GET / HTTP/1.1", "Host: a"]);
    assertEquals(text(rest) + text(await readAll(far)), "rest");
    far.close();
  }
});

/** Passes bytes to a body in pieces. */
function pushAll(body: RequestBody, all: Uint8Array, cuts: number[]): void {
  const ends = [...cuts.map((cut) => cut % (all.length + 1)), all.length].sort((a, b) => a - b);
  for (const [n, end] of ends.entries()) body.push(all.slice(ends[n - 1] ?? 0, end));
}

Deno.test("RequestBody accepts a body in arbitrary pieces, and rejects the first byte after it", () => {
  const chunks = fc.array(fc.uint8Array({ minLength: 1, maxLength: 40 }), { maxLength: 5 });
  const extension = fc.constantFrom("", ";a=b", " ; a");
  const trailers = fc.array(fc.constant("A: b"), { maxLength: 2 });
  const cuts = fc.array(fc.nat(), { maxLength: 8 });
  fc.assert(
    fc.property(chunks, extension, trailers, cuts, fc.boolean(), (chunks, extension, trailers, cuts, isChunked) => {
      const data = chunks.flatMap((chunk) => Array.from(chunk));
      const parts = chunks.flatMap((chunk) => [
        ...bytes(`${chunk.length.toString(16)}${extension}\r\n`),
        ...chunk,
        ...bytes("\r\n"),
      ]);
      const end = bytes(["0", ...trailers, "", ""].join("\r\n"));
      const all = new Uint8Array(isChunked ? [...parts, ...end] : data);
      const body = new RequestBody(isChunked ? "chunked" : data.length);
      pushAll(body, all, cuts);
      body.push(bytes("\r\n"));
      assertThrows(() => body.push(bytes("G")), Error, "one request for each connection");
    }),
    { numRuns },
  );
});

Deno.test("RequestBody accepts any number of chunks", () => {
  const body = new RequestBody("chunked");
  for (let n = 0; n < 2000; n++) body.push(bytes("1\r\na\r\n"));
  body.push(bytes("0\r\n\r\n"));
  assertThrows(() => body.push(bytes("G")), Error, "one request for each connection");
});

Deno.test("RequestBody rejects malformed chunks", () => {
  const wrong = [
    "x\r\n",
    "\r\n",
    "-1\r\n",
    "1\n",
    "1\r\nabc\r\n",
    "1\r\na\n",
    "1;\x00\n",
    "g\r\n",
    "0x1\r\n",
    " 1\r\n",
  ];
  for (
    const all of [...wrong, "1".repeat(13) + "\r\n", `1;${"x".repeat(9000)}\r\n`, `0\r\n${"A: b\r\n".repeat(2000)}`]
  ) {
    assertThrows(() => new RequestBody("chunked").push(bytes(all)), Error, undefined, all.slice(0, 20));
  }
});

Deno.test("openTunnel() rejects options of proxies that are malformed or cannot be combined", async () => {
  const cases: [Partial<OpenTunnelOptions>, string][] = [
    [{ http: ["a"] }, "http must be HOST:PORT"],
    [{ http: ["0.0.0.0:1"] }, "http must be a loopback address"],
    [{ http: ["0.0.0.0:1"], proxyAuth: AUTH }, "http must be a loopback address"],
    [{ socks: ["0"], proxyAuth: "hunter2" }, "proxyAuth must be USER:PASSWORD"],
    [{ socks: ["0"], proxyAuth: ":hunter2" }, "proxyAuth must be USER:PASSWORD"],
    [{ socks: ["0"], proxyAuth: `a:${"hunter2".repeat(40)}` }, "proxyAuth must be USER:PASSWORD"],
    [{ forward: ["0=1"], proxyAuth: AUTH }, "proxyAuth requires socks, http or reverseSocks"],
    [{ reverseSocks: ["1"] }, "reverseSocks requires allow"],
    [{ reverseSocks: ["x"], allow: [] }, "reverseSocks must be HOST:PORT"],
    [{ reverseSocks: ["1"], allow: ["x"] }, "allow must be HOST:PORT"],
    [{ reverseSocks: ["1", "1"], allow: [] }, "each LISTEN only once"],
    [{ reverse: ["1=2"], reverseSocks: ["1"], allow: [] }, "each LISTEN only once"],
    [{ forward: ["0=1"], allow: ["*:*"] }, "allow of a client requires reverseSocks"],
    [{ reverseSocks: ["1"], allow: ["*:*", "udp:*:53"] }, 'must be about connections, received "udp:*:53"'],
    [{ reverseSocks: ["1"], allow: ["!udp:*:53"] }, 'must be about connections, received "!udp:*:53"'],
    [{ reverseSocks: ["udp:1"], allow: [] }, 'reverseSocks must be an address without udp:, received "udp:1"'],
    [{ socks: ["udp:1"], insecure: true }, 'socks must be an address without udp:, received "udp:1"'],
    [{ http: ["udp:1"] }, 'http must be an address without udp:, received "udp:1"'],
    [{ forward: ["0=1"], status: "udp:1" }, "status must be a loopback address"],
  ];
  for (const [options, message] of cases) {
    const error = await assertRejects(() => openTunnel({ connect: "1", ...options }), RangeError, message);
    assert(!error.message.includes("hunter2"));
  }
});

Deno.test("tunnel: the same address in socks and http is one listener, and each lists its kind", async () => {
  await using echo = makeEcho();
  const same = nowhere();
  await using pair = await makePair({ allow: ["*:*"] }, { socks: [same], http: [same, FREE, FREE] });
  const { client, logs } = pair;
  assertEquals([client.listenAddrs.length, client.listenAddrs[0]], [3, same]);
  for (const addr of client.listenAddrs) {
    using connection = await dial(addr);
    await writeAll(connection, bytes(`CONNECT ${echo.addr} HTTP/1.1\r\n\r\n`));
    assertEquals(text(await readHead(connection)), "HTTP/1.1 200 Connection established\r\n\r\n");
    assertEquals(await say(connection, "hello"), "hello");
  }
  await logs.client.until("finished", 3);
  const finished = logs.client.finished.map(({ kind, to }) => ({ kind, to }));
  assertEquals(finished, ["socks", "http", "http"].map((kind) => ({ kind: kind as "socks", to: echo.addr })));
});

Deno.test("tunnel: a refusal is readable although its client still sends, and is reported before the client closes", async () => {
  await using pair = await makePair({ allow: [], allowListen: ["127.0.0.1:*"] }, {
    http: [FREE],
    reverseSocks: [FREE],
    allow: [],
  });
  const [http] = pair.client.listenAddrs;
  for (const addr of pair.client.listenAddrs) {
    for (const size of [0, 300_000]) {
      using connection = await dial(addr);
      await writeAll(connection, bytes(`POST http://a.test/ HTTP/1.1\r\nContent-Length: ${size}\r\n\r\n`));
      await writeAll(connection, new Uint8Array(size));
      if (addr === http) await pair.logs.client.until(/not allowed/, size === 0 ? 1 : 2);
      // What is sent later does not lose the reply either.
      await writeAll(connection, new Uint8Array(size));
      assertMatch(text(await readAll(connection)), /^HTTP\/1\.1 403 Forbidden\r\n[\s\S]*not allowed\n$/);
    }
  }
});

Deno.test("tunnel: a second request on one connection is not forwarded, in both directions of a tunnel", async () => {
  const received: string[] = [];
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const serving = (async () => {
    for await (const connection of listener) {
      received.push(text(await readHead(connection)));
      await writeAll(connection, bytes("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"));
      received.push(text(await readAll(connection).catch(() => new Uint8Array())));
      connection.close();
    }
  })();
  const origin = at(listener.addr);
  await using pair = await makePair({ allow: ["*:*"], allowListen: ["127.0.0.1:*"] }, {
    http: [FREE],
    reverseSocks: [FREE],
    allow: ["127.0.0.1:*"],
  });
  for (const addr of pair.client.listenAddrs) {
    using connection = await dial(addr);
    await writeAll(connection, bytes(`GET http://${origin}/ HTTP/1.1\r\n\r\n`));
    assertEquals(text(await readHead(connection)), "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    await writeAll(connection, bytes(`GET http://other.test/ HTTP/1.1\r\n${basic(AUTH)}\r\n`));
    assertEquals(await promptly(isEnded(connection)), true);
  }
  await pair.logs.client.until(/expected one request for each connection/, 2);
  listener.close();
  await serving;
  const head = `GET / HTTP/1.1\r\nHost: ${origin}\r\nConnection: close\r\n\r\n`;
  assertEquals(received, [head, "", head, ""]);
});

Deno.test("tunnel: reverseSocks connects to addresses that the client's allow contains, and to no other", async () => {
  await using echo = makeEcho();
  const { lookup } = resolver;
  resolver.lookup = (hostname) => Promise.resolve(hostname === "inside.test" ? ["127.0.0.1"] : ["192.0.2.1"]);
  try {
    await using pair = await makePair({ allowListen: ["127.0.0.1:*"] }, {
      reverseSocks: [FREE],
      allow: ["*:*", "!127.0.0.2:*"],
    });
    const { client, logs } = pair;
    const opened: Deno.TcpConn[] = [];
    using _opened = { [Symbol.dispose]: () => opened.forEach((connection) => connection.close()) };
    const ask = async (target: string) => {
      const connection = await dial(client.listenAddrs[0]!);
      opened.push(connection);
      await writeAll(connection, bytes(`CONNECT ${target} HTTP/1.1\r\n\r\n`));
      const [, status] = /^HTTP\/1\.1 (\d+)/.exec(text(await readHead(connection)))!;
      return { connection, status };
    };
    const allowed = await ask(echo.addr);
    assertEquals([allowed.status, await say(allowed.connection, "hello")], ["200", "hello"]);
    // `*` does not include this machine by a name that an outsider may control.
    const port = portOf(echo.addr);
    for (const target of [`inside.test:${port}`, `127.0.0.2:${port}`, `[::ffff:127.0.0.2]:${port}`, "169.254.1.1:80"]) {
      assertEquals([target, (await ask(target)).status], [target, "403"]);
    }
    await logs.client.until(/^Refused a visitor of reverseSocks from 127\.0\.0\.1:\d+: .* is not allowed$/, 4);
    await allowed.connection.closeWrite();
    await logs.client.until("finished");
    const [{ kind, to, from } = {}] = logs.client.finished;
    assertEquals([kind, to, /^127\.0\.0\.1:\d+$/.test(from!)], ["reverse", echo.addr, true]);
    assertEquals(client.stats().refused, { 403: 4 });
    assertEquals(logs.server.messages(), []);

    // Other rules and a password apply to new connections; the address stays.
    const [addr] = client.listenAddrs;
    const connect = pair.server.serverAddr;
    await client.update({ connect, reverseSocks: [FREE], allow: [`inside.test:${port}`], proxyAuth: AUTH });
    assertEquals(client.listenAddrs, [addr!]);
    const unproved = await ask(`inside.test:${port}`);
    assertEquals(unproved.status, "407");
    await client.update({ connect, reverseSocks: [FREE], allow: [`inside.test:${port}`] });
    const reached = await ask(`inside.test:${port}`);
    assertEquals([reached.status, await say(reached.connection, "hello")], ["200", "hello"]);
    const refused = await ask(echo.addr);
    assertEquals(refused.status, "403");
  } finally {
    resolver.lookup = lookup;
  }
});

Deno.test("tunnel: reverseSocks is subject to the server's allowListen", async () => {
  const error = await assertRejects(
    () => makePair({ allow: ["*:*"] }, { reverseSocks: [FREE], allow: ["*:*"] }),
    TunnelRefusedError,
  );
  assertEquals(error.status, 403);
});

Deno.test("TunnelClient.update() adds http and a password, and keeps the listener of socks", async () => {
  await using echo = makeEcho();
  await using pair = await makePair({ allow: ["*:*"] }, { socks: [FREE] });
  const { client, server } = pair;
  const [socks] = client.listenAddrs;
  await client.update({ connect: server.serverAddr, socks: [FREE], http: [FREE], proxyAuth: AUTH });
  assertEquals([client.listenAddrs.length, client.listenAddrs[0]], [2, socks]);
  for (const addr of client.listenAddrs) {
    using connection = await dial(addr);
    await writeAll(connection, new Uint8Array([5, 1, 2, 1, ...named("alice"), ...named("open sesame")]));
    assertEquals(Array.from(await readSome(connection, 4)), [5, 2, 1, 0]);
    await writeAll(connection, socksRequest(1, 1, IPV4, portOf(echo.addr)));
    assertEquals((await readSome(connection, 10))[1], 0);
    assertEquals(await say(connection, "hello"), "hello");
  }
  await client.update({ connect: server.serverAddr, http: [FREE] });
  assertEquals(client.listenAddrs.length, 1);
});

Deno.test("tunnel: a connection to a proxy that ends without a byte is not reported, one with a byte is, with its address", async () => {
  await using pair = await makePair({ allow: [], allowListen: ["127.0.0.1:*"] }, {
    http: [FREE],
    reverseSocks: [FREE],
    allow: [],
  });
  const visitors: string[] = [];
  for (const addr of pair.client.listenAddrs) {
    for (const sent of ["", "C"]) {
      using connection = await dial(addr);
      if (sent !== "") visitors.push(at(connection.localAddr as Deno.NetAddr));
      await writeAll(connection, bytes(sent));
      await connection.closeWrite();
      await readAll(connection);
    }
  }
  await pair.logs.client.until(/connection closed during handshake$/, 2);
  assertEquals(pair.logs.client.messages().sort(), [
    `Refused a connection from ${visitors[0]}: connection closed during handshake`,
    `Refused a visitor of reverseSocks from ${visitors[1]}: connection closed during handshake`,
  ]);
});

Deno.test("openTunnel() ends although a refused client does not close", async () => {
  await using pair = await makePair({ allow: [] }, { http: [FREE] });
  using connection = await dial(pair.client.listenAddrs[0]!);
  await writeAll(connection, bytes("CONNECT a.test:1 HTTP/1.1\r\n\r\n"));
  assertMatch(text(await readHead(connection)), /^HTTP\/1\.1 403 /);
  await promptly(pair.client.shutdown());
});

Deno.test("loadConfig() reads the options of proxies, the password from a file", async () => {
  await using folder = await makeFolder("proxies");
  const file = `${folder.path}/sluice.json`;
  await Deno.writeTextFile(`${folder.path}/password`, `${AUTH}\n`);
  const client = { connect: "1", http: ["0"], reverseSocks: ["1080"], allow: ["*:443", "!10.0.0.0/8:*"] };
  await Deno.writeTextFile(file, JSON.stringify({ client: { ...client, proxyAuth: "password" } }));
  const { config, mistakes } = loadConfig(file);
  assertEquals([mistakes, config?.client], [[], { retry: true, ...client, proxyAuth: AUTH }]);
  const { allow: _, ...rest } = client;
  await Deno.writeTextFile(file, JSON.stringify({ client: rest }));
  const [mistake] = loadConfig(file).mistakes;
  assertMatch(mistake!, /:1:\d+: client\.reverseSocks requires allow, the targets that may be requested, such as/);
});

Deno.test("tunnel command: --http, --proxy-auth and --reverse-socks with --allow, named in the log", async () => {
  await using echo = makeEcho();
  await using folder = await makeFolder("proxies");
  await Deno.writeTextFile(`${folder.path}/password`, `${AUTH}\n`);
  await using server = serveTunnel({ listen: FREE, allow: ["*:*"], allowListen: ["127.0.0.1:*"], onError() {} });
  const args = ["client", "--connect", server.serverAddr, "--http", "0", "--reverse-socks", "0"];
  const more = ["--allow", echo.addr, "--proxy-auth", `${folder.path}/password`, "--log", "text"];
  const script = `${import.meta.dirname}/../tunnel.ts`;
  await using client = watch(
    new Deno.Command(Deno.execPath(), {
      args: ["run", "-q", "--no-config", "-A", script, ...args, ...more],
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
      env: { NO_COLOR: "1" },
    }).spawn(),
  );
  const [, http, reverse] = await client.until(/ listening on (\S+)\n.* listening on (\S+)\n/);
  for (const addr of [http!, reverse!]) {
    using connection = await dial(addr);
    await writeAll(connection, bytes(`CONNECT ${echo.addr} HTTP/1.1\r\n${basic(AUTH)}\r\n`));
    assertEquals(text(await readHead(connection)), "HTTP/1.1 200 Connection established\r\n\r\n");
    assertEquals(await say(connection, "hello"), "hello");
  }
  await client.until(new RegExp(`(> ${echo.addr} 5B/5B [^\n]* closed\n[^]*){2}`));
});

// Real programs.

/** Whether a connection was reset: curl closes one with TLS before it has read the end. */
const isReset = (message: string) => /failed: connection reset by peer$/.test(message);

/** Runs curl; returns its output, its exit code and the HTTP status. */
async function curl(args: string[], input = new Uint8Array()) {
  const all = ["-sS", "--http1.1", "--max-time", "20", "-w", "\n%{http_code} %{http_connect}", ...args];
  const child = new Deno.Command("curl", { args: all, stdin: "piped", stdout: "piped", stderr: "piped" }).spawn();
  const writing = new Blob([input.slice()]).stream().pipeTo(child.stdin).catch(() => {});
  const { code, stdout, stderr } = await child.output();
  await writing;
  const [, body, status, connect] = /^([\s\S]*)\n(\d+) (\d+)$/.exec(text(stdout)) ?? [];
  return { code, body, status, connect, stderr: text(stderr) };
}

/** Starts an HTTP and an HTTPS server that answer with the digest of the body, the Host and the Connection. */
async function makeOrigins() {
  const { cert, key } = await makeCertificate(["localhost"]);
  const where = { hostname: "127.0.0.1", port: 0, onListen() {} };
  const answer = async (request: Request) => {
    const { headers } = request;
    const body = await sha256(new Uint8Array(await request.arrayBuffer()));
    return new Response([body, headers.get("host"), headers.get("proxy-authorization")].join(" "));
  };
  const [plain, secure] = [Deno.serve(where, answer), Deno.serve({ ...where, cert, key }, answer)];
  const dispose = async () => void await Promise.all([plain.shutdown(), secure.shutdown()]);
  return { http: plain.addr.port, https: secure.addr.port, [Symbol.asyncDispose]: dispose };
}

/** What curl has to say of a proxy, without its address and with it. */
const WAYS = (addr: string): [what: string, args: string[], hasPassword: boolean][] => [
  ["SOCKS 4", ["--socks4", addr], false],
  ["SOCKS 4a", ["--socks4a", addr], false],
  ["SOCKS 5", ["--socks5", addr], true],
  ["SOCKS 5 with names", ["--socks5-hostname", addr], true],
  ["HTTP", ["-x", `http://${addr}`], true],
  ["HTTP by CONNECT", ["-p", "-x", `http://${addr}`], true],
];

Deno.test(
  "tunnel and curl: every protocol of a proxy, to HTTP and HTTPS",
  { ignore: !hasPrograms("curl") },
  async () => {
    await using origins = await makeOrigins();
    await using pair = await makePair({ allow: ["127.0.0.1:*", "localhost:*"] }, { socks: [FREE] });
    const upload = pattern(1_000_000, 3);
    const digest = await sha256(upload);
    const empty = await sha256(new Uint8Array());
    const checks = WAYS(pair.client.listenAddrs[0]!).map(async ([what, args]) => {
      for (const [scheme, port] of [["http", origins.http], ["https", origins.https]] as const) {
        const host = `localhost:${port}`;
        const url = `${scheme}://${host}/`;
        const posts = [["--data-binary", "@-", "-H", "Expect: 100-continue"], [
          "-T",
          "-",
          "-X",
          "POST",
          "-H",
          "Expect:",
        ]];
        for (const more of posts) {
          const { body, status, stderr } = await curl([...args, "-4", "-k", ...more, url], upload);
          assertEquals([what, scheme, body, status], [what, scheme, `${digest} ${host} `, "200"], stderr);
        }
        // On one connection, where the proxy allows it.
        const twice = await curl([...args, "-4", "-k", url, url]);
        assertEquals([twice.code, twice.body?.startsWith(empty)], [0, true], `${what} ${twice.stderr}`);
      }
    });
    await Promise.all(checks);
    const { client, server } = pair.logs;
    assertEquals([...client.messages(), ...server.messages()].filter((message) => !isReset(message)), []);
    const failed = client.finished.filter(({ to, error }) => error && portOf(to!) === origins.http);
    assertEquals(failed.map(({ error }) => error!.message), []);
  },
);

Deno.test("tunnel and curl: a password, right, wrong and missing", { ignore: !hasPrograms("curl") }, async () => {
  await using origins = await makeOrigins();
  const options = { http: [FREE], proxyAuth: AUTH };
  await using pair = await makePair({ allow: ["127.0.0.1:*", "localhost:*"] }, options);
  const url = `http://localhost:${origins.http}/`;
  const empty = await sha256(new Uint8Array());
  const checks = WAYS(pair.client.listenAddrs[0]!).map(async ([what, args, hasPassword]) => {
    const right = await curl([...args, "-4", "-U", AUTH, url]);
    const wrong = await curl([...args, "-4", "-U", "alice:open", url]);
    const missing = await curl([...args, "-4", url]);
    if (!hasPassword) return assertEquals([right, wrong, missing].map(({ code }) => code), [97, 97, 97], what);
    assertEquals([what, right.body], [what, `${empty} localhost:${origins.http} `], right.stderr);
    const isHttp = what.startsWith("HTTP");
    for (const { code, status, connect } of [wrong, missing]) {
      if (isHttp) assert([status, connect].includes("407"), `${what} ${status} ${connect}`);
      else assertEquals(code, 97, what);
    }
  });
  await Promise.all(checks);
});

Deno.test(
  "tunnel and curl: a refused upload shows the status of the refusal",
  { ignore: !hasPrograms("curl") },
  async () => {
    await using pair = await makePair({ allow: [nowhere()] }, { http: [FREE] });
    const proxy = ["-x", `http://${pair.client.listenAddrs[0]}`, "-H", "Expect:", "-T", "-", "-X", "POST"];
    const forbidden = await curl([...proxy, "http://a.test/"], pattern(500_000, 1));
    assertEquals([forbidden.code, forbidden.status], [0, "403"], forbidden.stderr);
    assertMatch(forbidden.body!, /not allowed/);
  },
);

for (const version of [1, 2] as const) {
  Deno.test(
    `tunnel and curl: reverseSocks in version ${version}, allowed and refused targets`,
    { ignore: !hasPrograms("curl") },
    async () => {
      await using origins = await makeOrigins();
      await using pair = await makePair({ allowListen: ["127.0.0.1:*"] }, {
        version,
        reverseSocks: [FREE],
        allow: [`127.0.0.1:${origins.http}`, `localhost:${origins.https}`, `!localhost:${origins.http}`],
        proxyAuth: AUTH,
      });
      const upload = pattern(1_000_000, 3);
      const digest = await sha256(upload);
      for (const [what, args, hasPassword] of WAYS(pair.client.listenAddrs[0]!)) {
        if (!hasPassword) continue;
        const run = (url: string) => curl([...args, "-U", AUTH, "-4", "-k", "--data-binary", "@-", url], upload);
        const allowed = await run(`http://127.0.0.1:${origins.http}/`);
        assertEquals([what, allowed.body], [what, `${digest} 127.0.0.1:${origins.http} `], allowed.stderr);
        // curl resolves the name itself for SOCKS 5 without names.
        if (what === "SOCKS 5") continue;
        const secure = await run(`https://localhost:${origins.https}/`);
        assertEquals([what, secure.body], [what, `${digest} localhost:${origins.https} `], secure.stderr);
        const refused = await run(`http://localhost:${origins.http}/`);
        if (what === "HTTP") assertEquals(refused.status, "403");
        else if (what === "HTTP by CONNECT") assertEquals(refused.connect, "403");
        else assertEquals(refused.code, 97, what);
      }
      assertEquals(pair.logs.server.messages().filter((message) => !isReset(message)), []);
    },
  );
}
