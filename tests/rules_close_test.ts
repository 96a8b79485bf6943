/** Rules 4, 6, 7, 14 and 15 of docs/design.md: how streams and sessions end. */

import {
  assert,
  assertEquals,
  assertInstanceOf,
  assertRejects,
  assertStrictEquals,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { concat } from "@std/bytes";
import { clock } from "../_clock.ts";
import { FIN, NOP, PSH, SYN } from "../frame.ts";
import { ProtocolError, Session, SessionClosedError, type Stream } from "../mod.ts";
import { INITIAL_WINDOW } from "../_window.ts";
import {
  bytes,
  frame,
  ManualClock,
  pattern,
  readAll,
  readText,
  sessionPair,
  state,
  text,
  turn,
  withPeer,
} from "./support.ts";

Deno.test("rule 4: read() rejects after the buffered data when the session ends without the peer's FIN", async () => {
  const ends: Record<string, (at: ReturnType<typeof withPeer>) => unknown> = {
    "the transport's end": ({ peer }) => peer.connection.closeWrite!(),
    "a reset": ({ connection }) => connection.reset(),
    "a cut frame": ({ peer }) => peer.bytes("0202ff").then(() => peer.connection.closeWrite!()),
    "abort": ({ session }) => session.abort(),
    "close": ({ session, peer }) => Promise.all([session.close(), peer.connection.closeWrite!()]),
  };
  for (const [name, end] of Object.entries(ends)) {
    const all = withPeer("server", 2);
    await all.peer.send(SYN, 3);
    await all.peer.send(PSH, 3, bytes("abc"));
    const stream = await all.session.acceptStream();
    assertEquals(await readText(stream), "abc", name);
    const pending = assertRejects(() => readText(stream), SessionClosedError, undefined, name);
    await end(all);
    await pending;
    await assertRejects(() => readText(stream), SessionClosedError, undefined, name);
    all.session.abort();
  }
});

Deno.test("rule 6: half-close works both ways", async () => {
  const { client, server } = sessionPair();
  const [opened, accepted] = await Promise.all([client.openStream(), server.acceptStream()]);
  await opened.closeWrite();
  assertEquals(await readText(accepted), "(end)");
  await accepted.write(bytes("answer"));
  assertEquals(await readText(opened), "answer");
  await accepted.closeWrite();
  assertEquals(await readText(opened), "(end)");
  await Promise.all([client.close(), server.close()]);
});

Deno.test("rule 6: a v2 write without credit for the timeout after the peer's FIN rejects, and each UPD starts the time anew", async () => {
  using clock = new ManualClock();
  const { session, peer } = withPeer("client", 2, { timeout: 1000, keepAliveInterval: 900 }, 1 << 20);
  const stream = await session.openStream();
  const alive = async (milliseconds: number) => {
    for (let passed = 0; passed < milliseconds; passed += 100) {
      await peer.send(NOP, 0);
      await clock.advance(100);
    }
  };
  const writing = stream.write(pattern(300_000));
  // A write that begins then has its own time, though it is queued behind writes that have timed out.
  const late = writing.catch(() => stream.write(pattern(1)));
  const lateFailed = assertRejects(() => late, DOMException, "no credit for 1000 ms");
  const failed = assertRejects(() => writing, DOMException, "no credit for 1000 ms");
  const behind = [1, 2].map((length) => stream.write(pattern(length)));
  const allFailed = behind.map((write) => assertRejects(() => write, DOMException, "no credit for 1000 ms"));
  await alive(3000);
  assertEquals(await state(writing), "pending", "before the peer's FIN the wait has no limit");
  await peer.send(FIN, 3);
  await alive(900);
  await peer.update(3, 1000, INITIAL_WINDOW);
  await alive(900);
  await peer.update(3, 1000, INITIAL_WINDOW);
  assertEquals(await state(writing), "pending", "the first UPD moved the limit");
  await alive(100);
  const error = await failed;
  assertEquals(error.name, "TimeoutError");
  assertEquals((error as DOMException & { bytesWritten: number }).bytesWritten, INITIAL_WINDOW + 1000);
  await clock.advance(0);
  await Promise.all(allFailed);
  await alive(900);
  assertEquals(await state(late), "pending");
  await alive(200);
  await lateFailed;
  await peer.update(3, 2000, INITIAL_WINDOW);
  assertEquals(await stream.write(pattern(1000)), 1000, "credit that arrives after the timeout is usable");
  assertEquals(await state(session.closed), "pending");
  session.abort();
});

Deno.test("rule 6: a suspension of the connection extends the wait for credit after the peer's FIN", async () => {
  using clock = new ManualClock();
  const options = { timeout: 1000, keepAliveInterval: Infinity };
  const { session, peer, connection } = withPeer("client", 2, options, 1 << 20);
  let [isSuspended, resumptions] = [true, 0];
  Object.defineProperty(connection, "isSuspended", { get: () => isSuspended });
  Object.defineProperty(connection, "resumptions", { get: () => resumptions });
  const stream = await session.openStream();
  const writing = stream.write(pattern(300_000));
  const failed = assertRejects(() => writing, DOMException, "no credit for 1000 ms");
  failed.catch(() => {});
  await peer.send(FIN, 3);
  await clock.advance(40_500);
  [isSuspended, resumptions] = [false, 1];
  await clock.advance(1000);
  assertEquals(await state(writing), "pending", "a resumption starts the time anew");
  await peer.send(NOP, 0);
  await clock.advance(900);
  await failed;
  assertEquals(await state(session.closed), "pending");
  session.abort();
});

Deno.test("rule 6: a freeze extends the wait for credit after the peer's FIN", async () => {
  using clock = new ManualClock();
  for (const isGiven of [true, false]) {
    const { session, peer } = withPeer("client", 2, { timeout: 1000, keepAliveInterval: 900 }, 1 << 20);
    const stream = await session.openStream();
    const writing = stream.write(pattern(300_000));
    const behind = stream.write(pattern(1));
    const failed = [writing, behind].map((write) => assertRejects(() => write, DOMException, "no credit"));
    for (const failure of failed) failure.catch(() => {});
    await clock.advance(10);
    await peer.send(FIN, 3);
    await clock.advance(10);
    clock.freeze(40_000);
    await clock.advance(10);
    await peer.send(NOP, 0);
    await clock.advance(980);
    assertEquals([await state(writing), await state(behind)], ["pending", "pending"]);
    if (isGiven) {
      await peer.update(3, INITIAL_WINDOW, INITIAL_WINDOW);
      assertEquals([await writing, await behind], [300_000, 1]);
    } else {
      await peer.send(NOP, 0);
      await clock.advance(20);
      await Promise.all(failed);
    }
    assertEquals(await state(session.closed), "pending");
    session.abort();
  }
});

Deno.test("rule 7: a protocol error ends the session at once and is the cause of every error", async () => {
  const { session, peer, connection } = withPeer("client", 2);
  const stream = await session.openStream();
  const other = await session.openStream();
  const pending = {
    read: stream.read(new Uint8Array(1)),
    write: stream.write(pattern(1 << 20)),
    closed: stream.closed,
    accept: session.acceptStream(),
    receive: session.incoming.receive(),
    iteration: session[Symbol.asyncIterator]().next(),
  };
  const failed = Object.entries(pending).map(async ([name, promise]) => {
    const error = await assertRejects(() => promise, SessionClosedError, undefined, name);
    return error.cause;
  });
  await turn();
  await peer.bytes("0209000000000000");
  const reason = await assertRejects(() => session.closed, ProtocolError);
  for (const cause of await Promise.all(failed)) assertStrictEquals(cause, reason);
  assert(connection.isClosed);
  const later = [
    () => session.openStream(),
    () => session.acceptStream(),
    () => stream.read(new Uint8Array(1)),
    () => other.write(new Uint8Array(1)),
    () => other.closeWrite(),
    () => other.closed,
  ];
  for (const operation of later) {
    assertStrictEquals((await assertRejects<SessionClosedError>(operation, SessionClosedError)).cause, reason);
  }
  assertThrows(() => other.tryRead(new Uint8Array(1)), SessionClosedError);
  assertThrows(() => other.tryWrite(new Uint8Array(1)), SessionClosedError);
  await session.close();
});

Deno.test("rule 7: a transport error ends the session in the same way", async () => {
  const { session, connection } = withPeer("client", 2);
  const stream = await session.openStream();
  const reading = assertRejects(() => stream.read(new Uint8Array(1)), SessionClosedError);
  const reset = new Error("reset");
  connection.reset(reset);
  assertStrictEquals((await reading).cause, reset);
  assertStrictEquals(await assertRejects(() => session.closed, Error), reset);
});

Deno.test("rule 7: a header with a wrong length ends the session before the frame has any effect", async () => {
  for (const [wrong, name] of [["01000400", "SYN"], ["01010800", "FIN"], ["01030100", "NOP"]] as const) {
    const { session, peer } = withPeer("server", 1);
    await peer.send(SYN, 3);
    const stream = await session.acceptStream();
    const reading = assertRejects(() => stream.read(new Uint8Array(1)), SessionClosedError);
    await peer.bytes(wrong, name === "SYN" ? "05000000" : "03000000");
    await assertRejects(() => session.closed, ProtocolError, `length 0 on ${name}`);
    await reading;
    assertEquals(session.stats().accepted, 1);
  }
});

Deno.test("rule 14: close() sends encoded data and writes that wait for room, then FIN on every stream, then the end", async () => {
  const { session, peer } = withPeer("client", 1, {}, 4096);
  const [one, two] = [await session.openStream(), await session.openStream()];
  const data = pattern(1 << 20);
  const writing = one.write(data);
  await turn();
  const closing = session.close();
  assertStrictEquals(session.close(), closing);
  await assertRejects(() => session.openStream(), SessionClosedError);
  await assertRejects(() => two.write(bytes("x")), SessionClosedError);
  await assertRejects(() => session.acceptStream(), SessionClosedError);
  const received = [];
  const ended = [];
  for (let frame = await peer.next(); frame !== null; frame = await peer.next()) {
    if (frame.command === PSH) received.push(frame.data);
    if (frame.command === FIN) ended.push(frame.id);
  }
  assertEquals(concat(received), data);
  assertEquals(ended.sort(), [3, 5]);
  assertEquals(await writing, data.length);
  assertEquals(await state(closing), "pending", "the peer has not ended its half");
  await peer.connection.closeWrite!();
  await closing;
  await session.closed;
});

Deno.test("rule 14: after close() a SYN is refused, and late data is read and dropped until the peer's end", async () => {
  const { session, peer } = withPeer("server", 1, { maxReceiveBuffer: 1000 });
  await peer.send(SYN, 3);
  await session.acceptStream();
  const closing = session.close();
  assertEquals((await peer.nextOf(FIN)).id, 3);
  await peer.send(SYN, 5);
  for (let i = 0; i < 100; i++) await peer.send(PSH, 3, pattern(10_000));
  assertEquals(await state(closing), "pending");
  await peer.connection.closeWrite!();
  await closing;
  assertEquals(session.stats().accepted, 1);
});

Deno.test("rule 14: a stream whose late data was dropped rejects its reads, one with only a late FIN ends", async () => {
  const { session, peer } = withPeer("server", 1);
  for (const id of [3, 5]) {
    await peer.send(SYN, id);
    await peer.send(PSH, id, bytes("first"));
  }
  const [cut, whole] = [await session.acceptStream(), await session.acceptStream()];
  const closing = session.close();
  await peer.nextOf(FIN);
  await peer.nextOf(FIN);
  assertEquals(await peer.next(), null, "this end is half-closed");
  await peer.send(PSH, 3, bytes("late"));
  await peer.send(FIN, 3);
  await peer.send(FIN, 5);
  await turn();
  assertEquals(await readText(cut), "first");
  await assertRejects(() => readText(cut), SessionClosedError);
  await assertRejects(() => cut.closed, SessionClosedError);
  assertEquals(text(await readAll(whole)), "first");
  await peer.connection.closeWrite!();
  await closing;
  await session.closed;
});

Deno.test("rule 14: close() ends after one second of silence when the peer does not close", async () => {
  using clock = new ManualClock();
  const { session, peer, connection } = withPeer("client", 1);
  const closing = session.close();
  await clock.advance(900);
  await peer.send(NOP, 0);
  await clock.advance(900);
  assertEquals(connection.isClosed, false);
  await clock.advance(1300);
  assert(connection.isClosed);
  await closing;
  await session.closed;
  assertEquals(clock.pending, 0);
});

Deno.test("rule 14: close() after a freeze reads the peer's pending bytes before it counts the silence", async () => {
  using clock = new ManualClock();
  for (const [frozen, left] of [[40_000, 1000], [1090, 1000], [500, 600]] as const) {
    const { session, peer, connection } = withPeer("client", 1);
    const closing = session.close({ timeout: 60_000 });
    await turn();
    clock.freeze(frozen);
    await clock.advance(left - 10);
    assertEquals(connection.isClosed, false, `${left - 10} ms after a freeze of ${frozen} ms`);
    await peer.send(NOP, 0);
    await clock.advance(1000);
    assertEquals(connection.isClosed, false, "after a byte arrived");
    await clock.advance(1010);
    assert(connection.isClosed);
    await closing;
  }
  assertEquals(clock.pending, 0);
});

Deno.test("rule 14: a freeze extends the timeout of close()", async () => {
  using clock = new ManualClock();
  for (const frozen of [40_000, 140]) {
    for (const isAnswered of [true, false]) {
      const { session, peer } = withPeer("client", 1);
      const stream = await session.openStream();
      await stream.closeWrite();
      const closing = session.close({ drain: true, timeout: 100 });
      await turn();
      clock.freeze(frozen);
      await clock.advance(90);
      assertEquals(await state(session.closed), "pending", `the answer is unread 90 ms after a freeze of ${frozen} ms`);
      if (isAnswered) {
        await peer.send(FIN, 3);
        await turn();
        await peer.connection.closeWrite!();
        await session.closed;
      } else {
        await clock.advance(10);
        await assertRejects(() => session.closed, DOMException, "did not close within 100 ms");
      }
      await closing;
    }
  }
  assertEquals(clock.pending, 0);
});

Deno.test("rule 14: close() ends after its timeout in a process that is always late, while the peer keeps sending", async () => {
  using clock = new ManualClock();
  const { session, peer } = withPeer("client", 1);
  await session.openStream();
  const closing = session.close({ drain: true, timeout: 1000 });
  for (let passed = 0; passed < 5000; passed += 230) {
    clock.freeze(230);
    await clock.advance(0);
    await peer.send(NOP, 0).catch(() => {});
  }
  assertEquals(await state(closing), "fulfilled");
  await assertRejects(() => session.closed, DOMException, "did not close within 1000 ms");
});

Deno.test("rule 14: a stream with a rejected write gets no FIN, so that its peer's read rejects", async () => {
  const { client, server } = sessionPair({ version: 2 });
  const [cut, whole] = [await client.openStream(), await client.openStream()];
  const [farCut, farWhole] = [await server.acceptStream(), await server.acceptStream()];
  const writing = cut.write(pattern(300_000));
  const queued = cut.write(pattern(10));
  const failures = Promise.all([
    assertRejects(() => writing, SessionClosedError),
    assertRejects(() => queued, SessionClosedError),
  ]);
  await whole.write(bytes("all of it"));
  await turn();
  await client.close();
  const [first, second] = await failures;
  assertEquals([first.bytesWritten, second.bytesWritten], [INITIAL_WINDOW, 0]);
  assertEquals(text(await readAll(farWhole)), "all of it");
  let count = 0;
  const failure = await assertRejects(async () => {
    for (let read; (read = await farCut.read(new Uint8Array(65_536))) !== null;) count += read;
  }, SessionClosedError);
  assertEquals(count, INITIAL_WINDOW);
  assertEquals(failure.cause, undefined, "the session ended cleanly, the stream did not");
  await server.closed;
});

Deno.test("rule 14: close() with drain waits until no stream is open, and open streams work meanwhile", async () => {
  const { client, server } = sessionPair();
  const [opened, accepted] = await Promise.all([client.openStream(), server.acceptStream()]);
  const closing = client.close({ drain: true });
  await assertRejects(() => client.openStream(), SessionClosedError);
  await opened.write(bytes("still"));
  assertEquals(await readText(accepted), "still");
  await accepted.closeWrite();
  assertEquals(await readText(opened), "(end)");
  assertEquals(await state(closing), "pending");
  await opened.closeWrite();
  await closing;
  await Promise.all([client.closed, server.closed]);
});

Deno.test("rule 14: close() aborts the session after its timeout, and fulfils", async () => {
  using clock = new ManualClock();
  for (const options of [{ timeout: 100 }, { timeout: 100, drain: true }]) {
    const { session, connection } = withPeer("client", 1, {}, 100);
    const stream = await session.openStream();
    const writing = assertRejects(() => stream.write(pattern(1 << 20)), SessionClosedError);
    await turn();
    const closing = session.close(options);
    await clock.advance(99);
    assertEquals(await state(closing), "pending");
    await clock.advance(1);
    await closing;
    const error = await assertRejects(() => session.closed, DOMException, "did not close within 100 ms");
    assertEquals(error.name, "TimeoutError");
    await writing;
    assert(connection.isClosed);
  }
  assertEquals(clock.pending, 0);
});

Deno.test("rule 14: close() over TCP loses no data when the peer has written data that is never read", async () => {
  for (let round = 0; round < 20; round++) {
    using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const [near, far] = await Promise.all([Deno.connect({ port: listener.addr.port }), listener.accept()]);
    const client = Session.client(near, { version: 1 });
    const server = Session.server(far);
    const [opened, accepted] = await Promise.all([client.openStream(), server.acceptStream()]);
    const unread = accepted.write(pattern(300_000)).catch(() => {});
    await opened.write(pattern(1 << 20));
    const [received] = await Promise.all([readAll(accepted), client.close()]);
    assertEquals(received.length, 1 << 20);
    await unread;
    await Promise.all([client.closed, server.close()]);
  }
});

Deno.test("rule 15: a reset of the connection is clean only if no stream is open, no data is unsent and bytes have arrived", async () => {
  class ConnectionReset extends Error {
    override name = "ConnectionReset";
  }
  for (const isOpen of [false, true]) {
    const { session, peer, connection } = withPeer("server", 1);
    await peer.send(SYN, 3);
    const stream = await session.acceptStream();
    if (!isOpen) stream.close();
    await turn();
    const looping = (async () => {
      for await (const _ of session);
    })();
    connection.reset(new ConnectionReset());
    if (isOpen) {
      await assertRejects(() => looping, SessionClosedError);
      await assertRejects(() => session.closed, ConnectionReset);
    } else {
      await looping;
      await session.closed;
    }
  }
  const unheard = withPeer("client", 1);
  unheard.connection.reset(new ConnectionReset());
  const never = "a reset before any byte arrived is unclean";
  await assertRejects(() => unheard.session.closed, ConnectionReset, undefined, never);

  const { session, peer, connection } = withPeer("server", 1, {}, 1000);
  await peer.bytes(frame(1, SYN, 3), frame(1, FIN, 3));
  const stream = await session.acceptStream();
  await stream.write(pattern(100_000));
  await Promise.all([stream.closeWrite(), stream.closed]);
  await turn();
  assertEquals(session.stats().streams, 0);
  connection.reset(new ConnectionReset());
  await assertRejects(() => session.closed, ConnectionReset, undefined, "data was not sent");
});

Deno.test("rule 15: the transport's end between two frames is clean: closed fulfils and iteration ends", async () => {
  const { session, peer } = withPeer("server", 2);
  await peer.send(SYN, 3);
  const seen: number[] = [];
  const looping = (async () => {
    for await (const stream of session) seen.push(stream.id);
  })();
  await turn();
  await peer.connection.closeWrite!();
  await looping;
  await session.closed;
  assertEquals(seen, [3]);
  const error = await assertRejects(() => session.acceptStream(), SessionClosedError);
  assertEquals(error.cause, undefined);
});

Deno.test("rule 15: an end within a frame is unclean: closed and iteration reject with the reason", async () => {
  for (const [cut, missing] of [["0203", "6 more bytes of a header"], ["0202050003000000ff", "4 more bytes of PSH"]]) {
    const { session, peer } = withPeer("server", 2);
    await peer.send(SYN, 3);
    const looping = (async () => {
      for await (const _ of session);
    })();
    const failed = assertRejects(() => looping, SessionClosedError);
    await peer.bytes(cut!);
    await peer.connection.closeWrite!();
    const reason = await assertRejects(() => session.closed, ProtocolError, missing);
    assertStrictEquals((await failed).cause, reason);
  }
});

Deno.test("rule 15: closed rejects with the reason of the first abort()", async () => {
  const { session } = withPeer("client", 2);
  const reason = { code: 7 };
  session.abort(reason);
  session.abort("too late");
  assertStrictEquals(await session.closed.catch((error) => error), reason);

  const other = withPeer("client", 2).session;
  other.abort();
  const error = await assertRejects(() => other.closed, DOMException);
  assertEquals(error.name, "AbortError");
  assertInstanceOf((await assertRejects(() => other.openStream(), SessionClosedError)).cause, DOMException);
});

Deno.test("rule 15: the end of a session with 400 streams yields to the event loop between batches of 64", async () => {
  // The clock stands still, so that no loop yields because of its time slice.
  using _ = new ManualClock();
  const { session, peer } = withPeer("server", 2, {}, 1 << 20);
  const streams: Stream[] = [];
  for (let id = 3; streams.length < 400; id += 2) {
    await peer.send(SYN, id);
    streams.push(await session.acceptStream());
  }
  let settled = 0;
  const track = (operation: Promise<unknown>) =>
    assertRejects(() => operation.finally(() => settled++), SessionClosedError);
  const all = [
    ...streams.slice(0, 100).map((stream) => track(stream.read(new Uint8Array(1)))),
    ...streams.slice(100, 200).map((stream) => track(stream.closed)),
    // The first writes fill the buffers, one waits for credit, the others for room.
    ...streams.slice(200, 399).map((stream) => track(stream.write(pattern(1 << 19)))),
  ];
  // Closed after the end of the session, before the session has notified this stream.
  const last = streams[399]!;
  all.push(track(last.closed));
  const yields: (() => void)[] = [];
  clock.yieldToEventLoop = () => new Promise<void>((resolve) => yields.push(resolve));
  await turn();
  assertEquals([settled, yields.length], [0, 0]);
  session.abort();
  last.close();
  await assertRejects(() => streams[0]!.write(bytes("x")), SessionClosedError);
  await assertRejects(() => streams[0]!.closed, SessionClosedError);
  let most = 0;
  let times = 0;
  for (let before = 0;; before = settled) {
    await turn();
    most = Math.max(most, settled - before);
    if (yields.length === 0) break;
    assertEquals([await state(session.closed), yields.length], ["pending", 1]);
    times++;
    yields.pop()!();
  }
  assertEquals(settled, 400);
  // Writes that waited for room settle first, 64 at a time, then the other operations.
  assert(most < 2 * 64 && times >= 5, `${most} at a time, with ${times} yields`);
  await Promise.all(all);
  await assertRejects(() => session.closed, DOMException, "aborted");
});

Deno.test("rule 15: breaking out of for await leaves the session open", async () => {
  const { session, peer } = withPeer("server", 1);
  await peer.send(SYN, 3);
  await peer.send(SYN, 5);
  for await (const stream of session) {
    assertEquals(stream.id, 3);
    break;
  }
  assertEquals((await session.acceptStream()).id, 5);
  assertStringIncludes(await state(session.closed), "pending");
  session.abort();
});
