/** Ends of `readable` and `writable`: errors, aborts and cancels, as seen by the peer, by a pipe and by its source. */

import { assert, assertEquals, assertInstanceOf, assertLess, assertRejects, assertStrictEquals } from "@std/assert";
import { concat } from "@std/bytes";
import { clock } from "../_clock.ts";
import { FIN, PSH, SYN } from "../frame.ts";
import { ProtocolError, Session, SessionClosedError, type Stream, StreamClosedError } from "../mod.ts";
import { INITIAL_WINDOW } from "../_window.ts";
import { CREDIT_TOLERANCE } from "../_receive_half.ts";
import { collectGarbage } from "./garbage.ts";
import { deno } from "./programs.ts";
import {
  bytes,
  frame,
  KiB,
  ManualClock,
  memoryPair,
  MiB,
  pattern,
  RawPeer,
  readAll,
  readText,
  sessionPair,
  text,
  turn,
} from "./support.ts";

/** Both ends of a stream; the sessions end with the test. */
async function streamPair(options: Parameters<typeof sessionPair>[0] = {}) {
  const { client, server, connections } = sessionPair(options);
  const [near, far] = await Promise.all([client.openStream(), server.acceptStream()]);
  const dispose = () => {
    client.abort();
    server.abort();
  };
  return { near, far, client, server, connections, [Symbol.dispose]: dispose };
}

/** A stream whose peer is a raw peer. */
async function rawStream(options: { version?: 1 | 2; capacity?: number; timeout?: number } = {}) {
  const { version = 2, capacity = MiB, ...rest } = options;
  const [connection, remote] = memoryPair(capacity);
  const session = Session.client(connection, { version, keepAliveInterval: 1000, ...rest });
  const peer = new RawPeer(remote, version);
  const stream = await session.openStream();
  await peer.nextOf(SYN);
  return { session, peer, stream, [Symbol.dispose]: () => session.abort() };
}

const PENDING = "still pending";

/** The value or error of a promise after 20 turns of the event loop, or `PENDING`. */
async function outcome(promise: Promise<unknown>): Promise<unknown> {
  return await Promise.race([promise.catch((error) => error), turn(20).then(() => PENDING)]);
}

/** The number of bytes that arrive, and "end", an error or `PENDING` after them. */
async function received(from: Stream): Promise<[count: number, end: unknown]> {
  const p = new Uint8Array(64 * KiB);
  const stop = new AbortController();
  for (let total = 0;;) {
    const count = await outcome(from.read(p, { signal: stop.signal }));
    if (typeof count !== "number") {
      stop.abort();
      return [total, count === null ? "end" : count];
    }
    total += count;
  }
}

/** A source without chunks of its own; `reason()` returns the reason of its cancelling. */
function idleSource() {
  let reason: unknown = "not cancelled";
  let controller!: ReadableStreamDefaultController<Uint8Array>;
  const stream = new ReadableStream<Uint8Array>({
    start: (started) => void (controller = started),
    cancel: (cause) => void (reason = cause),
  });
  return { stream, controller, reason: () => reason };
}

const BAD = "not bytes" as unknown as Uint8Array<ArrayBuffer>;

// Invalid chunks.

for (const version of [1, 2] as const) {
  for (const before of [0, 1, 3]) {
    Deno.test(`Stream.writable: version ${version}: a chunk of a wrong type after ${before} others ends writing after them`, async () => {
      using all = await streamPair({ version });
      const writer = all.near.writable.getWriter();
      const chunks = Array.from({ length: before }, () => writer.write(pattern(100)));
      const refused = outcome(writer.write(BAD));
      const later = outcome(writer.write(pattern(100)));
      await Promise.all(chunks);
      assertInstanceOf(await refused, TypeError);
      assertInstanceOf(await later, TypeError);
      assertInstanceOf(await outcome(writer.closed), TypeError);
      assertEquals(await received(all.far), [before * 100, "end"]);
      await all.far.write(bytes("reading continues"));
      assertEquals(await readText(all.near), "reading continues");
    });
  }

  Deno.test(`Stream.writable: version ${version}: a pipe with a chunk that is not bytes ends the peer's reading`, async () => {
    for (const options of [{}, { preventAbort: true }]) {
      using all = await streamPair({ version });
      const source = ReadableStream.from([pattern(10), BAD, pattern(10)]);
      assertInstanceOf(await outcome(source.pipeTo(all.near.writable, options)), TypeError);
      assertEquals(await received(all.far), [10, "end"]);
    }
  });
}

