/**
 * A kernel link with a queueing discipline, in network namespaces of its own.
 *
 * A namespace exists while a process is in it, and its process ends with this one: no namespace leaks, even if this
 * process is killed.
 *
 * @module
 */

import { findProgram, Process, run } from "../../programs.ts";
import type { Role } from "../shared/end.ts";

/** Kinds of links: the loopback device of one namespace, with one queue; or a pair of devices in two namespaces. */
export const KINDS = ["lo", "veth"] as const;

const PROGRAMS = ["unshare", "nsenter", "ip"];
/** Addresses of the ends of a link. They are for documentation: no real host has them. */
export const ADDRESSES: Record<Role, string> = { client: "192.0.2.1", server: "192.0.2.2" };
const MTU = "1500";

/** A link between the two ends. */
export interface Link extends AsyncDisposable {
  /** Command prefix that runs a program in the namespace of each end. */
  at: Record<Role, string[]>;
  /** The server's address. */
  hostname: string;
}

/**
 * Creates a link, which exists until it is disposed.
 *
 * @param kind The kind of link.
 * @param sender The end whose device has the queue; ignored for `lo`.
 * @param queue The queueing discipline, as arguments of `tc`; empty for that of the kernel.
 * @throws {Error} If a program is missing or fails.
 */
export async function makeLink(kind: typeof KINDS[number], sender: Role, queue: string[]): Promise<Link> {
  for (const name of queue.length > 0 ? [...PROGRAMS, "tc"] : PROGRAMS) {
    if (findProgram(name) === undefined) throw new Error(`${name} is not installed`);
  }
  await using processes = new AsyncDisposableStack();
  const namespace = async () => {
    // The shell runs until its input ends.
    const holder = processes.use(new Process(["unshare", "--net", "sh", "-c", "echo $$; exec cat"]));
    return await holder.line();
  };
  const enter = (id: string) => ["nsenter", "--net", "--target", id];
  const execute = async ([command, ...before]: string[], ...args: string[]) =>
    void await run(command!, [...before, ...args]);
  const addQueue = (at: string[], device: string) => execute(at, "tc", "qdisc", "add", "dev", device, "root", ...queue);
  const client = await namespace();
  if (kind === "lo") {
    const at = enter(client);
    await execute(at, "ip", "link", "set", "lo", "mtu", MTU, "up");
    await addQueue(at, "lo");
    const kept = processes.move();
    return { at: { client: at, server: at }, hostname: "127.0.0.1", [Symbol.asyncDispose]: () => kept.disposeAsync() };
  }
  const server = await namespace();
  const at = { client: enter(client), server: enter(server) };
  await execute(at.client, "ip", "link", "add", "end", "type", "veth", "peer", "name", "end", "netns", server);
  for (const role of ["client", "server"] as const) {
    await execute(at[role], "ip", "address", "add", `${ADDRESSES[role]}/30`, "dev", "end");
    await execute(at[role], "ip", "link", "set", "end", "mtu", MTU, "up");
  }
  if (queue.length > 0) await addQueue(at[sender], "end");
  const kept = processes.move();
  return { at, hostname: ADDRESSES.server, [Symbol.asyncDispose]: () => kept.disposeAsync() };
}
