/**
 * The table of streams: it finds what is in it at once, whatever the ids, and keeps nothing that was taken out.
 *
 * @module
 */
import { assert, assertEquals, assertLess, assertStrictEquals } from "@std/assert";
import { type Entry, Table } from "../table.ts";
import { MiB } from "./support.ts";

class Thing implements Entry<Thing> {
  static getterCalls = 0;
  neighbour: Thing | undefined = undefined;
  readonly #id: number;

  constructor(id: number) {
    this.#id = id;
  }

  get id(): number {
    Thing.getterCalls++;
    return this.#id;
  }
}

Deno.test("another entry with the same id is not the one that is in", () => {
  const table = new Table<Thing>();
  const first = new Thing(3);
  table.add(first);
  assert(!table.delete(new Thing(3)));
  assertStrictEquals(table.get(3), first);
  assertEquals(table.size, 1);
});

Deno.test("what is taken out points to nothing that stays", () => {
  const table = new Table<Thing>();
  const things = Array.from({ length: 1000 }, (_, id) => new Thing(id));
  for (const thing of things) table.add(thing);
  for (const thing of things) table.delete(thing);
  assertEquals(things.filter(({ neighbour }) => neighbour !== undefined), []);
  assertEquals(table.size, 0);
});

Deno.test("no choice of ids makes it slow to find one", () => {
  for (const step of [1, 2, 64, 2 ** 16, 2 ** 20]) {
    const table = new Table<Thing>();
    for (let n = 0; n < 4000; n++) table.add(new Thing(n * step));
    Thing.getterCalls = 0;
    for (let n = 0; n < 4000; n++) assert(table.get(n * step) !== undefined);
    assertLess(Thing.getterCalls / 4000, 4, `ids in steps of ${step}`);
  }
});

Deno.test("streams that have ended are not kept by those that came after them", async () => {
  // With a small nursery, so that what its collections keep shows: 4 MiB come and go. With a Map it was 18.
  const { stdout } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--v8-flags=--expose-gc,--max-semi-space-size=4", "tests/fixtures/churn.ts"],
    cwd: new URL("..", import.meta.url),
    stderr: "inherit",
  }).output();
  const { growth } = JSON.parse(new TextDecoder().decode(stdout));
  assertLess(growth, 9 * MiB);
});
