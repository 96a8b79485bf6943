/**
 * The tunnel over WebSockets through nginx and HAProxy, which cut idle connections after two seconds. A test is ignored
 * where its program is missing; `.ci/run` installs all.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import { openTunnel, serveTunnel, type TunnelOptions } from "../tunnel.ts";
import { findProgram, hasPrograms, makeFolder, watch } from "./programs.ts";
import { freePort } from "./support.ts";
import { dial, fetchFiles, FREE, makeEcho, makeLog, promptly, say, serveFiles, SIZES } from "./tunnel_support.ts";

/** Starts a program with a file, and waits until its output matches. */
async function startWith(name: string, content: string, args: (file: string) => string[], ready: RegExp) {
  const folder = await makeFolder(name);
  const file = `${folder.path}/config`;
  await Deno.writeTextFile(file, content.replaceAll("FOLDER", folder.path));
  const options = { args: args(file), stdin: "null", stdout: "piped", stderr: "piped" } as const;
  const watched = watch(new Deno.Command(findProgram(name)!, options).spawn());
  await watched.until(ready, "stderr");
  const dispose = async () => {
    await watched.end("SIGTERM");
    await folder[Symbol.asyncDispose]();
  };
  return { [Symbol.asyncDispose]: dispose };
}

const TEMPORARY = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];

/** Starts nginx between a port and a server. */
function startNginx(port: number, server: string) {
  const config = `
daemon off;
master_process off;
pid FOLDER/pid;
error_log stderr notice;
events {}
http {
  access_log off;
  ${TEMPORARY.map((name) => `${name}_temp_path FOLDER/${name};`).join("\n  ")}
  server {
    listen 127.0.0.1:${port};
    location /wire {
      proxy_pass http://${server};
      proxy_http_version 1.1;
      proxy_set_header Host $host;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection upgrade;
      proxy_read_timeout 2s;
    }
  }
}
`;
  return startWith("nginx", config, (file) => ["-e", "stderr", "-c", file], /using the "/);
}

/** Starts HAProxy between a port and a server. */
function startHaproxy(port: number, server: string) {
  const config = `
defaults
  mode http
  timeout connect 5s
  timeout client 5s
  timeout server 5s
  timeout tunnel 2s
listen wire
  bind 127.0.0.1:${port}
  server s ${server}
`;
  return startWith("haproxy", config, (file) => ["-W", "-f", file], /Loading success/);
}

/** Starts both ends with a proxy between them. */
async function makeProxied(startProxy: typeof startNginx, options: TunnelOptions) {
  const web = serveFiles();
  const echo = makeEcho();
  const server = serveTunnel({ listen: `ws://${FREE}/wire`, allow: ["127.0.0.1:*"], onError() {}, ...options });
  const port = freePort();
  const proxy = await startProxy(port, server.serverAddr.replace("ws://", ""));
  const log = makeLog();
  const forward = [`0=${echo.addr}`, `0=${web.addr.port}`];
  const client = await openTunnel({ connect: `ws://127.0.0.1:${port}/wire`, forward, ...log.options, ...options });
  const dispose = async () => {
    await client.shutdown();
    await server.shutdown();
    await proxy[Symbol.asyncDispose]();
    await echo.close();
    await web.shutdown();
  };
  return { client, log, [Symbol.asyncDispose]: dispose };
}

for (const [name, startProxy] of [["nginx", startNginx], ["haproxy", startHaproxy]] as const) {
  Deno.test(
    `tunnel over ws and ${name}: a keepalive at a third of the proxy's timeout keeps the connection`,
    { ignore: !hasPrograms(name) },
    async () => {
      let keepalives = 0;
      const waiting = Promise.withResolvers<void>();
      const onFrame: TunnelOptions["onFrame"] = ({ command }) => {
        // More than twice the timeout of the proxy.
        if (command === "NOP" && ++keepalives === 16) waiting.resolve();
      };
      await using proxied = await makeProxied(startProxy, { keepAliveInterval: 600, onFrame });
      const { client, log } = proxied;
      await fetchFiles(client.listenAddrs[1]!, SIZES);
      using connection = await dial(client.listenAddrs[0]!);
      assertEquals(await say(connection, "before"), "before");
      await waiting.promise;
      assertEquals(await say(connection, "after"), "after");
      assertEquals([log.events, log.messages()], [[], []]);
      connection.close();
    },
  );

  Deno.test(
    `tunnel over ws and ${name}: a resumable connection survives the cuts of the proxy`,
    { ignore: !hasPrograms(name) },
    async () => {
      await using proxied = await makeProxied(startProxy, { keepAliveInterval: Infinity });
      const { client, log } = proxied;
      using connection = await dial(client.listenAddrs[0]!);
      for (let n = 1; n <= 2; n++) {
        assertEquals(await say(connection, `word ${n}`), `word ${n}`);
        await promptly(log.until("resumed", n));
      }
      assertEquals(await say(connection, "last"), "last");
      assertEquals(log.messages(), []);
      connection.close();
    },
  );
}
