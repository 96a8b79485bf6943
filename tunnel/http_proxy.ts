/**
 * Serves HTTP as a proxy: reads the head of a request, CONNECT or one with an absolute URI, connects to its target, and
 * replies or forwards the head.
 *
 * @module
 */

import type { DuplexConnection } from "../mod.ts";
import { formatTarget } from "./address.ts";
import { encoder, printable, readExactly, writeAll } from "./bytes.ts";
import { errorText } from "./errors.ts";
import { MAX_HEAD } from "./handshake.ts";
import { type BodyLength, RequestBody } from "./http_body.ts";
import { TunnelRefusedError } from "./options.ts";
import type { ProxyAuth } from "./proxy_auth.ts";
import { withDeadline } from "./wait.ts";

// The end of a head.
const END = "\r\n\r\n";

// Characters of a host, the longest name of DNS. Larger: names that do not exist; smaller: refuses valid ones.
const MAX_HOST = 255;

// Characters of the text in a reply. Larger: longer messages; smaller: shorter ones.
const MAX_REPLY = 1000;

const REASONS: Record<number, string> = {
  400: "Bad Request",
  403: "Forbidden",
  407: "Proxy Authentication Required",
  431: "Request Header Fields Too Large",
  502: "Bad Gateway",
  504: "Gateway Timeout",
};

/** Headers of one hop: the proxy itself is addressed, and the connection. The body stays as it is, and its headers. */
const HOP_BY_HOP = ["connection", "proxy-connection", "keep-alive", "te", "upgrade", "proxy-authorization", "host"];

/** Headers that `Connection` must not name: without them the body would end elsewhere, or the host would differ. */
const END_TO_END = ["host", "content-length", "transfer-encoding"];

/** The head of a request. */
export interface ProxyRequest {
  target: string;
  /** The value of `Proxy-Authorization`; empty if it is absent. */
  authorization: string;
  /** The head for the target, and the length of the body; `undefined` for CONNECT. */
  forwarded: { head: string; body: BodyLength } | undefined;
}

/** A connection to the target of a request. */
export interface Served<T> {
  connected: T;
  /** Bytes that were sent to it already. */
  sent?: number;
  /** Checks bytes of the client before they are forwarded; throws to end the connection. */
  check?: (p: Uint8Array) => void;
}

/**
 * Reads the target of a client, connects to it, and replies or forwards the request.
 *
 * @param auth The user and the password that are required. Default: none.
 */
export async function speakHttp<T extends DuplexConnection>(
  client: DuplexConnection,
  connect: (target: string) => Promise<T>,
  auth?: ProxyAuth,
): Promise<Served<T>> {
  let request: ProxyRequest | undefined;
  let connected: T | undefined;
  try {
    request = await withDeadline(client, readRequest(client, auth));
    const { target, forwarded } = request;
    connected = await connect(target);
    if (forwarded === undefined) {
      await writeAll(client, encoder.encode("HTTP/1.1 200 Connection established\r\n\r\n"));
      return { connected };
    }
    const head = encodeLatin1(forwarded.head);
    await writeAll(connected, head);
    const body = new RequestBody(forwarded.body);
    return { connected, sent: head.length, check: (p) => body.push(p) };
  } catch (error) {
    connected?.close();
    await withDeadline(client, refuse(client, request === undefined ? 400 : 502, error)).catch(() => {});
    throw error;
  }
}

async function readRequest(client: DuplexConnection, auth: ProxyAuth | undefined): Promise<ProxyRequest> {
  const request = parseRequest(await readHead(client));
  if (auth === undefined) return request;
  if (request.authorization === "") throw new TunnelRefusedError(407, "the proxy requires a user and a password");
  if (await auth.acceptsBasic(request.authorization)) return request;
  throw new TunnelRefusedError(407, "wrong user or password of an HTTP client");
}

/** Reads a head, and no byte after it: those belong to the forwarded connection. */
async function readHead(client: DuplexConnection): Promise<string> {
  let head = "";
  for (let missing = END.length; missing > 0; missing = missingOfEnd(head)) {
    const count = Math.min(missing, MAX_HEAD - head.length);
    if (count === 0) throw new TunnelRefusedError(431, `HTTP header exceeds ${MAX_HEAD} bytes`);
    head += String.fromCharCode(...await readExactly(client, count));
    // Their end would not be found.
    const at = head.indexOf("\n", head.length - count);
    if (at >= 0 && head[at - 1] !== "\r") throw malformed("HTTP line", "one that ends with CRLF", "only LF");
  }
  return head.slice(0, -END.length);
}

/** Returns the least number of bytes that complete a head. */
function missingOfEnd(head: string): number {
  for (let missing = 0; missing < END.length; missing++) {
    if (head.endsWith(END.slice(0, END.length - missing))) return missing;
  }
  return END.length;
}

/**
 * Parses a head without the empty line at its end.
 *
 * @throws {TunnelRefusedError} It is malformed, with the status 400.
 */
