/**
 * Parses the command line of the tunnel.
 *
 * @module
 */

import { parseArgs } from "node:util";
import type { Stream } from "../mod.ts";
import { parseForward } from "./address.ts";
import { openTunnel } from "./client.ts";
import { errorText } from "./errors.ts";
import type { Tunnel, TunnelOptions } from "./options.ts";
import { serveTunnel } from "./server.ts";
import { parseUsers } from "./users.ts";

export const HELP = `\
Forwards any number of connections over one, like ssh -L, -R and -D.

  sluice server --listen LISTEN --target TARGET
  sluice server --listen LISTEN --allow TARGET ... --allow-listen LISTEN ...
  sluice client --connect TARGET --forward LISTEN=TARGET ...
                --reverse LISTEN=TARGET ... --socks LISTEN ...

LISTEN and TARGET are HOST:PORT, [IPV6]:PORT, unix:PATH, or PORT (127.0.0.1).

  --target TARGET          connect each stream of any smux client to TARGET
  --allow TARGET           allowed target; * is any host or port, 8000-8010 a
                           range, 10.0.0.0/8 a network; ! in front denies
  --allow-listen LISTEN    allowed address for --reverse, as in --allow
  --users FILE             users with secrets and rules, from sluice hash NAME
  --forward LISTEN=TARGET  listen on the client, connect from the server; LISTEN
                           - is stdin and stdout; no =TARGET: server's --target
  --reverse LISTEN=TARGET  listen on the server, connect from the client
  --socks LISTEN           listen on the client, connect from the server to the
                           target of each SOCKS 5 request
  --cert, --key FILE       TLS certificate and private key of the server, PEM
  --tls, --ca FILE         connect with TLS; also trust the CAs in FILE, PEM
  --secret FILE            secret, in FILE; default: $SLUICE_SECRET
  --user NAME              the secret is that of NAME in the server's --users
  --smux 1|2               smux version of the client; default: 2
  --grace SECONDS          Ctrl-C waits this long for connections; default: 30
  --stall SECONDS          close a connection that is not read for this long and
                           blocks all others; default: 5; 0: never
  --trace                  log every frame between client and server to stderr
  --insecure               allow other machines without TLS and a secret
  --no-reconnect           exit when the connection to the server is lost

  sluice server --listen 9000 --allow db.local:5432 --allow '*:443'
  sluice client --connect 9000 --forward 5432=db.local:5432 --socks 1080
  ssh -o ProxyCommand='sluice client --connect 9000 --forward -=%h:%p' HOST`;

/** A malformed command line; the message is one line. */
export class UsageError extends Error {}

/** An option of the command line. */
interface Option {
  /** Its value, as the help names it; absent: the option accepts none. */
  value?: "LISTEN" | "TARGET" | "LISTEN=TARGET" | "NAME" | "FILE" | "SECONDS" | "1|2";
  /** Whether it may be repeated. */
  isList?: true;
}

const COMMON: Record<string, Option> = {
  secret: { value: "FILE" },
  grace: { value: "SECONDS" },
  stall: { value: "SECONDS" },
  trace: {},
  insecure: {},
};
const OPTIONS: Record<string, Record<string, Option>> = {
  server: {
    listen: { value: "LISTEN" },
    target: { value: "TARGET" },
    allow: { value: "TARGET", isList: true },
    "allow-listen": { value: "LISTEN", isList: true },
    users: { value: "FILE" },
    cert: { value: "FILE" },
    key: { value: "FILE" },
    ...COMMON,
  },
  client: {
    connect: { value: "TARGET" },
    forward: { value: "LISTEN=TARGET", isList: true },
    reverse: { value: "LISTEN=TARGET", isList: true },
    socks: { value: "LISTEN", isList: true },
    tls: {},
    ca: { value: "FILE" },
    user: { value: "NAME" },
    smux: { value: "1|2" },
    // An option of its own: with `allowNegative` --no-tls, --no-insecure and --reconnect would be accepted too.
    "no-reconnect": {},
    ...COMMON,
  },
};

/** The options of a command line, by name. */
class Values {
  readonly #role: string;
  readonly #values = new Map<string, string[]>();

  constructor(role: string, args: readonly string[]) {
    this.#role = role;
    const options = Object.fromEntries(
      Object.entries(OPTIONS[role]!).map(([name, { value }]) =>
        [name, { type: value === undefined ? "boolean" : "string" }] as const
      ),
    );
    // Strict parsing rejects values that begin with a dash, as in `--forward -=localhost:80`.
    const { tokens } = parseArgs({ args: [...args], options, strict: false, tokens: true });
    for (const token of tokens) {
      if (token.kind === "option") this.#add(token);
      else throw new UsageError(`expected an option, received "${token.kind === "positional" ? token.value : "--"}"`);
    }
  }

