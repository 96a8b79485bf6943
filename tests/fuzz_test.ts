/**
 * Runs the kept fuzz inputs, and checks that they detect planted faults.
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
  Deno.test(`fuzz: every kept input of the ${name} passes`, async () => {
    const inputs = await read(name);
    assert(inputs.length > 10, `only ${inputs.length} inputs are kept`);
    for (const input of inputs) {
      try {
        await target(input);
      } catch (error) {
        throw new Error(`This input fails: ${input.toHex()}`, { cause: error });
      }
    }
  });
}

/** Asserts that a kept input fails with this message. */
async function find(target: (input: Uint8Array) => Promise<void>, name: string, message: string): Promise<void> {
  const all = async () => {
    for (const input of await read(name)) await target(input);
  };
  await assertRejects(all, Error, message);
}

Deno.test("fuzz: a decoder that loses a byte between two chunks is detected", async () => {
  const losing: typeof decode = (chunks, version) => {
    let left = 3;
    return decode(Array.from(chunks, (chunk) => --left === 0 ? chunk.subarray(1) : chunk), version);
  };
  await find((input) => Promise.resolve().then(() => decoder(input, losing)), "decoder", "cut into pieces");
});

/** A fault of a session, as seen by its user or its peer. */
interface Fault {
  /** Runs when the session is created. */
  start?(): void;
  /** Replaces the connection of the session. */
  connection?(real: Connection): Connection;
  /** Replaces members of the session's streams. */
  stream?(real: Stream): Partial<Stream>;
}

/** Faults, each with the message of the failure that it must cause. */
const FAULTS: { name: string; message: string; fault: Fault }[] = [
  {
    name: "a stream that rejects with an undeclared error",
    message: "An undeclared error",
    fault: { stream: () => ({ read: () => Promise.reject(new TypeError("planted")) }) },
  },
  {
    name: "a stream whose reads never settle when the session ends",
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
    name: "a stream that sends two FINs",
    message: "must not",
    fault: { connection: repeatFins },
  },
  {
    name: "a session that leaves a timer set",
    message: "timers",
    fault: { start: () => void clock.setTimer(() => {}, 10 ** 9) },
  },
  {
    name: "a stream that keeps its unread bytes after close()",
    message: "still holds",
    fault: { stream: () => ({ close() {} }) },
  },
];

/** Wraps a connection so that it sends each FIN at the end of a write twice. */
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

/** Creates sessions with a fault. */
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

/** Wraps an object so that some members are replaced. */
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
  Deno.test(`fuzz: ${name} is detected`, async () => {
    await find((input) => session(input, makeFaulty(fault)), "session", message);
  });
}
