/** Certificates that `sluice cert` makes. */

import { assertEquals, assertMatch, assertNotEquals, assertRejects, assertThrows } from "@std/assert";
import { openTunnel, serveTunnel } from "../tunnel.ts";
import { makeCertificate, parseHost } from "../tunnel/certificate.ts";
import { hasPrograms, makeFolder, run } from "./programs.ts";
import { text } from "./support.ts";
import { dial, FREE, makeEcho, say } from "./tunnel_support.ts";

const HOSTS = ["localhost", "127.0.0.1", "::1"];

Deno.test("makeCertificate() makes a certificate that a server uses and a client trusts by ca, for each host", async () => {
  const { cert, key } = await makeCertificate(["localhost", "127.0.0.1"]);
  await using echo = makeEcho();
  await using server = serveTunnel({ listen: FREE, target: echo.addr, cert, key });
  for (const host of ["localhost", "127.0.0.1"]) {
    const connect = server.serverAddr.replace("127.0.0.1", host);
    await using client = await openTunnel({ connect, forward: [FREE], ca: cert });
    using connection = await dial(client.listenAddrs[0]!);
    assertEquals(await say(connection, "hello"), "hello");
  }
});

Deno.test("makeCertificate() makes a certificate that is rejected for another host, and by the ca of another one", async () => {
  const { cert, key } = await makeCertificate(["example.com"]);
  const other = await makeCertificate(["127.0.0.1"]);
  await using server = serveTunnel({ listen: FREE, target: "1", cert, key, onError() {} });
  const connect = server.serverAddr;
  await assertRejects(() => openTunnel({ connect, ca: cert }), Error, "example.com");
  await assertRejects(() => openTunnel({ connect, ca: other.cert }), Error, "UnknownIssuer");
});

/** Returns what openssl prints of a certificate. */
async function inspect(cert: string, ...args: string[]): Promise<string> {
  await using folder = await makeFolder("certificate");
  await Deno.writeTextFile(`${folder.path}/cert.pem`, cert);
  return text(await run("openssl", ["x509", "-in", `${folder.path}/cert.pem`, "-noout", ...args]));
}

Deno.test("makeCertificate() makes what openssl reads: no CA, all hosts, for ten years", {
  ignore: !hasPrograms("openssl"),
}, async () => {
  const now = Date.UTC(2026, 0, 2, 3, 4, 5);
  const { cert, expires } = await makeCertificate([...HOSTS, "*.example.com", "2001:db8::5:0"], now);
  const printed = await inspect(cert, "-text");
  assertMatch(printed, /Version: 3 /);
  assertMatch(printed, /Signature Algorithm: ecdsa-with-SHA256/);
  assertMatch(printed, /Issuer: CN ?= ?localhost\n/);
  assertMatch(printed, /Subject: CN ?= ?localhost\n/);
  assertMatch(printed, /Not Before: Jan {2}1 03:04:05 2026 GMT/);
  assertMatch(printed, /Not After : Dec 31 03:04:05 2035 GMT/);
  assertMatch(printed, /Basic Constraints: critical\n +CA:FALSE\n/);
  assertMatch(printed, /X509v3 Key Usage: critical\n +Digital Signature\n/);
  assertMatch(printed, /Extended Key Usage: *\n +TLS Web Server Authentication\n/);
  const names = "DNS:localhost, IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1, DNS:*.example.com, " +
    "IP Address:2001:DB8:0:0:0:0:5:0";
  assertEquals(/Alternative Name: *\n +(.*)\n/.exec(printed)?.[1], names);
  assertEquals(expires.toISOString(), "2035-12-31T03:04:05.000Z");
});

Deno.test(
  "makeCertificate() writes a year after 2049 with four digits",
  { ignore: !hasPrograms("openssl") },
  async () => {
    const { cert } = await makeCertificate(HOSTS, Date.UTC(2045, 0, 2));
    assertMatch(
      await inspect(cert, "-dates"),
      /notBefore=Jan {2}1 00:00:00 2045 GMT\nnotAfter=Dec 31 00:00:00 2054 GMT/,
    );
  },
);

Deno.test("makeCertificate() encodes many hosts, and each serial number and signature, so that openssl verifies them", {
  ignore: !hasPrograms("openssl"),
}, async () => {
  await using folder = await makeFolder("certificate");
  const file = `${folder.path}/cert.pem`;
  const serials = new Set<string>();
  // Integers that begin with a zero or a high bit occur within this many.
  for (let times = 0; times < 20; times++) {
    const hosts = Array.from({ length: 1 + times * 10 }, (_, n) => `host${n}.example.com`);
    const { cert } = await makeCertificate(hosts);
    await Deno.writeTextFile(file, cert);
    assertMatch(text(await run("openssl", ["verify", "-CAfile", file, file])), /: OK\n$/);
    serials.add(await inspect(cert, "-serial"));
  }
  assertEquals(serials.size, 20);
});

Deno.test("makeCertificate() makes another key each time", async () => {
  assertNotEquals((await makeCertificate(HOSTS)).key, (await makeCertificate(HOSTS)).key);
});

Deno.test("parseHost() returns the canonical form of a name or an address, and throws for anything else", () => {
  const canonical: Record<string, string> = {
    "Example.COM": "example.com",
    "*.example.com": "*.example.com",
    "bücher.example": "xn--bcher-kva.example",
    "127.0.0.1": "127.0.0.1",
    "::1": "[::1]",
    "[::1]": "[::1]",
    "2001:DB8:0:0::1": "[2001:db8::1]",
  };
  for (const [text, host] of Object.entries(canonical)) assertEquals(parseHost("host", text), host);
  for (const text of ["", "a:80", "http://a", "a/b", "a b", "u@a", "*", "a?b", ":::", "[::1]:80", "a_b"]) {
    assertThrows(() => parseHost("--host", text), RangeError, `--host must be a DNS name or an IP address, received`);
  }
});
