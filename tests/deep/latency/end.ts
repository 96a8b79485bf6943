/**
 * One end of a connection over the link: `end.ts client|server PEER PLAN`, told and heard as that of `bench/peers`.
 *
 * @module
 */

import { delay } from "@std/async";
import { Buffer } from "node:buffer";
import { Session } from "../../../mod.ts";
import { endWithInput, report } from "../../measured.ts";

/** The ends of a connection: the client opens it. */
export type Role = "client" | "server";

/** What both ends do; as JSON, in Go too. */
export interface Plan {
  /** Round trips of one byte to measure; with any, there is nothing else to do. */
  pings: number;
  /** Which end sends. */
  sender: Role;
  /** How many streams carry data. */
  streams: number;
  /** How many beside them are filled and never read. */
  unread: number;
  /** Milliseconds from the first byte on for which samples are taken. */
  time: number;
  /** Where the client connects. */
  port: number;
}

/** What one end has to say; a line of JSON. */
export interface Result {
  /** Bytes sent or received on the streams that carry data. */
  bytes?: number;
  /** The receiver's: milliseconds since the first byte, and bytes by then. */
  samples?: [number, number][];
  /** The receiver's: bytes that nobody has read. */
  unread?: number;
  /** Milliseconds of each round trip. */
  trips?: number[];
  /** What went wrong. */
  error?: string;
}

// Senders go on for so long after the last sample, in milliseconds.
const SLACK = 300;
const SAMPLE_EVERY = 10;
const WRITE_SIZE = 64 * 1024;
// More than any peer has credit for at the start.
const FILL_SIZE = 16 * 1024 * 1024;
// What a stream carries repeats after so many bytes, a prime, and each stream begins at another place of it.
const PERIOD = 262_147;
const STEP = 2617;

const now = () => performance.now();

const pattern = new Uint8Array(PERIOD + WRITE_SIZE);
for (let at = 0, word = 1; at < PERIOD; at++) {
  word = Math.imul(word, 1664525) + 1013904223;
  pattern[at] = word >>> 24;
}
pattern.copyWithin(PERIOD, 0, WRITE_SIZE);

/** The `count` bytes that belong at this position of stream `n`. */
function expected(n: number, position: number, count: number): Uint8Array {
  const start = (n * STEP + position) % PERIOD;
  return pattern.subarray(start, start + count);
}

/** The streams of one connection, which may be bare sockets. */
interface Line {
  pipes: Deno.Conn[];
  session?: Session | undefined;
}

const versionOf = (peer: string) => peer === "ours1" ? 1 : 2;

async function open(peer: string, count: number, port: number): Promise<Line> {
  const conn = await Deno.connect({ hostname: "127.0.0.1", port });
  conn.setNoDelay();
  if (peer === "bare") return { pipes: [conn] };
  const session = Session.client(conn, { version: versionOf(peer) });
  const pipes = [];
  while (pipes.length < count) pipes.push(await session.openStream());
  return { pipes, session };
}

async function accept(peer: string, count: number): Promise<Line> {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  console.log(listener.addr.port);
  const conn = await listener.accept();
  conn.setNoDelay();
  if (peer === "bare") return { pipes: [conn] };
  const session = Session.server(conn, { version: versionOf(peer) });
  const pipes = [];
  while (pipes.length < count) pipes.push(await session.acceptStream());
  return { pipes, session };
}

async function send(pipes: Deno.Conn[], time: number): Promise<Result> {
  let isOver = false;
  setTimeout(() => isOver = true, time + SLACK);
  const counts = await Promise.all(pipes.map(async (pipe, n) => {
    let bytes = 0;
    while (!isOver) bytes += await pipe.write(expected(n, bytes, WRITE_SIZE));
    await pipe.closeWrite();
    return bytes;
  }));
  return { bytes: counts.reduce((sum, count) => sum + count) };
}

async function drain({ pipes, session }: Line, time: number): Promise<Result> {
  const samples: [number, number][] = [];
  let bytes = 0;
  let unread = 0;
  const begin = () => {
    const start = now();
    samples.push([0, bytes]);
    const timer = setInterval(() => {
      samples.push([now() - start, bytes]);
      if (now() - start < time) return;
      clearInterval(timer);
      unread = session?.stats().bytesUnread ?? 0;
    }, SAMPLE_EVERY);
  };
  await Promise.all(pipes.map(async (pipe, n) => {
    const p = new Uint8Array(WRITE_SIZE);
    for (let position = 0;;) {
      const count = await pipe.read(p);
      if (count === null) return;
      if (Buffer.compare(p.subarray(0, count), expected(n, position, count)) !== 0) {
        throw new Error(`stream ${n} carried wrong data between ${position} and ${position + count}`);
      }
      position += count;
      bytes += count;
      if (samples.length === 0) begin();
    }
  }));
  return { bytes, samples, unread };
}

async function ping(pipe: Deno.Conn, count: number): Promise<Result> {
  const p = new Uint8Array(1);
  const trips = [];
  while (trips.length < count) {
    const start = now();
    await pipe.write(p);
    if (await pipe.read(p) === null) throw new Error("the end came before the answer");
    trips.push(now() - start);
    // What has just been awake answers sooner than what slept.
    await delay(SAMPLE_EVERY);
  }
  return { trips };
}

async function echo(pipe: Deno.Conn): Promise<Result> {
  await pipe.readable.pipeTo(pipe.writable);
  return {};
}

async function run(role: Role, peer: string, plan: Plan): Promise<Result> {
  const count = plan.unread + plan.streams;
  const { pipes, session } = await (role === "client" ? open(peer, count, plan.port) : accept(peer, count));
  if (plan.pings > 0) return await (role === "client" ? ping(pipes[0]!, plan.pings) : echo(pipes[0]!));
  const busy = pipes.splice(plan.unread);
  if (role !== plan.sender) return await drain({ pipes: busy, session }, plan.time);
  // They wait for credit until the process ends.
  for (const pipe of pipes) pipe.write(new Uint8Array(FILL_SIZE)).catch(() => {});
  return await send(busy, plan.time);
}

const [role, peer, json] = Deno.args;
if ((role !== "client" && role !== "server") || peer === undefined || json === undefined) {
  throw new TypeError(`end.ts client|server PEER PLAN, not ${Deno.args}`);
}
endWithInput();
try {
  report(await run(role, peer, JSON.parse(json)));
} catch (error) {
  report({ error: `${role}: ${error}` });
}
