/** The tunnel command, in processes of its own. */

import { assert, assertEquals, assertGreater, assertMatch, assertStringIncludes } from "@std/assert";
import * as net from "node:net";
import { Session } from "../mod.ts";
import { serveTunnel } from "../tunnel.ts";
import { hasPrograms, lines, makeFolder, watch } from "./programs.ts";
import { bytes, LOOPBACK, pattern, readAll, sha256, text, writeAll } from "./support.ts";
import {
  answerAndHangUp,
  askSocks,
  at,
  dial,
  fetchFiles,
  FREE,
  hasIpv6,
  IPV4,
  isEnded,
  makeEcho,
  nowhere,
  portOf,
  promptly,
  say,
  serveFiles,
  SIZES,
  socksRequest,
} from "./tunnel_support.ts";

const SCRIPT = new URL("../tunnel.ts", import.meta.url).href;

function command(args: string[], options: Deno.CommandOptions = {}, allow = "-A"): Deno.Command {
  return new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-config", "--no-prompt", allow, SCRIPT, ...args],
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
    ...options,
    env: { NO_COLOR: "1", ...options.env },
  });
}

/** Runs the command to its end. */
async function run(...args: string[]) {
  const { code, stdout, stderr } = await command(args).output();
  return { code, stdout: text(stdout), stderr: text(stderr) };
}

/** Starts the command and waits until it listens on `places` addresses. */
async function start(
  args: string[],
  { places = 1, env = {}, allow }: { places?: number; env?: Record<string, string>; allow?: string } = {},
) {
  const watched = watch(command(args, { env }, allow).spawn());
  const [printed] = await watched.until(new RegExp(`^(listening on \\S+\n){${places}}`, "m"));
  const addrs = printed.trimEnd().split("\n").map((line) => line.slice("listening on ".length));
  return { ...watched, addr: addrs[0]!, addrs };
}

/** Starts both ends of a tunnel to one target, each in a process. */
async function startBoth(target: string, ...more: string[]) {
  const server = await start(["server", "--listen", "0", "--target", target]);
  const client = await start(["client", "--forward=0", `--connect=${server.addr}`, ...more]);
  const dispose = async () => {
    await client[Symbol.asyncDispose]();
    await server[Symbol.asyncDispose]();
  };
  return { server, client, [Symbol.asyncDispose]: dispose };
}

Deno.test("tunnel command: forwards HTTP over one connection, and exits with 0 on SIGINT and SIGTERM", async () => {
  const web = serveFiles();
  await using tunnel = await startBoth(at(web.addr));
  const { server, client } = tunnel;
  await fetchFiles(client.addr, SIZES);
  client.child.kill("SIGINT");
  assertEquals(await client.ended(), {
    code: 0,
    signal: null,
    stdout: `listening on ${client.addr}\n` +
      "shutting down within 30 seconds; press Ctrl-C again to exit at once\n" +
      "forwarded 60 streams over 1 connection\n",
    stderr: "",
  });
  server.child.kill("SIGTERM");
  const ended = await server.ended();
  assertEquals({ ...ended, stdout: ended.stdout.replace(/(from 127\.0\.0\.1:)\d+/, "$1PORT") }, {
    code: 0,
    signal: null,
    stdout: `listening on ${server.addr}\n` +
      "connection from 127.0.0.1:PORT\n" +
      "shutting down within 30 seconds; press Ctrl-C again to exit at once\n" +
      "forwarded 60 streams over 1 connection\n",
    stderr: "",
  });
  await web.shutdown();
});

