/**
 * Calls into the session in the middle of its own steps: by the sink of a web stream that receives accepted streams, by
 * the `write` or `close` of a transport, and by microtasks that the runtime runs.
 *
 * @module
 */

import { assertEquals, assertRejects } from "@std/assert";
import { concat } from "@std/bytes";
import { clock } from "../_clock.ts";
import { EMPTY_BYTES, FIN, PSH, SYN, UPD } from "../frame.ts";
import {
  type Connection,
  type ServerSessionOptions,
  Session,
  SessionClosedError,
  type Stream,
  type Version,
} from "../mod.ts";
import { decode } from "./decode_helpers.ts";
import {
  bytes,
  frame,
  ManualClock,
  type MemoryConnection,
  memoryPair,
  NO_SIGNAL,
  pattern,
  RawPeer,
  text,
  turn,
} from "./support.ts";

/** A server's session whose streams go to the sink of a web stream as they arrive. */
async function withSink(version: Version, accept: (stream: Stream) => void, options: ServerSessionOptions = {}) {
  const [connection, far] = memoryPair(1 << 20);
  const session = Session.server(connection, { version, ...options });
  session.incoming.toReadableStream().pipeTo(new WritableStream({ write: accept })).catch(() => {});
  await turn();
  return { session, peer: new RawPeer(far, version), [Symbol.dispose]: () => session.abort() };
}

/** A connection that calls `hook` in each write. */
function hooked(connection: MemoryConnection, hook: () => void): Connection {
  return {
    read: (p) => connection.read(p),
    write(p) {
      hook();
      return connection.write(p);
    },
    close: () => connection.close(),
  };
}

Deno.test("accepting: a stream closed by its acceptor at once leaves the table, and no UPD follows its FIN", async () => {
  using all = await withSink(2, (stream) => stream.close(), { maxStreams: 3, maxStreamBuffer: 1000 });
  const { session, peer } = all;
  for (let id = 3; id < 15; id += 2) {
    await peer.send(SYN, id);
    const answer = await peer.next();
    assertEquals([answer!.command, answer!.id], [FIN, id]);
  }
  const { streams, accepted, refused, framesSent } = session.stats();
  assertEquals({ streams, accepted, refused, framesSent }, { streams: 0, accepted: 6, refused: 0, framesSent: 6 });
});

Deno.test("accepting: a stream whose acceptor aborts the session rejects its operations", async () => {
  const accepted: Stream[] = [];
  using all = await withSink(1, (stream) => {
    accepted.push(stream);
    all.session.abort(new Error("enough"));
  });
  await all.peer.send(SYN, 3);
  await turn();
  const [stream] = accepted;
  await assertRejects(() => stream!.read(new Uint8Array(1)), SessionClosedError);
  await assertRejects(() => stream!.write(new Uint8Array(1)), SessionClosedError);
  await assertRejects(() => stream!.closed, SessionClosedError);
  assertEquals(all.session.stats().streams, 0);
});

const acts: Record<string, (stream: Stream) => void> = {
  closes: (stream) => stream.close(),
  reads: (stream) => void stream.tryRead(new Uint8Array(5000)),
};
for (const [name, act] of Object.entries(acts)) {
  Deno.test(`accepting: an acceptor that ${name} an earlier stream loses no data that arrived with the new stream`, async () => {
    const accepted: Stream[] = [];
    using all = await withSink(1, (stream) => {
      for (const earlier of accepted) act(earlier);
      accepted.push(stream);
    });
    await all.peer.send(SYN, 3);
    // The first stream holds a view of the buffer that is being decoded.
    await all.peer.bytes(concat([frame(1, PSH, 3, pattern(5000)), frame(1, SYN, 5), frame(1, PSH, 5, bytes("hello"))]));
    await turn();
    const p = new Uint8Array(8);
    assertEquals(await accepted[1]!.read(p), 5);
    assertEquals(text(p.subarray(0, 5)), "hello");
  });
}

