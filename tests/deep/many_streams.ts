/**
 * A hundred thousand streams held open between two processes, on one session or on a thousand, and what each costs.
 *
 * They are opened and left idle; then every one of them has to answer. On the server a handler waits on each stream.
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

/** What it does. */
export const description =
  "100 000 idle streams on 1 session, and 100 on each of 1000: what each costs, and all answer: [--streams 100000]";

const VERSIONS = [1, 2] as const;
const SESSIONS = [1, 1000];
const SIZE = 8;
// What an idle stream may cost in the heap, and an idle session in all.
const STREAM_BOUND = 2048;
const SESSION_BOUND = 64 * 1024;
// Streams that are answered at the same time.
const PARALLEL = 1000;
// A cell of a thousand sessions takes half a minute; one that takes so long, in milliseconds, hangs.
const PATIENCE = 120_000;

/** What two processes hold, and what it costs. */
interface Cell {
  version: 1 | 2;
  sessions: number;
  streams: number;
}

/** Bytes of a process. */
interface Usage {
  resident: number;
  heap: number;
}

/** Bytes for each session without streams, for each idle stream, and for each that has answered and waits. */
interface Costs {
  session: Usage;
  idle: Usage;
  answered: Usage;
  /** The server's, for each idle stream on which a handler waits. */
  server: Usage;
}

/** Runs it; rejects when a stream does not answer, or costs more than its bound. */
export async function run(args: string[]): Promise<void> {
  if (args[0] === "--ask") return await ask(JSON.parse(args[1]!));
  if (args[0] === "--answer") return await answer(args[1] === "1" ? 1 : 2);
  const { streams: all } = parse(args, { streams: integer(100_000, 1000) });
  await using folder = await makeFolder("many-streams");
  const above: string[] = [];
  const go = await buildGoPeers(folder.path);
  if (go === undefined) console.log("Go or its smux is not here: nothing to compare with");
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
        // It counts for each stream of one session.
        const usage = { resident: theirs.resident! / sessions, heap: theirs.heap! / sessions };
        const among = sessions > 1 ? ", its share of a session among it" : "";
        console.log(`  Go's, answered   ${theirs.error ?? show(usage) + among}`);
      }
      if (idle.heap > STREAM_BOUND) above.push(`${name}: ${Math.round(idle.heap)} bytes of heap an idle stream`);
      if (sessions > 1 && session.resident > SESSION_BOUND) {
        above.push(`${name}: ${Math.round(session.resident)} bytes an idle session`);
      }
    }
  }
  const bounds = `${STREAM_BOUND} bytes of heap a stream and ${SESSION_BOUND} bytes a session`;
  if (above.length > 0) throw new Error(`Above ${bounds}: ${above.join("; ")}`);
  console.log(`many_streams: every stream answered, within ${bounds}`);
}

// A plan for memory has no use for these.
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

/** The client: holds the streams, and prints what they cost. */
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
    // As in Go's workload, somebody waits for what comes next.
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

/** The server: echoes on every stream, and prints what it costs for each line that comes. */
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
      // A client that has its figures hangs up.
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
