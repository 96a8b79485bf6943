/**
 * The interface of the compared peers, so that the same workloads run over all of them.
 *
 * @module
 */

/** A byte stream of a peer. */
export interface Pipe {
  /** The stream's id, if the peer has one. */
  readonly id?: number;
  /** The readable web stream, if the peer has one. */
  readonly readable?: ReadableStream<Uint8Array>;
  /** The writable web stream, if the peer has one. */
  readonly writable?: WritableStream<Uint8Array>;
  /** Reads at most `p.length` bytes; `null` at the end. */
  read(p: Uint8Array): Promise<number | null>;
  /** Writes bytes of `p`, which may be reused afterwards; resolves with their number. */
  write(p: Uint8Array): Promise<number>;
  /** Writes the bytes of `p` that need not wait, if the peer supports it; returns their number. */
  tryWrite?(p: Uint8Array): number;
  /** Ends writing. */
  closeWrite(): Promise<void>;
  /** Closes the stream. */
  close(): void;
}

/** Opens streams: a session, or a target of connections where each stream is a connection. */
export interface Line {
  /** Opens a stream. */
  open(): Promise<Pipe>;
}

/** Handles an accepted stream, from the acceptor of this number. */
export type Handle = (pipe: Pipe, acceptor?: number) => void;

/** A way to carry streams over TCP on the loopback. */
export interface Peer {
  /** Whether each stream is a connection of its own, so that no session exists without a stream. */
  readonly streamIsConnection: boolean;
  /** Connects to a server. */
  connect(port: number): Promise<Line>;
  /**
   * Serves every accepted stream until the process ends, and returns the port. Each session has `acceptors` tasks that
   * accept, if the peer supports several.
   */
  serve(handle: Handle, acceptors: number): number | Promise<number>;
}

/** The work of one cell, passed to both processes as JSON, also to Go. */
export interface Plan {
  /**
   * - bulk: each stream is written until the time is over, and drained
   * - join: each stream is joined to a connection at both ends; a server behind one end sends, the other end drains
   * - echo: each stream repeats a message and its echo
   * - churn: `streams` tasks repeat: open, one message and its echo, close
   * - accept: `streams` tasks repeat, `messages` times in all: open, wait for the end, close
   * - streams: memory of open streams
   * - sessions: memory of sessions
   */
  kind: "bulk" | "join" | "echo" | "churn" | "accept" | "streams" | "sessions";
  /** Number of sessions. */
  connections: number;
  /** Number of streams on each session. */
  streams: number;
  /** Size of a write or a message in bytes. */
  size: number;
  /** Whether to use `tryWrite` first. */
  eager: boolean;
  /** bulk: both sides use web streams, with `pipeTo` or with a reader and a writer. */
  web?: "pipe" | "locked";
  /** bulk: number of microtasks between two reads or writes, as in adapters; 0: the plain loop of an application. */
  microtasks: number;
  /** echo: number of messages on each stream; 0: limited by time. */
  messages: number;
  /** Number of tasks that accept the streams of a session. */
  acceptors: number;
  /** Milliseconds of warm-up. */
  warm: number;
  /** Milliseconds of measurement. */
  time: number;
  /** The server's port. */
  port: number;
}

/** The result of one process; a line of JSON. */
export interface Result {
  /** Total of bytes sent or received; accept: of streams. */
  bytes?: number;
  /** Bytes, messages or streams per second. */
  rate?: number;
  /** Median latency of a message in milliseconds. */
  p50?: number;
  /** 99th percentile of the latency in milliseconds. */
  p99?: number;
  /** Resident memory per stream or session in bytes. */
  resident?: number;
  /** Heap memory per stream or session in bytes. */
  heap?: number;
  /** The error, if the process failed. */
  error?: string;
}
