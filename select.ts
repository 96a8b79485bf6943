/**
 * Waiting for the first of several channel operations.
 *
 * @module
 */

import { invalidTimeout, rejectBeforeWait, type SelectCase, WaitLimit, type WaitOptions } from "./_wait.ts";

/**
 * The cases of one {@linkcode select} by name; one that is `undefined` is left out.
 *
 * @example A case switched off
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
 * Which case it was, under `key`, and what it came to: a union that narrows by `key` and then by `done`.
 *
 * @typeParam Cases The object given to {@linkcode select}.
 *
 * @example Narrowing
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
  [K in keyof Cases]: [NonNullable<Cases[K]>] extends [never] ? never
    : NonNullable<Cases[K]> extends SelectCase<infer Outcome> ? Outcome extends object ? { key: K } & Outcome : never
    : never;
}[keyof Cases];

/**
 * Options of {@linkcode select}.
 *
 * @example The first case first
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
   * Chooses the first case that is ready, in the order they are written (keys that are integers
   * come first, as in every object), instead of any of those that are. Default false.
   */
  biased?: boolean | undefined;
}

/**
 * Waits for the first of several operations, and does exactly that one: nothing is received or sent by the others.
 * Among cases that are ready together one is chosen at random, so that no case starves, unless `biased`.
 *
 * A receive on a closed and drained channel and a send on a closed one are ready, with `done: true`; leave such a case
 * out (`undefined`) to go on with the rest. The channel's own `receive()` rejects with the reason of its close.
 *
 * @param cases What to wait for, each under a name: `receiver.receiveCase()`, `sender.sendCase(value)` or `undefined`.
 * @param options What can end the wait early, and whether the first case goes first.
 * @returns The name of the case as `key`, `done`, and the `value` if one was received.
 * @throws {TypeError} There is nothing to wait for: no case, no signal, no timeout.
 * @throws {RangeError} `timeout` is negative, NaN, or finite and above 2 147 483 647.
 * @throws {DOMException} A "TimeoutError" when the timeout passes; the signal's reason when it aborts.
 * @typeParam Cases The cases by name.
 *
 * @example Work, unless there is a reason to stop
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
 *     throw new Error("no receiver was waiting");
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
 * Does one of several operations if that is possible at once, as {@linkcode select} would.
 *
 * @param cases What to try, each under a name.
 * @param options Whether the first case goes first.
 * @returns As {@linkcode select}, or `undefined` when no case is ready.
 * @typeParam Cases The cases by name.
 *
 * @example Whichever is ready
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

/** Tries the cases one by one, in an order shuffled on the way, so that each ready case is equally likely. */
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

/** Names the outcome after its case. The outcome was made for this select, so it can be changed. */
function named<Cases extends SelectCases>(key: string, outcome: object & { key?: string }): SelectResult<Cases> {
  outcome.key = key;
  return outcome as unknown as SelectResult<Cases>;
}
