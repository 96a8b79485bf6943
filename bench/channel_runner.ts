/**
 * Runs the scenarios for one peer in a worker of its own, where no other peer's values have passed through the code that
 * is measured, nor does another's garbage wait to be collected.
 *
 * @module
 */

import { peers } from "./channel_peers.ts";
import { type Peer, type Run, type Scenario, scenarios } from "./channel_scenarios.ts";

/** What is asked of the worker: to get ready, to set a run up, or to run what is set up. */
type Request = { start: true } | { prepare: string; count: number } | { run: true };
/** How long the run took in milliseconds; nothing for the rest; or what went wrong. */
type Reply = { milliseconds?: number } | { error: string };

/** One peer, ready to run. */
export class Runner {
  readonly #worker: Worker;

  private constructor(readonly name: string, readonly peer: Peer<unknown, unknown>) {
    this.#worker = new Worker(import.meta.url, { type: "module", name });
  }

  /** Starts all that can be had; `leftOut` is told of the others. */
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

  /** What the peer lacks for a scenario, if anything. */
  lacks(scenario: Scenario): string | undefined {
    const missing = scenario.needs.filter((method) => this.peer[method] === undefined);
    return missing.length > 0 ? `no ${missing.join(", no ")}` : undefined;
  }

  /** Sets a run up. */
  async prepare(scenario: Scenario, count: number): Promise<void> {
    await this.#ask({ prepare: scenario.name, count });
  }

  /** Runs what was set up; resolves with the milliseconds it took. */
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

/** The worker's side. */
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
