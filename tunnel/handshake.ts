/**
 * Asks in a stream to connect or to listen, and answers: an HTTP head each way.
 *
 * @module
 */

import { type DuplexConnection, type Session, SessionClosedError } from "../mod.ts";
import { parseEndpoint, type Rule } from "./address.ts";
import { encoder, printable, readExactly, writeAll } from "./bytes.ts";
import { errorText, wrapError } from "./errors.ts";
import { TunnelRefusedError } from "./options.ts";
import { Listening } from "./socket.ts";
import { sleep, withDeadline } from "./wait.ts";

// Bytes of a head, which the peer chooses. Larger: longer requests; smaller: less memory for each stream that is opened.
const MAX_HEAD = 8192;

// Milliseconds before a wrong secret is refused. Larger: guessing takes longer.
const WRONG_SECRET_DELAY = 1000;

/** Reads the lines of an HTTP head, byte by byte: what follows belongs to the forwarded connection. */
async function readHead(from: DuplexConnection): Promise<string[]> {
  let head = "";
  while (!head.endsWith("\r\n\r\n")) {
    if (head.length === MAX_HEAD) throw new TunnelRefusedError(431, `HTTP head exceeds ${MAX_HEAD} bytes`);
    head += String.fromCharCode((await readExactly(from, 1))[0]!);
  }
  return head.slice(0, -4).split("\r\n").map(printable);
}

/** The value of a header, empty if there is none. */
function header(lines: readonly string[], name: string): string {
  return lines.find((line) => line.toLowerCase().startsWith(`${name}:`))?.slice(name.length + 1).trim() ?? "";
}

/** What a stream asks for. */
interface Request {
  method: string;
  /** The target of CONNECT, or the address to listen at of BIND. */
  address: string;
  /** The `Proxy-Authorization`, empty without one. */
  authorization: string;
}

async function readRequest(from: DuplexConnection): Promise<Request> {
  const [line, ...headers] = await readHead(from);
  const [, method, address] = /^([A-Z]+) (\S+) HTTP\/1\.[01]$/.exec(line!) ?? [];
  if (method === undefined) {
    throw new TunnelRefusedError(400, `expected an HTTP request, received "${line!.slice(0, 40)}"`);
  }
  return { method, address: address!, authorization: header(headers, "proxy-authorization") };
}

async function respond(to: DuplexConnection, status: number, reason: string, headers = ""): Promise<void> {
  await writeAll(to, encoder.encode(`HTTP/1.1 ${status} ${printable(reason)}\r\n${headers}\r\n`));
}

/** Reads the request of a stream, opens what it asks for, and responds. */
export async function serveRequest<T extends { close(): void }>(
  stream: DuplexConnection,
  peer: string,
  open: (request: Request) => Promise<T>,
) {
  let request: Request | undefined;
  let opened: T | undefined;
  try {
    request = await withDeadline(stream, readRequest(stream));
    opened = await open(request);
    await withDeadline(
      stream,
      respond(stream, 200, "OK", opened instanceof Listening ? `Address: ${opened.addr}\r\n` : ""),
    );
    return { address: request.address, opened };
  } catch (error) {
    opened?.close();
    if (error instanceof SessionClosedError) throw error;
    const isBad = request === undefined || error instanceof RangeError;
    const status = error instanceof TunnelRefusedError ? error.status : isBad ? 400 : 502;
    await withDeadline(stream, respond(stream, status, errorText(error))).catch(() => {});
    throw wrapError(`Refused ${peer}${request === undefined ? "" : ` ${request.method} ${request.address}`}`, error);
  }
}

/** Requests the other end to connect, or to listen. */
export async function request(session: Session, method: "CONNECT" | "BIND", address: string, secret?: string) {
  const stream = await session.openStream();
  try {
    const authorization = secret === undefined ? "" : `Proxy-Authorization: Bearer ${secret}\r\n`;
    await writeAll(stream, encoder.encode(`${method} ${address} HTTP/1.1\r\nHost: ${address}\r\n${authorization}\r\n`));
    const [line, ...headers] = await readHead(stream);
    const [, status, reason] = /^HTTP\/1\.[01] (\d{3}) ?(.*)$/.exec(line!) ?? [];
    if (status === "200") return { stream, addr: header(headers, "address") };
    const message = `The other end refused ${method} ${address}: ${
      status === undefined ? "the response is not HTTP" : reason
    }`;
    throw new TunnelRefusedError(Number(status ?? 400), message);
  } catch (error) {
    stream.close();
    if (error instanceof TunnelRefusedError || error instanceof SessionClosedError) throw error;
    throw wrapError(`The other end did not answer ${method} ${address}`, error);
  }
}

export function checkSecret(secret: string | undefined): void {
  // It becomes part of an HTTP header.
  if (secret === undefined || /^[!-~]+$/.test(secret)) return;
  throw new RangeError("secret must be printable ASCII without spaces, and not empty");
}

/** What a server allows, by the method of the request. */
export interface Rules {
  [method: string]: Rule[];
}

/**
 * Checks a request; a wrong secret is refused after a delay, which the signal cuts short.
 *
 * @throws {TunnelRefusedError} It is not allowed.
 * @throws {RangeError} The address is not one.
 */
export async function authorize(
  { method, address, authorization }: Request,
  rules: Rules,
  secret: string | undefined,
  signal: AbortSignal,
): Promise<void> {
  if (secret !== undefined && !await timingSafeEqual(authorization, `Bearer ${secret}`)) {
    await sleep(WRONG_SECRET_DELAY, signal);
    throw new TunnelRefusedError(407, "wrong secret");
  }
  const allowed = rules[method];
  if (allowed === undefined) throw new TunnelRefusedError(405, `expected CONNECT or BIND, received ${method}`);
  const endpoint = parseEndpoint(method, address, method === "BIND" ? 0 : 1);
  if (!allowed.some((rule) => rule(endpoint))) throw new TunnelRefusedError(403, "not allowed");
}

/** Compares two texts in a time that does not depend on where they differ. */
async function timingSafeEqual(...texts: [string, string]): Promise<boolean> {
  const digest = async (text: string) => new Uint8Array(await crypto.subtle.digest("SHA-256", encoder.encode(text)));
  const [a, b] = await Promise.all(texts.map(digest));
  return a!.reduce((difference, byte, n) => difference | (byte ^ b![n]!), 0) === 0;
}
