/**
 * Counts sessions, streams and bytes, reports errors and events, and cuts forwarded connections.
 *
 * @module
 */

import { type FrameEvent, type Session, SessionClosedError } from "../mod.ts";
import type { TunnelEvent, TunnelOptions, TunnelStats } from "./options.ts";
import { isReportedElsewhere, toError } from "./errors.ts";
import { setDeadline } from "./wait.ts";

/** The sessions, streams and callbacks of one end of a tunnel. */
export class Activity {
  /** Passes an error to `onError`. */
  readonly report: (error: unknown) => void;
  /** Passes an event to `onEvent`. */
  readonly emit: (event: TunnelEvent) => void;
  /** Passes a frame to `onFrame`, where there is one. */
  readonly frame: ((frame: FrameEvent) => void) | undefined;
  readonly #sessions = new Set<Session>();
  readonly #cutting = new AbortController();
  /** Aborts when forwarded connections must end at once. */
  readonly cutting = this.#cutting.signal;
  #isLimited = false;
  readonly #stats = { connections: 0, streams: 0, open: 0, sent: 0, received: 0 };

  constructor({ onError = console.error, onEvent = () => {}, onFrame }: TunnelOptions) {
    const guard = (run: () => void) => {
      try {
        run();
      } catch (thrown) {
        console.error(thrown);
      }
    };
    this.report = (error) => {
      if (!isReportedElsewhere(error)) guard(() => onError(toError(error)));
    };
    this.emit = (event) => guard(() => onEvent(event));
    this.frame = onFrame && ((frame) => guard(() => onFrame(frame)));
  }

  /** Counts a session. */
  add(session: Session): void {
    this.#stats.connections++;
    this.#sessions.add(session);
    const ended = () => {
      this.#sum(this.#stats, session);
      this.#sessions.delete(session);
    };
    session.closed.then(ended, ended);
  }

  /** Counts the begin of a forwarded connection. */
  begin(): void {
    this.#stats.streams++;
    this.#stats.open++;
  }

  /** Counts the end of a forwarded connection. */
  end(): void {
    this.#stats.open--;
  }

  /** Ends forwarded connections at once. */
  cut(): void {
    this.#cutting.abort(new SessionClosedError("The tunnel has ended"));
  }

  /** Ends forwarded connections after `timeout` milliseconds unless `finished` settles first; the first call counts. */
  cutAfter(timeout: number, finished: Promise<void>): void {
    const isFirst = !this.#isLimited;
    this.#isLimited = true;
    if (!isFirst || timeout === Infinity) return;
    finished.catch(() => {}).then(setDeadline(() => this.cut(), timeout));
  }

  stats(): TunnelStats {
    const stats = { ...this.#stats };
    for (const session of this.#sessions) this.#sum(stats, session);
    return stats;
  }

  #sum(stats: TunnelStats, session: Session): void {
    const { bytesSent, bytesReceived } = session.stats();
    stats.sent += bytesSent;
    stats.received += bytesReceived;
  }
}
