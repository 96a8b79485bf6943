/**
 * Sessions over streams of Node: transfers, ends and errors.
 *
 * @module
 */

import { assertEquals, assertInstanceOf, assertRejects, assertStrictEquals, assertThrows } from "@std/assert";
import { deadline } from "@std/async";
import { concat } from "@std/bytes";
import { Buffer } from "node:buffer";
import { once } from "node:events";
import { connect, createServer, type Server, type Socket } from "node:net";
import { Duplex, duplexPair, PassThrough } from "node:stream";
import { connect as connectTls, createServer as createTlsServer } from "node:tls";
import { FIN, NOP, PSH, SYN, type Version } from "../frame.ts";
import { join, type Listener, serve, Session, type Stream, StreamResetError, type Transport } from "../mod.ts";
import {
  exchangeHashed,
  frame,
  LOOPBACK,
  ManualClock,
  memoryPair,
  pattern,
  readAll,
  readSome,
  state,
  turn,
  writeAll,
} from "./support.ts";

const tls = (name: string) => Deno.readTextFileSync(new URL(`fixtures/tls/${name}`, import.meta.url));
const echo = (stream: Stream) => stream.readable.pipeTo(stream.writable);

/** Starts a server of Node on a free port. */
async function listen(server: Server): Promise<number> {
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return (server.address() as { port: number }).port;
}

for (const version of [1, 2] as const satisfies Version[]) {
  Deno.test(`net.Socket at both ends transfers 50 hashed streams in version ${version}`, async () => {
    const sessions: Promise<void>[] = [];
    const server = createServer((socket) => {
      const session = Session.server(socket);
      sessions.push((async () => {
        for await (const stream of session) echo(stream);
        await session.closed;
      })());
    });
    const port = await listen(server);
    // The socket is still connecting.
    const session = Session.client(connect(port), { version });
    await exchangeHashed(session, 50);
    assertEquals((session.remoteAddr as Deno.NetAddr).port, port);
    await session.close();
    await session.closed;
    await Promise.all(sessions);
    assertEquals(sessions.length, 1);
    await new Promise((resolve) => server.close(resolve));
  });
}

Deno.test("tls.TLSSocket at both ends transfers 30 hashed streams", async () => {
  const [cert, key, ca] = [tls("localhost.pem"), tls("localhost.key"), tls("ca.pem")];
  const server = createTlsServer({ cert, key }, async (socket) => {
    for await (const stream of Session.server(socket)) echo(stream);
  });
  const port = await listen(server);
  const session = Session.client(connectTls({ port, ca, host: "127.0.0.1", servername: "localhost" }));
  await exchangeHashed(session, 30);
  await session.close();
  await new Promise((resolve) => server.close(resolve));
});

Deno.test("stream.Duplex at both ends transfers 30 hashed streams", async () => {
  const [near, far] = duplexPair();
  const client = Session.client(near);
  const server = Session.server(far);
  const serving = (async () => {
    for await (const stream of server) await echo(stream);
  })();
  await exchangeHashed(client, 30);
  await client.close();
  await serving;
});

Deno.test("net.Socket whose connection is refused ends its session with ECONNREFUSED", async () => {
  const session = Session.client(connect(9, "127.0.0.1"));
  const error = await assertRejects(() => session.closed, Error);
  assertEquals((error as Error & { code: string }).code, "ECONNREFUSED");
});

Deno.test("net.Socket that is reset with an open stream ends its session with the error of Node", async () => {
  const listener = Deno.listen(LOOPBACK);
  const session = Session.client(connect(listener.addr.port));
  const stream = await session.openStream();
  await stream.write(new Uint8Array(100));
  // The kernel resets a connection that is closed with unread bytes.
  (await listener.accept()).close();
  listener.close();
  await assertRejects(() => stream.read(new Uint8Array(1)));
  const error = await session.closed.then(() => undefined, (error) => error);
  if (error !== undefined) assertInstanceOf(error, Error);
});

Deno.test("net.Socket whose peer ends between frames ends its session cleanly, also with allowHalfOpen", async () => {
  for (const allowHalfOpen of [false, true]) {
    const sockets: Socket[] = [];
    const server = createServer({ allowHalfOpen }, (socket) => void sockets.push(socket));
    const port = await listen(server);
    const peer = await Deno.connect({ ...LOOPBACK, port });
    while (sockets.length === 0) await turn();
    const session = Session.server(sockets[0]!);
    await peer.closeWrite();
    await session.closed;
    peer.close();
    await new Promise((resolve) => server.close(resolve));
  }
});

