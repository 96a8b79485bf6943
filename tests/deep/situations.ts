/**
 * The command of the tunnel in situations that its users meet: what they type, what is printed, and whether the tunnel
 * behaves as documented.
 *
 * @module
 */

import { integer, names, parse } from "./shared/options.ts";
import { killed, viewer, writer } from "./situations/faults.ts";
import { halfClose } from "./situations/half_close.ts";
import { powerCut } from "./situations/power_cut.ts";
import { reload } from "./situations/reload.ts";
import { restart } from "./situations/restart.ts";
import { Scene, type Situation } from "./situations/scene.ts";
import { starting } from "./situations/starting.ts";
import { stopped } from "./situations/stopped.ts";

const NAMES = ["starting", "power", "killed", "viewer", "writer", "half", "stopped", "restart", "reload"] as const;

/** One line for the list of long tests. */
export const description = "The tunnel command in situations of its users, with a transcript; as root: " +
  `[--only ${NAMES.join(",")}] [--stop 300] [--seconds 60]`;

/** Whether a situation held. */
type Verdict = Promise<boolean>;

/** Runs a situation, and prints its transcript and the verdict. */
async function judge({ name, run }: Situation): Verdict {
  const scene = new Scene();
  let [isHeld, verdict] = [true, ""];
  try {
    verdict = await run(scene);
  } catch (error) {
    [isHeld, verdict] = [false, error instanceof Error ? error.message : String(error)];
  }
  await scene[Symbol.asyncDispose]();
  console.log([`\n${name}`, ...scene.transcript, `${isHeld ? "held" : "broken"}: ${verdict}`].join("\n"));
  return isHeld;
}

/** Runs situations one after the other. */
async function judgeAll(situations: Situation[]): Promise<boolean[]> {
  const verdicts = [];
  for (const situation of situations) verdicts.push(await judge(situation));
  return verdicts;
}

/** Runs the situations; exits with 1 if one is broken. */
export async function run(args: string[]): Promise<void> {
  const { only, stop, seconds } = parse(args, {
    only: names(NAMES),
    stop: integer(300, 1),
    seconds: integer(60, 5),
  });
  const all: Record<typeof NAMES[number], Situation[]> = {
    starting,
    power: powerCut,
    killed,
    viewer,
    writer,
    half: halfClose,
    stopped: stopped(stop * 1000),
    restart,
    reload: reload(seconds * 1000),
  };
  const of = (name: typeof NAMES[number]) => only.includes(name) ? all[name] : [];
  // What only waits runs at the same time as the others.
  const waiting = [...of("stopped"), ...of("power")].map(judge);
  const others = judgeAll(NAMES.filter((name) => !["stopped", "power"].includes(name)).flatMap(of));
  const verdicts = [...await Promise.all(waiting), ...await others];
  const held = verdicts.filter(Boolean).length;
  console.log(`\n${verdicts.length} situations, ${held} held, ${verdicts.length - held} broken`);
  if (held < verdicts.length) Deno.exit(1);
}
