/** The log, the status and the PROXY protocol of the tunnel command, in processes of its own. */

import { assert, assertEquals, assertGreater, assertLessOrEqual, assertMatch } from "@std/assert";
import { serveTunnel } from "../tunnel.ts";
import { hasPrograms, makeFolder, run, watch } from "./programs.ts";
import { bytes, text, writeAll } from "./support.ts";
import { at, dial, FREE, isEnded, makeEcho, promptly, say } from "./tunnel_support.ts";

const SCRIPT = new URL("../tunnel.ts", import.meta.url).href;
const TIME = "\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d";

/** Starts the command. */
function start(args: string[], stdin: "null" | "piped" = "null") {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-config", "--no-prompt", "-A", SCRIPT, ...args],
    stdin,
    stdout: "piped",
    stderr: "piped",
    env: { NO_COLOR: "1" },
  }).spawn();
  return watch(child);
}

/** Returns the address of the first line that matches. */
async function addressOf(watched: ReturnType<typeof start>, pattern = /listening on (\S+:\d+)/): Promise<string> {
  return (await watched.until(new RegExp(`${pattern.source}.*\n`)))[1]!;
}

/** Parses the lines of a log in JSON. */
const parseLines = (log: string) => log.trimEnd().split("\n").map((line) => JSON.parse(line));

/** Connects, sends 5 bytes, receives them, and returns the address that it connected from. */
async function visit(addr: string): Promise<string> {
  using connection = await dial(addr);
  assertEquals(await say(connection, "hello"), "hello");
  return at(connection.localAddr as Deno.NetAddr);
}

Deno.test("tunnel command: --log text writes lines with a time, destinations, and each ended connection", async () => {
  await using echo = makeEcho();
  await using server = start(["server", "--listen", "0", "--target", echo.addr, "--log", "text"]);
  const connect = await addressOf(server);
  await using client = start(["client", "--connect", connect, "--forward", "0", "--log=text"]);
  const from = await visit(await addressOf(client));
  await client.until(/ closed\n/);
  await server.until(/ closed\n/);
  const here = await client.end("SIGTERM");
  const there = await server.end("SIGTERM");
  for (const { code, stdout, stderr } of [there, here]) {
    assertEquals([code, stderr], [0, ""]);
    for (const line of stdout.trimEnd().split("\n")) assertMatch(line, new RegExp(`^${TIME}Z .+`));
  }
  assertMatch(there.stdout, new RegExp(`^${TIME}Z listening on ${connect}, leads to ${echo.addr}\n`));
  assertMatch(here.stdout, new RegExp(`^${TIME}Z ${from} > the server 5B/5B \\S+ closed$`, "m"));
  assertMatch(there.stdout, new RegExp(`^${TIME}Z 127\\.0\\.0\\.1:\\d+ > ${echo.addr} 5B/5B \\S+ closed$`, "m"));
  for (const line of there.stdout.split("\n")) {
    if (line.endsWith("closed")) assertLessOrEqual(line.length, 80, line);
  }
});

Deno.test("tunnel command: --log json writes an object on each line, errors to stderr", async (test) => {
  await using echo = makeEcho();
  await using server = start(["server", "--listen", "0", "--allow", echo.addr, "--log", "json"]);
  const connect = await addressOf(server, /"listenAddr":"([^"]+)"/);
  const forwards = ["--forward", `0=${echo.addr}`, "--forward", "0=127.0.0.1:1"];
  await using client = start(["client", "--connect", connect, ...forwards, "--log", "json"]);
  await client.until(/(.*\n){2}/);
  const [{ listenAddr, to }, refused] = parseLines(client.printed.stdout);
  assertEquals([to, refused.to], [echo.addr, "127.0.0.1:1"]);
  const from = await visit(listenAddr);
  using connection = await dial(refused.listenAddr);
  assertEquals(await isEnded(connection), true);
  await client.until(/"finished".*\n/);
  await client.until(/\n/, "stderr");
  client.child.kill("SIGTERM");
  const { code, stdout, stderr } = await client.ended();
  assertEquals(code, 0);
  const entries = parseLines(stdout);
  assertEquals(entries.map(({ type }) => type), ["listening", "listening", "finished", "shutdown", "total"]);
  for (const { time } of entries) assertMatch(time, new RegExp(`^${TIME}\\.\\d{3}Z$`));
  const { time: _, duration: __, ...finished } = entries[2];
  assertEquals(finished, {
    ...{ type: "finished", kind: "forward", from, to: echo.addr, sent: 5, received: 5, outcome: "closed" },
  });
  assertEquals(entries[4].streams, 1);
  const [error] = parseLines(stderr);
  assertEquals([error.type, /not allowed/.test(error.message)], ["error", true]);
  await promptly(server.until(/"disconnected".*\n/));
  const [connected, left] = ["connected", "disconnected"].map((name) =>
    parseLines(server.printed.stdout).find(({ type }) => type === name)
  );
  assertEquals([left.clientAddr, typeof left.duration, left.error], [connected.clientAddr, "number", undefined]);
  await test.step({
    name: "jq selects entries",
    ignore: !hasPrograms("jq"),
    async fn() {
      const query = ["-r", 'select(.type == "finished") | [.from, .to, .outcome] | join(" ")'];
      assertEquals(text(await run("jq", query, { input: bytes(stdout) })), `${from} ${echo.addr} closed\n`);
    },
  });
});

