/** Proxies between a client and its server: the option `proxy`, the environment, and dialThroughProxy(). */

import { assert, assertEquals, assertMatch, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import fc from "fast-check";
import {
  checkTunnel,
  dialThroughProxy,
  openTunnel,
  type OpenTunnelOptions,
  serveTunnel,
  type ServeTunnelOptions,
} from "../tunnel.ts";
import { loadConfig } from "../tunnel/config.ts";
import { PermanentError } from "../tunnel/errors.ts";
import { isExempt } from "../tunnel/no_proxy.ts";
import { parseUpstream } from "../tunnel/upstream.ts";
import { makeFolder, watch, type Watched } from "./programs.ts";
import { bytes, LOOPBACK, readSome, text, writeAll } from "./support.ts";
import {
  at,
  dial,
  FREE,
  isEnded,
  makeEcho,
  makeLog,
  makeProxy,
  makeTarget,
  nowhere,
  parse,
  promptly,
  readHead,
  say,
} from "./tunnel_support.ts";

const readTls = (name: string) => Deno.readTextFileSync(new URL(`fixtures/tls/${name}`, import.meta.url));
const [cert, key, ca] = ["localhost.pem", "localhost.key", "ca.pem"].map(readTls) as [string, string, string];

// A user and a password with characters that a URL must encode, and their URL form.
const [USER, PASSWORD, ENCODED] = ["al ice", "p@ss:w/örd", "al%20ice:p%40ss%3Aw%2F%C3%B6rd"];
const BASIC = bytes(`${USER}:${PASSWORD}`).toBase64();
const SECRETS = [USER, PASSWORD, ENCODED, BASIC, "p%40ss", "örd"];

/** Checks that a text does not contain the user and the password in any form. */
function assertNoCredentials(text: string): void {
  for (const secret of SECRETS) assertEquals(text.includes(secret), false, text);
}

/** Formats an error with all of its causes, properties and stacks. */
function everything(error: unknown): string {
  return Deno.inspect(error, { depth: 100, showHidden: true });
}

const OK = "HTTP/1.1 200 OK\r\n\r\n";

/** Starts an HTTP proxy that connects to one address, whatever the request names, unless `answer` refuses. */
function makeHttpProxy(to: string, answer: () => string = () => OK) {
  const heads: string[] = [];
  const open = new Set<Deno.TcpConn>();
  const listener = Deno.listen(LOOPBACK);
  const copy = async (from: Deno.TcpConn, into: Deno.TcpConn) => {
    const p = new Uint8Array(65536);
    for (let count; (count = await from.read(p)) !== null;) await writeAll(into, p.subarray(0, count));
    await into.closeWrite();
  };
  const answerOne = async (client: Deno.TcpConn) => {
    open.add(client);
    try {
      using _client = client;
      heads.push(text(await readHead(client)));
      const response = answer();
      await writeAll(client, bytes(response));
      if (response !== OK) return;
      using target = await dial(to);
      open.add(target);
      await Promise.all([copy(client, target), copy(target, client)]);
      open.delete(target);
    } catch {
      // Cut, or reset by a peer.
    } finally {
      open.delete(client);
    }
  };
  const running = (async () => {
    const answering: Promise<void>[] = [];
    for await (const client of listener) answering.push(answerOne(client));
    await Promise.all(answering);
  })();
  const dispose = async () => {
    listener.close();
    for (const connection of open) connection[Symbol.dispose]();
    await running;
  };
  const addr = at(listener.addr);
  return { addr, url: `http://${addr}`, heads, [Symbol.asyncDispose]: dispose };
}

/** Starts a server that does not print errors. */
const start = (options: Omit<ServeTunnelOptions, "listen">) => serveTunnel({ listen: FREE, onError() {}, ...options });

/** Returns the error of a client that cannot connect. */
async function failure(options: OpenTunnelOptions): Promise<Error> {
  const error = await promptly(assertRejects(() => openTunnel({ onError() {}, ...options }), Error));
  assertNoCredentials(everything(error));
  return error;
}

Deno.test("parseUpstream() accepts URLs of proxies", () => {
  const of = (url: string | URL) => {
    const { kind, name, endpoint, credentials } = parseUpstream("proxy", url);
    return [kind, name, endpoint.hostname, endpoint.port, credentials?.user, credentials?.password];
  };
  const none = [undefined, undefined];
  assertEquals(of("http://proxy:8080"), ["http", "http://proxy:8080", "proxy", 8080, ...none]);
  assertEquals(of("HTTP://proxy:8080/"), ["http", "http://proxy:8080", "proxy", 8080, ...none]);
  assertEquals(of("http://proxy"), ["http", "http://proxy:80", "proxy", 80, ...none]);
  assertEquals(of("http://proxy:80"), ["http", "http://proxy:80", "proxy", 80, ...none]);
  assertEquals(of(new URL("http://proxy:80")), ["http", "http://proxy:80", "proxy", 80, ...none]);
  assertEquals(of("socks5://10.0.0.1"), ["socks5", "socks5://10.0.0.1:1080", "10.0.0.1", 1080, ...none]);
  assertEquals(of("socks5://10.0.0.1:80"), ["socks5", "socks5://10.0.0.1:80", "10.0.0.1", 80, ...none]);
  assertEquals(of("socks5h://[::1]:1081"), ["socks5", "socks5://[::1]:1081", "::1", 1081, ...none]);
  for (const url of [`http://${ENCODED}@h:1`, new URL(`http://${ENCODED}@h:1`)]) {
    assertEquals(of(url), ["http", "http://h:1", "h", 1, USER, PASSWORD]);
  }
  assertEquals(of("socks5://alice@h:1").slice(4), ["alice", ""]);
  assertEquals(of("http://:pw@h:1").slice(4), ["", "pw"]);
});

Deno.test("parseUpstream() rejects other texts, without printing the password", () => {
  const secret = "hunter2";
  for (
    const [url, message] of [
      ["", /received ""/],
      ["proxy:8080", /must be http:\/\/.*received "proxy:8080"/],
      [`alice:${secret}@proxy:8080`, /received "proxy:8080"/],
      ["http://", /must be/],
      ["http://proxy:0", /must be/],
      ["http://proxy:65536", /must be/],
      ["http://pro xy:80", /must be/],
      ["http://proxy:8080/path", /must not have a path/],
      ["http://proxy:8080?a", /must not have a path/],
      ["http://proxy:8080#a", /must not have a path/],
      [`https://alice:${secret}@proxy:8080`, /received "https:\/\/proxy:8080": TLS to the proxy is not supported/],
      ["socks4://proxy:1080", /must be/],
      ["ftp://proxy", /must be/],
      ["constructor://proxy", /must be/],
      [`http://alice:${secret}%zz@proxy`, /percent-encoded/],
      [`http://alice:a/${secret}@proxy`, /received "http:\/\/proxy"/],
      [`http://alice:a#${secret}@b@proxy`, /received "http:\/\/proxy"/],
      [`http://al%3Aice:${secret}@proxy`, /must not contain a colon/],
      [`socks5://:${secret}@proxy`, /1 to 255 bytes/],
      [`socks5://alice:${secret}${"x".repeat(255)}@proxy`, /1 to 255 bytes/],
    ] as const
  ) {
    const error = assertThrows(() => parseUpstream("proxy", url), RangeError);
    assertMatch(error.message, message);
    assertEquals(everything(error).includes(secret), false, everything(error));
  }
});

Deno.test("isExempt() matches names, suffixes, addresses, networks and ports of NO_PROXY", () => {
  const cases: [exceptions: string, hostname: string, port: number, isExempt: boolean][] = [
    ["", "a.example", 80, false],
    ["*", "a.example", 80, true],
    ["*", "10.0.0.1", 80, true],
    ["*:81", "a.example", 80, false],
    ["example", "example", 80, true],
    ["example", "a.example", 80, true],
    ["example", "counterexample", 80, false],
    ["example", "example.com", 80, false],
    [".example", "a.b.example", 80, true],
    [".example", "example", 80, true],
    ["*.example", "a.example", 80, true],
    ["*.example", "counterexample", 80, false],
    ["EXAMPLE.", "a.Example.", 80, true],
    ["example:80", "a.example", 80, true],
    ["example:81", "a.example", 80, false],
    ["x, example", "example", 80, true],
    ["x  example\ty", "example", 80, true],
    [",,", "example", 80, false],
    [".", "example", 80, false],
    ["10.0.0.1", "10.0.0.1", 80, true],
    ["10.0.0.1", "10.0.0.10", 80, false],
    ["0.0.1", "10.0.0.1", 80, false],
    [".0.0.1", "10.0.0.1", 80, false],
    ["10.0.0.1:80", "10.0.0.1", 80, true],
    ["10.0.0.1:81", "10.0.0.1", 80, false],
    ["10.0.0.1", "::ffff:10.0.0.1", 80, true],
    ["10.0.0.0/8", "10.255.0.1", 80, true],
    ["10.0.0.0/8", "11.0.0.1", 80, false],
    ["10.0.0.0/8", "host.example", 80, false],
    ["10.0.0.0/33", "10.0.0.1", 80, false],
    ["0.0.0.0/0", "10.0.0.1", 80, true],
    ["fd00::/8", "fd12::1", 80, true],
    ["[fd00::/8]:80", "fd12::1", 80, true],
    ["fd12::1", "fd12:0::1", 80, true],
    ["[fd12::1]", "fd12::1", 80, true],
    ["[fd12::1]:81", "fd12::1", 80, false],
    ["fd12::1", "fd12::2", 80, false],
    ["::/0", "10.0.0.1", 80, false],
    ["[", "example", 80, false],
    ["http://example", "example", 80, false],
  ];
  for (const [exceptions, hostname, port, expected] of cases) {
    assertEquals(isExempt(exceptions, hostname, port), expected, `${exceptions} ${hostname}:${port}`);
  }
});

Deno.test("isExempt() compares IPv4 networks by their first bits, and never throws", () => {
  const numberOf = (address: string) => address.split(".").reduce((sum, part) => sum * 256 + Number(part), 0);
  const octets = fc.array(fc.integer({ min: 0, max: 255 }), { minLength: 4, maxLength: 4 });
  fc.assert(fc.property(octets, octets, fc.integer({ min: 0, max: 32 }), fc.boolean(), (a, b, bits, isNear) => {
    // Independent addresses share few bits.
    const [one, other] = [a.join("."), (isNear ? [...a.slice(0, 3), b[3]!] : b).join(".")];
    const size = 2 ** (32 - bits);
    const isSame = Math.floor(numberOf(one) / size) === Math.floor(numberOf(other) / size);
    assertEquals(isExempt(`${one}/${bits}`, other, 80), isSame);
  }));
  fc.assert(fc.property(fc.string(), (exceptions) => void isExempt(exceptions, "host.example", 80)));
});

const TARGET = { hostname: "server.example", port: 9000 };

/** How a test connects through a proxy. */
interface ScriptOptions {
  scheme?: string;
  credentials?: string;
  target?: { hostname: string; port: number };
  connectTimeout?: number;
  signal?: AbortSignal;
}

/** Connects through a proxy that is a script, uses the connection, and waits for the end of the script. */
async function dialScript(
  script: (connection: Deno.TcpConn) => Promise<void>,
  { scheme = "http", credentials = "", target = TARGET, ...options }: ScriptOptions,
  use: (socket: Deno.TcpConn) => Promise<void>,
): Promise<void> {
  await using proxy = makeTarget(script);
  const url = `${scheme}://${credentials}${proxy.addr}`;
  using socket = await promptly(dialThroughProxy(url, target, options)) as Deno.TcpConn;
  await use(socket);
}

/** Returns the error of dialling through a proxy, which does not contain the credentials. */
async function refusalOf(
  script: (connection: Deno.TcpConn) => Promise<void>,
  options: ScriptOptions = {},
): Promise<Error> {
  const error = await assertRejects(() => dialScript(script, options, () => Promise.resolve()), Error);
  assertNoCredentials(everything(error));
  return error;
}

/** Checks which bytes a connection receives first. */
const expectBytes = (expected: string) => async (socket: Deno.TcpConn) =>
  assertEquals(text(await readSome(socket, expected.length)), expected);

/** Answers a request. */
const respond = (answer: string | Uint8Array) => async (connection: Deno.TcpConn) => {
  await readHead(connection);
  await writeAll(connection, typeof answer === "string" ? bytes(answer) : answer);
};

Deno.test("dialThroughProxy() sends CONNECT with Host and credentials in UTF-8, and no byte more", async () => {
  for (
    const [target, name] of [
      [TARGET, "server.example:9000"],
      [{ hostname: "::1", port: 1 }, "[::1]:1"],
      [{ hostname: "10.0.0.1", port: 65535 }, "10.0.0.1:65535"],
    ] as const
  ) {
    for (const [credentials, line] of [["", ""], [`${ENCODED}@`, `Proxy-Authorization: Basic ${BASIC}\r\n`]]) {
      let head = "";
      const script = async (connection: Deno.TcpConn) => {
        head = text(await readHead(connection));
        await writeAll(connection, bytes(OK));
        assertEquals(text(await readSome(connection, 100)), "");
      };
      await dialScript(script, { target, credentials: credentials! }, () => Promise.resolve());
      assertEquals(head, `CONNECT ${name} HTTP/1.1\r\nHost: ${name}\r\n${line}\r\n`);
    }
  }
});

const HEADS = [
  OK,
  "HTTP/1.0 200 Connection established\r\n\r\n",
  "HTTP/1.1 200\r\n\r\n",
  "HTTP/1.1 204 \r\nVia: 1.1 x\r\nX: \r\n\r\n",
  `HTTP/1.1 200 OK\r\nX: ${"x".repeat(8000)}\r\n\r\n`,
];
// It looks like the end of a head.
const FIRST = "\r\n\r\nfirst bytes of the server";

for (const head of HEADS) {
  Deno.test(`dialThroughProxy() leaves the bytes behind the head ${JSON.stringify(head.slice(0, 40))} in the socket`, async () => {
    await dialScript(respond(head + FIRST), {}, expectBytes(FIRST));
  });
}

Deno.test("dialThroughProxy() reads an answer that comes byte by byte", async () => {
  const script = async (connection: Deno.TcpConn) => {
    connection.setNoDelay(true);
    await readHead(connection);
    for (const byte of bytes(HEADS[1]! + FIRST)) await writeAll(connection, new Uint8Array([byte]));
  };
  await dialScript(script, {}, expectBytes(FIRST));
});

const HTML = "Content-Type: text/html\r\nContent-Length: 30\r\n\r\n<html>a long explanation</html>";

Deno.test("dialThroughProxy() names the proxy and the reason when an HTTP proxy does not connect", async () => {
  for (
    const [answer, message, isPermanent, credentials = ""] of [
      ["HTTP/1.1 407 Auth Required\r\n\r\n", /the proxy wants a user and a password: 407 Auth Required$/, true],
      [
        "HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=x\r\n\r\n",
        /does not accept the user and the password: 407 No$/,
        true,
        `${ENCODED}@`,
      ],
      [
        "HTTP/1.1 407 No\r\nProxy-Authenticate: Negotiate\r\nProxy-Authenticate: NTLM\r\n\r\n",
        /the proxy wants negotiate or ntlm, only basic is supported: 407 No$/,
        true,
        `${ENCODED}@`,
      ],
      ["HTTP/1.1 401 No\r\n\r\n", /does not accept the user and the password: 401 No$/, true, `${ENCODED}@`],
      [`HTTP/1.1 403 Forbidden\r\n${HTML}`, /does not allow server\.example:9000: 403 Forbidden$/, true],
      [`HTTP/1.1 502 Bad Gateway\r\n${HTML}`, /the proxy cannot connect: 502 Bad Gateway$/, false],
      ["HTTP/1.1 503 \r\n\r\n", /the proxy cannot connect: 503$/, false],
      ["HTTP/1.1 504 Gateway Timeout\r\n\r\n", /the proxy cannot connect: 504 Gateway Timeout$/, false],
      ["HTTP/1.1 429 Slow down\r\n\r\n", /the proxy does not connect: 429 Slow down$/, false],
      ["HTTP/1.1 302 Found\r\nLocation: http://login/\r\n\r\n", /does not connect: 302 Found$/, false],
      ["HTTP/1.1 100 Continue\r\n\r\n", /does not connect: 100 Continue$/, false],
      ["HTTP/1.1 405 Not Allowed\r\n\r\n", /another kind of server: 405 Not Allowed$/, true],
      ["HTTP/1.1 501 Not Implemented\r\n\r\n", /another kind of server: 501 Not Implemented$/, true],
      [`HTTP/1.1 500 ${"x".repeat(5000)}\r\n\r\n`, /500 x{100}$/, false],
      ["HTTP/1.1 500 a\x1b[31m\x07b\r\n\r\n", /500 a\?\[31m\?b$/, false],
      ["HTTP/1.1 2000 OK\r\n\r\n", /does not speak HTTP: its answer is "HTTP\/1\.1 2000 OK"$/, true],
      ["HTTP/1.1 200OK\r\n\r\n", /does not speak HTTP/, true],
      ["HTTP/2 200 OK\r\n\r\n", /does not speak HTTP: its answer begins with "HTTP\/2/, true],
      ["SSH-2.0-OpenSSH\r\n", /does not speak HTTP: its answer begins with "SSH-2\.0-Ope/, true],
      ["\x05\xff", /does not speak HTTP: its answer begins with "\?\?"/, true],
      ["\x15\x03\x01\x00\x02\x02\x32", /the proxy expects TLS, which is not supported$/, true],
      ["\n", /does not speak HTTP/, true],
      ["", /the proxy closed the connection before it answered$/, false],
      ["HTTP/1.1 200 OK\r\n\r", /it closed the connection within its answer$/, false],
      [`HTTP/1.1 200 OK\r\nX: ${"x".repeat(9000)}`, /its answer exceeds 8192 bytes$/, false],
    ] as [string, RegExp, boolean, string?][]
  ) {
    const latin1 = new Uint8Array(Array.from(answer, (char) => char.charCodeAt(0)));
    const error = await refusalOf(respond(latin1), { credentials });
    assertMatch(error.message, message);
    assertMatch(error.message, /^Cannot connect to server\.example:9000 through http:\/\/127\.0\.0\.1:\d+: the proxy /);
    assertEquals(error instanceof PermanentError, isPermanent, error.message);
  }
});

Deno.test("dialThroughProxy() rejects for each answer of HTTP that ends too early", async () => {
  const answer = "HTTP/1.1 200 OK\r\nVia: x\r\n\r\n";
  for (let length = 0; length < answer.length; length++) {
    const error = await refusalOf(respond(answer.slice(0, length)), { credentials: `${ENCODED}@` });
    assertMatch(error.message, /closed the connection (before it answered|within its answer)$/, `${length} bytes`);
  }
});

Deno.test("dialThroughProxy() rejects when the head of an HTTP proxy does not end", async () => {
  const error = await refusalOf(async (connection) => {
    await readHead(connection);
    const line = bytes(`X: ${"x".repeat(100)}\r\n`);
    await writeAll(connection, bytes("HTTP/1.1 200 OK\r\n"));
    try {
      for (;;) await writeAll(connection, line);
    } catch {
      // The client has closed the connection.
    }
  });
  assertMatch(error.message, /its answer exceeds 8192 bytes$/);
});

for (const scheme of ["http", "socks5"]) {
  for (const begin of ["", scheme === "http" ? "HTTP/1.1 200 OK\r\n" : "\x05"]) {
    Deno.test(`dialThroughProxy() closes a ${scheme} proxy that is silent after ${begin.length} bytes, after connectTimeout`, async () => {
      let isClosed = false;
      const error = await refusalOf(async (connection) => {
        if (scheme === "http") await readHead(connection);
        else await readSome(connection, 3);
        await writeAll(connection, bytes(begin));
        isClosed = await isEnded(connection);
      }, { scheme, connectTimeout: 100, credentials: "" });
      assertMatch(
        error.message,
        /^Cannot connect .* through \w+:\/\/\S+: waiting for its answer timed out after 100 ms$/,
      );
      assertEquals(isClosed, true);
    });
  }

  Deno.test(`dialThroughProxy() rejects with the reason of its signal, and closes the ${scheme} proxy`, async () => {
    const stop = new AbortController();
    const reason = new Error("stopped");
    let isClosed = false;
    const dialling = dialScript(
      async (connection) => {
        await readSome(connection, 1);
        stop.abort(reason);
        await readHead(connection);
        isClosed = await isEnded(connection);
      },
      { scheme, signal: stop.signal },
      () => Promise.resolve(),
    );
    assertEquals(await assertRejects(() => dialling), reason);
    assertEquals(isClosed, true);
    const late = dialThroughProxy(`${scheme}://${nowhere()}`, TARGET, { signal: stop.signal });
    assertEquals(await assertRejects(() => late), reason);
  });

  Deno.test(`dialThroughProxy() names a ${scheme} proxy that cannot be reached`, async () => {
    const addr = nowhere();
    const error = await assertRejects(() => dialThroughProxy(`${scheme}://${ENCODED}@${addr}`, TARGET), Error);
    assertMatch(error.message, new RegExp(`^Cannot connect to the proxy ${scheme}://${addr}: connection refused$`));
    assertNoCredentials(everything(error));
  });
}

Deno.test("dialThroughProxy() rejects malformed arguments", async () => {
  const url = "http://127.0.0.1:1";
  for (
    const [proxy, target, options, message] of [
      ["none", TARGET, {}, /proxy must be/],
      [url, { hostname: "a b", port: 1 }, {}, /target must be/],
      [url, { hostname: "a\r\nX:", port: 1 }, {}, /target must be/],
      [url, { hostname: "a", port: 0 }, {}, /target must have a port/],
      [url, { hostname: "a", port: 1.5 }, {}, /target must be/],
      [url, TARGET, { connectTimeout: 0 }, /connectTimeout must be/],
    ] as const
  ) {
    const error = await assertRejects(() => dialThroughProxy(proxy, target, options), RangeError);
    assertMatch(error.message, message);
  }
});

// Answers of a SOCKS 5 proxy, by parts.
const GREETING = [5, 0];
const SUCCESS = [5, 0, 0, 1, 127, 0, 0, 1, 0, 80];

/** Answers a client of SOCKS 5 with these bytes, and keeps what it sends. */
function socksScript(answer: number[], received: number[] = []) {
  return async (connection: Deno.TcpConn) => {
    // The client waits for each answer, and needs no more than all of them.
    await writeAll(connection, new Uint8Array(answer));
    await connection.closeWrite();
    received.push(...await readSome(connection, 10_000));
  };
}

Deno.test("dialThroughProxy() asks a SOCKS 5 proxy for names and addresses, and leaves the bytes of the server", async () => {
  for (
    const [hostname, address] of [
      ["Server.Example", [3, 14, ...bytes("server.example")]],
      ["127.0.0.1", [1, 127, 0, 0, 1]],
      ["127.1", [1, 127, 0, 0, 1]],
      ["::1", [4, ...Array(15).fill(0), 1]],
      ["::", [4, ...Array(16).fill(0)]],
      ["2001:db8::ff00:42:8329", [4, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0xff, 0, 0, 0x42, 0x83, 0x29]],
      ["1:2:3:4:5:6:7:8", [4, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0, 7, 0, 8]],
      ["fe80::", [4, 0xfe, 0x80, ...Array(14).fill(0)]],
      ["::ffff:10.0.0.1", [1, 10, 0, 0, 1]],
    ] as [string, number[]][]
  ) {
    for (const scheme of ["socks5", "socks5h"]) {
      const received: number[] = [];
      const script = socksScript([...GREETING, ...SUCCESS, ...bytes(FIRST)], received);
      await dialScript(script, { scheme, target: { hostname, port: 9000 } }, expectBytes(FIRST));
      assertEquals(received, [5, 1, 0, 5, 1, 0, ...address, 0x23, 0x28], hostname);
    }
  }
});

Deno.test("dialThroughProxy() authenticates at a SOCKS 5 proxy that wants it, and at no other", async () => {
  const [user, password] = [bytes(USER), bytes(PASSWORD)];
  const request = [5, 1, 0, 3, 14, ...bytes("server.example"), 0x23, 0x28];
  for (
    const [answer, sent] of [
      [[5, 2, 1, 0], [1, user.length, ...user, password.length, ...password]],
      [[5, 0], []],
    ] as [number[], number[]][]
  ) {
    const received: number[] = [];
    const options = { scheme: "socks5", credentials: `${ENCODED}@` };
    await dialScript(socksScript([...answer, ...SUCCESS], received), options, () => Promise.resolve());
    assertEquals(received, [5, 2, 0, 2, ...sent, ...request]);
  }
});

Deno.test("dialThroughProxy() reads a reply of SOCKS 5 with any address", async () => {
  for (const address of [[1, 1, 2, 3, 4], [4, ...Array(16).fill(9)], [3, 0], [3, 255, ...Array(255).fill(65)]]) {
    const script = socksScript([...GREETING, 5, 0, 0, ...address, 1, 2, ...bytes(FIRST)]);
    await dialScript(script, { scheme: "socks5" }, expectBytes(FIRST));
  }
});

Deno.test("dialThroughProxy() names the proxy and the reason when a SOCKS 5 proxy does not connect", async () => {
  const rest = [0, 1, 0, 0, 0, 0, 0, 0];
  for (
    const [answer, message, isPermanent, credentials = ""] of [
      [[5, 255], /the proxy wants a user and a password$/, true],
      [[5, 255], /the proxy does not accept a user and a password$/, true, `${ENCODED}@`],
      [[5, 1], /does not accept a user and a password, it wants method 1$/, true, `${ENCODED}@`],
      [[5, 2], /does not accept a user and a password, it wants method 2$/, true],
      [[5, 2, 1, 1], /does not accept the user and the password$/, true, `${ENCODED}@`],
      [[4, 90], /does not speak SOCKS 5: its answer begins with byte 4$/, true],
      [[...bytes("HTTP/1.1 400")], /does not speak SOCKS 5: its answer begins with "H"$/, true],
      [[...GREETING, 4], /does not speak SOCKS 5: its answer begins with byte 4$/, true],
      [[...GREETING, 5, 0, 0, 2], /an unknown type of address, 2$/, true],
      [[...GREETING, 5, 1, ...rest], /a general failure$/, false],
      [[...GREETING, 5, 2, ...rest], /does not allow the connection$/, true],
      [[...GREETING, 5, 3, ...rest], /cannot connect: network unreachable$/, false],
      [[...GREETING, 5, 4, ...rest], /cannot connect: host unreachable$/, false],
      [[...GREETING, 5, 5, ...rest], /cannot connect: connection refused$/, false],
      [[...GREETING, 5, 6, ...rest], /cannot connect: time to live expired$/, false],
      [[...GREETING, 5, 7, ...rest], /does not support connecting$/, true],
      [[...GREETING, 5, 8, ...rest], /does not support this type of address$/, true],
      // Also without the rest of the reply.
      [[...GREETING, 5, 9], /does not connect: reply code 9$/, false],
      [[...GREETING, 5, 255], /does not connect: reply code 255$/, false],
    ] as [number[], RegExp, boolean, string?][]
  ) {
    const error = await refusalOf(socksScript(answer), { scheme: "socks5", credentials });
    assertMatch(error.message, message);
    assertMatch(
      error.message,
      /^Cannot connect to server\.example:9000 through socks5:\/\/127\.0\.0\.1:\d+: the proxy /,
    );
    assertEquals(error instanceof PermanentError, isPermanent, error.message);
  }
});

Deno.test("dialThroughProxy() rejects for each answer of SOCKS 5 that ends too early", async () => {
  const answers: [number[], string][] = [
    [[...GREETING, ...SUCCESS], ""],
    [[5, 2, 1, 0, 5, 0, 0, 3, 2, 65, 66, 0, 80], `${ENCODED}@`],
    [[5, 0, 5, 0, 0, 4, ...Array(18).fill(1)], ""],
  ];
  for (const [answer, credentials] of answers) {
    for (let length = 0; length < answer.length; length++) {
      const error = await refusalOf(socksScript(answer.slice(0, length)), { scheme: "socks5", credentials });
      assertMatch(error.message, /the proxy closed the connection before it answered$/, `${length} bytes`);
    }
  }
});

Deno.test("dialThroughProxy() rejects a name that is too long for SOCKS 5, without a byte sent", async () => {
  await using proxy = makeTarget(async (connection) => assertEquals(await isEnded(connection), true));
  const hostname = Array(5).fill("x".repeat(60)).join(".");
  const dialling = dialThroughProxy(`socks5://${proxy.addr}`, { hostname, port: 1 });
  await promptly(assertRejects(() => dialling, PermanentError, "at most 255 bytes"));
});

Deno.test("openTunnel() connects through a proxy, which resolves the name of the server", async () => {
  await using echo = makeEcho();
  await using server = start({ allow: ["127.0.0.1:*"], allowListen: ["127.0.0.1:*"], secret: "sesame" });
  await using proxy = makeHttpProxy(server.serverAddr);
  const log = makeLog();
  await using client = await openTunnel({
    connect: "server.invalid:9000",
    proxy: `http://${ENCODED}@${proxy.addr}`,
    secret: "sesame",
    insecure: true,
    forward: [`0=${echo.addr}`],
    reverse: [`0=${echo.addr}`],
    ...log.options,
  });
  assertEquals(client.serverAddr, "server.invalid:9000");
  for (const addr of client.listenAddrs) {
    using connection = await dial(addr);
    assertEquals(await say(connection, "hello"), "hello");
  }
  assertEquals(log.messages(), []);
  assertMatch(proxy.heads[0]!, /^CONNECT server\.invalid:9000 HTTP\/1\.1\r\nHost: server\.invalid:9000\r\nProxy-Auth/);
  assertNoCredentials(everything([client, log.events, client.stats()]));
});

Deno.test("openTunnel() resumes through a proxy after a cut, and connects again without resuming", async () => {
  for (const resume of [true, false]) {
    await using echo = makeEcho();
    await using server = start({ allow: ["127.0.0.1:*"] });
    await using proxy = makeHttpProxy(server.serverAddr);
    await using cable = makeProxy(proxy.addr);
    const log = makeLog();
    await using client = await openTunnel({
      connect: "server.invalid:9000",
      proxy: `http://${ENCODED}@${cable.addr}`,
      resume,
      forward: [`0=${echo.addr}`],
      ...log.options,
    });
    using connection = await dial(client.listenAddrs[0]!);
    assertEquals(await say(connection, "before"), "before");
    cable.cut();
    await promptly(log.until(resume ? "resumed" : "reconnected"));
    if (resume) assertEquals(await say(connection, "after"), "after");
    assertNoCredentials(everything([log.events, log.errors]));
  }
});

Deno.test("openTunnel() with retry waits for a proxy that cannot connect, and rejects when it does not allow it", async () => {
  await using server = start({ allow: ["127.0.0.1:*"] });
  const answers = ["HTTP/1.1 503 Later\r\n\r\n", `HTTP/1.1 502 Bad\r\n${HTML}`];
  await using proxy = makeHttpProxy(server.serverAddr, () => answers.shift() ?? OK);
  const log = makeLog();
  const options = { connect: "server.invalid:9000", proxy: `http://${ENCODED}@${proxy.addr}`, retry: true };
  const client = await promptly(openTunnel({ ...options, ...log.options }));
  await client.shutdown();
  assertEquals(log.messages().map((message) => message.replace(/.*: /, "")), ["503 Later", "502 Bad"]);
  log.messages().forEach(assertNoCredentials);

  for (const status of ["403 Forbidden", "407 Wrong"]) {
    answers.push(`HTTP/1.1 ${status}\r\n\r\n`);
    const error = await failure(options);
    assert(error instanceof PermanentError, everything(error));
    assertStringIncludes(error.message, `through http://${proxy.addr}: the proxy does not`);
    assertStringIncludes(error.message, status);
  }
});

Deno.test("openTunnel() connects with TLS to the name of the server, through a proxy", async () => {
  await using server = start({ allow: ["127.0.0.1:*"], cert, key });
  await using proxy = makeHttpProxy(server.serverAddr);
  const client = await openTunnel({ connect: "localhost:1", proxy: proxy.url, ca });
  await client.shutdown();
  const error = await failure({ connect: "other.example:1", proxy: proxy.url, ca });
  assertMatch(error.message, /^Cannot connect to other\.example:1: .*is only valid for/);
});

Deno.test("openTunnel() rejects a proxy that cannot be combined with the server", () => {
  const proxy = "http://proxy.example:8080";
  for (
    const [options, message] of [
      [{ connect: "unix:/tmp/x", proxy }, /^proxy must not be combined with a Unix socket, received connect "unix:/],
      [{ connect: "9000", proxy, secret: "x" }, /^proxy must be at a loopback address, .* requires TLS, or insecure$/],
      [{ connect: "9000", proxy: "proxy" }, /^proxy must be http:\/\//],
    ] as [OpenTunnelOptions, RegExp][]
  ) {
    const error = assertThrows(() => checkTunnel(options), RangeError);
    assertMatch(error.message, message);
  }
  // The secret is encrypted, or allowed to be read.
  checkTunnel({ connect: "localhost:9000", proxy, secret: "x", ca });
  checkTunnel({ connect: "localhost:9000", proxy, secret: "x", insecure: true });
  checkTunnel({ connect: "unix:/tmp/x", proxy: "none" });
});

Deno.test("TunnelClient.update() connects anew with another proxy or other credentials, and not with the same", async () => {
  await using server = start({ allow: ["127.0.0.1:*"] });
  await using one = makeHttpProxy(server.serverAddr);
  await using other = makeHttpProxy(server.serverAddr);
  const connect = server.serverAddr;
  await using client = await openTunnel({ connect, proxy: one.url });
  await promptly(client.update({ connect, proxy: one.url }));
  assertEquals([one.heads.length, other.heads.length], [1, 0]);
  await promptly(client.update({ connect, proxy: other.url }));
  assertEquals([one.heads.length, other.heads.length], [1, 1]);
  await promptly(client.update({ connect, proxy: `http://alice:a@${other.addr}` }));
  await promptly(client.update({ connect, proxy: `http://alice:b@${other.addr}` }));
  assertEquals([one.heads.length, other.heads.length], [1, 3]);
  assertMatch(other.heads[2]!, /Basic YWxpY2U6Yg==/);
  await promptly(client.update({ connect }));
  assertEquals(client.stats().connections, 5);
  // A proxy that does not answer: the present connection stays.
  await promptly(
    assertRejects(() => client.update({ connect, proxy: `http://${nowhere()}` }), Error, "the proxy http"),
  );
  assertEquals(client.stats().connections, 5);
});

Deno.test("checkTunnel() checks the proxy in steps of its own", async () => {
  await using echo = makeEcho();
  await using server = start({ allow: ["127.0.0.1:*"], cert, key });
  let answer = OK;
  await using proxy = makeHttpProxy(server.serverAddr, () => answer);
  const check = (proxy: string, options = {}) =>
    promptly(Array.fromAsync(checkTunnel({ connect: "localhost:9000", ca, proxy, ...options })));
  const port = proxy.addr.replace(/.*:/, "");
  const checks = await check(`http://${ENCODED}@localhost:${port}`, { forward: [`0=${echo.addr}`] });
  assertNoCredentials(everything(checks));
  assertEquals(checks.map(({ isOk }) => isOk).includes(false), false, everything(checks));
  assertEquals(checks.map(({ name }) => name).slice(0, 5), ["name", "TCP", "proxy", "TLS", "protocol"]);
  assertMatch(checks[0]!.text, /^localhost is .*127\.0\.0\.1/);
  assertEquals(checks[1]!.text, `connected to ${proxy.addr}`);
  assertEquals(checks[2]!.text, `http://localhost:${port} connects to localhost:9000`);
  assertMatch(checks[3]!.text, /^a trusted certificate of localhost, 127\.0\.0\.1, issued by .*, valid until 21/);

  // A server without TLS, and one whose certificate is not trusted.
  const unknown = (await check(proxy.url, { ca: cert })).at(-1)!;
  assertEquals([unknown.name, unknown.isOk], ["TLS", false]);
  assertMatch(unknown.text, /^a certificate of localhost, 127\.0\.0\.1, .* is not trusted: /);
  await using plain = start({ allow: ["127.0.0.1:*"] });
  await using other = makeHttpProxy(plain.serverAddr);
  const insecure = (await check(other.url)).at(-1)!;
  assertEquals([insecure.name, insecure.isOk], ["TLS", false]);
  assertMatch(insecure.text, /^no handshake: /);

  answer = "HTTP/1.1 403 Forbidden\r\n\r\n";
  const failed = (await check(proxy.url)).at(-1)!;
  assertEquals([failed.name, failed.isOk], ["proxy", false]);
  assertMatch(failed.advice!, /many allow port 443 only/);
  const refused = (await check(`http://${nowhere()}`)).at(-1)!;
  assertEquals([refused.name, refused.isOk], ["TCP", false]);
  assertMatch(refused.advice!, /in --proxy/);
});

const SCRIPT = new URL("../tunnel.ts", import.meta.url).href;
const VARIABLES = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"];

/** Starts the command with these variables of a proxy, and no other. */
function command(args: string[], variables: Record<string, string>, allow = ["-A"]) {
  const env = { ...Deno.env.toObject(), NO_COLOR: "1", ...variables };
  for (const name of VARIABLES) if (!Object.hasOwn(variables, name)) delete (env as Record<string, string>)[name];
  return watch(
    new Deno.Command(Deno.execPath(), {
      args: ["run", "--no-config", "--no-prompt", ...allow, SCRIPT, ...args],
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
      clearEnv: true,
      env,
    }).spawn(),
  );
}

/** Uses a client that forwards to an echo, ends it, and returns its output. */
async function runClient({ until, end }: Watched): Promise<string> {
  const [, addr] = await promptly(until(/listening on (127\.0\.0\.1:\d+)/));
  const connection = await dial(addr!);
  assertEquals(await say(connection, "hello"), "hello");
  connection.close();
  const { code, stdout, stderr } = await promptly(end("SIGINT"));
  assertEquals(code, 0, stderr);
  return stdout + stderr;
}

Deno.test("sluice client uses the proxy of the environment, --proxy and the file, and prints no credentials", async () => {
  await using echo = makeEcho();
  await using server = start({ allow: ["127.0.0.1:*"] });
  await using proxy = makeHttpProxy(server.serverAddr);
  await using folder = await makeFolder("proxy");
  const file = `${folder.path}/sluice.json`;
  const url = `http://${ENCODED}@${proxy.addr}`;
  const client = { connect: "server.invalid:9000", forward: [`0=${echo.addr}`] };
  const args = ["client", "--connect", client.connect, "--forward", client.forward[0]!, "--log", "text"];
  const cases: [name: string, args: string[], variables: Record<string, string>, config?: Record<string, unknown>][] = [
    ["HTTPS_PROXY", args, { HTTPS_PROXY: url }],
    ["lower case first", args, { https_proxy: url, HTTPS_PROXY: "http://127.0.0.1:1" }],
    ["ALL_PROXY without a scheme", args, { ALL_PROXY: `${ENCODED}@${proxy.addr}` }],
    ["NO_PROXY of others", args, { HTTPS_PROXY: url, NO_PROXY: "localhost,.example" }],
    ["--proxy", [...args, "--proxy", url], { HTTPS_PROXY: "http://127.0.0.1:1" }],
    ["the file", ["--config", file], { WORK: ENCODED }, { ...client, proxy: `http://\${WORK}@${proxy.addr}` }],
    ["HTTPS_PROXY with a file", ["--config", file], { HTTPS_PROXY: url }, client],
  ];
  for (const [name, args, variables, config] of cases) {
    if (config !== undefined) await Deno.writeTextFile(file, JSON.stringify({ client: config }));
    await using watched = command(args, variables);
    assertNoCredentials(await runClient(watched));
    assertStringIncludes(proxy.heads.at(-1)!, BASIC, name);
  }
});

Deno.test("sluice client connects directly to this machine, to NO_PROXY, with --proxy none, and without permission", async () => {
  await using echo = makeEcho();
  await using server = start({ allow: ["127.0.0.1:*"] });
  const { port } = parse(server.serverAddr);
  const wrong = { HTTPS_PROXY: "http://127.0.0.1:1", ALL_PROXY: "nonsense://" };
  const args = (connect: string) => ["client", "--connect", connect, "--forward", `0=${echo.addr}`];
  const cases: [args: string[], variables: Record<string, string>, allow?: string[]][] = [
    [args(`localhost:${port}`), wrong],
    [args(server.serverAddr), wrong],
    // Not a loopback address, but this machine.
    [args(`0.0.0.0:${port}`), { ...wrong, NO_PROXY: "x,0.0.0.0/8" }],
    [[...args(`0.0.0.0:${port}`), "--proxy", "none"], wrong],
    [args(`0.0.0.0:${port}`), wrong, ["--allow-net", "--deny-env"]],
  ];
  for (const [args, variables, allow] of cases) {
    await using watched = command(args, variables, allow);
    await runClient(watched);
  }
});

Deno.test("sluice names the mistake in a proxy, and prints no credentials", async () => {
  const args = ["client", "--connect", "server.invalid:9000", "--socks", "0"];
  for (
    const [more, variables, code, message] of [
      [["--proxy", `https://${ENCODED}@h`], {}, 2, /--proxy must be .* "https:\/\/h": TLS to the proxy is not supp/],
      [["--proxy", `${ENCODED}@h:1`], {}, 2, /--proxy must be .* received "h:1"/],
      [["--no-proxy"], {}, 2, /did you mean --proxy\?/],
      [[], { HTTPS_PROXY: `ftp://${ENCODED}@h` }, 2, /\$HTTPS_PROXY must be .* received "ftp:\/\/h"/],
      [
        ["--no-retry"],
        { HTTPS_PROXY: `http://${ENCODED}@127.0.0.1:1` },
        1,
        /cannot connect to the proxy http:\/\/127\.0/,
      ],
    ] as [string[], Record<string, string>, number, RegExp][]
  ) {
    await using watched = command([...args, ...more], variables);
    const ended = await watched.ended();
    assertEquals([ended.code, ended.stdout], [code, ""], ended.stderr);
    assertMatch(ended.stderr, message);
    assertNoCredentials(ended.stderr);
  }
});

Deno.test("loadConfig() reports a malformed proxy at its position, without the credentials", async () => {
  await using folder = await makeFolder("proxy");
  const path = `${folder.path}/sluice.json`;
  const mistakesOf = async (proxy: unknown) => {
    const client = { proxy, connect: "a:1", socks: ["0"] };
    await Deno.writeTextFile(path, JSON.stringify({ client }));
    return loadConfig(path).mistakes;
  };
  assertEquals(await mistakesOf(`http://${ENCODED}@h:1`), []);
  assertEquals(await mistakesOf("none"), []);
  for (const [proxy, received] of [[`ftp://${ENCODED}@h`, '"ftp://h"'], [1, "1"]]) {
    const [mistake, ...more] = await mistakesOf(proxy);
    assertEquals(more, []);
    assertMatch(mistake!, new RegExp(`^${path}:1:\\d+: client\\.proxy must be .*received ${received}$`));
    assertNoCredentials(mistake!);
  }
});