Deno.test("read: data that arrives with the SYN at which its signal aborts is returned", async () => {
  const controller = new AbortController();
  const accepted: Stream[] = [];
  using all = await withSink(1, (stream) => {
    if (accepted.push(stream) > 1) controller.abort();
  });
  await all.peer.send(SYN, 3);
  await turn();
  const reading = accepted[0]!.read(new Uint8Array(16), { signal: controller.signal });
  await all.peer.bytes(concat([frame(1, PSH, 3, bytes("not lost")), frame(1, SYN, 5)]));
  assertEquals(await reading, 8);
});

Deno.test("read: data that arrives with the SYN at which its stream is cancelled is returned, with credit", async () => {
  const accepted: Stream[] = [];
  using all = await withSink(2, (stream) => {
    if (accepted.push(stream) > 1) accepted[0]!.readable.cancel();
  }, { maxStreamBuffer: 100 });
  await all.peer.send(SYN, 3);
  assertEquals((await all.peer.nextOf(UPD)).consumed, 0);
  const reading = accepted[0]!.read(new Uint8Array(100));
  await all.peer.bytes(concat([frame(2, PSH, 3, pattern(60)), frame(2, SYN, 5)]));
  assertEquals(await reading, 60);
  const { id, consumed } = await all.peer.nextOf(UPD);
  assertEquals({ id, consumed }, { id: 3, consumed: 60 });
});

Deno.test("read: a signal of null counts as no signal, for waiting reads too", async () => {
  using all = await withSink(1, () => {}, { maxStreams: 1 });
  const stream = await all.session.openStream();
  const reads = [1, 2].map(() => stream.read(new Uint8Array(3), NO_SIGNAL));
  await all.peer.send(PSH, stream.id, bytes("hello"));
  assertEquals(await Promise.all(reads), [3, 2]);
});

Deno.test("write: a write from the transport's write() leaves after that one", async () => {
  const [near, far] = memoryPair(1 << 20);
  let hook = () => {};
  const session = Session.client(hooked(near, () => hook()), { version: 1 });
  const peer = new RawPeer(far, 1);
  const stream = await session.openStream();
  await peer.nextOf(SYN);
  const written: number[] = [];
  hook = () => {
    hook = () => {};
    written.push(stream.tryWrite(bytes("logged")));
  };
  await stream.write(bytes("a"));
  assertEquals(text((await peer.next())!.data), "a");
  assertEquals(text((await peer.next())!.data), "logged");
  assertEquals(written, [6]);
  session.abort();
});

// Calls that encode a frame and write frames that have waited long enough, and what a transport does in that write().
const calls: Record<string, (stream: Stream, session: Session) => unknown> = {
  write: (stream) => stream.write(bytes("8")),
  tryWrite: (stream) => stream.tryWrite(bytes("8")),
  close: (stream) => stream.close(),
  openStream: async (_, session) => (await session.openStream()).id,
};
const interruptions: Record<string, (stream: Stream, session: Session) => void> = {
  "writes": (stream) => assertEquals(stream.tryWrite(bytes("9")), 1),
  "closes the stream": (stream) => stream.close(),
  "aborts the stream": (stream) => stream.abort(),
  "aborts the session": (_, session) => session.abort(),
};
for (const [name, call] of Object.entries(calls)) {
  for (const [what, interrupt] of Object.entries(interruptions)) {
    if (name === "close" && what === "writes") continue;
    Deno.test(`${name}: a transport that ${what} in the write() of this call gets every frame once`, async () => {
      using clock = new ManualClock();
      const [near] = memoryPair();
      const written: Uint8Array[] = [];
      let hook = () => {};
      const session = Session.client({
        read: (p) => near.read(p),
        write(p) {
          written.push(p.slice());
          hook();
          return Promise.resolve(p.length);
        },
        close: () => near.close(),
      }, { version: 1 });
      const stream = await session.openStream();
      await turn();
      for (let n = 1; n < 8; n++) stream.tryWrite(bytes(`${n}`));
      clock.freeze(1);
      hook = () => {
        hook = () => {};
        interrupt(stream, session);
        written.push(EMPTY_BYTES);
      };
      const returned = call(stream, session);
      assertEquals(written.at(-1), EMPTY_BYTES, "the call did not write");
      assertEquals(await returned, name === "close" ? undefined : name === "openStream" ? 5 : 1);
      await turn(2);
      const frames = decode(written, 1).lines.filter((line) => /^(PSH|FIN) 3 /.test(line));
      const data = frames.filter((line) => line.startsWith("PSH")).map((line) =>
        text(Uint8Array.fromHex(line.split(": ")[1]!))
      );
      const own = name === "write" || name === "tryWrite" ? "8" : "";
      assertEquals(data.join(""), `1234567${own}${what === "writes" ? "9" : ""}`);
      assertEquals(frames.length - data.length, name === "close" || /stream/.test(what) ? 1 : 0);
      session.abort();
    });
  }
}

