/**
 * Tunnels: any number of forwarded connections over one. {@linkcode openTunnel} connects to {@linkcode serveTunnel},
 * and each connection that either end accepts for the other is one stream between them.
 *
 * ```ts
 * import { openTunnel, serveTunnel } from "@sluice/smux/tunnel";
 * import { assertEquals } from "@std/assert";
 *
 * const web = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, () => new Response("hello"));
 * const server = serveTunnel({ listen: "127.0.0.1:0", allow: ["127.0.0.1:*"] });
 * const client = await openTunnel({ connect: server.serverAddr, forward: [`127.0.0.1:0=127.0.0.1:${web.addr.port}`] });
 *
 * const answer = await fetch(`http://${client.listenAddrs[0]}/`, { headers: { connection: "close" } });
 * assertEquals(await answer.text(), "hello");
 *
 * await client.shutdown();
 * await server.shutdown();
 * await web.shutdown();
 * ```
 *
 * It is a command too, `deno install -g -A -n sluice jsr:@sluice/smux/tunnel`:
 *
 * ```sh
 * sluice server --listen 127.0.0.1:9000 --allow localhost:80
 * sluice client --connect 127.0.0.1:9000 --forward 8080=localhost:80
 * ```
 *
 * What a client can ask for, as often as it likes and all at once:
 *
 * - `forward`, as `ssh -L`: it listens here, the server connects there.
 * - `reverse`, as `ssh -R`: the server listens there, it connects here.
 * - `socks`, as `ssh -D`: it listens here, and who connects says by SOCKS 5 where to.
 * - {@linkcode TunnelClient.connect}: a stream to a target, without a port here.
 *
 * The server does what {@linkcode ServeTunnelOptions} allow and refuses the rest with a {@linkcode TunnelRefusedError}.
 *
 * LISTEN (an address to listen at) and TARGET (an address to connect to) are written `host:port`, `[ipv6]:port`,
 * `unix:/path` (printable ASCII without spaces), or `port` for `127.0.0.1:port`. In LISTEN port 0 means any free port. An
 * equals sign stands between the two, because both may contain colons.
 *
 * On the wire a forwarded connection is a stream that opens with an HTTP `CONNECT host:port` and its answer. To listen
 * for a client the server is sent `BIND host:port`, which holds as long as that stream is open. A server with a fixed
 * target expects neither, and so serves any client of smux as it is.
 *
 * @module
 */

export { openTunnel } from "./tunnel/client.ts";
export {
  type OpenTunnelOptions,
  type ServeTunnelOptions,
  type Tunnel,
  type TunnelClient,
  type TunnelEvent,
  type TunnelOptions,
  TunnelRefusedError,
  type TunnelStats,
} from "./tunnel/options.ts";
export { serveTunnel } from "./tunnel/server.ts";

// Only the command needs this module, and what it imports.
if (import.meta.main) {
  const { main } = await import("./tunnel/cli.ts");
  // A pending read of stdin must not keep the process alive.
  Deno.exit(await main(Deno.args));
}
