/** The tunnel command when a process may open few files. */

import { assert, assertEquals, assertGreater, assertLess, assertMatch } from "@std/assert";
import { Session } from "../mod.ts";
import { isLimitError, reserve } from "../tunnel/descriptors.ts";
import { request } from "../tunnel/handshake.ts";
import { listenOn } from "../tunnel/socket.ts";
import { watch } from "./programs.ts";
import { LOOPBACK } from "./support.ts";
import { at, dial, eventually, FREE, isEnded, promptly, say } from "./tunnel_support.ts";

const SCRIPT = new URL("../tunnel.ts", import.meta.url).href;
const ignore = Deno.build.os === "windows";
const LIMIT = 64;
const AT_ONCE = 100;

/** Starts the command under `ulimit -n`, and waits until it listens. */
async function start(args: string[], limit = 1024, allow = "-A") {
  const deno = [Deno.execPath(), "run", "--no-config", "--no-prompt", allow, SCRIPT, ...args];
  const command = new Deno.Command("sh", {
    args: ["-c", `ulimit -n ${limit}; exec "$0" "$@"`, ...deno],
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
    env: { NO_COLOR: "1" },
  });
  const watched = watch(command.spawn());
  const [, addr] = await watched.until(/^listening on (\S+)$/m);
  return { ...watched, addr: addr! };
}

/** Starts a target that echoes many connections at the same time. */
function makeManyEchoes() {
  const listener = Deno.listen(LOOPBACK);
  const echoing = (async () => {
    const all: Promise<void>[] = [];
    for await (const connection of listener) {
      all.push(connection.readable.pipeTo(connection.writable).catch(() => {}));
    }
    await Promise.all(all);
  })();
  const dispose = async () => {
    listener.close();
    await echoing;
  };
  return { addr: at(listener.addr), [Symbol.asyncDispose]: dispose };
}

/** Opens connections at once; returns those that answer, when the others have ended. */
async function openMany(addr: string): Promise<Deno.TcpConn[]> {
  // Beyond the limit a connection is refused, or reset.
  const dialled = await Promise.all(Array.from({ length: AT_ONCE }, () => dial(addr).catch(() => undefined)));
  const all = dialled.filter((connection) => connection !== undefined);
  const answers = await promptly(Promise.all(all.map((connection) => say(connection, "hi").catch(() => ""))));
  const [open, ended] = [true, false].map((isOpen) => all.filter((_, n) => (answers[n] === "hi") === isOpen));
  for (const connection of ended!) {
    assertEquals(await promptly(isEnded(connection)), true);
    connection.close();
  }
  return open!;
}

/** Closes connections, then waits until one more is served. */
async function recover(addr: string, open: Deno.TcpConn[]): Promise<void> {
  for (const connection of open) connection.close();
  await eventually(async () => {
    using connection = await dial(addr).catch(() => undefined);
    return connection !== undefined && await promptly(say(connection, "again").catch(() => "")) === "again";
  });
}

/** Checks that the log names the limit once. */
function checkLog(stderr: string): void {
  const named = stderr.split("\n").filter((line) => /no more connections to /.test(line));
  assertEquals(named.length, 1, stderr);
  assertMatch(named[0]!, /: too many open files, the limit is 64: raise the limit with ulimit -n$/);
}

Deno.test(
  "tunnel command: a client with too many open files closes further connections, and serves again",
  { ignore },
  async () => {
    await using echo = makeManyEchoes();
    await using server = await start(["server", "--listen", "0", "--allow", echo.addr]);
    await using client = await start(["client", "--connect", server.addr, "--forward", `0=${echo.addr}`], LIMIT);
    for (let times = 0; times < 2; times++) {
      const open = await openMany(client.addr);
      assertLess(open.length, LIMIT);
      assertGreater(open.length, 10);
      await recover(client.addr, open);
    }
    client.child.kill("SIGTERM");
    const { code, stderr } = await promptly(client.ended());
    assertEquals(code, 0);
    checkLog(stderr);
  },
);

