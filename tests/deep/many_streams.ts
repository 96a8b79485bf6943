/**
 * Holds a hundred thousand streams open between two processes, on one session or on a thousand, and measures their
 * memory.
 *
 * The streams are opened and left idle; then each must answer. On the server, a handler reads from each stream.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { delay, pooledMap } from "@std/async";
import { buildGoPeers, cell } from "../../bench/peers/cell.ts";
import { Session, SessionClosedError, type Stream } from "../../mod.ts";
import { report, usedMemory } from "../measured.ts";
import { lines, makeFolder } from "../programs.ts";
import { readExactly } from "../support.ts";
import { integer, parse } from "./shared/options.ts";
import { program } from "./shared/program.ts";

/** One line for the list of long tests. */
export const description =
  "Memory of 100 000 idle streams on 1 session, and of 100 on each of 1000: [--streams 100000]";

const VERSIONS = [1, 2] as const;
const SESSIONS = [1, 1000];
const SIZE = 8;
// Maximum heap bytes of an idle stream, and maximum resident bytes of an idle session.
const STREAM_BOUND = 2048;
const SESSION_BOUND = 64 * 1024;
// Concurrent exchanges.
const PARALLEL = 1000;
// Timeout of a cell, in milliseconds; a cell of a thousand sessions takes half a minute.
const PATIENCE = 120_000;

/** The sessions between two processes, and the streams of each session. */
interface Cell {
  version: 1 | 2;
  sessions: number;
  streams: number;
}

/** Memory in bytes. */
interface Usage {
  resident: number;
  heap: number;
}

/** Memory per session without streams, per idle stream, and per stream that has answered and has a pending read. */
interface Costs {
  session: Usage;
  idle: Usage;
  answered: Usage;
  /** On the server, per idle stream with a pending read. */
  server: Usage;
}

/** Runs the cells; rejects if a stream does not answer, or if memory exceeds its bound. */
export async function run(args: string[]): Promise<void> {
  if (args[0] === "--ask") return await ask(JSON.parse(args[1]!));
  if (args[0] === "--answer") return await answer(args[1] === "1" ? 1 : 2);
  const { streams: all } = parse(args, { streams: integer(100_000, 1000) });
  await using folder = await makeFolder("many-streams");
  const above: string[] = [];
  const go = await buildGoPeers(folder.path);
  if (go === undefined) console.log("Skipping Go: go or its packages are not installed");
  for (const version of VERSIONS) {
    for (const sessions of SESSIONS) {
      const streams = Math.floor(all / sessions);
      const name = `v${version}, ${sessions} x ${streams}`;
      const { session, idle, answered, server } = await measure({ version, sessions, streams });
      console.log(`${name}: all ${sessions * streams} streams answered; each costs, in bytes,`);
      console.log(`  idle             ${show(idle)}`);
      console.log(`  answered         ${show(answered)}`);
      console.log(`  on the server    ${show(server)}`);
      if (sessions > 1) console.log(`  an idle session  ${show(session)}`);
      if (go?.names.includes(`go${version}`)) {
        const plan = { connections: sessions, streams, size: SIZE, eager: false, microtasks: 0, messages: 0 };
        const theirs = await cell(`go${version}`, { kind: "streams", ...plan, ...NO_TIME }, undefined, go);
        // The Go peer reports memory per stream of one session.
        const usage = { resident: theirs.resident! / sessions, heap: theirs.heap! / sessions };
        const among = sessions > 1 ? ", including its share of a session" : "";
        console.log(`  Go's, answered   ${theirs.error ?? show(usage) + among}`);
      }
      if (idle.heap > STREAM_BOUND) above.push(`${name}: ${Math.round(idle.heap)} bytes of heap per idle stream`);
      if (sessions > 1 && session.resident > SESSION_BOUND) {
        above.push(`${name}: ${Math.round(session.resident)} bytes per idle session`);
      }
    }
  }
  const bounds = `${STREAM_BOUND} bytes of heap per stream and ${SESSION_BOUND} bytes per session`;
  if (above.length > 0) throw new Error(`Above ${bounds}: ${above.join("; ")}`);
  console.log(`many_streams: every stream answered, within ${bounds}`);
}

// Fields that a plan for memory does not use.
const NO_TIME = { acceptors: 1, warm: 0, time: 0, port: 0 };

