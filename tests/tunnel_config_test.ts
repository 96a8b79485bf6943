/** The configuration file of the tunnel: its mistakes, and the command that follows its changes. */

import { assert, assertEquals, assertMatch, assertStringIncludes, assertThrows } from "@std/assert";
import { hashSecret, openTunnel, serveTunnel } from "../tunnel.ts";
import { setTimeout } from "node:timers/promises";
import { makeCertificate } from "../tunnel/certificate.ts";
import { loadConfig } from "../tunnel/config.ts";
import { JsonError, parseJson } from "../tunnel/json.ts";
import { FileWatcher } from "../tunnel/watch.ts";
import { makeFolder, run as runProgram, watch, type Watched } from "./programs.ts";
import { freePort, pattern, readAll, text } from "./support.ts";
import { at, dial, fetchFiles, makeEcho, makeTarget, nowhere, promptly, say } from "./tunnel_support.ts";

const SCRIPT = new URL("../tunnel.ts", import.meta.url).href;
const HASH = await hashSecret("open-sesame");

/** Returns the message and position of the mistake in a text. */
function mistakeIn(text: string): string {
  const { message, position } = assertThrows(() => parseJson(text), JsonError);
  return `${position.line}:${position.column} ${message}`;
}

Deno.test("parseJson() returns what JSON.parse returns", () => {
  const texts = [
    "null",
    " [ ] ",
    "{ }",
    "-0.5e+3",
    '"\\u00e9\\n\\"/\\\\"',
    '[1,2,[true,false],{"a":{"":[]}}]',
    '{"__proto__":1,"a.b":2,"a[0]":3}',
    "[0,10,1E2]",
  ];
  for (const text of texts) assertEquals(parseJson(text).value, JSON.parse(text));
  assertEquals(parseJson("\ufeff{}").value, {});
});

Deno.test("parseJson() finds the line and column of each value", () => {
  const { find } = parseJson('{\n  "client": { "forward": [1,\n 2] },\r\n "a": 3\n}');
  const found = (path: string) => Object.values(find(path)).join(":");
  assertEquals(["", "client", "client.forward", "client.forward[1]", "a"].map(found), [
    "1:1",
    "2:13",
    "2:26",
    "3:2",
    "4:7",
  ]);
  // The nearest value that exists.
  assertEquals(["client.forward[2]", "client.x.y", "x", "x]", "client[x", "]["].map(found), [
    "2:26",
    "2:13",
    "1:1",
    "1:1",
    "2:13",
    "1:1",
  ]);
});

Deno.test("parseJson() throws with what was expected and received, and where", () => {
  const cases: [text: string, message: string][] = [
    ["", "1:1 expected a value, received the end of the text"],
    [" \n x", "2:2 expected a value, received x"],
    ['{"a":1,}', "1:8 expected a name in double quotes, received }"],
    ["[1,]", "1:4 expected a value, received ]"],
    ["{a: 1}", "1:2 expected a name in double quotes, received a"],
    ["{'a': 1}", "1:2 expected a name in double quotes, received '"],
    ['{"a" 1}', '1:6 expected ":", received 1'],
    ['{"a": 1 "b": 2}', '1:9 expected "," or "}", received "'],
    ["[1 2]", '1:4 expected "," or "]", received 2'],
    ['{"a": [1', '1:9 expected "," or "]", received the end of the text'],
    ['{"a"', '1:5 expected ":", received the end of the text'],
    ['{"a": "b', '1:7 expected a text that ends with a double quote, with valid escapes, received "'],
    ['["\\x"]', '1:2 expected a text that ends with a double quote, with valid escapes, received "'],
    ['["a\tb"]', '1:2 expected a text that ends with a double quote, with valid escapes, received "'],
    ['["a\nb"]', '1:2 expected a text that ends with a double quote, with valid escapes, received "'],
    ["{} {}", "1:4 expected the end of the text, received {"],
    ["[01]", "1:2 expected a value, received 0"],
    ["[.5]", "1:2 expected a value, received ."],
    ["[+1]", "1:2 expected a value, received +"],
    ["[1.]", "1:2 expected a value, received 1"],
    ["[nul]", "1:2 expected a value, received n"],
    ["[nulls]", "1:2 expected a value, received n"],
    ["[undefined]", "1:2 expected a value, received u"],
    ["[1] // comment", "1:5 expected the end of the text, received /"],
    ['{"a": {"b": 1,\n"b": 2}}', "2:1 a.b must occur only once"],
    ["[\u{1f600}]", "1:2 expected a value, received \u{1f600}"],
  ];
  for (const [text, message] of cases) assertEquals(mistakeIn(text), message);
});

/** Makes a folder with files, and loads one of them. */
async function withFiles<T>(files: Record<string, string>, use: (path: string) => T | Promise<T>): Promise<T> {
  await using folder = await makeFolder("config");
  for (const [name, text] of Object.entries(files)) await Deno.writeTextFile(`${folder.path}/${name}`, text);
  return await use(folder.path);
}

