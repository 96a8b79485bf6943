/**
 * HTTP/2 by `node:http2`: a POST is a stream, and its two bodies are the two directions.
 *
 * @module
 */

import http2 from "node:http2";
import type { AddressInfo } from "node:net";
import { fromDuplex } from "./duplex.ts";
import type { Peer, Pipe } from "./shape.ts";

/** HTTP/2 with this window for each stream and connection (default: 64 KiB). */
export function overHttp2(window?: number): Peer {
  const options = window === undefined ? {} : { settings: { initialWindowSize: window } };
  const widen = (session: http2.Http2Session) => {
    if (window !== undefined) session.setLocalWindowSize(window);
  };
  const pipe = (stream: http2.Http2Stream): Pipe => fromDuplex(stream, () => stream.end());
  return {
    streamIsConnection: false,
    connect(port) {
      const session = http2.connect(`http://127.0.0.1:${port}`, options);
      return new Promise((resolve, reject) => {
        session.once("error", reject);
        session.once("connect", () => {
          widen(session);
          const headers = { ":method": "POST", ":path": "/" };
          resolve({ open: () => Promise.resolve(pipe(session.request(headers, { endStream: false }))) });
        });
      });
    },
    serve(handle) {
      const server = http2.createServer(options);
      server.on("session", widen);
      server.on("stream", (stream) => {
        stream.respond({ ":status": 200 });
        handle(pipe(stream));
      });
      return new Promise((resolve) =>
        server.listen(0, "127.0.0.1", () => resolve((server.address() as AddressInfo).port))
      );
    },
  };
}
