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
import * as net from "node:net";
import { ProtocolError, Session } from "../mod.ts";
import { type Endpoint, openTunnel, serveTunnel, type TunnelOptions } from "../tunnel.ts";
import { pattern, readAll, sha256, writeAll } from "./support.ts";

const LOOPBACK = { hostname: "127.0.0.1", port: 0 };
const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
const bytes = (text: string) => new TextEncoder().encode(text);

/** Both ends of a tunnel to a target, in this process. */
async function makeTunnel(target: Endpoint, options: Omit<TunnelOptions, "listen"> = {}) {
  const connections: Endpoint[] = [];
  const server = serveTunnel({ listen: LOOPBACK, target, onConnection: (from) => connections.push(from), ...options });
  const client = await openTunnel({ listen: LOOPBACK, connect: server.addr, ...options });
  const shutdown = async () => {
    await client.shutdown();
    await server.shutdown();
  };
  return { server, client, connections, shutdown };
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
  return { addr: { ...LOOPBACK, port: listener.addr.port }, close };
}

const makeEcho = () => makeTarget((connection) => connection.readable.pipeTo(connection.writable));

/** Sends a word and gives what comes back. */
async function say(connection: Deno.TcpConn, word: string): Promise<string> {
  await writeAll(connection, bytes(word));
  const p = new Uint8Array(word.length);
  for (let at = 0; at < p.length;) {
    const count = await connection.read(p.subarray(at));
    if (count === null) return text(p.subarray(0, at));
    at += count;
  }
  return text(p);
}

const SIZES = Array.from({ length: 60 }, (_, n) => Math.round(1.25 ** n));

function serveFiles() {
  return Deno.serve({ ...LOOPBACK, onListen() {} }, (request) => {
    const size = Number(new URL(request.url).pathname.slice(1));
    return new Response(pattern(size, size));
  });
}

/** Fetches files of these sizes all at once, each over its own connection, and checks that each came whole. */
async function fetchFiles(port: number, sizes: number[]): Promise<void> {
  using client = Deno.createHttpClient({ poolMaxIdlePerHost: 0 });
  await Promise.all(sizes.map(async (size) => {
    const response = await fetch(`http://127.0.0.1:${port}/${size}`, { client });
    const file = new Uint8Array(await response.arrayBuffer());
    assertEquals(await sha256(file), await sha256(pattern(size, size)));
  }));
}

/** An address where nobody listens. */
function nowhere(): Endpoint {
  using listener = Deno.listen(LOOPBACK);
  return { ...LOOPBACK, port: listener.addr.port };
}

/** Whether nobody answers: the connection is refused, or was waiting when the listener closed. */
async function isRefused(endpoint: Endpoint): Promise<boolean> {
  try {
    using connection = await Deno.connect(endpoint);
    return await connection.read(new Uint8Array(1)) === null;
  } catch {
    return true;
  }
}

/** Errors, collected instead of printed. */
function errorList() {
  const errors: Error[] = [];
  const first = Promise.withResolvers<Error>();
  const onError = (error: unknown) => {
    assertInstanceOf(error, Error);
    errors.push(error);
    first.resolve(error);
  };
  return { errors, onError, first: first.promise };
}

Deno.test("tunnel: HTTP through it, every connection a stream of one connection", async () => {
  const web = serveFiles();
  const { client, server, connections, shutdown } = await makeTunnel(web.addr);
  await fetchFiles(client.addr.port, SIZES);
  assertEquals(connections.length, 1);
  assertEquals(client.stats(), { connections: 1, streams: SIZES.length });
  assertEquals(server.stats(), { connections: 1, streams: SIZES.length });
  await shutdown();
  await Promise.all([client.finished, server.finished]);
  await web.shutdown();
});

