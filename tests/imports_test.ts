/**
 * The imports between modules: those listed here, without a cycle, and none from outside the package.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import config from "../deno.json" with { type: "json" };
import { deno } from "./programs.ts";

const ROOT = new URL("../", import.meta.url);
const ENTRYPOINTS = Object.values(config.exports).map((path) => path.slice("./".length));

// Every module and its imports, types included.
const ARROWS: Record<string, string[]> = {
  "_acceptor.ts": ["channel.ts", "options.ts", "stream.ts"],
  "_adapt.ts": ["_describe.ts", "_double.ts", "_node_stream.ts", "frame.ts", "transport.ts"],
  "_channel_core.ts": ["_describe.ts", "_wait.ts"],
  "_chunks.ts": ["channel.ts", "frame.ts", "transport.ts"],
  "_clock.ts": [],
  "_coalesce.ts": ["_clock.ts", "_write_buffer.ts"],
  "_deadlines.ts": ["_clock.ts", "_double.ts", "_writer.ts"],
  "_deferred.ts": [],
  "_describe.ts": [],
  "_double.ts": [],
  "_flight.ts": ["_clock.ts", "_double.ts"],
  "_flood.ts": ["_window.ts", "frame.ts"],
  "_gate.ts": ["channel.ts"],
  "_node_stream.ts": ["_deferred.ts", "frame.ts", "transport.ts"],
  "_reader.ts": [
    "_clock.ts",
    "_deferred.ts",
    "_double.ts",
    "_flood.ts",
    "_gate.ts",
    "_timeslice.ts",
    "_window.ts",
    "_writer.ts",
    "frame.ts",
    "stream.ts",
    "transport.ts",
  ],
  "_receive_half.ts": [
    "_chunks.ts",
    "_describe.ts",
    "_double.ts",
    "_gate.ts",
    "_wait.ts",
    "_window.ts",
    "errors.ts",
    "frame.ts",
    "transport.ts",
  ],
  "_replay.ts": ["_double.ts", "_flight.ts", "_resume_frame.ts", "transport.ts"],
  "_reset.ts": [],
  "_resume_carrier.ts": ["_clock.ts", "_resume_frame.ts", "errors.ts", "transport.ts"],
  "_resume_core.ts": [
    "_chunks.ts",
    "_clock.ts",
    "_deferred.ts",
    "_double.ts",
    "_replay.ts",
    "_resume_carrier.ts",
    "_resume_frame.ts",
    "_resume_timers.ts",
    "errors.ts",
    "frame.ts",
    "transport.ts",
  ],
  "_resume_dialer.ts": [
    "_clock.ts",
    "_deferred.ts",
    "_node_stream.ts",
    "_resume_carrier.ts",
    "_resume_core.ts",
    "_resume_frame.ts",
    "_resume_timers.ts",
    "errors.ts",
    "frame.ts",
    "transport.ts",
  ],
  "_resume_frame.ts": ["_double.ts", "frame.ts"],
  "_resume_listener.ts": [
    "_clock.ts",
    "_node_stream.ts",
    "_resume_carrier.ts",
    "_resume_core.ts",
    "_resume_frame.ts",
    "channel.ts",
    "errors.ts",
    "serve.ts",
    "transport.ts",
  ],
  "_resume_timers.ts": ["_clock.ts"],
  "_send_half.ts": [
    "_clock.ts",
    "_deferred.ts",
    "_describe.ts",
    "_gate.ts",
    "_receive_half.ts",
    "_window.ts",
    "_writer.ts",
    "channel.ts",
    "errors.ts",
    "frame.ts",
  ],
  "_session_core.ts": [
    "_acceptor.ts",
    "_adapt.ts",
    "_deadlines.ts",
    "_deferred.ts",
    "_describe.ts",
    "_flood.ts",
    "_gate.ts",
    "_reader.ts",
    "_reset.ts",
    "_stalled.ts",
    "_table.ts",
    "_trace.ts",
    "_window.ts",
    "_writer.ts",
    "channel.ts",
    "errors.ts",
    "frame.ts",
    "options.ts",
    "stream.ts",
    "transport.ts",
  ],
  "_stalled.ts": ["_clock.ts", "_deadlines.ts", "_table.ts", "_window.ts", "frame.ts", "stream.ts"],
  "_table.ts": [],
  "_timeslice.ts": ["_clock.ts"],
  "_trace.ts": ["frame.ts", "transport.ts"],
  "_wait.ts": ["_clock.ts", "_describe.ts"],
  "_web_socket.ts": [
    "_clock.ts",
    "_deferred.ts",
    "_describe.ts",
    "_double.ts",
    "_gate.ts",
    "channel.ts",
    "errors.ts",
    "frame.ts",
    "transport.ts",
  ],
  "_web_streams.ts": ["_receive_half.ts", "_send_half.ts"],
  "_window.ts": ["_clock.ts"],
  "_write_buffer.ts": ["frame.ts", "transport.ts"],
  "_writer.ts": [
    "_clock.ts",
    "_coalesce.ts",
    "_double.ts",
    "_reset.ts",
    "_timeslice.ts",
    "_trace.ts",
    "_write_buffer.ts",
    "channel.ts",
    "frame.ts",
    "transport.ts",
  ],
  "channel.ts": ["_channel_core.ts", "_describe.ts", "_wait.ts", "select.ts"],
  "errors.ts": [],
  "frame.ts": ["_double.ts"],
  "mod.ts": [
    "_trace.ts",
    "channel.ts",
    "errors.ts",
    "frame.ts",
    "options.ts",
    "serve.ts",
    "session.ts",
    "stream.ts",
    "transport.ts",
  ],
  "options.ts": ["_clock.ts", "_describe.ts", "_trace.ts", "_window.ts", "channel.ts", "frame.ts", "stream.ts"],
  "resume.ts": [
    "_describe.ts",
    "_resume_core.ts",
    "_resume_dialer.ts",
    "_resume_frame.ts",
    "_resume_listener.ts",
    "_wait.ts",
    "errors.ts",
    "options.ts",
    "serve.ts",
    "transport.ts",
  ],
  "select.ts": ["_wait.ts"],
  "serve.ts": [
    "_adapt.ts",
    "_clock.ts",
    "_deferred.ts",
    "_describe.ts",
    "_node_stream.ts",
    "_receive_half.ts",
    "_wait.ts",
    "channel.ts",
    "errors.ts",
    "options.ts",
    "session.ts",
    "stream.ts",
    "transport.ts",
  ],
  "session.ts": ["_session_core.ts", "channel.ts", "frame.ts", "options.ts", "stream.ts", "transport.ts"],
  "stream.ts": [
    "_deferred.ts",
    "_receive_half.ts",
    "_send_half.ts",
    "_web_streams.ts",
    "_window.ts",
    "_writer.ts",
    "errors.ts",
    "frame.ts",
    "transport.ts",
  ],
  "transport.ts": ["errors.ts"],
  "tunnel.ts": [
    "tunnel/check.ts",
    "tunnel/cli.ts",
    "tunnel/client.ts",
    "tunnel/dial_proxy.ts",
    "tunnel/handler.ts",
    "tunnel/options.ts",
    "tunnel/server.ts",
    "tunnel/users.ts",
  ],
  "tunnel/access.ts": [
    "mod.ts",
    "node:crypto",
    "node:net",
    "tunnel/address.ts",
    "tunnel/bytes.ts",
    "tunnel/errors.ts",
    "tunnel/handshake.ts",
    "tunnel/identity.ts",
    "tunnel/measure.ts",
    "tunnel/options.ts",
    "tunnel/refusal.ts",
    "tunnel/resolve.ts",
    "tunnel/rules.ts",
    "tunnel/turns.ts",
    "tunnel/udp_socket.ts",
    "tunnel/users.ts",
    "tunnel/wait.ts",
  ],
  "tunnel/accounting.ts": ["mod.ts", "tunnel/options.ts"],
  "tunnel/activity.ts": [
    "mod.ts",
    "tunnel/accounting.ts",
    "tunnel/address.ts",
    "tunnel/descriptors.ts",
    "tunnel/errors.ts",
    "tunnel/options.ts",
    "tunnel/wait.ts",
  ],
  "tunnel/address.ts": [],
  "tunnel/advice.ts": [],
  "tunnel/arguments.ts": [
    "mod.ts",
    "tunnel/address.ts",
    "tunnel/certificate.ts",
    "tunnel/check.ts",
    "tunnel/client.ts",
    "tunnel/config.ts",
    "tunnel/configured.ts",
    "tunnel/environment.ts",
    "tunnel/errors.ts",
    "tunnel/hints.ts",
    "tunnel/log.ts",
    "tunnel/no_proxy.ts",
    "tunnel/options.ts",
    "tunnel/pin.ts",
    "tunnel/report.ts",
    "tunnel/server.ts",
    "tunnel/settings.ts",
    "tunnel/usage.ts",
    "tunnel/users.ts",
    "tunnel/values.ts",
  ],
  "tunnel/bytes.ts": ["mod.ts", "tunnel/errors.ts"],
  "tunnel/carrier.ts": ["mod.ts", "resume.ts", "tunnel/errors.ts", "tunnel/wait.ts"],
  "tunnel/certificate.ts": ["tunnel/address.ts", "tunnel/bytes.ts"],
  "tunnel/check.ts": [
    "mod.ts",
    "node:net",
    "tunnel/address.ts",
    "tunnel/advice.ts",
    "tunnel/carrier.ts",
    "tunnel/dial_proxy.ts",
    "tunnel/dial_server.ts",
    "tunnel/dial_web_socket.ts",
    "tunnel/errors.ts",
    "tunnel/handshake.ts",
    "tunnel/measure.ts",
    "tunnel/options.ts",
    "tunnel/peer_certificate.ts",
    "tunnel/settings.ts",
    "tunnel/socket.ts",
    "tunnel/upstream.ts",
    "tunnel/wait.ts",
  ],
  "tunnel/cidr.ts": ["node:net", "tunnel/address.ts"],
  "tunnel/cli.ts": [
    "mod.ts",
    "tunnel/arguments.ts",
    "tunnel/config.ts",
    "tunnel/display.ts",
    "tunnel/errors.ts",
    "tunnel/hints.ts",
    "tunnel/log.ts",
    "tunnel/options.ts",
    "tunnel/stdio.ts",
    "tunnel/usage.ts",
    "tunnel/values.ts",
    "tunnel/wait.ts",
  ],
  "tunnel/client.ts": [
    "mod.ts",
    "tunnel/activity.ts",
    "tunnel/address.ts",
    "tunnel/bytes.ts",
    "tunnel/errors.ts",
    "tunnel/forward.ts",
    "tunnel/handshake.ts",
    "tunnel/link.ts",
    "tunnel/listen.ts",
    "tunnel/options.ts",
    "tunnel/places.ts",
    "tunnel/proxy_entry.ts",
    "tunnel/reverses.ts",
    "tunnel/servers.ts",
    "tunnel/settings.ts",
    "tunnel/socket.ts",
    "tunnel/socks_udp.ts",
    "tunnel/status.ts",
    "tunnel/udp_flow.ts",
    "tunnel/udp_forward.ts",
    "tunnel/udp_socket.ts",
    "tunnel/visitor.ts",
    "tunnel/wait.ts",
  ],
  "tunnel/config.ts": [
    "node:path",
    "tunnel/address.ts",
    "tunnel/cidr.ts",
    "tunnel/environment.ts",
    "tunnel/errors.ts",
    "tunnel/json.ts",
    "tunnel/no_proxy.ts",
    "tunnel/options.ts",
    "tunnel/pin.ts",
    "tunnel/rules.ts",
    "tunnel/server.ts",
    "tunnel/settings.ts",
    "tunnel/upstream.ts",
    "tunnel/users.ts",
    "tunnel/wait.ts",
    "tunnel/web_socket_address.ts",
    "tunnel/web_socket_handshake.ts",
  ],
  "tunnel/configured.ts": [
    "tunnel/address.ts",
    "tunnel/client.ts",
    "tunnel/config.ts",
    "tunnel/log.ts",
    "tunnel/options.ts",
    "tunnel/places.ts",
    "tunnel/server.ts",
    "tunnel/settings.ts",
    "tunnel/watch.ts",
  ],
  "tunnel/datagram.ts": [],
  "tunnel/descriptors.ts": [],
  "tunnel/dial_proxy.ts": [
    "mod.ts",
    "tunnel/address.ts",
    "tunnel/errors.ts",
    "tunnel/http_connect.ts",
    "tunnel/socket.ts",
    "tunnel/socks_client.ts",
    "tunnel/upstream.ts",
    "tunnel/wait.ts",
  ],
  "tunnel/dial_server.ts": [
    "mod.ts",
    "tunnel/address.ts",
    "tunnel/dial_proxy.ts",
    "tunnel/dial_web_socket.ts",
    "tunnel/errors.ts",
    "tunnel/options.ts",
    "tunnel/pin.ts",
    "tunnel/refusal.ts",
    "tunnel/socket.ts",
    "tunnel/tls.ts",
    "tunnel/upstream.ts",
    "tunnel/web_socket_address.ts",
    "tunnel/web_socket_handshake.ts",
  ],
  "tunnel/dial_web_socket.ts": [
    "mod.ts",
    "tunnel/address.ts",
    "tunnel/errors.ts",
    "tunnel/options.ts",
    "tunnel/wait.ts",
    "tunnel/web_socket_address.ts",
    "tunnel/web_socket_handshake.ts",
  ],
  "tunnel/display.ts": ["tunnel/options.ts", "tunnel/output.ts", "tunnel/wait.ts"],
  "tunnel/duplex.ts": ["mod.ts", "node:stream", "tunnel/errors.ts"],
  "tunnel/entrance.ts": [
    "mod.ts",
    "tunnel/address.ts",
    "tunnel/errors.ts",
    "tunnel/listen.ts",
    "tunnel/options.ts",
    "tunnel/ports.ts",
    "tunnel/proxy_listener.ts",
    "tunnel/socket.ts",
    "tunnel/tls_listener.ts",
    "tunnel/wait.ts",
    "tunnel/web_listener.ts",
    "tunnel/web_socket_address.ts",
  ],
  "tunnel/environment.ts": [],
  "tunnel/errors.ts": ["mod.ts"],
  "tunnel/forward.ts": [
    "mod.ts",
    "tunnel/accounting.ts",
    "tunnel/activity.ts",
    "tunnel/address.ts",
    "tunnel/bytes.ts",
    "tunnel/errors.ts",
    "tunnel/linger.ts",
    "tunnel/socket.ts",
    "tunnel/tcp.ts",
    "tunnel/wait.ts",
  ],
  "tunnel/handler.ts": ["mod.ts", "tunnel/options.ts", "tunnel/server.ts", "websocket.ts"],
  "tunnel/handshake.ts": [
    "mod.ts",
    "tunnel/bytes.ts",
    "tunnel/errors.ts",
    "tunnel/options.ts",
    "tunnel/socket.ts",
    "tunnel/udp_socket.ts",
    "tunnel/wait.ts",
  ],
  "tunnel/handshake_limit.ts": ["tunnel/socket.ts"],
  "tunnel/hints.ts": ["tunnel/address.ts", "tunnel/rules.ts", "tunnel/usage.ts", "tunnel/web_socket_address.ts"],
  "tunnel/http_body.ts": [],
  "tunnel/http_connect.ts": [
    "mod.ts",
    "tunnel/bytes.ts",
    "tunnel/errors.ts",
    "tunnel/handshake.ts",
    "tunnel/options.ts",
    "tunnel/upstream.ts",
  ],
  "tunnel/http_head.ts": ["mod.ts"],
  "tunnel/http_proxy.ts": [
    "mod.ts",
    "tunnel/address.ts",
    "tunnel/bytes.ts",
    "tunnel/errors.ts",
    "tunnel/handshake.ts",
    "tunnel/http_body.ts",
    "tunnel/options.ts",
    "tunnel/proxy_auth.ts",
    "tunnel/wait.ts",
  ],
  "tunnel/identity.ts": ["mod.ts", "tunnel/users.ts", "tunnel/x509.ts"],
  "tunnel/json.ts": [],
  "tunnel/limits.ts": ["tunnel/errors.ts", "tunnel/options.ts", "tunnel/wait.ts"],
  "tunnel/linger.ts": ["mod.ts", "tunnel/wait.ts"],
  "tunnel/link.ts": [
    "mod.ts",
    "tunnel/activity.ts",
    "tunnel/carrier.ts",
    "tunnel/dial_server.ts",
    "tunnel/errors.ts",
    "tunnel/handshake.ts",
    "tunnel/limits.ts",
    "tunnel/options.ts",
    "tunnel/returning.ts",
    "tunnel/wait.ts",
  ],
  "tunnel/lists.ts": ["tunnel/errors.ts"],
  "tunnel/listen.ts": ["tunnel/address.ts", "tunnel/socket.ts", "tunnel/udp_socket.ts", "tunnel/wait.ts"],
  "tunnel/log.ts": ["mod.ts", "tunnel/accounting.ts", "tunnel/address.ts", "tunnel/errors.ts", "tunnel/options.ts"],
  "tunnel/measure.ts": ["mod.ts", "tunnel/bytes.ts", "tunnel/handshake.ts", "tunnel/wait.ts"],
  "tunnel/metrics.ts": [],
  "tunnel/no_proxy.ts": [
    "node:net",
    "tunnel/address.ts",
    "tunnel/cidr.ts",
    "tunnel/environment.ts",
    "tunnel/upstream.ts",
  ],
  "tunnel/options.ts": ["mod.ts"],
  "tunnel/output.ts": ["tunnel/bytes.ts"],
  "tunnel/peer_certificate.ts": [
    "node:net",
    "node:stream",
    "node:tls",
    "tunnel/bytes.ts",
    "tunnel/pin.ts",
    "tunnel/tls.ts",
    "tunnel/wait.ts",
  ],
  "tunnel/pin.ts": ["node:crypto", "tunnel/address.ts", "tunnel/x509.ts"],
  "tunnel/places.ts": ["tunnel/accounting.ts", "tunnel/address.ts", "tunnel/listen.ts", "tunnel/ports.ts"],
  "tunnel/ports.ts": [
    "mod.ts",
    "tunnel/access.ts",
    "tunnel/address.ts",
    "tunnel/errors.ts",
    "tunnel/handshake.ts",
    "tunnel/listen.ts",
    "tunnel/wait.ts",
  ],
  "tunnel/prepared_listener.ts": ["mod.ts", "tunnel/errors.ts", "tunnel/handshake_limit.ts", "tunnel/socket.ts"],
  "tunnel/proxy_auth.ts": ["tunnel/handshake.ts", "tunnel/users.ts", "tunnel/wait.ts"],
  "tunnel/proxy_entry.ts": [
    "mod.ts",
    "tunnel/bytes.ts",
    "tunnel/errors.ts",
    "tunnel/http_proxy.ts",
    "tunnel/socks4.ts",
    "tunnel/socks5.ts",
    "tunnel/wait.ts",
  ],
  "tunnel/proxy_listener.ts": [
    "tunnel/address.ts",
    "tunnel/cidr.ts",
    "tunnel/errors.ts",
    "tunnel/options.ts",
    "tunnel/prepared_listener.ts",
    "tunnel/proxy_protocol.ts",
    "tunnel/socket.ts",
    "tunnel/wait.ts",
    "tunnel/web_socket_address.ts",
  ],
  "tunnel/proxy_protocol.ts": ["mod.ts", "node:net", "tunnel/bytes.ts", "tunnel/cidr.ts"],
  "tunnel/refusal.ts": ["mod.ts", "tunnel/bytes.ts", "tunnel/errors.ts"],
  "tunnel/report.ts": ["tunnel/bytes.ts", "tunnel/check.ts", "tunnel/usage.ts"],
  "tunnel/resolve.ts": ["node:dns/promises", "node:net", "tunnel/address.ts", "tunnel/wait.ts"],
  "tunnel/returning.ts": ["mod.ts", "node:buffer", "node:crypto", "tunnel/access.ts"],
  "tunnel/reverse_socks.ts": [
    "mod.ts",
    "node:net",
    "tunnel/address.ts",
    "tunnel/errors.ts",
    "tunnel/options.ts",
    "tunnel/proxy_auth.ts",
    "tunnel/proxy_entry.ts",
    "tunnel/resolve.ts",
    "tunnel/rules.ts",
    "tunnel/socket.ts",
    "tunnel/wait.ts",
  ],
  "tunnel/reverses.ts": [
    "mod.ts",
    "tunnel/activity.ts",
    "tunnel/address.ts",
    "tunnel/bytes.ts",
    "tunnel/errors.ts",
    "tunnel/forward.ts",
    "tunnel/handshake.ts",
    "tunnel/link.ts",
    "tunnel/options.ts",
    "tunnel/places.ts",
    "tunnel/proxy_protocol.ts",
    "tunnel/reverse_socks.ts",
    "tunnel/socket.ts",
    "tunnel/udp_forward.ts",
    "tunnel/udp_socket.ts",
    "tunnel/visitor.ts",
    "tunnel/wait.ts",
  ],
  "tunnel/rules.ts": ["node:net", "tunnel/address.ts"],
  "tunnel/server.ts": [
    "mod.ts",
    "resume.ts",
    "tunnel/access.ts",
    "tunnel/accounting.ts",
    "tunnel/activity.ts",
    "tunnel/address.ts",
    "tunnel/entrance.ts",
    "tunnel/errors.ts",
    "tunnel/forward.ts",
    "tunnel/handshake.ts",
    "tunnel/identity.ts",
    "tunnel/limits.ts",
    "tunnel/listen.ts",
    "tunnel/lists.ts",
    "tunnel/measure.ts",
    "tunnel/options.ts",
    "tunnel/pin.ts",
    "tunnel/ports.ts",
    "tunnel/proxy_listener.ts",
    "tunnel/returning.ts",
    "tunnel/socket.ts",
    "tunnel/status.ts",
    "tunnel/tls_listener.ts",
    "tunnel/udp_flow.ts",
    "tunnel/udp_forward.ts",
    "tunnel/udp_socket.ts",
    "tunnel/version.ts",
    "tunnel/visitor.ts",
    "tunnel/wait.ts",
    "tunnel/web_listener.ts",
    "tunnel/web_socket_address.ts",
  ],
  "tunnel/servers.ts": [
    "mod.ts",
    "tunnel/activity.ts",
    "tunnel/errors.ts",
    "tunnel/link.ts",
    "tunnel/options.ts",
    "tunnel/wait.ts",
  ],
  "tunnel/settings.ts": [
    "tunnel/address.ts",
    "tunnel/dial_server.ts",
    "tunnel/errors.ts",
    "tunnel/handshake.ts",
    "tunnel/limits.ts",
    "tunnel/link.ts",
    "tunnel/lists.ts",
    "tunnel/options.ts",
    "tunnel/places.ts",
    "tunnel/proxy_auth.ts",
    "tunnel/reverse_socks.ts",
    "tunnel/rules.ts",
    "tunnel/status.ts",
    "tunnel/users.ts",
    "tunnel/wait.ts",
  ],
  "tunnel/socket.ts": [
    "mod.ts",
    "node:timers/promises",
    "tunnel/address.ts",
    "tunnel/descriptors.ts",
    "tunnel/errors.ts",
    "tunnel/resolve.ts",
    "tunnel/tcp.ts",
    "tunnel/unix.ts",
    "tunnel/wait.ts",
  ],
  "tunnel/socks4.ts": ["mod.ts", "tunnel/address.ts", "tunnel/bytes.ts", "tunnel/proxy_auth.ts", "tunnel/wait.ts"],
  "tunnel/socks5.ts": [
    "mod.ts",
    "tunnel/address.ts",
    "tunnel/bytes.ts",
    "tunnel/options.ts",
    "tunnel/proxy_auth.ts",
    "tunnel/wait.ts",
  ],
  "tunnel/socks_client.ts": [
    "mod.ts",
    "node:net",
    "tunnel/address.ts",
    "tunnel/bytes.ts",
    "tunnel/errors.ts",
    "tunnel/upstream.ts",
  ],
  "tunnel/socks_udp.ts": [
    "mod.ts",
    "tunnel/accounting.ts",
    "tunnel/activity.ts",
    "tunnel/address.ts",
    "tunnel/bytes.ts",
    "tunnel/errors.ts",
    "tunnel/proxy_protocol.ts",
    "tunnel/socket.ts",
    "tunnel/udp_flows.ts",
    "tunnel/udp_socket.ts",
    "tunnel/wait.ts",
  ],
  "tunnel/status.ts": [
    "tunnel/activity.ts",
    "tunnel/address.ts",
    "tunnel/errors.ts",
    "tunnel/metrics.ts",
    "tunnel/options.ts",
    "tunnel/version.ts",
  ],
  "tunnel/stdio.ts": ["mod.ts", "tunnel/accounting.ts", "tunnel/errors.ts", "tunnel/options.ts", "tunnel/wait.ts"],
  "tunnel/tcp.ts": ["mod.ts", "node:net", "tunnel/descriptors.ts", "tunnel/wait.ts"],
  "tunnel/tls.ts": [
    "mod.ts",
    "node:crypto",
    "node:net",
    "node:tls",
    "tunnel/duplex.ts",
    "tunnel/errors.ts",
    "tunnel/pin.ts",
    "tunnel/tcp.ts",
    "tunnel/wait.ts",
    "tunnel/x509.ts",
  ],
  "tunnel/tls_listener.ts": [
    "node:tls",
    "tunnel/address.ts",
    "tunnel/duplex.ts",
    "tunnel/errors.ts",
    "tunnel/identity.ts",
    "tunnel/options.ts",
    "tunnel/prepared_listener.ts",
    "tunnel/refusal.ts",
    "tunnel/socket.ts",
    "tunnel/tls.ts",
    "tunnel/wait.ts",
    "tunnel/x509.ts",
  ],
  "tunnel/turns.ts": ["mod.ts", "node:net", "tunnel/cidr.ts"],
  "tunnel/udp_flow.ts": [
    "mod.ts",
    "tunnel/accounting.ts",
    "tunnel/activity.ts",
    "tunnel/datagram.ts",
    "tunnel/errors.ts",
    "tunnel/wait.ts",
  ],
  "tunnel/udp_flows.ts": [
    "mod.ts",
    "tunnel/accounting.ts",
    "tunnel/activity.ts",
    "tunnel/udp_flow.ts",
    "tunnel/wait.ts",
  ],
  "tunnel/udp_forward.ts": [
    "mod.ts",
    "tunnel/accounting.ts",
    "tunnel/activity.ts",
    "tunnel/address.ts",
    "tunnel/forward.ts",
    "tunnel/udp_flow.ts",
    "tunnel/udp_flows.ts",
    "tunnel/udp_socket.ts",
    "tunnel/visitor.ts",
    "tunnel/wait.ts",
  ],
  "tunnel/udp_socket.ts": [
    "node:dgram",
    "node:net",
    "tunnel/address.ts",
    "tunnel/descriptors.ts",
    "tunnel/errors.ts",
    "tunnel/resolve.ts",
    "tunnel/wait.ts",
  ],
  "tunnel/unix.ts": [],
  "tunnel/upstream.ts": ["tunnel/address.ts", "tunnel/bytes.ts"],
  "tunnel/usage.ts": ["tunnel/version.ts"],
  "tunnel/users.ts": [
    "mod.ts",
    "node:buffer",
    "node:crypto",
    "tunnel/errors.ts",
    "tunnel/handshake.ts",
    "tunnel/json.ts",
    "tunnel/options.ts",
    "tunnel/rules.ts",
    "tunnel/turns.ts",
  ],
  "tunnel/values.ts": [
    "node:util",
    "tunnel/address.ts",
    "tunnel/certificate.ts",
    "tunnel/cidr.ts",
    "tunnel/errors.ts",
    "tunnel/hints.ts",
    "tunnel/pin.ts",
    "tunnel/rules.ts",
    "tunnel/upstream.ts",
    "tunnel/usage.ts",
    "tunnel/web_socket_address.ts",
    "tunnel/web_socket_handshake.ts",
  ],
  "tunnel/version.ts": [],
  "tunnel/visitor.ts": [
    "node:net",
    "tunnel/address.ts",
    "tunnel/cidr.ts",
    "tunnel/proxy_protocol.ts",
    "tunnel/socket.ts",
  ],
  "tunnel/wait.ts": ["mod.ts", "node:timers", "tunnel/errors.ts"],
  "tunnel/watch.ts": ["node:path", "tunnel/errors.ts"],
  "tunnel/web_listener.ts": [
    "mod.ts",
    "tunnel/address.ts",
    "tunnel/bytes.ts",
    "tunnel/errors.ts",
    "tunnel/handshake_limit.ts",
    "tunnel/http_head.ts",
    "tunnel/options.ts",
    "tunnel/socket.ts",
    "tunnel/users.ts",
    "tunnel/wait.ts",
    "tunnel/web_socket_address.ts",
    "tunnel/web_socket_handshake.ts",
  ],
  "tunnel/web_socket.ts": [
    "mod.ts",
    "tunnel/bytes.ts",
    "tunnel/errors.ts",
    "tunnel/wait.ts",
    "tunnel/web_socket_frame.ts",
    "websocket.ts",
  ],
  "tunnel/web_socket_address.ts": ["tunnel/address.ts"],
  "tunnel/web_socket_frame.ts": [],
  "tunnel/web_socket_handshake.ts": [
    "mod.ts",
    "node:crypto",
    "tunnel/bytes.ts",
    "tunnel/errors.ts",
    "tunnel/http_head.ts",
    "tunnel/version.ts",
    "tunnel/web_socket.ts",
  ],
  "tunnel/x509.ts": ["tunnel/errors.ts"],
  "websocket.ts": [
    "_clock.ts",
    "_deferred.ts",
    "_wait.ts",
    "_web_socket.ts",
    "channel.ts",
    "errors.ts",
    "options.ts",
    "serve.ts",
    "session.ts",
    "stream.ts",
    "transport.ts",
  ],
};

/** The used part of the output of `deno info --json`. */
interface Graph {
  modules: {
    specifier: string;
    error?: string;
    dependencies?: { specifier: string; code?: { specifier?: string }; type?: { specifier?: string } }[];
  }[];
}

