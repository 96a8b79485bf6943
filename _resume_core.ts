/**
 * One resumable connection, which outlives the connections below it, its carriers.
 *
 * Written bytes are kept until the peer acknowledges them. When a carrier begins, each end reports how many bytes it
 * has received, and the other end continues there.
 *
 * @module
 */

import { ChunkQueue } from "./_chunks.ts";
import { DOUBLE } from "./_double.ts";
import { deferred } from "./_deferred.ts";
import { ResumptionError } from "./errors.ts";
import { ProtocolError } from "./frame.ts";
import { ReplayBuffer } from "./_replay.ts";
import { Carrier } from "./_resume_carrier.ts";
import {
  CLOSE_RECORD,
  DATA_HEADER_LENGTH,
  encodeAcknowledgement,
  invalid,
  PROBE_RECORD,
  PROBE_REPLY_RECORD,
  type RecordSink,
} from "./_resume_frame.ts";
import { ResumeTimers, type ResumeTimersHost } from "./_resume_timers.ts";
import { clock } from "./_clock.ts";
import {
  checkCount,
  closeQuietly,
  type Connection,
  type Kept,
  MAX_SOCKET_WRITE_BYTES,
  ReadBuffer,
} from "./transport.ts";

// Received bytes after which an acknowledgement is sent. Larger: fewer records; smaller: the peer keeps less.
const MAX_UNREPORTED_BYTES = 256 * 1024;
// Size of a read while the application does not read. Larger: more memory; smaller: more reads.
const READ_AHEAD_BYTES = 16 * 1024;
// Written bytes that may wait for the carrier when `write` resolves, and the maximum size of a write while bytes wait.
// Larger: the caller sees the progress of a slow carrier later; smaller: the carrier waits for the next write.
const MAX_WAITING_BYTES = 64 * 1024;
// Milliseconds in which several acknowledgements may make room for one write. Larger: the session sees the progress of a
// slow peer later; smaller: more writes are copied in parts.
const MAX_ROOM_WAIT_MS = 5;
// Milliseconds in which a carrier whose write has failed is still read: a peer that closes during its download resets
// it, and its close record is the last one. Larger: a carrier that only fails to write is replaced later; smaller: the
// record is missed on a busy machine, and the connection stays suspended.
const LAST_READ_MS = 100;
// Milliseconds in which a closed connection sends its last record. Larger: a slow peer learns of it; smaller: a carrier
// that hangs is closed earlier.
const CLOSE_TIMEOUT_MS = 1000;

/**
 * State of a resumable connection:
 *
 * - `connected`: it has a connection below, its carrier;
 * - `suspended`: it waits for one;
 * - `ended`: it was closed, or gave up.
 *
 * @example Showing the state
 * ```ts
 * import type { ResumeState } from "@sluice/smux/resume";
 * import { assertEquals } from "@std/assert";
 *
 * const labels: Record<ResumeState, string> = { connected: "online", suspended: "reconnecting", ended: "offline" };
 * assertEquals(labels.suspended, "reconnecting");
 * ```
 */
export type ResumeState = "connected" | "suspended" | "ended";

/** Limits of one connection. */
export interface ResumeSettings {
  /** Maximum number of bytes that are not acknowledged. */
  readonly maxUnacknowledged: number;
  /** Milliseconds without a carrier before giving up. */
  readonly resumeTimeout: number;
  /** Milliseconds without a byte before a carrier counts as lost. */
  readonly silence: number;
}

