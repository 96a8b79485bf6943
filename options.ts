/**
 * The options of sessions: defaults, bounds, and valid combinations.
 *
 * @module
 */

import { Sender } from "./channel.ts";
import { MAX_DELAY_MS } from "./_clock.ts";
import { checkFunction, describeType, describeValue } from "./_describe.ts";
import { MAX_PAYLOAD_LENGTH, type Version } from "./frame.ts";
import type { Stream } from "./stream.ts";
import type { FrameEvent } from "./_trace.ts";
import { MAX_WINDOW } from "./_window.ts";

/**
 * Options of a session, for both roles. All sizes are in bytes, all times in milliseconds.
 *
 * @example Limits for untrusted clients
 * ```ts
 * import { Session, type SessionOptions } from "@sluice/smux";
 * import { assertEquals } from "@std/assert";
 *
 * const limits: SessionOptions = {
 *   maxStreams: 2, // open at once
 *   acceptBacklog: 2, // not accepted yet
 *   maxReceiveBuffer: 1024 * 1024, // unread bytes of all streams
 *   stalledStreamTimeout: 10_000, // until an unread stream that blocks the others is cut
 *   timeout: 20_000, // until the session of a silent client ends
 * };
 *
 * const listener = Deno.listen({ port: 0 });
 * await using client = Session.client(await Deno.connect({ port: listener.addr.port }));
 * await using server = Session.server(await listener.accept(), limits);
 * for (let n = 0; n < 2; n++) await client.openStream();
 * const third = await client.openStream();
 * assertEquals(await third.read(new Uint8Array(1)), null); // refused: it ends at once
 * assertEquals(server.stats().refused, 1);
 * listener.close();
 * ```
 */
export interface SessionOptions {
  /**
   * Channel that receives the streams opened by the peer, so that several sessions can feed one pool of workers. The
   * session owns this handle and closes it when it ends or cannot start: pass a clone. When the channel is full, further
   * streams are refused, as with `acceptBacklog`. Cannot be combined with `acceptBacklog`. Default: a channel of the
   * session's own.
   */
  incoming?: Sender<Stream> | undefined;
  /**
   * Milliseconds without a write after which a keepalive is sent. `Infinity`: never. Default a third of `timeout`, at
   * most 10 000, as in Go.
   */
  keepAliveInterval?: number | undefined;
  /**
   * Milliseconds before giving up on:
   *
   * - a silent peer: the session ends. An idle peer without keepalive is silent, such as Go's smux with
   *   `KeepAliveDisabled` or AWS's session-manager-plugin: raise this, or set it to `Infinity`. A peer that sends but
   *   does not read is not silent.
   * - a transport write without progress while reading is paused, because `maxReceiveBuffer` is full: the session ends.
   * - a write that waits for credit after the peer has ended its half of a stream, in version 2: the write rejects.
   * - {@linkcode Session.close}: the session is aborted.
   *
   * Time in which this process was suspended or blocked does not count. `Infinity`: never. At least
   * `keepAliveInterval`, and more than that of the peer, or idle sessions end. Default 30 000, as in Go.
   */
  timeout?: number | undefined;
  /**
   * Maximum payload of a sent frame, 1 to 65 535 bytes. Received frames may have any length. Default 32 768, as in Go.
   */
  maxFrameSize?: number | undefined;
  /**
   * Maximum number of unread bytes of all streams together. At this number the session stops reading the transport
   * until the application reads. The memory held for unread bytes is at most twice this. Default 16 MiB.
   */
  maxReceiveBuffer?: number | undefined;
  /**
   * Maximum window of one stream in version 2, in bytes: what the peer may send before the application reads. Default
   * 8 MiB, or half of `maxReceiveBuffer` if that is less.
   *
   * A window starts with 256 KiB (or this, if it is less), or with the size that earlier streams of the session found.
   * It grows while it limits the sender. It shrinks, to not less than 32 KiB, while the sender's bytes are queued on
   * the link and delay all streams of the connection. Growth of all windows together is at most half of
   * `maxReceiveBuffer`. Once half of `maxReceiveBuffer` is unread, a stream may hold at most 1/256 of the rest (at
   * least 1 KiB). A stream that holds more loses its credit until it is read, so that unread streams leave room for the
   * others.
   */
  maxStreamBuffer?: number | undefined;
  /**
   * Maximum number of open streams that the peer opened; more are refused. Default 8192: 32 MiB, at less than 4 KiB
   * each.
   */
  maxStreams?: number | undefined;
  /**
   * Maximum number of streams that wait in `incoming`. Further ones are refused, once the acceptors have run since the
   * channel was full. Default 1024, as in Go.
   */
  acceptBacklog?: number | undefined;
  /**
   * Milliseconds after which stalled streams are cut, if their unread bytes block all others: in version 1 when
   * `maxReceiveBuffer` is full, in version 2 when less than an eighth of it is free. A stream has stalled when nothing
   * of it was read in that time or, where other streams wait, less than 16 KiB per second. The streams that hold most
   * are cut first: their reads and writes reject with a "TimeoutError" that names the stream, and the session goes on.
   * Default `Infinity`: never; {@linkcode serve} has a default of 5000.
   */
  stalledStreamTimeout?: number | undefined;
  /**
   * Receives every frame that is sent or received, in order, soon after it: to see why a stream is stuck. An error that it
   * throws, or rejects with, ends the session. It costs time for every frame; without it a session does not spend any.
   */
  onFrame?: ((frame: FrameEvent) => void) | undefined;
}

