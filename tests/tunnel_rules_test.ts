/** Rules of a tunnel's server: entries of `allow` and `allowListen`, and the addresses of host names. */

import { assert, assertEquals, assertMatch, assertRejects, assertThrows } from "@std/assert";
import net from "node:net";
import fc from "fast-check";
import { TunnelRefusedError } from "../tunnel.ts";
import { canonical, parseEndpoint } from "../tunnel/address.ts";
import { resolver } from "../tunnel/resolve.ts";
import { parseRule, Rules } from "../tunnel/rules.ts";
import { dial, makeEcho, makePair, nowhere, portOf, say } from "./tunnel_support.ts";

/** Whether rules allow a target whose host has this address; its own, if it is one. */
function isAllowed(entries: readonly string[], target: string, address?: string, isUdp = false): boolean {
  const endpoint = parseEndpoint("to", target, 0);
  return new Rules("allow", entries, isUdp).allows(endpoint, address ?? canonical(endpoint.hostname ?? "unix"));
}

const literals: [entry: string, allowed: string[], refused: string[]][] = [
  ["10.0.0.1:80", ["10.0.0.1:80", "[::ffff:10.0.0.1]:80", "[::FFFF:a00:1]:80"], ["10.0.0.1:81", "10.0.0.2:80"]],
  ["80", ["80", "127.0.0.1:80"], ["81", "127.0.0.2:80", "[::1]:80"]],
  ["8000-8010", ["8000", "127.0.0.1:8010"], ["7999", "8011", "10.0.0.1:8000"]],
  ["10.0.0.1:*", ["10.0.0.1:1", "10.0.0.1:65535"], ["10.0.0.2:1"]],
  ["10.0.0.1:8000-8010", ["10.0.0.1:8000", "10.0.0.1:8005", "10.0.0.1:8010"], ["10.0.0.1:7999", "10.0.0.1:8011"]],
  ["10.0.0.0/8:443", ["10.0.0.0:443", "10.255.255.255:443"], ["11.0.0.0:443", "9.255.255.255:443", "10.0.0.1:80"]],
  ["10.1.2.3/8:443", ["10.0.0.0:443"], ["11.1.2.3:443"]],
  ["10.0.0.1/32:*", ["10.0.0.1:1"], ["10.0.0.0:1", "10.0.0.2:1"]],
  ["0.0.0.0/0:*", ["1.2.3.4:1", "169.254.169.254:1", "127.0.0.1:1"], ["[2001:db8::1]:1"]],
  ["[fd00::/8]:*", ["[fd00::1]:1", "[FD10:0:0::]:2"], ["[fe00::1]:1", "[fc00::1]:1", "10.0.0.1:1"]],
  ["[::/0]:*", ["[2001:db8::1]:1", "[::1]:1"], ["10.0.0.1:1", "[::ffff:10.0.0.1]:1"]],
  ["[::ffff:10.0.0.0/104]:*", ["10.1.2.3:1", "[::ffff:10.1.2.3]:1"], ["11.0.0.1:1"]],
  ["[::1]:80", ["[::1]:80", "[0:0:0:0:0:0:0:1]:80"], ["[::2]:80", "127.0.0.1:80"]],
  ["*:80", ["10.0.0.1:80", "127.0.0.1:80", "[::1]:80", "0.0.0.0:80"], ["10.0.0.1:81", "unix:/a"]],
  ["*:80", [], ["169.254.169.254:80", "[fe80::1]:80", "[::ffff:169.254.169.254]:80"]],
  ["*:*", ["10.0.0.1:1", "[2001:db8::1]:65535", "127.0.0.1:0"], ["unix:/a"]],
  ["169.254.0.0/16:80", ["169.254.169.254:80"], ["169.253.0.1:80"]],
  ["unix:/a", ["unix:/a"], ["unix:/A", "unix:/a/b", "10.0.0.1:80"]],
];
for (const [entry, allowed, refused] of literals) {
  Deno.test(`Rules.allows() with "${entry}" is true for ${allowed.join(", ")} and false for ${refused.join(", ")}`, () => {
    for (const target of allowed) assertEquals(isAllowed([entry], target), true, target);
    for (const target of refused) assertEquals(isAllowed([entry], target), false, target);
  });
}

