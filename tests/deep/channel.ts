/**
 * Compares the channel with its peers in interleaved rounds, so that load on the machine affects all peers alike.
 *
 * @module
 */

import { peers } from "../../bench/channel_peers.ts";
import { Runner } from "../../bench/channel_runner.ts";
import { fill, type Peer, type Scenario, scenarios } from "../../bench/channel_scenarios.ts";
import { Channel } from "../../channel.ts";
import { shuffle } from "../channel_support.ts";
import { conditions, machine, median, spread, table } from "../stats.ts";
import { report, usedMemory } from "../measured.ts";
import { integer, parse } from "./shared/options.ts";
import { program } from "./shared/program.ts";

/** One line for the list of long tests. */
export const description = "The channel's speed and memory compared with its peers: [--rounds 7]";

const OURS = "ours";
// Runs of a peer per turn. The fastest counts, because load on the machine only makes a run slower.
const RUNS = 3;
// Warm-up, so that the code is compiled before the rounds: limits in runs and in milliseconds.
const WARM_RUNS = 30;
const WARM_ENOUGH = 1000;
const WORTH_LISTING = 0.9;
const MILLION = 1_000_000;
const MAX_BYTES = 10;
const MAX_LEFT = 0.1;
// Timeout for draining a queue, in milliseconds: some peers need quadratic time.
const PATIENCE = 10_000;
const ABORTED = 20_000;
// Maximum ratio to bare promises. A linear search per waiter exceeds it, and so does a listener per waiter on one
// signal.
const MAX_ABORT_COST = 5;

/** Starts a wait that only its signal ends. */
type Wait = (signal: AbortSignal) => Promise<unknown>;

/** Heap bytes per value of a million queued values, and after all of them were received. */
interface Memory {
  queued: number;
  /** Missing after a timeout. */
  drained?: number;
}

/** Runs the comparison; rejects if a value is lost, or if memory or the cost of aborts exceeds its bound. */
export async function run(args: string[]): Promise<void> {
  if (args[0] === "--memory") return await answerMemory(args[1] ?? "");
  const { rounds } = parse(args, { rounds: integer(7, 1) });
  const leftOut: string[] = [];
  const runners = await Runner.startAll((name, why) => leftOut.push(`${name}: all, ${why}`));
  const names = runners.map(({ name }) => name);
  console.log(`${conditions(machine(), rounds)}, V8 ${Deno.version.v8}`);

  const rows: string[][] = [];
  const slower: string[] = [];
  for (const scenario of scenarios) {
    const able = runners.filter((runner) => runner.lacks(scenario) === undefined);
    const times = await measure(scenario, able, rounds);
    const ours = times.get(OURS)!;
    const row = [scenario.name, `${(median(ours) / scenario.count * 1e6).toFixed(0)} ns`];
    for (const name of names.filter((name) => name !== OURS)) {
      const ratios = times.get(name)?.map((time, round) => time / ours[round]!);
      row.push(ratios === undefined ? "" : cell(ratios));
      if (ratios !== undefined && median(ratios) < WORTH_LISTING) slower.push(`${scenario.name}: ${name}`);
    }
    rows.push(row);
  }
  for (const runner of runners) {
    const out = scenarios.filter((scenario) => runner.lacks(scenario) !== undefined);
    if (out.length > 0) {
      leftOut.push(
        `${runner.name}: ${out.map((scenario) => `${scenario.name} (${runner.lacks(scenario)})`).join(", ")}`,
      );
    }
    runner[Symbol.dispose]();
  }

  console.log(table([["scenario", OURS, ...names.filter((name) => name !== OURS)], ...rows]));
  console.log(
    `\n${OURS}: median time of one operation. Other columns: ratio of their time to ours, median and minimum to ` +
      `maximum; above 1 ours is faster, ** marks less than ${WORTH_LISTING}.`,
  );
  for (const what of slower) console.log(`below ${WORTH_LISTING}: ${what}`);
  for (const what of leftOut) console.log(`left out: ${what}`);
  if (!names.includes("@std/async")) console.log("Missing: the comparison with @std/async's Channel.");

  await compareMemory(names);
  await checkAborts();
}

/** Measures every peer; returns its milliseconds, one value for each round. */
async function measure(scenario: Scenario, runners: Runner[], rounds: number): Promise<Map<string, number[]>> {
  const run = async (runner: Runner) => {
    await runner.prepare(scenario, scenario.count);
    return await runner.run();
  };
  for (const runner of runners) {
    let spent = 0;
    for (let i = 0; i < WARM_RUNS && spent < WARM_ENOUGH; i++) spent += await run(runner);
  }
  const times = new Map(runners.map(({ name }) => [name, [] as number[]]));
  for (let round = 0; round < rounds; round++) {
    for (let turn = 0; turn < runners.length; turn++) {
      const runner = runners[(turn + round) % runners.length]!;
      let fastest = Infinity;
      for (let i = 0; i < RUNS; i++) fastest = Math.min(fastest, await run(runner));
      times.get(runner.name)!.push(fastest);
    }
  }
  return times;
}

