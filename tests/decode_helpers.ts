/** Decoding for tests: the output of a decoder as text, and ways to cut its input. */

import { FrameDecoder, type FrameSink, ProtocolError, type Version } from "../frame.ts";

/** The output of a decoder. */
export interface Decoded {
  /** One line for each frame, as in `PSH 3 length 5 at 8: 68656c6c6f`, and one for an adopted version. */
  lines: string[];
  /** The error of the decoder. */
  error: ProtocolError | undefined;
  decoder: FrameDecoder;
}

/** A sink that adds a line for each call. */
export function recorder(decoder: FrameDecoder, lines: string[]): FrameSink {
  const add = (text: string) => void lines.push(`${text} at ${decoder.frameOffset}`);
  return {
    begin: (version) => void lines.push(`version ${version}`),
    syn: (id) => add(`SYN ${id}`),
    fin: (id) => add(`FIN ${id}`),
    nop: (id) => add(`NOP ${id}`),
    upd: (id, consumed, window) => add(`UPD ${id} consumed ${consumed} window ${window}`),
    psh: (id, length) => {
      add(`PSH ${id} length ${length}`);
      lines.push(`${lines.pop()}: `);
    },
    data: (bytes, start, end) => {
      if (end <= start) throw new Error("data() was called without bytes");
      lines.push(lines.pop() + bytes.subarray(start, end).toHex());
    },
  };
}

/** Decodes chunks up to their end or the first error. */
export function decode(chunks: Iterable<Uint8Array>, version?: Version): Decoded {
  const decoder = new FrameDecoder(version);
  const lines: string[] = [];
  const sink = recorder(decoder, lines);
  try {
    for (const chunk of chunks) {
      // The chunk is overwritten after the call, as a read buffer is, so the decoder must not refer to it.
      const buffer = chunk.slice();
      decoder.push(buffer, sink);
      buffer.fill(0xee);
    }
  } catch (error) {
    if (!(error instanceof ProtocolError)) throw error;
    return { lines, error, decoder };
  }
  return { lines, error: undefined, decoder };
}

/** The bytes in one piece, cut in two at each place, with an empty piece too, and one by one. */
export function* chunkings(bytes: Uint8Array): Generator<Uint8Array[]> {
  yield [bytes];
  for (let at = 0; at <= bytes.length; at++) yield [bytes.subarray(0, at), bytes.subarray(at)];
  yield oneByOne(bytes);
}

/** One array for each byte. */
export function oneByOne(bytes: Uint8Array): Uint8Array[] {
  return Array.from(bytes, (byte) => Uint8Array.of(byte));
}