const names: [entry: string, target: string, address: string, isAllowed: boolean][] = [
  // A name is compared as requested.
  ["db.local:80", "db.local:80", "10.0.0.1", true],
  ["db.local:80", "DB.Local.:80", "10.0.0.1", true],
  ["DB.local.:80", "db.local:80", "10.0.0.1", true],
  ["db.local:80", "db.local.other:80", "10.0.0.1", false],
  ["db.local:80", "10.0.0.1:80", "10.0.0.1", false],
  ["db.local:80", "db.local:80", "127.0.0.1", true],
  ["db.local:80", "db.local:80", "169.254.169.254", true],
  ["localhost:80", "LOCALHOST:80", "::1", true],
  // An address or network is compared with what the name was resolved to.
  ["10.0.0.0/8:80", "db.local:80", "10.0.0.1", true],
  ["10.0.0.0/8:80", "db.local:80", "11.0.0.1", false],
  ["127.0.0.1:80", "localhost:80", "127.0.0.1", true],
  ["127.0.0.1:80", "localhost:80", "::1", false],
  ["127.0.0.0/8:80", "evil.test:80", "127.0.0.1", true],
  // `*` with a name.
  ["*:80", "db.local:80", "10.0.0.1", true],
  ["*:80", "db.local:80", "2001:db8::1", true],
  ["*:80", "localhost:80", "127.0.0.1", true],
  ["*:80", "localhost:80", "::1", true],
  ["*:80", "a.localhost:80", "127.0.0.1", true],
  ["*:80", "localhost:80", "0.0.0.0", false],
  ["*:80", "localhost:80", "169.254.169.254", false],
  ["*:80", "evil.test:80", "127.0.0.1", false],
  ["*:80", "localhost.evil.test:80", "127.0.0.1", false],
  ["*:80", "not-localhost:80", "127.0.0.1", false],
  ["*:80", "evil.test:80", "127.255.255.254", false],
  ["*:80", "evil.test:80", "::1", false],
  ["*:80", "evil.test:80", "0.0.0.0", false],
  ["*:80", "evil.test:80", "0.1.2.3", false],
  ["*:80", "evil.test:80", "::", false],
  ["*:80", "evil.test:80", "169.254.169.254", false],
  ["*:80", "evil.test:80", "fe80::1", false],
  ["*:80", "evil.test:80", "fe90::1", false],
  ["*:80", "evil.test:80", "fec0::1", true],
  // Other ways to write an IPv4 address.
  ["*:80", "127.1:80", "127.0.0.1", true],
  ["127.0.0.1:80", "0x7f000001:80", "127.0.0.1", true],
  ["*:80", "2852039166:80", "169.254.169.254", false],
];
for (const [entry, target, address, expected] of names) {
  Deno.test(`Rules.allows() with "${entry}" is ${expected} for ${target} at ${address}`, () => {
    assertEquals(isAllowed([entry], target, canonical(address)), expected);
  });
}

Deno.test("Rules.allows() decides by the last entry that matches, and denies without one", () => {
  const cases: [entries: string[], target: string, isAllowed: boolean][] = [
    [[], "10.0.0.1:80", false],
    [["!10.0.0.1:80"], "10.0.0.1:80", false],
    [["!10.0.0.1:80"], "10.0.0.2:80", false],
    [["*:80", "!10.0.0.0/8:*"], "10.0.0.1:80", false],
    [["*:80", "!10.0.0.0/8:*"], "11.0.0.1:80", true],
    [["!10.0.0.0/8:*", "*:80"], "10.0.0.1:80", true],
    [["*:80", "!10.0.0.0/8:*", "10.0.0.1:80"], "10.0.0.1:80", true],
    [["*:80", "!10.0.0.0/8:*", "10.0.0.1:80"], "10.0.0.2:80", false],
    [["*:*", "!*:22-25"], "10.0.0.1:22", false],
    [["*:*", "!*:22-25"], "10.0.0.1:26", true],
    [["unix:/a", "!unix:/a"], "unix:/a", false],
    [["*:*", "!unix:/a"], "10.0.0.1:1", true],
  ];
  for (const [entries, target, expected] of cases) {
    assertEquals({ entries, target, isAllowed: isAllowed(entries, target) }, { entries, target, isAllowed: expected });
  }
});

