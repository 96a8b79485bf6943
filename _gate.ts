/**
 * A condition to wait for, over a channel of nothing.
 *
 * @module
 */

import { Channel, type WaitOptions } from "./channel.ts";

/**
 * Lets waits through when notified, the oldest first. A notification without a wait is lost, so the condition is checked
 * before each wait, and the owner makes the gate when it first has to wait.
 *
 * The queue for a lock is a gate, too: `notifyOne` passes the lock on and returns whether it is still held.
 */
export class Gate {
  readonly #waiters = new Channel<void>();

  /**
   * Waits for a notification.
   *
   * @param options What can end the wait early.
   * @throws {ChannelClosedError} The gate is or gets closed.
   */
  wait(options?: WaitOptions): Promise<void> {
    return this.#waiters.receive(options);
  }

  /** Lets the oldest wait through; returns whether one waited. */
  notifyOne(): boolean {
    return this.#waiters.trySend();
  }

  /** Lets all present waits through. */
  notifyAll(): void {
    while (this.#waiters.trySend());
  }

  /** Rejects all present and later waits. Closing again does nothing. */
  close(): void {
    this.#waiters.close();
  }
}
