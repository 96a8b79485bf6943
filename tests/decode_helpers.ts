/** Decoding as tests look at it: what came out of a decoder, and every way to cut what goes in. */

import { FrameDecoder, type FrameSink, ProtocolError, type Version } from "../frame.ts";

/** What a decoder made of its input. */
export interface Decoded {
  /** One line for each frame, as in `PSH 3 length 5 at 8: 68656c6c6f`, and one for the version where it was open. */
  lines: string[];
  /** What it threw. */
  error: ProtocolError | undefined;
  decoder: FrameDecoder;
}

/** A sink that writes down all it gets. */
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
      if (end <= start) throw new Error("Data of no bytes was handed over");
      lines.push(lines.pop() + bytes.subarray(start, end).toHex());
    },
  };
}

/** Decodes chunks up to the end or to the error. */
export function decode(chunks: Iterable<Uint8Array>, version?: Version): Decoded {
  const decoder = new FrameDecoder(version);
  const lines: string[] = [];
  const sink = recorder(decoder, lines);
  try {
    for (const chunk of chunks) {
      // Overwritten afterwards, as a read buffer is: nothing of it may have been kept.
      const lent = chunk.slice();
      decoder.push(lent, sink);
      lent.fill(0xee);
    }
  } catch (error) {
    if (!(error instanceof ProtocolError)) throw error;
    return { lines, error, decoder };
  }
  return { lines, error: undefined, decoder };
}

/** The bytes in one piece, cut in two at every place (an empty piece among them), and one by one. */
export function* chunkings(bytes: Uint8Array): Generator<Uint8Array[]> {
  yield [bytes];
  for (let at = 0; at <= bytes.length; at++) yield [bytes.subarray(0, at), bytes.subarray(at)];
  yield oneByOne(bytes);
}

/** The bytes one by one. */
export function oneByOne(bytes: Uint8Array): Uint8Array[] {
  return Array.from(bytes, (byte) => Uint8Array.of(byte));
}
