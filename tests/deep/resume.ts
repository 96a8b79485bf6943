/**
 * Sessions over resumable connections through a proxy that cuts every connection at an interval, or lets it hang: over
 * TCP, TLS and WebSocket, in both versions and both directions; and what resumable connections cost: memory, speed, and
 * the effect of a flood of hellos on other clients.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { delay, pooledMap } from "@std/async";
import { createHash } from "node:crypto";
import { setImmediate } from "node:timers/promises";
import { encodeHello, NO_TOKEN, REPLY_LENGTH } from "../../_resume_frame.ts";
import { type Connection, type Listener, serve, Session, type Stream, type Version } from "../../mod.ts";
import { resumable, type ResumableConnection, resumableListener } from "../../resume.ts";
import { webSocketConnection, WebSocketListener } from "../../websocket.ts";
import { Process } from "../programs.ts";
import { conditions, machine, median, percentile, spread, table } from "../stats.ts";
import { KiB, LOOPBACK, pattern, readExactly, writeAll } from "../support.ts";
import { CuttingProxy, type Fault } from "./shared/cutting_proxy.ts";
import { integer, oneOf, parse } from "./shared/options.ts";

/** One line for the list of long tests. */
export const description =
  "Resumable connections: [--part cut|memory|hellos|speed] [--transfers 100] [--megabytes 20] [--suspended 1000] " +
  "[--sessions 1000] [--hellos 1000000] [--rounds 5]";

const INTERVAL_MS = 200;
// Connections that hang are detected by their silence, in milliseconds.
const SILENCE_MS = 300;
const PARALLEL = 10;
const CHUNK = 64 * 1024;
const TLS = new URL("../fixtures/tls/", import.meta.url);

type Answer = { error?: string };
type Carrier = "tcp" | "tls" | "websocket";

const PARTS = ["cut", "memory", "hellos", "speed"] as const;
const KINDS = ["plain", "resumable"] as const;
const MEASURED = `${import.meta.dirname}/resume/measured.ts`;
// Hellos at the same time.
const FLOODERS = 20;
// Hellos after which the next address is used, because the ports of closed connections stay in use for a minute.
const HELLOS_PER_ADDRESS = 20_000;

/** Runs the parts; rejects if a transfer failed. */
export async function run(args: string[]): Promise<void> {
  const { part, ...options } = parse(args, {
    part: oneOf(PARTS),
    transfers: integer(100, 1),
    megabytes: integer(20, 1),
    suspended: integer(1000, 1),
    sessions: integer(1000, 1),
    hellos: integer(1_000_000, 1),
    rounds: integer(5, 1),
  });
  if (part.includes("cut")) await cut(options.transfers, options.megabytes);
  if (part.includes("memory")) {
    await suspendMany(options.suspended);
    await measureMemory(options.sessions, options.rounds);
  }
  if (part.includes("hellos")) await flood(options.hellos);
  if (part.includes("speed")) await measureSpeed(options.rounds);
}

/** Runs every combination of faults, carriers and versions. */
async function cut(transfers: number, megabytes: number): Promise<void> {
  const combinations: [Fault, Carrier][] = [
    ["cut", "tcp"],
    ["hang", "tcp"],
    ["cut", "tls"],
    ["cut", "websocket"],
  ];
  for (const [fault, carrier] of combinations) {
    for (const version of [1, 2] as const) {
      const since = performance.now();
      const resumptions = await transfer(fault, carrier, version, transfers, megabytes * 1e6);
      const seconds = (performance.now() - since) / 1000;
      console.log(
        `${fault} ${carrier} v${version}: ${transfers} transfers of ${megabytes} MB each way, ${resumptions} resumptions, ` +
          `${seconds.toFixed(1)} s`,
      );
    }
  }
}

/** Starts the end of a carrier that accepts: returns its port and a listener of its connections. */
function listen(carrier: Carrier, resources: AsyncDisposableStack): { port: number; listener: Listener<Connection> } {
  if (carrier === "websocket") {
    const listener = new WebSocketListener();
    const server = Deno.serve({ ...LOOPBACK, onListen() {} }, (request) => listener.upgrade(request));
    resources.defer(() => server.shutdown());
    return { port: server.addr.port, listener };
  }
  const [cert, key] = ["localhost.pem", "localhost.key"].map((name) => Deno.readTextFileSync(new URL(name, TLS)));
  const listener = carrier === "tcp" ? Deno.listen(LOOPBACK) : Deno.listenTls({ ...LOOPBACK, cert: cert!, key: key! });
  return { port: listener.addr.port, listener };
}

