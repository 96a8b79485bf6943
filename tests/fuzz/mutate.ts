/**
 * Mutates inputs.
 *
 * @module
 */

import { concat } from "@std/bytes";
import { PSH, UPD, UPDATE_LENGTH } from "../../frame.ts";
import { xorshift } from "../support.ts";

/** Longest input, in bytes. */
export const LONGEST = 512;

const BOUNDS = [0, 1, 2, 3, 4, 7, 8, 127, 128, 240, 247, 248, 254, 255];

/** Returns an integer from 0 to below `below`. */
export type Random = (below: number) => number;

/** Creates a generator by xorshift: the same sequence for the same seed. */
export function random(seed: number): Random {
  let state = Math.imul(seed, 0x9e3779b1) >>> 0 || 1;
  return (below) => {
    state = xorshift(state);
    return (state >>> 0) % below;
  };
}

/** Changes an input in a few places; a part may be copied from `other`. */
export function mutate(input: Uint8Array, other: Uint8Array, random: Random): Uint8Array {
  let bytes: Uint8Array = input.slice();
  for (let times = 1 + random(4); times > 0; times--) bytes = change(bytes, other, random);
  return bytes.slice(0, LONGEST);
}

function change(bytes: Uint8Array, other: Uint8Array, random: Random): Uint8Array {
  const at = random(bytes.length + 1);
  const end = Math.min(bytes.length, at + 1 + random(8));
  const insert = (part: Uint8Array) => concat([bytes.subarray(0, at), part, bytes.subarray(at)]);
  switch (random(8)) {
    case 0:
      if (at < bytes.length) bytes[at]! ^= 1 << random(8);
      return bytes;
    case 1:
      if (at < bytes.length) bytes[at] = BOUNDS[random(BOUNDS.length)]!;
      return bytes;
    case 2:
      if (at < bytes.length) bytes[at] = random(256);
      return bytes;
    case 3:
      return concat([bytes.subarray(0, at), bytes.subarray(end)]);
    case 4:
      return insert(bytes.slice(at, end));
    case 5:
      return insert(Uint8Array.from({ length: 1 + random(4) }, () => random(256)));
    case 6:
      return insert(header(random));
    default: {
      const from = random(other.length + 1);
      return insert(other.slice(from, from + 1 + random(64)));
    }
  }
}

/** A frame header, valid or nearly valid: as it is, or behind the session target's step that sends raw bytes. */
function header(random: Random): Uint8Array {
  const command = random(6);
  const length = command === UPD ? UPDATE_LENGTH : command === PSH ? random(16) : random(20) === 0 ? 1 : 0;
  const frame = Uint8Array.of(1 + random(2), command, length, 0, random(8), 0, 0, 0, ...new Uint8Array(length));
  return random(2) === 0 ? frame : Uint8Array.of(5, frame.length, ...frame);
}