Deno.test("tunnel command: --forward, --socks and --reverse work together, within --allow", async () => {
  const web = serveFiles();
  const target = at(web.addr);
  await using server = await start(["server", "--listen=0", "--allow", target, "--allow", "*:1", "--allow-listen=*:*"]);
  const forwards = [`--forward=0=${target}`, "--forward", "0=127.0.0.1:2"];
  const args = ["client", `--connect=${server.addr}`, ...forwards, "--socks", "0", "--reverse", `0=${target}`];
  await using client = await start(args, { places: 4 });
  const [forward, forbidden, socks, reverse] = client.addrs;
  await fetchFiles(forward!, [1, 100_000]);
  await fetchFiles(reverse!, [2, 200_000]);
  using refused = await dial(forbidden!);
  assertEquals(await isEnded(refused), true);
  await Promise.all([client.until(/not allowed/, "stderr"), server.until(/not allowed/, "stderr")]);
  using connection = await dial(socks!);
  assertEquals(await askSocks(connection, socksRequest(1, 1, IPV4, web.addr.port)), 0);
  await writeAll(connection, bytes("GET /5 HTTP/1.0\r\n\r\n"));
  assertMatch(text(await readAll(connection)), /^HTTP\/1\.\d 200 /);
  connection.close();
  for (const { child, ended } of [client, server]) {
    child.kill("SIGTERM");
    const { code, stdout, stderr } = await ended();
    assertEquals(code, 0);
    assertMatch(stdout, /^forwarded 5 streams over 1 connection$/m);
    assertEquals(stderr.split("\n").length, 2, stderr);
  }
  await web.shutdown();
});

Deno.test("tunnel command: --trace logs each frame on stderr, and nothing more on stdout", async () => {
  await using target = makeEcho();
  await using server = await start(["server", "--listen", "0", "--target", target.addr]);
  await using client = await start(["client", "--connect", server.addr, "--forward", "0", "--smux=1", "--trace"]);
  const connection = await dial(client.addr);
  assertEquals(await say(connection, "hello"), "hello");
  connection.close();
  await client.until(/FIN 3\n(.*\n)*.*FIN 3\n/, "stderr");
  client.child.kill("SIGTERM");
  const { code, stdout, stderr } = await client.ended();
  assertEquals(code, 0);
  const frames = stderr.trimEnd().split("\n");
  const peer = server.addr.replaceAll(".", "\\.");
  for (const frame of frames) {
    assertMatch(frame, new RegExp(`^(to|from) ${peer}: (NOP 0|SYN 3|PSH 3, \\d+ bytes?|FIN 3)$`));
  }
  for (const frame of ["to", "from"]) assertStringIncludes(stderr, `${frame} ${server.addr}: PSH 3, 5 bytes\n`);
  assertMatch(stdout, /^listening on .+\nshutting down .+\nforwarded 1 stream over 1 connection\n$/);
});

Deno.test("tunnel command: the first signal waits for open connections, the second ends the process", async () => {
  const target = makeEcho();
  await using tunnel = await startBoth(target.addr, "--no-reconnect");
  const { server, client } = tunnel;
  const connection = await dial(client.addr);
  assertEquals(await say(connection, "before"), "before");
  server.child.kill("SIGTERM");
  await server.until(/^shutting down/m);
  assertEquals(await say(connection, "after"), "after");
  server.child.kill("SIGTERM");
  assertEquals((await server.ended()).signal, "SIGTERM");

  const { code, stdout, stderr } = await client.ended();
  assertEquals(code, 1);
  assertEquals(stdout, `listening on ${client.addr}\n`);
  assertMatch(stderr, new RegExp(`^the connection to ${server.addr} was lost: .+\n$`));
  assertEquals(await isEnded(connection), true);
  connection.close();
  await target.close();
});

Deno.test("tunnel command: exits with 0 on a signal although its stdout is closed", async () => {
  await using target = makeEcho();
  const child = command(["server", "--listen", "0", "--target", target.addr], { stderr: "null" }).spawn();
  const reader = lines(child.stdout).getReader();
  assertMatch((await reader.read()).value!, /^listening on /);
  await reader.cancel();
  child.kill("SIGINT");
  assertEquals((await child.status).code, 0);
});

Deno.test("tunnel command: --grace limits the time that a signal waits for open connections", async () => {
  for (const grace of [0, 1]) {
    await using target = makeEcho();
    await using tunnel = await startBoth(target.addr, `--grace=${grace}`);
    const { client } = tunnel;
    using connection = await dial(client.addr);
    assertEquals(await say(connection, "before"), "before");
    const began = performance.now();
    client.child.kill("SIGTERM");
    assertEquals(await isEnded(connection), true);
    assertGreater(performance.now() - began, grace * 950);
    const { code, stdout } = await client.ended();
    assertEquals(code, 0);
    assertMatch(stdout, new RegExp(`^shutting down within ${grace} seconds?; `, "m"));
  }
});

