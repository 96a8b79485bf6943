/**
 * Parses the users of a server, and hashes and verifies their secrets.
 *
 * @module
 */

import { Buffer } from "node:buffer";
import { createHash, randomBytes, scrypt, timingSafeEqual } from "node:crypto";
import { SessionClosedError } from "../mod.ts";
import { show, typeName } from "./errors.ts";
import { checkSecret } from "./handshake.ts";
import { JsonError, parseJson } from "./json.ts";
import type { TunnelUser } from "./options.ts";
import { Rules } from "./rules.ts";
import { Turns } from "./turns.ts";

// Cost of scrypt, 16 MiB and about 50 ms. Larger: guessing from a stolen file is slower; smaller: a connection costs
// the server less. Hashes contain it, so those of another cost stay valid.
const COST = 2 ** 14;
const MIN_COST = 2 ** 10;
const MAX_COST = 2 ** 20;
const BLOCK_SIZE = 8;
const SALT_LENGTH = 16;
const KEY_LENGTH = 32;
// Larger: more memory and threads that strangers can occupy; smaller: many new connections wait for longer.
const MAX_CONCURRENT = 2;

const HASH = /^scrypt:(\d{1,7}):([\w-]{22}):([\w-]{43})$/;
const NAME = /^[!-9;-~]{1,64}$/;

/** The slow hash, in one object that a test can replace. */
export const hashing = {
  derive(secret: string, salt: Uint8Array, cost: number): Promise<Uint8Array> {
    const { promise, resolve, reject } = Promise.withResolvers<Uint8Array>();
    const options = { N: cost, r: BLOCK_SIZE, maxmem: 256 * cost * BLOCK_SIZE };
    scrypt(secret, salt, KEY_LENGTH, options, (error, key) => error === null ? resolve(key) : reject(error));
    return promise;
  },
};

const turns = new Turns(MAX_CONCURRENT);

function derive(
  secret: string,
  salt: Uint8Array,
  cost: number,
  source = "",
  isNeeded = () => true,
): Promise<Uint8Array> {
  return turns.run(source, async () => {
    if (!isNeeded()) throw new SessionClosedError("The client has ended while its secret was to be verified");
    return await hashing.derive(secret, salt, cost);
  });
}

const encode = (bytes: Uint8Array) => Buffer.from(bytes).toString("base64url");
const decode = (text: string) => Buffer.from(text, "base64url");

/**
 * Hashes a secret for the `secret` of a {@linkcode TunnelUser}, with scrypt and a random salt.
 *
 * @param secret Non-empty printable ASCII without spaces.
 * @returns The hash, a text of about 80 characters.
 * @throws {RangeError} The secret is malformed.
 *
 * @example A server with one user
 * ```ts
 * import { hashSecret, openTunnel, serveTunnel } from "@sluice/smux/tunnel";
 * import { assertMatch } from "@std/assert";
 *
 * const secret = await hashSecret("open-sesame");
 * assertMatch(secret, /^scrypt:16384:/);
 *
 * const users = [{ name: "alice", secret, allow: ["localhost:5432"] }];
 * await using server = serveTunnel({ listen: "127.0.0.1:0", users });
 * await using client = await openTunnel({ connect: server.serverAddr, user: "alice", secret: "open-sesame" });
 * ```
 */
export async function hashSecret(secret: string): Promise<string> {
  checkSecret(secret);
  const salt = randomBytes(SALT_LENGTH);
  return `scrypt:${COST}:${encode(salt)}:${encode(await derive(secret, salt, COST))}`;
}

/** Formats the entry of a user in a file of users, in one line. */
export async function hashEntry(name: string, secret: string): Promise<string> {
  checkName("name", name);
  return JSON.stringify({ name, secret: await hashSecret(secret), allow: [], allowListen: [] });
}

/** A verification that is pending, and the number of requests that wait for it. */
interface Verification {
  waiting: number;
  result: Promise<boolean>;
}

/**
 * By user, hash and secret: clients of one user that reconnect at once share a verification. Unknown users share none
 * with each other, or the time would show which users are known.
 */
const verifying = new Map<string, Verification>();

/**
 * Whether a secret has this hash, which must be well-formed.
 *
 * @param user The name of the user.
 * @param gone Settles when the client needs no answer any more. The promise rejects if that is before the hash is
 * computed: many clients would otherwise wait behind those that have given up, and give up too.
 * @param source Where the client is. Each source has its turn, so that one with many clients does not delay the others.
 */
export async function verifySecret(
  secret: string,
  hash: string,
  user = "",
  gone?: Promise<unknown>,
  source?: string,
): Promise<boolean> {
  const name = `${user} ${hash} ${encode(digestOf(secret))}`;
  const verification = verifying.get(name) ?? startVerification(name, secret, hash, source);
  verification.waiting++;
  const leave = () => void verification.waiting--;
  gone?.then(leave, leave);
  return await verification.result;
}

