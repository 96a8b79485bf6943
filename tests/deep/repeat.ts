/**
 * Repeats `deno task test` in shuffled order to find flaky tests.
 *
 * @module
 */

import { integer, parseWithWords } from "./shared/options.ts";

/** One line for the list of long tests. */
export const description = "`deno task test` in shuffled order, many times: [--times 100] [FILE...]";

// Timeout of a run, in milliseconds.
const LIMIT = 10 * 60_000;

/** Runs the tests; rejects if a run fails. */
export async function run(args: string[]): Promise<void> {
  const { values: { times }, words: files } = parseWithWords(args, { times: integer(100, 1) });

  const started = performance.now();
  const failures = new Map<string, number[]>();
  let failedRuns = 0;
  for (let n = 1; n <= times; n++) {
    const [seed] = crypto.getRandomValues(new Uint32Array(1));
    const runStarted = performance.now();
    const { success, output } = await test(seed!, files);
    const seconds = ((performance.now() - runStarted) / 1000).toFixed(1);
    console.log(`run ${n} of ${times}: ${success ? "ok" : "FAILED"}, ${seconds} s, seed ${seed}`);
    if (success) continue;
    failedRuns++;
    for (const name of failing(output)) failures.set(name, [...failures.get(name) ?? [], seed!]);
    console.log(output.replaceAll(/^/gm, "  | "));
    console.log(`  again: deno task test --shuffle=${seed} ${files.join(" ")}`.trimEnd());
  }

  const minutes = ((performance.now() - started) / 60_000).toFixed(1);
  const flakes = Array.from(failures).filter(([, seeds]) => seeds.length < times);
  console.log(`repeat: ${times} runs, ${times - failedRuns} passed, ${flakes.length} flakes, ${minutes} minutes`);
  for (const [name, seeds] of failures) {
    console.log(`  ${seeds.length} of ${times} times: ${name} (seeds ${seeds.join(", ")})`);
  }
  if (failedRuns > 0) throw new Error(`${failedRuns} of ${times} runs failed`);
}

async function test(seed: number, files: string[]): Promise<{ success: boolean; output: string }> {
  const limit = new AbortController();
  const timer = setTimeout(() => limit.abort(), LIMIT);
  const child = new Deno.Command(Deno.execPath(), {
    args: ["task", "test", `--shuffle=${seed}`, ...files],
    cwd: new URL("../..", import.meta.url),
    env: { NO_COLOR: "1" },
    stdin: "null",
    signal: limit.signal,
  });
  const { success, stdout, stderr } = await child.output();
  clearTimeout(timer);
  const decoder = new TextDecoder();
  const hung = limit.signal.aborted ? `\nkilled after ${LIMIT} ms\n` : "";
  return { success, output: decoder.decode(stdout) + decoder.decode(stderr) + hung };
}

/** Returns the names of the failed tests, or a placeholder if the output lists none. */
function failing(output: string): string[] {
  const [, list] = output.split(/^ FAILURES $/m);
  const names = Array.from(list?.matchAll(/^(.+?)( => .+:\d+:\d+| \(uncaught error\))$/gm) ?? [], ([, name]) => name!);
  return names.length > 0 ? names : ["(the run itself)"];
}
