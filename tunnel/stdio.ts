/**
 * Forwards stdin and stdout.
 *
 * @module
 */

import { type DuplexConnection, join, type Stream } from "../mod.ts";
import { CountedConnection, type FinishedEvent } from "./accounting.ts";
import { toError } from "./errors.ts";
import type { Tunnel } from "./options.ts";
import { setDeadline } from "./wait.ts";

// Milliseconds to send the final FIN after an error. Larger: tolerates a slower server; smaller: earlier exit.
const FIN_TIMEOUT = 1000;

/**
 * Milliseconds that stdin may pause once the target has ended: a target that has only ended its own direction still
 * receives a file, and a closed one does not keep the process. Larger: slower input still arrives; smaller: earlier exit.
 */
export const MAX_PAUSE = 2000;

/** The used part of `Deno.stdin` and `Deno.stdout`. */
export interface Stdio {
  read(p: Uint8Array): Promise<number | null>;
  write(p: Uint8Array): Promise<number>;
  /** Closes stdout. */
  close(): void;
}

/** Joins stdin and stdout as one connection: it ends when stdin does, or pauses after the target has ended. */
class StdioConnection implements DuplexConnection {
  readonly #stdio: Stdio;
  #hasTargetEnded = false;
  /** Ends the pending read. */
  #endRead: (() => void) | undefined;
  #clear = () => {};

  constructor(stdio: Stdio) {
    this.#stdio = stdio;
  }

  async read(p: Uint8Array): Promise<number | null> {
    const { promise, resolve, reject } = Promise.withResolvers<number | null>();
    this.#stdio.read(p).then(resolve, reject);
    this.#endRead = () => resolve(null);
    if (this.#hasTargetEnded) this.#limitRead();
    try {
      return await promise;
    } finally {
      this.#clear();
      this.#endRead = undefined;
    }
  }

  write(p: Uint8Array): Promise<number> {
    return this.#stdio.write(p);
  }

  closeWrite(): Promise<void> {
    this.#stdio.close();
    this.#hasTargetEnded = true;
    this.#limitRead();
    return Promise.resolve();
  }

  close(): void {}

  #limitRead(): void {
    if (this.#endRead !== undefined) this.#clear = setDeadline(this.#endRead, MAX_PAUSE);
  }
}

/** The figures of stdin and stdout as a forwarded connection. */
export type StdioFigures = Pick<FinishedEvent, "sent" | "received" | "duration" | "error">;

/**
 * Joins stdin and stdout with a stream, then shuts the tunnel down.
 *
 * @param cut Ends the connection on abort; the promise rejects with the reason.
 * @param ended Called with the figures when the connection has ended; not called if the target refuses.
 */
export async function forwardStdio(
  tunnel: Pick<Tunnel, "shutdown">,
  connect: () => Promise<Stream>,
  stdio: Stdio,
  cut: AbortSignal,
  ended: (figures: StdioFigures) => void = () => {},
): Promise<void> {
  let [sent, received, began] = [0, 0, 0];
  const report = (error?: Error) => {
    if (began > 0) ended({ sent, received, duration: Math.round(performance.now() - began), error });
  };
  const counter = {
    countSent: (bytes: number) => void (sent += bytes),
    countReceived: (bytes: number) => void (received += bytes),
  };
  try {
    const stream = await connect();
    began = performance.now();
    await join(stream, new CountedConnection(new StdioConnection(stdio), counter), { signal: cut });
  } catch (error) {
    report(toError(error));
    tunnel.shutdown({ timeout: FIN_TIMEOUT });
    throw error;
  }
  report();
  // Without a timeout: the last bytes may still be in transit.
  tunnel.shutdown();
}
