/** Helpers of several tests: connections, sessions, a peer that sends raw frames, and clocks. */

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

// Measured processes import this module too, so it does not import `@std/assert`.

export const KiB = 1024;
export const MiB = 1024 * KiB;

/** The number of bytes that a session may parse beyond a limit: those of one read of its transport. */
export const READ_BUFFER = MAX_SHARED_READ_BYTES;
/** The maximum size of one of the two write buffers of a session: data, one more frame, and control frames. */
export const WRITE_BUFFER = CONTROL_HIGH_WATER_MARK + HEADER_LENGTH + UPDATE_LENGTH + 3 * HEADER_LENGTH;

/** The address of a free port on the loopback interface. */
export const LOOPBACK = { hostname: "127.0.0.1", port: 0 };

/** A signal of `null`, as code without type checks may pass it. */
export const NO_SIGNAL = { signal: null } as unknown as { signal: AbortSignal };

// A port is returned once, because a test may count on it staying free.
const returnedPorts = new Set<number>();

/** A free port outside the range that systems assign, so that it stays free while tests run in parallel. */
export function freePort(): number {
  for (;;) {
    const port = 10_000 + Math.floor(Math.random() * 22_000);
    try {
      if (returnedPorts.has(port)) continue;
      Deno.listen({ hostname: "0.0.0.0", port }).close();
      returnedPorts.add(port);
      return port;
    } catch (error) {
      if (!(error instanceof Deno.errors.AddrInUse)) throw error;
    }
  }
}

/**
 * Calls `listen` until its port is free, at most a minute. A process that another test starts holds a copy of a
 * listening socket for a moment, even if the socket is closed meanwhile.
 */
export async function listenAgain<T>(listen: () => T): Promise<T> {
  const limit = performance.now() + 60_000;
  for (;;) {
    try {
      return listen();
    } catch (error) {
      const cause = error instanceof Deno.errors.AddrInUse ? error : error instanceof Error && error.cause;
      if (!(cause instanceof Deno.errors.AddrInUse) || performance.now() > limit) throw error;
      await turn();
    }
  }
}

/** Both ends of a TCP connection over loopback. */
export async function tcpPair(): Promise<[Deno.TcpConn, Deno.TcpConn]> {
  using listener = Deno.listen(LOOPBACK);
  return await Promise.all([Deno.connect({ ...LOOPBACK, port: listener.addr.port }), listener.accept()]);
}

/** True if the connection is refused, or was not accepted before the listener closed. */
export async function isRefused(dial: () => Promise<Deno.Conn>): Promise<boolean> {
  try {
    using connection = await dial();
    return await connection.read(new Uint8Array(1)) === null;
  } catch {
    return true;
  }
}

const { yieldToEventLoop, sleep, now } = clock;
// All tests of a file share one clock: each test starts with the original one.
Deno.test.afterEach(() => void Object.assign(clock, { yieldToEventLoop, sleep, now }));

/**
 * Makes yields and sleeps of sessions one turn of the event loop: a connection in memory has no socket to poll, and a
 * longer yield would come after the few turns that a test waits.
 */
function shortenYields(): void {
  clock.yieldToEventLoop = () => setImmediate();
  clock.sleep = (run) => void setImmediate().then(run);
}

/**
 * Stops the clock of sessions until the test ends, unless the test has replaced the clock: whether a session yields
 * must not depend on the speed of the machine.
 */
export function stopTime(): void {
  if (clock.now !== now) return;
  // A whole number, so that differences of times are exact.
  const stopped = Math.ceil(now());
  clock.now = () => stopped;
}

/** Both ends of a connection in memory that holds `capacity` bytes each way; stops the clock until the test ends. */
export function memoryPair(capacity = 64 * 1024): [MemoryConnection, MemoryConnection] {
  shortenYields();
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

/** One end of a connection that consists of two pipes, one for each direction; a subclass defines `close`. */
export abstract class PipedConnection<Direction extends Pick<Connection, "read" | "write"> & { end(): void }>
  implements Connection {
  protected readonly inbound: Direction;
  protected readonly outbound: Direction;
  /** True after `close`. */
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
    this.inbound.fail(new Error("Connection closed locally"));
  }

  /** Breaks the connection in both directions, as a reset does. */
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

/** A frame that a raw peer received. */
export interface RawFrame {
  command: Command;
  id: number;
  /** The payload of a PSH. */
  data: Uint8Array;
  /** The field of a UPD. */
  consumed: number;
  /** The field of a UPD. */
  window: number;
}

/** The far end of a session's transport, which sends and receives single frames. */
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

  /** Sends bytes, passed as such or in hexadecimal. */
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

  /** Returns the next frame, or `null` at the end of the connection. */
  async next(): Promise<RawFrame | null> {
    const p = new Uint8Array(64 * 1024);
    while (this.#frames.length === 0) {
      const count = await this.connection.read(p);
      if (count === null) return null;
      this.#decoder.push(p.subarray(0, count), collector(this.#frames));
    }
    // The data of one frame may arrive in pieces.
    while (this.#frames.length === 1 && !this.#decoder.isBetweenFrames) {
      const count = await this.connection.read(p);
      if (count === null) return null;
      this.#decoder.push(p.subarray(0, count), collector(this.#frames));
    }
    return this.#frames.shift()!;
  }

  /** Returns the next frame with this command and drops the frames before it. */
  async nextOf(command: Command): Promise<RawFrame> {
    for (;;) {
      const frame = await this.next();
      if (frame === null) throw new Error(`The connection ended before a frame with command ${command}`);
      if (frame.command === command) return frame;
    }
  }
}

