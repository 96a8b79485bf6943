/**
 * Passes streams opened by the peer to the acceptors' channel.
 *
 * Streams are passed on after a whole read is decoded: sending to the channel may run application code (the receiver
 * may be a web stream), and that code may end the session.
 *
 * @module
 */

import { bounded, type Receiver, type Sender } from "./channel.ts";
import type { Settings } from "./options.ts";
import type { Stream, StreamCore } from "./stream.ts";

/**
 * Maximum number of streams that are passed on before the process yields, because the application reacts to each of
 * them in the same turn. Larger: the event loop is blocked longer; smaller: more yields when many streams are opened.
 */
const MAX_ARRIVED = 256;

/** What the acceptor needs from its session. */
export interface AcceptorHost {
  /** Called when a stream was sent to the channel. */
  accepted(stream: StreamCore): void;
  /** Refuses a stream that was added but did not fit the channel. */
  refuseArrived(stream: StreamCore): void;
}

/** Collects streams during a read, and sends them to the acceptors' channel. */
export class Acceptor {
  /** The receiving end of the channel; `undefined` with a channel of the caller. */
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
   * @param settings The channel of the caller or the capacity of a new one, and the limit of open streams.
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

  /** Number of streams that wait in the channel. */
  get pending(): number {
    return this.#channel.size;
  }

  /** Total number of accepted streams. */
  get accepted(): number {
    return this.#accepted;
  }

  /** Total number of refused streams. */
  get refused(): number {
    return this.#refused;
  }

  /** Whether the next stream must be refused. Checked before a stream is created: a flood of SYNs allocates nothing. */
  get isFull(): boolean {
    if (this.#open >= this.#maxStreams) return true;
    const channel = this.#channel;
    return this.#hadTurn && this.#arrived.length === 0 && channel.capacity > 0 && channel.isFull;
  }

  /** Adds a new stream. Returns `false` if the added streams must be sent before the next one is added. */
  add(stream: StreamCore): boolean {
    this.#open++;
    return this.#arrived.push(stream) < Math.min(MAX_ARRIVED, this.#channel.capacity - this.#channel.size);
  }

  /**
   * Sends the added streams to the channel.
   *
   * @returns `false` if the acceptors must run before the rest is sent or refused, or more streams are added.
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
    return arrived.length < MAX_ARRIVED;
  }

  /** Counts a refused stream. */
  refuse(): void {
    this.#refused++;
  }

  /** Counts an added stream as closed. */
  remove(): void {
    this.#open--;
  }

  /** Called when the acceptors have run. */
  hadTurn(): void {
    this.#hadTurn = true;
  }

  /** Closes the channel. With an error, receives on a channel of the session's own reject with it. */
  close(error?: Error): void {
    if (error !== undefined && this.incoming !== undefined) this.#channel.close(error);
    else this.#channel.close();
  }
}
