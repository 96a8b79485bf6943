/**
 * The channel against a model of plain arrays: fast-check generates commands, both execute them, and after each the
 * settled promises and the visible state must agree. In the second test its scheduler chooses which of several tasks
 * continues.
 *
 * `CHANNEL_RUNS` is the number of cases (default: 300), `CHANNEL_SEED` the seed; a failure prints both.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import fc from "fast-check";
import {
  bounded,
  ChannelClosedError,
  type Receiver,
  select,
  type Sender,
  unbounded,
  type WeakSender,
} from "../channel.ts";
import { clock, type Timer } from "../_clock.ts";
import { microtasks } from "./support.ts";

const runs = Number(Deno.env.get("CHANNEL_RUNS") ?? 300);
const seed = Number(Deno.env.get("CHANNEL_SEED") ?? 20_250_711);

/** The outcome of an operation, as text. */
type Outcome = string;

/** A waiting operation of the model. */
interface Waiting {
  id: number;
  /** The value of a send. */
  value?: number;
  handle: number;
  /** The outcome once a value is sent or received. */
  taken(value: number): Outcome;
  /** The outcome when the channel or the handle closes. */
  ended(channel: ModelChannel): Outcome;
}

/** The contract of one channel, implemented with plain arrays. */
class ModelChannel {
  buffer: number[] = [];
  senders: Waiting[] = [];
  receivers: Waiting[] = [];
  openSenders: number[] = [0];
  openReceivers: number[] = [0];
  handles = 1;
  closed = false;
  reason: string | undefined = undefined;
  dropped: number[] = [];

  constructor(readonly capacity: number, readonly model: Model) {}

  trySend(value: number, handle: number): boolean {
    if (this.closed || !this.openSenders.includes(handle)) return false;
    const receiver = this.receivers[0];
    if (receiver) this.model.settle(receiver, receiver.taken(value));
    else if (this.buffer.length < this.capacity) this.buffer.push(value);
    else return false;
    return true;
  }

  take(): number | undefined {
    const sender = this.senders[0];
    const value = this.buffer.shift() ?? sender?.value;
    if (sender) {
      if (this.capacity > 0) this.buffer.push(sender.value!);
      this.model.settle(sender, sender.taken(sender.value!));
    }
    return value;
  }

  takeMany(max: number, handle: number): number[] {
    const values: number[] = [];
    while (values.length < max && this.openReceivers.includes(handle)) {
      const value = this.take();
      if (value === undefined) break;
      values.push(value);
    }
    return values;
  }

  closeSender(handle: number, reason: string | undefined): void {
    if (!this.openSenders.includes(handle)) return;
    this.openSenders = this.openSenders.filter((open) => open !== handle);
    this.reason ??= reason;
    for (const sender of this.senders.filter((waiting) => waiting.handle === handle)) {
      this.model.settle(sender, sender.ended(this));
    }
    if (this.openSenders.length > 0 || this.closed) return;
    this.closed = true;
    for (const receiver of [...this.receivers]) this.model.settle(receiver, receiver.ended(this));
  }

  closeReceiver(handle: number): void {
    if (!this.openReceivers.includes(handle)) return;
    this.openReceivers = this.openReceivers.filter((open) => open !== handle);
    for (const receiver of this.receivers.filter((waiting) => waiting.handle === handle)) {
      this.model.settle(receiver, receiver.ended(this));
    }
    if (this.openReceivers.length > 0) return;
    this.closed = true;
    for (const sender of [...this.senders]) this.model.settle(sender, sender.ended(this));
    this.dropped.push(...this.buffer.splice(0));
  }

  /** The error of a receive through this handle after a close with a reason. */
  failure(handle: number): string | undefined {
    return this.openReceivers.includes(handle) ? this.reason : undefined;
  }
}

class Model {
  readonly channels: ModelChannel[];
  readonly outcomes = new Map<number, Outcome>();

  constructor(capacities: number[]) {
    this.channels = capacities.map((capacity) => new ModelChannel(capacity, this));
  }

  settle({ id }: { id: number }, outcome: Outcome): void {
    if (!this.outcomes.has(id)) this.outcomes.set(id, outcome);
    for (const channel of this.channels) {
      channel.senders = channel.senders.filter((waiting) => waiting.id !== id);
      channel.receivers = channel.receivers.filter((waiting) => waiting.id !== id);
    }
  }

  isWaiting(id: number): boolean {
    return this.channels.some((channel) => [...channel.senders, ...channel.receivers].some((w) => w.id === id));
  }
}

