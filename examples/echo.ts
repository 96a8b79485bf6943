/**
 * An echo server, and a client that sends each line of stdin over a stream of its own, all on one connection.
 *
 * ```sh
 * deno run --allow-net examples/echo.ts server 9000
 * deno run --allow-net examples/echo.ts client 9000
 * ```
 *
 * @module
 */
import { serve, Session } from "@sluice/smux";
import { TextLineStream } from "@std/streams";

/** Echoes every stream. */
function runServer(port: number): void {
  const listener = Deno.listen({ hostname: "127.0.0.1", port });
  serve(listener, (stream) => stream.readable.pipeTo(stream.writable));
  console.log(`listening on 127.0.0.1:${listener.addr.port}`);
}

/** Sends the lines of stdin one after another, and prints their echoes. */
async function runClient(port: number): Promise<void> {
  await using session = Session.client(await Deno.connect({ hostname: "127.0.0.1", port }));

  const lines = Deno.stdin.readable.pipeThrough(new TextDecoderStream()).pipeThrough(new TextLineStream());
  for await (const line of lines) {
    await using stream = await session.openStream();
    await stream.write(new TextEncoder().encode(line));
    // The end of the stream is the end of the line; without it the echo would not end, either.
    await stream.closeWrite();
    console.log(await new Response(stream.readable).text());
  }
}

const [command, port = ""] = Deno.args;
const isPort = /^\d{1,5}$/.test(port) && Number(port) < 65536;

if (command === "server" && isPort) {
  runServer(Number(port));
} else if (command === "client" && isPort) {
  await runClient(Number(port));
} else {
  console.error("usage: echo.ts server PORT, or echo.ts client PORT");
  Deno.exitCode = 2;
}
