/**
 * An end of a forwarded connection that fails: an origin that is killed, a viewer that leaves, a target that is gone.
 *
 * @module
 */

import { setTimeout } from "node:timers/promises";
import { Broken, check, port, type Program, type Scene, seconds, type Situation } from "./scene.ts";
import { each, startOrigin, startTunnel, type Way } from "./ways.ts";

// Milliseconds for the other end to learn of a failure.
const LIMIT = 1000;
// Milliseconds of a download before it fails: buffers on the way are full.
const DURATION = 1000;

// Exit codes of curl.
const PARTIAL_FILE = 18;
const RECEIVE_ERROR = 56;

async function killOrigin(scene: Scene, way: Way, version: number): Promise<string> {
  const tunnel = await startTunnel(scene, way, version, port());
  const codes = [];
  for (const path of ["/endless", "/length"]) {
    const origin = await startOrigin(scene, tunnel.target);
    const curl = scene.start("curl", tunnel.curl(path, "-o", "/dev/null"));
    await setTimeout(DURATION);
    origin.kill();
    scene.note("kill -9 of the origin");
    const { code } = await curl.ended();
    scene.note(`curl: exit code ${code}`);
    check([PARTIAL_FILE, RECEIVE_ERROR].includes(code), `curl of ${path} has exit code ${code}`);
    codes.push(`${code} for ${path}`);
    await origin.ended();
  }
  return `exit code of curl: ${codes.join(", ")}`;
}

/** Waits until a process has this number of sockets again; rejects after LIMIT. */
async function untilFree(name: string, program: Program, before: number): Promise<void> {
  const began = performance.now();
  let count: number;
  while ((count = await program.sockets()) > before) {
    if (performance.now() - began > LIMIT) throw new Broken(`the ${name} has ${count} sockets, ${before} before`);
    await setTimeout(10);
  }
}

async function killViewer(scene: Scene, way: Way, version: number): Promise<string> {
  const tunnel = await startTunnel(scene, way, version, port());
  const origin = await startOrigin(scene, tunnel.target);
  const { server, client } = tunnel;
  const before = await Promise.all([server.sockets(), client.sockets()]);
  const times = [];
  // A slow viewer fills the buffers on the way: the origin then waits in a write.
  for (const more of [[], ["--limit-rate", "1M"]]) {
    const { length } = origin.printed;
    const curl = scene.start("curl", tunnel.curl("/endless", "-o", "/dev/null", ...more));
    await setTimeout(DURATION);
    const killed = curl.kill();
    scene.note("kill -9 of curl");
    const { at } = await origin.until(/^the connection .* ended/, { skipped: length });
    check(at - killed < LIMIT, `the origin learned of it after ${seconds(at - killed)}`);
    times.push(seconds(at - killed));
    await untilFree("server", server, before[0]!);
    await untilFree("client", client, before[1]!);
  }
  return `the origin's connection ended after ${times.join(" and ")} (slow viewer); the sockets are freed`;
}

async function loseTarget(scene: Scene, way: Way, version: number): Promise<string> {
  const tunnel = await startTunnel(scene, way, version, port());
  const origin = await startOrigin(scene, tunnel.target);
  const writer = scene.script("writer", "writer.ts", [`${tunnel.port}`, "/silent"]);
  await writer.until(/^writing/);
  await setTimeout(DURATION);
  const killed = origin.kill();
  scene.note("kill -9 of the origin");
  const { at } = await writer.until(/^a write failed/);
  check(at - killed < LIMIT, `the writer learned of it after ${seconds(at - killed)}`);
  return `the writer, which reads nothing, learned of it after ${seconds(at - killed)}`;
}

/** The situations of an origin that is killed. */
export const killed: Situation[] = each(
  ["forward", "reverse", "SOCKS"],
  "the origin is killed in a download",
  killOrigin,
);
/** The situations of a viewer that leaves. */
export const viewer: Situation[] = each(["forward", "reverse"], "the viewer is killed in a download", killViewer);
/** The situations of a client that only writes. */
export const writer: Situation[] = each(
  ["forward", "reverse"],
  "the target of a client that only writes is killed",
  loseTarget,
);
