/** What the tunnel command suggests for a mistake on its command line. */

import { assertEquals, assertInstanceOf, assertThrows } from "@std/assert";
import config from "../deno.json" with { type: "json" };
import { parseCommand } from "../tunnel/arguments.ts";
import { UsageError } from "../tunnel/values.ts";
import { editDistance, errorHint } from "../tunnel/hints.ts";
import { CONFIGURED, OPTIONS, textFor } from "../tunnel/usage.ts";
import { VERSION } from "../tunnel/version.ts";

/** Returns the message for a malformed command line. */
function messageFor(line: string): { message: string; isHinted: boolean } {
  const error = assertThrows(() => parseCommand(line.split(" ").filter((word) => word !== "")));
  assertInstanceOf(error, UsageError, line);
  return error;
}

const server = "server --listen 9000";
const client = "client --connect 9000";

// What is typed, and the end of the message.
const hints: Record<string, string> = {
  // Addresses as ssh and containers write them.
  [`${client} --forward 8080:localhost:80`]: "write --forward 8080=localhost:80",
  [`${client} --forward 127.0.0.1:8080:db:5432`]: "write --forward 127.0.0.1:8080=db:5432",
  [`${client} --forward *:8080:db:5432`]: "write --forward 0.0.0.0:8080=db:5432",
  [`${client} --forward :8080:db:5432`]: "write --forward 0.0.0.0:8080=db:5432",
  [`${client} --forward [::1]:8080:[::1]:80`]: "write --forward [::1]:8080=[::1]:80",
  [`${client} --forward 8080:/run/db.sock`]: "write --forward 8080=unix:/run/db.sock",
  [`${client} --forward /run/db.sock:db:5432`]: "write --forward unix:/run/db.sock=db:5432",
  [`${client} --forward /a.sock:/b.sock`]: "write --forward unix:/a.sock=unix:/b.sock",
  [`${client} --forward 127.0.0.1:8080:80`]: "write --forward 127.0.0.1:8080=80",
  [`${client} --forward 8080:80`]: "write --forward 8080=80",
  [`${client} --forward 8080:db`]: "write --forward 8080=db:PORT",
  [`${client} --reverse 8000:localhost:3000`]: "write --reverse 8000=localhost:3000",
  [`${client} --reverse 8000:3000`]: "write --reverse 8000=3000",
  [`${client} --reverse 8000`]: "write --reverse 8000=PORT",
  [`${client} --reverse *:8000`]: "write --reverse 0.0.0.0:8000=PORT",
  [`${client} --forward 8080=http://db:80/x`]: "it must not be a URL: write --forward 8080=db:80",
  [`${client} --forward 8080=db`]: "it has no port: write --forward 8080=db:PORT",
  [`${client} --forward :8080=db:80`]: "write --forward 0.0.0.0:8080=db:80",
  [`${client} --forward -=db`]: "it has no port: write --forward -=db:PORT",
  // Short options of ssh and netcat.
  [`${client} -L 8080:host:80`]: "write --forward 8080=host:80",
  [`${client} -L8080:host:80`]: "write --forward 8080=host:80",
  [`${client} -L *:8080:host:80`]: "write --forward 0.0.0.0:8080=host:80",
  [`${client} -L`]: "write --forward LISTEN=TARGET",
  [`${client} -R 8000:localhost:3000`]: "write --reverse 8000=localhost:3000",
  [`${client} -R8000`]: "write --reverse-socks 8000 --allow '*:443'",
  [`${client} -R --tls`]: "write --reverse LISTEN=TARGET",
  [`${client} -D 1080`]: "write --socks 1080",
  [`${client} -D1080`]: "write --socks 1080",
  [`${client} -D *:1080`]: "write --socks 0.0.0.0:1080",
  [`${client} -W host:22`]: "write --forward -=host:22",
  [`${client} -p 9000`]: "write --connect HOST:9000",
  [`${server} -p 9000`]: "write --listen 9000",
  [`${server} -l 9000`]: "write --listen 9000",
  [`${server} -v`]: "write --trace",
  [`${server} -L 8080:host:80`]: "write sluice client --forward 8080=host:80",
  "-L 8080:host:80": "write sluice client --forward 8080=host:80",
  "-D 1080": "write sluice client --socks 1080",
  // Hosts, ports and wildcards.
  "client --connect localhost": "it has no port: write --connect localhost:PORT",
  "client --connect localhost:": "it has no port: write --connect localhost:PORT",
  "client --connect 10.0.0.1": "it has no port: write --connect 10.0.0.1:PORT",
  "client --connect [::1]": "it has no port: write --connect [::1]:PORT",
  "client --connect ::1": "IPv6 needs brackets: write --connect [::1]:PORT",
  "client --connect ::1:9000": "IPv6 needs brackets: write --connect [::1]:9000",
  "client --connect :9000": "write --connect localhost:9000",
  "client --connect *:9000": "write --connect localhost:9000",
  "client --connect https://host/": "it must not be a URL: write --connect host:443 --tls",
  "client --connect https://[::1]:9000": "it must not be a URL: write --connect [::1]:9000 --tls",
  "client https://host": "it must not be a URL: write --connect host:443 --tls",
  "client --connect http://host": "it must not be a URL: write --connect host:80",
  "server https://host:9000": "write --listen host:9000",
  "client --connect tcp://host:9000": "it must not be a URL: write --connect host:9000",
  "client --connect tcp://host": "it must not be a URL: write --connect host:PORT",
  "client --connect user@host:22": "write --connect host:22",
  "client --connect host:9000/": "write --connect host:9000",
  "client --connect host:ssh": "the port must be a number: write --connect host:22",
  "client --connect host:nine": "the port must be a number: write --connect host:PORT",
  "client --connect /run/s.sock": "it is a path: write --connect unix:/run/s.sock",
  "client --connect a:1,b:2": "write --connect a:1 --connect b:2",
  [`${client} --socks socks5://127.0.0.1:1080`]: "it must not be a URL: write --socks 127.0.0.1:1080",
  [`${client} --socks socks5h://localhost`]: "it must not be a URL: write --socks localhost:1080",
  [`${client} --http http://a:b@127.0.0.1:3128/`]:
    "it must not be a URL: write --http 127.0.0.1:3128, and the user and password into --proxy-auth FILE",
  [`${client} --http-proxy 3128`]: "did you mean --http?",
  [`${client} --proxy-auth alice:secret`]: "USER:PASSWORD must be in a file",
  [`${client} --reverse-socks 1080`]: "write --allow '*:443'",
  "server --listen :9000": "write --listen 0.0.0.0:9000",
  "server --listen *:9000": "write --listen 0.0.0.0:9000",
  "server --listen *": "write --listen 0.0.0.0:PORT",
  "server --listen localhost": "it has no port: write --listen localhost:PORT",
  "server --listen host:8000-8010": "it must be one port: write --listen host:8000",
  "server --listen 8000-8010": "it must be one port: write --listen 8000",
  [`${client} --socks *:1080`]: "write --socks 0.0.0.0:1080",
  [`${server} --allow *`]: "write --allow '*:*'",
  [`${server} --allow udp:*`]: "write --allow 'udp:*:*'",
  [`${server} --allow !udp:*`]: "write --allow '!udp:*:*'",
  [`${server} --allow !*`]: "write --allow '!*:*'",
  [`${server} --allow udp:dns`]: "it has no port: write --allow udp:dns:PORT",
  [`${server} --allow :443`]: "write --allow '*:443'",
  [`${server} --allow localhost`]: "it has no port: write --allow localhost:PORT",
  [`${server} --allow a:1,b:2`]: "write --allow a:1 --allow b:2",
  [`${server} --allow a:1;b`]: "write --allow a:1 --allow b:PORT",
  [`${server} --allow a:80,443`]: "write --allow a:80 --allow a:443",
  [`${server} --allow a:1 b:2`]: "write --allow b:2",
  [`${server} --allow a:1 b`]: "write --allow b:PORT",
  [`${server} --allow http://a`]: "it must not be a URL: write --allow a:80",
  [`${server} --allow-listen *`]: "write --allow-listen '*:*'",
  [`${client} --forward 8080=a:1,9090=b:2`]: "write --forward 8080=a:1 --forward 9090=b:2",
  [`${client} --forward udp:8080=a:1,proxy`]: "datagrams have no header of a proxy: write --forward udp:8080=a:1",
  [`${client} --forward 8080=a,proxy`]: "it has no port: write --forward 8080=a:PORT,proxy",
  [`${client} --reverse 8080=a,proxy,9090=b`]: "write --reverse 8080=a:PORT,proxy --reverse 9090=b:PORT",
  [`${client} --reverse 8000 --tls`]: "write --reverse 8000=PORT",
  // Options and commands.
  [`${server} --alow a:1`]: "did you mean --allow?",
  [`${server} --alow=a:1`]: "did you mean --allow?",
  [`${server} --allowListen a:1`]: "did you mean --allow-listen?",
  [`${server} --tagret a:1`]: "did you mean --target?",
  [`${server} --sec x`]: "did you mean --secret?",
  [`${server} -allow a:1`]: "did you mean --allow?",
  [`${server} --password x`]: "did you mean --secret?",
  [`${server} --port 9000`]: "did you mean --listen?",
  [`${client} --port 9000`]: "did you mean --connect?",
  [`${client} --remote 8000`]: "did you mean --reverse?",
  [`${client} --no-reconect`]: "did you mean --no-reconnect?",
  [`${client} --reconnect`]: "it is the default",
  [`${server} --forward 8080=a:1`]: "--forward is an option of sluice client",
  [`${client} --target a:1`]: "--target is an option of sluice server",
  [`${client} --tls true`]: "--tls takes no value",
  "serve --listen 9000": "did you mean sluice server?",
  "clinet": "did you mean sluice client?",
  "--forward 8080=a:1": "write sluice client --forward",
  "--listen=9000": "write sluice server --listen",
  "client localhost:9000": "write --connect localhost:9000",
  "client localhost": "write --connect localhost:PORT",
  "server 9000": "write --listen 9000",
  "server :9000": "write --listen 0.0.0.0:9000",
  "cert example.com": "write --host example.com",
  "cert --host example.com:9000": "write --host example.com",
  // Other values.
  [`${server} --secret hunter2`]: "the secret must be in a file, or in $SLUICE_SECRET",
  [`${server} --cert nowhere.pem`]: "sluice cert makes a certificate and its key",
  [`${server} --grace 10s`]: "write --grace 10",
  [`${server} --stall 2m`]: "write --stall 120",
};

