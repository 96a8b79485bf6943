/**
 * The client's side of a resumable connection: dials, and dials again when the carrier is lost.
 *
 * @module
 */

import { deferred } from "./_deferred.ts";
import { ResumptionError } from "./errors.ts";
import { ProtocolError } from "./frame.ts";
import { connectionOf } from "./_node_stream.ts";
import { readRest, writeAll } from "./_resume_carrier.ts";
import { ResumeCore, type ResumeSettings, type ResumeState } from "./_resume_core.ts";
import {
  ACCEPTED,
  decodeReply,
  encodeHello,
  type Greeting,
  NO_TOKEN,
  REPLY_LENGTH,
  RESUMED,
  type Status,
  UNKNOWN,
} from "./_resume_frame.ts";
import type { ResumeTimers } from "./_resume_timers.ts";
import { clock } from "./_clock.ts";
import { closeQuietly, type Connection, type NodeStream } from "./transport.ts";

// Pauses between attempts: they double from the first to the last. Larger: less load on a server that restarts;
// smaller: earlier resumption.
const MIN_PAUSE_MS = 100;
const MAX_PAUSE_MS = 5000;
// Part of a pause that is random, so that clients of one server do not dial all at once.
const JITTER = 0.5;
// Milliseconds after which a dial is given up. Larger: a slow network still connects; smaller: a network that has
// recovered is found earlier.
const DIAL_TIMEOUT_MS = 10_000;

/**
 * Opens a connection to the server, for {@linkcode resumable}.
 *
 * `n` is the number of attempts since the last connection. The signal aborts when the result is not needed any more.
 *
 * @example A second server after three attempts
 * ```ts
 * import { type Dial, resumable } from "@sluice/smux/resume";
 * import { assertEquals } from "@std/assert";
 *
 * const tried: string[] = [];
 * const dial: Dial = ({ n }) => {
 *   const hostname = n < 3 ? "one.example" : "two.example";
 *   tried.push(hostname);
 *   return Promise.reject(new Error("in a program: Deno.connect({ hostname, port })"));
 * };
 * const connection = resumable(dial);
 * for (let attempt = 0; attempt < 3; attempt++) {
 *   await new Promise((resolve) => setTimeout(resolve));
 *   connection.retry();
 * }
 * await new Promise((resolve) => setTimeout(resolve));
 * connection.close();
 * assertEquals(tried, ["one.example", "one.example", "one.example", "two.example"]);
 * ```
 */
export type Dial = (attempt: { n: number; signal: AbortSignal }) => Promise<Connection | NodeStream>;

/** Keeps a core supplied with carriers. */
export class ResumeDialer {
  readonly core: ResumeCore;
  readonly #dial: Dial;
  readonly #helloTimeout: number;
  #token: Uint8Array | undefined;
  // The pause before the next attempt.
  #pause = MIN_PAUSE_MS;
  // When the last carrier began, and what had been received by either end then.
  #beganAt = -Infinity;
  #beganWith = 0;
  // Whether the carrier before it was lost too early.
  #wasShort = false;
  // Ends the attempt, or the wait for the next one.
  #proceed: (() => void) | undefined;
  // Whether `retry` was called while there was neither.
  #isRetried = false;

  /**
   * Starts to dial.
   *
   * @param dial Opens a connection to the server.
   * @param settings Limits.
   * @param onChange Called when the state has changed.
   */
  constructor(dial: Dial, settings: ResumeSettings, onChange: (state: ResumeState, reason: unknown) => void) {
    this.#dial = dial;
    this.#helloTimeout = settings.silence === Infinity ? DIAL_TIMEOUT_MS : settings.silence;
    this.core = new ResumeCore(settings, (state, reason) => {
      this.#proceed?.();
      onChange(state, reason);
      // The callback may have closed it.
      if (state === "suspended" && !this.core.hasEnded) this.#run();
    });
    this.#run();
  }

  /** Dials at once, if the connection is suspended. */
  retry(): void {
    if (this.core.state !== "suspended") return;
    if (this.#proceed === undefined) this.#isRetried = true;
    else this.#proceed();
  }

  /** Dials until the connection has a carrier. */
  async #run(): Promise<void> {
    const { core } = this;
    const lived = clock.now() - this.#beganAt;
    const hasProgress = this.#progress > this.#beganWith;
    if (hasProgress || lived >= MAX_PAUSE_MS) this.#pause = MIN_PAUSE_MS;
    // The second carrier in a row that was lost too early counts as an attempt that has failed.
    const isShort = lived < (hasProgress ? MIN_PAUSE_MS : MAX_PAUSE_MS);
    if (isShort && this.#wasShort) await this.#wait();
    this.#wasShort = isShort;
    for (let n = 0; !core.hasEnded; n++) {
      try {
        return await this.#connect(n);
      } catch (error) {
        if (core.hasEnded) return;
        if (error instanceof RetriedError) continue;
        core.lastError = error;
        // The server has forgotten a connection that had ended at both ends.
        if (error instanceof RefusedError && core.isDone) return core.end();
        if (error instanceof ProtocolError || error instanceof RefusedError) return core.end({ error });
      }
      await this.#wait();
    }
  }

  // What both ends have received.
  get #progress(): number {
    return this.core.received + this.core.confirmed;
  }

