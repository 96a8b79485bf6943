/** The log lines of the tunnel command. */

import { assertEquals } from "@std/assert";
import type { TunnelEvent } from "../tunnel.ts";
import { eventLine, listeningLine, shutdownLine, totalLine } from "../tunnel/log.ts";

const [clientAddr, listenAddr, serverAddr] = ["10.0.0.1:5000", "127.0.0.1:8000", "[::1]:9000"];
const lines: [event: TunnelEvent, line: string][] = [
  [{ type: "connected", clientAddr }, "connection from 10.0.0.1:5000"],
  [{ type: "connected", clientAddr: undefined }, "connection from a local process"],
  [{ type: "listening", listenAddr, clientAddr }, "listening on 127.0.0.1:8000 for 10.0.0.1:5000"],
  [{ type: "listening", listenAddr, clientAddr: undefined }, "listening on 127.0.0.1:8000 for a local process"],
  [
    { type: "stopped", listenAddr, clientAddr, error: undefined },
    "stopped listening on 127.0.0.1:8000 for 10.0.0.1:5000",
  ],
  [{ type: "reconnected", serverAddr, error: new Error("lost"), downtime: 100 }, "reconnected to [::1]:9000"],
];
for (const [event, line] of lines) {
  Deno.test(`eventLine() formats ${event.type} as "${line}"`, () => assertEquals(eventLine(event), line));
}

Deno.test("listeningLine() contains the address", () => {
  assertEquals(listeningLine(listenAddr), "listening on 127.0.0.1:8000");
});

Deno.test("shutdownLine() contains the grace in seconds", () => {
  assertEquals(shutdownLine(0), "shutting down within 0 seconds; press Ctrl-C again to exit at once");
  assertEquals(shutdownLine(1000), "shutting down within 1 second; press Ctrl-C again to exit at once");
  assertEquals(shutdownLine(30_000), "shutting down within 30 seconds; press Ctrl-C again to exit at once");
});

Deno.test("totalLine() contains the numbers of streams and connections", () => {
  const stats = { open: 0, sent: 0, received: 0 };
  assertEquals(totalLine({ ...stats, streams: 1, connections: 1 }), "forwarded 1 stream over 1 connection");
  assertEquals(totalLine({ ...stats, streams: 2, connections: 0 }), "forwarded 2 streams over 0 connections");
});
