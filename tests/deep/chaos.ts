/**
 * Sessions with Go's smux over a proxy that injects faults into the connection: both roles, both versions, seeded.
 *
 * A fault that only slows the connection must have no effect. A fault that ends it must end our session in time,
 * without a wrong byte and without leaks. smux has no checksum, so a flipped bit may corrupt bytes or lose a stream:
 * then every call must settle once the connection is closed.
 *
 * @module
 */

import { deadline, delay, pooledMap } from "@std/async";
import { CONNECTION_LOST } from "../../serve.ts";
import { explain, onUnhandled } from "../errors.ts";
import { random } from "../fuzz/mutate.ts";
import { buildGo, hasGoPackage } from "../go_build.ts";
import { runClient, runServer, type Workload } from "../interop/workloads.ts";
import { lines, makeFolder, Process } from "../programs.ts";
import { integer, parse } from "./shared/options.ts";

/** One line for the list of long tests. */
export const description =
  "Sessions with Go's smux over a proxy that cuts, resets, stalls, flips: [--sessions 200] [--seed 1] [--only NUMBER]";

const SMUX = "github.com/xtaci/smux";
const HERE = import.meta.dirname!;

/** The faults, and the expected outcome of each. */
const FAULTS = {
  none: "done",
  split: "done",
  delay: "done",
  rate: "done",
  pause: "done",
  cut: "ended",
  reset: "ended",
  stall: "ended",
  flip: "spoiled",
} as const;
const OUTCOMES = ["done", "ended", "wrong bytes", "stuck", "FAILED"] as const;

// Concurrent sessions. Larger: sessions slow each other until a peer times out.
const PARALLEL = 16;
const TIMEOUT = 1500;
const KEEP_ALIVE = 300;
// Go checks for a silent peer at this interval: it times out after one to two intervals.
const GO_TIMEOUT = 1000;
// Maximum time from a fault to the end of the session.
const LIMIT = 2 * TIMEOUT;
// Timeout of a session without a fatal fault; a slow session needs a second or two.
const PATIENCE = 15_000;
// Timeout after the connection was closed under a session.
const GRACE = 1000;

type Fault = keyof typeof FAULTS;
type Outcome = typeof OUTCOMES[number];

interface Plan {
  number: number;
  role: "client" | "server";
  version: 1 | 2;
  fault: Fault;
  up: boolean;
  down: boolean;
  at: number;
  size: number;
  workload: Workload;
}

interface Verdict {
  outcome: Outcome;
  why: string;
}

/** Runs the sessions; rejects if one fails. */
export async function run(args: string[]): Promise<void> {
  const { sessions, seed, only } = parse(args, {
    sessions: integer(200, 1),
    seed: integer(1),
    only: integer(undefined, 0),
  });
  const numbers = only === undefined ? Array.from({ length: sessions }, (_, n) => n) : [only];

  const counts = new Map<Fault, Map<Outcome, number>>();
  const failures: string[] = [];
  const unhandled: unknown[] = [];
  const started = performance.now();
  {
    using _ = onUnhandled((reason) => unhandled.push(reason));
    await using folder = await makeFolder("chaos");
    const peer = await build("../interop/peer.go", "smux", folder.path);
    const proxy = new Proxy(await build("chaos/proxy.go", "proxy", folder.path));
    const before = descriptors();
    for await (const { plan, verdict } of pooledMap(PARALLEL, numbers, (n) => judge(planOf(seed, n), peer, proxy))) {
      const { number, fault, role, version, up, down, at, size } = plan;
      const ofFault = counts.get(fault) ?? new Map<Outcome, number>();
      counts.set(fault, ofFault.set(verdict.outcome, (ofFault.get(verdict.outcome) ?? 0) + 1));
      if (only !== undefined) console.log(JSON.stringify(plan), verdict);
      if (verdict.outcome !== "FAILED") continue;
      const ways = [up && "up", down && "down"].filter(Boolean).join(" and ");
      failures.push(
        `session ${number}, ${role} v${version}, ${fault} ${ways} at ${at} (${size}): ${verdict.why}\n` +
          `  again: deno task deep chaos --seed ${seed} --only ${number}`,
      );
    }
    const left = await settled(before);
    if (left !== 0) failures.push(`${left} file descriptors still open`);
    await proxy.end();
  }
  for (const reason of unhandled) failures.push(`unhandled: ${explain(reason)}`);

  const seconds = ((performance.now() - started) / 1000).toFixed(0);
  console.log(`chaos: ${numbers.length} sessions, seed ${seed}, ${seconds} s, ${failures.length} failures`);
  console.log(["fault", ...OUTCOMES].map((text) => text.padEnd(12)).join(""));
  for (const fault of Object.keys(FAULTS) as Fault[]) {
    const cells = OUTCOMES.map((outcome) => `${counts.get(fault)?.get(outcome) ?? 0}`);
    console.log([fault, ...cells].map((text) => text.padEnd(12)).join(""));
  }
  for (const failure of failures) console.log(failure);
  if (failures.length > 0) throw new Error(`${failures.length} failures`);
}

