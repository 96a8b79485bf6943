/**
 * Browsers for tests, their processes, and pages that import the modules of this repository.
 *
 * @module
 */

import { stripTypeScriptTypes } from "node:module";
import puppeteer, { type Browser } from "npm:puppeteer-core@25.16.0";
import { findProgram } from "./programs.ts";

const ROOT = new URL("../", import.meta.url);
const MiB = 1024 * 1024;
// In milliseconds. Generous, because a busy machine is slow.
const LIMIT = 5 * 60_000;

/** A browser that a test knows. */
export type BrowserName = keyof typeof BROWSERS;

const BROWSERS = {
  chromium: {
    options: {
      browser: "chrome",
      // Chromium refuses to run as root with its sandbox. A spare process for pages would be counted as one with a page.
      args: ["--no-sandbox", "--disable-features=SpareRendererForSitePerProcess"],
    },
    programs: ["chromium", "chromium-browser", "google-chrome"],
    // What a process with a page has in this file of its own.
    tab: ["cmdline", /--type=renderer/],
  },
  firefox: {
    options: {
      browser: "firefox",
      extraPrefsFirefox: { "dom.ipc.processPrelaunch.enabled": false, "dom.testing.testutils.enabled": true },
    },
    programs: ["firefox-esr"],
    tab: ["comm", /^(Isolated )?Web Co/],
  },
} as const;

/** The names of the browsers. */
export const BROWSER_NAMES = Object.keys(BROWSERS) as BrowserName[];

/** Whether the browser is installed. */
export function hasBrowser(name: BrowserName): boolean {
  return findProgram(...BROWSERS[name].programs) !== undefined;
}

/** Starts a browser without a window, and with one page; disposing ends it. */
export async function launch(name: BrowserName): Promise<Browser> {
  const { options, programs } = BROWSERS[name];
  const executablePath = findProgram(...programs);
  if (executablePath === undefined) throw new Error(`${programs[0]} is not installed`);
  const args = "args" in options ? [...options.args] : [];
  return await puppeteer.launch({ ...options, args, executablePath, timeout: LIMIT, protocolTimeout: LIMIT });
}

/** The processes of a browser: all of them, and those that run its pages. */
export function processes(name: BrowserName, browser: Browser): { all: number[]; tabs: number[] } {
  const children = new Map<number, number[]>();
  for (const { name } of Deno.readDirSync("/proc")) {
    const stat = /^\d+$/.test(name) ? readProcess(Number(name), "stat") : undefined;
    // The name of a program, in parentheses, may contain blanks.
    const parent = Number(stat?.slice(stat.lastIndexOf(")")).split(" ")[2]);
    children.set(parent, [...children.get(parent) ?? [], Number(name)]);
  }
  const all = [browser.process()!.pid!];
  for (const pid of all) all.push(...children.get(pid) ?? []);
  const [file, pattern] = BROWSERS[name].tab;
  return { all, tabs: all.filter((pid) => pattern.test(readProcess(pid, file))) };
}

/** Resident memory of these processes, in MiB. */
export function resident(...pids: number[]): number {
  const ofOne = (pid: number) => Number(/^VmRSS:\s+(\d+)/m.exec(readProcess(pid, "status"))?.[1] ?? 0) * 1024 / MiB;
  return pids.map(ofOne).reduce((sum, one) => sum + one, 0);
}

/** Reads a file of a process; empty when the process has ended. */
function readProcess(pid: number, file: string): string {
  try {
    return Deno.readTextFileSync(`/proc/${pid}/${file}`);
  } catch {
    return "";
  }
}

/** Answers a page's requests: the page itself, which runs `script`, a path in this repository, and the modules that it imports. */
export async function servePage(request: Request, script: string): Promise<Response> {
  const { pathname } = new URL(request.url);
  if (pathname === "/") {
    const imports = { "@sluice/smux": "/mod.ts", "@sluice/smux/websocket": "/websocket.ts" };
    const html = `<!DOCTYPE html><link rel="icon" href="data:,"><script type="importmap">${
      JSON.stringify({ imports })
    }</script><script type="module" src="/${script}"></script>`;
    return new Response(html, { headers: { "content-type": "text/html" } });
  }
  const code = await Deno.readTextFile(new URL(pathname.slice(1), ROOT)).catch(() => undefined);
  if (code === undefined) return new Response("Not found", { status: 404 });
  const text = pathname.endsWith(".ts") ? stripTypeScriptTypes(code, { mode: "transform" }) : code;
  return new Response(text, { headers: { "content-type": "text/javascript" } });
}
