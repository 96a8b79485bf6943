/**
 * Forwards the datagrams of a listener, and those of one stream to its target.
 *
 * @module
 */

import type { Stream } from "../mod.ts";
import type { Route } from "./accounting.ts";
import type { Activity } from "./activity.ts";
import { format } from "./address.ts";
import type { Opened } from "./forward.ts";
import { Flow } from "./udp_flow.ts";
import { Flows, MAX_SOURCES } from "./udp_flows.ts";
import type { UdpAddress, UdpListening, UdpPeer } from "./udp_socket.ts";
import { parseAddress } from "./visitor.ts";
import { MAX_TIMEOUT, onAbort } from "./wait.ts";

// Milliseconds by which the end with the target waits longer than the other. Larger: streams of a peer that has forgotten
// them stay for longer; smaller: on a slow link this end closes first, and the other one sees an end instead of silence.
const LAG = 5000;

/** How a listener forwards datagrams. */
interface ForwardOptions {
  /** Opens the stream of a source. */
  open: (from: UdpAddress) => Promise<Opened>;
  /** What the sources have in common, for events and sums. */
  route: Pick<Route, "kind" | "user" | "forward">;
  /** Stops on abort. */
  signal: AbortSignal;
  /** Returns the milliseconds without a datagram after which a source is forgotten. */
  timeout: () => number;
}

/**
 * Forwards the datagrams that a socket receives, those of each source over a stream of its own. Answers are sent from
 * the address that is listened on.
 *
 * @returns A promise that fulfils when it has stopped, and the streams are closed.
 */
export async function forwardDatagrams(
  activity: Activity,
  { socket }: UdpListening,
  { open, route, signal, timeout }: ForwardOptions,
): Promise<void> {
  const flows = new Flows(activity, {
    max: MAX_SOURCES,
    timeout,
    open: async (key) => {
      const { stream, to } = await open(parseAddress(key)!);
      return { stream, route: { ...route, from: key, to } };
    },
    deliver: (key, datagram) => socket.send(datagram, parseAddress(key)!),
  });
  socket.receive((datagram, from) => flows.push(format(from), datagram));
  const off = onAbort(signal, () => {
    socket.close();
    // Before the caller goes on: it counts the streams that are open.
    flows.close();
  });
  await socket.closed;
  off();
  await flows.close();
}

/** Forwards the datagrams of one stream to their target, and the answers back, until the stream ends. */
export async function forwardToPeer(
  activity: Activity,
  stream: Stream,
  peer: UdpPeer,
  route: Route,
  timeout: () => number,
): Promise<void> {
  const flow = new Flow(activity);
  peer.receive((datagram) => flow.push(datagram));
  let timer: ReturnType<typeof setTimeout>;
  const wait = () => {
    const limit = timeout();
    const rest = flow.activeAt + limit + Math.min(LAG, limit / 4) - performance.now();
    if (rest <= 0) return flow.end(true);
    timer = setTimeout(wait, Math.min(Math.ceil(rest), MAX_TIMEOUT));
  };
  wait();
  try {
    await flow.run(stream, (datagram) => peer.send(datagram), `to ${route.to}`, route);
  } finally {
    clearTimeout(timer!);
    peer.close();
  }
}
