/** Reverse ports of a tunnel's server, whose client has fallen silent. */

import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { type Connection, type FrameEvent, Session, type Version } from "../mod.ts";
import { hashSecret, openTunnel, serveTunnel, TunnelRefusedError } from "../tunnel.ts";
import { Account } from "../tunnel/access.ts";
import { credentials } from "../tunnel/handshake.ts";
import { overlaps, Ports, PROBE_TIMEOUT } from "../tunnel/ports.ts";
import { Returning } from "../tunnel/returning.ts";
import { makeFolder } from "./programs.ts";
import { bytes, LOOPBACK, memoryPair, text, turn, writeAll } from "./support.ts";
import {
  at,
  changeDelays,
  dial,
  eventually,
  FREE,
  holdTimers,
  makeEcho,
  makeLog,
  nowhere,
  portOf,
  promptly,
  readHead,
  say,
} from "./tunnel_support.ts";

/** A connection that can fall silent: it then neither sends nor receives, and does not end. */
function makeFreezable(connection: Deno.Conn) {
  let isFrozen = false;
  const never = new Promise<never>(() => {});
  const transport: Connection = {
    read: async (p) => {
      const count = await connection.read(p);
      return isFrozen ? await never : count;
    },
    write: async (p) => isFrozen ? await never : await connection.write(p),
    close: () => connection.close(),
  };
  return { transport, freeze: () => void (isFrozen = true) };
}

/** A client that listens by hand, and can fall silent. */
async function bindByHand(
  serverAddr: string,
  place: string,
  { version, authorization }: { version?: Version; authorization?: string } = {},
) {
  const { transport, freeze } = makeFreezable(await connect(serverAddr));
  const session = Session.client(transport, { version, timeout: Infinity });
  const stream = await session.openStream();
  const header = authorization === undefined ? "" : `Proxy-Authorization: ${authorization}\r\n`;
  await writeAll(stream, bytes(`BIND ${place} HTTP/1.1\r\n${header}\r\n`));
  assertMatch(text(await readHead(stream)), /^HTTP\/1\.1 200 /);
  return { session, stream, freeze, [Symbol.dispose]: () => session.abort() };
}

const connect = (addr: string): Promise<Deno.Conn> =>
  addr.startsWith("unix:") ? Deno.connect({ transport: "unix", path: addr.slice("unix:".length) }) : dial(addr);

/** Makes a silent client be found out at once. */
const probeAtOnce = () => changeDelays((delay) => delay === PROBE_TIMEOUT ? 0 : delay);

for (const version of [1, 2] as const) {
  Deno.test(`serveTunnel() passes the port of a silent client on to a new one, version ${version}`, async () => {
    using _delays = probeAtOnce();
    await using echo = makeEcho();
    const log = makeLog();
    const place = nowhere();
    await using server = serveTunnel({ listen: FREE, allowListen: ["*:*"], secret: "x", ...log.options });
    const authorization = credentials("x");
    using old = await bindByHand(server.serverAddr, place, { version, authorization });
    old.freeze();
    const asked = { connect: server.serverAddr, reverse: [`${place}=${echo.addr}`], secret: "x", version };
    await using client = await openTunnel({ ...asked, reconnect: false });
    using connection = await dial(client.listenAddrs[0]!);
    assertEquals(await say(connection, "hello"), "hello");
    connection.close();
    await log.until("stopped");
    const stopped = log.events.find(({ type }) => type === "stopped");
    assert(stopped?.type === "stopped" && stopped.listenAddr === place);
    await log.until(/the client was silent, and another one listens on/);
  });
}

Deno.test("serveTunnel() refuses the port of a client that responds, also with a refusal", async () => {
  await using echo = makeEcho();
  const place = nowhere();
  await using server = serveTunnel({ listen: FREE, allowListen: ["*:*"], onError() {} });
  const reverse = [`${place}=${echo.addr}`];
  const log = makeLog();
  await using old = await openTunnel({ connect: server.serverAddr, reverse, ...log.options });
  for (let n = 0; n < 2; n++) {
    const opening = openTunnel({ connect: server.serverAddr, reverse });
    const error = await assertRejects(
      () => opening,
      TunnelRefusedError,
      `Cannot listen on ${place}: address in use`.slice(1),
    );
    assertEquals(error.status, 502);
  }
  using connection = await dial(old.listenAddrs[0]!);
  assertEquals(await say(connection, "undisturbed"), "undisturbed");
  connection.close();
  assertEquals(log.errors, [], "the probe is not reported by the client");

  // A client that does not know the probe refuses it.
  const other = nowhere();
  using byHand = await bindByHand(server.serverAddr, other);
  const opening = openTunnel({ connect: server.serverAddr, reverse: [`${other}=1`] });
  const refused = assertRejects(() => opening, TunnelRefusedError, "address in use");
  const stream = await byHand.session.acceptStream();
  await readHead(stream);
  await writeAll(stream, bytes("HTTP/1.1 405 expected CONNECT\r\n\r\n"));
  stream.close();
  await refused;
});

