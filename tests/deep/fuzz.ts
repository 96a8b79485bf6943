/**
 * Fuzzing of the decoder and of whole sessions, guided by which code of the core an input reaches.
 *
 * The inputs that reached something new are kept; new ones are made of them. What fails is saved as a file, with the
 * command that runs it again.
 *
 * @module
 */

import { Worker } from "node:worker_threads";
import { explain, onUnhandled } from "../errors.ts";
import * as corpus from "../fuzz/corpus.ts";
import { Coverage } from "../fuzz/coverage.ts";
import { LONGEST, mutate, random } from "../fuzz/mutate.ts";
import type { Watched } from "../fuzz/watchdog.ts";
import { MiB } from "../support.ts";
import { anyText, flag, integer, oneOf, parse, positive } from "./shared/options.ts";

/** What it does. */
export const description =
  "Fuzzes decoder and session: [--seconds 60] [--seed 1] [--target decoder|session] [--save] [--replay FILE]";

// Inputs between two looks at the coverage, which cost as much as some of them.
const BATCH = 256;
// An input takes some milliseconds at most; so many it takes when it hangs in a loop that never awaits.
const PATIENCE = 10_000;
// What the heap may hold at any time: a session here has at most some tens of MiB unread.
const HEAP = 1024 * MiB;

/** Runs it; rejects when an input failed. */
export async function run(args: string[]): Promise<void> {
  const { seconds, seed, target: targets, save, replay: file } = parse(args, {
    seconds: positive(60),
    seed: integer(1),
    target: oneOf(Object.keys(corpus.TARGETS)),
    save: flag,
    replay: anyText,
  });
  if (file !== undefined) return await replay(file);

  const catcher = new Catcher();
  let crashes = 0;
  for (const target of targets) {
    crashes += await fuzz(target, seconds / targets.length, seed, save, catcher);
  }
  await catcher.end();
  if (crashes > 0) throw new Error(`${crashes} inputs failed`);
}

async function fuzz(target: string, seconds: number, seed: number, save: boolean, catcher: Catcher): Promise<number> {
  using coverage = await Coverage.start();
  const next = random(seed);
  const kept: Uint8Array[] = [];
  const crashes = new Map<string, string>();
  let inputs = 0;
  let newestAt = 0;

  const attempt = async (input: Uint8Array) => {
    inputs++;
    const failure = await catcher.run(target, input);
    if (failure === undefined || crashes.has(failure)) return;
    console.log(`${target}: FAILED: ${failure}`);
    crashes.set(failure, corpus.keepFailure(target, input));
  };
  // Alone, after all that ran before, so that what it adds is its own.
  const judge = async (input: Uint8Array) => {
    await attempt(input);
    if (await coverage.take() === 0) return;
    kept.push(input);
    newestAt = performance.now();
  };

  const started = performance.now();
  const elapsed = () => (performance.now() - started) / 1000;
  for (const input of await corpus.read(target)) await judge(input);
  if (kept.length === 0) await judge(new Uint8Array(1));
  const fromCorpus = kept.length;
  let shownAt = elapsed();
  // What the fuzzer itself finds on the way is one of a batch: which, they are run again to tell.
  const one = () => kept[next(kept.length)]!;
  while (elapsed() < seconds && crashes.size < 10) {
    const batch = Array.from({ length: BATCH }, () => mutate(one(), one(), next));
    const before = coverage.snapshot();
    for (const input of batch) await attempt(input);
    if (await coverage.take() > 0) {
      coverage.restore(before);
      for (const input of batch) await judge(input);
    }
    const { heapUsed } = Deno.memoryUsage();
    if (heapUsed > HEAP) throw new Error(`The heap holds ${Math.round(heapUsed / MiB)} MiB after ${inputs} inputs`);
    if (elapsed() < shownAt + 10) continue;
    shownAt = elapsed();
    console.log(
      `${target}: ${elapsed().toFixed(0)} s, ${inputs} inputs, ${kept.length} kept, ${crashes.size} failures`,
    );
  }

  const shares = coverage.shares.map(({ module, share }) => `${module} ${(share * 100).toFixed(1)} %`);
  const sinceNewest = (performance.now() - newestAt) / 1000;
  console.log(
    `${target}: seed ${seed}, ${inputs} inputs in ${elapsed().toFixed(1)} s, ${
      (inputs / elapsed()).toFixed(0)
    } a second, ` +
      `${crashes.size} failures; ${fromCorpus} inputs from the corpus, ${
        kept.length - fromCorpus
      } more reached new code, ` +
      `the last ${sinceNewest.toFixed(0)} s ago; code reached, of the functions that ran: ${shares.join(", ")}`,
  );
  for (const [failure, command] of crashes) console.log(`  ${failure}\n  again: ${command}`);
  if (save) await corpus.write(target, await smallest(kept, target, catcher));
  return crashes.size;
}

/** Of these inputs, short ones first, those that reach what the ones before do not. */
async function smallest(inputs: Uint8Array[], target: string, catcher: Catcher): Promise<Uint8Array[]> {
  using coverage = await Coverage.start();
  await coverage.take();
  coverage.restore([]);
  const chosen: Uint8Array[] = [];
  for (const input of inputs.toSorted((a, b) => a.length - b.length)) {
    await catcher.run(target, input);
    if (await coverage.take() > 0) chosen.push(input);
  }
  return chosen;
}

async function replay(file: string): Promise<void> {
  const [target = "", hex = ""] = (await Deno.readTextFile(file)).trim().split(" ");
  if (!(target in corpus.TARGETS)) throw new TypeError(`${file} does not begin with the name of a target`);
  await corpus.TARGETS[target]!(Uint8Array.fromHex(hex));
  console.log(`${target}: ${hex.length / 2} bytes, no failure`);
}

/** Runs inputs and catches whatever goes wrong: errors, rejections that nobody handles, and loops without an end. */
class Catcher {
  // The input that runs, where the watchdog sees it.
  readonly #shared = new SharedArrayBuffer(12 + LONGEST);
  readonly #head = new Int32Array(this.#shared, 0, 3);
  readonly #bytes = new Uint8Array(this.#shared, 12);
  readonly #watchdog: Worker;
  #unhandled: unknown;
  readonly #listening = onUnhandled((reason) => this.#unhandled ??= reason);

  constructor() {
    const watched: Watched = { shared: this.#shared, patience: PATIENCE };
    this.#watchdog = new Worker(new URL("../fuzz/watchdog.ts", import.meta.url), { workerData: watched });
  }

  /** Says what failed, with every cause. */
  async run(target: string, input: Uint8Array): Promise<string | undefined> {
    this.#bytes.set(input.subarray(0, LONGEST));
    this.#head[1] = input.length;
    this.#head[2] = Object.keys(corpus.TARGETS).indexOf(target);
    Atomics.add(this.#head, 0, 1);
    try {
      await corpus.TARGETS[target]!(input);
    } catch (error) {
      return explain(error);
    }
    if (this.#unhandled === undefined) return undefined;
    const unhandled = `unhandled: ${explain(this.#unhandled)}`;
    this.#unhandled = undefined;
    return unhandled;
  }

  async end(): Promise<void> {
    this.#listening[Symbol.dispose]();
    await this.#watchdog.terminate();
  }
}
