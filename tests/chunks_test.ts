/**
 * The queue of received bytes, compared with a plain array, and the buffers that it keeps.
 *
 * @module
 */
import { assert, assertEquals, assertLess } from "@std/assert";
import fc from "fast-check";
import { Buffer } from "node:buffer";
import { ChunkQueue, MIN_VIEW_BYTES } from "../_chunks.ts";
import { ReadBuffer } from "../transport.ts";
import { MAX_READ_BYTES } from "../_adapt.ts";
import { DEFAULTS } from "../options.ts";
import { collectGarbage } from "./garbage.ts";
import { pattern } from "./support.ts";

const KiB = 1024;

/** A read buffer of this size, filled up to `length`. */
function filled(size: number, length = size): ReadBuffer {
  const bytes = new Uint8Array(size);
  bytes.set(pattern(length));
  return new ReadBuffer(bytes);
}

function drain(chunks: ChunkQueue): Uint8Array {
  const p = new Uint8Array(chunks.length);
  assertEquals(chunks.read(p), p.length);
  return p;
}

Deno.test("ChunkQueue returns pushed bytes in order, for any way of pushing and reading, while buffers are reused", () => {
  const size = fc.oneof(fc.integer({ min: 1, max: 40 }), fc.integer({ min: 1, max: 70_000 }));
  const step = fc.oneof(
    fc.record({ kind: fc.constant("push" as const), size, isCopied: fc.boolean() }),
    fc.record({ kind: fc.constant("read" as const), size }),
    fc.constant({ kind: "shift" as const }),
    fc.constant({ kind: "clear" as const }),
  );
  fc.assert(fc.property(fc.array(step, { maxLength: 60 }), fc.boolean(), (steps, isTight) => {
    // With as much in other queues each rest is copied.
    const pool = { wasted: isTight ? 1024 * 1024 * KiB : 0 };
    const others = pool.wasted;
    const chunks = new ChunkQueue(pool);
    let expected: number[] = [];
    let buffer = new ReadBuffer(new Uint8Array(64 * KiB));
    let next = 0;
    for (const step of steps) {
      if (step.kind === "push") {
        // As a link does: a retained buffer stays unchanged, any other is overwritten.
        if (buffer.isRetained) {
          buffer.release();
          buffer = new ReadBuffer(new Uint8Array(64 * KiB));
        }
        const length = Math.min(step.size, buffer.bytes.length);
        const start = buffer.bytes.length - length;
        buffer.bytes.fill(255);
        for (let at = start; at < buffer.bytes.length; at++) expected.push(buffer.bytes[at] = next++ % 251);
        chunks.push(buffer, start, buffer.bytes.length, step.isCopied);
      } else if (step.kind === "read") {
        const p = new Uint8Array(step.size);
        const count = chunks.read(p);
        assertEquals(count, Math.min(step.size, expected.length));
        assertEquals([...p.subarray(0, count)], expected.slice(0, count));
        expected = expected.slice(count);
      } else if (step.kind === "shift") {
        const chunk = chunks.shift();
        assertEquals(chunk === undefined, expected.length === 0);
        const count = chunk?.length ?? 0;
        assertEquals([...chunk ?? []], expected.slice(0, count));
        expected = expected.slice(count);
        // shift() passed ownership, so the bytes may be changed.
        chunk?.fill(254);
      } else {
        assertEquals(chunks.clear(), expected.length);
        expected = [];
      }
      assertEquals(chunks.length, expected.length);
    }
    assertEquals([...drain(chunks)], expected);
    assertEquals(buffer.isRetained, false);
    assertEquals(pool.wasted, others);
  }));
});

Deno.test("ChunkQueue.push() keeps a view of a payload that is most of its buffer, and copies any other", () => {
  const isKept = (size: number, length: number, isCopied = false) => {
    const buffer = filled(size, length);
    const chunks = new ChunkQueue();
    chunks.push(buffer, 0, length, isCopied);
    const { isRetained } = buffer;
    buffer.release();
    assertEquals(drain(chunks), pattern(length));
    return isRetained;
  };
  assert(isKept(MAX_READ_BYTES, MAX_READ_BYTES));
  assert(isKept(MAX_READ_BYTES, DEFAULTS.maxFrameSize));
  assert(!isKept(MAX_READ_BYTES, DEFAULTS.maxFrameSize - KiB));
  assert(!isKept(MAX_READ_BYTES, MAX_READ_BYTES, true));
  assert(isKept(MIN_VIEW_BYTES + 2 * KiB, MIN_VIEW_BYTES));
  assert(!isKept(MIN_VIEW_BYTES - 1, MIN_VIEW_BYTES - 1));
});

Deno.test("ChunkQueue frees a buffer after its last byte was read or dropped and all other references were released", () => {
  for (const end of [drain, (chunks: ChunkQueue) => chunks.clear()]) {
    const buffer = filled(16 * KiB);
    const chunks = new ChunkQueue();
    chunks.push(buffer, 0, 16 * KiB, false);
    chunks.read(new Uint8Array(10 * KiB));
    assert(buffer.isRetained);
    end(chunks);
    assert(!buffer.isRetained);
    assertEquals(buffer.bytes.length, 16 * KiB);
    buffer.release();
    assertEquals(buffer.bytes.length, 0);
  }
});

for (const [name, part] of [["one frame", 60_001], ["small frames", 100]] as const) {
  Deno.test(`ChunkQueue: 300 queues with one unread byte of ${name} keep less than 2 MiB, and no byte is lost`, () => {
    const pool = { wasted: 0 };
    const length = 60_000 + 1;
    const used = () => {
      collectGarbage();
      return Deno.memoryUsage().external;
    };
    const before = used();
    const queues = Array.from({ length: 300 }, () => {
      const buffer = filled(length);
      const chunks = new ChunkQueue(pool);
      for (let at = 0; at < length; at += part) chunks.push(buffer, at, Math.min(length, at + part), false);
      buffer.release();
      assertEquals(chunks.read(new Uint8Array(length - 1)), length - 1);
      return chunks;
    });
    assertLess(used() - before, 2 * 1024 * KiB);
    for (const chunks of queues) assertEquals(drain(chunks), pattern(length).subarray(-1));
    assertEquals(pool.wasted, 0);
  });
}

Deno.test("ChunkQueue.shift() passes ownership of a buffer that is owned, mostly used and not referenced elsewhere", () => {
  const shift = (buffer: ReadBuffer, length: number, isReleased: boolean, skipped = 0) => {
    const chunks = new ChunkQueue();
    chunks.push(buffer, 0, length, false);
    if (isReleased) buffer.release();
    chunks.read(new Uint8Array(skipped));
    return chunks.shift()!.buffer === buffer.bytes.buffer;
  };
  assert(shift(filled(16 * KiB), 16 * KiB, true));
  assert(!shift(filled(16 * KiB), 16 * KiB, false));
  assert(!shift(new ReadBuffer(pattern(16 * KiB), false), 16 * KiB, true));
  assert(!shift(filled(16 * KiB), 16 * KiB, true, 9 * KiB));
});

Deno.test("ChunkQueue.shift() copies the bytes of a Buffer of Node that it does not own", () => {
  const memory = Buffer.alloc(16 * KiB, 1);
  const chunks = new ChunkQueue();
  // A large one is kept as a view.
  chunks.push(new ReadBuffer(memory, false), 0, 16 * KiB, false);
  const chunk = chunks.shift()!;
  assert(chunk.buffer !== memory.buffer);
  memory.fill(2);
  assertEquals(chunk, new Uint8Array(16 * KiB).fill(1));
});