for (const chunk of [undefined, null]) {
  Deno.test(`Stream.writable: write(${chunk}) rejects with a TypeError, and the peer receives FIN`, async () => {
    using all = await streamPair();
    const writer = all.near.writable.getWriter();
    const closed = outcome(writer.closed);
    const error = await outcome(writer.write(chunk as unknown as Uint8Array));
    assertInstanceOf(error, TypeError);
    assertEquals(error.message, `Expected a Uint8Array, received ${chunk}`);
    assertStrictEquals(await closed, error);
    assertEquals(await received(all.far), [0, "end"]);
  });
}

Deno.test("Stream.writable: a chunk without credit for the timeout after the peer's FIN ends writing", async () => {
  using time = new ManualClock();
  using all = await rawStream({ timeout: 2000 });
  const { peer, stream } = all;
  await peer.send(FIN, 3);
  const writing = outcome(stream.writable.getWriter().write(pattern(300_000)));
  await time.advance(1900);
  await peer.bytes("0203000000000000"); // NOP
  await time.advance(200);
  assertEquals((await writing as Error).name, "TimeoutError");
  await peer.nextOf(FIN);
  await stream.closed;
});

for (const isWaiting of [false, true]) {
  const name = isWaiting ? "that waits for credit" : "that is idle";
  Deno.test(`Stream.writable: a UPD for bytes that were not sent fails a pipe ${name}, and the peer receives FIN`, async () => {
    using all = await rawStream();
    const { peer, stream } = all;
    const source = idleSource();
    const piped = outcome(source.stream.pipeTo(stream.writable));
    if (isWaiting) source.controller.enqueue(pattern(300_000));
    await turn();
    await peer.update(3, 1_000_000, 1_000_000);
    assertInstanceOf(await piped, ProtocolError);
    assertInstanceOf(source.reason(), ProtocolError);
    await peer.nextOf(FIN);
    await peer.send(PSH, 3, bytes("reading continues"));
    assertEquals(await readText(stream), "reading continues");
  });
}

Deno.test("Stream.writable: a chunk after closeWrite() rejects, and close() fulfils", async () => {
  using all = await streamPair();
  await all.near.closeWrite();
  await all.near.writable.close();
  using other = await streamPair();
  await other.near.closeWrite();
  assertInstanceOf(await outcome(other.near.writable.getWriter().write(bytes("x"))), StreamClosedError);
  assertEquals(await received(other.far), [0, "end"]);
});

const WITHOUT_ROOM = { version: 1, capacity: 1000, server: { maxReceiveBuffer: 1000 } } as const;

// Chunks that wait in the queue of `writable` when `closeWrite` is called.

/** States of the first chunk, and the number of bytes that make it wait there. */
const FIRST_CHUNKS = {
  "waits for the start of the web stream": { length: 10, isStarted: false, options: {} },
  "waits for credit": { length: MiB, isStarted: true, options: {} },
  "waits for room": { length: MiB, isStarted: true, options: WITHOUT_ROOM },
} as const;

/** Writes three chunks, the first in this state, and calls `closeWrite`. */
async function closeBehindChunks(name: keyof typeof FIRST_CHUNKS, second: Uint8Array = pattern(20, 2)) {
  const { length, isStarted, options } = FIRST_CHUNKS[name];
  const all = await streamPair(options);
  const writer = all.near.writable.getWriter();
  if (isStarted) await turn();
  const chunks = [pattern(length), second, pattern(30, 3)].map((chunk) => outcome(writer.write(chunk)));
  if (isStarted) await turn();
  const closing = all.near.closeWrite();
  return { ...all, writer, chunks, closing, length: length + 50, [Symbol.dispose]: all[Symbol.dispose] };
}