Deno.test("tunnel command: a client reconnects after its server was killed and restarted", async () => {
  const web = serveFiles();
  const args = ["--allow", "127.0.0.1:*", "--allow-listen", "127.0.0.1:*"];
  await using first = await start(["server", "--listen", "0", ...args]);
  const place = nowhere();
  const asked = ["--forward", `0=${at(web.addr)}`, "--reverse", `${place}=${at(web.addr)}`];
  await using client = await start(["client", "--connect", first.addr, ...asked], { places: 2 });
  await fetchFiles(client.addr, [1, 10_000]);
  first.child.kill("SIGKILL");
  await first.ended();
  await client.until(/^the connection to \S+ was lost: /m, "stderr");
  using refused = await dial(client.addr);
  assertEquals(await isEnded(refused), true);

  await using second = await start(["server", "--listen", first.addr, ...args]);
  await client.until(new RegExp(`^reconnected to ${first.addr}$`, "m"));
  await fetchFiles(client.addr, [2, 20_000]);
  await second.until(new RegExp(`^listening on ${place} for \\S+$`, "m"));
  await fetchFiles(place, [3, 30_000]);
  client.child.kill("SIGTERM");
  const { code, stdout } = await client.ended();
  assertEquals(code, 0);
  assertMatch(stdout, /^forwarded 6 streams over 2 connections$/m);
  await web.shutdown();
});

Deno.test("tunnel command: exits with 0 on a signal while the client waits to reconnect", async () => {
  await using tunnel = await startBoth(nowhere());
  const { server, client } = tunnel;
  server.child.kill("SIGKILL");
  await client.until(/^cannot connect to \S+: connection refused$/m, "stderr");
  client.child.kill("SIGTERM");
  assertEquals((await client.ended()).code, 0);
});

Deno.test("tunnel command: the secret is read from --secret or $SLUICE_SECRET, and is not logged", async () => {
  await using echo = makeEcho();
  await using folder = await makeFolder("tunnel");
  const [right, wrong] = [`${folder.path}/right`, `${folder.path}/wrong`];
  await Deno.writeTextFile(right, "open-sesame\n");
  await Deno.writeTextFile(wrong, "open-simsim\n");
  const serve = ["server", "--listen", "0", "--allow", echo.addr];
  const env = { SLUICE_SECRET: "open-sesame" };
  await using byFile = await start([...serve, "--secret", right]);
  await using byEnv = await start(serve, { env });
  for (const server of [byFile, byEnv]) {
    const ask = ["client", "--connect", server.addr, "--forward", `0=${echo.addr}`];
    for (const [more, given] of [[["--secret", right], {}], [[], env], [["--secret", right], { SLUICE_SECRET: "x" }]]) {
      await using client = await start([...ask, ...more as string[]], { env: given as Record<string, string> });
      using connection = await dial(client.addr);
      assertEquals(await say(connection, "hello"), "hello");
    }
  }
  const ask = ["client", "--connect", byFile.addr, "--forward", `0=${echo.addr}`];
  await using stranger = await start([...ask, "--secret", wrong], { env });
  using connection = await dial(stranger.addr);
  assertEquals(await isEnded(connection), true);
  await stranger.until(/secret.*\n/, "stderr");
  byFile.child.kill("SIGTERM");
  const { code, stderr } = await byFile.ended();
  assertEquals(code, 0);
  assertMatch(stderr, /^[^\n]*secret[^\n]*\n$/);
  assert(!stderr.includes("simsim") && !stderr.includes("sesame"), stderr);
});

