/**
 * The memory of a tab whose page opens and closes hashed streams for a long time.
 *
 * @module
 */

import { assertGreater, assertLess } from "@std/assert";
import { delay } from "@std/async";
import type { Page } from "npm:puppeteer-core@25.16.0";
import { upgradeWebSocket } from "../../../websocket.ts";
import { type BrowserName, launch, processes, resident, servePage } from "../../browsers.ts";
import { LOOPBACK } from "../../support.ts";
// @ts-types="../runtimes/exchange.d.ts"
import { answer } from "../runtimes/exchange.js";

// Compilation and the first collections change the memory until the end of this minute.
const WARM_UP = 5;
const MOST_GROWTH = 1.2;
const MOST_GROWTH_MIB = 4;

/** Memory after a minute, in MiB, by kind. */
type Sample = Record<string, number>;

/** Runs the page, which opens `rate` streams a second; rejects if its memory grows. */
export async function soakTab(name: BrowserName, minutes: number, rate: number): Promise<void> {
  if (minutes <= WARM_UP) throw new RangeError(`--minutes must be above ${WARM_UP} with --page, received ${minutes}`);
  const errors: unknown[] = [];
  const onError = (error: unknown) => errors.push(error);
  await using server = Deno.serve({ ...LOOPBACK, onListen() {} }, async (request) => {
    if (request.headers.has("upgrade")) return upgradeWebSocket(request, answer, { onError });
    return await servePage(request, "tests/deep/soak/page.js");
  });
  await using browser = await launch(name);
  const [page] = await browser.pages() as [Page];
  page.on("pageerror", onError);
  await page.goto(`http://127.0.0.1:${server.addr.port}/`);
  await page.waitForFunction("globalThis.pause !== undefined");

  const samples: Sample[] = [];
  let streams = 0;
  for (let minute = 1; minute <= minutes; minute++) {
    await page.evaluate(`work(${rate})`);
    await delay(60_000);
    const { count, bytes } = await page.evaluate("pause()") as { count: number; bytes: number };
    assertGreater(count, streams, "no stream has ended");
    streams = count;
    const heap = await collect(name, page);
    const { all, tabs } = processes(name, browser);
    const sample = { ...heap, "resident memory of the page": resident(...tabs) };
    samples.push(sample);
    const whole = { ...sample, "of the browser": resident(...all) };
    const texts = Object.entries(whole).map(([kind, size]) => `${kind} ${size.toFixed(2)} MiB`);
    console.log(`${minute} min: ${count} streams, ${(bytes / 1e6).toFixed(0)} MB; ${texts.join(", ")}`);
  }
  if (errors.length > 0) throw new AggregateError(errors, "The page or the server reported errors");
  for (const [kind, first] of Object.entries(samples[WARM_UP - 1]!)) {
    const last = samples.at(-1)![kind]!;
    console.log(`${name}: ${kind} ${first.toFixed(2)} MiB after minute ${WARM_UP}, ${last.toFixed(2)} MiB at the end`);
    assertLess(last, first * MOST_GROWTH + MOST_GROWTH_MIB, `${kind} has grown`);
  }
}

/** Collects garbage, and returns the size of the heap, without the bytes of its buffers. Firefox does not reveal it. */
async function collect(name: BrowserName, page: Page): Promise<Sample> {
  if (name === "firefox") {
    await page.evaluate("TestUtils.gc()");
    return {};
  }
  const client = await page.createCDPSession();
  await client.send("HeapProfiler.collectGarbage");
  await client.send("Performance.enable");
  const { metrics } = await client.send("Performance.getMetrics");
  await client.detach();
  return { heap: metrics.find(({ name }) => name === "JSHeapUsedSize")!.value / 1024 / 1024 };
}
