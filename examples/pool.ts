/**
 * A pool of workers fed by many sessions through one channel: each answers a stream with the SHA-256 of what came, and
 * gives a peer up that takes longer than a second. Ctrl-C ends the server in order: what was begun is answered.
 *
 * ```sh
 * deno run --allow-net examples/pool.ts server 9000
 * deno run --allow-net examples/pool.ts client 9000 one two three
 * ```
 *
 * @module
 */
import { bounded, connections, Session, type Stream } from "@sluice/smux";
import { deadline } from "@std/async";

async function answer(stream: Stream): Promise<void> {
  const hash = await crypto.subtle.digest("SHA-256", await new Response(stream.readable).arrayBuffer());
  await stream.write(new TextEncoder().encode(new Uint8Array(hash).toHex()));
  await stream.closeWrite();
}

async function work(worker: number, streams: AsyncIterable<Stream>): Promise<void> {
  for await (using stream of streams) {
    console.log(`worker ${worker}: ${await deadline(answer(stream), 1000).then(() => "answered", String)}`);
  }
}

async function runServer(port: number): Promise<void> {
  const { sender, receiver } = bounded<Stream>(100);
  const pool = [1, 2, 3].map((worker) => work(worker, receiver));
  const listener = Deno.listen({ hostname: "127.0.0.1", port });
  const stop = new AbortController();
  Deno.addSignalListener("SIGINT", () => stop.abort());
  console.log(`listening on 127.0.0.1:${listener.addr.port}`);
  const sessions = new Set<Session>();
  for await (const connection of connections(listener, { signal: stop.signal })) {
    const session = Session.server(connection, { incoming: sender.clone() });
    sessions.add(session);
    session.closed.catch(console.error).then(() => sessions.delete(session));
  }
  sender.close(); // the sessions have clones: the last of them to end ends the pool
  await Promise.all([...pool, ...Array.from(sessions, (session) => session.close({ drain: true }))]);
}

const [command, port = "", ...texts] = Deno.args;
const isPort = /^\d{1,5}$/.test(port) && Number(port) < 65536;
if (command === "server" && isPort) {
  await runServer(Number(port));
} else if (command === "client" && isPort && texts.length > 0) {
  await using session = Session.client(await Deno.connect({ hostname: "127.0.0.1", port: Number(port) }));
  await Promise.all(texts.map(async (text) => {
    await using stream = await session.openStream();
    await stream.write(new TextEncoder().encode(text));
    await stream.closeWrite();
    console.log(`${await new Response(stream.readable).text()}  ${text}`);
  }));
} else {
  console.error("usage: pool.ts server PORT, or pool.ts client PORT TEXT…");
  Deno.exitCode = 2;
}
