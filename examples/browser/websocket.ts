/**
 * A WebSocket as the pair of streams that a session runs over, for the server and for every browser: `WebSocketStream`,
 * which would need none of this, is in Chromium and in Deno only.
 *
 * @module
 */

/** Makes the streams; the session that gets them closes the socket. */
export function webSocketStreams(socket: WebSocket) {
  socket.binaryType = "arraybuffer";
  return {
    // A WebSocket cannot be asked to wait, so this stream takes whatever comes. What bounds it are the windows of the
    // session's streams: a peer that speaks version 2 sends no more of a stream than was read of it and its window.
    readable: new ReadableStream<Uint8Array | string>({
      start(controller) {
        // Text, which no session sends, ends this one with an error.
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