Deno.test("tunnel command: --users FILE with entries of hash, and --user NAME, also for stdin and stdout", async () => {
  await using echo = makeEcho();
  await using folder = await makeFolder("tunnel");
  const [users, secret] = [`${folder.path}/users.json`, `${folder.path}/secret`];
  await Deno.writeTextFile(secret, "open-sesame\n");
  const hash = command(["hash", "alice"], { stdin: "piped" }).spawn();
  const stdin = hash.stdin.getWriter();
  await stdin.write(bytes("open-sesame\n"));
  await stdin.close();
  const { code, stdout } = await hash.output();
  assertEquals(code, 0);
  const entry = JSON.parse(text(stdout));
  assertEquals(entry, { name: "alice", secret: entry.secret, allow: [], allowListen: [] });
  await Deno.writeTextFile(users, JSON.stringify([{ ...entry, allow: [echo.addr] }]));
  const env = { SLUICE_SECRET: "open-sesame" };
  await using server = await start(["server", "--listen", "0", "--users", users], { env });
  const ask = ["client", "--connect", server.addr, "--user", "alice"];
  await using client = await start([...ask, "--forward", `0=${echo.addr}`, "--secret", secret]);
  using connection = await dial(client.addr);
  assertEquals(await say(connection, "hello"), "hello");
  connection.close();

  const pipe = command([...ask, "--forward", `-=${echo.addr}`], { stdin: "piped", env }).spawn();
  const input = pipe.stdin.getWriter();
  await input.write(bytes("through a pipe"));
  await input.close();
  const piped = await pipe.output();
  assertEquals([piped.code, text(piped.stdout)], [0, "through a pipe"]);
  const refused = await command([...ask, "--forward", "-=127.0.0.1:1"], { env }).output();
  assertEquals(refused.code, 1);
  assertMatch(text(refused.stderr), /not allowed\n$/);
});

Deno.test("tunnel command: hash exits with 2 for a malformed name or secret", async () => {
  for (const [args, input] of [[["hash"], "x"], [["hash", "a:b"], "x"], [["hash", "alice"], ""]] as const) {
    const child = command([...args], { stdin: "piped" }).spawn();
    const stdin = child.stdin.getWriter();
    await stdin.write(bytes(input));
    await stdin.close();
    const { code, stdout, stderr } = await child.output();
    assertEquals([code, text(stdout)], [2, ""]);
    assertMatch(text(stderr), /^[^\n]+\n$/);
  }
});

Deno.test("tunnel command: a client runs with access to the server's name alone", async () => {
  await using echo = makeEcho();
  await using server = await start(["server", "--listen", "0", "--allow", echo.addr]);
  const connect = `localhost:${portOf(server.addr)}`;
  const allow = `--allow-net=${connect},127.0.0.1:0`;
  await using client = await start(["client", "--connect", connect, "--forward", `0=${echo.addr}`], { allow });
  using connection = await dial(client.addr);
  assertEquals(await say(connection, "hello"), "hello");
});

Deno.test("tunnel command: runs with --allow-net alone when no option names a file", async () => {
  await using echo = makeEcho();
  const allow = "--allow-net";
  await using server = await start(["server", "--listen", "0", "--allow", echo.addr], { allow });
  await using client = await start(["client", "--connect", server.addr, "--forward", `0=${echo.addr}`], { allow });
  using connection = await dial(client.addr);
  assertEquals(await say(connection, "hello"), "hello");
});

Deno.test("tunnel command: --ca trusts the certificate of --cert, --tls alone rejects it", async () => {
  const web = serveFiles();
  const file = (name: string) => `${import.meta.dirname}/fixtures/tls/${name}`;
  const keys = ["--cert", file("localhost.pem"), "--key", file("localhost.key")];
  await using server = await start(["server", "--listen", "0", "--target", at(web.addr), ...keys]);
  const ask = ["client", "--connect", server.addr, "--forward", "0"];
  await using client = await start([...ask, "--ca", file("ca.pem")]);
  await fetchFiles(client.addr, [1, 100_000]);
  const { code, stdout, stderr } = await run(...ask, "--tls");
  assertEquals({ code, stdout }, { code: 1, stdout: "" });
  assertMatch(stderr, /^cannot connect to .*certificate.*\n$/i);
  await web.shutdown();
});

Deno.test("tunnel command: --smux 1 forwards HTTP", async () => {
  const web = serveFiles();
  await using tunnel = await startBoth(at(web.addr), "--smux", "1");
  await fetchFiles(tunnel.client.addr, [1, 100_000]);
  await web.shutdown();
});

