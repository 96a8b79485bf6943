/**
 * Sluice, with the options that everybody gets.
 *
 * @module
 */

import { Session } from "../../mod.ts";
import type { Peer } from "./shape.ts";

/** Sluice in this version of smux. */
export const ours = (version: 1 | 2): Peer => ({
  streamIsConnection: false,
  async connect(port) {
    const session = Session.client(await Deno.connect({ hostname: "127.0.0.1", port }), { version });
    return { open: () => session.openStream() };
  },
  serve(handle) {
    const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    (async () => {
      for await (const conn of listener) {
        // The limits that a workload exceeds: ten thousand streams opened in one go.
        const session = Session.server(conn, { version, maxStreams: 16_384, acceptBacklog: 16_384 });
        (async () => {
          for await (const stream of session) handle(stream);
        })();
      }
    })();
    return listener.addr.port;
  },
});
