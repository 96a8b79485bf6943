/**
 * Defines the options of the command, and formats its help and its version.
 *
 * @module
 */

import { VERSION } from "./version.ts";

/** What the value of an option is, as the help names it. */
export type Kind =
  | "LISTEN"
  | "TARGET"
  | "LISTEN=TARGET"
  | "FILE"
  | "SECONDS"
  | "NUMBER"
  | "MIB"
  | "1|2"
  | "HOST"
  | "NAME"
  | "CIDR"
  | "URL"
  | "SHA256"
  | "HTTP-URL"
  | "HEADER"
  | "text|json";

/** An option of a command. */
export interface Option {
  /** Its value; absent: the option accepts none. */
  value?: Kind;
  /** Whether it may be repeated. */
  isList?: true;
  /** Whether its value may also be the URL of a WebSocket. */
  isUrl?: true;
  /** Whether its value may contain wildcards. */
  isRule?: true;
  /** Whether its file is written, not read. */
  isOutput?: true;
  /** Whether the path of its file is needed, not only its content. */
  isPath?: true;
  /** What it does, for the help, which breaks the lines. */
  help: string;
}

/** The options of a command, by name, in the order of the help. */
type Options = Record<string, Option>;

const SERVER: Options = {
  listen: {
    value: "LISTEN",
    isUrl: true,
    help: "accept clients at this address, or at ws[s]://HOST:PORT/PATH, where the path is a secret",
  },
  target: { value: "TARGET", help: "connect each stream of any smux client to TARGET" },
  allow: {
    value: "TARGET",
    isList: true,
    isRule: true,
    help:
      "allowed target; * is any host or port, 8000-8010 a range, 10.0.0.0/8 a network; udp:HOST:PORT for datagrams; ! in front denies",
  },
  "allow-listen": {
    value: "LISTEN",
    isList: true,
    isRule: true,
    help: "allowed address for --reverse; * as in --allow",
  },
  users: { value: "FILE", help: "users with secrets and rules, from sluice hash" },
  "accept-proxy": {
    value: "CIDR",
    isList: true,
    help: "addresses of proxies, which must send a PROXY header",
  },
  cert: { value: "FILE", help: "TLS certificate, PEM; sluice cert makes one" },
  key: { value: "FILE", help: "private key of the certificate, PEM" },
  "client-ca": {
    value: "FILE",
    help: "clients must show a certificate of these CAs, PEM; its name is the user",
  },
  backend: { value: "HTTP-URL", help: "http://HOST:PORT, for requests that are not from ws[s]:// clients" },
};
const CLIENT: Options = {
  connect: {
    value: "TARGET",
    isList: true,
    isUrl: true,
    help: "address of the server, or ws[s]://HOST:PORT/PATH; repeated: new connections use the first that is up",
  },
  header: { value: "HEADER", isList: true, help: "'NAME: VALUE' in the request for the WebSocket" },
  forward: {
    value: "LISTEN=TARGET",
    isList: true,
    help:
      "listen on the client, connect from the server; LISTEN - is stdin and stdout; no =TARGET: server's --target; TARGET,proxy: send a PROXY header; udp:LISTEN: datagrams, also in --reverse",
  },
  reverse: {
    value: "LISTEN=TARGET",
    isList: true,
    help: "listen on the server, connect from the client",
  },
  socks: {
    value: "LISTEN",
    isList: true,
    help: "listen on the client, connect from the server to each requested target: SOCKS 4, 4a, 5, HTTP",
  },
  http: { value: "LISTEN", isList: true, help: "the same as --socks" },
  "reverse-socks": {
    value: "LISTEN",
    isList: true,
    help: "as --socks, but listen on the server, and connect from the client to what its --allow contains",
  },
  allow: {
    value: "TARGET",
    isList: true,
    isRule: true,
    help: "allowed target of --reverse-socks, as at a server",
  },
  "proxy-auth": { value: "FILE", help: "USER:PASSWORD of these proxies, in FILE" },
  tls: { help: "connect with TLS" },
  ca: { value: "FILE", help: "connect with TLS; also trust the CAs in FILE, PEM" },
  cert: { value: "FILE", help: "connect with TLS; show this certificate, PEM" },
  key: { value: "FILE", help: "private key of the certificate, PEM" },
  pin: { value: "SHA256", help: "connect with TLS; the server must have the key of this pin" },
  proxy: { value: "URL", help: "http:// or socks5:// proxy; default: $HTTPS_PROXY" },
  user: { value: "NAME", help: "the secret is that of NAME in the server's --users" },
  smux: { value: "1|2", help: "smux version of the client; default: 2" },
  wait: {
    value: "SECONDS",
    help: "new connections wait this long for a lost server, then they are refused; default: 30",
  },
  // Options of their own: with `allowNegative` --no-tls, --no-insecure and --reconnect would be accepted too.
  "no-retry": { help: "exit when the first connection fails" },
  "no-resume": { help: "end forwarded connections when the connection to the server is lost" },
  "no-reconnect": { help: "exit when the connection to the server is lost and cannot be resumed" },
};
const GRACE: Option = { value: "SECONDS", help: "Ctrl-C waits this long for connections; default: 30" };
const LOG: Option = { value: "text|json", help: "log with times, and a line for each forwarded connection" };
const TRACE: Option = { help: "log every frame between client and server to stderr" };
const CONFIG: Option = {
  value: "FILE",
  isPath: true,
  help: "options in JSON, instead of others but --grace, --log and --trace; reread on SIGHUP and when it changes",
};
const COMMON: Options = {
  config: CONFIG,
  secret: { value: "FILE", help: "shared secret, in FILE; default: $SLUICE_SECRET" },
  grace: GRACE,
  stall: {
    value: "SECONDS",
    help: "close a connection that is not read for this long and blocks all others; default: 5; 0: never",
  },
  keepalive: { value: "SECONDS", help: "keepalive after this long; default: 10; 0: never" },
  timeout: { value: "SECONDS", help: "silence that ends a connection; default: 30; 0: never" },
  "udp-timeout": { value: "SECONDS", help: "silence that ends a UDP source; default: 60; 0: never" },
  "max-streams": { value: "NUMBER", help: "open streams of one connection; default: 8192" },
  "max-receive-buffer": { value: "MIB", help: "unread data of one connection; default: 16" },
  status: { value: "LISTEN", help: "serve /metrics, /status and /healthz over HTTP" },
  log: LOG,
  trace: TRACE,
  insecure: { help: "allow other machines without TLS and a secret" },
};
const CERT: Options = {
  host: {
    value: "HOST",
    isList: true,
    help: "DNS name or IP address of the server; default: localhost, 127.0.0.1 and ::1",
  },
  cert: { value: "FILE", isOutput: true, help: "certificate to write; default: cert.pem" },
  key: { value: "FILE", isOutput: true, help: "private key to write; default: key.pem" },
};

