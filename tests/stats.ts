/**
 * Statistics of a sample, and their text.
 *
 * @module
 */

/** The middle value; for an even number of values the mean of the two in the middle. */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return (sorted[(sorted.length - 1) >> 1]! + sorted[sorted.length >> 1]!) / 2;
}

/** The smallest value that is at least as large as this share of the sample; 0 for an empty sample. */
export function percentile(sample: readonly number[], share: number): number {
  if (sample.length === 0) return 0;
  const sorted = sample.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1)]!;
}

/** A number with about three digits, as text. */
export function short(value: number): string {
  return value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0);
}

/** Returns a function that formats a number with this number of decimals. */
export function fixed(digits: number): (value: number) => string {
  return (value) => value.toFixed(digits);
}

/** The median, with minimum and maximum for more than one value; empty for an empty sample. */
export function spread(values: readonly number[], text: (value: number) => string = short): string {
  if (values.length === 0) return "";
  if (values.length === 1) return text(values[0]!);
  return `${text(median(values))} (${text(Math.min(...values))}–${text(Math.max(...values))})`;
}

/** A Markdown table, with the first row as head; trailing columns without a value in any other row are left out. */
export function table(rows: string[][]): string {
  const [head, ...body] = rows;
  const width = head!.findLastIndex((_, column) => body.some((row) => row[column] !== "")) + 1;
  const widths = head!.slice(0, width).map((_, column) => Math.max(3, ...rows.map((row) => row[column]!.length)));
  const lines = rows.map((row) => `| ${widths.map((width, column) => row[column]!.padEnd(width)).join(" | ")} |`);
  lines.splice(1, 0, `| ${widths.map((width) => "-".repeat(width)).join(" | ")} |`);
  return lines.join("\n");
}

/** The machine of a measurement. */
export function machine(): string {
  return `Deno ${Deno.version.deno}, ${Deno.build.os}, ${navigator.hardwareConcurrency} cores`;
}

/** The machine and the number of rounds. */
export function conditions(machine: string, rounds: number): string {
  return `${machine}, ${rounds} round${rounds === 1 ? "" : "s"}`;
}
