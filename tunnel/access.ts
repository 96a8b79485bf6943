/**
 * Decides what the clients of a server may do: secrets, users, rules and limits.
 *
 * @module
 */

import { timingSafeEqual } from "node:crypto";
import { isIP } from "node:net";
import type { Session, Stream } from "../mod.ts";
import { canonical, type Endpoint, formatPeer, parseEndpoint, splitUdp } from "./address.ts";
import { printable } from "./bytes.ts";
import { wrapError } from "./errors.ts";
import { type Request, WRONG_SECRET_DELAY } from "./handshake.ts";
import { certifiedUser } from "./identity.ts";
import { isDirection } from "./measure.ts";
import { type ServeTunnelOptions, TunnelRefusedError, type TunnelRequest, type TunnelUser } from "./options.ts";
import { NO_CERTIFICATE } from "./refusal.ts";
import { resolve } from "./resolve.ts";
import { Rules } from "./rules.ts";
import { sourceOf } from "./turns.ts";
import { udpEndpoint } from "./udp_socket.ts";
import { checkUsers, digestOf, isEqual, NO_HASH, verifySecret } from "./users.ts";
import { CONNECT_TIMEOUT, sleep, withTimeout } from "./wait.ts";

/** A limit on what one account holds at the same time. */
class Quota {
  /** May change; what is held already stays. */
  max = Infinity;
  readonly #what: string;
  #used = 0;

  /** @param what What is counted, in the plural. */
  constructor(what: string) {
    this.#what = what;
  }

  /**
   * Counts one more.
   *
   * @returns A function that counts it no more; calling it again has no effect.
   * @throws {TunnelRefusedError} The limit is reached.
   */
  take(): () => void {
    if (this.#used >= this.max) {
      throw new TunnelRefusedError(429, `expected at most ${this.max} ${this.#what} at the same time`);
    }
    this.#used++;
    let isTaken = true;
    return () => {
      if (isTaken) this.#used--;
      isTaken = false;
    };
  }

  /** Opens a stream, and counts it until it is closed. */
  async takeFor(open: () => Promise<Stream>): Promise<Stream> {
    const release = this.take();
    try {
      const stream = await open();
      stream.closed.then(release, release);
      return stream;
    } catch (error) {
      release();
      throw error;
    }
  }
}

/** A user with what it holds, or all clients of a server without users. */
export class Account {
  /** `undefined` on a server without users. */
  readonly name: string | undefined;
  readonly streams = new Quota("streams");
  readonly ports = new Quota("ports");
  #hash: string | undefined;
  #rules: ReadonlyMap<string, Rules> = new Map();
  /** Whose rules apply, instead of own ones. */
  readonly #base: Account | undefined;

  constructor(user: Partial<TunnelUser>, base?: Account) {
    this.name = user.name;
    this.#base = base;
    this.update(user);
  }

  /** The hash of the secret. */
  get hash(): string | undefined {
    return this.#hash;
  }

  /** Whether it is not an account of all clients of a server without users. */
  get hasOwnRules(): boolean {
    return this.#base === undefined;
  }

  /** By the method of the request. */
  get rules(): ReadonlyMap<string, Rules> {
    return this.#base?.rules ?? this.#rules;
  }

  /** Replaces the secret, the rules and the limits; what the user holds stays counted. */
  update(user: Partial<TunnelUser>): void {
    const { allow = [], allowListen = [] } = user;
    this.#rules = new Map([
      ["CONNECT", new Rules("allow", allow)],
      ["CONNECT-UDP", new Rules("allow", allow, true)],
      ["BIND", new Rules("allowListen", allowListen)],
      ["BIND-UDP", new Rules("allowListen", allowListen, true)],
    ]);
    this.#hash = user.secret;
    this.streams.max = user.maxStreams ?? Infinity;
    this.ports.max = user.maxPorts ?? Infinity;
  }
}

/** The session of a client, as far as it is used here. */
type Peer = Pick<Session, "remoteAddr">;

/** What is known of the client of a session. */
interface Client {
  account: Account | undefined;
  /** Digest of the credentials that were verified last. */
  digest: Uint8Array | undefined;
  /** The hash that they were verified with. */
  hash: string | undefined;
  /** Where the client is, for its turn when its secret is verified. */
  source: string;
  /** Settles when the secrets of earlier requests are checked. */
  checked: Promise<unknown>;
}

/** A method with rules. */
type Method = TunnelRequest["method"];

/** An allowed request. */
export interface Permit {
  account: Account;
  method: Method;
  endpoint: Endpoint;
  /** The allowed addresses of the host; empty for a Unix socket. */
  addresses: string[];
}

/** The secrets, users and rules of a server. */
export class Access {
  #secret: string | undefined;
  /** By name; `undefined` without users. */
  #users: ReadonlyMap<string, Account> | undefined;
  /** All clients of a server without users. */
  readonly #all = new Account({});
  /** Whether each client must have shown a certificate. */
  #isCertified = false;
  #authorize: ServeTunnelOptions["authorize"];
  #timeout = CONNECT_TIMEOUT;
  readonly #report: (error: unknown) => void;
  readonly #clients = new WeakMap<Peer, Client>();

