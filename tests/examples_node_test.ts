/**
 * The modules of `examples/node`, which join streams and the modules of Node.
 *
 * @module
 */

import { assert, assertEquals, assertGreaterOrEqual, assertRejects } from "@std/assert";
import { type EventEmitter, once } from "node:events";
import { Agent, createServer, type IncomingMessage, request, type RequestOptions } from "node:http";
import { connect } from "node:net";
import { text } from "node:stream/consumers";
import { listen } from "../examples/node/listen.ts";
import { StreamSocket } from "../examples/node/socket.ts";
import postgres from "npm:postgres@3.4.9";
import { WebSocket, WebSocketServer } from "npm:ws@8.23.0";
import pg from "pg";
import { connections, join, serve, Session, SessionClosedError } from "../mod.ts";
import { hasPostgres, startPostgres } from "./postgres.ts";
import { bytes, LOOPBACK, writeAll } from "./support.ts";

/** What is used of a WebSocket of `npm:ws`, whose types bring those of Node, which conflict with those of Deno. */
type Echoing = EventEmitter & { send(message: Uint8Array): void };

/** Both ends of a session, of which the server serves HTTP and WebSockets, which return what they receive. */
async function startEcho() {
  const web = createServer((incoming, response) => void incoming.pipe(response));
  Object.defineProperty(web, "listening", { value: true });
  const webSockets = new WebSocketServer({ noServer: true });
  web.on("upgrade", (incoming, socket, head) => {
    webSockets.handleUpgrade(incoming, socket, head, (webSocket: Echoing) => {
      webSocket.on("message", (message: Uint8Array) => webSocket.send(message));
    });
  });
  const listener = Deno.listen(LOOPBACK);
  const server = serve(listener, async (stream) => {
    const socket = new StreamSocket(stream);
    web.emit("connection", socket);
    await once(socket, "close");
  });
  const session = Session.client(await Deno.connect({ ...LOOPBACK, port: listener.addr.port }));
  const end = async () => {
    await session.close();
    await server.shutdown();
  };
  return { session, [Symbol.asyncDispose]: end };
}

function send(options: RequestOptions, body = ""): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => request(options, resolve).on("error", reject).end(body));
}

Deno.test("examples/node/socket.ts: http.request transfers bodies of all sizes, and the streams end", async () => {
  await using echo = await startEcho();
  const sockets: StreamSocket[] = [];
  const createConnection = () => sockets[sockets.length] = new StreamSocket(echo.session.openStream());
  await Promise.all([0, 1, 100_000, 2_000_000].map(async (size) => {
    const body = "x".repeat(size);
    const response = await send({ createConnection, method: "PUT", headers: { connection: "close" } }, body);
    assertEquals(response.statusCode, 200);
    assert(await text(response) === body, `${size} characters`);
  }));
  await Promise.all(sockets.map((socket) => socket.closed || once(socket, "close")));
  assertEquals(echo.session.stats().streams, 0);
});

Deno.test("examples/node/socket.ts: http.Agent with keepAlive reuses its streams, and destroy() closes them", async () => {
  await using echo = await startEcho();
  const sockets: StreamSocket[] = [];
  const agent = new Agent({ keepAlive: true, maxSockets: 3 });
  agent.createConnection = () => sockets[sockets.length] = new StreamSocket(echo.session.openStream());
  for (let round = 0; round < 3; round++) {
    await Promise.all(Array.from({ length: 10 }, async (_, n) => {
      const response = await send({ agent, method: "PUT" }, `body ${n}`);
      assertEquals(await text(response), `body ${n}`);
    }));
  }
  assertEquals([sockets.length, echo.session.stats().streams], [3, 3]);
  agent.destroy();
  await Promise.all(sockets.map((socket) => socket.closed || once(socket, "close")));
  assertEquals(echo.session.stats().streams, 0);
});

