/** What the clients of a tunnel's server may do: secrets, users, limits and `authorize`. */

import {
  assert,
  assertEquals,
  assertLessOrEqual,
  assertMatch,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import fc from "fast-check";
import { Session, SessionClosedError } from "../mod.ts";
import {
  hashSecret,
  openTunnel,
  serveTunnel,
  type ServeTunnelOptions,
  TunnelRefusedError,
  type TunnelRequest,
  type TunnelUser,
} from "../tunnel.ts";
import { Access, Account } from "../tunnel/access.ts";
import { credentials, request } from "../tunnel/handshake.ts";
import { sourceOf } from "../tunnel/turns.ts";
import { checkUsers, hashing, parseUsers, verifySecret } from "../tunnel/users.ts";
import { bytes, isRefused, LOOPBACK } from "./support.ts";
import {
  askSocks,
  at,
  dial,
  eventually,
  FREE,
  IPV4,
  isEnded,
  makeEcho,
  makeLog,
  makePair,
  nowhere,
  portOf,
  say,
  socksRequest,
} from "./tunnel_support.ts";

const numRuns = Number(Deno.env.get("PROPERTY_RUNS") ?? 200);
const secret = fc.stringMatching(/^[!-~]{1,40}$/);
const ABORTED = AbortSignal.abort(); // no delay after a wrong secret

const makePeer = () => ({ remoteAddr: { transport: "tcp" as const, hostname: "192.0.2.9", port: 9 } });

/** Makes the access of a server, and checks requests of one session. */
function makeAccess(options: Omit<ServeTunnelOptions, "listen">) {
  const session = makePeer();
  const errors: unknown[] = [];
  // Without users and secret no delay has to be aborted, but names are resolved.
  const signal = options.users === undefined && options.secret === undefined ? new AbortController().signal : ABORTED;
  const access = new Access({ listen: FREE, ...options }, (error) => errors.push(error));
  const check = (method: string, address: string, authorization = "") =>
    access.check({ method, address, authorization }, session, signal);
  const statusOf = async (...args: Parameters<typeof check>) => {
    try {
      await check(...args);
      return 200;
    } catch (error) {
      return error instanceof TunnelRefusedError ? error.status : error;
    }
  };
  return { access, session, errors, check, statusOf };
}

/** Replaces the slow hash by a fast one until disposed of. */
function hashFast() {
  const { derive } = hashing;
  const work = { count: 0, running: 0, most: 0, secrets: [] as string[] };
  hashing.derive = async (secret, salt) => {
    work.count++;
    work.secrets.push(secret);
    work.most = Math.max(work.most, ++work.running);
    const text = new Uint8Array([...salt, ...bytes(secret)]);
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", text));
    work.running--;
    return digest;
  };
  return Object.assign(work, { [Symbol.dispose]: () => void (hashing.derive = derive) });
}

const makeUser = async (name: string, rest: Partial<TunnelUser> = {}): Promise<TunnelUser> => ({
  name,
  secret: await hashSecret(`secret-of-${name}`),
  ...rest,
});
const asUser = (name: string) => ({ user: name, secret: `secret-of-${name}` });
const basic = (name: string, secret = `secret-of-${name}`) => credentials(secret, name);

Deno.test("Access.check() allows an address that a rule of the method matches, else rejects with 403 or 405", async () => {
  const { statusOf, check } = makeAccess({ allow: ["localhost:5432", "*:443"], allowListen: ["127.0.0.1:*"] });
  const cases: [method: string, address: string, status: number][] = [
    ["CONNECT", "localhost:5432", 200],
    ["CONNECT", "LocalHost:5432", 200],
    ["CONNECT", "192.0.2.1:443", 200],
    ["CONNECT", "localhost:5433", 403],
    ["CONNECT", "192.0.2.1:5432", 403],
    ["CONNECT", "unix:/run/a", 403],
    ["BIND", "127.0.0.1:0", 200],
    ["BIND", "8000", 200],
    ["BIND", "0.0.0.0:8000", 403],
    ["BIND", "192.0.2.1:443", 403],
    ["OPTIONS", "*", 200],
    ["OPTIONS", "192.0.2.1:443", 405],
    ["GET", "192.0.2.1:443", 405],
    ["CONSTRUCTOR", "192.0.2.1:443", 405],
  ];
  for (const [method, address, status] of cases) {
    assertEquals({ method, address, status: await statusOf(method, address) }, { method, address, status });
  }
  for (const [method, address] of [["CONNECT", "a"], ["CONNECT", "a:0"], ["BIND", "a:65536"], ["BIND", ""]] as const) {
    await assertRejects(() => check(method, address), RangeError, method);
  }
});

Deno.test("Access.check() rejects with 407 unless the secret matches, and names a missing one", async () => {
  const { check } = makeAccess({ allow: ["*:*"], secret: "open-sesame" });
  await check("CONNECT", "192.0.2.1:1", "Bearer open-sesame");
  const wrong = ["Bearer", "Bearer ", "Bearer open-sesam", "Bearer open-sesame2", "Bearer Open-sesame", "open-sesame"];
  const others = ["Basic open-sesame", "bearer open-sesame", "Bearer  open-sesame", basic("alice", "open-sesame")];
  for (const authorization of ["", ...wrong, ...others]) {
    for (const [method, address] of [["CONNECT", "192.0.2.1:1"], ["OPTIONS", "*"], ["GET", "x"]] as const) {
      const expected = authorization === "" ? "a secret is required" : "wrong secret";
      const error = await assertRejects(() => check(method, address, authorization), TunnelRefusedError, expected);
      assertEquals(error.status, 407, authorization);
    }
  }
  await fc.assert(
    fc.asyncProperty(secret, secret, async (secret, sent) => {
      const { statusOf } = makeAccess({ allow: ["*:*"], secret });
      assertEquals(await statusOf("CONNECT", "192.0.2.1:1", `Bearer ${sent}`), sent === secret ? 200 : 407);
    }),
    { numRuns },
  );
});

Deno.test("Access.check() does not distinguish an unknown user from a wrong secret, and hashes for both", async () => {
  using work = hashFast();
  const { check } = makeAccess({ users: [await makeUser("alice", { allow: ["*:*"] })] });
  const before = work.count;
  const refusals = [basic("alice", "wrong"), basic("bob"), basic("ALICE"), basic("alice", "secret-of-alice2")];
  for (const [n, authorization] of refusals.entries()) {
    const asked = () => check("CONNECT", "192.0.2.1:1", authorization);
    const { status, message } = await assertRejects(asked, TunnelRefusedError);
    assertEquals([status, message, work.count - before], [407, "wrong user or secret", n + 1]);
  }
  for (const authorization of ["Bearer secret-of-alice", "Basic", "Basic ?", `Basic ${btoa("alice")}`, "Basic ="]) {
    const asked = () => check("CONNECT", "192.0.2.1:1", authorization);
    await assertRejects(asked, TunnelRefusedError, "wrong user or secret");
  }
  const missing = () => check("CONNECT", "192.0.2.1:1");
  assertEquals((await assertRejects(missing, TunnelRefusedError, "a user and a secret are required")).status, 407);
});

Deno.test("Access.check() hashes the secret of a session once, also for requests at the same time", async () => {
  using work = hashFast();
  const { access, session, check, statusOf } = makeAccess({ users: [await makeUser("alice", { allow: ["*:*"] })] });
  const before = work.count;
  assertEquals(access.userOf(session), undefined);
  await Promise.all(Array.from({ length: 50 }, () => check("CONNECT", "192.0.2.1:1", basic("alice"))));
  assertEquals(work.count - before, 1);
  assertEquals(access.userOf(session), "alice");
  assertEquals(await statusOf("CONNECT", "192.0.2.1:1", basic("alice", "wrong")), 407);
  assertEquals(await statusOf("CONNECT", "192.0.2.1:1"), 407);
  assertEquals(await statusOf("CONNECT", "192.0.2.1:1", basic("alice")), 200);
  assertEquals(work.count - before, 2);
});

Deno.test("Access.check() computes at most two hashes at the same time", async () => {
  using work = hashFast();
  const names = Array.from({ length: 20 }, (_, n) => `user${n}`);
  const users = await Promise.all(names.map((name) => makeUser(name, { allow: ["*:*"] })));
  const { access } = makeAccess({ users });
  const asked = names.map((name) => {
    const of = { method: "CONNECT", address: "192.0.2.1:1", authorization: basic(name) };
    return access.check(of, makePeer(), ABORTED);
  });
  await Promise.all(asked);
  assertEquals(work.most, 2);
});

Deno.test("Access.check() verifies a client of another address before the clients of one that has many", async () => {
  using work = hashFast();
  const { access } = makeAccess({ users: [await makeUser("alice", { allow: ["*:*"] })] });
  const ask = (name: string, hostname: string) => {
    const peer = { remoteAddr: { transport: "tcp" as const, hostname, port: 9 } };
    return access.check({ method: "OPTIONS", address: "*", authorization: basic(name) }, peer, ABORTED);
  };
  const strangers = Array.from({ length: 30 }, (_, n) => assertRejects(() => ask(`user${n}`, "192.0.2.9")));
  // By microtasks only: no hash may end before.
  for (let n = 0; work.running < 2; n++) {
    assert(n < 10_000, "fewer than two hashes run");
    await null;
  }
  const before = work.secrets.length;
  await Promise.all([ask("alice", "192.0.2.10"), ...strangers]);
  // Another stranger has the first turn.
  assertLessOrEqual(work.secrets.indexOf("secret-of-alice", before) - before, 1);
});

Deno.test("sourceOf() returns an IPv4 address, or the first 64 bits of an IPv6 address", () => {
  const of = (hostname: string) => sourceOf({ transport: "tcp", hostname, port: 1 });
  for (
    const [address, source] of [
      ["192.0.2.1", "192.0.2.1"],
      ["::ffff:192.0.2.1", "192.0.2.1"],
      ["2001:db8:1:2:3:4:5:6", "2001:db8:1:2"],
      ["2001:db8::6", "2001:db8:0:0"],
      ["2001:db8:1:2:3::", "2001:db8:1:2"],
      ["2001:db8::1:2:3:4:5", "2001:db8:0:1"],
      ["::1", "0:0:0:0"],
    ] as const
  ) assertEquals(of(address), source);
  assertEquals([sourceOf(undefined), sourceOf({ transport: "unix", path: "/a" })], ["", ""]);
});

Deno.test("Access.check() computes one hash for clients with the same user and secret that ask at the same time", async () => {
  using work = hashFast();
  const { access } = makeAccess({ users: [await makeUser("alice", { allow: ["*:*"] })] });
  const ask = (authorization: string) =>
    access.check({ method: "OPTIONS", address: "*", authorization }, makePeer(), ABORTED);
  const before = work.count;
  await Promise.all(Array.from({ length: 50 }, () => ask(basic("alice"))));
  assertEquals(work.count - before, 1);
  // Unknown users with the same secret are as slow as known ones.
  const strangers = ["bob", "carol", "dave"].map((name) => assertRejects(() => ask(basic(name, "x"))));
  await Promise.all(strangers);
  assertEquals(work.count - before, 4);
});

Deno.test("Access.check() verifies clients with the same user and different secrets separately, although they ask at the same time", async () => {
  using _work = hashFast();
  const { access } = makeAccess({ users: [await makeUser("alice", { allow: ["*:*"] })] });
  const ask = (authorization: string) =>
    access.check({ method: "OPTIONS", address: "*", authorization }, makePeer(), ABORTED);
  const asked = [basic("alice"), basic("alice", "wrong"), basic("alice"), basic("alice", "wrong")].map(ask);
  const statuses = (await Promise.allSettled(asked)).map(({ status }) => status);
  assertEquals(statuses, ["fulfilled", "rejected", "fulfilled", "rejected"]);
});

Deno.test("Access.check() computes no hash for a client that has ended, and still serves those that wait", async () => {
  using work = hashFast();
  const names = ["alice", "bob", "carol", "dave"];
  const users = await Promise.all(names.map((name) => makeUser(name)));
  const { access } = makeAccess({ users });
  const before = work.count;
  const [gone, waiting] = [Promise.resolve(), new Promise<void>(() => {})];
  const ask = (name: string, closed: Promise<void>) =>
    access.check({ method: "OPTIONS", address: "*", authorization: basic(name) }, makePeer(), ABORTED, { closed });
  // The first two are computed at once.
  const served = [ask("alice", waiting), ask("bob", waiting)];
  const left = [ask("carol", gone), ask("dave", gone)];
  served.push(ask("dave", waiting));
  await assertRejects(() => left[0]!, SessionClosedError);
  await Promise.all(served);
  // Its result is there for the client that has left, too.
  await left[1];
  assertEquals(work.count - before, 3);
});

Deno.test("Access.check() refuses a secret of a user who is removed, or has another secret, while it is verified", async () => {
  using _work = hashFast();
  const user = await makeUser("alice", { allow: ["*:*"] });
  const other = { ...user, secret: await hashSecret("another") };
  const { derive } = hashing;
  for (const [users, expected] of [[[user], 200], [[], 407], [[other], 407]] as const) {
    const { access, statusOf } = makeAccess({ users: [user] });
    hashing.derive = (...args) => {
      access.update({ listen: FREE, users: [...users] });
      return derive(...args);
    };
    assertEquals(await statusOf("OPTIONS", "*", basic("alice")), expected);
  }
});

Deno.test("Access.check() rejects with 403 for another user on the same session", async () => {
  using _work = hashFast();
  const users = await Promise.all(["alice", "bob"].map((name) => makeUser(name, { allow: ["*:*"] })));
  const { access, session, statusOf } = makeAccess({ users });
  assertEquals(await statusOf("CONNECT", "192.0.2.1:1", basic("alice")), 200);
  assertEquals(await statusOf("CONNECT", "192.0.2.1:1", basic("bob")), 403);
  assertEquals(await statusOf("CONNECT", "192.0.2.1:1", basic("alice")), 200);
  assertEquals(access.userOf(session), "alice");
});

Deno.test("Access.check() asks authorize after the rules, and reports what it throws without showing it to clients", async () => {
  const requests: TunnelRequest[] = [];
  let answer: () => unknown = () => true;
  const authorize = (request: TunnelRequest) => {
    requests.push(request);
    return answer() as boolean;
  };
  const { statusOf, check, errors } = makeAccess({ allow: ["127.0.0.1:*"], allowListen: ["*:*"], authorize });
  assertEquals(await statusOf("CONNECT", "192.0.2.1:1"), 403);
  assertEquals(requests, []);
  assertEquals(await statusOf("CONNECT", "127.0.0.1:1"), 200);
  assertEquals(await statusOf("BIND", "127.0.0.1:2"), 200);
  const remoteAddr = "192.0.2.9:9";
  assertEquals(requests, [
    { user: undefined, method: "CONNECT", target: "127.0.0.1:1", remoteAddr },
    { user: undefined, method: "BIND", target: "127.0.0.1:2", remoteAddr },
  ]);
  for (const no of [false, undefined, "yes", 1, Promise.resolve(false)]) {
    answer = () => no;
    assertEquals(await statusOf("CONNECT", "127.0.0.1:1"), 403);
  }
  answer = () => Promise.resolve(true);
  assertEquals(await statusOf("CONNECT", "127.0.0.1:1"), 200);
  answer = () => {
    throw new TunnelRefusedError(451, "on holiday");
  };
  assertEquals(
    (await assertRejects(() => check("CONNECT", "127.0.0.1:1"), TunnelRefusedError, "on holiday")).status,
    451,
  );
  assertEquals(errors, []);
  answer = () => Promise.reject(new Error("database password"));
  const { status, message } = await assertRejects(() => check("CONNECT", "127.0.0.1:1"), TunnelRefusedError);
  assertEquals([status, message], [500, "authorize failed"]);
  assertStringIncludes(`${errors[0]}`, "Cannot authorize CONNECT 127.0.0.1:1: database password");
});

Deno.test("hashSecret() returns a salted hash that only its secret matches", async () => {
  const [one, other] = [await hashSecret("open-sesame"), await hashSecret("open-sesame")];
  assertMatch(one, /^scrypt:16384:[\w-]{22}:[\w-]{43}$/);
  assert(one !== other, "two hashes have the same salt");
  for (const hash of [one, other]) {
    assertEquals(await verifySecret("open-sesame", hash), true);
    assertEquals(await verifySecret("open-sesam", hash), false);
  }
  await assertRejects(() => hashSecret("a b"), RangeError, "secret must be");
  await assertRejects(() => hashSecret(""), RangeError, "secret must be");
});

const HASH = `scrypt:16384:${"a".repeat(22)}:${"b".repeat(43)}`;

Deno.test("parseUsers() names the place of each mistake, what was expected, and what was received", () => {
  const alice = { name: "alice", secret: HASH };
  const cases: [users: unknown, message: string][] = [
    [{ alice }, "users must be a list, received an object"],
    ["alice", "users must be a list, received a text"],
    [[alice, 1], "users[1] must be an object, received a number"],
    [[[]], "users[0] must be an object, received a list"],
    [[{ name: "alice" }], "users[0] must have the field secret, received only name"],
    [[{ secret: HASH }], "users[0] must have the field name, received only secret"],
    [
      [{ ...alice, alow: [] }],
      'users[0] must have only the fields name, secret, allow, allowListen, maxStreams, maxPorts, received "alow"',
    ],
    [
      [{ ...alice, name: "a:b" }],
      "users[0].name must be 1 to 64 printable ASCII characters without space or colon, received",
    ],
    [[{}], "users[0] must have the field name, received only {}"],
    [[{ ...alice, name: "" }], "users[0].name must be 1 to 64"],
    [[{ ...alice, name: 1 }], "users[0].name must be 1 to 64"],
    [[{ ...alice, name: { secret: "open-sesame" } }], "users[0].name must be 1 to 64"],
    [[{ ...alice, maxStreams: { secret: "open-sesame" } }], "users[0].maxStreams must be an integer of at least 0"],
    [[{ ...alice, allow: [{ secret: "open-sesame" }] }], "users[0].allow[0] must be a text, received an object"],
    [["open-sesame"], "users[0] must be an object, received a text"],
    [{ alice: "open-sesame" }, "users must be a list, received an object"],
    [[alice, { ...alice }], 'users[1].name must differ from users[0].name, received "alice" twice'],
    [[{ ...alice, secret: "open-sesame" }], "users[0].secret must be a hash as `sluice hash` prints it"],
    [[{ ...alice, secret: HASH.replace("16384", "16383") }], "users[0].secret must be a hash"],
    [[{ ...alice, secret: HASH.replace("16384", "2097152") }], "users[0].secret must be a hash"],
    [[{ ...alice, secret: HASH.replace("16384", "2") }], "users[0].secret must be a hash"],
    [[{ ...alice, allow: "*:*" }], "users[0].allow must be a list of texts, received a text"],
    [[alice, { ...alice, name: "bob", allow: ["1", 2] }], "users[1].allow[1] must be a text, received 2"],
    [[{ ...alice, allowListen: ["1", "x"] }], "users[0].allowListen[1] must be HOST:PORT, "],
    [[{ ...alice, maxStreams: -1 }], "users[0].maxStreams must be an integer of at least 0, received -1"],
    [[{ ...alice, maxPorts: "2" }], 'users[0].maxPorts must be an integer of at least 0, received "2"'],
    [[{ ...alice, maxPorts: null }], "users[0].maxPorts must be an integer of at least 0, received null"],
  ];
  for (const [users, message] of cases) {
    const error = assertThrows(() => parseUsers(JSON.stringify(users)), RangeError);
    assert(error.message.startsWith(message), error.message);
    assert(!error.message.includes("open-sesame"), "the message contains a secret");
  }
  assertThrows(() => parseUsers("[\n{]"), RangeError, "users must be a list in JSON: 2:2: expected a name");
  // The file of a secret, by mistake.
  const error = assertThrows(() => parseUsers("open-sesame"), RangeError);
  assertEquals(error.message, "users must be a list in JSON: 1:1: expected a value, received o");
  const all = { ...alice, allow: ["*:443"], allowListen: ["!8000"], maxStreams: 0, maxPorts: 7 };
  assertEquals(parseUsers(JSON.stringify([alice, { ...all, name: "bob" }])), [alice, { ...all, name: "bob" }]);
  assertEquals(checkUsers([{ ...alice, maxStreams: Infinity, allow: undefined }]).length, 1);
});

Deno.test("serveTunnel() throws for users with secret, allow, allowListen or target, and for authorize with a target", () => {
  const users = [{ name: "alice", secret: HASH }];
  for (const options of [{ secret: "x" }, { allow: ["1"] }, { allowListen: ["1"] }, { target: "1" }]) {
    assertThrows(() => serveTunnel({ listen: FREE, users, ...options }), RangeError, "combined with");
  }
  assertThrows(() => serveTunnel({ listen: FREE, target: "1", authorize: () => true }), RangeError, "authorize");
  assertThrows(
    () => serveTunnel({ listen: FREE, users: [{ name: "alice", secret: "x" }] }),
    RangeError,
    "users[0].secret",
  );
  assertThrows(() => serveTunnel({ listen: "0.0.0.0:0", users }), RangeError, "TLS");
});

Deno.test("openTunnel() throws for a malformed user, and for a user without a secret", async () => {
  await assertRejects(() => openTunnel({ connect: "1", user: "a:b", secret: "x" }), RangeError, "user must be 1 to 64");
  await assertRejects(() => openTunnel({ connect: "1", user: "alice" }), RangeError, "user requires secret");
});

// Each way into the tunnel, of users with different rules.

for (const version of [1, 2] as const) {
  Deno.test(`serveTunnel() checks the user's rules for forward, reverse, SOCKS and connect(), version ${version}`, async () => {
    await using echo = makeEcho();
    const [place, socks] = [nowhere(), FREE];
    const users = [
      await makeUser("alice", { allow: [echo.addr], allowListen: ["127.0.0.1:*"] }),
      await makeUser("bob", { allow: ["127.0.0.1:1"] }),
    ];
    const asked = { forward: [`0=${echo.addr}`], socks: [socks], version };
    const request = socksRequest(1, 1, IPV4, portOf(echo.addr));
    {
      const reverse = [`${place}=${echo.addr}`];
      await using alice = await makePair({ users }, { ...asked, reverse, ...asUser("alice") });
      for (const addr of [alice.client.listenAddrs[0]!, alice.client.listenAddrs[2]!]) {
        using connection = await dial(addr);
        assertEquals(await say(connection, "hello"), "hello");
        connection.close();
      }
      using connection = await dial(alice.client.listenAddrs[1]!);
      assertEquals(await askSocks(connection, request), 0);
      connection.close();
      (await alice.client.connect(echo.addr)).close();
    }
    await using bob = await makePair({ users }, { ...asked, ...asUser("bob") });
    using forwarded = await dial(bob.client.listenAddrs[0]!);
    assertEquals(await isEnded(forwarded), true);
    using connection = await dial(bob.client.listenAddrs[1]!);
    assertEquals(await askSocks(connection, request), 2);
    await assertRejects(() => bob.client.connect(echo.addr), TunnelRefusedError, "not allowed");
    const reverse = [`${place}=${echo.addr}`];
    const opening = openTunnel({ connect: bob.server.serverAddr, reverse, version, ...asUser("bob") });
    assertEquals((await assertRejects(() => opening, TunnelRefusedError)).status, 403);
    assertEquals(await isRefused(() => dial(place)), true);
  });
}

Deno.test("serveTunnel() asks authorize for forward, reverse, SOCKS and connect()", async () => {
  await using echo = makeEcho();
  let isOpen = true;
  const requests: TunnelRequest[] = [];
  const authorize = (request: TunnelRequest) => {
    requests.push(request);
    return isOpen;
  };
  const users = [await makeUser("alice", { allow: ["*:*"], allowListen: ["*:*"] })];
  const place = nowhere();
  const asked = { forward: [`0=${echo.addr}`], socks: [FREE], reverse: [`${place}=${echo.addr}`], ...asUser("alice") };
  await using pair = await makePair({ users, authorize }, asked);
  const { client, logs } = pair;
  const request = socksRequest(1, 1, IPV4, portOf(echo.addr));
  (await client.connect(echo.addr)).close();
  isOpen = false;
  using forwarded = await dial(client.listenAddrs[0]!);
  assertEquals(await isEnded(forwarded), true);
  using connection = await dial(client.listenAddrs[1]!);
  assertEquals(await askSocks(connection, request), 2);
  await assertRejects(() => client.connect(echo.addr), TunnelRefusedError, "not allowed");
  const connected = logs.server.events[0];
  assert(connected?.type === "connected");
  const what = { user: "alice", remoteAddr: connected.clientAddr };
  assertEquals(requests, [
    { method: "BIND" as const, target: place, ...what },
    ...Array.from({ length: 4 }, () => ({ method: "CONNECT" as const, target: echo.addr, ...what })),
  ]);
});

Deno.test("Account: a port that is released twice, and a stream that was not opened, count once and not at all", async () => {
  const { ports, streams } = new Account({ maxPorts: 1, maxStreams: 1 });
  const release = ports.take();
  release();
  release();
  ports.take();
  assertThrows(() => ports.take(), TunnelRefusedError, "at most 1 ports");
  for (let n = 0; n < 3; n++) {
    await assertRejects(() => streams.takeFor(() => Promise.reject(new Error("not opened"))), Error, "not opened");
  }
});

Deno.test("serveTunnel() limits the streams of a user over all of its sessions, and counts closed ones no more", async () => {
  await using echo = makeEcho();
  const users = [await makeUser("alice", { allow: [echo.addr], allowListen: ["*:*"], maxStreams: 2 })];
  const asked = { ...asUser("alice"), reverse: [`0=${echo.addr}`] };
  await using pair = await makePair({ users }, asked);
  await using second = await openTunnel({ connect: pair.server.serverAddr, ...asUser("alice") });
  const first = await pair.client.connect(echo.addr);
  assertEquals(await say(first, "one"), "one");
  // A connection to the reverse port counts too.
  using visitor = await dial(pair.client.listenAddrs[0]!);
  await writeAndHold(visitor, pair.server.stats);
  const error = await assertRejects(() => second.connect(echo.addr), TunnelRefusedError, "at most 2 streams");
  assertEquals(error.status, 429);
  assertEquals(await isRefused(() => dial(pair.client.listenAddrs[0]!)), true);
  await pair.logs.server.until(/at most 2 streams/, 2);
  first.close();
  visitor.close();
  await eventually(() => pair.server.stats().open === 0);
  const third = await second.connect(echo.addr);
  third.close();
});

/** Sends a byte on a connection, and waits until the server forwards two connections. */
async function writeAndHold(connection: Deno.TcpConn, stats: () => { open: number }): Promise<void> {
  await connection.write(bytes("x"));
  await eventually(() => stats().open >= 2);
}

Deno.test("serveTunnel() limits the ports of a user, and counts closed ones no more", async () => {
  const users = [await makeUser("alice", { allowListen: ["127.0.0.1:*"], maxPorts: 1 })];
  const log = makeLog();
  await using server = serveTunnel({ listen: FREE, users, ...log.options });
  const open = (...reverse: string[]) => openTunnel({ connect: server.serverAddr, reverse, ...asUser("alice") });
  const error = await assertRejects(() => open("0=1", "127.0.0.1:0=2"), TunnelRefusedError, "at most 1 ports");
  assertEquals(error.status, 429);
  await log.until("stopped");
  const client = await open("0=1");
  await assertRejects(() => open("0=1"), TunnelRefusedError, "at most 1 ports");
  await client.shutdown();
  await log.until("stopped", 2);
  using taken = Deno.listen(LOOPBACK);
  await assertRejects(() => open(`${at(taken.addr)}=1`), TunnelRefusedError, "address in use");
  await (await open("0=1")).shutdown();
});

Deno.test("serveTunnel() responds 200 to OPTIONS * if the secret is right, and opens nothing", async () => {
  await using server = serveTunnel({ listen: FREE, allow: ["*:*"], secret: "right", onError() {} });
  const session = Session.client(await dial(server.serverAddr));
  const { stream } = await request(session, "OPTIONS", "*", { secret: "right" });
  assertEquals(await stream.read(new Uint8Array(1)), null);
  stream.close();
  const error = await assertRejects(() => request(session, "OPTIONS", "*", { secret: "wrong" }), TunnelRefusedError);
  assertEquals(error.status, 407);
  assertEquals(server.stats().streams, 0);
  await session.close();
});
