/**
 * Parses JSON, and finds the line and column of each value: `JSON.parse` names neither for every mistake.
 *
 * @module
 */

/** A place in a text; both begin with 1. */
export interface Position {
  line: number;
  column: number;
}

/** Text that is not JSON, or has a name twice. */
export class JsonError extends Error {
  readonly position: Position;

  constructor(message: string, position: Position) {
    super(message);
    this.position = position;
  }
}

/** A parsed text. */
export interface Json {
  value: unknown;
  /** Returns the position of the value at a path as "client.forward[2]", or of the nearest that contains it. */
  find(path: string): Position;
}

const SPACE = /[ \t\r\n]*/y;
// Its escapes are checked afterwards.
const STRING = /"(?:[^"\\\n]|\\.)*"/y;
const OTHER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?(?![\w.])|(?:true|false|null)(?!\w)/y;

/** Returns the path of a field. */
export function join(path: string, name: string): string {
  return path === "" ? name : `${path}.${name}`;
}

class Parser {
  readonly #text: string;
  #at = 0;
  /** The offset of each value, by path. */
  readonly offsets = new Map<string, number>();

  constructor(text: string) {
    this.#text = text;
  }

  /** Parses the whole text. */
  parse(): unknown {
    const value = this.#value("");
    if (this.#peek() !== "") this.#fail("the end of the text");
    return value;
  }

  position(offset: number): Position {
    const lines = this.#text.slice(0, offset).split("\n");
    return { line: lines.length, column: lines.at(-1)!.length + 1 };
  }

  #fail(expected: string): never {
    // Only one character: what follows may be a secret.
    const [received = "the end of the text"] = this.#text.slice(this.#at, this.#at + 2);
    throw new JsonError(`expected ${expected}, received ${received}`, this.position(this.#at));
  }

  /** Skips space; returns the next character, empty at the end. */
  #peek(): string {
    this.#match(SPACE);
    return this.#text.charAt(this.#at);
  }

  /** Consumes the text that a pattern matches here. */
  #match(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.#at;
    const found = pattern.exec(this.#text)?.[0];
    this.#at += found?.length ?? 0;
    return found;
  }

  #value(path: string): unknown {
    const next = this.#peek();
    this.offsets.set(path, this.#at);
    if (next === "{") return Object.fromEntries(this.#items("}", () => this.#field(path), "a name in double quotes"));
    if (next === "[") {
      let count = 0;
      return this.#items("]", () => this.#value(`${path}[${count++}]`), "a value");
    }
    if (next === '"') return this.#string();
    const token = this.#match(OTHER);
    return token === undefined ? this.#fail("a value") : JSON.parse(token);
  }

  #string(): string {
    const start = this.#at;
    const token = this.#match(STRING);
    try {
      if (token !== undefined) return JSON.parse(token);
    } catch {
      // A control character, or an unknown escape.
    }
    this.#at = start;
    return this.#fail("a text that ends with a double quote, with valid escapes");
  }

  #field(path: string): [name: string, value: unknown] {
    const start = this.#at;
    if (this.#peek() !== '"') this.#fail("a name in double quotes");
    const name = this.#string();
    const inner = join(path, name);
    if (this.offsets.has(inner)) throw new JsonError(`${inner} must occur only once`, this.position(start));
    if (this.#peek() !== ":") this.#fail('":"');
    this.#at++;
    return [name, this.#value(inner)];
  }

  /** Parses what is between brackets, separated by commas. */
  #items<T>(close: string, item: () => T, expected: string): T[] {
    const items: T[] = [];
    this.#at++;
    if (this.#peek() === close) {
      this.#at++;
      return items;
    }
    for (;;) {
      // JSON has no comma before the closing bracket.
      if (this.#peek() === close) this.#fail(expected);
      items.push(item());
      const next = this.#peek();
      if (next !== "," && next !== close) this.#fail(`"," or "${close}"`);
      this.#at++;
      if (next === close) return items;
    }
  }
}

/**
 * Parses a text. A byte order mark in front is ignored.
 *
 * @throws {JsonError} The text is malformed.
 */
export function parseJson(text: string): Json {
  const parser = new Parser(text.replace(/^\ufeff/, ""));
  const value = parser.parse();
  return {
    value,
    find(path) {
      for (; path !== ""; path = path.slice(0, Math.max(path.lastIndexOf("."), path.lastIndexOf("["), 0))) {
        const offset = parser.offsets.get(path);
        if (offset !== undefined) return parser.position(offset);
      }
      return parser.position(parser.offsets.get("")!);
    },
  };
}
