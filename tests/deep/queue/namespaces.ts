/**
 * A link of the kernel's with a queue, in network namespaces of its own.
 *
 * A namespace lasts as long as its processes, and those end with this one: nothing is left behind, in whatever way this
 * process ends.
 *
 * @module
 */

import { findProgram, Process, run } from "../../programs.ts";
import type { Role } from "../shared/end.ts";

/** The kinds: one namespace, whose loopback device has the queue for both directions; or two, joined by a pair of devices. */
export const KINDS = ["lo", "veth"] as const;

const PROGRAMS = ["unshare", "nsenter", "ip", "tc"];
// Addresses for documentation: no real host has them.
const ADDRESSES: Record<Role, string> = { client: "192.0.2.1", server: "192.0.2.2" };
const MTU = "1500";

/** Where the ends of a link are. */
export interface Link extends AsyncDisposable {
  /** The command that starts another one where this end is. */
  at: Record<Role, string[]>;
  /** The server's address. */
  hostname: string;
}

/**
 * Makes a link, which lasts until it is disposed of.
 *
 * @param kind What it is made of.
 * @param sender The end whose device has the queue, of a pair.
 * @param queue The queueing discipline, as `tc` is given it.
 * @throws {Error} Which program is missing, or what it printed.
 */
export async function makeLink(kind: typeof KINDS[number], sender: Role, queue: string[]): Promise<Link> {
  for (const name of PROGRAMS) {
    if (findProgram(name) === undefined) throw new Error(`${name} is not installed`);
  }
  await using processes = new AsyncDisposableStack();
  const namespace = async () => {
    // It runs until its input ends.
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
  await addQueue(at[sender], "end");
  const kept = processes.move();
  return { at, hostname: ADDRESSES.server, [Symbol.asyncDispose]: () => kept.disposeAsync() };
}