Deno.test("tunnel command: --forward -=TARGET forwards stdin and stdout, and does not log to stdout", async () => {
  const web = serveFiles();
  await using echo = makeEcho();
  await using allowing = serveTunnel({ listen: FREE, allow: [at(web.addr), echo.addr] });
  const args = ["client", "--connect", allowing.serverAddr];
  const child = command([...args, "--forward", `-=${at(web.addr)}`], { stdin: "piped" }).spawn();
  await using watched = watch(child);
  const stdin = child.stdin.getWriter();
  await stdin.write(bytes("GET /0 HTTP/1.0\r\n\r\n"));
  await watched.until(/\r\n\r\n/);
  await stdin.close();
  const { code, stdout, stderr } = await watched.ended();
  assertEquals({ code, stderr }, { code: 0, stderr: "" });
  assertMatch(stdout, /^HTTP\/1\.\d 200 OK\r\n([^\r\n]+\r\n)*\r\n$/);

  // Both directions end, without data loss.
  const much = pattern(1_000_000, 3);
  const other = command([...args, `--forward=-=${echo.addr}`], { stdin: "piped" }).spawn();
  const [output] = await Promise.all([other.output(), new Blob([much]).stream().pipeTo(other.stdin)]);
  assertEquals({ code: output.code, stderr: text(output.stderr) }, { code: 0, stderr: "" });
  assertEquals(await sha256(new Uint8Array(output.stdout)), await sha256(much));
  await web.shutdown();
});

Deno.test("tunnel command: --forward - forwards stdin and stdout to the target of the server", async () => {
  await using echo = makeEcho();
  await using server = serveTunnel({ listen: FREE, target: echo.addr });
  const child = command(["client", "--connect", server.serverAddr, "--forward", "-"], { stdin: "piped" }).spawn();
  const stdin = child.stdin.getWriter();
  stdin.write(bytes("hello")).then(() => stdin.close()).catch(() => {});
  const { code, stdout, stderr } = await child.output();
  assertEquals({ code, stdout: text(stdout), stderr: text(stderr) }, { code: 0, stdout: "hello", stderr: "" });
});

Deno.test("tunnel command: exits with 1 when the target of --forward -=TARGET refuses or is not allowed", async () => {
  const dead = nowhere();
  await using server = serveTunnel({ listen: FREE, allow: [dead], onError() {} });
  for (const [target, why] of [[dead, /connection refused/], ["127.0.0.1:1", /not allowed/]] as const) {
    const child = command(["client", "--connect", server.serverAddr, "--forward", `-=${target}`], { stdin: "piped" })
      .spawn();
    await using watched = watch(child);
    const { code, stdout, stderr } = await promptly(watched.ended());
    assertEquals({ code, stdout }, { code: 1, stdout: "" });
    assertMatch(stderr, why);
    assertEquals(stderr.split("\n").length, 2, stderr);
    await child.stdin.close().catch(() => {});
  }
});

Deno.test("tunnel command: exits with 1 on a lost connection although stdin is open", async () => {
  await using echo = makeEcho();
  const controller = new AbortController();
  const server = serveTunnel({ listen: FREE, allow: [echo.addr], signal: controller.signal });
  const child = command(["client", "--connect", server.serverAddr, "--forward", `-=${echo.addr}`], { stdin: "piped" })
    .spawn();
  await using watched = watch(child);
  const stdin = child.stdin.getWriter();
  try {
    await stdin.write(bytes("hello"));
    await watched.until(/hello/);
    controller.abort();
    const { code, stdout, stderr } = await promptly(watched.ended());
    assertEquals({ code, stdout }, { code: 1, stdout: "hello" });
    assertMatch(stderr, /^.+\n$/);
  } finally {
    controller.abort();
    await stdin.close().catch(() => {});
    await server.finished;
  }
});

