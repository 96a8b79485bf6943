/**
 * Runs both ends of a connection over a link, each in a process of its own, for all cells in interleaved rounds, so
 * that load on the machine affects all cells alike.
 *
 * @module
 */

import { deadline } from "@std/async";
import { median } from "../../stats.ts";
import { buildGo, hasGoPackage, MEASURED } from "../../go_build.ts";
import { Process } from "../../programs.ts";
import type { Plan, Result, Role } from "./end.ts";
import { progress } from "./program.ts";

// Timeout of a cell, in milliseconds.
const BOUND = 30_000;

/** A configuration to measure, and the one to compare it with. */
export interface Cell {
  name: string;
  /** Implementation of the ends: `bare`, `ours` or `go` with the version. */
  peer: string;
  /** Implementation of the server (default: `peer`). */
  server?: string;
  plan: Partial<Plan>;
  /** Name of the cell to compare the rate with. */
  beside?: string;
}

/** The result of a cell in one round. */
export interface Outcome {
  /** Bytes per second after the warm-up. */
  rate?: number;
  error?: string;
}

/** The results by cell name, one for each round. */
export type Outcomes<Given extends Outcome> = Map<string, Given[]>;

/** How the ends of a cell are started. */
export interface Ends {
  /** The program of Go's ends. */
  go?: string | undefined;
  /** Command prefix for each end, such as one that enters its network namespace (default: none). */
  at?: Record<Role, string[]>;
  /** Starts a link to a port of the server, owned by `processes`; returns the port to connect to. */
  link?: (port: number, processes: AsyncDisposableStack) => Promise<number>;
}

/** Builds Go's end in a folder; returns `undefined` and prints a note if Go or its smux is not installed. */
export async function buildGoEnd(folder: string): Promise<string | undefined> {
  const go = hasGoPackage("github.com/xtaci/smux")
    ? await buildGo(folder, [`${import.meta.dirname}/peer.go`, MEASURED])
    : undefined;
  if (go === undefined) console.log("Skipping Go's rows: needs golang-go and golang-github-xtaci-smux-dev");
  return go;
}

/** Returns all cells, without those of Go if it is not built. */
export function possible<Some extends Cell>(cells: Some[], go: string | undefined): Some[] {
  return cells.filter(({ peer }) => go !== undefined || !peer.startsWith("go"));
}

/** Starts a Deno script, owned by `processes`. */
export function startDeno(processes: AsyncDisposableStack, at: string[], script: string, ...args: unknown[]): Process {
  return processes.use(new Process([...at, Deno.execPath(), "run", "-A", script, ...args.map(String)]));
}

/** Runs a plan; returns the reports of the client and the server. */
export async function runEnds(cell: Cell, plan: Plan, { go, at, link }: Ends): Promise<Record<Role, Result>> {
  await using processes = new AsyncDisposableStack();
  const end = (role: Role, peer: string, plan: Plan) => {
    const json = JSON.stringify(plan);
    return peer.startsWith("go")
      ? processes.use(new Process([...at?.[role] ?? [], go!, role, peer.slice(2), json]))
      : startDeno(processes, at?.[role] ?? [], `${import.meta.dirname}/end.ts`, role, peer, json);
  };
  const work = async () => {
    const server = end("server", cell.server ?? cell.peer, plan);
    let port = Number(await server.line());
    if (link !== undefined) port = await link(port, processes);
    const client = end("client", cell.peer, { ...plan, port });
    // Promise.all: when one end fails, the other may never report.
    const [fromClient, fromServer] = await Promise.all([client.result<Result>(), server.result<Result>()]);
    if (fromClient.bytes !== fromServer.bytes) {
      throw new Error(`lost data: client ${fromClient.bytes} bytes, server ${fromServer.bytes}`);
    }
    return { client: fromClient, server: fromServer };
  };
  return await deadline(work(), BOUND);
}

/** Runs every cell once per round, in rotating order; records errors as outcomes. */
export async function inRounds<Some extends Cell, Given extends Outcome>(
  cells: Some[],
  rounds: number,
  measure: (cell: Some) => Promise<Given>,
  beforeRound?: () => Promise<void>,
): Promise<Outcomes<Given | Outcome>> {
  const outcomes: Outcomes<Given | Outcome> = new Map(cells.map(({ name }) => [name, []]));
  for (let round = 0; round < rounds; round++) {
    progress(`round ${round + 1}`);
    await beforeRound?.();
    for (let n = 0; n < cells.length; n++) {
      const cell = cells[(round + n) % cells.length]!;
      progress(`round ${round + 1}: ${cell.name}`);
      outcomes.get(cell.name)!.push(await measure(cell).catch(failure));
    }
  }
  progress();
  return outcomes;
}

function failure(error: unknown): Outcome {
  const hangs = error instanceof DOMException && error.name === "TimeoutError";
  return { error: hangs ? "hangs" : error instanceof Error ? error.message : `${error}` };
}

/** Throws the first error of a cell whose server is not Go's. */
export function throwOurs(cells: Cell[], outcomes: Outcomes<Outcome>): void {
  for (const { name, peer, server } of cells) {
    const failed = outcomes.get(name)!.find(({ error }) => error !== undefined);
    if (failed !== undefined && !(server ?? peer).startsWith("go")) throw new Error(`${name}: ${failed.error}`);
  }
}

/** Returns the bytes per second between two sample times, which are milliseconds since the first byte. */
export function rateBetween(samples: [number, number][], from: number, to: number): number {
  const first = samples.find(([time]) => time >= from);
  const last = samples.find(([time]) => time >= to);
  if (first === undefined || last === undefined) {
    throw new Error(`transfer ended after ${(samples.at(-1)?.[0] ?? 0).toFixed(0)} ms`);
  }
  return (last[1] - first[1]) / (last[0] - first[0]) * 1000;
}

/** Returns the ratio of a figure to that of cell `beside`, for each round in which both have it. */
export function ratios<Given extends Outcome>(
  outcomes: Outcomes<Given>,
  name: string,
  beside: string | undefined,
  figure: (outcome: Given) => number | undefined,
): number[] {
  const others = outcomes.get(beside ?? "") ?? [];
  return outcomes.get(name)!.flatMap((outcome, round) => {
    const value = figure(outcome);
    const other = others[round] && figure(others[round]);
    return value === undefined || other === undefined ? [] : [value / other];
  });
}

/** Returns the text shown instead of the rate if a cell failed. */
export function failures(given: Outcome[]): string | undefined {
  const failed = given.filter(({ error }) => error !== undefined);
  return failed.length === 0 ? undefined : `${failed[0]!.error} (${failed.length} of ${given.length} rounds)`;
}

/** Returns "yes" or "no" for the median, followed by its text. */
export function verdict(
  values: number[],
  isGood: (median: number) => boolean,
  text: (value: number) => string,
): string {
  if (values.length === 0) return "not measured";
  return `${isGood(median(values)) ? "yes" : "no"}, ${text(median(values))}`;
}
