/**
 * Listens for what is forwarded: connections or datagrams.
 *
 * @module
 */

import { parseEndpoint, splitUdp } from "./address.ts";
import { type Listening, listenOn, listenToForward } from "./socket.ts";
import { listenUdp, udpEndpoint, type UdpListening } from "./udp_socket.ts";
import { sleep } from "./wait.ts";

// Milliseconds for which an address in use is tried again. Larger: an address that another program has taken is
// reported later; smaller: a loaded machine may not have started the program that holds it.
const MAX_HELD = 1000;
// Milliseconds between the attempts. Larger: a longer outage; smaller: more attempts.
const HELD_PAUSE = 10;

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

/**
 * Listens at an address where this process has just listened. A program that this process starts holds a copy of the
 * closed socket until it runs, so an address in use is tried again for a second.
 *
 * @param signal Ends the attempts on abort.
 * @throws The error of the last attempt.
 */
export async function listenAgain<T>(listen: () => T | Promise<T>, signal: AbortSignal): Promise<T> {
  for (const begun = performance.now();;) {
    try {
      return await listen();
    } catch (error) {
      const isInUse = error instanceof Error && error.cause instanceof Deno.errors.AddrInUse;
      if (!isInUse || performance.now() - begun >= MAX_HELD) throw error;
      await sleep(HELD_PAUSE, signal);
      if (signal.aborted) throw error;
    }
  }
}
