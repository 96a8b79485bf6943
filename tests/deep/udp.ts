/**
 * UDP through the tunnel, both ends in processes of their own: `dig` and `iperf3 -u`, each direct and through the tunnel,
 * and the memory of both ends with a thousand sources and after them.
 *
 * @module
 */

import { findProgram, kill, run as runProgram, watch } from "../programs.ts";
import { machine, median } from "../stats.ts";
import { freePort } from "../support.ts";
import { portOf } from "../tunnel_support.ts";
import { answerDns, ask, bind, makeUdpTarget } from "../udp_support.ts";
import { integer, parse, positive } from "./shared/options.ts";

/** One line for the list of long tests. */
export const description = "UDP through the tunnel: dig, iperf3 -u and the memory of many sources: " +
  "[--queries 20] [--seconds 5] [--mbit 20] [--size 1200] [--sources 1000]";

// Seconds after which a source is forgotten.
const UDP_TIMEOUT = 5;

const SCRIPT = new URL("../../tunnel.ts", import.meta.url).href;

/** Runs the test; rejects if an answer is missing or a source stays. */
export async function run(args: string[]): Promise<void> {
  const { queries, seconds, mbit, size, sources } = parse(args, {
    queries: integer(20, 1),
    seconds: positive(5),
    mbit: positive(20),
    size: integer(1200, 16),
    sources: integer(1000, 1),
  });
  await using started = new AsyncDisposableStack();
  const dns = started.use(makeUdpTarget(answerDns));
  const echo = started.use(makeUdpTarget());
  const port = freePort();
  const rules = ["--allow", "127.0.0.1:*", "--allow", "udp:127.0.0.1:*"];
  const timeout = ["--udp-timeout", `${UDP_TIMEOUT}`];
  const server = started.use(await start(["server", "--listen", "0", ...rules, ...timeout], 1));
  const forwards = [`udp:0=${dns.addr}`, `udp:0=${echo.addr}`, `udp:0=127.0.0.1:${port}`];
  const all = forwards.flatMap((forward) => ["--forward", forward]);
  const client = started.use(await start(["client", "--connect", server.addrs[0]!, ...all, ...timeout], 3));
  const [dnsPort, echoPort, iperfPort] = client.addrs.map((addr) => portOf(addr.slice("udp:".length)));
  console.log(machine());

  for (const [way, at] of [["direct", portOf(dns.addr)], ["tunnel", dnsPort!]] as const) await dig(way, at, queries);
  // iperf3 needs a connection to the same port as its datagrams.
  const control = started.use(
    await start(["client", "--connect", server.addrs[0]!, "--forward", `${iperfPort}=127.0.0.1:${port}`], 1),
  );
  await iperf("direct", port, port, { seconds, mbit, size });
  await iperf("tunnel", portOf(control.addrs[0]!), port, { seconds, mbit, size });
  await serveMany(`127.0.0.1:${echoPort}`, sources, { server: server.pid, client: client.pid });
}

/** Starts one end of the tunnel, and waits until it listens. */
async function start(args: string[], places: number) {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-config", "-A", SCRIPT, ...args],
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
    env: { NO_COLOR: "1" },
  }).spawn();
  const watched = watch(child);
  const [printed] = await watched.until(new RegExp(`^(listening on \\S+\n){${places}}`, "m"));
  const addrs = printed.trimEnd().split("\n").map((line) => line.slice("listening on ".length));
  return { pid: child.pid, addrs, [Symbol.asyncDispose]: () => watched[Symbol.asyncDispose]() };
}

