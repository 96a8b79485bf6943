/**
 * Waits for the first of several channel operations.
 *
 * @module
 */

import { invalidTimeout, rejectBeforeWait, type SelectCase, WaitLimit, type WaitOptions } from "./_wait.ts";

/**
 * The cases of one {@linkcode select} by name. A case that is `undefined` is skipped.
 *
 * @example Switching a case off
 * ```ts
 * import { Channel, type SelectCases, trySelect } from "@sluice/smux/channel";
 * import { assertEquals } from "@std/assert";
 *
 * const jobs = new Channel<number>({ capacity: 1 });
 * jobs.trySend(1);
 * const paused = true;
 * const cases = { job: paused ? undefined : jobs.receiveCase() } satisfies SelectCases;
 * assertEquals(trySelect(cases), undefined);
 * ```
 */
export type SelectCases = Record<string, SelectCase<object> | undefined>;

/**
 * Result of a {@linkcode select}: the name of the case as `key`, and its outcome. The union narrows by `key`, then by
 * `done`.
 *
 * @typeParam Cases The type of the object passed to {@linkcode select}.
 *
 * @example Narrowing a result
 * ```ts
 * import { Channel, select, type SelectResult } from "@sluice/smux/channel";
 * import { assertEquals } from "@std/assert";
 *
 * const names = new Channel<string>({ capacity: 1 });
 * const cases = { name: names.receiveCase(), out: new Channel<Date>().sendCase(new Date()) };
 *
 * function describe(r: SelectResult<typeof cases>): string {
 *   switch (r.key) {
 *     case "name":
 *       return r.done ? "no more names" : r.value.toUpperCase();
 *     case "out":
 *       return r.done ? "no receiver" : "sent";
 *   }
 * }
 *
 * names.trySend("ada");
 * assertEquals(describe(await select(cases)), "ADA");
 * ```
 */
export type SelectResult<Cases extends SelectCases> = {
  // The keys of an object are strings at runtime, also those written as integers.
  [K in keyof Cases]-?: [NonNullable<Cases[K]>] extends [never] ? never
    : NonNullable<Cases[K]> extends SelectCase<infer Outcome>
      ? Outcome extends object ? { key: K extends number ? `${K}` : K } & Outcome : never
    : never;
}[keyof Cases];

/**
 * Options of {@linkcode select}.
 *
 * @example Giving the first case priority
 * ```ts
 * import { Channel, select, type SelectOptions } from "@sluice/smux/channel";
 * import { assertEquals } from "@std/assert";
 *
 * const stop = new Channel<string>({ capacity: 1 });
 * const work = new Channel<string>({ capacity: 1 });
 * stop.trySend("stop");
 * work.trySend("work");
 * const options: SelectOptions = { biased: true };
 * assertEquals((await select({ stop: stop.receiveCase(), work: work.receiveCase() }, options)).key, "stop");
 * ```
 */
export interface SelectOptions extends WaitOptions {
  /**
   * Whether to choose the first ready case in the order of the object's keys (integer keys come first) instead of a
   * random one. Default false.
   */
  biased?: boolean | undefined;
}

/**
 * Waits for the first of several channel operations, and performs only that one: the other cases send and receive
 * nothing. If several cases are ready, one is chosen at random, so that no case starves, unless `biased` is set.
 *
 * A receive on a closed and drained channel, and a send on a closed channel, are ready with `done: true`. Replace such
 * a case by `undefined` to go on with the others. To get the reason of the close, call the channel's own `receive()`.
 *
 * @param cases The cases by name: `receiver.receiveCase()`, `sender.sendCase(value)` or `undefined`.
 * @param options A signal, a timeout, and whether the first case has priority.
 * @returns The name of the case as `key`, `done`, and the `value` of a receive.
 * @throws {TypeError} There is no case, no signal and no timeout.
 * @throws {RangeError} `timeout` is negative, NaN, or finite and above 2 147 483 647.
 * @throws {DOMException} "TimeoutError": the timeout expired.
 * @throws The reason of the signal, when it aborts.
 * @typeParam Cases The type of `cases`.
 *
 * @example Receiving or sending, with a time limit
 * ```ts
 * import { Channel, select } from "@sluice/smux/channel";
 * import { assertEquals } from "@std/assert";
 *
 * const jobs = new Channel<number>({ capacity: 8 });
 * const results = new Channel<number>();
 * jobs.trySend(20);
 *
 * const r = await select({ job: jobs.receiveCase(), out: results.sendCase(1) }, { timeout: 5_000 });
 * switch (r.key) {
 *   case "job":
 *     if (!r.done) assertEquals(r.value, 20);
 *     break;
 *   case "out":
 *     throw new Error("not reached: no receiver waits");
 * }
 * ```
 */
