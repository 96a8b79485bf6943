/**
 * Runs the scenarios of one peer in a worker of its own, so that neither the types nor the garbage of another peer
 * affect the measured code.
 *
 * @module
 */

import { peers } from "./channel_peers.ts";
import { type Peer, type Run, type Scenario, scenarios } from "./channel_scenarios.ts";

/** A request to the worker: start, prepare a run, or run the prepared one. */
type Request = { start: true } | { prepare: string; count: number } | { run: true };
/** The duration of a run, or nothing for other requests, or an error. */
type Reply = { milliseconds?: number } | { error: string };

/** One peer in its worker. */
export class Runner {
  readonly #worker: Worker;

  private constructor(readonly name: string, readonly peer: Peer<unknown, unknown>) {
    this.#worker = new Worker(import.meta.url, { type: "module", name });
  }

  /** Starts the available peers; `leftOut` is called for each of the others. */
  static async startAll(leftOut: (name: string, why: string) => void): Promise<Runner[]> {
    const runners: Runner[] = [];
    for (const [name, make] of Object.entries(peers)) {
      try {
        const runner = new Runner(name, await make());
        await runner.#ask({ start: true });
        runners.push(runner);
      } catch (error) {
        leftOut(name, name === "@std/async" ? "the real one is not linked" : `${error}`.split("\n")[0]!);
      }
    }
    return runners;
  }

  /** Returns the methods that the peer lacks for a scenario, if any. */
  lacks(scenario: Scenario): string | undefined {
    const missing = scenario.needs.filter((method) => this.peer[method] === undefined);
    return missing.length > 0 ? `no ${missing.join(", no ")}` : undefined;
  }

  /** Prepares a run. */
  async prepare(scenario: Scenario, count: number): Promise<void> {
    await this.#ask({ prepare: scenario.name, count });
  }

  /** Executes the prepared run; resolves with its duration in milliseconds. */
  async run(): Promise<number> {
    return (await this.#ask({ run: true })).milliseconds ?? NaN;
  }

  [Symbol.dispose](): void {
    this.#worker.terminate();
  }

  async #ask(request: Request): Promise<{ milliseconds?: number }> {
    const { port1, port2 } = new MessageChannel();
    const answer = new Promise<Reply>((resolve) => port1.onmessage = ({ data }) => resolve(data));
    this.#worker.postMessage(request, [port2]);
    const reply = await answer;
    port1.close();
    if ("error" in reply) throw new Error(`${this.name}: ${reply.error}`);
    return reply;
  }
}

/** Serves the requests in the worker. */
function serve(peer: Promise<Peer<unknown, unknown>>): void {
  let prepared: { run: Run; count: number } | undefined;

  async function answer(request: Request): Promise<Reply> {
    const ready = await peer;
    if ("start" in request) return {};
    if ("prepare" in request) {
      const scenario = scenarios.find(({ name }) => name === request.prepare)!;
      prepared = { run: await scenario.prepare(ready, request.count), count: request.count };
      return {};
    }
    const { run, count } = prepared!;
    const started = performance.now();
    const result = run();
    const sum = typeof result === "number" ? result : await result;
    const milliseconds = performance.now() - started;
    if (sum !== count * (count + 1) / 2) throw new Error(`lost or changed a value: the sum is ${sum}`);
    return { milliseconds };
  }

  addEventListener("message", (event) => {
    if (!(event instanceof MessageEvent)) return;
    const [port] = event.ports;
    answer(event.data).catch((error) => ({ error: `${error}` })).then((reply) => port?.postMessage(reply));
  });
}

if (import.meta.main) serve(Promise.resolve(peers[self.name]!()));