Deno.test("serveTunnel() refuses the port of a silent client to another user, and to the same session", async () => {
  using _delays = probeAtOnce();
  const place = nowhere();
  const user = async (name: string) => ({ name, secret: await hashSecret(name), allowListen: ["*:*"], maxPorts: 1 });
  const users = [await user("alice"), await user("bob")];
  await using server = serveTunnel({ listen: FREE, users, onError() {} });
  using old = await bindByHand(server.serverAddr, place, { authorization: credentials("alice", "alice") });
  const open = (name: string) =>
    openTunnel({ connect: server.serverAddr, reverse: [`${place}=1`], user: name, secret: name });
  const again = await old.session.openStream();
  await writeAll(
    again,
    bytes(`BIND ${place} HTTP/1.1\r\nProxy-Authorization: ${credentials("alice", "alice")}\r\n\r\n`),
  );
  assertMatch(text(await readHead(again)), /^HTTP\/1\.1 502 /);
  old.freeze();
  await assertRejects(() => open("bob"), TunnelRefusedError, "address in use");
  // The address of the silent client does not count for the limit of one port.
  await using alice = await open("alice");
  assertEquals(alice.listenAddrs, [place]);
});

Deno.test("Ports takes no address over from a client whose bytes are not read: its answer would wait behind them", async () => {
  using _delays = probeAtOnce();
  const [near, far] = memoryPair();
  const client = Session.client(near);
  const server = Session.server(far, { maxReceiveBuffer: 1 });
  const other = Session.client(memoryPair()[0]);
  const stream = await client.openStream();
  await stream.write(bytes("x"));
  const unread = await server.acceptStream();
  while (!server.stats().readPaused) await turn();

  const ports = new Ports();
  const { signal } = new AbortController();
  const permit = { account: new Account({}), method: "BIND" as const, addresses: ["127.0.0.1"] };
  const on = (port: number) => ({ ...permit, endpoint: { hostname: "127.0.0.1", port } });
  const listening = await ports.listen(on(0), server, unread, signal);
  const port = portOf(listening.addr);
  await assertRejects(() => ports.listen(on(port), other, unread, signal), Error, "address in use");
  for (const session of [client, server, other]) session.abort();
  await assertRejects(() => unread.closed);
  await listening.closed;
});

for (const method of ["BIND", "BIND-UDP"] as const) {
  Deno.test(`Ports listens again at an address that ${method} has released just before`, async () => {
    const session = Session.client(memoryPair()[0]);
    const ports = new Ports();
    const { signal } = new AbortController();
    const permit = { account: new Account({}), method, addresses: ["127.0.0.1"] };
    let port = 0;
    for (let round = 0; round < 3; round++) {
      const stream = await session.openStream();
      const endpoint = { hostname: "127.0.0.1", port };
      const listening = await ports.listen({ ...permit, endpoint }, session, stream, signal);
      port = portOf(listening.addr.replace("udp:", ""));
      if ("accept" in listening) listening.accept().catch(() => {});
      stream.abort();
      await stream.closed.catch(() => {});
      if (round === 2) await listening.closed;
    }
    session.abort();
  });
}

Deno.test("serveTunnel() passes the port of a silent client on to one of two new clients, which keeps it", async () => {
  using held = holdTimers(PROBE_TIMEOUT);
  const place = nowhere();
  let asked = 0;
  // BIND is on the second stream of a client.
  const onFrame = ({ direction, command, id }: FrameEvent) => {
    if (direction === "received" && command === "PSH" && id === 5) asked++;
  };
  await using server = serveTunnel({ listen: FREE, allowListen: ["*:*"], onError() {}, onFrame });
  using old = await bindByHand(server.serverAddr, place);
  old.freeze();
  const opening = [1, 2].map(() => openTunnel({ connect: server.serverAddr, reverse: [`${place}=1`] }));
  // Both clients wait for one probe of the silent client. That of the new client, which answers, is never late.
  await eventually(() => asked === 2 && held.count() === 1);
  await turn();
  held.fire();
  const outcomes = await Promise.allSettled(opening);
  const opened = outcomes.flatMap((outcome) => outcome.status === "fulfilled" ? [outcome.value] : []);
  const refused = outcomes.flatMap((outcome) => outcome.status === "rejected" ? [`${outcome.reason}`] : []);
  assertEquals([opened.length, refused.length], [1, 1]);
  assertMatch(refused[0]!, /address in use/);
  for (const client of opened) await client.shutdown();
});

