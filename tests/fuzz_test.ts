/**
 * What fuzzing has found to be worth keeping, run again; and proof that fuzzing would find what is wrong.
 *
 * @module
 */

import { assert, assertRejects } from "@std/assert";
import { clock } from "../_clock.ts";
import { FIN, FrameDecoder } from "../frame.ts";
import { type Connection, Session, SessionClosedError, type Stream } from "../mod.ts";
import { decode } from "./decode_helpers.ts";
import { read, TARGETS } from "./fuzz/corpus.ts";
import { decoder } from "./fuzz/decoder.ts";
import { type FuzzedSession, session, type SessionMaker } from "./fuzz/session.ts";
import { collector, frame, type RawFrame, writeAll } from "./support.ts";

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

/** What is wrong with a session, as its user and its peer see it. */
interface Fault {
  /** Runs when the session is made. */
  start?(): void;
  /** What the session gets in the place of its connection. */
  connection?(real: Connection): Connection;
  /** What stands in the place of members of its streams. */
  stream?(real: Stream): Partial<Stream>;
}

/** Faults, each with what shows it. */
const FAULTS: { name: string; message: string; fault: Fault }[] = [
  {
    name: "a stream that throws what is not declared",
    message: "An undeclared error",
    fault: { stream: () => ({ read: () => Promise.reject(new TypeError("planted")) }) },
  },
  {
    name: "a stream that leaves its reads waiting when the session ends",
    message: "never settle",
    fault: {
      stream: (real) => ({
        read: (p, options) =>
          real.read(p, options).catch((error) => {
            if (error instanceof SessionClosedError) return new Promise<never>(() => {});
            throw error;
          }),
      }),
    },
  },
  {
    name: "a stream that ends twice",
    message: "must not",
    fault: { connection: repeatFins },
  },
  {
    name: "a session that leaves its timer behind",
    message: "timers",
    fault: { start: () => void clock.setTimer(() => {}, 10 ** 9) },
  },
  {
    name: "a stream that keeps its unread bytes when it is closed",
    message: "still holds",
    fault: { stream: () => ({ close() {} }) },
  },
];

/** The connection, which sends each FIN that ends a write once more. */
function repeatFins(real: Connection): Connection {
  const frames: RawFrame[] = [];
  const decoder = new FrameDecoder();
  return replace(real, {
    async write(p) {
      const count = await real.write(p);
      decoder.push(p.subarray(0, count), collector(frames));
      const last = frames.at(-1);
      if (last?.command === FIN && decoder.isBetweenFrames) await writeAll(real, frame(decoder.version!, FIN, last.id));
      return count;
    },
  });
}

/** Makes sessions with a fault. */
function makeFaulty({ start = () => {}, connection = (real) => real, stream = () => ({}) }: Fault): SessionMaker {
  const spoil = async (opened: Promise<Stream>) => {
    const real = await opened;
    return replace(real, stream(real));
  };
  const wrap = (session: Session): FuzzedSession => {
    start();
    return replace(session, {
      openStream: (options) => spoil(session.openStream(options)),
      acceptStream: (options) => spoil(session.acceptStream(options)),
    });
  };
  return {
    client: (real, options) => wrap(Session.client(connection(real), options)),
    server: (real, options) => wrap(Session.server(connection(real), options)),
  };
}

/** An object that behaves as another, but for some members. */
function replace<T extends object>(real: T, members: Partial<T>): T {
  return new Proxy(real, {
    get(_, name) {
      if (name in members) return Reflect.get(members, name);
      const value: unknown = Reflect.get(real, name, real);
      return typeof value === "function" ? value.bind(real) : value;
    },
  });
}

for (const { name, message, fault } of FAULTS) {
  Deno.test(`${name} is found`, async () => {
    await find((input) => session(input, makeFaulty(fault)), "session", message);
  });
}