Deno.test("Session.close() over a net.Socket sends what was written, and destroys the socket", async () => {
  const server = createServer();
  const port = await listen(server);
  const connection = once(server, "connection");
  const peer = await Deno.connect({ ...LOOPBACK, port });
  const [socket] = await connection as [Socket];
  const session = Session.server(socket, { version: 1 });
  const stream = await session.openStream();
  const sent = pattern(3_000_000);
  const received = readAll(peer);
  await writeAll(stream, sent);
  const closing = session.close();
  assertEquals((await received).length > sent.length, true);
  peer.close();
  await closing;
  assertEquals(socket.destroyed, true);
  await new Promise((resolve) => server.close(resolve));
});

Deno.test("a stream of Node in object mode, or one that reads text, causes a TypeError", async () => {
  const objects = new Duplex({ objectMode: true, read() {}, write() {} });
  assertThrows(() => Session.client(objects), TypeError, "object mode");
  const words = new PassThrough({ encoding: "utf8" });
  const session = Session.server(words);
  words.push("hello");
  await assertRejects(() => session.closed, TypeError, "reads a string, not bytes");
});

Deno.test("a stream of Node that is destroyed before its end ends its session with an error", async () => {
  const stream = new PassThrough();
  const session = Session.server(stream);
  stream.destroy();
  await assertRejects(() => session.closed, Error, "destroyed before its end");
});

Deno.test("a stream of Node that emits `end` because it is destroyed, as in Bun, ends its session with an error", async () => {
  const stream = new Duplex({
    read() {},
    write: (_chunk, _encoding, callback) => callback(),
    destroy(error, callback) {
      this.emit("end");
      callback(error);
    },
  });
  const session = Session.server(stream);
  stream.destroy();
  await assertRejects(() => session.closed, Error, "destroyed before its end");
});

Deno.test("a destroyed stream of Node with emitClose: false ends its session at the next keepalive", async () => {
  using time = new ManualClock();
  const stream = new Duplex({ emitClose: false, read() {}, write: (_chunk, _encoding, callback) => callback() });
  const session = Session.client(stream, { keepAliveInterval: 100, timeout: 1000 });
  await turn();
  stream.destroy();
  assertEquals(await state(session.closed), "pending");
  await time.advance(100);
  assertEquals(await state(session.closed), "rejected");
  const error = await assertRejects(() => session.closed, Error);
  assertEquals((error as Error & { code: string }).code, "ERR_STREAM_DESTROYED");
});

Deno.test("a stream of Node that ended or was destroyed before its session started ends that session", async () => {
  const ended = new PassThrough();
  ended.end();
  ended.resume();
  await once(ended, "close");
  await Session.server(ended).closed;
  const destroyed = new PassThrough();
  destroyed.destroy();
  await once(destroyed, "close");
  await assertRejects(() => Session.server(destroyed).closed, Error, "destroyed before its end");
  // In Bun it has ended, too.
  Object.defineProperty(destroyed, "readableEnded", { value: true });
  await assertRejects(() => Session.server(destroyed).closed, Error, "destroyed before its end");
  const reason = new Error("Device failed");
  const failed = new PassThrough();
  failed.on("error", () => {});
  failed.destroy(reason);
  await turn();
  assertStrictEquals(await assertRejects(() => Session.server(failed).closed), reason);
});

Deno.test("a stream of Node that fails after data arrived ends its session with its error", async () => {
  const reason = new Error("Device failed");
  const stream = new PassThrough();
  const session = Session.server(stream);
  stream.write(frame(1, NOP, 0));
  await turn();
  stream.destroy(reason);
  assertStrictEquals(await assertRejects(() => session.closed), reason);
});

Deno.test("a stream of Node that pushes 200 kB at once is read in parts", async () => {
  const data = pattern(200_000);
  const chunks = [concat([
    frame(1, SYN, 3),
    ...Array.from({ length: 4 }, (_, n) => frame(1, PSH, 3, data.subarray(n * 50_000, (n + 1) * 50_000))),
    frame(1, FIN, 3),
  ])];
  const stream = new Duplex({
    // Pushes synchronously, so that `readableLength` is 0 before the session reads.
    read() {
      this.push(chunks.pop() ?? null);
    },
    write: (_chunk, _encoding, callback) => callback(),
  });
  const session = Session.server(stream);
  assertEquals(await readAll(await session.acceptStream()), data);
  await session.closed;
});

/** Reads the web stream to its end. */
async function collect(readable: ReadableStream<Uint8Array>): Promise<Uint8Array> {
  return concat(await Array.fromAsync(readable));
}

