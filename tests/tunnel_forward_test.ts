/** Forwarding: data in both directions, half-closes, failures of either side, stalls. */

import { assert, assertEquals, assertGreater, assertInstanceOf, assertMatch, assertRejects } from "@std/assert";
import * as net from "node:net";
import { Session } from "../mod.ts";
import { openTunnel, type OpenTunnelOptions, serveTunnel } from "../tunnel.ts";
import { TcpListener, TcpSocket } from "../tunnel/tcp.ts";
import { makeFolder } from "./programs.ts";
import { bytes, isRefused, LOOPBACK, pattern, readAll, readSome, sha256, text, turn, writeAll } from "./support.ts";
import {
  answerAndHangUp,
  at,
  dial,
  eventually,
  fetchFiles,
  FREE,
  makeEcho,
  makeLog,
  makePair,
  makeTarget,
  makeTunnel,
  nowhere,
  openAtSession,
  parse,
  portOf,
  promptly,
  say,
  serveFiles,
  SIZES,
} from "./tunnel_support.ts";

/** Changes connections so that a write never completes: each writes more than all buffers hold. */
function makeFlood() {
  const [writing, ended] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  const change = (connection: TcpSocket) => {
    const { write } = connection;
    connection.write = async function () {
      writing.resolve();
      try {
        for (;;) await write.call(this, new Uint8Array(10_000_000));
      } finally {
        ended.resolve();
      }
    };
    return connection;
  };
  return { change, writing: writing.promise, ended: ended.promise };
}

/** Opens a tunnel with a changed listener. */
async function openChanged(
  options: OpenTunnelOptions,
  change: (listener: TcpListener) => void,
): ReturnType<typeof openTunnel> {
  const { accept } = TcpListener.prototype;
  TcpListener.prototype.accept = function () {
    TcpListener.prototype.accept = accept;
    change(this);
    return this.accept();
  };
  return await openTunnel(options);
}

Deno.test("tunnel: HTTP downloads are complete, each connection one stream of one session", async () => {
  const web = serveFiles();
  const { client, server, log, shutdown } = await makeTunnel(at(web.addr));
  await fetchFiles(client.listenAddrs[0]!, SIZES);
  assertEquals(log.events.length, 1);
  const [event] = log.events;
  assert(event?.type === "connected");
  assertMatch(event.clientAddr!, /^127\.0\.0\.1:\d+$/);
  await shutdown();
  await Promise.all([client.finished, server.finished]);
  const total = SIZES.reduce((sum, size) => sum + size);
  const { sent, received, ...counts } = client.stats();
  assertEquals(counts, { connections: 1, reconnects: 0, streams: SIZES.length, open: 0, dropped: 0, refused: {} });
  assertGreater(received, total);
  assertGreater(sent, 0);
  assertEquals(server.stats(), { ...counts, sent: received, received: sent });
  await web.shutdown();
});

Deno.test("openTunnel() forwards with either version of smux", async () => {
  await using echo = makeEcho();
  await using server = serveTunnel({ listen: FREE, target: echo.addr });
  for (const version of [1, 2] as const) {
    await using client = await openTunnel({ connect: server.serverAddr, forward: [FREE], version });
    using connection = await dial(client.listenAddrs[0]!);
    assertEquals(await say(connection, "hello"), "hello");
    connection.close();
  }
});

Deno.test("Tunnel.stats() counts open connections at both ends", async () => {
  await using echo = makeEcho();
  await using pair = await makePair({ target: echo.addr }, { forward: [FREE] });
  const connection = await dial(pair.client.listenAddrs[0]!);
  assertEquals(await say(connection, "hello"), "hello");
  assertEquals(pair.client.stats().open, 1);
  assertEquals(pair.server.stats().open, 1);
  connection.close();
});

Deno.test("tunnel: a local connection that half-closes after its request receives the answer", async () => {
  const request = pattern(500_000, 7);
  const target = makeTarget(async (connection) => {
    const received = await readAll(connection);
    await writeAll(connection, bytes(await sha256(received)));
  });
  const { client, shutdown } = await makeTunnel(target.addr);
  using connection = await dial(client.listenAddrs[0]!);
  await writeAll(connection, request);
  await connection.closeWrite();
  assertEquals(text(await readAll(connection)), await sha256(request));
  await shutdown();
  await target.close();
});

