/** SOCKS 5 at the near end of a tunnel. */

import { assertEquals, assertMatch } from "@std/assert";
import { concat } from "@std/bytes";
import { bytes, pattern, readAll, readSome, text, writeAll } from "./support.ts";
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

Deno.test("tunnel: SOCKS, to an address and to a name", async () => {
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

Deno.test("tunnel: SOCKS, to an IPv6 address", { ignore: !hasIpv6() }, async () => {
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

Deno.test("tunnel: SOCKS byte by byte, and all at once", async () => {
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

Deno.test("tunnel: SOCKS says why not, tells, and goes on", async () => {
  await using echo = makeEcho();
  const [dead, forbidden] = [nowhere(), nowhere()];
  await using pair = await makePair({ allow: [echo.addr, dead] }, { socks: [FREE] });
  const { client, logs } = pair;
  const cases: [what: string, request: Uint8Array, code: number][] = [
    ["not allowed", socksRequest(1, 1, IPV4, portOf(forbidden)), 2],
    ["refused", socksRequest(1, 1, IPV4, portOf(dead)), 5],
    ["BIND", socksRequest(2, 1, IPV4, portOf(echo.addr)), 7],
    ["UDP", socksRequest(3, 3, named("localhost"), portOf(echo.addr)), 7],
    ["no such kind", socksRequest(1, 2, [], portOf(echo.addr)), 8],
    ["no name", socksRequest(1, 3, named("a b"), portOf(echo.addr)), 8],
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

Deno.test("tunnel: who speaks no SOCKS 5, or will not be anyone, is closed and told, and others go on", async () => {
  await using echo = makeEcho();
  await using pair = await makePair({ allow: [echo.addr] }, { socks: [FREE] });
  const { client, logs } = pair;
  const [password, cut] = [new Uint8Array([5, 1, 2]), new Uint8Array([5, 3, 0])];
  const socks4 = new Uint8Array([4, 1, 0, 80, 127, 0, 0, 1, 0]);
  for (const [index, said] of [bytes("GET / HTTP/1.1\r\n\r\n"), socks4, password, cut].entries()) {
    using connection = await dial(client.listenAddrs[0]!);
    await writeAll(connection, said);
    if (said === cut) await connection.closeWrite();
    if (said === password) assertEquals(Array.from(await readSome(connection, 2)), [5, 255]);
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

Deno.test("tunnel: a client that ends waits for no SOCKS client that has not said where to", async () => {
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
