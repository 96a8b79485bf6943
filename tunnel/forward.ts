/**
 * Forwards accepted connections, each over a stream.
 *
 * @module
 */

import { connections, join, SessionClosedError, type Stream } from "../mod.ts";
import { CountedConnection, type Route } from "./accounting.ts";
import type { Activity } from "./activity.ts";
import { formatPeer, UNNAMED } from "./address.ts";
import { toError, wrapError } from "./errors.ts";
import type { Listening, Socket } from "./socket.ts";
import { onAbort } from "./wait.ts";

/** A stream for an accepted connection. */
export interface Opened {
  stream: Stream;
  /** The target; `undefined` if only the peer knows it. */
  to: string | undefined;
}

/**
 * Forwards each accepted connection over the stream that `open` returns for it.
 *
 * @param route What the connections have in common, for events and sums.
 * @param signal Stops accepting on abort.
 * @param cut Closes connections that have no stream yet, on abort.
 * @returns A promise that fulfils when accepting has stopped; `forwarded` fulfils when all connections have ended.
 */
export async function forwardAll(
  activity: Activity,
  listening: Listening,
  open: (from: Socket) => Promise<Opened>,
  route: Pick<Route, "kind" | "user" | "forward">,
  signal: AbortSignal,
  cut?: AbortSignal,
): Promise<{ forwarded: Promise<unknown> }> {
  const forwarding = new Set<Promise<void>>();
  const forward = async (socket: Socket) => {
    // Not `using`, which Node 20 cannot parse: an import of the tunnel would fail there.
    try {
      const off = onAbort(cut, () => socket[Symbol.dispose]());
      const { stream, to } = await open(socket).finally(off);
      const from = formatPeer(socket.remoteAddr);
      await forwardStream(activity, stream, socket, `from ${from ?? UNNAMED}`, { ...route, from, to });
    } finally {
      socket[Symbol.dispose]();
    }
  };
  const onError = (error: unknown) => activity.report(wrapError("Cannot accept a connection", error));
  for await (const socket of connections(listening, { signal, onError })) {
    const forwarded = forward(socket).catch((error) => void (cut?.aborted || activity.report(error)));
    forwarding.add(forwarded);
    forwarded.finally(() => forwarding.delete(forwarded));
  }
  return { forwarded: Promise.all(forwarding) };
}

/** Joins a stream and a socket; `name`, such as "to localhost:80", names the socket in errors. */
export async function forwardStream(
  activity: Activity,
  stream: Stream,
  socket: Socket,
  name: string,
  route: Route,
): Promise<void> {
  const forwarding = activity.begin(route);
  let failed: Error | undefined;
  try {
    // Nagle's algorithm would delay chunks that their sender did not delay.
    if ("setNoDelay" in socket) socket.setNoDelay(true);
    await join(stream, new CountedConnection(socket, forwarding), { signal: activity.cutting });
  } catch (error) {
    failed = toError(error);
    stream.close();
    throw error instanceof SessionClosedError ? error : wrapError(`The connection ${name} failed`, error);
  } finally {
    socket[Symbol.dispose]();
    forwarding.end(failed);
  }
}
