/**
 * The addresses that a client listens on, or has its server listen on, and the difference between two lists of them.
 *
 * @module
 */

import type { Route } from "./accounting.ts";
import { format, parseEndpoint, splitUdp, UDP } from "./address.ts";
import type { Listener } from "./listen.ts";
import { overlaps } from "./ports.ts";

/** An entry of `forward`, `socks` or `reverse`. */
interface Place {
  /** With `udp:` for datagrams. */
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
  listening: Listener | undefined;
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
  const [isUdp, address] = splitUdp(listen);
  return `${isUdp ? UDP : ""}${format(parseEndpoint("listen", address, 0))}`;
}

/** The difference between the entries that are listened on and new ones. */
export interface Changes<P extends Place> {
  /** The entries to listen on, in the order of the new ones: an old one where its LISTEN stays. */
  next: P[];
  /** The new ones whose LISTEN no old one has, and whether an old one must be closed before. */
  added: { place: P; mustWait: boolean }[];
  removed: P[];
  /** The old ones that stay, by the new one. */
  kept: ReadonlyMap<P, P>;
}

/** Compares entries by their LISTEN. Several with the same, as with port 0, are first compared by `isEqual`. */
function compare<P extends Place>(
  old: Iterable<P>,
  wanted: readonly P[],
  isEqual: (one: P, other: P) => boolean,
): Changes<P> {
  const left = new Set(old);
  const kept = new Map<P, P>();
  const keep = (isSame: (one: P, other: P) => boolean) => {
    for (const place of wanted) {
      const found = kept.has(place) ? undefined : [...left].find((other) => isSame(place, other));
      if (found === undefined) continue;
      kept.set(place, found);
      left.delete(found);
    }
  };
  const hasSameListen = (one: P, other: P) => normalize(one.listen) === normalize(other.listen);
  keep((one, other) => hasSameListen(one, other) && isEqual(one, other));
  keep(hasSameListen);
  const mustWait = ({ listen }: P) =>
    [...left].some(({ addr }) => addr !== undefined && overlaps(addr, normalize(listen)));
  return {
    next: wanted.map((place) => kept.get(place) ?? place),
    added: wanted.filter((place) => !kept.has(place)).map((place) => ({ place, mustWait: mustWait(place) })),
    removed: [...left],
    kept,
  };
}

/** Compares entries of `forward` and `socks`. */
export function compareLocals(old: readonly Local[], wanted: readonly Local[]): Changes<Local> {
  return compare(old, wanted, (one, other) => one.target === other.target && one.isSocks === other.isSocks);
}

/** Compares entries of `reverse`. */
export function compareReverses(old: Iterable<Reverse>, wanted: Iterable<Reverse>): Changes<Reverse> {
  // The server names the LISTEN as it was requested.
  return compare(old, [...wanted], (one, other) => one.listen === other.listen);
}
