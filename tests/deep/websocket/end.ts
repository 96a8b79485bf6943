/**
 * One end of a measurement. `server KIND` prints its port; `client KIND JOB PORT` prints a result as JSON.
 *
 * KIND is `bare` (a WebSocket without a session), or `tcp`, `ws` or `stream` (the client has a `WebSocketStream`) followed
 * by the version (`ws2`). JOB is `bulk`, `echo` or `stall`.
 *
 * @module
 */

import { serve, Session, type Stream, type Version } from "../../../mod.ts";
import { connectWebSocket, upgradeWebSocket } from "../../../websocket.ts";
import { median } from "../../stats.ts";
import { LOOPBACK } from "../../support.ts";

const CHUNK = 64 * 1024;
// Bytes of a bulk transfer, and of the stream beside the stalled one.
const BULK = 500_000_000;
const BESIDE = 200_000_000;
// Size in bytes of the echoed messages.
const PING = 64;
// Number of those that are measured early and late. V8 compiles the functions of a session with its last compiler after
// 16 000 to 18 000 round trips.
const PINGS = 10_000;
const EARLY = 3000;
const LATE = 25_000;
// Maximum of queued bytes on the bare WebSocket; equal to that of a session.
const QUEUED = 512 * 1024;
// Maximum of bytes written to the stalled stream.
const STALLED = 1_000_000_000;
const [role, kind, job, port] = Deno.args as [string, string, string | undefined, string | undefined];

const megabytesPerSecond = (bytes: number, since: number) => bytes / 1000 / (performance.now() - since);
const turn = () => new Promise((resolve) => setImmediate(resolve));

/** Samples the resident memory every 10 ms; `peak` is the maximum in MB. */
function watchMemory(): { peak: number } {
  const memory = { peak: 0 };
  const look = () => memory.peak = Math.max(memory.peak, Deno.memoryUsage().rss / 1e6);
  look();
  Deno.unrefTimer(setInterval(look, 10) as unknown as number);
  return memory;
}

/** Serves a stream. Its first byte is the job: `e` echoes, `s` is not read, `b` is read to its end. */
async function answer(stream: Stream): Promise<void> {
  const p = new Uint8Array(CHUNK);
  await stream.read(p.subarray(0, 1));
  if (p[0] === "e".charCodeAt(0)) return await echo(stream);
  if (p[0] === "s".charCodeAt(0)) return await stream.closed;
  let count = 0;
  const since = performance.now();
  for (let read; (read = await stream.read(p)) !== null;) count += read;
  await stream.write(new TextEncoder().encode(`${megabytesPerSecond(count, since)} ${memory.peak}`));
}

async function echo(stream: Stream): Promise<void> {
  const p = new Uint8Array(CHUNK);
  for (let count; (count = await stream.read(p)) !== null;) await stream.write(p.subarray(0, count));
}

function answerBare(request: Request): Response {
  const { socket, response } = Deno.upgradeWebSocket(request);
  socket.binaryType = "arraybuffer";
  let count = 0;
  let since = 0;
  socket.onmessage = ({ data }: MessageEvent<ArrayBuffer>) => {
    if (data.byteLength === PING) return socket.send(data);
    if (count === 0) since = performance.now();
    count += data.byteLength;
    if (count >= BULK) socket.send(`${megabytesPerSecond(count, since)}`);
  };
  return response;
}

function startServer(): void {
  const options = {
    stalledStreamTimeout: Infinity,
    // An unread stream ends its session in version 1.
    onError() {},
  };
  if (kind.startsWith("tcp")) {
    const listener = Deno.listen(LOOPBACK);
    serve(listener, answer, options);
    return console.log(listener.addr.port);
  }
  Deno.serve(
    { ...LOOPBACK, onListen: ({ port }) => console.log(port) },
    (request) => kind === "bare" ? answerBare(request) : upgradeWebSocket(request, answer, options),
  );
}

async function connect(): Promise<Session> {
  const version = Number(kind.at(-1)) as Version;
  const url = `ws://127.0.0.1:${port}/`;
  if (kind.startsWith("ws")) return await connectWebSocket(url, { version });
  // Its type allows for text, which the server does not send.
  if (kind.startsWith("stream")) return Session.client(await new WebSocketStream(url).opened as never, { version });
  return Session.client(await Deno.connect({ ...LOOPBACK, port: Number(port) }), { version });
}

async function open(session: Session, job: string): Promise<Stream> {
  const stream = await session.openStream();
  await stream.write(new TextEncoder().encode(job));
  return stream;
}

async function runBulk(stream: Stream, bytes: number): Promise<number[]> {
  const p = new Uint8Array(CHUNK);
  for (let sent = 0; sent < bytes; sent += p.length) await stream.write(p);
  await stream.closeWrite();
  return (await new Response(stream.readable).text()).split(" ").map(Number);
}

/** Returns the median round trips in microseconds, early and late, of messages sent one after the other. */
async function measureEcho(send: (p: Uint8Array<ArrayBuffer>) => Promise<unknown>) {
  const times: number[] = [];
  for (let n = 0; n < LATE + PINGS; n++) {
    const since = performance.now();
    await send(new Uint8Array(PING));
    times.push((performance.now() - since) * 1000);
  }
  const [early, late] = [EARLY, LATE].map((first) => median(times.slice(first, first + PINGS)));
  return { early, late };
}

/** Writes to a stream that the peer does not read, and at the same time to another stream that it reads. */
async function runStall(session: Session) {
  const stalled = await open(session, "s");
  let written = 0;
  const writing = (async () => {
    for (const p = new Uint8Array(CHUNK); written < STALLED; written += p.length) await stalled.write(p);
  })();
  const ended = writing.then(() => "all was written", (error) => `${error.cause ?? error}`);
  const beside = open(session, "b").then((stream) => runBulk(stream, BESIDE)).catch(() => undefined);
  const figures = await beside;
  session.abort();
  return { written: written / 1e6, ended: figures === undefined ? await ended : undefined, beside: figures };
}

async function runBare(): Promise<unknown> {
  const socket = new WebSocket(`ws://127.0.0.1:${port}/`);
  socket.binaryType = "arraybuffer";
  let received = (_: unknown) => {};
  socket.onmessage = ({ data }) => received(data);
  await new Promise((resolve) => socket.onopen = resolve);
  const next = () => new Promise((resolve) => received = resolve);
  if (job === "echo") {
    return await measureEcho((p) => {
      socket.send(p);
      return next();
    });
  }
  const result = next();
  const p = new Uint8Array(CHUNK);
  for (let sent = 0; sent < BULK; sent += p.length) {
    socket.send(p);
    while (socket.bufferedAmount > QUEUED) await turn();
  }
  return { bulk: Number(await result) };
}

async function runClient(): Promise<unknown> {
  if (kind === "bare") return await runBare();
  const session = await connect();
  if (job === "stall") return { ...await runStall(session), resident: memory.peak };
  if (job === "bulk") return { bulk: (await runBulk(await open(session, "b"), BULK))[0] };
  const stream = await open(session, "e");
  const p = new Uint8Array(PING);
  return await measureEcho(async (sent) => {
    await stream.write(sent);
    for (let at = 0; at < PING;) at += (await stream.read(p.subarray(at)))!;
  });
}

const memory = watchMemory();
if (role === "server") {
  startServer();
} else {
  console.log(JSON.stringify(await runClient()));
  Deno.exit();
}
