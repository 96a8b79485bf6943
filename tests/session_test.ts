/**
 * A session: its options, its statistics, its hold on the process, opening streams, pauses and yielding.
 *
 * @module
 */

import {
  assert,
  assertEquals,
  assertGreater,
  assertGreaterOrEqual,
  assertRejects,
  assertStrictEquals,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { deadline } from "@std/async";
import { concat, repeat } from "@std/bytes";
import { setImmediate } from "node:timers/promises";
import { clock, type Timer } from "../_clock.ts";
import { FIN, HEADER_LENGTH, MAX_PAYLOAD_LENGTH, NOP, PSH, SYN, UPDATE_LENGTH, type Version } from "../frame.ts";
import { bounded, Session, SessionClosedError, type Stream, StreamResetError } from "../mod.ts";
import { DEFAULTS, resolveOptions } from "../options.ts";
import { complement } from "../_reset.ts";
import { INITIAL_WINDOW } from "../_window.ts";
import { EMPTY_STREAM_COST, FLOOD_BUDGET, MAX_PAUSE_MS, PAUSE_MS, REFUSAL_COST, SHORT_PAUSE_MS } from "../_flood.ts";
import {
  frame,
  ManualClock,
  memoryPair,
  MiB,
  microtasks,
  pattern,
  RawPeer,
  readAll,
  sessionPair,
  turn,
  updateFrame,
  writeAll,
} from "./support.ts";

/** Creates a session with these options and aborts it. */
function construct(options: object, make: "client" | "server" = "server"): void {
  const [near] = memoryPair();
  Session[make](near, options).abort();
  assertEquals(near.isClosed, true);
}

const MOST = 2 ** 31 - 1;

const integers: Record<string, { most: number; others?: Record<string, number> }> = {
  maxFrameSize: { most: 65_535 },
  maxReceiveBuffer: { most: MOST },
  maxStreamBuffer: { most: MOST, others: { maxReceiveBuffer: MOST } },
  maxStreams: { most: MOST },
  acceptBacklog: { most: MOST },
  keepAliveInterval: { most: MOST, others: { timeout: Infinity } },
  timeout: { most: MOST, others: { keepAliveInterval: Infinity } },
  stalledStreamTimeout: { most: MOST },
};
const times = ["keepAliveInterval", "timeout", "stalledStreamTimeout"];

for (const [name, { most, others }] of Object.entries(integers)) {
  Deno.test(`options: ${name} is an integer from 1 to ${most}; the error has the name, the bound and the value`, () => {
    for (const make of ["client", "server"] as const) {
      for (const value of [1, most]) construct({ ...others, [name]: value }, make);
      for (const value of [0, -1, most + 1, 1.5, NaN, -Infinity, 2 ** 53]) {
        const { message } = assertThrows(() => construct({ ...others, [name]: value }, make), RangeError);
        for (const part of [name, "1 to", `${most}`, `received ${value}`]) assertStringIncludes(message, part);
      }
    }
  });

  Deno.test(`options: ${name} ${times.includes(name) ? "may" : "may not"} be Infinity`, () => {
    const run = () => construct({ [name]: Infinity });
    if (times.includes(name)) run();
    else assertStringIncludes(assertThrows(run, RangeError).message, `${name} must be`);
  });
}

Deno.test("options: defaults apply to options that are left out or undefined", () => {
  const defaults = {
    version: "auto" as const,
    incoming: undefined,
    onFrame: undefined,
    keepAliveInterval: 10_000,
    timeout: 30_000,
    stalledStreamTimeout: Infinity,
    maxFrameSize: 32_768,
    maxReceiveBuffer: 16 * 2 ** 20,
    maxStreamBuffer: 8 * 2 ** 20,
    maxStreams: 8192,
    acceptBacklog: 1024,
  };
  assertEquals(resolveOptions({}, "server"), defaults);
  assertEquals(resolveOptions({}, "client"), { ...defaults, version: 2 });
  const unset = Object.fromEntries(Object.keys(defaults).map((name) => [name, undefined]));
  assertEquals(resolveOptions(unset, "server"), defaults);
  // The default of keepAliveInterval is at most a third of timeout.
  for (const [timeout, keepAliveInterval] of [[1, 1], [3000, 1000], [29_999, 9999], [Infinity, 10_000]] as const) {
    assertEquals(resolveOptions({ timeout }, "server"), { ...defaults, timeout, keepAliveInterval });
  }
  // The default of maxStreamBuffer is at most half of maxReceiveBuffer.
  for (const [maxReceiveBuffer, maxStreamBuffer] of [[1, 1], [3, 1], [1001, 500], [MOST, 8 * 2 ** 20]] as const) {
    assertEquals(resolveOptions({ maxReceiveBuffer }, "server"), { ...defaults, maxReceiveBuffer, maxStreamBuffer });
  }
});

Deno.test("options: maxStreamBuffer is at most maxReceiveBuffer", () => {
  construct({ maxReceiveBuffer: 1000, maxStreamBuffer: 1000 });
  const { message } = assertThrows(() => construct({ maxReceiveBuffer: 1000, maxStreamBuffer: 1001 }), RangeError);
  for (const part of ["maxStreamBuffer", "maxReceiveBuffer", "1000", "1001"]) assertStringIncludes(message, part);
});

Deno.test("options: timeout is at least keepAliveInterval, except with Infinity", () => {
  construct({ keepAliveInterval: 500, timeout: 500 });
  construct({ keepAliveInterval: Infinity, timeout: 1 });
  construct({ keepAliveInterval: MOST, timeout: Infinity });
  const invalid = [
    { keepAliveInterval: 500, timeout: 499 },
    { keepAliveInterval: DEFAULTS.timeout + 1 },
    { keepAliveInterval: DEFAULTS.keepAliveInterval, timeout: DEFAULTS.keepAliveInterval - 1 },
  ];
  for (const options of invalid) {
    const { message } = assertThrows(() => construct(options), RangeError);
    const { keepAliveInterval = DEFAULTS.keepAliveInterval, timeout = DEFAULTS.timeout } = options;
    for (const part of ["timeout", "keepAliveInterval", `${keepAliveInterval}`, `${timeout}`]) {
      assertStringIncludes(message, part);
    }
  }
});

Deno.test("options: version is 1 or 2, or auto on a server", () => {
  for (const version of [1, 2, undefined]) {
    construct({ version }, "client");
    construct({ version }, "server");
  }
  construct({ version: "auto" }, "server");
  for (const version of [0, 3, "auto", "3", NaN, 1.5]) {
    const { message } = assertThrows(() => construct({ version }, "client"), RangeError);
    for (const part of ["version", "1 or 2", `${version}`]) assertStringIncludes(message, part);
  }
  for (const version of [0, 3, "Auto"]) {
    const { message } = assertThrows(() => construct({ version }, "server"), RangeError);
    for (const part of ["version", '"auto"', `${version}`]) assertStringIncludes(message, part);
  }
});

Deno.test("options: an invalid option leaves the connection untouched", async () => {
  const [near, far] = memoryPair();
  assertThrows(() => Session.client(near, { maxStreams: 0 }), RangeError);
  assertEquals(near.isClosed, false);
  const client = Session.client(near);
  const server = Session.server(far);
  await client.openStream();
  await server.acceptStream();
  await client.close();
});

Deno.test("options: the timeout of close() is checked, and after an error the session stays open", async () => {
  const { client, server } = sessionPair();
  for (const timeout of [0, -1, NaN, 1.5, MOST + 1]) {
    const { message } = assertThrows(() => client.close({ timeout }), RangeError);
    for (const part of ["timeout", `${MOST}`, `received ${timeout}`]) assertStringIncludes(message, part);
  }
  await client.openStream();
  await server.acceptStream();
  await client.close({ timeout: Infinity });
});

Deno.test("Session.version: an auto server adopts the version of the first frame", async () => {
  for (const version of [1, 2] as const) {
    const [near, far] = memoryPair();
    const server = Session.server(far);
    assertEquals(server.version, undefined);
    const client = Session.client(near, { version });
    assertEquals(client.version, version);
    await client.openStream();
    await server.acceptStream();
    assertEquals(server.version, version);
    await client.close();
    assertEquals(server.version, version);
  }
  const [near] = memoryPair();
  const client = Session.client(near);
  assertEquals(client.version, 2);
  client.abort();
});

Deno.test("addresses: hostname is empty and port 0 when the transport has no addresses", async () => {
  const { client, server } = sessionPair();
  const stream = await client.openStream();
  const accepted = await server.acceptStream();
  const noAddress = { transport: "tcp", hostname: "", port: 0 } as const;
  for (const { localAddr, remoteAddr } of [client, server, stream, accepted]) {
    assertEquals(localAddr, noAddress);
    assertEquals(remoteAddr, noAddress);
  }
  await client.close();
  assertEquals(client.remoteAddr, noAddress);
});

Deno.test("addresses: a session has those of its transport, after its end too", async () => {
  const [near] = memoryPair();
  const localAddr = { transport: "vsock", cid: 3, port: 5 } as const;
  const remoteAddr = { transport: "unix", path: "/run/socket" } as const;
  const session = Session.client(Object.assign(near, { localAddr, remoteAddr }));
  const stream = await session.openStream();
  session.abort();
  for (const at of [session, stream]) assertEquals([at.localAddr, at.remoteAddr], [localAddr, remoteAddr]);
});

for (const version of [1, 2] as const) {
  Deno.test(`Session.stats(): in version ${version} the counts of a known exchange are exact`, async () => {
    const { client, server } = sessionPair({ version });
    const opened = await client.openStream();
    await opened.write(pattern(100_000));
    const accepted = await server.acceptStream();
    while (server.stats().bytesUnread < 100_000) await turn(1);

    // Beside the data one header for each frame: NOP, SYN, and a PSH for every 32 768 bytes.
    const sent = { frames: 2 + 4, bytes: HEADER_LENGTH * 6 + 100_000 };
    const credit = version === 2 ? INITIAL_WINDOW : 0;
    const nothing = {
      streams: 1,
      opened: 0,
      accepted: 0,
      refused: 0,
      pendingAccept: 0,
      bytesSent: 0,
      bytesReceived: 0,
      framesSent: 0,
      framesReceived: 0,
      bytesUnread: 0,
      bytesUnsent: 0,
      creditGranted: credit,
      readPaused: false,
      suspended: false,
    };
    assertEquals(client.stats(), { ...nothing, opened: 1, framesSent: sent.frames, bytesSent: sent.bytes });
    assertEquals(server.stats(), {
      ...nothing,
      accepted: 1,
      framesReceived: sent.frames,
      bytesReceived: sent.bytes,
      bytesUnread: 100_000,
    });

    // In version 2 the first 4 KiB read send a UPD.
    assertEquals(await accepted.read(new Uint8Array(4096)), 4096);
    const updates = version === 2 ? 1 : 0;
    while (client.stats().framesReceived < updates) await turn(1);
    assertEquals(server.stats().bytesUnread, 95_904);

    // One FIN in each direction.
    await accepted.write(pattern(10));
    await accepted.closeWrite();
    await opened.closeWrite();
    assertEquals((await readAll(accepted)).length, 95_904);
    assertEquals((await readAll(opened)).length, 10);
    await Promise.all([opened.closed, accepted.closed]);
    await turn();
    const back = { frames: client.stats().framesReceived, bytes: client.stats().bytesReceived };
    const ended = { ...nothing, streams: 0, creditGranted: 0 };
    assertEquals(client.stats(), {
      ...ended,
      opened: 1,
      framesSent: sent.frames + 1,
      bytesSent: sent.bytes + HEADER_LENGTH,
      // The client read after the server's FIN, so it sent no UPD; the server may have.
      framesReceived: back.frames,
      bytesReceived: back.bytes,
    });
    assertEquals(server.stats(), {
      ...ended,
      accepted: 1,
      framesReceived: sent.frames + 1,
      bytesReceived: sent.bytes + HEADER_LENGTH,
      framesSent: back.frames,
      bytesSent: back.bytes,
    });
    assertEquals(back.frames, 2 + updates);
    assertEquals(back.bytes, 2 * HEADER_LENGTH + 10 + updates * (HEADER_LENGTH + UPDATE_LENGTH));

    // The counts remain after the end.
    await client.close();
    await server.closed;
    assertEquals(client.stats().framesSent, sent.frames + 1);
    assertEquals(server.stats().framesReceived, sent.frames + 1);
  });
}

Deno.test("Session.stats(): streams of both sides, refused streams and streams that wait to be accepted are counted", async () => {
  const { client, server } = sessionPair({ server: { acceptBacklog: 2 } });
  const mine = [await client.openStream(), await client.openStream(), await client.openStream()];
  assertEquals(await mine[2]!.read(new Uint8Array(1)), null);
  await server.openStream();
  await client.acceptStream();
  const count = (session: Session) => {
    const { streams, opened, accepted, refused, pendingAccept } = session.stats();
    return { streams, opened, accepted, refused, pendingAccept };
  };
  // The opener has the refused stream in its table until it closes it.
  assertEquals(count(client), { streams: 4, opened: 3, accepted: 1, refused: 0, pendingAccept: 0 });
  assertEquals(count(server), { streams: 3, opened: 1, accepted: 2, refused: 1, pendingAccept: 2 });
  await server.acceptStream();
  mine[2]!.close();
  assertEquals(count(client), { streams: 3, opened: 3, accepted: 1, refused: 0, pendingAccept: 0 });
  assertEquals(count(server), { streams: 3, opened: 1, accepted: 2, refused: 1, pendingAccept: 1 });
  await client.close();
  await server.closed;
  assertEquals(count(client), { streams: 0, opened: 3, accepted: 1, refused: 0, pendingAccept: 0 });
});

Deno.test("Session.stats(): bytesUnsent counts bytes that the transport has not written, readPaused is true at maxReceiveBuffer", async () => {
  const { client, server } = sessionPair({ version: 1, server: { maxReceiveBuffer: 1000 }, capacity: 2000 });
  const stream = await client.openStream();
  const accepted = await server.acceptStream();
  await stream.write(pattern(10_000));
  while (!server.stats().readPaused) await turn(1);
  await turn();
  // NOP, SYN, PSH and its data: every byte counts at one end, except for those in the pipe.
  const total = 3 * HEADER_LENGTH + 10_000;
  const held = total - server.stats().bytesReceived;
  assert(held >= 2000, `${held} bytes are not received`);
  assert(server.stats().bytesUnread >= 1000);
  assert(client.stats().bytesUnsent > 0);

  await stream.closeWrite();
  assertEquals(await readAll(accepted), pattern(10_000));
  assertEquals([server.stats().readPaused, server.stats().bytesUnread], [false, 0]);
  await turn();
  const { bytesSent, bytesUnsent } = client.stats();
  assertEquals([bytesSent, bytesUnsent], [total + HEADER_LENGTH, 0]);
  await client.close();
  await server.closed;
});

Deno.test("Session.stats(): creditGranted is the sum of the windows of streams without the peer's FIN", async () => {
  const { client, server } = sessionPair({ version: 2, maxStreamBuffer: 1000, maxReceiveBuffer: 5000 });
  const streams = [await client.openStream(), await client.openStream()];
  const accepted = [await server.acceptStream(), await server.acceptStream()];
  for (const session of [client, server]) assertEquals(session.stats().creditGranted, 2000);
  streams[0]!.close();
  await turn();
  assertEquals(client.stats().creditGranted, 1000);
  // After the peer's FIN no more data comes, so no credit is granted.
  assertEquals(server.stats().creditGranted, 1000);
  for (const stream of [...streams, ...accepted]) stream.close();
  await turn();
  for (const session of [client, server]) assertEquals(session.stats().creditGranted, 0);
  await client.close();
});

Deno.test("Session.openStream(): an aborted signal rejects with its reason, opens no stream and uses no id", async () => {
  const [near, far] = memoryPair();
  const session = Session.client(near);
  const peer = new RawPeer(far, 2);
  const reason = new Error("Aborted before the call");
  assertStrictEquals(
    await assertRejects(() => session.openStream({ signal: AbortSignal.abort(reason) })),
    reason,
  );
  assertEquals([session.stats().opened, session.stats().streams], [0, 0]);
  assertEquals((await session.openStream({ signal: new AbortController().signal })).id, 3);
  assertEquals([(await peer.next())?.command, (await peer.next())?.id], [NOP, 3]);
  session.abort();
});

Deno.test("Session.openStream(): a signal ends the wait of an auto server for the version", async () => {
  const [near, far] = memoryPair();
  const session = Session.server(far);
  const controller = new AbortController();
  const opening = session.openStream({ signal: controller.signal });
  const patient = session.openStream();
  const reason = new Error("No answer");
  controller.abort(reason);
  assertStrictEquals(await assertRejects(() => opening), reason);
  const peer = new RawPeer(near, 1);
  await peer.send(NOP, 0);
  assertEquals((await patient).id, 2);
  const frame = await peer.next();
  assertEquals([frame?.command, frame?.id], [SYN, 2]);
  session.abort();
});

Deno.test("Session.openStream(): an aborted wait drops data that a peer sent to the guessed id", async () => {
  const [near, far] = memoryPair();
  const session = Session.client(near, { version: 1 });
  const first = await session.openStream();
  while (first.tryWrite(pattern(32_768)) > 0) await turn();
  const controller = new AbortController();
  const opening = session.openStream({ signal: controller.signal });
  await writeAll(far, frame(1, PSH, 5, pattern(1000)));
  await turn();
  assertEquals(session.stats().bytesUnread, 1000);
  controller.abort();
  await assertRejects(() => opening);
  assertEquals(session.stats().bytesUnread, 0);
  session.abort();
});

Deno.test("Session.openStream(): a signal ends the wait for room, and no SYN is sent", async () => {
  const [near, far] = memoryPair(10);
  const session = Session.client(near, { version: 1 });
  const first = await session.openStream();
  // The peer does not read: write until tryWrite() returns 0, also after a wait.
  const fill = () => {
    let writes = 0;
    while (first.tryWrite(new Uint8Array(10_000)) > 0) writes++;
    return writes;
  };
  while (fill() > 0) await turn();
  const controller = new AbortController();
  const opening = session.openStream({ signal: controller.signal });
  const patient = session.openStream();
  await turn();
  const { streams } = session.stats();
  const reason = new Error("Too slow");
  controller.abort(reason);
  assertStrictEquals(await assertRejects(() => opening), reason);
  assertEquals(session.stats().streams, streams - 1);

  const peer = new RawPeer(far, 1);
  let frame = await peer.nextOf(SYN);
  assertEquals(frame.id, first.id);
  frame = await peer.nextOf(SYN);
  const { id } = await patient;
  assertEquals(frame.id, id);
  assertEquals(session.stats().opened, 2);
  session.abort();
});

Deno.test("Session.openStream() rejects with a SessionClosedError on a session that is closing or has ended, with the cause if it has one", async () => {
  const { client, server } = sessionPair();
  const closing = client.close();
  const refused = await assertRejects(() => client.openStream(), SessionClosedError);
  assertEquals(refused.cause, undefined);
  await closing;
  assertEquals((await assertRejects(() => client.openStream(), SessionClosedError)).cause, undefined);
  assertEquals((await assertRejects(() => server.openStream(), SessionClosedError)).cause, undefined);

  const reason = new Error("Enough");
  const other = sessionPair();
  other.client.abort(reason);
  assertStrictEquals((await assertRejects(() => other.client.openStream(), SessionClosedError)).cause, reason);
  await other.server.closed;
});

Deno.test("Session.abort(): without a reason the session ends at once with an AbortError", async () => {
  const { client, server } = sessionPair();
  const stream = await client.openStream();
  client.abort();
  const error = await assertRejects(() => client.closed, DOMException);
  assertEquals(error.name, "AbortError");
  assertStrictEquals((await assertRejects(() => stream.read(new Uint8Array(1)), SessionClosedError)).cause, error);
  client.abort(new Error("Too late"));
  assertStrictEquals(await assertRejects(() => client.closed), error);
  await client.close();
  await server.close();
});

Deno.test("Session.close() returns the same promise each time, and await using closes the session", async () => {
  let kept: Session;
  {
    await using client = sessionPair().client;
    kept = client;
    await client.openStream();
  }
  await kept.closed;
  assertStrictEquals(kept.close(), kept.close());
});

Deno.test("Session.stats(): pendingAccept counts the streams of all sessions that wait in the caller's channel", async () => {
  const { sender, receiver } = bounded<Stream>(10);
  const pairs = [1, 2].map(() => sessionPair({ server: { incoming: sender.clone() } }));
  sender.close();
  for (const { client } of pairs) await client.openStream();
  await turn();
  for (const { server } of pairs) {
    assertEquals([server.stats().accepted, server.stats().pendingAccept], [1, 2]);
  }
  receiver.drain();
  for (const { server } of pairs) assertEquals(server.stats().pendingAccept, 0);
  for (const { client } of pairs) await client.close();
});

/** Runs fixtures/idle.ts against a raw peer. */
async function idle(...calls: string[]) {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const program = `${import.meta.dirname}/fixtures/idle.ts`;
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "--allow-net", program, `${listener.addr.port}`, ...calls],
    stdin: "null",
    stdout: "inherit",
    stderr: "inherit",
  }).spawn();
  // A process that does not end would block the tests.
  const watchdog = setTimeout(() => child.kill("SIGKILL"), 20_000);
  const status = child.status.finally(() => clearTimeout(watchdog));
  const failed = status.then(({ code }) => Promise.reject(new Error(`The process exited with code ${code}`)));
  // The race also handles `failed` if the process exits later.
  const connection = await Promise.race([listener.accept(), failed]);
  const peer = new RawPeer(connection, 2);
  assertEquals(new TextDecoder().decode((await peer.nextOf(PSH)).data), "ready");
  return { child, status, connection, peer };
}

