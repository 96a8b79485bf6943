/**
 * The addresses that a client listens on, or has its server listen on, and the difference between two lists of them.
 *
 * @module
 */

import type { Route } from "./accounting.ts";
import { format, parseEndpoint, splitUdp, UDP } from "./address.ts";
import type { AnyListening } from "./listen.ts";
import { overlaps } from "./ports.ts";

/** An entry of `forward`, `socks`, `http`, `reverse` or `reverseSocks`. */
interface Place {
  /** With `udp:` for datagrams. */
  listen: string;
  /** Whether the target expects a header of the PROXY protocol. */
  isProxied: boolean;
  /** Stops listening on abort. */
  readonly removed: AbortController;
}

/** An entry of `forward`, `socks` or `http`: the client listens. */
export interface Local extends Place {
  /** The address with its port, once it is listened on. */
  addr: string | undefined;
  /** `undefined`: the fixed target of the server, or that of each request to a proxy. */
  target: string | undefined;
  /** Whether its connections speak the protocols of a proxy. */
  isSocks: boolean;
  /** For events and sums. */
  readonly route: Pick<Route, "kind" | "user" | "forward">;
  listening: AnyListening | undefined;
}

/** An entry of `reverse` or `reverseSocks`: each server listens. */
export interface Reverse extends Place {
  /** The address with its port at each server that has listened, by the address of the server. */
  readonly addrs: Map<string, string>;
  /** Those of `addrs` that an event has reported. */
  readonly reported: Map<string, string>;
  /** Where a server has listened last, and its address; `undefined` before. */
  boundAt: string | undefined;
  /** Whether listening has failed since, which was reported. */
  hasFailed: boolean;
  /** `undefined`: that of each request to the proxy of `reverseSocks`. */
  target: string | undefined;
}

/** Makes an entry of `forward`. */
export function makeLocal(parsed: Pick<Local, "listen" | "target" | "isProxied">): Local {
  const { listen, target } = parsed;
  const forward = target === undefined ? listen : `${listen}=${target}`;
  return makePlace(parsed, { kind: "forward", user: undefined, forward });
}

/** Makes an entry of `socks` or `http`. */
export function makeProxy(kind: "socks" | "http", listen: string): Local {
  return makePlace({ listen, target: undefined, isProxied: false }, { kind, user: undefined, forward: listen });
}

function makePlace(parsed: Pick<Local, "listen" | "target" | "isProxied">, route: Local["route"]): Local {
  const isSocks = route.kind !== "forward";
  return { ...parsed, isSocks, route, addr: undefined, listening: undefined, removed: new AbortController() };
}

/** Makes an entry of `reverse` or `reverseSocks`. */
export function makeReverse(parsed: Pick<Reverse, "listen" | "target" | "isProxied">): Reverse {
  const removed = new AbortController();
  return { ...parsed, addrs: new Map(), reported: new Map(), boundAt: undefined, hasFailed: false, removed };
}

/** Formats an address so that equal ones have equal texts. */
export function normalize(listen: string): string {
  const [isUdp, address] = splitUdp(listen);
  return `${isUdp ? UDP : ""}${format(parseEndpoint("listen", address, 0))}`;
}

function addrsOf(place: Local | Reverse): string[] {
  if ("addrs" in place) return [...place.addrs.values()];
  return place.addr === undefined ? [] : [place.addr];
}

/** The difference between the entries that are listened on and new ones. */
export interface Changes<P extends Local | Reverse> {
  /** The entries to listen on, in the order of the new ones: an old one where its LISTEN stays. */
  next: P[];
  /** The new ones whose LISTEN no old one has, and whether an old one must be closed before. */
  added: { place: P; mustWait: boolean }[];
  removed: P[];
  /** The old ones that stay, by the new one. */
  kept: ReadonlyMap<P, P>;
}

/** Compares entries by their LISTEN. Several with the same, as with port 0, are first compared by `isEqual`. */
function compare<P extends Local | Reverse>(
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
    [...left].some((place) => addrsOf(place).some((addr) => overlaps(addr, normalize(listen))));
  return {
    next: wanted.map((place) => kept.get(place) ?? place),
    added: wanted.filter((place) => !kept.has(place)).map((place) => ({ place, mustWait: mustWait(place) })),
    removed: [...left],
    kept,
  };
}

/** Compares entries of `forward`, `socks` and `http`. */
export function compareLocals(old: readonly Local[], wanted: readonly Local[]): Changes<Local> {
  return compare(old, wanted, (one, other) => one.target === other.target && one.route.kind === other.route.kind);
}

/** Compares entries of `reverse` and `reverseSocks`. */
export function compareReverses(old: Iterable<Reverse>, wanted: Iterable<Reverse>): Changes<Reverse> {
  // The server names the LISTEN as it was requested.
  return compare(old, [...wanted], (one, other) => one.listen === other.listen);
}