Deno.test("Rules.allows() denies what !* matches, also this machine and link-local addresses by a name", () => {
  for (const address of ["127.0.0.1", "169.254.169.254", "::", "10.0.0.1"]) {
    assertEquals(isAllowed(["evil.test:80", "!*:80"], "evil.test:80", address), false, address);
  }
  assertEquals(isAllowed(["10.0.0.0/8:*", "!db.local:*"], "db.local:80", "10.0.0.1"), false);
  assertEquals(isAllowed(["db.local:*", "!10.0.0.0/8:*"], "db.local:80", "10.0.0.1"), false);
});

Deno.test("Rules.allows() denies a connection to 0.0.0.0 or :: by an entry that denies the loopback address", () => {
  const entries = ["*:*", "udp:*:*", "!127.0.0.0/8:*", "!udp:127.0.0.1:*", "![::1]:22"];
  for (const target of ["0.0.0.0:22", "0:22", "0.0.0.1:22", "[::ffff:0.0.0.0]:22", "[::]:22"]) {
    assertEquals(isAllowed(entries, target), false, target);
  }
  assertEquals(isAllowed(entries, "0.0.0.0:22", undefined, true), false);
  assertEquals(isAllowed(entries, "[::]:80"), true);
  assertEquals(isAllowed([...entries, "0.0.0.0:80"], "0.0.0.0:80"), true);
  const listening = new Rules("allowListen", ["*:*", "!127.0.0.0/8:*"]);
  assertEquals(listening.allows({ hostname: "0.0.0.0", port: 80 }, "0.0.0.0"), true);
});

Deno.test("Rules with udp: in front are about datagrams only, others about connections only", () => {
  const entries = ["10.0.0.0/8:*", "udp:*:53", "!udp:10.0.0.1:*", "!*:54", "udp:*:54", "UDP:55"];
  const cases: [target: string, tcp: boolean, udp: boolean][] = [
    ["10.0.0.1:53", true, false],
    ["10.0.0.2:53", true, true],
    ["11.0.0.1:53", false, true],
    ["10.0.0.2:54", false, true],
    ["127.0.0.1:55", false, true],
  ];
  for (const [target, tcp, udp] of cases) {
    assertEquals([false, true].map((isUdp) => isAllowed(entries, target, undefined, isUdp)), [tcp, udp], target);
  }
});

Deno.test("Rules.mayAllow() is false for a name that no entry can allow at any address", () => {
  const rules = new Rules("allow", ["db.local:80", "10.0.0.0/8:443", "!*:22", "unix:/a"]);
  const mayAllow = (target: string) => rules.mayAllow(parseEndpoint("to", target, 1));
  assertEquals(["db.local:80", "DB.LOCAL.:80", "other:443", "unix:/a"].map(mayAllow), [true, true, true, true]);
  assertEquals(["db.local:81", "other:80", "db.local:22", "unix:/b"].map(mayAllow), [false, false, false, false]);
});

for (
  const entry of [
    "",
    "!",
    "*",
    "!*",
    "host",
    "host:",
    ":80",
    "*:80:80",
    "!!h:80",
    "h:80-",
    "h:-80",
    "h:1-2-3",
    "host/8:80",
    "10.0.0.0/33:80",
    "10.0.0.0/:80",
    "10.0.0/8/8:80",
    "10.0.0.256:80",
    "fd00::/8:80",
    "[fd00::]/8:80",
    "[fd00::/129]:80",
    "[::ffff:10.0.0.0/90]:80",
    "[10.0.0.1]:80",
    "h:8000,8001",
    "h:80 ",
    "udp:",
    "udp:*",
    "!udp:*",
    "UDP:*",
    "udp:unix:/a",
    "udp:!h:80",
    "udp:udp:h:80",
    "tcp:h:80",
  ]
) {
  Deno.test(`parseRule() throws for "${entry}"`, () => {
    const { message } = assertThrows(() => parseRule("allow", entry), RangeError, "allow must be HOST:PORT, ");
    assert(message.endsWith(`received "${entry}"`), message);
  });
}

