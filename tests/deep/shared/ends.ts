/**
 * Both ends of a connection over a link, each a process of its own, and their cells, which take turns in every round, so
 * that a busy machine is busy for all.
 *
 * @module
 */

import { deadline } from "@std/async";
import { median } from "../../stats.ts";
import { buildGo, hasGoPackage, MEASURED } from "../../go_build.ts";
import { Process } from "../../programs.ts";
import type { Plan, Result, Role } from "./end.ts";
import { progress } from "./program.ts";

// The bound is for a cell that hangs, in milliseconds.
const BOUND = 30_000;

/** What is measured, and beside what. */
export interface Cell {
  name: string;
  /** What the ends speak: `bare`, `ours` or `go` with the version. */
  peer: string;
  /** What the server speaks where it differs. */
  server?: string;
  plan: Partial<Plan>;
  /** The cell whose rate this one's is compared with. */
  beside?: string;
}

/** What a cell gave in one round. */
export interface Outcome {
  /** Bytes a second, once warm. */
  rate?: number;
  error?: string;
}

/** What each cell gave, by its name: one outcome a round. */
export type Outcomes<Given extends Outcome> = Map<string, Given[]>;

/** What runs the ends of a cell. */
export interface Ends {
  /** The program of Go's ends. */
  go?: string | undefined;
  /** The command that starts another one where this end is; nothing before it without this. */
  at?: Record<Role, string[]>;
  /** Makes a link to a port of the server, which lasts as long as `processes`; returns the port to connect to. */
  link?: (port: number, processes: AsyncDisposableStack) => Promise<number>;
}

/** Builds Go's end in a folder; `undefined`, and a line about it, where Go or its smux is missing. */
export async function buildGoEnd(folder: string): Promise<string | undefined> {
  const go = hasGoPackage("github.com/xtaci/smux")
    ? await buildGo(folder, [`${import.meta.dirname}/peer.go`, MEASURED])
    : undefined;
  if (go === undefined) console.log("Without Go's rows: apt-get install golang-go golang-github-xtaci-smux-dev");
  return go;
}

/** The cells that need no Go, or all of them where it is built. */
export function possible<Some extends Cell>(cells: Some[], go: string | undefined): Some[] {
  return cells.filter(({ peer }) => go !== undefined || !peer.startsWith("go"));
}

/** Starts a script of Deno's that ends with `processes`. */
export function startDeno(processes: AsyncDisposableStack, at: string[], script: string, ...args: unknown[]): Process {
  return processes.use(new Process([...at, Deno.execPath(), "run", "-A", script, ...args.map(String)]));
}

/** Runs a plan; returns what the client and the server reported. */
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
    // The end that fails may leave the other waiting.
    const [fromClient, fromServer] = await Promise.all([client.result<Result>(), server.result<Result>()]);
    if (fromClient.bytes !== fromServer.bytes) {
      throw new Error(`lost data: client ${fromClient.bytes} bytes, server ${fromServer.bytes}`);
    }
    return { client: fromClient, server: fromServer };
  };
  return await deadline(work(), BOUND);
}

/** Runs every cell once a round, each time in another order; an error is an outcome too. */
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

/** Throws what went wrong in a cell with an end of ours. */
export function throwOurs(cells: Cell[], outcomes: Outcomes<Outcome>): void {
  for (const { name, peer, server } of cells) {
    const failed = outcomes.get(name)!.find(({ error }) => error !== undefined);
    if (failed !== undefined && !(server ?? peer).startsWith("go")) throw new Error(`${name}: ${failed.error}`);
  }
}

/** Bytes a second between two times of the samples, in milliseconds since the first byte. */
export function rateBetween(samples: [number, number][], from: number, to: number): number {
  const first = samples.find(([time]) => time >= from);
  const last = samples.find(([time]) => time >= to);
  if (first === undefined || last === undefined) {
    throw new Error(`it ended after ${(samples.at(-1)?.[0] ?? 0).toFixed(0)} ms`);
  }
  return (last[1] - first[1]) / (last[0] - first[0]) * 1000;
}

/** The ratio of a figure to that of another cell, of each round in which both have it. */
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

/** What of a cell stands in the place of its rate when it failed. */
export function failures(given: Outcome[]): string | undefined {
  const failed = given.filter(({ error }) => error !== undefined);
  return failed.length === 0 ? undefined : `${failed[0]!.error} (${failed.length} of ${given.length} rounds)`;
}

/** Whether the median is as it must be, as a word and with it. */
export function verdict(
  values: number[],
  isGood: (median: number) => boolean,
  text: (value: number) => string,
): string {
  if (values.length === 0) return "not measured";
  return `${isGood(median(values)) ? "yes" : "no"}, ${text(median(values))}`;
}
