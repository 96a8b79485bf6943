/**
 * UDP over sockets of `node:dgram`: those of Deno need a flag, which a program that imports the tunnel may not have.
 *
 * @module
 */

import dgram from "node:dgram";
import { isIP } from "node:net";
import { canonical, type Endpoint, format, parseEndpoint, UDP } from "./address.ts";
import { hasFree } from "./descriptors.ts";
import { wrapError } from "./errors.ts";
import { resolve } from "./resolve.ts";
import { CONNECT_TIMEOUT, onAbort, withTimeout } from "./wait.ts";

// Datagrams that wait until they are received for the first time. Larger: more of a burst at the start survives; smaller:
// less memory.
const MAX_EARLY = 64;

/** The address of a UDP socket: an IP address in its canonical form, and a port. */
export interface UdpAddress {
  hostname: string;
  port: number;
}

/** Receives datagrams, which stay valid. Must not throw. */
export type Receiver = (datagram: Uint8Array, from: UdpAddress) => void;

/** A bound UDP socket. */
export class UdpSocket {
  readonly localAddr: UdpAddress;
  readonly #socket: dgram.Socket;
  readonly #closed = Promise.withResolvers<void>();
  #receiver: Receiver | undefined;
  #early: [datagram: Uint8Array, from: UdpAddress][] = [];
  #isClosed = false;

