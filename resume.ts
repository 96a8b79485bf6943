/**
 * Connections that survive the loss of the connection below them: a changed network, a proxy that cuts, a restarted
 * front end. Sessions over them continue, and no byte is lost, repeated or reordered.
 *
 * ```ts
 * import { serve, Session } from "@sluice/smux";
 * import { resumable, resumableListener } from "@sluice/smux/resume";
 * import { assertEquals } from "@std/assert";
 * import { toText } from "@std/streams";
 *
 * // The server also serves clients that do not resume.
 * const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
 * const server = serve(resumableListener(listener), (stream) => stream.readable.pipeTo(stream.writable));
 *
 * const { port } = listener.addr;
 * const session = Session.client(resumable(() => Deno.connect({ hostname: "127.0.0.1", port })));
 * const stream = await session.openStream();
 * await stream.write(new TextEncoder().encode("hello"));
 * await stream.closeWrite();
 * assertEquals(await toText(stream.readable), "hello");
 *
 * await session.close();
 * await server.shutdown();
 * ```
 *
 * - {@linkcode resumable} is the client's side: it dials again when the connection below is lost.
 * - {@linkcode resumableListener} is the server's side, over any listener.
 *
 * Both processes must live: what they hold in memory is lost with them. Without TLS below, a connection is protected as
 * well as TCP is: an attacker that can read it can take it over. `docs/resume.md` has the format.
 *
 * @module
 */

import { checkFunction, checkListener, describeValue, invalidSignal } from "./_describe.ts";
import { ResumptionError } from "./errors.ts";
import type { ResumeCore, ResumeSettings, ResumeState } from "./_resume_core.ts";
import { type Dial, ResumeDialer } from "./_resume_dialer.ts";
import { ResumeListener } from "./_resume_listener.ts";
import { onAbort } from "./_wait.ts";
import { duration } from "./options.ts";
import type { Listener } from "./serve.ts";
import { DATA_HEADER_LENGTH } from "./_resume_frame.ts";
import {
  type Address,
  type Connection,
  KEEP,
  type KeepingConnection,
  type Kept,
  type NodeStream,
} from "./transport.ts";

export { type Dial, type ResumeState, ResumptionError };

/**
 * Options of {@linkcode resumable} and {@linkcode resumableListener}.
 *
 * @example Logging the changes of a connection
 * ```ts
 * import { resumable, resumableListener, type ResumeOptions } from "@sluice/smux/resume";
 * import { assertEquals } from "@std/assert";
 *
 * const states: string[] = [];
 * const options: ResumeOptions = { resumeTimeout: 600_000, onChange: (state) => states.push(state) };
 *
 * const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
 * const accepting = resumableListener(listener).accept();
 * const { port } = listener.addr;
 * const connection = resumable(() => Deno.connect({ hostname: "127.0.0.1", port }), options);
 * await connection.write(new Uint8Array(5));
 * const accepted = await accepting;
 * assertEquals(await accepted.read(new Uint8Array(16)), 5);
 * connection.close();
 * accepted.close();
 * listener.close();
 * assertEquals(states, ["connected", "ended"]);
 * ```
 */
export interface ResumeOptions {
  /**
   * Maximum number of bytes that are written and not acknowledged by the peer, in each direction. They are kept to be
   * sent again. A short link gets at most 768 KiB of them, because it needs no more. Both ends should have the same
   * value: an end with a smaller one may receive no acknowledgement until its application reads. Default 4 MiB.
   */
  maxUnacknowledged?: number | undefined;
  /** Milliseconds without a connection below before giving up. `Infinity`: never. Default 60 000. */
  resumeTimeout?: number | undefined;
  /**
   * Milliseconds without a byte before a connection below counts as lost. A probe is sent after half of it, so both
   * ends should have the same value, less than the `timeout` of a session above, which otherwise ends first. `Infinity`:
   * never. Default 10 000.
   */
  silence?: number | undefined;
  /** Called when the state changes, with the error of the lost connection or of the end. */
  onChange?: ((state: ResumeState, reason?: unknown) => void) | undefined;
}

