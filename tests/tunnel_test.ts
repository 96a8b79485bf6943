/** The tunnel, as functions in this process and as the command in processes of its own. */

import {
  assert,
  assertEquals,
  assertGreater,
  assertInstanceOf,
  assertMatch,
  assertRejects,
  assertStrictEquals,
  assertThrows,
} from "@std/assert";
import { concat } from "@std/bytes";
import * as net from "node:net";
import { clock, type Timer } from "../_clock.ts";
import { type Connection, ProtocolError, serve, Session } from "../mod.ts";
import {
  openTunnel,
  type OpenTunnelOptions,
  serveTunnel,
  type ServeTunnelOptions,
  type TunnelOptions,
  TunnelRefusedError,
} from "../tunnel.ts";
import { hasPrograms, lines, makeFolder, watch } from "./programs.ts";
import {
  bytes,
  certificates,
  isRefused,
  LOOPBACK,
  ManualClock,
  pattern,
  readAll,
  readSome,
  sha256,
  text,
  turn,
  writeAll,
} from "./support.ts";

// A free port of this machine, in words.
const FREE = "127.0.0.1:0";

/** An address of a socket, in words. */
const at = ({ hostname, port }: { hostname: string; port: number }) =>
  hostname.includes(":") ? `[${hostname}]:${port}` : `${hostname}:${port}`;

/** What Deno needs to connect to or listen at an address in words. */
function parse(addr: string): { hostname: string; port: number } {
  const [, ipv6, name, port] = /^(?:\[(.+)\]|([^:]+)):(\d+)$/.exec(addr)!;
  return { hostname: ipv6 ?? name!, port: Number(port) };
}

/** Connects to an address in words. */
const dial = (addr: string) => Deno.connect(parse(addr));

/** The port of an address in words. */
const portOf = (addr: string) => parse(addr).port;

/** What a tunnel tells: its errors and its events, collected, and a way to wait for them. */
function makeLog() {
  const errors: Error[] = [];
  const events: string[] = [];
  let told = Promise.withResolvers<void>();
  const wake = () => {
    told.resolve();
    told = Promise.withResolvers();
  };
  const onError = (error: unknown) => {
    assertInstanceOf(error, Error);
    errors.push(error);
    wake();
  };
  const onEvent = (line: string) => {
    events.push(line);
    wake();
  };
  const messages = () => errors.map((error) => error.message);
  /** Waits until so many errors or events are of this kind. */
  const until = async (what: RegExp, times = 1) => {
    while ([...messages(), ...events].filter((line) => what.test(line)).length < times) await told.promise;
  };
  return { errors, events, messages, until, options: { onError, onEvent } };
}

/** Both ends of a tunnel in this process, the client's at `client.addrs[0]` and its server's always at one target. */
async function makeTunnel(target: string, options: TunnelOptions = {}) {
  const log = makeLog();
  const server = serveTunnel({ listen: FREE, target, onEvent: log.options.onEvent, ...options });
  const client = await openTunnel({ connect: server.addr, forward: [FREE], reconnect: false, ...options });
  const shutdown = async () => {
    await client.shutdown();
    await server.shutdown();
  };
  return { server, client, log, shutdown };
}

/** Both ends of a tunnel in this process, each with a log, and the server told what it allows. */
async function makePair(options: Omit<ServeTunnelOptions, "listen">, asked: Omit<OpenTunnelOptions, "connect"> = {}) {
  const logs = { server: makeLog(), client: makeLog() };
  const server = serveTunnel({ listen: FREE, ...logs.server.options, ...options });
  const opening = openTunnel({ connect: server.addr, reconnect: false, ...logs.client.options, ...asked });
  const client = await opening.catch(async (error) => {
    await server.shutdown();
    throw error;
  });
  const dispose = async () => {
    await client.shutdown();
    await server.shutdown();
  };
  return { server, client, logs, [Symbol.asyncDispose]: dispose };
}

/** A target that answers each connection as told, one after the other. */
function makeTarget(answer: (connection: Deno.TcpConn) => Promise<void>) {
  const listener = Deno.listen(LOOPBACK);
  const answering = (async () => {
    for await (const connection of listener) {
      using answered = connection;
      await answer(answered);
    }
  })();
  const close = async () => {
    listener.close();
    await answering;
  };
  return { addr: at(listener.addr), close, [Symbol.asyncDispose]: close };
}

const makeEcho = () => makeTarget((connection) => connection.readable.pipeTo(connection.writable));

/** Reads an HTTP head, byte for byte; what there was of it if that ends before. */
async function readHead(from: Pick<Connection, "read">): Promise<Uint8Array> {
  const head: number[] = [];
  while (!text(new Uint8Array(head)).endsWith("\r\n\r\n")) {
    const [byte] = await readSome(from, 1);
    if (byte === undefined) break;
    head.push(byte);
  }
  return new Uint8Array(head);
}

/** Sends a word and gives what comes back. */
async function say(connection: Pick<Connection, "read" | "write">, word: string): Promise<string> {
  await writeAll(connection, bytes(word));
  return text(await readSome(connection, word.length));
}

/** Whether the other end ends the connection, in order or not, before it says anything. */
async function isEnded(connection: Pick<Connection, "read">): Promise<boolean> {
  return await connection.read(new Uint8Array(1)).catch(() => null) === null;
}

const SIZES = Array.from({ length: 60 }, (_, n) => Math.round(1.25 ** n));

function serveFiles(where: { hostname: string; port: number } = LOOPBACK) {
  return Deno.serve({ ...where, onListen() {} }, (request) => {
    const size = Number(new URL(request.url).pathname.slice(1));
    return new Response(pattern(size, size));
  });
}

/** Fetches files of these sizes all at once, each over its own connection, and checks that each came whole. */
async function fetchFiles(addr: string, sizes: number[]): Promise<void> {
  using client = Deno.createHttpClient({ poolMaxIdlePerHost: 0 });
  await Promise.all(sizes.map(async (size) => {
    const response = await fetch(`http://127.0.0.1:${portOf(addr)}/${size}`, { client });
    const file = new Uint8Array(await response.arrayBuffer());
    assertEquals(await sha256(file), await sha256(pattern(size, size)));
  }));
}

/** An address where nobody listens. */
function nowhere(): string {
  using listener = Deno.listen(LOOPBACK);
  return at(listener.addr);
}

function hasIpv6(): boolean {
  try {
    Deno.listen({ hostname: "::1", port: 0 }).close();
    return true;
  } catch {
    return false;
  }
}

/** The names of what is in a folder. */
function namesIn(folder: string): string[] {
  return Array.from(Deno.readDirSync(folder), ({ name }) => name).sort();
}

/** Timers that are set last as long as `change` says, until it is disposed of. */
function changeDelays(change: (delay: number) => number): Disposable {
  const { setTimeout } = globalThis;
  globalThis.setTimeout = ((run: () => void, delay = 0) => setTimeout(run, change(delay))) as typeof setTimeout;
  return { [Symbol.dispose]: () => void (globalThis.setTimeout = setTimeout) };
}

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

/** What a promise fulfils with, unless that takes seconds: then the test has failed. */
async function promptly<T>(promise: Promise<T>): Promise<T> {
  const late = Promise.withResolvers<never>();
  const timer = setTimeout(() => late.reject(new Error("It took more than 5 seconds")), 5000);
  return await Promise.race([promise, late.promise]).finally(() => clearTimeout(timer));
}

/** Connections that write more than all buffers on the way hold, whatever they are told to. */
function makeFlood() {
  const [writing, ended] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  const change = (connection: Deno.TcpConn) => {
    const { write } = connection;
    connection.write = async () => {
      writing.resolve();
      try {
        for (;;) await write.call(connection, new Uint8Array(10_000_000));
      } finally {
        ended.resolve();
      }
    };
    return connection;
  };
  return { change, writing: writing.promise, ended: ended.promise };
}

// One target.

Deno.test("tunnel: HTTP through it, every connection a stream of one connection", async () => {
  const web = serveFiles();
  const { client, server, log, shutdown } = await makeTunnel(at(web.addr));
  await fetchFiles(client.addrs[0]!, SIZES);
  assertEquals(log.events.length, 1);
  assertMatch(log.events[0]!, /^connection from 127\.0\.0\.1:\d+$/);
  await shutdown();
  await Promise.all([client.finished, server.finished]);
  const total = SIZES.reduce((sum, size) => sum + size);
  const { sent, received, ...counts } = client.stats();
  assertEquals(counts, { connections: 1, streams: SIZES.length, open: 0 });
  assertGreater(received, total);
  assertGreater(sent, 0);
  assertEquals(server.stats(), { ...counts, sent: received, received: sent });
  await web.shutdown();
});

Deno.test("tunnel: where it listens is said in words, at the server as at the client", async () => {
  const { client, server, shutdown } = await makeTunnel(nowhere());
  assertMatch(server.addr, /^127\.0\.0\.1:[1-9]\d*$/);
  assertEquals(server.addrs, []);
  assertEquals(client.addr, server.addr);
  assertEquals(client.addrs.length, 1);
  assertMatch(client.addrs[0]!, /^127\.0\.0\.1:[1-9]\d*$/);
  await shutdown();
});

Deno.test("tunnel: a client has an address for each forward, then socks, then reverse", async () => {
  const [one, two, three, four] = [nowhere(), nowhere(), nowhere(), nowhere()];
  const asked = { reverse: [`${four}=1`], socks: [three], forward: [`${one}=1`, two] };
  await using pair = await makePair({ allowListen: ["*:*"] }, asked);
  assertEquals(pair.client.addrs, [one, two, three, four]);
});

Deno.test("tunnel: many clients at one server", async () => {
  const web = serveFiles();
  const { client, server, shutdown } = await makeTunnel(at(web.addr));
  const second = await openTunnel({ connect: server.addr, forward: [FREE] });
  await Promise.all([fetchFiles(client.addrs[0]!, [1, 10_000]), fetchFiles(second.addrs[0]!, [2, 20_000, 3])]);
  await second.shutdown();
  await fetchFiles(client.addrs[0]!, [4]);
  await shutdown();
  const { connections, streams } = server.stats();
  assertEquals({ connections, streams }, { connections: 2, streams: 6 });
  await web.shutdown();
});

Deno.test("tunnel: both versions of smux", async () => {
  await using echo = makeEcho();
  await using server = serveTunnel({ listen: FREE, target: echo.addr });
  for (const version of [1, 2] as const) {
    await using client = await openTunnel({ connect: server.addr, forward: [FREE], version });
    using connection = await dial(client.addrs[0]!);
    assertEquals(await say(connection, "hello"), "hello");
    connection.close();
  }
});

Deno.test("tunnel: stats tell what is open", async () => {
  await using echo = makeEcho();
  await using pair = await makePair({ target: echo.addr }, { forward: [FREE] });
  const connection = await dial(pair.client.addrs[0]!);
  assertEquals(await say(connection, "hello"), "hello");
  assertEquals(pair.client.stats().open, 1);
  assertEquals(pair.server.stats().open, 1);
  connection.close();
});

Deno.test("tunnel: a client that sends, half-closes and then gets its answer", async () => {
  const request = pattern(500_000, 7);
  const target = makeTarget(async (connection) => {
    const received = await readAll(connection);
    await writeAll(connection, bytes(await sha256(received)));
  });
  const { client, shutdown } = await makeTunnel(target.addr);
  using connection = await dial(client.addrs[0]!);
  await writeAll(connection, request);
  await connection.closeWrite();
  assertEquals(text(await readAll(connection)), await sha256(request));
  await shutdown();
  await target.close();
});

Deno.test("tunnel: a target that answered and half-closed first still receives all that follows", async () => {
  const upload = pattern(1_000_000, 8);
  const received = Promise.withResolvers<Uint8Array>();
  const target = makeTarget(async (connection) => {
    await writeAll(connection, bytes("go on"));
    await connection.closeWrite();
    received.resolve(await readAll(connection));
  });
  const { client, shutdown } = await makeTunnel(target.addr);
  using connection = await dial(client.addrs[0]!);
  assertEquals(text(await readAll(connection)), "go on");
  await writeAll(connection, upload);
  await connection.closeWrite();
  assertEquals(await received.promise, upload);
  await shutdown();
  await target.close();
});

