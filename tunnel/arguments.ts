/**
 * Parses the command line of the tunnel.
 *
 * @module
 */

import type { Stream } from "../mod.ts";
import { parseForward, withoutPath } from "./address.ts";
import { makeCertificate } from "./certificate.ts";
import { checkTunnel, type CheckTunnelOptions } from "./check.ts";
import { openTunnel } from "./client.ts";
import type { End } from "./config.ts";
import { ConfiguredTunnels, type Printer, type Running } from "./configured.ts";
import { secretOfEnvironment } from "./environment.ts";
import { errorText } from "./errors.ts";
import { commandHint } from "./hints.ts";
import type { LogFormat } from "./log.ts";
import { proxyOfEnvironment } from "./no_proxy.ts";
import type { TunnelOptions, TunnelServer } from "./options.ts";
import { pinOfPem } from "./pin.ts";
import { formatCheck } from "./report.ts";
import { serveTunnel } from "./server.ts";
import { targetsOf } from "./settings.ts";
import { CONFIGURED, OPTIONS } from "./usage.ts";
import { hashEntry, parseUsers } from "./users.ts";
import { isPipe, UsageError, Values } from "./values.ts";

/** The callbacks of a tunnel. */
type Reports = Pick<TunnelOptions, "onError" | "onEvent" | "onFrame">;

/** A running tunnel. */
interface Started {
  tunnel: Running & Partial<Pick<TunnelServer, "statusAddr" | "pin">>;
  /** The addresses to print: where it listens. Tunnels of a file print theirs. */
  addrs: readonly string[];
  /** Where the connections of each address lead; `undefined` if each request contains its target. */
  targets: readonly (string | undefined)[];
  /** Opens the stream to join with stdin and stdout; absent if these are not forwarded. */
  connect?: () => Promise<Stream>;
  /** The target of that stream; `undefined`: the fixed target of the server. */
  pipedTo?: string | undefined;
}

/** A parsed command line of a tunnel. */
export interface TunnelCommand {
  start(reports: Reports, printer: Printer): Started | Promise<Started>;
  /** Milliseconds that the first Ctrl-C waits for open connections. */
  grace: number;
  /** Whether stdin and stdout are forwarded. */
  isPiped: boolean;
  /** Whether frames are logged. */
  isTraced: boolean;
  /** The format of the log; `undefined`: text without times. */
  log: LogFormat | undefined;
}

/** What both commands add to the options of their own. */
type Common = "grace" | "isTraced" | "log";

/** A parsed command line that does something else and ends. */
interface ShortCommand {
  /** Returns the lines to print. The iterator rejects after the last line if the command has failed. */
  run(): Promise<string[]> | AsyncIterable<string>;
}

/** Parses the options of both commands. */
function parseCommon(values: Values) {
  const [keepAliveInterval, timeout] = [values.duration("keepalive"), values.duration("timeout")];
  const most = timeout ?? 30_000;
  if (keepAliveInterval !== undefined && keepAliveInterval !== Infinity && keepAliveInterval > most) {
    const received = `${keepAliveInterval / 1000} and ${most / 1000}`;
    throw new UsageError(`--keepalive must be at most --timeout, received ${received} seconds`);
  }
  return {
    keepAliveInterval,
    timeout,
    udpTimeout: values.duration("udp-timeout"),
    maxStreams: values.number("max-streams"),
    maxReceiveBuffer: values.number("max-receive-buffer", 2 ** 20),
    // `target` and `users` cannot be combined with a secret: ignore that of the environment.
    secret: values.one("secret") ?? (values.has("target") || values.has("users") ? undefined : secretOfEnvironment()),
    insecure: values.has("insecure"),
    stalledStreamTimeout: values.seconds("stall", 5) || Infinity,
    status: values.one("status"),
  };
}

/** Parses `--log`. */
function parseLog(values: Values): LogFormat | undefined {
  const log = values.one("log");
  if (log === undefined || log === "text" || log === "json") return log;
  throw new UsageError(`--log must be text or json, received "${log}"`);
}

