/** Parsing, formatting and checking of addresses of a tunnel. */

import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { canonical, checkExposed, format, parseEndpoint, parseForward } from "../tunnel/address.ts";
import { parseBackend, parseWebSocketUrl } from "../tunnel/web_socket_address.ts";

const endpoints: Record<string, ReturnType<typeof parseEndpoint>> = {
  "80": { hostname: "127.0.0.1", port: 80 },
  "example.com:65535": { hostname: "example.com", port: 65535 },
  "10.0.0.1:1": { hostname: "10.0.0.1", port: 1 },
  "[::1]:443": { hostname: "::1", port: 443 },
  "[2001:DB8::1]:443": { hostname: "2001:DB8::1", port: 443 },
  "unix:/run/a.sock": { path: "/run/a.sock" },
  "unix:a:1=b": { path: "a:1=b" },
};
for (const [text, endpoint] of Object.entries(endpoints)) {
  Deno.test(`parseEndpoint() accepts "${text}", and format() is its inverse`, () => {
    assertEquals(parseEndpoint("to", text, 1), endpoint);
    assertEquals(parseEndpoint("to", format(endpoint), 1), endpoint);
  });
}

for (
  const text of [
    "",
    "host",
    "host:",
    ":80",
    "host:80:80",
    "::1:80",
    "[::1]",
    "[::1",
    "[:::]:1",
    "a b:1",
    "h:-1",
    "h:1x",
  ]
) {
  Deno.test(`parseEndpoint() throws for "${text}"`, () => {
    assertThrows(() => parseEndpoint("connect", text, 0), RangeError, `connect must be HOST:PORT`);
  });
}

Deno.test("parseEndpoint() throws for a port above 65535 or below the least port", () => {
  assertThrows(
    () => parseEndpoint("to", "h:65536", 0),
    RangeError,
    "to must have a port from 0 to 65535, received 65536",
  );
  assertThrows(() => parseEndpoint("to", "h:0", 1), RangeError, "to must have a port from 1 to 65535, received 0");
  assertEquals(parseEndpoint("at", "h:0", 0), { hostname: "h", port: 0 });
});

Deno.test("parseForward() splits at the first =, and throws for a malformed LISTEN or TARGET", () => {
  assertEquals(parseForward("forward", "8080=h:80"), {
    listen: "8080",
    target: "h:80",
    isProxied: false,
    isUdp: false,
  });
  assertEquals(parseForward("forward", "0=unix:/a=b"), {
    listen: "0",
    target: "unix:/a=b",
    isProxied: false,
    isUdp: false,
  });
  assertEquals(parseForward("forward", "8080"), { listen: "8080", target: undefined, isProxied: false, isUdp: false });
  for (const text of ["8080=", "8080=h:0", "=h:80", "h=h:80"]) {
    assertThrows(() => parseForward("forward", text), RangeError, "forward");
  }
});

Deno.test("canonical() writes each form of a host in one way", () => {
  const hosts: Record<string, string[]> = {
    "db.local": ["db.local", "DB.LOCAL", "db.local."],
    "127.0.0.1": ["127.0.0.1", "127.1", "0x7f000001", "2130706433", "::ffff:127.0.0.1", "::FFFF:7f00:1"],
    "0.0.0.1": ["0.0.0.1", "::ffff:0:1"],
    "::1": ["::1", "0:0:0:0:0:0:0:1", "::0001"],
    "2001:db8::ffff:7f00:1": ["2001:DB8:0:0:0:ffff:7f00:1"],
  };
  for (const [expected, forms] of Object.entries(hosts)) {
    for (const form of forms) assertEquals(canonical(form), expected, form);
  }
});

Deno.test("checkExposed() throws for an address that is not loopback, unless insecure", () => {
  for (const text of ["80", "localhost:80", "LOCALHOST:80", "127.1.2.3:80", "[::1]:80", "unix:/a"]) {
    checkExposed("listen", text);
  }
  for (const text of ["0.0.0.0:80", "[::]:80", "example.com:80", "127.0.0.1.example.com:80", "[::ffff:127.0.0.1]:80"]) {
    assertThrows(() => checkExposed("listen", text), RangeError, "TLS and a secret");
    checkExposed("listen", text, true);
  }
});

Deno.test("errors of addresses do not contain a path or a password, which may be secrets", () => {
  const cases: [text: string, shown: string][] = [
    ["https://h:1/sesame", "https://h:1/..."],
    ["https://h/sesame?a#b", "https://h/..."],
    ["wss:/h:1/sesame", "wss:/h:1/..."],
    ["h:1/sesame", "h:1/..."],
    ["http://u:sesame@h:1", "http://..."],
    ["u:sesame@h:1/x", ".../..."],
    ["unix:/a b", "unix:/a b"],
    ["8080:db:80", "8080:db:80"],
  ];
  for (const [text, shown] of cases) {
    const parse = (name: string) => parseWebSocketUrl(name, text, 1) ?? parseEndpoint(name, text, 1);
    for (const check of [parse, (name: string) => parseBackend(name, text)]) {
      const { message } = assertThrows(() => check("a"), RangeError);
      assertStringIncludes(message, `received "${shown}"`);
    }
  }
});
