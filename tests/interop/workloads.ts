/**
 * Sluice's side of the interop workloads, over the public API only. `peer.go`, the Go side, describes the messages.
 *
 * @module
 */

import { pooledMap } from "@std/async";
import { setImmediate } from "node:timers/promises";
import { createHash, type Hash } from "node:crypto";
import { Session, SessionClosedError, type SessionOptions, type Stream } from "../../mod.ts";
import { KiB, sha256, xorshift } from "../support.ts";

/** One workload, the same for both sides. */
export interface Workload {
  readonly name: string;
  /** "both": client and server both run "echo", at the same time. */
  readonly kind: "echo" | "both" | "bulk" | "half-close" | "keepalive" | "hold" | "hang-up";
  /** Number of streams, for kinds that have several, and of concurrent ones. */
  readonly streams: number;
  readonly parallel: number;
  /** Largest message in bytes; bulk: exact size in each direction. */
  readonly size: number;
  /** Size of every 200th message; 0: as the others. */
  readonly large: number;
  /** keepalive: idle time in milliseconds; hold: delay before an upload is read. */
  readonly idle: number;
  /** Options of both sides; the others have each side's own default. */
  readonly options: SessionOptions;
  /** Additional options of Sluice's side. */
  readonly ours?: SessionOptions;
  /** Bytes that must be unread at Sluice's server before it answers the first stream. */
  readonly held?: number;
  /** Whether Sluice aborts each stream instead of closing it. A Go peer must see an end, and keep the session. */
  readonly isAborting?: boolean;
}

/** The counts of one side: streams, and bytes inside streams. */
export interface Tally {
  streams: number;
  sent: number;
  received: number;
}

type Message = Uint8Array<ArrayBuffer>;

const HASH_SIZE = 32;
const CHUNK_SIZE = 64 * KiB;

const digest = (hash: Hash): Message => new Uint8Array(hash.digest());

/** Pseudo-random bytes (xorshift), the same for the same seed. */
class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = (Math.imul(seed + 1, 0x9e3779b1) | 0) || 1;
  }

  next(): number {
    this.#state = xorshift(this.#state);
    return this.#state >>> 0;
  }

  bytes(length: number): Message {
    const words = new Uint32Array(Math.ceil(length / 4));
    for (let i = 0; i < words.length; i++) words[i] = this.next();
    return new Uint8Array(words.buffer, 0, length);
  }
}

/** Returns the content of the `i`-th message. */
function message(workload: Workload, i: number): Message {
  const random = new Random(i);
  const length = workload.large > 0 && i % 200 === 100 ? workload.large : random.next() % (workload.size + 1);
  return random.bytes(length);
}

/** A stream with the messages of the workloads, which counts its bytes. */
class Wire {
  readonly stream: Stream;
  readonly #tally: Tally;

  constructor(stream: Stream, tally: Tally) {
    this.stream = stream;
    this.#tally = tally;
  }

  async read(p: Message): Promise<number | null> {
    const n = await this.stream.read(p);
    this.#tally.received += n ?? 0;
    return n;
  }

  async write(p: Message): Promise<void> {
    const n = await this.stream.write(p);
    this.#tally.sent += n;
    if (n !== p.length) throw this.error(`wrote ${n} of ${p.length} bytes`);
  }

  /** Fills `p`; returns `false` when the stream ended before its first byte. */
  async fill(p: Message): Promise<boolean> {
    let filled = 0;
    while (filled < p.length) {
      const n = await this.read(p.subarray(filled));
      if (n === null && filled === 0) return false;
      if (n === null) throw this.error(`ended after ${filled} of ${p.length} bytes`);
      filled += n;
    }
    return true;
  }

  async exactly(length: number): Promise<Message> {
    const p = new Uint8Array(length);
    if (!await this.fill(p) && length > 0) throw this.error(`ended before the first of ${length} bytes`);
    return p;
  }

  /** Checks that the peer's FIN is next. */
  async ended(): Promise<void> {
    const n = await this.read(new Uint8Array(1));
    if (n !== null) throw this.error(`expected the peer's FIN, received ${n} bytes`);
  }

  async send(op: string, length: number): Promise<void> {
    const header = new DataView(new ArrayBuffer(9));
    header.setUint8(0, op.charCodeAt(0));
    header.setBigUint64(1, BigInt(length));
    await this.write(new Uint8Array(header.buffer));
  }

  /** Reads the next message's op and length; `null` when the stream ended. */
  async header(): Promise<[op: string, length: number] | null> {
    const p = new Uint8Array(9);
    if (!await this.fill(p)) return null;
    const view = new DataView(p.buffer);
    return [String.fromCharCode(view.getUint8(0)), Number(view.getBigUint64(1))];
  }

