/**
 * The fuzz target of the decoder: splitting the input into chunks must not change the result.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { decode, type Decoded } from "../decode_helpers.ts";

/** Runs one input; throws when the decoder fails. A test can pass a faulty `inPieces` to check its detection. */
export function decoder(input: Uint8Array, inPieces: typeof decode = decode): Promise<void> {
  const [mode = 0, step = 0] = input;
  const version = ([undefined, 1, 2] as const)[mode % 3];
  const bytes = input.subarray(2);
  const whole = decode([bytes], version);
  const cut = inPieces(pieces(bytes, step), version);
  assertEquals(account(cut), account(whole), "cut into pieces it decodes differently");
  const { offset } = whole.error ?? { offset: whole.decoder.progress };
  assert(offset <= bytes.length, `position ${offset} of ${bytes.length}`);
  return Promise.resolve();
}

/** Cuts bytes into pieces, some empty; the bytes decide their sizes. */
function* pieces(bytes: Uint8Array, step: number): Generator<Uint8Array> {
  for (let at = 0; at < bytes.length;) {
    const size = 1 + ((bytes[at]! ^ step) + at) % 11;
    yield bytes.subarray(at, at + size);
    if (size === 11) yield bytes.subarray(at, at);
    at += size;
  }
}

function account({ lines, error, decoder }: Decoded): unknown {
  if (error !== undefined) return [lines, error.message, error.offset];
  return [lines, decoder.version, decoder.frames, decoder.frameOffset, decoder.progress, decoder.missing];
}