/** Returns the mistakes of a file, without its folder. */
async function mistakesOf(text: string, files: Record<string, string> = {}): Promise<string[]> {
  return await withFiles({ ...files, "sluice.json": text }, (folder) => {
    const { config, mistakes } = loadConfig(`${folder}/sluice.json`);
    assertEquals(config === undefined, mistakes.length > 0);
    return mistakes.map((mistake) => mistake.replaceAll(`${folder}/`, ""));
  });
}

const SERVER_FIELDS =
  "listen, target, allow, allowListen, acceptProxy, users, cert, key, clientCa, backend, secret, insecure, " +
  "stalledStreamTimeout, status, connectTimeout, udpTimeout, keepAliveInterval, timeout, maxStreams, maxReceiveBuffer";
const FORMS = "HOST:PORT, [IPV6]:PORT, PORT or unix:PATH";

// Each mistake of one option: its JSON, and the message after the path of the option.
const SERVER_CASES: [option: string, json: string, message: string][] = [
  ["listen", "9000", " must be a text, received 9000"],
  ["listen", '"nowhere"', ` must be ${FORMS}, received "nowhere"`],
  ["listen", '"localhost:70000"', " must have a port from 0 to 65535, received 70000"],
  ["listen", "null", " must be a text, received null"],
  ["target", '"0"', " must have a port from 1 to 65535, received 0"],
  ["allow", '"*:443"', " must be a list of texts, received a text"],
  ["allow", '{"0": "*:443"}', " must be a list of texts, received an object"],
  ["allow", '["*:443", 80]', "[1] must be a text, received 80"],
  [
    "allow",
    '["*:443", "*:80-"]',
    `[1] must be HOST:PORT, [IPV6]:PORT, NETWORK/BITS:PORT, PORT or unix:PATH, where ` +
    `HOST may be *, PORT may be * or a range as 8000-8010, ! in front denies, and udp: before HOST is for datagrams, received "*:80-"`,
  ],
  ["allowListen", '["*:9-1"]', "[0] must have a port from 1 to 65535, or a range of them, received 9-1"],
  [
    "acceptProxy",
    '["10.0.0.0/33"]',
    '[0] must be an IP address or ADDRESS/BITS, received "10.0.0.0/33"',
  ],
  ["users", "7", " must be a list, received a number"],
  ["users", "[7]", "[0] must be an object, received a number"],
  ["users", '[{"name": "a"}]', "[0] must have the field secret, received only name"],
  [
    "users",
    `[{"name": "a b", "secret": "${HASH}"}]`,
    "[0].name must be 1 to 64 printable ASCII characters without " +
    'space or colon, received "a b"',
  ],
  [
    "users",
    '[{"name": "a", "secret": "open-sesame"}]',
    "[0].secret must be a hash as `sluice hash` prints it, received " +
    "another text",
  ],
  ["users", '"none.json"', " must be the path of a file: no such file"],
  ["listen", '["ws://127.0.0.1:0/sesame"]', " must be a text, received a list"],
  ["users", '{"alice": "sesame"}', " must be a list, received an object"],
  ["users", '["sesame"]', "[0] must be an object, received a text"],
  ["listen", '"ws://h/a b"', ' must be ws://HOST:PORT/PATH or wss://HOST:PORT/PATH, received "ws://h/..."'],
  [
    "listen",
    '"wss://127.0.0.1:0/a"',
    ' requires cert and key with wss://, received only "wss://127.0.0.1:0"; behind a ' +
    "proxy that ends TLS use ws://",
  ],
  ["backend", "7", " must be a text, received 7"],
  ["backend", '"https://a"', ' must be http://HOST:PORT, received "https://a"'],
  ["cert", '"none.pem"', " must be the path of a file: no such file"],
  ["key", "1", " must be the path of a file, received another type"],
  ["secret", "12345", " must be the path of a file, received another type"],
  ["secret", '"hunter2"', " must be the path of a file: no such file"],
  ["insecure", '"true"', ' must be true or false, received "true"'],
  ["insecure", "1", " must be true or false, received 1"],
  ["stalledStreamTimeout", "0", ' must be an integer from 1 to 2147483647, in milliseconds, or "Infinity", received 0'],
  ["connectTimeout", "1.5", ' must be an integer from 1 to 2147483647, in milliseconds, or "Infinity", received 1.5'],
  ["connectTimeout", '"5s"', ' must be an integer from 1 to 2147483647, in milliseconds, or "Infinity", received "5s"'],
  [
    "connectTimeout",
    "1e99",
    ' must be an integer from 1 to 2147483647, in milliseconds, or "Infinity", received 1e+99',
  ],
  ["status", '"9100x"', ` must be ${FORMS}, received "9100x"`],
  [
    "status",
    '"0.0.0.0:9100"',
    ' must be a loopback address, received "0.0.0.0:9100": accepting connections from other ' +
    "machines requires insecure",
  ],
  ["signal", "1", ` is unknown, expected one of ${SERVER_FIELDS}`],
  ["onError", "1", ` is unknown, expected one of ${SERVER_FIELDS}`],
  ["authorize", "1", ` is unknown, expected one of ${SERVER_FIELDS}`],
  ["toString", "1", ` is unknown, expected one of ${SERVER_FIELDS}`],
  ["__proto__", "{}", ` is unknown, expected one of ${SERVER_FIELDS}`],
  ["Listen", '"9000"', ` is unknown, expected one of ${SERVER_FIELDS}`],
  ["status", '"${SLUICE_TEST_NONE}"', " names the variable SLUICE_TEST_NONE, which is not set"],
  ["status", '"${A-B}"', ' must name variables as ${NAME}, received "${A-B}"'],
  ["status", '"${}"', ' must name variables as ${NAME}, received "${}"'],
  ["status", '"${PATH"', ' must name variables as ${NAME}, received "${"'],
  ["secret", '"${SLUICE_TEST_NONE}"', " names the variable SLUICE_TEST_NONE, which is not set"],
  ["users", '[{"name": "${SLUICE_TEST_NONE}"}]', "[0].name names the variable SLUICE_TEST_NONE, which is not set"],
];
const CLIENT_CASES: typeof SERVER_CASES = [
  ["connect", '"localhost"', ` must be ${FORMS}, received "localhost"`],
  ["connect", '"wss://h:0/sesame"', " must have a port from 1 to 65535, received 0"],
  ["headers", '["a: b", "Host: c"]', "[1] must not contain a header of the handshake itself, received Host"],
  ["headers", '{"Authorization": "Bearer sesame"}', " must be a list of texts, received an object"],
  ["proxy", '["http://joe:sesame@host:80"]', " must be a text, received a list"],
  ["connect", '{"a": "wss://h/sesame"}', " must be a text, received an object"],
  ["wait", '["sesame"]', ' must be an integer from 0 to 2147483647, in milliseconds, or "Infinity", received a list'],
  ["headers", '"a: b"', " must be a list of texts, received a text"],
  ["forward", '["8080:host:80"]', `[0] must be ${FORMS}, received "8080:host:80"`],
  ["forward", '["8080=host:80", "8081=", "8082=x"]', `[1] must be ${FORMS}, received ""`],
  ["forward", '[["8080"]]', "[0] must be a text, received a list"],
  [
    "forward",
    '["0.0.0.0:1=2"]',
    ' must be a loopback address, received "0.0.0.0:1": accepting connections from other ' +
    "machines requires insecure",
  ],
  ["reverse", '["8000"]', '[0] must be LISTEN=TARGET, received "8000"'],
  ["reverse", '["1=2", "1=3"]', " must contain each LISTEN only once, received 1 twice"],
  ["socks", '["1080=x"]', `[0] must be ${FORMS}, received "1080=x"`],
  ["user", '"a:b"', ' must be 1 to 64 printable ASCII characters without space or colon, received "a:b"'],
  ["user", '"alice"', " requires secret, received only user"],
  ["tls", '"yes"', ' must be true or false, received "yes"'],
  ["ca", '"sluice.json"', ' must be certificates in PEM, received text without "-----BEGIN CERTIFICATE-----"'],
  ["version", "3", " must be 1 or 2, received 3"],
  ["version", '"2"', ' must be 1 or 2, received "2"'],
  ["retry", "null", " must be true or false, received null"],
  ["reconnect", "[]", " must be true or false, received a list"],
  ["resume", "{}", " must be true or false, received an object"],
  ["wait", "-1", ' must be an integer from 0 to 2147483647, in milliseconds, or "Infinity", received -1'],
];

