/**
 * Serves a visitor of `reverseSocks`: the client connects to the target of each request that its own rules allow.
 *
 * @module
 */

import { isIP } from "node:net";
import type { Stream } from "../mod.ts";
import { canonical, parseEndpoint } from "./address.ts";
import { UnusedError, wrapError } from "./errors.ts";
import { TunnelRefusedError } from "./options.ts";
import type { ProxyAuth } from "./proxy_auth.ts";
import { speakProxy } from "./proxy_entry.ts";
import { resolve } from "./resolve.ts";
import type { Rules } from "./rules.ts";
import { dial, type Socket } from "./socket.ts";
import { CONNECT_TIMEOUT, withTimeout } from "./wait.ts";

/** What the visitors of a proxy may request, and what they must prove. */
export interface ProxySettings {
  auth: ProxyAuth | undefined;
  /** The targets of `reverseSocks`. */
  rules: Rules;
}

/** A connection to the target of a visitor. */
interface Reached {
  socket: Socket;
  to: string;
  /** Bytes that were sent to it already. */
  sent?: number | undefined;
  /** Checks bytes of the visitor before they are forwarded. */
  check?: ((p: Uint8Array) => void) | undefined;
}

/**
 * Reads the target of a visitor from its stream, connects to it, and replies.
 *
 * @param from Names the visitor in errors.
 * @param connectTimeout Milliseconds until resolving fails, and until connecting does.
 */
export async function reach(
  stream: Stream,
  from: string,
  { auth, rules }: ProxySettings,
  connectTimeout = CONNECT_TIMEOUT,
): Promise<Reached> {
  let to = "";
  const connect = async (target: string) => {
    to = target;
    const addresses = await allowedAddresses(target, rules, stream, connectTimeout);
    return await dial(target, stream, { connectTimeout, addresses });
  };
  try {
    const { connected, sent, check } = await speakProxy(stream, connect, { auth });
    return { socket: connected, to, sent, check };
  } catch (error) {
    // The end of a stream comes after the reply, also if the visitor still sends.
    throw error instanceof UnusedError ? error : wrapError(`Refused a visitor of reverseSocks from ${from}`, error);
  }
}

/** Returns the addresses of a target that the rules allow: only these are connected to. */
async function allowedAddresses(target: string, rules: Rules, stream: Stream, timeout: number): Promise<string[]> {
  const endpoint = parseEndpoint("target", target, 1);
  const { hostname = "" } = endpoint;
  let addresses: string[] = [];
  if (isIP(canonical(hostname)) !== 0) addresses = [canonical(hostname)];
  else if (rules.mayAllow(endpoint)) addresses = await resolveFor(stream, hostname, timeout);
  const allowed = addresses.filter((address) => rules.allows(endpoint, address));
  if (allowed.length === 0) throw new TunnelRefusedError(403, `${target} is not allowed`);
  return allowed;
}

/** Resolves a host name; rejects when the stream fails first. */
async function resolveFor(stream: Stream, hostname: string, timeout: number): Promise<string[]> {
  const gone = new AbortController();
  stream.closed.catch((error) => gone.abort(error));
  try {
    return await withTimeout("resolving", timeout, gone.signal, (signal) => resolve(hostname, signal));
  } catch (error) {
    gone.signal.throwIfAborted();
    throw wrapError(`Cannot resolve ${hostname}`, error);
  }
}
