/**
 * Reads the command line options of the long tests.
 *
 * @module
 */

import { parseArgs } from "node:util";

/** Reads the value of one option. */
export interface Option<T> {
  /** Whether the option has no value. */
  isFlag: boolean;
  /**
   * Returns the value for `text`, which is "true" for a flag that is set and `undefined` for a missing option; throws a
   * `RangeError` when the text is invalid.
   */
  read(text: string | undefined, name: string): T;
}

/** The values of the options of a test. */
export type Values<Options> = { [Name in keyof Options]: Options[Name] extends Option<infer T> ? T : never };

/** Reads the options; throws a `TypeError` for an unknown option and for a positional argument. */
export function parse<Options extends Record<string, Option<unknown>>>(
  args: string[],
  options: Options,
): Values<Options> {
  return parseAll(args, options, false).values;
}

/** Reads the options as {@linkcode parse} does, and returns positional arguments as `words`. */
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

/** Splits the command line into the texts of its options and its positional arguments. */
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

/** An option without a value. */
export const flag: Option<boolean> = { isFlag: true, read: (given) => given !== undefined };

/** Any text, such as the name of a file. */
export const anyText: Option<string | undefined> = { isFlag: false, read: (text) => text };

/** An integer of at least `least`; `standard` is the default. */
export function integer<Standard extends number | undefined>(
  standard: Standard,
  least = -Infinity,
): Option<number | Standard> {
  const expected = least === -Infinity ? "an integer" : `an integer of at least ${least}`;
  return number(standard, expected, (value) => Number.isSafeInteger(value) && value >= least);
}

/** A number above 0; `standard` is the default. */
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
      // `Number` converts an empty or blank text to 0.
      const value = text.trim() === "" ? NaN : Number(text);
      if (!isGood(value)) throw new RangeError(`${name} must be ${expected}, received ${text}`);
      return value;
    },
  };
}

/** Comma-separated names out of `known`; the default is all of `known`. */
export function names<Name extends string>(known: readonly Name[]): Option<Name[]> {
  return {
    isFlag: false,
    read(text, name) {
      if (text === undefined) return [...known];
      const isKnown = (given: string): given is Name => known.some((one) => one === given);
      return text.split(",").map((given) => {
        if (isKnown(given)) return given;
        throw new RangeError(`${name} must be one or more of ${known.join(", ")}, received ${given}`);
      });
    },
  };
}

/** One name out of `known`; the default is all of `known`. */
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
