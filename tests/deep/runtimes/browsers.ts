/**
 * The browsers that are installed.
 *
 * @module
 */

import puppeteer, { type Page } from "npm:puppeteer-core@25.16.0";
import { findProgram } from "../../programs.ts";

const BROWSERS = [
  ["Chromium", "chrome", "chromium", "google-chrome"],
  ["Firefox", "firefox", "firefox-esr"],
] as const;

/** A browser that is installed. */
export interface Browser {
  name: string;
  /** Starts it with a new page. */
  open(): Promise<AsyncDisposable & { page: Page }>;
}

/** Finds the browsers; prints those that are missing. */
export function findBrowsers(): Browser[] {
  return BROWSERS.flatMap(([name, browser, ...programs]) => {
    const executablePath = findProgram(...programs);
    if (executablePath === undefined) {
      console.log(`${name} is not installed: skipped`);
      return [];
    }
    const args = browser === "chrome" ? ["--no-sandbox"] : [];
    const open = async () => {
      const launched = await puppeteer.launch({ browser, executablePath, headless: true, args });
      return { page: await launched.newPage(), [Symbol.asyncDispose]: () => launched.close() };
    };
    return [{ name, open }];
  });
}
