/**
 * A common interface for the queues under test, and the scenarios over it.
 *
 * Every scenario sums up the received values, so that a lost, repeated or changed value is detected.
 *
 * @module
 */

/**
 * An implementation under test. A missing method excludes it from the scenarios that need it.
 *
 * `Q` is its queue, `R` the result of a receive, `S` that of a select. `read` and `readSelected` extract the number
 * synchronously, so that no peer needs an additional promise.
 */
export interface Peer<Q, R = number, S = unknown> {
  /** Creates a queue for `capacity` values; 0: a rendezvous. */
  open(capacity: number): Q;
  send(queue: Q, value: number): Promise<unknown>;
  receive(queue: Q): Promise<R>;
  read(received: R): number;
  /** Ends the queue; values sent before stay receivable. */
  close(queue: Q): unknown;
  values(queue: Q): AsyncIterable<number>;
  trySend?(queue: Q, value: number): boolean;
  tryReceive?(queue: Q): number | undefined;
  receiveUntil?(queue: Q, signal: AbortSignal): Promise<R>;
  select?(a: Q, b: Q, c: Q): Promise<S>;
  readSelected?(selected: S): number;
  /** Sends 1 to `count` to an iteration, for peers with a faster way than a promise for each value. */
  sendAll?(queue: Q, count: number): Promise<unknown>;
}

/** A measured scenario. */
export interface Scenario {
  name: string;
  /** Default number of operations of a run. */
  count: number;
  /** Methods that a peer must have. */
  needs: ("trySend" | "tryReceive" | "receiveUntil" | "select")[];
  /** Prepares a run; the returned function is timed, and returns the sum of 1 to `count`. */
  prepare<Q, R, S>(peer: Peer<Q, R, S>, count: number): Run | Promise<Run>;
}

/** One run of a scenario. */
export type Run = () => number | Promise<number>;

const CAPACITY = 128;

async function sendAll<Q, R, S>(peer: Peer<Q, R, S>, queue: Q, first: number, last: number): Promise<void> {
  for (let value = first; value <= last; value++) await peer.send(queue, value);
}

/** Sends 1 to `count` to a queue with enough capacity. */
export function fill<Q, R, S>(peer: Peer<Q, R, S>, queue: Q, count: number): void {
  for (let value = 1; value <= count; value++) {
    if (peer.trySend === undefined) peer.send(queue, value);
    else if (!peer.trySend(queue, value)) throw new Error(`no room for ${value}`);
  }
}

async function receiveAll<Q, R, S>(peer: Peer<Q, R, S>, queue: Q, count: number): Promise<number> {
  let sum = 0;
  for (let i = 0; i < count; i++) sum += peer.read(await peer.receive(queue));
  return sum;
}

/** `pairs` tasks send and `pairs` tasks receive, each an equal share. */
function between<Q, R, S>(pairs: number, capacity: number, peer: Peer<Q, R, S>, count: number): Run {
  const queue = peer.open(capacity);
  const share = count / pairs;
  return async () => {
    const sums: Promise<number>[] = [];
    for (let i = 0; i < pairs; i++) sums.push(receiveAll(peer, queue, share));
    for (let i = 0; i < pairs; i++) sendAll(peer, queue, i * share + 1, (i + 1) * share);
    return (await Promise.all(sums)).reduce((a, b) => a + b);
  };
}

async function iterate<Q, R, S>(peer: Peer<Q, R, S>, queue: Q): Promise<number> {
  let sum = 0;
  for await (const value of peer.values(queue)) sum += value;
  return sum;
}

/** Shuffles a copy, into the same order at every call. */
function shuffled<T>(items: T[]): T[] {
  const result = [...items];
  let state = 1;
  for (let i = result.length - 1; i > 0; i--) {
    state = (Math.imul(state, 1_103_515_245) + 12_345) & 0x7fffffff;
    const j = state % (i + 1);
    [result[i], result[j]] = [result[j]!, result[i]!];
  }
  return result;
}

/** One waiting receive for each controller, aborted in shuffled order. */
function abortAll<Q, R, S>(peer: Peer<Q, R, S>, controllers: AbortController[]): Run {
  const queue = peer.open(CAPACITY);
  const order = shuffled(controllers);
  const reason = new Error("no longer wanted"); // shared: one error for each abort would take most of the time
  return async () => {
    const ends = controllers.map(({ signal }, i) => peer.receiveUntil!(queue, signal).then(() => NaN, () => i + 1));
    for (const controller of order) controller.abort(reason);
    return (await Promise.all(ends)).reduce((a, b) => a + b);
  };
}

