/** `serve()`, `connections()` and `join()`: normal use, faulty peers, errors of each kind, and the end. */

import { assert, assertEquals, assertInstanceOf, assertRejects, assertStrictEquals, assertThrows } from "@std/assert";
import { deadline } from "@std/async";
import { concat } from "@std/bytes";
import * as net from "node:net";
import { Duplex } from "node:stream";
import { bounded, Channel } from "../channel.ts";
import { clock } from "../_clock.ts";
import { untilCollected } from "./channel_support.ts";
import { FIN, PSH, SYN } from "../frame.ts";
import {
  type Connection,
  connections,
  type DuplexConnection,
  join,
  type Listener,
  ProtocolError,
  serve,
  type ServeOptions,
  type Server,
  Session,
  SessionClosedError,
  type Stream,
  StreamClosedError,
  StreamResetError,
} from "../mod.ts";
import { resumable, resumableListener } from "../resume.ts";
import { collectGarbage } from "./garbage.ts";
import {
  bytes,
  countListeners,
  frame,
  isRefused,
  LOOPBACK,
  ManualClock,
  type MemoryConnection,
  memoryPair,
  microtasks,
  pattern,
  RawPeer,
  readAll,
  readExactly,
  sessionPair,
  state,
  tcpPair,
  text,
  turn,
  writeAll,
} from "./support.ts";
import { connectWebSocket } from "../websocket.ts";

const MEGABYTE = 1_000_000;

/** A server on a free port, with functions that connect to it. */
function start(handler: (stream: Stream, session: Session) => void | Promise<void>, options: ServeOptions = {}) {
  const listener = Deno.listen(LOOPBACK);
  const server = serve(listener, handler, options);
  const dial = () => Deno.connect({ ...LOOPBACK, port: listener.addr.port });
  return { listener, server, dial, connect: async () => Session.client(await dial()) };
}

const echo = (stream: Stream) => stream.readable.pipeTo(stream.writable);

/** Sends a word on a new stream and returns all bytes of the answer. */
async function ask(session: Session, word: string): Promise<string> {
  const stream = await session.openStream();
  await stream.write(bytes(word));
  await stream.closeWrite();
  return text(await readAll(stream));
}

/** A list of errors; `until(count)` resolves when it has this many. */
function errorList() {
  const errors: unknown[] = [];
  let wanted = Infinity;
  let reached = Promise.withResolvers<void>();
  return {
    errors,
    onError: (error: unknown) => {
      errors.push(error);
      if (errors.length >= wanted) reached.resolve();
    },
    until: (count: number) => {
      wanted = count;
      reached = Promise.withResolvers();
      if (errors.length >= wanted) reached.resolve();
      return reached.promise;
    },
  };
}

/** Records the arguments of `console.error` until disposed. */
function catchConsole() {
  const original = console.error;
  const printed: unknown[] = [];
  console.error = (...data: unknown[]) => void printed.push(...data);
  return { printed, [Symbol.dispose]: () => void (console.error = original) };
}

/** A listener whose accepts run these steps in order; after the last step `accept()` waits until `close()`. */
function scriptedListener(...steps: (() => Connection | Promise<Connection>)[]): Listener & { isClosed: boolean } {
  const closing = Promise.withResolvers<never>();
  closing.promise.catch(() => {});
  return {
    isClosed: false,
    async accept() {
      return await (steps.shift()?.() ?? closing.promise);
    },
    close() {
      this.isClosed = true;
      closing.reject(new Deno.errors.BadResource("Listener has been closed"));
    },
  };
}

Deno.test("serve() passes each stream of each session to the handler, with its session", async () => {
  const seen = new Set<Session>();
  const { server, connect } = start((stream, session) => {
    seen.add(session);
    return echo(stream);
  });
  const sessions = await Promise.all([connect(), connect(), connect()]);
  const words = Array.from({ length: 50 }, (_, n) => `word ${n}`);
  for (const session of sessions) {
    assertEquals(await Promise.all(words.map((word) => ask(session, word))), words);
  }
  assertEquals(seen.size, 3);
  await Promise.all(sessions.map((session) => session.close()));
  await server.shutdown();
});

Deno.test("serve(): a stream is closed with FIN when its handler returns, with unread bytes left", async () => {
  const { server, connect } = start(async (stream) => {
    await stream.write(bytes("take this"));
  });
  const session = await connect();
  const stream = await session.openStream();
  await stream.write(new Uint8Array(1000));
  assertEquals(text(await readAll(stream)), "take this");
  stream.close();
  await session.close();
  await server.shutdown();
});

Deno.test("serve(): a write that a handler did not await leaves before the FIN", async () => {
  const sent = pattern(MEGABYTE);
  const { server, connect } = start((stream) => {
    stream.write(sent);
  });
  const session = await connect();
  const stream = await session.openStream();
  assertEquals(await readAll(stream), sent);
  stream.close();
  await session.close();
  await server.shutdown();
});

Deno.test("serve(): an error of a handler is reported, its stream is closed, and the server continues", async () => {
  const { errors, onError, until } = errorList();
  const { server, connect } = start((stream, session) => {
    if (session.stats().accepted === 1) throw new Error("at once");
    if (session.stats().accepted === 2) return Promise.reject(new Error("later"));
    return echo(stream);
  }, { onError });
  const session = await connect();
  assertEquals(await ask(session, "one"), "");
  assertEquals(await ask(session, "two"), "");
  assertEquals(await ask(session, "three"), "three");
  await until(2);
  assertEquals(errors.map(String), ["Error: at once", "Error: later"]);
  await session.close();
  await server.shutdown();
  assertEquals(errors.length, 2);
});

Deno.test("serve(): errors go to console.error by default", async () => {
  using console = catchConsole();
  const { server, connect } = start(() => {
    throw new Error("to the console");
  });
  const session = await connect();
  assertEquals(await ask(session, "one"), "");
  await session.close();
  await server.shutdown();
  assertEquals(console.printed.map(String), ["Error: to the console"]);
});