for (const calls of [["unref"], ["unref", "ref", "unref"]]) {
  Deno.test(`Session.unref(): after ${calls.join(", ")} the process ends though the session is open`, async () => {
    const { status, connection } = await idle(...calls);
    const { success, signal } = await status;
    assertEquals([success, signal], [true, null]);
    connection.close();
  });
}

for (const calls of [[], ["unref", "ref"]]) {
  const after = calls.length === 0 ? "without unref" : `after ${calls.join(", ")}`;
  Deno.test(`Session.unref(): ${after} the process and its keepalive continue while the session is open`, async () => {
    const { child, status, connection, peer } = await idle(...calls);
    for (let n = 0; n < 5; n++) await peer.nextOf(NOP);
    child.kill("SIGKILL");
    const { success, signal } = await status;
    // Windows has no signals and reports only the end.
    assertEquals([success, signal], [false, Deno.build.os === "windows" ? signal : "SIGKILL"]);
    connection.close();
  });
}

Deno.test("Session.unref(): a process without unref ends when the peer ends the session", async () => {
  const { status, connection } = await idle();
  await connection.closeWrite();
  assertEquals((await status).success, true);
  connection.close();
});

Deno.test("Session.unref(): ref() and unref() are passed on to the connection", () => {
  const [near] = memoryPair();
  const calls: string[] = [];
  const session = Session.client(
    Object.assign(near, { ref: () => void calls.push("ref"), unref: () => void calls.push("unref") }),
  );
  session.unref();
  session.unref();
  session.ref();
  assertEquals(calls, ["unref", "unref", "ref"]);
  session.abort();
});

