/**
 * HTTP by `node:http` over the streams of one session: a server whose connections are streams, and a client that sends
 * all its requests at the same time. Request handlers, such as an Express app, work unchanged.
 *
 * ```sh
 * deno run --allow-net examples/http.ts server 9000
 * deno run --allow-net examples/http.ts client 9000 /one /two /three
 * ```
 *
 * @module
 */
import { createServer, type IncomingMessage, request, type RequestOptions, type Server } from "node:http";
import { Duplex } from "node:stream";
import { text } from "node:stream/consumers";
import { finished } from "node:stream/promises";
import { serve, Session, type Stream } from "@sluice/smux";

/** Serves a stream as a connection of an HTTP server; resolves when the connection has ended. */
export async function serveHttp(stream: Stream, web: Server): Promise<void> {
  const socket = Duplex.fromWeb(stream);
  web.emit("connection", socket);
  // The HTTP server reports errors itself, by "clientError" and to the requests.
  await finished(socket).catch(() => {});
}

/** Sends a request over a stream of its own, which is cheaper than keeping a connection alive. */
export async function requestOver(session: Session, options: RequestOptions, body = ""): Promise<IncomingMessage> {
  const socket = Duplex.fromWeb(await session.openStream());
  return await new Promise((resolve, reject) => {
    const outgoing = request({ ...options, createConnection: () => socket }, resolve);
    outgoing.on("error", reject).end(body);
  });
}

/** Serves HTTP over the streams of every connection; each response is the body of its request. */
function runServer(port: number): void {
  const web = createServer((incoming, response) => void incoming.pipe(response));
  const listener = Deno.listen({ hostname: "127.0.0.1", port });
  serve(listener, (stream) => serveHttp(stream, web));
  console.log(`listening on 127.0.0.1:${listener.addr.port}`);
}

/** Requests all paths at the same time, over one connection. */
async function runClient(port: number, paths: string[]): Promise<void> {
  await using session = Session.client(await Deno.connect({ hostname: "127.0.0.1", port }));
  await Promise.all(paths.map(async (path) => {
    const response = await requestOver(session, { method: "POST", path }, `hello from ${path}`);
    console.log(`${path}: ${response.statusCode} ${await text(response)}`);
  }));
}

if (import.meta.main) {
  const [command, port = "", ...paths] = Deno.args;
  const isPort = /^\d{1,5}$/.test(port) && Number(port) < 65536;

  if (command === "server" && isPort) {
    runServer(Number(port));
  } else if (command === "client" && isPort && paths.length > 0) {
    await runClient(Number(port), paths);
  } else {
    console.error("usage: http.ts server PORT, or http.ts client PORT PATH…");
    Deno.exitCode = 2;
  }
}
