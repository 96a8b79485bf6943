/**
 * The package outside Deno: packed for npm it runs in Node, with Node or Deno as the peer, and TypeScript's compiler
 * accepts its types. Ignored without Node and npm.
 *
 * @module
 */

import { assertEquals, assertMatch } from "@std/assert";
import { serve, type ServeOptions, Session, type Stream, type Version } from "../mod.ts";
import { connectWebSocket, upgradeWebSocket } from "../websocket.ts";
import { hasPrograms, makeFolder, run, watch } from "./programs.ts";
import { runCases } from "./web_socket_cases.ts";
import { LOOPBACK, pattern, readAll, sha256, text, writeAll } from "./support.ts";

const ROOT = `${import.meta.dirname}/../`;
const FIXTURES = `${ROOT}tests/fixtures/node`;
const CERTIFICATES = `${ROOT}tests/fixtures/tls`;
const VERSIONS: Version[] = [1, 2];
const HASH_LENGTH = 64;
// peer.js sends in each version a hundred streams of 1.15 ** n bytes.
const SENT = "100 streams, 7828755 bytes there and back, closed";

const ignore = !hasPrograms("node", "npm");

/** Copies the fixtures into a folder, and installs the package made by `deno pack` and other packages. */
async function fill(folder: string, ...packages: string[]): Promise<void> {
  await run(Deno.execPath(), ["pack", "--quiet", "--allow-dirty", "--output", `${folder}/smux.tgz`], { cwd: ROOT });
  for (const fixtures of [FIXTURES, CERTIFICATES]) {
    for (const { name } of Deno.readDirSync(fixtures)) await Deno.copyFile(`${fixtures}/${name}`, `${folder}/${name}`);
  }
  await Deno.writeTextFile(`${folder}/package.json`, JSON.stringify({ private: true, type: "module" }));
  const quietly = ["--no-audit", "--no-fund", "--silent"];
  await run("npm", ["install", ...quietly, "./smux.tgz", ...packages], { cwd: folder });
}

async function runBothEnds(folder: string, kind: string): Promise<void> {
  const printed = text(await run("node", ["peer.js", "both", kind], { cwd: folder }));
  const expected = VERSIONS.flatMap((version) => [
    `client of version ${version}: ${SENT}`,
    `server of version ${version}: 100 streams accepted, 0 left, closed`,
  ]);
  assertEquals(printed.trim().split("\n").sort(), expected.sort());
}

async function answer(stream: Stream): Promise<void> {
  const received = await readAll(stream);
  await writeAll(stream, new TextEncoder().encode(await sha256(received)));
  await writeAll(stream, received);
}

/** A server in Deno that answers streams as peer.js does. */
function startServer(kind: string, options: ServeOptions): { port: number; shutdown(): Promise<void> } {
  if (kind === "net") {
    const listener = Deno.listen(LOOPBACK);
    const server = serve(listener, answer, options);
    return { port: listener.addr.port, shutdown: () => server.shutdown() };
  }
  const server = Deno.serve({ ...LOOPBACK, onListen() {} }, (request) => upgradeWebSocket(request, answer, options));
  return { port: server.addr.port, shutdown: () => server.shutdown() };
}

async function runClient(folder: string, kind: string): Promise<void> {
  const errors: unknown[] = [];
  const sessions: Session[] = [];
  const server = startServer(kind, {
    onError: (error) => errors.push(error),
    onSession: (session) => sessions.push(session),
  });
  const printed = text(await run("node", ["peer.js", "client", kind, `${server.port}`], { cwd: folder }));
  await server.shutdown();
  assertEquals(printed.trim().split("\n"), VERSIONS.map((version) => `client of version ${version}: ${SENT}`));
  assertEquals(sessions.map((session) => [session.version, session.stats().accepted]), [[1, 100], [2, 100]]);
  assertEquals(errors, []);
}

async function connect(kind: string, port: number, version: Version): Promise<Session> {
  if (kind === "ws") return await connectWebSocket(`ws://127.0.0.1:${port}/`, { version });
  return Session.client(await Deno.connect({ ...LOOPBACK, port }), { version });
}

async function runServer(folder: string, kind: string): Promise<void> {
  const options = { cwd: folder, stdin: "null", stdout: "piped", stderr: "piped" } as const;
  await using server = watch(new Deno.Command("node", { args: ["peer.js", "server", kind], ...options }).spawn());
  const [port] = await server.until(/^\d+\n/);
  for (const version of VERSIONS) {
    const session = await connect(kind, Number(port), version);
    await Promise.all(Array.from({ length: 100 }, async (_, n) => {
      const sent = pattern(Math.round(1.15 ** n), n + 1);
      const stream = await session.openStream();
      await writeAll(stream, sent);
      await stream.closeWrite();
      const received = await readAll(stream);
      assertEquals(text(received.subarray(0, HASH_LENGTH)), await sha256(sent));
      assertEquals(await sha256(received.slice(HASH_LENGTH)), await sha256(sent));
      await stream.closed;
    }));
    await session.close();
    await session.closed;
  }
  const { code, stdout, stderr } = await server.ended();
  assertEquals({ code, stderr }, { code: 0, stderr: "" });
  const expected = VERSIONS.map((version) => `server of version ${version}: 100 streams accepted, 0 left, closed`);
  assertEquals(stdout.trim().split("\n").slice(1).sort(), expected);
}