Deno.test("Session calls setNoDelay(true) of its connection: a frame must not wait for an acknowledgement of TCP", () => {
  const [near] = memoryPair();
  const calls: unknown[] = [];
  const session = Session.client(Object.assign(near, { setNoDelay: (on?: boolean) => void calls.push(on) }));
  assertEquals(calls, [true]);
  session.abort();
});

Deno.test("Session.unref(): ref() and unref() apply to the timer of the session, for transports without them", () => {
  const { setTimer, clearTimer } = clock;
  let isRef: boolean | undefined;
  clock.setTimer = () => {
    isRef = true;
    return { ref: () => isRef = true, unref: () => isRef = false } as unknown as Timer;
  };
  clock.clearTimer = () => {};
  try {
    const [near] = memoryPair();
    const session = Session.client(near);
    const seen = [isRef];
    for (const call of ["unref", "ref", "unref"] as const) {
      session[call]();
      seen.push(isRef);
    }
    assertEquals(seen, [true, false, true, false]);
    session.abort();
  } finally {
    Object.assign(clock, { setTimer, clearTimer });
  }
});

const LONGEST = pattern(MAX_PAYLOAD_LENGTH);
// This many refused streams, or small frames of data for unknown streams, use up the budget.
const REFUSALS = FLOOD_BUDGET / REFUSAL_COST;

