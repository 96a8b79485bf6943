/**
 * The table of all attacks.
 *
 * @module
 */

import { flow } from "./flow.ts";
import { framing } from "./framing.ts";
import type { Case } from "./attack_run.ts";
import { liveness } from "./liveness.ts";
import { streams } from "./streams.ts";

/** All cases, ordered by id. */
export const CASES: readonly Case[] = [...framing, ...streams, ...flow, ...liveness];
