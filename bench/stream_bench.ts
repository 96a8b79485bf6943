/**
 * Streams beside the bare connection below them, both ends in this process: in memory, where only the library's work is
 * measured, and over TCP on the loopback. In one process a bare read finds its data in the kernel at once, which
 * favours the exchanges of the bare socket: `deno task deep peers` measures between two processes.
 */

import { type Connection, Session, type Stream } from "../mod.ts";
import { MemoryConnection, MiB, readAll, tcpPair, writeAll } from "../tests/support.ts";

const BULK = 4 * MiB;

type Ends = readonly [Pick<Connection, "read" | "write">, Pick<Connection, "read" | "write">];

async function socketPair(): Promise<[Deno.TcpConn, Deno.TcpConn]> {
  const pair = await tcpPair();
  for (const conn of pair) conn.setNoDelay();
  return pair;
}

function sessions([near, far]: [Connection, Connection], version: 1 | 2): [Session, Session] {
  return [Session.client(near, { version }), Session.server(far, { version })];
}

async function streams(connections: [Connection, Connection], version: 1 | 2): Promise<[Stream, Stream]> {
  const [client, server] = sessions(connections, version);
  return await Promise.all([client.openStream(), server.acceptStream()]);
}

async function transfer([near, far]: Ends, total: number, size: number): Promise<void> {
  const writing = (async () => {
    const p = new Uint8Array(size);
    // Without a helper between two writes, whose microtasks would hide what a tight loop costs.
    for (let sent = 0; sent < total;) sent += await near.write(sent % size === 0 ? p : p.subarray(sent % size));
  })();
  const p = new Uint8Array(64 * 1024);
  for (let received = 0; received < total;) received += (await far.read(p))!;
  await writing;
}

async function exchange([near, far]: Ends, times: number): Promise<void> {
  const p = new Uint8Array(64);
  const q = new Uint8Array(64);
  for (let i = 0; i < times; i++) {
    await near.write(p);
    await far.read(q);
    await far.write(q);
    await near.read(p);
  }
}

/** Sends 64 bytes, and waits until they have come back. */
async function visit(to: Connection & { closeWrite(): Promise<void> }): Promise<void> {
  await to.write(new Uint8Array(64));
  await to.closeWrite();
  const { length } = await readAll(to);
  if (length !== 64) throw new Error(`received ${length} of 64 bytes`);
  to.close();
}

async function echo(from: Connection): Promise<void> {
  await writeAll(from, await readAll(from));
  from.close();
}

/** Echoes and closes each stream. */
async function answer(server: Session): Promise<void> {
  for await (const stream of server) {
    echo(stream);
  }
}

// Large enough to never fill: a full pipe accepts parts of writes and splits its content ever further, unlike a socket.
const pipePair = () => MemoryConnection.pair(2 * BULK);

for (const [where, pair] of [["memory", pipePair], ["socket", socketPair]] as const) {
  const bare = `bare ${where === "memory" ? "pipe" : "socket"}`;
  const kinds: Record<string, Ends> = {
    [bare]: await pair(),
    "stream, version 1": await streams(await pair(), 1),
    "stream, version 2": await streams(await pair(), 2),
  };
  for (const [name, ends] of Object.entries(kinds)) {
    const baseline = name === bare;
    Deno.bench(`${where}, 4 MiB in writes of 64 KiB: ${name}`, { group: `${where}, bulk`, baseline }, async () => {
      await transfer(ends, BULK, 65_536);
    });
    Deno.bench(`${where}, 1 MiB in writes of 1 KiB: ${name}`, { group: `${where}, small`, baseline }, async () => {
      await transfer(ends, MiB, 1024);
    });
    Deno.bench(`${where}, 100 exchanges of 64 B: ${name}`, { group: `${where}, exchange`, baseline }, async () => {
      await exchange(ends, 100);
    });
  }

  // Opening a pipe in memory has no cost to compare with.
  const group = `${where}, open`;
  if (where === "socket") {
    const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    (async () => {
      for await (const conn of listener) echo(conn);
    })();
    Deno.bench(`${where}, open, 64 B there and back, close: ${bare}`, { group, baseline: true }, async () => {
      await visit(await Deno.connect({ hostname: "127.0.0.1", port: listener.addr.port }));
    });
  }
  for (const version of [1, 2] as const) {
    const [client, server] = sessions(await pair(), version);
    answer(server);
    const baseline = where === "memory" && version === 1;
    Deno.bench(
      `${where}, open, 64 B there and back, close: stream, version ${version}`,
      { group, baseline },
      async () => {
        await visit(await client.openStream());
      },
    );
  }
}
