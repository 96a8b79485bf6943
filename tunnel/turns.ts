/**
 * Limits how many tasks run at the same time, and shares the limit among their sources.
 *
 * @module
 */

import { isIPv6 } from "node:net";
import type { Address } from "../mod.ts";
import { unmapped } from "./cidr.ts";

/** Runs tasks, some at the same time. The others wait, and one of each source is started in turn. */
export class Turns {
  readonly #limit: number;
  #running = 0;
  /** By source, in the order of their turns: the functions that start the tasks. */
  readonly #waiting = new Map<string, (() => void)[]>();

  /** @param limit Maximum number of tasks at the same time. */
  constructor(limit: number) {
    this.#limit = limit;
  }

  /** Runs a task when it is the turn of its source, but not before this call has returned. */
  async run<T>(source: string, task: () => Promise<T>): Promise<T> {
    await this.#turn(source);
    try {
      return await task();
    } finally {
      this.#next();
    }
  }

  #turn(source: string): Promise<void> {
    if (this.#running < this.#limit) {
      this.#running++;
      return Promise.resolve();
    }
    const { promise, resolve } = Promise.withResolvers<void>();
    const tasks = this.#waiting.get(source);
    if (tasks === undefined) this.#waiting.set(source, [resolve]);
    else tasks.push(resolve);
    return promise;
  }

  /** Passes the place of a task that has ended on. */
  #next(): void {
    const [next] = this.#waiting;
    if (next === undefined) return void this.#running--;
    const [source, tasks] = next;
    this.#waiting.delete(source);
    tasks.shift()!();
    // The next turn of this source is after one of each other.
    if (tasks.length > 0) this.#waiting.set(source, tasks);
  }
}

// Groups of an IPv6 address that one network has, usually one customer of a provider.
const NETWORK_GROUPS = 4;
const GROUPS = 8;

/** Returns the source of a client: its IPv4 address, or the network /64 of its IPv6 address; empty at a Unix socket. */
export function sourceOf(address: Address | undefined): string {
  const hostname = unmapped(address !== undefined && "hostname" in address ? address.hostname : "");
  if (!isIPv6(hostname)) return hostname;
  const [left = [], right = []] = hostname.split("::").map((part) => part === "" ? [] : part.split(":"));
  const zeros = new Array<string>(GROUPS - left.length - right.length).fill("0");
  return [...left, ...zeros, ...right].slice(0, NETWORK_GROUPS).join(":");
}