/** The real channels, and the outcomes of their operations. */
class Real {
  readonly channels: {
    senders: Sender<number>[];
    receivers: Receiver<number>[];
    weak: WeakSender<number>;
    dropped: number[];
    aborted: number;
  }[];
  readonly outcomes = new Map<number, Outcome>();
  /** The limit of each operation, by its number. */
  readonly limits = new Map<number, Limit>();
  readonly timers = new Map<unknown, () => void>();
  readonly controllers = [new AbortController(), new AbortController(), new AbortController()];
  operations = 0;
  values = 0;

  constructor(capacities: number[]) {
    this.channels = capacities.map((capacity) => {
      const dropped: number[] = [];
      const options = { onDrop: (value: number) => void dropped.push(value) };
      const { sender, receiver } = capacity === Infinity ? unbounded<number>(options) : bounded(capacity, options);
      const channel = { senders: [sender], receivers: [receiver], weak: sender.downgrade(), dropped, aborted: 0 };
      sender.signal.addEventListener("abort", () => channel.aborted++);
      return channel;
    });
  }

  watch(id: number, promise: Promise<Outcome>): Promise<void> {
    return promise.then((outcome) => outcome, (error) => {
      if (error instanceof ChannelClosedError) return "value" in error ? `unsent ${error.value}` : "ended";
      return error instanceof DOMException ? error.name : String(error);
    }).then((outcome) => void this.outcomes.set(id, outcome));
  }
}

/** The limit of a wait: none, a timeout, or the number of a signal. */
type Limit = "none" | "timeout" | number;

/** The timeout of operation n is this plus n, so that its timer can be found. */
const FIRST_TIMEOUT = 1000;

/** A command as data; the numbers select a handle, an earlier operation or a size. */
interface Command {
  kind: (typeof KINDS)[number];
  channel: number;
  pick: number;
  size: number;
  limit: Limit;
  cases: { channel: number; pick: number; sends: boolean }[];
}

const KINDS = [
  "send",
  "trySend",
  "receive",
  "tryReceive",
  "next",
  "receiveMany",
  "drain",
  "select",
  "end",
  "cloneSender",
  "cloneReceiver",
  "upgrade",
  "closeSender",
  "closeReceiver",
] as const;

const arbitraryCommand: fc.Arbitrary<Command> = fc.record({
  kind: fc.oneof(
    { weight: 8, arbitrary: fc.constantFrom(...KINDS.slice(0, 9)) },
    { weight: 1, arbitrary: fc.constantFrom(...KINDS.slice(9)) },
  ),
  channel: fc.nat(1),
  pick: fc.nat(50),
  size: fc.integer({ min: 1, max: 4 }),
  limit: fc.constantFrom<Limit>("none", "timeout", 0, 1, 2),
  cases: fc.array(fc.record({ channel: fc.nat(1), pick: fc.nat(50), sends: fc.boolean() }), {
    minLength: 1,
    maxLength: 3,
  }),
});

