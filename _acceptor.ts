/**
 * The streams that the peer opens, on their way to the tasks that accept them.
 *
 * They are handed over when everything that came in one read is decoded, because a web stream's reader may run in that
 * step and do anything to the session.
 *
 * @module
 */

import { bounded, type Receiver, type Sender } from "./channel.ts";
import type { Settings } from "./options.ts";
import type { Stream, StreamCore } from "./stream.ts";

/** What the acceptor needs from its session. */
export interface AcceptorHost {
  /** A stream was handed over. */
  accepted(stream: StreamCore): void;
  /** A stream that had arrived finds no acceptor. */
  refuseArrived(stream: StreamCore): void;
}

/** Hands the streams of the peer to the acceptors' channel. */
export class Acceptor {
  /** Where the streams come out, unless they go to a channel of the caller's. */
  readonly incoming: Receiver<Stream> | undefined;
  readonly #channel: Sender<Stream>;
  readonly #host: AcceptorHost;
  readonly #maxStreams: number;
  #open = 0;
  #accepted = 0;
  #refused = 0;
  #arrived: StreamCore[] = [];
  // Whether the acceptors have run since the channel was full.
  #hadTurn = false;

  /**
   * @param settings A channel of the caller's, or the capacity of one of our own; and the limit of open streams.
   * @param host The session.
   */
  constructor(settings: Pick<Settings, "incoming" | "acceptBacklog" | "maxStreams">, host: AcceptorHost) {
    this.#host = host;
    this.#maxStreams = settings.maxStreams;
    if (settings.incoming !== undefined) {
      this.#channel = settings.incoming;
    } else {
      const { sender, receiver } = bounded<Stream>(settings.acceptBacklog, { onDrop: (stream) => stream.close() });
      this.#channel = sender;
      this.incoming = receiver;
    }
  }

  /** Streams that wait in the channel. */
  get pending(): number {
    return this.#channel.size;
  }

  /** Streams that were handed over, ever. */
  get accepted(): number {
    return this.#accepted;
  }

  /** Streams that were refused, ever. */
  get refused(): number {
    return this.#refused;
  }

  /** Whether a stream that comes now is to be refused, so that a flood of refused SYNs allocates nothing. */
  get isFull(): boolean {
    if (this.#open >= this.#maxStreams) return true;
    const channel = this.#channel;
    return this.#hadTurn && this.#arrived.length === 0 && channel.capacity > 0 && channel.isFull;
  }

  /** Adds a stream that arrived; returns whether there may be a place for the next one. */
  add(stream: StreamCore): boolean {
    this.#open++;
    return this.#arrived.push(stream) < this.#channel.capacity - this.#channel.size;
  }

  /**
   * Hands over the streams that arrived.
   *
   * @returns `false` if the acceptors must run before the rest is handed over or refused.
   */
  handOver(): boolean {
    if (this.#arrived.length === 0) return true;
    const arrived = this.#arrived;
    this.#arrived = [];
    for (let n = 0; n < arrived.length; n++) {
      const stream = arrived[n]!;
      if (this.#channel.trySend(stream.stream)) {
        this.#hadTurn = false;
        this.#accepted++;
        this.#host.accepted(stream);
      } else if (this.#hadTurn) {
        this.#host.refuseArrived(stream);
      } else {
        this.#arrived = arrived.slice(n);
        return false;
      }
    }
    return true;
  }

  /** Counts a stream that is refused. */
  refuse(): void {
    this.#refused++;
  }

  /** A stream that `add` counted has left. */
  remove(): void {
    this.#open--;
  }

  /** The acceptors have run. */
  hadTurn(): void {
    this.#hadTurn = true;
  }

  /** Closes the channel, if it is ours; with an error the acceptors get that. */
  close(error?: Error): void {
    if (error !== undefined && this.incoming !== undefined) this.#channel.close(error);
    else this.#channel.close();
  }
}