// A large frame before many streams, so that each of these has a part of the Buffer that the socket emits.
Deno.test("readable of 300 streams in one Buffer of a net.Socket: all are read to their ends", async () => {
  const data = pattern(40_000);
  const ids = Array.from({ length: 300 }, (_, n) => 3 + 2 * n);
  const sent = concat([
    frame(1, SYN, 3),
    frame(1, PSH, 3, data),
    ...ids.slice(1).map((id) => frame(1, SYN, id)),
    ...ids.flatMap((id) => [frame(1, PSH, id, pattern(10, id)), frame(1, FIN, id)]),
  ]);
  const { promise: socket, resolve } = Promise.withResolvers<Socket>();
  const server = createServer({ allowHalfOpen: true }, resolve);
  const peer = connect(await listen(server));
  peer.write(sent);
  const session = Session.server(await socket, { version: 1 });
  const received = await deadline(
    Promise.all(ids.map(async () => await collect((await session.acceptStream()).readable))),
    10_000,
  );
  assertEquals(received, ids.map((id) => id === 3 ? concat([data, pattern(10, 3)]) : pattern(10, id)));
  session.abort();
  peer.destroy();
  await new Promise((resolve) => server.close(resolve));
});

for (const kind of ["stream.Duplex", "a pair of web streams"]) {
  Deno.test(`readable over ${kind} that reads parts of one Buffer is read to its end`, async () => {
    const data = pattern(50_000);
    const memory = Buffer.from(concat([
      frame(1, SYN, 3),
      frame(1, PSH, 3, data.subarray(0, 40_000)),
      frame(1, PSH, 3, data.subarray(40_000)),
      frame(1, FIN, 3),
    ]));
    const [first, second] = [memory.subarray(0, 40_016), memory.subarray(40_016)];
    const web = new TransformStream<Uint8Array, Uint8Array>();
    const writer = web.writable.getWriter();
    const duplex = new Duplex({ read() {}, write: (_chunk, _encoding, callback) => callback() });
    const isDuplex = kind === "stream.Duplex";
    const push = (part: Uint8Array) => isDuplex ? void duplex.push(part) : void writer.write(part);
    const session = Session.server(
      isDuplex ? duplex : { readable: web.readable, writable: new WritableStream() },
      { version: 1 },
    );
    push(first);
    const stream = await session.acceptStream();
    await turn();
    const reader = stream.readable.getReader();
    const parts = [(await reader.read()).value!];
    assertEquals(memory.length, 50_032);
    push(second);
    for (let part = await reader.read(); !part.done; part = await reader.read()) parts.push(part.value);
    assertEquals(concat(parts), data);
    session.abort();
  });
}

Deno.test("a stream of Node that holds the bytes of a write holds a copy", async () => {
  const [near, far] = duplexPair();
  const client = Session.client(near);
  const stream = await client.openStream();
  const sent = [pattern(1000, 1), pattern(1000, 2)];
  for (const bytes of sent) {
    await stream.write(bytes);
    // `far` buffers the bytes and requests more, so the write is complete.
    far.read(0);
    await turn();
  }
  const server = Session.server(far);
  assertEquals(await readSome(await server.acceptStream(), 2000), concat(sent));
  for (const session of [client, server]) session.abort();
});

Deno.test("serve() throws a TypeError for a listener without accept() and close(), such as a server of Node", () => {
  const server = createServer();
  for (const value of [server, {}, undefined, { accept: 5, close() {} }]) {
    assertThrows(() => serve(value as unknown as Listener, echo), TypeError, "listener");
  }
});

Deno.test("serve() serves a listener of web streams and streams of Node", async () => {
  const there = new TransformStream<Uint8Array, Uint8Array>();
  const back = new TransformStream<Uint8Array, Uint8Array>();
  const [near, far] = duplexPair();
  const transports: Transport[] = [{ readable: there.readable, writable: back.writable }, far];
  const listener: Listener<Transport> = {
    accept() {
      const next = transports.shift();
      if (next !== undefined) return Promise.resolve(next);
      return Promise.reject(Object.assign(new Error("No more"), { name: "Interrupted" }));
    },
    close() {},
  };
  const server = serve(listener, echo);
  const sessions = [Session.client({ readable: back.readable, writable: there.writable }), Session.client(near)];
  await Promise.all(sessions.map((session) => exchangeHashed(session, 10)));
  await Promise.all(sessions.map((session) => session.close()));
  await server.finished;
});

