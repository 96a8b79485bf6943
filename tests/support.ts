/** What several tests use: connections of every kind, and a peer that speaks raw frames. */

import { setImmediate } from "node:timers/promises";
import { concat } from "@std/bytes";
import { clock, type Timer } from "../_clock.ts";
import { CONTROL_HIGH_WATER_MARK } from "../_writer.ts";
import {
  type Command,
  EMPTY_BYTES,
  encodeHeader,
  encodeUpdate,
  FrameDecoder,
  HEADER_LENGTH,
  UPDATE_LENGTH,
  type Version,
} from "../frame.ts";
import { type ClientSessionOptions, type Connection, type ServerSessionOptions, Session } from "../mod.ts";
import { MAX_SHARED_READ_BYTES } from "../_adapt.ts";

// Processes that are measured import this module: it loads no more than they need, so not `@std/assert`.

export const KiB = 1024;
export const MiB = 1024 * KiB;

/** Bytes that a session parses at most beyond a limit: those of one read of its transport. */
export const READ_BUFFER = MAX_SHARED_READ_BYTES;
/** Bytes in one of a session's two write buffers at most: data, one more frame of it, and control frames. */
export const WRITE_BUFFER = CONTROL_HIGH_WATER_MARK + HEADER_LENGTH + UPDATE_LENGTH;

/** A free port of this machine. */
export const LOOPBACK = { hostname: "127.0.0.1", port: 0 };

/** No signal, as some write it: types do not hold everybody. */
export const NO_SIGNAL = { signal: null } as unknown as { signal: AbortSignal };

/** A port that is free, and that no system assigns by itself, so that it stays free while tests run side by side. */
export function freePort(taken: number[] = []): number {
  for (;;) {
    const port = 20_000 + Math.floor(Math.random() * 10_000);
    try {
      if (taken.includes(port)) continue;
      Deno.listen({ hostname: "0.0.0.0", port }).close();
      return port;
    } catch (error) {
      if (!(error instanceof Deno.errors.AddrInUse)) throw error;
    }
  }
}

/** Both ends of a TCP connection over loopback. */
export async function tcpPair(): Promise<[Deno.TcpConn, Deno.TcpConn]> {
  using listener = Deno.listen(LOOPBACK);
  return await Promise.all([Deno.connect({ ...LOOPBACK, port: listener.addr.port }), listener.accept()]);
}

/** Whether nobody answers: the connection is refused, or was waiting when the listener closed. */
export async function isRefused(dial: () => Promise<Deno.Conn>): Promise<boolean> {
  try {
    using connection = await dial();
    return await connection.read(new Uint8Array(1)) === null;
  } catch {
    return true;
  }
}

const { yieldToEventLoop, sleep, now } = clock;
// The clock is one for all tests of a file: a later test must not find what an earlier one made of it.
Deno.test.afterEach(() => void Object.assign(clock, { yieldToEventLoop, sleep, now }));

/**
 * Makes one turn of the event loop of the rests that sessions give others: in memory there is no socket to look at, and on
 * a slow machine what a test expects after a few turns would come later.
 */
function shortenRests(): void {
  clock.yieldToEventLoop = () => setImmediate();
  clock.sleep = (run) => void setImmediate().then(run);
}

/**
 * Stops the time that sessions read until the test ends, unless the test has a clock of its own: how long the machine
 * takes for a step must not decide whether a session gives way in it.
 */
export function stopTime(): void {
  if (clock.now !== now) return;
  // A whole number, or a difference of two times could be a little less than what was added.
  const stopped = Math.ceil(now());
  clock.now = () => stopped;
}

/** Both ends of a connection in memory that holds `capacity` bytes each way; until the test ends, time stands still. */
export function memoryPair(capacity = 64 * 1024): [MemoryConnection, MemoryConnection] {
  shortenRests();
  stopTime();
  return MemoryConnection.pair(capacity);
}

/** One direction of a connection in memory. */
class Pipe {
  readonly #capacity: number;
  #chunks: Uint8Array[] = [];
  #length = 0;
  #isEnded = false;
  #error: Error | undefined;
  #changed = Promise.withResolvers<void>();

  constructor(capacity: number) {
    this.#capacity = capacity;
  }

