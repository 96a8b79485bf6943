/** Helpers of the tunnel's tests: both ends in this process, targets, clients, and a log of errors and events. */

import { assert, assertEquals, assertInstanceOf, assertMatch, assertNotEquals } from "@std/assert";
import { concat } from "@std/bytes";
import * as timers from "node:timers";
import type { Timer } from "../_clock.ts";
import { type Connection, connections, Session } from "../mod.ts";
import {
  openTunnel,
  type OpenTunnelOptions,
  serveTunnel,
  type ServeTunnelOptions,
  type TunnelEvent,
  type TunnelOptions,
} from "../tunnel.ts";
import { bytes, freePort, listenAgain, LOOPBACK, pattern, readSome, sha256, text, writeAll } from "./support.ts";
import { LONG, within } from "./within.ts";

// LISTEN of a free loopback port.
export const FREE = "127.0.0.1:0";

/** Formats the address of a socket. */
export const at = ({ hostname, port }: { hostname: string; port: number }) =>
  hostname.includes(":") ? `[${hostname}]:${port}` : `${hostname}:${port}`;

/** Parses an address into options of `Deno.connect` and `Deno.listen`. */
export function parse(addr: string): { hostname: string; port: number } {
  const [, ipv6, name, port] = /^(?:\[(.+)\]|([^:]+)):(\d+)$/.exec(addr)!;
  return { hostname: ipv6 ?? name!, port: Number(port) };
}

/** Connects to an address. */
export const dial = (addr: string) => Deno.connect(parse(addr));

/** Returns the port of an address. */
export const portOf = (addr: string) => parse(addr).port;

/** The event of a forwarded connection that has ended. */
export type FinishedEvent = Extract<TunnelEvent, { type: "finished" }>;

/** The event of a client that has left. */
export type DisconnectedEvent = Extract<TunnelEvent, { type: "disconnected" }>;

/** Collects the errors and events of a tunnel, those of ended connections apart, and waits for them. */
export function makeLog() {
  const errors: Error[] = [];
  const events: Exclude<TunnelEvent, FinishedEvent | DisconnectedEvent>[] = [];
  const disconnected: DisconnectedEvent[] = [];
  const finished: FinishedEvent[] = [];
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
    if (event.type === "finished") finished.push(event);
    else if (event.type === "disconnected") disconnected.push(event);
    else events.push(event);
    wake();
  };
  const messages = () => errors.map((error) => error.message);
  const typesOf = () => events.map(({ type }) => type);
  /** Waits until the messages of `times` errors match, or until `times` events have this type. */
  const until = async (what: RegExp | TunnelEvent["type"], times = 1) => {
    const count = () =>
      typeof what === "string"
        ? [...events, ...finished, ...disconnected].filter(({ type }) => type === what).length
        : messages().filter((message) => what.test(message)).length;
    const find = async () => {
      while (count() < times) await reported.promise;
    };
    await within(LONG, find(), () => `Nothing of ${what} after ${LONG} ms, but:\n${messages().join("\n")}`);
  };
  return { errors, events, finished, disconnected, messages, typesOf, until, options: { onError, onEvent } };
}

/** Starts both ends of a tunnel: the client listens on `client.listenAddrs[0]`, the server has one target. */
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

/** Starts both ends of a tunnel, each with a log and its own options. */
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

/** Ignores that the tunnel has reset a connection. */
export function ignoreReset(error: unknown): void {
  if (!(error instanceof Deno.errors.ConnectionReset)) throw error;
}

/** Starts a target that answers connections one after the other, which may be reset. */
export function makeTarget(answer: (connection: Deno.TcpConn) => Promise<void>) {
  const listener = Deno.listen(LOOPBACK);
  const answering = (async () => {
    // A connection may be reset before it is accepted.
    for await (const connection of connections(listener, { onError() {} })) {
      using answered = connection;
      await answer(answered).catch(ignoreReset);
    }
  })();
  const close = async () => {
    listener.close();
    await answering;
  };
  return { addr: at(listener.addr), close, [Symbol.asyncDispose]: close };
}

export const makeEcho = () => makeTarget((connection) => connection.readable.pipeTo(connection.writable));

