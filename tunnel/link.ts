/**
 * Keeps a client connected to its server.
 *
 * @module
 */

import { type Connection, Session, SessionClosedError } from "../mod.ts";
import type { Activity } from "./activity.ts";
import { type Carrier, connectResumable } from "./carrier.ts";
import { dialServer, isSamePlace, type ServerPlace } from "./dial_server.ts";
import { CutError, errorText, isCut, PermanentError, wrapError } from "./errors.ts";
import { checkServer } from "./handshake.ts";
import type { Limits } from "./limits.ts";
import { type OpenTunnelOptions, TunnelRefusedError } from "./options.ts";
import { Identity } from "./returning.ts";
import { backoff, onAbort, setDeadline, sleep } from "./wait.ts";

// Milliseconds. The default of `serve`.
const STALLED_STREAM_TIMEOUT = 5000;

// Milliseconds between attempts to connect. Larger: less load on a server that restarts; smaller: a shorter outage.
const MAX_PAUSE = 2000;

// Milliseconds to connect, unless `connectTimeout` is set. A lost packet is sent again after 1 and 3 seconds. Larger:
// tolerates a slower network; smaller: an attempt that began in an outage ends earlier after it.
const CONNECT_TIMEOUT = 4000;

// Hellos in a row that may be cut: to the client that looks like a server that does not resume, although it is a Sluice.
// Larger: resumes through a worse network; smaller: an earlier start.
const MAX_CUT_HELLOS = 3;

/**
 * First attempts that may be cut in the middle, where attempts that fail are not repeated: ssh starts its ProxyCommand
 * only once. Larger: starts through a worse network; smaller: a server that hangs up is reported earlier.
 */
export const MAX_CUT_STARTS = 3;

// Milliseconds to send the last bytes of a session. Larger: tolerates a slower server; smaller: an earlier end.
const CLOSE_TIMEOUT = 1000;

/** What a link needs from its client. */
export interface LinkHost {
  /** Called with each new session, before anything else uses it. */
  started(session: Session): void;
  /** Whether there is a connection to the server has changed. */
  changed(): void;
  /** The server could not be reached for `wait` milliseconds. */
  unavailable(): void;
  /** The server can be reached for the first time or after `unavailable`. Fulfils when the client listens, where it can. */
  available(): Promise<void>;
}

/** Settings of a link. */
export interface LinkSettings extends OpenTunnelOptions {
  server: ServerPlace;
  /** Whether a request is sent on each new session, so that the server proves that it accepts the secret. */
  isChecked: boolean;
  /** Milliseconds to wait for the server. */
  wait: number;
  limits: Limits;
}

/** The connection of a client to its server, which is made again when it is lost. */
export class Link {
  /** Aborts when nothing new may begin. */
  readonly stopping: AbortSignal;
  #settings: LinkSettings;
  readonly #activity: Activity;
  readonly #host: LinkHost;
  /** So that the server ends the former session when it has another one. */
  readonly #identity = new Identity();
  /** Aborts when another link is used instead. */
  readonly #retired = new AbortController();
  #session: Session | undefined;
  #carrier: Carrier | undefined;
  /** When the connection was suspended; `undefined` while it is not. */
  #suspendedAt: number | undefined;
  /** Whether the session has ended, and its end is being completed. */
  #hasEnded = false;
  /** Clears the deadline after which the server is unavailable. */
  #clearDeadline: (() => void) | undefined;
  #isAvailable = false;
  #isPlainReported = false;
  #lastMessage: string | undefined;

