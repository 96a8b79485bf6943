/**
 * Programs that people use, through a tunnel. Each test is ignored where its program is missing; `.ci/run` installs them.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import { existsSync } from "node:fs";
import { openTunnel, serveTunnel } from "../tunnel.ts";
import { prepareSsh } from "./programs.ts";
import { bytes, pattern, readAll, sha256, text, writeAll } from "./support.ts";

const SCRIPT = `${import.meta.dirname}/../tunnel.ts`;

/** Whether a program is there. */
function has(...names: string[]): boolean {
  const folders = (Deno.env.get("PATH") ?? "").split(":").concat("/usr/sbin");
  return names.every((name) => folders.some((folder) => existsSync(`${folder}/${name}`)));
}

/** Runs a program to its end, which must be a good one, and gives what it printed. */
async function run(name: string, args: string[], input?: Uint8Array, env: Record<string, string> = {}) {
  const child = new Deno.Command(name, { args, env, stdin: "piped", stdout: "piped", stderr: "piped" }).spawn();
  const writing = new Blob(input === undefined ? [] : [input.slice()]).stream().pipeTo(child.stdin);
  const [{ code, stdout, stderr }] = await Promise.all([child.output(), writing.catch(() => {})]);
  assertEquals(code, 0, `${name} ${args.join(" ")}: ${text(stderr)}`);
  return stdout;
}

/** A tunnel at whose server, unless told, everything on this machine is allowed. */
async function makeTunnel(
  options: { allow?: string[]; forward?: string[]; socks?: string[] },
  isExpected: (error: unknown) => boolean = () => false,
) {
  const { allow = ["127.0.0.1:*", "localhost:*"], ...rest } = options;
  const errors: unknown[] = [];
  const onError = (error: unknown) => void (isExpected(error) || errors.push(error));
  const server = serveTunnel({ listen: "0", allow, onError });
  const client = await openTunnel({ connect: server.addr, ...rest, onError });
  const dispose = async () => {
    await client.shutdown();
    await server.shutdown();
    assertEquals(errors, []);
  };
  return { server, client, addr: client.addrs[0]!, [Symbol.asyncDispose]: dispose };
}

/** A server in a process, ready when it prints what is waited for. */
async function startServer(name: string, args: string[], ready: RegExp): Promise<AsyncDisposable> {
  const child = new Deno.Command(name, { args, stdin: "null", stdout: "piped", stderr: "piped" }).spawn();
  const isReady = Promise.withResolvers<void>();
  const reading = [child.stdout, child.stderr].map(async (stream) => {
    let printed = "";
    for await (const text of stream.pipeThrough(new TextDecoderStream())) {
      printed += text;
      if (ready.test(printed)) isReady.resolve();
    }
    isReady.reject(new Error(`${name} ended before it was ready: ${printed}`));
  });
  const dispose = async () => {
    child.kill("SIGTERM");
    await Promise.all([child.status, ...reading]);
  };
  isReady.promise.catch(() => {});
  await isReady.promise;
  return { [Symbol.asyncDispose]: dispose };
}

Deno.test("tunnel and curl: 100 downloads at once, each whole", { ignore: !has("curl") }, async () => {
  const sizes = Array.from({ length: 100 }, (_, n) => Math.round(1.17 ** n));
  await using web = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, (request) => {
    const size = Number(new URL(request.url).pathname.slice(1));
    return new Response(pattern(size, size));
  });
  await using tunnel = await makeTunnel({ forward: [`0=${web.addr.port}`] });
  const folder = await Deno.makeTempDir({ prefix: "sluice-curl-" });
  try {
    const files = sizes.flatMap((size, n) => ["-o", `${folder}/${n}`, `http://${tunnel.addr}/${size}`]);
    const connection = ["--http1.1", "-H", "connection: close"];
    await run("curl", ["-sSf", "--parallel", "--parallel-immediate", "--parallel-max", "100", ...connection, ...files]);
    for (const [n, size] of sizes.entries()) {
      assertEquals(await sha256(await Deno.readFile(`${folder}/${n}`)), await sha256(pattern(size, size)), `file ${n}`);
    }
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
  assertEquals(tunnel.server.stats().streams, sizes.length);
});

Deno.test(
  "tunnel and curl: an upload, and a name resolved at the server by SOCKS 5",
  { ignore: !has("curl") },
  async () => {
    await using web = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, async (request) => {
      return new Response(await sha256(new Uint8Array(await request.arrayBuffer())));
    });
    await using tunnel = await makeTunnel({ socks: ["0"] });
    const upload = pattern(5_000_000, 3);
    const answer = await run("curl", [
      ...["-sSf", "--socks5-hostname", tunnel.addr, "-T", "-", "-H", "expect:"],
      `http://localhost:${web.addr.port}/`,
    ], upload);
    assertEquals(text(answer), await sha256(upload));
  },
);

