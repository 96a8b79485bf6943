/**
 * A client that is started before its server.
 *
 * @module
 */

import { setTimeout } from "node:timers/promises";
import { check, port, type Scene, seconds, type Situation } from "./scene.ts";
import { startOrigin } from "./ways.ts";

// Milliseconds without a server.
const OUTAGE = 10_000;
// Milliseconds for a client to connect after the start of the server: the longest pause between two attempts is 2 s.
const LIMIT = 5000;

async function startLate(scene: Scene): Promise<string> {
  const [control, local, target] = [port(), port(), port()];
  await startOrigin(scene, target);
  const client = scene.sluice("client", ["client", "--connect", `${control}`, "--forward", `${local}=${target}`]);
  await client.until(/refused/);
  await setTimeout(OUTAGE);
  check(!client.printed.some(({ text }) => text.startsWith("listening")), "the client listens without a server");
  const server = scene.sluice("server", ["server", "--listen", `${control}`, "--allow", `${target}`]);
  const { at: since } = await server.until(/^listening on /);
  const { at } = await client.until(/^listening on /, { limit: LIMIT });
  const curl = scene.start("curl", ["curl", "-sS", `http://127.0.0.1:${local}/hello`]);
  await curl.until(/hello from origin/);
  return `connected ${seconds(at - since)} after the start of the server`;
}

async function startOnce(scene: Scene): Promise<string> {
  const args = ["client", "--connect", `${port()}`, "--forward", `${port()}=80`, "--no-retry"];
  const began = performance.now();
  const client = scene.sluice("client", args);
  const { code, at } = await client.ended();
  scene.note(`client: exit code ${code}`);
  check(code === 1, `the exit code is ${code}`);
  check(at - began < 5000, `it ended after ${seconds(at - began)}`);
  return `exit code 1 after ${seconds(at - began)}`;
}

/** The situations of this module. */
export const starting: Situation[] = [
  { name: "the server starts 10 s after the client", run: startLate },
  { name: "the server does not run, and the client has --no-retry", run: startOnce },
];
