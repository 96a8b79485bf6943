/**
 * Matches IP addresses against networks.
 *
 * @module
 */

import { BlockList, isIP } from "node:net";
import { withoutUrlPath } from "./address.ts";

/** Whether an IP address, as a socket has it, is in one of some networks. */
export type Networks = (hostname: string) => boolean;

/**
 * Parses networks, each an IP address or `ADDRESS/BITS`.
 *
 * @throws {RangeError} An entry is malformed.
 */
export function parseNetworks(name: string, entries: readonly string[]): Networks {
  const list = new BlockList();
  for (const entry of entries) {
    const [, address = "", bits] = /^([^/]*)(?:\/(\d{1,3}))?$/.exec(entry) ?? [];
    const version = isIP(address);
    const maxBits = version === 4 ? 32 : 128;
    if (version === 0 || Number(bits ?? 0) > maxBits) {
      throw new RangeError(`${name} must be an IP address or ADDRESS/BITS, received "${withoutUrlPath(entry)}"`);
    }
    list.addSubnet(address, Number(bits ?? maxBits), version === 4 ? "ipv4" : "ipv6");
  }
  return (hostname) => {
    const address = unmapped(hostname);
    const version = isIP(address);
    return version !== 0 && list.check(address, version === 4 ? "ipv4" : "ipv6");
  };
}

/** Returns the IPv4 address of an IPv4-mapped IPv6 address, as a listener of both versions sees it. */
export function unmapped(hostname: string): string {
  return hostname.replace(/^::ffff:(?=\d+\.\d+\.\d+\.\d+$)/i, "");
}
