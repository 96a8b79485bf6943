/** Headers and frames, without any session. */

import { concat } from "@std/bytes";
import { encodeHeader, encodeUpdate, FrameDecoder, type FrameSink, HEADER_LENGTH, PSH } from "../frame.ts";

const COUNT = 1000;
const target = new Uint8Array(64 * 1024);

function frames(length: number): Uint8Array {
  const frame = new Uint8Array(HEADER_LENGTH + length);
  encodeHeader(frame, 0, 2, PSH, length, 3);
  return concat(Array<Uint8Array>(COUNT).fill(frame));
}

function updates(): Uint8Array {
  const frame = new Uint8Array(16);
  encodeUpdate(frame, 0, 3, 1, 262_144);
  return concat(Array<Uint8Array>(COUNT).fill(frame));
}

let seen = 0;
const sink: FrameSink = {
  begin() {},
  syn() {},
  fin() {},
  psh() {},
  nop() {},
  upd() {
    seen++;
  },
  data(_bytes, start, end) {
    seen += end - start;
  },
};

Deno.bench(`encode ${COUNT} headers`, { group: "encode", baseline: true }, () => {
  for (let i = 0; i < COUNT; i++) encodeHeader(target, i * HEADER_LENGTH, 2, PSH, 1024, i);
});

Deno.bench(`encode ${COUNT} updates`, { group: "encode" }, () => {
  for (let i = 0; i < COUNT; i++) encodeUpdate(target, i * 16, i, i, 262_144);
});

for (const [name, bytes] of [["1 B", frames(1)], ["1 KiB", frames(1024)], ["32 KiB", frames(32_768)]] as const) {
  Deno.bench(`decode ${COUNT} frames of ${name}`, { group: "decode", baseline: name === "1 B" }, () => {
    new FrameDecoder(2).push(bytes, sink);
  });
}

const manyUpdates = updates();
Deno.bench(`decode ${COUNT} updates`, { group: "decode" }, () => {
  new FrameDecoder(2).push(manyUpdates, sink);
});

const small = frames(1024);
Deno.bench(`decode ${COUNT} frames of 1 KiB, cut every 1000 bytes`, { group: "decode" }, () => {
  const decoder = new FrameDecoder(2);
  for (let at = 0; at < small.length; at += 1000) decoder.push(small.subarray(at, at + 1000), sink);
});
