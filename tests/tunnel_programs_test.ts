/**
 * Common programs through a tunnel. A test is ignored where its program is missing; `.ci/run` installs all.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import { openTunnel, serveTunnel } from "../tunnel.ts";
import { hasPrograms, makeFolder, prepareSsh, run, watch, type Watched } from "./programs.ts";
import { bytes, pattern, readAll, sha256, text, writeAll } from "./support.ts";

const SCRIPT = `${import.meta.dirname}/../tunnel.ts`;

/** Starts both ends of a tunnel. Default of `allow`: every target on this machine. */
async function makeTunnel(
  options: { allow?: string[]; forward?: string[]; socks?: string[] },
  isExpected: (error: unknown) => boolean = () => false,
) {
  const { allow = ["127.0.0.1:*", "localhost:*"], ...rest } = options;
  const errors: unknown[] = [];
  const onError = (error: unknown) => void (isExpected(error) || errors.push(error));
  const server = serveTunnel({ listen: "0", allow, onError });
  const client = await openTunnel({ connect: server.serverAddr, ...rest, onError });
  const dispose = async () => {
    await client.shutdown();
    await server.shutdown();
    assertEquals(errors, []);
  };
  return { server, client, addr: client.listenAddrs[0]!, [Symbol.asyncDispose]: dispose };
}

/** Starts a server in a process, and waits until its output matches `ready`. */
async function startServer(name: string, args: string[], ready: RegExp, where?: "stderr"): Promise<Watched> {
  const server = watch(new Deno.Command(name, { args, stdin: "null", stdout: "piped", stderr: "piped" }).spawn());
  await server.until(ready, where);
  return server;
}

Deno.test("tunnel and curl: 100 concurrent downloads are complete", { ignore: !hasPrograms("curl") }, async () => {
  const sizes = Array.from({ length: 100 }, (_, n) => Math.round(1.17 ** n));
  await using web = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, (request) => {
    const size = Number(new URL(request.url).pathname.slice(1));
    return new Response(pattern(size, size));
  });
  await using tunnel = await makeTunnel({ forward: [`0=${web.addr.port}`] });
  await using folder = await makeFolder("curl");
  const files = sizes.flatMap((size, n) => ["-o", `${folder.path}/${n}`, `http://${tunnel.addr}/${size}`]);
  const connection = ["--http1.1", "-H", "connection: close"];
  await run("curl", ["-sSf", "--parallel", "--parallel-immediate", "--parallel-max", "100", ...connection, ...files]);
  for (const [n, size] of sizes.entries()) {
    assertEquals(
      await sha256(await Deno.readFile(`${folder.path}/${n}`)),
      await sha256(pattern(size, size)),
      `file ${n}`,
    );
  }
  assertEquals(tunnel.server.stats().streams, sizes.length);
});

Deno.test(
  "tunnel and curl: an upload over SOCKS 5 to a name that the server resolves is complete",
  { ignore: !hasPrograms("curl") },
  async () => {
    await using web = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, async (request) => {
      return new Response(await sha256(new Uint8Array(await request.arrayBuffer())));
    });
    await using tunnel = await makeTunnel({ socks: ["0"] });
    const upload = pattern(5_000_000, 3);
    const answer = await run("curl", [
      ...["-sSf", "--socks5-hostname", tunnel.addr, "-T", "-", "-H", "expect:"],
      `http://localhost:${web.addr.port}/`,
    ], { input: upload });
    assertEquals(text(answer), await sha256(upload));
  },
);

Deno.test("tunnel and socat: data sent before a half-close is answered after it", {
  ignore: !hasPrograms("socat"),
}, async () => {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const answering = (async () => {
    using connection = await listener.accept();
    const received = await readAll(connection);
    await writeAll(connection, bytes(await sha256(received)));
  })();
  await using tunnel = await makeTunnel({ forward: [`0=${listener.addr.port}`] });
  const sent = pattern(300_000, 4);
  const answer = await run("socat", ["-t", "10", "-", `TCP:${tunnel.addr}`], { input: sent });
  assertEquals(text(answer), await sha256(sent));
  await answering;
});

