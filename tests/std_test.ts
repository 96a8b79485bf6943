/**
 * The parts of `@std` that this repository uses. Each case passes for the original and for the stand-ins in
 * `tools/std`, so it asserts only what the documentation and the tests of the original promise. It asserts with
 * `node:assert`, because `@std/assert` is under test.
 *
 * @module
 */
import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertFalse,
  assertGreater,
  assertGreaterOrEqual,
  assertInstanceOf,
  assertLess,
  assertLessOrEqual,
  assertMatch,
  assertNotEquals,
  assertRejects,
  assertStrictEquals,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { deadline, delay, pooledMap, retry } from "@std/async";
import { concat, equals, indexOfNeedle, repeat } from "@std/bytes";
import { mergeReadableStreams, TextLineStream, toArrayBuffer, toText } from "@std/streams";
import judge from "node:assert/strict";
import config from "../deno.json" with { type: "json" };
import * as standIn from "../tools/std/assert/mod.ts";

const FAILURE = { name: "AssertionError" };
const bytes = (...values: number[]) => Uint8Array.from(values);
const fails = (fn: () => void) => judge.throws(fn, FAILURE);
const never = () => new Promise<never>(() => {});

Deno.test("@std/assert: each assertion passes, or throws an AssertionError", () => {
  assert(1);
  fails(() => assert(0));
  assertFalse("");
  fails(() => assertFalse("x"));
  assertStrictEquals(NaN, NaN);
  fails(() => assertStrictEquals({}, {}));
  assertInstanceOf(new RangeError(), Error);
  fails(() => assertInstanceOf(new Error(), RangeError));
  assertMatch("abc", /b/);
  fails(() => assertMatch("abc", /d/));
  assertStringIncludes("abc", "bc");
  fails(() => assertStringIncludes("abc", "cb"));
});

Deno.test("@std/assert: comparisons of numbers include or exclude their bounds", () => {
  assertGreater(2, 1);
  fails(() => assertGreater(1, 1));
  assertGreaterOrEqual(1, 1);
  fails(() => assertGreaterOrEqual(1, 2));
  assertLess(1, 2);
  fails(() => assertLess(1, 1));
  assertLessOrEqual(1, 1);
  fails(() => assertLessOrEqual(2, 1));
  assertAlmostEquals(0.1 + 0.2, 0.3);
  fails(() => assertAlmostEquals(0.1, 0.2));
  assertAlmostEquals(0.1, 0.2, 0.11);
  fails(() => assertAlmostEquals(0.1, 0.2, 0.09));
});

Deno.test("@std/assert: every failure contains the message passed to the assertion", async () => {
  const failing: ((msg: string) => void)[] = [
    (msg) => assert(false, msg),
    (msg) => assertAlmostEquals(0, 1, 0, msg),
    (msg) => assertEquals(1, 2, msg),
    (msg) => assertFalse(true, msg),
    (msg) => assertGreater(1, 2, msg),
    (msg) => assertGreaterOrEqual(1, 2, msg),
    (msg) => assertInstanceOf(1, Error, msg),
    (msg) => assertLess(2, 1, msg),
    (msg) => assertLessOrEqual(2, 1, msg),
    (msg) => assertMatch("a", /b/, msg),
    (msg) => assertNotEquals(1, 1, msg),
    (msg) => assertStrictEquals(1, 2, msg),
    (msg) => assertStringIncludes("a", "b", msg),
    (msg) => assertThrows(() => {}, msg),
    (msg) => assertThrows(() => {}, Error, "", msg),
  ];
  for (const fn of failing) judge.throws(() => fn("the reason"), /the reason/);
  await judge.rejects(assertRejects(() => Promise.resolve(), "the reason"), /the reason/);
  await judge.rejects(assertRejects(() => Promise.resolve(), Error, "", "the reason"), /the reason/);
});