/**
 * Options of {@linkcode resumable}.
 *
 * @example Ending with a signal
 * ```ts
 * import { resumable, type ResumableOptions } from "@sluice/smux/resume";
 * import { assertRejects } from "@std/assert";
 *
 * const stop = new AbortController();
 * const options: ResumableOptions = { signal: stop.signal };
 * const connection = resumable(() => Deno.connect({ hostname: "127.0.0.1", port: 9 }), options);
 * stop.abort(new Error("not today"));
 * await assertRejects(() => connection.closed, Error, "not today");
 * ```
 */
export interface ResumableOptions extends ResumeOptions {
  /** Ends the connection with its reason. */
  signal?: AbortSignal | undefined;
}

/**
 * Options of {@linkcode resumableListener}.
 *
 * @example Bounding the memory for lost clients
 * ```ts
 * import { resumableListener, type ResumableListenerOptions } from "@sluice/smux/resume";
 * import { assertRejects } from "@std/assert";
 *
 * // At most 100 connections of 1 MiB wait for their clients.
 * const options: ResumableListenerOptions = { maxSuspended: 100, maxUnacknowledged: 1024 * 1024 };
 * const listener = resumableListener(Deno.listen({ hostname: "127.0.0.1", port: 0 }), options);
 * listener.close();
 * await assertRejects(() => listener.accept(), Deno.errors.BadResource);
 * ```
 */
export interface ResumableListenerOptions extends ResumeOptions {
  /** Maximum number of suspended connections. When there are more, the one suspended longest ends. Default 1024. */
  maxSuspended?: number | undefined;
}

/**
 * A connection that survives the loss of the connection below it.
 *
 * `read` returns `null` only after the peer has ended writing. `write` writes a part, of at most 64 KiB while earlier
 * bytes still wait to be written below. It resolves when at most 64 KiB wait there, and waits while the connection is
 * suspended. `closeWrite` resolves when the peer has received everything. `close` after it goes on until then, for
 * `resumeTimeout` at most.
 *
 * @example The state of a connection
 * ```ts
 * import { type ResumableConnection, resumable } from "@sluice/smux/resume";
 * import { assertEquals } from "@std/assert";
 *
 * const connection: ResumableConnection = resumable(() => Deno.connect({ hostname: "127.0.0.1", port: 9 }));
 * assertEquals([connection.state, connection.resumptions], ["suspended", 0]); // it still dials
 * connection.close();
 * await connection.closed;
 * assertEquals(connection.state, "ended");
 * ```
 */
export interface ResumableConnection extends Connection {
  /** `connected`, `suspended` without a connection below, or `ended`. */
  readonly state: ResumeState;
  /** Whether the connection is suspended. A session pauses its timers meanwhile. */
  readonly isSuspended: boolean;
  /** How often the connection was resumed. */
  readonly resumptions: number;
  /** Resolves after `close`, also of the peer once it has ended writing; rejects when the connection was not resumed. */
  readonly closed: Promise<void>;
  /** Ends the writing direction. Resolves when the peer has received everything. */
  closeWrite(): Promise<void>;
  /** Dials at once instead of after a pause. It has no effect on a server's connection. */
  retry(): void;
}

const DEFAULT_MAX_UNACKNOWLEDGED = 4 * 1024 * 1024;
// Minimum of `maxUnacknowledged`, in bytes: one frame of the maximum size.
const MIN_UNACKNOWLEDGED = 64 * 1024;
const DEFAULT_RESUME_TIMEOUT_MS = 60_000;
const DEFAULT_SILENCE_MS = 10_000;
const DEFAULT_MAX_SUSPENDED = 1024;

