/** A stream beside the bare connection it runs over: loopback TCP, both ends in this process. */

import { Session, type Stream } from "../mod.ts";

type Ends = readonly [Pick<Deno.Conn, "read" | "write">, Pick<Deno.Conn, "read" | "write">];

async function connections(): Promise<[Deno.TcpConn, Deno.TcpConn]> {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const [near, far] = await Promise.all([Deno.connect({ port: listener.addr.port }), listener.accept()]);
  near.setNoDelay();
  far.setNoDelay();
  return [near, far];
}

async function streams(version: 1 | 2): Promise<[Stream, Stream]> {
  const [near, far] = await connections();
  const [client, server] = [Session.client(near, { version }), Session.server(far)];
  return await Promise.all([client.openStream(), server.acceptStream()]);
}

const kinds: Record<string, Ends> = {
  "bare connection": await connections(),
  "stream, version 1": await streams(1),
  "stream, version 2": await streams(2),
};

async function transfer([near, far]: Ends, total: number, size: number): Promise<void> {
  const writing = (async () => {
    const p = new Uint8Array(size);
    for (let sent = 0; sent < total;) {
      sent += await near.write(p.subarray(0, Math.min(size, total - sent)));
    }
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

for (const [name, ends] of Object.entries(kinds)) {
  const baseline = name === "bare connection";
  Deno.bench(`16 MiB in writes of 64 KiB: ${name}`, { group: "bulk", baseline }, async () => {
    await transfer(ends, 1 << 24, 65_536);
  });
  Deno.bench(`1 MiB in writes of 1 KiB: ${name}`, { group: "small", baseline }, async () => {
    await transfer(ends, 1 << 20, 1024);
  });
  Deno.bench(`100 exchanges of 64 B: ${name}`, { group: "exchange", baseline }, async () => {
    await exchange(ends, 100);
  });
}

const [near, far] = await connections();
const [client, server] = [Session.client(near), Session.server(far)];
(async () => {
  const p = new Uint8Array(64);
  for await (const stream of server) {
    const count = await stream.read(p);
    await stream.write(p.subarray(0, count!));
    stream.close();
  }
})();

Deno.bench("open, write 64 B, read the echo, close", { group: "open" }, async () => {
  const p = new Uint8Array(64);
  const stream = await client.openStream();
  await stream.write(p);
  await stream.read(p);
  stream.close();
});