const failing: Record<string, () => void> = {
  "throws an error": () => {
    throw new Error("from onError");
  },
  "rejects with an error": () => Promise.reject(new Error("from onError")),
};
for (const [how, onError] of Object.entries(failing)) {
  Deno.test(`serve(): when onError ${how}, it is printed, and the server continues`, async () => {
    using console = catchConsole();
    const { server, connect } = start((stream, session) => {
      if (session.stats().accepted === 1) throw new Error("from the handler");
      return echo(stream);
    }, { onError });
    const session = await connect();
    assertEquals(await ask(session, "one"), "");
    assertEquals(await ask(session, "two"), "two");
    await session.close();
    await server.shutdown();
    assertEquals(console.printed.map(String), ["Error: from onError"]);
  });
}

Deno.test("serve(): a connection closed between frames is not reported", async () => {
  const { errors, onError } = errorList();
  const ended = Promise.withResolvers<void>();
  const { server, dial, connect } = start(async (stream, session) => {
    session.closed.then(ended.resolve, ended.reject);
    await echo(stream);
  }, { onError });
  const connection = await dial();
  await writeAll(connection, frame(2, SYN, 3));
  connection.close();
  await ended.promise;
  const session = await connect();
  assertEquals(await ask(session, "still here"), "still here");
  await session.close();
  await server.shutdown();
  assertEquals(errors, []);
});

Deno.test("serve(): a connection cut in a frame is reported once, its streams reject, and the server continues", async () => {
  const { errors, onError, until } = errorList();
  const rejected: Promise<unknown>[] = [];
  const { server, dial, connect } = start((stream) => {
    const done = echo(stream);
    rejected.push(done.catch((error) => error));
    return done;
  }, { onError });
  const connection = await dial();
  const whole = concat([frame(2, SYN, 3), frame(2, SYN, 5), frame(2, PSH, 3, new Uint8Array(100))]);
  await writeAll(connection, whole.subarray(0, -1));
  connection.close();
  await until(1);
  assertInstanceOf(errors[0], ProtocolError);

  const session = await connect();
  assertEquals(await ask(session, "still here"), "still here");
  await session.close();
  await server.shutdown();
  assertEquals(errors.length, 1);
  const reasons = await Promise.all(rejected);
  assertEquals(reasons.length, 3);
  for (const reason of reasons.slice(0, 2)) {
    assertInstanceOf(reason, SessionClosedError);
    assertStrictEquals(reason.cause, errors[0]);
  }
});

Deno.test("serve(): a connection reset by the peer is reported, and the server continues", async () => {
  const { errors, onError, until } = errorList();
  const opened = Promise.withResolvers<void>();
  const { listener, server, connect } = start((stream) => {
    opened.resolve();
    return echo(stream);
  }, { onError });
  const socket = net.connect(listener.addr.port, listener.addr.hostname);
  socket.write(frame(2, SYN, 3));
  await opened.promise;
  socket.resetAndDestroy();
  await until(1);
  assertInstanceOf(errors[0], Deno.errors.ConnectionReset);

  const session = await connect();
  assertEquals(await ask(session, "still here"), "still here");
  await session.close();
  await server.shutdown();
  assertEquals(errors.length, 1);
});

Deno.test("serve(): bytes that are not valid smux end only their session", async () => {
  const { errors, onError, until } = errorList();
  const { server, dial, connect } = start(echo, { onError });
  const session = await connect();
  const connection = await dial();
  await writeAll(connection, bytes("GET / HTTP/1.1\r\n\r\n"));
  assertEquals(await connection.read(new Uint8Array(1)).catch(() => null), null);
  connection.close();
  await until(1);
  assertInstanceOf(errors[0], ProtocolError);
  assertEquals(await ask(session, "still here"), "still here");
  await session.close();
  await server.shutdown();
});

Deno.test("serve(): 200 connections reset before they are accepted do not end the server", async () => {
  const COUNT = 200;
  const listener = Deno.listen(LOOPBACK);
  await Promise.all(Array.from({ length: COUNT }, () => {
    const closed = Promise.withResolvers<void>();
    const socket = net.connect(listener.addr.port, listener.addr.hostname, () => socket.resetAndDestroy());
    socket.on("close", () => closed.resolve());
    return closed.promise;
  }));

  // The connections are accepted only now.
  let accepted = 0;
  let failed = 0;
  const { errors, onError } = errorList();
  const server = serve(
    {
      async accept() {
        try {
          const connection = await listener.accept();
          accepted++;
          return connection;
        } catch (error) {
          if (!(error instanceof Deno.errors.BadResource)) failed++;
          throw error;
        }
      },
      close: () => listener.close(),
    },
    echo,
    { onError },
  );
  const session = Session.client(await Deno.connect({ ...LOOPBACK, port: listener.addr.port }));
  assertEquals(await ask(session, "still here"), "still here");
  assertEquals(accepted + failed, COUNT + 1);
  assert(failed > 0, "no accept failed, so the test proves nothing");
  await session.close();
  await server.shutdown();
  assertEquals(errors.length, COUNT, "each lost connection is reported once");
});

Deno.test("serve(): a connection accepted while the server stops is closed, and does not delay the stop", async () => {
  const stops: Record<string, (server: Server, controller: AbortController) => void> = {
    shutdown: (server) => void server.shutdown(),
    signal: (_, controller) => controller.abort(),
  };
  for (const [name, stop] of Object.entries(stops)) {
    for (let hops = 0; hops < 10; hops++) {
      const [near, far] = memoryPair();
      const accepting = Promise.withResolvers<Connection>();
      const controller = new AbortController();
      const sessions: Session[] = [];
      const onSession = (session: Session) => void sessions.push(session);
      const server = serve(scriptedListener(() => accepting.promise), echo, { signal: controller.signal, onSession });
      await turn();
      accepting.resolve(near);
      for (let n = 0; n < hops; n++) await null;
      stop(server, controller);
      // The far end stays open: a session created before the stop is ended by it, and none may be created after.
      await deadline(Promise.race([server.finished, far.read(new Uint8Array(1))]), 5000);
      far.close();
      await server.finished;
      assert(near.isClosed, `${name} after ${hops} microtasks, ${sessions.length} sessions`);
    }
  }
});

