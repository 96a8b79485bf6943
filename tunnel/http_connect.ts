/**
 * Requests an HTTP proxy to connect: CONNECT of RFC 9110.
 *
 * @module
 */

import type { DuplexConnection } from "../mod.ts";
import { encoder, printable, writeAll } from "./bytes.ts";
import { CutError, PermanentError } from "./errors.ts";
import { MAX_HEAD, readHead } from "./handshake.ts";
import { TunnelRefusedError } from "./options.ts";
import type { Upstream } from "./upstream.ts";

// The shortest status line, without the bytes that end a head.
const SHORTEST = "HTTP/1.1 200".length;
const BEGIN = "HTTP/1.";

// Characters of a reason that an error contains. Larger: more of a long one; smaller: shorter log lines.
const MAX_REASON = 100;

// Statuses that another attempt may change: they are about this time, not about the request.
const TRANSIENT = [408, 425, 429];

/** Reads the begin of a status line; rejects at the first byte that HTTP does not have. */
async function readBegin(from: DuplexConnection): Promise<string> {
  let begin = "";
  while (begin.length < SHORTEST) {
    const p = new Uint8Array(SHORTEST - begin.length);
    const count = await from.read(p);
    if (count === null) throw new CutError("the proxy closed the connection before it answered");
    begin += String.fromCharCode(...p.subarray(0, count));
    if (begin.startsWith(BEGIN.slice(0, begin.length))) continue;
    if (begin.startsWith("\x15\x03")) throw new PermanentError("the proxy expects TLS, which is not supported");
    throw new PermanentError(`the proxy does not speak HTTP: its answer begins with "${printable(begin)}"`);
  }
  return begin;
}

/** Reads a response, and no byte after its head. */
async function readResponse(from: DuplexConnection): Promise<string[]> {
  const begin = await readBegin(from);
  try {
    return await readHead(from, begin);
  } catch (error) {
    const isLong = error instanceof TunnelRefusedError;
    const why = isLong ? `its answer exceeds ${MAX_HEAD} bytes` : "it closed the connection within its answer";
    const message = `the proxy does not connect: ${why}`;
    throw isLong ? new Error(message, { cause: error }) : new CutError(message, { cause: error });
  }
}

/** Returns the schemes of authentication that a response offers, in lower case. */
function schemesOf(headers: readonly string[]): string[] {
  return headers.flatMap((line) => /^proxy-authenticate: *([\w-]+)/i.exec(line)?.[1]?.toLowerCase() ?? []);
}

/** Returns the error of a response that is not successful. */
function refusal(status: number, reason: string, headers: readonly string[], target: string, isNamed: boolean): Error {
  const answer = `${status} ${reason.slice(0, MAX_REASON)}`.trim();
  // Tinyproxy answers 401 to a wrong password.
  if (status === 407 || status === 401) {
    const schemes = schemesOf(headers);
    if (schemes.length > 0 && !schemes.includes("basic")) {
      return new PermanentError(`the proxy wants ${schemes.join(" or ")}, only basic is supported: ${answer}`);
    }
    const what = isNamed ? "does not accept the user and the password" : "wants a user and a password";
    return new PermanentError(`the proxy ${what}: ${answer}`);
  }
  if (status === 403) return new PermanentError(`the proxy does not allow ${target}: ${answer}`);
  if (status >= 500 && status !== 501) return new Error(`the proxy cannot connect: ${answer}`);
  if (status < 400 || TRANSIENT.includes(status)) return new Error(`the proxy does not connect: ${answer}`);
  // A web server does not know the method or the address.
  return new PermanentError(`the proxy does not connect, it may be another kind of server: ${answer}`);
}

/**
 * Requests an HTTP proxy to connect to a target. The next byte of the connection is that of the target.
 *
 * @param target `host:port` or `[ipv6]:port`.
 * @throws {PermanentError} Another attempt would fail in the same way.
 * @throws {Error} The proxy does not connect.
 */
export async function connectByHttp(
  proxy: DuplexConnection,
  target: string,
  credentials: Upstream["credentials"],
): Promise<void> {
  const { user = "", password = "" } = credentials ?? {};
  const basic = encoder.encode(`${user}:${password}`).toBase64();
  const authorization = credentials === undefined ? "" : `Proxy-Authorization: Basic ${basic}\r\n`;
  await writeAll(proxy, encoder.encode(`CONNECT ${target} HTTP/1.1\r\nHost: ${target}\r\n${authorization}\r\n`));
  const [line, ...headers] = await readResponse(proxy);
  const [, status, reason = ""] = /^HTTP\/1\.\d (\d{3})(?: (.*))?$/.exec(line!) ?? [];
  if (status === undefined) {
    throw new PermanentError(`the proxy does not speak HTTP: its answer is "${line!.slice(0, MAX_REASON)}"`);
  }
  if (status.startsWith("2")) return;
  throw refusal(Number(status), reason, headers, target, credentials !== undefined);
}
