/**
 * Requests a SOCKS 5 proxy to connect (RFC 1928), with a user and a password (RFC 1929) or without.
 *
 * @module
 */

import { isIP } from "node:net";
import type { DuplexConnection } from "../mod.ts";
import { canonical } from "./address.ts";
import { encoder, printable, writeAll } from "./bytes.ts";
import { CutError, PermanentError } from "./errors.ts";
import type { Upstream } from "./upstream.ts";

const VERSION = 5;
const CONNECT = 1;
// Bytes.
const MAX_NAME = 255;

// Methods of authentication.
const NO_AUTHENTICATION = 0;
const PASSWORD = 2;
const NO_ACCEPTABLE_METHOD = 255;

const PASSWORD_VERSION = 1;

// Address types.
const IPV4 = 1;
const NAME = 3;
const IPV6 = 4;

/** The reply codes after success, by number: whether they last, and what they mean. */
const REPLIES: Record<number, [isPermanent: boolean, text: string]> = {
  1: [false, "the proxy reports a general failure"],
  2: [true, "the proxy does not allow the connection"],
  3: [false, "the proxy cannot connect: network unreachable"],
  4: [false, "the proxy cannot connect: host unreachable"],
  5: [false, "the proxy cannot connect: connection refused"],
  6: [false, "the proxy cannot connect: time to live expired"],
  7: [true, "the proxy does not support connecting"],
  8: [true, "the proxy does not support this type of address"],
};

/** Reads the next bytes, and no byte after them. */
async function read(from: DuplexConnection, length: number): Promise<Uint8Array> {
  const p = new Uint8Array(length);
  for (let at = 0; at < length;) {
    const count = await from.read(p.subarray(at));
    if (count === null) throw new CutError("the proxy closed the connection before it answered");
    at += count;
  }
  return p;
}

function checkVersion(version: number, first: number): void {
  if (version === first) return;
  const shown = printable(String.fromCharCode(version));
  const what = shown === "?" ? `byte ${version}` : `"${shown}"`;
  throw new PermanentError(`the proxy does not speak SOCKS 5: its answer begins with ${what}`);
}

/** Returns the bytes of an IP address, as a URL normalizes it. */
function bytesOf(address: string): number[] {
  if (isIP(address) === 4) return address.split(".").map(Number);
  const [head, tail] = address.split("::").map((part) => part === "" ? [] : part.split(":")) as [string[], string[]?];
  const zeros = Array<string>(8 - head.length - (tail?.length ?? 0)).fill("0");
  return [...head, ...tail === undefined ? [] : zeros, ...tail ?? []].flatMap((group) => {
    const value = parseInt(group, 16);
    return [value >> 8, value & 255];
  });
}

function encodeAddress(hostname: string): number[] {
  const host = canonical(hostname);
  const version = isIP(host);
  if (version !== 0) return [version === 4 ? IPV4 : IPV6, ...bytesOf(host)];
  const name = encoder.encode(host);
  if (name.length > MAX_NAME) throw new PermanentError(`the host must have at most ${MAX_NAME} bytes for SOCKS 5`);
  return [NAME, name.length, ...name];
}

/** Agrees on a method of authentication, and authenticates. */
async function authenticate(proxy: DuplexConnection, credentials: Upstream["credentials"]): Promise<void> {
  const methods = credentials === undefined ? [NO_AUTHENTICATION] : [NO_AUTHENTICATION, PASSWORD];
  await writeAll(proxy, new Uint8Array([VERSION, methods.length, ...methods]));
  checkVersion((await read(proxy, 1))[0]!, VERSION);
  const [method] = await read(proxy, 1);
  if (method === NO_ACCEPTABLE_METHOD && credentials === undefined) {
    throw new PermanentError("the proxy wants a user and a password");
  }
  if (!methods.includes(method!)) {
    const found = method === NO_ACCEPTABLE_METHOD ? "" : `, it wants method ${method}`;
    throw new PermanentError(`the proxy does not accept a user and a password${found}`);
  }
  if (method !== PASSWORD) return;
  const [user, password] = [credentials!.user, credentials!.password].map((part) => encoder.encode(part));
  await writeAll(
    proxy,
    new Uint8Array([PASSWORD_VERSION, user!.length, ...user!, password!.length, ...password!]),
  );
  const [, status] = await read(proxy, 2);
  if (status !== 0) throw new PermanentError("the proxy does not accept the user and the password");
}

/**
 * Requests a SOCKS 5 proxy to connect to a target, whose name it resolves. The next byte of the connection is that of
 * the target.
 *
 * @throws {PermanentError} Another attempt would fail in the same way.
 * @throws {Error} The proxy does not connect.
 */
export async function connectBySocks(
  proxy: DuplexConnection,
  { hostname, port }: { hostname: string; port: number },
  credentials: Upstream["credentials"],
): Promise<void> {
  const address = encodeAddress(hostname);
  await authenticate(proxy, credentials);
  await writeAll(proxy, new Uint8Array([VERSION, CONNECT, 0, ...address, port >> 8, port & 255]));
  checkVersion((await read(proxy, 1))[0]!, VERSION);
  const [code] = await read(proxy, 1);
  if (code !== 0) {
    const [isPermanent, text] = REPLIES[code!] ?? [false, `the proxy does not connect: reply code ${code}`];
    throw isPermanent ? new PermanentError(text) : new Error(text);
  }
  // The address that the proxy connects from, which is of any length.
  const [, type] = await read(proxy, 2);
  const length = type === IPV4 ? 4 : type === IPV6 ? 16 : type === NAME ? (await read(proxy, 1))[0]! : undefined;
  if (length === undefined) throw new PermanentError(`the proxy answers with an unknown type of address, ${type}`);
  await read(proxy, length + 2);
}
