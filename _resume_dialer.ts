/**
 * The client's side of a resumable connection: dials, and dials again when the carrier is lost.
 *
 * @module
 */

import { deferred } from "./_deferred.ts";
import { ResumptionError } from "./errors.ts";
import { ProtocolError } from "./frame.ts";
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
import { clock } from "./_clock.ts";
import { closeQuietly, type Connection } from "./transport.ts";

// Pauses between attempts: they double from the first to the last. Larger: less load on a server that restarts;
// smaller: earlier resumption.
const MIN_PAUSE_MS = 100;
const MAX_PAUSE_MS = 5000;
// Part of a pause that is random, so that clients of one server do not dial all at once.
const JITTER = 0.5;

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
export type Dial = (attempt: { n: number; signal: AbortSignal }) => Promise<Connection>;

/** Keeps a core supplied with carriers. */
export class ResumeDialer {
  readonly core: ResumeCore;
  readonly #dial: Dial;
  readonly #timeout: number;
  readonly #stop = new AbortController();
  #token: Uint8Array | undefined;
  // Ends the wait for the next attempt, or for the loss of the carrier.
  #proceed: (() => void) | undefined;

  /**
   * Starts to dial.
   *
   * @param dial Opens a connection to the server.
   * @param settings Limits.
   * @param onChange Called when the state has changed.
   */
  constructor(dial: Dial, settings: ResumeSettings, onChange: (state: ResumeState, reason: unknown) => void) {
    this.#dial = dial;
    this.#timeout = settings.silence;
    this.core = new ResumeCore(settings, (state, reason) => {
      if (state === "ended") this.#stop.abort(reason);
      this.#proceed?.();
      onChange(state, reason);
    });
    this.#run();
  }

  /** Dials at once, if the connection is suspended. */
  retry(): void {
    if (this.core.state === "suspended") this.#proceed?.();
  }

  async #run(): Promise<void> {
    const { core } = this;
    let pause = MIN_PAUSE_MS;
    for (let n = 0; !core.hasEnded; n++) {
      try {
        await this.#connect(n);
        pause = MIN_PAUSE_MS;
        n = -1;
        while (core.state === "connected") await this.#wait(Infinity);
        continue;
      } catch (error) {
        if (core.hasEnded) return;
        core.lastError = error;
        if (error instanceof ProtocolError || error instanceof RefusedError) return core.end({ error });
      }
      await this.#wait(pause * (1 - Math.random() * JITTER));
      pause = Math.min(pause * 2, MAX_PAUSE_MS);
    }
  }

  /** Waits for a change of the state, for `retry`, or for some milliseconds. */
  async #wait(milliseconds: number): Promise<void> {
    const { promise, resolve } = deferred<void>();
    this.#proceed = resolve;
    const timer = milliseconds === Infinity ? undefined : clock.setTimer(resolve, milliseconds);
    await promise;
    clock.clearTimer(timer);
    this.#proceed = undefined;
  }

  async #connect(n: number): Promise<void> {
    const { core } = this;
    const { signal } = this.#stop;
    const connection = await this.#dial({ n, signal });
    if (signal.aborted) return closeQuietly(connection);
    // The timer closes the connection, so that the greeting fails.
    let isLate = false;
    const timer = clock.setTimer(() => {
      isLate = true;
      closeQuietly(connection);
    }, this.#timeout);
    try {
      const { status, token, received } = await greet(connection, {
        token: this.#token ?? NO_TOKEN,
        received: core.received,
      });
      if (status !== (this.#token === undefined ? ACCEPTED : RESUMED)) throw refusal(status, this.#token !== undefined);
      this.#token = token;
      core.attach(connection, received);
    } catch (error) {
      closeQuietly(connection);
      if (!isLate) throw error;
      throw new DOMException(`The server did not answer the hello within ${this.#timeout} ms`, "TimeoutError");
    } finally {
      clock.clearTimer(timer);
    }
  }
}

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
  for (let at = 0; at < bytes.length;) {
    const count = await connection.read(bytes.subarray(at));
    if (count === null) throw new ResumptionError("The server has ended the connection instead of a reply");
    at += count;
  }
  return decodeReply(bytes);
}

/** Writes all of `bytes`. */
export async function writeAll(connection: Connection, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length;) at += await connection.write(bytes.subarray(at));
}
