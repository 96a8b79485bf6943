/**
 * What a sample of numbers says, and how it is shown.
 *
 * @module
 */

/** The value in the middle; of an even number of them the mean of both. */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return (sorted[(sorted.length - 1) >> 1]! + sorted[sorted.length >> 1]!) / 2;
}

/** The value that so much of the sample does not exceed; 0 of none. */
export function percentile(sample: readonly number[], share: number): number {
  if (sample.length === 0) return 0;
  const sorted = sample.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1)]!;
}

/** A number with about three digits. */
export function short(value: number): string {
  return value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0);
}

/** Writes a number with this number of digits after the point. */
export function fixed(digits: number): (value: number) => string {
  return (value) => value.toFixed(digits);
}

/** The median, and least to most where there is more than one; nothing of none. */
export function spread(values: readonly number[], text: (value: number) => string = short): string {
  if (values.length === 0) return "";
  if (values.length === 1) return text(values[0]!);
  return `${text(median(values))} (${text(Math.min(...values))}–${text(Math.max(...values))})`;
}

/** A Markdown table; the first row is its head, and columns at the end that have nothing else are left out. */
export function table(rows: string[][]): string {
  const [head, ...body] = rows;
  const width = head!.findLastIndex((_, column) => body.some((row) => row[column] !== "")) + 1;
  const widths = head!.slice(0, width).map((_, column) => Math.max(3, ...rows.map((row) => row[column]!.length)));
  const lines = rows.map((row) => `| ${widths.map((width, column) => row[column]!.padEnd(width)).join(" | ")} |`);
  lines.splice(1, 0, `| ${widths.map((width) => "-".repeat(width)).join(" | ")} |`);
  return lines.join("\n");
}

/** Where something was measured. */
export function machine(): string {
  return `Deno ${Deno.version.deno}, ${Deno.build.os}, ${navigator.hardwareConcurrency} cores`;
}

/** Where, and in how many rounds. */
export function conditions(machine: string, rounds: number): string {
  return `${machine}, ${rounds} round${rounds === 1 ? "" : "s"}`;
}