function parseServer(values: Values): Omit<TunnelCommand, Common> {
  const options = {
    listen: values.required("listen"),
    target: values.one("target"),
    allow: values.list("allow"),
    allowListen: values.list("allow-listen"),
    acceptProxy: values.list("accept-proxy"),
    users: values.has("users") ? parseUsers(values.one("users")!, values.has("client-ca")) : undefined,
    cert: values.one("cert"),
    key: values.one("key"),
    clientCa: values.one("client-ca"),
    backend: values.one("backend"),
    ...parseCommon(values),
  };
  if (!(options.target ?? options.allow ?? options.allowListen ?? options.users)) {
    throw new UsageError("expected --target, --allow, --allow-listen or --users, received none of them");
  }
  const start = (reports: Reports) => {
    const tunnel = serveTunnel({ ...options, ...reports });
    return { tunnel, addrs: [tunnel.serverAddr], targets: [options.target] };
  };
  return { isPiped: false, start };
}

/** Parses how a client connects to its server. */
function parseServerAddress(values: Values) {
  values.required("connect");
  const connect = values.list("connect")!;
  const [ca, smux = "2"] = [values.one("ca"), values.one("smux")];
  if (smux !== "1" && smux !== "2") throw new UsageError(`--smux must be 1 or 2, received "${smux}"`);
  const [cert, key, pin] = ["cert", "key", "pin"].map((name) => values.one(name));
  return {
    connect,
    ca,
    cert,
    key,
    pin,
    // Absent, it depends on the scheme of a URL.
    tls: values.has("tls") || (ca ?? cert ?? pin) !== undefined || undefined,
    headers: values.list("header"),
    proxy: values.one("proxy") ?? proxyOfEnvironment(),
    version: smux === "1" ? 1 as const : 2 as const,
  };
}

function parseClient(values: Values): Omit<TunnelCommand, Common> {
  const server = parseServerAddress(values);
  const names = ["forward", "reverse", "socks", "http", "reverse-socks", "allow"];
  const [forward, reverse, socks, http, reverseSocks, allow] = names.map((name) => values.list(name));
  if (!(forward ?? reverse ?? socks ?? http ?? reverseSocks)) {
    throw new UsageError("expected --forward, --reverse, --socks, --http or --reverse-socks, received none of them");
  }
  if (reverseSocks !== undefined && allow === undefined) {
    throw new UsageError("--reverse-socks requires the targets that may be requested", "write --allow '*:443'");
  }
  const [pipe, ...more] = forward?.filter(isPipe) ?? [];
  if (more.length > 0) throw new UsageError("--forward - (stdin and stdout) must be specified only once");
  const piped = pipe === undefined ? undefined : parseForward("forward", pipe.replace("-", "0"));
  if (piped?.isProxied) throw new UsageError("--forward - has no visitor whose address ,proxy could send");
  const options = {
    ...server,
    user: values.one("user"),
    forward: forward?.filter((text) => !isPipe(text)),
    reverse,
    socks,
    http,
    reverseSocks,
    allow,
    proxyAuth: values.one("proxy-auth"),
    retry: piped === undefined && !values.has("no-retry"),
    resume: !values.has("no-resume"),
    reconnect: piped === undefined && !values.has("no-reconnect"),
    wait: values.seconds("wait", 30),
    ...parseCommon(values),
  };
  const start = async (reports: Reports) => {
    const tunnel = await openTunnel({ ...options, ...reports });
    const targets = targetsOf(options);
    // With several servers, events have the addresses of `reverse` at each.
    const ofServers = (reverse?.length ?? 0) + (options.reverseSocks?.length ?? 0);
    const printed = server.connect.length > 1 ? targets.length - ofServers : targets.length;
    const started = { tunnel, addrs: tunnel.listenAddrs.slice(0, printed), targets };
    if (piped === undefined) return started;
    return { ...started, connect: () => tunnel.connect(piped.target), pipedTo: piped.target };
  };
  return { isPiped: piped !== undefined, start };
}

/** Formats each result; rejects after the last if one has failed. */
async function* checkLines(options: CheckTunnelOptions): AsyncGenerator<string, void> {
  let failed: Error | undefined;
  for await (const check of checkTunnel(options)) {
    yield* formatCheck(check);
    // The next server is checked, too.
    if (check.error !== undefined) failed ??= new Error(`check failed: ${check.name}`, { cause: check.error });
  }
  if (failed !== undefined) throw failed;
}

