/** The log lines of the tunnel command. */

import { assertEquals, assertLessOrEqual } from "@std/assert";
import type { TunnelEvent } from "../tunnel.ts";
import {
  errorEntry,
  eventEntry,
  eventLine,
  formatEntry,
  frameEntry,
  frameLine,
  listeningEntry,
  listeningLine,
  pipedEntry,
  shutdownEntry,
  shutdownLine,
  statusEntry,
  totalEntry,
  totalLine,
} from "../tunnel/log.ts";

const [clientAddr, listenAddr, serverAddr] = ["10.0.0.1:5000", "127.0.0.1:8000", "[::1]:9000"];
const ended = {
  type: "finished",
  kind: "forward",
  user: undefined,
  from: "127.0.0.1:54321",
  to: "localhost:80",
  sent: 130,
  received: 5_240_000,
  duration: 1234,
  error: undefined,
} as const;
const reset = new Error("Connection reset by peer (os error 104)");
const lines: [event: TunnelEvent, line: string][] = [
  [{ type: "connected", clientAddr }, "connection from 10.0.0.1:5000"],
  [{ type: "connected", clientAddr: undefined }, "connection from a local process"],
  [
    { type: "disconnected", clientAddr, user: undefined, duration: 1234, error: undefined },
    "the connection from 10.0.0.1:5000 ended after 1.2s",
  ],
  [
    { type: "disconnected", clientAddr, user: "alice", duration: 83_000, error: new Error("Connection reset by peer") },
    "the connection from alice@10.0.0.1:5000 ended after 1m23s: connection reset by peer",
  ],
  [
    { type: "disconnected", clientAddr: undefined, user: undefined, duration: 5, error: undefined },
    "the connection from a local process ended after 5ms",
  ],
  [{ type: "listening", listenAddr, clientAddr }, "listening on 127.0.0.1:8000 for 10.0.0.1:5000"],
  [{ type: "listening", listenAddr, clientAddr: undefined }, "listening on 127.0.0.1:8000 for a local process"],
  [
    { type: "stopped", listenAddr, clientAddr, error: undefined },
    "stopped listening on 127.0.0.1:8000 for 10.0.0.1:5000",
  ],
  [{ type: "suspended", serverAddr, error: new Error("The connection was lost") }, "the connection was lost"],
  [{ type: "resumed", serverAddr, downtime: 1234 }, "resumed the connection to [::1]:9000 after 1.2s"],
  [
    { type: "reconnected", serverAddr, error: new Error("lost"), downtime: 100 },
    "reconnected to [::1]:9000 after 100ms",
  ],
  [
    { type: "unresumable", serverAddr },
    "[::1]:9000 does not resume: forwarded connections end when the connection to it is lost",
  ],
  [ended, "127.0.0.1:54321 > localhost:80 130B/5.2MB 1.2s closed"],
  [{ ...ended, user: "alice" }, "alice@127.0.0.1:54321 > localhost:80 130B/5.2MB 1.2s closed"],
  [{ ...ended, from: undefined, to: undefined }, "a local process > the server 130B/5.2MB 1.2s closed"],
  [{ ...ended, error: reset }, "127.0.0.1:54321 > localhost:80 130B/5.2MB 1.2s failed: connection reset by peer"],
  [{ ...ended, sent: 0, received: 999, duration: 999 }, "127.0.0.1:54321 > localhost:80 0B/999B 999ms closed"],
  [{ ...ended, sent: 1000, received: 9949, duration: 9949 }, "127.0.0.1:54321 > localhost:80 1.0kB/9.9kB 9.9s closed"],
  [{ ...ended, sent: 9950, received: 999_499, duration: 9950 }, "127.0.0.1:54321 > localhost:80 10kB/999kB 10s closed"],
  [
    { ...ended, sent: 999_500, received: 2e19, duration: 83_000 },
    "127.0.0.1:54321 > localhost:80 1.0MB/20000PB 1m23s closed",
  ],
  [{ ...ended, duration: 3_600_000 * 30 }, "127.0.0.1:54321 > localhost:80 130B/5.2MB 30h0m closed"],
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
  assertEquals(totalLine({ streams: 1, connections: 1 }), "forwarded 1 stream over 1 connection");
  assertEquals(totalLine({ streams: 2, connections: 0 }), "forwarded 2 streams over 0 connections");
});

const now = new Date(Date.UTC(2026, 10, 29, 10, 50, 8, 123));

