/**
 * Serves SOCKS 5 (RFC 1928), with a password (RFC 1929) or without: reads the target of a client, and replies.
 *
 * @module
 */

import type { DuplexConnection } from "../mod.ts";
import { formatTarget } from "./address.ts";
import { printable, readExactly, writeAll } from "./bytes.ts";
import { TunnelRefusedError } from "./options.ts";
import type { ProxyAuth } from "./proxy_auth.ts";
import { withDeadline } from "./wait.ts";

const VERSION = 5;

// Methods of authentication.
const NO_AUTHENTICATION = 0;
const PASSWORD = 2;
const NO_ACCEPTABLE_METHOD = 255;

// The version of RFC 1929, and its replies.
const PASSWORD_VERSION = 1;
const RIGHT = 0;
const WRONG = 1;

// Commands.
const CONNECT = 1;
const UDP_ASSOCIATE = 3;

// Address types.
const IPV4 = 1;
const NAME = 3;
const IPV6 = 4;

// Reply codes.
const SUCCEEDED = 0;
const NOT_ALLOWED = 2;
const CONNECTION_REFUSED = 5;
const COMMAND_NOT_SUPPORTED = 7;
const ADDRESS_NOT_SUPPORTED = 8;

/** A request of a client. */
interface Request {
  command: number;
  /** Empty for an unknown address type. */
  hostname: string;
  port: number;
}

/** What a proxy requires and serves. */
export interface ProxyOptions<U> {
  /** The user and the password that are required. Default: none. */
  auth?: ProxyAuth | undefined;
  /** Serves UDP ASSOCIATE of SOCKS 5, and replies. Default: the command is refused. */
  associate?: (() => Promise<U>) | undefined;
}

/** Reads the target of a client, connects to it, and replies. */
export async function speakSocks<T extends { close(): void }, U = never>(
  client: DuplexConnection,
  connect: (target: string) => Promise<T>,
  { auth, associate }: ProxyOptions<U> = {},
): Promise<T | U> {
  const request = await withDeadline(client, readRequest(client, auth));
  switch (request.command) {
    case CONNECT:
      return await serveConnect(client, request, connect);
    case UDP_ASSOCIATE:
      // The address of the request is that of the client, often zeros.
      if (associate !== undefined) return await associate();
  }
  const error = new Error(`unsupported SOCKS command ${request.command}, expected ${CONNECT} (CONNECT)`);
  return await refuse(client, COMMAND_NOT_SUPPORTED, error);
}

/** Connects to the target of a request, and replies. */
async function serveConnect<T extends { close(): void }>(
  client: DuplexConnection,
  { hostname, port }: Request,
  connect: (target: string) => Promise<T>,
): Promise<T> {
  let target: string;
  try {
    target = formatTarget("SOCKS target", hostname, port);
  } catch (error) {
    return await refuse(client, ADDRESS_NOT_SUPPORTED, error);
  }
  let connected: T;
  try {
    connected = await connect(target);
  } catch (error) {
    const isForbidden = error instanceof TunnelRefusedError && error.status === 403;
    return await refuse(client, isForbidden ? NOT_ALLOWED : CONNECTION_REFUSED, error);
  }
  await reply(client, SUCCEEDED).catch((error) => {
    connected.close();
    throw error;
  });
  return connected;
}

/** Reads a whole request before it is refused: a TCP socket that is closed with unread bytes may lose the reply. */
async function readRequest(client: DuplexConnection, auth: ProxyAuth | undefined): Promise<Request> {
  const [version, count] = await readExactly(client, 2);
  checkVersion(version!);
  const method = auth === undefined ? NO_AUTHENTICATION : PASSWORD;
  const isAccepted = (await readExactly(client, count!)).includes(method);
  await writeAll(client, new Uint8Array([VERSION, isAccepted ? method : NO_ACCEPTABLE_METHOD]));
  if (!isAccepted) {
    const missing = auth === undefined ? '"no authentication"' : "a user and a password, which proxyAuth requires";
    throw new Error(`SOCKS client does not offer ${missing}`);
  }
  if (auth !== undefined) await checkPassword(client, auth);

  const [again, command, , type] = await readExactly(client, 4);
  checkVersion(again!);
  const hostname = await readHostname(client, type!);
  const [high, low] = await readExactly(client, 2);
  return { command: command!, hostname, port: high! * 256 + low! };
}

/** Reads and checks a user and a password. */
async function checkPassword(client: DuplexConnection, auth: ProxyAuth): Promise<void> {
  const [version] = await readExactly(client, 1);
  if (version !== PASSWORD_VERSION) {
    throw new Error(`unsupported version ${version} of SOCKS passwords, expected ${PASSWORD_VERSION}`);
  }
  const [user, password] = [await readText(client), await readText(client)];
  const isRight = await auth.accepts(user, password);
  await writeAll(client, new Uint8Array([PASSWORD_VERSION, isRight ? RIGHT : WRONG]));
  if (!isRight) throw new TunnelRefusedError(407, "wrong user or password of a SOCKS client");
}

/** Reads a text that begins with its length. */
async function readText(client: DuplexConnection): Promise<string> {
  const [length] = await readExactly(client, 1);
  return String.fromCharCode(...await readExactly(client, length!));
}

/** Reads a host; empty for an unknown address type. */
async function readHostname(client: DuplexConnection, type: number): Promise<string> {
  switch (type) {
    case IPV4:
      return (await readExactly(client, 4)).join(".");
    case NAME:
      return printable(await readText(client));
    case IPV6:
      return (await readExactly(client, 16)).toHex().match(/.{4}/g)!.join(":");
    default:
      return "";
  }
}

function checkVersion(version: number): void {
  if (version !== VERSION) throw new Error(`unsupported SOCKS version ${version}, expected ${VERSION}`);
}

async function reply(client: DuplexConnection, code: number): Promise<void> {
  await writeAll(client, new Uint8Array([VERSION, code, 0, IPV4, 0, 0, 0, 0, 0, 0]));
}

/** Replies with a code, ignoring a failure to do so, and rejects with the error. */
async function refuse(client: DuplexConnection, code: number, error: unknown): Promise<never> {
  await reply(client, code).catch(() => {});
  throw error;
}
