/**
 * The baseline: Deno's socket, one for each stream.
 *
 * @module
 */

import type { Peer } from "./shape.ts";

/** The bare socket. */
export const bare: Peer = {
  streamIsConnection: true,
  connect: (port) =>
    Promise.resolve({
      async open() {
        const conn = await Deno.connect({ hostname: "127.0.0.1", port });
        conn.setNoDelay();
        return conn;
      },
    }),
  serve(handle) {
    // A client may connect ten thousand times at once.
    const listener = Deno.listen({ hostname: "127.0.0.1", port: 0, tcpBacklog: 4096 });
    (async () => {
      for await (const conn of listener) {
        conn.setNoDelay();
        handle(conn);
      }
    })();
    return listener.addr.port;
  },
};
