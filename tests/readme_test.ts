/**
 * The texts of the repository: each command, path and link is valid, and the README's programs and tunnel commands run
 * verbatim.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { concat } from "@std/bytes";
import { once } from "node:events";
import { existsSync, readdirSync } from "node:fs";
import { createServer } from "node:http";
import { type AddressInfo, connect } from "node:net";
import { fileURLToPath } from "node:url";
import config from "../deno.json" with { type: "json" };
import { type Connection, Session } from "../mod.ts";
import { deno, makeFolder, watch, type Watched } from "./programs.ts";
import { freePort, pattern, readAll, writeAll } from "./support.ts";

const ROOT = new URL("../", import.meta.url);
const TEXTS = [
  "README.md",
  "CONTRIBUTING.md",
  "SECURITY.md",
  "CHANGELOG.md",
  ...textsIn("docs"),
  ...textsIn("docs/decisions"),
];
const WORKFLOWS = ["ci", "publish", "weekly"].map((name) => `.github/workflows/${name}.yml`);
// These match the patterns below, but are a repository and files of the reader.
const NOT_PATHS = ["xtaci/smux", "10.0.0.0/8", "server.ts", "client.ts", "cert.pem", "key.pem"];
const PATH = /^\.?[\w-]+(\.[\w-]+)*(\/[\w.-]+)*\/?$/;
const FILE = /\/|\.(go|json|md|pem|sh|svg|ts|yml)$/;

const read = (path: string) => Deno.readTextFile(new URL(path, ROOT));
const exists = (path: string) => existsSync(new URL(path, ROOT));
const lazy = <Value>(make: () => Promise<Value>) => {
  let made: Promise<Value> | undefined;
  return () => made ??= make();
};

const ci = lazy(() => read(".ci/run"));
const tunnelHelp = lazy(() => deno("run", "tunnel.ts", "--help"));
const deepTests = lazy(() => deno("run", "-A", "tests/deep/main.ts"));

/** Returns the paths of the texts in a folder. */
function textsIn(folder: string): string[] {
  const names = readdirSync(new URL(`${folder}/`, ROOT)).filter((name) => name.endsWith(".md"));
  return names.sort().map((name) => `${folder}/${name}`);
}

/** Returns all captures of a pattern in a text. */
function captures(text: string, all: RegExp): string[] {
  return Array.from(text.matchAll(all), ([, captured]) => captured!);
}