/**
 * Counts the sleeps of sessions until disposed. Call `memoryPair()` before, since it replaces the same method. The clock
 * stands still, so that no sleep is for an expired time slice.
 */
function countSleeps() {
  const { sleep, now } = clock;
  const sleeps = { count: 0, [Symbol.dispose]: () => void Object.assign(clock, { sleep, now }) };
  const stopped = now();
  clock.now = () => stopped;
  clock.sleep = (run, milliseconds) => {
    sleeps.count++;
    return sleep(run, milliseconds);
  };
  return sleeps;
}

Deno.test("flood: a session that ends during a read with flood frames does not pause", async () => {
  const [near, far] = memoryPair();
  using sleeps = countSleeps();
  const session = Session.server(near, { version: 1 });
  await writeAll(far, frame(1, SYN, 3));
  const stream = await session.acceptStream();
  const reading = stream.read(new Uint8Array(8192)).then(() => session.abort());
  const flood = Array.from({ length: 100 }, () => frame(1, PSH, 99));
  await writeAll(far, concat([frame(1, PSH, 3, pattern(4200)), ...flood]));
  await reading;
  await assertRejects(() => session.closed);
  await turn();
  assertEquals(sleeps.count, 0);
});

Deno.test("flood: opening and ending streams without data pauses the peer, with data it does not", async () => {
  const enough = FLOOD_BUDGET / EMPTY_STREAM_COST;
  for (const data of [[], [Uint8Array.of(1)]]) {
    const [near, far] = memoryPair(1 << 20);
    using sleeps = countSleeps();
    const session = Session.server(near, { version: 1, acceptBacklog: 1000 });
    const streams = Array.from({ length: 2 * enough }, (_, n) => {
      const id = 3 + 2 * n;
      return concat([frame(1, SYN, id), ...data.map((bytes) => frame(1, PSH, id, bytes)), frame(1, FIN, id)]);
    });
    await writeAll(far, concat(streams.slice(0, enough)));
    while (session.stats().accepted < enough) await turn();
    await writeAll(far, concat(streams.slice(enough)));
    while (session.stats().accepted < 2 * enough) await turn();
    assertEquals(sleeps.count, data.length === 0 ? 2 : 0);
    session.abort();
  }
});

