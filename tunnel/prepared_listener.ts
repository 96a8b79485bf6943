/**
 * Accepts connections that are prepared first, each on its own: one that is slow does not delay the others.
 *
 * @module
 */

import { Channel, connections, type Listener } from "../mod.ts";
import { toError, wrapError } from "./errors.ts";
import { HandshakeLimit } from "./handshake_limit.ts";
import type { Listening, Socket } from "./socket.ts";

/**
 * Prepares a connection; returns `undefined` for one that it has refused and closed.
 *
 * @param signal Aborts when the listener is closed.
 */
type Prepare = (socket: Socket, signal: AbortSignal) => Promise<Socket | undefined>;

/** A listener of prepared connections. */
export class PreparedListener implements Listener<Socket> {
  /** Fulfils when it has stopped and no connection is being prepared. */
  readonly ended: Promise<void>;
  readonly #prepare: Prepare;
  readonly #report: (error: Error) => void;
  readonly #stopping = new AbortController();
  readonly #ready = new Channel<Socket>();
  readonly #pending: HandshakeLimit;
  readonly #passing = new Set<Promise<void>>();

  /** @param prepare Called with each connection. When it rejects, the connection is closed, and the error is reported. */
  constructor(listening: Listening, prepare: Prepare, report: (error: Error) => void) {
    this.#prepare = prepare;
    this.#report = report;
    this.#pending = new HandshakeLimit(report);
    this.ended = this.#run(listening);
  }

  async accept(): Promise<Socket> {
    try {
      return await this.#ready.receive();
    } catch {
      throw new Deno.errors.BadResource("Listener has been closed");
    }
  }

  close(): void {
    this.#stopping.abort();
    this.#ready.close();
    this.#pending.close();
  }

  async #run(listening: Listening): Promise<void> {
    const { signal } = this.#stopping;
    const onError = (error: unknown) => this.#report(wrapError("Cannot accept a connection", error));
    for await (const socket of connections(listening, { signal, onError })) {
      this.#pending.add(socket);
      const passed = this.#pass(socket);
      this.#passing.add(passed);
      passed.finally(() => this.#passing.delete(passed));
    }
    await Promise.all(this.#passing);
  }

  /** Prepares a connection, and passes it on. Never rejects. */
  async #pass(socket: Socket): Promise<void> {
    const { signal } = this.#stopping;
    let prepared: Socket | undefined;
    try {
      prepared = await this.#prepare(socket, signal);
      this.#pending.remove(socket);
      if (prepared !== undefined) await this.#ready.send(prepared);
    } catch (error) {
      (prepared ?? socket)[Symbol.dispose]();
      // Otherwise it was closed at the limit.
      const wasPending = this.#pending.remove(socket);
      if (!signal.aborted && wasPending) this.#report(toError(error));
    }
  }
}
