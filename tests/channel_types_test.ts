/**
 * Types of the channel. Most of these tests run in the compiler: an unused `@ts-expect-error` is an error.
 *
 * @module
 */
import { assert, assertEquals, assertStrictEquals } from "@std/assert";
import {
  bounded,
  Channel,
  type ChannelHandle,
  type ChannelOptions,
  type ChannelReceiveOptions,
  type ChannelReceiveResult,
  type ChannelSendOptions,
  type Receiver,
  select,
  type SelectResult,
  Sender,
  trySelect,
  unbounded,
  type WeakSender,
} from "../channel.ts";

/** The public shape of `@std/async`'s `Channel`, copied because JSR may not be reachable. */
interface StdChannel<T> {
  send(value: T, options?: { signal?: AbortSignal }): Promise<void>;
  receive(options?: { signal?: AbortSignal }): Promise<T>;
  trySend(value: T): boolean;
  tryReceive(): { state: "ok"; value: T } | { state: "empty" } | { state: "closed" };
  close(): void;
  close(reason: unknown): void;
  get closed(): boolean;
  get size(): number;
  get capacity(): number;
  [Symbol.asyncIterator](): AsyncIterableIterator<T>;
  toReadableStream(): ReadableStream<T>;
  [Symbol.dispose](): void;
  [Symbol.asyncDispose](): Promise<void>;
}

type Equal<A, B> = (<X>() => X extends A ? 1 : 2) extends <X>() => X extends B ? 1 : 2 ? true : false;
/** Fails to compile unless the two types are the same. */
function assertType<_ extends true>(): void {}

Deno.test("channel types: a Channel is assignable to the shape of std's Channel", async () => {
  async function program(channel: Pick<StdChannel<number>, keyof StdChannel<number>>): Promise<number> {
    const options: { signal?: AbortSignal } = {};
    await channel.send(1, options);
    channel.trySend(2);
    channel.close();
    let sum = 0;
    for await (const value of channel) sum += value;
    return sum;
  }
  assertEquals(await program(new Channel<number>({ capacity: 2 })), 3);

  // The names that std exports beside the class.
  const options: ChannelOptions = { capacity: 1 };
  const sending: ChannelSendOptions = { signal: AbortSignal.abort() };
  const receiving: ChannelReceiveOptions = { signal: AbortSignal.abort() };
  const channel = new Channel<string>(options);
  await channel.send("a", sending);
  const result: ChannelReceiveResult<string> = channel.tryReceive();
  if (result.state === "ok") assertEquals(result.value.length, 1);
  assertEquals(await channel.send("b").then(() => channel.receive(receiving)), "b");
});

Deno.test("channel types: select() narrows by key and then by done, and a missing case is an error", async () => {
  const jobs = new Channel<{ id: number }>({ capacity: 1 });
  const outbox = new Channel<string>();
  const { receiver: ticks } = unbounded<Date>();

  function describe(r: SelectResult<ReturnType<typeof cases>>): string {
    switch (r.key) {
      case "job":
        if (r.done) {
          assertType<Equal<typeof r.value, undefined>>();
          return "end";
        }
        assertType<Equal<typeof r.value, { id: number }>>();
        return `job ${r.value.id}`;
      case "out":
        assertType<Equal<typeof r.done, boolean>>();
        assertType<Equal<typeof r.value, undefined>>();
        return `out ${r.done}`;
      case "tick":
        // @ts-expect-error r.done must be checked first
        void (() => r.value.getTime());
        return r.done ? "end" : `tick ${r.value.getTime()}`;
      default:
        return r satisfies never;
    }
  }
  function cases() {
    return { job: jobs.receiveCase(), out: outbox.sendCase("x"), tick: ticks.receiveCase() };
  }

  jobs.trySend({ id: 7 });
  assertEquals(describe(await select(cases())), "job 7");
  const received = outbox.receive();
  assertEquals(describe(await select(cases())), "out false");
  assertEquals(await received, "x");
  assertEquals(trySelect(cases()), undefined);
  jobs.close();
  assertEquals(describe(await select(cases())), "end");

  const r = await select(cases());
  assertType<Equal<typeof r.key, "job" | "out" | "tick">>();
  // @ts-expect-error not a key of the cases
  assert(r.key !== "nothing");
  // @ts-expect-error a case is missing: no string is returned for it
  const incomplete = (r: SelectResult<ReturnType<typeof cases>>): string => {
    switch (r.key) {
      case "job":
      case "out":
        return "";
    }
  };
  void incomplete;
});

Deno.test("channel types: select() keeps the key of a case that may be undefined", async () => {
  const channel = new Channel<number>({ capacity: 1 });
  const paused: boolean = Math.random() > 2;
  channel.trySend(1);
  const r = await select({ a: paused ? undefined : channel.receiveCase(), never: undefined });
  assertType<Equal<typeof r.key, "a">>();
  if (!r.done) assertType<Equal<typeof r.value, number>>();
  assertEquals(r, { key: "a", done: false, value: 1 });
  // @ts-expect-error a channel is not a case
  const wrong = () => select({ a: channel });
  void wrong;
});

Deno.test("channel types: the result of select() is never undefined if a case is optional", async () => {
  const channel = new Channel<number>({ capacity: 1 });
  const others = new Channel<string>();
  const paused: boolean = Math.random() > 2;
  channel.trySend(1);
  const r = await select({ b: channel.receiveCase(), ...(paused ? { a: others.receiveCase() } : {}) });
  assertType<Equal<typeof r.key, "a" | "b">>();
  if (r.key === "a" && !r.done) assertType<Equal<typeof r.value, string>>();
  assertEquals(r.key, "b");
  // @ts-expect-error not a key of the cases
  assert(r.key !== "c");
});