Deno.test("tunnel: a target that refuses ends the local connection at once, and the tunnel lives", async () => {
  const target = nowhere();
  const { options, errors, messages } = makeLog();
  const { client, shutdown } = await makeTunnel(target, options);
  for (const _ of [1, 2, 3]) {
    using connection = await dial(client.addrs[0]!);
    assertEquals(await connection.read(new Uint8Array(1)), null);
  }
  const message = `Cannot connect to ${target}: connection refused`;
  assertEquals(messages(), [message, message, message]);
  assertInstanceOf(errors[0]!.cause, Deno.errors.ConnectionRefused);

  const web = serveFiles(parse(target));
  await fetchFiles(client.addrs[0]!, [5]);
  await shutdown();
  await web.shutdown();
});

Deno.test("tunnel: a local connection that is reset is told, its target is let go, and the tunnel lives", async () => {
  const released = Promise.withResolvers<number | null>();
  const target = makeTarget(async (connection) => {
    await writeAll(connection, bytes("hello"));
    released.resolve(await connection.read(new Uint8Array(1)));
  });
  const { options, messages, until } = makeLog();
  const { client, shutdown } = await makeTunnel(target.addr, options);
  const socket = net.connect(portOf(client.addrs[0]!), "127.0.0.1");
  socket.once("data", () => socket.resetAndDestroy());
  await until(/^The connection from 127\.0\.0\.1:\d+ broke: connection reset by peer$/);
  assertEquals(await released.promise, null);

  using connection = await dial(client.addrs[0]!);
  await connection.closeWrite();
  assertEquals(text(await readAll(connection)), "hello");
  await shutdown();
  await target.close();
  assertEquals(messages().length, 1);
});

Deno.test("tunnel: shutdown of a client stops listening, waits for what is open, and fulfils finished", async () => {
  const target = makeEcho();
  const { client, server } = await makeTunnel(target.addr);
  const connection = await dial(client.addrs[0]!);
  assertEquals(await say(connection, "before"), "before");
  let isFinished = false;
  const finished = client.shutdown().then(() => isFinished = true);
  assertEquals(await isRefused(() => dial(client.addrs[0]!)), true);
  assertEquals(await say(connection, "after"), "after");
  assertEquals(isFinished, false);
  await connection.closeWrite();
  assertEquals(await connection.read(new Uint8Array(1)), null);
  connection.close();
  await finished;
  await client.finished;
  await server.shutdown();
  await target.close();
});

Deno.test("tunnel: shutdown of a server waits for what is open, and then its clients end with an error", async () => {
  const target = makeEcho();
  const { client, server } = await makeTunnel(target.addr);
  const connection = await dial(client.addrs[0]!);
  assertEquals(await say(connection, "before"), "before");
  let isFinished = false;
  const finished = server.shutdown().then(() => isFinished = true);
  assertEquals(await isRefused(() => dial(server.addr)), true);
  assertEquals(await say(connection, "after"), "after");
  assertEquals(isFinished, false);
  connection.close();
  await finished;
  await assertRejects(
    () => client.finished,
    Error,
    `The connection to ${server.addr} was lost: the server ended it`,
  );
  assertEquals(await isRefused(() => dial(client.addrs[0]!)), true);
  assertEquals(await client.shutdown(), undefined);
  await target.close();
});

Deno.test("tunnel: timeout is how long shutdown waits, at either end, and then it cuts", async () => {
  await using echo = makeEcho();
  for (const end of ["client", "server"] as const) {
    await using pair = await makePair({ target: echo.addr }, { forward: [FREE] });
    using connection = await dial(pair.client.addrs[0]!);
    assertEquals(await say(connection, "before"), "before");
    const began = performance.now();
    await pair[end].shutdown({ timeout: 50 });
    assertGreater(performance.now() - began, 45);
    await pair[end].finished;
    assertEquals(await isEnded(connection), true);
  }
});

Deno.test("tunnel: a server that is cut off ends the client with an error, and what it carried at once", async () => {
  const controller = new AbortController();
  const target = makeEcho();
  const server = serveTunnel({ listen: FREE, target: target.addr, signal: controller.signal });
  const { options, errors } = makeLog();
  const client = await openTunnel({ connect: server.addr, forward: [FREE], reconnect: false, ...options });
  const connection = await dial(client.addrs[0]!);
  assertEquals(await say(connection, "before"), "before");
  controller.abort();
  await assertRejects(() => client.finished, Error, `The connection to ${server.addr} was lost: `);
  assertEquals(await isEnded(connection), true);
  connection.close();
  assertEquals(await isRefused(() => dial(client.addrs[0]!)), true);
  await Promise.all([server.finished, client.shutdown(), target.close()]);
  assertEquals(errors, [], "what a lost session takes with it is not told one by one");
});

Deno.test("tunnel: a session that breaks while the client shuts down is told, and finished fulfils", async () => {
  const listener = Deno.listen(LOOPBACK);
  const { options, messages } = makeLog();
  const [client, server] = await Promise.all([
    openTunnel({ connect: at(listener.addr), forward: [FREE], ...options }),
    listener.accept(),
  ]);
  const connection = await dial(client.addrs[0]!);
  await writeAll(connection, bytes("hello"));
  for (let received = ""; !received.includes("hello");) {
    const p = new Uint8Array(100);
    received += text(p.subarray(0, (await server.read(p))!));
  }
  const finished = client.shutdown();
  await writeAll(server, bytes("this is no smux"));
  await finished;
  await client.finished;
  assertEquals(messages().length, 1);
  assertMatch(messages()[0]!, /^The connection to .+ was lost: /);
  for (const open of [connection, server, listener]) open.close();
});

Deno.test("tunnel: a server that speaks no smux ends the client with that error", async () => {
  const web = makeTarget((connection) => writeAll(connection, bytes("220 mail.example.com ESMTP\r\n")));
  const client = await openTunnel({ connect: web.addr, forward: [FREE], reconnect: false });
  const error = await assertRejects(() => client.finished, Error, "was lost");
  assertInstanceOf(error.cause, ProtocolError);
  await web.close();
});

