/**
 * The programs that are sent through the tunnel, and their servers. Each job verifies what it has received.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import { delay } from "@std/async";
import { startPostgres } from "../../postgres.ts";
import { findProgram, makeFolder, prepareSsh, run, watch } from "../../programs.ts";
import { freePort, pattern, sha256 } from "../../support.ts";

/** The names of the programs. */
export const PROGRAMS = ["curl", "ssh", "psql", "redis"] as const;
/** The name of a program. */
export type ProgramName = typeof PROGRAMS[number];

/** How much a job does. */
export interface Effort {
  /** Number of steps. */
  steps: number;
  /** Milliseconds between two steps. */
  pause: number;
}

/** How a program reaches its server. */
export interface Access {
  /** The address that the program connects to. */
  port: number;
  /** The command that ssh connects with; `undefined`: to the port. */
  proxyCommand?: string | undefined;
  /** The port of a SOCKS proxy, for programs that support one; then `port` is that of the server. */
  socks?: number | undefined;
}

/** A running server, and the job of its program. */
export interface Target {
  port: number;
  run(access: Access, effort: Effort): Promise<void>;
}

// Bytes of each step.
const STEP = 200_000;

/** Starts the servers. */
export async function startTargets(started: AsyncDisposableStack): Promise<Record<ProgramName, Target>> {
  return {
    curl: startWeb(started),
    ssh: await startSsh(started),
    psql: await startDatabase(started),
    redis: await startRedis(started),
  };
}

function startWeb(started: AsyncDisposableStack): Target {
  const web = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, (request) => {
    const [steps, pause] = new URL(request.url).pathname.slice(1).split("/").map(Number) as [number, number];
    const whole = pattern(steps * STEP, 1);
    let step = 0;
    return new Response(
      new ReadableStream({
        async pull(controller) {
          if (step === steps) return controller.close();
          if (pause > 0) await delay(pause);
          controller.enqueue(whole.slice(step * STEP, ++step * STEP));
        },
      }),
    );
  });
  started.defer(() => web.shutdown());
  return {
    port: web.addr.port,
    async run({ port, socks }, { steps, pause }) {
      const proxy = socks === undefined ? [] : ["--socks5-hostname", `127.0.0.1:${socks}`];
      const url = `http://127.0.0.1:${port}/${steps}/${pause}`;
      const received = await run("curl", ["-sSf", "--noproxy", "", ...proxy, url]);
      assertEquals(await sha256(received), await sha256(pattern(steps * STEP, 1)));
    },
  };
}

async function startSsh(started: AsyncDisposableStack): Promise<Target> {
  const { path: folder } = started.use(await makeFolder("carriers"));
  await prepareSsh(folder);
  const port = freePort();
  const options = ["-o", "ListenAddress=127.0.0.1", "-o", "MaxStartups=100", "-p", `${port}`];
  const child = new Deno.Command(findProgram("sshd")!, {
    args: ["-D", "-e", "-f", `${folder}/config`, ...options],
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  await started.use(watch(child)).until(/Server listening/, "stderr");
  const file = pattern(STEP, 2);
  await Deno.writeFile(`${folder}/file`, file);
  return {
    port,
    async run({ port, proxyCommand }, { steps, pause }) {
      const options = [
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        `IdentityFile=${folder}/user`,
        "BatchMode=yes",
        "LogLevel=ERROR",
        ...proxyCommand === undefined ? [] : [`ProxyCommand=${proxyCommand}`],
      ].flatMap((option) => ["-o", option]);
      const command = `for n in $(seq ${steps}); do cat ${folder}/file; sleep ${pause / 1000}; done`;
      const args = ["-F", "/dev/null", ...options, "-p", `${port}`, "root@127.0.0.1", command];
      const received = await run("ssh", args);
      assertEquals(received.length, steps * STEP);
      for (let n = 0; n < steps; n++) {
        assertEquals(await sha256(received.slice(n * STEP, (n + 1) * STEP)), await sha256(file));
      }
    },
  };
}

async function startDatabase(started: AsyncDisposableStack): Promise<Target> {
  const { port } = started.use(await startPostgres());
  return {
    port,
    async run({ port }, { steps, pause }) {
      const statements = Array.from(
        { length: steps },
        (_, n) =>
          `INSERT INTO kept SELECT ${n} * 1000 + i FROM generate_series(1, 1000) AS i; SELECT pg_sleep(${
            pause / 1000
          });`,
      );
      const script = [
        "BEGIN;",
        "CREATE TEMPORARY TABLE kept (value integer);",
        ...statements,
        "COMMIT;",
        "SELECT 'sum ' || count(*) || ' ' || sum(value) FROM kept;",
        "SELECT repeat('x', 200000);",
      ].join("\n");
      const args = ["-h", "127.0.0.1", "-p", `${port}`, "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-At", "postgres"];
      const output = new TextDecoder().decode(await run("psql", args, { input: new TextEncoder().encode(script) }));
      const count = steps * 1000;
      assertEquals(/^sum .*$/m.exec(output)?.[0], `sum ${count} ${count * (count + 1) / 2}`);
      assertEquals(output.includes("x".repeat(200_000)), true);
    },
  };
}

async function startRedis(started: AsyncDisposableStack): Promise<Target> {
  const port = freePort();
  const child = new Deno.Command("redis-server", {
    args: ["--bind", "127.0.0.1", "--port", `${port}`, "--save", "", "--appendonly", "no"],
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  await started.use(watch(child)).until(/Ready to accept connections|ready to accept/);
  let keys = 0;
  return {
    port,
    async run({ port }, { steps, pause }) {
      const key = `key${keys++}`;
      const redis = (args: string[], input?: Uint8Array) =>
        run("redis-cli", ["-h", "127.0.0.1", "-p", `${port}`, ...args], input === undefined ? {} : { input });
      const output = new TextDecoder().decode(await redis(["-r", `${steps}`, "-i", `${pause / 1000}`, "INCR", key]));
      assertEquals(output.trim().split("\n").map(Number), Array.from({ length: steps }, (_, n) => n + 1));
      const value = pattern(STEP, 5);
      await redis(["-x", "SET", `${key}:value`], value);
      // redis-cli appends a newline.
      assertEquals(await sha256((await redis(["GET", `${key}:value`])).slice(0, -1)), await sha256(value));
    },
  };
}
