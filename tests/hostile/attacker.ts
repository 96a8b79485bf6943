/**
 * The attacking peer: a socket that sends arbitrary bytes, and counts what it receives without storing it.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import { deadline } from "@std/async";
import { concat, repeat } from "@std/bytes";
import { setImmediate } from "node:timers/promises";
import { FIN, FrameDecoder, HEADER_LENGTH, PSH, SYN, UPD, type Version } from "../../frame.ts";
import { frame, KiB, pattern, updateFrame } from "../support.ts";

/** Timeout of every wait, in milliseconds. */
export const PATIENCE = 20_000;
/** Payload size of each frame of {@linkcode Attacker.pour}. */
export const PIECE = 32 * KiB;

/** Waits for a promise that must settle within {@linkcode PATIENCE}. */
export async function soon<T>(promise: Promise<T>, what: string): Promise<T> {
  try {
    return await deadline(promise, PATIENCE);
  } catch (error) {
    throw new Error(`Failed to wait for ${what}`, { cause: error });
  }
}

/** What one stream has received. */
export interface Heard {
  /** Payload bytes. */
  bytes: number;
  /** The payloads; only filled while `keeps` is set. */
  data: Uint8Array[];
  keeps: boolean;
  fins: number;
  updates: number;
  /** Frames after the first FIN. */
  late: number;
  consumed: number;
  window: number;
}

/** One hostile connection. */
export class Attacker {
  readonly #connection: Deno.TcpConn;
  readonly #decoder: FrameDecoder;
  readonly #streams = new Map<number, Heard>();
  readonly version: Version;
  /** The id of the stream that must keep working during the attack. */
  readonly canary: number;
  /** Received frames, by command. */
  readonly counts = [0, 0, 0, 0, 0];
  /** Received bytes. */
  received = 0;
  /** Bytes that the kernel accepted. */
  written = 0;
  /** Whether the victim has ended the connection. */
  isEnded = false;
  /** Settles when the victim has ended the connection. */
  readonly ended: Promise<void>;
  #changed = Promise.withResolvers<void>();
  #mayRead: PromiseWithResolvers<void> | undefined;
  #echoes = 0;

  private constructor(connection: Deno.TcpConn, version: Version, firstId: number) {
    this.#connection = connection;
    this.version = version;
    this.canary = firstId;
    this.#decoder = new FrameDecoder(version);
    connection.setNoDelay(true);
    this.ended = this.#readLoop();
  }

  /** Connects to the victim. */
  static async dial(port: number, version: Version, firstId: number): Promise<Attacker> {
    return new Attacker(await Deno.connect({ hostname: "127.0.0.1", port }), version, firstId);
  }

