/**
 * A lock and a condition, each over a channel of nothing.
 *
 * @module
 */

import { Channel, type WaitOptions } from "./channel.ts";

/** Lets one holder in at a time, first come, first served. */
export class Mutex {
  #isLocked = false;
  // Made by the first wait.
  #waiters: Channel<void> | undefined;

  /** Whether the lock is held. */
  get isLocked(): boolean {
    return this.#isLocked;
  }

  /**
   * Locks without waiting.
   *
   * @returns `false` if the lock is held already.
   */
  tryAcquire(): boolean {
    if (this.#isLocked) return false;
    this.#isLocked = true;
    return true;
  }

  /**
   * Locks, behind the earlier waits.
   *
   * @param options What can end the wait early. An aborted wait rejects with the signal's reason; once `release()` has
   *   passed the lock on to a wait, it is too late for an abort, and the wait resolves.
   */
  acquire(options?: WaitOptions): Promise<void> {
    return this.tryAcquire() ? Promise.resolve() : (this.#waiters ??= new Channel()).receive(options);
  }

  /** Passes the lock on to the oldest wait, or unlocks. Only the holder may call it. */
  release(): void {
    this.#isLocked = this.#waiters?.trySend() ?? false;
  }
}

/**
 * Lets waits through when notified. A notification without a wait is lost, so the condition is checked before each
 * wait, and the owner makes the gate when it first has to wait.
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

  /** Lets the oldest wait through. */
  notifyOne(): void {
    this.#waiters.trySend();
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
