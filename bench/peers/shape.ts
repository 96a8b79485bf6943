/**
 * What every peer of the comparison looks like, so that one set of workloads runs over all of them.
 *
 * @module
 */

/** A byte stream of a peer. */
export interface Pipe {
  /** Which of its session's streams this is, where the peer says so. */
  readonly id?: number;
  /** Where the peer has web streams: what arrives. */
  readonly readable?: ReadableStream<Uint8Array>;
  /** Where the peer has web streams: what leaves. */
  readonly writable?: WritableStream<Uint8Array>;
  /** Reads at most `p.length` bytes; `null` at the end. */
  read(p: Uint8Array): Promise<number | null>;
  /** Writes from `p`, which is the caller's again afterwards; gives how many bytes were taken. */
  write(p: Uint8Array): Promise<number>;
  /** Writes what can be taken at once, where the peer has such. */
  tryWrite?(p: Uint8Array): number;
  /** Ends writing. */
  closeWrite(): Promise<void>;
  /** Gives the stream up. */
  close(): void;
}

/** What streams are opened on: a session, or nothing where each stream is a connection. */
export interface Line {
  /** Opens a stream. */
  open(): Promise<Pipe>;
}

/** Takes a stream that came, from the acceptor of this number. */
export type Handle = (pipe: Pipe, acceptor?: number) => void;

/** A way to carry streams over TCP on the loopback. */
export interface Peer {
  /** Whether each stream is a connection of its own, so that there is no session to be idle without one. */
  readonly streamIsConnection: boolean;
  /** Connects to a server. */
  connect(port: number): Promise<Line>;
  /**
   * Serves every stream that comes, for as long as the process lives, and gives the port; with so many acceptors a
   * session, where the peer can have several.
   */
  serve(handle: Handle, acceptors: number): number | Promise<number>;
}

/** One cell's work, as both processes get it: as JSON, in Go too. */
export interface Plan {
  /**
   * - bulk: each stream is written to until the time is over, and drained
   * - join: each stream is joined to a connection at both ends, and what a server behind it sends is drained at the other
   * - echo: on each stream a message goes and comes back, again and again
   * - churn: so many times at once, again and again: open, one message there and back, close
   * - accept: so many times at once, until there were so many messages: open, wait for the end, close
   * - streams: memory of open streams
   * - sessions: memory of sessions
   */
  kind: "bulk" | "join" | "echo" | "churn" | "accept" | "streams" | "sessions";
  /** How many sessions. */
  connections: number;
  /** How many streams on each. */
  streams: number;
  /** Bytes of a write or a message. */
  size: number;
  /** Whether to use `tryWrite` first. */
  eager: boolean;
  /** bulk: whether both sides use web streams: by `pipeTo`, or by a reader and a writer. */
  web?: "pipe" | "locked";
  /** bulk: how many microtasks pass between two calls of a reader or a writer, as adapters spend them. */
  microtasks: number;
  /** echo: how many messages each stream sends, so that none is left behind; 0: as many as the time allows. */
  messages: number;
  /** How many tasks take the streams of a session that come. */
  acceptors: number;
  /** Milliseconds that are not measured. */
  warm: number;
  /** Milliseconds that are. */
  time: number;
  /** Where the server listens. */
  port: number;
}

/** What one process has to say at its end; a line of JSON. */
export interface Result {
  /** Bytes sent or received, all of them; of accept: streams. */
  bytes?: number;
  /** Bytes, messages or streams a second. */
  rate?: number;
  /** Milliseconds of the median message. */
  p50?: number;
  /** Milliseconds of the 99th percentile. */
  p99?: number;
  /** Resident bytes for each stream or session. */
  resident?: number;
  /** Bytes on the heap for each. */
  heap?: number;
  /** What went wrong. */
  error?: string;
}