  /** Waits for the end, for `retry`, or for a pause. The next one is longer. */
  async #wait(): Promise<void> {
    if (this.#isRetried) return;
    const { promise, resolve } = deferred<void>();
    this.#proceed = resolve;
    this.core.timers.startDial(resolve, this.#pause * (1 - Math.random() * JITTER));
    this.#pause = Math.min(this.#pause * 2, MAX_PAUSE_MS);
    await promise;
    this.core.timers.endDial();
    this.#proceed = undefined;
  }

  /** Dials and greets. `#proceed` gives the attempt up. */
  async #connect(n: number): Promise<void> {
    const { core } = this;
    this.#isRetried = false;
    const attempt = new Attempt(core.timers);
    const giveUp = () => attempt.giveUp(new RetriedError("Another attempt was wanted at once"));
    this.#proceed = giveUp;
    try {
      const dialling = this.#open(attempt, n);
      const connection = await attempt.within(DIAL_TIMEOUT_MS, "The dial did not finish", dialling);
      const greeting = greet(connection, { token: this.#token ?? NO_TOKEN, received: core.greet() });
      const reply = await attempt.within(this.#helloTimeout, "The server did not answer the hello", greeting);
      const { status, token, received } = reply;
      if (status !== (this.#token === undefined ? ACCEPTED : RESUMED)) throw refusal(status, this.#token !== undefined);
      this.#proceed = undefined;
      this.#token = token;
      this.#beganAt = clock.now();
      core.attach(connection, received);
      this.#beganWith = this.#progress;
    } catch (error) {
      this.#proceed = undefined;
      attempt.giveUp(error);
      throw error;
    }
  }

  async #open(attempt: Attempt, n: number): Promise<Connection> {
    const { signal } = attempt;
    const connection = attempt.connection = connectionOf(await this.#dial({ n, signal }));
    if (signal.aborted) closeQuietly(connection);
    return connection;
  }
}

/** One dial and its hello. */
class Attempt {
  connection: Connection | undefined;
  readonly #timers: ResumeTimers;
  readonly #controller = new AbortController();
  readonly #givenUp = deferred<never>();

  /** @param timers Has the timer of the attempt. */
  constructor(timers: ResumeTimers) {
    this.#timers = timers;
    this.#givenUp.promise.catch(() => {});
  }

  /** Aborts when the attempt is given up. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Waits for a part of the attempt, for some milliseconds. */
  async within<T>(milliseconds: number, message: string, part: Promise<T>): Promise<T> {
    const expired = () => this.giveUp(new DOMException(`${message} within ${milliseconds} ms`, "TimeoutError"));
    this.#timers.startDial(expired, milliseconds);
    try {
      return await Promise.race([part, this.#givenUp.promise]);
    } finally {
      this.#timers.endDial();
    }
  }

  /** Ends the attempt with an error. A connection that is dialled later is closed, too. */
  giveUp(error: unknown): void {
    this.#controller.abort(error);
    this.#givenUp.reject(error);
    if (this.connection !== undefined) closeQuietly(this.connection);
  }
}

/** An attempt was given up for the next one. */
class RetriedError extends ResumptionError {}

/** The server has refused for good. */
class RefusedError extends ResumptionError {}

function refusal(status: Status, isKnown: boolean): Error {
  if (status === UNKNOWN) return new RefusedError("The server does not know the connection any more");
  if (status === ACCEPTED || status === RESUMED) {
    const message = `Expected the connection to be ${isKnown ? "resumed" : "accepted"}, received status ${status}`;
    return new RefusedError(message);
  }
  return new ResumptionError("The server is busy");
}

/** Sends a hello, and returns the reply. */
async function greet(connection: Connection, hello: Greeting): Promise<ReturnType<typeof decodeReply>> {
  await writeAll(connection, encodeHello(hello));
  const bytes = new Uint8Array(REPLY_LENGTH);
  await readRest(connection, bytes, 0, "The server has ended the connection instead of a reply");
  return decodeReply(bytes);
}
