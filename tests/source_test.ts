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
