/**
 * Resolves host names.
 *
 * @module
 */

import { lookup } from "node:dns/promises";
import { isIP } from "node:net";
import { canonical } from "./address.ts";
import { onAbort } from "./wait.ts";

/** The resolver of the system, in one object that a test can replace. */
export const resolver = {
  /** Returns the addresses of a host name, the preferred one first. */
  async lookup(hostname: string): Promise<string[]> {
    const found = await lookup(hostname, { all: true, verbatim: true });
    return found.map(({ address }) => address);
  },
};

/** Returns the addresses of a host, in their canonical form; an address has only itself. */
export async function resolve(hostname: string, signal: AbortSignal): Promise<string[]> {
  const host = canonical(hostname);
  if (isIP(host) !== 0) return [host];
  signal.throwIfAborted();
  const aborted = Promise.withResolvers<never>();
  const off = onAbort(signal, aborted.reject);
  try {
    const found = await Promise.race([resolver.lookup(host), aborted.promise]);
    // An address with a zone, as in fe80::1%eth0, has no canonical form.
    const addresses = found.filter((address) => isIP(address) !== 0 && !address.includes("%")).map(canonical);
    if (addresses.length === 0) throw new Error(`${host} has no address`);
    return [...new Set(addresses)];
  } finally {
    off();
  }
}