Deno.test(
  "tunnel command: a server with too many open files refuses further targets, and serves again",
  { ignore },
  async () => {
    await using echo = makeManyEchoes();
    await using server = await start(["server", "--listen", "0", "--allow", echo.addr], LIMIT);
    await using client = await start(["client", "--connect", server.addr, "--forward", `0=${echo.addr}`]);
    const open = await openMany(client.addr);
    assertLess(open.length, LIMIT);
    assertGreater(open.length, 10);
    await client.until(/the peer refused CONNECT .*: too many open files: raise the limit with ulimit -n$/m, "stderr");
    await recover(client.addr, open);
  },
);

Deno.test(
  "tunnel command: a server with too many open files closes further connections to a reverse port",
  { ignore },
  async () => {
    await using echo = makeManyEchoes();
    await using server = await start(["server", "--listen", "0", "--allow-listen", "127.0.0.1:*"], LIMIT);
    await using client = await start(["client", "--connect", server.addr, "--reverse", `0=${echo.addr}`]);
    for (let times = 0; times < 2; times++) {
      const open = await openMany(client.addr);
      assertLess(open.length, LIMIT);
      assertGreater(open.length, 10);
      await recover(client.addr, open);
    }
    client.child.kill("SIGTERM");
    assertEquals((await promptly(client.ended())).code, 0);
    server.child.kill("SIGTERM");
    const { code, stderr } = await promptly(server.ended());
    assertEquals(code, 0);
    checkLog(stderr);
  },
);

Deno.test(
  "tunnel command: a server with too many open files closes connections of further clients",
  { ignore },
  async () => {
    await using server = await start(["server", "--listen", "0", "--allow", "127.0.0.1:1"], LIMIT);
    const ask = async () => {
      const connection = await dial(server.addr);
      const session = Session.client(connection);
      session.closed.catch(() => {});
      const isServed = await request(session, "OPTIONS", "*").then(({ stream }) => (stream.close(), true), () => false);
      return { session, isServed };
    };
    const all = await promptly(Promise.all(Array.from({ length: AT_ONCE }, ask)));
    const served = all.filter(({ isServed }) => isServed).length;
    assertLess(served, LIMIT);
    assertGreater(served, 10);
    for (const { session } of all) session.abort();
    for (let isServed = false; !isServed;) {
      const again = await promptly(ask());
      isServed = again.isServed;
      again.session.abort();
    }
    server.child.kill("SIGTERM");
    const { code, stderr } = await promptly(server.ended());
    assertEquals(code, 0);
    checkLog(stderr);
  },
);

Deno.test(
  "tunnel command: without permission to read files, a client with too many open files reports the limit once",
  { ignore },
  async () => {
    await using echo = makeManyEchoes();
    await using server = await start(["server", "--listen", "0", "--allow", echo.addr]);
    const args = ["client", "--connect", server.addr, "--forward", `0=${echo.addr}`];
    await using client = await start(args, LIMIT, "--allow-net");
    const all = await Promise.all(Array.from({ length: AT_ONCE }, () => dial(client.addr)));
    await client.until(/too many open files: raise the limit/, "stderr");
    await recover(client.addr, all);
    client.child.kill("SIGTERM");
    const { code, stderr } = await promptly(client.ended());
    assertEquals(code, 0);
    assertEquals(stderr.match(/no more connections to /g)?.length, 1, stderr);
  },
);

Deno.test("reserve: the last listener that closes releases the descriptor", () => {
  const [one, other] = [listenOn(FREE), listenOn(FREE)];
  one.close();
  one.close();
  assert(reserve.release());
  assert(!reserve.release());
  assert(reserve.hold());
  other.close();
  assert(!reserve.release());
  // No listener needs it any more.
  assert(reserve.hold());
  assert(!reserve.release());
});

Deno.test("isLimitError() recognizes the error of a process without free descriptors", () => {
  assert(isLimitError(new Error("Too many open files (os error 24)")));
  assert(!isLimitError(new Error("Connection refused (os error 111)")));
});
