/**
 * A condition to wait for: a channel without values.
 *
 * @module
 */

import { Channel, type WaitOptions } from "./channel.ts";

/**
 * Resolves waits when notified, in the order in which they began. A notification without a wait is lost, so the owner
 * checks its condition before each wait. Owners create a gate when they first have to wait.
 *
 * A gate is also the queue of a lock: `notifyOne` passes the lock on and returns whether it is still held.
 */
export class Gate {
  readonly #waiters = new Channel<void>();

  /**
   * Waits for a notification.
   *
   * @param options A signal and a timeout.
   * @throws {ChannelClosedError} The gate is or gets closed.
   */
  wait(options?: WaitOptions): Promise<void> {
    return this.#waiters.receive(options);
  }

  /** Resolves the oldest wait. Returns whether there was one. */
  notifyOne(): boolean {
    return this.#waiters.trySend();
  }

  /** Resolves all present waits. */
  notifyAll(): void {
    while (this.#waiters.trySend());
  }

  /** Rejects all present and later waits. Closing again has no effect. */
  close(): void {
    this.#waiters.close();
  }
}
