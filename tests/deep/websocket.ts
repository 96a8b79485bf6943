/**
 * Measures sessions over WebSockets: throughput and round trips relative to TCP and to a WebSocket without a session,
 * and memory with a stalled peer.
 *
 * @module
 */

import { Process } from "../programs.ts";
import { conditions, machine, median, spread, table } from "../stats.ts";
import { integer, parse } from "./shared/options.ts";

/** The line of this test in the list of long tests. */
export const description = "Sessions over WebSockets, TCP and a bare WebSocket, and a stalled peer: [--rounds 5]";

const END = new URL("websocket/end.ts", import.meta.url).pathname;
const KINDS = ["bare", "ws1", "ws2", "stream1", "stream2", "tcp1", "tcp2"];
const LABELS: Record<string, string> = {
  bare: "WebSocket without a session",
  ws1: "WebSocket, version 1",
  ws2: "WebSocket, version 2",
  stream1: "WebSocketStream, version 1",
  stream2: "WebSocketStream, version 2",
  tcp1: "TCP, version 1",
  tcp2: "TCP, version 2",
};
// Fields of a result that are compared.
const FIGURES = ["bulk", "early", "late"] as const;

/** Result of a job. A job sets only its own fields. */
interface Result {
  error?: string;
  /** Throughput in MB/s. */
  bulk: number;
  /** Median round trip in microseconds, before and after the last compiler. */
  early: number;
  late: number;
  /** Megabytes written to the unread stream. */
  written: number;
  /** The error that ended the session; absent if the session stayed open. */
  ended?: string;
  /** Another stream of the session: its throughput in MB/s, and the peak memory of its reader in MB. */
  beside?: number[];
  /** Peak resident memory of the writer in MB. */
  resident: number;
}

/** Measures every kind once per round, then the stalled peer in each version. */
export async function run(args: string[]): Promise<void> {
  const { rounds } = parse(args, { rounds: integer(5, 1) });
  const results = new Map(KINDS.map((kind) => [kind, [] as Result[]]));
  for (let round = 0; round < rounds; round++) {
    for (const kind of KINDS) {
      results.get(kind)!.push({ ...await measure(kind, "bulk"), ...await measure(kind, "echo") });
    }
  }
  const rows = KINDS.map((kind) => {
    const cells = FIGURES.flatMap((figure) => {
      const [own, bare] = [kind, "bare"].map((kind) => results.get(kind)!.map((result) => result[figure]));
      return [spread(own!), spread(own!.map((value, round) => value / bare![round]!))];
    });
    return [LABELS[kind]!, ...cells];
  });
  const columns = ["MB/s", "round trip early, µs", "late, µs"].flatMap((name) => [name, "to bare"]);
  console.log(conditions(machine(), rounds));
  console.log(table([["transport", ...columns], ...rows]));
  for (const kind of ["ws1", "ws2"]) {
    const { written, ended, beside, resident } = await measure(kind, "stall");
    const other = beside === undefined
      ? `the session ended: ${ended}`
      : `another stream moved at ${median([beside[0]!]).toFixed(0)} MB/s, resident memory of the reader ${
        beside[1]!.toFixed(0)
      } MB`;
    console.log(
      `${LABELS[kind]}, an unread stream: ${written.toFixed(1)} MB written, resident memory of the writer ` +
        `${resident.toFixed(0)} MB; ${other}`,
    );
  }
}

async function measure(kind: string, job: string): Promise<Result> {
  const end = (...args: string[]) => new Process([Deno.execPath(), "run", "-A", "--no-check", END, ...args]);
  await using server = end("server", kind);
  const port = await server.line();
  await using client = end("client", kind, job, port);
  return await client.result<Result>();
}