Deno.test("write: the bytes passed to the transport stay unchanged when it ends the session in its write()", async () => {
  const [near] = memoryPair();
  const lengths: number[] = [];
  const session: Session = Session.client({
    read: (p) => near.read(p),
    write(p) {
      session.abort();
      lengths.push(p.length);
      return Promise.resolve(p.length);
    },
    close: () => near.close(),
  }, { version: 1 });
  await assertRejects(() => session.closed, DOMException);
  assertEquals(lengths, [8]); // the client's first NOP
});

Deno.test("write: a transport that always writes 0 bytes does not block the event loop, and the silence of its peer is found", async () => {
  using clock = new ManualClock();
  const [near, far] = memoryPair();
  const session = Session.client({
    read: (p) => near.read(p),
    write: () => Promise.resolve(0),
    close: () => near.close(),
  }, { version: 1, timeout: 1000, keepAliveInterval: 900 });
  await session.openStream();
  const peer = new RawPeer(far, 1);
  for (let passed = 0; passed < 1200; passed += 100) {
    await peer.send(PSH, 3, bytes("alive"));
    await clock.advance(100);
  }
  const ended = assertRejects(() => session.closed, DOMException, "silent for 1000 ms");
  await clock.advance(1000);
  await ended;
});

Deno.test("close: a transport that aborts the session in its closeWrite() leaves no timer", async () => {
  const { setTimer, clearTimer } = clock;
  const set = new Set<ReturnType<typeof setTimer>>();
  clock.setTimer = (run, delay) => {
    const timer = setTimer(() => {
      set.delete(timer);
      run();
    }, delay);
    set.add(timer);
    return timer;
  };
  clock.clearTimer = (timer) => {
    set.delete(timer!);
    clearTimer(timer);
  };
  try {
    const session: Session = Session.server({
      readable: new ReadableStream(),
      writable: new WritableStream({ close: () => session.abort() }),
    }, { version: 1 });
    await session.close();
    await turn();
    assertEquals(set.size, 0);
  } finally {
    Object.assign(clock, { setTimer, clearTimer });
  }
});

Deno.test("close: a connection whose close() returns a rejected promise leaves no unhandled rejection", async () => {
  const [near] = memoryPair();
  const session = Session.server({
    read: (p) => near.read(p),
    write: (p) => near.write(p),
    // The type of close() allows any result.
    close: () => Promise.reject(new Error("close failed")),
  }, { version: 1 });
  session.abort();
  await assertRejects(() => session.closed, DOMException);
  await turn();
});

Deno.test("timers: the first setTimeout() of a process runs no microtask", async () => {
  const code = `import ${JSON.stringify(new URL("../_clock.ts", import.meta.url).href)};
    addEventListener("load", () => {
      let hasRun = false;
      queueMicrotask(() => hasRun = true);
      clearTimeout(setTimeout(() => {}, 0));
      console.log(hasRun);
    });`;
  const { stdout } = await new Deno.Command(Deno.execPath(), { args: ["eval", "--no-config", code] }).output();
  assertEquals(text(stdout), "false\n");
});
