/**
 * The examples, run as separate processes with the permissions in their comments; the demonstration with fewer files.
 *
 * @module
 */

import { assert, assertEquals, assertLess, assertMatch, assertStringIncludes } from "@std/assert";
import config from "../deno.json" with { type: "json" };
import { serve, Session } from "../mod.ts";
import { hasPostgres, startPostgres } from "./postgres.ts";
import { makeFolder, watch } from "./programs.ts";
import { bytes as encode, LOOPBACK, pattern, readAll, sha256, text as decode, writeAll } from "./support.ts";

const EXAMPLES = new URL("../examples/", import.meta.url);
const ROOT = new URL("../", import.meta.url);

/** Starts a process of an example, with the permissions that its comment names for this command. */
async function spawn(
  script: string,
  args: string[],
  env: Record<string, string> = {},
): Promise<Deno.ChildProcess> {
  const source = await Deno.readTextFile(new URL(script, EXAMPLES));
  const permissions = new RegExp(`^ \\* deno run (--.+) examples/${script} ${args[0] ?? ""}`, "m").exec(source)?.[1];
  assert(permissions !== undefined, `the comment of ${script} has no command line for ${args[0]}`);
  return new Deno.Command(Deno.execPath(), {
    args: ["run", ...permissions.split(" "), `examples/${script}`, ...args],
    cwd: ROOT,
    env: { NO_COLOR: "1", ...env },
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
}

/** Runs an example to its end. */
async function run(
  script: string,
  args: string[],
  { input = "", env }: { input?: string; env?: Record<string, string> } = {},
) {
  const child = await spawn(script, args, env);
  const writing = new Blob([input]).stream().pipeTo(child.stdin).catch(() => {});
  const [{ code, stdout, stderr }] = await Promise.all([child.output(), writing]);
  return { code, stdout: decode(stdout), stderr: decode(stderr) };
}

/** Starts an example that listens, and waits until it prints its address. */
async function start(script: string, ...args: string[]) {
  const watched = watch(await spawn(script, args));
  await watched.child.stdin.close();
  const [, port] = await watched.until(/^listening on .*:(\d+)$/m);
  return { ...watched, port: Number(port) };
}

/** Opens a session from this process to an example. */
const connect = async (port: number) => Session.client(await Deno.connect({ ...LOOPBACK, port }));

Deno.test("examples/echo.ts: the client prints every line of stdin, in order", async () => {
  await using server = await start("echo.ts", "server", "0");
  const lines = ["hello", "", "wörld 🌊", "x".repeat(300_000), "the last, without an end"];
  const { code, stdout, stderr } = await run("echo.ts", ["client", `${server.port}`], { input: lines.join("\n") });
  assertEquals([code, stderr], [0, ""]);
  assertEquals(stdout, lines.map((line) => `${line}\n`).join(""));
});

Deno.test("examples/tunnel.ts: concurrent downloads are complete, and the client ends with its server", async () => {
  await using web = Deno.serve({ ...LOOPBACK, onListen() {} }, (request) => {
    const size = Number(new URL(request.url).pathname.slice(1));
    return new Response(pattern(size, size));
  });
  await using server = await start("tunnel.ts", "server", "0", `localhost:${web.addr.port}`);
  await using client = await start("tunnel.ts", "client", "0", `127.0.0.1:${server.port}`);
  const headers = { connection: "close" };
  await Promise.all([1, 1000, 100_000, 3_000_000, 3_000_001].map(async (size) => {
    const response = await fetch(`http://127.0.0.1:${client.port}/${size}`, { headers });
    assertEquals(await sha256(new Uint8Array(await response.arrayBuffer())), await sha256(pattern(size, size)));
  }));
  const [ended] = await Promise.all([client.ended(), server.end()]);
  assertEquals([ended.code, ended.stderr], [0, ""]);
});

/** Sends a file with this header and content to the receiver, and returns its answer. */
async function offer(session: Session, header: string, content: Uint8Array): Promise<string> {
  await using stream = await session.openStream();
  await writeAll(stream, encode(header.padEnd(1024)));
  await writeAll(stream, content);
  await stream.closeWrite();
  return decode(await readAll(stream));
}

Deno.test("examples/file_transfer.ts: complete files are received, and incomplete or misnamed ones are rejected", async () => {
  await using folder = await makeFolder("files");
  const files = new Map([["empty", 0], ["one byte", 1], ["größer.bin", 100_000], ["a", 5_000_000], ["b", 5_000_001]]);
  for (const name of ["from", "to"]) await Deno.mkdir(`${folder.path}/${name}`);
  for (const [name, size] of files) await Deno.writeFile(`${folder.path}/from/${name}`, pattern(size, size));
  const paths = Array.from(files.keys(), (name) => `${folder.path}/from/${name}`);
  await using receiver = await start("file_transfer.ts", "receive", "0", `${folder.path}/to`);

  const { code, stdout, stderr } = await run("file_transfer.ts", [
    "send",
    `localhost:${receiver.port}`,
    ...paths,
  ]);
  assertEquals([code, stderr], [0, ""]);
  for (const [name, size] of files) {
    assertEquals(
      await sha256(await Deno.readFile(`${folder.path}/to/${name}`)),
      await sha256(pattern(size, size)),
      name,
    );
    assertStringIncludes(stdout, `${folder.path}/from/${name}: confirmed\n`);
    if (size > 0) assertStringIncludes(stdout, `${folder.path}/from/${name} 100 %`);
  }

  const session = await connect(receiver.port);
  const content = pattern(1000);
  const hash = await sha256(content);
  assertEquals(await offer(session, `1000 ${hash} good`, content), "received");
  for (const name of ["", ".", "..", "../evil", "/evil", "..\\evil", "evil/", "evil\n", "C:evil", "evil\0"]) {
    assertEquals(await offer(session, `1000 ${hash} ${encodeURIComponent(name)}`, content), "", name);
  }
  assertEquals(await offer(session, `1000 ${hash} short`, content.subarray(1)), "");
  assertEquals(await offer(session, `1000 ${hash} long`, pattern(1001)), "");
  assertEquals(await offer(session, `1000 ${await sha256(pattern(1))} other`, content), "");
  await using ended = await session.openStream();
  await writeAll(ended, encode("1000 "));
  await ended.closeWrite();
  assertEquals(decode(await readAll(ended)), "");
  await session.close();
  const inFolder = async (path: string) => (await Array.fromAsync(Deno.readDir(path), ({ name }) => name)).sort();
  const whole = (await inFolder(`${folder.path}/to`)).filter((name) => !name.endsWith(".part"));
  assertEquals(whole, [...files.keys(), "good"].sort());
  assertEquals(await inFolder(folder.path), ["from", "to"]);

  const printed = await receiver.end();
  for (const [name, size] of files) {
    assertStringIncludes(
      printed.stdout,
      `received ${name}: ${size} bytes, SHA-256 ${await sha256(pattern(size, size))}`,
    );
  }
  assertEquals(printed.stderr.match(/is incomplete/g)?.length, 3);
  assertStringIncludes(printed.stderr, "the stream ended after 5 bytes of its header");
});

Deno.test("examples/file_transfer.ts: the sender fails at once when the receiver refuses a file before its end", async () => {
  await using folder = await makeFolder("files");
  await Deno.writeFile(`${folder.path}/refused`, pattern(3_000_000));
  const listener = Deno.listen(LOOPBACK);
  await using _refusing = serve(listener, async (stream) => void await stream.read(new Uint8Array(1)));
  const args = ["send", `localhost:${listener.addr.port}`, `${folder.path}/refused`, `${folder.path}/missing`];
  const started = performance.now();
  const { code, stdout, stderr } = await run("file_transfer.ts", args);
  assertEquals([code, stderr], [1, ""]);
  // A write that never receives credit would reject after the session's timeout of 30 s.
  assertLess(performance.now() - started, 25_000);
  assertStringIncludes(stdout, `${folder.path}/refused: Error: not confirmed\n`);
  assertMatch(stdout, new RegExp(`^${folder.path}/missing: .*open '${folder.path}/missing'$`, "m"));
});

Deno.test("examples/file_transfer.ts: a transfer that is cut is not complete for either end", async () => {
  await using folder = await makeFolder("files");
  await Deno.mkdir(`${folder.path}/to`);
  await Deno.writeFile(`${folder.path}/cut`, pattern(5_000_000));
  await using receiver = await start("file_transfer.ts", "receive", "0", `${folder.path}/to`);
  // A proxy that hangs up behind the first megabyte.
  const listener = Deno.listen(LOOPBACK);
  const cutting = (async () => {
    using near = await listener.accept();
    using far = await Deno.connect({ ...LOOPBACK, port: receiver.port });
    const back = far.readable.pipeTo(near.writable).catch(() => {});
    const p = new Uint8Array(65_536);
    for (let passed = 0; passed < 1_000_000;) {
      const count = await near.read(p);
      await writeAll(far, p.subarray(0, count!));
      passed += count!;
    }
    near.close();
    far.close();
    await back;
  })();
  const { code, stdout } = await run("file_transfer.ts", ["send", `${listener.addr.port}`, `${folder.path}/cut`]);
  await cutting;
  listener.close();
  assertEquals(code, 1);
  assertEquals(/: confirmed$/m.test(stdout), false, stdout);
  // The receiver goes on, and by then has handled the cut file, too.
  await using session = await connect(receiver.port);
  assertEquals(await offer(session, `1000 ${await sha256(pattern(1000))} good`, pattern(1000)), "received");
  const names = await Array.fromAsync(Deno.readDir(`${folder.path}/to`), ({ name }) => name);
  assertEquals(names.filter((name) => !name.endsWith(".part")), ["good"]);
});

for (const [app, answer] of [["express", "Express: hello to PATH from 127.0.0.1"], ["hono", "Hono: hello to PATH"]]) {
  Deno.test(`examples/http.ts: concurrent requests to ${app} each get their own response, also by an agent`, async () => {
    await using server = await start("http.ts", "server", "0", app!);
    const paths = Array.from({ length: 20 }, (_, n) => `/${n}`);
    const { code, stdout, stderr } = await run("http.ts", ["client", `${server.port}`, ...paths]);
    assertEquals([code, stderr], [0, ""]);
    const [last, ...lines] = stdout.trim().split("\n").reverse();
    const expected = paths.map((path) => `200 ${answer!.replace("PATH", path)}`);
    assertEquals(lines.sort(), [...expected, ...expected].sort());
    // One stream for each request, and four of the agent.
    assertEquals(last, "40 requests over 24 streams of one connection");
    assertEquals((await server.end()).stderr, "");
  });
}

Deno.test("examples/database.ts: queries of a pool share one connection, and an error is reported", {
  ignore: !hasPostgres,
}, async () => {
  await using database = await startPostgres();
  await using server = await start("tunnel.ts", "server", "0", `127.0.0.1:${database.port}`);
  const env = { PGUSER: "postgres", PGDATABASE: "postgres" };
  const queries = Array.from({ length: 20 }, (_, n) => `SELECT ${n} AS n, repeat('x', ${n * 10_000}) AS text`);
  const { code, stdout, stderr } = await run("database.ts", ["query", `${server.port}`, ...queries], { env });
  assertEquals([code, stderr], [0, ""]);
  const expected = queries.map((query, n) => `${query}: ${JSON.stringify([{ n, text: "x".repeat(n * 10_000) }])}`);
  assertEquals(stdout.trim().split("\n").sort(), expected.sort());

  const failed = await run("database.ts", ["query", `${server.port}`, "SELECT * FROM nothing"], { env });
  assertEquals([failed.code, failed.stdout], [1, ""]);
  assertStringIncludes(failed.stderr, 'relation "nothing" does not exist');
  assertEquals((await server.end()).stderr, "");
});

Deno.test("examples/pool.ts: sessions share the workers, a slow stream times out, and SIGINT ends the server cleanly", {
  // Windows has no signals: kill() terminates the process.
  ignore: Deno.build.os === "windows",
}, async () => {
  await using server = await start("pool.ts", "server", "0");
  await using session = await connect(server.port);
  const slow = await session.openStream();
  await slow.write(encode("never more than this"));

  const words = Array.from({ length: 40 }, (_, n) => `word ${n}`);
  const clients = [words.slice(0, 20), words.slice(20)].map((words) =>
    run("pool.ts", ["client", `${server.port}`, ...words])
  );
  for (const [n, { code, stdout, stderr }] of (await Promise.all(clients)).entries()) {
    assertEquals([code, stderr], [0, ""]);
    const half = words.slice(n * 20, n * 20 + 20);
    const expected = await Promise.all(half.map(async (word) => `${await sha256(encode(word))}  ${word}`));
    assertEquals(stdout.trim().split("\n").sort(), expected.sort());
  }
  assertEquals(await readAll(slow), new Uint8Array());
  slow.close();

  const { code, stdout, stderr } = await server.end("SIGINT");
  assertEquals([code, stderr], [0, ""]);
  assertEquals(stdout.match(/^worker [123]: answered$/gm)?.length, words.length);
  assertEquals(stdout.match(/^worker [123]: TimeoutError/gm)?.length, 1);
  await session.closed;
});

Deno.test("examples/demo.ts: all files pass one connection with the right SHA-256", async () => {
  const demo = async (files: string) => {
    const args = [...config.tasks.demo.command.split(" ").slice(1), files];
    const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), { args, cwd: ROOT }).output();
    return { code, stdout: decode(stdout), stderr: decode(stderr) };
  };
  const { code, stdout, stderr } = await demo("20");
  assertEquals([code, stderr], [0, ""]);
  assertMatch(stdout, /^files +20, of 5 bytes to 20 MB; every SHA-256 is that of the file on disk$/m);
  assertMatch(stdout, /^streams +20,/m);
  assertMatch(stdout, /^connections +1 /m);
  assertEquals((await demo("none")).code, 2);
});

/** Returns the examples directly in the folder, without the demonstration. */
async function names(): Promise<string[]> {
  const entries = await Array.fromAsync(Deno.readDir(EXAMPLES));
  return entries.filter(({ isFile, name }) => isFile && name.endsWith(".ts") && name !== "demo.ts").map(({ name }) =>
    name
  );
}

Deno.test("examples: each has a test here", async () => {
  const tests = await Deno.readTextFile(new URL(import.meta.url));
  for (const name of await names()) assertMatch(tests, new RegExp(`Deno.test\\(["\`]examples/${name}: `));
});

Deno.test("examples: wrong arguments print a usage line and exit with code 2", async () => {
  for (const name of await names()) {
    const { code, stdout, stderr } = await run(name, []);
    assertEquals([code, stdout], [2, ""], name);
    assertMatch(stderr, new RegExp(`^usage: ${name} [^\n]+\n$`));
  }
});
