/**
 * Chooses a proxy by the variables of the environment: `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`.
 *
 * @module
 */

import { isIP } from "node:net";
import { canonical, isLoopback, parseEndpoint } from "./address.ts";
import { parseNetworks } from "./cidr.ts";
import { readVariable } from "./environment.ts";
import { parseUpstream } from "./upstream.ts";

// In the order of curl, lower case first.
const PROXIES = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
const EXCEPTIONS = ["no_proxy", "NO_PROXY"];

/** Returns the first variable that is set and not empty, and its name. */
function firstOf(names: readonly string[]): { name: string; value: string } | undefined {
  for (const name of names) {
    const value = readVariable(name)?.trim();
    if (value) return { name, value };
  }
  return undefined;
}

/** Splits an entry into its host and its port, if it has one. */
function splitEntry(entry: string): { host: string; port: string | undefined } {
  const [, inner, innerPort] = /^\[([^\]]*)\](?::(\d+))?$/.exec(entry) ?? [];
  if (inner !== undefined) return { host: inner, port: innerPort };
  // Without brackets more than one colon is part of an IPv6 address.
  const [, host, port] = /^([^:]*):(\d+)$/.exec(entry) ?? [];
  return host === undefined ? { host: entry, port: undefined } : { host, port };
}

/** Whether an address or a network contains a host; `false` if it is neither. */
function isInNetwork(entry: string, host: string): boolean {
  try {
    return parseNetworks("NO_PROXY", [entry])(host);
  } catch {
    return false;
  }
}

/**
 * Whether `NO_PROXY` exempts a host: its entries, separated by commas or spaces, are `*`, addresses, networks
 * (`10.0.0.0/8`), and names, which include their subdomains; each with a port or without. Malformed entries have no
 * effect.
 */
export function isExempt(exceptions: string, hostname: string, port: number): boolean {
  const name = canonical(hostname);
  return exceptions.split(/[\s,]+/).filter((entry) => entry !== "").some((entry) => {
    const { host, port: only } = splitEntry(entry);
    if (only !== undefined && Number(only) !== port) return false;
    if (host === "*") return true;
    if (isIP(name) !== 0) return isInNetwork(host, name);
    const suffix = host.toLowerCase().replace(/^\*?\./, "").replace(/\.$/, "");
    return suffix !== "" && (name === suffix || name.endsWith(`.${suffix}`));
  });
}

/**
 * Returns a function from the address of a server to the proxy that the environment has for it, as `proxy` accepts it:
 * servers on this machine have none. `undefined`: the environment has no proxy.
 *
 * @throws {RangeError} The variable is malformed.
 */
export function proxyOfEnvironment(): ((server: string) => string | undefined) | undefined {
  const found = firstOf(PROXIES);
  if (found === undefined) return undefined;
  // Other programs accept HOST:PORT, too.
  const proxy = found.value.includes("://") ? found.value : `http://${found.value}`;
  parseUpstream(`$${found.name}`, proxy);
  const exceptions = firstOf(EXCEPTIONS)?.value ?? "";
  return (server) => {
    const { path, hostname, port } = parseEndpoint("connect", server, 1);
    if (path !== undefined || isLoopback(canonical(hostname))) return undefined;
    return isExempt(exceptions, hostname, port) ? undefined : proxy;
  };
}
