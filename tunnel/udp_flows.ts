/**
 * Forwards datagrams of many sources, each over a stream of its own, which is opened for its first datagram and closed
 * when none has passed for a while.
 *
 * @module
 */

import type { Stream } from "../mod.ts";
import type { Route } from "./accounting.ts";
import type { Activity } from "./activity.ts";
import { Flow } from "./udp_flow.ts";
import { MAX_TIMEOUT } from "./wait.ts";

/** Sources of one listener. Larger: more of them at the same time; smaller: less that forged sources can occupy. */
export const MAX_SOURCES = 4096;

/** Streams that are being opened for one listener. Larger: larger bursts of new sources; smaller: less of a flood. */
export const MAX_OPENING = 1024;

// Milliseconds in which a source whose stream was refused is not tried again, and a listener reports no other refusal.
// Larger: less load by sources that cannot be served; smaller: they are served earlier when they can be.
const REFUSAL_PAUSE = 1000;

/** What is to be forwarded, and where. */
export interface FlowsOptions {
  /** Sources at the same time: the one that was idle for longest is closed for a new one. */
  max: number;
  /** Returns the milliseconds without a datagram after which a source is forgotten. */
  timeout: () => number;
  /** Opens the stream of a source. */
  open: (key: string) => Promise<{ stream: Stream; route: Route }>;
  /** Sends a datagram to a source, which is valid until the promise fulfils; returns whether it did. */
  deliver: (key: string, datagram: Uint8Array) => Promise<boolean>;
}

/** A source, and when its stream was refused. */
interface Source {
  flow: Flow;
  refusedAt: number | undefined;
}

/** The sources of one listener, or the targets of one SOCKS client. */
export class Flows {
  readonly #activity: Activity;
  readonly #options: FlowsOptions;
  /** The one that was idle for longest first. */
  readonly #sources = new Map<string, Source>();
  readonly #running = new Set<Promise<void>>();
  #opening = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #reportedAt = -Infinity;
  #isClosed = false;

  constructor(activity: Activity, options: FlowsOptions) {
    this.#activity = activity;
    this.#options = options;
  }

  /** The number of sources. */
  get size(): number {
    return this.#sources.size;
  }

  /** Forwards a datagram of a source. */
  push(key: string, datagram: Uint8Array): void {
    const source = this.#find(key) ?? this.#make(key);
    if (source === undefined || source.refusedAt !== undefined) this.#activity.datagrams.dropped++;
    else source.flow.push(datagram);
  }

  /** Ends all sources; fulfils when their streams are closed. */
  async close(): Promise<void> {
    this.#isClosed = true;
    clearTimeout(this.#timer);
    for (const key of [...this.#sources.keys()]) this.#end(key);
    await Promise.all(this.#running);
  }

  /** Returns a source, which then is the last one to be idle. */
  #find(key: string): Source | undefined {
    const source = this.#sources.get(key);
    if (source === undefined) return undefined;
    this.#sources.delete(key);
    const isDue = source.refusedAt !== undefined && performance.now() - source.refusedAt >= REFUSAL_PAUSE;
    if (isDue) return undefined;
    this.#sources.set(key, source);
    return source;
  }

  #make(key: string): Source | undefined {
    if (this.#isClosed || this.#opening >= MAX_OPENING) return undefined;
    if (this.#sources.size >= this.#options.max) this.#end(this.#sources.keys().next().value!);
    const source: Source = { flow: new Flow(this.#activity), refusedAt: undefined };
    this.#sources.set(key, source);
    const running = this.#run(key, source).finally(() => this.#running.delete(running));
    this.#running.add(running);
    this.#schedule();
    return source;
  }

  #end(key: string, isIdle = false): void {
    const { flow } = this.#sources.get(key)!;
    this.#sources.delete(key);
    flow.end(isIdle);
  }

  async #run(key: string, source: Source): Promise<void> {
    const { flow } = source;
    try {
      const { stream, route } = await this.#open(key);
      const deliver = (datagram: Uint8Array) => {
        // The source is not idle.
        if (this.#sources.get(key) === source) this.#find(key);
        return this.#options.deliver(key, datagram);
      };
      await flow.run(stream, deliver, `of ${route.from}`, route).catch(this.#activity.report);
      if (this.#sources.get(key) === source) this.#end(key);
    } catch (error) {
      source.refusedAt = performance.now();
      flow.end();
      this.#report(error);
    }
  }

  async #open(key: string): Promise<{ stream: Stream; route: Route }> {
    this.#opening++;
    try {
      return await this.#options.open(key);
    } finally {
      this.#opening--;
    }
  }

  /** Reports why a stream was refused, unless another refusal was reported just before. */
  #report(error: unknown): void {
    const now = performance.now();
    // Forged sources must not flood the log.
    const isDue = now - this.#reportedAt >= REFUSAL_PAUSE;
    if (isDue) this.#reportedAt = now;
    if (isDue && !this.#isClosed) this.#activity.report(error);
    else this.#activity.countRefusal(error);
  }

  /** Sets the timer for the source that is idle for longest. */
  #schedule(): void {
    const { value: first } = this.#sources.values().next();
    if (this.#timer !== undefined || this.#isClosed || first === undefined) return;
    const rest = first.flow.activeAt + this.#options.timeout() - performance.now();
    // Without a limit the timer looks again, as the limit may change.
    this.#timer = setTimeout(() => this.#sweep(), Math.min(Math.max(1, Math.ceil(rest)), MAX_TIMEOUT));
  }

  /** Ends the sources that are idle for too long. */
  #sweep(): void {
    this.#timer = undefined;
    const limit = performance.now() - this.#options.timeout();
    for (const [key, { flow }] of this.#sources) {
      if (flow.activeAt > limit) break;
      this.#end(key, true);
    }
    this.#schedule();
  }
}
