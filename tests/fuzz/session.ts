/**
 * The fuzz target of a whole session: the input decides the bytes of the peer, the order of events, the sizes of the
 * transport's reads and writes, and the calls of the application.
 *
 * The first byte chooses the role, the version and the limits. Each byte after it is a step, whose arguments are the
 * bytes that follow. At the end the session is closed and time passes: whatever the input was, every operation must
 * have settled and no resource may be left.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { FIN, FrameDecoder, type FrameSink, MAX_PAYLOAD_LENGTH, NOP, PSH, SYN, UPD } from "../../frame.ts";
import {
  type ClientSessionOptions,
  type Connection,
  ProtocolError,
  type ServerSessionOptions,
  Session,
  SessionClosedError,
  type Stream,
  StreamClosedError,
} from "../../mod.ts";
import { INITIAL_WINDOW, MAX_WINDOW } from "../../_window.ts";
import { DEFAULTS } from "../../options.ts";
import { LINGER_MS } from "../../_deadlines.ts";
import { TIMER_LAG_MS } from "../../_clock.ts";
import { frame, ManualClock, microtasks, pattern, READ_BUFFER, turn, updateFrame, WRITE_BUFFER } from "../support.ts";

const TIMEOUT = 5000;
const DELAYS = [1, 50, 500, LINGER_MS + TIMER_LAG_MS, TIMEOUT, 4 * TIMEOUT];
// A script can use this many streams, the last ones opened or accepted.
const STREAMS = 8;
// An operation settles within a few microtasks for each frame.
const HOPS = 40;

const aroundWindow = [INITIAL_WINDOW - 1, INITIAL_WINDOW, INITIAL_WINDOW + 1];
const payload = pattern(MAX_PAYLOAD_LENGTH);
const broken = new Error("The connection is broken");
const givenUp = new Error("The caller has given up");

/** Creates the session under test. */
export interface SessionMaker {
  client(connection: Connection, options: ClientSessionOptions): FuzzedSession;
  server(connection: Connection, options: ServerSessionOptions): FuzzedSession;
}

/** The members of a session that the target uses. */
export type FuzzedSession = Pick<
  Session,
  "abort" | "acceptStream" | "close" | "closed" | "incoming" | "openStream" | "stats" | "version"
>;

/** Runs one input; throws when the session fails. A test can pass a faulty `maker` to check its detection. */
export async function session(input: Uint8Array, maker: SessionMaker = Session): Promise<void> {
  using clock = new ManualClock();
  const run = new Run(new Script(input), maker);
  await run.steps(clock);
  await run.end(clock);
}

/** Reads the input byte by byte; zeros after its end. */
class Script {
  readonly #input: Uint8Array;
  #at = 0;

  constructor(input: Uint8Array) {
    this.#input = input;
  }

  get isAtEnd(): boolean {
    return this.#at >= this.#input.length;
  }

  next(): number {
    return this.#input[this.#at++] ?? 0;
  }

  bytes(count: number): Uint8Array {
    const start = this.#at;
    this.#at += count;
    return this.#input.slice(start, this.#at);
  }

  /** Reads a number that is small, at a limit of smux, or large. */
  size(): number {
    const byte = this.next();
    return byte < 240
      ? byte
      : [4096, DEFAULTS.maxFrameSize, MAX_PAYLOAD_LENGTH, ...aroundWindow, 2 ** 20, MAX_WINDOW][byte % 8]!;
  }

  /** Like {@linkcode Script.size}, including numbers above 31 bits. */
  word(): number {
    const byte = this.next();
    return byte < 240 ? byte : [
      256,
      DEFAULTS.maxFrameSize,
      MAX_PAYLOAD_LENGTH,
      INITIAL_WINDOW,
      MAX_WINDOW,
      MAX_WINDOW + 1,
      2 ** 32 - 2,
      2 ** 32 - 1,
    ][byte % 8]!;
  }
}

/** One session and the operations on it. */
class Run {
  readonly #script: Script;
  readonly #connection: ScriptedConnection;
  readonly #session: FuzzedSession;
  readonly #isClient: boolean;
  readonly #options: { maxReceiveBuffer: number; maxStreams: number; acceptBacklog: number };
  readonly #streams: Stream[] = [];
  readonly #all = new Set<Stream>();
  #waiting = 0;
  #problem: unknown;
  #signal = new AbortController();

