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

export const HELP = `\
Forwards connections over one, as ssh -L, -R and -D do.

  sluice server --listen LISTEN --target TARGET
  sluice server --listen LISTEN --allow TARGET ... --allow-listen LISTEN ...
  sluice client --connect TARGET --forward LISTEN=TARGET ...
                --reverse LISTEN=TARGET ... --socks LISTEN ...

LISTEN and TARGET are HOST:PORT, [IPV6]:PORT, unix:PATH, or PORT of 127.0.0.1.

  --target TARGET          connect every stream there, for any client of smux
  --allow TARGET           let clients connect there; * is any host or port
  --allow-listen LISTEN    let clients listen there
  --forward LISTEN=TARGET  listen here, connect there; LISTEN may be -, stdin
                           and stdout; no =TARGET for a server with --target
  --reverse LISTEN=TARGET  listen there, connect here
  --socks LISTEN           listen here for SOCKS 5, connect where that says
  --cert, --key FILE       the certificate of the server, for TLS
  --tls, --ca FILE         connect by TLS; trust the authorities in FILE too
  --secret FILE            what a client must show; default: $SLUICE_SECRET
  --smux 1|2               the version that a client speaks; default 2
  --grace SECONDS          how long Ctrl-C waits for what is open; default 30
  --stall SECONDS          cut a connection whose receiver stalled this long
                           and holds up all others; default 5, 0 is never
  --trace                  log every frame between client and server, on stderr
  --insecure               let others connect without TLS and a secret
  --no-reconnect           end when the connection to the server is lost

  sluice server --listen 9000 --allow db.local:5432 --allow '*:443'
  sluice client --connect 9000 --forward 5432=db.local:5432 --socks 1080
  ssh -o ProxyCommand='sluice client --connect 9000 --forward -=%h:%p' HOST`;

/** What is wrong with a command line, in one line. */
export class UsageError extends Error {}

/** An option: the value it takes, as in the help, if it takes one, and whether it may be repeated. */
interface Option {
  value?: "LISTEN" | "TARGET" | "LISTEN=TARGET" | "FILE" | "SECONDS" | "1|2";
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
    smux: { value: "1|2" },
    // By its whole name: `allowNegative` would accept --no-tls, --no-insecure and --reconnect as well.
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
    // Strict, it rejects values that begin with a dash, as in `--forward -=localhost:80`.
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
    if (values.length > 0 && !option.isList) throw new UsageError(`${rawName} was given twice`);
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
    if (value === undefined) throw new UsageError(`--${name} ${this.#option(name)!.value} is missing`);
    return value;
  }

  /** Seconds, as milliseconds. */
  seconds(name: string, fallback: string): number {
    const seconds = this.one(name) ?? fallback;
    if (!/^\d{1,6}$/.test(seconds)) throw new UsageError(`--${name} must be whole seconds, received "${seconds}"`);
    return Number(seconds) * 1000;
  }
}

function readFile(option: string, path: string): string {
  try {
    return Deno.readTextFileSync(path).trim();
  } catch (error) {
    throw new UsageError(`${option} cannot be read: ${errorText(error)}`);
  }
}

/** The secret in the environment, if this process may read it. */
function secretOfEnvironment(): string | undefined {
  const { state } = Deno.permissions.querySync({ name: "env", variable: "SLUICE_SECRET" });
  return state === "granted" ? Deno.env.get("SLUICE_SECRET") || undefined : undefined;
}

/** Where events and errors of a tunnel go. */
type Reports = Pick<TunnelOptions, "onError" | "onEvent" | "onFrame">;

/** A tunnel that was started. */
interface Started {
  tunnel: Tunnel;
  /** The addresses that it listens at. */
  addrs: readonly string[];
  /** Opens the stream to join with stdin and stdout, if these are forwarded. */
  connect?: () => Promise<Stream>;
}

/** What a command line asks for. */
interface Command {
  start(reports: Reports): Started | Promise<Started>;
  /** Milliseconds that the first Ctrl-C waits for what is open. */
  grace: number;
  /** Whether stdin and stdout are forwarded. */
  isPiped: boolean;
  /** Whether frames are logged. */
  isTraced: boolean;
}

/** Options that both commands have. */
function parseCommon(values: Values) {
  return {
    // A server with a target checks no secret, also when the environment has one.
    secret: values.one("secret") ?? (values.has("target") ? undefined : secretOfEnvironment()),
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
    cert: values.one("cert"),
    key: values.one("key"),
    ...parseCommon(values),
  };
  if (!(options.target ?? options.allow ?? options.allowListen)) {
    throw new UsageError("expected --target, --allow or --allow-listen");
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
  if (!(forward ?? reverse ?? socks)) throw new UsageError("expected --forward, --reverse or --socks");
  const isPipe = (text: string) => /^-(=|$)/.test(text);
  const [pipe, ...more] = forward?.filter(isPipe) ?? [];
  if (more.length > 0) throw new UsageError("stdin and stdout can be forwarded only once");
  const piped = pipe === undefined ? undefined : parseForward("forward", pipe.replace("-", "0"));
  const options = {
    connect,
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
 * @throws {UsageError} It is not as the help has it.
 */
export function parseCommand([role, ...rest]: readonly string[]): Command {
  if (role === undefined) throw new UsageError("expected server or client, received nothing");
  if (!Object.hasOwn(OPTIONS, role)) throw new UsageError(`expected server or client, received "${role}"`);
  const values = new Values(role, rest);
  const command = role === "server" ? parseServer(values) : parseClient(values);
  return { ...command, grace: values.seconds("grace", "30"), isTraced: values.has("trace") };
}