/**
 * Options of {@linkcode Session.client}.
 *
 * @example Connecting to a Go server with its default options
 * ```ts
 * import { type ClientSessionOptions, Session } from "@sluice/smux";
 * import { assertEquals } from "@std/assert";
 *
 * const likeGo: ClientSessionOptions = { version: 1, keepAliveInterval: 10_000, timeout: 30_000 };
 *
 * const listener = Deno.listen({ port: 0 });
 * await using client = Session.client(await Deno.connect({ port: listener.addr.port }), likeGo);
 * await using server = Session.server(await listener.accept(), { version: 1 });
 * const [opened, accepted] = await Promise.all([client.openStream(), server.acceptStream()]);
 * assertEquals([opened.id, accepted.id], [3, 3]); // the first id of a client, as in Go
 * listener.close();
 * ```
 */
export interface ClientSessionOptions extends SessionOptions {
  /** Version of smux; the peer must use the same. Go's default is 1. Default 2. */
  version?: Version | undefined;
}

/**
 * Options of {@linkcode Session.server}.
 *
 * @example Accepting either version, or one
 * ```ts
 * import { ProtocolError, type ServerSessionOptions, Session } from "@sluice/smux";
 * import { assertEquals, assertRejects } from "@std/assert";
 *
 * const listener = Deno.listen({ port: 0 });
 * const clients: Session[] = [];
 * async function meet(options: ServerSessionOptions): Promise<Session> {
 *   clients.push(Session.client(await Deno.connect({ port: listener.addr.port }), { version: 1 }));
 *   return Session.server(await listener.accept(), options);
 * }
 *
 * const either = await meet({ version: "auto" });
 * await either.openStream(); // waits for the client's first frame
 * assertEquals(either.version, 1);
 *
 * const strict = await meet({ version: 2 });
 * await assertRejects(() => strict.closed, ProtocolError, "version");
 *
 * for (const session of [...clients, either]) session.abort();
 * listener.close();
 * ```
 */
export interface ServerSessionOptions extends SessionOptions {
  /**
   * Version of smux. `"auto"` adopts that of the first frame received, and sends nothing before it. Default `"auto"`.
   */
  version?: Version | "auto" | undefined;
}

/**
 * Options of {@linkcode Session.close}.
 *
 * @example Letting open streams finish
 * ```ts
 * import { serve, Session, type SessionCloseOptions, SessionClosedError } from "@sluice/smux";
 * import { assertEquals, assertRejects } from "@std/assert";
 * import { toText } from "@std/streams";
 *
 * const listener = Deno.listen({ port: 0 });
 * const server = serve(listener, (stream) => stream.readable.pipeTo(stream.writable));
 * const session = Session.client(await Deno.connect({ port: listener.addr.port }));
 * const stream = await session.openStream();
 *
 * const options: SessionCloseOptions = { drain: true, timeout: 5000 };
 * const closing = session.close(options);
 * await assertRejects(() => session.openStream(), SessionClosedError); // no new streams
 * await stream.write(new TextEncoder().encode("last words")); // open streams go on
 * await stream.closeWrite();
 * assertEquals(await toText(stream.readable), "last words");
 * await closing;
 * await server.shutdown();
 * ```
 */
export interface SessionCloseOptions {
  /** Whether to wait until no stream is open before closing. Default false. */
  drain?: boolean | undefined;
  /** Milliseconds after which the session is aborted instead. Default: the session's `timeout`. */
  timeout?: number | undefined;
}

/** Defaults of the options. A third of `timeout` is the default of `keepAliveInterval` where that is less. */
export const DEFAULTS = {
  keepAliveInterval: 10_000,
  timeout: 30_000,
  stalledStreamTimeout: Infinity,
  maxFrameSize: 32_768,
  maxReceiveBuffer: 16 * 1024 * 1024,
  maxStreams: 8192,
  acceptBacklog: 1024,
} as const;

