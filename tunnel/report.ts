/**
 * Formats the results of a check.
 *
 * @module
 */

import { printable } from "./bytes.ts";
import type { TunnelCheck } from "./check.ts";
import { WIDTH, wrap } from "./usage.ts";

// Characters: where the text begins.
const INDENT = 18;

/** Formats milliseconds in at most 9 characters. */
function timeText(duration: number): string {
  return duration < 1000 ? `${duration.toFixed(duration < 10 ? 1 : 0)} ms` : `${(duration / 1000).toFixed(1)} s`;
}

/** Breaks a text into lines, also within words that are longer than a line. */
function lines(text: string): string[] {
  const width = WIDTH - INDENT;
  return wrap(printable(text).replaceAll(new RegExp(`\\S{${width}}(?=\\S)`, "g"), "$& "), width);
}

/** Formats a result as lines of at most 80 characters: the result, the time and what was found; then what to do. */
export function formatCheck({ name, isOk, text, duration, advice }: TunnelCheck): string[] {
  const begin = `${isOk ? "ok" : "failed"}`.padEnd(7) + timeText(duration).padStart(9);
  const all = [...lines(`${name}: ${text}`), ...advice === undefined ? [] : lines(advice)];
  return all.map((line, n) => `${n === 0 ? begin.padEnd(INDENT) : " ".repeat(INDENT)}${line}`);
}