  constructor(script: Script, maker: SessionMaker) {
    this.#script = script;
    const mode = script.next();
    this.#isClient = (mode & 1) === 1;
    this.#connection = new ScriptedConnection((mode & 2) === 2);
    this.#options = {
      maxReceiveBuffer: mode & 4 ? 3000 : DEFAULTS.maxReceiveBuffer,
      maxStreams: mode & 8 ? 3 : DEFAULTS.maxStreams,
      acceptBacklog: mode & 8 ? 2 : DEFAULTS.acceptBacklog,
    };
    const options = {
      ...this.#options,
      ...(mode & 4 && { maxStreamBuffer: 1000, maxFrameSize: 100 }),
      timeout: TIMEOUT,
      keepAliveInterval: mode & 16 ? Infinity : 1000,
      stalledStreamTimeout: mode & 32 ? 2000 : Infinity,
    };
    const version = mode & 64 ? 1 : 2;
    this.#session = this.#isClient
      ? maker.client(this.#connection, { ...options, version })
      : maker.server(this.#connection, { ...options, version: mode & 128 ? "auto" : version });
    this.#watch(this.#session.closed, true);
  }

  /** Executes the script. */
  async steps(clock: ManualClock): Promise<void> {
    while (!this.#script.isAtEnd) {
      const more = this.#step(clock);
      if (more !== undefined) await more;
      this.#check();
    }
  }

  /** Closes the session, advances the clock, and asserts that no operation, timer or byte is left. */
  async end(clock: ManualClock): Promise<void> {
    const session = this.#session;
    this.#watch(session.close());
    await clock.advance(10 * TIMEOUT);
    this.#check();
    assertEquals(this.#waiting, 0, "some operations never settle");
    assert(this.#connection.isClosed, "the connection was not closed");
    assertEquals(clock.pending, 0, "some timers are left");
    for (;;) {
      const next = session.incoming.tryReceive();
      if (next.state !== "ok") break;
      this.#all.add(next.value);
    }
    for (const stream of this.#all) stream.close();
    const { streams, bytesUnread, bytesUnsent, creditGranted } = session.stats();
    assertEquals({ streams, bytesUnread, bytesUnsent, creditGranted }, {
      streams: 0,
      bytesUnread: 0,
      bytesUnsent: 0,
      creditGranted: 0,
    }, "the session still holds something");
    await turn();
    this.#check();
  }

  #step(clock: ManualClock): Promise<void> | undefined {
    const script = this.#script;
    const session = this.#session;
    const step = script.next() % 32;
    switch (step) {
      case 0:
        return microtasks(script.next() % HOPS);
      case 1:
        return clock.advance(DELAYS[script.next() % DELAYS.length]!);
      case 2:
        clock.freeze(DELAYS[script.next() % DELAYS.length]!);
        break;
      case 3:
        this.#connection.readAtMost = script.size() + 1;
        break;
      case 4:
        this.#connection.mayWrite(script.size());
        break;
      case 5:
        this.#connection.arrive(script.bytes(script.next() % 32));
        break;
      case 6:
        if (script.next() % 4 === 0) this.#connection.endReading();
        break;
      case 7:
        if (script.next() % 4 === 0) this.#connection.break();
        break;
      case 8:
        if (script.next() % 8 === 0) session.abort(broken);
        break;
      case 9: {
        const choice = script.next();
        if (choice % 4 === 0) this.#watch(session.close({ drain: choice > 127, timeout: TIMEOUT }));
        break;
      }
      case 10:
        this.#signal.abort(givenUp);
        this.#signal = new AbortController();
        break;
      case 11:
      case 12:
        this.#take(session.openStream(this.#maybeSignal()));
        break;
      case 13:
      case 14:
        this.#take(session.acceptStream(this.#maybeSignal()));
        break;
      default:
        if (step >= 24) this.#connection.arrive(this.#frame());
        else this.#use(step - 15);
    }
    return undefined;
  }

  #use(what: number): void {
    const script = this.#script;
    const stream = this.#streams[script.next() % STREAMS];
    if (stream === undefined) return;
    switch (what) {
      case 0:
      case 1:
        return this.#watch(stream.read(new Uint8Array(Math.min(script.size(), READ_BUFFER)), this.#maybeSignal()));
      case 2:
        return this.#watch(stream.write(payload.subarray(0, script.size()), this.#maybeSignal()));
      case 3:
        return this.#attempt(() => void stream.tryRead(new Uint8Array(Math.min(script.size(), READ_BUFFER) + 1)));
      case 4:
        return this.#attempt(() => void stream.tryWrite(payload.subarray(0, script.size())));
      case 5:
        return this.#watch(stream.closeWrite());
      case 6:
        return stream.close();
      case 7:
        return this.#watch(stream.closed);
      default:
        return this.#useWeb(stream, script.next());
    }
  }

  /** Uses the web streams of a stream, and releases their locks at once. */
  #useWeb(stream: Stream, choice: number): void {
    const { readable, writable } = stream;
    if (choice % 3 === 0) {
      if (!readable.locked) this.#watch(readable.cancel());
    } else if (choice % 3 === 1) {
      if (!writable.locked) this.#watch(choice > 127 ? writable.abort(givenUp) : writable.close(), false, TypeError);
    } else if (!readable.locked) {
      const reader = readable.getReader();
      this.#watch(reader.closed, true, TypeError);
      this.#watch(reader.read().finally(() => reader.releaseLock()));
    }
  }

  /** Builds a frame of the peer, which may violate the protocol. */
  #frame(): Uint8Array {
    const script = this.#script;
    const choice = script.next();
    // PSH is the most frequent.
    const command = ([SYN, FIN, PSH, PSH, NOP, UPD, PSH, SYN] as const)[choice % 8]!;
    const version = choice >= 248 ? 1 : this.#session.version ?? (choice & 8 ? 1 : 2);
    // Ids that the peer may open, small ids of both sides, or large ones.
    const small = script.next();
    const id = small < 128 ? (small % 12) * 2 + (this.#isClient ? 2 : 3) : small < 240 ? small % 16 : 2 ** 32 - small;
    if (command === UPD) {
      const bytes = updateFrame(id, script.word(), script.word());
      bytes[0] = version;
      return bytes;
    }
    const data = command === PSH ? payload.subarray(0, script.size()) : payload.subarray(0, choice === 240 ? 1 : 0);
    return frame(version, command, id, data);
  }

  #maybeSignal(): { signal: AbortSignal } | undefined {
    return this.#script.next() % 4 === 0 ? { signal: this.#signal.signal } : undefined;
  }

