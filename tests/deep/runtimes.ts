/**
 * Runs the package packed for npm in other runtimes. Each runtime exchanges hashed streams with Deno, with itself if it
 * can listen, and with Go if it has TCP, over each of its transports and in both versions; then it runs the jobs of the
 * examples.
 *
 * @module
 */

import { gzipSync } from "node:zlib";
import { serve, type Stream, type Version } from "../../mod.ts";
import { connectWebSocket, upgradeWebSocket } from "../../websocket.ts";
import { buildGo, hasGoPackage } from "../go_build.ts";
import { makeFolder, run as runProgram, watch } from "../programs.ts";
import { LOOPBACK } from "../support.ts";
import { type End, runCases } from "../web_socket_cases.ts";
import { type Browser, findBrowsers } from "./runtimes/browsers.ts";
// @ts-types="./runtimes/exchange.d.ts"
import { answer, exchangeAll } from "./runtimes/exchange.js";
import { bundleWorker, type Job, listJobs } from "./runtimes/jobs.ts";
import { anyText, integer, parse } from "./shared/options.ts";
import { installPackage } from "./shared/package.ts";

export const description =
  "Hashed streams, bad input and the examples in Node, Bun, workerd, Chromium and Firefox: [--only NAME] [--streams 100]";

const ROOT = new URL("../../", import.meta.url);
const VERSIONS: Version[] = [1, 2];
// Versions of Node besides the installed one, which have a WebSocket of their own.
const NODES = { "Node 22": "22.23.3", "Node 24": "24.21.0" };
const PACKAGES = ["ws@8.23.0", "bun@1.4.5", "miniflare@4.20260730.0", "esbuild@0.28.2", "tsx@4.23.15"];
const PACKAGES_OF_EXAMPLES = ["express@5.3.0", "hono@4.13.19", "@hono/node-server@2.1.9", "pg@8.23.1"];
const FIXTURES = [
  "tests/fixtures/node/peer.js",
  "tests/fixtures/node/web_socket.js",
  "tests/fixtures/node/web_socket_client.js",
  "tests/fixtures/tls/ca.pem",
  "tests/fixtures/tls/localhost.pem",
];
const decode = (bytes: Uint8Array) => new TextDecoder().decode(bytes);

/** One row of the table: a cell for each version. */
interface Cell {
  runtime: string;
  transport: string;
  peer: string;
  run(version: Version): Promise<string>;
}

