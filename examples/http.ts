/**
 * HTTP by `node:http` over the streams of one session: a server whose connections are streams, and a client that makes
 * all its requests at once. What handles the requests of such a server, Express for one, need not know.
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

/** Gives a stream to an HTTP server as a connection, and waits until that is over. */
export async function serveHttp(stream: Stream, web: Server): Promise<void> {
  const socket = Duplex.fromWeb(stream);
  web.emit("connection", socket);
  // What goes wrong is told by the HTTP server, by "clientError" and to the requests.
  await finished(socket).catch(() => {});
}

/** Makes a request over a stream of its own, which is cheaper than to keep a connection alive. */
export async function requestOver(session: Session, options: RequestOptions, body = ""): Promise<IncomingMessage> {
  const socket = Duplex.fromWeb(await session.openStream());
  return await new Promise((resolve, reject) => {
    request({ ...options, createConnection: () => socket }, resolve).on("error", reject).end(body);
  });
}

if (import.meta.main) {
  const [command, port = "", ...paths] = Deno.args;
  const isPort = /^\d{1,5}$/.test(port) && Number(port) < 65536;
  if (command === "server" && isPort) {
    const web = createServer((incoming, response) => void incoming.pipe(response));
    const listener = Deno.listen({ hostname: "127.0.0.1", port: Number(port) });
    serve(listener, (stream) => serveHttp(stream, web));
    console.log(`listening on 127.0.0.1:${listener.addr.port}`);
  } else if (command === "client" && isPort && paths.length > 0) {
    await using session = Session.client(await Deno.connect({ hostname: "127.0.0.1", port: Number(port) }));
    await Promise.all(paths.map(async (path) => {
      const response = await requestOver(session, { method: "POST", path }, `hello from ${path}`);
      console.log(`${path}: ${response.statusCode} ${await text(response)}`);
    }));
  } else {
    console.error("usage: http.ts server PORT, or http.ts client PORT PATH…");
    Deno.exitCode = 2;
  }
}
