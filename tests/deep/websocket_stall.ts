/**
 * Sessions over WebSockets with an end that stalls: what both ends hold, and how the session goes on.
 *
 * - client: the client does not read a stream to which the server writes 1 GB.
 * - server: the server does not read a stream to which the client writes 1 GB.
 * - stopped: the process of the client is stopped, and then continued.
 * - suspended: the page, which only reads, is frozen (Chromium then closes its WebSocket) or, in Firefox, its process is
 *   stopped, and then continued.
 * - patient: the process of the page is stopped, with a longer timeout; both ends write records, and none may be lost.
 *
 * In version 2 another stream of the same session must go on beside a stream that is not read.
 *
 * @module
 */

import { delay } from "@std/async";
import type { Browser, Page } from "npm:puppeteer-core@25.16.0";
import type { ClientSessionOptions, Version } from "../../mod.ts";
import { BROWSER_NAMES, type BrowserName, hasBrowser, launch, processes, resident } from "../browsers.ts";
import { makeFolder, watch, type Watched } from "../programs.ts";
import { integer, names, parse } from "./shared/options.ts";
import { installPackage } from "./shared/package.ts";
import type { Tally } from "./websocket_stall/exercise.d.ts";

export const description =
  "Ends that stall over WebSockets, with their memory: [--only chromium] [--jobs client] [--seconds 60] [--suspend 120]";

const HERE = new URL("websocket_stall/", import.meta.url).pathname;
const RUNTIMES = ["deno", "node", "bun", ...BROWSER_NAMES] as const;
const JOBS = ["client", "server", "stopped", "suspended", "patient"] as const;
const VERSIONS: Version[] = [1, 2];
// 64 MiB, and three times the default of `maxReceiveBuffer`.
const MOST_GROWTH_MIB = 64 + 3 * 16;
const MOST_QUEUED = 4 * 1024 * 1024;
// Milliseconds without a byte on the stream beside one that is not read.
const MOST_GAP = 1000;
// Time after the stall in which a session goes on, or its end is noticed.
const AFTERWARDS_MS = 15_000;
const PATIENT_MS = 300_000;
const SAMPLE_MS = 100;
// How long the streams that go on run before anything stalls: their own memory is not that of the stall. In a page of
// Chromium it grows by 100 MiB in the first 40 s.
const BEFORE_MS = 5000;
const BEFORE_IN_PAGE_MS = 45_000;
const COLUMNS = [9, 2, 9, 11, 40, 17, 24];

type Runtime = typeof RUNTIMES[number];
type Job = typeof JOBS[number];

/** The client of a cell. */
interface Client extends AsyncDisposable {
  /** The processes that hold the session, and all of the runtime. */
  processes(): { all: number[]; tabs: number[] };
  /** Starts the streams of the job that go on. */
  start(job: Job, options: ClientSessionOptions): Promise<void>;
  /** Opens the stream of the job that is not read. */
  stall(job: Job): Promise<void>;
  tally(): Promise<Tally>;
  /** Suspends a page as the browser does it, if that can be asked for. */
  setFrozen?(isFrozen: boolean): Promise<void>;
}

/** Runs all; rejects if a cell failed. */
export async function run(args: string[]): Promise<void> {
  const options = { only: names(RUNTIMES), jobs: names(JOBS), seconds: integer(60, 1), suspend: integer(120, 1) };
  const { only, jobs, seconds, suspend } = parse(args, options);
  await using folder = await makeFolder("stall");
  if (only.includes("node") || only.includes("bun")) await prepare(folder.path);
  const head = [
    "client",
    "v",
    "stalled",
    "written, MB",
    "resident before the stall + growth, MiB",
    "most queued, KiB",
    "other stream",
  ];
  print([...head, "end of the session, at the client; at the server"]);
  let failed = 0;
  for (const job of jobs) {
    for (const runtime of only) {
      const name = BROWSER_NAMES.find((name) => name === runtime);
      const isSuspension = job === "suspended" || job === "patient";
      if (isSuspension && name === undefined) continue;
      if (name !== undefined && !hasBrowser(name)) {
        console.log(`${name} is not installed: skipped`);
        continue;
      }
      for (const version of VERSIONS) {
        const cell = new Cell(folder.path, runtime, version, job, (isSuspension ? suspend : seconds) * 1000);
        const problems = await cell.run().catch((error) => [`${error}`]);
        for (const problem of problems) console.log(`  FAILED: ${problem}`);
        if (problems.length > 0) failed++;
      }
    }
  }
  if (failed > 0) throw new Error(`${failed} cells failed`);
}

/** Installs the package, npm:ws and Bun for clients that do not run from the repository. */
async function prepare(folder: string): Promise<void> {
  await installPackage(folder, "ws@8.23.0", "bun@1.4.5");
  for (const name of ["script.js", "client.js", "exercise.js"]) await Deno.copyFile(HERE + name, `${folder}/${name}`);
}