Deno.test("serve(): delays between accepts double after each failure, up to 1000 ms, and start again after a success", async () => {
  const delays: number[] = [];
  const { setTimer } = clock;
  clock.setTimer = (run, delay) => {
    if (delay > 1000) return setTimer(run, delay);
    delays.push(delay);
    return setTimer(run, 0);
  };
  try {
    const fail = () => {
      throw new Error("Too many open files");
    };
    const lose = () => {
      throw new Deno.errors.NotConnected("gone");
    };
    const [near, far] = memoryPair();
    const { errors, onError, until } = errorList();
    const listener = scriptedListener(...Array(10).fill(fail), () => near, fail, lose, fail);
    const server = serve(listener, echo, { onError });
    await until(13);
    assertEquals(delays.slice(0, 10), [5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
    assertEquals(delays.slice(10), [5, 10], "a lost connection adds no delay");
    far.close();
    await server.shutdown();
    assertEquals(errors.length, 13);
  } finally {
    clock.setTimer = setTimer;
  }
});

Deno.test("serve(): shutdown() stops accepting, waits for open streams, then ends the sessions", async () => {
  const { server, connect, dial } = start(echo);
  const session = await connect();
  const stream = await session.openStream();
  const p = new Uint8Array(10);
  await stream.write(p.subarray(0, 3));
  assertEquals(await stream.read(p), 3);

  let isFinished = false;
  const finished = server.shutdown().then(() => isFinished = true);
  assertEquals(await isRefused(dial), true);
  assertEquals(await ask(session, "too late"), "", "a new stream is refused");
  await stream.write(p.subarray(0, 7));
  assertEquals(await stream.read(p), 7);
  assertEquals(isFinished, false);

  await stream.closeWrite();
  assertEquals(await stream.read(p), null);
  await finished;
  await session.closed;
  await server.finished;
});

Deno.test("serve(): shutdown() with a timeout aborts the sessions still open after it", async () => {
  const errors: unknown[] = [];
  const { promise: begun, resolve: begin } = Promise.withResolvers<void>();
  const hold = (stream: Stream) => {
    begin();
    return stream.closed;
  };
  const { server, connect } = start(hold, { onError: (error) => errors.push(error) });
  const session = await connect();
  const stream = await session.openStream();
  await begun;
  assertThrows(() => server.shutdown({ timeout: 0.5 }), RangeError, "timeout");
  await server.shutdown({ timeout: 20 });
  assertEquals(await stream.read(new Uint8Array(1)).catch((error) => error.name), "SessionClosedError");
  assertEquals(errors.map((error) => (error as Error).name), ["TimeoutError"]);
  session.abort();
});

Deno.test("serve(): shutdown() with a timeout aborts a session whose connection is suspended", async () => {
  for (const isOpen of [true, false]) {
    const far = Deno.listen(LOOPBACK);
    const peers = resumableListener(far);
    // The server dials, so the end of its listener does not end the connection.
    let socket: Deno.TcpConn | undefined;
    const suspended = Promise.withResolvers<void>();
    const connection = resumable(
      async () => socket = await Deno.connect({ ...LOOPBACK, port: far.addr.port }),
      { onChange: (state) => state === "suspended" && suspended.resolve() },
    );
    const listener = new Channel<Connection>({ capacity: 1 });
    listener.trySend(connection);
    const errors: unknown[] = [];
    const server = serve(
      { accept: () => listener.receive(), close: () => listener.close() },
      echo,
      { onError: (error) => errors.push(error) },
    );
    const session = Session.client(await peers.accept());
    const stream = await session.openStream();
    await stream.write(bytes("hello"));
    assertEquals(await stream.read(new Uint8Array(5)), 5);
    if (!isOpen) stream.close();
    peers.close();
    socket!.close();
    await suspended.promise;
    await deadline(server.shutdown({ timeout: 50 }), 5000);
    assertEquals(errors.map((error) => (error as Error).name), ["TimeoutError"]);
    session.abort();
  }
});

Deno.test("serve(): onSession is called before the first stream of a session, and its error is reported", async () => {
  const sessions: Session[] = [];
  const errors: unknown[] = [];
  const reason = new Error("from onSession");
  const { server, connect } = start((stream, session) => {
    assertStrictEquals(sessions.at(-1), session);
    return echo(stream);
  }, {
    onSession(session) {
      sessions.push(session);
      if (sessions.length === 2) throw reason;
    },
    onError: (error) => errors.push(error),
  });
  for (const word of ["one", "two"]) {
    const session = await connect();
    assertEquals(await ask(session, word), word);
    await session.close();
  }
  await server.shutdown();
  assertEquals([sessions.length, errors], [2, [reason]]);
});

Deno.test("serve(): a rejection of onSession is reported, unless the session has ended, and shutdown waits for it", async () => {
  const errors: unknown[] = [];
  const reason = new Error("from onSession");
  let count = 0;
  const ended = Promise.withResolvers<void>();
  const opened = Promise.withResolvers<unknown>();
  const { server, connect, dial } = start(echo, {
    async onSession(session) {
      if (count++ === 0) throw reason;
      // Waits for the first frame, but the peer sends none.
      await session.openStream().catch((error) => {
        opened.resolve(error);
        throw error;
      });
    },
    onError: (error) => errors.push(error),
  });
  await (await connect()).close();
  (await dial()).close();
  assertInstanceOf(await opened.promise, SessionClosedError);
  await server.shutdown();
  assertEquals(errors, [reason]);

  const sessions: Session[] = [];
  const slow = start(echo, {
    onSession(session) {
      sessions.push(session);
      return ended.promise;
    },
  });
  await (await slow.connect()).close();
  const finished = slow.server.shutdown();
  await sessions[0]!.closed;
  await turn();
  assertEquals(await state(finished), "pending");
  ended.resolve();
  await finished;
});

Deno.test("serve(): a handler's SessionClosedError of another session is reported", async () => {
  const errors: unknown[] = [];
  const upstream = start(echo);
  const other = await upstream.connect();
  await other.close();
  const { server, connect } = start(async (stream) => {
    await stream.read(new Uint8Array(1));
    await other.openStream();
  }, { onError: (error) => errors.push(error) });
  const session = await connect();
  const stream = await session.openStream();
  await stream.write(bytes("x"));
  assertEquals(await stream.read(new Uint8Array(1)), null);
  stream.close();
  await session.close();
  await server.shutdown();
  await upstream.server.shutdown();
  assertEquals(errors.map((error) => (error as Error).name), ["SessionClosedError"]);
});

Deno.test("connections() yields each connection, and leaving the loop closes the listener", async () => {
  const listener = Deno.listen(LOOPBACK);
  const address = { ...LOOPBACK, port: listener.addr.port };
  using first = await Deno.connect(address);
  using second = await Deno.connect(address);
  const ports: number[] = [];
  for await (using connection of connections(listener)) {
    ports.push(connection.remoteAddr.port);
    if (ports.length === 2) break;
  }
  assertEquals(ports.sort(), [first, second].map(({ localAddr }) => localAddr.port).sort());
  await assertRejects(() => listener.accept(), Deno.errors.BadResource);
});

Deno.test("connections(): a signal ends the loop and closes the listener, aborted during the loop or before it", async () => {
  const controller = new AbortController();
  const listeners = countListeners(controller.signal);
  const listener = Deno.listen(LOOPBACK);
  const accepting = Array.fromAsync(connections(listener, { signal: controller.signal }));
  assertEquals(listeners(), 1);
  controller.abort();
  assertEquals(await accepting, []);
  assertEquals(listeners(), 0);
  const other = Deno.listen(LOOPBACK);
  assertEquals(await Array.fromAsync(connections(other, { signal: controller.signal })), []);
  await assertRejects(() => other.accept(), Deno.errors.BadResource);
});

Deno.test("join(), read(), resumable() and connectWebSocket() that wait with one signal share its listener", async () => {
  const controller = new AbortController();
  const { signal } = controller;
  let listeners = 0;
  for (const [name, step] of [["addEventListener", 1], ["removeEventListener", -1]] as const) {
    const original = signal[name].bind(signal) as (type: string, listener: EventListenerOrEventListenerObject) => void;
    signal[name] = (type: string, listener: EventListenerOrEventListenerObject) => {
      listeners += step;
      original(type, listener);
    };
  }
  const silent = Deno.listen(LOOPBACK);
  const { client } = sessionPair();
  const stream = await client.openStream();
  const never = new Promise<never>(() => {});
  const waiting: Promise<unknown>[] = [];
  for (let n = 0; n < 3; n++) {
    waiting.push(
      join(memoryPair()[0], memoryPair()[0], { signal }),
      (await client.openStream()).read(new Uint8Array(1), { signal }),
      stream.read(new Uint8Array(1), { signal }),
      resumable(() => never, { signal }).closed,
      connectWebSocket(`ws://${LOOPBACK.hostname}:${silent.addr.port}`, { signal }),
    );
  }
  await turn();
  assertEquals(listeners, 1);
  const reason = new Error("the end of all");
  controller.abort(reason);
  for (const settled of await Promise.allSettled(waiting)) assertEquals(settled, { status: "rejected", reason });
  assertEquals(listeners, 0);
  client.abort();
  silent.close();
});

Deno.test("connections(): when onError rejects, it is printed, and the loop continues", async () => {
  using console = catchConsole();
  const [, connection] = memoryPair();
  const listener = scriptedListener(
    () => Promise.reject(new Deno.errors.ConnectionReset()),
    () => connection,
  );
  const onError = () => Promise.reject(new Error("from onError"));
  for await (const accepted of connections(listener, { onError })) {
    assertEquals(accepted, connection);
    break;
  }
  assertEquals(console.printed.map(String), ["Error: from onError"]);
});

Deno.test("serve(): a server holds no session that has ended", async () => {
  const held: WeakRef<object>[] = [];
  const ended = Promise.withResolvers<void>();
  const { server, connect } = start(echo, {
    onSession: (session) => {
      held.push(new WeakRef(session));
      session.closed.then(ended.resolve, ended.reject);
    },
  });
  const client = await connect();
  assertEquals(await ask(client, "one"), "one");
  await client.close();
  await ended.promise;
  await untilCollected(...held);
  await server.shutdown();
});

Deno.test("serve(): finished waits for the sessions, and for handlers that outlast them", async () => {
  const serving = Promise.withResolvers<Session>();
  const mayReturn = Promise.withResolvers<void>();
  const { server, connect } = start(async (stream, session) => {
    serving.resolve(session);
    stream.close();
    await mayReturn.promise;
  });
  const client = await connect();
  assertEquals(await ask(client, "one"), "");
  const events: string[] = [];
  const session = await serving.promise;
  const ended = session.closed.then(() => events.push("session"));
  const finished = server.shutdown().then(() => events.push("finished"));
  await ended;
  await turn();
  events.push("handler");
  mayReturn.resolve();
  await finished;
  assertEquals(events, ["session", "handler", "finished"]);
  await client.closed;
});

Deno.test("serve(): finished waits for sessions without streams", async () => {
  const accepted = Promise.withResolvers<Session>();
  const { server, connect } = start((_, session) => accepted.resolve(session));
  const client = await connect();
  assertEquals(await ask(client, "one"), "");
  const events: string[] = [];
  (await accepted.promise).closed.then(() => events.push("session"));
  await server.shutdown().then(() => events.push("finished"));
  assertEquals(events, ["session", "finished"]);
  await client.closed;
});

Deno.test("serve(): `await using` calls shutdown(), which may be called again, and finished fulfils", async () => {
  let finished: Promise<void>;
  {
    await using server = start(echo).server;
    finished = server.finished;
  }
  await finished;
  const { signal } = new AbortController();
  const listeners = countListeners(signal);
  const { server } = start(echo, { signal });
  assertEquals(listeners(), 1);
  await Promise.all([server.shutdown(), server.shutdown(), server[Symbol.asyncDispose](), server.finished]);
  assertEquals(listeners(), 0);
});

Deno.test("serve(): an aborted signal aborts all sessions with its reason, without a report", async () => {
  const controller = new AbortController();
  const { errors, onError } = errorList();
  const reason = new Error("enough");
  const rejected = Promise.withResolvers<unknown>();
  const { server, connect, dial } = start(async (stream) => {
    await echo(stream).catch((error) => {
      rejected.resolve(error);
      throw error;
    });
  }, { signal: controller.signal, onError });
  const session = await connect();
  const stream = await session.openStream();
  await stream.write(new Uint8Array(1));
  await stream.read(new Uint8Array(1));

  controller.abort(reason);
  await server.finished;
  const error = await rejected.promise;
  assertInstanceOf(error, SessionClosedError);
  assertStrictEquals(error.cause, reason);
  assertEquals(await isRefused(dial), true);
  await assertRejects(() => stream.read(new Uint8Array(1)), SessionClosedError);
  await session.closed.catch(() => {});
  assertEquals(errors, [], "an abort by the caller is not reported");
});

Deno.test("serve(): a signal aborted before the call closes the listener", async () => {
  const listener = scriptedListener();
  const server = serve(listener, echo, { signal: AbortSignal.abort() });
  await server.finished;
  assertEquals(listener.isClosed, true);
});

Deno.test("serve(): open sessions continue after the listener was closed by the application", async () => {
  const { errors, onError } = errorList();
  const { listener, server, connect } = start(echo, { onError });
  const session = await connect();
  assertEquals(await ask(session, "before"), "before");
  listener.close();
  let isFinished = false;
  const finished = server.finished.then(() => isFinished = true);
  assertEquals(await ask(session, "after"), "after");
  assertEquals(isFinished, false);
  await session.close();
  await finished;
  await server.shutdown();
  assertEquals(errors, []);
});

Deno.test("serve(): a connection accepted after the end is closed", async () => {
  const accepted = Promise.withResolvers<Connection>();
  const listener = scriptedListener(() => accepted.promise);
  const server = serve(listener, echo);
  const finished = server.shutdown();
  const [near, far] = memoryPair();
  accepted.resolve(near);
  await finished;
  assertEquals(near.isClosed, true);
  assertEquals(await far.read(new Uint8Array(1)), null);
});

Deno.test("serve(): what is accepted around the end and is not a transport is reported, and finished fulfils", async () => {
  for (let hops = 0; hops < 12; hops++) {
    const { errors, onError } = errorList();
    const accepted = Promise.withResolvers<Connection>();
    const server = serve(scriptedListener(() => accepted.promise), echo, { onError });
    accepted.resolve({} as Connection);
    await microtasks(hops);
    await server.shutdown();
    assertEquals(errors.map(String), [
      "TypeError: Cannot use transport: expected read, write and close, or readable and writable streams, " +
      "or a stream of Node, received Object",
    ], `${hops} microtasks before the end`);
  }
});

Deno.test("serve(): finished fulfils though a handler, a connection and the signal fail", async () => {
  const { errors, onError } = errorList();
  const controller = new AbortController();
  const { server, connect, dial } = start(() => {
    throw new Error("handler");
  }, { onError, signal: controller.signal });
  const session = await connect();
  assertEquals(await ask(session, "one"), "");
  const connection = await dial();
  await writeAll(connection, bytes("nonsense"));
  assertEquals(await connection.read(new Uint8Array(1)).catch(() => null), null);
  connection.close();
  controller.abort();
  assertEquals(await server.finished, undefined);
  assertEquals(errors.length, 2);
  await session.closed.catch(() => {});
});

Deno.test("serve(): invalid options throw at once, and an undefined option counts as left out", () => {
  const listener = scriptedListener(() => {
    throw new Error("accept() was called");
  });
  assertThrows(() => serve(listener, echo, { maxFrameSize: 0 }), RangeError, "maxFrameSize");
  assertThrows(() => serve(listener, echo, { timeout: 5, keepAliveInterval: 6 }), RangeError, "keepAliveInterval");
  assertThrows(() => serve(listener, echo, { version: 3 as 2 }), RangeError, "version");
  const { sender } = bounded<Stream>(1);
  // @ts-expect-error: the handler is required
  assertThrows(() => serve(listener), TypeError, "handler must be a function, received undefined");
  // @ts-expect-error: `incoming` is not an option of serve()
  assertThrows(() => serve(listener, echo, { incoming: sender }), TypeError, "incoming");
  assertEquals(listener.isClosed, false);
  // @ts-expect-error: as above
  assertThrows(() => serve(listener, echo, { incoming: undefined, version: 3 }), RangeError, "version");
});

for (
  const [how, handler] of Object.entries({
    "never settles": () => new Promise<void>(() => {}),
    "reads after the end": async (stream: Stream) => {
      await stream.closed.catch(() => {});
      await stream.read(new Uint8Array(1));
    },
  })
) {
  Deno.test(`serve(): a stalled stream is cut after 5 s and reported once, when its handler ${how}`, async () => {
    using clock = new ManualClock();
    const [near, far] = memoryPair(1 << 20);
    const { errors, onError } = errorList();
    const stop = new AbortController();
    const options = { maxReceiveBuffer: 1000, onError, signal: stop.signal, keepAliveInterval: Infinity };
    serve(scriptedListener(() => far), handler, options);
    const peer = new RawPeer(near, 1);
    await peer.send(SYN, 3);
    await peer.send(PSH, 3, pattern(1000));
    await clock.advance(4999);
    assertEquals(errors, []);
    await clock.advance(101);
    assertEquals((await peer.nextOf(FIN)).id, 3);
    await turn();
    assertEquals(errors.map((error) => (error as Error).message), [
      "Stream 3 stalled: 0 bytes were read in 5000 ms (stalledStreamTimeout) while it held 1000 of the session's " +
      "1000 unread bytes",
    ]);
    stop.abort();
  });
}

Deno.test("serve(): 2000 streams opened at once are all answered with the default options", async () => {
  const { server, connect } = start(async (stream) => {
    const p = new Uint8Array(100);
    const count = await stream.read(p);
    await stream.write(p.subarray(0, count!));
  });
  const session = await connect();
  const answers = await Promise.all(Array.from({ length: 2000 }, async () => {
    await using stream = await session.openStream();
    await stream.write(new Uint8Array(100));
    return await stream.read(new Uint8Array(100));
  }));
  assertEquals(answers.filter((count) => count === null).length, 0, "a refused stream ends without data");
  await session.close();
  await server.shutdown();
});

// join

/** Two Deno connections whose other ends are joined. */
async function joinedOverTcp() {
  const [near, a] = await tcpPair();
  const [b, far] = await tcpPair();
  const end = () => near.close();
  return { near, far, joined: join(a, b), end };
}

/** A stream and a Deno connection whose other ends are joined. */
async function joinedOverStream() {
  const [clientEnd, serverEnd] = await tcpPair();
  const client = Session.client(clientEnd);
  const server = Session.server(serverEnd);
  const near = await client.openStream();
  const accepted = await server.acceptStream();
  const [b, far] = await tcpPair();
  const end = () => Promise.all([client.close(), server.close()]);
  return { near, far, joined: join(accepted, b), end };
}

for (const [name, make] of Object.entries({ "TCP and TCP": joinedOverTcp, "a stream and TCP": joinedOverStream })) {
  Deno.test(`join(): ${name}: a backend that half-closes after its answer receives all 1 000 000 bytes`, async () => {
    const { near, far: backend, joined, end } = await make();
    await writeAll(backend, bytes("the answer"));
    await backend.closeWrite();
    // The answer and its end arrive before the first byte is sent.
    assertEquals(text(await readAll(near)), "the answer");

    const upload = pattern(MEGABYTE);
    const [received] = await Promise.all([
      readAll(backend),
      writeAll(near, upload).then(() => near.closeWrite()),
    ]);
    assertEquals(received.length, MEGABYTE);
    assertEquals(received, upload);
    assertEquals(await joined, { sent: MEGABYTE, received: 10 });
    backend.close();
    await end();
  });

  Deno.test(`join(): ${name}: a client that half-closes after its request receives the answer, and both are counted`, async () => {
    const { near, far: backend, joined, end } = await make();
    const request = pattern(300_000, 2);
    const answer = pattern(MEGABYTE, 3);
    const answering = readAll(backend).then(async (received) => {
      await writeAll(backend, answer);
      await backend.closeWrite();
      return received;
    });
    await writeAll(near, request);
    await near.closeWrite();
    assertEquals(await readAll(near), answer);
    assertEquals(await answering, request);
    assertEquals(await joined, { sent: 300_000, received: MEGABYTE });
    backend.close();
    await end();
  });
}

Deno.test("join(): connections that move a few bytes a call pass all of them in order", async () => {
  const [near, a] = memoryPair(3);
  const [b, far] = memoryPair(5);
  const joined = join(a, b);
  const there = pattern(5000, 4);
  const back = pattern(3000, 5);
  const [atFar, atNear] = await Promise.all([
    readAll(far),
    readAll(near),
    writeAll(near, there).then(() => near.closeWrite()),
    writeAll(far, back).then(() => far.closeWrite()),
  ]);
  assertEquals(atFar, there);
  assertEquals(atNear, back);
  assertEquals(await joined, { sent: 5000, received: 3000 });
  assertEquals([a.isClosed, b.isClosed], [true, true]);
});

/** A connection without data; `changes` replace its methods. */
function idleConnection(changes: Partial<DuplexConnection> = {}) {
  return {
    isClosed: false,
    read: (): Promise<number | null> => new Promise(() => {}),
    write: (p: Uint8Array) => Promise.resolve(p.length),
    closeWrite: () => Promise.resolve(),
    close() {
      this.isClosed = true;
    },
    ...changes,
  };
}

for (
  const [name, count, expected] of [
    ["read", 8193, "Transport read must return 0 to 8192 or null, received 8193"],
    ["read", undefined, "Transport read must return 0 to 8192 or null, received undefined"],
    ["write", undefined, "Transport write must return 0 to 10, received undefined"],
    ["write", 11, "Transport write must return 0 to 10, received 11"],
    ["write", -1, "Transport write must return 0 to 10, received -1"],
  ] as const
) {
  Deno.test(`join() rejects with a TypeError when a ${name} returns ${count}, and closes both`, async () => {
    // Not again and again, which would block the event loop.
    const once = (results: unknown[]) => () =>
      new Promise<number>((resolve) => results.splice(0).forEach((count) => resolve(count as number)));
    const from = idleConnection({ read: once([name === "read" ? count : 10]) });
    const to = idleConnection({ write: once([name === "write" ? count : 10]) });
    await assertRejects(() => join(from, to), TypeError, expected);
    assertEquals([from.isClosed, to.isClosed], [true, true]);
  });
}

for (const name of ["read", "write"] as const) {
  Deno.test(`join(): a ${name} that keeps returning 0 does not block the event loop, and is repeated`, async () => {
    let calls = 0;
    let isReady = false;
    const zeros = async (count: number): Promise<number> => {
      if (++calls === 100_000) throw new Error("The event loop is blocked");
      return await (isReady ? count : 0);
    };
    const [near, a] = memoryPair();
    const [b, far] = memoryPair();
    const inner = name === "read" ? a : b;
    const method = inner[name].bind(inner);
    inner[name] = async (p: Uint8Array) => await zeros(1) === 0 ? 0 : await method(p) as number;
    await writeAll(near, bytes("hello"));
    near.closeWrite();
    far.closeWrite();
    const joined = join(a, b);
    await turn(10);
    assert(calls > 1, "the call is not repeated");
    isReady = true;
    assertEquals(text(await readAll(far)), "hello");
    assertEquals(await joined, { sent: 5, received: 0 });
  });
}

for (const name of ["read", "write"] as const) {
  Deno.test(`join(): a pending ${name} that succeeds after the join was aborted is the last call`, async () => {
    const { promise, resolve } = Promise.withResolvers<number>();
    const calls: string[] = [];
    const from = idleConnection({
      read() {
        calls.push("read");
        return name === "read" ? promise : Promise.resolve(10);
      },
    });
    const to = idleConnection({
      write() {
        calls.push("write");
        return promise;
      },
    });
    const controller = new AbortController();
    const joined = join(from, to, { signal: controller.signal });
    await turn();
    const reason = new Error("enough");
    controller.abort(reason);
    assertStrictEquals(await joined.catch((error) => error), reason);
    resolve(5);
    await turn();
    assertEquals(calls, name === "read" ? ["read"] : ["read", "write"]);
  });
}

for (const isFirst of [true, false]) {
  const place = isFirst ? "first" : "second";
  Deno.test(`join() with a stream of Node in object mode as the ${place} side rejects, closes it and aborts the other`, async () => {
    const { client, server } = sessionPair();
    const [near, far] = await Promise.all([client.openStream(), server.acceptStream()]);
    const duplex = new Duplex({ objectMode: true, read() {}, write: (_chunk, _encoding, callback) => callback() });
    await assertRejects(() => isFirst ? join(duplex, far) : join(far, duplex), TypeError, "object mode");
    assertEquals(duplex.destroyed, true);
    await assertRejects(() => near.read(new Uint8Array(1)), StreamResetError);
    for (const session of [client, server]) session.abort();
  });
}

Deno.test("join() resolves with zeros when both ends close without data", async () => {
  const [near, a] = memoryPair();
  const [b, far] = memoryPair();
  near.close();
  far.close();
  assertEquals(await join(a, b), { sent: 0, received: 0 });
});

Deno.test("join() rejects with the first failure, and closes both connections", async () => {
  for (const side of ["first", "second"]) {
    const [near, a] = memoryPair();
    const [b, far] = memoryPair();
    const joined = join(a, b);
    await writeAll(near, new Uint8Array(10));
    assertEquals(await far.read(new Uint8Array(10)), 10);
    const reason = new Error("connection lost");
    (side === "first" ? near : far).reset(reason);
    assertStrictEquals(await joined.catch((error) => error), reason);
    assertEquals([a.isClosed, b.isClosed], [true, true]);
  }
});

Deno.test("join(): the loss of a session rejects the call, and closes the other connection", async () => {
  const { client, server, connections } = sessionPair();
  const stream = await client.openStream();
  await stream.write(new Uint8Array(1));
  const [a, far] = await tcpPair();
  const joined = join(await server.acceptStream(), a);
  assertEquals(await far.read(new Uint8Array(1)), 1);
  const reason = new Error("the network is gone");
  connections[0].reset(reason);
  const error = await assertRejects(() => joined, SessionClosedError);
  assertStrictEquals(error.cause, reason);
  assertEquals(await far.read(new Uint8Array(1)), null);
  far.close();
});

Deno.test("join() rejects when a connection is closed before the call, and closes the other", async () => {
  const [a] = memoryPair();
  const [b] = memoryPair();
  a.close();
  await assertRejects(() => join(a, b), Error, "Connection closed locally");
  assertEquals(b.isClosed, true);
});

Deno.test("join(): an aborted signal rejects with its reason, closes both, and leaves no listener", async () => {
  const controller = new AbortController();
  const { signal } = controller;
  const listeners = countListeners(signal);
  const [near, a] = await tcpPair();
  const [b, far] = await tcpPair();
  const joined = join(a, b, { signal });
  await writeAll(near, new Uint8Array(5));
  assertEquals(await far.read(new Uint8Array(5)), 5);
  assertEquals(listeners(), 1);
  const reason = new Error("enough");
  controller.abort(reason);
  assertStrictEquals(await joined.catch((error) => error), reason);
  assertEquals(await near.read(new Uint8Array(1)), null);
  assertEquals(await far.read(new Uint8Array(1)), null);
  near.close();
  far.close();
  assertEquals(listeners(), 0);
});

Deno.test("join(): a signal aborted before the call rejects with its reason, and closes both", async () => {
  const connections = [...memoryPair(), ...memoryPair()] as MemoryConnection[];
  const reason = new Error("aborted before");
  const joined = join(connections[0]!, connections[2]!, { signal: AbortSignal.abort(reason) });
  assertStrictEquals(await joined.catch((error) => error), reason);
  assertEquals(connections.map((connection) => connection.isClosed), [true, false, true, false]);
});

/** An accepted stream, joined with a connection whose far end reads only on request. */
async function joinedWithSlow(options: Parameters<typeof sessionPair>[0] = {}) {
  const { client, server, connections } = sessionPair(options);
  const near = await client.openStream();
  const accepted = await server.acceptStream();
  const [slow, far] = memoryPair(1000);
  const stop = new AbortController();
  const listeners = countListeners(stop.signal);
  const joined = join(accepted, slow, { signal: stop.signal });
  joined.catch(() => {});
  return {
    client,
    server,
    connections,
    near,
    accepted,
    slow,
    far,
    joined,
    stop,
    /** Sends until a write of the join is blocked. */
    async fill(length = 200_000) {
      await near.write(pattern(length));
      await turn(10);
    },
    /** Asserts that the join rejected at once and cleaned up; returns its error. */
    async rejected<Type extends Error>(type: new (...args: never[]) => Type): Promise<Type> {
      const pending = new Error("The join is still pending");
      const error = await Promise.race([
        joined.then(() => new Error("The join fulfilled"), (error) => error),
        turn(20).then(() => pending),
      ]);
      assertInstanceOf(error, type);
      assertEquals("bytesWritten" in error, false);
      assertEquals(slow.isClosed, true);
      assertEquals(listeners(), 0);
      await assertRejects(() => accepted.write(bytes("x")));
      return error;
    },
    [Symbol.dispose]() {
      client.abort();
      server.abort();
    },
  };
}

const losses: Record<string, (all: Awaited<ReturnType<typeof joinedWithSlow>>) => void> = {
  "its session is aborted": ({ server }) => server.abort(new Error("lost")),
  "the connection is reset": ({ connections }) => connections[1].reset(new Error("lost")),
  "the peer closes its session": ({ client }) => void client.close(),
  "the session is closed locally": ({ server }) => void server.close(),
};
for (const [name, lose] of Object.entries(losses)) {
  Deno.test(`join(): ${name} while a write to the other side is blocked: rejects and closes both`, async () => {
    using all = await joinedWithSlow();
    await all.fill();
    lose(all);
    // A session that closes gracefully ends its streams first.
    if (lose === losses["the peer closes its session"]) assertEquals(await readAll(all.far), pattern(200_000));
    await all.rejected(SessionClosedError);
  });

  for (const isBusy of [false, true]) {
    const how = isBusy ? "while the other side sends" : "while the other side is silent";
    Deno.test(`join(): ${name} ${how}: data that arrived with its FIN is delivered first`, async () => {
      using all = await joinedWithSlow();
      await all.fill();
      await all.near.closeWrite();
      await turn();
      lose(all);
      if (isBusy) await writeAll(all.far, bytes("more"));
      await turn(20);
      assertEquals(all.slow.isClosed, false, "closed before the other side read all bytes");
      assertEquals(await readAll(all.far), pattern(200_000));
      await all.rejected(SessionClosedError);
    });
  }
}

Deno.test("join(): a complete answer that waits to be written is delivered after a graceful close of the server's session", async () => {
  const { client, server } = sessionPair();
  const opened = await client.openStream();
  const answering = await server.acceptStream();
  const [slow, far] = memoryPair(1000);
  const joined = assertRejects(() => join(slow, opened), SessionClosedError);
  await writeAll(far, bytes("a question without an end"));
  await answering.write(pattern(200_000));
  await answering.closeWrite();
  await server.close();
  await client.closed;
  await writeAll(far, bytes("more"));
  assertEquals(await readAll(far), pattern(200_000));
  assertEquals((await joined).cause, undefined);
  assertEquals(slow.isClosed, true);
});

Deno.test("join() rejects at once when its stream is closed locally while a write to the other side is blocked", async () => {
  for (const hasEnded of [false, true]) {
    using all = await joinedWithSlow();
    await all.fill();
    if (hasEnded) await all.near.closeWrite();
    await turn();
    all.accepted.close();
    await all.rejected(StreamClosedError);
  }
});

Deno.test("join() rejects when its stream is cut as stalled while a write to the other side is blocked", async () => {
  for (const hasEnded of ["neither way", "one way", "both ways"]) {
    using clock = new ManualClock();
    using all = await joinedWithSlow({
      version: 1,
      server: { maxReceiveBuffer: 100_000, stalledStreamTimeout: 1000 },
    });
    if (hasEnded === "both ways") await all.far.closeWrite();
    await all.fill(150_000);
    const ended = hasEnded === "neither way" ? undefined : all.near.closeWrite();
    await turn(10);
    await all.client.openStream().then((other) => other.write(pattern(60_000)));
    await ended;
    await clock.advance(3000);
    assertEquals((await all.rejected(DOMException)).name, "TimeoutError", hasEnded);
  }
});

Deno.test("join(): an aborted signal rejects at once while a write is blocked", async () => {
  using all = await joinedWithSlow();
  await all.fill();
  const reason = new Error("enough");
  all.stop.abort(reason);
  assertStrictEquals(await all.rejected(Error), reason);
});

Deno.test("join() rejects at once when the second of two sessions is lost, in every state of the first", async () => {
  for (const first of ["idle", "stuck", "ended"]) {
    const [one, two] = [sessionPair(), sessionPair()];
    const [near, a] = [await one.client.openStream(), await one.server.acceptStream()];
    const [b] = [await two.client.openStream(), await two.server.acceptStream()];
    const joined = assertRejects(() => join(a, b), SessionClosedError);
    const writing = first === "stuck" ? near.write(pattern(MEGABYTE)) : undefined;
    const cut = writing && assertRejects(() => writing, StreamResetError);
    if (first === "ended") await near.closeWrite();
    await turn(10);
    const reason = new Error("lost");
    two.client.abort(reason);
    const error = await joined;
    assertStrictEquals(error.cause, reason);
    assertEquals("bytesWritten" in error, false);
    await assertRejects(() => near.read(new Uint8Array(1)), StreamResetError);
    one.client.abort();
    await cut;
    for (const session of [one.server, two.server]) session.abort();
  }
});

Deno.test("join() rejects after close() of a stream or an abort when closeWrite() of the other side never settles", async () => {
  for (const end of ["close", "signal"]) {
    const { client, server } = sessionPair();
    const near = await client.openStream();
    const accepted = await server.acceptStream();
    const [other, far] = memoryPair();
    const isEnding = Promise.withResolvers<void>();
    const closeWrite = () => {
      isEnding.resolve();
      return new Promise<void>(() => {});
    };
    const stop = new AbortController();
    const stuck = { read: (p: Uint8Array) => other.read(p), write: (p: Uint8Array) => other.write(p), closeWrite };
    let closes = 0;
    const joined = join({ ...stuck, close: () => void closes++ }, accepted, { signal: stop.signal });
    const failed = end === "close"
      ? assertRejects(() => joined, StreamClosedError)
      : assertRejects(() => joined, Error, "enough");
    await near.closeWrite();
    await isEnding.promise;
    // closeWrite() is pending, so join() waits until the stream is closed or the signal aborts.
    if (end === "close") accepted.close();
    else stop.abort(new Error("enough"));
    await failed;
    assertEquals(closes, 1);
    far.close();
    for (const session of [client, server]) session.abort();
  }
});

Deno.test("join(): 100 joins that wait after 256 KiB each hold less than 3 MiB", async () => {
  const { client, server } = sessionPair();
  const used = async () => {
    for (let n = 0; n < 3; n++) {
      collectGarbage();
      await turn();
    }
    return Deno.memoryUsage().external;
  };
  const before = await used();
  const sent = pattern(256 * 1024);
  const waiting = [];
  for (let n = 0; n < 100; n++) {
    const [near, far] = await Promise.all([client.openStream(), server.acceptStream()]);
    const [left, right] = memoryPair();
    const joining = join(near, left as DuplexConnection);
    const [received] = await Promise.all([readExactly(right, sent.length), writeAll(far, sent)]);
    assertEquals(received.length, sent.length);
    waiting.push({ far, right, joining });
  }
  const held = await used() - before;
  assert(held < 3 * 1024 * 1024, `${held} bytes`);
  for (const { far, right, joining } of waiting) {
    await far.closeWrite();
    right.close();
    await joining.catch(() => {});
  }
  client.abort();
  server.abort();
});
