/**
 * One end of a connection over a link: `end.ts client|server PEER PLAN`, started and read by `ends.ts`.
 *
 * @module
 */

import { delay } from "@std/async";
import { Buffer } from "node:buffer";
import { Session } from "../../../mod.ts";
import { endWithInput, report } from "../../measured.ts";

/** The role of an end; the client opens the connection. */
export type Role = "client" | "server";

/** The work of both ends; `peer.go` reads the same JSON. */
export interface Plan {
  /** Size of the client's sequential echoes on a stream of their own; 0 for no echoes. Not in Go's server. */
  echo: number;
  /** The end that sends. */
  sender: Role;
  /** Number of streams that carry data. */
  streams: number;
  /** Number of additional streams that are filled and never read. */
  unread: number;
  /** If set, one stream carries data alone before the others are opened, then ends or idles; not in Go. */
  ahead?: "ends" | "idles";
  /** Duration of the echoes, and of the samples from the first byte on, in milliseconds. */
  time: number;
  /** Host name on which the server listens. */
  hostname: string;
  /** Port to which the client connects. */
  port: number;
}

/** The report of one end, a line of JSON. */
export interface Result {
  /** Bytes sent or received on the streams that carry data. */
  bytes?: number;
  /** Receiver: milliseconds since the first byte, and bytes received by then. */
  samples?: [number, number][];
  /** Receiver: bytes received and not read. */
  unread?: number;
  /** Client: for each request, milliseconds since the first request, and milliseconds until its answer. */
  echoes?: [number, number][];
  /** The failure. */
  error?: string;
}

// Time for which senders continue after the last sample, in milliseconds.
const SLACK = 300;
const SAMPLE_EVERY = 10;
// The stream of `Plan.ahead` sends for AHEAD milliseconds; if it then idles, nothing is sent for QUIET milliseconds.
const AHEAD = 4000;
const QUIET = 500;
const WRITE_SIZE = 64 * 1024;
// Larger than any peer's initial credit.
const FILL_SIZE = 16 * 1024 * 1024;
// The data of a stream repeats after this prime number of bytes; stream `n` starts at offset `n * STEP`.
const PERIOD = 262_147;
const STEP = 2617;

const now = () => performance.now();

const pattern = new Uint8Array(PERIOD + WRITE_SIZE);
for (let at = 0, word = 1; at < PERIOD; at++) {
  word = Math.imul(word, 1664525) + 1013904223;
  pattern[at] = word >>> 24;
}
pattern.copyWithin(PERIOD, 0, WRITE_SIZE);

/** Returns the expected `count` bytes at this position of stream `n`. */
function expected(n: number, position: number, count: number): Uint8Array {
  const start = (n * STEP + position) % PERIOD;
  return pattern.subarray(start, start + count);
}

function compare(n: number, position: number, p: Uint8Array): void {
  if (Buffer.compare(p, expected(n, position, p.length)) === 0) return;
  throw new Error(`stream ${n} carried wrong data between ${position} and ${position + p.length}`);
}

/** A connection; with bare sockets, one connection for each stream. */
interface Line {
  session?: Session;
  /** Opens or accepts the next stream. */
  next(): Promise<Deno.Conn>;
}

async function connect(role: Role, peer: string, { hostname, port }: Plan): Promise<Line> {
  let next: () => Promise<Deno.TcpConn>;
  if (role === "client") {
    next = () => Deno.connect({ hostname, port });
  } else {
    const listener = Deno.listen({ hostname, port: 0 });
    console.log(listener.addr.port);
    next = () => listener.accept();
  }
  const socket = async () => {
    const conn = await next();
    conn.setNoDelay();
    return conn;
  };
  if (peer === "bare") return { next: socket };
  const version = peer === "ours1" ? 1 : 2;
  if (role === "client") {
    const session = Session.client(await socket(), { version });
    return { session, next: () => session.openStream() };
  }
  const session = Session.server(await socket(), { version });
  return { session, next: () => session.acceptStream() };
}

async function several(count: number, { next }: Line): Promise<Deno.Conn[]> {
  const pipes = [];
  while (pipes.length < count) pipes.push(await next());
  return pipes;
}

const sum = (counts: number[]) => counts.reduce((sum, count) => sum + count, 0);

/** Sends the data of stream `n` for `time` milliseconds; returns the number of bytes. */
async function fill(pipe: Deno.Conn, n: number, time: number): Promise<number> {
  let isOver = false;
  setTimeout(() => isOver = true, time);
  let bytes = 0;
  while (!isOver) bytes += await pipe.write(expected(n, bytes, WRITE_SIZE));
  return bytes;
}

