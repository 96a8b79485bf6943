/**
 * Patterns that the source of the library must not contain.
 *
 * @module
 */
import { assertEquals } from "@std/assert";

const ROOT = new URL("../", import.meta.url);
const FUNCTION_ASSIGNED = /\w\.#?\w+ (\?\?)?= (async )?(function|(\(.*\)(: [^=]+)?|\w+) =>)/;

// V8 keeps whatever such a function refers to until the next full collection: see docs/tuning.md.
Deno.test("source: no module of the library assigns a function literal to a property", async () => {
  const found: string[] = [];
  for await (const { name } of Deno.readDir(ROOT)) {
    if (!name.endsWith(".ts")) continue;
    const lines = (await Deno.readTextFile(new URL(name, ROOT))).split("\n");
    for (const [n, line] of lines.entries()) {
      if (FUNCTION_ASSIGNED.test(line)) found.push(`${name}:${n + 1}: ${line.trim()}`);
    }
  }
  assertEquals(found, []);
});

// Words that hide what acts, or what is done ("Conventions" in CONTRIBUTING.md).
const UNCLEAR = /\b(whoever|nobody|somebody|anybody|everybody|so many|so much|so long|in vain|tells?|told)\b/i;
const FOLDERS = [".github", "bench", "docs", "examples", "tests", "tools", "tunnel"];

/** Yields the path and text of every file with prose in it. */
async function* texts(folder: URL, depth = 0): AsyncGenerator<[path: string, text: string]> {
  for await (const { name, isDirectory } of Deno.readDir(folder)) {
    if (isDirectory && (depth > 0 || FOLDERS.includes(name))) yield* texts(new URL(`${name}/`, folder), depth + 1);
    else if (/\.(ts|js|go|md|html|yml)$/.test(name)) {
      const url = new URL(name, folder);
      yield [url.href.slice(ROOT.href.length), await Deno.readTextFile(url)];
    }
  }
}

Deno.test("source: no file uses the words that hide what acts", async () => {
  const found: string[] = [];
  for await (const [path, text] of texts(ROOT)) {
    if (path === "tests/source_test.ts") continue;
    for (const [n, line] of text.split("\n").entries()) {
      if (UNCLEAR.test(line)) found.push(`${path}:${n + 1}: ${line.trim()}`);
    }
  }
  assertEquals(found, []);
});