for (const first of ["client", "target"]) {
  Deno.test(`join() of a stream with a net.Socket carries both directions whole when the ${first} ends first`, async () => {
    const [question, answer] = [pattern(1_000_000, 1), pattern(3_000_000, 2)];
    const ended = Promise.withResolvers<void>();
    const target = createServer({ allowHalfOpen: true }, async (socket) => {
      if (first === "target") socket.end(answer);
      const parts: Uint8Array[] = [];
      for await (const part of socket.iterator({ destroyOnReturn: false })) parts.push(part);
      assertEquals(concat(parts), question);
      if (first === "client") socket.end(answer);
      ended.resolve();
    });
    const port = await listen(target);
    const listener = Deno.listen(LOOPBACK);
    const results: unknown[] = [];
    await using _server = serve(listener, async (stream) => {
      results.push(await join(stream, connect({ port, host: "127.0.0.1", allowHalfOpen: true })));
    });
    const session = Session.client(await Deno.connect({ ...LOOPBACK, port: listener.addr.port }));
    const stream = await session.openStream();
    if (first === "target") assertEquals(await readAll(stream), answer);
    await writeAll(stream, question);
    await stream.closeWrite();
    if (first === "client") assertEquals(await readAll(stream), answer);
    await ended.promise;
    await session.close();
    await new Promise((resolve) => target.close(resolve));
    assertEquals(results, [{ sent: question.length, received: answer.length }]);
  });
}

Deno.test("join() of a stream with a net.Socket that is refused or fails rejects with the error of Node", async () => {
  const listener = Deno.listen(LOOPBACK);
  const errors: unknown[] = [];
  const target = createServer((socket) => socket.once("data", () => socket.resetAndDestroy()));
  const ports = [9, await listen(target)];
  const server = serve(listener, (stream) => {
    return join(stream, connect({ port: ports.shift()!, host: "127.0.0.1", allowHalfOpen: true })).then(() => {});
  }, { onError: (error) => errors.push((error as Error & { code?: string }).code) });
  const session = Session.client(await Deno.connect({ ...LOOPBACK, port: listener.addr.port }));
  for (const _ of [1, 2]) {
    const stream = await session.openStream();
    await stream.write(new Uint8Array(1));
    await assertRejects(() => readAll(stream), StreamResetError);
  }
  await session.close();
  await server.shutdown();
  await new Promise((resolve) => target.close(resolve));
  assertEquals(errors, ["ECONNREFUSED", "ECONNRESET"]);
});

/** A joined stream of Node whose both ends are a test's, beside a connection in memory with room for 1000 bytes. */
function joinedDuplex() {
  const [near, side] = duplexPair();
  const [slow, far] = memoryPair(1000);
  return { near, side, far, joined: join(side, slow) };
}

const beforeDestroy: Record<string, (near: Duplex) => void> = {
  "after its end": (near) => near.end(),
  "before its end": () => {},
  "while a write to the other side is blocked": (near) => near.write(pattern(5000)),
};
for (const [when, prepare] of Object.entries(beforeDestroy)) {
  Deno.test(`join() rejects at once when a stream of Node is destroyed ${when}`, async () => {
    const { near, side, far, joined } = joinedDuplex();
    prepare(near);
    assertEquals(await state(joined), "pending");
    side.destroy();
    assertEquals(await state(joined), "rejected");
    await assertRejects(() => joined, Error, "destroyed before its end");
    await assertRejects(() => far.write(new Uint8Array(1)));
  });
}

Deno.test("join() rejects at once when a stream of Node was destroyed after its end and before the call", async () => {
  const side = new Duplex({ read() {}, write: (_chunk, _encoding, callback) => callback() });
  side.push(null);
  side.resume();
  await once(side, "end");
  side.destroy();
  await once(side, "close");
  const joined = join(side, memoryPair()[0]);
  assertEquals(await state(joined), "rejected");
  await assertRejects(() => joined, Error, "destroyed before its end");
});

Deno.test("join() goes on when a stream of Node has closed after the end of both its directions", async () => {
  const { near, side, far, joined } = joinedDuplex();
  const data = pattern(5000);
  near.resume();
  far.closeWrite();
  near.end(data);
  await once(side, "close");
  assertEquals(await state(joined), "pending");
  assertEquals(await readAll(far), data);
  assertEquals(await joined, { sent: 5000, received: 0 });
});

Deno.test("join() rejects when a stream of HTTP/2 is reset, which emits `end` and `finish` in Node and Bun", async () => {
  const [near, side] = duplexPair();
  near.resume();
  const joined = join(side, memoryPair()[0]);
  Object.assign(side, { aborted: true });
  side.end();
  near.end();
  await once(side, "close");
  assertEquals(await state(joined), "rejected");
  await assertRejects(() => joined, Error, "destroyed before its end");
});