/** Reads and checks stream `n` to its end, then half-closes it; returns the number of bytes. */
async function drain(pipe: Deno.Conn, n: number, onBytes?: (count: number) => void): Promise<number> {
  const p = new Uint8Array(WRITE_SIZE);
  for (let position = 0;;) {
    const count = await pipe.read(p);
    if (count === null) {
      await pipe.closeWrite();
      return position;
    }
    compare(n, position, p.subarray(0, count));
    position += count;
    onBytes?.(count);
  }
}

async function send(line: Line, plan: Plan): Promise<Result> {
  const unread = await several(plan.unread, line);
  // These writes wait for credit until the process ends.
  for (const pipe of unread) pipe.write(new Uint8Array(FILL_SIZE)).catch(() => {});
  const first = plan.ahead && await line.next();
  let ahead = 0;
  if (first !== undefined) {
    ahead = await fill(first, plan.streams, AHEAD);
    if (plan.ahead === "idles") {
      await delay(QUIET);
    } else {
      await first.closeWrite();
      if (await first.read(new Uint8Array(1)) !== null) throw new Error("received data on the sender's stream");
    }
  }
  const pipes = await several(plan.streams, line);
  const counts = await Promise.all(pipes.map(async (pipe, n) => {
    const bytes = await fill(pipe, n, plan.time + SLACK);
    await pipe.closeWrite();
    return bytes;
  }));
  if (plan.ahead === "idles") await first!.closeWrite();
  return { bytes: ahead + sum(counts) };
}

async function receive(line: Line, plan: Plan): Promise<Result> {
  await several(plan.unread, line);
  const first = plan.ahead && await line.next();
  const samples: [number, number][] = [];
  let bytes = 0;
  let unread = 0;
  const begin = () => {
    const start = now();
    samples.push([0, bytes]);
    const timer = setInterval(() => {
      samples.push([now() - start, bytes]);
      if (now() - start < plan.time) return;
      clearInterval(timer);
      unread = line.session?.stats().bytesUnread ?? 0;
    }, SAMPLE_EVERY);
  };
  const onBytes = (count: number) => {
    bytes += count;
    if (samples.length === 0) begin();
  };
  const busy = async () => {
    const pipes = await several(plan.streams, line);
    return sum(await Promise.all(pipes.map((pipe, n) => drain(pipe, n, onBytes))));
  };
  const counts = await Promise.all([first === undefined ? 0 : drain(first, plan.streams), busy()]);
  return { bytes: sum(counts), samples, unread };
}

/** Requests echoes one after the other, and adds their times to `echoes`. */
async function ask(pipe: Deno.Conn, { echo: size, time }: Plan, echoes: [number, number][]): Promise<void> {
  const p = new Uint8Array(size);
  const start = now();
  for (let position = 0, at = 0; at < time; position += size, at = now() - start) {
    for (let sent = 0; sent < size;) sent += await pipe.write(expected(0, position + sent, size - sent));
    for (let got = 0; got < size;) {
      const count = await pipe.read(p.subarray(got));
      if (count === null) throw new Error("the stream ended before the answer");
      got += count;
    }
    compare(0, position, p);
    echoes.push([at, now() - start - at]);
    // Pause so that every request meets an idle process, which answers later than a busy one.
    await delay(SAMPLE_EVERY);
  }
  await pipe.closeWrite();
}

async function run(role: Role, peer: string, plan: Plan): Promise<Result> {
  const line = await connect(role, peer, plan);
  const echoes: [number, number][] = [];
  let echoing = Promise.resolve();
  if (plan.echo > 0) {
    const pipe = await line.next();
    echoing = role === "client" ? ask(pipe, plan, echoes) : pipe.readable.pipeTo(pipe.writable);
  }
  const [result] = await Promise.all([role === plan.sender ? send(line, plan) : receive(line, plan), echoing]);
  return { ...result, echoes };
}

const [role, peer, json] = Deno.args;
if ((role !== "client" && role !== "server") || peer === undefined || json === undefined) {
  throw new TypeError(`expected end.ts client|server PEER PLAN, received ${Deno.args}`);
}
endWithInput();
try {
  report(await run(role, peer, JSON.parse(json)));
} catch (error) {
  report({ error: `${role}: ${error}` });
}
