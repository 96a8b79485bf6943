/**
 * Reads certificates: X.509 in PEM or DER (RFC 5280), as far as the tunnel needs them.
 *
 * @module
 */

import { errorText } from "./errors.ts";

// Tags of elements.
const SEQUENCE = 0x30;
const SET = 0x31;
const OID = 6;
const UTC_TIME = 0x17;
const VERSION = 0xa0;
const EXTENSIONS = 0xa3;
const RFC822_NAME = 0x81;
const DNS_NAME = 0x82;
const BMP_STRING = 0x1e;

// Object identifiers, in hex.
const COMMON_NAME = "550403";
const SUBJECT_ALT_NAME = "551d11";

/** The parts of a certificate that are used. */
export interface CertificateParts {
  /** The SubjectPublicKeyInfo, in DER. */
  publicKey: Uint8Array<ArrayBuffer>;
  /** The common names of the subject. */
  commonNames: readonly string[];
  /** The alternative names of the subject that are DNS names or e-mail addresses, in their order. */
  alternativeNames: readonly string[];
  validFrom: Date;
  validTo: Date;
}

/** An element of DER. */
interface Element {
  tag: number;
  content: Uint8Array;
  /** With tag and length. */
  whole: Uint8Array;
}

/** Splits bytes into elements. */
function split(bytes: Uint8Array): Element[] {
  const elements: Element[] = [];
  for (let rest = bytes; rest.length > 0;) {
    const [tag, first] = rest;
    if (first === undefined) throw new RangeError("an element ends early");
    const size = first < 0x80 ? 0 : first & 0x7f;
    // A length of four bytes is already more than a certificate has.
    if (first === 0x80 || size > 3) throw new RangeError("an element has an invalid length");
    const length = size === 0 ? first : rest.subarray(2, 2 + size).reduce((sum, byte) => sum * 256 + byte, 0);
    const end = 2 + size + length;
    if (rest.length < end) throw new RangeError("an element ends early");
    elements.push({ tag: tag!, content: rest.subarray(2 + size, end), whole: rest.subarray(0, end) });
    rest = rest.subarray(end);
  }
  return elements;
}

/** Returns the elements of a sequence or a set. */
function parts(element: Element | undefined, tag: number): Element[] {
  if (element?.tag !== tag) throw new RangeError(`expected an element ${tag}, received ${element?.tag ?? "none"}`);
  return split(element.content);
}

function idOf(element: Element | undefined): string | undefined {
  return element?.tag === OID
    ? [...element.content].map((byte) => byte.toString(16).padStart(2, "0")).join("")
    : undefined;
}

function textOf({ tag, content }: Element): string {
  return new TextDecoder(tag === BMP_STRING ? "utf-16be" : "utf-8").decode(content);
}

/** Returns a time such as `261129143000Z`, or `20261129143000Z`. */
function timeOf(element: Element | undefined): Date {
  if (element === undefined) throw new RangeError("a time is missing");
  const digits = textOf(element);
  // Two digits of the year: from 1950 to 2049.
  const whole = element.tag === UTC_TIME ? `${Number(digits.slice(0, 2)) < 50 ? 20 : 19}${digits}` : digits;
  const [, year, month, day, hour, minute, second] = /^(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)Z$/.exec(whole) ?? [];
  const date = new Date(`${year}-${month}-${day}T${hour}:${minute}:${second}Z`);
  if (Number.isNaN(date.getTime())) throw new RangeError("a time is malformed");
  return date;
}

/** Returns the common names of a subject. */
function commonNamesOf(subject: Element | undefined): string[] {
  return parts(subject, SEQUENCE).flatMap((set) => parts(set, SET)).flatMap((attribute) => {
    const [id, value] = parts(attribute, SEQUENCE);
    return idOf(id) === COMMON_NAME && value !== undefined ? [textOf(value)] : [];
  });
}

/** Returns the DNS names and e-mail addresses of the extensions of a certificate. */
function alternativeNamesOf(extensions: Element | undefined): string[] {
  if (extensions === undefined) return [];
  return split(extensions.content).flatMap((list) => parts(list, SEQUENCE)).flatMap((extension) => {
    const [id, ...more] = parts(extension, SEQUENCE);
    if (idOf(id) !== SUBJECT_ALT_NAME) return [];
    // A criticality may precede the value.
    return parts(split(more.at(-1)!.content)[0], SEQUENCE)
      .flatMap((name) => name.tag === DNS_NAME || name.tag === RFC822_NAME ? [textOf(name)] : []);
  });
}

/**
 * Reads a certificate in DER. Its signature is not verified.
 *
 * @throws {RangeError} It is malformed.
 */
export function readCertificate(der: Uint8Array): CertificateParts {
  const [content] = parts(split(der)[0], SEQUENCE);
  const fields = parts(content, SEQUENCE);
  // Certificates of version 1 do not contain their version.
  const [, , , validity, subject, publicKey, ...optional] = fields[0]?.tag === VERSION ? fields.slice(1) : [
    ...fields,
  ];
  const [from, to] = parts(validity, SEQUENCE);
  if (publicKey?.tag !== SEQUENCE) throw new RangeError("the public key is missing");
  return {
    publicKey: new Uint8Array(publicKey.whole),
    commonNames: commonNamesOf(subject),
    alternativeNames: alternativeNamesOf(optional.find(({ tag }) => tag === EXTENSIONS)),
    validFrom: timeOf(from),
    validTo: timeOf(to),
  };
}

/**
 * Reads the certificates of a text in PEM, at least one.
 *
 * @param option The option, for errors.
 * @throws {RangeError} It contains none, or a malformed one.
 */
export function readCertificates(option: string, pem: string): [CertificateParts, ...CertificateParts[]] {
  const [first, ...more] = pem.matchAll(/-----BEGIN CERTIFICATE-----([^-]*)-----END CERTIFICATE-----/g);
  const read = ([, base64]: RegExpMatchArray) => {
    try {
      return readCertificate(Uint8Array.from(atob(base64!.replaceAll(/\s/g, "")), (char) => char.charCodeAt(0)));
    } catch (error) {
      throw new RangeError(`${option} must be certificates in PEM: ${errorText(error)}`, { cause: error });
    }
  };
  if (first === undefined) {
    throw new RangeError(`${option} must be certificates in PEM, received text without "-----BEGIN CERTIFICATE-----"`);
  }
  return [read(first), ...more.map(read)];
}
