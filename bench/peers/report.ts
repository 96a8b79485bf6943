/**
 * Formats the results of the comparison as Markdown tables and a chart.
 *
 * @module
 */

import { conditions, median, short, spread, table as markdown } from "../../tests/stats.ts";
import { bars } from "../chart.ts";
import type { Result } from "./shape.ts";

/** A measured figure. */
export type Figure = "rate" | "p50" | "p99" | "resident" | "heap";

/** The table of a workload. */
export interface Row {
  /** Its short name. */
  name: string;
  /** What it does. */
  what: string;
  /** The unit of its rate; default: operations per second. */
  unit?: "MB/s";
  /** Its figures. */
  figures: Figure[];
  /** The peer that each peer is compared with. */
  against: Record<string, string>;
  /** Whether the chart includes it. */
  isCharted?: boolean;
}

/** The results of the comparison. */
export interface Report {
  /** The machine. */
  machine: string;
  /** Number of rounds requested. */
  rounds: number;
  /** Results by workload and peer, one for each round in which the peer ran. */
  results: Record<string, Record<string, Result[]>>;
}

const isMemory = (figure: Figure) => figure === "resident" || figure === "heap";
const label = (figure: Figure, unit = "/s") =>
  isMemory(figure) ? `${figure}, KiB each` : figure === "rate" ? unit : `${figure}, µs`;

/** Formats the medians, then a table for each workload. `peers` describes each peer by name. */
export function text(report: Report, rows: Row[], peers: Record<string, string>): string {
  const { machine, rounds, results } = report;
  const shown = rows.filter(({ name }) => results[name] !== undefined);
  const names = Object.keys(peers).filter((peer) => shown.some(({ name }) => results[name]![peer] !== undefined));
  const columns = names.filter((peer) => shown.some(({ against }) => against[peer] !== undefined));
  const medians = [["workload", "figure", ...columns]];
  const blocks: string[] = [];
  for (const row of shown) {
    const byPeer = results[row.name]!;
    for (const figure of row.figures) {
      medians.push([
        row.name,
        isMemory(figure) ? label(figure) : figure === "rate" ? "ratio" : `${figure}, ratio`,
        ...columns.map((peer) => {
          const values = isMemory(figure) ? shownOf(row, byPeer, peer, figure) : ratios(row, byPeer, peer, figure);
          if (values.length > 0) return short(median(values));
          const error = byPeer[peer]?.find(({ error }) => error !== undefined)?.error;
          return error === undefined ? "" : error === "hangs" ? error : "fails";
        }),
      ]);
    }
    const table = [[
      "peer",
      ...row.figures.flatMap((figure) => [label(figure, row.unit), ...ratioOf(figure)]),
      "failure",
    ]];
    for (const peer of names.filter((name) => byPeer[name] !== undefined)) {
      table.push([
        peer,
        ...row.figures.flatMap((figure) => [
          spread(shownOf(row, byPeer, peer, figure)),
          ...ratioOf(figure).map(() => spread(ratios(row, byPeer, peer, figure))),
        ]),
        failure(byPeer[peer]!),
      ]);
    }
    blocks.push(`### ${row.name}: ${row.what}\n\n${markdown(table)}`);
  }
  return `${conditions(machine, rounds)}

## Medians

${markdown(medians)}

${names.map((peer) => `- ${peer}: ${peers[peer]}`).join("\n")}

A ratio is relative to the peer of comparison in the same round: for rates higher is better, for latencies lower.
Memory is that of the client.

## Median, minimum and maximum

${blocks.join("\n\n")}`;
}

/** Draws the ratios of rates as bars. */
export function chart(report: Report, rows: Row[], peers: Record<string, string>): string {
  const { machine, rounds, results } = report;
  const shown = rows.filter(({ name, isCharted }) => isCharted && results[name] !== undefined);
  const names = Object.keys(peers).filter((peer) =>
    shown.some(({ name, against }) => against[peer] !== undefined && results[name]![peer] !== undefined)
  );
  return bars({
    title: "Speed beside a bare Deno socket",
    subtitle: `${machine}, median of ${rounds}`,
    categories: shown.map(({ name, what }) => `${name}: ${what}`),
    series: names.map((peer) => ({
      name: peers[peer]!,
      values: shown.map((row) => {
        const values = ratios(row, results[row.name]!, peer, "rate");
        return values.length > 0 ? median(values) : undefined;
      }),
    })).filter(({ values }) => values.some((value) => value !== undefined)),
    y: "times the bare socket",
    log: true,
    line: 1,
  });
}

type ByPeer = Record<string, Result[]>;

const ratioOf = (figure: Figure) => isMemory(figure) ? [] : ["ratio"];

/** The divisor from a figure to the unit that is shown. */
const scale = (figure: Figure, unit?: string) =>
  isMemory(figure) ? 1024 : figure !== "rate" ? 1 / 1000 : unit === undefined ? 1 : 1e6;

/** Returns the results of a peer in the unit that is shown. */
function shownOf({ unit }: Row, byPeer: ByPeer, peer: string, figure: Figure): number[] {
  return byPeer[peer]?.flatMap((result) => result[figure] ?? []).map((value) => value / scale(figure, unit)) ?? [];
}

function ratios({ against }: Row, byPeer: ByPeer, peer: string, figure: Figure): number[] {
  const other = byPeer[against[peer] ?? ""] ?? [];
  return byPeer[peer]?.flatMap((result, round) => {
    const [mine, theirs] = [result[figure], other[round]?.[figure]];
    return mine === undefined || theirs === undefined ? [] : mine / theirs;
  }) ?? [];
}

/** Returns the first error, if there was one. */
function failure(results: Result[]): string {
  const [error] = results.flatMap(({ error }) => error ?? []);
  // These characters would break the table.
  return error === undefined ? "" : `turn ${results.length}: ${error.replaceAll("|", "/").replaceAll("\n", " ")}`;
}
