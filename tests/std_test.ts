/**
 * What this repository expects of `@std`, be it JSR's or the stand-ins in `tools/std`: so each case holds for both.
 * `node:assert` is the judge here, because `@std/assert` cannot judge itself.
 *
 * @module
 */
import {
  assert,
  assertAlmostEquals,
  assertArrayIncludes,
  assertEquals,
  assertExists,
  assertFalse,
  assertGreater,
  assertGreaterOrEqual,
  assertInstanceOf,
  AssertionError,
  assertLess,
  assertLessOrEqual,
  assertMatch,
  assertNotEquals,
  assertRejects,
  assertStrictEquals,
  assertStringIncludes,
  assertThrows,
  fail,
  unreachable,
} from "@std/assert";
import { abortable, deadline, delay, pooledMap, retry, RetryError } from "@std/async";
import { concat, copy, endsWith, equals, indexOfNeedle, repeat, startsWith } from "@std/bytes";
import { mergeReadableStreams, TextLineStream, toArrayBuffer, toText } from "@std/streams";
import judge from "node:assert/strict";

const bytes = (...values: number[]) => Uint8Array.from(values);
const fails = (fn: () => void) => judge.throws(fn, AssertionError);
const never = () => new Promise<never>(() => {});

Deno.test("@std/assert: what holds passes, what does not throws an AssertionError", () => {
  assert(1);
  fails(() => assert(0));
  assertFalse("");
  fails(() => assertFalse("x"));
  assertStrictEquals(NaN, NaN);
  fails(() => assertStrictEquals({}, {}));
  assertExists(0);
  fails(() => assertExists(null));
  fails(() => assertExists(undefined));
  assertInstanceOf(new RangeError(), Error);
  fails(() => assertInstanceOf(new Error(), RangeError));
  assertMatch("abc", /b/);
  fails(() => assertMatch("abc", /d/));
  assertStringIncludes("abc", "bc");
  fails(() => assertStringIncludes("abc", "cb"));
  assertArrayIncludes([1, { a: 2 }, 3], [{ a: 2 }, 1]);
  fails(() => assertArrayIncludes([1, { a: 2 }, 3], [{ a: 3 }]));
  fails(() => fail());
  fails(() => unreachable());
});