/** The bytes of one connection, and its present carrier. */
export class ResumeCore implements RecordSink, ResumeTimersHost {
  /** The error of the last carrier, or of the last attempt to connect; `undefined` while connected. */
  lastError: unknown;
  /** Number of carriers so far. */
  carriers = 0;
  /** Called with each carrier, before its first use. */
  onCarrier: ((connection: Connection) => void) | undefined;
  readonly timers: ResumeTimers;
  readonly #onChange: (state: ResumeState, reason: unknown) => void;
  readonly #replay: ReplayBuffer;
  // Created when it is asked for.
  #ended: PromiseWithResolvers<void> | undefined;
  // Resolves with the next change that a call may wait for. Created for the first wait.
  #changed: PromiseWithResolvers<void> | undefined;
  #state: ResumeState = "suspended";
  #failure: { error: unknown } | undefined;
  #carrier: Carrier | undefined;
  // Counts of bytes; the end of writing counts as one.
  #received = DOUBLE;
  #reported = DOUBLE;
  #written = DOUBLE;
  #isEndedByPeer = false;
  // Whether this end of writing was written, or the connection is to be closed when the peer has received it.
  #phase: "open" | "ending" | "closing" = "open";
  // Whether the application has closed the connection, also one that had ended before.
  #isClosed = false;
  // Bytes received while the application did not read.
  readonly #held = new ChunkQueue();
  // The lock of reading, and the number of reads that wait for it.
  #isReading = false;
  #waitingReads = 0;

  /**
   * @param settings Limits.
   * @param onChange Called when the state has changed, with the error of a lost carrier or of the end.
   */
  constructor(settings: ResumeSettings, onChange: (state: ResumeState, reason: unknown) => void) {
    this.#received = this.#reported = 0;
    this.#written = 0;
    this.#onChange = onChange;
    this.#replay = new ReplayBuffer(settings.maxUnacknowledged);
    this.timers = new ResumeTimers(settings, this);
    this.timers.suspended();
  }

  /** The state. */
  get state(): ResumeState {
    return this.#state;
  }

  /** Resolves when the connection has ended in order; rejects with the error of any other end. */
  get closed(): Promise<void> {
    if (this.#ended === undefined) {
      this.#ended = deferred();
      this.#ended.promise.catch(() => {});
      if (this.hasEnded) this.#settle();
    }
    return this.#ended.promise;
  }

  /** Whether the connection was closed, or gave up. */
  get hasEnded(): boolean {
    return this.#state === "ended";
  }

  /** Number of bytes received, plus 1 after the peer's end of writing. */
  get received(): number {
    return this.#received;
  }

  /**
   * Returns the count for a hello or a reply. The peer may send more after it, so it does not include held bytes: with
   * each carrier there would be more of them, until no acknowledgement could be received behind them.
   */
  greet(): number {
    return this.#reported = this.#received - (this.#isEndedByPeer ? 0 : this.#held.length);
  }

  /** Count of the bytes that the peer has acknowledged. */
  get confirmed(): number {
    return this.#replay.acknowledged;
  }

  /** The carrier; `undefined` while suspended. */
  get connection(): Connection | undefined {
    return this.#carrier?.connection;
  }

  /** Whether both ends have ended writing, and the peer has acknowledged that. It may lack the acknowledgement of its own. */
  get isDone(): boolean {
    return this.#isEndedByPeer && this.#isEndAcknowledged;
  }

  // Carriers.

  /**
   * Continues on a new connection, after the hello and the reply.
   *
   * @param connection The connection below.
   * @param received The count that the peer reported.
   * @throws {ProtocolError} The count is impossible. The connection has ended.
   */
  attach(connection: Connection, received: number): void {
    // It was closed, or gave up, during the reply.
    if (this.hasEnded) return closeQuietly(connection);
    this.detach();
    if (!this.#replay.rewind(received)) {
      const { acknowledged, appended } = this.#replay;
      const error = invalid(0, `a count from ${acknowledged} to ${appended}`, `${received}`);
      closeQuietly(connection);
      this.end({ error });
      throw error;
    }
    this.#written = received;
    this.#carrier = new Carrier(connection, this, this.#isEndedByPeer, this.#received - this.#reported);
    this.carriers++;
    this.onCarrier?.(connection);
    this.#state = "connected";
    this.lastError = undefined;
    this.timers.attached();
    this.#notify();
    this.#onChange("connected", undefined);
    this.#send();
  }

