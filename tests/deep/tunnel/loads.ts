/**
 * What is measured on a way: transfers, round trips, many connections, and the loads of other programs.
 *
 * @module
 */

import { findProgram, run } from "../../programs.ts";
import { percentile } from "../../stats.ts";
import { readAll, readExactly, writeAll } from "../../support.ts";
import { usage } from "./processes.ts";
import { DOWNLOAD } from "./target.ts";
import type { Way } from "./ways.ts";

const BULK = 500_000_000;
const PARALLEL = 10;
const PINGS = 2000;
const MANY = 1000;
// Limits new connections per second, on average over the measurement. Each occupies a port for a minute after its end:
// with more of them the system has no free port left.
const MAX_RATE = 2000;

/** The kinds of measurements. */
export const LOADS = ["bulk", "trips", "many", "requests", "kept", "database"] as const;
/** The name of a kind of measurements. */
export type LoadName = typeof LOADS[number];

/** The heads of the columns, by kind. */
export const COLUMNS: Record<LoadName, string[]> = {
  bulk: ["1 connection, MB/s", `${PARALLEL} at once, MB/s`],
  trips: ["ping-pong p50, µs", "p99, µs"],
  many: [`${MANY} at once, ms`, "KiB each"],
  requests: ["ab -c 50, requests/s", "CPU, µs"],
  kept: ["wrk -c 50, requests/s", "CPU, µs"],
  database: ["pgbench -S -c 8, tps", "CPU, µs"],
};

/** Measures one kind; returns the values of its columns. */
export const MEASURE: Record<LoadName, (way: Way, seconds: number) => Promise<number[]>> = {
  bulk: async ({ ports: [port] }) => [await download(port!, 1), await download(port!, PARALLEL)],
  trips: async ({ ports: [port] }) => {
    const trips = await pingPong(port!);
    return [percentile(trips, 0.5), percentile(trips, 0.99)];
  },
  many: hold,
  requests: (way, seconds) =>
    load(way, "ab", ["-q", "-c", "50", "-t", `${seconds}`, "-n", `${MAX_RATE * seconds}`, url(way)], {
      count: /Complete requests:\s+(\d+)/,
      rate: /Requests per second:\s+([\d.]+)/,
      failed: /Failed requests:\s+(\d+)/,
    }),
  kept: (way, seconds) =>
    load(way, "wrk", ["-t", "1", "-c", "50", "-d", `${seconds}s`, url(way)], {
      count: /(\d+) requests in/,
      rate: /Requests\/sec:\s+([\d.]+)/,
      failed: /(?:Socket errors|Non-2xx).* ([1-9]\d*)/,
    }),
  database: (way, seconds) => {
    const server = ["-h", "127.0.0.1", "-p", `${way.ports[2]}`, "-U", "postgres"];
    return load(way, "pgbench", ["-n", "-S", "-c", "8", "-j", "1", "-T", `${seconds}`, ...server, "postgres"], {
      count: /actually processed: (\d+)/,
      rate: /tps = ([\d.]+)/,
      failed: /failed transactions: (\d+)/,
    });
  },
};

/** The programs of the kinds that need one. */
export const PROGRAMS: Partial<Record<LoadName, string>> = { requests: "ab", kept: "wrk", database: "pgbench" };

function url({ ports }: Way): string {
  return `http://127.0.0.1:${ports[1]}/`;
}

/** Runs a program; returns its rate, and the processor time of the way for each unit in microseconds. */
async function load(
  { ids }: Way,
  program: string,
  args: string[],
  found: Record<"count" | "rate" | "failed", RegExp>,
): Promise<number[]> {
  const before = usage(ids).processorTime;
  const output = new TextDecoder().decode(await run(findProgram(program)!, args));
  const took = usage(ids).processorTime - before;
  const [count, rate, failed] = [found.count, found.rate, found.failed].map((what) =>
    Number(what.exec(output)?.[1] ?? 0)
  );
  if (failed! > 0 || !(count! > 0)) throw new Error(`${program} failed: ${output}`);
  return [rate!, took / count! * 1e6];
}

/** Downloads over `count` concurrent connections; returns MB/s. */
async function download(port: number, count: number): Promise<number> {
  const each = BULK / count;
  const began = performance.now();
  await Promise.all(Array.from({ length: count }, async () => {
    using connection = await Deno.connect({ hostname: "127.0.0.1", port });
    const request = new Uint8Array(9);
    request[0] = DOWNLOAD;
    new DataView(request.buffer).setBigUint64(1, BigInt(each));
    await writeAll(connection, request);
    const p = new Uint8Array(256 * 1024);
    let received = 0;
    for (let count; (count = await connection.read(p)) !== null;) received += count;
    if (received !== each) throw new Error(`received ${received} of ${each} bytes`);
  }));
  return BULK / (performance.now() - began) / 1000;
}

/** Echoes 64 bytes repeatedly; returns the microseconds of each round trip. */
async function pingPong(port: number): Promise<number[]> {
  using connection = await Deno.connect({ hostname: "127.0.0.1", port });
  connection.setNoDelay(true);
  const p = new Uint8Array(64).fill(101);
  const times = [];
  for (let n = 0; n < PINGS; n++) {
    const began = performance.now();
    await writeAll(connection, p);
    // The first byte is not echoed: it requests the echo.
    for (let left = n === 0 ? p.length - 1 : p.length; left > 0;) left -= (await connection.read(p.subarray(0, left)))!;
    times.push((performance.now() - began) * 1000);
  }
  return times;
}

/** Opens {@linkcode MANY} connections and echoes 1 KiB on each; returns the milliseconds and KiB per connection. */
async function hold({ ports: [port], ids }: Way): Promise<number[]> {
  const before = usage(ids).memory;
  const began = performance.now();
  const open = await Promise.all(Array.from({ length: MANY }, async () => {
    const connection = await Deno.connect({ hostname: "127.0.0.1", port: port! });
    await writeAll(connection, new Uint8Array(1025).fill(101));
    await readExactly(connection, 1024);
    return connection;
  }));
  const took = performance.now() - began;
  const grown = (usage(ids).memory - before) / MANY;
  await Promise.all(open.map(async (connection) => {
    await connection.closeWrite();
    await readAll(connection);
    connection.close();
  }));
  return [took, grown];
}
