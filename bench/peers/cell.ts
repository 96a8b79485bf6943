/**
 * Runs one cell of the comparison: a client process and a server process.
 *
 * @module
 */

import { deadline } from "@std/async";
import { buildGo, hasGoPackage, MEASURED } from "../../tests/go_build.ts";
import { Process } from "../../tests/programs.ts";
import type { Plan, Result } from "./shape.ts";

const HERE = `${import.meta.dirname}/`;
// The prefix of the Go peers' names, and their files and packages.
const GO = "go";
const GO_FILES = [
  { file: "smux.go", needs: "github.com/xtaci/smux", peers: ["go1", "go2"] },
  { file: "yamux.go", needs: "github.com/hashicorp/yamux", peers: ["goyamux"] },
];
// Time limit of a cell in milliseconds; a cell normally takes a few seconds.
const BOUND = 20_000;

/** The cores of the two processes. */
export interface Cores {
  /** The client's. */
  client: number;
  /** The server's. */
  server: number;
}

/** The available Go peers. */
export interface GoPeers {
  /** Path of the program. */
  path: string;
  /** Names of its peers. */
  names: string[];
  /** Packages that are not installed. */
  missing: string[];
}

/** Runs one cell; a failure is returned as its result. */
export async function cell(peer: string, plan: Plan, cores?: Cores, go?: GoPeers): Promise<Result> {
  await using processes = new AsyncDisposableStack();
  const start = (role: "client" | "server", plan: Plan) => {
    const own = [role, peer.startsWith(GO) ? peer.slice(GO.length) : peer, JSON.stringify(plan)];
    const command = peer.startsWith(GO)
      ? [go!.path, ...own]
      : [Deno.execPath(), "run", "-A", "--v8-flags=--expose-gc", `${HERE}end.ts`, ...own];
    const tied = cores === undefined ? command : ["taskset", "-c", `${cores[role]}`, ...command];
    return processes.use(new Process(tied));
  };
  const work = async (): Promise<Result> => {
    const server = start("server", plan);
    const port = Number(await server.line());
    const client = start("client", { ...plan, port });
    // A server that only answers prints a result only if it fails.
    const results = [server.result<Result>(), client.result<Result>()] as const;
    if (plan.kind !== "bulk" && plan.kind !== "accept") return await Promise.race(results);
    // Rejects when one side fails, because the other may then wait without end.
    const [received, sent] = await Promise.all(results);
    if (received.bytes !== sent.bytes) throw new Error(`lost data: received ${received.bytes} of ${sent.bytes}`);
    return received;
  };
  try {
    return await deadline(work(), BOUND);
  } catch (error) {
    const hangs = error instanceof DOMException && error.name === "TimeoutError";
    return { error: hangs ? "hangs" : error instanceof Error ? error.message : `${error}` };
  }
}

/** Builds the Go peers in `folder`; `undefined` without Go or without any of the packages. */
export async function buildGoPeers(folder: string): Promise<GoPeers | undefined> {
  const there = GO_FILES.filter(({ needs }) => hasGoPackage(needs));
  if (there.length === 0) return undefined;
  const path = await buildGo(folder, [`${HERE}peer.go`, MEASURED, ...there.map(({ file }) => HERE + file)]);
  if (path === undefined) return undefined;
  return {
    path,
    names: there.flatMap(({ peers }) => peers),
    missing: GO_FILES.filter((file) => !there.includes(file)).map(({ needs }) => needs),
  };
}

/** Whether processes can be pinned to two cores. */
export async function canTie(): Promise<boolean> {
  if (navigator.hardwareConcurrency < 2) return false;
  try {
    return (await new Deno.Command("taskset", { args: ["-c", "0,1", "true"], stderr: "null" }).output()).success;
  } catch {
    return false;
  }
}
