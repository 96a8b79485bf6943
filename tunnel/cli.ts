/**
 * Parses a command line, and runs the command.
 *
 * @module
 */

import { join } from "../mod.ts";
import { parseForward } from "./address.ts";
import { openTunnel } from "./client.ts";
import { Display } from "./display.ts";
import { errorText } from "./errors.ts";
import { eventLine, listeningLine, shutdownLine, totalLine } from "./log.ts";
import type { Tunnel, TunnelClient, TunnelOptions } from "./options.ts";
import { serveTunnel } from "./server.ts";
import { setDeadline } from "./wait.ts";

const HELP = `\
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
  --insecure               let others connect without TLS and a secret
  --once                   do not connect again when the connection is lost

  sluice server --listen 9000 --allow db.local:5432 --allow '*:443'
  sluice client --connect 9000 --forward 5432=db.local:5432 --socks 1080
  ssh -o ProxyCommand='sluice client --connect 9000 --forward -=%h:%p' HOST`;

/** What is wrong with a command line, in one sentence. */
class UsageError extends Error {}

// What each option of either command takes.
const FLAGS: Record<string, Record<string, "one" | "many" | "none" | "file">> = {
  server: { listen: "one", target: "one", allow: "many", "allow-listen": "many", cert: "file", key: "file" },
  client: {
    connect: "one",
    forward: "many",
    reverse: "many",
    socks: "many",
    tls: "none",
    ca: "file",
    smux: "one",
    once: "none",
  },
};
for (const flags of Object.values(FLAGS)) {
  Object.assign(flags, { secret: "file", grace: "one", stall: "one", insecure: "none" });
}

/** The options of a command line, `--name value` or `--name=value`, by name. */
function parseFlags(role: string, args: readonly string[]): Record<string, string[]> {
  const values: Record<string, string[]> = {};
  for (let at = 0; at < args.length; at++) {
    const [, name, attached] = /^--([^=]+)(?:=(.*))?$/s.exec(args[at]!) ?? [];
    if (name === undefined) throw new UsageError(`unexpected argument "${args[at]}"`);
    const flags = FLAGS[role]!;
    if (!Object.hasOwn(flags, name)) throw new UsageError(`unknown option --${name}`);
    const kind = flags[name];
    let value: string | undefined = "yes";
    if (kind !== "none") value = attached ?? args[++at];
    else if (attached !== undefined) throw new UsageError(`--${name} takes no value`);
    if (!value || (attached === undefined && value.startsWith("--"))) throw new UsageError(`--${name} needs a value`);
    if (values[name] !== undefined && kind !== "many") throw new UsageError(`--${name} was given twice`);
    try {
      (values[name] ??= []).push(kind === "file" ? Deno.readTextFileSync(value).trim() : value);
    } catch (error) {
      throw new UsageError(`--${name} cannot be read: ${errorText(error)}`);
    }
  }
  return values;
}

/** What a command line asks for: a tunnel, milliseconds of grace, and what stdin and stdout are forwarded to. */
interface Command {
  start(reports: TunnelOptions): Tunnel | Promise<Tunnel>;
  grace: number;
  piped: { to: string | undefined } | undefined;
}

/** What the environment has, where this process may look. */
function secretOfEnvironment(): string | undefined {
  const { state } = Deno.permissions.querySync({ name: "env", variable: "SLUICE_SECRET" });
  return state === "granted" ? Deno.env.get("SLUICE_SECRET") || undefined : undefined;
}

