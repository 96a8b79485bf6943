/**
 * A process that the long test of resumable connections measures: `measured.ts memory|server|client ARGUMENT...`.
 *
 * @module
 */

import { type Connection, type Listener, serve, Session, type Stream, type Version } from "../../../mod.ts";
import { resumable, resumableListener } from "../../../resume.ts";
import { endWithInput, report, usedMemory } from "../../measured.ts";
import { LOOPBACK, readExactly, writeAll } from "../../support.ts";

// Whether the session is directly over the socket, or over a resumable connection.
type Kind = "plain" | "resumable";

const CHUNK = 64 * 1024;
// Milliseconds after which idle connections have freed their buffers: the default `silence`, and a margin.
const IDLE = 13_000;
// Bytes of which each part of the throughput is measured: functions are compiled, and socket buffers grow, in the first.
const PARTS = [1_000_000_000, 3_000_000_000];
const WARM_UP = 100_000_000;
const TRIPS = 5000;
const TRIP = 64;
// The first byte of a stream: the rest is echoed, or dropped.
const [ECHO, DROP] = [1, 2];

function listen(kind: Kind, hostname = LOOPBACK.hostname): { listener: Listener<Connection>; port: number } {
  const inner = Deno.listen({ hostname, port: 0 });
  const listener: Listener<Connection> = kind === "plain" ? inner : resumableListener(inner);
  return { listener, port: inner.addr.port };
}

async function connect(kind: Kind, port: number): Promise<Connection> {
  const dial = () => Deno.connect({ ...LOOPBACK, port });
  return kind === "plain" ? await dial() : resumable(dial);
}

async function answer(stream: Stream): Promise<void> {
  const [first] = await readExactly(stream, 1);
  const p = new Uint8Array(CHUNK);
  for (let count; (count = await stream.read(p)) !== null;) {
    if (first === ECHO) await writeAll(stream, p.subarray(0, count));
  }
  await stream.closeWrite();
}

/** Reports the memory of an idle session of either end, which has had a stream. */
async function measureMemory(kind: Kind, count: number): Promise<void> {
  const { listener, port } = listen(kind);
  serve(listener, answer);
  const sessions: Session[] = [];
  const add = async () => {
    const session = Session.client(await connect(kind, port));
    sessions.push(session);
    const stream = await session.openStream();
    await writeAll(stream, Uint8Array.of(ECHO, 7));
    await readExactly(stream, 1);
    await stream.closeWrite();
    await stream.read(new Uint8Array(1));
  };
  // The first ones load code.
  for (let n = 0; n < 50; n++) await add();
  const idle = () => new Promise((resolve) => setTimeout(resolve, IDLE));
  await idle();
  const before = await usedMemory();
  for (let n = 0; n < count; n++) await add();
  await idle();
  const after = await usedMemory();
  const each = (change: number) => change / count / 2;
  const heap = (memory: Deno.MemoryUsage) => memory.heapUsed + memory.external;
  report({ heap: each(heap(after) - heap(before)), resident: each(after.rss - before.rss) });
  Deno.exit(0);
}

/** Reports the port of a server, and its process. */
function runServer(kind: Kind, hostname: string): void {
  const { listener, port } = listen(kind, hostname);
  serve(listener, answer, { onError() {} });
  report({ port, pid: Deno.pid });
}

/** Reports the rate of each part in bytes a second, and the durations of round trips in milliseconds. */
async function runClient(kind: Kind, version: Version, port: number): Promise<void> {
  const session = Session.client(await connect(kind, port), { version });
  const bulk = await session.openStream();
  const p = new Uint8Array(CHUNK);
  await writeAll(bulk, Uint8Array.of(DROP));
  for (let sent = 0; sent < WARM_UP;) sent += await bulk.write(p);
  const rates: number[] = [];
  for (const part of PARTS) {
    const since = performance.now();
    for (let sent = 0; sent < part;) sent += await bulk.write(p);
    rates.push(part / (performance.now() - since) * 1000);
  }
  await bulk.closeWrite();
  await bulk.read(p);
  const stream = await session.openStream();
  await writeAll(stream, Uint8Array.of(ECHO));
  const trips: number[] = [];
  for (let n = 0; n < TRIPS; n++) {
    const begun = performance.now();
    await writeAll(stream, p.subarray(0, TRIP));
    await readExactly(stream, TRIP);
    trips.push(performance.now() - begun);
  }
  report({ rates, trips });
  Deno.exit(0);
}

const [role, kind, ...args] = Deno.args as [string, Kind, ...string[]];
if (kind !== "plain" && kind !== "resumable") {
  throw new TypeError(`expected measured.ts ROLE plain|resumable, received ${Deno.args}`);
}
endWithInput();
if (role === "memory") await measureMemory(kind, Number(args[0]));
else if (role === "server") runServer(kind, args[0]!);
else await runClient(kind, args[0] === "1" ? 1 : 2, Number(args[1]));
