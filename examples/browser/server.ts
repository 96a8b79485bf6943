/**
 * Serves a page that makes eight transfers over one WebSocket: `deno run -A examples/browser/server.ts [PORT] [MB/S]`.
 *
 * The page imports the modules of this repository as they are, with their types taken out on the way.
 *
 * @module
 */
import { stripTypeScriptTypes } from "node:module";
import { setTimeout } from "node:timers/promises";
import { crc32 } from "node:zlib";
import { Session, SessionClosedError, type Stream } from "../../mod.ts";
import { webSocketStreams } from "./websocket.ts";

const [port = "8000", megabytesPerSecond = "6"] = Deno.args;

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

/** A line of so many megabytes a second, shared by all streams; over the loopback nobody could watch them. */
function slow(writable: WritableStream<Uint8Array<ArrayBuffer>>): WritableStream<Uint8Array<ArrayBuffer>> {
  const line = new TransformStream<Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>>({
    async transform(chunk, controller) {
      controller.enqueue(chunk);
      await setTimeout(chunk.length / Number(megabytesPerSecond) / 1000);
    },
  });
  line.readable.pipeTo(writable).catch(() => {});
  return line.writable;
}

/** The end of a session, which is that of its page, is no error here. */
const tell = (error: unknown) => error instanceof SessionClosedError || console.error(error);

async function serveSession(socket: WebSocket): Promise<void> {
  const { readable, writable } = webSocketStreams(socket);
  // A browser may run the timers of a page that nobody sees only once a minute, and those send its signs of life.
  const session = Session.server({ readable, writable: slow(writable) }, { version: 2, timeout: 150_000 });
  for await (const stream of session) answer(stream).catch(tell);
}

const source = (path: string) => Deno.readTextFile(new URL(path, import.meta.url));
const onListen = ({ port }: Deno.NetAddr) => console.log(`http://localhost:${port}/`);
Deno.serve({ hostname: "127.0.0.1", port: Number(port), onListen }, async (request) => {
  const { pathname } = new URL(request.url);
  if (pathname === "/") return new Response(await source("index.html"), { headers: { "content-type": "text/html" } });
  if (pathname === "/smux") {
    const { socket, response } = Deno.upgradeWebSocket(request);
    serveSession(socket).catch(tell);
    return response;
  }
  const [, folder, name] = /^\/(sluice\/)?([a-z]+\.ts)$/.exec(pathname) ?? [];
  if (name === undefined) return new Response("Not found", { status: 404 });
  const code = stripTypeScriptTypes(await source(folder === undefined ? name : `../../${name}`), { mode: "transform" });
  return new Response(code, { headers: { "content-type": "text/javascript" } });
});
