/**
 * The jobs of the examples in each runtime: the examples themselves in Deno, Node and Bun, the page in the browsers, and
 * `jobs_worker.js` in workerd.
 *
 * @module
 */

import { assertEquals, assertStringIncludes } from "@std/assert";
import { connections, join, serve, Session } from "../../../mod.ts";
import { connectWebSocket } from "../../../websocket.ts";
import { hasPostgres, startPostgres } from "../../postgres.ts";
import { run as runProgram, watch } from "../../programs.ts";
import { bytes, LOOPBACK, pattern, readAll, sha256, text, writeAll } from "../../support.ts";
import type { Browser } from "./browsers.ts";

const PATHS = Array.from({ length: 20 }, (_, n) => `/${n}`);
const FILES = [0, 1, 100_000, 5_000_000];

/** A job in a runtime. */
export interface Job {
  name: string;
  runtime: string;
  /** Rejects if the job fails. */
  run(): Promise<void>;
}

/** A runtime that runs the examples as they are. */
interface Runtime {
  name: string;
  command: string[];
  cwd: string | URL;
}

/** What the jobs share. */
interface Setup {
  /** The folder with the package, the examples and what they import. */
  folder: string;
  /** The port of PostgreSQL; `undefined` where it is not installed. */
  database: number | undefined;
  /** The address of the worker. */
  worker: string;
}

/** Lists the jobs; starts what they share, which `resources` end. */
export async function listJobs(
  folder: string,
  browsers: Browser[],
  worker: string,
  resources: AsyncDisposableStack,
): Promise<Job[]> {
  if (!hasPostgres) console.log("PostgreSQL is not installed: skipped");
  const database = hasPostgres ? resources.use(await startPostgres()).port : undefined;
  const setup = { folder, database, worker };
  const runtimes: Runtime[] = [
    { name: "Deno", command: [Deno.execPath(), "run", "-A"], cwd: new URL("../../../", import.meta.url) },
    { name: "Node", command: ["node", "--import", "tsx"], cwd: folder },
    { name: "Bun", command: [`${folder}/node_modules/.bin/bun`], cwd: folder },
  ];
  return [
    ...runtimes.flatMap((runtime) => exampleJobs(runtime, setup)),
    ...workerJobs(setup),
    ...browsers.map((browser) => ({ name: "push", runtime: browser.name, run: () => pushToPage(browser) })),
  ];
}