Deno.test("formatEntry() without a format returns the text alone", () => {
  assertEquals(formatEntry(eventEntry(ended), undefined, now), eventLine(ended));
});

Deno.test("formatEntry() with text begins with the time, and the line of a connection has at most 80 columns", () => {
  const line = formatEntry(eventEntry(ended), "text", now);
  assertEquals(line, "2026-11-29T10:50:08Z 127.0.0.1:54321 > localhost:80 130B/5.2MB 1.2s closed");
  assertLessOrEqual(line.length, 80);
  const error = errorEntry(new Error("Two\n  lines"));
  assertEquals(formatEntry(error, "text", now), "2026-11-29T10:50:08Z two lines");
});

Deno.test("formatEntry() with json returns an object of one line, with the time and the fields of the entry", () => {
  const parse = (entry: Parameters<typeof formatEntry>[0]) => {
    const line = formatEntry(entry, "json", now);
    assertEquals(line.includes("\n"), false);
    return JSON.parse(line);
  };
  const time = "2026-11-29T10:50:08.123Z";
  const { error: _, user: __, ...fields } = ended;
  assertEquals(parse(eventEntry(ended)), { time, ...fields, outcome: "closed" });
  assertEquals(parse(eventEntry({ ...ended, user: "alice", error: reset })), {
    ...{ time, ...fields, user: "alice", outcome: "failed", error: "connection reset by peer" },
  });
  assertEquals(parse(pipedEntry({ ...ended, from: "stdin" })), {
    ...{ time, ...fields, kind: "stdio", from: "stdin", outcome: "closed" },
  });
  assertEquals(parse(eventEntry({ type: "stopped", listenAddr, clientAddr, error: reset })), {
    ...{ time, type: "stopped", listenAddr, clientAddr, error: "connection reset by peer" },
  });
  const left = { type: "disconnected", clientAddr, user: "alice", duration: 1234 } as const;
  assertEquals(parse(eventEntry({ ...left, error: reset })), { time, ...left, error: "connection reset by peer" });
  assertEquals(parse(eventEntry({ ...left, error: undefined })), { time, ...left });
  assertEquals(parse(errorEntry(new Error("Two\nlines"))), { time, type: "error", message: "two\nlines" });
  assertEquals(parse(listeningEntry(listenAddr, "localhost:80")), {
    ...{ time, type: "listening", listenAddr, to: "localhost:80" },
  });
  assertEquals(parse(statusEntry("127.0.0.1:9100")), { time, type: "status", statusAddr: "127.0.0.1:9100" });
  assertEquals(parse(shutdownEntry(1000)), { time, type: "shutdown", grace: 1000 });
  const stats = {
    connections: 1,
    reconnects: 0,
    streams: 2,
    open: 0,
    sent: 3,
    received: 4,
    dropped: 5,
    refused: { 403: 1 },
  };
  assertEquals(parse(totalEntry(stats)), { time, type: "total", ...stats });
  const remoteAddr = { transport: "tcp", hostname: "10.0.0.1", port: 5000 } as const;
  assertEquals(parse(frameEntry({ direction: "sent", command: "SYN", id: 3, length: 0, remoteAddr })), {
    ...{ time, type: "frame", direction: "sent", command: "SYN", id: 3, length: 0, peer: "10.0.0.1:5000" },
  });
});

Deno.test("listeningEntry() and statusEntry() contain where connections lead, and the URL", () => {
  assertEquals(listeningEntry(listenAddr, "localhost:80").text, "listening on 127.0.0.1:8000, leads to localhost:80");
  assertEquals(listeningEntry(listenAddr, undefined).text, listeningLine(listenAddr));
  assertEquals(statusEntry("127.0.0.1:9100").text, "status at http://127.0.0.1:9100/status");
  assertEquals(statusEntry("unix:/run/status").text, "status at unix:/run/status");
});

Deno.test("docs/tunnel.md lists each type of the entries that are not events", async () => {
  const read = (path: string) => Deno.readTextFile(new URL(`../${path}`, import.meta.url));
  const [, section] = /^## The log$(.*?)^## /ms.exec(await read("docs/tunnel.md"))!;
  const types = [...(await read("tunnel/log.ts")).matchAll(/\btype: "(\w+)"/g)].map(([, type]) => type);
  assertEquals(types.filter((type) => !section!.includes(`\`${type}\``)), []);
});