Deno.test("tunnel: a client that speaks no smux is told, and the server lives", async () => {
  const target = makeEcho();
  const { options, errors, until } = makeLog();
  const { client, server, shutdown } = await makeTunnel(target.addr, options);
  using stranger = await dial(server.addr);
  await writeAll(stranger, bytes("GET / HTTP/1.1\r\n\r\n"));
  await until(/^A client's connection failed: /);
  assertInstanceOf(errors[0]!.cause, ProtocolError);
  using connection = await dial(client.addrs[0]!);
  assertEquals(await say(connection, "still here"), "still here");
  connection.close();
  await shutdown();
  await target.close();
  assertEquals(errors.length, 1);
});

/** A session with a tunnel's client in the place of its server. */
async function openAtSession(asked: Omit<OpenTunnelOptions, "connect">) {
  const listener = Deno.listen(LOOPBACK);
  const opening = openTunnel({ connect: at(listener.addr), reconnect: false, ...asked });
  const session = Session.server(await listener.accept());
  listener.close();
  return { opening, session };
}

Deno.test("tunnel: a client refuses the streams that its server opens", async () => {
  const { opening, session } = await openAtSession({ forward: [FREE] });
  const client = await opening;
  const stream = await session.openStream();
  assertEquals(await stream.read(new Uint8Array(1)), null);
  stream.close();
  await client.shutdown();
  await session.closed;
});

/** Answers the CONNECT of a tunnel's client with this, whole, and closes the session although the client has not ended. */
async function answerAndHangUp(session: Session, answer: Uint8Array): Promise<void> {
  const stream = await session.acceptStream();
  assertMatch(text(await readHead(stream)), /^CONNECT /);
  await writeAll(stream, bytes("HTTP/1.1 200 OK\r\n\r\n"));
  // All of it fits into the client's window.
  await writeAll(stream, answer);
  await stream.closeWrite();
  await session.close();
  await session.closed;
}

Deno.test("tunnel: an answer that arrived whole before the session ended reaches a visitor who reads it later", async () => {
  await using folder = await makeFolder("late");
  const path = `${folder.path}/socket`;
  const { opening, session } = await openAtSession({ forward: [`unix:${path}=echo:1`], onError() {} });
  const client = await opening;
  const visitor = await Deno.connect({ transport: "unix", path });
  // What a Unix socket takes is less than this.
  const answer = pattern(250_000);
  await answerAndHangUp(session, answer);
  await turn();
  assertEquals(await readAll(visitor), answer);
  visitor.close();
  await client.finished.catch(() => {});
});

Deno.test("tunnel: a client connects only where its reverse says, whatever its server asks for", async () => {
  await using echo = makeEcho();
  const { options, until } = makeLog();
  const { opening, session } = await openAtSession({ reverse: [`7=${echo.addr}`], ...options });
  const asked = await session.acceptStream();
  assertMatch(text(await readHead(asked)), /^BIND 7 HTTP\/1\.1\r\n/);
  await writeAll(asked, bytes("HTTP/1.1 200 OK\r\nAddress: 127.0.0.1:7\r\n\r\n"));
  const client = await opening;
  assertEquals(client.addrs, ["127.0.0.1:7"]);
  const bad = await session.openStream();
  await writeAll(bad, bytes(`CONNECT ${echo.addr} HTTP/1.1\r\n\r\n`));
  assert(!text(await readAll(bad)).startsWith("HTTP/1.1 200 "));
  await until(/not asked/);
  const good = await session.openStream();
  await writeAll(good, bytes("CONNECT 7 HTTP/1.1\r\n\r\n"));
  assertMatch(text(await readHead(good)), /^HTTP\/1\.1 200 /);
  assertEquals(await say(good, "hello"), "hello");
  for (const stream of [bad, good, asked]) stream.close();
  await client.shutdown();
  await session.closed;
});

Deno.test("tunnel: a signal ends either end at once, and finished fulfils", async () => {
  const controller = new AbortController();
  const target = makeEcho();
  const { options, errors } = makeLog();
  const { client, server } = await makeTunnel(target.addr, { signal: controller.signal, ...options });
  const connection = await dial(client.addrs[0]!);
  assertEquals(await say(connection, "before"), "before");
  controller.abort();
  await Promise.all([client.finished, server.finished]);
  assertEquals(await isEnded(connection), true);
  connection.close();
  assertEquals(await isRefused(() => dial(client.addrs[0]!)), true);
  assertEquals(await isRefused(() => dial(server.addr)), true);
  await target.close();
  assertEquals(errors, []);
});

Deno.test("tunnel: a signal that was aborted before starts nothing", async () => {
  const reason = new Error("too late");
  const signal = AbortSignal.abort(reason);
  const opening = openTunnel({ connect: nowhere(), forward: [FREE], signal });
  assertStrictEquals(await opening.catch((error) => error), reason);
  const server = serveTunnel({ listen: FREE, target: "1", signal });
  await server.finished;
  assertEquals(await isRefused(() => dial(server.addr)), true);
});

Deno.test("tunnel: callbacks that throw do no harm", async () => {
  const { error } = console;
  const printed: string[] = [];
  console.error = (error: unknown) => void printed.push(String(error));
  try {
    const target = nowhere();
    const onEvent = () => {
      throw new Error("from onEvent");
    };
    const onError = () => {
      throw new Error("from onError");
    };
    await using server = serveTunnel({ listen: FREE, target, onEvent, onError });
    await using client = await openTunnel({ connect: server.addr, forward: [FREE], onError });
    for (const _ of [1, 2]) {
      using connection = await dial(client.addrs[0]!);
      assertEquals(await connection.read(new Uint8Array(1)), null);
    }
  } finally {
    console.error = error;
  }
  assertEquals(printed, ["Error: from onEvent", "Error: from onError", "Error: from onError"]);
});

/** Opens a tunnel whose listener was changed before it is used. */
async function openChanged(
  options: OpenTunnelOptions,
  change: (listener: Deno.TcpListener) => void,
): ReturnType<typeof openTunnel> {
  const { listen } = Deno;
  const listenChanged = (options: Deno.TcpListenOptions) => {
    const listener = listen(options);
    change(listener);
    return listener;
  };
  Deno.listen = listenChanged as typeof listen;
  try {
    return await openTunnel(options);
  } finally {
    Deno.listen = listen;
  }
}

Deno.test("tunnel: accepting that fails is told and tried again", async () => {
  const other = new Error("Too many open files (os error 24)");
  const lost = new Deno.errors.NotConnected("Transport endpoint is not connected (os error 107)");
  const failures = [other, lost, lost, other, lost];
  const target = makeEcho();
  const server = serveTunnel({ listen: FREE, target: target.addr });
  const { options, messages } = makeLog();
  const client = await openChanged({ connect: server.addr, forward: [FREE], ...options }, (listener) => {
    const { accept } = listener;
    listener.accept = () => failures.length > 0 ? Promise.reject(failures.shift()) : accept.call(listener);
  });
  const connection = await dial(client.addrs[0]!);
  assertEquals(await say(connection, "still here"), "still here");
  connection.close();
  const what = "A connection was lost before it was accepted: ";
  const many = `${what}too many open files`;
  const gone = `${what}transport endpoint is not connected`;
  assertEquals(messages(), [many, gone, gone, many, gone]);
  await client.shutdown();
  await server.shutdown();
  await target.close();
});

Deno.test("tunnel: a connection accepted when the session is ending is closed", async () => {
  const target = makeEcho();
  const server = serveTunnel({ listen: FREE, target: target.addr });
  const accepted = Promise.withResolvers<void>();
  const mayGo = Promise.withResolvers<void>();
  const client = await openChanged({ connect: server.addr, forward: [FREE] }, (listener) => {
    const { accept } = listener;
    listener.accept = async () => {
      const connection = await accept.call(listener);
      accepted.resolve();
      await mayGo.promise;
      return connection;
    };
  });
  const connection = await dial(client.addrs[0]!);
  await accepted.promise;
  const finished = client.shutdown();
  mayGo.resolve();
  assertEquals(await connection.read(new Uint8Array(1)), null);
  connection.close();
  await finished;
  await server.shutdown();
  await target.close();
});

Deno.test("tunnel: finished waits until the local side has all that came for it", async () => {
  const target = makeTarget((connection) => writeAll(connection, bytes("the answer")));
  const server = serveTunnel({ listen: FREE, target: target.addr });
  const writing = Promise.withResolvers<void>();
  const mayWrite = Promise.withResolvers<void>();
  const client = await openChanged({ connect: server.addr, forward: [FREE] }, (listener) => {
    const { accept } = listener;
    listener.accept = async () => {
      const connection = await accept.call(listener);
      const { write } = connection;
      connection.write = async (p) => {
        writing.resolve();
        await mayWrite.promise;
        return await write.call(connection, p);
      };
      return connection;
    };
  });
  const connection = await dial(client.addrs[0]!);
  await connection.closeWrite();
  await writing.promise;
  let isFinished = false;
  const finished = client.shutdown().then(() => isFinished = true);
  // The stream is done, and so is the session; the answer has not been written yet.
  await server.shutdown();
  await new Promise((resume) => setTimeout(resume));
  assertEquals(isFinished, false);
  mayWrite.resolve();
  assertEquals(text(await readAll(connection)), "the answer");
  await finished;
  connection.close();
  await target.close();
});

Deno.test("tunnel: a connection that is dead when it is accepted is told and ends at both sides", async () => {
  const target = makeEcho();
  const server = serveTunnel({ listen: FREE, target: target.addr });
  const { options, messages } = makeLog();
  let delayed = 0;
  const client = await openChanged({ connect: server.addr, forward: [FREE], ...options }, (listener) => {
    const { accept } = listener;
    listener.accept = async () => {
      const connection = await accept.call(listener);
      connection.setNoDelay = () => {
        if (++delayed === 1) throw new Error("Invalid argument (os error 22)");
      };
      return connection;
    };
  });
  const dead = await dial(client.addrs[0]!);
  assertEquals(await dead.read(new Uint8Array(1)), null);
  dead.close();
  assertEquals(messages().length, 1);
  assertMatch(messages()[0]!, /^The connection from 127\.0\.0\.1:\d+ broke: invalid argument$/);
  const connection = await dial(client.addrs[0]!);
  assertEquals(await say(connection, "still here"), "still here");
  connection.close();
  assertEquals(delayed, 2);
  // This would wait for a stream that was left open.
  await client.shutdown();
  await server.shutdown();
  await target.close();
});

Deno.test("tunnel: a client that is gone waits for no target", async () => {
  const { connect } = Deno;
  const { options, errors } = makeLog();
  const target = nowhere();
  const server = serveTunnel({ listen: FREE, target, ...options });
  const session = Session.client(await dial(server.addr));
  const connecting = Promise.withResolvers<void>();
  // A target that answers neither yes nor no.
  const connectNever = (options: { signal?: AbortSignal }) => {
    connecting.resolve();
    return new Promise<never>((_, reject) => {
      options.signal?.addEventListener("abort", () => reject(options.signal!.reason));
    });
  };
  try {
    Deno.connect = connectNever as typeof connect;
    await session.openStream();
    await connecting.promise;
    session.abort();
    await server.shutdown();
  } finally {
    Deno.connect = connect;
  }
  assertEquals(errors, []);
});

Deno.test("tunnel: a signal has no listener left on it afterwards", async () => {
  const { signal } = new AbortController();
  const listening: unknown[] = [];
  const { addEventListener, removeEventListener } = signal;
  signal.addEventListener = (...args: Parameters<typeof addEventListener>) => {
    listening.push(args[1]);
    addEventListener.apply(signal, args);
  };
  signal.removeEventListener = (...args: Parameters<typeof removeEventListener>) => {
    const index = listening.indexOf(args[1]);
    if (index >= 0) listening.splice(index, 1);
    removeEventListener.apply(signal, args);
  };
  const { shutdown } = await makeTunnel(nowhere(), { signal });
  assertGreater(listening.length, 1);
  await shutdown();
  assertEquals(listening, []);
  await assertRejects(() => openTunnel({ connect: nowhere(), signal }));
  assertEquals(listening, []);
});

Deno.test("tunnel: options that are not what they must be are refused at once", async () => {
  const places = [
    "",
    ":0",
    "localhost",
    "a b:1",
    "::1:1",
    "[::g]:1",
    "256.0.0.1:1",
    "a:65536",
    "a:x",
    "-1",
    "unix:",
    "1.5",
  ];
  for (const place of places) {
    assertThrows(() => serveTunnel({ listen: place, target: "1" }), RangeError, "listen ");
    assertThrows(() => serveTunnel({ listen: FREE, target: place }), RangeError, "target ");
    assertThrows(() => serveTunnel({ listen: FREE, allow: [place] }), RangeError, "allow ");
    assertThrows(() => serveTunnel({ listen: FREE, allowListen: [place] }), RangeError, "allowListen ");
    await assertRejects(() => openTunnel({ connect: place }), RangeError, "connect ");
    await assertRejects(() => openTunnel({ connect: "1", forward: [place] }), RangeError, "forward ");
    await assertRejects(() => openTunnel({ connect: "1", forward: [`0=${place}`] }), RangeError, "forward ");
    await assertRejects(() => openTunnel({ connect: "1", reverse: [`0=${place}`] }), RangeError, "reverse ");
    await assertRejects(() => openTunnel({ connect: "1", socks: [place] }), RangeError, "socks ");
  }
  assertThrows(() => serveTunnel({ listen: FREE, target: "127.0.0.1:0" }), RangeError, "a port from 1 to 65535");
  assertThrows(() => serveTunnel({ listen: FREE, allow: ["*"] }), RangeError, "allow ");
  await assertRejects(() => openTunnel({ connect: FREE }), RangeError, "a port from 1 to 65535");
  await assertRejects(() => openTunnel({ connect: "1", forward: ["0=0"] }), RangeError, "a port from 1 to 65535");
  await assertRejects(() => openTunnel({ connect: "1", reverse: ["0"] }), RangeError, "AT=TO");
  await assertRejects(() => openTunnel({ connect: "1", forward: ["0"], ca: "x" }), RangeError, "ca must be");
  await assertRejects(() => openTunnel({ connect: "1", reverse: ["0=1", "0=2"] }), RangeError, "same place");
  assertThrows(() => serveTunnel({ listen: FREE, target: "1", cert: "x" }), RangeError, "cert and key");
  assertThrows(() => serveTunnel({ listen: FREE, target: "1", key: "x" }), RangeError, "cert and key");
  assertThrows(() => serveTunnel({ listen: FREE, target: "1", cert: "x", key: "y" }), RangeError, "cert and key");
  assertThrows(() => serveTunnel({ listen: FREE, target: "1", allow: ["*:*"] }), RangeError, "leave out");
  assertThrows(() => serveTunnel({ listen: FREE, target: "1", allowListen: ["*:*"] }), RangeError, "leave out");
});

Deno.test("tunnel: an address in use and a server that is not there are said so", async () => {
  const target = nowhere();
  await using server = serveTunnel({ listen: FREE, target });
  const inUse = `Cannot listen on ${server.addr}: address in use`;
  assertEquals(assertThrows(() => serveTunnel({ listen: server.addr, target }), Error).message, inUse);
  const opening = openTunnel({ connect: server.addr, forward: [FREE, server.addr] });
  assertEquals((await assertRejects(() => opening, Error)).message, inUse);
  const lost = `Cannot connect to ${target}: connection refused`;
  const missing = openTunnel({ connect: target, forward: [FREE] });
  assertEquals((await assertRejects(() => missing, Error)).message, lost);
});

// Where the client says.

Deno.test("tunnel: a forward goes where it says, if the server allows that", async () => {
  const web = serveFiles();
  await using echo = makeEcho();
  await using pair = await makePair(
    { allow: [at(web.addr), echo.addr] },
    { forward: [`0=${web.addr.port}`, `${FREE}=${echo.addr}`] },
  );
  const { client, server, logs } = pair;
  await fetchFiles(client.addrs[0]!, SIZES);
  using connection = await dial(client.addrs[1]!);
  assertEquals(await say(connection, "hello"), "hello");
  connection.close();
  await client.shutdown();
  await server.shutdown();
  const { connections, streams } = server.stats();
  assertEquals({ connections, streams }, { connections: 1, streams: SIZES.length + 1 });
  assertEquals([...logs.client.messages(), ...logs.server.messages()], []);
  await web.shutdown();
});

Deno.test("tunnel: what is not allowed ends the local connection at once, is told at both ends, and both live", async () => {
  await using echo = makeEcho();
  const forbidden = nowhere();
  const asked = { forward: [`0=${forbidden}`, `0=${echo.addr}`] };
  await using pair = await makePair({ allow: [echo.addr] }, asked);
  const { client, logs } = pair;
  using refused = await dial(client.addrs[0]!);
  assertEquals(await refused.read(new Uint8Array(1)), null);
  await Promise.all([logs.client.until(/not allowed/), logs.server.until(/not allowed/)]);
  for (const log of [logs.client, logs.server]) {
    assertEquals(log.errors.length, 1);
    assert(log.messages()[0]!.includes(forbidden), log.messages()[0]);
  }
  using connection = await dial(client.addrs[1]!);
  assertEquals(await say(connection, "still here"), "still here");
  connection.close();
});

Deno.test("tunnel: connect gives a connection with a target, or says why not", async () => {
  await using echo = makeEcho();
  const dead = nowhere();
  await using pair = await makePair({ allow: [echo.addr, dead] });
  const { client } = pair;
  const connection = await client.connect(echo.addr);
  assertEquals(await say(connection, "hello"), "hello");
  await connection.closeWrite();
  assertEquals(await connection.read(new Uint8Array(1)), null);
  connection.close();
  const refused = await assertRejects(() => client.connect("127.0.0.1:1"), TunnelRefusedError, "not allowed");
  assertEquals(refused.status, 403);
  const failed = await assertRejects(() => client.connect(dead), TunnelRefusedError, "connection refused");
  assertEquals(failed.status, 502);
  await assertRejects(() => client.connect("nobody"), RangeError);
  await assertRejects(() => client.connect("127.0.0.1:0"), RangeError);
});

Deno.test("tunnel: connect without a target is for a server that has one", async () => {
  await using echo = makeEcho();
  await using pair = await makePair({ target: echo.addr });
  const connection = await pair.client.connect();
  assertEquals(await say(connection, "hello"), "hello");
  connection.close();
});

/** The status with which a server that allows this refuses to connect there, 502 if it only could not. */
async function statusOf(allow: string[], target: string): Promise<number> {
  await using pair = await makePair({ allow });
  return (await assertRejects(() => pair.client.connect(target), TunnelRefusedError)).status;
}

Deno.test("tunnel: allow compares host and port, of which either may be any", async () => {
  const dead = nowhere();
  const port = portOf(dead);
  const other = port === 1 ? 2 : 1;
  const cases: [rule: string, target: string, isAllowed: boolean][] = [
    [dead, dead, true],
    [`${port}`, dead, true],
    [dead, `${port}`, true],
    [dead, `127.0.0.1:${other}`, false],
    [dead, `localhost:${port}`, false],
    [dead, `127.0.0.2:${port}`, false],
    [`*:${port}`, dead, true],
    [`*:${port}`, `localhost:${port}`, true],
    [`*:${port}`, `127.0.0.1:${other}`, false],
    ["127.0.0.1:*", dead, true],
    ["127.0.0.1:*", `localhost:${port}`, false],
    ["*:*", dead, true],
    ["*:*", `[::1]:${port}`, true],
    ["*:*", "unix:/nowhere/at/all", false],
    ["LocalHost:*", `localhost:${port}`, true],
    [`localhost:${port}`, `LOCALHOST:${port}`, true],
    [`[::1]:${port}`, `[0:0:0:0:0:0:0:1]:${port}`, true],
    [`[0:0:0:0:0:0:0:1]:${port}`, `[::1]:${port}`, true],
    ["[::1]:*", `[0::0:1]:${port}`, true],
    [`[::1]:${port}`, `[::2]:${port}`, false],
    [`[::1]:${port}`, dead, false],
    ["unix:/nowhere/at/all", "unix:/nowhere/at/all", true],
    ["unix:/nowhere/at/all", "unix:/nowhere/at", false],
    ["unix:/nowhere/at/all", dead, false],
  ];
  for (const [rule, target, isAllowed] of cases) {
    assertEquals({ rule, target, status: await statusOf([rule], target) }, {
      rule,
      target,
      status: isAllowed ? 502 : 403,
    });
  }
  assertEquals(await statusOf([], dead), 403);
  assertEquals(await statusOf(["127.0.0.3:1", dead], dead), 502, "any rule will do");
});

/** Opens a stream by hand, says this, and gives the head of what comes back and the stream. */
async function askByHand(session: Session, request: string) {
  const stream = await session.openStream();
  await writeAll(stream, bytes(request));
  return { stream, head: text(await readHead(stream)) };
}

Deno.test("tunnel: CONNECT by hand is answered, and then everything belongs to the connection", async () => {
  await using echo = makeEcho();
  await using server = serveTunnel({ listen: FREE, allow: ["127.0.0.1:*"] });
  const session = Session.client(await dial(server.addr));
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
  const session = Session.client(await dial(server.addr));
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
  const session = Session.client(await dial(server.addr));
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
  const session = Session.client(await dial(server.addr), { keepAliveInterval: Infinity });
  const stream = await session.openStream();
  assertEquals(await stream.read(new Uint8Array(1)), null);
  await logs.server.until(/kept us waiting/);
  stream.close();
  await session.close();
  using connection = await dial(client.addrs[0]!);
  assertEquals(await isEnded(connection), true);
  await logs.client.until(/kept us waiting/);
});

Deno.test("tunnel: a client that asks and is gone leaves nothing open", async () => {
  await using echo = makeEcho();
  const log = makeLog();
  const place = nowhere();
  await using server = serveTunnel({ listen: FREE, allow: ["*:*"], allowListen: ["*:*"], ...log.options });
  for (const request of [`BIND ${place} HTTP/1.1\r\n\r\n`, `CONNECT ${echo.addr} HTTP/1.1\r\n\r\n`]) {
    for (let n = 0; n < 10; n++) {
      const session = Session.client(await dial(server.addr));
      const stream = await session.openStream();
      await writeAll(stream, bytes(request));
      session.abort();
    }
  }
  await server.shutdown();
  assertEquals(await isRefused(() => dial(place)), true);
});

// The secret.

Deno.test("tunnel: who knows the secret gets through, and who does not is told after a second", async () => {
  await using echo = makeEcho();
  await using pair = await makePair({ allow: [echo.addr], secret: "open-sesame" }, { secret: "open-sesame" });
  const { server, client, logs } = pair;
  for (const secret of ["open-Sesame", undefined]) {
    await using other = await openTunnel({ connect: server.addr, secret });
    const began = performance.now();
    const error = await assertRejects(() => other.connect(echo.addr), TunnelRefusedError, "secret");
    assertGreater(performance.now() - began, 950);
    assertEquals(error.status, 407);
  }
  assertEquals(logs.server.errors.length, 2, "one for each");
  for (const message of logs.server.messages()) {
    assertMatch(message, /secret/);
    assert(!message.includes("esame"), "secrets are not for the log");
  }
  const connection = await client.connect(echo.addr);
  assertEquals(await say(connection, "hello"), "hello");
  connection.close();
});

Deno.test("tunnel: who does not know the secret has nothing listened for", async () => {
  const log = makeLog();
  await using server = serveTunnel({ listen: FREE, allowListen: ["*:*"], secret: "right", ...log.options });
  for (const secret of ["wrong", undefined]) {
    const opening = openTunnel({ connect: server.addr, reverse: ["0=1"], secret });
    assertEquals((await assertRejects(() => opening, TunnelRefusedError)).status, 407);
  }
  assertEquals(log.events.filter((line) => line.includes("listening")), []);
  const client = await openTunnel({ connect: server.addr, reverse: ["0=1"], secret: "right", onError() {} });
  assertEquals(await isRefused(() => dial(client.addrs[0]!)), true);
  await client.shutdown();
});

Deno.test("tunnel: a server does not wait for a wrong secret's second to end", async () => {
  using _delays = changeDelays((delay) => delay === 1000 ? 1_000_000 : delay);
  const log = makeLog();
  const server = serveTunnel({ listen: FREE, allow: ["*:*"], secret: "right", ...log.options });
  const client = await openTunnel({ connect: server.addr, secret: "wrong", reconnect: false });
  const refused = assertRejects(() => client.connect("1"));
  await log.until(/^connection from/);
  await server.shutdown({ timeout: 50 });
  await refused;
  await client.shutdown();
});

Deno.test("tunnel: a secret is printable ASCII without spaces, and there for those who say where to", async () => {
  for (const secret of ["", " ", "a b", "a\n", "a\r\nX: y", "\x7f", "pässword"]) {
    assertThrows(() => serveTunnel({ listen: FREE, allow: ["*:*"], secret }), RangeError, "secret");
    await assertRejects(() => openTunnel({ connect: "1", secret }), RangeError, "secret");
  }
  assertThrows(() => serveTunnel({ listen: FREE, target: "1", secret: "x" }), RangeError, "secret");
});

// TLS.

Deno.test("tunnel: by TLS, if the client trusts the server's certificate", async () => {
  const { ca, cert, key } = await certificates();
  await using echo = makeEcho();
  const web = serveFiles();
  const log = makeLog();
  await using server = serveTunnel({
    listen: FREE,
    allow: ["127.0.0.1:*"],
    allowListen: ["127.0.0.1:*"],
    secret: "x",
    cert,
    key,
    ...log.options,
  });
  const connect = `localhost:${portOf(server.addr)}`;
  for (const place of [server.addr, connect]) {
    const asked = { forward: [`0=${echo.addr}`], reverse: [`0=${at(web.addr)}`] };
    await using client = await openTunnel({ connect: place, ca, secret: "x", reconnect: false, ...asked });
    using connection = await dial(client.addrs[0]!);
    assertEquals(await say(connection, "hello"), "hello");
    connection.close();
    await fetchFiles(client.addrs[1]!, [1, 100_000]);
  }
  // The system trusts it not.
  const error = await assertRejects(() => openTunnel({ connect: server.addr, tls: true }), Error, "Cannot connect to ");
  assertMatch(error.message, /certificate/i);
  await log.until(/^A client's connection failed: /);
  await web.shutdown();
});

Deno.test("tunnel: a client without TLS at a server with it is told, and the server lives", async () => {
  const { ca, cert, key } = await certificates();
  await using echo = makeEcho();
  const log = makeLog();
  await using server = serveTunnel({ listen: FREE, allow: [echo.addr], cert, key, ...log.options });
  await using plain = await openTunnel({ connect: server.addr, reconnect: false });
  await assertRejects(() => plain.connect(echo.addr));
  await assertRejects(() => plain.finished, Error, "was lost");
  await log.until(/^A client's connection failed: /);
  await using client = await openTunnel({ connect: server.addr, ca });
  const connection = await client.connect(echo.addr);
  assertEquals(await say(connection, "still here"), "still here");
  connection.close();
});

Deno.test("tunnel: a client with TLS at a server without it rejects", async () => {
  const { ca } = await certificates();
  const log = makeLog();
  await using server = serveTunnel({ listen: FREE, target: "1", ...log.options });
  await assertRejects(() => openTunnel({ connect: server.addr, ca }), Error, "Cannot connect to ");
  await log.until(/^A client's connection failed: /);
});

Deno.test("tunnel: a signal ends a client that waits for a server to speak TLS", async () => {
  const asked = Promise.withResolvers<void>();
  const mayEnd = Promise.withResolvers<void>();
  await using silent = makeTarget(async (connection) => {
    await connection.read(new Uint8Array(1000));
    asked.resolve();
    await mayEnd.promise;
  });
  const { ca } = await certificates();
  const controller = new AbortController();
  const reason = new Error("that is enough");
  const opening = openTunnel({ connect: silent.addr, ca, signal: controller.signal }).catch((error) => error);
  try {
    await asked.promise;
    controller.abort(reason);
    assertStrictEquals(await promptly(opening), reason);
  } finally {
    mayEnd.resolve();
    await opening;
  }
});

// Who else could come.

Deno.test("tunnel: TLS is not for Unix sockets, and says so instead of doing without", async () => {
  const { cert, key, ca } = await certificates();
  const place = "unix:/nowhere/at/all";
  assertThrows(() => serveTunnel({ listen: place, allow: ["*:*"], cert, key }), RangeError, "TLS");
  await assertRejects(() => openTunnel({ connect: place, ca }), RangeError, "TLS");
  await assertRejects(() => openTunnel({ connect: place, tls: true }), RangeError, "TLS");
});

Deno.test("tunnel: any timeout is one", async () => {
  for (const timeout of [0, 1.5, NaN, -1]) {
    await using echo = makeEcho();
    await using server = serveTunnel({ listen: FREE, target: echo.addr, onError() {} });
    const client = await openTunnel({ connect: server.addr, forward: [FREE], onError() {} });
    using connection = await dial(client.addrs[0]!);
    assertEquals(await say(connection, "hello"), "hello");
    await promptly(client.shutdown({ timeout }));
    assertEquals(await isEnded(connection), true);
  }
});

Deno.test("tunnel: listening for others than this machine needs TLS and a secret, or insecure", async () => {
  const { cert, key } = await certificates();
  const everywhere = ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "example.com:0"];
  for (const listen of everywhere) {
    for (const some of [{}, { secret: "x" }, { cert, key }]) {
      assertThrows(() => serveTunnel({ listen, allow: ["*:*"], ...some }), RangeError, "insecure");
    }
    assertThrows(() => serveTunnel({ listen, target: "1" }), RangeError, "insecure");
    await assertRejects(() => openTunnel({ connect: "1", forward: [`${listen}=1`] }), RangeError, "insecure");
    await assertRejects(() => openTunnel({ connect: "1", forward: [listen] }), RangeError, "insecure");
    await assertRejects(() => openTunnel({ connect: "1", socks: [listen] }), RangeError, "insecure");
  }
  await using safe = serveTunnel({ listen: "0.0.0.0:0", allow: ["*:*"], secret: "x", cert, key });
  assertMatch(safe.addr, /^0\.0\.0\.0:[1-9]/);
  for (const listen of ["localhost:0", "127.1.2.3:0"]) {
    await using server = serveTunnel({ listen, allow: ["*:*"] });
    assertMatch(server.addr, /^127\./);
  }
});

Deno.test("tunnel: insecure is insecure, and works", async () => {
  await using echo = makeEcho();
  const asked = { forward: [`0.0.0.0:0=${echo.addr}`], socks: ["0.0.0.0:0"], insecure: true };
  await using server = serveTunnel({ listen: "0.0.0.0:0", allow: [echo.addr], insecure: true });
  await using client = await openTunnel({ connect: `127.0.0.1:${portOf(server.addr)}`, ...asked });
  for (const addr of client.addrs) assertMatch(addr, /^0\.0\.0\.0:[1-9]/);
  using connection = await dial(`127.0.0.1:${portOf(client.addrs[0]!)}`);
  assertEquals(await say(connection, "hello"), "hello");
  connection.close();
});

Deno.test("tunnel: a secret is not sent over a network without TLS, unless insecure", async () => {
  for (const connect of ["192.0.2.1:1", "[2001:db8::1]:1", "example.com:1"]) {
    await assertRejects(() => openTunnel({ connect, secret: "x" }), RangeError, "insecure");
  }
});

// The other way round.

Deno.test("tunnel: HTTP through reverse forwards, each to its own target", async () => {
  const web = serveFiles();
  await using echo = makeEcho();
  const place = nowhere();
  const reverse = [`0=${web.addr.port}`, `${place}=${echo.addr}`];
  await using pair = await makePair({ allowListen: ["127.0.0.1:*"] }, { reverse });
  const { client, server, logs } = pair;
  assertMatch(client.addrs[0]!, /^127\.0\.0\.1:[1-9]\d*$/);
  assertEquals(client.addrs[1], place);
  await fetchFiles(client.addrs[0]!, SIZES);
  using connection = await dial(place);
  await writeAll(connection, bytes("half-closed"));
  await connection.closeWrite();
  assertEquals(text(await readAll(connection)), "half-closed");
  await client.shutdown();
  await server.shutdown();
  assertEquals(client.stats().streams, SIZES.length + 1);
  assertEquals([...logs.client.messages(), ...logs.server.messages()], []);
  await web.shutdown();
});

Deno.test("tunnel: a reverse forward that the server does not allow rejects", async () => {
  const [allowed, other] = [nowhere(), nowhere()];
  const log = makeLog();
  const local = nowhere();
  await using server = serveTunnel({ listen: FREE, allow: ["*:*"], allowListen: [allowed], ...log.options });
  const opening = openTunnel({ connect: server.addr, forward: [local], reverse: [`${allowed}=1`, `${other}=1`] });
  const error = await assertRejects(() => opening, TunnelRefusedError, "not allowed");
  assertEquals(error.status, 403);
  assertEquals(log.messages().filter((line) => line.includes("not allowed")).length, 1);
  // Nothing of it is left.
  await log.until(/^no longer listening on /);
  for (const addr of [local, allowed, other]) assertEquals(await isRefused(() => dial(addr)), true);
});

Deno.test("tunnel: a reverse forward where the server cannot listen rejects", async () => {
  await using server = serveTunnel({ listen: FREE, allowListen: ["*:*"], onError() {} });
  const opening = openTunnel({ connect: server.addr, reverse: [`${server.addr}=1`] });
  const error = await assertRejects(() => opening, TunnelRefusedError, "address in use");
  assertEquals(error.status, 502);
});

Deno.test("tunnel: a server listens for a client until that is gone", async () => {
  const place = nowhere();
  const log = makeLog();
  await using server = serveTunnel({ listen: FREE, allowListen: ["*:*"], ...log.options });
  for (const end of ["shutdown", "signal"]) {
    const controller = new AbortController();
    const { signal } = controller;
    const client = await openTunnel({ connect: server.addr, reverse: [`${place}=1`], signal });
    if (end === "signal") controller.abort();
    else await client.shutdown();
    await client.finished;
    await log.until(/^no longer listening on /, end === "signal" ? 2 : 1);
    assertEquals(await isRefused(() => dial(place)), true);
    Deno.listen(parse(place)).close();
  }
});

Deno.test("tunnel: a server that shuts down listens for nobody", async () => {
  await using echo = makeEcho();
  await using pair = await makePair({ allowListen: ["*:*"] }, { reverse: [`0=${echo.addr}`] });
  const { client, server } = pair;
  using connection = await dial(client.addrs[0]!);
  assertEquals(await say(connection, "before"), "before");
  const finished = server.shutdown();
  assertEquals(await isRefused(() => dial(client.addrs[0]!)), true);
  assertEquals(await say(connection, "after"), "after");
  connection.close();
  await finished;
});

Deno.test("tunnel: a client that shuts down waits for what its reverse forwards carry", async () => {
  await using echo = makeEcho();
  await using pair = await makePair({ allowListen: ["*:*"] }, { reverse: [`0=${echo.addr}`] });
  const { client, logs } = pair;
  using connection = await dial(client.addrs[0]!);
  assertEquals(await say(connection, "before"), "before");
  const finished = client.shutdown();
  await logs.server.until(/^no longer listening on /);
  assertEquals(await isRefused(() => dial(client.addrs[0]!)), true);
  assertEquals(await say(connection, "after"), "after");
  connection.close();
  await finished;
});

Deno.test("tunnel: a reverse forward's target that refuses ends the connection at once, and the tunnel lives", async () => {
  const target = nowhere();
  await using pair = await makePair({ allowListen: ["*:*"] }, { reverse: [`0=${target}`] });
  const { client, logs } = pair;
  for (const times of [1, 2]) {
    using connection = await dial(client.addrs[0]!);
    assertEquals(await isEnded(connection), true);
    await logs.client.until(/connection refused/, times);
    await logs.server.until(/./, times);
  }
  assert(logs.client.messages()[0]!.includes(target), logs.client.messages()[0]);
  const web = serveFiles(parse(target));
  await fetchFiles(client.addrs[0]!, [5]);
  await web.shutdown();
});

// SOCKS.

/** The bytes of a SOCKS client that will be anyone, and wants a command with an address of a kind. */
function socksRequest(command: number, kind: number, address: Uint8Array | number[], port: number): Uint8Array {
  return concat([new Uint8Array([5, command, 0, kind, ...address]), new Uint8Array([port >> 8, port & 255])]);
}

const HELLO = new Uint8Array([5, 1, 0]);
const IPV4 = [127, 0, 0, 1];
const named = (name: string) => [name.length, ...bytes(name)];

/** Says hello and this to a SOCKS server, and gives the code that it answers with. */
async function askSocks(connection: Deno.TcpConn, request: Uint8Array): Promise<number> {
  await writeAll(connection, HELLO);
  assertEquals(Array.from(await readSome(connection, 2)), [5, 0]);
  await writeAll(connection, request);
  const [version, code, ...rest] = await readSome(connection, 10);
  assertEquals({ version, rest }, { version: 5, rest: [0, 1, 0, 0, 0, 0, 0, 0] });
  return code!;
}

Deno.test("tunnel: SOCKS, to an address and to a name", async () => {
  await using echo = makeEcho();
  const port = portOf(echo.addr);
  await using pair = await makePair({ allow: [echo.addr, "localhost:*"] }, { socks: [FREE] });
  for (const [kind, address] of [[1, IPV4], [3, named("localhost")], [3, named("127.0.0.1")]] as const) {
    using connection = await dial(pair.client.addrs[0]!);
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
  using connection = await dial(pair.client.addrs[0]!);
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
    using connection = await dial(pair.client.addrs[0]!);
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
    using connection = await dial(client.addrs[0]!);
    assertEquals({ what, code: await askSocks(connection, request) }, { what, code });
    assertEquals(await isEnded(connection), true);
    await logs.client.until(/./, index + 1);
  }
  assertEquals(logs.client.errors.length, cases.length);
  using connection = await dial(client.addrs[0]!);
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
    using connection = await dial(client.addrs[0]!);
    await writeAll(connection, said);
    if (said === cut) await connection.closeWrite();
    if (said === password) assertEquals(Array.from(await readSome(connection, 2)), [5, 255]);
    assertEquals(await isEnded(connection), true);
    await logs.client.until(/./, index + 1);
  }
  assertEquals(logs.client.errors.length, 4);
  assertEquals(logs.server.errors, []);
  using connection = await dial(client.addrs[0]!);
  assertEquals(await askSocks(connection, socksRequest(1, 1, IPV4, portOf(echo.addr))), 0);
  assertEquals(await say(connection, "still here"), "still here");
  connection.close();
});

Deno.test("tunnel: a client that ends waits for no SOCKS client that has not said where to", async () => {
  for (const how of ["signal", "timeout"]) {
    const controller = new AbortController();
    await using pair = await makePair({ allow: ["*:*"] }, { socks: [FREE], signal: controller.signal });
    using connection = await dial(pair.client.addrs[0]!);
    await writeAll(connection, HELLO);
    assertEquals(Array.from(await readSome(connection, 2)), [5, 0]);
    if (how === "signal") controller.abort();
    else pair.client.shutdown({ timeout: 50 });
    await promptly(pair.client.finished);
    assertEquals(await isEnded(connection), true);
  }
});

// Unix sockets.

Deno.test("tunnel: Unix sockets at every end, gone from the disk afterwards", async () => {
  await using folder = await makeFolder("tunnel");
  const place = (name: string) => `unix:${folder.path}/${name}`;
  const listener = Deno.listen({ transport: "unix", path: `${folder.path}/target` });
  const answering = (async () => {
    for await (const connection of listener) await connection.readable.pipeTo(connection.writable);
  })();
  const log = makeLog();
  const options = { listen: place("server"), allow: [place("target")], allowListen: [place("reverse")] };
  const server = serveTunnel({ ...options, ...log.options });
  const client = await openTunnel({
    connect: place("server"),
    forward: [`${place("forward")}=${place("target")}`],
    socks: [place("socks")],
    reverse: [`${place("reverse")}=${place("target")}`],
    ...log.options,
  });
  assertEquals(server.addr, place("server"));
  assertEquals(client.addr, place("server"));
  assertEquals(client.addrs, ["forward", "socks", "reverse"].map(place));
  assertEquals(namesIn(folder.path), ["forward", "reverse", "server", "socks", "target"]);
  for (const name of ["forward", "reverse"]) {
    using connection = await Deno.connect({ transport: "unix", path: `${folder.path}/${name}` });
    assertEquals(await say(connection, "hello"), "hello");
    await connection.closeWrite();
    assertEquals(await connection.read(new Uint8Array(1)), null);
  }
  await client.shutdown();
  await log.until(/^no longer listening on /);
  assertEquals(namesIn(folder.path), ["server", "target"]);
  await server.shutdown();
  assertEquals(namesIn(folder.path), ["target"]);
  listener.close();
  await answering;
  assertEquals(log.errors, []);
  for (const line of log.events) assert(!/undefined|null/.test(line), line);
  assert(log.events.includes("connection from a local process"), log.events.join());
});

Deno.test("tunnel: a Unix socket that is in use is left alone", async () => {
  await using folder = await makeFolder("tunnel");
  const listen = `unix:${folder.path}/socket`;
  await using echo = makeEcho();
  await using _server = serveTunnel({ listen, target: echo.addr });
  assertThrows(() => serveTunnel({ listen, target: "1" }), Error, `Cannot listen on ${listen}: address in use`);
  await using client = await openTunnel({ connect: listen });
  const connection = await client.connect();
  assertEquals(await say(connection, "still here"), "still here");
  connection.close();
});

// A connection that is lost.

Deno.test("tunnel: a client connects again, and everything works as before", async () => {
  await using echo = makeEcho();
  const web = serveFiles();
  const controller = new AbortController();
  const place = nowhere();
  const options = { allow: [echo.addr], allowListen: [place] };
  const first = serveTunnel({ listen: FREE, signal: controller.signal, ...options });
  const log = makeLog();
  const asked = { forward: [`0=${echo.addr}`], reverse: [`${place}=${at(web.addr)}`] };
  const client = await openTunnel({ connect: first.addr, ...asked, ...log.options });
  using before = await dial(client.addrs[0]!);
  assertEquals(await say(before, "before"), "before");
  await fetchFiles(place, [1000]);
  controller.abort();
  assertEquals(await isEnded(before), true);
  await first.finished;
  await log.until(/^The connection to .+ was lost: /);
  using between = await dial(client.addrs[0]!);
  assertEquals(await isEnded(between), true);
  await log.until(/^There is no connection to .+ now$/);
  await assertRejects(() => client.connect(echo.addr), Error, "There is no connection to ");
  await log.until(/^Cannot connect to .+: connection refused$/, 2);

  const serverLog = makeLog();
  await using second = serveTunnel({ listen: first.addr, ...options, ...serverLog.options });
  await log.until(new RegExp(`^connected to ${second.addr} again$`));
  using after = await dial(client.addrs[0]!);
  assertEquals(await say(after, "after"), "after");
  after.close();
  await serverLog.until(/^listening on /);
  await fetchFiles(place, [1000]);
  await client.shutdown();
  await client.finished;
  assertEquals(client.stats().connections, 2);
  await web.shutdown();
});

Deno.test("tunnel: a client that says it is connected again is", async () => {
  await using echo = makeEcho();
  const controller = new AbortController();
  const { signal } = controller;
  const first = serveTunnel({ listen: FREE, target: echo.addr, signal });
  const again = Promise.withResolvers<string>();
  const onEvent = () => {
    const said = client.connect().then(async (connection) => {
      const answer = await say(connection, "hello");
      connection.close();
      return answer;
    });
    again.resolve(said);
  };
  const client = await openTunnel({ connect: first.addr, onEvent, onError() {} });
  controller.abort();
  await first.finished;
  await using _second = serveTunnel({ listen: first.addr, target: echo.addr });
  try {
    assertEquals(await again.promise, "hello");
  } finally {
    await client.shutdown();
  }
});

Deno.test("tunnel: a reverse forward whose port the server gives anew is where addrs says", async () => {
  await using echo = makeEcho();
  const controller = new AbortController();
  const first = serveTunnel({ listen: FREE, allowListen: ["127.0.0.1:*"], signal: controller.signal });
  const log = makeLog();
  const client = await openTunnel({ connect: first.addr, reverse: [`0=${echo.addr}`], ...log.options });
  const before = client.addrs[0]!;
  // It is taken now, so that the new one is another.
  controller.abort();
  await first.finished;
  using _taken = Deno.listen(parse(before));
  const serverLog = makeLog();
  await using _second = serveTunnel({ listen: first.addr, allowListen: ["127.0.0.1:*"], ...serverLog.options });
  await serverLog.until(/^listening on /);
  const [, now] = /^listening on (\S+)/.exec(serverLog.events.find((line) => line.startsWith("listening"))!)!;
  using connection = await dial(now!);
  // The answer comes by way of the client, which knows of it by then.
  assertEquals(await say(connection, "hello"), "hello");
  assertEquals(client.addrs, [now!]);
  connection.close();
  await client.shutdown();
});

Deno.test("tunnel: shutdown and a signal end a client at once that waits to connect again", async () => {
  for (const how of ["shutdown", "signal"]) {
    const [serving, opening] = [new AbortController(), new AbortController()];
    const server = serveTunnel({ listen: FREE, allowListen: ["*:*"], signal: serving.signal });
    const log = makeLog();
    const asked = { forward: [FREE], socks: [FREE], reverse: ["0=1"], signal: opening.signal };
    const client = await openTunnel({ connect: server.addr, ...asked, ...log.options });
    // It would wait for more than a quarter of an hour.
    using _delays = changeDelays((delay) => delay > 40 ? 1_000_000 : delay);
    serving.abort();
    await log.until(/was lost: /);
    if (how === "signal") opening.abort();
    else await client.shutdown();
    await client.finished;
    assertEquals(log.events, []);
    assertEquals(await isRefused(() => dial(client.addrs[0]!)), true);
    await server.finished;
  }
});

Deno.test("tunnel: a client ends at once with a local connection that reads nothing", async () => {
  for (const how of ["signal", "timeout", "lost"]) {
    await using echo = makeEcho();
    const [opening, serving] = [new AbortController(), new AbortController()];
    await using server = serveTunnel({ listen: FREE, target: echo.addr, signal: serving.signal });
    const flood = makeFlood();
    const asked = { forward: [FREE], signal: opening.signal, reconnect: false, onError() {} };
    await using client = await openChanged({ connect: server.addr, ...asked }, (listener) => {
      const { accept } = listener;
      listener.accept = async () => flood.change(await accept.call(listener));
    });
    const connection = await dial(client.addrs[0]!);
    try {
      await writeAll(connection, bytes("hello"));
      await flood.writing;
      if (how === "signal") opening.abort();
      else if (how === "timeout") client.shutdown({ timeout: 50 });
      else serving.abort();
      await promptly(client.finished.catch((error) => assertEquals(how, "lost", String(error))));
    } finally {
      connection.close();
      await flood.ended;
    }
  }
});

Deno.test("tunnel: a server ends at once with a target that reads nothing", async () => {
  const { connect } = Deno;
  for (const how of ["signal", "timeout", "lost"]) {
    const listener = Deno.listen(LOOPBACK);
    const controller = new AbortController();
    const { signal } = controller;
    const server = serveTunnel({ listen: FREE, target: at(listener.addr), signal, onError() {} });
    const session = Session.client(await dial(server.addr));
    const flood = makeFlood();
    Deno.connect = (async (options: Deno.ConnectOptions) => flood.change(await connect(options))) as typeof connect;
    const stream = await session.openStream();
    await stream.write(bytes("hello"));
    const target = await listener.accept();
    try {
      await flood.writing;
      if (how === "signal") controller.abort();
      else if (how === "lost") session.abort();
      const finished = how === "signal"
        ? server.finished
        : server.shutdown({ timeout: how === "timeout" ? 50 : undefined });
      await promptly(finished);
    } finally {
      Deno.connect = connect;
      target.close();
      listener.close();
      await flood.ended;
      session.abort();
      await server.finished;
    }
  }
});

/** A tunnel in which a stream has ended both ways, while not all of what came could be written to who asked for it. */
async function makeUnread(asked: Omit<OpenTunnelOptions, "connect"> = {}) {
  await using resources = new AsyncDisposableStack();
  const served = Promise.withResolvers<void>();
  const target = makeTarget(async (connection) => {
    await writeAll(connection, pattern(400_000));
    await connection.closeWrite();
    await readAll(connection);
    served.resolve();
  });
  // What a Unix socket takes does not grow: less than that, and the rest is less than a stream's window.
  const { path } = resources.use(await makeFolder("unread"));
  const pair = resources.use(await makePair({ target: target.addr }, { forward: [`unix:${path}/socket`], ...asked }));
  const local = resources.use(await Deno.connect({ transport: "unix", path: `${path}/socket` }));
  await local.closeWrite();
  await served.promise;
  await target.close();
  // All that came, and the frames of its end.
  while (pair.client.stats().received < pair.server.stats().sent || pair.server.stats().open > 0) await turn();
  await turn();
  const moved = resources.move();
  return { ...pair, [Symbol.asyncDispose]: () => moved.disposeAsync() };
}

Deno.test("tunnel: what nobody reads after both ends have ended it is cut by shutdown's timeout", async () => {
  await using pair = await makeUnread();
  assertEquals(pair.client.stats().open, 1);
  await promptly(pair.client.shutdown({ timeout: 50 }));
  assertEquals(pair.client.stats().open, 0);
  assertEquals(pair.logs.client.messages(), []);
});

Deno.test("tunnel: what nobody reads after both ends have ended it is cut by the signal", async () => {
  const controller = new AbortController();
  await using pair = await makeUnread({ signal: controller.signal });
  controller.abort();
  await promptly(pair.client.finished);
  assertEquals(pair.client.stats().open, 0);
});

/** A target on a Unix socket that does what the first byte says: d sends a megabyte, u never reads again, e echoes. */
function makeStaller(path: string) {
  const listener = Deno.listen({ transport: "unix", path });
  const open = new Set<Deno.UnixConn>();
  const answer = async (connection: Deno.UnixConn) => {
    const [kind] = await readSome(connection, 1);
    if (kind === 100) await writeAll(connection, pattern(1_000_000));
    else if (kind === 101) await connection.readable.pipeTo(connection.writable);
  };
  const accept = async () => {
    for await (const connection of listener) {
      open.add(connection);
      answer(connection).catch(() => {});
    }
  };
  const accepting = accept();
  const dispose = async () => {
    listener.close();
    for (const connection of open) {
      try {
        connection.close();
      } catch {
        // Its pipe has closed it.
      }
    }
    await accepting;
  };
  return { [Symbol.asyncDispose]: dispose };
}

for (const version of [1, 2] as const) {
  for (const [way, direction] of [["forward", "d"], ["forward", "u"], ["reverse", "d"], ["reverse", "u"]] as const) {
    const what = direction === "d" ? "visitors that do not read" : "targets that do not read";
    Deno.test(`tunnel: version ${version}, ${way}: a hundred ${what} leave others served, and one tunnel`, async () => {
      await using resources = new AsyncDisposableStack();
      const { path } = resources.use(await makeFolder("stalled"));
      resources.use(makeStaller(`${path}/target`));
      const places = [`unix:${path}/socket`, `unix:${path}/target`];
      const stop = new AbortController();
      const common = { signal: stop.signal, stalledStreamTimeout: version === 1 ? 300 : Infinity };
      await using pair = await makePair(
        { ...common, allow: [places[1]!], allowListen: [places[0]!] },
        { ...common, [way]: [places.join("=")], version },
      );
      using _stopping = { [Symbol.dispose]: () => stop.abort() };
      const visit = async (first: string) => {
        const connection = await Deno.connect({ transport: "unix", path: `${path}/socket` });
        resources.defer(() => connection.close());
        await writeAll(connection, bytes(first));
        return connection;
      };
      const echo = async (connection: Deno.UnixConn, word: string) => {
        await writeAll(connection, bytes(word));
        return text(await readSome(connection, word.length));
      };
      const bystander = await visit("e");
      assertEquals(await echo(bystander, "before"), "before");
      const writing: Promise<unknown>[] = [];
      for (let n = 0; n < 100; n++) {
        const visitor = await visit(direction);
        if (direction === "d") await visitor.read(new Uint8Array(1));
        else writing.push(writeAll(visitor, pattern(1_000_000)).catch(() => {}));
      }
      for (let n = 0; n < 5; n++) assertEquals(await echo(await visit("e"), `fresh ${n}`), `fresh ${n}`);
      assertEquals(await echo(bystander, "after"), "after");
      assertEquals(pair.client.stats().connections, 1, "the session was not lost");
      const log = [...pair.logs.client.messages(), ...pair.logs.server.messages()];
      if (version === 2) assertEquals(log, []);
      else for (const line of log) assertMatch(line, /^The connection (from|to) .* broke: stream \d+ stalled: /);
      resources.defer(async () => void await Promise.all(writing));
    });
  }
}

Deno.test("tunnel: a server that is silent when it should speak TLS is given up", async () => {
  using _delays = changeDelays((delay) => delay === 10_000 ? 0 : delay);
  const listener = Deno.listen(LOOPBACK);
  const accepting = listener.accept();
  const opening = openTunnel({ connect: at(listener.addr), tls: true, forward: [FREE] });
  const { message } = await assertRejects(() => opening, Error);
  assertMatch(message, /^Cannot connect to .*: it kept us waiting for 10000 ms$/);
  (await accepting).close();
  listener.close();
});

Deno.test("tunnel: a freeze does not use up the time of a client that was about to say what it wants", async () => {
  using time = new ManualClock();
  using _timers = runByClock();
  await using target = makeEcho();
  const log = makeLog();
  const server = serveTunnel({ listen: FREE, allow: [target.addr], ...log.options });
  const session = Session.client(await dial(server.addr));
  const [slow, silent] = [await session.openStream(), await session.openStream()];
  await slow.write(bytes(`CONNECT ${target.addr}`));
  await silent.write(bytes("CONNECT"));
  while (server.stats().received < session.stats().bytesSent || session.stats().bytesUnsent > 0) await turn();
  time.freeze(40_000);
  await time.advance(9000);
  await slow.write(bytes(" HTTP/1.1\r\n\r\n"));
  assertMatch(text(await promptly(readHead(slow))), /^HTTP\/1.1 200 /);
  await time.advance(1000);
  await log.until(/kept us waiting for 10000 ms/);
  slow.close();
  silent.close();
  await session.close();
  await server.shutdown();
});

Deno.test("tunnel: what a stranger says is shown without what a terminal would obey", async () => {
  const log = makeLog();
  const server = serveTunnel({ listen: FREE, allow: ["127.0.0.1:1"], ...log.options });
  const session = Session.client(await dial(server.addr));
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
  const session = Session.client(await dial(server.addr), { maxStreamBuffer: 1 });
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

// The command.

const SCRIPT = new URL("../tunnel.ts", import.meta.url).href;

function command(args: string[], options: Deno.CommandOptions = {}, allow = "-A"): Deno.Command {
  return new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-config", "--no-prompt", allow, SCRIPT, ...args],
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
    ...options,
    env: { NO_COLOR: "1", ...options.env },
  });
}

/** Runs the command to its end. */
async function run(...args: string[]) {
  const { code, stdout, stderr } = await command(args).output();
  return { code, stdout: text(stdout), stderr: text(stderr) };
}

/** Starts the command and waits until it listens, in so many places. */
async function start(
  args: string[],
  { places = 1, env = {}, allow }: { places?: number; env?: Record<string, string>; allow?: string } = {},
) {
  const watched = watch(command(args, { env }, allow).spawn());
  const [said] = await watched.until(new RegExp(`^(listening on \\S+\n){${places}}`, "m"));
  const addrs = said.trimEnd().split("\n").map((line) => line.slice("listening on ".length));
  return { ...watched, addr: addrs[0]!, addrs };
}

/** Both ends of a tunnel to one target, each in a process. */
async function startBoth(target: string, ...more: string[]) {
  const server = await start(["server", "--listen", "0", "--target", target]);
  const client = await start(["client", "--forward=0", `--connect=${server.addr}`, ...more]);
  const dispose = async () => {
    await client[Symbol.asyncDispose]();
    await server[Symbol.asyncDispose]();
  };
  return { server, client, [Symbol.asyncDispose]: dispose };
}

Deno.test("tunnel command: HTTP through two processes with one connection, ended in order by signals", async () => {
  const web = serveFiles();
  await using tunnel = await startBoth(at(web.addr));
  const { server, client } = tunnel;
  await fetchFiles(client.addr, SIZES);
  client.child.kill("SIGINT");
  assertEquals(await client.ended(), {
    code: 0,
    signal: null,
    stdout: `listening on ${client.addr}\n` +
      "shutting down within 30 seconds; Ctrl-C ends it at once\n" +
      "carried 60 streams over 1 connection\n",
    stderr: "",
  });
  server.child.kill("SIGTERM");
  const ended = await server.ended();
  assertEquals({ ...ended, stdout: ended.stdout.replace(/(from 127\.0\.0\.1:)\d+/, "$1PORT") }, {
    code: 0,
    signal: null,
    stdout: `listening on ${server.addr}\n` +
      "connection from 127.0.0.1:PORT\n" +
      "shutting down within 30 seconds; Ctrl-C ends it at once\n" +
      "carried 60 streams over 1 connection\n",
    stderr: "",
  });
  await web.shutdown();
});

Deno.test("tunnel command: --allow with --forward, --socks and --reverse", async () => {
  const web = serveFiles();
  const target = at(web.addr);
  await using server = await start(["server", "--listen=0", "--allow", target, "--allow", "*:1", "--allow-listen=*:*"]);
  const forwards = [`--forward=0=${target}`, "--forward", "0=127.0.0.1:2"];
  const args = ["client", `--connect=${server.addr}`, ...forwards, "--socks", "0", "--reverse", `0=${target}`];
  await using client = await start(args, { places: 4 });
  const [forward, forbidden, socks, reverse] = client.addrs;
  await fetchFiles(forward!, [1, 100_000]);
  await fetchFiles(reverse!, [2, 200_000]);
  using refused = await dial(forbidden!);
  assertEquals(await isEnded(refused), true);
  await Promise.all([client.until(/not allowed/, "stderr"), server.until(/not allowed/, "stderr")]);
  using connection = await dial(socks!);
  assertEquals(await askSocks(connection, socksRequest(1, 1, IPV4, web.addr.port)), 0);
  await writeAll(connection, bytes("GET /5 HTTP/1.0\r\n\r\n"));
  assertMatch(text(await readAll(connection)), /^HTTP\/1\.\d 200 /);
  connection.close();
  for (const { child, ended } of [client, server]) {
    child.kill("SIGTERM");
    const { code, stdout, stderr } = await ended();
    assertEquals(code, 0);
    assertMatch(stdout, /^carried 5 streams over 1 connection$/m);
    assertEquals(stderr.split("\n").length, 2, stderr);
  }
  await web.shutdown();
});

Deno.test("tunnel command: a signal waits for what is open, a second one does not", async () => {
  const target = makeEcho();
  await using tunnel = await startBoth(target.addr, "--once");
  const { server, client } = tunnel;
  const connection = await dial(client.addr);
  assertEquals(await say(connection, "before"), "before");
  server.child.kill("SIGTERM");
  await server.until(/^shutting down/m);
  assertEquals(await say(connection, "after"), "after");
  server.child.kill("SIGTERM");
  assertEquals((await server.ended()).signal, "SIGTERM");

  const { code, stdout, stderr } = await client.ended();
  assertEquals(code, 1);
  assertEquals(stdout, `listening on ${client.addr}\n`);
  assertMatch(stderr, new RegExp(`^the connection to ${server.addr} was lost: .+\n$`));
  assertEquals(await isEnded(connection), true);
  connection.close();
  await target.close();
});

Deno.test("tunnel command: a signal ends it in order though nobody reads what it prints any more", async () => {
  await using target = makeEcho();
  const child = command(["server", "--listen", "0", "--target", target.addr], { stderr: "null" }).spawn();
  const reader = lines(child.stdout).getReader();
  assertMatch((await reader.read()).value!, /^listening on /);
  await reader.cancel();
  child.kill("SIGINT");
  assertEquals((await child.status).code, 0);
});

Deno.test("tunnel command: --grace is how long a signal waits", async () => {
  for (const grace of [0, 1]) {
    await using target = makeEcho();
    await using tunnel = await startBoth(target.addr, `--grace=${grace}`);
    const { client } = tunnel;
    using connection = await dial(client.addr);
    assertEquals(await say(connection, "before"), "before");
    const began = performance.now();
    client.child.kill("SIGTERM");
    assertEquals(await isEnded(connection), true);
    assertGreater(performance.now() - began, grace * 950);
    const { code, stdout } = await client.ended();
    assertEquals(code, 0);
    assertMatch(stdout, new RegExp(`^shutting down within ${grace} seconds?; `, "m"));
  }
});

Deno.test("tunnel command: a client connects again to a server that was killed and is back", async () => {
  const web = serveFiles();
  const args = ["--allow", "127.0.0.1:*", "--allow-listen", "127.0.0.1:*"];
  await using first = await start(["server", "--listen", "0", ...args]);
  const place = nowhere();
  const asked = ["--forward", `0=${at(web.addr)}`, "--reverse", `${place}=${at(web.addr)}`];
  await using client = await start(["client", "--connect", first.addr, ...asked], { places: 2 });
  await fetchFiles(client.addr, [1, 10_000]);
  first.child.kill("SIGKILL");
  await first.ended();
  await client.until(/^the connection to \S+ was lost: /m, "stderr");
  using refused = await dial(client.addr);
  assertEquals(await isEnded(refused), true);

  await using second = await start(["server", "--listen", first.addr, ...args]);
  await client.until(new RegExp(`^connected to ${first.addr} again$`, "m"));
  await fetchFiles(client.addr, [2, 20_000]);
  await second.until(new RegExp(`^listening on ${place} for \\S+$`, "m"));
  await fetchFiles(place, [3, 30_000]);
  client.child.kill("SIGTERM");
  const { code, stdout } = await client.ended();
  assertEquals(code, 0);
  assertMatch(stdout, /^carried 6 streams over 2 connections$/m);
  await web.shutdown();
});

Deno.test("tunnel command: a signal ends a client at once that waits to connect again", async () => {
  await using tunnel = await startBoth(nowhere());
  const { server, client } = tunnel;
  server.child.kill("SIGKILL");
  await client.until(/^cannot connect to \S+: connection refused$/m, "stderr");
  client.child.kill("SIGTERM");
  assertEquals((await client.ended()).code, 0);
});

Deno.test("tunnel command: a secret from a file or from the environment", async () => {
  await using echo = makeEcho();
  await using folder = await makeFolder("tunnel");
  const [right, wrong] = [`${folder.path}/right`, `${folder.path}/wrong`];
  await Deno.writeTextFile(right, "open-sesame\n");
  await Deno.writeTextFile(wrong, "open-simsim\n");
  const serve = ["server", "--listen", "0", "--allow", echo.addr];
  const env = { SLUICE_SECRET: "open-sesame" };
  await using byFile = await start([...serve, "--secret", right]);
  await using byEnv = await start(serve, { env });
  for (const server of [byFile, byEnv]) {
    const ask = ["client", "--connect", server.addr, "--forward", `0=${echo.addr}`];
    for (const [more, given] of [[["--secret", right], {}], [[], env], [["--secret", right], { SLUICE_SECRET: "x" }]]) {
      await using client = await start([...ask, ...more as string[]], { env: given as Record<string, string> });
      using connection = await dial(client.addr);
      assertEquals(await say(connection, "hello"), "hello");
    }
  }
  const ask = ["client", "--connect", byFile.addr, "--forward", `0=${echo.addr}`];
  await using stranger = await start([...ask, "--secret", wrong], { env });
  using connection = await dial(stranger.addr);
  assertEquals(await isEnded(connection), true);
  await stranger.until(/secret.*\n/, "stderr");
  byFile.child.kill("SIGTERM");
  const { code, stderr } = await byFile.ended();
  assertEquals(code, 0);
  assertMatch(stderr, /^[^\n]*secret[^\n]*\n$/);
  assert(!stderr.includes("simsim") && !stderr.includes("sesame"), stderr);
});

Deno.test("tunnel command: the network is all it needs to be allowed, where it is given no file", async () => {
  await using echo = makeEcho();
  const allow = "--allow-net";
  await using server = await start(["server", "--listen", "0", "--allow", echo.addr], { allow });
  await using client = await start(["client", "--connect", server.addr, "--forward", `0=${echo.addr}`], { allow });
  using connection = await dial(client.addr);
  assertEquals(await say(connection, "hello"), "hello");
});

Deno.test("tunnel command: TLS", async () => {
  const web = serveFiles();
  const file = (name: string) => `${import.meta.dirname}/fixtures/tls/${name}`;
  const keys = ["--cert", file("localhost.pem"), "--key", file("localhost.key")];
  await using server = await start(["server", "--listen", "0", "--target", at(web.addr), ...keys]);
  const ask = ["client", "--connect", server.addr, "--forward", "0"];
  await using client = await start([...ask, "--ca", file("ca.pem")]);
  await fetchFiles(client.addr, [1, 100_000]);
  const { code, stdout, stderr } = await run(...ask, "--tls");
  assertEquals({ code, stdout }, { code: 1, stdout: "" });
  assertMatch(stderr, /^cannot connect to .*certificate.*\n$/i);
  await web.shutdown();
});

Deno.test("tunnel command: --smux 1", async () => {
  const web = serveFiles();
  await using tunnel = await startBoth(at(web.addr), "--smux", "1");
  await fetchFiles(tunnel.client.addr, [1, 100_000]);
  await web.shutdown();
});

Deno.test("tunnel command: stdin and stdout are forwarded, and nothing else is on stdout", async () => {
  const web = serveFiles();
  await using echo = makeEcho();
  await using allowing = serveTunnel({ listen: FREE, allow: [at(web.addr), echo.addr] });
  const args = ["client", "--connect", allowing.addr];
  const child = command([...args, "--forward", `-=${at(web.addr)}`], { stdin: "piped" }).spawn();
  await using watched = watch(child);
  const stdin = child.stdin.getWriter();
  await stdin.write(bytes("GET /0 HTTP/1.0\r\n\r\n"));
  await watched.until(/\r\n\r\n/);
  await stdin.close();
  const { code, stdout, stderr } = await watched.ended();
  assertEquals({ code, stderr }, { code: 0, stderr: "" });
  assertMatch(stdout, /^HTTP\/1\.\d 200 OK\r\n([^\r\n]+\r\n)*\r\n$/);

  // What is piped in comes to its end, and so does what comes out.
  const much = pattern(1_000_000, 3);
  const other = command([...args, `--forward=-=${echo.addr}`], { stdin: "piped" }).spawn();
  const [output] = await Promise.all([other.output(), new Blob([much]).stream().pipeTo(other.stdin)]);
  assertEquals({ code: output.code, stderr: text(output.stderr) }, { code: 0, stderr: "" });
  assertEquals(await sha256(new Uint8Array(output.stdout)), await sha256(much));
  await web.shutdown();
});

Deno.test("tunnel command: stdin and stdout at a server with one target", async () => {
  await using echo = makeEcho();
  await using server = serveTunnel({ listen: FREE, target: echo.addr });
  const child = command(["client", "--connect", server.addr, "--forward", "-"], { stdin: "piped" }).spawn();
  const stdin = child.stdin.getWriter();
  stdin.write(bytes("hello")).then(() => stdin.close()).catch(() => {});
  const { code, stdout, stderr } = await child.output();
  assertEquals({ code, stdout: text(stdout), stderr: text(stderr) }, { code: 0, stdout: "hello", stderr: "" });
});

Deno.test("tunnel command: stdin and stdout that cannot be forwarded end it, exit code 1", async () => {
  const dead = nowhere();
  await using server = serveTunnel({ listen: FREE, allow: [dead], onError() {} });
  for (const [target, why] of [[dead, /connection refused/], ["127.0.0.1:1", /not allowed/]] as const) {
    const child = command(["client", "--connect", server.addr, "--forward", `-=${target}`], { stdin: "piped" }).spawn();
    await using watched = watch(child);
    const { code, stdout, stderr } = await promptly(watched.ended());
    assertEquals({ code, stdout }, { code: 1, stdout: "" });
    assertMatch(stderr, why);
    assertEquals(stderr.split("\n").length, 2, stderr);
    await child.stdin.close().catch(() => {});
  }
});

Deno.test("tunnel command: stdin that is open keeps nobody from ending when the connection is lost", async () => {
  await using echo = makeEcho();
  const controller = new AbortController();
  const server = serveTunnel({ listen: FREE, allow: [echo.addr], signal: controller.signal });
  const child = command(["client", "--connect", server.addr, "--forward", `-=${echo.addr}`], { stdin: "piped" })
    .spawn();
  await using watched = watch(child);
  const stdin = child.stdin.getWriter();
  try {
    await stdin.write(bytes("hello"));
    await watched.until(/hello/);
    controller.abort();
    const { code, stdout, stderr } = await promptly(watched.ended());
    assertEquals({ code, stdout }, { code: 1, stdout: "hello" });
    assertMatch(stderr, /^.+\n$/);
  } finally {
    controller.abort();
    await stdin.close().catch(() => {});
    await server.finished;
  }
});

Deno.test("tunnel command: an answer that arrived whole before the session ended goes to stdout, though stdin is open", async () => {
  using listener = Deno.listen(LOOPBACK);
  const args = ["client", "--connect", at(listener.addr), "--forward", "-=echo:1"];
  const child = command(args, { stdin: "piped" }).spawn();
  const session = Session.server(await listener.accept());
  const answer = pattern(250_000);
  await answerAndHangUp(session, answer);
  // Only now is stdout read, of which a pipe takes 64 KiB.
  const { stdout } = await promptly(child.output());
  assertEquals(stdout.length, answer.length);
  assertEquals(stdout, answer);
  await child.stdin.close().catch(() => {});
});

Deno.test("tunnel command: 200 local connections that were reset before they are accepted do not end it", async () => {
  const target = makeEcho();
  await using tunnel = await startBoth(target.addr);
  const { server, client } = tunnel;
  // The kernel goes on taking connections for a process that is stopped.
  client.child.kill("SIGSTOP");
  await Promise.all(Array.from({ length: 200 }, () => {
    const closed = Promise.withResolvers<void>();
    const socket = net.connect(portOf(client.addr), "127.0.0.1", () => socket.resetAndDestroy());
    socket.on("close", () => closed.resolve());
    return closed.promise;
  }));
  client.child.kill("SIGCONT");
  const connection = await dial(client.addr);
  assertEquals(await say(connection, "still here"), "still here");
  connection.close();
  client.child.kill("SIGTERM");
  const { code, stderr } = await client.ended();
  assertEquals(code, 0);
  const lost = stderr.match(/^a connection was lost before it was accepted: .+$/gm) ?? [];
  assertGreater(lost.length, 0, "none was lost, and nothing tested");
  assertEquals(stderr.trimEnd().split("\n").length, 200, "each of them is told, once");
  server.child.kill("SIGTERM");
  assertEquals((await server.ended()).code, 0);
  await target.close();
});

Deno.test("tunnel command: IPv6", { ignore: !hasIpv6() }, async () => {
  const web = serveFiles();
  await using server = await start(["server", "--listen", "[::1]:0", "--target", at(web.addr)]);
  await using client = await start(["client", "--forward", "localhost:0", "--connect", server.addr]);
  assertMatch(server.addr, /^\[::1\]:\d+$/);
  await fetchFiles(client.addr, [1000]);
  client.child.kill("SIGTERM");
  assertEquals((await client.ended()).code, 0);
  server.child.kill("SIGTERM");
  assertMatch((await server.ended()).stdout, /^connection from \[::1\]:\d+$/m);
  await web.shutdown();
});

Deno.test("tunnel command: what cannot be started is said in one line, exit code 1", async () => {
  const target = nowhere();
  await using server = serveTunnel({ listen: FREE, target, onError() {} });
  const [inUse, missing, here] = await Promise.all([
    run("server", "--listen", server.addr, "--target", target),
    run("client", "--forward", "0", "--connect", target),
    run("client", "--forward", server.addr, "--connect", server.addr),
  ]);
  assertEquals(inUse, { code: 1, stdout: "", stderr: `cannot listen on ${server.addr}: address in use\n` });
  assertEquals(missing, { code: 1, stdout: "", stderr: `cannot connect to ${target}: connection refused\n` });
  assertEquals(here, inUse);
  await using allowing = serveTunnel({ listen: FREE, allow: ["*:*"], onError() {} });
  const refused = await run("client", "--connect", allowing.addr, "--reverse", "0=1");
  assertEquals({ ...refused, stderr: "" }, { code: 1, stdout: "", stderr: "" });
  assertMatch(refused.stderr, /^[^\n]*not allowed\n$/);
});

Deno.test("tunnel command: a bad command line is said in one line, exit code 2", async () => {
  const server = "server --listen 0 --target 1";
  const client = "client --connect 1 --forward 0";
  const place = "must be HOST:PORT, [IPV6]:PORT, PORT or unix:PATH, received";
  const cases: Record<string, string | RegExp> = {
    "": "say server or client",
    "serve": 'say server or client, received "serve"',
    "server": "--listen is missing",
    "server --target 1": "--listen is missing",
    "server --listen 0": "say --target, --allow or --allow-listen",
    "server --listen :0 --target a:1": `listen ${place} ":0"`,
    "server --listen a:0 --target": "--target needs a value",
    "server --listen --target a:1": "--listen needs a value",
    "server --listen= --target a:1": "--listen needs a value",
    "server --listen localhost:0 --target a:0": "target needs a port from 1 to 65535, received 0",
    "server --listen a:65536 --target a:1": "listen needs a port from 0 to 65535, received 65536",
    "server --listen ::1:0 --target a:1": `listen ${place} "::1:0"`,
    "server --listen [::g]:0 --target a:1": `listen ${place} "[::g]:0"`,
    "server --listen 0 --allow *": `allow ${place} "*"`,
    "server --listen 0 --allow 1 --allow http://a": `allow ${place} "http://a"`,
    "server --listen 0 --allow-listen a": `allowListen ${place} "a"`,
    "server --listen 0.0.0.0:0 --allow *:*": /insecure/,
    "server --listen 0 --target 1 --allow 1": /allow/,
    [`${server} --forward 0=1`]: "unknown option --forward",
    [`${server} --cert ${SCRIPT}`]: /^--cert cannot be read: /,
    [`${server} --cert /dev/null`]: /cert/,
    [`${server} --key /dev/null`]: /key/,
    [`${server} --cert /dev/null --key /dev/null`]: /cert/,
    [`server --listen 0 --allow 1 --secret /nowhere/at/all`]: /^--secret cannot be read: /,
    [`server --listen 0 --allow 1 --secret /dev/null`]: /secret/,
    [`${server} --grace x`]: '--grace must be whole seconds, received "x"',
    [`${server} --grace -1`]: '--grace must be whole seconds, received "-1"',
    [`${server} --grace 1.5`]: '--grace must be whole seconds, received "1.5"',
    [`${server} --insecure=yes`]: "--insecure takes no value",
    [`${server} --listen 0`]: "--listen was given twice",
    "client --forward 0": "--connect is missing",
    "client --connect 1": "say --forward, --reverse or --socks",
    "client --forward a:0 --connect a:x": `connect ${place} "a:x"`,
    "client --forward a:0 --connect 256.0.0.1:1": `connect ${place} "256.0.0.1:1"`,
    "client --forward a:0 --target a:1": "unknown option --target",
    "client --connect 1 --forward =1": `forward ${place} ""`,
    "client --connect 1 --forward 0=": `forward ${place} ""`,
    "client --connect 1 --forward 0=a": `forward ${place} "a"`,
    "client --connect 1 --forward -=a": /"a"/,
    "client --connect 1 --forward -=1 --forward -=2": /only once/,
    "client --connect 1 --reverse 0": /AT=TO/,
    "client --connect 1 --socks 0.0.0.0:0": /insecure/,
    "client --connect 1 --socks": "--socks needs a value",
    [`${client} --smux 3`]: '--smux must be 1 or 2, received "3"',
    [`${client} --ca /dev/null`]: /^ca must be certificates/,
    [`${client} --ca /nowhere/at/all`]: /^--ca cannot be read: /,
    [`${client} --constructor x`]: "unknown option --constructor",
    "toString": 'say server or client, received "toString"',
    "client a:0": 'unexpected argument "a:0"',
    "client -x": 'unexpected argument "-x"',
  };
  const lines = Object.entries(cases);
  const wrong: string[] = [];
  const check = async () => {
    for (let next; (next = lines.pop()) !== undefined;) {
      const [line, message] = next;
      const { code, stdout, stderr } = await run(...line.split(" ").filter((word) => word !== ""));
      const [, said = ""] = /^([^\n]+) \(try --help\)\n$/.exec(stderr) ?? [];
      const isRight = typeof message === "string" ? said === message : message.test(said);
      if (!isRight || code !== 2 || stdout !== "") wrong.push(`${line} -> ${code}, ${stdout}${stderr}`);
    }
  };
  await Promise.all([check(), check(), check()]);
  assertEquals(wrong, []);
});

Deno.test("tunnel command: on a terminal one line below the log says how it goes, and is gone at the end", {
  // It makes a terminal for what it runs; nothing of Deno's does.
  ignore: Deno.build.os !== "linux" || !hasPrograms("script"),
}, async () => {
  await using target = makeEcho();
  const words = ["server", "--listen", "0", "--target", target.addr].map((word) => `'${word}'`).join(" ");
  // Of a shell that stayed, Ctrl-C would end it too, with a code of its own.
  const line = `exec '${Deno.execPath()}' run --no-config -A '${SCRIPT}' ${words}`;
  const options = { stdin: "piped", stdout: "piped", stderr: "piped", env: { NO_COLOR: "1" } } as const;
  await using terminal = watch(new Deno.Command("script", { args: ["-qfec", line, "/dev/null"], ...options }).spawn());
  const [, addr] = await terminal.until(/^listening on (\S+)\r\n/m);
  const session = Session.client(await dial(addr!));
  const stream = await session.openStream();
  assertEquals(await say(stream, "hello"), "hello");
  await terminal.until(/\r.{3}1 open, 1 so far; sending \d+\.\d MB\/s, receiving \d+\.\d MB\/s/);
  stream.close();
  await session.close();
  const keyboard = terminal.child.stdin.getWriter();
  await keyboard.write(bytes("\x03"));
  await terminal.until(/carried 1 stream over 1 connection\r\n/);
  await keyboard.close();
  const { code, stdout } = await terminal.ended();
  assertEquals(code, 0);
  // What is left on the screen when each line was cleared that was to be.
  assertEquals(stdout.split("\r\n").map((line) => line.split("\x1b[K").at(-1)).slice(2), [
    "shutting down within 30 seconds; Ctrl-C ends it at once",
    "carried 1 stream over 1 connection",
    "",
  ]);
});

Deno.test("tunnel command: --help fits a terminal and names every option", async () => {
  for (const args of [["client", "--help"], ["-h"], ["--help"]]) {
    const { code, stdout, stderr } = await run(...args);
    assertEquals({ code, stderr }, { code: 0, stderr: "" });
    const lines = stdout.trimEnd().split("\n");
    assert(lines.length <= 36, `${lines.length} lines`);
    for (const line of lines) assert(line.length <= 80, line);
    const options = "listen target allow allow-listen cert key connect forward reverse socks tls ca smux secret grace" +
      " insecure once";
    for (const option of options.split(" ")) assertMatch(stdout, new RegExp(`--${option}\\b(?!-)`));
    for (const word of ["server", "client", "$SLUICE_SECRET"]) assert(stdout.includes(word), word);
  }
});
