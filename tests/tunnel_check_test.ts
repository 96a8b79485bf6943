/** checkTunnel() and the command check. */

import { assert, assertEquals, assertLessOrEqual, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { serve } from "../mod.ts";
import {
  checkTunnel,
  type CheckTunnelOptions,
  serveTunnel,
  type ServeTunnelOptions,
  type TunnelCheck,
} from "../tunnel.ts";
import { adviceFor } from "../tunnel/advice.ts";
import { main } from "../tunnel/cli.ts";
import { resolver } from "../tunnel/resolve.ts";
import { formatCheck } from "../tunnel/report.ts";
import { makeFolder } from "./programs.ts";
import { bytes, isRefused, LOOPBACK, text, turn, writeAll } from "./support.ts";
import { at, dial, FREE, makeEcho, makeLog, makeTarget, nowhere, portOf, promptly } from "./tunnel_support.ts";

const readTls = (name: string) => Deno.readTextFileSync(new URL(`fixtures/tls/${name}`, import.meta.url));
const [cert, key, ca] = ["localhost.pem", "localhost.key", "ca.pem"].map(readTls) as [string, string, string];

const check = (options: CheckTunnelOptions) => promptly(Array.fromAsync(checkTunnel(options)));

/** Checks that all steps but the last succeeded; returns the last. */
function lastOf(checks: TunnelCheck[]): TunnelCheck {
  const last = checks.at(-1)!;
  for (const { isOk, text, error, advice } of checks.slice(0, -1)) {
    assertEquals({ isOk, error, advice }, { isOk: true, error: undefined, advice: undefined }, text);
  }
  return last;
}

/** Checks which step of which options fails, and how. */
async function assertFails(options: CheckTunnelOptions, name: string, message: RegExp, advice: RegExp): Promise<void> {
  const last = lastOf(await check(options));
  assertEquals([last.name, last.isOk], [name, false], last.text);
  assertMatch(last.text, message);
  assertMatch(last.advice!, advice);
  assert(last.error instanceof Error);
}

/** Starts a server that does not print errors. */
const start = (options: Omit<ServeTunnelOptions, "listen">) => serveTunnel({ listen: FREE, onError() {}, ...options });

for (const version of [1, 2] as const) {
  for (const resume of [true, false]) {
    Deno.test(`checkTunnel() reports each step, in version ${version}, resume ${resume}, and closes what it opened`, async () => {
      await using echo = makeEcho();
      const log = makeLog();
      await using server = start({
        allow: ["127.0.0.1:*"],
        allowListen: ["127.0.0.1:*"],
        secret: "sesame",
        ...log.options,
      });
      const reverse = nowhere();
      const checks = await check({
        connect: server.serverAddr,
        secret: "sesame",
        version,
        resume,
        forward: [`8080=${echo.addr}`],
        reverse: [`${reverse}=${echo.addr}`],
      });
      assertEquals(lastOf(checks).isOk, true);
      assertEquals(checks.map(({ name }) => name), [
        "TCP",
        ...resume ? ["protocol"] : [],
        "smux",
        "secret",
        `forward 8080=${echo.addr}`,
        `reverse ${reverse}=${echo.addr}`,
        `target ${echo.addr}`,
        "round trip",
        "download",
        "upload",
      ]);
      const texts = new Map(checks.map(({ name, text }) => [name, text]));
      assertEquals(texts.get("TCP"), `connected to ${server.serverAddr}`);
      if (resume) assertEquals(texts.get("protocol"), "Sluice answers; lost connections are resumed");
      assertMatch(texts.get("smux")!, new RegExp(`^version ${version}, sluice \\d`));
      assertEquals(texts.get("secret"), "accepted");
      assertMatch(texts.get("round trip")!, /^\d+\.\d ms, the median of 15 requests \(\S+ to \S+ ms\)$/);
      for (const direction of ["download", "upload"]) {
        assertMatch(texts.get(direction)!, /^\d\S* MB\/s, one stream: \d\S* MB in \d\S* s$/);
      }
      for (const { duration } of checks) assert(duration >= 0);
      assertEquals(await isRefused(() => dial(reverse)), true);
      assertEquals(log.messages(), []);
      assertEquals(server.stats().open, 0);
    });
  }
}

Deno.test("checkTunnel() resolves the name of the server, and tries all of its addresses", async () => {
  await using server = start({ allow: ["127.0.0.1:1"] });
  const connect = `localhost:${portOf(server.serverAddr)}`;
  const checks = await check({ connect });
  assertEquals(lastOf(checks).isOk, true);
  assertMatch(checks[0]!.text, /^localhost is .*127\.0\.0\.1/);
  assertEquals(checks.find(({ name }) => name === "secret")!.text, "none is required");
});

Deno.test("checkTunnel() stops at a name that cannot be resolved, and at an address that refuses", async () => {
  const { lookup } = resolver;
  try {
    resolver.lookup = () => Promise.reject(new Error("getaddrinfo ENOTFOUND"));
    await assertFails({ connect: "db.invalid:1" }, "name", /^cannot resolve db\.invalid: /, /^Check the spelling/);
    resolver.lookup = () => new Promise(() => {});
    const options = { connect: "db.invalid:1", connectTimeout: 20 };
    await assertFails(options, "name", /timed out after 20 ms$/, /name server/);
  } finally {
    resolver.lookup = lookup;
  }
  await assertFails({ connect: nowhere() }, "TCP", /connection refused$/, /^No process listens there\./);
  await assertFails({ connect: "unix:/nowhere/at/all" }, "socket", /no such file/, /^No process listens there\./);
});

Deno.test("checkTunnel() describes the certificate, trusted or not, and why it is not", async () => {
  await using server = start({ allow: ["127.0.0.1:1"], cert, key });
  const connect = `localhost:${portOf(server.serverAddr)}`;
  const trusted = (await check({ connect, ca })).find(({ name }) => name === "TLS")!;
  const described = "certificate of localhost, 127.0.0.1, issued by Sluice test CA, valid until 2120-01-01, " +
    `pin ${server.pin}`;
  assertEquals(trusted.text, `a trusted ${described}`);
  const unknown = new RegExp(`^a ${described.replaceAll("+", "\\+")} is not trusted: .*UnknownIssuer`);
  await assertFails({ connect, tls: true }, "TLS", unknown, /--ca FILE/);
  const { lookup } = resolver;
  try {
    resolver.lookup = () => Promise.resolve(["127.0.0.1"]);
    const other = { connect: `other.example:${portOf(server.serverAddr)}`, ca };
    await assertFails(other, "TLS", /is not trusted: .*not valid for name "other\.example"/i, /^Connect to a name/);
  } finally {
    resolver.lookup = lookup;
  }
  await using plain = start({ allow: ["127.0.0.1:1"] });
  for (const options of [{ ca }, { ca, pin: `sha256:${"A".repeat(43)}=` }]) {
    const connect = plain.serverAddr;
    await assertFails({ connect, ...options }, "TLS", /^no handshake: /, /^The server does not use TLS/);
  }
  await assertFails({ connect: server.serverAddr }, "protocol", /expects TLS/, /--tls/);
});

Deno.test("checkTunnel() names another protocol, and a server that does not answer", async () => {
  await using http = makeTarget(async (connection) => {
    await writeAll(connection, bytes("HTTP/1.1 400 Bad Request\r\n\r\n"));
    await connection.read(new Uint8Array(100));
  });
  await assertFails({ connect: http.addr }, "protocol", /its answer begins with "HTTP\/1\.1"$/, /^A web server/);
  await using ssh = makeTarget(async (connection) => {
    await writeAll(connection, bytes("SSH-2.0-x\r\n"));
    await connection.read(new Uint8Array(100));
  });
  await assertFails({ connect: ssh.addr }, "protocol", /its answer begins with "SSH-2\.0-"$/, /^Another program/);
  await using silent = makeTarget(async (connection) => {
    while (await connection.read(new Uint8Array(100)).catch(() => null) !== null);
  });
  const [message, advice] = [/accepts connections, but does not answer$/, /^The server is stopped/] as const;
  await assertFails({ connect: silent.addr, timeout: 300 }, "protocol", message, advice);
  await assertFails(
    { connect: silent.addr, timeout: 300, resume: false },
    "smux",
    /no answer for 300 ms|silent for 300 ms/,
    /its log/,
  );
});

Deno.test("checkTunnel() finds the version of smux that a server speaks", async () => {
  for (const version of [1, 2] as const) {
    const other = version === 1 ? 2 : 1;
    const listener = Deno.listen(LOOPBACK);
    const server = serve(listener, async (stream) => {
      await stream.read(new Uint8Array(100));
      await writeAll(stream, bytes("HTTP/1.1 200 OK\r\nServer: sluice/0\r\n\r\n"));
    }, { version: other, onError() {} });
    const advice = new RegExp(`^Use --smux ${other}`);
    const options = { connect: at(listener.addr), version };
    await assertFails(options, "smux", new RegExp(`^smux ${version} is not answered, but smux ${other} is$`), advice);
    const plain = await check({ connect: at(listener.addr), version: other });
    assertMatch(plain.find(({ name }) => name === "protocol")!.text, /lost connections are not resumed$/);
    assertEquals(plain.find(({ name }) => name === "smux")!.text, `version ${other}, sluice 0`);
    await server.shutdown();
  }
});

Deno.test("checkTunnel() names a missing and a wrong secret, also of a user", async () => {
  await using server = start({ allow: ["127.0.0.1:1"], secret: "sesame" });
  const connect = server.serverAddr;
  await assertFails({ connect }, "secret", /a secret is required$/, /^Use --secret FILE/);
  await assertFails({ connect, secret: "x" }, "secret", /wrong secret$/, /^Compare the file of --secret/);
  const wrong = { connect, secret: "x", user: "alice" };
  await assertFails(wrong, "secret", /wrong secret$/, /^Compare the file of --secret, and --user/);
});

Deno.test("checkTunnel() names a target that is not allowed or not reached, and an address that cannot be listened on", async () => {
  const target = nowhere();
  await using server = start({ allow: [target, "nowhere.invalid:1"], allowListen: ["127.0.0.1:*"] });
  const connect = server.serverAddr;
  const forward = (to: string) => ({ connect, forward: [`8080=${to}`] });
  await assertFails(forward("10.0.0.1:1"), "forward 8080=10.0.0.1:1", /not allowed$/, /--allow,/);
  await assertFails(forward(target), `forward 8080=${target}`, /connection refused$/, /^It is allowed, but/);
  const { lookup } = resolver;
  try {
    resolver.lookup = () => Promise.reject(new Error("getaddrinfo ENOTFOUND"));
    const unknown = "nowhere.invalid:1";
    await assertFails(forward(unknown), `forward 8080=${unknown}`, /cannot resolve/, /^The server does not know/);
  } finally {
    resolver.lookup = lookup;
  }
  const reverse = (listen: string, to: string) => ({ connect, reverse: [`${listen}=${to}`] });
  await assertFails(reverse("0.0.0.0:0", "1"), "reverse 0.0.0.0:0=1", /not allowed$/, /--allow-listen/);
  await assertFails(reverse(connect, "1"), `reverse ${connect}=1`, /address in use$/, /^Another process/);
  await assertFails(reverse(FREE, target), `target ${target}`, /connection refused$/, /^Start the service/);
});

Deno.test("checkTunnel() checks the fixed target of a server, and does not send requests to it", async () => {
  await using echo = makeEcho();
  for (const resume of [true, false]) {
    await using good = start({ target: echo.addr });
    const checks = await check({ connect: good.serverAddr, forward: ["8080"], resume });
    assertEquals(lastOf(checks).text, "the server kept a stream open for 1 s");
    await using bad = start({ target: nowhere() });
    const fixed = { connect: bad.serverAddr, forward: ["8080"], resume };
    await assertFails(fixed, "target", /^the server ended the stream/, /^Start the target/);
    const asking = { connect: good.serverAddr, forward: ["8080=1"], resume };
    await assertFails(asking, "smux", /^smux 2 answers, but not as a server of tunnels$/, /--forward LISTEN/);
    assertMatch(lastOf(await check({ connect: good.serverAddr, resume })).text, /it may have a fixed --target$/);
  }
});

Deno.test("checkTunnel() with idle reports a connection that survives, and one that is cut", async () => {
  await using server = start({ allow: ["127.0.0.1:1"], timeout: 1400 });
  const kept = lastOf(await check({ connect: server.serverAddr, idle: 30 }));
  assertEquals(kept.name, "idle");
  assertMatch(kept.text, /^a connection survives \d s without data$/);
  // The server would cut it.
  const limited = lastOf(await check({ connect: server.serverAddr, idle: 60_000 }));
  assertMatch(limited.text, /^a connection survives \d s .*; the server itself ends silent connections after 1\.4 s$/);

  for (const fault of ["cut", "silence"] as const) {
    const listener = Deno.listen(LOOPBACK);
    const copying: Promise<void>[] = [];
    const open: Deno.TcpConn[] = [];
    const accepting = (async () => {
      for await (const near of listener) {
        if (open.push(near) > 1) {
          if (fault === "cut") near.close();
          continue;
        }
        const far = await dial(server.serverAddr);
        const copy = (from: Deno.TcpConn, to: Deno.TcpConn) => from.readable.pipeTo(to.writable).catch(() => {});
        copying.push(copy(near, far), copy(far, near));
      }
    })();
    const message = fault === "cut"
      ? /^the connection was cut after \d s without data$/
      : /^the connection was cut silently/;
    await assertFails(
      { connect: at(listener.addr), idle: 30, timeout: 2000 },
      "idle",
      message,
      /--keepalive that is shorter/,
    );
    listener.close();
    await accepting;
    await Promise.all(copying);
    if (fault === "silence") open[1]!.close();
  }
});

Deno.test("checkTunnel() rejects malformed options at once, and ends by its signal", async () => {
  assertThrows(() => checkTunnel({ connect: "a" }), RangeError, "connect must be HOST:PORT");
  assertThrows(() => checkTunnel({ connect: "1", idle: 0.5 }), RangeError, "idle must be an integer");
  assertThrows(() => checkTunnel({ connect: "10.0.0.1:1", secret: "x" }), RangeError, "requires TLS");
  const stop = new AbortController();
  await using silent = makeTarget(async (connection) => {
    stop.abort(new Error("enough"));
    while (await connection.read(new Uint8Array(100)).catch(() => null) !== null);
  });
  await assertRejects(() => check({ connect: silent.addr, signal: stop.signal }), Error, "enough");
});

Deno.test("checkTunnel() closes its connection when the loop is left", async () => {
  await using server = start({ allow: ["127.0.0.1:1"] });
  for await (const { name } of checkTunnel({ connect: server.serverAddr })) {
    if (name === "secret") break;
  }
  await promptly(server.shutdown());
});

Deno.test("formatCheck() returns lines of at most 80 characters, with the advice below", () => {
  const result = { name: "TCP", isOk: true, text: "connected", duration: 12.3, error: undefined, advice: undefined };
  assertEquals(formatCheck(result), ["ok         12 ms  TCP: connected"]);
  const failed = { ...result, isOk: false, duration: 61_234, advice: "Start the server.", error: new Error("x") };
  assertEquals(formatCheck(failed), ["failed    61.2 s  TCP: connected", `${" ".repeat(18)}Start the server.`]);
  const long = formatCheck({
    ...failed,
    text: `${"many words ".repeat(30)}${"long".repeat(100)} \x1b[31m`,
    duration: 0.04,
  });
  for (const line of long) assertLessOrEqual(line.length, 80, line);
  assertEquals(long.join("").includes("\x1b"), false);
  assertEquals(long.join("").replaceAll(" ", "").includes("long".repeat(100)), true);
});

Deno.test("adviceFor() prefers the advice for a message, and has one for any other", () => {
  assertMatch(adviceFor("TLS", "invalid peer certificate: Expired"), /expired/);
  assertMatch(adviceFor("forward", "whatever"), /^It is allowed/);
});

Deno.test("main() writes an error after the lines before it, although stdout is slower than stderr", async () => {
  const { stdout, stderr } = Deno;
  const written: string[] = [];
  const output = (wait: () => Promise<void>) => async (p: Uint8Array) => {
    await wait();
    written.push(text(p));
    return p.length;
  };
  const before = [stdout.write, stderr.write] as const;
  [stdout.write, stderr.write] = [output(() => turn()), output(() => Promise.resolve())];
  try {
    assertEquals(await main(["check", "--connect", nowhere()]), 1);
  } finally {
    [stdout.write, stderr.write] = before;
  }
  assertMatch(written[0]!, /^failed /);
  assertEquals(written.at(-1), "check failed: TCP\n");
});

Deno.test("check command: prints a line for each step, and exits with 0, 1, 2 or 3", async () => {
  await using folder = await makeFolder("check");
  await Deno.writeTextFile(`${folder.path}/secret`, "sesame\n");
  await using echo = makeEcho();
  await using server = start({ allow: [echo.addr], secret: "sesame" });
  const run = async (...args: string[]) => {
    const script = new URL("../tunnel.ts", import.meta.url).href;
    const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["run", "--no-config", "--no-prompt", "-A", script, "check", ...args],
      env: { NO_COLOR: "1" },
    }).output();
    const lines = text(stdout).split("\n");
    for (const line of lines) assertLessOrEqual(line.length, 80, line);
    return { code, stdout: text(stdout), stderr: text(stderr), lines };
  };
  const connect = ["--connect", server.serverAddr];
  const secret = ["--secret", `${folder.path}/secret`];
  const good = await run(...connect, ...secret, "--forward", `-=${echo.addr}`, "--idle", "1");
  assertEquals([good.code, good.stderr], [0, ""], good.stdout);
  assertEquals(good.lines.filter((line) => /^(ok|failed) /.test(line)).length, 9);
  const refused = await run(...connect);
  assertEquals([refused.code, refused.stderr], [3, "check failed: secret\n"]);
  assertMatch(refused.stdout, /\nfailed +\S+ m?s {2}secret: .*a secret is required\n {18}Use --secret FILE, /);
  const missing = await run("--connect", nowhere());
  assertEquals([missing.code, missing.stderr], [1, "check failed: TCP\n"]);
  await Deno.writeTextFile(`${folder.path}/ca.pem`, ca);
  const plain = await run(...connect, "--ca", `${folder.path}/ca.pem`);
  assertEquals([plain.code, plain.stderr], [3, "check failed: TLS\n"]);
  const wrong = await run("--connect", "localhost");
  assertEquals([wrong.code, wrong.stdout], [2, ""]);
});
