/**
 * Starts a long test in another process, and shows progress.
 *
 * @module
 */

/** Returns the arguments of Deno that run a long test in another process, with `gc()` available. */
export function program(name: string, ...args: string[]): string[] {
  return ["run", "-A", "--v8-flags=--expose-gc", `${import.meta.dirname}/../main.ts`, name, ...args];
}

/** Shows a progress line on a terminal in place of the previous one; without an argument, clears it. */
export function progress(line = ""): void {
  if (Deno.stderr.isTerminal()) Deno.stderr.writeSync(new TextEncoder().encode(`\r${line}\x1b[K`));
}