Deno.test("@std/assert: the numeric ones know their bounds", () => {
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

Deno.test("@std/assert: a failure tells the message it was given", () => {
  judge.throws(() => assertEquals(1, 2, "the reason"), /the reason/);
  judge.throws(() => assert(false, "the reason"), /the reason/);
  judge.throws(() => fail("the reason"), /the reason/);
  judge.throws(() => assertThrows(() => {}, "the reason"), /the reason/);
  judge.throws(() => assertThrows(() => {}, Error, "", "the reason"), /the reason/);
});

Deno.test("@std/assert: assertEquals and assertNotEquals compare deeply", () => {
  const alike: [unknown, unknown][] = [
    [NaN, NaN],
    [{ a: [1, { b: 2 }] }, { a: [1, { b: 2 }] }],
    [new Map([["a", [1]]]), new Map([["a", [1]]])],
    [new Set([1, 2]), new Set([2, 1])],
    [new Date(5), new Date(5)],
    [bytes(1, 2), bytes(0, 1, 2).subarray(1)],
    [Object.assign([1], { x: 1 }), Object.assign([1], { x: 1 })],
  ];
  const different: [unknown, unknown][] = [
    [1, "1"],
    [null, undefined],
    [{ a: undefined }, {}],
    [[1, 2], [2, 1]],
    [new Map([["a", [1]]]), new Map([["a", [2]]])],
    [new Set([1, 2]), new Set([1, 3])],
    [new Date(5), new Date(6)],
    [bytes(1, 2), bytes(1, 3)],
    [bytes(1, 2), bytes(1, 2, 0)],
    [bytes(1, 2), [1, 2]],
    [bytes(1, 2), Uint16Array.of(1, 2)],
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

Deno.test("@std/assert: assertThrows returns the error and judges class and message", () => {
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

Deno.test("@std/assert: assertRejects does the same for promises, and tells a throw from a rejection", async () => {
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
  for (const fn of failing) await judge.rejects(fn, AssertionError);
});

Deno.test("@std/async: delay waits, and an abort ends it with the signal's reason", async () => {
  const start = performance.now();
  await delay(30);
  judge.ok(performance.now() - start >= 25);
  const reason = new Error("enough");
  await judge.rejects(delay(10_000, { signal: AbortSignal.abort(reason) }), reason);
  const controller = new AbortController();
  const waiting = delay(10_000, { signal: controller.signal });
  controller.abort(reason);
  await judge.rejects(waiting, reason);
});

Deno.test("@std/async: delay that is not persistent lets the process end", async () => {
  const code =
    `import { delay } from "@std/async"; await Promise.race([delay(60_000, { persistent: false }), delay(1)]);`;
  const child = new Deno.Command(Deno.execPath(), { args: ["eval", code], signal: AbortSignal.timeout(30_000) });
  judge.ok((await child.output()).success);
});

Deno.test("@std/async: abortable passes on what comes first", async () => {
  const { signal } = new AbortController();
  judge.equal(await abortable(Promise.resolve(1), signal), 1);
  await judge.rejects(abortable(Promise.reject(new RangeError()), signal), RangeError);
  const controller = new AbortController();
  const waiting = abortable(never(), controller.signal);
  controller.abort();
  await judge.rejects(waiting, { name: "AbortError" });
  await judge.rejects(async () => await abortable(never(), controller.signal), { name: "AbortError" });
});

Deno.test("@std/async: abortable ends an iteration too", async () => {
  const controller = new AbortController();
  const seen: number[] = [];
  await judge.rejects(async () => {
    async function* endless() {
      yield 1;
      await never();
    }
    for await (const value of abortable(endless(), controller.signal)) {
      seen.push(value);
      setTimeout(() => controller.abort(), 1);
    }
  }, { name: "AbortError" });
  judge.deepEqual(seen, [1]);
  judge.deepEqual(await Array.fromAsync(abortable(ReadableStream.from([1, 2]), new AbortController().signal)), [1, 2]);
});

Deno.test("@std/async: deadline rejects with a TimeoutError, in time or not at all", async () => {
  judge.equal(await deadline(Promise.resolve(1), 10_000), 1);
  await judge.rejects(deadline(Promise.reject(new RangeError()), 10_000), RangeError);
  const error = await assertRejects(() => deadline(never(), 10), DOMException);
  judge.equal(error.name, "TimeoutError");
  await judge.rejects(deadline(never(), 10_000, { signal: AbortSignal.abort() }), { name: "AbortError" });
});

Deno.test("@std/async: retry tries until it succeeds, gives up, or may not go on", async () => {
  let calls = 0;
  const third = () => {
    if (++calls < 3) throw new Error("not yet");
    return calls;
  };
  judge.equal(await retry(third, { minTimeout: 1 }), 3);
  calls = -10;
  const error = await assertRejects(() => retry(third, { maxAttempts: 2, minTimeout: 1 }), RetryError);
  judge.equal(calls, -8);
  judge.ok(error.cause instanceof Error && error.cause.message === "not yet");
  calls = 0;
  await judge.rejects(retry(third, { isRetriable: () => false }), /not yet/);
  judge.equal(calls, 1);
});

Deno.test("@std/async: retry waits longer each time, up to its bound", async () => {
  const times: number[] = [];
  const failing = () => {
    times.push(performance.now());
    throw new Error("no");
  };
  const options = { maxAttempts: 4, minTimeout: 20, multiplier: 3, maxTimeout: 60, jitter: 0 };
  await judge.rejects(retry(failing, options), RetryError);
  const waits = times.slice(1).map((time, i) => time - (times[i] ?? 0));
  for (const [i, least] of [20, 60, 60].entries()) judge.ok((waits[i] ?? 0) >= least - 5, `${waits}`);
  times.length = 0;
  await judge.rejects(retry(failing, { ...options, multiplier: 1000 }), RetryError);
  judge.ok(Math.max(...times) - Math.min(...times) < 10_000); // it would be hours without the bound
});

Deno.test("@std/async: pooledMap keeps the order and its limit", async () => {
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

Deno.test("@std/async: pooledMap gathers the errors and starts nothing after them", async () => {
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
  judge.deepEqual(error.errors.map((e) => e.message), ["1", "2"]);
  judge.deepEqual([started, seen], [[1, 2, 3], [3]]);
});

Deno.test("@std/bytes: concat, repeat and copy move bytes", () => {
  judge.deepEqual(concat([bytes(1, 2), bytes(), bytes(3)]), bytes(1, 2, 3));
  judge.deepEqual(concat([]), bytes());
  judge.deepEqual(repeat(bytes(1, 2), 3), bytes(1, 2, 1, 2, 1, 2));
  judge.deepEqual(repeat(bytes(1), 0), bytes());
  judge.throws(() => repeat(bytes(1), -1), RangeError);
  const target = bytes(0, 0, 0);
  judge.equal(copy(bytes(1, 2), target), 2);
  judge.equal(copy(bytes(8, 9), target, 2), 1);
  judge.deepEqual(target, bytes(1, 2, 8));
  judge.equal(copy(bytes(7), target, 3), 0);
});

Deno.test("@std/bytes: concat makes a new array even of one", () => {
  const one = bytes(1, 2);
  const made = concat([one]);
  one[0] = 9;
  judge.deepEqual(made, bytes(1, 2));
});

Deno.test("@std/bytes: equals, startsWith, endsWith and indexOfNeedle compare them", () => {
  judge.ok(equals(bytes(1, 2), bytes(0, 1, 2).subarray(1)));
  judge.ok(!equals(bytes(1, 2), bytes(1, 3)));
  judge.ok(!equals(bytes(1, 2), bytes(1, 2, 3)));
  judge.ok(startsWith(bytes(1, 2, 3), bytes(1, 2)));
  judge.ok(!startsWith(bytes(1, 2, 3), bytes(2)));
  judge.ok(!startsWith(bytes(1), bytes(1, 2)));
  judge.ok(endsWith(bytes(1, 2, 3), bytes(2, 3)));
  judge.ok(!endsWith(bytes(1, 2, 3), bytes(2)));
  judge.ok(!endsWith(bytes(2), bytes(1, 2)));
  const source = bytes(0, 9, 1, 2, 1, 2).subarray(1);
  judge.equal(indexOfNeedle(source, bytes(1, 2)), 1);
  judge.equal(indexOfNeedle(source, bytes(1, 2), 2), 3);
  judge.equal(indexOfNeedle(source, bytes(1, 2), -2), 3);
  judge.equal(indexOfNeedle(source, bytes(2, 9)), -1);
  judge.equal(indexOfNeedle(source, bytes(1, 2), 4), -1);
});

Deno.test("@std/streams: toText joins text, and bytes cut in the middle of a character", async () => {
  judge.equal(await toText(ReadableStream.from(["Grü", "ße"])), "Grüße");
  const encoded = new TextEncoder().encode("Grüße");
  judge.equal(await toText(ReadableStream.from([encoded.subarray(0, 3), encoded.subarray(3)])), "Grüße");
  judge.equal(await toText(ReadableStream.from<string>([])), "");
});

Deno.test("@std/streams: toArrayBuffer gathers bytes and passes on an error", async () => {
  const buffer = await toArrayBuffer(ReadableStream.from([bytes(1, 2), bytes(9, 3).subarray(1)]));
  judge.deepEqual(new Uint8Array(buffer), bytes(1, 2, 3));
  const broken = new ReadableStream<Uint8Array>({ start: (controller) => controller.error(new RangeError()) });
  await judge.rejects(toArrayBuffer(broken), RangeError);
});

Deno.test("@std/streams: TextLineStream finds lines however they are cut", async () => {
  const lines = (chunks: string[], options?: { allowCR: boolean }) =>
    Array.fromAsync(ReadableStream.from(chunks).pipeThrough(new TextLineStream(options)));
  judge.deepEqual(await lines(["a", "b\nc\r", "\n\nd\re"]), ["ab", "c", "", "d\re"]);
  judge.deepEqual(await lines(["a\n"]), ["a"]);
  judge.deepEqual(await lines(["a\rb\r", "\nc\r\nd\r"], { allowCR: true }), ["a", "b", "c", "d"]);
});

Deno.test("@std/streams: mergeReadableStreams passes on everything, and an error", async () => {
  const merged = mergeReadableStreams(ReadableStream.from([1, 2]), ReadableStream.from([3]), ReadableStream.from([4]));
  judge.deepEqual((await Array.fromAsync(merged)).toSorted(), [1, 2, 3, 4]);
  const broken = new ReadableStream<number>({ start: (controller) => controller.error(new RangeError()) });
  await judge.rejects(Array.fromAsync(mergeReadableStreams(ReadableStream.from([1]), broken)), RangeError);
});