Deno.test("tunnel: many clients at one server", async () => {
  const web = serveFiles();
  const { client, server, shutdown } = await makeTunnel(web.addr);
  const second = await openTunnel({ listen: LOOPBACK, connect: server.addr });
  await Promise.all([fetchFiles(client.addr.port, [1, 10_000]), fetchFiles(second.addr.port, [2, 20_000, 3])]);
  assertEquals(server.stats(), { connections: 2, streams: 5 });
  await second.shutdown();
  await fetchFiles(client.addr.port, [4]);
  await shutdown();
  await web.shutdown();
});

Deno.test("tunnel: a client that sends, half-closes and then gets its answer", async () => {
  const request = pattern(500_000, 7);
  const target = makeTarget(async (connection) => {
    const received = await readAll(connection);
    await writeAll(connection, bytes(await sha256(new Uint8Array(received))));
  });
  const { client, shutdown } = await makeTunnel(target.addr);
  using connection = await Deno.connect(client.addr);
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
  using connection = await Deno.connect(client.addr);
  assertEquals(text(await readAll(connection)), "go on");
  await writeAll(connection, upload);
  await connection.closeWrite();
  assertEquals(await received.promise, upload);
  await shutdown();
  await target.close();
});

Deno.test("tunnel: a target that refuses ends the local connection at once, and the tunnel lives", async () => {
  const target = nowhere();
  const { errors, onError } = errorList();
  const { client, shutdown } = await makeTunnel(target, { onError });
  for (const _ of [1, 2, 3]) {
    using connection = await Deno.connect(client.addr);
    assertEquals(await connection.read(new Uint8Array(1)), null);
  }
  const message = `Cannot connect to 127.0.0.1:${target.port}: connection refused`;
  assertEquals(errors.map((error) => error.message), [message, message, message]);
  assertInstanceOf(errors[0]!.cause, Deno.errors.ConnectionRefused);

  const web = Deno.serve({ ...target, onListen() {} }, () => new Response(pattern(5, 5)));
  await fetchFiles(client.addr.port, [5]);
  await shutdown();
  await web.shutdown();
});

Deno.test("tunnel: a local connection that is reset is told, its target is let go, and the tunnel lives", async () => {
  const released = Promise.withResolvers<number | null>();
  const target = makeTarget(async (connection) => {
    await writeAll(connection, bytes("hello"));
    released.resolve(await connection.read(new Uint8Array(1)));
  });
  const { errors, onError, first } = errorList();
  const { client, shutdown } = await makeTunnel(target.addr, { onError });
  const socket = net.connect(client.addr.port, client.addr.hostname);
  socket.once("data", () => socket.resetAndDestroy());
  assertMatch((await first).message, /^The connection from 127\.0\.0\.1:\d+ broke: connection reset by peer$/);
  assertEquals(await released.promise, null);

  using connection = await Deno.connect(client.addr);
  await connection.closeWrite();
  assertEquals(text(await readAll(connection)), "hello");
  await shutdown();
  await target.close();
  assertEquals(errors.length, 1);
});

Deno.test("tunnel: shutdown of a client stops listening, waits for what is open, and fulfils finished", async () => {
  const target = makeEcho();
  const { client, server } = await makeTunnel(target.addr);
  const connection = await Deno.connect(client.addr);
  assertEquals(await say(connection, "before"), "before");
  let isFinished = false;
  const finished = client.shutdown().then(() => isFinished = true);
  assertEquals(await isRefused(client.addr), true);
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
  const connection = await Deno.connect(client.addr);
  assertEquals(await say(connection, "before"), "before");
  let isFinished = false;
  const finished = server.shutdown().then(() => isFinished = true);
  assertEquals(await say(connection, "after"), "after");
  assertEquals(isFinished, false);
  connection.close();
  await finished;
  const message = `The connection to 127.0.0.1:${server.addr.port} was lost: the server ended it`;
  await assertRejects(() => client.finished, Error, message);
  assertEquals(await isRefused(client.addr), true);
  assertEquals(await client.shutdown(), undefined);
  await target.close();
});

