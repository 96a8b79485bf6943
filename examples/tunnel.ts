/**
 * A tunnel in two functions: each connection to the near end becomes a stream of one session, and each stream becomes a
 * connection from the far end to the target. Here port 8080 leads to port 80. An address without a host is one of this
 * machine. Nothing is encrypted.
 *
 * ```sh
 * deno run --allow-net examples/tunnel.ts server 9000 localhost:80
 * deno run --allow-net examples/tunnel.ts client 8080 localhost:9000
 * bun examples/tunnel.ts server 9000 localhost:80 # in Bun
 * npx tsx examples/tunnel.ts client 8080 localhost:9000 # in Node
 * ```
 *
 * @module
 */
import { connect } from "node:net";
import process from "node:process";
import { connections, join, serve, Session } from "@sluice/smux";
import { listen, type NodeListener } from "./node/listen.ts";

/** The far end: joins each stream to a connection of its own to the target. */
function serveTarget(listener: NodeListener, target: { host: string; port: number }): void {
  serve(listener, async (stream) => {
    // Half-open, so that the target can end its direction before the client.
    await join(stream, connect({ ...target, allowHalfOpen: true }));
  });
}

/** The near end: joins each connection to a stream, until the session ends. */
async function forward(listener: NodeListener, session: Session): Promise<void> {
  const ended = new AbortController();
  session.closed.catch(() => {}).then(() => ended.abort());

  for await (const socket of connections(listener, { signal: ended.signal })) {
    const stream = await session.openStream().catch(() => undefined);
    if (stream === undefined) return void socket.destroy();
    join(socket, stream).catch(console.error);
  }
}

/** Parses `host:port` or `port`. */
function parseAddress(address = ""): { host: string; port: number } | undefined {
  const [, host = "127.0.0.1", port] = /^(?:(.+):)?(\d{1,5})$/.exec(address) ?? [];
  return Number(port) < 65536 ? { host, port: Number(port) } : undefined;
}

const [command = "", ...addresses] = process.argv.slice(2);
const [near, far] = [parseAddress(addresses[0]), parseAddress(addresses[1])];

if (["server", "client"].includes(command) && near !== undefined && far !== undefined) {
  const listener = await listen(near.port, near.host);
  console.log(`listening on ${near.host}:${listener.port}`);
  if (command === "server") {
    serveTarget(listener, far);
  } else {
    const session = Session.client(connect(far));
    await forward(listener, session);
    await session.closed;
  }
} else {
  console.error("usage: tunnel.ts server [HOST:]PORT TARGET, or tunnel.ts client [HOST:]PORT SERVER");
  process.exitCode = 2;
}
