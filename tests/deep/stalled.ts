/**
 * Measures the effect of stalled visitors on the other connections of a tunnel.
 *
 * A visitor downloads without reading, or uploads to a target that does not read. Every cell of the matrix runs in
 * fresh processes: the target, both ends of the tunnel, the visitors, and the one that measures. A cell takes 11 to
 * 60 s.
 *
 * @module
 */

import { delay } from "@std/async";
import { setTimeout } from "node:timers/promises";
import { DEFAULTS } from "../../options.ts";
import { machine, median, table } from "../stats.ts";
import { endWithInput, report } from "../measured.ts";
import { findProgram, watch, type Watched } from "../programs.ts";
import { bytes, KiB, LOOPBACK, MiB, readExactly, readSome, writeAll } from "../support.ts";
import { anyText, names, type Option, parse } from "./shared/options.ts";
import { program, progress } from "./shared/program.ts";

const COUNTS = [40, 120, 5000];
const VERSIONS = ["1", "2"] as const;
const WAYS = ["forward", "reverse", "socks"] as const;
const DIRECTIONS = ["download", "upload"] as const;
const PACES = ["never", "little"] as const;

/** One line for the list of long tests. */
export const description = "The effect of stalled visitors on a tunnel's other connections: [--count 40,120,5000] " +
  "[--version 1,2] [--way forward,reverse,socks] [--direction download,upload] [--pace never,little] [--json FILE]";

const TUNNEL = `${import.meta.dirname}/../../tunnel.ts`;

// Times are milliseconds. LONGEST starts when all visitors have connected. It exceeds the time without progress after
// which a session is lost.
const LONGEST = DEFAULTS.timeout + 15_000;
// LONGEST_IN_ALL starts when the first visitor connects: 5000 visitors need 10 s.
const LONGEST_IN_ALL = 53_000;
// The state is settled when it has not changed for this time and every fresh connection was answered.
const SETTLED = 10_000;
// Timeout of a cell.
const PATIENCE = 58_000;
const SAMPLE = 500;
const BYSTANDER_PAUSE = 250;
const FRESH_PAUSE = 100;
// Timeout of a fresh connection, which then counts as unanswered.
const FRESH_PATIENCE = 5000;
// Maximum time without an answer.
const BOUND = 15_000;

// A reader at the pace "little" reads this many bytes, then pauses.
const [SIP, SIP_PAUSE] = [KiB, 1000];
const CHUNK = 16 * KiB;
// Visitors that connect concurrently.
const PARALLEL = 50;

const DESCRIPTORS = 65_536;
// Small socket buffers stall a visitor quickly, and keep the kernel memory of 5000 visitors low. They are set in a
// network namespace, which has settings of its own.
const BUFFERS = "4096 16384 65536";
const NAMESPACE = `ip link set lo up mtu 1500 && echo ${BUFFERS} > /proc/sys/net/ipv4/tcp_rmem && ` +
  `echo ${BUFFERS} > /proc/sys/net/ipv4/tcp_wmem`;
// Without the namespace, the maximum of bytes that all visitors of a cell send or receive.
const MOST_BYTES = 8192 * MiB;

/** The configuration of one set of processes. */
interface Cell {
  count: number;
  version: typeof VERSIONS[number];
  way: typeof WAYS[number];
  direction: typeof DIRECTIONS[number];
  pace: typeof PACES[number];
  /** Maximum bytes for each visitor; `null`: no limit. */
  limit: number | null;
}

/** A cell with the ports that visitors need. */
interface Visit extends Cell {
  /** The port on which the tunnel listens. */
  port: number;
  /** The port on which the tunnel's server listens for its client. */
  server: number;
  target: number;
}

/** A periodic report of the visitors' process. */
interface Visited {
  /** Visitors that have connected. */
  arrived: number;
  /** Visitors whose connection the tunnel has not closed. */
  connected: number;
  /** The client's port of each connection between the tunnel's ends that neither of them has closed. */
  links: number[];
  /** Bytes that the visitors have sent or received. */
  moved: number;
}