for (const name of Object.keys(FIRST_CHUNKS) as (keyof typeof FIRST_CHUNKS)[]) {
  Deno.test(`Stream.writable: closeWrite() while a chunk ${name} sends it and those behind it, then FIN`, async () => {
    using all = await closeBehindChunks(name);
    const late = outcome(all.writer.write(pattern(40)));
    assertInstanceOf(await outcome(all.near.write(pattern(5))), StreamClosedError);
    assertEquals(await readAll(all.far), concat([pattern(all.length - 50), pattern(20, 2), pattern(30, 3)]));
    assertEquals(await Promise.all(all.chunks), [undefined, undefined, undefined]);
    assertInstanceOf(await late, StreamClosedError);
    assertEquals(await outcome(all.closing), undefined);
  });

  Deno.test(`Stream.writable: Session.close() after closeWrite(), while a chunk ${name} before others: no FIN is sent`, async () => {
    using all = await closeBehindChunks(name);
    const ending = all.client.close({ timeout: 1000 });
    assertInstanceOf((await received(all.far))[1], SessionClosedError);
    assertInstanceOf(await outcome(all.closing), SessionClosedError);
    for (const chunk of (await Promise.all(all.chunks)).slice(1)) assertInstanceOf(chunk, SessionClosedError);
    await ending;
  });

  for (
    const [how, end, isEnd] of [
      ["Stream.close()", ({ near }) => near.close(), true],
      ["Stream.abort()", ({ near }) => near.abort(new Error("enough")), false],
      ["an abort by the peer", ({ far }) => far.abort(), false],
      ["the end of the session", ({ client }) => client.abort(), false],
      ["a reset of the connection", ({ connections }) => connections[0].reset(), false],
      ["abort() of the writer", ({ writer }) => void writer.abort(new Error("enough")).catch(() => {}), true],
    ] as [string, (all: Awaited<ReturnType<typeof closeBehindChunks>>) => void, boolean][]
  ) {
    Deno.test(`Stream.writable: ${how} after closeWrite(), while a chunk ${name} before others: all promises settle`, async () => {
      using all = await closeBehindChunks(name);
      end(all);
      const [count, ended] = await received(all.far);
      assert(count < all.length, `${count} bytes`);
      assertEquals(ended === "end", isEnd);
      assert(await outcome(all.closing) !== PENDING, "closeWrite() is pending");
      for (const chunk of await Promise.all(all.chunks)) assert(chunk !== PENDING, "a chunk is pending");
      assert(await outcome(all.writer.closed) !== PENDING, "closed is pending");
    });
  }

  Deno.test(`Stream.writable: closeWrite() while a chunk ${name} before an invalid one sends it, then FIN`, async () => {
    using all = await closeBehindChunks(name, BAD);
    assertEquals(await received(all.far), [all.length - 50, "end"]);
    const [first, ...others] = await Promise.all(all.chunks);
    assertEquals(first, undefined);
    for (const other of others) assertInstanceOf(other, TypeError);
    assertEquals(await outcome(all.closing), undefined);
  });

  Deno.test(`Stream.writable: closeWrite() after close() of the writer, while a chunk ${name}: a refused chunk is not waited for`, async () => {
    const { length, isStarted, options } = FIRST_CHUNKS[name];
    using all = await streamPair(options);
    const writer = all.near.writable.getWriter();
    if (isStarted) await turn();
    const chunk = outcome(writer.write(pattern(length)));
    const closed = outcome(writer.close());
    assertInstanceOf(await writer.write(pattern(1)).catch((error) => error), TypeError);
    const closing = all.near.closeWrite();
    assertEquals(await received(all.far), [length, "end"]);
    assertEquals(await Promise.all([chunk, closed, outcome(closing)]), [undefined, undefined, undefined]);
  });
}

for (const [name, options] of Object.entries({ "waits for room": WITHOUT_ROOM, "was written": {} })) {
  Deno.test(`Stream.writable: Session.close() after close() of the writer, while the last chunk ${name}: close() fulfils, and FIN is sent`, async () => {
    for (const isWrittenAfter of [false, true]) {
      using all = await streamPair(options);
      const writer = all.near.writable.getWriter();
      await turn();
      const length = options === WITHOUT_ROOM ? MiB : 10;
      const chunk = outcome(writer.write(pattern(length)));
      if (options === WITHOUT_ROOM) await turn();
      const closed = outcome(writer.close());
      const late = isWrittenAfter ? outcome(writer.write(pattern(5))) : new TypeError();
      const closing = all.client.close();
      assertEquals(await received(all.far), [length, "end"]);
      assertEquals(await Promise.all([chunk, closed]), [undefined, undefined]);
      assertInstanceOf(await late, TypeError);
      await all.server.close();
      await closing;
    }
  });
}

// Aborting.

Deno.test("Stream.writable: abort() before the first chunk fulfils, repeatedly, and the peer receives FIN", async () => {
  using all = await streamPair();
  const { writable } = all.near;
  assertEquals(await Promise.all([1, 2].map((reason) => outcome(writable.abort(reason)))), [undefined, undefined]);
  assertEquals(await outcome(writable.abort(3)), undefined);
  assertEquals(await received(all.far), [0, "end"]);
  assertEquals(await outcome(writable.getWriter().closed), 1);
});