function startVerification(name: string, secret: string, hash: string, source?: string): Verification {
  const [, cost, salt, key] = HASH.exec(hash)!;
  const isNeeded = () => verification.waiting > 0;
  const derived = derive(secret, decode(salt!), Number(cost), source, isNeeded);
  const result = derived.then((found) => timingSafeEqual(found, decode(key!))).finally(() => verifying.delete(name));
  const verification = { waiting: 0, result };
  verifying.set(name, verification);
  return verification;
}

/** A hash that no secret has, with the usual cost: an unknown user must not be refused faster than a known one. */
export const NO_HASH = `scrypt:${COST}:${encode(new Uint8Array(SALT_LENGTH))}:${encode(new Uint8Array(KEY_LENGTH))}`;

/** Returns a digest that can be compared in constant time. */
export function digestOf(text: string): Uint8Array {
  return createHash("sha256").update(text).digest();
}

/** Compares two texts in a time that does not depend on the position of a difference. */
export function isEqual(a: string, b: string): boolean {
  return timingSafeEqual(digestOf(a), digestOf(b));
}

/** Throws a `RangeError` unless the name can be part of credentials, and of a line of a log. */
export function checkName(path: string, name: unknown): void {
  if (typeof name === "string" && NAME.test(name)) return;
  const expected = "1 to 64 printable ASCII characters without space or colon";
  throw new RangeError(`${path} must be ${expected}, received ${show(name)}`);
}

const FIELDS: Record<keyof TunnelUser, (path: string, value: unknown) => void> = {
  name: checkName,
  secret: checkHash,
  allow: checkRules,
  allowListen: checkRules,
  maxStreams: checkCount,
  maxPorts: checkCount,
};

function checkHash(path: string, hash: unknown): void {
  const [, cost = "0"] = typeof hash === "string" ? HASH.exec(hash) ?? [] : [];
  const isCost = Number(cost) >= MIN_COST && Number(cost) <= MAX_COST && Number.isInteger(Math.log2(Number(cost)));
  // The received text may be a secret that was not hashed: it stays out of the log.
  if (!isCost) throw new RangeError(`${path} must be a hash as \`sluice hash\` prints it, received another text`);
}

function checkRules(path: string, entries: unknown): void {
  if (!Array.isArray(entries)) throw new RangeError(`${path} must be a list of texts, received ${typeName(entries)}`);
  for (const [n, entry] of entries.entries()) {
    if (typeof entry !== "string") throw new RangeError(`${path}[${n}] must be a text, received ${show(entry)}`);
    new Rules(`${path}[${n}]`, [entry]);
  }
}

function checkCount(path: string, count: unknown): void {
  if (count === Infinity || (Number.isSafeInteger(count) && (count as number) >= 0)) return;
  throw new RangeError(`${path} must be an integer of at least 0, received ${show(count)}`);
}

/**
 * Checks a list of users.
 *
 * @param isCertified Whether clients show certificates, so that secrets are optional.
 * @throws {RangeError} It is malformed: the message begins with the path of the mistake, as in "users[1].allow[0]".
 */
export function checkUsers(users: unknown, name = "users", isCertified = false): readonly TunnelUser[] {
  if (!Array.isArray(users)) throw new RangeError(`${name} must be a list, received ${typeName(users)}`);
  const names = new Map<unknown, string>();
  for (const [n, user] of users.entries()) {
    const path = `${name}[${n}]`;
    checkUser(path, user, isCertified);
    const other = names.get(user.name);
    if (other !== undefined) {
      throw new RangeError(`${path}.name must differ from ${other}.name, received ${show(user.name)} twice`);
    }
    names.set(user.name, path);
  }
  return users;
}

function checkUser(path: string, user: unknown, isCertified: boolean): asserts user is TunnelUser {
  if (typeof user !== "object" || user === null || Array.isArray(user)) {
    throw new RangeError(`${path} must be an object, received ${typeName(user)}`);
  }
  const required = isCertified ? ["name"] : ["name", "secret"];
  for (const field of required) {
    if (!Object.hasOwn(user, field)) {
      throw new RangeError(
        `${path} must have the field ${field}, received only ${Object.keys(user).join(", ") || "{}"}`,
      );
    }
  }
  for (const [field, value] of Object.entries(user)) {
    if (!Object.hasOwn(FIELDS, field)) {
      const known = Object.keys(FIELDS).join(", ");
      throw new RangeError(`${path} must have only the fields ${known}, received ${show(field)}`);
    }
    const isAbsent = value === undefined && !required.includes(field);
    if (!isAbsent) FIELDS[field as keyof TunnelUser](`${path}.${field}`, value);
  }
}

/**
 * Parses the text of a file of users: a JSON list.
 *
 * @param isCertified As of {@linkcode checkUsers}.
 * @throws {RangeError} It is malformed.
 */
export function parseUsers(text: string, isCertified = false): readonly TunnelUser[] {
  let users: unknown;
  try {
    users = parseJson(text).value;
  } catch (error) {
    if (!(error instanceof JsonError)) throw error;
    const { message, position: { line, column } } = error;
    throw new RangeError(`users must be a list in JSON: ${line}:${column}: ${message}`, { cause: error });
  }
  return checkUsers(users, "users", isCertified);
}