Deno.test("loadConfig() names the path of each mistake of an option, and its line and column", async () => {
  const check = async (end: "server" | "client", others: Record<string, string>, cases: typeof SERVER_CASES) => {
    for (const [option, json, message] of cases) {
      const { [option]: _, ...rest } = others;
      const fields = Object.entries(rest).map(([name, value]) => `"${name}": ${value}, `).join("");
      const [mistake, second] = await mistakesOf(`{ "${end}": { ${fields}\n"${option}": ${json} } }`);
      const before = `${end}.${option}${message}`;
      assertStringIncludes(mistake ?? "", `: ${before}`);
      assertEquals(mistake!.endsWith(before), true, mistake);
      assertMatch(mistake!, /^sluice\.json:2:\d+: /);
      // "forward" has two.
      if (option !== "forward") assertEquals(second, undefined);
    }
  };
  await check("server", { listen: '"9000"', allow: "[]" }, SERVER_CASES);
  await check("client", { connect: '"9000"', socks: "[]", forward: "[]" }, CLIENT_CASES);
});

Deno.test("loadConfig() names mistakes of the whole file, of combinations and of named files", async () => {
  const files = {
    "users.json": `[\n{ "name": "a", "secret": "${HASH}" },\n{ "name": "b", "secret": "${HASH}", "allow": ["x"] }]`,
    "broken.json": "[\n{]",
    "unquoted.json": "http://joe:sesame@host:80",
    "secret.txt": "two words\n",
    "empty.txt": "\n",
  };
  const cases: [text: string, mistakes: string[]][] = [
    ["", ["sluice.json:1:1: expected a value, received the end of the text"]],
    ["[]", ["sluice.json:1:1: the file must be an object, received a list"]],
    ["{}", ["sluice.json:1:1: the file must have server or client"]],
    ['{ "servers": {} }', [
      "sluice.json:1:14: servers is unknown, expected one of server, client",
      "sluice.json:1:1: the file must have server or client",
    ]],
    ['{ "server": [] }', ["sluice.json:1:13: server must be an object, received a list"]],
    ['{ "server": {} }', [
      "sluice.json:1:13: server must have listen, received only {}",
      "sluice.json:1:13: server must have target, allow, allowListen or users, received none of them",
    ]],
    ['{ "client": { "wait": 1 } }', [
      "sluice.json:1:13: client must have connect, received only wait",
      "sluice.json:1:13: client must have forward, reverse, socks, http or reverseSocks, received none of them",
    ]],
    ['{ "server": { "listen": "1", "allow": [], "target": "2" } }', []],
    ['{ "server": { "listen": "1", "allow": ["3"], "target": "2" } }', [
      "sluice.json:1:56: server.target cannot be combined with secret, allow or allowListen",
    ]],
    ['{ "server": { "listen": "0.0.0.0:1", "allow": [] } }', [
      'sluice.json:1:25: server.listen must be a loopback address, received "0.0.0.0:1": accepting connections from ' +
      "other machines requires TLS and a secret, or insecure",
    ]],
    ['{ "server": { "listen": "1", "users": "users.json" } }', [
      "users.json:3:119: users[1].allow[0] must be HOST:PORT, [IPV6]:PORT, NETWORK/BITS:PORT, PORT or unix:PATH, where " +
      'HOST may be *, PORT may be * or a range as 8000-8010, ! in front denies, and udp: before HOST is for datagrams, received "x"',
    ]],
    ['{ "server": { "listen": "1", "users": "broken.json" } }', [
      "broken.json:2:2: expected a name in double quotes, received ]",
    ]],
    ['{ "server": { "listen": "1", "users": "unquoted.json" } }', [
      "unquoted.json:1:1: expected a value, received h",
    ]],
    ['"sesame"', ["sluice.json:1:1: the file must be an object, received a text"]],
    ["123456", ["sluice.json:1:1: the file must be an object, received a number"]],
    ['{ "client": { "proxy": http://joe:sesame@host:80" } }', [
      "sluice.json:1:24: expected a value, received h",
    ]],
    ['{ "server": { "listen": "1", "users": [], "secret": "secret.txt" } }', [
      "sluice.json:1:53: server.secret must be non-empty printable ASCII without spaces",
    ]],
    ['{ "server": { "listen": "1", "allow": [], "secret": "empty.txt" } }', [
      "sluice.json:1:53: server.secret must be non-empty printable ASCII without spaces",
    ]],
    ['{ "server": { "listen": "1", "allow": [], "timeout": 1, "keepAliveInterval": 2 } }', [
      "sluice.json:1:54: server.timeout must be at least keepAliveInterval, 2, received 1",
    ]],
    ['{ "client": { "connect": "1", "forward": ["2"], "timeout": 1, "keepAliveInterval": 2 } }', [
      "sluice.json:1:60: client.timeout must be at least keepAliveInterval, 2, received 1",
    ]],
    ['{ "server": { "listen": "1", "allow": [], "cert": "secret.txt" } }', [
      "sluice.json:1:51: server.cert and key must be set together, received only cert",
    ]],
    ['{ "server": { "listen": "x", "alow": [] }, "client": { "connect": "y", "forward": ["z", "1=2", "w"] } }', [
      "sluice.json:1:38: server.alow is unknown, expected one of " + SERVER_FIELDS,
      "sluice.json:1:13: server must have target, allow, allowListen or users, received none of them",
      `sluice.json:1:25: server.listen must be ${FORMS}, received "x"`,
      `sluice.json:1:67: client.connect must be ${FORMS}, received "y"`,
      `sluice.json:1:84: client.forward[0] must be ${FORMS}, received "z"`,
      `sluice.json:1:96: client.forward[2] must be ${FORMS}, received "w"`,
    ]],
  ];
  for (const [text, mistakes] of cases) assertEquals(await mistakesOf(text, files), mistakes, text);
  assertEquals(loadConfig("/none/sluice.json").mistakes, ["/none/sluice.json cannot be read: no such file"]);
});

