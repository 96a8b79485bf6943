/**
 * Serves SOCKS 4 and 4a: reads the target of a client, and replies.
 *
 * @module
 */

import type { DuplexConnection } from "../mod.ts";
import { formatTarget } from "./address.ts";
import { printable, readExactly, writeAll } from "./bytes.ts";
import type { ProxyAuth } from "./proxy_auth.ts";
import { withDeadline } from "./wait.ts";

const VERSION = 4;
const CONNECT = 1;

// Reply codes.
const GRANTED = 90;
const REJECTED = 91;

// Bytes of the user and of the name of the host, each. Larger: longer names; smaller: less memory.
const MAX_TEXT = 255;

/**
 * Reads the target of a client, connects to it, and replies.
 *
 * @param auth The password that is required: SOCKS 4 has none, so every request is refused.
 */
export async function speakSocks4<T extends { close(): void }>(
  client: DuplexConnection,
  connect: (target: string) => Promise<T>,
  auth?: ProxyAuth,
): Promise<T> {
  const target = await withDeadline(client, readTarget(client, auth));
  let connected: T;
  try {
    connected = await connect(target);
  } catch (error) {
    return await refuse(client, error);
  }
  await reply(client, GRANTED).catch((error) => {
    connected.close();
    throw error;
  });
  return connected;
}

async function readTarget(client: DuplexConnection, auth: ProxyAuth | undefined): Promise<string> {
  const [version, command, high, low, ...address] = await readExactly(client, 8);
  if (version !== VERSION) throw new Error(`unsupported SOCKS version ${version}, expected ${VERSION}`);
  await readText(client, "user");
  // SOCKS 4a: the address 0.0.0.x announces a name.
  const isNamed = address.slice(0, 3).every((byte) => byte === 0) && address[3] !== 0;
  const hostname = isNamed ? await readText(client, "name") : address.join(".");
  try {
    if (auth !== undefined) throw new Error("SOCKS 4 has no password, expected SOCKS 5 with a user and a password");
    if (command !== CONNECT) throw new Error(`unsupported SOCKS command ${command}, expected ${CONNECT} (CONNECT)`);
    return formatTarget("SOCKS target", hostname, high! * 256 + low!);
  } catch (error) {
    return await refuse(client, error);
  }
}

/** Reads a text that ends with a zero byte. */
async function readText(client: DuplexConnection, what: string): Promise<string> {
  let text = "";
  for (;;) {
    const [byte] = await readExactly(client, 1);
    if (byte === 0) return printable(text);
    text += String.fromCharCode(byte!);
    if (text.length > MAX_TEXT) return await refuse(client, new Error(`SOCKS ${what} exceeds ${MAX_TEXT} bytes`));
  }
}

async function reply(client: DuplexConnection, code: number): Promise<void> {
  await writeAll(client, new Uint8Array([0, code, 0, 0, 0, 0, 0, 0]));
}

/** Replies with a refusal, ignoring a failure to do so, and rejects with the error. */
async function refuse(client: DuplexConnection, error: unknown): Promise<never> {
  await reply(client, REJECTED).catch(() => {});
  throw error;
}