Deno.test("examples/node/socket.ts: a truncated response rejects, although its stream ended without an error", async () => {
  const listener = Deno.listen(LOOPBACK);
  await using _cutting = serve(listener, async (stream) => {
    await stream.read(new Uint8Array(1000));
    await writeAll(stream, bytes("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n12345"));
  });
  await using session = Session.client(await Deno.connect({ ...LOOPBACK, port: listener.addr.port }));
  const response = await send({ createConnection: () => new StreamSocket(session.openStream()) });
  await assertRejects(() => text(response), Error, "aborted");
});

Deno.test("examples/node/socket.ts: a request rejects when its stream cannot be opened, and when its session is lost", async () => {
  const listener = Deno.listen(LOOPBACK);
  const [connection, accepted] = await Promise.all([
    Deno.connect({ ...LOOPBACK, port: listener.addr.port }),
    listener.accept(),
  ]);
  const [session, peer] = [Session.client(connection), Session.server(accepted)];
  const createConnection = () => new StreamSocket(session.openStream());
  const pending = assertRejects(() => send({ createConnection }), Error);
  await peer.acceptStream();
  session.abort(new Error("the session is lost"));
  await pending;
  await assertRejects(() => send({ createConnection }), SessionClosedError);
  await peer.closed;
  listener.close();
});

Deno.test("examples/node/socket.ts: timeout is emitted when nothing was transferred for this time", async () => {
  const DELAY = 100;
  const listener = Deno.listen(LOOPBACK);
  await using _server = serve(listener, (stream) => stream.readable.pipeTo(stream.writable));
  const session = Session.client(await Deno.connect({ ...LOOPBACK, port: listener.addr.port }));
  const socket = new StreamSocket(session.openStream());
  await once(socket, "connect");
  let last = 0;
  let idle: number | undefined;
  socket.setTimeout(DELAY, () => idle ??= performance.now() - last);
  const timeout = once(socket, "timeout");
  for (let exchanges = 0; exchanges < 100; exchanges++) {
    last = performance.now();
    socket.write("?");
    await once(socket, "data");
  }
  await timeout;
  // The timers of Node are exact to a millisecond.
  assertGreaterOrEqual(idle!, DELAY - 1);
  socket.destroy();
  await session.close();
});

Deno.test("examples/node/socket.ts: it has the members of a net.Socket, and ends itself after its peer", async () => {
  const listener = Deno.listen(LOOPBACK);
  await using _server = serve(listener, async (stream) => {
    await stream.read(new Uint8Array(1));
    await stream.write(bytes("answer"));
  });
  const session = Session.client(await Deno.connect({ ...LOOPBACK, port: listener.addr.port }));
  const socket = new StreamSocket(session.openStream());
  assertEquals([socket.connecting, socket.readyState, socket.remoteAddress], [true, "opening", undefined]);
  await once(socket.connect().setNoDelay().setKeepAlive().ref().unref(), "connect");
  assertEquals([socket.connecting, socket.readyState], [false, "open"]);
  assertEquals([socket.remoteAddress, socket.remotePort], ["127.0.0.1", listener.addr.port]);
  assertEquals([socket.localAddress, socket.localPort], ["127.0.0.1", (session.localAddr as Deno.NetAddr).port]);
  await once(socket.connect(), "connect");

  const events: string[] = [];
  const note = () => events.push("timeout");
  socket.setTimeout(1, note);
  await once(socket, "timeout");
  assertEquals([events, socket.timeout], [["timeout"], 1]);
  socket.setTimeout(60_000, note);
  socket.setTimeout(0, note);
  assertEquals([socket.listenerCount("timeout"), socket.timeout], [0, 0]);

  const ended = once(socket, "close");
  socket.write("?");
  assertEquals(await text(socket), "answer");
  await ended;
  assertEquals([socket.readyState, session.stats().streams], ["closed", 0]);
  await session.close();
});

