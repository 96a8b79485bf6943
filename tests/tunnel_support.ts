/** What the tests of the tunnel share: both ends in this process, targets, visitors, and a log of what is reported. */

import { assertEquals, assertInstanceOf, assertMatch } from "@std/assert";
import { concat } from "@std/bytes";
import { type Connection, Session } from "../mod.ts";
import {
  openTunnel,
  type OpenTunnelOptions,
  serveTunnel,
  type ServeTunnelOptions,
  type TunnelEvent,
  type TunnelOptions,
} from "../tunnel.ts";
import { bytes, freePort, LOOPBACK, pattern, readSome, sha256, text, writeAll } from "./support.ts";

// A free port of this machine, in words.
export const FREE = "127.0.0.1:0";

/** An address of a socket, in words. */
export const at = ({ hostname, port }: { hostname: string; port: number }) =>
  hostname.includes(":") ? `[${hostname}]:${port}` : `${hostname}:${port}`;

/** What Deno needs to connect to or listen at an address in words. */
export function parse(addr: string): { hostname: string; port: number } {
  const [, ipv6, name, port] = /^(?:\[(.+)\]|([^:]+)):(\d+)$/.exec(addr)!;
  return { hostname: ipv6 ?? name!, port: Number(port) };
}

/** Connects to an address in words. */
export const dial = (addr: string) => Deno.connect(parse(addr));

/** The port of an address in words. */
export const portOf = (addr: string) => parse(addr).port;

/** Collects the errors and events that a tunnel reports, and waits for them. */
export function makeLog() {
  const errors: Error[] = [];
  const events: TunnelEvent[] = [];
  let reported = Promise.withResolvers<void>();
  const wake = () => {
    reported.resolve();
    reported = Promise.withResolvers();
  };
  const onError = (error: unknown) => {
    assertInstanceOf(error, Error);
    errors.push(error);
    wake();
  };
  const onEvent = (event: TunnelEvent) => {
    events.push(event);
    wake();
  };
  const messages = () => errors.map((error) => error.message);
  const typesOf = () => events.map(({ type }) => type);
  /** Waits until `times` errors have a message like this, or until `times` events are of this type. */
  const until = async (what: RegExp | TunnelEvent["type"], times = 1) => {
    const count = () =>
      typeof what === "string"
        ? typesOf().filter((type) => type === what).length
        : messages().filter((message) => what.test(message)).length;
    while (count() < times) await reported.promise;
  };
  return { errors, events, messages, typesOf, until, options: { onError, onEvent } };
}

/** Both ends of a tunnel in this process, the client's at `client.listenAddrs[0]` and its server's always at one target. */
export async function makeTunnel(target: string, options: TunnelOptions = {}) {
  const log = makeLog();
  const server = serveTunnel({ listen: FREE, target, onEvent: log.options.onEvent, ...options });
  const client = await openTunnel({ connect: server.serverAddr, forward: [FREE], reconnect: false, ...options });
  const shutdown = async () => {
    await client.shutdown();
    await server.shutdown();
  };
  return { server, client, log, shutdown };
}

/** Both ends of a tunnel in this process, each with a log, and the server told what it allows. */
export async function makePair(
  options: Omit<ServeTunnelOptions, "listen">,
  asked: Omit<OpenTunnelOptions, "connect"> = {},
) {
  const logs = { server: makeLog(), client: makeLog() };
  const server = serveTunnel({ listen: FREE, ...logs.server.options, ...options });
  const opening = openTunnel({ connect: server.serverAddr, reconnect: false, ...logs.client.options, ...asked });
  const client = await opening.catch(async (error) => {
    await server.shutdown();
    throw error;
  });
  const dispose = async () => {
    await client.shutdown();
    await server.shutdown();
  };
  return { server, client, logs, [Symbol.asyncDispose]: dispose };
}

/** A target that answers each connection as told, one after the other. */
export function makeTarget(answer: (connection: Deno.TcpConn) => Promise<void>) {
  const listener = Deno.listen(LOOPBACK);
  const answering = (async () => {
    for await (const connection of listener) {
      using answered = connection;
      await answer(answered);
    }
  })();
  const close = async () => {
    listener.close();
    await answering;
  };
  return { addr: at(listener.addr), close, [Symbol.asyncDispose]: close };
}

export const makeEcho = () => makeTarget((connection) => connection.readable.pipeTo(connection.writable));