/** Returns the commands of the blocks marked `sh`, without their comments. */
function commandsOfBlocks(markdown: string): string[] {
  return captures(markdown, /^```sh\n(.*?)^```$/gms)
    .flatMap((block) => block.split("\n"))
    .map((line) => line.replace(/(^|\s)#.*/, "").trim())
    .filter((line) => line !== "");
}

/** Returns the texts in backticks outside of blocks. */
function codeSpans(markdown: string): string[] {
  return captures(markdown.replace(/^```.*?^```$/gms, ""), /`([^`]+)`/g).map((span) => span.replace(/\s+/g, " "));
}

/** Splits a command into words, as a shell does. */
function words(command: string): string[] {
  return (command.match(/'[^']*'|"[^"]*"|\S+/g) ?? []).map((word) => word.replace(/^(['"])(.*)\1$/, "$2"));
}

/** Returns the options among these words that a description does not name. */
function unknownOptions(args: string[], description: string): string[] {
  return args.filter((word) => word.startsWith("--")).map((word) => word.replace(/=.*/, ""))
    .filter((option) => !new RegExp(`(?<![\\w-])${option}(?![\\w-])`).test(description));
}

/** Whether a name is the package or one of its entrypoints. */
function isEntrypoint(name: string): boolean {
  return name.startsWith(config.name) && Object.hasOwn(config.exports, name.replace(config.name, "."));
}

/** Returns the text that lists the options of a task. */
async function describe(task: string, args: string[]): Promise<string | undefined> {
  if (task === "deep") {
    const name = args.find((word) => !word.startsWith("--")) ?? "";
    return (await deepTests()).split("\n").find((line) => line.startsWith(`${name} `));
  }
  const { command } = config.tasks[task as keyof typeof config.tasks];
  const [, script] = /^deno run .*?(\S+\.ts)$/.exec(command) ?? [];
  if (script !== undefined) return await read(script);
  const [, subcommand] = /^(?:DENO_JOBS=\$\(.*\) )?deno (test|bench)\b[^&]*$/.exec(command) ?? [];
  return subcommand && await deno(subcommand, "--help");
}

async function taskProblem([task, ...args]: string[]): Promise<string | undefined> {
  if (task === undefined) return undefined;
  if (!Object.hasOwn(config.tasks, task)) return "no such task";
  // Only arguments are checked, and `NAME` is a placeholder.
  if (args.length === 0 || args.join("") === "NAME") return undefined;
  const description = await describe(task, args);
  if (description === undefined) return task === "deep" ? "no such long test" : "a task without arguments";
  const [unknown] = unknownOptions(args, description);
  if (unknown !== undefined) return `no option ${unknown}`;
  return args.some((word) => word.includes("/") && !exists(word)) ? "no such file" : undefined;
}

/** Returns the problem of a command, if it has one. */
async function commandProblem(command: string): Promise<string | undefined> {
  const [program, ...rest] = words(command);
  switch (program) {
    case "npx": {
      const [yes, version, ...args] = rest;
      // The form that JSR documents for Node.
      if (yes === "jsr" && version === "add" && isEntrypoint(args.join(" "))) return undefined;
      if (yes !== "-y" || !(await ci()).includes(`npx ${yes} ${version} `)) return "another Deno than that of .ci/run";
      return args.length === 0 ? undefined : await commandProblem(`deno ${args.join(" ")}`);
    }
    case "deno":
      if (rest[0] === "task") return await taskProblem(rest.slice(1));
      if (rest[0] !== "add" && rest[0] !== "install") return "a command this test does not know";
      return isEntrypoint(rest.at(-1)!.replace(/^jsr:/, "")) ? undefined : "not what is published";
    case "task":
      return await taskProblem(rest);
    case "apt-get": {
      const [, packages = ""] = /^packages="(.*)"$/m.exec(await ci()) ?? [];
      return rest.slice(1).every((name) => packages.split(" ").includes(name))
        ? undefined
        : "not what .ci/run installs";
    }
    case "sluice":
      if (command === "sluice --help") return undefined;
      // Those of the README are run, see below.
      return unknownOptions(rest, await tunnelHelp())[0] && "no such option";
    case "dig":
    case "openssl":
    case "printf":
      // tests/tunnel_udp_test.ts runs dig, tests/tunnel_certificates.ts runs openssl.
      return undefined;
    default:
      return "a command this test does not know";
  }
}

/** Returns the problem of a text in backticks, if it has one. */
async function spanProblem(span: string): Promise<string | undefined> {
  if (/^(npx|deno task|task|apt-get|sluice) /.test(span)) return await commandProblem(span);
  if (span.startsWith("--")) {
    return unknownOptions(words(span), await tunnelHelp() + await deepTests()).length > 0
      ? "no such option"
      : undefined;
  }
  if (span.startsWith(config.name)) return isEntrypoint(span) ? undefined : "no such entrypoint";
  if (!PATH.test(span) || !FILE.test(span) || NOT_PATHS.includes(span)) return undefined;
  return exists(span) ? undefined : "no such file";
}

/** Returns the problem of a link of the text at `path`, if it has one. */
async function linkProblem(target: string, markdown: string, path: string): Promise<string | undefined> {
  if (/^[a-z]+:/.test(target)) return undefined;
  const [file, anchor] = target.split("#");
  const linked = new URL(file!, new URL(path, ROOT));
  if (file !== "" && !existsSync(linked)) return "no such file";
  if (anchor === undefined) return undefined;
  const headings = captures(file === "" ? markdown : await Deno.readTextFile(linked), /^#+ (.+)$/gm)
    .map((heading) => heading.toLowerCase().replace(/[^\w -]/g, "").replaceAll(" ", "-"));
  return headings.includes(anchor) ? undefined : "no such heading";
}

/** Returns all problems of the text at `path`. */
async function problems(markdown: string, path: string): Promise<string[]> {
  const found: string[] = [];
  const note = (what: string, problem: string | undefined) => problem && found.push(`${what}: ${problem}`);
  for (const command of commandsOfBlocks(markdown)) note(command, await commandProblem(command));
  for (const span of codeSpans(markdown)) note(span, await spanProblem(span));
  for (const target of captures(markdown, /\]\(([^)\s]+)\)/g)) note(target, await linkProblem(target, markdown, path));
  return found;
}

for (const path of TEXTS) {
  Deno.test(`texts: every command, path and link of ${path} is valid`, async () => {
    const markdown = await read(path);
    assert(codeSpans(markdown).length > 0, "no text in backticks found");
    assertEquals(await problems(markdown, path), []);
  });
}

Deno.test("texts: an invalid command, path or link is reported", async () => {
  const markdown = `
# A heading

\`\`\`sh
npx -y deno@1.0.0 task test # another version
deno task tests
deno task deep speed --rounds 1
deno task deep peers --round 1
deno task test --filters x tests/readme_test.ts # an option
deno task test tests/nowhere_test.ts
deno task interop --themselves
deno task check --again
deno add jsr:@sluice/smux/nowhere
sluice server --listens 9000
sluice cert --hosts example.com
make
\`\`\`

\`deno task deep NAME\`, \`task deep\npeers --round 1\`, \`--nowhere 1\`, \`tests/nowhere.ts\`, \`nowhere.ts\`,
\`@sluice/smux/nowhere\`, \`apt-get install nowhere\`, \`any/thing more\`, \`xtaci/smux\`, [a](./nowhere.md),
[b](#a-heading), [c](#nowhere), [d](../CONTRIBUTING.md#the-modules), [e](../CONTRIBUTING.md#nowhere), [f](./CONTRIBUTING.md).
`;
  assertEquals(await problems(markdown, "docs/text.md"), [
    "npx -y deno@1.0.0 task test: another Deno than that of .ci/run",
    "deno task tests: no such task",
    "deno task deep speed --rounds 1: no such long test",
    "deno task deep peers --round 1: no option --round",
    "deno task test --filters x tests/readme_test.ts: no option --filters",
    "deno task test tests/nowhere_test.ts: no such file",
    "deno task interop --themselves: no option --themselves",
    "deno task check --again: a task without arguments",
    "deno add jsr:@sluice/smux/nowhere: not what is published",
    "sluice server --listens 9000: no such option",
    "sluice cert --hosts example.com: no such option",
    "make: a command this test does not know",
    "task deep peers --round 1: no option --round",
    "--nowhere 1: no such option",
    "tests/nowhere.ts: no such file",
    "nowhere.ts: no such file",
    "@sluice/smux/nowhere: no such entrypoint",
    "apt-get install nowhere: not what .ci/run installs",
    "./nowhere.md: no such file",
    "#nowhere: no such heading",
    "../CONTRIBUTING.md#nowhere: no such heading",
    "./CONTRIBUTING.md: no such file",
  ]);
});