export function parseRequest(head: string): ProxyRequest {
  const [line, ...lines] = head.split("\r\n");
  const [, method, uri, version] = /^([A-Z]{1,20}) ([!-~\x80-\xff]+) HTTP\/(1\.[01])$/.exec(line!) ?? [];
  if (method === undefined) throw malformed("HTTP request", "METHOD URI HTTP/1.1", show(line!));
  const headers = lines.map(parseHeader);
  const authorization = headers.find(({ name }) => name === "proxy-authorization")?.value ?? "";
  if (method === "CONNECT") return { target: parseAuthority(uri!), authorization, forwarded: undefined };
  const { target, authority, path } = parseUri(uri!, method);
  const named = headers.filter(({ name }) => name === "connection").flatMap(({ value }) => splitList(value));
  const wrong = named.find((name) => END_TO_END.includes(name));
  if (wrong !== undefined) throw malformed("Connection", "headers of one hop", wrong);
  const dropped = new Set([...HOP_BY_HOP, ...named]);
  const body = bodyLength(headers, version!);
  const kept = headers.filter(({ name }) => !dropped.has(name)).map(({ text }) => text);
  const forwarded = [`${method} ${path} HTTP/${version}`, `Host: ${authority}`, ...kept, "Connection: close"];
  return { target, authorization, forwarded: { head: forwarded.join("\r\n") + END, body } };
}

/** A header of a request. */
interface Header {
  /** In lower case. */
  name: string;
  value: string;
  /** As it was received. */
  text: string;
}

function parseHeader(text: string): Header {
  const [, name, value] = /^([!#$%&'*+.^_`|~\w-]+):[ \t]*([\t -~\x80-\xff]*)$/.exec(text) ?? [];
  if (name === undefined) throw malformed("HTTP header", "NAME: VALUE", show(text.replace(/:.*/s, ": ...")));
  return { name: name.toLowerCase(), value: value!.trim(), text };
}

function splitList(value: string): string[] {
  return value.toLowerCase().split(",").map((item) => item.trim()).filter((item) => item !== "");
}

/** Parses HOST:PORT of CONNECT. */
function parseAuthority(authority: string): string {
  const [, host, port] = /^([^:[\]]+|\[[^[\]]+\]):(\d{1,5})$/.exec(authority) ?? [];
  if (host === undefined) throw malformed("target of CONNECT", "HOST:PORT", show(authority));
  return makeTarget(host, port!);
}

function makeTarget(host: string, port: string): string {
  if (host.length > MAX_HOST) throw malformed("host", `at most ${MAX_HOST} characters`, String(host.length));
  try {
    return formatTarget("HTTP target", host.replace(/^\[|\]$/g, ""), Number(port));
  } catch (error) {
    throw new TunnelRefusedError(400, errorText(error));
  }
}

/** Parses an absolute URI. */
function parseUri(uri: string, method: string): { target: string; authority: string; path: string } {
  const [, scheme, authority = "", rest = ""] = /^([a-z][a-z\d+.-]*):\/\/([^/?#]*)(.*)$/i.exec(uri) ?? [];
  if (scheme === undefined) throw malformed("URI", "http://HOST/PATH: this is a proxy", show(uri));
  if (scheme.toLowerCase() !== "http") throw malformed("scheme", "http; others need CONNECT", show(scheme));
  const [, host, port = "80"] = /^([^:[\]@]+|\[[^[\]]+\])(?::(\d{1,5})?)?$/.exec(authority) ?? [];
  if (host === undefined || rest.includes("#")) throw malformed("URI", "http://HOST:PORT/PATH", "another text");
  const target = makeTarget(host, port);
  const isWhole = method === "OPTIONS" && rest === "";
  return { target, authority, path: isWhole ? "*" : rest.startsWith("/") ? rest : `/${rest}` };
}

/** Returns the length of the body. Two ends that understood it in different ways would disagree on what follows. */
function bodyLength(headers: readonly Header[], version: string): BodyLength {
  const [lengths, codings] = ["content-length", "transfer-encoding"].map((wanted) =>
    headers.filter(({ name }) => name === wanted).map(({ value }) => value)
  ) as [string[], string[]];
  if (codings.length > 0) {
    const all = codings.flatMap(splitList);
    const isChunked = all.at(-1) === "chunked" && all.indexOf("chunked") === all.length - 1;
    if (lengths.length > 0) throw malformed("body", "Content-Length or Transfer-Encoding", "both");
    if (!isChunked || version === "1.0") throw malformed("Transfer-Encoding", "chunked at its end", show(all.join()));
    return "chunked";
  }
  const [length = "0", ...more] = lengths;
  if (more.length > 0) throw malformed("Content-Length", "one value", `${lengths.length}`);
  if (!/^\d{1,15}$/.test(length)) throw malformed("Content-Length", "an integer", show(length));
  return Number(length);
}

function malformed(what: string, expected: string, received: string): TunnelRefusedError {
  return new TunnelRefusedError(400, `${what} must be ${expected}, received ${received}`);
}

/** Quotes a text of the client for an error. */
function show(text: string): string {
  return `"${printable(text.slice(0, 80))}"`;
}

function encodeLatin1(text: string): Uint8Array {
  return Uint8Array.from(text, (character) => character.charCodeAt(0));
}

/** Returns the status for an error: of the request itself, or of connecting, where the peer's own may mislead. */
function statusOf(error: unknown, fallback: 400 | 502): number {
  const status = error instanceof TunnelRefusedError ? error.status : fallback;
  if (fallback === 400 || status === 403) return status;
  return /timed out/.test(errorText(error)) ? 504 : 502;
}

/** Replies with the status and the message of an error. */
async function refuse(client: DuplexConnection, fallback: 400 | 502, error: unknown): Promise<void> {
  const status = statusOf(error, fallback);
  const text = `${printable(errorText(error)).slice(0, MAX_REPLY)}\n`;
  const lines = [
    `HTTP/1.1 ${status} ${REASONS[status]}`,
    ...status === 407 ? ['Proxy-Authenticate: Basic realm="proxy"'] : [],
    "Content-Type: text/plain",
    `Content-Length: ${text.length}`,
    "Connection: close",
  ];
  await writeAll(client, encoder.encode(lines.join("\r\n") + END + text));
}