function show({ resident, heap }: Usage): string {
  const text = (value: number) => `${Math.round(value)}`.padStart(7);
  return `${text(resident)} resident, ${text(heap)} in the heap`;
}

async function measure(plan: Cell): Promise<Costs> {
  const { success, stdout } = await start(["--ask", JSON.stringify(plan)], "null").output();
  if (!success) throw new Error(`${JSON.stringify(plan)} failed, or took longer than ${PATIENCE} ms`);
  return JSON.parse(new TextDecoder().decode(stdout));
}

function start(args: string[], stdin: "null" | "piped"): Deno.Command {
  return new Deno.Command(Deno.execPath(), {
    args: program("many_streams", ...args),
    stdin,
    stdout: "piped",
    signal: AbortSignal.timeout(PATIENCE),
  });
}

/** The client: holds the streams, and prints their memory. */
async function ask({ version, sessions, streams }: Cell): Promise<void> {
  const child = start(["--answer", `${version}`], "piped").spawn();
  const writer = child.stdin.getWriter();
  const output = lines(child.stdout).getReader();
  const line = async () => JSON.parse((await output.read()).value ?? "null");
  const serverUsage = async (): Promise<Usage & { streams: number }> => {
    await writer.write(new TextEncoder().encode("\n"));
    return await line();
  };
  const port: number = await line();

  const [before, serverBefore] = [await usage(), await serverUsage()];
  const opened: Session[] = [];
  for (let n = 0; n < sessions; n++) {
    opened.push(Session.client(await Deno.connect({ hostname: "127.0.0.1", port }), { version }));
  }
  const withSessions = await usage();
  const serverSessions = await serverUsage();
  const held: Stream[] = [];
  for (const session of opened) {
    for (let n = 0; n < streams; n++) held.push(await session.openStream());
  }
  while ((await serverUsage()).streams < held.length) await delay(50);
  const [idle, serverIdle] = [await usage(), await serverUsage()];

  const exchange = async (stream: Stream, n: number) => {
    const message = Float64Array.of(n);
    await stream.write(new Uint8Array(message.buffer));
    const answer = await readExactly(stream, SIZE);
    assertEquals(new Float64Array(answer.buffer)[0], n);
    // As in Go's workload, each stream has a pending read.
    stream.read(new Uint8Array(SIZE)).catch(() => {});
  };
  for await (const _ of pooledMap(PARALLEL, held.entries(), ([n, stream]) => exchange(stream, n)));
  const answered = await usage();

  const each = (after: Usage, before: Usage, count: number) => ({
    resident: (after.resident - before.resident) / count,
    heap: (after.heap - before.heap) / count,
  });
  const costs: Costs = {
    session: each(withSessions, before, sessions),
    idle: each(idle, withSessions, held.length),
    answered: each(answered, withSessions, held.length),
    server: each(serverIdle, sessions > 1 ? serverSessions : serverBefore, held.length),
  };
  report(costs);
  for (const session of opened) await session.close();
  await writer.close();
  await child.status;
  await output.cancel();
}

/** The server: echoes on every stream, and prints its memory for each line of input. */
async function answer(version: 1 | 2): Promise<void> {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  let streams = 0;
  const echo = async (stream: Stream) => {
    streams++;
    const p = new Uint8Array(SIZE);
    for (let count = await stream.read(p); count !== null; count = await stream.read(p)) {
      await stream.write(p.subarray(0, count));
    }
    stream.close();
  };
  const serveOne = async (conn: Deno.Conn) => {
    const session = Session.server(conn, { version, maxStreams: 2 ** 20, acceptBacklog: 2 ** 20 });
    for await (const stream of session) {
      // The client disconnects when it has its figures.
      echo(stream).catch((error) => assert(error instanceof SessionClosedError, `${error}`));
    }
  };
  const accepting = (async () => {
    for await (const conn of listener) serveOne(conn);
  })();
  console.log(listener.addr.port);
  for await (const _ of lines(Deno.stdin.readable)) {
    report({ ...await usage(), streams });
  }
  listener.close();
  await accepting;
}

async function usage(): Promise<Usage> {
  const { rss, heapUsed } = await usedMemory();
  return { resident: rss, heap: heapUsed };
}