  /**
   * @param report Called with each error of `authorize`.
   * @throws {RangeError} An option is malformed.
   */
  constructor(options: ServeTunnelOptions, report: (error: unknown) => void) {
    this.#report = report;
    this.update(options);
  }

  /**
   * Replaces all options, for new requests. Users with the same name keep what they hold.
   *
   * @throws {RangeError} An option is malformed. Nothing has changed.
   */
  update(options: ServeTunnelOptions): void {
    const { secret, users, allow = [], allowListen = [], connectTimeout = CONNECT_TIMEOUT } = options;
    const isCertified = options.clientCa !== undefined;
    if (users !== undefined) checkUsers(users, "users", isCertified);
    this.#all.update({ allow, allowListen });
    this.#users = users && new Map(users.map((user) => [user.name, this.#renew(user)]));
    this.#secret = secret;
    this.#isCertified = isCertified;
    this.#authorize = options.authorize;
    this.#timeout = connectTimeout;
  }

  /** Returns the account of a user, with its new options. */
  #renew(user: TunnelUser): Account {
    const known = this.#users?.get(user.name);
    known?.update(user);
    return known ?? new Account(user);
  }

  /** Whether the user of a session has been removed, or the session lacks a certificate that is required now. */
  isRemoved(session: Peer): boolean {
    if (this.#isCertified && certifiedUser(session.remoteAddr) === undefined) return true;
    const account = this.accountOf(session);
    if (account?.name === undefined) return false;
    // Without users at all, only the accounts of certificates have a name.
    return this.#users === undefined ? account.hasOwnRules : !this.#users.has(account.name);
  }

  /** Whether the rules allow an address that is listened on. */
  mayKeep({ account, method, endpoint, addresses }: Permit, addr: string): boolean {
    const rules = account.rules.get(method)!;
    if (endpoint.path !== undefined) return rules.allows(endpoint, "");
    const { port } = parseEndpoint("listen", splitUdp(addr)[1], 0);
    return rules.allows({ hostname: endpoint.hostname, port: port! }, addresses[0]!);
  }

  /** Returns the account of a session; `undefined` before its first request that is not refused. */
  accountOf(session: Peer): Account | undefined {
    return this.#clients.get(session)?.account;
  }

  /** Returns the name of the user of a session; `undefined` without users, and before its first request. */
  userOf(session: Peer): string | undefined {
    return this.accountOf(session)?.name;
  }

  /**
   * Checks a request. A wrong secret is refused after a delay, which the signal ends.
   *
   * @param stream The stream of the request: its secret is not verified any more when it has ended.
   * @returns What is allowed; `undefined` for a request that only proves the secret, and for MEASURE.
   * @throws {TunnelRefusedError} The request is not allowed.
   * @throws {RangeError} The address is malformed.
   */
  async check(
    request: Request,
    session: Peer,
    signal: AbortSignal,
    stream?: Pick<Stream, "closed">,
  ): Promise<Permit | undefined> {
    const { method, address } = request;
    const account = await this.#authenticate(request.authorization, session, signal, stream);
    if ((method === "OPTIONS" && address === "*") || (method === "MEASURE" && isDirection(address))) return undefined;
    const rules = account.rules.get(method);
    if (rules === undefined) throw new TunnelRefusedError(405, `expected CONNECT or BIND, received ${method}`);
    const endpoint = parseEndpoint(method, address, method.startsWith("BIND") ? 0 : 1);
    if (method.endsWith("-UDP")) udpEndpoint(endpoint);
    const addresses = rules.mayAllow(endpoint) ? await this.#resolve(endpoint, signal) : [];
    const allowed = addresses.filter((address) => rules.allows(endpoint, address));
    if (allowed.length === 0) throw new TunnelRefusedError(403, "not allowed");
    await this.#ask(account, method as Method, address, session);
    return { account, method: method as Method, endpoint, addresses: endpoint.path === undefined ? allowed : [] };
  }

  /**
   * Checks an address that is listened on: the system may have chosen its port, and the rules may have changed.
   *
   * @throws {TunnelRefusedError} It is not allowed.
   */
  checkListening(permit: Permit, addr: string): void {
    if (!this.mayKeep(permit, addr)) throw new TunnelRefusedError(403, "not allowed");
  }

  async #resolve({ path, hostname }: Endpoint, signal: AbortSignal): Promise<string[]> {
    if (path !== undefined) return [""];
    const host = canonical(hostname);
    if (isIP(host) !== 0) return [host];
    try {
      return await withTimeout("resolving", this.#timeout, signal, (signal) => resolve(hostname, signal));
    } catch (error) {
      throw wrapError(`Cannot resolve ${hostname}`, error);
    }
  }

  /** Asks the function of the application. */
  async #ask(account: Account, method: Method, target: string, session: Peer): Promise<void> {
    if (this.#authorize === undefined) return;
    let isAllowed: boolean;
    try {
      const remoteAddr = formatPeer(session.remoteAddr);
      isAllowed = await this.#authorize({ user: account.name, method, target, remoteAddr });
    } catch (error) {
      if (error instanceof TunnelRefusedError) throw error;
      // Its message is for the server only.
      this.#report(wrapError(`Cannot authorize ${method} ${target}`, error));
      throw new TunnelRefusedError(500, "authorize failed");
    }
    if (isAllowed !== true) throw new TunnelRefusedError(403, "not allowed");
  }

  async #authenticate(
    authorization: string,
    session: Peer,
    signal: AbortSignal,
    stream?: Pick<Stream, "closed">,
  ): Promise<Account> {
    const client = this.#clientOf(session);
    const name = certifiedUser(session.remoteAddr);
    if (this.#isCertified && name === undefined) throw new TunnelRefusedError(403, NO_CERTIFICATE);
    if (name !== undefined && this.#users !== undefined) return this.#certify(name, authorization, client);
    if (this.#secret === undefined && this.#users === undefined) return client.account = this.#accountFor(name, client);
    const account = await this.#accountOf(authorization, client, stream);
    if (account !== undefined) return name === undefined ? account : client.account = this.#accountFor(name, client);
    await sleep(WRONG_SECRET_DELAY, signal);
    const isMissing = authorization === "";
    if (this.#users === undefined) {
      throw new TunnelRefusedError(407, isMissing ? "a secret is required" : "wrong secret");
    }
    throw new TunnelRefusedError(407, isMissing ? "a user and a secret are required" : "wrong user or secret");
  }

  /** Returns the account of a client on a server without users; the name is that of its certificate. */
  #accountFor(name: string | undefined, { account }: Client): Account {
    if (name === undefined) return this.#all;
    checkSameUser(account, name);
    return account?.name === name ? account : new Account({ name }, this.#all);
  }

  /** Returns the account of the user that a certificate names. A secret is not necessary. */
  #certify(name: string, authorization: string, client: Client): Account {
    const account = this.#users?.get(name);
    if (account === undefined) {
      throw new TunnelRefusedError(403, `the certificate is of "${name}", who is not a user of the server`);
    }
    const [other = name] = parseBasic(authorization);
    if (other !== name) {
      throw new TunnelRefusedError(
        403,
        `expected the user of the certificate, "${name}", received "${printable(other)}"`,
      );
    }
    checkSameUser(client.account, name);
    return client.account = account;
  }

  #clientOf(session: Peer): Client {
    const known = this.#clients.get(session);
    if (known !== undefined) return known;
    const source = sourceOf(session.remoteAddr);
    const client: Client = {
      account: undefined,
      digest: undefined,
      hash: undefined,
      source,
      checked: Promise.resolve(),
    };
    this.#clients.set(session, client);
    return client;
  }

  /** Returns the account that has these credentials; `undefined` if none has. */
  async #accountOf(
    authorization: string,
    client: Client,
    stream?: Pick<Stream, "closed">,
  ): Promise<Account | undefined> {
    if (this.#users === undefined) {
      if (!isEqual(authorization, `Bearer ${this.#secret}`)) return undefined;
      return client.account = this.#all;
    }
    const [name, secret] = parseBasic(authorization);
    if (secret === undefined) return undefined;
    // Hashing is slow: one request at a time, so that the others of the session find the result of the first.
    const checking = client.checked.then(() =>
      this.#verify(name!, secret, digestOf(authorization), client, stream?.closed)
    );
    client.checked = checking.catch(() => {});
    return await checking;
  }

  async #verify(
    name: string,
    secret: string,
    digest: Uint8Array,
    client: Client,
    gone?: Promise<unknown>,
  ): Promise<Account | undefined> {
    const account = this.#users?.get(name);
    const isKnown = account !== undefined && account === client.account && account.hash === client.hash;
    if (isKnown && client.digest !== undefined && timingSafeEqual(digest, client.digest)) return account;
    const { hash = NO_HASH } = account ?? {};
    const isRight = await verifySecret(secret, hash, name, gone, client.source);
    // The users may have changed meanwhile.
    if (!isRight || account === undefined || this.#users?.get(name) !== account || account.hash !== hash) {
      return undefined;
    }
    checkSameUser(client.account, name);
    client.account = account;
    client.digest = digest;
    client.hash = hash;
    return account;
  }
}

/** Throws if a session has another user. One that began before the server had users has no name yet. */
function checkSameUser(account: Account | undefined, name: string): void {
  if (account?.name === undefined || account.name === name) return;
  throw new TunnelRefusedError(403, "expected the user of the connection's first request");
}

/** Returns the user and the secret of an `Authorization` header; nothing if it is malformed. */
function parseBasic(authorization: string): [name?: string, secret?: string] {
  const [, encoded] = /^Basic ([A-Za-z0-9+/]+=*)$/.exec(authorization) ?? [];
  try {
    const [, name, secret] = /^([^:]+):(.+)$/s.exec(atob(encoded ?? "")) ?? [];
    return secret === undefined ? [] : [name!, secret];
  } catch {
    return [];
  }
}
