/**
 * The server's side of resumable connections: answers hellos, and finds the connection of each token.
 *
 * @module
 */

import { Channel } from "./channel.ts";
import { ResumptionError } from "./errors.ts";
import { connectionOf } from "./_node_stream.ts";
import { readRest, writeAll } from "./_resume_carrier.ts";
import { ResumeCore, type ResumeSettings, type ResumeState } from "./_resume_core.ts";
import {
  ACCEPTED,
  BUSY,
  decodeHello,
  encodeReply,
  FIRST_BYTE,
  type Greeting,
  HELLO_LENGTH,
  isSameToken,
  NO_TOKEN,
  RESUMED,
  type Status,
  TOKEN_LENGTH,
  UNKNOWN,
} from "./_resume_frame.ts";
import { clock } from "./_clock.ts";
import { type Address, closeQuietly, type Connection, type NodeStream } from "./transport.ts";
import { type Listener, pauseAfter } from "./serve.ts";

// Larger: a slow client may still finish; smaller: a silent one holds its socket for less time.
const HELLO_TIMEOUT_MS = 10_000;
// Connections that wait to be accepted, as in `acceptBacklog`. Larger: more memory; smaller: more refusals in a burst.
const MAX_READY = 1024;

/** A resumable connection and its token. */
class Entry {
  readonly token: Uint8Array;
  readonly core: ResumeCore;
  /** Number of hellos with the token: only the latest may continue. */
  hellos = 0;

  constructor(token: Uint8Array, core: ResumeCore) {
    this.token = token;
    this.core = core;
  }
}

/** What `accept` returns or throws. */
type Accepted = { connection: Connection } | { error: unknown };

/** Settings of a listener. */
export interface ResumeListenerSettings extends ResumeSettings {
  /** Maximum number of connections without a carrier. */
  readonly maxSuspended: number;
}

/** Accepts connections: resumable ones, once for all of their carriers, and others unchanged. */
export class ResumeListener {
  readonly #listener: Listener<Connection | NodeStream>;
  readonly #settings: ResumeListenerSettings;
  readonly #wrap: (core: ResumeCore) => Connection;
  readonly #onChange: (state: ResumeState, reason: unknown) => void;
  // By the first four bytes of the token. The whole token is then compared in constant time.
  readonly #entries = new Map<number, Entry[]>();
  // The one that is suspended longest is the first.
  readonly #suspended = new Set<Entry>();
  readonly #ready = new Channel<Accepted>({ capacity: MAX_READY });
  // Connections whose hello is not complete.
  readonly #greeting = new Set<Connection>();
  readonly #stopped = new Channel<void>();
  #isAccepting = false;
  // Whether an error waits for `accept`. Later ones are dropped, so that they take no place of a connection.
  #hasError = false;
  // The error of `accept` after the end.
  #failure: { error: unknown } | undefined;

  /**
   * @param listener The source of connections.
   * @param settings Limits.
   * @param wrap Makes the connection that `accept` returns.
   * @param onChange Called when the state of a connection has changed.
   */
  constructor(
    listener: Listener<Connection | NodeStream>,
    settings: ResumeListenerSettings,
    wrap: (core: ResumeCore) => Connection,
    onChange: (state: ResumeState, reason: unknown) => void,
  ) {
    this.#listener = listener;
    this.#settings = settings;
    this.#wrap = wrap;
    this.#onChange = onChange;
  }

  /** Waits for the next connection. The first call starts to answer hellos. */
  async accept(): Promise<Connection> {
    this.#acceptAll();
    const accepted = await this.#ready.receive().catch((error) => this.#failure ?? { error });
    if ("connection" in accepted) return accepted.connection;
    this.#hasError = false;
    throw accepted.error;
  }