Deno.test("serveTunnel() passes an address on that a silent client listens on with all addresses, or as a Unix socket", async () => {
  using _delays = probeAtOnce();
  await using folder = await makeFolder("tunnel");
  await using echo = makeEcho();
  const socket = `unix:${folder.path}/socket`;
  const port = portOf(nowhere());
  const log = makeLog();
  await using server = serveTunnel({ listen: FREE, allowListen: ["*:*", socket], ...log.options });
  for (const [held, place] of [[`0.0.0.0:${port}`, `127.0.0.1:${port}`], [socket, socket]] as const) {
    using old = await bindByHand(server.serverAddr, held);
    old.freeze();
    await using client = await openTunnel({ connect: server.serverAddr, reverse: [`${place}=${echo.addr}`] });
    using connection = await connect(client.listenAddrs[0]!);
    assertEquals(await say(connection, "hello"), "hello");
    connection.close();
  }
});

Deno.test("Tunnel.shutdown() of a server ends the wait for a silent client", async () => {
  using _delays = changeDelays((delay) => delay === PROBE_TIMEOUT ? 1_000_000 : delay);
  const place = nowhere();
  const log = makeLog();
  const server = serveTunnel({ listen: FREE, allowListen: ["*:*"], ...log.options });
  using old = await bindByHand(server.serverAddr, place);
  old.freeze();
  const refused = assertRejects(() => openTunnel({ connect: server.serverAddr, reverse: [`${place}=1`] }));
  await log.until("connected", 2);
  await promptly(server.shutdown({ timeout: 50 }));
  await refused;
});

/** Names a session by hand. */
async function introduce(session: Session, identity: string, authorization: string): Promise<void> {
  await using stream = await session.openStream();
  await writeAll(
    stream,
    bytes(`OPTIONS * HTTP/1.1\r\nProxy-Authorization: ${authorization}\r\nClient: ${identity}\r\n\r\n`),
  );
  assertMatch(text(await readHead(stream)), /^HTTP\/1\.1 200 /);
}

Deno.test("serveTunnel() ends the former session of a client that connects again, and frees its port at once", async () => {
  using _delays = changeDelays((delay) => delay === PROBE_TIMEOUT ? 1_000_000 : delay);
  const place = nowhere();
  const user = async (name: string) => ({ name, secret: await hashSecret("x"), allowListen: ["*:*"], maxPorts: 1 });
  const log = makeLog();
  await using server = serveTunnel({ listen: FREE, users: [await user("alice"), await user("bob")], ...log.options });
  const [alice, bob] = [credentials("x", "alice"), credentials("x", "bob")];
  const id = "a".repeat(22);
  using former = await bindByHand(server.serverAddr, place, { authorization: alice });
  await introduce(former.session, `${id} 2`, alice);
  former.freeze();
  const identities = [[`${id} 3`, bob], [`${id} 1`, alice], [`${id} 2`, alice], ["b".repeat(22) + " 3", alice], [
    `${id} x`,
    alice,
  ]];
  const others: Session[] = [];
  for (const [identity, authorization] of identities) {
    const session = Session.client(await dial(server.serverAddr));
    others.push(session);
    await introduce(session, identity!, authorization!);
  }
  // A session has one name.
  await introduce(others[3]!, `${id} 4`, alice);
  assertEquals(log.disconnected, []);

  const session = Session.client(await dial(server.serverAddr));
  await introduce(session, `${id} 3`, alice);
  await log.until("disconnected");
  assertEquals(log.disconnected.map(({ user, error }) => [user, error?.message]), [
    ["alice", "The client has connected again"],
  ]);
  const stream = await session.openStream();
  await writeAll(stream, bytes(`BIND ${place} HTTP/1.1\r\nProxy-Authorization: ${alice}\r\n\r\n`));
  assertMatch(text(await promptly(readHead(stream))), /^HTTP\/1\.1 200 /);
  for (const other of [...others, session]) await other.close();
});

