/**
 * A program that only writes: `writer.ts PORT PATH` sends a request for PATH and then bytes, until a write fails.
 *
 * @module
 */

import { setTimeout } from "node:timers/promises";
import { bytes, writeAll } from "../../support.ts";

// Milliseconds between writes.
const PAUSE = 50;

const [port, path] = Deno.args as [string, string];
const connection = await Deno.connect({ hostname: "127.0.0.1", port: Number(port) });
await writeAll(connection, bytes(`GET ${path} HTTP/1.0\r\n`));
console.log("writing");
const began = performance.now();
try {
  for (;;) {
    await writeAll(connection, new Uint8Array(200));
    await setTimeout(PAUSE);
  }
} catch (error) {
  console.log(`a write failed after ${Math.round(performance.now() - began)} ms: ${(error as Error).name}`);
}