Deno.test("parseRule() throws for a port of 0 or above 65535, and for a reversed range", () => {
  for (const ports of ["0", "65536", "0-80", "80-65536", "90-80"]) {
    const { message } = assertThrows(() => parseRule("allow", `h:${ports}`), RangeError);
    assertEquals(message, `allow must have a port from 1 to 65535, or a range of them, received ${ports}`);
  }
});

// The documentation of `allow`, read directly: every address is a number here.

interface Address {
  bits: 32 | 128;
  value: bigint;
  text: string;
}

const ipv4 = (value: number): Address => ({
  bits: 32,
  value: BigInt(value),
  text: [24, 16, 8, 0].map((shift) => (value >>> shift) & 255).join("."),
});

/** An IPv6 address, written in full. */
function ipv6(value: bigint): Address {
  const groups = Array.from({ length: 8 }, (_, n) => ((value >> BigInt(112 - 16 * n)) & 0xffffn).toString(16));
  return { bits: 128, value, text: groups.join(":") };
}

const BASES = ["10.0.0.1", "10.255.0.1", "127.0.0.1", "169.254.169.254", "0.0.0.0", "192.168.1.1"].map((text) =>
  text.split(".").reduce((sum, part) => sum * 256 + Number(part), 0)
);
const BASES6 = [0n, 1n, 0xfe80n << 112n | 1n, 0xfebfn << 112n, 0xfdn << 120n | 7n, 0x2001_0db8n << 96n | 1n];
const address = fc.oneof(
  fc.constantFrom(...BASES).map(ipv4),
  fc.tuple(fc.constantFrom(...BASES), fc.nat(31)).map(([base, bit]) => ipv4((base ^ (1 << bit)) >>> 0)),
  fc.constantFrom(...BASES6).map(ipv6),
  fc.tuple(fc.constantFrom(...BASES6), fc.nat(127)).map(([base, bit]) => ipv6(base ^ (1n << BigInt(bit)))),
).filter(({ bits, value }) => bits === 32 || value >> 32n !== 0xffffn);
const name = fc.constantFrom("a", "db.local", "localhost", "a.localhost", "localhost.a");
const port = fc.integer({ min: 1, max: 6 });

type Host = { type: "any" } | { type: "name"; name: string } | { type: "network"; address: Address; prefix: number };
interface Entry {
  isDenying: boolean;
  isUdp: boolean;
  host: Host;
  ports: [least: number, most: number] | undefined;
}

const host: fc.Arbitrary<Host> = fc.oneof(
  fc.constant({ type: "any" as const }),
  name.map((name) => ({ type: "name" as const, name })),
  fc.tuple(address, fc.nat(128)).map(([address, prefix]) => ({
    type: "network" as const,
    address,
    prefix: prefix % (address.bits + 1),
  })),
);
const ports = fc.oneof(
  fc.constant(undefined),
  fc.tuple(port, port).map(([a, b]): [number, number] => [Math.min(a, b), Math.max(a, b)]),
);
const entries: fc.Arbitrary<Entry[]> = fc.array(
  fc.record({ isDenying: fc.boolean(), isUdp: fc.boolean(), host, ports }),
  { maxLength: 8 },
);
const target = fc.record({ name: fc.option(name), address, port, isUdp: fc.boolean() });

function write({ isDenying, isUdp, host, ports }: Entry): string {
  const text = host.type === "any"
    ? "*"
    : host.type === "name"
    ? host.name
    : host.address.bits === 32
    ? `${host.address.text}/${host.prefix}`
    : `[${host.address.text}/${host.prefix}]`;
  return `${isDenying ? "!" : ""}${isUdp ? "udp:" : ""}${text}:${ports?.join("-") ?? "*"}`;
}