/** Peak growth of the memory of a process, in MiB. */
interface Growth {
  resident: number;
  anonymous: number;
}

/** One end of the tunnel. */
interface End {
  growth: Growth;
  /** Maximum of open descriptors. */
  descriptors: number;
  /** How the process ended during the measurement; empty if it did not. */
  ended: string;
  /** Logged lines with numbers replaced by N, and the number of each. */
  log: Record<string, number>;
}

/** The measurements of a cell; times are milliseconds. */
interface Figures {
  tried: number;
  answered: number;
  median: number | null;
  worst: number | null;
  /** The longest time without the answer of a fresh connection. */
  unanswered: number;
  bystander: "lived" | "cut";
  bystanderGap: number;
  /** Visitors that connected, and visitors still connected at the end. */
  arrived: number;
  connected: number;
  /** Connections between the ends of the tunnel, over the whole run. */
  sessions: number;
  /** Whether the first of these connections was closed by either end. */
  isLost: boolean;
  took: number;
  isSettled: boolean;
  server: End;
  client: End;
  /** The limit of open descriptors of a process. */
  limit: number;
}

type Result = Cell & { figures?: Figures; error?: string };

/** Runs the cells; rejects if a session is lost, a bystander is cut, or other connections have no answer for 15 s. */
export async function run(args: string[]): Promise<void> {
  if (args[0] === "--cell") return await measure(JSON.parse(args[1]!));
  if (args[0] === "--target") return await serveTarget(JSON.parse(args[1]!));
  if (args[0] === "--visitors") return await visit(JSON.parse(args[1]!));
  const options = {
    count: counts,
    version: names(VERSIONS),
    way: names(WAYS),
    direction: names(DIRECTIONS),
    pace: names(PACES),
    json: anyText,
  };
  const chosen = parse(args, options);
  if (Deno.build.os !== "linux") throw new Error(`stalled needs /proc, which ${Deno.build.os} does not have`);

  const isIsolated = await canIsolate();
  console.log(machine());
  console.log(
    isIsolated
      ? `Each cell has a network namespace, with TCP buffers of ${BUFFERS} bytes (minimum, initial, maximum).`
      : `No network namespace (needs root, unshare and ip): buffers are the system's, and visitors of a cell move ` +
        `${MOST_BYTES / MiB} MiB at most, which may not stall all of them if there are many.`,
  );

  const cells = chosen.count.flatMap((count) =>
    chosen.version.flatMap((version) =>
      chosen.way.flatMap((way) =>
        chosen.direction.flatMap((direction) =>
          chosen.pace.map((pace): Cell => {
            const limit = isIsolated ? null : Math.floor(MOST_BYTES / count);
            return { count, version, way, direction, pace, limit };
          })
        )
      )
    )
  );
  const results: Result[] = [];
  for (const [n, cell] of cells.entries()) {
    progress(`${n + 1} of ${cells.length}: ${name(cell)}`);
    results.push({ ...cell, ...await start(cell, isIsolated) });
    // Write after every cell, so that an interruption loses no results.
    if (chosen.json !== undefined) {
      await Deno.writeTextFile(chosen.json, JSON.stringify({ machine: machine(), isIsolated, results }) + "\n");
    }
  }
  progress();

  console.log(`\n${table([HEAD, ...results.map(row)])}\n`);
  for (const result of results) console.log(logs(result));
  const few = results.filter(({ count, figures }) => figures !== undefined && figures.limit < 2 * count + KiB);
  if (few.length > 0) {
    console.log(`The limit of descriptors was only ${few[0]!.figures!.limit} in: ${few.map(name).join(", ")}\n`);
  }
  const problems = results.flatMap((result) => {
    const found = problemsOf(result);
    return found.length === 0 ? [] : [`${name(result)}: ${found.join(", ")}`];
  });
  if (problems.length > 0) {
    throw new Error(`${problems.length} of ${results.length} cells failed:\n${problems.join("\n")}`);
  }
  console.log(`stalled: ${results.length} cells; the other connections were answered, and none was cut`);
}