Deno.test("@std/assert: assertEquals and assertNotEquals compare deeply", () => {
  const alike: [unknown, unknown][] = [
    [NaN, NaN],
    [{ a: [1, { b: 2 }], c: 3 }, { c: 3, a: [1, { b: 2 }] }],
    [bytes(1, 2), bytes(0, 1, 2).subarray(1)],
  ];
  const different: [unknown, unknown][] = [
    [1, "1"],
    [null, undefined],
    [null, {}],
    [{ a: undefined }, {}],
    [{ a: undefined }, { b: undefined }],
    [{ a: 1 }, { a: 1, b: 2 }],
    [[1, 2], [2, 1]],
    [[1, 2], [1, 2, undefined]],
    [bytes(1, 2), bytes(1, 3)],
    [bytes(1, 2), bytes(1, 2, 0)],
    [bytes(1, 2), [1, 2]],
  ];
  for (const [a, b] of alike) {
    assertEquals(a, b);
    fails(() => assertNotEquals(a, b));
  }
  for (const [a, b] of different) {
    fails(() => assertEquals(a, b));
    assertNotEquals(a, b);
  }
});

Deno.test("@std/assert: assertEquals of the stand-in is never laxer than the original", () => {
  // The original compares instances of a class by their properties. The stand-in treats them as different.
  class Class {}
  const pairs = [
    [new Class(), new Class()],
    [{}, new Class()],
    [new Error("a"), new Error("a")],
    [new Map(), new Map()],
    [new Set(), new Set()],
    [new Date(0), new Date(0)],
    [0, -0],
    [{ [Symbol.iterator]: 1 }, { [Symbol.iterator]: 2 }],
  ];
  for (const [a, b] of pairs) {
    standIn.assertEquals([a], [a]);
    fails(() => standIn.assertEquals([a], [b]));
  }
});

Deno.test("@std/assert: assertThrows returns the error and checks its class and message", () => {
  const thrown = new RangeError("too far");
  const throwing = () => {
    throw thrown;
  };
  judge.equal(assertThrows(throwing), thrown);
  judge.equal(assertThrows(throwing, RangeError, "far"), thrown);
  judge.equal(assertThrows(throwing, Error), thrown);
  fails(() => assertThrows(() => {}));
  fails(() => assertThrows(throwing, TypeError));
  fails(() => assertThrows(throwing, RangeError, "near"));
  const odd = () => {
    throw "text";
  };
  judge.equal(assertThrows(odd), "text");
  fails(() => assertThrows(odd, Error));
});

Deno.test("@std/assert: assertRejects resolves with the error, checks its class and message, and fails when the function throws", async () => {
  const reason = new RangeError("too far");
  const rejecting = () => Promise.reject(reason);
  judge.equal(await assertRejects(rejecting), reason);
  judge.equal(await assertRejects(rejecting, RangeError, "far"), reason);
  const failing: (() => Promise<unknown>)[] = [
    () => assertRejects(() => Promise.resolve()),
    () => assertRejects(rejecting, TypeError),
    () => assertRejects(rejecting, RangeError, "near"),
    () => assertRejects(() => Promise.reject("text"), Error),
    () =>
      assertRejects(() => {
        throw reason;
      }),
  ];
  for (const fn of failing) await judge.rejects(fn, FAILURE);
});

Deno.test("@std/async: delay resolves after the delay", async () => {
  const start = performance.now();
  await delay(30);
  judge.ok(performance.now() - start >= 25);
});

Deno.test("@std/async: deadline settles like the promise, or rejects with a TimeoutError after the timeout", async () => {
  judge.equal(await deadline(Promise.resolve(1), 10_000), 1);
  await judge.rejects(deadline(Promise.reject(new RangeError()), 10_000), RangeError);
  const error = await assertRejects(() => deadline(never(), 10), DOMException);
  judge.equal(error.name, "TimeoutError");
});