for (const waitsFor of ["credit", "room"] as const) {
  for (const isClosing of [false, true]) {
    const how = isClosing ? "with close() after it" : "alone";
    Deno.test(`Stream.writable: abort() while a chunk waits for ${waitsFor}, ${how}, sends FIN after the encoded bytes`, async () => {
      using all = await streamPair(waitsFor === "credit" ? {} : WITHOUT_ROOM);
      const writer = all.near.writable.getWriter();
      const chunks = [writer.write(pattern(MiB)), writer.write(pattern(10))].map(outcome);
      const closing = isClosing ? outcome(writer.close()) : undefined;
      await turn();
      const reason = new Error("enough");
      const aborted = writer.abort(reason);
      const [count, end] = await received(all.far);
      assert(count > 0 && count < MiB, `${count} bytes`);
      assertEquals(end, "end");
      await aborted;
      for (const chunk of chunks) assertStrictEquals(await chunk, reason, "a chunk that was cut must reject");
      assertStrictEquals(await outcome(writer.closed), reason);
      if (isClosing) assertStrictEquals(await closing, reason);
    });
  }
}

for (const waitsFor of ["credit", "room"] as const) {
  Deno.test(`Stream.writable: abort() while Stream.write() waits for ${waitsFor} lets it finish, and rejects the chunks after it`, async () => {
    using all = await streamPair(waitsFor === "credit" ? {} : WITHOUT_ROOM);
    const direct = all.near.write(pattern(MiB));
    const writer = all.near.writable.getWriter();
    const chunk = outcome(writer.write(pattern(10)));
    await turn();
    const reason = new Error("enough");
    const aborted = writer.abort(reason);
    assertEquals(await received(all.far), [MiB, "end"]);
    assertEquals(await direct, MiB);
    assertStrictEquals(await chunk, reason);
    await aborted;
  });
}

Deno.test("Stream.writable: abort() while close() waits for room: both settle, and the peer receives all bytes and FIN", async () => {
  using all = await streamPair(WITHOUT_ROOM);
  const filled = all.near.write(pattern(MiB));
  const writer = all.near.writable.getWriter();
  const closing = outcome(writer.close());
  await turn();
  const aborted = outcome(writer.abort(new Error("enough")));
  assertEquals(await received(all.far), [MiB, "end"]);
  await filled;
  assertEquals([await closing, await aborted], [undefined, undefined]);
});

Deno.test("Stream.writable: abort() before the end of the session: all promises settle", async () => {
  using all = await streamPair(WITHOUT_ROOM);
  const writer = all.near.writable.getWriter();
  const settled = [writer.write(pattern(MiB)), writer.abort(new Error("enough")), writer.closed].map(outcome);
  await turn();
  all.client.abort();
  for (const each of await Promise.all(settled)) assert(each !== PENDING);
});

// Aborted pipes.

Deno.test("Stream.writable: a pipe that is aborted by its signal ends writing, except with preventAbort", async () => {
  for (const isWaiting of [false, true]) {
    for (const preventAbort of [false, true]) {
      for (const preventCancel of [false, true]) {
        using all = await streamPair();
        const stop = new AbortController();
        const source = idleSource();
        const options = { signal: stop.signal, preventAbort, preventCancel };
        const piped = outcome(source.stream.pipeTo(all.near.writable, options));
        // More than the peer's window.
        if (isWaiting) source.controller.enqueue(pattern(300_000));
        await turn();
        const reason = new Error("enough");
        stop.abort(reason);
        // A pipe finishes its pending chunk before it ends.
        assertEquals(await received(all.far), [isWaiting ? 300_000 : 0, preventAbort ? PENDING : "end"]);
        assertStrictEquals(await piped, reason);
        assertEquals(source.reason(), preventCancel ? "not cancelled" : reason);
        if (!preventAbort) continue;
        const writer = all.near.writable.getWriter();
        await writer.write(pattern(7));
        await writer.close();
        assertEquals(await received(all.far), [7, "end"]);
      }
    }
  }
});

Deno.test("Stream.writable: the error of a source ends writing, except with preventAbort, and its end does, except with preventClose", async () => {
  for (const keep of [false, true]) {
    for (const isFailing of [false, true]) {
      using all = await streamPair();
      const source = idleSource();
      const options = { preventAbort: keep, preventClose: keep };
      const piped = outcome(source.stream.pipeTo(all.near.writable, options));
      source.controller.enqueue(pattern(10));
      await turn();
      const reason = new Error("no more");
      if (isFailing) source.controller.error(reason);
      else source.controller.close();
      assertStrictEquals(await piped, isFailing ? reason : undefined);
      assertEquals(await received(all.far), [10, keep ? PENDING : "end"]);
    }
  }
});

