/**
 * Forwards the datagrams of one source over a stream. What cannot be sent at once waits in a bounded queue, whose oldest
 * datagram is dropped for a new one: as in a router, a datagram is late or lost, but never delays those behind it.
 *
 * @module
 */

import type { Stream } from "../mod.ts";
import type { Route } from "./accounting.ts";
import type { Activity } from "./activity.ts";
import { DatagramReader, encodeDatagram, MAX_DATAGRAM } from "./datagram.ts";
import { isReportedElsewhere, toError, wrapError } from "./errors.ts";
import { onAbort } from "./wait.ts";

/**
 * Milliseconds without a datagram after which a source is forgotten, by default. Larger: protocols with rare datagrams
 * keep their address at the target; smaller: less memory for sources that are gone.
 */
export const UDP_TIMEOUT = 60_000;

/** Datagrams of one source that wait. Larger: longer bursts survive; smaller: they are less late. */
export const MAX_QUEUE = 64;

/** Bytes of them. Larger: bursts of large datagrams survive; smaller: less memory for each source. */
export const MAX_QUEUE_BYTES = 256 * 1024;

/** Bytes that wait at one end of a tunnel. Larger: more sources can burst; smaller: less memory that they can occupy. */
export const MAX_ALL_BYTES = 32 * 1024 * 1024;

/** The datagrams of one source. */
export class Flow {
  /** When the last datagram has passed, or the flow was made. */
  activeAt = performance.now();
  readonly #activity: Activity;
  #queue: Uint8Array[] = [];
  /** Bytes in the queue. */
  #size = 0;
  #stream: Stream | undefined;
  #hasEnded = false;
  #changed = Promise.withResolvers<void>();
  /** Counts datagrams, from and to the peer, while the flow has a stream. */
  #forwarding: ReturnType<Activity["begin"]> | undefined;

  constructor(activity: Activity) {
    this.#activity = activity;
  }

  /** Sends a datagram to the peer, as soon as the stream has room. Never waits. */
  push(datagram: Uint8Array): void {
    this.activeAt = performance.now();
    if (this.#hasEnded || datagram.length > MAX_DATAGRAM) return this.#drop();
    const { datagrams } = this.#activity;
    while (
      this.#queue.length > 0 && (this.#queue.length >= MAX_QUEUE || this.#size + datagram.length > MAX_QUEUE_BYTES ||
        datagrams.queued + datagram.length > MAX_ALL_BYTES)
    ) {
      this.#shift();
      this.#drop();
    }
    if (datagrams.queued + datagram.length > MAX_ALL_BYTES) return this.#drop();
    this.#queue.push(datagram);
    this.#count(datagram.length);
    this.#wake();
  }

  /** Closes the stream; what waits is dropped. Ending again has no effect. */
  end(isIdle = false, error?: Error): void {
    if (this.#hasEnded) return;
    this.#hasEnded = true;
    while (this.#queue.length > 0) {
      this.#shift();
      this.#drop();
    }
    if (error === undefined) this.#stream?.close();
    else this.#stream?.abort(error);
    this.#forwarding?.end(error, isIdle);
    this.#wake();
  }

  /**
   * Forwards until the stream has ended or the flow is ended.
   *
   * @param deliver Sends a datagram of the peer, which is valid until the promise fulfils; returns whether it did.
   * @param name Names the flow in errors, such as "from 127.0.0.1:5353".
   */
  async run(
    stream: Stream,
    deliver: (datagram: Uint8Array) => Promise<boolean>,
    name: string,
    route: Route,
  ): Promise<void> {
    if (this.#hasEnded) return stream.close();
    this.#stream = stream;
    this.#forwarding = this.#activity.begin(route);
    const off = onAbort(this.#activity.cutting, () => this.end());
    const receiving = this.#receive(stream, deliver);
    const sending = this.#send(stream);
    let failed: Error | undefined;
    try {
      await Promise.race([receiving, sending]);
    } catch (error) {
      // The end of the flow fails its reads and writes.
      if (!this.#hasEnded) failed = toError(error);
    }
    off();
    this.end(false, failed);
    await Promise.allSettled([receiving, sending]);
    if (failed !== undefined) {
      throw isReportedElsewhere(failed) ? failed : wrapError(`Forwarding datagrams ${name} failed`, failed);
    }
  }

  async #send(stream: Stream): Promise<void> {
    while (!this.#hasEnded) {
      if (this.#queue.length === 0) {
        await this.#changed.promise;
        this.#changed = Promise.withResolvers();
        continue;
      }
      const datagram = this.#shift();
      const encoded = encodeDatagram(datagram);
      for (let at = 0; at < encoded.length;) at += await stream.write(encoded.subarray(at));
      this.#forwarding!.countSent(datagram.length);
    }
  }

  async #receive(stream: Stream, deliver: (datagram: Uint8Array) => Promise<boolean>): Promise<void> {
    const reader = new DatagramReader(stream);
    for (let datagram; (datagram = await reader.read()) !== null;) {
      this.activeAt = performance.now();
      if (await deliver(datagram)) this.#forwarding!.countReceived(datagram.length);
      else this.#drop();
    }
  }

  #shift(): Uint8Array {
    const datagram = this.#queue.shift()!;
    this.#count(-datagram.length);
    return datagram;
  }

  #count(bytes: number): void {
    this.#size += bytes;
    this.#activity.datagrams.queued += bytes;
  }

  #drop(): void {
    this.#activity.datagrams.dropped++;
  }

  #wake(): void {
    this.#changed.resolve();
  }
}
