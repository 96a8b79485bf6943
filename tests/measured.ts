/**
 * What a process does that another one started to measure it. It imports nothing: what it weighs would be measured too.
 *
 * @module
 */

/** Ends this process when its input ends: whoever started it holds that open, and has ended then, in whatever way. */
export function endWithInput(): void {
  Deno.stdin.readable.pipeTo(new WritableStream()).finally(() => Deno.exit(0));
}

/** Says what came out, as a line of JSON. */
export function report(result: object): void {
  console.log(JSON.stringify(result));
}

/** Collects garbage, in a process that was started with `--expose-gc`, and gives what memory is in use then. */
export async function usedMemory(): Promise<Deno.MemoryUsage> {
  const collect = (globalThis as { gc?: () => void }).gc!;
  // What one collection frees may hold what the next one can: finalizers, and timers that run meanwhile.
  for (let n = 0; n < 4; n++) {
    collect();
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  return Deno.memoryUsage();
}
