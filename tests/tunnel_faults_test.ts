/** Faults at one end of a forwarded connection: the other end sees a fault, not an end. */

import { assert, assertEquals, assertRejects, assertStrictEquals } from "@std/assert";
import { concat } from "@std/bytes";
import type { Connection, Version } from "../mod.ts";
import { openTunnel, serveTunnel } from "../tunnel.ts";
import { connectTcp, listenTcp } from "../tunnel/tcp.ts";
import { kill, makeFolder } from "./programs.ts";
import { LOOPBACK, pattern, readAll, readExactly, writeAll } from "./support.ts";
import {
  askSocks,
  at,
  dial,
  eventually,
  FREE,
  IPV4,
  isEnded,
  makeLog,
  nowhere,
  parse,
  portOf,
  promptly,
  socksRequest,
} from "./tunnel_support.ts";
import { LONG, within } from "./within.ts";

const { ConnectionReset, BrokenPipe } = Deno.errors;

type Way = "--target" | "forward" | "reverse" | "SOCKS";
const WAYS: Way[] = ["--target", "forward", "reverse", "SOCKS"];
const VERSIONS: Version[] = [1, 2];

/** Connects to an address, with a socket that can be reset. */
const visit = (addr: string) => connectTcp({ ...parse(addr), signal: new AbortController().signal });

const listen = () => listenTcp({ ...LOOPBACK, backlog: 100 });

/** A tunnel to a target that this test plays; `connect` returns both ends of a forwarded connection. */
async function makeWay(way: Way, version: Version) {
  const target = await listen();
  const addr = at(target.addr);
  const { options } = makeLog();
  const stop = new AbortController();
  const server = serveTunnel({
    listen: FREE,
    ...options,
    signal: stop.signal,
    ...(way === "--target" ? { target: addr } : { allow: ["127.0.0.1:*"], allowListen: ["127.0.0.1:*"] }),
  });
  const client = await openTunnel({
    connect: server.serverAddr,
    version,
    reconnect: false,
    ...options,
    forward: way === "--target" ? [FREE] : way === "forward" ? [`${FREE}=${addr}`] : [],
    reverse: way === "reverse" ? [`${FREE}=${addr}`] : [],
    socks: way === "SOCKS" ? [FREE] : [],
  });
  client.finished.catch(() => {});
  const connect = async () => {
    const visitor = await visit(client.listenAddrs[0]!);
    if (way === "SOCKS") assertEquals(await askSocks(visitor, socksRequest(1, 1, IPV4, portOf(addr))), 0);
    // The stream of the connection is open when the target has received a byte.
    await writeAll(visitor, new Uint8Array(1));
    const origin = await target.accept();
    await readExactly(origin, 1);
    return { visitor, origin };
  };
  return {
    client,
    server,
    connect,
    /** Ends the session without ending its streams. */
    lose: () => stop.abort(new Error("lost")),
    async [Symbol.asyncDispose]() {
      target.close();
      await client.shutdown({ timeout: 1 });
      await server.shutdown({ timeout: 1 });
    },
  };
}

const pause = () => new Promise<void>((resolve) => setTimeout(resolve, 10));

/** Writes until a write fails. Returns the time that it took, in milliseconds. */
async function writeUntilError(connection: Pick<Connection, "write">, length: number): Promise<void> {
  for (;;) {
    try {
      await connection.write(new Uint8Array(length));
    } catch (error) {
      assert(error instanceof ConnectionReset || error instanceof BrokenPipe, `${error}`);
      return;
    }
    await pause(); // a source of events
  }
}

/** Asserts that a connection is reset, after what had arrived. */
async function assertReset(connection: Pick<Connection, "read">): Promise<void> {
  await promptly(assertRejects(() => readAll(connection), ConnectionReset));
}

Deno.test("TcpSocket.reset(): the peer's reads reject after what it had received", async () => {
  for (const hasEnded of [false, true]) {
    const listener = await listen();
    const [peer, socket] = await Promise.all([dial(at(listener.addr)), listener.accept()]);
    listener.close();
    const reading = assertRejects(() => socket.read(new Uint8Array(1)), Deno.errors.BadResource);
    await writeAll(socket, new Uint8Array(5));
    await readExactly(peer, 5);
    if (hasEnded) {
      await socket.closeWrite();
      assertEquals(await peer.read(new Uint8Array(1)), null);
    }
    for (let n = 0; n < 2; n++) socket.reset();
    await reading;
    if (hasEnded) await promptly(writeUntilError(peer, 1));
    else await assertRejects(() => peer.read(new Uint8Array(1)), ConnectionReset);
    peer.close();
  }
});