Deno.test("texts: every task that a workflow runs is real", async () => {
  const commands: string[] = [];
  for (const path of WORKFLOWS) commands.push(...captures(await read(path), /: (deno task [^|\n]*[^|\s])/g));
  assert(commands.length >= 8, commands.join("\n"));
  const found: string[] = [];
  for (const command of commands.map((command) => command.replace(/ \$\{\{.*?\}\}/g, ""))) {
    const problem = await commandProblem(command);
    if (problem !== undefined) found.push(`${command}: ${problem}`);
  }
  assertEquals(found, []);
});

Deno.test("texts: all files require the same version of Deno", async () => {
  const found: Record<string, string[]> = {};
  for (const path of [".ci/run", "README.md", "CONTRIBUTING.md", ...WORKFLOWS]) {
    const versions = captures(await read(path), /deno(?:@|-version: v)(\d+\.\d+\.\d+)/g);
    assert(versions.length > 0, `${path} names no version of Deno`);
    for (const version of versions) (found[version] ??= []).push(path);
  }
  assertEquals(Object.keys(found).length, 1, JSON.stringify(found));
});

Deno.test("texts: the newest version in the change log is that of deno.json", async () => {
  const versions = captures(await read("CHANGELOG.md"), /^## \[(.+?)\] - (?:unreleased|\d{4}-\d\d-\d\d)$/gm);
  assertEquals(versions[0], config.version);
});

// The programs.

const MODULE = new URL("mod.ts", ROOT).href;

/** The blocks of the README marked `ts ignore`: they run without end, or are parts of programs. */
const snippets = lazy(async () => captures(await read("README.md"), /^```ts ignore\n(.*?)^```$/gms));

/** Returns the one snippet that contains this text. */
async function snippet(part: string): Promise<string> {
  const found = (await snippets()).filter((text) => text.includes(part));
  assertEquals(found.length, 1, `snippets with ${part}`);
  return found[0]!;
}

/** Starts a program of the README, with this repository as the package and another port. */
async function startProgram(folder: string, name: string, text: string, port: number): Promise<Watched> {
  const path = `${folder}/${name}`;
  const local = text.replaceAll('"@sluice/smux"', `"${MODULE}"`)
    .replaceAll('"@sluice/smux/websocket"', `"${new URL("websocket.ts", ROOT)}"`);
  await Deno.writeTextFile(path, local.replaceAll("9000", `${port}`));
  return watch(
    new Deno.Command(Deno.execPath(), {
      args: ["run", "--no-config", "-A", path],
      cwd: folder,
      env: { NO_COLOR: "1" },
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).spawn(),
  );
}

Deno.test("texts: server.ts and client.ts of the README print the output shown, and the server stays up", async () => {
  await using resources = new AsyncDisposableStack();
  const { path: folder } = resources.use(await makeFolder("readme"));
  const port = freePort();
  const [shown] = captures(await read("README.md"), /^```console\n(.*?)^```$/gms);
  const [, listening, answers] = /^\$ [^\n]*server\.ts\n(.*\n)\n\$ [^\n]*client\.ts\n(.*\n)$/.exec(shown!)!;

  const server = resources.use(await startProgram(folder, "server.ts", await snippet('console.log("listening'), port));
  await server.until(new RegExp(`^${listening!.replace("9000", `${port}`)}`));
  for (let times = 0; times < 2; times++) {
    const client = resources.use(await startProgram(folder, "client.ts", await snippet("const echoes"), port));
    const { code, stdout, stderr } = await client.ended();
    assertEquals([code, stdout, stderr], [0, answers, ""]);
  }
  assertEquals(server.printed.stderr, "");
});

Deno.test("texts: each snippet of the README runs as described", async () => {
  await using resources = new AsyncDisposableStack();
  const { path: folder } = resources.use(await makeFolder("readme"));
  await Deno.writeFile(`${folder}/film.mp4`, pattern(1_000_000));
  const name = `import { join, serve, Session } from "@sluice/smux";\n`;
  const listen = `${name}const listener = Deno.listen({ port: 9000 });\n`;
  const connect = `${name}const session = Session.client(await Deno.connect({ port: 9000 }));\n`;
  // Prints when the client ends a stream.
  const logEnds = connect.replace(
    "}))",
    '}), { onFrame: (f) => `${f.direction} ${f.command}` === "sent FIN" && console.log("closed") })',
  );
  const say = `const stream = await session.openStream();
    await stream.write(new TextEncoder().encode("ping"));
    await stream.closeWrite();
    console.log(await new Response(stream.readable).text());
    await session.close();\n`;
  const [server, client] = (await snippet("onSession(session)")).split("// The client:\n");
  const [upgrades, connects] = (await snippet("upgradeWebSocket(")).split("// The client:\n");
  const [imports] = upgrades!.split("\n");
  const [inNode] = captures(await read("README.md"), /`(const session = Session\.client\(connect\(9000\)\))`/g);
  const service = resources.use(startService("8080: ", LOOPBACK));
  const measure = "serve(listener, async (s) => console.log((await new Response(s.readable).bytes()).length));\n";
  const echo = "serve(listener, (stream) => stream.readable.pipeTo(stream.writable));\n";
  const jobs: [server: string, client: string, printed: string, by: "server" | "client"][] = [
    [
      listen + (await snippet("port: 8080")).replace("8080", `${service.port}`),
      connect + say,
      "8080: ping\n",
      "client",
    ],
    [
      listen + server!,
      logEnds + client!,
      "news\nclosed\n",
      "client",
    ],
    [listen + measure, connect + await snippet("film.mp4") + "await session.close();\n", "1000000\n", "server"],
    [
      listen + echo,
      `${name}import { connect } from "node:net";\n${inNode}\n` + say,
      "ping\n",
      "client",
    ],
    [upgrades!, `${imports}\n${connects}` + say, "ping\n", "client"],
  ];
  for (const [n, [server, client, printed, by]] of jobs.entries()) {
    const port = freePort();
    const serving = resources.use(
      await startProgram(folder, `server${n}.ts`, `${server}console.log("ready");\n`, port),
    );
    await serving.until(/^ready\n/m);
    const asking = resources.use(await startProgram(folder, `client${n}.ts`, client, port));
    await (by === "server" ? serving : asking).until(new RegExp(`${printed}$`));
    const errors = serving.printed.stderr.replace(/^Listening on http.*\n/, ""); // Deno.serve
    assertEquals([errors, asking.printed.stderr], ["", ""]);
  }
  assertEquals((await snippets()).length, 6, "a snippet of the README is not tested here");
});

Deno.test("texts: the README's example of a channel prints what its comment shows", async () => {
  const [program] = captures(await read("README.md"), /^```ts\n(.*?)^```$/gms);
  const [shown] = captures(program!, /^console\.log\(.*?\); \/\/ (.*)$/gm);
  await using folder = await makeFolder("readme");
  await Deno.writeTextFile(`${folder.path}/main.ts`, program!);
  assertEquals(await deno("run", "--config", "deno.json", `${folder.path}/main.ts`), `${shown}\n`);
});

Deno.test("texts: the README's sender aborts and fails when its file cannot be read", async () => {
  await using resources = new AsyncDisposableStack();
  const { path: folder } = resources.use(await makeFolder("readme"));
  await Deno.mkdir(`${folder}/film.mp4`); // can be opened, but not read
  const port = freePort();
  const programs = {
    server: `import { serve } from "@sluice/smux";
      const listener = Deno.listen({ port: 9000 });
      serve(listener, async (stream) => console.log(await stream.read(new Uint8Array(1)).catch(({ name }) => name)));
      console.log("ready");\n`,
    client: `import { Session } from "@sluice/smux";
      await using session = Session.client(await Deno.connect({ port: 9000 }));
      ${await snippet("film.mp4")}`,
  };
  const server = resources.use(await startProgram(folder, "server.ts", programs.server, port));
  await server.until(/^ready\n/);
  const client = resources.use(await startProgram(folder, "client.ts", programs.client, port));
  assertEquals((await client.ended()).code, 1);
  await server.until(/StreamResetError\n$/);
});

Deno.test("texts: the servers of the guide survive the loss of a client", async () => {
  const programs = captures(await read("docs/guide.md"), /^```ts\n(.*?)^```$/gms);
  const use = (stream: string) => `await ${stream}.write(new Uint8Array(1)); await ${stream}.read(new Uint8Array(1));`;
  const losses = [
    ["await client.close();", `const lost = await client.openStream(); ${use("lost")} client.abort();`],
    ["await stream.closeWrite();\n  await stream.closed;\n  await client.close();", `${use("stream")} client.abort();`],
  ] as const;
  await using folder = await makeFolder("guide");
  for (const [end, loss] of losses) {
    const [program] = programs.filter((text) => text.includes(end) && text.includes("pipeTo"));
    await Deno.writeTextFile(`${folder.path}/main.ts`, program!.replace(end, loss));
    await deno("run", "-A", "--config", "deno.json", `${folder.path}/main.ts`); // an unhandled rejection would end it
  }
});

// The tunnel.

/** Replacements for the README's folder and ports. */
interface Stage {
  /** The working directory of the commands. */
  folder: string;
  /** The port in use, by the port in the README. */
  ports: Record<string, number>;
}

/** Commands of the README that belong together, in their order, and a check that they carry data. */
interface Tunnel {
  name: string;
  commands: string[];
  check(stage: Stage): Promise<void>;
}

const SCRIPT = new URL("tunnel.ts", ROOT).href;
const FIXTURES = new URL("fixtures/tls/", import.meta.url);
const LOOPBACK = "127.0.0.1";

const TUNNELS: Tunnel[] = [
  {
    name: "local and dynamic",
    commands: [
      "sluice server --listen 9000 --allow localhost:80 --allow '*:443'",
      "sluice client --connect 9000 --forward 8080=localhost:80 --socks 1080",
    ],
    async check({ ports }) {
      await exchange(await dial(ports[8080]!), "80");
      await exchange(await dialSocks(ports[1080]!, "localhost", ports[80]!), "80");
      await exchange(await dialSocks(ports[1080]!, LOOPBACK, ports[443]!), "443");
    },
  },
  {
    name: "reverse",
    commands: [
      "sluice server --listen 0.0.0.0:9000 --allow-listen 0.0.0.0:8000 --cert cert.pem --key key.pem --secret secret.txt",
      "sluice client --connect example.com:9000 --tls --secret secret.txt --reverse 0.0.0.0:8000=3000",
    ],
    async check({ ports }) {
      await exchange(await dial(ports[8000]!), "3000");
    },
  },
  {
    name: "a WebSocket through a proxy",
    commands: [
      "sluice server --listen wss://0.0.0.0:9000/way-in --cert cert.pem --key key.pem --secret secret.txt --allow '*:443'",
      "sluice client --connect wss://example.com:9000/way-in --proxy http://127.0.0.1:3128 --secret secret.txt --socks 1080",
    ],
    async check({ ports }) {
      await exchange(await dialSocks(ports[1080]!, LOOPBACK, ports[443]!), "443");
    },
  },
  {
    name: "any client of smux",
    commands: ["sluice server --listen 9000 --target localhost:80"],
    async check({ ports }) {
      for (const version of [1, 2] as const) {
        const session = Session.client(await dial(ports[9000]!), { version });
        await exchange(await session.openStream(), "80");
        await session.close();
      }
    },
  },
];

for (const { name, commands, check } of TUNNELS) {
  Deno.test(`texts: the README's tunnel commands, ${name}, carry data`, async () => {
    await using resources = new AsyncDisposableStack();
    const { path: folder } = resources.use(await makeFolder("readme"));
    await Deno.copyFile(new URL("localhost.pem", FIXTURES), `${folder}/cert.pem`);
    await Deno.copyFile(new URL("localhost.key", FIXTURES), `${folder}/key.pem`);
    await Deno.writeTextFile(`${folder}/secret.txt`, "open-sesame\n");

    const ports: Record<string, number> = {};
    for (const [port, hostname] of [["80", "localhost"], ["443", LOOPBACK], ["3000", LOOPBACK]] as const) {
      ports[port] = resources.use(startService(port, hostname)).port;
    }
    for (const port of ["9000", "8080", "1080", "8000"]) ports[port] = freePort();

    const proxy = resources.use(await startProxy());
    ports[3128] = proxy.port;
    const stage = { folder, ports };
    const processes = [];
    for (const command of commands) processes.push(resources.use(await start(command, stage)));
    await check(stage);
    assertEquals(proxy.asked(), commands.some((command) => command.includes("--proxy")) ? 1 : 0);
    for (const { printed } of processes) assertEquals(printed.stderr, "");
  });
}

Deno.test("texts: the tested tunnel commands are those of the README", async () => {
  const inReadme = commandsOfBlocks(await read("README.md")).filter((command) => command.startsWith("sluice "));
  assertEquals(TUNNELS.flatMap(({ commands }) => commands), inReadme);
});

/** Starts a service that answers with its name and all bytes received. */
function startService(name: string, hostname: string): AsyncDisposable & { port: number } {
  const listener = Deno.listen({ hostname, port: 0 });
  const answer = async (connection: Deno.TcpConn) => {
    using answering = connection;
    await writeAll(answering, concat([new TextEncoder().encode(name), await readAll(answering)]));
  };
  const serving = (async () => {
    const answers: Promise<void>[] = [];
    for await (const connection of listener) answers.push(answer(connection));
    await Promise.all(answers);
  })();
  const dispose = async () => {
    listener.close();
    await serving;
  };
  return { port: listener.addr.port, [Symbol.asyncDispose]: dispose };
}

/** Starts a proxy that serves `CONNECT`; `asked` is the number of requests. */
async function startProxy(): Promise<Disposable & { port: number; asked(): number }> {
  let asked = 0;
  const proxy = createServer().on("connect", ({ url }, near) => {
    asked++;
    const { hostname, port } = new URL(`http://${url}`);
    const far = connect(Number(port), hostname, () => near.write("HTTP/1.1 200 OK\r\n\r\n"));
    for (const [from, to] of [[near, far], [far, near]] as const) from.pipe(to).on("error", () => from.destroy());
  }).listen(0, LOOPBACK);
  await once(proxy, "listening");
  return { port: (proxy.address() as AddressInfo).port, asked: () => asked, [Symbol.dispose]: () => proxy.close() };
}

/** Runs a tunnel command, and waits until it listens on all its addresses. */
async function start(command: string, { folder, ports }: Stage) {
  const [, ...args] = words(command).map((word) =>
    word.replace(/\d+/g, (digits) => `${ports[digits] ?? digits}`).replace("example.com", LOOPBACK)
  );
  const places = args.filter((word) => ["--listen", "--forward", "--reverse", "--socks"].includes(word)).length;
  const ready = new RegExp(`^(listening on \\S+\\n){${places}}`, "m");
  const watched = watch(
    new Deno.Command(Deno.execPath(), {
      args: ["run", "--no-config", "-A", SCRIPT, ...args],
      cwd: folder,
      // The test certificate is signed by the fixtures' own authority.
      env: { NO_COLOR: "1", SLUICE_SECRET: "", DENO_CERT: fileURLToPath(new URL("ca.pem", FIXTURES)) },
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).spawn(),
  );
  await watched.until(ready);
  return watched;
}

function dial(port: number): Promise<Deno.TcpConn> {
  return Deno.connect({ hostname: LOOPBACK, port });
}

/** Connects by SOCKS 5 to a name that the proxy resolves. */
async function dialSocks(proxy: number, hostname: string, port: number): Promise<Deno.TcpConn> {
  const connection = await dial(proxy);
  const receive = async (length: number) => {
    const received = new Uint8Array(length);
    for (let at = 0; at < length;) {
      const count = await connection.read(received.subarray(at));
      assert(count !== null, "The proxy closed the connection");
      at += count;
    }
    return received;
  };
  try {
    await writeAll(connection, Uint8Array.of(5, 1, 0));
    assertEquals(await receive(2), Uint8Array.of(5, 0));
    const name = new TextEncoder().encode(hostname);
    await writeAll(connection, Uint8Array.of(5, 1, 0, 3, name.length, ...name, port >> 8, port & 255));
    assertEquals((await receive(10))[1], 0, "The proxy refused the request");
    return connection;
  } catch (error) {
    connection.close();
    throw error;
  }
}

/** Sends 300 000 bytes through a connection, whose other end must be the service with this name. */
async function exchange(
  connection: Required<Pick<Connection, "read" | "write" | "closeWrite" | "close">>,
  name: string,
) {
  try {
    const sent = pattern(300_000, name.length);
    const sending = writeAll(connection, sent).then(() => connection.closeWrite());
    const [received] = await Promise.all([readAll(connection), sending]);
    assertEquals(received, concat([new TextEncoder().encode(name), sent]));
  } finally {
    connection.close();
  }
}
