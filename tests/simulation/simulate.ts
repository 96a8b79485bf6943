/**
 * The run of one seed: two sessions, their users and the connection, from the first byte to the last timer.
 *
 * @module
 */

import { createHash } from "node:crypto";
import { ProtocolError, Session } from "../../mod.ts";
import { onUnhandled } from "../errors.ts";
import { READ_BUFFER, WRITE_BUFFER } from "../support.ts";
import { exchangeBytes } from "./bytes.ts";
import { Carriers } from "./carriers.ts";
import { FEW, other, type SideName, WireRules } from "./invariants.ts";
import { end, isCalm, makeCarriersPlan, makePlan, type Plan } from "./plan.ts";
import { Random } from "./random.ts";
import { Scheduler } from "./scheduler.ts";
import { asStreams, connect, Pipe } from "./wire.ts";
import { Workload, type World } from "./workload.ts";

/** The outcome of a seed. */
export interface Outcome {
  readonly seed: number;
  readonly plan: Plan;
  /** Violated invariants; empty if all held. */
  readonly failures: string[];
  /** The last events. */
  readonly trace: string[];
  /** SHA-256 of all events. */
  readonly hash: string;
  readonly milliseconds: number;
  readonly steps: number;
  readonly streams: number;
  /** Bytes that users read. */
  readonly bytes: number;
  /** Kinds of the faults that occurred. */
  readonly faults: string[];
}

const SIDES = ["client", "server"] as const;
// In virtual milliseconds, above the duration of any run: an operation still pending then is taken to be blocked.
const LONGEST = 3_600_000;
const TRACE_LENGTH = 400;

/**
 * Runs a seed.
 *
 * @param seed Any integer.
 * @param traceLength The number of trace lines to keep, the last ones.
 * @param isOverCarriers Whether the sessions run over a resumable connection, whose carriers die.
 */