  /** Sends back the next `length` bytes as they come. */
  async echo(length: number): Promise<void> {
    const chunk = new Uint8Array(CHUNK_SIZE);
    while (length > 0) {
      const n = await this.read(chunk.subarray(0, Math.min(length, CHUNK_SIZE)));
      if (n === null) throw this.error(`ended ${length} bytes before the end of an echo`);
      await this.write(chunk.subarray(0, n));
      length -= n;
    }
  }

  /** Sends random bytes and their hash, and checks the hash that comes back. */
  async upload(length: number): Promise<void> {
    const hash = createHash("sha256");
    const random = new Random(length);
    while (length > 0) {
      const chunk = random.bytes(Math.min(length, CHUNK_SIZE));
      hash.update(chunk);
      await this.write(chunk);
      length -= chunk.length;
    }
    const sum = digest(hash);
    await this.write(sum);
    await this.#expect(sum);
  }

  /** The other end of {@linkcode upload}. */
  async download(length: number): Promise<void> {
    const hash = createHash("sha256");
    const chunk = new Uint8Array(CHUNK_SIZE);
    while (length > 0) {
      const n = await this.read(chunk.subarray(0, Math.min(length, CHUNK_SIZE)));
      if (n === null) throw this.error(`ended ${length} bytes before the end of a download`);
      hash.update(chunk.subarray(0, n));
      length -= n;
    }
    const sum = digest(hash);
    await this.#expect(sum);
    await this.write(sum);
  }

  /** Sends a message, half-closes if `last`, and checks that the same bytes come back. */
  async exchange(op: string, data: Message, last = false): Promise<void> {
    const write = async () => {
      await this.send(op, data.length);
      await this.write(data);
      if (last) await this.stream.closeWrite();
    };
    const [, back] = await Promise.all([write(), this.exactly(data.length)]);
    const [sent, got] = [await sha256(data), await sha256(back)];
    if (sent !== got) throw this.error(`sent ${data.length} bytes with hash ${sent}, received hash ${got}`);
  }

  async #expect(sum: Message): Promise<void> {
    const [ours, theirs] = [sum.toHex(), (await this.exactly(HASH_SIZE)).toHex()];
    if (ours !== theirs) throw this.error(`hash ${ours}, the peer has ${theirs}`);
  }

  error(reason: string): Error {
    return new Error(`stream ${this.stream.id}: ${reason}`);
  }
}

/** One end of a session and its counts. */
class Peer {
  readonly #tally: Tally = { streams: 0, sent: 0, received: 0 };
  readonly #errors: unknown[] = [];
  readonly #session: Session;
  readonly #workload: Workload;
  /** The work on each accepted stream, in order. */
  readonly #accepted: Promise<void>[] = [];
  /** Resolves when the server's own part of the workload is done. */
  #opened: Promise<void> = Promise.resolve();
  /** Whether the client has announced the end. */
  #quit = false;
  #held: Promise<void> | undefined;

  constructor(session: Session, workload: Workload) {
    this.#session = session;
    this.#workload = workload;
  }

