/**
 * Many clients of one tunnel's server that is killed and started again: how long it takes until all are connected
 * again, and the memory of the server.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import { deadline } from "@std/async";
import { setTimeout } from "node:timers/promises";
import { hashSecret, openTunnel, type TunnelClient } from "../../tunnel.ts";
import { kill, lines, makeFolder, watch } from "../programs.ts";
import { percentile } from "../stats.ts";
import { bytes, freePort, LOOPBACK, readSome, text, writeAll } from "../support.ts";
import { integer, parse } from "./shared/options.ts";

/** One line for the list of long tests. */
export const description =
  "Clients of a tunnel that reconnect at once after a restart of its server: [--clients 1000] [--outage 1] [--users 0]";

const TUNNEL = `${import.meta.dirname}/../../tunnel.ts`;
const SECRET = "open-sesame";
// Clients that connect at the same time before the restart.
const BATCH = 50;

// Milliseconds to wait for the clients.
const LIMIT = 120_000;

/** Returns the name of a user. */
const nameOf = (n: number) => `user${n}`;

/** Milliseconds since 1970, also for comparison with other processes. */
const now = () => performance.timeOrigin + performance.now();

/** Starts the server, and waits until it listens. */
async function startServer(port: number, access: string[]) {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-config", "-A", TUNNEL, "server", "--listen", `127.0.0.1:${port}`, ...access],
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
    env: { NO_COLOR: "1", SLUICE_SECRET: SECRET },
  }).spawn();
  const server = watch(child);
  await server.until(/^listening on /m);
  return { ...server, listening: now() };
}

/** Returns a figure of the memory of a process in MB. */
async function memory(id: number, name: "VmHWM" | "VmRSS"): Promise<string> {
  const status = await Deno.readTextFile(`/proc/${id}/status`);
  return (Number(new RegExp(`^${name}:\\s+(\\d+) kB`, "m").exec(status)![1]) * 1024 / 1e6).toFixed(0);
}

/** Starts a target that echoes. */
function startTarget() {
  const listener = Deno.listen(LOOPBACK);
  const echo = async () => {
    for await (const connection of listener) connection.readable.pipeTo(connection.writable).catch(() => {});
  };
  echo();
  return { addr: `127.0.0.1:${listener.addr.port}`, [Symbol.dispose]: () => listener.close() };
}

/** Restarts a server with many clients; rejects if one does not come back. */
export async function run(args: string[]): Promise<void> {
  const { clients, outage, users } = parse(args, {
    clients: integer(1000, 1),
    outage: integer(1, 0),
    users: integer(0, 0),
  });
  using target = startTarget();
  const port = freePort();
  await using folder = await makeFolder("reconnect");
  const file = `${folder.path}/users.json`;
  const entries = Array.from({ length: users }, async (_, n) => {
    return { name: nameOf(n), secret: await hashSecret(SECRET), allow: [target.addr] };
  });
  await Deno.writeTextFile(file, JSON.stringify(await Promise.all(entries)));
  // The environment has the secret of a server without users.
  const access = users > 0 ? ["--users", file] : ["--allow", target.addr];
  const first = await startServer(port, access);
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", import.meta.filename!, `127.0.0.1:${port}`, `${clients}`, target.addr, `${users}`],
    stdin: "null",
    stdout: "piped",
    env: { NO_COLOR: "1" },
  }).spawn();
  try {
    await restart(lines(child.stdout).getReader(), { clients, outage, port, access, first });
  } finally {
    kill(child);
    await child.status;
  }
}

/** A server that is running. */
type Server = Awaited<ReturnType<typeof startServer>>;

/** Kills the first server when all clients are connected, starts another, and prints what the clients report. */
async function restart(
  printed: ReadableStreamDefaultReader<string>,
  { clients, outage, port, access, first }: {
    clients: number;
    outage: number;
    port: number;
    access: string[];
    first: Server;
  },
): Promise<void> {
  const next = async () => (await deadline(printed.read(), LIMIT)).value;
  await using _ = first;
  assertEquals(await next(), "connected");
  console.log(`${clients} clients connected; the server uses ${await memory(first.child.pid, "VmRSS")} MB`);
  await first.end();
  await setTimeout(outage * 1000);
  await using second = await startServer(port, access);
  const times: number[] = JSON.parse((await next())!);
  assertEquals(times.length, clients);
  const after = times.map((time) => time - second.listening);
  const [half, most, all] = [0.5, 0.99, 1].map((share) => `${Math.round(percentile(after, share))} ms`);
  console.log(`connected again after the start of the server: half in ${half}, 99 % in ${most}, all in ${all}`);
  const id = second.child.pid;
  console.log(`the server used at most ${await memory(id, "VmHWM")} MB, and uses ${await memory(id, "VmRSS")} MB`);
  assertEquals(await next(), `${clients} of ${clients} forward`);
  console.log(`all forward at once; with that the server used at most ${await memory(id, "VmHWM")} MB`);
  const errors = second.printed.stderr.split("\n").filter((line) => line !== "");
  console.log(
    `${errors.length} errors in the log of the server${errors.length > 0 ? `, the first: ${errors[0]}` : ""}`,
  );
}

/** Sends some bytes through a client; returns whether they come back. */
async function isForwarding(client: TunnelClient, target: string): Promise<boolean> {
  const stream = await client.connect(target);
  await writeAll(stream, bytes("hello"));
  const answer = text(await readSome(stream, 5));
  stream.close();
  return answer === "hello";
}

/** Runs the clients: prints "connected", then the times at which they reconnected, then how many of them forward. */
async function runClients(connect: string, count: number, target: string, users: number): Promise<void> {
  const all: TunnelClient[] = [];
  const times: number[] = [];
  const back = Promise.withResolvers<void>();
  const options = {
    connect,
    secret: SECRET,
    onError() {},
    onEvent({ type }: { type: string }) {
      if (type === "reconnected" && times.push(now()) === count) back.resolve();
    },
  };
  while (all.length < count) {
    const batch = Math.min(BATCH, count - all.length);
    all.push(
      ...await Promise.all(
        Array.from(
          { length: batch },
          (_, n) => openTunnel({ ...options, user: users === 0 ? undefined : nameOf((all.length + n) % users) }),
        ),
      ),
    );
  }
  console.log("connected");
  await back.promise;
  console.log(JSON.stringify(times));
  const forwarding = await Promise.all(all.map((client) => isForwarding(client, target).catch(() => false)));
  console.log(`${forwarding.filter(Boolean).length} of ${count} forward`);
}

if (import.meta.main) {
  const [connect, count, target, users] = Deno.args as [string, string, string, string];
  await runClients(connect, Number(count), target, Number(users));
  Deno.exit(0);
}
