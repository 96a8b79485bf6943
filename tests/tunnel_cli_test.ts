/** The tunnel command, in processes of its own. */

import {
  assert,
  assertEquals,
  assertGreater,
  assertLess,
  assertMatch,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { pooledMap } from "@std/async";
import * as net from "node:net";
import { Session } from "../mod.ts";
import { openTunnel, serveTunnel, TunnelRefusedError } from "../tunnel.ts";
import { textFor } from "../tunnel/usage.ts";
import { hasPrograms, kill, lines, makeFolder, watch } from "./programs.ts";
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
  makeTarget,
  nowhere,
  portOf,
  promptly,
  say,
  serveFiles,
  SIZES,
  socksRequest,
} from "./tunnel_support.ts";
import { LONG, within } from "./within.ts";

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
  await using tunnel = await startBoth(target.addr, "--no-reconnect", "--no-resume");
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
  await client.until(/^the connection to \S+ was lost: /m);
  const waiting = fetchFiles(client.addr, [2, 20_000]);

  await using second = await start(["server", "--listen", first.addr, ...args]);
  await client.until(new RegExp(`^reconnected to ${first.addr} after \\S+$`, "m"));
  await waiting;
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
  await client.until(/^the connection to \S+ was lost: /m);
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
      const connection = await dial(client.addr);
      assertEquals(await say(connection, "hello"), "hello");
      // The server would keep what belongs to a client that was killed, until the client could resume no more.
      connection.close();
      client.child.kill("SIGTERM");
      await client.ended();
    }
  }
  const ask = ["client", "--connect", byFile.addr, "--forward", `0=${echo.addr}`];
  const stranger = await run(...ask, "--secret", wrong);
  assertEquals([stranger.code, stranger.stdout], [3, ""]);
  assertMatch(stranger.stderr, /^[^\n]*wrong secret\n$/);
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
  assertEquals(refused.code, 3);
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
  assertEquals({ code, stdout }, { code: 3, stdout: "" });
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