for (const [line, hint] of Object.entries(hints)) {
  Deno.test(`parseCommand() suggests for "${line}": ${hint}`, () => {
    const { message, isHinted } = messageFor(line);
    assertEquals({ end: message.slice(-hint.length - 2), isHinted }, { end: `: ${hint}`, isHinted: true }, message);
    assertEquals(message.includes("\n"), false);
  });
}

Deno.test("parseCommand() suggests nothing when what was meant is unknown", () => {
  for (
    const line of [
      `${client} --forward =1`,
      `${client} --forward 0=`,
      `${client} --forward 8080:`,
      `${client} --forward 1:2:3:4:5`,
      `${client} --forward 99999`,
      `${client} --connect x:99999`,
      `${client} --constructor x`,
      `${client} --no-tls`,
      `${client} -x`,
      `${client} --`,
      `${client} -`,
      `${server} --grace x`,
      "client --connect [::g]:0",
      "toString",
      "proxy",
    ]
  ) {
    assertEquals(messageFor(line).isHinted, false, line);
  }
});

Deno.test("parseCommand() does not print the value of --secret, which may be the secret itself", () => {
  assertEquals(messageFor(`${server} --secret hunter2`).message.includes("hunter2"), false);
});

Deno.test("parseCommand() does not print the path and the password of a URL", () => {
  const lines = [
    `${client} --allow`,
    `${client} --allow a:1`,
    `${client} --proxy`,
    `${client} --pin`,
    `${server} --allow`,
    `${server} --allow-listen`,
    `${server} --accept-proxy`,
    "cert",
    "cert --host",
  ];
  for (const line of lines) {
    for (const url of ["wss://h.example/sesame", "http://u:sesame@h.example/sesame", "!udp:wss:/h.example/sesame"]) {
      const { message } = messageFor(`${line} ${url}`);
      assertEquals(message.includes("sesame"), false, message);
    }
  }
});

