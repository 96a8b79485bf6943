/**
 * The browsers that are installed.
 *
 * @module
 */

import type { Page } from "npm:puppeteer-core@25.16.0";
import { BROWSER_NAMES, type BrowserName, hasBrowser, launch } from "../../browsers.ts";

/** A browser that is installed. */
export interface Browser {
  id: BrowserName;
  name: "Chromium" | "Firefox";
  /** Starts it with a new page. */
  open(): Promise<AsyncDisposable & { page: Page }>;
}

/** Finds the browsers; prints those that are missing. */
export function findBrowsers(): Browser[] {
  return BROWSER_NAMES.flatMap((id) => {
    const name = id === "chromium" ? "Chromium" : "Firefox";
    if (!hasBrowser(id)) {
      console.log(`${name} is not installed: skipped`);
      return [];
    }
    const open = async () => {
      const launched = await launch(id);
      return { page: await launched.newPage(), [Symbol.asyncDispose]: () => launched.close() };
    };
    return [{ id, name, open }];
  });
}