Deno.test("Stream.readable: the error of a sink cancels it, and the peer's writes and this end's writes continue", async () => {
  for (const preventCancel of [false, true]) {
    using all = await streamPair();
    const reason = new Error("the sink is full");
    const sink = new WritableStream({ write: () => Promise.reject(reason) });
    const piped = outcome(all.near.readable.pipeTo(sink, { preventCancel }));
    const writing = outcome(all.far.write(pattern(MiB)));
    assertStrictEquals(await piped, reason);
    assertEquals(await writing, preventCancel ? PENDING : MiB);
    await all.near.write(bytes("still"));
    assertEquals(await readText(all.far), "still");
  }
});

Deno.test("Stream.readable: a pipe that is aborted by its signal loses no byte with preventCancel", async () => {
  using all = await streamPair();
  const stop = new AbortController();
  const chunks: string[] = [];
  const sink = new WritableStream<Uint8Array>({ write: (chunk) => void chunks.push(text(chunk)) });
  const piped = outcome(all.near.readable.pipeTo(sink, { signal: stop.signal, preventCancel: true }));
  await all.far.write(bytes("one"));
  await turn();
  stop.abort();
  assertEquals((await piped as Error).name, "AbortError");
  await all.far.write(bytes("two"));
  await turn();
  const { value } = await all.near.readable.getReader().read();
  assertEquals([...chunks, text(value!)], ["one", "two"]);
});

// Ends of a stream with an idle pipe.

type Loss = { lose(all: Awaited<ReturnType<typeof streamPair>>): unknown; error: new (...args: never[]) => Error };
const losses: Record<string, Loss> = {
  "the session is aborted": { lose: ({ client }) => client.abort(new Error("lost")), error: SessionClosedError },
  "the connection is reset": { lose: ({ connections }) => connections[0].reset(), error: SessionClosedError },
  "the peer's session ends": { lose: ({ server }) => server.abort(), error: SessionClosedError },
  "the session is closed": { lose: ({ client }) => void client.close(), error: SessionClosedError },
  "the stream is closed": { lose: ({ near }) => near.close(), error: StreamClosedError },
};
for (const [name, { lose, error }] of Object.entries(losses)) {
  for (const wasEnded of [false, true]) {
    const when = wasEnded ? "after the peer's end" : "before the peer's end";
    Deno.test(`Stream.writable: ${name} ${when}: an idle pipe rejects at once and cancels its source`, async () => {
      using all = await streamPair();
      if (wasEnded) await all.far.closeWrite();
      const source = idleSource();
      const piped = outcome(source.stream.pipeTo(all.near.writable));
      await turn();
      lose(all);
      const reason = await piped;
      assertInstanceOf(reason, error);
      assertEquals("bytesWritten" in reason, false);
      assertStrictEquals(source.reason(), reason);
      assertInstanceOf(await outcome(all.near.writable.getWriter().closed), error);
    });
  }

  Deno.test(`Stream.writable: ${name} before its first use: a pipe into it rejects at once`, async () => {
    using all = await streamPair();
    lose(all);
    await turn();
    const source = idleSource();
    assertInstanceOf(await outcome(source.stream.pipeTo(all.near.writable)), error);
    assertInstanceOf(source.reason(), error);
  });
}

Deno.test("Stream.writable: an idle pipe rejects at once when its stream is cut", async () => {
  using all = await rawStream();
  const source = idleSource();
  const piped = outcome(source.stream.pipeTo(all.stream.writable));
  const reader = all.stream.readable.getReader();
  const most = INITIAL_WINDOW + CREDIT_TOLERANCE;
  for (let sent = 0; sent <= most; sent += 65_000) await all.peer.send(PSH, 3, pattern(65_000));
  assertInstanceOf(await piped, ProtocolError);
  assertInstanceOf(source.reason(), ProtocolError);
  assertInstanceOf(await outcome(reader.closed), ProtocolError);
  await all.peer.nextOf(FIN);
});

Deno.test("Stream.writable: with a chunk that still waits when the session closes, no FIN is sent, as rule 14 says", async () => {
  for (const count of [1, 2, 3]) {
    using all = await streamPair();
    const writer = all.near.writable.getWriter();
    await turn();
    const chunks = Array.from({ length: count }, () => outcome(writer.write(pattern(10))));
    const closing = all.client.close();
    const [length, end] = await received(all.far);
    assertEquals(length, 10);
    const [first, ...others] = await Promise.all(chunks);
    assertEquals(first, undefined);
    for (const other of others) assertInstanceOf(other, SessionClosedError);
    if (count === 1) assertEquals(end, "end");
    else assertInstanceOf(end, SessionClosedError);
    await closing;
  }
});

