/**
 * Reads and writes headers of the PROXY protocol: versions 1 and 2 are read, version 2 is written.
 *
 * @module
 */

import { isIPv4, isIPv6 } from "node:net";
import type { DuplexConnection } from "../mod.ts";
import { encoder, printable, readExactly } from "./bytes.ts";
import { unmapped } from "./cidr.ts";

/** An IP address and a port. */
export interface ProxyAddress {
  hostname: string;
  port: number;
}

const SIGNATURE = new Uint8Array([0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a]);
const PREFIX = encoder.encode("PROXY ");

// Maximum bytes of a line of version 1, with its end: fixed by the protocol.
const MAX_LINE = 107;

// Maximum bytes after the fixed part of a header of version 2. Larger: more extensions, such as the certificate of a
// client; smaller: less memory.
export const MAX_REST = 4096;

// Version and command of version 2.
const LOCAL = 0x20;
const PROXY = 0x21;

// Family and transport, and the bytes of the two addresses and ports.
const UNKNOWN = 0x00;
const TCP4 = 0x11;
const TCP6 = 0x21;
const UNIX = 0x31;
const TCP4_BYTES = 12;
const TCP6_BYTES = 36;

/**
 * Reads a header.
 *
 * @returns The address of the connection's origin; `undefined` if the header has none: the command LOCAL, `UNKNOWN`,
 * and Unix sockets.
 * @throws {Error} The header is malformed, or the connection ends within it.
 */
export async function readProxyHeader(from: DuplexConnection): Promise<ProxyAddress | undefined> {
  const begin = new Uint8Array(SIGNATURE.length);
  for (let length = 0; length < begin.length;) {
    const count = await from.read(begin.subarray(length));
    if (count === null) throw new Error("expected a PROXY protocol header, received the end of the connection");
    length += count;
    // Compared at once: a client without a header may wait for an answer to fewer bytes.
    if (!isPrefix(begin.subarray(0, length), SIGNATURE) && !isPrefix(begin.subarray(0, length), PREFIX)) {
      const received = printable(String.fromCharCode(...begin.subarray(0, length)));
      throw new Error(`expected a PROXY protocol header, received "${received}"`);
    }
  }
  return begin[0] === SIGNATURE[0] ? await readBinary(from) : await readLine(from, begin);
}

/** Whether the bytes that both have are equal. */
function isPrefix(bytes: Uint8Array, other: Uint8Array): boolean {
  return bytes.every((byte, n) => n >= other.length || byte === other[n]);
}

/** Reads the rest of a line of version 1, byte by byte: the bytes after it belong to the connection. */
async function readLine(from: DuplexConnection, begin: Uint8Array): Promise<ProxyAddress | undefined> {
  let line = String.fromCharCode(...begin);
  while (!line.endsWith("\r\n")) {
    if (line.length === MAX_LINE) throw new Error(`PROXY protocol line exceeds ${MAX_LINE} bytes`);
    line += String.fromCharCode((await readExactly(from, 1))[0]!);
  }
  const [, family, ...fields] = line.slice(0, -2).split(" ");
  if (family === "UNKNOWN") return undefined;
  const isAddress = family === "TCP4" ? isIPv4 : family === "TCP6" ? isIPv6 : () => false;
  const [source = "", destination = "", ...ports] = fields;
  if (isAddress(source) && isAddress(destination) && ports.length === 2 && ports.every(isPort)) {
    return { hostname: unmapped(source), port: Number(ports[0]) };
  }
  throw new Error(`expected a PROXY protocol line, received "${printable(line.slice(0, -2))}"`);
}

function isPort(text: string): boolean {
  return /^(0|[1-9]\d{0,4})$/.test(text) && Number(text) <= 65535;
}

/** Reads the rest of a header of version 2. */
async function readBinary(from: DuplexConnection): Promise<ProxyAddress | undefined> {
  const [command, family, high, low] = await readExactly(from, 4);
  const length = high! * 256 + low!;
  if (command !== LOCAL && command !== PROXY) {
    throw new Error(`unsupported PROXY protocol command 0x${hex(command!)}, expected 0x20 (LOCAL) or 0x21 (PROXY)`);
  }
  if (length > MAX_REST) throw new Error(`PROXY protocol header exceeds ${MAX_REST} bytes, received ${length}`);
  const rest = await readExactly(from, length);
  if (command === LOCAL) return undefined;
  switch (family) {
    case UNKNOWN:
    case UNIX:
      return undefined;
    case TCP4:
      return addressOf(rest, TCP4_BYTES);
    case TCP6:
      return addressOf(rest, TCP6_BYTES);
    default:
      throw new Error(`unsupported PROXY protocol family 0x${hex(family!)}, expected 0x11 (TCP4) or 0x21 (TCP6)`);
  }
}

function hex(byte: number): string {
  return byte.toString(16).padStart(2, "0");
}

/** Returns the source of two addresses, followed by two ports. */
function addressOf(bytes: Uint8Array, length: number): ProxyAddress {
  if (bytes.length < length) {
    throw new Error(`expected ${length} bytes of PROXY protocol addresses, received ${bytes.length}`);
  }
  const source = bytes.subarray(0, (length - 4) / 2);
  const port = bytes[length - 4]! * 256 + bytes[length - 3]!;
  return { hostname: source.length === 4 ? source.join(".") : formatIPv6(source), port };
}

function formatIPv6(bytes: Uint8Array): string {
  if (bytes.subarray(0, 12).toHex() === "00000000000000000000ffff") return bytes.subarray(12).join(".");
  return new URL(`http://[${bytes.toHex().match(/.{4}/g)!.join(":")}]/`).hostname.slice(1, -1);
}

/**
 * Encodes a header of version 2. An unknown source becomes a header without addresses.
 *
 * @param source The address of the connection's origin.
 * @param destination The address that it connected to; zeros if it is unknown or of another version of IP.
 */
export function encodeProxyHeader(source: ProxyAddress | undefined, destination?: ProxyAddress): Uint8Array {
  const from = source && bytesOf(source.hostname);
  if (source === undefined || from === undefined) return header(UNKNOWN, []);
  const to = destination && bytesOf(destination.hostname);
  const there = to?.length === from.length ? to : new Uint8Array(from.length);
  const ports = [source.port, destination?.port ?? 0].flatMap((port) => [port >> 8, port & 255]);
  return header(from.length === 4 ? TCP4 : TCP6, [...from, ...there, ...ports]);
}

function header(family: number, addresses: readonly number[]): Uint8Array {
  return new Uint8Array([...SIGNATURE, PROXY, family, addresses.length >> 8, addresses.length & 255, ...addresses]);
}

/** Returns the bytes of an IP address; `undefined` for any other text. */
export function bytesOf(hostname: string): Uint8Array | undefined {
  const address = unmapped(hostname);
  if (isIPv4(address)) return new Uint8Array(address.split(".").map(Number));
  if (!isIPv6(address) || address.includes("%")) return undefined;
  // The parser of URLs expands an IPv4 address at the end, and compresses the longest run of zeros.
  const [start, end] = new URL(`http://[${address}]/`).hostname.slice(1, -1).split("::").map((part) =>
    part === "" ? [] : part.split(":")
  );
  const groups = end === undefined ? start! : [...start!, ...Array(8 - start!.length - end.length).fill("0"), ...end];
  return Uint8Array.fromHex(groups.map((group) => group.padStart(4, "0")).join(""));
}
