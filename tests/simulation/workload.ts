/**
 * The users of two sessions: they read, write and close streams in each possible way, as the seed decides.
 *
 * @module
 */

import { type Session, SessionClosedError, type Stream, StreamClosedError, StreamResetError } from "../../mod.ts";
import { type Half, MOST_CONTENT, other, type SideName, StreamRecord, type WireRules } from "./invariants.ts";
import type { Plan } from "./plan.ts";
import type { Random } from "./random.ts";
import type { Scheduler } from "./scheduler.ts";

/** The state of the run that the users share. */
export interface World {
  readonly plan: Plan;
  readonly random: Random;
  readonly scheduler: Scheduler;
  readonly rules: WireRules;
  readonly sessions: { readonly [Side in SideName]: Session };
  /** Whether only operations on streams that their own user closed or aborted may fail. */
  isCalm: boolean;
  /** Whether received bytes may differ from those written. */
  isCorrupt(): boolean;
  /** Whether `close()` of a session was called. */
  readonly isClosing: { readonly [Side in SideName]: boolean };
  trace(line: string): void;
  fail(message: string): void;
  /** Makes the run wait for this promise. */
  track(name: string, work: Promise<void>): void;
}

/** The streams of a run. */
export class Workload {
  readonly #world: World;
  readonly #records = new Map<number, StreamRecord>();
  /** Number of ends of streams in use, and of opens in progress. */
  active = 0;
  /** Ends of stream seen by openers whose stream was never accepted. */
  readonly unaccepted = { client: 0, server: 0 };

  constructor(world: World) {
    this.#world = world;
  }

  /** Every stream of the run. */
  get records(): Iterable<StreamRecord> {
    return this.#records.values();
  }

  /** Starts opening and accepting streams. */
  start(): void {
    const { plan, random, scheduler } = this.#world;
    for (const side of ["client", "server"] as const) {
      for (let n = 0; n < plan.streams[side]; n++) {
        this.active++;
        const delay = random.oneIn(2) ? 0 : random.below(300);
        scheduler.after(delay, () => this.#world.track(`${side} opens`, this.#open(side)));
      }
      const loops = random.pick([1, 1, 2]);
      for (let n = 0; n < loops; n++) this.#world.track(`${side} accepts`, this.#accept(side));
    }
  }

  /** Checks the invariants of the end of the run. */
  finish(): void {
    const { sessions, fail, plan } = this.#world;
    if (this.#world.isCorrupt()) return;
    for (const record of this.#records.values()) {
      if (record.id === this.#world.rules.forgedId) continue;
      for (const half of [record.client, record.server]) {
        if (half.hasEnded && half.received !== half.taken) {
          fail(`Stream ${record.id} ended after ${half.received} bytes of the ${half.side}, which wrote ${half.taken}`);
        }
      }
    }
    for (const side of ["client", "server"] as const) {
      const { refused } = sessions[other(side)].stats();
      // A stalled stream may have been reset before it was accepted.
      const mayBeCut = plan.options[other(side)].stalledStreamTimeout !== Infinity;
      if (this.unaccepted[side] > refused && !mayBeCut && !this.#world.isClosing[other(side)]) {
        fail(`${this.unaccepted[side]} streams of the ${side} ended unaccepted, but ${refused} were refused`);
      }
    }
  }

  async #open(side: SideName): Promise<void> {
    const { sessions, random, scheduler, trace } = this.#world;
    try {
      const signal = random.oneIn(10) ? this.#signal() : undefined;
      const stream = await sessions[side].openStream({ signal });
      trace(`${side} opened ${stream.id}`);
      const record = this.#record(stream.id);
      if (record.isOpened) this.#world.fail(`Stream ${stream.id} was opened twice`);
      record.isOpened = true;
      if (random.oneIn(4)) await scheduler.sleep(random.below(50));
      await this.#use(side, stream, record);
    } catch (error) {
      this.#judge(side, undefined, "open", error);
    } finally {
      this.active--;
    }
  }

  async #accept(side: SideName): Promise<void> {
    const { sessions, random, scheduler, trace, track } = this.#world;
    const session = sessions[side];
    try {
      for (;;) {
        const stream = await session.acceptStream();
        trace(`${side} accepted ${stream.id}`);
        const record = this.#record(stream.id);
        const isAgain = record.isAccepted;
        record.isAccepted = true;
        if (isAgain) {
          // A repeated SYN after close(), or after a reset of a stalled stream, opens a new stream.
          const mayBeCut = this.#world.plan.options[side].stalledStreamTimeout !== Infinity;
          if (!record[side].isClosed && !mayBeCut && !this.#world.isCorrupt()) {
            this.#world.fail(`Stream ${stream.id} was accepted twice`);
          }
          stream.close();
          continue;
        }
        this.active++;
        track(`${side} uses ${stream.id}`, this.#use(side, stream, record).finally(() => this.active--));
        if (random.oneIn(5)) await scheduler.sleep(random.below(100));
      }
    } catch (error) {
      this.#judge(side, undefined, "accept", error);
      if (!(error instanceof SessionClosedError)) throw error;
    }
  }

  #record(id: number): StreamRecord {
    let record = this.#records.get(id);
    if (record === undefined) this.#records.set(id, record = new StreamRecord(id));
    return record;
  }

  #signal(): AbortSignal {
    const { random, scheduler } = this.#world;
    const controller = new AbortController();
    scheduler.after(random.below(20), () => controller.abort(new DOMException("The user aborted", "AbortError")));
    return controller.signal;
  }