Deno.test("tunnel: a server that is cut off ends the client with an error, and what it carried at once", async () => {
  const controller = new AbortController();
  const target = makeEcho();
  const server = serveTunnel({ listen: LOOPBACK, target: target.addr, signal: controller.signal });
  const { errors, onError } = errorList();
  const client = await openTunnel({ listen: LOOPBACK, connect: server.addr, onError });
  const connection = await Deno.connect(client.addr);
  assertEquals(await say(connection, "before"), "before");
  controller.abort();
  await assertRejects(() => client.finished, Error, `The connection to 127.0.0.1:${server.addr.port} was lost: `);
  assertEquals(await connection.read(new Uint8Array(1)).catch(() => null), null);
  connection.close();
  assertEquals(await isRefused(client.addr), true);
  await Promise.all([server.finished, client.shutdown(), target.close()]);
  assertEquals(errors, [], "what a lost session takes with it is not told one by one");
});

Deno.test("tunnel: a session that breaks while the client shuts down is told, and finished fulfils", async () => {
  const listener = Deno.listen(LOOPBACK);
  const { errors, onError } = errorList();
  const [client, server] = await Promise.all([
    openTunnel({ listen: LOOPBACK, connect: { ...LOOPBACK, port: listener.addr.port }, onError }),
    listener.accept(),
  ]);
  const connection = await Deno.connect(client.addr);
  await writeAll(connection, bytes("hello"));
  for (let received = ""; !received.includes("hello");) {
    const p = new Uint8Array(100);
    received += text(p.subarray(0, (await server.read(p))!));
  }
  const finished = client.shutdown();
  await writeAll(server, bytes("this is no smux"));
  await finished;
  await client.finished;
  assertEquals(errors.length, 1);
  assertMatch(errors[0]!.message, /^The connection to .+ was lost: /);
  for (const open of [connection, server, listener]) open.close();
});

Deno.test("tunnel: a server that speaks no smux ends the client with that error", async () => {
  const web = makeTarget((connection) => writeAll(connection, bytes("220 mail.example.com ESMTP\r\n")));
  const client = await openTunnel({ listen: LOOPBACK, connect: web.addr });
  const error = await assertRejects(() => client.finished, Error, "was lost");
  assertInstanceOf(error.cause, ProtocolError);
  await web.close();
});

