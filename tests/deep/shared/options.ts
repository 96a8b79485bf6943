/**
 * The options of the long tests, as they stand on the command line.
 *
 * @module
 */

import { parseArgs } from "node:util";

/** How one option is read. */
export interface Option<T> {
  /** Whether it stands alone, without a value. */
  isFlag: boolean;
  /** What its text means, "true" for a flag, or its absence; throws a `RangeError` when it means nothing. */
  read(text: string | undefined, name: string): T;
}

/** What the options of a test are read as. */
export type Values<Options> = { [Name in keyof Options]: Options[Name] extends Option<infer T> ? T : never };

/** Reads the options; throws a `TypeError` for an unknown one, and for an argument that is no option. */
export function parse<Options extends Record<string, Option<unknown>>>(
  args: string[],
  options: Options,
): Values<Options> {
  return parseAll(args, options, false).values;
}

/** The same where other words may stand beside the options, as `words`. */
export function parseWithWords<Options extends Record<string, Option<unknown>>>(
  args: string[],
  options: Options,
): { values: Values<Options>; words: string[] } {
  return parseAll(args, options, true);
}

function parseAll<Options extends Record<string, Option<unknown>>>(
  args: string[],
  options: Options,
  allowPositionals: boolean,
) {
  const { values: texts, positionals } = split(args, options, allowPositionals);
  const values = Object.entries(options).map(([name, { read }]) => [name, read(texts[name]?.toString(), `--${name}`)]);
  return { values: Object.fromEntries(values) as Values<Options>, words: positionals };
}

/** Splits the command line into the texts of its options and the words beside them. */
function split(args: string[], options: Record<string, Option<unknown>>, allowPositionals: boolean) {
  const types = Object.entries(options).map(([name, { isFlag }]) =>
    [name, { type: isFlag ? "boolean" as const : "string" as const }] as const
  );
  try {
    return parseArgs({ args, options: Object.fromEntries(types), allowPositionals });
  } catch (error) {
    const known = types.map(([name, { type }]) => type === "boolean" ? `--${name}` : `--${name} VALUE`);
    throw new TypeError(`${(error as Error).message} (options: ${known.join(", ")})`, { cause: error });
  }
}

/** An option that is given or not. */
export const flag: Option<boolean> = { isFlag: true, read: (given) => given !== undefined };

/** Any text, such as the name of a file. */
export const anyText: Option<string | undefined> = { isFlag: false, read: (text) => text };

/** An integer; `standard` when it is not given. */
export function integer<Standard extends number | undefined>(
  standard: Standard,
  least = -Infinity,
): Option<number | Standard> {
  const expected = least === -Infinity ? "an integer" : `an integer of at least ${least}`;
  return number(standard, expected, (value) => Number.isSafeInteger(value) && value >= least);
}

/** A number above 0. */
export function positive(standard: number): Option<number> {
  return number(standard, "a number above 0", (value) => value > 0);
}

function number<Standard>(
  standard: Standard,
  expected: string,
  isGood: (value: number) => boolean,
): Option<number | Standard> {
  return {
    isFlag: false,
    read(text, name) {
      if (text === undefined) return standard;
      // Of nothing and of blanks `Number` would make 0.
      const value = text.trim() === "" ? NaN : Number(text);
      if (!isGood(value)) throw new RangeError(`${name} must be ${expected}, received ${text}`);
      return value;
    },
  };
}

/** Names with commas between them, each one of those known; all of the known when it is not given. */
export function names<Name extends string>(known: readonly Name[]): Option<Name[]> {
  return {
    isFlag: false,
    read(text, name) {
      if (text === undefined) return [...known];
      const isKnown = (given: string): given is Name => known.some((one) => one === given);
      return text.split(",").map((given) => {
        if (isKnown(given)) return given;
        throw new RangeError(`${name} must be of ${known.join(", ")}, received ${given}`);
      });
    },
  };
}

/** One of those known; all of them when it is not given. */
export function oneOf<Name extends string>(known: readonly Name[]): Option<Name[]> {
  return {
    isFlag: false,
    read(text, name) {
      const chosen = known.filter((one) => text === undefined || text === one);
      if (chosen.length > 0) return chosen;
      throw new RangeError(`${name} must be ${known.join(" or ")}, received ${text}`);
    },
  };
}
