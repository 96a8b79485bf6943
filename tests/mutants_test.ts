/** Checks that each bug of `deno task deep mutants` can be planted, so that moved code does not drop one unnoticed. */

import { assertThrows } from "@std/assert";
import { MUTANTS, plant } from "./deep/mutants.ts";

const ROOT = new URL("../", import.meta.url);

for (const mutant of MUTANTS) {
  Deno.test(`mutants: plant() finds the text of "${mutant.name}" exactly once`, async () => {
    plant(mutant, await Deno.readTextFile(new URL(mutant.file, ROOT)));
  });
}

Deno.test("mutants: plant() throws when the text is missing or occurs twice", () => {
  const mutant = { name: "a bug", file: "x.ts", from: "a", to: "b" };
  for (const text of ["", "a a"]) assertThrows(() => plant(mutant, text), Error, "cannot be planted");
});