/** A session, and a raw peer at the far end of its connection. */
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

/** The state of a promise after three turns of the event loop. */
export async function state(promise: Promise<unknown>): Promise<"pending" | "fulfilled" | "rejected"> {
  let found: "pending" | "fulfilled" | "rejected" = "pending";
  promise.then(() => found = "fulfilled", () => found = "rejected");
  await turn();
  return found;
}

/** Counts the listeners on a signal. */
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
  const bytes = new Uint8Array(HEADER_LENGTH + data.length);
  encodeHeader(bytes, 0, version, command, data.length, id);
  bytes.set(data, HEADER_LENGTH);
  return bytes;
}

/** Encodes a UPD. */
export function updateFrame(id: number, consumed: number, window: number): Uint8Array {
  const bytes = new Uint8Array(16);
  encodeUpdate(bytes, 0, id, consumed, window);
  return bytes;
}

/** A sink that appends each decoded frame to `frames`. */
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

/** Reads this number of bytes, or fewer at the end. */
export async function readSome(from: Pick<Connection, "read">, length: number): Promise<Uint8Array<ArrayBuffer>> {
  const p = new Uint8Array(length);
  for (let at = 0; at < length;) {
    const count = await from.read(p.subarray(at));
    if (count === null) return p.slice(0, at);
    at += count;
  }
  return p;
}

/** Reads this number of bytes; rejects if the end comes before. */
export async function readExactly(from: Pick<Connection, "read">, length: number): Promise<Uint8Array<ArrayBuffer>> {
  const p = await readSome(from, length);
  if (p.length < length) throw new Error(`Expected ${length} bytes, received ${p.length} before the end`);
  return p;
}

/** Writes all bytes, in as many calls as it takes. */
export async function writeAll(to: Pick<Connection, "write">, p: Uint8Array): Promise<void> {
  for (let at = 0; at < p.length;) at += await to.write(p.subarray(at));
}

/** The next 32 bits of a pseudorandom sequence; `state` must not be 0. */
export function xorshift(state: number): number {
  state ^= state << 13;
  state ^= state >>> 17;
  return state ^ state << 5;
}

/** Pseudorandom bytes, the same for the same seed. */
export function pattern(length: number, seed = 1): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(length);
  let state = seed >>> 0 || 1;
  for (let at = 0; at < length; at++) bytes[at] = state = xorshift(state);
  return bytes;
}

/** The test certificates: that of the authority, and that of localhost with its key. */
export async function certificates(): Promise<{ ca: string; cert: string; key: string }> {
  const read = (name: string) => Deno.readTextFile(new URL(`fixtures/tls/${name}`, import.meta.url));
  const [ca, cert, key] = await Promise.all([read("ca.pem"), read("localhost.pem"), read("localhost.key")]);
  return { ca, cert, key };
}

/** A text as bytes. */
export const bytes = (text: string): Uint8Array<ArrayBuffer> => new TextEncoder().encode(text);

/** Bytes as a text. */
export const text = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);

/** Reads once and returns the bytes as text, or "(end)". */
export async function readText(from: Pick<Connection, "read">, length = KiB): Promise<string> {
  const p = new Uint8Array(length);
  const count = await from.read(p);
  return count === null ? "(end)" : text(p.subarray(0, count));
}

/** SHA-256, in hexadecimal. */
export async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
}

/** Waits for turns of the event loop, so that everything happens that needs neither time nor a socket. */
export async function turn(times = 3): Promise<void> {
  for (let i = 0; i < times; i++) await setImmediate();
}

/** Lets this many microtasks run; timers and I/O do not. */
export async function microtasks(count = 20): Promise<void> {
  for (let n = 0; n < count; n++) await null;
}

/** Returns a function that calls `run` with a clock whose time changes only through `time.now`. */
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

/** A clock that changes only by `advance` and `freeze`; disposing it restores the real one. */
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
    shortenYields();
  }

  /** The number of timers that are set. */
  get pending(): number {
    return this.#timers.size;
  }

  /** Advances the clock by `milliseconds` and runs the timers that fall due, in order. */
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

  /** Advances the clock without running timers, as in a process that stands still. */
  freeze(milliseconds: number): void {
    this.#now += milliseconds;
  }

  [Symbol.dispose](): void {
    Object.assign(clock, this.#real);
  }
}

/** Sends streams of growing length, which the peer echoes, and checks the hash of each. */
export async function exchangeHashed(session: Session, count: number): Promise<void> {
  await Promise.all(Array.from({ length: count }, async (_, n) => {
    const sent = pattern(Math.round(1.25 ** n), n + 1);
    const stream = await session.openStream();
    const received = readAll(stream);
    await writeAll(stream, sent);
    await stream.closeWrite();
    if (await sha256(await received) !== await sha256(sent)) throw new Error(`Stream ${stream.id} came back changed`);
    await stream.closed;
  }));
}
