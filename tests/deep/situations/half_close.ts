/**
 * Netcat, and a target, that end their directions one after the other.
 *
 * @module
 */

import { createHash } from "node:crypto";
import { setTimeout } from "node:timers/promises";
import { makeFolder } from "../../programs.ts";
import { pattern } from "../../support.ts";
import { check, port, type Scene, type Situation } from "./scene.ts";
import { each, startTunnel, type Way } from "./ways.ts";

const SIZE = 3_000_000;
// Seconds: the other direction has ended, and its end has arrived.
const PAUSE = 1;

async function hashOf(path: string): Promise<string> {
  return createHash("sha256").update(await Deno.readFile(path)).digest("hex");
}

/** Waits until a port of this machine is listened on, without a connection to it. */
async function untilListening(port: number): Promise<void> {
  const local = `0100007F:${port.toString(16).toUpperCase().padStart(4, "0")} 00000000:0000 0A`;
  while (!(await Deno.readTextFile("/proc/net/tcp")).includes(local)) await setTimeout(10);
}

async function exchange(scene: Scene, way: Way, version: number): Promise<string> {
  const { path: cwd } = scene.stack.use(await makeFolder("half-close"));
  await Deno.writeFile(`${cwd}/request`, pattern(SIZE));
  await Deno.writeFile(`${cwd}/answer`, pattern(2 * SIZE, 1));
  const target = port();
  const tunnel = await startTunnel(scene, way, version, target);
  // A netcat that listens ends when its peer has ended, even if it has an answer: socat answers the end of a request.
  const targets = {
    request: `socat -t 30 TCP-LISTEN:${target},bind=127.0.0.1,reuseaddr ` +
      `SYSTEM:'cat > request.received; sleep ${PAUSE}; cat answer'`,
    answer: `nc -N -l 127.0.0.1 ${target} < answer > request.received`,
  };
  for (const first of ["request", "answer"] as const) {
    const origin = scene.shell("target", targets[first], { cwd });
    await untilListening(target);
    const send = first === "request" ? "cat request" : `(sleep ${PAUSE}; cat request)`;
    const ask = `${send} | nc -N 127.0.0.1 ${tunnel.port} > answer.received`;
    const ends = [scene.shell("netcat", ask, { cwd }), origin];
    for (const { code } of await Promise.all(ends.map((end) => end.ended()))) {
      check(code === 0, `a program has exit code ${code} when the ${first} ends first`);
    }
    for (const file of ["request", "answer"]) {
      const isSame = await hashOf(`${cwd}/${file}`) === await hashOf(`${cwd}/${file}.received`);
      const { size } = await Deno.stat(`${cwd}/${file}.received`);
      scene.note(`${file}: ${size} bytes arrived${isSame ? ", the hash is right" : ""}`);
      check(isSame, `the ${file} did not arrive when the ${first} ended first`);
    }
  }
  return "both directions arrived completely, whichever ended first";
}

/** The situations of this module. */
export const halfClose: Situation[] = each(["forward", "reverse"], "nc -N", exchange);