/** Comma-separated numbers of visitors. */
const counts: Option<number[]> = {
  isFlag: false,
  read(text, name) {
    if (text === undefined) return COUNTS;
    const values = text.split(",").map((value) => value.trim() === "" ? NaN : Number(value));
    if (values.every((value) => Number.isSafeInteger(value) && value >= 1)) return values;
    throw new RangeError(`${name} must be comma-separated integers of at least 1, received ${text}`);
  },
};

function name({ count, version, way, direction, pace }: Cell): string {
  return `${count} v${version} ${way} ${direction} ${pace}`;
}

const HEAD = [
  "visitors",
  "smux",
  "way",
  "direction",
  "reads",
  "fresh answered",
  "median, ms",
  "worst, ms",
  "unanswered, s",
  "bystander",
  "bystander gap, s",
  "still connected",
  "sessions",
  "server, MiB (anon)",
  "client, MiB (anon)",
  "took, s",
];

function row({ count, version, way, direction, pace, figures, error }: Result): string[] {
  const what = [`${count}`, version, way, direction, pace];
  if (figures === undefined) return [...what, error!, ...HEAD.slice(what.length + 1).map(() => "")];
  const milliseconds = (value: number | null) => value === null ? "-" : value.toFixed(value < 10 ? 1 : 0);
  const seconds = (value: number) => (value / 1000).toFixed(1);
  const grown = ({ growth }: End) => `${growth.resident.toFixed(0)} (${growth.anonymous.toFixed(0)})`;
  return [
    ...what,
    `${figures.answered} / ${figures.tried}`,
    milliseconds(figures.median),
    milliseconds(figures.worst),
    seconds(figures.unanswered),
    figures.bystander,
    seconds(figures.bystanderGap),
    `${figures.connected} / ${figures.arrived}`,
    `${figures.sessions}${figures.isLost ? ", lost" : ""}`,
    grown(figures.server),
    grown(figures.client),
    `${seconds(figures.took)}${figures.isSettled ? "" : ", not settled"}`,
  ];
}

/** Returns the log lines of both ends, below the name of the cell. */
function logs(result: Result): string {
  const { figures } = result;
  if (figures === undefined) return `${name(result)}: ${result.error}\n`;
  const shown = (["server", "client"] as const).flatMap((end) => {
    const shapes = Object.entries(figures[end].log).toSorted(([, a], [, b]) => b - a);
    return shapes.map(([shape, count]) => `  ${end}  ${`${count}`.padStart(5)} × ${shape}`);
  });
  const descriptors = `${figures.server.descriptors} and ${figures.client.descriptors} descriptors`;
  return [`${name(result)}, server and client with at most ${descriptors}:`, ...shown, ""].join("\n");
}

function problemsOf({ figures, error }: Result): string[] {
  if (figures === undefined) return [error!];
  const seconds = (value: number) => `for ${(value / 1000).toFixed(1)} s`;
  return [
    ...(["server", "client"] as const).flatMap((end) =>
      figures[end].ended === "" ? [] : [`the ${end} ended with ${figures[end].ended}`]
    ),
    ...(figures.isLost ? ["the session was lost"] : []),
    ...(figures.bystander === "cut" ? ["the bystander was cut"] : []),
    ...(figures.bystanderGap > BOUND ? [`the bystander had no answer ${seconds(figures.bystanderGap)}`] : []),
    ...(figures.unanswered > BOUND ? [`no fresh connection was answered ${seconds(figures.unanswered)}`] : []),
  ];
}

/** Returns whether a cell can have a network namespace. */
async function canIsolate(): Promise<boolean> {
  if (findProgram("unshare") === undefined || findProgram("ip") === undefined) return false;
  const { success } = await new Deno.Command("unshare", { args: ["-n", "sh", "-c", NAMESPACE], stderr: "null" })
    .output();
  return success;
}