function isIn({ bits, value }: Address, network: Address, prefix: number): boolean {
  const shift = BigInt(bits - prefix);
  return bits === network.bits && value >> shift === network.value >> shift;
}

function isDocumentedToMatch(
  { isDenying, isUdp, host, ports }: Entry,
  { name, address, port, isUdp: isUdpTarget }: { name: string | null; address: Address; port: number; isUdp: boolean },
): boolean {
  const isUnspecified = isIn(address, ipv4(0), 8) || isIn(address, ipv6(0n), 128);
  if (isUdp !== isUdpTarget) return false;
  if (ports !== undefined && (port < ports[0] || port > ports[1])) return false;
  if (host.type === "name") return host.name === name;
  if (host.type === "network") {
    const reached = address.bits === 32 ? ipv4(0x7f000001) : ipv6(1n);
    const isReached = isDenying && isUnspecified && isIn(reached, host.address, host.prefix);
    return isReached || isIn(address, host.address, host.prefix);
  }
  if (isDenying) return true;
  const isLinkLocal = isIn(address, ipv4(0xa9fe0000), 16) || isIn(address, ipv6(0xfe80n << 112n), 10);
  const isLoopback = isIn(address, ipv4(0x7f000000), 8) || isIn(address, ipv6(1n), 128);
  if (isLinkLocal) return false;
  if (name === null) return true;
  return isLoopback ? name === "localhost" || name.endsWith(".localhost") : !isUnspecified;
}

Deno.test("Rules.allows() agrees with the documentation for random entries and targets", () => {
  let allowed = 0;
  fc.assert(
    fc.property(entries, target, (entries, target) => {
      let expected = false;
      for (const entry of entries) if (isDocumentedToMatch(entry, target)) expected = !entry.isDenying;
      const { bits, text } = target.address;
      const written = `${target.name ?? (bits === 32 ? text : `[${text}]`)}:${target.port}`;
      assertEquals(
        isAllowed(entries.map(write), written, canonical(text), target.isUdp),
        expected,
        entries.map(write).join(" "),
      );
      if (expected) allowed++;
    }),
    { numRuns: 10_000 },
  );
  assert(allowed > 1000, `only ${allowed} of the targets were allowed`);
});

// With a server.

/** Replaces the resolver by a table until disposed of; each lookup of a name returns its next list of addresses. */
function replaceResolver(table: Record<string, string[][]>) {
  const { lookup } = resolver;
  const asked: string[] = [];
  resolver.lookup = (hostname) => {
    asked.push(hostname);
    const answers = table[hostname];
    if (answers === undefined) return Promise.reject(new Error("name not found"));
    return Promise.resolve(answers.length > 1 ? answers.shift()! : answers[0]!);
  };
  return { asked, [Symbol.dispose]: () => void (resolver.lookup = lookup) };
}

/** Records the hosts that connections are forwarded to until disposed of. */
function recordConnects() {
  const { connect } = net;
  const hosts: (string | undefined)[] = [];
  net.connect = ((options: net.TcpNetConnectOpts) => {
    hosts.push(options.host);
    return connect(options);
  }) as typeof connect;
  return { hosts, [Symbol.dispose]: () => void (net.connect = connect) };
}

Deno.test("serveTunnel() with * refuses names that resolve to this machine or link-local, except localhost", async () => {
  await using echo = makeEcho();
  const port = portOf(echo.addr);
  using _names = replaceResolver({
    "evil.test": [["127.0.0.1"]],
    "mapped.test": [["::ffff:127.0.0.1"]],
    "zero.test": [["0.0.0.0"]],
    "metadata.test": [["169.254.169.254", "fe80::1"]],
    "localhost": [["::1", "127.0.0.1"]],
  });
  await using pair = await makePair({ allow: [`*:${port}`] });
  for (const name of ["evil.test", "EVIL.test.", "mapped.test", "zero.test", "metadata.test", "169.254.169.254"]) {
    const error = await assertRejects(() => pair.client.connect(`${name}:${port}`), TunnelRefusedError, "not allowed");
    assertEquals(error.status, 403, name);
  }
  for (const host of ["127.0.0.1", "[::ffff:127.0.0.1]", "localhost", "LOCALHOST."]) {
    const connection = await pair.client.connect(`${host}:${port}`);
    assertEquals(await say(connection, "hello"), "hello", host);
    connection.close();
  }
});

