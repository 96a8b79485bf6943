/**
 * The channel beside its peers, in rounds in which each of them has its turn, so that a busy machine is busy for all.
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

/** What it does. */
export const description = "The channel's speed and memory beside its peers, as a table: [--rounds 7]";

const OURS = "ours";
// Runs of a peer in its turn, of which the fastest counts: what makes one slower is the machine.
const RUNS = 3;
// Before the rounds, so that all of it is compiled: so many runs, or so many milliseconds.
const WARM_RUNS = 30;
const WARM_ENOUGH = 1000;
const WORTH_A_WORD = 0.9;
const MILLION = 1_000_000;
const MAX_BYTES = 10;
const MAX_LEFT = 0.1;
// Some peers take a time that grows with its square; no longer than this, in milliseconds.
const PATIENCE = 10_000;
const ABORTED = 20_000;
// A search for each waiter costs ten times the least, a listener for each on one signal a hundred times.
const MAX_ABORT_COST = 5;

/** A wait that only its signal ends. */
type Wait = (signal: AbortSignal) => Promise<unknown>;

/** What a million queued values take of the heap, in bytes each, and what is left of that once they are received. */
interface Memory {
  queued: number;
  /** Absent when it took too long. */
  drained?: number;
}

/** Runs it; rejects when a value is lost or the memory is more than promised. */
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
      if (ratios !== undefined && median(ratios) < WORTH_A_WORD) slower.push(`${scenario.name}: ${name}`);
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
    `\n${OURS}: the median time of one operation. The others: their time in ours, median and least to most; ` +
      `above 1 ours is faster, ** stands for less than ${WORTH_A_WORD}.`,
  );
  for (const what of slower) console.log(`below ${WORTH_A_WORD}: ${what}`);
  for (const what of leftOut) console.log(`left out: ${what}`);
  if (!names.includes("@std/async")) console.log("The figure against @std/async's Channel is missing.");

  await compareMemory(names);
  await checkAborts();
}

/** The milliseconds of every peer, one of each round. */
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
  return median(ratios) < WORTH_A_WORD ? `**${text}**` : text;
}

/** Measures each in a process of its own, which can collect its garbage when told to. */
async function compareMemory(names: string[]): Promise<void> {
  const rows = [["a million integers", "bytes each", "once received"]];
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
  if (!(queued <= MAX_BYTES)) throw new Error(`A queued value takes ${queued} bytes, more than ${MAX_BYTES}`);
  if (!(drained !== undefined && drained <= MAX_LEFT)) {
    throw new Error(`Once received, a million values leave ${drained} bytes each, more than ${MAX_LEFT}`);
  }
}

/** The other process: small integers take no memory of their own, so all there is, is the queue's. */
async function answerMemory(name: string): Promise<void> {
  const peer = await peers[name]!();
  const trial = peer.open(1000);
  fill(peer, trial, 1000);
  await empty(peer, trial, 1000); // so that what the code itself takes is there before
  const queue = peer.open(MILLION);
  const before = (await usedMemory()).heapUsed;
  fill(peer, queue, MILLION);
  const memory: Memory = { queued: ((await usedMemory()).heapUsed - before) / MILLION };
  if (await empty(peer, queue, MILLION)) memory.drained = ((await usedMemory()).heapUsed - before) / MILLION;
  report(memory);
  peer.close(queue); // and so it is held until here
}

/** Whether all could be received in reasonable time. */
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

/** Aborts waits in random order, a signal each and one for all; rejects when the time is not linear. */
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
  console.log(`\n${ABORTED} receives aborted in random order, beside bare promises with a listener each:`);
  for (const [name, cost] of costs) console.log(`${name}: ${cost.toFixed(2)}`);
  for (const [name, cost] of costs) {
    if (!(cost <= MAX_ABORT_COST)) throw new Error(`Aborts with ${name} cost ${cost}, more than ${MAX_ABORT_COST}`);
  }
}

/** How many milliseconds the abort of all waits takes, which share this many signals. */
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
