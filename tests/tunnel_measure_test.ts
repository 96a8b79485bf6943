/** The request MEASURE of a tunnel's server. */

import { assert, assertEquals, assertGreater, assertMatch, assertRejects } from "@std/assert";
import { Session } from "../mod.ts";
import { serveTunnel, type ServeTunnelOptions, TunnelRefusedError } from "../tunnel.ts";
import { request } from "../tunnel/handshake.ts";
import { measure } from "../tunnel/measure.ts";
import { readSome } from "./support.ts";
import { changeDelays, dial, eventually, FREE, makeLog, promptly } from "./tunnel_support.ts";

const LIMIT = 64_000_000;
// Milliseconds until a measurement is cut.
const CUT = 10_000;

/** Starts a server and a session to it. */
async function start(options: Omit<ServeTunnelOptions, "listen"> = {}, version: 1 | 2 = 2) {
  const log = makeLog();
  const server = serveTunnel({ listen: FREE, allow: ["127.0.0.1:1"], ...log.options, ...options });
  const session = Session.client(await dial(server.serverAddr), { version });
  const dispose = async () => {
    session.abort();
    await server.shutdown();
  };
  return { session, log, server, [Symbol.asyncDispose]: dispose };
}

for (const version of [1, 2] as const) {
  Deno.test(`measure() transfers at most 64 MB in each direction, in version ${version}`, async () => {
    await using all = await start({}, version);
    for (const direction of ["download", "upload"] as const) {
      const { bytes, duration } = await promptly(measure(all.session, direction, {}));
      assertGreater(bytes, 0);
      assert(bytes <= LIMIT + 64 * 1024, `${bytes} bytes`);
      assertGreater(duration, 0);
    }
    const { bytesSent, bytesReceived } = all.session.stats();
    for (const bytes of [bytesSent, bytesReceived]) assert(bytes < LIMIT * 1.1, `${bytes} bytes`);
    assertEquals(all.log.messages(), []);
  });
}

Deno.test("serveTunnel() sends bytes that cannot be compressed to measure a download", async () => {
  await using all = await start();
  const { stream } = await request(all.session, "MEASURE", "download");
  const received = await readSome(stream, 64 * 1024);
  stream.close();
  const packed = new Response(new Blob([received]).stream().pipeThrough(new CompressionStream("deflate")));
  assertGreater((await packed.bytes()).length, 60 * 1024);
});

Deno.test("serveTunnel() measures only for clients with the secret, and refuses any other direction", async () => {
  await using all = await start({ secret: "right" });
  for (const [direction, secret, status] of [["download", "wrong", 407], ["sideways", "right", 405]] as const) {
    const measuring = request(all.session, "MEASURE", direction, { secret });
    assertEquals((await assertRejects(() => measuring, TunnelRefusedError)).status, status);
  }
});

Deno.test("serveTunnel() measures once at a time for each client", async () => {
  await using all = await start();
  const { stream } = await request(all.session, "MEASURE", "upload");
  const second = request(all.session, "MEASURE", "upload");
  assertEquals((await assertRejects(() => second, TunnelRefusedError, "another measurement")).status, 429);
  // Another client is not affected.
  const other = Session.client(await dial(all.server.serverAddr));
  (await request(other, "MEASURE", "upload")).stream.close();
  other.abort();
  // The server notices the end, and then measures again.
  stream.close();
  await eventually(async () => {
    const again = await request(all.session, "MEASURE", "upload").catch(() => undefined);
    again?.stream.close();
    return again !== undefined;
  });
});

Deno.test("serveTunnel() cuts a measurement whose client neither reads nor writes", async () => {
  using _ = changeDelays((delay) => delay === CUT ? 50 : delay);
  await using all = await start();
  for (const direction of ["download", "upload"] as const) {
    const { stream } = await request(all.session, "MEASURE", direction);
    // Bytes that fit into the window arrive before the end.
    const p = new Uint8Array(64 * 1024);
    if (direction === "download") await all.log.until(/./);
    const reading = async () => {
      while (await stream.read(p) !== null);
    };
    await promptly(reading());
    stream.close();
  }
  assertMatch(all.log.messages()[0]!, /clos/);
});

Deno.test("measure() rejects when the server ends the stream before anything was measured", async () => {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const session = Session.client(await Deno.connect({ hostname: "127.0.0.1", port: listener.addr.port }));
  const server = Session.server(await listener.accept());
  const answering = (async () => {
    for (let n = 0; n < 2; n++) {
      const stream = await server.acceptStream();
      await stream.read(new Uint8Array(1000));
      await stream.write(new TextEncoder().encode("HTTP/1.1 200 OK\r\n\r\n"));
      stream.close();
    }
  })();
  for (const direction of ["download", "upload"] as const) {
    await assertRejects(() => promptly(measure(session, direction, {})), Error, "too few bytes");
  }
  await answering;
  session.abort();
  server.abort();
});
