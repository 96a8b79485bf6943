/** A client behind real proxies: tinyproxy and microsocks. */

import { assertEquals, assertMatch, assertRejects } from "@std/assert";
import { openTunnel, type OpenTunnelOptions, serveTunnel } from "../tunnel.ts";
import { findProgram, hasPrograms, makeFolder, watch } from "./programs.ts";
import { freePort } from "./support.ts";
import {
  dial,
  fetchFiles,
  FREE,
  makeEcho,
  makeLog,
  makeProxy,
  portOf,
  promptly,
  say,
  serveFiles,
  SIZES,
} from "./tunnel_support.ts";

const readTls = (name: string) => Deno.readTextFileSync(new URL(`fixtures/tls/${name}`, import.meta.url));
const [cert, key, ca] = ["localhost.pem", "localhost.key", "ca.pem"].map(readTls) as [string, string, string];

const [USER, PASSWORD] = ["alice", "open-sesame"];

/** A proxy in a process. */
interface RunningProxy extends AsyncDisposable {
  scheme: string;
  addr: string;
}

function spawn(name: string, args: string[]) {
  const program = findProgram(name)!;
  return watch(new Deno.Command(program, { args, stdin: "null", stdout: "piped", stderr: "piped" }).spawn());
}

async function startTinyproxy(): Promise<RunningProxy> {
  const folder = await makeFolder("tinyproxy");
  const port = freePort();
  const lines = [`Port ${port}`, "Listen 127.0.0.1", `BasicAuth ${USER} ${PASSWORD}`, "Timeout 600", "LogLevel Info"];
  await Deno.writeTextFile(`${folder.path}/config`, `${lines.join("\n")}\n`);
  const running = spawn("tinyproxy", ["-d", "-c", `${folder.path}/config`]);
  await promptly(running.until(/Accepting connections|Starting main loop/));
  const dispose = async () => {
    await running.end();
    await folder[Symbol.asyncDispose]();
  };
  return { scheme: "http", addr: `127.0.0.1:${port}`, [Symbol.asyncDispose]: dispose };
}

/** It does not print when it listens: the first client tries until it does. */
function startMicrosocks(): RunningProxy {
  const port = freePort();
  const running = spawn("microsocks", ["-i", "127.0.0.1", "-p", `${port}`, "-u", USER, "-P", PASSWORD]);
  const dispose = async () => void await running.end();
  return { scheme: "socks5", addr: `127.0.0.1:${port}`, [Symbol.asyncDispose]: dispose };
}

const PROXIES = { tinyproxy: startTinyproxy, microsocks: startMicrosocks };

for (const [name, startProxy] of Object.entries(PROXIES)) {
  const ignore = !hasPrograms(name);
  const suffix = ignore ? ` (${name} is not installed)` : "";

  for (const isTls of [false, true]) {
    const what = `openTunnel() forwards, reverses and resumes through ${name}, ${isTls ? "with" : "without"} TLS`;
    Deno.test(what + suffix, { ignore }, async () => {
      await using proxy = await startProxy();
      await using cable = makeProxy(proxy.addr);
      await using echo = makeEcho();
      await using web = serveFiles();
      await using server = serveTunnel({
        listen: FREE,
        allow: ["127.0.0.1:*"],
        allowListen: ["127.0.0.1:*"],
        secret: "secret",
        onError() {},
        ...isTls ? { cert, key } : {},
      });
      const log = makeLog();
      await using client = await promptly(openTunnel({
        connect: `localhost:${portOf(server.serverAddr)}`,
        proxy: `${proxy.scheme}://${USER}:${PASSWORD}@${cable.addr}`,
        secret: "secret",
        forward: [`0=127.0.0.1:${web.addr.port}`, `0=${echo.addr}`],
        reverse: [`0=127.0.0.1:${web.addr.port}`],
        retry: true,
        ...isTls ? { ca } : {},
        ...log.options,
      }));
      const [files, echoes, reversed] = client.listenAddrs as [string, string, string];
      await fetchFiles(files, SIZES);
      await fetchFiles(reversed, SIZES);
      const connection = await dial(echoes);
      assertEquals(await say(connection, "before"), "before");
      cable.cut();
      await promptly(log.until("resumed"));
      assertEquals(await say(connection, "after"), "after");
      connection.close();
      await fetchFiles(files, SIZES);
      const logged = Deno.inspect([log.errors, log.events, log.finished], { depth: 100, showHidden: true });
      assertEquals(logged.includes(PASSWORD), false, logged);
    });
  }

  Deno.test(`openTunnel() says why ${name} does not connect${suffix}`, { ignore }, async () => {
    await using proxy = await startProxy();
    await using server = serveTunnel({ listen: FREE, allow: ["127.0.0.1:*"], onError() {} });
    const connect = server.serverAddr;
    const log = makeLog();
    const through = (credentials: string, more: Partial<OpenTunnelOptions> = {}) =>
      promptly(openTunnel({
        connect,
        proxy: `${proxy.scheme}://${credentials}${proxy.addr}`,
        retry: true,
        ...log.options,
        ...more,
      }));
    await (await through(`${USER}:${PASSWORD}@`)).shutdown();
    const none = await assertRejects(() => through(""), Error);
    assertMatch(none.message, /the proxy wants a user and a password/);
    const wrong = await assertRejects(() => through(`${USER}:hunter2@`), Error);
    assertMatch(wrong.message, /the proxy does not accept the user and the password/);
    assertEquals(wrong.message.includes("hunter2"), false);
    const closed = `127.0.0.1:${freePort()}`;
    const refused = await assertRejects(
      () => through(`${USER}:${PASSWORD}@`, { connect: closed, retry: false }),
      Error,
    );
    assertMatch(refused.message, /the proxy cannot connect: (5\d\d |connection refused)/);
  });
}