Deno.test("loadConfig() returns the options, with the content of files and the values of variables", async () => {
  const files = {
    "sluice.json": `\ufeff{
      "server": { "listen": "\${SLUICE_TEST_HOST}:\${SLUICE_TEST_PORT}", "users": "users.json", "connectTimeout": "Infinity" },
      "client": { "connect": "9000", "secret": "\${SLUICE_TEST_FILE}.txt", "forward": ["1=\${SLUICE_TEST_HOST}:2"], "wait": 0 }
    }`,
    "users.json": `[{ "name": "a", "secret": "${HASH}" }]`,
    "secret.txt": "sesame\n",
  };
  const env = { SLUICE_TEST_HOST: "127.0.0.1", SLUICE_TEST_PORT: "9000", SLUICE_TEST_FILE: "secret" };
  for (const [name, value] of Object.entries(env)) Deno.env.set(name, value);
  try {
    await withFiles(files, (folder) => {
      const { config, mistakes, texts } = loadConfig(`${folder}/sluice.json`);
      assertEquals(mistakes, []);
      assertEquals(config, {
        server: { listen: "127.0.0.1:9000", users: [{ name: "a", secret: HASH }], connectTimeout: Infinity },
        client: { retry: true, connect: "9000", secret: "sesame", forward: ["1=127.0.0.1:2"], wait: 0 },
      });
      assertEquals([...texts.keys()], ["sluice.json", "users.json", "secret.txt"].map((name) => `${folder}/${name}`));
      const { config: one } = loadConfig(`${folder}/sluice.json`, "client");
      assertEquals(one?.server, undefined);
    });
  } finally {
    for (const name of Object.keys(env)) Deno.env.delete(name);
  }
});