/** Prints the table; rejects if a cell failed. */
export async function run(args: string[]): Promise<void> {
  const { only = "", streams } = parse(args, { only: anyText, streams: integer(100, 1) });
  await using resources = new AsyncDisposableStack();
  const { path: folder } = resources.use(await makeFolder("runtimes"));
  await fill(folder);
  const go = await buildGoPeer(folder);
  const bun = `${folder}/node_modules/.bin/bun`;
  const browsers = findBrowsers();
  const isWanted = (name: string) => name.toLowerCase().includes(only.toLowerCase());
  const cells = [
    ...await pageCells(folder, streams, browsers, resources),
    ...await workerCells(folder, streams, go, resources),
    ...scriptCells(folder, streams, "Node", "node", ["net", "tls", "web", "ws"]),
    ...goCells(folder, streams, "Node", "node", go),
    ...Object.keys(NODES).flatMap((name) =>
      scriptCells(folder, streams, name, nodePath(folder, name), ["net", "tls", "web", "ws", "websocket"])
    ),
    ...scriptCells(folder, streams, "Bun", bun, ["net", "tls", "web", "ws", "websocket"]),
    ...goCells(folder, streams, "Bun", bun, go),
  ].filter(({ runtime }) => isWanted(runtime));
  const worker = await startWorker(folder, resources, "jobs_worker.bundle.js", "nodejs_compat");
  const jobs = (await listJobs(folder, browsers, worker, resources)).filter(({ name, runtime }) =>
    isWanted(name) || isWanted(runtime)
  );
  const ends = badInputEnds(folder, bun, browsers).filter(({ runtime }) => isWanted(runtime));
  const failed = await runCells(cells) + await runBadInput(ends) + await runJobs(jobs);
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

/** An end that receives bad input, and the command that starts it. */
interface BadInputEnd extends End {
  command: string[];
}

function badInputEnds(folder: string, bun: string, browsers: Browser[]): BadInputEnd[] {
  const script = `${folder}/web_socket.js`;
  const inBrowser = new URL("runtimes/in_browser.ts", import.meta.url).pathname;
  return [
    ...(["client", "server"] as const).flatMap((role): BadInputEnd[] => [
      { runtime: "Node", role, command: ["node", script] },
      { runtime: "Bun", role, command: [bun, script] },
    ]),
    { runtime: "Node 24", role: "client", command: [nodePath(folder, "Node 24"), script, "--own"] },
    ...browsers.map(({ id, name }): BadInputEnd => ({
      runtime: name,
      role: "client",
      command: [Deno.execPath(), "run", "-A", inBrowser, id],
    })),
  ];
}

/** Runs the cases of bad input over WebSockets, and prints a line for each end; returns the number of failed cases. */
async function runBadInput(ends: BadInputEnd[]): Promise<number> {
  console.log("\nbad input             end        cases");
  let total = 0;
  for (const end of ends) {
    let cases = 0;
    const failures: string[] = [];
    await runCases(end, async (title, run) => {
      cases++;
      await run().catch((error) => failures.push(`${title}: ${failure(error)}`));
    }, end.command);
    total += failures.length;
    console.log(`${end.runtime.padEnd(21)} ${end.role.padEnd(10)} ${cases - failures.length} of ${cases} held`);
    for (const text of failures) console.log(`  ${text}`);
  }
  return total;
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

const nodeFolder = (name: string) => name.toLowerCase().replace(" ", "");
const nodePath = (folder: string, name: string) => `${folder}/node_modules/${nodeFolder(name)}/bin/node`;

/** Packs and installs the package, installs the runtimes, and bundles the scripts of the worker and the page. */
async function fill(folder: string): Promise<void> {
  const { os, arch } = Deno.build;
  const nodes = Object.entries(NODES).map(([name, version]) =>
    `${nodeFolder(name)}@npm:node-${os}-${arch === "aarch64" ? "arm64" : "x64"}@${version}`
  );
  await installPackage(folder, ...PACKAGES, ...PACKAGES_OF_EXAMPLES, ...nodes);
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

/** Returns the cells of a runtime that runs `peer.js`: against itself, and as a client of Deno. */
function scriptCells(folder: string, streams: number, runtime: string, program: string, kinds: string[]): Cell[] {
  const options = { cwd: folder, env: { STREAMS: `${streams}` } };
  const peer = (...args: string[]) => runProgram(program, ["peer.js", ...args], options);
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
    // One process runs both versions.
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

/** Answers a stream, after its end, with the hexadecimal hash of its data and with the data, as `peer.js` expects. */
async function answerInHex(stream: Stream): Promise<void> {
  const received = new Uint8Array(await new Response(stream.readable).arrayBuffer());
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", received));
  await stream.write(new TextEncoder().encode(hash.toHex()));
  await stream.write(received);
}

/** Builds the peer in Go; returns `undefined` and prints a note if Go or its smux is not installed. */
async function buildGoPeer(folder: string): Promise<string | undefined> {
  const go = hasGoPackage("github.com/xtaci/smux")
    ? await buildGo(folder, [new URL("../interop/peer.go", import.meta.url).pathname])
    : undefined;
  if (go === undefined) console.log("Go's smux is not installed: its cells are skipped");
  return go;
}

const GO_STREAMS = { workload: "echo", parallel: 64, size: 100_000 };

/** Runs a peer in Go. `ended` resolves with its number of streams, and rejects if it failed. */
function startGo(program: string, flags: Record<string, string | number>) {
  const args = Object.entries({ ...GO_STREAMS, ...flags }).map(([name, value]) => `-${name}=${value}`);
  const child = watch(new Deno.Command(program, { args, stdin: "null", stdout: "piped", stderr: "piped" }).spawn());
  const ended = async () => {
    const { code, stdout, stderr } = await child.ended();
    if (code !== 0) throw new Error(`Go: ${stdout}${stderr}`);
    return `${JSON.parse(stdout.trim().split("\n").at(-1)!).streams} streams`;
  };
  return { child, ended };
}

/** Starts a server in Go, runs a client with its port, and returns the number of streams if both count the same. */
async function askGoServer(
  program: string,
  version: Version,
  client: (port: string) => Promise<string>,
): Promise<string> {
  const { child, ended } = startGo(program, { role: "server", version });
  await using _child = child;
  const [port] = await child.until(/^\d+(?=\n)/);
  return checkEqual(await client(port), await ended());
}

function checkEqual(own: string, ofGo: string): string {
  if (own !== ofGo) throw new Error(`${own}, but Go counts ${ofGo}`);
  return own;
}

/** Returns the cells of a runtime that runs `go_peer.js`: a client and a server of Go. */
function goCells(folder: string, streams: number, runtime: string, program: string, go: string | undefined): Cell[] {
  if (go === undefined) return [];
  const cell = { transport: "net.Socket", peer: "Go" };
  const run = async (version: Version, port: string) =>
    decode(await runProgram(program, ["go_peer.js", "client", `${version}`, port, `${streams}`], { cwd: folder }))
      .trim();
  return [{
    ...cell,
    runtime: `${runtime}, client`,
    run: (version) => askGoServer(go, version, (port) => run(version, port)),
  }, {
    ...cell,
    runtime: `${runtime}, server`,
    async run(version) {
      const args = ["go_peer.js", "server", `${version}`];
      const options = { args, cwd: folder, stdin: "null", stdout: "piped", stderr: "piped" } as const;
      await using server = watch(new Deno.Command(program, options).spawn());
      const [port] = await server.until(/^\d+(?=\n)/);
      const { child, ended } = startGo(go, { role: "client", version, port: port!, streams });
      await using _child = child;
      const ofGo = await ended();
      const { code, stdout, stderr } = await server.ended();
      if (code !== 0) throw new Error(stderr);
      return checkEqual(stdout.trim().split("\n").at(-1)!, ofGo);
    },
  }];
}

/** Starts a bundled worker, which `resources` end; returns its address. */
async function startWorker(
  folder: string,
  resources: AsyncDisposableStack,
  ...args: [script: string, ...flags: string[]]
): Promise<string> {
  const options = { cwd: folder, stdin: "piped", stdout: "piped", stderr: "piped" } as const;
  const command = new Deno.Command("node", { args: ["worker_host.js", ...args], ...options });
  const host = watch(command.spawn());
  // A host that is killed would leave workerd behind.
  resources.defer(async () => {
    await host.child.stdin.close();
    await host.ended();
  });
  const [url] = await host.until(/^http\S+/);
  return url!;
}

async function workerCells(
  folder: string,
  streams: number,
  go: string | undefined,
  resources: AsyncDisposableStack,
): Promise<Cell[]> {
  const url = await startWorker(folder, resources, "worker.bundle.js");
  const listener = Deno.listen(LOOPBACK);
  resources.use(serve(listener, answer));
  const ask = async (peer: string, version: Version, port: number | string) => {
    const response = await fetch(`${url}?port=${port}&version=${version}&streams=${streams}&peer=${peer}`);
    const text = await response.text();
    if (!response.ok) throw new Error(text);
    return text;
  };
  const client = { runtime: "workerd, client", transport: "socket of connect()" };
  const cells: Cell[] = [{
    ...client,
    peer: "Deno",
    run: (version) => ask("Deno", version, listener.addr.port),
  }, {
    runtime: "workerd, server",
    transport: "WebSocketPair",
    peer: "Deno",
    run: async (version) => await exchangeAll(await connectWebSocket(url.replace(/^http/, "ws"), { version }), streams),
  }];
  if (go !== undefined) {
    const run: Cell["run"] = (version) => askGoServer(go, version, (port) => ask("Go", version, port));
    cells.push({ ...client, peer: "Go", run });
  }
  return cells;
}

async function pageCells(
  folder: string,
  streams: number,
  browsers: Browser[],
  resources: AsyncDisposableStack,
): Promise<Cell[]> {
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
      return await opened.page.evaluate(`runClient(${version}, ${streams})`) as string;
    },
  }));
}
