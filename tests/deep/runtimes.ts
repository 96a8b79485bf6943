/**
 * The package as npm gets it, in other runtimes: each exchanges 100 hashed streams with Deno, and with itself where it can
 * listen, over each transport that it has, in both versions.
 *
 * @module
 */

import { gzipSync } from "node:zlib";
import { serve, type Stream, type Version } from "../../mod.ts";
import { connectWebSocket, upgradeWebSocket } from "../../websocket.ts";
import { BROWSER_NAMES, hasBrowser, launch } from "../browsers.ts";
import { makeFolder, run as runProgram, watch } from "../programs.ts";
import { LOOPBACK } from "../support.ts";
// @ts-types="./runtimes/exchange.d.ts"
import { answer, exchangeAll } from "./runtimes/exchange.js";
import { anyText, parse } from "./shared/options.ts";
import { installPackage } from "./shared/package.ts";

export const description =
  "100 hashed streams in Node, Bun, workerd, Chromium and Firefox, over every transport: [--only bun]";

const ROOT = new URL("../../", import.meta.url);
const VERSIONS: Version[] = [1, 2];
const PACKAGES = ["ws@8.23.0", "bun@1.4.5", "miniflare@4.20260730.0", "esbuild@0.28.2"];
const FIXTURES = ["tests/fixtures/node/peer.js", "tests/fixtures/tls/ca.pem", "tests/fixtures/tls/localhost.pem"];
const decode = (bytes: Uint8Array) => new TextDecoder().decode(bytes);

/** One cell of the table, without its version. */
interface Cell {
  runtime: string;
  transport: string;
  peer: string;
  run(version: Version): Promise<string>;
}

/** Runs all; rejects if a cell failed. */
export async function run(args: string[]): Promise<void> {
  const { only = "" } = parse(args, { only: anyText });
  await using resources = new AsyncDisposableStack();
  const { path: folder } = resources.use(await makeFolder("runtimes"));
  await fill(folder);
  const cells = [
    ...await pageCells(folder, resources),
    ...await workerCells(folder, resources),
    ...scriptCells(folder, "Node", ["node"], ["net", "tls", "web", "ws"]),
    ...scriptCells(folder, "Bun", [`${folder}/node_modules/.bin/bun`], ["net", "tls", "web", "ws", "websocket"]),
  ];
  console.log("runtime               transport                      peer     v1            v2");
  let failed = 0;
  for (const { runtime, transport, peer, run } of cells) {
    if (!runtime.toLowerCase().includes(only.toLowerCase())) continue;
    const outcomes: string[] = [];
    for (const version of VERSIONS) {
      try {
        outcomes.push(await run(version));
      } catch (error) {
        failed++;
        outcomes.push(`FAILED: ${error instanceof Error ? error.message.split("\n")[0] : error}`);
      }
    }
    console.log(
      `${runtime.padEnd(21)} ${transport.padEnd(30)} ${peer.padEnd(8)} ${outcomes.map((o) => o.padEnd(13)).join(" ")}`,
    );
  }
  if (failed > 0) throw new Error(`${failed} cells failed`);
}

/** Packs and installs the package and the runtimes, and bundles what runs in a worker and in a page. */
async function fill(folder: string): Promise<void> {
  await installPackage(folder, ...PACKAGES);
  const own = Array.from(
    Deno.readDirSync(new URL("runtimes/", import.meta.url)),
    ({ name }) => `tests/deep/runtimes/${name}`,
  );
  for (const path of [...FIXTURES, "tests/fixtures/tls/localhost.key", ...own]) {
    await Deno.copyFile(new URL(path, ROOT), `${folder}/${path.split("/").at(-1)}`);
  }
  await bundle(folder, "worker.js", "worker.bundle.js", "--external:cloudflare:sockets");
  await bundle(folder, "page.js", "page.bundle.js");
  await Deno.writeTextFile(`${folder}/alone.js`, `export * from "@sluice/smux/websocket";`);
  for (
    const [name, what] of [["page.js", "a page with a client"], [
      "alone.js",
      "@sluice/smux/websocket, all of it",
    ]] as const
  ) {
    await bundle(folder, name, "size.js", "--minify");
    const code = await Deno.readFile(`${folder}/size.js`);
    console.log(`${what}: ${code.length} bytes minified, ${gzipSync(code).length} with gzip`);
  }
}

async function bundle(folder: string, from: string, to: string, ...options: string[]): Promise<void> {
  const args = [from, "--bundle", "--format=esm", `--outfile=${to}`, "--log-level=error", ...options];
  await runProgram(`${folder}/node_modules/.bin/esbuild`, args, { cwd: folder });
}