Deno.test("Stream.readable: data that has arrived is read after the end of the session, then its error follows", async () => {
  for (const lose of [losses["the session is aborted"]!, losses["the connection is reset"]!]) {
    using all = await streamPair();
    const reader = all.near.readable.getReader();
    const { writable } = all.near;
    await all.far.write(pattern(100_000));
    await turn(10);
    lose.lose(all);
    assertInstanceOf(await outcome(writable.getWriter().closed), SessionClosedError);
    assertEquals(await outcome(reader.closed), PENDING);
    let count = 0;
    while (count < 100_000) count += (await reader.read()).value!.length;
    assertEquals(count, 100_000);
    assertInstanceOf(await outcome(reader.read()), SessionClosedError);
    assertInstanceOf(await outcome(reader.closed), SessionClosedError);
  }
});

Deno.test("Stream.readable: a FIN that has arrived is read after the end of the session", async () => {
  using all = await streamPair();
  const reader = all.near.readable.getReader();
  await all.far.closeWrite();
  await turn();
  all.client.abort();
  assertEquals(await outcome(reader.closed), PENDING);
  assertEquals((await reader.read()).done, true);
});

Deno.test("Stream.readable: closed of a reader without data rejects at the end of the session, with and without an earlier read", async () => {
  for (const wasUsed of [false, true]) {
    using all = await streamPair();
    const reader = all.near.readable.getReader();
    if (wasUsed) {
      await all.far.write(bytes("x"));
      await reader.read();
    }
    all.client.abort();
    assertInstanceOf(await outcome(reader.closed), SessionClosedError);
  }
});

// Readers.

const MODES = ["default", "byob"] as const;

/** A reader of this mode, and a function that reads from it. */
function readerOf(readable: ReadableStream<Uint8Array<ArrayBuffer>>, mode: typeof MODES[number]) {
  if (mode === "default") {
    const reader = readable.getReader();
    return { reader, read: async () => await reader.read() };
  }
  const reader = readable.getReader({ mode });
  return { reader, read: async () => await reader.read(new Uint8Array(100)) };
}

Deno.test("Stream.readable: cancel() during a Stream.read() resolves it with 0, and null follows after the peer's FIN", async () => {
  using all = await streamPair();
  const reading = all.near.read(new Uint8Array(10));
  await all.near.readable.cancel();
  assertEquals(await outcome(reading), 0);
  const next = all.near.read(new Uint8Array(10));
  await all.far.write(bytes("dropped"));
  assertEquals(await outcome(next), PENDING);
  await all.far.closeWrite();
  assertEquals(await outcome(next), null);
});

for (const mode of MODES) {
  Deno.test(`Stream.readable: cancel() during a read of a ${mode} reader returns the peer's credit, and writing continues`, async () => {
    using all = await streamPair();
    const { reader, read } = readerOf(all.near.readable, mode);
    const reading = read();
    await turn();
    await reader.cancel(new Error("enough"));
    assertEquals((await reading).done, true);
    assertEquals(await outcome(all.far.write(pattern(MiB))), MiB);
    await all.near.write(bytes("still"));
    assertEquals(await readText(all.far), "still");
  });

  for (const next of MODES) {
    for (const isEarly of [false, true]) {
      const when = isEarly ? "before" : "after";
      Deno.test(`Stream.readable: bytes ${when} a ${next} reader takes over from a ${mode} reader released in a read are not lost`, async () => {
        for (const end of ["data", "FIN"]) {
          using all = await streamPair();
          const first = readerOf(all.near.readable, mode);
          const released = outcome(first.read());
          await turn();
          first.reader.releaseLock();
          assertInstanceOf(await released, TypeError);
          const send = async () => {
            await all.far.write(bytes("one"));
            await turn();
          };
          if (isEarly) await send();
          const { reader, read } = readerOf(all.near.readable, next);
          const reading = read();
          await turn();
          if (!isEarly) await send();
          if (end === "FIN") await all.far.closeWrite();
          await turn();
          assertEquals(text((await outcome(reading) as ReadableStreamReadValueResult<Uint8Array>).value), "one");
          if (end === "data") {
            await all.far.write(bytes("two"));
            assertEquals(text((await read()).value!), "two");
            await all.far.closeWrite();
          }
          assertEquals((await read()).done, true);
          await reader.closed;
        }
      });
    }
  }
}

