/**
 * Reads and writes whole arrays of bytes, and makes text of peers printable.
 *
 * @module
 */

import type { DuplexConnection } from "../mod.ts";
import { CutError } from "./errors.ts";

export const encoder = new TextEncoder();

export async function readExactly(from: DuplexConnection, length: number): Promise<Uint8Array> {
  const p = new Uint8Array(length);
  for (let at = 0; at < length;) {
    const count = await from.read(p.subarray(at));
    if (count === null) throw new CutError("connection closed during handshake");
    at += count;
  }
  return p;
}

export async function writeAll(to: DuplexConnection, p: Uint8Array): Promise<void> {
  for (let at = 0; at < p.length;) at += await to.write(p.subarray(at));
}

/** Replaces each character that is not printable ASCII with `?`: a terminal that shows logged text must not obey it. */
export function printable(text: string): string {
  return text.replaceAll(/[^ -~]/g, "?");
}

/** Writes the first bytes of a connection; closes it if that fails. */
export async function writeFirst(connection: DuplexConnection, bytes: Uint8Array): Promise<void> {
  try {
    await writeAll(connection, bytes);
  } catch (error) {
    connection.close();
    throw error;
  }
}
