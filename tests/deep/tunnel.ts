/**
 * Compares the tunnel with `ssh -L`, two chained processes of socat and a direct connection: all processes on this
 * machine, in interleaved rounds, so that load on the machine affects all of them alike.
 *
 * @module
 */

import { findProgram, run as runProgram, watch } from "../programs.ts";
import { hasPostgres, startPostgres } from "../postgres.ts";
import { conditions, machine, spread, table } from "../stats.ts";
import { integer, names, parse, positive } from "./shared/options.ts";
import { COLUMNS, type LoadName, LOADS, MEASURE, PROGRAMS } from "./tunnel/loads.ts";
import { startWays, type WayName, WAYS } from "./tunnel/ways.ts";

/** One line for the list of long tests. */
export const description = "The tunnel compared with ssh -L, two chained socat and a direct connection: " +
  `[--rounds 5] [--seconds 3] [--only ${LOADS.join(",")}] [--ways ${WAYS.join(",")}]`;

const TARGET = `${import.meta.dirname}/tunnel/target.ts`;

/** Runs the comparison; rejects if bytes are lost. */
export async function run(args: string[]): Promise<void> {
  const { rounds, seconds, only, ways: wanted } = parse(args, {
    rounds: integer(5, 1),
    seconds: positive(3),
    only: names(LOADS),
    ways: names(WAYS),
  });
  const loads = only.filter(isPossible);
  await using started = new AsyncDisposableStack();
  const ways = await startWays(started, wanted, await startTargets(started, loads));
  // The values of each column by way and kind, one for each round.
  const figures = new Map<string, number[][]>();
  for (let round = 0; round < rounds; round++) {
    for (const load of loads) {
      for (let n = 0; n < ways.length; n++) {
        const way = ways[(round + n) % ways.length]!;
        console.log(`round ${round + 1} of ${rounds}: ${load}, ${way.name}`);
        const values = await MEASURE[load](way, seconds);
        const columns = figures.get(`${way.name} ${load}`) ?? values.map(() => []);
        figures.set(`${way.name} ${load}`, columns);
        values.forEach((value, column) => columns[column]!.push(value));
      }
    }
  }
  const of = (way: WayName, load: LoadName) => figures.get(`${way} ${load}`)!;
  const head = ["way", ...loads.flatMap((load) => COLUMNS[load])];
  const rows = ways.map(({ name }) => [
    name,
    ...loads.flatMap((load) => of(name, load).map((values) => spread(values))),
  ]);
  console.log(`\n${conditions(machine(), rounds)}\n${table([head, ...rows])}`);
  if (!wanted.includes("socat") || !ways.some(({ name }) => name === "socat")) return;
  const ratios = ways.map(({ name }) => [
    name,
    ...loads.map((load) => spread(of(name, load)[0]!.map((value, round) => value / of("socat", load)[0]![round]!))),
  ]);
  console.log(
    `\nRatio to socat in the same round\n${table([["way", ...loads.map((load) => COLUMNS[load][0]!)], ...ratios])}`,
  );
}

function isPossible(load: LoadName): boolean {
  const program = PROGRAMS[load];
  const isMissing = program !== undefined && findProgram(program) === undefined;
  if (isMissing || (load === "database" && !hasPostgres)) console.log(`Skipping ${load}: needs ${program}`);
  return !isMissing && (load !== "database" || hasPostgres);
}

/** Starts the targets; returns the ports of the server of bytes, the web server and the database. */
async function startTargets(started: AsyncDisposableStack, loads: LoadName[]): Promise<number[]> {
  const args = ["run", "-A", TARGET];
  const child = new Deno.Command(Deno.execPath(), { args, stdin: "null", stdout: "piped", stderr: "piped" }).spawn();
  const [, bytes, web] = await started.use(watch(child)).until(/ports (\d+) (\d+)/);
  const ports = [Number(bytes), Number(web)];
  if (!loads.includes("database")) return ports;
  const { port } = started.use(await startPostgres());
  const server = ["-h", "127.0.0.1", "-p", `${port}`, "-U", "postgres"];
  await runProgram(findProgram("pgbench")!, ["-i", "-q", "-s", "1", ...server, "postgres"]);
  return [...ports, port];
}