function planOf(seed: number, number: number): Plan {
  const next = random(Math.imul(seed, 1_000_003) + number + 1);
  for (let n = 0; n < 5; n++) next(2);
  const faults = Object.keys(FAULTS) as Fault[];
  const fault = faults[next(faults.length)]!;
  const ways = 1 + next(3);
  // Strike in a header, in the first data, later, or never.
  const at = next([16, 1000, 100_000, 400_000][next(4)]!);
  // Two pauses, one in each direction, must end before Go's timeout.
  const sizes = { none: 0, split: 1 + next(700), delay: 1 + next(10), rate: 200 + next(800), pause: 100 + next(300) };
  return {
    number,
    fault,
    role: next(2) === 0 ? "client" : "server",
    version: next(2) === 0 ? 1 : 2,
    up: (ways & 1) === 1,
    down: (ways & 2) === 2,
    at,
    size: fault in sizes ? sizes[fault as keyof typeof sizes] : next(8),
    workload: {
      name: "chaos",
      kind: "echo",
      streams: 2 + next(12),
      parallel: 1 + next(6),
      size: 1 + next(60_000),
      large: 0,
      idle: 0,
      options: { timeout: TIMEOUT, keepAliveInterval: KEEP_ALIVE },
    },
  };
}

/** Runs one session and returns its verdict. */
async function judge(plan: Plan, peer: string, proxy: Proxy): Promise<{ plan: Plan; verdict: Verdict }> {
  try {
    return { plan, verdict: await deadline(attempt(plan, peer, proxy), 3 * PATIENCE) };
  } catch (error) {
    return { plan, verdict: { outcome: "FAILED", why: explain(error) } };
  }
}

async function attempt(plan: Plan, program: string, proxy: Proxy): Promise<Verdict> {
  const { role, version, workload } = plan;
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  await using processes = new AsyncDisposableStack();
  try {
    if (role === "client") {
      const peer = processes.use(startPeer(program, "server", plan, 0));
      const { port, struck } = await proxy.carry(plan, Number(await peer.line()));
      const conn = await Deno.connect({ hostname: "127.0.0.1", port });
      return verdict(plan, await outcome(plan, conn, runClient(conn, version, workload), struck));
    }
    const { port, struck } = await proxy.carry(plan, listener.addr.port);
    processes.use(startPeer(program, "client", plan, port));
    const conn = await listener.accept();
    return verdict(plan, await outcome(plan, conn, runServer(conn, version, workload), struck));
  } catch (error) {
    // A fault may end the connection before it is accepted.
    const isLost = CONNECTION_LOST.includes(error instanceof Error ? error.name : "") && FAULTS[plan.fault] === "ended";
    return { outcome: isLost ? "ended" : "FAILED", why: explain(error) };
  } finally {
    proxy.forget(plan.number);
  }
}

/** Returns how our side ended: without an error, with one, or (`late`) only after its connection was closed. */
async function outcome(
  { fault }: Plan,
  conn: Deno.Conn,
  work: Promise<unknown>,
  struck: Promise<void>,
): Promise<{ error?: unknown; late?: boolean }> {
  const end = work.then(() => ({}), (error: unknown) => ({ error }));
  const isSlow = FAULTS[fault] === "done";
  const late = async () => {
    await Promise.race([end, isSlow ? delay(PATIENCE) : Promise.race([struck, delay(PATIENCE)])]);
    if (!isSlow) await Promise.race([end, delay(LIMIT)]);
    return { late: true };
  };
  const first: { error?: unknown; late?: boolean } = await Promise.race([end, late()]);
  if (!first.late) return first;
  try {
    conn.close();
  } catch {
    // Already closed by the session, although its work is still pending.
  }
  const { error } = await deadline<{ error?: unknown }>(end, GRACE);
  return { error, late: true };
}