Deno.test("serveTunnel() resolves a name once, and connects to what it has checked", async () => {
  await using echo = makeEcho();
  const port = portOf(echo.addr);
  // The second answer is what the rules deny.
  using names = replaceResolver({ "rebinding.test": [["127.0.0.1"], ["169.254.169.254"]] });
  await using pair = await makePair({ allow: [`127.0.0.1:${port}`] });
  const connection = await pair.client.connect(`rebinding.test:${port}`);
  assertEquals(await say(connection, "hello"), "hello");
  connection.close();
  assertEquals(names.asked, ["rebinding.test"]);
  await assertRejects(() => pair.client.connect(`rebinding.test:${port}`), TunnelRefusedError, "not allowed");
});

Deno.test("serveTunnel() connects only to the allowed ones of several addresses", async () => {
  await using echo = makeEcho();
  const port = portOf(echo.addr);
  using _names = replaceResolver({
    "both.test": [["192.0.2.1", "127.0.0.1", "::ffff:192.0.2.2"]],
    "denied.test": [["192.0.2.1"]],
  });
  await using pair = await makePair({ allow: ["both.test:*", "denied.test:*", "!192.0.2.0/24:*"] });
  using connects = recordConnects();
  const connection = await pair.client.connect(`both.test:${port}`);
  assertEquals(await say(connection, "hello"), "hello");
  connection.close();
  await assertRejects(() => pair.client.connect(`denied.test:${port}`), TunnelRefusedError, "not allowed");
  assertEquals(connects.hosts, ["127.0.0.1"]);
});

Deno.test("serveTunnel() does not resolve a name that no entry can allow, and responds 502 to one it cannot resolve", async () => {
  using names = replaceResolver({});
  await using pair = await makePair({ allow: ["*:443"] });
  await assertRejects(() => pair.client.connect("secret.test:80"), TunnelRefusedError, "not allowed");
  assertEquals(names.asked, []);
  const error = await assertRejects(() => pair.client.connect("missing.test:443"), TunnelRefusedError);
  assertEquals(error.status, 502);
  assertMatch(error.message, /Cannot resolve missing\.test: name not found$/i);
});

Deno.test("serveTunnel() checks addresses to listen at, also the port that the system has chosen", async () => {
  await using echo = makeEcho();
  using _names = replaceResolver({ "evil.test": [["127.0.0.1"]], "localhost": [["127.0.0.1"]] });
  const place = nowhere();
  const ask = async (allowListen: string[], listen: string) => {
    const logs = await makePair({ allowListen }, { reverse: [`${listen}=${echo.addr}`] });
    await using pair = logs;
    using connection = await dial(pair.client.listenAddrs[0]!);
    assertEquals(await say(connection, "hello"), "hello");
    connection.close();
  };
  await ask(["127.0.0.0/8:*"], place);
  await ask(["localhost:*"], "localhost:0");
  const refused: [allowListen: string[], listen: string][] = [
    [["*:*"], `evil.test:${portOf(place)}`],
    [["127.0.0.1:*", "!127.0.0.1:1024-65535"], "127.0.0.1:0"],
    [["127.0.0.1:1-65535"], "127.0.0.1:0"],
    [["127.0.0.1:*", `!*:${portOf(place)}`], place],
  ];
  for (const [allowListen, listen] of refused) {
    const error = await assertRejects(() => ask(allowListen, listen), TunnelRefusedError, "not allowed");
    assertEquals(error.status, 403, listen);
  }
});
