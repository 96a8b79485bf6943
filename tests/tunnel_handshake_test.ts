/** The handshake of a tunnel: requests, responses, authorization. */

import { assert, assertEquals, assertInstanceOf, assertMatch, assertRejects, assertThrows } from "@std/assert";
import fc from "fast-check";
import { clock, type Timer } from "../_clock.ts";
import { serve, Session } from "../mod.ts";
import { openTunnel, serveTunnel, TunnelRefusedError, type TunnelServer } from "../tunnel.ts";
import { MAX_HEAD, request, serveRequest } from "../tunnel/handshake.ts";
import { HANDSHAKE_TIMEOUT } from "../tunnel/wait.ts";
import { bytes, LOOPBACK, ManualClock, memoryPair, readAll, readSome, sessionPair, text, writeAll } from "./support.ts";
import {
  at,
  dial,
  eventually,
  FREE,
  HELLO,
  holdTimers,
  isEnded,
  makeEcho,
  makeLog,
  makePair,
  promptly,
  readHead,
  say,
} from "./tunnel_support.ts";

/** Makes global timers run by the package's clock until disposed of. */
function runByClock(): Disposable {
  const { setTimeout, clearTimeout } = globalThis;
  const { now } = performance;
  globalThis.setTimeout = ((run: () => void, delay = 0) => clock.setTimer(run, delay)) as typeof setTimeout;
  globalThis.clearTimeout = (timer) => clock.clearTimer(timer as Timer);
  performance.now = () => clock.now();
  return {
    [Symbol.dispose]() {
      Object.assign(globalThis, { setTimeout, clearTimeout });
      performance.now = now;
    },
  };
}

/** Waits until the server has all that the session has sent, beside the bytes that it had received before. */
async function waitForAll(session: Session, server: TunnelServer, before = 0): Promise<void> {
  const isDone = () => server.stats().received >= before + session.stats().bytesSent;
  await eventually(() => session.stats().bytesUnsent === 0 && isDone());
}

/** Opens a stream, sends a request, and returns the stream and the head of the response. */
async function askByHand(session: Session, request: string) {
  const stream = await session.openStream();
  await writeAll(stream, bytes(request));
  return { stream, head: text(await readHead(stream)) };
}

Deno.test("serveTunnel() answers CONNECT with 200, and forwards the bytes after its head", async () => {
  await using echo = makeEcho();
  await using server = serveTunnel({ listen: FREE, allow: ["127.0.0.1:*"] });
  const session = Session.client(await dial(server.serverAddr));
  // Data in the same write as the request.
  const request = `CONNECT ${echo.addr} HTTP/1.1\r\nHost: ${echo.addr}\r\nX-Else: \xe4\r\n\r\nhello`;
  const { stream, head } = await askByHand(session, request);
  assertMatch(head, /^HTTP\/1\.1 200 [^\r\n]*\r\n(.+\r\n)*\r\n$/);
  assertEquals(text(await readSome(stream, 5)), "hello");
  stream.close();
  await session.close();
});

Deno.test("serveTunnel() answers a malformed or forbidden request with a status, and reports it", async () => {
  await using echo = makeEcho();
  const log = makeLog();
  await using server = serveTunnel({ listen: FREE, allow: [echo.addr], ...log.options });
  const session = Session.client(await dial(server.serverAddr));
  const cases: [request: string, status: number][] = [
    ["nonsense\r\n\r\n", 400],
    ["\r\n\r\n", 400],
    [`CONNECT ${echo.addr}\r\n\r\n`, 400],
    [`CONNECT ${echo.addr} HTTP/2\r\n\r\n`, 400],
    [`connect ${echo.addr} HTTP/1.1\r\n\r\n`, 400],
    ["CONNECT localhost HTTP/1.1\r\n\r\n", 400],
    ["CONNECT 127.0.0.1:0 HTTP/1.1\r\n\r\n", 400],
    ["GET / HTTP/1.1\r\n\r\n", 405],
    [`GET ${echo.addr} HTTP/1.1\r\n\r\n`, 405],
    ["CONNECT 127.0.0.1:1 HTTP/1.1\r\n\r\n", 403],
    ["BIND 127.0.0.1:0 HTTP/1.1\r\n\r\n", 403],
  ];
  for (const [request, status] of cases) {
    const { stream, head } = await askByHand(session, request);
    assertEquals({ request, status: head.slice(0, 13) }, { request, status: `HTTP/1.1 ${status} ` });
    assertEquals(await stream.read(new Uint8Array(1)), null);
    stream.close();
  }
  assertEquals(log.errors.length, cases.length);
  const { stream } = await askByHand(session, `CONNECT ${echo.addr} HTTP/1.0\r\n\r\n`);
  assertEquals(await say(stream, "still here"), "still here");
  stream.close();
  await session.close();
});

