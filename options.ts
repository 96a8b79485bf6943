/**
 * The options of sessions: their defaults, their bounds, and which go together.
 *
 * @module
 */

import { Sender } from "./channel.ts";
import { MAX_DELAY_MS } from "./_clock.ts";
import { MAX_PAYLOAD_LENGTH, type Version } from "./frame.ts";
import type { Stream } from "./stream.ts";
import type { FrameEvent } from "./_trace.ts";
import { MAX_WINDOW } from "./_window.ts";

/**
 * Options of a session, client or server. All sizes are in bytes, all times in milliseconds.
 *
 * @example Limits for clients one does not know
 * ```ts
 * import { Session, type SessionOptions } from "@sluice/smux";
 * import { assertEquals } from "@std/assert";
 *
 * const limits: SessionOptions = {
 *   maxStreams: 2, // open at once
 *   acceptBacklog: 2, // of them, not accepted yet
 *   maxReceiveBuffer: 1024 * 1024, // unread bytes of all its streams
 *   stalledStreamTimeout: 10_000, // how long a stream that is not read may hold up the others
 *   timeout: 20_000, // how long the client may be silent
 * };
 *
 * const listener = Deno.listen({ port: 0 });
 * await using client = Session.client(await Deno.connect({ port: listener.addr.port }));
 * await using server = Session.server(await listener.accept(), limits);
 * for (let n = 0; n < 2; n++) await client.openStream();
 * const third = await client.openStream();
 * assertEquals(await third.read(new Uint8Array(1)), null); // it is one too many: ended at once
 * assertEquals(server.stats().refused, 1);
 * listener.close();
 * ```
 */
export interface SessionOptions {
  /**
   * A channel of the caller's for the streams that the peer opens, so that many sessions can feed one pool. The session
   * owns this handle and closes it when it ends: pass a clone. A full channel refuses streams as `acceptBacklog` does.
   * Not together with `acceptBacklog`.
   */
  incoming?: Sender<Stream> | undefined;
  /** Milliseconds without a write after which a NOP is sent. `Infinity`: never. Default 10 000, as in Go. */
  keepAliveInterval?: number | undefined;
  /**
   * Milliseconds before giving up on:
   *
   * - a silent peer: the session ends. An idle peer without keepalive is silent, such as Go's smux with
   *   `KeepAliveDisabled` or AWS's session-manager-plugin: raise this, or set it to `Infinity`. A peer that sends but does
   *   not read is not silent.
   * - a write of the transport without progress, while `maxReceiveBuffer` is full so that the peer cannot be heard: the
   *   session ends.
   * - credit, in version 2, after the peer has ended its half of a stream: the write rejects.
   * - {@linkcode Session.close}: the session is aborted.
   *
   * Time in which this process stood still does not count. `Infinity`: never. At least `keepAliveInterval`. Default
   * 30 000, as in Go.
   */
  timeout?: number | undefined;
  /** Most data in one frame that is sent, 1 to 65 535. Default 32 768, as in Go; any length is received. */
  maxFrameSize?: number | undefined;
  /**
   * Unread bytes of all streams together at which the transport is not read any more, until some have been read. The
   * memory held for them is at most twice this. Default 16 MiB.
   */
  maxReceiveBuffer?: number | undefined;
  /**
   * The largest window of one stream in version 2, in bytes: what its peer may send before the application reads. Default
   * 8 MiB, or half of `maxReceiveBuffer` if that is less.
   *
   * A window starts with 256 KiB (or this, if it is less), or with what earlier streams of the session have learnt. It
   * grows while it limits the sender. It shrinks, to 32 KiB at least, while the sender's bytes stand in a queue that all
   * streams of the connection wait behind. Windows that have grown take up at most half of `maxReceiveBuffer` together.
   * Once half of `maxReceiveBuffer` is unread, a stream may hold at most 1/256 of the rest (at least 1 KiB); one that
   * holds more loses its credit until it has been read. So streams that are not read leave room for the others.
   */
  maxStreamBuffer?: number | undefined;
  /** Streams of the peer that may be open at once; more are refused. Default 8192: 32 MiB, at less than 4 KiB each. */
  maxStreams?: number | undefined;
  /**
   * Accepted streams that may wait in `incoming`. Further ones are refused, once the acceptors have run since it was full.
   * Default 1024, as in Go.
   */
  acceptBacklog?: number | undefined;
  /**
   * Milliseconds after which stalled streams are cut, if their unread bytes hold up all others: in version 1 when
   * `maxReceiveBuffer` is full, in version 2 when less than an eighth of it is free. A stream has stalled when nothing of
   * it was read in that time or, where other streams wait, less than 16 KiB per second. Those that hold most are cut:
   * their reads and writes reject with a "TimeoutError" that names the stream, and the session goes on. Default
   * `Infinity`: never; {@linkcode serve} has a default of 5000.
   */
  stalledStreamTimeout?: number | undefined;
  /**
   * Receives every frame that is sent or received, in order, soon after it: to see why a stream is stuck. An error that it
   * throws ends the session. It costs time for every frame; without it a session does not spend any.
   */
  onFrame?: ((frame: FrameEvent) => void) | undefined;
}