/** The scenarios, in the order of the table. */
export const scenarios: readonly Scenario[] = [
  {
    name: "try/try",
    count: 1_000_000,
    needs: ["trySend", "tryReceive"],
    prepare(peer, count) {
      const queue = peer.open(CAPACITY);
      for (let i = 0; i < CAPACITY / 2; i++) peer.trySend!(queue, 0); // so that the buffer wraps
      return () => {
        let sum = 0;
        for (let value = 1; value <= count; value++) {
          if (!peer.trySend!(queue, value)) throw new Error(`no room for ${value}`);
          sum += peer.tryReceive!(queue) ?? NaN;
        }
        for (let i = 0; i < CAPACITY / 2; i++) sum += peer.tryReceive!(queue) ?? NaN;
        return sum;
      };
    },
  },
  { name: "1:1", count: 100_000, needs: [], prepare: (peer, count) => between(1, CAPACITY, peer, count) },
  { name: "4:4", count: 100_000, needs: [], prepare: (peer, count) => between(4, CAPACITY, peer, count) },
  { name: "rendezvous", count: 50_000, needs: [], prepare: (peer, count) => between(1, 0, peer, count) },
  {
    name: "ping-pong",
    count: 50_000,
    needs: [],
    prepare(peer, count) {
      const [out, back] = [peer.open(1), peer.open(1)];
      const pong = async () => {
        for (let i = 0; i < count; i++) await peer.send(back, peer.read(await peer.receive(out)));
      };
      return async () => {
        pong();
        let sum = 0;
        for (let value = 1; value <= count; value++) {
          await peer.send(out, value);
          sum += peer.read(await peer.receive(back));
        }
        return sum;
      };
    },
  },
  {
    name: "for await, while sent",
    count: 100_000,
    needs: [],
    prepare(peer, count) {
      const queue = peer.open(CAPACITY);
      return () => {
        const sent = peer.sendAll?.(queue, count) ?? sendAll(peer, queue, 1, count);
        sent.then(() => peer.close(queue));
        return iterate(peer, queue);
      };
    },
  },
  {
    name: "for await, all there",
    count: 20_000, // for some peers the time is quadratic in this
    needs: [],
    async prepare(peer, count) {
      const queue = peer.open(count);
      fill(peer, queue, count);
      peer.close(queue);
      await new Promise((resolve) => setTimeout(resolve)); // a stream accepts its chunks asynchronously
      return () => iterate(peer, queue);
    },
  },
  {
    name: "receive with a signal",
    count: 50_000,
    needs: ["trySend", "receiveUntil"],
    prepare(peer, count) {
      const queue = peer.open(CAPACITY);
      const { signal } = new AbortController();
      return async () => {
        let sum = 0;
        for (let value = 1; value <= count; value++) {
          const received = peer.receiveUntil!(queue, signal);
          peer.trySend!(queue, value);
          sum += peer.read(await received);
        }
        return sum;
      };
    },
  },
  {
    name: "64 receives, one signal",
    count: 64_000,
    needs: ["trySend", "receiveUntil"],
    prepare(peer, count) {
      const queue = peer.open(CAPACITY);
      const { signal } = new AbortController();
      return async () => {
        let sum = 0;
        for (let last = 0; last < count; last += 64) {
          const received: ReturnType<typeof peer.receive>[] = [];
          for (let i = 0; i < 64; i++) received.push(peer.receiveUntil!(queue, signal));
          for (let i = 1; i <= 64; i++) peer.trySend!(queue, last + i);
          for (const one of received) sum += peer.read(await one);
        }
        return sum;
      };
    },
  },
  {
    name: "mass abort, a signal each",
    count: 20_000,
    needs: ["receiveUntil"],
    prepare: (peer, count) => abortAll(peer, Array.from({ length: count }, () => new AbortController())),
  },
  {
    name: "mass abort, one signal",
    count: 20_000,
    needs: ["receiveUntil"],
    prepare: (peer, count) => abortAll(peer, new Array<AbortController>(count).fill(new AbortController())),
  },
  {
    name: "select of 3, waiting",
    count: 20_000,
    needs: ["trySend", "select"],
    prepare(peer, count) {
      const queues = [peer.open(CAPACITY), peer.open(CAPACITY), peer.open(CAPACITY)] as const;
      return async () => {
        let sum = 0;
        for (let value = 1; value <= count; value++) {
          const selected = peer.select!(...queues);
          peer.trySend!(queues[value % 3]!, value);
          sum += peer.readSelected!(await selected);
        }
        return sum;
      };
    },
  },
  {
    name: "select of 3, ready",
    count: 20_000,
    needs: ["trySend", "select"],
    prepare(peer, count) {
      const queues = [peer.open(CAPACITY), peer.open(CAPACITY), peer.open(CAPACITY)] as const;
      return async () => {
        let sum = 0;
        for (let value = 1; value <= count; value++) {
          peer.trySend!(queues[value % 3]!, value);
          sum += peer.readSelected!(await peer.select!(...queues));
        }
        return sum;
      };
    },
  },
];
