/**
 * Port forwarding: any number of connections over one. {@linkcode openTunnel} connects to {@linkcode serveTunnel}, and
 * each forwarded connection is one stream between them. Both need Deno; other runtimes can only import this module.
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
 * The same as a command, `deno install -g -A -n sluice jsr:@sluice/smux/tunnel`:
 *
 * ```sh
 * sluice server --listen 127.0.0.1:9000 --allow localhost:80
 * sluice client --connect 127.0.0.1:9000 --forward 8080=localhost:80
 * ```
 *
 * A client can use any number of these at the same time:
 *
 * - `forward`, as `ssh -L`: the client listens, the server connects to one target.
 * - `reverse`, as `ssh -R`: the server listens, the client connects to one target.
 * - `socks`, as `ssh -D`: the client listens, the server connects to the target that each SOCKS or HTTP request names.
 * - `http`: as `socks`. `reverseSocks`: as `socks`, but the server listens, and the client connects.
 * - `udp:` before an entry of `forward` or `reverse`: datagrams instead of connections.
 * - {@linkcode TunnelClient.connect}: a stream to a target, without listening.
 *
 * Both ends can use WebSockets: `ws://` and `wss://` in `listen` and `connect`, or {@linkcode tunnelHandler} in a server
 * of your own.
 *
 * The server connects and listens only where {@linkcode ServeTunnelOptions} allow it. It refuses other requests with a
 * {@linkcode TunnelRefusedError}.
 *
 * LISTEN (an address to listen at) and TARGET (an address to connect to) are written `host:port`, `[ipv6]:port`,
 * `unix:/path` (printable ASCII without spaces), or `port` for `127.0.0.1:port`. In LISTEN port 0 means any free port.
 * In `LISTEN=TARGET` an equals sign separates the two, because both may contain colons.
 *
 * On the wire a forwarded connection is a stream that begins with an HTTP request, `CONNECT host:port`, and its
 * response. To make the server listen, a client sends `BIND host:port`; the server listens until that stream ends. A
 * server with a fixed target expects no request, so it serves any smux client.
 *
 * @module
 */

export { checkTunnel, type CheckTunnelOptions, type TunnelCheck } from "./tunnel/check.ts";
export { openTunnel } from "./tunnel/client.ts";
export { dialThroughProxy } from "./tunnel/dial_proxy.ts";
export { type TunnelHandler, tunnelHandler, type TunnelHandlerOptions } from "./tunnel/handler.ts";
export {
  type OpenTunnelOptions,
  type ServeTunnelOptions,
  type Tunnel,
  type TunnelClient,
  type TunnelEvent,
  type TunnelOptions,
  TunnelRefusedError,
  type TunnelRequest,
  type TunnelServer,
  type TunnelServerState,
  type TunnelStats,
  type TunnelUser,
} from "./tunnel/options.ts";
export { serveTunnel } from "./tunnel/server.ts";
export { hashSecret } from "./tunnel/users.ts";

// Imported here, so that a program that imports this module does not load the command.
if (import.meta.main) {
  const { main } = await import("./tunnel/cli.ts");
  // A pending read of stdin must not keep the process alive.
  Deno.exit(await main(Deno.args));
}