const inform = async (...args: string[]): Promise<unknown> => JSON.parse(await deno(...args));
const graphs = async () => await Promise.all(ENTRYPOINTS.map((path) => inform("info", "--json", path))) as Graph[];

/** Returns the imports in the code: modules by their path from the root, anything else by its full specifier. */
async function arrows(): Promise<Record<string, string[]>> {
  const found = new Map<string, Set<string>>();
  const name = (specifier: string) => specifier.startsWith(ROOT.href) ? specifier.slice(ROOT.href.length) : specifier;
  for (const { modules } of await graphs()) {
    for (const { specifier, error, dependencies = [] } of modules) {
      assertEquals(error, undefined);
      if (specifier.startsWith("node:")) continue;
      const imports = dependencies.map(({ specifier, code, type }) =>
        code?.specifier ?? type?.specifier ?? `${specifier} (not found)`
      );
      found.set(name(specifier), new Set([...found.get(name(specifier)) ?? [], ...imports.map(name)]));
    }
  }
  return Object.fromEntries([...found].map(([from, to]) => [from, [...to].sort()]));
}

/** Returns the modules that a module imports directly or indirectly; itself only in a cycle. */
function reach(arrows: Record<string, string[]>, from: string): Set<string> {
  const reached = new Set<string>();
  const open = [...arrows[from] ?? []];
  for (let next; (next = open.pop()) !== undefined;) {
    if (reached.has(next)) continue;
    reached.add(next);
    open.push(...arrows[next] ?? []);
  }
  return reached;
}