Deno.test("tunnel and git: a clone over HTTP is complete", { ignore: !hasPrograms("git") }, async () => {
  await using folder = await makeFolder("git");
  const env = { HOME: folder.path, GIT_CONFIG_NOSYSTEM: "1" };
  const git = (...args: string[]) => run("git", ["-c", "user.name=a", "-c", "user.email=a@b", ...args], { env });
  await git("init", "-q", `${folder.path}/origin`);
  for (let n = 0; n < 20; n++) await Deno.writeFile(`${folder.path}/origin/${n}`, pattern(n * 10_000, n + 1));
  await git("-C", `${folder.path}/origin`, "add", ".");
  await git("-C", `${folder.path}/origin`, "commit", "-q", "-m", "files");
  await git("clone", "-q", "--bare", `${folder.path}/origin`, `${folder.path}/served`);
  await git("-C", `${folder.path}/served`, "update-server-info");
  await using web = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, async (request) => {
    try {
      return new Response(await Deno.readFile(folder.path + new URL(request.url).pathname));
    } catch {
      return new Response("", { status: 404 });
    }
  });
  await using tunnel = await makeTunnel({ forward: [`0=${web.addr.port}`] });
  await git("clone", "-q", `http://${tunnel.addr}/served`, `${folder.path}/clone`);
  await git("-C", `${folder.path}/clone`, "fsck", "--strict");
  assertEquals(await Deno.readFile(`${folder.path}/clone/19`), pattern(190_000, 20));
});

Deno.test("tunnel and redis: values of 1 MB survive a round trip, over a Unix socket of the server", {
  ignore: !hasPrograms("redis-server", "redis-cli"),
}, async () => {
  await using folder = await makeFolder("redis");
  const path = `${folder.path}/redis.sock`;
  const config = ["--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no"];
  await using _redis = await startServer("redis-server", config, /Ready to accept connections|ready to accept/);
  await using tunnel = await makeTunnel({ allow: [`unix:${path}`], forward: [`0=unix:${path}`] });
  const redis = (args: string[], options?: { input: Uint8Array }) =>
    run("redis-cli", ["-p", tunnel.addr.split(":")[1]!, ...args], options);
  const value = pattern(1_000_000, 5);
  await Promise.all(Array.from({ length: 8 }, async (_, n) => {
    await redis(["-x", "SET", `key${n}`], { input: value });
    // redis-cli appends a newline.
    assertEquals(await sha256((await redis(["GET", `key${n}`])).slice(0, -1)), await sha256(value));
  }));
});

// sshd only accepts the user that runs it, and requires more setup for users other than root.
const canServeSsh = hasPrograms("ssh", "sshd", "ssh-keygen", "socat") && Deno.uid() === 0;
Deno.test(
  "tunnel and ssh: a ProxyCommand forwards a session over stdin and stdout",
  { ignore: !canServeSsh },
  async () => {
    await using folder = await makeFolder("ssh");
    await prepareSsh(folder.path);
    const path = `${folder.path}/sshd.sock`;
    const each = `EXEC:/usr/sbin/sshd -i -f ${folder.path}/config`;
    await using _sshd = await startServer(
      "socat",
      ["-d", "-d", `UNIX-LISTEN:${path},fork`, each],
      /listening on/,
      "stderr",
    );
    // ssh kills its ProxyCommand at the end. Unread data then resets the connection.
    const isReset = (error: unknown) => (error as Error).cause instanceof Deno.errors.ConnectionReset;
    await using tunnel = await makeTunnel({ allow: [`unix:${path}`] }, isReset);
    const client = `client --connect ${tunnel.server.serverAddr} --forward -=unix:${path}`;
    const options = [
      ...[
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        `IdentityFile=${folder.path}/user`,
        "BatchMode=yes",
      ],
      ...[`ProxyCommand=${Deno.execPath()} run -A --no-config ${SCRIPT} ${client}`, "LogLevel=ERROR"],
    ].flatMap((option) => ["-o", option]);
    const sent = pattern(200_000, 6);
    const received = await run("ssh", ["-F", "/dev/null", ...options, "root@tunnelled", "cat"], { input: sent });
    assertEquals(await sha256(received.slice()), await sha256(sent));
  },
);

Deno.test("tunnel and WebSocket: messages are echoed", async () => {
  await using web = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, (request) => {
    const { socket, response } = Deno.upgradeWebSocket(request);
    socket.onmessage = ({ data }) => socket.send(data);
    return response;
  });
  await using tunnel = await makeTunnel({ forward: [`0=${web.addr.port}`] });
  const socket = new WebSocket(`ws://${tunnel.addr}/`);
  const event = (name: string) =>
    new Promise<Event>((resolve) => socket.addEventListener(name, resolve, { once: true }));
  await event("open");
  for (const text of ["hello", "x".repeat(100_000)]) {
    const answer = event("message");
    socket.send(text);
    assertEquals((await answer as MessageEvent<string>).data, text);
  }
  const closed = event("close");
  socket.close();
  await closed;
});
