/**
 * The carriers between client and server, and the entries of a tunnel.
 *
 * @module
 */

import { delay } from "@std/async";
import { findProgram, makeFolder, watch, type Watched } from "../../programs.ts";
import { freePort } from "../../support.ts";
import { CuttingProxy } from "../shared/cutting_proxy.ts";
import { type Access, type ProgramName, PROGRAMS, type Target } from "./targets.ts";
import { untilListening } from "../shared/listening.ts";

/** The names of the carriers. */
export const CARRIERS = ["tcp", "tls", "ws", "wss", "tinyproxy", "microsocks"] as const;
/** The name of a carrier. The last two are `wss` through this proxy. */
export type CarrierName = typeof CARRIERS[number];

/** The names of the entries. */
export const ENTRIES = ["forward", "reverse", "socks", "stdio"] as const;
/** The name of an entry. */
export type EntryName = typeof ENTRIES[number];

const SCRIPT = new URL("../../../tunnel.ts", import.meta.url).pathname;
const TLS = new URL("../../fixtures/tls/", import.meta.url).pathname;
const SECRET_PATH = "/way-in-7f3a";
const COMMAND = [Deno.execPath(), "run", "-A", "--no-config", SCRIPT];

/** A tunnel over one carrier. */
export interface Tunnel {
  /** Returns how a program reaches its server by an entry. Resources end with the stack. */
  access(entry: EntryName, program: ProgramName, resources: AsyncDisposableStack): Promise<Access>;
  /** The output of both ends, for a report. */
  output(): string;
}

function spawn(started: AsyncDisposableStack, [name, ...args]: string[]): Watched {
  const options = { args, stdin: "null", stdout: "piped", stderr: "piped", env: { NO_COLOR: "1" } } as const;
  return started.use(watch(new Deno.Command(name!, options).spawn()));
}

/** Starts the proxy of a carrier; returns the value of `--proxy`. */
async function startProxy(started: AsyncDisposableStack, name: "tinyproxy" | "microsocks"): Promise<string> {
  const port = freePort();
  if (name === "microsocks") {
    spawn(started, ["microsocks", "-i", "127.0.0.1", "-p", `${port}`, "-u", "alice", "-P", "open"]);
  } else {
    const { path } = started.use(await makeFolder("tinyproxy"));
    const config = [`Port ${port}`, "Listen 127.0.0.1", "Allow 127.0.0.1", "BasicAuth alice open", "Timeout 600", ""];
    await Deno.writeTextFile(`${path}/config`, config.join("\n"));
    spawn(started, [findProgram("tinyproxy")!, "-d", "-c", `${path}/config`]);
  }
  await untilListening(port);
  return `${name === "microsocks" ? "socks5" : "http"}://alice:open@127.0.0.1:${port}`;
}

/**
 * Starts a server and a client.
 *
 * @param cut Milliseconds after which the connection to the server is cut, again and again; 0: never.
 */
export async function startTunnel(
  started: AsyncDisposableStack,
  carrier: CarrierName,
  targets: Record<ProgramName, Target>,
  version: "1" | "2",
  cut: number,
): Promise<Tunnel> {
  const isSecure = carrier !== "tcp" && carrier !== "ws";
  const scheme = carrier === "tcp" || carrier === "tls" ? "" : isSecure ? "wss://" : "ws://";
  const path = scheme === "" ? "" : SECRET_PATH;
  const certificate = isSecure ? ["--cert", `${TLS}localhost.pem`, "--key", `${TLS}localhost.key`] : [];
  const address = (port: number) => `${scheme}localhost:${port}${path}`;
  const allow = ["--allow", "127.0.0.1:*", "--allow-listen", "127.0.0.1:*"];
  const port = freePort();
  const server = spawn(started, [...COMMAND, "server", "--listen", address(port), ...allow, ...certificate]);
  await server.until(/listening on /);
  const near = cut > 0 ? started.use(new CuttingProxy(port, cut)).port : port;
  const proxy = carrier === "tinyproxy" || carrier === "microsocks"
    ? ["--proxy", await startProxy(started, carrier)]
    : [];
  const ca = isSecure ? ["--ca", `${TLS}ca.pem`] : [];
  const connect = ["--connect", address(near), "--smux", version, ...ca, ...proxy];
  const pairs = PROGRAMS.map((program) => `0=127.0.0.1:${targets[program].port}`);
  const reverse = PROGRAMS.map((program) => `127.0.0.1:0=127.0.0.1:${targets[program].port}`);
  // The server distinguishes reverse forwards by their LISTEN.
  const free = reverse.map(() => freePort());
  const client = spawn(started, [
    ...COMMAND,
    "client",
    ...connect,
    ...pairs.flatMap((pair) => ["--forward", pair]),
    ...reverse.flatMap((pair, n) => ["--reverse", pair.replace(":0=", `:${free[n]}=`)]),
    "--socks",
    "0",
  ]);
  const [lines] = await client.until(/(?:listening on \S+\s+){9}/);
  const ports = Array.from(lines.matchAll(/:(\d+)\s/g), ([, port]) => Number(port));
  const tunnelled = { ports, targets, connect };
  return {
    access: (entry, program, resources) => openEntry(tunnelled, entry, program, resources),
    output: () => [server, client].map(({ printed }) => printed.stdout + printed.stderr).join(""),
  };
}

/** What the entries of a tunnel lead to. */
interface Tunnelled {
  /** The ports of the client: those of `--forward`, `--socks` and `--reverse`, in this order. */
  ports: number[];
  targets: Record<ProgramName, Target>;
  connect: string[];
}

async function openEntry(
  { ports, targets, connect }: Tunnelled,
  entry: EntryName,
  program: ProgramName,
  resources: AsyncDisposableStack,
): Promise<Access> {
  const n = PROGRAMS.indexOf(program);
  const target = targets[program].port;
  const socks = ports[PROGRAMS.length]!;
  if (entry === "forward") return { port: ports[n]! };
  if (entry === "reverse") return { port: ports[PROGRAMS.length + 1 + n]! };
  if (entry === "socks" && program === "curl") return { port: target, socks };
  const through = entry === "socks"
    ? `SOCKS4A:127.0.0.1:127.0.0.1:${target},socksport=${socks}`
    : `EXEC:'${[...COMMAND, "client", ...connect, "--forward", `-=127.0.0.1:${target}`].join(" ")}'`;
  if (program === "ssh") {
    const command = entry === "socks"
      ? `socat - ${through}`
      : [...COMMAND, "client", ...connect, "--forward", "-=%h:%p"].join(" ");
    return { port: target, proxyCommand: command };
  }
  // For programs that have no option for a proxy or for a command.
  const port = freePort();
  spawn(resources, ["socat", "-d", `TCP-LISTEN:${port},bind=127.0.0.1,reuseaddr,fork`, through]);
  await untilBound(port);
  return { port };
}

/** Waits until a port is listened on, without connecting: each connection would start the command. */
async function untilBound(port: number): Promise<void> {
  const address = `0100007F:${port.toString(16).toUpperCase().padStart(4, "0")} 00000000:0000 0A`;
  while (!Deno.readTextFileSync("/proc/net/tcp").includes(address)) await delay(10);
}
