/**
 * One process of a cell: `end.ts client|server PEER PLAN`. A server prints its port first. Both print a
 * {@linkcode Result} when they have one, and run until they are killed.
 *
 * @module
 */

import { delay } from "@std/async";
import { type DuplexConnection, join } from "../../mod.ts";
import { endWithInput, report, usedMemory } from "../../tests/measured.ts";
import { bare } from "./bare.ts";
import { floor } from "./floor.ts";
import { ours } from "./ours.ts";
import type { Line, Peer, Pipe, Plan, Result } from "./shape.ts";

// Each KiB of a bulk stream begins with its number, so that lost, repeated or misplaced data is detected.
const BLOCK = 1024;
// Senders continue for this long after the receiver has measured, in milliseconds.
const SLACK = 150;
// Loaded on demand, so that a process has only its own peer.
const PEERS: Record<string, () => Peer | Promise<Peer>> = {
  bare: () => bare,
  floor: () => floor,
  ours1: () => ours(1),
  ours2: () => ours(2),
  locked1: () => ours(1, true),
  locked2: () => ours(2, true),
  yamux: async () => (await import("./libp2p.ts")).libp2pYamux,
  mplex: async () => (await import("./libp2p.ts")).libp2pMplex,
  yamuxjs: async () => (await import("./yamux_js.ts")).yamuxJs,
  http2: async () => (await import("./http2.ts")).overHttp2(),
  http2w: async () => (await import("./http2.ts")).overHttp2(16 * 1024 * 1024),
};

const now = () => performance.now();

/** Measures a rate between two snapshots taken by timers, off the hot path. */
class Meter {
  count = 0;
  readonly rate: Promise<number>;
  /** Whether the measured time is over. */
  isOver = false;

  constructor({ warm, time }: Plan) {
    this.rate = (async () => {
      await delay(warm);
      const [count, start] = [this.count, now()];
      await delay(time);
      this.isOver = true;
      return (this.count - count) / (now() - start) * 1000;
    })();
  }
}

/** Waits for a number of microtasks, as an adapter between a program and its streams does. */
async function spend(microtasks: number): Promise<void> {
  for (let n = 0; n < microtasks; n++) await null;
}

async function fill(pipe: Pipe, p: Uint8Array): Promise<void> {
  for (let at = 0; at < p.length;) {
    const count = await pipe.read(at === 0 ? p : p.subarray(at));
    if (count === null) throw new Error(`end of stream after ${at} of ${p.length} bytes`);
    at += count;
  }
}

// The server.

async function echo(pipe: Pipe, size: number): Promise<void> {
  const p = new Uint8Array(size);
  for (;;) {
    const count = await pipe.read(p);
    if (count === null) return pipe.close();
    for (let at = 0; at < count;) at += await pipe.write(at === 0 && count === size ? p : p.subarray(at, count));
  }
}

/** Drains the streams of a cell together. */
class Drain {
  readonly #plan: Plan;
  #meter: Meter | undefined;
  readonly #begun = Promise.withResolvers<Meter>();
  #open: number;

  constructor(plan: Plan) {
    this.#plan = plan;
    this.#open = plan.connections * plan.streams;
  }

  /** Bytes per second; resolves when measured. */
  get rate(): Promise<number> {
    return this.#begun.promise.then((meter) => meter.rate);
  }

