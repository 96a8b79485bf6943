/**
 * The attacked side: sessions with an application on them, in this process or, run as a program, in a child process.
 *
 * @module
 */

import { type ChildProcess, fork } from "node:child_process";
import process from "node:process";
import { setImmediate as nextTurn } from "node:timers";
import { setImmediate } from "node:timers/promises";
import { Session, type SessionOptions, type SessionStats, type Stream, type Transport } from "../../mod.ts";
import { NOP, PSH, SYN, type Version } from "../../frame.ts";
import { setNextId } from "../../session.ts";
import { frame, KiB, MiB } from "../support.ts";

/** The victim's role in a session. */
export type Role = "client" | "server";

/**
 * What the application does with the streams of a connection: echo, accept without reading, not accept, close at once,
 * read to the end, or write without end. It always echoes the first stream.
 */
export type App = "echo" | "hold" | "ignore" | "close" | "sink" | "pour";

/** The configuration of a victim. */
export interface VictimOptions {
  role: Role;
  version: Version;
  app: App;
  session: SessionOptions;
  /** The id of the first stream it opens (default: as the protocol has it). */
  firstId?: number | undefined;
}

/** The state of a victim. */
export interface State {
  /** Attacked sessions that have not ended. */
  open: number;
  /** Pending promises of the application, on attacked sessions and on all other sessions. */
  tasks: number;
  otherTasks: number;
  /** How the latest attacked sessions ended, in order: "clean", or the error. */
  ends: string[];
  /** Statistics of the latest attacked session. */
  last: SessionStats | undefined;
  /** Bytes read by the application "sink". */
  sunk: number;
  /** Streams that the application "sink" read to the peer's FIN. */
  whole: number;
  /** Unhandled rejections; only counted in a child process. */
  unhandled: number;
  /** CPU time used, in microseconds. */
  cpu: number;
  /** Resident bytes of the process: now, and the peak since `mark`. */
  rss: number;
  peakRss: number;
  /** Bytes of the heap and of external memory: now, and the peak since `mark`. */
  heap: number;
  peakHeap: number;
  /** Longest delay of its timers since `mark`, in milliseconds; only measured in a child process. */
  gap: number;
}

/** Turns of the event loop, and the longest time between two of them in milliseconds. */
export interface Turns {
  turns: number;
  gap: number;
}

/** A victim, in this process or in a child process. */
export interface Victim extends AsyncDisposable {
  /** The port for attacks. */
  readonly port: number;
  /** The port for other peers: the application echoes, and the sessions have default options. */
  readonly freshPort: number;
  state(): Promise<State>;
  /** Collects garbage and resets the peaks. */
  mark(): Promise<void>;
  /** Blocks the event loop. */
  block(milliseconds: number): Promise<void>;
  /** Closes a stream of the latest session. */
  drop(id: number): Promise<void>;
  /** Opens a stream on the latest session and echoes it; returns its id. */
  open(): Promise<number>;
  /** Opens a stream on the latest session, writes `count` bytes to it, and closes the session. */
  say(count: number): Promise<void>;
  /** Closes the latest session; returns the duration in milliseconds. */
  shut(): Promise<number>;
  /** Performs `acts` on the latest session in one turn with every operation pending; returns how each one settled. */
  collide(acts: string[]): Promise<string[]>;
  /** Runs a session over a transport whose reads never block, with this many bytes in all. */
  capture(kind: "connection" | "streams", bytes: number): Promise<Turns>;
}

// Small enough for an array within the heap: the application's memory must not dominate the measurement.
const SMALLEST_READ = 64;
const LARGEST_READ = 64 * KiB;
const SAMPLE_INTERVAL = 10;
// Shared by all sinks, because they ignore the data.
const scratch = new Uint8Array(LARGEST_READ);
// More than a connection accepts without blocking.
const LARGE = new Uint8Array(4 * MiB);

