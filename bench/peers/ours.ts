/**
 * Sluice, with its default options.
 *
 * @module
 */

import { Session, SessionClosedError, type Stream } from "../../mod.ts";
import type { Peer } from "./shape.ts";

/** Sluice in this version of smux; `locked`: with a lock around accepting, so that only one task accepts at a time. */
export const ours = (version: 1 | 2, locked = false): Peer => ({
  streamIsConnection: false,
  async connect(port) {
    const session = Session.client(await Deno.connect({ hostname: "127.0.0.1", port }), { version });
    return { open: () => session.openStream() };
  },
  serve(handle, acceptors) {
    const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const take = async (accept: () => Promise<Stream>, acceptor: number) => {
      try {
        for (;;) handle(await accept(), acceptor);
      } catch (error) {
        if (!(error instanceof SessionClosedError)) throw error;
      }
    };
    (async () => {
      for await (const conn of listener) {
        // Raised, because a workload opens ten thousand streams at once.
        const session = Session.server(conn, { version, maxStreams: 16_384, acceptBacklog: 16_384 });
        const accept = () => session.acceptStream();
        const next = locked ? oneByOne(accept) : accept;
        for (let n = 0; n < acceptors; n++) take(next, n);
      }
    })();
    return listener.addr.port;
  },
});

/** Serializes calls: each begins when the one before has settled. */
function oneByOne<T>(call: () => Promise<T>): () => Promise<T> {
  let last: Promise<unknown> = Promise.resolve();
  return () => {
    const mine = last.then(call);
    // A failed call rejects for its caller, and releases the lock, too.
    last = mine.catch(() => {});
    return mine;
  };
}