Deno.test("imports: each module has the imports listed here and no other", async () => {
  assertEquals(await arrows(), ARROWS);
});

/** Whether a module belongs to the tunnel. */
const isOfTunnel = (module: string) => module === "tunnel.ts" || module.startsWith("tunnel/");

/** Returns forbidden imports from outside the package: the tunnel may import `node:` modules, the library none. */
function outsiders(arrows: Record<string, string[]>): [from: string, to: string][] {
  const isAllowed = (from: string, to: string) => !to.includes(":") || (isOfTunnel(from) && to.startsWith("node:"));
  return Object.entries(arrows).flatMap(([from, all]) =>
    all.filter((to) => !isAllowed(from, to)).map((to): [string, string] => [from, to])
  );
}

Deno.test("imports: the library imports nothing from outside the package, and the tunnel only node: modules", async () => {
  // Forbidden imports are detected:
  const sample = { "mod.ts": ["node:util"], "tunnel/cli.ts": ["mod.ts", "node:util", "npm:a", "https://a/b.ts"] };
  assertEquals(outsiders(sample), [
    ["mod.ts", "node:util"],
    ["tunnel/cli.ts", "npm:a"],
    ["tunnel/cli.ts", "https://a/b.ts"],
  ]);
  assertEquals(outsiders(await arrows()), []);
});

