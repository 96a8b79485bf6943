/**
 * Serves UDP ASSOCIATE of SOCKS 5 (RFC 1928): datagrams with a header that contains their target.
 *
 * @module
 */

import type { Stream } from "../mod.ts";
import type { Route } from "./accounting.ts";
import type { Activity } from "./activity.ts";
import { canonical, format, parseEndpoint } from "./address.ts";
import { printable, writeAll } from "./bytes.ts";
import { wrapError } from "./errors.ts";
import { bytesOf } from "./proxy_protocol.ts";
import type { Socket } from "./socket.ts";
import { Flows } from "./udp_flows.ts";
import { bindUdp, type UdpAddress, type UdpSocket } from "./udp_socket.ts";
import { onAbort } from "./wait.ts";

/** Targets of one client at the same time. Larger: programs with many peers; smaller: less that a client can occupy. */
export const MAX_TARGETS = 256;

const VERSION = 5;

// Address types.
const IPV4 = 1;
const NAME = 3;
const IPV6 = 4;

// Reply codes.
const SUCCEEDED = 0;
const FAILED = 1;
const COMMAND_NOT_SUPPORTED = 7;

// Bytes before the address: two zeros, the number of the fragment, the type of the address.
const HEADER = 4;

/** Splits a datagram of a SOCKS client; `undefined` for one that is malformed, or a fragment. */
export function decodeSocksDatagram(datagram: Uint8Array): { target: string; payload: Uint8Array } | undefined {
  const [, , fragment, type, length = 0] = datagram;
  if (fragment !== 0) return undefined;
  const start = type === NAME ? HEADER + 1 : HEADER;
  const end = start + (type === IPV4 ? 4 : type === IPV6 ? 16 : length);
  if (![IPV4, NAME, IPV6].includes(type!) || datagram.length < end + 2) return undefined;
  const address = datagram.subarray(start, end);
  const hostname = type === IPV4
    ? address.join(".")
    : type === IPV6
    ? canonical(address.toHex().match(/.{4}/g)!.join(":"))
    : printable(String.fromCharCode(...address));
  const target = format({ hostname, port: datagram[end]! * 256 + datagram[end + 1]! });
  try {
    parseEndpoint("SOCKS target", target, 1);
  } catch {
    return undefined;
  }
  return { target, payload: datagram.subarray(end + 2) };
}

/** Returns the type and the bytes of a host, and its port, as SOCKS writes them. */
function encodeAddress({ hostname, port }: UdpAddress): number[] {
  const address = bytesOf(hostname);
  const host = address === undefined
    ? [NAME, hostname.length, ...new TextEncoder().encode(hostname)]
    : [address.length === 4 ? IPV4 : IPV6, ...address];
  return [...host, port >> 8, port & 255];
}

/** Puts the address that a datagram comes from in front of it. */
export function encodeSocksDatagram(from: string, payload: Uint8Array): Uint8Array {
  const header = [0, 0, 0, ...encodeAddress(parseEndpoint("SOCKS target", from, 1) as UdpAddress)];
  const datagram = new Uint8Array(header.length + payload.length);
  datagram.set(header);
  datagram.set(payload, header.length);
  return datagram;
}

/** How the datagrams of a client are forwarded. */
interface AssociateOptions {
  /** Opens the stream of a target. */
  connect: (target: string) => Promise<Stream>;
  /** What the targets have in common, for events and sums. */
  route: Pick<Route, "kind" | "user" | "forward">;
  /** Ends the association on abort. */
  signal: AbortSignal;
  /** Returns the milliseconds without a datagram after which a target is forgotten. */
  timeout: () => number;
}

/** Forwards the datagrams of a SOCKS client that has requested it, until its connection ends. */
export async function associate(activity: Activity, client: Socket, options: AssociateOptions): Promise<void> {
  const { connect, route, signal, timeout } = options;
  const socket = await bindFor(client);
  let source: UdpAddress | undefined;
  const flows = new Flows(activity, {
    max: MAX_TARGETS,
    timeout,
    open: async (target) => ({ stream: await connect(target), route: { ...route, from: format(source!), to: target } }),
    deliver: (target, datagram) => socket.send(encodeSocksDatagram(target, datagram), source!),
  });
  const host = canonical((client.remoteAddr as Deno.NetAddr).hostname);
  socket.receive((datagram, from) => {
    const isKnown = source === undefined ? from.hostname === host : format(source) === format(from);
    const found = isKnown ? decodeSocksDatagram(datagram) : undefined;
    if (found === undefined) return void activity.datagrams.dropped++;
    source ??= from;
    flows.push(found.target, found.payload);
  });
  const off = onAbort(signal, () => client[Symbol.dispose]());
  try {
    await writeAll(client, new Uint8Array([VERSION, SUCCEEDED, 0, ...encodeAddress(socket.localAddr)]));
    // The client sends nothing more: its end is that of the association.
    const p = new Uint8Array(64);
    while (await client.read(p) !== null);
  } catch {
    // The connection is reset or closed, which ends the association, too.
  } finally {
    off();
    socket.close();
    await socket.closed;
    await flows.close();
  }
}

/** Binds a socket at the address that a client has connected to. */
async function bindFor(client: Socket): Promise<UdpSocket> {
  const reply = (code: number) =>
    writeAll(client, new Uint8Array([VERSION, code, 0, IPV4, 0, 0, 0, 0, 0, 0])).catch(() => {});
  if (!("hostname" in client.localAddr)) {
    await reply(COMMAND_NOT_SUPPORTED);
    throw new Error("SOCKS UDP ASSOCIATE requires a client that has connected over TCP");
  }
  try {
    return await bindUdp({ hostname: canonical(client.localAddr.hostname), port: 0 });
  } catch (error) {
    await reply(FAILED);
    throw wrapError("Cannot serve SOCKS UDP ASSOCIATE", error);
  }
}
