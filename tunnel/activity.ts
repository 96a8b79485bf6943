/**
 * Counts sessions, streams and bytes, reports errors and events, and cuts forwarded connections.
 *
 * @module
 */

import { type FrameEvent, type Session, SessionClosedError } from "../mod.ts";
import { Accounting, type Forwarding, type Route, type Sums } from "./accounting.ts";
import { formatPeer } from "./address.ts";
import { isLimitError } from "./descriptors.ts";
import { isReportedElsewhere, RefusalError, toError } from "./errors.ts";
import { type TunnelEvent, type TunnelOptions, TunnelRefusedError, type TunnelStats } from "./options.ts";
import { setDeadline } from "./wait.ts";

// Milliseconds between reports that requests are refused because of the limit of open files. Larger: a shorter log;
// smaller: a later report follows a new cause earlier.
const LIMIT_REPORT_INTERVAL = 60_000;

/** A session that is open. */
interface OpenSession {
  /** Milliseconds since 1970. */
  began: number;
  user: string | undefined;
}

/** The figures of a session that is open. */
export interface SessionFigures extends OpenSession {
  address: string | undefined;
  streams: number;
  sent: number;
  received: number;
}

/** The sessions, streams and callbacks of one end of a tunnel. */
export class Activity {
  /** Passes an error to `onError`. */
  readonly report: (error: unknown) => void;
  /** Passes an event to `onEvent`. */
  readonly emit: (event: TunnelEvent) => void;
  /** Passes a frame to `onFrame`, where there is one. */
  readonly frame: ((frame: FrameEvent) => void) | undefined;
  readonly #accounting = new Accounting();
  readonly #sessions = new Map<Session, OpenSession>();
  /** The events "listening" of addresses that are still listened on. */
  readonly #listening = new Map<string, Extract<TunnelEvent, { type: "listening" }>>();
  /** Datagrams that were dropped, and bytes of those that wait to be sent to peers. */
  readonly datagrams = { dropped: 0, queued: 0 };
  readonly #cutting = new AbortController();
  /** Aborts when forwarded connections must end at once. */
  readonly cutting = this.#cutting.signal;
  #isLimited = false;
  /** When such a refusal was reported last. */
  #limitReportedAt = -Infinity;
  readonly #stats = { connections: 0, reconnects: 0, streams: 0, open: 0, sent: 0, received: 0 };

  constructor({ onError = console.error, onEvent = () => {}, onFrame }: TunnelOptions) {
    const guard = (run: () => unknown) => {
      try {
        const running = run();
        // An async function is assignable to the types of the callbacks, too.
        if (running instanceof Promise) running.catch((thrown) => console.error(thrown));
      } catch (thrown) {
        console.error(thrown);
      }
    };
    this.report = (error) => {
      if (isReportedElsewhere(error)) return;
      const isRefusal = this.countRefusal(error);
      if (isRefusal && isLimitError(error) && !this.#isLimitDue()) return;
      guard(() => onError(toError(error)));
    };
    this.emit = (event) => {
      this.#observe(event);
      guard(() => onEvent(event));
    };
    this.frame = onFrame && ((frame) => guard(() => onFrame(frame)));
  }

  /** Counts a session. */
  add(session: Session): void {
    this.#stats.connections++;
    this.#sessions.set(session, { began: Date.now(), user: undefined });
    const ended = () => {
      this.#sum(this.#stats, session);
      this.#sessions.delete(session);
    };
    session.closed.then(ended, ended);
  }

  /** Sets the user of a session, once it has authenticated. */
  setUser(session: Session, user: string | undefined): void {
    const open = this.#sessions.get(session);
    if (open !== undefined) open.user = user;
  }

  /** Returns the user of a session. */
  userOf(session: Session): string | undefined {
    return this.#sessions.get(session)?.user;
  }

  /** Ends sessions at once. */
  abortIf(isEnding: (session: Session) => boolean, reason: unknown): void {
    for (const session of [...this.#sessions.keys()]) if (isEnding(session)) session.abort(reason);
  }

  /** Counts the begin of a forwarded connection; the result reports its end. */
  begin(route: Route): Forwarding {
    this.#stats.streams++;
    this.#stats.open++;
    return this.#accounting.begin(route, this.emit);
  }

  /** Counts a refused request. */
  refuse(status: number): void {
    this.#accounting.refuse(status);
  }

  /** Counts an error that is, or is caused by, a refusal of this end or of the peer; returns whether it is one. */
  countRefusal(error: unknown): boolean {
    const causes = [error, error instanceof Error ? error.cause : undefined];
    const refusal = causes.find((cause) => cause instanceof RefusalError || cause instanceof TunnelRefusedError);
    if (refusal !== undefined) this.refuse((refusal as RefusalError | TunnelRefusedError).status);
    return refusal !== undefined;
  }

  /** Whether a refusal because of the limit of open files is to be reported: each connection would fill the log. */
  #isLimitDue(): boolean {
    const now = performance.now();
    const isDue = now - this.#limitReportedAt >= LIMIT_REPORT_INTERVAL;
    if (isDue) this.#limitReportedAt = now;
    return isDue;
  }

  /** Ends forwarded connections at once. */
  cut(): void {
    this.#cutting.abort(new SessionClosedError("The tunnel has ended"));
  }

  /**
   * Ends forwarded connections and sessions after `timeout` milliseconds unless `finished` settles first; the first call
   * counts.
   */
  cutAfter(timeout: number, finished: Promise<void>): void {
    const isFirst = !this.#isLimited;
    this.#isLimited = true;
    if (!isFirst || timeout === Infinity) return;
    const end = () => {
      // The timer of a session itself does not run while the session is suspended.
      const message = `The session did not close within ${timeout} ms`;
      this.abortIf(() => true, new DOMException(message, "TimeoutError"));
      this.cut();
    };
    finished.catch(() => {}).then(setDeadline(end, timeout));
  }

  stats(): TunnelStats {
    const stats = { ...this.#stats, dropped: this.datagrams.dropped, refused: this.#accounting.refused };
    for (const session of this.#sessions.keys()) this.#sum(stats, session);
    return stats;
  }

  /** Returns the sums of each forward. */
  sums(): Sums[] {
    return this.#accounting.sums;
  }

  /** Returns the figures of each open session. */
  sessions(): SessionFigures[] {
    return Array.from(this.#sessions, ([session, open]) => {
      const { streams, bytesSent, bytesReceived } = session.stats();
      return { ...open, address: formatPeer(session.remoteAddr), streams, sent: bytesSent, received: bytesReceived };
    });
  }

  /** Returns the events "listening" of a server's addresses that are still listened on. */
  listening(): Extract<TunnelEvent, { type: "listening" }>[] {
    return [...this.#listening.values()];
  }

  #observe(event: TunnelEvent): void {
    switch (event.type) {
      case "listening":
        this.#listening.set(event.listenAddr, event);
        break;
      case "stopped":
        this.#listening.delete(event.listenAddr);
        break;
      case "reconnected":
        this.#stats.reconnects++;
        break;
      case "finished":
        this.#stats.open--;
    }
  }

  #sum(stats: { sent: number; received: number }, session: Session): void {
    const { bytesSent, bytesReceived } = session.stats();
    stats.sent += bytesSent;
    stats.received += bytesReceived;
  }
}
