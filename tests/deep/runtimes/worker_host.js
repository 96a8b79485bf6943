/**
 * Runs a bundled worker in workerd, by miniflare, and prints its address: `node worker_host.js SCRIPT [FLAG...]`.
 *
 * @module
 */

import { createRequire } from "node:module";
import process from "node:process";

// `require`, because Deno would check an import of a package that it does not have.
const { Miniflare } = createRequire(import.meta.url)("miniflare");

const [scriptPath, ...compatibilityFlags] = process.argv.slice(2);
const miniflare = new Miniflare({
  modules: true,
  scriptPath,
  compatibilityDate: "2025-05-01",
  compatibilityFlags,
  host: "127.0.0.1",
  port: 0,
});
console.log(`${await miniflare.ready}`);
process.stdin.resume().on("end", () => miniflare.dispose());