Deno.test("imports: no module imports itself in a cycle", async () => {
  // A cycle is detected:
  assert(reach({ a: ["b"], b: ["c"], c: ["a"] }, "a").has("a"));
  const found = await arrows();
  assertEquals(Object.keys(found).filter((module) => reach(found, module).has(module)), []);
});

Deno.test("imports: channel.ts and frame.ts import neither each other nor the stream", async () => {
  const found = await arrows();
  assertEquals([...reach(found, "frame.ts")], ["_double.ts"]);
  const below = ["_channel_core.ts", "_clock.ts", "_describe.ts", "_wait.ts", "select.ts"];
  assertEquals([...reach(found, "channel.ts")].sort(), below);
});

Deno.test("imports: stream.ts does not import the session, directly or indirectly", async () => {
  const found = await arrows();
  assertEquals(
    [...reach(found, "stream.ts")].filter((module) => ["session.ts", "serve.ts", "mod.ts"].includes(module)),
    [],
  );
});

Deno.test("imports: of the library the tunnel imports only public modules", async () => {
  const found = Object.entries(await arrows());
  const known = found.filter(([from]) => isOfTunnel(from)).flatMap(([, to]) => to);
  const outside = new Set(known.filter((module) => !isOfTunnel(module) && !module.startsWith("node:")));
  assertEquals([...outside].sort(), ["mod.ts", "resume.ts", "websocket.ts"]);
  // No module of the library imports the tunnel.
  assertEquals(found.filter(([from, to]) => !isOfTunnel(from) && to.some(isOfTunnel)), []);
});

