/**
 * Sessions over WebSockets: transfers, failures to connect, close codes, and limits.
 *
 * @module
 */

import {
  assert,
  assertEquals,
  assertInstanceOf,
  assertLess,
  assertLessOrEqual,
  assertRejects,
  assertThrows,
} from "@std/assert";
import { deadline } from "@std/async";
import { concat } from "@std/bytes";
import { Buffer } from "node:buffer";
import { clock, type Timer } from "../_clock.ts";
import { FLOOD_BUDGET } from "../_flood.ts";
import { FIN, FrameDecoder, HEADER_LENGTH, NOP, ProtocolError, PSH, SYN, type Version } from "../frame.ts";
import { bounded, ChannelClosedError, serve, Session, SessionClosedError, type Stream } from "../mod.ts";
import {
  connectWebSocket,
  type ConnectWebSocketOptions,
  upgradeWebSocket,
  WebSocketClosedError,
  webSocketConnection,
  type WebSocketLike,
  WebSocketListener,
} from "../websocket.ts";
import {
  collector,
  countListeners,
  exchangeHashed,
  frame,
  KiB,
  LOOPBACK,
  ManualClock,
  MiB,
  microtasks,
  pattern,
  type RawFrame,
  readAll,
  readExactly,
  sha256,
  state,
  turn,
  WRITE_BUFFER,
  writeAll,
  xorshift,
} from "./support.ts";

/** A socket whose events the test emits. */
class FakeSocket implements WebSocketLike {
  binaryType = "blob";
  readyState = 1;
  bufferedAmount = 0;
  readonly sent: Uint8Array[] = [];
  readonly closes: [code: number | undefined, reason: string | undefined][] = [];
  readonly #listeners = new Map<string, (event: object) => void>();

  send(data: Uint8Array<ArrayBuffer>): void {
    this.sent.push(data);
    this.bufferedAmount += data.length;
  }

  close(code?: number, reason?: string): void {
    this.readyState = Math.max(this.readyState, 2);
    this.closes.push([code, reason]);
  }

