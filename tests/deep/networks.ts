/**
 * Programs over a tunnel between two network namespaces whose network changes: the client gets another address, or the
 * link is down for a while. Nothing may be noticed but the delay.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { concat } from "@std/bytes";
import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import { findProgram, makeFolder, prepareSsh, run as execute, watch } from "../programs.ts";
import { hasPostgres, startPostgres } from "../postgres.ts";
import { freePort, MiB, pattern, text } from "../support.ts";
import { ADDRESSES, type Link, makeLink } from "./queue/namespaces.ts";
import { integer, oneOf, parse } from "./shared/options.ts";

const PROGRAMS = ["command", "library"] as const;
const CHANGES = ["address", "down"] as const;

/** One line for the list of long tests. */
export const description = "ssh, pg_dump and curl over a tunnel whose network changes, as root: " +
  "[--program command|library] [--change address|down] [--seconds 30] [--megabytes 200]";

const NEEDED = ["unshare", "nsenter", "ip", "ssh", "sshd", "ssh-keygen", "pg_dump", "psql", "curl"];
const ROOT = `${import.meta.dirname}/../..`;
const OTHER_ADDRESS = "198.51.100.1";
const TUNNEL_PORT = 9000;
// More bytes than the buffers on the way hold.
const ROWS = 2_000_000;
// Bytes of each transfer before the network changes. The program then waits in a write, until its output is read on.
const FIRST_PART = 5 * MiB;
// Longest time for a program to finish after the change, in milliseconds: the longest pause between two dials, and the
// retransmissions of TCP.
const LIMIT = 90_000;

type Change = typeof CHANGES[number];

/** Runs every combination; rejects if a program fails, or receives wrong bytes. */
export async function run(args: string[]): Promise<void> {
  const { program, change, seconds, megabytes } = parse(args, {
    program: oneOf(PROGRAMS),
    change: oneOf(CHANGES),
    seconds: integer(30, 1),
    megabytes: integer(200, 10),
  });
  const missing = NEEDED.filter((name) => findProgram(name) === undefined);
  if (missing.length > 0 || !hasPostgres || Deno.uid() !== 0) {
    console.log(`networks: skipped: needs root, postgresql and ${NEEDED.join(", ")}`);
    return;
  }
  for (const one of program) {
    for (const other of change) await exchange(one, other, seconds * 1000, megabytes * 1e6);
  }
}

/** Runs a command to its end in a namespace. */
const at = async ([command, ...prefix]: string[], ...args: string[]) =>
  text(await execute(command!, [...prefix, ...args]));

async function exchange(program: typeof PROGRAMS[number], change: Change, outage: number, bytes: number) {
  await using resources = new AsyncDisposableStack();
  const link = resources.use(await makeLink("veth", "client", []));
  for (const side of [link.at.client, link.at.server]) await at(side, "ip", "link", "set", "lo", "up");
  const folder = resources.use(await makeFolder("networks")).path;
  const services = await startServices(link, folder, bytes, resources);
  const ports = await startTunnel(program, link, services, resources);

  const [ssh, dump, download] = [
    startSsh(link, ports.ssh, folder, resources),
    start(link, resources, "pg_dump", "-h", "127.0.0.1", "-p", `${ports.postgres}`, "-U", "postgres"),
    start(link, resources, "curl", "-sSf", "--no-buffer", `http://127.0.0.1:${ports.web}/`),
  ];
  await ssh.type("before\n");
  assertEquals(await ssh.line(), "before");
  for (const reader of [dump, download]) await reader.until(FIRST_PART);

  const since = performance.now();
  const after = await changeNetwork(link, change);
  await ssh.type("during\n");
  const results = Promise.all([dump.end(), download.end(), ssh.line()]);
  const timer = setTimeout(() => after(), change === "down" ? outage : 0);
  let late: ReturnType<typeof setTimeout> | undefined;
  const deadline = new Promise<never>((_, reject) => {
    late = setTimeout(() => reject(new Error(`A program did not finish within ${LIMIT} ms`)), outage + LIMIT);
  });
  const [dumped, downloaded, typed] = await Promise.race([results, deadline]).finally(() => {
    clearTimeout(timer);
    clearTimeout(late);
  });
  const took = performance.now() - since;
  assertEquals(typed, "during");
  assertEquals(downloaded, services.hashes.web);
  assertEquals(dumped, services.hashes.postgres);
  await ssh.type("after\n");
  assertEquals(await ssh.line(), "after");
  assertEquals(await ssh.close(), 0);
  assert(change !== "down" || took >= outage, "The programs finished during the outage");
  console.log(
    `${program}, ${
      change === "down" ? `link down for ${outage / 1000} s` : "address changed"
    }: ssh, pg_dump and curl ` +
      `(${bytes / 1e6} MB) finished ${(took / 1000).toFixed(1)} s after the change, with the right hashes`,
  );
}