export function select<Cases extends SelectCases>(
  cases: Cases,
  options: SelectOptions = {},
): Promise<SelectResult<Cases>> {
  const entries = entriesOf(cases);
  const endless = !options.signal && (options.timeout ?? Infinity) === Infinity;
  const invalid = entries.length === 0 && endless
    ? new TypeError("Cannot select: there is no case, no signal and no timeout")
    : invalidTimeout(options.timeout);
  if (invalid !== undefined) return Promise.reject(invalid);
  const result = attempt<Cases>(entries, options.biased);
  if (result !== undefined) return Promise.resolve(result);
  return rejectBeforeWait(options) ?? new Promise((resolve, reject) => {
    const parked: { leave(): void }[] = [];
    const leaveAll = () => {
      limit?.stop();
      for (const waiter of parked) waiter.leave();
    };
    const limit = endless ? undefined : new WaitLimit(options, {
      fail(reason) {
        leaveAll();
        reject(reason);
      },
    });
    for (const [key, selectCase] of entries) {
      parked.push(selectCase.park((outcome) => {
        leaveAll();
        resolve(named<Cases>(key, outcome));
      }));
    }
  });
}

/**
 * Performs one of several channel operations if one is ready, without waiting.
 *
 * @param cases The cases by name, as for {@linkcode select}.
 * @param options Whether the first case has priority.
 * @returns The result, as of {@linkcode select}, or `undefined` if no case is ready.
 * @typeParam Cases The type of `cases`.
 *
 * @example Receiving from the channel that has a value
 * ```ts
 * import { Channel, trySelect } from "@sluice/smux/channel";
 * import { assertEquals } from "@std/assert";
 *
 * const a = new Channel<string>({ capacity: 1 });
 * const b = new Channel<string>({ capacity: 1 });
 * assertEquals(trySelect({ a: a.receiveCase(), b: b.receiveCase() }), undefined);
 * b.trySend("hello");
 * assertEquals(trySelect({ a: a.receiveCase(), b: b.receiveCase() }), { key: "b", done: false, value: "hello" });
 * ```
 */
export function trySelect<Cases extends SelectCases>(
  cases: Cases,
  options: Pick<SelectOptions, "biased"> = {},
): SelectResult<Cases> | undefined {
  return attempt<Cases>(entriesOf(cases), options.biased);
}

type Entry = [key: string, selectCase: SelectCase<object>];

function entriesOf(cases: SelectCases): Entry[] {
  const entries: Entry[] = [];
  for (const key of Object.keys(cases)) {
    const selectCase = cases[key];
    if (selectCase !== undefined) entries.push([key, selectCase]);
  }
  return entries;
}

/** Tries the cases in turn. Unless biased, the order is shuffled while trying, so each ready case is equally likely. */
function attempt<Cases extends SelectCases>(entries: Entry[], biased = false): SelectResult<Cases> | undefined {
  for (let i = 0; i < entries.length; i++) {
    const j = biased ? i : i + Math.floor(Math.random() * (entries.length - i));
    const entry = entries[j]!;
    entries[j] = entries[i]!;
    entries[i] = entry;
    const outcome = entry[1].attempt();
    if (outcome !== undefined) return named<Cases>(entry[0], outcome);
  }
  return undefined;
}

/** Adds the name of the case to its outcome. The outcome belongs to this select, so it may be changed. */
function named<Cases extends SelectCases>(key: string, outcome: object & { key?: string }): SelectResult<Cases> {
  outcome.key = key;
  return outcome as unknown as SelectResult<Cases>;
}
