/**
 * Makes connections usable as streams of Node.
 *
 * @module
 */

import { Duplex } from "node:stream";
import type { Connection } from "../mod.ts";
import { toError } from "./errors.ts";

// Bytes. Larger: fewer reads; smaller: less memory for each connection.
const READ_SIZE = 32 * 1024;

/** A stream of Node over a connection, for TLS of Node over any transport. */
export class ConnectionDuplex extends Duplex {
  readonly #connection: Connection;
  /** Whether nothing is read from the connection for now. */
  #isHeld = false;
  /** Whether a read is due when it is not held any more. */
  #isWaiting = false;

  constructor(connection: Connection) {
    super({ allowHalfOpen: true });
    this.#connection = connection;
  }

  /**
   * Stops reading from the connection while a socket over this stream is paused: TLS of Node reads on, and its buffer
   * would grow without a limit.
   */
  follow(socket: Duplex): void {
    this.#isHeld = socket.isPaused();
    socket.on("pause", () => this.#isHeld = true);
    socket.on("resume", () => {
      this.#isHeld = false;
      if (this.#isWaiting) this._read();
    });
  }

  override _read(): void {
    this.#isWaiting = this.#isHeld;
    if (this.#isHeld) return;
    const p = new Uint8Array(READ_SIZE);
    this.#connection.read(p).then(
      (count) => void this.push(count === null ? null : p.subarray(0, count)),
      (error) => void this.destroy(toError(error)),
    );
  }

  override _write(chunk: Uint8Array, _encoding: string, done: (error?: Error) => void): void {
    this.#writeAll(chunk).then(() => done(), (error) => done(toError(error)));
  }

  async #writeAll(chunk: Uint8Array): Promise<void> {
    for (let at = 0; at < chunk.length;) at += await this.#connection.write(chunk.subarray(at));
  }

  override _final(done: (error?: Error) => void): void {
    // An end that was reset already needs no end of its own.
    Promise.resolve(this.#connection.closeWrite?.()).then(() => done(), () => done());
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    try {
      this.#connection.close();
    } catch {
      // It is closed already.
    }
    done(error);
  }
}