Deno.test("editDistance() counts insertions, deletions, replacements and exchanges", () => {
  const distances: [a: string, b: string, distance: number][] = [
    ["", "", 0],
    ["", "abc", 3],
    ["alow", "allow", 1],
    ["tagret", "target", 1],
    ["kitten", "sitting", 3],
    ["ca", "abc", 3],
  ];
  for (const [a, b, distance] of distances) {
    assertEquals(editDistance(a, b), distance, `${a} ${b}`);
    assertEquals(editDistance(b, a), distance, `${b} ${a}`);
  }
});

Deno.test("parseCommand() advises the option for a URL of a WebSocket without one, and hides its path", () => {
  const lines = {
    "client wss://h.example/sesame --forward 8080=a:1": "write --connect wss://...",
    "client --forward 8080=a:1 ws://h.example/sesame": "write --connect ws://...",
    "client --connect a:1 wss://h.example/sesame": "write --connect wss://...",
    "server wss://h.example/sesame": "write --listen wss://...",
    "check wss://h.example/sesame": "write --connect wss://...",
  };
  for (const [line, hint] of Object.entries(lines)) {
    const { message } = messageFor(line);
    assertEquals(message.endsWith(`://h.example/...": ${hint}`), true, message);
  }
  const others = {
    "client https://h.example/sesame": "wss://...",
    "client --connect https://u:sesame@h.example:1/x": "wss://...",
    "client --connect http://h.example/sesame": "ws://...",
    "client --connect a:1 http://h.example:8080/sesame": "ws://...",
    "client --connect h.example:8080/sesame": "ws://... or wss://...",
  };
  for (const [line, urls] of Object.entries(others)) {
    const { message } = messageFor(line);
    const hint = `only the URL of a WebSocket has a path: write --connect ${urls}`;
    assertEquals(message.endsWith(hint) && !message.includes("sesame"), true, message);
  }
  assertEquals(messageFor("wss://h.example/sesame").message.includes("sesame"), false);
  assertEquals(messageFor("cert wss://h.example/sesame").message.includes("sesame"), false);
});