for (
  const [took, expected, isEnded] of [
    [SHORT_PAUSE_MS, [PAUSE_MS], false],
    [10, [PAUSE_MS, 20], false],
    [100, [PAUSE_MS, MAX_PAUSE_MS], false],
    [100, [PAUSE_MS], true],
  ] as const
) {
  const then = isEnded ? ", and the end of the session cancels the second pause" : "";
  Deno.test(`flood: with pauses that take ${took} ms, the peer is paused for ${expected.join(" ms, then ")} ms${then}`, async () => {
    const [near, far] = memoryPair();
    using _ = countSleeps();
    const sleeps: number[] = [];
    let now = clock.now();
    clock.now = () => now;
    clock.sleep = (run, milliseconds) => {
      sleeps.push(milliseconds);
      now += took;
      setImmediate().then(run);
      if (isEnded) session.abort();
      return undefined;
    };
    const session = Session.server(near, { version: 1 });
    await writeAll(far, concat(Array.from({ length: REFUSALS }, () => frame(1, PSH, 99))));
    await turn(10);
    assertEquals(sleeps, [...expected]);
    session.abort();
    await assertRejects(() => session.closed);
  });
}

Deno.test("flood: late data for a stream closed locally causes no pause up to 256 KiB", async () => {
  for (const closed of [0, 2]) {
    const [near, far] = memoryPair();
    using sleeps = countSleeps();
    const session = Session.server(near);
    const streams = Array.from({ length: closed }, async () => (await session.acceptStream()).close());
    for (let n = 0; n < closed; n++) await writeAll(far, frame(1, SYN, 3 + 2 * n));
    await Promise.all(streams);
    // One window for each closed stream, in frames of 128 bytes.
    const late = frame(1, PSH, 3, pattern(128 - HEADER_LENGTH));
    const count = closed * INITIAL_WINDOW / late.length;
    await writeAll(far, repeat(late, count));
    for (let n = 0; n < 10; n++) await turn();
    assertEquals([session.stats().bytesReceived, sleeps.count], [closed * HEADER_LENGTH + count * late.length, 0]);
    await writeAll(far, repeat(late, REFUSALS));
    for (let n = 0; n < 10; n++) await turn();
    assertEquals(sleeps.count, 1);
    session.abort();
    await assertRejects(() => session.closed);
  }
});