Deno.test("Returning forgets a session that has ended", async () => {
  const [ended, former, current] = [1, 2, 3].map(() => Session.client(memoryPair()[0])) as [Session, Session, Session];
  const [returning, account, id] = [new Returning(), new Account({}), "a".repeat(22)];
  returning.note(`${id} 5`, account, ended);
  ended.abort();
  await ended.closed.catch(() => {});
  // Less than the number of the first, which does not count any more.
  returning.note(`${id} 3`, account, former);
  returning.note(`${id} 4`, account, current);
  await promptly(assertRejects(() => former.closed, Error, "connected again"));
  current.abort();
});

/** A proxy that can lose its connections: they are closed towards the client, and stay open towards the server. */
function makeLosing(to: string) {
  const listener = Deno.listen(LOOPBACK);
  const [near, far] = [new Set<Deno.TcpConn>(), new Set<Deno.TcpConn>()];
  const copy = async (from: Deno.TcpConn, into: Deno.TcpConn) => {
    const p = new Uint8Array(65_536);
    for (let count; near.size > 0 && (count = await from.read(p)) !== null;) await writeAll(into, p.subarray(0, count));
  };
  const run = async () => {
    for await (const accepted of listener) {
      const dialled = await dial(to);
      near.add(accepted);
      far.add(dialled);
      for (const copying of [copy(accepted, dialled), copy(dialled, accepted)]) copying.catch(() => {});
    }
  };
  run();
  const close = (all: Set<Deno.TcpConn>) => {
    for (const connection of all) connection.close();
    all.clear();
  };
  const lose = () => close(near);
  const dispose = () => {
    listener.close();
    for (const all of [near, far]) close(all);
  };
  return { addr: at(listener.addr), lose, [Symbol.dispose]: dispose };
}

Deno.test("openTunnel() has its reverse port at once after an end that the server has not seen", async () => {
  using _delays = changeDelays((delay) => delay === PROBE_TIMEOUT ? 1_000_000 : delay);
  await using echo = makeEcho();
  const log = makeLog();
  await using server = serveTunnel({ listen: FREE, allowListen: ["*:*"], onError() {} });
  using proxy = makeLosing(server.serverAddr);
  const place = nowhere();
  const options = { connect: proxy.addr, reverse: [`${place}=${echo.addr}`], resume: false, ...log.options };
  await using _client = await openTunnel(options);
  for (let n = 1; n <= 2; n++) {
    proxy.lose();
    await promptly(log.until("reconnected", n));
    await promptly(untilSaid(place));
  }
});

/** Waits until an address echoes. */
async function untilSaid(addr: string): Promise<void> {
  for (;;) {
    try {
      using connection = await dial(addr);
      if (await say(connection, "hello") === "hello") return;
    } catch {
      // Refused, or reset with the former session.
    }
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

Deno.test("overlaps() compares the port, the family and the path, and port 0 overlaps none", () => {
  const cases: [one: string, other: string, expected: boolean][] = [
    ["127.0.0.1:80", "127.0.0.1:80", true],
    ["127.0.0.1:80", "127.0.0.1:81", false],
    ["127.0.0.1:80", "127.0.0.2:80", false],
    ["127.0.0.1:80", "0.0.0.0:80", true],
    ["[::1]:80", "[::]:80", true],
    ["[::1]:80", "0.0.0.0:80", false],
    ["127.0.0.1:80", "[::]:80", false],
    ["127.0.0.1:0", "127.0.0.1:0", false],
    ["unix:/a:0", "unix:/a:0", true],
    ["unix:/a", "unix:/b", false],
    ["unix:/a", "0.0.0.0:80", false],
  ];
  for (const [one, other, expected] of cases) {
    assertEquals([overlaps(one, other), overlaps(other, one)], [expected, expected], `${one} and ${other}`);
  }
});

Deno.test("overlaps() compares addresses of UDP with each other only", () => {
  const cases: [one: string, other: string, expected: boolean][] = [
    ["udp:127.0.0.1:53", "udp:127.0.0.1:53", true],
    ["udp:0.0.0.0:53", "udp:127.0.0.1:53", true],
    ["udp:0.0.0.0:53", "127.0.0.1:53", false],
    ["0.0.0.0:53", "udp:127.0.0.1:53", false],
    ["udp:127.0.0.1:53", "127.0.0.1:53", false],
    ["udp:127.0.0.1:0", "udp:127.0.0.1:0", false],
  ];
  for (const [one, other, expected] of cases) assertEquals(overlaps(one, other), expected, `${one} and ${other}`);
});
