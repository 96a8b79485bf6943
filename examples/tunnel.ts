/**
 * A tunnel in two functions: each connection to the near end becomes a stream of one session, and each stream becomes a
 * connection from the far end to the target. Here port 8080 leads to port 80. An address without a host is one of this
 * machine. Nothing is encrypted.
 *
 * ```sh
 * deno run --allow-net examples/tunnel.ts server 9000 localhost:80
 * deno run --allow-net examples/tunnel.ts client 8080 localhost:9000
 * ```
 *
 * @module
 */
import { connections, type DuplexConnection, join, type Listener, serve, type Server, Session } from "@sluice/smux";

/** The far end: joins each stream to a connection of its own to the target. */
export function serveTarget(listener: Listener, target: Deno.ConnectOptions): Server {
  return serve(listener, async (stream) => {
    await join(stream, await Deno.connect(target));
  });
}

/** The near end: joins each connection to a stream, until the session ends or the listener is closed. */
export async function forward(listener: Listener<DuplexConnection>, session: Session): Promise<void> {
  const ended = new AbortController();
  session.closed.catch(() => {}).then(() => ended.abort());

  for await (const connection of connections(listener, { signal: ended.signal })) {
    const stream = await session.openStream().catch(() => undefined);
    if (stream === undefined) return connection.close();
    join(connection, stream).catch(console.error);
  }
}

/** Parses `host:port` or `port`. */
function parseAddress(address = ""): { hostname: string; port: number } | undefined {
  const [, hostname = "127.0.0.1", port] = /^(?:(.+):)?(\d{1,5})$/.exec(address) ?? [];
  return Number(port) < 65536 ? { hostname, port: Number(port) } : undefined;
}

if (import.meta.main) {
  const [command = "", ...addresses] = Deno.args;
  const [near, far] = [parseAddress(addresses[0]), parseAddress(addresses[1])];

  if (["server", "client"].includes(command) && near !== undefined && far !== undefined) {
    const listener = Deno.listen(near);
    console.log(`listening on ${listener.addr.hostname}:${listener.addr.port}`);
    if (command === "server") {
      serveTarget(listener, far);
    } else {
      const session = Session.client(await Deno.connect(far));
      await forward(listener, session);
      await session.closed;
    }
  } else {
    console.error("usage: tunnel.ts server [HOST:]PORT TARGET, or tunnel.ts client [HOST:]PORT SERVER");
    Deno.exitCode = 2;
  }
}
