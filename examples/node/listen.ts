/**
 * A listener of `node:net` for `serve` and `connections`, in Deno, Node and Bun.
 *
 * @module
 */
import { once } from "node:events";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { type Listener, unbounded } from "@sluice/smux";

/** A listener whose connections are sockets of Node. */
export interface NodeListener extends Listener<Socket> {
  /** The port, also if 0 was asked for. */
  readonly port: number;
}

/** Listens on a port; rejects if the port is in use. */
export async function listen(port: number, hostname = "127.0.0.1"): Promise<NodeListener> {
  const { sender, receiver } = unbounded<Socket>();
  // Half-open, so that the end of one direction of a joined connection does not end the other.
  const server = createServer({ allowHalfOpen: true }, (socket) => void sender.trySend(socket));
  server.listen(port, hostname);
  await once(server, "listening");
  return {
    port: (server.address() as AddressInfo).port,
    async accept() {
      try {
        return await receiver.receive();
      } catch (error) {
        // The name of the error by which `connections` recognizes a closed listener.
        throw Object.assign(new Error("The listener is closed", { cause: error }), { name: "Interrupted" });
      }
    },
    close() {
      server.close();
      sender.close();
    },
  };
}