Deno.test(`serveTunnel() accepts a head of ${MAX_HEAD} bytes and refuses a larger one`, async () => {
  await using echo = makeEcho();
  const log = makeLog();
  await using server = serveTunnel({ listen: FREE, allow: [echo.addr], ...log.options });
  const session = Session.client(await dial(server.serverAddr));
  const request = `CONNECT ${echo.addr} HTTP/1.1\r\nX-Much: `;
  const fill = (length: number) => `${request}${"x".repeat(length - request.length - 4)}\r\n\r\n`;
  const { stream: good, head } = await askByHand(session, fill(MAX_HEAD));
  assertMatch(head, /^HTTP\/1\.1 200 /);
  good.close();
  const { stream: bad, head: refused } = await askByHand(session, fill(MAX_HEAD + 1));
  assertMatch(refused, /^HTTP\/1\.1 [45]\d\d /);
  bad.close();
  assertEquals(log.errors.length, 1);
  await session.close();
});

Deno.test("tunnel: a handshake times out after 10 seconds and is reported, in a stream and in SOCKS", async () => {
  await using pair = await makePair({ allow: ["*:*"] }, { socks: [FREE] });
  const { client, server, logs } = pair;
  using held = holdTimers(10_000);
  const { received } = server.stats();
  const session = Session.client(await dial(server.serverAddr), { keepAliveInterval: Infinity });
  const stream = await session.openStream();
  await waitForAll(session, server, received);
  held.fire();
  assertEquals(await stream.read(new Uint8Array(1)), null);
  await logs.server.until(/handshake timed out/);
  stream.close();
  await session.close();
  using connection = await dial(client.listenAddrs[0]!);
  await writeAll(connection, HELLO);
  assertEquals(Array.from(await readSome(connection, 2)), [5, 0]);
  held.fire();
  assertEquals(await isEnded(connection), true);
  await logs.client.until(/handshake timed out/);
});

Deno.test("openTunnel() and serveTunnel() throw for a malformed secret, and for a secret with a target", async () => {
  for (const secret of ["", " ", "a b", "a\n", "a\r\nX: y", "\x7f", "pässword"]) {
    assertThrows(() => serveTunnel({ listen: FREE, allow: ["*:*"], secret }), RangeError, "secret");
    await assertRejects(() => openTunnel({ connect: "1", secret }), RangeError, "secret");
  }
  assertThrows(() => serveTunnel({ listen: FREE, target: "1", secret: "x" }), RangeError, "secret");
});