  /** Closes the listener. No connection can be resumed from then on. */
  close(): void {
    if (this.#stopped.closed) return;
    this.#stopped.close();
    for (const { core } of [...this.#suspended]) core.end({ error: new ResumptionError("The listener was closed") });
    for (const connection of this.#greeting) closeQuietly(connection);
    for (const accepted of this.#ready.drain()) if ("connection" in accepted) closeQuietly(accepted.connection);
    this.#listener.close();
  }

  // Goes on without a pending `accept`, also after an error, because connections are resumed in it.
  async #acceptAll(): Promise<void> {
    if (this.#isAccepting) return;
    this.#isAccepting = true;
    for (let pause = 0;;) {
      try {
        this.#greet(connectionOf(await this.#listener.accept()));
        pause = 0;
      } catch (error) {
        const next = pauseAfter(error, pause);
        if (this.#stopped.closed || next === undefined) return this.#fail(error);
        if (!this.#hasError) this.#hasError = this.#ready.trySend({ error });
        if (next > 0) await this.#stopped.receive({ timeout: pause = next }).catch(() => {});
      }
    }
  }

  // Every pending `accept` rejects with the same error.
  #fail(error: unknown): void {
    this.#failure = { error };
    this.#ready.close();
  }

  async #greet(connection: Connection): Promise<void> {
    const bytes = new Uint8Array(HELLO_LENGTH);
    const first = readFirst(connection, bytes);
    let [isHello, isPassed] = [false, false];
    const pass = () => {
      isPassed = true;
      this.#greeting.delete(connection);
      const plain = new PlainConnection(connection, first, bytes);
      if (this.#stopped.closed || !this.#ready.trySend({ connection: plain })) closeQuietly(connection);
    };
    const timer = clock.setTimer(() => {
      // A client of plain smux may be silent at first.
      if (isHello) closeQuietly(connection);
      else pass();
    }, HELLO_TIMEOUT_MS);
    this.#greeting.add(connection);
    try {
      await first.catch(() => {});
      if (isPassed) return;
      if (bytes[0] !== FIRST_BYTE) return pass();
      isHello = true;
      await readRest(connection, bytes, 1, "The client has ended the connection instead of a hello");
      await this.#answer(connection, decodeHello(bytes));
    } catch {
      // A client without a valid hello has no connection to which an error could belong.
      closeQuietly(connection);
    } finally {
      this.#greeting.delete(connection);
      clock.clearTimer(timer);
    }
  }

  async #answer(connection: Connection, { token, received }: Greeting): Promise<void> {
    const reply = (status: Status, token: Uint8Array, count: number) =>
      writeAll(connection, encodeReply(status, { token, received: count }));
    if (!isSameToken(token, NO_TOKEN)) {
      const entry = this.#find(token);
      if (entry !== undefined) return await this.#resume(entry, connection, received);
      await reply(UNKNOWN, NO_TOKEN, 0);
      return closeQuietly(connection);
    }
    if (this.#stopped.closed || this.#ready.size >= MAX_READY) {
      await reply(BUSY, NO_TOKEN, 0);
      return closeQuietly(connection);
    }
    const entry = this.#add();
    const wrapped = this.#wrap(entry.core);
    // The client may have received the reply although its write failed: the connection is then suspended.
    const failure = await reply(ACCEPTED, entry.token, 0).then(() => undefined, (error) => ({ error }));
    // A client that has lost this carrier may have resumed already.
    if (entry.hellos > 0) {
      closeQuietly(connection);
    } else {
      entry.core.attach(connection, received);
      if (failure !== undefined) entry.core.lose(failure.error);
    }
    if (!this.#ready.trySend({ connection: wrapped })) entry.core.close();
  }

  async #resume(entry: Entry, connection: Connection, received: number): Promise<void> {
    const { core, token } = entry;
    // An attempt that the client has given up may arrive after the one that has continued.
    if (received < core.confirmed) return closeQuietly(connection);
    const hello = ++entry.hellos;
    // Nothing may be received from the old carrier once its count is reported.
    core.detach();
    try {
      await writeAll(connection, encodeReply(RESUMED, { token, received: core.greet() }));
    } catch (error) {
      if (hello === entry.hellos) core.lose(error);
      return closeQuietly(connection);
    }
    if (hello !== entry.hellos || core.hasEnded) return closeQuietly(connection);
    core.attach(connection, received);
  }

  #add(): Entry {
    const token = crypto.getRandomValues(new Uint8Array(TOKEN_LENGTH));
    const core = new ResumeCore(this.#settings, (state, reason) => this.#changed(entry, state, reason));
    const entry = new Entry(token, core);
    const key = bucketOf(token);
    this.#entries.set(key, [...this.#entries.get(key) ?? [], entry]);
    return entry;
  }

  #find(token: Uint8Array): Entry | undefined {
    return this.#entries.get(bucketOf(token))?.find((entry) => isSameToken(entry.token, token));
  }

  #changed(entry: Entry, state: ResumeState, reason: unknown): void {
    this.#suspended.delete(entry);
    if (state === "ended") {
      const key = bucketOf(entry.token);
      const others = this.#entries.get(key)!.filter((other) => other !== entry);
      if (others.length > 0) this.#entries.set(key, others);
      else this.#entries.delete(key);
    }
    this.#onChange(state, reason);
    // The callback may have closed it.
    if (state !== "suspended" || entry.core.hasEnded) return;
    this.#suspended.add(entry);
    if (this.#stopped.closed) return entry.core.end({ error: new ResumptionError("The listener was closed") });
    if (this.#suspended.size <= this.#settings.maxSuspended) return;
    const [longest] = this.#suspended;
    const message = `More than ${this.#settings.maxSuspended} connections are suspended`;
    longest!.core.end({ error: new ResumptionError(message) });
  }
}

/** Reads the first byte. Rejects also when `read` throws, so that the user of the connection receives the error. */
async function readFirst(connection: Connection, bytes: Uint8Array): Promise<number | null> {
  return await connection.read(bytes.subarray(0, 1));
}

function bucketOf(token: Uint8Array): number {
  return new DataView(token.buffer, token.byteOffset).getUint32(0);
}

/** A connection without a hello, whose first byte was read. */
class PlainConnection implements Connection {
  readonly #inner: Connection;
  readonly #bytes: Uint8Array;
  #first: Promise<number | null> | undefined;

  constructor(inner: Connection, first: Promise<number | null>, bytes: Uint8Array) {
    this.#inner = inner;
    this.#first = first;
    this.#bytes = bytes;
  }

  get localAddr(): Address | undefined {
    return this.#inner.localAddr;
  }

  get remoteAddr(): Address | undefined {
    return this.#inner.remoteAddr;
  }

  // Not an async function, because an idle connection would keep the memory of its call.
  read(p: Uint8Array): Promise<number | null> {
    const first = this.#first;
    if (first === undefined) return this.#inner.read(p);
    if (p.length === 0) return Promise.resolve(0);
    this.#first = undefined;
    return this.#readFirst(first, p);
  }

  async #readFirst(first: Promise<number | null>, p: Uint8Array): Promise<number | null> {
    const count = await first;
    if (count === 1) p[0] = this.#bytes[0]!;
    return count;
  }

  write(p: Uint8Array): Promise<number> {
    return this.#inner.write(p);
  }

  async closeWrite(): Promise<void> {
    await this.#inner.closeWrite?.();
  }

  close(): void {
    this.#inner.close();
  }

  setNoDelay(on?: boolean): void {
    this.#inner.setNoDelay?.(on);
  }

  ref(): void {
    this.#inner.ref?.();
  }

  unref(): void {
    this.#inner.unref?.();
  }
}
