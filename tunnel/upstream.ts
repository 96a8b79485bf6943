/**
 * Parses the URL of a proxy between a client and its server.
 *
 * @module
 */

import { type Endpoint, format, isLoopback, parseEndpoint, withoutUrlPath } from "./address.ts";
import { encoder } from "./bytes.ts";

/** The value of `proxy` that stands for a direct connection. */
const DIRECT = "none";

/** What a proxy must be. */
const EXPECTED = "http://[USER:PASSWORD@]HOST:PORT, socks5://[USER:PASSWORD@]HOST:PORT or none";

// The default ports of URLs.
const PORTS = { http: 80, socks5: 1080 };

// Bytes of a name or a password in SOCKS 5.
const MAX_SOCKS_TEXT = 255;

/** A proxy between a client and its server. */
export interface Upstream {
  kind: keyof typeof PORTS;
  /** Its URL without the credentials, for errors. */
  name: string;
  endpoint: Endpoint & { hostname: string };
  /** `undefined`: the proxy asks for none. */
  credentials: { user: string; password: string } | undefined;
}

/** Returns a URL without its credentials, to print it. */
function withoutCredentials(text: string): string {
  // Up to the last @: a password that is not percent-encoded may contain any character.
  return text.replace(/^(\w[\w+.-]*:\/\/)?.*@/s, "$1");
}

/** Makes the error of a URL; its message and its cause do not have the credentials. */
function mistake(name: string, text: string, why?: string): RangeError {
  const received = `${name} must be ${EXPECTED}, received "${withoutUrlPath(withoutCredentials(text))}"`;
  return new RangeError(why === undefined ? received : `${received}: ${why}`);
}

function decode(name: string, text: string, part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    throw mistake(name, text, "its user and password must be percent-encoded");
  }
}

function credentialsOf(name: string, text: string, kind: Upstream["kind"], url: URL): Upstream["credentials"] {
  if (url.username === "" && url.password === "") return undefined;
  const [user, password] = [decode(name, text, url.username), decode(name, text, url.password)];
  if (kind === "http" && user.includes(":")) throw mistake(name, text, "its user must not contain a colon");
  if (kind === "socks5") {
    const isLong = [user, password].some((part) => encoder.encode(part).length > MAX_SOCKS_TEXT);
    if (user === "" || isLong) {
      throw mistake(name, text, `its user must have 1 to ${MAX_SOCKS_TEXT} bytes, its password at most as many`);
    }
  }
  return { user, password };
}

/**
 * Parses the URL of a proxy.
 *
 * @param name The option, for errors.
 * @throws {RangeError} It is malformed, or the kind of proxy is not supported. The message has no credentials.
 */
export function parseUpstream(name: string, proxy: string | URL): Upstream {
  const text = String(proxy);
  const [, scheme] = /^([a-z][a-z\d+.-]*):\/\//i.exec(text) ?? [];
  if (scheme?.toLowerCase() === "https") throw mistake(name, text, "TLS to the proxy is not supported");
  const kinds: Record<string, Upstream["kind"]> = { http: "http", socks5: "socks5", socks5h: "socks5" };
  const kind = Object.hasOwn(kinds, scheme?.toLowerCase() ?? "") ? kinds[scheme!.toLowerCase()]! : undefined;
  if (kind === undefined) throw mistake(name, text);
  // The port of a URL with this scheme is kept, also if it is the default.
  const rest = `socks5:${text.slice(scheme!.length + 1)}`;
  if (!URL.canParse(rest)) throw mistake(name, text);
  const url = new URL(rest);
  if (!["", "/"].includes(url.pathname) || url.search !== "" || url.hash !== "") {
    throw mistake(name, text, "it must not have a path");
  }
  let endpoint: Endpoint;
  try {
    endpoint = parseEndpoint(name, `${url.hostname}:${url.port || PORTS[kind]}`, 1);
  } catch {
    throw mistake(name, text);
  }
  const { hostname, port } = endpoint;
  if (hostname === undefined) throw mistake(name, text);
  return {
    kind,
    name: `${kind}://${format(endpoint)}`,
    endpoint: { hostname, port },
    credentials: credentialsOf(name, text, kind, url),
  };
}

/** Parses the option of a client; `undefined` for a direct connection. */
export function parseProxy(proxy: string | undefined, name = "proxy"): Upstream | undefined {
  return proxy === undefined || proxy === DIRECT ? undefined : parseUpstream(name, proxy);
}

/**
 * Checks that a server can be reached through a proxy.
 *
 * @param isExposed Whether the proxy would see the secret of the server.
 * @throws {RangeError} It cannot, or the secret would be sent to another machine in plain text.
 */
export function checkUpstream(upstream: Upstream, server: Endpoint, isExposed: boolean): void {
  if (server.path !== undefined) {
    throw new RangeError(`proxy must not be combined with a Unix socket, received connect "${format(server)}"`);
  }
  if (!isExposed || isLoopback(upstream.endpoint.hostname)) return;
  const why = "sending the secret to another machine requires TLS, or insecure";
  throw new RangeError(`proxy must be at a loopback address, received "${upstream.name}": ${why}`);
}

/** Whether both are the same proxy with the same credentials, or both none. */
export function isSameUpstream(one: Upstream | undefined, other: Upstream | undefined): boolean {
  return one?.name === other?.name && one?.credentials?.user === other?.credentials?.user &&
    one?.credentials?.password === other?.credentials?.password;
}
