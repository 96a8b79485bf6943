/** How a stream of a tunnel asks for its target, and how it is answered. */

import { assertEquals, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { clock, type Timer } from "../clock.ts";
import { serve, Session } from "../mod.ts";
import { openTunnel, serveTunnel } from "../tunnel.ts";
import { bytes, LOOPBACK, ManualClock, readAll, readSome, text, turn, writeAll } from "./support.ts";
import {
  at,
  changeDelays,
  dial,
  FREE,
  isEnded,
  makeEcho,
  makeLog,
  makePair,
  promptly,
  readHead,
  say,
} from "./tunnel_support.ts";

/** Timers that are set last as long as the clock of the package says, until it is disposed of. */
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

/** Opens a stream by hand, says this, and gives the head of what comes back and the stream. */
async function askByHand(session: Session, request: string) {
  const stream = await session.openStream();
  await writeAll(stream, bytes(request));
  return { stream, head: text(await readHead(stream)) };
}

Deno.test("tunnel: CONNECT by hand is answered, and then everything belongs to the connection", async () => {
  await using echo = makeEcho();
  await using server = serveTunnel({ listen: FREE, allow: ["127.0.0.1:*"] });
  const session = Session.client(await dial(server.serverAddr));
  // What follows comes with the request.
  const request = `CONNECT ${echo.addr} HTTP/1.1\r\nHost: ${echo.addr}\r\nX-Else: \xe4\r\n\r\nhello`;
  const { stream, head } = await askByHand(session, request);
  assertMatch(head, /^HTTP\/1\.1 200 [^\r\n]*\r\n(.+\r\n)*\r\n$/);
  assertEquals(text(await readSome(stream, 5)), "hello");
  stream.close();
  await session.close();
});

Deno.test("tunnel: what is no request is refused with a status, told, and the server lives", async () => {
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
    ["CONNECT nobody HTTP/1.1\r\n\r\n", 400],
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

Deno.test("tunnel: a head of more than 8 KiB is refused, one of less is not", async () => {
  await using echo = makeEcho();
  const log = makeLog();
  await using server = serveTunnel({ listen: FREE, allow: [echo.addr], ...log.options });
  const session = Session.client(await dial(server.serverAddr));
  const request = `CONNECT ${echo.addr} HTTP/1.1\r\nX-Much: `;
  const fill = (length: number) => `${request}${"x".repeat(length - request.length - 4)}\r\n\r\n`;
  const { stream: good, head } = await askByHand(session, fill(8192));
  assertMatch(head, /^HTTP\/1\.1 200 /);
  good.close();
  const { stream: bad, head: refused } = await askByHand(session, fill(8193));
  assertMatch(refused, /^HTTP\/1\.1 [45]\d\d /);
  bad.close();
  assertEquals(log.errors.length, 1);
  await session.close();
});

Deno.test("tunnel: who says nothing for ten seconds is told and let go, in a stream as in SOCKS", async () => {
  using _delays = changeDelays((delay) => delay === 10_000 ? 0 : delay);
  await using pair = await makePair({ allow: ["*:*"] }, { socks: [FREE] });
  const { client, server, logs } = pair;
  const session = Session.client(await dial(server.serverAddr), { keepAliveInterval: Infinity });
  const stream = await session.openStream();
  assertEquals(await stream.read(new Uint8Array(1)), null);
  await logs.server.until(/handshake timed out/);
  stream.close();
  await session.close();
  using connection = await dial(client.listenAddrs[0]!);
  assertEquals(await isEnded(connection), true);
  await logs.client.until(/handshake timed out/);
});

Deno.test("tunnel: a secret is printable ASCII without spaces, and there for those who say where to", async () => {
  for (const secret of ["", " ", "a b", "a\n", "a\r\nX: y", "\x7f", "pässword"]) {
    assertThrows(() => serveTunnel({ listen: FREE, allow: ["*:*"], secret }), RangeError, "secret");
    await assertRejects(() => openTunnel({ connect: "1", secret }), RangeError, "secret");
  }
  assertThrows(() => serveTunnel({ listen: FREE, target: "1", secret: "x" }), RangeError, "secret");
});

Deno.test("tunnel: a freeze does not use up the time of a client that was about to say what it wants", async () => {
  using time = new ManualClock();
  using _timers = runByClock();
  await using target = makeEcho();
  const log = makeLog();
  const server = serveTunnel({ listen: FREE, allow: [target.addr], ...log.options });
  const session = Session.client(await dial(server.serverAddr));
  const [slow, silent] = [await session.openStream(), await session.openStream()];
  await slow.write(bytes(`CONNECT ${target.addr}`));
  await silent.write(bytes("CONNECT"));
  while (server.stats().received < session.stats().bytesSent || session.stats().bytesUnsent > 0) await turn();
  time.freeze(40_000);
  await time.advance(9000);
  await slow.write(bytes(" HTTP/1.1\r\n\r\n"));
  assertMatch(text(await promptly(readHead(slow))), /^HTTP\/1.1 200 /);
  await time.advance(1000);
  await log.until(/handshake timed out after 10000 ms/);
  slow.close();
  silent.close();
  await session.close();
  await server.shutdown();
});

Deno.test("tunnel: what a stranger says is shown without what a terminal would obey", async () => {
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

Deno.test("tunnel: a client that is refused and does not read why holds nobody up", async () => {
  using _delays = changeDelays((delay) => delay === 10_000 ? 0 : delay);
  const log = makeLog();
  const server = serveTunnel({ listen: FREE, allow: ["127.0.0.1:1"], ...log.options });
  const session = Session.client(await dial(server.serverAddr), { maxStreamBuffer: 1 });
  const stream = await session.openStream();
  await stream.write(bytes("CONNECT 2 HTTP/1.1\r\n\r\n"));
  await log.until(/^Refused .* CONNECT 2: not allowed$/);
  await promptly(server.shutdown());
  await session.close();
});

Deno.test("tunnel: a server that ends a stream without an answer is named, and what it was asked", async () => {
  const listener = Deno.listen(LOOPBACK);
  const server = serve(listener, () => {});
  const client = await openTunnel({ connect: at(listener.addr), reconnect: false });
  await assertRejects(
    () => client.connect("localhost:80"),
    Error,
    "The other end did not answer CONNECT localhost:80: ",
  );
  await client.shutdown();
  await server.shutdown();
});