function cell(ratios: number[]): string {
  const text = spread(ratios, (ratio) => ratio.toFixed(2));
  return median(ratios) < WORTH_LISTING ? `**${text}**` : text;
}

/** Measures the memory of each peer in a process of its own, in which `gc()` is available. */
async function compareMemory(names: string[]): Promise<void> {
  const rows = [["a million integers", "bytes each", "after receiving"]];
  let ours: Memory | undefined;
  for (const name of names) {
    const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: program("channel", "--memory", name),
      stdin: "null",
    }).output();
    if (!success) throw new Error(`${name}: ${new TextDecoder().decode(stderr)}`);
    const memory: Memory = JSON.parse(new TextDecoder().decode(stdout));
    if (name === OURS) ours = memory;
    rows.push([name, memory.queued.toFixed(1), memory.drained?.toFixed(3) ?? `not within ${PATIENCE / 1000} s`]);
  }
  console.log(`\n${table(rows)}`);
  const { queued, drained } = ours!;
  if (!(queued <= MAX_BYTES)) throw new Error(`A queued value needs ${queued} bytes, bound ${MAX_BYTES}`);
  if (!(drained !== undefined && drained <= MAX_LEFT)) {
    throw new Error(`${drained} bytes per value remain after receiving a million values, bound ${MAX_LEFT}`);
  }
}

/** The other process: measures the memory of the queue alone, because small integers need none of their own. */
async function answerMemory(name: string): Promise<void> {
  const peer = await peers[name]!();
  const trial = peer.open(1000);
  fill(peer, trial, 1000);
  await empty(peer, trial, 1000); // warm up: the memory of the code must not count
  const queue = peer.open(MILLION);
  const before = (await usedMemory()).heapUsed;
  fill(peer, queue, MILLION);
  const memory: Memory = { queued: ((await usedMemory()).heapUsed - before) / MILLION };
  if (await empty(peer, queue, MILLION)) memory.drained = ((await usedMemory()).heapUsed - before) / MILLION;
  report(memory);
  peer.close(queue); // keeps the queue alive until here
}

/** Receives all values; returns false after {@linkcode PATIENCE} milliseconds. */
async function empty<Q, R>(peer: Peer<Q, R>, queue: Q, count: number): Promise<boolean> {
  const deadline = performance.now() + PATIENCE;
  let sum = 0;
  for (let i = 0; i < count; i++) {
    if (i % 1000 === 0 && performance.now() > deadline) return false;
    sum += peer.tryReceive === undefined ? peer.read(await peer.receive(queue)) : peer.tryReceive(queue) ?? NaN;
  }
  if (sum !== count * (count + 1) / 2) throw new Error(`lost or changed a value: the sum is ${sum}`);
  return true;
}

/** Aborts waits in random order, with a signal each and with one for all; rejects if the time is not linear. */
async function checkAborts(): Promise<void> {
  const channel = new Channel<number>();
  const received: Wait = (signal) => channel.receive({ signal });
  const bare: Wait = (signal) =>
    new Promise((_, reject) => {
      const abort = () => {
        signal.removeEventListener("abort", abort);
        reject(signal.reason);
      };
      signal.addEventListener("abort", abort);
    });
  let [least, own, shared] = [Infinity, Infinity, Infinity];
  for (let run = 0; run < RUNS; run++) {
    least = Math.min(least, await abortAll(ABORTED, bare));
    own = Math.min(own, await abortAll(ABORTED, received));
    shared = Math.min(shared, await abortAll(1, received));
  }
  const costs = [["a signal each", own / least], ["one signal", shared / least]] as const;
  console.log(`\n${ABORTED} receives aborted in random order, time as a ratio to bare promises with a listener each:`);
  for (const [name, cost] of costs) console.log(`${name}: ${cost.toFixed(2)}`);
  for (const [name, cost] of costs) {
    if (!(cost <= MAX_ABORT_COST)) throw new Error(`Aborts with ${name} cost ${cost}, bound ${MAX_ABORT_COST}`);
  }
}

/** Returns the milliseconds to abort all waits, which share `signals` signals. */
async function abortAll(signals: number, wait: Wait): Promise<number> {
  const controllers = Array.from({ length: signals }, () => new AbortController());
  const waits = Array.from({ length: ABORTED }, (_, i) => wait(controllers[i % signals]!.signal));
  const settled = Promise.allSettled(waits);
  shuffle(controllers);
  const start = performance.now();
  for (const controller of controllers) controller.abort();
  const took = performance.now() - start;
  if ((await settled).some(({ status }) => status === "fulfilled")) throw new Error("An aborted wait was fulfilled");
  return took;
}