/** Executes a command on both; returns a promise if the operation may wait. */
function perform(command: Command, model: Model, real: Real): Promise<void> | void {
  const { kind, channel: index, size, limit } = command;
  const id = real.operations++;
  const modelled = model.channels[index]!;
  const channel = real.channels[index]!;
  const senderAt = command.pick % channel.senders.length;
  const receiverAt = command.pick % channel.receivers.length;
  const sender = channel.senders[senderAt]!;
  const receiver = channel.receivers[receiverAt]!;

  /** Returns the options of a wait, and records its limit for the command "end". */
  const options = () => {
    if (limit === "none") return undefined;
    real.limits.set(id, limit);
    return limit === "timeout" ? { timeout: FIRST_TIMEOUT + id } : { signal: real.controllers[limit]!.signal };
  };

  const send = (
    at: number,
    value: number,
    modelled: ModelChannel,
    sent: Outcome,
    closed: Outcome,
  ): Waiting | undefined => {
    const waiting = { id, value, handle: at, taken: () => sent, ended: () => closed };
    if (modelled.trySend(value, at)) model.settle(waiting, sent);
    else if (modelled.closed || !modelled.openSenders.includes(at)) model.settle(waiting, closed);
    else return waiting;
    return undefined;
  };
  const receive = (
    at: number,
    modelled: ModelChannel,
    taken: (value: number) => Outcome,
    ended: (failure: string | undefined) => Outcome,
  ): Waiting | undefined => {
    const waiting = { id, handle: at, taken, ended: (channel: ModelChannel) => ended(channel.failure(at)) };
    const [value] = modelled.takeMany(1, at);
    if (value !== undefined) model.settle(waiting, taken(value));
    else if (modelled.closed || !modelled.openReceivers.includes(at)) model.settle(waiting, waiting.ended(modelled));
    else return waiting;
    return undefined;
  };

  switch (kind) {
    case "send": {
      const value = real.values++;
      const waiting = send(senderAt, value, modelled, "sent", `unsent ${value}`);
      if (waiting) modelled.senders.push(waiting);
      return real.watch(id, sender.send(value, options()).then(() => "sent"));
    }
    case "trySend": {
      const value = real.values++;
      assertEquals(sender.trySend(value), modelled.trySend(value, senderAt));
      return;
    }
    case "receive": {
      const waiting = receive(receiverAt, modelled, (value) => `received ${value}`, (failure) => failure ?? "ended");
      if (waiting) modelled.receivers.push(waiting);
      return real.watch(id, receiver.receive(options()).then((value) => `received ${value}`));
    }
    case "next": {
      const waiting = receive(receiverAt, modelled, (value) => `next ${value}`, (failure) => failure ?? "done");
      if (waiting) modelled.receivers.push(waiting);
      const next = receiver[Symbol.asyncIterator]().next();
      return real.watch(id, next.then((step) => step.done ? "done" : `next ${step.value}`));
    }
    case "receiveMany": {
      const values = modelled.takeMany(size, receiverAt);
      if (values.length > 0) model.settle({ id }, `many ${values}`);
      else {
        const waiting = receive(receiverAt, modelled, (value) => `many ${value}`, (failure) => failure ?? "many ");
        if (waiting) modelled.receivers.push(waiting);
      }
      return real.watch(id, receiver.receiveMany(size, options()).then((values) => `many ${values}`));
    }
    case "tryReceive": {
      const [value] = modelled.takeMany(1, receiverAt);
      const closed = modelled.closed || !modelled.openReceivers.includes(receiverAt);
      assertEquals<unknown>(
        receiver.tryReceive(),
        value !== undefined ? { state: "ok", value } : { state: closed ? "closed" : "empty" },
      );
      return;
    }
    case "drain":
      assertEquals(receiver.drain(), modelled.takeMany(Infinity, receiverAt));
      return;
    case "select": {
      const parked: (() => void)[] = [];
      const cases: Record<
        string,
        ReturnType<Sender<number>["sendCase"]> | ReturnType<Receiver<number>["receiveCase"]>
      > = {};
      let open = true;
      for (const [i, { channel: at, pick, sends }] of command.cases.entries()) {
        const [modelled, channel] = [model.channels[at]!, real.channels[at]!];
        const value = real.values++;
        const handle = pick % (sends ? channel.senders : channel.receivers).length;
        cases[i] = sends ? channel.senders[handle]!.sendCase(value) : channel.receivers[handle]!.receiveCase();
        if (!open) continue;
        const waiting = sends
          ? send(handle, value, modelled, `case ${i} false undefined`, `case ${i} true undefined`)
          : receive(handle, modelled, (value) => `case ${i} false ${value}`, () => `case ${i} true undefined`);
        if (waiting) parked.push(() => (sends ? modelled.senders : modelled.receivers).push(waiting));
        else open = false;
      }
      if (open) { for (const park of parked) park(); }
      const selected = select(cases, { ...options(), biased: true });
      return real.watch(id, selected.then((r) => `case ${r.key} ${r.done} ${r.value}`));
    }
    case "end": {
      const waits = [...real.limits].filter(([id]) => model.isWaiting(id));
      if (waits.length === 0) return;
      const [ended, limit] = waits[command.pick % waits.length]!;
      if (typeof limit !== "number") {
        model.settle({ id: ended }, "TimeoutError");
        real.timers.get(FIRST_TIMEOUT + ended)!();
        return;
      }
      for (const [id, same] of waits) if (same === limit) model.settle({ id }, `aborted ${limit}`);
      real.controllers[limit]!.abort(`aborted ${limit}`);
      real.controllers[limit] = new AbortController();
      return;
    }
    case "cloneSender":
      if (!modelled.openSenders.includes(senderAt)) return;
      modelled.openSenders.push(channel.senders.push(sender.clone()) - 1);
      return;
    case "cloneReceiver":
      if (!modelled.openReceivers.includes(receiverAt)) return;
      modelled.openReceivers.push(channel.receivers.push(receiver.clone()) - 1);
      return;
    case "upgrade": {
      const upgraded = channel.weak.upgrade();
      assertEquals(upgraded !== undefined, modelled.openSenders.length > 0);
      if (upgraded) modelled.openSenders.push(channel.senders.push(upgraded) - 1);
      return;
    }
    case "closeSender": {
      const reason = size === 1 ? `reason ${id}` : undefined;
      modelled.closeSender(senderAt, reason);
      if (reason === undefined) sender.close();
      else sender.close(reason);
      return;
    }
    case "closeReceiver":
      modelled.closeReceiver(receiverAt);
      receiver.close();
      return;
  }
}