export async function simulate(
  seed: number,
  traceLength: number = TRACE_LENGTH,
  isOverCarriers: boolean = false,
): Promise<Outcome> {
  const random = new Random(seed);
  const plan = isOverCarriers ? makeCarriersPlan(random) : makePlan(random);
  // The pauses between dials have a random part.
  using _random = seedMath(random);
  using scheduler = new Scheduler(random);
  const failures: string[] = [];
  const faults: string[] = [];
  const lines: string[] = [];
  const hash = createHash("sha256");
  const started = scheduler.now;
  let isJudged = false;
  const trace = (line: string) => {
    if (isJudged) return;
    lines.push(`${scheduler.now - started} ${line}`);
    if (lines.length < traceLength + 1000) return;
    const old = lines.splice(0, lines.length - traceLength);
    hash.update(old.join("\n") + "\n");
  };
  const fail = (message: string) => {
    if (isJudged) return;
    trace(`WRONG: ${message}`);
    failures.push(message);
  };
  const waiting = new Map<number, string>();
  let tracked = 0;
  const track = (name: string, work: Promise<void>) => {
    const key = tracked++;
    waiting.set(key, name);
    work.catch((error) => {
      if (error?.name !== "SessionClosedError") fail(`${name}: ${describe(error)}`);
    }).finally(() => waiting.delete(key));
  };
  const listening = onUnhandled((reason) => fail(`Unhandled rejection: ${describe(reason)}`));

  // The connection and the sessions.
  const fault = (kind: string) => {
    trace(`fault: ${kind}`);
    faults.push(kind);
    faultAt = scheduler.now;
    if (!isCalm(plan)) world.isCalm = false;
  };
  let faultAt = Infinity;
  let wasForged = false;
  const forged = () => {
    wasForged = !isClosing.client && !isClosing.server;
  };
  const encoded = (side: SideName): number => {
    const { bytesSent, bytesUnsent } = sessions[side].stats();
    return bytesSent + bytesUnsent;
  };
  const maxReceiveBuffer = (side: SideName) => plan.options[side].maxReceiveBuffer;
  const rules: WireRules = new WireRules(
    { encoded, maxReceiveBuffer, fail, fault, forged },
    isMismatch(plan) ? 0 : plan.version,
    plan.forgery,
  );
  const pipe = (side: SideName) => {
    const planned = plan.fault?.side === side ? plan.fault : undefined;
    const watch = rules.watch(side);
    const { delivered } = watch;
    watch.delivered = (bytes) => {
      trace(`${other(side)} got ${bytes.length}`);
      delivered(bytes);
    };
    return new Pipe(scheduler, random, plan.travel[side], planned, watch);
  };
  const overWire = () => {
    const pipes = [pipe("client"), pipe("server")] as const;
    const ends = connect(...pipes);
    const [client, server] = ends.map((end, n) => plan.overStreams[SIDES[n]!] ? asStreams(end) : end);
    return {
      transports: { client: client!, server: server! },
      hurry: () => pipes.forEach((pipe) => pipe.hurry()),
      isHeldUp: () => pipes.some((pipe) => pipe.isHeldUp),
      isClosed: () => ends.every((end) => end.isClosed),
    };
  };
  const { carriers: carriersPlan } = plan;
  if (carriersPlan?.isBytes) {
    const fault = (kind: string) => {
      trace(`fault: ${kind}`);
      faults.push(kind);
    };
    const bytes = await exchangeBytes({
      plan: { ...plan, carriers: carriersPlan },
      random,
      scheduler,
      trace,
      fail,
      fault,
    });
    listening[Symbol.dispose]();
    hash.update(lines.join("\n") + "\n");
    return {
      seed,
      plan,
      failures,
      trace: lines.slice(-traceLength),
      hash: hash.digest("hex"),
      milliseconds: scheduler.now - started,
      steps: scheduler.steps,
      streams: 0,
      bytes,
      faults,
    };
  }
  const carriers: Carriers | undefined = carriersPlan &&
    new Carriers({ plan: { ...plan, carriers: carriersPlan }, random, scheduler, rules, trace, fail, fault });
  const network = carriers ?? overWire();
  const { transports } = network;
  const sessions = {
    client: Session.client(transports.client, { ...plan.options.client, version: plan.version }),
    server: Session.server(transports.server, { ...plan.options.server, version: plan.serverVersion }),
  };
  const isClosing = { client: false, server: false };
  const world: World = {
    plan,
    random,
    scheduler,
    rules,
    sessions,
    isCalm: !isMismatch(plan),
    isCorrupt: () => !rules.isWhole || isMismatch(plan) || (plan.forgery !== undefined && !isCalm(plan)),
    isClosing,
    trace,
    fail,
    track,
  };
  const workload = new Workload(world);
  const endings: { [Side in SideName]?: { at: number; error?: unknown } } = {};
  for (const side of SIDES) {
    const ended = (line: string, error?: unknown) => {
      trace(`${side} session ${line}`);
      endings[side] = error === undefined ? { at: scheduler.now } : { at: scheduler.now, error };
    };
    const clean = () => ended("ended");
    track(`${side} session`, sessions[side].closed.then(clean, (error) => ended(`failed: ${error}`, error)));
  }

  // The planned end.
  const finish = () => {
    const { side, how } = plan.ending;
    trace(`${side}: ${how}`);
    if (how === "abort") world.isCalm = false;
    for (const each of how === "both close" ? SIDES : [side]) {
      isClosing[each] = true;
      end(sessions[each], how);
    }
  };
  const { after } = plan.ending;
  if (after !== undefined) scheduler.after(after, finish);
  if (plan.freeze !== undefined) {
    const { milliseconds } = plan.freeze;
    scheduler.after(plan.freeze.after, () => {
      trace(`frozen for ${milliseconds}`);
      scheduler.freeze(milliseconds);
    });
  }

  const last = { client: sessions.client.stats(), server: sessions.server.stats() };
  const check = () => {
    for (const side of SIDES) {
      const now = sessions[side].stats();
      const options = plan.options[side];
      const before = last[side];
      last[side] = now;
      const wrong = now.bytesUnread < 0 || now.bytesUnread > options.maxReceiveBuffer + READ_BUFFER
        ? "bytesUnread"
        : now.bytesUnsent < 0 || now.bytesUnsent > 2 * WRITE_BUFFER
        ? "bytesUnsent"
        : now.streams < 0 || now.streams > options.maxStreams + plan.streams[side]
        ? "streams"
        : now.pendingAccept < 0 || now.pendingAccept > options.acceptBacklog
        ? "pendingAccept"
        : now.creditGranted < 0
        ? "creditGranted"
        : now.bytesSent < before.bytesSent || now.bytesSent > rules.sent[side]
        ? "bytesSent"
        : now.bytesReceived < before.bytesReceived || now.bytesReceived > rules.delivered[side]
        ? "bytesReceived"
        : now.framesSent < before.framesSent
        ? "framesSent"
        : now.framesReceived < before.framesReceived
        ? "framesReceived"
        : undefined;
      if (wrong !== undefined) fail(`The ${side}'s ${wrong} is out of range: ${JSON.stringify(now)}`);
    }
  };
  const isOver = () => {
    check();
    return failures.length > 0 || waiting.size === 0;
  };
  const isIdle = () =>
    isOver() ||
    (workload.active === 0 && rules.isQuiet && !network.isHeldUp() &&
      SIDES.every((side) => isEmpty(sessions[side])));

  workload.start();
  let isDone = await scheduler.run(isIdle, started + LONGEST + (plan.freeze?.milliseconds ?? 0));
  if (isDone && !isOver()) {
    if (after === undefined) {
      network.hurry();
      finish();
    }
    isDone = await scheduler.run(isOver, scheduler.now + LONGEST);
  }
  if (!isDone && !rules.isWhole) {
    // Lost or changed bytes may keep a stream waiting without end, which smux cannot detect.
    trace("both abort");
    for (const side of SIDES) sessions[side].abort();
    isDone = await scheduler.run(isOver, scheduler.now + LONGEST);
  }

  if (!isDone) {
    fail(`These never settled: ${[...waiting.values()].join(", ")}; ${JSON.stringify([last.client, last.server])}`);
  } else if (failures.length === 0) {
    // One more pass of the event loop, in which an unhandled rejection is reported.
    await scheduler.run(() => false, scheduler.now);
    await finishCarriers(carriers, scheduler);
    if (scheduler.timers > 0) fail(`${scheduler.timers} timers are left`);
    for (const side of SIDES) {
      const { streams, bytesUnread, creditGranted } = sessions[side].stats();
      if (streams > 0) fail(`${streams} streams are left in the ${side}'s table`);
      if (bytesUnread !== 0) fail(`${bytesUnread} bytes are left unread at the ${side}`);
      if (creditGranted !== 0) fail(`${creditGranted} bytes of credit are left at the ${side}`);
    }
    if (!network.isClosed()) fail("A session ended without closing its connection");
    workload.finish();
    judgeEnd({ plan, rules, endings, faultAt, wasForged, fail });
    if (carriers !== undefined && endings.client?.error === undefined) judgeCarriers(plan, carriers, fail);
    if (isMismatch(plan) && SIDES.some((side) => last[side].accepted > 0)) {
      fail("A stream of another version was accepted");
    }
  }
  isJudged = true;
  // After a failure nothing may be left to run on the real clock.
  for (const side of SIDES) sessions[side].abort();
  carriers?.end();
  await scheduler.run(() => false, scheduler.now);
  listening[Symbol.dispose]();
  hash.update(lines.join("\n") + "\n");

  let streams = 0;
  let bytes = 0;
  for (const record of workload.records) {
    streams++;
    bytes += record.client.received + record.server.received;
  }
  return {
    seed,
    plan,
    failures,
    trace: lines.slice(-traceLength),
    hash: hash.digest("hex"),
    milliseconds: scheduler.now - started,
    steps: scheduler.steps,
    streams,
    bytes,
    faults,
  };
}