Deno.test("tunnel and socat: what is sent before a half-close is answered after it", {
  ignore: !has("socat"),
}, async () => {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const answering = (async () => {
    using connection = await listener.accept();
    const received = await readAll(connection);
    await writeAll(connection, bytes(await sha256(received)));
  })();
  await using tunnel = await makeTunnel({ forward: [`0=${listener.addr.port}`] });
  const sent = pattern(300_000, 4);
  const answer = await run("socat", ["-t", "10", "-", `TCP:${tunnel.addr}`], sent);
  assertEquals(text(answer), await sha256(sent));
  await answering;
});

Deno.test("tunnel and git: a clone over HTTP", { ignore: !has("git") }, async () => {
  const folder = await Deno.makeTempDir({ prefix: "sluice-git-" });
  try {
    const env = { HOME: folder, GIT_CONFIG_NOSYSTEM: "1" };
    const git = (...args: string[]) =>
      run("git", ["-c", "user.name=a", "-c", "user.email=a@b", ...args], undefined, env);
    await git("init", "-q", `${folder}/origin`);
    for (let n = 0; n < 20; n++) await Deno.writeFile(`${folder}/origin/${n}`, pattern(n * 10_000, n + 1));
    await git("-C", `${folder}/origin`, "add", ".");
    await git("-C", `${folder}/origin`, "commit", "-q", "-m", "files");
    await git("clone", "-q", "--bare", `${folder}/origin`, `${folder}/served`);
    await git("-C", `${folder}/served`, "update-server-info");
    await using web = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, async (request) => {
      try {
        return new Response(await Deno.readFile(folder + new URL(request.url).pathname));
      } catch {
        return new Response("", { status: 404 });
      }
    });
    await using tunnel = await makeTunnel({ forward: [`0=${web.addr.port}`] });
    await git("clone", "-q", `http://${tunnel.addr}/served`, `${folder}/clone`);
    await git("-C", `${folder}/clone`, "fsck", "--strict");
    assertEquals(await Deno.readFile(`${folder}/clone/19`), pattern(190_000, 20));
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("tunnel and redis: values of a megabyte there and back, by a Unix socket at the server", {
  ignore: !has("redis-server", "redis-cli"),
}, async () => {
  const folder = await Deno.makeTempDir({ prefix: "sluice-redis-" });
  try {
    const path = `${folder}/redis.sock`;
    const config = ["--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no"];
    await using _redis = await startServer("redis-server", config, /Ready to accept connections|ready to accept/);
    await using tunnel = await makeTunnel({ allow: [`unix:${path}`], forward: [`0=unix:${path}`] });
    const redis = (args: string[], input?: Uint8Array) =>
      run("redis-cli", ["-p", tunnel.addr.split(":")[1]!, ...args], input);
    const value = pattern(1_000_000, 5);
    await Promise.all(Array.from({ length: 8 }, async (_, n) => {
      await redis(["-x", "SET", `key${n}`], value);
      // What is not for a terminal ends with one newline more.
      assertEquals(await sha256((await redis(["GET", `key${n}`])).slice(0, -1)), await sha256(value));
    }));
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

// sshd lets in whom it runs as, and for others than root that takes more than a test should ask for.
const canServeSsh = has("ssh", "sshd", "ssh-keygen", "socat") && Deno.uid() === 0;
Deno.test("tunnel and ssh: a ProxyCommand by stdin and stdout", { ignore: !canServeSsh }, async () => {
  const folder = await Deno.makeTempDir({ prefix: "sluice-ssh-" });
  try {
    await prepareSsh(folder);
    const path = `${folder}/sshd.sock`;
    const each = `EXEC:/usr/sbin/sshd -i -f ${folder}/config`;
    await using _sshd = await startServer("socat", ["-d", "-d", `UNIX-LISTEN:${path},fork`, each], /listening on/);
    // ssh kills its ProxyCommand when it needs it no more, and if something is unread then, that resets its connection.
    const isReset = (error: unknown) => (error as Error).cause instanceof Deno.errors.ConnectionReset;
    await using tunnel = await makeTunnel({ allow: [`unix:${path}`] }, isReset);
    const client = `client --connect ${tunnel.server.addr} --forward -=unix:${path}`;
    const options = [
      ...["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", `IdentityFile=${folder}/user`, "BatchMode=yes"],
      ...[`ProxyCommand=${Deno.execPath()} run -A --no-config ${SCRIPT} ${client}`, "LogLevel=ERROR"],
    ].flatMap((option) => ["-o", option]);
    const sent = pattern(200_000, 6);
    const received = await run("ssh", ["-F", "/dev/null", ...options, "root@tunnelled", "cat"], sent);
    assertEquals(await sha256(received.slice()), await sha256(sent));
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("tunnel and a WebSocket: an echo", async () => {
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
