/**
 * The named deadlines of a session, and their single timer.
 *
 * The timer fires at the earliest deadline, and often enough to detect that the process was blocked. A deadline that
 * was moved to a later time is checked when the timer fires, so received data sets no timer.
 *
 * @module
 */

import { DOUBLE } from "./_double.ts";
import type { FrameWriter } from "./_writer.ts";
import { clock, excuse, setTimerRef, type Timer, TIMER_LAG_MS } from "./_clock.ts";

/**
 * Silence of the peer after which a closing session ends, because Go's peers close only by keepalive. Larger: slower
 * close; smaller: data on a slow link is lost to a reset.
 */
export const LINGER_MS = 1000;
// Larger: idle sessions hold more memory; smaller: buffers are allocated more often.
const TRIM_DELAY_MS = 1000;
// Minimum number of timer ticks in the shortest wait: their lag shows how long the process was blocked. Larger: more
// ticks; smaller: less of the blocked time is noticed.
const LOOKS_PER_WAIT = 3;

/** A time limit on one wait. */
export class Deadline {
  /** Start of the wait. */
  since: number;
  /** Maximum duration of the wait in milliseconds. */
  limit: number;
  #movedTo = -1;

  /**
   * @param since Start of the wait, by the clock.
   * @param limit Maximum duration in milliseconds.
   */
  constructor(since: number, limit: number) {
    this.since = since;
    this.limit = limit;
  }

  /** Time of expiry. */
  get at(): number {
    return this.since + this.limit;
  }

  /**
   * Excludes time in which the process was blocked. Input that arrived meanwhile is still to be read, so the wait is
   * also extended, but only once in a row: otherwise a process that is always late would never end it.
   */
  excuse(late: number, now: number): void {
    const limit = this.since === this.#movedTo ? Infinity : this.limit;
    this.since = this.#movedTo = excuse(this.since, late, now, limit);
  }
}

/** What the deadlines need from their session. */
export interface DeadlineHost {
  /** When the peer was last heard, by the clock; `Infinity` while silence is allowed. */
  readonly silentSince: number;
  /** Whether the transport waits for another connection below. */
  readonly isSuspended: boolean;
  /** How often the connection below was replaced. */
  readonly resumptions: number;
  /** Whether everything was sent, and the session waits for the peer's end. */
  readonly isLingering: boolean;
  /** Total bytes read from the transport. */
  readonly bytesReceived: number;
  /** Sends a keepalive. */
  keepAlive(): void;
  /** The peer was silent for `timeout`. */
  silenceExpired(): void;
  /** The graceful close took longer than `limit` milliseconds. */
  closeExpired(limit: number): void;
  /** The peer sent nothing for LINGER_MS after this end was closed. */
  lingerExpired(): void;
  /** Cuts stalled streams. Returns when to check again. */
  checkStalled(now: number): number;
  /** The process was blocked for `late` milliseconds. */
  excuse(late: number, now: number): void;
}

/** The deadlines of one session. */
export class Deadlines {
  /** Limit on the silence of the peer. */
  readonly silence: Deadline;
  readonly #keepAliveInterval: number;
  readonly #host: DeadlineHost;
  readonly #writer: FrameWriter;
  readonly #close = new Deadline(0, Infinity);
  // While lingering: the start of the current silence, and the count of received bytes at that time.
  #quietFrom = 0;
  #quietBytes = DOUBLE;
  #timer: Timer | undefined;
  #timerAt = Infinity;
  #tickedAt = clock.now();
  #resumptions = 0;
  #isRef = true;
  #ended = false;

  /**
   * @param settings Milliseconds between keepalives, and maximum silence of the peer in milliseconds.
   * @param host The session.
   * @param writer The writer of the session.
   */
  constructor(settings: { keepAliveInterval: number; timeout: number }, host: DeadlineHost, writer: FrameWriter) {
    this.silence = new Deadline(clock.now(), settings.timeout);
    this.#keepAliveInterval = settings.keepAliveInterval;
    this.#host = host;
    this.#writer = writer;
    this.#quietBytes = 0;
  }

