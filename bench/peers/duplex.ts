/**
 * Adapts Node's streams to pipes.
 *
 * @module
 */

import type { Duplex } from "node:stream";
import { Inbox } from "./inbox.ts";
import type { Pipe } from "./shape.ts";

/** Wraps a stream as a pipe. */
export function fromDuplex(duplex: Duplex, close: () => void): Pipe {
  const inbox = new Inbox(() => duplex.pause(), () => duplex.resume());
  duplex.on("data", (chunk: Uint8Array) => inbox.push(chunk));
  duplex.on("end", () => inbox.end());
  duplex.on("error", (error) => inbox.end({ error }));
  duplex.on("close", () => inbox.end({ error: new Error("the stream was closed before its end") }));
  const drained = () =>
    new Promise<void>((resolve, reject) => {
      const settle = () => {
        duplex.off("drain", settle).off("close", settle);
        if (duplex.destroyed) reject(new Error("the stream was closed before all data was written"));
        else resolve();
      };
      duplex.on("drain", settle).on("close", settle);
    });
  return {
    read: (p) => inbox.read(p),
    async write(p) {
      // A copy, because Node keeps the chunk until it is sent.
      if (!duplex.write(p.slice())) await drained();
      return p.length;
    },
    closeWrite: () => new Promise((resolve) => duplex.end(resolve)),
    close,
  };
}