Deno.test("tunnel command: without --log, an ended connection and a client that leaves write no line", async () => {
  await using echo = makeEcho();
  await using server = start(["server", "--listen", "0", "--target", echo.addr]);
  const connect = await addressOf(server);
  await using client = start(["client", "--connect", connect, "--forward", "0"]);
  await visit(await addressOf(client));
  client.child.kill("SIGTERM");
  const { stdout } = await client.ended();
  assertMatch(stdout, /^listening on \S+:\d+\nshutting down .*\nforwarded 1 stream over 1 connection\n$/);
  server.child.kill("SIGTERM");
  assertMatch((await server.ended()).stdout, /^listening on .*\nconnection from .*\nshutting down .*\nforwarded .*\n$/);
});

Deno.test("tunnel command: --log json reports stdin and stdout as a connection, on stderr", async () => {
  await using echo = makeEcho();
  await using server = serveTunnel({ listen: FREE, allow: [echo.addr], onError() {} });
  const args = ["client", "--connect", server.serverAddr, "--log", "json"];
  const watched = start([...args, "--forward", `-=${echo.addr}`], "piped");
  const writer = watched.child.stdin.getWriter();
  await writer.write(bytes("hello"));
  await writer.close();
  const { code, stdout, stderr } = await watched.ended();
  assertEquals([code, stdout], [0, "hello"]);
  const { time: _, duration: __, ...entry } = parseLines(stderr).find(({ type }) => type === "finished");
  assertEquals(entry, {
    ...{ type: "finished", kind: "stdio", from: "stdin", to: echo.addr, sent: 5, received: 5, outcome: "closed" },
  });
  const refused = await start([...args, "--forward=-=127.0.0.1:1"]).ended();
  assertEquals(refused.code, 3);
  assertEquals(parseLines(refused.stderr).map(({ type }) => type), ["error"]);
});

Deno.test("tunnel command: --status serves the pages of each end and prints its address", async () => {
  await using echo = makeEcho();
  await using server = start(["server", "--listen", "0", "--target", echo.addr, "--status", "0"]);
  const connect = await addressOf(server);
  await using client = start(["client", "--connect", connect, "--forward", "0", "--status=127.0.0.1:0"]);
  await visit(await addressOf(client));
  for (const [end, watched] of [["server", server], ["client", client]] as const) {
    const url = await addressOf(watched, /status at (http:\S+)/);
    const get = async (path: string) => {
      const response = await fetch(new URL(path, url), { headers: { connection: "close" } });
      return { status: response.status, body: await response.text() };
    };
    assertEquals(await get("/healthz"), { status: 200, body: "ok\n" });
    assertEquals(JSON.parse((await get("/status")).body).end, end);
    assertMatch((await get("/metrics")).body, /^sluice_streams_total\{.*\} 1$/m);
  }
});

Deno.test("tunnel command: --accept-proxy reads the header of a proxy", async () => {
  await using echo = makeEcho();
  const args = ["--target", echo.addr, "--accept-proxy", "127.0.0.0/8", "--accept-proxy=::1"];
  await using server = start(["server", "--listen", "0", ...args]);
  using connection = await dial(await addressOf(server));
  await writeAll(connection, bytes("PROXY TCP4 192.0.2.1 198.51.100.2 8000 443\r\n"));
  await writeAll(connection, new Uint8Array([2, 3, 0, 0, 0, 0, 0, 0])); // NOP
  await promptly(server.until(/^connection from 192\.0\.2\.1:8000$/m));
});

Deno.test("tunnel command: exits with 2 for a malformed --log, --status, --accept-proxy or ,proxy", async () => {
  const server = ["server", "--listen", "0", "--target", "1"];
  for (
    const [args, message] of [
      [[...server, "--log", "yaml"], '--log must be text or json, received "yaml"'],
      [
        [...server, "--status", "0.0.0.0:9100"],
        'status must be a loopback address, received "0.0.0.0:9100": accepting',
      ],
      [[...server, "--accept-proxy", "10/8"], '--accept-proxy must be an IP address or ADDRESS/BITS, received "10/8"'],
      [["client", "--connect=1", "--accept-proxy=::1", "--socks=0"], "unknown option --accept-proxy for sluice client"],
      [
        ["client", "--connect=1", "--forward=-=a:1,proxy"],
        "--forward - has no visitor whose address ,proxy could send",
      ],
    ] as const
  ) {
    const { code, stdout, stderr } = await start([...args]).ended();
    assertEquals([code, stdout], [2, ""]);
    assert(stderr.startsWith(message), stderr);
  }
});

const example = (name: string) => Deno.readTextFile(new URL(`../examples/${name}`, import.meta.url));

Deno.test("examples/sluice.service and compose.yaml use options that the command has", async () => {
  const { stdout: help } = await start(["--help"]).ended();
  for (const name of ["sluice.service", "compose.yaml"]) {
    const text = (await example(name)).replaceAll(/^.*#.*$/gm, "");
    const options = [...text.matchAll(/(?<=\s)--[\w-]+/g)].map(([option]) => option);
    assertGreater(options.length, 4);
    // The options of Deno have a value after an equals sign, or are its permissions.
    const own = options.filter((option) => !option.startsWith("--allow-") || option === "--allow-listen");
    assertEquals(own.filter((option) => !new RegExp(`${option}[ ,]`).test(help)), [], name);
  }
});

Deno.test("systemd-analyze accepts examples/sluice.service", { ignore: !hasPrograms("systemd-analyze") }, async () => {
  await using folder = await makeFolder("systemd");
  const path = `${folder.path}/sluice.service`;
  // The only line that depends on the machine: the program must exist.
  await Deno.writeTextFile(path, (await example("sluice.service")).replace("/usr/local/bin/sluice", "/bin/true"));
  await run("systemd-analyze", ["verify", path]);
});