  /** Closes the carrier, because another one replaces it. What it still delivers is ignored. */
  detach(): void {
    const carrier = this.#carrier;
    this.#carrier = undefined;
    carrier?.close();
  }

  /** Suspends the connection, because its carrier is lost. */
  lose(error: unknown): void {
    if (this.hasEnded) return;
    this.detach();
    this.lastError = error;
    if (this.#state === "suspended") return;
    this.#state = "suspended";
    this.timers.suspended();
    this.#notify();
    this.#onChange("suspended", error);
  }

  #lose(carrier: Carrier, error: unknown): void {
    if (carrier !== this.#carrier) return;
    // The peer would repeat it on the next carrier.
    if (error instanceof ProtocolError) this.end({ error });
    else this.lose(error);
  }

  /** Ends the connection, in order or with an error. */
  end(failure?: { error: unknown }): void {
    if (this.hasEnded) return;
    this.#state = "ended";
    this.#failure = failure;
    this.timers.end();
    this.#replay.release();
    this.detach();
    this.#notify();
    this.#settle();
    this.#onChange("ended", failure?.error);
  }

  #settle(): void {
    if (this.#failure === undefined) this.#ended?.resolve();
    else this.#ended?.reject(this.#failure.error);
  }

  // Reading.

  /** Implements `Connection.read`. */
  async read(p: Uint8Array): Promise<number | null> {
    if (p.length === 0) return 0;
    for (let count = 0;;) {
      if (this.#isClosed) throw closedError("read from");
      // It had a length before.
      if (p.length === 0) {
        throw new TypeError("Cannot read: the array was transferred or resized before the read ended");
      }
      count = this.#held.read(p);
      if (count === 0 && this.#isEndedByPeer) return null;
      const carrier = this.#carrier;
      if (count === 0 && this.#isReading) {
        this.#waitingReads++;
        await this.#change();
        this.#waitingReads--;
      } else if (count === 0 && carrier === undefined) {
        await this.#carrierChange();
      } else if (count === 0) {
        // Not a function of its own, because an idle connection would keep the memory of its call.
        this.#beginRead(carrier!);
        try {
          const size = await carrier!.connection.read(p);
          // A carrier that keeps returning 0 would block the event loop.
          if (size === 0) await clock.yieldToEventLoop();
          count = this.#endRead(carrier!, p, size);
        } catch (error) {
          this.#lose(carrier!, error);
        }
        this.#unlockReading();
        if (this.#waitingReads === 0 && this.#needsAcknowledgement) clock.pass(() => void this.#readAhead());
      }
      if (count === 0) continue;
      this.#report();
      return count;
    }
  }

  /**
   * Reads while the application does not, so that acknowledgements and probes are received.
   *
   * Held bytes are not acknowledged, so the peer stops at what it may keep for replay.
   */
  async #readAhead(): Promise<void> {
    if (!this.#canReadAhead) return;
    const buffer = new ReadBuffer(new Uint8Array(READ_AHEAD_BYTES));
    do {
      const carrier = this.#carrier!;
      this.#beginRead(carrier);
      try {
        const size = await carrier.connection.read(buffer.bytes);
        if (size === 0) await clock.yieldToEventLoop();
        this.#endRead(carrier, buffer.bytes, size, buffer);
      } catch (error) {
        this.#lose(carrier, error);
      }
      this.#unlockReading();
    } while (this.#waitingReads === 0 && this.#canReadAhead);
    buffer.release();
  }

  get #canReadAhead(): boolean {
    // With as many bytes held as it may, the peer still sends acknowledgements.
    return !this.#isReading && this.#carrier !== undefined && this.#held.length <= this.#replay.capacity;
  }

  /** Waits until there may be a carrier to read. */
  async #carrierChange(): Promise<void> {
    if (this.hasEnded) throw this.#failure?.error ?? closedError("read from");
    await this.#change();
  }

  /** Takes the lock of reading. */
  #beginRead(carrier: Carrier): void {
    this.#isReading = carrier.isReading = true;
  }

  /**
   * Decodes what a read of a carrier has returned.
   *
   * @param carrier The carrier.
   * @param p The memory of the read. The payload is moved to its start.
   * @param count The result of the read.
   * @param ahead The buffer of `p`, if the payload must be held until the application reads.
   * @returns Number of bytes of payload, which may be 0.
   */
  #endRead(carrier: Carrier, p: Uint8Array, count: number | null, ahead?: ReadBuffer): number {
    carrier.isReading = false;
    // The peer sends again what a replaced carrier delivers late.
    if (carrier !== this.#carrier) return 0;
    if (count === null) throw new ResumptionError("The connection below has ended");
    // The bytes are lost with the array, so the peer must send them again.
    if (count > p.length) throw new ResumptionError("The array was transferred or resized during the read");
    this.timers.heard();
    const payload = carrier.decoder.decode(p, count);
    this.#received += payload;
    // Before the lock is released, so that no later bytes overtake these.
    if (ahead !== undefined) this.#held.push(ahead, 0, payload, true);
    if (this.#phase === "closing") this.#held.clear();
    // Of the bytes that were repeated, the application may have read some meanwhile.
    if (payload === 0) this.#report();
    if (carrier.isAcknowledgementDue || carrier.isProbeReplyDue) this.#send();
    return payload;
  }

  #unlockReading(): void {
    this.#isReading = false;
    if (this.#waitingReads > 0) this.#notify();
  }

  // If the application does not read again, the acknowledgement for which it waits must be received.
  get #needsAcknowledgement(): boolean {
    return this.#replay.room <= 0 || (this.#phase !== "open" && !this.#isEndAcknowledged);
  }

  // A peer with the same options must not have to wait for the delay.
  get #maxUnreported(): number {
    return Math.min(MAX_UNREPORTED_BYTES, this.#replay.capacity / 2);
  }

  /** Acknowledges what the application has read, at once or after a delay. */
  #report(): void {
    const unreported = this.#received - this.#held.length - this.#reported;
    if (unreported >= this.#maxUnreported) this.acknowledge();
    else if (unreported > 0 && this.#carrier !== undefined) this.timers.acknowledgeLater();
  }

  // Called by the decoder. What is due is sent after the whole read is decoded.

  acknowledged(count: number): void {
    if (!this.#replay.acknowledge(count)) {
      throw invalid(this.#received, `an acknowledgement of at most ${this.#replay.sent} bytes`, `${count}`);
    }
    this.#notify();
  }

  probed(): void {
    if (this.#carrier !== undefined) this.#carrier.isProbeReplyDue = true;
  }

  ended(): void {
    this.#isEndedByPeer = true;
    this.#received++;
    if (this.#carrier !== undefined) this.#carrier.isAcknowledgementDue = true;
  }

  closedByPeer(): void {
    if (this.#isEndedByPeer && (this.#isEndAcknowledged || this.#phase === "open")) return this.end();
    const error = new Error("The peer has closed the connection");
    this.end({ error: Object.assign(error, { name: "ConnectionReset" }) });
  }

  // Writing.

  /**
   * Implements `Connection.write`. Resolves when almost everything is written below, so that a slow carrier slows down
   * the application.
   */
  async write(p: Uint8Array): Promise<number> {
    this.#checkWritable();
    let count;
    while ((count = this.#append(p)) === 0 && p.length > 0) await this.#room();
    const { appended } = this.#replay;
    this.#send();
    if (this.#isBehind(appended)) await this.#writtenUntil(appended);
    return count;
  }

  // A carrier that keeps up gets everything in one piece.
  #append(p: Uint8Array): number {
    return this.#replay.append(this.#isWritten ? p : p.subarray(0, MAX_WAITING_BYTES));
  }

  /** Does the same without a copy, if no byte waits for the carrier. */
  keep(memory: Uint8Array, end: number): Kept | undefined {
    if (!this.#isWritten || !this.#replay.canAdopt(memory, end)) return undefined;
    return { writing: this.#keep(memory, end), replacement: this.#replay.takeMemory(memory.length) };
  }

  async #keep(memory: Uint8Array, end: number): Promise<number> {
    this.#checkWritable();
    if (!this.#replay.adopt(memory, end)) {
      // The peer acknowledges less than that only after a delay.
      if (this.#inFlight >= this.#maxUnreported) await this.#roomFor(end - DATA_HEADER_LENGTH);
      if (!this.#replay.adopt(memory, end)) return await this.write(memory.subarray(DATA_HEADER_LENGTH, end));
    }
    const { appended } = this.#replay;
    this.#send();
    if (this.#isBehind(appended)) await this.#writtenUntil(appended);
    return end - DATA_HEADER_LENGTH;
  }

  #checkWritable(): void {
    if (this.#phase !== "open") throw closedError("write to");
    this.#checkOpen("write to");
  }

  /** Waits until there may be room to write. */
  async #room(): Promise<void> {
    this.#replay.exhausted();
    this.#readAhead();
    await this.#change();
    // Nothing may follow the end of writing.
    this.#checkWritable();
  }

  /**
   * Waits until there is room for all of it. If the peer is slow, the session must see progress with each
   * acknowledgement; and what is in flight may be too little for another one.
   */
  async #roomFor(count: number): Promise<void> {
    const replay = this.#replay;
    const since = clock.now();
    do {
      await this.#room();
    } while (
      replay.room < count && this.#inFlight >= MAX_UNREPORTED_BYTES &&
      clock.now() - since < MAX_ROOM_WAIT_MS
    );
  }

  get #inFlight(): number {
    return this.#replay.appended - this.#replay.acknowledged;
  }

  get #isWritten(): boolean {
    return this.#written === this.#replay.appended;
  }

  #isBehind(end: number): boolean {
    return this.#written < end - (this.#carrier === undefined ? 0 : MAX_WAITING_BYTES);
  }

  async #writtenUntil(end: number): Promise<void> {
    do {
      this.#checkOpen("write to");
      await this.#change();
    } while (this.#isBehind(end));
  }

  /** Implements `Connection.closeWrite`: resolves when the peer has received everything. */
  async closeWrite(): Promise<void> {
    if (this.#phase === "open") {
      this.#phase = "ending";
      this.#replay.appendEnd();
      this.#send();
    }
    while (!this.#isEndAcknowledged) {
      this.#checkOpen("end");
      this.#readAhead();
      await this.#change();
    }
  }

  #change(): Promise<void> {
    return (this.#changed ??= deferred<void>()).promise;
  }

  #notify(): void {
    this.#changed?.resolve();
    this.#changed = undefined;
  }

  get #isEndAcknowledged(): boolean {
    return this.#phase !== "open" && this.#replay.acknowledged === this.#replay.appended;
  }

  #checkOpen(action: string): void {
    if (this.hasEnded) throw this.#failure?.error ?? closedError(action);
  }

  /**
   * Implements `Connection.close`. After `closeWrite` the connection goes on without its application until the peer has
   * received everything, as a TCP connection does.
   */
  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    if (this.hasEnded) return void this.#held.clear();
    const mustResume = this.isDone && this.#carrier === undefined;
    if (this.#phase === "open" || (this.#isEndAcknowledged && !mustResume)) return this.#close();
    this.#phase = "closing";
    this.#held.clear();
    this.timers.close();
    this.#notify();
    this.#closeLater().catch(() => {});
  }

  async #closeLater(): Promise<void> {
    await this.closeWrite();
    // The count of the hello or the reply is the acknowledgement that the peer may lack.
    while (this.isDone && this.#carrier === undefined && !this.hasEnded) await this.#change();
    if (!this.hasEnded) this.#close();
  }

  /** Ends the connection with an error. The peer is not left waiting for the next carrier. */
  abort(error: unknown): void {
    if (!this.hasEnded) this.#close({ error });
  }

  #close(failure?: { error: unknown }): void {
    const carrier = this.#carrier;
    // It is closed when the last record is sent.
    this.#carrier = undefined;
    this.end(failure);
    if (carrier === undefined) return;
    // What was dropped was not read.
    carrier.isAcknowledgementDue = this.#phase !== "closing";
    carrier.isCloseDue = true;
    clock.clearTimer(carrier.closing);
    carrier.closing = clock.setTimer(() => carrier.close(), CLOSE_TIMEOUT_MS);
    this.#send(carrier);
  }

  async #send(carrier = this.#carrier): Promise<void> {
    if (carrier === undefined || carrier.isWriting) return;
    carrier.isWriting = true;
    try {
      for (let bytes; (bytes = this.#nextBytes(carrier)) !== undefined;) {
        const { sent } = this.#replay;
        for (let at = 0; at < bytes.length;) {
          const isWhole = at === 0 && bytes.length <= MAX_SOCKET_WRITE_BYTES;
          const part = isWhole ? bytes : bytes.subarray(at, at + MAX_SOCKET_WRITE_BYTES);
          const count = checkCount(await carrier.connection.write(part), part.length);
          if (!carrier.isOpen) return;
          this.timers.sent();
          at += count;
          this.#advance(sent - (bytes.length - at));
          // A carrier that keeps returning 0 would block the event loop.
          if (count === 0) await new Promise<void>((resolve) => void clock.pass(resolve));
        }
        if (bytes === CLOSE_RECORD) carrier.close();
      }
    } catch (error) {
      return this.#writeFailed(carrier, error);
    }
    carrier.isWriting = false;
  }

  // Nothing more is written to the carrier, but it is read for a moment.
  #writeFailed(carrier: Carrier, error: unknown): void {
    if (carrier !== this.#carrier) return carrier.close();
    carrier.closing = clock.setTimer(() => this.#lose(carrier, error), LAST_READ_MS);
    this.#readAhead();
  }

  // Headers count as data that is not written yet.
  #advance(written: number): void {
    if (written <= this.#written) return;
    this.#written = written;
    this.#notify();
  }

  #nextBytes(carrier: Carrier): Uint8Array | undefined {
    if (!carrier.isOpen) return undefined;
    if (carrier.isAcknowledgementDue) {
      carrier.isAcknowledgementDue = false;
      this.timers.acknowledged();
      // Not of bytes that the peer is still to repeat on this carrier.
      const count = this.#received - Math.max(this.#held.length, carrier.decoder.repeated);
      if (count > this.#reported) return encodeAcknowledgement(this.#reported = count);
    }
    if (carrier.isProbeReplyDue) {
      carrier.isProbeReplyDue = false;
      return PROBE_REPLY_RECORD;
    }
    if (carrier.isProbeDue) {
      carrier.isProbeDue = false;
      return PROBE_RECORD;
    }
    const bytes = this.#replay.next();
    if (bytes !== undefined || !carrier.isCloseDue) return bytes;
    carrier.isCloseDue = false;
    return CLOSE_RECORD;
  }

  // Called by the timers.

  get isListening(): boolean {
    return this.#carrier?.isReading ?? false;
  }

  acknowledge(): void {
    if (this.#carrier === undefined) return;
    this.#carrier.isAcknowledgementDue = true;
    this.#send();
  }

  probe(): void {
    if (this.#carrier === undefined) return;
    this.#carrier.isProbeDue = true;
    this.#send();
    this.#readAhead();
  }

  trim(): boolean {
    return !this.#carrier?.isWriting && this.#replay.trim();
  }

  silenceExpired(): void {
    this.lose(new DOMException("The connection below was silent for too long", "TimeoutError"));
  }

  suspensionExpired(): void {
    if (this.isDone) return this.end();
    const options = this.lastError === undefined ? undefined : { cause: this.lastError };
    this.end({ error: new ResumptionError("The connection was not resumed in time", options) });
  }
}

function closedError(action: string): Error {
  return Object.assign(new Error(`Cannot ${action} a closed connection`), { name: "BadResource" });
}