Deno.test("Stream.readable: reads without a buffer receive the bytes in order after a half-filled BYOB read was released", async () => {
  using all = await streamPair();
  const byob = all.near.readable.getReader({ mode: "byob" });
  const first = outcome(byob.read(new Uint32Array(5)));
  await all.far.write(pattern(4002).subarray(0, 2));
  await turn(3);
  byob.releaseLock();
  assertInstanceOf(await first, TypeError);
  const reader = all.near.readable.getReader();
  const reads = [reader.read(), reader.read(), reader.read()];
  await turn();
  await all.far.write(pattern(4002).subarray(2));
  const chunks = (await Promise.all(reads)).map(({ value }) => value!);
  assertEquals(concat(chunks), pattern(4002));
});

Deno.test("Stream.readable: bytes that arrive after a reader was released in a read are left to Stream.read()", async () => {
  for (const count of [1, 2]) {
    using all = await streamPair();
    const reader = all.near.readable.getReader();
    const released = Array.from({ length: count }, () => outcome(reader.read()));
    await turn();
    reader.releaseLock();
    for (const read of released) assertInstanceOf(await read, TypeError);
    for (const word of ["hello ", "world"]) {
      await all.far.write(bytes(word));
      await turn();
    }
    assertEquals(await readText(all.near), "hello world");
    await all.far.write(bytes("again"));
    await turn();
    assertEquals(text((await all.near.readable.getReader().read()).value!), "again");
  }
});

Deno.test("Stream.readable: closed of a reader that follows one released in a read rejects at the end of the session", async () => {
  using all = await streamPair();
  const reader = all.near.readable.getReader();
  const released = outcome(reader.read());
  await turn();
  reader.releaseLock();
  await released;
  all.client.abort();
  await turn();
  assertInstanceOf(await outcome(all.near.readable.getReader().closed), SessionClosedError);
});

Deno.test("Stream.readable: a Uint16Array is filled from odd parts, and an odd byte at the end is an error", async () => {
  using all = await streamPair();
  const reader = all.near.readable.getReader({ mode: "byob" });
  const reading = reader.read(new Uint16Array(2));
  await all.far.write(pattern(1));
  await turn();
  await all.far.write(pattern(2).subarray(1));
  assertEquals((await reading).value!.length, 1);
  const last = outcome(reader.read(new Uint16Array(2)));
  await all.far.write(pattern(1));
  await all.far.closeWrite();
  assertInstanceOf(await last, TypeError);
  assertInstanceOf(await outcome(reader.closed), TypeError);
});

Deno.test("Stream.readable: concurrent reads of each mode are served in order", async () => {
  for (const mode of MODES) {
    using all = await streamPair();
    const { read } = readerOf(all.near.readable, mode);
    const reads = [read(), read(), read()];
    for (const word of ["one", "two"]) {
      await all.far.write(bytes(word));
      await turn();
    }
    await all.far.closeWrite();
    const results = await Promise.all(reads);
    assertEquals(results.map(({ done, value }) => done ? "(end)" : text(value)), ["one", "two", "(end)"]);
  }
});

Deno.test("Stream.readable: with one branch of tee() cancelled, the other receives all bytes, and the end or the error", async () => {
  for (const isLost of [false, true]) {
    using all = await streamPair();
    const [one, other] = all.near.readable.tee();
    await all.far.write(bytes("one"));
    const reader = other.getReader();
    assertEquals(text((await reader.read()).value!), "one");
    const cancelled = one.cancel();
    await all.far.write(bytes("two"));
    assertEquals(text((await reader.read()).value!), "two");
    if (isLost) all.client.abort();
    else await all.far.closeWrite();
    const last = await outcome(reader.read());
    if (isLost) assertInstanceOf(last, SessionClosedError);
    else assertEquals(last, { done: true, value: undefined });
    await reader.cancel().catch(() => {});
    await cancelled.catch(() => {});
  }
});

// Sessions.

Deno.test("web streams: the end of a session with 1000 idle pipes yields to the event loop in between", async () => {
  const { client, server } = sessionPair({ server: { acceptBacklog: 1000 } });
  const { yieldToEventLoop } = clock;
  let yields = 0;
  const pipes: Promise<unknown>[] = [];
  for (let n = 0; n < 1000; n++) {
    const { writable } = await client.openStream();
    pipes.push(idleSource().stream.pipeTo(writable).catch((error) => error));
  }
  // The server's session must not yield at the same time, which would count once for both.
  while (server.stats().accepted < 1000) await turn();
  clock.yieldToEventLoop = () => {
    yields++;
    return yieldToEventLoop();
  };
  try {
    client.abort();
    for (const error of await Promise.all(pipes)) assertInstanceOf(error, SessionClosedError);
    assert(yields >= 15, `${yields} yields`);
  } finally {
    clock.yieldToEventLoop = yieldToEventLoop;
    server.abort();
  }
});