/** Asserts that the visible state of both is equal. */
function compare(model: Model, real: Real): void {
  const byId = (outcomes: Map<number, Outcome>) => [...outcomes].sort(([a], [b]) => a - b);
  assertEquals(byId(real.outcomes), byId(model.outcomes));
  for (const [i, channel] of real.channels.entries()) {
    const modelled = model.channels[i]!;
    const { size, isEmpty, isFull, senderCount, receiverCount } = channel.senders[0]!;
    assertEquals({ size, isEmpty, isFull, senderCount, receiverCount, dropped: channel.dropped }, {
      size: modelled.buffer.length,
      isEmpty: modelled.buffer.length === 0,
      isFull: modelled.buffer.length >= modelled.capacity,
      senderCount: modelled.openSenders.length,
      receiverCount: modelled.openReceivers.length,
      dropped: modelled.dropped,
    });
    assertEquals(channel.aborted, modelled.openReceivers.length === 0 ? 1 : 0);
  }
}

/** Runs with a clock that does not advance: each timer fires only when a command calls it. */
async function withoutTime(real: Real, run: () => Promise<void>): Promise<void> {
  const { setTimer, clearTimer } = clock;
  clock.setTimer = (fire, delay) => {
    real.timers.set(delay, fire);
    return delay as unknown as Timer;
  };
  clock.clearTimer = (timer) => void real.timers.delete(timer);
  try {
    await run();
  } finally {
    Object.assign(clock, { setTimer, clearTimer });
  }
}

/** Closes all handles, and asserts that no wait and no timer is left. */
async function finish(model: Model, real: Real): Promise<void> {
  for (const [i, { senders, receivers }] of real.channels.entries()) {
    for (const [at, sender] of senders.entries()) {
      sender.close();
      model.channels[i]!.closeSender(at, undefined);
    }
    for (const [at, receiver] of receivers.entries()) {
      receiver.close();
      model.channels[i]!.closeReceiver(at);
    }
  }
  await microtasks(12);
  compare(model, real);
  assertEquals(real.timers.size, 0);
}

const arbitraryCapacity = fc.constantFrom(0, 1, 2, 3, Infinity);
const arbitraryCapacities = fc.tuple(arbitraryCapacity, arbitraryCapacity);

class Step implements fc.AsyncCommand<Model, Real> {
  constructor(readonly command: Command) {}

  check(): boolean {
    return true;
  }

  async run(model: Model, real: Real): Promise<void> {
    void perform(this.command, model, real);
    await microtasks(12);
    compare(model, real);
  }

  toString(): string {
    return JSON.stringify(this.command);
  }
}

Deno.test(`channel model: two channels and plain arrays agree after each command (${runs} cases, seed ${seed})`, async () => {
  const steps = fc.commands([arbitraryCommand.map((command) => new Step(command))], { size: "+1", maxCommands: 60 });
  const property = fc.asyncProperty(arbitraryCapacities, steps, async (capacities, commands) => {
    const model = new Model(capacities);
    const real = new Real(capacities);
    await withoutTime(real, async () => {
      await fc.asyncModelRun(() => ({ model, real }), commands);
      await finish(model, real);
    });
  });
  await fc.assert(property, { numRuns: runs, seed });
});

Deno.test(`channel model: two channels and plain arrays agree for concurrent tasks in any order (${runs} cases, seed ${seed})`, async () => {
  const tasks = fc.array(fc.array(arbitraryCommand, { maxLength: 12 }), { minLength: 2, maxLength: 5 });
  const property = fc.asyncProperty(
    arbitraryCapacities,
    tasks,
    fc.scheduler(),
    async (capacities, tasks, scheduler) => {
      const model = new Model(capacities);
      const real = new Real(capacities);
      await withoutTime(real, async () => {
        const running = tasks.map(async (commands, task) => {
          for (const command of commands) {
            await scheduler.schedule(Promise.resolve(), `task ${task}: ${command.kind}`);
            await perform(command, model, real);
          }
        });
        await scheduler.waitIdle();
        await microtasks(12);
        compare(model, real);
        await finish(model, real);
        await scheduler.waitIdle(); // waiting tasks continue, on closed channels
        await Promise.all(running);
        compare(model, real);
      });
    },
  );
  await fc.assert(property, { numRuns: runs, seed });
});
