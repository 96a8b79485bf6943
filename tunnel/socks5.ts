/**
 * Reads from a client of SOCKS 5 where it wants to connect, and answers.
 *
 * @module
 */

import type { Stream } from "../mod.ts";
import { format, parseEndpoint } from "./address.ts";
import { readExactly, writeAll } from "./bytes.ts";
import { TunnelRefusedError } from "./options.ts";
import type { Socket } from "./socket.ts";
import { withDeadline } from "./wait.ts";

/** Hears where a client of SOCKS 5 (RFC 1928) wants to, and connects there. */
export async function speakSocks(local: Socket, connect: (to: string) => Promise<Stream>): Promise<Stream> {
  const answer = (code: number) => writeAll(local, new Uint8Array([5, code, 0, 1, 0, 0, 0, 0, 0, 0]));
  const to = await withDeadline(local, readTarget(local, answer));
  let stream;
  try {
    stream = await connect(to);
  } catch (error) {
    // Not allowed by the rules, or refused by the target.
    await answer(error instanceof TunnelRefusedError && error.status === 403 ? 2 : 5);
    throw error;
  }
  await answer(0).catch((error) => {
    stream.close();
    throw error;
  });
  return stream;
}

async function readTarget(local: Socket, answer: (code: number) => Promise<void>): Promise<string> {
  const [version, methods] = await readExactly(local, 2);
  if (version !== 5) throw new Error("it speaks no SOCKS 5");
  const canBeAnyone = (await readExactly(local, methods!)).includes(0);
  await writeAll(local, new Uint8Array([5, canBeAnyone ? 0 : 255]));
  if (!canBeAnyone) throw new Error("a SOCKS client insists on saying who it is");
  const [, command, , kind] = await readExactly(local, 4);
  let hostname = "";
  if (kind === 1) hostname = (await readExactly(local, 4)).join(".");
  if (kind === 3) hostname = String.fromCharCode(...await readExactly(local, (await readExactly(local, 1))[0]!));
  if (kind === 4) hostname = (await readExactly(local, 16)).toHex().match(/.{4}/g)!.join(":");
  const [high, low] = await readExactly(local, 2);
  const to = format({ hostname, port: high! * 256 + low! });
  if (command !== 1) {
    await answer(7);
    throw new Error(`a SOCKS client wants command ${command}, which is not CONNECT`);
  }
  try {
    parseEndpoint("to", to, 1);
  } catch (error) {
    await answer(8);
    throw error;
  }
  return to;
}
