/**
 * Each exported symbol has an example, and each example asserts.
 *
 * The examples run with the tests (`deno test --doc`); this file checks that they exist.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import { readdirSync } from "node:fs";
import config from "../deno.json" with { type: "json" };
import { deno, makeFolder } from "./programs.ts";

const ROOT = new URL("../", import.meta.url);
const ENTRYPOINTS = Object.values(config.exports);
const PACKAGES = Object.keys(config.imports).filter((name) => name.startsWith("@std/"));
const COUNTED = ["class", "function", "interface", "typeAlias", "variable"];
// `deno doc` prints a comment without its stars and their indentation.
const EXAMPLE = /^```ts\n(.*?)^```$/gms;

/** The used part of the output of `deno doc --json`. */
interface Doc {
  nodes: Record<string, { symbols: { name: string; declarations: Declaration[] }[] }>;
}

interface Declaration {
  kind: string;
  declarationKind: string;
  jsDoc?: { doc?: string; tags?: { kind: string; doc?: string }[] };
}

/** Runs `deno doc` on modules of the repository, or on one at an absolute path. */
async function documentation(...paths: string[]): Promise<Doc> {
  return JSON.parse(await deno("doc", "--json", ...paths));
}

function examples(text: string): string[] {
  return Array.from(text.matchAll(EXAMPLE), ([, code]) => code!);
}

/** Whether a symbol needs an example: not a private symbol, nor a re-export, which has one in its own module. */
function isCounted({ kind, declarationKind }: Declaration): boolean {
  return declarationKind === "export" && COUNTED.includes(kind);
}

function hasExample({ jsDoc }: Declaration): boolean {
  return jsDoc?.tags?.some(({ kind, doc = "" }) => kind === "example" && examples(doc).length > 0) ?? false;
}

function symbols({ nodes }: Doc): { name: string; declarations: Declaration[] }[] {
  return Object.values(nodes).flatMap(({ symbols }) => symbols)
    .map(({ name, declarations }) => ({ name, declarations: declarations.filter(isCounted) }))
    .filter(({ declarations }) => declarations.length > 0);
}

/** Returns the names of exported symbols without an example; of an overloaded function one declaration needs one. */
function withoutExample(doc: Doc): string[] {
  const missing = symbols(doc).filter(({ declarations }) => !declarations.some(hasExample));
  return [...new Set(missing.map(({ name }) => name))].sort();
}

/** Returns all examples, including those of modules and members. */
function allExamples(doc: unknown): string[] {
  if (typeof doc === "string") return examples(doc);
  if (typeof doc !== "object" || doc === null) return [];
  return [...new Set(Object.values(doc).flatMap(allExamples))];
}

function imports(example: string, name: string): boolean {
  return new RegExp(`^import .* from "${name}";$`, "m").test(example);
}

async function withModule(source: string, use: (doc: Doc) => void): Promise<void> {
  await using folder = await makeFolder("documentation");
  await Deno.writeTextFile(`${folder.path}/elsewhere.ts`, "export class Elsewhere {}");
  await Deno.writeTextFile(`${folder.path}/mod.ts`, source);
  use(await documentation(`${folder.path}/mod.ts`));
}

Deno.test("every exported symbol has an example", async () => {
  const doc = await documentation(...ENTRYPOINTS);
  const names = symbols(doc).map(({ name }) => name);
  for (const name of ["serve", "Session", "Version", "Transport", "select", "openTunnel"]) assert(names.includes(name));
  assertEquals(withoutExample(doc), []);
});

Deno.test("every example asserts, and together they use each of the @std packages", async () => {
  const found = allExamples(await documentation(...ENTRYPOINTS));
  assert(found.length > ENTRYPOINTS.length, `${found.length}`);
  assertEquals(found.filter((example) => !imports(example, "@std/assert")), []);
  assertEquals(PACKAGES, ["@std/assert", "@std/async", "@std/bytes", "@std/streams"]);
  assertEquals(PACKAGES.filter((name) => !found.some((example) => imports(example, name))), []);
});

Deno.test("withoutExample() reports each kind of symbol without an example, only if the module exports it", async () => {
  const source = `
    /** Has none. */ export class Class { /** A member's is not its own.\n * @example\n * \`\`\`ts\n * 1;\n * \`\`\`\n */ m = 1; }
    /** Has none. */ export function call(): void {}
    /** Has none. */ export interface Interface { a: Private }
    /** Is empty.\n * @example\n */ export type Alias = 1;
    /** Is no code.\n * @example Title\n * Words. */ export const variable = 1;
    export type Undocumented = 1;
    /** Has one.\n * @example Title\n * \`\`\`ts\n * 1;\n * \`\`\`\n */ export const exemplary = 1;
    /** Is not exported. */ interface Private { b: 1 }
    export { Elsewhere } from "./elsewhere.ts";`;
  await withModule(source, (doc) => {
    // A re-export is a symbol of this module, unless its own module is documented in the same run.
    const expected = ["Alias", "Class", "Elsewhere", "Interface", "Undocumented", "call", "variable"];
    assertEquals(withoutExample(doc), expected);
  });
});

Deno.test("allExamples() finds the examples of a member and of the module, and detects one that does not assert", async () => {
  const source = `
    /** Module.\n * \`\`\`ts\n * import { equals } from "@std/bytes";\n * \`\`\`\n * @module\n */
    /** Class. */ export class Class {
      /** Method.\n * @example\n * \`\`\`ts\n * import { assert } from "@std/assert";\n * \`\`\`\n */ m(): void {}
    }`;
  await withModule(source, (doc) => {
    const found = allExamples(doc);
    assertEquals(found.length, 2);
    assertEquals(["@std/assert", "@std/bytes", "@std/async"].map((name) => found.findIndex((e) => imports(e, name))), [
      found.findIndex((example) => example.includes("assert")),
      found.findIndex((example) => example.includes("equals")),
      -1,
    ]);
    assertEquals(found.filter((example) => !imports(example, "@std/assert")).length, 1);
  });
});

/** Reads the files with one of these endings in a folder of the repository; with `recursive`, in subfolders, too. */
function textsIn(folder: string, endings: string[], recursive: boolean): string[] {
  const names = readdirSync(new URL(folder, ROOT), { recursive }) as string[];
  return names.filter((name) => endings.some((ending) => name.endsWith(ending)))
    .map((name) => Deno.readTextFileSync(new URL(`${folder}${name}`, ROOT)));
}

/** Returns the numbers in a pattern's captures, each once, in ascending order. */
function numbers(texts: string[], pattern: RegExp): number[] {
  const found = texts.flatMap((text) => Array.from(text.matchAll(pattern), ([, list]) => list!.match(/\d+/g)!)).flat();
  return [...new Set(found.map(Number))].sort((a, b) => a - b);
}

Deno.test("docs/design.md has a heading for each rule that a test, module or text cites, and a test for each heading", async () => {
  const design = await Deno.readTextFile(new URL("docs/design.md", ROOT));
  const headings = numbers([design], /^### Rule (\d+): \S/gm);
  const tests = textsIn("tests/", [".ts"], true);
  const texts = [...tests, ...textsIn("./", [".ts", ".md"], false), ...textsIn("docs/", [".md"], true)];
  assertEquals(numbers(texts, /\brules?\s+(\d+(?:(?:,\s+|,?\s+and\s+)\d+)*)/gi), headings);
  // The titles of tests begin with the number of their rule.
  assertEquals(numbers(tests, /["`]rule (\d+): /g), headings);
});
