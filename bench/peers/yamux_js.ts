/**
 * yamux-js of npm over Node's sockets, used as its readme shows: `socket.pipe(session).pipe(socket)`.
 *
 * It loses a frame that arrives in two pieces and ignores FIN, so only workloads of single small messages succeed.
 *
 * @module
 */

import { type AddressInfo, connect, createServer } from "node:net";
import type { Duplex } from "node:stream";
import { Client, Server } from "npm:yamux-js@0.2.0";
import { fromDuplex } from "./duplex.ts";
import type { Peer } from "./shape.ts";

const OPTIONS = {
  // Raised, because it limits open streams and a workload exceeds the default.
  acceptBacklog: 16_384,
  // By default it logs to stdout, which carries the results.
  logger: () => {},
};

/** Wraps a stream, which only its own method `close()` ends, not `end()`. */
const pipe = (stream: Duplex & { close?: () => void }) => {
  const close = () => stream.close?.();
  return { ...fromDuplex(stream, close), closeWrite: () => Promise.resolve(close()) };
};

/** Yamux by yamux-js. */
export const yamuxJs: Peer = {
  streamIsConnection: false,
  connect(port) {
    return new Promise((resolve, reject) => {
      const socket = connect({ host: "127.0.0.1", port, noDelay: true });
      socket.once("error", reject);
      socket.once("connect", () => {
        const session = new Client(OPTIONS);
        socket.pipe(session).pipe(socket);
        resolve({ open: () => Promise.resolve(pipe(session.open())) });
      });
    });
  },
  serve(handle) {
    const server = createServer({ noDelay: true }, (socket) => {
      const session = new Server((stream) => handle(pipe(stream)), OPTIONS);
      // A client is killed when it has its result, which resets its connections.
      socket.on("error", () => {});
      socket.pipe(session).pipe(socket);
    });
    return new Promise((resolve) =>
      server.listen(0, "127.0.0.1", () => resolve((server.address() as AddressInfo).port))
    );
  },
};