Deno.test("loadConfig() accepts a list of WebSocket servers, and hides the path of one that is malformed", async () => {
  const file = (...connect: string[]) => JSON.stringify({ client: { connect, socks: ["1080"] } });
  const connect = ["wss://a.example/sesame", "ws://b.example:1/sesame", "c.example:2"];
  await withFiles({ "sluice.json": file(...connect) }, (folder) => {
    const { config, mistakes } = loadConfig(`${folder}/sluice.json`);
    assertEquals([mistakes, config?.client?.connect], [[], connect]);
  });
  assertEquals(await mistakesOf(file("a.example:1", "wss://b.example/ses ame")), [
    "sluice.json:1:37: client.connect[1] must be ws://HOST:PORT/PATH or wss://HOST:PORT/PATH, " +
    'received "wss://b.example/..."',
  ]);
});

Deno.test("loadConfig() uses $SLUICE_SECRET where neither secret, target nor users is set", async () => {
  const client = '"client": { "connect": "1", "socks": ["2"] }';
  const file = (server: string) => `{ "server": { "listen": "1", ${server} }, ${client} }`;
  const files = { "1.json": file('"allow": ["3"]'), "2.json": file('"target": "3"'), "3.json": file('"users": []') };
  // Not in this process, whose variables are inherited by the commands that other tests start.
  const program = `import { loadConfig } from "${new URL("../tunnel/config.ts", import.meta.url)}";
    for (const path of Deno.args) {
      const { config, mistakes } = loadConfig(path);
      console.log(mistakes.length, config.server.secret, config.client.secret);
    }`;
  await withFiles(files, async (folder) => {
    const paths = Object.keys(files).map((name) => `${folder}/${name}`);
    const options = { env: { NO_COLOR: "1", SLUICE_SECRET: "sesame" } };
    const printed = await runProgram(Deno.execPath(), ["eval", program, ...paths], options);
    assertEquals(text(printed), "0 sesame sesame\n0 undefined sesame\n0 undefined sesame\n");
  });
});

Deno.test("loadConfig() accepts examples/sluice.json, with the files that it names", async () => {
  const made = await makeCertificate(["127.0.0.1"]);
  const files = {
    "sluice.json": await Deno.readTextFile(new URL("../examples/sluice.json", import.meta.url)),
    "cert.pem": made.cert,
    "key.pem": made.key,
    "users.json": `[{ "name": "alice", "secret": "${HASH}" }]`,
    "secret.txt": "open-sesame",
  };
  Deno.env.set("SLUICE_SERVER", "example.com:9000");
  await withFiles(files, (folder) => {
    const { mistakes, config } = loadConfig(`${folder}/sluice.json`);
    assertEquals([mistakes, config!.client!.connect], [[], "example.com:9000"]);
  }).finally(() => Deno.env.delete("SLUICE_SERVER"));
});

Deno.test("FileWatcher reports a changed, a replaced and a linked file, and not its own reading", async () => {
  await using folder = await makeFolder("watch");
  await using linked = await makeFolder("watch-linked");
  const path = `${folder.path}/a.json`;
  await Deno.writeTextFile(path, "1");
  await Deno.writeTextFile(`${linked.path}/b.json`, "1");
  await Deno.symlink(`${linked.path}/b.json`, `${folder.path}/b.json`);
  let changed = Promise.withResolvers<void>();
  const watcher = new FileWatcher(() => {
    for (const name of ["a.json", "b.json"]) Deno.readTextFileSync(`${folder.path}/${name}`);
    changed.resolve();
  }, (error) => changed.reject(error));
  watcher.watch([path, `${folder.path}/b.json`]);
  const steps = [
    () => Deno.writeTextFile(path, "2"),
    async () => {
      await Deno.writeTextFile(`${folder.path}/a.json~`, "3");
      await Deno.rename(`${folder.path}/a.json~`, path);
    },
    () => Deno.writeTextFile(`${linked.path}/b.json`, "2"),
  ];
  for (const step of steps) {
    changed = Promise.withResolvers();
    await step();
    await promptly(changed.promise);
  }
  watcher.close();
  const { promise, reject } = Promise.withResolvers<void>();
  const failing = new FileWatcher(() => {}, reject);
  failing.watch([`${folder.path}/none/a.json`]);
  assertMatch(String(await promise.catch(String)), /Cannot watch .*\/none: /);
  failing.close();
});

/** The command with a configuration file. */
interface Configured extends AsyncDisposable {
  watched: Watched;
  path: string;
  /** Replaces the file by a rename, as editors do. */
  write(config: unknown): Promise<void>;
  /** Writes another file in the same folder. */
  put(name: string, text: string): Promise<void>;
  /** Waits until this many lines of stdout match in all. */
  count(line: string, times: number): Promise<void>;
  /** Replaces the file, and waits until it is applied. */
  reload(config: unknown): Promise<void>;
}

