/** The bugs that `deno task deep mutants` plants: each can be, so that none is lost when code is moved. */

import { assertThrows } from "@std/assert";
import { MUTANTS, plant } from "./deep/mutants.ts";

const ROOT = new URL("../", import.meta.url);

for (const mutant of MUTANTS) {
  Deno.test(`mutants: "${mutant.name}" can be planted`, async () => {
    plant(mutant, await Deno.readTextFile(new URL(mutant.file, ROOT)));
  });
}

Deno.test("mutants: one whose text is gone, or stands twice, is an error", () => {
  const mutant = { name: "a bug", file: "x.ts", from: "a", to: "b" };
  for (const text of ["", "a a"]) assertThrows(() => plant(mutant, text), Error, "cannot be planted");
});
