/** The options of the long tests: their values, and the errors for an invalid command line. */

import { assertEquals, assertThrows } from "@std/assert";
import { anyText, flag, integer, names, parse, parseWithWords } from "./deep/shared/options.ts";

const OPTIONS = { rounds: integer(5, 1), json: anyText, only: names(["W1", "W2"]), twice: flag };

Deno.test("parse() accepts a value after = or as the next argument, and returns defaults for missing options", () => {
  assertEquals(parse(["--rounds", "3", "--json=a=b", "--twice"], OPTIONS), {
    rounds: 3,
    json: "a=b",
    only: ["W1", "W2"],
    twice: true,
  });
  assertEquals(parse([], OPTIONS), { rounds: 5, json: undefined, only: ["W1", "W2"], twice: false });
});

Deno.test("parseWithWords() returns the positional arguments in order", () => {
  const { values, words } = parseWithWords(["a.ts", "--twice", "b.ts"], OPTIONS);
  assertEquals([values.twice, words], [true, ["a.ts", "b.ts"]]);
});

for (
  const [args, kind, message] of [
    [["--round", "3"], TypeError, "Unknown option '--round'"],
    [["--round", "3"], TypeError, "(options: --rounds VALUE, --json VALUE, --only VALUE, --twice)"],
    [["3"], TypeError, "Unexpected argument '3'"],
    [["--json"], TypeError, "Option '--json <value>' argument missing"],
    [["--json", "--twice"], TypeError, "Option '--json' argument is ambiguous"],
    [["--twice=yes"], TypeError, "Option '--twice' does not take an argument"],
    [["--rounds", "0"], RangeError, "--rounds must be an integer of at least 1, received 0"],
    [["--rounds="], RangeError, "--rounds must be an integer of at least 1, received "],
    [["--only", "W1,W3"], RangeError, "--only must be one or more of W1, W2, received W3"],
  ] as const
) {
  Deno.test(`parse() rejects ${args.join(" ")} with ${message}`, () => {
    assertThrows(() => parse([...args], OPTIONS), kind, message);
  });
}
