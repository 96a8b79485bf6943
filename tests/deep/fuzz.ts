/**
 * Fuzzes the decoder and whole sessions, guided by code coverage of the core.
 *
 * Inputs that reach new code are kept and mutated. A failing input is saved to a file, with the command that replays
 * it.
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

/** One line for the list of long tests. */
export const description =
  "Fuzzes decoder and session: [--seconds 60] [--seed 1] [--target decoder|session] [--save] [--replay FILE]";

// Inputs between two readings of the coverage. Larger: less overhead; smaller: fewer inputs to run again.
const BATCH = 256;
// Timeout of an input, in milliseconds: longer means a loop that never awaits.
const PATIENCE = 10_000;
// Maximum heap size in bytes; the unread data of a session is far smaller.
const HEAP = 1024 * MiB;

/** Runs the fuzzer; rejects if an input fails. */
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
  // Runs one input and keeps it if it adds coverage to all earlier inputs.
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
  // Coverage is read once per batch. If a batch adds coverage, its inputs run again one by one to find out which did.
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
    if (heapUsed > HEAP) {
      throw new Error(`The heap is ${Math.round(heapUsed / MiB)} MiB after ${inputs} inputs, bound ${HEAP / MiB} MiB`);
    }
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

/** Minimizes a corpus: returns the inputs, shortest first, that add coverage to the previous ones. */
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
  if (!(target in corpus.TARGETS)) {
    throw new TypeError(`Cannot replay ${file}: expected the name of a target, received "${target}"`);
  }
  await corpus.TARGETS[target]!(Uint8Array.fromHex(hex));
  console.log(`${target}: ${hex.length / 2} bytes, no failure`);
}

/** Runs inputs and detects errors, unhandled rejections and endless loops. */
class Catcher {
  // The current input, shared with the watchdog.
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

  /** Runs an input; returns its failure with all causes. */
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
