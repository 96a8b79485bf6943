/**
 * Reads the configuration file of the command: the options of a server, a client or both, in JSON.
 *
 * @module
 */

import { dirname, resolve } from "node:path";
import { parseEndpoint, parseForward } from "./address.ts";
import { parseNetworks } from "./cidr.ts";
import { readVariable, secretOfEnvironment } from "./environment.ts";
import { errorText, show, typeName } from "./errors.ts";
import { join, type Json, JsonError, parseJson, type Position } from "./json.ts";
import type { OpenTunnelOptions, ServeTunnelOptions, TunnelOptions } from "./options.ts";
import { proxyOfEnvironment } from "./no_proxy.ts";
import { parsePin } from "./pin.ts";
import { parseRule } from "./rules.ts";
import { checkOptions as checkServer } from "./server.ts";
import { checkOptions as checkClient } from "./settings.ts";
import { parseProxy } from "./upstream.ts";
import { checkName, checkUsers } from "./users.ts";
import { MAX_TIMEOUT } from "./wait.ts";
import { isWebSocketUrl, parseBackend, parseWebSocketUrl } from "./web_socket_address.ts";
import { checkHeaders } from "./web_socket_handshake.ts";

/** An end of a tunnel. */
export type End = "server" | "client";

/** The options of each end in a file. */
export interface Config {
  server: ServeTunnelOptions | undefined;
  client: OpenTunnelOptions | undefined;
}

/** A file that was read. */
export interface Loaded {
  /** `undefined` if there are mistakes. */
  config: Config | undefined;
  /** One line for each, with its file, line and column. */
  mistakes: readonly string[];
  /** The texts of the file and of the files that it names, by path; `undefined` for one that cannot be read. */
  texts: ReadonlyMap<string, string | undefined>;
}

/** A malformed configuration file. */
export class ConfigError extends Error {
  /** One line for each mistake. */
  readonly mistakes: readonly string[];

  constructor(mistakes: readonly string[]) {
    super(mistakes.join("\n"));
    this.mistakes = mistakes;
  }
}

/** Reads a file that may be missing. */
export function readText(path: string): string | undefined {
  try {
    return Deno.readTextFileSync(path);
  } catch {
    return undefined;
  }
}

/**
 * Reads a configuration file.
 *
 * @param end The end that will run; `undefined`: each one in the file.
 */
export function loadConfig(path: string, end?: End): Loaded {
  const loader = new Loader(path);
  const config = loader.load(end);
  return { config: loader.mistakes.length > 0 ? undefined : config, mistakes: loader.mistakes, texts: loader.texts };
}

/** Checks a value, and returns that of the option. */
type Check = (loader: Loader, path: string, value: unknown) => unknown;

/** The option names of an interface, without callbacks, which a file cannot contain. */
type Names<T> = Exclude<keyof T, "signal" | "onError" | "onEvent" | "onFrame" | "authorize">;