function verdict({ fault }: Plan, { error, late }: { error?: unknown; late?: boolean }): Verdict {
  const why = explain(error);
  const isWrong = /hash|unknown op|expected the peer's FIN|: ended /.test(why);
  if (fault === "flip") {
    return { outcome: late ? "stuck" : error === undefined ? "done" : isWrong ? "wrong bytes" : "ended", why };
  }
  if (late) {
    return {
      outcome: "FAILED",
      why: `still running ${LIMIT} ms after the fault, or after ${PATIENCE} ms without one; ${why}`,
    };
  }
  if (error === undefined) return { outcome: "done", why };
  if (isWrong || FAULTS[fault] === "done") return { outcome: "FAILED", why };
  return { outcome: "ended", why };
}

/** A line of output of the proxy. */
interface Said {
  id: number;
  port?: number;
  struck?: boolean;
}

/** A connection that the proxy carries. */
interface Carried {
  port: number;
  /** Resolves when the fault strikes; may stay pending. */
  struck: Promise<void>;
}

/** The proxy process. */
class Proxy {
  readonly #child: Deno.ChildProcess;
  readonly #writer: WritableStreamDefaultWriter<Uint8Array>;
  readonly #asked = new Map<number, { port: PromiseWithResolvers<number>; struck: PromiseWithResolvers<void> }>();
  readonly #reading: Promise<void>;

  constructor(program: string) {
    this.#child = new Deno.Command(program, { stdin: "piped", stdout: "piped", stderr: "inherit" }).spawn();
    this.#writer = this.#child.stdin.getWriter();
    this.#reading = this.#read();
  }

  async carry({ number, fault, up, down, at, size }: Plan, port: number): Promise<Carried> {
    const asked = { port: Promise.withResolvers<number>(), struck: Promise.withResolvers<void>() };
    this.#asked.set(number, asked);
    const line = JSON.stringify({ id: number, port, fault, up, down, at, size });
    await this.#writer.write(new TextEncoder().encode(`${line}\n`));
    return { port: await asked.port.promise, struck: asked.struck.promise };
  }

  forget(number: number): void {
    this.#asked.delete(number);
  }

  async end(): Promise<void> {
    await this.#writer.close();
    await this.#reading;
    await this.#child.status;
  }

  async #read(): Promise<void> {
    for await (const line of lines(this.#child.stdout)) {
      const { id, port, struck }: Said = JSON.parse(line);
      const asked = this.#asked.get(id);
      if (port !== undefined) asked?.port.resolve(port);
      if (struck) asked?.struck.resolve();
    }
  }
}

/** Starts a peer with Go's smux. */
function startPeer(program: string, role: string, { number, version, workload }: Plan, port: number): Process {
  const { kind, streams, parallel, size } = workload;
  const flags = { role, port, version, workload: kind, streams, parallel, size, seed: number };
  const times = { interval: KEEP_ALIVE, timeout: GO_TIMEOUT, bound: 2 * PATIENCE };
  return new Process([program, ...Object.entries({ ...flags, ...times }).map(([name, value]) => `-${name}=${value}`)]);
}

/** Builds a Go program in `folder`, and renames it so that both programs fit. */
async function build(source: string, name: string, folder: string): Promise<string> {
  const built = hasGoPackage(SMUX) ? await buildGo(folder, [`${HERE}/${source}`]) : undefined;
  if (built === undefined) {
    throw new Error("Go or its smux is not installed: needs golang-go and golang-github-xtaci-smux-dev");
  }
  await Deno.rename(built, `${folder}/${name}`);
  return `${folder}/${name}`;
}

/** Returns the number of open file descriptors of this process. */
function descriptors(): number {
  return Array.from(Deno.readDirSync("/proc/self/fd")).length;
}

/** Waits up to 2 s for file descriptors to close; returns how many more are open than `before`. */
async function settled(before: number): Promise<number> {
  for (let n = 0; n < 20 && descriptors() !== before; n++) await delay(100);
  return descriptors() - before;
}
