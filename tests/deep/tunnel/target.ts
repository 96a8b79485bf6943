/**
 * The targets of the tunnel's comparison, in a process of their own: `target.ts` prints the ports of a server of bytes
 * and of a web server.
 *
 * @module
 */

import { LOOPBACK, readExactly, readSome } from "../../support.ts";

/** Requests that many bytes; followed by a 64-bit number. Any other first byte requests an echo of what follows. */
export const DOWNLOAD = 100;

const CHUNK = new Uint8Array(256 * 1024);
// Larger: fewer requests; smaller: only the heads of HTTP are measured.
const BODY = new Uint8Array(1024);

async function serveBytes(connection: Deno.TcpConn): Promise<void> {
  connection.setNoDelay(true);
  const [kind] = await readSome(connection, 1);
  if (kind !== DOWNLOAD) return await connection.readable.pipeTo(connection.writable);
  let left = Number(new DataView((await readExactly(connection, 8)).buffer).getBigUint64(0));
  while (left > 0) left -= await connection.write(CHUNK.subarray(0, Math.min(left, CHUNK.length)));
  connection.close();
}

if (import.meta.main) {
  const listener = Deno.listen({ ...LOOPBACK, tcpBacklog: 4096 });
  const web = Deno.serve({ ...LOOPBACK, tcpBacklog: 4096, onListen() {} }, () => new Response(BODY));
  console.log(`ports ${listener.addr.port} ${web.addr.port}`);
  for (;;) {
    const connection = await listener.accept();
    serveBytes(connection).catch(() => {});
  }
}