function parseCommand([role, ...rest]: readonly string[]): Command {
  if (role === undefined || !Object.hasOwn(FLAGS, role)) {
    throw new UsageError(`say server or client${role === undefined ? "" : `, received "${role}"`}`);
  }
  const flags = parseFlags(role, rest);
  const one = (name: string) => flags[name]?.[0];
  const milliseconds = (name: string, fallback: string) => {
    const seconds = one(name) ?? fallback;
    if (!/^\d{1,6}$/.test(seconds)) throw new UsageError(`--${name} must be whole seconds, received "${seconds}"`);
    return Number(seconds) * 1000;
  };
  const grace = milliseconds("grace", "30");
  const stalledStreamTimeout = milliseconds("stall", "5") || Infinity;
  const needed = role === "server" ? "listen" : "connect";
  if (one(needed) === undefined) throw new UsageError(`--${needed} is missing`);
  // A target asks for none, whatever the environment has.
  const secret = one("secret") ?? (one("target") === undefined ? secretOfEnvironment() : undefined);
  const common = { secret, insecure: one("insecure") !== undefined, stalledStreamTimeout };
  if (role === "server") {
    const { allow, "allow-listen": allowListen } = flags;
    const [listen, target, cert, key] = ["listen", "target", "cert", "key"].map(one);
    if (!(target ?? allow ?? allowListen)) throw new UsageError("say --target, --allow or --allow-listen");
    const options = { ...common, listen: listen!, target, allow, allowListen, cert, key };
    return { grace, piped: undefined, start: (reports) => serveTunnel({ ...options, ...reports }) };
  }
  const [connect, ca, smux = "2"] = ["connect", "ca", "smux"].map(one);
  if (smux !== "1" && smux !== "2") throw new UsageError(`--smux must be 1 or 2, received "${smux}"`);
  const isPiped = (text: string) => /^-(=|$)/.test(text);
  const [pipe, ...more] = flags.forward?.filter(isPiped) ?? [];
  if (more.length > 0) throw new UsageError("stdin and stdout can be forwarded only once");
  const piped = pipe === undefined ? undefined : parseForward("forward", pipe.replace("-", "0"));
  const forward = flags.forward?.filter((text) => !isPiped(text));
  const { reverse, socks } = flags;
  if (!(flags.forward ?? reverse ?? socks)) throw new UsageError("say --forward, --reverse or --socks");
  const how = { tls: one("tls") !== undefined || ca !== undefined, version: smux === "1" ? 1 as const : 2 as const };
  const reconnect = piped === undefined && one("once") === undefined;
  const options = { ...common, ...how, connect: connect!, ca, forward, reverse, socks, reconnect };
  return { grace, piped, start: (reports) => openTunnel({ ...options, ...reports }) };
}

// Nothing is open any more; it is for saying so to the server.
const PIPE_TIMEOUT = 1000;

/** Joins stdin and stdout with a target, and then ends the tunnel. */
async function pipe(tunnel: TunnelClient, target: string | undefined, cut: AbortSignal): Promise<void> {
  const { stdin, stdout } = Deno;
  const read = (p: Uint8Array) => stdin.read(p);
  const write = (p: Uint8Array) => stdout.write(p);
  const closeWrite = () => Promise.resolve(stdout.close());
  try {
    await join(await tunnel.connect(target), { read, write, closeWrite, close() {} }, { signal: cut });
  } catch (error) {
    tunnel.shutdown({ timeout: PIPE_TIMEOUT });
    throw error;
  }
  // What was written last may still be on its way.
  tunnel.shutdown();
}

/** Runs the command; gives the exit code. */
export async function main(args: readonly string[]): Promise<number> {
  if (args.includes("--help") || args.includes("-h")) {
    console.log(HELP);
    return 0;
  }
  let display = new Display(Deno.stdout);
  const onError = (error: unknown) => display.line(errorText(error), Deno.stderr);
  // On Windows nothing sends the other.
  const signals: Deno.Signal[] = Deno.build.os === "windows" ? ["SIGINT"] : ["SIGINT", "SIGTERM"];
  let stop = () => {};
  const cut = new AbortController();
  const unlisten = () => signals.forEach((name) => Deno.removeSignalListener(name, stop));
  try {
    const { start, grace, piped } = parseCommand(args);
    if (piped !== undefined) display = new Display(Deno.stderr);
    const tunnel = await start({ onError, onEvent: (event) => display.line(eventLine(event)) });
    stop = () => {
      // The next one ends the process.
      unlisten();
      display.line(shutdownLine(grace));
      tunnel.shutdown({ timeout: grace });
      if (piped !== undefined) setDeadline(() => cut.abort(new Error("stdout was not read in time")), grace);
    };
    for (const name of signals) Deno.addSignalListener(name, stop);
    for (const addr of args[0] === "server" ? [tunnel.serverAddr] : tunnel.listenAddrs) {
      display.line(listeningLine(addr));
    }
    display.live(() => tunnel.stats());
    if (piped !== undefined) {
      // When the connection is lost, stdout still gets what had arrived whole.
      let lost: unknown;
      tunnel.finished.catch((error) => lost = error);
      await pipe(tunnel as TunnelClient, piped.to, cut.signal).catch((error) => {
        throw lost ?? error;
      });
    }
    await tunnel.finished;
    if (piped === undefined) display.line(totalLine(tunnel.stats()));
    return 0;
  } catch (error) {
    const isUsage = error instanceof UsageError || error instanceof RangeError;
    onError(isUsage ? `${error.message} (try --help)` : error);
    return isUsage ? 2 : 1;
  } finally {
    display.end();
    unlisten();
  }
}