function print(texts: string[]): void {
  console.log(texts.map((text, column) => text.padEnd(COLUMNS[column] ?? 0)).join(" ").trimEnd());
}

/** The most resident memory of some processes, in MiB. */
class Memory {
  readonly #pids: number[];
  #before = 0;
  #most = 0;

  constructor(pids: number[]) {
    this.#pids = pids;
  }

  sample(): void {
    this.#most = Math.max(this.#most, resident(...this.#pids));
  }

  /** From now on something stalls. */
  stall(): void {
    this.#before = this.#most;
  }

  /** How much more it became after that. */
  get growth(): number {
    return this.#most - this.#before;
  }

  toString(): string {
    return `${this.#before.toFixed(0)} + ${this.growth.toFixed(0)}`;
  }
}

/** One line of the table. */
class Cell {
  readonly #folder: string;
  readonly #runtime: Runtime;
  readonly #version: Version;
  readonly #job: Job;
  readonly #duration: number;

  constructor(folder: string, runtime: Runtime, version: Version, job: Job, duration: number) {
    this.#folder = folder;
    this.#runtime = runtime;
    this.#version = version;
    this.#job = job;
    this.#duration = duration;
  }

  /** Prints the line, and returns what is wrong. */
  async run(): Promise<string[]> {
    const limits = this.#job === "patient" ? { timeout: PATIENT_MS } : {};
    await using server = start(Deno.execPath(), "run", "-A", "--no-check", `${HERE}server.ts`, JSON.stringify(limits));
    const [port] = await server.until(/^\d+/);
    await using client = await this.#connect(port!);
    const { all, tabs } = client.processes();
    const memories = [new Memory(tabs), new Memory(all), new Memory([server.child.pid])];
    const sampling = setInterval(() => memories.forEach((memory) => memory.sample()), SAMPLE_MS);
    const far = async (): Promise<Tally> => await (await fetch(`http://127.0.0.1:${port}/tally`)).json();
    try {
      await client.start(this.#job, { version: this.#version, ...limits });
      await delay(this.#before);
      memories.forEach((memory) => memory.stall());
      if (!this.#isUnread) return await this.#stopProcess(client, far, memories);
      await client.stall(this.#job);
      const until = performance.now() + this.#duration;
      const hasEnded = async () => (await client.tally()).ended !== "" && (await far()).ended !== "";
      while (performance.now() < until && !await hasEnded()) await delay(1000);
      return this.#judge(await client.tally(), await far(), memories);
    } finally {
      clearInterval(sampling);
    }
  }

  async #stopProcess(client: Client, far: () => Promise<Tally>, memories: Memory[]): Promise<string[]> {
    const before = [await client.tally(), await far()] as const;
    if (this.#job === "stopped") {
      await client.stall(this.#job);
      while ((await far()).written === 0) await delay(10);
    }
    const resume = await this.#stop(client);
    await delay(this.#duration).finally(resume);
    await delay(AFTERWARDS_MS);
    const after = [await client.tally(), await far()] as const;
    const problems = this.#judge(...after, memories);
    const hasEnded = after[0].ended !== "";
    // In the other direction a page that is suspended sends no records.
    const receiving = this.#job === "suspended" ? [0] : [0, 1];
    const goesOn = receiving.every((end) => after[end]!.recordsReceived > before[end]!.recordsReceived);
    if (!hasEnded && !goesOn) problems.push("the session is open, and does not go on");
    if (hasEnded && this.#job === "patient") problems.push("the session ended before its timeout");
    return problems;
  }

  get #before(): number {
    return BROWSER_NAMES.some((name) => name === this.#runtime) ? BEFORE_IN_PAGE_MS : BEFORE_MS;
  }

  get #isUnread(): boolean {
    return this.#job === "client" || this.#job === "server";
  }

  async #connect(port: string): Promise<Client> {
    const url = `//127.0.0.1:${port}/`;
    const runtime = this.#runtime;
    if (runtime === "chromium" || runtime === "firefox") return await PageClient.open(runtime, `http:${url}`);
    const command = {
      deno: [Deno.execPath(), "run", "-A", "--no-check", `${HERE}script.js`],
      node: ["node", `${this.#folder}/script.js`],
      bun: [`${this.#folder}/node_modules/.bin/bun`, `${this.#folder}/script.js`],
    }[runtime];
    return new ScriptClient(command, `ws:${url}`);
  }

  /** Stops the client. Returns what continues it. */
  async #stop(client: Client): Promise<() => unknown> {
    if (this.#job === "suspended" && client.setFrozen !== undefined) {
      await client.setFrozen(true);
      return () => client.setFrozen!(false);
    }
    const { tabs } = client.processes();
    const signal = (name: Deno.Signal) => tabs.forEach((pid) => Deno.kill(pid, name));
    signal("SIGSTOP");
    return () => signal("SIGCONT");
  }

  /** Prints the line. Returns what is wrong. */
  #judge(near: Tally, far: Tally, memories: Memory[]): string[] {
    const reader = this.#job === "server" ? far : near;
    const written = Math.max(near.written, far.written);
    const [tab, all, server] = memories.map(String);
    const other = !this.#isUnread
      ? `${near.recordsReceived}, ${far.recordsReceived} records`
      : this.#version === 1
      ? ""
      : `${(reader.received / 1000 / (this.#duration + this.#before)).toFixed(0)} MB/s, gap ${
        reader.gap.toFixed(0)
      } ms`;
    print([
      this.#runtime,
      `${this.#version}`,
      this.#job,
      written === 0 ? "" : (written / 1e6).toFixed(1),
      `${tab}${tab === all ? "" : ` (${all})`}; ${server}`,
      `${(near.queued / 1024).toFixed(0)}; ${(far.queued / 1024).toFixed(0)}`,
      other,
      `${near.ended || "open"}; ${far.ended || "open"}`,
    ]);

    const problems: string[] = [];
    const check = (isGood: boolean, problem: string) => isGood || problems.push(problem);
    // In version 1 a page that is stopped bounds nothing: Firefox goes on to receive for it.
    const bounded = this.#job === "stopped" && this.#version === 1 ? memories.slice(-1) : memories;
    for (const { growth } of bounded) {
      check(growth <= MOST_GROWTH_MIB, `resident memory grew by ${growth.toFixed(0)} MiB`);
    }
    for (const { queued, wrong, ended } of [near, far]) {
      check(queued <= MOST_QUEUED, `${queued} bytes were queued in a socket`);
      check(wrong === "", wrong);
      check(ended !== "closed without an error", "an end reports no error");
    }
    check(!this.#isUnread || written > 0, "nothing was written to the stream that is not read");
    check((near.ended === "") === (far.ended === ""), "only one end reports that the session has ended");
    if (this.#isUnread && this.#version === 2) {
      check(near.ended === "", "the session has ended");
      check(reader.gap <= MOST_GAP, `the other stream paused for ${reader.gap.toFixed(0)} ms`);
    }
    return problems;
  }
}

function start(command: string, ...args: string[]): Watched {
  const options = { args, env: { NO_COLOR: "1" }, stdin: "piped", stdout: "piped", stderr: "piped" } as const;
  return watch(new Deno.Command(command, options).spawn());
}

/** A client in a process that runs a script. */
class ScriptClient implements Client {
  readonly #process: Watched;

  constructor([command, ...args]: string[], url: string) {
    this.#process = start(command!, ...args, url);
  }

  processes() {
    const { pid } = this.#process.child;
    return { all: [pid], tabs: [pid] };
  }

  async start(job: Job, options: ClientSessionOptions): Promise<void> {
    await this.#process.until(/\n/);
    await this.#input(JSON.stringify([job, options]));
  }

  async stall(): Promise<void> {
    await this.#input("stall");
  }

  async #input(text: string): Promise<void> {
    const writer = this.#process.child.stdin.getWriter();
    await writer.write(new TextEncoder().encode(text));
    writer.releaseLock();
  }

  tally(): Promise<Tally> {
    const { stdout } = this.#process.printed;
    return Promise.resolve(
      JSON.parse(stdout.slice(stdout.lastIndexOf("\n", stdout.length - 2), stdout.lastIndexOf("\n"))),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#process.end();
  }
}

/** A client in a page. */
class PageClient implements Client {
  readonly #name: BrowserName;
  readonly #browser: Browser;
  readonly #page: Page;

  private constructor(name: BrowserName, browser: Browser, page: Page) {
    this.#name = name;
    this.#browser = browser;
    this.#page = page;
    if (name === "chromium") this.setFrozen = (isFrozen) => this.#freeze(isFrozen);
  }

  /** Opens the page at this address. */
  static async open(name: BrowserName, url: string): Promise<PageClient> {
    const browser = await launch(name);
    const [page] = await browser.pages() as [Page];
    await page.goto(url);
    await page.waitForFunction("globalThis.tally !== undefined");
    return new PageClient(name, browser, page);
  }

  setFrozen?: (isFrozen: boolean) => Promise<void>;

  processes() {
    return processes(this.#name, this.#browser);
  }

  async start(job: Job, options: ClientSessionOptions): Promise<void> {
    await this.#page.evaluate(`start(${JSON.stringify(job)}, ${JSON.stringify(options)})`);
  }

  async stall(job: Job): Promise<void> {
    await this.#page.evaluate(`stall(${JSON.stringify(job)})`);
  }

  async tally(): Promise<Tally> {
    return JSON.parse(await this.#page.evaluate("JSON.stringify(tally)") as string);
  }

  async #freeze(isFrozen: boolean): Promise<void> {
    const client = await this.#page.createCDPSession();
    await client.send("Page.setWebLifecycleState", { state: isFrozen ? "frozen" : "active" });
    await client.detach();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#browser.close();
  }
}
