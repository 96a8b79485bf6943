/**
 * The browser examples in Chromium: streams over a WebSocket, one of which is paused without blocking the others, and
 * events that the server pushes. Ignored without Chromium.
 *
 * `SLUICE_SCREENSHOT` names a file for a screenshot of the page with one transfer paused.
 *
 * @module
 */

import { assertEquals, assertGreater, assertLess } from "@std/assert";
import { chromium } from "npm:playwright-core@1.65.1";
import { findProgram, watch } from "./programs.ts";

const SERVER = `${import.meta.dirname}/../examples/browser/server.ts`;
// The page's 84 MB take 8 seconds at this rate; one transfer is paused within the first.
const MEGABYTES_PER_SECOND = "10";
const TRANSFERS = 8;
// In milliseconds. Generous, because each of the page's 5000 chunks waits for a timer, which a busy machine fires late.
const LIMIT = 5 * 60_000;

const executablePath = findProgram("chromium", "chromium-browser", "google-chrome") ?? "";

/** Starts the example's server, and waits until it prints its address. */
async function startServer() {
  const options = { stdin: "null", stdout: "piped", stderr: "piped" } as const;
  const args = ["run", "--quiet", "-A", SERVER, "0", MEGABYTES_PER_SECOND];
  const watched = watch(new Deno.Command(Deno.execPath(), { args, ...options }).spawn());
  const [, url] = await watched.until(/^(.*)\n/);
  return { ...watched, url: url! };
}

Deno.test("browser: eight streams share one WebSocket, and a paused stream does not block the others", {
  ignore: executablePath === "",
}, async () => {
  await using server = await startServer();
  await using browser = await chromium.launch({ executablePath, timeout: LIMIT });
  const page = await browser.newPage({ viewport: { width: 1200, height: 900 } });
  page.setDefaultTimeout(LIMIT);
  const errors: string[] = [];
  page.on("pageerror", ({ message }) => errors.push(message));
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  await page.goto(server.url);

  const rows = page.locator("li");
  const held = rows.filter({ hasText: "Ganges" });
  const received = async () => Number(await held.getAttribute("data-received"));
  const moving = page.locator("li[data-received]:not([data-received='0'])");
  await moving.nth(TRANSFERS - 1).waitFor();

  await page.getByRole("button", { name: "Pause Ganges" }).click();
  await held.getByText("Paused").waitFor();
  const before = await received();
  assertGreater(before, 0);
  const screenshot = Deno.env.get("SLUICE_SCREENSHOT");
  if (screenshot !== undefined) await page.screenshot({ path: screenshot, fullPage: true });

  const done = page.locator("li[data-state=done]");
  await done.nth(TRANSFERS - 2).waitFor();
  // The page updates all its figures together, at intervals.
  await page.locator("#streams:text-is('1')").waitFor();
  assertEquals(await received(), before);
  assertEquals(await held.getAttribute("data-state"), "paused");
  // Of the 14 MB only what the window allowed waits in the page.
  const unread = parseInt(await page.locator("#unread").textContent() ?? "");
  // An update is sent after half a window was read, and the smallest window is 32 KiB (rule 10).
  assertGreater(unread, 15);
  assertLess(before + unread * 1000, 13_000_000);

  await page.getByRole("button", { name: "Resume Ganges" }).press("Enter");
  await done.nth(TRANSFERS - 1).waitFor();
  await page.getByText("All 8 have arrived, and every sum is right.").waitFor();
  await page.locator("#streams:text-is('0')").waitFor();
  const sums = await Promise.all((await rows.all()).map(async (row) => {
    return `${await row.getAttribute("data-received")} bytes, sum ${await row.getAttribute("data-sum")}`;
  }));

  await page.setViewportSize({ width: 360, height: 800 });
  assertEquals(await page.evaluate("document.documentElement.scrollWidth"), 360);

  // The same session carries all transfers once more.
  await page.getByRole("button", { name: "Start again" }).click();
  await moving.nth(TRANSFERS - 1).waitFor();
  await browser.close();
  await server.end();
  assertEquals(errors, []);
  assertEquals(server.printed.stderr, "");
  const logged = server.printed.stdout.trim().split("\n").slice(1).map((line) => line.replace(/^stream \d+: /, ""));
  assertEquals(logged.slice(0, TRANSFERS).sort(), sums.sort());
});

Deno.test("browser: an event is pushed to every page over a stream that the server opens", {
  ignore: executablePath === "",
}, async () => {
  await using server = await startServer();
  await using browser = await chromium.launch({ executablePath, timeout: LIMIT });
  const pages = await Promise.all([1, 2].map(() => browser.newPage()));
  const errors: string[] = [];
  for (const page of pages) {
    page.setDefaultTimeout(LIMIT);
    page.on("pageerror", ({ message }) => errors.push(message));
    await page.goto(`${server.url}events`);
    await page.getByText("Connected", { exact: true }).waitFor();
  }

  await pages[0]!.getByLabel("Event").fill("from a page");
  await pages[0]!.getByRole("button", { name: "Send" }).click();
  for (const page of pages) await page.getByText("from a page").waitFor();
  const events = ["", "wörld 🌊", "x".repeat(300_000), "<b>the last</b>"];
  for (const body of events) {
    const response = await fetch(`${server.url}push`, { method: "POST", body });
    assertEquals([response.status, await response.text()], [204, ""]);
  }
  for (const page of pages) {
    await page.getByText("<b>the last</b>").waitFor();
    assertEquals(await page.locator("li").allTextContents(), ["from a page", ...events]);
  }

  // A page that has left does not hold up an event for the other.
  await pages[0]!.close();
  await (await fetch(`${server.url}push`, { method: "POST", body: "for one page" })).text();
  await pages[1]!.getByText("for one page").waitFor();
  assertEquals((await server.end()).stderr, "");
  await pages[1]!.getByText("The connection was lost").waitFor();
  assertEquals(errors, []);
});