  addEventListener(type: string, listener: (event: object) => void): void {
    assert(!this.#listeners.has(type), `two listeners for ${type}`);
    this.#listeners.set(type, listener);
  }

  emit(type: "open" | "message" | "error" | "close", event: object = {}): void {
    if (type === "open") this.readyState = 1;
    if (type === "close") this.readyState = 3;
    this.#listeners.get(type)!(event);
  }

  receive(bytes: Uint8Array<ArrayBuffer>): void {
    this.emit("message", { data: bytes.slice().buffer });
  }
}

/** Starts an HTTP server with `upgrade` as its handler; disposing shuts it down. */
function serveUpgrades(upgrade: (request: Request) => Response | Promise<Response>) {
  const server = Deno.serve({ ...LOOPBACK, onListen() {} }, upgrade);
  return { url: `ws://127.0.0.1:${server.addr.port}/`, [Symbol.asyncDispose]: () => server.shutdown() };
}

const echo = (stream: Stream) => stream.readable.pipeTo(stream.writable);

/** Returns a handler that upgrades a request and closes the open socket with this code. */
function closing(code: number | undefined, reason?: string): (request: Request) => Response {
  return (request) => {
    const { socket, response } = Deno.upgradeWebSocket(request);
    socket.onopen = () => socket.close(code, reason);
    return response;
  };
}

for (const version of [1, 2] as const satisfies Version[]) {
  Deno.test(`connectWebSocket() and upgradeWebSocket() transfer 50 hashed streams in version ${version}`, async () => {
    const errors: unknown[] = [];
    const sessions: Session[] = [];
    await using server = serveUpgrades((request) =>
      upgradeWebSocket(request, echo, {
        onError: (error) => errors.push(error),
        onSession: (session) => sessions.push(session),
      })
    );
    const session = await connectWebSocket(server.url, { version });
    await exchangeHashed(session, 50);
    await session.close();
    await session.closed;
    await sessions[0]!.closed;
    assertEquals([sessions.length, sessions[0]!.version, errors], [1, version, []]);
  });
}

Deno.test("connectWebSocket() returns a session that accepts streams of the server", async () => {
  await using server = serveUpgrades((request) =>
    upgradeWebSocket(request, () => {}, {
      async onSession(session) {
        const stream = await session.openStream();
        await stream.write(new TextEncoder().encode("news"));
        await stream.closeWrite();
      },
    })
  );
  const session = await connectWebSocket(server.url);
  const stream = await session.acceptStream();
  assertEquals(await new Response(stream.readable).text(), "news");
  await session.close();
});

// Failures to connect.

for (const status of [401, 404, 502]) {
  Deno.test(`connectWebSocket() rejects when the server answers ${status} with HTML`, async () => {
    await using server = serveUpgrades(() =>
      new Response("<h1>no</h1>", { status, headers: { "content-type": "text/html" } })
    );
    const error = await assertRejects(() => connectWebSocket(server.url), WebSocketClosedError);
    assertEquals(error.code, 1006);
    assertInstanceOf(error.cause, Error);
  });
}

Deno.test("connectWebSocket() rejects with code 1006 when the connection is refused", async () => {
  const { signal } = new AbortController();
  const listeners = countListeners(signal);
  const error = await assertRejects(() => connectWebSocket("ws://127.0.0.1:9/", { signal }), WebSocketClosedError);
  assertEquals(error.code, 1006);
  assertInstanceOf(error.cause, Error);
  assertEquals(listeners(), 0);
});

Deno.test("connectWebSocket() rejects with a TimeoutError when the server accepts and stays silent", async () => {
  using silent = Deno.listen(LOOPBACK);
  const connecting = connectWebSocket(`ws://127.0.0.1:${silent.addr.port}/`, { timeout: 50, keepAliveInterval: 50 });
  using _accepted = await silent.accept();
  const error = await assertRejects(() => connecting, DOMException, "did not open within 50 ms");
  assertEquals(error.name, "TimeoutError");
});

Deno.test("connectWebSocket() rejects with the reason of its signal, aborted before or while it connects", async () => {
  using silent = Deno.listen(LOOPBACK);
  const url = `ws://127.0.0.1:${silent.addr.port}/`;
  const reason = new Error("Not needed any more");
  assertEquals(await assertRejects(() => connectWebSocket(url, { signal: AbortSignal.abort(reason) })), reason);
  const controller = new AbortController();
  const listeners = countListeners(controller.signal);
  const connecting = connectWebSocket(url, { signal: controller.signal });
  using _accepted = await silent.accept();
  assertEquals(listeners(), 1);
  controller.abort(reason);
  assertEquals(await assertRejects(() => connecting), reason);
  assertEquals(listeners(), 0);
});

Deno.test("connectWebSocket() rejects for an invalid option and for an invalid url", async () => {
  await assertRejects(() => connectWebSocket("ws://127.0.0.1:9/", { maxFrameSize: 0 }), RangeError, "maxFrameSize");
  await assertRejects(() => connectWebSocket("nowhere"), DOMException);
});

Deno.test("connectWebSocket() closes its clone of the caller's channel when it rejects", async () => {
  const { sender, receiver } = bounded<Stream>(1);
  const invalid: [url: string, options: ConnectWebSocketOptions][] = [
    ["ws://127.0.0.1:9/", {}],
    ["ws://127.0.0.1:9/", { maxFrameSize: 0 }],
    ["ws://127.0.0.1:9/", { signal: AbortSignal.abort() }],
    ["nowhere", {}],
  ];
  for (const [url, options] of invalid) {
    await assertRejects(() => connectWebSocket(url, { ...options, incoming: sender.clone() }));
    assertEquals(receiver.senderCount, 1);
  }
});

// Ends of a connection.

for (const code of [1000, undefined]) {
  Deno.test(`a WebSocket closed with ${code ?? "no code"} between frames ends its session cleanly`, async () => {
    await using server = serveUpgrades(closing(code));
    const session = Session.client(webSocketConnection(new WebSocket(server.url)));
    await session.closed;
    const error = await assertRejects(() => session.openStream(), SessionClosedError);
    assertEquals(error.cause, undefined);
  });
}

for (const [code, reason] of [[3000, "unauthorized"], [4001, ""], [4999, "try later"]] as const) {
  Deno.test(`a WebSocket closed with code ${code} ends its session with the code and reason "${reason}"`, async () => {
    await using server = serveUpgrades(closing(code, reason));
    const session = Session.client(webSocketConnection(new WebSocket(server.url)));
    const error = await assertRejects(() => session.closed, WebSocketClosedError);
    assertEquals({ code: error.code, reason: error.reason }, { code, reason });
    const { cause } = await assertRejects(() => session.openStream(), SessionClosedError);
    assertEquals(cause, error);
  });
}

Deno.test("a WebSocket closed with any other code than 1000 and 1005 ends its session with an error", async () => {
  for (const code of [0, 1001, 1002, 1003, 1006, 1007, 1008, 1009, 1010, 1011, 1012, 1015, 3000, 4999]) {
    const socket = new FakeSocket();
    const session = Session.client(webSocketConnection(socket));
    socket.emit("close", { code, reason: "why" });
    const error = await assertRejects(() => session.closed, WebSocketClosedError, "why");
    // Deno reports 0 instead of 1006.
    assertEquals(error.code, code === 0 ? 1006 : code);
  }
});

Deno.test("a WebSocket closed with 1000 inside a smux frame ends its session with a ProtocolError", async () => {
  const socket = new FakeSocket();
  const session = Session.server(webSocketConnection(socket));
  socket.receive(frame(1, SYN, 3).slice(0, 5));
  socket.emit("close", { code: 1000, reason: "" });
  await assertRejects(() => session.closed, ProtocolError, "3 more bytes of a header");
});

for (const code of [1000, 4001]) {
  Deno.test(`a WebSocket closed with ${code} during a write ends its session after it has read the messages`, async () => {
    const socket = new FakeSocket();
    const session = Session.server(webSocketConnection(socket), { version: 1 });
    socket.receive(frame(1, SYN, 3) as Uint8Array<ArrayBuffer>);
    const stream = await session.acceptStream();
    const received = readAll(stream);
    // The close frame of the peer has arrived: the write waits for the close event.
    socket.readyState = 2;
    await stream.write(new Uint8Array(10));
    await turn();
    const payload = pattern(60 * KiB);
    for (let n = 0; n < 100; n++) socket.receive(frame(1, PSH, 3, payload) as Uint8Array<ArrayBuffer>);
    socket.receive(frame(1, FIN, 3) as Uint8Array<ArrayBuffer>);
    socket.emit("close", { code, reason: "" });
    const error = await session.closed.then(() => undefined, (error) => error);
    assertEquals(error?.code, code === 1000 ? undefined : code);
    assertEquals((await received).length, 100 * payload.length);
  });
}

Deno.test("a WebSocket with an error event and no close event ends its session with 1006 and the error", async () => {
  const socket = new FakeSocket();
  const session = Session.server(webSocketConnection(socket));
  const cause = new Error("Network down");
  socket.emit("error", { error: cause });
  const error = await assertRejects(() => session.closed, WebSocketClosedError);
  assertEquals([error.code, error.cause], [1006, cause]);
});

Deno.test("a WebSocket whose TCP connection is cut ends its session with code 1006", async () => {
  using listener = Deno.listen(LOOPBACK);
  const connecting = connectWebSocket(`ws://127.0.0.1:${listener.addr.port}/`);
  const connection = await listener.accept();
  const p = new Uint8Array(2000);
  const request = new TextDecoder().decode(p.subarray(0, (await connection.read(p))!));
  const [, key] = /sec-websocket-key: (\S+)/i.exec(request)!;
  const accept = await crypto.subtle.digest(
    "SHA-1",
    new TextEncoder().encode(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`),
  );
  const head =
    "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: ";
  await writeAll(connection, new TextEncoder().encode(`${head}${new Uint8Array(accept).toBase64()}\r\n\r\n`));
  const session = await connecting;
  connection.close();
  const error = await assertRejects(() => session.closed, WebSocketClosedError);
  assertEquals(error.code, 1006);
});

Deno.test("a text message ends the session with a ProtocolError and closes the socket with code 1003", async () => {
  const { promise: closed, resolve } = Promise.withResolvers<CloseEvent>();
  await using server = serveUpgrades((request) => {
    const { socket, response } = Deno.upgradeWebSocket(request);
    socket.onopen = () => socket.send("hello");
    socket.onclose = resolve;
    return response;
  });
  const session = await connectWebSocket(server.url);
  await assertRejects(() => session.closed, ProtocolError, "expected a binary message, received text");
  // A client in Deno may send only 1000 and 3000 to 4999.
  assertEquals((await closed).code, 4003);
});

Deno.test("a session over a WebSocket begins with what read() has left of a message", async () => {
  const socket = new FakeSocket();
  const connection = webSocketConnection(socket);
  socket.receive(concat([pattern(2), frame(2, SYN, 3), frame(2, PSH, 3, pattern(5))]));
  assertEquals(await connection.read(new Uint8Array(2)), 2);
  const session = Session.server(connection);
  const stream = await session.acceptStream();
  assertEquals([stream.id, await readExactly(stream, 5)], [3, pattern(5)]);
  session.abort();
});

Deno.test("messages that arrived before the close stay readable, and each byte is delivered once", async () => {
  const socket = new FakeSocket();
  const connection = webSocketConnection(socket);
  socket.receive(pattern(100));
  socket.receive(new Uint8Array(0));
  socket.receive(pattern(50, 2));
  socket.emit("close", { code: 4001, reason: "gone" });
  socket.receive(pattern(10, 3));
  const p = new Uint8Array(70);
  const read: number[] = [];
  for (const length of [70, 30, 50]) {
    assertEquals(await connection.read(p), length);
    read.push(...p.subarray(0, length));
  }
  assertEquals(Uint8Array.from(read), new Uint8Array([...pattern(100), ...pattern(50, 2)]));
  await assertRejects(() => connection.read(p), WebSocketClosedError, "gone");
  await assertRejects(() => connection.write(p), WebSocketClosedError, "gone");
});

Deno.test("Session.close() on a connecting WebSocket waits, sends what was written, and closes with 1000", async () => {
  const socket = new FakeSocket();
  socket.readyState = 0;
  const session = Session.client(webSocketConnection(socket));
  const stream = await session.openStream();
  await stream.write(new Uint8Array(5));
  const closing = session.close();
  await turn();
  assertEquals([socket.sent.length, socket.closes], [0, []]);
  socket.emit("open");
  await turn();
  const sent = socket.sent.reduce((sum, { length }) => sum + length, 0);
  assertEquals(sent, 4 * HEADER_LENGTH + 5); // NOP, SYN, PSH, FIN
  assertEquals(socket.closes, [[1000, ""]]);
  socket.emit("close", { code: 1000, reason: "" });
  await closing;
  assertEquals(socket.closes.length, 1);
});

Deno.test("a session that is aborted or fails at one end of a WebSocket ends with an error at the other end", async () => {
  const sessions: Session[] = [];
  await using server = serveUpgrades((request) =>
    upgradeWebSocket(request, echo, { onSession: (session) => sessions.push(session), onError() {} })
  );
  const far = await connectWebSocket(server.url);
  sessions[0]!.abort();
  assertEquals((await assertRejects(() => far.closed, WebSocketClosedError, "aborted")).code, 1001);

  const near = await connectWebSocket(server.url);
  near.abort();
  // Deno lets a client send 1000 and 3000 to 4999 only.
  assertEquals((await assertRejects(() => sessions[1]!.closed, WebSocketClosedError, "aborted")).code, 4001);

  using time = new ManualClock();
  const socket = new FakeSocket();
  const silent = Session.server(webSocketConnection(socket), { timeout: 1000, keepAliveInterval: 1000 });
  await time.advance(2000);
  await assertRejects(() => silent.closed, DOMException, "silent for 1000 ms");
  assertEquals(socket.closes, [[1001, "aborted"]]);
});

Deno.test("Session.abort() on a connecting WebSocket closes it", async () => {
  const socket = new FakeSocket();
  socket.readyState = 0;
  const session = Session.client(webSocketConnection(socket));
  session.abort();
  assertEquals(socket.closes, [[1001, "aborted"]]);
  socket.emit("error");
  socket.emit("close", { code: 1006, reason: "" });
  await assertRejects(() => session.closed, DOMException, "aborted");
});

Deno.test("webSocketConnection() throws for a closing or closed socket, and for an invalid maxReceiveBuffer", () => {
  for (const readyState of [2, 3]) {
    const socket = Object.assign(new FakeSocket(), { readyState });
    assertThrows(() => webSocketConnection(socket), TypeError, "not open or connecting");
  }
  for (const socket of [undefined, null, {}, "ws://localhost"]) {
    assertThrows(() => webSocketConnection(socket as WebSocketLike), TypeError, "not open or connecting");
  }
  for (const maxReceiveBuffer of [0, -1, NaN]) {
    assertThrows(() => webSocketConnection(new FakeSocket(), { maxReceiveBuffer }), RangeError, "maxReceiveBuffer");
  }
});

Deno.test("concurrent reads of a WebSocket return all of its bytes, in order", async () => {
  const socket = new FakeSocket();
  const connection = webSocketConnection(socket);
  const data = pattern(30);
  const parts = Array.from({ length: 4 }, () => new Uint8Array(10));
  const reading = parts.map((p) => connection.read(p));
  socket.receive(data.slice(0, 25));
  socket.receive(data.slice(25));
  assertEquals(await Promise.all(reading), [10, 10, 5, 5]);
  assertEquals(concat([parts[0]!, parts[1]!, parts[2]!.subarray(0, 5), parts[3]!.subarray(0, 5)]), data);
  const last = [connection.read(parts[0]!), connection.read(parts[1]!)];
  socket.emit("close", { code: 1000 });
  assertEquals(await Promise.all(last), [null, null]);
});

Deno.test("a read of a WebSocket whose array is transferred during the wait rejects, and leaves the message to the next", async () => {
  const socket = new FakeSocket();
  const connection = webSocketConnection(socket);
  const [p, next] = [new Uint8Array(3), new Uint8Array(3)];
  const reading = [connection.read(p), connection.read(next)];
  p.buffer.transfer();
  socket.receive(Uint8Array.of(1, 2, 3));
  await assertRejects(() => reading[0]!, TypeError);
  assertEquals([await reading[1], next], [3, Uint8Array.of(1, 2, 3)]);
});

Deno.test("events after a clean close of a WebSocket have no effect", async () => {
  const socket = new FakeSocket();
  const connection = webSocketConnection(socket, { maxReceiveBuffer: 100_000 });
  socket.emit("close", { code: 1000 });
  for (const data of ["text", new ArrayBuffer(10), new ArrayBuffer(200_000)]) socket.emit("message", { data });
  socket.emit("error", { error: new Error("Too late") });
  socket.emit("close", { code: 4001, reason: "again" });
  await turn();
  assertEquals(await connection.read(new Uint8Array(10)), null);
  assertEquals(socket.closes, []);
  const error = await assertRejects(() => connection.write(new Uint8Array(1)), WebSocketClosedError);
  assertEquals(error.code, 1000);
});

// Limits.

Deno.test("a write sends messages of at most 63 KiB, as copies unless the socket is the runtime's", async () => {
  const socket = new FakeSocket();
  const connection = webSocketConnection(socket);
  const data = pattern(200 * KiB);
  for (let at = 0; at < data.length;) at += await connection.write(data.subarray(at));
  const sent = socket.sent.slice();
  data.fill(0);
  assertEquals(sent.map(({ length }) => length), [63 * KiB, 63 * KiB, 63 * KiB, 11 * KiB]);
  assertEquals(new Uint8Array(await new Blob(sent as Uint8Array<ArrayBuffer>[]).arrayBuffer()), pattern(200 * KiB));
});

Deno.test("a write of a Buffer of Node sends copies", async () => {
  const socket = new FakeSocket();
  const data = Buffer.from(pattern(100));
  await webSocketConnection(socket).write(data);
  data.fill(0);
  assertEquals(socket.sent, [pattern(100)]);
});

Deno.test("messages that are parts of one Buffer of Node arrive whole, and the Buffer is not transferred", async () => {
  const socket = new FakeSocket();
  const session = Session.server(webSocketConnection(socket), { version: 1 });
  const data = pattern(20_000);
  const memory = Buffer.from(concat([
    frame(1, SYN, 3),
    frame(1, PSH, 3, data.subarray(0, 10_000)),
    frame(1, PSH, 3, data.subarray(10_000)),
    frame(1, FIN, 3),
  ]));
  for (const message of [memory.subarray(0, 10_016), memory.subarray(10_016)]) {
    socket.emit("message", { data: message });
    await turn();
  }
  assertEquals(memory.length, 20_032);
  assertEquals(await readAll(await session.acceptStream()), data);
  session.abort();
});

/** Replaces the WebSocket of the runtime by `FakeSocket`, and `process` by one with these versions. */
function replaceRuntime(versions: Record<string, string>): Disposable {
  const { WebSocket, process } = globalThis as typeof globalThis & { process: unknown };
  Object.assign(globalThis, { WebSocket: FakeSocket, process: { versions } });
  return { [Symbol.dispose]: () => void Object.assign(globalThis, { WebSocket, process }) };
}

Deno.test("a socket of npm:ws gets copies, also where it replaces the WebSocket of the runtime", async () => {
  using _replaced = replaceRuntime({});
  const socket = Object.assign(new FakeSocket(), { pause() {}, resume() {} });
  const data = pattern(100);
  await webSocketConnection(socket).write(data);
  data.fill(0);
  assertEquals(socket.sent, [pattern(100)]);
});

Deno.test("the WebSocket of Node gets copies, because it reads the length of an array after it was sent", async () => {
  for (const [versions, isCopied] of [[{ node: "22", undici: "6" }, true], [{ node: "26" }, false]] as const) {
    using _replaced = replaceRuntime(versions);
    const socket = new FakeSocket();
    const data = pattern(100);
    await webSocketConnection(socket).write(data);
    assertEquals((socket.sent[0] as Uint8Array).buffer === data.buffer, !isCopied);
  }
});

Deno.test("a write waits while more than 512 KiB are queued, and rejects when the socket is closed", async () => {
  for (const outcome of ["drained", "closed"] as const) {
    using time = new ManualClock();
    let endPause: (() => void) | undefined;
    const pause = -1 as unknown as Timer;
    const cleared: (Timer | undefined)[] = [];
    clock.sleep = (run) => {
      endPause = run;
      return pause;
    };
    clock.clearTimer = (timer) => void cleared.push(timer);
    const socket = new FakeSocket();
    const connection = webSocketConnection(socket);
    const p = new Uint8Array(60 * KiB);
    let written = 0;
    const writing = (async () => {
      while (written < 10 * MiB) written += await connection.write(p);
    })();
    await turn();
    // The write polls the queue for 4 ms, then pauses.
    assertEquals(endPause, undefined);
    time.freeze(10);
    await turn();
    assert(endPause !== undefined);
    assertLessOrEqual(socket.bufferedAmount, 512 * KiB + p.length);
    const before = written;
    assertLess(512 * KiB, before);
    if (outcome === "drained") {
      socket.bufferedAmount = 0;
      endPause();
      await turn();
      assertLess(before, written);
    }
    socket.emit("close", { code: 1011, reason: "broken" });
    await assertRejects(() => writing, WebSocketClosedError, "1011: broken");
    assert(cleared.includes(pause));
  }
});

Deno.test("a socket with more unread than maxReceiveBuffer is closed with 1009, also by tiny messages", async () => {
  for (const [length, most] of [[10_000, 7], [1, 300], [2_000_000, 0]] as const) {
    const socket = new FakeSocket();
    const connection = webSocketConnection(socket, { maxReceiveBuffer: 77_100 });
    while (socket.closes.length === 0) socket.receive(new Uint8Array(length));
    socket.receive(new Uint8Array(length));
    assertEquals(socket.closes, [[1009, "maxReceiveBuffer exceeded"]]);
    // Messages within the limit stay readable.
    const p = new Uint8Array(length);
    for (let n = 0; n < most; n++) assertEquals(await connection.read(p), length);
    const error = await assertRejects(() => connection.read(p), WebSocketClosedError, "77100 bytes");
    assertEquals(error.code, 1009);
  }
});

Deno.test("bytes that were read do not count towards maxReceiveBuffer, also of messages read in parts", async () => {
  const socket = new FakeSocket();
  const connection = webSocketConnection(socket, { maxReceiveBuffer: 70_000 });
  const p = new Uint8Array(3000);
  for (let n = 0; n < 20; n++) {
    socket.receive(new Uint8Array(60_000));
    for (let at = 0; at < 60_000;) at += (await connection.read(p))!;
  }
  assertEquals(socket.closes, []);
});

Deno.test("a socket with pause() is paused at half of maxReceiveBuffer, and resumed when less is unread", async () => {
  const calls: string[] = [];
  const socket = Object.assign(new FakeSocket(), {
    pause: () => calls.push("pause"),
    resume: () => calls.push("resume"),
  });
  const connection = webSocketConnection(socket, { maxReceiveBuffer: 100_000 });
  for (let n = 0; n < 6; n++) socket.receive(new Uint8Array(10_000));
  assertEquals(calls, ["pause"]);
  const p = new Uint8Array(10_000);
  for (let n = 0; n < 6; n++) await connection.read(p);
  assertEquals(calls, ["pause", "resume"]);
});

Deno.test("a paused socket is resumed when it is closed, so that it receives the close frame of the peer", async () => {
  for (const end of ["close", "overflow"] as const) {
    const calls: string[] = [];
    const socket = Object.assign(new FakeSocket(), {
      pause: () => calls.push("pause"),
      resume: () => calls.push("resume"),
    });
    const connection = webSocketConnection(socket, { maxReceiveBuffer: 100_000 });
    socket.receive(new Uint8Array(60_000));
    assertEquals(calls, ["pause"]);
    if (end === "close") connection.close();
    else socket.receive(new Uint8Array(60_000));
    await turn();
    assertEquals([calls, socket.closes.length], [["pause", "resume"], 1]);
  }
});

Deno.test("a message with a frame of the maximum size is received with a maxReceiveBuffer of 1", async () => {
  const socket = new FakeSocket();
  const connection = webSocketConnection(socket, { maxReceiveBuffer: 1 });
  const longest = frame(2, PSH, 3, pattern(65_535)) as Uint8Array<ArrayBuffer>;
  const p = new Uint8Array(longest.length);
  for (let n = 0; n < 3; n++) {
    socket.receive(longest);
    assertEquals(await connection.read(p), longest.length);
    assertEquals(p, longest);
  }
  for (let n = 0; n < 2; n++) socket.receive(longest);
  assertEquals(socket.closes, [[1009, "maxReceiveBuffer exceeded"]]);
});

Deno.test("a session reads all messages that its socket holds, and frees each buffer that it owns", async () => {
  for (const isOwned of [true, false]) {
    const socket = new FakeSocket();
    const session = Session.server(webSocketConnection(socket));
    const frames = Array.from({ length: 40 }, (_, n) => frame(1, PSH, 3, pattern(60_000, n)).slice());
    socket.receive(frame(1, SYN, 3) as Uint8Array<ArrayBuffer>);
    // More than 1 MiB, so that the socket is behind.
    for (const bytes of frames) socket.emit("message", { data: isOwned ? bytes.buffer : bytes });
    const stream = await session.acceptStream();
    for (let n = 0; n < frames.length; n++) assertEquals(await readExactly(stream, 60_000), pattern(60_000, n));
    const freed = frames.filter(({ buffer }) => buffer.byteLength === 0);
    // The last one is freed by the next read.
    assertEquals(freed.length, isOwned ? frames.length - 1 : 0);
    session.abort();
    await session.closed.catch(() => {});
  }
});

Deno.test("a long message is decoded in parts of 128 KiB, and received whole", async () => {
  const socket = new FakeSocket();
  const session = Session.server(webSocketConnection(socket));
  const data = pattern(40 * 60_000);
  const frames = Array.from({ length: 40 }, (_, n) => frame(1, PSH, 3, data.subarray(n * 60_000, (n + 1) * 60_000)));
  const message = concat([frame(1, SYN, 3), ...frames, frame(1, FIN, 3)]);
  await turn(); // until the session reads
  socket.emit("message", { data: message.buffer });
  assertEquals([session.stats().framesReceived, message.length], [0, 0], "not at once, and the memory is freed");
  const stream = await session.acceptStream();
  assertLess(session.stats().framesReceived, frames.length, "the session reads 1 MiB in one step");
  assertEquals(await readAll(stream), data);
  assertEquals(session.stats().bytesReceived, data.length + 42 * HEADER_LENGTH);
  session.abort();
});

Deno.test("a long message of SYNs stops after 1024 refusals and one part while its socket is full", async () => {
  const socket = new FakeSocket();
  const session = Session.server(webSocketConnection(socket), { maxStreams: 1 });
  const count = MiB / HEADER_LENGTH;
  const message = new Uint8Array(MiB);
  for (let n = 0; n < count; n++) message.set(frame(1, SYN, 3 + 2 * n), n * HEADER_LENGTH);
  socket.bufferedAmount = Infinity;
  socket.receive(message);
  while (!session.stats().readPaused) await turn();
  const { refused, framesSent, framesReceived } = session.stats();
  assertLessOrEqual(refused - framesSent, 1024 + 128 * KiB / HEADER_LENGTH);
  assertLess(framesReceived, count);
  session.abort();
});

Deno.test("Session.stats(): bytesReceived counts a message once that is decoded in two steps", async () => {
  const socket = new FakeSocket();
  const session = Session.server(webSocketConnection(socket));
  await turn();
  const message = concat(Array.from({ length: 300 }, (_, n) => frame(1, SYN, 3 + 2 * n)));
  socket.receive(message as Uint8Array<ArrayBuffer>);
  for (let n = 0; n < 300; n++) await session.acceptStream();
  assertEquals(session.stats().bytesReceived, message.length);
  session.abort();
});

Deno.test("a session that pauses reading ends with code 1009 when its socket exceeds maxReceiveBuffer", async () => {
  const socket = new FakeSocket();
  const options = { maxReceiveBuffer: 100_000, keepAliveInterval: Infinity, timeout: Infinity };
  const session = Session.server(webSocketConnection(socket, options), options);
  socket.receive(frame(1, SYN, 3) as Uint8Array<ArrayBuffer>);
  const data = frame(1, PSH, 3, new Uint8Array(30_000)) as Uint8Array<ArrayBuffer>;
  for (let n = 0; n < 4; n++) {
    socket.receive(data);
    await turn();
  }
  assert(session.stats().readPaused);
  for (let n = 0; n < 4; n++) socket.receive(data);
  assertEquals(socket.closes, [[1009, "maxReceiveBuffer exceeded"]]);
  assertEquals(await state(session.closed), "rejected");
  const error = await assertRejects(() => session.closed, WebSocketClosedError);
  assertEquals(error.code, 1009);
});

Deno.test("version 1: an unread stream ends the session with 1009, with at most maxReceiveBuffer unread", async () => {
  const errors: unknown[] = [];
  const sessions: Session[] = [];
  await using server = serveUpgrades((request) =>
    upgradeWebSocket(request, (stream) => stream.closed, {
      maxReceiveBuffer: MiB,
      stalledStreamTimeout: Infinity,
      onSession: (session) => sessions.push(session),
      onError: (error) => errors.push(error),
    })
  );
  const session = await connectWebSocket(server.url, { version: 1 });
  const stream = await session.openStream();
  const p = new Uint8Array(64 * KiB);
  await assertRejects(async () => {
    for (;;) await stream.write(p);
  });
  const error = await assertRejects(() => session.closed, WebSocketClosedError);
  // A client that keeps writing may find the connection cut before it reads the code.
  assert(error.code === 1009 || error.code === 1006, `${error.code}`);
  const reason = await assertRejects(() => sessions[0]!.closed, WebSocketClosedError);
  assertEquals([reason.code, errors], [1009, [reason]]);
  const { bytesUnread, bytesReceived } = sessions[0]!.stats();
  assertLessOrEqual(bytesUnread, MiB + 128 * KiB);
  assertLessOrEqual(bytesReceived, MiB + 128 * KiB);
});

for (const readers of [1, 2]) {
  Deno.test(`version 1: a session keeps up with messages in microtasks, readers: ${readers}`, async () => {
    const socket = new FakeSocket();
    const session = Session.server(webSocketConnection(socket, { maxReceiveBuffer: 2 * MiB }));
    const counts = Array.from({ length: readers }, async (_, n) => {
      const stream = await session.acceptStream();
      let count = 0;
      for (const p = new Uint8Array(64 * KiB);;) {
        const read = await stream.read(p);
        if (read === null) return [n, count];
        count += read;
      }
    });
    const ids = Array.from({ length: readers }, (_, n) => 3 + 2 * n);
    const payload = new Uint8Array(60 * KiB);
    for (const id of ids) socket.receive(frame(1, SYN, id) as Uint8Array<ArrayBuffer>);
    // 30 MiB, as Deno delivers them while its socket has more.
    for (let n = 0; n < 500; n++) {
      for (const id of ids) socket.receive(frame(1, PSH, id, payload) as Uint8Array<ArrayBuffer>);
      for (let m = 0; m < 3; m++) await undefined;
    }
    for (const id of ids) socket.receive(frame(1, FIN, id) as Uint8Array<ArrayBuffer>);
    assertEquals(await Promise.all(counts), ids.map((_, n) => [n, 500 * payload.length]));
    assertEquals(socket.closes, []);
    session.abort();
  });
}

Deno.test("version 2: an unread stream does not stop another stream of its session", async () => {
  let unread: Stream | undefined;
  await using server = serveUpgrades((request) =>
    upgradeWebSocket(request, async (stream) => {
      if (unread === undefined) await (unread = stream).closed;
      else await echo(stream);
    })
  );
  const session = await connectWebSocket(server.url);
  const stalled = await session.openStream();
  const p = new Uint8Array(64 * KiB);
  const writing = (async () => {
    for (;;) await stalled.write(p);
  })().catch(() => {});
  const stream = await session.openStream();
  const sent = pattern(5 * MiB);
  const received = readAll(stream);
  await writeAll(stream, sent);
  await stream.closeWrite();
  assertEquals(await sha256(await received), await sha256(sent));
  unread!.close();
  session.abort();
  await writing;
});

// The server.

Deno.test("upgradeWebSocket() answers 426 to a request without an upgrade, and 400 to a malformed one", async () => {
  await using server = serveUpgrades((request) => upgradeWebSocket(request, echo));
  const url = server.url.replace("ws:", "http:");
  const response = await fetch(url);
  assertEquals([response.status, response.headers.get("upgrade")], [426, "websocket"]);
  assertEquals(await response.text(), "Expected a WebSocket");
  const malformed = upgradeWebSocket(new Request(url, { headers: { upgrade: "websocket" } }), echo);
  assertEquals(malformed.status, 400);
});

Deno.test("upgradeWebSocket() throws for an option out of bounds, for incoming and without a handler", () => {
  const request = new Request("http://localhost/", { headers: { upgrade: "websocket" } });
  assertThrows(() => upgradeWebSocket(request, echo, { maxStreams: 0 }), RangeError, "maxStreams");
  const { sender: incoming } = bounded<Stream>(1);
  assertThrows(() => upgradeWebSocket(request, echo, { incoming } as object), TypeError, "incoming");
  assertThrows(() => upgradeWebSocket(request, undefined as never), TypeError, "handler must be a function");
});

Deno.test("upgradeWebSocket() ends the session at once when its signal aborts", async () => {
  const controller = new AbortController();
  const began = Promise.withResolvers<void>();
  await using server = serveUpgrades((request) =>
    upgradeWebSocket(request, echo, { signal: controller.signal, onSession: () => began.resolve() })
  );
  const session = await connectWebSocket(server.url);
  await began.promise;
  controller.abort();
  await assertRejects(() => session.closed, WebSocketClosedError, "aborted");
});

Deno.test("upgradeWebSocket() makes Deno wait for a silent client for the timeout of its session, or 30 seconds if that is less", async () => {
  const { upgradeWebSocket: upgrade } = Deno;
  using _restored = { [Symbol.dispose]: () => void (Deno.upgradeWebSocket = upgrade) };
  const waits: (number | undefined)[] = [];
  Deno.upgradeWebSocket = (request, options) => {
    waits.push(options?.idleTimeout);
    return upgrade(request, options);
  };
  for (const options of [{}, { timeout: 300_000 }, { timeout: 1500, keepAliveInterval: 1000 }, { timeout: Infinity }]) {
    await using server = serveUpgrades((request) => upgradeWebSocket(request, echo, options));
    const session = await connectWebSocket(server.url);
    await session.close();
  }
  assertEquals(waits, [30, 300, 30, 0]);
});

Deno.test("a server's socket that is closed before it opens is closed with 1000 for the client", async () => {
  const sockets = new WebSocketListener();
  const upgrades: ((request: Request) => Response)[] = [
    (request) => upgradeWebSocket(request, echo, { signal: AbortSignal.abort() }),
    (request) => upgradeWebSocket(request, echo, { onSession: (session) => session.abort(), onError() {} }),
    (request) => {
      const response = sockets.upgrade(request);
      sockets.close();
      return response;
    },
  ];
  for (const upgrade of upgrades) {
    await using server = serveUpgrades(upgrade);
    const socket = new WebSocket(server.url);
    const closed = new Promise<CloseEvent>((resolve) => socket.onclose = resolve);
    assertEquals((await deadline(closed, 5000)).code, 1001);
  }
});

Deno.test("WebSocketListener.upgrade() answers 503 when the listener is closed or 1024 sockets wait", async () => {
  const request = new Request("http://localhost/", { headers: { upgrade: "websocket" } });
  const closed = new WebSocketListener();
  const full = new WebSocketListener();
  closed.close();
  for (let n = 0; n < 1024; n++) full.add(new FakeSocket());
  assertEquals([closed.upgrade(request).status, full.upgrade(request).status], [503, 503]);
  await full.accept();
  // The request is malformed.
  assertEquals(full.upgrade(request).status, 400);
  full.close();
});

Deno.test("new WebSocketListener() throws for an invalid maxReceiveBuffer", () => {
  for (const maxReceiveBuffer of [0, -1, NaN]) {
    assertThrows(() => new WebSocketListener({ maxReceiveBuffer }), RangeError, "maxReceiveBuffer must be a number");
  }
});

Deno.test("WebSocketListener with serve(): shutdown() waits for open streams, and later requests get 503", async () => {
  const sockets = new WebSocketListener();
  const peers: unknown[] = [];
  const streams = serve(sockets, echo, { onSession: ({ remoteAddr }) => peers.push(remoteAddr) });
  const http = Deno.serve({ ...LOOPBACK, onListen() {} }, (request, info) => sockets.upgrade(request, info));
  const session = await connectWebSocket(`ws://127.0.0.1:${http.addr.port}/`);
  const stream = await session.openStream();
  const p = new Uint8Array(3);
  await stream.write(p);
  await stream.read(p);
  assertEquals((peers[0] as Deno.NetAddr).hostname, "127.0.0.1");
  const stopped = streams.shutdown();
  await turn();
  const refused = await fetch(`http://127.0.0.1:${http.addr.port}/`, { headers: { upgrade: "websocket" } });
  await refused.body?.cancel();
  assert(refused.status === 503 || refused.status === 426, `${refused.status}`);
  await stream.write(p);
  assertEquals(await stream.read(p), 3);
  await stream.closeWrite();
  assertEquals(await stream.read(p), null);
  await stopped;
  await session.closed;
  await http.shutdown();
});

Deno.test("WebSocketListener.close() closes sockets that wait to be accepted, and accept() rejects", async () => {
  const sockets = new WebSocketListener();
  const [first, second, late] = [new FakeSocket(), new FakeSocket(), new FakeSocket()];
  sockets.add(first);
  sockets.add(second);
  const accepted = await sockets.accept();
  sockets.close();
  sockets.add(late);
  assertEquals([first.closes.length, second.closes.length, late.closes.length], [0, 1, 1]);
  const error = await assertRejects(() => sockets.accept(), Error, "closed");
  assertEquals(error.name, "Interrupted");
  assertInstanceOf(error.cause, ChannelClosedError);
  accepted.close();
});

// Steps without a promise: writes, and messages that are decoded in their events.

/** The payloads of stream 3 in these messages, as one array. */
function payloads(messages: Uint8Array[]): Uint8Array {
  const frames: RawFrame[] = [];
  const decoder = new FrameDecoder();
  for (const message of messages) decoder.push(message, collector(frames));
  return concat(frames.filter(({ command, id }) => command === PSH && id === 3).map(({ data }) => data));
}

Deno.test("a session sends 64 KiB or more in messages of 63 KiB, and the rest with the pass of the event loop", async () => {
  using _time = new ManualClock();
  const socket = new FakeSocket();
  const session = Session.client(webSocketConnection(socket), { version: 1 });
  const stream = await session.openStream();
  await turn();
  socket.sent.length = 0;
  const data = pattern(640 * KiB);
  for (let at = 0; at < data.length; at += 64 * KiB) {
    socket.bufferedAmount = 0;
    await stream.write(data.subarray(at, at + 64 * KiB));
  }
  const full = socket.sent.length;
  assertEquals(socket.sent.map(({ length }) => length), Array(10).fill(63 * KiB));
  await turn();
  assertEquals(socket.sent.slice(full).map(({ length }) => length), [10 * KiB + 20 * HEADER_LENGTH]);
  assertEquals(payloads(socket.sent), data);
  assertEquals(session.stats().bytesUnsent, 0);
  session.abort();
  await session.closed.catch(() => {});
});

Deno.test("a session holds frames while a WebSocket has more than 512 KiB queued, and sends them in order", async () => {
  const socket = new FakeSocket();
  const session = Session.client(webSocketConnection(socket), { version: 1 });
  const streams = [await session.openStream(), await session.openStream()];
  const data = pattern(3 * MiB);
  let isWritten = false;
  const writing = Promise.all(streams.map((stream) => writeAll(stream, data))).then(() => isWritten = true);
  while (socket.bufferedAmount <= 512 * KiB) await turn(1);
  const queued = socket.bufferedAmount;
  assertLessOrEqual(queued, (512 + 63) * KiB);
  await turn();
  assertEquals([socket.bufferedAmount, isWritten], [queued, false]);
  assertLessOrEqual(session.stats().bytesUnsent, WRITE_BUFFER);
  while (!isWritten || session.stats().bytesUnsent > 0) {
    socket.bufferedAmount = 0;
    await turn(1);
  }
  await writing;
  assertEquals(payloads(socket.sent), data);
  assertEquals(socket.sent.reduce((sum, { length }) => sum + length, 0), session.stats().bytesSent);
  session.abort();
  await session.closed.catch(() => {});
});

Deno.test("frames written from inside send() of a WebSocket follow those that are being sent", async () => {
  using _time = new ManualClock();
  const socket = new FakeSocket();
  const session = Session.client(webSocketConnection(socket), { version: 1 });
  const stream = await session.openStream();
  await turn();
  const send = socket.send.bind(socket);
  const parts = [pattern(100 * KiB, 1), pattern(40 * KiB, 2), pattern(100, 3)];
  const later = parts.slice(1);
  socket.send = (data) => {
    const next = later.shift();
    if (next !== undefined) assertEquals(stream.tryWrite(next), next.length);
    send(data);
  };
  await stream.write(parts[0]!);
  await turn();
  assertEquals(payloads(socket.sent), concat(parts));
  session.abort();
  await session.closed.catch(() => {});
});

Deno.test("a session aborted from inside send() of a WebSocket ends, and sends nothing more", async () => {
  const socket = new FakeSocket();
  const session = Session.client(webSocketConnection(socket), { version: 1 });
  const stream = await session.openStream();
  await turn();
  const count = socket.sent.length;
  const send = socket.send.bind(socket);
  socket.send = (data) => {
    session.abort();
    send(data);
  };
  stream.write(new Uint8Array(200 * KiB)).catch(() => {});
  await turn();
  assertEquals(await state(session.closed), "rejected");
  assertEquals(socket.sent.length, count + 1);
  await assertRejects(() => stream.write(new Uint8Array(1)), SessionClosedError);
});

Deno.test("a message is decoded in its event, unless its reader has not read again", async () => {
  using _time = new ManualClock();
  for (const version of [1, 2] as const) {
    const socket = new FakeSocket();
    const session = Session.server(webSocketConnection(socket));
    socket.receive(frame(version, SYN, 3) as Uint8Array<ArrayBuffer>);
    const stream = await session.acceptStream();
    const p = new Uint8Array(10);
    for (let n = 0; n < 3; n++) {
      const reading = stream.read(p);
      await turn();
      const { framesReceived } = session.stats();
      const decoded = [];
      for (let at = 0; at < 3; at++) {
        socket.receive(frame(version, PSH, 3, pattern(2, at)) as Uint8Array<ArrayBuffer>);
        decoded.push(session.stats().framesReceived - framesReceived);
      }
      assertEquals(decoded, [1, 1, 1]);
      assertEquals([await reading, p.slice(0, 2)], [2, pattern(2, 0)]);
      assertEquals(await readExactly(stream, 4), concat([pattern(2, 1), pattern(2, 2)]));
    }
    session.abort();
    await session.closed.catch(() => {});
  }
});

Deno.test("the answers of all readers that one message serves are sent, also if they read again first", async () => {
  for (const count of [1, 2, 3]) {
    const socket = new FakeSocket();
    const session = Session.server(webSocketConnection(socket));
    const ids = Array.from({ length: count }, (_, n) => 3 + 2 * n);
    for (const id of ids) socket.receive(frame(2, SYN, id) as Uint8Array<ArrayBuffer>);
    const streams = await Promise.all(ids.map(() => session.acceptStream()));
    for (const size of [10, 10_000]) {
      const p = new Uint8Array(size);
      const answered = streams.map(async (stream) => {
        await stream.read(p);
        const next = stream.read(new Uint8Array(1));
        await microtasks();
        await stream.write(p.subarray(0, 5));
        return next;
      });
      await turn();
      socket.sent.length = 0;
      socket.receive(concat(ids.map((id) => frame(2, PSH, id, p))) as Uint8Array<ArrayBuffer>);
      await turn();
      const frames: RawFrame[] = [];
      const decoder = new FrameDecoder();
      for (const message of socket.sent) decoder.push(message, collector(frames));
      assertEquals(frames.filter(({ command }) => command === PSH).map(({ id }) => id), ids);
      for (const id of ids) socket.receive(frame(2, PSH, id, new Uint8Array(1)) as Uint8Array<ArrayBuffer>);
      assertEquals(await Promise.all(answered), ids.map(() => 1));
    }
    session.abort();
    await session.closed.catch(() => {});
  }
});

Deno.test("messages of any size are received in order, in their events and behind slow readers", async () => {
  for (let seed = 1; seed <= 60; seed++) {
    let random = seed;
    const below = (limit: number) => ((random = xorshift(random)) >>> 0) % limit;
    const version = (1 + seed % 2) as Version;
    const socket = new FakeSocket();
    const session = Session.server(webSocketConnection(socket));
    const data = [pattern(200_000, seed), pattern(100_000, seed + 1)];
    const wire: Uint8Array[] = data.map((_, n) => frame(version, SYN, 3 + 2 * n));
    const at = [0, 0];
    while (at[0]! < data[0]!.length || at[1]! < data[1]!.length) {
      const n = at[1]! < data[1]!.length && (at[0] === data[0]!.length || below(2) === 0) ? 1 : 0;
      const end = Math.min(data[n]!.length, at[n]! + 1 + below(below(4) === 0 ? 32 * KiB : 300));
      wire.push(frame(version, PSH, 3 + 2 * n, data[n]!.subarray(at[n]!, end)));
      at[n] = end;
    }
    wire.push(frame(version, FIN, 3), frame(version, FIN, 5));
    const bytes = concat(wire);
    const received = Promise.all(data.map(async (_, n) => {
      const stream = await session.acceptStream();
      const parts: Uint8Array[] = [];
      for (const p = new Uint8Array(1 + seed * 997 % (70 * KiB));;) {
        const count = await stream.read(p);
        if (count === null) return concat(parts);
        parts.push(p.slice(0, count));
        if ((seed + n) % 3 === 0) await microtasks(parts.length % 7);
        if ((seed + n) % 5 === 0 && parts.length % 4 === 0) await turn(1);
      }
    }));
    for (let sent = 0; sent < bytes.length;) {
      const count = 1 + below(below(3) === 0 ? 64 * KiB : 500);
      socket.receive(bytes.slice(sent, sent + count));
      sent += count;
      if (below(3) === 0) await microtasks(below(6));
      if (below(20) === 0) await turn(1);
    }
    for (const [n, part] of (await received).entries()) assertEquals(part, data[n]);
    session.abort();
    await session.closed.catch(() => {});
  }
});

Deno.test("one message with more SYNs than acceptors take at once is received to its end", async () => {
  for (const count of [255, 256, 257, 600]) {
    const socket = new FakeSocket();
    const session = Session.server(webSocketConnection(socket));
    const counted = (async () => {
      for (let n = 0; n < count - 1; n++) await session.acceptStream();
      return await readExactly(await session.acceptStream(), 100);
    })();
    await turn();
    const frames = Array.from({ length: count }, (_, n) => frame(1, SYN, 3 + 2 * n));
    socket.receive(concat(frames) as Uint8Array<ArrayBuffer>);
    socket.receive(frame(1, PSH, 1 + 2 * count, pattern(100)) as Uint8Array<ArrayBuffer>);
    assertEquals(await deadline(counted, 5000), pattern(100));
    const { accepted, refused } = session.stats();
    assertEquals([accepted, refused], [count, 0]);
    session.abort();
    await session.closed.catch(() => {});
  }
});

Deno.test("a message with data and more SYNs than acceptors take at once does not hold the answer to the data", async () => {
  const socket = new FakeSocket();
  const session = Session.server(webSocketConnection(socket));
  socket.receive(frame(1, SYN, 3) as Uint8Array<ArrayBuffer>);
  const stream = await session.acceptStream();
  const reading = stream.read(new Uint8Array(10));
  await turn();
  const syns = Array.from({ length: 600 }, (_, n) => frame(1, SYN, 5 + 2 * n));
  socket.receive(concat([frame(1, PSH, 3, pattern(10)), ...syns]) as Uint8Array<ArrayBuffer>);
  assertEquals(await reading, 10);
  stream.read(new Uint8Array(1)).catch(() => {});
  await turn(100);
  socket.sent.length = 0;
  await stream.write(pattern(5));
  await turn();
  assertEquals(payloads(socket.sent), pattern(5));
  session.abort();
  await session.closed.catch(() => {});
});

Deno.test("a flood of frames without effect in messages pauses reading", async () => {
  // The end of a time slice would stop the reading, too.
  using _clock = new ManualClock();
  const socket = new FakeSocket();
  const session = Session.server(webSocketConnection(socket));
  const nops = concat(Array.from({ length: 1000 }, () => frame(1, NOP, 0))) as Uint8Array<ArrayBuffer>;
  await turn();
  for (let n = 0; n < 50; n++) socket.receive(nops);
  const { framesReceived } = session.stats();
  assertLess(0, framesReceived);
  assertLessOrEqual(framesReceived, FLOOD_BUDGET + 1000);
  session.abort();
  await session.closed.catch(() => {});
});

Deno.test("an invalid frame in a message ends the session, and closes the WebSocket", async () => {
  const socket = new FakeSocket();
  const session = Session.server(webSocketConnection(socket));
  await turn();
  socket.receive(frame(1, SYN, 4) as Uint8Array<ArrayBuffer>);
  assertEquals(socket.closes.length, 1);
  const error = await assertRejects(() => session.closed, ProtocolError);
  assertEquals(error.offset, 0);
});