Deno.test("tunnel: a target that half-closes first still receives all data", async () => {
  const upload = pattern(1_000_000, 8);
  const received = Promise.withResolvers<Uint8Array>();
  const target = makeTarget(async (connection) => {
    await writeAll(connection, bytes("go on"));
    await connection.closeWrite();
    received.resolve(await readAll(connection));
  });
  const { client, shutdown } = await makeTunnel(target.addr);
  using connection = await dial(client.listenAddrs[0]!);
  assertEquals(text(await readAll(connection)), "go on");
  await writeAll(connection, upload);
  await connection.closeWrite();
  assertEquals(await received.promise, upload);
  await shutdown();
  await target.close();
});

Deno.test("tunnel: a refusing target is reported and resets the local connection, and later connections work", async () => {
  const target = nowhere();
  const { options, errors, messages } = makeLog();
  const { client, shutdown } = await makeTunnel(target, options);
  for (const _ of [1, 2, 3]) {
    using connection = await dial(client.listenAddrs[0]!);
    await assertRejects(() => connection.read(new Uint8Array(1)), Deno.errors.ConnectionReset);
  }
  const message = `Cannot connect to ${target}: connection refused`;
  assertEquals(messages(), [message, message, message]);
  assertInstanceOf(errors[0]!.cause, Deno.errors.ConnectionRefused);

  const web = serveFiles(parse(target));
  await fetchFiles(client.listenAddrs[0]!, [5]);
  await shutdown();
  await web.shutdown();
});

Deno.test("tunnel: a reset local connection is reported, its target is reset, and later connections work", async () => {
  const released = Promise.withResolvers<unknown>();
  const target = makeTarget(async (connection) => {
    await writeAll(connection, bytes("hello"));
    released.resolve(await connection.read(new Uint8Array(1)).catch((error) => error));
  });
  const { options, messages, until } = makeLog();
  const { client, shutdown } = await makeTunnel(target.addr, options);
  const socket = net.connect(portOf(client.listenAddrs[0]!), "127.0.0.1");
  socket.once("data", () => socket.resetAndDestroy());
  await until(/^The connection from 127\.0\.0\.1:\d+ failed: connection reset by peer$/);
  assertInstanceOf(await released.promise, Deno.errors.ConnectionReset);

  using connection = await dial(client.listenAddrs[0]!);
  await connection.closeWrite();
  assertEquals(text(await readAll(connection)), "hello");
  await shutdown();
  await target.close();
  assertEquals(messages().length, 1);
});

Deno.test("tunnel: an answer that arrived before the session ended is readable afterwards", async () => {
  await using folder = await makeFolder("late");
  const path = `${folder.path}/socket`;
  const { opening, session } = await openAtSession({ forward: [`unix:${path}=echo:1`], onError() {} });
  const client = await opening;
  const visitor = await Deno.connect({ transport: "unix", path });
  // More than the buffer of a Unix socket.
  const answer = pattern(250_000);
  await answerAndHangUp(session, answer);
  await turn();
  assertEquals(await readAll(visitor), answer);
  visitor.close();
  await client.finished.catch(() => {});
});

Deno.test("tunnel: a failed accept is retried, and reported unless the connection was reset before", async () => {
  const other = new Error("No buffer space available (os error 105)");
  const lost = new Deno.errors.NotConnected("Transport endpoint is not connected (os error 107)");
  const failures = [other, lost, lost, other, lost];
  const target = makeEcho();
  const server = serveTunnel({ listen: FREE, target: target.addr });
  const { options, messages } = makeLog();
  const client = await openChanged({ connect: server.serverAddr, forward: [FREE], ...options }, (listener) => {
    const { accept } = listener;
    listener.accept = () => failures.length > 0 ? Promise.reject(failures.shift()) : accept.call(listener);
  });
  const connection = await dial(client.listenAddrs[0]!);
  assertEquals(await say(connection, "still here"), "still here");
  connection.close();
  const what = "Cannot accept a connection: ";
  const full = `${what}no buffer space available`;
  assertEquals(messages(), [full, full]);
  await client.shutdown();
  await server.shutdown();
  await target.close();
});