Deno.test("serveTunnel() extends the timeout of a handshake by the time that the process was frozen", async () => {
  using time = new ManualClock();
  using _timers = runByClock();
  await using target = makeEcho();
  const log = makeLog();
  const server = serveTunnel({ listen: FREE, allow: [target.addr], ...log.options });
  const session = Session.client(await dial(server.serverAddr));
  const [slow, silent] = [await session.openStream(), await session.openStream()];
  await slow.write(bytes(`CONNECT ${target.addr}`));
  await silent.write(bytes("CONNECT"));
  await waitForAll(session, server);
  time.freeze(40_000);
  await time.advance(HANDSHAKE_TIMEOUT - 1000);
  await slow.write(bytes(" HTTP/1.1\r\n\r\n"));
  assertMatch(text(await promptly(readHead(slow))), /^HTTP\/1.1 200 /);
  await time.advance(1000);
  await log.until(new RegExp(`handshake timed out after ${HANDSHAKE_TIMEOUT} ms`));
  slow.close();
  silent.close();
  await session.close();
  // The forwarded connection lingers.
  const ended = server.shutdown();
  await time.advance(1000);
  await ended;
});

Deno.test("serveTunnel() reports malformed requests without control characters", async () => {
  const log = makeLog();
  const server = serveTunnel({ listen: FREE, allow: ["127.0.0.1:1"], ...log.options });
  const session = Session.client(await dial(server.serverAddr));
  for (const head of ["CONNECT \x1b[2J\x07 HTTP/1.1\r\n\r\n", "x\n2026 all is well\nmore\r\n\r\n"]) {
    const stream = await session.openStream();
    await stream.write(bytes(head));
    await readAll(stream);
    stream.close();
  }
  await log.until(/^Refused/, 2);
  for (const message of log.messages()) assertMatch(message, /^Refused [ -~]+$/);
  await session.close();
  await server.shutdown();
});

Deno.test("Tunnel.shutdown() fulfils although a client does not read its refusal", async () => {
  using held = holdTimers(HANDSHAKE_TIMEOUT);
  const log = makeLog();
  const server = serveTunnel({ listen: FREE, allow: ["127.0.0.1:1"], ...log.options });
  const session = Session.client(await dial(server.serverAddr), { maxStreamBuffer: 1 });
  const stream = await session.openStream();
  await stream.write(bytes("CONNECT 2 HTTP/1.1\r\n\r\n"));
  await waitForAll(session, server);
  held.fire();
  await log.until(/^Refused CONNECT 2 from .*: not allowed$/);
  await promptly(server.shutdown());
  await session.close();
});

Deno.test("TunnelClient.connect() names the request when the server ends the stream without a response", async () => {
  const listener = Deno.listen(LOOPBACK);
  const server = serve(listener, () => {});
  const client = await openTunnel({ connect: at(listener.addr), reconnect: false });
  await assertRejects(
    () => client.connect("localhost:80"),
    Error,
    "The peer did not respond to CONNECT localhost:80: ",
  );
  await client.shutdown();
  await server.shutdown();
});

// In memory.

const numRuns = Number(Deno.env.get("PROPERTY_RUNS") ?? 200);
const REQUEST = "CONNECT host:80 HTTP/1.1\r\nHost: host:80\r\nProxy-Authorization: Bearer x\r\n\r\n";

/** Encodes each character as one byte. */
const latin1 = (text: string) => Uint8Array.from(text, (character) => character.charCodeAt(0));

/** Runs serveRequest() for a peer in memory that sends a text and then ends. */
async function serveText(sent: string, open: () => Promise<void> = () => Promise.resolve()) {
  const [near, far] = memoryPair();
  const requests: { method: string; address: string; authorization: string }[] = [];
  let closed = 0;
  const serving = serveRequest(near, "a peer", async (request) => {
    requests.push(request);
    await open();
    return { close: () => void closed++ };
  }).then(() => undefined, (error: unknown) => error);
  await writeAll(far, latin1(sent));
  await far.closeWrite();
  const error = await serving;
  await near.closeWrite();
  const [response, unread] = [text(await readAll(far)), text(await readAll(near))];
  if (error === undefined) return { requests, closed, response, unread, message: undefined };
  assertInstanceOf(error, Error);
  return { requests, closed, response, unread, message: error.message };
}

