/**
 * Every attack there is.
 *
 * @module
 */

import { flow } from "./flow.ts";
import { framing } from "./framing.ts";
import type { Case } from "./attack_run.ts";
import { liveness } from "./liveness.ts";
import { streams } from "./streams.ts";

/** The cases, in the order of their numbers. */
export const CASES: readonly Case[] = [...framing, ...streams, ...flow, ...liveness];