/**
 * Returns a connection that dials now, and again whenever the connection below is lost.
 *
 * Pauses between attempts double from 100 ms to 5 s, less a random part. The connection gives up after `resumeTimeout`
 * without a connection below, or when the server does not know it any more.
 *
 * @param dial Opens a connection to the server. Called with the number of attempts since the last connection, and a
 * signal that aborts when the result is not needed any more.
 * @param options Limits, a signal, and a callback.
 * @returns The connection, which can be used at once.
 * @throws {RangeError} An option is out of bounds.
 * @throws {TypeError} `dial` is not a function.
 *
 * @example A session that survives its socket
 * ```ts
 * import { serve, Session } from "@sluice/smux";
 * import { resumable, resumableListener } from "@sluice/smux/resume";
 * import { assertEquals } from "@std/assert";
 *
 * const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
 * await using _server = serve(resumableListener(listener), (stream) => stream.readable.pipeTo(stream.writable));
 *
 * let socket: Deno.TcpConn | undefined;
 * const connection = resumable(async () => {
 *   socket = await Deno.connect({ hostname: "127.0.0.1", port: listener.addr.port });
 *   return socket;
 * });
 * await using session = Session.client(connection);
 * await using stream = await session.openStream();
 * const p = new Uint8Array(8);
 *
 * await stream.write(new TextEncoder().encode("before"));
 * assertEquals(await stream.read(p), 6);
 * socket!.close(); // the network fails
 * await stream.write(new TextEncoder().encode("after"));
 * assertEquals(await stream.read(p), 5);
 * assertEquals(connection.resumptions, 1);
 * ```
 */
export function resumable(dial: Dial, options: ResumableOptions = {}): ResumableConnection {
  checkFunction("dial", dial);
  const settings = resolve(options);
  const { signal } = options;
  const invalid = invalidSignal(signal);
  if (invalid !== undefined) throw invalid;
  const report = guard(options.onChange);
  const dialer = new ResumeDialer(dial, settings, (state, reason) => {
    if (state === "ended") unlisten?.();
    report(state, reason);
  });
  const unlisten = signal && onAbort(signal, (reason) => dialer.core.abort(reason));
  if (signal?.aborted) dialer.core.abort(signal.reason);
  return new CoreConnection(dialer.core, () => dialer.retry());
}

/**
 * Makes a listener of resumable connections from any listener.
 *
 * `accept` returns each resumable connection once. It also returns clients without a hello, which are not resumed. After
 * its first call the connections of `listener` are accepted until `close`, also after an error, so that clients can
 * resume.
 *
 * @param listener The source of connections. Closed together with the returned listener.
 * @param options Limits, and a callback for every connection.
 * @returns The listener, for `serve`.
 * @throws {RangeError} An option is out of bounds.
 * @throws {TypeError} The listener lacks `accept` or `close`.
 *
 * @example A server
 * ```ts
 * import { serve, Session } from "@sluice/smux";
 * import { resumableListener } from "@sluice/smux/resume";
 * import { assertEquals } from "@std/assert";
 *
 * const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
 * await using _server = serve(resumableListener(listener), (stream) => stream.readable.pipeTo(stream.writable));
 *
 * // A client that does not resume.
 * await using session = Session.client(await Deno.connect({ hostname: "127.0.0.1", port: listener.addr.port }));
 * await using stream = await session.openStream();
 * await stream.write(new Uint8Array(5));
 * assertEquals(await stream.read(new Uint8Array(8)), 5);
 * ```
 */
export function resumableListener(
  listener: Listener<Connection | NodeStream>,
  options: ResumableListenerOptions = {},
): Listener<Connection> {
  checkListener(listener, "resume");
  const { maxSuspended = DEFAULT_MAX_SUSPENDED } = options;
  if (!Number.isSafeInteger(maxSuspended) || maxSuspended < 0) {
    throw new RangeError(`maxSuspended must be an integer of at least 0, received ${describeValue(maxSuspended)}`);
  }
  const settings = { ...resolve(options), maxSuspended };
  return new ResumeListener(listener, settings, (core) => new CoreConnection(core), guard(options.onChange));
}