Deno.test("tunnel: a client that speaks no smux is told, and the server lives", async () => {
  const target = makeEcho();
  const { errors, onError, first } = errorList();
  const { client, server, shutdown } = await makeTunnel(target.addr, { onError });
  using stranger = await Deno.connect(server.addr);
  await writeAll(stranger, bytes("GET / HTTP/1.1\r\n\r\n"));
  assertMatch((await first).message, /^A client's connection failed: /);
  assertInstanceOf((await first).cause, ProtocolError);
  using connection = await Deno.connect(client.addr);
  assertEquals(await say(connection, "still here"), "still here");
  connection.close();
  await shutdown();
  await target.close();
  assertEquals(errors.length, 1);
});

Deno.test("tunnel: a client refuses the streams that its server opens", async () => {
  const listener = Deno.listen(LOOPBACK);
  const [client, connection] = await Promise.all([
    openTunnel({ listen: LOOPBACK, connect: { ...LOOPBACK, port: listener.addr.port } }),
    listener.accept(),
  ]);
  const session = Session.server(connection);
  const stream = await session.openStream();
  assertEquals(await stream.read(new Uint8Array(1)), null);
  stream.close();
  await client.shutdown();
  await session.closed;
  listener.close();
});

Deno.test("tunnel: a signal ends either end at once, and finished fulfils", async () => {
  const controller = new AbortController();
  const target = makeEcho();
  const { errors, onError } = errorList();
  const { client, server } = await makeTunnel(target.addr, { signal: controller.signal, onError });
  const connection = await Deno.connect(client.addr);
  assertEquals(await say(connection, "before"), "before");
  controller.abort();
  await Promise.all([client.finished, server.finished]);
  assertEquals(await connection.read(new Uint8Array(1)).catch(() => null), null);
  connection.close();
  assertEquals(await isRefused(client.addr), true);
  assertEquals(await isRefused(server.addr), true);
  await target.close();
  assertEquals(errors, []);
});

Deno.test("tunnel: a signal that was aborted before starts nothing", async () => {
  const reason = new Error("too late");
  const signal = AbortSignal.abort(reason);
  const opening = openTunnel({ listen: LOOPBACK, connect: nowhere(), signal });
  assertStrictEquals(await opening.catch((error) => error), reason);
});

Deno.test("tunnel: callbacks that throw do no harm", async () => {
  const { error } = console;
  const printed: string[] = [];
  console.error = (error: unknown) => void printed.push(String(error));
  try {
    const target = nowhere();
    const onConnection = () => {
      throw new Error("from onConnection");
    };
    const onError = () => {
      throw new Error("from onError");
    };
    await using server = serveTunnel({ listen: LOOPBACK, target, onConnection, onError });
    await using client = await openTunnel({ listen: LOOPBACK, connect: server.addr, onError });
    for (const _ of [1, 2]) {
      using connection = await Deno.connect(client.addr);
      assertEquals(await connection.read(new Uint8Array(1)), null);
    }
  } finally {
    console.error = error;
  }
  assertEquals(printed, ["Error: from onConnection", "Error: from onError", "Error: from onError"]);
});

/** Opens a tunnel whose listener was changed before it is used. */
async function openChanged(
  options: Parameters<typeof openTunnel>[0],
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

Deno.test("tunnel: accepting that fails is told and tried again, after a pause unless a connection was lost", async () => {
  const { setTimeout } = globalThis;
  let pauses = 0;
  globalThis.setTimeout = ((run: () => void, delay: number) => {
    if (delay === 100) pauses++;
    return setTimeout(run, delay === 100 ? 0 : delay);
  }) as typeof setTimeout;
  try {
    const other = new Error("Too many open files (os error 24)");
    const lost = new Deno.errors.NotConnected("Transport endpoint is not connected (os error 107)");
    const failures = [other, lost, lost, other, lost];
    const target = makeEcho();
    const server = serveTunnel({ listen: LOOPBACK, target: target.addr });
    const { errors, onError } = errorList();
    const client = await openChanged({ listen: LOOPBACK, connect: server.addr, onError }, (listener) => {
      const { accept } = listener;
      listener.accept = () => failures.length > 0 ? Promise.reject(failures.shift()) : accept.call(listener);
    });
    const connection = await Deno.connect(client.addr);
    assertEquals(await say(connection, "still here"), "still here");
    connection.close();
    const what = "A connection was lost before it was accepted: ";
    const many = `${what}too many open files`;
    const gone = `${what}transport endpoint is not connected`;
    assertEquals(errors.map((error) => error.message), [many, gone, gone, many, gone]);
    assertEquals(pauses, 2);
    await client.shutdown();
    await server.shutdown();
    await target.close();
  } finally {
    globalThis.setTimeout = setTimeout;
  }
});

Deno.test("tunnel: a connection accepted when the session is ending is closed", async () => {
  const target = makeEcho();
  const server = serveTunnel({ listen: LOOPBACK, target: target.addr });
  const accepted = Promise.withResolvers<void>();
  const mayGo = Promise.withResolvers<void>();
  const client = await openChanged({ listen: LOOPBACK, connect: server.addr }, (listener) => {
    const { accept } = listener;
    listener.accept = async () => {
      const connection = await accept.call(listener);
      accepted.resolve();
      await mayGo.promise;
      return connection;
    };
  });
  const connection = await Deno.connect(client.addr);
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
  const server = serveTunnel({ listen: LOOPBACK, target: target.addr });
  const writing = Promise.withResolvers<void>();
  const mayWrite = Promise.withResolvers<void>();
  const client = await openChanged({ listen: LOOPBACK, connect: server.addr }, (listener) => {
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
  const connection = await Deno.connect(client.addr);
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
  const server = serveTunnel({ listen: LOOPBACK, target: target.addr });
  const { errors, onError } = errorList();
  let delayed = 0;
  const client = await openChanged({ listen: LOOPBACK, connect: server.addr, onError }, (listener) => {
    const { accept } = listener;
    listener.accept = async () => {
      const connection = await accept.call(listener);
      connection.setNoDelay = () => {
        if (++delayed === 1) throw new Error("Invalid argument (os error 22)");
      };
      return connection;
    };
  });
  const dead = await Deno.connect(client.addr);
  assertEquals(await dead.read(new Uint8Array(1)), null);
  dead.close();
  assertEquals(errors.length, 1);
  assertMatch(errors[0]!.message, /^The connection from 127\.0\.0\.1:\d+ broke: invalid argument$/);
  const connection = await Deno.connect(client.addr);
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
  const { errors, onError } = errorList();
  const target = nowhere();
  const server = serveTunnel({ listen: LOOPBACK, target, onError });
  const session = Session.client(await Deno.connect(server.addr));
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
    listening.splice(listening.indexOf(args[1]), 1);
    removeEventListener.apply(signal, args);
  };
  const { shutdown } = await makeTunnel(nowhere(), { signal });
  assertGreater(listening.length, 1);
  await shutdown();
  assertEquals(listening, []);
});

Deno.test("tunnel: ports that cannot be are refused at once", async () => {
  const addr = nowhere();
  for (const port of [-1, 65_536, 1.5, NaN]) {
    assertThrows(() => serveTunnel({ listen: { ...addr, port }, target: addr }), RangeError, "listen.port");
    await assertRejects(() => openTunnel({ listen: { ...addr, port }, connect: addr }), RangeError, "listen.port");
  }
  for (const port of [0, 65_536]) {
    assertThrows(() => serveTunnel({ listen: LOOPBACK, target: { ...addr, port } }), RangeError, "target.port");
    await assertRejects(() => openTunnel({ listen: LOOPBACK, connect: { ...addr, port } }), RangeError, "connect.port");
  }
});

Deno.test("tunnel: an address in use and a server that is not there are said so", async () => {
  const target = nowhere();
  await using server = serveTunnel({ listen: LOOPBACK, target });
  const inUse = `Cannot listen on 127.0.0.1:${server.addr.port}: address in use`;
  assertEquals(assertThrows(() => serveTunnel({ listen: server.addr, target }), Error).message, inUse);
  const opening = openTunnel({ listen: server.addr, connect: server.addr });
  assertEquals((await assertRejects(() => opening, Error)).message, inUse);
  const lost = `Cannot connect to 127.0.0.1:${target.port}: connection refused`;
  const missing = openTunnel({ listen: LOOPBACK, connect: target });
  assertEquals((await assertRejects(() => missing, Error)).message, lost);
});

// The command.

const SCRIPT = new URL("../tunnel.ts", import.meta.url).href;

function command(args: string[]): Deno.Command {
  return new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-config", "-A", SCRIPT, ...args],
    env: { NO_COLOR: "1" },
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  });
}

/** Runs the command to its end. */
async function run(...args: string[]) {
  const { code, stdout, stderr } = await command(args).output();
  return { code, stdout: text(stdout), stderr: text(stderr) };
}

/** Starts the command and waits until it listens. */
async function start(...args: string[]) {
  const child = command(args).spawn();
  let stdout = "";
  let seen = Promise.withResolvers<void>();
  const printing = (async () => {
    for await (const chunk of child.stdout.pipeThrough(new TextDecoderStream())) {
      stdout += chunk;
      seen.resolve();
      seen = Promise.withResolvers();
    }
    seen.resolve();
  })();
  const complaining = new Response(child.stderr).text();
  /** Waits until something was printed. */
  const until = async (what: RegExp) => {
    while (!what.test(stdout)) await Promise.race([seen.promise, child.status.then(() => assertMatch(stdout, what))]);
    return what.exec(stdout)!;
  };
  const ended = async () => {
    const { code, signal } = await child.status;
    await printing;
    return { code, signal, stdout, stderr: await complaining };
  };
  const dispose = async () => {
    // Only a test that failed finds it alive.
    try {
      child.kill("SIGKILL");
    } catch {
      // It has ended.
    }
    await ended();
  };
  const [, hostname, port] = await until(/^listening on \[?(.+?)\]?:(\d+)$/m);
  return { child, until, ended, addr: { hostname: hostname!, port: Number(port) }, [Symbol.asyncDispose]: dispose };
}

const at = ({ hostname, port }: Endpoint) => hostname.includes(":") ? `[${hostname}]:${port}` : `${hostname}:${port}`;

/** Both ends of a tunnel, each in a process. */
async function startBoth(target: Endpoint) {
  const server = await start("server", "--listen", "127.0.0.1:0", "--target", at(target));
  const client = await start("client", "--listen=127.0.0.1:0", `--connect=${at(server.addr)}`);
  const dispose = async () => {
    await client[Symbol.asyncDispose]();
    await server[Symbol.asyncDispose]();
  };
  return { server, client, [Symbol.asyncDispose]: dispose };
}

Deno.test("tunnel command: HTTP through two processes with one connection, ended in order by signals", async () => {
  const web = serveFiles();
  await using tunnel = await startBoth(web.addr);
  const { server, client } = tunnel;
  await fetchFiles(client.addr.port, SIZES);
  client.child.kill("SIGINT");
  assertEquals(await client.ended(), {
    code: 0,
    signal: null,
    stdout: `listening on ${at(client.addr)}\n` +
      "shutting down; Ctrl-C ends it at once\n" +
      "carried 60 streams over 1 connection\n",
    stderr: "",
  });
  server.child.kill("SIGTERM");
  const ended = await server.ended();
  assertEquals({ ...ended, stdout: ended.stdout.replace(/(from 127\.0\.0\.1:)\d+/, "$1PORT") }, {
    code: 0,
    signal: null,
    stdout: `listening on ${at(server.addr)}\n` +
      "connection from 127.0.0.1:PORT\n" +
      "shutting down; Ctrl-C ends it at once\n" +
      "carried 60 streams over 1 connection\n",
    stderr: "",
  });
  await web.shutdown();
});

Deno.test("tunnel command: a signal waits for what is open, a second one does not", async () => {
  const target = makeEcho();
  await using tunnel = await startBoth(target.addr);
  const { server, client } = tunnel;
  const connection = await Deno.connect(client.addr);
  assertEquals(await say(connection, "before"), "before");
  server.child.kill("SIGTERM");
  await server.until(/^shutting down/m);
  assertEquals(await say(connection, "after"), "after");
  server.child.kill("SIGTERM");
  assertEquals((await server.ended()).signal, "SIGTERM");

  const { code, stdout, stderr } = await client.ended();
  assertEquals(code, 1);
  assertEquals(stdout, `listening on ${at(client.addr)}\ncarried 1 stream over 1 connection\n`);
  assertMatch(stderr, new RegExp(`^the connection to ${at(server.addr)} was lost: .+\n$`));
  assertEquals(await connection.read(new Uint8Array(1)).catch(() => null), null);
  connection.close();
  await target.close();
});

Deno.test("tunnel command: 200 local connections that were reset before they are accepted do not end it", async () => {
  const target = makeEcho();
  await using tunnel = await startBoth(target.addr);
  const { server, client } = tunnel;
  // The kernel goes on taking connections for a process that is stopped.
  client.child.kill("SIGSTOP");
  await Promise.all(Array.from({ length: 200 }, () => {
    const closed = Promise.withResolvers<void>();
    const socket = net.connect(client.addr.port, client.addr.hostname, () => socket.resetAndDestroy());
    socket.on("close", () => closed.resolve());
    return closed.promise;
  }));
  client.child.kill("SIGCONT");
  const connection = await Deno.connect(client.addr);
  assertEquals(await say(connection, "still here"), "still here");
  connection.close();
  client.child.kill("SIGTERM");
  const { code, stderr } = await client.ended();
  assertEquals(code, 0);
  const lost = stderr.match(/^a connection was lost before it was accepted: .+$/gm) ?? [];
  assertGreater(lost.length, 0, "not one accept failed: this test has tested nothing");
  assertEquals(stderr.trimEnd().split("\n").length, 200, "each of them is told, once");
  server.child.kill("SIGTERM");
  assertEquals((await server.ended()).code, 0);
  await target.close();
});

Deno.test("tunnel command: IPv6", { ignore: !hasIpv6() }, async () => {
  const web = serveFiles();
  await using server = await start("server", "--listen", "[::1]:0", "--target", at(web.addr));
  await using client = await start("client", "--listen", "localhost:0", "--connect", at(server.addr));
  assertEquals(server.addr.hostname, "::1");
  await fetchFiles(client.addr.port, [1000]);
  client.child.kill("SIGTERM");
  assertEquals((await client.ended()).code, 0);
  server.child.kill("SIGTERM");
  assertMatch((await server.ended()).stdout, /^connection from \[::1\]:\d+$/m);
  await web.shutdown();
});

function hasIpv6(): boolean {
  try {
    Deno.listen({ hostname: "::1", port: 0 }).close();
    return true;
  } catch {
    return false;
  }
}

Deno.test("tunnel command: what cannot be started is said in one line, exit code 1", async () => {
  const target = nowhere();
  await using server = serveTunnel({ listen: LOOPBACK, target });
  const [inUse, missing] = await Promise.all([
    run("server", "--listen", at(server.addr), "--target", at(target)),
    run("client", "--listen", "127.0.0.1:0", "--connect", at(target)),
  ]);
  assertEquals(inUse, { code: 1, stdout: "", stderr: `cannot listen on ${at(server.addr)}: address in use\n` });
  assertEquals(missing, { code: 1, stdout: "", stderr: `cannot connect to ${at(target)}: connection refused\n` });
});

Deno.test("tunnel command: a bad command line is said in one line, exit code 2", async () => {
  const cases = {
    "": "say server or client",
    "serve": 'say server or client, not "serve"',
    "server": "--listen is missing",
    "server --listen :0 --target a:1": '--listen must be HOST:PORT or [IPV6]:PORT, not ":0"',
    "server --listen a:0 --target": "--target needs a value",
    "server --listen --target a:1": "--listen needs a value",
    "server --listen a:0 --target a:0": "--target needs a port from 1 to 65535, not 0",
    "server --listen a:65536 --target a:1": "--listen needs a port from 0 to 65535, not 65536",
    "server --listen ::1:0 --target a:1": '--listen must be HOST:PORT or [IPV6]:PORT, not "::1:0"',
    "server --listen [::g]:0 --target a:1": '--listen must be HOST:PORT or [IPV6]:PORT, not "[::g]:0"',
    "client --listen a:0": "--connect is missing",
    "client --listen a:0 --connect a:x": '--connect must be HOST:PORT or [IPV6]:PORT, not "a:x"',
    "client --listen a:0 --connect 256.0.0.1:1": '--connect must be HOST:PORT or [IPV6]:PORT, not "256.0.0.1:1"',
    "client --listen a:0 --target a:1": "unknown option --target",
    "client --listen a:0 --listen a:0": "--listen was given twice",
    "client a:0": 'unexpected argument "a:0"',
  };
  await Promise.all(
    Object.entries(cases).map(async ([line, message]) => {
      const { code, stdout, stderr } = await run(...line.split(" ").filter((word) => word !== ""));
      assertEquals({ line, code, stdout, stderr }, { line, code: 2, stdout: "", stderr: `${message} (try --help)\n` });
    }),
  );
});

Deno.test("tunnel command: --help fits a terminal and names every option", async () => {
  const { code, stdout, stderr } = await run("client", "--help");
  assertEquals({ code, stderr }, { code: 0, stderr: "" });
  const lines = stdout.split("\n");
  assert(lines.length <= 25, `${lines.length} lines`);
  for (const line of lines) assert(line.length <= 80, line);
  for (const word of ["server", "client", "--listen", "--target", "--connect", "--help"]) assert(stdout.includes(word));
});
