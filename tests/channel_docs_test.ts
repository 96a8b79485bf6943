/**
 * The rows of docs/channel.md and those that the tests cite are the same.
 *
 * @module
 */

import { assertEquals } from "@std/assert";

const TESTS = new URL("./", import.meta.url);
const CONTRACT = new URL("../docs/channel.md", import.meta.url);

/** The texts of all TypeScript files below a folder. */
async function* sources(folder: URL): AsyncGenerator<string> {
  for await (const { name, isDirectory } of Deno.readDir(folder)) {
    if (isDirectory) yield* sources(new URL(`${name}/`, folder));
    else if (name.endsWith(".ts")) yield await Deno.readTextFile(new URL(name, folder));
  }
}

function numbers(text: string, pattern: RegExp): number[] {
  return Array.from(text.matchAll(pattern), ([, number]) => Number(number));
}

Deno.test("docs/channel.md has each row once, and the tests cite each row and no other", async () => {
  const cited = new Set<number>();
  for await (const source of sources(TESTS)) for (const row of numbers(source, /\brow (\d+)/g)) cited.add(row);
  const rows = numbers(await Deno.readTextFile(CONTRACT), /^\| +(\d+) \|/gm);
  assertEquals(rows, [...cited].sort((a, b) => a - b));
});