const HASH: Options = {};

const IDLE: Options = {
  idle: { value: "SECONDS", help: "also check whether a connection survives this long without data" },
};
const CHECKED = [
  "connect",
  "header",
  "forward",
  "reverse",
  "tls",
  "ca",
  "proxy",
  "cert",
  "key",
  "pin",
  "user",
  "smux",
  "secret",
  "timeout",
  "insecure",
];
const CHECK: Options = {
  ...Object.fromEntries(Object.entries({ ...CLIENT, ...COMMON }).filter(([name]) => CHECKED.includes(name))),
  ...IDLE,
};
/** Stands for the command of a command line that begins with an option. */
export const CONFIGURED = "--config";

/** The options of each command. */
export const OPTIONS: Record<string, Options> = {
  server: { ...SERVER, ...COMMON },
  client: { ...CLIENT, ...COMMON },
  check: CHECK,
  cert: CERT,
  hash: HASH,
  [CONFIGURED]: { config: CONFIG, grace: GRACE, log: LOG, trace: TRACE },
};

const SYNOPSES: Record<string, string> = {
  server: `\
  sluice server --listen LISTEN --target TARGET
  sluice server --listen LISTEN --allow TARGET ... --allow-listen LISTEN ...`,
  client: `\
  sluice client --connect TARGET --forward LISTEN=TARGET ...
                --reverse LISTEN=TARGET ... --socks LISTEN ... --http LISTEN ...
                --reverse-socks LISTEN ... --allow TARGET ...`,
  check: `\
  sluice check --connect TARGET ... [--idle SECONDS]`,
  cert: `\
  sluice cert [--host HOST ...] [--cert FILE] [--key FILE]`,
  hash: `\
  sluice hash NAME`,
  [CONFIGURED]: `\
  sluice [server|client] --config FILE`,
};
const EXAMPLES: Record<string, string> = {
  server: `\
  sluice server --listen 9000 --allow db.local:5432 --allow '*:443'`,
  client: `\
  sluice client --connect 9000 --forward 5432=db.local:5432 --socks 1080
  ssh -o ProxyCommand='sluice client --connect 9000 --forward -=%h:%p' HOST`,
  check: `\
  sluice check --connect example.com:9000 --tls --forward 5432=db.local:5432`,
  cert: `\
  sluice cert --host example.com --cert cert.pem --key key.pem`,
  hash: `\
  sluice hash alice < secret.txt # prints an entry of the server's --users`,
  [CONFIGURED]: `\
  sluice --config sluice.json --log text`,
};
const ADDRESSES = "LISTEN and TARGET are HOST:PORT, [IPV6]:PORT, unix:PATH, or PORT (127.0.0.1).";
const EXIT_CODES = `\
Exit codes: 0 ended, 1 could not run or connection lost, 2 wrong command line,
3 refused by the server, or the server cannot be used.`;