/** Cells of a runtime that runs scripts: alone, as a client of Deno, and as a server. */
function scriptCells(folder: string, runtime: string, [program, ...first]: string[], kinds: string[]): Cell[] {
  const peer = (...args: string[]) => runProgram(program!, [...first, "peer.js", ...args], { cwd: folder });
  return kinds.flatMap((kind): Cell[] => {
    const transport = {
      net: "net.Socket",
      tls: "tls.TLSSocket",
      web: "web streams of a socket",
      ws: "WebSocket of npm:ws",
      websocket: "WebSocket of the runtime",
    }[kind]!;
    const ofVersion = (printed: Uint8Array, role: string, version: Version) => {
      const line = decode(printed).split("\n").find((line) => line.startsWith(`${role} of version ${version}: `));
      if (line === undefined) throw new Error(`no ${role} of version ${version} in: ${decode(printed)}`);
      return /\d+ streams/.exec(line)![0];
    };
    // One run has both versions.
    let alone: Promise<Uint8Array> | undefined;
    const cells: Cell[] = [{
      runtime,
      transport,
      peer: "itself",
      run: async (version) => ofVersion(await (alone ??= peer("both", kind)), "server", version),
    }];
    if (kind === "tls" || kind === "web") return cells;
    let asking: Promise<Uint8Array> | undefined;
    cells.push({
      runtime: `${runtime}, client`,
      transport,
      peer: "Deno",
      run: async (version) => ofVersion(await (asking ??= askDeno(kind, peer)), "client", version),
    });
    return cells;
  });
}

/** Runs a client against a server in Deno. */
async function askDeno(kind: string, peer: (...args: string[]) => Promise<Uint8Array>): Promise<Uint8Array> {
  if (kind === "net") {
    const listener = Deno.listen(LOOPBACK);
    await using _server = serve(listener, answerInHex);
    return await peer("client", kind, `${listener.addr.port}`);
  }
  await using server = Deno.serve({ ...LOOPBACK, onListen() {} }, (request) => upgradeWebSocket(request, answerInHex));
  return await peer("client", kind, `${server.addr.port}`);
}

/** Answers as peer.js expects it: the hash is text. */
async function answerInHex(stream: Stream): Promise<void> {
  const received = new Uint8Array(await new Response(stream.readable).arrayBuffer());
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", received));
  await stream.write(new TextEncoder().encode(hash.toHex()));
  await stream.write(received);
}

async function workerCells(folder: string, resources: AsyncDisposableStack): Promise<Cell[]> {
  const options = { cwd: folder, stdin: "piped", stdout: "piped", stderr: "piped" } as const;
  const host = resources.use(watch(new Deno.Command("node", { args: ["worker_host.js"], ...options }).spawn()));
  const [url] = await host.until(/^http\S+/);
  const listener = Deno.listen(LOOPBACK);
  resources.use(serve(listener, answer));
  return [{
    runtime: "workerd, client",
    transport: "socket of connect()",
    peer: "Deno",
    async run(version) {
      const response = await fetch(`${url}?port=${listener.addr.port}&version=${version}`);
      const text = await response.text();
      if (!response.ok) throw new Error(text);
      return text;
    },
  }, {
    runtime: "workerd, server",
    transport: "WebSocketPair",
    peer: "Deno",
    run: async (version) => await exchangeAll(await connectWebSocket(url!.replace(/^http/, "ws"), { version })),
  }];
}

async function pageCells(folder: string, resources: AsyncDisposableStack): Promise<Cell[]> {
  const code = await Deno.readTextFile(`${folder}/page.bundle.js`);
  const server = Deno.serve({ ...LOOPBACK, onListen() {} }, (request) => {
    if (request.headers.has("upgrade")) return upgradeWebSocket(request, answer);
    const isScript = request.url.endsWith(".js");
    const headers = { "content-type": isScript ? "text/javascript" : "text/html" };
    return new Response(isScript ? code : `<script type="module" src="page.js"></script>`, { headers });
  });
  resources.defer(() => server.shutdown());
  const cells: Cell[] = [];
  for (const name of BROWSER_NAMES) {
    const runtime = name === "chromium" ? "Chromium" : "Firefox";
    if (!hasBrowser(name)) {
      console.log(`${runtime} is not installed: skipped`);
      continue;
    }
    cells.push({
      runtime,
      transport: "WebSocket",
      peer: "Deno",
      async run(version) {
        await using browser = await launch(name);
        const page = await browser.newPage();
        await page.goto(`http://127.0.0.1:${server.addr.port}/`);
        await page.waitForFunction("globalThis.runClient !== undefined");
        return await page.evaluate(`runClient(${version})`) as string;
      },
    });
  }
  return cells;
}