  async #readLoop(): Promise<void> {
    const p = new Uint8Array(256 * 1024);
    const sink = this.#sink();
    try {
      for (;;) {
        await this.#mayRead?.promise;
        const count = await this.#connection.read(p);
        if (count === null) break;
        this.received += count;
        this.#decoder.push(p.subarray(0, count), sink);
        this.#change();
        // Reads that never block would starve the sending side of this process.
        await setImmediate();
      }
    } catch (error) {
      // A reset counts as an end of the connection; received bytes that are not valid smux are a failure.
      if (error instanceof Error && error.name === "ProtocolError") throw error;
    } finally {
      this.isEnded = true;
      this.#change();
    }
  }

  #sink() {
    let current: Heard | undefined;
    const note = (command: number, id: number) => {
      this.counts[command]!++;
      current = this.#streams.get(id);
      if (current !== undefined && current.fins > 0) current.late++;
      return current;
    };
    return {
      begin() {},
      syn: (id: number) => void note(SYN, id),
      fin: (id: number) => {
        const heard = note(FIN, id);
        if (heard !== undefined) heard.fins++;
      },
      psh: (id: number) => void note(PSH, id),
      nop: () => void this.counts[3]!++,
      upd: (id: number, consumed: number, window: number) => {
        const heard = note(UPD, id);
        if (heard === undefined) return;
        heard.updates++;
        heard.consumed = consumed;
        heard.window = window;
      },
      data(bytes: Uint8Array, start: number, end: number) {
        if (current === undefined) return;
        current.bytes += end - start;
        if (current.keeps) current.data.push(bytes.slice(start, end));
      },
    };
  }

  #change(): void {
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }

  /** Returns the record of a stream; the first call starts it. */
  heard(id: number, keeps = false): Heard {
    let heard = this.#streams.get(id);
    if (heard === undefined) {
      heard = { bytes: 0, data: [], keeps, fins: 0, updates: 0, late: 0, consumed: 0, window: 0 };
      this.#streams.set(id, heard);
    }
    return heard;
  }

  /** Drops the record of a stream. */
  forget(id: number): void {
    this.#streams.delete(id);
  }

  /** Sends raw bytes; does nothing on a connection that the victim has ended. */
  async bytes(...parts: Uint8Array[]): Promise<void> {
    const all = parts.length === 1 ? parts[0]! : concat(parts);
    try {
      for (let at = 0; at < all.length;) {
        const count = await this.#connection.write(all.subarray(at));
        at += count;
        this.written += count;
      }
    } catch {
      // The case checks whether the connection had to end.
    }
  }

  /** Sends at least this many bytes of data on a stream; stops when the victim ends the connection. */
  async pour(id: number, bytes: number): Promise<void> {
    const piece = this.frame(PSH, id, pattern(PIECE));
    for (let sent = 0; sent < bytes && !this.isEnded; sent += PIECE) await this.bytes(piece);
  }

  /** Encodes a frame of the connection's version. */
  frame(command: 0 | 1 | 2 | 3 | 4, id: number, data?: Uint8Array): Uint8Array {
    return frame(this.version, command, id, data);
  }

  /** Encodes a UPD. */
  update(id: number, consumed: number, window: number): Uint8Array {
    return updateFrame(id, consumed, window);
  }

  /** Half-closes the connection. */
  async end(): Promise<void> {
    await this.#connection.closeWrite().catch(() => {});
  }

  /** Stops reading, after the read that is pending. */
  hold(): void {
    this.#mayRead ??= Promise.withResolvers();
  }

  /** Resumes reading. */
  resume(): void {
    this.#mayRead?.resolve();
    this.#mayRead = undefined;
  }

  /** Waits until received data makes `isDone` return true; rejects if the connection ends before. */
  async until(isDone: () => boolean, what: string): Promise<void> {
    const wait = async () => {
      while (!isDone()) {
        if (this.isEnded) throw new Error(`The connection ended before ${what}`);
        await this.#changed.promise;
      }
    };
    await soon(wait(), what);
  }

  /** Waits for the end of an echo, which must equal `data`. */
  async echoed(heard: Heard, data: Uint8Array, what = "the end of the echo"): Promise<void> {
    await this.until(() => heard.fins === 1, what);
    assertEquals(concat(heard.data), data, what);
  }

  /** Opens the canary and waits for its first echo. */
  async start(): Promise<void> {
    this.heard(this.canary, true);
    await this.bytes(this.frame(SYN, this.canary));
    await this.echo();
  }

  /** Has a few bytes echoed on the canary; returns the duration in milliseconds. */
  async echo(): Promise<number> {
    const heard = this.heard(this.canary);
    const sent = pattern(32, ++this.#echoes);
    const expected = heard.bytes + sent.length;
    heard.data = [];
    const started = performance.now();
    await this.bytes(this.frame(PSH, this.canary, sent));
    await this.until(() => heard.bytes >= expected, "the echo on the canary");
    assertEquals(concat(heard.data), sent);
    return performance.now() - started;
  }

  /** Waits for the victim to end the connection. */
  async gone(what: string): Promise<void> {
    await soon(this.ended, `the end of the connection: ${what}`);
  }

  /** Closes the connection; unread bytes make the kernel send a reset. */
  close(): void {
    this.resume();
    try {
      this.#connection.close();
    } catch {
      // Already closed.
    }
  }
}

/** Repeats `frames` `count` times, with stream ids `id`, `id + step`, `id + 2 * step` and so on. */
export function many(count: number, id: number, frames: Uint8Array, step = 2): Uint8Array {
  const all = repeat(frames, count);
  const view = new DataView(all.buffer);
  for (let n = 0; n < count; n++) {
    for (let at = 0; at < frames.length; at += HEADER_LENGTH + view.getUint16(n * frames.length + at + 2, true)) {
      view.setUint32(n * frames.length + at + 4, id + n * step, true);
    }
  }
  return all;
}
