/**
 * The plan of a seed: the options of both sessions, the connection, the faults, and the end.
 *
 * @module
 */

import type { Session } from "../../mod.ts";
import { type CarriersPlan, planCarriers } from "./carriers_plan.ts";
import { MAX_PAYLOAD_LENGTH } from "../../frame.ts";
import { DEFAULTS, MAX_DEFAULT_STREAM_BUFFER } from "../../options.ts";
import { type Forgery, HARMLESS, other, type SideName } from "./invariants.ts";
import type { Random } from "./random.ts";
import type { Fault, Travel } from "./wire.ts";

/** How the sessions end, unless a fault ends them before. */
export interface Ending {
  readonly side: SideName;
  readonly how: "close" | "drain" | "abort" | "both close";
  /** Milliseconds after the start; `undefined`: when all streams are done. */
  readonly after: number | undefined;
}

/** The decisions of a seed before its run. */
export interface Plan {
  readonly version: 1 | 2;
  readonly serverVersion: 1 | 2 | "auto";
  /** The options of each session, without the version. */
  readonly options: { readonly [Side in SideName]: Limits };
  /** How the bytes sent by a side travel. */
  readonly travel: { readonly [Side in SideName]: Travel };
  readonly fault: (Fault & { readonly side: SideName }) | undefined;
  readonly forgery: Forgery | undefined;
  /** When the process is suspended, and how long, in milliseconds. */
  readonly freeze: { readonly after: number; readonly milliseconds: number } | undefined;
  readonly streams: { readonly [Side in SideName]: number };
  /** Most bytes of one direction of a stream, and of one read or write. */
  readonly mostBytes: number;
  readonly mostPiece: number;
  /** Milliseconds that one user of a stream may pause in total. */
  readonly patience: number;
  readonly ending: Ending;
  /** Which ends of the connection are web streams. */
  readonly overStreams: { readonly [Side in SideName]: boolean };
  /** The connections below a resumable connection; `undefined`: the sessions run over one connection. */
  readonly carriers?: CarriersPlan;
}

/** The options that a seed decides. */
export type Limits = { readonly [Name in OptionName]: number };

type OptionName =
  | "keepAliveInterval"
  | "timeout"
  | "maxFrameSize"
  | "maxReceiveBuffer"
  | "maxStreamBuffer"
  | "maxStreams"
  | "acceptBacklog"
  | "stalledStreamTimeout";

/** Makes the plan of a seed. */
export function makePlan(random: Random): Plan {
  const version = random.pick([1, 2, 2] as const);
  const piece = random.pick([1, 9, 120, 2000, 40_000, 100_000]);
  const frames = 40 + random.below(160);
  // Version 2 needs a timeout, because only a timeout ends a write to a stream that the peer has closed. Both ends have
  // the same keepalive interval, because a session without keepalive exceeds the timeout of its peer.
  const { keepAliveInterval: usual } = DEFAULTS;
  const keepAliveInterval = random.pick(version === 1 ? [200, usual, Infinity] : [200, 2000, usual]);
  const timeout = keepAliveInterval === Infinity ? Infinity : Math.max(keepAliveInterval * random.pick([3, 4]), 3000);
  const client = makeOptions(random, keepAliveInterval, timeout);
  const server = random.oneIn(2) ? client : makeOptions(random, keepAliveInterval, timeout);
  const frame = Math.min(client.maxFrameSize, server.maxFrameSize);
  // Bytes for each round trip, which bounds the size of a transfer.
  const window = Math.min(
    client.maxReceiveBuffer,
    server.maxReceiveBuffer,
    client.maxStreamBuffer,
    server.maxStreamBuffer,
  );
  const mostRead = random.pick([piece, 7, 1000, 65_536, 65_536]);
  const grain = Math.min(piece, frame * 20, mostRead * 30, window * 5);
  const bearable = Math.min(timeout, 60_000);
  const makeWay = () => makeTravel(random, mostRead, grain, Math.floor(bearable / 8));
  const travel = { client: makeWay(), server: makeWay() };
  const side = random.pick(["client", "server"] as const);
  const at = random.skewed(grain * frames);
  const trouble = random.below(20);
  const kind = trouble < 3
    ? random.pick(["end", "reset", "stall"] as const)
    : trouble < 5
    ? random.pick(["flip", "duplicate", "drop"] as const)
    : undefined;
  const wantsForgery = trouble >= 5 && trouble < 9;
  const forgeries = [
    ...HARMLESS,
    ...HARMLESS,
    "bad version",
    "bad command",
    "SYN with payload",
    "FIN with payload",
    "wrong parity",
    "UPD in version 1",
  ] as const;
  const early = random.oneIn(5);
  return {
    version,
    serverVersion: random.oneIn(40) ? (version === 1 ? 2 : 1) : random.oneIn(2) ? version : "auto",
    options: { client, server },
    travel,
    // Without a timeout a stall cannot be distinguished from a slow connection.
    fault: kind === undefined || (kind === "stall" && timeout === Infinity) ? undefined : {
      kind,
      side,
      at,
      length: random.skewed(kind === "flip" ? 1 : 64),
    },
    forgery: wantsForgery ? { kind: random.pick(forgeries), side, at: random.below(grain * 20) } : undefined,
    freeze: random.oneIn(4) ? { after: random.below(500), milliseconds: bearable * 2 } : undefined,
    streams: { client: random.below(6), server: random.oneIn(2) ? 0 : random.below(5) },
    mostBytes: grain * frames,
    mostPiece: piece * 2,
    patience: Math.floor(bearable / 6),
    ending: {
      side: random.oneIn(2) ? side : other(side),
      how: random.pick(
        early ? ["close", "drain", "drain", "abort"] as const : ["close", "close", "drain", "both close"],
      ),
      after: early ? random.skewed(2000) : undefined,
    },
    overStreams: { client: random.oneIn(6) && isWide(travel.client), server: random.oneIn(6) && isWide(travel.server) },
  };
}