Deno.test("TcpSocket: a read of a part of a chunk leaves the rest, and the end follows the last byte", async () => {
  using listener = {
    value: await listen(),
    [Symbol.dispose]() {
      this.value.close();
    },
  };
  const [peer, socket] = await Promise.all([dial(at(listener.value.addr)), listener.value.accept()]);
  const sent = pattern(300_000);
  const writing = writeAll(peer, sent).then(() => peer.closeWrite());
  const received: Uint8Array[] = [];
  const sizes = [1, 7, 1000, 65_536, 100_000];
  for (let n = 0;; n++) {
    const p = new Uint8Array(sizes[n % sizes.length]!);
    const count = await socket.read(p);
    if (count === null) break;
    received.push(p.subarray(0, count));
  }
  assertEquals(concat(received), sent);
  await writing;
  await writeAll(socket, sent);
  socket.closeWrite();
  assertEquals(await readAll(peer), sent);
  for (const end of [peer, socket]) end.close();
});

Deno.test("TcpListener.accept() rejects after close(), and connections that were not accepted are closed", async () => {
  const listener = await listen();
  const peer = await dial(at(listener.addr));
  await pause();
  listener.close();
  await assertRejects(() => listener.accept(), Deno.errors.BadResource);
  assert(await isEnded(peer));
  peer.close();
});

Deno.test("connectTcp(), listenTcp() reject with errors of Deno, and with the reason of a signal", async () => {
  await assertRejects(() => visit(nowhere()), Deno.errors.ConnectionRefused, "Connection refused");
  const listener = await listen();
  await assertRejects(() => listenTcp({ ...listener.addr, backlog: 1 }), Deno.errors.AddrInUse);
  listener.close();
  const reason = new Error("enough");
  const aborted = { ...LOOPBACK, port: 9, signal: AbortSignal.abort(reason) };
  assertStrictEquals(await connectTcp(aborted).catch((error) => error), reason);
});

for (const way of WAYS) {
  for (const version of VERSIONS) {
    const name = (what: string) => `tunnel: ${way}, version ${version}: ${what}`;

    Deno.test(name("a target that resets in the middle of a download resets the visitor"), async () => {
      await using tunnel = await makeWay(way, version);
      const { visitor, origin } = await tunnel.connect();
      await writeAll(origin, pattern(100_000));
      assertEquals(await readExactly(visitor, 100_000), pattern(100_000));
      origin.reset();
      await assertReset(visitor);
      visitor.close();
    });

    Deno.test(name("a visitor that resets in the middle of an upload resets the target"), async () => {
      await using tunnel = await makeWay(way, version);
      const { visitor, origin } = await tunnel.connect();
      await writeAll(visitor, pattern(100_000));
      assertEquals(await readExactly(origin, 100_000), pattern(100_000));
      visitor.reset();
      await assertReset(origin);
      origin.close();
    });

    Deno.test(name("a visitor that only writes learns that its target is gone"), async () => {
      await using tunnel = await makeWay(way, version);
      for (const end of ["reset", "close"] as const) {
        const { visitor, origin } = await tunnel.connect();
        origin[end]();
        await promptly(writeUntilError(visitor, 200));
        visitor.close();
      }
    });

    Deno.test(name("a target that only writes learns that its visitor is gone"), async () => {
      await using tunnel = await makeWay(way, version);
      for (const end of ["reset", "close"] as const) {
        const { visitor, origin } = await tunnel.connect();
        visitor[end]();
        await promptly(writeUntilError(origin, 200));
        origin.close();
      }
    });

    Deno.test(name("a lost session resets both ends"), async () => {
      await using tunnel = await makeWay(way, version);
      const { visitor, origin } = await tunnel.connect();
      await writeAll(origin, pattern(1000));
      await readExactly(visitor, 1000);
      tunnel.lose();
      await assertReset(visitor);
      await assertReset(origin);
      for (const socket of [visitor, origin]) socket.close();
    });

    Deno.test(name("a request that ended before its visitor left reaches the target completely"), async () => {
      await using tunnel = await makeWay(way, version);
      const { visitor, origin } = await tunnel.connect();
      const request = pattern(300_000);
      await writeAll(visitor, request);
      await visitor.closeWrite();
      visitor.close();
      await eventually(() => tunnel.client.stats().sent + tunnel.client.stats().received >= 300_000);
      // What the target sends makes the visitor's end of the tunnel fail. The target reads when the other end has
      // received the reset.
      await eventually(async () => {
        if (tunnel.client.stats().open + tunnel.server.stats().open <= 1) return true;
        await writeAll(origin, new Uint8Array(1000));
        await pause();
        return false;
      });
      for (let n = 0; n < 5; n++) await pause();
      assertEquals(await promptly(readAll(origin)), request);
      await promptly(writeUntilError(origin, 200));
      origin.close();
    });

    Deno.test(name("an answer that ended before its target reset reaches the visitor completely"), async () => {
      await using tunnel = await makeWay(way, version);
      const { visitor, origin } = await tunnel.connect();
      const answer = pattern(200_000);
      await writeAll(origin, answer);
      await origin.closeWrite();
      assertEquals(await readExactly(visitor, 100_000), answer.subarray(0, 100_000));
      // The tunnel has read everything that was sent when it has passed on half of it and the target's end.
      await eventually(() => tunnel.client.stats().sent + tunnel.client.stats().received >= 200_000);
      origin.reset();
      assertEquals((await promptly(readAll(visitor))).length, 100_000);
      visitor.close();
    });

    Deno.test(name("cancelled downloads free both of their sockets at once"), async () => {
      await using tunnel = await makeWay(way, version);
      const count = 20;
      const failed: Promise<unknown>[] = [];
      for (let n = 0; n < count; n++) {
        const { visitor, origin } = await tunnel.connect();
        const flood = async () => {
          for (const p = new Uint8Array(65_536);;) await writeAll(origin, p);
        };
        failed.push(assertRejects(flood).finally(() => origin.close()));
        await visitor.read(new Uint8Array(1));
        visitor.close();
      }
      await promptly(Promise.all(failed));
      await eventually(() => tunnel.client.stats().open + tunnel.server.stats().open === 0);
    });

    Deno.test(name("both directions end on their own, without a fault"), async () => {
      await using tunnel = await makeWay(way, version);
      const { visitor, origin } = await tunnel.connect();
      await writeAll(visitor, pattern(300_000));
      await visitor.closeWrite();
      assertEquals(await readAll(origin), pattern(300_000));
      await writeAll(origin, pattern(200_000));
      await origin.closeWrite();
      assertEquals(await readAll(visitor), pattern(200_000));
      for (const socket of [visitor, origin]) socket.close();
    });
  }
}

