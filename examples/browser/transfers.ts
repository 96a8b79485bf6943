/**
 * The transfers of the page: streams over a WebSocket, on a line that is slow enough to watch them.
 *
 * @module
 */
import { setTimeout } from "node:timers/promises";
import { crc32 } from "node:zlib";
import { Session, SessionClosedError, type Stream } from "@sluice/smux";
import { webSocketStreams } from "./websocket.ts";

type Bytes = Uint8Array<ArrayBuffer>;

/** Answers a stream that asks, in 4 bytes, for so many: with as many random ones, and then 4 with their CRC-32. */
async function answer(stream: Stream): Promise<void> {
  const asked = new DataView(await new Response(stream.readable).arrayBuffer()).getUint32(0);
  let sum = 0;
  for (let left = asked; left > 0;) {
    const bytes = crypto.getRandomValues(new Uint8Array(Math.min(left, 16_384)));
    sum = crc32(bytes, sum);
    left -= await stream.write(bytes);
  }
  const end = new DataView(new ArrayBuffer(4));
  end.setUint32(0, sum);
  await stream.write(new Uint8Array(end.buffer));
  // Before its end, so that whoever has seen that finds it written.
  console.log(`stream ${stream.id}: ${asked} bytes, sum ${sum.toString(16).padStart(8, "0")}`);
  await stream.closeWrite();
}

/** A line of that many megabytes a second, shared by all streams: over the loopback there would be nothing to watch. */
function slow(writable: WritableStream<Bytes>, megabytesPerSecond: number): WritableStream<Bytes> {
  // When the line is free again. A timer that fires late delays what follows only once.
  let freeAt = 0;
  const line = new TransformStream<Bytes, Bytes>({
    async transform(chunk, controller) {
      controller.enqueue(chunk);
      const now = performance.now();
      freeAt = Math.max(freeAt, now - 100) + chunk.length / megabytesPerSecond / 1000;
      if (freeAt > now) await setTimeout(freeAt - now);
    },
  });
  line.readable.pipeTo(writable).catch(() => {});
  return line.writable;
}

/** The end of a session, which is that of its page, is no error here. */
const tell = (error: unknown) => error instanceof SessionClosedError || console.error(error);

/** Serves one page. */
export async function serveSession(socket: WebSocket, megabytesPerSecond: number): Promise<void> {
  const { readable, writable } = webSocketStreams(socket);
  // A browser may run the timers of a page that nobody sees only once a minute, and those send its signs of life.
  const options = { version: 2, timeout: 150_000 } as const;
  const session = Session.server({ readable, writable: slow(writable, megabytesPerSecond) }, options);
  try {
    for await (const stream of session) answer(stream).catch(tell);
  } catch (error) {
    tell(error);
  }
}
