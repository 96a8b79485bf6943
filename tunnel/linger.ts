/**
 * Ends a connection so that its peer can read the reply that was written last.
 *
 * @module
 */

import type { DuplexConnection } from "../mod.ts";
import { setDeadline } from "./wait.ts";

// Milliseconds that the peer has to read the reply and to close. Larger: slower peers read it; smaller: refused
// connections occupy memory for a shorter time.
const LINGER_TIMEOUT = 2000;

// Bytes that are read and dropped meanwhile. Larger: a peer that still sends a file can read the reply; smaller: less
// work for bytes that are of no use.
const MAX_DRAIN = 2 ** 20;

/**
 * Ends the writing direction, and drops what the peer still sends: a TCP socket that is closed with unread bytes loses
 * the reply. The caller closes the connection. Never rejects.
 */
export async function linger(connection: DuplexConnection): Promise<void> {
  const clear = setDeadline(() => {
    try {
      connection.close();
    } catch {
      // It is closed already.
    }
  }, LINGER_TIMEOUT);
  try {
    // Of a socket that is closed already it may never settle; its reads reject.
    connection.closeWrite().catch(() => {});
    const p = new Uint8Array(16_384);
    for (let left = MAX_DRAIN; left > 0;) {
      const count = await connection.read(p);
      if (count === null) break;
      left -= count;
    }
  } catch {
    // The peer has closed or reset it, or it was late.
  } finally {
    clear();
  }
}