for (const way of ["--target", "forward", "reverse"] as const) {
  Deno.test(`tunnel: ${way}: a target that refuses resets the visitor`, async () => {
    const target = nowhere();
    const { options } = makeLog();
    await using server = serveTunnel({
      listen: FREE,
      ...options,
      ...(way === "--target" ? { target } : { allow: ["127.0.0.1:*"], allowListen: ["127.0.0.1:*"] }),
    });
    await using client = await openTunnel({
      connect: server.serverAddr,
      reconnect: false,
      ...options,
      forward: way === "--target" ? [FREE] : way === "forward" ? [`${FREE}=${target}`] : [],
      reverse: way === "reverse" ? [`${FREE}=${target}`] : [],
    });
    using visitor = await dial(client.listenAddrs[0]!);
    await assertReset(visitor);
  });
}

Deno.test("tunnel: a SOCKS client whose target refuses receives the reply, then the end", async () => {
  const target = parse(nowhere());
  const { options } = makeLog();
  await using server = serveTunnel({ listen: FREE, ...options, allow: ["127.0.0.1:*"] });
  await using client = await openTunnel({ connect: server.serverAddr, reconnect: false, ...options, socks: [FREE] });
  using visitor = await dial(client.listenAddrs[0]!);
  assertEquals(await askSocks(visitor, socksRequest(1, 1, IPV4, target.port)), 5);
  assertEquals(await visitor.read(new Uint8Array(1)), null);
});

for (const version of VERSIONS) {
  Deno.test(`tunnel command: stdin and stdout, version ${version}: a target that resets is an error; a killed command resets it`, async () => {
    const target = await listen();
    const { options } = makeLog();
    await using server = serveTunnel({ listen: FREE, ...options, target: at(target.addr) });
    const start = () => {
      const args = ["run", "-A", new URL("../tunnel.ts", import.meta.url).href, "client"];
      args.push("--connect", server.serverAddr, "--no-resume", "--smux", `${version}`, "--forward", "-");
      return new Deno.Command(Deno.execPath(), { args, stdin: "piped", stdout: "piped", stderr: "piped" }).spawn();
    };
    for (const fault of ["target", "command"] as const) {
      const child = start();
      const origin = await within(LONG, target.accept(), () => `The command has not connected after ${LONG} ms`);
      await writeAll(origin, pattern(1000));
      const stdout = child.stdout.getReader();
      await stdout.read();
      if (fault === "target") {
        origin.reset();
        const [{ code }, stderr] = await Promise.all([child.status, new Response(child.stderr).text()]);
        assertEquals([code, stderr.includes("aborted")], [1, true]);
      } else {
        kill(child);
        await assertReset(origin);
        origin.close();
        await Promise.all([child.status, child.stderr.cancel()]);
      }
      await stdout.cancel();
      await child.stdin.close().catch(() => {});
    }
    target.close();
  });
}

Deno.test("tunnel: a Unix socket, which cannot be reset, is closed, and its failure resets the TCP end", async () => {
  await using folder = await makeFolder("faults");
  const path = `${folder.path}/socket`;
  using target = Deno.listen({ transport: "unix", path });
  const { options } = makeLog();
  await using server = serveTunnel({ listen: FREE, ...options, target: `unix:${path}` });
  await using client = await openTunnel({ connect: server.serverAddr, reconnect: false, ...options, forward: [FREE] });
  const connect = async () => {
    const visitor = await visit(client.listenAddrs[0]!);
    await writeAll(visitor, new Uint8Array(1));
    const origin = await target.accept();
    await readExactly(origin, 1);
    return { visitor, origin };
  };
  const first = await connect();
  first.origin.close();
  await promptly(writeUntilError(first.visitor, 200));
  first.visitor.close();
  const second = await connect();
  second.visitor.reset();
  assertEquals(await promptly(second.origin.read(new Uint8Array(1))), null);
  second.origin.close();
});
