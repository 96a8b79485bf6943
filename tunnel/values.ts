/**
 * Parses the options of a command line, each by itself.
 *
 * @module
 */

import { parseArgs } from "node:util";
import { parseEndpoint, parseForward, withoutPath } from "./address.ts";
import { parseHost } from "./certificate.ts";
import { parseNetworks } from "./cidr.ts";
import { errorText } from "./errors.ts";
import { fileHint, optionHint, valueHint, wordHint } from "./hints.ts";
import { parsePin } from "./pin.ts";
import { parseRule } from "./rules.ts";
import { parseProxy } from "./upstream.ts";
import { type Option, OPTIONS } from "./usage.ts";
import { isWebSocketUrl, parseBackend, parseWebSocketUrl } from "./web_socket_address.ts";
import { checkHeaders } from "./web_socket_handshake.ts";

/** A malformed command line; the message is one line. */
export class UsageError extends Error {
  /** Whether the message ends with what to do. */
  readonly isHinted: boolean;

  constructor(message: string, hint?: string) {
    super(hint === undefined ? message : `${message}: ${hint}`);
    this.isHinted = hint !== undefined;
  }
}

/** `--forward -` or `--forward -=TARGET`. */
export const isPipe = (text: string) => /^-(=|$)/.test(text);

/** Throws a `RangeError` for a malformed value. */
function checkValue(name: string, { value, isRule, isUrl }: Option, text: string): void {
  if (isRule) parseRule(name, text);
  else if (isUrl && isWebSocketUrl(text)) parseWebSocketUrl(name, text, value === "LISTEN" ? 0 : 1);
  else if (value === "HEADER") checkHeaders(name, [text]);
  else if (value === "HTTP-URL") parseBackend(name, text);
  else if (value === "LISTEN") parseEndpoint(name, text, 0);
  else if (value === "TARGET") parseEndpoint(name, text, 1);
  else if (value === "HOST") parseHost(name, text);
  else if (value === "URL") parseProxy(text, name);
  else if (value === "CIDR") parseNetworks(name, [text]);
  else if (value === "SHA256") parsePin(name, text);
  else if (value === "SECONDS" && !/^\d{1,6}$/.test(text)) {
    throw new RangeError(`${name} must be an integer from 0 to 999999, received "${text}"`);
  } else if (value === "NUMBER" || value === "MIB") {
    // 2048 MiB are more than a session accepts.
    const most = value === "MIB" ? 2047 : 2 ** 31 - 1;
    if (!/^[1-9]\d{0,9}$/.test(text) || Number(text) > most) {
      throw new RangeError(`${name} must be an integer from 1 to ${most}, received "${text}"`);
    }
  } else if (value === "LISTEN=TARGET") {
    const isPiped = name === "--forward" && isPipe(text);
    const { target } = parseForward(name, isPiped ? text.replace("-", "0") : text);
    const lacksTarget = name === "--reverse" && target === undefined;
    // A host of digits is valid, but not what is meant.
    if (lacksTarget || /^\d+:\d+$/.test(text)) {
      throw new RangeError(`${name} must be LISTEN=TARGET, received "${text}"`);
    }
  }
}

/** The options of a command line, by name. */
export class Values {
  readonly #role: string;
  readonly #values = new Map<string, string[]>();

  constructor(role: string, args: readonly string[]) {
    this.#role = role;
    const options = Object.fromEntries(
      Object.entries(OPTIONS[role]!).map(([name, { value }]) =>
        [name, { type: value === undefined ? "boolean" : "string" }] as const
      ),
    );
    // Strict parsing rejects values that begin with a dash, as in `--forward -=localhost:80`.
    const { tokens } = parseArgs({ args: [...args], options, strict: false, tokens: true });
    let last: string | undefined;
    for (const token of tokens) {
      if (token.kind === "option") {
        const option = token.rawName === `--${token.name}` ? this.#option(token.name) : undefined;
        if (option === undefined) {
          const hint = optionHint(role, args[token.index]!, args[token.index + 1]);
          throw new UsageError(`unknown option ${token.rawName} for sluice ${role}`, hint);
        }
        this.#add(token, option);
        last = token.name;
      } else {
        const word = token.kind === "positional" ? token.value : "--";
        throw new UsageError(`expected an option, received "${withoutPath(word)}"`, wordHint(role, word, last));
      }
    }
  }

  #add(
    token: { name: string; rawName: string; value?: string | undefined; inlineValue?: boolean | undefined },
    option: Option,
  ): void {
    const { name, rawName, value = "", inlineValue = false } = token;
    if (option.value === undefined && inlineValue) {
      throw new UsageError(`${rawName} takes no value, received "${value}"`);
    }
    if (option.value !== undefined && (value === "" || (!inlineValue && value.startsWith("--")))) {
      const received = value === "" ? "no value" : `"${value}"`;
      throw new UsageError(`expected ${rawName} ${option.value}, received ${received}`);
    }
    const values = this.#values.get(name) ?? [];
    if (values.length > 0 && !option.isList) throw new UsageError(`${rawName} must be specified only once`);
    try {
      checkValue(rawName, option, value);
    } catch (error) {
      throw new UsageError(errorText(error), valueHint(rawName, option, value));
    }
    const isRead = option.value === "FILE" && !option.isOutput && !option.isPath;
    this.#values.set(name, [...values, isRead ? readFile(rawName, value) : value]);
  }

  #option(name: string): Option | undefined {
    return Object.hasOwn(OPTIONS[this.#role]!, name) ? OPTIONS[this.#role]![name] : undefined;
  }

  /** The names of the options that were specified. */
  get names(): string[] {
    return [...this.#values.keys()];
  }

  has(name: string): boolean {
    return this.#values.has(name);
  }

  one(name: string): string | undefined {
    return this.#values.get(name)?.[0];
  }

  list(name: string): string[] | undefined {
    return this.#values.get(name);
  }

  required(name: string): string {
    const value = this.one(name);
    if (value === undefined) throw new UsageError(`missing option --${name} ${this.#option(name)!.value}`);
    return value;
  }

  /** Returns a number of seconds in milliseconds. */
  seconds(name: string, fallback: number): number {
    return Number(this.one(name) ?? fallback) * 1000;
  }

  /** Returns a time that is infinite if it is 0 seconds, in milliseconds; `undefined` if it is absent. */
  duration(name: string): number | undefined {
    return this.has(name) ? this.seconds(name, 0) || Infinity : undefined;
  }

  /** Returns a number times `unit`; `undefined` if it is absent. */
  number(name: string, unit = 1): number | undefined {
    return this.has(name) ? Number(this.one(name)) * unit : undefined;
  }
}

function readFile(option: string, path: string): string {
  try {
    return Deno.readTextFileSync(path).trim();
  } catch (error) {
    // The value of --secret may be the secret itself: do not print it.
    const why = error instanceof Deno.errors.NotFound ? "no such file" : errorText(error);
    throw new UsageError(`cannot read the file of ${option}: ${why}`, fileHint(option));
  }
}