/** Makes `Math.random` return numbers of the seed until it is disposed. */
function seedMath(random: Random): Disposable {
  const real = Math.random;
  Math.random = () => random.below(2 ** 30) / 2 ** 30;
  return { [Symbol.dispose]: () => void (Math.random = real) };
}

/** Lets closed connections send their last records, and closes what is left. */
async function finishCarriers(carriers: Carriers | undefined, scheduler: Scheduler): Promise<void> {
  if (carriers === undefined) return;
  const isDone = () => scheduler.timers === 0 && carriers.isClosed();
  await scheduler.run(isDone, scheduler.now + LONGEST);
  carriers.end();
  await scheduler.run(isDone, scheduler.now + LONGEST);
}

/** Reports an end of writing that got lost. */
function judgeCarriers({ ending }: Plan, carriers: Carriers, fail: (message: string) => void): void {
  if (ending.after !== undefined || (ending.how !== "close" && ending.how !== "drain")) return;
  if (!carriers.wasEndRead(ending.side)) fail(`The end of writing of the ${ending.side} was not read`);
}

function isMismatch({ version, serverVersion }: Plan): boolean {
  return serverVersion !== "auto" && serverVersion !== version;
}

function isEmpty(session: Session): boolean {
  const { streams, pendingAccept, bytesUnsent } = session.stats();
  return streams === 0 && pendingAccept === 0 && bytesUnsent <= FEW;
}

/** Reports sessions that did not end as they had to. */
function judgeEnd({ plan, rules, endings, faultAt, wasForged, fail }: {
  plan: Plan;
  rules: WireRules;
  endings: { [Side in SideName]?: { at: number; error?: unknown } };
  faultAt: number;
  wasForged: boolean;
  fail: (message: string) => void;
}): void {
  const { client, server } = endings;
  if (client === undefined || server === undefined) return fail("A session did not end");
  if (plan.ending.after !== undefined) return;
  if (isMismatch(plan)) return;
  if (faultAt !== Infinity && !isCalm(plan)) {
    if (plan.forgery !== undefined && wasForged) {
      const { error } = endings[other(plan.forgery.side)]!;
      if (!(error instanceof ProtocolError)) {
        fail(`${plan.forgery.kind} was not rejected; the session ended with ${error}`);
      }
    }
    if (plan.fault === undefined || !rules.isWhole) return;
    const longest = 2 * plan.options.client.timeout + plan.patience + 60_000;
    const took = Math.max(client.at, server.at) - faultAt;
    if (took > longest) fail(`A session ended ${took} ms after its connection`);
    return;
  }
  if (plan.ending.how === "abort") return;
  for (const side of SIDES) {
    const { error } = endings[side]!;
    if (error !== undefined) fail(`The ${side}'s session failed without a fault: ${describe(error)}`);
  }
}

function describe(error: unknown): string {
  return error instanceof Error ? error.stack ?? error.message : `${error}`;
}

/** Formats the failures of a seed, with its trace and the command that runs it again. */
export function report({ seed, plan, failures, trace }: Outcome): string {
  const shown = JSON.stringify(plan, (_, value) => value === Infinity ? "Infinity" : value);
  return [
    `seed ${seed}: ${shown}`,
    ...trace.map((line) => `  | ${line}`),
    ...failures.map((failure) => `seed ${seed}: ${failure}`),
    `again: deno task deep simulate ${plan.carriers === undefined ? "" : "--carriers "}--seed ${seed}`,
  ].join("\n");
}