async function dial(carrier: Carrier, port: number): Promise<Connection> {
  if (carrier === "websocket") return webSocketConnection(new WebSocket(`ws://127.0.0.1:${port}/`));
  const socket = await Deno.connect({ ...LOOPBACK, port });
  if (carrier === "tcp") return socket;
  const caCerts = [Deno.readTextFileSync(new URL("ca.pem", TLS))];
  return await Deno.startTls(socket, { hostname: "localhost", caCerts });
}

/** Returns the number of resumptions. */
async function transfer(
  fault: Fault,
  carrier: Carrier,
  version: Version,
  transfers: number,
  bytes: number,
): Promise<number> {
  await using resources = new AsyncDisposableStack();
  const { port, listener } = listen(carrier, resources);
  const options = { silence: SILENCE_MS };
  const errors: unknown[] = [];
  const server = serve(resumableListener(listener, options), (stream) => exchange(stream, bytes, 2), {
    onError: (error) => errors.push(error),
  });
  resources.use(server);
  const proxy = resources.use(new CuttingProxy(port, INTERVAL_MS, fault));
  const connection = resumable(() => dial(carrier, proxy.port), options);
  const session = Session.client(connection, { version });
  for await (
    const _ of pooledMap(PARALLEL, Array(transfers).keys(), async (n) => {
      await using stream = await session.openStream();
      await exchange(stream, bytes, n);
    })
  );
  await session.close();
  await session.closed;
  assertEquals(errors, []);
  return connection.resumptions;
}

/** Sends bytes and their hash, and checks those of the peer. */
async function exchange(stream: Stream, bytes: number, seed: number): Promise<void> {
  const send = async () => {
    const hash = createHash("sha256");
    const chunk = pattern(CHUNK, seed + 1);
    for (let sent = 0; sent < bytes; sent += chunk.length) {
      // Each chunk differs from all others.
      new DataView(chunk.buffer).setFloat64(0, sent);
      hash.update(chunk);
      await writeAll(stream, chunk);
    }
    await writeAll(stream, hash.digest());
    await stream.closeWrite();
  };
  const receive = async () => {
    const hash = createHash("sha256");
    const p = new Uint8Array(CHUNK);
    for (let left = Math.ceil(bytes / CHUNK) * CHUNK; left > 0;) {
      const count = await stream.read(p.subarray(0, Math.min(left, CHUNK)));
      assert(count !== null, `${left} bytes are missing`);
      hash.update(p.subarray(0, count));
      left -= count;
    }
    assertEquals(await readExactly(stream, 32), new Uint8Array(hash.digest()));
    assertEquals(await stream.read(p), null);
  };
  await Promise.all([send(), receive()]);
}

/** Measures the memory of suspended connections. */
async function suspendMany(count: number): Promise<void> {
  const inner = Deno.listen(LOOPBACK);
  const { port } = inner.addr;
  const listener = resumableListener(inner, { maxSuspended: count });
  const connections: ResumableConnection[] = [];
  const before = Deno.memoryUsage().rss;
  for (let n = 0; n < count; n++) {
    const accepting = listener.accept();
    const client = await greet(port);
    const server = await accepting as ResumableConnection;
    server.read(new Uint8Array(1)).catch(() => {});
    connections.push(server);
    client.close();
  }
  while (connections.some(({ state }) => state === "connected")) await setImmediate();
  const each = (Deno.memoryUsage().rss - before) / KiB / count;
  console.log(`${count} suspended connections: ${each.toFixed(1)} KiB each`);
  listener.close();
}

/** Measures the memory of idle sessions, in processes of their own. */
async function measureMemory(sessions: number, rounds: number): Promise<void> {
  const heap: Record<string, number[]> = { plain: [], resumable: [] };
  const resident: Record<string, number[]> = { plain: [], resumable: [] };
  for (let round = 0; round < rounds; round++) {
    for (const kind of KINDS) {
      await using process = start("memory", kind, `${sessions}`);
      const result = await process.result<Answer & { heap: number; resident: number }>();
      heap[kind]!.push(result.heap / KiB);
      resident[kind]!.push(result.resident / KiB);
    }
  }
  console.log(`\nIdle sessions, KiB for each end (${sessions} sessions, ${conditions(machine(), rounds)}):\n`);
  const rows = KINDS.map((kind) => [kind, spread(heap[kind]!), spread(resident[kind]!)]);
  console.log(table([["connection", "heap and buffers", "resident"], ...rows]));
}