/** Matches a text with this many lines that begin with a word; lines can be split in one way only, so it is fast. */
const counted = (word: string, times: number) => new RegExp(`^(?:(?:(?!${word} ).*\\n)*${word} .*\\n){${times}}`);

/** Starts the command with a file, and waits until it listens on `places` addresses. */
async function start(
  config: unknown,
  { args = [], files = {}, places = 1, env = {} }: {
    args?: string[];
    files?: Record<string, string>;
    places?: number;
    env?: Record<string, string>;
  } = {},
): Promise<Configured & { addrs: string[] }> {
  const folder = await makeFolder("config");
  const path = `${folder.path}/sluice.json`;
  const put = async (name: string, text: string) => {
    await Deno.writeTextFile(`${folder.path}/${name}.new`, text);
    await Deno.rename(`${folder.path}/${name}.new`, `${folder.path}/${name}`);
  };
  const write = (config: unknown) => put("sluice.json", typeof config === "string" ? config : JSON.stringify(config));
  for (const [name, text] of Object.entries(files)) await put(name, text);
  await write(config);
  const command = new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-config", "--no-prompt", "-A", SCRIPT, ...args, "--config", path],
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
    env: { NO_COLOR: "1", ...env },
  });
  const watched = watch(command.spawn());
  // The lines of events have more words.
  await watched.until(new RegExp(`^(?:(?:(?!listening on \\S+\n).*\\n)*listening on \\S+\n){${places}}`));
  const addrs = Array.from(watched.printed.stdout.matchAll(/^listening on (\S+)$/gm), ([, addr]) => addr!);
  const count = async (line: string, times: number) => void await watched.until(counted(line, times));
  let reloads = 0;
  const reload = async (config: unknown) => {
    await write(config);
    await count("reloaded", ++reloads);
  };
  const dispose = async () => {
    await watched[Symbol.asyncDispose]();
    await folder[Symbol.asyncDispose]();
  };
  return { watched, path, put, write, count, reload, addrs, [Symbol.asyncDispose]: dispose };
}

const makeNamed = (name: string) =>
  makeTarget(async (connection) => {
    await connection.write(new TextEncoder().encode(name));
  });

/** Returns the name of the target that an address leads to. */
async function nameAt(addr: string): Promise<string> {
  using connection = await dial(addr);
  return text(await readAll(connection));
}

async function isFree(addr: string): Promise<boolean> {
  return await dial(addr).then((connection) => connection.close(), () => true) ?? false;
}

// Milliseconds between chunks, and chunks of a file: a download lasts for about 20 reloads.
const CHUNK_DELAY = 50;
const CHUNKS = 20;

/** Serves the files that `fetchFiles` expects, slowly. */
function serveSlowly() {
  return Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, (request) => {
    const size = Number(new URL(request.url).pathname.slice(1));
    const file = pattern(size, size);
    let sent = 0;
    return new Response(
      new ReadableStream({
        async pull(controller) {
          await setTimeout(CHUNK_DELAY);
          const end = Math.min(size, sent + Math.ceil(size / CHUNKS));
          controller.enqueue(file.subarray(sent, end));
          sent = end;
          if (sent === size) controller.close();
        },
      }),
    );
  });
}

for (const version of [1, 2] as const) {
  Deno.test(`tunnel command: a reload every 50 ms does not disturb 100 downloads, version ${version}`, async () => {
    const web = serveSlowly();
    const [one, two] = [freePort(), freePort()];
    const config = (more: boolean) => ({
      server: {
        listen: "127.0.0.1:0",
        allow: [at(web.addr), ...more ? ["*:443"] : []],
        allowListen: ["127.0.0.1:*"],
      },
      client: {
        connect: `127.0.0.1:${one}`,
        version,
        forward: [`127.0.0.1:${two}=${at(web.addr)}`, ...more ? ["0=127.0.0.1:1"] : []],
        reverse: [`127.0.0.1:0=${at(web.addr)}`],
      },
    });
    const listen = (more: boolean) => {
      const { server, client } = config(more);
      return { server: { ...server, listen: `127.0.0.1:${one}` }, client };
    };
    await using command = await start(listen(false), { places: 3 });
    const { child } = command.watched;
    let [isDone, reloads] = [false, 0];
    const reloading = (async () => {
      while (!isDone) {
        await command.write(listen(reloads % 2 === 0));
        child.kill("SIGHUP");
        await command.count("reloaded", ++reloads);
        await setTimeout(50);
      }
    })();
    const reverse = command.addrs[2]!;
    const sizes = Array.from({ length: 25 }, (_, n) => 400_000 + n);
    for (let round = 0; round < 2; round++) {
      await Promise.all([fetchFiles(`127.0.0.1:${two}`, sizes), fetchFiles(reverse, sizes)]);
    }
    isDone = true;
    await reloading;
    // Each of the two configurations twice, while files are downloaded.
    assert(reloads >= 4, `only ${reloads} reloads`);
    child.kill("SIGTERM");
    const { code, stdout, stderr } = await command.watched.ended();
    assertEquals([code, stderr], [0, ""]);
    assertMatch(stdout, /forwarded 200 streams over 2 connections\n$/);
    await web.shutdown();
  });
}

