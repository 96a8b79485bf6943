/**
 * Two sessions against a model: the bytes of every stream arrive unchanged, in order, once, and then its end.
 *
 * The scheduler of fast-check decides the order of tasks and of the connection's reads and writes. `SESSION_RUNS` is
 * the number of cases; a failure prints the smallest one, with its order.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { concat } from "@std/bytes";
import fc from "fast-check";
import { type Connection, Session, type Stream } from "../mod.ts";
import { type MemoryConnection, memoryPair, pattern } from "./support.ts";

const numRuns = Number(Deno.env.get("SESSION_RUNS") ?? 200);
// In milliseconds. A run takes a few; a longer one has hung.
const LONGEST_RUN = 20_000;

/** The use of one stream; lengths are in bytes. */
interface Plan {
  /** True if the client opens it. */
  isOfClient: boolean;
  /** The writes of its opener, and those of the other end. */
  there: number[];
  back: number[];
  /** The size of each read buffer. */
  buffer: number;
  /** True if the opener closes it after its last write, without reading; the other end then writes nothing. */
  isClosed: boolean;
  /** True if each end writes and closes its writing without waiting in between. */
  isHasty: boolean;
}

const pieces = fc.array(fc.integer({ min: 0, max: 400 }), { maxLength: 5 });
const plan: fc.Arbitrary<Plan> = fc.record({
  isOfClient: fc.boolean(),
  there: pieces,
  back: pieces,
  buffer: fc.integer({ min: 1, max: 300 }),
  isClosed: fc.boolean(),
  isHasty: fc.boolean(),
});
const options = fc.record({
  version: fc.constantFrom(1 as const, 2 as const),
  capacity: fc.integer({ min: 1, max: 500 }),
  maxFrameSize: fc.integer({ min: 1, max: 100 }),
  maxStreamBuffer: fc.integer({ min: 1, max: 300 }),
  maxReceiveBuffer: fc.integer({ min: 300, max: 2000 }),
});

Deno.test("model: two sessions carry every stream unchanged and in order, for any order of tasks", async () => {
  const property = fc.asyncProperty(fc.array(plan, { maxLength: 6 }), options, fc.scheduler(), check);
  await fc.assert(property, { numRuns, timeout: LONGEST_RUN });
});

async function check(
  plans: Plan[],
  { version, capacity, ...limits }: { version: 1 | 2; capacity: number; maxReceiveBuffer: number },
  scheduler: fc.Scheduler,
): Promise<void> {
  const later = (what: string) => scheduler.schedule(Promise.resolve(), what);
  const [near, far] = memoryPair(capacity);
  const client = Session.client(slow(near, () => later("client")), { version, ...limits });
  const server = Session.server(slow(far, () => later("server")), { version, ...limits });

  async function write(stream: Stream, parts: Uint8Array[], isHasty: boolean, ends: boolean): Promise<void> {
    const writing: Promise<number>[] = [];
    for (const part of parts) {
      await later(`write to ${stream.id}`);
      writing.push(stream.write(part));
      if (!isHasty) await writing.at(-1);
    }
    const ending = ends ? stream.closeWrite() : undefined;
    assertEquals(await Promise.all(writing), parts.map((part) => part.length));
    await ending;
  }

  async function read(stream: Stream, buffer: number): Promise<Uint8Array> {
    const parts: Uint8Array[] = [];
    for (;;) {
      await later(`read from ${stream.id}`);
      const p = new Uint8Array(buffer);
      const count = await stream.read(p);
      if (count === null) return concat(parts);
      parts.push(p.subarray(0, count));
    }
  }

  async function open(plan: Plan, index: number): Promise<void> {
    const { isOfClient, there, back, buffer, isClosed, isHasty } = plan;
    await later("open");
    const stream = await (isOfClient ? client : server).openStream();
    const writing = write(stream, [Uint8Array.of(index), ...contents(there)], isHasty, !isClosed);
    if (isClosed) {
      await writing;
      return stream.close();
    }
    const [received] = await Promise.all([read(stream, buffer), writing]);
    assertEquals(received, concat(contents(back)));
    await stream.closed;
  }

  async function answer(session: Session): Promise<void> {
    await later("accept");
    const stream = await session.acceptStream();
    const index = new Uint8Array(1);
    assertEquals(await stream.read(index), 1);
    const { there, back, buffer, isClosed, isHasty } = plans[index[0]!]!;
    const writing = write(stream, isClosed ? [] : contents(back), isHasty, true);
    const [received] = await Promise.all([read(stream, buffer), writing]);
    assertEquals(received, concat(contents(there)));
    await stream.closed;
  }

  await scheduler.waitFor(Promise.all([
    ...plans.map(open),
    ...plans.map(({ isOfClient }) => answer(isOfClient ? server : client)),
  ]));
  for (const session of [client, server]) {
    const { streams, bytesUnread, creditGranted } = session.stats();
    assertEquals({ streams, bytesUnread, creditGranted }, { streams: 0, bytesUnread: 0, creditGranted: 0 });
  }
  await scheduler.waitFor(Promise.all([client.close(), server.closed]));
}

const contents = (lengths: number[]) => lengths.map((length, at) => pattern(length, length + at));

/** A connection whose reads and writes each wait for the scheduler. */
function slow(connection: MemoryConnection, later: () => Promise<void>): Connection {
  return {
    async read(p) {
      const count = await connection.read(p);
      await later();
      return count;
    },
    async write(p) {
      await later();
      return await connection.write(p);
    },
    closeWrite: () => connection.closeWrite(),
    close: () => connection.close(),
  };
}