  #take(promise: Promise<Stream>): void {
    this.#watch(promise.then((stream) => {
      this.#all.add(stream);
      this.#streams.unshift(stream);
      this.#streams.splice(STREAMS);
    }));
  }

  #attempt(work: () => void): void {
    try {
      work();
    } catch (error) {
      this.#judge(error, false);
    }
  }

  /** Counts a promise until it settles, and checks that it rejects only with a declared error. */
  #watch(promise: Promise<unknown>, mayBeBroken = false, other?: typeof TypeError): void {
    this.#waiting++;
    promise.then(() => this.#waiting--, (error) => {
      this.#waiting--;
      if (other === undefined || !(error instanceof other)) this.#judge(error, mayBeBroken);
    });
  }

  /** Declared: the library's own errors, timeouts, the caller's reason, and the transport's error as a cause. */
  #judge(error: unknown, mayBeBroken: boolean): void {
    if (error === givenUp || error instanceof ProtocolError || error instanceof StreamClosedError) return;
    if (error instanceof DOMException && error.name === "TimeoutError") return;
    if (mayBeBroken && error === broken) return;
    if (error instanceof SessionClosedError) {
      if (error.cause !== undefined) this.#judge(error.cause, true);
      return;
    }
    this.#problem ??= error ?? new Error("A promise rejected with undefined");
  }

  #check(): void {
    if (this.#problem !== undefined) throw new Error("An undeclared error", { cause: this.#problem });
    const { bytesUnread, bytesUnsent, pendingAccept } = this.#session.stats();
    const { maxReceiveBuffer, acceptBacklog } = this.#options;
    assert(bytesUnread >= 0 && bytesUnread <= maxReceiveBuffer + READ_BUFFER, `${bytesUnread} bytes are unread`);
    assert(bytesUnsent <= 2 * WRITE_BUFFER, `${bytesUnsent} bytes are unsent`);
    assert(pendingAccept <= acceptBacklog, `${pendingAccept} streams wait to be accepted`);
    this.#connection.check(this.#isClient, this.#session.version);
  }
}