const COMMON: Record<Names<TunnelOptions>, Check> = {
  secret: file,
  insecure: flag,
  stalledStreamTimeout: milliseconds(1),
  status: address(0),
  connectTimeout: milliseconds(1),
  udpTimeout: milliseconds(1),
  keepAliveInterval: milliseconds(1),
  timeout: milliseconds(1),
  maxStreams: count,
  maxReceiveBuffer: count,
};
const SERVER: Record<Names<ServeTunnelOptions>, Check> = {
  listen: serverAddress(0),
  target: address(1),
  allow: list(parseRule),
  allowListen: list(parseRule),
  acceptProxy: list((path, entry) => parseNetworks(path, [entry])),
  users,
  cert: file,
  key: file,
  clientCa: file,
  backend(loader, path, value) {
    const text = loader.text(path, value);
    parseBackend(path, text);
    return text;
  },
  ...COMMON,
};
const CLIENT: Record<Names<OpenTunnelOptions>, Check> = {
  connect: (loader, path, value) => (Array.isArray(value) ? servers : serverAddress(1))(loader, path, value),
  headers: list((path, entry) => checkHeaders(path, [entry])),
  forward: list(parseForward),
  reverse: list((path, entry) => {
    const { target } = parseForward(path, entry);
    if (target === undefined) throw new RangeError(`${path} must be LISTEN=TARGET, received "${entry}"`);
  }),
  socks: list((path, entry) => parseEndpoint(path, entry, 0)),
  proxy(loader, path, value) {
    const proxy = loader.text(path, value);
    parseProxy(proxy, path);
    return proxy;
  },
  http: list((path, entry) => parseEndpoint(path, entry, 0)),
  reverseSocks: list((path, entry) => parseEndpoint(path, entry, 0)),
  allow: list(parseRule),
  proxyAuth: file,
  user(loader, path, value) {
    const name = loader.text(path, value);
    checkName(path, name);
    return name;
  },
  tls: flag,
  ca: file,
  cert: file,
  key: file,
  pin: (loader, path, value) => parsePin(path, loader.text(path, value)),
  version(_loader, path, value) {
    if (value === 1 || value === 2) return value;
    throw new RangeError(`${path} must be 1 or 2, received ${show(value)}`);
  },
  retry: flag,
  reconnect: flag,
  resume: flag,
  wait: milliseconds(0),
  ...COMMON,
};

function file(loader: Loader, path: string, value: unknown): string {
  // The value of `secret` may be the secret itself: it stays out of the log.
  if (typeof value !== "string") throw new RangeError(`${path} must be the path of a file, received another type`);
  const [, text] = loader.read(path, loader.text(path, value));
  return text.trim();
}

function flag(_loader: Loader, path: string, value: unknown): boolean {
  if (typeof value === "boolean") return value;
  throw new RangeError(`${path} must be true or false, received ${show(value)}`);
}

function milliseconds(least: number): Check {
  return (_loader, path, value) => {
    if (value === "Infinity") return Infinity;
    if (Number.isInteger(value) && (value as number) >= least && (value as number) <= MAX_TIMEOUT) return value;
    const expected = `an integer from ${least} to ${MAX_TIMEOUT}, in milliseconds, or "Infinity"`;
    throw new RangeError(`${path} must be ${expected}, received ${show(value)}`);
  };
}

function count(_loader: Loader, path: string, value: unknown): unknown {
  if (Number.isInteger(value) && (value as number) >= 1 && (value as number) <= MAX_TIMEOUT) return value;
  throw new RangeError(`${path} must be an integer from 1 to ${MAX_TIMEOUT}, received ${show(value)}`);
}

function address(leastPort: number): Check {
  return (loader, path, value) => {
    const text = loader.text(path, value);
    parseEndpoint(path, text, leastPort);
    return text;
  };
}

/** An address, or the URL of a WebSocket. */
function serverAddress(leastPort: number): Check {
  const check = address(leastPort);
  return (loader, path, value) => {
    const isUrl = typeof value === "string" && isWebSocketUrl(value);
    if (!isUrl) return check(loader, path, value);
    const text = loader.text(path, value);
    parseWebSocketUrl(path, text, leastPort);
    return text;
  };
}

function list(check: (path: string, entry: string) => void): Check {
  return (loader, path, value) => {
    if (!Array.isArray(value)) throw new RangeError(`${path} must be a list of texts, received ${typeName(value)}`);
    return value.map((entry: unknown, n) =>
      loader.attempt(() => {
        const text = loader.text(`${path}[${n}]`, entry);
        check(`${path}[${n}]`, text);
        return text;
      })
    );
  };
}

const servers = list((path, entry) => parseWebSocketUrl(path, entry, 1) ?? parseEndpoint(path, entry, 1));

/** A list, or the path of a file with a list. */
function users(loader: Loader, path: string, value: unknown): unknown {
  if (typeof value === "string") return loader.readUsers(path, loader.text(path, value));
  return checkUsers(loader.expand(path, value), path, loader.isCertified);
}