/** Returns the status of a response, which must be one HTTP head without a body. */
function statusOf(response: string): number {
  const [, status] = /^HTTP\/1\.1 (\d{3}) [ -~]*\r\n([ -~]+\r\n)*\r\n$/.exec(response) ?? [];
  assert(status !== undefined, response);
  return Number(status);
}

Deno.test("serveRequest() responds 200, and leaves the bytes after the head unread", async () => {
  const { requests, closed, response, unread } = await serveText(`${REQUEST}hello`);
  assertEquals(requests, [{ method: "CONNECT", address: "host:80", authorization: "Bearer x" }]);
  assertEquals([closed, statusOf(response), unread], [0, 200, "hello"]);
});

Deno.test("serveRequest() responds 400 to a head that ends before its last byte, and opens nothing", async () => {
  for (let length = 0; length < REQUEST.length; length++) {
    const { requests, response, message } = await serveText(REQUEST.slice(0, length));
    assertEquals({ length, requests, status: statusOf(response), message }, {
      length,
      requests: [],
      status: 400,
      message: "Refused a request from a peer: connection closed during handshake",
    });
  }
});

Deno.test("serveRequest() accepts HTTP/1.0 and HTTP/1.1, and responds 400 to any other version", async () => {
  for (const version of ["1.0", "1.1"]) {
    assertEquals(statusOf((await serveText(`CONNECT a:1 HTTP/${version}\r\n\r\n`)).response), 200, version);
  }
  for (const version of ["0.9", "1", "1.", "1.2", "1.10", "2", "2.0", "11", "", "1.1 ", "x"]) {
    const { requests, response, message } = await serveText(`CONNECT a:1 HTTP/${version}\r\n\r\n`);
    assertEquals([requests, statusOf(response)], [[], 400], version);
    assertEquals(
      message,
      `Refused a request from a peer: expected an HTTP request, received "CONNECT a:1 HTTP/${version}"`,
    );
  }
});

Deno.test("serveRequest() responds 400 to a malformed first line", async () => {
  const lines = [
    "",
    " ",
    "CONNECT",
    "CONNECT a:1",
    "connect a:1 HTTP/1.1",
    "CONNECT  a:1 HTTP/1.1",
    " CONNECT a:1 HTTP/1.1",
  ];
  for (const line of [...lines, "CONNECT a:1 b HTTP/1.1", "HTTP/1.1 200 OK", "\0CONNECT a:1 HTTP/1.1", "\xff\xfe"]) {
    const { requests, response, message } = await serveText(`${line}\r\nHost: a\r\n\r\n`);
    assertEquals([requests, statusOf(response)], [[], 400], line);
    assertMatch(message!, /^Refused a request from a peer: expected an HTTP request, received "[ -~]*"$/);
  }
});

Deno.test("serveRequest() responds 431 to a head above 8192 bytes, and reads no more of it", async () => {
  const head = (length: number) => `CONNECT a:1 HTTP/1.1\r\nX: ${"x".repeat(length - 29)}\r\n\r\n`;
  assertEquals(head(8192).length, 8192);
  const longest = await serveText(`${head(8192)}rest`);
  assertEquals([statusOf(longest.response), longest.unread], [200, "rest"]);
  const tooLong = await serveText(`${head(8193)}rest`);
  assertEquals([tooLong.requests, statusOf(tooLong.response), tooLong.unread], [[], 431, "\nrest"]);
  assertEquals(tooLong.message, "Refused a request from a peer: HTTP header exceeds 8192 bytes");
  const endless = await serveText("x".repeat(10_000));
  assertEquals([statusOf(endless.response), endless.unread.length], [431, 10_000 - 8192]);
});

