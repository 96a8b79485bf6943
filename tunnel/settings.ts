/**
 * Checks and parses the options of a client.
 *
 * @module
 */

import { checkExposed, parseEndpoint, parseForward, splitUdp } from "./address.ts";
import { parseServerPlace, type ServerPlace } from "./dial_server.ts";
import { typeName } from "./errors.ts";
import { checkSecret } from "./handshake.ts";
import { type Limits, limitsOf } from "./limits.ts";
import type { LinkSettings } from "./link.ts";
import { checkLists } from "./lists.ts";
import type { OpenTunnelOptions } from "./options.ts";
import { type Local, makeLocal, makeProxy, makeReverse, normalize, type Reverse } from "./places.ts";
import { ProxyAuth } from "./proxy_auth.ts";
import type { ProxySettings } from "./reverse_socks.ts";
import { Rules } from "./rules.ts";
import { checkStatus } from "./status.ts";
import { checkName } from "./users.ts";
import { checkTimeout, clampTimeout } from "./wait.ts";

// Milliseconds. Larger: new connections survive a longer outage; smaller: they fail earlier.
const WAIT = 30_000;

const LISTS = ["forward", "reverse", "socks", "http", "reverseSocks", "allow", "headers"] as const;

/** The checked options of a client, with defaults. */
export interface Settings {
  /** In the order of preference. */
  servers: ServerPlace[];
  locals: Local[];
  /** By LISTEN of the server, in the order of the options. */
  reverse: Map<string, Reverse>;
  /** Of `socks`, `http` and `reverseSocks`. */
  proxy: ProxySettings;
  limits: Limits;
}

/**
 * Checks options, and returns them parsed.
 *
 * @throws {RangeError} They are malformed, or cannot be combined.
 */
export function checkOptions(options: OpenTunnelOptions): Settings {
  const { user, secret, insecure } = options;
  checkLists(options, LISTS);
  const servers = parseServers(options);
  checkSecret(secret);
  checkStatus(options.status, insecure);
  if (user !== undefined) checkName("user", user);
  if (user !== undefined && secret === undefined) throw new RangeError("user requires secret, received only user");
  checkTimeout("connectTimeout", options.connectTimeout);
  checkTimeout("udpTimeout", options.udpTimeout);
  checkTimeout("wait", options.wait, 0);
  const locals = [
    ...(options.forward ?? []).map((text) => makeLocal(parseForward("forward", text))),
    ...makeProxies(options),
  ];
  for (const { listen, route } of locals) checkExposed(route.kind, listen, insecure);
  const proxy = proxySettings(options);
  return { servers, locals, reverse: makeReverses(options), proxy, limits: limitsOf(options) };
}

/** Makes the entries of `socks` and `http`. The same address in both is one entry, unless its port is chosen later. */
function makeProxies({ socks = [], http = [] }: OpenTunnelOptions): Local[] {
  for (const listen of http) checkProxyListen("http", listen);
  for (const listen of socks) checkProxyListen("socks", listen);
  const known = new Set(socks.map(normalize).filter((listen) => !listen.endsWith(":0")));
  return [
    ...socks.map((listen) => makeProxy("socks", listen)),
    ...http.filter((listen) => !known.has(normalize(listen))).map((listen) => makeProxy("http", listen)),
  ];
}

function checkProxyListen(name: string, listen: string): void {
  parseEndpoint(name, listen, 0);
  if (splitUdp(listen)[0]) throw new RangeError(`${name} must be an address without udp:, received "${listen}"`);
}

/** Makes the entries of `reverse` and `reverseSocks`. */
function makeReverses(options: OpenTunnelOptions): Map<string, Reverse> {
  const reverse = new Map<string, Reverse>();
  for (const text of options.reverse ?? []) {
    const { listen, target, isProxied } = parseForward("reverse", text);
    if (target === undefined) throw new RangeError(`reverse must be LISTEN=TARGET, received "${text}"`);
    if (reverse.has(listen)) {
      throw new RangeError(`reverse must contain each LISTEN only once, received ${listen} twice`);
    }
    reverse.set(listen, makeReverse({ listen, target, isProxied }));
  }
  for (const listen of options.reverseSocks ?? []) {
    checkProxyListen("reverseSocks", listen);
    if (reverse.has(listen)) {
      throw new RangeError(`reverseSocks and reverse must contain each LISTEN only once, received ${listen} twice`);
    }
    reverse.set(listen, makeReverse({ listen, target: undefined, isProxied: false }));
  }
  return reverse;
}

/** Returns the settings of all proxies. */
function proxySettings({ allow, proxyAuth, socks, http, reverseSocks }: OpenTunnelOptions): ProxySettings {
  const rules = new Rules("allow", allow ?? []);
  const auth = proxyAuth === undefined ? undefined : new ProxyAuth(proxyAuth);
  if (reverseSocks !== undefined && allow === undefined) {
    throw new RangeError('reverseSocks requires allow, the targets that may be requested, such as "*:443"');
  }
  if (allow !== undefined && reverseSocks === undefined) {
    throw new RangeError("allow of a client requires reverseSocks: that of forward, socks and http is at the server");
  }
  const datagrams = allow?.find((entry) => /^!?udp:/i.test(entry));
  if (datagrams !== undefined) {
    throw new RangeError(
      `allow of a client must be about connections, received "${datagrams}": reverseSocks has no UDP`,
    );
  }
  if (auth !== undefined && socks === undefined && http === undefined && reverseSocks === undefined) {
    throw new RangeError("proxyAuth requires socks, http or reverseSocks");
  }
  return { auth, rules };
}

/** Returns where each address of a client leads, in the order of `listenAddrs`; `undefined` if only requests say it. */
export function targetsOf(options: OpenTunnelOptions): (string | undefined)[] {
  const { locals, reverse } = checkOptions(options);
  return [...locals, ...reverse.values()].map(({ target }) => target);
}

/** Parses each server of `connect`. */
function parseServers(options: OpenTunnelOptions): ServerPlace[] {
  const { connect } = options;
  const all = typeof connect === "string" ? [connect] : connect;
  if (!Array.isArray(all)) {
    throw new RangeError(`connect must be a text or a list of texts, received ${typeName(connect)}`);
  }
  if (all.length === 0) throw new RangeError("connect must contain at least one server, received []");
  const servers = all.map((connect) => parseServerPlace({ ...options, connect }));
  const names = servers.map(({ name }) => name);
  const twice = names.find((name, n) => names.indexOf(name) < n);
  if (twice === undefined) return servers;
  throw new RangeError(`connect must contain each server only once, received ${twice} twice`);
}

/** Returns the settings of the connection to a server. */
export function linkSettings(
  options: OpenTunnelOptions,
  { locals, reverse, limits }: Settings,
  server: ServerPlace,
): LinkSettings {
  const { wait = WAIT, secret } = options;
  const requests = locals.some(({ target, isSocks }) => target !== undefined || isSocks) || reverse.size > 0;
  return {
    ...options,
    server,
    isChecked: requests || secret !== undefined,
    wait: wait === Infinity ? wait : clampTimeout(wait),
    limits,
  };
}