async function dig(way: string, port: number, queries: number): Promise<void> {
  const program = findProgram("dig");
  if (program === undefined) return console.log(`dig, ${way}: skipped, dig is not installed`);
  const times: number[] = [];
  for (let n = 0; n < queries; n++) {
    const args = ["@127.0.0.1", "-p", `${port}`, "+tries=3", "+time=2", `n${n}.test`, "A"];
    const output = new TextDecoder().decode(await runProgram(program, args));
    const [, time] = /Query time: (\d+) msec/.exec(output) ?? [];
    if (time === undefined || !output.includes("192.0.2.53")) throw new Error(`dig, ${way}: no answer: ${output}`);
    times.push(Number(time));
  }
  console.log(`dig, ${way}: ${queries} of ${queries} queries answered, median ${median(times)} ms`);
}

/** What iperf3 prints, as far as it is used here. */
interface Report {
  error?: string;
  end: { sum: { bits_per_second: number; lost_percent: number; jitter_ms: number } };
}

async function iperf(
  way: string,
  at: number,
  port: number,
  { seconds, mbit, size }: { seconds: number; mbit: number; size: number },
): Promise<void> {
  const program = findProgram("iperf3");
  if (program === undefined) return console.log(`iperf3 -u, ${way}: skipped, iperf3 is not installed`);
  const child = new Deno.Command(program, {
    args: ["-s", "-1", "--forceflush", "-B", "127.0.0.1", "-p", `${port}`],
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  await using server = watch(child);
  await server.until(/Server listening/);
  try {
    const rate = ["-b", `${mbit}M`, "-l", `${size}`, "-t", `${seconds}`];
    const output = await runProgram(program, ["-u", "-J", "-c", "127.0.0.1", "-p", `${at}`, ...rate]);
    const { end: { sum } } = JSON.parse(new TextDecoder().decode(output)) as Report;
    const arrived = sum.bits_per_second / 1e6 * (1 - sum.lost_percent / 100);
    const figures = [
      `${arrived.toFixed(1)} of ${mbit} Mbit/s arrived in datagrams of ${size} bytes`,
      `${sum.lost_percent.toFixed(2)} % lost`,
      `jitter ${sum.jitter_ms.toFixed(2)} ms`,
    ];
    console.log(`iperf3 -u, ${way}: ${figures.join(", ")}`);
  } finally {
    kill(child);
  }
}

/** Returns the memory of a process in MB. */
async function memoryOf(pid: number): Promise<number> {
  const [, kilobytes] = /^VmRSS:\s+(\d+) kB$/m.exec(await Deno.readTextFile(`/proc/${pid}/status`))!;
  return Math.round(Number(kilobytes) / 1000);
}

/** Returns the number of open files of a process. */
const filesOf = (pid: number) => Array.from(Deno.readDirSync(`/proc/${pid}/fd`)).length;

async function serveMany(to: string, count: number, pids: { server: number; client: number }): Promise<void> {
  if (Deno.build.os !== "linux") return console.log("sources: skipped, needs /proc");
  const ends = Object.entries(pids);
  const describe = async () =>
    (await Promise.all(ends.map(async ([end, pid]) => `${end} ${await memoryOf(pid)} MB, ${filesOf(pid)} files`)))
      .join("; ");
  const before = filesOf(pids.server);
  console.log(`sources, before: ${await describe()}`);
  const sockets = Array.from({ length: count }, () => bind());
  // In groups: the kernel drops what exceeds the buffer of a socket.
  const began = performance.now();
  for (let at = 0; at < count; at += 50) {
    await Promise.all(sockets.slice(at, at + 50).map((socket) => ask(socket, new Uint8Array(100), to)));
  }
  const seconds = ((performance.now() - began) / 1000).toFixed(1);
  console.log(`sources, ${count} served in ${seconds} s: ${await describe()}`);
  for (const socket of sockets) socket[Symbol.dispose]();
  const limit = performance.now() + 3000 * UDP_TIMEOUT;
  while (filesOf(pids.server) > before + 5 && performance.now() < limit) {
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  console.log(`sources, after ${UDP_TIMEOUT} s without datagrams: ${await describe()}`);
  const left = filesOf(pids.server) - before;
  if (left > 5) throw new Error(`${left} sockets of sources are left`);
}
