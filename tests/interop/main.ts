/**
 * `deno task interop [filter]`: Sluice against Go's smux, both roles, both versions, every workload.
 *
 * Each cell is one session over TCP between a Go process and this one. The opener checks every hash, both sides check
 * how the session ends, and the bytes sent by one side must equal those received by the other. With `--self` Go's smux
 * runs against itself, which validates the Go side of the workloads.
 *
 * @module
 */

import { parseArgs } from "node:util";
import { deadline } from "@std/async";
import { MAX_PAYLOAD_LENGTH } from "../../frame.ts";
import { runClient, runServer, type Tally, type Workload } from "./workloads.ts";
import { explain, onUnhandled } from "../errors.ts";
import { buildGo, hasGoPackage } from "../go_build.ts";
import { kill, lines, makeFolder } from "../programs.ts";
import { MiB } from "../support.ts";

const CELL_TIMEOUT = 60_000;

const DEFAULTS: Omit<Workload, "name" | "kind"> = {
  streams: 1,
  parallel: 1,
  size: 1024,
  large: 0,
  idle: 0,
  options: {},
};

const ECHO: Workload = {
  ...DEFAULTS,
  name: "echo",
  kind: "echo",
  streams: 1000,
  parallel: 64,
  size: 256 * 1024,
  large: 2 * MiB,
};

const CHURN: Workload = { ...DEFAULTS, name: "churn", kind: "echo", streams: 5000, size: 100 };

const SOME: Workload = { ...ECHO, streams: 200, large: 0 };

const WORKLOADS: Workload[] = [
  ECHO,
  { ...DEFAULTS, name: "bulk both ways", kind: "bulk", size: 64 * MiB },
  { ...CHURN, name: "churn, 1 at a time" },
  { ...CHURN, name: "churn, 32 at a time", parallel: 32 },
  { ...SOME, name: "aborted streams", parallel: 16, size: 20_000, isAborting: true },
  // 64 streams of 64 KiB fit Go's receive buffer: with a full one, Go would not read the credit for its echoes.
  { ...SOME, name: "stream buffer 1 KiB", size: 64 * 1024, options: { maxStreamBuffer: 1024 } },
  // More than half of Sluice's buffer is unread at first, so Go's streams lose credit and regain it.
  { ...SOME, name: "scarce room", large: 2 * MiB, ours: { maxReceiveBuffer: 4 * MiB }, held: 2.1 * MiB },
  { ...SOME, name: "frame size 1", size: 1024, options: { maxFrameSize: 1 } },
  { ...SOME, name: "frame size 1024", options: { maxFrameSize: 1024 } },
  { ...SOME, name: `frame size ${MAX_PAYLOAD_LENGTH}`, large: 2 * MiB, options: { maxFrameSize: MAX_PAYLOAD_LENGTH } },
  // Below smux's initial window of 262144 bytes: smux 1.5.16 cannot wait for more credit after the peer's FIN.
  { ...SOME, name: "half-close", kind: "half-close", parallel: 16, size: 200_000 },
  { ...SOME, name: "both ends open", kind: "both", parallel: 16 },
  { ...SOME, name: "hang-up", kind: "hang-up", size: 10_000 },
  { ...DEFAULTS, name: "keepalive", kind: "keepalive", idle: 2500, options: { keepAliveInterval: 200, timeout: 600 } },
  // More than both sockets and Go's receive buffer hold, and unread for longer than the timeout.
  {
    ...DEFAULTS,
    name: "not read for 3 timeouts",
    kind: "hold",
    size: 64 * MiB,
    idle: 3000,
    // Go's timeout is long, because Go ends a session whose NOPs are behind unread data.
    options: { keepAliveInterval: 300, timeout: 30_000 },
    ours: { timeout: 1000 },
  },
];

/** The Go peer's flag for each option. */
const FLAGS = {
  maxFrameSize: "frame",
  maxStreamBuffer: "buffer",
  maxReceiveBuffer: "receive",
  keepAliveInterval: "interval",
  timeout: "timeout",
} as const;

/** One end of a cell: its counts at the end, and a way to stop it. */
interface Side {
  readonly tally: Promise<Tally>;
  stop(): void;
}

interface ServerSide extends Side {
  readonly port: number;
}

interface Cell {
  readonly label: string;
  readonly workload: Workload;
  server(): Promise<ServerSide>;
  client(port: number): Promise<Side>;
}

/** Starts the Go peer. */
function spawn(peer: string, role: string, version: number, workload: Workload, port: number) {
  const { kind, streams, parallel, size, large, idle, options } = workload;
  const flags = Object.entries({ role, port, version, workload: kind, streams, parallel, size, large, idle });
  const settings = Object.entries(FLAGS).map(([option, flag]) =>
    [flag, options[option as keyof typeof FLAGS]] as const
  );
  const args = [...flags, ...settings].filter(([, value]) => value !== undefined).map((flag) => "-" + flag.join("="));
  const child = new Deno.Command(peer, { args, stdin: "null", stdout: "piped", stderr: "inherit" }).spawn();
  const output = lines(child.stdout).values();
  const stop = () => kill(child);
  const result = async (): Promise<Tally> => {
    const { value } = await output.next();
    const { code, signal } = await child.status;
    const tally: Tally & { error?: string } = JSON.parse(value ?? "{}");
    if (code !== 0) throw new Error(`Go: ${tally.error ?? `exit code ${code}, signal ${signal}`}`);
    return tally;
  };
  return { output, result, stop };
}

function goClient(peer: string, version: number, workload: Workload, port: number): Promise<Side> {
  const { result, stop } = spawn(peer, "client", version, workload, port);
  return Promise.resolve({ tally: result(), stop });
}