  constructor(settings: LinkSettings, activity: Activity, host: LinkHost, stopping: AbortSignal) {
    this.#settings = settings;
    this.#activity = activity;
    this.#host = host;
    this.stopping = AbortSignal.any([stopping, this.#retired.signal]);
    onAbort(this.stopping, () => {
      this.#host.changed();
      this.#limitSuspension();
    });
  }

  /** The address of the server. */
  get serverAddr(): string {
    return this.#settings.server.name;
  }

  /** The session; `undefined` while not connected. */
  get session(): Session | undefined {
    return this.#session;
  }

  /** Whether there is a connection to the server. */
  get isUp(): boolean {
    return this.#session !== undefined && this.#suspendedAt === undefined && !this.#hasEnded;
  }

  /** Whether the server can be reached, or could be until less than `wait` milliseconds ago. */
  get isAvailable(): boolean {
    return this.#isAvailable;
  }

  /** Whether the connection can have these settings. */
  accepts(settings: LinkSettings): boolean {
    const { server, user, version = 2 } = this.#settings;
    return isSamePlace(settings.server, server) && settings.user === user && (settings.version ?? 2) === version;
  }

  /** Replaces the settings, for new requests and connections. */
  configure(settings: LinkSettings): void {
    this.#settings = settings;
  }

  /** Ends the connection after its last stream. */
  retire(): void {
    this.#retired.abort();
    this.end();
    this.#session?.close({ drain: true, timeout: Infinity });
  }

  /**
   * Connects for the first time.
   *
   * @param retry Whether to repeat attempts that fail. Otherwise only a few that are cut in the middle are repeated.
   * @throws {Error} The client cannot connect. With `retry`, only if another attempt would fail in the same way.
   */
  async open(retry = this.#settings.retry): Promise<void> {
    let cut = 0;
    const isFinal = (error: unknown) => retry ? isPermanent(error) : !isCut(error) || ++cut > MAX_CUT_STARTS;
    for (const delays = backoff(MAX_PAUSE); !await this.#tryStart(isFinal);) {
      await sleep(delays.next().value, this.stopping);
      this.stopping.throwIfAborted();
    }
  }

  /**
   * Waits for the end of each session, and connects again.
   *
   * @returns A promise that fulfils when the client is ending; rejects if the session was lost, without `reconnect`.
   */
  async run(): Promise<void> {
    const { signal } = this.#settings;
    const { serverAddr } = this;
    while (this.#session !== undefined) {
      const reason = await this.#sessionEnd(this.#session);
      const isStopping = this.stopping.aborted;
      const ended = this.#suspendedAt ?? performance.now();
      this.#hasEnded = true;
      this.#host.changed();
      await this.#closeCarrier(this.#carrier!, reason);
      this.#session = this.#carrier = this.#suspendedAt = undefined;
      this.#hasEnded = false;
      const lost = wrapError(`The connection to ${serverAddr} was lost`, reason ?? "closed by the server");
      if (isStopping || this.stopping.aborted && reason === undefined) {
        if (reason !== undefined && !signal?.aborted) this.#activity.report(lost);
        return;
      }
      if (this.#settings.reconnect === false) throw lost;
      this.#activity.report(lost);
      this.#down();
      for (const delays = backoff(MAX_PAUSE); !this.stopping.aborted;) {
        await sleep(delays.next().value, this.stopping);
        if (this.stopping.aborted || await this.#tryStart(() => false).catch(() => false)) break;
      }
      if (this.#session === undefined) return;
      const downtime = Math.round(performance.now() - ended);
      this.#activity.emit({ type: "reconnected", serverAddr, error: lost, downtime });
    }
  }

  /** Dials at once, if the connection is suspended. */
  retry(): void {
    this.#carrier?.retry();
  }

  /** Releases the timer: the link is not used any more. */
  end(): void {
    this.#clearDeadline?.();
    this.#isAvailable = false;
  }

  async #up(): Promise<void> {
    this.#clearDeadline?.();
    this.#clearDeadline = undefined;
    this.#suspendedAt = undefined;
    this.#host.changed();
    if (this.#isAvailable) return;
    this.#isAvailable = true;
    await this.#host.available();
  }

  #down(): void {
    this.#clearDeadline ??= afterWait(this.#settings.wait, () => {
      this.#isAvailable = false;
      this.#host.unavailable();
    });
    this.#host.changed();
  }

  /** Connects; reports a failure once, and returns whether it succeeded. Rejects with errors that `isFinal`. */
  async #tryStart(isFinal: (error: unknown) => boolean): Promise<boolean> {
    try {
      await this.#start();
      return true;
    } catch (error) {
      if (isFinal(error) || this.stopping.aborted) throw error;
      const message = String(error);
      if (message !== this.#lastMessage) this.#activity.report(error);
      this.#lastMessage = message;
      return false;
    }
  }

  /** @param attempts Number of attempts before whose hello may have been cut. */
  async #start(attempts = 0): Promise<void> {
    const { version, secret, user, isChecked, limits, resume = true } = this.#settings;
    const { stalledStreamTimeout = STALLED_STREAM_TIMEOUT } = this.#settings;
    const carrier = await this.#connect();
    const { frame } = this.#activity;
    const session = Session.client(carrier.connection, {
      version,
      stalledStreamTimeout,
      onFrame: frame,
      ...limits.session,
    });
    const off = onAbort(this.stopping, (reason) => session.abort(reason));
    try {
      const isSluice = isChecked && await checkServer(session, { secret, user }, this.#identity.next());
      this.stopping.throwIfAborted();
      // Without this, streams would be lost with a connection that is never resumed.
      if (isSluice && resume && !carrier.isResumable && attempts < MAX_CUT_HELLOS) {
        await session.close({ timeout: CLOSE_TIMEOUT }).catch(() => {});
        return await this.#start(attempts + 1);
      }
      this.#reportPlain(carrier);
    } catch (error) {
      session.abort(error);
      throw this.#explain(error);
    } finally {
      off();
    }
    this.#session = session;
    this.#carrier = carrier;
    this.#lastMessage = undefined;
    this.#activity.add(session);
    this.#host.started(session);
    await this.#up();
  }

  /** Names the server in the error of a session that ended before the server had answered. */
  #explain(error: unknown): unknown {
    if (!(error instanceof SessionClosedError) || this.stopping.aborted) return error;
    const cause = error.cause ?? error;
    if (cause instanceof PermanentError) return cause;
    const { serverAddr } = this;
    if (cause instanceof Error && cause.name === "TimeoutError") {
      return wrapError(`${serverAddr} accepts connections, but does not answer`, cause);
    }
    return new CutError(`The connection to ${serverAddr} was lost: ${errorText(cause)}`, { cause });
  }

  async #connect(): Promise<Carrier> {
    const { resume = true, limits, isChecked } = this.#settings;
    const { serverAddr } = this;
    const open = (signal: AbortSignal) => this.#dial(signal);
    // The answer to a request shows whether a hello was cut; without one, two must end alike.
    for (let left = !resume ? 0 : isChecked ? 1 : 2; left > 0; left--) {
      const carrier = await connectResumable(serverAddr, open, {
        signal: this.stopping,
        silence: limits.silence,
        onSuspended: (error) => this.#suspended(error),
        onResumed: () => this.#resumed(),
      });
      if (carrier !== undefined) return carrier;
    }
    return {
      connection: await open(this.stopping),
      isResumable: false,
      retry() {},
      closed: Promise.resolve(),
      abort() {},
    };
  }