  #add(token: { name: string; rawName: string; value?: string | undefined; inlineValue?: boolean | undefined }): void {
    const { name, rawName, value = "", inlineValue = false } = token;
    const option = rawName === `--${name}` ? this.#option(name) : undefined;
    if (option === undefined) throw new UsageError(`unknown option ${rawName} for sluice ${this.#role}`);
    if (option.value === undefined && inlineValue) {
      throw new UsageError(`${rawName} takes no value, received "${value}"`);
    }
    if (option.value !== undefined && (value === "" || (!inlineValue && value.startsWith("--")))) {
      const received = value === "" ? "no value" : `"${value}"`;
      throw new UsageError(`expected ${rawName} ${option.value}, received ${received}`);
    }
    const values = this.#values.get(name) ?? [];
    if (values.length > 0 && !option.isList) throw new UsageError(`${rawName} must be specified only once`);
    this.#values.set(name, [...values, option.value === "FILE" ? readFile(rawName, value) : value]);
  }

  #option(name: string): Option | undefined {
    return Object.hasOwn(OPTIONS[this.#role]!, name) ? OPTIONS[this.#role]![name] : undefined;
  }

  has(name: string): boolean {
    return this.#values.has(name);
  }

  one(name: string): string | undefined {
    return this.#values.get(name)?.[0];
  }

  list(name: string): string[] | undefined {
    return this.#values.get(name);
  }

  required(name: string): string {
    const value = this.one(name);
    if (value === undefined) throw new UsageError(`missing option --${name} ${this.#option(name)!.value}`);
    return value;
  }

  /** Returns a number of seconds in milliseconds. */
  seconds(name: string, fallback: string): number {
    const seconds = this.one(name) ?? fallback;
    if (!/^\d{1,6}$/.test(seconds)) {
      throw new UsageError(`--${name} must be an integer from 0 to 999999, received "${seconds}"`);
    }
    return Number(seconds) * 1000;
  }
}

function readFile(option: string, path: string): string {
  try {
    return Deno.readTextFileSync(path).trim();
  } catch (error) {
    throw new UsageError(`cannot read the file of ${option}: ${errorText(error)}`);
  }
}

/** Returns $SLUICE_SECRET, if the process has permission to read it and it is not empty. */
function secretOfEnvironment(): string | undefined {
  const { state } = Deno.permissions.querySync({ name: "env", variable: "SLUICE_SECRET" });
  return state === "granted" ? Deno.env.get("SLUICE_SECRET") || undefined : undefined;
}

/** The callbacks of a tunnel. */
type Reports = Pick<TunnelOptions, "onError" | "onEvent" | "onFrame">;

/** A running tunnel. */
interface Started {
  tunnel: Tunnel;
  /** The addresses to print: where it listens. */
  addrs: readonly string[];
  /** Opens the stream to join with stdin and stdout; absent if these are not forwarded. */
  connect?: () => Promise<Stream>;
}

/** A parsed command line. */
interface Command {
  start(reports: Reports): Started | Promise<Started>;
  /** Milliseconds that the first Ctrl-C waits for open connections. */
  grace: number;
  /** Whether stdin and stdout are forwarded. */
  isPiped: boolean;
  /** Whether frames are logged. */
  isTraced: boolean;
}

/** Parses the options of both commands. */
function parseCommon(values: Values) {
  return {
    // `target` and `users` cannot be combined with a secret: ignore that of the environment.
    secret: values.one("secret") ?? (values.has("target") || values.has("users") ? undefined : secretOfEnvironment()),
    insecure: values.has("insecure"),
    stalledStreamTimeout: values.seconds("stall", "5") || Infinity,
  };
}

function parseServer(values: Values): Omit<Command, "grace" | "isTraced"> {
  const options = {
    listen: values.required("listen"),
    target: values.one("target"),
    allow: values.list("allow"),
    allowListen: values.list("allow-listen"),
    users: values.has("users") ? parseUsers(values.one("users")!) : undefined,
    cert: values.one("cert"),
    key: values.one("key"),
    ...parseCommon(values),
  };
  if (!(options.target ?? options.allow ?? options.allowListen ?? options.users)) {
    throw new UsageError("expected --target, --allow, --allow-listen or --users, received none of them");
  }
  const start = (reports: Reports) => {
    const tunnel = serveTunnel({ ...options, ...reports });
    return { tunnel, addrs: [tunnel.serverAddr] };
  };
  return { isPiped: false, start };
}

function parseClient(values: Values): Omit<Command, "grace" | "isTraced"> {
  const connect = values.required("connect");
  const [ca, smux = "2"] = [values.one("ca"), values.one("smux")];
  if (smux !== "1" && smux !== "2") throw new UsageError(`--smux must be 1 or 2, received "${smux}"`);
  const [forward, reverse, socks] = ["forward", "reverse", "socks"].map((name) => values.list(name));
  if (!(forward ?? reverse ?? socks)) {
    throw new UsageError("expected --forward, --reverse or --socks, received none of them");
  }
  const isPipe = (text: string) => /^-(=|$)/.test(text);
  const [pipe, ...more] = forward?.filter(isPipe) ?? [];
  if (more.length > 0) throw new UsageError("--forward - (stdin and stdout) must be specified only once");
  const piped = pipe === undefined ? undefined : parseForward("forward", pipe.replace("-", "0"));
  const options = {
    connect,
    user: values.one("user"),
    ca,
    tls: values.has("tls") || ca !== undefined,
    version: smux === "1" ? 1 as const : 2 as const,
    forward: forward?.filter((text) => !isPipe(text)),
    reverse,
    socks,
    reconnect: piped === undefined && !values.has("no-reconnect"),
    ...parseCommon(values),
  };
  const start = async (reports: Reports) => {
    const tunnel = await openTunnel({ ...options, ...reports });
    const started = { tunnel, addrs: tunnel.listenAddrs };
    return piped === undefined ? started : { ...started, connect: () => tunnel.connect(piped.target) };
  };
  return { isPiped: piped !== undefined, start };
}

/**
 * Parses a command line.
 *
 * @throws {UsageError} The command line does not match the help.
 */
export function parseCommand([role, ...rest]: readonly string[]): Command {
  if (role === undefined) throw new UsageError('expected "server" or "client", received nothing');
  if (!Object.hasOwn(OPTIONS, role)) throw new UsageError(`expected "server" or "client", received "${role}"`);
  const values = new Values(role, rest);
  const command = role === "server" ? parseServer(values) : parseClient(values);
  return { ...command, grace: values.seconds("grace", "30"), isTraced: values.has("trace") };
}
