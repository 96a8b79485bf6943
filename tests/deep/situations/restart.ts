/**
 * Many clients whose server is restarted: the long test `reconnect`, with limits.
 *
 * @module
 */

import { check, type Scene, type Situation } from "./scene.ts";

const CLIENTS = 1000;
// Milliseconds from the start of the server, on a machine that is busy with other situations.
const LIMIT = 20_000;
// MB.
const MAX_MEMORY = 400;

async function restartServer(scene: Scene): Promise<string> {
  const main = new URL("../main.ts", import.meta.url).pathname;
  const args = [Deno.execPath(), "run", "-A", main, "reconnect", "--clients", `${CLIENTS}`];
  const test = scene.start("reconnect", args, { typed: `deno task deep reconnect --clients ${CLIENTS}` });
  const { code } = await test.ended(180_000);
  check(code === 0, `exit code ${code}`);
  const { match: [, all] } = await test.until(/all in (\d+) ms/);
  const { match: [, memory] } = await test.until(/with that the server used at most (\d+) MB/);
  check(Number(all) < LIMIT, `the last client was connected after ${all} ms`);
  check(Number(memory) < MAX_MEMORY, `the server used ${memory} MB`);
  return `${CLIENTS} clients connected again within ${all} ms; the server used at most ${memory} MB`;
}

/** The situations of this module. */
export const restart: Situation[] = [{ name: `${CLIENTS} clients of a server that is restarted`, run: restartServer }];
