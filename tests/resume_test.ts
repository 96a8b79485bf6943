/** Resumable connections: exchanges over carriers that die, ends, limits and bad input. */

import {
  assert,
  assertEquals,
  assertInstanceOf,
  assertLess,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { concat } from "@std/bytes";
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { unbounded } from "../channel.ts";
import {
  ACCEPTED,
  BUSY,
  decodeReply,
  encodeAcknowledgement,
  encodeHello,
  HELLO_LENGTH,
  NO_TOKEN,
  RecordDecoder,
  REPLY_LENGTH,
  RESUMED,
  TOKEN_LENGTH,
  UNKNOWN,
} from "../_resume_frame.ts";
import { ProtocolError, type Version } from "../frame.ts";
import { type Connection, type Listener, serve, Session } from "../mod.ts";
import {
  resumable,
  type ResumableConnection,
  resumableListener,
  type ResumableListenerOptions,
  type ResumableOptions,
  ResumptionError,
} from "../resume.ts";
import {
  countListeners,
  exchangeHashed,
  KiB,
  LOOPBACK,
  ManualClock,
  memoryPair,
  MiB,
  pattern,
  readAll,
  readExactly,
  state,
  turn,
  writeAll,
} from "./support.ts";
import { LONG, within } from "./within.ts";

/** Closes a socket that may be closed already. */
function cut(socket: Deno.TcpConn | undefined): void {
  try {
    socket?.close();
  } catch {
    // Closed already.
  }
}

/** A server of resumable connections on a free port, a client, and the sockets that the client has dialled. */
async function pair(options: ResumableListenerOptions = {}) {
  const inner = Deno.listen(LOOPBACK);
  const listener = resumableListener(inner, options);
  const sockets: Deno.TcpConn[] = [];
  const accepting = listener.accept();
  const client = resumable(async () => {
    const socket = await Deno.connect({ ...LOOPBACK, port: inner.addr.port });
    sockets.push(socket);
    return socket;
  }, options);
  const server = await accepting as ResumableConnection;
  const end = () => {
    client.close();
    server.close();
    listener.close();
  };
  return { client, server, sockets, listener, port: inner.addr.port, [Symbol.dispose]: end };
}

/** A peer that speaks the format by hand. */
class RawClient implements Disposable {
  readonly connection: Deno.TcpConn;

  private constructor(connection: Deno.TcpConn) {
    this.connection = connection;
  }

  static async dial(port: number): Promise<RawClient> {
    return new RawClient(await Deno.connect({ ...LOOPBACK, port }));
  }

  /** Sends a hello, and returns the reply. */
  async greet(token: Uint8Array = NO_TOKEN, received = 0) {
    await this.send(encodeHello({ token, received }));
    return decodeReply(await readExactly(this.connection, REPLY_LENGTH));
  }

  send(...parts: Uint8Array[]): Promise<void> {
    return writeAll(this.connection, concat(parts));
  }

  /** Whether the server has closed the connection. */
  async isClosed(): Promise<boolean> {
    try {
      await readAll(this.connection);
    } catch (error) {
      assertInstanceOf(error, Deno.errors.ConnectionReset);
    }
    return true;
  }

  [Symbol.dispose](): void {
    cut(this.connection);
  }
}

/** A listener with its port. */
function listen(options: ResumableListenerOptions = {}) {
  const inner = Deno.listen(LOOPBACK);
  const listener = resumableListener(inner, options);
  return { listener, port: inner.addr.port, [Symbol.dispose]: () => listener.close() };
}

/** Accepts a connection, passes it on, and cuts it; resolves when it is not connected any more. */
async function acceptAndCut(
  { listener, port }: { listener: Listener; port: number },
  accepted: (server: ResumableConnection) => void,
): Promise<void> {
  const accepting = listener.accept();
  const client = await RawClient.dial(port);
  await client.greet();
  const server = await accepting as ResumableConnection;
  accepted(server);
  server.read(new Uint8Array(1)).catch(() => {});
  client[Symbol.dispose]();
  while (server.state === "connected") await turn();
}

const record = (bytes: Uint8Array) =>
  concat([Uint8Array.of(0), new Uint8Array(Uint32Array.of(bytes.length).buffer), bytes]);

Deno.test("resumable() carries bytes in both directions, one after the other, and half-closes", async () => {
  using made = await pair();
  const { client, server } = made;
  const sent = pattern(3_000_000);
  const [received] = await Promise.all([readAll(server), writeAll(client, sent).then(() => client.closeWrite())]);
  assertEquals(received, sent);
  assertEquals(client.state, "connected");
  const [back] = await Promise.all([readAll(client), writeAll(server, sent).then(() => server.closeWrite())]);
  assertEquals(back, sent);
  client.close();
  await client.closed;
  await server.closed;
});

Deno.test("resumable() loses, repeats and reorders nothing while its socket is cut again and again", async () => {
  using made = await pair();
  const { client, server, sockets } = made;
  const sent = pattern(8_000_000);
  let moved = 0;
  /** Reads to the end; cuts the socket after each 500 kB. */
  const readAndCut = async (from: Connection) => {
    const parts: Uint8Array[] = [];
    const p = new Uint8Array(64 * 1024);
    for (let count, next = 0; (count = await from.read(p)) !== null;) {
      parts.push(p.slice(0, count));
      if ((moved += count) < next) continue;
      next = moved + 500_000;
      cut(sockets.at(-1));
    }
    return concat(parts);
  };
  const [received, back] = await Promise.all([
    readAndCut(server),
    readAndCut(client),
    writeAll(client, sent).then(() => client.closeWrite()),
    writeAll(server, sent).then(() => server.closeWrite()),
  ]);
  assertEquals(received, sent);
  assertEquals(back, sent);
  assert(client.resumptions > 3, `${client.resumptions} resumptions`);
});

for (const version of [1, 2] as const satisfies Version[]) {
  Deno.test(`resumable() keeps 60 hashed streams of a session in version ${version} while its socket is cut`, async () => {
    const inner = Deno.listen(LOOPBACK);
    const server = serve(resumableListener(inner), (stream) => stream.readable.pipeTo(stream.writable));
    let socket: Deno.TcpConn | undefined;
    const connection = resumable(async () => socket = await Deno.connect({ ...LOOPBACK, port: inner.addr.port }));
    const session = Session.client(connection, { version });
    let isDone = false;
    const cutting = (async () => {
      for (let seen = 0; !isDone; await turn()) {
        if (session.stats().bytesReceived < seen) continue;
        seen = session.stats().bytesReceived + 200_000;
        cut(socket);
      }
    })();
    await exchangeHashed(session, 60);
    isDone = true;
    await cutting;
    assert(connection.resumptions > 1, `${connection.resumptions} resumptions`);
    while (session.stats().suspended) await turn();
    await session.close();
    await session.closed;
    await server.shutdown();
  });
}

Deno.test("resumable() and resumableListener() accept sockets of Node, also of clients without a hello", async () => {
  const { sender, receiver } = unbounded<Socket>();
  const nodeServer = createServer((socket) => void sender.trySend(socket)).listen(0, LOOPBACK.hostname);
  await once(nodeServer, "listening");
  const { port } = nodeServer.address() as AddressInfo;
  const accept = () => receiver.receive().catch(() => Promise.reject(new Deno.errors.Interrupted()));
  const listener = resumableListener({ accept, close: () => void sender.close() });
  const server = serve(listener, (stream) => stream.readable.pipeTo(stream.writable));
  const dial = () => Promise.resolve(connect(port, LOOPBACK.hostname));
  const sockets: Socket[] = [];
  const connection = resumable(async () => {
    const socket = await dial();
    sockets.push(socket);
    return socket;
  });
  const session = Session.client(connection);
  await exchangeHashed(session, 10);
  sockets[0]!.destroy();
  await exchangeHashed(session, 10);
  assertEquals([connection.resumptions, sockets.length], [1, 2]);

  const plain = Session.client(await dial());
  await exchangeHashed(plain, 10);
  await Promise.all([session.close(), plain.close()]);
  await server.shutdown();
  await new Promise((resolve) => nodeServer.close(resolve));
});

Deno.test("resumable() writes on while neither end is read, up to maxUnacknowledged and what the sockets hold", async () => {
  using made = await pair({ maxUnacknowledged: MiB });
  const { client, server } = made;
  let written = 0;
  const writing = (async () => {
    for (const p = new Uint8Array(64 * 1024); written < 100 * MiB;) written += await client.write(p);
  })();
  for (let n = 0, before = -1; before < written || n < 20; n++) {
    before = written;
    for (let turns = 0; turns < 20; turns++) await turn();
  }
  assertLess(written, MiB + 1);
  // The peer reads acknowledgements although its own bytes are unread.
  const back = writeAll(server, new Uint8Array(MiB / 2));
  let received = 0;
  const p = new Uint8Array(64 * 1024);
  while (received < 20 * MiB) received += (await server.read(p))!;
  await back;
  client.close();
  await assertRejects(() => writing, Error, "closed connection");
});

Deno.test("an end that does not read receives acknowledgements behind all that its peer may send, on every carrier", async () => {
  const maxUnacknowledged = 64 * KiB;
  using made = listen({ maxUnacknowledged });
  const accepting = made.listener.accept();
  let client = await RawClient.dial(made.port);
  const { token } = await client.greet();
  const server = await accepting as ResumableConnection;
  const sent = pattern(maxUnacknowledged + 1000);
  let [read, written] = [0, 0];
  const readSent = async (count: number) => {
    assertEquals(await readExactly(server, count), sent.subarray(read, read += count));
  };
  for (let carrier = 1; carrier <= 3; carrier++) {
    const acknowledged: number[] = [];
    const ignore = () => {};
    const decoder = new RecordDecoder({
      acknowledged: (count) => acknowledged.push(count),
      probed: ignore,
      ended: ignore,
      closedByPeer: ignore,
    });
    const p = new Uint8Array(64 * KiB);
    const receive = async () => {
      const count = await within(LONG, client.connection.read(p), () => `nothing more on carrier ${carrier}`);
      written += decoder.decode(p, count!);
    };
    const isRead = read;
    if (carrier === 3) {
      await readSent(40 * KiB);
      await server.write(new Uint8Array(1));
      await receive();
      assertEquals(acknowledged, [], "what is read cannot be acknowledged before it is sent again");
      await client.send(encodeAcknowledgement(written));
    }
    await client.send(record(sent.subarray(isRead, isRead + maxUnacknowledged)));
    const end = written + maxUnacknowledged;
    await writeAll(server, new Uint8Array(maxUnacknowledged));
    const waiting = server.write(new Uint8Array(1));
    while (written < end) await receive();
    await client.send(encodeAcknowledgement(written));
    assertEquals(await within(LONG, waiting, () => `no acknowledgement on carrier ${carrier}`), 1);
    while (written === end) await receive();
    if (carrier === 3) {
      while (acknowledged.at(-1) !== read) await receive();
      break;
    }
    client[Symbol.dispose]();
    while (server.state === "connected") await turn();
    await readSent(500);
    client = await RawClient.dial(made.port);
    assertEquals((await client.greet(token, written)).received, read);
  }
  await readSent(sent.length - read);
  client[Symbol.dispose]();
  server.close();
});

Deno.test("resumable() gives up after resumeTimeout with the error of the last attempt, before and after it was connected", async () => {
  using clock = new ManualClock();
  for (const isConnected of [false, true]) {
    const refused = new Deno.errors.ConnectionRefused("on purpose");
    const [near, far] = memoryPair();
    let attempts = 0;
    const changes: string[] = [];
    const connection = resumable(() => {
      attempts++;
      return isConnected && attempts === 1 ? Promise.resolve(near) : Promise.reject(refused);
    }, { resumeTimeout: 5000, onChange: (state) => changes.push(state) });
    if (isConnected) {
      await readExactly(far, HELLO_LENGTH);
      await writeAll(far, reply(ACCEPTED));
      await turn();
      assertEquals(connection.state, "connected");
      far.close();
    }
    const reading = connection.read(new Uint8Array(1));
    await clock.advance(4900);
    assertEquals(await state(reading), "pending");
    await clock.advance(200);
    const error = await assertRejects(() => reading, ResumptionError, "not resumed in time");
    assertEquals(error.cause, refused);
    await assertRejects(() => connection.closed, ResumptionError);
    // 100, 200, 400, 800, 1600 and 2000 ms, less up to a half each.
    assert(attempts >= 5 && attempts <= 12, `${attempts} attempts`);
    assertEquals(changes, isConnected ? ["connected", "suspended", "ended"] : ["ended"]);
  }
  assertEquals(clock.pending, 0);
});

Deno.test("resumable() stays connected for longer than resumeTimeout after a timer was late", async () => {
  using clock = new ManualClock();
  const [near, far] = memoryPair();
  const connection = resumable(() => Promise.resolve(near), { resumeTimeout: 5000, silence: 4000 });
  await readExactly(far, HELLO_LENGTH);
  await writeAll(far, reply(ACCEPTED));
  await turn();
  const reading = readAll(connection).catch(() => {});
  // As in a process that stands still.
  clock.freeze(10_000);
  for (let n = 0; n < 20; n++) {
    await writeAll(far, record(new Uint8Array(1)));
    await clock.advance(500);
    assertEquals(connection.state, "connected", `after ${n * 500} ms`);
  }
  connection.close();
  await reading;
});

function reply(status: number, token = new Uint8Array(16).fill(7), received = 0): Uint8Array {
  const bytes = new Uint8Array(REPLY_LENGTH);
  bytes.set(encodeHello({ token, received }).subarray(0, 8));
  bytes[8] = status;
  bytes.set(encodeHello({ token, received }).subarray(8), 9);
  return bytes;
}

Deno.test("resumable() ends at once when the server does not know the connection, or breaks the format", async () => {
  using _clock = new ManualClock();
  for (
    const [answer, expected, message] of [
      [reply(UNKNOWN), ResumptionError, "does not know"],
      [reply(RESUMED), ResumptionError, "Expected the connection to be accepted, received status 1"],
      [reply(ACCEPTED, undefined, 1), ProtocolError, "a count from 0 to 0"],
      [new Uint8Array(REPLY_LENGTH), ProtocolError, "byte 213 of the magic"],
      [concat([reply(ACCEPTED), Uint8Array.of(9)]), ProtocolError, "a record of type 0 to 5"],
      [concat([reply(ACCEPTED), encodeAcknowledgement(1)]), ProtocolError, "an acknowledgement of at most 0 bytes"],
      [concat([reply(ACCEPTED), Uint8Array.of(4, 4)]), ProtocolError, "no data after the end"],
      [concat([reply(ACCEPTED), Uint8Array.of(4), record(new Uint8Array(1))]), ProtocolError, "no data after the end"],
    ] as const
  ) {
    const [near, far] = memoryPair();
    const connection = resumable(() => Promise.resolve(near));
    const reading = readAll(connection).catch(() => {});
    await readExactly(far, HELLO_LENGTH);
    await writeAll(far, answer);
    await turn();
    const error = await assertRejects(() => connection.closed, expected, message);
    if (expected === ProtocolError) assertStringIncludes(error.message, "Not valid resume protocol at byte ");
    await reading;
  }
});

Deno.test("resumable() dials again when the server is busy, ends the connection or stays silent", async () => {
  using clock = new ManualClock();
  const ends: (ReturnType<typeof memoryPair>)[] = [];
  const connection = resumable(() => {
    ends.push(memoryPair());
    return Promise.resolve(ends.at(-1)![0]);
  }, { silence: 1000 });
  await clock.advance(0);
  await writeAll(ends[0]![1], reply(3));
  await clock.advance(100);
  assertEquals(ends.length, 2);
  ends[1]![1].close();
  await clock.advance(200);
  assertEquals(ends.length, 3);
  await clock.advance(1400);
  assertEquals(ends.length, 4);
  assert(ends[2]![0].isClosed);
  await writeAll(ends[3]![1], reply(ACCEPTED));
  await clock.advance(0);
  assertEquals(connection.state, "connected");
  connection.close();
});

Deno.test("resumable() and resumableListener() read a hello, a reply and what follows in pieces of one byte", async () => {
  const [near, far] = memoryPair();
  const inPieces = (connection: Connection): Connection => ({
    read: (p) => connection.read(p.subarray(0, 1)),
    write: (p) => connection.write(p),
    close: () => connection.close(),
  });
  const inner = [Promise.resolve(inPieces(far)), new Promise<never>(() => {})];
  const listener = resumableListener({ accept: () => inner.shift()!, close() {} });
  const client = resumable(() => Promise.resolve(inPieces(near)));
  const server = await listener.accept();
  for (const [from, to] of [[client, server], [server, client]] as const) {
    await writeAll(from, pattern(300));
    assertEquals(await readExactly(to, 300), pattern(300));
  }
  assertEquals((client as ResumableConnection).resumptions, 0);
  client.close();
  server.close();
  listener.close();
});

Deno.test("ResumableConnection.retry() dials at once", async () => {
  using clock = new ManualClock();
  let attempts = 0;
  const connection = resumable(() => Promise.reject(new Error(`attempt ${++attempts}`)));
  await clock.advance(0);
  for (let n = 1; n < 5; n++) {
    assertEquals(attempts, n);
    connection.retry();
    await clock.advance(0);
  }
  connection.close();
});

Deno.test("resumable() ends with the reason of its signal, and passes dial a signal and the number of attempts", async () => {
  using clock = new ManualClock();
  const stop = new AbortController();
  const listeners = countListeners(stop.signal);
  const seen: [number, AbortSignal][] = [];
  const connection = resumable(({ n, signal }) => {
    seen.push([n, signal]);
    return Promise.reject(new Error("on purpose"));
  }, { signal: stop.signal });
  await clock.advance(350);
  assertEquals(seen.map(([n]) => n), [...seen.keys()]);
  assertEquals(listeners(), 1);
  stop.abort(new Error("enough"));
  await assertRejects(() => connection.closed, Error, "enough");
  assertEquals(listeners(), 0);
  assert(seen.every(([, signal]) => signal.aborted));
  assertEquals(clock.pending, 0);
});

Deno.test("resumable() leaves no listener on its signal when the connection is closed", async () => {
  const { signal } = new AbortController();
  const listeners = countListeners(signal);
  const connection = resumable(() => new Promise(() => {}), { signal });
  assertEquals(listeners(), 1);
  connection.close();
  await connection.closed;
  assertEquals(listeners(), 0);
});

const failures: Record<string, () => void> = {
  throws: () => {
    throw new Error("on purpose");
  },
  "rejects with": () => Promise.reject(new Error("on purpose")),
};
for (const [how, onChange] of Object.entries(failures)) {
  Deno.test(`an error that onChange ${how} is logged, and the connection goes on`, async () => {
    const { error } = console;
    const logged: unknown[] = [];
    console.error = (error) => logged.push(error);
    try {
      {
        using made = await pair({ onChange });
        await made.client.write(pattern(100));
        assertEquals(await readExactly(made.server, 100), pattern(100));
      }
      await turn();
    } finally {
      console.error = error;
    }
    // Both ends connect and end.
    assertEquals(logged.map((error) => (error as Error).message), Array(4).fill("on purpose"));
  });
}

Deno.test("a carrier that is silent is probed, and lost after silence", async () => {
  using clock = new ManualClock();
  const [near, far] = memoryPair();
  const states: string[] = [];
  let dials = 0;
  const connection = resumable(() => dials++ === 0 ? Promise.resolve(near) : new Promise<never>(() => {}), {
    silence: 1000,
    onChange: (state, reason) => states.push(`${state} ${(reason as Error | undefined)?.name}`),
  });
  await readExactly(far, HELLO_LENGTH);
  await writeAll(far, reply(ACCEPTED));
  await clock.advance(0);
  for (let n = 0; n < 3; n++) {
    await clock.advance(550);
    assertEquals(await readExactly(far, 1), Uint8Array.of(2), "a probe");
    await writeAll(far, Uint8Array.of(3));
  }
  assertEquals(states, ["connected undefined"]);
  await clock.advance(1200);
  assertEquals(states, ["connected undefined", "suspended TimeoutError"]);
  connection.close();
});

Deno.test("an end whose application does not read answers probes, and counts a silent carrier as lost", async () => {
  using clock = new ManualClock();
  const [near, far] = memoryPair();
  let dials = 0;
  const connection = resumable(() => dials++ === 0 ? Promise.resolve(near) : new Promise<never>(() => {}), {
    silence: 1000,
  });
  await readExactly(far, HELLO_LENGTH);
  await writeAll(far, reply(ACCEPTED));
  await clock.advance(550);
  await writeAll(far, concat([record(pattern(100)), Uint8Array.of(2)]));
  await clock.advance(10);
  // Its own probe, and the reply. What is not read is not acknowledged.
  assertEquals(await readExactly(far, 2), Uint8Array.of(2, 3));
  assertEquals(await readExactly(connection, 40), pattern(100).subarray(0, 40));
  await clock.advance(100);
  assertEquals(await readExactly(far, 9), encodeAcknowledgement(40));
  await clock.advance(2000);
  assertEquals(connection.state, "suspended");
  // What has arrived stays readable.
  assertEquals(await readExactly(connection, 60), pattern(100).subarray(40));
  connection.close();
});

Deno.test("bytes that a lost carrier delivers late are ignored", async () => {
  const late = Promise.withResolvers<number>();
  let isLate = false;
  const [near, far] = memoryPair();
  const first: Connection = {
    read: (p) => isLate ? late.promise : near.read(p),
    write: (p) => isLate ? Promise.reject(new Error("cut")) : near.write(p),
    close: () => near.close(),
  };
  const [secondNear, secondFar] = memoryPair();
  const carriers = [first, secondNear];
  const connection = resumable(() => Promise.resolve(carriers.shift()!));
  await readExactly(far, HELLO_LENGTH);
  await writeAll(far, concat([reply(ACCEPTED), record(Uint8Array.of(1))]));
  const p = new Uint8Array(100);
  assertEquals(await connection.read(p), 1);
  isLate = true;
  const reading = connection.read(p);
  const writing = connection.write(Uint8Array.of(9));
  const hello = await readExactly(secondFar, HELLO_LENGTH);
  assertEquals(hello[24], 1, "the count");
  await writeAll(secondFar, concat([reply(RESUMED), record(Uint8Array.of(2))]));
  await writing;
  p.set(record(Uint8Array.of(7)));
  late.resolve(6);
  assertEquals(await reading, 1);
  assertEquals(p[0], 2);
  connection.close();
});

Deno.test("ResumableConnection.read(): an array that is transferred during the wait rejects its read, and no byte is lost", async () => {
  using all = await pair();
  const p = new Uint8Array(8);
  const taken = all.server.read(p);
  p.buffer.transfer();
  const reading = readExactly(all.server, 100);
  await all.client.write(pattern(100));
  await assertRejects(() => taken, TypeError, "transferred");
  assertEquals(await reading, pattern(100));
});

Deno.test("Connection.close() of one end resets the other, unless both have ended writing", async () => {
  for (const isEnded of [false, true]) {
    using made = await pair();
    const { client, server } = made;
    await writeAll(client, pattern(1000));
    if (isEnded) {
      const reading = readAll(server);
      await Promise.all([client.closeWrite(), server.closeWrite(), reading]);
      assertEquals(await client.read(new Uint8Array(1)), null);
      client.close();
      await server.closed;
    } else {
      client.close();
      await client.closed;
      assertEquals(await readExactly(server, 1000), pattern(1000));
      const error = await assertRejects(() => server.read(new Uint8Array(1)), Error);
      assertEquals(error.name, "ConnectionReset");
      await assertRejects(() => server.write(new Uint8Array(1)), Error);
      await assertRejects(() => server.closed, Error, "has closed");
    }
    const error = await assertRejects(() => client.write(new Uint8Array(1)), Error);
    assertEquals(error.name, "BadResource");
  }
});

for (const [name, isServer] of [["server", true], ["client", false]] as const) {
  Deno.test(`closeWrite() resolves although a carrier is lost after the ${name} has ended, and before it has read everything`, async () => {
    using made = await pair();
    const { client, server, sockets } = made;
    const [done, other] = isServer ? [server, client] : [client, server];
    await client.write(Uint8Array.of(1));
    assertEquals(await readExactly(server, 1), Uint8Array.of(1));
    await other.write(pattern(1000));
    const ending = other.closeWrite();
    const reading = readAll(other);
    // It reads the data and the end ahead, and does not acknowledge them.
    await done.closeWrite();
    await reading;
    cut(sockets[0]);
    while (client.resumptions === 0 || client.state !== "connected") await turn();
    assertEquals(await readAll(done), pattern(1000));
    await ending;
    client.close();
    await Promise.all([client.closed, server.closed]);
  });
}

Deno.test("Connection.close() first acknowledges what the application has read", async () => {
  using made = await pair();
  const { client, server } = made;
  await client.write(pattern(1000));
  const ending = client.closeWrite();
  const reading = readAll(client);
  await server.write(pattern(10));
  // Reads the data and the end ahead.
  await server.closeWrite();
  assertEquals(await readAll(server), pattern(1000));
  server.close();
  await ending;
  assertEquals(await reading, pattern(10));
  await client.closed;
});

Deno.test("Connection.close() while suspended goes on until a peer that has ended, too, knows what was received", async () => {
  using made = await pair();
  const { client, server, sockets } = made;
  await client.write(pattern(1000));
  const ending = client.closeWrite();
  const reading = readAll(client);
  await server.closeWrite();
  await reading;
  assertEquals(await readAll(server), pattern(1000));
  cut(sockets[0]);
  while (server.state === "connected") await turn();
  server.close();
  await Promise.all([ending, client.closed, server.closed]);
});

Deno.test("resumableListener() passes clients without a hello on, also one that is silent for 10 s", async () => {
  using clock = new ManualClock();
  const [[near, far], [silentNear, silentFar]] = [memoryPair(), memoryPair()];
  const waiting: Connection[] = [far, silentFar];
  const inner: Listener<Connection> = {
    accept: () => waiting.length > 0 ? Promise.resolve(waiting.shift()!) : new Promise<never>(() => {}),
    close() {},
  };
  const listener = resumableListener(inner);
  await writeAll(near, Uint8Array.of(2, 3, 0, 0, 0, 0, 0, 0));
  const first = await listener.accept();
  assertEquals(await readExactly(first, 8), Uint8Array.of(2, 3, 0, 0, 0, 0, 0, 0));
  const accepting = listener.accept();
  await clock.advance(9900);
  assertEquals(await state(accepting), "pending");
  await clock.advance(200);
  const second = await accepting;
  await writeAll(silentNear, Uint8Array.of(1, 2));
  assertEquals(await readExactly(second, 2), Uint8Array.of(1, 2));
  await second.write(Uint8Array.of(7));
  assertEquals(await readExactly(silentNear, 1), Uint8Array.of(7));
  assertEquals(clock.pending, 0);
  listener.close();
  assertEquals(silentFar.isClosed, false);
});

Deno.test("resumableListener() closes a client whose hello is garbage or not complete after 10 s, and serves others", async () => {
  using clock = new ManualClock();
  const [garbage, slow] = [memoryPair(), memoryPair()];
  const waiting: Connection[] = [garbage[1], slow[1]];
  const listener = resumableListener({
    accept: () => waiting.length > 0 ? Promise.resolve(waiting.shift()!) : new Promise<never>(() => {}),
    close() {},
  });
  const accepting = listener.accept();
  await writeAll(garbage[0], concat([Uint8Array.of(0xd5), new Uint8Array(HELLO_LENGTH)]));
  await clock.advance(0);
  assert(garbage[1].isClosed);
  await writeAll(slow[0], encodeHello({ token: NO_TOKEN, received: 0 }).subarray(0, 20));
  await clock.advance(9900);
  assertEquals(slow[1].isClosed, false);
  await clock.advance(200);
  assert(slow[1].isClosed);
  assertEquals(await state(accepting), "pending");
  assertEquals(clock.pending, 0);
});

Deno.test("resumableListener() answers an unknown token, and ends a connection whose peer claims too much", async () => {
  using made = listen();
  const accepting = made.listener.accept();
  using client = await RawClient.dial(made.port);
  const { token } = await client.greet();
  const server = await accepting as ResumableConnection;
  using stranger = await RawClient.dial(made.port);
  assertEquals((await stranger.greet(new Uint8Array(16).fill(1))).status, UNKNOWN);
  assert(await stranger.isClosed());
  assertEquals(server.state, "connected");
  using liar = await RawClient.dial(made.port);
  assertEquals((await liar.greet(token, 5)).status, RESUMED);
  await assertRejects(() => server.closed, ProtocolError, "a count from 0 to 0");
  assert(await liar.isClosed());
  using late = await RawClient.dial(made.port);
  assertEquals((await late.greet(token)).status, UNKNOWN);
});

Deno.test("resumableListener() ends one of two connections whose tokens begin alike, and resumes the other", async () => {
  const { getRandomValues } = crypto;
  let tokens = 0;
  crypto.getRandomValues = (array) => {
    new Uint8Array(array!.buffer).fill(0).set([++tokens], TOKEN_LENGTH - 1);
    return array;
  };
  try {
    using made = listen();
    const accepting = made.listener.accept();
    using first = await RawClient.dial(made.port);
    const { token } = await first.greet();
    const ended = await accepting as ResumableConnection;
    using second = await RawClient.dial(made.port);
    const [{ token: other }, kept] = await Promise.all([second.greet(), made.listener.accept()]);
    using liar = await RawClient.dial(made.port);
    await liar.greet(token, 5);
    await assertRejects(() => ended.closed, ProtocolError);
    assertEquals(tokens, 2);
    using third = await RawClient.dial(made.port);
    assertEquals((await third.greet(other)).status, RESUMED);
    kept.close();
  } finally {
    crypto.getRandomValues = getRandomValues;
  }
});

Deno.test("resumableListener() passes on the first byte, ref, unref and setNoDelay of a connection without a hello", async () => {
  const [near, inner] = memoryPair();
  const calls: string[] = [];
  const connection: Connection = Object.assign(inner, {
    setNoDelay: (on?: boolean) => void calls.push(`setNoDelay ${on}`),
    ref: () => void calls.push("ref"),
    unref: () => void calls.push("unref"),
  });
  const { sender, receiver } = unbounded<Connection>();
  sender.trySend(connection);
  const listener = resumableListener({ accept: () => receiver.receive(), close: () => sender.close() });
  await near.write(Uint8Array.of(2, 3));
  const accepted = await listener.accept();
  accepted.setNoDelay?.(false);
  accepted.unref?.();
  accepted.ref?.();
  assertEquals(calls, ["setNoDelay false", "unref", "ref"]);
  assertEquals(await accepted.read(new Uint8Array(0)), 0);
  assertEquals(await readExactly(accepted, 2), Uint8Array.of(2, 3));
  accepted.close();
  listener.close();
});

Deno.test("resumableListener() closes connections, and answers hellos with BUSY, while 1024 wait to be accepted", async () => {
  const { sender, receiver } = unbounded<Connection>();
  const listener = resumableListener({ accept: () => receiver.receive(), close: () => sender.close() });
  const dial = async (...first: number[]) => {
    const [near, far] = memoryPair();
    sender.trySend(far);
    await near.write(Uint8Array.from(first));
    return near;
  };
  const accepted = listener.accept();
  const waiting = [];
  for (let n = 0; n < 1025; n++) waiting.push(await dial(2));
  (await accepted).close();
  assertEquals(await readAll(await dial(2)), new Uint8Array(0));
  const client = await dial(...encodeHello({ token: NO_TOKEN, received: 0 }));
  assertEquals(decodeReply(await readExactly(client, REPLY_LENGTH)).status, BUSY);
  assertEquals(await readAll(client), new Uint8Array(0));
  (await listener.accept()).close();
  const late = await dial(2);
  listener.close();
  for (const connection of [...waiting, late]) assertEquals(await readAll(connection), new Uint8Array(0));
});

Deno.test("resumableListener() lets the latest hello of a token take over, and reports what was received", async () => {
  using made = listen();
  const accepting = made.listener.accept();
  using first = await RawClient.dial(made.port);
  const { token, status } = await first.greet();
  assertEquals(status, ACCEPTED);
  const server = await accepting as ResumableConnection;
  const sent = pattern(1000);
  await first.send(record(sent.subarray(0, 400)));
  assertEquals(await readExactly(server, 400), sent.subarray(0, 400));
  // Two at once. The first socket is still open.
  const [second, third] = [await RawClient.dial(made.port), await RawClient.dial(made.port)];
  using _second = second;
  using _third = third;
  const replies = await Promise.allSettled([second.greet(token), third.greet(token)]);
  assert(await first.isClosed());
  const settled = replies.map((reply) => reply.status === "fulfilled" ? reply.value.received : undefined);
  assert(settled.includes(400), `${settled}`);
  await Promise.allSettled([second, third].map((client) => client.send(record(sent.subarray(400)))));
  assertEquals(await readExactly(server, 600), sent.subarray(400));
  assertEquals(server.state, "connected");
  server.close();
});

Deno.test("resumableListener() lets only the latest of two hellos of a token continue, if the earlier reply is written first", async () => {
  const pairs = [memoryPair(), memoryPair(), memoryPair()];
  const gate = Promise.withResolvers<void>();
  const [first, second, third] = pairs.map(([, far]) => far);
  const slow: Connection = {
    read: (p) => third!.read(p),
    write: async (p) => {
      await gate.promise;
      return await third!.write(p);
    },
    close: () => third!.close(),
  };
  const waiting: Connection[] = [first!, second!, slow];
  const listener = resumableListener({
    accept: () => waiting.length > 0 ? Promise.resolve(waiting.shift()!) : new Promise<never>(() => {}),
    close() {},
  });
  const accepting = listener.accept();
  const [one, two, three] = pairs.map(([near]) => near);
  await writeAll(one!, encodeHello({ token: NO_TOKEN, received: 0 }));
  const { token } = decodeReply(await readExactly(one!, REPLY_LENGTH));
  const server = await accepting as ResumableConnection;
  const reading = readExactly(server, 2);
  // The hello of the third arrives while the reply to the second is written, and its own reply takes longer.
  await Promise.all([two!, three!].map((near) => writeAll(near, encodeHello({ token, received: 0 }))));
  await turn();
  await writeAll(two!, record(Uint8Array.of(1))).catch(() => {});
  await turn();
  gate.resolve();
  assertEquals(decodeReply(await readExactly(three!, REPLY_LENGTH)).received, 0);
  await writeAll(three!, record(Uint8Array.of(1, 2)));
  assertEquals(await reading, Uint8Array.of(1, 2));
  server.close();
});

Deno.test("resumableListener() ends the connection that is suspended longest when there are more than maxSuspended", async () => {
  using made = listen({ maxSuspended: 2 });
  const servers: ResumableConnection[] = [];
  for (let n = 0; n < 3; n++) await acceptAndCut(made, (server) => servers.push(server));
  await assertRejects(() => servers[0]!.closed, ResumptionError, "More than 2 connections are suspended");
  assertEquals(servers.map(({ state }) => state), ["ended", "suspended", "suspended"]);
  made.listener.close();
  for (const server of servers.slice(1)) {
    await assertRejects(() => server.closed, ResumptionError, "listener was closed");
  }
});

Deno.test("resumableListener() keeps to maxSuspended although onChange closes a connection that was suspended", async () => {
  let toClose: ResumableConnection | undefined;
  using made = listen({ maxSuspended: 1, onChange: (state) => state === "suspended" && toClose?.close() });
  const servers: ResumableConnection[] = [];
  for (let n = 0; n < 3; n++) {
    await acceptAndCut(made, (server) => {
      servers.push(server);
      toClose = n === 0 ? server : undefined;
    });
  }
  assertEquals(servers.map(({ state }) => state), ["ended", "ended", "suspended"]);
});

Deno.test("resumableListener().close() rejects every pending accept()", async () => {
  const made = listen();
  const accepting = [made.listener.accept(), made.listener.accept()];
  made.listener.close();
  for (const each of accepting) await assertRejects(() => each, Deno.errors.BadResource);
  await assertRejects(() => made.listener.accept(), Deno.errors.BadResource);
});

Deno.test("resumableListener().close() closes clients that are silent, in a hello or not accepted yet", async () => {
  using clock = new ManualClock();
  const pairs = [memoryPair(), memoryPair(), memoryPair(), memoryPair()];
  const waiting: Connection[] = pairs.map(([, far]) => far);
  const listener = resumableListener({
    accept: () => waiting.length > 0 ? Promise.resolve(waiting.shift()!) : new Promise<never>(() => {}),
    close() {},
  });
  await writeAll(pairs[0]![0], Uint8Array.of(1));
  await writeAll(pairs[1]![0], Uint8Array.of(1));
  await writeAll(pairs[2]![0], encodeHello({ token: NO_TOKEN, received: 0 }).subarray(0, 20));
  const accepted = await listener.accept();
  await clock.advance(0);
  listener.close();
  await clock.advance(0);
  assertEquals(pairs.slice(1).map(([, far]) => far.isClosed), [true, true, true]);
  assertEquals(clock.pending, 0);
  // A connection that was accepted belongs to the application.
  assertEquals(pairs[0]![1].isClosed, false);
  accepted.close();
});

Deno.test("resumableListener().close() keeps connections that were accepted, with a hello and without one", async () => {
  using both = await pair();
  const { client, server, listener, port } = both;
  using plain = await Deno.connect({ ...LOOPBACK, port });
  await plain.write(Uint8Array.of(7));
  const accepted = await listener.accept() as Connection;
  assertEquals(await readExactly(accepted, 1), Uint8Array.of(7));
  listener.close();
  for (const [from, to] of [[client, server], [server, client], [plain, accepted], [accepted, plain]] as const) {
    await writeAll(from, Uint8Array.of(1, 2, 3));
    assertEquals(await readExactly(to, 3), Uint8Array.of(1, 2, 3));
  }
  accepted.close();
});

Deno.test("a write and closeWrite() that wait together while suspended leave the event loop free", async () => {
  const connection = resumable(() => new Promise<never>(() => {}), { maxUnacknowledged: 65_536, resumeTimeout: 100 });
  const writes = [1, 2, 3].map(() => connection.write(new Uint8Array(65_536)).catch(() => {}));
  const closing = connection.closeWrite().catch(() => {});
  await turn();
  connection.close();
  await Promise.all([...writes, closing]);
});

Deno.test("closeWrite() rejects a write that waits for room, and nothing follows the end of writing", async () => {
  using made = await pair({ maxUnacknowledged: 65_536 });
  const { client, server } = made;
  const sent = pattern(65_536);
  await client.write(sent);
  const waiting = client.write(Uint8Array.of(1));
  const rejected = assertRejects(() => waiting, Error, "Cannot write to a closed connection");
  const closing = client.closeWrite();
  assertEquals(await readAll(server), sent);
  await Promise.all([rejected, closing]);
});

Deno.test("resumableListener() passes errors of accept() on, and accepts again afterwards", async () => {
  const [near, far] = memoryPair();
  const results = [() => Promise.reject(new Error("on purpose")), () => Promise.resolve(far)];
  const listener = resumableListener({
    accept: () => results.shift()?.() ?? new Promise<never>(() => {}),
    close() {},
  });
  await assertRejects(() => listener.accept(), Error, "on purpose");
  await writeAll(near, Uint8Array.of(1));
  assertEquals(await readExactly(await listener.accept(), 1), Uint8Array.of(1));
});

Deno.test("resumable() and resumableListener() throw for options out of bounds", () => {
  let dials = 0;
  const dial = () => Promise.reject(new Error(`dial ${++dials}`));
  const inner = { accept: () => new Promise<never>(() => {}), close() {} };
  const invalid: ResumableOptions[] = [
    { maxUnacknowledged: 65_535 },
    { maxUnacknowledged: NaN },
    { resumeTimeout: 0 },
    { silence: -1 },
    { silence: 1.5 },
  ];
  for (const options of invalid) {
    const [name] = Object.keys(options);
    assertThrows(() => resumable(dial, options), RangeError, `${name} must be`);
    assertThrows(() => resumableListener(inner, options), RangeError, `${name} must be`);
  }
  assertThrows(() => resumableListener(inner, { maxSuspended: -1 }), RangeError, "maxSuspended must be");
  assertThrows(() => resumable({} as never), TypeError, "dial must be a function, received Object");
  assertThrows(() => resumable(dial, { signal: 1 as never }), TypeError, "signal must be an AbortSignal");
  assertEquals(dials, 0);
});