/** A connection that moves bytes as the script decides, and checks the frames that the session sends. */
class ScriptedConnection implements Connection {
  /** Most bytes that one read returns. */
  readAtMost = Infinity;
  isClosed = false;
  readonly #peer = new Peer();
  readonly #takesAll: boolean;
  #arrived: Uint8Array[] = [];
  #room = 0;
  #hasEnded = false;
  #error: Error | undefined;
  #changed = Promise.withResolvers<void>();

  constructor(takesAll: boolean) {
    this.#takesAll = takesAll;
  }

  async read(p: Uint8Array): Promise<number | null> {
    for (;;) {
      const [first] = this.#arrived;
      if (first !== undefined) {
        const count = Math.min(p.length, first.length, this.readAtMost);
        p.set(first.subarray(0, count));
        if (count === first.length) this.#arrived.shift();
        else this.#arrived[0] = first.subarray(count);
        return count;
      }
      if (this.#error !== undefined) throw this.#error;
      if (this.#hasEnded) return null;
      await this.#changed.promise;
    }
  }

  async write(p: Uint8Array): Promise<number> {
    for (;;) {
      if (this.#error !== undefined) throw this.#error;
      const count = this.#takesAll ? p.length : Math.min(p.length, this.#room);
      if (count > 0) {
        this.#room -= this.#takesAll ? 0 : count;
        this.#peer.take(p.subarray(0, count));
        return count;
      }
      await this.#changed.promise;
    }
  }

  closeWrite(): Promise<void> {
    return Promise.resolve();
  }

  close(): void {
    this.isClosed = true;
    this.#arrived = [];
    this.break();
  }

  /** Adds bytes from the peer. */
  arrive(bytes: Uint8Array): void {
    if (bytes.length === 0 || this.#hasEnded || this.#error !== undefined) return;
    this.#arrived.push(bytes);
    this.#change();
  }

  /** Accepts `count` more bytes of writes. */
  mayWrite(count: number): void {
    this.#room += count;
    this.#change();
  }

  /** Ends the peer's half. */
  endReading(): void {
    this.#hasEnded = true;
    this.#change();
  }

  /** Fails both directions of the connection. */
  break(): void {
    this.#error ??= broken;
    this.#change();
  }

  /** Throws when the session has sent invalid smux frames. */
  check(isClient: boolean, version: number | undefined): void {
    this.#peer.check(isClient, version);
  }

  #change(): void {
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }
}

/** Checks the frames that the session sends. */
class Peer {
  readonly #decoder = new FrameDecoder();
  readonly #opened = new Set<number>();
  readonly #finished = new Set<number>();
  #problem: unknown;
  readonly #sink: FrameSink = {
    begin: () => {},
    syn: (id) => {
      if (this.#opened.has(id)) this.#say(`stream ${id} was opened twice`);
      this.#opened.add(id);
    },
    fin: (id) => {
      if (!this.#opened.has(id)) return;
      if (this.#finished.has(id)) this.#say(`stream ${id} sent two FINs`);
      this.#finished.add(id);
    },
    psh: (id, length) => {
      if (this.#finished.has(id)) this.#say(`data of stream ${id} after its FIN`);
      if (length === 0) this.#say(`an empty PSH on stream ${id}`);
    },
    data: () => {},
    nop: () => {},
    upd: () => {},
  };

  take(bytes: Uint8Array): void {
    try {
      this.#decoder.push(bytes, this.#sink);
    } catch (error) {
      this.#problem ??= error;
    }
  }

  check(isClient: boolean, version: number | undefined): void {
    if (this.#problem !== undefined) {
      throw new Error("The session sent frames that it must not send", { cause: this.#problem });
    }
    const { version: sent } = this.#decoder;
    assert(sent === undefined || sent === version, `version ${version} sent frames of version ${sent}`);
    for (const id of this.#opened) {
      assert(id > 1 && id % 2 === (isClient ? 1 : 0), `a ${isClient ? "client" : "server"} opened stream ${id}`);
    }
  }

  #say(what: string): void {
    this.#problem ??= new Error(what);
  }
}
