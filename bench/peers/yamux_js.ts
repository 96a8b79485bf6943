/**
 * npm's yamux-js over Node's sockets, as its readme has it: `socket.pipe(session).pipe(socket)`.
 *
 * It keeps nothing of a frame that arrives in two pieces, nor does it see a FIN, so workloads that do more than single
 * small messages fail.
 *
 * @module
 */

import { type AddressInfo, connect, createServer } from "node:net";
import type { Duplex } from "node:stream";
import { Client, Server } from "npm:yamux-js@0.2.0";
import { fromDuplex } from "./duplex.ts";
import type { Peer } from "./shape.ts";

const OPTIONS = {
  // The limit that a workload exceeds: it counts open streams.
  acceptBacklog: 16_384,
  // It logs to the standard output, which carries the results.
  logger: () => {},
};

/** A stream of its own kind has a method that ends it, which it does not do by `end()`. */
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
      // A client that has its result is ended, which resets its connections.
      socket.on("error", () => {});
      socket.pipe(session).pipe(socket);
    });
    return new Promise((resolve) =>
      server.listen(0, "127.0.0.1", () => resolve((server.address() as AddressInfo).port))
    );
  },
};