class Loader {
  readonly mistakes: string[] = [];
  readonly texts = new Map<string, string | undefined>();
  /** Whether the clients of the server show certificates. */
  isCertified = false;
  readonly #path: string;
  #json: Json | undefined;

  constructor(path: string) {
    this.#path = path;
  }

  /** Reads the file, and collects the mistakes. */
  load(end: End | undefined): Config | undefined {
    let text: string;
    try {
      text = readFile(this.#path, this.texts);
    } catch (error) {
      this.mistakes.push(`${this.#path} cannot be read: ${errorText(error)}`);
      return undefined;
    }
    const found = this.#parse(this.#path, text);
    if (found === undefined) return undefined;
    this.#json = found;
    return this.attempt(() => this.#config(found.value, end));
  }

  /** Runs a check; collects its mistake. */
  attempt<T>(check: () => T): T | undefined {
    try {
      return check();
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      this.#add(this.#path, this.#json!, error.message);
      return undefined;
    }
  }

  /** Returns a text with its variables replaced. */
  text(path: string, value: unknown): string {
    if (typeof value !== "string") throw new RangeError(`${path} must be a text, received ${show(value)}`);
    return value.replaceAll(/\$\{([^}]*)(\}?)/g, (all, name: string, end) => {
      // What follows without the end of a name may be a part of a secret.
      if (end === "" || !/^[A-Za-z_]\w*$/.test(name)) {
        throw new RangeError(`${path} must name variables as \${NAME}, received ${show(end === "" ? "${" : all)}`);
      }
      const found = readVariable(name);
      if (found === undefined) throw new RangeError(`${path} names the variable ${name}, which is not set`);
      return found;
    });
  }

  /** Replaces the variables in all texts of a value. */
  expand(path: string, value: unknown): unknown {
    if (typeof value === "string") return this.text(path, value);
    if (Array.isArray(value)) return value.map((entry, n) => this.expand(`${path}[${n}]`, entry));
    if (typeof value !== "object" || value === null) return value;
    return Object.fromEntries(
      Object.entries(value).map(([name, inner]) => [name, this.expand(join(path, name), inner)]),
    );
  }

  /** Reads a file that the configuration names; returns its path, too. */
  read(path: string, name: string): [path: string, text: string] {
    const found = resolve(dirname(this.#path), name);
    try {
      return [found, readFile(found, this.texts)];
    } catch (error) {
      throw new RangeError(`${path} must be the path of a file: ${errorText(error)}`, { cause: error });
    }
  }

  /** Reads a file of users. Its mistakes have positions of their own. */
  readUsers(path: string, name: string): unknown {
    const [found, text] = this.read(path, name);
    const json = this.#parse(found, text);
    if (json === undefined) return undefined;
    try {
      return checkUsers(json.value, "users", this.isCertified);
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      // The path of a list that is a whole file has no name.
      this.#add(found, json, error.message, (path) => path.replace(/^users/, ""));
      return undefined;
    }
  }

  #config(value: unknown, end: End | undefined): Config {
    const ends = this.#object("", value, ["server", "client"]);
    const isMissing = (end === undefined ? ["server", "client"] : [end]).every((end) => !Object.hasOwn(ends, end));
    if (isMissing) throw new RangeError(`the file must have ${end ?? "server or client"}`);
    const server = this.#end("server", ends.server, SERVER, "listen", [
      "target",
      "allow",
      "allowListen",
      "users",
    ]) as unknown as ServeTunnelOptions | undefined;
    const client = this.#end("client", ends.client, CLIENT, "connect", [
      "forward",
      "reverse",
      "socks",
      "http",
      "reverseSocks",
    ]) as unknown as OpenTunnelOptions | undefined;
    return {
      server: end === "client" ? undefined : this.#checked("server", server && withSecret(server), checkServer),
      client: end === "server" ? undefined : this.#checked(
        "client",
        client && this.attempt(() => withProxy(withSecret({ retry: true, ...client }))),
        checkClient,
      ),
    };
  }

  /** Checks the options of one end, each by itself. */
  #end(
    path: End,
    value: unknown,
    checks: Record<string, Check>,
    required: string,
    some: readonly string[],
  ): Record<string, unknown> | undefined {
    if (value === undefined) return undefined;
    const fields = this.attempt(() => this.#object(path, value, Object.keys(checks)));
    if (fields === undefined) return undefined;
    this.isCertified = Object.hasOwn(fields, "clientCa");
    this.attempt(() => {
      if (Object.hasOwn(fields, required)) return;
      throw new RangeError(`${path} must have ${required}, received only ${Object.keys(fields).join(", ") || "{}"}`);
    });
    this.attempt(() => {
      if (some.some((name) => Object.hasOwn(fields, name))) return;
      throw new RangeError(
        `${path} must have ${some.slice(0, -1).join(", ")} or ${some.at(-1)}, received none of them`,
      );
    });
    const options: Record<string, unknown> = {};
    for (const [name, inner] of Object.entries(fields)) {
      if (!Object.hasOwn(checks, name)) continue;
      options[name] = this.attempt(() => checks[name]!(this, join(path, name), inner));
    }
    return options;
  }

  /** Checks the options of one end together, unless one of them is wrong by itself. */
  #checked<T>(path: End, options: T | undefined, check: (options: T) => unknown): T | undefined {
    if (options === undefined || this.mistakes.length > 0) return options;
    return this.attempt(() => {
      try {
        check(options);
      } catch (error) {
        if (!(error instanceof RangeError)) throw error;
        throw new RangeError(`${path}.${error.message}`, { cause: error });
      }
      return options;
    });
  }

  /** Checks that a value is an object with these fields; an unknown one is a mistake of its own. */
  #object(path: string, value: unknown, known: readonly string[]): Record<string, unknown> {
    const what = path || "the file";
    if (typeof value !== "object" || value === null || Array.isArray(value)) {
      throw new RangeError(`${what} must be an object, received ${typeName(value)}`);
    }
    for (const name of Object.keys(value)) {
      if (known.includes(name)) continue;
      this.attempt(() => {
        throw new RangeError(`${join(path, name)} is unknown, expected one of ${known.join(", ")}`);
      });
    }
    return { ...value };
  }

  #parse(path: string, text: string): Json | undefined {
    try {
      return parseJson(text);
    } catch (error) {
      if (!(error instanceof JsonError)) throw error;
      this.mistakes.push(`${path}:${place(error.position)}: ${error.message}`);
      return undefined;
    }
  }

  /** Adds a mistake; its message begins with the path of the value. */
  #add(path: string, json: Json, message: string, toPath = (path: string) => path): void {
    const [at] = /^[^\s:]*/.exec(message)!;
    this.mistakes.push(`${path}:${place(json.find(toPath(at)))}: ${message}`);
  }
}

function place({ line, column }: Position): string {
  return `${line}:${column}`;
}

/** Reads a file, and keeps its text. */
function readFile(path: string, texts: Map<string, string | undefined>): string {
  texts.set(path, undefined);
  try {
    const text = Deno.readTextFileSync(path);
    texts.set(path, text);
    return text;
  } catch (error) {
    throw error instanceof Deno.errors.NotFound ? new Error("no such file", { cause: error }) : error;
  }
}

/** Adds the proxy of the environment to a client without one. */
function withProxy(client: OpenTunnelOptions): OpenTunnelOptions {
  if (client.proxy !== undefined) return client;
  try {
    const proxy = proxyOfEnvironment();
    return proxy === undefined ? client : { ...client, proxy };
  } catch (error) {
    throw new RangeError(`client: ${errorText(error)}`, { cause: error });
  }
}

/** Adds $SLUICE_SECRET where a secret may be. */
function withSecret<T extends Pick<ServeTunnelOptions, "secret" | "target" | "users">>(options: T): T {
  if (options.secret !== undefined || options.target !== undefined || options.users !== undefined) return options;
  const secret = secretOfEnvironment();
  return secret === undefined ? options : { ...options, secret };
}