Deno.test("tunnel: a connection that is accepted during shutdown is closed", async () => {
  const target = makeEcho();
  const server = serveTunnel({ listen: FREE, target: target.addr });
  const accepted = Promise.withResolvers<void>();
  const mayGo = Promise.withResolvers<void>();
  const client = await openChanged({ connect: server.serverAddr, forward: [FREE] }, (listener) => {
    const { accept } = listener;
    listener.accept = async () => {
      const connection = await accept.call(listener);
      accepted.resolve();
      await mayGo.promise;
      return connection;
    };
  });
  const connection = await dial(client.listenAddrs[0]!);
  await accepted.promise;
  const finished = client.shutdown();
  mayGo.resolve();
  assertEquals(await connection.read(new Uint8Array(1)), null);
  connection.close();
  await finished;
  await server.shutdown();
  await target.close();
});

Deno.test("Tunnel.finished waits until received data is written to the local connection", async () => {
  const target = makeTarget((connection) => writeAll(connection, bytes("the answer")));
  const server = serveTunnel({ listen: FREE, target: target.addr });
  const writing = Promise.withResolvers<void>();
  const mayWrite = Promise.withResolvers<void>();
  const client = await openChanged({ connect: server.serverAddr, forward: [FREE] }, (listener) => {
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
  const connection = await dial(client.listenAddrs[0]!);
  await connection.closeWrite();
  await writing.promise;
  let isFinished = false;
  const finished = client.shutdown().then(() => isFinished = true);
  // The stream and the session have ended; the answer has not been written yet.
  await server.shutdown();
  await new Promise((resume) => setTimeout(resume));
  assertEquals(isFinished, false);
  mayWrite.resolve();
  assertEquals(text(await readAll(connection)), "the answer");
  await finished;
  connection.close();
  await target.close();
});

Deno.test("tunnel: a connection that fails once accepted is reported, and its stream is closed", async () => {
  const target = makeEcho();
  const server = serveTunnel({ listen: FREE, target: target.addr });
  const { options, messages } = makeLog();
  let delayed = 0;
  const client = await openChanged({ connect: server.serverAddr, forward: [FREE], ...options }, (listener) => {
    const { accept } = listener;
    listener.accept = async () => {
      const connection = await accept.call(listener);
      connection.setNoDelay = () => {
        if (++delayed === 1) throw new Error("Invalid argument (os error 22)");
      };
      return connection;
    };
  });
  assert(await isRefused(() => dial(client.listenAddrs[0]!)));
  assertEquals(messages().length, 1);
  assertMatch(messages()[0]!, /^The connection from 127\.0\.0\.1:\d+ failed: invalid argument$/);
  const connection = await dial(client.listenAddrs[0]!);
  assertEquals(await say(connection, "still here"), "still here");
  connection.close();
  assertEquals(delayed, 2);
  // Waits forever if a stream was left open.
  await client.shutdown();
  await server.shutdown();
  await target.close();
});

Deno.test("openTunnel() forwards each entry of forward to its own target", async () => {
  const web = serveFiles();
  await using echo = makeEcho();
  await using pair = await makePair(
    { allow: [at(web.addr), echo.addr] },
    { forward: [`0=${web.addr.port}`, `${FREE}=${echo.addr}`] },
  );
  const { client, server, logs } = pair;
  await fetchFiles(client.listenAddrs[0]!, SIZES);
  using connection = await dial(client.listenAddrs[1]!);
  assertEquals(await say(connection, "hello"), "hello");
  connection.close();
  await client.shutdown();
  await server.shutdown();
  const { connections, streams } = server.stats();
  assertEquals({ connections, streams }, { connections: 1, streams: SIZES.length + 1 });
  assertEquals([...logs.client.messages(), ...logs.server.messages()], []);
  await web.shutdown();
});

Deno.test("tunnel: a client ends by signal, timeout or lost session while a local connection does not read", async () => {
  for (const how of ["signal", "timeout", "lost"]) {
    await using echo = makeEcho();
    const [opening, serving] = [new AbortController(), new AbortController()];
    await using server = serveTunnel({ listen: FREE, target: echo.addr, signal: serving.signal });
    const flood = makeFlood();
    const asked = { forward: [FREE], signal: opening.signal, reconnect: false, onError() {} };
    await using client = await openChanged({ connect: server.serverAddr, ...asked }, (listener) => {
      const { accept } = listener;
      listener.accept = async () => flood.change(await accept.call(listener));
    });
    const connection = await dial(client.listenAddrs[0]!);
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

Deno.test("tunnel: a server ends by signal, timeout or lost session while a target does not read", async () => {
  const { write } = TcpSocket.prototype;
  for (const how of ["signal", "timeout", "lost"]) {
    const listener = Deno.listen(LOOPBACK);
    const controller = new AbortController();
    const { signal } = controller;
    const server = serveTunnel({ listen: FREE, target: at(listener.addr), signal, onError() {} });
    const session = Session.client(await dial(server.serverAddr));
    const flood = makeFlood();
    flood.change(TcpSocket.prototype);
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
      TcpSocket.prototype.write = write;
      target.close();
      listener.close();
      await flood.ended;
      session.abort();
      await server.finished;
    }
  }
});

/** Starts a tunnel whose stream has ended in both directions; the local connection has not read all bytes. */
async function makeUnread(asked: Omit<OpenTunnelOptions, "connect"> = {}) {
  await using resources = new AsyncDisposableStack();
  const served = Promise.withResolvers<void>();
  const target = makeTarget(async (connection) => {
    await writeAll(connection, pattern(400_000));
    await connection.closeWrite();
    await readAll(connection);
    served.resolve();
  });
  // The buffer of a Unix socket has a fixed size: smaller than the data, and the rest fits into a stream's window.
  const { path } = resources.use(await makeFolder("unread"));
  const pair = resources.use(await makePair({ target: target.addr }, { forward: [`unix:${path}/socket`], ...asked }));
  const local = resources.use(await Deno.connect({ transport: "unix", path: `${path}/socket` }));
  await local.closeWrite();
  await served.promise;
  await target.close();
  // Wait for all bytes, including the frames of the end.
  await eventually(() => pair.client.stats().received >= pair.server.stats().sent && pair.server.stats().open === 0);
  await turn();
  const moved = resources.move();
  return { ...pair, [Symbol.asyncDispose]: () => moved.disposeAsync() };
}

Deno.test("tunnel: an unread connection that both ends have ended is closed by the timeout of shutdown()", async () => {
  await using pair = await makeUnread();
  assertEquals(pair.client.stats().open, 1);
  await promptly(pair.client.shutdown({ timeout: 50 }));
  assertEquals(pair.client.stats().open, 0);
  assertEquals(pair.logs.client.messages(), []);
});

Deno.test("tunnel: an unread connection that both ends have ended is closed by the signal", async () => {
  const controller = new AbortController();
  await using pair = await makeUnread({ signal: controller.signal });
  controller.abort();
  await promptly(pair.client.finished);
  assertEquals(pair.client.stats().open, 0);
});

/** Starts a target on a Unix socket. The first byte selects: d sends a megabyte, u never reads again, e echoes. */
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
        // `pipeTo` has closed it.
      }
    }
    await accepting;
  };
  return { [Symbol.asyncDispose]: dispose };
}

for (const version of [1, 2] as const) {
  for (const [way, direction] of [["forward", "d"], ["forward", "u"], ["reverse", "d"], ["reverse", "u"]] as const) {
    const what = direction === "d" ? "local connections" : "targets";
    Deno.test(`tunnel: version ${version}, ${way}: 100 ${what} that do not read block no other`, async () => {
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
      assertEquals(pair.client.stats().connections, 1, "the client reconnected");
      const log = [...pair.logs.client.messages(), ...pair.logs.server.messages()];
      if (version === 2) assertEquals(log, []);
      else for (const line of log) assertMatch(line, /^The connection (from|to) .* failed: stream \d+ stalled: /);
      resources.defer(async () => void await Promise.all(writing));
    });
  }
}
