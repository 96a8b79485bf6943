/**
 * Sends and serves the request that a stream begins with, CONNECT or BIND: an HTTP head in each direction.
 *
 * @module
 */

import { type DuplexConnection, type Session, SessionClosedError } from "../mod.ts";
import { encoder, printable, readExactly, writeAll } from "./bytes.ts";
import { errorText, wrapError } from "./errors.ts";
import { TunnelRefusedError } from "./options.ts";
import { Listening } from "./socket.ts";
import { withDeadline } from "./wait.ts";

/** Maximum bytes of a head. Larger: longer requests; smaller: less memory that a peer can occupy with each stream. */
export const MAX_HEAD = 8192;

/** Milliseconds before a wrong secret is refused. Larger: slower guessing; smaller: earlier errors. */
export const WRONG_SECRET_DELAY = 1000;

/** Reads the lines of an HTTP head, byte by byte: the bytes after it belong to the forwarded connection. */
async function readHead(from: DuplexConnection): Promise<string[]> {
  let head = "";
  while (!head.endsWith("\r\n\r\n")) {
    if (head.length === MAX_HEAD) throw new TunnelRefusedError(431, `HTTP header exceeds ${MAX_HEAD} bytes`);
    head += String.fromCharCode((await readExactly(from, 1))[0]!);
  }
  return head.slice(0, -4).split("\r\n").map(printable);
}

/** Returns the value of a header; empty if it is absent. */
function header(lines: readonly string[], name: string): string {
  return lines.find((line) => line.toLowerCase().startsWith(`${name}:`))?.slice(name.length + 1).trim() ?? "";
}

/** The request of a stream. */
export interface Request {
  method: string;
  /** The target of CONNECT, or the address to listen at of BIND. `*` of OPTIONS, which only awaits a response. */
  address: string;
  /** The value of `Proxy-Authorization`; empty if it is absent. */
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

/** Reads the request of a stream, opens its target or listener, and responds. */
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
    const what = request === undefined ? "a request" : `${request.method} ${request.address}`;
    throw wrapError(`Refused ${what} from ${peer}`, error);
  }
}

/** Returns the value of `Proxy-Authorization` for a secret, shared or of a user. */
export function credentials(secret: string, user?: string): string {
  return user === undefined ? `Bearer ${secret}` : `Basic ${btoa(`${user}:${secret}`)}`;
}

/** Requests the peer to connect or to listen; OPTIONS with the address `*` requests a response only. */
export async function request(
  session: Session,
  method: "CONNECT" | "BIND" | "OPTIONS",
  address: string,
  secret?: string,
  user?: string,
) {
  const stream = await session.openStream();
  try {
    const authorization = secret === undefined ? "" : `Proxy-Authorization: ${credentials(secret, user)}\r\n`;
    await writeAll(stream, encoder.encode(`${method} ${address} HTTP/1.1\r\nHost: ${address}\r\n${authorization}\r\n`));
    const [line, ...headers] = await readHead(stream);
    const [, status, reason] = /^HTTP\/1\.[01] (\d{3}) ?(.*)$/.exec(line!) ?? [];
    if (status === "200") return { stream, addr: header(headers, "address") };
    const why = status === undefined ? `expected an HTTP response, received "${line!.slice(0, 40)}"` : reason;
    throw new TunnelRefusedError(Number(status ?? 400), `The peer refused ${method} ${address}: ${why}`);
  } catch (error) {
    stream.close();
    if (error instanceof TunnelRefusedError || error instanceof SessionClosedError) throw error;
    throw wrapError(`The peer did not respond to ${method} ${address}`, error);
  }
}

/** Throws a `RangeError` unless the secret can be part of an HTTP header. */
export function checkSecret(secret: string | undefined): void {
  // The secret becomes part of an HTTP header.
  if (secret === undefined || /^[!-~]+$/.test(secret)) return;
  throw new RangeError("secret must be non-empty printable ASCII without spaces");
}