Deno.test("tunnel command: an invalid file changes nothing, and each mistake is printed; a valid one is applied", async () => {
  await using named = await makeNamed("named");
  await using echo = makeEcho();
  const port = freePort();
  const allow = ["127.0.0.1:*"];
  const forward = [`127.0.0.1:${freePort()}=${named.addr}`, `127.0.0.1:${freePort()}=${echo.addr}`];
  const [first, second] = forward.map((text) => text.split("=")[0]!) as [string, string];
  const config = { server: { listen: `${port}`, allow }, client: { connect: `${port}`, forward } };
  await using command = await start(config, { places: 3 });
  using open = await dial(second);
  assertEquals(await say(open, "before"), "before");

  await command.write({ ...config, client: { connect: `${port}`, forward: ["x", forward[0], "y"], target: 1 } });
  await command.count("did not reload", 1);
  const { stderr } = command.watched.printed;
  assertEquals(stderr.match(/^.*sluice\.json:1:\d+: client\.\S+/gm)?.map((line) => line.replace(/.*: /, "")), [
    "client.target",
    "client.forward[0]",
    "client.forward[2]",
  ]);
  await command.write('{ "server": ');
  await command.count("did not reload", 2);
  await command.write({ server: config.server });
  await command.count("did not reload", 3);
  // The server would accept its part; the client cannot listen there.
  using used = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const taken = [...forward, `${at(used.addr)}=${named.addr}`];
  await command.write({ server: { listen: `${port}`, allow: [] }, client: { connect: `${port}`, forward: taken } });
  await command.count("did not reload", 4);
  assertEquals([await nameAt(first), await say(open, "still")], ["named", "still"]);

  const third = `127.0.0.1:${freePort()}`;
  await command.reload({ ...config, client: { connect: `${port}`, forward: [forward[0], `${third}=${named.addr}`] } });
  assertStringIncludes(command.watched.printed.stdout, `stopped listening on ${second}\nlistening on ${third}\n`);
  assertEquals([await nameAt(first), await nameAt(third), await isFree(second)], ["named", "named", true]);
  assertEquals(await say(open, "after"), "after");
});

Deno.test("tunnel command: a changed file of users, certificate or secret is applied", async () => {
  await using named = await makeNamed("named");
  const [old, next] = [await makeCertificate(["127.0.0.1"]), await makeCertificate(["127.0.0.1"])];
  const user = { name: "alice", secret: HASH, allow: [named.addr] };
  const files = {
    "users.json": JSON.stringify([user]),
    "cert.pem": old.cert,
    "key.pem": old.key,
  };
  const server = { listen: "127.0.0.1:0", users: "users.json", cert: "cert.pem", key: "key.pem" };
  await using command = await start({ server }, { args: ["server"], files });
  const connect = command.addrs[0]!;
  const quiet = { user: "alice", secret: "open-sesame", onError() {} };
  await using client = await openTunnel({ connect, ca: old.cert, ...quiet });
  const ask = async () => {
    const stream = await client.connect(named.addr);
    const answer = text(await readAll(stream));
    stream.close();
    return answer;
  };
  assertEquals(await ask(), "named");
  await command.put("users.json", JSON.stringify([{ ...user, allow: [] }]));
  await command.count("reloaded", 1);
  assertMatch(await ask().catch(String), /not allowed/);
  await command.put("users.json", JSON.stringify([user]));
  await command.count("reloaded", 2);
  assertEquals(await ask(), "named");

  // Between the two changes the certificate and the key do not match.
  await command.put("cert.pem", next.cert);
  await command.put("key.pem", next.key);
  await command.count("reloaded", 3);
  assertEquals(await ask(), "named");
  assertMatch(await openTunnel({ connect, ca: old.cert, ...quiet }).then(() => "", String), /invalid peer certificate/);
  await using other = await openTunnel({ connect, ca: next.cert, ...quiet });
  (await other.connect(named.addr)).close();
});

Deno.test("tunnel command: a reverse port that moves to a new server is not logged as stopped, but where it listens", async () => {
  await using named = await makeNamed("named");
  const options = { listen: "127.0.0.1:0", allowListen: ["127.0.0.1:*"], onError() {} };
  await using first = serveTunnel(options);
  await using second = serveTunnel(options);
  const place = `127.0.0.1:${freePort()}`;
  const client = (connect: string, ...reverse: string[]) => ({ client: { connect, socks: ["127.0.0.1:0"], reverse } });
  const entry = `${place}=${named.addr}`;
  await using command = await start(client(first.serverAddr, entry), { places: 2 });
  await command.reload(client(second.serverAddr, entry));
  const { watched } = command;
  await watched.until(new RegExp(`^listening on ${place} at ${second.serverAddr}$`, "m"));
  assertEquals(await nameAt(place), "named");
  assertEquals(watched.printed.stdout.includes("stopped"), false, watched.printed.stdout);
  await command.reload(client(second.serverAddr));
  await watched.until(new RegExp(`^stopped listening on ${place}$`, "m"));
});

