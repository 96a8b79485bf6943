/**
 * Bounds the connections whose handshake is not complete.
 *
 * @module
 */

import type { Socket } from "./socket.ts";

/**
 * Handshakes at the same time; one more ends the oldest. Larger: a flood of silent connections ends fewer slow clients;
 * smaller: less memory for it.
 */
export const MAX_HANDSHAKES = 512;

// Milliseconds between reports of that. Larger: a shorter log in a flood; smaller: a later flood is reported earlier.
const REPORT_INTERVAL = 60_000;

/** The connections whose handshake is not complete, and their limit. */
export class HandshakeLimit {
  /** The oldest is the first. */
  readonly #sockets = new Set<Socket>();
  readonly #report: (error: Error) => void;
  /** When the limit was reported last. */
  #reportedAt = -Infinity;

  /** @param report Called when connections are closed at the limit, at most once a minute. */
  constructor(report: (error: Error) => void) {
    this.#report = report;
  }

  /** Adds a connection; closes the oldest if there are too many. */
  add(socket: Socket): void {
    if (this.#sockets.size >= MAX_HANDSHAKES) this.#closeOldest();
    this.#sockets.add(socket);
  }

  /** Removes a connection. Returns `false` if it was removed before, or closed at the limit. */
  remove(socket: Socket): boolean {
    return this.#sockets.delete(socket);
  }

  /** Closes all connections. */
  close(): void {
    for (const socket of this.#sockets) socket[Symbol.dispose]();
  }

  #closeOldest(): void {
    const [oldest] = this.#sockets;
    this.#sockets.delete(oldest!);
    oldest![Symbol.dispose]();
    const now = performance.now();
    if (now - this.#reportedAt < REPORT_INTERVAL) return;
    this.#reportedAt = now;
    this.#report(new Error(`Closed the oldest of more than ${MAX_HANDSHAKES} connections in their handshake`));
  }
}
