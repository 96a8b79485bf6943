/** Objects that count bytes keep their shape when a count leaves 32 bits, so that V8 keeps the compiled code. */

import { assertEquals } from "@std/assert";
import { deno } from "./programs.ts";

Deno.test("objects that count bytes have the same shape after 16 MiB and after 2 GiB", async () => {
  const output = await deno("run", "-A", "--v8-flags=--allow-natives-syntax", "tests/fixtures/shapes.ts");
  const lines = output.trim().split("\n");
  assertEquals(lines.filter((line) => !line.endsWith(" same")), []);
  assertEquals(lines.length, 12);
});