/** Reads an HTTP head byte by byte; returns the bytes read if the end comes first. */
export async function readHead(from: Pick<Connection, "read">): Promise<Uint8Array> {
  const head: number[] = [];
  while (!text(new Uint8Array(head)).endsWith("\r\n\r\n")) {
    const [byte] = await readSome(from, 1);
    if (byte === undefined) break;
    head.push(byte);
  }
  return new Uint8Array(head);
}

/** Sends a word, and returns as many bytes of the response. */
export async function say(connection: Pick<Connection, "read" | "write">, word: string): Promise<string> {
  await writeAll(connection, bytes(word));
  return text(await readSome(connection, word.length));
}

/** Whether the peer closes or resets the connection without sending a byte. */
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

/** Fetches files of these sizes at the same time, each over its own connection, and checks their content. */
export async function fetchFiles(addr: string, sizes: number[]): Promise<void> {
  using client = Deno.createHttpClient({ poolMaxIdlePerHost: 0 });
  await Promise.all(sizes.map(async (size) => {
    const response = await fetch(`http://127.0.0.1:${portOf(addr)}/${size}`, { client });
    const file = new Uint8Array(await response.arrayBuffer());
    assertEquals(await sha256(file), await sha256(pattern(size, size)));
  }));
}

/**
 * Opens 514 silent connections, two more than a server allows in their handshake; checks that the two oldest end, and
 * that this is reported once.
 */
export async function exceedHandshakes(addr: string, log: { messages(): string[] }): Promise<Deno.TcpConn[]> {
  const connections: Deno.TcpConn[] = [];
  for (let n = 0; n < 513; n++) connections.push(await dial(addr));
  assert(await promptly(isEnded(connections[0]!)));
  connections.push(await dial(addr));
  assert(await promptly(isEnded(connections[1]!)));
  assertEquals(log.messages(), ["Closed the oldest of more than 512 connections in their handshake"]);
  return connections;
}

/** Returns an address that refuses connections. */
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

/** Changes the delay of each new timer until disposed of. */
export function changeDelays(change: (delay: number) => number): Disposable {
  const { setTimeout } = globalThis;
  globalThis.setTimeout = ((run: () => void, delay = 0) => setTimeout(run, change(delay))) as typeof setTimeout;
  return { [Symbol.dispose]: () => void (globalThis.setTimeout = setTimeout) };
}

/** Holds new timers of a delay, in milliseconds, until `fire` or the end: what is too late does not depend on speed. */
export function holdTimers(delay: number) {
  const { setTimeout, clearTimeout } = globalThis;
  const held = new Map<Timer, () => void>();
  globalThis.setTimeout = ((run: () => void, after = 0) => {
    const timer = setTimeout(run, after === delay ? 1_000_000 : after) as Timer;
    if (after === delay) held.set(timer, run);
    return timer;
  }) as typeof setTimeout;
  const clear = (timer: Timer) => {
    held.delete(timer);
    clearTimeout(timer);
  };
  globalThis.clearTimeout = clear as typeof clearTimeout;
  /** Runs those that are held now; there must be one. */
  const fire = () => {
    assertNotEquals(held.size, 0, `no timer of ${delay} ms is set`);
    for (const [timer, run] of [...held]) {
      clear(timer);
      run();
    }
  };
  const restore = () => void Object.assign(globalThis, { setTimeout, clearTimeout });
  return { fire, count: () => held.size, [Symbol.dispose]: restore };
}

/** Waits for a promise; rejects after 5 seconds. */
export function promptly<T>(promise: Promise<T>): Promise<T> {
  return within(5000, promise, () => "Still pending after 5 seconds");
}

/** Waits until a condition holds that is not reported; rejects after a minute. */
export async function eventually(isTrue: () => boolean | Promise<boolean>): Promise<void> {
  let isLate = false;
  const timer = timers.setTimeout(() => isLate = true, LONG);
  try {
    while (!await isTrue()) {
      if (isLate) throw new Error(`Still false after ${LONG} ms: ${isTrue}`);
      await new Promise<void>((resolve) => void timers.setTimeout(resolve, 1));
    }
  } finally {
    timers.clearTimeout(timer);
  }
}