/** Measures a stream of bytes and round trips, between two processes. */
async function measureSpeed(rounds: number): Promise<void> {
  const cells = ([1, 2] as const).flatMap((version) => KINDS.map((kind) => ({ version, kind })));
  const results = cells.map((cell) => ({
    ...cell,
    first: [] as number[],
    later: [] as number[],
    trips: [] as number[],
  }));
  for (let round = 0; round < rounds; round++) {
    for (const { version, kind, first, later, trips } of results) {
      await using server = start("server", kind, LOOPBACK.hostname);
      const { port } = await server.result<Answer & { port: number }>();
      await using client = start("client", kind, `${version}`, `${port}`);
      const result = await client.result<Answer & { rates: [number, number]; trips: number[] }>();
      first.push(result.rates[0] / 1e6);
      later.push(result.rates[1] / 1e6);
      trips.push(median(result.trips) * 1000);
    }
  }
  console.log(`\nOne stream, and round trips of 64 bytes (${conditions(machine(), rounds)}):\n`);
  const ratio = (own: number[], other: number[]) => spread(own.map((value, round) => value / other[round]!));
  const rows = results.map(({ version, kind, first, later, trips }, n) => {
    const plain = results[n - n % 2]!;
    const figures = [
      first,
      ratio(first, plain.first),
      later,
      ratio(later, plain.later),
      trips,
      ratio(trips, plain.trips),
    ];
    return [`${kind}, v${version}`, ...figures.map((figure) => typeof figure === "string" ? figure : spread(figure))];
  });
  const columns = ["MB/s, first GB", "MB/s, next 3 GB", "round trip, µs"].flatMap((name) => [name, "of plain"]);
  console.log(table([["connection", ...columns], ...rows]));
}

/** Measures the memory of a server, and the latency of a fresh client, while clients send hellos and hang up. */
async function flood(count: number): Promise<void> {
  await using server = start("server", "resumable", "0.0.0.0");
  const { port, pid } = await server.result<Answer & { port: number; pid: number }>();
  const resident = () => {
    const [, kibibytes] = /VmRSS:\s+(\d+)/.exec(Deno.readTextFileSync(`/proc/${pid}/status`))!;
    return Number(kibibytes) / KiB;
  };
  const measure = async (isOver: () => boolean) => {
    const times: number[] = [];
    while (!isOver()) {
      const since = performance.now();
      (await greet(port)).close();
      times.push(performance.now() - since);
      await delay(20);
    }
    return times;
  };
  let left = 50;
  const quiet = await measure(() => left-- === 0);
  const before = resident();
  const started = performance.now();
  let hellos = 0;
  let isOver = false;
  const memory: number[] = [];
  const measuring = measure(() => isOver);
  await Promise.all(Array.from({ length: FLOODERS }, async () => {
    while (hellos < count) {
      const n = hellos++;
      const address = Math.floor(n / HELLOS_PER_ADDRESS);
      const hostname = `127.1.${address >> 8 & 255}.${1 + address % 255}`;
      (await greet(port, hostname)).close();
      if ((n + 1) % Math.ceil(count / 10) === 0) memory.push(resident());
    }
  }));
  isOver = true;
  const times = await measuring;
  const latency = (sample: number[]) =>
    `${percentile(sample, 0.5).toFixed(1)} ms (median), ${percentile(sample, 0.99).toFixed(1)} ms (p99)`;
  const seconds = (performance.now() - started) / 1000;
  console.log(
    `\n${count} hellos in ${seconds.toFixed(0)} s: a fresh client gets its reply in ${latency(times)}, without the ` +
      `flood in ${latency(quiet)}; resident memory ${before.toFixed(0)} MiB before, then ` +
      `${memory.map((value) => value.toFixed(0)).join(", ")} MiB after each tenth`,
  );
}

function start(...args: string[]): Process {
  return new Process([Deno.execPath(), "run", "-A", "--v8-flags=--expose-gc", MEASURED, ...args]);
}

async function greet(port: number, hostname = LOOPBACK.hostname): Promise<Deno.TcpConn> {
  const connection = await Deno.connect({ hostname, port });
  await writeAll(connection, encodeHello({ token: NO_TOKEN, received: 0 }));
  await readExactly(connection, REPLY_LENGTH);
  return connection;
}
