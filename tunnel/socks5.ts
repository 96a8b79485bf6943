/**
 * Serves SOCKS 5 (RFC 1928): reads the target of a client, and replies.
 *
 * @module
 */

import type { DuplexConnection } from "../mod.ts";
import { format, parseEndpoint } from "./address.ts";
import { printable, readExactly, writeAll } from "./bytes.ts";
import { TunnelRefusedError } from "./options.ts";
import { withDeadline } from "./wait.ts";

const VERSION = 5;
const NO_AUTHENTICATION = 0;
const NO_ACCEPTABLE_METHOD = 255;
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

/**
 * Reads the target of a client, connects to it, and replies.
 *
 * @param associate Serves UDP ASSOCIATE, and replies. Default: the command is refused.
 */
export async function speakSocks<T extends { close(): void }, U = never>(
  client: DuplexConnection,
  connect: (target: string) => Promise<T>,
  associate?: () => Promise<U>,
): Promise<T | U> {
  const target = await withDeadline(client, readTarget(client, associate !== undefined));
  if (target === undefined) return await associate!();
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

/** Reads the target of CONNECT; `undefined` for UDP ASSOCIATE. */
async function readTarget(client: DuplexConnection, hasUdp: boolean): Promise<string | undefined> {
  const [version, count] = await readExactly(client, 2);
  checkVersion(version!);
  const isAccepted = (await readExactly(client, count!)).includes(NO_AUTHENTICATION);
  await writeAll(client, new Uint8Array([VERSION, isAccepted ? NO_AUTHENTICATION : NO_ACCEPTABLE_METHOD]));
  if (!isAccepted) throw new Error('SOCKS client does not offer "no authentication"');

  // Read the whole request before refusing it: a TCP socket that is closed with unread bytes may lose the reply.
  const [again, command, , type] = await readExactly(client, 4);
  checkVersion(again!);
  const hostname = await readHostname(client, type!);
  const [high, low] = await readExactly(client, 2);
  // Its address is that of the client, often zeros.
  if (command === UDP_ASSOCIATE && hasUdp) return undefined;
  if (command !== CONNECT) {
    const error = new Error(`unsupported SOCKS command ${command}, expected ${CONNECT} (CONNECT)`);
    return await refuse(client, COMMAND_NOT_SUPPORTED, error);
  }
  const target = format({ hostname, port: high! * 256 + low! });
  try {
    parseEndpoint("SOCKS target", target, 1);
  } catch (error) {
    return await refuse(client, ADDRESS_NOT_SUPPORTED, error);
  }
  return target;
}

/** Reads a host; empty for an unknown address type. */
async function readHostname(client: DuplexConnection, type: number): Promise<string> {
  switch (type) {
    case IPV4:
      return (await readExactly(client, 4)).join(".");
    case NAME: {
      const [length] = await readExactly(client, 1);
      return printable(String.fromCharCode(...await readExactly(client, length!)));
    }
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
