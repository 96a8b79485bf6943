/**
 * Runs one of the long tests, which the everyday run leaves out: `deno task deep NAME [ARGUMENT...]`.
 *
 * Every other module in this folder is one, named as its file. Without a name, lists them.
 *
 * @module
 */

/** What each of the long tests exports. */
interface DeepTest {
  /** What it does, in one line. */
  description: string;
  /** Runs it; it rejects when the test fails. */
  run(args: string[]): Promise<void>;
}

const here = new URL(".", import.meta.url);
const names = Array.from(Deno.readDirSync(here), (entry) => entry.name)
  .filter((file) => file.endsWith(".ts") && file !== "main.ts")
  .map((file) => file.slice(0, -".ts".length))
  .sort();
const load = async (name: string): Promise<DeepTest> => await import(new URL(`${name}.ts`, here).href);

const [name, ...args] = Deno.args;
if (name !== undefined && names.includes(name)) {
  await (await load(name)).run(args);
} else {
  if (name !== undefined) console.error(`There is no long test named ${name}.`);
  const width = Math.max(0, ...names.map((name) => name.length));
  for (const name of names) console.log(`${name.padEnd(width)}  ${(await load(name)).description}`);
  Deno.exit(name === undefined ? 0 : 1);
}
