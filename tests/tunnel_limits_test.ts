/** The limits of the sessions of a tunnel: keepAliveInterval, timeout, maxStreams and maxReceiveBuffer. */

import { assertEquals, assertLessOrEqual, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { type FrameEvent, Session } from "../mod.ts";
import { openTunnel, serveTunnel, type TunnelOptions } from "../tunnel.ts";
import { limitsOf } from "../tunnel/limits.ts";
import { watch } from "./programs.ts";
import { listenAgain, LOOPBACK, pattern } from "./support.ts";
import { at, dial, FREE, makeLog, makeTarget, nowhere, parse, promptly } from "./tunnel_support.ts";

const SCRIPT = new URL("../tunnel.ts", import.meta.url).href;

Deno.test("openTunnel() and serveTunnel() reject limits that are out of bounds, before they connect or listen", async () => {
  const cases: [TunnelOptions, string][] = [
    [{ timeout: 0 }, "timeout must be an integer from 1 to 2147483647 or Infinity, received 0"],
    [{ keepAliveInterval: 0.5 }, "keepAliveInterval must be an integer from 1 to 2147483647 or Infinity, received 0.5"],
    [{ keepAliveInterval: 30_001 }, "timeout must be at least keepAliveInterval, 30001, received 30000"],
    [{ timeout: 10, keepAliveInterval: 20 }, "timeout must be at least keepAliveInterval, 20, received 10"],
    [{ maxStreams: 0 }, "maxStreams must be an integer from 1 to 2147483647, received 0"],
    [{ maxReceiveBuffer: 2 ** 31 }, "maxReceiveBuffer must be an integer from 1 to 2147483647, received 2147483648"],
  ];
  const place = nowhere();
  for (const [options, message] of cases) {
    assertThrows(() => serveTunnel({ listen: place, target: "1", ...options }), RangeError, message);
    await assertRejects(() => openTunnel({ connect: place, forward: [FREE], ...options }), RangeError, message);
  }
  (await listenAgain(() => Deno.listen(parse(place)))).close();
});

Deno.test("openTunnel() rejects a wait that is out of bounds, and names a text in quotes", async () => {
  const connect = nowhere();
  for (const [wait, received] of [[-1, "-1"], [NaN, "NaN"], [0.5, "0.5"], ["5", '"5"']] as const) {
    const message = `wait must be an integer from 0 to 2147483647 or Infinity, received ${received}`;
    await assertRejects(() => openTunnel({ connect, wait: wait as number }), RangeError, message);
  }
  const options = { connect, maxStreams: "5" as unknown as number };
  await assertRejects(
    () => openTunnel(options),
    RangeError,
    'maxStreams must be an integer from 1 to 2147483647, received "5"',
  );
});

Deno.test("openTunnel() and serveTunnel() reject a text instead of a list, whose characters would be entries", async () => {
  await using server = serveTunnel({ listen: FREE, allow: ["127.0.0.1:1"], allowListen: ["*:*"] });
  const connect = server.serverAddr;
  for (const name of ["forward", "reverse", "socks", "http", "reverseSocks", "allow", "headers"]) {
    const options = { connect, reverseSocks: ["0"], allow: ["*:443"], [name]: "19" };
    await assertRejects(() => openTunnel(options), RangeError, `${name} must be a list of texts, received a text`);
  }
  for (const name of ["allow", "allowListen", "acceptProxy"]) {
    assertThrows(() => serveTunnel({ listen: FREE, [name]: "19" }), RangeError, `${name} must be a list of texts`);
  }
  for (const [wrong, received] of [[9000, "a number"], [undefined, "undefined"]] as const) {
    const message = `connect must be a text or a list of texts, received ${received}`;
    await assertRejects(() => openTunnel({ connect: wrong as never }), RangeError, message);
  }
});

Deno.test("openTunnel() and serveTunnel() accept the limits of a peer without keepalive", async () => {
  const limits = { timeout: Infinity, keepAliveInterval: Infinity, maxStreams: 1, maxReceiveBuffer: 1000 };
  await using server = serveTunnel({ listen: FREE, allow: ["127.0.0.1:1"], ...limits });
  await using client = await openTunnel({ connect: server.serverAddr, socks: [FREE], ...limits });
  assertEquals(client.serverAddr, server.serverAddr);
});

Deno.test("keepAliveInterval sets how often either end sends a keepalive", async () => {
  const sent = [0, 0];
  const enough = Promise.withResolvers<void>();
  const count = (end: number) => ({ direction, command }: FrameEvent) => {
    if (direction === "sent" && command === "NOP") sent[end]!++;
    if (sent.every((count) => count >= 3)) enough.resolve();
  };
  const options = { keepAliveInterval: 20, onError() {} };
  await using server = serveTunnel({ ...options, listen: FREE, allow: ["127.0.0.1:1"], onFrame: count(0) });
  await using _ = await openTunnel({ ...options, connect: server.serverAddr, socks: [FREE], onFrame: count(1) });
  await promptly(enough.promise);
});

Deno.test("timeout ends the connection to a peer that is silent", async () => {
  using listener = Deno.listen(LOOPBACK);
  const log = makeLog();
  const options = { timeout: 100, resume: false, reconnect: false, onError() {} };
  const client = await openTunnel({ ...options, connect: at(listener.addr), forward: [FREE] });
  using _silent = await listener.accept();
  await assertRejects(() => promptly(client.finished), Error, "silent for 100 ms");

  await using server = serveTunnel({ listen: FREE, target: "1", timeout: 100, ...log.options });
  using connection = await dial(server.serverAddr);
  // A NOP: a client that has sent nothing is awaited for 10 s.
  await connection.write(new Uint8Array([2, 3, 0, 0, 0, 0, 0, 0]));
  await promptly(log.until(/silent for 100 ms/));
});

Deno.test("limitsOf() returns a third of timeout as the silence of a resumable connection, and by default nothing", () => {
  const timeouts = [1, 2, 299, 300, 30_000, Infinity, undefined];
  assertEquals(timeouts.map((timeout) => limitsOf({ timeout }).silence), [1, 1, 99, 100, 10_000, undefined, undefined]);
});

Deno.test("timeout suspends a connection that is silent for a third of it", async () => {
  const listener = Deno.listen(LOOPBACK);
  await using server = serveTunnel({ listen: FREE, allow: ["127.0.0.1:1"] });
  const sockets: Deno.TcpConn[] = [];
  // A proxy that stops to copy when the client is connected.
  let isSilent = false;
  const copy = async (from: Deno.TcpConn, to: Deno.TcpConn) => {
    const p = new Uint8Array(1000);
    for (let count; (count = await from.read(p).catch(() => null)) !== null;) {
      if (!isSilent) await to.write(p.subarray(0, count)).catch(() => {});
    }
  };
  const copying: Promise<void>[] = [];
  const accepting = (async () => {
    for await (const near of listener) {
      const far = await dial(server.serverAddr);
      sockets.push(near, far);
      copying.push(copy(near, far), copy(far, near));
    }
  })();
  const log = makeLog();
  const options = { connect: at(listener.addr), socks: [FREE], timeout: 300, ...log.options };
  const client = await openTunnel(options);
  isSilent = true;
  await promptly(log.until("suspended"));
  await client.shutdown();
  listener.close();
  await accepting;
  for (const socket of sockets) socket.close();
  await Promise.all(copying);
});

Deno.test("maxStreams of a server refuses further connections of one client", async () => {
  await using target = makeTarget(async (connection) => void await connection.read(new Uint8Array(1)));
  await using server = serveTunnel({ listen: FREE, allow: [target.addr], maxStreams: 1, onError() {} });
  await using client = await openTunnel({ connect: server.serverAddr, onError() {} });
  const first = await client.connect(target.addr);
  await assertRejects(() => promptly(client.connect(target.addr)), Error, "did not respond to CONNECT");
  await using other = await openTunnel({ connect: server.serverAddr });
  first.close();
  (await other.connect(target.addr)).close();
});

Deno.test("maxReceiveBuffer of either end limits what its peer sends before it is read", async () => {
  const most = 64 * 1024;
  const listener = Deno.listen(LOOPBACK);
  const opening = openTunnel({
    connect: at(listener.addr),
    resume: false,
    maxReceiveBuffer: most,
    keepAliveInterval: 20,
    onError() {},
  });
  // Everything that may arrive has arrived when later keepalives have.
  const later = Promise.withResolvers<void>();
  let keepalives = -Infinity;
  const onFrame = ({ direction, command }: FrameEvent) => {
    if (direction === "received" && command === "NOP" && ++keepalives === 5) later.resolve();
  };
  const session = Session.server(await listener.accept(), { onFrame });
  listener.close();
  await using client = await opening;
  const [stream, accepted] = await Promise.all([client.connect(), session.acceptStream()]);
  accepted.write(pattern(4 * most)).catch(() => {});
  keepalives = 0;
  await promptly(later.promise);
  assertLessOrEqual(client.stats().received, most);
  stream.close();
  session.abort();
});

Deno.test("tunnel command: --keepalive and --timeout apply to the connection, and 0 means never", async () => {
  const run = (...args: string[]) => {
    const child = new Deno.Command(Deno.execPath(), {
      args: ["run", "--no-config", "--no-prompt", "-A", SCRIPT, ...args],
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
      env: { NO_COLOR: "1" },
    });
    return watch(child.spawn());
  };
  const limits = ["--timeout", "0", "--max-streams", "10", "--max-receive-buffer", "1"];
  await using server = run(
    "server",
    "--listen",
    "0",
    "--allow",
    "127.0.0.1:1",
    ...limits,
    "--keepalive",
    "0",
    "--trace",
  );
  const [, addr] = await server.until(/^listening on (\S+)$/m);
  await using client = run("client", "--connect", addr!, "--socks", "0", ...limits, "--keepalive", "1", "--trace");
  await client.until(/: NOP 0\n(.*\n)*.*: NOP 0\n/, "stderr");
  const { stderr } = await server.end("SIGTERM");
  assertMatch(stderr, /^from .*: NOP 0$/m);
  assertEquals(/^to .*: NOP 0$/m.test(stderr), false, stderr);
});
