/**
 * Makes self-signed certificates: X.509 version 3 in DER (RFC 5280), for a server, with a new key of P-256.
 *
 * @module
 */

import { withoutUrlPath } from "./address.ts";
import { encoder } from "./bytes.ts";

// Milliseconds.
const DAY = 86_400_000;
// The clock of a client may be late.
const VALID_BEFORE = DAY;
// Larger: later renewal; smaller: a stolen key is useful for less time.
const VALID_FOR = 10 * 365 * DAY;

// Object identifiers, encoded.
const COMMON_NAME = [0x55, 4, 3];
const KEY_USAGE = [0x55, 0x1d, 15];
const SUBJECT_ALT_NAME = [0x55, 0x1d, 17];
const BASIC_CONSTRAINTS = [0x55, 0x1d, 19];
const EXTENDED_KEY_USAGE = [0x55, 0x1d, 37];
const SERVER_AUTH = [0x2b, 6, 1, 5, 5, 7, 3, 1];
const ECDSA_WITH_SHA256 = [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];

/** Encodes an element: its tag, its length, its content. */
function element(tag: number, ...parts: (Uint8Array | number[])[]): Uint8Array<ArrayBuffer> {
  const content = parts.flatMap((part) => [...part]);
  const { length } = content;
  const size = length < 0x80 ? [length] : length < 0x100 ? [0x81, length] : [0x82, length >> 8, length & 255];
  return new Uint8Array([tag, ...size, ...content]);
}
const sequence = (...parts: Uint8Array[]) => element(0x30, ...parts);
const oid = (id: number[]) => element(6, id);
const bits = (content: Uint8Array | number[], unused = 0) => element(3, [unused], content);

/** Encodes a positive integer of big-endian bytes. */
function integer(bytes: Uint8Array | number[]): Uint8Array {
  const first = bytes.findIndex((byte) => byte !== 0);
  const digits = first < 0 ? [0] : [...bytes.slice(first)];
  return element(2, digits[0]! >= 0x80 ? [0] : [], digits);
}

/** Encodes a time, in seconds: with two digits of the year until 2049, as the standard requires. */
function time(date: Date): Uint8Array {
  const digits = date.toISOString().replaceAll(/\.\d+|[-:T]/g, "");
  return date.getUTCFullYear() < 2050
    ? element(0x17, encoder.encode(digits.slice(2)))
    : element(0x18, encoder.encode(digits));
}

function extension(id: number[], isCritical: boolean, value: Uint8Array): Uint8Array {
  return sequence(oid(id), ...isCritical ? [element(1, [0xff])] : [], element(4, value));
}

/** Returns the 16 bytes of an IPv6 address in its canonical form. */
function ipv6Bytes(address: string): number[] {
  const [before, after] = address.split("::").map((half) => half.split(":").filter((group) => group !== ""));
  const zeros = after === undefined ? [] : Array<string>(8 - before!.length - after.length).fill("0");
  return [...before!, ...zeros, ...after ?? []].map((group) => parseInt(group, 16)).flatMap((n) => [n >> 8, n & 255]);
}

/** Encodes a DNS name or an IP address as an alternative name of the subject. */
function alternativeName(host: string): Uint8Array {
  if (host.startsWith("[")) return element(0x87, ipv6Bytes(host.slice(1, -1)));
  return /^[\d.]+$/.test(host) ? element(0x87, host.split(".").map(Number)) : element(0x82, encoder.encode(host));
}

/** Returns the canonical form of a DNS name or an IP address, the value of an option. */
export function parseHost(option: string, text: string): string {
  const [, wildcard = "", name = ""] = /^(\*\.)?(.+)$/.exec(text.replace(/^\[(.*)\]$/, "$1")) ?? [];
  const host = name.includes(":") ? `[${name}]` : name;
  const url = URL.canParse(`http://${host}/`) ? new URL(`http://${host}/`) : undefined;
  if (url !== undefined && /^([a-z\d.-]+|\[.*\])$/.test(url.hostname) && url.href === `http://${url.hostname}/`) {
    return wildcard + url.hostname;
  }
  throw new RangeError(`${option} must be a DNS name or an IP address, received "${withoutUrlPath(text)}"`);
}

function pem(label: string, der: Uint8Array): string {
  const lines = btoa(String.fromCharCode(...der)).match(/.{1,64}/g)!;
  return [`-----BEGIN ${label}-----`, ...lines, `-----END ${label}-----`, ""].join("\n");
}

/** A certificate and its private key, in PEM. */
export interface Certificate {
  cert: string;
  key: string;
  /** When it becomes invalid. */
  expires: Date;
}

/**
 * Makes a self-signed certificate of a server. A client trusts it as a CA certificate, as with `--ca`.
 *
 * @throws {RangeError} A host is neither a DNS name nor an IP address.
 */
export async function makeCertificate(hosts: readonly string[], now = Date.now()): Promise<Certificate> {
  const names = hosts.map((host) => parseHost("host", host));
  const algorithm = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };
  const { publicKey, privateKey } = await crypto.subtle.generateKey(algorithm, true, ["sign", "verify"]);
  const exported = async (format: "spki" | "pkcs8", key: CryptoKey) =>
    new Uint8Array(await crypto.subtle.exportKey(format, key));
  // A name has at most 64 characters.
  const commonName = sequence(oid(COMMON_NAME), element(0x0c, encoder.encode(names[0]!.slice(0, 64))));
  const name = sequence(element(0x31, commonName));
  const expires = new Date(now + VALID_FOR);
  const signing = sequence(oid(ECDSA_WITH_SHA256));
  const extensions = sequence(
    // Without `cA`: rustls rejects the certificate of a CA as that of a server.
    extension(BASIC_CONSTRAINTS, true, sequence()),
    extension(KEY_USAGE, true, bits([0x80], 7)), // digitalSignature
    extension(EXTENDED_KEY_USAGE, false, sequence(oid(SERVER_AUTH))),
    extension(SUBJECT_ALT_NAME, false, sequence(...names.map(alternativeName))),
  );
  const content = sequence(
    element(0xa0, integer([2])), // version 3
    integer(crypto.getRandomValues(new Uint8Array(16))),
    signing,
    name, // issuer
    sequence(time(new Date(now - VALID_BEFORE)), time(expires)),
    name, // subject
    await exported("spki", publicKey),
    element(0xa3, extensions),
  );
  const signature = new Uint8Array(await crypto.subtle.sign(algorithm, privateKey, content));
  const signed = sequence(integer(signature.slice(0, 32)), integer(signature.slice(32)));
  return {
    cert: pem("CERTIFICATE", sequence(content, signing, bits(signed))),
    key: pem("PRIVATE KEY", await exported("pkcs8", privateKey)),
    expires,
  };
}