Deno.test("tunnel command: a client that waits for its server follows changes of the file", async () => {
  await using echo = makeEcho();
  const port = freePort();
  const forward = [`127.0.0.1:${freePort()}=${echo.addr}`];
  const server = { listen: `${port}`, allow: [echo.addr] };
  await using command = await start({ server, client: { connect: nowhere(), forward } });
  await command.watched.until(/cannot connect to/, "stderr");
  await command.reload({ server, client: { connect: `${port}`, forward } });
  await command.watched.until(new RegExp(`listening on ${forward[0]!.split("=")[0]}\n`));
  using connection = await dial(forward[0]!.split("=")[0]!);
  assertEquals(await say(connection, "hello"), "hello");
  connection.close();
  command.watched.child.kill("SIGTERM");
  assertEquals((await command.watched.ended()).code, 0);
});

Deno.test("tunnel command: a client that still waits for its server ends on SIGTERM", async () => {
  const client = { connect: nowhere(), socks: ["0"] };
  const server = { listen: "127.0.0.1:0", allow: [] };
  await using command = await start({ server, client });
  await command.watched.until(/cannot connect to/, "stderr");
  command.watched.child.kill("SIGTERM");
  assertEquals((await command.watched.ended()).code, 0);
});

Deno.test("tunnel command: SIGHUP without a change reloads; a change of another file in the folder does not", async () => {
  await using command = await start({ server: { listen: "127.0.0.1:0", allow: ["1"] } });
  const seen = Promise.withResolvers<void>();
  const watcher = new FileWatcher(seen.resolve, seen.reject);
  watcher.watch([command.path]);
  await command.put("other.json", "{}");
  // The command has seen it too, or does before it sees the next change.
  await promptly(seen.promise);
  watcher.close();
  command.watched.child.kill("SIGHUP");
  await command.count("reloaded", 1);
  await command.write({ server: { listen: "127.0.0.1:0", allow: ["1"], status: "127.0.0.1:0" } });
  await command.watched.until(/status at \S+\nreloaded .*\n/);
  command.watched.child.kill("SIGTERM");
  const { stdout } = await command.watched.ended();
  assertEquals(stdout.match(/^reloaded /gm)?.length, 2);
});

Deno.test("tunnel command: SIGHUP does not end a process with a file while it waits for open connections", async () => {
  await using echo = makeEcho();
  const port = `127.0.0.1:${freePort()}`;
  const local = `127.0.0.1:${freePort()}`;
  const config = {
    server: { listen: port, allow: [echo.addr] },
    client: { connect: port, forward: [`${local}=${echo.addr}`] },
  };
  await using command = await start(config, { places: 2 });
  const { child } = command.watched;
  using open = await dial(local);
  assertEquals(await say(open, "before"), "before");
  child.kill("SIGTERM");
  await command.watched.until(/shutting down/);
  child.kill("SIGHUP");
  assertEquals(await say(open, "after"), "after");
  open.close();
  assertEquals((await command.watched.ended()).code, 0);
});

/** Runs the command with these arguments to its end. */
async function run(...args: string[]) {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-config", "--no-prompt", "-A", SCRIPT, ...args],
    env: { NO_COLOR: "1" },
  }).output();
  return { code, stdout: text(stdout), stderr: text(stderr) };
}

Deno.test("tunnel command: exits with 2 for a malformed file or a combination with --config, with 3 for a wrong secret", async () => {
  await withFiles({
    "sluice.json": '{ "server": { "listen": "x" } }',
    "client.json": '{ "client": { "connect": "1", "socks": ["2"] } }',
  }, async (folder) => {
    const file = `${folder}/sluice.json`;
    const cases: [args: string[], stderr: string][] = [
      [
        ["--config", file],
        `${file}:1:13: server must have target, allow, allowListen or users, received none of them\n` +
        `${file}:1:25: server.listen must be ${FORMS}, received "x"\n`,
      ],
      [["server", "--config", `${folder}/client.json`], `${folder}/client.json:1:1: the file must have server\n`],
      [["--config", `${folder}/none.json`], `${folder}/none.json cannot be read: no such file\n`],
      [
        ["client", "--config", file, "--forward", "1=2"],
        "--config cannot be combined with --forward: write its value into the file\n",
      ],
      [
        ["--config", file, "--listen", "1"],
        "unknown option --listen for sluice --config: --listen is an option of sluice server\n",
      ],
      [["--config"], "expected --config FILE, received no value (try --help)\n"],
      [
        ["--conf", file],
        'expected "server", "client", "check", "cert" or "hash", received "--conf": did you mean sluice --config?\n',
      ],
    ];
    for (const [args, stderr] of cases) assertEquals(await run(...args), { code: 2, stdout: "", stderr });
  });
  await using server = await start({ server: { listen: "127.0.0.1:0", allow: [], secret: "s" } }, {
    files: { s: "right" },
  });
  await withFiles({
    "sluice.json": JSON.stringify({ client: { connect: server.addrs[0], socks: ["0"], secret: "s" } }),
    s: "wrong",
  }, async (folder) => {
    const { code, stderr } = await run("--log", "text", "--config", `${folder}/sluice.json`);
    assertEquals(code, 3);
    assertMatch(stderr, /wrong secret/);
  });
});