/** Default of `maxStreamBuffer` in bytes, unless half of `maxReceiveBuffer` is less. */
export const MAX_DEFAULT_STREAM_BUFFER = 8 * 1024 * 1024;

type Limits = { readonly [Name in keyof Omit<SessionOptions, "incoming" | "onFrame">]-?: number };

/** Options with every default filled in. */
export interface Settings extends Limits {
  /** Version of smux, or `"auto"`. */
  readonly version: Version | "auto";
  /** Channel of the caller for accepted streams; `undefined` for a channel of the session's own. */
  readonly incoming: Sender<Stream> | undefined;
  /** The caller's function for frames. */
  readonly onFrame: ((frame: FrameEvent) => void) | undefined;
}

/**
 * Checks options against their bounds and each other, and fills in the defaults.
 *
 * @throws {RangeError} A value is out of bounds.
 * @throws {TypeError} Options cannot be combined.
 */
export function resolveOptions(options: ServerSessionOptions, role: "client" | "server"): Settings {
  const { version = role === "client" ? 2 : "auto", incoming, onFrame } = options;
  const { maxReceiveBuffer = DEFAULTS.maxReceiveBuffer } = options;
  const timeout = duration("timeout", options.timeout ?? DEFAULTS.timeout);
  const keepAliveInterval = options.keepAliveInterval ??
    Math.max(1, Math.min(DEFAULTS.keepAliveInterval, Math.floor(timeout / 3)));
  if (version !== 1 && version !== 2 && !(version === "auto" && role === "server")) {
    throw new RangeError(
      `version must be ${role === "client" ? "1 or 2" : '1, 2 or "auto"'}, received ${describeValue(version)}`,
    );
  }
  if (incoming !== undefined && !(incoming instanceof Sender)) {
    throw new TypeError(
      `incoming must be a Sender, as returned by bounded() and unbounded(), received ${describeType(incoming)}`,
    );
  }
  if (incoming !== undefined && options.acceptBacklog !== undefined) {
    throw new TypeError("acceptBacklog cannot be combined with incoming: it limits the session's own channel");
  }
  if (onFrame !== undefined) checkFunction("onFrame", onFrame);
  const settings: Settings = {
    version,
    incoming,
    onFrame,
    keepAliveInterval: duration("keepAliveInterval", keepAliveInterval),
    timeout,
    stalledStreamTimeout: duration(
      "stalledStreamTimeout",
      options.stalledStreamTimeout ?? DEFAULTS.stalledStreamTimeout,
    ),
    maxFrameSize: integer("maxFrameSize", options.maxFrameSize ?? DEFAULTS.maxFrameSize, MAX_PAYLOAD_LENGTH),
    maxReceiveBuffer: integer("maxReceiveBuffer", maxReceiveBuffer, MAX_WINDOW),
    maxStreamBuffer: integer(
      "maxStreamBuffer",
      options.maxStreamBuffer ?? Math.max(1, Math.min(MAX_DEFAULT_STREAM_BUFFER, Math.floor(maxReceiveBuffer / 2))),
      maxReceiveBuffer,
      "maxReceiveBuffer, ",
    ),
    maxStreams: integer("maxStreams", options.maxStreams ?? DEFAULTS.maxStreams, MAX_WINDOW),
    acceptBacklog: integer("acceptBacklog", options.acceptBacklog ?? DEFAULTS.acceptBacklog, MAX_WINDOW),
  };
  if (keepAliveInterval !== Infinity && timeout < keepAliveInterval) {
    throw new RangeError(`timeout must be at least keepAliveInterval, ${keepAliveInterval}, received ${timeout}`);
  }
  return settings;
}

/** Closes the caller's handle of a session that could not start. Otherwise its channel would never end. */
export function closeIncoming(options: SessionOptions): void {
  if (options?.incoming instanceof Sender) options.incoming.close();
}

function integer(name: string, value: number, most: number, mostName = "", instead = ""): number {
  if (Number.isSafeInteger(value) && value >= 1 && value <= most) return value;
  throw new RangeError(
    `${name} must be an integer from 1 to ${mostName}${most}${instead}, received ${describeValue(value)}`,
  );
}

/**
 * Checks a duration in milliseconds, and returns it.
 *
 * @throws {RangeError} It is neither an integer from 1 to 2 147 483 647 nor `Infinity`.
 */
export function duration(name: string, value: number): number {
  if (value === Infinity) return value;
  return integer(name, value, MAX_DELAY_MS, "", " or Infinity");
}