/**
 * Options of {@linkcode Session.client}.
 *
 * @example A client of a Go server as it comes
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
 * assertEquals([opened.id, accepted.id], [3, 3]); // the first id of a client's, as in Go
 * listener.close();
 * ```
 */
export interface ClientSessionOptions extends SessionOptions {
  /** The version of smux, which the peer must speak too. Go's default is 1. Default 2. */
  version?: Version | undefined;
}

/**
 * Options of {@linkcode Session.server}.
 *
 * @example Taking either version, or one
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
 * await either.openStream(); // it waits for the client's first frame
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
  /** The version of smux; `"auto"` is that of the first frame that arrives, before which nothing is sent. Default "auto". */
  version?: Version | "auto" | undefined;
}

/**
 * Options of {@linkcode Session.close}.
 *
 * @example Finishing what is under way
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
 * const patient: SessionCloseOptions = { drain: true, timeout: 5000 };
 * const closing = session.close(patient);
 * await assertRejects(() => session.openStream(), SessionClosedError); // nothing new begins
 * await stream.write(new TextEncoder().encode("last words")); // what has begun goes on
 * await stream.closeWrite();
 * assertEquals(await toText(stream.readable), "last words");
 * await closing;
 * await server.shutdown();
 * ```
 */
export interface SessionCloseOptions {
  /** Wait first until no stream is open. Default false. */
  drain?: boolean | undefined;
  /** Milliseconds after which the session is aborted instead. Default: the session's `timeout`. */
  timeout?: number | undefined;
}

type Limits = { readonly [Name in keyof Omit<SessionOptions, "incoming" | "onFrame">]-?: number };

/** The options with every default filled in. */
export interface Settings extends Limits {
  /** The version, or `"auto"`. */
  readonly version: Version | "auto";
  /** The caller's channel. */
  readonly incoming: Sender<Stream> | undefined;
  /** The caller's function for frames. */
  readonly onFrame: ((frame: FrameEvent) => void) | undefined;
}

/**
 * Checks options against their bounds and each other, and fills in the defaults.
 *
 * @throws {RangeError} A value is out of bounds.
 * @throws {TypeError} Options do not go together.
 */
export function resolveOptions(options: ServerSessionOptions, role: "client" | "server"): Settings {
  const { version = role === "client" ? 2 : "auto", maxReceiveBuffer = 16 * 1024 * 1024, incoming, onFrame } = options;
  if (version !== 1 && version !== 2 && !(version === "auto" && role === "server")) {
    throw new RangeError(`version must be ${role === "client" ? "1 or 2" : '1, 2 or "auto"'}, received ${version}`);
  }
  if (incoming !== undefined && !(incoming instanceof Sender)) {
    throw new TypeError("incoming must be a Sender: the sending end that bounded() or unbounded() gives");
  }
  if (incoming !== undefined && options.acceptBacklog !== undefined) {
    throw new TypeError("acceptBacklog is the bound of the session's own channel: it cannot go with incoming");
  }
  if (onFrame !== undefined && typeof onFrame !== "function") {
    throw new TypeError(`onFrame must be a function, received ${typeof onFrame}`);
  }
  const settings: Settings = {
    version,
    incoming,
    onFrame,
    keepAliveInterval: duration("keepAliveInterval", options.keepAliveInterval ?? 10_000),
    timeout: duration("timeout", options.timeout ?? 30_000),
    stalledStreamTimeout: duration("stalledStreamTimeout", options.stalledStreamTimeout ?? Infinity),
    maxFrameSize: integer("maxFrameSize", options.maxFrameSize ?? 32_768, MAX_PAYLOAD_LENGTH),
    maxReceiveBuffer: integer("maxReceiveBuffer", maxReceiveBuffer, MAX_WINDOW),
    maxStreamBuffer: integer(
      "maxStreamBuffer",
      options.maxStreamBuffer ?? Math.max(1, Math.min(8 * 1024 * 1024, Math.floor(maxReceiveBuffer / 2))),
      maxReceiveBuffer,
      "maxReceiveBuffer, ",
    ),
    maxStreams: integer("maxStreams", options.maxStreams ?? 8192, MAX_WINDOW),
    acceptBacklog: integer("acceptBacklog", options.acceptBacklog ?? 1024, MAX_WINDOW),
  };
  const { keepAliveInterval, timeout } = settings;
  if (keepAliveInterval !== Infinity && timeout < keepAliveInterval) {
    throw new RangeError(`timeout must be at least keepAliveInterval, ${keepAliveInterval}, received ${timeout}`);
  }
  return settings;
}

function integer(name: string, value: number, most: number, mostName = "", instead = ""): number {
  if (Number.isSafeInteger(value) && value >= 1 && value <= most) return value;
  throw new RangeError(`${name} must be an integer from 1 to ${mostName}${most}${instead}, received ${value}`);
}

/**
 * Checks milliseconds, or `Infinity`.
 *
 * @throws {RangeError} They are out of bounds.
 */
export function duration(name: string, value: number): number {
  if (value === Infinity) return value;
  return integer(name, value, MAX_DELAY_MS, "", " or Infinity");
}