/** Opens a client whose server is a bare session. */
export async function openAtSession(asked: Omit<OpenTunnelOptions, "connect">) {
  const listener = Deno.listen(LOOPBACK);
  const opening = openTunnel({ connect: at(listener.addr), reconnect: false, resume: false, ...asked });
  const session = Session.server(await listener.accept());
  listener.close();
  const { forward = [], socks = [], reverse = [], secret } = asked;
  if (forward.some((text) => text.includes("=")) || socks.length + reverse.length > 0 || secret !== undefined) {
    await answerOptions(session);
  }
  return { opening, session };
}

/** Answers the first request of a tunnel's client, by which it checks the server. */
export async function answerOptions(session: Session): Promise<void> {
  await using stream = await session.acceptStream();
  assertMatch(text(await readHead(stream)), /^OPTIONS \* HTTP/);
  await writeAll(stream, bytes("HTTP/1.1 200 OK\r\n\r\n"));
}

/** Answers the CONNECT of a tunnel's client, and closes the session before the client has ended its stream. */
export async function answerAndHangUp(session: Session, answer: Uint8Array): Promise<void> {
  const stream = await session.acceptStream();
  assertMatch(text(await readHead(stream)), /^CONNECT /);
  await writeAll(stream, bytes("HTTP/1.1 200 OK\r\n\r\n"));
  // The answer fits into the client's window.
  await writeAll(stream, answer);
  await stream.closeWrite();
  await session.close();
  await session.closed;
}

/** Builds a SOCKS 5 request of a command and an address of a type. */
export function socksRequest(command: number, kind: number, address: Uint8Array | number[], port: number): Uint8Array {
  return concat([new Uint8Array([5, command, 0, kind, ...address]), new Uint8Array([port >> 8, port & 255])]);
}

export const HELLO = new Uint8Array([5, 1, 0]);

export const IPV4 = [127, 0, 0, 1];

/** Sends a greeting and a request to a SOCKS server, and returns the code of the reply. */
export async function askSocks(connection: Pick<Connection, "read" | "write">, request: Uint8Array): Promise<number> {
  await writeAll(connection, HELLO);
  assertEquals(Array.from(await readSome(connection, 2)), [5, 0]);
  await writeAll(connection, request);
  const [version, code, ...rest] = await readSome(connection, 10);
  assertEquals({ version, rest }, { version: 5, rest: [0, 1, 0, 0, 0, 0, 0, 0] });
  return code!;
}

/** Starts a TCP proxy to an address, whose connections can be cut and whose port can be closed. */
export function makeProxy(to: string) {
  const open = new Set<Deno.TcpConn>();
  let listener = Deno.listen(LOOPBACK);
  const { port } = listener.addr;
  let running: Promise<void>;
  const copy = async (from: Deno.TcpConn, into: Deno.TcpConn) => {
    try {
      await from.readable.pipeTo(into.writable);
    } catch {
      // Cut, or reset by a peer.
    } finally {
      for (const connection of [from, into]) {
        open.delete(connection);
        try {
          connection.close();
        } catch {
          // `pipeTo` has closed it.
        }
      }
    }
  };
  const run = async () => {
    const copying: Promise<void>[] = [];
    for await (const accepted of listener) {
      const dialled = await dial(to).catch(() => accepted.close());
      if (dialled === undefined) continue;
      for (const connection of [accepted, dialled]) open.add(connection);
      copying.push(copy(accepted, dialled), copy(dialled, accepted));
    }
    await Promise.all(copying);
  };
  running = run();
  /** Closes all connections. */
  const cut = () => {
    for (const connection of open) {
      try {
        connection.close();
      } catch {
        // Its peer has ended it at the same time.
      }
    }
    open.clear();
  };
  /** Refuses connections until `start`, and cuts the open ones. */
  let isStopped = false;
  const stop = async () => {
    if (!isStopped) listener.close();
    isStopped = true;
    cut();
    await running;
  };
  const start = async () => {
    listener = await listenAgain(() => Deno.listen({ ...LOOPBACK, port }));
    isStopped = false;
    running = run();
  };
  return { addr: at(listener.addr), cut, stop, start, [Symbol.asyncDispose]: stop };
}
