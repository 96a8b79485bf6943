/**
 * Pins of certificates: the SHA-256 hash of the public key, as `sha256:BASE64`.
 *
 * @module
 */

import { createHash } from "node:crypto";
import { withoutUrlPath } from "./address.ts";
import { readCertificate, readCertificates } from "./x509.ts";

// Bytes.
const LENGTH = 32;

/** Hashes a SubjectPublicKeyInfo. */
function hash(publicKey: Uint8Array): string {
  return `sha256:${createHash("sha256").update(publicKey).digest("base64")}`;
}

/**
 * Returns the pin of a certificate in DER.
 *
 * @throws {RangeError} It is malformed.
 */
export function pinOf(der: Uint8Array): string {
  return hash(readCertificate(der).publicKey);
}

/**
 * Returns the pin of the first certificate of a text in PEM.
 *
 * @throws {RangeError} It contains none, or a malformed one.
 */
export function pinOfPem(pem: string): string {
  return hash(readCertificates("cert", pem)[0].publicKey);
}

/** Returns the bytes of a pin; `undefined` if it is malformed. */
function decode(text: string): number[] | undefined {
  const hex = text.replaceAll(":", "");
  // With a colon between all bytes, or none.
  if (/^([\da-f]{64}|[\da-f]{2}(:[\da-f]{2}){31})$/i.test(text)) {
    return hex.match(/../g)!.map((two) => parseInt(two, 16));
  }
  // Base64 with or without its padding, also with the letters that URLs use.
  if (!/^[\w+/-]{43}=?$/.test(text)) return undefined;
  return [...atob(text.replaceAll("-", "+").replaceAll("_", "/"))].map((char) => char.charCodeAt(0));
}

/**
 * Returns the canonical form of a pin, `sha256:BASE64`.
 *
 * @param option The option, for errors.
 * @throws {RangeError} It is malformed.
 */
export function parsePin(option: string, text: string): string {
  const bytes = decode(text.replace(/^sha256:(\/\/)?/i, ""));
  if (bytes?.length === LENGTH) return `sha256:${btoa(String.fromCharCode(...bytes))}`;
  throw new RangeError(
    `${option} must be the SHA-256 of a public key in hex or base64, received "${withoutUrlPath(text)}"`,
  );
}
