/**
 * Compares the tunnel with `ssh -L`, socat and a direct connection: all processes on this machine, in interleaved
 * rounds, so that load on the machine affects all of them alike.
 *
 * @module
 */

import { existsSync } from "node:fs";
import { percentile, spread, table } from "../stats.ts";
import { lines, makeFolder, prepareSsh } from "../programs.ts";
import { readAll, readExactly, readSome, writeAll } from "../support.ts";
import { integer, parse } from "./shared/options.ts";

/** One line for the list of long tests. */
export const description = "The tunnel compared with ssh -L, socat and a direct connection: [--rounds 5]";

const TUNNEL = `${import.meta.dirname}/../../tunnel.ts`;
const TARGET = import.meta.filename!;
const BULK = 500_000_000;
const PARALLEL = 10;
const PINGS = 2000;
const MANY = 1000;

/** A way to the target. */
interface Way {
  name: string;
  port: number;
  /** Ids of the processes whose memory is measured. */
  ids: number[];
}

/** The measurements of a way, one value per round. */
type Figures = Record<"one" | "ten" | "p50" | "p99" | "many" | "memory", number[]>;

const COLUMNS: Record<keyof Figures, string> = {
  one: "1 connection, MB/s",
  ten: `${PARALLEL} at once, MB/s`,
  p50: "ping-pong p50, µs",
  p99: "p99, µs",
  many: `${MANY} at once, ms`,
  memory: "KiB each",
};

/** Runs the comparison; rejects if bytes are lost. */
export async function run(args: string[]): Promise<void> {
  const { rounds } = parse(args, { rounds: integer(5, 1) });
  await using started = new AsyncDisposableStack();
  const ways = await startWays(started);
  const all = new Map<string, Figures>(
    ways.map(({ name }) => [name, { one: [], ten: [], p50: [], p99: [], many: [], memory: [] }]),
  );
  for (let round = 0; round < rounds; round++) {
    for (let n = 0; n < ways.length; n++) {
      const way = ways[(round + n) % ways.length]!;
      console.log(`round ${round + 1} of ${rounds}: ${way.name}`);
      const figures = all.get(way.name)!;
      figures.one.push(await download(way.port, 1));
      figures.ten.push(await download(way.port, PARALLEL));
      const trips = await pingPong(way.port);
      figures.p50.push(percentile(trips, 0.5));
      figures.p99.push(percentile(trips, 0.99));
      const { took, grown } = await hold(way);
      figures.many.push(took);
      figures.memory.push(grown);
    }
  }
  const names = Object.keys(COLUMNS) as (keyof Figures)[];
  const rows = Array.from(all, ([way, figures]) => [way, ...names.map((name) => spread(figures[name]))]);
  console.log(`\n${table([["way", ...names.map((name) => COLUMNS[name])], ...rows])}`);
}

