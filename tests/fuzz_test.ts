/**
 * What fuzzing has found to be worth keeping, run again; and proof that fuzzing would find what is wrong.
 *
 * @module
 */

import { assert, assertRejects } from "@std/assert";
import { clock } from "../clock.ts";
import { SendHalf } from "../_send_half.ts";
import { FrameWriter } from "../_writer.ts";
import { StreamCore } from "../stream.ts";
import { decode } from "./decoding.ts";
import { read, TARGETS } from "./fuzz/corpus.ts";
import { decoder } from "./fuzz/decoder.ts";
import { session } from "./fuzz/session.ts";

for (const [name, target] of Object.entries(TARGETS)) {
  Deno.test(`every kept input of the fuzzed ${name} runs without a failure`, async () => {
    const inputs = await read(name);
    assert(inputs.length > 10, `${inputs.length} inputs are kept`);
    for (const input of inputs) {
      try {
        await target(input);
      } catch (error) {
        throw new Error(`This input fails: ${input.toHex()}`, { cause: error });
      }
    }
  });
}

/** Runs kept inputs until one fails, with the error it has to fail with. */
async function find(target: (input: Uint8Array) => Promise<void>, name: string, message: string): Promise<void> {
  const all = async () => {
    for (const input of await read(name)) await target(input);
  };
  await assertRejects(all, Error, message);
}

Deno.test("a decoder that loses a byte where two pieces meet is found", async () => {
  const losing: typeof decode = (chunks, version) => {
    let left = 3;
    return decode(Array.from(chunks, (chunk) => --left === 0 ? chunk.subarray(1) : chunk), version);
  };
  await find((input) => Promise.resolve().then(() => decoder(input, losing)), "decoder", "cut into pieces");
});

/** Sessions with one method replaced by a wrong one, each with what shows it. */
const PLANTED: { name: string; message: string; plant: () => () => void }[] = [
  {
    name: "a stream that throws what is not declared",
    message: "An undeclared error",
    plant: () =>
      replace(SendHalf.prototype, "update", () => {
        throw new TypeError("planted");
      }),
  },
  {
    name: "a stream that leaves its reads waiting when the session ends",
    message: "never settle",
    plant: () => replace(StreamCore.prototype, "notifyWaiters", () => false),
  },
  {
    name: "a stream that ends twice",
    message: "must not",
    plant: () => {
      const { tryControl } = FrameWriter.prototype;
      return replace(FrameWriter.prototype, "tryControl", function (this: FrameWriter, command, id) {
        tryControl.call(this, command, id);
        return tryControl.call(this, command, id);
      });
    },
  },
  {
    name: "a session that leaves its timer behind",
    message: "timers",
    plant: () => {
      const { announce } = StreamCore.prototype;
      return replace(StreamCore.prototype, "announce", function (this: StreamCore) {
        clock.setTimer(() => {}, 10 ** 9);
        announce.call(this);
      });
    },
  },
  {
    name: "a stream that keeps its unread bytes when it is closed",
    message: "still holds",
    plant: () => replace(StreamCore.prototype, "close", () => {}),
  },
];

/** Replaces a method; gives what puts it back. */
function replace<T extends object, K extends keyof T>(target: T, name: K, other: T[K]): () => void {
  const real = target[name];
  target[name] = other;
  return () => void (target[name] = real);
}

for (const { name, message, plant } of PLANTED) {
  Deno.test(`${name} is found`, async () => {
    const restore = plant();
    try {
      await find(session, "session", message);
    } finally {
      restore();
    }
  });
}
