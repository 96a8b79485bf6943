/**
 * The multiplexers of js-libp2p, over Deno's sockets.
 *
 * @module
 */

import type { MessageStreamDirection, Stream, StreamMuxerFactory } from "npm:@libp2p/interface@3.3.0";
import { defaultLogger } from "npm:@libp2p/logger@6.2.13";
import { mplex } from "npm:@libp2p/mplex@12.0.32";
import { AbstractMessageStream, type SendResult } from "npm:@libp2p/utils@7.4.1";
import { yamux } from "npm:@libp2p/yamux@8.0.3";
import { concat } from "@std/bytes";
import { Inbox } from "./inbox.ts";
import type { Peer, Pipe } from "./shape.ts";

// The size of Sluice's write buffer.
const WRITE_BUFFER = 256 * 1024;

/** Adapts a socket to libp2p: data sent during a pending write is sent together with the next. */
class Connection extends AbstractMessageStream {
  readonly #conn: Deno.TcpConn;
  #parts: Uint8Array[] = [];
  #size = 0;
  #isWriting = false;

  constructor(conn: Deno.TcpConn, direction: MessageStreamDirection) {
    super({ direction, log: defaultLogger().forComponent("sluice:peer") });
    this.#conn = conn;
    conn.setNoDelay();
    this.#read();
  }

  sendData(data: Iterable<Uint8Array> & { byteLength: number }): SendResult {
    const sentBytes = data.byteLength;
    this.#parts.push(...data);
    this.#size += sentBytes;
    if (!this.#isWriting) this.#write();
    return { sentBytes, canSendMore: this.#size < WRITE_BUFFER };
  }

  sendReset(): void {
    this.#conn.close();
  }

  sendPause(): void {
    // No multiplexer pauses its connection.
  }

  sendResume(): void {
  }

  close(): Promise<void> {
    this.#conn.close();
    return Promise.resolve();
  }

  async #read(): Promise<void> {
    try {
      for (;;) {
        // A new buffer each time, because libp2p keeps views of it.
        const p = new Uint8Array(64 * 1024);
        const count = await this.#conn.read(p);
        if (count === null) return this.onTransportClosed();
        this.onData(p.subarray(0, count));
      }
    } catch (error) {
      this.onTransportClosed(new Error("cannot read", { cause: error }));
    }
  }

  async #write(): Promise<void> {
    this.#isWriting = true;
    try {
      // "drain" is dispatched when nothing is left, or during the last write.
      while (this.#size > 0) {
        let bytes = concat(this.#parts);
        this.#parts = [];
        this.#size = 0;
        if (this.writableNeedsDrain) this.dispatchEvent(new Event("drain"));
        while (bytes.length > 0) bytes = bytes.subarray(await this.#conn.write(bytes));
      }
    } catch (error) {
      this.onTransportClosed(new Error("cannot write", { cause: error }));
    }
    this.#isWriting = false;
    if (this.writableNeedsDrain) this.dispatchEvent(new Event("drain"));
  }
}

/** Wraps a stream of libp2p as a pipe. */
class StreamPipe implements Pipe {
  readonly #stream: Stream;
  readonly #inbox: Inbox;
  #writer: PromiseWithResolvers<void> | undefined;

  constructor(stream: Stream) {
    this.#stream = stream;
    this.#inbox = new Inbox(() => stream.pause(), () => {
      if (stream.readStatus === "paused") stream.resume();
    });
    stream.addEventListener("message", ({ data }) => {
      if (data instanceof Uint8Array) this.#inbox.push(data);
      else for (const part of data) this.#inbox.push(part);
    });
    stream.addEventListener("end", () => this.#inbox.end());
    stream.addEventListener("drain", () => this.#writer?.resolve());
    stream.addEventListener("close", ({ error }) => {
      const reason = error ?? new Error("the stream was closed before its end");
      this.#inbox.end({ error: reason });
      this.#writer?.reject(reason);
    });
  }

  read(p: Uint8Array): Promise<number | null> {
    return this.#inbox.read(p);
  }

  async write(p: Uint8Array): Promise<number> {
    // A copy, because libp2p keeps the chunk until it is sent.
    this.#stream.send(p.slice());
    // Not `onDrain()`, which waits only once.
    while (this.#stream.writableNeedsDrain) {
      this.#writer = Promise.withResolvers();
      await this.#writer.promise;
    }
    return p.length;
  }

  closeWrite(): Promise<void> {
    return this.#stream.close();
  }

  close(): void {
    this.#stream.close().catch(() => {});
  }
}

const overLibp2p = (factory: () => StreamMuxerFactory): Peer => ({
  streamIsConnection: false,
  async connect(port) {
    const conn = await Deno.connect({ hostname: "127.0.0.1", port });
    const muxer = factory().createStreamMuxer(new Connection(conn, "outbound"));
    return { open: async () => new StreamPipe(await muxer.createStream()) };
  },
  serve(handle) {
    const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    (async () => {
      for await (const conn of listener) {
        const muxer = factory().createStreamMuxer(new Connection(conn, "inbound"));
        muxer.addEventListener("stream", ({ detail }) => handle(new StreamPipe(detail)));
      }
    })();
    return listener.addr.port;
  },
});

/** Yamux, with its limits raised: a workload exceeds the default of 1000 streams. */
export const libp2pYamux: Peer = overLibp2p(yamux({ maxInboundStreams: 16_384, maxOutboundStreams: 16_384 }));

/** Mplex, which has no flow control; by default it closes a connection that opens more than five streams per second. */
export const libp2pMplex: Peer = overLibp2p(mplex({ disconnectThreshold: Infinity }));