/** A victim in this process. */
export class LocalVictim implements Victim {
  readonly #options: VictimOptions;
  readonly #attacked = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  readonly #others = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  readonly #sessions = new Set<Session>();
  readonly #work: Promise<void>[] = [];
  readonly #ends: string[] = [];
  readonly #streams = new Map<number, Stream>();
  #last: Session | undefined;
  #open = 0;
  #tasks = 0;
  #otherTasks = 0;
  #sunk = 0;
  #whole = 0;
  #peakRss = 0;
  #peakHeap = 0;
  #maxRss = 0;
  #sampledAt: number | undefined;
  #gap = 0;
  #unhandled = 0;

  constructor(options: VictimOptions) {
    this.#options = options;
    this.#work.push(this.#listen(this.#attacked, true), this.#listen(this.#others, false));
  }

  get port(): number {
    return this.#attacked.addr.port;
  }

  get freshPort(): number {
    return this.#others.addr.port;
  }

  async #listen(listener: Deno.TcpListener, isAttacked: boolean): Promise<void> {
    for (;;) {
      let connection: Deno.TcpConn;
      try {
        connection = await listener.accept();
      } catch (error) {
        // A connection that is reset before it is accepted makes accept() reject: continue with the next one.
        if (error instanceof Deno.errors.BadResource || error instanceof Deno.errors.Interrupted) return;
        continue;
      }
      this.#serve(connection, isAttacked);
    }
  }

  #serve(transport: Transport, isAttacked: boolean): Session {
    const { role, version, app, firstId } = this.#options;
    const options = isAttacked ? this.#options.session : {};
    const session = role === "client"
      ? Session.client(transport, { version, ...options })
      : Session.server(transport, options);
    if (firstId !== undefined) setNextId(session, firstId);
    this.#sessions.add(session);
    if (isAttacked) {
      this.#open++;
      this.#last = session;
      this.#streams.clear();
    }
    const ended = (how: string) => {
      this.#sessions.delete(session);
      if (!isAttacked) return;
      this.#open--;
      this.#ends.push(how);
    };
    session.closed.then(() => ended("clean"), (error) => ended(`${error}`));
    this.#task(this.#accept(session, isAttacked ? app : "echo", isAttacked), isAttacked);
    return session;
  }

  async #accept(session: Session, app: App, isAttacked: boolean): Promise<void> {
    let isFirst = true;
    for await (const stream of session) {
      if (session === this.#last && (app === "hold" || app === "pour")) this.#streams.set(stream.id, stream);
      this.#task(this.#use(stream, isFirst ? "echo" : app), isAttacked);
      isFirst = false;
      if (app === "ignore") return;
    }
  }

  // Rejections are ignored here: the end of the session is recorded in #ends.
  readonly #settled = () => void this.#tasks--;
  readonly #settledOther = () => void this.#otherTasks--;

  #task(work: Promise<void>, isAttacked: boolean): void {
    if (isAttacked) this.#tasks++;
    else this.#otherTasks++;
    const settled = isAttacked ? this.#settled : this.#settledOther;
    work.then(settled, settled);
  }

  async #use(stream: Stream, app: App): Promise<void> {
    if (app === "hold" || app === "ignore") return await stream.closed;
    if (app === "close") return stream.close();
    if (app === "pour") {
      const p = new Uint8Array(32 * 1024);
      for (;;) await stream.write(p);
    }
    let p = app === "sink" ? scratch : new Uint8Array(SMALLEST_READ);
    for (;;) {
      const count = await stream.read(p);
      if (count === null) break;
      if (app === "echo") await stream.write(p.subarray(0, count));
      else this.#sunk += count;
      if (count === p.length && count < LARGEST_READ) p = new Uint8Array(count * 2);
    }
    if (app === "sink") this.#whole++;
    await stream.closeWrite();
  }

  #session(): Session {
    if (this.#last === undefined) throw new Error("No attacked session yet");
    return this.#last;
  }

  state(): Promise<State> {
    this.#measureGap();
    const { rss, heap } = this.sample();
    const { user, system } = process.cpuUsage();
    return Promise.resolve({
      open: this.#open,
      tasks: this.#tasks,
      otherTasks: this.#otherTasks,
      ends: this.#ends.slice(-4),
      last: this.#last?.stats(),
      sunk: this.#sunk,
      whole: this.#whole,
      unhandled: this.#unhandled,
      cpu: user + system,
      rss,
      peakRss: this.#peakRss,
      heap,
      peakHeap: this.#peakHeap,
      gap: this.#gap,
    });
  }

  /** Measures memory and updates the peaks. */
  sample(): { rss: number; heap: number } {
    const { rss, heapUsed, external } = Deno.memoryUsage();
    const heap = heapUsed + external;
    // Once the kernel's peak has grown, it covers the time between two samples.
    const maxRss = process.resourceUsage().maxRSS * 1024;
    this.#peakRss = Math.max(this.#peakRss, rss, maxRss > this.#maxRss ? maxRss : 0);
    this.#peakHeap = Math.max(this.#peakHeap, heap);
    return { rss, heap };
  }

  mark(): Promise<void> {
    (globalThis as { gc?: () => void }).gc?.();
    this.#maxRss = process.resourceUsage().maxRSS * 1024;
    this.#peakRss = this.#peakHeap = this.#gap = 0;
    if (this.#sampledAt !== undefined) this.#sampledAt = performance.now();
    this.sample();
    return Promise.resolve();
  }

  /** Starts to sample the memory and the delay of timers. */
  watch(): void {
    setInterval(() => {
      this.#measureGap();
      this.#sampledAt = performance.now();
      this.sample();
    }, SAMPLE_INTERVAL);
  }

  #measureGap(): void {
    if (this.#sampledAt === undefined) return;
    this.#gap = Math.max(this.#gap, performance.now() - this.#sampledAt - SAMPLE_INTERVAL);
  }

  /** Counts an unhandled rejection. */
  countUnhandled(): void {
    this.#unhandled++;
  }

  block(milliseconds: number): Promise<void> {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, milliseconds);
    return Promise.resolve();
  }

  drop(id: number): Promise<void> {
    this.#streams.get(id)!.close();
    return Promise.resolve();
  }

  async open(): Promise<number> {
    const stream = await this.#session().openStream();
    this.#task(this.#use(stream, "echo"), true);
    return stream.id;
  }

  async say(count: number): Promise<void> {
    const session = this.#session();
    const stream = await session.openStream();
    await stream.write(LARGE.subarray(0, count));
    await session.close();
  }

  async shut(): Promise<number> {
    const started = performance.now();
    await this.#session().close();
    return performance.now() - started;
  }

  async collide(acts: string[]): Promise<string[]> {
    const session = this.#session();
    const stream = await session.openStream();
    const pending = [
      stream.read(new Uint8Array(1)),
      stream.write(LARGE),
      session.acceptStream(),
      session.openStream(),
      stream.closed,
    ];
    // Attach handlers now, so that no rejection counts as unhandled.
    const settled = Promise.allSettled(pending);
    for (const act of acts) {
      if (act === "stream.close") stream.close();
      else if (act === "stream.closeWrite") stream.closeWrite().catch(() => {});
      else if (act === "session.close") session.close();
      else session.abort(new Error("Cut on purpose"));
    }
    const outcomes = await settled;
    return outcomes.map((outcome) => outcome.status === "fulfilled" ? outcome.status : outcome.reason.name);
  }

  async capture(kind: "connection" | "streams", bytes: number): Promise<Turns> {
    const { role, version } = this.#options;
    const id = role === "server" ? 3 : 2;
    const chunk = new Uint8Array(64 * 1024);
    const nop = frame(version, NOP, 0);
    for (let at = 0; at < chunk.length; at += nop.length) chunk.set(nop, at);
    const first = new Uint8Array([...frame(version, SYN, id), ...frame(version, PSH, id, new Uint8Array(8))]);
    let left = bytes;
    const next = () => {
      if (left <= 0) return null;
      const part = left === bytes ? first : chunk;
      left -= part.length;
      return part;
    };
    const transport: Transport = kind === "streams"
      ? {
        readable: new ReadableStream<Uint8Array>({
          pull(controller) {
            const part = next();
            if (part === null) controller.close();
            else controller.enqueue(part.slice());
          },
        }),
        writable: new WritableStream<Uint8Array>(),
      }
      : {
        read(p) {
          const part = next();
          if (part === null) return Promise.resolve(null);
          const count = Math.min(p.length, part.length);
          p.set(part.subarray(0, count));
          // The rest of the part can be dropped, because every length here is a multiple of the 8-byte frames.
          left += part.length - count;
          return Promise.resolve(count);
        },
        write: (p) => Promise.resolve(p.length),
        close() {},
      };
    let gap = 0;
    let turns = 0;
    let isDone = false;
    const session = this.#serve(transport, false);
    session.closed.catch(() => {}).finally(() => isDone = true);
    let before = performance.now();
    // A callback instead of a promise for each turn: millions of promises would count as the attack's memory.
    const count = () => {
      const now = performance.now();
      gap = Math.max(gap, now - before);
      turns++;
      before = now;
      if (!isDone) nextTurn(count);
    };
    nextTurn(count);
    await session.closed;
    return { turns, gap };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#attacked.close();
    this.#others.close();
    await Promise.all(this.#work);
    for (const session of this.#sessions) session.abort();
    while (this.#tasks + this.#otherTasks > 0) await setImmediate();
  }
}

/** A request to a victim in a child process, or the response. */
interface Message {
  n: number;
  method: string;
  args: unknown[];
  result?: unknown;
  error?: string;
}

/** Starts a victim in a child process. */
export async function startVictim(options: VictimOptions): Promise<Victim> {
  const child = fork(import.meta.filename!, [JSON.stringify(options)], {
    execArgv: ["--expose-gc"],
  });
  const victim = new RemoteVictim(child);
  const [port, freshPort] = await victim.ports();
  return Object.assign(victim, { port, freshPort });
}

class RemoteVictim implements Victim {
  readonly #child: ChildProcess;
  readonly #waiting = new Map<number, PromiseWithResolvers<unknown>>();
  readonly #exited = Promise.withResolvers<void>();
  port = 0;
  freshPort = 0;
  #asked = 0;

  constructor(child: ChildProcess) {
    this.#child = child;
    child.on("message", (message: Message) => {
      const { resolve, reject } = this.#waiting.get(message.n)!;
      this.#waiting.delete(message.n);
      if (message.error === undefined) resolve(message.result);
      else reject(new Error(message.error));
    });
    child.on("exit", (code, signal) => {
      this.#exited.resolve();
      const error = new Error(`The victim's process ended with ${signal ?? `code ${code}`}`);
      for (const { reject } of this.#waiting.values()) reject(error);
    });
  }

  #ask<T>(method: string, ...args: unknown[]): Promise<T> {
    if (this.#child.exitCode !== null) throw new Error(`The victim's process ended with code ${this.#child.exitCode}`);
    const answer = Promise.withResolvers<unknown>();
    this.#waiting.set(++this.#asked, answer);
    this.#child.send({ n: this.#asked, method, args });
    return answer.promise as Promise<T>;
  }

  ports = () => this.#ask<[number, number]>("ports");
  state = () => this.#ask<State>("state");
  mark = () => this.#ask<void>("mark");
  block = (milliseconds: number) => this.#ask<void>("block", milliseconds);
  drop = (id: number) => this.#ask<void>("drop", id);
  open = () => this.#ask<number>("open");
  say = (count: number) => this.#ask<void>("say", count);
  shut = () => this.#ask<number>("shut");
  collide = (acts: string[]) => this.#ask<string[]>("collide", acts);
  capture = (kind: "connection" | "streams", bytes: number) => this.#ask<Turns>("capture", kind, bytes);

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill();
    await this.#exited.promise;
  }
}

if (import.meta.main) {
  const victim = new LocalVictim(JSON.parse(process.argv.at(-1)!));
  addEventListener("unhandledrejection", (event) => {
    // Keep the process alive: the count is a figure, which must be 0.
    event.preventDefault();
    victim.countUnhandled();
    console.error("Unhandled:", event.reason);
  });
  victim.watch();
  const methods = victim as unknown as Record<string, (...args: unknown[]) => Promise<unknown>>;
  process.on("message", async ({ n, method, args }: Message) => {
    try {
      const result = method === "ports" ? [victim.port, victim.freshPort] : await methods[method]!(...args);
      process.send!({ n, result });
    } catch (error) {
      process.send!({ n, error: `${error}` });
    }
  });
}