/** Reads an HTTP head, byte for byte; what there was of it if that ends before. */
export async function readHead(from: Pick<Connection, "read">): Promise<Uint8Array> {
  const head: number[] = [];
  while (!text(new Uint8Array(head)).endsWith("\r\n\r\n")) {
    const [byte] = await readSome(from, 1);
    if (byte === undefined) break;
    head.push(byte);
  }
  return new Uint8Array(head);
}

/** Sends a word and gives what comes back. */
export async function say(connection: Pick<Connection, "read" | "write">, word: string): Promise<string> {
  await writeAll(connection, bytes(word));
  return text(await readSome(connection, word.length));
}

/** Whether the other end ends the connection, in order or not, before it says anything. */
export async function isEnded(connection: Pick<Connection, "read">): Promise<boolean> {
  return await connection.read(new Uint8Array(1)).catch(() => null) === null;
}

export const SIZES = Array.from({ length: 60 }, (_, n) => Math.round(1.25 ** n));

export function serveFiles(where: { hostname: string; port: number } = LOOPBACK) {
  return Deno.serve({ ...where, onListen() {} }, (request) => {
    const size = Number(new URL(request.url).pathname.slice(1));
    return new Response(pattern(size, size));
  });
}

/** Fetches files of these sizes all at once, each over its own connection, and checks that each came whole. */
export async function fetchFiles(addr: string, sizes: number[]): Promise<void> {
  using client = Deno.createHttpClient({ poolMaxIdlePerHost: 0 });
  await Promise.all(sizes.map(async (size) => {
    const response = await fetch(`http://127.0.0.1:${portOf(addr)}/${size}`, { client });
    const file = new Uint8Array(await response.arrayBuffer());
    assertEquals(await sha256(file), await sha256(pattern(size, size)));
  }));
}

/** An address that refuses connections. */
export function nowhere(): string {
  return `${LOOPBACK.hostname}:${freePort()}`;
}

export function hasIpv6(): boolean {
  try {
    Deno.listen({ hostname: "::1", port: 0 }).close();
    return true;
  } catch {
    return false;
  }
}

/** Timers that are set last as long as `change` says, until it is disposed of. */
export function changeDelays(change: (delay: number) => number): Disposable {
  const { setTimeout } = globalThis;
  globalThis.setTimeout = ((run: () => void, delay = 0) => setTimeout(run, change(delay))) as typeof setTimeout;
  return { [Symbol.dispose]: () => void (globalThis.setTimeout = setTimeout) };
}

/** What a promise fulfils with, unless that takes seconds: then the test has failed. */
export async function promptly<T>(promise: Promise<T>): Promise<T> {
  const late = Promise.withResolvers<never>();
  const timer = setTimeout(() => late.reject(new Error("Still pending after 5 seconds")), 5000);
  return await Promise.race([promise, late.promise]).finally(() => clearTimeout(timer));
}

/** A session with a tunnel's client in the place of its server. */
export async function openAtSession(asked: Omit<OpenTunnelOptions, "connect">) {
  const listener = Deno.listen(LOOPBACK);
  const opening = openTunnel({ connect: at(listener.addr), reconnect: false, ...asked });
  const session = Session.server(await listener.accept());
  listener.close();
  return { opening, session };
}

/** Answers the CONNECT of a tunnel's client with this, whole, and closes the session although the client has not ended. */
export async function answerAndHangUp(session: Session, answer: Uint8Array): Promise<void> {
  const stream = await session.acceptStream();
  assertMatch(text(await readHead(stream)), /^CONNECT /);
  await writeAll(stream, bytes("HTTP/1.1 200 OK\r\n\r\n"));
  // All of it fits into the client's window.
  await writeAll(stream, answer);
  await stream.closeWrite();
  await session.close();
  await session.closed;
}

/** The bytes of a SOCKS client that will be anyone, and wants a command with an address of a kind. */
export function socksRequest(command: number, kind: number, address: Uint8Array | number[], port: number): Uint8Array {
  return concat([new Uint8Array([5, command, 0, kind, ...address]), new Uint8Array([port >> 8, port & 255])]);
}

export const HELLO = new Uint8Array([5, 1, 0]);

export const IPV4 = [127, 0, 0, 1];

/** Says hello and this to a SOCKS server, and gives the code that it answers with. */
export async function askSocks(connection: Deno.TcpConn, request: Uint8Array): Promise<number> {
  await writeAll(connection, HELLO);
  assertEquals(Array.from(await readSome(connection, 2)), [5, 0]);
  await writeAll(connection, request);
  const [version, code, ...rest] = await readSome(connection, 10);
  assertEquals({ version, rest }, { version: 5, rest: [0, 1, 0, 0, 0, 0, 0, 0] });
  return code!;
}
