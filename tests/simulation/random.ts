/**
 * Seeded random numbers: the same seed produces the same sequence.
 *
 * @module
 */

import { xorshift } from "../support.ts";

/** A random number generator by xorshift. */
export class Random {
  #state: number;

  /** @param seed Any integer. */
  constructor(seed: number) {
    // Adjacent seeds must differ from the first number on, and the state must never be 0.
    this.#state = (Math.imul(seed + 1, 0x9e3779b1) ^ 0x5bd1e995) >>> 0 || 1;
    for (let i = 0; i < 8; i++) this.#next();
  }

  #next(): number {
    return this.#state = xorshift(this.#state) >>> 0;
  }

  /** Returns an integer from 0 to below `end`. */
  below(end: number): number {
    return Math.floor(this.#next() / 2 ** 32 * end);
  }

  /** Returns an integer from `least` to `most`, both included. */
  between(least: number, most: number): number {
    return least + this.below(most - least + 1);
  }

  /** Returns an integer from 1 to `most`, skewed towards small ones. */
  skewed(most: number): number {
    return this.between(1, Math.max(1, Math.ceil(most / 2 ** this.below(Math.log2(most) + 1))));
  }

  /** Returns `true` with a probability of 1 in `times`. */
  oneIn(times: number): boolean {
    return this.below(times) === 0;
  }

  /** Returns one of several. */
  pick<T>(choices: readonly [T, ...T[]]): T {
    return choices[this.below(choices.length)]!;
  }
}
