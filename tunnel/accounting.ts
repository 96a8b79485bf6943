/**
 * Counts forwarded connections, their bytes and refused requests, in sums for each forward.
 *
 * @module
 */

import type { DuplexConnection } from "../mod.ts";
import type { TunnelEvent } from "./options.ts";

/** The event of a forwarded connection that has ended. */
export type FinishedEvent = Extract<TunnelEvent, { type: "finished" }>;

/** What is known of a forwarded connection when it begins. */
export interface Route extends Pick<FinishedEvent, "kind" | "user" | "from" | "to"> {
  /** Names the forward in sums: an address from the options, never the address of a visitor. */
  forward: string;
}

/** Sums over all connections of one forward. */
export interface Sums extends Pick<Route, "kind" | "user" | "forward"> {
  streams: number;
  open: number;
  failed: number;
  sent: number;
  received: number;
}

// Combinations of user and forward with sums of their own; all others share one for each kind. Larger: more detail;
// smaller: less memory and shorter metrics, however many addresses clients request.
export const MAX_SUMS = 500;

const OTHER = "other";

// Statuses of a refusal that have a count of their own. The peer chooses the status, so all others share one.
const STATUSES = [400, 403, 404, 405, 407, 408, 429, 431, 501, 502, 503, 504];

/** The sums of one end of a tunnel. */
export class Accounting {
  readonly #sums = new Map<string, Sums>();
  readonly #refused: Record<string, number> = {};

  /** Counts the begin of a forwarded connection. */
  begin(route: Route, emit: (event: TunnelEvent) => void): Forwarding {
    return new Forwarding(route, this.#find(route), emit);
  }

  /** Counts a refused request. */
  refuse(status: number): void {
    const name = STATUSES.includes(status) ? String(status) : OTHER;
    this.#refused[name] = (this.#refused[name] ?? 0) + 1;
  }

  /** The number of refused requests, by status. */
  get refused(): Record<string, number> {
    return { ...this.#refused };
  }

  /** The sums of each forward, in the order of their first connection. */
  get sums(): Sums[] {
    return Array.from(this.#sums.values(), (sums) => ({ ...sums }));
  }

  #find({ kind, user, forward }: Route): Sums {
    const key = JSON.stringify([kind, forward, user]);
    const found = this.#sums.get(key);
    if (found !== undefined) return found;
    if (this.#sums.size >= MAX_SUMS && forward !== OTHER) {
      return this.#find({ kind, user: undefined, forward: OTHER } as Route);
    }
    const sums = { kind, user, forward, streams: 0, open: 0, failed: 0, sent: 0, received: 0 };
    this.#sums.set(key, sums);
    return sums;
  }
}

/** A forwarded connection. */
export class Forwarding {
  readonly #route: Route;
  readonly #sums: Sums;
  readonly #emit: (event: TunnelEvent) => void;
  readonly #began = performance.now();
  #sent = 0;
  #received = 0;

  constructor(route: Route, sums: Sums, emit: (event: TunnelEvent) => void) {
    this.#route = route;
    this.#sums = sums;
    this.#emit = emit;
    sums.streams++;
    sums.open++;
  }

  /** Counts bytes that were read from the socket, for the peer. */
  countSent(bytes: number): void {
    this.#sent += bytes;
    this.#sums.sent += bytes;
  }

  /** Counts bytes of the peer that were written to the socket. */
  countReceived(bytes: number): void {
    this.#received += bytes;
    this.#sums.received += bytes;
  }

  /** Counts and reports the end; `error` is why the connection failed, `isIdle` whether datagrams had ceased. */
  end(error?: Error, isIdle?: boolean): void {
    this.#sums.open--;
    if (error !== undefined) this.#sums.failed++;
    const { kind, user, from, to } = this.#route;
    const duration = Math.round(performance.now() - this.#began);
    this.#emit({
      type: "finished",
      kind,
      user,
      from,
      to,
      sent: this.#sent,
      received: this.#received,
      duration,
      error,
      ...isIdle === undefined ? {} : { isIdle },
    });
  }
}

/** A socket whose bytes are counted. */
export class CountedConnection implements DuplexConnection {
  readonly #socket: DuplexConnection;
  readonly #counter: Pick<Forwarding, "countSent" | "countReceived">;
  /** Reads bytes in a buffer of the socket, if the socket can. `join` prefers it to `read`. */
  readonly readChunk: (() => Promise<Uint8Array | null>) | undefined;

  constructor(
    socket: DuplexConnection & { readChunk?: (() => Promise<Uint8Array | null>) | undefined },
    counter: Pick<Forwarding, "countSent" | "countReceived">,
  ) {
    this.#socket = socket;
    this.#counter = counter;
    const { readChunk } = socket;
    if (readChunk === undefined) return;
    this.readChunk = async () => {
      const chunk = await readChunk();
      counter.countSent(chunk?.length ?? 0);
      return chunk;
    };
  }

  async read(p: Uint8Array): Promise<number | null> {
    const count = await this.#socket.read(p);
    this.#counter.countSent(count ?? 0);
    return count;
  }

  async write(p: Uint8Array): Promise<number> {
    const count = await this.#socket.write(p);
    this.#counter.countReceived(count);
    return count;
  }

  closeWrite(): Promise<void> {
    return this.#socket.closeWrite();
  }

  close(): void {
    this.#socket.close();
  }
}