Deno.test("flood: data for a stream that the peer has aborted pauses it, before and after the stream leaves the table", async () => {
  for (const hasLeft of [false, true]) {
    const [near, far] = memoryPair();
    using sleeps = countSleeps();
    const session = Session.server(near, { version: 1 });
    await writeAll(far, frame(1, SYN, 3));
    const stream = await session.acceptStream();
    await writeAll(far, concat([frame(1, NOP, 3), frame(1, NOP, complement(3))]));
    await turn();
    if (hasLeft) await assertRejects(() => stream.read(new Uint8Array(1)), StreamResetError);
    assertEquals([session.stats().streams, sleeps.count], [hasLeft ? 0 : 1, 0]);
    await writeAll(far, repeat(frame(1, PSH, 3, pattern(1)), REFUSALS));
    for (let n = 0; n < 10; n++) await turn();
    assertEquals(sleeps.count, 1);
    session.abort();
  }
});

for (
  const [what, enough, make] of [
    ["refused streams", REFUSALS, (n: number) => frame(1, SYN, 5 + 2 * n)],
    ["data frames for unknown streams", REFUSALS, (n: number) => frame(1, PSH, 5 + 2 * n, pattern(1))],
    ["frames of 65 535 bytes for unknown streams", 8, (n: number) => frame(1, PSH, 5 + 2 * n, LONGEST)],
    ["frames of 65 535 bytes for a stream after its FIN", 8, () => frame(1, PSH, 3, LONGEST)],
    ["NOPs", FLOOD_BUDGET, () => frame(1, NOP, 0)],
    ["FINs for unknown streams", FLOOD_BUDGET, (n: number) => frame(1, FIN, 5 + 2 * n)],
    ["FINs for a stream after its FIN", FLOOD_BUDGET, () => frame(1, FIN, 3)],
    ["SYNs for an open stream", FLOOD_BUDGET, () => frame(1, SYN, 3)],
    ["frames without data", FLOOD_BUDGET, () => frame(1, PSH, 1)],
    ["UPDs for an open stream", FLOOD_BUDGET, () => updateFrame(3, 0, 1000)],
    ["UPDs for unknown streams", FLOOD_BUDGET, (n: number) => updateFrame(5 + 2 * n, 0, 1000)],
  ] as const
) {
  Deno.test(`flood: ${enough} ${what} pause the peer, ${enough - 1} do not, in one read or in many`, async () => {
    for (const isOneRead of [true, false]) {
      for (const [count, expected] of [[enough - 1, 0], [enough, 1]] as const) {
        const [near, far] = memoryPair();
        using sleeps = countSleeps();
        const session = Session.server(near, { maxStreams: 2 });
        const version = make(0)[0] as Version;
        const used = [frame(version, PSH, 3, Uint8Array.of(1)), frame(version, FIN, 3)];
        await writeAll(far, concat([frame(version, SYN, 1), frame(version, SYN, 3), ...used]));
        await session.acceptStream();
        const frames = Array.from({ length: count }, (_, n) => make(n));
        const inOne = isOneRead ? count : Math.ceil(enough / 64);
        for (let at = 0; at < count; at += inOne) {
          const bytes = concat(frames.slice(at, at + inOne));
          const before = session.stats().bytesReceived;
          await writeAll(far, bytes);
          while (session.stats().bytesReceived < before + bytes.length) await turn();
          await turn();
        }
        assertEquals(sleeps.count, expected);
        session.abort();
        await assertRejects(() => session.closed);
      }
    }
  });
}

