/**
 * The long tests as programs: how one starts itself once more, and shows how far it is.
 *
 * @module
 */

/** What Deno is started with to run a long test in another process, which can collect its garbage when told to. */
export function program(name: string, ...args: string[]): string[] {
  return ["run", "-A", "--v8-flags=--expose-gc", `${import.meta.dirname}/../main.ts`, name, ...args];
}

/** Shows on a terminal, in place of what was shown before, how far it is; nothing in the end. */
export function progress(line = ""): void {
  if (Deno.stderr.isTerminal()) Deno.stderr.writeSync(new TextEncoder().encode(`\r${line}\x1b[K`));
}