  /** Runs the workload, announces the end and ends the session. */
  async client(): Promise<void> {
    const accepting = this.#accept();
    try {
      await this.#work();
      const last = await this.#open();
      await last.send(this.#workload.kind === "hang-up" ? "X" : "Q", 0);
      await last.ended();
      last.stream.close();
      await Promise.all(this.#accepted);
      await this.#session.close();
    } catch (error) {
      this.#fail(error);
    }
    await accepting;
  }

  /** Answers the client until it ends the session. */
  async server(): Promise<void> {
    if (this.#workload.kind === "both") this.#opened = this.#work().catch((error) => this.#fail(error));
    await this.#accept();
    if (!this.#quit) this.#fail(new Error("the session ended too early"));
    await this.#opened;
  }

  /** Answers every stream of the peer until the session ends. */
  async #accept(): Promise<void> {
    try {
      for await (const stream of this.#session) {
        const answered = this.#answered(new Wire(stream, this.#tally), this.#accepted.length);
        this.#accepted.push(answered.catch((error) => this.#fail(error)));
      }
      await this.#session.closed;
    } catch (error) {
      this.#fail(error);
    }
    await Promise.all(this.#accepted);
  }

  async #open(): Promise<Wire> {
    return new Wire(await this.#session.openStream(), this.#tally);
  }

  /** Opens a stream, works on it and closes it. */
  async #on(work: (wire: Wire) => Promise<void>): Promise<void> {
    const wire = await this.#open();
    this.#tally.streams++;
    await work(wire);
    if (this.#workload.kind !== "hang-up") this.#end(wire);
  }

  #end({ stream }: Wire): void {
    if (this.#workload.isAborting) stream.abort();
    else stream.close();
  }

  /** Calls `work` with a stream for each message, at most `parallel` at a time. */
  async #each(work: (wire: Wire, data: Message) => Promise<void>): Promise<void> {
    const { parallel, streams } = this.#workload;
    const numbers = Array.from({ length: streams }, (_, i) => i);
    const one = (i: number) =>
      this.#on((wire) => work(wire, message(this.#workload, i))).catch((error) => this.#fail(error));
    for await (const _ of pooledMap(parallel, numbers, one));
  }

  async #work(): Promise<void> {
    const { kind, size, idle } = this.#workload;
    switch (kind) {
      case "echo":
      case "both":
      case "hang-up":
        return await this.#each((wire, data) => wire.exchange("E", data));
      case "bulk": {
        const up = this.#on(async (wire) => {
          await wire.send("U", size);
          await wire.upload(size);
        });
        const down = this.#on(async (wire) => {
          await wire.send("D", size);
          await wire.download(size);
        });
        await Promise.all([up, down]);
        return;
      }
      case "hold":
        return await this.#on(async (wire) => {
          await wire.send("U", size);
          await wire.upload(size);
        });
      case "half-close":
        return await this.#each(async (wire, data) => {
          await wire.exchange("H", data, true);
          await wire.ended();
        });
      case "keepalive":
        return await this.#on(async (wire) => {
          await wire.exchange("E", message(this.#workload, 0));
          await new Promise((resolve) => setTimeout(resolve, idle)); // the idle session is under test
          await wire.exchange("E", message(this.#workload, 1));
        });
    }
  }

  async #hold(): Promise<void> {
    while (this.#session.stats().bytesUnread < (this.#workload.held ?? 0)) await setImmediate();
  }

  async #answered(wire: Wire, earlier: number): Promise<void> {
    if (earlier === 0) this.#held = this.#hold();
    await this.#held;
    const { kind, idle } = this.#workload;
    const op = await (kind === "hang-up" ? answerCut(wire) : answer(wire, kind === "hold" ? idle : 0));
    if (op === null) {
      this.#tally.streams++;
    } else {
      if (op === "Q") await Promise.all([...this.#accepted.slice(0, earlier), this.#opened]);
      this.#quit = true;
    }
    this.#end(wire);
  }

  #fail(error: unknown): void {
    this.#errors.push(error);
    this.#session.abort(error);
  }

  /** Returns the counts; throws the first failure, which may have caused later ones. */
  result(): Tally {
    if (this.#errors.length > 0) throw this.#errors[0];
    return this.#tally;
  }
}

/** Serves the messages of one stream until its end (`null`), or until the op that announces the end of the session. */
async function answer(wire: Wire, hold = 0): Promise<"Q" | "X" | null> {
  for (let next = await wire.header(); next !== null; next = await wire.header()) {
    const [op, length] = next;
    switch (op) {
      case "E":
        await wire.echo(length);
        break;
      case "U":
        if (hold > 0) await new Promise((resolve) => setTimeout(resolve, hold)); // the unread session is under test
        await wire.download(length);
        break;
      case "D":
        await wire.upload(length);
        break;
      case "H": {
        const data = await wire.exactly(length);
        await wire.ended();
        await wire.write(data);
        return null;
      }
      case "A":
        await wire.write(await wire.exactly(length));
        await wire.stream.closeWrite();
        await wire.ended();
        return null;
      case "Q":
      case "X":
        return op;
      default:
        throw wire.error(`unknown op ${op}`);
    }
  }
  return null;
}

/** Like {@linkcode answer}, for a client that hangs up without FIN: reading must not report an end of stream. */
async function answerCut(wire: Wire): Promise<"Q" | "X" | null> {
  const op = await answer(wire).catch((error) => {
    if (error instanceof SessionClosedError && error.cause === undefined) return undefined;
    throw error;
  });
  if (op === null) throw wire.error("ended, but the client sent no FIN");
  return op ?? null;
}

/** Runs the workload as the client, and ends the session. */
export async function runClient(conn: Deno.Conn, version: 1 | 2, workload: Workload): Promise<Tally> {
  const peer = new Peer(Session.client(conn, { ...workload.options, ...workload.ours, version }), workload);
  await peer.client();
  return peer.result();
}

/** Answers the client as the server, until the client ends the session cleanly. */
export async function runServer(conn: Deno.Conn, version: 1 | 2 | "auto", workload: Workload): Promise<Tally> {
  const peer = new Peer(Session.server(conn, { ...workload.options, ...workload.ours, version }), workload);
  await peer.server();
  return peer.result();
}
