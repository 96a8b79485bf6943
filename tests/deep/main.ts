/**
 * Runs a long test, which `deno task test` does not include: `deno task deep NAME [ARGUMENT...]`.
 *
 * Every other module in this folder is a long test, named after its file. Without NAME, lists the long tests.
 *
 * @module
 */

/** The exports of a long test. */
interface DeepTest {
  /** One line for the list, with the options. */
  description: string;
  /** Runs the test; rejects if the test fails. */
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
  if (name !== undefined) console.error(`Unknown long test: ${name}`);
  const width = Math.max(0, ...names.map((name) => name.length));
  for (const name of names) console.log(`${name.padEnd(width)}  ${(await load(name)).description}`);
  Deno.exit(name === undefined ? 0 : 1);
}
