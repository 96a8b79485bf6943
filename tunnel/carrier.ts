/**
 * Connects to a server, by a resumable connection where the server supports it.
 *
 * @module
 */

import type { Address, Connection } from "../mod.ts";
import { resumable } from "../resume.ts";
import { PermanentError } from "./errors.ts";
import { onAbort } from "./wait.ts";

/** Callbacks of {@linkcode connectResumable}. */
export interface ResumeReports {
  /** Ends the attempt. It has no effect on a connection. */
  signal: AbortSignal;
  /** Milliseconds without a byte before the connection counts as lost. Default: 10 000. */
  silence?: number | undefined;
  /** The connection to the server was lost; it is being resumed. */
  onSuspended(error: unknown): void;
  /** The connection continues. */
  onResumed(): void;
}

/** A connection to a server. */
export interface Carrier {
  connection: Connection;
  /** Whether it is resumed when it is lost. */
  isResumable: boolean;
  /** Dials at once, if the connection is suspended. */
  retry(): void;
  /** Settles when the connection has ended: one that is closed may still send its last bytes. */
  closed: Promise<void>;
  /** Ends the connection at once. */
  abort(reason: unknown): void;
}

/**
 * Connects to a server that supports resumable connections.
 *
 * @param addr The address, for errors.
 * @param dial Opens a connection to it.
 * @returns The connection; `undefined` if the server speaks smux without resuming.
 * @throws {PermanentError} The server speaks another protocol.
 * @throws {Error} The server cannot be reached, or does not answer.
 */
export function connectResumable(
  addr: string,
  dial: (signal: AbortSignal) => Promise<Connection>,
  { signal, silence, onSuspended, onResumed }: ResumeReports,
): Promise<Carrier | undefined> {
  const { promise, resolve, reject } = Promise.withResolvers<Carrier | undefined>();
  const ending = new AbortController();
  let isSettled = false;
  /** Settles the promise without a connection. */
  const fail = (settle: () => void) => {
    if (isSettled) return;
    isSettled = true;
    settle();
    connection.close();
  };
  const connection = resumable(async (attempt) => {
    if (isSettled) return await dial(attempt.signal);
    try {
      return new FirstCarrier(await dial(attempt.signal), (hasEnded, received, refusal) =>
        fail(() => {
          const error = refusal ?? explain(addr, hasEnded, received);
          if (error === undefined) resolve(undefined);
          else reject(error);
        }));
    } catch (error) {
      fail(() => reject(error));
      throw error;
    }
  }, {
    signal: ending.signal,
    silence,
    onChange(state, reason) {
      if (state === "ended") return fail(() => reject(reason));
      if (state === "suspended") return onSuspended(reason);
      if (isSettled) return onResumed();
      isSettled = true;
      resolve({
        connection,
        isResumable: true,
        retry: () => connection.retry(),
        closed: connection.closed,
        abort: (reason) => ending.abort(reason),
      });
    },
  });
  const off = onAbort(signal, (reason) => fail(() => reject(reason)));
  return promise.finally(off);
}

// First bytes.
const RESUME_REPLY = 0xd5;
const TLS_ALERT = 0x15;
const SMUX_VERSIONS = [1, 2];
// Enough for the first word of a text protocol, in bytes.
const MAX_NAMED = 8;

/** Returns what is wrong with a server that has sent these bytes; `undefined` if it may speak smux. */
function explain(addr: string, hasEnded: boolean, received: Uint8Array): Error | undefined {
  const [byte] = received;
  if (byte === undefined) {
    // A server of plain smux ends the connection at the first byte, because that is not a version of smux.
    return hasEnded ? undefined : new Error(`${addr} accepts connections, but does not answer`);
  }
  if (SMUX_VERSIONS.includes(byte)) return undefined;
  if (byte === RESUME_REPLY) return new Error(`${addr} does not accept the connection: too many are waiting`);
  if (byte === TLS_ALERT) return new PermanentError(`${addr} expects TLS: use tls, or ca for its certificate`);
  const text = String.fromCharCode(...received.subarray(0, MAX_NAMED)).replaceAll(/[^ -~]/g, "?");
  return new PermanentError(`${addr} does not speak smux: its answer begins with "${text}"`);
}

/** Called when the first connection is closed, with the first bytes that were received. */
type OnClose = (hasEnded: boolean, received: Uint8Array, refusal: PermanentError | undefined) => void;

/** The first connection to a server, which keeps the first bytes that were received. */
class FirstCarrier implements Connection {
  readonly #inner: Connection;
  readonly #onClose: OnClose;
  #received: Uint8Array | undefined;
  #hasEnded = false;
  /** Why the server does not accept the client. */
  #refusal: PermanentError | undefined;

  constructor(inner: Connection, onClose: OnClose) {
    this.#inner = inner;
    this.#onClose = onClose;
  }

  get localAddr(): Address | undefined {
    return this.#inner.localAddr;
  }

  get remoteAddr(): Address | undefined {
    return this.#inner.remoteAddr;
  }

  async read(p: Uint8Array): Promise<number | null> {
    if (this.#received !== undefined) return await this.#inner.read(p);
    try {
      const count = await this.#inner.read(p);
      this.#hasEnded = count === null;
      if (count === null || count === 0) return count;
      this.#received = p.slice(0, count);
      if (p[0] === RESUME_REPLY) return count;
    } catch (error) {
      this.#failed(error);
      throw error;
    }
    // Otherwise the rest of a reply would be waited for.
    throw new Error("The server does not speak this protocol");
  }

  async write(p: Uint8Array): Promise<number> {
    try {
      return await this.#inner.write(p);
    } catch (error) {
      this.#failed(error);
      throw error;
    }
  }

  #failed(error: unknown): void {
    this.#hasEnded = true;
    if (error instanceof PermanentError) this.#refusal = error;
  }

  async closeWrite(): Promise<void> {
    await this.#inner.closeWrite?.();
  }

  close(): void {
    this.#inner.close();
    this.#onClose(this.#hasEnded, this.#received ?? new Uint8Array(), this.#refusal);
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