/** Runs a cell in fresh processes. */
async function start(cell: Cell, isIsolated: boolean): Promise<{ figures?: Figures; error?: string }> {
  // Child processes inherit the limit.
  const script = `ulimit -n ${DESCRIPTORS} 2>/dev/null || ulimit -n $(ulimit -Hn); exec "$@"`;
  const shell = ["sh", "-c", isIsolated ? `${NAMESPACE} && { ${script}; }` : script, "sh"];
  const [command, ...args] = [...(isIsolated ? ["unshare", "-n"] : []), ...shell, Deno.execPath()];
  const child = new Deno.Command(command!, {
    args: [...args, ...program("stalled", "--cell", JSON.stringify(cell))],
    // When this process ends, so does its input, and with it the child and all processes that the child started.
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
    env: { NO_COLOR: "1" },
  }).spawn();
  const { stdin, stdout, stderr, status } = child;
  const printed = [stdout, stderr].map((output) => new Response(output).text());
  const { success, code } = await status;
  const [result, complaint] = await Promise.all(printed);
  await stdin.close().catch(() => {});
  if (success) return { figures: JSON.parse(result!) };
  return { error: /^.*\b\w*Error: (.*)$/m.exec(complaint!)?.[1] ?? `the cell ended with code ${code}` };
}

// The process that measures.

async function measure(cell: Cell): Promise<void> {
  // Not `endWithInput`: the processes started here must end first.
  const abandoned = new AbortController();
  Deno.stdin.readable.pipeTo(new WritableStream()).finally(() =>
    abandoned.abort(new Error("the parent process ended"))
  );
  const signal = AbortSignal.any([abandoned.signal, AbortSignal.timeout(PATIENCE)]);
  await using started = new AsyncDisposableStack();
  const measured = measureIn(started, cell, signal);
  const late = Promise.withResolvers<never>();
  signal.addEventListener("abort", () => late.reject(signal.reason));
  const figures = await Promise.race([measured, late.promise]);
  await started.disposeAsync();
  report(figures);
  // Exit even if a connection still waits for an answer.
  Deno.exit(0);
}

async function measureIn(started: AsyncDisposableStack, cell: Cell, signal: AbortSignal): Promise<Figures> {
  const begin = (...args: string[]): Watched => {
    const options = { args, env: { NO_COLOR: "1" }, stdin: "piped", stdout: "piped", stderr: "piped" } as const;
    return started.use(watch(new Deno.Command(Deno.execPath(), options).spawn()));
  };
  const portOf = async (process: Watched) => Number((await process.until(/listening on \S+:(\d+)\n/))[1]);

  const target = begin(...program("stalled", "--target", JSON.stringify(cell)));
  const server = begin(
    "run",
    "-A",
    TUNNEL,
    "server",
    "--listen",
    "0",
    "--allow",
    "127.0.0.1:*",
    "--allow-listen",
    "127.0.0.1:*",
  );
  const targetPort = await portOf(target);
  const serverPort = await portOf(server);
  const connect = ["--connect", `${serverPort}`, "--smux", cell.version];
  // A fixed port, because the server must listen on it again after a lost session.
  const at = cell.way === "reverse" ? freePort() : 0;
  const asked = cell.way === "socks" ? "0" : `${at}=${targetPort}`;
  const client = begin("run", "-A", TUNNEL, "client", ...connect, `--${cell.way}`, asked);
  const plan: Visit = { ...cell, port: await portOf(client), server: serverPort, target: targetPort };
  const ends = { server: new Watching(server), client: new Watching(client) };

  const bystander = new Bystander(await Deno.connect({ hostname: "127.0.0.1", port: plan.port }));
  await bystander.greet(plan);
  const visitors = begin(...program("stalled", "--visitors", JSON.stringify(plan)));
  await visitors.until(/\n/);
  const visited = (): Visited => JSON.parse(last(visitors));
  const [link] = visited().links;
  const links = new Set<number>();

  const began = performance.now();
  const fresh = new Fresh(began);
  const isOver = new AbortController();
  signal.addEventListener("abort", () => isOver.abort());
  const running = [bystander.run(isOver.signal), fresh.run(plan, isOver.signal)];
  let before = "";
  let changed = began;
  let until = began + LONGEST_IN_ALL;
  let isFull = false;
  let isSettled = false;
  while (!isSettled && performance.now() < until && !signal.aborted) {
    await delay(SAMPLE);
    for (const end of Object.values(ends)) end.sample();
    for (const port of visited().links) links.add(port);
    if (!isFull && visited().arrived === cell.count) {
      isFull = true;
      until = Math.min(until, performance.now() + LONGEST);
    }
    // Without visitors, ignore the counters: in version 1 a target cannot be stopped from sending to visitors that
    // left.
    const { arrived, connected } = visited();
    const isEmpty = arrived === cell.count && connected === 0;
    const now = isEmpty ? "empty" : `${last(target)} ${last(visitors)} ${bystander.isCut}`;
    if (now !== before) changed = performance.now();
    before = now;
    const quiet = performance.now() - Math.max(changed, fresh.failed);
    isSettled = quiet > SETTLED && performance.now() - fresh.answered < FRESH_PATIENCE;
  }
  isOver.abort();
  const ended = performance.now();
  const { arrived, connected, links: left } = visited();
  const figures: Figures = {
    tried: fresh.tried,
    answered: fresh.times.length,
    median: fresh.times.length === 0 ? null : median(fresh.times),
    worst: fresh.times.length === 0 ? null : Math.max(...fresh.times),
    unanswered: Math.max(fresh.gap, ended - fresh.answered),
    bystander: bystander.isCut ? "cut" : "lived",
    bystanderGap: Math.max(bystander.gap, bystander.isCut ? 0 : ended - bystander.answered),
    arrived,
    connected,
    sessions: links.size,
    isLost: link === undefined || !left.includes(link),
    took: ended - began,
    isSettled,
    server: ends.server.end(),
    client: ends.client.end(),
    limit: Number(/^Max open files\s+(\d+)/m.exec(Deno.readTextFileSync("/proc/self/limits"))?.[1] ?? 0),
  };
  await Promise.all(running);
  return figures;
}