Deno.test("tunnel command: writes all of an answer to stdout after the session ended, although stdin is open", async () => {
  using listener = Deno.listen(LOOPBACK);
  const args = ["client", "--connect", at(listener.addr), "--forward", "-=echo:1"];
  const child = command(args, { stdin: "piped" }).spawn();
  const session = Session.server(await listener.accept());
  const answer = pattern(250_000);
  await answerAndHangUp(session, answer);
  // Read stdout only now: the answer is larger than the 64 KiB buffer of a pipe.
  const { stdout } = await promptly(child.output());
  assertEquals(stdout.length, answer.length);
  assertEquals(stdout, answer);
  await child.stdin.close().catch(() => {});
});

Deno.test("tunnel command: reports each of 200 connections that are reset before accept, and continues", async () => {
  const target = makeEcho();
  await using tunnel = await startBoth(target.addr);
  const { server, client } = tunnel;
  // The kernel queues connections for a stopped process.
  client.child.kill("SIGSTOP");
  await Promise.all(Array.from({ length: 200 }, () => {
    const closed = Promise.withResolvers<void>();
    const socket = net.connect(portOf(client.addr), "127.0.0.1", () => socket.resetAndDestroy());
    socket.on("close", () => closed.resolve());
    return closed.promise;
  }));
  client.child.kill("SIGCONT");
  const connection = await dial(client.addr);
  assertEquals(await say(connection, "still here"), "still here");
  connection.close();
  client.child.kill("SIGTERM");
  const { code, stderr } = await client.ended();
  assertEquals(code, 0);
  const lost = stderr.match(/^cannot accept a connection: .+$/gm) ?? [];
  assertGreater(lost.length, 0, "no accept failed, so the test proves nothing");
  assertEquals(stderr.trimEnd().split("\n").length, 200, "each connection is reported once");
  server.child.kill("SIGTERM");
  assertEquals((await server.ended()).code, 0);
  await target.close();
});

Deno.test("tunnel command: listens and connects over IPv6", { ignore: !hasIpv6() }, async () => {
  const web = serveFiles();
  await using server = await start(["server", "--listen", "[::1]:0", "--target", at(web.addr)]);
  await using client = await start(["client", "--forward", "localhost:0", "--connect", server.addr]);
  assertMatch(server.addr, /^\[::1\]:\d+$/);
  await fetchFiles(client.addr, [1000]);
  client.child.kill("SIGTERM");
  assertEquals((await client.ended()).code, 0);
  server.child.kill("SIGTERM");
  assertMatch((await server.ended()).stdout, /^connection from \[::1\]:\d+$/m);
  await web.shutdown();
});

Deno.test("tunnel command: prints one line and exits with 1 when it cannot listen, connect or bind", async () => {
  const target = nowhere();
  await using server = serveTunnel({ listen: FREE, target, onError() {} });
  const [inUse, missing, here] = await Promise.all([
    run("server", "--listen", server.serverAddr, "--target", target),
    run("client", "--forward", "0", "--connect", target),
    run("client", "--forward", server.serverAddr, "--connect", server.serverAddr),
  ]);
  assertEquals(inUse, { code: 1, stdout: "", stderr: `cannot listen on ${server.serverAddr}: address in use\n` });
  assertEquals(missing, { code: 1, stdout: "", stderr: `cannot connect to ${target}: connection refused\n` });
  assertEquals(here, inUse);
  await using allowing = serveTunnel({ listen: FREE, allow: ["*:*"], onError() {} });
  const refused = await run("client", "--connect", allowing.serverAddr, "--reverse", "0=1");
  assertEquals({ ...refused, stderr: "" }, { code: 1, stdout: "", stderr: "" });
  assertMatch(refused.stderr, /^[^\n]*not allowed\n$/);
});

