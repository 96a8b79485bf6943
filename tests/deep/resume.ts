/**
 * Sessions over resumable connections through a proxy that cuts every connection at an interval, or lets it hang: over
 * TCP, TLS and WebSocket, in both versions and both directions; and the cost of many suspended connections.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { pooledMap } from "@std/async";
import { createHash } from "node:crypto";
import { setImmediate } from "node:timers/promises";
import { encodeHello, NO_TOKEN, REPLY_LENGTH } from "../../_resume_frame.ts";
import { type Connection, type Listener, serve, Session, type Stream, type Version } from "../../mod.ts";
import { resumable, type ResumableConnection, resumableListener } from "../../resume.ts";
import { webSocketConnection, WebSocketListener } from "../../websocket.ts";
import { percentile } from "../stats.ts";
import { LOOPBACK, MiB, pattern, readExactly, writeAll } from "../support.ts";
import { integer, parse } from "./shared/options.ts";

/** One line for the list of long tests. */
export const description =
  "Transfers over connections that are cut or hang at an interval: [--transfers 100] [--megabytes 20] [--suspended 1000]";

const INTERVAL_MS = 200;
// Connections that hang are detected by their silence, in milliseconds.
const SILENCE_MS = 300;
const PARALLEL = 10;
const CHUNK = 64 * 1024;
const TLS = new URL("../fixtures/tls/", import.meta.url);

type Fault = "cut" | "hang";
type Carrier = "tcp" | "tls" | "websocket";

/** Runs every combination; rejects if a transfer failed. */
export async function run(args: string[]): Promise<void> {
  const { transfers, megabytes, suspended } = parse(args, {
    transfers: integer(100, 1),
    megabytes: integer(20, 1),
    suspended: integer(1000, 1),
  });
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
  await suspendMany(suspended);
}

/** A proxy whose connections all fail at an interval. */
class Proxy implements Disposable {
  readonly #listener = Deno.listen(LOOPBACK);
  readonly #open = new Set<Deno.TcpConn[]>();
  readonly #timer: ReturnType<typeof setInterval>;
  #isHanging = new WeakSet<Deno.TcpConn[]>();

  constructor(target: number, fault: Fault) {
    this.#accept(target);
    this.#timer = setInterval(() => {
      for (const pair of this.#open) {
        if (fault === "hang" && !this.#isHanging.has(pair)) this.#isHanging.add(pair);
        else this.#close(pair);
      }
    }, INTERVAL_MS);
  }

  get port(): number {
    return this.#listener.addr.port;
  }

  async #accept(target: number): Promise<void> {
    try {
      for await (const near of this.#listener) {
        const pair = [near, await Deno.connect({ ...LOOPBACK, port: target })];
        this.#open.add(pair);
        this.#copy(pair, 0);
        this.#copy(pair, 1);
      }
    } catch (error) {
      if (!(error instanceof Deno.errors.BadResource)) throw error;
    }
  }

  async #copy(pair: Deno.TcpConn[], from: number): Promise<void> {
    const p = new Uint8Array(CHUNK);
    try {
      for (let count; (count = await pair[from]!.read(p)) !== null;) {
        if (this.#isHanging.has(pair)) return;
        await writeAll(pair[1 - from]!, p.subarray(0, count));
        // Writes that never block would starve the timer.
        await setImmediate();
      }
    } catch {
      // Cut.
    }
    this.#close(pair);
  }

  #close(pair: Deno.TcpConn[]): void {
    if (!this.#open.delete(pair)) return;
    for (const connection of pair) connection.close();
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
    this.#listener.close();
    for (const pair of this.#open) this.#close(pair);
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
  const proxy = resources.use(new Proxy(port, fault));
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

/** Measures the memory of suspended connections, and the latency of another client beside a flood of hellos. */
async function suspendMany(count: number): Promise<void> {
  const inner = Deno.listen(LOOPBACK);
  const { port } = inner.addr;
  const listener = resumableListener(inner, { maxSuspended: count });
  const connections: ResumableConnection[] = [];
  const resident = () => Deno.memoryUsage().rss / MiB;
  const before = resident();
  for (let n = 0; n < count; n++) {
    const accepting = listener.accept();
    const client = await greet(port);
    const server = await accepting as ResumableConnection;
    server.read(new Uint8Array(1)).catch(() => {});
    connections.push(server);
    client.close();
  }
  while (connections.some(({ state }) => state === "connected")) await setImmediate();
  console.log(`${count} suspended connections: ${((resident() - before) * 1024 / count).toFixed(1)} KiB each`);

  let isOver = false;
  let hellos = 0;
  const flooding = Promise.all(Array.from({ length: 20 }, async () => {
    for (; !isOver; hellos++) {
      const accepting = listener.accept();
      const client = await greet(port);
      client.close();
      (await accepting as ResumableConnection).read(new Uint8Array(1)).catch(() => {});
    }
  }));
  const times: number[] = [];
  for (const ends = performance.now() + 10_000; performance.now() < ends;) {
    const since = performance.now();
    (await greet(port)).close();
    times.push(performance.now() - since);
  }
  isOver = true;
  await flooding;
  console.log(
    `beside ${hellos} hellos in 10 s: a reply within ${percentile(times, 0.5).toFixed(1)} ms (median), ` +
      `${percentile(times, 0.99).toFixed(1)} ms (p99); resident memory ${(resident() - before).toFixed(0)} MiB more`,
  );
  listener.close();
}

async function greet(port: number): Promise<Deno.TcpConn> {
  const connection = await Deno.connect({ ...LOOPBACK, port });
  await writeAll(connection, encodeHello({ token: NO_TOKEN, received: 0 }));
  await readExactly(connection, REPLY_LENGTH);
  return connection;
}