  async take(pipe: Pipe): Promise<void> {
    const place: Place = { position: 0 };
    const { web, microtasks } = this.#plan;
    if (web === "pipe") {
      await pipe.readable!.pipeTo(new WritableStream({ write: (chunk) => this.#check(chunk, chunk.length, place) }));
    } else if (web === "locked") {
      const reader = pipe.readable!.getReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        this.#check(value, value.length, place);
      }
    } else {
      const p = new Uint8Array(64 * 1024);
      for (;;) {
        const count = await pipe.read(p);
        if (count === null) break;
        this.#check(p, count, place);
        if (microtasks > 0) await spend(microtasks);
      }
    }
    // A connection closes itself at the end of its web stream.
    if (web === undefined) pipe.close();
    if (--this.#open > 0) return;
    report({ bytes: this.#meter?.count ?? 0, rate: await this.#meter?.rate ?? 0 });
  }

  #begin(): Meter {
    const meter = new Meter(this.#plan);
    this.#begun.resolve(meter);
    return meter;
  }

  #check(p: Uint8Array, count: number, place: Place): void {
    const meter = this.#meter ??= this.#begin();
    meter.count += count;
    const { position } = place;
    for (let at = (BLOCK - position % BLOCK) % BLOCK; at + 4 <= count; at += BLOCK) {
      const word = p[at]! | p[at + 1]! << 8 | p[at + 2]! << 16 | p[at + 3]! << 24;
      const number = word - (position + at) / BLOCK | 0;
      if (number !== (place.first ??= number)) throw new Error(`wrong data at ${position + at}`);
    }
    place.position += count;
  }
}

/** The position in a drained stream, and its first block number. */
interface Place {
  position: number;
  first?: number;
}

/** Checks that each stream of a cell is accepted once, and that every acceptor accepts streams. */
class Tally {
  readonly #plan: Plan;
  readonly #ids = new Set<number>();
  readonly #byAcceptor: number[];
  #start = 0;

  constructor(plan: Plan) {
    this.#plan = plan;
    this.#byAcceptor = Array<number>(plan.acceptors).fill(0);
  }

  take(pipe: Pipe, acceptor: number): void {
    if (this.#ids.size === 0) this.#start = now();
    if (pipe.id === undefined || this.#ids.has(pipe.id)) throw new Error(`stream ${pipe.id} was accepted twice`);
    this.#ids.add(pipe.id);
    this.#byAcceptor[acceptor]!++;
    pipe.close();
    if (this.#ids.size < this.#plan.messages) return;
    if (this.#byAcceptor.includes(0)) throw new Error(`an acceptor received no stream: ${this.#byAcceptor}`);
    const bytes = this.#byAcceptor.reduce((sum, count) => sum + count);
    report({ bytes, rate: bytes / (now() - this.#start) * 1000 });
  }
}

/** Starts a server that sends to each connection until it is closed; returns the port. */
function origin(plan: Plan): number {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  (async () => {
    let first = 0;
    for await (const conn of listener) send(conn, first++ << 22, plan, { stop: false }).catch(() => {});
  })();
  return listener.addr.port;
}

async function server(peer: Peer, plan: Plan): Promise<void> {
  const drain = new Drain(plan);
  const tally = new Tally(plan);
  const originPort = plan.kind === "join" ? origin(plan) : 0;
  const handle = async (pipe: Pipe, acceptor = 0) => {
    try {
      if (plan.kind === "bulk") await drain.take(pipe);
      else if (plan.kind === "join") {
        await join(pipe as DuplexConnection, await Deno.connect({ hostname: "127.0.0.1", port: originPort }));
      } else if (plan.kind === "accept") tally.take(pipe, acceptor);
      else await echo(pipe, plan.size);
    } catch (error) {
      // A client is killed when it has its result, which breaks its connections.
      if (plan.kind === "bulk" || plan.kind === "accept") report({ error: `server: ${error}` });
    }
  };
  console.log(await peer.serve(handle, plan.acceptors));
}

// The client.

/** Opens the plan's streams on each of its sessions. */
async function openAll(peer: Peer, { connections, streams, port }: Plan): Promise<Pipe[]> {
  const pipes: Pipe[] = [];
  for (let n = 0; n < connections; n++) {
    const line = await peer.connect(port);
    for (let m = 0; m < streams; m++) pipes.push(await line.open());
  }
  return pipes;
}

/**
 * Writes until it is stopped. In the loop of an application: no other async function runs between two writes, because
 * the microtasks of one would hide what a tight loop costs. The plan may ask for microtasks.
 */
async function send(pipe: Pipe, first: number, plan: Plan, state: { stop: boolean }): Promise<number> {
  if (plan.web !== undefined) return await sendWeb(pipe, first, plan, state);
  const { size, eager, microtasks } = plan;
  const words = new Uint32Array(size / 4).fill(0x5a5a5a5a);
  const p = new Uint8Array(words.buffer);
  let bytes = 0;
  for (let number = first; !state.stop; bytes += size) {
    for (let at = 0; at < words.length; at += BLOCK / 4) words[at] = number++;
    for (let at = 0; at < size;) {
      const part = at === 0 ? p : p.subarray(at);
      at += (eager ? pipe.tryWrite!(part) : 0) || await pipe.write(part);
    }
    if (microtasks > 0) await spend(microtasks);
  }
  await pipe.closeWrite();
  return bytes;
}

/** Like {@linkcode send}, with web streams and a new chunk for each write. */
async function sendWeb(pipe: Pipe, first: number, { size, web }: Plan, state: { stop: boolean }): Promise<number> {
  const words = new Uint32Array(size / 4).fill(0x5a5a5a5a);
  let bytes = 0;
  let number = first;
  const next = () => {
    for (let at = 0; at < words.length; at += BLOCK / 4) words[at] = number++;
    bytes += size;
    return new Uint8Array(words.buffer.slice(0));
  };
  if (web === "locked") {
    const writer = pipe.writable!.getWriter();
    while (!state.stop) await writer.write(next());
    await writer.close();
    return bytes;
  }
  const source = new ReadableStream<Uint8Array>({
    pull(controller) {
      if (state.stop) controller.close();
      else controller.enqueue(next());
    },
  });
  await source.pipeTo(pipe.writable!);
  return bytes;
}

async function bulk(peer: Peer, plan: Plan): Promise<Result> {
  const pipes = await openAll(peer, plan);
  const state = { stop: false };
  setTimeout(() => state.stop = true, plan.warm + plan.time + SLACK);
  const counts = await Promise.all(pipes.map((pipe, n) => send(pipe, n << 22, plan, state)));
  return { bytes: counts.reduce((sum, count) => sum + count) };
}

/** Drains connections that are joined to streams. */
async function joined(peer: Peer, plan: Plan): Promise<Result> {
  const pipes = await openAll(peer, plan);
  const drain = new Drain(plan);
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  for (const pipe of pipes) {
    const [near, far] = await Promise.all([
      Deno.connect({ hostname: "127.0.0.1", port: listener.addr.port }),
      listener.accept(),
    ]);
    join(far, pipe as DuplexConnection).catch(() => {});
    drain.take(near).catch(() => {});
  }
  return { rate: await drain.rate };
}

/** Sends a message and checks its echo. */
async function exchange(pipe: Pipe, p: Uint32Array, q: Uint32Array): Promise<void> {
  const first = p[0] = p.at(-1)! + 1;
  const bytes = new Uint8Array(p.buffer);
  for (let at = 0; at < bytes.length;) at += await pipe.write(at === 0 ? bytes : bytes.subarray(at));
  await fill(pipe, new Uint8Array(q.buffer));
  if (q[0] !== first || q.at(-1) !== p.at(-1)) throw new Error("wrong data in an echo");
  p[p.length - 1] = first;
}

function messages(size: number, seed: number): [Uint32Array, Uint32Array] {
  return [new Uint32Array(size / 4).fill(seed), new Uint32Array(size / 4)];
}

/** Measures a fixed number of messages on every stream: in a fixed time, sockets starve some of them. */
async function equalEchoes(pipes: Pipe[], { size, messages: count }: Plan): Promise<Result> {
  const works = pipes.map((pipe, n) => ({ pipe, pair: messages(size, n << 16) }));
  const run = (count: number) =>
    Promise.all(works.map(async ({ pipe, pair }) => {
      for (let n = 0; n < count; n++) await exchange(pipe, ...pair);
    }));
  await run(Math.ceil(count / 2));
  const start = now();
  await run(count);
  return { rate: count * pipes.length / (now() - start) * 1000 };
}

async function echoes(peer: Peer, plan: Plan): Promise<Result> {
  const pipes = await openAll(peer, plan);
  if (plan.messages > 0) return await equalEchoes(pipes, plan);
  const meter = new Meter(plan);
  const times: number[] = [];
  await Promise.all(pipes.map(async (pipe, n) => {
    const [p, q] = messages(plan.size, n << 16);
    while (!meter.isOver) {
      const start = now();
      await exchange(pipe, p, q);
      times.push(now() - start);
      meter.count++;
    }
  }));
  // The first quarter is warm-up.
  const sorted = times.slice(times.length / 4).sort((a, b) => a - b);
  const at = (part: number) => sorted[Math.floor(sorted.length * part)] ?? NaN;
  return { rate: await meter.rate, p50: at(0.5), p99: at(0.99) };
}

async function churn(peer: Peer, plan: Plan): Promise<Result> {
  const line = await peer.connect(plan.port);
  const meter = new Meter(plan);
  await Promise.all(Array.from({ length: plan.streams }, async (_, n) => {
    const [p, q] = messages(plan.size, n << 16);
    while (!meter.isOver) {
      const pipe = await line.open();
      await exchange(pipe, p, q);
      pipe.close();
      meter.count++;
    }
  }));
  return { rate: await meter.rate };
}

async function accept(peer: Peer, plan: Plan): Promise<Result> {
  const line = await peer.connect(plan.port);
  const p = new Uint8Array(1);
  let left = plan.messages;
  let ended = 0;
  await Promise.all(Array.from({ length: plan.streams }, async () => {
    while (left-- > 0) {
      const pipe = await line.open();
      if (await pipe.read(p) !== null) throw new Error("received bytes that were never sent");
      pipe.close();
      ended++;
    }
  }));
  return { bytes: ended };
}

async function memory(count: number, work: () => Promise<unknown>): Promise<Result> {
  const before = await usedMemory();
  const kept = await work();
  const after = await usedMemory();
  if (kept === undefined) throw new Error("no object was kept");
  return { resident: (after.rss - before.rss) / count, heap: (after.heapUsed - before.heapUsed) / count };
}

function streams(peer: Peer, plan: Plan): Promise<Result> {
  return memory(plan.streams, async () => {
    const pipes = await openAll(peer, plan);
    for (const pipe of pipes) await exchange(pipe, ...messages(plan.size, 1));
    // An idle stream has a waiting read.
    for (const pipe of pipes) pipe.read(new Uint8Array(plan.size)).catch(() => {});
    return pipes;
  });
}

function sessions(peer: Peer, plan: Plan): Promise<Result> {
  return memory(plan.connections, async () => {
    const kept: [Line, Pipe?][] = [];
    for (let n = 0; n < plan.connections; n++) {
      const line = await peer.connect(plan.port);
      const pipe = await line.open();
      await exchange(pipe, ...messages(plan.size, n));
      if (!peer.streamIsConnection) pipe.close();
      kept.push(peer.streamIsConnection ? [line, pipe] : [line]);
    }
    // Wait until the sessions are idle.
    await delay(1500);
    return kept;
  });
}

const CLIENTS = { bulk, join: joined, echo: echoes, churn, accept, streams, sessions };

const [role, name, json] = Deno.args;
const load = PEERS[name ?? ""];
if (load === undefined || json === undefined) {
  throw new TypeError(`expected: end.ts client|server PEER PLAN, received: ${Deno.args}`);
}
const plan: Plan = JSON.parse(json);
endWithInput();
const peer = await load();
if (role === "server") {
  await server(peer, plan);
} else {
  try {
    report(await CLIENTS[plan.kind](peer, plan));
  } catch (error) {
    report({ error: `client: ${error}` });
  }
}
