/**
 * Decides which addresses clients may request: the entries of `allow` and `allowListen`.
 *
 * @module
 */

import { BlockList, isIP } from "node:net";
import { canonical, type Endpoint, withoutUrlPath } from "./address.ts";

/** One entry: whether it allows or denies, and what it matches. The host of an endpoint must be canonical. */
interface Entry {
  isAllowing: boolean;
  /** Whether it is about datagrams. */
  isUdp: boolean;
  /** Whether it matches an endpoint at an address; of a Unix socket the address is empty. */
  matches(endpoint: Endpoint, address: string): boolean;
  /** Whether it matches an endpoint at some address. */
  mayMatch(endpoint: Endpoint): boolean;
}

/** Returns an endpoint with a canonical host. */
function normalize(endpoint: Endpoint): Endpoint {
  return endpoint.path === undefined ? { ...endpoint, hostname: canonical(endpoint.hostname) } : endpoint;
}

/** The host of an entry. */
type Host = { isAny: true } | { name: string } | { network: BlockList; family: number };

// Groups: deny, datagrams, path, host, ports, ports without a host. "udp:*" has no port, and not the host "udp".
const ENTRY =
  /^(!?)(?!udp:\*$)(udp:)?(?:unix:([!-~]+)|(\*|\[[\da-f:.]+(?:\/\d+)?\]|[\w.-]+(?:\/\d+)?):(\*|\d+(?:-\d+)?)|(\d+(?:-\d+)?))$/i;

/** The entries of `allow` or `allowListen`. The last entry that matches decides; without one the request is denied. */
export class Rules {
  readonly #entries: readonly Entry[];
  /** Whether the addresses are those to listen at. */
  readonly #isListening: boolean;

  /**
   * @param name The name of the option, for errors.
   * @param isUdp Whether the entries about datagrams are used, or all others.
   * @throws {RangeError} An entry is malformed.
   */
  constructor(name: string, entries: readonly string[], isUdp = false) {
    this.#entries = entries.map((entry) => parseRule(name, entry)).filter((entry) => entry.isUdp === isUdp);
    this.#isListening = name === "allowListen";
  }

  /** Whether the endpoint is allowed at an address, which its host was resolved to; empty for a Unix socket. */
  allows(endpoint: Endpoint, address: string): boolean {
    if (endpoint.path === undefined && isIP(address) === 0) return false;
    const normal = normalize(endpoint);
    // What denies 127.0.0.1 must not be avoided by a connection to 0.0.0.0.
    const reached = this.#isListening ? address : reachedBy(address);
    const matches = ({ isAllowing, matches }: Entry) =>
      matches(normal, address) || (!isAllowing && matches(normal, reached));
    return this.#entries.findLast(matches)?.isAllowing ?? false;
  }

  /** Whether the endpoint may be allowed at some address: otherwise its host need not be resolved. */
  mayAllow(endpoint: Endpoint): boolean {
    const normal = normalize(endpoint);
    return this.#entries.some((entry) => entry.isAllowing && entry.mayMatch(normal));
  }
}

/**
 * Parses one entry.
 *
 * @throws {RangeError} It is malformed.
 */
export function parseRule(name: string, entry: string): Entry {
  const [, denies, udp, path, given = "127.0.0.1", ports, portsAlone] = ENTRY.exec(entry) ?? [];
  const [isAllowing, isUdp] = [denies === "", udp !== undefined];
  if (path !== undefined && !isUdp) {
    const matches = (endpoint: Endpoint) => endpoint.path === path;
    return { isAllowing, isUdp, matches, mayMatch: matches };
  }
  const range = ports ?? portsAlone;
  const host = range === undefined ? undefined : parseHost(given);
  if (host === undefined) {
    const received = withoutUrlPath(entry);
    throw new RangeError(
      `${name} must be HOST:PORT, [IPV6]:PORT, NETWORK/BITS:PORT, PORT or unix:PATH, where HOST may be *, PORT may be * ` +
        `or a range as 8000-8010, ! in front denies, and udp: before HOST is for datagrams, received "${received}"`,
    );
  }
  const [least, most] = parsePorts(name, range!);
  const hasPort = ({ port }: Endpoint) => port !== undefined && port >= least && port <= most;
  return {
    isAllowing,
    isUdp,
    matches: (endpoint, address) => hasPort(endpoint) && hasHost(host, isAllowing, endpoint, address),
    mayMatch: (endpoint) => hasPort(endpoint) && (!("name" in host) || host.name === endpoint.hostname),
  };
}

function parsePorts(name: string, range: string): [least: number, most: number] {
  // Port 0, any free port of `allowListen`, is among all ports, and in no range.
  if (range === "*") return [0, 65535];
  const [least, most = least] = range.split("-").map(Number) as [number, number?];
  if (least >= 1 && most <= 65535 && least <= most) return [least, most];
  throw new RangeError(`${name} must have a port from 1 to 65535, or a range of them, received ${range}`);
}

/** Parses the host of an entry; `undefined` if it is malformed. */
function parseHost(text: string): Host | undefined {
  if (text === "*") return { isAny: true };
  const [, hostname, bits] = /^\[?([^/\]]*)(?:\/(\d+))?\]?$/.exec(text)!;
  if (!URL.canParse(`http://${text.startsWith("[") ? `[${hostname}]` : hostname}/`)) return undefined;
  const host = canonical(hostname!);
  const family = isIP(host);
  if (family === 0) return bits === undefined ? { name: host } : undefined;
  const width = family === 4 ? 32 : 128;
  // An IPv4 network mapped into IPv6 has 96 bits in front.
  const prefix = bits === undefined ? width : Number(bits) - (family === 4 && text.startsWith("[") ? 96 : 0);
  if (prefix < 0 || prefix > width) return undefined;
  return { network: networks([`${host}/${prefix}`]), family };
}

/** Makes the set of all addresses in networks such as "10.0.0.0/8". */
function networks(all: readonly string[]): BlockList {
  const list = new BlockList();
  for (const network of all) {
    const [address, bits] = network.split("/") as [string, string];
    list.addSubnet(address, Number(bits), familyOf(address));
  }
  return list;
}

function familyOf(address: string): "ipv4" | "ipv6" {
  return isIP(address) === 4 ? "ipv4" : "ipv6";
}

// Cloud providers serve credentials of the machine here.
const LINK_LOCAL = networks(["169.254.0.0/16", "fe80::/10"]);
const LOOPBACK = networks(["127.0.0.0/8", "::1/128"]);
// Connections to them reach this machine.
const UNSPECIFIED = networks(["0.0.0.0/8", "::/128"]);

/** Returns the address that a connection to an address reaches. */
function reachedBy(address: string): string {
  const isUnspecified = address !== "" && UNSPECIFIED.check(address, familyOf(address));
  return !isUnspecified ? address : isIP(address) === 4 ? "127.0.0.1" : "::1";
}

function hasHost(host: Host, isAllowing: boolean, endpoint: Endpoint, address: string): boolean {
  if ("name" in host) return host.name === endpoint.hostname;
  if ("network" in host) return host.family === isIP(address) && host.network.check(address, familyOf(address));
  return !isAllowing || isOfAny(endpoint.hostname!, address);
}

/** Whether an allowing `*` includes an address: that of a name which an outsider chose must not reach this machine. */
function isOfAny(hostname: string, address: string): boolean {
  const family = familyOf(address);
  if (LINK_LOCAL.check(address, family)) return false;
  if (hostname === address) return true;
  if (LOOPBACK.check(address, family)) return /^(.+\.)?localhost$/.test(hostname);
  return !UNSPECIFIED.check(address, family);
}
