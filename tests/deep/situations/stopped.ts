/**
 * A process of a tunnel that is stopped (SIGSTOP), as a suspended laptop or a frozen container, and continues later.
 *
 * @module
 */

import { deadline } from "@std/async";
import { setTimeout } from "node:timers/promises";
import { bytes, readSome, text, writeAll } from "../../support.ts";
import { check, port, type Program, type Scene, seconds, type Situation } from "./scene.ts";
import { startOrigin } from "./ways.ts";

// Milliseconds. A connection that is resumed survives 60 s without a peer, any other one 30 s of silence.
const SURVIVED = { resumed: 60_000, plain: 30_000 };
// Milliseconds: between these, either outcome is right.
const SLACK = 15_000;
// Milliseconds for a new connection after the end of the stop.
const LIMIT = 5000;
// MB that a process may grow while the other is stopped: 16 MiB are unread at most, in each of two buffers and the heap.
const MAX_GROWTH = 150;
const SAMPLE_EVERY = 1000;

/** Starts a target that echoes. */
function startEcho(scene: Scene): number {
  const at = port();
  const listener = scene.stack.use(Deno.listen({ hostname: "127.0.0.1", port: at }));
  const echo = async () => {
    for await (const connection of listener) connection.readable.pipeTo(connection.writable).catch(() => {});
  };
  echo().catch(() => {});
  return at;
}

async function say(connection: Deno.TcpConn, word: string): Promise<string> {
  await writeAll(connection, bytes(word));
  return text(await readSome(connection, word.length));
}

/** Samples the memory of a process until the signal aborts; returns the growth in MB. */
async function growth(program: Program, signal: AbortSignal): Promise<number> {
  const before = await program.memory();
  let most = before;
  while (!signal.aborted) {
    most = Math.max(most, await program.memory());
    await setTimeout(SAMPLE_EVERY, undefined, { signal }).catch(() => {});
  }
  return Math.max(most, await program.memory()) - before;
}

/** The outcome of a connection that was open during the stop. */
async function outcomeOf(connection: Deno.TcpConn): Promise<"continued" | "ended"> {
  const answer = await deadline(say(connection, "after"), LIMIT).catch((error) => {
    if (error instanceof DOMException) throw error;
    return "";
  });
  return answer === "after" ? "continued" : "ended";
}

async function stop(scene: Scene, who: "server" | "client", isResumed: boolean, time: number): Promise<string> {
  const [control, echo, local, downloads, reverse] = [port(), startEcho(scene), port(), port(), port()];
  const target = port();
  await startOrigin(scene, target);
  const allow = ["--allow", `${echo}`, "--allow", `${target}`, "--allow-listen", `${reverse}`];
  const server = scene.sluice("server", ["server", "--listen", `${control}`, ...allow]);
  await server.until(/^listening on /);
  const forward = ["--forward", `${local}=${echo}`, "--forward", `${downloads}=${target}`];
  const more = ["--reverse", `${reverse}=${echo}`, ...isResumed ? [] : ["--no-resume"]];
  const client = scene.sluice("client", ["client", "--connect", `${control}`, ...forward, ...more]);
  for (const at of [local, downloads, reverse]) await client.until(new RegExp(`^listening on .*:${at}$`));
  const open = async (at: number) => scene.stack.use(await Deno.connect({ hostname: "127.0.0.1", port: at }));
  const before = { forward: await open(local), reverse: await open(reverse) };
  for (const connection of Object.values(before)) await say(connection, "before");
  scene.start("curl", [
    "curl",
    "-sS",
    "--limit-rate",
    "10M",
    "-o",
    "/dev/null",
    `http://127.0.0.1:${downloads}/endless`,
  ]);
  await setTimeout(1000);

  const [it, other] = who === "server" ? [server, client] : [client, server];
  const sampled = new AbortController();
  scene.stack.defer(() => sampled.abort());
  const growing = growth(other, sampled.signal);
  // The process has ended when the situation is broken.
  growing.catch(() => {});
  it.kill("SIGSTOP");
  scene.note(`kill -STOP of the ${who}`);
  await setTimeout(time);
  const since = it.kill("SIGCONT");
  scene.note(`kill -CONT of the ${who}`);
  const times: string[] = [];
  const used = async (name: string, at: number) => {
    for (;;) {
      try {
        using connection = await Deno.connect({ hostname: "127.0.0.1", port: at });
        if (await say(connection, "hello") === "hello") break;
      } catch {
        // Refused or reset.
      }
      check(performance.now() - since < LIMIT, `a new ${name} connection does not work after ${seconds(LIMIT)}`);
      await setTimeout(50);
    }
    times.push(`${name} ${seconds(performance.now() - since)}`);
    scene.note(`a new ${name} connection works`);
  };
  await deadline(Promise.all([used("forward", local), used("reverse", reverse)]), LIMIT + 1000);
  const outcomes = await Promise.all(Object.values(before).map(outcomeOf));
  scene.note(`the open forward connection ${outcomes[0]}, the open reverse connection ${outcomes[1]}`);
  sampled.abort();
  const grown = await growing;
  scene.note(`the memory of the other process grew by ${grown.toFixed(0)} MB`);
  const survived = SURVIVED[isResumed ? "resumed" : "plain"];
  for (const outcome of outcomes) {
    check(time > survived || outcome === "continued", "an open connection ended");
    check(time < survived + SLACK || outcome === "ended", "an open connection continued");
  }
  check(grown < MAX_GROWTH, `the memory of the other process grew by ${grown.toFixed(0)} MB`);
  return `open connections ${outcomes[0]}; new ones: ${times.join(", ")}; memory grew by ${grown.toFixed(0)} MB`;
}

/** Makes the situations of this module. */
export const stopped = (time: number): Situation[] =>
  (["server", "client"] as const).flatMap((who) =>
    [true, false].map((isResumed) => ({
      name: `the ${who} is stopped for ${time / 1000} s${isResumed ? "" : ", --no-resume"}`,
      run: (scene: Scene) => stop(scene, who, isResumed, time),
    }))
  );