Deno.test("channel types: select() has the key of an integer case as a string", async () => {
  const channel = new Channel<number>({ capacity: 1 });
  channel.trySend(1);
  const r = await select({ 0: channel.receiveCase(), b: new Channel<string>().receiveCase() });
  assertType<Equal<typeof r.key, "0" | "b">>();
  if (r.key === "0" && !r.done) assertType<Equal<typeof r.value, number>>();
  assertEquals(r, { key: "0", done: false, value: 1 });
  // @ts-expect-error a key is not a number
  assert(r.key !== 0);

  const named: Record<string, ReturnType<typeof channel.receiveCase>> = {};
  assertType<Equal<SelectResult<typeof named>["key"], string>>();
});

Deno.test("channel types: a Receiver is covariant, a Sender contravariant, a Channel invariant", async () => {
  interface Animal {
    name: string;
  }
  interface Dog extends Animal {
    bark(): string;
  }
  const animals = unbounded<Animal>();
  const dogs = unbounded<Dog>();
  dogs.sender.trySend({ name: "Rex", bark: () => "woof" });
  const receiver: Receiver<Animal> = dogs.receiver;
  const sender: Sender<Dog> = animals.sender;
  const weak: WeakSender<Dog> = animals.sender.downgrade();
  const handles: ChannelHandle<unknown>[] = [animals.sender, animals.receiver, dogs.sender, dogs.receiver];
  assertEquals((await receiver.receive()).name, "Rex");
  assertEquals(handles.filter((handle) => handle.sameChannel(sender)).length, 2);
  assert(weak.upgrade()?.sameChannel(animals.receiver));

  const wrong = () => {
    // @ts-expect-error an Animal that is received need not be a Dog
    const noDogs: Receiver<Dog> = animals.receiver;
    // @ts-expect-error an Animal must not be sent to a receiver of Dogs
    const noAnimals: Sender<Animal> = dogs.sender;
    // @ts-expect-error the same after upgrade()
    const weakAnimals: WeakSender<Animal> = dogs.sender.downgrade();
    // @ts-expect-error a handle cannot receive
    const anyReceiver: Receiver<unknown> = handles[0]!;
    // @ts-expect-error a Channel also sends
    const sends: Channel<Animal> = new Channel<Dog>();
    // @ts-expect-error a Channel also receives
    const receives: Channel<Dog> = new Channel<Animal>();
    void [noDogs, noAnimals, weakAnimals, anyReceiver, sends, receives];
  };
  void wrong;
});

Deno.test("channel types: undefined is a value of Channel<undefined>", async () => {
  const channel = new Channel<undefined>({ capacity: 1 });
  channel.trySend(undefined);
  const result = channel.tryReceive();
  assert(result.state === "ok");
  assertType<Equal<typeof result.value, undefined>>();
  channel.trySend(undefined);
  const r = await select({ a: channel.receiveCase() });
  assertEquals(r, { key: "a", done: false, value: undefined });

  const maybe = new Channel<number | undefined>({ capacity: 1 });
  maybe.trySend(undefined);
  const received: number | undefined = await maybe.receive();
  assertStrictEquals(received, undefined);
  // @ts-expect-error the argument is required even if it may be undefined
  const wrong = () => maybe.trySend();
  void wrong;
});

Deno.test("channel types: receive() unwraps a thenable, and every other way to receive returns it", async () => {
  const promise = Promise.resolve("later");
  const channel = new Channel<Promise<string>>({ capacity: 8 });
  for (let i = 0; i < 6; i++) channel.trySend(promise);
  assertEquals<unknown>(await channel.receive(), "later");
  const result = channel.tryReceive();
  assert(result.state === "ok");
  assertStrictEquals(result.value, promise);
  assertStrictEquals((await channel.receiveMany(1))[0], promise);
  const r = await select({ a: channel.receiveCase() });
  assertStrictEquals(r.value, promise);
  assertStrictEquals((await channel.toReadableStream().getReader().read()).value, promise);
  assertStrictEquals(channel.drain()[0], promise);

  // The same for operations that waited.
  const next = channel[Symbol.asyncIterator]().next();
  const many = channel.receiveMany(1);
  const selected = select({ a: channel.receiveCase() });
  const read = channel.toReadableStream().getReader().read();
  while (channel.size === 0) channel.trySend(promise);
  assertStrictEquals((await next).value, promise);
  assertStrictEquals((await many)[0], promise);
  assertStrictEquals((await selected).value, promise);
  assertStrictEquals((await read).value, promise);
});

Deno.test("channel types: options are checked, handles have no public constructor, and each side has only its own methods", () => {
  const { sender, receiver } = bounded<number>(1, { onDrop: (value) => void value.toFixed() });
  assertType<Equal<typeof sender, Sender<number>>>();
  assertType<Equal<typeof receiver, Receiver<number>>>();
  const wrong = () => {
    // @ts-expect-error a string is not a number
    sender.trySend("a");
    // @ts-expect-error a sender does not receive
    sender.receive();
    // @ts-expect-error a receiver does not send
    receiver.trySend(1);
    // @ts-expect-error handles are made by bounded() and unbounded()
    new Sender();
    // @ts-expect-error no such option
    bounded(1, { onDropped() {} });
    // @ts-expect-error a capacity must be a number
    bounded("1");
    // @ts-expect-error biased is an option of select()
    receiver.receive({ biased: true });
  };
  void wrong;
  // Options may be undefined.
  const options: { signal?: AbortSignal; timeout?: number } = {};
  void (() => receiver.receive({ signal: options.signal, timeout: options.timeout }));
});
