/**
 * The option `onFrame`: what it reports, when, and what an error of it does.
 *
 * @module
 */

import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { connect } from "node:net";
import { FIN, NOP, PSH, SYN, type Version } from "../frame.ts";
import { type FrameEvent, serve, Session } from "../mod.ts";
import { frame, LOOPBACK, memoryPair, pattern, readAll, sessionPair, turn, withPeer, writeAll } from "./support.ts";

const line = ({ direction, command, id, length }: FrameEvent) => `${direction} ${command} ${id} ${length}`;

/** What the other end of a connection sees of a frame. */
function mirrored({ direction, remoteAddr: _, ...rest }: FrameEvent): object {
  return { direction: direction === "sent" ? "received" : "sent", ...rest };
}

for (const version of [1, 2] as const satisfies Version[]) {
  Deno.test(`onFrame reports in version ${version} what the peer reports, in the same order for each direction`, async () => {
    const near: FrameEvent[] = [];
    const far: FrameEvent[] = [];
    const { client, server } = sessionPair({
      version,
      onFrame: (event) => near.push(event),
      server: { onFrame: (event) => far.push(event) },
      capacity: 1000,
    });
    const data = pattern(400_000);
    const echo = (async () => {
      const stream = await server.acceptStream();
      await stream.readable.pipeTo(stream.writable);
    })();
    const streams = [await client.openStream()];
    const reading = readAll(streams[0]!);
    await writeAll(streams[0]!, data);
    await streams[0]!.closeWrite();
    assertEquals(await reading, data);
    await echo;
    await client.close();
    await server.closed;
    await turn();

    for (const [these, those] of [[near, far], [far, near]] as const) {
      const sent = these.filter(({ direction }) => direction === "sent").map(mirrored);
      const received = those.filter(({ direction }) => direction === "received").map(({ remoteAddr: _, ...rest }) =>
        rest
      );
      assertEquals(sent, received);
    }
    const sentBytes = near.filter(({ direction, command }) => direction === "sent" && command === "PSH")
      .reduce((sum, { length }) => sum + length, 0);
    assertEquals(sentBytes, data.length);
    assertEquals(near.some(({ command }) => command === "UPD"), version === 2);
    assertEquals(near.length, client.stats().framesSent + client.stats().framesReceived);
  });
}

Deno.test("onFrame reports a UPD with what it says, and a frame once however it is cut", async () => {
  const events: FrameEvent[] = [];
  const { session, peer } = withPeer("server", 2, { onFrame: (event) => events.push(event) });
  const payload = frame(2, PSH, 3, pattern(100));
  await peer.send(SYN, 3);
  for (let at = 0; at < payload.length; at += 7) {
    await peer.bytes(payload.subarray(at, at + 7));
    await turn();
  }
  await peer.update(3, 5, 70_000);
  await peer.send(NOP, 9);
  await peer.send(FIN, 3);
  await turn();
  const nowhere = { hostname: "", port: 0, transport: "tcp" } as const;
  const common = { direction: "received", id: 3, length: 0, remoteAddr: session.remoteAddr } as const;
  assertEquals(session.remoteAddr, nowhere);
  assertEquals(events, [
    { ...common, command: "SYN" },
    { ...common, command: "PSH", length: 100 },
    { ...common, command: "UPD", length: 8, consumed: 5, window: 70_000 },
    { ...common, command: "NOP", id: 9 },
    { ...common, command: "FIN" },
  ]);
  session.abort();
});

Deno.test("onFrame may use the session: it is called after the step in which the frame was decoded or encoded", async () => {
  const lines: string[] = [];
  const answered: Promise<unknown>[] = [];
  const { session, peer } = withPeer("server", 1, {
    onFrame(event) {
      lines.push(line(event));
      if (event.direction === "sent" || event.command !== "PSH") return;
      answered.push(session.openStream().then((stream) => stream.write(new Uint8Array(3))));
    },
  });
  await peer.send(SYN, 3);
  await peer.send(PSH, 3, new Uint8Array(2));
  await turn();
  await Promise.all(answered);
  await turn();
  assertEquals(lines, ["received SYN 3 0", "received PSH 3 2", "sent SYN 2 0", "sent PSH 2 3"]);
  session.abort();
});