Deno.test("tunnel command: exits with 3 when the target of --forward -=TARGET refuses or is not allowed", async () => {
  const dead = nowhere();
  await using server = serveTunnel({ listen: FREE, allow: [dead], onError() {} });
  for (const [target, why] of [[dead, /connection refused/], ["127.0.0.1:1", /not allowed/]] as const) {
    const child = command(["client", "--connect", server.serverAddr, "--forward", `-=${target}`], { stdin: "piped" })
      .spawn();
    await using watched = watch(child);
    const { code, stdout, stderr } = await promptly(watched.ended());
    assertEquals({ code, stdout }, { code: 3, stdout: "" });
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
  const args = ["client", "--connect", at(listener.addr), "--no-resume", "--forward", "-=echo:1"];
  const child = command(args, { stdin: "piped" }).spawn();
  const accepting = within(LONG, listener.accept(), () => `The command has not connected after ${LONG} ms`);
  const session = Session.server(await accepting);
  const answer = pattern(250_000);
  await answerAndHangUp(session, answer);
  // Read stdout only now: the answer is larger than the 64 KiB buffer of a pipe.
  const { stdout } = await promptly(child.output());
  assertEquals(stdout.length, answer.length);
  assertEquals(stdout, answer);
  await child.stdin.close().catch(() => {});
});

Deno.test("tunnel command: skips connections that are reset before they are accepted, and continues", async () => {
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
  const reported = stderr.split("\n").filter((line) => line !== "");
  assertEquals(reported.filter((line) => !/^the connection from 127\.0\.0\.1:\d+ failed: /.test(line)), []);
  assertLess(reported.length, 200, "all were accepted, so the test proves nothing");
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

Deno.test("tunnel command: prints one line and exits with 1 when it cannot listen or connect, with 3 when it must not bind", async () => {
  const target = nowhere();
  await using server = serveTunnel({ listen: FREE, target, onError() {} });
  const [inUse, missing, here] = await Promise.all([
    run("server", "--listen", server.serverAddr, "--target", target),
    run("client", "--no-retry", "--forward", "0", "--connect", target),
    run("client", "--forward", server.serverAddr, "--connect", server.serverAddr),
  ]);
  assertEquals(inUse, { code: 1, stdout: "", stderr: `cannot listen on ${server.serverAddr}: address in use\n` });
  assertEquals(missing, { code: 1, stdout: "", stderr: `cannot connect to ${target}: connection refused\n` });
  assertEquals(here, inUse);
  await using allowing = serveTunnel({ listen: FREE, allow: ["*:*"], onError() {} });
  const refused = await run("client", "--connect", allowing.serverAddr, "--reverse", "0=1");
  assertEquals({ ...refused, stderr: "" }, { code: 3, stdout: "", stderr: "" });
  assertMatch(refused.stderr, /^[^\n]*not allowed\n$/);
});

Deno.test("tunnel command: prints one line and exits with 2 for a malformed command line", async () => {
  const server = "server --listen 0 --target 1";
  const client = "client --connect 1 --forward 0";
  const place = "must be HOST:PORT, [IPV6]:PORT, PORT or unix:PATH, received";
  const command = 'expected "server", "client", "check", "cert" or "hash", received';
  const rule =
    "must be HOST:PORT, [IPV6]:PORT, NETWORK/BITS:PORT, PORT or unix:PATH, where HOST may be *, PORT may be " +
    "* or a range as 8000-8010, ! in front denies, and udp: before HOST is for datagrams, received";
  const cases: Record<string, string | RegExp> = {
    "": `${command} nothing`,
    "serve": `${command} "serve": did you mean sluice server?`,
    "toString": `${command} "toString"`,
    "-L 8080:host:80": `${command} "-L": write sluice client --forward 8080=host:80`,
    "server": "missing option --listen LISTEN",
    "server --target 1": "missing option --listen LISTEN",
    "server --listen 0": "expected --target, --allow, --allow-listen or --users, received none of them",
    "server --listen :9000 --target a:1": `--listen ${place} ":9000": write --listen 0.0.0.0:9000`,
    "server --listen *:9000 --target a:1": `--listen ${place} "*:9000": write --listen 0.0.0.0:9000`,
    "server --listen a:0 --target": "expected --target TARGET, received no value",
    "server --listen --target a:1": 'expected --listen LISTEN, received "--target"',
    "server --listen= --target a:1": "expected --listen LISTEN, received no value",
    "server --listen localhost:0 --target a:0": "--target must have a port from 1 to 65535, received 0",
    "server --listen a:65536 --target a:1": "--listen must have a port from 0 to 65535, received 65536",
    "server --listen ::1:0 --target a:1": `--listen ${place} "::1:0": IPv6 needs brackets: write --listen [::1]:0`,
    "server --listen [::g]:0 --target a:1": `--listen ${place} "[::g]:0"`,
    "server --listen 0 --allow *": `--allow ${rule} "*": write --allow '*:*'`,
    "server --listen 0 --allow localhost": `--allow ${rule} "localhost": it has no port: write --allow localhost:PORT`,
    "server --listen 0 --allow a:1,b:2": `--allow ${rule} "a:1,b:2": write --allow a:1 --allow b:2`,
    "server --listen 0 --allow a:1 b:2": 'expected an option, received "b:2": write --allow b:2',
    "server --listen 0 --allow 1 --allow http://a": /"http:\/\/a": it must not be a URL: write --allow a:80$/,
    "server --listen 0 --allow-listen a": `--allow-listen ${rule} "a": it has no port: write --allow-listen a:PORT`,
    "server --listen 0 --alow a:1": "unknown option --alow for sluice server: did you mean --allow?",
    "server --listen 0.0.0.0:0 --allow *:*": /insecure/,
    "server --listen 0 --target 1 --allow 1": /allow/,
    "server --listen 0 --allow 1 --secret hunter2":
      "cannot read the file of --secret: no such file: the secret must be in a file, or in $SLUICE_SECRET",
    "server --listen 0 --allow 1 --secret /dev/null": /secret/,
    [`${server} --forward 0=1`]: "unknown option --forward for sluice server: --forward is an option of sluice client",
    [`${server} --cert ${SCRIPT}`]: /^cannot read the file of --cert: no such file: /,
    "server --listen 0 --allow a:2-1": "--allow must have a port from 1 to 65535, or a range of them, received 2-1",
    "server --listen 0 --users /nowhere/at/all": /^cannot read the file of --users: /,
    "server --listen 0 --users /dev/null": /^users must be a list in JSON: /,
    "client --connect 1 --forward 0 --user alice": /^user requires secret, received only user/,
    "client --connect 1 --forward 0 --user a:b --secret /dev/null": /^secret must be/,
    [`${server} --cert /dev/null`]: /cert/,
    [`${server} --key /dev/null`]: /key/,
    [`${server} --cert /dev/null --key /dev/null`]: /cert/,
    [`${server} --keepalive 31`]: "--keepalive must be at most --timeout, received 31 and 30 seconds",
    [`${client} --keepalive 6 --timeout 5`]: "--keepalive must be at most --timeout, received 6 and 5 seconds",
    [`${client} --timeout 1m`]: '--timeout must be an integer from 0 to 999999, received "1m": write --timeout 60',
    [`${client} --max-streams 0`]: '--max-streams must be an integer from 1 to 2147483647, received "0"',
    [`${server} --max-receive-buffer 2048`]: '--max-receive-buffer must be an integer from 1 to 2047, received "2048"',
    "check": "missing option --connect TARGET",
    "check --connect a": `--connect ${place} "a": it has no port: write --connect a:PORT`,
    "check --connect 1 --socks 0": "unknown option --socks for sluice check: --socks is an option of sluice client",
    "check --connect 10.0.0.1:1 --secret hunter2":
      "cannot read the file of --secret: no such file: the secret must be in a file, or in $SLUICE_SECRET",
    "check --connect 1 --smux 3": '--smux must be 1 or 2, received "3"',
    [`${server} --grace x`]: '--grace must be an integer from 0 to 999999, received "x"',
    [`${server} --grace -1`]: '--grace must be an integer from 0 to 999999, received "-1"',
    [`${server} --grace 1.5`]: '--grace must be an integer from 0 to 999999, received "1.5"',
    [`${server} --grace 10s`]: '--grace must be an integer from 0 to 999999, received "10s": write --grace 10',
    [`${server} --insecure=yes`]: '--insecure takes no value, received "yes"',
    [`${server} --listen 0`]: "--listen must be specified only once",
    [`${server} --no-reconnect`]: /: --no-reconnect is an option of sluice client$/,
    "client --forward 0": "missing option --connect TARGET",
    "client --connect 1": "expected --forward, --reverse, --socks, --http or --reverse-socks, received none of them",
    "client --connect localhost --forward 0":
      `--connect ${place} "localhost": it has no port: write --connect localhost:PORT`,
    "client --forward a:0 --connect a:x": `--connect ${place} "a:x": the port must be a number: write --connect a:PORT`,
    "client --forward a:0 --connect 256.0.0.1:1": `--connect ${place} "256.0.0.1:1"`,
    "client --forward a:0 --target a:1":
      "unknown option --target for sluice client: --target is an option of sluice server",
    "client --connect 1 --forward 8080:localhost:80":
      `--forward ${place} "8080:localhost:80": write --forward 8080=localhost:80`,
    "client --connect 1 -L 8080:host:80": "unknown option -L for sluice client: write --forward 8080=host:80",
    "client --connect 1 -R 8000:host:80": "unknown option -R for sluice client: write --reverse 8000=host:80",
    "client --connect 1 -D 1080": "unknown option -D for sluice client: write --socks 1080",
    "client --connect 1 --forward =1": `--forward ${place} ""`,
    "client --connect 1 --forward 0=": `--forward ${place} ""`,
    "client --connect 1 --forward 0=a": `--forward ${place} "a": it has no port: write --forward 0=a:PORT`,
    "client --connect 1 --forward -=a": `--forward ${place} "a": it has no port: write --forward -=a:PORT`,
    "client --connect 1 --forward -=1 --forward -=2": /only once/,
    "client --connect 1 --reverse 8000": '--reverse must be LISTEN=TARGET, received "8000": write --reverse 8000=PORT',
    "client --connect 1 --socks 0.0.0.0:0": /insecure/,
    "client --connect 1 --socks": "expected --socks LISTEN, received no value",
    [`${client} --smux 3`]: '--smux must be 1 or 2, received "3"',
    [`${client} --ca /dev/null`]: /^ca must be certificates/,
    [`${client} --ca /nowhere/at/all`]: "cannot read the file of --ca: no such file",
    [`${client} --constructor x`]: "unknown option --constructor for sluice client",
    [`${client} --no-reconnect=no`]: '--no-reconnect takes no value, received "no"',
    [`${client} --no-reconect`]: /: did you mean --no-reconnect\?$/,
    [`${client} --reconnect`]: "unknown option --reconnect for sluice client: it is the default",
    [`${client} --no-tls`]: "unknown option --no-tls for sluice client",
    [`${client} --forward=`]: "expected --forward LISTEN=TARGET, received no value",
    [`${client} --no-reconnect --no-reconnect`]: "--no-reconnect must be specified only once",
    "client a:0": 'expected an option, received "a:0"',
    "client -": 'expected an option, received "-"',
    "client -- --connect 1": 'expected an option, received "--"',
    "client --": 'expected an option, received "--"',
    "client -x": "unknown option -x for sluice client",
    "cert --host a:80": '--host must be a DNS name or an IP address, received "a:80": write --host a',
    "cert --grace 1": /^unknown option --grace for sluice cert/,
  };
  const lines = Object.entries(cases);
  const wrong: string[] = [];
  const check = async () => {
    for (let next; (next = lines.pop()) !== undefined;) {
      const [line, message] = next;
      const { code, stdout, stderr } = await run(...line.split(" ").filter((word) => word !== ""));
      const [, printed = ""] = /^([^\n]+?)(?: \(try --help\))?\n$/.exec(stderr) ?? [];
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
  await terminal.until(/1 open, 1 total; sending \d+\.\d MB\/s, receiving \d+\.\d MB\/s/);
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

Deno.test("tunnel command: prints its help and its version on stdout", async () => {
  for (const args of [["client", "--help"], ["-h"], ["help", "server"], ["--version"]]) {
    assertEquals(await run(...args), { code: 0, stdout: `${textFor(args)}\n`, stderr: "" });
  }
});

Deno.test(
  "tunnel command: exits with 1 when its output cannot be written",
  { ignore: Deno.build.os !== "linux" },
  async () => {
    await using target = makeTarget((connection) => writeAll(connection, bytes("answer")));
    await using server = serveTunnel({ listen: FREE, target: target.addr, onError() {}, onEvent() {} });
    const runFull = async (...args: string[]) => {
      const shell = ["-c", 'echo word | "$@" > /dev/full', "sh", Deno.execPath(), "run", "--no-config", "-A", SCRIPT];
      const { code, stderr } = await new Deno.Command("sh", { args: [...shell, ...args], env: { NO_COLOR: "1" } })
        .output();
      return [code, text(stderr)];
    };
    const full = [1, "cannot write to stdout: no space left on device\n"];
    assertEquals(await runFull("hash", "alice"), full);
    assertEquals(await runFull("--help"), full);
    assertEquals(await runFull("client", "--connect", server.serverAddr, "--forward", "-"), full);
  },
);

Deno.test("tunnel command: names stdin when it cannot be read", { ignore: Deno.build.os !== "linux" }, async () => {
  await using echo = makeEcho();
  await using server = serveTunnel({ listen: FREE, target: echo.addr, onError() {}, onEvent() {} });
  const line = ["run", "--no-config", "-A", SCRIPT, "client", "--connect", server.serverAddr, "--forward", "-"];
  const args = ["-c", '"$@" < /', "sh", Deno.execPath(), ...line];
  const { code, stderr } = await new Deno.Command("sh", { args, env: { NO_COLOR: "1" } }).output();
  assertEquals([code, text(stderr)], [1, "cannot read stdin: is a directory\n"]);
});

Deno.test("tunnel command: exits with 0 when the reader of its output has ended, as head does", async () => {
  const child = command(["hash", "alice"], { stdin: "piped" }).spawn();
  await child.stdout.cancel();
  const stdin = child.stdin.getWriter();
  await stdin.write(bytes("word"));
  await stdin.close();
  const [{ code }, stderr] = await Promise.all([child.status, new Response(child.stderr).text()]);
  assertEquals([code, stderr], [0, ""]);
});

Deno.test("tunnel command: a server whose log is not read serves on, and ends on a signal", async () => {
  await using echo = makeEcho();
  const child = command(["server", "--listen", "0", "--allow", echo.addr]).spawn();
  await using disposables = new AsyncDisposableStack();
  disposables.defer(async () => {
    kill(child);
    await child.stdout.cancel().catch(() => {});
    await child.stderr.cancel().catch(() => {});
  });
  const reader = child.stdout.getReader({ mode: "byob" });
  const { value } = await reader.read(new Uint8Array(100), { min: "listening on 127.0.0.1:1\n".length });
  reader.releaseLock();
  const client = disposables.use(
    await openTunnel({ connect: text(value!).trimEnd().split(" ")[2]!, reconnect: false }),
  );
  // A refusal logs more than 70 bytes, and a pipe holds 64 KiB.
  for (let refusals = 0; refusals < 1500; refusals++) {
    await assertRejects(() => promptly(client.connect("10.0.0.1:80")), TunnelRefusedError);
  }
  const stream = await promptly(client.connect(echo.addr));
  assertEquals(await say(stream, "hello"), "hello");
  stream.close();
  child.kill("SIGTERM");
  assertEquals((await promptly(child.status)).code, 0);
});

Deno.test("tunnel command: a log that is read after the signal has all lines, the last ones too", async () => {
  await using server = serveTunnel({ listen: FREE, allow: ["127.0.0.1:1"], onError() {} });
  const child = command(["client", "--connect", server.serverAddr, "--forward", "0=10.0.0.1:80"]).spawn();
  const printing = lines(child.stdout).getReader();
  const addr = (await printing.read()).value!.slice("listening on ".length);
  const refusals = 1500;
  const refused = pooledMap(50, Array.from({ length: refusals }), async () => {
    using connection = await dial(addr);
    return await promptly(isEnded(connection));
  });
  assertEquals((await Array.fromAsync(refused)).includes(false), false);
  child.kill("SIGTERM");
  assertMatch((await printing.read()).value!, /^shutting down/);
  const stderr = await new Response(child.stderr).text();
  assertEquals(stderr.match(/^The peer refused .*\n/gim)?.length, refusals, stderr.slice(-500));
  assertMatch((await printing.read()).value!, /^forwarded 0 streams/);
  assertEquals((await printing.read()).done, true);
  assertEquals((await child.status).code, 0);
});

Deno.test("tunnel command: --forward -=TARGET ends when the target has closed, although stdin is open", async () => {
  for (const smux of ["1", "2"]) {
    await using target = makeTarget(async (connection) => void await connection.write(bytes("banner\n")));
    await using server = serveTunnel({ listen: FREE, allow: [target.addr], onError() {} });
    const args = ["client", "--connect", server.serverAddr, "--forward", `-=${target.addr}`, "--smux", smux];
    await using watched = watch(command(args, { stdin: "piped" }).spawn());
    const { code, stdout, stderr } = await promptly(watched.ended());
    assertEquals({ code, stdout, stderr }, { code: 0, stdout: "banner\n", stderr: "" });
    await watched.child.stdin.close().catch(() => {});
  }
});

Deno.test("tunnel command: --forward -=TARGET sends all of a file to a target that has ended its direction", {
  ignore: Deno.build.os === "windows",
}, async () => {
  await using folder = await makeFolder("stdio");
  const file = pattern(5_000_000, 7);
  await Deno.writeFile(`${folder.path}/file`, file);
  const received = Promise.withResolvers<Uint8Array<ArrayBuffer>>();
  await using target = makeTarget(async (connection) => {
    await connection.closeWrite();
    received.resolve(await readAll(connection));
  });
  await using server = serveTunnel({ listen: FREE, allow: [target.addr] });
  const args = ["client", "--connect", server.serverAddr, "--forward", `-=${target.addr}`];
  const redirected = ["-c", `exec "$0" "$@" < "${folder.path}/file"`, Deno.execPath()];
  const child = new Deno.Command("sh", { args: [...redirected, "run", "--no-config", "-A", SCRIPT, ...args] });
  assertEquals((await child.output()).code, 0);
  assertEquals(await sha256(await received.promise), await sha256(file));
});

Deno.test("tunnel command: --forward -=TARGET prints an answer that comes after the end of stdin", async () => {
  await using target = makeTarget(async (connection) => {
    const asked = text(await readAll(connection));
    await connection.write(bytes(`answer to ${asked}`));
  });
  await using server = serveTunnel({ listen: FREE, allow: [target.addr] });
  const args = ["client", "--connect", server.serverAddr, "--forward", `-=${target.addr}`];
  const child = command(args, { stdin: "piped" }).spawn();
  const stdin = child.stdin.getWriter();
  stdin.write(bytes("a question")).then(() => stdin.close()).catch(() => {});
  const { code, stdout, stderr } = await promptly(child.output());
  assertEquals([code, text(stdout), text(stderr)], [0, "answer to a question", ""]);
});

Deno.test("tunnel command: cert makes the files that --cert, --key and --ca accept, and overwrites none", async () => {
  await using folder = await makeFolder("cert");
  const files = [`${folder.path}/c.pem`, `${folder.path}/k.pem`] as const;
  const [cert, key] = files;
  const args = ["cert", "--host", "localhost", "--host=127.0.0.1", "--cert", cert, "--key", key];
  const made = await run(...args);
  assertEquals([made.code, made.stderr], [0, ""]);
  assertMatch(made.stdout, /^wrote \S+ and \S+ for localhost, 127\.0\.0\.1; valid until \d{4}-\d\d-\d\d\n/);
  if (Deno.build.os !== "windows") assertEquals((await Deno.stat(key)).mode! & 0o777, 0o600);
  await using echo = makeEcho();
  await using server = await start(["server", "--listen=0", "--allow", echo.addr, "--cert", cert, "--key", key]);
  const ask = ["--connect", server.addr.replace("127.0.0.1", "localhost"), "--forward", `0=${echo.addr}`];
  await using client = await start(["client", ...ask, "--ca", cert]);
  using connection = await dial(client.addr);
  assertEquals(await say(connection, "hello"), "hello");

  const contents = () => Promise.all(files.map((file) => Deno.readTextFile(file)));
  const before = await contents();
  const again = await run(...args);
  const hint = "the file exists; remove it, or choose another with --key";
  assertEquals(again, { code: 1, stdout: "", stderr: `cannot write ${key}: ${hint}\n` });
  assertEquals(await contents(), before);
  // The certificate exists, the key does not: no key is left behind.
  await Deno.remove(key);
  assertEquals((await run(...args)).code, 1);
  assertEquals(Array.from(Deno.readDirSync(folder.path), ({ name }) => name), ["c.pem"]);
});

Deno.test("tunnel command: cert writes cert.pem and key.pem for this machine if no option names others", async () => {
  await using folder = await makeFolder("cert");
  const { code, stdout } = await command(["cert"], { cwd: folder.path }).output();
  assertEquals(code, 0);
  assertMatch(text(stdout), /^wrote cert\.pem and key\.pem for localhost, 127\.0\.0\.1, ::1; /);
  assertEquals(Array.from(Deno.readDirSync(folder.path), ({ name }) => name).sort(), ["cert.pem", "key.pem"]);
});