async function startWays(started: AsyncDisposableStack): Promise<Way[]> {
  const spawn = async (name: string, args: string[], ready: RegExp) => {
    const child = new Deno.Command(name, { args, stdin: "null", stdout: "piped", stderr: "piped" }).spawn();
    const line = Promise.withResolvers<string>();
    const reading = [child.stdout, child.stderr].map(async (stream) => {
      for await (const text of lines(stream)) {
        if (ready.test(text)) line.resolve(ready.exec(text)![1] ?? "");
      }
      line.reject(new Error(`${name} ended before it was ready`));
    });
    started.defer(async () => {
      child.kill("SIGKILL");
      await Promise.all([child.status, ...reading]);
    });
    line.promise.catch(() => {});
    return { id: child.pid, port: await line.promise };
  };
  const deno = (script: string, ...args: string[]) =>
    spawn(Deno.execPath(), ["run", "-A", script, ...args], /listening on .*:(\d+)$/);

  const target = await deno(TARGET, "target");
  const ways: Way[] = [{ name: "directly", port: Number(target.port), ids: [] }];
  const server = await deno(TUNNEL, "server", "--listen", "0", "--allow", `127.0.0.1:${target.port}`);
  const client = await deno(TUNNEL, "client", "--connect", server.port, "--forward", `0=${target.port}`);
  ways.push({ name: "sluice", port: Number(client.port), ids: [server.id, client.id] });
  const free = () => {
    using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    return listener.addr.port;
  };
  if (existsSync("/usr/bin/socat")) {
    const port = free();
    const args = [
      "-d",
      "-d",
      `TCP-LISTEN:${port},fork,reuseaddr,bind=127.0.0.1,backlog=1024`,
      `TCP:127.0.0.1:${target.port}`,
    ];
    const { id } = await spawn("socat", args, /listening on/);
    ways.push({ name: "socat", port, ids: [id] });
  } else console.log("Skipping socat: needs socat");
  if (existsSync("/usr/sbin/sshd") && Deno.uid() === 0) {
    const { path: folder } = started.use(await makeFolder("tunnel"));
    await prepareSsh(folder);
    const [sshPort, port] = [free(), free()];
    const args = ["-D", "-e", "-f", `${folder}/config`, "-o", "ListenAddress=127.0.0.1", "-p", `${sshPort}`];
    const sshd = await spawn("/usr/sbin/sshd", args, /Server listening/);
    const options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes", "LogLevel=VERBOSE"];
    const ssh = await spawn("ssh", [
      ...[
        "-N",
        "-v",
        "-F",
        "/dev/null",
        "-i",
        `${folder}/user`,
        "-p",
        `${sshPort}`,
        "-L",
        `${port}:127.0.0.1:${target.port}`,
      ],
      ...options.flatMap((option) => ["-o", option]),
      "root@127.0.0.1",
    ], /Local forwarding listening on 127\.0\.0\.1|Entering interactive session/);
    ways.push({ name: "ssh -L", port, ids: [sshd.id, ssh.id] });
  } else console.log("Skipping ssh: needs openssh-server, and root");
  return ways;
}

// The target: "d" and a 64-bit size request that many bytes, "e" requests an echo.
async function serveTarget(): Promise<void> {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0, tcpBacklog: 4096 });
  console.log(`listening on 127.0.0.1:${listener.addr.port}`);
  const chunk = new Uint8Array(256 * 1024);
  for (;;) {
    const connection = await listener.accept();
    connection.setNoDelay(true);
    (async () => {
      const [kind] = await readSome(connection, 1);
      if (kind === 100) {
        let left = Number(new DataView((await readExactly(connection, 8)).buffer).getBigUint64(0));
        while (left > 0) left -= await connection.write(chunk.subarray(0, Math.min(left, chunk.length)));
        connection.close();
      } else await connection.readable.pipeTo(connection.writable);
    })().catch(() => {});
  }
}

/** Downloads over `count` concurrent connections; returns MB/s. */
async function download(port: number, count: number): Promise<number> {
  const each = BULK / count;
  const began = performance.now();
  await Promise.all(Array.from({ length: count }, async () => {
    using connection = await Deno.connect({ hostname: "127.0.0.1", port });
    const request = new Uint8Array(9);
    request[0] = 100;
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
async function hold({ port, ids }: Way): Promise<{ took: number; grown: number }> {
  const before = resident(ids);
  const began = performance.now();
  const open = await Promise.all(Array.from({ length: MANY }, async () => {
    const connection = await Deno.connect({ hostname: "127.0.0.1", port });
    await writeAll(connection, new Uint8Array(1025).fill(101));
    await readExactly(connection, 1024);
    return connection;
  }));
  const took = performance.now() - began;
  const grown = (resident(ids) - before) / MANY;
  await Promise.all(open.map(async (connection) => {
    await connection.closeWrite();
    await readAll(connection);
    connection.close();
  }));
  return { took, grown };
}

/** Returns the memory of processes and of their descendants, in KiB. */
function resident(ids: number[]): number {
  const processes = new Map<number, { parent: number; size: number }>();
  for (const entry of Deno.readDirSync("/proc")) {
    if (!/^\d+$/.test(entry.name)) continue;
    try {
      const status = Deno.readTextFileSync(`/proc/${entry.name}/status`);
      const field = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(status)?.[1] ?? 0);
      processes.set(Number(entry.name), { parent: field("PPid"), size: field("RssAnon") });
    } catch {
      // The process has ended.
    }
  }
  const counts = (id: number): boolean => ids.includes(id) || (processes.has(id) && counts(processes.get(id)!.parent));
  return Array.from(processes).reduce((sum, [id, { size }]) => counts(id) ? sum + size : sum, 0);
}

if (import.meta.main && Deno.args[0] === "target") await serveTarget();
