/** Pins: a server that is known by the key of its certificate. */

import { assert, assertEquals, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { checkTunnel, openTunnel, type OpenTunnelOptions, serveTunnel } from "../tunnel.ts";
import { makeCertificate } from "../tunnel/certificate.ts";
import { PermanentError } from "../tunnel/errors.ts";
import { parsePin, pinOfPem } from "../tunnel/pin.ts";
import { readCertificate, readCertificates } from "../tunnel/x509.ts";
import { deno, hasPrograms, makeFolder, run, watch } from "./programs.ts";
import { readAll, sha256, text } from "./support.ts";
import { dial, FREE, makeEcho, makeLog, makeProxy, makeTarget, promptly, say } from "./tunnel_support.ts";
import { makeAuthority, pinByOpenssl, SERVER } from "./tunnel_certificates.ts";

const SCRIPT = new URL("../tunnel.ts", import.meta.url).href;
const OTHER = `sha256:${"A".repeat(43)}=`;

/** Returns the bytes of a pin in hex. */
function hexOf(pin: string, separator = ""): string {
  return [...atob(pin.slice("sha256:".length))].map((char) => char.charCodeAt(0).toString(16).padStart(2, "0"))
    .join(separator);
}

Deno.test("parsePin() accepts hex and base64, and returns sha256: and base64", async () => {
  const pin = pinOfPem((await makeCertificate(["localhost"])).cert);
  const base64 = pin.slice("sha256:".length);
  const url = base64.replaceAll("+", "-").replaceAll("/", "_");
  const written = [
    pin,
    base64,
    base64.slice(0, -1),
    url,
    `sha256//${base64}`.replace("//", "://"),
    `SHA256:${hexOf(pin)}`,
    hexOf(pin),
    hexOf(pin, ":").toUpperCase(),
  ];
  for (const text of written) assertEquals(parsePin("pin", text), pin, text);
});

Deno.test("parsePin() throws with what was expected and received", () => {
  for (
    const text of [
      "",
      "sha256:",
      "sha1:abcd",
      "ab".repeat(31),
      "ab".repeat(33),
      "ab:".repeat(31),
      `a:b${"ab".repeat(31)}`,
      "A".repeat(42),
    ]
  ) {
    const { message } = assertThrows(() => parsePin("--pin", text), RangeError);
    assertEquals(message, `--pin must be the SHA-256 of a public key in hex or base64, received "${text}"`);
  }
});

Deno.test("pinOfPem() hashes the public key as openssl does, for each algorithm", {
  ignore: !hasPrograms("openssl"),
}, async () => {
  await using folder = await makeFolder("pin");
  const algorithms = [
    ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
    ["ec", "-pkeyopt", "ec_paramgen_curve:P-521"],
    ["rsa:2048"],
    ["ed25519"],
  ];
  for (const algorithm of algorithms) {
    const [key, cert] = [`${folder.path}/key.pem`, `${folder.path}/cert.pem`];
    const newKey = ["-newkey", ...algorithm, "-nodes", "-keyout", key];
    await run("openssl", ["req", "-x509", ...newKey, "-out", cert, "-subj", "/O=x/CN=localhost"]);
    assertEquals(pinOfPem(await Deno.readTextFile(cert)), `sha256:${await pinByOpenssl(cert)}`);
  }
});

Deno.test("readCertificate() throws a RangeError for each cut of a certificate, and reads changed bytes or throws it", async () => {
  const { cert } = await makeCertificate(["localhost", "127.0.0.1"]);
  const der = Uint8Array.from(atob(cert.replaceAll(/-----.*-----|\s/g, "")), (char) => char.charCodeAt(0));
  const parts = readCertificate(der);
  assertEquals(parts.commonNames, ["localhost"]);
  assertEquals(parts.alternativeNames, ["localhost"]);
  assert(parts.validFrom < new Date() && parts.validTo > new Date());
  for (let length = 0; length < der.length; length++) {
    assertThrows(() => readCertificate(der.subarray(0, length)), RangeError);
  }
  for (let at = 0; at < der.length; at++) {
    for (const byte of [0, 0x7f, 0x80, 0x84, 0xff]) {
      const changed = der.slice();
      changed[at] = byte;
      try {
        readCertificate(changed);
      } catch (error) {
        if (!(error instanceof RangeError)) throw error;
      }
    }
  }
  assertThrows(() => readCertificates("ca", "nothing"), RangeError, "ca must be certificates in PEM, received");
  const broken = "-----BEGIN CERTIFICATE-----\n****\n-----END CERTIFICATE-----";
  assertThrows(() => readCertificates("ca", broken), RangeError, "ca must be certificates in PEM: ");
});

Deno.test("openTunnel() with pin trusts a self-signed certificate for another name, and no other key", async () => {
  const { cert, key } = await makeCertificate(["elsewhere.example"]);
  await using echo = makeEcho();
  await using server = serveTunnel({ listen: FREE, target: echo.addr, cert, key, onError() {} });
  assertEquals(server.pin, pinOfPem(cert));
  for (const pin of [server.pin!, hexOf(server.pin!)]) {
    await using client = await openTunnel({ connect: server.serverAddr, forward: [FREE], pin });
    using connection = await dial(client.listenAddrs[0]!);
    assertEquals(await say(connection, "hello"), "hello");
  }
  // `retry` must not repeat it.
  const opening = openTunnel({ connect: server.serverAddr, pin: OTHER, retry: true });
  const { message } = await assertRejects(() => promptly(opening), PermanentError);
  assertEquals(
    message,
    `Cannot connect to ${server.serverAddr}: the certificate of the server has the pin ${server.pin}, expected ${OTHER}: ` +
      "if the server has a new key, use its pin; else another machine answers",
  );
});

Deno.test("openTunnel() with ca and pin requires both", { ignore: !hasPrograms("openssl") }, async () => {
  await using authority = await makeAuthority();
  const { cert, key } = await authority.issue({ subject: "/CN=localhost", extensions: SERVER });
  const { cert: other } = await makeCertificate(["localhost"]);
  await using server = serveTunnel({ listen: FREE, target: "1", cert, key, onError() {} });
  const open = async (options: Partial<OpenTunnelOptions>) => {
    await using _client = await openTunnel({ connect: server.serverAddr, ...options });
  };
  const pin = server.pin!;
  await open({ ca: authority.cert, pin });
  await assertRejects(() => open({ ca: authority.cert, pin: OTHER }), PermanentError, "has the pin");
  await assertRejects(() => open({ ca: other, pin }), PermanentError, "certificate");
  const connect = server.serverAddr.replace("127.0.0.1", "localhost");
  await open({ ca: authority.cert, pin, connect });
  const named = await authority.issue({ subject: "/CN=x", extensions: ["subjectAltName=DNS:other.example"] });
  await using second = serveTunnel({ listen: FREE, target: "1", cert: named.cert, key: named.key, onError() {} });
  await open({ pin: second.pin!, connect: second.serverAddr });
  await assertRejects(
    () => open({ ca: authority.cert, pin: second.pin!, connect: second.serverAddr }),
    PermanentError,
    "altnames",
  );
});

Deno.test("openTunnel() throws for a malformed pin, and for one without TLS", async () => {
  const open = (options: Partial<OpenTunnelOptions>) => () => openTunnel({ connect: "127.0.0.1:1", ...options });
  await assertRejects(open({ pin: "abc" }), RangeError, "pin must be the SHA-256 of a public key");
  await assertRejects(open({ pin: OTHER, tls: false }), RangeError, "pin requires TLS, received tls: false");
  await assertRejects(open({ pin: OTHER, connect: "unix:/x" }), RangeError, "connect must be HOST:PORT when TLS");
});

Deno.test("openTunnel() with pin reports a server without TLS, and one that does not answer", async () => {
  await using echo = makeEcho();
  await using plain = serveTunnel({ listen: FREE, target: echo.addr, onError() {} });
  await assertRejects(
    () => promptly(openTunnel({ connect: plain.serverAddr, pin: OTHER })),
    Error,
    "Cannot connect to",
  );
  await using closing = makeTarget(() => Promise.resolve());
  await assertRejects(() => promptly(openTunnel({ connect: closing.addr, pin: OTHER })), Error, "Cannot connect to");
});

Deno.test("openTunnel() with pin forwards much data both ways, half-closes, and resumes after a lost connection", async () => {
  const { cert, key } = await makeCertificate(["localhost"]);
  const received = Promise.withResolvers<Uint8Array<ArrayBuffer>>();
  const answer = crypto.getRandomValues(new Uint8Array(65_536));
  await using target = makeTarget(async (connection) => {
    received.resolve(await readAll(connection));
    for (let times = 0; times < 64; times++) {
      for (let at = 0; at < answer.length;) at += await connection.write(answer.subarray(at));
    }
  });
  const log = makeLog();
  await using server = serveTunnel({ listen: FREE, target: target.addr, cert, key, onError() {} });
  await using proxy = makeProxy(server.serverAddr);
  await using client = await openTunnel({
    connect: proxy.addr,
    forward: [FREE],
    pin: server.pin!,
    ...log.options,
  });
  using connection = await dial(client.listenAddrs[0]!);
  const sent = new Uint8Array(4 * 2 ** 20).map((_, n) => n * 7 + (n >> 8));
  let isCut = false;
  for (let at = 0; at < sent.length;) {
    at += await connection.write(sent.subarray(at));
    if (isCut || at < sent.length / 2) continue;
    isCut = true;
    proxy.cut();
  }
  await connection.closeWrite();
  assertEquals(await sha256(await received.promise), await sha256(sent));
  const whole = await readAll(connection);
  assertEquals(whole.length, 64 * answer.length);
  assertEquals(whole.subarray(-answer.length), answer);
  assertEquals(log.typesOf().filter((type) => type === "reconnected"), []);
  assert(log.typesOf().includes("resumed"));
});

Deno.test("TunnelClient.update() with another pin connects anew, and keeps the old connection if that fails", async () => {
  const { cert, key } = await makeCertificate(["127.0.0.1"]);
  await using echo = makeEcho();
  await using server = serveTunnel({ listen: FREE, target: echo.addr, cert, key, onError() {} });
  const options = { connect: server.serverAddr, forward: [FREE] };
  await using client = await openTunnel({ ...options, ca: cert });
  await assertRejects(() => client.update({ ...options, pin: OTHER }), PermanentError, "has the pin");
  using kept = await dial(client.listenAddrs[0]!);
  assertEquals(await say(kept, "hello"), "hello");
  // The target serves one connection after the other.
  await kept.closeWrite();
  await readAll(kept);
  await client.update({ ...options, pin: server.pin! });
  using anew = await dial(client.listenAddrs[0]!);
  assertEquals(await say(anew, "hello"), "hello");
  assertEquals(client.stats().connections, 2);
});

Deno.test("TunnelServer.pin is that of the certificate in use, and undefined without TLS", async () => {
  const [one, other] = [await makeCertificate(["localhost"]), await makeCertificate(["localhost"])];
  await using server = serveTunnel({ listen: FREE, target: "1" });
  assertEquals(server.pin, undefined);
  for (const { cert, key } of [one, other]) {
    await server.update({ listen: server.serverAddr, target: "1", cert, key });
    assertEquals(server.pin, pinOfPem(cert));
  }
});

Deno.test("checkTunnel() shows the pin, and offers it for a certificate that is not trusted", async () => {
  const { cert, key } = await makeCertificate(["localhost", "127.0.0.1"]);
  await using server = serveTunnel({ listen: FREE, allow: ["*:*"], cert, key, onError() {} });
  const connect = server.serverAddr;
  const check = async (options: Partial<OpenTunnelOptions>) => {
    const checks = await Array.fromAsync(checkTunnel({ connect, ...options }));
    return checks.find(({ name }) => name === "TLS")!;
  };
  const failed = await check({ tls: true });
  assertEquals(failed.isOk, false);
  assert(failed.text.includes(`pin ${server.pin} is not trusted`), failed.text);
  assert(failed.advice!.endsWith(`: --pin ${server.pin}`), failed.advice);
  for (const options of [{ ca: cert }, { pin: server.pin! }]) {
    const { isOk, text } = await check(options);
    assert(isOk && text.endsWith(`, pin ${server.pin}`), text);
  }
  const wrong = await check({ pin: OTHER });
  assertEquals(wrong.isOk, false);
  assertEquals(wrong.advice, "Compare --pin with the pin that the server prints when it starts.");
});

Deno.test("tunnel command: cert prints the pin, the server logs it, and a client with --pin needs no file", async () => {
  await using folder = await makeFolder("pin");
  const [cert, key] = ["cert.pem", "key.pem"].map((name) => `${folder.path}/${name}`);
  const made = await deno("run", "-A", SCRIPT, "cert", "--cert", cert!, "--key", key!);
  const [, pin] = /^client: --pin (sha256:\S+)$/m.exec(made)!;
  await using echo = makeEcho();
  const args = ["run", "-A", SCRIPT, "server", "--listen", "0", "--target", echo.addr, "--cert", cert!, "--key", key!];
  for (const format of ["text", "json"]) {
    const child = new Deno.Command(Deno.execPath(), {
      args: [...args, "--log", format],
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    await using watched = watch(child);
    await watched.until(/certificate pin|"type":"pin"/);
    const [line] = watched.printed.stdout.split("\n").slice(1);
    if (format === "text") assertMatch(line!, / certificate pin sha256:\S+=$/);
    else assertEquals(JSON.parse(line!).pin, pin);
    assert(line!.includes(pin!));
    const [, port] = /listening on 127\.0\.0\.1:(\d+)|"listenAddr":"127\.0\.0\.1:(\d+)"/.exec(watched.printed.stdout)!
      .filter((found) => found !== undefined);
    await using client = await openTunnel({ connect: `127.0.0.1:${port}`, forward: [FREE], pin: pin! });
    using connection = await dial(client.listenAddrs[0]!);
    assertEquals(await say(connection, "hello"), "hello");
  }
  const malformed = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", SCRIPT, "client", "--connect", "1", "--forward", "0", "--pin", "abc"],
  });
  const { code, stderr } = await malformed.output();
  assertEquals(code, 2);
  assertMatch(text(stderr), /--pin must be the SHA-256 of a public key in hex or base64, received "abc"/);
});
