/**
 * The server's side of the transfers: streams over a WebSocket, at a limited rate.
 *
 * @module
 */
import { setTimeout } from "node:timers/promises";
import { crc32 } from "node:zlib";
import { type Connection, Session, SessionClosedError, type Stream } from "@sluice/smux";
import { webSocketConnection } from "@sluice/smux/websocket";

/** Answers a stream whose 4 bytes are a count: sends this many random bytes, then 4 bytes with their CRC-32. */
async function answer(stream: Stream): Promise<void> {
  const count = new DataView(await new Response(stream.readable).arrayBuffer()).getUint32(0);
  let sum = 0;
  for (let left = count; left > 0;) {
    const bytes = crypto.getRandomValues(new Uint8Array(Math.min(left, 16_384)));
    sum = crc32(bytes, sum);
    left -= await stream.write(bytes);
  }

  const trailer = new DataView(new ArrayBuffer(4));
  trailer.setUint32(0, sum);
  await stream.write(new Uint8Array(trailer.buffer));
  // Logged before the end of the stream, so that the line exists when the page has seen the end.
  console.log(`stream ${stream.id}: ${count} bytes, sum ${sum.toString(16).padStart(8, "0")}`);
  await stream.closeWrite();
}

/** Limits the rate of all streams together: over the loopback the transfers would be too fast to watch. */
function limitRate(connection: Connection, megabytesPerSecond: number): Connection {
  // The time at which the next bytes may be sent. A late timer delays them only once.
  let freeAt = 0;
  return {
    read: (p) => connection.read(p),
    async write(p) {
      const now = performance.now();
      if (freeAt > now) await setTimeout(freeAt - now);
      const count = await connection.write(p.subarray(0, 16_384));
      freeAt = Math.max(freeAt, now - 100) + count / megabytesPerSecond / 1000;
      return count;
    },
    closeWrite: async () => await connection.closeWrite?.(),
    close: () => connection.close(),
  };
}

/** Logs an error, except the end of the session, which is that of the page. */
const logError = (error: unknown) => error instanceof SessionClosedError || console.error(error);

/** Serves one page. */
export async function serveSession(socket: WebSocket, megabytesPerSecond: number): Promise<void> {
  // Browsers throttle the timers of background pages to once a minute, which delays the keepalives of the peer.
  const options = { version: 2, timeout: 150_000 } as const;
  const session = Session.server(limitRate(webSocketConnection(socket), megabytesPerSecond), options);
  try {
    for await (const stream of session) answer(stream).catch(logError);
  } catch (error) {
    logError(error);
  }
}
