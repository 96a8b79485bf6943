/**
 * Waits for programs that do not report when they listen.
 *
 * @module
 */

import { delay } from "@std/async";

/** Waits until connections to a port of this machine are accepted. */
export async function untilListening(port: number): Promise<void> {
  for (;;) {
    try {
      return (await Deno.connect({ hostname: "127.0.0.1", port })).close();
    } catch (error) {
      if (!(error instanceof Deno.errors.ConnectionRefused)) throw error;
      await delay(10);
    }
  }
}