  async #use(side: SideName, stream: Stream, record: StreamRecord): Promise<void> {
    const { random, scheduler, plan, track, trace } = this.#world;
    const ended = stream.closed.then(() => {}, () => {});
    track(`the ${side}'s end of ${stream.id}`, ended);
    if (random.oneIn(12)) {
      await scheduler.sleep(random.below(plan.patience));
      trace(`${side} abandons ${stream.id}`);
    } else {
      const writing = this.#write(side, stream, record);
      const reading = this.#read(side, stream, record);
      const [wrote, read] = await Promise.all([writing, reading]);
      // A stream that has ended in both directions needs no close().
      if (wrote && read && random.oneIn(2)) return;
    }
    this.#close(side, stream, record);
  }

  #close(side: SideName, stream: Stream, record: StreamRecord): void {
    const half = record[side];
    half.isClosed = half.isDone = true;
    this.#world.rules.closed(side, stream.id);
    if (this.#world.random.oneIn(3)) {
      // The reader must not see an end, unless the writer ended its direction before.
      this.#world.trace(`${side} aborts ${stream.id}`);
      half.isAborted = true;
      stream.abort(new DOMException("The user aborted the stream", "AbortError"));
    } else {
      this.#world.trace(`${side} closes ${stream.id}`);
      half.isEnding = true;
    }
    stream.close();
  }

  // Writes; returns whether it ended with closeWrite().
  async #write(side: SideName, stream: Stream, record: StreamRecord): Promise<boolean> {
    const { plan, random } = this.#world;
    const half = record[side];
    const total = random.oneIn(8) ? 0 : random.skewed(plan.mostBytes);
    let patience = plan.patience;
    const way = random.pick(["write", "write", "write", "try", "web", "together"] as const);
    try {
      const writer = way === "web" ? stream.writable.getWriter() : undefined;
      writer?.closed.catch(() => {});
      while (half.most < total) {
        if (random.oneIn(6)) patience = await this.#pause(patience);
        const length = Math.min(total - half.most, random.skewed(plan.mostPiece), MOST_CONTENT);
        if (way === "try") {
          await this.#tryWrite(stream, half, length);
        } else if (writer !== undefined) {
          const p = half.content(half.most, length).slice();
          await this.#writing(half, length, () => writer.write(p).then(() => length));
        } else if (way === "together") {
          const writes: Promise<void>[] = [];
          for (let left = length; left > 0;) {
            // At most four: in version 2 each may have to wait for the timeout of the one before it.
            const part = writes.length === 3 ? left : random.skewed(left);
            left -= part;
            const p = half.content(half.most, part);
            writes.push(this.#writing(half, part, () => stream.write(p)));
          }
          for (const { status, reason } of await Promise.allSettled(writes) as PromiseRejectedResult[]) {
            if (status === "rejected") throw reason;
          }
        } else {
          const p = half.content(half.most, length);
          if (half.most + length === total && random.oneIn(2)) {
            // Ends while the last write may still be waiting.
            const last = this.#writing(half, length, () => stream.write(p));
            half.isEnding = true;
            const closing = stream.closeWrite();
            await last;
            await closing;
            this.#world.trace(`${side} ended ${stream.id} after ${half.taken}`);
            return true;
          }
          const signal = random.oneIn(8) ? this.#signal() : undefined;
          try {
            await this.#writing(half, length, () => stream.write(p, { signal }));
          } catch (error) {
            if (!signal?.aborted || error !== signal.reason) throw error;
          }
        }
        if (random.oneIn(200)) {
          this.#close(side, stream, record);
          return false;
        }
      }
      if (random.oneIn(8)) {
        // A user that does not end its direction must call close(), or the reader would wait without end.
        if (random.oneIn(2)) await this.#pause(patience);
        this.#close(side, stream, record);
        return false;
      }
      half.isEnding = true;
      // After a failure only `closed` rejects with the stream's error.
      if (writer !== undefined) await writer.close().catch(() => writer.closed);
      else await stream.closeWrite();
      this.#world.trace(`${side} ended ${stream.id} after ${half.taken}`);
      return true;
    } catch (error) {
      this.#judge(side, record, "write", error);
      // A chunk that cannot be written ends the direction with FIN.
      if (way === "web") half.isEnding = true;
      // Not closed at once: the session itself must not send a FIN.
      if (half.wasCut) await this.#pause(plan.patience);
      return false;
    } finally {
      half.isDone = true;
    }
  }

  async #writing(half: Half, length: number, write: () => Promise<number>): Promise<void> {
    const { trace, isClosing } = this.#world;
    const wasClosing = isClosing[half.side];
    half.most += length;
    let count = 0;
    let isKnown = true;
    try {
      count = await write();
      trace(`${half.name} wrote ${count} of ${length}`);
    } catch (error) {
      count = bytesWritten(error);
      // The reason of an abort does not contain it.
      isKnown = !half.isAborted;
      if (error instanceof SessionClosedError && isClosing[half.side] && !wasClosing) half.wasCut = true;
      // The write that waited behind this one continues, at an offset that is unknown here.
      if (error instanceof DOMException && error.name === "TimeoutError") half.hasGap = true;
      trace(`${half.name} wrote ${count} of ${length}: ${error}`);
      throw error;
    } finally {
      if (isKnown) {
        half.taken += count;
        half.most -= length - count;
      }
    }
  }

  async #tryWrite(stream: Stream, half: Half, length: number): Promise<void> {
    const { trace } = this.#world;
    const p = half.content(half.most, length);
    const count = stream.tryWrite(p);
    half.taken += count;
    half.most += count;
    trace(`${half.name} tried to write ${length}: ${count}`);
    if (count === 0) await this.#writing(half, length, () => stream.write(p));
  }

  // Reads; returns whether it reached the end of stream.
  async #read(side: SideName, stream: Stream, record: StreamRecord): Promise<boolean> {
    const { plan, random } = this.#world;
    const half = record[other(side)];
    const way = random.pick(["read", "read", "read", "try", "web", "together"] as const);
    const stopAfter = random.oneIn(3) ? random.skewed(plan.mostBytes) : Infinity;
    const isSlow = random.oneIn(3);
    let patience = plan.patience;
    try {
      const reader = way === "web" ? stream.readable.getReader() : undefined;
      reader?.closed.catch(() => {});
      while (half.received < stopAfter) {
        if (random.oneIn(isSlow ? 2 : 20)) patience = await this.#pause(patience);
        let got: Uint8Array | null;
        if (way === "together") {
          const pieces = [1, 2, 3].map(() => new Uint8Array(Math.min(random.skewed(plan.mostPiece), MOST_CONTENT)));
          let isFull = true;
          for (const reading of await Promise.allSettled(pieces.map((p) => stream.read(p)))) {
            if (reading.status === "rejected") throw reading.reason;
            if (reading.value === null) isFull = false;
            else this.#got(side, record, pieces.shift()!.subarray(0, reading.value));
          }
          if (isFull) continue;
          got = null;
        } else if (reader !== undefined) {
          const { done, value } = await reader.read();
          got = done ? null : value;
        } else {
          const p = new Uint8Array(Math.min(random.skewed(plan.mostPiece), MOST_CONTENT));
          let count = way === "try" ? stream.tryRead(p) : 0;
          if (count === 0) {
            const signal = random.oneIn(8) ? this.#signal() : undefined;
            try {
              count = await stream.read(p, { signal });
            } catch (error) {
              if (!signal?.aborted || error !== signal.reason) throw error;
              continue;
            }
          }
          got = count === null ? null : p.subarray(0, count);
        }
        if (got === null) {
          this.#sawEnd(side, record);
          return true;
        }
        this.#got(side, record, got);
      }
      this.#world.trace(`${side} stops reading ${stream.id}`);
      if (random.oneIn(2)) await this.#pause(patience);
      if (reader === undefined && random.oneIn(2)) {
        this.#close(side, stream, record);
        return false;
      }
      if (reader !== undefined) await reader.cancel();
      else await stream.readable.cancel();
      // Dropped data must not block its writer.
      if (record.isOpened && record.isAccepted) {
        while (!half.isDone) await this.#world.scheduler.sleep(50);
      }
      return false;
    } catch (error) {
      this.#judge(side, record, "read", error);
      return false;
    }
  }

  #got(side: SideName, record: StreamRecord, bytes: Uint8Array): void {
    const { trace, fail } = this.#world;
    const half = record[other(side)];
    trace(`${side} read ${bytes.length} of ${record.id}`);
    if (!this.#world.isCorrupt()) {
      if (half.received + bytes.length > half.most) {
        fail(
          `The ${side} read ${half.received + bytes.length} bytes of stream ${record.id}; ${half.most} were written`,
        );
      } else if (!half.hasGap && record.id !== this.#world.rules.forgedId && !half.isNext(bytes)) {
        fail(`The ${side} read wrong bytes of stream ${record.id} after ${half.received}`);
      }
    }
    half.received += bytes.length;
  }

  #sawEnd(side: SideName, record: StreamRecord): void {
    const { trace, fail, plan, isClosing } = this.#world;
    const half = record[other(side)];
    trace(`${side} saw the end of ${record.id} after ${half.received}`);
    half.hasEnded = true;
    if (this.#world.isCorrupt() || record.id === this.#world.rules.forgedId) return;
    if (half.wasCut && !half.isClosed) {
      fail(`The ${side} saw a clean end of stream ${record.id}, but the close of the session had interrupted a write`);
    }
    if (record.opener === side && !record.isAccepted) {
      this.unaccepted[side]++;
      if (half.received > 0) fail(`Stream ${record.id} was not accepted, but ${half.received} bytes were received`);
    } else if (
      !half.isEnding && !isClosing[other(side)] && plan.options[other(side)].stalledStreamTimeout === Infinity
    ) {
      fail(`The ${side} saw an end of stream ${record.id} that the ${other(side)} never sent`);
    }
  }

  async #pause(patience: number): Promise<number> {
    const { random, scheduler } = this.#world;
    const milliseconds = Math.min(patience, random.skewed(random.oneIn(4) ? 1000 : 200));
    if (milliseconds === 0) return 0;
    await scheduler.sleep(milliseconds);
    return patience - milliseconds;
  }

  // Reports an operation that failed without a reason.
  #judge(side: SideName, record: StreamRecord | undefined, what: string, error: unknown): void {
    const { plan, trace, fail, isClosing } = this.#world;
    const name = error instanceof Error ? error.name : typeof error;
    trace(`${side} ${what} ${record?.id ?? ""} failed: ${name}`);
    if (name === "AbortError" && (what === "open" || record !== undefined)) return;
    if (error instanceof StreamClosedError && record?.[side].isClosed) return;
    if (error instanceof StreamResetError && record !== undefined) {
      // The peer has aborted the stream, or has cut it as stalled.
      if (record[other(side)].isAborted || plan.options[other(side)].stalledStreamTimeout !== Infinity) return;
    }
    const isEnding = isClosing.client || isClosing.server || !this.#world.isCalm;
    if (error instanceof SessionClosedError && isEnding) return;
    if (name === "TimeoutError" && record !== undefined) {
      // A reset of a stalled stream, or a write to a stream that the peer has closed.
      const { stalledStreamTimeout } = plan.options[side];
      if (stalledStreamTimeout !== Infinity) return;
      if (what === "write" && plan.version === 2 && (record[other(side)].isEnding || !record.isAccepted)) return;
      // The peer may have reset it as stalled.
      if (what === "write" && plan.options[other(side)].stalledStreamTimeout !== Infinity) return;
    }
    if (this.#world.isCorrupt() && name === "ProtocolError") return;
    fail(`The ${side}'s ${what} on stream ${record?.id} failed: ${error instanceof Error ? error.stack : error}`);
  }
}

function bytesWritten(error: unknown): number {
  return error instanceof Error && "bytesWritten" in error ? error.bytesWritten as number | undefined ?? 0 : 0;
}