function parseCheck(values: Values): ShortCommand {
  const options = {
    ...parseServerAddress(values),
    user: values.one("user"),
    secret: values.one("secret") ?? secretOfEnvironment(),
    insecure: values.has("insecure"),
    timeout: values.duration("timeout"),
    // Stdin and stdout need no address.
    forward: values.list("forward")?.map((text) => isPipe(text) ? text.replace("-", "0") : text),
    reverse: values.list("reverse"),
    idle: values.has("idle") ? values.seconds("idle", 0) || undefined : undefined,
  };
  return { run: () => checkLines(options) };
}

// Options of the process, which a configuration file does not contain.
const WITH_CONFIG = ["config", "grace", "log", "trace"];

/** Parses `--config`: the file has the options of the tunnel. */
function parseConfigured(values: Values, end: End | undefined): Omit<TunnelCommand, Common> {
  const file = values.required("config");
  const other = values.names.find((name) => !WITH_CONFIG.includes(name));
  if (other !== undefined) {
    throw new UsageError(`--config cannot be combined with --${other}`, "write its value into the file");
  }
  const start = (reports: Reports, printer: Printer) => ({
    tunnel: new ConfiguredTunnels(file, end, reports, printer),
    addrs: [],
    targets: [],
  });
  return { isPiped: false, start };
}

/** Whether a command line has only options, with `--config` among them. */
function isConfigured(args: readonly string[]): boolean {
  return args[0]!.startsWith("--") && args.some((word) => /^--config(=|$)/.test(word));
}

/** Writes a new file. */
async function writeNew(option: string, path: string, text: string, mode?: number): Promise<void> {
  try {
    await Deno.writeTextFile(path, text, { createNew: true, ...mode === undefined ? {} : { mode } });
  } catch (error) {
    const why = error instanceof Deno.errors.AlreadyExists
      ? `the file exists; remove it, or choose another with ${option}`
      : errorText(error);
    throw new Error(`cannot write ${path}: ${why}`, { cause: error });
  }
}

function parseCert(values: Values): ShortCommand {
  const [cert, key] = [values.one("cert") ?? "cert.pem", values.one("key") ?? "key.pem"];
  const hosts = values.list("host") ?? ["localhost", "127.0.0.1", "::1"];
  const run = async () => {
    const made = await makeCertificate(hosts);
    // For the owner only.
    await writeNew("--key", key, made.key, 0o600);
    try {
      await writeNew("--cert", cert, made.cert);
    } catch (error) {
      await Deno.remove(key);
      throw error;
    }
    return [
      `wrote ${cert} and ${key} for ${hosts.join(", ")}; valid until ${made.expires.toISOString().slice(0, 10)}`,
      `server: --cert ${cert} --key ${key}`,
      `client: --ca ${cert}`,
      `client: --pin ${pinOfPem(made.cert)}`,
    ];
  };
  return { run };
}

function parseHash(args: readonly string[]): ShortCommand {
  const [name, ...more] = args;
  if (name === undefined || more.length > 0) {
    throw new UsageError(`expected "hash NAME", received ${args.length} arguments`);
  }
  return { run: async () => [await hashEntry(name, (await new Response(Deno.stdin.readable).text()).trim())] };
}

/**
 * Parses a command line.
 *
 * @throws {UsageError} The command line does not match the help.
 */
export function parseCommand(args: readonly string[]): TunnelCommand | ShortCommand {
  if (args.length > 0 && isConfigured(args)) args = [CONFIGURED, ...args];
  const [role, ...rest] = args;
  const expected = 'expected "server", "client", "check", "cert" or "hash"';
  if (role === undefined) throw new UsageError(`${expected}, received nothing`);
  if (!Object.hasOwn(OPTIONS, role)) {
    throw new UsageError(`${expected}, received "${withoutPath(role)}"`, commandHint(role, rest[0]));
  }
  if (role === "hash") return parseHash(rest);
  const values = new Values(role, rest);
  if (role === "cert") return parseCert(values);
  if (role === "check") return parseCheck(values);
  const end = role === "server" || role === "client" ? role : undefined;
  const command = end === undefined || values.has("config")
    ? parseConfigured(values, end)
    : end === "server"
    ? parseServer(values)
    : parseClient(values);
  return { ...command, grace: values.seconds("grace", 30), isTraced: values.has("trace"), log: parseLog(values) };
}
