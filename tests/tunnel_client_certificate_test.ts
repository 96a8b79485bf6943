/** Client certificates: their mistakes, their names as users, and everything that is forwarded with them. */

import { assert, assertEquals, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { Buffer } from "node:buffer";
import { setTimeout as delay } from "node:timers/promises";
import { connect as connectTls } from "node:tls";
import {
  checkTunnel,
  hashSecret,
  openTunnel,
  type OpenTunnelOptions,
  serveTunnel,
  type ServeTunnelOptions,
  TunnelRefusedError,
  type TunnelUser,
} from "../tunnel.ts";
import { Access } from "../tunnel/access.ts";
import { loadConfig } from "../tunnel/config.ts";
import { PermanentError } from "../tunnel/errors.ts";
import { CertifiedAddress, certifiedUser, userOfCertificate } from "../tunnel/identity.ts";
import { encodeRefusal, RefusableConnection } from "../tunnel/refusal.ts";
import { listenOn } from "../tunnel/socket.ts";
import { secureByNode } from "../tunnel/tls.ts";
import { listenForCertificates } from "../tunnel/tls_listener.ts";
import { HANDSHAKE_TIMEOUT } from "../tunnel/wait.ts";
import { hasPrograms, makeFolder, watch } from "./programs.ts";
import { bytes, freePort, pattern, readAll, sha256, text, writeAll } from "./support.ts";
import {
  at,
  changeDelays,
  dial,
  exceedHandshakes,
  fetchFiles,
  FREE,
  isEnded,
  makeEcho,
  makeLog,
  makeProxy,
  makeTarget,
  portOf,
  promptly,
  say,
  serveFiles,
} from "./tunnel_support.ts";
import { type Issued, makeAuthority, SERVER, timeIn } from "./tunnel_certificates.ts";

const ignore = !hasPrograms("openssl");

/** Makes a CA, a server that requires its certificates, and options of a client. */
async function makeServer(options: Partial<ServeTunnelOptions> = {}) {
  const authority = await makeAuthority();
  const { cert, key } = await authority.issue({ subject: "/CN=localhost", extensions: SERVER });
  const log = makeLog();
  const given: ServeTunnelOptions = { listen: FREE, cert, key, clientCa: authority.cert, ...log.options, ...options };
  const server = serveTunnel(given);
  /** Returns the options of a client with a certificate. */
  const asking = (shown?: Issued, more: Partial<OpenTunnelOptions> = {}): OpenTunnelOptions => ({
    connect: server.serverAddr,
    ca: authority.cert,
    onError() {},
    ...shown && { cert: shown.cert, key: shown.key },
    ...more,
  });
  const dispose = async () => {
    await server.shutdown({ timeout: 1000 });
    await authority[Symbol.asyncDispose]();
  };
  return { authority, server, log, given, asking, issue: authority.issue, [Symbol.asyncDispose]: dispose };
}

for (const version of [1, 2] as const) {
  for (const resume of [true, false]) {
    Deno.test(`tunnel: a client certificate carries forward and reverse, version ${version}, resume ${resume}`, {
      ignore,
    }, async () => {
      const web = serveFiles();
      const rules = { allow: ["127.0.0.1:*"], allowListen: ["127.0.0.1:*"] };
      await using made = await makeServer(rules);
      const ana = await made.issue({ subject: "/O=x/CN=ana" });
      const places = { forward: [`${FREE}=${at(web.addr)}`], reverse: [`${FREE}=${at(web.addr)}`] };
      await using client = await openTunnel(made.asking(ana, { ...places, version, resume }));
      for (const addr of client.listenAddrs) await fetchFiles(addr, [1, 1000, 1_000_000]);
      await made.log.until("finished", 6);
      assertEquals([...new Set(made.log.finished.map(({ user }) => user))], ["ana"]);
      const [connected] = made.log.events;
      assert(connected?.type === "connected" && connected.user === "ana");
      assertEquals(made.log.messages(), []);
      await web.shutdown();
    });
  }
}

Deno.test("tunnel: a connection with a client certificate resumes, with much data both ways and half-close", {
  ignore,
}, async () => {
  const received = Promise.withResolvers<Uint8Array<ArrayBuffer>>();
  const answer = pattern(3_000_000, 5);
  await using target = makeTarget(async (connection) => {
    received.resolve(await readAll(connection));
    await writeAll(connection, answer);
  });
  await using made = await makeServer({ target: target.addr });
  await using proxy = makeProxy(made.server.serverAddr);
  const ana = await made.issue({ subject: "/CN=ana" });
  const log = makeLog();
  const options = { connect: proxy.addr, forward: [FREE], ...log.options };
  await using client = await openTunnel(made.asking(ana, options));
  using connection = await dial(client.listenAddrs[0]!);
  const sent = pattern(3_000_000, 7);
  await writeAll(connection, sent.subarray(0, 1_000_000));
  proxy.cut();
  await writeAll(connection, sent.subarray(1_000_000));
  await connection.closeWrite();
  assertEquals(await sha256(await received.promise), await sha256(sent));
  assertEquals(await sha256(await readAll(connection)), await sha256(answer));
  await log.until("resumed");
  assertEquals(log.typesOf().includes("reconnected"), false);
});

Deno.test(
  "openTunnel() rejects with a PermanentError that says what is wrong with its certificate, and the server reports it",
  {
    ignore,
  },
  async () => {
    await using made = await makeServer({ target: "1" });
    await using stranger = await makeAuthority("test CA");
    const { issue } = made;
    const untrusted = "the client certificate is not signed for clients by a CA that the server accepts";
    const name =
      "the name of the certificate must be 1 to 64 printable ASCII characters without space or colon, received";
    const cases: [shown: Issued | undefined, reason: string][] = [
      [undefined, "a client certificate is required"],
      // The names of both CAs are the same.
      [await stranger.issue({ subject: "/CN=ana" }), untrusted],
      [await issue({ subject: "/CN=ana", extensions: SERVER }), untrusted],
      [
        await issue({ subject: "/CN=ana", from: "20200101000000Z", to: "20210101000000Z" }),
        "the client certificate has expired on 2021-01-01",
      ],
      [
        await issue({ subject: "/CN=ana", from: "20900101000000Z", to: "20910101000000Z" }),
        "the client certificate is not valid before 2090-01-01",
      ],
      [await issue({ subject: "/CN=Ana Maria" }), `${name} "Ana Maria"`],
      [await issue({ subject: "/O=x" }), "the certificate must have a common name, received none"],
      [await issue({ subject: "/CN=ana/CN=bob" }), "the certificate must have one common name, received several"],
    ];
    for (const [shown, reason] of cases) {
      for (const resume of [true, false]) {
        const opening = openTunnel(made.asking(shown, { secret: "x", retry: true, resume }));
        const { message } = await assertRejects(() => promptly(opening), PermanentError);
        const why = shown === undefined
          ? "the server requires a client certificate: use cert and key"
          : `the server refuses the client: ${reason}`;
        assertEquals(message, `Cannot connect to ${made.server.serverAddr}: ${why}`);
        await made.log.until(/^Refused a connection from /);
        const reported = made.log.errors.splice(0).map(({ message }) => message.replace(/:\d+/, ""));
        assertEquals(reported, [`Refused a connection from 127.0.0.1: ${reason}`]);
      }
    }
    assertEquals(made.server.stats().refused, { 403: cases.length * 2 });
    await using good = await openTunnel(made.asking(await issue({ subject: "/CN=ana" })));
    assertEquals(good.stats().connections, 1);
  },
);

Deno.test("serveTunnel() refuses a resumed TLS session, which Node reports as authorized also for an unknown CA", {
  ignore,
}, async () => {
  await using made = await makeServer({ target: "1" });
  await using stranger = await makeAuthority();
  await using folder = await makeFolder("session");
  const port = portOf(made.server.serverAddr);
  const mallory = await stranger.issue({ subject: "/CN=ana" });
  for (const version of ["-tls1_2", "-tls1_3"]) {
    const session = `${folder.path}/session${version}`;
    const ask = async (...more: string[]) => {
      const shown = ["-cert", mallory.certFile, "-key", mallory.keyFile];
      const command = new Deno.Command("openssl", {
        args: ["s_client", "-connect", `127.0.0.1:${port}`, version, ...shown, "-ign_eof", ...more],
        stdin: "null",
        stderr: "null",
      });
      return text((await command.output()).stdout);
    };
    assertMatch(await ask("-sess_out", session), /HTTP\/1\.1 403 the client certificate is not signed/);
    const answer = await ask("-sess_in", session);
    assertMatch(answer, /^Reused, /m);
    assertMatch(answer, /HTTP\/1\.1 403 a TLS session must not be resumed/);
  }
  assertEquals(made.log.typesOf(), []);
});

Deno.test("openTunnel() reports an alert of another server that requires a certificate", { ignore }, async () => {
  await using authority = await makeAuthority();
  const { certFile, keyFile } = await authority.issue({ subject: "/CN=localhost", extensions: SERVER });
  for (const version of ["-tls1_2", "-tls1_3"]) {
    const port = freePort();
    const server = new Deno.Command("openssl", {
      args: [
        ...["s_server", "-accept", `127.0.0.1:${port}`, "-cert", certFile, "-key", keyFile, version, "-naccept", "9"],
        ...["-Verify", "1", "-CAfile", authority.certFile],
      ],
      // At its end the server would exit.
      stdin: "piped",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    await using watched = watch(server);
    await watched.until(/ACCEPT/);
    const opening = openTunnel({ connect: `127.0.0.1:${port}`, ca: authority.cert, retry: true, onError() {} });
    const { message } = await assertRejects(() => promptly(opening), PermanentError);
    assertMatch(message, version === "-tls1_3" ? /the server requires a client certificate/ : /HandshakeFailure|alert/);
    await server.stdin.close();
    await watched.end();
  }
});

Deno.test("serveTunnel() accepts a client with TLS 1.2 only", {
  ignore,
}, async () => {
  await using echo = makeEcho();
  await using made = await makeServer({ target: echo.addr });
  const ana = await made.issue({ subject: "/CN=ana" });
  const socket = connectTls({
    host: "127.0.0.1",
    port: portOf(made.server.serverAddr),
    ca: made.authority.cert,
    cert: ana.cert,
    key: ana.key,
    maxVersion: "TLSv1.2",
  });
  const { promise: answered, resolve } = Promise.withResolvers<Uint8Array>();
  socket.on("data", (data) => resolve(new Uint8Array(data)));
  const { promise: closed, resolve: close } = Promise.withResolvers<void>();
  socket.on("close", () => close());
  // smux 1: SYN and PSH of stream 1.
  socket.write(Buffer.from([1, 0, 0, 0, 1, 0, 0, 0, 1, 2, 5, 0, 1, 0, 0, 0, ...bytes("hello")]));
  const answer = await promptly(answered);
  assert(text(answer).endsWith("hello") || answer.length > 0);
  assertEquals(socket.getProtocol(), "TLSv1.2");
  socket.destroy();
  await closed;
});

Deno.test("serveTunnel() serves a good client beside 100 that send garbage, stop in the handshake or show nothing", {
  ignore,
}, async () => {
  await using echo = makeEcho();
  await using made = await makeServer({ target: echo.addr });
  const ana = await made.issue({ subject: "/CN=ana" });
  const silent = await Promise.all(Array.from({ length: 20 }, () => dial(made.server.serverAddr)));
  const garbage = Array.from({ length: 100 }, async (_, n) => {
    using connection = await dial(made.server.serverAddr);
    // Garbage, or the begin of a record.
    await connection.write(n % 2 === 0 ? crypto.getRandomValues(new Uint8Array(500)) : new Uint8Array([22, 3, 1, 2]));
    if (n % 2 === 0) await isEnded(connection);
  });
  await using client = await promptly(openTunnel(made.asking(ana, { forward: [FREE] })));
  using connection = await dial(client.listenAddrs[0]!);
  assertEquals(await say(connection, "hello"), "hello");
  await Promise.all(garbage);
  await made.log.until(/^TLS handshake with 127\.0\.0\.1:\d+ failed: /, 100);
  assertEquals(await say(connection, "again"), "again");
  for (const connection of silent) connection.close();
  await made.log.until(/failed: the client has closed the connection/, 20);
});

Deno.test("serveTunnel() with clientCa: one handshake more than 512 ends the oldest", { ignore }, async () => {
  await using echo = makeEcho();
  await using made = await makeServer({ target: echo.addr });
  const ana = await made.issue({ subject: "/CN=ana" });
  const connections = await exceedHandshakes(made.server.serverAddr, made.log);
  await using client = await promptly(openTunnel(made.asking(ana, { forward: [FREE] })));
  using connection = await dial(client.listenAddrs[0]!);
  assertEquals(await say(connection, "hello"), "hello");
  for (const connection of connections) connection.close();
});

Deno.test(
  "serveTunnel() closes a client that is silent in the TLS handshake after a deadline",
  { ignore },
  async () => {
    await using made = await makeServer({ target: "1" });
    using _ = changeDelays((delay) => delay === HANDSHAKE_TIMEOUT ? 50 : delay);
    using connection = await dial(made.server.serverAddr);
    assertEquals(await promptly(isEnded(connection)), true);
    await made.log.until(/failed: handshake timed out after 10000 ms/);
  },
);

Deno.test("openTunnel() with cert ends the TLS handshake with a silent server after a deadline, and on abort", {
  ignore,
}, async () => {
  await using authority = await makeAuthority();
  const { cert, key } = await authority.issue({ subject: "/CN=ana" });
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const accepting = Array.fromAsync(listener).catch(() => []);
  const options = { connect: at(listener.addr), ca: authority.cert, cert, key };
  const stop = new AbortController();
  const opening = openTunnel({ ...options, signal: stop.signal });
  stop.abort(new Error("enough"));
  await assertRejects(() => promptly(opening), Error, "enough");
  {
    using _ = changeDelays((delay) => delay === HANDSHAKE_TIMEOUT ? 50 : delay);
    await assertRejects(() => promptly(openTunnel(options)), Error, "within 10000 ms");
  }
  listener.close();
  for (const connection of await accepting) connection.close();
});

Deno.test(
  "serveTunnel() with users applies those of the certificate's name, without a secret",
  { ignore },
  async () => {
    const web = serveFiles();
    const users: TunnelUser[] = [
      { name: "ana", allow: ["127.0.0.1:*"] },
      { name: "bob", secret: await hashSecret("open-sesame"), allowListen: ["127.0.0.1:*"] },
      { name: "b@x.example" },
    ];
    await using made = await makeServer({ users });
    const forward = [`${FREE}=${at(web.addr)}`];
    const [ana, bob, eve] = [
      await made.issue({ subject: "/CN=ana" }),
      await made.issue({ subject: "/CN=bob" }),
      await made.issue({ subject: "/CN=eve" }),
    ];
    // A shared secret, as in the environment, has no effect.
    await using client = await openTunnel(made.asking(ana, { forward, secret: "other" }));
    await fetchFiles(client.listenAddrs[0]!, [1000]);
    await made.log.until("finished");
    assertEquals(made.log.finished[0]!.user, "ana");
    await using second = await openTunnel(made.asking(bob));
    const refused = await assertRejects(() => second.connect(at(web.addr)), TunnelRefusedError, "not allowed");
    assertEquals(refused.status, 403);
    const unknown = await assertRejects(
      () => openTunnel(made.asking(eve, { forward, retry: true })),
      TunnelRefusedError,
      'the certificate is of "eve", who is not a user of the server',
    );
    assertEquals(unknown.status, 403);
    const other = await assertRejects(
      () => openTunnel(made.asking(ana, { forward, user: "bob", secret: "open-sesame" })),
      TunnelRefusedError,
      'expected the user of the certificate, "ana", received "bob"',
    );
    assertEquals(other.status, 403);
    const email = {
      subject: "/O=x",
      extensions: ["extendedKeyUsage=clientAuth", "subjectAltName=IP:::1,email:b@x.example"],
    };
    await using third = await openTunnel(made.asking(await made.issue(email), { secret: "x" }));
    assertEquals(third.stats().connections, 1);
    await web.shutdown();
  },
);

Deno.test(
  "serveTunnel() with a secret and clientCa requires both, and passes the name to authorize",
  { ignore },
  async () => {
    const asked: unknown[] = [];
    await using echo = makeEcho();
    await using made = await makeServer({
      secret: "open-sesame",
      allow: [echo.addr],
      authorize({ user }) {
        asked.push(user);
        return true;
      },
    });
    const ana = await made.issue({ subject: "/CN=ana" });
    await assertRejects(() => openTunnel(made.asking(ana, { secret: "wrong" })), TunnelRefusedError, "wrong secret");
    await using client = await openTunnel(made.asking(ana, { secret: "open-sesame" }));
    const stream = await client.connect(echo.addr);
    assertEquals(await say(stream, "hello"), "hello");
    stream.close();
    assertEquals(asked, ["ana"]);
  },
);

Deno.test("Access.check() rejects with 403 when another certificate has resumed the session, or none", async () => {
  const address = (user: string) => new CertifiedAddress({ hostname: "127.0.0.1", port: 1 }, user);
  const request = { method: "OPTIONS", address: "*", authorization: "" };
  const { signal } = new AbortController();
  for (const users of [undefined, [{ name: "ana" }, { name: "bob" }]]) {
    const access = new Access({ listen: FREE, clientCa: "x", users }, () => {});
    const session: { remoteAddr: Deno.NetAddr } = { remoteAddr: address("ana") };
    await access.check(request, session, signal);
    assertEquals(access.userOf(session), "ana");
    session.remoteAddr = address("bob");
    const other = "expected the user of the connection's first request";
    await assertRejects(() => access.check(request, session, signal), TunnelRefusedError, other);
    session.remoteAddr = { transport: "tcp", hostname: "127.0.0.1", port: 1 };
    await assertRejects(
      () => access.check(request, session, signal),
      TunnelRefusedError,
      "a client certificate is required",
    );
    assert(access.isRemoved(session));
    session.remoteAddr = address("ana");
    await access.check(request, session, signal);
    assert(!access.isRemoved(session));
  }
});

Deno.test(
  "a certificate that expires while its client is connected ends at the next connection",
  { ignore },
  async () => {
    await using echo = makeEcho();
    await using made = await makeServer({ target: echo.addr });
    const ana = await made.issue({ subject: "/CN=ana", to: timeIn(4000) });
    await using client = await openTunnel(made.asking(ana, { forward: [FREE] }));
    using connection = await dial(client.listenAddrs[0]!);
    for (let message = ""; !message.includes("expired");) {
      message = await openTunnel(made.asking(ana)).then(async (other) => {
        await other.shutdown();
        return "";
      }, ({ message }) => message);
    }
    assertEquals(await say(connection, "still"), "still");
    // The target serves one connection after the other.
    await connection.closeWrite();
    await readAll(connection);
    using later = await dial(client.listenAddrs[0]!);
    assertEquals(await say(later, "hello"), "hello");
  },
);

Deno.test("TunnelServer.update() replaces clientCa for new connections, and ends sessions without a certificate", {
  ignore,
}, async () => {
  await using echo = makeEcho();
  await using made = await makeServer({ target: echo.addr });
  await using next = await makeAuthority();
  const [ana, bob] = [await made.issue({ subject: "/CN=ana" }), await next.issue({ subject: "/CN=bob" })];
  await using client = await openTunnel(made.asking(ana, { forward: [FREE] }));
  const listen = made.server.serverAddr;
  await made.server.update({ ...made.given, listen, clientCa: next.cert });
  using kept = await dial(client.listenAddrs[0]!);
  assertEquals(await say(kept, "hello"), "hello");
  await assertRejects(() => openTunnel(made.asking(ana)), PermanentError, "not signed for clients");
  await using second = await openTunnel(made.asking(bob));
  // Without, and with again.
  const { clientCa: _ca, ...plain } = made.given;
  await made.server.update({ ...plain, listen });
  await using third = await openTunnel(made.asking(undefined, { reconnect: false }));
  await assertRejects(
    () => made.server.update({ ...made.given, listen, clientCa: "nothing" }),
    RangeError,
    "clientCa must be certificates in PEM",
  );
  await made.server.update({ ...made.given, listen, clientCa: next.cert });
  await assertRejects(() => promptly(third.finished), Error, "was lost");
  assertEquals(await say(kept, "again"), "again");
  assertEquals(second.stats().connections, 1);
});

Deno.test("TunnelClient.update() with another certificate connects anew", { ignore }, async () => {
  await using echo = makeEcho();
  await using made = await makeServer({ target: echo.addr });
  const [ana, bob] = [await made.issue({ subject: "/CN=ana" }), await made.issue({ subject: "/CN=bob" })];
  await using client = await openTunnel(made.asking(ana, { forward: [FREE] }));
  await client.update(made.asking(bob, { forward: [FREE] }));
  using connection = await dial(client.listenAddrs[0]!);
  assertEquals(await say(connection, "hello"), "hello");
  assertEquals(made.log.events.map((event) => event.type === "connected" && event.user), ["ana", "bob"]);
  await assertRejects(
    () => client.update(made.asking(undefined, { forward: [FREE] })),
    PermanentError,
    "requires a client",
  );
  assertEquals(await say(connection, "again"), "again");
});

Deno.test("serveTunnel() and openTunnel() throw for certificates that are malformed, or lack what they need", {
  ignore,
}, async () => {
  await using authority = await makeAuthority();
  const [{ cert, key }, other] = [
    await authority.issue({ subject: "/CN=a" }),
    await authority.issue({ subject: "/CN=b" }),
  ];
  const base = { listen: FREE, target: "1", cert, key, clientCa: authority.cert };
  const serve = (options: Partial<ServeTunnelOptions>) => () => serveTunnel({ ...base, ...options });
  const wrong =
    "cert and key must be a certificate and its private key in PEM, received the key of another certificate";
  assertThrows(serve({ cert: undefined, key: undefined }), RangeError, "clientCa requires cert and key");
  assertThrows(serve({ key: other.key }), RangeError, wrong);
  assertThrows(serve({ key: other.key, clientCa: undefined }), RangeError, wrong);
  assertThrows(
    serve({ key: "nothing" }),
    RangeError,
    "cert and key must be a certificate and its private key in PEM: ",
  );
  assertThrows(
    serve({ clientCa: "nothing" }),
    RangeError,
    "clientCa must be certificates in PEM, received text without",
  );
  assertThrows(serve({ target: undefined, users: [{ name: "ana" }], clientCa: undefined }), RangeError, "secret");
  assertThrows(serve({ listen: "unix:/x" }), RangeError, "listen must be HOST:PORT when TLS");
  const open = (options: Partial<OpenTunnelOptions>) => () => openTunnel({ connect: "127.0.0.1:1", ...options });
  await assertRejects(open({ cert }), RangeError, "cert and key must be set together, received only cert");
  await assertRejects(open({ key }), RangeError, "cert and key must be set together, received only key");
  await assertRejects(open({ cert, key: other.key }), RangeError, wrong);
  await assertRejects(open({ cert: "x", key }), RangeError, "cert must be certificates in PEM");
  await assertRejects(open({ cert, key, tls: false }), RangeError, "cert requires TLS, received tls: false");
  // A certificate of each client is enough on an address that other machines can reach.
  await using exposed = serveTunnel({ ...base, listen: "0.0.0.0:0" });
  assert(exposed.pin !== undefined);
});

Deno.test("loadConfig() reads clientCa, cert, key and pin, and names their mistakes", { ignore }, async () => {
  await using authority = await makeAuthority();
  await using folder = await makeFolder("config");
  const { certFile, keyFile } = await authority.issue({ subject: "/CN=ana" });
  const other = await authority.issue({ subject: "/CN=bob" });
  const file = `${folder.path}/sluice.json`;
  const load = async (value: unknown) => {
    await Deno.writeTextFile(file, JSON.stringify(value));
    const { config, mistakes } = loadConfig(file);
    return { config, mistakes: mistakes.map((mistake) => mistake.slice(file.length + 1)) };
  };
  const shown = { cert: certFile, key: keyFile };
  const server = { listen: "0", users: [{ name: "ana" }], ...shown, clientCa: authority.certFile };
  const client = { connect: "1", forward: ["0"], ...shown, pin: "ab".repeat(32) };
  const { config, mistakes } = await load({ server, client });
  assertEquals(mistakes, []);
  assertMatch(config!.client!.pin!, /^sha256:/);
  const { clientCa: _ca, ...without } = server;
  const [lacking] = (await load({ server: without })).mistakes;
  assertMatch(lacking!, /server\.users\[0\] must have the field secret/);
  const wrong = await load({ client: { ...client, key: other.keyFile, pin: "x" } });
  assertMatch(wrong.mistakes.join("\n"), /^\d+:\d+: client\.pin must be the SHA-256 of a public key.*received "x"$/);
  const pair = await load({ client: { ...client, key: other.keyFile } });
  assertMatch(pair.mistakes.join("\n"), /client\.cert and key must be .* the key of another certificate$/);
});

Deno.test("checkTunnel() advises about a missing client certificate, and checks with one", { ignore }, async () => {
  await using made = await makeServer({ allow: ["*:*"] });
  const ana = await made.issue({ subject: "/CN=ana" });
  const last = async (shown?: Issued) => {
    const { connect, ca, cert, key } = made.asking(shown);
    return (await Array.fromAsync(checkTunnel({ connect, ca, cert, key }))).at(-1)!;
  };
  const failed = await last();
  assertEquals(failed.isOk, false);
  assertMatch(failed.text, /the server requires a client certificate/);
  assertMatch(failed.advice!, /^Connect with --cert FILE and --key FILE/);
  const { isOk, text } = await last(ana);
  assert(isOk, text);
});

Deno.test("userOfCertificate() returns the common name, else the first DNS name or e-mail address", () => {
  const name = (commonNames: string[], alternativeNames: string[]) =>
    userOfCertificate({
      commonNames,
      alternativeNames,
      publicKey: new Uint8Array(),
      validFrom: new Date(0),
      validTo: new Date(0),
    });
  assertEquals(name(["ana"], ["x.example"]), "ana");
  assertEquals(name([], ["x.example", "a@x.example"]), "x.example");
  for (const bad of ["", "a b", "a:b", "a\nb", "é", "a".repeat(65)]) {
    assertThrows(() => name([bad], ["x.example"]), RangeError, "the name of the certificate must be");
  }
  assertEquals(certifiedUser({ transport: "tcp", hostname: "::1", port: 1 }), undefined);
  assertEquals(certifiedUser(new CertifiedAddress({ hostname: "::1", port: 1 }, "ana")), "ana");
});

/** A connection that reads these chunks. */
function reading(...chunks: (string | Error)[]) {
  return {
    read(p: Uint8Array) {
      const chunk = chunks.shift();
      if (chunk instanceof Error) return Promise.reject(chunk);
      if (chunk === undefined) return Promise.resolve(null);
      p.set(bytes(chunk));
      return Promise.resolve(chunk.length);
    },
    write: () => Promise.reject(new Error("closed")),
    closeWrite: () => Promise.resolve(),
    close() {},
  };
}

Deno.test("RefusableConnection throws for a refusal in any chunks, and passes all other bytes on", async () => {
  const refusal = text(encodeRefusal("no\r\nway"));
  for (const chunks of [[refusal], [...refusal], [refusal.slice(0, 20), refusal.slice(20)]]) {
    const connection = new RefusableConnection(reading(...chunks), "there");
    await assertRejects(
      () => connection.read(new Uint8Array(1)),
      PermanentError,
      "there: the server refuses the client: no??way",
    );
    await assertRejects(() => connection.write(new Uint8Array(1)), PermanentError, "no??way");
  }
  for (const chunks of [["\x02"], ["HTTP/1.1 200 OK\r\n\r\n"], ["H", "T", "X"], [refusal.slice(0, -1)], []]) {
    assertEquals(text(await readAll(new RefusableConnection(reading(...chunks), "x"))), chunks.join(""));
  }
  // A terminal must not obey the server.
  const hostile = new RefusableConnection(reading("HTTP/1.1 403 \x1b[31mRed\r\n\r\n"), "x");
  await assertRejects(() => hostile.read(new Uint8Array(1)), PermanentError, ": ?[31mRed");
  const small = new RefusableConnection(reading("abcde"), "x");
  for (const expected of ["", "ab", "", "cd", "e"]) {
    const p = new Uint8Array(expected.length);
    assertEquals([await small.read(p), text(p)], [expected.length, expected]);
  }
  const alert = new RefusableConnection(reading(new Error("received fatal alert: CertificateExpired")), "x");
  await assertRejects(() => alert.read(new Uint8Array(1)), PermanentError, "CertificateExpired");
  const lost = new RefusableConnection(reading(new Error("reset")), "x");
  await assertRejects(() => lost.read(new Uint8Array(1)), Error, "reset");
});

Deno.test(
  "a connection with TLS of Node stops receiving while it is not read, in both directions",
  { ignore },
  async () => {
    await using authority = await makeAuthority();
    const server = await authority.issue({ subject: "/CN=localhost", extensions: SERVER });
    const { cert, key } = await authority.issue({ subject: "/CN=ana" });
    const listening = listenOn(FREE);
    const listener = listenForCertificates(listening, { ...server, clientCa: authority.cert }, (error) => {
      throw error;
    });
    const { signal } = new AbortController();
    const tls = { ca: authority.cert, cert, key };
    const client = await secureByNode(await dial(listening.addr), "localhost", tls, signal);
    const accepted = await listener.accept();
    for (const [from, to] of [[client, accepted], [accepted, client]] as const) {
      let written = 0;
      const chunk = new Uint8Array(65_536);
      // More than the kernel and both ends buffer.
      const size = 400 * chunk.length;
      const writing = (async () => {
        while (written < size) written += await from.write(chunk);
      })();
      let received = (await to.read(chunk.slice()))!;
      // It has stalled when no write ends any more.
      for (let last = -1; last !== written;) {
        last = written;
        await delay(300);
      }
      assert(written < size / 2, `${written} bytes`);
      while (received < size) received += (await to.read(chunk.slice()))!;
      await writing;
    }
    client.close();
    accepted.close();
    listener.close();
    listening.close();
    await listener.ended;
  },
);

Deno.test(
  "tunnel command: --client-ca, --cert and --key forward, the log names the user, a client without exits with 3",
  {
    ignore,
  },
  async () => {
    await using authority = await makeAuthority();
    const server = await authority.issue({ subject: "/CN=localhost", extensions: SERVER });
    const ana = await authority.issue({ subject: "/CN=ana" });
    const web = serveFiles();
    const start = (...args: string[]) =>
      new Deno.Command(Deno.execPath(), {
        args: ["run", "-A", new URL("../tunnel.ts", import.meta.url).href, ...args],
        stdout: "piped",
        stderr: "piped",
        env: { NO_COLOR: "1" },
      }).spawn();
    const keys = ["--cert", server.certFile, "--key", server.keyFile, "--client-ca", authority.certFile];
    await using serving = watch(
      start("server", "--listen", "0", "--allow", at(web.addr), "--log", "text", ...keys),
    );
    const [, addr] = await serving.until(/listening on (\S+)\n/);
    const ask = ["client", "--connect", addr!, "--forward", `0=${at(web.addr)}`, "--ca", authority.certFile];
    await using client = watch(start(...ask, "--cert", ana.certFile, "--key", ana.keyFile));
    const [, forwarded] = await client.until(/listening on (\S+)\n/);
    await fetchFiles(forwarded!, [1000]);
    await serving.until(/connection from ana@127\.0\.0\.1:\d+\n/);
    await serving.until(/ ana@127\.0\.0\.1:\d+ > 127\.0\.0\.1:\d+ .* closed\n/);
    const { code, stderr } = await watch(start(...ask)).ended();
    assertEquals(code, 3);
    assertMatch(stderr, /^cannot connect to \S+: the server requires a client certificate: use cert and key\n$/);
    await web.shutdown();
  },
);