/** Returns a free port below the system's range of ephemeral ports. */
function freePort(): number {
  for (let port = 20_000;; port++) {
    try {
      Deno.listen({ ...LOOPBACK, port }).close();
      return port;
    } catch (error) {
      if (!(error instanceof Deno.errors.AddrInUse)) throw error;
    }
  }
}

/** Returns the last complete line that a process printed. */
function last({ printed: { stdout } }: Watched): string {
  return stdout.slice(stdout.lastIndexOf("\n", stdout.length - 2) + 1, stdout.lastIndexOf("\n"));
}

/** Measures one end of the tunnel. */
class Watching {
  readonly #process: Watched;
  readonly #before: Growth;
  readonly #most: Growth = { resident: 0, anonymous: 0 };
  #descriptors = 0;
  #ended = "";

  constructor(process: Watched) {
    this.#process = process;
    this.#before = this.#memory() ?? this.#most;
    process.child.status.then(({ code, signal }) => this.#ended = signal ?? `code ${code}`);
  }

  sample(): void {
    const now = this.#memory();
    if (now === undefined) return;
    const { resident, anonymous } = this.#most;
    this.#most.resident = Math.max(resident, now.resident - this.#before.resident);
    this.#most.anonymous = Math.max(anonymous, now.anonymous - this.#before.anonymous);
    const descriptors = Array.from(Deno.readDirSync(`/proc/${this.#process.child.pid}/fd`)).length;
    this.#descriptors = Math.max(this.#descriptors, descriptors);
  }

  end(): End {
    const { stdout, stderr } = this.#process.printed;
    const log: Record<string, number> = {};
    for (const line of (stdout + stderr).split("\n").filter((line) => line !== "")) {
      const shape = line.replaceAll(/\d+(\.\d+)*/g, "N");
      log[shape] = (log[shape] ?? 0) + 1;
    }
    return { growth: { ...this.#most }, descriptors: this.#descriptors, ended: this.#ended, log };
  }

  #memory(): Growth | undefined {
    try {
      const status = Deno.readTextFileSync(`/proc/${this.#process.child.pid}/status`);
      const field = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(status)![1]) / KiB;
      return { resident: field("VmRSS"), anonymous: field("RssAnon") };
    } catch {
      // The process has ended.
      return undefined;
    }
  }
}

/** A connection that was opened before the visitors. */
class Bystander {
  readonly #connection: Deno.Conn;
  gap = 0;
  answered = performance.now();
  isCut = false;

