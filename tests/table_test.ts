/**
 * The table of streams: it finds its entries and does not retain removed ones.
 *
 * @module
 */
import { assert, assertEquals, assertLess, assertStrictEquals } from "@std/assert";
import { type Entry, Table } from "../_table.ts";
import { MiB } from "./support.ts";

/** An entry that counts how often an id was compared. */
class Thing implements Entry<Thing> {
  static comparisons = 0;
  nextInBucket: Thing | undefined = undefined;
  readonly #id: number;

  constructor(id: number) {
    this.#id = id;
  }

  get id(): number {
    Thing.comparisons++;
    return this.#id;
  }
}

Deno.test("Table.get() finds each entry by its id, up to the largest", () => {
  const table = new Table<Thing>();
  const entries = [2 ** 32 - 1, 3, 2 ** 31, 0, 70_000].map((id) => new Thing(id));
  for (const entry of entries) table.add(entry);
  for (const entry of entries) assertStrictEquals(table.get(entry.id), entry);
  assertEquals([table.get(4), table.size], [undefined, 5]);
  assertEquals(table.values().map(({ id }) => id), [0, 3, 70_000, 2 ** 31, 2 ** 32 - 1]);
});

Deno.test("Table.delete() removes the entry itself, not another one with its id", () => {
  const table = new Table<Thing>();
  const first = new Thing(3);
  table.add(first);
  assertEquals([table.delete(new Thing(3)), table.delete(new Thing(5)), table.size], [false, false, 1]);
  assertStrictEquals(table.get(3), first);
  assertEquals([table.delete(first), table.delete(first), table.size], [true, false, 0]);
  assertEquals([table.get(3), table.values()], [undefined, []]);
});

Deno.test("Table.delete() leaves an entry that refers to no other one", () => {
  const table = new Table<Thing>();
  const entries = Array.from({ length: 1000 }, (_, id) => new Thing(id));
  for (const entry of entries) table.add(entry);
  assert(entries.some(({ nextInBucket }) => nextInBucket !== undefined));
  // The last first, because an entry refers to those before it.
  for (const entry of entries.toReversed()) table.delete(entry);
  assertEquals(entries.filter(({ nextInBucket }) => nextInBucket !== undefined), []);
});

Deno.test("Table.get() needs few comparisons, whatever the distance of the ids", () => {
  for (const distance of [1, 2, 64, 2 ** 16, 2 ** 20]) {
    const table = new Table<Thing>();
    for (let n = 0; n < 4000; n++) table.add(new Thing(n * distance));
    Thing.comparisons = 0;
    for (let n = 0; n < 4000; n++) assert(table.get(n * distance) !== undefined);
    assertLess(Thing.comparisons / 4000, 4, `ids ${distance} apart`);
  }
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