  /** @param socket A socket that is bound. */
  constructor(socket: dgram.Socket) {
    this.#socket = socket;
    const { address, port } = socket.address();
    this.localAddr = { hostname: address, port };
    socket.on("message", (message, { address, port }) => {
      if (this.#isClosed) return;
      // Each message has a buffer of 64 KiB, which would stay with it in a queue.
      const datagram = new Uint8Array(message);
      const from = { hostname: isIP(address) === 4 ? address : canonical(address), port };
      if (this.#receiver !== undefined) this.#receiver(datagram, from);
      else if (this.#early.length < MAX_EARLY) this.#early.push([datagram, from]);
    });
    // Of a single datagram: UDP loses it without an error, too.
    socket.on("error", () => {});
    socket.on("close", () => this.#closed.resolve());
  }

  /** Settles when the address is free again, after `close`. */
  get closed(): Promise<void> {
    return this.#closed.promise;
  }

  /** Passes each datagram to a function, also those that have arrived before. */
  receive(receiver: Receiver): void {
    this.#receiver = receiver;
    for (const [datagram, from] of this.#early.splice(0)) receiver(datagram, from);
  }

  /** Sends a datagram, which must not change meanwhile; returns `false` if the system refuses it. Never rejects. */
  send(datagram: Uint8Array, { hostname, port }: UdpAddress): Promise<boolean> {
    const { promise, resolve } = Promise.withResolvers<boolean>();
    // A socket of both versions expects IPv4 addresses mapped into IPv6.
    const isMapped = isIP(hostname) === 4 && isIP(this.localAddr.hostname) === 6;
    try {
      this.#socket.send(datagram, port, isMapped ? `::ffff:${hostname}` : hostname, (error) => resolve(!error));
    } catch {
      // The socket is closed.
      resolve(false);
    }
    return promise;
  }

  /** Closes the socket. Closing again has no effect. */
  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#early = [];
    this.#socket.close();
  }
}

/** Binds a socket to an IP address. */
export async function bindUdp({ hostname, port }: UdpAddress): Promise<UdpSocket> {
  const address = format({ hostname, port });
  // `node:dgram` would end the process instead of reporting it.
  if (Deno.permissions.querySync({ name: "net", host: address }).state !== "granted") {
    throw new Deno.errors.NotCapable(`Requires net access to "${address}"`);
  }
  const socket = dgram.createSocket(isIP(hostname) === 6 ? "udp6" : "udp4");
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  socket.once("error", (error: NodeJS.ErrnoException) => {
    reject(error.code === "EADDRINUSE" ? new Deno.errors.AddrInUse("Address already in use") : error);
  });
  try {
    socket.bind({ address: hostname, port, exclusive: true }, resolve);
    await promise;
    return new UdpSocket(socket);
  } catch (error) {
    socket.close();
    throw error;
  }
}

/** A socket for the datagrams of many sources, with its address as text, which begins with `udp:`. */
export class UdpListening {
  readonly addr: string;
  readonly socket: UdpSocket;

  constructor(socket: UdpSocket) {
    this.socket = socket;
    this.addr = `${UDP}${format(socket.localAddr)}`;
  }

  /** Settles when the address is free again, after `close`. */
  get closed(): Promise<void> {
    return this.socket.closed;
  }

  /** Stops receiving. Closing again has no effect. */
  close(): void {
    this.socket.close();
  }
}

/** Listens for datagrams. */
export async function listenUdp({ hostname, port }: UdpAddress): Promise<UdpListening> {
  try {
    const [address] = await resolve(hostname, AbortSignal.timeout(CONNECT_TIMEOUT));
    return new UdpListening(await bindUdp({ hostname: address!, port }));
  } catch (error) {
    throw wrapError(`Cannot listen on ${UDP}${format({ hostname, port })}`, error);
  }
}

/** A socket for the datagrams of one peer; those of others are dropped. */
export class UdpPeer {
  readonly #socket: UdpSocket;
  readonly #to: UdpAddress;

  constructor(socket: UdpSocket, to: UdpAddress) {
    this.#socket = socket;
    this.#to = to;
  }

  /** Passes each datagram of the peer to a function. */
  receive(receiver: (datagram: Uint8Array) => void): void {
    // Sockets of `node:dgram` are not connected in the kernel, not even by `connect`: any host could send.
    this.#socket.receive((datagram, { hostname, port }) => {
      if (port === this.#to.port && hostname === this.#to.hostname) receiver(datagram);
    });
  }

  /** Sends a datagram as `UdpSocket.send` does. */
  send(datagram: Uint8Array): Promise<boolean> {
    return this.#socket.send(datagram, this.#to);
  }

  /** Closes the socket. Closing again has no effect. */
  close(): void {
    this.#socket.close();
  }
}

/** How to find a target. */
interface DialOptions {
  /** Milliseconds until resolving fails. Default: 10 000. */
  connectTimeout?: number | undefined;
  /** The only addresses to send to. Default: those of the host. */
  addresses?: readonly string[] | undefined;
}

/** Makes a socket for the datagrams of a target. Whether it receives them cannot be known. */
export async function dialUdp(
  to: string,
  by: { closed: Promise<void> } | AbortSignal,
  { connectTimeout = CONNECT_TIMEOUT, addresses }: DialOptions = {},
): Promise<UdpPeer> {
  const { hostname, port } = udpEndpoint(parseEndpoint("target", to, 1));
  const gone = new AbortController();
  const off = by instanceof AbortSignal ? onAbort(by, (reason) => gone.abort(reason)) : () => {};
  if (!(by instanceof AbortSignal)) by.closed.catch((error) => gone.abort(error));
  try {
    const found = addresses ??
      await withTimeout("resolving", connectTimeout, gone.signal, (signal) => resolve(hostname, signal));
    // A service of this machine often has IPv4 only, and a datagram that is lost reports nothing.
    const address = found.find((address) => isIP(address) === 4) ?? found[0]!;
    // `node:dgram` would report it too, but it needs another descriptor for that.
    if (!hasFree(1)) throw new Error("too many open files");
    const socket = await bindUdp({ hostname: anyAddress(address), port: 0 });
    return new UdpPeer(socket, { hostname: ANSWERING[address] ?? address, port });
  } catch (error) {
    gone.signal.throwIfAborted();
    throw wrapError(`Cannot send to ${UDP}${format({ hostname, port })}`, error);
  } finally {
    off();
  }
}

// Datagrams to an unspecified address reach this machine, which answers from another one.
const ANSWERING: Record<string, string> = { "0.0.0.0": "127.0.0.1", "::": "::1" };

/** Returns the address to send from: on this machine no other can send to it. */
function anyAddress(to: string): string {
  if (isIP(to) === 6) return to === "::1" ? to : "::";
  return /^127\./.test(to) ? "127.0.0.1" : "0.0.0.0";
}

/** Checks that an endpoint is not a Unix socket. */
export function udpEndpoint(endpoint: Endpoint): UdpAddress {
  if (endpoint.path !== undefined) throw new RangeError(`${UDP} requires HOST:PORT, received unix:${endpoint.path}`);
  return endpoint;
}