/** Checks options, and fills in the defaults. */
function resolve(options: ResumeOptions): ResumeSettings {
  const {
    maxUnacknowledged = DEFAULT_MAX_UNACKNOWLEDGED,
    resumeTimeout = DEFAULT_RESUME_TIMEOUT_MS,
    silence = DEFAULT_SILENCE_MS,
  } = options;
  if (!Number.isSafeInteger(maxUnacknowledged) || maxUnacknowledged < MIN_UNACKNOWLEDGED) {
    throw new RangeError(
      `maxUnacknowledged must be an integer of at least ${MIN_UNACKNOWLEDGED}, received ${
        describeValue(maxUnacknowledged)
      }`,
    );
  }
  return {
    maxUnacknowledged,
    resumeTimeout: duration("resumeTimeout", resumeTimeout),
    silence: duration("silence", silence),
  };
}

/** Logs the error of a callback of the application, because no call of the application could reject with it. */
function guard(onChange: ResumeOptions["onChange"]): (state: ResumeState, reason: unknown) => void {
  return (state, reason) => {
    try {
      const running: unknown = onChange?.(state, reason);
      // An async function is assignable to the type, too.
      if (running instanceof Promise) running.catch((error) => console.error(error));
    } catch (error) {
      console.error(error);
    }
  };
}

/** The public side of a core. */
class CoreConnection implements ResumableConnection, KeepingConnection {
  readonly headroom: number = DATA_HEADER_LENGTH;
  readonly #core: ResumeCore;
  readonly retry: () => void;
  // Of the last carrier, so that a suspended connection still has its addresses.
  #localAddr: Address | undefined;
  #remoteAddr: Address | undefined;
  // Settings for each carrier; `undefined`: the default of the carrier.
  #isNoDelay: boolean | undefined;
  #isRef: boolean | undefined;

  constructor(core: ResumeCore, retry = () => {}) {
    this.#core = core;
    this.retry = retry;
    core.onCarrier = this.#use.bind(this);
  }

  get state(): ResumeState {
    return this.#core.state;
  }

  get isSuspended(): boolean {
    return this.#core.state === "suspended";
  }

  get resumptions(): number {
    return Math.max(0, this.#core.carriers - 1);
  }

  get closed(): Promise<void> {
    return this.#core.closed;
  }

  get localAddr(): Address | undefined {
    return this.#localAddr;
  }

  get remoteAddr(): Address | undefined {
    return this.#remoteAddr;
  }

  read(p: Uint8Array): Promise<number | null> {
    return this.#core.read(p);
  }

  write(p: Uint8Array): Promise<number> {
    return this.#core.write(p);
  }

  [KEEP](memory: Uint8Array, end: number): Kept | undefined {
    return this.#core.keep(memory, end);
  }

  closeWrite(): Promise<void> {
    return this.#core.closeWrite();
  }

  close(): void {
    this.#core.close();
  }

  setNoDelay(on = true): void {
    this.#isNoDelay = on;
    this.#core.connection?.setNoDelay?.(on);
  }

  ref(): void {
    this.#setRef(true);
  }

  unref(): void {
    this.#setRef(false);
  }

  /** Prepares a new carrier. */
  #use(carrier: Connection): void {
    this.#localAddr = carrier.localAddr;
    this.#remoteAddr = carrier.remoteAddr;
    if (this.#isNoDelay !== undefined) carrier.setNoDelay?.(this.#isNoDelay);
    if (this.#isRef !== undefined) setRef(carrier, this.#isRef);
  }

  #setRef(isRef: boolean): void {
    this.#isRef = isRef;
    if (this.#core.connection !== undefined) setRef(this.#core.connection, isRef);
    this.#core.timers.setRef(isRef);
  }
}

function setRef(connection: Connection, isRef: boolean): void {
  if (isRef) connection.ref?.();
  else connection.unref?.();
}
