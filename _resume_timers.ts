/**
 * The deadlines of a resumable connection, and their single timer.
 *
 * @module
 */

import { clock, excuse, setTimerRef, type Timer, TIMER_LAG_MS } from "./_clock.ts";

// Larger: fewer records; smaller: the peer frees its memory earlier.
const ACKNOWLEDGEMENT_DELAY_MS = 100;
// Minimum number of timer ticks in `resumeTimeout`: their lag shows how long the process was suspended. Larger: more ticks;
// smaller: less of that time is noticed.
const LOOKS_PER_TIMEOUT = 3;

/** What the timers need from their connection. */
export interface ResumeTimersHost {
  /** Whether a read of the carrier is pending, so that its silence is known. */
  readonly isListening: boolean;
  /** Sends an acknowledgement. */
  acknowledge(): void;
  /** Sends a probe, and reads the answer. */
  probe(): void;
  /** Frees memory that has not been used since the last call. Returns whether it was freed. */
  trim(): boolean;
  /** The carrier was silent for `silence`. */
  silenceExpired(): void;
  /** The connection was suspended, or closed without an answer, for `resumeTimeout`. */
  suspensionExpired(): void;
}

/** The deadlines of one connection. */
export class ResumeTimers {
  readonly #silence: number;
  readonly #resumeTimeout: number;
  readonly #host: ResumeTimersHost;
  #acknowledgeAt = Infinity;
  // When the carrier last delivered bytes, and when bytes were last written to it; `Infinity` without a carrier.
  #heardAt = Infinity;
  #sentAt = Infinity;
  #suspendedAt = Infinity;
  #closedAt = Infinity;
  // When unused memory may be freed again.
  #trimAt = Infinity;
  #hasProbed = false;
  // Whether bytes were delivered after the last ones were written.
  #hasHeard = false;
  #timer: Timer | undefined;
  #timerAt = Infinity;
  // The timer of an attempt to connect, or of the pause before it.
  #dialTimer: Timer | undefined;
  #isRef = true;
  #hasEnded = false;

  /**
   * @param settings Milliseconds of silence, and of a suspension.
   * @param host The connection.
   */
  constructor(settings: { silence: number; resumeTimeout: number }, host: ResumeTimersHost) {
    this.#silence = settings.silence;
    this.#resumeTimeout = settings.resumeTimeout;
    this.#host = host;
  }

  /** The connection has a carrier. */
  attached(): void {
    this.#heardAt = this.#sentAt = this.#trimAt = clock.now();
    this.#suspendedAt = Infinity;
    this.#hasProbed = false;
    this.#schedule();
  }

  /** The connection has no carrier. */
  suspended(): void {
    this.#heardAt = this.#sentAt = this.#acknowledgeAt = Infinity;
    this.#suspendedAt = this.#trimAt = clock.now();
    this.#schedule();
  }

  /** The application has closed the connection, which waits for its last acknowledgement. */
  close(): void {
    this.#closedAt = clock.now();
    this.#schedule();
  }

  /** The carrier has delivered bytes. */
  heard(): void {
    this.#heardAt = clock.now();
    this.#hasProbed = false;
    this.#hasHeard = true;
  }

  /** Bytes were written to the carrier. */
  sent(): void {
    // Reading the clock takes a hundredth of a round trip. An earlier time is safe: the next probe comes earlier.
    this.#sentAt = this.#hasHeard ? this.#heardAt : clock.now();
    this.#hasHeard = false;
  }

