/**
 * Listens for what is forwarded: connections or datagrams.
 *
 * @module
 */

import { parseEndpoint, splitUdp } from "./address.ts";
import { type Listening, listenOn, listenToForward } from "./socket.ts";
import { listenUdp, udpEndpoint, type UdpListening } from "./udp_socket.ts";

/** What is listened on. */
export type AnyListening = Listening | UdpListening;

/** Listens on LISTEN, with `udp:` in front for datagrams. */
export async function listenTo(listen: string): Promise<AnyListening> {
  const [isUdp, address] = splitUdp(listen);
  if (!isUdp) return await listenToForward(listen);
  return await listenUdp(udpEndpoint(parseEndpoint("listen", address, 0)));
}

/** Rejects if an address cannot be listened on. */
export async function checkFree(listen: string): Promise<void> {
  if (!splitUdp(listen)[0]) return listenOn(listen).close();
  const listening = await listenTo(listen);
  listening.close();
  await listening.closed;
}