async function openTunnels(folder: string): Promise<void> {
  const code = `
    import { openTunnel, serveTunnel } from "@sluice/smux/tunnel";
    const print = ({ name, message }) => console.log(name + ": " + message);
    await openTunnel({ connect: "127.0.0.1:9000" }).catch(print);
    try { serveTunnel({ listen: "127.0.0.1:0" }); } catch (error) { print(error); }
  `;
  const printed = text(await run("node", ["--input-type=module", "--eval", code], { cwd: folder }));
  const error = "TypeError: Cannot run a tunnel in this runtime: it has no Deno.listen\n";
  assertEquals(printed, error + error);
}

// The files to compile, and the types in scope.
const COMPILATIONS = [
  { whose: "a browser's", files: ["consumer.ts"], lib: ["es2024", "esnext.disposable", "dom"], types: [] },
  { whose: "Node's", files: ["consumer.ts", "sockets.ts"], lib: ["es2024", "esnext.disposable"], types: ["node"] },
  {
    whose: "a browser's and Node's",
    files: ["consumer.ts", "sockets.ts"],
    lib: ["es2024", "esnext.disposable", "dom"],
    types: ["node"],
  },
];
// The present compiler, and the last one that is written in TypeScript, by their folders.
const COMPILERS = { "typescript": "TypeScript 7", "typescript5": "TypeScript 5" };
type Compiler = keyof typeof COMPILERS;

async function compileUses(folder: string, test: Deno.TestContext): Promise<void> {
  const compile = async (files: string[], lib: string[], types: string[], compiler: Compiler = "typescript") => {
    const settings = { strict: true, exactOptionalPropertyTypes: true, skipLibCheck: false, noEmit: true };
    const compilerOptions = { ...settings, module: "nodenext", target: "es2024", lib, types };
    await Deno.writeTextFile(`${folder}/tsconfig.json`, JSON.stringify({ compilerOptions, files }));
    const args = [`node_modules/${compiler}/bin/tsc`];
    const { code, stdout } = await new Deno.Command("node", { args, cwd: folder, stdin: "null" }).output();
    return { code, printed: text(stdout) };
  };
  const accepts = async ({ whose, files, lib, types }: typeof COMPILATIONS[number], compiler: Compiler) => {
    await test.step(`${COMPILERS[compiler]} accepts ${files.join(" and ")} with ${whose} types`, async () => {
      assertEquals(await compile(files, lib, types, compiler), { code: 0, printed: "" });
    });
  };
  for (const compilation of COMPILATIONS) await accepts(compilation, "typescript");
  await accepts(COMPILATIONS.at(-1)!, "typescript5");
  await test.step("TypeScript rejects a wrong use", async () => {
    const source = `import { Session } from "@sluice/smux"; Session.client({}, { version: 2 });`;
    await Deno.writeTextFile(`${folder}/wrong.ts`, source);
    const { lib, types } = COMPILATIONS[0]!;
    const { code, printed } = await compile(["wrong.ts"], lib, types);
    assertEquals(code, 1);
    assertMatch(printed, /^wrong\.ts\(1,56\): error TS2345: .* not assignable to parameter of type 'Transport'/);
  });
}

Deno.test("npm: the packed package", { ignore }, async (test) => {
  await using project = await makeFolder("node");
  const { path: folder } = project;
  const compilers = ["typescript@7.0.2", "typescript5@npm:typescript@5.9.3"];
  await fill(folder, ...compilers, "@types/node@20.19.43", "ws@8.23.0", "@types/ws@8.18.1");
  for (const kind of ["net", "tls", "web", "ws"]) {
    await test.step(`runs in Node at both ends over ${kind}, and the process exits`, () => runBothEnds(folder, kind));
  }
  for (const kind of ["net", "ws"]) {
    await test.step(`connects over ${kind} to a server in Deno, in both versions`, () => runClient(folder, kind));
    await test.step(`serves over ${kind} a client in Deno, in both versions`, () => runServer(folder, kind));
  }
  await test.step("imports the tunnel in Node, where opening and serving one is a TypeError", () =>
    openTunnels(folder));
  for (const role of ["client", "server"] as const) {
    await test.step(`over npm:ws as a ${role} ends with the right error after bad input`, async (test) => {
      const step = (title: string, run: () => Promise<void>) => test.step(title, run);
      await runCases({ runtime: "Node", role }, step, ["node", `${folder}/web_socket.js`]);
    });
  }
  await test.step("compiles without the types of Deno", (test) => compileUses(folder, test));
});
