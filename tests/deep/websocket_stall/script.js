/**
 * A client in Node, Bun or Deno: `script.js URL` reads a job and the options of its session from its standard
 * input, stalls with the next input, and prints at intervals what it has seen.
 *
 * @module
 */

import { createRequire } from "node:module";
import process from "node:process";
import { stall, start, tally } from "./client.js";

const [url] = process.argv.slice(2);
// Node 20 has no WebSocket. Not an import, because Deno checks those of this file too.
const Socket = globalThis.WebSocket ?? createRequire(import.meta.url)("ws");

process.stdin.once("data", (line) => {
  const [job, options] = JSON.parse(line);
  start(new Socket(url), job, options);
  process.stdin.once("data", () => stall(job));
});
process.stdin.on("end", () => process.exit());
setInterval(() => console.log(JSON.stringify(tally)), 100);
