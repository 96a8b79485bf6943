/** UDP sockets for tests, over those of Deno: the tunnel uses those of Node. */

import { equals } from "@std/bytes";
import { at, parse } from "./tunnel_support.ts";

/** A bound socket of a test. */
export interface TestSocket extends Disposable {
  addr: string;
  /** Sends a datagram. */
  send(data: Uint8Array, to: string): Promise<void>;
  /** Receives a datagram. */
  receive(): Promise<{ data: Uint8Array; from: string }>;
}

/** Binds a socket. */
export function bind(hostname = "127.0.0.1", port = 0): TestSocket {
  const socket = Deno.listenDatagram({ transport: "udp", hostname, port });
  const send = async (data: Uint8Array, to: string) => {
    await socket.send(data, { transport: "udp", ...parse(to.replace(/^udp:/, "")) });
  };
  const receive = async () => {
    const [data, from] = await socket.receive(new Uint8Array(65_536));
    return { data: data.slice(), from: at(from as Deno.NetAddr) };
  };
  return { addr: at(socket.addr as Deno.NetAddr), send, receive, [Symbol.dispose]: () => socket.close() };
}

/** Starts a target that answers each datagram with what `answer` returns; by default with the same. */
export function makeUdpTarget(
  answer: (data: Uint8Array, from: string) => Uint8Array | undefined = (data) => data,
  hostname?: string,
): AsyncDisposable & { addr: string; sources: string[] } {
  const socket = bind(hostname);
  const sources: string[] = [];
  const answering = (async () => {
    for (;;) {
      const { data, from } = await socket.receive();
      if (!sources.includes(from)) sources.push(from);
      const answered = answer(data, from);
      if (answered !== undefined) await socket.send(answered, from);
    }
  })().catch(() => {});
  const dispose = async () => {
    socket[Symbol.dispose]();
    await answering;
  };
  return { addr: socket.addr, sources, [Symbol.asyncDispose]: dispose };
}

/**
 * Sends a datagram and receives its answer, by default the same bytes. A datagram may be lost on a busy machine, so it
 * is sent again each second; late answers to what was sent again before are skipped.
 */
export async function ask(
  socket: TestSocket,
  data: Uint8Array,
  to: string,
  expected: Uint8Array = data,
): Promise<Uint8Array> {
  const receive = async () => {
    for (;;) {
      const received = (await socket.receive()).data;
      if (equals(received, expected)) return received;
    }
  };
  const receiving = receive();
  await socket.send(data, to);
  const timer = setInterval(() => socket.send(data, to), 1000);
  return await receiving.finally(() => clearInterval(timer));
}

/** Returns the answer of a DNS server that knows one address for every name; `undefined` for anything but a query. */
export function answerDns(query: Uint8Array): Uint8Array | undefined {
  let end = 12;
  while (end < query.length && query[end] !== 0) end += query[end]! + 1;
  end += 5;
  if (query.length < end) return undefined;
  const flags = [0x81, 0x80];
  const counts = [0, 1, 0, 1, 0, 0, 0, 0];
  // The name of the question, type A, class IN, 60 seconds, 192.0.2.53.
  const record = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 53];
  return new Uint8Array([...query.subarray(0, 2), ...flags, ...counts, ...query.subarray(12, end), ...record]);
}
