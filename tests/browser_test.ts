/**
 * The browser examples in Chromium and Firefox: streams over a WebSocket, one of which is paused without blocking the
 * others, and events that the server pushes. Ignored for a browser that is not installed.
 *
 * `SLUICE_SCREENSHOT` names a folder for screenshots of the pages with one transfer paused.
 *
 * @module
 */

import { assertEquals, assertGreater, assertLess } from "@std/assert";
import type { Page } from "npm:puppeteer-core@25.16.0";
import { BROWSER_NAMES, hasBrowser, launch } from "./browsers.ts";
import { watch } from "./programs.ts";

const SERVER = `${import.meta.dirname}/../examples/browser/server.ts`;
// The page's 84 MB take 8 seconds at this rate; one transfer is paused within the first.
const MEGABYTES_PER_SECOND = "10";
const TRANSFERS = 8;
// In milliseconds. Generous, because each of the page's 5000 chunks waits for a timer, which a busy machine fires late.
const LIMIT = 5 * 60_000;
// In milliseconds, as in the page.
const SHOWN_EVERY = 100;

/** Starts the example's server, and waits until it prints its address. */
async function startServer() {
  const options = { stdin: "null", stdout: "piped", stderr: "piped" } as const;
  const args = ["run", "--quiet", "-A", SERVER, "0", MEGABYTES_PER_SECOND];
  const watched = watch(new Deno.Command(Deno.execPath(), { args, ...options }).spawn());
  const [, url] = await watched.until(/^(.*)\n/);
  return { ...watched, url: url! };
}

/** Waits until an expression in the page is true. */
async function until(page: Page, expression: string): Promise<void> {
  await page.waitForFunction(expression, { polling: SHOWN_EVERY });
}

const count = (selector: string) => `document.querySelectorAll("${selector}").length`;
const textIs = (selector: string, text: string) => `document.querySelector("${selector}").textContent === "${text}"`;
const MOVING = count("li[data-received]:not([data-received='0'])");
const DONE = count("li[data-state=done]");
// The row whose transfer is paused: the fourth, Ganges.
const HELD = "li:nth-child(4)";

for (const name of BROWSER_NAMES) {
  Deno.test(`browser: eight streams share one WebSocket in ${name}, and a paused stream does not block the others`, {
    ignore: !hasBrowser(name),
  }, async () => {
    await using server = await startServer();
    await using browser = await launch(name);
    // The first page of Firefox gets no keys.
    const page = await browser.newPage();
    page.setDefaultTimeout(LIMIT);
    await page.setViewport({ width: 1200, height: 900 });
    const errors: string[] = [];
    page.on("pageerror", (error) => errors.push(`${error}`));
    page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
    await page.goto(server.url);

    const ofHeld = async (field: string) => await page.evaluate(`document.querySelector("${HELD}").dataset.${field}`);
    await until(page, `${MOVING} === ${TRANSFERS}`);
    await page.locator("::-p-aria(Pause Ganges)").click();
    await until(page, textIs(`${HELD} .note`, "Paused"));
    const before = Number(await ofHeld("received"));
    assertGreater(before, 0);
    const folder = Deno.env.get("SLUICE_SCREENSHOT");
    if (folder !== undefined) await page.screenshot({ path: `${folder}/${name}.png`, fullPage: true });

    await until(page, `${DONE} === ${TRANSFERS - 1}`);
    // The page updates all its figures together, at intervals.
    await until(page, textIs("#streams", "1"));
    assertEquals(Number(await ofHeld("received")), before);
    assertEquals(await ofHeld("state"), "paused");
    // Of the 14 MB only what the window allowed waits in the page.
    const unread = parseInt(await page.evaluate(`document.querySelector("#unread").textContent`) as string);
    // An update is sent after half a window was read, and the smallest window is 32 KiB (rule 10).
    assertGreater(unread, 15);
    assertLess(before + unread * 1000, 13_000_000);

    await page.focus(`${HELD} button`);
    await page.keyboard.press("Enter");
    await until(page, `${DONE} === ${TRANSFERS}`);
    await until(page, textIs("#status", "All 8 have arrived, and every sum is right."));
    await until(page, textIs("#streams", "0"));
    const sums = await page.evaluate(
      `Array.from(document.querySelectorAll("li"), ({ dataset: { received, sum } }) => received + " bytes, sum " + sum)`,
    ) as string[];

    await page.setViewport({ width: 360, height: 800 });
    if (folder !== undefined) await page.screenshot({ path: `${folder}/${name}_narrow.png`, fullPage: true });
    // Firefox has a scroll bar at the side.
    assertLess(await page.evaluate("document.documentElement.scrollWidth"), 361);

    // The same session carries all transfers once more.
    await page.locator("::-p-aria(Start again)").click();
    await until(page, `${MOVING} === ${TRANSFERS}`);
    await browser.close();
    await server.end();
    assertEquals(errors, []);
    assertEquals(server.printed.stderr, "");
    const logged = server.printed.stdout.trim().split("\n").slice(1).map((line) => line.replace(/^stream \d+: /, ""));
    assertEquals(logged.slice(0, TRANSFERS).sort(), sums.sort());
  });
}

for (const name of BROWSER_NAMES) {
  Deno.test(`browser: an event is pushed to every page in ${name} over a stream that the server opens`, {
    ignore: !hasBrowser(name),
  }, async () => {
    await using server = await startServer();
    await using browser = await launch(name);
    const pages = await Promise.all([1, 2].map(() => browser.newPage()));
    const errors: string[] = [];
    const shows = (text: string) => `document.body.innerText.includes(${JSON.stringify(text)})`;
    for (const page of pages) {
      page.setDefaultTimeout(LIMIT);
      page.on("pageerror", (error) => errors.push(`${error}`));
      await page.goto(`${server.url}events`);
      await until(page, shows("Connected"));
    }

    const events = ["first", "wörld 🌊", "x".repeat(300_000), "<b>the last</b>"];
    for (const body of events) {
      const response = await fetch(`${server.url}push`, { method: "POST", body });
      assertEquals([response.status, await response.text()], [204, ""]);
    }
    for (const page of pages) {
      await until(page, `${count("li")} === ${events.length}`);
      const shown = await page.evaluate(`Array.from(document.querySelectorAll("li"), (li) => li.textContent)`);
      assertEquals(shown, events);
    }

    // A page that has left does not hold up an event for the other.
    await pages[0]!.close();
    await (await fetch(`${server.url}push`, { method: "POST", body: "for one page" })).text();
    await until(pages[1]!, shows("for one page"));
    assertEquals((await server.end()).stderr, "");
    await until(pages[1]!, shows("The connection was lost"));
    assertEquals(errors, []);
  });
}