/** Returns all mentions of `Deno` in the output of `deno doc --json`, except in prose, examples and locations. */
function mentions(doc: unknown): string[] {
  if (typeof doc === "string") return /\bDeno\b/.test(doc) ? [doc] : [];
  if (typeof doc !== "object" || doc === null) return [];
  return Object.entries(doc)
    .filter(([key]) => !["jsDoc", "module_doc", "location"].includes(key))
    .flatMap(([, value]) => mentions(value));
}

Deno.test("imports: no exported signature names a type of the Deno namespace", async () => {
  assertEquals(mentions(await inform("doc", "--json", ...ENTRYPOINTS)), []);
});

Deno.test("imports: a signature that names a type of the Deno namespace is detected, and prose is not", async () => {
  const path = await Deno.makeTempFile({ suffix: ".ts" });
  try {
    await Deno.writeTextFile(
      path,
      `/** Takes a Deno.Conn. */ export function prose(): void {}
       export function parameter(p: Deno.TcpConn): void {}
       export interface Member { m: Map<string, Deno.Addr[]> }
       export type Alias = typeof Deno;
       export class Base implements Deno.Conn {}`,
    );
    const found = mentions(await inform("doc", "--json", path));
    for (const name of ["Deno.TcpConn", "Deno.Addr", "Deno", "Deno.Conn"]) assert(found.includes(name), `${found}`);
    assertEquals(found.filter((text) => text.includes("Takes")), []);
  } finally {
    await Deno.remove(path);
  }
});
