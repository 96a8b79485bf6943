/**
 * Measures the throughput of one stream between client and server: the request MEASURE.
 *
 * @module
 */

import type { Session, Stream } from "../mod.ts";
import { encoder, writeAll } from "./bytes.ts";
import { type Credentials, request } from "./handshake.ts";
import { setDeadline } from "./wait.ts";

// Bytes of one measurement. Larger: more accurate on fast links; smaller: less load.
const MAX_BYTES = 64_000_000;

// Milliseconds of one measurement. Larger: more accurate on slow links; smaller: less load.
const MAX_TIME = 2000;

// Milliseconds after which a measurement is cut. Larger: tolerates slower links; smaller: a peer that stalls holds its
// stream for less time.
const TIME_LIMIT = 10_000;

const CHUNK = 64 * 1024;

/** What is measured, from the client's point of view: the address of the request. */
export type Direction = "download" | "upload";

/** Whether the address of a request MEASURE is valid. */
export function isDirection(address: string): address is Direction {
  return address === "download" || address === "upload";
}

/** Received bytes, and the milliseconds from the first to the last. */
export interface Throughput {
  bytes: number;
  duration: number;
}

/** Runs a task; closes the stream when that lasts too long. */
async function limited<T>(stream: Stream, task: Promise<T>): Promise<T> {
  const clear = setDeadline(() => stream.close(), TIME_LIMIT);
  try {
    return await task;
  } finally {
    clear();
  }
}

/** Sends random bytes until one of the limits is reached, or `isDone` returns true. */
async function send(stream: Stream, isDone = () => false): Promise<void> {
  // Devices that compress must not make a link look faster.
  const chunk = crypto.getRandomValues(new Uint8Array(CHUNK));
  const began = performance.now();
  for (let sent = 0; sent < MAX_BYTES && performance.now() - began < MAX_TIME && !isDone(); sent += CHUNK) {
    await writeAll(stream, chunk);
  }
}

/** Receives bytes until one of the limits is reached, or the peer ends. */
async function receive(stream: Stream): Promise<Throughput> {
  const p = new Uint8Array(CHUNK);
  // The time until the first bytes is that of the request.
  let last = await stream.read(p) === null ? NaN : performance.now();
  const began = last;
  let bytes = 0;
  while (bytes < MAX_BYTES && last - began < MAX_TIME) {
    const count = await stream.read(p);
    if (count === null) break;
    bytes += count;
    last = performance.now();
  }
  return { bytes, duration: last - began };
}

/** Serves a request MEASURE that is accepted. Ends within a bounded time. */
export async function serveMeasure(stream: Stream, direction: Direction): Promise<void> {
  const serve = async () => {
    if (direction === "download") {
      await send(stream);
      await stream.closeWrite();
      // Until the client closes: bytes that it has not received yet must not be lost.
      await stream.read(new Uint8Array(1));
    } else {
      const { bytes, duration } = await receive(stream);
      await writeAll(stream, encoder.encode(`${bytes} ${duration}\n`));
      await stream.closeWrite();
    }
  };
  try {
    await limited(stream, serve());
  } finally {
    stream.close();
  }
}

/**
 * Measures the throughput of one stream of a session.
 *
 * @throws {TunnelRefusedError} The server does not measure.
 * @throws {Error} The measurement was cut.
 */
export async function measure(session: Session, direction: Direction, by: Credentials): Promise<Throughput> {
  const { stream } = await request(session, "MEASURE", direction, by);
  try {
    const { bytes, duration } = await limited(
      stream,
      direction === "download" ? receive(stream) : upload(stream),
    );
    if (duration > 0) return { bytes, duration };
    throw new Error("too few bytes arrived to measure");
  } finally {
    stream.close();
  }
}

/** Sends until the server has measured. */
async function upload(stream: Stream): Promise<Throughput> {
  let isDone = false;
  const sending = send(stream, () => isDone).then(() => stream.closeWrite());
  // The read fails too, with the same error.
  sending.catch(() => {});
  const decoder = new TextDecoder();
  let line = "";
  const p = new Uint8Array(64);
  for (let count; !line.endsWith("\n") && (count = await stream.read(p)) !== null;) {
    line += decoder.decode(p.subarray(0, count), { stream: true });
  }
  isDone = true;
  const [, bytes, duration] = /^(\d+) (\d+(?:\.\d+)?)\n$/.exec(line) ?? [];
  return { bytes: Number(bytes ?? 0), duration: Number(duration ?? 0) };
}