/** Changes the network, and returns a function that ends the change. */
async function changeNetwork({ at: { client, server } }: Link, change: Change): Promise<() => Promise<void>> {
  if (change === "down") {
    await at(client, "ip", "link", "set", "end", "down");
    return async () => void await at(client, "ip", "link", "set", "end", "up");
  }
  await at(server, "ip", "route", "add", `${OTHER_ADDRESS}/32`, "dev", "end");
  await at(client, "ip", "address", "del", `${ADDRESSES.client}/30`, "dev", "end");
  await at(client, "ip", "address", "add", `${OTHER_ADDRESS}/32`, "dev", "end");
  await at(client, "ip", "route", "add", ADDRESSES.server, "dev", "end", "src", OTHER_ADDRESS);
  return () => Promise.resolve();
}

/** Starts the servers of the three programs in the server's namespace. */
async function startServices(link: Link, folder: string, bytes: number, resources: AsyncDisposableStack) {
  const prefix = link.at.server;
  const postgres = resources.use(await startPostgres(prefix));
  const sql = `CREATE TABLE rows AS SELECT n, md5(n::text) AS hash FROM generate_series(1, ${ROWS}) AS n`;
  const database = ["-h", "127.0.0.1", "-p", `${postgres.port}`, "-U", "postgres"];
  await at(prefix, "psql", ...database, "-q", "-c", sql);
  const dump = await execute(prefix[0]!, [...prefix.slice(1), "pg_dump", ...database]);

  const file = pattern(bytes);
  await Deno.writeFile(`${folder}/file`, file);
  const script = "Deno.serve({ hostname: '127.0.0.1', port: 0 }, " +
    "async () => new Response((await Deno.open(Deno.args[0])).readable))";
  await Deno.writeTextFile(`${folder}/web.ts`, script);
  const web = spawn(
    prefix,
    resources,
    Deno.execPath(),
    "run",
    "-A",
    "--no-config",
    `${folder}/web.ts`,
    `${folder}/file`,
  );
  const [, webPort] = await Promise.any([web.until(/:(\d+)\//), web.until(/:(\d+)\//, "stderr")]);

  await prepareSsh(folder);
  const sshPort = freePort();
  const options = ["-D", "-e", "-f", `${folder}/config`, "-o", "ListenAddress=127.0.0.1", "-p", `${sshPort}`];
  await spawn(prefix, resources, findProgram("sshd")!, ...options).until(/Server listening/, "stderr");
  return {
    ports: [sshPort, postgres.port, Number(webPort)],
    hashes: { web: hash(file, false), postgres: hash(dump, true) },
  };
}

/** Starts both ends of the tunnel, and returns the ports of the client. */
async function startTunnel(
  program: typeof PROGRAMS[number],
  link: Link,
  { ports }: { ports: number[] },
  resources: AsyncDisposableStack,
) {
  const address = `${ADDRESSES.server}:${TUNNEL_PORT}`;
  const script = program === "command" ? `${ROOT}/tunnel.ts` : `${import.meta.dirname}/networks/forward.ts`;
  const deno = (prefix: string[], ...args: string[]) =>
    spawn(prefix, resources, Deno.execPath(), "run", "-A", script, ...args);
  const isCommand = program === "command";
  const allow = ports.flatMap((port) => ["--allow", `127.0.0.1:${port}`]);
  const server = isCommand ? ["server", "--listen", address, ...allow, "--insecure"] : ["server", address];
  await deno(link.at.server, ...server).until(/listening on/);
  const forward = ports.flatMap((port) => ["--forward", `0=127.0.0.1:${port}`]);
  const client = isCommand
    ? ["client", "--connect", address, ...forward, "--insecure"]
    : ["client", address, ...ports.map(String)];
  const lines = /listening on .*:(\d+)\n(?:.*\n)*?listening on .*:(\d+)\n(?:.*\n)*?listening on .*:(\d+)\n/;
  const [, ssh, postgres, web] = await deno(link.at.client, ...client).until(lines);
  return { ssh, postgres, web };
}

function spawn(prefix: string[], resources: AsyncDisposableStack, ...command: string[]) {
  const [program, ...args] = [...prefix, ...command];
  const options = { args, env: { NO_COLOR: "1" }, stdin: "null", stdout: "piped", stderr: "piped" } as const;
  return resources.use(watch(new Deno.Command(program!, options).spawn()));
}

/** Returns the hash of the output of curl, or of pg_dump, which encloses its output in lines with a random word. */
function hash(output: Uint8Array, isDump: boolean): string {
  const hash = createHash("sha256");
  if (!isDump) return hash.update(output).digest("hex");
  // Every byte is one character.
  const dump = Buffer.from(output.buffer).toString("latin1");
  return hash.update(dump.replaceAll(/^\\(?:un)?restrict .*\n/mg, ""), "latin1").digest("hex");
}

/** Starts a program in the client's namespace, whose output is read as far as wanted. */
function start(link: Link, resources: AsyncDisposableStack, ...command: string[]) {
  const [program, ...args] = [...link.at.client, ...command];
  const child = new Deno.Command(program!, { args, stdin: "null", stdout: "piped", stderr: "inherit" }).spawn();
  resources.defer(() => stop(child));
  const reader = child.stdout.getReader();
  const chunks: Uint8Array[] = [];
  let received = 0;
  const read = async (atLeast: number) => {
    while (received < atLeast) {
      const { done, value } = await reader.read();
      if (done) return;
      received += value.length;
      chunks.push(value);
    }
  };
  return {
    until: read,
    async end(): Promise<string> {
      await read(Infinity);
      const { code } = await child.status;
      if (code !== 0) throw new Error(`${command[0]} exited with code ${code}`);
      return hash(concat(chunks), command[0] === "pg_dump");
    },
  };
}

async function stop(child: Deno.ChildProcess): Promise<void> {
  try {
    child.kill("SIGKILL");
  } catch {
    // It has exited.
  }
  await child.status;
}

/** Starts an ssh session, whose remote program sends each line back. */
function startSsh(link: Link, port: string | undefined, folder: string, resources: AsyncDisposableStack) {
  const options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes", "LogLevel=ERROR"];
  const [program, ...args] = [
    ...link.at.client,
    ...["ssh", "-F", "/dev/null", "-i", `${folder}/user`, "-p", `${port}`],
    ...options.flatMap((option) => ["-o", option]),
    ...["root@127.0.0.1", "cat"],
  ];
  const child = new Deno.Command(program!, { args, stdin: "piped", stdout: "piped", stderr: "inherit" }).spawn();
  resources.defer(() => stop(child));
  const writer = child.stdin.getWriter();
  const reader = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  let printed = "";
  return {
    type: (keys: string) => writer.write(new TextEncoder().encode(keys)),
    async line(): Promise<string> {
      while (!printed.includes("\n")) {
        const { done, value } = await reader.read();
        if (done) throw new Error(`ssh ended after ${JSON.stringify(printed)}`);
        printed += value;
      }
      const end = printed.indexOf("\n");
      const line = printed.slice(0, end);
      printed = printed.slice(end + 1);
      return line;
    },
    async close(): Promise<number> {
      await writer.close();
      return (await child.status).code;
    },
  };
}
