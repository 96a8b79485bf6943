/**
 * Browses a site that only the server of a tunnel can resolve and reach: Chromium and Firefox over SOCKS 5 and HTTP
 * proxies, with a password where the browser supports one, and over `reverseSocks`. Each must load every image of the
 * page.
 *
 * @module
 */

import puppeteer, { type Browser, type LaunchOptions } from "npm:puppeteer-core@25.16.0";
import { openTunnel, type OpenTunnelOptions, serveTunnel } from "../../tunnel.ts";
import { resolver } from "../../tunnel/resolve.ts";
import { findProgram } from "../programs.ts";
import { anyText, parse } from "./shared/options.ts";

/** The line of this test in the list of long tests. */
export const description = "Chromium and Firefox browse through SOCKS and HTTP proxies of a tunnel: [--out FOLDER]";

// Only the tunnel resolves it: a browser that does not send names to its proxy fails.
const HOST = "intranet.test";
const IMAGES = 30;
const [USER, PASSWORD] = ["alice", "open sesame"];
// In milliseconds. Generous, because a busy machine is slow.
const LIMIT = 2 * 60_000;

/** A page with images, each a request of its own, and a form whose answer the page shows. */
async function answer(request: Request): Promise<Response> {
  const { pathname } = new URL(request.url);
  if (request.method === "POST") return new Response(`posted ${(await request.text()).length} bytes`);
  const [, n] = /^\/(\d+)\.svg$/.exec(pathname) ?? [];
  if (n !== undefined) {
    const svg = `<svg xmlns="http://www.w3.org/2000/svg" width="120" height="80"><rect width="120" height="80" ` +
      `fill="hsl(${
        Number(n) * 12
      } 70% 60%)"/><text x="60" y="50" font-size="32" text-anchor="middle">${n}</text></svg>`;
    return new Response(svg, { headers: { "content-type": "image/svg+xml", "cache-control": "no-store" } });
  }
  const images = Array.from({ length: IMAGES }, (_, n) => `<img src="/${n}.svg" width="120" height="80">`).join(" ");
  const script = `fetch("/", { method: "POST", body: "x".repeat(100000) }).then((answer) => answer.text())` +
    `.then((text) => document.querySelector("p").textContent = text)`;
  const html = `<!DOCTYPE html><title>${HOST}</title><link rel="icon" href="data:,"><h1>${HOST}</h1>` +
    `${images}<p></p><script>${script}</script>`;
  return new Response(html, { headers: { "content-type": "text/html" } });
}

/** Returns how Chromium is started with a proxy. */
function chromium(kind: string, addr: string): LaunchOptions {
  const scheme = kind === "http" ? "http" : "socks5";
  // Chromium does not use a proxy for this machine by default.
  const args = ["--no-sandbox", `--proxy-server=${scheme}://${addr}`, "--proxy-bypass-list=<-loopback>"];
  return { browser: "chrome", executablePath: findProgram("chromium", "chromium-browser", "google-chrome")!, args };
}

/** Returns how Firefox is started with a proxy. */
function firefox(kind: string, addr: string): LaunchOptions {
  const [host, port] = addr.split(":") as [string, string];
  const names = kind === "http" ? ["http", "ssl"] : ["socks"];
  const extraPrefsFirefox = {
    "network.proxy.type": 1,
    "network.proxy.socks_version": 5,
    "network.proxy.socks_remote_dns": true,
    "network.proxy.allow_hijacking_localhost": true,
    "network.proxy.no_proxies_on": "",
    ...Object.fromEntries(
      names.flatMap((name) => [
        [`network.proxy.${name}`, host],
        [`network.proxy.${name}_port`, Number(port)],
      ]),
    ),
  };
  return { browser: "firefox", executablePath: findProgram("firefox-esr", "firefox")!, extraPrefsFirefox };
}

/** Loads the page; returns the number of images that it shows, and the answer to its upload. */
async function browse(browser: Browser, url: string, hasPassword: boolean, file: string | undefined): Promise<string> {
  const page = await browser.newPage();
  if (hasPassword) await page.authenticate({ username: USER, password: PASSWORD });
  await page.goto(url, { waitUntil: "load", timeout: LIMIT });
  await page.waitForFunction('document.querySelector("p").textContent !== ""', { timeout: LIMIT });
  const shown = await page.evaluate(
    'Array.from(document.images).filter((image) => image.complete && image.naturalWidth > 0).length + " images, "' +
      ' + document.querySelector("p").textContent',
  );
  if (file !== undefined) await page.screenshot({ path: file as `${string}.png` });
  return String(shown);
}

/** Browses with each browser and each kind of proxy; rejects if one of them does not show the whole page. */
export async function run(args: string[]): Promise<void> {
  const { out } = parse(args, { out: anyText });
  if (out !== undefined) await Deno.mkdir(out, { recursive: true });
  const { lookup } = resolver;
  resolver.lookup = (name) => name === HOST ? Promise.resolve(["127.0.0.1"]) : lookup(name);
  const site = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, answer);
  const server = serveTunnel({
    listen: "127.0.0.1:0",
    allow: [`${HOST}:*`],
    allowListen: ["127.0.0.1:*"],
    onError() {},
  });
  const proxyAuth = `${USER}:${PASSWORD}`;
  const own = { socks: ["127.0.0.1:0"] };
  const reverse = { reverseSocks: ["127.0.0.1:0"], allow: [`${HOST}:*`] };
  const ways: [name: string, kind: string, options: Omit<OpenTunnelOptions, "connect">][] = [
    ["socks", "socks", own],
    ["http", "http", own],
    ["http-password", "http", { ...own, proxyAuth }],
    ["reverse", "socks", reverse],
  ];
  let failed = 0;
  for (const [browserName, optionsOf] of Object.entries({ chromium, firefox })) {
    for (const [name, kind, options] of ways) {
      // The browsers themselves ask for hosts of their makers.
      const client = await openTunnel({ connect: server.serverAddr, onError() {}, ...options });
      const started = { ...optionsOf(kind, client.listenAddrs[0]!), timeout: LIMIT, protocolTimeout: LIMIT };
      const browser = await puppeteer.launch(started);
      const file = out === undefined ? undefined : `${out}/${browserName}-${name}.png`;
      const url = `http://${HOST}:${site.addr.port}/`;
      const shown = await browse(browser, url, options.proxyAuth !== undefined, file).catch((error) => String(error));
      await browser.close();
      const { streams } = client.stats();
      await client.shutdown({ timeout: 1000 });
      const isWhole = shown === `${IMAGES} images, posted 100000 bytes`;
      if (!isWhole) failed++;
      console.log(`${isWhole ? "ok    " : "FAILED"} ${browserName}, ${name}: ${shown}; ${streams} connections`);
    }
  }
  await server.shutdown();
  await site.shutdown();
  resolver.lookup = lookup;
  if (failed > 0) throw new Error(`${failed} did not show the whole page`);
}
