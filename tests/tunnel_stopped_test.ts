/** The tunnel command with a server that is stopped: its kernel accepts connections, but nothing answers. */

import { assert, assertEquals } from "@std/assert";
import { watch } from "./programs.ts";
import { LOOPBACK } from "./support.ts";
import { at, dial, makeEcho, promptly, say } from "./tunnel_support.ts";

const SCRIPT = new URL("../tunnel.ts", import.meta.url).href;
// Windows has no SIGSTOP.
const ignore = Deno.build.os === "windows";

function start(...args: string[]) {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-config", "--no-prompt", "-A", SCRIPT, ...args],
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
    env: { NO_COLOR: "1" },
  }).spawn();
  return watch(child);
}

/** Starts a server, and a proxy to it that counts connections. */
async function startServer(target: string) {
  const server = start("server", "--listen", "0", "--allow", target);
  const [, addr] = await server.until(/^listening on (\S+)$/m);
  const listener = Deno.listen(LOOPBACK);
  let [count, counted] = [0, Promise.withResolvers<void>()];
  const copying: Promise<void>[] = [];
  const copy = async (from: Deno.TcpConn, to: Deno.TcpConn) => await from.readable.pipeTo(to.writable).catch(() => {});
  const accepting = (async () => {
    for await (const near of listener) {
      const far = await dial(addr!);
      copying.push(copy(near, far), copy(far, near));
      count++;
      counted.resolve();
      counted = Promise.withResolvers();
    }
  })();
  /** Waits for this number of further connections. */
  const attempts = async (more: number) => {
    for (const most = count + more; count < most;) await counted.promise;
  };
  const dispose = async () => {
    server.child.kill("SIGCONT");
    listener.close();
    await accepting;
    await server.end();
    await Promise.all(copying);
  };
  return { ...server, addr: at(listener.addr), attempts, [Symbol.asyncDispose]: dispose };
}

/** Starts a client that notices silence early. */
function startClient(connect: string, target: string, more: string[]) {
  return start("client", "--connect", connect, "--forward", `0=${target}`, "--timeout", "2", ...more);
}

for (const more of [[], ["--no-resume"]]) {
  const name = ["client", ...more].join(" ");
  Deno.test(`tunnel command: ${name} reports a stopped server, and listens once it answers`, { ignore }, async () => {
    await using echo = makeEcho();
    await using server = await startServer(echo.addr);
    server.child.kill("SIGSTOP");
    await using client = startClient(server.addr, echo.addr, more);
    await client.until(/^\S+ accepts connections, but does not answer/m, "stderr");
    await server.attempts(1);
    assertEquals(client.printed.stdout, "");
    server.child.kill("SIGCONT");
    const [, addr] = await promptly(client.until(/^listening on (\S+)$/m));
    using connection = await dial(addr!);
    assertEquals(await promptly(say(connection, "hello")), "hello");
    assertEquals(client.printed.stderr.split("\n").length, 2, client.printed.stderr);
  });

  Deno.test(
    `tunnel command: ${name} reports that it is connected again only when a stopped server answers`,
    { ignore },
    async () => {
      await using echo = makeEcho();
      await using server = await startServer(echo.addr);
      await using client = startClient(server.addr, echo.addr, more);
      const [, addr] = await client.until(/^listening on (\S+)$/m);
      using before = await dial(addr!);
      assertEquals(await say(before, "before"), "before");
      server.child.kill("SIGSTOP");
      await client.until(/^the connection to \S+ was lost: .*silent/m, more.length === 0 ? "stdout" : "stderr");
      // Each is accepted by the kernel.
      await server.attempts(2);
      assert(!/resumed|reconnected/.test(client.printed.stdout), client.printed.stdout);
      server.child.kill("SIGCONT");
      if (more.length === 0) {
        await client.until(/^resumed the connection to /m);
        assertEquals(await promptly(say(before, "after")), "after");
      } else {
        await client.until(/^reconnected to /m);
        before.close();
        using after = await dial(addr!);
        assertEquals(await promptly(say(after, "after")), "after");
      }
    },
  );
}
