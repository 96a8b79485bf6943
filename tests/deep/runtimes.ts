/**
 * The package as npm gets it, in other runtimes: each exchanges 100 hashed streams with Deno, and with itself where it can
 * listen, over each transport that it has, in both versions; then each runs the jobs of the examples.
 *
 * @module
 */

import { gzipSync } from "node:zlib";
import { serve, type Stream, type Version } from "../../mod.ts";
import { connectWebSocket, upgradeWebSocket } from "../../websocket.ts";
import { makeFolder, run as runProgram, watch } from "../programs.ts";
import { LOOPBACK } from "../support.ts";
import { type Browser, findBrowsers } from "./runtimes/browsers.ts";
// @ts-types="./runtimes/exchange.d.ts"
import { answer, exchangeAll } from "./runtimes/exchange.js";
import { bundleWorker, type Job, listJobs } from "./runtimes/jobs.ts";
import { anyText, parse } from "./shared/options.ts";

export const description =
  "100 hashed streams in Node, Bun, workerd, Chromium and Firefox, over every transport, and the examples: [--only NAME]";

const ROOT = new URL("../../", import.meta.url);
const VERSIONS: Version[] = [1, 2];
const PACKAGES = ["ws@8.23.0", "bun@1.4.5", "miniflare@4.20260730.0", "esbuild@0.28.2", "tsx@4.23.15"];
const PACKAGES_OF_EXAMPLES = ["express@5.3.0", "hono@4.13.19", "@hono/node-server@2.1.9", "pg@8.23.1"];
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
  const browsers = findBrowsers();
  const isWanted = (name: string) => name.toLowerCase().includes(only.toLowerCase());
  const cells = [
    ...await pageCells(folder, browsers, resources),
    ...await workerCells(folder, resources),
    ...scriptCells(folder, "Node", ["node"], ["net", "tls", "web", "ws"]),
    ...scriptCells(folder, "Bun", [`${folder}/node_modules/.bin/bun`], ["net", "tls", "web", "ws", "websocket"]),
  ].filter(({ runtime }) => isWanted(runtime));
  const worker = await startWorker(folder, resources, "jobs_worker.bundle.js", "nodejs_compat");
  const jobs = (await listJobs(folder, browsers, worker, resources)).filter(({ name, runtime }) =>
    isWanted(name) || isWanted(runtime)
  );
  const failed = await runCells(cells) + await runJobs(jobs);
  if (failed > 0) throw new Error(`${failed} of the above failed`);
}

/** Runs the exchanges, and prints the table; returns the number of those that failed. */
async function runCells(cells: Cell[]): Promise<number> {
  if (cells.length === 0) return 0;
  console.log("runtime               transport                      peer     v1            v2");
  let failed = 0;
  for (const { runtime, transport, peer, run } of cells) {
    const outcomes: string[] = [];
    for (const version of VERSIONS) {
      try {
        outcomes.push(await run(version));
      } catch (error) {
        failed++;
        outcomes.push(failure(error));
      }
    }
    console.log(
      `${runtime.padEnd(21)} ${transport.padEnd(30)} ${peer.padEnd(8)} ${outcomes.map((o) => o.padEnd(13)).join(" ")}`,
    );
  }
  return failed;
}

/** Runs the jobs of the examples, and prints a line for each; returns the number of those that failed. */
async function runJobs(jobs: Job[]): Promise<number> {
  console.log("\njob                   runtime    outcome");
  let failed = 0;
  for (const { name, runtime, run } of jobs) {
    const outcome = await run().then(() => "held", failure);
    if (outcome !== "held") failed++;
    console.log(`${name.padEnd(21)} ${runtime.padEnd(10)} ${outcome}`);
  }
  return failed;
}

function failure(error: unknown): string {
  return `FAILED: ${error instanceof Error ? error.message.replaceAll("\n", " ").slice(0, 300) : error}`;
}

/** Packs and installs the package and the runtimes, and bundles what runs in a worker and in a page. */
async function fill(folder: string): Promise<void> {
  await runProgram(Deno.execPath(), ["pack", "--quiet", "--allow-dirty", "--output", `${folder}/smux.tgz`], {
    cwd: ROOT,
  });
  const own = Array.from(
    Deno.readDirSync(new URL("runtimes/", import.meta.url)),
    ({ name }) => `tests/deep/runtimes/${name}`,
  ).filter((path) => path.endsWith(".js"));
  for (const path of [...FIXTURES, "tests/fixtures/tls/localhost.key", ...own]) {
    await Deno.copyFile(new URL(path, ROOT), `${folder}/${path.split("/").at(-1)}`);
  }
  for (const part of ["", "node/"]) {
    await Deno.mkdir(`${folder}/examples/${part}`);
    for (const { isFile, name } of Deno.readDirSync(new URL(`examples/${part}`, ROOT))) {
      if (isFile) await Deno.copyFile(new URL(`examples/${part}${name}`, ROOT), `${folder}/examples/${part}${name}`);
    }
  }
  await Deno.writeTextFile(`${folder}/package.json`, JSON.stringify({ private: true, type: "module" }));
  const quietly = ["--no-audit", "--no-fund", "--silent"];
  await runProgram("npm", ["install", ...quietly, "./smux.tgz", ...PACKAGES, ...PACKAGES_OF_EXAMPLES], { cwd: folder });
  await bundleWorker(folder);
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

/** Starts a bundled worker, which `resources` end; returns its address. */
async function startWorker(
  folder: string,
  resources: AsyncDisposableStack,
  ...args: [script: string, ...flags: string[]]
): Promise<string> {
  const options = { cwd: folder, stdin: "piped", stdout: "piped", stderr: "piped" } as const;
  const command = new Deno.Command("node", { args: ["worker_host.js", ...args], ...options });
  const host = resources.use(watch(command.spawn()));
  const [url] = await host.until(/^http\S+/);
  return url!;
}

async function workerCells(folder: string, resources: AsyncDisposableStack): Promise<Cell[]> {
  const url = await startWorker(folder, resources, "worker.bundle.js");
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
    run: async (version) => await exchangeAll(await connectWebSocket(url.replace(/^http/, "ws"), { version })),
  }];
}

async function pageCells(folder: string, browsers: Browser[], resources: AsyncDisposableStack): Promise<Cell[]> {
  const code = await Deno.readTextFile(`${folder}/page.bundle.js`);
  const server = Deno.serve({ ...LOOPBACK, onListen() {} }, (request) => {
    if (request.headers.has("upgrade")) return upgradeWebSocket(request, answer);
    const isScript = request.url.endsWith(".js");
    const headers = { "content-type": isScript ? "text/javascript" : "text/html" };
    return new Response(isScript ? code : `<script type="module" src="page.js"></script>`, { headers });
  });
  resources.defer(() => server.shutdown());
  return browsers.map(({ name, open }) => ({
    runtime: name,
    transport: "WebSocket",
    peer: "Deno",
    async run(version) {
      await using opened = await open();
      await opened.page.goto(`http://127.0.0.1:${server.addr.port}/`);
      await opened.page.waitForFunction("globalThis.runClient !== undefined");
      return await opened.page.evaluate(`runClient(${version})`) as string;
    },
  }));
}
