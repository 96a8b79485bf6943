/**
 * Sends and serves the request that a stream begins with, CONNECT or BIND, or the same for datagrams: an HTTP head in
 * each direction.
 *
 * @module
 */

import { type DuplexConnection, type Session, SessionClosedError } from "../mod.ts";
import { encoder, printable, readExactly, writeAll } from "./bytes.ts";
import { errorText, RefusalError, wrapError } from "./errors.ts";
import { TunnelRefusedError, type TunnelRequest } from "./options.ts";
import { Listening } from "./socket.ts";
import { UdpListening } from "./udp_socket.ts";
import { HANDSHAKE_TIMEOUT, setDeadline, withDeadline } from "./wait.ts";

/** Maximum bytes of a head. Larger: longer requests; smaller: less memory that a peer can occupy with each stream. */
export const MAX_HEAD = 8192;

/** Milliseconds before a wrong secret is refused. Larger: slower guessing; smaller: earlier errors. */
export const WRONG_SECRET_DELAY = 1000;

// The end of a head.
const END = "\r\n\r\n";

/**
 * Reads the lines of an HTTP head, and no byte after it: those belong to the forwarded connection.
 *
 * @param begin What was read already.
 */
export async function readHead(from: DuplexConnection, begin = ""): Promise<string[]> {
  let head = begin;
  for (let missing = missingOfEnd(head); missing > 0; missing = missingOfEnd(head)) {
    const count = Math.min(missing, MAX_HEAD - head.length);
    if (count === 0) throw new TunnelRefusedError(431, `HTTP header exceeds ${MAX_HEAD} bytes`);
    head += String.fromCharCode(...await readExactly(from, count));
  }
  return head.slice(0, -END.length).split("\r\n").map(printable);
}

/** Returns the least number of bytes that complete a head. */
function missingOfEnd(head: string): number {
  for (let missing = 0; missing < END.length; missing++) {
    if (head.endsWith(END.slice(0, END.length - missing))) return missing;
  }
  return END.length;
}

/** Returns the value of a header; empty if it is absent. */
export function header(lines: readonly string[], name: string): string {
  return lines.find((line) => line.toLowerCase().startsWith(`${name}:`))?.slice(name.length + 1).trim() ?? "";
}

/** The request of a stream. */
export interface Request {
  method: string;
  /**
   * The target of CONNECT, or the address to listen at of BIND. `*` of OPTIONS, which only awaits a response. The
   * direction of MEASURE.
   */
  address: string;
  /** The value of `Proxy-Authorization`; empty if it is absent. */
  authorization: string;
  /** The value of `Forwarded-For`: the address of the visitor of a reverse forward. */
  forwardedFor?: string;
  /** The value of `Client`: the name of the client, and the number of its connections. */
  client?: string;
}

async function readRequest(from: DuplexConnection): Promise<Request> {
  const [line, ...headers] = await readHead(from);
  const [, method, address] = /^([A-Z-]+) (\S+) HTTP\/1\.[01]$/.exec(line!) ?? [];
  if (method === undefined) {
    throw new TunnelRefusedError(400, `expected an HTTP request, received "${line!.slice(0, 40)}"`);
  }
  const request = { method, address: address!, authorization: header(headers, "proxy-authorization") };
  const [forwardedFor, client] = [header(headers, "forwarded-for"), header(headers, "client")];
  return { ...request, ...forwardedFor === "" ? {} : { forwardedFor }, ...client === "" ? {} : { client } };
}

async function respond(to: DuplexConnection, status: number, reason: string, headers = ""): Promise<void> {
  await writeAll(to, encoder.encode(`HTTP/1.1 ${status} ${printable(reason)}\r\n${headers}\r\n`));
}

/**
 * Reads the request of a stream, opens its target or listener, and responds.
 *
 * @param about Headers of the response to OPTIONS.
 */
export async function serveRequest<T extends { close(): void }>(
  stream: DuplexConnection,
  peer: string,
  open: (request: Request) => Promise<T>,
  about = "",
) {
  let request: Request | undefined;
  let opened: T | undefined;
  try {
    request = await withDeadline(stream, readRequest(stream));
    opened = await open(request);
    const headers = opened instanceof Listening || opened instanceof UdpListening ? `Address: ${opened.addr}\r\n` : "";
    await withDeadline(stream, respond(stream, 200, "OK", request.method === "OPTIONS" ? about : headers));
    return { method: request.method, address: request.address, opened };
  } catch (error) {
    opened?.close();
    if (error instanceof SessionClosedError) throw error;
    const isBad = request === undefined || error instanceof RangeError;
    const status = error instanceof TunnelRefusedError ? error.status : isBad ? 400 : 502;
    await withDeadline(stream, respond(stream, status, errorText(error))).catch(() => {});
    const what = request === undefined ? "a request" : `${request.method} ${request.address}`;
    throw new RefusalError(status, `Refused ${what} from ${peer}`, error);
  }
}

/**
 * Requests the server to do nothing: its response proves the secret, the version of smux and the protocol below.
 *
 * @param more Further lines of the head.
 * @throws {TunnelRefusedError} The server does not accept the secret.
 */
export async function checkServer(session: Session, by: Credentials, more = ""): Promise<boolean> {
  const clear = setDeadline(
    () => session.abort(new Error(`handshake timed out after ${HANDSHAKE_TIMEOUT} ms`)),
    HANDSHAKE_TIMEOUT,
  );
  try {
    const { stream, headers } = await request(session, "OPTIONS", "*", by, more);
    stream.close();
    return header(headers, "server").startsWith("sluice/");
  } catch (error) {
    // A server that does not know the method has accepted the secret.
    if (error instanceof TunnelRefusedError && error.status === 405) return false;
    throw error;
  } finally {
    clear();
  }
}

/** A secret, shared or of a user. */
export interface Credentials {
  secret?: string | undefined;
  user?: string | undefined;
}

/** Returns the value of `Proxy-Authorization` for a secret, shared or of a user. */
export function credentials(secret: string, user?: string): string {
  return user === undefined ? `Bearer ${secret}` : `Basic ${btoa(`${user}:${secret}`)}`;
}

/**
 * Requests the peer to connect or to listen; OPTIONS with the address `*` requests a response only.
 *
 * @param by What proves who requests.
 * @param more Further lines of the head.
 */
export async function request(
  session: Session,
  method: TunnelRequest["method"] | "OPTIONS" | "MEASURE",
  address: string,
  { secret, user }: Credentials = {},
  more = "",
) {
  const stream = await session.openStream();
  try {
    const authorization = secret === undefined ? "" : `Proxy-Authorization: ${credentials(secret, user)}\r\n`;
    const lines = `${method} ${address} HTTP/1.1\r\nHost: ${address}\r\n${authorization}${more}\r\n`;
    await writeAll(stream, encoder.encode(lines));
    const [line, ...headers] = await readHead(stream);
    const [, status, reason] = /^HTTP\/1\.[01] (\d{3}) ?(.*)$/.exec(line!) ?? [];
    if (status === "200") return { stream, addr: header(headers, "address"), headers };
    const isUnknown = method.endsWith("-UDP") && (status === "405" || /^expected an HTTP request/.test(reason ?? ""));
    const why = status === undefined
      ? `expected an HTTP response, received "${line!.slice(0, 40)}"`
      : isUnknown
      ? "it does not support UDP"
      : reason;
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