Deno.test("tunnel command: prints one line and exits with 2 for a malformed command line", async () => {
  const server = "server --listen 0 --target 1";
  const client = "client --connect 1 --forward 0";
  const place = "must be HOST:PORT, [IPV6]:PORT, PORT or unix:PATH, received";
  const rule =
    "must be HOST:PORT, [IPV6]:PORT, NETWORK/BITS:PORT, PORT or unix:PATH, where HOST may be *, PORT may be " +
    "* or a range as 8000-8010, and ! in front denies, received";
  const cases: Record<string, string | RegExp> = {
    "": 'expected "server" or "client", received nothing',
    "serve": 'expected "server" or "client", received "serve"',
    "server": "missing option --listen LISTEN",
    "server --target 1": "missing option --listen LISTEN",
    "server --listen 0": "expected --target, --allow, --allow-listen or --users, received none of them",
    "server --listen :0 --target a:1": `listen ${place} ":0"`,
    "server --listen a:0 --target": "expected --target TARGET, received no value",
    "server --listen --target a:1": 'expected --listen LISTEN, received "--target"',
    "server --listen= --target a:1": "expected --listen LISTEN, received no value",
    "server --listen localhost:0 --target a:0": "target must have a port from 1 to 65535, received 0",
    "server --listen a:65536 --target a:1": "listen must have a port from 0 to 65535, received 65536",
    "server --listen ::1:0 --target a:1": `listen ${place} "::1:0"`,
    "server --listen [::g]:0 --target a:1": `listen ${place} "[::g]:0"`,
    "server --listen 0 --allow *": `allow ${rule} "*"`,
    "server --listen 0 --allow 1 --allow http://a": `allow ${rule} "http://a"`,
    "server --listen 0 --allow-listen a": `allowListen ${rule} "a"`,
    "server --listen 0.0.0.0:0 --allow *:*": /insecure/,
    "server --listen 0 --target 1 --allow 1": /allow/,
    "server --listen 0 --allow a:2-1": "allow must have a port from 1 to 65535, or a range of them, received 2-1",
    "server --listen 0 --users /nowhere/at/all": /^cannot read the file of --users: /,
    "server --listen 0 --users /dev/null": /^users must be a list in JSON: /,
    "client --connect 1 --forward 0 --user alice": "user requires secret, received only user",
    "client --connect 1 --forward 0 --user a:b --secret /dev/null": /^secret must be/,
    [`${server} --forward 0=1`]: "unknown option --forward for sluice server",
    [`${server} --cert ${SCRIPT}`]: /^cannot read the file of --cert: /,
    [`${server} --cert /dev/null`]: /cert/,
    [`${server} --key /dev/null`]: /key/,
    [`${server} --cert /dev/null --key /dev/null`]: /cert/,
    [`server --listen 0 --allow 1 --secret /nowhere/at/all`]: /^cannot read the file of --secret: /,
    [`server --listen 0 --allow 1 --secret /dev/null`]: /secret/,
    [`${server} --grace x`]: '--grace must be an integer from 0 to 999999, received "x"',
    [`${server} --grace -1`]: '--grace must be an integer from 0 to 999999, received "-1"',
    [`${server} --grace 1.5`]: '--grace must be an integer from 0 to 999999, received "1.5"',
    [`${server} --insecure=yes`]: '--insecure takes no value, received "yes"',
    [`${server} --listen 0`]: "--listen must be specified only once",
    "client --forward 0": "missing option --connect TARGET",
    "client --connect 1": "expected --forward, --reverse or --socks, received none of them",
    "client --forward a:0 --connect a:x": `connect ${place} "a:x"`,
    "client --forward a:0 --connect 256.0.0.1:1": `connect ${place} "256.0.0.1:1"`,
    "client --forward a:0 --target a:1": "unknown option --target for sluice client",
    "client --connect 1 --forward =1": `forward ${place} ""`,
    "client --connect 1 --forward 0=": `forward ${place} ""`,
    "client --connect 1 --forward 0=a": `forward ${place} "a"`,
    "client --connect 1 --forward -=a": /"a"/,
    "client --connect 1 --forward -=1 --forward -=2": /only once/,
    "client --connect 1 --reverse 0": /LISTEN=TARGET/,
    "client --connect 1 --socks 0.0.0.0:0": /insecure/,
    "client --connect 1 --socks": "expected --socks LISTEN, received no value",
    [`${client} --smux 3`]: '--smux must be 1 or 2, received "3"',
    [`${client} --ca /dev/null`]: /^ca must be certificates/,
    [`${client} --ca /nowhere/at/all`]: /^cannot read the file of --ca: /,
    [`${client} --constructor x`]: "unknown option --constructor for sluice client",
    [`${client} --no-reconnect=no`]: '--no-reconnect takes no value, received "no"',
    [`${client} --no-reconect`]: "unknown option --no-reconect for sluice client",
    [`${client} --reconnect`]: "unknown option --reconnect for sluice client",
    [`${client} --no-tls`]: "unknown option --no-tls for sluice client",
    [`${client} --forward=`]: "expected --forward LISTEN=TARGET, received no value",
    [`${client} --no-reconnect --no-reconnect`]: "--no-reconnect must be specified only once",
    [`${server} --no-reconnect`]: "unknown option --no-reconnect for sluice server",
    "toString": 'expected "server" or "client", received "toString"',
    "client a:0": 'expected an option, received "a:0"',
    "client -": 'expected an option, received "-"',
    "client -- --connect 1": 'expected an option, received "--"',
    "client --": 'expected an option, received "--"',
    "client -x": "unknown option -x for sluice client",
  };
  const lines = Object.entries(cases);
  const wrong: string[] = [];
  const check = async () => {
    for (let next; (next = lines.pop()) !== undefined;) {
      const [line, message] = next;
      const { code, stdout, stderr } = await run(...line.split(" ").filter((word) => word !== ""));
      const [, printed = ""] = /^([^\n]+) \(try --help\)\n$/.exec(stderr) ?? [];
      const isRight = typeof message === "string" ? printed === message : message.test(printed);
      if (!isRight || code !== 2 || stdout !== "") wrong.push(`${line} -> ${code}, ${stdout}${stderr}`);
    }
  };
  await Promise.all([check(), check(), check()]);
  assertEquals(wrong, []);
});

