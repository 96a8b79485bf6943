/**
 * The ways to the targets that are compared: directly, by two chained processes of socat, by `ssh -L`, and by the tunnel,
 * over TCP in both versions, and over its other carriers in version 2.
 *
 * @module
 */

import { findProgram, makeFolder, prepareSsh, watch } from "../../programs.ts";
import { freePort } from "../../support.ts";
import { untilListening } from "../shared/listening.ts";

const TLS = `${import.meta.dirname}/../../fixtures/tls`;
const TUNNEL = `${import.meta.dirname}/../../../tunnel.ts`;

/** The names of the ways. */
export const WAYS = ["directly", "socat", "ssh", "sluice1", "sluice2", "tls", "ws", "wss"] as const;
/** The name of a way. */
export type WayName = typeof WAYS[number];

/** A way to the targets. */
export interface Way {
  name: WayName;
  /** The ports at which it listens, in the order of the targets. */
  ports: number[];
  /** Ids of the processes that are measured. */
  ids: number[];
}

/** Starts the ways; those whose programs are missing are left out. */
export async function startWays(
  started: AsyncDisposableStack,
  wanted: readonly WayName[],
  targets: number[],
): Promise<Way[]> {
  const ways: Way[] = [];
  for (const name of wanted) {
    const way = await START[name](new Starter(started), targets);
    if (way !== undefined) ways.push({ name, ...way });
  }
  return ways;
}

/** Starts processes that end with the test. */
class Starter {
  readonly ids: number[] = [];
  readonly started: AsyncDisposableStack;

  constructor(started: AsyncDisposableStack) {
    this.started = started;
  }

  /** Starts a process, and waits until its output has matched each of `ready`; returns the first group of each. */
  async run(name: string, args: string[], output: "stdout" | "stderr", ready: RegExp[]): Promise<string[]> {
    const child = new Deno.Command(name, {
      args,
      env: { NO_COLOR: "1" },
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    const watched = this.started.use(watch(child));
    this.ids.push(child.pid);
    const found = [];
    for (const what of ready) found.push((await watched.until(what, output))[1] ?? "");
    return found;
  }
}

type Started = Omit<Way, "name"> | undefined;

const START: Record<WayName, (starter: Starter, targets: number[]) => Promise<Started>> = {
  directly: (_, targets) => Promise.resolve({ ports: targets, ids: [] }),
  socat: startSocat,
  ssh: startSsh,
  sluice1: (starter, targets) => startTunnel(starter, targets, 1),
  sluice2: (starter, targets) => startTunnel(starter, targets, 2),
  tls: (starter, targets) => startTunnel(starter, targets, 2, "", true),
  ws: (starter, targets) => startTunnel(starter, targets, 2, "ws://"),
  wss: (starter, targets) => startTunnel(starter, targets, 2, "wss://", true),
};

async function startTunnel(
  starter: Starter,
  targets: number[],
  version: 1 | 2,
  scheme = "",
  isSecure = false,
): Promise<Started> {
  const deno = (args: string[], ready: RegExp[]) =>
    starter.run(Deno.execPath(), ["run", "-A", TUNNEL, ...args], "stdout", ready);
  const allow = targets.flatMap((port) => ["--allow", `127.0.0.1:${port}`]);
  const listen = ["--listen", scheme === "" ? "0" : `${scheme}127.0.0.1:0/`];
  const [certificate, ca] = isSecure
    ? [["--cert", `${TLS}/localhost.pem`, "--key", `${TLS}/localhost.key`], ["--ca", `${TLS}/ca.pem`]]
    : [[], []];
  const [server] = await deno(["server", ...listen, ...certificate, ...allow], [/listening on \S+:(\d+)/]);
  const forward = targets.flatMap((port) => ["--forward", `0=127.0.0.1:${port}`]);
  // One line for each forward, in their order.
  const ready = targets.map((_, n) => new RegExp(`(?:listening on 127\\.0\\.0\\.1:(\\d+)\\s+){${n + 1}}`));
  const args = ["client", "--connect", `${scheme}localhost:${server}`, ...ca, "--smux", `${version}`, ...forward];
  return { ports: (await deno(args, ready)).map(Number), ids: starter.ids };
}

async function startSocat(starter: Starter, targets: number[]): Promise<Started> {
  const socat = findProgram("socat");
  if (socat === undefined) return void console.log("Skipping socat: needs socat");
  const chain = async (to: number) => {
    const port = freePort();
    const from = `TCP-LISTEN:${port},fork,reuseaddr,bind=127.0.0.1,backlog=4096`;
    // Without messages, which would slow it down; so it does not report when it listens.
    await starter.run(socat, [from, `TCP:127.0.0.1:${to}`], "stderr", []);
    await untilListening(port);
    return port;
  };
  const ports = [];
  for (const target of targets) ports.push(await chain(await chain(target)));
  return { ports, ids: starter.ids };
}

async function startSsh(starter: Starter, targets: number[]): Promise<Started> {
  const [ssh, sshd] = [findProgram("ssh"), findProgram("sshd")];
  if (ssh === undefined || sshd === undefined || Deno.uid() !== 0) {
    return void console.log("Skipping ssh: needs openssh-server, and root");
  }
  const { path: folder } = starter.started.use(await makeFolder("tunnel"));
  await prepareSsh(folder);
  const port = freePort();
  const listen = ["-o", "ListenAddress=127.0.0.1", "-o", "MaxStartups=100", "-p", `${port}`];
  await starter.run(sshd, ["-D", "-e", "-f", `${folder}/config`, ...listen], "stderr", [/Server listening/]);
  const ports = targets.map(() => freePort());
  const options = [
    "StrictHostKeyChecking=no",
    "UserKnownHostsFile=/dev/null",
    "BatchMode=yes",
    "ExitOnForwardFailure=yes",
  ];
  const forward = targets.flatMap((target, n) => ["-L", `127.0.0.1:${ports[n]}:127.0.0.1:${target}`]);
  const args = ["-N", "-v", "-F", "/dev/null", "-i", `${folder}/user`, "-p", `${port}`, ...forward];
  const all = [...args, ...options.flatMap((option) => ["-o", option]), "root@127.0.0.1"];
  await starter.run(ssh, all, "stderr", [/Entering interactive session/]);
  return { ports, ids: starter.ids };
}
