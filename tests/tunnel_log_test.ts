/** The log lines of the tunnel command. */

import { assertEquals } from "@std/assert";
import type { TunnelEvent } from "../tunnel.ts";
import { eventLine, frameLine, listeningLine, shutdownLine, totalLine } from "../tunnel/log.ts";

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
  [{ type: "suspended", serverAddr, error: new Error("The connection was lost") }, "the connection was lost"],
  [{ type: "resumed", serverAddr, downtime: 1234 }, "resumed the connection to [::1]:9000 after 1.2 s"],
  [
    { type: "reconnected", serverAddr, error: new Error("lost"), downtime: 100 },
    "reconnected to [::1]:9000 after 0.1 s",
  ],
  [
    { type: "unresumable", serverAddr },
    "[::1]:9000 does not resume: forwarded connections end when the connection to it is lost",
  ],
];
for (const [event, line] of lines) {
  Deno.test(`eventLine() formats ${event.type} as "${line}"`, () => assertEquals(eventLine(event), line));
}

Deno.test("frameLine() names the peer, the direction, the stream, and what the command carries", () => {
  const remoteAddr = { transport: "tcp", hostname: "10.0.0.1", port: 5000 } as const;
  const common = { id: 3, length: 0, remoteAddr } as const;
  assertEquals(frameLine({ ...common, direction: "sent", command: "SYN" }), "to 10.0.0.1:5000: SYN 3");
  assertEquals(
    frameLine({ ...common, direction: "received", command: "PSH", length: 1 }),
    "from 10.0.0.1:5000: PSH 3, 1 byte",
  );
  assertEquals(
    frameLine({ ...common, direction: "sent", command: "UPD", length: 8, consumed: 4096, window: 262_144 }),
    "to 10.0.0.1:5000: UPD 3, 4096 consumed, window 262144",
  );
  const local = { transport: "unix", path: null } as unknown as typeof remoteAddr;
  assertEquals(
    frameLine({ ...common, remoteAddr: local, direction: "sent", command: "FIN" }),
    "to a local process: FIN 3",
  );
});

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