  /** Reports once that the server does not resume: only now, because one without free descriptors answers like it. */
  #reportPlain({ isResumable }: Carrier): void {
    const { resume = true } = this.#settings;
    if (isResumable || !resume || this.#isPlainReported) return;
    this.#isPlainReported = true;
    this.#activity.emit({ type: "unresumable", serverAddr: this.serverAddr });
  }

  async #dial(signal: AbortSignal): Promise<Connection> {
    const { server, connectTimeout = CONNECT_TIMEOUT } = this.#settings;
    try {
      return await dialServer(server, signal, { connectTimeout });
    } catch (error) {
      // Another attempt follows one that was given up.
      if (!signal.aborted) this.#abortIdle(error);
      throw error;
    }
  }

  /** Waits until the last bytes of a session are sent, but not long, and not after an error. */
  async #closeCarrier({ closed, abort }: Carrier, reason: unknown): Promise<void> {
    if (reason !== undefined) return abort(reason);
    const clear = setDeadline(() => abort(new Error("the server did not confirm the end")), CLOSE_TIMEOUT);
    await closed.catch(() => {});
    clear();
  }

  #suspended(error: unknown): void {
    if (this.#session === undefined) return;
    if (this.stopping.aborted) return this.#limitSuspension();
    this.#suspendedAt = performance.now();
    const { serverAddr } = this;
    const lost = wrapError(`The connection to ${serverAddr} was lost`, error);
    this.#activity.emit({ type: "suspended", serverAddr, error: lost });
    this.#down();
  }

  async #resumed(): Promise<void> {
    if (this.#suspendedAt === undefined) return;
    const downtime = Math.round(performance.now() - this.#suspendedAt);
    await this.#up();
    this.#activity.emit({ type: "resumed", serverAddr: this.serverAddr, downtime });
  }

  /** Limits the wait for the last bytes of a suspended session, because its own timers do not run. */
  #limitSuspension(): void {
    const session = this.#session;
    if (!session?.stats().suspended) return;
    this.retry();
    const expire = () => this.#abortIdle(new Error(`not resumed within ${CLOSE_TIMEOUT} ms`));
    session.closed.catch(() => {}).then(setDeadline(expire, CLOSE_TIMEOUT));
  }

  /** Ends a suspended session that has no stream, when nothing new may begin: only its last bytes may be missing. */
  #abortIdle(reason: unknown): void {
    const session = this.#session;
    if (session === undefined || !this.stopping.aborted) return;
    const { suspended, streams } = session.stats();
    if (!suspended || streams > 0) return;
    session.abort(reason);
    this.#carrier!.abort(reason);
  }

  /** Waits until a session has ended; returns the reason, `undefined` after a clean close. */
  #sessionEnd(session: Session): Promise<unknown> {
    const { signal } = this.#settings;
    // The tunnel may have been shut down while the session was being opened.
    if (signal?.aborted) session.abort(signal.reason);
    else if (this.stopping.aborted) session.close({ drain: true });
    return session.closed.then(() => undefined, (error: unknown) => error);
  }
}

/** Calls `run` after `wait` milliseconds; returns a function that clears the timer. */
export function afterWait(wait: number, run: () => void): () => void {
  return wait === Infinity ? () => {} : setDeadline(run, wait);
}

/** Whether another attempt would fail in the same way. */
export function isPermanent(error: unknown): boolean {
  return error instanceof PermanentError || error instanceof RangeError ||
    (error instanceof TunnelRefusedError && error.status < 500);
}