/** Starts a script: an example, or what it needs. */
function start({ command: [program, ...first], cwd }: Runtime, script: string, ...args: string[]) {
  return watch(
    new Deno.Command(program!, {
      args: [...first, script, ...args],
      cwd,
      env: { NO_COLOR: "1", PGUSER: "postgres", PGDATABASE: "postgres" },
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).spawn(),
  );
}

/** Starts a script that listens, and waits until it prints its port. */
async function listen(runtime: Runtime, script: string, ...args: string[]) {
  const watched = start(runtime, script, ...args);
  const [, port] = await watched.until(/^listening on .*:(\d+)$/m);
  return { ...watched, port: port! };
}

/** Runs an example to its end, and returns its lines, sorted. */
async function runExample(runtime: Runtime, script: string, ...args: string[]): Promise<string[]> {
  await using watched = start(runtime, script, ...args);
  const { code, stdout, stderr } = await watched.ended();
  assertEquals({ code, stderr }, { code: 0, stderr: "" });
  return stdout.trim().split("\n").sort();
}

function exampleJobs(runtime: Runtime, { folder, database }: Setup): Job[] {
  const jobs = {
    "requests, Express": () => sendRequests(runtime, "express", (path) => `Express: hello to ${path} from 127.0.0.1`),
    "requests, Hono": () => sendRequests(runtime, "hono", (path) => `Hono: hello to ${path}`),
    // Deno is the server of the pages.
    ...runtime.name === "Deno" ? {} : { "push": () => pushTo(runtime) },
    "file": () => transferFiles(runtime, folder),
    "proxy": () => forward(runtime),
    ...database === undefined ? {} : { "database": () => queryDatabase(runtime, database) },
  };
  return Object.entries(jobs).map(([name, run]) => ({ name, runtime: runtime.name, run }));
}

async function sendRequests(runtime: Runtime, app: string, answer: (path: string) => string): Promise<void> {
  await using server = await listen(runtime, "examples/http.ts", "server", "0", app);
  const lines = await runExample(runtime, "examples/http.ts", "client", server.port, ...PATHS);
  const answers = PATHS.map((path) => `200 ${answer(path)}`);
  assertEquals(lines, [...answers, ...answers, "40 requests over 24 streams of one connection"].sort());
  assertEquals((await server.end()).stderr, "");
}

async function receiveEvent(url: string): Promise<void> {
  const session = await connectWebSocket(url);
  const stream = await session.acceptStream();
  assertEquals(text(await readAll(stream)), "an event");
  stream.close();
  await session.close();
}

async function pushTo(runtime: Runtime): Promise<void> {
  await using server = await listen(runtime, "push_server.js");
  await receiveEvent(`ws://127.0.0.1:${server.port}/`);
  assertEquals((await server.end()).stderr, "");
}

async function transferFiles(runtime: Runtime, folder: string): Promise<void> {
  const [from, to] = [`${folder}/${runtime.name}-from`, `${folder}/${runtime.name}-to`];
  for (const path of [from, to]) await Deno.mkdir(path);
  for (const size of FILES) await Deno.writeFile(`${from}/${size}`, pattern(size, size));
  await using receiver = await listen(runtime, "examples/file_transfer.ts", "receive", "0", to);
  const lines = await runExample(
    runtime,
    "examples/file_transfer.ts",
    "send",
    receiver.port,
    ...FILES.map((size) => `${from}/${size}`),
  );
  for (const size of FILES) {
    assertEquals(await sha256(await Deno.readFile(`${to}/${size}`)), await sha256(pattern(size, size)));
    assertEquals(lines.includes(`${from}/${size}: confirmed`), true);
    assertEquals(lines.some((line) => line.includes(`${from}/${size} 100 %`)), size > 0);
  }

  // One byte of the announced length is missing.
  const session = Session.client(await Deno.connect({ ...LOOPBACK, port: Number(receiver.port) }));
  const stream = await session.openStream();
  await writeAll(stream, bytes(`1000 ${await sha256(pattern(1000))} cut`.padEnd(1024)));
  await writeAll(stream, pattern(999));
  await stream.closeWrite();
  assertEquals(text(await readAll(stream)), "");
  await session.close();
  assertStringIncludes((await receiver.end()).stderr, "cut is incomplete or corrupt");
  const received = Array.from(Deno.readDirSync(to), ({ name }) => name).filter((name) => !name.endsWith(".part"));
  assertEquals(received.sort(), FILES.map(String).sort());
}

async function forward(runtime: Runtime): Promise<void> {
  await using target = Deno.serve({ ...LOOPBACK, onListen() {} }, async (request) => {
    return new Response(await request.bytes());
  });
  await using server = await listen(runtime, "examples/tunnel.ts", "server", "0", `127.0.0.1:${target.addr.port}`);
  await using client = await listen(runtime, "examples/tunnel.ts", "client", "0", `127.0.0.1:${server.port}`);
  await Promise.all(FILES.map(async (size) => {
    const body = pattern(size, size);
    const options = { method: "POST", body, headers: { connection: "close" } };
    const response = await fetch(`http://127.0.0.1:${client.port}/`, options);
    assertEquals(await sha256(await response.bytes()), await sha256(body));
  }));
  // The client ends with its server.
  const [ended] = await Promise.all([client.ended(), server.end()]);
  assertEquals([ended.code, ended.stderr, server.printed.stderr], [0, "", ""]);
}

async function queryDatabase(runtime: Runtime, database: number): Promise<void> {
  await using server = await listen(runtime, "examples/tunnel.ts", "server", "0", `127.0.0.1:${database}`);
  const queries = PATHS.map((_, n) => `SELECT ${n} AS n, repeat('x', ${n * 10_000}) AS text`);
  const rows = queries.map((query, n) => `${query}: ${JSON.stringify([{ n, text: "x".repeat(n * 10_000) }])}`);
  assertEquals(await runExample(runtime, "examples/database.ts", "query", server.port, ...queries), rows.sort());
  assertEquals((await server.end()).stderr, "");
}

/** The jobs of a worker. It has no files. */
function workerJobs({ database, worker }: Setup): Job[] {
  const url = worker.replace(/^http/, "ws");
  const ask = async (path: string, question: string, answer: string) => {
    const session = await connectWebSocket(url + path);
    await Promise.all(PATHS.map(async (path) => {
      const stream = await session.openStream();
      await stream.write(bytes(question.replaceAll("PATH", path)));
      await stream.closeWrite();
      assertEquals(text(await readAll(stream)), answer.replace("PATH", path));
    }));
    await session.close();
  };
  const jobs = {
    "requests, Hono": () => ask("requests", "PATH\nhello to PATH", "Hono: hello to PATH"),
    "push": () => receiveEvent(`${url}push`),
    "proxy": async () => {
      const listener = Deno.listen(LOOPBACK);
      const echoing = (async () => {
        for await (const connection of connections(listener)) connection.readable.pipeTo(connection.writable);
      })();
      await ask(`proxy?port=${listener.addr.port}`, "hello to PATH", "hello to PATH");
      listener.close();
      await echoing;
    },
    ...database === undefined ? {} : {
      "database": async () => {
        const listener = Deno.listen(LOOPBACK);
        await using _server = serve(listener, async (stream) => {
          await join(stream, await Deno.connect({ ...LOOPBACK, port: database }));
        });
        const response = await fetch(`${worker}database?port=${listener.addr.port}`);
        assertEquals(await response.text(), JSON.stringify([{ sum: 5050 }]));
      },
    },
  };
  return Object.entries(jobs).map(([name, run]) => ({ name, runtime: "workerd", run }));
}

async function pushToPage(browser: Browser): Promise<void> {
  const cwd = new URL("../../../", import.meta.url);
  const runtime = { name: "Deno", command: [Deno.execPath(), "run", "--quiet", "-A"], cwd };
  await using server = start(runtime, "examples/browser/server.ts", "0");
  const [, url] = await server.until(/^(http.*)\n/);
  await using opened = await browser.open();
  const { page } = opened;
  await page.goto(`${url}events`);
  await page.waitForFunction(`document.querySelector("[role=status]").textContent === "Connected"`);
  const events = ["an event", "x".repeat(300_000), "the last"];
  for (const body of events) await (await fetch(`${url}push`, { method: "POST", body })).text();
  await page.waitForFunction(`document.querySelectorAll("li").length === ${events.length}`);
  const shown = await page.evaluate(`Array.from(document.querySelectorAll("li"), (item) => item.textContent)`);
  assertEquals(shown, events);
  assertEquals(server.printed.stderr, "");
}

/** Bundles the worker of the jobs, with a `require` for what `pg` imports of Node. */
export async function bundleWorker(folder: string): Promise<void> {
  await runProgram(`${folder}/node_modules/.bin/esbuild`, [
    new URL("jobs_worker.js", import.meta.url).pathname,
    "--bundle",
    "--format=esm",
    "--platform=node",
    "--target=es2022",
    "--external:cloudflare:sockets",
    "--outfile=jobs_worker.bundle.js",
    "--log-level=error",
    `--banner:js=import { createRequire } from "node:module"; const require = createRequire("/");`,
  ], { cwd: folder, env: { NODE_PATH: `${folder}/node_modules` } });
}
