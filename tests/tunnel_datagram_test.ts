/** Datagrams in the bytes of a stream. */

import { assertEquals, assertRejects } from "@std/assert";
import { concat } from "@std/bytes";
import fc from "fast-check";
import { DatagramReader, encodeDatagram, MAX_DATAGRAM } from "../tunnel/datagram.ts";
import { bytes, pattern } from "./support.ts";

/** Returns a source of bytes that arrive in chunks of these sizes, the last one again and again, and records the reads. */
function source(all: Uint8Array, sizes: number[] = [Infinity]) {
  let at = 0;
  let n = 0;
  const largest = { requested: 0 };
  const read = (p: Uint8Array) => {
    largest.requested = Math.max(largest.requested, p.length);
    if (at === all.length) return Promise.resolve(null);
    const count = Math.min(p.length, all.length - at, sizes[Math.min(n++, sizes.length - 1)]!);
    p.set(all.subarray(at, at + count));
    at += count;
    return Promise.resolve(count);
  };
  return { read, largest };
}

/** Reads all datagrams. */
async function readAll(reader: DatagramReader): Promise<Uint8Array[]> {
  const datagrams: Uint8Array[] = [];
  for (let datagram; (datagram = await reader.read()) !== null;) datagrams.push(datagram.slice());
  return datagrams;
}

Deno.test("encodeDatagram() puts the length in front, little-endian", () => {
  assertEquals(encodeDatagram(bytes("abc")), new Uint8Array([3, 0, 97, 98, 99]));
  assertEquals(encodeDatagram(new Uint8Array(0)), new Uint8Array([0, 0]));
  assertEquals(encodeDatagram(new Uint8Array(258)).subarray(0, 2), new Uint8Array([2, 1]));
  assertEquals(encodeDatagram(new Uint8Array(MAX_DATAGRAM)).subarray(0, 2), new Uint8Array([0xe3, 0xff]));
});

Deno.test("DatagramReader reads what encodeDatagram() wrote, in chunks of any size", async () => {
  const sizes = fc.oneof(fc.nat(10), fc.nat(5000), fc.constantFrom(0, 4093, 4094, 4095, 4096, MAX_DATAGRAM));
  await fc.assert(
    fc.asyncProperty(
      fc.array(sizes, { maxLength: 6 }),
      fc.array(fc.integer({ min: 1, max: 9000 })),
      async (all, chunks) => {
        const datagrams = all.map((size, n) => pattern(size, n));
        const from = source(concat(datagrams.map(encodeDatagram)), chunks.length === 0 ? [Infinity] : chunks);
        assertEquals(await readAll(new DatagramReader(from)), datagrams);
      },
    ),
    // Of the second datagram more arrives with the first than a small buffer holds.
    { numRuns: 300, examples: [[[40_000, 40_000], []]] },
  );
});

Deno.test("DatagramReader rejects a length above the maximum, and before it reads on", async () => {
  for (const [low, high, length] of [[0xe4, 0xff, 65_508], [0xff, 0xff, 65_535]] as const) {
    const from = source(concat([encodeDatagram(bytes("a")), new Uint8Array([low, high])]));
    const reader = new DatagramReader(from);
    assertEquals(await reader.read(), bytes("a"));
    await assertRejects(() => reader.read(), Error, `must be at most 65507, received ${length}`);
  }
});

Deno.test("DatagramReader rejects a stream that ends within a datagram, at every byte", async () => {
  const all = concat([encodeDatagram(bytes("abc")), encodeDatagram(new Uint8Array(0)), encodeDatagram(bytes("de"))]);
  const complete = new Map([[0, 0], [5, 1], [7, 2], [11, 3]]);
  for (let end = 0; end <= all.length; end++) {
    const reading = readAll(new DatagramReader(source(all.subarray(0, end))));
    if (complete.has(end)) assertEquals((await reading).length, complete.get(end), `${end}`);
    else await assertRejects(() => reading, Error, "ended within a datagram", `${end}`);
  }
});

Deno.test("DatagramReader does not allocate what a length announces before it arrives, nor keeps it", async () => {
  const lying = source(new Uint8Array([0xe3, 0xff, 1, 2, 3]));
  await assertRejects(() => new DatagramReader(lying).read(), Error, "ended within a datagram, after 5 of its bytes");
  assertEquals(lying.largest.requested, 4096);
  const large = concat([encodeDatagram(new Uint8Array(MAX_DATAGRAM)), encodeDatagram(bytes("a"))]);
  let last = 0;
  const from = source(large, [1000]);
  const reader = new DatagramReader({
    read(p) {
      last = p.length;
      return from.read(p);
    },
  });
  await reader.read();
  await reader.read();
  assertEquals(await reader.read(), null);
  assertEquals(last <= 4096, true, `${last}`);
});
