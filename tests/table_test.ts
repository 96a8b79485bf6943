/**
 * The table of streams: it finds its entries and does not retain removed ones.
 *
 * @module
 */
import { assertEquals, assertLess, assertStrictEquals } from "@std/assert";
import { Table } from "../_table.ts";
import { MiB } from "./support.ts";

Deno.test("Table.get() finds each entry by its id, up to the largest", () => {
  const table = new Table();
  const entries = [2 ** 32 - 1, 3, 2 ** 31, 0, 70_000].map((id) => ({ id }));
  for (const entry of entries) table.add(entry);
  for (const entry of entries) assertStrictEquals(table.get(entry.id), entry);
  assertEquals([table.get(4), table.size], [undefined, 5]);
  assertEquals(table.values().map(({ id }) => id), [0, 3, 70_000, 2 ** 31, 2 ** 32 - 1]);
});

Deno.test("Table.delete() removes the entry itself, not another one with its id", () => {
  const table = new Table();
  const first = { id: 3 };
  table.add(first);
  assertEquals([table.delete({ id: 3 }), table.delete({ id: 5 }), table.size], [false, false, 1]);
  assertStrictEquals(table.get(3), first);
  assertEquals([table.delete(first), table.delete(first), table.size], [true, false, 0]);
  assertEquals([table.get(3), table.values()], [undefined, []]);
});

Deno.test("Table does not retain ended streams through later ones", async () => {
  // A small nursery, so that what its collections retain shows in the growth: see docs/tuning.md.
  const { stdout } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--v8-flags=--expose-gc,--max-semi-space-size=4", "tests/fixtures/churn.ts"],
    cwd: new URL("..", import.meta.url),
    stderr: "inherit",
  }).output();
  const { growth } = JSON.parse(new TextDecoder().decode(stdout));
  assertLess(growth, 9 * MiB);
});