Deno.test("examples/node/socket.ts: a client and a pool of pg query PostgreSQL over streams, and leave none", {
  ignore: !hasPostgres,
}, async () => {
  await using database = await startPostgres();
  const listener = Deno.listen(LOOPBACK);
  await using _server = serve(listener, async (stream) => {
    await join(stream, await Deno.connect({ ...LOOPBACK, port: database.port }));
  });
  const session = Session.client(await Deno.connect({ ...LOOPBACK, port: listener.addr.port }));
  const options = {
    user: "postgres",
    database: "postgres",
    keepAlive: true,
    stream: () => new StreamSocket(session.openStream()),
  };

  const client = new pg.Client(options);
  await client.connect();
  const large = await client.query("SELECT repeat('x', 20000000) AS text");
  assertEquals(large.rows[0].text.length, 20_000_000);
  await assertRejects(() => client.query("SELECT 1 / 0"), Error, "division by zero");
  await client.query("CREATE TABLE numbers (n int)");
  await client.end();
  assertEquals(session.stats().opened, 1);

  const pool = new pg.Pool({ ...options, max: 5 });
  await Promise.all(Array.from({ length: 50 }, (_, n) => pool.query("INSERT INTO numbers VALUES ($1)", [n])));
  const { rows } = await pool.query("SELECT sum(n)::int AS sum FROM numbers");
  assertEquals(rows, [{ sum: 49 * 50 / 2 }]);
  await pool.end();
  // Rejects if a stream is left when the time is over.
  await session.close({ drain: true });
  await session.closed;
  assertEquals([session.stats().opened, session.stats().streams], [6, 0]);
});

Deno.test("examples/node/socket.ts: postgres queries PostgreSQL over streams, and leaves none", {
  ignore: !hasPostgres,
}, async () => {
  await using database = await startPostgres();
  const listener = Deno.listen(LOOPBACK);
  await using _server = serve(listener, async (stream) => {
    await join(stream, await Deno.connect({ ...LOOPBACK, port: database.port }));
  });
  const session = Session.client(await Deno.connect({ ...LOOPBACK, port: listener.addr.port }));
  // The types of the package lack `socket`.
  const options = { user: "postgres", max: 5, socket: () => new StreamSocket(session.openStream()) };
  const sql = postgres(options as postgres.Options<Record<string, never>>);
  const rows = await Promise.all(Array.from({ length: 20 }, (_, n) => sql`SELECT ${n}::int AS n`));
  assertEquals(rows.flat().map(({ n }) => n), Array.from({ length: 20 }, (_, n) => n));
  await sql.end();
  // Rejects if a stream is left when the time is over.
  await session.close({ drain: true });
  await session.closed;
  assertEquals(session.stats().opened, 5);
});

Deno.test("examples/node/socket.ts: ws uses a stream, and leaves none", async () => {
  await using echo = await startEcho();
  const createConnection = () => new StreamSocket(echo.session.openStream());
  const webSocket = new WebSocket("ws://localhost/", { createConnection });
  await once(webSocket, "open");
  webSocket.send("x".repeat(1_000_000));
  const [message] = await once(webSocket, "message");
  assert(`${message}` === "x".repeat(1_000_000));
  webSocket.close();
  await once(webSocket, "close");
  await echo.session.close({ drain: true });
  await echo.session.closed;
});

Deno.test("examples/node/listen.ts: connections are accepted until the listener is closed, which ends the loop", async () => {
  const listener = await listen(0);
  const client = connect(listener.port, "127.0.0.1");
  const errors: unknown[] = [];
  for await (const socket of connections(listener, { onError: (error) => errors.push(error) })) {
    assertEquals(socket.remotePort, client.localPort);
    const closed = once(client.resume(), "close");
    socket.destroy();
    await closed;
    listener.close();
  }
  assertEquals(errors, []);
  const taken = Deno.listen(LOOPBACK);
  await assertRejects(() => listen(taken.addr.port), Error, "EADDRINUSE");
  taken.close();
});