Deno.test("errorHint() explains a certificate of a CA, an unknown issuer, a peer without TLS and a descriptor limit", () => {
  const explained: Record<string, RegExp> = {
    "invalid peer certificate: Other(OtherError(CaUsedAsEndEntity))": /sluice cert/,
    "invalid peer certificate: UnknownIssuer": /--ca FILE/,
    "invalid peer certificate: BadSignature": /copy it/,
    "Cannot connect to a:1: self-signed certificate": /--ca FILE/,
    "Cannot connect to a:1: unable to verify the first certificate": /--ca FILE/,
    "received corrupt message of type InvalidContentType": /--tls/,
    "Too many open files (os error 24)": /ulimit -n/,
    "Cannot connect to a:1 through http://h:3128: the proxy wants a user and a password": /--proxy http:/,
    "Cannot connect to a:1 through socks5://h:1080: the proxy wants a user and a password": /--proxy socks5:/,
    "Cannot connect to localhost:9000: unexpected end of file": /the server may not use TLS/,
    "Cannot connect to localhost:9000: Client network socket disconnected before secure TLS connection was established":
      /the server may not use TLS/,
    "Cannot connect to localhost:9000: the connection was closed during the TLS handshake":
      /the server may not use TLS/,
    "a client's connection from 10.0.0.1:1 failed: not valid smux at byte 0: expected version 1 or 2, received 22":
      /the client uses TLS; start the server with --cert and --key$/,
  };
  for (const [message, hint] of Object.entries(explained)) assertEquals(hint.test(errorHint(message)!), true, message);
  assertEquals(errorHint("connection refused"), undefined);
  assertEquals(errorHint("The connection to localhost:9000 was lost: unexpected end of file"), undefined);
  assertEquals(errorHint("not valid smux at byte 0: expected version 1 or 2, received 221"), undefined);
});

Deno.test("VERSION is that of deno.json", () => assertEquals(VERSION, config.version));

Deno.test("textFor() returns the version for --version, -V and version, at any place", () => {
  for (const line of ["--version", "-V", "version", "server --version", "client --connect 1 -V"]) {
    assertEquals(textFor(line.split(" ")), `sluice ${VERSION}`, line);
  }
});

Deno.test("textFor() returns the help of one command or of all, at most 80 characters wide", () => {
  const all = textFor(["--help"])!;
  for (const line of ["help", "-h", "help nothing", "nothing -h"]) assertEquals(textFor(line.split(" ")), all, line);
  for (const command of Object.keys(OPTIONS)) {
    const help = textFor([command, "-h"])!;
    for (const line of [`help ${command}`, `${command} --help`, `${command} --listen 1 -h`]) {
      assertEquals(textFor(line.split(" ")), help, line);
    }
    for (const other of Object.keys(OPTIONS).filter((name) => name !== CONFIGURED)) {
      assertEquals(new RegExp(`^  sluice ${other} (--|\\[|NAME)`, "m").test(help), other === command);
    }
    for (const option of Object.keys(OPTIONS[command]!)) {
      for (const text of [help, all]) assertEquals(new RegExp(`^  --${option} `, "m").test(text), true, option);
    }
    assertEquals(help.split("\n").length <= 64, true, `${command}: ${help.split("\n").length} lines`);
  }
  assertEquals(all.split("\n").filter((line) => line.length > 80 || line !== line.trimEnd()), []);
});

Deno.test("textFor() returns nothing for a command line to run", () => {
  for (const line of ["server --listen 9000 --allow a:1", "", "serve"]) {
    assertEquals(textFor(line.split(" ")), undefined);
  }
});
