/**
 * Stand-in for `@std/streams` when JSR is not reachable: only the exports that this repository uses.
 *
 * @module
 */

/** Reads a stream to its end as text. */
export async function toText(stream: ReadableStream<string> | ReadableStream<Uint8Array>): Promise<string> {
  const decoder = new TextDecoder();
  let text = "";
  for await (const chunk of stream) text += typeof chunk === "string" ? chunk : decoder.decode(chunk, { stream: true });
  return text + decoder.decode();
}

/** Reads a stream to its end as bytes. */
export async function toArrayBuffer(readableStream: ReadableStream<Uint8Array>): Promise<ArrayBuffer> {
  return await new Response(readableStream as ReadableStream<Uint8Array<ArrayBuffer>>).arrayBuffer();
}

/** Merges streams: forwards chunks as they arrive, and ends when all streams have ended. */
export function mergeReadableStreams<T>(...streams: ReadableStream<T>[]): ReadableStream<T> {
  return new ReadableStream<T>({
    async start(controller) {
      await Promise.all(streams.map(async (stream) => {
        for await (const chunk of stream) controller.enqueue(chunk);
      }));
      controller.close();
    },
  });
}

/** Turns chunks of text into lines, without their `\n` or `\r\n`. */
export class TextLineStream extends TransformStream<string, string> {
  constructor() {
    let rest = "";
    super({
      transform(chunk, controller) {
        const lines = (rest + chunk).split(/\r?\n/);
        rest = lines.pop() ?? "";
        for (const line of lines) controller.enqueue(line);
      },
      flush(controller) {
        if (rest !== "") controller.enqueue(rest);
      },
    });
  }
}
