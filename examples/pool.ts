/**
 * A pool of workers that serves many sessions through one channel: each worker answers a stream with the SHA-256 of its
 * data, and drops a stream that takes longer than a second. Ctrl-C shuts the server down gracefully: accepted streams
 * are answered.
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

const WORKERS = [1, 2, 3];
const MAX_WAITING_STREAMS = 100;
const ANSWER_TIMEOUT = 1000;

/** Answers one stream with the SHA-256 of its data. */
async function answer(stream: Stream): Promise<void> {
  const data = await new Response(stream.readable).arrayBuffer();
  const hash = await crypto.subtle.digest("SHA-256", data);
  await stream.write(new TextEncoder().encode(new Uint8Array(hash).toHex()));
  await stream.closeWrite();
}

/** Answers streams of the channel, one at a time, until the channel ends. */
async function work(worker: number, streams: AsyncIterable<Stream>): Promise<void> {
  for await (using stream of streams) {
    const outcome = await deadline(answer(stream), ANSWER_TIMEOUT).then(() => "answered", String);
    console.log(`worker ${worker}: ${outcome}`);
  }
}

/** Accepts sessions until SIGINT, and passes their streams to the workers. */
async function runServer(port: number): Promise<void> {
  const { sender, receiver } = bounded<Stream>(MAX_WAITING_STREAMS);
  const workers = WORKERS.map((worker) => work(worker, receiver));

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

  // Each session has a clone of the sender: the channel ends with the last session.
  sender.close();
  const closing = Array.from(sessions, (session) => session.close({ drain: true }));
  await Promise.all([...workers, ...closing]);
}

/** Sends each text over a stream of its own, all at the same time, and prints the answers. */
async function runClient(port: number, texts: string[]): Promise<void> {
  await using session = Session.client(await Deno.connect({ hostname: "127.0.0.1", port }));
  await Promise.all(texts.map(async (text) => {
    await using stream = await session.openStream();
    await stream.write(new TextEncoder().encode(text));
    await stream.closeWrite();
    const hash = await new Response(stream.readable).text();
    console.log(`${hash}  ${text}`);
  }));
}

const [command, port = "", ...texts] = Deno.args;
const isPort = /^\d{1,5}$/.test(port) && Number(port) < 65536;

if (command === "server" && isPort) {
  await runServer(Number(port));
} else if (command === "client" && isPort && texts.length > 0) {
  await runClient(Number(port), texts);
} else {
  console.error("usage: pool.ts server PORT, or pool.ts client PORT TEXT…");
  Deno.exitCode = 2;
}
