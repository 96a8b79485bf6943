/**
 * The kept inputs: one file for each target, one input for each line, in hexadecimal.
 *
 * @module
 */

import { createHash } from "node:crypto";
import { decoder } from "./decoder.ts";
import { session } from "./session.ts";

/** The fuzz targets by name; each rejects when its input causes a failure. */
export const TARGETS: Record<string, (input: Uint8Array) => Promise<void>> = {
  decoder: (input) => decoder(input),
  session: (input) => session(input),
};

/** Reads the inputs kept for a target. */
export async function read(target: string): Promise<Uint8Array[]> {
  const text = await Deno.readTextFile(place(target));
  return text.split("\n").filter((line) => line !== "").map((line) => Uint8Array.fromHex(line));
}

/** Replaces the kept inputs; each is kept once, the shortest first. */
export async function write(target: string, inputs: Uint8Array[]): Promise<void> {
  const lines = Array.from(new Set(inputs.map((input) => input.toHex())))
    .sort((a, b) => a.length - b.length || (a < b ? -1 : 1));
  await Deno.writeTextFile(place(target), lines.map((line) => `${line}\n`).join(""));
}

/** Saves an input that failed; returns the command that runs it again. */
export function keepFailure(target: string, input: Uint8Array): string {
  const name = `${target}-${createHash("sha256").update(input).digest("hex").slice(0, 12)}.txt`;
  Deno.mkdirSync(new URL("failures/", import.meta.url), { recursive: true });
  Deno.writeTextFileSync(new URL(`failures/${name}`, import.meta.url), `${target} ${input.toHex()}\n`);
  return `deno task deep fuzz --replay tests/fuzz/failures/${name}`;
}

function place(target: string): URL {
  return new URL(`corpus/${target}.hex`, import.meta.url);
}
