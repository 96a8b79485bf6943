/**
 * A resumable connection between two sessions, over carriers that die at the moments of a plan.
 *
 * @module
 */

import { equals } from "@std/bytes";
import {
  BUSY,
  DATA_HEADER_LENGTH,
  encodeReply,
  HELLO_LENGTH,
  NO_TOKEN,
  REPLY_LENGTH,
  TOKEN_LENGTH,
} from "../../_resume_frame.ts";
import type { Address, Connection, Listener } from "../../mod.ts";
import { resumable, type ResumableConnection, resumableListener } from "../../resume.ts";
import { KEEP, type KeepingConnection, type Kept } from "../../transport.ts";
import type { CarrierFault, CarriersPlan } from "./carriers_plan.ts";
import { other, type SideName, type WireRules } from "./invariants.ts";
import type { Plan } from "./plan.ts";
import type { Random } from "./random.ts";
import type { Scheduler } from "./scheduler.ts";
import { broken, connect, Pipe, type Travel, type Watch, type WireEnd } from "./wire.ts";

/** What the carriers need from the run. */
export interface CarrierWorld {
  readonly plan: Plan & { readonly carriers: CarriersPlan };
  readonly random: Random;
  readonly scheduler: Scheduler;
  readonly rules: Pick<WireRules, "watch">;
  trace(line: string): void;
  fail(message: string): void;
  fault(kind: string): void;
}

// Position of the token in a reply.
const TOKEN_AT = 9;
const SIDES = ["client", "server"] as const;
// One in this number of writes returns 0, as the interface of a connection allows.
const EMPTY_WRITES = 40;
// Longest duration of a dial that hangs, in milliseconds.
const LONGEST_DIAL = 60_000;
// Milliseconds after which a busy server closes a client without a complete hello.
const LONGEST_HELLO = 10_000;

/** A pending operation of an end. */
interface Operation {
  isRead: boolean;
  resolve(count: number | null): void;
  reject(error: Error): void;
}

/** One end of a carrier. It can be lost without a sign for the other end. */
class CarrierEnd implements Connection {
  readonly localAddr: Address;
  readonly remoteAddr: Address;
  readonly #inner: WireEnd;
  readonly #travel: Travel;
  readonly #world: CarrierWorld;
  readonly #pending = new Set<Operation>();
  #lost: "end" | "reset" | undefined;
  isClosed = false;

  constructor(world: CarrierWorld, inner: WireEnd, travel: Travel, n: number) {
    this.#world = world;
    this.#inner = inner;
    this.#travel = travel;
    this.localAddr = this.remoteAddr = { transport: "tcp", hostname: "carrier", port: n };
  }

