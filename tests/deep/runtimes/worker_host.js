/**
 * Starts worker.js in workerd with miniflare, and prints its address.
 *
 * @module
 */

import { createRequire } from "node:module";
import process from "node:process";

// `require`, because Deno would check an import of a package that it does not have.
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
