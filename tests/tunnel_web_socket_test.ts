/** The tunnel over WebSockets: both ends, the handshakes with every bad answer and request, and a web server behind. */

import { assert, assertEquals, assertMatch, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import { concat } from "@std/bytes";
import { createHash } from "node:crypto";
import { serve, Session } from "../mod.ts";
import { resumableListener } from "../resume.ts";
import {
  checkTunnel,
  openTunnel,
  type OpenTunnelOptions,
  serveTunnel,
  type ServeTunnelOptions,
  tunnelHandler,
  TunnelRefusedError,
} from "../tunnel.ts";
import { webSocketConnection, WebSocketListener } from "../websocket.ts";
import { parseCommand } from "../tunnel/arguments.ts";
import { PermanentError } from "../tunnel/errors.ts";
import { UsageError } from "../tunnel/values.ts";
import { openWebSocket } from "../tunnel/web_socket_handshake.ts";
import { run, watch } from "./programs.ts";
import {
  bytes,
  certificates,
  LOOPBACK,
  memoryPair,
  pattern,
  readAll,
  readSome,
  sha256,
  text,
  writeAll,
} from "./support.ts";
import {
  askSocks,
  at,
  changeDelays,
  dial,
  exceedHandshakes,
  fetchFiles,
  FREE,
  holdTimers,
  IPV4,
  isEnded,
  makeEcho,
  makeLog,
  makeProxy,
  makeTarget,
  parse,
  portOf,
  promptly,
  readHead,
  say,
  serveFiles,
  SIZES,
  socksRequest,
} from "./tunnel_support.ts";

const SCRIPT = `${import.meta.dirname}/../tunnel.ts`;
const PATH = "/open-sesame?now";
const tls = await certificates();

/** Returns the HOST:PORT of a server. */
const bare = (addr: string) => addr.replace(/^wss?:\/\//, "");

/** Starts a server at a path. */
function start(options: Partial<ServeTunnelOptions> = {}) {
  const log = makeLog();
  const server = serveTunnel({ listen: `ws://${FREE}${PATH}`, allow: ["127.0.0.1:*"], ...log.options, ...options });
  const dispose = () => server.shutdown();
  return { server, log, addr: bare(server.serverAddr), [Symbol.asyncDispose]: dispose };
}

/** Opens a client with a log. */
async function open(options: OpenTunnelOptions) {
  const log = makeLog();
  const client = await openTunnel({ ...log.options, ...options });
  return { client, log, [Symbol.asyncDispose]: () => client.shutdown() };
}

for (const scheme of ["ws", "wss"] as const) {
  for (const version of [1, 2] as const) {
    for (const resume of [true, false]) {
      const name = `${scheme}, smux ${version}, ${resume ? "resumable" : "not resumable"}`;
      Deno.test(`tunnel over ${name}: forward, reverse, SOCKS 5 and a stream`, async () => {
        const web = serveFiles();
        const { cert, key, ca } = tls;
        const secure = scheme === "wss" ? { cert, key } : {};
        const listen = `${scheme}://localhost:0${PATH}`;
        await using tunnel = start({ listen, allow: ["127.0.0.1:*"], allowListen: ["127.0.0.1:*"], ...secure });
        assertMatch(tunnel.server.serverAddr, new RegExp(`^${scheme}://127\\.0\\.0\\.1:\\d+$`));
        await using opened = await open({
          connect: `${scheme}://localhost:${portOf(tunnel.addr)}${PATH}`,
          forward: [`0=${web.addr.port}`],
          reverse: [`${FREE}=${web.addr.port}`],
          socks: ["0"],
          version,
          resume,
          ...scheme === "wss" ? { ca } : {},
        });
        const { client } = opened;
        assertEquals(client.serverAddr, `${scheme}://localhost:${portOf(tunnel.addr)}`);
        const [forward, socks, reverse] = client.listenAddrs;
        for (const addr of [forward!, reverse!]) await fetchFiles(addr, SIZES);
        const connection = await dial(socks!);
        const { port } = web.addr;
        assertEquals(await askSocks(connection, socksRequest(1, 1, IPV4, port)), 0);
        const request = bytes("GET /5000 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        await writeAll(connection, request);
        assertStringIncludes(text(await readAll(connection)).slice(0, 100), "200 OK");
        connection.close();
        const stream = await client.connect(`127.0.0.1:${port}`);
        await writeAll(stream, request);
        assertStringIncludes(text(await readAll(stream)).slice(0, 100), "200 OK");
        stream.close();
        await client.shutdown();
        await tunnel.server.shutdown();
        await web.shutdown();
        assertEquals([opened.log.messages(), tunnel.log.messages()], [[], []]);
      });
    }
  }
}

Deno.test("tunnel over ws: a resumable carrier that is cut continues, without a path in its events", async () => {
  await using echo = makeEcho();
  await using tunnel = start();
  await using proxy = makeProxy(tunnel.addr);
  await using opened = await open({ connect: `ws://${proxy.addr}${PATH}`, forward: [`0=${echo.addr}`] });
  using connection = await dial(opened.client.listenAddrs[0]!);
  for (let n = 1; n <= 3; n++) {
    assertEquals(await say(connection, `word ${n}`), `word ${n}`);
    proxy.cut();
    await promptly(opened.log.until("resumed", n));
  }
  assertEquals(await say(connection, "last"), "last");
  assertEquals(opened.log.messages(), []);
  const shown = JSON.stringify(opened.log.events) + opened.log.events.map((event) => String(event)).join();
  assert(!shown.includes("sesame"), shown);
});

Deno.test("openTunnel() with a wrong path rejects at once, also with retry, and names no path", async () => {
  await using tunnel = start();
  const connect = `ws://${tunnel.addr}/wrong-sesame`;
  const error = await assertRejects(
    () => promptly(openTunnel({ connect, forward: ["0"], retry: true })),
    PermanentError,
  );
  const expected = "the server refused the WebSocket with status 404 Not Found: the path may be wrong";
  assertEquals(error.message, `Cannot connect to ws://${tunnel.addr}: ${expected}`);
  await promptly(tunnel.log.until(/^Refused a connection from 127\.0\.0\.1:\d+: another path, or not a WebSocket$/));
  assertEquals(tunnel.server.stats().refused, { 404: 1 });
  const plain = await assertRejects(() => openTunnel({ connect: tunnel.addr, forward: ["0"] }), PermanentError);
  assertStringIncludes(plain.message, 'does not speak smux: its answer begins with "HTTP/1.1"');
});

const KEY = "dGhlIHNhbXBsZSBub25jZQ==";
const UPGRADE = [
  `GET ${PATH} HTTP/1.1`,
  "Host: a",
  "Upgrade: websocket",
  "Connection: keep-alive, Upgrade",
  `Sec-WebSocket-Key: ${KEY}`,
  "Sec-WebSocket-Version: 13",
];
const lines = (head: string[]) => bytes(`${head.join("\r\n")}\r\n\r\n`);

/** Returns the request with a line replaced or removed. */
function changed(name: string, ...replaced: string[]): Uint8Array {
  return lines(UPGRADE.flatMap((line) => line.startsWith(name) ? replaced : [line]));
}

/** Returns the response to bytes. */
async function answerTo(addr: string, request: Uint8Array): Promise<string> {
  using connection = await dial(addr);
  await writeAll(connection, request);
  return text(await promptly(readAll(connection)));
}

Deno.test("serveTunnel() over ws answers the sample of RFC 6455, in any case and with other headers", async () => {
  await using tunnel = start();
  const requests = [
    lines(UPGRADE),
    lines([...UPGRADE, "Origin: https://page", "Cookie: a=b", "Sec-WebSocket-Extensions: permessage-deflate"]),
    lines([UPGRADE[0]!, ...UPGRADE.slice(1).map((line) => line.replace(/^[^:]*:/, (name) => name.toUpperCase()))]),
    changed("Upgrade", "Upgrade: h2c, WebSocket"),
  ];
  for (const request of requests) {
    using connection = await dial(tunnel.addr);
    // In two parts.
    await writeAll(connection, request.subarray(0, 30));
    await writeAll(connection, request.subarray(30));
    const head = text(await readHead(connection));
    assertMatch(head, /^HTTP\/1\.1 101 Switching Protocols\r\n/);
    assertStringIncludes(head, "\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n");
    assert(!/extensions/i.test(head));
  }
});

const OTHER: [what: string, request: Uint8Array][] = [
  ["another path", changed("GET", "GET / HTTP/1.1")],
  ["a longer path", changed("GET", `GET ${PATH}x HTTP/1.1`)],
  ["the path without its query", changed("GET", `GET ${PATH.replace(/\?.*/, "")} HTTP/1.1`)],
  ["another case of the path", changed("GET", `GET ${PATH.toUpperCase()} HTTP/1.1`)],
  ["another method", changed("GET", `POST ${PATH} HTTP/1.1`)],
  ["HTTP/1.0", changed("GET", `GET ${PATH} HTTP/1.0`)],
  ["no host", changed("Host")],
  ["two hosts", changed("Host", "Host: a", "Host: b")],
  ["no upgrade", changed("Upgrade")],
  ["another upgrade", changed("Upgrade", "Upgrade: h2c")],
  ["no connection", changed("Connection")],
  ["another connection", changed("Connection", "Connection: keep-alive")],
  ["no key", changed("Sec-WebSocket-Key")],
  ["a short key", changed("Sec-WebSocket-Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZQ==")],
  ["two keys", changed("Sec-WebSocket-Key", `Sec-WebSocket-Key: ${KEY}`, `Sec-WebSocket-Key: ${KEY}`)],
  ["another version", changed("Sec-WebSocket-Version", "Sec-WebSocket-Version: 8")],
  ["a body", lines([...UPGRADE, "Content-Length: 1"])],
  ["chunks", lines([...UPGRADE, "Transfer-Encoding: chunked"])],
  ["a folded line", lines([...UPGRADE, " more"])],
  ["a space before a colon", lines([...UPGRADE, "Name : value"])],
];
for (const [what, request] of OTHER) {
  Deno.test(`serveTunnel() over ws answers a request with ${what} with 404`, async () => {
    await using tunnel = start();
    const answer = await answerTo(tunnel.addr, request);
    assertEquals(answer, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
  });
}

Deno.test("serveTunnel() over ws refuses other protocols, long heads and pages of browsers at the path /", async () => {
  await using tunnel = start();
  for (const other of [new Uint8Array([2, 0, 0, 0, 0, 0, 0, 0]), new Uint8Array([22, 3, 1]), bytes("get / HTTP/1.1")]) {
    assertMatch(await answerTo(tunnel.addr, other), /^HTTP\/1\.1 400 Bad Request\r\n/);
  }
  assertMatch(await answerTo(tunnel.addr, bytes(`GET / HTTP/1.1\r\na: ${"b".repeat(9000)}`)), /^HTTP\/1\.1 431 /);
  assertEquals(tunnel.server.stats().refused, { 400: 3, 431: 1 });
  assertStringIncludes(tunnel.log.messages()[0]!, 'expected HTTP, received "????????"');
  // A load balancer looks whether it listens.
  (await dial(tunnel.addr)).close();
  await using open = start({ listen: `ws://${FREE}` });
  const request = (...more: string[]) => lines(["GET / HTTP/1.1", ...UPGRADE.slice(1), ...more]);
  assertMatch(await answerTo(open.addr, request("Origin: http://a")), /^HTTP\/1\.1 404 /);
  using connection = await dial(open.addr);
  await writeAll(connection, request());
  assertMatch(text(await readHead(connection)), /^HTTP\/1\.1 101 /);
  assertEquals(tunnel.log.errors.length, 4);
});

Deno.test("serveTunnel() over ws: slow handshakes end at their deadline, and do not block others", async () => {
  await using echo = makeEcho();
  await using tunnel = start();
  const slow = await Promise.all(Array.from({ length: 20 }, () => dial(tunnel.addr)));
  for (const connection of slow) await writeAll(connection, bytes("GET / HT"));
  {
    using held = holdTimers(10_000);
    using late = await dial(tunnel.addr);
    await using opened = await open({ connect: `ws://${tunnel.addr}${PATH}`, forward: [`0=${echo.addr}`] });
    using connection = await dial(opened.client.listenAddrs[0]!);
    assertEquals(await say(connection, "hello"), "hello");
    held.fire();
    assert(await promptly(isEnded(late)));
    await promptly(tunnel.log.until(/handshake timed out after 10000 ms/));
  }
  for (const connection of slow) connection.close();
});

Deno.test("serveTunnel() over ws: one handshake more than 512 ends the oldest", async () => {
  await using tunnel = start();
  const connections = await exceedHandshakes(tunnel.addr, tunnel.log);
  // The newest one is served.
  await writeAll(connections.at(-1)!, lines(UPGRADE));
  assertMatch(text(await readHead(connections.at(-1)!)), /^HTTP\/1\.1 101 /);
  for (const connection of connections) connection.close();
});

/** Starts a web server that names what it receives. */
function makeBackend() {
  return Deno.serve({ ...LOOPBACK, onListen() {} }, async (request) => {
    if (request.headers.get("upgrade") === "websocket" && request.url.endsWith("/chat")) {
      const { socket, response } = Deno.upgradeWebSocket(request);
      socket.onmessage = ({ data }) => socket.send(data);
      return response;
    }
    const { pathname } = new URL(request.url);
    return new Response(`${request.method} ${pathname} ${request.headers.get("x-a")} ${await request.text()}`);
  });
}

Deno.test("serveTunnel() with a backend replays other requests unchanged, and keeps their connections", async () => {
  const web = makeBackend();
  await using echo = makeEcho();
  await using tunnel = start({ backend: `http://127.0.0.1:${web.addr.port}/` });
  using connection = await dial(tunnel.addr);
  const post = (path: string, body: string) =>
    `POST ${path} HTTP/1.1\r\nhost: a\r\nx-a: ${body}\r\ncontent-length: ${body.length}\r\n\r\n${body}`;
  await writeAll(connection, bytes(post("/first", "one") + post(PATH, "two")));
  let answer = "";
  while (!answer.includes(`POST ${PATH.replace(/\?.*/, "")} two two`)) answer += text(await readSome(connection, 1));
  assertStringIncludes(answer, "POST /first one one");
  await writeAll(connection, bytes(post("/third", "three")));
  while (!answer.includes("POST /third three three")) answer += text(await readSome(connection, 1));
  // A WebSocket at another path is that of the backend.
  const socket = new WebSocket(`ws://${tunnel.addr}/chat`);
  const event = (name: string) =>
    new Promise<Event>((resolve) => socket.addEventListener(name, resolve, { once: true }));
  await event("open");
  const echoed = event("message");
  socket.send("hello");
  assertEquals((await echoed as MessageEvent<string>).data, "hello");
  const closed = event("close");
  socket.close();
  await closed;
  // Clients share the address.
  await using opened = await open({ connect: `ws://${tunnel.addr}${PATH}`, forward: [`0=${echo.addr}`] });
  using forwarded = await dial(opened.client.listenAddrs[0]!);
  assertEquals(await say(forwarded, "hello"), "hello");
  const error = await assertRejects(() => openTunnel({ connect: `ws://${tunnel.addr}/x`, forward: ["0"] }));
  assert(error instanceof Error && !error.message.includes("/x"));
  forwarded.close();
  await opened.client.shutdown();
  await tunnel.server.shutdown();
  assert(await isEnded(connection));
  await web.shutdown();
  assertEquals(tunnel.log.messages(), []);
});

Deno.test("serveTunnel() answers 502 when the backend cannot be reached", async () => {
  await using tunnel = start({ backend: "http://127.0.0.1:1" });
  assertMatch(await answerTo(tunnel.addr, bytes("GET / HTTP/1.1\r\n\r\n")), /^HTTP\/1\.1 502 Bad Gateway\r\n/);
  await promptly(tunnel.log.until(/^Cannot forward a request to the backend 127\.0\.0\.1:1: .*refused/));
});

/** Opens a client whose server answers with these bytes. */
async function openAt(answer: (head: string) => Uint8Array, options: Partial<OpenTunnelOptions> = {}) {
  let head = "";
  await using target = makeTarget(async (connection) => {
    head = text(await readHead(connection));
    await writeAll(connection, answer(head));
    await readAll(connection);
  });
  const connect = `ws://${target.addr}${PATH}`;
  const error: Error = await promptly(openTunnel({ connect, forward: ["0"], ...options })).then(
    () => Promise.reject(new Error("It was opened")),
    (error) => error,
  );
  assert(!error.message.includes("sesame"), error.message);
  return { error, head, addr: target.addr };
}

Deno.test("openTunnel() over ws says how the server has refused, and which refusals last", async () => {
  const refused = "the server refused the WebSocket with status";
  const answers: [answer: string, message: string, isPermanent: boolean][] = [
    ["401 Unauthorized", `${refused} 401 Unauthorized: the path may be wrong`, true],
    ["403 Forbidden\r\ncontent-type: text/html", `${refused} 403 Forbidden: the path may be wrong`, true],
    ["404", `${refused} 404: the path may be wrong`, true],
    ["426 Upgrade Required", `${refused} 426 Upgrade Required`, true],
    ["408 Late", `${refused} 408 Late`, false],
    ["425 Early", `${refused} 425 Early`, false],
    ["429 Many", `${refused} 429 Many`, false],
    ["502 Bad \u0007Gateway", `${refused} 502 Bad ?Gateway`, false],
    ["200 OK", `${refused} 200 OK: the path may be wrong`, false],
    [
      "301 Moved\r\nlocation: https://b.example/open-sesame",
      `${refused} 301 Moved, which points to https://b.example`,
      false,
    ],
    ["302 Found\r\nLocation: /open-sesame/", `${refused} 302 Found, which points to another path`, false],
    ["307 Away", `${refused} 307 Away, which points to another path`, false],
    ["101 Switching", "the server sent an invalid answer to the WebSocket handshake", true],
  ];
  for (const [answer, message, isPermanent] of answers) {
    const { error, addr } = await openAt(() => bytes(`HTTP/1.1 ${answer}\r\n\r\n<html>`));
    assertEquals(error.message, `Cannot connect to ws://${addr}: ${message}`);
    assertEquals(error instanceof PermanentError, isPermanent, answer);
  }
});

/** Returns the answer to the key in a request. */
function answerKey(head: string): string {
  const [, key] = /\r\nSec-WebSocket-Key: (\S+)/.exec(head)!;
  return createHash("sha1").update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest("base64");
}

Deno.test("openWebSocket() keeps the bytes that arrive together with the answer", async () => {
  const [near, far] = memoryPair();
  const opening = openWebSocket(near, { host: "a.test", path: "/", headers: [] });
  const lines = ["HTTP/1.1 101 OK", "Upgrade: websocket", "Connection: upgrade"];
  const answer = `Sec-WebSocket-Accept: ${answerKey(text(await readHead(far)))}`;
  const message = [Uint8Array.of(0x82, 5), bytes("hello")];
  await writeAll(far, concat([bytes([...lines, answer, "", ""].join("\r\n")), ...message]));
  assertEquals(await readSome(await opening, 5), bytes("hello"));
});

Deno.test("openTunnel() over ws rejects invalid, endless and missing answers", async () => {
  const accept = (head: string, more = "") => {
    assertMatch(head, /\r\nSec-WebSocket-Key: [A-Za-z\d+/]{22}==\r\n/);
    return bytes(
      `HTTP/1.1 101 OK\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: ${more}\r\n\r\n`,
    );
  };
  const acceptAnd = (head: string, header: string) => accept(head, `${answerKey(head)}\r\n${header}`);
  const answers: [answer: (head: string) => Uint8Array, message: string][] = [
    [(head) => accept(head, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "invalid answer"],
    [(head) => acceptAnd(head, "Sec-WebSocket-Extensions: permessage-deflate"), "sec-websocket-extensions, which was"],
    [(head) => acceptAnd(head, "Sec-WebSocket-Protocol: chat"), "sec-websocket-protocol, which was not requested"],
    [() => bytes("SSH-2.0-OpenSSH\r\n"), 'expected HTTP, received "SSH-2.0-"'],
    [() => bytes(`HTTP/1.1 101 OK\r\na: ${"b".repeat(9000)}`), "HTTP header exceeds 8192 bytes"],
  ];
  for (const [answer, message] of answers) {
    const { error } = await openAt(answer);
    assertStringIncludes(error.message, message);
  }
  await using closing = makeTarget(async (connection) => void await readHead(connection));
  const ended = () => openTunnel({ connect: `ws://${closing.addr}`, forward: ["0"] });
  await assertRejects(ended, Error, "the server closed the connection instead of answering the request");
  await using silent = makeTarget(async (connection) => void await readAll(connection));
  using _delays = changeDelays((delay) => delay === 10_000 ? 100 : delay);
  const late = () => promptly(openTunnel({ connect: `ws://${silent.addr}/sesame`, forward: ["0"] }));
  await assertRejects(late, Error, `Cannot connect to ws://${silent.addr}: `);
  const plain = () => promptly(openTunnel({ connect: `ws://${silent.addr}/sesame`, forward: ["0"], resume: false }));
  await assertRejects(plain, Error, `Cannot connect to ws://${silent.addr}: handshake timed out after 10000 ms`);
});

Deno.test("openTunnel() over ws sends the real host, the path, and its headers", async () => {
  const headers = ["Authorization: Bearer abc", "user-agent: mine/1", "X-A:b: c", "X-A: d"];
  const { head, addr } = await openAt(() => bytes("HTTP/1.1 404 No\r\n\r\n"), { headers });
  assertMatch(head, new RegExp(`^GET ${PATH.replace("?", "\\?")} HTTP/1\\.1\r\nHost: ${addr}\r\n`));
  for (const line of headers) assertStringIncludes(head, `\r\n${line}\r\n`);
  assert(!head.includes("sluice/"));
  const { head: capital } = await openAt(() => bytes("HTTP/1.1 404 No\r\n\r\n"), { headers: ["User-Agent: mine/2"] });
  assertEquals(capital.match(/^user-agent: .*$/gim), ["User-Agent: mine/2"]);
  const { head: plain } = await openAt(() => bytes("HTTP/1.1 404 No\r\n\r\n"));
  assertMatch(plain, /\r\nUser-Agent: sluice\/[\d.]+\r\n/);
});

Deno.test("openTunnel() and serveTunnel() throw for options of WebSockets that are malformed or do not fit", async () => {
  const client: [options: Partial<OpenTunnelOptions>, message: string][] = [
    [
      { connect: "wss://u:p@h/sesame" },
      'connect must be ws://HOST:PORT/PATH or wss://HOST:PORT/PATH, received "wss://.../..."',
    ],
    [{ connect: "ws://h/sesame#a" }, 'received "ws://h/..."'],
    [{ connect: "ws://h/a sesame" }, 'received "ws://h/..."'],
    [{ connect: "ws://9000/sesame" }, 'received "ws://9000/..."'],
    [{ connect: "ws:h/sesame" }, 'received "ws:h/..."'],
    [{ connect: "ws://h:0/sesame" }, "connect must have a port from 1 to 65535, received 0"],
    [{ connect: "ws://h:70000/sesame" }, "connect must have a port from 1 to 65535, received 70000"],
    [{ connect: "ws://h/sesame", tls: true }, 'connect must begin with wss:// with tls: true, received "ws://h:80"'],
    [{ connect: "ws://h/sesame", ca: tls.ca }, 'connect must begin with wss:// with ca, received "ws://h:80"'],
    [
      { connect: "wss://h/sesame", tls: false },
      'connect must begin with ws:// with tls: false, received "wss://h:443"',
    ],
    [{ connect: "ws://h.example/sesame", secret: "a" }, 'connect must be a loopback address, received "h.example:80"'],
    [{ connect: "9000", headers: ["a: b"] }, "headers requires connect to be ws://"],
    [
      { headers: ["sesame"] },
      'headers must be "NAME: VALUE" with the name of an HTTP header, received text without a colon',
    ],
    [{ headers: ["a b: sesame"] }, 'received the name "a b"'],
    [{ headers: [": sesame"] }, 'received the name ""'],
    [{ headers: ["a: b\r\nc: sesame"] }, "headers must have values of printable ASCII, received another value of a"],
    [{ headers: ["a: "] }, "received another value of a"],
    [{ headers: ["Host: sesame"] }, "headers must not contain a header of the handshake itself, received Host"],
    [{ headers: ["Sec-WebSocket-Protocol: sesame"] }, "received Sec-WebSocket-Protocol"],
  ];
  for (const [options, message] of client) {
    const opening = openTunnel({ connect: "ws://h/sesame", forward: ["0"], ...options });
    const error = await assertRejects(() => opening, RangeError, message);
    assert(!error.message.includes("sesame"), error.message);
  }
  const { cert, key } = tls;
  const server: [options: Partial<ServeTunnelOptions>, message: string][] = [
    [{ listen: `wss://${FREE}/sesame` }, `listen requires cert and key with wss://, received only "wss://${FREE}"`],
    [{ cert, key }, `listen must begin with wss:// when cert and key are set, received "ws://${FREE}"`],
    [{ listen: "ws://0.0.0.0:0/sesame", secret: "a" }, 'listen must be a loopback address, received "0.0.0.0:0"'],
    [{ listen: "wss://0.0.0.0:0/sesame", cert, key }, 'listen must be a loopback address, received "0.0.0.0:0"'],
    [{ listen: "ws:///sesame" }, 'received "ws:///..."'],
    [{ listen: FREE, backend: "http://a" }, "backend requires listen to be ws://"],
    [{ backend: "https://a" }, 'backend must be http://HOST:PORT, received "https://a"'],
    [{ backend: "http://a/b" }, 'backend must be http://HOST:PORT, received "http://a/..."'],
    [{ backend: "8080" }, "backend must be http://HOST:PORT"],
  ];
  for (const [options, message] of server) {
    const error = assertThrows(
      () => serveTunnel({ listen: `ws://${FREE}/sesame`, allow: ["a:1"], ...options }),
      RangeError,
      message,
    );
    assert(!error.message.includes("sesame"), error.message);
  }
});

Deno.test("TunnelServer.update() replaces path, backend and scheme; clients stay connected", async () => {
  const web = makeBackend();
  await using echo = makeEcho();
  await using tunnel = start();
  const { server, addr } = tunnel;
  await using opened = await open({ connect: `ws://${addr}${PATH}`, forward: [`0=${echo.addr}`] });
  using connection = await dial(opened.client.listenAddrs[0]!);
  assertEquals(await say(connection, "hello"), "hello");
  const allow = ["127.0.0.1:*"];
  const backend = `http://127.0.0.1:${web.addr.port}`;
  await server.update({ listen: `ws://${addr}/new`, allow, backend });
  assertStringIncludes(
    await answerTo(addr, bytes("GET /a HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")),
    "GET /a",
  );
  assertEquals(await say(connection, "again"), "again");
  await opened.client.update({ connect: `ws://${addr}/new`, forward: [`0=${echo.addr}`] });
  assertEquals(server.stats().connections, 2);
  const { cert, key, ca } = tls;
  await server.update({ listen: `wss://${addr}/new`, allow, cert, key });
  assertEquals(server.serverAddr, `wss://${addr}`);
  assertEquals(await say(connection, "still"), "still");
  await opened.client.update({ connect: `wss://${addr}/new`, forward: [`0=${echo.addr}`], ca });
  await server.update({ listen: addr, allow });
  await opened.client.update({ connect: addr, forward: [`0=${echo.addr}`] });
  assertEquals(server.serverAddr, addr);
  assertEquals(server.stats().connections, 4);
  const wrong = server.update({ listen: `wss://${addr}`, allow });
  await assertRejects(() => wrong, RangeError, "listen requires cert");
  connection.close();
  await opened.client.shutdown();
  await web.shutdown();
});

Deno.test("serveTunnel() over ws behind a proxy reports the address of its PROXY header", async () => {
  await using tunnel = start({ acceptProxy: ["127.0.0.1"] });
  using connection = await dial(tunnel.addr);
  const header = bytes("PROXY TCP4 192.0.2.1 198.51.100.2 8000 443\r\n");
  await writeAll(connection, concat([header, lines([...UPGRADE, "X-Forwarded-For: 10.0.0.1"])]));
  assertMatch(text(await readHead(connection)), /^HTTP\/1\.1 101 /);
  // An unmasked frame.
  await writeAll(connection, new Uint8Array([0x82, 1, 2]));
  await promptly(tunnel.log.until("connected"));
  assertEquals(tunnel.log.events[0], { type: "connected", clientAddr: "192.0.2.1:8000" });
  await promptly(tunnel.log.until(/A client's connection from \S+ failed.*code 1002: expected a masked frame/));
});

Deno.test("serveTunnel() over ws serves a session over Deno's WebSocket", async () => {
  await using echo = makeEcho();
  for (const version of [1, 2] as const) {
    await using tunnel = start({ target: echo.addr, allow: undefined });
    const session = Session.client(webSocketConnection(new WebSocket(`ws://${tunnel.addr}${PATH}`)), { version });
    const stream = await session.openStream();
    const sent = pattern(1_000_000, version);
    const [received] = await Promise.all([
      readAll(stream),
      writeAll(stream, sent).then(() => stream.closeWrite()),
    ]);
    assertEquals(await sha256(received), await sha256(sent));
    stream.close();
    await session.close();
    await session.closed;
    await tunnel.server.shutdown();
    assertEquals(tunnel.log.messages(), []);
  }
});

Deno.test("openTunnel() over ws connects to Deno.upgradeWebSocket(), resumable or not", async () => {
  for (const isResumable of [true, false]) {
    for (const version of [1, 2] as const) {
      const sockets = new WebSocketListener();
      const listener = isResumable ? resumableListener(sockets) : sockets;
      // A client tries to resume first.
      const onError = isResumable ? undefined : () => {};
      const streams = serve(listener, (stream) => stream.readable.pipeTo(stream.writable), { onError });
      const http = Deno.serve({ ...LOOPBACK, onListen() {} }, (request, info) => sockets.upgrade(request, info));
      await using opened = await open({ connect: `ws://${at(http.addr)}${PATH}`, forward: ["0"], version });
      using connection = await dial(opened.client.listenAddrs[0]!);
      const sent = pattern(1_000_000, version);
      const [received] = await Promise.all([
        readAll(connection),
        writeAll(connection, sent).then(() => connection.closeWrite()),
      ]);
      assertEquals(await sha256(received), await sha256(sent));
      await opened.client.shutdown();
      await streams.shutdown();
      await http.shutdown();
      assertEquals(opened.log.typesOf(), isResumable ? [] : ["unresumable"]);
      assertEquals(opened.log.messages(), []);
    }
  }
});

Deno.test("tunnelHandler() forwards, resumes, refuses to listen, and shuts down", async () => {
  await using echo = makeEcho();
  const log = makeLog();
  const handler = tunnelHandler({ secret: "a", allow: ["127.0.0.1:*"], ...log.options });
  const http = Deno.serve({ ...LOOPBACK, onListen() {} }, (request, info) => handler.fetch(request, info));
  await using proxy = makeProxy(at(http.addr));
  const connect = `ws://${proxy.addr}/any`;
  await using opened = await open({ connect, secret: "a", forward: [`0=${echo.addr}`], socks: ["0"] });
  const [forward, socks] = opened.client.listenAddrs;
  using connection = await dial(forward!);
  using other = await dial(socks!);
  assertEquals(await askSocks(other, socksRequest(1, 1, IPV4, portOf(echo.addr))), 0);
  other.close();
  assertEquals(await say(connection, "hello"), "hello");
  proxy.cut();
  await promptly(opened.log.until("resumed"));
  assertEquals(await say(connection, "again"), "again");
  const reverse = [`${FREE}=${echo.addr}`];
  const refused = await assertRejects(
    () => promptly(openTunnel({ connect, secret: "a", reverse, retry: true, onError() {} })),
    TunnelRefusedError,
    "this server cannot listen",
  );
  assertEquals(refused.status, 501);
  const wrong = await assertRejects(() => openTunnel({ connect, secret: "b", forward: ["0=1"] }), TunnelRefusedError);
  assertEquals(wrong.status, 407);
  await handler.update({ secret: "a", allow: ["127.0.0.1:*"], allowListen: ["127.0.0.1:*"] });
  await using bound = await open({ connect, secret: "a", reverse });
  assertMatch(bound.client.listenAddrs[0]!, /^127\.0\.0\.1:\d+$/);
  assertEquals(handler.stats().streams, 2);
  connection.close();
  await bound.client.shutdown();
  await opened.client.shutdown();
  await handler.shutdown();
  await handler.finished;
  const late = await dial(at(http.addr));
  await writeAll(late, lines(UPGRADE));
  assertMatch(text(await readHead(late)), /^HTTP\/1\.1 503 /);
  late.close();
  await http.shutdown();
});

Deno.test("tunnelHandler() throws without a secret, and rejects other updates of that kind", async () => {
  assertThrows(() => tunnelHandler({ allow: ["a:1"] }), RangeError, "secret or users must be set");
  const handler = tunnelHandler({ target: "a:1", insecure: true });
  await assertRejects(() => handler.update({ target: "a:1" }), RangeError, "secret or users must be set");
  await handler.shutdown();
});

Deno.test("checkTunnel() has a step for the WebSocket, and advice when it fails", async () => {
  const { cert, key, ca } = tls;
  await using tunnel = start({ listen: `wss://localhost:0${PATH}`, cert, key });
  const connect = `wss://localhost:${portOf(tunnel.addr)}`;
  const good = await Array.fromAsync(checkTunnel({ connect: connect + PATH, ca }));
  assertEquals(good.map(({ isOk }) => isOk).includes(false), false);
  assertEquals(good.slice(0, 5).map(({ name }) => name), ["name", "TCP", "TLS", "WebSocket", "protocol"]);
  const bad = (await Array.fromAsync(checkTunnel({ connect: `${connect}/wrong-sesame`, ca }))).at(-1)!;
  assertEquals(bad.name, "WebSocket");
  assertStringIncludes(bad.text, "status 404 Not Found: the path may be wrong");
  assertStringIncludes(bad.advice!, "Compare the path");
  assert(!bad.text.includes("sesame"));
});

Deno.test("parseCommand() reports malformed URLs and headers without their secrets, and accepts valid ones", () => {
  const client = ["client", "--forward", "0"];
  const cases: [args: string[], message: string][] = [
    [
      ["--connect", "ws://h/sesame#a"],
      '--connect must be ws://HOST:PORT/PATH or wss://HOST:PORT/PATH, received "ws://h/..."',
    ],
    [["--connect", "ws://h", "--header", "a b: sesame, c: d"], 'received the name "a b"'],
    [
      ["--connect", "ws://h", "--header", "Host: sesame"],
      "--header must not contain a header of the handshake itself, received Host",
    ],
  ];
  const server = ["server", "--target", "1", "--listen", "ws://127.0.0.1:0/sesame"];
  assertThrows(() => parseCommand([...server, "--backend", "8080"]), UsageError, "--backend must be http://HOST:PORT");
  for (const [args, message] of cases) {
    const error = assertThrows(() => parseCommand([...client, ...args]), UsageError, message);
    assert(!error.message.includes("sesame"), error.message);
  }
  parseCommand([...client, "--connect", "wss://h/sesame", "--header", "A: b", "--header", "C: d"]);
  parseCommand([...server, "--backend", "http://a"]);
});

Deno.test("sluice over ws: stdin and stdout, a backend, and headers; the path is not printed", async () => {
  await using echo = makeEcho();
  const web = makeBackend();
  const sluice = ["run", "-A", "--no-config", SCRIPT];
  const flags = ["--listen", `ws://${FREE}/open-sesame`, "--target", echo.addr, "--backend", `http://${at(web.addr)}`];
  const child = new Deno.Command(Deno.execPath(), {
    args: [...sluice, "server", ...flags],
    env: { NO_COLOR: "1" },
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  await using server = watch(child);
  const [, addr] = await server.until(/listening on ws:\/\/(\S+)/);
  const sent = pattern(300_000, 8);
  const client = ["client", "--connect", `ws://${addr}/open-sesame`, "--header", "X-A: b", "--forward", "-"];
  const received = await run(Deno.execPath(), [...sluice, ...client], { input: sent });
  assertEquals(await sha256(received), await sha256(sent));
  const page = await answerTo(addr!, bytes("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"));
  assertStringIncludes(page, "GET / null");
  const { stdout, stderr } = await server.end("SIGINT");
  assert(!`${stdout}${stderr}`.includes("sesame"), stdout + stderr);
  await web.shutdown();
  assertEquals(parse(addr!).hostname, "127.0.0.1");
});
