/**
 * Parses and formats addresses, and checks whether other machines can reach them.
 *
 * @module
 */

/** An address to listen at or to connect to. */
export type Endpoint = { hostname: string; port: number; path?: undefined } | {
  path: string;
  hostname?: undefined;
  port?: undefined;
};

/** End of an entry whose target expects a header of the PROXY protocol. */
const PROXIED = ",proxy";

/** Begins an address for datagrams. */
export const UDP = "udp:";

/** Splits the `udp:` that an address may begin with off. */
export function splitUdp(text: string): [isUdp: boolean, address: string] {
  return text.startsWith(UDP) ? [true, text.slice(UDP.length)] : [false, text];
}

/**
 * Hides the path of a URL, or what follows HOST:PORT like a path, and what looks like a password: these may be secrets.
 * Any other text is unchanged.
 */
export function withoutPath(text: string): string {
  if (text.startsWith("unix:")) return text;
  const [, start, authority, rest] = /^((?:wss?:\/{0,2}|[a-z][a-z\d+.-]*:\/{1,2})?)([^/?#]*)(.*)$/is.exec(text)!;
  return start! + (authority!.includes("@") ? "..." : authority!) + (rest === "" ? "" : "/...");
}

/** Hides the path and the password of a URL that was written instead of another value. */
export function withoutUrlPath(text: string): string {
  return /^!?(?:udp:)?(?!unix:)[a-z][a-z\d+.-]*:\//i.test(text) ? withoutPath(text) : text;
}

export function parseEndpoint(name: string, text: string, leastPort: number): Endpoint {
  if (/^unix:[!-~]+$/.test(text)) return { path: text.slice("unix:".length) };
  const [, ipv6, given = "127.0.0.1", digits] = /^(?:(?:\[([\da-f:.]+)\]|([\w.-]+)):)?(\d+)$/i.exec(text) ?? [];
  const host = ipv6 === undefined ? given : `[${ipv6}]`;
  if (digits === undefined || !URL.canParse(`http://${host}/`)) {
    throw new RangeError(`${name} must be HOST:PORT, [IPV6]:PORT, PORT or unix:PATH, received "${withoutPath(text)}"`);
  }
  const port = Number(digits);
  if (port >= leastPort && port <= 65535) return { hostname: ipv6 ?? given, port };
  throw new RangeError(`${name} must have a port from ${leastPort} to 65535, received ${digits}`);
}

/** An entry of `forward` or `reverse`. */
interface Forward {
  /** As it was written, with `udp:`. */
  listen: string;
  /** `undefined`: the fixed target of the server. */
  target: string | undefined;
  /** Whether the target expects a header of the PROXY protocol. */
  isProxied: boolean;
  /** Whether datagrams are forwarded. */
  isUdp: boolean;
}

/** Splits LISTEN=TARGET, or LISTEN alone, each with `,proxy` at its end or without; or udp:LISTEN=TARGET. */
export function parseForward(name: string, text: string): Forward {
  const isProxied = text.endsWith(PROXIED);
  const [listen, target] = (isProxied ? text.slice(0, -PROXIED.length) : text).split(/=(.*)/s) as [string, string?];
  const [isUdp, address] = splitUdp(listen);
  const { path } = parseEndpoint(name, address, 0);
  const to = target === undefined ? undefined : parseEndpoint(name, target, 1);
  if (isUdp && (to === undefined || isProxied || (path ?? to.path) !== undefined)) {
    throw new RangeError(`${name} with udp: must be udp:LISTEN=TARGET without unix: and ,proxy, received "${text}"`);
  }
  return { listen, target, isProxied, isUdp };
}

/**
 * Normalizes a host: lower case without a final dot, IPv6 compressed, and IPv4 as four numbers, also if it is mapped
 * into IPv6.
 */
export function canonical(hostname: string): string {
  const host = new URL(`http://${hostname.includes(":") ? `[${hostname}]` : hostname}/`).hostname;
  const [, high, low] = /^\[::ffff:([\da-f]+):([\da-f]+)\]$/.exec(host) ?? [];
  if (high === undefined) return host.replace(/^\[|\]$|\.$/g, "");
  return [high, low!].flatMap((part) => [parseInt(part, 16) >> 8, parseInt(part, 16) & 255]).join(".");
}

/** Rejects TLS over a Unix socket. */
export function checkTls(name: string, text: string): void {
  if (!text.startsWith("unix:")) return;
  throw new RangeError(`${name} must be HOST:PORT when TLS is used, received "${text}"`);
}

/** Whether only this machine can reach a host. */
export function isLoopback(hostname: string): boolean {
  return /^(localhost|127(\.\d+){3}|::1)$/i.test(hostname);
}

/** Rejects an address that other machines can reach, unless `insecure` allows it. */
export function checkExposed(name: string, text: string, insecure = false): void {
  // Elsewhere "udp" is a host.
  const { path, hostname } = parseEndpoint(name, name === "forward" ? splitUdp(text)[1] : text, 0);
  if (insecure || path !== undefined || isLoopback(hostname)) return;
  const why = name === "connect"
    ? "sending the secret to another machine requires TLS, or insecure"
    : name === "listen"
    ? "accepting connections from other machines requires TLS and a secret, or insecure"
    : "accepting connections from other machines requires insecure";
  throw new RangeError(`${name} must be a loopback address, received "${text}": ${why}`);
}

/** The address of a TCP or Unix socket. */
interface SocketAddress {
  hostname?: string | undefined;
  port?: number | undefined;
  path?: string | null | undefined;
}

/** Formats an address as options accept it. */
export function format({ hostname = "", port, path }: SocketAddress): string {
  if (path !== undefined) return `unix:${path}`;
  return hostname.includes(":") ? `[${hostname}]:${port}` : `${hostname}:${port}`;
}

/** Name of a peer without an address, in messages. */
export const UNNAMED = "a local process";

/**
 * Formats the target of a request to a proxy, which names a host.
 *
 * @param name What the target is, for errors.
 * @throws {RangeError} The host or the port is malformed.
 */
export function formatTarget(name: string, hostname: string, port: number): string {
  const target = format({ hostname, port });
  // The name "unix" with a port would be a path.
  if (parseEndpoint(name, target, 1).path === undefined) return target;
  throw new RangeError(`${name} must be HOST:PORT, received "${target}"`);
}

/** Formats the address of a peer; `undefined` for one that connected to a Unix socket. */
export function formatPeer(address: SocketAddress): string | undefined {
  return address.path === undefined || address.path ? format(address) : undefined;
}
