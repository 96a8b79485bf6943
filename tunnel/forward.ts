/**
 * Forwards accepted connections, each over a stream.
 *
 * @module
 */

import { connections, type DuplexConnection, join, type Stream } from "../mod.ts";
import { CountedConnection, type Route } from "./accounting.ts";
import type { Activity } from "./activity.ts";
import { formatPeer, UNNAMED } from "./address.ts";
import { writeAll } from "./bytes.ts";
import { isReportedElsewhere, toError, wrapError } from "./errors.ts";
import { linger } from "./linger.ts";
import { type Listening, reset, type Socket } from "./socket.ts";
import { TcpSocket } from "./tcp.ts";
import { onAbort, sleep } from "./wait.ts";

// Milliseconds until a failed socket is closed after the end of a complete direction was written to it. It is not
// reset, because that drops what the kernel has not sent, and so may its close. Larger: slower receivers get all of it;
// smaller: its peer learns earlier that the other direction is not read.
const LINGER = 500;

/** A stream for an accepted connection. */
export interface Opened {
  stream: Stream;
  /** The target; `undefined` if only the peer knows it. */
  to: string | undefined;
  checks?: Checks | undefined;
  /** What was forwarded already. */
  before?: Before | undefined;
}

/** Bytes of a connection that were forwarded before it is joined: sent to the peer, and received from it. */
export interface Before {
  sent?: number | undefined;
  received?: number | undefined;
}

/** Checks bytes before they are forwarded; what it throws ends the connection. */
export type Check = (p: Uint8Array) => void;

/** The checks of the two directions. */
export interface Checks {
  /** Checks what the socket sends. */
  received?: Check | undefined;
  /** Checks what is sent to the socket. */
  sent?: Check | undefined;
}

/**
 * Forwards each accepted connection over the stream that `open` returns for it; without one, `open` has served it.
 *
 * @param route What the connections have in common, for events and sums.
 * @param signal Stops accepting on abort.
 * @param cut Closes connections that have no stream yet, on abort.
 * @returns A promise that fulfils when accepting has stopped; `forwarded` fulfils when all connections have ended.
 */
export async function forwardAll(
  activity: Activity,
  listening: Listening,
  open: (from: Socket) => Promise<Opened | undefined>,
  route: Pick<Route, "kind" | "user" | "forward">,
  signal: AbortSignal,
  cut?: AbortSignal,
): Promise<{ forwarded: Promise<unknown> }> {
  const forwarding = new Set<Promise<void>>();
  const report = (error: unknown) => void (cut?.aborted || activity.report(error));
  // A socket that was refused with a reply stays open until its peer has read it.
  const opening = async (socket: Socket): Promise<Opened | undefined> => {
    const off = onAbort(cut, () => socket[Symbol.dispose]());
    try {
      return await open(socket);
    } catch (error) {
      report(error);
      await linger(socket);
      return undefined;
    } finally {
      off();
    }
  };
  const forward = async (socket: Socket) => {
    // Not `using`, which Node 20 cannot parse: an import of the tunnel would fail there.
    try {
      const opened = await opening(socket);
      if (opened === undefined) return;
      const { stream, to, checks, before } = opened;
      const from = formatPeer(socket.remoteAddr);
      await forwardStream(activity, stream, socket, `from ${from ?? UNNAMED}`, { ...route, from, to }, checks, before);
    } finally {
      socket[Symbol.dispose]();
    }
  };
  const onError = (error: unknown) => activity.report(wrapError("Cannot accept a connection", error));
  for await (const socket of connections(listening, { signal, onError })) {
    const forwarded = forward(socket).catch(report);
    forwarding.add(forwarded);
    forwarded.finally(() => forwarding.delete(forwarded));
  }
  return { forwarded: Promise.all(forwarding) };
}

/** Names a connection in the error of why it is refused. */
export function refusedFrom({ remoteAddr }: Socket, error: unknown): unknown {
  if (isReportedElsewhere(error)) return error;
  return wrapError(`Refused a connection from ${formatPeer(remoteAddr) ?? UNNAMED}`, error);
}

/** A socket in a join, which leaves it to its owner how the socket is closed. */
class JoinedSocket implements DuplexConnection {
  readonly #socket: Socket;
  readonly #checks: Checks;
  /** Of a socket that has buffers of its own. */
  readonly readChunk: (() => Promise<Uint8Array | null>) | undefined;
  /** Whether the end of a complete direction was written. */
  hasEnded = false;

  constructor(socket: Socket, checks: Checks) {
    this.#socket = socket;
    this.#checks = checks;
    if (socket instanceof TcpSocket) this.readChunk = () => this.#readChunk(socket);
  }

  async #readChunk(socket: TcpSocket): Promise<Uint8Array | null> {
    const chunk = await socket.readReceived();
    if (chunk !== null) this.#checks.received?.(chunk);
    return chunk;
  }

  read(p: Uint8Array): Promise<number | null> {
    const { received } = this.#checks;
    return received === undefined ? this.#socket.read(p) : this.#readChecked(p, received);
  }

  write(p: Uint8Array): Promise<number> {
    const { sent } = this.#checks;
    return sent === undefined ? this.#socket.write(p) : this.#writeChecked(p, sent);
  }

  async #readChecked(p: Uint8Array, check: Check): Promise<number | null> {
    const count = await this.#socket.read(p);
    if (count !== null) check(p.subarray(0, count));
    return count;
  }

  async #writeChecked(p: Uint8Array, check: Check): Promise<number> {
    check(p);
    // All of them: what is left would be checked twice.
    await writeAll(this.#socket, p);
    return p.length;
  }

  async closeWrite(): Promise<void> {
    await this.#socket.closeWrite();
    this.hasEnded = true;
  }

  close(): void {}
}

/**
 * Joins a stream and a socket. When one of them fails, the other is aborted or reset, so that the failure does not look
 * like an end to its peer.
 *
 * @param name Names the socket in errors, such as "to localhost:80".
 */
export async function forwardStream(
  activity: Activity,
  stream: Stream,
  socket: Socket,
  name: string,
  route: Route,
  checks: Checks = {},
  { sent = 0, received = 0 }: Before = {},
): Promise<void> {
  const forwarding = activity.begin(route);
  forwarding.countSent(sent);
  forwarding.countReceived(received);
  const joined = new JoinedSocket(socket, checks);
  let failed: Error | undefined;
  try {
    // Nagle's algorithm would delay chunks that their sender did not delay.
    if ("setNoDelay" in socket) socket.setNoDelay(true);
    await join(stream, new CountedConnection(joined, forwarding), { signal: activity.cutting });
  } catch (error) {
    failed = toError(error);
    stream.abort(error);
    if (joined.hasEnded) await sleep(LINGER, activity.cutting);
    else reset(socket);
    throw isReportedElsewhere(error) ? error : wrapError(`The connection ${name} failed`, error);
  } finally {
    socket[Symbol.dispose]();
    forwarding.end(failed);
  }
}