  read(p: Uint8Array): Promise<number | null> {
    // A late result of the wire must not reach memory that is in use again.
    const own = new Uint8Array(Math.min(p.length, this.#travel.mostRead));
    return this.#begin(true, () => this.#inner.read(own), (count) => p.set(own.subarray(0, count ?? 0)));
  }

  write(p: Uint8Array): Promise<number> {
    const { mostWrite, capacity } = this.#travel;
    const part = p.slice(0, Math.min(mostWrite, capacity));
    const isEmpty = this.#world.random.oneIn(EMPTY_WRITES);
    const start = () => isEmpty ? Promise.resolve(0) : this.#inner.write(part);
    return this.#begin(false, start) as Promise<number>;
  }

  close(): void {
    if (this.isClosed) throw broken("BadResource", "Bad resource ID");
    this.isClosed = true;
    const { random, scheduler, plan } = this.#world;
    const { mostLinger } = plan.carriers;
    const linger = mostLinger > 0 && random.oneIn(2) ? random.skewed(mostLinger) : 0;
    if (linger === 0) this.#finish();
    else scheduler.after(linger, () => this.#finish());
  }

  /** Loses the connection at this end only. The other end notices when this one is closed, or not at all. */
  lose(how: "end" | "reset"): void {
    this.#lost ??= how;
    for (const operation of this.#take()) this.#break(operation);
  }

  #begin(isRead: boolean, start: () => Promise<number | null>, done?: (count: number | null) => void) {
    const { promise, resolve, reject } = Promise.withResolvers<number | null>();
    const operation = { isRead, resolve, reject };
    if (this.isClosed) {
      reject(broken("BadResource", "Bad resource ID"));
    } else if (this.#lost !== undefined) {
      this.#break(operation);
    } else {
      this.#pending.add(operation);
      start().then((count) => {
        if (!this.#pending.delete(operation)) return;
        done?.(count);
        resolve(count);
      }, (error) => {
        if (this.#pending.delete(operation)) reject(error);
      });
    }
    return promise;
  }

  #take(): Operation[] {
    const taken = [...this.#pending];
    this.#pending.clear();
    return taken;
  }

  #break({ isRead, resolve, reject }: Operation): void {
    if (isRead && this.#lost === "end") resolve(null);
    else reject(broken("ConnectionReset", "Connection reset by peer"));
  }

  #finish(): void {
    for (const { reject } of this.#take()) reject(broken("Interrupted", "The connection was closed here"));
    this.#inner.close();
  }
}

/** A carrier, with the fault that it will have. */
class Carrier {
  readonly ends: { readonly [Side in SideName]: CarrierEnd };
  readonly #pipes: { readonly [Side in SideName]: Pipe };
  readonly #world: CarrierWorld;
  readonly #fault: CarrierFault | undefined;
  readonly #n: number;
  // The bytes of the reply to the hello so far.
  readonly #reply: number[] = [];
  #isBroken = false;

  constructor(world: CarrierWorld, n: number, fault: CarrierFault | undefined) {
    this.#world = world;
    this.#n = n;
    this.#fault = fault;
    const { plan: { travel } } = world;
    const delay = fault?.delay ?? 0;
    this.#pipes = { client: this.#pipe("client", delay), server: this.#pipe("server", delay) };
    const [client, server] = connect(this.#pipes.client, this.#pipes.server);
    this.ends = {
      client: new CarrierEnd(world, client, travel.client, n),
      server: new CarrierEnd(world, server, travel.server, n),
    };
    if (fault !== undefined) world.scheduler.after(fault.after, () => this.#break(fault));
  }

  /** Whether bytes in flight arrive late. */
  get isHeldUp(): boolean {
    return SIDES.some((side) => this.#pipes[side].isHeldUp && !this.ends[side].isClosed);
  }

  /** The token of the reply, as text. */
  get token(): string {
    return this.#reply.slice(TOKEN_AT, TOKEN_AT + TOKEN_LENGTH).join();
  }

  /** Loses the bytes of both directions from now on. */
  hang(): void {
    for (const side of SIDES) this.#pipes[side].stall();
  }

  #pipe(side: SideName, delay: number): Pipe {
    const { scheduler, random, plan, trace } = this.#world;
    const { latency, ...travel } = plan.travel[side];
    const fault = this.#fault;
    let sent = 0;
    const watch: Watch = {
      sent: (bytes) => {
        if (side === "server" && sent < REPLY_LENGTH) this.#reply.push(...bytes.subarray(0, REPLY_LENGTH - sent));
        sent += bytes.length;
        if (fault !== undefined && fault.side === side && sent > fault.at) this.#break(fault, true);
        return bytes;
      },
      asked() {},
      delivered: (bytes) => trace(`carrier ${this.#n}: ${other(side)} got ${bytes.length}`),
      broke() {},
    };
    // The pipe cuts at the exact byte.
    const kind = CUTS[fault?.kind ?? ""];
    const cut = fault === undefined || kind === undefined || fault.side !== side
      ? undefined
      : { kind, at: fault.at, length: 1 };
    return new Pipe(scheduler, random, { ...travel, latency: latency + delay }, cut, watch);
  }

  /** @param isCut Whether the pipe of the fault's side does what the fault requires. */
  #break(fault: CarrierFault, isCut = false): void {
    if (this.#isBroken) return;
    this.#isBroken = true;
    const { kind, side, isEnd, isSilent } = fault;
    if (SIDES.every((side) => this.ends[side].isClosed)) return;
    this.#world.fault(kind);
    if (isSilent && kind.startsWith("lost")) this.hang();
    const how = isEnd ? "end" : "reset";
    switch (kind) {
      case "carrier reset":
      case "carrier end":
        if (!isCut) this.#pipes[side].breakBoth(kind === "carrier end" ? "end" : "reset");
        return;
      case "carrier hangs":
        this.#pipes[other(side)].stall();
        if (!isCut) this.#pipes[side].stall();
        return;
      case "direction hangs":
        if (!isCut) this.#pipes[side].stall();
        return;
      case "lost at client":
        return this.ends.client.lose(how);
      case "lost at server":
        return this.ends.server.lose(how);
      case "lost at both":
        for (const side of SIDES) this.ends[side].lose(how);
    }
  }
}

const CUTS: Record<string, "end" | "reset" | "stall" | undefined> = {
  "carrier reset": "reset",
  "carrier end": "end",
  "carrier hangs": "stall",
  "direction hangs": "stall",
};

/** One direction between the sessions: what was written must be read, once and in order. */
class Direction {
  readonly #world: CarrierWorld;
  readonly #side: SideName;
  readonly #watch: Watch;
  // Written and not read.
  readonly #queue: Uint8Array[] = [];
  // The bytes of the pending write, and how many of them are known to be written.
  #offered: Uint8Array | undefined;
  #known = 0;
  written = 0;
  delivered = 0;
  /** Whether the writer has ended, and whether the reader has seen that. */
  isEnding = false;
  hasEnded = false;

  constructor(world: CarrierWorld, side: SideName) {
    this.#world = world;
    this.#side = side;
    this.#watch = world.rules.watch(side);
  }

  /** A write begins. */
  offer(p: Uint8Array): void {
    if (this.isEnding) this.#world.fail(`The ${this.#side} wrote after its end of writing`);
    this.#offered = p;
    this.#known = 0;
  }

  /** The write has written `count` bytes. */
  settle(count: number): void {
    if (count < this.#known) {
      this.#world.fail(`A write of the ${this.#side} returned ${count}, ${this.#known} were read`);
    }
    this.#know(count);
    this.#offered = undefined;
  }

  #know(count: number): void {
    if (this.#offered === undefined || count <= this.#known) return;
    const bytes = this.#offered.slice(this.#known, count);
    this.#known = count;
    this.written += bytes.length;
    this.#queue.push(bytes);
    this.#watch.sent(bytes);
  }

  /** The reader reads again. */
  asked(): void {
    this.#watch.asked();
  }

  /** The reader has read these bytes. */
  deliver(bytes: Uint8Array): void {
    const { fail } = this.#world;
    const missing = this.delivered + bytes.length - this.written;
    // A peer may read before the write resolves.
    if (missing > 0) this.#know(this.#known + missing);
    for (let at = 0; at < bytes.length;) {
      const first = this.#queue[0];
      if (first === undefined) return fail(`The ${other(this.#side)} read bytes beyond ${this.written} written`);
      const count = Math.min(first.length, bytes.length - at);
      if (!equals(first.subarray(0, count), bytes.subarray(at, at + count))) {
        return fail(`The ${other(this.#side)} read wrong bytes of the connection after ${this.delivered + at}`);
      }
      if (count === first.length) this.#queue.shift();
      else this.#queue[0] = first.subarray(count);
      at += count;
    }
    this.delivered += bytes.length;
    this.#watch.delivered(bytes);
  }

  /** The reader has seen the end. */
  end(): void {
    const { fail } = this.#world;
    const { delivered, written } = this;
    this.hasEnded = true;
    if (!this.isEnding) fail(`The ${other(this.#side)} read an end that the ${this.#side} has not written`);
    if (delivered !== written) fail(`The ${other(this.#side)} read the end after ${delivered} of ${written} bytes`);
  }
}

/** The transport of a session: an end of the resumable connection, whose bytes are checked. */
class Checked implements KeepingConnection {
  readonly headroom: number = DATA_HEADER_LENGTH;
  readonly #inner: Promise<ResumableConnection>;
  readonly #out: Direction;
  readonly #in: Direction;
  #known: ResumableConnection | undefined;
  isClosed = false;

  constructor(inner: Promise<ResumableConnection>, out: Direction, into: Direction) {
    this.#inner = inner;
    this.#out = out;
    this.#in = into;
    inner.then((connection) => {
      this.#known = connection;
      if (this.isClosed) connection.close();
    }, () => {});
  }

  get isSuspended(): boolean {
    return this.#known?.isSuspended ?? true;
  }

  get resumptions(): number {
    return this.#known?.resumptions ?? 0;
  }

  async read(p: Uint8Array): Promise<number | null> {
    const inner = await this.#inner;
    this.#in.asked();
    const count = await inner.read(p);
    if (this.isClosed) return count;
    if (count === null) this.#in.end();
    else this.#in.deliver(p.subarray(0, count));
    return count;
  }

  async write(p: Uint8Array): Promise<number> {
    const inner = await this.#inner;
    this.#out.offer(p);
    const count = await inner.write(p);
    this.#out.settle(count);
    return count;
  }

  [KEEP](memory: Uint8Array, end: number): Kept | undefined {
    // Before it is handed over: it is used again after the acknowledgement.
    const bytes = memory.slice(this.headroom, end);
    const kept = (this.#known as KeepingConnection | undefined)?.[KEEP](memory, end);
    if (kept === undefined) return undefined;
    this.#out.offer(bytes);
    const writing = kept.writing.then((count) => {
      this.#out.settle(count);
      return count;
    });
    return { ...kept, writing };
  }

  async closeWrite(): Promise<void> {
    const inner = await this.#inner;
    this.#out.isEnding = true;
    await inner.closeWrite();
  }

  close(): void {
    this.isClosed = true;
    this.#known?.close();
  }
}

/** Source of the server's ends. */
class Incoming implements Listener {
  readonly #waiting: Connection[] = [];
  #accept: PromiseWithResolvers<Connection> | undefined;
  #isClosed = false;

  push(connection: Connection): void {
    if (this.#isClosed) return connection.close();
    if (this.#accept === undefined) return void this.#waiting.push(connection);
    this.#accept.resolve(connection);
    this.#accept = undefined;
  }

  accept(): Promise<Connection> {
    if (this.#isClosed) return Promise.reject(broken("BadResource", "Bad resource ID"));
    const first = this.#waiting.shift();
    if (first !== undefined) return Promise.resolve(first);
    this.#accept = Promise.withResolvers<Connection>();
    return this.#accept.promise;
  }

  close(): void {
    this.#isClosed = true;
    for (const connection of this.#waiting.splice(0)) connection.close();
    this.#accept?.reject(broken("BadResource", "Bad resource ID"));
  }
}

/** Both ends of the resumable connection, and all carriers. */
export class Carriers {
  /** The transports of the sessions. */
  readonly transports: { readonly [Side in SideName]: Checked };
  readonly #world: CarrierWorld;
  readonly #directions: { readonly [Side in SideName]: Direction };
  readonly #client: ResumableConnection;
  readonly #listener: Listener;
  readonly #incoming = new Incoming();
  readonly #carriers: Carrier[] = [];
  readonly #faults: CarrierFault[];
  readonly #accepted: ResumableConnection[] = [];
  readonly #partner = Promise.withResolvers<ResumableConnection>();
  // The token of the client.
  #token: string | undefined;
  #hasOutage = false;

  constructor(world: CarrierWorld) {
    const { plan: { carriers }, scheduler, trace } = world;
    this.#world = world;
    this.#faults = [...carriers.faults];
    this.#directions = { client: new Direction(world, "client"), server: new Direction(world, "server") };
    const { silence, resumeTimeout, maxUnacknowledged } = carriers;
    const options = { silence, resumeTimeout, maxUnacknowledged };
    const changed = (side: string) => (state: string, reason: unknown) => trace(`${side} is ${state}: ${reason}`);
    const noteServer = changed("server");
    this.#listener = resumableListener(this.#incoming, {
      ...options,
      onChange: (state, reason) => {
        noteServer(state, reason);
        if (state === "connected") this.#match();
      },
    });
    this.#acceptAll();
    const note = changed("client");
    this.#client = resumable(() => this.#dial(), {
      ...options,
      onChange: (state, reason) => {
        note(state, reason);
        if (state === "connected") this.#connected();
        // A server's session that has never had a peer must not wait.
        if (state === "ended" && this.#token === undefined) {
          this.#partner.reject(broken("ConnectionReset", "No client"));
        }
      },
    });
    const { client, server } = this.#directions;
    this.transports = {
      client: new Checked(Promise.resolve(this.#client), client, server),
      server: new Checked(this.#partner.promise, server, client),
    };
    const { outage } = carriers;
    if (outage === undefined) return;
    scheduler.after(outage.after, () => {
      world.fault(outage.hangs ? "outage" : "outage with refusals");
      this.#hasOutage = true;
      for (const carrier of this.#carriers) carrier.hang();
    });
    scheduler.after(outage.after + outage.milliseconds, () => {
      trace("the outage ends");
      this.#hasOutage = false;
    });
  }

  /** Whether bytes in flight arrive late, or the sessions are not connected. */
  isHeldUp(): boolean {
    return this.#hasOutage || SIDES.some((side) => this.transports[side].isSuspended) ||
      this.#carriers.some((carrier) => carrier.isHeldUp);
  }

  /** Has no effect: carriers do not pause. */
  hurry(): void {}

  /** Whether both ends of every carrier are closed. */
  isClosed(): boolean {
    return this.#carriers.every(({ ends }) => SIDES.every((side) => ends[side].isClosed)) &&
      SIDES.every((side) => this.transports[side].isClosed);
  }

  /** Whether the end of writing of this side was read. */
  wasEndRead(side: SideName): boolean {
    return this.#directions[side].hasEnded;
  }

  /** Closes the listener, after the end of the sessions. */
  end(): void {
    this.#listener.close();
    for (const connection of this.#accepted) connection.close();
    this.#client.close();
  }

  async #dial(): Promise<Connection> {
    const { plan, random, scheduler, fault: count, trace } = this.#world;
    const { outage } = plan.carriers;
    const fault = this.#hasOutage ? undefined : this.#faults.shift();
    const isRefused = fault?.kind === "dial refused" || (this.#hasOutage && !outage!.hangs);
    const hangs = fault?.kind === "dial hangs" || (this.#hasOutage && outage!.hangs);
    if (isRefused || hangs) count(fault?.kind ?? "dial in an outage");
    await scheduler.sleep(hangs ? random.skewed(LONGEST_DIAL) : plan.travel.client.latency);
    if (isRefused || this.#hasOutage) throw broken("ConnectionRefused", "Connection refused");
    const n = this.#carriers.length;
    const carrier = new Carrier(this.#world, n, fault);
    this.#carriers.push(carrier);
    trace(`carrier ${n} is dialled${fault === undefined ? "" : `: ${fault.kind}`}`);
    if (fault?.kind === "busy") this.#answerBusy(carrier.ends.server);
    else this.#incoming.push(carrier.ends.server);
    return carrier.ends.client;
  }

  // Plays a server that accepts no connection now.
  async #answerBusy(end: CarrierEnd): Promise<void> {
    const close = () => void (end.isClosed || end.close());
    this.#world.scheduler.after(LONGEST_HELLO, close);
    try {
      const hello = new Uint8Array(HELLO_LENGTH);
      for (let at = 0; at < hello.length;) {
        const count = await end.read(hello.subarray(at));
        if (count === null) break;
        at += count;
      }
      const reply = encodeReply(BUSY, { token: NO_TOKEN, received: 0 });
      for (let at = 0; at < reply.length;) at += await end.write(reply.subarray(at));
    } catch {
      // The client did not wait for the reply.
    }
    close();
  }

  async #acceptAll(): Promise<void> {
    try {
      for (;;) {
        const connection = await this.#listener.accept() as ResumableConnection;
        if (connection.state === undefined) {
          // No hello has arrived for a while, so the listener takes the carrier for a plain client.
          connection.close();
          continue;
        }
        this.#world.trace("accepted");
        this.#accepted.push(connection);
        this.#match();
      }
    } catch {
      // Closed.
    }
  }

  #tokenOf(connection: ResumableConnection): string | undefined {
    const address = connection.remoteAddr as { port: number } | undefined;
    return address && this.#carriers[address.port]!.token;
  }

  #connected(): void {
    this.#token ??= this.#tokenOf(this.#client);
    this.#match();
  }

  // A client that has not received the reply dials as a new one: all but one of the accepted connections have no peer.
  #match(): void {
    if (this.#token === undefined) return;
    for (const connection of this.#accepted) {
      const token = this.#tokenOf(connection);
      if (token === this.#token) this.#partner.resolve(connection);
      else if (token !== undefined) connection.close();
    }
  }
}