  /** Starts the deadline of a graceful close, which may take `limit` milliseconds. */
  startClose(limit: number): void {
    this.#close.since = clock.now();
    this.#close.limit = limit;
    this.schedule();
  }

  /** Starts the deadline of lingering. */
  startLinger(): void {
    this.#quietFrom = clock.now();
    this.#quietBytes = this.#host.bytesReceived;
    this.schedule();
  }

  /** Starts the deadline after which the memory of an idle writer is freed. */
  startTrim(): void {
    if (this.#writer.isLarge) this.arm(clock.now() + TRIM_DELAY_MS);
  }

  /** Sets the timer for the earliest deadline. */
  schedule(): void {
    const now = clock.now();
    const interval = this.#keepAliveInterval;
    const due = this.#writer.begunAt + interval;
    // A keepalive that is due but cannot be sent yet must not make the timer fire at once.
    const keepAlive = due > now ? due : now + interval / 2;
    const linger = this.#host.isLingering ? LINGER_MS : Infinity;
    const look = now + Math.min(this.silence.limit, this.#close.limit, linger) / LOOKS_PER_WAIT;
    this.arm(Math.min(keepAlive, this.#silenceAt, look));
    this.arm(Math.min(this.#close.at, this.#quietFrom + linger));
    if (this.#writer.isLarge) this.arm(now + TRIM_DELAY_MS);
  }

  /** Makes the timer fire at this time at the latest. */
  arm(at: number): void {
    if (at >= this.#timerAt || this.#ended) return;
    clock.clearTimer(this.#timer);
    this.#timerAt = at;
    this.#timer = clock.setTimer(this.#tick, Math.max(0, at - clock.now()));
    if (!this.#isRef) setTimerRef(this.#timer, false);
  }

  /** Sets whether the timer keeps the process alive. */
  setRef(isRef: boolean): void {
    this.#isRef = isRef;
    const at = this.#timerAt;
    this.#timerAt = Infinity;
    this.arm(at);
  }

  /** Clears the timer for good. */
  end(): void {
    this.#ended = true;
    clock.clearTimer(this.#timer);
  }

  get #silenceAt(): number {
    return this.#host.silentSince + this.silence.limit;
  }

  readonly #tick = (): void => {
    const now = clock.now();
    const late = now - this.#timerAt;
    this.#timerAt = Infinity;
    const host = this.#host;
    const writer = this.#writer;
    // The bytes of a pending write are a sign of life, and a keepalive could not overtake them.
    if (now >= writer.begunAt + this.#keepAliveInterval && writer.stalledSince === undefined) host.keepAlive();
    if (writer.isLarge && now >= writer.begunAt + TRIM_DELAY_MS) writer.trim();
    const isResumed = host.resumptions !== this.#resumptions;
    this.#resumptions = host.resumptions;
    // A resumption is a sign of life, also if the carriers before it have hung, one after the other.
    if (isResumed) {
      this.silence.since = now;
      writer.excuse(Infinity, now);
    }
    // Without a connection below, the whole time since the last tick does not count.
    if (host.isSuspended || isResumed) this.#excuse(now - this.#tickedAt, now);
    else if (late > TIMER_LAG_MS) this.#excuse(late, now);
    this.#tickedAt = now;
    if (now >= this.#silenceAt) return host.silenceExpired();
    if (now >= this.#close.at) return host.closeExpired(this.#close.limit);
    if (this.#isQuiet(now)) return host.lingerExpired();
    this.arm(host.checkStalled(now));
    this.schedule();
  };

  #excuse(late: number, now: number): void {
    this.silence.excuse(late, now);
    this.#close.excuse(late, now);
    // Received bytes may wait in the socket. The deadline of the close bounds this.
    this.#quietFrom = now;
    this.#writer.excuse(late, now);
    this.#host.excuse(late, now);
  }

  #isQuiet(now: number): boolean {
    if (!this.#host.isLingering || now < this.#quietFrom + LINGER_MS) return false;
    const { bytesReceived } = this.#host;
    if (bytesReceived === this.#quietBytes) return true;
    this.#quietFrom = now;
    this.#quietBytes = bytesReceived;
    return false;
  }
}