/** Counts yields to the event loop, which take no time. */
function countYields(): () => number {
  let yields = 0;
  clock.yieldToEventLoop = () => Promise.resolve(yields++);
  return () => yields;
}

Deno.test("Session yields every 2 ms while its transport always has data to read", async () => {
  using time = new ManualClock();
  const yields = countYields();
  const data = concat([frame(1, SYN, 3), repeat(frame(1, PSH, 3, pattern(32_768)), 100)]);
  let at = 0;
  let reads = 0;
  const session = Session.server({
    read(p) {
      time.freeze(1);
      if (at === data.length) return Promise.resolve(null);
      reads++;
      const part = data.subarray(at, at + p.length);
      p.set(part);
      at += part.length;
      return Promise.resolve(part.length);
    },
    write: (p) => Promise.resolve(p.length),
    close() {},
  });
  await session.closed;
  assertGreater(reads, 50);
  assertGreaterOrEqual(yields(), Math.floor(reads / 2));
});

Deno.test("Session yields every 2 ms while its transport always has room to write", async () => {
  using time = new ManualClock();
  const yields = countYields();
  let writes = 0;
  const session = Session.client({
    read: () => new Promise<null>(() => {}),
    write(p) {
      time.freeze(1);
      writes++;
      return Promise.resolve(p.length);
    },
    close() {},
  }, { version: 1 });
  const stream = await session.openStream();
  const before = writes;
  await stream.write(pattern(8 * MiB));
  assertGreater(writes - before, 20);
  assertGreaterOrEqual(yields(), Math.floor((writes - before) / 2) - 1);
  session.abort();
  await assertRejects(() => session.closed);
});

