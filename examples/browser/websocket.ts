/**
 * Adapts a WebSocket to the pair of streams that a session runs over, on the server and in any browser. Chromium and
 * Deno also have `WebSocketStream`, which needs no adapter.
 *
 * @module
 */

/** Creates the streams; the session that uses them closes the socket. */
export function webSocketStreams(socket: WebSocket) {
  socket.binaryType = "arraybuffer";
  return {
    // A WebSocket has no backpressure, so this stream queues every message. The windows of the session's streams bound
    // the queue: a peer of version 2 sends at most a window of unread bytes on each stream.
    readable: new ReadableStream<Uint8Array | string>({
      start(controller) {
        // A text message, which no session sends, fails the session.
        socket.onmessage = ({ data }) => controller.enqueue(typeof data === "string" ? data : new Uint8Array(data));
        socket.onclose = () => controller.close();
      },
      cancel() {
        socket.onmessage = socket.onclose = null;
        socket.close();
      },
    }),
    writable: new WritableStream<Uint8Array<ArrayBuffer>>({
      async start() {
        if (socket.readyState !== WebSocket.CONNECTING) return;
        await new Promise<void>((resolve) => socket.onopen = () => resolve());
      },
      write: (chunk) => socket.send(chunk),
      close: () => socket.close(),
      abort: () => socket.close(),
    }),
  };
}