  constructor(connection: Deno.Conn) {
    this.#connection = connection;
  }

  async greet(plan: Visit): Promise<void> {
    await enter(this.#connection, plan);
    await writeAll(this.#connection, bytes("e"));
    await this.#echo();
  }

  async run(signal: AbortSignal): Promise<void> {
    const stop = () => this.#connection.close();
    signal.addEventListener("abort", stop);
    try {
      while (!signal.aborted) {
        await this.#echo();
        const now = performance.now();
        this.gap = Math.max(this.gap, now - this.answered);
        this.answered = now;
        await pause(BYSTANDER_PAUSE, signal);
      }
    } catch {
      if (signal.aborted) return;
      this.isCut = true;
      this.gap = Math.max(this.gap, performance.now() - this.answered);
      signal.removeEventListener("abort", stop);
      this.#connection.close();
    }
  }

  async #echo(): Promise<void> {
    const sent = "still there?";
    await writeAll(this.#connection, bytes(sent));
    const received = new TextDecoder().decode(await readExactly(this.#connection, sent.length));
    if (received !== sent) throw new Error(`The bystander received "${received}"`);
  }
}

/** Opens fresh connections one after another. */
class Fresh {
  tried = 0;
  /** Milliseconds until each answer. */
  readonly times: number[] = [];
  gap = 0;
  answered: number;
  /** The time of the last connection without an answer. */
  failed = -Infinity;

  constructor(began: number) {
    this.answered = began;
  }

  async run(plan: Visit, signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      const began = performance.now();
      const isAnswered = await this.#try(plan, signal);
      // Do not count a connection that the end of the cell interrupted.
      if (signal.aborted) return;
      const now = performance.now();
      this.tried++;
      if (isAnswered) {
        this.times.push(now - began);
        this.gap = Math.max(this.gap, now - this.answered);
        this.answered = now;
      } else this.failed = now;
      await pause(FRESH_PAUSE, signal);
    }
  }

  async #try(plan: Visit, signal: AbortSignal): Promise<boolean> {
    const connecting = Deno.connect({ hostname: "127.0.0.1", port: plan.port });
    const close = () => connecting.then((connection) => connection.close()).catch(() => {});
    const end = AbortSignal.any([signal, AbortSignal.timeout(FRESH_PATIENCE)]);
    end.addEventListener("abort", close);
    try {
      const connection = await connecting;
      await enter(connection, plan);
      await writeAll(connection, bytes("ehi"));
      return new TextDecoder().decode(await readExactly(connection, 2)) === "hi";
    } catch {
      return false;
    } finally {
      end.removeEventListener("abort", close);
      await close();
    }
  }
}

/** Waits until the time is over or the signal aborts. */
async function pause(milliseconds: number, signal: AbortSignal): Promise<void> {
  await setTimeout(milliseconds, undefined, { signal }).catch(() => {});
}

/** Sends the SOCKS request for the target, if the way is SOCKS. */
async function enter(connection: Deno.Conn, { way, target }: Visit): Promise<void> {
  if (way !== "socks") return;
  await writeAll(connection, new Uint8Array([5, 1, 0]));
  await readExactly(connection, 2);
  await writeAll(connection, new Uint8Array([5, 1, 0, 1, 127, 0, 0, 1, target >> 8, target & 255]));
  const [, code] = await readExactly(connection, 10);
  if (code !== 0) throw new Error(`SOCKS answered with code ${code}`);
}

// The target: the first byte selects echo ("e"), send without end ("d") or receive ("u").

async function serveTarget({ pace, limit }: Cell): Promise<void> {
  endWithInput();
  const listener = Deno.listen({ ...LOOPBACK, tcpBacklog: 4096 });
  console.log(`listening on 127.0.0.1:${listener.addr.port}`);
  const moved = new Moved();
  setInterval(() => report({ moved: moved.bytes }), SAMPLE);
  const open = new Set<Deno.Conn>();
  for await (const connection of listener) {
    connection.setNoDelay(true);
    const serveOne = async () => {
      open.add(connection);
      const [kind] = await readSome(connection, 1);
      if (kind === "e".charCodeAt(0)) await connection.readable.pipeTo(connection.writable);
      if (kind === "d".charCodeAt(0)) await send(connection, limit, moved);
      if (kind === "u".charCodeAt(0)) await stall(connection, pace, moved);
    };
    serveOne().catch(() => {}).finally(() => {
      open.delete(connection);
      connection[Symbol.dispose]();
    });
  }
}

/** Counts the bytes of visitors. */
class Moved {
  bytes = 0;
}

/** Sends without end, or up to the limit; rejects when the connection breaks. */
async function send(connection: Deno.Conn, limit: number | null, moved: Moved): Promise<void> {
  const p = new Uint8Array(CHUNK);
  for (let left = limit ?? Infinity; left > 0;) {
    const count = await connection.write(p.subarray(0, Math.min(left, p.length)));
    moved.bytes += count;
    left -= count;
  }
  await new Promise(() => {});
}

/** Reads nothing, or little; settles at the end of the stream. */
async function stall(connection: Deno.Conn, pace: Cell["pace"], moved: Moved): Promise<void> {
  if (pace === "never") await new Promise(() => {});
  const p = new Uint8Array(SIP);
  for (let count; (count = await connection.read(p)) !== null;) {
    moved.bytes += count;
    await delay(SIP_PAUSE);
  }
}

// The visitors.

async function visit(plan: Visit): Promise<void> {
  endWithInput();
  const moved = new Moved();
  const ports = new Set<number>();
  // References, so that no connection is closed by the garbage collector.
  const open: Deno.Conn[] = [];
  const print = () => {
    const sockets = established();
    const visited: Visited = {
      arrived: open.length,
      connected: Array.from(ports).filter((port) => sockets.has(`${plan.port} ${port}`)).length,
      links: Array.from(sockets, (socket) => socket.split(" ").map(Number))
        .filter(([local, remote]) => local === plan.server && sockets.has(`${remote} ${local}`))
        .map(([, remote]) => remote!),
      moved: moved.bytes,
    };
    report(visited);
  };
  print();
  setInterval(print, SAMPLE);
  const stay = async (connection: Deno.Conn) => {
    await enter(connection, plan);
    await writeAll(connection, bytes(plan.direction[0]!));
    if (plan.direction === "download") await stall(connection, plan.pace, moved);
    else await send(connection, plan.limit, moved);
  };
  let left = plan.count;
  const arrive = async () => {
    while (left-- > 0) {
      const connection = await Deno.connect({ hostname: "127.0.0.1", port: plan.port }).catch(() => undefined);
      if (connection === undefined) continue;
      ports.add(connection.localAddr.port);
      open.push(connection);
      // A visitor that is cut does not reconnect.
      stay(connection).catch(() => {});
    }
  };
  await Promise.all(Array.from({ length: PARALLEL }, arrive));
  await new Promise(() => {});
}

/**
 * Returns the local and remote port of every established TCP socket, which is one that neither end has closed. Reads
 * the kernel's table, because a process that does not read cannot notice that its connection was closed.
 */
function established(): Set<string> {
  // Read the table twice: while sockets open and close, the kernel may omit a socket or list it twice.
  const list = () => Deno.readTextFileSync("/proc/net/tcp");
  const sockets = (list() + list()).matchAll(/:(\w{4}) \w+:(\w{4}) 01 /g);
  return new Set(Array.from(sockets, ([, local, remote]) => `${parseInt(local!, 16)} ${parseInt(remote!, 16)}`));
}