Deno.test("serveRequest() reads the first Proxy-Authorization header, case-insensitively", async () => {
  const cases: [headers: string, authorization: string][] = [
    ["", ""],
    ["Proxy-Authorization: Bearer x\r\n", "Bearer x"],
    ["PROXY-AUTHORIZATION:Bearer x\r\n", "Bearer x"],
    ["Host: a\r\nproxy-authorization:  Bearer x  \r\nX: y\r\n", "Bearer x"],
    ["Proxy-Authorization: one\r\nProxy-Authorization: two\r\n", "one"],
    ["Authorization: Bearer x\r\nX-Proxy-Authorization: y\r\n", ""],
  ];
  for (const [headers, authorization] of cases) {
    const { requests } = await serveText(`CONNECT a:1 HTTP/1.1\r\n${headers}\r\n`);
    assertEquals(requests, [{ method: "CONNECT", address: "a:1", authorization }]);
  }
});

Deno.test("serveRequest() responds with the status and message of a failure to open, in one line", async () => {
  const cases: [error: Error, status: number, reason: string][] = [
    [new TunnelRefusedError(403, "not allowed"), 403, "not allowed"],
    [new TunnelRefusedError(407, "wrong secret"), 407, "wrong secret"],
    [new RangeError("no address"), 400, "no address"],
    [new Error("Connection refused (os error 111)"), 502, "connection refused"],
    [new Error("a\r\nX: y\x1b[2J"), 502, "a??X: y?[2J"],
  ];
  for (const [error, status, reason] of cases) {
    const { closed, response, message } = await serveText(REQUEST, () => Promise.reject(error));
    assertEquals(response, `HTTP/1.1 ${status} ${reason}\r\n\r\n`);
    assertMatch(message!, /^Refused CONNECT host:80 from a peer: /);
    assertEquals(closed, 0);
  }
});

Deno.test("serveRequest() closes the opened connection when the response cannot be written", async () => {
  const [near, far] = memoryPair();
  let closed = 0;
  const serving = serveRequest(near, "a peer", () => {
    far.reset(new Error("gone"));
    return Promise.resolve({ close: () => void closed++ });
  });
  await writeAll(far, bytes(REQUEST));
  await assertRejects(() => serving, Error, "Refused CONNECT host:80 from a peer: gone");
  assertEquals(closed, 1);
});

const method = fc.stringMatching(/^[A-Z]{1,12}$/);
const address = fc.stringMatching(/^[!-~]{1,40}$/);
const rest = fc.string({ unit: fc.integer({ min: 0, max: 127 }).map((code) => String.fromCharCode(code)) });
const secret = fc.stringMatching(/^[!-~]{1,40}$/);

Deno.test("serveRequest() reads any well-formed request, and no byte after it", async () => {
  await fc.assert(
    fc.asyncProperty(method, address, secret, rest, async (method, address, secret, rest) => {
      const sent = `${method} ${address} HTTP/1.1\r\nX: y\r\nProxy-Authorization: Bearer ${secret}\r\n\r\n${rest}`;
      const { requests, unread } = await serveText(sent);
      assertEquals([requests, unread], [[{ method, address, authorization: `Bearer ${secret}` }], rest]);
    }),
    { numRuns },
  );
});

Deno.test("serveRequest() serves a complete request or responds 400 or 431, for arbitrary bytes", async () => {
  const character = fc.nat(255).map((code) => String.fromCharCode(code));
  const piece = fc.constantFrom("CONNECT ", "BIND ", "a:1", " HTTP/1.1", "\r\n", "\r\n\r\n", "\n", " ", "Host: a");
  const input = fc.array(fc.oneof({ arbitrary: piece, weight: 4 }, character), { maxLength: 20 });
  await fc.assert(
    fc.asyncProperty(input, async (pieces) => {
      const sent = pieces.join("");
      const { requests, response, message } = await serveText(sent);
      const isRequest = /^[A-Z]+ [^\s\0-\x20\x7f-\xff]+ HTTP\/1\.[01]\r\n/.test(sent) && sent.includes("\r\n\r\n");
      if (isRequest) assertEquals([requests.length, statusOf(response), message], [1, 200, undefined]);
      if (requests.length > 0) return assertMatch(requests[0]!.address, /^[!-~]+$/);
      assert([400, 431].includes(statusOf(response)), response);
      assertMatch(message!, /^Refused a request from a peer: [ -~]+$/);
    }),
    { numRuns },
  );
});