async function goServer(peer: string, version: number, workload: Workload): Promise<ServerSide> {
  const { output, result, stop } = spawn(peer, "server", version, workload, 0);
  const { value } = await output.next();
  return { port: Number(value), tally: result(), stop };
}

async function ourClient(version: 1 | 2, workload: Workload, port: number): Promise<Side> {
  const conn = await Deno.connect({ hostname: "127.0.0.1", port });
  return { tally: runClient(conn, version, workload), stop: () => close(conn) };
}

function ourServer(version: 1 | 2 | "auto", workload: Workload): Promise<ServerSide> {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  let conn: Deno.Conn | undefined;
  const run = async () => {
    conn = await listener.accept();
    listener.close();
    return await runServer(conn, version, workload);
  };
  const stop = () => {
    close(listener);
    close(conn);
  };
  return Promise.resolve({ port: listener.addr.port, tally: run(), stop });
}

function close(resource: { close(): void } | undefined): void {
  try {
    resource?.close();
  } catch {
    // It was closed before.
  }
}

function cells(peer: string, self: boolean): Cell[] {
  const versions = [1, 2] as const;
  if (self) {
    return versions.flatMap((version) =>
      WORKLOADS.map((workload): Cell => ({
        label: `Go v${version} ${workload.name}`,
        workload,
        server: () => goServer(peer, version, workload),
        client: (port) => goClient(peer, version, workload, port),
      }))
    );
  }
  const client = versions.flatMap((version) =>
    WORKLOADS.map((workload): Cell => ({
      label: `client v${version} ${workload.name}`,
      workload,
      server: () => goServer(peer, version, workload),
      client: (port) => ourClient(version, workload, port),
    }))
  );
  const server = (version: 1 | 2, ours: 1 | 2 | "auto", name: string, workload: Workload): Cell => ({
    label: `server v${version} ${name}`,
    workload,
    server: () => ourServer(ours, workload),
    client: (port) => goClient(peer, version, workload, port),
  });
  return [
    ...client,
    ...versions.flatMap((version) => WORKLOADS.map((workload) => server(version, version, workload.name, workload))),
    ...versions.map((version) => server(version, "auto", `echo, "auto"`, ECHO)),
  ];
}

/** Runs one cell; throws the errors of its sides if it failed. */
async function run(cell: Cell): Promise<Tally> {
  const sides: Side[] = [];
  const reasons: string[] = [];
  using _ = onUnhandled((reason) => reasons.push(`unhandled: ${explain(reason)}`));
  const start = (side: Side) => {
    sides.push(side);
    side.tally.catch((error) => reasons.push(explain(error)));
  };
  try {
    const server = await cell.server();
    start(server);
    const client = await cell.client(server.port);
    start(client);
    const both = [server.tally, client.tally] as const;
    const [ofServer, ofClient] = await deadline(Promise.all(both), CELL_TIMEOUT).catch(async (error) => {
      if (reasons.length === 0) throw new Error(`not ended within ${CELL_TIMEOUT / 1000} s`);
      // A side that failed breaks the other, whose error may follow.
      await deadline(Promise.allSettled(both), 1000).catch(() => {});
      throw error;
    });
    if (reasons.length > 0) throw new Error(reasons[0]);
    if (
      ofServer.streams !== ofClient.streams || ofServer.sent !== ofClient.received ||
      ofServer.received !== ofClient.sent
    ) {
      throw new Error(`the sides differ: server ${JSON.stringify(ofServer)}, client ${JSON.stringify(ofClient)}`);
    }
    return ofClient;
  } catch (error) {
    if (reasons.length === 0) reasons.push(explain(error));
    throw new Error([...new Set(reasons)].slice(0, 4).join("\n    "));
  } finally {
    for (const side of sides) side.stop();
    await deadline(Promise.allSettled(sides.map((side) => side.tally)), 1000).catch(() => {});
  }
}

async function main(args: string[]): Promise<number> {
  const { values: { self = false }, positionals } = parseArgs({
    args,
    options: { self: { type: "boolean" } },
    allowPositionals: true,
  });
  const filter = positionals.join(" ");
  let [passed, failed, skipped] = [0, 0, 0];

  await using folder = await makeFolder("interop");
  const peer = hasGoPackage("github.com/xtaci/smux")
    ? await buildGo(folder.path, [`${import.meta.dirname}/peer.go`])
    : undefined;
  const chosen = cells(peer ?? "", self).filter((cell) => cell.label.includes(filter));
  if (chosen.length === 0) throw new Error(`No cell's name contains "${filter}"`);
  if (peer === undefined) {
    console.log("interop needs Go and its smux: apt-get install golang-go golang-github-xtaci-smux-dev");
    skipped = chosen.length;
  }
  for (const cell of peer === undefined ? [] : chosen) {
    const start = performance.now();
    const label = cell.label.padEnd(30);
    try {
      const { streams, sent, received } = await run(cell);
      const seconds = (performance.now() - start) / 1000;
      const size = ((sent + received) / MiB).toFixed(1);
      console.log(
        `${label} ok   ${String(streams).padStart(4)} streams, ${size.padStart(5)} MiB, ${seconds.toFixed(1)} s`,
      );
      passed++;
    } catch (error) {
      console.log(`${label} FAILED\n    ${error instanceof Error ? error.message : error}`);
      failed++;
    }
  }
  console.log(`${passed} passed, ${failed} failed, ${skipped} skipped`);
  return failed > 0 ? 1 : 0;
}

if (import.meta.main) Deno.exit(await main(Deno.args));