Deno.test("@std/async: retry calls until success, at most five times", async () => {
  let calls = 0;
  const third = () => {
    if (++calls < 3) throw new Error("not yet");
    return calls;
  };
  judge.equal(await retry(third, { minTimeout: 1 }), 3);
  calls = -10;
  const error = await assertRejects(() => retry(third, { minTimeout: 1 }), Error);
  judge.equal(calls, -5);
  judge.equal(error.name, "RetryError");
  judge.ok(error.cause instanceof Error && error.cause.message === "not yet");
});

Deno.test("@std/async: pooledMap keeps the order and the limit of concurrent calls", async () => {
  let running = 0;
  let most = 0;
  const results = pooledMap(2, [30, 1, 20, 1], async (ms) => {
    most = Math.max(most, ++running);
    await delay(ms);
    running--;
    return ms;
  });
  judge.deepEqual(await Array.fromAsync(results), [30, 1, 20, 1]);
  judge.equal(most, 2);
});

Deno.test("@std/async: pooledMap throws an AggregateError with all errors and starts no call after them", async () => {
  const started: number[] = [];
  const seen: number[] = [];
  const error = await assertRejects(async () => {
    const results = pooledMap(3, [1, 2, 3, 4], async (n) => {
      started.push(n);
      if (n <= 2) throw new RangeError(`${n}`);
      await delay(10);
      return n;
    });
    for await (const n of results) seen.push(n);
  }, AggregateError);
  judge.deepEqual(error.errors.map((e) => e.message).sort(), ["1", "2"]);
  judge.deepEqual([started, seen], [[1, 2, 3], [3]]);
  const only = pooledMap(3, [1], () => Promise.reject(new RangeError("below the limit")));
  judge.equal((await assertRejects(() => Array.fromAsync(only), AggregateError)).errors.length, 1);
});

Deno.test("@std/bytes: concat and repeat copy bytes into a new array", () => {
  judge.deepEqual(concat([bytes(1, 2), bytes(), bytes(3)]), bytes(1, 2, 3));
  judge.deepEqual(concat([]), bytes());
  judge.deepEqual(repeat(bytes(1, 2), 3), bytes(1, 2, 1, 2, 1, 2));
  judge.deepEqual(repeat(bytes(1), 0), bytes());
  const one = bytes(1, 2);
  const copies = [concat([one]), repeat(one, 1)];
  one[0] = 9;
  judge.deepEqual(copies, [bytes(1, 2), bytes(1, 2)]);
});

Deno.test("@std/bytes: equals and indexOfNeedle compare bytes, also in views of a larger buffer", () => {
  judge.ok(equals(bytes(1, 2), bytes(0, 1, 2).subarray(1)));
  judge.ok(!equals(bytes(1, 2), bytes(1, 3)));
  judge.ok(!equals(bytes(1, 2), bytes(1, 2, 3)));
  const source = bytes(0, 9, 1, 2, 1, 2).subarray(1);
  judge.equal(indexOfNeedle(source, bytes(1, 2)), 1);
  judge.equal(indexOfNeedle(source, bytes(2, 9)), -1);
});

Deno.test("@std/streams: toText joins text, and bytes split within a character", async () => {
  judge.equal(await toText(ReadableStream.from(["Grü", "ße"])), "Grüße");
  const encoded = new TextEncoder().encode("Grüße");
  judge.equal(await toText(ReadableStream.from([encoded.subarray(0, 3), encoded.subarray(3)])), "Grüße");
  judge.equal(await toText(ReadableStream.from<string>([])), "");
});

Deno.test("@std/streams: toArrayBuffer joins bytes", async () => {
  const buffer = await toArrayBuffer(ReadableStream.from([bytes(1, 2), bytes(9, 3).subarray(1)]));
  judge.deepEqual(new Uint8Array(buffer), bytes(1, 2, 3));
});

Deno.test("@std/streams: TextLineStream splits at line ends, also across chunks", async () => {
  const lines = (...chunks: string[]) => Array.fromAsync(ReadableStream.from(chunks).pipeThrough(new TextLineStream()));
  judge.deepEqual(await lines("a", "b\nc\r", "\n\nd\re"), ["ab", "c", "", "d\re"]);
  judge.deepEqual(await lines("a\n", "b\n"), ["a", "b"]);
});

