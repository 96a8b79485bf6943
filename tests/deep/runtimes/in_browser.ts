/**
 * Clients over WebSockets in a page of a browser: `in_browser.ts chromium|firefox client PORT PATH...` connects to each
 * path, one after the other, and prints each outcome as a line of JSON.
 *
 * @module
 */

import { BROWSER_NAMES, launch, processes, resident, servePage } from "../../browsers.ts";
import { LOOPBACK } from "../../support.ts";

const SAMPLE_MS = 20;
const [browserName, , port, ...paths] = Deno.args;
const name = BROWSER_NAMES.find((name) => name === browserName);
if (name === undefined) throw new TypeError(`expected ${BROWSER_NAMES.join(" or ")}, received ${browserName}`);

const server = Deno.serve(
  { ...LOOPBACK, onListen() {} },
  (request) => servePage(request, "tests/deep/runtimes/bad_input.js"),
);
const browser = await launch(name);
const page = await browser.newPage();
await page.goto(`http://127.0.0.1:${server.addr.port}/`);
await page.waitForFunction("globalThis.run !== undefined");
const { tabs } = processes(name, browser);
for (const path of paths) {
  const before = resident(...tabs);
  let most = before;
  const sampling = setInterval(() => most = Math.max(most, resident(...tabs)), SAMPLE_MS);
  const outcome = await page.evaluate(`run("ws://127.0.0.1:${port}${path}")`) as object;
  clearInterval(sampling);
  console.log(JSON.stringify({ ...outcome, grown: most - before }));
}
await browser.close();
await server.shutdown();