  /** Calls `acknowledge` after a delay, unless that is planned already. */
  acknowledgeLater(): void {
    if (this.#acknowledgeAt !== Infinity) return;
    this.#acknowledgeAt = clock.now() + ACKNOWLEDGEMENT_DELAY_MS;
    this.#arm(this.#acknowledgeAt);
  }

  /** An acknowledgement is sent now. */
  acknowledged(): void {
    this.#acknowledgeAt = Infinity;
  }

  /** Starts the timer of the dialer, which keeps the process alive as the others do. There is one at a time. */
  startDial(run: () => void, milliseconds: number): void {
    this.#dialTimer = clock.setTimer(run, milliseconds);
    if (!this.#isRef) setTimerRef(this.#dialTimer, false);
  }

  /** Clears the timer of the dialer. */
  endDial(): void {
    clock.clearTimer(this.#dialTimer);
    this.#dialTimer = undefined;
  }

  /** Sets whether the timers keep the process alive. */
  setRef(isRef: boolean): void {
    this.#isRef = isRef;
    this.#timerAt = Infinity;
    this.#schedule();
    setTimerRef(this.#dialTimer, isRef);
  }

  /** Clears the timer for good. */
  end(): void {
    this.#hasEnded = true;
    clock.clearTimer(this.#timer);
  }

  #schedule(): void {
    const half = this.#silence / 2;
    // The silence of a carrier that is not read is not known: look again later.
    const silenceAt = Math.max(this.#heardAt + (this.#hasProbed ? this.#silence : half), clock.now() + half / 4);
    const isWaiting = Math.min(this.#suspendedAt, this.#closedAt) !== Infinity;
    const lookAt = isWaiting ? clock.now() + this.#resumeTimeout / LOOKS_PER_TIMEOUT : Infinity;
    // With a carrier there is always another deadline before long.
    const trimAt = this.#suspendedAt === Infinity ? Infinity : this.#trimAt;
    this.#arm(Math.min(this.#acknowledgeAt, silenceAt, this.#sentAt + half, this.#giveUpAt, lookAt, trimAt));
  }

  get #giveUpAt(): number {
    return Math.min(this.#suspendedAt, this.#closedAt) + this.#resumeTimeout;
  }

  #arm(at: number): void {
    if (at >= this.#timerAt || this.#hasEnded) return;
    clock.clearTimer(this.#timer);
    this.#timerAt = at;
    this.#timer = clock.setTimer(this.#tick, Math.max(0, at - clock.now()));
    if (!this.#isRef) setTimerRef(this.#timer, false);
  }

  readonly #tick = (): void => {
    const now = clock.now();
    const late = now - this.#timerAt;
    this.#timerAt = Infinity;
    // The process was suspended or blocked: bytes may wait in the carrier.
    if (late > TIMER_LAG_MS) {
      // The start of a wait that has not begun is `Infinity`, and must remain so.
      if (this.#suspendedAt === Infinity) this.#heardAt = excuse(this.#heardAt, late, now);
      else this.#suspendedAt = excuse(this.#suspendedAt, late, now);
      if (this.#closedAt !== Infinity) this.#closedAt = excuse(this.#closedAt, late, now);
    }
    const host = this.#host;
    if (now >= this.#giveUpAt) return host.suspensionExpired();
    const half = this.#silence / 2;
    // Before anything is written, because memory is not freed during a write. Not with the probe, because an end whose
    // peer probes first sends none.
    if (now >= this.#trimAt) {
      const isFreed = host.trim();
      // While suspended, no memory is kept for reuse again.
      this.#trimAt = isFreed && this.#suspendedAt !== Infinity ? Infinity : now + half / 2;
    }
    if (now >= this.#acknowledgeAt) {
      // It may have to wait for a pending write, or for the next carrier, and must not make the timer fire at once.
      this.#acknowledgeAt = Infinity;
      host.acknowledge();
    }
    if (now >= this.#heardAt + this.#silence && this.#hasProbed && host.isListening) return host.silenceExpired();
    // A peer that is not read does not see the silence of this end, but must hear it.
    if ((now >= this.#heardAt + half && !this.#hasProbed) || now >= this.#sentAt + half) {
      this.#hasProbed = true;
      this.#sentAt = now;
      host.probe();
    }
    this.#schedule();
  };
}