// Shortest timeout of a session over carriers, in milliseconds: a carrier that hangs must be detected before.
const LEAST_TIMEOUT = 10_000;
// Longest time that a chunk takes at the rate of such a carrier, in milliseconds.
const LONGEST_CHUNK = 200;

/** Makes the plan of a seed whose sessions run over carriers that die, and which has no other fault. */
export function makeCarriersPlan(random: Random): Plan {
  const plan = makePlan(random);
  const adjust = (limits: Limits) => ({ ...limits, timeout: Math.max(limits.timeout, LEAST_TIMEOUT) });
  const options = { client: adjust(plan.options.client), server: adjust(plan.options.server) };
  // A pause, or the time of one large chunk, would count as the silence of a lost carrier.
  const steady = (travel: Travel) => ({
    ...travel,
    mostWrite: Math.min(travel.mostWrite, travel.rate * LONGEST_CHUNK),
    pauses: [],
  });
  const travel = { client: steady(plan.travel.client), server: steady(plan.travel.server) };
  return {
    ...plan,
    serverVersion: plan.serverVersion === "auto" ? "auto" : plan.version,
    options,
    travel,
    fault: undefined,
    forgery: undefined,
    overStreams: { client: false, server: false },
    carriers: planCarriers(random, plan.mostBytes, options.client.timeout),
  };
}

// A session sees no progress within a chunk of a web stream, so no chunk may last as long as a timeout.
function isWide({ rate, capacity, jitter, mostRead, mostWrite }: Travel): boolean {
  return rate === Infinity && capacity >= 65_536 && (jitter === 0 || mostRead >= 500) && mostWrite >= 500;
}

function makeOptions(random: Random, keepAliveInterval: number, timeout: number): Limits {
  const maxReceiveBuffer = random.pick([1, 100, 5000, 300_000, DEFAULTS.maxReceiveBuffer, DEFAULTS.maxReceiveBuffer]);
  const largest = Math.min(maxReceiveBuffer, MAX_DEFAULT_STREAM_BUFFER);
  return {
    keepAliveInterval,
    timeout,
    maxFrameSize: random.pick([1, 10, 1000, DEFAULTS.maxFrameSize, DEFAULTS.maxFrameSize, MAX_PAYLOAD_LENGTH]),
    maxReceiveBuffer,
    maxStreamBuffer: random.oneIn(2)
      ? Math.max(1, largest >> 1)
      : Math.min(largest, random.pick([1, 50, 3000, 300_000])),
    maxStreams: random.pick([1, 2, DEFAULTS.maxStreams, DEFAULTS.maxStreams]),
    acceptBacklog: random.pick([1, 2, DEFAULTS.acceptBacklog, DEFAULTS.acceptBacklog]),
    stalledStreamTimeout: random.oneIn(6) ? random.pick([50, 200]) : Infinity,
  };
}

function makeTravel(random: Random, mostRead: number, grain: number, longest: number): Travel {
  const latency = random.pick([0, 0, 1, 25, 80]);
  const jitter = random.pick([0, 0, 3, 40]);
  // A connection of a byte in 100 ms has no capacity for keepalives and a FIN.
  const leastCapacity = Math.max(mostRead, Math.ceil((latency + jitter) / 5));
  return {
    latency,
    jitter,
    rate: random.oneIn(3) ? Math.max(1, grain) : Infinity,
    mostRead,
    mostWrite: random.pick([mostRead, 2 ** 20, 2 ** 20]),
    capacity: Math.max(leastCapacity, random.pick([1, 500, 65_536, 2 ** 20])),
    pauses: Array.from({ length: random.oneIn(3) ? 2 : 0 }, () => ({
      at: random.skewed(grain * 50),
      milliseconds: random.below(longest),
    })).sort((one, next) => one.at - next.at),
  };
}

/** Whether every operation must succeed until the sessions are closed. */
export function isCalm(plan: Plan): boolean {
  const { fault, forgery, serverVersion, version } = plan;
  return fault === undefined && (forgery === undefined || HARMLESS.some((kind) => kind === forgery.kind)) &&
    (serverVersion === "auto" || serverVersion === version);
}

/** Ends a session as planned. */
export function end(session: Session, how: Ending["how"]): void {
  if (how === "abort") session.abort(new Error("The plan aborts"));
  else session.close({ drain: how === "drain" });
}