Deno.test("@std/streams: mergeReadableStreams delivers every chunk", async () => {
  const merged = mergeReadableStreams(ReadableStream.from([1, 2]), ReadableStream.from([3]), ReadableStream.from([4]));
  judge.deepEqual((await Array.fromAsync(merged)).toSorted(), [1, 2, 3, 4]);
});

const ROOT = new URL("../", import.meta.url);
const PACKAGES = Object.keys(config.imports).filter((name) => name.startsWith("@std/"));
const IMPORT = /\bimport\s+(?:type\s+)?\{([^}]*)\}\s*from\s+["'](@std\/[^"']+)["']/g;
const ANY_IMPORT = /\b(?:from|import)\s*\(?\s*["'](?:jsr:)?@std\//g;

/** Returns the imports of `@std` in a text, such as `@std/bytes concat`; only those that are lists of names. */
function imported(text: string): string[] {
  return Array.from(text.matchAll(IMPORT)).flatMap(([, list, from]) =>
    list!.split(",")
      .map((entry) => entry.replace(/^[\s*]*(type\s)?/, "").replace(/\sas\s.*/s, "").trim())
      .filter((name) => name !== "")
      .map((name) => `${from} ${name}`)
  );
}

/** Counts the imports of `@std` in a text that are not lists of names. */
function notLists(text: string): number {
  return Array.from(text.matchAll(ANY_IMPORT)).length - Array.from(text.matchAll(IMPORT)).length;
}

/** Returns the paths of all modules and texts below a folder of the repository. */
function paths(folder = ""): string[] {
  return Array.from(Deno.readDirSync(new URL(folder, ROOT)))
    .filter(({ name }) => !name.startsWith(".") && !["coverage", "node_modules"].includes(name))
    .flatMap(({ name, isDirectory }) => isDirectory ? paths(`${folder}${name}/`) : [`${folder}${name}`])
    .filter((path) => /\.(js|md|ts)$/.test(path));
}

/** Returns the exports of a stand-in, types included. */
async function exported(name: string): Promise<string[]> {
  const url = new URL(`tools/${name.slice(1)}/mod.ts`, ROOT);
  const types = Deno.readTextFileSync(url).matchAll(/^export (?:interface|type) (\w+)/gm);
  return [...Object.keys(await import(url.href)), ...Array.from(types, ([, type]) => type!)]
    .map((symbol) => `${name} ${symbol}`);
}

Deno.test("@std: the stand-ins export exactly what the repository imports outside of this test", async () => {
  const read = (path: string) => Deno.readTextFileSync(new URL(path, ROOT));
  const others = paths().filter((path) => new URL(path, ROOT).href !== import.meta.url);
  assert(others.includes("README.md") && others.includes("session.ts") && others.includes("bench/peers/end.ts"));
  const exports = new Set((await Promise.all(PACKAGES.map(exported))).flat());
  const imports = new Set(others.flatMap((path) => imported(read(path))));
  assertEquals({ unused: [...exports.difference(imports)], missing: [...imports.difference(exports)] }, {
    unused: [],
    missing: [],
  });
  assertEquals(others.filter((path) => notLists(read(path)) > 0), []);
});

Deno.test("@std: imports are found in code, comments and strings, and those that are not lists of names are counted", () => {
  const lists = `
    import { assert } from "@std/assert";
     * import {
     *   type Named as Other,
     *   concat,
     * } from "@std/bytes";
    const text = "import type { First, Second } from '@std/streams';";`;
  const expected = ["@std/assert assert", "@std/bytes Named", "@std/bytes concat"];
  assertEquals(imported(lists), [...expected, "@std/streams First", "@std/streams Second"]);
  assertEquals(notLists(lists), 0);
  const others = `
    import * as all from "@std/assert";
    import "@std/assert";
    export { assert } from "@std/assert";
    await import("jsr:@std/assert");`;
  assertEquals(imported(others), []);
  assertEquals(notLists(others), 4);
});