Deno.test("Stream.readable: 400 readers that wait after 60 KiB each hold less than 8 MiB", async () => {
  const { client, server } = sessionPair();
  const burst = new Uint8Array(60 * KiB);
  const used = async () => {
    for (let n = 0; n < 3; n++) {
      collectGarbage();
      await turn();
    }
    return Deno.memoryUsage().external;
  };
  const before = await used();
  const waiting = [];
  for (let n = 0; n < 400; n++) {
    const [near, far] = await Promise.all([client.openStream(), server.acceptStream()]);
    await far.write(burst);
    while (client.stats().bytesUnread < burst.length) await turn(1);
    const reader = near.readable.getReader();
    for (let left = burst.length; left > 0;) left -= (await reader.read()).value!.length;
    waiting.push({ far, reading: reader.read() });
  }
  assertLess(await used() - before, 8 * MiB);
  for (const { far } of waiting) await far.write(bytes("last"));
  for (const { reading } of waiting) assertEquals(text((await reading).value!), "last");
  client.abort();
  server.abort();
});

Deno.test("web streams: pipes and halves without a reference continue after a garbage collection", async () => {
  const printed = await deno("run", "-A", "--no-check", "--v8-flags=--expose-gc", "tests/fixtures/dropped.ts");
  assertEquals(printed, "piped\nechoed\nwritten\nread\n3 open\n");
});

Deno.test("Stream.writable: the error of a chunk that was cut has bytesWritten, with the bytes encoded at once", async () => {
  const { client, server } = sessionPair({ version: 2 });
  const stream = await client.openStream();
  const writing = stream.writable.getWriter().write(pattern(300_000));
  const accepted = await server.acceptStream();
  while (server.stats().bytesUnread < INITIAL_WINDOW) await turn(1);
  client.abort();
  const error = await assertRejects(() => writing, SessionClosedError);
  assertEquals(error.bytesWritten, INITIAL_WINDOW);
  accepted.close();
  server.abort();
});

/** Waits until bytes are unread, by microtasks only, so that the rest of the read is not decoded yet. */
async function unread(session: Session): Promise<void> {
  for (let n = 0; session.stats().bytesUnread === 0; n++) {
    assert(n < 10_000, "no bytes arrive");
    await null;
  }
}

Deno.test("Stream.readable: a chunk keeps its bytes while later frames of its buffer are decoded", async () => {
  const data = pattern(90_000);
  const { readable, writable } = new TransformStream<Uint8Array, Uint8Array>();
  const session = Session.server({ readable, writable: new WritableStream() }, { version: 1 });
  const peer = writable.getWriter();
  peer.write(concat([frame(1, SYN, 3), frame(1, SYN, 5)]));
  const [large, small] = [await session.acceptStream(), await session.acceptStream()];
  const reader = large.readable.getReader();
  const first = small.read(new Uint8Array(1));
  await turn();
  // A message of a WebSocket is one chunk, of which 63 KiB are decoded at once.
  const frames = [frame(1, PSH, 5, bytes("x")), frame(1, PSH, 3, data.subarray(0, 60_000))];
  peer.write(concat([...frames, frame(1, PSH, 3, data.subarray(60_000)), frame(1, FIN, 3)]));
  await first;
  assertEquals(session.stats().bytesUnread < data.length, true, "the whole chunk was decoded at once");
  const parts: Uint8Array[] = [];
  for (let part = await reader.read(); !part.done; part = await reader.read()) parts.push(part.value);
  assertEquals(concat(parts), data);
  session.abort();
});

Deno.test("Stream.readable: a chunk does not own its buffer while the rest waits for the acceptors", async () => {
  const data = pattern(6000);
  const reads = [
    frame(1, SYN, 3),
    concat([frame(1, PSH, 3, data), frame(1, SYN, 5), frame(1, SYN, 7), frame(1, PSH, 7, bytes("still whole"))]),
  ];
  const { promise, resolve } = Promise.withResolvers<void>();
  const session = Session.server({
    async read(p) {
      const part = reads.shift();
      if (reads.length === 0) await promise;
      if (part === undefined) return await new Promise<never>(() => {});
      p.set(part);
      return part.length;
    },
    write: (p) => Promise.resolve(p.length),
    close() {},
  }, { version: 1, acceptBacklog: 1 });
  const reader = (await session.acceptStream()).readable.getReader();
  resolve();
  await unread(session);
  assertEquals((await reader.read()).value, data);
  await session.acceptStream();
  assertEquals(await readText(await session.acceptStream()), "still whole");
  session.abort();
});
