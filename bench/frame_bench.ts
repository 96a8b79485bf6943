/**
 * Headers and frames, without a session. An iteration is a thousand frames, so its microseconds are nanoseconds per
 * frame; the megabytes in the name divided by its milliseconds are gigabytes per second.
 */

import { concat } from "@std/bytes";
import { encodeHeader, encodeUpdate, FrameDecoder, type FrameSink, HEADER_LENGTH, PSH } from "../frame.ts";

const COUNT = 1000;
const SIZES = { "1 B": 1, "1 KiB": 1024, "32 KiB": 32_768 };
const UPDATE_LENGTH = 16;

const megabytes = (bytes: number) => `${(bytes / 1e6).toPrecision(3)} MB`;
const repeated = (frame: Uint8Array) => concat(Array<Uint8Array>(COUNT).fill(frame));

function encodeFrame(target: Uint8Array, at: number, payload: Uint8Array): void {
  encodeHeader(target, at, 2, PSH, payload.length, 3);
  target.set(payload, at + HEADER_LENGTH);
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

// The size of a session's write buffer, and reused as often.
const target = new Uint8Array(256 * 1024);

Deno.bench(`encode ${COUNT} headers (${megabytes(COUNT * HEADER_LENGTH)})`, { group: "encode", baseline: true }, () => {
  for (let i = 0; i < COUNT; i++) encodeHeader(target, i * HEADER_LENGTH, 2, PSH, 1024, i);
});

Deno.bench(`encode ${COUNT} updates (${megabytes(COUNT * UPDATE_LENGTH)})`, { group: "encode" }, () => {
  for (let i = 0; i < COUNT; i++) encodeUpdate(target, i * UPDATE_LENGTH, i, i, 262_144);
});

for (const [name, size] of Object.entries(SIZES)) {
  const payload = new Uint8Array(size);
  const length = HEADER_LENGTH + size;
  const fit = Math.floor(target.length / length);
  Deno.bench(`encode ${COUNT} frames of ${name}, copied (${megabytes(COUNT * length)})`, { group: "encode" }, () => {
    for (let i = 0; i < COUNT; i++) encodeFrame(target, i % fit * length, payload);
  });
}

const update = new Uint8Array(UPDATE_LENGTH);
encodeUpdate(update, 0, 3, 1, 262_144);
const updates = repeated(update);
Deno.bench(`decode ${COUNT} updates (${megabytes(updates.length)})`, { group: "decode", baseline: true }, () => {
  new FrameDecoder(2).push(updates, sink);
});

for (const [name, size] of Object.entries(SIZES)) {
  const frame = new Uint8Array(HEADER_LENGTH + size);
  encodeFrame(frame, 0, new Uint8Array(size));
  const frames = repeated(frame);
  Deno.bench(`decode ${COUNT} frames of ${name}, in place (${megabytes(frames.length)})`, { group: "decode" }, () => {
    new FrameDecoder(2).push(frames, sink);
  });
  if (size !== 1024) continue;
  Deno.bench(`decode the same, cut every 1000 bytes (${megabytes(frames.length)})`, { group: "decode" }, () => {
    const decoder = new FrameDecoder(2);
    for (let at = 0; at < frames.length; at += 1000) decoder.push(frames.subarray(at, at + 1000), sink);
  });
}