  async read(p: Uint8Array): Promise<number | null> {
    while (this.#length === 0 && !this.#isEnded && this.#error === undefined) await this.#changed.promise;
    if (this.#length === 0) {
      if (this.#error !== undefined) throw this.#error;
      return null;
    }
    const first = this.#chunks[0]!;
    const count = Math.min(p.length, first.length);
    p.set(first.subarray(0, count));
    if (count === first.length) this.#chunks.shift();
    else this.#chunks[0] = first.subarray(count);
    this.#length -= count;
    this.#change();
    return count;
  }

  async write(p: Uint8Array): Promise<number> {
    while (this.#length >= this.#capacity && this.#error === undefined) await this.#changed.promise;
    if (this.#error !== undefined) throw this.#error;
    if (this.#isEnded) throw new Error("Broken pipe");
    const count = Math.min(p.length, this.#capacity - this.#length);
    this.#chunks.push(p.slice(0, count));
    this.#length += count;
    this.#change();
    return count;
  }

  end(): void {
    this.#isEnded = true;
    this.#change();
  }

  fail(error: Error): void {
    this.#error ??= error;
    this.#change();
  }

  #change(): void {
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }
}

/** One end of a connection that is made of two pipes, one for each direction; how it closes is its own affair. */
export abstract class PipedConnection<Direction extends Pick<Connection, "read" | "write"> & { end(): void }>
  implements Connection {
  protected readonly inbound: Direction;
  protected readonly outbound: Direction;
  /** Whether `close` was called. */
  isClosed = false;

  constructor(inbound: Direction, outbound: Direction) {
    this.inbound = inbound;
    this.outbound = outbound;
  }

  read(p: Uint8Array): Promise<number | null> {
    return this.inbound.read(p);
  }

  write(p: Uint8Array): Promise<number> {
    return this.outbound.write(p);
  }

  closeWrite(): Promise<void> {
    this.outbound.end();
    return Promise.resolve();
  }

  abstract close(): void;
}

/** One end of a connection in memory. */
export class MemoryConnection extends PipedConnection<Pipe> {
  /** Both ends of a connection that holds `capacity` bytes each way. */
  static pair(capacity: number): [MemoryConnection, MemoryConnection] {
    const there = new Pipe(capacity);
    const back = new Pipe(capacity);
    return [new MemoryConnection(back, there), new MemoryConnection(there, back)];
  }

  close(): void {
    if (this.isClosed) throw new Error("Closed twice");
    this.isClosed = true;
    this.outbound.end();
    this.inbound.fail(new Error("Connection closed here"));
  }

  /** Breaks the connection both ways, as a reset does. */
  reset(error = new Error("Connection reset by peer")): void {
    this.outbound.fail(error);
    this.inbound.fail(error);
  }
}

/** A client's and a server's session over a connection in memory. */
export function sessionPair(
  options: ClientSessionOptions & { server?: ServerSessionOptions; capacity?: number } = {},
): { client: Session; server: Session; connections: [MemoryConnection, MemoryConnection] } {
  const { server, capacity, ...rest } = options;
  const connections = memoryPair(capacity);
  return {
    client: Session.client(connections[0], rest),
    server: Session.server(connections[1], server ?? rest),
    connections,
  };
}

/** A frame as a raw peer received it. */
export interface RawFrame {
  command: Command;
  id: number;
  /** Of PSH. */
  data: Uint8Array;
  /** Of UPD. */
  consumed: number;
  /** Of UPD. */
  window: number;
}

/** The far end of a session's transport, speaking frames one by one. */
export class RawPeer {
  readonly connection: Connection;
  readonly version: Version;
  readonly #decoder: FrameDecoder;
  readonly #frames: RawFrame[] = [];

  constructor(connection: Connection, version: Version) {
    this.connection = connection;
    this.version = version;
    this.#decoder = new FrameDecoder(version);
  }

  /** Sends bytes as they are, given as such or in hexadecimal. */
  async bytes(...parts: (string | Uint8Array)[]): Promise<void> {
    const all = concat(parts.map((part) => typeof part === "string" ? Uint8Array.fromHex(part) : part));
    for (let at = 0; at < all.length;) at += await this.connection.write(all.subarray(at));
  }

  /** Sends a frame. */
  send(command: Command, id: number, data: Uint8Array = EMPTY_BYTES): Promise<void> {
    return this.bytes(frame(this.version, command, id, data));
  }

  /** Sends a UPD. */
  update(id: number, consumed: number, window: number): Promise<void> {
    return this.bytes(updateFrame(id, consumed, window));
  }

  /** The next frame, `null` at the end of the connection. */
  async next(): Promise<RawFrame | null> {
    const p = new Uint8Array(64 * 1024);
    while (this.#frames.length === 0) {
      const count = await this.connection.read(p);
      if (count === null) return null;
      this.#decoder.push(p.subarray(0, count), collector(this.#frames));
    }
    // Data of one frame may have come in pieces; wait for all of it.
    while (this.#frames.length === 1 && !this.#decoder.isBetweenFrames) {
      const count = await this.connection.read(p);
      if (count === null) return null;
      this.#decoder.push(p.subarray(0, count), collector(this.#frames));
    }
    return this.#frames.shift()!;
  }

  /** The next frame with this command; others before it are dropped. */
  async nextOf(command: Command): Promise<RawFrame> {
    for (;;) {
      const frame = await this.next();
      if (frame === null) throw new Error(`The connection ended before a frame with command ${command}`);
      if (frame.command === command) return frame;
    }
  }
}

/** A session, and a raw peer at the other end of its connection. */
export function withPeer(
  role: "client" | "server",
  version: Version,
  options: ClientSessionOptions & ServerSessionOptions = {},
  capacity?: number,
): { session: Session; peer: RawPeer; connection: MemoryConnection } {
  const [connection, far] = memoryPair(capacity);
  const session = role === "client"
    ? Session.client(connection, { version, ...options } as ClientSessionOptions)
    : Session.server(connection, { version, ...options });
  return { session, peer: new RawPeer(far, version), connection };
}

/** How a promise stands once everything that can happen has. */
export async function state(promise: Promise<unknown>): Promise<"pending" | "fulfilled" | "rejected"> {
  let found: "pending" | "fulfilled" | "rejected" = "pending";
  promise.then(() => found = "fulfilled", () => found = "rejected");
  await turn();
  return found;
}

/** Counts the listeners that others leave on a signal. */
export function countListeners(signal: AbortSignal): () => number {
  const listeners = new Set<unknown>();
  const { addEventListener, removeEventListener } = signal;
  signal.addEventListener = (...args: Parameters<typeof addEventListener>) => {
    listeners.add(args[1]);
    addEventListener.apply(signal, args);
  };
  signal.removeEventListener = (...args: Parameters<typeof removeEventListener>) => {
    listeners.delete(args[1]);
    removeEventListener.apply(signal, args);
  };
  return () => listeners.size;
}

/** Encodes one frame. */
export function frame(version: Version, command: Command, id: number, data: Uint8Array = EMPTY_BYTES): Uint8Array {
  const bytes = new Uint8Array(8 + data.length);
  encodeHeader(bytes, 0, version, command, data.length, id);
  bytes.set(data, 8);
  return bytes;
}

/** Encodes a UPD. */
export function updateFrame(id: number, consumed: number, window: number): Uint8Array {
  const bytes = new Uint8Array(16);
  encodeUpdate(bytes, 0, id, consumed, window);
  return bytes;
}

/** Puts every frame that is decoded into `frames`. */
export function collector(frames: RawFrame[]) {
  const add = (command: Command, id: number, consumed = 0, window = 0) =>
    void frames.push({ command, id, data: EMPTY_BYTES, consumed, window });
  return {
    begin() {},
    syn: (id: number) => add(0, id),
    fin: (id: number) => add(1, id),
    psh: (id: number) => add(2, id),
    nop: (id: number) => add(3, id),
    upd: (id: number, consumed: number, window: number) => add(4, id, consumed, window),
    data(bytes: Uint8Array, start: number, end: number) {
      const last = frames.at(-1)!;
      last.data = concat([last.data, bytes.subarray(start, end)]);
    },
  };
}

/** Reads to the end of a stream or connection. */
export async function readAll(from: Pick<Connection, "read">): Promise<Uint8Array<ArrayBuffer>> {
  const parts: Uint8Array[] = [];
  const p = new Uint8Array(64 * 1024);
  for (;;) {
    const count = await from.read(p);
    if (count === null) return concat(parts);
    parts.push(p.slice(0, count));
  }
}

/** Reads so many bytes, or fewer if it ends before. */
export async function readSome(from: Pick<Connection, "read">, length: number): Promise<Uint8Array<ArrayBuffer>> {
  const p = new Uint8Array(length);
  for (let at = 0; at < length;) {
    const count = await from.read(p.subarray(at));
    if (count === null) return p.slice(0, at);
    at += count;
  }
  return p;
}

/** Reads so many bytes; rejects if it ends before. */
export async function readExactly(from: Pick<Connection, "read">, length: number): Promise<Uint8Array<ArrayBuffer>> {
  const p = await readSome(from, length);
  if (p.length < length) throw new Error(`The end came after ${p.length} of ${length} bytes`);
  return p;
}

/** Writes all, however little is taken at a time. */
export async function writeAll(to: Pick<Connection, "write">, p: Uint8Array): Promise<void> {
  for (let at = 0; at < p.length;) at += await to.write(p.subarray(at));
}

/** The 32 bits that follow in a sequence which looks like chance; it must not begin with 0. */
export function xorshift(state: number): number {
  state ^= state << 13;
  state ^= state >>> 17;
  return state ^ state << 5;
}

/** Bytes of which no two neighbourhoods are alike, the same for the same seed. */
export function pattern(length: number, seed = 1): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(length);
  let state = seed >>> 0 || 1;
  for (let at = 0; at < length; at++) bytes[at] = state = xorshift(state);
  return bytes;
}

/** The certificates of the tests: the authority's, and the one for localhost with its key. */
export async function certificates(): Promise<{ ca: string; cert: string; key: string }> {
  const read = (name: string) => Deno.readTextFile(new URL(`fixtures/tls/${name}`, import.meta.url));
  const [ca, cert, key] = await Promise.all([read("ca.pem"), read("localhost.pem"), read("localhost.key")]);
  return { ca, cert, key };
}

/** A text as bytes. */
export const bytes = (text: string): Uint8Array<ArrayBuffer> => new TextEncoder().encode(text);

/** Bytes as a text. */
export const text = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);

/** Reads once, and gives the text that came. */
export async function readText(from: Pick<Connection, "read">, length = KiB): Promise<string> {
  const p = new Uint8Array(length);
  const count = await from.read(p);
  return count === null ? "(end)" : text(p.subarray(0, count));
}

/** SHA-256, in hexadecimal. */
export async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
}

/** Lets everything happen that needs no time and no socket. */
export async function turn(times = 3): Promise<void> {
  for (let i = 0; i < times; i++) await setImmediate();
}

/** Lets so many microtasks pass, and nothing else happen. */
export async function microtasks(count = 20): Promise<void> {
  for (let n = 0; n < count; n++) await null;
}

/** Gives a function that runs another in a time that passes only when that says so. */
export function withFakeTime(run: (time: { now: number }) => void): () => void {
  return () => {
    const { now } = clock;
    const time = { now: 1000 };
    clock.now = () => time.now;
    try {
      run(time);
    } finally {
      clock.now = now;
    }
  };
}

/** A clock that stands still until it is told to go on; the real one is back when it is disposed of. */
export class ManualClock implements Disposable {
  readonly #real = { ...clock };
  readonly #timers = new Map<number, { at: number; run: () => void }>();
  #now = 1000;
  #next = 1;

  constructor() {
    clock.now = () => this.#now;
    clock.setTimer = (run, delay) => {
      this.#timers.set(this.#next, { at: this.#now + delay, run });
      return this.#next++ as unknown as Timer;
    };
    clock.clearTimer = (timer) => void this.#timers.delete(timer as unknown as number);
    shortenRests();
  }

  /** Timers that are set. */
  get pending(): number {
    return this.#timers.size;
  }

  /** Goes on by so many milliseconds, and lets happen what is due on the way, in order. */
  async advance(milliseconds: number): Promise<void> {
    const end = this.#now + milliseconds;
    for (;;) {
      await turn();
      let next: number | undefined;
      for (const [timer, { at }] of this.#timers) {
        if (at <= end && (next === undefined || at < this.#timers.get(next)!.at)) next = timer;
      }
      if (next === undefined) break;
      const { at, run } = this.#timers.get(next)!;
      this.#timers.delete(next);
      this.#now = Math.max(this.#now, at);
      run();
    }
    this.#now = end;
    await turn();
  }

  /** Lets time pass in which the process does nothing, not even its timers. */
  freeze(milliseconds: number): void {
    this.#now += milliseconds;
  }

  [Symbol.dispose](): void {
    Object.assign(clock, this.#real);
  }
}
