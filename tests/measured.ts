/**
 * Helpers of a process that another one measures. It imports nothing, since an import would be measured too.
 *
 * @module
 */

/** Ends this process when its standard input ends, as it does when the parent process ends. */
export function endWithInput(): void {
  Deno.stdin.readable.pipeTo(new WritableStream()).finally(() => Deno.exit(0));
}

/** Prints the result as a line of JSON. */
export function report(result: object): void {
  console.log(JSON.stringify(result));
}

/** Collects garbage, with `--expose-gc`, and returns the memory in use. */
export async function usedMemory(): Promise<Deno.MemoryUsage> {
  const collect = (globalThis as { gc?: () => void }).gc!;
  // One collection may free what retains other memory, by finalizers and by timers in between.
  for (let n = 0; n < 4; n++) {
    collect();
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  return Deno.memoryUsage();
}