Deno.test("onFrame is called after all frames of one read were decoded", async () => {
  const decoded: number[] = [];
  const { session, peer } = withPeer("server", 1, {
    onFrame: () => decoded.push(session.stats().framesReceived),
  });
  await peer.bytes(frame(1, SYN, 3), frame(1, PSH, 3, new Uint8Array(2)), frame(1, FIN, 3));
  await turn();
  assertEquals(decoded, [3, 3, 3]);
  session.abort();
});

const thrown = new Error("No room for the trace");
const failing: Record<string, () => void> = {
  "throws": () => {
    throw thrown;
  },
  "rejects": () => Promise.reject(thrown),
};
for (const [how, onFrame] of Object.entries(failing)) {
  Deno.test(`onFrame that ${how} ends the session with its error`, async () => {
    const { client, server } = sessionPair({ onFrame, server: {} });
    assertEquals(await assertRejects(() => client.closed), thrown);
    const error = await assertRejects(() => client.openStream());
    assertEquals((error as Error).cause, thrown);
    await server.closed;
  });
}

Deno.test("onFrame reports the frames that refuse a stream, and no frame after the session's end", async () => {
  const lines: string[] = [];
  const { session, peer } = withPeer("server", 1, { maxStreams: 1, onFrame: (event) => lines.push(line(event)) });
  await peer.send(SYN, 3);
  await peer.send(SYN, 5);
  await turn();
  assertEquals(lines, ["received SYN 3 0", "received SYN 5 0", "sent FIN 5 0"]);
  session.abort();
  await peer.send(SYN, 7).catch(() => {});
  await turn();
  assertEquals(lines.length, 3);
});

Deno.test("onFrame in the options of serve reports the frames of every session, with the address of its peer", async () => {
  const ports = new Set<number>();
  const listener = Deno.listen(LOOPBACK);
  const server = serve(listener, (stream) => stream.readable.pipeTo(stream.writable), {
    onFrame: ({ remoteAddr }) => ports.add((remoteAddr as Deno.NetAddr).port),
  });
  const connections = await Promise.all([1, 2].map(() => Deno.connect({ port: listener.addr.port })));
  const expected = connections.map(({ localAddr }) => localAddr.port);
  for (const connection of connections) {
    const session = Session.client(connection);
    const stream = await session.openStream();
    await stream.write(new Uint8Array(1));
    await stream.read(new Uint8Array(1));
    await session.close();
  }
  await server.shutdown();
  assertEquals([...ports].sort(), expected.sort());
});

Deno.test("onFrame reports the address of the peer once a connecting socket has it", async () => {
  const listener = Deno.listen(LOOPBACK);
  const events: FrameEvent[] = [];
  const session = Session.client(connect(listener.addr.port, "127.0.0.1"), { onFrame: (event) => events.push(event) });
  const server = Session.server(await listener.accept());
  const stream = await session.openStream();
  await stream.write(new Uint8Array(1));
  await (await server.acceptStream()).write(new Uint8Array(1));
  await stream.read(new Uint8Array(1));
  assertEquals(events.map(({ remoteAddr }) => (remoteAddr as Deno.NetAddr).port).at(-1), listener.addr.port);
  listener.close();
  for (const each of [session, server]) each.abort();
});

Deno.test("onFrame must be a function: a TypeError names it and what came", () => {
  const [near] = memoryPair();
  const options = { onFrame: "stderr" } as object;
  assertThrows(() => Session.client(near, options), TypeError, "onFrame must be a function, received string");
  assertEquals(near.isClosed, false);
});