/** Runs request() at a server in memory that sends a response and then ends. */
async function requestOf(
  response: string,
  method: "CONNECT" | "BIND" = "CONNECT",
  secret?: string,
  user?: string,
) {
  const { client, server } = sessionPair();
  const requesting = request(client, method, "host:80", { secret, user })
    .then(({ addr, stream }) => ({ addr, stream, error: undefined }), (error: Error) => ({ error }));
  const stream = await server.acceptStream();
  const head = text(await readHead(stream));
  await writeAll(stream, latin1(response));
  await stream.closeWrite();
  const outcome = await requesting;
  const rest = outcome.error === undefined ? text(await readAll(outcome.stream)) : undefined;
  await Promise.all([client.close(), server.close()]);
  return { head, rest, addr: outcome.error === undefined ? outcome.addr : undefined, error: outcome.error };
}

Deno.test("request() sends the address, the secret and the user, and leaves the bytes after the response unread", async () => {
  const connected = await requestOf("HTTP/1.1 200 OK\r\n\r\nhello");
  assertEquals(connected.head, "CONNECT host:80 HTTP/1.1\r\nHost: host:80\r\n\r\n");
  assertEquals([connected.addr, connected.rest], ["", "hello"]);
  const bound = await requestOf("HTTP/1.0 200\r\nX: y\r\naddress: [::1]:80\r\n\r\n", "BIND", "x");
  assertEquals(bound.head, "BIND host:80 HTTP/1.1\r\nHost: host:80\r\nProxy-Authorization: Bearer x\r\n\r\n");
  assertEquals([bound.addr, bound.rest], ["[::1]:80", ""]);
  const asUser = await requestOf("HTTP/1.1 200 OK\r\n\r\n", "CONNECT", "open:sesame", "alice");
  const header = "Proxy-Authorization: Basic YWxpY2U6b3BlbjpzZXNhbWU=";
  assertEquals(asUser.head, `CONNECT host:80 HTTP/1.1\r\nHost: host:80\r\n${header}\r\n\r\n`);
});

Deno.test("request() rejects when the response ends before the last byte of its head", async () => {
  const response = "HTTP/1.1 200 OK\r\nAddress: [::1]:80\r\n\r\n";
  for (let length = 0; length < response.length; length++) {
    const { error } = await requestOf(response.slice(0, length), "BIND");
    assertEquals(error?.message, "The peer did not respond to BIND host:80: connection closed during handshake");
  }
});

Deno.test("request() rejects with the status and the reason of any response but 200", async () => {
  const cases: [response: string, status: number, reason: string][] = [
    ["HTTP/1.1 403 not allowed\r\n\r\n", 403, "not allowed"],
    ["HTTP/1.1 502\r\nX: y\r\n\r\n", 502, ""],
    ["HTTP/1.1 204 No Content\r\n\r\n", 204, "No Content"],
    ["HTTP/1.1 403 \x1b[2J\r\n\r\n", 403, "?[2J"],
    ["HTTP/2 200 OK\r\n\r\n", 400, 'expected an HTTP response, received "HTTP/2 200 OK"'],
    ["SSH-2.0-x\r\n\r\n", 400, 'expected an HTTP response, received "SSH-2.0-x"'],
    ["\r\n\r\n", 400, 'expected an HTTP response, received ""'],
  ];
  for (const [response, status, reason] of cases) {
    const { error } = await requestOf(response);
    assertInstanceOf(error, TunnelRefusedError);
    assertEquals([error.status, error.message], [status, `The peer refused CONNECT host:80: ${reason}`]);
  }
  const { error } = await requestOf("x".repeat(MAX_HEAD + 1));
  assertInstanceOf(error, TunnelRefusedError);
  assertEquals(error.status, 431);
});
