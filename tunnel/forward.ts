/**
 * Forwards what a listener accepts, and joins each connection with its stream.
 *
 * @module
 */

import { connections, join, SessionClosedError, type Stream } from "../mod.ts";
import type { Activity } from "./activity.ts";
import { formatPeer, UNNAMED } from "./address.ts";
import { wrapError } from "./errors.ts";
import type { Listening, Socket } from "./socket.ts";
import { onAbort } from "./wait.ts";

/**
 * Forwards every connection that is accepted to what `open` gives for it, until the signal; settles when there will be no
 * more, with what settles when all have ended, at the latest when those still to be opened are cut.
 */
export async function forwardAll(
  activity: Activity,
  listening: Listening,
  open: (from: Socket) => Promise<Stream>,
  signal: AbortSignal,
  cut?: AbortSignal,
): Promise<{ forwarded: Promise<unknown> }> {
  const forwarding = new Set<Promise<void>>();
  const forward = async (accepted: Socket) => {
    using socket = accepted;
    const off = onAbort(cut, () => socket[Symbol.dispose]());
    const stream = await open(socket).finally(off);
    await forwardStream(activity, stream, socket, `from ${formatPeer(socket.remoteAddr) ?? UNNAMED}`);
  };
  const onError = (error: unknown) => activity.report(wrapError("A connection was lost before it was accepted", error));
  for await (const socket of connections(listening, { signal, onError })) {
    const forwarded = forward(socket).catch((error) => void (cut?.aborted || activity.report(error)));
    forwarding.add(forwarded);
    forwarded.finally(() => forwarding.delete(forwarded));
  }
  return { forwarded: Promise.all(forwarding) };
}

/** Joins a stream and a socket; if that breaks, says whose they were. */
export async function forwardStream(activity: Activity, stream: Stream, socket: Socket, name: string): Promise<void> {
  activity.begin();
  try {
    // What arrives in pieces was sent in pieces, and waits for nothing.
    if ("setNoDelay" in socket) socket.setNoDelay(true);
    await join(stream, socket, { signal: activity.cutting });
  } catch (error) {
    stream.close();
    throw error instanceof SessionClosedError ? error : wrapError(`The connection ${name} broke`, error);
  } finally {
    socket[Symbol.dispose]();
    activity.end();
  }
}