/** A server whose transport has endless frames of this size for each stream, after a call of `begin`. */
function withEndlessTransport(ids: number[], size = 8000) {
  const concatenated = concat(ids.map((id) => frame(1, PSH, id, pattern(size))));
  const { promise, resolve } = Promise.withResolvers<void>();
  const counts = { reads: 0 };
  const session = Session.server({
    async read(p) {
      const part = counts.reads++ === 0 ? concat(ids.map((id) => frame(1, SYN, id))) : concatenated;
      if (part === concatenated) await promise;
      p.set(part);
      return part.length;
    },
    write: (p) => Promise.resolve(p.length),
    close() {},
  }, { version: 1, maxReceiveBuffer: 100_000 });
  return { session, begin: resolve, counts };
}

Deno.test("Session reads again when each served reader reads again, whatever number of microtasks that takes", async () => {
  for (const spent of [0, 1, 10, 16, 32, 100]) {
    // The first read buffer holds 8 KiB.
    const { session, begin, counts } = withEndlessTransport([3]);
    const stream = await session.acceptStream();
    const p = new Uint8Array(8000);
    const reading = stream.read(p);
    begin();
    await reading;
    for (let times = 0; times < 20; times++) {
      const { reads } = counts;
      await microtasks(spent);
      assertEquals(counts.reads, reads, `${spent} microtasks`);
      assertEquals(session.stats().bytesUnread, 0);
      assertEquals(await stream.read(p), 8000);
    }
    session.abort();
  }
});

Deno.test("Session decodes the next read when the slowest of several readers reads again, whatever number of microtasks that takes", async () => {
  for (const spent of [1, 10, 32, 100]) {
    const { session, begin } = withEndlessTransport([3, 5], 3000);
    const streams = [await session.acceptStream(), await session.acceptStream()];
    const readers = streams.map(async (stream, n) => {
      const p = new Uint8Array(3000);
      for (let times = 0; times < 20; times++) {
        assertEquals(await stream.read(p), 3000);
        if (n === 1) await microtasks(spent);
        assertEquals(session.stats().bytesUnread, 0, `${spent} microtasks`);
      }
    });
    begin();
    await Promise.all(readers);
    session.abort();
  }
});

Deno.test("Session waits one pass of the event loop for a served reader that does not read again", async () => {
  // The clock stands still, so that the time slice does not end and add a pass.
  using _clock = new ManualClock();
  const { session, begin, counts } = withEndlessTransport([3]);
  const stream = await session.acceptStream();
  const reading = stream.read(new Uint8Array(8000));
  begin();
  await reading;
  const { reads } = counts;
  await turn(1);
  assertGreater(counts.reads, reads);
  while (!session.stats().readPaused) await turn(1);
  assertGreaterOrEqual(session.stats().bytesUnread, 100_000);
  session.abort();
});

Deno.test("Session sends data while reading is paused at maxReceiveBuffer", async () => {
  const [near, far] = memoryPair(1 << 20);
  const session = Session.server(near, { version: 1, maxReceiveBuffer: 5000, maxStreamBuffer: 5000 });
  await writeAll(far, concat([frame(1, SYN, 3), frame(1, SYN, 5)]));
  const [_unread, asked] = [await session.acceptStream(), await session.acceptStream()];
  const answering = asked.read(new Uint8Array(10)).then(() => asked.write(Uint8Array.of(1, 2, 3)));
  await turn();
  await writeAll(far, concat([frame(1, PSH, 5, Uint8Array.of(1)), frame(1, PSH, 3, pattern(6000))]));
  await answering;
  const answer = frame(1, PSH, 5, Uint8Array.of(1, 2, 3));
  const p = new Uint8Array(100);
  assertEquals(p.subarray(0, await deadline(far.read(p), 5000) ?? 0), answer);
  while (!session.stats().readPaused) await turn(1);
  session.abort();
});

Deno.test("Session.close() sends the SYN of an open that waits for room before the FIN of its stream", async () => {
  for (const version of [1, 2] as const) {
    const [near, far] = memoryPair(100);
    const session = Session.client(near, { version });
    const peer = new RawPeer(far, version);
    const streams = [await session.openStream(), await session.openStream(), await session.openStream()];
    const writing = streams.map((stream) => stream.write(pattern(200_000)));
    await turn();
    const opening = session.openStream();
    await turn();
    const closing = session.close();
    const seen: string[] = [];
    for (let frame = await peer.next(); frame !== null; frame = await peer.next()) {
      if (frame.id === 9) seen.push(frame.command === SYN ? "SYN" : frame.command === FIN ? "FIN" : `${frame.command}`);
    }
    assertEquals(seen, ["SYN", "FIN"]);
    assertEquals((await opening).id, 9);
    far.close();
    await closing;
    await Promise.allSettled(writing);
  }
});
