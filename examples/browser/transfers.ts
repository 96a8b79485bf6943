/**
 * The server's side of the transfers: streams over a WebSocket, at a limited rate.
 *
 * @module
 */
import { setTimeout } from "node:timers/promises";
import { crc32 } from "node:zlib";
import { Session, SessionClosedError, type Stream } from "@sluice/smux";
import { webSocketStreams } from "./websocket.ts";

type Bytes = Uint8Array<ArrayBuffer>;

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
function limitRate(writable: WritableStream<Bytes>, megabytesPerSecond: number): WritableStream<Bytes> {
  // The time at which the next chunk may be sent. A late timer delays the following chunks only once.
  let freeAt = 0;
  const limiter = new TransformStream<Bytes, Bytes>({
    async transform(chunk, controller) {
      controller.enqueue(chunk);
      const now = performance.now();
      freeAt = Math.max(freeAt, now - 100) + chunk.length / megabytesPerSecond / 1000;
      if (freeAt > now) await setTimeout(freeAt - now);
    },
  });
  limiter.readable.pipeTo(writable).catch(() => {});
  return limiter.writable;
}

/** Logs an error, except the end of the session, which is that of the page. */
const logError = (error: unknown) => error instanceof SessionClosedError || console.error(error);

/** Serves one page. */
export async function serveSession(socket: WebSocket, megabytesPerSecond: number): Promise<void> {
  const { readable, writable } = webSocketStreams(socket);
  // Browsers throttle the timers of background pages to once a minute, which delays the keepalives of the peer.
  const options = { version: 2, timeout: 150_000 } as const;
  const session = Session.server({ readable, writable: limitRate(writable, megabytesPerSecond) }, options);
  try {
    for await (const stream of session) answer(stream).catch(logError);
  } catch (error) {
    logError(error);
  }
}
