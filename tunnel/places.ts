/**
 * The addresses that a client listens on, or has its server listen on, and the difference between two lists of them.
 *
 * @module
 */

import type { Route } from "./accounting.ts";
import { format, parseEndpoint } from "./address.ts";
import { overlaps } from "./ports.ts";
import type { Listening } from "./socket.ts";

/** An entry of `forward`, `socks` or `reverse`. */
interface Place {
  listen: string;
  /** Whether the target expects a header of the PROXY protocol. */
  isProxied: boolean;
  /** The address with its port, once it is listened on. */
  addr: string | undefined;
  /** Stops listening on abort. */
  readonly removed: AbortController;
}

/** An entry of `forward` or `socks`: the client listens. */
export interface Local extends Place {
  /** `undefined`: the fixed target of the server, or that of each SOCKS 5 request. */
  target: string | undefined;
  isSocks: boolean;
  /** For events and sums. */
  readonly route: Pick<Route, "kind" | "user" | "forward">;
  listening: Listening | undefined;
}

/** An entry of `reverse`: the server listens. */
export interface Reverse extends Place {
  target: string;
}

/** Makes an entry of `forward` or `socks`. */
export function makeLocal(parsed: Pick<Local, "listen" | "target" | "isSocks" | "isProxied">): Local {
  const { listen, target, isSocks } = parsed;
  const forward = target === undefined ? listen : `${listen}=${target}`;
  const route = { kind: isSocks ? "socks" as const : "forward" as const, user: undefined, forward };
  return { ...parsed, route, addr: undefined, listening: undefined, removed: new AbortController() };
}

/** Makes an entry of `reverse`. */
export function makeReverse(parsed: Pick<Reverse, "listen" | "target" | "isProxied">): Reverse {
  return { ...parsed, addr: undefined, removed: new AbortController() };
}

function normalize(listen: string): string {
  return format(parseEndpoint("listen", listen, 0));
}

/** The difference between the entries that are listened on and new ones. */
export interface Changes {
  /** The entries to listen on, in the order of the new ones: an old one where its LISTEN stays. */
  next: Local[];
  /** The new ones whose LISTEN no old one has, and whether an old one must be closed before. */
  added: { local: Local; mustWait: boolean }[];
  removed: Local[];
  /** Replaces the targets of the old ones that stay. */
  apply(): void;
}

/** Compares entries by their LISTEN. Entries with the same, as with port 0, are first compared by their target. */
export function compare(old: readonly Local[], wanted: readonly Local[]): Changes {
  const left = new Set(old);
  const kept = new Map<Local, Local>();
  const keep = (isSame: (one: Local, other: Local) => boolean) => {
    for (const local of wanted) {
      const found = kept.has(local) ? undefined : [...left].find((other) => isSame(local, other));
      if (found === undefined) continue;
      kept.set(local, found);
      left.delete(found);
    }
  };
  const hasSameListen = (one: Local, other: Local) => normalize(one.listen) === normalize(other.listen);
  keep((one, other) => hasSameListen(one, other) && one.target === other.target && one.isSocks === other.isSocks);
  keep(hasSameListen);
  const mustWait = ({ listen }: Local) =>
    [...left].some(({ addr }) => addr !== undefined && overlaps(addr, normalize(listen)));
  return {
    next: wanted.map((local) => kept.get(local) ?? local),
    added: wanted.filter((local) => !kept.has(local)).map((local) => ({ local, mustWait: mustWait(local) })),
    removed: [...left],
    apply() {
      for (const [{ listen, target, isSocks, isProxied, route }, local] of kept) {
        Object.assign(local, { listen, target, isSocks, isProxied });
        Object.assign(local.route, route);
      }
    },
  };
}
