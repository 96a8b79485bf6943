/**
 * Runs worker.js in workerd, by miniflare, and prints its address.
 *
 * @module
 */

import { createRequire } from "node:module";
import process from "node:process";

// Not an import, because Deno checks those of this file too.
const { Miniflare } = createRequire(import.meta.url)("miniflare");

const miniflare = new Miniflare({
  modules: true,
  scriptPath: "worker.bundle.js",
  compatibilityDate: "2025-05-01",
  host: "127.0.0.1",
  port: 0,
});
console.log(`${await miniflare.ready}`);
process.stdin.resume().on("end", () => miniflare.dispose());
