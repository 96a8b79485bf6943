/**
 * Checks and parses the options of a client.
 *
 * @module
 */

import { checkExposed, parseForward } from "./address.ts";
import { parseServerPlace, type ServerPlace } from "./dial_server.ts";
import { checkSecret } from "./handshake.ts";
import { type Limits, limitsOf } from "./limits.ts";
import type { LinkSettings } from "./link.ts";
import type { OpenTunnelOptions } from "./options.ts";
import { type Local, makeLocal, makeReverse, type Reverse } from "./places.ts";
import { checkStatus } from "./status.ts";
import { checkName } from "./users.ts";
import { checkTimeout, clampTimeout } from "./wait.ts";

// Milliseconds. Larger: new connections survive a longer outage; smaller: they fail earlier.
const WAIT = 30_000;

/** The checked options of a client, with defaults. */
export interface Settings {
  server: ServerPlace;
  locals: Local[];
  /** By LISTEN of the server, in the order of the options. */
  reverse: Map<string, Reverse>;
  limits: Limits;
}

/**
 * Checks options, and returns them parsed.
 *
 * @throws {RangeError} They are malformed, or cannot be combined.
 */
export function checkOptions(options: OpenTunnelOptions): Settings {
  const { user, secret, insecure } = options;
  const server = parseServerPlace(options);
  checkSecret(secret);
  checkStatus(options.status, insecure);
  if (user !== undefined) checkName("user", user);
  if (user !== undefined && secret === undefined) throw new RangeError("user requires secret, received only user");
  checkTimeout("connectTimeout", options.connectTimeout);
  checkTimeout("udpTimeout", options.udpTimeout);
  const locals = [
    ...(options.forward ?? []).map((text) => makeLocal({ ...parseForward("forward", text), isSocks: false })),
    ...(options.socks ?? []).map((listen) => makeLocal({ listen, target: undefined, isSocks: true, isProxied: false })),
  ];
  for (const { listen, isSocks } of locals) checkExposed(isSocks ? "socks" : "forward", listen, insecure);
  const reverse = new Map<string, Reverse>();
  for (const text of options.reverse ?? []) {
    const { listen, target, isProxied } = parseForward("reverse", text);
    if (target === undefined) throw new RangeError(`reverse must be LISTEN=TARGET, received "${text}"`);
    if (reverse.has(listen)) {
      throw new RangeError(`reverse must contain each LISTEN only once, received ${listen} twice`);
    }
    reverse.set(listen, makeReverse({ listen, target, isProxied }));
  }
  return { server, locals, reverse, limits: limitsOf(options) };
}

/** Returns the settings of the connection to the server. */
export function linkSettings(
  options: OpenTunnelOptions,
  { server, locals, reverse, limits }: Settings,
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