Deno.test("tunnel command: shows a status line below the log on a terminal, and clears it at the end", {
  // Deno cannot allocate a terminal; `script` does.
  ignore: Deno.build.os !== "linux" || !hasPrograms("script"),
}, async () => {
  await using target = makeEcho();
  const words = ["server", "--listen", "0", "--target", target.addr].map((word) => `'${word}'`).join(" ");
  // `exec`: Ctrl-C would also end a shell, with an exit code of its own.
  const line = `exec '${Deno.execPath()}' run --no-config -A '${SCRIPT}' ${words}`;
  const options = { stdin: "piped", stdout: "piped", stderr: "piped", env: { NO_COLOR: "1" } } as const;
  await using terminal = watch(new Deno.Command("script", { args: ["-qfec", line, "/dev/null"], ...options }).spawn());
  const [, addr] = await terminal.until(/^listening on (\S+)\r\n/m);
  const session = Session.client(await dial(addr!));
  const stream = await session.openStream();
  assertEquals(await say(stream, "hello"), "hello");
  await terminal.until(/\r.{3}1 open, 1 total; sending \d+\.\d MB\/s, receiving \d+\.\d MB\/s/);
  stream.close();
  await session.close();
  const keyboard = terminal.child.stdin.getWriter();
  await keyboard.write(bytes("\x03"));
  await terminal.until(/forwarded 1 stream over 1 connection\r\n/);
  await keyboard.close();
  const { code, stdout } = await terminal.ended();
  assertEquals(code, 0);
  // The text that remains on the screen after all clearing.
  assertEquals(stdout.split("\r\n").map((line) => line.split("\x1b[K").at(-1)).slice(2), [
    "shutting down within 30 seconds; press Ctrl-C again to exit at once",
    "forwarded 1 stream over 1 connection",
    "",
  ]);
});

Deno.test("tunnel command: --help fits on a terminal and names every option", async () => {
  for (const args of [["client", "--help"], ["-h"], ["--help"]]) {
    const { code, stdout, stderr } = await run(...args);
    assertEquals({ code, stderr }, { code: 0, stderr: "" });
    const lines = stdout.trimEnd().split("\n");
    assert(lines.length <= 36, `${lines.length} lines`);
    for (const line of lines) assert(line.length <= 80, line);
    const options = "listen target allow allow-listen cert key connect forward reverse socks tls ca smux secret grace" +
      " trace insecure no-reconnect";
    for (const option of options.split(" ")) assertMatch(stdout, new RegExp(`--${option}\\b(?!-)`));
    for (const word of ["server", "client", "$SLUICE_SECRET"]) assert(stdout.includes(word), word);
  }
});
