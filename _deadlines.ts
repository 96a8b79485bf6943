/**
 * The deadlines of a session, by name, and the one timer behind them.
 *
 * The timer fires at the earliest deadline, and often enough to show that the process stood still. What was moved to a
 * later time meanwhile is found out when it fires, so that no timer is set while data passes.
 *
 * @module
 */

import type { FrameWriter } from "./_writer.ts";
import { clock, excuse, type Timer, TIMER_LAG_MS } from "./_clock.ts";

// How long a session waits for a quiet peer after its own end. Go's peers close only by keepalive.
const LINGER_MS = 1000;
// How long an idle session keeps the buffers of its busy time.
const TRIM_DELAY_MS = 1000;
// The timer fires at least this often in the shortest wait: how late it is shows how long the process stood still.
const LOOKS_PER_WAIT = 3;

/** A limit on one wait. */
export class Deadline {
  /** When the wait began. */
  since: number;
  /** Milliseconds that it may last. */
  limit: number;
  #movedTo = -1;

  /**
   * @param since When the wait began, by the clock.
   * @param limit Milliseconds that it may last.
   */
  constructor(since: number, limit: number) {
    this.since = since;
    this.limit = limit;
  }

  /** When it is over. */
  get at(): number {
    return this.since + this.limit;
  }

  /**
   * Moves the start, because the process stood still: that time does not count as waiting. What came meanwhile is still to
   * be read, so the whole limit is left, but only once in a wait: a process that is always late must end it, too.
   */
  excuse(late: number, now: number): void {
    const limit = this.since === this.#movedTo ? Infinity : this.limit;
    this.since = this.#movedTo = excuse(this.since, late, now, limit);
  }
}

/** What the deadlines need from their session. */
export interface DeadlineHost {
  /** Since when the peer is silent, by the clock; `Infinity` while that does not matter. */
  readonly silentSince: number;
  /** Whether everything of ours has left, and the peer's end is awaited. */
  readonly isLingering: boolean;
  /** Bytes that the transport delivered. */
  readonly bytesReceived: number;
  /** A keepalive is due. */
  keepAlive(): void;
  /** The peer was silent for too long. */
  silenceExpired(): void;
  /** The graceful close took this many milliseconds, which is too long. */
  closeExpired(limit: number): void;
  /** The peer is quiet after our end. */
  lingerExpired(): void;
  /** Streams that are not read may be cut; returns when to look again. */
  checkStalled(now: number): number;
  /** The process stood still for this many milliseconds. */
  excuse(late: number, now: number): void;
}

/** The deadlines of one session. */
export class Deadlines {
  /** The peer must be heard. */
  readonly silence: Deadline;
  readonly #keepAliveInterval: number;
  readonly #host: DeadlineHost;
  readonly #writer: FrameWriter;
  readonly #close = new Deadline(0, Infinity);
  // Since when, at which count, no byte has come after our end.
  #quietFrom = 0;
  #quietBytes = 0;
  #timer: Timer | undefined;
  #timerAt = Infinity;
  #isRef = true;
  #ended = false;

  /**
   * @param settings Milliseconds between keepalives, and after which a silent peer is given up.
   * @param host The session.
   * @param writer Its writer.
   */
  constructor(settings: { keepAliveInterval: number; timeout: number }, host: DeadlineHost, writer: FrameWriter) {
    this.silence = new Deadline(clock.now(), settings.timeout);
    this.#keepAliveInterval = settings.keepAliveInterval;
    this.#host = host;
    this.#writer = writer;
  }

  /** The graceful close begins, and may take `limit` milliseconds. */
  startClose(limit: number): void {
    this.#close.since = clock.now();
    this.#close.limit = limit;
    this.schedule();
  }

  /** Everything of ours has left: from now on the peer may be quiet for a second. */
  startLinger(): void {
    this.#quietFrom = clock.now();
    this.#quietBytes = this.#host.bytesReceived;
    this.schedule();
  }

  /** The session has written everything, and may be idle from now on. */
  startTrim(): void {
    if (this.#writer.isLarge) this.arm(clock.now() + TRIM_DELAY_MS);
  }

  /** Sets the timer for the earliest deadline. */
  schedule(): void {
    const now = clock.now();
    const interval = this.#keepAliveInterval;
    // A keepalive that is due but cannot leave yet is no reason to look again at once.
    const keepAlive = Math.max(this.#writer.begunAt, now - interval / 2) + interval;
    const linger = this.#host.isLingering ? LINGER_MS : Infinity;
    const look = now + Math.min(this.silence.limit, this.#close.limit, linger) / LOOKS_PER_WAIT;
    this.arm(Math.min(keepAlive, this.#silenceAt, look));
    this.arm(Math.min(this.#close.at, this.#quietFrom + linger));
    if (this.#writer.isLarge) this.arm(now + TRIM_DELAY_MS);
  }

  /** Sets the timer for this time, if it would fire later. */
  arm(at: number): void {
    if (at >= this.#timerAt || this.#ended) return;
    clock.clearTimer(this.#timer);
    this.#timerAt = at;
    this.#timer = clock.setTimer(this.#tick, Math.max(0, at - clock.now()));
    if (!this.#isRef) unrefTimer(this.#timer);
  }

  /** Whether the timer keeps the process alive. */
  setRef(isRef: boolean): void {
    this.#isRef = isRef;
    const at = this.#timerAt;
    this.#timerAt = Infinity;
    this.arm(at);
  }

  /** Sets no timer any more. */
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
    // While a write is under way its bytes will be the sign of life, and nothing could overtake them.
    if (now >= writer.begunAt + this.#keepAliveInterval && writer.stalledSince === undefined) host.keepAlive();
    if (writer.isLarge && now >= writer.begunAt + TRIM_DELAY_MS) writer.trim();
    if (late > TIMER_LAG_MS) this.#excuse(late, now);
    if (now >= this.#silenceAt) return host.silenceExpired();
    if (now >= this.#close.at) return host.closeExpired(this.#close.limit);
    if (this.#isQuiet(now)) return host.lingerExpired();
    this.arm(host.checkStalled(now));
    this.schedule();
  };

  #excuse(late: number, now: number): void {
    this.silence.excuse(late, now);
    this.#close.excuse(late, now);
    // Bytes may wait in the socket. The limit of the close bounds this.
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

/** Lets the process end although the timer is set, where the runtime can. */
function unrefTimer(timer: Timer): void {
  (timer as { unref?: () => void }).unref?.();
}