/** Characters: the width of a terminal. */
export const WIDTH = 80;
// Characters: where the descriptions begin.
const INDENT = 27;

/** Breaks a text into lines. */
export function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  for (const word of text.split(" ")) {
    const line = lines.at(-1);
    if (line === undefined || line.length + 1 + word.length > width) lines.push(word);
    else lines[lines.length - 1] = `${line} ${word}`;
  }
  return lines;
}

function describe(title: string, options: Options): string {
  const lines = Object.entries(options).flatMap(([name, { value, help }]) => {
    const label = `  --${name}${value === undefined ? "" : ` ${value}`}`.padEnd(INDENT);
    return wrap(help, WIDTH - INDENT).map((line, n) => (n === 0 ? label : " ".repeat(INDENT)) + line);
  });
  return [title, ...lines].join("\n");
}

/** Formats the help of a command, or that of all commands. */
function formatHelp(command: string | undefined): string {
  const roles = command === undefined ? Object.keys(SYNOPSES) : [command];
  const isTunnel = roles.some((role) => role !== "cert" && role !== CONFIGURED);
  const titles: [title: string, options: Options, isShown: boolean][] = [
    ["sluice server:", SERVER, roles.includes("server")],
    ["sluice client:", CLIENT, roles.includes("client")],
    ["sluice server and sluice client:", COMMON, isTunnel && command !== "check"],
    ["sluice check, which tests the connection of a client; others as for the client:", IDLE, command === undefined],
    ["sluice check, which tests the connection of a client:", CHECK, command === "check"],
    ["sluice --config:", OPTIONS[CONFIGURED]!, command === CONFIGURED],
    ["sluice cert, which makes a self-signed certificate of a server:", CERT, roles.includes("cert")],
  ];
  return [
    ...command === undefined ? ["Forwards any number of connections over one, like ssh -L, -R and -D."] : [],
    roles.map((role) => SYNOPSES[role]).join("\n"),
    ...isTunnel ? [ADDRESSES] : [],
    ...titles.filter(([, , isShown]) => isShown).map(([title, options]) => describe(title, options)),
    EXIT_CODES,
    roles.map((role) => EXAMPLES[role]).join("\n"),
  ].join("\n\n");
}

/** Returns the text that a command line asks for instead of a run: the help or the version. */
export function textFor(args: readonly string[]): string | undefined {
  const [first, second] = args;
  const isCommand = (word: string | undefined) => word !== undefined && Object.hasOwn(OPTIONS, word);
  const asks = (...words: string[]) => words.some((word) => args.includes(word));
  if (first === "version" || asks("--version", "-V")) return `sluice ${VERSION}`;
  if (first === "help") return formatHelp(isCommand(second) ? second : undefined);
  if (asks("--help", "-h")) return formatHelp(isCommand(first) ? first : undefined);
  return undefined;
}
